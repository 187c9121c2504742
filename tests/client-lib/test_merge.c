// mpig_merge against attention over the union of the rows, and mpig_merge_error against its formula.
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <magicpig.h>

#include "tests/lib/suite.h"

#define HEADS 5
#define D 16
#define ROWS 96

static uint64_t rng_state;
static float uniform(void) // [-1, 1)
{
	rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (float)((double)(int64_t)(rng_state >> 11) / 4503599627370496.0 - 1.0);
}

struct partial {
	float out[HEADS * D], lse[HEADS];
};
static float logits[HEADS][ROWS], values[ROWS][D];

static void fill(uint64_t seed, float spread)
{
	rng_state = seed;
	for (int h = 0; h < HEADS; h++)
		for (int i = 0; i < ROWS; i++)
			logits[h][i] = spread * uniform();
	for (int i = 0; i < ROWS; i++)
		for (int j = 0; j < D; j++)
			values[i][j] = uniform();
}

// Exact attention over rows [a, b), in double.
static void attend(int a, int b, struct partial *p)
{
	for (int h = 0; h < HEADS; h++) {
		double top = -HUGE_VAL, sum = 0, out[D] = {0};
		for (int i = a; i < b; i++)
			top = fmax(top, logits[h][i]);
		for (int i = a; i < b; i++) {
			double w = exp(logits[h][i] - top);
			sum += w;
			for (int j = 0; j < D; j++)
				out[j] += w * values[i][j];
		}
		p->lse[h] = b > a ? (float)(top + log(sum)) : -HUGE_VALF;
		for (int j = 0; j < D; j++)
			p->out[h * D + j] = b > a ? (float)(out[j] / sum) : 0;
	}
}

static void merge(struct partial *a, const struct partial *b)
{
	mpig_merge(HEADS, D, a->out, a->lse, b->out, b->lse);
}

static double largest_difference(const struct partial *a, const struct partial *b)
{
	double worst = 0;
	for (int i = 0; i < HEADS * D; i++)
		worst = fmax(worst, fabs((double)a->out[i] - b->out[i]));
	for (int h = 0; h < HEADS; h++)
		worst = fmax(worst, fabs((double)a->lse[h] - b->lse[h]) / (1 + fabs(b->lse[h])));
	return worst;
}

START_TEST(parts_make_the_whole)
{
	static const float spreads[] = {.1f, 5, 60, 500};
	fill(11 + _i, spreads[_i]);
	struct partial a, b, c, whole;
	attend(0, 20, &a);
	attend(20, 21, &b);
	attend(21, ROWS, &c);
	attend(0, ROWS, &whole);
	merge(&a, &b);
	merge(&a, &c);
	ck_assert_double_lt(largest_difference(&a, &whole), 4e-7);
}
END_TEST

START_TEST(order_does_not_matter)
{
	fill(21, 8);
	struct partial a, b, c;
	attend(0, 31, &a);
	attend(31, 64, &b);
	attend(64, ROWS, &c);
	struct partial ab = a, ba = b, bc = b, left, right;
	merge(&ab, &b);
	merge(&ba, &a);
	ck_assert_mem_eq(&ab, &ba, sizeof(ab)); // commutative to the bit
	left = ab;
	merge(&left, &c);
	merge(&bc, &c);
	right = a;
	merge(&right, &bc);
	ck_assert_double_lt(largest_difference(&left, &right), 4e-7);
}
END_TEST

START_TEST(empty_parts_change_nothing)
{
	fill(31, 3);
	struct partial a, empty, kept;
	attend(0, ROWS, &a);
	kept = a;
	for (int i = 0; i < HEADS * D; i++)
		empty.out[i] = NAN; // must not be looked at
	for (int h = 0; h < HEADS; h++)
		empty.lse[h] = -HUGE_VALF;
	merge(&a, &empty);
	ck_assert_mem_eq(&a, &kept, sizeof(a));
	struct partial e = empty;
	merge(&e, &kept);
	ck_assert_mem_eq(&e, &kept, sizeof(e));
	e = empty;
	merge(&e, &empty);
	for (int h = 0; h < HEADS; h++) {
		ck_assert_float_eq(e.lse[h], -HUGE_VALF);
		for (int j = 0; j < D; j++)
			ck_assert_float_eq(e.out[h * D + j], 0);
	}
}
END_TEST

START_TEST(extreme_masses)
{
	static const struct {
		float a, b, lse, share_a;
	} cases[] = {
		{30000, -30000, 30000, 1},       {-30000, -30001, -29999.6867f, .731058579f}, {1e30f, 1e30f, 1e30f, .5f},
		{-1e38f, -HUGE_VALF, -1e38f, 1}, {88, 90, 90.126928f, .119202922f},           {0, 0, .693147181f, .5f},
	};
	float a = 1, b = -1, la = cases[_i].a, lb = cases[_i].b;
	mpig_merge(1, 1, &a, &la, &b, &lb);
	ck_assert_float_eq_tol(la, cases[_i].lse, 1e-6f * (1 + fabsf(cases[_i].lse)));
	ck_assert_float_eq_tol(a, 2 * cases[_i].share_a - 1, 1e-6f);
}
END_TEST

// err = sqrt(sum_p lambda_p^2 (V_p + |out_p - out|^2 A_p)) / |out|
START_TEST(error_follows_its_formula)
{
	fill(41, 4);
	struct partial p[3], merged;
	float v[3][HEADS], a[3][HEADS], err[HEADS];
	attend(0, 40, &p[0]);
	attend(40, 60, &p[1]);
	attend(60, ROWS, &p[2]);
	for (int h = 0; h < HEADS; h++)
		for (int i = 0; i < 3; i++) {
			v[i][h] = fabsf(uniform()) * .01f;
			a[i][h] = fabsf(uniform()) * .02f;
		}
	merged = p[0];
	merge(&merged, &p[1]);
	merge(&merged, &p[2]);
	const float *out[] = {p[0].out, p[1].out, p[2].out}, *lse[] = {p[0].lse, p[1].lse, p[2].lse};
	const float *ev[] = {v[0], NULL, v[2]}, *ea[] = {a[0], NULL, a[2]};
	mpig_merge_error(HEADS, D, 3, out, lse, ev, ea, merged.out, err);
	for (int h = 0; h < HEADS; h++) {
		double variance = 0, size = 0;
		for (int i = 0; i < 3; i += 2) {
			double lambda = exp((double)p[i].lse[h] - merged.lse[h]), away = 0;
			for (int j = 0; j < D; j++)
				away += pow((double)p[i].out[h * D + j] - merged.out[h * D + j], 2);
			variance += lambda * lambda * (v[i][h] + away * a[i][h]);
		}
		for (int j = 0; j < D; j++)
			size += pow(merged.out[h * D + j], 2);
		ck_assert_double_eq_tol(err[h], sqrt(variance / size), 1e-5 * sqrt(variance / size));
	}
}
END_TEST

START_TEST(error_of_exact_and_empty_parts)
{
	float out_a[2] = {3, 4}, out_b[2] = {NAN, NAN}, lse_a = 2, lse_b = -HUGE_VALF, v = .25f, a = 1, err = -1;
	const float *out[] = {out_a, out_b}, *lse[] = {&lse_a, &lse_b}, *some[] = {&v, &v}, *none[] = {NULL, NULL},
		    *ones[] = {&a, &a};
	mpig_merge_error(1, 2, 2, out, lse, none, none, out_a, &err);
	ck_assert_float_eq(err, 0);
	mpig_merge_error(1, 2, 2, out, lse, NULL, NULL, out_a, &err);
	ck_assert_float_eq(err, 0);
	mpig_merge_error(1, 2, 2, out, lse, some, ones, out_a, &err); // one part with all the mass: sqrt V / |out|
	ck_assert_float_eq_tol(err, .5f / 5, 1e-7f);
	lse_a = -HUGE_VALF;
	mpig_merge_error(1, 2, 2, out, lse, some, ones, out_a, &err);
	ck_assert_float_eq(err, 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("merge");
	TCase *t = tcase_create("merge");
	tcase_add_loop_test(t, parts_make_the_whole, 0, 4);
	tcase_add_test(t, order_does_not_matter);
	tcase_add_test(t, empty_parts_change_nothing);
	tcase_add_loop_test(t, extreme_masses, 0, 6);
	tcase_add_test(t, error_follows_its_formula);
	tcase_add_test(t, error_of_exact_and_empty_parts);
	suite_add_tcase(s, t);
	return suite_run(s);
}
