// Attention over the rows a client has itself: its first tokens and those that the daemon does not have.
//
// A request that carries it waits for it, so the kernel is a short chain: where the rows are; K and V of a block, copied to shared memory, all under
// way before anything is computed; logits, weights and weighted sums; the join of a block's warps; and by the last block of a KV head that of
// its pieces. And it is short code, in loops that are hardly unrolled: a multiprocessor reads the code of a kernel anew each time it begins,
// which takes longer than the arithmetic.
struct rows { // the own rows of a query: [0, sinks) and [from, end); a context has at most 2^31
	uint32_t sinks, from, end, count;
};

DEVICE uint32_t row_count(int64_t n)
{
	return n < 0 ? 0 : n > (int64_t)MPIG_MAX_TOKENS ? (uint32_t)MPIG_MAX_TOKENS : (uint32_t)n;
}

DEVICE struct rows rows_of(const struct gpu_window *a, uint32_t item, uint32_t token)
{
	uint32_t split = row_count(((const int64_t *)a->split)[item]);
	struct rows r;
	r.end = row_count(((const int64_t *)a->rows)[item] - a->shape.tokens + token + 1);
	r.sinks = a->sinks < r.end ? a->sinks : r.end;
	r.from = split > r.sinks ? split : r.sinks;
	r.count = r.sinks + (r.end > r.from ? r.end - r.from : 0);
	return r;
}

// Offset of row `row` of the context, in elements.
DEVICE int64_t row_at(const struct gpu_window *a, uint32_t item, uint32_t head, uint32_t row)
{
	if (a->ring_rows && row >= a->sinks)
		row = a->sinks + (row - a->sinks) % a->ring_rows;
	int64_t at = head * a->kv_head;
	if (!a->page_table)
		return at + item * a->kv_item + row * a->kv_row;
	int64_t page = ((const int32_t *)a->page_table)[item * a->page_stride + row / a->page_rows];
	return at + page * a->kv_page + row % a->page_rows * a->kv_row;
}

// The larger of two; NaN if either is.
DEVICE float larger(float a, float b)
{
	return a != a || a > b ? a : b;
}

#define WINDOW_WARPS (GPU_WINDOW_THREADS / GPU_WARP)
#define PAIR 2u // heads of a warp
#define PAIRS (GPU_HEADS_AT_ONCE / PAIR)
#define QUARTERS (WINDOW_WARPS / PAIRS) // parts that the rows in shared memory are cut into, a warp each
#define QUARTER_ROWS (GPU_WARP / PAIR)  // at most: a lane for each of its heads' logits
#define SIDE_BYTES 16384u               // of K, and of V, that are in shared memory at a time
#define CHUNK 8u                        // elements that a lane has side by side
#define CHUNKS 2u                       // at most, of a row and lane

// How lanes share rows: L lanes a row, each with C chunks, l + L c of them, so that they read it as it lies; 32 / L rows side by side. A row
// has 8 L C elements, as a signature's.
#define SIDE(L) (GPU_WARP / (uint32_t)(L))
#define LENGTH(L, C) (CHUNK * (uint32_t)(L) * (uint32_t)(C))
#define ROW_FLOATS(L, C, dtype) ((dtype) == MPIG_F32 ? LENGTH(L, C) : LENGTH(L, C) / 2) // that take as much room

struct window_shared {
	ALIGNED_16 float rows[2][SIDE_BYTES / 4]; // K and V as they are; then weighted sums of V: [heads][QUARTERS][SIDE][length]
	ALIGNED_16 float q[GPU_HEADS_AT_ONCE][MPIG_MAX_HEAD_DIM];
	float weight[WINDOW_WARPS][GPU_WARP]; // [heads of the warp][its rows]: logits, then weights
	float most[QUARTERS][GPU_HEADS_AT_ONCE], sum[QUARTERS][GPU_HEADS_AT_ONCE];
	int64_t at[GPU_PIECE_ROWS(128)]; // offsets of rows, in bytes
};

DEVICE uint32_t row_number(const struct rows *r, uint32_t n)
{
	return n < r->sinks ? n : r->from + (n - r->sinks);
}

// Queries p->head .. + heads - 1 to shared memory, with zeros behind the last element and the last head. By the block.
DEVICE void queries_share(const struct gpu_window *a, const struct place *p, uint32_t length, uint32_t heads,
                          struct window_shared *shared)
{
	for (uint32_t x = threadIdx.x; x < GPU_HEADS_AT_ONCE * length; x += GPU_WINDOW_THREADS) {
		struct place at = *p;
		const uint32_t i = x / length, e = x % length;
		at.head = p->head + i;
		shared->q[i][e] =
			i < heads && e < a->shape.d_k ? element(a->q, stride_at(&a->q_strides, &at) + e, a->q_dtype) : 0.0f;
	}
}

// Elements of K and V of a row that is not made of whole words of 16 bytes, or does not begin at one.
DEVICE void row_gather(const struct gpu_window *a, uint32_t length, uint32_t bytes, uint32_t many, struct window_shared *shared)
{
	for (uint32_t x = threadIdx.x; x < many * length; x += GPU_WINDOW_THREADS)
		for (uint32_t side = 0; side < 2; side++) {
			const uint64_t from = (side ? a->v : a->k) + (uint64_t)shared->at[x / length] + x % length * bytes;
			const int there = x % length < a->shape.d_k;
			if (bytes == 4)
				((uint32_t *)shared->rows[side])[x] = there ? *(const uint32_t *)from : 0;
			else
				((uint16_t *)shared->rows[side])[x] = there ? *(const uint16_t *)from : 0;
		}
}

// K and V of own rows n .. n + many - 1 on their way to shared memory; those behind the last are the last again, and elements behind a row's last
// are 0. By the block.
DEVICE void rows_fetch(const struct gpu_window *a, const struct rows *r, uint32_t item, uint32_t g, uint32_t n, uint32_t length,
                       uint32_t many, struct window_shared *shared)
{
	const uint32_t bytes = a->kv_dtype == MPIG_F32 ? 4 : 2, words = length * bytes / 16; // of 16 bytes
	const int64_t strides = (a->kv_item | a->kv_page | a->kv_row | a->kv_head | a->shape.d_k) * bytes;
	if (threadIdx.x < many) {
		const uint32_t mine = n + threadIdx.x;
		shared->at[threadIdx.x] = row_at(a, item, g, row_number(r, mine < r->count ? mine : r->count - 1)) * bytes;
	}
	block_barrier();
	if ((a->k | a->v | (uint64_t)strides) % 16) {
		row_gather(a, length, bytes, many, shared);
		return;
	}
	const float zeros[4] = {0, 0, 0, 0};
	for (uint32_t x = threadIdx.x; x < many * words; x += GPU_WINDOW_THREADS) {
		const uint32_t word = x % words;
		const uint64_t from = (uint64_t)shared->at[x / words] + word * 16;
		if (word * 16 < a->shape.d_k * bytes) {
			copy_begin(shared->rows[0] + x * 4, a->k + from);
			copy_begin(shared->rows[1] + x * 4, a->v + from);
		} else {
			store_4(shared->rows[0] + x * 4, zeros);
			store_4(shared->rows[1] + x * 4, zeros);
		}
	}
}

// A lane's elements of the row in shared memory that begins at `row`.
DEVICE void lane_values(const int L, const int C, const int dtype, const float *row, float *x)
{
	const uint32_t l = lane_of() % (uint32_t)L;
	UNROLL
	for (uint32_t c = 0; c < (uint32_t)C; c++, x += CHUNK) {
		const uint32_t chunk = c * (uint32_t)L + l;
		float words[4];
		if (dtype == MPIG_F32) {
			load_4(row + chunk * 8, x);
			load_4(row + chunk * 8 + 4, x + 4);
			continue;
		}
		load_4(row + chunk * 4, words);
		UNROLL
		for (uint32_t e = 0; e < CHUNK; e++) {
			const uint32_t word = (uint32_t)float_bits(words[e / 2]);
			x[e] = dtype == MPIG_BF16 ? bits_float((int)(e % 2 ? word & 0xffff0000u : word << 16))
			                          : f16_value((uint16_t)(word >> 16 * (e % 2)));
		}
	}
}

// What a warp has of its heads over the rows so far: each lane a part of the weighted sums; lane 16 h + .. largest logit and sum of weights of
// head h.
struct running {
	float acc[PAIR][CHUNKS * CHUNK], most, sum;
};

// Logits of a warp's rows in shared memory, the first of which is `row`, one beside each lane of its own.
DEVICE void rows_logits(const int L, const int C, const int dtype, const float *row, uint32_t many, const float *q, float *logit)
{
	const uint32_t side = lane_of() / (uint32_t)L, floats = ROW_FLOATS(L, C, dtype);
	float x[PAIR][CHUNKS * CHUNK], k[CHUNKS * CHUNK];
	UNROLL
	for (uint32_t h = 0; h < PAIR; h++)
		lane_values(L, C, MPIG_F32, q + h * MPIG_MAX_HEAD_DIM, x[h]);
	UNROLL_BY_4
	for (uint32_t j = 0; j < many; j += SIDE(L)) {
		float s[PAIR] = {0.0f, 0.0f};
		lane_values(L, C, dtype, row + (j + side) * floats, k);
		UNROLL
		for (uint32_t h = 0; h < PAIR; h++) {
			UNROLL
			for (uint32_t e = 0; e < (uint32_t)C * CHUNK; e++)
				s[h] = fmaf(x[h][e], k[e], s[h]);
			UNROLL
			for (int d = L / 2; d; d /= 2)
				s[h] += shuffle_xor_f(s[h], d);
			if (lane_of() % (uint32_t)L == 0)
				logit[h * QUARTER_ROWS + j + side] = s[h];
		}
	}
}

// The weights in the place of logits: lane 16 h + j has row n + j of `many` of head h.
DEVICE void logits_weigh(const struct gpu_window *a, const struct rows *r, uint32_t n, uint32_t many, float slope, float *logit,
                         struct running *t, float *keep)
{
	const uint32_t j = lane_of() % QUARTER_ROWS;
	float s = logit[lane_of()] * a->scale, top = t->most, before = t->most;
	if (a->softcap > 0.0f)
		s = a->softcap * tanhf(s / a->softcap);
	s += slope * (float)((int64_t)row_number(r, n + j) - (int64_t)(r->end - 1));
	s = j < many && n + j < r->count ? s : -INFINITE_FLOAT;
	top = larger(top, s);
	UNROLL
	for (int d = QUARTER_ROWS / 2; d; d /= 2)
		top = larger(top, shuffle_xor_f(top, d));
	float weight = expf(s - top), sum = weight;
	UNROLL
	for (int d = QUARTER_ROWS / 2; d; d /= 2)
		sum += shuffle_xor_f(sum, d);
	*keep = expf(before - top);
	t->most = top;
	t->sum = t->sum * *keep + sum;
	logit[lane_of()] = weight;
}

// A warp's rows in shared memory, the first of which is own row n.
DEVICE void rows_attend(const int L, const int C, const int dtype, const struct gpu_window *a, const struct rows *r, uint32_t n,
                        uint32_t first, uint32_t many, float slope, struct window_shared *shared, struct running *t)
{
	const uint32_t warp = threadIdx.x / GPU_WARP, side = lane_of() / (uint32_t)L;
	const uint32_t floats = ROW_FLOATS(L, C, dtype);
	float *weight = shared->weight[warp], keep;
	rows_logits(L, C, dtype, shared->rows[0] + first * floats, many, shared->q[warp % PAIRS * PAIR], weight);
	warp_barrier();
	logits_weigh(a, r, n + first, many, slope, weight, t, &keep);
	warp_barrier();
	UNROLL
	for (uint32_t h = 0; h < PAIR; h++) {
		const float by = shuffle_from(keep, h * QUARTER_ROWS);
		UNROLL
		for (uint32_t e = 0; e < (uint32_t)C * CHUNK; e++)
			t->acc[h][e] *= by;
	}
	UNROLL_BY_4
	for (uint32_t j = side; j < many; j += SIDE(L)) {
		float v[CHUNKS * CHUNK];
		lane_values(L, C, dtype, shared->rows[1] + (first + j) * floats, v);
		UNROLL
		for (uint32_t h = 0; h < PAIR; h++)
			UNROLL
		for (uint32_t e = 0; e < (uint32_t)C * CHUNK; e++)
			t->acc[h][e] = fmaf(weight[h * QUARTER_ROWS + j], v[e], t->acc[h][e]);
	}
}

// Where the rows were, what the warps have is put for the block to join.
DEVICE void running_put(const int L, const int C, const struct running *t, struct window_shared *shared)
{
	const uint32_t warp = threadIdx.x / GPU_WARP, side = lane_of() / (uint32_t)L, l = lane_of() % (uint32_t)L;
	const uint32_t head = warp % PAIRS * PAIR, quarter = warp / PAIRS;
	block_barrier();
	UNROLL
	for (uint32_t h = 0; h < PAIR; h++)
		UNROLL
	for (uint32_t c = 0; c < (uint32_t)C; c++) {
		float *to = shared->rows[0] + (((head + h) * QUARTERS + quarter) * SIDE(L) + side) * LENGTH(L, C) +
		            (c * (uint32_t)L + l) * CHUNK;
		store_4(to, t->acc[h] + c * CHUNK);
		store_4(to + 4, t->acc[h] + c * CHUNK + 4);
	}
	if (lane_of() % QUARTER_ROWS == 0) {
		shared->most[quarter][head + lane_of() / QUARTER_ROWS] = t->most;
		shared->sum[quarter][head + lane_of() / QUARTER_ROWS] = t->sum;
	}
	block_barrier();
}

// Neighbouring elements of a head's own part; `top` is its largest logit, and `total` the sum of weights relative to it.
DEVICE void own_put(const struct gpu_window *a, uint64_t head, uint32_t e, uint32_t count, const float *out, float top,
                    float total)
{
	const int some = total > 0.0f || total != total;
	const float per_total = some ? 1.0f / total : 0.0f;
	UNROLL
	for (uint32_t i = 0; i < count; i++)
		if (e + i < a->shape.d_k)
			((float *)a->own_out)[head * a->shape.d_k + e + i] = some ? out[i] * per_total : 0.0f;
	if (e == 0)
		((float *)a->own_lse)[head] = some ? top + logf(total) : -INFINITE_FLOAT;
}

// Joins what the block's warps have of a piece. If there is only one, that is all.
DEVICE void piece_join(const int L, const int C, const struct gpu_window *a, uint64_t first, uint32_t heads,
                       const struct window_shared *shared)
{
	for (uint32_t x = threadIdx.x * 2; x < heads * LENGTH(L, C); x += GPU_WINDOW_THREADS * 2) {
		const uint32_t i = x / LENGTH(L, C), e = x % LENGTH(L, C);
		const float *acc = shared->rows[0] + i * QUARTERS * SIDE(L) * LENGTH(L, C) + e;
		float top = LEAST, total = 0.0f, out[2] = {0.0f, 0.0f};
		UNROLL
		for (uint32_t n = 0; n < QUARTERS; n++)
			top = larger(top, shared->most[n][i]);
		UNROLL
		for (uint32_t n = 0; n < QUARTERS; n++) {
			const float weight = expf(shared->most[n][i] - top);
			total = fmaf(weight, shared->sum[n][i], total);
			UNROLL
			for (uint32_t side = 0; side < SIDE(L); side++, acc += LENGTH(L, C)) {
				float y[2];
				load_2(acc, y);
				out[0] = fmaf(weight, y[0], out[0]);
				out[1] = fmaf(weight, y[1], out[1]);
			}
		}
		if (a->pieces == 1) {
			own_put(a, first + i, e, 2, out, top, total);
			continue;
		}
		const uint64_t at = (first + i) * a->pieces + blockIdx.y;
		store_2((float *)a->part_out + at * LENGTH(L, C) + e, out);
		if (e == 0) {
			((float *)a->part_most)[at] = top;
			((float *)a->part_sum)[at] = total;
		}
	}
}

#define PARTS_AT_ONCE 16u // of a warp: their loads are in flight together

// Four elements of a head from e on, of its pieces way, way + ways .. of each `batch`: their sum in x, and `top` and `total` of all pieces. By a
// warp. All loads of a batch are made before one is waited for.
DEVICE void parts_join(const struct gpu_window *a, uint64_t head, uint32_t length, uint32_t e, uint32_t way, uint32_t ways,
                       float *x, float *top, float *total)
{
	const uint32_t batch = ways > 1 ? GPU_WARP : PARTS_AT_ONCE;
	*top = LEAST;
	*total = x[0] = x[1] = x[2] = x[3] = 0.0f;
	NO_UNROLL
	for (uint32_t base = 0; base < a->pieces; base += batch) {
		const uint32_t left = a->pieces - base < batch ? a->pieces - base : batch;
		const uint64_t first = head * a->pieces + base;
		float y[PARTS_AT_ONCE][4];
		UNROLL
		for (uint32_t t = 0; t < PARTS_AT_ONCE; t++) {
			y[t][0] = y[t][1] = y[t][2] = y[t][3] = 0.0f;
			if (way + t * ways < left)
				load_4((const float *)a->part_out + (first + way + t * ways) * length + e, y[t]);
		}
		const int mine = lane_of() < left;
		const float most = mine ? ((const float *)a->part_most)[first + lane_of()] : LEAST, before = *top;
		const float sum = mine ? ((const float *)a->part_sum)[first + lane_of()] : 0.0f;
		*top = larger(before, most);
		UNROLL
		for (int h = 16; h; h /= 2)
			*top = larger(*top, shuffle_xor_f(*top, h));
		const float keep = expf(before - *top), weight = mine ? expf(most - *top) : 0.0f;
		*total = *total * keep + warp_sum(weight * sum);
		UNROLL
		for (uint32_t i = 0; i < 4; i++)
			x[i] *= keep;
		UNROLL
		for (uint32_t t = 0; t < PARTS_AT_ONCE; t++) {
			const float by = shuffle_from(weight, (way + t * ways) % GPU_WARP);
			UNROLL
			for (uint32_t i = 0; i < 4; i++)
				x[i] = fmaf(by, y[t][i], x[i]);
		}
	}
}

// Joins the pieces of some heads. A warp has 128 elements of a head, or, where there are fewer of those than warps, some share the pieces of each.
DEVICE void pieces_join(const int L, const int C, const struct gpu_window *a, uint64_t first, uint32_t heads,
                        struct window_shared *shared)
{
	const uint32_t warp = threadIdx.x / GPU_WARP, units = heads * ((LENGTH(L, C) + 127) / 128);
	const uint32_t ways = units < WINDOW_WARPS ? WINDOW_WARPS / units : 1, at_once = WINDOW_WARPS / ways,
		       way = warp / at_once;
	float *mine = shared->rows[0] + warp * 128 + lane_of() * 4; // [ways][at_once][128]
	NO_UNROLL
	for (uint32_t base = 0; base < units; base += at_once) {
		const uint32_t unit = base + warp % at_once, e = unit / heads * 128 + lane_of() * 4;
		const int some = unit < units && way < ways;
		float x[4], top = LEAST, total = 0.0f;
		if (some) {
			parts_join(a, first + unit % heads, LENGTH(L, C), e < LENGTH(L, C) ? e : 0, way, ways, x, &top, &total);
			store_4(mine, x);
		}
		block_barrier();
		if (some && way == 0) {
			NO_UNROLL
			for (uint32_t other = 1; other < ways; other++) {
				float y[4];
				load_4(mine + other * at_once * 128, y);
				UNROLL
				for (uint32_t i = 0; i < 4; i++)
					x[i] += y[i];
			}
			own_put(a, first + unit % heads, e, 4, x, top, total);
		}
		block_barrier();
	}
}

// Heads from p->head on, which are of KV head g and whose queries are in shared memory, over the rows of the block's piece.
DEVICE void piece_attend(const int L, const int C, const struct gpu_window *a, const struct place *p, uint32_t g,
                         const struct rows *r, struct window_shared *shared)
{
	const uint32_t bytes = a->kv_dtype == MPIG_F32 ? 4 : 2, most = GPU_PIECE_ROWS(LENGTH(L, C));
	const uint32_t fit = SIDE_BYTES / (LENGTH(L, C) * bytes), many = fit < most ? fit : most, part = many / QUARTERS;
	const uint32_t warp = threadIdx.x / GPU_WARP, head = p->head + warp % PAIRS * PAIR + lane_of() / QUARTER_ROWS;
	const float slope = a->alibi_slope_base > 0.0f ? powf(a->alibi_slope_base, (float)(head + 1)) : 0.0f;
	struct running t;
	t.most = LEAST;
	t.sum = 0.0f;
	UNROLL
	for (uint32_t h = 0; h < PAIR; h++)
		UNROLL
	for (uint32_t e = 0; e < CHUNKS * CHUNK; e++)
		t.acc[h][e] = 0.0f;
	uint32_t n = blockIdx.y * most;
	NO_UNROLL
	while (n < r->count) {
		rows_fetch(a, r, p->item, g, n, LENGTH(L, C), many, shared);
		copies_wait();
		block_barrier();
		if (a->kv_dtype == MPIG_BF16)
			rows_attend(L, C, MPIG_BF16, a, r, n, warp / PAIRS * part, part, slope, shared, &t);
		else if (a->kv_dtype == MPIG_F16)
			rows_attend(L, C, MPIG_F16, a, r, n, warp / PAIRS * part, part, slope, shared, &t);
		else
			rows_attend(L, C, MPIG_F32, a, r, n, warp / PAIRS * part, part, slope, shared, &t);
		n += many;
		if (n % most == 0)
			n += (a->pieces - 1) * most;
		if (n < r->count)
			block_barrier();
	}
	running_put(L, C, &t, shared);
}

// Block (x, y): x counts [item][token][KV head], y is the piece. The last block of an x joins its pieces.
DEVICE void window_block(const int L, const int C, const struct gpu_window *a)
{
	SHARED struct window_shared shared;
	SHARED int last;
	grid_go();
	grid_wait();
	const int failed = AT(gpu_state, a->state)->failed;
	const uint32_t g = blockIdx.x % a->shape.kv_heads, query = blockIdx.x / a->shape.kv_heads;
	const uint32_t group = a->shape.query_heads / a->shape.kv_heads;
	const uint64_t first = (uint64_t)query * a->shape.query_heads + g * group;
	struct place p = {query / a->shape.tokens, query % a->shape.tokens, 0, 0};
	const struct rows r = rows_of(a, p.item, p.token); // asked for with `failed`
	if (failed)
		return;
	for (uint32_t i = 0; i < group; i += GPU_HEADS_AT_ONCE) {
		const uint32_t heads = group - i < GPU_HEADS_AT_ONCE ? group - i : GPU_HEADS_AT_ONCE;
		p.head = g * group + i;
		queries_share(a, &p, LENGTH(L, C), heads, &shared);
		piece_attend(L, C, a, &p, g, &r, &shared);
		piece_join(L, C, a, first + i, heads, &shared);
		block_barrier();
	}
	if (a->pieces == 1)
		return;
	uint32_t *counter = (uint32_t *)a->counters + blockIdx.x;
	if (threadIdx.x == 0) {
		last = arrive(counter, 1) == a->pieces - 1;
		if (last)
			*counter = 0;
	}
	block_barrier();
	if (last)
		pieces_join(L, C, a, first, group, &shared);
}

// One for each length of rows that signatures have as well. Two blocks fit a multiprocessor: none waits for another, and those of the next kernel
// find room.
KERNEL_OF(GPU_WINDOW_THREADS, 2) mpig_window_64(ARGUMENT(gpu_window) a)
{
	window_block(8, 1, &a);
}

KERNEL_OF(GPU_WINDOW_THREADS, 2) mpig_window_128(ARGUMENT(gpu_window) a)
{
	window_block(8, 2, &a);
}

KERNEL_OF(GPU_WINDOW_THREADS, 2) mpig_window_256(ARGUMENT(gpu_window) a)
{
	window_block(16, 2, &a);
}
