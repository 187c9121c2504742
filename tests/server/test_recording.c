// Recordings of queries between workers, a recorder that reads, and a control thread that starts and ends them: what is read is whole and counted,
// whoever else is at it. Also run under ThreadSanitizer.
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/server/recording.h"
#include "shm/region.h"
#include "shm/status.h"
#include "tests/lib/suite.h"
#include "tests/server/fake_engine.c"

#define HEADS 2
#define D 64
#define WRITERS 3
#define RING (UINT64_C(1) << 20)

// What the engine would say of the jobs in here: one query token, every number the job's seed.
bool job_query(const struct job *j, struct job_query *query)
{
	static const struct mpig_slot_header slot;
	*query = (struct job_query){.shape = {HEADS, 1, D, D}, .slot = &slot, .begin = 1, .end = 100, .seed = j->seed};
	return j->seed != 0;
}

void job_query_copy(const struct job *j, float *q, float *window_lse, float *window_out)
{
	(void)window_lse;
	(void)window_out;
	for (int i = 0; i < HEADS * D; i++)
		q[i] = (float)j->seed;
}

static struct recordings *all;
static struct context *context;
static struct binding binding;
static struct queue queue;
static char why[MPIG_TEXT_BYTES];

static void setup(void)
{
	all = recordings_create();
	context = fake_context();
	binding = (struct binding){.context = context};
	queue = (struct queue){.id = 5, .client = 9};
}

static void teardown(void)
{
	recordings_destroy(all);
	context_unref(context);
}

struct reader {
	struct mpig_trace_ring *ring;
	uint32_t number;
	uint64_t read;
};

static int start(uint64_t client, struct reader *r)
{
	struct recording_wish wish = {.context = context_id(context), .client = client, .ring_bytes = RING, .name = "book"};
	uint64_t began;
	void *base;
	int fd, status = recordings_start(all, &wish, &r->number, &began, &fd, why);
	if (status != MPIG_OK)
		return status;
	ck_assert_int_eq(mpig_region_map(fd, sizeof(struct mpig_trace_ring) + RING, 0, &base), MPIG_OK);
	close(fd);
	r->ring = base;
	r->read = 0;
	return MPIG_OK;
}

// How many bytes its region had.
static uint64_t stop(uint64_t client, uint32_t number, enum mpig_trace_ended reason)
{
	void *base_;
	uint64_t bytes = recordings_stop(all, client, number, reason, &base_);
	if (bytes)
		munmap(base_, bytes);
	return bytes;
}

static void forget(struct reader *r)
{
	munmap(r->ring, sizeof(struct mpig_trace_ring) + RING);
}

// Reads what is there, and asserts that it is whole. Returns how many records.
static uint64_t drain(struct reader *r)
{
	uint64_t head = __atomic_load_n(&r->ring->head, __ATOMIC_RELAXED), count = 0;
	uint64_t tail = __atomic_load_n(&r->ring->tail, __ATOMIC_ACQUIRE);
	while (head < tail) {
		const uint8_t *at = (const uint8_t *)(r->ring + 1) + head % RING;
		const struct mpig_trace_record *record = (const void *)at;
		bool sound = record->head.magic == MPIG_TRACE_RECORD_MAGIC && record->head.bytes <= tail - head;
		if (record->head.kind == MPIG_TRACE_QUERY) {
			const float *q = (const void *)(at + MPIG_TRACE_RECORD_BYTES);
			sound &= record->number >= r->read && record->client == 9 && record->queue == 5 && record->tokens == 1;
			for (int i = 0; i < HEADS * D; i++)
				sound &= q[i] == (float)record->seed;
			r->read = record->number + 1;
			count++;
		}
		if (!sound) // an assertion for each of a million records would be all that this does
			ck_abort_msg("record at %llu is not what was written", (unsigned long long)head);
		head += record->head.bytes;
	}
	__atomic_store_n(&r->ring->head, head, __ATOMIC_RELEASE);
	return count;
}

static struct task task_of(struct job *job)
{
	return (struct task){.job = job, .binding = &binding, .queue = &queue, .entry = {.op = MPIG_OP_ATTEND, .count = 1}};
}

static void note_once(uint64_t seed)
{
	struct job job = {.seed = seed};
	struct task task = task_of(&job);
	struct mpig_cqe cqe = {.committed = 100};
	recordings_note(all, &task, &cqe);
}

START_TEST(one_after_the_other)
{
	struct reader r, other;
	ck_assert(!recordings_any(all) && !recordings_any(NULL));
	ck_assert_int_eq(start(1, &r), MPIG_OK);
	ck_assert(recordings_any(all) && recordings_of(all, context_id(context)) && !recordings_of(all, 1));
	ck_assert_int_eq(start(2, &other), MPIG_EBUSY);
	note_once(7);
	note_once(0); // no ATTEND that was answered
	note_once(8);
	ck_assert_uint_eq(drain(&r), 2);
	ck_assert_uint_eq(stop(2, 0, MPIG_TRACE_STOPPED), 0); // nothing of that client's
	ck_assert_uint_eq(stop(1, r.number + 1, MPIG_TRACE_STOPPED), 0);
	ck_assert_uint_eq(stop(1, r.number, MPIG_TRACE_SHUTDOWN), sizeof(struct mpig_trace_ring) + RING);
	ck_assert_uint_eq(r.ring->ended, MPIG_TRACE_SHUTDOWN);
	ck_assert(!recordings_any(all));
	note_once(9);
	ck_assert_uint_eq(drain(&r), 0);
	forget(&r);
}
END_TEST

START_TEST(revoked_by_name)
{
	struct reader r;
	ck_assert_int_eq(start(1, &r), MPIG_OK);
	recordings_revoke(all, "another");
	ck_assert(recordings_any(all));
	recordings_revoke(all, "book");
	ck_assert(!recordings_any(all) && !recordings_of(all, context_id(context)));
	ck_assert_uint_eq(r.ring->ended, MPIG_TRACE_REVOKED);
	note_once(3);
	ck_assert_uint_eq(drain(&r), 0);
	ck_assert_uint_gt(stop(1, 0, MPIG_TRACE_STOPPED), 0);
	ck_assert_uint_eq(r.ring->ended, MPIG_TRACE_REVOKED); // the first reason stays
	forget(&r);
}
END_TEST

// So many fit, the rest is counted; and the last piece of the ring, too short for a record, is skipped on the next lap.
START_TEST(full_and_round)
{
	struct reader r;
	uint64_t bytes = MPIG_TRACE_RECORD_BYTES + HEADS * D * sizeof(float), fit = RING / bytes;
	ck_assert_uint_ne(RING % bytes, 0);
	ck_assert_int_eq(start(1, &r), MPIG_OK);
	for (uint64_t i = 0; i < fit + 10; i++)
		note_once(i + 1);
	ck_assert_uint_eq(r.ring->answers, fit + 10);
	ck_assert_uint_eq(r.ring->lost, 10);
	ck_assert_uint_eq(drain(&r), fit);
	for (uint64_t i = 0; i < 5; i++)
		note_once(i + 1);
	ck_assert_uint_eq(r.ring->lost, 10);
	ck_assert_uint_eq(drain(&r), 5);
	ck_assert_uint_eq(r.ring->tail % RING, 5 * bytes);
	stop(1, 0, MPIG_TRACE_STOPPED);
	forget(&r);
}
END_TEST

static atomic_bool over;

static void *write_queries(void *argument)
{
	struct job job = {.seed = 0};
	struct task task = task_of(&job);
	struct mpig_cqe cqe = {.committed = 100};
	uint64_t seed = *(uint64_t *)argument;
	while (!atomic_load(&over)) {
		job.seed = ++seed;
		if (recordings_any(all))
			recordings_note(all, &task, &cqe);
		if (seed % 8 == 0 || !recordings_any(all)) // between two answers a worker has other things to do
			usleep(20);
	}
	return NULL;
}

START_TEST(workers_a_recorder_and_the_control_thread)
{
	pthread_t thread[WRITERS];
	uint64_t seed[WRITERS], all_read = 0, all_lost = 0;
	atomic_store(&over, false);
	for (uint64_t i = 0; i < WRITERS; i++) {
		seed[i] = 100000 * (i + 1);
		ck_assert_int_eq(pthread_create(&thread[i], NULL, write_queries, &seed[i]), 0);
	}
	for (uint64_t turn = 0; turn < 30; turn++) {
		struct reader r;
		uint64_t read = 0;
		ck_assert_int_eq(start(turn + 1, &r), MPIG_OK);
		for (int i = 0; i < 20; i++) {
			read += drain(&r);
			for (int ms = 0;
			     turn % 3 == 0 && i == 5 && ms < 10000 && !__atomic_load_n(&r.ring->lost, __ATOMIC_RELAXED); ms++)
				usleep(1000); // a slow one, who loses some
		}
		if (turn % 2)
			recordings_revoke(all, "book");
		stop(turn + 1, 0, MPIG_TRACE_STOPPED);
		read += drain(&r);
		uint64_t answers = __atomic_load_n(&r.ring->answers, __ATOMIC_RELAXED),
			 lost = __atomic_load_n(&r.ring->lost, __ATOMIC_RELAXED);
		ck_assert_uint_eq(answers, read + lost);
		all_read += read;
		all_lost += lost;
		forget(&r);
	}
	atomic_store(&over, true);
	for (int i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_uint_gt(all_read, 0);
	ck_assert_uint_gt(all_lost, 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("recording");
	TCase *tc = tcase_create("recording");
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, one_after_the_other);
	tcase_add_test(tc, revoked_by_name);
	tcase_add_test(tc, full_and_round);
	tcase_add_test(tc, workers_a_recorder_and_the_control_thread);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
