// Signatures. A warp has some queries in its registers, 2^J lanes each of them, and a lane 2^R elements, its part, where R = GPU_PART_BITS; d_pad is 2^(R + J). A butterfly at
// distance 2^b joins registers whose numbers differ in one bit. The bits of distances from 2^R on are in the lane's number: one after the other they change
// places with the register's highest, for which lanes exchange one half of their registers, where joining with a neighbour would take all. For lanes to
// give away the same registers, the highest bit means the opposite in every other lane, and a lane's chunk of 2^R elements is that of its Gray code;
// then one more exchange makes the end of a round its beginning. What that does to signs is nothing that a kernel computes: rotate.c does, once a plan.
//
// Signs cost nothing. With s the signs, s_a a + s_b b = s_a (a + r b) where r = s_a s_b: a sum fused with a product by 1 or -1, which
// rounds once, as the sum does, and to the same magnitude. Both results of a pair owe the factor s_a, or one of them its opposite, so those of a pair of
// groups are joined the same way; what an element owes in the end the scaling takes along. The first round's signs are in the balance.
// Zeros may have the other sign than the daemon's: no byte and no scale shows it.
//
// All three rounds are one piece of code, because what multiprocessors wait for is instructions.

// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
#define ROUND 12582912.0f
#define SMALLEST 1.50463276905252801e-36f // 128 * FLT_MIN
#define GREATEST 3.40282346638528860e+38f

#define PART (1u << GPU_PART_BITS)
#define QUERIES(J) (GPU_WARP >> (J)) // of a warp
#define BYTES(dtype) ((dtype) == MPIG_F32 ? 4u : 2u)
#define WORDS(dtype) (PART * BYTES(dtype) / 4) // of a part

DEVICE uint32_t part_lane(const uint32_t J)
{
	return lane_of() & ((1u << J) - 1);
}

// A warp's shared memory: the rotors of its lanes, as rotate.h has them.
#define ROTOR_SPACE GPU_ROTOR_BYTES(256)

// Those of an item. By all lanes.
DEVICE void rotor_load(const uint32_t J, uint64_t rotors, uint32_t item, uint8_t *rotor)
{
	const uint32_t bytes = GPU_ROTOR_BYTES(PART << J);
	const uint64_t from = rotors + (uint64_t)item * bytes;
	warp_barrier();
	UNROLL_BY_4
	for (uint32_t at = lane_of() * 16; at < bytes; at += GPU_WARP * 16) {
		uint32_t four[4];
		load_global(4, from + at, four);
		store_shared(rotor + at, four);
	}
	warp_barrier();
}

// The n-th four of the lane's rotor.
DEVICE void rotor_four(const uint32_t J, const uint8_t *rotor, uint32_t n, uint32_t *four)
{
	load_shared(rotor + ((n << J) + part_lane(J)) * 16, four);
}

// Whether quotient() does not do for some of the balance.
DEVICE int rotor_divides(const uint32_t J, const uint8_t *rotor)
{
	uint32_t four[4];
	rotor_four(J, rotor, GPU_ROTOR_FOURS - 1, four);
	return four[2] != 0;
}

// ---- in ----------------------------------------------------------------------------------------------------------------
// A part comes in eights, whose elements are neighbours in the query: where the n-th begins, which is in registers 8 n .. 8 n + 7.
DEVICE uint32_t eight_first(const uint32_t J, uint32_t n)
{
	return n << 3 ^ part_lane(J) << (GPU_PART_BITS - 1) ^ part_lane(J) << GPU_PART_BITS;
}

// Asks for a part of a query of elements of so many bytes; of eights beyond d others come, and are not used.
DEVICE void part_ask(const uint32_t J, const uint32_t bytes, uint32_t d, uint64_t from, uint32_t *words)
{
	UNROLL
	for (uint32_t n = 0; n < PART / 8; n++) {
		const uint32_t first = eight_first(J, n);
		load_global((int)bytes * 2, from + (uint64_t)((first < d ? first : 0) * bytes), words + n * bytes * 2);
	}
}

// What a part is divided by: the balance of a KV head of an item, with the first round's signs, and its inverse. Beyond d both are 0, and so are the
// quotients.
struct divisor {
	uint32_t by[PART], inverse[PART]; // floats, as their bits
};

DEVICE void divisor_load(const uint32_t J, const struct gpu_shape *shape, uint64_t balance, uint64_t inverse, uint32_t kv_head,
                         struct divisor *v)
{
	const uint64_t at = (uint64_t)kv_head * shape->d_k * 4;
	part_ask(J, 4, shape->d_k, balance + at, v->by);
	part_ask(J, 4, shape->d_k, inverse + at, v->inverse);
	UNROLL
	for (uint32_t p = 0; p < PART; p++)
		if (eight_first(J, p / 8) >= shape->d_k)
			v->by[p] = v->inverse[p] = 0;
}

DEVICE float half_value(uint16_t b, uint32_t dtype)
{
	return dtype == MPIG_BF16 ? bf16_value(b) : f16_value(b);
}

DEVICE void part_divide(const uint32_t dtype, const uint32_t *words, const struct divisor *v, float *x)
{
	UNROLL
	for (uint32_t p = 0; p < PART; p++) {
		const uint32_t word = words[dtype == MPIG_F32 ? p : p / 2];
		x[p] = dtype == MPIG_F32             ? bits_float((int)word)
		       : dtype == MPIG_BF16 && p % 2 ? bits_float((int)(word & 0xffff0000u))
		                                     : half_value((uint16_t)(word >> 16 * (p % 2)), dtype);
		x[p] = quotient(x[p], bits_float((int)v->by[p]), bits_float((int)v->inverse[p]));
	}
}

// Whether the parts of all of the warp were in the range of quotient(). All lanes answer the same.
DEVICE int part_holds(const uint32_t dtype, const uint32_t *words)
{
	uint32_t seen = UINT32_MAX;
	UNROLL
	for (uint32_t w = 0; w < WORDS(dtype); w++)
		seen = quotient_look(seen, words[w]);
	return warp_all(dtype == MPIG_F16 || quotient_holds(seen, dtype));
}

DEVICE void copy_element(uint64_t to, uint32_t to_at, uint64_t from, int64_t at, uint32_t dtype)
{
	if (dtype == MPIG_F32)
		((uint32_t *)to)[to_at] = ((const uint32_t *)from)[at];
	else
		((uint16_t *)to)[to_at] = ((const uint16_t *)from)[at];
}

// A part of a query of any alignment and range: one by one, and by division by `balance`, that of its KV head, unless that is 0. Where `to` is not 0, it
// is copied there as it is.
DEVICE void part_gather(const uint32_t J, uint32_t d, uint64_t q, int64_t at, uint32_t dtype, uint64_t balance, uint64_t to,
                        float *x)
{
	float some[PART];
	NO_UNROLL
	for (uint32_t p = 0; p < PART; p++) {
		const uint32_t n = eight_first(J, p / 8) + p % 8;
		some[p] = 0.0f;
		if (n >= d)
			continue;
		if (to)
			copy_element(to, n, q, at + n, dtype);
		if (balance)
			some[p] = element(q, at + n, dtype) / ((const float *)balance)[n];
	}
	UNROLL
	for (uint32_t p = 0; p < PART; p++)
		x[p] = some[p];
}

// ---- rotating ----------------------------------------------------------------------------------------------------------
// The butterflies of registers that differ in bit i. `ratio`: for each value of the bits above, floats as their bits. Returns those of the next.
DEVICE const uint32_t *stage(const uint32_t i, float *x, const uint32_t *ratio)
{
	UNROLL
	for (uint32_t p = 0; p < PART; p++)
		if (!(p >> i & 1)) {
			const float first = x[p], second = x[p | 1u << i], r = bits_float((int)ratio[p >> (i + 1)]);
			x[p] = fmaf(second, r, first);
			x[p | 1u << i] = fmaf(second, -r, first);
		}
	return ratio + (PART >> (i + 1));
}

// The upper half of the registers, with the lane that is so far away.
DEVICE void exchange(int distance, float *x)
{
	UNROLL
	for (uint32_t p = PART / 2; p < PART; p++)
		x[p] = shuffle_xor_f(x[p], distance);
}

DEVICE void rotate(const uint32_t J, float *x, const uint8_t *rotor)
{
	NO_UNROLL
	for (uint32_t round = 0; round < 3; round++) {
		uint32_t ratios[GPU_ROTOR_ROUND];
		const uint32_t *ratio = ratios;
		UNROLL
		for (uint32_t n = 0; n < GPU_ROTOR_ROUND / 4; n++)
			rotor_four(J, rotor, round * (GPU_ROTOR_ROUND / 4) + n, ratios + 4 * n);
		UNROLL
		for (uint32_t i = 0; i < GPU_PART_BITS; i++)
			ratio = stage(i, x, ratio);
		UNROLL
		for (uint32_t j = 0; j < J; j++) {
			exchange(1 << j, x);
			ratio = stage(GPU_PART_BITS - 1, x, ratio);
		}
		exchange((1 << J) - 1, x);
	}
}

// ---- out ---------------------------------------------------------------------------------------------------------------
// The signature of the lane's part, four bytes of an eight in a word. Returns the query's scale; where there is none, all of it is 0.
DEVICE float part_quantise(const uint32_t J, float *x, const uint8_t *rotor, uint32_t *words)
{
	uint32_t by[4];
	float most[4];
	rotor_four(J, rotor, GPU_ROTOR_FOURS - 1, by);
	UNROLL
	for (uint32_t p = 0; p < PART; p++) {
		x[p] = x[p] * bits_float((int)by[p >> (GPU_PART_BITS - 1)]);
		most[p % 4] = p < 4 ? x[p] : larger_size(most[p % 4], x[p]);
	}
	float largest = larger_size(larger_size(most[0], most[1]), larger_size(most[2], most[3]));
	UNROLL
	for (int h = 1; h < 1 << J; h *= 2)
		largest = larger_size(largest, shuffle_xor_f(largest, h));
	const int usable = largest >= SMALLEST && largest <= GREATEST; // not NaN
	const float per_unit = usable ? 127.0f / largest : 0.0f;
	UNROLL
	for (uint32_t w = 0; w < PART / 4; w++) {
		int level[4];
		UNROLL
		for (uint32_t i = 0; i < 4; i++)
			level[i] = float_bits(x[4 * w + i] * per_unit + ROUND); // its low byte is the integer
		words[w] = low_bytes(level) & (usable ? UINT32_MAX : 0);
	}
	return usable ? largest / 127.0f : 0.0f;
}

// To the places of the lane's query. The two eights are neighbours; in every other lane the second comes first.
DEVICE void part_store(const uint32_t J, const uint32_t *words, float scale, uint64_t signature_to, uint64_t scale_to)
{
	const uint32_t turned = part_lane(J) & 1;
	const uint64_t to = signature_to + eight_first(J, turned);
	uint32_t sixteen[4];
	UNROLL
	for (uint32_t i = 0; i < 4; i++)
		sixteen[i] = turned ? words[i ^ 2] : words[i];
	if (to % 16) {
		store_global(2, to, sixteen);
		store_global(2, to + 8, sixteen + 2);
	} else {
		store_global(4, to, sixteen);
	}
	if (part_lane(J) == 0)
		*(float *)scale_to = scale;
}
