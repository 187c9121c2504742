// The daemon stops, hangs or dies under a client: a clear status in bounded time, never a hang, and a way on.
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/suite.h"

static struct test_daemon *d;
static struct model_data data;

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 1, 1000, 7);
	d = test_daemon_start(NULL);
}

static void teardown(void)
{
	test_daemon_free(d);
	model_data_free(&data);
}

static void assert_gone(int status)
{
	ck_assert_msg(status == MPIG_ERETRY || status == MPIG_ENODAEMON || status == MPIG_ESHUTDOWN, "status %d (%s)", status,
	              mpig_strerror(status));
}

START_TEST(a_killed_daemon_is_told_by_every_call)
{
	struct test_client s;
	mpig_context *x, *other = NULL;
	test_client_open_hasty(&s, d, 2000, -1);
	x = test_client_create(&s, "x", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 500, 0), MPIG_OK);
	test_daemon_kill(d);
	assert_gone(test_client_attend(&s, x, &data));
	assert_gone(test_client_append(&s, x, &data, 500, 600));
	assert_gone(mpig_commit(s.queue, x, 500, 100, data.ids + 500, 0));
	assert_gone(mpig_nop(s.queue));
	assert_gone(mpig_ping(s.client));
	ck_assert_str_ne(mpig_last_error(s.client), "");
	assert_gone(test_client_find(&s, "x", MPIG_READ, &other));
	struct mpig_connect_options options = MPIG_INIT(struct mpig_connect_options);
	mpig_client *late = NULL;
	options.socket_path = d->socket;
	ck_assert_status(mpig_connect(&options, &late), MPIG_ENODAEMON); // its socket file is still there
	test_client_close(&s);
}
END_TEST

START_TEST(nobody_has_ever_listened)
{
	struct mpig_connect_options options = MPIG_INIT(struct mpig_connect_options);
	mpig_client *client = NULL;
	char path[TEST_DAEMON_PATH];
	snprintf(path, sizeof(path), "%s/nobody.sock", d->dir);
	options.socket_path = path;
	ck_assert_status(mpig_connect(&options, &client), MPIG_ENODAEMON);
	ck_assert_ptr_null(client);
}
END_TEST

struct loop {
	struct test_client *s;
	mpig_context *x;
	unsigned long done;
	int status;
};

static void *attend_until_it_fails(void *argument)
{
	struct loop *l = argument;
	while ((l->status = test_client_attend(l->s, l->x, &data)) == MPIG_OK)
		__atomic_add_fetch(&l->done, 1, __ATOMIC_RELAXED);
	return NULL;
}

// _i: SIGTERM or SIGKILL while requests are in flight.
START_TEST(a_daemon_stopped_during_requests_is_told)
{
	struct test_client s;
	test_client_open_hasty(&s, d, 5000, -1);
	struct loop l = {.s = &s, .x = test_client_create(&s, "x", &data)};
	ck_assert_status(test_client_fill(&s, l.x, &data, 0, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
	pthread_t thread;
	ck_assert_int_eq(pthread_create(&thread, NULL, attend_until_it_fails, &l), 0);
	struct timespec step = {0, 1000000};
	while (__atomic_load_n(&l.done, __ATOMIC_RELAXED) < 200)
		nanosleep(&step, NULL);
	if (_i) {
		test_daemon_kill(d);
	} else {
		test_daemon_term(d);
		ck_assert_int_eq(test_daemon_wait(d), 0); // a client that asks for ever does not delay the end
	}
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	assert_gone(l.status);
	test_client_close(&s);
}
END_TEST

START_TEST(requests_in_flight_fail_with_the_daemon)
{
	struct test_client s;
	int64_t tickets[8];
	test_client_open_hasty(&s, d, 5000, -1);
	ck_assert_status(mpig_nop(s.queue), MPIG_OK);
	test_daemon_freeze(d);
	for (int i = 0; i < 8; i++) {
		tickets[i] = mpig_submit_nop(s.queue, (uint64_t)i);
		ck_assert_int_gt(tickets[i], 0);
	}
	test_daemon_kill(d);
	for (int i = 0; i < 8; i++)
		assert_gone(mpig_wait(s.queue, tickets[i], 5000));
	test_client_close(&s);
}
END_TEST

START_TEST(a_stuck_daemon_is_a_deadline_passed)
{
	struct test_client s;
	test_client_open_hasty(&s, d, 300, -1);
	mpig_context *x = test_client_create(&s, "x", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 500, 0), MPIG_OK);
	test_daemon_freeze(d);
	int64_t ticket = mpig_submit_nop(s.queue, 1);
	ck_assert_int_gt(ticket, 0);
	ck_assert_status(mpig_wait(s.queue, ticket, 100), MPIG_ETIMEDOUT);
	ck_assert_status(test_client_attend(&s, x, &data), MPIG_ETIMEDOUT);
	test_daemon_thaw(d);
	ck_assert_status(mpig_wait(s.queue, ticket, 5000), MPIG_OK); // late, not lost
	int status = MPIG_ETIMEDOUT;
	for (int tries = 0; tries < 20 && status == MPIG_ETIMEDOUT; tries++)
		status = test_client_attend(&s, x, &data);
	ck_assert_status(status, MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, 500);
	test_client_close(&s);
	test_daemon_stop(d);
	d = test_daemon_start(NULL);
}
END_TEST

START_TEST(a_new_daemon_takes_the_client_over)
{
	struct test_client s;
	mpig_context *x, *again;
	test_client_open_hasty(&s, d, 5000, 5000);
	x = test_client_create(&s, "x", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 500, 0), MPIG_OK);
	struct mpig_daemon_status before = MPIG_INIT(struct mpig_daemon_status), after = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_status(mpig_daemon_status(s.client, &before), MPIG_OK);
	test_daemon_kill(d);
	test_daemon_again(d); // over the dead one's socket file and pool
	// The first calls may be those that notice; then the client is through, on the same queue.
	int status = MPIG_ERETRY;
	for (int tries = 0; tries < 5 && status == MPIG_ERETRY; tries++)
		status = mpig_nop(s.queue);
	ck_assert_status(status, MPIG_OK);
	ck_assert_status(mpig_daemon_status(s.client, &after), MPIG_OK);
	ck_assert_uint_ne(before.epoch, after.epoch);
	ck_assert_uint_eq(after.queues, 1);
	for (int tries = 0; tries < 5 && (status = test_client_attend(&s, x, &data)) == MPIG_ERETRY; tries++)
		;
	if (status == MPIG_ELOST) { // the new daemon does not have it: make it again
		mpig_context_close(x);
		again = test_client_create(&s, "x", &data);
		ck_assert_status(test_client_fill(&s, again, &data, 0, 500, 0), MPIG_OK);
	} else {
		ck_assert_status(status, MPIG_OK);
		again = x;
	}
	test_client_assert_dense(&s, again, &data, 0, 500);
	test_client_close(&s);
	test_daemon_stop(d);
	d = test_daemon_start(NULL);
}
END_TEST

START_TEST(a_second_daemon_on_the_socket_is_refused)
{
	const char *program = getenv("MAGICPIGD") ? getenv("MAGICPIGD") : "build/magicpigd";
	struct test_client s;
	test_client_open(&s, d);
	fflush(NULL);
	pid_t second = fork();
	ck_assert_int_ge(second, 0);
	if (second == 0) {
		int log = open(d->log, O_WRONLY | O_APPEND);
		dup2(log, 2);
		execl(program, program, "--config", d->config, (char *)NULL);
		_exit(0);
	}
	int status;
	ck_assert_int_eq(waitpid(second, &status, 0), second);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) != 0);
	ck_assert(test_daemon_logged(d, "already"));
	ck_assert(test_daemon_logged(d, d->socket));
	ck_assert_status(mpig_nop(s.queue), MPIG_OK); // the first one goes on, its files untouched
	ck_assert_status(mpig_ping(s.client), MPIG_OK);
	test_client_close(&s);
	test_daemon_stop(d);
	d = test_daemon_start(NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/vanish");
	TCase *t = tcase_create("vanish");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, a_killed_daemon_is_told_by_every_call);
	tcase_add_test(t, nobody_has_ever_listened);
	tcase_add_loop_test(t, a_daemon_stopped_during_requests_is_told, 0, 2);
	tcase_add_test(t, requests_in_flight_fail_with_the_daemon);
	tcase_add_test(t, a_stuck_daemon_is_a_deadline_passed);
	tcase_add_test(t, a_new_daemon_takes_the_client_over);
	tcase_add_test(t, a_second_daemon_on_the_socket_is_refused);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
