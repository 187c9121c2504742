// A request's way through a worker: entry -> check -> job -> task -> completion.
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/base/probe.h"
#include "daemon/server/recording.h"
#include "daemon/server/stats.h"
#include "daemon/server/worker.h"
#include "shm/status.h"

#define ENTRIES_PER_VISIT 16u
#define UNITS_PER_VISIT 4u // of one task, before the worker looks at its queues again
#define PATIENCE 64u       // turns, some microseconds, until a worker looks again at a task that had nothing for it

static struct log_limit refused_limit = LOG_LIMIT_INIT, failed_limit = LOG_LIMIT_INIT, waiting_limit = LOG_LIMIT_INIT;

// ---- answers ---------------------------------------------------------------------------------------------------------
static void answer_now(struct worker *w, struct queue *q, const struct submission *s, int status)
{
	struct mpig_cqe cqe = {.user_data = s->entry.user_data,
	                       .status = status,
	                       .slot = s->entry.slot,
	                       .sequence = s->sequence,
	                       .service_ns = mono_ns() - s->taken_ns};
	PROBE5(done, q->id, s->sequence, s->entry.op, cqe.status, cqe.service_ns);
	stats_count(w->stats, &s->entry, &cqe, q->place, 0);
	if (status != MPIG_OK)
		log_limited(&refused_limit, LOG_LEVEL_DEBUG, "queue %u: entry %llu (operation %u, handle %u) refused: %s", q->id,
		            (unsigned long long)s->sequence, s->entry.op, s->entry.handle, mpig_status_text(status));
	queue_complete(q, &cqe, NULL);
}

// A user has at most as many requests in progress as there is room for others: half of all if alone, and whoever comes next finds room. Two workers
// that look at the same time take one too many.
static struct task *take_task(struct worker *w, struct queue *q)
{
	if (q->tasks && atomic_load_explicit(q->tasks, memory_order_relaxed) >= task_room(w->all->tasks))
		return NULL;
	struct task *t = task_alloc(w->all->tasks);
	if (t && q->tasks && atomic_fetch_add_explicit(q->tasks, 1, memory_order_relaxed) == 0)
		atomic_fetch_add_explicit(&w->all->tasks->users, 1, memory_order_relaxed);
	return t;
}

static void give_task(struct worker *w, struct queue *q, struct task *t)
{
	if (q->tasks && atomic_fetch_sub_explicit(q->tasks, 1, memory_order_relaxed) == 1)
		atomic_fetch_sub_explicit(&w->all->tasks->users, 1, memory_order_relaxed);
	task_free(w->all->tasks, t);
}

static void destroy_task(struct worker *w, struct task *t)
{
	struct queue *q = t->queue;
	job_destroy(t->job);
	binding_put(t->binding);
	give_task(w, q, t);
	atomic_fetch_sub_explicit(&q->in_flight, 1, memory_order_release); // last: the queue may go now
}

// The job is done: its effects are complete before the client hears of it, and so is its claim on the lease.
static void finish(struct worker *w, struct task *t)
{
	const struct engine_result *r = job_result(t->job);
	struct mpig_cqe cqe = {
		.user_data = t->entry.user_data,
		.status = r->status,
		.slot = t->entry.slot,
		.committed = r->committed,
		.rows_read = r->rows_read,
		.bytes_read = r->bytes_read,
		.service_ns = mono_ns() - t->taken_ns,
		.signature_version = r->signature_version,
		.units = r->units,
		.sequence = t->sequence,
	};
	PROBE5(done, t->queue->id, t->sequence, t->entry.op, cqe.status, cqe.service_ns);
	stats_count(w->stats, &t->entry, &cqe, t->queue->place, t->binding->place);
	if (r->status != MPIG_OK)
		log_limited(&failed_limit, LOG_LEVEL_DEBUG, "queue %u: entry %llu (operation %u, handle %u): %s: %s",
		            t->queue->id, (unsigned long long)t->sequence, t->entry.op, t->entry.handle,
		            mpig_status_text(r->status), r->why);
	if (recordings_any(w->all->options.recordings)) // before its client can ask again: they stand in the order of asking
		recordings_note(w->all->options.recordings, t, &cqe);
	if (t->writes)
		binding_end_write(t->binding);
	binding_done(t->binding);
	queue_complete(t->queue, &cqe, t);
	task_shut(w->all->tasks, t);
}

// ---- starting --------------------------------------------------------------------------------------------------------
static bool start_job(struct worker *w, struct queue *q, const struct submission *s, struct binding *b, struct task *t)
{
	uint8_t *slot = queue_slot(q, s->entry.slot);
	struct engine_request request = {
		.entry = s->entry,
		.slot = s->slot,
		.payload_in = slot,
		.payload_out = slot,
		.slot_bytes = slot ? q->geometry.slot_bytes : 0,
		.sequence = s->sequence,
		.context = b->context,
		.writer = b->holder != 0,
		.defaults = b->defaults,
	};
	t->job = job_create(w->all->options.engine, &request);
	if (!t->job)
		return false;
	atomic_store_explicit(&t->claimer, w->number, memory_order_relaxed);
	t->queue = q;
	t->binding = b;
	t->entry = s->entry;
	t->sequence = s->sequence;
	t->taken_ns = s->taken_ns;
	t->writes = engine_op_writes(s->entry.op);
	PROBE5(start, q->id, s->sequence, s->entry.op, context_id(b->context), w->number);
	uint32_t units = job_parallelism(t->job), others = task_open_count(w->all->tasks);
	t->first = !others;
	queue_fly(q, t);
	task_publish(w->all->tasks, t, units);
	if (units + others > 1)
		workers_wake_helpers(w->all, units + others - 1);
	return true;
}

// Within the limits on requests a second; an entry is counted once, however often it is tried.
static bool admit(struct queue *q, struct submission *s)
{
	struct rate *user = q->rate[0], *group = q->rate[1];
	if (s->admitted || !user || !group)
		return true;
	uint64_t now = mono_ns(), took, took_group;
	bool user_may = rate_take(user, now, &took);
	s->admitted = user_may && rate_take(group, now, &took_group);
	if (user_may && !s->admitted)
		rate_give(user, took);
	if (!s->admitted)
		log_limited(&waiting_limit, LOG_LEVEL_INFO,
		            "limits.requests_per_%s: requests of uid %u, gid %u wait for their turn", user_may ? "gid" : "uid",
		            q->uid, q->gid);
	return s->admitted;
}

// False: not now; the entry stays the queue's next one.
static bool start(struct worker *w, struct queue *q, struct submission *s)
{
	int status = atomic_load_explicit(&w->all->draining, memory_order_relaxed) ? MPIG_ESHUTDOWN : queue_check(q, s);
	if (status == MPIG_OK && !admit(q, s))
		return false;
	if (status != MPIG_OK || s->entry.op == MPIG_OP_NOP) {
		answer_now(w, q, s, status);
		return true;
	}
	struct binding *b = session_get(q->session, s->entry.handle);
	if (!b) {
		answer_now(w, q, s, MPIG_ENOENT);
		return true;
	}
	bool writes = engine_op_writes(s->entry.op), writing = false, answered = false;
	struct task *t = NULL;
	if (!queue_conflicts(q, b->context, writes) && (!writes || (writing = binding_begin_write(b))) &&
	    (t = take_task(w, q)) != NULL) {
		if (start_job(w, q, s, b, t))
			return true;
		answered = true;
	}
	if (t)
		give_task(w, q, t);
	if (writing)
		binding_end_write(b);
	binding_done(b);
	binding_put(b);
	if (answered)
		answer_now(w, q, s, MPIG_ENOMEM);
	return answered;
}

uint32_t serve_queue(struct worker *w, struct queue *q)
{
	if (!queue_pending(q) || !queue_claim(q, w->number))
		return 0;
	worker_set_state(w, MPIG_WORKER_BUSY);
	uint32_t moved = 0;
	struct submission *s;
	while (moved < ENTRIES_PER_VISIT && (s = queue_next(q)) != NULL && start(w, q, s)) {
		queue_next_done(q);
		moved++;
	}
	bool broken = atomic_load_explicit(&q->broken, memory_order_relaxed);
	queue_release(q);
	if (broken && atomic_load_explicit(&q->state, memory_order_relaxed) == QUEUE_OPEN)
		eventfd_write(w->all->options.control_fd, 1);
	return moved;
}

// ---- helping ---------------------------------------------------------------------------------------------------------
static void leave(struct worker *w, struct task *t)
{
	if (task_leave(t))
		destroy_task(w, t);
}

// Notes what the request says about the next one, once; true: this call did, and something is likely.
static bool learn(struct worker *w, struct task *t, struct engine_foresight *next)
{
	if (job_learn(t->job, next))
		stats_set(&w->stats->foreseen, w->stats->foreseen + 1);
	return next->some;
}

// With nothing else to do. Others look at its queues meanwhile.
static void list_ahead(struct worker *w, struct context *context, const struct engine_foresight *next)
{
	worker_set_state(w, MPIG_WORKER_BUSY);
	engine_list_ahead(w->all->options.engine, context, next);
}

void worker_foresee(struct worker *w, struct queue *q)
{
	struct binding *b = session_get(q->session, w->answered.handle); // as if its client had asked
	if (!b)
		return;
	binding_done(b); // it keeps no lease
	list_ahead(w, b->context, &w->answered.next);
	binding_put(b);
}

// Counted in. Runs a few units of one task.
static uint32_t run_task(struct worker *w, struct task *t)
{
	uint32_t ran = 0;
	enum job_state state = JOB_IDLE;
	worker_set_state(w, MPIG_WORKER_BUSY);
	while (ran < UNITS_PER_VISIT) {
		state = job_run(t->job, w->number, w->all->options.count, w->scratch);
		if (state != JOB_RAN && state != JOB_MORE)
			break;
		ran++;
		if (state == JOB_RAN)
			continue;
		uint32_t more = job_parallelism(t->job); // a later phase may have more units than the first
		task_more(t, more);
		if (more > 1)
			workers_wake_helpers(w->all, more - 1);
	}
	if (ran && atomic_load_explicit(&t->claimer, memory_order_relaxed) != w->number)
		stats_set(&w->stats->steals, w->stats->steals + ran);
	struct queue *q = state == JOB_DONE ? t->queue : NULL;
	if (state == JOB_DONE) {
		ran++;
		finish(w, t);
	}
	stats_set(&w->stats->units, w->stats->units + ran);
	if (q && queue_pending(q)) // an entry may have waited for this request; the queue stays as long as the task does
		serve_queue(w, q);
	struct engine_foresight next;
	if (q && learn(w, t, &next) && t->first) // nobody waits for what a list takes: the next request may come at once
		w->answered = (struct answered){.queue = q->id, .handle = t->entry.handle, .next = next};
	else if (!q && !ran && t->first && task_open_count(w->all->tasks) == 1 && learn(w, t, &next))
		list_ahead(w, t->binding->context, &next); // others are at the last units
	leave(w, t);
	return ran;
}

// Whether to enter an open task now. One that had nothing for this worker is left alone until there is news of it, or for a while: what
// a job waits for may come without news (engine.h), and who was wanted may be busy with another. Who has been woken was called in their place.
static bool worth_entering(struct worker *w, const struct task *t, struct look *l, bool woken)
{
	uint32_t news = atomic_load(&t->news);
	if (l->news == news)
		return (int32_t)(w->looks - l->due) >= 0;
	*l = (struct look){.news = news, .due = w->looks + PATIENCE};
	return woken || task_wants(t, w->number, w->all->options.count);
}

// How often a worker comes back to a task before it goes on to the next: as many requests as another user has for each of this one's, so that who
// asks for more at a time gets no more of the workers' time. Counted in; the numbers need not fit one another.
static uint32_t turns_of(const struct worker *w, const struct task *t)
{
	uint32_t users = atomic_load_explicit(&w->all->tasks->users, memory_order_relaxed);
	uint32_t own = t->queue->tasks ? atomic_load_explicit(t->queue->tasks, memory_order_relaxed) : 0;
	uint32_t open = users > 1 && own ? task_open_count(w->all->tasks) : 0;
	return open > own ? (open - own) / (users - 1) / own : 0;
}

uint32_t serve_tasks(struct worker *w)
{
	bool woken = w->woken; // for a task that was open before
	w->woken = false;
	w->looks++;
	for (uint32_t looked = 0, at; (at = task_find(w->all->tasks, &w->cursor, &looked)) < TASKS;) {
		struct task *t = &w->all->tasks->task[at];
		struct look *l = &w->look[at];
		if (!worth_entering(w, t, l, woken) || !task_enter(t))
			continue;
		l->due = w->looks + PATIENCE;
		if (w->again != at)
			w->turns = turns_of(w, t);
		uint32_t ran = run_task(w, t);
		if (ran) {
			l->due = w->looks;
			w->again = w->turns > 1 ? at : TASKS;
			w->cursor = w->turns > 1 ? at : w->cursor;
			w->turns -= w->turns > 1;
			return ran;
		}
	}
	return 0;
}
