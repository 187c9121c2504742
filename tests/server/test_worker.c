// The workers around an engine that can be watched: order, exclusion, backpressure, parking, draining, and queues that vanish
// under them.
#include <check.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/rng.h"
#include "daemon/server/stats.h"
#include "daemon/server/worker.h"
#include "shm/region.h"
#include "shm/status.h"
#include "tests/lib/suite.h"
#include "tests/server/fake_engine.c"

#define PATIENCE_NS UINT64_C(20000000000) // bounds a wait for what must come

static struct workers *workers;
static struct mpig_stats_worker *stats;
static int control_fd;
static struct session *session;
static struct context *contexts[2]; // handle 1 and 2 hold the lease; handle 3 reads contexts[0]

struct client {
	struct queue *q;
	void *base;
	struct mpig_queue_header header;
	struct mpig_producer sq;
	struct mpig_consumer cq;
	uint64_t submitted, completed;
	int32_t last_status;
	uint64_t last_user_data, last_bytes;
	uint64_t seen; // bit n: user data n, below 64
};

static void start_with(struct workers_options o)
{
	uint32_t count = o.count;
	stats = calloc(count, sizeof *stats);
	control_fd = eventfd(0, EFD_NONBLOCK);
	o.stats = stats;
	o.control_fd = control_fd;
	ck_assert_int_eq(workers_create(&o, &workers), MPIG_OK);
	session = session_create();
	for (uint32_t i = 0; i < 2; i++) {
		contexts[i] = fake_context();
		ck_assert_int_eq(session_bind(session, i + 1, NULL, contexts[i], 100 + i, NULL, 0, NULL), MPIG_OK);
	}
	atomic_fetch_add(&contexts[0]->references, 1);
	ck_assert_int_eq(session_bind(session, 3, NULL, contexts[0], 0, NULL, 0, NULL), MPIG_OK);
}

static void start(uint32_t count, uint64_t spin_ns, bool uring)
{
	start_with((struct workers_options){.count = count, .spin_ns = spin_ns, .uring = uring});
}

// tasks: what its user's requests are counted in, or NULL.
static void open_client_of(atomic_uint *tasks, struct client *c, uint32_t id, uint32_t entries)
{
	*c = (struct client){0};
	struct queue_options o = {
		.entries = entries, .slot_count = 1, .slot_bytes = 4096, .epoch = 1, .max_query_tokens = 4096, .adopt_fd = -1};
	char why[MPIG_TEXT_BYTES];
	int fd;
	ck_assert_msg(queue_create(&o, session, &c->q, &fd, why) == MPIG_OK, "%s", why);
	c->q->id = id;
	c->q->tasks = tasks;
	uint64_t bytes = c->q->geometry.region_bytes;
	ck_assert_int_eq(mpig_region_map(fd, bytes, 0, &c->base), MPIG_OK);
	close(fd);
	ck_assert_int_eq(mpig_queue_header_check(c->base, bytes, &c->header), MPIG_OK);
	mpig_client_rings(c->base, &c->header, &c->sq, &c->cq);
	ck_assert_int_eq(workers_add_queue(workers, c->q), MPIG_OK);
}

static void open_client(struct client *c, uint32_t id, uint32_t entries)
{
	open_client_of(NULL, c, id, entries);
}

static void close_client(struct client *c)
{
	uint64_t epoch = workers_remove_queue(workers, c->q), deadline = mono_ns() + PATIENCE_NS;
	while (!workers_left(workers, epoch) || atomic_load(&c->q->in_flight)) {
		ck_assert_msg(mono_ns() < deadline, "the workers do not let go of the queue");
		sched_yield();
	}
	queue_destroy(c->q);
	munmap(c->base, c->header.region_bytes);
}

static void stop(void)
{
	ck_assert(workers_stop(workers));
	workers_destroy(workers);
	session_unref(session);
	ck_assert_uint_eq(atomic_load(&fake_jobs), 0);
	ck_assert_uint_eq(atomic_load(&fake_contexts), 0);
	free(stats);
	close(control_fd);
}

// There is room.
static void submit_entry(struct client *c, const struct mpig_sqe *e)
{
	mpig_producer_put(&c->sq, e);
	mpig_producer_publish(&c->sq);
	struct mpig_queue_header *h = c->base;
	if (mpig_flag_peer(&h->sq_flags, MPIG_SQ_NEED_WAKEUP))
		eventfd_write(c->q->eventfd, 1);
	c->submitted++;
}

static bool submit(struct client *c, uint8_t op, uint32_t handle, uint32_t units, uint64_t user_data)
{
	if (mpig_producer_room(&c->sq) <= 0)
		return false;
	bool slot = op == MPIG_OP_ATTEND || op == MPIG_OP_APPEND;
	struct mpig_sqe e = {.op = op, .handle = handle, .count = units, .user_data = user_data, .slot = slot ? 0 : MPIG_NO_SLOT};
	submit_entry(c, &e);
	return true;
}
static uint32_t reap(struct client *c)
{
	int ready = mpig_consumer_ready(&c->cq);
	ck_assert_int_ge(ready, 0);
	for (int i = 0; i < ready; i++) {
		struct mpig_cqe e;
		mpig_consumer_take(&c->cq, &e);
		c->last_status = e.status;
		c->last_user_data = e.user_data;
		c->last_bytes = e.bytes_read;
		c->seen |= e.user_data < 64 ? UINT64_C(1) << e.user_data : 0;
	}
	mpig_consumer_release(&c->cq);
	c->completed += (uint32_t)ready;
	return (uint32_t)ready;
}

static void reap_until(struct client *c, uint64_t completed)
{
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (c->completed < completed) {
		if (!reap(c))
			sched_yield();
		ck_assert_msg(mono_ns() < deadline, "%llu of %llu completions came", (unsigned long long)c->completed,
		              (unsigned long long)completed);
	}
}

// ---- tests -----------------------------------------------------------------------------------------------------------
static const uint32_t counts[] = {1, 2, 4};

START_TEST(reads_overlap_and_writes_take_effect_in_order)
{
	enum { REQUESTS = 600 };
	start(counts[_i], 200000, true);
	struct client c;
	open_client(&c, 1, 32);
	struct rng rng = {.state = 11};
	uint64_t writes[2] = {0}, expected[2][REQUESTS];
	for (uint64_t n = 0; n < REQUESTS;) {
		uint32_t which = rng_below(&rng, 2), units = 1 + rng_below(&rng, 6);
		bool write = rng_below(&rng, 3) == 0;
		while (!submit(&c, write ? MPIG_OP_APPEND : MPIG_OP_ATTEND, which + 1, units, n))
			reap(&c);
		if (write)
			expected[which][writes[which]++] = n;
		n++;
		reap(&c);
	}
	reap_until(&c, REQUESTS);
	for (int i = 0; i < 2; i++) {
		ck_assert_uint_eq(atomic_load(&contexts[i]->overlaps), 0);
		ck_assert_uint_eq(atomic_load(&contexts[i]->logged), writes[i]);
		ck_assert_mem_eq(contexts[i]->log, expected[i], writes[i] * sizeof expected[i][0]);
	}
	close_client(&c);
	stop();
}
END_TEST

// While one request is held up, later reads of its context and requests of the other context start; a write of its context does
// not.
START_TEST(a_held_read_lets_reads_pass)
{
	start(2, 200000, true);
	struct client c;
	open_client(&c, 1, 32);
	atomic_store(&contexts[0]->hold, 1);
	ck_assert(submit(&c, MPIG_OP_ATTEND, 1, 1, 1));
	ck_assert(submit(&c, MPIG_OP_ATTEND, 3, 1, 2)); // the same context by another handle
	ck_assert(submit(&c, MPIG_OP_APPEND, 2, 1, 3)); // the other context
	reap_until(&c, 1);
	ck_assert_uint_eq(c.last_user_data, 3);
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (atomic_load(&contexts[0]->most_readers) < 2 && mono_ns() < deadline)
		sched_yield();
	ck_assert_uint_eq(atomic_load(&contexts[0]->most_readers), 2);
	ck_assert(submit(&c, MPIG_OP_APPEND, 1, 1, 4));
	ck_assert(submit(&c, MPIG_OP_NOP, 0, 0, 5));
	for (int i = 0; i < 1000; i++) {
		sched_yield();
		ck_assert_uint_eq(atomic_load(&contexts[0]->writers), 0);
	}
	ck_assert_uint_eq(reap(&c), 0);
	atomic_store(&contexts[0]->hold, 0);
	reap_until(&c, 5);
	ck_assert_uint_eq(atomic_load(&contexts[0]->overlaps), 0);
	close_client(&c);
	stop();
}
END_TEST

START_TEST(two_queues_never_write_at_once)
{
	enum { REQUESTS = 300 };
	start(3, 200000, true);
	struct client c[2];
	open_client(&c[0], 1, 16);
	open_client(&c[1], 2, 16);
	for (uint64_t n = 0; n < REQUESTS; n++)
		for (int i = 0; i < 2; i++) {
			while (!submit(&c[i], MPIG_OP_APPEND, 1, 1 + n % 4, n))
				reap(&c[i]);
			reap(&c[i]);
		}
	reap_until(&c[0], REQUESTS);
	reap_until(&c[1], REQUESTS);
	ck_assert_uint_eq(atomic_load(&contexts[0]->overlaps), 0);
	ck_assert_uint_eq(atomic_load(&contexts[0]->logged), 2 * REQUESTS);
	close_client(&c[0]);
	close_client(&c[1]);
	stop();
}
END_TEST

START_TEST(errors_are_completions)
{
	start(1, 200000, true);
	struct client c;
	open_client(&c, 1, 8);
	struct {
		uint8_t op;
		uint32_t handle;
		int status;
	} cases[] = {{MPIG_OP_NOP, 0, MPIG_OK}, {MPIG_OP_ATTEND, 9, MPIG_ENOENT}, {MPIG_OP_ATTEND, UINT32_MAX, MPIG_ENOENT},
	             {77, 1, MPIG_EPROTO},      {MPIG_OP_APPEND, 3, MPIG_ELEASE}, {MPIG_OP_ATTEND, 3, MPIG_OK}};
	for (uint64_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		ck_assert(submit(&c, cases[i].op, cases[i].handle, 1, 1000 + i));
		reap_until(&c, i + 1);
		ck_assert_int_eq(c.last_status, cases[i].status);
		ck_assert_uint_eq(c.last_user_data, 1000 + i);
	}
	ck_assert_uint_eq(stats_get(&stats[0].errors), 4);
	ck_assert_uint_eq(stats_get(&stats[0].requests[MPIG_OP_NOP]), 1);
	close_client(&c);
	stop();
}
END_TEST

START_TEST(a_client_that_does_not_reap_stops_only_itself)
{
	start(2, 1000000, true);
	struct client lazy, busy;
	open_client(&lazy, 1, 4);
	open_client(&busy, 2, 4);
	for (uint64_t i = 0; i < 8; i++) // four completions, four entries left in the ring
		for (uint64_t deadline = mono_ns() + PATIENCE_NS; !submit(&lazy, MPIG_OP_ATTEND, 1, 2, i);) {
			sched_yield();
			ck_assert(mono_ns() < deadline);
		}
	for (uint64_t i = 0; i < 200; i++) {
		ck_assert(submit(&busy, MPIG_OP_ATTEND, 2, 2, i));
		reap_until(&busy, i + 1);
	}
	ck_assert(!submit(&lazy, MPIG_OP_NOP, 0, 0, 8));
	reap_until(&lazy, 8);
	ck_assert_uint_eq(lazy.completed, 8);
	ck_assert_uint_eq(lazy.seen, 0xff); // each once, in any order: they overlap
	close_client(&lazy);
	close_client(&busy);
	stop();
}
END_TEST

// However many requests one user has in progress, and however long they take: another one's are begun.
START_TEST(a_user_leaves_room_for_others)
{
	enum { QUEUES = 18, EACH = 16 }; // more than the table of tasks holds
	start(2, 200000, true);
	struct client many[QUEUES], other, third;
	atomic_uint tasks[3] = {0};
	atomic_store(&contexts[0]->hold, 1);
	for (uint32_t i = 0; i < QUEUES; i++) {
		open_client_of(&tasks[0], &many[i], 1 + i, EACH);
		for (uint64_t k = 0; k < EACH; k++)
			ck_assert(submit(&many[i], MPIG_OP_ATTEND, 3, 1, k));
	}
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (atomic_load(&tasks[0]) < TASKS / 2 && mono_ns() < deadline)
		sched_yield();
	ck_assert_uint_ge(atomic_load(&tasks[0]), TASKS / 2);
	ck_assert_uint_le(atomic_load(&tasks[0]), TASKS / 2 + 2); // a worker looks before it takes one
	open_client_of(&tasks[1], &other, 100, EACH);
	open_client_of(&tasks[2], &third, 101, EACH);
	for (uint64_t k = 0; k < 50; k++) {
		ck_assert(submit(&other, MPIG_OP_ATTEND, 2, 1, k) && submit(&third, MPIG_OP_ATTEND, 2, 1, k));
		reap_until(&other, k + 1);
		reap_until(&third, k + 1);
	}
	atomic_store(&contexts[0]->hold, 0);
	for (uint32_t i = 0; i < QUEUES; i++) {
		reap_until(&many[i], EACH);
		close_client(&many[i]);
	}
	close_client(&other);
	close_client(&third);
	ck_assert_uint_eq(atomic_load(&tasks[0]) + atomic_load(&tasks[1]) + atomic_load(&tasks[2]), 0);
	stop();
}
END_TEST

// Workers' time is shared by user: one with 128 requests in progress takes half of it from one with a single one, and not 128 parts of 129.
// Held until all are there; one worker, so that the order is that of its turns.
START_TEST(time_is_shared_by_user)
{
	enum { QUEUES = 8, EACH = 16, UNITS = 400 };
	start(1, 200000, true);
	struct client many[QUEUES], other;
	atomic_uint tasks[2] = {0};
	atomic_store(&contexts[0]->hold, 1);
	atomic_store(&fake_units, 0);
	for (uint32_t i = 0; i < QUEUES; i++) {
		open_client_of(&tasks[0], &many[i], 1 + i, EACH);
		for (uint64_t k = 0; k < EACH; k++)
			ck_assert(submit(&many[i], MPIG_OP_ATTEND, 3, UNITS, k));
	}
	open_client_of(&tasks[1], &other, 100, EACH);
	ck_assert(submit(&other, MPIG_OP_ATTEND, 3, UNITS, 0));
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (atomic_load(&tasks[0]) + atomic_load(&tasks[1]) < QUEUES * EACH + 1 && mono_ns() < deadline)
		sched_yield();
	atomic_store(&contexts[0]->hold, 0);
	reap_until(&other, 1);
	ck_assert_uint_ge(other.last_bytes, UNITS);
	ck_assert_uint_le(other.last_bytes, 4 * UNITS);
	for (uint32_t i = 0; i < QUEUES; i++) {
		reap_until(&many[i], EACH);
		close_client(&many[i]);
	}
	close_client(&other);
	ck_assert_uint_eq(atomic_load(&tasks[0]) + atomic_load(&tasks[1]), 0);
	ck_assert_uint_eq(atomic_load(&workers->tasks->users), 0);
	stop();
}
END_TEST

static const bool urings[] = {true, false};

START_TEST(parked_workers_are_woken_and_lose_nothing)
{
	start(2, 0, urings[_i]); // no spinning: asleep after every request
	struct client c[2];
	open_client(&c[0], 1, 8);
	open_client(&c[1], 2, 8);
	for (uint64_t i = 0; i < 1000; i++) {
		struct client *one = &c[i % 2];
		ck_assert(submit(one, i % 3 ? MPIG_OP_NOP : MPIG_OP_ATTEND, 1 + i % 2, i % 3 ? 0 : 3, i));
		reap_until(one, one->completed + 1);
		ck_assert_int_eq(one->last_status, MPIG_OK);
	}
	struct mpig_queue_header *h = c[0].base;
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (!(__atomic_load_n(&h->sq_flags, __ATOMIC_RELAXED) & MPIG_SQ_NEED_WAKEUP))
		ck_assert(mono_ns() < deadline);
	ck_assert_uint_gt(stats_get(&stats[0].wakeups) + stats_get(&stats[1].wakeups), 0);
	struct client late; // a queue that comes while its home sleeps
	open_client(&late, 3, 8);
	ck_assert(submit(&late, MPIG_OP_NOP, 0, 0, 1));
	reap_until(&late, 1);
	close_client(&late);
	close_client(&c[0]);
	close_client(&c[1]);
	stop();
}
END_TEST

static bool asleep(uint32_t count)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < count; i++)
		n += __atomic_load_n(&stats[i].state, __ATOMIC_RELAXED) == MPIG_WORKER_PARKED;
	return n == count;
}

static void until_asleep(uint32_t count)
{
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (!asleep(count)) {
		ck_assert_msg(mono_ns() < deadline, "the workers do not sleep");
		sched_yield();
	}
}

// Who is woken to help helps, also where another would have been asked first: that one sleeps on. With no time to spin there are no turns to wait
// for news in, only naps of milliseconds.
START_TEST(who_is_woken_helps)
{
	enum { WORKERS = 8, UNITS = 3 };
	struct client c;
	start(WORKERS, 0, true);
	open_client(&c, WORKERS, 8); // worker 0's; of three units it has the first, and would ask 3 and 6
	until_asleep(WORKERS);
	uint64_t wakeups[WORKERS], deadline = mono_ns() + PATIENCE_NS;
	uint32_t looks[WORKERS], helpers = 0, most = 0;
	for (uint32_t i = 0; i < WORKERS; i++) {
		wakeups[i] = stats_get(&stats[i].wakeups);
		looks[i] = atomic_load(&fake_looks[i]);
	}
	atomic_store(&contexts[0]->hold, 2); // whoever looks stays
	ck_assert(submit(&c, MPIG_OP_ATTEND, 3, UNITS, 1));
	while (helpers < UNITS - 1 && mono_ns() < deadline) {
		helpers = 0;
		for (uint32_t i = 1; i < WORKERS; i++)
			helpers += atomic_load(&fake_looks[i]) > looks[i];
	}
	ck_assert_uint_ge(helpers, UNITS - 1);
	for (uint32_t i = 1; i < WORKERS; i++) {
		uint32_t woken = (uint32_t)(stats_get(&stats[i].wakeups) - wakeups[i]);
		if (atomic_load(&fake_looks[i]) > looks[i])
			most = woken > most ? woken : most;
	}
	atomic_store(&contexts[0]->hold, 0);
	reap_until(&c, 1);
	ck_assert_uint_le(most, 1);
	close_client(&c);
	stop();
}
END_TEST

// _i: io_uring. A producer that cannot write the eventfd is looked at by a timer.
START_TEST(silent_queues_are_looked_at)
{
	struct client c;
	start_with((struct workers_options){.count = 2, .spin_ns = 1000, .uring = _i == 0, .look_ns = 1000000});
	open_client(&c, 1, 8);
	until_asleep(2);
	struct mpig_queue_header *h = c.base;
	__atomic_store_n(&h->sq_silent, 1, __ATOMIC_RELAXED);
	eventfd_write(c.q->eventfd, 1); // as mpig_queue_lend does: who sleeps already sleeps without a timer
	for (uint64_t i = 0; i < 20; i++) {
		until_asleep(2);
		struct mpig_sqe e = {.op = MPIG_OP_NOP, .user_data = i, .slot = MPIG_NO_SLOT};
		mpig_producer_put(&c.sq, &e);
		mpig_producer_publish(&c.sq); // and nothing else
		reap_until(&c, i + 1);
	}
	close_client(&c);
	stop();
}
END_TEST

// _i: io_uring. A lease wakes all workers and keeps them awake until it ends, whatever it asks for beyond what is allowed.
START_TEST(leases_keep_all_workers_awake)
{
	struct client c;
	const uint64_t most = 50000000;
	start_with((struct workers_options){.count = 3, .spin_ns = 1000, .uring = _i == 0, .awake_ns = most});
	open_client(&c, 1, 8);
	struct mpig_queue_header *h = c.base;
	static const uint64_t asked[] = {20000000, UINT64_C(3600000000000), UINT64_MAX};
	for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
		until_asleep(3);
		uint64_t wakeups[3], deadline = mono_ns() + PATIENCE_NS, begin = mono_ns();
		for (uint32_t w = 0; w < 3; w++)
			wakeups[w] = __atomic_load_n(&stats[w].wakeups, __ATOMIC_RELAXED);
		__atomic_store_n(&h->awake_until, asked[i] == UINT64_MAX ? UINT64_MAX : begin + asked[i], __ATOMIC_RELAXED);
		if (mpig_flag_peer(&h->sq_flags, MPIG_SQ_NEED_WAKEUP))
			eventfd_write(c.q->eventfd, 1);
		for (uint32_t w = 0; w < 3; w++)
			while (__atomic_load_n(&stats[w].wakeups, __ATOMIC_RELAXED) == wakeups[w]) {
				ck_assert_msg(mono_ns() < deadline, "worker %u sleeps on", w);
				sched_yield();
			}
		until_asleep(3); // it ends, and the same value is not believed twice
		ck_assert_uint_ge(mono_ns() - begin, asked[i] < most ? asked[i] : most);
	}
	close_client(&c);
	stop();
}
END_TEST

START_TEST(leases_can_be_forbidden)
{
	struct client c;
	start_with((struct workers_options){.count = 1, .spin_ns = 1000});
	open_client(&c, 1, 8);
	until_asleep(1);
	__atomic_store_n(&((struct mpig_queue_header *)c.base)->awake_until, UINT64_MAX, __ATOMIC_RELAXED);
	eventfd_write(c.q->eventfd, 1);
	until_asleep(1);
	close_client(&c);
	stop();
}
END_TEST

START_TEST(a_broken_ring_closes_only_its_queue)
{
	start(2, 200000, true);
	struct client bad, good;
	open_client(&bad, 1, 8);
	open_client(&good, 2, 8);
	struct mpig_queue_header *h = bad.base;
	__atomic_store_n(&h->sq_tail, 1000, __ATOMIC_RELEASE);
	eventfd_write(bad.q->eventfd, 1);
	struct pollfd wait = {.fd = control_fd, .events = POLLIN};
	ck_assert_int_eq(poll(&wait, 1, 20000), 1);
	ck_assert_ptr_eq(workers_broken_queue(workers), bad.q);
	close_client(&bad);
	ck_assert_ptr_null(workers_broken_queue(workers));
	ck_assert(submit(&good, MPIG_OP_NOP, 0, 0, 1));
	reap_until(&good, 1);
	close_client(&good);
	stop();
}
END_TEST

// Only one that is awake and does not come back is stuck.
START_TEST(a_worker_that_does_not_come_back_is_found)
{
	start(2, 1000, false);
	uint64_t deadline = mono_ns() + PATIENCE_NS, now = mono_ns();
	while (__atomic_load_n(&stats[0].state, __ATOMIC_RELAXED) != MPIG_WORKER_PARKED ||
	       __atomic_load_n(&stats[1].state, __ATOMIC_RELAXED) != MPIG_WORKER_PARKED) {
		ck_assert_msg(mono_ns() < deadline, "the workers do not sleep");
		sched_yield();
	}
	ck_assert_int_eq(workers_stuck(workers, now + UINT64_C(1000000000000), 1), -1); // asleep for long
	uint64_t last = __atomic_load_n(&stats[1].heartbeat_ns, __ATOMIC_RELAXED);
	ck_assert_uint_gt(last, 0);
	__atomic_store_n(&stats[1].state, MPIG_WORKER_BUSY, __ATOMIC_RELAXED); // as it is inside a unit
	ck_assert_int_eq(workers_stuck(workers, last + 500, 500), -1);
	ck_assert_int_eq(workers_stuck(workers, last + 501, 500), 1);
	ck_assert_int_eq(workers_stuck(workers, last - 1, 500), -1); // the clock was read before the worker's
	__atomic_store_n(&stats[1].state, MPIG_WORKER_SPIN, __ATOMIC_RELAXED);
	ck_assert_int_eq(workers_stuck(workers, last + 501, 500), 1);
	stop();
}
END_TEST

START_TEST(draining_refuses_new_entries)
{
	start(2, 200000, true);
	struct client c;
	open_client(&c, 1, 8);
	atomic_store(&contexts[0]->hold, 1);
	ck_assert(submit(&c, MPIG_OP_ATTEND, 1, 1, 1));
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (workers_idle(workers))
		ck_assert(mono_ns() < deadline);
	workers_drain(workers);
	ck_assert(submit(&c, MPIG_OP_ATTEND, 2, 1, 2));
	reap_until(&c, 1);
	ck_assert_uint_eq(c.last_user_data, 2);
	ck_assert_int_eq(c.last_status, MPIG_ESHUTDOWN);
	ck_assert(!workers_idle(workers));
	atomic_store(&contexts[0]->hold, 0);
	reap_until(&c, 2);
	ck_assert_int_eq(c.last_status, MPIG_OK);
	close_client(&c);
	ck_assert(workers_idle(workers));
	stop();
}
END_TEST

// The lease of a handle that is closed while its write runs is given back after the write, not under it.
START_TEST(a_lease_outlives_its_handle_until_the_write_is_done)
{
	start(2, 200000, true);
	struct client c;
	open_client(&c, 1, 8);
	atomic_store(&contexts[0]->hold, 1);
	ck_assert(submit(&c, MPIG_OP_APPEND, 1, 2, 1));
	uint64_t deadline = mono_ns() + PATIENCE_NS;
	while (!atomic_load(&contexts[0]->writers))
		ck_assert(mono_ns() < deadline);
	ck_assert_int_eq(session_unbind(session, 1), MPIG_OK);
	ck_assert_uint_eq(atomic_load(&contexts[0]->released_holder), 0);
	ck_assert(submit(&c, MPIG_OP_NOP, 0, 0, 2));
	ck_assert(submit(&c, MPIG_OP_APPEND, 1, 1, 3)); // the handle is gone
	reap_until(&c, 2);
	ck_assert_int_eq(c.last_status, MPIG_ENOENT);
	ck_assert_uint_eq(atomic_load(&contexts[0]->released_holder), 0);
	atomic_store(&contexts[0]->hold, 0);
	reap_until(&c, 3);
	ck_assert_uint_eq(atomic_load(&contexts[0]->released_holder), 100);
	ck_assert_uint_eq(atomic_load(&contexts[0]->writers_at_release), 0);
	close_client(&c);
	stop();
}
END_TEST

// Queues come and go, with requests in flight, under workers that spin, park and help.
START_TEST(queues_vanish_under_the_workers)
{
	start(3, _i ? 0 : 100000, true);
	struct rng rng = {.state = 5};
	struct client c[4];
	uint32_t id = 1;
	for (int i = 0; i < 4; i++)
		open_client(&c[i], id++, 16);
	for (int round = 0; round < 300; round++) {
		struct client *one = &c[rng_below(&rng, 4)];
		uint32_t n = rng_below(&rng, 16);
		for (uint32_t i = 0; i < n; i++)
			submit(one, rng_below(&rng, 4) ? MPIG_OP_ATTEND : MPIG_OP_APPEND, 1 + rng_below(&rng, 3),
			       1 + rng_below(&rng, 8), i);
		if (rng_below(&rng, 2))
			reap(one);
		close_client(one);
		open_client(one, id++, 16);
	}
	for (int i = 0; i < 2; i++)
		ck_assert_uint_eq(atomic_load(&contexts[i]->overlaps), 0);
	for (int i = 0; i < 4; i++)
		close_client(&c[i]);
	stop();
}
END_TEST

// A task's claimer comes, and of the others as many as it has room for, each beginning with a unit of its own.
START_TEST(a_task_wants_as_many_workers_as_it_has_room_for)
{
	static struct task task;
	for (uint32_t count = 1; count <= 64; count++)
		for (uint32_t room = 1; room <= count + 1; room++)
			for (uint32_t claimer = 0; claimer < count; claimer += 1 + count / 5) {
				atomic_store(&task.room, room);
				atomic_store(&task.claimer, claimer);
				uint32_t wanted = 0;
				uint64_t begins = 0; // units that they begin with
				for (uint32_t i = 0; i < count; i++)
					if (task_wants(&task, i, count)) {
						wanted++;
						begins |= UINT64_C(1) << (uint64_t)i * room / count % 64;
					}
				ck_assert_uint_eq(wanted, room < count ? room : count);
				ck_assert(room > count || (uint32_t)__builtin_popcountll(begins) == room);
				ck_assert(task_wants(&task, claimer, count));
			}
	atomic_store(&task.room, 0); // nothing now: its claimer still looks after it
	for (uint32_t i = 0; i < 64; i++)
		ck_assert(task_wants(&task, i, 64) == (i == atomic_load(&task.claimer)));
}
END_TEST

// Units that open while a request is served are run, by workers that found nothing before: awake, or asleep by then.
START_TEST(units_that_open_later_are_run)
{
	start(4, _i ? 0 : 100000, true);
	struct client c;
	open_client(&c, 1, 16);
	struct rng rng = {.state = 9};
	for (uint64_t n = 0; n < 2000; n++) {
		uint32_t units = 2 + rng_below(&rng, 12);
		struct mpig_sqe e = {.op = MPIG_OP_ATTEND,
		                     .handle = 1,
		                     .count = units,
		                     .layer = (uint16_t)rng_below(&rng, units), // of its first phase
		                     .user_data = n};
		submit_entry(&c, &e);
		if (n % 3)
			reap_until(&c, n + 1);
	}
	reap_until(&c, 2000);
	uint64_t units = 0;
	for (uint32_t i = 0; i < 4; i++)
		units += stats_get(&stats[i].units);
	ck_assert_uint_ge(units, 2 * 2000);
	close_client(&c);
	stop();
}
END_TEST

// ---- reading ahead ---------------------------------------------------------------------------------------------------
static void wait_for(const atomic_uint *counter, uint32_t least)
{
	for (uint64_t deadline = mono_ns() + PATIENCE_NS; atomic_load(counter) < least; sched_yield())
		ck_assert_msg(mono_ns() < deadline, "%u, not %u", atomic_load(counter), least);
}

// Every worker has asked the held job for work so often more.
static void wait_for_looks(uint32_t count, uint32_t more)
{
	uint32_t before[FAKE_WORKERS];
	for (uint32_t w = 0; w < count; w++)
		before[w] = atomic_load(&fake_looks[w]);
	for (uint32_t w = 0; w < count; w++)
		wait_for(&fake_looks[w], before[w] + more);
}

START_TEST(workers_read_ahead_while_nobody_works)
{
	enum { WORKERS = 3, STEPS = 500 };
	start(WORKERS, UINT64_C(60000000000), true);
	struct client c;
	open_client(&c, 1, 8);
	atomic_store(&fake_to_read, STEPS);
	wait_for(&fake_reads, STEPS);
	atomic_store(&contexts[0]->hold, 1);
	ck_assert(submit(&c, MPIG_OP_ATTEND, 1, 4, 1));
	wait_for_looks(WORKERS, 2); // from here on all of them know
	atomic_store(&fake_to_read, STEPS);
	wait_for_looks(WORKERS, 200);
	ck_assert_uint_eq(atomic_load(&fake_reads), STEPS);
	atomic_store(&contexts[0]->hold, 0);
	reap_until(&c, 1);
	wait_for(&fake_reads, 2 * STEPS);
	close_client(&c);
	uint64_t bytes = 0, foreseen = 0;
	ck_assert(workers_stop(workers));
	for (uint32_t w = 0; w < WORKERS; w++) {
		bytes += stats_get(&stats[w].prefetched_bytes);
		foreseen += stats_get(&stats[w].foreseen);
	}
	ck_assert_uint_eq(bytes, 2 * STEPS); // a step of the fake engine's is a byte
	ck_assert_uint_eq(foreseen, 1);
	stop();
}
END_TEST

// Each answer is looked at once for what it tells: by one that waits for others, or by who answered.
START_TEST(every_answer_tells_once)
{
	enum { REQUESTS = 2000 };
	start(counts[_i % 3], _i < 3 ? 200000 : 0, true);
	struct client c;
	open_client(&c, 1, 16);
	for (uint32_t n = 0; n < REQUESTS; n++) {
		while (!submit(&c, MPIG_OP_ATTEND, 1 + n % 3, 1 + n % 5, n))
			reap(&c);
		if (n % 7 == 0)
			reap_until(&c, n + 1);
		if (n % 97 == 0)
			usleep(1000);
	}
	reap_until(&c, REQUESTS);
	close_client(&c);
	ck_assert_uint_eq(atomic_load(&fake_learned), REQUESTS);
	ck_assert_uint_le(atomic_load(&fake_listed), REQUESTS);
	stop();
}
END_TEST

// With time after it, it is what the next request's list is made of; nothing is kept for that.
START_TEST(what_waits_is_listed)
{
	start(1, UINT64_C(60000000000), true);
	struct client c;
	open_client(&c, 1, 16);
	for (uint32_t n = 1; n <= 5; n++) {
		ck_assert(submit(&c, MPIG_OP_ATTEND, 1, 1, n));
		reap_until(&c, n);
		wait_for(&fake_listed, n);
		for (uint64_t deadline = mono_ns() + PATIENCE_NS; atomic_load(&fake_jobs); sched_yield())
			ck_assert(mono_ns() < deadline);
	}
	close_client(&c);
	stop();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("worker");
	TCase *t = tcase_create("worker");
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, reads_overlap_and_writes_take_effect_in_order, 0, sizeof counts / sizeof counts[0]);
	tcase_add_test(t, a_held_read_lets_reads_pass);
	tcase_add_test(t, two_queues_never_write_at_once);
	tcase_add_test(t, errors_are_completions);
	tcase_add_test(t, a_client_that_does_not_reap_stops_only_itself);
	tcase_add_test(t, a_user_leaves_room_for_others);
	tcase_add_test(t, time_is_shared_by_user);
	tcase_add_loop_test(t, parked_workers_are_woken_and_lose_nothing, 0, 2);
	tcase_add_test(t, who_is_woken_helps);
	tcase_add_loop_test(t, silent_queues_are_looked_at, 0, 2);
	tcase_add_loop_test(t, leases_keep_all_workers_awake, 0, 2);
	tcase_add_test(t, leases_can_be_forbidden);
	tcase_add_test(t, a_broken_ring_closes_only_its_queue);
	tcase_add_test(t, draining_refuses_new_entries);
	tcase_add_test(t, a_worker_that_does_not_come_back_is_found);
	tcase_add_test(t, a_lease_outlives_its_handle_until_the_write_is_done);
	tcase_add_loop_test(t, queues_vanish_under_the_workers, 0, 2);
	tcase_add_test(t, a_task_wants_as_many_workers_as_it_has_room_for);
	tcase_add_loop_test(t, units_that_open_later_are_run, 0, 2);
	tcase_add_test(t, workers_read_ahead_while_nobody_works);
	tcase_add_loop_test(t, every_answer_tells_once, 0, 6);
	tcase_add_test(t, what_waits_is_listed);
	suite_add_tcase(s, t);
	return suite_run(s);
}
