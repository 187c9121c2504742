// The k largest, against sorting.
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "tests/index/isas.h"
#include "tests/lib/suite.h"

static bool taken(const struct cut *cut, const float *x, uint64_t i)
{
	return x[i] > cut->value || (x[i] == cut->value && i < cut->end);
}

// A row is among the k largest iff fewer than k rows are larger, or equal and before it.
static void check_cut(const float *x, uint64_t n, uint64_t k)
{
	struct cut cut = cut_largest(x, n, k);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t before = 0;
		for (uint64_t o = 0; o < n; o++)
			before += x[o] > x[i] || (x[o] == x[i] && o < i);
		ck_assert_msg(taken(&cut, x, i) == (!isnan(x[i]) && before < k), "n %llu, k %llu, i %llu, x %g",
		              (unsigned long long)n, (unsigned long long)k, (unsigned long long)i, (double)x[i]);
	}
}

START_TEST(the_k_largest_in_order_of_position)
{
	static const float odd[] = {0, -0.f, INFINITY, -INFINITY, NAN, 1e-40f, -1e-40f, 3e38f, -3e38f, 1};
	enum { MOST = 300 };
	float x[MOST];
	struct rng rng = {5};
	for (uint64_t n = 1; n <= MOST; n = n * 3 / 2 + 1) {
		rng_gaussian(&rng, x, n);
		for (uint64_t i = 0; i < n; i++) // _i: all different; many alike; odd ones among them; all alike
			x[i] = _i == 0 ? x[i] : _i == 1 ? rintf(x[i]) : _i == 2 ? (fabsf(x[i]) < .5f ? odd[i % 10] : x[i]) : -0.f;
		for (uint64_t k = 0; k <= n + 1; k += 1 + k / 5)
			check_cut(x, n, k);
	}
}
END_TEST

START_TEST(nothing_but_nan_takes_nothing)
{
	float x[] = {NAN, NAN, NAN};
	for (uint64_t k = 0; k < 5; k++)
		check_cut(x, 3, k);
	struct cut none = cut_largest(x, 0, 3);
	ck_assert_uint_eq(none.end, 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("select");
	TCase *t = tcase_create("select");
	tcase_add_loop_test(t, the_k_largest_in_order_of_position, 0, 4);
	tcase_add_test(t, nothing_but_nan_takes_nothing);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
