#include "tests/server/fake_engine.h"

#include <sched.h>
#include <stdlib.h>

#include "daemon/engine/engine.h"

atomic_uint fake_jobs, fake_contexts, fake_learned, fake_listed, fake_to_read, fake_reads, fake_looks[FAKE_WORKERS], fake_units;

struct job {
	struct context *context;
	uint64_t seed;
	bool writes;
	uint32_t units, first; // first: units of a first phase; the others open when those are done
	atomic_uint next, done;
	atomic_bool learned;
	struct engine_result result;
};

struct engine_scratch {
	int unused;
};

struct context *fake_context(void)
{
	struct context *c = calloc(1, sizeof *c);
	if (!c)
		abort();
	atomic_init(&c->references, 1);
	atomic_fetch_add(&fake_contexts, 1);
	return c;
}

void context_unref(struct context *c)
{
	if (atomic_fetch_sub(&c->references, 1) != 1)
		return;
	atomic_fetch_sub(&fake_contexts, 1);
	free(c);
}

uint64_t context_id(const struct context *c)
{
	return (uint64_t)(uintptr_t)c;
}

void context_release(struct store *s, struct context *c, uint64_t holder)
{
	(void)s;
	atomic_store(&c->writers_at_release, atomic_load(&c->writers));
	atomic_store(&c->released_holder, holder);
}

struct engine_scratch *engine_scratch_create(void)
{
	return calloc(1, sizeof(struct engine_scratch));
}

void engine_scratch_destroy(struct engine_scratch *scratch)
{
	free(scratch);
}

bool engine_op_writes(uint8_t op)
{
	return op == MPIG_OP_APPEND || op == MPIG_OP_COMMIT || op == MPIG_OP_TRUNCATE;
}

struct job *job_create(struct engine *e, const struct engine_request *r)
{
	(void)e;
	struct job *j = calloc(1, sizeof *j);
	if (!j)
		return NULL;
	atomic_fetch_add(&fake_jobs, 1);
	j->context = r->context;
	j->seed = r->entry.user_data;
	j->writes = engine_op_writes(r->entry.op);
	j->units = r->entry.count ? r->entry.count : 1;
	j->first = r->entry.layer < j->units ? r->entry.layer : 0;
	j->result.units = j->units;
	j->result.committed = r->sequence;
	j->result.rows_read = j->units;
	if (j->writes && !r->writer) {
		j->result.status = MPIG_ELEASE;
		j->units = 1;
		return j;
	}
	if (j->writes) {
		if (atomic_fetch_add(&j->context->writers, 1) || atomic_load(&j->context->readers))
			atomic_fetch_add(&j->context->overlaps, 1);
	} else {
		uint32_t readers = atomic_fetch_add(&j->context->readers, 1) + 1;
		if (readers > atomic_load(&j->context->most_readers))
			atomic_store(&j->context->most_readers, readers);
		if (atomic_load(&j->context->writers))
			atomic_fetch_add(&j->context->overlaps, 1);
	}
	return j;
}

static void complete(struct job *j)
{
	if (j->result.status)
		return;
	if (j->writes) {
		uint32_t at = atomic_load(&j->context->logged);
		j->context->log[at % FAKE_LOG] = j->seed;
		atomic_store(&j->context->logged, at + 1);
		atomic_fetch_sub(&j->context->writers, 1);
	} else {
		atomic_fetch_sub(&j->context->readers, 1);
	}
}

static uint32_t opened(const struct job *j)
{
	return atomic_load(&j->done) < j->first ? j->first : j->units;
}

enum job_state job_run(struct job *j, uint32_t worker, uint32_t workers, struct engine_scratch *scratch)
{
	(void)workers, (void)scratch;
	atomic_fetch_add(&fake_looks[worker % FAKE_WORKERS], 1);
	while (atomic_load(&j->context->hold) == 2)
		sched_yield();
	if (atomic_load(&j->context->hold)) {
		sched_yield();
		return JOB_IDLE;
	}
	uint32_t unit = atomic_load(&j->next);
	do
		if (unit >= opened(j))
			return JOB_IDLE;
	while (!atomic_compare_exchange_weak(&j->next, &unit, unit + 1));
	atomic_fetch_add(&fake_units, 1);
	if (unit % 3 == 1)
		sched_yield();
	uint32_t done = atomic_fetch_add(&j->done, 1) + 1;
	if (done < j->units)
		return done == j->first ? JOB_MORE : JOB_RAN;
	j->result.bytes_read = atomic_load(&fake_units);
	complete(j);
	return JOB_DONE;
}

uint32_t job_parallelism(const struct job *j)
{
	uint32_t next = atomic_load(&j->next), end = opened(j);
	return next < end ? end - next : 0;
}

const struct engine_result *job_result(const struct job *j)
{
	return &j->result;
}

bool job_learn(struct job *j, struct engine_foresight *next)
{
	next->some = false;
	if (j->writes || atomic_load(&j->next) < j->units || atomic_exchange(&j->learned, true))
		return false;
	atomic_fetch_add(&fake_learned, 1);
	*next = (struct engine_foresight){.some = true, .list = j->seed};
	return j->units > 1;
}

void engine_list_ahead(struct engine *e, struct context *c, const struct engine_foresight *next)
{
	(void)e;
	if (!next->some || !atomic_load(&c->references))
		abort();
	atomic_fetch_add(&fake_listed, 1);
}

uint32_t engine_read_ahead(struct engine *e, uint32_t worker)
{
	(void)e, (void)worker;
	uint32_t left = atomic_load(&fake_to_read);
	while (left && !atomic_compare_exchange_weak(&fake_to_read, &left, left - 1))
		continue;
	atomic_fetch_add(&fake_reads, left > 0);
	return left ? 1 : 0;
}

void job_destroy(struct job *j)
{
	atomic_fetch_sub(&fake_jobs, 1);
	free(j);
}
