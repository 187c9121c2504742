// Several processes and one context: shared reading, one writer, a client killed while it appends, children of a client.
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

static struct test_daemon *d;
static struct model_data data;

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(9, 3, 64);
	model_data_make(&data, &layer, 2, 3000, 1);
	d = test_daemon_start(NULL);
}

static void teardown(void)
{
	test_daemon_stop(d);
	model_data_free(&data);
}

START_TEST(two_clients_share_one_context)
{
	struct test_client a, b;
	mpig_context *writer, *reader = NULL, *second;
	test_client_open(&a, d);
	test_client_open(&b, d);
	writer = test_client_create(&a, "book", &data);
	ck_assert_status(test_client_fill(&a, writer, &data, 0, 2500, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_find(&b, "book", MPIG_WRITE, &second), MPIG_EBUSY);
	ck_assert_status(test_client_find(&b, "book", MPIG_READ, &reader), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(reader), 2500);
	test_client_assert_dense(&b, reader, &data, 0, 2500);
	test_client_assert_dense(&b, reader, &data, 4, 2436);
	ck_assert_status(test_client_append(&b, reader, &data, 2500, 2501), MPIG_ELEASE);
	// What the writer adds is the reader's at the next look, and not before it is committed.
	ck_assert_status(test_client_append(&a, writer, &data, 2500, 3000), MPIG_OK);
	ck_assert_status(test_client_attend(&b, reader, &data), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(reader), 2500);
	ck_assert_status(mpig_commit(a.queue, writer, 2500, 500, data.ids + 2500, 0), MPIG_OK);
	ck_assert_status(test_client_attend(&b, reader, &data), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(reader), 3000);
	test_client_assert_dense(&b, reader, &data, 0, 3000);
	test_client_assert_dense(&a, writer, &data, 0, 3000);
	// The lease goes on when it is given back; the reader is not disturbed.
	mpig_context_close(writer);
	ck_assert_status(test_client_find(&b, "book", MPIG_WRITE, &second), MPIG_OK);
	test_client_assert_dense(&b, reader, &data, 100, 3000);
	test_client_close(&a);
	test_client_assert_dense(&b, second, &data, 0, 3000);
	test_client_close(&b);
}
END_TEST

START_TEST(the_same_seed_gives_two_clients_the_same_bits)
{
	struct test_client s[2];
	mpig_context *x[2];
	float q[9 * 64], out[2][9 * 64], lse[2][9];
	uint32_t rows[2][9];
	model_normal(q, 9 * 64, 3);
	for (int i = 0; i < 2; i++)
		test_client_open(&s[i], d);
	x[0] = test_client_create(&s[0], "bits", &data);
	ck_assert_status(test_client_fill(&s[0], x[0], &data, 0, 3000, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_find(&s[1], "bits", MPIG_READ, &x[1]), MPIG_OK);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 2; i++) {
			struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
			struct mpig_result result = MPIG_INIT(struct mpig_result);
			attend.proposal = MPIG_PROPOSAL_SIGNATURE;
			attend.q = q;
			attend.budget = 0.05f;
			attend.seed = (uint64_t)round;
			result.out = out[i];
			result.lse = lse[i];
			result.rows = rows[i];
			ck_assert_status(mpig_attend(s[i].queue, x[i], &attend, &result), MPIG_OK);
		}
		ck_assert_mem_eq(out[0], out[1], sizeof(out[0]));
		ck_assert_mem_eq(lse[0], lse[1], sizeof(lse[0]));
		ck_assert_mem_eq(rows[0], rows[1], sizeof(rows[0]));
		ck_assert_uint_gt(rows[0][0], 0);
		ck_assert_uint_lt(rows[0][0], 1500); // sampled, not dense
	}
	test_client_close(&s[0]);
	test_client_close(&s[1]);
}
END_TEST

START_TEST(a_context_is_found_by_its_longest_prefix)
{
	struct test_client a, b;
	struct model_data other;
	mpig_context *x;
	uint64_t matched = 0;
	model_data_make(&other, &data.layer, 2, 600, 99);
	memcpy(other.ids, data.ids, 300 * sizeof(uint32_t));
	test_client_open(&a, d);
	test_client_open(&b, d);
	x = test_client_create(&a, "long", &data);
	ck_assert_status(test_client_fill(&a, x, &data, 0, 1200, 0), MPIG_OK);
	mpig_context_close(x);
	x = test_client_create(&a, "other", &other);
	ck_assert_status(test_client_fill(&a, x, &other, 0, 600, 0), MPIG_OK);
	mpig_context_close(x);
	struct mpig_open_options options = MPIG_INIT(struct mpig_open_options);
	options.fingerprint = test_client_fingerprint;
	options.fingerprint_bytes = sizeof(test_client_fingerprint);
	ck_assert_status(mpig_context_open_prefix(b.client, data.ids, 1500, &options, &x, &matched), MPIG_OK);
	ck_assert_uint_eq(matched, 1200);
	ck_assert_str_eq(mpig_context_name(x), "long");
	test_client_assert_dense(&b, x, &data, 0, matched);
	mpig_context_close(x);
	ck_assert_status(mpig_context_open_prefix(b.client, other.ids, 500, &options, &x, &matched), MPIG_OK);
	ck_assert_uint_eq(matched, 500);
	ck_assert_str_eq(mpig_context_name(x), "other");
	test_client_assert_dense(&b, x, &other, 0, matched);
	mpig_context_close(x);
	other.ids[0] ^= 1;
	ck_assert_status(mpig_context_open_prefix(b.client, other.ids, 500, &options, &x, &matched), MPIG_ENOENT);
	options.min_tokens = 1201;
	ck_assert_status(mpig_context_open_prefix(b.client, data.ids, 1500, &options, &x, &matched), MPIG_ENOENT);
	options.min_tokens = 0;
	options.fingerprint = "another model";
	options.fingerprint_bytes = 13;
	ck_assert_status(mpig_context_open_prefix(b.client, data.ids, 1500, &options, &x, &matched), MPIG_ENOENT);
	test_client_close(&a);
	test_client_close(&b);
	model_data_free(&other);
}
END_TEST

START_TEST(a_fork_shares_the_prefix_and_goes_its_own_way)
{
	struct test_client s;
	struct model_data own;
	mpig_context *parent, *child = NULL;
	test_client_open(&s, d);
	parent = test_client_create(&s, "parent", &data);
	ck_assert_status(test_client_fill(&s, parent, &data, 0, 2000, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(mpig_context_fork(parent, "child", 1500, &child), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(child), 1500);
	test_client_assert_dense(&s, child, &data, 0, 1500);
	model_data_make(&own, &data.layer, 2, 1600, 42);
	for (int layer = 0; layer < 2; layer++) { // the common part is the parent's
		size_t floats = 1500 * 3 * 64;
		memcpy(own.k + (size_t)layer * 1600 * 3 * 64, model_data_k(&data, layer, 0), floats * sizeof(float));
		memcpy(own.v + (size_t)layer * 1600 * 3 * 64, model_data_v(&data, layer, 0), floats * sizeof(float));
	}
	ck_assert_status(test_client_fill(&s, child, &own, 1500, 1600, 0), MPIG_OK);
	test_client_assert_dense(&s, child, &own, 0, 1600);
	test_client_assert_dense(&s, parent, &data, 0, 2000);
	mpig_context_close(parent);
	ck_assert_status(mpig_context_drop(s.client, "parent"), MPIG_OK);
	test_client_assert_dense(&s, child, &own, 0, 1600);
	test_client_close(&s);
	model_data_free(&own);
}
END_TEST

// ---- clients that die --------------------------------------------------------------------------------------------------
static pid_t child_of_test(int ready[2])
{
	ck_assert_int_eq(pipe2(ready, O_CLOEXEC), 0);
	fflush(NULL);
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ready[0]);
	} else {
		close(ready[1]);
	}
	return child;
}

// Returns when the child has said it is ready. Fails if it died first.
static void await(int ready)
{
	char byte;
	ck_assert_int_eq((int)read(ready, &byte, 1), 1);
	close(ready);
}

static void kill_child(pid_t child)
{
	int status;
	ck_assert_int_eq(kill(child, SIGKILL), 0);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
}

// A killed client's lease is free as soon as the daemon hears of the death: tried for 5 s.
static mpig_context *take_over(struct test_client *s, const char *name)
{
	mpig_context *x = NULL;
	int status = MPIG_EBUSY;
	for (int tries = 0; tries < 500 && status == MPIG_EBUSY; tries++) {
		struct timespec step = {0, tries ? 10000000 : 0};
		nanosleep(&step, NULL);
		status = test_client_find(s, name, MPIG_WRITE, &x);
	}
	ck_assert_status(status, MPIG_OK);
	return x;
}

START_TEST(rows_of_a_killed_client_vanish_unless_committed)
{
	int ready[2];
	pid_t victim = child_of_test(ready);
	struct test_client s;
	if (victim == 0) {
		test_client_open(&s, d);
		mpig_context *x = test_client_create(&s, "victim", &data);
		if (test_client_fill(&s, x, &data, 0, 2000, 0) == MPIG_OK &&
		    test_client_append(&s, x, &data, 2000, 2700) == MPIG_OK && write(ready[1], "r", 1) == 1)
			for (;;) // in the middle of an append when the signal comes
				test_client_append(&s, x, &data, 2000, 2700);
		_exit(1);
	}
	await(ready[0]);
	kill_child(victim);
	test_client_open(&s, d);
	mpig_context *x = take_over(&s, "victim");
	ck_assert_uint_eq(mpig_context_committed(x), 2000);
	test_client_assert_dense(&s, x, &data, 0, 2000);
	float k[3 * 64], v[3 * 64];
	ck_assert_status(mpig_read(s.queue, x, 0, 1999, 1, k, v), MPIG_OK);
	ck_assert_status(mpig_read(s.queue, x, 0, 2000, 1, k, v), MPIG_ERANGE);
	// The rows are forgotten, not only hidden: appending must begin again at the commit.
	ck_assert_status(test_client_append(&s, x, &data, 2700, 2701), MPIG_ERANGE);
	ck_assert_status(mpig_commit(s.queue, x, 2000, 700, data.ids + 2000, 0), MPIG_ERANGE);
	ck_assert_status(test_client_fill(&s, x, &data, 2000, 3000, MPIG_COMMIT_SEAL), MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, 3000);
	test_client_close(&s);
}
END_TEST

// The grandchild holds copies of the socket, so there is no hang-up to see: the death itself must be.
START_TEST(a_killed_client_gives_back_although_its_child_lives)
{
	int ready[2];
	pid_t victim = child_of_test(ready);
	struct test_client s;
	if (victim == 0) {
		test_client_open(&s, d);
		mpig_context *x = test_client_create(&s, "orphaned", &data);
		if (test_client_fill(&s, x, &data, 0, 100, 0) != MPIG_OK)
			_exit(1);
		pid_t grandchild = fork();
		if (grandchild == 0) {
			if (write(ready[1], &(pid_t){getpid()}, sizeof(pid_t)) == sizeof(pid_t))
				sleep(60);
			_exit(0);
		}
		for (;;)
			pause();
	}
	pid_t grandchild;
	ck_assert_int_eq((int)read(ready[0], &grandchild, sizeof(grandchild)), (int)sizeof(grandchild));
	close(ready[0]);
	kill_child(victim);
	test_client_open(&s, d);
	mpig_context *x = take_over(&s, "orphaned");
	ck_assert_int_eq(kill(grandchild, 0), 0);
	test_client_assert_dense(&s, x, &data, 0, 100);
	struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_status(mpig_daemon_status(s.client, &status), MPIG_OK);
	ck_assert_uint_eq(status.clients, 1);
	ck_assert_uint_eq(status.queues, 1);
	kill(grandchild, SIGKILL);
	test_client_close(&s);
}
END_TEST

START_TEST(a_forked_child_gets_an_error_and_the_parent_goes_on)
{
	struct test_client s;
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "forked", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 1000, 0), MPIG_OK);
	for (int disconnects = 0; disconnects < 2; disconnects++) {
		fflush(NULL);
		pid_t child = fork();
		ck_assert_int_ge(child, 0);
		if (child == 0) {
			struct mpig_completion done;
			mpig_context *other;
			int wrong = 0;
			wrong |= test_client_attend(&s, x, &data) != MPIG_EFORK;
			wrong |= (mpig_nop(s.queue) != MPIG_EFORK) << 1;
			wrong |= (mpig_submit_nop(s.queue, 1) != MPIG_EFORK) << 2;
			wrong |= (mpig_poll(s.queue, &done, 1) != MPIG_EFORK) << 3;
			wrong |= (mpig_ping(s.client) != MPIG_EFORK) << 4;
			wrong |= (test_client_find(&s, "forked", MPIG_READ, &other) != MPIG_EFORK) << 5;
			if (disconnects)
				mpig_disconnect(s.client);
			_exit(wrong);
		}
		int status;
		ck_assert_int_eq(waitpid(child, &status, 0), child);
		ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child: status %#x", status);
		test_client_assert_dense(&s, x, &data, 0, 1000);
	}
	ck_assert_status(test_client_fill(&s, x, &data, 1000, 1100, 0), MPIG_OK);
	test_client_close(&s);
}
END_TEST

// A child of a client opens a connection of its own, as it should.
START_TEST(a_forked_child_may_connect_for_itself)
{
	struct test_client s, own;
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "family", &data), *mine = NULL;
	ck_assert_status(test_client_fill(&s, x, &data, 0, 1000, 0), MPIG_OK);
	fflush(NULL);
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		mpig_disconnect(s.client);
		test_client_open(&own, d);
		int wrong = test_client_find(&own, "family", MPIG_READ, &mine) != MPIG_OK;
		wrong = wrong || test_client_attend(&own, mine, &data) != MPIG_OK;
		test_client_close(&own);
		_exit(wrong);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	test_client_assert_dense(&s, x, &data, 0, 1000);
	test_client_close(&s);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/sharing");
	TCase *sharing = tcase_create("sharing"), *deaths = tcase_create("deaths");
	tcase_add_checked_fixture(sharing, setup, teardown);
	tcase_set_timeout(sharing, 60);
	tcase_add_test(sharing, two_clients_share_one_context);
	tcase_add_test(sharing, the_same_seed_gives_two_clients_the_same_bits);
	tcase_add_test(sharing, a_context_is_found_by_its_longest_prefix);
	tcase_add_test(sharing, a_fork_shares_the_prefix_and_goes_its_own_way);
	suite_add_tcase(suite, sharing);
	tcase_add_checked_fixture(deaths, setup, teardown);
	tcase_set_timeout(deaths, 60);
	tcase_add_test(deaths, rows_of_a_killed_client_vanish_unless_committed);
	tcase_add_test(deaths, a_killed_client_gives_back_although_its_child_lives);
	tcase_add_test(deaths, a_forked_child_gets_an_error_and_the_parent_goes_on);
	tcase_add_test(deaths, a_forked_child_may_connect_for_itself);
	suite_add_tcase(suite, deaths);
	return suite_run(suite);
}
