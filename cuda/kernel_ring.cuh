// The rings: a request on its way out, its answer on the way home. Who writes what, with which ordering, is in README.md; the named edges
// are those of shm/ring.h.

// ---- submitting ------------------------------------------------------------------------------------------------------
// Waits until `count` more entries have a place. One thread. The last believed head of the daemon's, or a status. A3.
DEVICE int wait_for_room(const struct gpu_queue *q, struct gpu_state *s, uint32_t next, uint32_t known_head, uint32_t count)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	uint64_t begin = 0;
	if (next - known_head + count <= q->entries)
		return 0;
	for (;;) {
		uint32_t peer_head = load_acquire(&h->sq_head);
		if (next - peer_head > q->entries)
			return MPIG_EPROTO;
		s->known_head = peer_head;
		if (next - peer_head + count <= q->entries)
			return 0;
		uint64_t now = clock_ns();
		begin = begin ? begin : now;
		if (now - begin > q->timeout_ns)
			return MPIG_ETIMEDOUT;
	}
}

// The 64-bit word `w` of item i's slot header, as this step wants it.
DEVICE uint64_t header_word(const struct gpu_submit *a, uint32_t i, uint32_t w)
{
	uint64_t word = ((const uint64_t *)&AT(gpu_item, a->items)[i].header)[w];
	if (w == offsetof(struct mpig_slot_header, query_position) / 8 && a->rows)
		word = (uint64_t)(((const int64_t *)a->rows)[i] - a->shape.tokens);
	return word;
}

DEVICE uint64_t entry_word(const struct gpu_submit *a, uint32_t i, uint32_t w, uint64_t sequence)
{
	uint64_t word = ((const uint64_t *)&AT(gpu_item, a->items)[i].entry)[w];
	if (w == 0 && a->split) // op, flags, layer, handle
		word &= ~((uint64_t)MPIG_SQE_END_RELATIVE << 8);
	if (w == offsetof(struct mpig_sqe, user_data) / 8)
		word = sequence + i;
	if (w == offsetof(struct mpig_sqe, end) / 8 && a->split)
		word = (uint64_t)((const int64_t *)a->split)[i];
	return word;
}

// Headers and entries of all items, by all threads of a block.
DEVICE void write_entries(const struct gpu_submit *a, uint32_t next, uint64_t sequence)
{
	const struct gpu_queue *q = &a->queue;
	const uint32_t words = sizeof(struct mpig_slot_header) / 8, all = words + sizeof(struct mpig_sqe) / 8;
	for (uint32_t n = threadIdx.x; n < a->shape.items * all; n += blockDim.x) {
		uint32_t i = n / all, w = n % all;
		uint64_t entry = q->region + q->sq_offset + ((next + i) & (q->entries - 1)) * sizeof(struct mpig_sqe);
		if (w < words)
			store_word((uint64_t *)slot_address(q, a->first_slot + i) + w, header_word(a, i, w));
		else
			store_word((uint64_t *)entry + (w - words), entry_word(a, i, w - words, sequence));
	}
}

// The entries are written: notes what is in flight, and stores the tail. One thread; `s` is the state as it was loaded.
DEVICE void publish(const struct gpu_queue *q, const struct gpu_state *s, uint32_t first_slot, uint32_t count)
{
	struct gpu_state *state = AT(gpu_state, q->state);
	struct mpig_queue_header *h = (struct mpig_queue_header *)q->region;
	for (uint32_t i = 0; i < count; i++) {
		struct gpu_slot out = {s->sequence + i, GPU_SLOT_OUT, 0};
		*slot_state(q, first_slot + i) = out;
	}
	state->sequence = s->sequence + count;
	state->sq_next = s->sq_next + count;
	state->cq_published = s->cq_next;
	// R0, partner of the daemon's A1, and R2 for completions taken since the last one: a fence costs half a round trip over the bus,
	// so they share it. It covers what other threads and blocks wrote: they reach this thread through the barriers and the fences of
	// arrive(), and a release is cumulative.
	fence_release();
	if (s->cq_next != s->cq_published)
		store_relaxed(&h->cq_head, s->cq_next);
	store_relaxed(&h->sq_tail, s->sq_next + count);
}

// A warp's query, and its signature, into its slot, unless *status, which the block's first thread sets, forbids it. Everything that is
// read is asked for before anything waits, and q is on its way over the bus while it is signed.
DEVICE void submit_heads(const int E, const struct gpu_submit *a, struct gpu_state *state, int *status)
{
	const struct gpu_shape *shape = &a->shape;
	const uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	const int mine = number < shape->items * shape->tokens * shape->query_heads;
	struct place p = {0, 0, 0, 0};
	struct signed_query query;
	float x[8], by[8], own_lse = 0.0f;
	if (mine) {
		p = place_of(shape, number);
		query_load(E, shape->d_k, a->q, stride_at(&a->q_strides, &p), a->dtype, &query, x);
		balance_load(E, shape, a->balance + (uint64_t)p.item * shape->kv_heads * shape->d_k * 4, p.head, by);
		own_lse = ((const float *)a->window_lse)[number]; // of the step before; after one that failed it may be NaN
	}
	const struct gpu_item *item = AT(gpu_item, a->items) + p.item;
	const uint64_t at_q = item->q, at_signature = item->signature, at_scale = item->scale, at_lse = item->window_lse;
	const struct gpu_state s = *state;
	if (threadIdx.x == 0)
		*status = s.failed          ? s.failed
		          : blockIdx.x == 0 ? wait_for_room(&a->queue, state, s.sq_next, s.known_head, shape->items)
		                            : 0;
	block_barrier();
	for (uint32_t i = threadIdx.x; i < shape->items; i += blockDim.x)
		if (slot_state(&a->queue, a->first_slot + i)->state != GPU_SLOT_FREE)
			*status = MPIG_EBUSY; // all write the same
	block_barrier();
	if (*status)
		return;
	if (blockIdx.x == 0)
		write_entries(a, s.sq_next, s.sequence);
	if (!mine)
		return;
	uint64_t slot = slot_address(&a->queue, a->first_slot + p.item);
	raw_store(E, &query, slot + at_q + (uint64_t)p.row * shape->d_k * (a->dtype == MPIG_F32 ? 4 : 2), a->dtype, shape->d_k);
	if (at_lse && lane_of() == 0)
		((float *)(slot + at_lse))[p.row] = own_lse != own_lse ? -INFINITE_FLOAT : own_lse;
	if (!at_signature)
		return;
	query_sign(E, shape, item, x, by, &query);
	signature_store(E, &query, slot + at_signature + (uint64_t)p.row * shape->d_pad, slot + at_scale + (uint64_t)p.row * 4);
}

// Each warp writes one query into its slot; the block that is done last publishes them.
KERNEL(GPU_FUSED_BLOCK) mpig_submit(ARGUMENT(gpu_submit) a)
{
	SHARED int status;
	struct gpu_state *state = AT(gpu_state, a.queue.state), s = *state;
	if (a.shape.d_pad == 128)
		submit_heads(4, &a, state, &status);
	else if (a.shape.d_pad == 256)
		submit_heads(8, &a, state, &status);
	else
		submit_heads(2, &a, state, &status);
	block_barrier();
	if (threadIdx.x)
		return;
	if (gridDim.x > 1) {
		if (arrive(&state->arrived) != gridDim.x - 1)
			return;
		state->arrived = 0;
	}
	if (status)
		fail(&a.queue, status, a.first_slot, s.sequence);
	else
		publish(&a.queue, &s, a.first_slot, a.shape.items);
}

// ---- waiting ---------------------------------------------------------------------------------------------------------
#define LOOKS_PER_CLOCK 16u // a look costs a round trip over the bus, which takes about as long
#define LOOKS_PER_FLAG 256u

// When a wait began; the clock is slow to read, so it is looked at now and then, and first when a wait is long.
struct patience {
	uint64_t begin;
	uint32_t looks;
};

// Until something new is in the completion ring, or the end of patience. One thread. How many, or a negative status. A1.
DEVICE int wait_for_tail(const struct gpu_queue *q, uint32_t cq_next, struct patience *p)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	for (;;) {
		uint32_t peer_tail = load_acquire(&h->cq_tail), ready = peer_tail - cq_next;
		if (ready > q->entries)
			return MPIG_EPROTO;
		if (ready)
			return (int)ready;
		if (++p->looks % LOOKS_PER_CLOCK)
			continue;
		uint64_t now = clock_ns();
		p->begin = p->begin ? p->begin : now;
		if (now - p->begin > q->timeout_ns)
			return MPIG_ETIMEDOUT;
		if (p->looks % LOOKS_PER_FLAG == 0 && load_acquire(&h->sq_flags) & MPIG_SQ_CLOSED)
			return MPIG_ESHUTDOWN;
	}
}

struct completion {
	uint64_t user_data, committed, rows_read, bytes_read, service_ns;
	uint32_t slot;
	int32_t status;
};

DEVICE struct completion load_completion(const uint64_t *place)
{
	uint64_t words[sizeof(struct mpig_cqe) / 8];
	UNROLL
	for (uint32_t w = 0; w < sizeof(struct mpig_cqe) / 8; w += 2)
		load_pair(place + w, words + w);
	struct completion c;
	c.user_data = words[0];
	c.status = (int32_t)(uint32_t)words[1];
	c.slot = (uint32_t)(words[1] >> 32);
	c.committed = words[offsetof(struct mpig_cqe, committed) / 8];
	c.rows_read = words[offsetof(struct mpig_cqe, rows_read) / 8];
	c.bytes_read = words[offsetof(struct mpig_cqe, bytes_read) / 8];
	c.service_ns = words[offsetof(struct mpig_cqe, service_ns) / 8];
	return c;
}

DEVICE void report_completion(const struct gpu_queue *q, const struct completion *c)
{
	struct gpu_report *r = AT(gpu_report, q->report);
	r->answered = c->user_data;
	r->committed = c->committed;
	r->rows_read = c->rows_read;
	r->bytes_read = c->bytes_read;
	r->service_ns = c->service_ns;
}

// Places of the completion ring before `next` are the daemon's again: with the next submission, or now if half of the ring waits for
// that. R2.
DEVICE void give_back(const struct gpu_queue *q, uint32_t next, uint32_t published)
{
	struct mpig_queue_header *h = (struct mpig_queue_header *)q->region;
	if (next - published < (q->entries + 1) / 2)
		return;
	store_release(&h->cq_head, next);
	AT(gpu_state, q->state)->cq_published = next;
}

// Takes the completion at `place` over. Returns 0, or MPIG_EPROTO if it answers nothing that is out.
DEVICE int take_completion(const struct gpu_queue *q, const uint64_t *place)
{
	struct completion c = load_completion(place);
	if (c.slot >= q->slots || c.status > 0)
		return MPIG_EPROTO;
	struct gpu_slot *slot = slot_state(q, c.slot);
	struct gpu_slot known = *slot, done = {c.user_data, GPU_SLOT_DONE, c.status};
	if (known.state != GPU_SLOT_OUT || known.sequence != c.user_data)
		return MPIG_EPROTO;
	*slot = done;
	report_completion(q, &c);
	return 0;
}

// Takes `ready` completions.
DEVICE int take_ready(const struct gpu_queue *q, uint32_t ready)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	uint32_t next = s->cq_next, published = s->cq_published;
	int status = 0;
	for (; ready && !status; ready--, next++) {
		uint64_t at = q->cq_offset + (next & (q->entries - 1)) * sizeof(struct mpig_cqe);
		status = take_completion(q, (const uint64_t *)(q->region + at));
	}
	s->cq_next = next;
	give_back(q, next, published);
	return status;
}

// Until the slot's request is answered, which frees it. Completions of others are noted on the way. One thread.
DEVICE int wait_for_slot(const struct gpu_queue *q, uint32_t number, struct patience *patience)
{
	struct gpu_slot *slot = slot_state(q, number);
	if (slot->state == GPU_SLOT_FREE)
		return MPIG_EINVAL; // nothing was submitted
	while (slot->state == GPU_SLOT_OUT) {
		int ready = wait_for_tail(q, AT(gpu_state, q->state)->cq_next, patience);
		int status = ready > 0 ? take_ready(q, (uint32_t)ready) : ready;
		if (status)
			return status;
	}
	slot->state = GPU_SLOT_FREE;
	return slot->status;
}

// What a wait knows of its request before the answer comes, so that nothing but the answer is read after.
struct expected {
	struct gpu_state s;
	struct gpu_slot slot;
	int usual; // nothing has failed, and the request is out
};

DEVICE struct expected expect(const struct gpu_queue *q, uint32_t number)
{
	struct expected e;
	e.s = *AT(gpu_state, q->state);
	e.slot = *slot_state(q, number);
	e.usual = !e.s.failed && e.slot.state == GPU_SLOT_OUT;
	return e;
}

// The completion at place `next` by lanes 0 to 3 of a warp at once, two words each: a thread's loads of one line wait for one another. What
// lanes 1 and 2 have goes to the host; it is overwritten if the completion turns out to be another's, which is then taken again.
DEVICE void load_expected(const struct gpu_queue *q, uint32_t next, uint64_t *words)
{
	const uint32_t lane = threadIdx.x;
	struct gpu_report *r = AT(gpu_report, q->report);
	load_pair((const uint64_t *)(q->region + q->cq_offset + (next & (q->entries - 1)) * sizeof(struct mpig_cqe)) + 2 * lane,
	          words);
	if (lane == 1) {
		r->committed = words[0];
		r->rows_read = words[1];
	} else if (lane == 2) {
		r->bytes_read = words[0];
		r->service_ns = words[1];
	}
}

// One completion has come, to one request that was waited for; `words` are its first two. Takes it, and frees the slot. 1; or 0 if it is
// another's, or one that makes no sense, and then nothing is done. One thread.
DEVICE int take_expected(const struct gpu_queue *q, const struct expected *e, uint32_t number, const uint64_t *words, int *status)
{
	uint32_t next = e->s.cq_next;
	int32_t answer = (int32_t)(uint32_t)words[1];
	if ((uint32_t)(words[1] >> 32) != number || words[0] != e->slot.sequence || answer > 0)
		return 0;
	struct gpu_slot free_slot = {words[0], GPU_SLOT_FREE, answer};
	*slot_state(q, number) = free_slot;
	AT(gpu_state, q->state)->cq_next = next + 1;
	AT(gpu_report, q->report)->answered = words[0];
	give_back(q, next + 1, e->s.cq_published);
	*status = answer;
	return 1;
}

// Slots first, first + 1 .. Returns whether all were answered well. One thread.
DEVICE int wait_for_all(const struct gpu_queue *q, uint32_t first, uint32_t count, struct patience *patience)
{
	for (uint32_t i = first; i < first + count; i++) {
		if (AT(gpu_state, q->state)->failed)
			return 0;
		int status = wait_for_slot(q, i, patience);
		if (status)
			fail(q, status, i, slot_state(q, i)->sequence);
	}
	return !AT(gpu_state, q->state)->failed;
}

// What threads of a block share while they wait for one request.
struct together {
	int ready;     // completions that have come
	uint32_t next; // place of the first
};

// The first half of a wait for one request, by all threads of a block; after it those of its first warp may look at the completion.
DEVICE void wait_together(const struct gpu_queue *q, uint32_t number, int usual, struct together *t, struct expected *e,
                          struct patience *patience)
{
	*e = expect(q, number);
	if (threadIdx.x == 0) {
		t->next = e->s.cq_next;
		t->ready = usual && e->usual ? wait_for_tail(q, e->s.cq_next, patience) : 0;
	}
	block_barrier();
}

// The same for one, as it usually is. All threads of a block; what it returns is thread 0's.
DEVICE int wait_for_one(const struct gpu_queue *q, uint32_t number, struct together *t, struct patience *patience)
{
	struct expected e;
	uint64_t words[2] = {0, 0};
	int status = 0, good = 0;
	wait_together(q, number, 1, t, &e, patience);
	if (t->ready == 1 && threadIdx.x < 4)
		load_expected(q, t->next, words);
	if (threadIdx.x == 0) {
		if (t->ready != 1 || !take_expected(q, &e, number, words, &status))
			good = wait_for_all(q, number, 1, patience);
		else
			good = !status;
		if (status)
			fail(q, status, number, e.slot.sequence);
	}
	block_barrier();
	return good;
}

KERNEL(GPU_WARP) mpig_wait(ARGUMENT(gpu_wait) a)
{
	struct patience patience = {0, 0};
	SHARED struct together together;
	if (a.slots == 1)
		wait_for_one(&a.queue, a.first_slot, &together, &patience);
	else if (threadIdx.x == 0)
		wait_for_all(&a.queue, a.first_slot, a.slots, &patience);
}

// ---- measuring -------------------------------------------------------------------------------------------------------
// A request that does nothing, now. One thread; 0, or what it fails with.
DEVICE int submit_nothing(const struct gpu_rounds *a, struct gpu_state *state)
{
	struct gpu_state s = *state;
	uint64_t entry = a->queue.region + a->queue.sq_offset + (s.sq_next & (a->queue.entries - 1)) * sizeof(struct mpig_sqe);
	if (s.failed)
		return s.failed;
	int status = slot_state(&a->queue, a->slot)->state != GPU_SLOT_FREE
	                     ? MPIG_EBUSY
	                     : wait_for_room(&a->queue, state, s.sq_next, s.known_head, 1);
	if (status) {
		fail(&a->queue, status, a->slot, s.sequence);
		return status;
	}
	for (uint32_t w = 0; w < sizeof(struct mpig_sqe) / 8; w++)
		store_word((uint64_t *)entry + w,
		           w == offsetof(struct mpig_sqe, user_data) / 8 ? s.sequence : ((const uint64_t *)a->item)[w]);
	publish(&a->queue, &s, a->slot, 1);
	return 0;
}

// One thread submits a request that does nothing and its warp waits for it, again and again.
KERNEL(GPU_WARP) mpig_rounds(ARGUMENT(gpu_rounds) a)
{
	SHARED struct together together;
	SHARED int stop;
	uint64_t *cycles = (uint64_t *)a.cycles, begin = clock_cycles(), begin_ns = clock_ns();
	for (uint32_t n = 0; n < a.count; n++) {
		struct patience patience = {0, 0};
		uint64_t before = clock_cycles();
		if (threadIdx.x == 0)
			stop = submit_nothing(&a, AT(gpu_state, a.queue.state)) != 0;
		block_barrier();
		if (stop)
			return;
		wait_for_one(&a.queue, a.slot, &together, &patience);
		if (threadIdx.x == 0)
			cycles[n] = clock_cycles() - before;
	}
	if (threadIdx.x)
		return;
	cycles[a.count] = clock_cycles() - begin;
	cycles[a.count + 1] = clock_ns() - begin_ns;
}
