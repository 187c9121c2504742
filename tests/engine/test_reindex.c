// A context indexed again by the engine: what drift is, that a new index takes it away and makes answers better for the same rows, that
// answers stay unbiased throughout, and that a fork goes on as it was.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/reindex.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 64, QUERY_HEADS = 4, KV_HEADS = 2, GROUP = QUERY_HEADS / KV_HEADS, ROWS = 6000, LOOKS = 64 * 10 };

static struct fixture f;
static float *k, *v, q[QUERY_HEADS * D];
static const struct credentials root;

// The first half of the dimensions is what queries ask for at first, the second half later.
static void make_queries(bool later)
{
	fill_normal(q, QUERY_HEADS * D, 3, 1);
	for (int i = 0; i < QUERY_HEADS * D; i++)
		q[i] *= (i % D >= D / 2) == later ? 3 : .1f;
}

static void setup(void)
{
	fixture_start(&f, UINT64_C(256) << 20, UINT32_MAX);
	k = malloc((size_t)2 * ROWS * KV_HEADS * D * sizeof(float));
	v = malloc((size_t)2 * ROWS * KV_HEADS * D * sizeof(float));
	fill_normal(k, (size_t)2 * ROWS * KV_HEADS * D, 1, 1);
	fill_normal(v, (size_t)2 * ROWS * KV_HEADS * D, 2, 1);
	for (size_t i = 0; i < (size_t)2 * ROWS * KV_HEADS * D; i++)
		k[i] = bf16_to_f32(f32_to_bf16(k[i]));
}

static void teardown(void)
{
	free(k);
	free(v);
	fixture_stop(&f);
}

// Fitted to the queries of the beginning.
static struct context *filled(const char *name, uint8_t bits)
{
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, MPIG_BF16);
	layer.signature_bits = bits;
	layer.paper_k = 6;
	layer.paper_l = 40;
	struct context *c = fixture_context(&f, name, &layer, 1, 7);
	make_queries(false);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, k, v, q, 1).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, ROWS, true).status, 0);
	return c;
}

static struct answer ask(struct context *c, uint64_t seed, uint8_t proposal)
{
	struct mpig_sqe e = {.count = 1, .begin = 4, .end = ROWS, .proposal = proposal, .budget = .02f, .seed = seed};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	return a;
}

static void ask_often(struct context *c)
{
	for (uint64_t i = 0; i < LOOKS; i++) {
		struct answer a = ask(c, 10000 + i, MPIG_PROPOSAL_SIGNATURE);
		answer_free(&a);
	}
}

static double drift_of(struct context *c)
{
	char why[MPIG_TEXT_BYTES] = "";
	double drift = -1;
	int status = engine_drift(f.engine, c, f.scratch[0], &drift, why);
	ck_assert_msg(status == 0, "%s", why);
	return drift;
}

static int reindex(struct context *c, char *why)
{
	struct engine_reindex *x;
	int status = engine_reindex_begin(f.engine, c, f.scratch[0], &x, why);
	if (status)
		return status;
	while ((status = engine_reindex_step(x, f.scratch[0], why)) == REINDEX_MORE)
		;
	uint64_t done, total;
	engine_reindex_progress(x, &done, &total);
	ck_assert(status || (done == total && total >= ROWS));
	engine_reindex_end(x);
	return status;
}

// Mean square of exp(LSE - exact) - 1 over heads and seeds; bias: the worst head's mean in standard errors.
static double square_error(struct context *c, double *bias)
{
	enum { SEEDS = 400 };
	struct answer exact = ask(c, 0, MPIG_PROPOSAL_DENSE);
	double sum[QUERY_HEADS] = {0}, sum2[QUERY_HEADS] = {0}, all = 0;
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct answer a = ask(c, seed, MPIG_PROPOSAL_SIGNATURE);
		for (int h = 0; h < QUERY_HEADS; h++) {
			double x = exp((double)a.lse[h] - (double)exact.lse[h]) - 1;
			sum[h] += x / SEEDS;
			sum2[h] += x * x / SEEDS;
			all += x * x / (SEEDS * QUERY_HEADS);
		}
		answer_free(&a);
	}
	*bias = 0;
	for (int h = 0; h < QUERY_HEADS; h++)
		*bias = fmax(*bias, fabs(sum[h]) / sqrt((sum2[h] - sum[h] * sum[h]) / SEEDS));
	answer_free(&exact);
	return all;
}

// Bias: 5 standard errors of 4 heads, twice: false alarm 5e-6.
START_TEST(drift_is_seen_and_taken_away)
{
	struct context *c = filled("drifting", _i ? 1 : MPIG_BITS_AUTO);
	char why[MPIG_TEXT_BYTES] = "";
	double bias, before, after;
	ck_assert_double_eq(drift_of(c), 0); // nobody has asked
	ask_often(c);
	double still = drift_of(c);
	ck_assert(still > .95 && still < 1.15);
	ck_assert_int_eq(reindex(c, why), 0); // looks begin anew
	ck_assert_double_eq(drift_of(c), 0);
	make_queries(true);
	ask_often(c);
	ck_assert_double_gt(drift_of(c), 1.8);
	before = square_error(c, &bias);
	ck_assert_double_le(bias, 5);
	struct answer old_tables = ask(c, 0, MPIG_PROPOSAL_PAPER);
	ck_assert_msg(reindex(c, why) == 0, "%s", why);
	ck_assert_uint_eq(context_signature_version(c), 3);
	after = square_error(c, &bias);
	ck_assert_double_le(bias, 5);
	ck_assert_msg(after < .6 * before, "square error %g, after %g", before, after);
	ask_often(c);
	still = drift_of(c);
	ck_assert(still > .95 && still < 1.15);
	struct answer tables = ask(c, 0, MPIG_PROPOSAL_PAPER); // of balanced or plain keys: there are new ones, too
	for (int h = 0; h < QUERY_HEADS; h++)
		ck_assert(tables.rows[h] > 0 && tables.rows[h] < ROWS);
	answer_free(&tables);
	answer_free(&old_tables);
	context_unref(c);
}
END_TEST

static void same(const struct answer *a, const struct answer *b)
{
	ck_assert_mem_eq(a->lse, b->lse, QUERY_HEADS * sizeof(float));
	ck_assert_mem_eq(a->out, b->out, QUERY_HEADS * D * sizeof(float));
}

// Between any two steps answers are those of the old index, bit for bit, until they are those of the new one; a fork's never change.
START_TEST(answers_meanwhile)
{
	struct context *c = filled("parent", 2), *child;
	char why[MPIG_TEXT_BYTES] = "";
	ck_assert_int_eq(store_context_fork(f.store, &root, c, ROWS, "child", &child, why), 0);
	struct answer old = ask(c, 3, MPIG_PROPOSAL_SIGNATURE), dense = ask(c, 3, MPIG_PROPOSAL_DENSE);
	struct engine_reindex *x;
	ck_assert_int_eq(engine_reindex_begin(f.engine, c, f.scratch[0], &x, why), 0);
	int status = REINDEX_MORE, steps = 0;
	while (status == REINDEX_MORE) {
		struct answer now = ask(c, 3, MPIG_PROPOSAL_SIGNATURE);
		same(&now, &old);
		answer_free(&now);
		status = engine_reindex_step(x, f.scratch[0], why);
		steps++;
	}
	ck_assert_msg(status == REINDEX_DONE, "%s", why);
	ck_assert_int_gt(steps, 2 * KV_HEADS);
	engine_reindex_end(x);
	struct answer now = ask(c, 3, MPIG_PROPOSAL_SIGNATURE), forks = ask(child, 3, MPIG_PROPOSAL_SIGNATURE);
	ck_assert_uint_eq(now.result.signature_version, 2);
	ck_assert_uint_eq(forks.result.signature_version, 1);
	same(&forks, &old);
	for (int h = 0; h < QUERY_HEADS; h++) // an estimate as before, of as many rows
		ck_assert(now.rows[h] < ROWS / 10 && fabs((double)now.lse[h] - (double)dense.lse[h]) < .5);
	answer_free(&forks);
	answer_free(&now);

	// A third index of what both share is refused; the others stay.
	ck_assert_int_eq(reindex(child, why), MPIG_EBUSY);
	ck_assert_ptr_nonnull(strstr(why, "forks"));
	answer_free(&dense);
	answer_free(&old);
	context_unref(child);
	context_unref(c);
}
END_TEST

// Rows that are there and not committed: the switch waits, and goes through with the commit.
START_TEST(a_switch_waits_for_a_commit)
{
	struct context *c = filled("alone", 2);
	char why[MPIG_TEXT_BYTES] = "";
	struct engine_reindex *x;
	int status;
	ck_assert_int_eq(engine_reindex_begin(f.engine, c, f.scratch[0], &x, why), 0);
	ck_assert_int_eq(fixture_append(&f, c, 0, ROWS, 50, k, v, NULL, 0).status, 0);
	while ((status = engine_reindex_step(x, f.scratch[0], why)) == REINDEX_MORE)
		;
	ck_assert_int_eq(status, REINDEX_WAIT);
	ck_assert_int_eq(fixture_commit(&f, c, ROWS, 50, false).status, 0);
	ck_assert_int_eq(engine_reindex_step(x, f.scratch[0], why), REINDEX_MORE); // the 50 rows get codes, too
	while ((status = engine_reindex_step(x, f.scratch[0], why)) == REINDEX_MORE)
		;
	ck_assert_int_eq(status, REINDEX_DONE);
	engine_reindex_end(x);
	ck_assert_uint_eq(context_signature_version(c), 2);
	context_unref(c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("reindex");
	TCase *t = tcase_create("reindex");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, drift_is_seen_and_taken_away, 0, 2);
	tcase_add_test(t, answers_meanwhile);
	tcase_add_test(t, a_switch_waits_for_a_commit);
	suite_add_tcase(s, t);
	return suite_run(s);
}
