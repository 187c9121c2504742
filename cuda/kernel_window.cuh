// Attention over the rows a client has itself: its first tokens and those that the daemon does not have.
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

#define ROWS_AT_ONCE 4u // of a warp: their loads are in flight together
#define WINDOW_WARPS (GPU_WINDOW_THREADS / GPU_WARP)

// A lane's elements E l .. E l + E - 1 of a row, with no more alignment than an element's.
DEVICE void load_row(const int E, uint64_t base, int64_t at, uint32_t dtype, uint32_t d, float *x)
{
	const uint32_t first = lane_of() * (uint32_t)E;
	UNROLL
	for (int e = 0; e < E; e++)
		x[e] = first + e < d ? element(base, at + first + e, dtype) : 0.0f;
}

// Those of some rows of K and V. WIDE: they lie as load_halves wants them; then all loads are made before one is waited for.
DEVICE void load_rows(const int E, const int WIDE, const struct gpu_window *a, const int64_t *at, float (*k)[8], float (*v)[8])
{
	uint64_t words[ROWS_AT_ONCE][2][2];
	const uint32_t first = lane_of() * (uint32_t)E;
	UNROLL
	for (uint32_t j = 0; j < ROWS_AT_ONCE; j++) {
		if (!WIDE) {
			load_row(E, a->k, at[j], a->kv_dtype, a->shape.d_k, k[j]);
			load_row(E, a->v, at[j], a->kv_dtype, a->shape.d_k, v[j]);
			continue;
		}
		load_words(E, a->k + (uint64_t)(at[j] + first) * 2, words[j][0]);
		load_words(E, a->v + (uint64_t)(at[j] + first) * 2, words[j][1]);
	}
	UNROLL
	for (uint32_t j = 0; WIDE && j < ROWS_AT_ONCE; j++)
		UNROLL
	for (int e = 0; e < E; e++) {
		k[j][e] = half_value((uint16_t)(words[j][0][e / 4] >> 16 * (e % 4)), a->kv_dtype);
		v[j][e] = half_value((uint16_t)(words[j][1][e / 4] >> 16 * (e % 4)), a->kv_dtype);
	}
}

DEVICE int rows_are_wide(const int E, const struct gpu_window *a)
{
	int64_t strides = a->kv_item | a->kv_page | a->kv_row | a->kv_head;
	return a->kv_dtype != MPIG_F32 && a->shape.d_k == GPU_WARP * (uint32_t)E && (a->k | a->v) % (2 * E) == 0 &&
	       strides % E == 0;
}

struct window_shared {
	float acc[WINDOW_WARPS][GPU_HEADS_AT_ONCE][MPIG_MAX_HEAD_DIM];
	float most[WINDOW_WARPS][GPU_HEADS_AT_ONCE], sum[WINDOW_WARPS][GPU_HEADS_AT_ONCE];
};

DEVICE uint32_t row_number(const struct rows *r, uint32_t n)
{
	return n < r->sinks ? n : r->from + (n - r->sinks);
}

// Heads p->head .. + heads - 1 of KV head g over the rows of a piece: each warp a running softmax over every fourth batch of rows.
DEVICE void piece_warp(const int E, const int WIDE, const struct gpu_window *a, const struct place *p, uint32_t g, uint32_t heads,
                       const struct rows *r, uint32_t piece, struct window_shared *shared)
{
	const uint32_t warp = threadIdx.x / GPU_WARP, lane = lane_of(), d = a->shape.d_k;
	float q[GPU_HEADS_AT_ONCE][8], acc[GPU_HEADS_AT_ONCE][8], most[GPU_HEADS_AT_ONCE], sum[GPU_HEADS_AT_ONCE],
		slope[GPU_HEADS_AT_ONCE];
	UNROLL
	for (uint32_t i = 0; i < GPU_HEADS_AT_ONCE; i++) {
		struct place at = *p;
		at.head = i < heads ? p->head + i : p->head;
		load_row(E, a->q, stride_at(&a->q_strides, &at), a->q_dtype, d, q[i]);
		slope[i] = a->alibi_slope_base > 0.0f ? powf(a->alibi_slope_base, (float)(at.head + 1)) : 0.0f;
		most[i] = LEAST;
		sum[i] = 0.0f;
		UNROLL
		for (int e = 0; e < E; e++)
			acc[i][e] = 0.0f;
	}
	const uint32_t step = a->pieces * GPU_PIECE_ROWS, part = GPU_PIECE_ROWS / WINDOW_WARPS;
	for (uint32_t first = piece * GPU_PIECE_ROWS + warp * part; first < r->count; first += step) {
		uint32_t end = first + part < r->count ? first + part : r->count;
		for (uint32_t n = first; n < end; n += ROWS_AT_ONCE) {
			float k[ROWS_AT_ONCE][8], v[ROWS_AT_ONCE][8], s[GPU_HEADS_AT_ONCE][ROWS_AT_ONCE];
			int64_t at[ROWS_AT_ONCE];
			UNROLL
			for (uint32_t j = 0; j < ROWS_AT_ONCE; j++)
				at[j] = row_at(a, p->item, g, row_number(r, n + j < end ? n + j : end - 1));
			load_rows(E, WIDE, a, at, k, v);
			UNROLL
			for (uint32_t i = 0; i < GPU_HEADS_AT_ONCE; i++) {
				float top = most[i];
				UNROLL
				for (uint32_t j = 0; j < ROWS_AT_ONCE; j++) {
					float x = 0.0f;
					UNROLL
					for (int e = 0; e < E; e++)
						x = fmaf(q[i][e], k[j][e], x);
					x = warp_sum(x) * a->scale;
					if (a->softcap > 0.0f)
						x = a->softcap * tanhf(x / a->softcap);
					x += slope[i] * (float)((int64_t)row_number(r, n + j) - (int64_t)(r->end - 1));
					s[i][j] = n + j < end ? x : -INFINITE_FLOAT;
					top = larger(top, s[i][j]);
				}
				float keep = expf(most[i] - top);
				most[i] = top;
				sum[i] *= keep;
				UNROLL
				for (int e = 0; e < E; e++)
					acc[i][e] *= keep;
				UNROLL
				for (uint32_t j = 0; j < ROWS_AT_ONCE; j++) {
					float weight = expf(s[i][j] - top);
					sum[i] += weight;
					UNROLL
					for (int e = 0; e < E; e++)
						acc[i][e] = fmaf(weight, v[j][e], acc[i][e]);
				}
			}
		}
	}
	UNROLL
	for (uint32_t i = 0; i < GPU_HEADS_AT_ONCE; i++) {
		if (lane == 0) {
			shared->most[warp][i] = most[i];
			shared->sum[warp][i] = sum[i];
		}
		UNROLL
		for (int e = 0; e < E; e++)
			shared->acc[warp][i][lane * (uint32_t)E + e] = acc[i][e]; // up to 32 E <= MPIG_MAX_HEAD_DIM
	}
}

// Joins what `count` parts have of one head, by one warp: their largest logits (`sum` 0: LSEs), sums by those, and weighted sums of rows.
// Lane n has the weight of part n, so that no load waits for another.
DEVICE void join_parts(const float *most, const float *sum, const float *acc, uint32_t count, uint32_t stride,
                       uint32_t acc_stride, uint32_t d, float *out, float *lse)
{
	const uint32_t lane = lane_of();
	float top = LEAST, total = 0.0f, x[8];
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		x[e] = 0.0f;
	for (uint32_t n = lane; n < count; n += GPU_WARP)
		top = larger(top, most[n * stride]);
	UNROLL
	for (int h = 16; h; h /= 2)
		top = larger(top, shuffle_xor_f(top, h));
	for (uint32_t base = 0; base < count; base += GPU_WARP) {
		uint32_t n = base + lane, here = count - base < GPU_WARP ? count - base : GPU_WARP;
		float keep = n < count ? expf(most[n * stride] - top) : 0.0f;
		total += warp_sum(n < count && sum ? keep * sum[n * stride] : keep);
		UNROLL_BY_4
		for (uint32_t i = 0; i < here; i++) {
			float weight = shuffle_from(keep, i);
			UNROLL
			for (uint32_t e = 0; e < 8; e++)
				if (lane + GPU_WARP * e < d)
					x[e] = fmaf(acc[(base + i) * acc_stride + lane + GPU_WARP * e], weight, x[e]);
		}
	}
	int some = total > 0.0f || total != total;
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		if (lane + GPU_WARP * e < d)
			out[lane + GPU_WARP * e] = some ? x[e] / total : 0.0f;
	if (lane == 0)
		*lse = some ? top + logf(total) : -INFINITE_FLOAT;
}

DEVICE void piece_heads(const struct gpu_window *a, const struct place *p, uint32_t g, uint32_t heads, const struct rows *r,
                        uint32_t piece, struct window_shared *shared)
{
	const uint32_t warp = threadIdx.x / GPU_WARP, d = a->shape.d_k;
#define PIECE(E, WIDE) piece_warp(E, WIDE, a, p, g, heads, r, piece, shared)
	if (d <= 64)
		rows_are_wide(2, a) ? PIECE(2, 1) : PIECE(2, 0);
	else if (d <= 96)
		PIECE(3, 0);
	else if (d <= 128)
		rows_are_wide(4, a) ? PIECE(4, 1) : PIECE(4, 0);
	else
		rows_are_wide(8, a) ? PIECE(8, 1) : PIECE(8, 0);
#undef PIECE
	block_barrier();
	if (warp < heads) { // warp i joins what the warps have of head i
		uint64_t number = ((uint64_t)p->item * a->shape.tokens + p->token) * a->shape.query_heads + p->head + warp;
		uint64_t at = number * a->pieces + piece;
		join_parts(&shared->most[0][warp], &shared->sum[0][warp], &shared->acc[0][warp][0], WINDOW_WARPS,
		           GPU_HEADS_AT_ONCE, GPU_HEADS_AT_ONCE * MPIG_MAX_HEAD_DIM, d, (float *)a->part_out + at * d,
		           (float *)a->part_lse + at);
	}
	block_barrier();
}

// Block (x, y): x counts [item][token][KV head], y is the piece. The last block of an x joins its pieces.
KERNEL(GPU_WINDOW_THREADS) mpig_window(ARGUMENT(gpu_window) a)
{
	SHARED struct window_shared shared;
	SHARED int last;
	grid_go();
	grid_wait();
	if (AT(gpu_state, a.state)->failed)
		return;
	const uint32_t g = blockIdx.x % a.shape.kv_heads, query = blockIdx.x / a.shape.kv_heads, d = a.shape.d_k;
	const uint32_t group = a.shape.query_heads / a.shape.kv_heads;
	struct place p = {query / a.shape.tokens, query % a.shape.tokens, 0, 0};
	struct rows r = rows_of(&a, p.item, p.token);
	for (uint32_t i = 0; i < group; i += GPU_HEADS_AT_ONCE) {
		p.head = g * group + i;
		piece_heads(&a, &p, g, group - i < GPU_HEADS_AT_ONCE ? group - i : GPU_HEADS_AT_ONCE, &r, blockIdx.y, &shared);
	}
	uint32_t *counter = (uint32_t *)a.counters + blockIdx.x;
	if (threadIdx.x == 0) {
		last = arrive(counter, 1) == a.pieces - 1;
		if (last)
			*counter = 0;
	}
	block_barrier();
	if (!last)
		return;
	for (uint32_t i = threadIdx.x / GPU_WARP; i < group; i += WINDOW_WARPS) {
		uint64_t number = (uint64_t)query * a.shape.query_heads + g * group + i, at = number * a.pieces;
		join_parts((const float *)a.part_lse + at, 0, (const float *)a.part_out + at * d, a.pieces, 1, d, d,
		           (float *)a.own_out + number * d, (float *)a.own_lse + number);
	}
}
