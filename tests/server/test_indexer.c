// The indexer's thread: contexts that are asked for, whose jobs others may not see, and one that has drifted, by itself.
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/server/indexer.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 64, HEADS = 2, ROWS = 5000 };

static struct fixture f;
static struct indexer *x;
static float *k, q[HEADS * D];
static int told;
static char last_text[600];

static void tell(void *arg, bool failed, const char *text)
{
	(void)arg;
	snprintf(last_text, sizeof last_text, "%s", text);
	__atomic_store_n(&told, failed ? -1 : 1, __ATOMIC_RELEASE);
}

static void start(double drift)
{
	struct indexer_options o = {.engine = f.engine, .store = f.store, .drift = drift, .look_ns = 1000000, .tell = tell};
	ck_assert_int_eq(indexer_start(&o, &x), 0);
}

static void setup(void)
{
	fixture_start(&f, UINT64_C(128) << 20, UINT32_MAX);
	k = malloc((size_t)ROWS * D * sizeof(float));
	fill_normal(k, (size_t)ROWS * D, 1, 1);
	fill_normal(q, HEADS * D, 2, 2);
	told = 0;
}

static void teardown(void)
{
	indexer_stop(x);
	free(k);
	fixture_stop(&f);
}

// Queries ask for one half of the dimensions.
static void turn_queries(bool later)
{
	fill_normal(q, HEADS * D, 2, 1);
	for (int i = 0; i < HEADS * D; i++)
		q[i] *= (i % D >= D / 2) == later ? 3 : .1f;
}

static struct context *filled(const char *name)
{
	struct mpig_wire_layer layer = fixture_layer(HEADS, 1, D, MPIG_BF16);
	layer.signature_bits = 2;
	struct context *c = fixture_context(&f, name, &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, k, k, q, 1).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, ROWS, true).status, 0);
	return c;
}

static struct indexer_view until_done(uint32_t uid, uint64_t job)
{
	struct indexer_view view;
	do {
		ck_assert_int_eq(indexer_look(x, uid, job, &view), 0);
		usleep(1000);
	} while (view.state != INDEXER_DONE);
	return view;
}

START_TEST(asked_for)
{
	start(0);
	struct context *c = filled("a");
	char why[MPIG_TEXT_BYTES];
	struct indexer_view view;
	uint64_t job, more;
	for (uint32_t version = 2; version <= 4; version++) {
		ck_assert_int_eq(indexer_begin(x, 5, c, &job, why), 0);
		ck_assert_int_eq(indexer_look(x, 6, job, &view), MPIG_ENOENT); // another user's
		view = until_done(5, job);
		ck_assert_msg(view.status == 0, "%s", view.why);
		ck_assert(view.signature_version == version && view.total == ROWS && view.done == ROWS);
	}
	uint64_t late;
	ck_assert_int_eq(indexer_begin(x, 7, c, &late, why), 0);
	for (int i = 0; i < 2 * (int)INDEXER_JOBS; i++) { // results that were told make room, and are said to be forgotten
		ck_assert_int_eq(indexer_begin(x, 5, c, &more, why), 0);
		until_done(5, more);
	}
	ck_assert_int_eq(indexer_look(x, 5, job, &view), MPIG_ERETRY);
	ck_assert_int_eq(indexer_look(x, 5, more + 1, &view), MPIG_ENOENT);
	ck_assert_int_eq(until_done(7, late).status, 0); // whoever has not asked yet is told
	struct mpig_wire_layer plain = fixture_layer(HEADS, 1, D, MPIG_BF16);
	struct context *none = fixture_context(&f, "none", &plain, 1, 7);
	ck_assert_int_eq(indexer_begin(x, 5, none, &job, why), 0);
	view = until_done(5, job);
	ck_assert(view.status == MPIG_ENOTSUP && strstr(view.why, "no index"));
	context_unref(none);
	context_unref(c);
}
END_TEST

// One user's jobs leave places for others. His wait all the while, for rows that are not committed.
START_TEST(a_share_for_each)
{
	enum { MOST = INDEXER_JOBS_PER_UID };
	start(0);
	char why[MPIG_TEXT_BYTES], name[8];
	struct context *c[MOST + 1];
	uint64_t job[MOST], other, again;
	for (int i = 0; i <= MOST; i++) {
		snprintf(name, sizeof name, "c%d", i);
		c[i] = filled(name);
	}
	for (int i = 0; i < MOST; i++)
		ck_assert_int_eq(fixture_append(&f, c[i], 0, ROWS, 1, k, k, NULL, 0).status, 0);
	for (int i = 0; i < MOST; i++)
		ck_assert_int_eq(indexer_begin(x, 5, c[i], &job[i], why), 0);
	ck_assert_int_eq(indexer_begin(x, 5, c[MOST], &other, why), MPIG_ELIMIT);
	ck_assert_msg(strstr(why, "4 contexts that you asked for"), "%s", why);
	ck_assert_int_eq(indexer_begin(x, 5, c[MOST - 1], &again, why), 0); // waits already
	ck_assert_uint_eq(again, job[MOST - 1]);
	ck_assert_int_eq(indexer_begin(x, 6, c[MOST], &other, why), 0);
	ck_assert_int_eq(until_done(6, other).status, 0);
	for (int i = 0; i < MOST; i++)
		ck_assert_int_eq(fixture_commit(&f, c[i], ROWS, 1, false).status, 0);
	for (int i = 0; i < MOST; i++)
		ck_assert_int_eq(until_done(5, job[i]).status, 0);
	ck_assert_int_eq(indexer_begin(x, 5, c[MOST], &other, why), 0);
	until_done(5, other);
	for (int i = 0; i <= MOST; i++)
		context_unref(c[i]);
}
END_TEST

// Who waits for a writer is waited for; others are not kept waiting, but for those who ask for the same context.
START_TEST(a_writer_who_takes_his_time)
{
	start(0);
	struct context *slow = filled("slow"), *other = filled("other");
	struct indexer_view view;
	char why[MPIG_TEXT_BYTES];
	uint64_t first, second, same;
	ck_assert_int_eq(fixture_append(&f, slow, 0, ROWS, 1, k, k, NULL, 0).status, 0);
	ck_assert_int_eq(indexer_begin(x, 5, slow, &first, why), 0);
	do {
		ck_assert_int_eq(indexer_look(x, 5, first, &view), 0);
		usleep(1000);
	} while (view.state == INDEXER_WAITING);
	ck_assert_int_eq(indexer_begin(x, 0, slow, &same, why), 0);
	ck_assert_int_eq(indexer_begin(x, 6, other, &second, why), 0);
	ck_assert_int_eq(until_done(6, second).status, 0);
	ck_assert_int_eq(indexer_look(x, 5, first, &view), 0);
	ck_assert_int_eq(view.state, INDEXER_RUNNING);
	ck_assert_int_eq(indexer_look(x, 0, same, &view), 0);
	ck_assert_int_eq(view.state, INDEXER_WAITING);
	ck_assert_int_eq(fixture_commit(&f, slow, ROWS, 1, false).status, 0);
	ck_assert_int_eq(until_done(5, first).status, 0);
	view = until_done(0, same);
	ck_assert_int_eq(view.status, 0);
	ck_assert_uint_eq(view.signature_version, 3);
	// One that the daemon's end finds waiting is given up.
	ck_assert_int_eq(fixture_append(&f, slow, 0, ROWS + 1, 1, k, k, NULL, 0).status, 0);
	ck_assert_int_eq(indexer_begin(x, 5, slow, &first, why), 0);
	ck_assert_int_eq(indexer_begin(x, 6, other, &second, why), 0);
	ck_assert_int_eq(until_done(6, second).status, 0);
	context_unref(slow);
	context_unref(other);
}
END_TEST

START_TEST(drifted)
{
	start(.5);
	turn_queries(false);
	struct context *c = filled("a");
	for (int phase = 0; phase < 2; phase++) {
		turn_queries(phase);
		for (uint64_t i = 0; i < 64 * 12 && context_signature_version(c) == 1; i++) {
			struct mpig_sqe e = {
				.count = 1, .end = ROWS, .proposal = MPIG_PROPOSAL_SIGNATURE, .budget = .02f, .seed = i};
			struct answer a = fixture_attend(&f, c, &e, NULL, q);
			ck_assert_int_eq(a.result.status, 0);
			answer_free(&a);
		}
		if (!phase)
			ck_assert_uint_eq(context_signature_version(c), 1); // these are what it was made for
	}
	while (!__atomic_load_n(&told, __ATOMIC_ACQUIRE))
		usleep(1000);
	ck_assert_msg(told == 1 && strstr(last_text, "'a' is indexed again"), "%s", last_text);
	ck_assert_uint_eq(context_signature_version(c), 2);
	context_unref(c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("indexer");
	TCase *t = tcase_create("indexer");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, asked_for);
	tcase_add_test(t, a_share_for_each);
	tcase_add_test(t, a_writer_who_takes_his_time);
	tcase_add_test(t, drifted);
	suite_add_tcase(s, t);
	return suite_run(s);
}
