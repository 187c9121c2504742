// Which width of codes is cheapest: the model by hand, its limits, and what really happens to the number of rows.
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"

static const struct sig_use base = {
	.d_pad = 128, .bits = 2, .heads = 4, .row_bytes = 512, .rows = 96000, .drawn = 900, .noise = .5};

START_TEST(the_cost_is_the_formula)
{
	struct sig_use use = base;
	double noise4 = .5 * .1081 / .3673;
	ck_assert_double_eq_tol(sig_cost(&use, 2), 96000. * 34 + 2. * 4 * 900 * 512, 1);
	ck_assert_double_eq_tol(sig_cost(&use, 4), 96000. * 66 + 2. * 4 * 900 * 512 * exp(noise4 * noise4 - .25), 1e-6 * 1e7);
	use.noise = 20; // more rows than there are
	ck_assert_double_eq_tol(sig_cost(&use, 1), 96000. * 18 + 2. * 4 * 96000 * 512, 1);
}
END_TEST

// A strip with little noise needs few bits, one with much many; the same strip gives the same answer whichever width it was seen at.
START_TEST(noise_asks_for_bits)
{
	static const struct {
		double noise;
		uint32_t best;
	} strip[] = {{0, 1}, {.1, 1}, {.55, 2}, {1.2, 4}, {2, 4}}; // noise at two bits
	const double relative[] = {[1] = .7555, [2] = .3673, [4] = .1081};
	for (size_t i = 0; i < sizeof(strip) / sizeof(strip[0]); i++)
		for (uint32_t bits = 1; bits <= 4; bits *= 2) {
			struct sig_use use = base;
			use.bits = bits;
			use.noise = strip[i].noise * relative[bits] / relative[2];
			use.drawn = 400 * exp(use.noise * use.noise); // at equal error
			ck_assert_msg(sig_best_bits(&use) == strip[i].best, "noise %g seen at %u bits: %u, not %u",
			              strip[i].noise, bits, sig_best_bits(&use), strip[i].best);
		}
}
END_TEST

START_TEST(odd_numbers)
{
	struct sig_use use = base;
	use.drawn = 0; // nothing is ever gathered
	ck_assert_uint_eq(sig_best_bits(&use), 1);
	use.noise = (double)INFINITY;
	ck_assert_uint_eq(sig_best_bits(&use), 0);
	use.noise = (double)NAN;
	ck_assert_uint_eq(sig_best_bits(&use), 0);
}
END_TEST

static double normal(struct rng *rng)
{
	double u = ((double)(rng_next(rng) >> 11) + .5) * 0x1p-53, v = (double)(rng_next(rng) >> 11) * 0x1p-53;
	return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

// Expected rows of a Poisson sample by noisy sizes whose sum has the relative variance eps^2, theta found by bisection on the exact
// variance sum w^2 (1 / pi - 1). 200,000 weights from one seed: no chance in it.
static double rows_at(double sigma, double eps)
{
	enum { N = 200000 };
	static double w[N], estimate[N];
	struct rng rng = {7};
	double total = 0;
	for (int i = 0; i < N; i++) {
		w[i] = exp(.5 * normal(&rng));
		estimate[i] = w[i] * exp(sigma * normal(&rng));
		total += w[i];
	}
	double low = 0, high = 1e9, rows = 0;
	for (int step = 0; step < 80; step++) {
		double theta = (low + high) / 2, variance = 0;
		rows = 0;
		for (int i = 0; i < N; i++) {
			double pi = fmin(1, estimate[i] / theta);
			variance += w[i] * w[i] * (1 / pi - 1);
			rows += pi;
		}
		*(variance > eps * eps * total * total ? &high : &low) = theta;
	}
	return rows;
}

START_TEST(rows_grow_as_the_exponential_of_the_squared_noise)
{
	double exact = rows_at(0, .05); // about 400 rows
	for (double sigma = .25; sigma <= 1; sigma += .25)
		ck_assert_double_eq_tol(rows_at(sigma, .05) / exact / exp(sigma * sigma), 1, .04);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("width");
	TCase *t = tcase_create("width");
	tcase_add_test(t, the_cost_is_the_formula);
	tcase_add_test(t, noise_asks_for_bits);
	tcase_add_test(t, odd_numbers);
	tcase_add_test(t, rows_grow_as_the_exponential_of_the_squared_noise);
	suite_add_tcase(suite, t);
	SRunner *runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? 1 : 0;
}
