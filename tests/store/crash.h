// A child that works on a pool and is killed at its k-th point (tests/lib/points.h), telling its parent what it does. The work is drawn
// from a table of actions; a test that has more of them (tests/disk/crash.h) brings its own table.
#ifndef MPIG_TESTS_STORE_CRASH_H
#define MPIG_TESTS_STORE_CRASH_H

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/lib/points.h"
#include "tests/store/fixture.h"

#define SLOTS 4
#define MOST 7000u

struct version { // of a context's content
	int exists;
	uint64_t committed, tags[MOST]; // what row and id of each token were made of
};
// What the child says in memory it shares with its parent, before and after each action.
struct told {
	char name[32];
	int existed, exists;         // in memory, before and after the action in progress
	uint64_t committed, will_be; // likewise
	uint64_t tags[MOST];         // of every token up to the larger of the two
	struct version saved[2];     // on disk, likewise
};
struct report {
	struct told slot[SLOTS];
	struct points points;
	uint64_t serial, steps;
	char action[16];
	int done;
};
static struct report *report;

// ---- the child -------------------------------------------------------------------------------------------------------

static struct fixture f;
static struct context *context[SLOTS];
static struct credentials root;
static uint32_t most_rows = 1800, work_steps = 70;

static inline void forget_version(struct version *v)
{
	v->exists = 0;
	v->committed = 0;
}

// A name of its own, unless a context of the one it has is on disk.
static inline void name_slot(int i)
{
	struct told *t = &report->slot[i];
	if (!t->name[0] || !t->saved[0].exists)
		snprintf(t->name, sizeof t->name, "c%lu", (unsigned long)++report->serial);
}

static inline void do_create(int i, int kind)
{
	struct told *t = &report->slot[i];
	struct mpig_wire_layer layer[2] = {
		layer_of(2, 1, 64, kind == 1 ? MPIG_I8 : 0,
	                 kind == 0   ? MPIG_BITS_AUTO
	                 : kind == 1 ? 2
	                             : 0,
	                 kind == 1 ? 2 : 0, kind == 1 ? 4 : 0),
		layer_of(2, 2, 80, 0, 0, 0, 0),
	};
	name_slot(i);
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
	must(seal_begin(f.store, context[i], test_table_bytes, &plan, f.why) == 0);
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
	name_slot(child);
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

// ---- actions ---------------------------------------------------------------------------------------------------------

struct action {
	const char *name;
	uint32_t weight;
	bool living; // on a context that is in memory; otherwise on a slot without one
	void (*act)(int i, uint64_t *random);
};

static inline void act_create(int i, uint64_t *random)
{
	do_create(i, (int)next_below(random, 3));
}

static inline void act_append(int i, uint64_t *random)
{
	uint32_t n = 1 + next_below(random, next_below(random, 2) ? 5 : most_rows);
	if (report->slot[i].committed < MOST)
		do_append(i, n, next_below(random, 4) ? n : next_below(random, n));
}

static inline void act_seal(int i, uint64_t *random)
{
	(void)random;
	do_seal(i);
}

static inline void act_reindex(int i, uint64_t *random)
{
	const struct told *t = &report->slot[i];
	(void)random;
	int status = reindex(&f, context[i], t->tags, t->committed);
	must(status == 0 || status == MPIG_ENOTSUP || status == MPIG_EBUSY); // no index yet; two others
}

static inline void act_truncate(int i, uint64_t *random)
{
	uint64_t now = report->slot[i].committed;
	do_truncate(i, now - next_below(random, (uint32_t)now + 1) / (1 + next_below(random, 20)));
}

static inline void act_chmod(int i, uint64_t *random)
{
	must(store_context_chmod(f.store, &root, report->slot[i].name, next_below(random, 01000), UINT32_MAX, UINT32_MAX,
	                         f.why) == 0);
}

static inline void act_fork(int i, uint64_t *random)
{
	int child = (int)next_below(random, SLOTS);
	if (!context[child])
		do_fork(i, child, next_below(random, (uint32_t)report->slot[i].committed + 1));
}

static inline void act_drop(int i, uint64_t *random)
{
	(void)random;
	do_drop(i);
}

static const struct action memory_actions[] = {
	{"create", 1, false, act_create},    {"append", 6, true, act_append}, {"seal", 2, true, act_seal},
	{"truncate", 1, true, act_truncate}, {"chmod", 1, true, act_chmod},   {"fork", 1, true, act_fork},
	{"reindex", 1, true, act_reindex},   {"drop", 1, true, act_drop},     {NULL, 0, 0, NULL},
};
static const struct action *actions = memory_actions;

static inline const struct action *draw_action(bool living, uint64_t *random)
{
	uint32_t all = 0;
	for (const struct action *a = actions; a->act; a++)
		all += a->living == living ? a->weight : 0;
	uint32_t at = next_below(random, all);
	for (const struct action *a = actions;; a++) {
		if (a->living != living)
			continue;
		if (at < a->weight)
			return a;
		at -= a->weight;
	}
}

static inline void work(uint64_t seed)
{
	uint64_t random = seed;
	root = user(0);
	for (uint32_t step = 0; step < work_steps; step++) {
		int i = (int)next_below(&random, SLOTS);
		const struct action *a = draw_action(context[i] != NULL, &random);
		snprintf(report->action, sizeof report->action, "%s", a->name);
		report->steps++;
		a->act(i, &random);
	}
	report->done = 1;
}

// Runs the child until point k; returns whether it finished before.
static inline int run(uint64_t seed, uint64_t k)
{
	memset(report, 0, sizeof *report);
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid) {
		points_arm(&report->points, k);
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
