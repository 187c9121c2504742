// Which width of codes is cheapest: the model by hand, its limits, and what really happens to the number of rows.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "tests/lib/suite.h"

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

// ---- measured on a sample --------------------------------------------------------------------------------------------

enum { KEYS = 1500, QUERIES = 6, NEAR = 20, DIM = 64 };

struct sampled {
	struct kernels k;
	float mu[DIM], balance[DIM], signs[3 * DIM], keys[(KEYS + NEAR) * DIM], queries[QUERIES * DIM];
	struct sig_sample sample;
};

// Gaussian keys and queries; logits have a deviation of `spread`.
static struct sampled *sampled(double spread, double eps)
{
	struct sampled *s = calloc(1, sizeof *s);
	struct rng rng = {.state = 11};
	kernels_init_c(&s->k);
	for (size_t i = 0; i < sizeof(s->keys) / sizeof(s->keys[0]); i++)
		s->keys[i] = (float)normal(&rng);
	for (size_t i = 0; i < sizeof(s->queries) / sizeof(s->queries[0]); i++)
		s->queries[i] = (float)normal(&rng);
	sig_fit(&s->k, s->keys, KEYS, s->queries, QUERIES, DIM, s->mu, s->balance);
	sig_signs(5, 0, 0, DIM, s->signs);
	s->sample =
		(struct sig_sample){.params = {.d_k = DIM, .d_pad = DIM, .mu = s->mu, .balance = s->balance, .signs = s->signs},
	                            .keys = s->keys,
	                            .n = KEYS,
	                            .near = NEAR,
	                            .rows = 96000,
	                            .queries = s->queries,
	                            .query_count = QUERIES,
	                            .scale = (float)(spread / sqrt(DIM)),
	                            .heads = 4,
	                            .row_bytes = 256,
	                            .eps = eps,
	                            .floor_rows = 480,
	                            .cap_rows = 7680,
	                            .budget_rows = 960};
	return s;
}

static double scan_bytes(uint32_t bits)
{
	return 96000. * (DIM / 8 * bits + 2);
}

// What is measured is what a drawing does: with the rows that each width is said to need, the variance of the mass, drawn 4,000 times
// from the width's own estimates, is that of a drawing by true logits. The deviation of a variance of so many draws is 2.2 % of it.
START_TEST(rows_of_a_width_are_those_of_equal_error)
{
	struct sampled *s = sampled(1.5, 0);
	double cost[3], logit[KEYS], reference = 0;
	s->sample.query_count = 1;
	s->sample.rows = KEYS; // each key stands for itself
	s->sample.budget_rows = 150;
	ck_assert(sig_width_costs(&s->k, &s->sample, cost));
	float work[KEYS], estimate[KEYS], rotated[DIM], scale, q_mu, exact[KEYS];
	int8_t signature[DIM];
	for (int i = 0; i < KEYS; i++) {
		logit[i] = 0;
		for (int d = 0; d < DIM; d++)
			logit[i] += (double)s->queries[d] * (double)s->keys[i * DIM + d] * (double)s->sample.scale;
		exact[i] = (float)logit[i];
	}
	struct rng rng = {.state = 3};
	for (uint32_t bits = 0; bits <= 4; bits = bits ? 2 * bits : 1) { // 0: by true logits
		const float *by = exact;
		double budget = 150;
		struct sig_params p = s->sample.params;
		p.bits = bits;
		if (bits) {
			uint8_t *codes = calloc(1, sig_code_bytes(DIM, bits, KEYS));
			uint16_t factors[KEYS];
			for (uint32_t i = 0; i < KEYS; i++)
				sig_encode(&s->k, &p, s->keys + i * DIM, codes, factors, i, rotated);
			sig_encode_query(&s->k, &p, s->queries, signature, &scale, &q_mu, rotated);
			struct sig_query q = sig_query_of(&p, signature, scale * s->sample.scale, q_mu * s->sample.scale);
			s->k.sig_estimate(codes, factors, KEYS, DIM, bits, &q, 1, estimate, KEYS);
			free(codes);
			by = estimate;
			budget = (cost[bits == 4 ? 2 : bits - 1] - KEYS * (DIM / 8. * bits + 2)) / (2. * 4 * 256);
			ck_assert_double_ge(budget, 145);
		}
		double tau = (double)tau_for_budget(&s->k, by, KEYS, 1, budget, work), sum = 0, sum2 = 0;
		for (int draw = 0; draw < 4000; draw++) {
			double mass = 0;
			for (int i = 0; i < KEYS; i++) {
				double pi = fmin(1, exp((double)by[i] - tau));
				if ((double)(rng_next(&rng) >> 11) * 0x1p-53 < pi)
					mass += exp(logit[i]) / pi;
			}
			sum += mass;
			sum2 += mass * mass;
		}
		double variance = sum2 / 4000 - sum * sum / 4000 / 4000;
		if (!bits)
			reference = variance;
		ck_assert_msg(fabs(variance / reference - 1) < .2, "%u bits, %.0f rows: variance %g of that without noise", bits,
		              budget, variance / reference);
	}
	free(s);
}
END_TEST

// Rows of no weight, rows as codes cannot be further from, all rows alike: costs are numbers.
START_TEST(odd_samples)
{
	static const float factor[] = {0, 1e-6f, 300, 3000};
	for (size_t i = 0; i < sizeof(factor) / sizeof(factor[0]); i++)
		for (int by_error = 0; by_error < 2; by_error++) {
			struct sampled *s = sampled(2, by_error ? .02 : 0);
			s->sample.scale *= factor[i];
			double cost[3];
			ck_assert(sig_width_costs(&s->k, &s->sample, cost));
			for (uint32_t width = 0; width < 3; width++)
				ck_assert(cost[width] >= scan_bytes(1u << width) && isfinite(cost[width]));
			free(s);
		}
}
END_TEST

START_TEST(costs_follow_the_noise)
{
	for (int by_error = 0; by_error < 2; by_error++) {
		double flat[3], sharp[3];
		struct sampled *s = sampled(.02, by_error ? .02 : 0), *t = sampled(2.5, by_error ? .02 : 0);
		ck_assert(sig_width_costs(&s->k, &s->sample, flat) && sig_width_costs(&t->k, &t->sample, sharp));
		for (int width = 0; width < 3; width++) // as many rows at any width
			ck_assert_double_eq_tol((flat[width] - scan_bytes(1u << width)) / (flat[2] - scan_bytes(4)), 1, .03);
		ck_assert(flat[0] < flat[1] && flat[1] < flat[2]);
		ck_assert_double_gt(sharp[0], 1.3 * sharp[1]);
		uint8_t bits[2];
		double both[2][3];
		memcpy(both[0], flat, sizeof flat);
		memcpy(both[1], sharp, sizeof sharp);
		sig_choose_widths((const double(*)[3])both, 2, DIM, 0, bits);
		ck_assert(bits[0] == 1 && bits[1] >= 2);
		free(s);
		free(t);
	}
}
END_TEST

// Against every assignment there is: the limit holds, and the cost is at most that of the best assignment with one step less room.
START_TEST(widths_keep_to_a_limit)
{
	enum { N = 5 };
	struct rng rng = {.state = 9};
	for (int round = 0; round < 300; round++) {
		double cost[N][3];
		uint8_t bits[N];
		for (int i = 0; i < N; i++) { // falling ever slower with bits
			double noise = exp(1.5 * normal(&rng));
			for (int width = 0; width < 3; width++)
				cost[i][width] = 100 * (1 << width) + 1000 * noise / (1 << 2 * width);
		}
		sig_choose_widths((const double(*)[3])cost, N, 128, 0, bits);
		for (int i = 0; i < N; i++)
			for (int width = 0; width < 3; width++)
				ck_assert(cost[i][bits[i] == 4 ? 2 : bits[i] - 1] <= cost[i][width]);
		uint32_t limit = 18 + (uint32_t)(rng_next(&rng) % 40), total = 0;
		double mine = 0, best = INFINITY;
		sig_choose_widths((const double(*)[3])cost, N, 128, limit, bits);
		for (int i = 0; i < N; i++) {
			total += 16u * bits[i] + 2;
			mine += cost[i][bits[i] == 4 ? 2 : bits[i] - 1];
		}
		ck_assert_uint_le(total, limit * N);
		for (int code = 0; code < 243; code++) {
			uint32_t bytes = 0;
			double sum = 0;
			for (int i = 0, left = code; i < N; i++, left /= 3) {
				bytes += 16u << left % 3;
				sum += cost[i][left % 3];
			}
			if (bytes + 2 * N + 32 <= limit * N)
				best = fmin(best, sum);
		}
		ck_assert_msg(mine <= best * (1 + 1e-12), "limit %u: %g, not %g", limit, mine, best);
	}
	double unknown[2][3] = {{(double)NAN, 1, 2}, {(double)NAN, (double)NAN, (double)NAN}};
	uint8_t bits[2];
	sig_choose_widths((const double(*)[3])unknown, 2, 128, 0, bits);
	ck_assert(bits[0] == 2 && bits[1] == 2);
	sig_choose_widths((const double(*)[3])unknown, 2, 128, 18, bits);
	ck_assert(bits[0] == 1 && bits[1] == 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("width");
	TCase *t = tcase_create("width");
	tcase_add_test(t, the_cost_is_the_formula);
	tcase_add_test(t, noise_asks_for_bits);
	tcase_add_test(t, odd_numbers);
	tcase_add_test(t, rows_of_a_width_are_those_of_equal_error);
	tcase_add_test(t, odd_samples);
	tcase_add_test(t, costs_follow_the_noise);
	tcase_add_test(t, widths_keep_to_a_limit);
	tcase_add_test(t, rows_grow_as_the_exponential_of_the_squared_noise);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
