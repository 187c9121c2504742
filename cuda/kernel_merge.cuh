// Own part and daemon's part of a step become one answer.

struct part { // of one head: lane l has elements 4 l .. 4 l + 3, and those 128 further on: E of them, 4 or 8
	float lse, out[8];
};

DEVICE void no_part(const uint32_t E, struct part *p)
{
	p->lse = -INFINITE_FLOAT;
	UNROLL
	for (uint32_t e = 0; e < E; e++)
		p->out[e] = 0.0f;
}

DEVICE void load_part(const uint32_t E, struct part *p, uint64_t out, uint64_t lse, uint64_t number, uint32_t d)
{
	const float *row = (const float *)out + number * d;
	p->lse = ((const float *)lse)[number];
	UNROLL
	for (uint32_t e = 0; e < E; e += 4) {
		uint32_t first = lane_of() * 4 + GPU_WARP * e;
		if (d % 4 == 0 && first < d) {
			load_4(row + first, p->out + e);
			continue;
		}
		UNROLL
		for (uint32_t i = 0; i < 4; i++)
			p->out[e + i] = first + i < d ? row[first + i] : 0.0f;
	}
}

DEVICE void load_own(const uint32_t E, const struct gpu_merge *a, uint32_t number, struct part *own)
{
	if (a->own_out)
		load_part(E, own, a->own_out, a->own_lse, number, a->shape.d_v);
	else
		no_part(E, own);
}

// Where the daemon's part of a head is, in its slot, which means something once the request is answered, and where the answer goes.
struct places {
	uint64_t out, lse;
	uint32_t row;
	int64_t at;
};

DEVICE struct places places_of(const struct gpu_merge *a, uint32_t number)
{
	struct place p = place_of(&a->shape, number);
	const struct gpu_item *item = AT(gpu_item, a->items) + p.item;
	uint64_t slot = slot_address(&a->queue, a->first_slot + p.item);
	struct places t = {slot + item->out, slot + item->lse, p.row, stride_at(&a->out_strides, &p)};
	return t;
}

// Both parts' sum, in place of theirs.
DEVICE void join_halves(const uint32_t E, const struct part *own, struct part *theirs)
{
	float most = fmaxf(fmaxf(own->lse, theirs->lse), LEAST);
	float ours = expf(own->lse - most), weight = expf(theirs->lse - most), sum = ours + weight;
	float per_sum = sum > 0.0f ? 1.0f / sum : 0.0f;
	UNROLL
	for (uint32_t e = 0; e < E; e++)
		theirs->out[e] = fmaf(ours, own->out[e], weight * theirs->out[e]) * per_sum;
	theirs->lse = sum > 0.0f ? most + logf(sum) : -INFINITE_FLOAT;
}

DEVICE void write_head(const uint32_t E, const struct gpu_merge *a, uint32_t number, int64_t at, int good, const struct part *p)
{
	UNROLL
	for (uint32_t e = 0; e < E; e++) {
		uint32_t j = lane_of() * 4 + GPU_WARP * (e / 4 * 4) + e % 4;
		if (j < a->shape.d_v)
			put_element(a->out, at + j, a->out_dtype, good ? p->out[e] : NOT_A_NUMBER);
	}
	if (lane_of() == 0 && a->lse)
		((float *)a->lse)[number] = !good ? NOT_A_NUMBER : a->lse2 ? p->lse * 1.44269504088896341f : p->lse;
}

// What a warp of the fused kernel loads of its head.
struct sources {
	uint64_t out, lse; // of the daemon's part
	uint32_t number, row;
};

DEVICE void load_parts(const uint32_t E, const struct gpu_merge *a, const struct sources *from, struct part *own,
                       struct part *theirs)
{
	load_part(E, theirs, from->out, from->lse, from->row, a->shape.d_v);
	load_own(E, a, from->number, own); // in the time of the other
}

// Waits for the one request of a step, whose answers are marked, by all of the block. A warp's second lane looks at its head's mark; when that is gone, the
// head's answer is there, and is asked for. The first warp's first lane looks at the tail in the same load, and goes on until it ends the wait: only then is
// it known that all went well, and a mark may be what the answer is. Returns whether the warp has its parts; *answered, of the block's first thread: as
// is_expected. `turn` 0: it only runs through.
DEVICE int wait_looking(const uint32_t E, const struct gpu_merge *a, int turn, const struct sources *from,
                        const struct expected *e, struct part *own, struct part *theirs, struct patience *patience,
                        uint32_t *ended, int *answered)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)a->queue.region;
	const uint64_t mark = turn ? mark_place(from->out, from->row, a->shape.d_v) : from->out;
	const uint64_t *at = (const uint64_t *)(turn && threadIdx.x == 0 ? (uint64_t)&h->cq_tail : mark / 8 * 8);
	int have, over, ready = 0; // the first two are the same in all lanes
	uint32_t brief = 0;
	do {
		uint64_t word = 0;
		if (lane_of() == 1 || threadIdx.x == 0)
			word = load_acquire_long(at);
		if (threadIdx.x == 0 && turn)
			ready = judge_tail(&a->queue, e->next, word, &brief, patience);
		if (lane_of() == 0 && threadIdx.x)
			ready = (int)flag_look(ended);
		over = (int)shuffle_word((uint32_t)ready, 0);
		have = !turn || shuffle_word((uint32_t)(word >> mark % 8 * 8), 1) != GPU_ANSWER_MARK;
	} while (!over && !have);
	if (have) {
		warp_barrier(); // a shuffle orders nothing: the lanes read behind what the second has acquired
		load_parts(E, a, from, own, theirs);
	}
	if (threadIdx.x)
		return have && turn;
	while (!ready) { // the loads are on their way meanwhile
		uint64_t word = load_acquire_long(at);
		ready = turn ? judge_tail(&a->queue, e->next, word, &brief, patience) : 1;
	}
	if (turn) {
		*answered = is_expected(e, ready, brief);
		flag_raise(ended);
	}
	return have && turn;
}

// One block, a warp a head: waits and merges. All of it runs twice, at first on whatever is in own_space, whose results are overwritten: then the code is in
// the instruction cache when the answer comes, which is a microsecond.
DEVICE void merge_fused(const uint32_t E, const struct gpu_merge *a, uint32_t *ended)
{
	const uint32_t number = threadIdx.x / GPU_WARP;
	struct patience patience = {0, 0};
	struct part own, theirs;
	const struct places place = places_of(a, number);
	if (threadIdx.x == 0)
		*ended = 0; // seen by the others behind the first turn's barrier
	grid_wait();
	const struct expected e = expect(&a->queue, a->first_slot);
	const int looking = a->shape.items == 1 && e.usual && e.marked;
	NO_UNROLL
	for (int turn = 0; turn < 2; turn++) {
		const struct sources from = {turn ? place.out : a->own_space, turn ? place.lse : a->own_space, number,
		                             turn ? place.row : number};
		int answered = 0, good = 0, have = 0;
		if (looking)
			have = wait_looking(E, a, turn, &from, &e, &own, &theirs, &patience, ended, &answered);
		if (threadIdx.x == 0 && turn) {
			if (!looking)
				answered = a->shape.items == 1 && wait_expected(&a->queue, &e, &patience);
			good = answered || wait_for_all(&a->queue, a->first_slot, a->shape.items, &patience);
		}
		good = block_any(good);
		if (!have)
			load_parts(E, a, &from, &own, &theirs);
		if (answered)
			take_expected(&a->queue, a->first_slot, &e);
		join_halves(E, &own, &theirs);
		write_head(E, a, number, place.at, good, &theirs);
	}
}

KERNEL(GPU_FUSED_BLOCK) mpig_merge_fused(ARGUMENT(gpu_merge) a)
{
	SHARED uint32_t ended;
	grid_go();
	if (a.shape.d_v <= 128)
		merge_fused(4, &a, &ended);
	else
		merge_fused(8, &a, &ended);
}

// Many blocks, after a kernel that waited.
KERNEL(GPU_BLOCK) mpig_merge(ARGUMENT(gpu_merge) a)
{
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	struct part own, theirs;
	grid_go();
	if (number >= a.shape.items * a.shape.tokens * a.shape.query_heads)
		return;
	const struct places place = places_of(&a, number);
	grid_wait();
	load_own(8, &a, number, &own);
	load_part(8, &theirs, place.out, place.lse, place.row, a.shape.d_v);
	join_halves(8, &own, &theirs);
	write_head(8, &a, number, place.at, !AT(gpu_state, a.queue.state)->failed, &theirs);
}
