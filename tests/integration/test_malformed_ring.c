// A queue misused by whoever can write its memory: bad entries, impossible indices, entries and slots rewritten while they are
// served, completions nobody reaps. Only that queue may suffer.
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tests/lib/wire.h" // first: shm/ has the enumerations that magicpig.h copies

#include "shm/status.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"

#define HANDLE 3u
#define SLOT_BYTES 65536u

static struct test_daemon *d;
static struct model_data data;
static struct test_client witness;
static mpig_context *witness_context;
static int control;
static struct wire_queue queue;

// The witness's context, open for reading under HANDLE on the bare connection.
static void open_context(void)
{
	struct mpig_ctl_open open = {.name = "witness", .handle = HANDLE};
	union {
		struct mpig_ctl_context_reply context;
		struct mpig_ctl_error error;
	} reply;
	wire_header(&open.h, MPIG_CTL_OPEN, sizeof(open));
	ck_assert_int_eq(wire_call(control, &open, sizeof(open), &reply, sizeof(reply)), MPIG_OK);
}

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 1, 1000, 7);
	d = test_daemon_start(NULL);
	test_client_open(&witness, d);
	witness_context = test_client_create(&witness, "witness", &data);
	ck_assert_status(test_client_fill(&witness, witness_context, &data, 0, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
	control = wire_connect(d);
	ck_assert_int_eq(wire_hello(control), MPIG_OK);
	open_context();
	wire_queue_open(control, 16, 8, SLOT_BYTES, &queue);
}

static void assert_unharmed(void)
{
	test_daemon_assert_alive(d);
	ck_assert_status(mpig_nop(witness.queue), MPIG_OK);
	test_client_assert_dense(&witness, witness_context, &data, 0, 1000);
}

static void teardown(void)
{
	assert_unharmed();
	wire_queue_close(&queue);
	close(control);
	test_client_close(&witness);
	test_daemon_stop(d);
	model_data_free(&data);
}

// ---- entries -----------------------------------------------------------------------------------------------------------
static struct mpig_sqe good_attend(uint32_t slot)
{
	return (struct mpig_sqe){.op = MPIG_OP_ATTEND,
	                         .handle = HANDLE,
	                         .slot = slot,
	                         .count = 1,
	                         .end = 1000,
	                         .budget = 0.05f,
	                         .proposal = MPIG_PROPOSAL_DENSE,
	                         .dtype = MPIG_F32};
}

static void good_query(uint32_t slot)
{
	static const struct mpig_slot_header zero = {0};
	uint8_t *at = wire_slot(&queue, slot);
	memcpy(at, &zero, sizeof(zero));
	model_normal((float *)(void *)(at + MPIG_SLOT_HEADER_BYTES), 4 * 64, 3);
}

static int run(const struct mpig_sqe *entry)
{
	static uint64_t number;
	struct mpig_sqe e = *entry;
	e.user_data = ++number;
	wire_submit(&queue, &e);
	struct mpig_cqe done = wire_complete(&queue);
	ck_assert_uint_eq(done.user_data, number);
	ck_assert_uint_eq(done.slot, e.slot);
	return done.status;
}

// The good entry, changed, is refused with `status` (0 = any error); the next good one is served.
static void assert_entry_refused(const struct mpig_sqe *bad, int status, const char *what)
{
	int got = run(bad);
	ck_assert_msg(status ? got == status : got < 0, "%s: %d (%s)", what, got, mpig_status_name(got));
	struct mpig_sqe good = good_attend(0);
	good_query(0);
	ck_assert_int_eq(run(&good), MPIG_OK);
}

START_TEST(bad_entries_are_error_completions)
{
	struct mpig_sqe e, good = good_attend(0), nop = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	good_query(0);
	ck_assert_int_eq(run(&good), MPIG_OK);
	ck_assert_int_eq(run(&nop), MPIG_OK);
	e = good, e.op = MPIG_OP_COUNT, assert_entry_refused(&e, MPIG_EPROTO, "unknown operation");
	e = good, e.op = 255, assert_entry_refused(&e, MPIG_EPROTO, "operation 255");
	e = good, e.flags = 0x10, assert_entry_refused(&e, MPIG_EPROTO, "unknown flag");
	e = good, e.flags = 0x80, assert_entry_refused(&e, MPIG_EPROTO, "highest flag");
	e = good, e.reserved0 = 1, assert_entry_refused(&e, MPIG_EPROTO, "reserved0");
	e = good, e.reserved1 = UINT64_C(1) << 63, assert_entry_refused(&e, MPIG_EPROTO, "reserved1");
	e = nop, e.reserved1 = 1, assert_entry_refused(&e, MPIG_EPROTO, "reserved byte of a NOP");
	e = good, e.slot = 8, assert_entry_refused(&e, MPIG_EPROTO, "slot beyond the last");
	e = good, e.slot = UINT32_MAX - 1, assert_entry_refused(&e, MPIG_EPROTO, "slot 2^32-2");
	e = good, e.slot = MPIG_NO_SLOT, assert_entry_refused(&e, 0, "no slot");
	e = good, e.handle = HANDLE + 1, assert_entry_refused(&e, 0, "a handle nobody opened");
	e = good, e.handle = UINT32_MAX, assert_entry_refused(&e, 0, "handle 2^32-1");
	e = good, e.layer = 1, assert_entry_refused(&e, 0, "layer");
	e = good, e.layer = UINT16_MAX, assert_entry_refused(&e, 0, "layer 65535");
	e = good, e.count = 0, assert_entry_refused(&e, 0, "no query");
	e = good, e.count = MPIG_MAX_QUERY_TOKENS + 1, assert_entry_refused(&e, 0, "too many queries");
	e = good, e.count = UINT32_MAX, assert_entry_refused(&e, 0, "2^32-1 queries");
	e = good, e.count = 64, assert_entry_refused(&e, 0, "a payload beyond the slot");
	e = good, e.begin = UINT64_MAX, assert_entry_refused(&e, MPIG_ERANGE, "begin");
	e = good, e.end = 1001, assert_entry_refused(&e, MPIG_ERANGE, "end");
	e = good, e.end = INT64_MAX, assert_entry_refused(&e, MPIG_ERANGE, "largest end");
	e = good, e.flags = MPIG_SQE_END_RELATIVE, e.end = 1, assert_entry_refused(&e, MPIG_ERANGE, "relative end after all");
	e = good, e.proposal = MPIG_PROPOSAL_COUNT, assert_entry_refused(&e, 0, "proposal");
	e = good, e.dtype = MPIG_DTYPE_COUNT, assert_entry_refused(&e, 0, "dtype");
	e = good, e.dtype = MPIG_I8, assert_entry_refused(&e, 0, "int8 queries");
	e = good, e.budget = -1, assert_entry_refused(&e, MPIG_EINVAL, "budget");
	e = good, memset(&e.budget, 0xff, sizeof(e.budget)), assert_entry_refused(&e, MPIG_EINVAL, "NaN budget");
	// A relative end before the first row is an empty range: a recorded graph may meet a context shorter than its window.
	e = good, e.flags = MPIG_SQE_END_RELATIVE, e.end = INT64_MIN;
	ck_assert_int_eq(run(&e), MPIG_OK);
	// A reader may not write.
	e = (struct mpig_sqe){.op = MPIG_OP_APPEND, .handle = HANDLE, .slot = 0, .count = 1, .begin = 1000};
	assert_entry_refused(&e, MPIG_ELEASE, "append without the lease");
	e.op = MPIG_OP_COMMIT, assert_entry_refused(&e, MPIG_ELEASE, "commit without the lease");
	e.op = MPIG_OP_TRUNCATE, e.begin = 0, e.count = 0, e.slot = MPIG_NO_SLOT;
	assert_entry_refused(&e, MPIG_ELEASE, "truncate without the lease");
	e = (struct mpig_sqe){.op = MPIG_OP_READ, .handle = HANDLE, .slot = 0, .count = 1, .begin = 1000, .end = 0};
	assert_entry_refused(&e, MPIG_ERANGE, "read beyond the commit");
}
END_TEST

static int run_with_slot(const struct mpig_slot_header *header)
{
	struct mpig_sqe e = good_attend(1);
	good_query(1);
	memcpy(wire_slot(&queue, 1), header, sizeof(*header));
	return run(&e);
}

START_TEST(bad_slot_headers_are_error_completions)
{
	struct mpig_slot_header h = {0};
	ck_assert_int_eq(run_with_slot(&h), MPIG_OK);
	h.present = MPIG_PRESENT_FLAGS + 1;
	ck_assert_int_eq(run_with_slot(&h), MPIG_EPROTO);
	h.present = 0x80000000u;
	ck_assert_int_eq(run_with_slot(&h), MPIG_EPROTO);
	h.present = 0;
	for (size_t i = 0; i < sizeof(h.reserved); i += 29) {
		h.reserved[i] = 1;
		ck_assert_int_eq(run_with_slot(&h), MPIG_EPROTO);
		h.reserved[i] = 0;
	}
	memset(&h.error_target, 0xff, sizeof(float));
	ck_assert_int_lt(run_with_slot(&h), 0);
	memset(&h, 0, sizeof(h));
	ck_assert_int_eq(run_with_slot(&h), MPIG_OK);
}
END_TEST

// ---- indices -----------------------------------------------------------------------------------------------------------
static struct mpig_queue_header *words(void)
{
	return queue.base;
}

// The daemon marks the queue it gives up: waits up to 10 s.
static void assert_closed(void)
{
	struct timespec step = {0, 1000000};
	for (int tries = 0; tries < 10000 && !mpig_flag_peer(&words()->sq_flags, MPIG_SQ_CLOSED); tries++)
		nanosleep(&step, NULL);
	ck_assert(mpig_flag_peer(&words()->sq_flags, MPIG_SQ_CLOSED));
}

static const uint32_t bad_steps[] = {17, 1000, 0x80000000, UINT32_MAX};

// _i: how far the tail is from where it can be.
START_TEST(an_impossible_tail_closes_that_queue_only)
{
	struct wire_queue second;
	wire_queue_open(control, 8, 8, 4096, &second);
	__atomic_store_n(&words()->sq_tail, bad_steps[_i], __ATOMIC_RELEASE);
	wire_wake(&queue);
	assert_closed();
	struct mpig_sqe nop = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT, .user_data = 42};
	wire_submit(&second, &nop); // another queue of the same connection
	struct mpig_cqe done = wire_complete(&second);
	ck_assert_uint_eq(done.user_data, 42);
	ck_assert_int_eq(done.status, MPIG_OK);
	wire_queue_close(&second);
}
END_TEST

// An impossible completion head is looked at when the ring seems full: the queue is closed, and nothing is written outside.
START_TEST(an_impossible_completion_head_closes_that_queue_only)
{
	struct mpig_sqe nop = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	__atomic_store_n(&words()->cq_head, 0x12345678, __ATOMIC_RELEASE);
	for (int i = 0; i < 40 && !mpig_flag_peer(&words()->sq_flags, MPIG_SQ_CLOSED); i++) {
		struct timespec step = {0, 1000000};
		for (int tries = 0; tries < 200 && mpig_producer_room(&queue.sq) <= 0; tries++)
			nanosleep(&step, NULL);
		if (mpig_producer_room(&queue.sq) > 0)
			wire_submit(&queue, &nop);
	}
	assert_closed();
}
END_TEST

START_TEST(a_scribbled_header_changes_nothing)
{
	struct mpig_sqe good = good_attend(0);
	memset(queue.base, 0xff, offsetof(struct mpig_queue_header, sq_tail)); // geometry: the daemon goes by its own copy
	words()->sq_head = 77;                                                 // and by its own indices
	words()->cq_tail = 0;
	for (int i = 0; i < 3; i++) {
		good_query(0);
		mpig_producer_put(&queue.sq, &good);
		mpig_producer_publish(&queue.sq);
		wire_wake(&queue);
		ck_assert_int_eq(wire_complete(&queue).status, MPIG_OK);
	}
}
END_TEST

START_TEST(completions_nobody_reaps_hold_up_nobody_else)
{
	struct mpig_sqe nop = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	uint64_t sent = 0, seen = 0;
	struct timespec step = {0, 1000000};
	for (int tries = 0; tries < 300; tries++) { // until both rings are full
		while (mpig_producer_room(&queue.sq) > 0) {
			nop.user_data = sent++;
			wire_submit(&queue, &nop);
		}
		if (sent >= 32)
			break;
		nanosleep(&step, NULL);
	}
	ck_assert_uint_eq(sent, 32);
	assert_unharmed();
	ck_assert_int_eq(mpig_consumer_ready(&queue.cq), 16);
	for (; seen < sent; seen++) {
		struct mpig_cqe done = wire_complete(&queue);
		ck_assert_uint_eq(done.user_data, seen);
		ck_assert_int_eq(done.status, MPIG_OK);
		wire_wake(&queue);
	}
	ck_assert_int_eq(mpig_consumer_ready(&queue.cq), 0);
}
END_TEST

// ---- rewritten while served --------------------------------------------------------------------------------------------
static bool stop_rewriting;

// Scribbles over the submission ring and all slots, with values that are nearly right, as fast as it can.
static void *rewrite(void *unused)
{
	uint64_t random = 99;
	(void)unused;
	while (!__atomic_load_n(&stop_rewriting, __ATOMIC_RELAXED)) {
		struct mpig_sqe e = good_attend((uint32_t)(model_random(&random) % 10));
		uint64_t words64[8];
		e.op = (uint8_t)(model_random(&random) % 7);
		e.count = (uint32_t)(model_random(&random) % 40);
		e.end = (int64_t)(model_random(&random) % 1100);
		e.handle = HANDLE + (model_random(&random) % 8 == 0);
		e.reserved1 = model_random(&random) % 8 == 0;
		memcpy(words64, &e, sizeof(e));
		uint64_t *at =
			(uint64_t *)(void *)((uint8_t *)queue.base + queue.header.sq_offset) + 8 * (model_random(&random) % 16);
		for (int i = 0; i < 8; i++)
			__atomic_store_n(&at[i], words64[i], __ATOMIC_RELAXED);
		uint64_t *slot = (uint64_t *)(void *)wire_slot(&queue, (uint32_t)(model_random(&random) % 8));
		for (int i = 0; i < 16; i++)
			__atomic_store_n(&slot[model_random(&random) % 64], i % 4 ? 0 : model_random(&random), __ATOMIC_RELAXED);
	}
	return NULL;
}

START_TEST(entries_rewritten_while_served_harm_nobody)
{
	pthread_t thread;
	ck_assert_int_eq(pthread_create(&thread, NULL, rewrite, NULL), 0);
	unsigned served = 0, refused = 0;
	for (int round = 0; round < 400; round++) {
		int batch = 0;
		for (; batch < 8 && mpig_producer_room(&queue.sq) > 0; batch++) {
			struct mpig_sqe e = good_attend((uint32_t)batch);
			good_query((uint32_t)batch);
			mpig_producer_put(&queue.sq, &e);
		}
		mpig_producer_publish(&queue.sq);
		wire_wake(&queue);
		for (int i = 0; i < batch; i++) { // one completion for each, whatever they had become
			struct mpig_cqe done = wire_complete(&queue);
			ck_assert_int_le(done.status, 0);
			served += done.status == MPIG_OK;
			refused += done.status != MPIG_OK;
		}
		if (round % 50 == 0)
			assert_unharmed();
	}
	__atomic_store_n(&stop_rewriting, true, __ATOMIC_RELAXED);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_uint_eq(served + refused, 3200);
	ck_assert_uint_gt(refused, 0);
	struct mpig_sqe good = good_attend(0); // the queue itself is whole
	good_query(0);
	ck_assert_int_eq(run(&good), MPIG_OK);
}
END_TEST

// ---- payloads rewritten while they are taken ---------------------------------------------------------------------------
#define PAYLOAD_ROWS 60u
#define WRITER (HANDLE + 5)

// One word of slot 0's payload after another is not a number for a moment.
static void *spoil(void *unused)
{
	uint64_t random = 5;
	(void)unused;
	uint32_t *at = (uint32_t *)(void *)(wire_slot(&queue, 0) + MPIG_SLOT_HEADER_BYTES);
	while (!__atomic_load_n(&stop_rewriting, __ATOMIC_RELAXED)) {
		uint32_t *word = &at[model_random(&random) % 6000], was = __atomic_load_n(word, __ATOMIC_RELAXED);
		__atomic_store_n(word, 0x7fc07fc0, __ATOMIC_RELAXED); // in fp32, and twice in bf16
		for (uint64_t n = model_random(&random) % 200; n; n--)
			__asm__ volatile("");
		__atomic_compare_exchange_n(word, &(uint32_t){0x7fc07fc0}, was == 0x7fc07fc0 ? 0 : was, false, __ATOMIC_RELAXED,
		                            __ATOMIC_RELAXED);
	}
	return NULL;
}

static void fill_payload(uint32_t dtype, uint64_t seed)
{
	static const struct mpig_slot_header zero = {0};
	float x[2 * PAYLOAD_ROWS * 128];
	uint8_t *at = wire_slot(&queue, 0);
	model_normal(x, 2 * PAYLOAD_ROWS * 128, seed);
	memcpy(at, &zero, sizeof(zero));
	for (uint32_t i = 0; i < 2 * PAYLOAD_ROWS * 128; i++)
		if (dtype == MPIG_F32)
			memcpy(at + MPIG_SLOT_HEADER_BYTES + 4 * (size_t)i, &x[i], 4);
		else
			memcpy(at + MPIG_SLOT_HEADER_BYTES + 2 * (size_t)i, (const uint8_t *)&x[i] + 2, 2);
}

static void assert_finite(const void *floats, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		float x;
		memcpy(&x, (const uint8_t *)floats + i * sizeof(x), sizeof(x));
		ck_assert_msg(isfinite(x), "number %zu of %zu is %g", i, n, (double)x);
	}
}

// _i: fp32 that becomes int8, or bf16 that stays so. What was taken is what was checked: an append is refused, or its rows are numbers; also
// where it replaces rows. Then they are indexed and attended.
START_TEST(payloads_rewritten_while_taken_leave_no_nan)
{
	const uint32_t dtype = _i ? MPIG_BF16 : MPIG_F32;
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	layer.row_dtype = _i ? MPIG_BF16 : MPIG_I8;
	struct model_data shape = {.layers = 1, .layer = layer};
	mpig_context_close(test_client_create(&witness, "spoiled", &shape));
	struct mpig_ctl_open open = {.name = "spoiled", .handle = WRITER, .flags = MPIG_OPEN_WRITE};
	union {
		struct mpig_ctl_context_reply context;
		struct mpig_ctl_error error;
	} reply;
	wire_header(&open.h, MPIG_CTL_OPEN, sizeof(open));
	ck_assert_int_eq(wire_call(control, &open, sizeof(open), &reply, sizeof(reply)), MPIG_OK);
	struct mpig_sqe append = {.op = MPIG_OP_APPEND,
	                          .handle = WRITER,
	                          .slot = 0,
	                          .count = PAYLOAD_ROWS,
	                          .dtype = (uint8_t)dtype},
			commit = {.op = MPIG_OP_COMMIT, .handle = WRITER, .slot = 1, .count = PAYLOAD_ROWS};
	pthread_t thread;
	unsigned refused = 0;
	uint64_t has = 0;
	stop_rewriting = false;
	ck_assert_int_eq(pthread_create(&thread, NULL, spoil, NULL), 0);
	for (uint64_t round = 0; round < 240; round++) {
		fill_payload(dtype, round);
		append.begin = has;
		int status = run(&append);
		ck_assert_msg(status == MPIG_OK || status == MPIG_ENAN, "append: %d", status);
		refused += status == MPIG_ENAN;
		memset(wire_slot(&queue, 1), 0, MPIG_SLOT_HEADER_BYTES + 4 * PAYLOAD_ROWS);
		commit.begin = has;
		if (round % 3 == 2) // after two tries over each other: there if the last one was good
			ck_assert_int_eq(run(&commit), status == MPIG_OK ? MPIG_OK : MPIG_ERANGE);
		has += round % 3 == 2 && status == MPIG_OK ? PAYLOAD_ROWS : 0;
	}
	__atomic_store_n(&stop_rewriting, true, __ATOMIC_RELAXED);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_uint_gt(has, 0);
	ck_assert_uint_gt(refused, 0);
	struct mpig_sqe seal = {.op = MPIG_OP_COMMIT, .handle = WRITER, .slot = 1, .begin = has, .flags = MPIG_SQE_SEAL};
	ck_assert_int_eq(run(&seal), MPIG_OK);
	for (uint64_t at = 0; at < has; at += PAYLOAD_ROWS) {
		struct mpig_sqe read = {.op = MPIG_OP_READ, .handle = WRITER, .slot = 0, .begin = at, .count = PAYLOAD_ROWS};
		ck_assert_int_eq(run(&read), MPIG_OK);
		assert_finite(wire_slot(&queue, 0) + MPIG_SLOT_HEADER_BYTES, (size_t)2 * PAYLOAD_ROWS * 128);
	}
	struct mpig_sqe attend = good_attend(0);
	attend.handle = WRITER;
	attend.end = (int64_t)has;
	attend.proposal = MPIG_PROPOSAL_SIGNATURE;
	good_query(0);
	ck_assert_int_eq(run(&attend), MPIG_OK);
	assert_finite(wire_slot(&queue, 0) + MPIG_SLOT_HEADER_BYTES, 4 * 64);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/malformed ring");
	TCase *entries = tcase_create("entries"), *indices = tcase_create("indices"), *rewritten = tcase_create("rewritten");
	TCase *cases[] = {entries, indices, rewritten};
	for (int i = 0; i < 3; i++) {
		tcase_add_checked_fixture(cases[i], setup, teardown);
		tcase_set_timeout(cases[i], 120);
		suite_add_tcase(suite, cases[i]);
	}
	tcase_add_test(entries, bad_entries_are_error_completions);
	tcase_add_test(entries, bad_slot_headers_are_error_completions);
	tcase_add_loop_test(indices, an_impossible_tail_closes_that_queue_only, 0,
	                    (int)(sizeof(bad_steps) / sizeof(bad_steps[0])));
	tcase_add_test(indices, an_impossible_completion_head_closes_that_queue_only);
	tcase_add_test(indices, a_scribbled_header_changes_nothing);
	tcase_add_test(indices, completions_nobody_reaps_hold_up_nobody_else);
	tcase_add_test(rewritten, entries_rewritten_while_served_harm_nobody);
	tcase_add_loop_test(rewritten, payloads_rewritten_while_taken_leave_no_nan, 0, 2);
	return suite_run(suite);
}
