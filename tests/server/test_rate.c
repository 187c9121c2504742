// Limits on requests a second, on a clock of the test's.
#include <check.h>
#include <pthread.h>
#include <stdlib.h>

#include "daemon/server/rate.h"
#include "tests/lib/suite.h"

#define SECOND UINT64_C(1000000000)

// How many of `tries` pass at this moment.
static uint32_t take(struct rate *r, uint64_t now, uint32_t tries)
{
	uint32_t taken = 0;
	uint64_t took;
	for (uint32_t i = 0; i < tries; i++)
		taken += rate_take(r, now, &took);
	return taken;
}

START_TEST(without_a_limit_all_pass)
{
	struct rate r = {0};
	ck_assert_uint_eq(take(&r, 5, 100000), 100000);
	ck_assert_uint_eq(atomic_load(&r.due_ns), 0); // and nothing is written
}
END_TEST

START_TEST(a_burst_and_then_the_rate)
{
	struct rate r = {0};
	rate_set(&r, 100); // 10 ms apart; a burst of 100 ms
	uint64_t now = 7 * SECOND;
	ck_assert_uint_eq(take(&r, now, 1000), 11);
	ck_assert_uint_eq(take(&r, now, 1000), 0);
	ck_assert_uint_eq(take(&r, now + 9999999, 10), 0);
	ck_assert_uint_eq(take(&r, now + 10000000, 10), 1);
	uint32_t taken = 0;
	for (uint64_t t = now + 20000000; t < now + 10 * SECOND; t += 1000000)
		taken += take(&r, t, 3);
	ck_assert_uint_eq(taken, 998);
	// A pause is not saved up.
	ck_assert_uint_eq(take(&r, now + 100 * SECOND, 1000), 11);
}
END_TEST

START_TEST(one_a_second_is_possible)
{
	struct rate r = {0};
	rate_set(&r, 1);
	ck_assert_uint_eq(take(&r, SECOND, 5), 1);
	ck_assert_uint_eq(take(&r, SECOND + SECOND / 2, 5), 0);
	ck_assert_uint_eq(take(&r, 2 * SECOND, 5), 1);
}
END_TEST

START_TEST(what_is_given_back_can_be_taken)
{
	struct rate r = {0};
	rate_set(&r, 100);
	ck_assert_uint_eq(take(&r, SECOND, 10), 10);
	uint64_t took;
	ck_assert(rate_take(&r, SECOND, &took));
	rate_give(&r, took);
	ck_assert_uint_eq(take(&r, SECOND, 100), 1);
}
END_TEST

// Between taking and giving the limit becomes another one, or there is none, or there was none: never is more given than was taken.
START_TEST(given_back_after_a_new_limit)
{
	static const uint32_t limits[] = {0, 1, 100, 100000};
	for (int before = 0; before < 4; before++)
		for (int after = 0; after < 4; after++) {
			struct rate r = {0};
			uint64_t took;
			rate_set(&r, limits[before]);
			ck_assert(rate_take(&r, 5, &took));
			rate_set(&r, limits[after]);
			rate_give(&r, took);
			ck_assert_uint_le(atomic_load(&r.due_ns), 5);
			ck_assert_uint_eq(take(&r, SECOND, 1), 1);
		}
}
END_TEST

START_TEST(a_limit_can_be_lifted)
{
	struct rate r = {0};
	rate_set(&r, 10);
	take(&r, SECOND, 100);
	ck_assert_uint_eq(take(&r, SECOND, 1), 0);
	rate_set(&r, 0);
	ck_assert_uint_eq(take(&r, SECOND, 1000), 1000);
}
END_TEST

static struct rate shared;
static void *taker(void *arg)
{
	uint64_t taken = 0, took;
	(void)arg;
	for (uint64_t now = SECOND; now < 2 * SECOND; now += 10000)
		taken += rate_take(&shared, now, &took);
	return (void *)(uintptr_t)taken;
}

// Their clocks run apart, so one may be early for what another has taken; together they never take more than the rate gives.
START_TEST(threads_share_it)
{
	enum { THREADS = 4 };
	pthread_t thread[THREADS];
	uint64_t all = 0;
	rate_set(&shared, 1000);
	for (int i = 0; i < THREADS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, taker, NULL), 0);
	for (int i = 0; i < THREADS; i++) {
		void *taken;
		pthread_join(thread[i], &taken);
		all += (uintptr_t)taken;
	}
	ck_assert_uint_le(all, 1000 + 101);
	ck_assert_uint_ge(all, 1000);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("rate");
	TCase *t = tcase_create("rate");
	tcase_add_test(t, without_a_limit_all_pass);
	tcase_add_test(t, a_burst_and_then_the_rate);
	tcase_add_test(t, one_a_second_is_possible);
	tcase_add_test(t, what_is_given_back_can_be_taken);
	tcase_add_test(t, given_back_after_a_new_limit);
	tcase_add_test(t, a_limit_can_be_lifted);
	tcase_add_test(t, threads_share_it);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
