// Reading the statistics file: what is refused, sums and differences, quantiles of the histograms.
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tools/magicpigctl/stats.c"

#define WORKERS 3

static char path[] = "/tmp/magicpigctl-stats-XXXXXX";
static struct mpig_stats *image;
static size_t image_bytes;
static struct stats_file file;
static char why[128];

static void setup(void)
{
	image_bytes = sizeof(*image) + WORKERS * sizeof(image->worker[0]);
	image = aligned_alloc(64, image_bytes);
	ck_assert_ptr_nonnull(image);
	memset(image, 0, image_bytes);
	image->magic = MPIG_STATS_MAGIC;
	image->version = MPIG_STATS_VERSION;
	image->bytes = image_bytes;
	image->workers = WORKERS;
	image->pid = 42;
	image->pool_used = 7;
	for (uint64_t i = 0; i < WORKERS; i++) {
		image->worker[i].requests[MPIG_OP_ATTEND] = 10 * (i + 1);
		image->worker[i].requests[MPIG_OP_NOP] = 1;
		image->worker[i].rows_read = 100;
		image->worker[i].cpu = i + 4;
		image->worker[i].attend_ns[10] = 1;
		image->worker[i].heartbeat_ns = 1000 - i;
	}
	image->worker[2].state = MPIG_WORKER_PARKED;
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	close(fd);
}

static void teardown(void)
{
	stats_close(&file);
	unlink(path);
	memcpy(path + sizeof(path) - 7, "XXXXXX", 6);
	free(image);
}

static int open_image(size_t bytes)
{
	FILE *f = fopen(path, "w");
	ck_assert_uint_eq(fwrite(image, 1, bytes, f), bytes);
	ck_assert_int_eq(fclose(f), 0);
	return stats_open(path, &file, why, sizeof(why));
}

START_TEST(sums)
{
	static struct stats_sample sample;
	ck_assert_msg(open_image(image_bytes) == 0, "%s", why);
	stats_take(&file, &sample);
	ck_assert_uint_eq(sample.workers, WORKERS);
	ck_assert_uint_eq(sample.head.pid, 42);
	ck_assert_uint_eq(sample.head.pool_used, 7);
	ck_assert_uint_eq(sample.total.attends, 60);
	ck_assert_uint_eq(sample.total.requests, 63);
	ck_assert_uint_eq(sample.total.rows_read, 300);
	ck_assert_uint_eq(sample.total.attend_ns[10], 3);
	ck_assert_uint_eq(sample.worker[1].cpu, 5);
	ck_assert_uint_eq(sample.oldest_heartbeat_ns, 999); // the parked worker's 998 does not count
}
END_TEST

START_TEST(differences)
{
	struct stats_work before = {.state = 1, .cpu = 3, .units = 5, .attend_ns[2] = 1};
	struct stats_work after = {.state = 2, .cpu = 3, .units = 9, .attend_ns[2] = 4};
	struct stats_work work = stats_between(&before, &after);
	ck_assert_uint_eq(work.units, 4);
	ck_assert_uint_eq(work.attend_ns[2], 3);
	ck_assert_uint_eq(work.state, 2);
	ck_assert_uint_eq(work.cpu, 3);
}
END_TEST

START_TEST(foreign_file)
{
	image->magic = 1;
	ck_assert_int_eq(open_image(image_bytes), -1);
	ck_assert_str_eq(why, "not a statistics file of magicpigd");
	ck_assert_int_eq(open_image(100), -1); // shorter than the head
	ck_assert_int_eq(stats_open("/tmp", &file, why, sizeof(why)), -1);
	ck_assert_int_eq(stats_open("/nonexistent/x", &file, why, sizeof(why)), -1);
	ck_assert_str_eq(why, "No such file or directory");
}
END_TEST

START_TEST(other_version)
{
	image->version = MPIG_STATS_VERSION + 1;
	ck_assert_int_eq(open_image(image_bytes), -1);
	ck_assert_ptr_nonnull(strstr(why, "version 1"));
}
END_TEST

START_TEST(more_workers_than_bytes)
{
	image->workers = WORKERS + 1;
	ck_assert_int_eq(open_image(image_bytes), -1);
	image->workers = MPIG_STATS_MAX_WORKERS + 1;
	ck_assert_int_eq(open_image(image_bytes), -1);
	image->workers = UINT64_MAX;
	ck_assert_int_eq(open_image(image_bytes), -1);
	ck_assert_ptr_nonnull(strstr(why, "damaged"));
}
END_TEST

START_TEST(quantiles)
{
	uint64_t buckets[MPIG_STATS_BUCKETS] = {0};
	ck_assert_double_eq(stats_quantile(buckets, .5), 0);
	buckets[10] = 100; // [1024, 2048)
	ck_assert_double_eq_tol(stats_quantile(buckets, .5), 1536, 1e-6);
	buckets[20] = 1; // one slow one
	ck_assert_double_lt(stats_quantile(buckets, .5), 2048);
	ck_assert_double_ge(stats_quantile(buckets, .999), 1 << 20);
	ck_assert_double_le(stats_quantile(buckets, 1), 1 << 21);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("magicpigctl stats");
	TCase *tcase = tcase_create("file");
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, sums);
	tcase_add_test(tcase, differences);
	tcase_add_test(tcase, foreign_file);
	tcase_add_test(tcase, other_version);
	tcase_add_test(tcase, more_workers_than_bytes);
	tcase_add_test(tcase, quantiles);
	suite_add_tcase(suite, tcase);
	SRunner *runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
