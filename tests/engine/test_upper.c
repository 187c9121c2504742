// Requests that go through upper layers: rows are drawn with the probability that is said, nothing else changes.
//
// False alarms: frequencies are compared at 5.9 standard deviations (4e-9 each, at most 128 comparisons), means at 5.5 standard errors
// (4e-8 each, 4 comparisons): below 1e-6 in all.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { ROWS = 20000, HEADS = 2, CLUSTERS = 200, MAX_D = 128 };
static const uint64_t POOL = UINT64_C(256) << 20;
static struct fixture f;

static void setup(void)
{
	fixture_start(&f, POOL, UINT32_MAX);
}

static void teardown(void)
{
	fixture_stop(&f);
}

// Keys in clusters, of which some are near the queries: what groups are good for. Values: normal, or of the first d rows watched
// a unit vector each and nothing else.
struct rows {
	uint32_t d;
	float *k, *v, q[4 * HEADS * MAX_D];
};

static uint32_t watched_row(uint32_t i)
{
	return 17 + i * (ROWS / MAX_D - 1);
}

// Every second watched row weighs e^8 as much for the first query as its like do: more than its group lets expect, so that it is drawn
// with the group's probability and not with its own.
static void make_outliers(struct rows *r)
{
	float size = 0;
	for (uint32_t j = 0; j < r->d; j++)
		size += r->q[j] * r->q[j];
	for (uint32_t i = 0; i < r->d; i += 2)
		for (uint32_t j = 0; j < r->d; j++) {
			float *k = &r->k[watched_row(i) * r->d + j];
			*k = bf16_to_f32(f32_to_bf16(*k + r->q[j] * 8 * sqrtf((float)r->d) / size));
		}
}

static struct rows make_rows(uint32_t d, bool watch)
{
	struct rows r = {.d = d, .k = malloc(ROWS * d * 4), .v = malloc(ROWS * d * 4)};
	float *centre = malloc(CLUSTERS * d * 4);
	fill_normal(r.q, 4 * HEADS * d, 14, 2.4f);
	ck_assert(r.k && r.v && centre);
	fill_normal(centre, CLUSTERS * d, 11, 1);
	fill_normal(r.k, ROWS * d, 12, .3f);
	fill_normal(r.v, ROWS * d, 13, 1);
	for (uint32_t i = 0; i < ROWS; i++)
		for (uint32_t j = 0; j < d; j++) {
			uint32_t c = i * 2654435761u >> 8;
			r.k[i * d + j] = bf16_to_f32(f32_to_bf16(r.k[i * d + j] + .9f * centre[c % CLUSTERS * d + j]));
			r.v[i * d + j] = bf16_to_f32(f32_to_bf16(r.v[i * d + j]));
		}
	if (watch) {
		memset(r.v, 0, ROWS * d * 4);
		for (uint32_t i = 0; i < d; i++)
			r.v[watched_row(i) * d + i] = 1;
		make_outliers(&r);
	}
	free(centre);
	return r;
}

static void free_rows(struct rows *r)
{
	free(r->k);
	free(r->v);
}

static struct context *make_context(const char *name, const struct rows *r, uint32_t dtype)
{
	struct mpig_wire_layer layer = fixture_layer(HEADS, 1, r->d, dtype);
	layer.signature_bits = 2;
	struct context *c = fixture_context(&f, name, &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, r->k, r->v, r->q, 1).status, 0);
	struct engine_result result = fixture_commit(&f, c, 0, ROWS, true);
	ck_assert_msg(result.status == 0, "%s", result.why);
	return c;
}

static struct answer attend(struct context *c, const struct rows *r, float budget, uint64_t seed)
{
	struct mpig_sqe e = {
		.count = 1, .flags = MPIG_SQE_END_RELATIVE, .budget = budget, .seed = seed, .proposal = MPIG_PROPOSAL_SIGNATURE};
	struct answer a = fixture_attend(&f, c, &e, NULL, r->q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	return a;
}

static double logit(const struct rows *r, uint32_t h, uint32_t row)
{
	double s = 0;
	for (uint32_t j = 0; j < r->d; j++)
		s += (double)r->q[h * r->d + j] * (double)r->k[row * r->d + j];
	return s / sqrt(r->d);
}

static bool is_fewer_bytes(struct context *c, const struct rows *r, float budget)
{
	struct answer through = attend(c, r, budget, 1);
	struct engine *engine = f.engine;
	struct engine_options options = {.kernels = &f.kernels, .store = f.store};
	ck_assert_int_eq(engine_create(&options, &f.engine), 0);
	struct answer plain = attend(c, r, budget, 1);
	engine_destroy(f.engine);
	f.engine = engine;
	bool fewer = through.result.bytes_read < plain.result.bytes_read * 9 / 10;
	answer_free(&through);
	answer_free(&plain);
	return fewer;
}

// A watched row's value comes back as exp(logit) / pi, where it was drawn.
START_TEST(frequencies_are_the_probabilities)
{
	enum { SEEDS = 6000, D = 64 };
	fixture_upper(&f, 1, 1, 0);
	struct rows r = make_rows(D, true);
	struct context *c = make_context("frequencies", &r, MPIG_BF16);
	ck_assert(is_fewer_bytes(c, &r, .003f));
	static uint32_t count[HEADS][D];
	static double pi[HEADS][D];
	double mean[HEADS] = {0}, square[HEADS] = {0}, exact[HEADS] = {0};
	for (uint32_t h = 0; h < HEADS; h++)
		for (uint32_t i = 0; i < ROWS; i++)
			exact[h] += exp(logit(&r, h, i));
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct answer a = attend(c, &r, .003f, seed);
		for (uint32_t h = 0; h < HEADS; h++) {
			double mass = exp((double)a.lse[h]);
			mean[h] += mass / exact[h] / SEEDS;
			square[h] += mass / exact[h] * (mass / exact[h]) / SEEDS;
			for (uint32_t i = 0; i < D; i++) {
				if (!(a.out[h * D + i] > 0))
					continue;
				double now = exp(logit(&r, h, watched_row(i))) / ((double)a.out[h * D + i] * mass);
				ck_assert_double_le(now, 1 + 1e-4);
				if (count[h][i]++)
					ck_assert_double_lt(fabs(now - pi[h][i]), 1e-3 * pi[h][i]); // the same in every sample
				pi[h][i] = fmin(now, 1);
			}
		}
		answer_free(&a);
	}
	uint32_t seen = 0, certain = 0, clipped = 0;
	for (uint32_t h = 0; h < HEADS; h++) {
		double error = sqrt((square[h] - mean[h] * mean[h]) / SEEDS);
		ck_assert_double_lt(error, .02);
		ck_assert_msg(fabs(mean[h] - 1) < 5.5 * error, "head %u: mean of exp(LSE) %.5f, standard error %.5f", h, mean[h],
		              error);
		for (uint32_t i = 0; i < D; i++) {
			double p = pi[h][i], deviation = sqrt(SEEDS * p * (1 - p));
			if (!count[h][i])
				continue; // its probability is not known; the mean above would miss it
			ck_assert_msg(fabs(count[h][i] - SEEDS * p) <= 5.9 * deviation + .001 * SEEDS * p,
			              "head %u row %u: drawn %u times of %d with pi %.5f", h, watched_row(i), count[h][i], SEEDS,
			              p);
			seen++;
			certain += p > .9999;
			clipped += p < .5;
		}
	}
	ck_assert_uint_gt(seen, D);
	ck_assert_uint_gt(clipped, D / 2);
	(void)certain;
	context_unref(c);
	free_rows(&r);
}
END_TEST

static void expect_dense(struct context *c, const struct rows *r, struct mpig_sqe e, const struct mpig_slot_header *header,
                         double tolerance)
{
	e.proposal = MPIG_PROPOSAL_DENSE;
	struct answer want = fixture_attend(&f, c, &e, header, r->q);
	e.proposal = MPIG_PROPOSAL_SIGNATURE;
	e.budget = 1;
	struct answer got = fixture_attend(&f, c, &e, header, r->q);
	ck_assert_msg(!want.result.status && !got.result.status, "%s %s", want.result.why, got.result.why);
	for (uint32_t h = 0; h < HEADS * e.count; h++) {
		double error = 0, size = 0;
		ck_assert_uint_eq(got.rows[h], want.rows[h]);
		for (uint32_t j = 0; j < r->d; j++) {
			error += pow((double)got.out[h * r->d + j] - (double)want.out[h * r->d + j], 2);
			size += pow((double)want.out[h * r->d + j], 2);
		}
		ck_assert_double_le(sqrt(error), tolerance * sqrt(size) + 1e-9);
		ck_assert(got.lse[h] == want.lse[h] || fabsf(got.lse[h] - want.lse[h]) <= 1e-4f);
	}
	answer_free(&want);
	answer_free(&got);
}

// Every row is certain: the answer is that of dense attention, for any range, causal limits, and rows that are and are not a whole
// number of strides apart.
START_TEST(certain_rows_make_it_dense)
{
	static const struct {
		uint32_t d, dtype;
	} shape[] = {{64, MPIG_BF16}, {80, MPIG_BF16}, {128, MPIG_I8}};
	static const uint64_t range[][2] = {{0, ROWS}, {5, ROWS - 3}, {3000, 15000}, {9000, ROWS}, {8192, 16384}, {0, 100}};
	fixture_upper(&f, 1, 1, 2);
	for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
		struct rows r = make_rows(shape[s].d, false);
		struct context *c = make_context(s == 0 ? "a" : s == 1 ? "b" : "c", &r, shape[s].dtype);
		for (size_t n = 0; n < sizeof range / sizeof *range; n++)
			expect_dense(c, &r, (struct mpig_sqe){.count = 1, .begin = range[n][0], .end = (int64_t)range[n][1]},
			             NULL, 1e-5);
		struct mpig_slot_header header = {.causal_base = 12345};
		expect_dense(c, &r, (struct mpig_sqe){.count = 4, .end = ROWS, .flags = MPIG_SQE_CAUSAL}, &header, 1e-5);
		context_unref(c);
		free_rows(&r);
	}
}
END_TEST

START_TEST(forks_see_their_part)
{
	fixture_upper(&f, 1, 1, 2);
	struct rows r = make_rows(64, false);
	struct context *c = make_context("parent", &r, MPIG_BF16), *child;
	struct credentials root = {0};
	char why[MPIG_TEXT_BYTES];
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 15001, "child", &child, why), 0);
	expect_dense(child, &r, (struct mpig_sqe){.count = 1, .end = 15001}, NULL, 1e-5);
	context_unref(child);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 5000, "small", &child, why), 0);
	expect_dense(child, &r, (struct mpig_sqe){.count = 1, .end = 5000}, NULL, 1e-5);
	context_unref(child);
	context_unref(c);
	free_rows(&r);
}
END_TEST

// A few rows that begin a segment get no codes, and an upper layer is made of codes: such a segment does without.
START_TEST(not_over_rows_without_codes)
{
	enum { FIRST = 8000, FEW = 100 };
	fixture_upper(&f, 1, 1, 2);
	struct rows r = make_rows(64, false);
	struct mpig_wire_layer layer = fixture_layer(HEADS, 1, r.d, MPIG_BF16);
	layer.signature_bits = 2;
	struct context *c = fixture_context(&f, "c", &layer, 1, 7);
	static const uint32_t end[] = {FIRST, FIRST + FEW, ROWS};
	for (uint32_t i = 0, at = 0; i < 3; at = end[i++]) {
		ck_assert_int_eq(fixture_append(&f, c, 0, at, end[i] - at, r.k + at * r.d, r.v + at * r.d, r.q, 1).status, 0);
		struct engine_result result = fixture_commit(&f, c, at, end[i] - at, i != 1);
		ck_assert_msg(result.status == 0, "%s", result.why);
	}
	struct layer_view view;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, ROWS, &view), 0);
	ck_assert_uint_eq(view.upper_count, 1);
	ck_assert_uint_eq(view.strip[0].uppers[0].rows, FIRST);
	layer_view_free(f.store, &view);
	expect_dense(c, &r, (struct mpig_sqe){.count = 1, .end = ROWS}, NULL, 1e-5);
	context_unref(c);
	free_rows(&r);
}
END_TEST

START_TEST(same_seed_same_bits)
{
	fixture_upper(&f, 1, 1, 0);
	struct rows r = make_rows(64, false);
	struct context *c = make_context("bits", &r, MPIG_BF16);
	struct answer one = attend(c, &r, .01f, 5), other = attend(c, &r, .01f, 6);
	ck_assert(memcmp(one.out, other.out, HEADS * 64 * 4));
	answer_free(&other);
	f.threads = 3;
	for (int i = 0; i < 10; i++) {
		other = attend(c, &r, .01f, 5);
		ck_assert(!memcmp(one.out, other.out, HEADS * 64 * 4) && !memcmp(one.lse, other.lse, HEADS * 4));
		answer_free(&other);
	}
	f.threads = 1;
	answer_free(&one);
	context_unref(c);
	free_rows(&r);
}
END_TEST

// Where they have no place: layers whose logits are more than products, short ranges, segments that do not reach far enough.
START_TEST(only_where_they_belong)
{
	static const struct {
		float softcap, slope;
		uint64_t reach, rows;
	} kind[] = {{0, 0, ROWS + 1, 1}, {0, 0, 1, ROWS + 1}, {30, 0, 1, 1}, {0, .5f, 1, 1}, {0, 0, ROWS, ROWS}};
	struct rows r = make_rows(64, false);
	for (size_t i = 0; i < sizeof kind / sizeof *kind; i++) {
		fixture_stop(&f);
		setup();
		fixture_upper(&f, kind[i].reach, kind[i].rows, 0);
		struct mpig_wire_layer layer = fixture_layer(HEADS, 1, 64, MPIG_BF16);
		layer.signature_bits = 2;
		layer.softcap = kind[i].softcap;
		layer.alibi_slope_base = kind[i].slope;
		struct context *c = fixture_context(&f, "c", &layer, 1, 7);
		ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, r.k, r.v, r.q, 1).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, 0, ROWS, true).status, 0);
		ck_assert_int_eq(is_fewer_bytes(c, &r, .003f), i == 4);
		context_unref(c);
	}
	free_rows(&r);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("upper");
	TCase *tc = tcase_create("upper");
	tcase_set_timeout(tc, 300);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, frequencies_are_the_probabilities);
	tcase_add_test(tc, certain_rows_make_it_dense);
	tcase_add_test(tc, forks_see_their_part);
	tcase_add_test(tc, not_over_rows_without_codes);
	tcase_add_test(tc, same_seed_same_bits);
	tcase_add_test(tc, only_where_they_belong);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
