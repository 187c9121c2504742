// A queue's region goes from one queue to the next of a daemon that lives: requests of the first that are still being served write into it.
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "client-lib/src/internal.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { TOKENS = 6000, T = 512 };

static struct test_daemon *d;
static struct test_client writer, s; // s only reads: its contexts can be opened again at once
static struct model_data m;
static mpig_context *x;
static float *q_rows, *out;

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(8, 2, 64);
	d = test_daemon_start(NULL);
	test_client_open(&writer, d);
	test_client_open(&s, d);
	model_data_make(&m, &layer, 1, TOKENS, 1);
	ck_assert_status(test_client_fill(&writer, test_client_create(&writer, "x", &m), &m, 0, TOKENS, 0), MPIG_OK);
	ck_assert_status(test_client_find(&s, "x", MPIG_READ, &x), MPIG_OK);
	q_rows = malloc((size_t)T * 8 * 64 * sizeof(float));
	out = malloc((size_t)T * 8 * 64 * sizeof(float));
	model_normal(q_rows, (size_t)T * 8 * 64, 2);
}

static void teardown(void)
{
	free(q_rows), free(out);
	model_data_free(&m);
	test_client_close(&s);
	test_client_close(&writer);
	test_daemon_free(d);
}

static uint64_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static void pause_us(long us)
{
	nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

static mpig_queue *queue_open(void)
{
	struct mpig_queue_options o = {.size = sizeof(o), .entries = 4, .slots = 4, .slot_bytes = 8 << 20};
	mpig_queue *q;
	ck_assert_status(mpig_queue_create(s.client, &o, &q), MPIG_OK);
	return q;
}

static struct mpig_attend slow_request(void)
{
	return (struct mpig_attend){.size = sizeof(struct mpig_attend),
	                            .proposal = MPIG_PROPOSAL_DENSE,
	                            .dtype = MPIG_F32,
	                            .tokens = T,
	                            .q = q_rows,
	                            .end = TOKENS};
}

static uint32_t answered(const mpig_queue *q)
{
	return __atomic_load_n(&q->shared->cq_tail, __ATOMIC_ACQUIRE);
}

// A request is being served, and has not been answered, when the connection breaks: the daemon stands still meanwhile. On a busy machine it may have
// been answered before that: then another one is asked, once forget() has taken the answer.
static void break_in_flight(mpig_queue *q, void (*ask)(mpig_queue *q), void (*forget)(mpig_queue *q))
{
	for (int tries = 0; tries < 200; tries++) {
		uint32_t before = answered(q);
		ask(q);
		while (__atomic_load_n(&q->shared->sq_head, __ATOMIC_ACQUIRE) == before)
			pause_us(20);
		test_daemon_freeze(d);
		bool caught = answered(q) == before;
		if (caught)
			ck_assert_int_eq(shutdown(s.client->fd, SHUT_RDWR), 0);
		test_daemon_thaw(d);
		if (caught)
			return;
		forget(q);
	}
	ck_abort_msg("the request is too short for this test");
}

static void ask_slowly(mpig_queue *q)
{
	const struct mpig_attend a = slow_request();
	static struct mpig_result result;
	result = (struct mpig_result){.size = sizeof(result), .out = out};
	ck_assert_int_gt(mpig_submit_attend(q, x, &a, &result, 0), 0);
}

static void poll_answer(mpig_queue *q)
{
	struct mpig_completion done;
	while (mpig_poll(q, &done, 1) == 0)
		pause_us(20);
}

// The same as a borrower does it.
static struct mpig_producer lent_sq;
static struct mpig_consumer lent_cq;

static void ask_lent(mpig_queue *q)
{
	const struct mpig_sqe entry = {.op = MPIG_OP_ATTEND,
	                               .handle = mpig_context_handle(x),
	                               .user_data = 7,
	                               .count = T,
	                               .end = TOKENS,
	                               .proposal = MPIG_PROPOSAL_DENSE,
	                               .dtype = MPIG_F32};
	const struct mpig_layer_shape shape = {8, 2, 64, 64};
	const struct mpig_payload_layout l = mpig_attend_layout(&shape, T, MPIG_F32, 0);
	uint8_t *slot = (uint8_t *)q->base + q->header.slots_offset;
	memset(slot, 0, MPIG_SLOT_HEADER_BYTES);
	memcpy(slot + l.q, q_rows, (size_t)T * 8 * 64 * sizeof(float));
	ck_assert_int_gt(mpig_producer_room(&lent_sq), 0);
	mpig_producer_put(&lent_sq, &entry);
	mpig_producer_publish(&lent_sq);
	if (mpig_flag_peer(&q->shared->sq_flags, MPIG_SQ_NEED_WAKEUP))
		ck_assert_int_eq(eventfd_write(q->event_fd, 1), 0);
}

static void take_lent(mpig_queue *q)
{
	struct mpig_cqe answer;
	(void)q;
	while (mpig_consumer_ready(&lent_cq) == 0)
		pause_us(20);
	mpig_consumer_take(&lent_cq, &answer);
	mpig_consumer_release(&lent_cq);
}

// The queue goes on in a region that the old request does not write.
START_TEST(an_old_answer_does_not_reach_the_new_queue)
{
	mpig_queue *q = queue_open();
	break_in_flight(q, ask_slowly, poll_answer);
	uint64_t until = clock_ns() + UINT64_C(1500000000); // past the end of the old request
	const uint64_t connection = q->connection;
	int status = mpig_nop(q);
	while (status == MPIG_ERETRY || (status == MPIG_OK && q->connection == connection)) // until the daemon has noticed
		status = mpig_nop(q);
	for (; status == MPIG_OK && clock_ns() < until; pause_us(100))
		status = mpig_nop(q);
	ck_assert_status(status, MPIG_OK);
	mpig_queue_destroy(q);
}
END_TEST

// A lent queue keeps its region, and gets it when the old request is done.
START_TEST(a_lent_region_comes_back_when_it_is_quiet)
{
	mpig_queue *q = queue_open();
	struct mpig_region region = {.size = sizeof(region)};
	ck_assert_status(mpig_queue_lend(q, &region), MPIG_OK);
	const void *base = region.base;
	mpig_client_rings(q->base, &q->header, &lent_sq, &lent_cq);
	break_in_flight(q, ask_lent, take_lent);
	int status = mpig_queue_renew(q, &region);
	while (status == MPIG_ERETRY || status == MPIG_ETIMEDOUT)
		status = mpig_queue_renew(q, &region);
	ck_assert_status(status, 1);
	ck_assert_ptr_eq(region.base, base);
	for (uint64_t until = clock_ns() + UINT64_C(1500000000); clock_ns() < until; pause_us(1000))
		ck_assert_msg(answered(q) == 0, "an answer to the last queue's request came");
	mpig_queue_take_back(q);
	ck_assert_status(mpig_nop(q), MPIG_OK);
	mpig_queue_destroy(q);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("handover");
	TCase *t = tcase_create("handover");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, an_old_answer_does_not_reach_the_new_queue);
	tcase_add_test(t, a_lent_region_comes_back_when_it_is_quiet);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
