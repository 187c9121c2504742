// Signatures of queries.
// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
#define ROUND 12582912.0f
#define SMALLEST 1.50463276905252801e-36f // 128 * FLT_MIN
#define GREATEST 3.40282346638528860e+38f

struct signed_query { // a lane's part of a signature
	uint64_t packed;
	float scale;
};

// One query by one warp; lane l holds elements E l .. E l + E - 1, E = d_pad / 32. The butterflies at distances below E are inside a lane,
// the others are between lanes; both are a + b and a - b of the same pairs as in the daemon, so the bits are the same.
DEVICE void sign_one(const int E, float *x, const struct gpu_item *item, uint32_t d_pad, float by, struct signed_query *s)
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
	s->packed = 0;
	UNROLL
	for (int e = 0; e < E; e++) {
		float level = x[e] * per_unit + ROUND;
		level = level - ROUND;
		uint64_t byte = usable ? (uint8_t)(int8_t)(int)level : 0;
		s->packed |= byte << 8 * e;
	}
	s->scale = usable ? most / 127.0f : 0.0f;
}

DEVICE float half_value(uint16_t b, uint32_t dtype)
{
	return dtype == MPIG_BF16 ? bf16_value(b) : f16_value(b);
}

// A lane's E elements of two bytes, from an address that is a multiple of 2 E, by the widest loads there are.
DEVICE void load_words(const int E, uint64_t from, uint64_t *words)
{
	if (E == 2)
		words[0] = *(const uint32_t *)from;
	UNROLL
	for (int w = 0; w < E / 4; w++)
		words[w] = ((const uint64_t *)from)[w];
}

DEVICE void load_halves(const int E, uint64_t from, uint32_t dtype, float *x)
{
	uint64_t words[2] = {0, 0};
	load_words(E, from, words);
	UNROLL
	for (int e = 0; e < E; e++)
		x[e] = half_value((uint16_t)(words[e / 4] >> 16 * (e % 4)), dtype);
}

// As many floats, from an address that is a multiple of 8.
DEVICE void load_floats(const int E, const float *from, float *x)
{
	UNROLL
	for (int w = 0; w < E / 2; w++) {
		uint64_t two = ((const uint64_t *)from)[w];
		x[2 * w] = bits_float((int)(uint32_t)two);
		x[2 * w + 1] = bits_float((int)(uint32_t)(two >> 32));
	}
}

// Whether the lanes' elements lie as load_halves wants them.
DEVICE int wide(const int E, uint64_t base, int64_t at, uint32_t dtype, uint32_t d)
{
	return (E == 2 || E == 4 || E == 8) && dtype != MPIG_F32 && d == GPU_WARP * (uint32_t)E &&
	       (base + (uint64_t)at * 2) % (2 * E) == 0;
}

// Loads a query.
DEVICE void query_load(const int E, uint32_t d, uint64_t q, int64_t at, uint32_t dtype, float *x)
{
	const uint32_t first = lane_of() * (uint32_t)E;
	if (wide(E, q, at, dtype, d)) {
		load_halves(E, q + (uint64_t)(at + first) * 2, dtype, x);
		return;
	}
	UNROLL
	for (int e = 0; e < E; e++)
		x[e] = first + e < d ? element(q, at + first + e, dtype) : 0.0f;
}

// What the elements are divided by: `balance` is that of the item, float [kv_heads][d_k].
DEVICE void balance_load(const int E, const struct gpu_shape *shape, uint64_t balance, uint32_t head, float *a)
{
	const uint32_t first = lane_of() * (uint32_t)E, d = shape->d_k;
	const float *from = (const float *)balance + head / (shape->query_heads / shape->kv_heads) * d;
	if (d == GPU_WARP * (uint32_t)E) { // aligned: d is a multiple of 64
		load_floats(E, from + first, a);
		return;
	}
	UNROLL
	for (int e = 0; e < E; e++)
		a[e] = first + e < d ? from[first + e] : 1.0f;
}

DEVICE void query_sign(const int E, const struct gpu_shape *shape, const struct gpu_item *item, float *x, const float *a,
                       struct signed_query *s)
{
	UNROLL
	for (int e = 0; e < E; e++)
		x[e] = x[e] / a[e];
	sign_one(E, x, item, shape->d_pad, shape->rotate_by, s);
}

DEVICE void signature_store(const int E, const struct signed_query *s, uint64_t signature, uint64_t scale)
{
	const uint32_t lane = lane_of();
	if (E == 2)
		((uint16_t *)signature)[lane] = (uint16_t)s->packed;
	else if (E == 4)
		((uint32_t *)signature)[lane] = (uint32_t)s->packed;
	else
		((uint64_t *)signature)[lane] = s->packed;
	if (lane == 0)
		*(float *)scale = s->scale;
}

struct place {                           // which query a warp has
	uint32_t item, token, head, row; // row: of [tokens][query_heads]
};

DEVICE struct place place_in(const struct gpu_shape *s, uint32_t item, uint32_t row)
{
	struct place p;
	p.item = item;
	p.row = row;
	p.token = s->tokens == 1 ? 0 : p.row / s->query_heads;
	p.head = p.row - p.token * s->query_heads;
	return p;
}

DEVICE struct place place_of(const struct gpu_shape *s, uint32_t number)
{
	uint32_t per_item = s->tokens * s->query_heads, item = s->items == 1 ? 0 : number / per_item;
	return place_in(s, item, number - item * per_item);
}

DEVICE int64_t stride_at(const struct gpu_strides *s, const struct place *p)
{
	return p->item * s->item + p->token * s->token + p->head * s->head;
}

DEVICE void sign_head(const int E, const struct gpu_sign *a, uint32_t number)
{
	struct signed_query s;
	struct place p = place_of(&a->shape, number);
	float x[8], by[8];
	query_load(E, a->shape.d_k, a->q, stride_at(&a->q_strides, &p), a->dtype, x);
	balance_load(E, &a->shape, a->balance + (uint64_t)p.item * a->shape.kv_heads * a->shape.d_k * 4, p.head, by);
	query_sign(E, &a->shape, AT(gpu_item, a->items) + p.item, x, by, &s);
	signature_store(E, &s, a->signature + (uint64_t)number * a->shape.d_pad, a->scale + (uint64_t)number * 4);
}

KERNEL(GPU_BLOCK) mpig_sign(ARGUMENT(gpu_sign) a)
{
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	grid_go();
	if (number >= a.shape.items * a.shape.tokens * a.shape.query_heads)
		return;
	grid_wait();
	if (a.shape.d_pad == 64)
		sign_head(2, &a, number);
	else if (a.shape.d_pad == 128)
		sign_head(4, &a, number);
	else
		sign_head(8, &a, number);
}
