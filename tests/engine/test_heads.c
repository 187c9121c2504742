// What is kept about each strip: logit noise, effective rows and the mass of the largest, against a double-precision reference.
// Everything is seeded: no chance in it. The limits say how far a sample of this size may be off.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/heads.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 64, QUERY_HEADS = 6, KV_HEADS = 2, GROUP = QUERY_HEADS / KV_HEADS, ROWS = 8192 };
static const uint64_t POOL = UINT64_C(128) << 20;

static struct fixture f;
static float *k, *v, q[QUERY_HEADS * D];

static void setup(void)
{
	fixture_start(&f, POOL, UINT32_MAX);
	size_t count = (size_t)ROWS * KV_HEADS * D;
	ck_assert_ptr_nonnull(k = malloc(count * 4));
	ck_assert_ptr_nonnull(v = malloc(count * 4));
	fill_normal(k, count, 1, 1);
	fill_normal(v, count, 2, 1);
}

static void teardown(void)
{
	free(k);
	free(v);
	fixture_stop(&f);
}

static struct context *make_context(const char *name, uint8_t bits, uint32_t dtype, float softcap)
{
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, dtype);
	layer.signature_bits = bits;
	layer.softcap = softcap;
	struct context *c = fixture_context(&f, name, &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, k, v, q, 1).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, ROWS, true).status, 0);
	return c;
}

static void attend(struct context *c, uint8_t proposal, uint64_t seed)
{
	struct mpig_sqe e = {.count = 1, .flags = MPIG_SQE_END_RELATIVE, .budget = .01f, .seed = seed, .proposal = proposal};
	struct mpig_slot_header header = {0};
	struct answer a = fixture_attend(&f, c, &e, &header, q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	answer_free(&a);
}

static int descending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x < y) - (x > y);
}

// The same figures from all rows and the true logits: means over the group's heads.
static struct head_numbers truth(uint32_t g, double softcap)
{
	struct head_numbers mean = {.rows = ROWS};
	double *w = malloc(ROWS * sizeof(*w));
	ck_assert_ptr_nonnull(w);
	for (uint32_t h = g * GROUP; h < (g + 1) * GROUP; h++) {
		double sum = 0, squares = 0, part = 0;
		for (size_t i = 0; i < ROWS; i++) {
			double s = 0;
			for (size_t d = 0; d < D; d++)
				s += (double)q[h * D + d] * (double)k[(i * KV_HEADS + g) * D + d];
			s /= 8;
			w[i] = exp(softcap > 0 ? softcap * tanh(s / softcap) : s);
			sum += w[i];
			squares += w[i] * w[i];
		}
		qsort(w, ROWS, sizeof(*w), descending);
		for (uint32_t i = 0; i < ROWS / 20; i++) {
			part += w[i] / sum;
			if (i + 1 == ROWS / 100)
				mean.mass[0] += part / GROUP;
		}
		mean.mass[1] += part / GROUP;
		mean.n_eff += sum * sum / squares / GROUP;
	}
	free(w);
	return mean;
}

static double group_norm(uint32_t g)
{
	double sum = 0;
	for (uint32_t i = 0; i < GROUP * D; i++)
		sum += (double)q[g * GROUP * D + i] * (double)q[g * GROUP * D + i];
	return sqrt(sum / GROUP);
}

// Noise of q.k over |q| |x| / sqrt(d) from the table of index/README.md. |x| = 8 in the mean, sqrt(d) = 8, scale 1/8.
static const struct {
	uint8_t bits;
	uint32_t dtype;
	float spread; // of q
	double noise;
} shapes[] = {{1, MPIG_BF16, .25f, .76},
              {2, MPIG_BF16, .5f, .37},
              {4, MPIG_BF16, 1, .11},
              {2, MPIG_I8, .5f, .37},
              {2, MPIG_F16, 1, .37}};

START_TEST(the_numbers_are_those_of_the_logits)
{
	fill_normal(q, QUERY_HEADS * D, 3, shapes[_i].spread);
	struct context *c = make_context("c", shapes[_i].bits, shapes[_i].dtype, 0);
	for (uint32_t i = 0; i < 30 * HEADS_EVERY; i++)
		attend(c, 0, i);
	for (uint32_t g = 0; g < KV_HEADS; g++) {
		struct head_numbers seen = heads_read(c, g), real = truth(g, 0);
		double noise = shapes[_i].noise * group_norm(g) / 8;
		ck_assert_uint_eq(seen.samples, 30);
		ck_assert_uint_eq(seen.rows, ROWS);
		ck_assert_double_eq_tol(seen.noise / noise, 1, .15); // 1,900 rows: 1.6 % for independent ones
		// The estimates' noise widens the weights: n_eff is smaller by exp(noise^2). A quarter of the rows are looked at.
		ck_assert_double_eq_tol(seen.n_eff / real.n_eff * exp(noise * noise), 1, .25);
		ck_assert_double_gt(seen.drawn, .5 * .01 * ROWS); // of the share asked for; few are certain
		ck_assert_double_le(seen.drawn, 1.01 * .01 * ROWS);
		ck_assert_double_eq_tol(seen.mass[0] / real.mass[0], 1, .3);
		ck_assert_double_eq_tol(seen.mass[1] / real.mass[1], 1, .2);
	}
	context_unref(c);
}
END_TEST

// A cap at 1 where logits go to 4 takes most of the spread, and of the noise.
START_TEST(a_soft_cap_bends_both_sides)
{
	fill_normal(q, QUERY_HEADS * D, 3, 1);
	struct context *c = make_context("capped", 2, MPIG_BF16, 1), *plain = make_context("plain", 2, MPIG_BF16, 0);
	for (uint32_t i = 0; i < 10 * HEADS_EVERY; i++) {
		attend(c, 0, i);
		attend(plain, 0, i);
	}
	for (uint32_t g = 0; g < KV_HEADS; g++) {
		struct head_numbers capped = heads_read(c, g), free_ = heads_read(plain, g), real = truth(g, 1);
		ck_assert_double_lt(capped.noise, .8 * free_.noise);
		ck_assert_double_eq_tol(capped.n_eff / real.n_eff, 1, .1);
		ck_assert_double_eq_tol(capped.mass[1] / real.mass[1], 1, .1);
	}
	context_unref(c);
	context_unref(plain);
}
END_TEST

START_TEST(one_answer_in_so_many_is_looked_at)
{
	fill_normal(q, QUERY_HEADS * D, 3, 1);
	struct context *c = make_context("some", 2, MPIG_BF16, 0);
	ck_assert_uint_eq(heads_read(c, 0).samples, 0);
	attend(c, MPIG_PROPOSAL_DENSE, 0); // has no pilot
	ck_assert_uint_eq(heads_read(c, 0).samples, 0);
	for (uint32_t i = 0; i < HEADS_EVERY; i++)
		attend(c, MPIG_PROPOSAL_SIGNATURE, i);
	ck_assert_uint_eq(heads_read(c, 0).samples, 1);
	attend(c, MPIG_PROPOSAL_SIGNATURE, 0);
	ck_assert_uint_eq(heads_read(c, 0).samples, 2);
	ck_assert_uint_eq(heads_read(c, KV_HEADS).samples, 0); // no such strip
	context_unref(c);
}
END_TEST

START_TEST(means_run)
{
	struct context *c = make_context("means", 2, MPIG_BF16, 0);
	uint64_t turn;
	ck_assert(heads_turn(c, 1, &turn));
	ck_assert_uint_eq(turn, 0);
	heads_note(c, 1, &(struct head_sample){.noise2 = 1, .n_eff = 10, .mass = {.1, .2}, .rows = 100, .drawn = 4});
	heads_note(c, 1, &(struct head_sample){.noise2 = 7, .n_eff = 30, .mass = {.3, .6}, .rows = 200, .drawn = 8});
	heads_note(c, 1, &(struct head_sample){.noise2 = (double)NAN, .n_eff = 1, .rows = 1});
	heads_note(c, 1, &(struct head_sample){.n_eff = (double)INFINITY, .rows = 1});
	struct head_numbers mean = heads_read(c, 1);
	ck_assert_uint_eq(mean.samples, 2);
	ck_assert_uint_eq(mean.rows, 200);
	ck_assert_double_eq_tol(mean.noise, 2, 1e-12);
	ck_assert_double_eq_tol(mean.n_eff, 20, 1e-12);
	ck_assert_double_eq_tol(mean.drawn, 6, 1e-12);
	ck_assert_double_eq_tol(mean.mass[0], .2, 1e-12);
	ck_assert_double_eq_tol(mean.mass[1], .4, 1e-12);
	for (uint32_t i = 0; i < 20 * HEADS_MEMORY; i++) // what was is forgotten
		heads_note(c, 1, &(struct head_sample){.noise2 = 9, .n_eff = 5, .mass = {.5, .5}, .rows = 3});
	ck_assert_double_eq_tol(heads_read(c, 1).noise, 3, 1e-6);
	ck_assert_double_eq_tol(heads_read(c, 1).n_eff, 5, 1e-6);
	ck_assert_uint_eq(heads_read(c, 0).samples, 0);
	context_unref(c);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("heads");
	TCase *t = tcase_create("heads");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, the_numbers_are_those_of_the_logits, 0, sizeof(shapes) / sizeof(shapes[0]));
	tcase_add_test(t, a_soft_cap_bends_both_sides);
	tcase_add_test(t, one_answer_in_so_many_is_looked_at);
	tcase_add_test(t, means_run);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
