// Signatures of many queries. A warp signs 32 queries at once, each in the registers of one lane (d_pad 256: 16 queries, of two lanes
// each), so that a butterfly is two instructions and nothing is shuffled. Queries and signatures pass through shared memory, in which
// a lane has a line of its own: the memory's side of it is read and written as it lies, by all lanes.
//
// Signs cost nothing. With s the signs, s_a a + s_b b = s_a (a + r b) where r = s_a s_b: a sum fused with a product by 1 or -1, which
// rounds once, as the sum does, and to the same magnitude. Both results of a pair owe the factor s_a, so those of a pair of groups are
// joined the same way; what a line owes in the end is a single sign, which the scaling takes along. Zeros may have the other sign than
// the daemon's: no byte and no scale shows it.

#define LINE 128u // elements of a lane, at most
// Of lines of n floats: lanes that read 16 bytes each of lines of their own meet in no bank.
#define LINE_STRIDE(n) ((n) + 4u)
#define RATIO_STRIDE(n, l) ((l) > 1 ? (n) + 4u : (n))

struct lines {        // what a warp has in shared memory, at multiples of 16 bytes
	float *line;  // [32] lines of LINE_STRIDE(n)
	float *ratio; // [3][L] lines of RATIO_STRIDE(n, L): factors r of the butterflies at distance 1, 2 .. n / 2, then s_0
};

// The factors of all butterflies. Of the N of a line, the k-th is that of the butterfly at distance h = N 2^-(b + 1) whose first element
// is 2 h m, where N - 1 - k has its highest bit at b, and m = 2^(b + 1) - 1 - (N - 1 - k).
DEVICE void ratios_make(const uint32_t N, const uint32_t L, const struct gpu_item *item, const struct lines *s)
{
	const uint32_t lane = lane_of(), words = 3 * L * N / 32; // the signs: a word of 32 in each of as many lanes
	uint32_t mine;
	load_global(1, (uint64_t)item->signs + (lane < words ? lane : 0) * 4, &mine);
	UNROLL_BY_4
	for (uint32_t t = lane; t < 3 * L * N; t += GPU_WARP) {
		uint32_t rest = N - 1 - t % N, bit = highest_bit(rest | 1), h = N >> (bit + 1);
		uint32_t first = t / N * N + (rest ? 2 * h * ((2u << bit) - 1 - rest) : 0), second = first + (rest ? h : 0);
		uint32_t sign = shuffle_word(mine, first / 32) >> first % 32,
			 other = shuffle_word(mine, second / 32) >> second % 32;
		s->ratio[t / N * RATIO_STRIDE(N, L) + t % N] = (rest ? sign ^ other : sign) & 1 ? -1.0f : 1.0f;
	}
}

// ---- in ----------------------------------------------------------------------------------------------------------------
// Some queries of an item: consecutive ones, as [tokens][query_heads] has them.
struct batch {
	const struct gpu_item *item;
	uint32_t n, number, first, count; // of the item; of the first query, in all items and in this one
	uint64_t balance, inverse;        // of the item
};

// Elements E l .. E l + E - 1 of a query to their place in the lines.
DEVICE void line_put(const int E, const uint32_t L, const struct lines *s, uint32_t query, const float *x)
{
	const uint32_t N = GPU_WARP * (uint32_t)E / L, first = lane_of() * (uint32_t)E;
	float *line = s->line + (query * L + first / N) * LINE_STRIDE(N) + first % N;
	if (E == 2)
		store_2(line, x);
	UNROLL
	for (int e = 0; e + 4 <= E; e += 4)
		store_4(line + e, x + e);
}

// The KV head of a query, and how many have it from there on.
struct heads {
	uint32_t head, left;
};

DEVICE struct heads heads_of(const struct gpu_shape *shape, const struct batch *b)
{
	const uint32_t group = shape->query_heads / shape->kv_heads, head = b->first % shape->query_heads;
	struct heads h = {head / group, group - head % group};
	return h;
}

// Asks for the lane's elements of the balance of the Q queries from *h on, and for their inverses, as their bits.
DEVICE void balances_ask(const int E, const uint32_t Q, const struct gpu_shape *shape, const struct batch *b, struct heads *h,
                         uint32_t *by, uint32_t *inverse)
{
	const uint32_t first = lane_of() * (uint32_t)E, d = shape->d_k, group = shape->query_heads / shape->kv_heads;
	UNROLL
	for (uint32_t j = 0; j < Q; j++) {
		const uint32_t at = (h->head * d + (first < d ? first : 0)) * 4;
		load_global(E, b->balance + at, by + j * (uint32_t)E);
		load_global(E, b->inverse + at, inverse + j * (uint32_t)E);
		h->left--;
		h->head += h->left == 0;
		h->head = h->head == shape->kv_heads ? 0 : h->head;
		h->left = h->left == 0 ? group : h->left;
	}
}

// Where queries are, and of what type.
struct source {
	uint64_t q;
	uint32_t dtype;
};

DEVICE void copy_element(uint64_t to, uint32_t to_at, uint64_t from, int64_t at, uint32_t dtype)
{
	if (dtype == MPIG_F32)
		((uint32_t *)to)[to_at] = ((const uint32_t *)from)[at];
	else
		((uint16_t *)to)[to_at] = ((const uint16_t *)from)[at];
}

// `count` queries, the first of which is `from`, in any layout and range: element by element and by division. `at` is the place of the lane's own
// query. Where `to` is not 0, they are copied there as they are, which is the place of the first.
DEVICE void queries_gather(const int E, const uint32_t L, const struct gpu_shape *shape, const struct source *source,
                           const struct batch *b, int64_t at, uint32_t from, uint32_t count, uint64_t to, const struct lines *s)
{
	const uint32_t first = lane_of() * (uint32_t)E, d = shape->d_k;
	NO_UNROLL
	for (uint32_t query = from; query < from + count; query++) {
		const uint32_t head = (b->first + query) % shape->query_heads / (shape->query_heads / shape->kv_heads);
		const int64_t begin = shuffle_long(at, query);
		float x[8];
		UNROLL
		for (int e = 0; e < E; e++) {
			x[e] = 0.0f;
			if (first + e >= d)
				continue;
			if (to && query < b->count)
				copy_element(to, query * d + first + e, source->q, begin + first + e, source->dtype);
			x[e] = element(source->q, begin + first + e, source->dtype) /
			       ((const float *)b->balance)[head * d + first + e];
		}
		line_put(E, L, s, query, x);
	}
}

// Whether the lanes' elements of all queries can be had by wide loads. `at` as above. All lanes answer the same.
DEVICE int queries_wide(const int E, const struct gpu_shape *shape, const struct source *source, int64_t at)
{
	const uint64_t bytes = source->dtype == MPIG_F32 ? 4 : 2, wide = E * bytes < 16 ? E * bytes : 16;
	return warp_all((source->q + (uint64_t)at * bytes) % wide == 0 && shape->d_k % (uint32_t)E == 0);
}

// Asks for the lane's elements of Q queries, the first of which is `from`: W words of 32 bits hold E elements.
DEVICE void queries_ask(const int E, const int W, const uint32_t Q, const struct gpu_shape *shape, const struct source *source,
                        int64_t at, uint32_t from, uint32_t *words)
{
	const uint32_t first = lane_of() * (uint32_t)E, bytes = W == E ? 4 : 2;
	const int64_t mine = (int64_t)source->q + at * (int64_t)bytes; // of the lane's query
	const uint64_t offset = (uint64_t)(first < shape->d_k ? first : 0) * bytes;
	UNROLL
	for (uint32_t j = 0; j < Q; j++)
		load_global(W, (uint64_t)shuffle_long(mine, from + j) + offset, words + j * (uint32_t)W);
}

// Copies them as they are to the place of the first of the batch.
DEVICE void queries_copy(const int E, const int W, const uint32_t Q, const struct gpu_shape *shape, const struct batch *b,
                         uint32_t from, const uint32_t *words, uint64_t to)
{
	const uint32_t first = lane_of() * (uint32_t)E, bytes = W == E ? 4 : 2;
	UNROLL
	for (uint32_t j = 0; j < Q; j++)
		if (from + j < b->count && first < shape->d_k)
			store_global(W, to + (uint64_t)((from + j) * shape->d_k + first) * bytes, words + j * (uint32_t)W);
}

// Divides them by the balance. Whether all of them were in the range of quotient(); all lanes answer the same. A lane beyond d has zeros.
DEVICE int queries_divide(const int E, const int W, const uint32_t Q, const uint32_t L, const struct gpu_shape *shape,
                          const struct source *source, const struct batch *b, uint32_t from, const uint32_t *words,
                          const uint32_t *by, const uint32_t *inverse, const struct lines *s)
{
	const int beyond = lane_of() * (uint32_t)E >= shape->d_k;
	uint32_t seen = UINT32_MAX;
	UNROLL
	for (uint32_t j = 0; j < Q; j++) {
		float x[8];
		UNROLL
		for (int e = 0; e < E; e++) {
			const uint32_t word = words[j * (uint32_t)W + (uint32_t)(W == E ? e : e / 2)],
				       n = j * (uint32_t)E + (uint32_t)e;
			x[e] = W == E ? bits_float((int)word) : half_value((uint16_t)(word >> 16 * (e % 2)), source->dtype);
			x[e] = quotient(x[e], bits_float((int)by[n]), bits_float((int)inverse[n]));
			x[e] = beyond ? 0.0f : x[e];
		}
		line_put(E, L, s, from + j, x);
	}
	UNROLL
	for (uint32_t w = 0; w < Q * (uint32_t)W; w++)
		seen = quotient_look(seen, words[w]);
	return warp_all(!b->item->divide && quotient_holds(seen, source->dtype));
}

// ---- rotating ----------------------------------------------------------------------------------------------------------
// One butterfly of groups of h elements, at distance h.
DEVICE void join(const uint32_t h, float *x, float ratio)
{
	UNROLL
	for (uint32_t e = 0; e < h; e++) {
		float first = x[e], second = x[e + h];
		x[e] = fmaf(second, ratio, first);
		x[e + h] = fmaf(second, -ratio, first);
	}
}

// All butterflies of a line of N elements at distance h, which is at most N / 8.
DEVICE void stage(const uint32_t N, const uint32_t h, float *x, const float *ratio)
{
	UNROLL
	for (uint32_t m = 0; m < N / 2 / h; m += 4) {
		float four[4];
		load_4(ratio + N - N / h + m, four);
		join(h, x + 2 * h * m, four[0]);
		join(h, x + 2 * h * (m + 1), four[1]);
		join(h, x + 2 * h * (m + 2), four[2]);
		join(h, x + 2 * h * (m + 3), four[3]);
	}
}

// One round of a line: butterflies at distances 1, 2 .. N / 2. Returns s_0, which all of them owe then.
DEVICE float round_of(const uint32_t N, float *x, const float *ratio)
{
	float four[4];
	stage(N, 1, x, ratio);
	if (N > 8)
		stage(N, 2, x, ratio);
	if (N > 16)
		stage(N, 4, x, ratio);
	if (N > 32)
		stage(N, 8, x, ratio);
	if (N > 64)
		stage(N, 16, x, ratio);
	load_4(ratio + N - 4, four);
	join(N / 4, x, four[0]);
	join(N / 4, x + N / 2, four[1]);
	join(N / 2, x, four[2]);
	return four[3];
}

// The butterfly of lanes that are `distance` apart: a + b in the first, a - b in the second, which has b and owes it the other sign after.
DEVICE void join_lanes(const uint32_t N, const int distance, float *x, float *owed)
{
	const int second = lane_of() & (uint32_t)distance;
	float ratio = *owed * shuffle_xor_f(*owed, distance);
	ratio = second ? -ratio : ratio;
	*owed = second ? -*owed : *owed;
	UNROLL
	for (uint32_t e = 0; e < N; e++)
		x[e] = fmaf(shuffle_xor_f(x[e], distance), ratio, x[e]);
}

// A lane's line as it was divided: three rounds. Returns the sign that it owes after.
DEVICE float rotate(const uint32_t N, const uint32_t L, float *x, const struct lines *s)
{
	float owed = 1.0f;
	NO_UNROLL
	for (uint32_t round = 0; round < 3; round++) {
		owed *= round_of(N, x, s->ratio + (round * L + lane_of() % L) * RATIO_STRIDE(N, L));
		if (L >= 2)
			join_lanes(N, 1, x, &owed);
		if (L >= 4)
			join_lanes(N, 2, x, &owed);
		if (L >= 8)
			join_lanes(N, 4, x, &owed);
	}
	return owed;
}

// ---- out ---------------------------------------------------------------------------------------------------------------
// The signature of a lane's line takes the line's place. Returns the scale.
DEVICE float line_quantise(const uint32_t N, const uint32_t L, float *x, float by, float *line)
{
	float most[4] = {0, 0, 0, 0};
	UNROLL
	for (uint32_t e = 0; e < N; e++) {
		x[e] = x[e] * by;
		most[e % 4] = larger_size(most[e % 4], x[e]);
	}
	float largest = larger_size(larger_size(most[0], most[1]), larger_size(most[2], most[3]));
	UNROLL
	for (int h = 1; h < (int)L; h *= 2)
		largest = larger_size(largest, shuffle_xor_f(largest, h));
	int usable = largest >= SMALLEST && largest <= GREATEST; // not NaN
	float per_unit = usable ? 127.0f / largest : 0.0f;
	float words[LINE / 4];
	UNROLL
	for (uint32_t w = 0; w < N / 4; w++) {
		int level[4];
		UNROLL
		for (uint32_t i = 0; i < 4; i++) {
			float rounded = x[4 * w + i] * per_unit + ROUND;
			level[i] = float_bits(rounded); // its low bits are the integer
		}
		words[w] = bits_float(usable ? (int)low_bytes(level) : 0);
	}
	if (N == 8)
		store_2(line, words);
	UNROLL
	for (uint32_t w = 0; w + 4 <= N / 4; w += 4)
		store_4(line + w, words + w);
	return usable ? largest / 127.0f : 0.0f;
}

// The lines' signatures to memory: `words` words of 32 bits, W at a time.
DEVICE void lines_store(const uint32_t W, const uint32_t N, float *to, uint32_t words, const struct lines *s)
{
	UNROLL
	for (uint32_t n = 0; n < N / 4 / W; n++) {
		uint32_t word = (n * GPU_WARP + lane_of()) * W;
		const float *from = s->line + word / (N / 4) * LINE_STRIDE(N) + word % (N / 4);
		float some[4];
		if (word >= words)
			continue;
		if (W == 2) {
			load_2(from, some);
			store_2(to + word, some);
		} else {
			load_4(from, some);
			store_4(to + word, some);
		}
	}
}

// The divided queries' signatures and scales, to the places of the first.
DEVICE void lines_sign(const uint32_t N, const uint32_t L, const struct gpu_shape *shape, const struct batch *b,
                       uint64_t signature, uint64_t scale, const struct lines *s)
{
	const uint32_t lane = lane_of();
	float x[LINE], *line = s->line + lane * LINE_STRIDE(N);
	warp_barrier();
	UNROLL
	for (uint32_t e = 0; e < N; e += 4)
		load_4(line + e, x + e);
	float owed = rotate(N, L, x, s), unit = line_quantise(N, L, x, owed * shape->rotate_by, line);
	if (lane % L == 0 && lane / L < b->count)
		((float *)scale)[lane / L] = unit;
	warp_barrier();
	if (signature % 16 || N == 8)
		lines_store(2, N, (float *)signature, b->count * (N * L / 4), s);
	else
		lines_store(4, N, (float *)signature, b->count * (N * L / 4), s);
}

// The batch of a warp among those of `queries` each, of which none has queries of two items. 0: there is none.
DEVICE int batch_of(const struct gpu_shape *shape, uint64_t items, uint64_t balance, uint64_t inverse, uint32_t queries,
                    struct batch *b)
{
	const uint32_t per_item = shape->tokens * shape->query_heads, batches = (per_item + queries - 1) / queries;
	const uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	if (number >= shape->items * batches)
		return 0;
	b->n = shape->items == 1 ? 0 : number / batches;
	b->first = (number - b->n * batches) * queries;
	b->count = per_item - b->first < queries ? per_item - b->first : queries;
	b->number = b->n * per_item + b->first;
	b->item = AT(gpu_item, items) + b->n;
	b->balance = balance + (uint64_t)b->n * shape->kv_heads * shape->d_k * 4;
	b->inverse = inverse + (uint64_t)b->n * shape->kv_heads * shape->d_k * 4;
	return 1;
}

// The place of the query of a batch that is a lane's: its own, or that of the first beyond the last.
DEVICE int64_t batch_place(const struct gpu_shape *shape, const struct gpu_strides *strides, const struct batch *b)
{
	const struct place p = place_in(shape, b->n, b->first + (lane_of() < b->count ? lane_of() : 0));
	return stride_at(strides, &p);
}
