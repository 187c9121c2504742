// Signatures of queries.
// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
#define ROUND 12582912.0f
#define SMALLEST 1.50463276905252801e-36f // 128 * FLT_MIN
#define GREATEST 3.40282346638528860e+38f

// One query by one warp; lane l holds elements E l .. E l + E - 1, E = d_pad / 32. The butterflies at distances below E are inside a lane,
// the others are between lanes; both are a + b and a - b of the same pairs as in the daemon, so the bits are the same.
DEVICE void sign_one(const int E, float *x, const struct gpu_item *item, uint32_t d_pad, float by, uint64_t signature,
                     uint64_t scale)
{
	const uint32_t lane = lane_of();
	for (uint32_t round = 0; round < 3; round++) {
		uint32_t bit = round * d_pad + lane * (uint32_t)E, signs = (uint32_t)item->signs[bit / 8] >> bit % 8;
		UNROLL
		for (int e = 0; e < E; e++)
			if (signs >> e & 1)
				x[e] = -x[e];
		UNROLL
		for (int h = 1; h < E; h *= 2)
			UNROLL
		for (int e = 0; e < E; e++)
			if (!(e & h)) {
				float a = x[e], b = x[e + h];
				x[e] = a + b;
				x[e + h] = a - b;
			}
		UNROLL
		for (int h = 1; h < 32; h *= 2)
			UNROLL
		for (int e = 0; e < E; e++) {
			float other = shuffle_xor_f(x[e], h);
			x[e] = lane & (uint32_t)h ? other - x[e] : x[e] + other;
		}
	}
	int largest = 0; // of |x|: magnitudes order as their bits do
	UNROLL
	for (int e = 0; e < E; e++) {
		x[e] = x[e] * by;
		int size = float_bits(x[e]) & 0x7fffffff;
		largest = size > largest ? size : largest;
	}
	UNROLL
	for (int h = 16; h; h /= 2) {
		int other = shuffle_xor_i(largest, h);
		largest = other > largest ? other : largest;
	}
	float most = bits_float(largest);
	int usable = most >= SMALLEST && most <= GREATEST;
	float per_unit = usable ? 127.0f / most : 0.0f;
	uint64_t packed = 0;
	UNROLL
	for (int e = 0; e < E; e++) {
		float level = x[e] * per_unit + ROUND;
		level = level - ROUND;
		uint64_t byte = usable ? (uint8_t)(int8_t)(int)level : 0;
		packed |= byte << 8 * e;
	}
	if (E == 2)
		((uint16_t *)signature)[lane] = (uint16_t)packed;
	else if (E == 4)
		((uint32_t *)signature)[lane] = (uint32_t)packed;
	else
		((uint64_t *)signature)[lane] = packed;
	if (lane == 0)
		*(float *)scale = usable ? most / 127.0f : 0.0f;
}

DEVICE float half_value(uint16_t b, uint32_t dtype)
{
	return dtype == MPIG_BF16 ? bf16_value(b) : f16_value(b);
}

// A lane's E elements of two bytes, from an address that is a multiple of 2 E, by the widest loads there are; copied on to `to`.
DEVICE void load_halves(const int E, uint64_t from, uint32_t dtype, uint64_t to, float *x)
{
	uint64_t words[2] = {0, 0};
	if (E == 2)
		words[0] = *(const uint32_t *)from;
	UNROLL
	for (int w = 0; w < E / 4; w++)
		words[w] = ((const uint64_t *)from)[w];
	if (to && E == 2)
		*(uint32_t *)to = (uint32_t)words[0];
	UNROLL
	for (int w = 0; w < E / 4; w++)
		if (to)
			((uint64_t *)to)[w] = words[w];
	UNROLL
	for (int e = 0; e < E; e++)
		x[e] = half_value((uint16_t)(words[e / 4] >> 16 * (e % 4)), dtype);
}

// Loads the query, copies it as it is to `to` (0: not), and signs it if the item has parameters.
DEVICE void query_one(const int E, const struct gpu_shape *shape, const struct gpu_item *item, uint32_t head, uint64_t q,
                      int64_t at, uint32_t dtype, uint64_t to, uint64_t signature, uint64_t scale)
{
	const uint32_t lane = lane_of(), first = lane * (uint32_t)E, d = shape->d_k;
	float x[8];
	uint64_t address = q + (uint64_t)(at + first) * 2;
	if (dtype != MPIG_F32 && d == GPU_WARP * (uint32_t)E && address % (2 * E) == 0) { // slots are aligned
		load_halves(E, address, dtype, to ? to + first * 2 : 0, x);
	} else {
		UNROLL
		for (int e = 0; e < E; e++) {
			uint32_t j = first + e;
			x[e] = 0.0f;
			if (j >= d)
				continue;
			x[e] = element(q, at + j, dtype);
			if (to && dtype == MPIG_F32)
				((float *)to)[j] = x[e];
			else if (to)
				((uint16_t *)to)[j] = ((const uint16_t *)q)[at + j];
		}
	}
	if (!item->balance || !signature)
		return;
	const float *balance = (const float *)item->balance + head / (shape->query_heads / shape->kv_heads) * d;
	UNROLL
	for (int e = 0; e < E; e++)
		if (first + e < d)
			x[e] = x[e] / balance[first + e];
	sign_one(E, x, item, shape->d_pad, shape->rotate_by, signature, scale);
}

DEVICE void query_any(const struct gpu_shape *shape, const struct gpu_item *item, uint32_t head, uint64_t q, int64_t at,
                      uint32_t dtype, uint64_t to, uint64_t signature, uint64_t scale)
{
	if (shape->d_pad == 64)
		query_one(2, shape, item, head, q, at, dtype, to, signature, scale);
	else if (shape->d_pad == 128)
		query_one(4, shape, item, head, q, at, dtype, to, signature, scale);
	else
		query_one(8, shape, item, head, q, at, dtype, to, signature, scale);
}

struct place {                           // which query a warp has
	uint32_t item, token, head, row; // row: of [tokens][query_heads]
};

DEVICE struct place place_of(const struct gpu_shape *s, uint32_t number)
{
	uint32_t per_item = s->tokens * s->query_heads;
	struct place p = {number / per_item, number % per_item / s->query_heads, number % s->query_heads, number % per_item};
	return p;
}

DEVICE int64_t stride_at(const struct gpu_strides *s, const struct place *p)
{
	return p->item * s->item + p->token * s->token + p->head * s->head;
}

KERNEL(GPU_BLOCK) mpig_sign(ARGUMENT(gpu_sign) a)
{
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	const struct gpu_shape *s = &a.shape;
	if (number >= s->items * s->tokens * s->query_heads)
		return;
	struct place p = place_of(s, number);
	query_any(s, AT(gpu_item, a.items) + p.item, p.head, a.q, stride_at(&a.q_strides, &p), a.dtype, 0,
	          a.signature + (uint64_t)number * s->d_pad, a.scale + (uint64_t)number * 4);
}
