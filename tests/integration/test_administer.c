// Looking after a daemon: who is connected, ending connections, what users hold, draining; and who may.
#include <check.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/suite.h"

#define STRANGER 65534u

static struct test_daemon *d;
static struct model_data data;
static struct test_client me;

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 1, 1000, 7);
	d = test_daemon_start("[daemon]\nsocket_mode = 0666\n[limits]\nclients_per_uid = 50\nrequests_per_gid = 777\n");
	test_client_open(&me, d);
}

static void teardown(void)
{
	test_client_close(&me);
	test_daemon_stop(d);
	model_data_free(&data);
}

static int list(mpig_client *client, struct mpig_client_info *infos, int max)
{
	uint64_t cursor = 0;
	int count = 0, n;
	do {
		infos[count] = (struct mpig_client_info)MPIG_INIT(infos[count]);
		n = mpig_client_list(client, &cursor, &infos[count], max - count < 3 ? max - count : 3); // pages of three
		count += n > 0 ? n : 0;
	} while (n > 0 && count < max);
	return n < 0 ? n : count;
}

static struct mpig_client_info self(mpig_client *client)
{
	struct mpig_client_info infos[64];
	int n = list(client, infos, 64);
	for (int i = 0; i < n; i++)
		if (infos[i].flags & MPIG_CLIENT_INFO_SELF)
			return infos[i];
	ck_abort_msg("not in the list of %d", n);
	return infos[0];
}

START_TEST(every_connection_is_listed_once)
{
	struct test_client more[10];
	struct mpig_client_info infos[64];
	for (int i = 0; i < 10; i++)
		test_client_open(&more[i], d);
	ck_assert_int_eq(list(me.client, infos, 64), 11);
	for (int i = 0; i < 11; i++) {
		ck_assert_uint_eq(infos[i].pid, getpid());
		ck_assert_uint_eq(infos[i].uid, geteuid());
		ck_assert_uint_gt(infos[i].connected_ns, 0);
		ck_assert_uint_eq(infos[i].queues, 1);
		ck_assert(i == 0 || infos[i].id < infos[i - 1].id);
		ck_assert_uint_eq(infos[i].flags & MPIG_CLIENT_INFO_SELF, i == 10 ? MPIG_CLIENT_INFO_SELF : 0);
		ck_assert_str_eq(infos[i].command, "test_administer");
	}
	for (int i = 0; i < 10; i++)
		test_client_close(&more[i]);
}
END_TEST

START_TEST(a_connection_shows_what_it_does)
{
	mpig_context *x = test_client_create(&me, "book", &data);
	ck_assert_status(test_client_fill(&me, x, &data, 0, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_attend(&me, x, &data), MPIG_OK);
	struct mpig_client_info seen = self(me.client);
	ck_assert_uint_eq(seen.contexts, 1);
	ck_assert_uint_eq(seen.leases, 1);
	ck_assert(seen.flags & MPIG_CLIENT_INFO_COUNTED);
	ck_assert_uint_eq(seen.attends, 1);
	ck_assert_uint_eq(seen.appended_rows, 1000);
	ck_assert_uint_gt(seen.rows_read, 0);
	ck_assert_uint_gt(seen.service_ns, 0);
	ck_assert_uint_gt(seen.region_bytes, 0);
	ck_assert_uint_eq(seen.errors, 0);
	ck_assert_status(mpig_append(me.queue, x, 0, 5000, 1, MPIG_F32, data.k, data.v, NULL, 0), MPIG_ERANGE);
	ck_assert_uint_eq(self(me.client).errors, 1);
}
END_TEST

START_TEST(a_killed_client_loses_what_it_held_and_may_come_back)
{
	struct test_client victim, writer;
	mpig_context *x, *again;
	test_client_open(&victim, d);
	x = test_client_create(&victim, "book", &data);
	ck_assert_status(test_client_fill(&victim, x, &data, 0, 500, 0), MPIG_OK);
	ck_assert_status(test_client_append(&victim, x, &data, 500, 600), MPIG_OK); // and does not commit
	test_client_open(&writer, d);
	ck_assert_status(test_client_find(&writer, "book", MPIG_WRITE, &again), MPIG_EBUSY);
	ck_assert_status(mpig_client_kill(me.client, self(victim.client).id), MPIG_OK);
	ck_assert_status(test_client_find(&writer, "book", MPIG_WRITE, &again), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(again), 500);
	ck_assert_status(test_client_fill(&writer, again, &data, 500, 600, 0), MPIG_OK);
	mpig_context_close(again);
	ck_assert_status(mpig_ping(victim.client), MPIG_OK); // by itself, as after a restart
	test_client_close(&victim);
	test_client_close(&writer);
}
END_TEST

START_TEST(a_client_that_is_not_there)
{
	ck_assert_status(mpig_client_kill(me.client, 12345), MPIG_ENOENT);
	ck_assert_str_eq(mpig_last_error(me.client), "there is no client 12345");
	uint64_t own = self(me.client).id;
	ck_assert_status(mpig_client_kill(me.client, own), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(me.client), "is this connection"));
	ck_assert_uint_eq(self(me.client).id, own);
}
END_TEST

START_TEST(quota_is_what_the_limits_and_the_store_say)
{
	struct mpig_quota before = MPIG_INIT(before), after = MPIG_INIT(after);
	ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &before), MPIG_OK);
	ck_assert_uint_eq(before.uid, geteuid());
	ck_assert_uint_eq(before.clients, 1);
	ck_assert_uint_eq(before.clients_limit, 50);
	ck_assert_uint_eq(before.queues, 1);
	ck_assert_uint_gt(before.region_bytes, 0);
	ck_assert_uint_ge(before.region_bytes_limit, before.region_bytes);
	mpig_context *x = test_client_create(&me, "book", &data);
	ck_assert_status(test_client_fill(&me, x, &data, 0, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(mpig_quota_get(me.client, geteuid(), &after), MPIG_OK);
	ck_assert_uint_eq(after.contexts, before.contexts + 1);
	ck_assert_uint_ge(after.bytes, before.bytes + 1000 * 2 * 2 * 64 * 2);
	ck_assert_status(mpig_quota_get(me.client, 4242, &after), MPIG_OK); // of somebody who holds nothing
	ck_assert_uint_eq(after.bytes + after.contexts + after.clients + after.queues, 0);
	ck_assert_status(mpig_quota_get_group(me.client, UINT32_MAX, &after), MPIG_OK);
	ck_assert_uint_eq(after.group, 1);
	ck_assert_uint_eq(after.uid, getegid());
	ck_assert_uint_eq(after.clients, 1);
	ck_assert_uint_eq(after.clients_limit, 0);
	ck_assert_uint_eq(after.contexts, before.contexts + 1);
	ck_assert_uint_ge(after.bytes, 1000 * 2 * 2 * 64 * 2);
	ck_assert_uint_eq(after.region_bytes, before.region_bytes);
	ck_assert_uint_eq(after.requests_limit, 777);
	ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &after), MPIG_OK);
	ck_assert_uint_eq(after.group, 0);
	ck_assert_uint_eq(after.requests_limit, 0);
	ck_assert_status(mpig_quota_get_group(me.client, 4242, &after), MPIG_OK);
	ck_assert_uint_eq(after.contexts + after.clients, 0);
}
END_TEST

START_TEST(a_drained_daemon_serves_what_is_open)
{
	struct mpig_drain_state state = MPIG_INIT(state);
	mpig_context *x = test_client_create(&me, "book", &data), *y;
	mpig_queue *queue;
	ck_assert_status(test_client_fill(&me, x, &data, 0, 500, 0), MPIG_OK);
	ck_assert_status(mpig_daemon_drain(me.client, MPIG_DRAIN_ON, &state), MPIG_OK);
	ck_assert_uint_eq(state.drained, 1);
	ck_assert_uint_eq(state.queues, 1);
	ck_assert_status(test_client_fill(&me, x, &data, 500, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_attend(&me, x, &data), MPIG_OK);
	ck_assert_status(mpig_queue_create(me.client, NULL, &queue), MPIG_ESHUTDOWN);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(me.client), "the daemon is drained"));
	ck_assert_status(test_client_find(&me, "book", MPIG_READ, &y), MPIG_ESHUTDOWN);
	ck_assert_status(mpig_context_fork(x, "child", 10, &y), MPIG_ESHUTDOWN);
	struct mpig_daemon_status status = MPIG_INIT(status);
	ck_assert_status(mpig_daemon_status(me.client, &status), MPIG_OK);
	ck_assert_uint_eq(status.drained, 1);
	ck_assert_status(mpig_daemon_drain(me.client, MPIG_DRAIN_OFF, &state), MPIG_OK);
	ck_assert_uint_eq(state.drained, 0);
	ck_assert_status(mpig_context_fork(x, "child", 10, &y), MPIG_OK);
	ck_assert_status(mpig_daemon_drain(me.client, 9, NULL), MPIG_EINVAL);
	ck_assert(test_daemon_logged(d, "drained by uid") && test_daemon_logged(d, "no longer drained"));
}
END_TEST

// A client that comes back meanwhile cannot open its contexts again; once it can, they are open, all of them.
START_TEST(a_client_that_comes_back_to_a_drained_daemon_waits_for_it)
{
	struct test_client other;
	test_client_open_hasty(&other, d, 5000, 50);
	mpig_context *x = test_client_create(&other, "book", &data);
	ck_assert_status(test_client_fill(&other, x, &data, 0, 500, 0), MPIG_OK);
	uint64_t id = self(other.client).id;
	ck_assert_status(mpig_daemon_drain(me.client, MPIG_DRAIN_ON, NULL), MPIG_OK);
	ck_assert_status(mpig_client_kill(me.client, id), MPIG_OK);
	ck_assert_status(mpig_ping(other.client), MPIG_ESHUTDOWN);
	ck_assert_status(test_client_attend(&other, x, &data), MPIG_ESHUTDOWN);
	ck_assert_status(mpig_daemon_drain(me.client, MPIG_DRAIN_OFF, NULL), MPIG_OK);
	ck_assert_status(test_client_attend(&other, x, &data), MPIG_OK);
	ck_assert_status(test_client_fill(&other, x, &data, 500, 600, 0), MPIG_OK); // the lease, too
	test_client_close(&other);
}
END_TEST

// ---- strangers ---------------------------------------------------------------------------------------------------------
static uint64_t my_id;

// In a child, as another user: the number of the step that went wrong, or 0.
static int what_a_stranger_may(void)
{
	struct mpig_client_info infos[64];
	struct mpig_connect_options options = MPIG_INIT(options);
	struct mpig_quota quota = MPIG_INIT(quota);
	struct mpig_drain_state state = MPIG_INIT(state);
	mpig_client *client;
	options.socket_path = d->socket;
	if (mpig_connect(&options, &client))
		return 1;
	if (list(client, infos, 64) != 1 || infos[0].uid != STRANGER)
		return 2;
	if (mpig_client_kill(client, my_id) != MPIG_EACCES)
		return 3;
	if (mpig_quota_get(client, 0, &quota) != MPIG_EACCES)
		return 4;
	if (mpig_quota_get(client, UINT32_MAX, &quota) || quota.uid != STRANGER || quota.clients != 1)
		return 5;
	if (mpig_daemon_drain(client, MPIG_DRAIN_ON, NULL) != MPIG_EACCES ||
	    mpig_daemon_drain(client, MPIG_DRAIN_OFF, NULL) != MPIG_EACCES)
		return 6;
	if (mpig_daemon_drain(client, MPIG_DRAIN_STATE, &state) || state.drained)
		return 7;
	mpig_client *other; // one's own connections one may end
	if (mpig_connect(&options, &other) || list(client, infos, 64) != 2 || mpig_client_kill(client, infos[0].id) ||
	    list(client, infos, 64) != 1)
		return 8;
	mpig_disconnect(other);
	mpig_disconnect(client);
	return 0;
}

START_TEST(strangers_see_and_end_their_own)
{
	int status;
	if (geteuid() != 0) {
		puts("strangers: skipped, needs root to become another user");
		return;
	}
	my_id = self(me.client).id;
	fflush(NULL);
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		if (setgroups(0, NULL) || setresgid(STRANGER, STRANGER, STRANGER) || setresuid(STRANGER, STRANGER, STRANGER))
			_exit(99);
		_exit(what_a_stranger_may());
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "step %d went wrong", WEXITSTATUS(status));
	ck_assert_uint_eq(self(me.client).id, my_id);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("administer");
	TCase *tcase = tcase_create("administer");
	tcase_set_timeout(tcase, 60);
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, every_connection_is_listed_once);
	tcase_add_test(tcase, a_connection_shows_what_it_does);
	tcase_add_test(tcase, a_killed_client_loses_what_it_held_and_may_come_back);
	tcase_add_test(tcase, a_client_that_is_not_there);
	tcase_add_test(tcase, quota_is_what_the_limits_and_the_store_say);
	tcase_add_test(tcase, a_drained_daemon_serves_what_is_open);
	tcase_add_test(tcase, a_client_that_comes_back_to_a_drained_daemon_waits_for_it);
	tcase_add_test(tcase, strangers_see_and_end_their_own);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
