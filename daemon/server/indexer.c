#include "daemon/server/indexer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/keep.h"
#include "daemon/engine/reindex.h"

#define LOOK_NS UINT64_C(60000000000)
#define WAIT_NS UINT64_C(2000000) // while a client is between an append and its commit
#define PATIENCE 30000u           // of these: a minute
#define BELOW_WORKERS 10          // nice

struct job {
	struct kept kept;
	struct context *context; // a reference until it is done
	struct indexer_view view;
	// the thread's
	struct engine_reindex *work; // while it runs
	uint64_t again_ns;           // it waits for a writer, until then
	uint32_t waited;             // how often
};

struct indexer {
	pthread_mutex_t lock; // of the jobs and the drift
	pthread_cond_t wake;
	pthread_t thread;
	struct indexer_options options;
	struct engine_scratch *scratch;
	uint64_t first, last; // numbers: before the first job, and of the last
	uint64_t looked_ns;   // CLOCK_REALTIME
	bool stop;
	struct job job[INDEXER_JOBS];
};

static bool stopping(struct indexer *x)
{
	pthread_mutex_lock(&x->lock);
	bool stop = x->stop;
	pthread_mutex_unlock(&x->lock);
	return stop;
}

static void pause_ns(struct indexer *x, uint64_t ns)
{
	struct timespec until = timespec_of(mono_ns() + ns);
	pthread_mutex_lock(&x->lock);
	if (!x->stop)
		pthread_cond_timedwait(&x->wake, &x->lock, &until);
	pthread_mutex_unlock(&x->lock);
}

static void progress(struct indexer *x, struct job *j)
{
	uint64_t done, total;
	engine_reindex_progress(j->work, &done, &total);
	pthread_mutex_lock(&x->lock);
	j->view.done = done;
	j->view.total = total;
	pthread_mutex_unlock(&x->lock);
}

// Until it is done, or has to wait for a writer: REINDEX_WAIT.
static int advance(struct indexer *x, struct job *j, char *why)
{
	int status = j->work ? 0 : engine_reindex_begin(x->options.engine, j->context, x->scratch, &j->work, why);
	if (status)
		return status;
	while ((status = engine_reindex_step(j->work, x->scratch, why)) == REINDEX_MORE) {
		progress(x, j);
		if (stopping(x)) {
			snprintf(why, MPIG_TEXT_BYTES, "the daemon stops");
			status = MPIG_ESHUTDOWN;
			break;
		}
	}
	if (status == REINDEX_WAIT && ++j->waited > PATIENCE) {
		snprintf(why, MPIG_TEXT_BYTES,
		         "rows beyond its committed tokens were there for a minute: commit or truncate them");
		status = MPIG_EBUSY;
	}
	if (status == REINDEX_WAIT) {
		j->again_ns = mono_ns() + WAIT_NS;
		return status;
	}
	engine_reindex_end(j->work);
	j->work = NULL;
	return status;
}

// ---- by itself -------------------------------------------------------------------------------------------------------

static void tell(const struct indexer *x, bool failed, const char *text)
{
	if (x->options.tell)
		x->options.tell(x->options.arg, failed, text);
}

// Whether somebody has asked for something.
static bool asked(struct indexer *x)
{
	bool any = false;
	pthread_mutex_lock(&x->lock);
	for (uint32_t i = 0; i < INDEXER_JOBS; i++)
		any |= x->job[i].kept.number && x->job[i].view.state != INDEXER_DONE;
	pthread_mutex_unlock(&x->lock);
	return any;
}

static int index_by_itself(struct indexer *x, struct context *c, char *why)
{
	struct job own = {.context = c};
	int status;
	while ((status = advance(x, &own, why)) == REINDEX_WAIT) {
		bool stop = stopping(x);
		if (stop || asked(x)) { // who waits for rows to be committed keeps nobody waiting
			engine_reindex_end(own.work);
			snprintf(why, MPIG_TEXT_BYTES, "%s",
			         stop ? "the daemon stops" : "rows beyond its committed tokens were there: later");
			return stop ? MPIG_ESHUTDOWN : MPIG_EBUSY;
		}
		pause_ns(x, WAIT_NS);
	}
	return status;
}

static void look_at(struct indexer *x, struct context *c, const char *name, double most)
{
	char why[MPIG_TEXT_BYTES] = "", text[2 * MPIG_TEXT_BYTES];
	double drift = 0;
	int status = engine_drift(x->options.engine, c, x->scratch, &drift, why);
	if (status || drift <= 1 + most)
		return;
	status = index_by_itself(x, c, why);
	if (status)
		snprintf(text, sizeof text, "context '%s' is not indexed again, though its index has drifted (%.2f): %s", name,
		         drift, why);
	else
		snprintf(text, sizeof text, "context '%s' is indexed again: its index had drifted (%.2f)", name, drift);
	if (status != MPIG_ENOENT && status != MPIG_ESHUTDOWN)
		tell(x, status != 0, text);
}

// Contexts that were used since the last look.
static void look_around(struct indexer *x, double most)
{
	static const struct credentials root;
	static const uint8_t any[64];
	struct mpig_wire_context *page = calloc(MPIG_LIST_PAGE, sizeof *page);
	uint64_t cursor = 0, since = x->looked_ns;
	char why[MPIG_TEXT_BYTES];
	x->looked_ns = real_ns();
	do {
		uint32_t n = page ? store_context_list(x->options.store, &root, &cursor, page, MPIG_LIST_PAGE) : 0;
		for (uint32_t i = 0; i < n && !stopping(x); i++) {
			struct context *c;
			if (page[i].used_ns < since || !page[i].signature_version ||
			    store_context_open(x->options.store, &root, page[i].name, any, &c, why))
				continue;
			look_at(x, c, page[i].name, most);
			context_unref(c);
		}
	} while (page && cursor && !stopping(x));
	free(page);
}

// ---- the thread ------------------------------------------------------------------------------------------------------

static bool is_running(const struct indexer *x, const struct context *c)
{
	for (uint32_t i = 0; i < INDEXER_JOBS; i++)
		if (x->job[i].kept.number && x->job[i].view.state == INDEXER_RUNNING && x->job[i].context == c)
			return true;
	return false;
}

// The first that need not wait for a writer; *soon: when one that does wants to be looked at again.
static struct job *next_job(struct indexer *x, uint64_t now, uint64_t *soon)
{
	struct job *first = NULL;
	for (uint32_t i = 0; i < INDEXER_JOBS; i++) {
		struct job *j = &x->job[i];
		bool waits = j->kept.number && j->view.state == INDEXER_WAITING,
		     runs = j->kept.number && j->view.state == INDEXER_RUNNING;
		if (runs && j->again_ns > now)
			*soon = j->again_ns < *soon ? j->again_ns : *soon;
		else if ((runs || (waits && !is_running(x, j->context))) && (!first || j->kept.number < first->kept.number))
			first = j;
	}
	return first;
}

static void run_job(struct indexer *x, struct job *j)
{
	char why[MPIG_TEXT_BYTES] = "";
	struct context *c = j->context;
	j->view.state = INDEXER_RUNNING;
	pthread_mutex_unlock(&x->lock);
	int status = advance(x, j, why);
	uint32_t version = context_signature_version(c);
	if (status != REINDEX_WAIT)
		context_unref(c);
	pthread_mutex_lock(&x->lock);
	if (status == REINDEX_WAIT)
		return;
	j->context = NULL;
	j->view.state = INDEXER_DONE;
	j->kept.done = true;
	j->view.status = status;
	j->view.signature_version = version;
	if (!status)
		j->view.done = j->view.total;
	strcpy(j->view.why, why);
}

static void *run(void *arg)
{
	struct indexer *x = arg;
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), BELOW_WORKERS); // of this thread only
	uint64_t pause = x->options.look_ns ? x->options.look_ns : LOOK_NS, next = mono_ns() + pause;
	pthread_mutex_lock(&x->lock);
	while (!x->stop) {
		uint64_t now = mono_ns(), soon = UINT64_MAX;
		struct job *j = next_job(x, now, &soon);
		double drift = x->options.drift;
		if (j) {
			run_job(x, j);
		} else if (drift > 0 && now >= next) {
			pthread_mutex_unlock(&x->lock);
			look_around(x, drift);
			next = mono_ns() + pause;
			pthread_mutex_lock(&x->lock);
		} else if (drift > 0 || soon < UINT64_MAX) {
			struct timespec until = timespec_of(drift > 0 && next < soon ? next : soon);
			pthread_cond_timedwait(&x->wake, &x->lock, &until);
		} else {
			pthread_cond_wait(&x->wake, &x->lock);
		}
	}
	pthread_mutex_unlock(&x->lock);
	return NULL;
}

static void destroy(struct indexer *x)
{
	for (uint32_t i = 0; i < INDEXER_JOBS; i++) {
		engine_reindex_end(x->job[i].work);
		if (x->job[i].context)
			context_unref(x->job[i].context);
	}
	engine_scratch_destroy(x->scratch);
	pthread_cond_destroy(&x->wake);
	pthread_mutex_destroy(&x->lock);
	free(x);
}

int indexer_start(const struct indexer_options *options, struct indexer **out)
{
	struct indexer *x = calloc(1, sizeof *x);
	if (!x)
		return MPIG_ENOMEM;
	x->options = *options;
	x->first = x->last = real_ns(); // numbers are no other daemon's
	pthread_condattr_t clock;
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->wake, &clock);
	pthread_condattr_destroy(&clock);
	x->scratch = engine_scratch_create();
	if (!x->scratch || pthread_create(&x->thread, NULL, run, x)) {
		destroy(x);
		return MPIG_ENOMEM;
	}
	pthread_setname_np(x->thread, "indexer");
	*out = x;
	return 0;
}

void indexer_set_drift(struct indexer *x, double drift)
{
	pthread_mutex_lock(&x->lock);
	x->options.drift = drift;
	pthread_cond_signal(&x->wake);
	pthread_mutex_unlock(&x->lock);
}

void indexer_stop(struct indexer *x)
{
	if (!x)
		return;
	pthread_mutex_lock(&x->lock);
	x->stop = true;
	pthread_cond_signal(&x->wake);
	pthread_mutex_unlock(&x->lock);
	pthread_join(x->thread, NULL);
	destroy(x);
}

// ---- asked for -------------------------------------------------------------------------------------------------------

int indexer_begin(struct indexer *x, uint32_t uid, struct context *c, uint64_t *number, char *why)
{
	struct job *place = NULL;
	uint32_t same = 0;
	pthread_mutex_lock(&x->lock);
	for (uint32_t i = 0; i < INDEXER_JOBS; i++) {
		struct job *j = &x->job[i];
		if (j->kept.number && j->view.state == INDEXER_WAITING && j->context == c && j->kept.uid == uid) {
			j->kept.asked++;
			*number = j->kept.number;
			pthread_mutex_unlock(&x->lock);
			return 0;
		}
		same += keep_rank(&j->kept, uid) == KEEP_RUNNING && j->kept.uid == uid;
		if (keep_takes(&j->kept, place ? &place->kept : NULL, uid))
			place = j;
	}
	bool begun = place && same < INDEXER_JOBS_PER_UID;
	if (begun) {
		context_ref(c);
		*place = (struct job){.kept = {.number = ++x->last, .uid = uid, .asked = 1}, .context = c};
		*number = place->kept.number;
		pthread_cond_signal(&x->wake);
	}
	pthread_mutex_unlock(&x->lock);
	if (!begun && same >= INDEXER_JOBS_PER_UID)
		snprintf(why, MPIG_TEXT_BYTES,
		         "%u contexts that you asked for wait to be indexed again, which is the most: try later", same);
	else if (!begun)
		snprintf(why, MPIG_TEXT_BYTES, "%u contexts wait to be indexed again: try later", INDEXER_JOBS);
	return begun ? 0 : MPIG_ELIMIT;
}

int indexer_look(struct indexer *x, uint32_t uid, uint64_t number, struct indexer_view *view)
{
	pthread_mutex_lock(&x->lock);
	int status = number > x->first && number <= x->last ? MPIG_ERETRY : MPIG_ENOENT;
	for (uint32_t i = 0; i < INDEXER_JOBS && number; i++) {
		struct job *j = &x->job[i];
		if (j->kept.number != number)
			continue;
		status = j->kept.uid == uid ? 0 : MPIG_ENOENT;
		if (status)
			break;
		*view = j->view;
		j->kept.told += j->kept.done;
	}
	pthread_mutex_unlock(&x->lock);
	return status;
}
