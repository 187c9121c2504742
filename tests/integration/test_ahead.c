// Workers that read ahead of contexts which are cut, indexed anew, written, forked, evicted and dropped meanwhile: answers stay right, and
// memory is given back.
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "shm/stats.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { LAYERS = 4, ROWS = 6000, HEADS = 4, D = 64, PATIENCE_S = 20 };

static struct test_daemon *d;
static struct test_client s;
static struct model_data data;
static const struct mpig_stats *stats;
static char disk[TEST_DAEMON_PATH];

static void setup(void)
{
	char config[512], path[2 * TEST_DAEMON_PATH];
	struct mpig_layer layer = test_client_layer(HEADS, 2, D);
	model_data_make(&data, &layer, LAYERS, ROWS, 1);
	snprintf(disk, sizeof(disk), "/tmp/test-ahead-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(disk));
	snprintf(config, sizeof(config), "[workers]\nspin_us = 10s\nprefetch = 8\n[daemon]\nstats = %s/stats\n[disk]\ndir = %s\n",
	         disk, disk);
	d = test_daemon_start(config);
	test_client_open(&s, d);
	snprintf(path, sizeof(path), "%s/stats", disk);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat file;
	ck_assert(fd >= 0 && fstat(fd, &file) == 0);
	void *mapped = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(mapped, MAP_FAILED);
	stats = mapped;
	close(fd);
}

static void teardown(void)
{
	char command[2 * TEST_DAEMON_PATH];
	test_client_close(&s);
	test_daemon_stop(d);
	model_data_free(&data);
	snprintf(command, sizeof(command), "rm -rf %s", disk);
	ck_assert_int_eq(system(command), 0);
}

static uint64_t prefetched(void)
{
	uint64_t sum = 0;
	for (uint64_t w = 0; w < stats->workers; w++)
		sum += __atomic_load_n(&stats->worker[w].prefetched_bytes, __ATOMIC_RELAXED);
	return sum;
}

// A token's attention in every layer; sampled.
static void token(mpig_context *x, uint64_t seed)
{
	float q[HEADS * D], out[HEADS * D], lse[HEADS];
	model_normal(q, HEADS * D, seed);
	for (int layer = 0; layer < LAYERS; layer++) {
		struct mpig_attend a = MPIG_INIT(struct mpig_attend);
		struct mpig_result r = MPIG_INIT(struct mpig_result);
		a.layer = layer;
		a.proposal = MPIG_PROPOSAL_SIGNATURE;
		a.budget = .05f;
		a.q = q;
		a.seed = seed;
		r.out = out;
		r.lse = lse;
		ck_assert_status(mpig_attend(s.queue, x, &a, &r), MPIG_OK);
		for (int h = 0; h < HEADS; h++)
			ck_assert(lse[h] > -1e30f && lse[h] < 1e30f);
	}
}

// Until workers have begun to read ahead of the layer after the last answer: they may still be at it.
static void until_they_read(mpig_context *x)
{
	struct timespec pause = {.tv_nsec = 1000000};
	time_t end = time(NULL) + PATIENCE_S;
	for (uint64_t before = prefetched(), seed = 0; prefetched() == before; seed++) {
		token(x, seed);
		nanosleep(&pause, NULL);
		ck_assert_msg(time(NULL) < end, "nobody reads ahead");
	}
	token(x, 99);
}

static mpig_context *make(const char *name)
{
	mpig_context *x = test_client_create(&s, name, &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, ROWS, MPIG_COMMIT_SEAL), MPIG_OK);
	return x;
}

static uint64_t used(void)
{
	struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_status(mpig_daemon_status(s.client, &status), MPIG_OK);
	return status.pool_used;
}

static void assert_used(uint64_t bytes)
{
	struct timespec pause = {.tv_nsec = 1000000};
	for (time_t end = time(NULL) + PATIENCE_S; used() != bytes; nanosleep(&pause, NULL))
		ck_assert_msg(time(NULL) < end, "%llu bytes are used, not %llu", (unsigned long long)used(),
		              (unsigned long long)bytes);
}

START_TEST(a_dropped_context_is_gone)
{
	uint64_t before = used();
	for (int i = 0; i < 5; i++) {
		mpig_context *x = make("x");
		until_they_read(x);
		ck_assert_status(mpig_context_drop(s.client, "x"), MPIG_OK);
		ck_assert_status(test_client_attend(&s, x, &data), MPIG_ENOENT);
		mpig_context_close(x);
		assert_used(before);
	}
}
END_TEST

START_TEST(a_context_is_cut_and_grows_again)
{
	mpig_context *x = make("x");
	for (int i = 0; i < 5; i++) {
		int flags = i % 2 ? MPIG_COMMIT_SEAL : 0;
		uint64_t to = ROWS - 1000 * (uint64_t)(i + 1) / 2;
		until_they_read(x);
		ck_assert_status(mpig_truncate(s.queue, x, to), MPIG_OK);
		token(x, (uint64_t)i);
		test_client_assert_dense(&s, x, &data, 0, to);
		ck_assert_status(test_client_fill(&s, x, &data, to, ROWS, flags), MPIG_OK);
		token(x, (uint64_t)i);
		test_client_assert_dense(&s, x, &data, 0, ROWS);
	}
	mpig_context_close(x);
}
END_TEST

START_TEST(a_context_is_indexed_anew)
{
	mpig_context *x = make("x");
	for (int i = 0; i < 4; i++) {
		until_they_read(x);
		ck_assert_status(mpig_context_reindex(s.client, "x", NULL), MPIG_OK);
		token(x, (uint64_t)i);
	}
	test_client_assert_dense(&s, x, &data, 0, ROWS);
	mpig_context_close(x);
}
END_TEST

START_TEST(a_fork_outlives_its_parent)
{
	uint64_t before = used();
	mpig_context *x = make("x"), *fork;
	until_they_read(x);
	ck_assert_status(mpig_context_fork(x, "fork", ROWS, &fork), MPIG_OK);
	until_they_read(fork);
	ck_assert_status(mpig_context_drop(s.client, "x"), MPIG_OK);
	mpig_context_close(x);
	until_they_read(fork);
	test_client_assert_dense(&s, fork, &data, 0, ROWS);
	ck_assert_status(mpig_context_drop(s.client, "fork"), MPIG_OK);
	mpig_context_close(fork);
	assert_used(before);
}
END_TEST

// A worker may still be about to let go of the last request.
static int evict(const char *name)
{
	struct timespec pause = {.tv_nsec = 1000000};
	time_t end = time(NULL) + PATIENCE_S;
	int status;
	while ((status = mpig_context_evict(s.client, name)) == MPIG_EBUSY && time(NULL) < end)
		nanosleep(&pause, NULL);
	return status;
}

START_TEST(an_evicted_context_comes_back)
{
	mpig_context *x = make("x");
	ck_assert_status(mpig_context_save(s.client, "x", NULL, NULL), MPIG_OK);
	for (int i = 0; i < 3; i++) {
		until_they_read(x);
		mpig_context_close(x);
		ck_assert_status(evict("x"), MPIG_OK);
		ck_assert_status(test_client_find(&s, "x", MPIG_READ, &x), MPIG_OK);
		token(x, (uint64_t)i);
	}
	test_client_assert_dense(&s, x, &data, 0, ROWS);
	mpig_context_close(x);
}
END_TEST

// Nothing is read where it is forbidden; and it can be allowed again.
START_TEST(it_can_be_switched_off)
{
	char text[256];
	mpig_context *x = make("x");
	until_they_read(x);
	ck_assert_int_gt(mpig_daemon_configure(s.client, "workers.prefetch=0", text, sizeof(text)), 0);
	ck_assert_str_eq(text, "workers.prefetch = 0 (was 8)\n");
	token(x, 1); // what was listed is over
	uint64_t before = prefetched();
	for (uint64_t i = 0; i < 20; i++)
		token(x, i);
	ck_assert_uint_eq(prefetched(), before);
	ck_assert_int_gt(mpig_daemon_configure(s.client, "workers.prefetch=1", text, sizeof(text)), 0);
	until_they_read(x);
	mpig_context_close(x);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ahead");
	TCase *t = tcase_create("ahead");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_dropped_context_is_gone);
	tcase_add_test(t, a_context_is_cut_and_grows_again);
	tcase_add_test(t, a_context_is_indexed_anew);
	tcase_add_test(t, a_fork_outlives_its_parent);
	tcase_add_test(t, an_evicted_context_comes_back);
	tcase_add_test(t, it_can_be_switched_off);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
