// Widths of codes chosen by the engine: different ones for strips of different noise, within a limit of bytes, kept by forks and by a pool
// that is attached again, and answers as unbiased as with any width.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/pool.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 64, QUERY_HEADS = 6, KV_HEADS = 3, GROUP = QUERY_HEADS / KV_HEADS, ROWS = 6000, RECENT = 8 };

static struct fixture f;
static float *k, *v, q[QUERY_HEADS * D], recent[RECENT * QUERY_HEADS * D];
static const struct credentials root;

static void setup(void)
{
	fixture_start(&f, UINT64_C(256) << 20, UINT32_MAX);
	k = malloc((size_t)ROWS * KV_HEADS * D * sizeof(float));
	v = malloc((size_t)ROWS * KV_HEADS * D * sizeof(float));
	fill_normal(k, (size_t)ROWS * KV_HEADS * D, 1, 1);
	fill_normal(v, (size_t)ROWS * KV_HEADS * D, 2, 1);
	fill_normal(q, QUERY_HEADS * D, 3, 1);
	fill_normal(recent, RECENT * QUERY_HEADS * D, 4, 1);
	static const float spread[KV_HEADS] = {.02f, 1.2f, 3}; // of logits
	for (size_t i = 0; i < (size_t)ROWS * KV_HEADS * D; i++)
		k[i] = bf16_to_f32(f32_to_bf16(k[i] * spread[i / D % KV_HEADS]));
}

static void teardown(void)
{
	free(k);
	free(v);
	fixture_stop(&f);
}

static struct mpig_wire_layer auto_layer(uint16_t limit)
{
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, MPIG_BF16);
	layer.signature_bits = MPIG_BITS_AUTO;
	layer.signature_bytes = limit;
	return layer;
}

static struct context *filled(const char *name, uint16_t limit, uint32_t queries)
{
	struct mpig_wire_layer layer = auto_layer(limit);
	struct context *c = fixture_context(&f, name, &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, k, v, recent, queries).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, ROWS, true).status, 0);
	return c;
}

static uint32_t bytes_of(struct context *c)
{
	uint32_t bytes = 0;
	for (uint32_t g = 0; g < KV_HEADS; g++)
		bytes += mpig_code_bytes(D, context_strip_bits(c, g));
	return bytes;
}

START_TEST(noise_decides)
{
	struct context *c = filled("auto", 0, RECENT);
	ck_assert_uint_eq(context_strip_bits(c, 0), 1);
	ck_assert_uint_ge(context_strip_bits(c, 1), 2);
	ck_assert_uint_ge(context_strip_bits(c, 2), context_strip_bits(c, 1));
	ck_assert_uint_eq(context_strip_bits(c, 99), 0);
	context_unref(c);
	c = filled("blind", 0, 0); // nothing to measure with
	for (uint32_t g = 0; g < KV_HEADS; g++)
		ck_assert_uint_eq(context_strip_bits(c, g), 2);
	context_unref(c);
	struct mpig_wire_layer layer = auto_layer(0);
	c = fixture_context(&f, "open", &layer, 1, 7);
	ck_assert_uint_eq(context_strip_bits(c, 0), 0); // not chosen yet
	context_unref(c);
}
END_TEST

START_TEST(a_limit_is_kept)
{
	struct context *free_of_it = filled("free", 0, RECENT);
	for (uint16_t limit = 10; limit <= 34; limit += 4) {
		char name[16];
		snprintf(name, sizeof name, "limit%u", limit);
		struct context *c = filled(name, limit, RECENT);
		ck_assert_uint_le(bytes_of(c), limit * KV_HEADS);
		ck_assert_uint_le(bytes_of(c), bytes_of(free_of_it));
		if (bytes_of(free_of_it) <= limit * KV_HEADS)
			ck_assert_uint_eq(bytes_of(c), bytes_of(free_of_it));
		context_unref(c);
	}
	context_unref(free_of_it);
}
END_TEST

static struct answer ask(struct context *c, uint64_t seed)
{
	struct mpig_sqe e = {
		.count = 1, .begin = 4, .end = ROWS, .proposal = MPIG_PROPOSAL_SIGNATURE, .budget = .02f, .seed = seed};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	return a;
}

// The mean of exp(LSE - exact LSE) over 600 draws is 1 within 5 standard errors, for each of 6 heads: false alarm 3e-6.
START_TEST(answers_are_unbiased)
{
	enum { SEEDS = 600 };
	struct context *c = filled("auto", 0, RECENT);
	struct mpig_sqe dense = {.count = 1, .begin = 4, .end = ROWS, .proposal = MPIG_PROPOSAL_DENSE};
	struct answer exact = fixture_attend(&f, c, &dense, NULL, q);
	double sum[QUERY_HEADS] = {0}, sum2[QUERY_HEADS] = {0};
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct answer a = ask(c, seed);
		for (int h = 0; h < QUERY_HEADS; h++) {
			double x = exp((double)a.lse[h] - (double)exact.lse[h]);
			sum[h] += x / SEEDS;
			sum2[h] += x * x / SEEDS;
		}
		answer_free(&a);
	}
	for (int h = 0; h < QUERY_HEADS; h++) {
		double error = sqrt((sum2[h] - sum[h] * sum[h]) / SEEDS);
		ck_assert_msg(fabs(sum[h] - 1) < 5 * error, "head %d: %g, standard error %g", h, sum[h], error);
	}
	answer_free(&exact);
	context_unref(c);
}
END_TEST

static void same_answers(const struct answer *a, const struct answer *b)
{
	ck_assert_mem_eq(a->lse, b->lse, QUERY_HEADS * sizeof(float));
	ck_assert_mem_eq(a->out, b->out, QUERY_HEADS * D * sizeof(float));
}

// The child continues in the widths it got, and says the same about what both share.
START_TEST(forks_keep_their_widths)
{
	struct context *c = filled("parent", 0, RECENT), *child;
	char why[MPIG_TEXT_BYTES];
	struct answer before = ask(c, 5);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, ROWS, "child", &child, why), 0);
	struct answer after = ask(child, 5);
	same_answers(&before, &after);
	answer_free(&after);
	ck_assert_int_eq(context_lease(f.store, child, &root, 9, why), 0);
	ck_assert_int_eq(fixture_append(&f, child, 0, ROWS, 700, k, v, recent, RECENT).status, 0);
	ck_assert_int_eq(fixture_commit(&f, child, ROWS, 700, true).status, 0);
	for (uint32_t g = 0; g < KV_HEADS; g++)
		ck_assert_uint_eq(context_strip_bits(child, g), context_strip_bits(c, g));
	struct mpig_sqe e = {.count = 1, .begin = 4, .end = ROWS + 700, .proposal = MPIG_PROPOSAL_SIGNATURE, .budget = .02f};
	struct answer longer = fixture_attend(&f, child, &e, NULL, q);
	ck_assert_int_eq(longer.result.status, 0);
	for (int h = 0; h < QUERY_HEADS; h++) // the new rows are not attended exactly: they have codes
		ck_assert_uint_lt(longer.rows[h], 700);
	answer_free(&longer);
	answer_free(&before);
	context_unref(child);
	context_unref(c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("auto");
	TCase *t = tcase_create("widths");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, noise_decides);
	tcase_add_test(t, a_limit_is_kept);
	tcase_add_test(t, answers_are_unbiased);
	tcase_add_test(t, forks_keep_their_widths);
	suite_add_tcase(s, t);
	return suite_run(s);
}
