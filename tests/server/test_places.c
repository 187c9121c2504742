// Places of the statistics: who gets one, who is counted with the rest, and what a newcomer is charged with.
#include <check.h>
#include <stdlib.h>

#include "daemon/server/places.h"
#include "daemon/server/stats.h"
#include "shm/status.h"
#include "tests/lib/suite.h"

static struct stats_file file;
static struct places places;

static void setup(void)
{
	char why[256];
	ck_assert_int_eq(stats_open(&file, "none", 2, (gid_t)-1, why, sizeof why), 0);
	places_init(&places, file.stats, PLACES_CLIENTS);
}

static void teardown(void)
{
	stats_close(&file);
}

static void count(uint32_t worker, uint32_t client, uint32_t context)
{
	struct mpig_sqe e = {.op = MPIG_OP_ATTEND};
	struct mpig_cqe c = {.rows_read = 10, .bytes_read = 100, .service_ns = 1000};
	stats_count(&file.stats->worker[worker], &e, &c, client, context);
}

START_TEST(one_place_for_each)
{
	uint32_t a = places_take(&places, 7, 1000, 42), b = places_take(&places, 8, 1001, 43);
	ck_assert_uint_ne(a, 0);
	ck_assert_uint_ne(b, 0);
	ck_assert_uint_ne(a, b);
	ck_assert_uint_eq(places_take(&places, 7, 1000, 42), a); // a second use
	ck_assert_uint_eq(file.stats->client[a].id, 7);
	ck_assert_uint_eq(file.stats->client[a].uid, 1000);
	ck_assert_uint_eq(file.stats->client[a].pid, 42);
	ck_assert_uint_gt(file.stats->client[a].since_ns, 0);
	ck_assert_uint_eq(file.stats->client[a].sequence % 2, 0);
	ck_assert_uint_eq(file.stats->context[a].id, 0); // the other kind's directory is another
}
END_TEST

START_TEST(the_directory_says_who_is_there)
{
	uint32_t a = places_take(&places, 7, 0, 0);
	places_share(&places, a);
	places_show(&places);
	ck_assert_uint_eq(file.stats->client[a].users, 2);
	places_leave(&places, a);
	places_leave(&places, a);
	places_show(&places);
	ck_assert_uint_eq(file.stats->client[a].users, 0);
	ck_assert_uint_eq(file.stats->client[a].id, 7);
}
END_TEST

START_TEST(those_who_find_none_are_counted_together)
{
	for (uint64_t id = 1; id < MPIG_STATS_PLACES; id++)
		ck_assert_uint_ne(places_take(&places, id, 0, 0), 0);
	ck_assert_uint_eq(places_take(&places, 1000, 0, 0), 0);
	places_share(&places, 0);
	places_leave(&places, 0); // nothing to give back
	ck_assert_uint_eq(places_take(&places, 1000, 0, 0), 0);
	uint32_t five = places_take(&places, 5, 0, 0);
	places_leave(&places, five);
	ck_assert_uint_eq(places_take(&places, 1000, 0, 0), 0); // it still has its first use
	places_leave(&places, five);
	ck_assert_uint_eq(places_take(&places, 1000, 0, 0), five);
}
END_TEST

START_TEST(the_one_who_comes_back_goes_on_counting)
{
	uint32_t a = places_take(&places, 7, 0, 0);
	count(0, a, 0);
	places_leave(&places, a);
	ck_assert_uint_eq(places_take(&places, 7, 0, 0), a);
	count(1, a, 0);
	ck_assert_uint_eq(places_use(&places, a).requests, 2);
}
END_TEST

START_TEST(a_newcomer_starts_from_nothing)
{
	uint32_t place = 0;
	for (uint64_t id = 1; id < MPIG_STATS_PLACES; id++)
		place = places_take(&places, id, 0, 0);
	count(0, place, 0);
	count(1, place, 0);
	struct mpig_stats_use use = places_use(&places, place);
	ck_assert_uint_eq(use.requests, 2);
	ck_assert_uint_eq(use.attends, 2);
	ck_assert_uint_eq(use.rows_read, 20);
	ck_assert_uint_eq(use.bytes_read, 200);
	ck_assert_uint_eq(use.service_ns, 2000);
	places_leave(&places, place);
	ck_assert_uint_eq(places_take(&places, 1000, 5, 6), place);
	ck_assert_uint_eq(places_use(&places, place).requests, 0);
	count(1, place, 0);
	ck_assert_uint_eq(places_use(&places, place).requests, 1);
	ck_assert_uint_eq(places_use(&places, place).bytes_read, 100);
}
END_TEST

START_TEST(requests_are_counted_once_for_everybody)
{
	struct mpig_stats_worker *w = &file.stats->worker[0];
	struct mpig_sqe append = {.op = MPIG_OP_APPEND, .count = 30}, strange = {.op = 200};
	struct mpig_cqe good = {.service_ns = 5000}, bad = {.status = MPIG_EQUOTA, .service_ns = 3};
	stats_count(w, &append, &good, 2, 3);
	stats_count(w, &append, &bad, 2, 3);
	stats_count(w, &strange, &bad, 2, 0);
	count(0, 2, 3);
	ck_assert_uint_eq(w->requests[MPIG_OP_APPEND], 2);
	ck_assert_uint_eq(w->requests[MPIG_OP_ATTEND], 1);
	ck_assert_uint_eq(w->requests[MPIG_STATS_OPS - 1], 1);
	ck_assert_uint_eq(w->appended_rows, 30); // the refused one appended none
	ck_assert_uint_eq(w->errors, 2);
	ck_assert_uint_eq(w->latency_sum_ns[MPIG_OP_APPEND], 5003);
	ck_assert_uint_eq(w->latency[MPIG_OP_APPEND][mpig_stats_bucket(5000)], 1);
	ck_assert_uint_eq(w->latency[MPIG_OP_APPEND][3], 1);
	ck_assert_uint_eq(w->client[2].requests, 4);
	ck_assert_uint_eq(w->context[3].requests, 3);
	ck_assert_uint_eq(w->context[0].requests, 1);
	ck_assert_uint_eq(w->context[3].errors, 1);
	ck_assert_uint_eq(w->context[3].appended_rows, 30);
	ck_assert_uint_eq(w->context[3].rows_read, 10);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("places");
	TCase *tcase = tcase_create("places");
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, one_place_for_each);
	tcase_add_test(tcase, the_directory_says_who_is_there);
	tcase_add_test(tcase, those_who_find_none_are_counted_together);
	tcase_add_test(tcase, the_one_who_comes_back_goes_on_counting);
	tcase_add_test(tcase, a_newcomer_starts_from_nothing);
	tcase_add_test(tcase, requests_are_counted_once_for_everybody);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
