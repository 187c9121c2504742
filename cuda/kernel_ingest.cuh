// Prefill: rows out of the GPU's memory into a slot, the request that names it, and the wait until an older slot is free. Kernels of one
// ingest run one after another.

// ---- copying ---------------------------------------------------------------------------------------------------------
#define COPIES_AT_ONCE 4u // loads of a thread that are under way together

DEVICE uint64_t part_source(const struct gpu_part *p, uint32_t i)
{
	uint32_t piece = i / p->units, row = piece / p->heads;
	return p->from + (uint64_t)((int64_t)row * p->row + (int64_t)(piece - row * p->heads) * p->head) +
	       (uint64_t)(i - piece * p->units) * p->unit;
}

DEVICE void copy_units(const struct gpu_part *p, uint64_t to, uint32_t first, uint32_t step, uint32_t total)
{
	for (uint32_t i = first; i < total; i += step)
		if (p->unit == 4)
			*(uint32_t *)(to + (uint64_t)i * 4) = *(const uint32_t *)part_source(p, i);
		else
			*(uint16_t *)(to + (uint64_t)i * 2) = *(const uint16_t *)part_source(p, i);
}

// By all threads of all blocks; a warp writes consecutive bytes.
DEVICE void copy_part(const struct gpu_part *p, uint64_t slot)
{
	const uint32_t total = p->rows * p->heads * p->units, step = gridDim.x * blockDim.x,
		       first = blockIdx.x * blockDim.x + threadIdx.x;
	uint64_t to = slot + p->to, words[COPIES_AT_ONCE][2];
	if (p->unit != 16) {
		copy_units(p, to, first, step, total);
		return;
	}
	for (uint64_t i = first; i < total; i += (uint64_t)COPIES_AT_ONCE * step) {
		UNROLL
		for (uint32_t n = 0; n < COPIES_AT_ONCE; n++)
			if (i + (uint64_t)n * step < total)
				load_pair((const uint64_t *)part_source(p, (uint32_t)i + n * step), words[n]);
		UNROLL
		for (uint32_t n = 0; n < COPIES_AT_ONCE; n++)
			if (i + (uint64_t)n * step < total)
				store_pair((uint64_t *)(to + (i + (uint64_t)n * step) * 16), words[n]);
	}
}

// ---- the request -----------------------------------------------------------------------------------------------------
// May the slot be written? All blocks agree: only the last of them changes the answer. One thread of each.
DEVICE int ingest_may(const struct gpu_ingest *a)
{
	struct gpu_state *s = AT(gpu_state, a->queue.state);
	if (a->slot == MPIG_NO_SLOT || s->failed)
		return 0;
	return slot_state(&a->queue, a->slot)->state == GPU_SLOT_FREE;
}

// Header and entry, by all threads of a block.
DEVICE void ingest_entry(const struct gpu_ingest *a)
{
	const struct gpu_queue *q = &a->queue;
	const struct gpu_state *s = AT(gpu_state, q->state);
	const uint32_t words = sizeof(struct mpig_slot_header) / 8, all = words + sizeof(struct mpig_sqe) / 8;
	uint64_t entry = q->region + q->sq_offset + (s->sq_next & (q->entries - 1)) * sizeof(struct mpig_sqe);
	for (uint32_t n = threadIdx.x; n < all; n += blockDim.x)
		if (n < words)
			store_word((uint64_t *)slot_address(q, a->slot) + n, ((const uint64_t *)&a->header)[n]);
		else if (n - words == offsetof(struct mpig_sqe, user_data) / 8)
			store_word((uint64_t *)entry + (n - words), s->sequence);
		else
			store_word((uint64_t *)entry + (n - words), ((const uint64_t *)&a->entry)[n - words]);
}

// The last block, when all are done with their part. One thread.
DEVICE void ingest_publish(const struct gpu_ingest *a)
{
	struct gpu_state *state = AT(gpu_state, a->queue.state), s = *state;
	struct gpu_ingest_state *mine = AT(gpu_ingest_state, a->state);
	if (s.failed)
		return;
	int status = slot_state(&a->queue, a->slot)->state != GPU_SLOT_FREE
	                     ? MPIG_EBUSY // nothing was written
	                     : wait_for_room(&a->queue, state, s.sq_next, s.known_head, 1);
	if (status) {
		fail(&a->queue, status, a->slot, s.sequence);
		return;
	}
	mine->copy_ns += clock_ns() - mine->begin;
	publish(&a->queue, &s, a->slot, 1, 0); // R0 behind all blocks' stores: they arrived
}

// ---- waiting ---------------------------------------------------------------------------------------------------------
#define LOOKS_PER_STOP 16u

// Until something is in the completion ring, the host says stop, or nothing came for too long. One thread. How many, or a status. A1.
DEVICE int ingest_wait(const struct gpu_ingest *a, uint32_t cq_next)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)a->queue.region;
	uint64_t begin = clock_ns();
	for (uint32_t looks = 0;; looks++) {
		uint32_t peer_tail = load_acquire(&h->cq_tail), ready = peer_tail - cq_next;
		if (ready > a->queue.entries)
			return MPIG_EPROTO;
		if (ready) {
			AT(gpu_ingest_state, a->state)->wait_ns += clock_ns() - begin;
			return (int)ready;
		}
		if (looks % LOOKS_PER_STOP)
			continue;
		int stop = (int)load_acquire(&AT(gpu_ingest_report, a->report)->stop);
		if (stop)
			return stop;
		if (load_acquire(&h->sq_flags) & MPIG_SQ_CLOSED)
			return MPIG_ESHUTDOWN;
		if (clock_ns() - begin > a->queue.timeout_ns)
			return MPIG_ETIMEDOUT;
	}
}

// Until the slot is free; completions of others are noted on the way. One thread. 0, or what the slot's request, or the wait, failed with.
DEVICE int ingest_wait_slot(const struct gpu_ingest *a, uint32_t number)
{
	const struct gpu_queue *q = &a->queue;
	struct gpu_slot *slot = slot_state(q, number);
	while (slot->state == GPU_SLOT_OUT) {
		int ready = ingest_wait(a, AT(gpu_state, q->state)->cq_next);
		uint64_t service_ns;
		int status = ready > 0 ? take_ready(q, 1, &service_ns) : ready;
		if (status)
			return status;
		AT(gpu_ingest_state, a->state)->service_ns += service_ns;
	}
	if (slot->state == GPU_SLOT_FREE)
		return 0;
	slot->state = GPU_SLOT_FREE;
	return slot->status;
}

DEVICE void ingest_wait_slots(const struct gpu_ingest *a)
{
	struct gpu_state *s = AT(gpu_state, a->queue.state);
	for (uint32_t n = 0; n < a->wait_slots && !s->failed; n++) {
		uint32_t number = (a->wait_first + n) % a->queue.slots;
		int status = ingest_wait_slot(a, number);
		if (status)
			fail(&a->queue, status, number, slot_state(&a->queue, number)->sequence);
	}
}

KERNEL(GPU_BLOCK) mpig_ingest(ARGUMENT(gpu_ingest) a)
{
	SHARED int may;
	struct gpu_state *state = AT(gpu_state, a.queue.state);
	struct gpu_ingest_state *mine = AT(gpu_ingest_state, a.state);
	struct gpu_ingest_report *r = AT(gpu_ingest_report, a.report);
	grid_wait();
	if (threadIdx.x == 0) {
		may = ingest_may(&a);
		if (blockIdx.x == 0)
			mine->begin = clock_ns();
	}
	block_barrier();
	if (may) {
		for (uint32_t n = 0; n < GPU_INGEST_PARTS; n++)
			if (a.part[n].rows)
				copy_part(&a.part[n], slot_address(&a.queue, a.slot));
		if (blockIdx.x == 0)
			ingest_entry(&a);
	}
	block_barrier();
	if (threadIdx.x)
		return;
	if (gridDim.x > 1) {
		if (arrive(&state->arrived, 1) != gridDim.x - 1)
			return;
		state->arrived = 0;
	}
	if (a.slot != MPIG_NO_SLOT)
		ingest_publish(&a);
	store_word(&r->copied, a.number);
	ingest_wait_slots(&a);
	r->copy_ns = mine->copy_ns;
	r->wait_ns = mine->wait_ns;
	r->service_ns = mine->service_ns;
	fence_release(); // partner: the host's acquire of `done`
	store_word(&r->done, a.number);
}
