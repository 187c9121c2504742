// A child that works on a pool and dies just before or after its k-th change of metadata, telling its parent what it did.
#ifndef MPIG_TESTS_STORE_CRASH_H
#define MPIG_TESTS_STORE_CRASH_H

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/store/fixture.h"

#define SLOTS 4
#define MOST 7000u
#define STEPS 70

// What the child says in memory it shares with its parent, before and after each operation.
struct told {
	char name[32];
	int existed, exists;         // before and after the operation in progress
	uint64_t committed, will_be; // likewise
	uint64_t tags[MOST];         // of every token up to the larger of the two
};
struct report {
	struct told slot[SLOTS];
	uint64_t publications, serial;
	int done;
};
static struct report *report;
static uint64_t die_at;

static inline void hook(const void *dst, size_t bytes, int after)
{
	(void)dst, (void)bytes, (void)after;
	if (++report->publications == die_at)
		kill(getpid(), SIGKILL);
}

// ---- the child -------------------------------------------------------------------------------------------------------

static struct fixture f;
static struct context *context[SLOTS];
static struct credentials root;

static inline void do_create(int i, int kind)
{
	struct told *t = &report->slot[i];
	struct mpig_wire_layer layer[2] = {
		layer_of(2, 1, 64, kind == 1 ? MPIG_I8 : 0, kind < 2 ? 2 : 0, kind == 1 ? 2 : 0, kind == 1 ? 4 : 0),
		layer_of(2, 2, 80, 0, 0, 0, 0),
	};
	snprintf(t->name, sizeof t->name, "c%lu", (unsigned long)++report->serial);
	struct mpig_ctl_create body = create_of(t->name, 2);
	t->committed = t->will_be = 0;
	t->exists = 1;
	must(store_context_create(f.store, &root, &body, layer, &context[i], f.why) == 0);
	t->existed = 1;
	must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
}

static inline void do_append(int i, uint64_t n, uint64_t commit)
{
	struct told *t = &report->slot[i];
	uint64_t at = t->committed;
	n = at + n > MOST ? MOST - at : n;
	commit = commit < n ? commit : n;
	uint32_t *ids = malloc((n + 1) * sizeof *ids);
	for (uint64_t k = 0; k < n; k++) {
		t->tags[at + k] = mix(++report->serial);
		ids[k] = (uint32_t)t->tags[at + k];
	}
	for (uint32_t layer = 0; layer < 2; layer++)
		must(append_rows(&f, context[i], layer, at, n, t->tags + at) == 0);
	t->will_be = at + commit;
	must(context_commit(f.store, context[i], at, commit, ids, f.why) == 0);
	t->committed = t->will_be;
	free(ids);
	if (commit < n)
		must(context_truncate(f.store, context[i], t->committed, f.why) == 0);
}

static inline void do_seal(int i)
{
	struct seal_plan plan;
	must(context_seal_begin(f.store, context[i], test_table_bytes, &plan, f.why) == 0);
	if (plan.rows)
		seal_fill(context[i], &plan, report->slot[i].tags + plan.first);
	context_seal_finish(f.store, &plan, true);
}

static inline void do_truncate(int i, uint64_t to)
{
	struct told *t = &report->slot[i];
	t->will_be = to;
	must(context_truncate(f.store, context[i], to, f.why) == 0);
	t->committed = to;
}

static inline void do_fork(int i, int child, uint64_t to)
{
	struct told *t = &report->slot[child];
	snprintf(t->name, sizeof t->name, "c%lu", (unsigned long)++report->serial);
	memcpy(t->tags, report->slot[i].tags, to * sizeof *t->tags);
	t->committed = t->will_be = to;
	t->exists = 1;
	must(store_context_fork(f.store, &root, context[i], to, t->name, &context[child], f.why) == 0);
	t->existed = 1;
	must(context_lease(f.store, context[child], &root, (uint64_t)child + 1, f.why) == 0);
}

static inline void do_drop(int i)
{
	struct told *t = &report->slot[i];
	t->exists = 0;
	must(store_context_drop(f.store, &root, t->name, f.why) == 0);
	t->existed = 0;
	context_release(f.store, context[i], (uint64_t)i + 1);
	context_unref(context[i]);
	context[i] = NULL;
}

static inline void work(uint64_t seed)
{
	uint64_t random = seed;
	root = user(0);
	for (int step = 0; step < STEPS; step++) {
		int i = (int)next_below(&random, SLOTS), other = (int)next_below(&random, SLOTS);
		struct told *t = &report->slot[i];
		if (!context[i]) {
			do_create(i, (int)next_below(&random, 3));
			continue;
		}
		uint32_t what = next_below(&random, 12), n = 1 + next_below(&random, what < 3 ? 5 : 1800);
		if (what < 6 && t->committed < MOST)
			do_append(i, n, next_below(&random, 4) ? n : next_below(&random, n));
		else if (what < 8)
			do_seal(i);
		else if (what == 8)
			do_truncate(i, t->committed -
			                       next_below(&random, (uint32_t)t->committed + 1) / (1 + next_below(&random, 20)));
		else if (what == 9)
			must(store_context_chmod(f.store, &root, t->name, next_below(&random, 01000), UINT32_MAX, UINT32_MAX,
			                         f.why) == 0);
		else if (what == 10 && !context[other])
			do_fork(i, other, next_below(&random, (uint32_t)t->committed + 1));
		else if (what == 11)
			do_drop(i);
	}
	report->done = 1;
}

// Runs the child until publication k; returns whether it finished before.
static inline int run(uint64_t seed, uint64_t k)
{
	memset(report, 0, sizeof *report);
	die_at = k;
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid) {
		pool_publish_hook = hook;
		work(seed);
		_exit(0);
	}
	int status;
	must(waitpid(pid, &status, 0) == pid);
	if (WIFEXITED(status)) {
		must(WEXITSTATUS(status) == 0 && report->done);
		return 1;
	}
	must(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	return 0;
}

static inline void crash_open(void)
{
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(report != MAP_FAILED);
}

#endif
