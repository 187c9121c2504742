// The model of analyze against exact sums over known distributions of attention: what it is given are three numbers, what it must tell is the
// error at a budget and the budget at an error. Everything is deterministic.
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "tests/lib/suite.h"
#include "tools/magicpigctl/analyze_model.c"

#define ROWS 20000

static double p[ROWS]; // sorted, the largest first; adds up to 1

static int descending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x < y) - (x > y);
}

static double uniform(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return ((double)(*state >> 11) + .5) / 9007199254740992.0;
}

static void normalise(void)
{
	double sum = 0;
	qsort(p, ROWS, sizeof(p[0]), descending);
	for (int i = 0; i < ROWS; i++)
		sum += p[i];
	for (int i = 0; i < ROWS; i++)
		p[i] /= sum;
}

// Logits are normal of deviation `spread`, and a few rows stand out by `needle`.
static void make(double spread, int needles, double needle)
{
	uint64_t state = 1;
	for (int i = 0; i < ROWS; i++) {
		double z = sqrt(-2 * log(uniform(&state))) * cos(2 * M_PI * uniform(&state));
		p[i] = exp(spread * z + (i < needles ? needle : 0));
	}
	normalise();
}

static double mass_of(int rows)
{
	double sum = 0;
	for (int i = 0; i < rows; i++)
		sum += p[i];
	return sum;
}

static double true_error(double budget)
{
	double low = -60, high = 1;
	for (int i = 0; i < 60; i++) {
		double middle = (low + high) / 2, rows = 0;
		for (int r = 0; r < ROWS; r++)
			rows += fmin(1, p[r] / exp(middle));
		*(rows > budget ? &low : &high) = middle;
	}
	double variance = 0, c = exp(low);
	for (int r = 0; r < ROWS; r++)
		variance += p[r] < c ? p[r] * (c - p[r]) : 0;
	return sqrt(variance);
}

static void curve_of_p(struct curve *curve, double noise)
{
	double squares = 0;
	for (int i = 0; i < ROWS; i++)
		squares += p[i] * p[i];
	curve_make(curve, ROWS, 1 / squares, mass_of(ROWS / 100), mass_of(ROWS / 20), noise);
}

static const struct {
	double spread;
	int needles;
	double needle;
} shapes[] = {{.5, 0, 0}, {1, 0, 0},  {1.5, 0, 0}, {2, 0, 0},  {3, 0, 0},
              {4, 0, 0},  {.5, 3, 9}, {1, 10, 6},  {2, 1, 12}, {1, 100, 4}};

START_TEST(error_at_a_budget)
{
	struct curve curve;
	make(shapes[_i].spread, shapes[_i].needles, shapes[_i].needle);
	curve_of_p(&curve, 0);
	for (double share = .005; share < .5; share *= 2) {
		double truth = true_error(share * ROWS), told = curve_error(&curve, share * ROWS);
		if (truth < 4e-3) // nothing is left to be decided
			ck_assert_double_le(fabs(told - truth), 1.5e-3);
		else
			ck_assert_msg(told > truth / 1.3 && told < truth * 1.3,
			              "spread %g, %d needles, %g of the rows: %g, truly %g", shapes[_i].spread,
			              shapes[_i].needles, share, told, truth);
	}
}
END_TEST

START_TEST(the_curve_has_its_three_numbers)
{
	struct curve curve;
	make(shapes[_i].spread, shapes[_i].needles, shapes[_i].needle);
	curve_of_p(&curve, 0);
	double rows = 0, mass = 0, squares = 0, truth = 0;
	for (int i = 0; i < curve.points; i++) {
		rows += curve.rows[i];
		mass += curve.rows[i] * curve.weight[i];
		squares += curve.rows[i] * curve.weight[i] * curve.weight[i];
	}
	for (int i = 0; i < ROWS; i++)
		truth += p[i] * p[i];
	ck_assert_double_eq_tol(rows, ROWS, 1e-6 * ROWS);
	ck_assert_double_eq_tol(mass, 1, 1e-9);
	ck_assert_double_lt(fabs(log(squares / truth)), .2);
}
END_TEST

START_TEST(budget_and_error_are_inverse)
{
	struct curve curve;
	make(shapes[_i].spread, shapes[_i].needles, shapes[_i].needle);
	curve_of_p(&curve, .3);
	for (double error = .005; error < .3; error *= 3) {
		double budget = curve_budget(&curve, error);
		ck_assert_double_le(curve_error(&curve, budget), error * 1.0001);
		if (budget > 1)
			ck_assert_double_ge(curve_error(&curve, budget * .99), error * .9999);
	}
	ck_assert_double_eq(curve_error(&curve, ROWS), 0);
}
END_TEST

START_TEST(noise_costs_what_it_costs)
{
	struct curve exact, noisy;
	make(1.5, 0, 0);
	curve_of_p(&exact, 0);
	curve_of_p(&noisy, .5);
	ck_assert_double_eq_tol(curve_error(&noisy, 400) / curve_error(&exact, 400), exp(.125), 1e-9);
}
END_TEST

START_TEST(numbers_that_do_not_fit_together)
{
	static const double odd[][4] = {{100, 1000, 2, 3},      {5000, 0, 0, 0}, {5000, 1, 1, 1},
	                                {5000, 5000, .01, .05}, {1, 1, 1, 1},    {64, 3, .9, .5}};
	for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
		struct curve curve;
		curve_make(&curve, odd[i][0], odd[i][1], odd[i][2], odd[i][3], .2);
		for (double budget = .5; budget <= odd[i][0]; budget *= 2)
			ck_assert(isfinite(curve_error(&curve, budget)) && curve_error(&curve, budget) >= 0);
		ck_assert(isfinite(curve_budget(&curve, .02)) && curve_budget(&curve, .02) <= odd[i][0] * 1.0001);
	}
}
END_TEST

START_TEST(costs)
{
	struct mpig_layer l = {.row_dtype = MPIG_BF16, .query_heads = 8, .kv_heads = 2, .d_k = 128};
	ck_assert_double_eq(layer_row_bytes(&l), 512);
	ck_assert_double_eq(layer_code_bytes(&l, 2), 34);
	ck_assert_double_eq_tol(layer_gain(&l, 2, 10000, 100), 10000. * 512 / (10000 * 34 + 2 * 4 * 100 * 512), 1e-12);
	ck_assert_double_lt(layer_gain(&l, 2, 10000, 10000), 1); // all rows, gathered, and the codes for nothing
	l.row_dtype = MPIG_I8;
	ck_assert_double_eq(layer_row_bytes(&l), 288); // 256 values and 16 bytes of scales, in multiples of 32
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("analyze model");
	TCase *tcase = tcase_create("model");
	int count = sizeof(shapes) / sizeof(shapes[0]);
	tcase_set_timeout(tcase, 60);
	tcase_add_loop_test(tcase, error_at_a_budget, 0, count);
	tcase_add_loop_test(tcase, the_curve_has_its_three_numbers, 0, count);
	tcase_add_loop_test(tcase, budget_and_error_are_inverse, 0, count);
	tcase_add_test(tcase, noise_costs_what_it_costs);
	tcase_add_test(tcase, numbers_that_do_not_fit_together);
	tcase_add_test(tcase, costs);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
