// The measurement of memory: that it ends, on any number of threads, adds them up, and refuses what it cannot do. How fast memory is, no test
// can know.
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/lib/suite.h"
#include "tools/common/roofline.c"

START_TEST(threads)
{
	static const int nowhere[8] = {-1, -1, -1, -1, 0, 0, 4095, 0}; // a CPU that is not there is no reason to fail
	struct roofline_options o = {.row_bytes = 512, .bytes = 4 << 20, .threads = (uint32_t)_i, .repetitions = 3};
	struct roofline_rates r = {0};
	for (int pinned = 0; pinned < 2; pinned++) {
		o.cpus = pinned ? nowhere : NULL;
		ck_assert_int_eq(roofline_measure(&o, &r), 0);
		ck_assert(r.stream_bytes_per_s > 1e6 && r.stream_bytes_per_s < 1e14); // a bound on units, not on speed
		ck_assert(r.gather_bytes_per_s > 1e6 && r.gather_bytes_per_s < 1e14);
	}
}
END_TEST

START_TEST(refused)
{
	static const struct roofline_options bad[] = {
		{.row_bytes = 512, .bytes = 4 << 20, .threads = 0, .repetitions = 1},
		{.row_bytes = 512, .bytes = 4 << 20, .threads = ROOFLINE_MAX_THREADS + 1, .repetitions = 1},
		{.row_bytes = 0, .bytes = 4 << 20, .threads = 1, .repetitions = 1},
		{.row_bytes = 100, .bytes = 4 << 20, .threads = 1, .repetitions = 1},
		{.row_bytes = 512, .bytes = 4096, .threads = 1, .repetitions = 1},
		{.row_bytes = 512, .bytes = 4 << 20, .threads = 1, .repetitions = 0},
		{.row_bytes = 512, .bytes = 4 << 20, .threads = 1, .repetitions = 65},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct roofline_rates r = {7, 7};
		ck_assert_int_eq(roofline_measure(&bad[i], &r), -1);
		ck_assert_int_eq(errno, EINVAL);
		ck_assert(r.stream_bytes_per_s == 7 && r.gather_bytes_per_s == 7);
	}
}
END_TEST

START_TEST(no_memory)
{
	struct roofline_options o = {.row_bytes = 64, .bytes = (size_t)1 << 46, .threads = 3, .repetitions = 1};
	struct roofline_rates r;
	ck_assert_int_eq(roofline_measure(&o, &r), -1);
	ck_assert_int_eq(errno, ENOMEM);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("roofline");
	TCase *tcase = tcase_create("roofline");
	tcase_set_timeout(tcase, 60);
	tcase_add_loop_test(tcase, threads, 1, 8);
	tcase_add_test(tcase, refused);
	tcase_add_test(tcase, no_memory);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
