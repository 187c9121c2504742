// The upper layer: what it holds of every row, and how groups are weighed and drawn. Nothing here is left to chance.
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/upper.h"
#include "tests/index/isas.h"

enum { D = 128, ROWS = 3000 };

// Codes of ROWS rows in runs of unequal length; clusters of 40 rows about the same point, shuffled.
struct rows {
	float *x; // [ROWS][D]
	uint8_t *codes[3];
	uint16_t *factors[3];
	struct sig_run run[3];
};

static void rows_init(struct rows *r, uint32_t bits, float spread)
{
	static const uint32_t RUN[3] = {256, 2048, ROWS - 2304};
	struct rng rng = {bits};
	float *centre = floats((size_t)ROWS / 40 * D);
	rng_gaussian(&rng, centre, (size_t)ROWS / 40 * D);
	r->x = floats((size_t)ROWS * D);
	rng_gaussian(&rng, r->x, (size_t)ROWS * D);
	for (uint32_t i = 0; i < ROWS; i++)
		for (uint32_t j = 0; j < D; j++)
			r->x[i * D + j] = spread * r->x[i * D + j] + centre[i % (ROWS / 40) * D + j];
	for (uint32_t k = 0, row = 0; k < 3; k++) {
		r->codes[k] = need(calloc(1, sig_code_bytes(D, bits, RUN[k])));
		r->factors[k] = need(calloc((RUN[k] + SIG_GROUP - 1) / SIG_GROUP * SIG_GROUP, 2)); // whole groups are estimated
		for (uint32_t i = 0; i < RUN[k]; i++, row++)
			sig_encode_rotated(bits, r->x + (size_t)row * D, D, r->codes[k], r->factors[k], i);
		r->run[k] = (struct sig_run){r->codes[k], r->factors[k], RUN[k]};
	}
	free(centre);
}

static void rows_free(struct rows *r)
{
	for (uint32_t k = 0; k < 3; k++) {
		free(r->codes[k]);
		free(r->factors[k]);
	}
	free(r->x);
}

static void *build(const struct kernels *k, const struct rows *r, uint32_t bits, uint32_t rows)
{
	void *memory = need(aligned_alloc(64, (sig_upper_bytes(D, bits, rows) + 63) & ~(size_t)63));
	void *scratch = need(aligned_alloc(64, (upper_scratch_bytes(D, rows) + 63) & ~(size_t)63));
	upper_build(k, D, bits, r->run, rows, memory, scratch);
	free(scratch);
	return memory;
}

// What the scan makes of one row: its estimate against `query`.
static float estimate_of(const struct kernels *k, const uint8_t *codes, const uint16_t *factors, uint32_t row, uint32_t bits,
                         const struct sig_query *query)
{
	float out[SIG_GROUP];
	uint32_t group = row / SIG_GROUP;
	k->sig_estimate_groups(codes, factors, &group, 1, D, bits, query, 1, out, SIG_GROUP);
	return out[row % SIG_GROUP];
}

static struct sig_query make_query(int8_t *q, uint64_t seed, uint32_t bits)
{
	struct rng rng = {seed};
	int32_t sum = 0;
	for (uint32_t j = 0; j < D; j++) {
		q[j] = (int8_t)rng_next(&rng);
		sum += q[j];
	}
	return (struct sig_query){.q = q,
	                          .factor = .001f,
	                          .zero = (bits == 1   ? .5f
	                                   : bits == 2 ? 1.5f
	                                               : 7.5f) *
	                                  (float)sum,
	                          .bias = 1};
}

START_TEST(every_row_once_with_its_own_code)
{
	static const uint32_t BITS[] = {1, 2, 4}, COUNT[] = {1, 15, 16, 17, 256, 2304, 2999, ROWS};
	struct kernels k[ISAS_MAX];
	(void)isas(k);
	for (uint32_t b = 0; b < 3; b++) {
		struct rows r;
		int8_t q[D];
		rows_init(&r, BITS[b], .3f);
		struct sig_query query = make_query(q, 7, BITS[b]);
		for (uint32_t c = 0; c < 8; c++) {
			uint8_t *memory = build(&k[0], &r, BITS[b], COUNT[c]);
			struct upper u = upper_at(memory, D, BITS[b], COUNT[c]);
			uint8_t seen[ROWS] = {0};
			ck_assert_uint_eq(u.groups, (COUNT[c] + 15) / 16);
			ck_assert_ptr_eq(u.code_factors + sig_upper_groups(COUNT[c]) * SIG_GROUP,
			                 memory + sig_upper_bytes(D, BITS[b], COUNT[c]));
			for (uint32_t i = 0; i < COUNT[c]; i++) {
				uint32_t row = u.row[i], run = row < 256 ? 0 : row < 2304 ? 1 : 2;
				ck_assert_uint_lt(row, COUNT[c]);
				ck_assert(!seen[row]);
				seen[row] = 1;
				float want = estimate_of(&k[0], r.codes[run], r.factors[run],
				                         row - (run == 0   ? 0
				                                : run == 1 ? 256
				                                           : 2304),
				                         BITS[b], &query);
				float got = estimate_of(&k[0], u.codes, u.code_factors, i, BITS[b], &query);
				ck_assert_msg(!memcmp(&want, &got, 4), "row %u at %u: %g, want %g", row, i, (double)got,
				              (double)want);
			}
			ck_assert(upper_good(D, BITS[b], memory, COUNT[c]));
			u.row[COUNT[c] / 2] = u.row[0]; // twice, unless it is the only one; or not there
			ck_assert_int_eq(upper_good(D, BITS[b], memory, COUNT[c]), COUNT[c] == 1);
			u.row[COUNT[c] / 2] = (uint16_t)COUNT[c];
			ck_assert(!upper_good(D, BITS[b], memory, COUNT[c]));
			free(memory);
		}
		rows_free(&r);
	}
}
END_TEST

// A group's summary is that of the mean of its codes, and its spread their variance about it.
START_TEST(summaries_are_of_the_codes)
{
	struct kernels k[ISAS_MAX];
	(void)isas(k);
	struct rows r;
	rows_init(&r, 2, .3f);
	uint8_t *memory = build(&k[0], &r, 2, ROWS);
	struct upper u = upper_at(memory, D, 2, ROWS);
	double worst = 0;
	for (uint32_t g = 0; g < u.groups; g++) {
		uint32_t n = ROWS - g * 16 < 16 ? ROWS - g * 16 : 16;
		double mean[D] = {0}, squares = 0, size = 0, error = 0;
		for (uint32_t j = 0; j < D; j++) {
			int8_t q[D] = {0}; // picks one coordinate
			q[j] = 1;
			struct sig_query fine = {.q = q, .factor = 1, .zero = 1.5f}, coarse = {.q = q, .factor = 1, .zero = 7.5f};
			for (uint32_t i = 0; i < n; i++) {
				double x = (double)estimate_of(&k[0], u.codes, u.code_factors, g * 16 + i, 2, &fine);
				mean[j] += x / n;
				squares += x * x / n;
			}
			double centroid = (double)estimate_of(&k[0], u.summaries, u.factors, g, 4, &coarse);
			size += mean[j] * mean[j];
			error += (centroid - mean[j]) * (centroid - mean[j]);
		}
		ck_assert_double_lt(fabs((double)f16_to_f32(u.spreads[g]) - (squares - size) / D), 1e-3 * squares / D);
		worst = fmax(worst, sqrt(error / size));
	}
	ck_assert_double_lt(worst, .2); // four bits: .11 in the mean
	free(memory);
	rows_free(&r);
}
END_TEST

START_TEST(alike_rows_share_groups)
{
	struct kernels k[ISAS_MAX];
	uint32_t count = isas(k);
	struct rows r;
	rows_init(&r, 2, .1f);
	uint8_t *first = build(&k[0], &r, 2, ROWS);
	struct upper u = upper_at(first, D, 2, ROWS);
	double between = 0;
	for (uint32_t g = 0; g < u.groups; g++)
		between += (double)f16_to_f32(u.spreads[g]) / u.groups;
	ck_assert_double_lt(between, .35);     // in any order it is the whole: about 1
	for (uint32_t i = 1; i < count; i++) { // and the same on every ISA
		uint8_t *other = build(&k[i], &r, 2, ROWS);
		ck_assert(!memcmp(first, other, sig_upper_bytes(D, 2, ROWS)));
		free(other);
	}
	free(first);
	rows_free(&r);
}
END_TEST

START_TEST(odd_rows)
{
	struct kernels k[ISAS_MAX];
	(void)isas(k);
	struct rows r;
	for (uint32_t kind = 0; kind < 3; kind++) {
		rows_init(&r, 2, 1);
		for (uint32_t run = 0, row = 0; run < 3; run++)
			for (uint32_t i = 0; i < r.run[run].rows; i++, row++) {
				for (uint32_t j = 0; j < D; j++)
					r.x[row * D + j] = kind == 0 ? 0 : kind == 1 ? 1 : row == 77 ? 3e4f : r.x[row * D + j];
				sig_encode_rotated(2, r.x + (size_t)row * D, D, r.codes[run], r.factors[run], i);
			}
		uint8_t *memory = build(&k[0], &r, 2, ROWS), seen[ROWS] = {0};
		struct upper u = upper_at(memory, D, 2, ROWS);
		for (uint32_t i = 0; i < ROWS; i++)
			seen[u.row[i]]++;
		for (uint32_t i = 0; i < ROWS; i++)
			ck_assert_uint_eq(seen[i], 1);
		for (uint32_t g = 0; g < u.groups; g++)
			ck_assert(isfinite(f16_to_f32(u.spreads[g])) && isfinite(f16_to_f32(u.factors[g])));
		free(memory);
		rows_free(&r);
	}
}
END_TEST

START_TEST(weighing_and_drawing)
{
	enum { N = 1003 };
	struct rng rng = {5};
	float estimate[2][N], before[2][N], spread[N], noise[N], most[N], nearest[N];
	rng_gaussian(&rng, estimate[0], N);
	rng_gaussian(&rng, estimate[1], N);
	for (uint32_t i = 0; i < N; i++) {
		spread[i] = (float)rng_uniform(&rng);
		noise[i] = -logf((float)rng_uniform(&rng));
		most[i] = -INFINITY;
		nearest[i] = INFINITY;
	}
	memcpy(before, estimate, sizeof before);
	const float tau[2] = {5, 6}, per_spread[2] = {2, .5f};
	for (uint32_t h = 0; h < 2; h++)
		upper_weigh(estimate[h], spread, N, per_spread[h], tau[h], most);
	for (uint32_t i = 0; i < N; i++) {
		float log_p[2];
		for (uint32_t h = 0; h < 2; h++) {
			double want = (double)before[h][i] + (double)per_spread[h] * (double)spread[i] + (double)UPPER_LOG_ROWS -
			              (double)tau[h];
			ck_assert_double_lt(fabs((double)estimate[h][i] - fmin(0, want)), 1e-5);
			log_p[h] = estimate[h][i];
		}
		ck_assert_float_eq(most[i], fmaxf(log_p[0], log_p[1]));
	}
	memcpy(before, estimate, sizeof before);
	uint32_t looked = 0;
	for (uint32_t h = 0; h < 2; h++)
		upper_draw(estimate[h], noise, N, tau[h], nearest);
	for (uint32_t i = 0; i < N; i++) {
		float least = INFINITY;
		for (uint32_t h = 0; h < 2; h++) {
			bool want = before[h][i] + noise[i] > 0;
			ck_assert_float_eq(estimate[h][i], want ? before[h][i] + tau[h] : INFINITY);
			least = fminf(least, estimate[h][i]);
			looked += want;
		}
		ck_assert_float_eq(nearest[i], least);
	}
	ck_assert_uint_gt(looked, N / 10);
	ck_assert_uint_lt(looked, 2 * N - N / 10);
}
END_TEST

int main(void)
{
	return RUN_TESTS("upper", every_row_once_with_its_own_code, summaries_are_of_the_codes, alike_rows_share_groups, odd_rows,
	                 weighing_and_drawing);
}
