// False alarms: every |z| < 6 fails by chance with probability 2e-9; about ten comparisons.
#include "daemon/base/rng.h"
#include "tests/index/isas.h"

START_TEST(known_values)
{
	// The first values of splitmix64 from state 1234567 (the reference implementation's).
	struct rng r = {1234567};
	ck_assert_uint_eq(rng_next(&r), UINT64_C(6457827717110365317));
	ck_assert_uint_eq(rng_next(&r), UINT64_C(3203168211198807973));
	ck_assert_uint_eq(rng_next(&r), UINT64_C(9817491932198370423));
}
END_TEST

START_TEST(below_is_uniform)
{
	enum { N = 7, DRAWS = 700000 };
	struct rng r = {1};
	uint32_t count[N] = {0};
	for (uint32_t i = 0; i < DRAWS; i++) {
		uint32_t x = rng_below(&r, N);
		ck_assert_uint_lt(x, N);
		count[x]++;
	}
	for (uint32_t i = 0; i < N; i++) {
		double expected = (double)DRAWS / N, z = (count[i] - expected) / sqrt(expected * (1 - 1. / N));
		ck_assert_double_lt(fabs(z), 6);
	}
	// 3/4 of 2^32: without the rejection the first third would come up twice as often as it should.
	uint32_t low = 0, n = 3u << 30;
	for (uint32_t i = 0; i < DRAWS; i++)
		low += rng_below(&r, n) < n / 3;
	ck_assert_double_lt(fabs((low - DRAWS / 3.) / sqrt(DRAWS * 2 / 9.)), 6);
	for (uint32_t i = 0; i < 100; i++)
		ck_assert_uint_eq(rng_below(&r, 1), 0);
}
END_TEST

START_TEST(gaussian_moments)
{
	enum { N = 400001 };
	struct rng r = {2};
	float *x = floats(N);
	rng_gaussian(&r, x, N);
	ck_assert_float_eq(x[N], 0); // an odd count writes no more than it was asked to
	double m1 = 0, m2 = 0, m3 = 0, m4 = 0, cross = 0;
	for (uint32_t i = 0; i < N; i++) {
		double v = (double)x[i], v2 = v * v;
		m1 += v / N;
		m2 += v2 / N;
		m3 += v2 * v / N;
		m4 += v2 * v2 / N;
		cross += i ? v * (double)x[i - 1] / N : 0;
	}
	double se = 1 / sqrt(N);
	ck_assert_double_lt(fabs(m1), 6 * se);
	ck_assert_double_lt(fabs(m2 - 1), 6 * sqrt(2) * se);
	ck_assert_double_lt(fabs(m3), 6 * sqrt(15) * se);
	ck_assert_double_lt(fabs(m4 - 3), 6 * sqrt(96) * se);
	ck_assert_double_lt(fabs(cross), 6 * se);
	free(x);
}
END_TEST

START_TEST(hash_depends_on_order_and_place)
{
	ck_assert_uint_ne(rng_hash(rng_hash(1, 2), 3), rng_hash(rng_hash(1, 3), 2));
	ck_assert_uint_ne(rng_hash(1, 2), rng_hash(2, 1));
	ck_assert_uint_ne(rng_hash(0, 0), 0);
	for (uint64_t seed = 0; seed < 1000; seed++) { // one flipped input bit flips about half of the output
		int flipped = __builtin_popcountll(rng_hash(seed, 5) ^ rng_hash(seed, 5 ^ UINT64_C(1) << (seed % 64)));
		ck_assert_int_gt(flipped, 32 - 24); // 6 standard deviations
		ck_assert_int_lt(flipped, 32 + 24);
	}
}
END_TEST

int main(void)
{
	return RUN_TESTS("rng", known_values, below_is_uniform, gaussian_moments, hash_depends_on_order_and_place);
}
