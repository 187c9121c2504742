// The scheduling of a job's units. What the units do is in attend.c, append.c, commit.c and read.c.
#include "daemon/engine/engine.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/ahead.h"
#include "daemon/engine/job.h"
#include "shm/region.h"

int engine_create(const struct engine_options *options, struct engine **engine)
{
	struct engine *e = aligned_alloc(64, sizeof(*e));
	if (!e)
		return MPIG_ENOMEM;
	memset(e, 0, sizeof(*e));
	e->kernels = options->kernels;
	e->store = options->store;
	e->memory.available = mpig_available_bytes;
	e->error_target = options->error_target;
	e->budget_floor = options->budget_floor > 0 ? options->budget_floor : .005f;
	e->budget_cap = options->budget_cap > 0 ? options->budget_cap : .08f;
	e->default_budget = options->default_budget > 0 ? options->default_budget : .01f;
	e->workers = options->workers > 1 ? options->workers : 1;
	e->trace = options->trace;
	e->upper_rows = options->upper_rows;
	e->upper_most = options->upper_most > 0 ? options->upper_most : .5f;
	e->noise = noise_table();
	e->hashes = hash_cache_create();
	e->ahead = ahead_create(e->workers, options->ahead_bytes);
	if (!e->noise || !e->hashes || !e->ahead) {
		engine_destroy(e);
		return MPIG_ENOMEM;
	}
	*engine = e;
	return 0;
}

void engine_destroy(struct engine *engine)
{
	if (!engine)
		return;
	hash_cache_destroy(engine->hashes);
	ahead_destroy(engine->ahead);
	memory_drop(&engine->memory);
	memory_drop(&engine->jobs);
	free(engine);
}

bool engine_op_writes(uint8_t op)
{
	return op == MPIG_OP_APPEND || op == MPIG_OP_COMMIT || op == MPIG_OP_TRUNCATE;
}

bool payload_to_f32(const uint8_t *src, uint32_t dtype, size_t n, float *dst)
{
	switch (dtype) {
	case MPIG_F32:
		return f32_copy_finite(src, n, dst);
	case MPIG_BF16:
		return bf16_widen_finite(src, n, dst);
	default:
		return f16_widen_finite(src, n, dst);
	}
}

int job_fail(struct job *j, int status, const char *format, ...)
{
	int none = 0;
	if (atomic_compare_exchange_strong(&j->failed, &none, status)) {
		va_list arguments;
		va_start(arguments, format);
		vsnprintf(j->result.why, sizeof(j->result.why), format, arguments);
		va_end(arguments);
	}
	return status;
}

struct round *round_new(struct job *j, uint32_t groups)
{
	size_t bytes = sizeof(struct round) + groups * sizeof(struct group);
	bool first = bytes <= sizeof(j->first_round) && !atomic_load_explicit(&j->round, memory_order_relaxed);
	struct round *r = first ? (void *)j->first_round : aligned_alloc(64, (bytes + 63) & ~(size_t)63);
	if (!r)
		return NULL;
	memset(r, 0, bytes);
	r->group_count = groups;
	return r;
}

void round_free(struct job *j, struct round *r)
{
	if (r != (void *)j->first_round)
		free(r);
}

void round_publish(struct job *j, struct round *r)
{
	for (uint32_t g = 0; g < r->group_count; g++) {
		j->result.units += r->group[g].pre_n + r->group[g].main_n;
		if (!r->group[g].pre_n)
			atomic_store_explicit(&r->group[g].open, 1, memory_order_relaxed);
	}
	r->older = atomic_load_explicit(&j->round, memory_order_relaxed);
	atomic_store_explicit(&j->round, r, memory_order_release);
}

static int plan(struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	if (e->op == MPIG_OP_NOP)
		return 0;
	if (!j->request.context)
		return job_fail(j, MPIG_ENOENT, "handle %u names no open context", e->handle);
	if (context_dropped(j->request.context))
		return job_fail(j, MPIG_ENOENT, "the context was dropped");
	if (engine_op_writes(e->op) && !j->request.writer)
		return job_fail(j, MPIG_ELEASE, "open the context for writing first");
	switch (e->op) {
	case MPIG_OP_ATTEND:
		return attend_plan(j);
	case MPIG_OP_APPEND:
		return append_plan(j);
	case MPIG_OP_COMMIT:
		return commit_plan(j);
	case MPIG_OP_TRUNCATE:
		return truncate_plan(j);
	case MPIG_OP_READ:
		return read_plan(j);
	default:
		return job_fail(j, MPIG_EPROTO, "operation %u is not one of 0..%u", e->op, MPIG_OP_COUNT - 1);
	}
}

struct job *job_new(struct engine *e)
{
	struct job *j = memory_get(&e->jobs, sizeof(*j));
	if (!j)
		return NULL;
	memset(j, 0, offsetof(struct job, first_round));
	j->engine = e;
	return j;
}

struct job *job_create(struct engine *e, const struct engine_request *request)
{
	struct job *j = job_new(e);
	if (!j)
		return NULL;
	j->request = *request;
	if (request->context)
		context_ref(request->context);
	int status = plan(j);
	if (status && j->ops && j->ops->release) {
		j->ops->release(j);
	}
	if (status)
		j->ops = NULL;
	j->request.payload_in = NULL; // copied, or for units to copy, from where the plan noted
	return j;
}

static void complete(struct job *j)
{
	j->result.status = atomic_load_explicit(&j->failed, memory_order_acquire);
	uint64_t list = atomic_load_explicit(&j->engine->ahead->list, memory_order_relaxed);
	atomic_store_explicit(&j->ahead_list, list, memory_order_relaxed);
	if (j->request.context) {
		j->result.committed = context_committed(j->request.context);
		j->result.signature_version = context_signature_version(j->request.context);
	}
}

// Who runs a piece of a job.
struct runner {
	uint32_t worker;
	struct engine_scratch *scratch;
};

static void note(const struct job *j, const struct runner *by, enum engine_piece piece, bool end)
{
	const struct engine_trace *trace = j->engine->trace;
	if (trace)
		trace->note(trace->data, by->worker, piece, end);
}

typedef int unit_fn(struct job *j, uint32_t group, uint32_t unit, struct engine_scratch *s);
typedef int group_fn(struct job *j, uint32_t group, struct engine_scratch *s);

static bool alive(struct job *j)
{
	return !atomic_load_explicit(&j->failed, memory_order_acquire);
}

static void run_unit(struct job *j, const struct runner *by, enum engine_piece piece, unit_fn *run, uint32_t g, uint32_t unit)
{
	if (!run || !alive(j))
		return;
	note(j, by, piece, false);
	run(j, g, unit, by->scratch);
	note(j, by, piece, true);
}

static void run_whole(struct job *j, const struct runner *by, enum engine_piece piece, group_fn *run, uint32_t g)
{
	if (!run || !alive(j))
		return;
	note(j, by, piece, false);
	run(j, g, by->scratch);
	note(j, by, piece, true);
}

// The last unit of a group was done: close it, and with the last group the round.
static enum job_state close_group(struct job *j, struct round *r, uint32_t g, const struct runner *by)
{
	run_whole(j, by, ENGINE_CLOSE, j->ops->close, g);
	if (atomic_fetch_add_explicit(&r->closed, 1, memory_order_acq_rel) + 1 < r->group_count)
		return JOB_RAN;
	if (j->ops->finish && j->ops->finish(j, by->scratch) == MPIG_EAGAIN)
		return JOB_MORE;
	complete(j);
	return JOB_DONE;
}

static bool claim(atomic_uint *next, uint32_t n, uint32_t *unit)
{
	if (atomic_load_explicit(next, memory_order_relaxed) >= n)
		return false;
	*unit = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
	return *unit < n;
}

static void merge(struct job *j, const struct runner *by, uint32_t g, uint32_t to, uint32_t unit)
{
	if (to == unit || !alive(j))
		return;
	note(j, by, ENGINE_CLOSE, false);
	j->ops->merge(j, g, to, unit);
	note(j, by, ENGINE_CLOSE, true);
}

// Merges what can be merged of a unit's chain now that it is done, unless somebody is at it, who will see it. True: that was all of the chain;
// once.
static bool merge_chain(struct job *j, struct group *group, uint32_t g, uint32_t unit, const struct runner *by)
{
	uint32_t chain = 0, begin, at;
	while (unit >= chain_begin(group->main_n, chain + 1))
		chain++;
	const uint32_t first = chain_begin(group->main_n, chain), n = chain_begin(group->main_n, chain + 1) - first,
		       bit = 1u << chain;
	atomic_store(&group->done[unit], 1);
	do {
		if (atomic_fetch_or(&group->merging, bit) & bit) // they look again after they have ended (below)
			return false;
		begin = at = group->merged[chain];
		for (; at < n && atomic_load(&group->done[first + at]); at++)
			merge(j, by, g, first, first + at);
		group->merged[chain] = at;
		atomic_fetch_and(&group->merging, ~bit);
		if (at == n)
			return begin < n;
	} while (atomic_load(&group->done[first + at]));
	return false;
}

// True: all of the group is merged, into its first unit's result; once.
static bool merge_done(struct job *j, struct group *group, uint32_t g, uint32_t unit, const struct runner *by)
{
	const uint32_t n = chains(group->main_n);
	if (!merge_chain(j, group, g, unit, by) || atomic_fetch_add_explicit(&group->main_done, 1, memory_order_acq_rel) + 1 < n)
		return false;
	for (uint32_t chain = 1; chain < n; chain++)
		merge(j, by, g, 0, chain_begin(group->main_n, chain));
	return true;
}

// Of the sections from `from` on.
static bool claim_main(struct group *group, uint32_t from, uint32_t *unit)
{
	uint32_t n = group->main_n;
	if (atomic_load_explicit(&group->main_next, memory_order_relaxed) >= n)
		return false;
	for (uint32_t s = from; s < sections(n); s++) {
		uint32_t first = section_begin(n, s);
		if (!claim(&group->section[s], section_begin(n, s + 1) - first, unit))
			continue;
		*unit += first;
		atomic_fetch_add_explicit(&group->main_next, 1, memory_order_relaxed);
		return true;
	}
	return false;
}

static enum job_state run_group(struct job *j, struct round *r, uint32_t g, uint32_t section, const struct runner *by)
{
	struct group *group = &r->group[g];
	uint32_t unit;
	if (claim(&group->pre_next, group->pre_n, &unit)) {
		run_unit(j, by, ENGINE_PRE, j->ops->pre, g, unit);
		if (atomic_fetch_add_explicit(&group->pre_done, 1, memory_order_acq_rel) + 1 < group->pre_n)
			return JOB_RAN;
		run_whole(j, by, ENGINE_TURN, j->ops->turn, g);
		if (!group->main_n)
			return close_group(j, r, g, by);
		atomic_store_explicit(&group->open, 1, memory_order_release);
		return JOB_MORE;
	}
	if (!atomic_load_explicit(&group->open, memory_order_acquire) || !claim_main(group, section, &unit))
		return JOB_IDLE;
	run_unit(j, by, ENGINE_MAIN, j->ops->main, g, unit);
	if (group->done ? merge_done(j, group, g, unit, by)
	                : atomic_fetch_add_explicit(&group->main_done, 1, memory_order_acq_rel) + 1 == group->main_n)
		return close_group(j, r, g, by);
	return JOB_RAN;
}

static enum job_state run_at_once(struct job *j)
{
	if (atomic_exchange(&j->taken, true))
		return JOB_IDLE;
	if (j->ops && j->ops->attempt(j) == MPIG_EAGAIN) {
		atomic_store(&j->taken, false);
		return JOB_IDLE;
	}
	complete(j);
	return JOB_DONE;
}

enum job_state job_run(struct job *j, uint32_t worker, uint32_t workers, struct engine_scratch *scratch)
{
	if (!j->ops || j->ops->attempt)
		return run_at_once(j);
	struct round *r = atomic_load_explicit(&j->round, memory_order_acquire);
	const struct runner by = {.worker = worker, .scratch = scratch};
	struct place start = {0};
	if (workers)
		start = place_of(worker % workers, workers, r->group_count, r->group[0].main_n);
	if (!j->read_ahead)
		start.section = 0;
	for (uint32_t i = 0; i < r->group_count + (start.section > 0); i++) { // and to the beginning of the first one
		enum job_state state = run_group(j, r, (start.group + i) % r->group_count, i ? 0 : start.section, &by);
		if (state != JOB_IDLE)
			return state;
	}
	return JOB_IDLE;
}

uint32_t job_parallelism(const struct job *j)
{
	if (!j->ops || j->ops->attempt)
		return 1;
	struct round *r = atomic_load_explicit(&j->round, memory_order_acquire);
	uint64_t left = 0;
	for (uint32_t g = 0; g < r->group_count; g++) {
		const struct group *group = &r->group[g];
		uint32_t pre = atomic_load_explicit(&group->pre_next, memory_order_relaxed);
		uint32_t main = atomic_load_explicit(&group->main_next, memory_order_relaxed);
		if (pre < group->pre_n)
			left += group->pre_n - pre;
		else if (atomic_load_explicit(&group->open, memory_order_relaxed) && main < group->main_n)
			left += group->main_n - main;
	}
	return left > UINT32_MAX ? UINT32_MAX : (uint32_t)left;
}

const struct engine_result *job_result(const struct job *j)
{
	return &j->result;
}

void job_destroy(struct job *j)
{
	if (!j)
		return;
	if (j->ops && j->ops->release)
		j->ops->release(j);
	for (struct round *r = atomic_load(&j->round), *older; r; r = older) {
		older = r->older;
		round_free(j, r);
	}
	memory_put(&j->engine->memory, j->memory);
	if (j->request.context)
		context_unref(j->request.context);
	memory_put(&j->engine->jobs, j);
}
