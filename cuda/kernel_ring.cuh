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

// The 64-bit word `w` of item i's slot header, which is `word` in the plan, as this step wants it.
DEVICE uint64_t header_word(const struct gpu_submit *a, uint32_t i, uint32_t w, uint64_t word)
{
	if (w == offsetof(struct mpig_slot_header, query_position) / 8 && a->rows)
		word = (uint64_t)(((const int64_t *)a->rows)[i] - a->shape.tokens);
	return word;
}

DEVICE uint64_t entry_word(const struct gpu_submit *a, uint32_t i, uint32_t w, uint64_t word, uint64_t sequence)
{
	if (w == 0 && a->split) // op, flags, layer, handle
		word &= ~((uint64_t)MPIG_SQE_END_RELATIVE << 8);
	if (w == offsetof(struct mpig_sqe, user_data) / 8)
		word = sequence + i;
	if (w == offsetof(struct mpig_sqe, end) / 8 && a->split)
		word = (uint64_t)((const int64_t *)a->split)[i];
	return word;
}

#define HEADER_WORDS (sizeof(struct mpig_slot_header) / 8)
#define ITEM_WORDS (HEADER_WORDS + sizeof(struct mpig_sqe) / 8)

// The n-th word of all items' headers and entries as the plan has it.
DEVICE uint64_t plan_word(const struct gpu_submit *a, uint32_t n)
{
	const struct gpu_item *item = AT(gpu_item, a->items) + n / ITEM_WORDS;
	uint32_t w = n % ITEM_WORDS;
	return w < HEADER_WORDS ? ((const uint64_t *)&item->header)[w] : ((const uint64_t *)&item->entry)[w - HEADER_WORDS];
}

// Headers and entries of all items, by all threads of a block. `word` is the first plan_word of a thread.
DEVICE void write_entries(const struct gpu_submit *a, uint32_t next, uint64_t sequence, uint64_t word)
{
	const struct gpu_queue *q = &a->queue;
	for (uint32_t n = threadIdx.x; n < a->shape.items * ITEM_WORDS; n += blockDim.x) {
		uint32_t i = n / ITEM_WORDS, w = n % ITEM_WORDS;
		uint64_t entry = q->region + q->sq_offset + ((next + i) & (q->entries - 1)) * sizeof(struct mpig_sqe);
		word = n == threadIdx.x ? word : plan_word(a, n);
		if (w < HEADER_WORDS)
			store_word((uint64_t *)slot_address(q, a->first_slot + i) + w, header_word(a, i, w, word));
		else
			store_word((uint64_t *)entry + (w - HEADER_WORDS), entry_word(a, i, w - HEADER_WORDS, word, sequence));
	}
}

// The entries are written: notes what is in flight, and stores the tail. One thread; `s` is the state as it was loaded, `marked`: mark_answers.
DEVICE void publish(const struct gpu_queue *q, const struct gpu_state *s, uint32_t first_slot, uint32_t count, int marked)
{
	struct gpu_state *state = AT(gpu_state, q->state);
	struct mpig_queue_header *h = (struct mpig_queue_header *)q->region;
	for (uint32_t i = 0; i < count; i++) {
		struct gpu_slot out = {s->sequence + i, GPU_SLOT_OUT, marked};
		*slot_state(q, first_slot + i) = out;
	}
	state->sequence = s->sequence + count;
	state->sq_next = s->sq_next + count;
	state->cq_published = s->cq_next;
	// R0, partner of the daemon's A1, and R2 for completions taken since the last one: a fence costs half a round trip over the bus,
	// so they share it. It covers what other threads and blocks wrote: they reach this thread through the barriers and the atomics of
	// arrive(), and a release is cumulative.
	fence_release();
	if (s->cq_next != s->cq_published)
		store_relaxed(&h->cq_head, s->cq_next);
	store_relaxed(&h->sq_tail, s->sq_next + count);
}

// Where the answer of a head is marked: the last element of its output, which the daemon writes after all else that it says of the head.
DEVICE uint64_t mark_place(uint64_t out, uint64_t row, uint32_t d_v)
{
	return out + (row * d_v + d_v - 1) * 4;
}

// Where a warp's queries, consecutive ones of an item, are to go, and which of them is the lane's.
struct target {
	const struct gpu_item *item;
	uint32_t n;         // of the item
	uint32_t row, head; // the lane's: in the item; its KV head. Beyond the last: the first, and it is not the lane's
	int mine;
	uint64_t slot;
	int64_t at; // of the lane's query, in elements
	struct own_place own;
};

// 0: there is none for this warp.
DEVICE int target_of(const uint32_t J, const struct gpu_submit *a, struct target *t)
{
	const struct gpu_shape *s = &a->shape;
	const uint32_t rows = s->tokens * s->query_heads, batches = (rows + QUERIES(J) - 1) / QUERIES(J);
	const uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	if (number >= s->items * batches)
		return 0;
	t->n = s->items == 1 ? 0 : number / batches;
	t->own.first = (number - t->n * batches) * QUERIES(J);
	t->own.count = rows - t->own.first < QUERIES(J) ? rows - t->own.first : QUERIES(J);
	t->own.number = t->n * rows + t->own.first;
	t->item = AT(gpu_item, a->items) + t->n;
	t->slot = slot_address(&a->queue, a->first_slot + t->n);
	t->mine = lane_of() >> J < t->own.count;
	t->row = t->own.first + (t->mine ? lane_of() >> J : 0);
	const struct place p = place_in(s, t->n, t->row);
	t->at = stride_at(&a->q_strides, &p);
	t->head = p.head / (s->query_heads / s->kv_heads);
	return 1;
}

// Marks the answers of a warp's queries, so that whoever waits sees when they are there (wait_looking). R0 publishes the marks with the entry: the daemon
// writes after.
DEVICE void mark_answers(const struct gpu_submit *a, const struct target *t)
{
	const uint32_t mark = GPU_ANSWER_MARK;
	if (lane_of() < t->own.count)
		store_global(1, mark_place(t->slot + t->item->out, t->own.first + lane_of(), a->shape.d_v), &mark);
}

#define SUBMIT_OWN PART // words of own outputs that a lane has of a warp's queries

// The lane's part of its query as it is.
DEVICE void part_copy(const uint32_t J, const uint32_t dtype, const struct gpu_submit *a, const struct target *t,
                      const uint32_t *words)
{
	const uint64_t to = t->slot + t->item->q + (uint64_t)t->row * a->shape.d_k * BYTES(dtype);
	UNROLL
	for (uint32_t n = 0; n < PART / 8; n++) {
		const uint32_t first = eight_first(J, n);
		if (t->mine && first < a->shape.d_k)
			store_global((int)BYTES(dtype) * 2, to + first * BYTES(dtype), words + n * BYTES(dtype) * 2);
	}
}

// A warp's queries, and their signatures, into their slot, unless *status, which the block's first thread sets, forbids it. Everything that
// is read is asked for before anything waits, what a plan has even before the kernel before has ended, and q is on its way over the
// bus while it is signed.
DEVICE void submit_queries(const uint32_t J, const uint32_t dtype, const struct gpu_submit *a, struct gpu_state *state,
                           uint8_t *rotor, int *status, struct gpu_state *known)
{
	const struct gpu_shape *shape = &a->shape;
	const uint64_t floats = (uint64_t)shape->kv_heads * shape->d_k * 4;
	const int first_block = blockIdx.x == 0;
	struct target t = {0, 0, 0, 0, 0, 0, 0, {0, 0, 0}};
	struct divisor divisor;
	struct own own;
	uint32_t words[PART];
	float x[PART];
	const uint64_t word = first_block && threadIdx.x < shape->items * ITEM_WORDS ? plan_word(a, threadIdx.x) : 0;
	const int mine = target_of(J, a, &t), signs = mine && t.item->signature;
	if (signs) {
		rotor_load(J, a->rotors, t.n, rotor);
		divisor_load(J, shape, a->balance + t.n * floats, a->inverse + t.n * floats, t.head, &divisor);
	}
	grid_wait();
	const struct gpu_state s = *known = *state;
	if (mine && a->wide)
		part_ask(J, BYTES(dtype), shape->d_k, a->q + (uint64_t)t.at * BYTES(dtype), words);
	if (mine)
		own_ask(SUBMIT_OWN, a, &t.own, &own);
	int refused = 0;
	for (uint32_t i = threadIdx.x; i < shape->items; i += blockDim.x)
		refused |= slot_state(&a->queue, a->first_slot + i)->state != GPU_SLOT_FREE;
	if (threadIdx.x == 0) {
		*status = s.failed      ? s.failed
		          : refused     ? MPIG_EBUSY
		          : first_block ? wait_for_room(&a->queue, state, s.sq_next, s.known_head, shape->items)
		                        : 0;
		refused |= *status;
	}
	if (block_any(refused)) {
		if (threadIdx.x == 0 && !*status)
			*status = MPIG_EBUSY;
		return;
	}
	if (first_block)
		write_entries(a, s.sq_next, s.sequence, word);
	if (!mine)
		return;
	if (a->wide)
		part_copy(J, dtype, a, &t, words);
	own_copy(SUBMIT_OWN, a, &t.own, &own, t.item, t.slot);
	if (a->mark && s.heads)
		mark_answers(a, &t);
	const int divided = a->wide && signs && !rotor_divides(J, rotor) && part_holds(dtype, words);
	if (divided)
		part_divide(dtype, words, &divisor, x);
	if (!divided && (signs || !a->wide))
		part_gather(J, shape->d_k, a->q, t.at, dtype,
		            signs ? a->balance + t.n * floats + (uint64_t)t.head * shape->d_k * 4 : 0,
		            a->wide || !t.mine ? 0 : t.slot + t.item->q + (uint64_t)t.row * shape->d_k * BYTES(dtype), x);
	if (!signs)
		return;
	uint32_t signature[PART / 4];
	rotate(J, x, rotor);
	const float scale = part_quantise(J, x, rotor, signature);
	if (t.mine)
		part_store(J, signature, scale, t.slot + t.item->signature + (uint64_t)t.row * (PART << J),
		           t.slot + t.item->scale + (uint64_t)t.row * 4);
}

DEVICE void submit_typed(const uint32_t J, const struct gpu_submit *a, struct gpu_state *state, uint8_t *space, int *status,
                         struct gpu_state *known)
{
	if (a->dtype == MPIG_BF16)
		submit_queries(J, MPIG_BF16, a, state, space, status, known);
	else if (a->dtype == MPIG_F16)
		submit_queries(J, MPIG_F16, a, state, space, status, known);
	else
		submit_queries(J, MPIG_F32, a, state, space, status, known);
}

// Beside the number of blocks that have arrived: nothing is to be published. All blocks see a failure of before and a slot in flight; only the
// first knows whether there is room, and says so to the last.
#define REFUSED 0x80000000u

// Each warp writes some queries into their slot; the block that is done last publishes them.
KERNEL(GPU_SUBMIT_THREADS) mpig_submit(ARGUMENT(gpu_submit) a)
{
	SHARED ALIGNED_16 uint8_t space[GPU_SUBMIT_THREADS / GPU_WARP * ROTOR_SPACE];
	SHARED int status;
	uint8_t *mine = space + threadIdx.x / GPU_WARP * ROTOR_SPACE;
	struct gpu_state *state = AT(gpu_state, a.queue.state), s;
	grid_go();
	if (a.shape.d_pad == 128)
		submit_typed(3, &a, state, mine, &status, &s);
	else if (a.shape.d_pad == 256)
		submit_typed(4, &a, state, mine, &status, &s);
	else
		submit_typed(2, &a, state, mine, &status, &s);
	block_barrier();
	if (threadIdx.x)
		return;
	uint32_t refused = status ? REFUSED : 0;
	if (refused && blockIdx.x == 0)
		fail(&a.queue, status, a.first_slot, s.sequence);
	if (gridDim.x > 1) {
		uint32_t before = arrive(&state->arrived, blockIdx.x == 0 ? refused | 1 : 1);
		if ((before & ~REFUSED) != gridDim.x - 1)
			return;
		state->arrived = 0;
		refused |= before & REFUSED;
	}
	if (!refused)
		publish(&a.queue, &s, a.first_slot, a.shape.items, a.mark && s.heads);
}

// ---- waiting ---------------------------------------------------------------------------------------------------------
#define LOOKS_PER_CLOCK 16u // a look costs a round trip over the bus, which takes about as long
#define LOOKS_PER_FLAG 256u

// When a wait began; the clock is slow to read, so it is looked at now and then, and first when a wait is long.
struct patience {
	uint64_t begin;
	uint32_t looks;
};

// What the tail of the completion ring and the brief beside it say, as they were loaded (A1): how many completions are new; 0; or a negative status, also at
// the end of patience. One thread. *brief is what the daemon says of the last of them.
DEVICE int judge_tail(const struct gpu_queue *q, uint32_t cq_next, uint64_t peer, uint32_t *brief, struct patience *p)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	uint32_t ready = (uint32_t)peer - cq_next;
	if (ready > q->entries)
		return MPIG_EPROTO;
	*brief = (uint32_t)(peer >> 32);
	if (ready || ++p->looks % LOOKS_PER_CLOCK)
		return (int)ready;
	uint64_t now = clock_ns();
	p->begin = p->begin ? p->begin : now;
	if (now - p->begin > q->timeout_ns)
		return MPIG_ETIMEDOUT;
	return p->looks % LOOKS_PER_FLAG == 0 && load_acquire(&h->sq_flags) & MPIG_SQ_CLOSED ? MPIG_ESHUTDOWN : 0;
}

// Until something new is in the completion ring, or the end of patience. One thread. As judge_tail, never 0.
DEVICE int wait_for_tail(const struct gpu_queue *q, uint32_t cq_next, uint32_t *brief, struct patience *p)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	for (;;) {
		int ready = judge_tail(q, cq_next, load_acquire_long((const uint64_t *)&h->cq_tail), brief, p);
		if (ready)
			return ready;
	}
}

struct completion {
	uint64_t user_data, service_ns;
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
	c.service_ns = words[offsetof(struct mpig_cqe, service_ns) / 8];
	return c;
}

// Tells the host which completion was taken last. What it says the host reads where it lies: its place is given back with the next submission, and
// a kernel that read it would take a round trip over the bus for that.
DEVICE void report_taken(const struct gpu_queue *q, uint32_t place)
{
	store_word(&AT(gpu_report, q->report)->taken, GPU_TAKEN | place);
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

// Takes the completion at a place of the ring over. Returns 0, or MPIG_EPROTO if it answers nothing that is out.
DEVICE int take_completion(const struct gpu_queue *q, uint32_t next, uint64_t *service_ns)
{
	uint64_t at = q->cq_offset + (next & (q->entries - 1)) * sizeof(struct mpig_cqe);
	struct completion c = load_completion((const uint64_t *)(q->region + at));
	if (c.slot >= q->slots || c.status > 0)
		return MPIG_EPROTO;
	struct gpu_slot *slot = slot_state(q, c.slot);
	struct gpu_slot known = *slot, done = {c.user_data, GPU_SLOT_DONE, c.status};
	if (known.state != GPU_SLOT_OUT || known.sequence != c.user_data)
		return MPIG_EPROTO;
	*slot = done;
	*service_ns = c.service_ns;
	report_taken(q, next);
	return 0;
}

// Takes `ready` completions. *service_ns is the last one's.
DEVICE int take_ready(const struct gpu_queue *q, uint32_t ready, uint64_t *service_ns)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	uint32_t next = s->cq_next, published = s->cq_published;
	int status = 0;
	for (; ready && !status; ready--, next++)
		status = take_completion(q, next, service_ns);
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
		uint32_t brief;
		uint64_t service_ns;
		int ready = wait_for_tail(q, AT(gpu_state, q->state)->cq_next, &brief, patience);
		int status = ready > 0 ? take_ready(q, (uint32_t)ready, &service_ns) : ready;
		if (status)
			return status;
	}
	slot->state = GPU_SLOT_FREE;
	return slot->status;
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

// ---- one request, as it usually goes -----------------------------------------------------------------------------------
// What a wait knows of its request before the answer comes, so that nothing but the answer is read after.
struct expected {
	uint64_t sequence;
	uint32_t next, published; // of the completion ring: our place, and what its head says
	int usual;                // nothing has failed, and the request is out
	int marked;               // ... and its heads' answers can be looked for
};

DEVICE struct expected expect(const struct gpu_queue *q, uint32_t number)
{
	const struct gpu_state s = *AT(gpu_state, q->state);
	const struct gpu_slot slot = *slot_state(q, number);
	struct expected e = {slot.sequence, s.cq_next, s.cq_published, !s.failed && slot.state == GPU_SLOT_OUT, slot.status};
	return e;
}

// Whether the request that is expected has been answered, and well: the one new completion in the ring is its, says the word beside the tail, which was
// one load with it. Then nothing else need be read; take_expected follows. Otherwise what there is has to be looked at (wait_for_all).
DEVICE int is_expected(const struct expected *e, int ready, uint32_t brief)
{
	return ready == 1 && brief == MPIG_CQ_BRIEF(e->sequence, 0);
}

// Waits for it. One thread.
DEVICE int wait_expected(const struct gpu_queue *q, const struct expected *e, struct patience *patience)
{
	uint32_t brief = 0;
	return e->usual && is_expected(e, wait_for_tail(q, e->next, &brief, patience), brief);
}

// Notes that it has been. One thread.
DEVICE void take_expected(const struct gpu_queue *q, uint32_t number, const struct expected *e)
{
	struct gpu_slot free_slot = {e->sequence, GPU_SLOT_FREE, 0};
	*slot_state(q, number) = free_slot;
	AT(gpu_state, q->state)->cq_next = e->next + 1;
	report_taken(q, e->next);
	give_back(q, e->next + 1, e->published);
}

KERNEL(GPU_WARP) mpig_wait(ARGUMENT(gpu_wait) a)
{
	struct patience patience = {0, 0};
	grid_go();
	grid_wait();
	if (threadIdx.x)
		return;
	const struct expected e = expect(&a.queue, a.first_slot);
	if (a.slots == 1 && wait_expected(&a.queue, &e, &patience))
		take_expected(&a.queue, a.first_slot, &e);
	else
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
	publish(&a->queue, &s, a->slot, 1, 0);
	return 0;
}

// One thread submits a request that does nothing and waits for it, again and again.
KERNEL(GPU_WARP) mpig_rounds(ARGUMENT(gpu_rounds) a)
{
	uint64_t *cycles = (uint64_t *)a.cycles, begin = clock_cycles(), begin_ns = clock_ns();
	grid_go();
	grid_wait();
	if (threadIdx.x)
		return;
	for (uint32_t n = 0; n < a.count; n++) {
		struct patience patience = {0, 0};
		uint64_t before = clock_cycles();
		if (submit_nothing(&a, AT(gpu_state, a.queue.state)))
			return;
		const struct expected e = expect(&a.queue, a.slot);
		if (wait_expected(&a.queue, &e, &patience))
			take_expected(&a.queue, a.slot, &e);
		else if (!wait_for_all(&a.queue, a.slot, 1, &patience))
			return;
		cycles[n] = clock_cycles() - before;
	}
	cycles[a.count] = clock_cycles() - begin;
	cycles[a.count + 1] = clock_ns() - begin_ns;
}
