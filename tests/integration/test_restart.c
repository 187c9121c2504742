// The daemon is killed or stopped and another one starts on the same pool: contexts are there with the same bits, clients go on by
// themselves, and what must not be served is not.
#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { PREFILL = 5000, TOKENS = 5400, HEADS = 9, D = 64 };

static struct test_daemon *d;
static struct model_data data;

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(HEADS, 3, D);
	model_data_make(&data, &layer, 2, TOKENS, 11);
	d = test_daemon_start("[pool]\nkeep = yes\n");
}

static void teardown(void)
{
	test_daemon_free(d);
	model_data_free(&data);
}

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

struct answer {
	float out[HEADS * D], lse[HEADS];
	uint32_t rows[HEADS];
};

// Samples rows of [4, end) of layer 1; the same arguments give the same bits. A status.
static int ask(struct test_client *s, mpig_context *x, int64_t end, uint64_t seed, struct answer *answer)
{
	float q[HEADS * D];
	model_normal(q, HEADS * D, 1000 + seed);
	struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
	struct mpig_result result = MPIG_INIT(struct mpig_result);
	attend.layer = 1;
	attend.proposal = MPIG_PROPOSAL_SIGNATURE;
	attend.q = q;
	attend.begin = 4;
	attend.end = end;
	attend.budget = .05f;
	attend.seed = seed;
	attend.query_position = PREFILL;
	memset(answer, 0, sizeof(*answer));
	result.out = answer->out;
	result.lse = answer->lse;
	result.rows = answer->rows;
	return mpig_attend(s->queue, x, &attend, &result);
}

static mpig_context *prefill(struct test_client *s, const char *name)
{
	mpig_context *x = test_client_create(s, name, &data);
	ck_assert_status(test_client_fill(s, x, &data, 0, PREFILL, MPIG_COMMIT_SEAL), MPIG_OK);
	return x;
}

static void assert_sampled(const struct answer *a)
{
	for (int h = 0; h < HEADS; h++)
		ck_assert_msg(a->rows[h] > 0 && a->rows[h] < PREFILL / 2, "head %d attended %u rows", h, a->rows[h]);
}

// ---- a client that decodes while its daemon is killed ------------------------------------------------------------------
struct decoder {
	struct test_client s;
	mpig_context *x;
	uint64_t retries;
	_Atomic uint64_t done; // tokens committed, as the daemon said
	struct answer answer[TOKENS - PREFILL];
};

// A commit whose answer was lost may have been done: the length says so once the client is through again.
static int decode_step(struct decoder *c, uint64_t token)
{
	int status = mpig_context_committed(c->x) > token ? MPIG_OK : test_client_fill(&c->s, c->x, &data, token, token + 1, 0);
	return status ? status : ask(&c->s, c->x, (int64_t)token + 1, token, &c->answer[token - PREFILL]);
}

static void *decode(void *argument)
{
	struct decoder *c = argument;
	for (uint64_t token = PREFILL; token < TOKENS;) {
		int status = decode_step(c, token);
		ck_assert_msg(status == MPIG_OK || status == MPIG_ERETRY, "token %llu: %s: %s", (unsigned long long)token,
		              mpig_strerror(status), mpig_last_error(c->s.client));
		if (status == MPIG_ERETRY) {
			c->retries++;
			mpig_nop(c->s.queue); // reconnects
		}
		ck_assert_uint_lt(c->retries, 100);
		if (status == MPIG_OK)
			c->done = ++token;
	}
	return NULL;
}

static void restart_under(struct decoder *c, uint64_t tokens)
{
	while (c->done < tokens)
		usleep(200);
	test_daemon_kill(d);
	test_daemon_again(d);
}

START_TEST(killed_while_a_client_decodes)
{
	struct decoder *c = calloc(2, sizeof(*c));
	pthread_t thread;
	ck_assert_ptr_nonnull(c);
	for (int i = 0; i < 2; i++) { // the second one is left in peace
		test_client_open_hasty(&c[i].s, d, 20000, 20000);
		c[i].x = prefill(&c[i].s, i ? "calm" : "book");
		ck_assert_int_eq(pthread_create(&thread, NULL, decode, &c[i]), 0);
		if (i == 0) {
			restart_under(&c[0], PREFILL + 60);
			restart_under(&c[0], PREFILL + 200);
		}
		ck_assert_int_eq(pthread_join(thread, NULL), 0);
		ck_assert_uint_eq(mpig_context_committed(c[i].x), TOKENS);
		test_client_assert_dense(&c[i].s, c[i].x, &data, 0, TOKENS);
	}
	for (int i = 0; i < TOKENS - PREFILL; i++) {
		assert_sampled(&c[0].answer[i]);
		ck_assert_msg(!memcmp(&c[0].answer[i], &c[1].answer[i], sizeof(struct answer)),
		              "token %d was answered otherwise than without a kill", PREFILL + i);
	}
	fprintf(stderr, "decoding through two kills: %llu calls were told to try again\n", (unsigned long long)c[0].retries);
	test_client_close(&c[0].s);
	test_client_close(&c[1].s);
	free(c);
}
END_TEST

// ---- the same bits for everybody ---------------------------------------------------------------------------------------
static void again_timed(struct test_client *s, mpig_context *x, const char *how, struct answer *answer)
{
	uint64_t begin = now_us();
	test_daemon_again(d);
	int status = MPIG_ERETRY;
	for (int tries = 0; tries < 5 && status == MPIG_ERETRY; tries++)
		status = ask(s, x, PREFILL, 3, answer);
	ck_assert_status(status, MPIG_OK);
	fprintf(stderr, "%s: first ATTEND %.1f ms after exec\n", how, (double)(now_us() - begin) / 1000);
}

// _i: SIGKILL, or a clean stop with pool.keep.
START_TEST(answers_are_the_same_afterwards)
{
	struct test_client a, b;
	mpig_context *other = NULL;
	struct answer before, after, others;
	test_client_open_hasty(&a, d, 20000, 20000);
	mpig_context *x = prefill(&a, "book");
	ck_assert_status(test_client_fill(&a, x, &data, PREFILL, PREFILL + 10, 0), MPIG_OK);
	ck_assert_status(test_client_append(&a, x, &data, PREFILL + 10, PREFILL + 20), MPIG_OK); // never committed
	ck_assert_status(ask(&a, x, PREFILL, 3, &before), MPIG_OK);
	assert_sampled(&before);
	if (_i) {
		test_daemon_kill(d);
	} else {
		test_daemon_term(d);
		ck_assert_int_eq(test_daemon_wait(d), 0);
	}
	again_timed(&a, x, _i ? "killed" : "stopped", &after);
	ck_assert_mem_eq(&before, &after, sizeof(before));
	test_client_open(&b, d);
	ck_assert_status(test_client_find(&b, "book", MPIG_READ, &other), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(other), PREFILL + 10);
	ck_assert_status(ask(&b, other, PREFILL, 3, &others), MPIG_OK);
	ck_assert_mem_eq(&before, &others, sizeof(before));
	test_client_assert_dense(&b, other, &data, 0, PREFILL + 10);
	ck_assert(test_daemon_logged(d, "attached 1 contexts, 5010 tokens"));
	// The writer is still the writer, and goes on where its commits ended.
	// The first commit says that the rows before it are gone.
	ck_assert_status(test_client_fill(&a, x, &data, PREFILL + 10, PREFILL + 300, 0), MPIG_ERETRY);
	ck_assert_status(test_client_fill(&a, x, &data, PREFILL + 10, PREFILL + 300, 0), MPIG_OK);
	test_client_assert_dense(&a, x, &data, 0, PREFILL + 300);
	test_client_close(&a);
	test_client_close(&b);
}
END_TEST

START_TEST(calls_in_flight_are_told_to_try_again)
{
	struct test_client s;
	int64_t tickets[4];
	test_client_open_hasty(&s, d, 20000, 20000);
	mpig_context *x = prefill(&s, "book");
	test_daemon_freeze(d);
	for (int i = 0; i < 4; i++)
		ck_assert_int_gt(tickets[i] = mpig_submit_nop(s.queue, (uint64_t)i), 0);
	test_daemon_kill(d);
	test_daemon_again(d);
	for (int i = 0; i < 4; i++)
		ck_assert_status(mpig_wait(s.queue, tickets[i], 10000), MPIG_ERETRY);
	ck_assert_status(test_client_attend(&s, x, &data), MPIG_OK);
	test_client_close(&s);
}
END_TEST

// ---- what is not attached ----------------------------------------------------------------------------------------------
static void configure(const char *lines)
{
	FILE *f = fopen(d->config, "a");
	ck_assert_ptr_nonnull(f);
	fputs(lines, f);
	ck_assert_int_eq(fclose(f), 0);
}

static void stop_keeping(void)
{
	struct test_client s;
	test_client_open(&s, d);
	mpig_context_close(prefill(&s, "book"));
	test_client_close(&s);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
}

START_TEST(fresh_discards)
{
	struct test_client s;
	mpig_context *x = NULL;
	stop_keeping();
	configure("\n[pool]\nrestart = fresh\n");
	test_daemon_again(d);
	test_client_open(&s, d);
	ck_assert_status(test_client_find(&s, "book", MPIG_READ, &x), MPIG_ENOENT);
	test_client_close(&s);
}
END_TEST

static void assert_refused(const char *said)
{
	char file[sizeof(d->pool_dir) + 16], command[sizeof(file) + TEST_DAEMON_PATH + 96], sum[2][64] = {"", ""};
	snprintf(file, sizeof(file), "%s/node0.pool", d->pool_dir);
	for (int i = 0; i < 2; i++) {
		snprintf(command, sizeof(command), "sha256sum < %s", file);
		FILE *p = popen(command, "r");
		ck_assert(p && fgets(sum[i], sizeof(sum[i]), p));
		pclose(p);
		if (i)
			break;
		const char *program = getenv("MAGICPIGD") ? getenv("MAGICPIGD") : "build/magicpigd";
		snprintf(command, sizeof(command), "%s --config %s 2>> %s", program, d->config, d->log);
		ck_assert_int_ne(system(command), 0);
	}
	ck_assert_msg(test_daemon_logged(d, said), "the log does not say '%s'", said);
	ck_assert_str_eq(sum[0], sum[1]);
}

START_TEST(a_pool_of_another_instance_is_left_alone)
{
	stop_keeping();
	configure("\n[daemon]\ninstance = another\n");
	assert_refused("start it under that name");
}
END_TEST

START_TEST(a_pool_of_another_version_is_left_alone)
{
	char file[sizeof(d->pool_dir) + 16];
	stop_keeping();
	snprintf(file, sizeof(file), "%s/node0.pool", d->pool_dir);
	FILE *f = fopen(file, "r+");
	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(fseek(f, 32, SEEK_SET), 0); // after header and magic number: the version
	ck_assert_int_ne(fputc(9, f), EOF);
	ck_assert_int_eq(fclose(f), 0);
	assert_refused("has layout version 9 and this daemon reads 4");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/restart");
	TCase *t = tcase_create("restart");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, killed_while_a_client_decodes);
	tcase_add_loop_test(t, answers_are_the_same_afterwards, 0, 2);
	tcase_add_test(t, calls_in_flight_are_told_to_try_again);
	tcase_add_test(t, fresh_discards);
	tcase_add_test(t, a_pool_of_another_instance_is_left_alone);
	tcase_add_test(t, a_pool_of_another_version_is_left_alone);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
