// The rings: a request on its way out, its answer on the way home. Who writes what, with which ordering, is in README.md; the named edges
// are those of shm/ring.h.

// ---- submitting ------------------------------------------------------------------------------------------------------
// Waits for `count` free entries. One thread. A3.
DEVICE int wait_for_room(const struct gpu_queue *q, struct gpu_state *s, uint32_t count)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	if (s->sq_next - s->known_head + count <= q->entries)
		return 0;
	uint64_t begin = clock_ns();
	for (;;) {
		uint32_t peer_head = load_acquire(&h->sq_head);
		if (s->sq_next - peer_head > q->entries)
			return MPIG_EPROTO;
		s->known_head = peer_head;
		if (s->sq_next - peer_head + count <= q->entries)
			return 0;
		if (clock_ns() - begin > q->timeout_ns)
			return MPIG_ETIMEDOUT;
	}
}

// Whether the submission may be made, into *status, which is shared: 0, or what it fails with. Asked by every block, so that none writes
// into a slot that the daemon still uses; room in the ring is waited for by the first.
DEVICE void may_submit(const struct gpu_submit *a, int *status)
{
	struct gpu_state *s = AT(gpu_state, a->queue.state);
	if (threadIdx.x == 0)
		*status = s->failed ? s->failed : blockIdx.x == 0 ? wait_for_room(&a->queue, s, a->shape.items) : 0;
	block_barrier();
	for (uint32_t i = threadIdx.x; i < a->shape.items; i += blockDim.x)
		if (slot_state(&a->queue, AT(gpu_item, a->items)[i].entry.slot)->state != GPU_SLOT_FREE)
			*status = MPIG_EBUSY;
	block_barrier();
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

// The entries are written: notes what is in flight, and stores the tail. One thread.
DEVICE void publish(const struct gpu_queue *q, const struct gpu_item *items, uint32_t count)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	struct mpig_queue_header *h = (struct mpig_queue_header *)q->region;
	uint64_t sequence = s->sequence;
	uint32_t tail = s->sq_next + count, head = s->cq_next, head_moved = head != s->cq_published;
	for (uint32_t i = 0; i < count; i++) {
		struct gpu_slot *slot = slot_state(q, items[i].entry.slot);
		slot->sequence = sequence + i;
		slot->state = GPU_SLOT_OUT;
	}
	s->sequence = sequence + count;
	s->sq_next = tail;
	s->cq_published = head;
	// R0, partner of the daemon's A1, and R2 for completions taken since the last one: a fence costs a round trip over the bus, so
	// they share it. It covers what other threads and blocks wrote: they reach this thread through the barriers and the fences of
	// arrive(), and a release is cumulative.
	fence_release();
	if (head_moved)
		store_relaxed(&h->cq_head, head);
	store_relaxed(&h->sq_tail, tail);
}

// Headers and entries of all items, by all threads of a block.
DEVICE void write_entries(const struct gpu_submit *a)
{
	const struct gpu_queue *q = &a->queue;
	const uint32_t words = sizeof(struct mpig_slot_header) / 8, all = words + sizeof(struct mpig_sqe) / 8;
	const uint32_t next = AT(gpu_state, q->state)->sq_next;
	const uint64_t sequence = AT(gpu_state, q->state)->sequence;
	for (uint32_t n = threadIdx.x; n < a->shape.items * all; n += blockDim.x) {
		uint32_t i = n / all, w = n % all, slot = AT(gpu_item, a->items)[i].entry.slot;
		uint64_t entry = q->region + q->sq_offset + ((next + i) & (q->entries - 1)) * sizeof(struct mpig_sqe);
		if (w < words)
			store_word((uint64_t *)slot_address(q, slot) + w, header_word(a, i, w));
		else
			store_word((uint64_t *)entry + (w - words), entry_word(a, i, w - words, sequence));
	}
}

// A warp's query into its slot.
DEVICE void write_query(const struct gpu_submit *a, uint32_t number)
{
	const struct gpu_shape *shape = &a->shape;
	struct place p = place_of(shape, number);
	const struct gpu_item *item = AT(gpu_item, a->items) + p.item;
	uint64_t slot = slot_address(&a->queue, item->entry.slot);
	if (item->window_lse && lane_of() == 0) {
		float lse = ((const float *)a->window_lse)[number]; // of the step before; after one that failed it may be NaN
		((float *)(slot + item->window_lse))[p.row] = lse != lse ? -INFINITE_FLOAT : lse;
	}
	query_any(shape, item, p.head, a->q, stride_at(&a->q_strides, &p), a->dtype,
	          slot + item->q + (uint64_t)p.row * shape->d_k * (a->dtype == MPIG_F32 ? 4 : 2),
	          item->signature ? slot + item->signature + (uint64_t)p.row * shape->d_pad : 0,
	          slot + item->scale + (uint64_t)p.row * 4);
}

// Each warp writes one query into its slot; the block that is done last publishes them.
KERNEL(GPU_FUSED_BLOCK) mpig_submit(ARGUMENT(gpu_submit) a)
{
	SHARED int status;
	struct gpu_state *s = AT(gpu_state, a.queue.state);
	may_submit(&a, &status);
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	if (!status && blockIdx.x == 0)
		write_entries(&a);
	if (!status && number < a.shape.items * a.shape.tokens * a.shape.query_heads)
		write_query(&a, number);
	block_barrier();
	if (threadIdx.x)
		return;
	int last = gridDim.x == 1 || arrive(&s->arrived) == gridDim.x - 1;
	if (!last)
		return;
	if (gridDim.x > 1)
		s->arrived = 0;
	if (status)
		fail(&a.queue, status, AT(gpu_item, a.items)->entry.slot, s->sequence);
	else
		publish(&a.queue, AT(gpu_item, a.items), a.shape.items);
}

// ---- waiting ---------------------------------------------------------------------------------------------------------
#define LOOKS_PER_FLAG 256u // a look costs a round trip over the bus

// Until something new is in the completion ring, or the end of patience. One thread. How many, or a negative status. A1.
DEVICE int wait_for_tail(const struct gpu_queue *q, uint32_t cq_next, uint64_t begin)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	for (uint32_t looks = 1;; looks++) {
		uint32_t peer_tail = load_acquire(&h->cq_tail), ready = peer_tail - cq_next;
		if (ready > q->entries)
			return MPIG_EPROTO;
		if (ready)
			return (int)ready;
		if (clock_ns() - begin > q->timeout_ns)
			return MPIG_ETIMEDOUT;
		if (looks % LOOKS_PER_FLAG == 0 && load_acquire(&h->sq_flags) & MPIG_SQ_CLOSED)
			return MPIG_ESHUTDOWN;
	}
}

// Takes the completion at `place` over. Returns 0, or MPIG_EPROTO if it answers nothing that is out.
DEVICE int take_completion(const struct gpu_queue *q, const uint64_t *place, uint64_t begin)
{
	struct mpig_cqe e;
	uint64_t words[sizeof(e) / 8];
	UNROLL
	for (uint32_t w = 0; w < sizeof(e) / 8; w++)
		words[w] = load_word(place + w);
	uint64_t user_data = words[0];
	int32_t status = (int32_t)(uint32_t)words[1];
	uint32_t number = (uint32_t)(words[1] >> 32);
	if (number >= q->slots || status > 0)
		return MPIG_EPROTO;
	struct gpu_slot *slot = slot_state(q, number);
	if (slot->state != GPU_SLOT_OUT || slot->sequence != user_data)
		return MPIG_EPROTO;
	slot->status = status;
	slot->state = GPU_SLOT_DONE;
	struct gpu_report *r = AT(gpu_report, q->report);
	r->answered = user_data;
	r->committed = words[offsetof(struct mpig_cqe, committed) / 8];
	r->rows_read = words[offsetof(struct mpig_cqe, rows_read) / 8];
	r->bytes_read = words[offsetof(struct mpig_cqe, bytes_read) / 8];
	r->service_ns = words[offsetof(struct mpig_cqe, service_ns) / 8];
	r->waited_ns = clock_ns() - begin;
	return 0;
}

// Takes `ready` completions. Their places are given back with the next submission, or now if half of the ring waits for that. R2.
DEVICE int take_ready(const struct gpu_queue *q, uint32_t ready, uint64_t begin)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	struct mpig_queue_header *h = (struct mpig_queue_header *)q->region;
	uint32_t next = s->cq_next;
	int status = 0;
	for (; ready && !status; ready--, next++)
		status = take_completion(
			q, (const uint64_t *)(q->region + q->cq_offset + (next & (q->entries - 1)) * sizeof(struct mpig_cqe)),
			begin);
	s->cq_next = next;
	if (next - s->cq_published >= (q->entries + 1) / 2) {
		store_release(&h->cq_head, next);
		s->cq_published = next;
	}
	return status;
}

// Until the slot's request is answered, which frees it. Completions of others are noted on the way. One thread.
DEVICE int wait_for_slot(const struct gpu_queue *q, uint32_t number, uint64_t begin)
{
	struct gpu_slot *slot = slot_state(q, number);
	if (slot->state == GPU_SLOT_FREE)
		return MPIG_EINVAL; // nothing was submitted
	while (slot->state == GPU_SLOT_OUT) {
		int ready = wait_for_tail(q, AT(gpu_state, q->state)->cq_next, begin);
		int status = ready > 0 ? take_ready(q, (uint32_t)ready, begin) : ready;
		if (status)
			return status;
	}
	slot->state = GPU_SLOT_FREE;
	return slot->status;
}

// Items' slots, or first, first + 1 ... where items is 0. Returns whether all were answered well. One thread.
DEVICE int wait_for_all(const struct gpu_queue *q, const struct gpu_item *items, uint32_t first, uint32_t count)
{
	uint64_t begin = clock_ns();
	for (uint32_t i = 0; i < count; i++) {
		if (AT(gpu_state, q->state)->failed)
			return 0;
		uint32_t slot = items ? items[i].entry.slot : first + i;
		int status = wait_for_slot(q, slot, begin);
		if (status)
			fail(q, status, slot, slot_state(q, slot)->sequence);
	}
	return !AT(gpu_state, q->state)->failed;
}

KERNEL(GPU_WARP) mpig_wait(ARGUMENT(gpu_wait) a)
{
	if (threadIdx.x == 0)
		wait_for_all(&a.queue, 0, a.first_slot, a.slots);
}

// The same for the slots of a plan, before a merge of many blocks.
KERNEL(GPU_WARP) mpig_wait_items(ARGUMENT(gpu_merge) a)
{
	if (threadIdx.x == 0)
		wait_for_all(&a.queue, AT(gpu_item, a.items), 0, a.shape.items);
}

// ---- measuring -------------------------------------------------------------------------------------------------------
// One thread submits a request that does nothing and waits for it, again and again.
KERNEL(GPU_WARP) mpig_rounds(ARGUMENT(gpu_rounds) a)
{
	struct gpu_state *s = AT(gpu_state, a.queue.state);
	const uint32_t slot = AT(gpu_item, a.item)->entry.slot;
	uint64_t *cycles = (uint64_t *)a.cycles, begin = clock_cycles(), begin_ns = clock_ns();
	if (threadIdx.x)
		return;
	for (uint32_t n = 0; n < a.count && !s->failed; n++) {
		uint64_t entry =
			a.queue.region + a.queue.sq_offset + (s->sq_next & (a.queue.entries - 1)) * sizeof(struct mpig_sqe);
		uint64_t before = clock_cycles();
		int status = slot_state(&a.queue, slot)->state != GPU_SLOT_FREE ? MPIG_EBUSY : wait_for_room(&a.queue, s, 1);
		if (status) {
			fail(&a.queue, status, slot, s->sequence);
			return;
		}
		for (uint32_t w = 0; w < sizeof(struct mpig_sqe) / 8; w++)
			store_word((uint64_t *)entry + w,
			           w == offsetof(struct mpig_sqe, user_data) / 8 ? s->sequence : ((const uint64_t *)a.item)[w]);
		publish(&a.queue, AT(gpu_item, a.item), 1);
		wait_for_all(&a.queue, 0, slot, 1);
		cycles[n] = clock_cycles() - before;
	}
	cycles[a.count] = clock_cycles() - begin;
	cycles[a.count + 1] = clock_ns() - begin_ns;
}
