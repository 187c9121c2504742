// Reading the statistics file: what is refused, sums and differences, quantiles of the histograms.
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/lib/suite.h"
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
		image->worker[i].latency[MPIG_OP_ATTEND][10] = 1;
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
	ck_assert_uint_eq(sample.total.latency[MPIG_OP_ATTEND][10], 3);
	ck_assert_uint_eq(sample.worker[1].cpu, 5);
	ck_assert_uint_eq(sample.oldest_heartbeat_ns, 999); // the parked worker's 998 does not count
}
END_TEST

START_TEST(differences)
{
	struct stats_work before = {.state = 1, .cpu = 3, .units = 5, .latency[1][2] = 1};
	struct stats_work after = {.state = 2, .cpu = 3, .units = 9, .latency[1][2] = 4};
	struct stats_work work = stats_between(&before, &after);
	ck_assert_uint_eq(work.units, 4);
	ck_assert_uint_eq(work.latency[1][2], 3);
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
	ck_assert_ptr_nonnull(strstr(why, "version 2"));
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
	buckets[mpig_stats_bucket(1024)] = 100; // [1024, 1280)
	ck_assert_double_eq_tol(stats_quantile(buckets, .5), 1152, 1e-6);
	buckets[mpig_stats_bucket(1 << 20)] = 1; // one slow one
	ck_assert_double_lt(stats_quantile(buckets, .5), 1280);
	ck_assert_double_ge(stats_quantile(buckets, .999), 1 << 20);
	ck_assert_double_le(stats_quantile(buckets, 1), 1.25 * (1 << 20));
}
END_TEST

START_TEST(buckets)
{
	uint32_t last = 0;
	for (uint32_t b = 0; b + 1 < MPIG_STATS_BUCKETS; b++) {
		uint64_t low = mpig_stats_bucket_ns(b), next = mpig_stats_bucket_ns(b + 1);
		ck_assert_uint_lt(low, next);
		ck_assert_uint_eq(mpig_stats_bucket(low), b);
		ck_assert_uint_eq(mpig_stats_bucket(next - 1), b);
		ck_assert(b < 8 || (double)next <= 1.26 * (double)low); // how wrong a quantile can be
		last = b + 1;
	}
	ck_assert_uint_eq(mpig_stats_bucket(UINT64_MAX), last);
	ck_assert_uint_gt(mpig_stats_bucket_ns(last), UINT64_C(60000000000));
}
END_TEST

// A place that changed hands: the newcomer is charged with what came after it moved in, and rates do not mix the two.
START_TEST(places)
{
	static struct stats_sample before, after;
	image->client[3] = (struct mpig_stats_place){.sequence = 2, .id = 7, .uid = 1000, .pid = 99, .since_ns = 5};
	image->worker[0].client[3].requests = 10;
	image->worker[2].client[3].requests = 5;
	ck_assert_int_eq(open_image(image_bytes), 0);
	stats_take(&file, &before);
	ck_assert_uint_eq(before.client[3].id, 7);
	ck_assert_uint_eq(before.client[3].pid, 99);
	ck_assert_uint_eq(before.client[3].use.requests, 15);
	ck_assert_uint_eq(before.context[3].use.requests, 0);
	stats_close(&file);
	image->client[3] = (struct mpig_stats_place){.sequence = 4, .id = 8, .since_ns = 6, .before = {.requests = 15}};
	image->worker[1].client[3].requests = 2;
	ck_assert_int_eq(open_image(image_bytes), 0);
	stats_take(&file, &after);
	ck_assert_uint_eq(after.client[3].use.requests, 2);
	ck_assert_uint_eq(stats_use_between(&before.client[3], &after.client[3]).requests, 2);
	stats_close(&file);
	image->client[3].sequence = 5; // being written by a daemon that is stopped
	ck_assert_int_eq(open_image(image_bytes), 0);
	stats_take(&file, &after);
	ck_assert_uint_eq(after.client[3].id, 0);
}
END_TEST

START_TEST(sleep_is_counted_up_to_now)
{
	static struct stats_sample sample;
	image->worker[2].park_ns = 100;
	image->worker[2].accounted_ns = 1;
	image->worker[0].park_ns = 100;
	image->worker[0].accounted_ns = 1;
	ck_assert_int_eq(open_image(image_bytes), 0);
	stats_take(&file, &sample);
	ck_assert_uint_eq(sample.worker[2].park_ns, 100 + sample.taken_ns - 1);
	ck_assert_uint_eq(sample.worker[0].park_ns, 100);
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
	tcase_add_test(tcase, buckets);
	tcase_add_test(tcase, places);
	tcase_add_test(tcase, sleep_is_counted_up_to_now);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
