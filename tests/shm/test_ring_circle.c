// Both rings of a queue run in a circle by two peers that sleep as the real ones do: the daemon's side by NEED_WAKEUP and an
// edge-triggered eventfd that it never reads, the client's by cq_waiting and a futex on cq_tail. Entries are numbered and carry a
// checksum of the payload of their slot; completions come back out of order. Peers stall at random; a sleep of more than
// LOST_MS is a lost wake-up. Two processes, and the same with two threads so that ThreadSanitizer can judge it.
//
// 10^6 entries; 10^8 with MPIG_LONG=1. CIRCLE_ENTRIES sets another number.
#include <check.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/region.h"
#include "shm/ring.h"
#include "shm/status.h"
#include "tests/lib/suite.h"

#define ENTRIES 64u
#define SLOTS 48u // fewer than entries, so that both kinds of "no room" happen
#define SLOT_BYTES 4096u
#define MAX_WORDS 32u
#define LOST_MS 60000
#define SPINS 300u
#define LAST UINT64_MAX
#define HELD 8u // completions the daemon's side holds back, to answer out of order

struct circle {
	void *base;
	struct mpig_queue_header header;
	int eventfd;
	uint64_t total;
	bool progress;
};

struct side_result {
	uint64_t sleeps;
	char error[128]; // "" = success
};

static uint64_t mix(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static uint64_t *slot_words(const struct circle *c, uint32_t slot)
{
	return (uint64_t *)(void *)((uint8_t *)c->base + c->header.slots_offset + (uint64_t)slot * SLOT_BYTES +
	                            MPIG_SLOT_HEADER_BYTES);
}

// Fills a payload that depends on `seed` and returns its checksum.
static uint64_t payload_fill(uint64_t *words, uint32_t count, uint64_t seed)
{
	uint64_t sum = seed, state = seed;
	for (uint32_t i = 0; i < count; i++) {
		words[i] = mix(&state);
		sum = (sum ^ words[i]) * UINT64_C(0x100000001b3);
	}
	return sum;
}

static uint64_t payload_sum(const uint64_t *words, uint32_t count, uint64_t seed)
{
	uint64_t sum = seed;
	for (uint32_t i = 0; i < count; i++)
		sum = (sum ^ words[i]) * UINT64_C(0x100000001b3);
	return sum;
}

static void stall(uint64_t *random)
{
	uint64_t r = mix(random);
	if (r % 32768 == 0) {
		struct timespec long_enough = {0, 300000}; // for the other side to go to sleep
		nanosleep(&long_enough, NULL);
	} else if (r % 512 == 0) {
		for (uint64_t i = 0; i < (r >> 32) % 2000; i++)
			__asm__ volatile("" ::: "memory");
	} else if (r % 4096 == 1) {
		sched_yield();
	}
}

static void pin(unsigned which)
{
	cpu_set_t allowed, one;
	if (sched_getaffinity(0, sizeof(allowed), &allowed) || CPU_COUNT(&allowed) < 2)
		return;
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && which-- == 0) {
			CPU_SET(cpu, &one);
			sched_setaffinity(0, sizeof(one), &one);
			return;
		}
}

static void broken(struct side_result *r, const char *what, uint64_t number)
{
	if (!r->error[0])
		snprintf(r->error, sizeof(r->error), "%s (entry %llu)", what, (unsigned long long)number);
}

// ---- the daemon's side -------------------------------------------------------------------------------------------------
struct daemon_side {
	const struct circle *c;
	struct mpig_consumer sq;
	struct mpig_producer cq;
	struct mpig_queue_header *words;
	struct mpig_cqe held[HELD];
	unsigned held_count;
	uint64_t random, expected;
	int epoll;
};

static bool daemon_sleep(struct daemon_side *d, struct side_result *r)
{
	struct epoll_event event;
	mpig_flag_set(&d->words->sq_flags, MPIG_SQ_NEED_WAKEUP); // F5
	bool woken = true;
	while (woken && mpig_consumer_ready(&d->sq) == 0) {
		r->sleeps++;
		woken = epoll_wait(d->epoll, &event, 1, LOST_MS) == 1;
	}
	mpig_flag_clear(&d->words->sq_flags, MPIG_SQ_NEED_WAKEUP);
	if (!woken)
		broken(r, "daemon side slept through a submission", d->expected);
	return woken;
}

// Posts the held completions in random order. The client reaps, so room comes; the wait is bounded by its deadline.
static bool daemon_post(struct daemon_side *d, struct side_result *r)
{
	while (d->held_count) {
		int room;
		while ((room = mpig_producer_room(&d->cq)) == 0)
			sched_yield();
		if (room < 0) {
			broken(r, "impossible completion head", d->expected);
			return false;
		}
		unsigned pick = (unsigned)(mix(&d->random) % d->held_count);
		mpig_producer_put(&d->cq, &d->held[pick]);
		d->held[pick] = d->held[--d->held_count];
	}
	mpig_producer_publish(&d->cq);                // R0
	if (mpig_flag_peer(&d->words->cq_waiting, 1)) // F4
		syscall(SYS_futex, &d->words->cq_tail, FUTEX_WAKE, 1, NULL, NULL, 0);
	return true;
}

// Checks one entry, answers in its slot, holds its completion back.
static bool daemon_serve(struct daemon_side *d, const struct mpig_sqe *e, struct side_result *r)
{
	if (e->user_data != d->expected || e->begin != ~d->expected)
		broken(r, "submission out of sequence or torn", d->expected);
	else if (e->slot >= SLOTS || e->count > MAX_WORDS)
		broken(r, "submission names no slot", d->expected);
	else if (payload_sum(slot_words(d->c, e->slot), e->count, e->user_data) != e->seed)
		broken(r, "payload differs from its checksum", d->expected);
	if (r->error[0])
		return false;
	uint64_t sum = payload_fill(slot_words(d->c, e->slot), e->count, ~e->user_data);
	d->held[d->held_count++] = (struct mpig_cqe){
		.user_data = e->user_data, .slot = e->slot, .committed = sum, .sequence = d->expected++, .units = e->count};
	return true;
}

static bool daemon_round(struct daemon_side *d, struct side_result *r, bool *done)
{
	int ready = 0;
	unsigned spins = (unsigned)(mix(&d->random) % SPINS); // so that it falls asleep at every moment of the other side's work
	for (unsigned spin = 0; (ready = mpig_consumer_ready(&d->sq)) == 0 && spin < spins; spin++)
		if (spin % 64 == 63)
			sched_yield();
	if (ready == 0)
		return daemon_sleep(d, r);
	if (ready < 0) {
		broken(r, "impossible submission tail", d->expected);
		return false;
	}
	while (ready-- && d->held_count < HELD && !*done) {
		struct mpig_sqe e;
		mpig_consumer_take(&d->sq, &e);
		*done = e.user_data == LAST;
		if (!*done && !daemon_serve(d, &e, r))
			return false;
	}
	mpig_consumer_release(&d->sq); // R2
	stall(&d->random);
	return daemon_post(d, r);
}

static void run_daemon(const struct circle *c, struct side_result *r)
{
	struct daemon_side d = {.c = c, .words = c->base, .random = 1, .epoll = epoll_create1(EPOLL_CLOEXEC)};
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	pin(0);
	mpig_daemon_rings(c->base, &c->header, &d.sq, &d.cq);
	if (d.epoll < 0 || epoll_ctl(d.epoll, EPOLL_CTL_ADD, c->eventfd, &event))
		broken(r, "epoll", 0);
	bool done = false;
	while (!r->error[0] && !done && daemon_round(&d, r, &done))
		;
	if (!r->error[0] && d.expected != c->total)
		broken(r, "daemon side ended early", d.expected);
	close(d.epoll);
}

// ---- the client's side -------------------------------------------------------------------------------------------------
struct client_side {
	const struct circle *c;
	struct mpig_producer sq;
	struct mpig_consumer cq;
	struct mpig_queue_header *words;
	uint64_t pending[SLOTS]; // user_data in flight, LAST = free
	uint32_t counts[SLOTS];
	uint32_t free_slots[SLOTS];
	unsigned free_count;
	uint64_t random, sent, seen;
};

static bool client_publish(struct client_side *k, struct side_result *r)
{
	uint64_t one = 1;
	mpig_producer_publish(&k->sq); // R0
	if (mpig_flag_peer(&k->words->sq_flags, MPIG_SQ_NEED_WAKEUP) &&
	    write(k->c->eventfd, &one, sizeof(one)) != sizeof(one)) { // F4
		broken(r, "eventfd write", k->sent);
		return false;
	}
	return true;
}

// In one of 32 stretches there is one entry in flight at a time: a lost wake-up is not healed by the next entry's.
static unsigned in_flight_limit(const struct client_side *k)
{
	return (k->sent / 1024) % 32 == 31 ? 1 : SLOTS;
}

// Submits up to `burst` entries. Returns how many, negative on failure.
static int client_submit(struct client_side *k, unsigned burst, struct side_result *r)
{
	int submitted = 0;
	while (burst-- && k->sent - k->seen < in_flight_limit(k) && k->sent < k->c->total) {
		int room = mpig_producer_room(&k->sq);
		if (room < 0) {
			broken(r, "impossible submission head", k->sent);
			return -1;
		}
		if (room == 0)
			break;
		uint32_t slot = k->free_slots[--k->free_count];
		uint32_t count = (uint32_t)(mix(&k->random) % (MAX_WORDS + 1));
		k->pending[slot] = k->sent;
		k->counts[slot] = count;
		struct mpig_sqe e = {.user_data = k->sent, .begin = ~k->sent, .slot = slot, .count = count};
		e.seed = payload_fill(slot_words(k->c, slot), count, k->sent);
		mpig_producer_put(&k->sq, &e);
		k->sent++;
		submitted++;
	}
	if (submitted && !client_publish(k, r))
		return -1;
	return submitted;
}

static bool client_reap(struct client_side *k, int ready, struct side_result *r)
{
	while (ready-- > 0) {
		struct mpig_cqe e;
		mpig_consumer_take(&k->cq, &e);
		if (e.slot >= SLOTS || k->pending[e.slot] != e.user_data || e.sequence != e.user_data ||
		    e.units != k->counts[e.slot])
			broken(r, "completion of nothing in flight, or torn", e.user_data);
		else if (payload_sum(slot_words(k->c, e.slot), e.units, ~e.user_data) != e.committed)
			broken(r, "answer differs from its checksum", e.user_data);
		if (r->error[0])
			return false;
		k->pending[e.slot] = LAST;
		k->free_slots[k->free_count++] = e.slot;
		k->seen++;
	}
	mpig_consumer_release(&k->cq); // R2
	return true;
}

static bool client_sleep(struct client_side *k, struct side_result *r)
{
	struct timespec deadline = {LOST_MS / 1000, 0};
	bool woken = true;
	mpig_flag_set(&k->words->cq_waiting, 1); // F5
	for (;;) {
		uint32_t tail = __atomic_load_n(&k->words->cq_tail, __ATOMIC_ACQUIRE);
		if (!woken || tail != k->cq.next)
			break;
		r->sleeps++;
		woken = syscall(SYS_futex, &k->words->cq_tail, FUTEX_WAIT, tail, &deadline, NULL, 0) == 0 || errno != ETIMEDOUT;
	}
	mpig_flag_clear(&k->words->cq_waiting, 1);
	if (!woken)
		broken(r, "client side slept through a completion", k->seen);
	return woken;
}

static bool client_round(struct client_side *k, struct side_result *r)
{
	int submitted = client_submit(k, 1 + (unsigned)(mix(&k->random) % 16), r);
	if (submitted < 0)
		return false;
	bool must_wait = submitted == 0; // nothing more can be sent: spin, then sleep until something comes back
	int ready = 0;
	unsigned spins = (unsigned)(mix(&k->random) % SPINS);
	for (unsigned spin = 0; (ready = mpig_consumer_ready(&k->cq)) == 0 && must_wait && spin < spins; spin++)
		if (spin % 64 == 63)
			sched_yield();
	if (ready < 0) {
		broken(r, "impossible completion tail", k->seen);
		return false;
	}
	stall(&k->random);
	if (ready == 0)
		return !must_wait || client_sleep(k, r);
	return client_reap(k, ready, r);
}

static void run_client(const struct circle *c, struct side_result *r)
{
	struct client_side k = {.c = c, .words = c->base, .random = 2, .free_count = SLOTS};
	uint64_t step = c->total / 20 + 1, next_report = step;
	pin(1);
	for (uint32_t i = 0; i < SLOTS; i++) {
		k.pending[i] = LAST;
		k.free_slots[i] = i;
	}
	mpig_client_rings(c->base, &c->header, &k.sq, &k.cq);
	while (k.seen < c->total && client_round(&k, r))
		if (c->progress && k.seen >= next_report) {
			fprintf(stderr, "  ring circle: %llu of %llu entries\n", (unsigned long long)k.seen,
			        (unsigned long long)c->total);
			next_report += step;
		}
	// Also after a failure: the other side must not wait for entries that never come.
	struct mpig_sqe last = {.user_data = LAST};
	while (mpig_producer_room(&k.sq) == 0)
		sched_yield();
	mpig_producer_put(&k.sq, &last);
	client_publish(&k, r);
}

// ---- the tests ---------------------------------------------------------------------------------------------------------
static void circle_open(struct circle *c, uint32_t start)
{
	const char *entries = getenv("CIRCLE_ENTRIES"), *long_run = getenv("MPIG_LONG");
	int fd;
	uint64_t size;
	memset(c, 0, sizeof(*c));
	c->progress = long_run && strcmp(long_run, "1") == 0;
	c->total = entries ? strtoull(entries, NULL, 10) : c->progress ? 100000000 : 1000000;
	ck_assert_uint_gt(c->total, 0);
	ck_assert_int_eq(mpig_queue_geometry(ENTRIES, SLOTS, SLOT_BYTES, &c->header), MPIG_OK);
	ck_assert_int_eq(mpig_region_create("circle", c->header.region_bytes, &fd), MPIG_OK);
	ck_assert_int_eq(mpig_region_check(fd, c->header.region_bytes, 0, &size), MPIG_OK);
	ck_assert_int_eq(mpig_region_map(fd, size, 0, &c->base), MPIG_OK);
	close(fd);
	struct mpig_queue_header *words = c->base;
	*words = c->header;
	words->sq_tail = words->sq_head = words->cq_tail = words->cq_head = start;
	ck_assert_int_eq(mpig_queue_header_check(c->base, size, &c->header), MPIG_OK);
	c->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ck_assert_int_ge(c->eventfd, 0);
}

static void circle_close(struct circle *c)
{
	close(c->eventfd);
	munmap(c->base, c->header.region_bytes);
}

static void judge(const struct circle *c, const char *how, const struct side_result *daemon, const struct side_result *client)
{
	ck_assert_msg(!daemon->error[0], "daemon side: %s", daemon->error);
	ck_assert_msg(!client->error[0], "client side: %s", client->error);
	printf("ring circle, %s: %llu entries, sleeps: daemon side %llu, client side %llu\n", how, (unsigned long long)c->total,
	       (unsigned long long)daemon->sleeps, (unsigned long long)client->sleeps);
	if (c->total >= 100000) { // the stalls are long enough that both sides must have slept
		ck_assert_uint_gt(daemon->sleeps, 0);
		ck_assert_uint_gt(client->sleeps, 0);
	}
}

START_TEST(two_processes)
{
	struct circle c;
	circle_open(&c, 0xffff0000); // the numbers run over their end on the way
	struct side_result *results = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(results, MAP_FAILED);
	pid_t client = fork();
	ck_assert_int_ge(client, 0);
	if (client == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_client(&c, &results[1]);
		_exit(0);
	}
	run_daemon(&c, &results[0]);
	if (results[0].error[0])
		kill(client, SIGKILL);
	int status;
	ck_assert_int_eq(waitpid(client, &status, 0), client);
	judge(&c, "two processes", &results[0], &results[1]);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	munmap(results, 4096);
	circle_close(&c);
}
END_TEST

struct client_thread {
	const struct circle *c;
	struct side_result result;
};

static void *client_main(void *argument)
{
	struct client_thread *t = argument;
	run_client(t->c, &t->result);
	return NULL;
}

START_TEST(two_threads)
{
	struct circle c;
	struct client_thread t = {.c = &c};
	struct side_result daemon = {0};
	pthread_t thread;
	circle_open(&c, 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, client_main, &t), 0);
	run_daemon(&c, &daemon);
	ck_assert_msg(!daemon.error[0], "daemon side: %s",
	              daemon.error); // before the join: the client would wait for its sleep to end
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	judge(&c, "two threads", &daemon, &t.result);
	circle_close(&c);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("shm/ring circle");
	TCase *processes = tcase_create("processes"), *threads = tcase_create("threads"); // CK_RUN_CASE picks one
	tcase_set_timeout(processes, 3600);
	tcase_add_test(processes, two_processes);
	suite_add_tcase(suite, processes);
	tcase_set_timeout(threads, 3600);
	tcase_add_test(threads, two_threads);
	suite_add_tcase(suite, threads);
	return suite_run(suite);
}
