// Contexts on disk through the public API: what is loaded answers with the same bits; serving goes on while a save runs; a daemon that is
// killed or stopped in the middle of one leaves nothing half done.
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { PREFILL = 5000, TOKENS = 5300, HEADS = 9, D = 64, ASKED = 20 };

static struct test_daemon *d;
static struct model_data data;
static char directory[64];

static void start(const char *lines)
{
	char config[300];
	snprintf(directory, sizeof(directory), "/tmp/mpig-test-disk-%d", (int)getpid());
	snprintf(config, sizeof(config), "[disk]\ndir = %s\n%s", directory, lines);
	d = test_daemon_start(config);
}

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(HEADS, 3, D);
	model_data_make(&data, &layer, 2, TOKENS, 11);
}

static void teardown(void)
{
	char line[128];
	test_daemon_free(d);
	model_data_free(&data);
	snprintf(line, sizeof(line), "rm -rf %s", directory);
	ck_assert_int_eq(system(line), 0);
}

struct answer {
	float out[HEADS * D], lse[HEADS];
	uint32_t rows[HEADS];
};

static int ask(struct test_client *s, mpig_context *x, uint64_t seed, struct answer *answer)
{
	float q[HEADS * D];
	model_normal(q, HEADS * D, 1000 + seed);
	struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
	struct mpig_result result = MPIG_INIT(struct mpig_result);
	attend.layer = (int)(seed % 2);
	attend.proposal = MPIG_PROPOSAL_SIGNATURE;
	attend.q = q;
	attend.begin = 4;
	attend.end = -8;
	attend.budget = .05f;
	attend.seed = seed;
	attend.query_position = PREFILL;
	memset(answer, 0, sizeof(*answer));
	result.out = answer->out;
	result.lse = answer->lse;
	result.rows = answer->rows;
	return mpig_attend(s->queue, x, &attend, &result);
}

static void ask_all(struct test_client *s, const char *name, struct answer answer[ASKED])
{
	mpig_context *x;
	ck_assert_status(test_client_find(s, name, 0, &x), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), TOKENS);
	for (uint64_t i = 0; i < ASKED; i++) {
		ck_assert_status(ask(s, x, i, &answer[i]), MPIG_OK);
		for (int h = 0; h < HEADS; h++)
			ck_assert(answer[i].rows[h] > 0 && answer[i].rows[h] < TOKENS / 2);
	}
	mpig_context_close(x);
}

// Sealed rows, and an open segment behind them.
static mpig_context *make(struct test_client *s, const char *name, uint64_t tokens)
{
	mpig_context *x = test_client_create(s, name, &data);
	ck_assert_status(test_client_fill(s, x, &data, 0, PREFILL, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_fill(s, x, &data, PREFILL, tokens, 0), MPIG_OK);
	return x;
}

START_TEST(the_same_answers)
{
	struct answer *before = calloc(ASKED, sizeof(*before)), *after = calloc(ASKED, sizeof(*after));
	struct test_client s;
	struct mpig_disk_result result = MPIG_INIT(struct mpig_disk_result);
	start("");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book", TOKENS));
	ask_all(&s, "book", before);
	ck_assert_status(mpig_context_save(s.client, "book", NULL, &result), MPIG_OK);
	ck_assert_uint_eq(result.tokens, TOKENS);
	ck_assert_uint_gt(result.moved, (uint64_t)TOKENS * 2 * 3 * 2 * D * 2);
	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	for (int round = 0; round < 2; round++) { // in this daemon, and in another that has nothing else
		if (round == 0) {
			ck_assert_status(mpig_context_drop(s.client, "book"), MPIG_OK);
		} else {
			test_client_close(&s);
			test_daemon_term(d);
			ck_assert_int_eq(test_daemon_wait(d), 0);
			test_daemon_again(d);
			test_client_open(&s, d);
		}
		ck_assert_status(mpig_context_info(s.client, "book", &info), MPIG_ENOENT);
		ck_assert_status(mpig_context_load(s.client, "book", NULL, &result), MPIG_OK);
		ck_assert_status(mpig_context_load(s.client, "book", NULL, &result), MPIG_EEXIST);
		ask_all(&s, "book", after);
		ck_assert_mem_eq(before, after, ASKED * sizeof(*before));
	}
	mpig_context *x;
	ck_assert_status(test_client_find(&s, "book", 0, &x), MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, TOKENS);
	mpig_context_close(x);
	test_client_close(&s);
	free(before);
	free(after);
}
END_TEST

START_TEST(nothing_on_disk)
{
	struct test_client s;
	struct mpig_saved_info info = MPIG_INIT(struct mpig_saved_info);
	d = test_daemon_start(NULL);
	test_client_open(&s, d);
	ck_assert_status(mpig_context_save(s.client, "book", NULL, NULL), MPIG_ENOTSUP);
	ck_assert_status(mpig_saved_list(s.client, NULL, &info, 1), MPIG_ENOTSUP);
	ck_assert(strstr(mpig_last_error(s.client), "disk.dir"));
	test_client_close(&s);
	snprintf(directory, sizeof(directory), "/tmp/mpig-test-disk-none");
}
END_TEST

START_TEST(days_of_damaged_contexts)
{
	struct test_client s;
	start("");
	test_client_open(&s, d);
	ck_assert_status(mpig_saved_gc(s.client, 1, 0, NULL), MPIG_OK);
	ck_assert_status(mpig_saved_gc(s.client, 1, 100000, NULL), MPIG_OK);
	ck_assert_status(mpig_saved_gc(s.client, 1, MPIG_GC_NO_DAMAGED, NULL), MPIG_OK);
	ck_assert_status(mpig_saved_gc(s.client, 1, 100001, NULL), MPIG_EINVAL);
	ck_assert_status(mpig_saved_gc(s.client, 1, 213504, NULL), MPIG_EINVAL); // in nanoseconds it would be a few hours
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "damaged_days = 213504"));
	test_client_close(&s);
}
END_TEST

// ---- while a slow save runs ------------------------------------------------------------------------------------------

struct saver {
	struct test_client s;
	_Atomic uint64_t done;
	int status;
};

static void note(void *argument, uint64_t done, uint64_t total)
{
	(void)total;
	((struct saver *)argument)->done = done;
}

static void *save_slowly(void *argument)
{
	struct saver *saver = argument;
	struct mpig_disk_options options = MPIG_INIT(struct mpig_disk_options);
	options.progress = note;
	options.argument = saver;
	saver->status = mpig_context_save(saver->s.client, "book", &options, NULL);
	return NULL;
}

static void begin_save(struct saver *saver, pthread_t *thread)
{
	test_client_open_hasty(&saver->s, d, 20000, -1);
	ck_assert_int_eq(pthread_create(thread, NULL, save_slowly, saver), 0);
	while (!saver->done)
		usleep(1000);
}

// Readers are answered, and the writer appends and commits; the save holds what was committed when it began.
START_TEST(serving_goes_on)
{
	struct saver saver = {.done = 0};
	struct test_client s;
	struct answer answer;
	struct mpig_disk_result result = MPIG_INIT(struct mpig_disk_result);
	pthread_t thread;
	start("rate = 6M\n");
	test_client_open(&s, d);
	mpig_context *x = make(&s, "book", PREFILL + 100);
	begin_save(&saver, &thread);
	uint64_t asked = 0;
	for (uint64_t token = PREFILL + 100; token < PREFILL + 130; token++) {
		ck_assert_status(test_client_fill(&s, x, &data, token, token + 1, 0), MPIG_OK);
		ck_assert_status(ask(&s, x, token, &answer), MPIG_OK);
		asked++;
	}
	ck_assert_uint_lt(saver.done, (uint64_t)PREFILL * 2 * 3 * 2 * D * 2); // it is not done yet
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_status(saver.status, MPIG_OK);
	mpig_context_close(x);
	ck_assert_status(mpig_saved_check(s.client, "book", NULL, &result), MPIG_OK);
	ck_assert_uint_eq(result.tokens, PREFILL + 100);
	test_client_close(&saver.s);
	test_client_close(&s);
}
END_TEST

START_TEST(killed_while_saving)
{
	struct saver saver = {.done = 0};
	struct test_client s;
	struct mpig_disk_result result = MPIG_INIT(struct mpig_disk_result);
	pthread_t thread;
	start("rate = 6M\n[pool]\nkeep = yes\n");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book", TOKENS));
	begin_save(&saver, &thread);
	test_client_close(&s);
	test_daemon_kill(d);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert(saver.status == MPIG_ERETRY || saver.status == MPIG_ENODAEMON); // between two looks
	test_client_close(&saver.s);
	test_daemon_again(d);
	test_client_open(&s, d);
	ck_assert_status(mpig_saved_check(s.client, "book", NULL, NULL), MPIG_ENOENT);
	ck_assert_status(mpig_context_save(s.client, "book", NULL, &result), MPIG_OK);
	ck_assert_status(mpig_saved_check(s.client, "book", NULL, NULL), MPIG_OK);
	struct mpig_verification v = MPIG_INIT(struct mpig_verification);
	ck_assert_status(mpig_context_verify(s.client, "book", &v), MPIG_OK);
	test_client_close(&s);
}
END_TEST

// Its next look at the work finds another daemon, which has been told to do something else since.
static void begin_anew(void *argument, uint64_t done, uint64_t total)
{
	struct test_client *other = argument;
	(void)done, (void)total;
	if (other->client)
		return;
	test_daemon_kill(d);
	test_daemon_again(d);
	test_client_open(other, d);
	for (int i = 0; i < 4; i++)
		ck_assert_status(mpig_saved_check(other->client, "small", NULL, NULL), MPIG_OK);
}

START_TEST(work_of_a_daemon_that_is_gone)
{
	struct test_client s, other = {0};
	struct mpig_disk_options options = MPIG_INIT(struct mpig_disk_options);
	struct mpig_disk_result result = MPIG_INIT(struct mpig_disk_result);
	struct mpig_layer layer = test_client_layer(1, 1, 64);
	struct mpig_spec spec = test_client_spec(&layer, 1);
	mpig_context *small;
	start("rate = 6M\n[pool]\nkeep = yes\n");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book", TOKENS));
	ck_assert_status(mpig_context_create(s.client, "small", &spec, &small), MPIG_OK);
	mpig_context_close(small);
	ck_assert_status(mpig_context_save(s.client, "small", NULL, NULL), MPIG_OK);
	options.progress = begin_anew;
	options.argument = &other;
	ck_assert_status(mpig_context_save(s.client, "book", &options, &result), MPIG_ERETRY);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "another daemon"));
	ck_assert_status(mpig_saved_check(s.client, "book", NULL, NULL), MPIG_ENOENT);
	ck_assert_status(mpig_context_save(s.client, "book", NULL, &result), MPIG_OK);
	ck_assert_uint_eq(result.tokens, TOKENS);
	test_client_close(&other);
	test_client_close(&s);
}
END_TEST

// A daemon that is told to stop does not wait for a save, and says that it was not done.
START_TEST(stopped_while_saving)
{
	struct saver saver = {.done = 0};
	struct test_client s;
	pthread_t thread;
	start("rate = 2M\n");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book", TOKENS));
	begin_save(&saver, &thread);
	test_client_close(&s);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_int_lt(saver.status, 0);
	test_client_close(&saver.s);
	test_daemon_again(d);
	test_client_open(&s, d);
	ck_assert_status(mpig_context_load(s.client, "book", NULL, NULL), MPIG_ENOENT);
	test_client_close(&s);
}
END_TEST

// ---- what the daemon does unasked ------------------------------------------------------------------------------------

START_TEST(saved_at_shutdown_loaded_at_open)
{
	struct answer *before = calloc(ASKED, sizeof(*before)), *after = calloc(ASKED, sizeof(*after));
	struct test_client s;
	mpig_context *x;
	start("persist = shutdown\n");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book", TOKENS));
	ask_all(&s, "book", before);
	test_client_close(&s);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	test_daemon_again(d);
	test_client_open(&s, d);
	ask_all(&s, "book", after); // opens it
	ck_assert_mem_eq(before, after, ASKED * sizeof(*before));
	ck_assert_status(test_client_find(&s, "nothing", 0, &x), MPIG_ENOENT);
	test_client_close(&s);
	free(before);
	free(after);
}
END_TEST

static void wait_until_saved(struct test_client *s, const char *name)
{
	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	for (int i = 0; i < 2000 && !(info.flags & MPIG_CONTEXT_SAVED); i++) {
		ck_assert_status(mpig_context_info(s->client, name, &info), MPIG_OK);
		usleep(5000);
	}
	ck_assert(info.flags & MPIG_CONTEXT_SAVED);
}

// With nothing saved, a full pool refuses; what is saved and not open makes room, the least recently used first, and comes back.
START_TEST(evicted_and_back)
{
	struct test_client s;
	struct answer before, after;
	mpig_context *x;
	char name[16];
	start("persist = commit\nevict_high = .5\nevict_low = .3\n[pool]\nsize = 96M\n");
	test_client_open(&s, d);
	mpig_context *first = make(&s, "0", PREFILL + 50);
	ck_assert_status(ask(&s, first, 7, &before), MPIG_OK);
	mpig_context_close(first);
	for (int i = 1; i < 7; i++) { // together more than half of the pool
		snprintf(name, sizeof(name), "%d", i);
		mpig_context *one = make(&s, name, PREFILL + 50);
		wait_until_saved(&s, name);
		mpig_context_close(one);
		struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
		do {
			usleep(20000);
			ck_assert_status(mpig_daemon_status(s.client, &status), MPIG_OK);
		} while (status.pool_used > status.pool_bytes / 2);
	}
	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	ck_assert_status(mpig_context_info(s.client, "0", &info), MPIG_ENOENT);
	ck_assert_status(mpig_context_info(s.client, "6", &info), MPIG_OK);
	ck_assert_status(test_client_find(&s, "0", MPIG_READ, &x), MPIG_OK);
	ck_assert_status(ask(&s, x, 7, &after), MPIG_OK);
	ck_assert_mem_eq(&before, &after, sizeof(before));
	mpig_context_close(x);
	ck_assert(test_daemon_logged(d, "context '0' leaves memory: it is on disk"));
	test_client_close(&s);
}
END_TEST

// Each context by its own policy; a daemon without a disk promises nothing of the kind.
START_TEST(by_its_own_policy)
{
	struct test_client s;
	mpig_context *x;
	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	start("");
	test_client_open(&s, d);
	mpig_context *commit = make(&s, "commit", TOKENS), *stop = make(&s, "stop", TOKENS), *none = make(&s, "none", TOKENS);
	ck_assert_status(mpig_context_persist(s.client, "commit", MPIG_PERSIST_COMMIT, 0), MPIG_OK);
	ck_assert_status(mpig_context_persist(s.client, "stop", MPIG_PERSIST_SHUTDOWN, 0), MPIG_OK);
	ck_assert_status(mpig_context_persist(s.client, "stop", 9, 0), MPIG_EINVAL);
	ck_assert_status(mpig_context_pin_for(s.client, "stop", 1000), MPIG_OK);
	ck_assert_status(mpig_context_pin_for(s.client, "stop", 0), MPIG_EINVAL);
	wait_until_saved(&s, "commit");
	ck_assert_status(mpig_context_info(s.client, "stop", &info), MPIG_OK);
	ck_assert_int_eq(info.flags & MPIG_CONTEXT_SAVED, 0);
	ck_assert(info.persist == MPIG_PERSIST_SHUTDOWN && info.flags & MPIG_CONTEXT_PINNED && info.pinned_until_ns < UINT64_MAX);
	ck_assert_status(mpig_context_ttl(s.client, "commit", 1, 0), MPIG_OK);
	mpig_context_close(commit);
	mpig_context_close(stop);
	mpig_context_close(none);
	for (int i = 0; i < 400 && mpig_context_info(s.client, "commit", &info) == MPIG_OK; i++)
		usleep(20000);
	ck_assert_status(mpig_context_info(s.client, "commit", &info), MPIG_ENOENT); // its time was over
	ck_assert_status(test_client_find(&s, "commit", MPIG_READ, &x), MPIG_OK);    // and it comes back
	ck_assert_uint_eq(mpig_context_committed(x), TOKENS);
	ck_assert_status(mpig_context_info(s.client, "commit", &info), MPIG_OK);
	ck_assert(info.ttl_s == 1 && info.persist == MPIG_PERSIST_COMMIT);
	test_client_close(&s);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	test_daemon_again(d);
	test_client_open(&s, d);
	ck_assert_status(test_client_find(&s, "stop", MPIG_READ, &x), MPIG_OK);
	ck_assert_status(mpig_context_info(s.client, "stop", &info), MPIG_OK);
	ck_assert(info.flags & MPIG_CONTEXT_PINNED);
	ck_assert_status(test_client_find(&s, "none", MPIG_READ, &x), MPIG_ENOENT);
	test_client_close(&s);
}
END_TEST

// What has left memory is found by its tokens: in this daemon, and by one that knows no more than the directory.
START_TEST(found_by_its_tokens)
{
	struct test_client s;
	mpig_context *x;
	uint64_t matched = 0;
	struct mpig_open_options options = MPIG_INIT(struct mpig_open_options);
	options.fingerprint = test_client_fingerprint;
	options.fingerprint_bytes = sizeof(test_client_fingerprint);
	options.fork_name = "branch";
	start("[pool]\nkeep = no\n");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book", TOKENS));
	ck_assert_status(mpig_context_save(s.client, "book", NULL, NULL), MPIG_OK);
	for (int round = 0; round < 2; round++) {
		if (round == 0) {
			ck_assert_status(mpig_context_evict(s.client, "book"), MPIG_OK);
		} else {
			test_client_close(&s);
			test_daemon_term(d);
			ck_assert_int_eq(test_daemon_wait(d), 0);
			test_daemon_again(d);
			test_client_open(&s, d);
		}
		int status = MPIG_ENOENT; // its token ids are read some time after the start
		for (int i = 0; i < 400 && status == MPIG_ENOENT; i++) {
			status = mpig_context_open_prefix(s.client, data.ids, TOKENS - 7, &options, &x, &matched);
			if (status == MPIG_ENOENT)
				usleep(20000);
		}
		ck_assert_status(status, MPIG_OK);
		ck_assert_uint_eq(matched, TOKENS - 7);
		ck_assert_str_eq(mpig_context_name(x), "branch");
		test_client_assert_dense(&s, x, &data, 0, TOKENS - 7);
		mpig_context_close(x);
		ck_assert_status(mpig_context_drop(s.client, "branch"), MPIG_OK);
	}
	ck_assert_status(mpig_context_drop(s.client, "book"), MPIG_OK);
	ck_assert_status(mpig_saved_erase(s.client, "book"), MPIG_OK);
	ck_assert_status(mpig_context_open_prefix(s.client, data.ids, TOKENS, &options, &x, &matched), MPIG_ENOENT);
	test_client_close(&s);
}
END_TEST

START_TEST(no_disk_to_keep_it)
{
	struct test_client s;
	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	d = test_daemon_start(NULL);
	test_client_open(&s, d);
	mpig_context *x = make(&s, "book", TOKENS);
	ck_assert_status(mpig_context_persist(s.client, "book", MPIG_PERSIST_COMMIT, 0), MPIG_ENOTSUP);
	ck_assert_status(mpig_context_ttl(s.client, "book", 1, 1), MPIG_ENOTSUP);
	ck_assert_status(mpig_context_ttl(s.client, "book", 1, 0), MPIG_OK);
	usleep(1500000);
	ck_assert_status(mpig_context_info(s.client, "book", &info), MPIG_OK); // it is open
	mpig_context_close(x);
	for (int i = 0; i < 400 && mpig_context_info(s.client, "book", &info) == MPIG_OK; i++)
		usleep(20000);
	ck_assert_status(mpig_context_info(s.client, "book", &info), MPIG_ENOENT);
	const char *told = "context 'book' leaves memory, unused for its time: it was not to be kept";
	for (int i = 0; i < 400 && !test_daemon_logged(d, told); i++)
		usleep(20000);
	ck_assert(test_daemon_logged(d, told));
	test_client_close(&s);
	snprintf(directory, sizeof(directory), "/tmp/mpig-test-disk-none");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk");
	TCase *t = tcase_create("disk");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, the_same_answers);
	tcase_add_test(t, nothing_on_disk);
	tcase_add_test(t, days_of_damaged_contexts);
	tcase_add_test(t, serving_goes_on);
	tcase_add_test(t, killed_while_saving);
	tcase_add_test(t, work_of_a_daemon_that_is_gone);
	tcase_add_test(t, stopped_while_saving);
	tcase_add_test(t, saved_at_shutdown_loaded_at_open);
	tcase_add_test(t, evicted_and_back);
	tcase_add_test(t, by_its_own_policy);
	tcase_add_test(t, found_by_its_tokens);
	tcase_add_test(t, no_disk_to_keep_it);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
