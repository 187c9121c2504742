// Queues that somebody else feeds: who may touch what, the mapping that stays, and leases on the workers' wakefulness.
#include <time.h>

#include "client-lib/src/internal.h"
#include "tests/client-lib/fixture.h"

static mpig_client *c;
static mpig_queue *q;

static void setup(void)
{
	c = fixture_connect(0, 0);
	q = fixture_queue(c, 4, 4, 4096);
}

static void teardown(void)
{
	mpig_disconnect(c);
}

static uint64_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

// One request by the borrower's own producer, and its answer.
static void nop_by_hand(const struct mpig_region *r, uint64_t user_data)
{
	struct mpig_queue_header header;
	struct mpig_producer sq;
	struct mpig_consumer cq;
	ck_assert_int_eq(mpig_queue_header_check(r->base, r->bytes, &header), MPIG_OK);
	mpig_client_rings(r->base, &header, &sq, &cq);
	struct mpig_sqe entry = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT, .user_data = user_data};
	ck_assert_int_gt(mpig_producer_room(&sq), 0);
	mpig_producer_put(&sq, &entry);
	mpig_producer_publish(&sq);
	int ready = 0;
	for (int i = 0; i < 20000 && (ready = mpig_consumer_ready(&cq)) == 0; i++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	ck_assert_int_eq(ready, 1);
	struct mpig_cqe answer;
	mpig_consumer_take(&cq, &answer);
	mpig_consumer_release(&cq);
	ck_assert_uint_eq(answer.user_data, user_data);
}

START_TEST(a_lent_queue_is_the_borrowers)
{
	struct mpig_region r = {.size = sizeof(r)};
	struct mpig_completion done;
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
	int64_t ticket = mpig_submit_nop(q, 1);
	ck_assert_int_gt(ticket, 0);
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_EBUSY); // in flight, or not polled
	while (mpig_poll(q, &done, 1) == 0)
		;
	ck_assert_int_eq(mpig_queue_lend(q, NULL), MPIG_EINVAL);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_EINVAL); // not lent
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	ck_assert_ptr_eq(r.base, q->base);
	ck_assert_uint_eq(r.entries, 4);
	ck_assert_uint_eq(r.sq_tail, 2);
	ck_assert_uint_eq(r.cq_head, 2);
	struct mpig_queue_header *h = r.base;
	ck_assert_uint_eq(h->sq_silent, 1);
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_EBUSY);
	ck_assert_int_eq(mpig_nop(q), MPIG_EBUSY);
	ck_assert_int_eq(mpig_submit_nop(q, 1), MPIG_EBUSY);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(c), "lent"));
	ck_assert_int_eq(mpig_poll(q, &done, 1), 0);
	for (uint64_t i = 0; i < 10; i++)
		nop_by_hand(&r, 100 + i);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_OK);
	mpig_queue_take_back(q);
	mpig_queue_take_back(q); // allowed
	ck_assert_uint_eq(h->sq_silent, 0);
	ck_assert_ptr_eq(q->base, h); // it was left empty: the same region
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
	ck_assert_uint_eq(atomic_load(&fixture_fake->regions), 1);
}
END_TEST

// What the borrower left in flight may still be written into its slots: the queue goes on in other memory.
START_TEST(a_queue_taken_back_too_early)
{
	struct mpig_region r = {.size = sizeof(r)};
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	struct mpig_queue_header *h = r.base;
	atomic_store(&fixture_fake->hold, true);
	__atomic_store_n(&h->sq_tail, 1, __ATOMIC_RELEASE); // zeros: a NOP
	mpig_queue_take_back(q);
	atomic_store(&fixture_fake->hold, false);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
	ck_assert_uint_eq(atomic_load(&fixture_fake->regions), 2);
	ck_assert_uint_eq(atomic_load(&fixture_fake->adoptions), 0);
}
END_TEST

START_TEST(the_mapping_outlives_the_daemon)
{
	struct mpig_region r = {.size = sizeof(r)};
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	void *base = r.base;
	nop_by_hand(&r, 5);
	for (uint64_t i = 0; i < 2; i++) {
		fixture_kill();
		ck_assert_int_eq(mpig_awake(q, 10), MPIG_ERETRY);
		fixture_start(101 + i);
		r = (struct mpig_region){.size = sizeof(r)};
		ck_assert_int_eq(mpig_queue_renew(q, &r), 1);
		ck_assert_ptr_eq(r.base, base);
		ck_assert_uint_eq(r.sq_tail, 0);
		ck_assert_uint_eq(r.cq_head, 0);
		ck_assert_uint_eq(((struct mpig_queue_header *)base)->sq_silent, 1);
		ck_assert_int_eq(mpig_awake(q, 10), MPIG_OK);
		nop_by_hand(&r, 6 + i);
		ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_OK);
	}
	ck_assert_int_eq(mpig_nop(q), MPIG_EBUSY);
	mpig_queue_take_back(q);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
}
END_TEST

// The borrower names contexts by handles that it knows: what the next daemon was too full to open is open after a later renewal.
START_TEST(renewing_opens_what_a_full_daemon_refused)
{
	mpig_context *x = fixture_create(c, "book");
	struct mpig_region r = {.size = sizeof(r)};
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	fixture_kill();
	fixture_start(101);
	atomic_store(&fixture_fake->refuse_open, MPIG_ELIMIT);
	ck_assert_int_eq(mpig_queue_renew(q, &r), 1);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_OK);
	ck_assert_int_eq(atomic_load(&x->fault), MPIG_ELIMIT);
	atomic_store(&fixture_fake->refuse_open, 0);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_OK);
	ck_assert_int_eq(atomic_load(&x->fault), MPIG_OK);
	unsigned asked = atomic_load(&fixture_fake->control_count);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_OK);
	ck_assert_uint_eq(atomic_load(&fixture_fake->control_count), asked); // and nothing is asked any more
	mpig_queue_take_back(q);
}
END_TEST

// A daemon that does not take the region over: the queue is lost rather than moved under the borrower's feet.
START_TEST(a_lent_region_is_not_replaced)
{
	struct mpig_region r = {.size = sizeof(r)};
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	void *base = r.base;
	fixture_kill();
	fixture_start(101);
	atomic_store(&fixture_fake->refuse_adoption, true);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_ELOST);
	ck_assert_ptr_eq(q->base, base);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_ELOST);
	mpig_queue_take_back(q);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK); // in a region of its own
}
END_TEST

static atomic_int asked;
static void *ask_something_else(void *client)
{
	struct mpig_daemon_status status = {.size = sizeof(status)};
	while (atomic_load(&fixture_fake->adoptions_tried) < 3) // the other thread waits for the region
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	int rc = mpig_daemon_status(client, &status);
	atomic_store(&asked, rc == MPIG_OK ? 1 : rc);
	atomic_store(&fixture_fake->busy_region, false); // had it to wait, the region would never come
	return NULL;
}

START_TEST(waiting_for_the_region_holds_up_no_other_thread)
{
	struct mpig_region r = {.size = sizeof(r)};
	pthread_t other;
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	void *base = r.base;
	q->timeout_ms = 20000; // the test's own end
	atomic_store(&fixture_fake->busy_region, true);
	__atomic_fetch_or(&q->shared->sq_flags, MPIG_SQ_CLOSED, __ATOMIC_RELEASE); // by a daemon that lives
	ck_assert_int_eq(pthread_create(&other, NULL, ask_something_else, c), 0);
	ck_assert_int_eq(mpig_queue_renew(q, &r), 1);
	ck_assert_int_eq(pthread_join(other, NULL), 0);
	ck_assert_int_eq(atomic_load(&asked), 1);
	ck_assert_ptr_eq(r.base, base);
	ck_assert_uint_eq(atomic_load(&fixture_fake->destroyed), 1); // the old queue, once
	nop_by_hand(&r, 9);
}
END_TEST

START_TEST(the_region_does_not_come)
{
	struct mpig_region r = {.size = sizeof(r)};
	ck_assert_int_eq(mpig_queue_lend(q, &r), MPIG_OK);
	q->timeout_ms = 20;
	atomic_store(&fixture_fake->busy_region, true);
	__atomic_fetch_or(&q->shared->sq_flags, MPIG_SQ_CLOSED, __ATOMIC_RELEASE);
	ck_assert_int_eq(mpig_queue_renew(q, &r), MPIG_ETIMEDOUT);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(c), "still being served"));
	ck_assert_uint_ge(atomic_load(&fixture_fake->adoptions_tried), 2);
	atomic_store(&fixture_fake->busy_region, false);
	ck_assert_int_eq(mpig_queue_renew(q, &r), 1);
	nop_by_hand(&r, 9);
}
END_TEST

START_TEST(leases_are_written)
{
	struct mpig_queue_header *h = (void *)q->base;
	uint64_t before = clock_ns();
	ck_assert_int_eq(mpig_awake(NULL, 1), MPIG_EINVAL);
	ck_assert_int_eq(mpig_awake(q, -1), MPIG_EINVAL);
	ck_assert_int_eq(mpig_awake(q, 500), MPIG_OK);
	ck_assert_uint_ge(h->awake_until, before + 500 * NS_PER_MS);
	ck_assert_uint_le(h->awake_until, clock_ns() + 500 * NS_PER_MS);
	unsigned wakeups = atomic_load(&fixture_fake->wakeups);
	ck_assert_int_eq(mpig_awake(q, 0), MPIG_OK);
	ck_assert_uint_eq(h->awake_until, 0);
	ck_assert_uint_eq(atomic_load(&fixture_fake->wakeups), wakeups);
	q->header.features = 0; // as of an older daemon
	ck_assert_int_eq(mpig_awake(q, 500), MPIG_ENOTSUP);
}
END_TEST

static void add(TCase *t)
{
	tcase_add_checked_fixture(t, setup, teardown); // after the daemon's
	tcase_add_test(t, a_lent_queue_is_the_borrowers);
	tcase_add_test(t, a_queue_taken_back_too_early);
	tcase_add_test(t, the_mapping_outlives_the_daemon);
	tcase_add_test(t, renewing_opens_what_a_full_daemon_refused);
	tcase_add_test(t, a_lent_region_is_not_replaced);
	tcase_add_test(t, waiting_for_the_region_holds_up_no_other_thread);
	tcase_add_test(t, the_region_does_not_come);
	tcase_add_test(t, leases_are_written);
}

int main(void)
{
	return fixture_run("client-lib/lend", add);
}
