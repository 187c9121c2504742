// Recording queries: what is recorded is what was asked; who does not read loses records and holds up nobody; who may, and how it ends.
#include <check.h>
#include <grp.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tests/lib/wire.h" // first: shm/ has the enumerations that magicpig.h copies

#include "shm/region.h"
#include "shm/status.h"
#include "shm/trace.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"

#define HEADS 4
#define D 64
#define TOKENS 6000
#define STRANGER 65534u

static struct test_daemon *d;
static struct model_data data;
static struct test_client me;
static mpig_context *book;
static float q[512 * HEADS * D], window_lse[512 * HEADS], window_out[512 * HEADS * D];

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(HEADS, 2, D);
	uint64_t random = 5;
	model_data_make(&data, &layer, 2, TOKENS, 7);
	d = test_daemon_start("[daemon]\nsocket_mode = 0666\n");
	test_client_open(&me, d);
	book = test_client_create(&me, "book", &data);
	ck_assert_status(test_client_fill(&me, book, &data, 0, TOKENS, MPIG_COMMIT_SEAL), MPIG_OK);
	for (size_t i = 0; i < sizeof(q) / sizeof(q[0]); i++) {
		q[i] = (float)(model_random(&random) % 2001) / 1000 - 1;
		window_out[i] = (float)(model_random(&random) % 2001) / 1000 - 1;
	}
	for (size_t i = 0; i < sizeof(window_lse) / sizeof(window_lse[0]); i++)
		window_lse[i] = (float)i / 100;
}

static void teardown(void)
{
	test_client_close(&me);
	test_daemon_stop(d);
	model_data_free(&data);
}

static mpig_trace *record(mpig_client *client, size_t ring_bytes)
{
	struct mpig_trace_options o = MPIG_INIT(o);
	mpig_trace *trace = NULL;
	o.ring_bytes = ring_bytes;
	int status = mpig_trace_start(client, "book", &o, &trace);
	ck_assert_msg(status == MPIG_OK, "%s", mpig_last_error(client));
	return trace;
}

static struct mpig_trace_state state_of(mpig_trace *trace)
{
	struct mpig_trace_state state = MPIG_INIT(state);
	ck_assert_status(mpig_trace_get(trace, &state), MPIG_OK);
	return state;
}

static struct mpig_attend question(unsigned tokens)
{
	return (struct mpig_attend){.size = sizeof(struct mpig_attend), .q = q, .tokens = tokens, .seed = 11};
}

static void ask(const struct mpig_attend *attend, float *out, struct mpig_result *result)
{
	*result = (struct mpig_result){.size = sizeof(*result), .out = out};
	int status = mpig_attend(me.queue, book, attend, result);
	ck_assert_msg(status == MPIG_OK, "%s", mpig_last_error(me.client));
}

static struct mpig_traced next(mpig_trace *trace)
{
	struct mpig_traced traced = MPIG_INIT(traced);
	ck_assert_int_eq(mpig_trace_next(trace, &traced, 10000), 1);
	return traced;
}

static bool recorded(void)
{
	struct mpig_context_info info = MPIG_INIT(info), listed = MPIG_INIT(listed);
	uint64_t cursor = 0;
	ck_assert_status(mpig_context_info(me.client, "book", &info), MPIG_OK);
	ck_assert_int_eq(mpig_context_list(me.client, &cursor, &listed, 1), 1);
	ck_assert_uint_eq(info.flags & MPIG_CONTEXT_RECORDED, listed.flags & MPIG_CONTEXT_RECORDED);
	return info.flags & MPIG_CONTEXT_RECORDED;
}

// ---- what is recorded --------------------------------------------------------------------------------------------------
static const struct mpig_attend asked[] = {
	{.layer = 1, .budget = .05f, .tokens = 1, .end = -100, .begin = 4, .seed = 3},
	{.error_target = .1f,
         .tokens = 1,
         .end = -64,
         .window_lse = window_lse,
         .window_out = window_out,
         .query_position = 6100},
	{.layer = 1, .proposal = MPIG_PROPOSAL_DENSE, .tokens = 3, .causal = 1, .causal_base = 5000, .end = 5500},
	{.tokens = 2, .error_target = .05f, .budget_floor = .01f, .budget_cap = .2f, .seed = 8, .query_position = 6000},
	{.tokens = 1, .error_target = .2f, .delta = .1f, .window_lse = window_lse},
	{.tokens = 1, .proposal = MPIG_PROPOSAL_UNIFORM, .budget = .5f, .window_lse = window_lse, .end = 10, .begin = 10},
};
#define ASKED (sizeof(asked) / sizeof(asked[0]))

START_TEST(what_is_asked_is_recorded_and_can_be_asked_again)
{
	static float out[ASKED][3 * HEADS * D], again[3 * HEADS * D];
	struct mpig_result result[ASKED], second;
	mpig_trace *trace = record(me.client, 0);
	for (size_t i = 0; i < ASKED; i++) {
		struct mpig_attend a = asked[i];
		a.size = sizeof(a);
		a.q = q + i * 64;
		ask(&a, out[i], &result[i]);
	}
	uint64_t taken = 0;
	for (size_t i = 0; i < ASKED; i++) {
		struct mpig_traced t = next(trace);
		struct mpig_attend a = *t.attend; // its arrays go on being the trace's
		ck_assert_uint_eq(t.number, i);
		ck_assert_uint_eq(t.rows_read, result[i].rows_read);
		ck_assert_uint_eq(t.bytes_read, result[i].bytes_read);
		ck_assert_uint_eq(t.service_ns, result[i].service_ns);
		ck_assert_uint_eq(t.committed, TOKENS);
		ck_assert_uint_ge(t.taken_ns, taken);
		taken = t.taken_ns;
		ck_assert_int_eq(a.layer, asked[i].layer);
		ck_assert_int_eq(a.proposal, asked[i].proposal);
		ck_assert_uint_eq(a.tokens, asked[i].tokens);
		ck_assert_uint_eq(a.begin, asked[i].begin);
		ck_assert_int_eq(a.end, asked[i].end > 0 ? asked[i].end : TOKENS + asked[i].end);
		ck_assert_uint_eq(a.seed, asked[i].seed);
		ck_assert_uint_eq(a.causal_base, asked[i].causal_base);
		ck_assert_float_eq(a.budget, asked[i].budget);
		ck_assert_float_eq(a.error_target, asked[i].error_target);
		ck_assert_float_eq(a.budget_cap, asked[i].budget_cap);
		ck_assert_float_eq(a.delta, asked[i].delta);
		ck_assert_mem_eq(a.q, q + i * 64, a.tokens * HEADS * D * sizeof(float));
		ck_assert(!a.window_lse == !asked[i].window_lse);
		if (a.window_lse)
			ck_assert_mem_eq(a.window_lse, window_lse, HEADS * sizeof(float));
		ck_assert(!a.window_out == !asked[i].window_out);
		if (a.window_out)
			ck_assert_mem_eq(a.window_out, window_out, HEADS * D * sizeof(float));
		if (a.end > (int64_t)a.begin) {
			ask(&a, again, &second);
			ck_assert_mem_eq(again, out[i], a.tokens * HEADS * D * sizeof(float));
			ck_assert_uint_eq(second.rows_read, result[i].rows_read);
		}
	}
	ck_assert_uint_eq(state_of(trace).lost, 0);
	mpig_trace_stop(trace);
}
END_TEST

START_TEST(dtypes_and_connections)
{
	uint16_t half[HEADS * D];
	struct mpig_attend a = question(1);
	struct mpig_result result;
	struct test_client other;
	mpig_context *theirs;
	mpig_trace *trace = record(me.client, 0);
	for (int i = 0; i < HEADS * D; i++)
		half[i] = (uint16_t)(0x3f80 + i % 7); // about 1
	a.q = half;
	a.dtype = MPIG_BF16;
	ask(&a, NULL, &result);
	test_client_open(&other, d);
	ck_assert_status(test_client_find(&other, "book", MPIG_READ, &theirs), MPIG_OK);
	ck_assert_status(mpig_attend(other.queue, theirs, &a, &result), MPIG_OK);
	struct mpig_traced first = next(trace);
	ck_assert_int_eq(first.asked_dtype, MPIG_BF16);
	ck_assert_int_eq(first.attend->dtype, MPIG_F32);
	for (int i = 0; i < HEADS * D; i++)
		ck_assert_float_eq(((const float *)first.attend->q)[i], 1 + (float)(i % 7) / 128);
	struct mpig_traced second = next(trace);
	ck_assert_uint_ne(second.client, first.client);
	ck_assert_uint_ne(second.queue, first.queue);
	test_client_close(&other);
	mpig_trace_stop(trace);
}
END_TEST

// Failed requests, other operations and other contexts, forks among them, are none of it.
START_TEST(nothing_else_is_recorded)
{
	struct mpig_attend a = question(1), bad = question(1);
	struct mpig_result result = MPIG_INIT(result);
	mpig_context *fork;
	mpig_trace *trace = record(me.client, 0);
	ck_assert(recorded());
	ck_assert_status(mpig_context_fork(book, "child", 1000, &fork), MPIG_OK);
	ck_assert_status(mpig_attend(me.queue, fork, &a, &result), MPIG_OK);
	bad.end = TOKENS + 1;
	ck_assert_status(mpig_attend(me.queue, book, &bad, &result), MPIG_ERANGE);
	ck_assert_status(mpig_nop(me.queue), MPIG_OK);
	a.seed = 4711;
	ask(&a, NULL, &result);
	struct mpig_traced t = next(trace);
	ck_assert_uint_eq(t.attend->seed, 4711);
	ck_assert_int_eq(mpig_trace_next(trace, &t, 0), 0);
	ck_assert_uint_eq(state_of(trace).answers, 1);
	mpig_trace_stop(trace);
	ck_assert(!recorded());
	ask(&a, NULL, &result);
}
END_TEST

// ---- room --------------------------------------------------------------------------------------------------------------
START_TEST(many_laps_of_the_ring)
{
	mpig_trace *trace = record(me.client, 1 << 20);
	for (unsigned i = 0; i < 4000; i++) { // 1.25 to 21 KiB each
		struct mpig_attend a = question(1 + i % 17);
		struct mpig_result result;
		a.seed = i;
		a.begin = 5800;
		a.q = q + i % 50 * 64;
		ask(&a, NULL, &result);
		if (i % 30 != 29)
			continue;
		for (unsigned k = i - 29; k <= i; k++) {
			struct mpig_traced t = next(trace);
			ck_assert_uint_eq(t.number, k);
			ck_assert_uint_eq(t.attend->seed, k);
			ck_assert_mem_eq(t.attend->q, q + k % 50 * 64, (1 + k % 17) * HEADS * D * sizeof(float));
		}
	}
	mpig_trace_stop(trace);
}
END_TEST

// Several clients at once: each one's queries stand in its order, whole.
#define ASKERS 4
#define EACH 1500
static void *asker(void *argument)
{
	int self = *(int *)argument;
	struct test_client s;
	mpig_context *x;
	test_client_open(&s, d);
	ck_assert_status(test_client_find(&s, "book", MPIG_READ, &x), MPIG_OK);
	for (int i = 0; i < EACH; i++) {
		struct mpig_attend a = question(1 + (unsigned)i % 3);
		struct mpig_result result = MPIG_INIT(result);
		a.seed = (uint64_t)(self * EACH + i);
		a.q = q + (self * 7 + i % 50) * 64;
		a.begin = 5900;
		ck_assert_status(mpig_attend(s.queue, x, &a, &result), MPIG_OK);
	}
	test_client_close(&s);
	return NULL;
}

START_TEST(several_clients_at_once)
{
	pthread_t thread[ASKERS];
	int number[ASKERS], seen[ASKERS] = {0};
	mpig_trace *trace = record(me.client, 64 << 20);
	for (int i = 0; i < ASKERS; i++) {
		number[i] = i;
		ck_assert_int_eq(pthread_create(&thread[i], NULL, asker, &number[i]), 0);
	}
	for (uint64_t n = 0; n < ASKERS * EACH; n++) {
		struct mpig_traced t = next(trace);
		int self = (int)(t.attend->seed / EACH), i = (int)(t.attend->seed % EACH);
		ck_assert_uint_eq(t.number, n);
		ck_assert_int_lt(self, ASKERS);
		ck_assert_int_eq(i, seen[self]++);
		ck_assert_mem_eq(t.attend->q, q + (self * 7 + i % 50) * 64, t.attend->tokens * HEADS * D * sizeof(float));
	}
	for (int i = 0; i < ASKERS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_uint_eq(state_of(trace).lost, 0);
	mpig_trace_stop(trace);
}
END_TEST

// What the ring held is read, what came after is counted, and what comes when there is room again is recorded again.
START_TEST(who_does_not_read_loses_records_and_holds_up_nobody)
{
	struct mpig_attend a = question(16);
	struct mpig_result result;
	struct mpig_traced t = MPIG_INIT(t);
	mpig_trace *trace = record(me.client, 1 << 20);
	a.begin = 5900;
	for (a.seed = 0; a.seed < 300; a.seed++)
		ask(&a, NULL, &result);
	uint64_t read = 0, expected = (1 << 20) / (256 + 16 * HEADS * D * sizeof(float));
	while (mpig_trace_next(trace, &t, 100) == 1)
		ck_assert_uint_eq(t.number, read++);
	ck_assert_uint_ge(read, expected - 1);
	ck_assert_uint_le(read, expected + 1);
	struct mpig_trace_state state = state_of(trace);
	ck_assert_uint_eq(state.answers, 300);
	ck_assert_uint_eq(state.lost, 300 - read);
	ck_assert_uint_eq(state.too_long, 0);
	a.seed = 99;
	ask(&a, NULL, &result);
	t = next(trace);
	ck_assert_uint_eq(t.number, 300);
	ck_assert_uint_eq(t.attend->seed, 99);
	struct mpig_attend most = question(200); // 205 KiB, and 262 with 256 tokens
	struct mpig_queue_options large = MPIG_INIT(large);
	mpig_queue *queue;
	large.slot_bytes = 2 << 20;
	ck_assert_status(mpig_queue_create(me.client, &large, &queue), MPIG_OK);
	most.begin = 5990;
	ck_assert_status(mpig_attend(queue, book, &most, &result), MPIG_OK);
	t = next(trace);
	ck_assert_uint_eq(t.attend->tokens, 200);
	most.tokens = 256;
	ck_assert_status(mpig_attend(queue, book, &most, &result), MPIG_OK);
	mpig_queue_destroy(queue);
	ck_assert_int_eq(mpig_trace_next(trace, &t, 100), 0);
	ck_assert_uint_eq(state_of(trace).too_long, 1);
	ck_assert_uint_eq(state_of(trace).lost, 300 - read + 1);
	mpig_trace_stop(trace);
}
END_TEST

// ---- who may, and how it ends ------------------------------------------------------------------------------------------
START_TEST(one_recorder_at_a_time_and_so_many_of_them)
{
	mpig_trace *trace[9] = {record(me.client, 1 << 20)}, *other;
	struct mpig_trace_options o = MPIG_INIT(o);
	struct mpig_quota before = MPIG_INIT(before), after = MPIG_INIT(after);
	mpig_context *x;
	char name[16];
	o.ring_bytes = 1 << 20;
	ck_assert_status(mpig_trace_start(me.client, "book", &o, &other), MPIG_EBUSY);
	ck_assert_str_eq(mpig_last_error(me.client), "its queries are being recorded already; one recorder at a time");
	ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &before), MPIG_OK);
	for (int i = 1; i < 9; i++) {
		snprintf(name, sizeof(name), "other-%d", i);
		ck_assert_status(mpig_context_fork(book, name, 100, &x), MPIG_OK);
		ck_assert_status(mpig_trace_start(me.client, name, &o, &trace[i]), i < 8 ? MPIG_OK : MPIG_ELIMIT);
	}
	ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &after), MPIG_OK);
	ck_assert_uint_eq(after.region_bytes, before.region_bytes + 7 * ((1 << 20) + 4096));
	for (int i = 0; i < 8; i++)
		mpig_trace_stop(trace[i]);
	ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &after), MPIG_OK);
	ck_assert_uint_eq(after.region_bytes, before.region_bytes - (1 << 20) - 4096);
	o.ring_bytes = 1000;
	ck_assert_status(mpig_trace_start(me.client, "book", &o, &other), MPIG_EINVAL);
	o.ring_bytes = (size_t)1 << 40;
	ck_assert_status(mpig_trace_start(me.client, "book", &o, &other), MPIG_EINVAL);
	ck_assert_status(mpig_trace_start(me.client, "nobody", NULL, &other), MPIG_ENOENT);
}
END_TEST

// The daemon notices a recorder's death, and the next one may begin.
START_TEST(a_recorder_that_dies)
{
	fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		struct test_client s;
		test_client_open(&s, d);
		record(s.client, 0);
		_exit(0);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	for (int i = 0; i < 1000 && recorded(); i++)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	ck_assert(!recorded());
	struct mpig_attend a = question(1);
	struct mpig_result result;
	ask(&a, NULL, &result);
	mpig_trace *trace = record(me.client, 0);
	ask(&a, NULL, &result);
	next(trace);
	mpig_trace_stop(trace);
}
END_TEST

// Where the daemon's answer came too late, nobody knows the recording: it is given back.
START_TEST(a_start_that_nobody_waited_for)
{
	struct test_client hasty;
	mpig_trace *trace = NULL;
	test_client_open_hasty(&hasty, d, 2000, -1); // enough for a queue on a busy machine
	test_daemon_freeze(d);
	int status = mpig_trace_start(hasty.client, "book", NULL, &trace);
	test_daemon_thaw(d);
	ck_assert_status(status, MPIG_ETIMEDOUT);
	for (int i = 0; i < 1000 && (mpig_ping(hasty.client) != MPIG_OK || recorded()); i++)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	ck_assert(!recorded());
	mpig_trace_stop(record(me.client, 0));
	test_client_close(&hasty);
}
END_TEST

// Of this process.
static void *address_of_ring(void)
{
	char line[512];
	uintptr_t begin = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	ck_assert_ptr_nonnull(maps);
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "memfd:magicpig-trace"))
			begin = strtoul(line, NULL, 16);
	fclose(maps);
	ck_assert_uint_ne(begin, 0);
	return (void *)begin;
}

// In a forked child the ring is not mapped: what is where it would be is left alone.
START_TEST(a_forked_child_stops_nothing)
{
	struct mpig_attend a = question(1);
	struct mpig_result result;
	mpig_trace *trace = record(me.client, 1 << 20);
	void *where = address_of_ring();
	fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		int *mine = mmap(where, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		mpig_trace_stop(trace);
		_exit(mine != where ? 1 : msync(mine, 4096, MS_ASYNC) != 0 ? 2 : 0);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
	ask(&a, NULL, &result);
	next(trace);
	mpig_trace_stop(trace);
}
END_TEST

static int what_a_stranger_may(void)
{
	struct test_client s;
	mpig_trace *trace;
	if (setresgid(STRANGER, STRANGER, STRANGER) || setresuid(STRANGER, STRANGER, STRANGER))
		return 1;
	test_client_open(&s, d);
	int status = mpig_trace_start(s.client, "book", NULL, &trace);
	return status == MPIG_EACCES && *mpig_last_error(s.client) ? 0 : 2;
}

START_TEST(only_the_owner_may)
{
	if (geteuid() != 0)
		return; // cannot become somebody else
	ck_assert_status(mpig_context_chmod(me.client, "book", 0644, UINT32_MAX, UINT32_MAX), MPIG_OK);
	fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(what_a_stranger_may());
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

// Five contexts of their own, of which they may record four at a time.
static int what_one_user_may_have(void)
{
	struct test_client s;
	mpig_trace *trace = NULL, *first = NULL;
	struct mpig_trace_options o = {.size = sizeof(o), .ring_bytes = 1 << 20};
	if (setresgid(STRANGER, STRANGER, STRANGER) || setresuid(STRANGER, STRANGER, STRANGER))
		return 1;
	test_client_open(&s, d);
	for (int i = 0; i < 5; i++) {
		char name[16];
		snprintf(name, sizeof(name), "theirs-%d", i);
		test_client_create(&s, name, &data);
		if (mpig_trace_start(s.client, name, &o, i ? &trace : &first) != (i < 4 ? MPIG_OK : MPIG_ELIMIT))
			return 2;
	}
	if (!strstr(mpig_last_error(s.client), "uid 65534 records 4 contexts"))
		return 3;
	mpig_trace_stop(first);
	return mpig_trace_start(s.client, "theirs-4", &o, &trace) == MPIG_OK ? 0 : 4;
}

START_TEST(one_user_does_not_take_all)
{
	if (geteuid() != 0)
		return; // cannot become somebody else
	fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(what_one_user_may_have());
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

static void assert_ends(mpig_trace *trace, uint32_t why)
{
	struct mpig_traced t = MPIG_INIT(t);
	for (int i = 0; i < 100 && state_of(trace).ended == MPIG_TRACED_GOES_ON; i++)
		ck_assert_int_ge(mpig_trace_next(trace, &t, 100), 0);
	ck_assert_uint_eq(state_of(trace).ended, why);
	ck_assert_int_eq(mpig_trace_next(trace, &t, -1), 0); // and does not wait for what will not come
}

// In a child: a stranger who is an administrator by a group, until the pipe's other end says that the group is none any more.
static int what_an_administrator_may_no_longer(gid_t group, const int told[2], const int tells[2])
{
	struct test_client s;
	struct mpig_traced t = MPIG_INIT(t);
	struct mpig_trace_state state = MPIG_INIT(state);
	mpig_trace *trace, *own;
	char byte = 0;
	if (setgroups(1, &group) || setresgid(STRANGER, STRANGER, STRANGER) || setresuid(STRANGER, STRANGER, STRANGER))
		return 1;
	test_client_open(&s, d);
	test_client_create(&s, "theirs", &data);
	if (mpig_trace_start(s.client, "book", NULL, &trace) || mpig_trace_start(s.client, "theirs", NULL, &own))
		return 2;
	if (write(tells[1], &byte, 1) != 1 || read(told[0], &byte, 1) != 1)
		return 3;
	for (int i = 0; i < 100 && state.ended == MPIG_TRACED_GOES_ON; i++)
		if (mpig_trace_next(trace, &t, 100) != 0 || mpig_trace_get(trace, &state))
			return 4;
	if (state.ended != MPIG_TRACED_REVOKED)
		return 5;
	if (mpig_trace_next(own, &t, 100) != 0 || mpig_trace_get(own, &state) || state.ended != MPIG_TRACED_GOES_ON)
		return 6;
	mpig_trace_stop(trace);
	return mpig_trace_start(s.client, "book", NULL, &trace) == MPIG_EACCES ? 0 : 7;
}

static void configure(const char *assignment)
{
	char text[1024];
	ck_assert_msg(mpig_daemon_configure(me.client, assignment, text, sizeof(text)) >= 0, "%s", mpig_last_error(me.client));
}

START_TEST(it_ends_with_the_recorders_rights)
{
	struct group *g;
	char line[128], byte = 0;
	int told[2], tells[2], status;
	if (geteuid() != 0)
		return; // cannot become somebody else
	while ((g = getgrent()) && (g->gr_gid == 0 || g->gr_gid == STRANGER))
		;
	ck_assert_ptr_nonnull(g);
	gid_t group = g->gr_gid;
	snprintf(line, sizeof(line), "daemon.admin_group=%s", g->gr_name);
	endgrent();
	configure(line);
	ck_assert(pipe(told) == 0 && pipe(tells) == 0);
	fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(what_an_administrator_may_no_longer(group, told, tells));
	close(tells[1]);
	if (read(tells[0], &byte, 1) == 1) {
		mpig_trace *mine = NULL;
		configure("workers.spin_us=100us"); // which takes no rights
		ck_assert_status(mpig_trace_start(me.client, "theirs", NULL, &mine), MPIG_EBUSY);
		ck_assert(recorded());
		configure("daemon.admin_group=");
		ck_assert_int_eq(write(told[1], &byte, 1), 1);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

START_TEST(it_ends_when_permissions_change)
{
	struct mpig_attend a = question(1);
	struct mpig_result result;
	mpig_trace *trace = record(me.client, 0);
	ask(&a, NULL, &result);
	ck_assert_status(mpig_context_chmod(me.client, "book", 0640, UINT32_MAX, UINT32_MAX), MPIG_OK);
	ask(&a, NULL, &result);
	next(trace); // what came before is still there
	assert_ends(trace, MPIG_TRACED_REVOKED);
	ck_assert_uint_eq(state_of(trace).answers, 1);
	mpig_trace_stop(trace);
}
END_TEST

START_TEST(it_ends_with_the_context)
{
	mpig_trace *trace = record(me.client, 0);
	ck_assert_status(mpig_context_drop(me.client, "book"), MPIG_OK);
	assert_ends(trace, MPIG_TRACED_DROPPED);
	mpig_trace_stop(trace);
}
END_TEST

START_TEST(it_ends_with_the_daemon)
{
	struct mpig_attend a = question(1);
	struct mpig_result result;
	struct test_client hasty;
	test_client_open_hasty(&hasty, d, 1000, -1);
	mpig_trace *trace = record(hasty.client, 0);
	ask(&a, NULL, &result);
	test_daemon_kill(d);
	next(trace);
	assert_ends(trace, MPIG_TRACED_SHUTDOWN);
	mpig_trace_stop(trace);
	test_client_close(&hasty);
	test_daemon_again(d);
}
END_TEST

// ---- a recorder that is not one ----------------------------------------------------------------------------------------
static struct mpig_trace_ring *wire_record(int socket, uint64_t ring_bytes)
{
	struct mpig_ctl_trace request = {.name = "book", .action = MPIG_TRACE_START, .ring_bytes = ring_bytes}, reply;
	int fds[2];
	void *base;
	wire_header(&request.h, MPIG_CTL_TRACE, sizeof(request));
	ck_assert_int_eq(wire_send(socket, &request, sizeof(request), -1), 0);
	ck_assert_int_eq(wire_receive(socket, &reply, sizeof(reply), fds), sizeof(reply));
	ck_assert_int_eq(reply.h.status, MPIG_OK);
	ck_assert_int_eq(mpig_region_map(fds[0], reply.region_bytes, 0, &base), MPIG_OK);
	close(fds[0]);
	return base;
}

START_TEST(words_that_cannot_be_end_it)
{
	static const uint64_t heads[] = {UINT64_MAX, 1u << 21, 64};
	for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
		struct mpig_attend a = question(16);
		struct mpig_result result;
		int socket = wire_connect(d);
		ck_assert_int_eq(wire_hello(socket), MPIG_OK);
		struct mpig_trace_ring *ring = wire_record(socket, 1 << 20);
		a.begin = 5900;
		if (i == 2) { // backwards: honest at first
			for (int k = 0; k < 70; k++)
				ask(&a, NULL, &result);
			__atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
			for (int k = 0; k < 10; k++)
				ask(&a, NULL, &result);
		}
		__atomic_store_n(&ring->head, heads[i], __ATOMIC_RELEASE);
		for (int k = 0; k < 200; k++)
			ask(&a, NULL, &result);
		ck_assert_uint_eq(__atomic_load_n(&ring->ended, __ATOMIC_ACQUIRE), MPIG_TRACE_BROKEN);
		munmap(ring, 4096 + (1 << 20));
		close(socket);
		for (int k = 0; k < 1000 && recorded(); k++)
			nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	test_daemon_assert_alive(d);
}
END_TEST

// It writes anything anywhere while queries are recorded: nobody but itself is harmed.
START_TEST(a_ring_that_is_scribbled_over)
{
	uint64_t random = 3;
	struct mpig_attend a = question(4);
	struct mpig_result result;
	for (int lap = 0; lap < 20; lap++) {
		int socket = wire_connect(d);
		ck_assert_int_eq(wire_hello(socket), MPIG_OK);
		struct mpig_trace_ring *ring = wire_record(socket, 1 << 20);
		for (int k = 0; k < 100; k++) {
			uint8_t *bytes = (uint8_t *)ring;
			for (int i = 0; i < 100; i++)
				bytes[model_random(&random) % (i % 2 ? 4096 + (1 << 20) : 512)] = (uint8_t)model_random(&random);
			ask(&a, NULL, &result);
		}
		munmap(ring, 4096 + (1 << 20));
		close(socket);
		for (int k = 0; k < 1000; k++) {
			mpig_trace *trace;
			if (mpig_trace_start(me.client, "book", NULL, &trace) == MPIG_OK) {
				mpig_trace_stop(trace);
				break;
			}
			nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		}
	}
	test_daemon_assert_alive(d);
	test_client_assert_dense(&me, book, &data, 0, 500);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("trace");
	TCase *tc = tcase_create("trace");
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, what_is_asked_is_recorded_and_can_be_asked_again);
	tcase_add_test(tc, dtypes_and_connections);
	tcase_add_test(tc, nothing_else_is_recorded);
	tcase_add_test(tc, many_laps_of_the_ring);
	tcase_add_test(tc, several_clients_at_once);
	tcase_add_test(tc, who_does_not_read_loses_records_and_holds_up_nobody);
	tcase_add_test(tc, one_recorder_at_a_time_and_so_many_of_them);
	tcase_add_test(tc, a_recorder_that_dies);
	tcase_add_test(tc, a_start_that_nobody_waited_for);
	tcase_add_test(tc, a_forked_child_stops_nothing);
	tcase_add_test(tc, only_the_owner_may);
	tcase_add_test(tc, one_user_does_not_take_all);
	tcase_add_test(tc, it_ends_with_the_recorders_rights);
	tcase_add_test(tc, it_ends_when_permissions_change);
	tcase_add_test(tc, it_ends_with_the_context);
	tcase_add_test(tc, it_ends_with_the_daemon);
	tcase_add_test(tc, words_that_cannot_be_end_it);
	tcase_add_test(tc, a_ring_that_is_scribbled_over);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
