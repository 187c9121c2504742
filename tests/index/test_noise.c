// False alarms: each |z| < Z_LIMIT fails by chance with probability 2e-9 (normal), some 60 comparisons: about 1e-7 in all.
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "tests/index/isas.h"

static const double Z_LIMIT = 6;
enum { M = 1 << NOISE_BITS };

START_TEST(every_stratum_once)
{
	const float *noise = need((void *)noise_table());
	ck_assert_ptr_eq(noise, noise_table());
	uint8_t *seen = need(calloc(M, 1));
	double worst = 0;
	uint32_t distinct = 0;
	for (uint32_t i = 0; i < M; i++) {
		double j = exp(-(double)noise[i]) * M - .5, nearest = rint(j);
		worst = fmax(worst, fabs(j - nearest));
		if (!(nearest >= 0 && nearest < M) || seen[(uint32_t)nearest])
			continue;
		seen[(uint32_t)nearest] = 1;
		distinct++;
	}
	ck_assert_uint_eq(distinct, M);
	ck_assert_double_lt(worst, .25); // of the logarithm's rounding; .5 would be ambiguous
	ck_assert_int_eq(memcmp(noise, noise + M, NOISE_WRAP * sizeof(float)), 0);
	free(seen);
}
END_TEST

// Chi-square of 256 bins as a normal deviate (Wilson and Hilferty 1931).
static double uniformity(const uint32_t *count, uint32_t total)
{
	double chi2 = 0, dof = 255, expected = total / 256.;
	for (uint32_t i = 0; i < 256; i++)
		chi2 += (count[i] - expected) * (count[i] - expected) / expected;
	return (cbrt(chi2 / dof) - (1 - 2 / (9 * dof))) / sqrt(2 / (9 * dof));
}

START_TEST(offsets_are_uniform_in_every_argument)
{
	for (uint32_t field = 0; field < 5; field++) {
		uint32_t count[2][256] = {{0}}, beyond = 0;
		for (uint32_t i = 0; i < 65536; i++) {
			uint64_t x[5] = {7, 6000, 3, 1, 4096};
			x[field] = field == 4 ? i * UINT64_C(4096) : i;
			uint32_t offset = noise_offset(x[0], x[1], (uint32_t)x[2], (uint32_t)x[3], x[4]);
			beyond += offset >= M;
			count[0][offset >> (NOISE_BITS - 8) & 255]++;
			count[1][offset & 255]++;
		}
		ck_assert_uint_eq(beyond, 0);
		for (uint32_t c = 0; c < 2; c++)
			ck_assert_double_lt(fabs(uniformity(count[c], 65536)), Z_LIMIT);
	}
}
END_TEST

START_TEST(offsets_name_what_they_are_for)
{
	uint32_t base = noise_offset(1, 2, 3, 4, 5);
	ck_assert_uint_eq(base, noise_offset(1, 2, 3, 4, 5));
	ck_assert_uint_ne(base, noise_offset(2, 1, 3, 4, 5));
	ck_assert_uint_ne(base, noise_offset(1, 2, 4, 3, 5));
	ck_assert_uint_ne(base, noise_offset(1, 2, 3, 4, 6));
	ck_assert_uint_ne(base, noise_offset(1, 3, 3, 4, 5));
}
END_TEST

START_TEST(inclusion_frequency_is_pi_by_decile)
{
	enum { ROWS = 4096, RUNS = 4000 };
	const float *noise = noise_table();
	float *log_pi = floats(ROWS);
	uint32_t decile[ROWS];
	struct rng rng = {11};
	double expected[10] = {0}, variance[10] = {0}, found[10] = {0};
	for (uint32_t i = 0; i < ROWS; i++) {
		log_pi[i] = (float)(log(1e-4) * rng_uniform(&rng));
		decile[i] = (uint32_t)((double)log_pi[i] / log(1e-4) * 10);
		double pi = exp((double)log_pi[i]);
		expected[decile[i]] += RUNS * pi;
		variance[decile[i]] += RUNS * pi * (1 - pi);
	}
	for (uint32_t run = 0; run < RUNS; run++) {
		const float *u = noise + noise_offset(run, 0, 0, 0, 0);
		for (uint32_t i = 0; i < ROWS; i++)
			found[decile[i]] += log_pi[i] + u[i] > 0;
	}
	for (uint32_t d = 0; d < 10; d++)
		ck_assert_msg(fabs(found[d] - expected[d]) < Z_LIMIT * sqrt(variance[d]),
		              "decile %u of log pi: %.0f rows, expected %.1f +- %.1f", d, found[d], expected[d],
		              sqrt(variance[d]));
	free(log_pi);
}
END_TEST

START_TEST(neighbours_are_independent)
{
	const float *noise = noise_table();
	const uint32_t lags[] = {1, 2, 16, 256, 4096};
	const double probabilities[] = {.3, .03, .003};
	for (uint32_t l = 0; l < 5; l++) {
		for (uint32_t p = 0; p < 3; p++) {
			uint32_t both = 0;
			double pi = probabilities[p], expected = M * pi * pi;
			float threshold = (float)-log(pi);
			for (uint32_t i = 0; i < M; i++)
				both += (noise[i] > threshold) & (noise[(i + lags[l]) % M] > threshold);
			ck_assert_msg(fabs(both - expected) < Z_LIMIT * sqrt(expected), "lag %u, pi %g: %u pairs, expected %.1f",
			              lags[l], pi, both, expected);
		}
	}
}
END_TEST

int main(void)
{
	return RUN_TESTS("noise", every_stratum_once, offsets_are_uniform_in_every_argument, offsets_name_what_they_are_for,
	                 inclusion_frequency_is_pi_by_decile, neighbours_are_independent);
}
