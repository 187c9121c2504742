// Own part and daemon's part of a step become one answer.

struct part { // of one head: lane l has elements l, l + 32 ..
	float lse, out[8];
};

DEVICE void load_part(struct part *p, uint64_t out, uint64_t lse, uint64_t number, uint32_t d)
{
	const uint32_t lane = lane_of();
	p->lse = ((const float *)lse)[number];
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		p->out[e] = lane + GPU_WARP * e < d ? ((const float *)out)[number * d + lane + GPU_WARP * e] : 0.0f;
}

DEVICE void load_own(const struct gpu_merge *a, uint32_t number, struct part *own)
{
	if (a->own_out) {
		load_part(own, a->own_out, a->own_lse, number, a->shape.d_v);
		return;
	}
	own->lse = -INFINITE_FLOAT;
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		own->out[e] = 0.0f;
}

// Where the daemon's part of a head is: in its slot, and means something once the request is answered.
struct their_place {
	uint64_t out, lse;
	uint32_t row;
};

DEVICE struct their_place their_place(const struct gpu_merge *a, uint32_t number)
{
	struct place p = place_of(&a->shape, number);
	const struct gpu_item *item = AT(gpu_item, a->items) + p.item;
	uint64_t slot = slot_address(&a->queue, a->first_slot + p.item);
	struct their_place t = {slot + item->out, slot + item->lse, p.row};
	return t;
}

DEVICE void write_head(const struct gpu_merge *a, uint32_t number, int good, const struct part *own, const struct part *theirs)
{
	const uint32_t lane = lane_of(), d = a->shape.d_v;
	struct place p = place_of(&a->shape, number);
	float most = fmaxf(fmaxf(own->lse, theirs->lse), LEAST);
	float ours = expf(own->lse - most), weight = expf(theirs->lse - most), sum = ours + weight;
	float lse = sum > 0.0f ? most + logf(sum) : -INFINITE_FLOAT;
	int64_t at = stride_at(&a->out_strides, &p);
	UNROLL
	for (uint32_t e = 0; e < 8; e++) {
		float x = fmaf(ours, own->out[e], weight * theirs->out[e]);
		if (lane + GPU_WARP * e < d)
			put_element(a->out, at + lane + GPU_WARP * e, a->out_dtype,
			            !good        ? NOT_A_NUMBER
			            : sum > 0.0f ? x / sum
			                         : 0.0f);
	}
	if (lane == 0 && a->lse)
		((float *)a->lse)[number] = !good ? NOT_A_NUMBER : a->lse2 ? lse * 1.44269504088896341f : lse;
}

// One block, a warp a head: waits and merges. What can be read before the answer is, and the answer's payload is read while its completion
// is looked at: that is a round trip over the bus less. It is read again if that completion was another request's.
KERNEL(GPU_FUSED_BLOCK) mpig_merge_fused(ARGUMENT(gpu_merge) a)
{
	SHARED int good, again;
	SHARED struct together together;
	const uint32_t number = threadIdx.x / GPU_WARP;
	struct patience patience = {0, 0};
	struct part own, theirs;
	struct expected e;
	uint64_t words[2] = {0, 0};
	load_own(&a, number, &own);
	const struct their_place place = their_place(&a, number);
	wait_together(&a.queue, a.first_slot, a.shape.items == 1, &together, &e,
	              &patience); // several requests take the way below
	if (together.ready == 1 && threadIdx.x < 4)
		load_expected(&a.queue, together.next, words);
	load_part(&theirs, place.out, place.lse, place.row, a.shape.d_v);
	if (threadIdx.x == 0) {
		int status = 0;
		again = together.ready != 1 || !take_expected(&a.queue, &e, a.first_slot, words, &status);
		if (again)
			good = wait_for_all(&a.queue, a.first_slot, a.shape.items, &patience);
		else
			good = !status;
		if (!again && status)
			fail(&a.queue, status, a.first_slot, e.slot.sequence);
	}
	block_barrier();
	if (good && again)
		load_part(&theirs, place.out, place.lse, place.row, a.shape.d_v);
	write_head(&a, number, good, &own, &theirs);
}

// Many blocks, after a kernel that waited.
KERNEL(GPU_BLOCK) mpig_merge(ARGUMENT(gpu_merge) a)
{
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	struct part own, theirs;
	if (number >= a.shape.items * a.shape.tokens * a.shape.query_heads)
		return;
	load_own(&a, number, &own);
	const struct their_place place = their_place(&a, number);
	load_part(&theirs, place.out, place.lse, place.row, a.shape.d_v);
	write_head(&a, number, !AT(gpu_state, a.queue.state)->failed, &own, &theirs);
}
