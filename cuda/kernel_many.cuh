// Signatures of many queries. A lane has 64 elements of one: more would not leave room in the registers for other warps, nor in the instruction
// cache for the code, which is as long as a lane has elements.

#define MANY_LINE GPU_MANY_LINE
#define MANY_LINES (GPU_WARP * LINE_STRIDE(MANY_LINE))
#define MANY_FLOATS (MANY_LINES + 3 * (256 / MANY_LINE) * RATIO_STRIDE(MANY_LINE, 2))

DEVICE void sign_queries(const int E, const int W, const uint32_t L, const struct gpu_sign *a, const struct batch *b, int64_t at,
                         const struct source *source, const struct lines *s)
{
	const uint32_t Q = E == 8 ? 4 : 8; // whose loads are in flight together
	struct heads heads = heads_of(&a->shape, b);
	NO_UNROLL
	for (uint32_t query = 0; query < GPU_WARP / L; query += Q) {
		uint32_t words[8 * 8], by[8 * 8], inverse[8 * 8];
		queries_ask(E, W, Q, &a->shape, source, at, query, words);
		balances_ask(E, Q, &a->shape, b, &heads, by, inverse);
		if (!queries_divide(E, W, Q, L, &a->shape, source, b, query, words, by, inverse, s))
			queries_gather(E, L, &a->shape, source, b, at, query, Q, 0, s); // in place of these
	}
}

DEVICE void sign_batch(const int E, const struct gpu_sign *a, const struct lines *s)
{
	const uint32_t D = (uint32_t)E * GPU_WARP, N = MANY_LINE, L = D / N;
	const struct source source = {a->q, a->dtype};
	struct batch b;
	if (!batch_of(&a->shape, a->items, a->balance, a->inverse, GPU_WARP / L, &b))
		return;
	const int64_t at = batch_place(&a->shape, &a->q_strides, &b);
	ratios_make(N, L, b.item, s);
	grid_wait();
	if (!queries_wide(E, &a->shape, &source, at))
		queries_gather(E, L, &a->shape, &source, &b, at, 0, GPU_WARP / L, 0, s);
	else if (a->dtype == MPIG_F32)
		sign_queries(E, E, L, a, &b, at, &source, s);
	else
		sign_queries(E, E / 2, L, a, &b, at, &source, s);
	lines_sign(N, L, &a->shape, &b, a->signature + (uint64_t)b.number * D, a->scale + (uint64_t)b.number * 4, s);
}

KERNEL_OF(GPU_MANY_THREADS, 8) mpig_sign_many(ARGUMENT(gpu_sign) a)
{
	SHARED ALIGNED_16 float space[GPU_MANY_THREADS / GPU_WARP * MANY_FLOATS];
	float *line = space + threadIdx.x / GPU_WARP * MANY_FLOATS;
	const struct lines s = {line, line + MANY_LINES};
	grid_go();
	if (a.shape.d_pad == 64)
		sign_batch(2, &a, &s);
	else if (a.shape.d_pad == 128)
		sign_batch(4, &a, &s);
	else
		sign_batch(8, &a, &s);
}
