// The only statistical comparison is in variance_is_what_was_asked: a root mean square over 4,000 draws, held to 8 %, seven of
// its standard errors (1.1 %).
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "tests/index/isas.h"

// repeat * sum min(1, exp(s - tau)) in double.
static double expected_rows(const float *s, uint32_t n, double repeat, float tau)
{
	double rows = 0;
	for (uint32_t i = 0; i < n; i++)
		rows += s[i] >= tau ? 1 : exp((double)s[i] - (double)tau);
	return repeat * rows;
}

// The relative variance as documented: T and Q below tau, certain pilot rows once in Z.
static double closed_form(const float *s, uint32_t n, double repeat, double exact_lse, float tau)
{
	double t = 0, q = 0, z = 0, shift = (double)tau;
	for (uint32_t i = 0; i < n; i++) {
		double w = exp((double)s[i] - shift);
		if (s[i] < tau) {
			t += repeat * w;
			q += repeat * w * w;
			z += repeat * w;
		} else {
			z += w;
		}
	}
	z += exp(exact_lse - shift);
	return (t - q) / (z * z);
}

static void gaussian(float *s, uint32_t n, uint64_t seed, float spread, float mean)
{
	struct rng rng = {seed};
	rng_gaussian(&rng, s, n);
	for (uint32_t i = 0; i < n; i++)
		s[i] = s[i] * spread + mean;
}

static void check_rows(const struct kernels *k, const float *s, uint32_t n, double repeat, double budget, float *w)
{
	float *copy = floats(n);
	memcpy(copy, s, n * sizeof(*s));
	float tau = tau_for_budget(k, s, n, repeat, budget, w);
	ck_assert_int_eq(memcmp(copy, s, n * sizeof(*s)), 0);
	// tau is rounded to fp32, so rows is good to half an ulp of tau.
	double rows = expected_rows(s, n, repeat, tau), tolerance = 1e-5 + fabs((double)tau) * 0x1p-23;
	ck_assert_msg(fabs(rows / budget - 1) < tolerance, "%s: n %u, repeat %g: %.9g rows for a budget of %g, tau %.9g", k->isa,
	              n, repeat, rows, budget, (double)tau);
	free(copy);
}

START_TEST(rows_equal_budget)
{
	const uint32_t counts[] = {1, 2, 17, 1000, 6007};
	const float spreads[] = {0, .5f, 2, 8, 100};
	const double shares[] = {1e-6, .003, .01, .1, .5, .97};
	struct kernels k[ISAS_MAX];
	float *s = floats(6007), *w = floats(6007);
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++)
		for (uint32_t c = 0; c < 5; c++)
			for (uint32_t spread = 0; spread < 5; spread++)
				for (uint32_t share = 0; share < 6; share++)
					for (uint32_t repeat = 1; repeat <= 16; repeat *= 16) {
						gaussian(s, counts[c], c, spreads[spread], 3 - 40 * (float)share);
						check_rows(&k[isa], s, counts[c], repeat, shares[share] * counts[c] * repeat, w);
					}
	free(s);
	free(w);
}
END_TEST

START_TEST(rows_equal_budget_beyond_fp32)
{
	enum { N = 1000 };
	struct kernels k[ISAS_MAX];
	float s[N], w[N];
	const double budgets[] = {.25, .999, 1, 1.001, 2, 10.5, 500, 999, 999.5};
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++) {
		for (uint32_t shape = 0; shape < 4; shape++) {
			for (uint32_t i = 0; i < N; i++) {
				uint32_t at = i * 7 % N;
				s[at] = shape == 0   ? -3.f * (float)i                    // a ladder: many steps of the search
				        : shape == 1 ? (i == 5 ? 300.f : -(float)(i % 9)) // one dominant row
				        : shape == 2 ? (float)i * 100 - 50000             // spans 1e5
				                     : (i < 10 ? 1000.f : -1000.f);       // two levels
			}
			for (uint32_t b = 0; b < 9; b++)
				check_rows(&k[isa], s, N, 1, budgets[b], w);
		}
	}
}
END_TEST

START_TEST(tau_falls_as_the_budget_grows)
{
	enum { N = 3000 };
	struct kernels k;
	float s[N], w[N], last = INFINITY;
	kernels_init_c(&k);
	gaussian(s, N, 5, 3, 0);
	for (double budget = .5; budget < N; budget *= 1.03) {
		float tau = tau_for_budget(&k, s, N, 1, budget, w);
		ck_assert_float_lt(tau, last);
		last = tau;
	}
}
END_TEST

START_TEST(degenerate_input)
{
	enum { N = 64 };
	struct kernels k[ISAS_MAX];
	float s[N], w[N];
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++) {
		gaussian(s, N, 6, 1, 0);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, 0, 16, 10, w), -INFINITY);
		ck_assert_float_eq(tau_for_error(&k[isa], s, 0, 16, .02, -INFINITY, 1, 10, w), -INFINITY);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 16, 16 * N, w), -INFINITY);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 16, 1e9, w), -INFINITY);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 16, INFINITY, w), -INFINITY);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 16, 0, w), INFINITY);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 16, -1, w), INFINITY);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 16, (double)NAN, w), INFINITY);
		for (uint32_t i = 0; i < N; i += 2)
			s[i] = -INFINITY; // rows without weight can not be drawn: the others share the budget
		check_rows(&k[isa], s, N, 1, 8, w);
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 1, N / 2, w), -INFINITY);
		const float bad[] = {NAN, INFINITY};
		for (uint32_t b = 0; b < 2; b++) {
			for (uint32_t at = 0; at < N; at += 9) {
				gaussian(s, N, 6, 1, 0);
				s[at] = bad[b];
				ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 1, 8, w), -INFINITY);
				ck_assert_float_eq(tau_for_error(&k[isa], s, N, 1, .02, -INFINITY, 1, 8, w), -INFINITY);
			}
		}
		for (uint32_t i = 0; i < N; i++)
			s[i] = -INFINITY;
		ck_assert_float_eq(tau_for_budget(&k[isa], s, N, 1, 8, w), -INFINITY);
		ck_assert_float_eq(tau_for_error(&k[isa], s, N, 1, .02, -INFINITY, 1, 8, w), -INFINITY);
		for (uint32_t i = 0; i < N; i++)
			s[i] = 2.5f; // all equal: pi is the share
		ck_assert_float_eq_tol(tau_for_budget(&k[isa], s, N, 1, 8, w), 2.5f - logf(8.f / N), 1e-6f);
	}
}
END_TEST

START_TEST(error_target_is_met_and_tight)
{
	enum { N = 4000 };
	struct kernels k[ISAS_MAX];
	float *s = floats(N), *w = floats(N);
	const double eps[] = {.3, .1, .02, .005}, exact[] = {(double)-INFINITY, 5, 9};
	const float spreads[] = {.5f, 1.5f, 3};
	uint32_t tight = 0;
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++)
		for (uint32_t e = 0; e < 4; e++)
			for (uint32_t x = 0; x < 3; x++)
				for (uint32_t spread = 0; spread < 3; spread++)
					for (uint32_t repeat = 1; repeat <= 16; repeat *= 16) {
						gaussian(s, N, spread, spreads[spread], -2);
						float lse = (float)exact[x];
						float tau = tau_for_error(&k[isa], s, N, repeat, eps[e], lse, 1, 1e9, w);
						double goal = eps[e] * eps[e];
						ck_assert_double_lt(closed_form(s, N, repeat, exact[x], tau), goal * (1 + 1e-5));
						if (expected_rows(s, N, repeat, tau) < 1.00001)
							continue; // the floor binds
						tight++;
						ck_assert_msg(closed_form(s, N, repeat, exact[x], tau + 1.1e-3f) >
						                      goal * (1 - 1e-5),
						              "eps %g, exact %g, spread %g, repeat %u: tau %g is not the largest",
						              eps[e], exact[x], (double)spreads[spread], repeat, (double)tau);
					}
	ck_assert_uint_gt(tight, 50);
	free(s);
	free(w);
}
END_TEST

// The mass as tau_for_share counts it: rows below tau stand for `repeat`, those above for themselves.
static double counted_mass(const float *s, uint32_t n, double repeat, double exact_lse, double tau)
{
	double sum = exact_lse > -INFINITY ? exp(exact_lse) : 0;
	for (uint32_t i = 0; i < n; i++)
		sum += exp((double)s[i]) * ((double)s[i] < tau ? repeat : 1);
	return sum;
}

START_TEST(the_share_is_met_and_the_largest)
{
	enum { N = 4000 };
	struct kernels k[ISAS_MAX];
	float *s = floats(N), *w = floats(N);
	const double shares[] = {.1, .01, .003, 1e-4}, exact[] = {(double)-INFINITY, 5, 9};
	const float spreads[] = {.5f, 1.5f, 3};
	uint32_t tight = 0;
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++)
		for (uint32_t e = 0; e < 4; e++)
			for (uint32_t x = 0; x < 3; x++)
				for (uint32_t spread = 0; spread < 3; spread++)
					for (uint32_t repeat = 1; repeat <= 16; repeat *= 16) {
						gaussian(s, N, spread, spreads[spread], -2);
						double variance;
						float tau = tau_for_share(&k[isa], s, N, repeat, shares[e], (float)exact[x], 1,
						                          1e9, w, (float)(2 * exact[x]), &variance);
						ck_assert_double_eq(variance, relative_variance(&k[isa], s, N, repeat,
						                                                (float)(2 * exact[x]), tau, w));
						// A hair below, for the rows whose weight is tau's to the last bit.
						double at = (double)tau - 1e-5, above = (double)tau + 1e-3;
						ck_assert_double_le(exp(at), shares[e] * counted_mass(s, N, repeat, exact[x],
						                                                      (double)tau + 1e-5));
						ck_assert_double_le(closed_form(s, N, repeat, exact[x], tau),
						                    shares[e] * (1 + 1e-4));
						if (expected_rows(s, N, repeat, tau) < 1.00001)
							continue; // the floor binds
						tight++;
						ck_assert_msg(exp(above) > shares[e] * counted_mass(s, N, repeat, exact[x],
						                                                    (double)tau - 1e-5),
						              "share %g, exact %g, spread %g, repeat %u: tau %g is not a root",
						              shares[e], exact[x], (double)spreads[spread], repeat, (double)tau);
					}
	ck_assert_uint_gt(tight, 50);
	free(s);
	free(w);
}
END_TEST

START_TEST(the_share_is_clamped)
{
	enum { N = 4000, REPEAT = 16 };
	struct kernels k;
	float s[N], w[N];
	kernels_init_c(&k);
	gaussian(s, N, 7, 2, 0);
	float floor_tau = tau_for_budget(&k, s, N, REPEAT, 320, w), cap_tau = tau_for_budget(&k, s, N, REPEAT, 5120, w);
	float free_tau = tau_for_share(&k, s, N, REPEAT, 5e-4, -INFINITY, 0, 1e9, w, 0, NULL);
	double rows = expected_rows(s, N, REPEAT, free_tau);
	ck_assert(rows > 320 && rows < 5120);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 5e-4, -INFINITY, 320, 5120, w, 0, NULL), free_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 5e-4, NAN, 320, 5120, w, 0, NULL), free_tau);
	ck_assert_float_lt(free_tau, tau_for_share(&k, s, N, REPEAT, 5e-4, 11, 320, 5120, w, 0, NULL)); // more mass, fewer rows
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 1, -INFINITY, 320, 5120, w, 0, NULL), floor_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 5e-4, 50, 320, 5120, w, 0, NULL), floor_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 5e-4, INFINITY, 320, 5120, w, 0, NULL), floor_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 1e-9, -INFINITY, 320, 5120, w, 0, NULL), cap_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 0, -INFINITY, 320, 5120, w, 0, NULL), cap_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, (double)NAN, -INFINITY, 320, 5120, w, 0, NULL), cap_tau);
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 1, -INFINITY, 9000, 5120, w, 0, NULL), cap_tau);
	s[3] = NAN;
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 5e-4, -INFINITY, 320, 5120, w, 0, NULL), -INFINITY);
	double variance = 1;
	ck_assert_float_eq(tau_for_share(&k, s, N, REPEAT, 5e-4, -INFINITY, 320, 5120, w, 0, &variance), -INFINITY);
	ck_assert_double_eq(variance, 0);
	ck_assert_float_eq(tau_for_share(&k, s, 0, REPEAT, 5e-4, -INFINITY, 320, 5120, w, 0, NULL), -INFINITY);
}
END_TEST

START_TEST(error_target_is_clamped)
{
	enum { N = 4000, REPEAT = 16 };
	struct kernels k;
	float s[N], w[N];
	kernels_init_c(&k);
	gaussian(s, N, 7, 2, 0);
	float floor_tau = tau_for_budget(&k, s, N, REPEAT, 320, w), cap_tau = tau_for_budget(&k, s, N, REPEAT, 5120, w);
	float free_tau = tau_for_error(&k, s, N, REPEAT, .05, -INFINITY, 0, 1e9, w);
	double rows = expected_rows(s, N, REPEAT, free_tau);
	ck_assert(rows > 320 && rows < 5120);
	ck_assert_float_eq_tol(tau_for_error(&k, s, N, REPEAT, .05, -INFINITY, 320, 5120, w), free_tau, 1.1e-3f);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, 10, -INFINITY, 320, 5120, w), floor_tau);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, 1e-4, -INFINITY, 320, 5120, w), cap_tau);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, 0, -INFINITY, 320, 5120, w), cap_tau);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, (double)NAN, -INFINITY, 320, 5120, w), cap_tau);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, .05, 50, 320, 5120, w), floor_tau); // the window has all the mass
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, .05, INFINITY, 320, 5120, w), floor_tau);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, .05, NAN, 320, 5120, w),
	                   tau_for_error(&k, s, N, REPEAT, .05, -INFINITY, 320, 5120, w));
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, .05, -INFINITY, 9000, 5120, w), cap_tau);
	ck_assert_double_gt(expected_rows(s, N, REPEAT, tau_for_error(&k, s, N, REPEAT, 1e-9, -INFINITY, 320, 1e9, w)),
	                    .999 * N * REPEAT);
	ck_assert_float_eq(tau_for_error(&k, s, N, REPEAT, .05, -INFINITY, 1e9, 1e9, w), -INFINITY);
	float last = -INFINITY;
	for (double eps = .001; eps < 1; eps *= 1.2) {
		float tau = tau_for_error(&k, s, N, 1, eps, -INFINITY, 1, 1e9, w);
		ck_assert_float_ge(tau, last);
		last = tau;
	}
}
END_TEST

START_TEST(variance_is_what_was_asked)
{
	enum { N = 3000, DRAWS = 4000 };
	struct kernels k;
	float *s = floats(N), *w = floats(N);
	const double exact_lse = 6, eps = .04;
	kernels_init_c(&k);
	gaussian(s, N, 8, 1.5f, -1);
	float tau = tau_for_error(&k, s, N, 1, eps, (float)exact_lse, 1, N, w);
	const float *noise = need((void *)noise_table());
	double z = exp(exact_lse), square = 0;
	for (uint32_t i = 0; i < N; i++)
		z += exp((double)s[i]);
	for (uint32_t draw = 0; draw < DRAWS; draw++) {
		const float *u = noise + noise_offset(draw, 1, 2, 3, 4);
		double estimate = exp(exact_lse);
		for (uint32_t i = 0; i < N; i++)
			if (s[i] + u[i] > tau)
				estimate += exp(s[i] > tau ? (double)s[i] : (double)tau);
		square += pow(estimate / z - 1, 2) / DRAWS;
	}
	ck_assert_msg(fabs(sqrt(square) / eps - 1) < .08, "relative deviation %g where %g was asked", sqrt(square), eps);
	free(s);
	free(w);
}
END_TEST

START_TEST(relative_variance_is_the_closed_form)
{
	enum { N = 5003 };
	struct kernels k[ISAS_MAX];
	float *s = floats(N), *w = floats(N);
	const double exact[] = {(double)-INFINITY, 5, 9};
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++)
		for (uint32_t x = 0; x < 3; x++)
			for (uint32_t repeat = 1; repeat <= 16; repeat *= 16)
				for (float tau = -3; tau < 30; tau += 1.7f) {
					gaussian(s, N, 9, 2, 0);
					double want = closed_form(s, N, repeat, exact[x], tau);
					double got = relative_variance(&k[isa], s, N, repeat, (float)exact[x], tau, w);
					ck_assert_msg(fabs(got / want - 1) < 1e-4, "%s: tau %g: %g, not %g", k[isa].isa,
					              (double)tau, got, want);
				}
	ck_assert_double_eq(relative_variance(k, s, N, 1, 0, -INFINITY, w), 0); // every row is certain
	ck_assert_double_eq(relative_variance(k, s, 0, 1, 0, 1, w), 0);
	s[7] = NAN;
	ck_assert_double_eq(relative_variance(k, s, N, 1, 0, 1, w), 0);
	free(s);
	free(w);
}
END_TEST

// The variance of the sample's mass by its definition, sum of w^2 (1 - pi) / pi over all rows, in double.
START_TEST(the_closed_form_is_the_variance_of_a_poisson_sample)
{
	enum { N = 2000 };
	struct kernels k;
	float *s = floats(N), *w = floats(N);
	kernels_init_c(&k);
	gaussian(s, N, 10, 2, 0);
	for (float tau = -2; tau < 12; tau += 1) {
		double variance = 0, mass = 0;
		for (uint32_t i = 0; i < N; i++) {
			double weight = exp((double)s[i]), pi = fmin(1, exp((double)s[i] - (double)tau));
			variance += weight * weight * (1 - pi) / pi;
			mass += weight;
		}
		ck_assert_double_eq_tol(relative_variance(&k, s, N, 1, -INFINITY, tau, w) / (variance / mass / mass), 1, 1e-4);
	}
	free(s);
	free(w);
}
END_TEST

START_TEST(the_floor_grows_like_a_root_for_long_ranges)
{
	ck_assert_double_eq_tol(floor_rows(.005, 20000), 100, 1e-9);
	ck_assert_double_eq_tol(floor_rows(.005, BUDGET_LINEAR_ROWS), .005 * 98304, 1e-9);
	ck_assert_double_eq_tol(floor_rows(.005, 4 * BUDGET_LINEAR_ROWS), 2 * .005 * 98304, 1e-9);
	ck_assert_double_eq_tol(floor_rows(.005, BUDGET_LINEAR_ROWS + 1) / floor_rows(.005, BUDGET_LINEAR_ROWS), 1, 1e-5);
	ck_assert_double_eq(floor_rows(.005, 0), 0);
	ck_assert_double_lt(floor_rows(.005, UINT64_C(1) << 31), .0001 * 0x1p31);
}
END_TEST

int main(void)
{
	return RUN_TESTS("threshold", rows_equal_budget, rows_equal_budget_beyond_fp32, tau_falls_as_the_budget_grows,
	                 degenerate_input, error_target_is_met_and_tight, error_target_is_clamped,
	                 the_share_is_met_and_the_largest, the_share_is_clamped, variance_is_what_was_asked,
	                 relative_variance_is_the_closed_form, the_closed_form_is_the_variance_of_a_poisson_sample,
	                 the_floor_grows_like_a_root_for_long_ranges);
}
