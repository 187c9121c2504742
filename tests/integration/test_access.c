// Who may do what: the socket's permissions, another uid's contexts, quotas.
#include <check.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/suite.h"

#define STRANGER 65534u

static struct test_daemon *d;
static struct model_data data;

static void setup(const char *config)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 1, 1000, 7);
	d = test_daemon_start(config);
}

static void setup_private(void)
{
	setup("[daemon]\nsocket_mode = 0600\n");
}

static void setup_public(void)
{
	setup("[daemon]\nsocket_mode = 0666\n");
}

static void teardown(void)
{
	test_daemon_stop(d);
	model_data_free(&data);
}

// Runs `what` as another user in a child. Returns its number: 0 = all as expected. -1: we are not root and cannot.
static int as_stranger(int (*what)(void))
{
	int status;
	if (geteuid() != 0)
		return -1;
	fflush(NULL);
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		if (setgroups(0, NULL) || setresgid(STRANGER, STRANGER, STRANGER) || setresuid(STRANGER, STRANGER, STRANGER))
			_exit(99);
		_exit(what());
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFEXITED(status), "child: status %#x", status);
	return WEXITSTATUS(status);
}

static void expect_as_stranger(int (*what)(void), const char *name)
{
	int failed_step = as_stranger(what);
	if (failed_step < 0)
		printf("%s: skipped, needs root to become another user\n", name);
	else
		ck_assert_msg(failed_step == 0, "%s: step %d went wrong", name, failed_step);
}

// ---- the socket --------------------------------------------------------------------------------------------------------
static int connect_is_refused(void)
{
	struct mpig_connect_options options = MPIG_INIT(struct mpig_connect_options);
	mpig_client *client = NULL;
	options.socket_path = d->socket;
	return mpig_connect(&options, &client) == MPIG_EACCES && !client ? 0 : 1;
}

START_TEST(the_socket_has_its_permissions)
{
	struct test_client s;
	expect_as_stranger(connect_is_refused, "connect");
	test_client_open(&s, d);
	ck_assert_status(mpig_nop(s.queue), MPIG_OK);
	test_client_close(&s);
}
END_TEST

// ---- another uid's context ---------------------------------------------------------------------------------------------
static bool listed(struct test_client *s, const char *name)
{
	struct mpig_context_info infos[16];
	uint64_t cursor = 0;
	int n;
	do {
		for (int i = 0; i < 16; i++)
			infos[i] = (struct mpig_context_info)MPIG_INIT(struct mpig_context_info);
		n = mpig_context_list(s->client, &cursor, infos, 16);
		for (int i = 0; i < n; i++)
			if (strcmp(infos[i].name, name) == 0)
				return true;
	} while (n > 0 && cursor);
	return false;
}

static int find_prefix(struct test_client *s, mpig_context **x)
{
	struct mpig_open_options options = MPIG_INIT(struct mpig_open_options);
	options.fingerprint = test_client_fingerprint;
	options.fingerprint_bytes = sizeof(test_client_fingerprint);
	return mpig_context_open_prefix(s->client, data.ids, 500, &options, x, NULL);
}

static bool refused(int status)
{
	return status == MPIG_EACCES || status == MPIG_ENOENT;
}

static int secret_is_hidden(void)
{
	struct test_client s;
	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	mpig_context *x = NULL;
	struct mpig_layer layer;
	test_client_open(&s, d);
	int step = !refused(test_client_find(&s, "secret", MPIG_READ, &x))                          ? 1
	           : !refused(test_client_find(&s, "secret", MPIG_WRITE, &x))                       ? 2
	           : find_prefix(&s, &x) != MPIG_ENOENT                                             ? 3
	           : listed(&s, "secret")                                                           ? 4
	           : !refused(mpig_context_info(s.client, "secret", &info))                         ? 5
	           : !refused(mpig_context_layers(s.client, "secret", &layer, 1))                   ? 6
	           : !refused(mpig_context_drop(s.client, "secret"))                                ? 7
	           : !refused(mpig_context_chmod(s.client, "secret", 0666, UINT32_MAX, UINT32_MAX)) ? 8
	                                                                                            : 0;
	test_client_close(&s);
	return step;
}

static int readable_is_read_only(void)
{
	struct test_client s;
	mpig_context *x = NULL, *y = NULL;
	test_client_open(&s, d);
	int step = test_client_find(&s, "secret", MPIG_READ, &x) != MPIG_OK ? 1 : 0;
	if (!step) {
		test_client_assert_dense(&s, x, &data, 0, 500);
		step = test_client_find(&s, "secret", MPIG_WRITE, &y) != MPIG_EACCES                         ? 2
		       : find_prefix(&s, &y) != MPIG_OK                                                      ? 3
		       : !listed(&s, "secret")                                                               ? 4
		       : mpig_context_drop(s.client, "secret") != MPIG_EACCES                                ? 5
		       : mpig_context_chmod(s.client, "secret", 0666, UINT32_MAX, UINT32_MAX) != MPIG_EACCES ? 6
		       : test_client_append(&s, x, &data, 500, 600) != MPIG_ELEASE                           ? 7
		                                                                                             : 0;
	}
	test_client_close(&s);
	return step;
}

static int own_is_own(void)
{
	struct test_client s;
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "mine", &data);
	int step = test_client_fill(&s, x, &data, 0, 100, 0) != MPIG_OK ? 1 : !listed(&s, "mine") ? 2 : 0;
	test_client_close(&s);
	return step;
}

START_TEST(a_context_is_its_owners)
{
	struct test_client s;
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "secret", &data), *found = NULL;
	ck_assert_status(test_client_fill(&s, x, &data, 0, 500, 0), MPIG_OK);
	mpig_context_close(x);
	expect_as_stranger(secret_is_hidden, "a private context");
	ck_assert_status(mpig_context_chmod(s.client, "secret", 0604, UINT32_MAX, UINT32_MAX), MPIG_OK);
	expect_as_stranger(readable_is_read_only, "a readable context");
	ck_assert_status(mpig_context_chmod(s.client, "secret", 0600, UINT32_MAX, UINT32_MAX), MPIG_OK);
	expect_as_stranger(secret_is_hidden, "a context made private again");
	expect_as_stranger(own_is_own, "a context of its own");
	// All the while nothing has happened to it, and its owner sees it in every way.
	ck_assert(listed(&s, "secret"));
	ck_assert_status(find_prefix(&s, &found), MPIG_OK);
	test_client_assert_dense(&s, found, &data, 0, 500);
	test_client_close(&s);
}
END_TEST

// ---- quotas ------------------------------------------------------------------------------------------------------------
static void setup_quotas(void)
{
	setup("[limits]\nbytes_per_uid = 6M\ncontexts_per_uid = 3\nclients_per_uid = 3\nqueues_per_uid = 2\nregion_bytes_per_uid "
	      "= 64M\n");
}

static bool over(int status)
{
	return status == MPIG_EQUOTA || status == MPIG_ELIMIT;
}

START_TEST(contexts_have_a_quota)
{
	struct test_client s;
	mpig_context *x = NULL;
	test_client_open(&s, d);
	test_client_create(&s, "one", &data);
	test_client_create(&s, "two", &data);
	test_client_create(&s, "three", &data);
	struct mpig_spec spec = test_client_spec(&data.layer, 1);
	ck_assert_status(mpig_context_create(s.client, "four", &spec, &x), MPIG_EQUOTA);
	ck_assert_ptr_null(x);
	ck_assert_str_ne(mpig_last_error(s.client), "");
	ck_assert(!listed(&s, "four"));
	ck_assert_status(mpig_context_drop(s.client, "two"), MPIG_OK);
	ck_assert_status(mpig_context_create(s.client, "four", &spec, &x), MPIG_OK);
	test_client_close(&s);
}
END_TEST

// 2 KV heads * 64 * 2 (K and V) * 2 bytes = 512 bytes a row: 6 MiB hold fewer than 12,288 of them.
START_TEST(bytes_have_a_quota)
{
	struct test_client s;
	struct model_data large;
	model_data_make(&large, &data.layer, 1, 14000, 3);
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "large", &large);
	uint64_t held = 0;
	int status = MPIG_OK;
	while (held < large.tokens && (status = test_client_fill(&s, x, &large, held, held + 500, 0)) == MPIG_OK)
		held += 500;
	ck_assert_status(status, MPIG_EQUOTA);
	ck_assert_uint_gt(held, 4000);
	ck_assert_str_ne(mpig_last_error(s.client), "");
	test_client_assert_dense(&s, x, &large, 0, held); // what it holds is whole
	struct mpig_daemon_status now = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_status(mpig_daemon_status(s.client, &now), MPIG_OK);
	ck_assert_uint_eq(now.quota_bytes, 6 << 20);
	ck_assert_uint_le(now.quota_used, now.quota_bytes);
	mpig_context_close(x);
	ck_assert_status(mpig_context_drop(s.client, "large"), MPIG_OK);
	x = test_client_create(&s, "next", &large);
	ck_assert_status(test_client_fill(&s, x, &large, 0, 4000, 0), MPIG_OK);
	test_client_assert_dense(&s, x, &large, 0, 4000);
	test_client_close(&s);
	model_data_free(&large);
}
END_TEST

START_TEST(queues_and_their_memory_have_quotas)
{
	struct test_client s;
	mpig_queue *q[2] = {NULL, NULL};
	struct mpig_queue_options options = MPIG_INIT(struct mpig_queue_options);
	test_client_open(&s, d); // with one queue of 16 MiB
	options.entries = 16;
	options.slot_bytes = 4 << 20;
	ck_assert(over(mpig_queue_create(s.client, &options, &q[0]))); // 64 MiB more
	ck_assert_str_ne(mpig_last_error(s.client), "");
	options.slot_bytes = 4096;
	ck_assert_status(mpig_queue_create(s.client, &options, &q[0]), MPIG_OK);
	ck_assert(over(mpig_queue_create(s.client, &options, &q[1])));
	ck_assert_status(mpig_nop(q[0]), MPIG_OK);
	mpig_queue_destroy(q[0]);
	int status = MPIG_EQUOTA; // a queue counts until the last worker has left it
	for (int tries = 0; tries < 500 && over(status = mpig_queue_create(s.client, &options, &q[1])); tries++)
		usleep(10000);
	ck_assert_status(status, MPIG_OK);
	ck_assert_status(mpig_nop(q[1]), MPIG_OK);
	ck_assert_status(mpig_nop(s.queue), MPIG_OK);
	test_client_close(&s);
}
END_TEST

START_TEST(connections_have_a_quota)
{
	struct mpig_connect_options options = MPIG_INIT(struct mpig_connect_options);
	mpig_client *c[4] = {NULL};
	options.socket_path = d->socket;
	options.reconnect_ms = -1;
	for (int i = 0; i < 3; i++)
		ck_assert_status(mpig_connect(&options, &c[i]), MPIG_OK);
	int status = mpig_connect(&options, &c[3]);
	ck_assert_msg(over(status), "status %d", status);
	for (int i = 0; i < 3; i++)
		ck_assert_status(mpig_ping(c[i]), MPIG_OK);
	mpig_disconnect(c[1]);
	for (int tries = 0; tries < 500 && (status = mpig_connect(&options, &c[3])) != MPIG_OK; tries++)
		usleep(10000); // the daemon hears of the disconnection in its own time
	ck_assert_status(status, MPIG_OK);
	mpig_disconnect(c[0]);
	mpig_disconnect(c[2]);
	mpig_disconnect(c[3]);
}
END_TEST

// ---- of groups, and while the daemon runs ------------------------------------------------------------------------------
static void setup_plain(void)
{
	setup(NULL);
}

static int configure(struct test_client *s, const char *assignment)
{
	char text[512];
	int status = mpig_daemon_configure(s->client, assignment, text, sizeof text);
	return status < 0 ? status : MPIG_OK;
}

START_TEST(limits_of_groups_hold_at_once)
{
	struct test_client s;
	mpig_context *x;
	mpig_client *more = NULL;
	mpig_queue *q = NULL;
	struct mpig_connect_options options = MPIG_INIT(struct mpig_connect_options);
	struct mpig_queue_options small = MPIG_INIT(struct mpig_queue_options);
	struct mpig_spec spec = test_client_spec(&data.layer, 1);
	options.socket_path = d->socket;
	options.reconnect_ms = -1;
	small.entries = 8;
	small.slot_bytes = 4096;
	test_client_open(&s, d);
	test_client_create(&s, "one", &data);
	ck_assert_status(configure(&s, "limits.contexts_per_gid=1"), MPIG_OK);
	ck_assert_status(mpig_context_create(s.client, "two", &spec, &x), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "limits.contexts_per_gid: gid 0 has 1 contexts and may have 1"));
	ck_assert_status(configure(&s, "limits.contexts_per_gid=0"), MPIG_OK);
	ck_assert_status(mpig_context_create(s.client, "two", &spec, &x), MPIG_OK);
	ck_assert_status(configure(&s, "limits.queues_per_gid=1"), MPIG_OK);
	ck_assert_status(mpig_queue_create(s.client, &small, &q), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "limits.queues_per_gid: gid 0 has 1 queues and may have 1"));
	ck_assert_status(configure(&s, "limits.clients_per_gid=1"), MPIG_OK);
	ck_assert_status(mpig_connect(&options, &more), MPIG_EQUOTA);
	ck_assert_status(configure(&s, "limits.clients_per_gid=2"), MPIG_OK);
	ck_assert_status(mpig_connect(&options, &more), MPIG_OK);
	mpig_disconnect(more);
	test_client_close(&s);
}
END_TEST

// By number or by name; others keep what holds for all.
START_TEST(one_user_may_have_its_own_limits)
{
	struct test_client s;
	mpig_context *x;
	mpig_queue *q = NULL;
	struct mpig_queue_options small = MPIG_INIT(struct mpig_queue_options);
	struct mpig_spec spec = test_client_spec(&data.layer, 1);
	struct mpig_daemon_status now = MPIG_INIT(struct mpig_daemon_status);
	char mine[64];
	small.entries = 8;
	small.slot_bytes = 4096;
	test_client_open(&s, d);
	snprintf(mine, sizeof mine, "limits user %u.contexts=1", (unsigned)geteuid());
	ck_assert_status(configure(&s, "limits.contexts_per_uid=7"), MPIG_OK);
	ck_assert_status(configure(&s, "limits user 64999.contexts=100"), MPIG_OK); // nobody here
	ck_assert_status(configure(&s, mine), MPIG_OK);
	test_client_create(&s, "one", &data);
	ck_assert_status(mpig_context_create(s.client, "two", &spec, &x), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "has 1 contexts and may have 1"));
	snprintf(mine, sizeof mine, "limits user %u.contexts=2", (unsigned)geteuid());
	ck_assert_status(configure(&s, mine), MPIG_OK);
	ck_assert_status(mpig_context_create(s.client, "two", &spec, &x), MPIG_OK);
	snprintf(mine, sizeof mine, "limits user %u.queues=1", (unsigned)geteuid());
	ck_assert_status(configure(&s, mine), MPIG_OK);
	ck_assert_status(mpig_queue_create(s.client, &small, &q), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "has 1 queues and may have 1"));
	snprintf(mine, sizeof mine, "limits user %u.bytes=123M", (unsigned)geteuid());
	ck_assert_status(configure(&s, mine), MPIG_OK);
	ck_assert_status(mpig_daemon_status(s.client, &now), MPIG_OK);
	ck_assert_uint_eq(now.quota_bytes, 123 << 20);
	ck_assert_status(configure(&s, "limits user no-such-user.bytes=1G"), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "there is no user of that name; a number is allowed as well"));
	ck_assert_status(configure(&s, NULL), MPIG_OK); // reload: as the file has it
	ck_assert_status(mpig_daemon_status(s.client, &now), MPIG_OK);
	ck_assert_uint_eq(now.quota_bytes, 0);
	ck_assert_status(mpig_queue_create(s.client, &small, &q), MPIG_OK);
	test_client_close(&s);
}
END_TEST

// Requests over the rate wait, in order, and none is refused. The bound is from below: a slow machine only makes it longer.
START_TEST(requests_over_the_rate_wait)
{
	struct test_client s;
	struct timespec begin, end;
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "paced", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 500, 0), MPIG_OK);
	for (int group = 0; group < 2; group++) {
		ck_assert_status(configure(&s, group ? "limits.requests_per_gid=100" : "limits.requests_per_uid=100"), MPIG_OK);
		clock_gettime(CLOCK_MONOTONIC, &begin);
		for (int i = 0; i < 40; i++)
			ck_assert_status(mpig_nop(s.queue), MPIG_OK);
		clock_gettime(CLOCK_MONOTONIC, &end);
		double took = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
		ck_assert_msg(took >= .28, "40 requests at 100 a second, 11 of them at once, took %.3f s", took);
		test_client_assert_dense(&s, x, &data, 0, 500);
		ck_assert_status(configure(&s, group ? "limits.requests_per_gid=0" : "limits.requests_per_uid=0"), MPIG_OK);
	}
	ck_assert(test_daemon_logged(d, "limits.requests_per_uid: requests of uid"));
	// The limit is lifted while a request waits.
	ck_assert_status(configure(&s, "limits.requests_per_uid=1"), MPIG_OK);
	ck_assert_status(mpig_nop(s.queue), MPIG_OK);
	ck_assert_status(configure(&s, "limits.requests_per_uid=0"), MPIG_OK);
	for (int i = 0; i < 1000; i++)
		ck_assert_status(mpig_nop(s.queue), MPIG_OK);
	test_client_close(&s);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/access");
	TCase *closed = tcase_create("private socket"), *open = tcase_create("contexts"), *quotas = tcase_create("quotas");
	tcase_add_checked_fixture(closed, setup_private, teardown);
	tcase_set_timeout(closed, 60);
	tcase_add_test(closed, the_socket_has_its_permissions);
	suite_add_tcase(suite, closed);
	tcase_add_checked_fixture(open, setup_public, teardown);
	tcase_set_timeout(open, 60);
	tcase_add_test(open, a_context_is_its_owners);
	suite_add_tcase(suite, open);
	tcase_add_checked_fixture(quotas, setup_quotas, teardown);
	tcase_set_timeout(quotas, 60);
	tcase_add_test(quotas, contexts_have_a_quota);
	tcase_add_test(quotas, bytes_have_a_quota);
	tcase_add_test(quotas, queues_and_their_memory_have_quotas);
	tcase_add_test(quotas, connections_have_a_quota);
	suite_add_tcase(suite, quotas);
	TCase *live = tcase_create("limits while the daemon runs");
	tcase_add_checked_fixture(live, setup_plain, teardown);
	tcase_set_timeout(live, 60);
	tcase_add_test(live, limits_of_groups_hold_at_once);
	tcase_add_test(live, one_user_may_have_its_own_limits);
	tcase_add_test(live, requests_over_the_rate_wait);
	suite_add_tcase(suite, live);
	return suite_run(suite);
}
