// False alarms: means are compared at 5.5 standard errors (4e-8 each, 15 comparisons: 6e-7); spreads at 4 %, eight or more of
// their standard errors.
#include <float.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "tests/index/isas.h"

static const uint32_t BITS[] = {1, 2, 4};
static const double STEP[] = {1, .9957, .3352};

static double offset_of(uint32_t bits)
{
	return ((1 << bits) - 1) / 2.;
}

// The code of dimension `dim` of row `row`, by the layout of daemon/kernels/kernels.h.
static uint32_t code_at(const uint8_t *codes, uint32_t d_pad, uint32_t bits, uint32_t row, uint32_t dim)
{
	uint32_t bytes = d_pad * bits / 8, field = dim / bytes, word = dim % bytes / 4, byte = dim % 4;
	const uint8_t *group = codes + (size_t)(row / 16) * 16 * bytes;
	return group[word * 64 + row % 16 * 4 + byte] >> (bits * field) & ((1u << bits) - 1);
}

static double dot(const float *a, const float *b, uint32_t n)
{
	double sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += (double)a[i] * (double)b[i];
	return sum;
}

START_TEST(rotation_is_orthonormal)
{
	struct kernels k[ISAS_MAX];
	for (uint32_t i = 0, count = isas(k); i < count; i++) {
		for (uint32_t d = 64; d <= 256; d *= 2) {
			float signs[3 * 256], *column = floats((size_t)d * d);
			sig_signs(5, 1, 2, d, signs);
			for (uint32_t c = 0; c < d; c++) {
				column[c * d + c] = 1;
				k[i].rotate(column + c * d, d, signs);
			}
			for (uint32_t a = 0; a < d; a++)
				for (uint32_t b = 0; b <= a; b++)
					ck_assert_double_lt(fabs(dot(column + a * d, column + b * d, d) - (a == b)), 1e-6);
			free(column);
		}
	}
}
END_TEST

START_TEST(signs_are_signs)
{
	float a[768], b[768];
	sig_signs(5, 1, 2, 256, a);
	sig_signs(5, 1, 2, 256, b);
	ck_assert_int_eq(memcmp(a, b, sizeof(a)), 0);
	double sum = 0, same = 0;
	sig_signs(5, 2, 1, 256, b);
	for (uint32_t j = 0; j < 768; j++) {
		ck_assert_float_eq(fabsf(a[j]), 1);
		sum += (double)a[j];
		same += (double)(a[j] * b[j]);
	}
	ck_assert_double_lt(fabs(sum), 6 * sqrt(768));
	ck_assert_double_lt(fabs(same), 6 * sqrt(768));
}
END_TEST

START_TEST(fit_follows_the_formula)
{
	struct kernels best;
	kernels_init(&best, cpu_features(), NULL, 0);
	enum { N = 500, R = 40, D = 80 };
	struct rng rng = {3};
	float *keys = floats(N * D), *queries = floats(R * D), mu[D], balance[D];
	rng_gaussian(&rng, keys, N * D);
	rng_gaussian(&rng, queries, R * D);
	for (uint32_t i = 0; i < N; i++)
		for (uint32_t j = 0; j < D; j++)
			keys[i * D + j] = keys[i * D + j] * (.1f + (float)j) + 3 * (float)j;
	for (uint32_t i = 0; i < R; i++)
		for (uint32_t j = 0; j < D; j++)
			queries[i * D + j] *= 1 + (float)(j % 7);
	for (int with_queries = 0; with_queries < 2; with_queries++) {
		double mean[D] = {0}, std[D] = {0}, rms[D] = {0}, mean_std = 0, mean_rms = 0, square = 0, a[D];
		for (uint32_t j = 0; j < D; j++) {
			for (uint32_t i = 0; i < N; i++)
				mean[j] += (double)keys[i * D + j] / N;
			for (uint32_t i = 0; i < N; i++)
				std[j] += pow((double)keys[i * D + j] - mean[j], 2) / N;
			for (uint32_t i = 0; i < R; i++)
				rms[j] += pow((double)queries[i * D + j], 2) / R;
			std[j] = sqrt(std[j]);
			rms[j] = with_queries ? sqrt(rms[j]) : 1;
			mean_std += std[j] / D;
			mean_rms += rms[j] / D;
		}
		for (uint32_t j = 0; j < D; j++) {
			a[j] = sqrt((rms[j] + .3 * mean_rms) / (std[j] + .05 * mean_std));
			square += a[j] * a[j] * std[j] * std[j] / D;
		}
		sig_fit(&best, keys, N, with_queries ? queries : NULL, with_queries ? R : 0, D, mu, balance);
		for (uint32_t j = 0; j < D; j++) {
			ck_assert_double_lt(fabs((double)mu[j] - mean[j]), 1e-5 * (1 + fabs(mean[j])));
			ck_assert_double_lt(fabs((double)balance[j] * sqrt(square) / a[j] - 1), 1e-5);
		}
		double x2 = 0;
		for (uint32_t i = 0; i < N; i++)
			for (uint32_t j = 0; j < D; j++)
				x2 += pow(((double)keys[i * D + j] - (double)mu[j]) * (double)balance[j], 2) / (N * D);
		ck_assert_double_lt(fabs(x2 - 1), 1e-5);
	}
	free(keys);
	free(queries);
}
END_TEST

START_TEST(fit_of_degenerate_input)
{
	struct kernels best;
	kernels_init(&best, cpu_features(), NULL, 0);
	enum { D = 64 };
	float keys[3 * D], zeros[D] = {0}, mu[D], balance[D];
	for (uint32_t j = 0; j < 3 * D; j++)
		keys[j] = 2.5f;
	sig_fit(&best, keys, 3, zeros, 1, D, mu, balance); // identical keys
	for (uint32_t j = 0; j < D; j++) {
		ck_assert_float_eq(mu[j], 2.5f);
		ck_assert_float_eq(balance[j], 1);
	}
	sig_fit(&best, keys, 1, NULL, 0, D, mu, balance); // one key
	ck_assert_float_eq(balance[0], 1);
	keys[7] = 100; // one dimension that moves, queries of zeros
	sig_fit(&best, keys, 3, zeros, 1, D, mu, balance);
	float flat[D];
	sig_fit(&best, keys, 3, NULL, 0, D, mu, flat);
	for (uint32_t j = 0; j < D; j++) {
		ck_assert(isfinite(balance[j]) && balance[j] > 0);
		ck_assert_float_eq(balance[j], flat[j]);
	}
}
END_TEST

// Parameters whose balance is not trivial.
struct setup {
	struct sig_params p;
	float mu[SIG_MAX_DIM], balance[SIG_MAX_DIM], signs[3 * SIG_MAX_DIM];
};

static void setup(struct setup *s, uint64_t seed, uint32_t d, uint32_t d_pad, uint32_t bits)
{
	struct rng rng = {seed};
	rng_gaussian(&rng, s->mu, d);
	for (uint32_t j = 0; j < d; j++)
		s->balance[j] = (float)(.5 + rng_uniform(&rng));
	sig_signs(seed, 0, 0, d_pad, s->signs);
	s->p = (struct sig_params){d, d_pad, bits, s->mu, s->balance, s->signs};
}

static void balanced(const struct kernels *k, const struct sig_params *p, const float *key, float *x)
{
	memset(x, 0, p->d_pad * sizeof(float));
	for (uint32_t j = 0; j < p->d_k; j++)
		x[j] = (key[j] - p->mu[j]) * p->balance[j];
	k->rotate(x, p->d_pad, p->signs);
}

START_TEST(codes_and_factors)
{
	enum { ROWS = 37 };
	const uint32_t dims[][2] = {{64, 64}, {80, 128}, {96, 128}, {128, 128}, {256, 256}};
	struct kernels k[ISAS_MAX];
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++) {
		for (uint32_t c = 0; c < 15; c++) {
			uint32_t d = dims[c / 3][0], d_pad = dims[c / 3][1], bits = BITS[c % 3];
			double step = STEP[c % 3], offset = offset_of(bits);
			struct setup s;
			setup(&s, c + 1, d, d_pad, bits);
			struct rng rng = {c};
			float *keys = floats(ROWS * d), x[SIG_MAX_DIM], scratch[SIG_MAX_DIM];
			rng_gaussian(&rng, keys, ROWS * d);
			size_t bytes = sig_code_bytes(d_pad, bits, ROWS);
			ck_assert_uint_eq(bytes, 48 * d_pad * bits / 8);
			uint8_t *codes = need(malloc(bytes));
			uint16_t factors[ROWS];
			for (uint32_t i = 0; i < ROWS; i++)
				sig_encode(&k[isa], &s.p, keys + i * d, codes, factors, i, scratch);
			for (uint32_t i = 0; i < ROWS; i++) {
				balanced(&k[isa], &s.p, keys + i * d, x);
				double square = dot(x, x, d_pad), sigma = sqrt(square / d_pad), product = 0;
				for (uint32_t j = 0; j < d_pad; j++) {
					double cell = (double)x[j] / (step * sigma) + offset + .5;
					uint32_t code = code_at(codes, d_pad, bits, i, j), top = (1u << bits) - 1;
					uint32_t expected = cell < 0 ? 0 : cell >= top ? top : (uint32_t)cell;
					ck_assert_msg(code == expected || fabs(cell - rint(cell)) < 1e-5,
					              "row %u, dimension %u: code %u, cell %g", i, j, code, cell);
					product += (code - offset) * (double)x[j];
				}
				ck_assert_double_lt(fabs((double)f16_to_f32(factors[i]) * product / square - 1), 0x1p-10);
			}
			free(keys);
			free(codes);
		}
	}
}
END_TEST

// Whole groups at a time, on every ISA, give what plain C gives key by key, to the bit: any number of rows from any row on, with keys among
// them that are the centre, huge, tiny or not finite. Bf16 keys, of any alignment, too.
START_TEST(groups_of_keys)
{
	enum { ROWS = 70, GROUPS = 80 };
	const uint32_t dims[][2] = {{64, 64}, {80, 128}, {96, 128}, {128, 128}, {160, 256}, {256, 256}};
	struct kernels k[ISAS_MAX], plain;
	kernels_init_c(&plain);
	uint32_t with_groups = 0;
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++) {
		with_groups += k[isa].sig_encode16 != NULL;
		for (uint32_t c = 0; c < 18; c++) {
			uint32_t d = dims[c / 3][0], d_pad = dims[c / 3][1], bits = BITS[c % 3];
			struct setup s;
			setup(&s, c + 1, d, d_pad, bits);
			struct rng rng = {c};
			float *keys = floats(ROWS * d), scratch[SIG_MAX_DIM];
			rng_gaussian(&rng, keys, ROWS * d);
			for (uint32_t i = 0; i < ROWS; i++)
				for (uint32_t j = 0; j < d; j++) {
					float *x = &keys[i * d + j];
					*x *= i % 10 == 1 ? 1e18f : i % 10 == 2 ? 1e-18f : i % 10 == 3 ? 3e37f : 1;
					*x = i == 5 ? s.mu[j] : i == 25 ? s.mu[j] + (j ? 0 : 1e-21f) : *x;
				}
			keys[7 * d + 3] = INFINITY, keys[17 * d + 1] = NAN, keys[33 * d] = -INFINITY;
			size_t bytes = sig_code_bytes(d_pad, bits, GROUPS);
			uint8_t *codes = need(malloc(bytes)), *want = need(malloc(bytes));
			uint16_t factors[GROUPS], want_factors[GROUPS];
			for (uint32_t row = 0; row < 10; row += 3)
				for (uint32_t n = 1; n <= ROWS; n += 23) {
					memset(codes, 0xa5, bytes), memset(want, 0xa5, bytes);
					memset(factors, 0xa5, sizeof(factors)), memset(want_factors, 0xa5, sizeof(factors));
					sig_encode_rows(&k[isa], &s.p, keys, n, codes, factors, row);
					for (uint32_t i = 0; i < n; i++)
						sig_encode(&plain, &s.p, keys + i * d, want, want_factors, row + i, scratch);
					ck_assert_mem_eq(factors, want_factors, sizeof(factors));
					ck_assert_mem_eq(codes, want, bytes);
				}
			size_t stride = 2 * d + 6;
			uint8_t *halves = need(malloc(ROWS * stride + 2));
			for (uint32_t i = 0; i < ROWS * d; i++) {
				uint16_t half = f32_to_bf16(keys[i]);
				keys[i] = bf16_to_f32(half);
				memcpy(halves + 2 + i / d * stride + i % d * 2, &half, 2);
			}
			for (uint32_t row = 0; row < 10; row += 3)
				for (uint32_t n = 1; n <= ROWS; n += 23) {
					memset(codes, 0xa5, bytes), memset(want, 0xa5, bytes);
					memset(factors, 0xa5, sizeof(factors)), memset(want_factors, 0xa5, sizeof(factors));
					sig_encode_bf16(&k[isa], &s.p, halves + 2, stride, n, codes, factors, row);
					for (uint32_t i = 0; i < n; i++)
						sig_encode(&plain, &s.p, keys + i * d, want, want_factors, row + i, scratch);
					ck_assert_mem_eq(factors, want_factors, sizeof(factors));
					ck_assert_mem_eq(codes, want, bytes);
				}
			free(keys), free(codes), free(want), free(halves);
		}
	}
	ck_assert(with_groups || !(cpu_features() & CPU_AVX512));
}
END_TEST

START_TEST(extreme_keys)
{
	struct kernels k;
	struct setup s;
	float scratch[64], key[64];
	uint16_t factor[16];
	kernels_init_c(&k);
	for (uint32_t b = 0; b < 3; b++) {
		setup(&s, 9, 64, 64, BITS[b]);
		uint8_t codes[16 * 64 / 2];
		memcpy(key, s.mu, sizeof(key)); // the centre itself
		sig_encode(&k, &s.p, key, codes, factor, 0, scratch);
		ck_assert_float_eq(f16_to_f32(factor[0]), 0);
		for (uint32_t j = 0; j < 64; j++)
			key[j] = j % 2 ? 1e15f : -2e15f; // a factor beyond fp16
		sig_encode(&k, &s.p, key, codes, factor, 1, scratch);
		ck_assert_float_eq(f16_to_f32(factor[1]), 65504);
		const float bad[] = {3e38f, INFINITY, NAN, 1e-42f};
		for (uint32_t i = 0; i < 4; i++) { // no finite |x|^2: nothing is known, the estimate is the bias
			for (uint32_t j = 0; j < 64; j++)
				key[j] = i == 3 ? s.mu[j] + bad[i] : bad[i];
			sig_encode(&k, &s.p, key, codes, factor, 2, scratch);
			ck_assert_float_eq(f16_to_f32(factor[2]), 0);
		}
	}
}
END_TEST

START_TEST(query_codes)
{
	const uint32_t dims[][2] = {{64, 64}, {80, 128}, {128, 128}, {256, 256}};
	struct kernels k[ISAS_MAX];
	for (uint32_t isa = 0, count = isas(k); isa < count; isa++) {
		for (uint32_t c = 0; c < 4; c++) {
			uint32_t d = dims[c][0], d_pad = dims[c][1];
			struct setup s;
			setup(&s, c + 77, d, d_pad, 2);
			struct rng rng = {c};
			float q[SIG_MAX_DIM], rotated[SIG_MAX_DIM] = {0}, scratch[SIG_MAX_DIM], scale, q_mu;
			int8_t out[SIG_MAX_DIM];
			rng_gaussian(&rng, q, d);
			sig_encode_query(&k[isa], &s.p, q, out, &scale, &q_mu, scratch);
			for (uint32_t j = 0; j < d; j++)
				rotated[j] = q[j] / s.balance[j];
			k[isa].rotate(rotated, d_pad, s.signs);
			int largest = 0;
			for (uint32_t j = 0; j < d_pad; j++) {
				ck_assert_double_lt(fabs((double)rotated[j] - (double)scale * out[j]), .5001 * (double)scale);
				largest = abs(out[j]) > largest ? abs(out[j]) : largest;
			}
			ck_assert_int_eq(largest, 127);
			ck_assert_double_lt(fabs((double)q_mu - dot(q, s.mu, d)), 1e-5);

			const float odd[] = {0, NAN, INFINITY, 1e-44f};
			for (uint32_t i = 0; i < 4; i++) {
				for (uint32_t j = 0; j < d; j++)
					q[j] = odd[i];
				sig_encode_query(&k[isa], &s.p, q, out, &scale, &q_mu, scratch);
				ck_assert_float_eq(scale, 0);
				for (uint32_t j = 0; j < d_pad; j++)
					ck_assert_int_eq(out[j], 0);
			}
		}
	}
}
END_TEST

// q.k by way of the signature and the estimate kernel.
// g, if not NULL, gets the key's factor.
static float estimate_with_factor(const struct kernels *k, const struct sig_params *p, const float *key, const float *q, float *g)
{
	uint8_t codes[16 * SIG_MAX_DIM / 2];
	uint16_t factor[16];
	float scratch[SIG_MAX_DIM], scale, q_mu, out[16];
	int8_t q8[SIG_MAX_DIM];
	int32_t sum = 0;
	memset(codes, 0, sizeof(codes));
	sig_encode(k, p, key, codes, factor, 0, scratch);
	sig_encode_query(k, p, q, q8, &scale, &q_mu, scratch);
	for (uint32_t j = 0; j < p->d_pad; j++)
		sum += q8[j];
	struct sig_query query = {.q = q8, .factor = scale, .zero = (float)(offset_of(p->bits) * sum), .bias = q_mu};
	k->sig_estimate(codes, factor, 1, p->d_pad, p->bits, &query, 1, out, 16);
	if (g)
		*g = f16_to_f32(factor[0]);
	return out[0];
}

static float estimate(const struct kernels *k, const struct sig_params *p, const float *key, const float *q)
{
	return estimate_with_factor(k, p, key, q, NULL);
}

START_TEST(unbiased_over_rotations)
{
	enum { ROTATIONS = 4000 };
	const uint32_t dims[][2] = {{64, 64}, {80, 128}, {96, 128}, {128, 128}, {256, 256}};
	struct kernels k[ISAS_MAX];
	uint32_t isa = isas(k) - 1; // the estimates of all ISAs are equal to the bit
	for (uint32_t c = 0; c < 15; c++) {
		uint32_t d = dims[c / 3][0], d_pad = dims[c / 3][1];
		struct setup s;
		setup(&s, c + 1, d, d_pad, BITS[c % 3]);
		struct rng rng = {c + 100};
		float key[SIG_MAX_DIM], q[SIG_MAX_DIM];
		rng_gaussian(&rng, key, d);
		rng_gaussian(&rng, q, d);
		for (uint32_t j = 0; j < d; j++)
			key[j] += .3f * q[j];
		double mean = 0, square = 0, truth = dot(q, key, d);
		for (uint32_t r = 0; r < ROTATIONS; r++) {
			sig_signs(r, c, 0, d_pad, s.signs);
			double error = (double)estimate(&k[isa], &s.p, key, q) - truth;
			mean += error / ROTATIONS;
			square += error * error / ROTATIONS;
		}
		double se = sqrt((square - mean * mean) / ROTATIONS);
		ck_assert_msg(fabs(mean) < 5.5 * se, "d %u, %u bits: mean error %g, standard error %g", d, BITS[c % 3], mean, se);
		ck_assert_double_lt(se,
		                    .003 * sqrt(dot(q, q, d) * dot(key, key, d))); // so that a bias of 2 % of |q| |k| would show
	}
}
END_TEST

// A b-bit code that keeps a share rho^2 of a Gaussian vector's square leaves |q| |x| / sqrt(d) sqrt(1 / rho^2 - 1) of noise:
// rho^2 = 2 / pi for the sign, .8812 and .98846 for the best uniform grids of 4 and 16 levels (Max 1960, table II).
START_TEST(noise_of_gaussian_keys)
{
	enum { D = 128, PAIRS = 20000 };
	const double rho2[] = {2 / M_PI, .8812, .98846};
	struct kernels k[ISAS_MAX];
	uint32_t isa = isas(k) - 1;
	for (uint32_t b = 0; b < 3; b++) {
		struct rng rng = {b};
		struct setup s;
		setup(&s, 1, D, D, BITS[b]);
		memset(s.mu, 0, sizeof(s.mu));
		for (uint32_t j = 0; j < D; j++)
			s.balance[j] = 1;
		double square = 0, by_factor = 0;
		for (uint32_t i = 0; i < PAIRS; i++) {
			float key[D], q[D], g;
			rng_gaussian(&rng, key, D);
			rng_gaussian(&rng, q, D);
			double error = (double)estimate_with_factor(&k[isa], &s.p, key, q, &g) - dot(key, q, D);
			by_factor += error * error / ((double)g * (double)g * dot(q, q, D) * PAIRS);
			double qx = dot(key, q, D), perpendicular = dot(key, key, D) * dot(q, q, D) - qx * qx;
			square += error * error / perpendicular * (D - 1) / PAIRS;
		}
		double expected = sqrt(1 / rho2[b] - 1);
		ck_assert_msg(fabs(sqrt(square) / expected - 1) < .04, "%u bits: noise %g, expected %g", BITS[b], sqrt(square),
		              expected);
		ck_assert_msg(fabs(sqrt(by_factor) / (double)sig_noise(BITS[b]) - 1) < .04,
		              "%u bits: noise %g g |q|, expected %g", BITS[b], sqrt(by_factor), (double)sig_noise(BITS[b]));
	}
}
END_TEST

START_TEST(balance_pays_on_skewed_keys)
{
	struct kernels best;
	kernels_init(&best, cpu_features(), NULL, 0);
	enum { D = 64, N = 2000, R = 64 };
	struct kernels k[ISAS_MAX];
	uint32_t isa = isas(k) - 1;
	struct rng rng = {4};
	float *keys = floats(N * D), *queries = floats(R * D), mu[D], balance[D], flat[D], signs[3 * D];
	rng_gaussian(&rng, keys, N * D);
	rng_gaussian(&rng, queries, R * D);
	for (uint32_t j = 0; j < D; j++) { // a few dimensions carry the keys, others the queries
		float spread = j < 4 ? 20 : j % 2 ? 1 : .5f, size = j < 4 ? .1f : 1;
		for (uint32_t i = 0; i < N; i++)
			keys[i * D + j] = keys[i * D + j] * spread + 5;
		for (uint32_t i = 0; i < R; i++)
			queries[i * D + j] *= size;
	}
	sig_fit(&best, keys, N, queries, R, D, mu, balance);
	for (uint32_t j = 0; j < D; j++)
		flat[j] = .2f;
	sig_signs(1, 0, 0, D, signs);
	for (uint32_t b = 0; b < 3; b++) {
		double square[2] = {0};
		for (uint32_t i = 0; i < N; i++) {
			const float *q = queries + i % R * D;
			for (uint32_t with = 0; with < 2; with++) {
				struct sig_params p = {D, D, BITS[b], mu, with ? balance : flat, signs};
				double error = (double)estimate(&k[isa], &p, keys + i * D, q) - dot(keys + i * D, q, D);
				square[with] += error * error;
			}
		}
		ck_assert_msg(square[1] < .2 * square[0], "%u bits: balanced noise %g, unbalanced %g", BITS[b],
		              sqrt(square[1] / N), sqrt(square[0] / N));
	}
	free(keys);
	free(queries);
}
END_TEST

int main(void)
{
	return RUN_TESTS("signature", rotation_is_orthonormal, signs_are_signs, fit_follows_the_formula, fit_of_degenerate_input,
	                 codes_and_factors, groups_of_keys, extreme_keys, query_codes, unbiased_over_rotations,
	                 noise_of_gaussian_keys, balance_pays_on_skewed_keys);
}
