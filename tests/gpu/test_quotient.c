// The kernels' division by a known inverse against IEEE division.
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/kernels/kernels.h"
#include "shm/abi.h"

#define DEVICE static inline
#include "cuda/quotient.cuh"
#include "tests/lib/suite.h"

static float float_of(uint32_t bits)
{
	float x;
	memcpy(&x, &bits, sizeof(x));
	return x;
}

static uint32_t bits_of(float x)
{
	uint32_t bits;
	memcpy(&bits, &x, sizeof(bits));
	return bits;
}

static float inverse_of(float a)
{
	volatile float one = 1; // at run time, by the processor
	return one / a;
}

// Asserts that the quotient is the division's: to the bit, but for the sign of a zero, and NaN where the division overflows or nearly does.
static void assert_quotient(float x, float a, float inverse)
{
	float want = x / a, got = quotient(x, a, inverse);
	if (bits_of(want) == bits_of(got) || (want == 0 && got == 0))
		return;
	ck_assert_msg(isnan(got) && !(fabsf(want) < 0x1.fffffcp127f), "%a / %a: %a, not %a", (double)x, (double)a, (double)got,
	              (double)want);
}

// Positive, within the range that plans allow.
static float divisor(struct rng *rng)
{
	uint64_t r = rng_next(rng);
	return float_of((uint32_t)(127 - 30 + (r >> 32) % 60) << 23 | ((uint32_t)r & 0x7fffff));
}

// Ordinary divisors and those whose mantissas are the ends.
static float some_divisor(struct rng *rng, int i)
{
	static const uint32_t ends[] = {0, 1, 2, 3, 0x7fffff, 0x7ffffe, 0x7ffffd, 0x400000, 0x3fffff, 0x3504f3, 0x3504f4};
	if ((size_t)i < sizeof(ends) / sizeof(ends[0]))
		return float_of(127u << 23 | ends[i]);
	return divisor(rng);
}

// _i: 0 bf16, 1 fp16. All numbers of the type by many divisors.
START_TEST(all_halves)
{
	struct rng rng = {7 + (uint64_t)_i};
	const uint32_t dtype = _i ? MPIG_F16 : MPIG_BF16;
	uint32_t held = 0;
	for (int i = 0; i < 500; i++) {
		float a = some_divisor(&rng, i), inverse = inverse_of(a);
		held = 0;
		for (uint32_t h = 0; h < 65536; h++) {
			if (dtype == MPIG_BF16 && !quotient_holds(quotient_look(UINT32_MAX, h | h << 16), dtype))
				continue;
			held++;
			assert_quotient(_i ? f16_to_f32((uint16_t)h) : bf16_to_f32((uint16_t)h), a, inverse);
		}
	}
	ck_assert_uint_eq(held, _i ? 65536 : 49152); // the range is what it is said to be
}
END_TEST

START_TEST(singles)
{
	struct rng rng = {9};
	for (int i = 0; i < 20000000; i++) {
		float x = float_of((uint32_t)rng_next(&rng)), a = divisor(&rng);
		if (quotient_holds(quotient_look(UINT32_MAX, bits_of(x)), MPIG_F32))
			assert_quotient(x, a, inverse_of(a));
	}
}
END_TEST

// Both mantissas near their ends, where the first product is off by most.
START_TEST(ends_of_mantissas)
{
	enum { SIDE = 1500 };
	for (uint32_t i = 0; i < 2 * SIDE; i++) {
		float a = float_of(127u << 23 | ((i - SIDE) & 0x7fffff)), inverse = inverse_of(a);
		for (uint32_t j = 0; j < 2 * SIDE; j++)
			assert_quotient(float_of(127u << 23 | ((j - SIDE) & 0x7fffff)), a, inverse);
	}
}
END_TEST

START_TEST(range)
{
	static const struct {
		float x;
		int holds;
	} cases[] = {{1, 1},         {-1, 1},       {0x1p-63f, 1}, {0x1.fffffep-64f, 0}, {0x1.fffffep127f, 1},
	             {0, 0},         {-0.f, 0},     {INFINITY, 1}, {-INFINITY, 1},       {0x1p-149f, 0},
	             {-0x1p-63f, 1}, {0x1p-64f, 0}, {-0x1p-64f, 0}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint32_t bits = bits_of(cases[i].x), half = bits >> 16;
		ck_assert_int_eq(quotient_holds(quotient_look(UINT32_MAX, bits), MPIG_F32), cases[i].holds);
		if ((bits & 0xffff) == 0) { // in either half of a word, beside one that is in range
			ck_assert_int_eq(quotient_holds(quotient_look(UINT32_MAX, half | 0x3f800000), MPIG_BF16), cases[i].holds);
			ck_assert_int_eq(quotient_holds(quotient_look(UINT32_MAX, half << 16 | 0x3f80), MPIG_BF16),
			                 cases[i].holds);
		}
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("quotient");
	TCase *t = tcase_create("quotient");
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, all_halves, 0, 2);
	tcase_add_test(t, singles);
	tcase_add_test(t, ends_of_mantissas);
	tcase_add_test(t, range);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
