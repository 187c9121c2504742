#include "daemon/disk/job.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/keep.h"
#include "daemon/disk/private.h"
#include "daemon/store/pool.h"
#include "shm/status.h"

struct job {
	struct kept kept;
	enum disk_work work;
	enum disk_state state;
	struct credentials who;
	uint32_t *groups;
	char name[MPIG_NAME_BYTES];
	struct disk_progress progress;
	int status;
	struct disk_result result;
	struct disk_gc_options gc; // of DISK_GC
	struct disk_gc_result gc_result;
	char why[MPIG_TEXT_BYTES];
};

struct disk_jobs {
	pthread_mutex_t lock; // of everything but the running job's progress
	pthread_cond_t wake;
	pthread_t thread;
	struct disk *disk;
	struct store *store;
	struct pool *pool;
	struct disk_policy policy, next_policy; // the thread's; and what it is to become, under the lock
	struct disk_progress own;               // of what the policy saves
	atomic_bool hurry;                      // somebody waits for the thread, which is at work that nobody asked for
	uint64_t cursor, retry_ns;
	uint64_t first, last; // numbers: before the first job, and of the last
	bool stop, save_all;
	_Atomic uint64_t saves, loads, errors, evictions;
	struct job job[DISK_JOBS];
};

static void count(struct disk_jobs *jobs, enum disk_work work, int status)
{
	if (work != DISK_SAVE && work != DISK_LOAD)
		return;
	atomic_fetch_add(status == MPIG_OK ? work == DISK_SAVE ? &jobs->saves : &jobs->loads : &jobs->errors, 1);
}

void disk_jobs_counts(struct disk_jobs *jobs, struct disk_counts *counts)
{
	*counts = (struct disk_counts){.saves = atomic_load(&jobs->saves),
	                               .loads = atomic_load(&jobs->loads),
	                               .errors = atomic_load(&jobs->errors),
	                               .evictions = atomic_load(&jobs->evictions)};
	if (jobs->disk)
		disk_total(jobs->disk, &counts->contexts, &counts->bytes);
}

static struct job *first_waiting(struct disk_jobs *jobs)
{
	struct job *first = NULL;
	for (uint32_t i = 0; i < DISK_JOBS; i++) {
		struct job *j = &jobs->job[i];
		if (j->kept.number && j->state == DISK_WAITING && (!first || j->kept.number < first->kept.number))
			first = j;
	}
	return first;
}

__attribute__((format(printf, 3, 4))) static void tell(const struct disk_jobs *jobs, bool failed, const char *format, ...)
{
	char text[2 * MPIG_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (jobs->policy.tell)
		jobs->policy.tell(jobs->policy.arg, failed, text);
}

// Before anything else is done with what is on disk: it may be loaded with what is noted here.
static void note_policies(struct disk_jobs *jobs)
{
	struct changed_policy changed;
	char why[MPIG_TEXT_BYTES];
	while (store_next_changed_policy(jobs->store, &changed))
		if (jobs->disk && disk_note_policy(jobs->disk, &changed, why))
			tell(jobs, true, "policy and permissions of context '%s' are not on disk: %s", changed.name, why);
}

static int work(struct disk_jobs *jobs, struct job *j)
{
	note_policies(jobs);
	switch (j->work) {
	case DISK_SAVE:
		return disk_save(jobs->disk, jobs->store, &j->who, j->name, true, &j->progress, &j->result, j->why);
	case DISK_LOAD:
		return disk_load(jobs->disk, jobs->store, &j->who, j->name, &j->progress, &j->result, j->why);
	case DISK_CHECK:
		return disk_check(jobs->disk, jobs->store, &j->who, j->name, &j->progress, &j->result, j->why);
	case DISK_ERASE:
		return disk_erase(jobs->disk, jobs->store, &j->who, j->name, j->why);
	case DISK_GC:
		return disk_gc(jobs->disk, &j->gc, &j->gc_result, j->why);
	case DISK_WORKS:
		break;
	}
	return MPIG_EINVAL;
}

// ---- the policy ------------------------------------------------------------------------------------------------------

#define LOOK_NS UINT64_C(1000000000)
#define RETRY_NS UINT64_C(60000000000) // after a save that failed
#define PAUSE 4                        // times as long as the save before took: an open segment is written whole each time

// The next one that is not on disk. False: there was none.
static bool save_next(struct disk_jobs *jobs, bool stopping)
{
	static const struct credentials root;
	struct disk_result result;
	char name[MPIG_NAME_BYTES], why[MPIG_TEXT_BYTES];
	if (!store_next_unsaved(jobs->store, &jobs->policy.otherwise, stopping, &jobs->cursor, name)) {
		jobs->cursor = 0;
		return false;
	}
	uint64_t begin = mono_ns();
	int status = disk_save(jobs->disk, jobs->store, &root, name, false, &jobs->own, &result, why);
	jobs->retry_ns = mono_ns() + PAUSE * (mono_ns() - begin);
	if (status == MPIG_ENOENT || status == MPIG_ESHUTDOWN)
		return true;
	count(jobs, DISK_SAVE, status);
	if (status == MPIG_OK)
		return true;
	tell(jobs, true, "context '%s' is not saved: %s", name, why);
	jobs->retry_ns = mono_ns() + RETRY_NS;
	return true;
}

static void evict(struct disk_jobs *jobs)
{
	char name[MPIG_NAME_BYTES];
	double all = (double)pool_bytes(jobs->pool), most = jobs->policy.high * all, least = jobs->policy.low * all;
	if (jobs->policy.high >= 1 || (double)pool_used(jobs->pool) <= most)
		return;
	while ((double)pool_used(jobs->pool) > least && store_evict(jobs->store, name)) {
		atomic_fetch_add(&jobs->evictions, 1);
		tell(jobs, false, "context '%s' leaves memory: it is on disk", name);
	}
}

// Saved by the rule, or erased, as one asks for whose time is over. On failure it stays in memory, and is tried again later.
static void expire_on_disk(struct disk_jobs *jobs, const struct expiry *e)
{
	static const struct credentials root;
	struct disk_result result;
	struct disk_saved saved;
	char why[MPIG_TEXT_BYTES];
	int status = 0;
	if (e->what == EXPIRED_SAVE) {
		status = disk_save(jobs->disk, jobs->store, &root, e->name, false, &jobs->own, &result, why);
		count(jobs, DISK_SAVE, status);
	} else if (disk_find(jobs->disk, e->name, &saved) && saved.created_ns == e->created_ns && saved.identity.uid == e->uid) {
		status = disk_erase(jobs->disk, jobs->store, &root, e->name, why);
	}
	if (!status && e->what == EXPIRED_ERASE && store_drop_expired(jobs->store, e))
		tell(jobs, false, "context '%s' is erased: unused for its time", e->name);
	if (!status || status == MPIG_ENOENT || status == MPIG_ESHUTDOWN)
		return;
	tell(jobs, true, "context '%s' stays in memory though its time is over: it cannot be %s: %s", e->name,
	     e->what == EXPIRED_SAVE ? "saved" : "erased", why);
	store_not_expired_before(jobs->store, e->name, real_ns() + RETRY_NS);
}

static void expire(struct disk_jobs *jobs)
{
	struct expiry e;
	store_note_clock(jobs->store, clock_ns(CLOCK_BOOTTIME)); // which goes on while the machine sleeps
	store_note_uses(jobs->store);
	while (!atomic_load(&jobs->own.cancel) && store_next_expired(jobs->store, &jobs->policy.otherwise, jobs->disk, &e)) {
		if (e.what == EXPIRED_LEFT)
			tell(jobs, false, "context '%s' leaves memory, unused for its time: %s", e.name,
			     e.lost ? "it was not to be kept" : "it is on disk");
		else
			expire_on_disk(jobs, &e);
	}
	if (jobs->disk)
		disk_expire(jobs->disk, jobs->store, real_ns(), jobs->policy.tell, jobs->policy.arg);
}

// The token ids of what is on disk, a few contexts at a time: the first in line must not wait for all of them. True: there are more.
static bool place_some(struct disk_jobs *jobs)
{
	enum { SOME = 16 };
	struct unplaced of;
	char why[MPIG_TEXT_BYTES];
	uint32_t n = 0;
	while (n < SOME && !atomic_load(&jobs->hurry) && store_next_unplaced(jobs->store, &of)) {
		int status = disk_place(jobs->disk, jobs->store, &of, &jobs->hurry, &jobs->own.cancel, why);
		if (status && status != MPIG_ENOENT && status != MPIG_ESHUTDOWN)
			tell(jobs, true, "context '%s' on disk cannot be found by its tokens: %s", of.name, why);
		n++;
	}
	return n == SOME || atomic_load(&jobs->hurry);
}

// True: something was saved, and there may be more.
static bool own_work(struct disk_jobs *jobs)
{
	note_policies(jobs);
	expire(jobs);
	if (!jobs->disk)
		return false;
	evict(jobs);
	return mono_ns() >= jobs->retry_ns && save_next(jobs, false);
}

static void wait_for_work(struct disk_jobs *jobs)
{
	atomic_store(&jobs->hurry, false);
	pthread_mutex_unlock(&jobs->lock);
	bool more = own_work(jobs), places = jobs->disk && place_some(jobs);
	pthread_mutex_lock(&jobs->lock);
	if (places)
		return;
	uint64_t next = mono_ns() + LOOK_NS;
	struct timespec until = timespec_of(more && jobs->retry_ns < next ? jobs->retry_ns : next);
	if (!jobs->stop && !first_waiting(jobs))
		pthread_cond_timedwait(&jobs->wake, &jobs->lock, &until);
}

static void take_policy(struct disk_jobs *jobs)
{
	jobs->policy = jobs->next_policy;
	if (jobs->disk)
		disk_set_rate(jobs->disk, jobs->policy.rate);
}

static void *run(void *arg)
{
	struct disk_jobs *jobs = arg;
	if (jobs->disk)
		disk_recognise(jobs->disk, jobs->store, jobs->policy.tell, jobs->policy.arg);
	pthread_mutex_lock(&jobs->lock);
	while (!jobs->stop) {
		take_policy(jobs);
		struct job *j = first_waiting(jobs);
		if (!j) {
			wait_for_work(jobs);
			continue;
		}
		j->state = DISK_RUNNING;
		pthread_mutex_unlock(&jobs->lock);
		int status = work(jobs, j);
		count(jobs, j->work, status);
		pthread_mutex_lock(&jobs->lock);
		j->status = status;
		j->state = DISK_DONE;
		j->kept.done = true;
	}
	bool save_all = jobs->save_all;
	pthread_mutex_unlock(&jobs->lock);
	atomic_store(&jobs->own.cancel, false);
	jobs->cursor = 0;
	while (save_all && jobs->disk && save_next(jobs, true))
		;
	return NULL;
}

int disk_jobs_start(struct disk *disk, struct store *store, struct pool *pool, const struct disk_policy *policy,
                    struct disk_jobs **out)
{
	struct disk_jobs *jobs = calloc(1, sizeof *jobs);
	if (!jobs)
		return MPIG_ENOMEM;
	jobs->disk = disk;
	jobs->store = store;
	jobs->pool = pool;
	jobs->policy = jobs->next_policy = *policy;
	jobs->first = jobs->last =
		real_ns(); // numbers are no other daemon's: who asks for one of an earlier daemon's gets nobody's
	pthread_condattr_t clock;
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_mutex_init(&jobs->lock, NULL);
	pthread_cond_init(&jobs->wake, &clock);
	pthread_condattr_destroy(&clock);
	if (pthread_create(&jobs->thread, NULL, run, jobs)) {
		pthread_cond_destroy(&jobs->wake);
		pthread_mutex_destroy(&jobs->lock);
		free(jobs);
		return MPIG_ENOMEM;
	}
	pthread_setname_np(jobs->thread, "disk");
	*out = jobs;
	return 0;
}

// Lock held: there is something new for it.
static void call_thread(struct disk_jobs *jobs)
{
	atomic_store(&jobs->hurry, true);
	pthread_cond_signal(&jobs->wake);
}

void disk_jobs_set_policy(struct disk_jobs *jobs, const struct disk_policy *policy)
{
	pthread_mutex_lock(&jobs->lock);
	jobs->next_policy = *policy;
	call_thread(jobs);
	pthread_mutex_unlock(&jobs->lock);
}

// Joins the thread, and tells whenever it has got on.
static void join(struct disk_jobs *jobs, void (*progress)(void *arg), void *arg)
{
	uint64_t seen = atomic_load(&jobs->own.done);
	struct timespec until;
	do {
		until = timespec_of(mono_ns() + LOOK_NS);
		uint64_t done = atomic_load(&jobs->own.done);
		if (progress && done != seen)
			progress(arg);
		seen = done;
	} while (pthread_clockjoin_np(jobs->thread, NULL, CLOCK_MONOTONIC, &until) == ETIMEDOUT);
}

void disk_jobs_stop(struct disk_jobs *jobs, bool save_all, void (*progress)(void *arg), void *arg)
{
	if (!jobs)
		return;
	pthread_mutex_lock(&jobs->lock);
	jobs->stop = true;
	jobs->save_all = save_all;
	atomic_store(&jobs->own.cancel, true);
	for (uint32_t i = 0; i < DISK_JOBS; i++)
		atomic_store(&jobs->job[i].progress.cancel, true);
	call_thread(jobs);
	pthread_mutex_unlock(&jobs->lock);
	join(jobs, progress, arg);
	for (uint32_t i = 0; i < DISK_JOBS; i++)
		free(jobs->job[i].groups);
	pthread_cond_destroy(&jobs->wake);
	pthread_mutex_destroy(&jobs->lock);
	free(jobs);
}

// NULL: all are waiting or running.
static struct job *place(struct disk_jobs *jobs, uint32_t uid)
{
	struct job *best = NULL;
	for (uint32_t i = 0; i < DISK_JOBS; i++)
		if (keep_takes(&jobs->job[i].kept, best ? &best->kept : NULL, uid))
			best = &jobs->job[i];
	return best;
}

static struct job *find_waiting(struct disk_jobs *jobs, enum disk_work work, uint32_t uid, const char *name, uint32_t *count)
{
	struct job *same = NULL;
	for (uint32_t i = 0; i < DISK_JOBS; i++) {
		struct job *j = &jobs->job[i];
		if (!j->kept.number || j->state == DISK_DONE || j->who.uid != uid)
			continue;
		++*count;
		if (j->state == DISK_WAITING && j->work == work && !strcmp(j->name, name))
			same = j;
	}
	return same;
}

static int begin_locked(struct disk_jobs *jobs, enum disk_work work, const struct credentials *who, const char *name,
                        const struct disk_gc_options *gc, uint64_t *number, char *why)
{
	uint32_t count = 0;
	struct job *j = find_waiting(jobs, work, who->uid, name, &count);
	if (j && !gc) {
		j->kept.asked++;
		*number = j->kept.number;
		return 0;
	}
	if (count >= DISK_JOBS_PER_UID || !(j = place(jobs, who->uid)))
		return disk_fail(why, MPIG_ELIMIT, "too many saves and loads are waiting: try again later");
	uint32_t *groups = malloc((who->group_count + 1) * sizeof *groups);
	if (!groups)
		return disk_fail(why, MPIG_ENOMEM, "the daemon is out of memory");
	if (who->group_count)
		memcpy(groups, who->groups, who->group_count * sizeof *groups);
	free(j->groups);
	*j = (struct job){
		.kept = {.number = ++jobs->last, .uid = who->uid, .asked = 1}, .work = work, .who = *who, .groups = groups};
	j->who.groups = groups;
	strcpy(j->name, name);
	if (gc)
		j->gc = *gc;
	*number = j->kept.number;
	call_thread(jobs);
	return 0;
}

int disk_job_begin(struct disk_jobs *jobs, enum disk_work work, const struct credentials *who, const char *name, uint64_t *job,
                   char *why)
{
	if (strnlen(name, MPIG_NAME_BYTES) == MPIG_NAME_BYTES)
		return disk_fail(why, MPIG_EINVAL, "the name is too long");
	pthread_mutex_lock(&jobs->lock);
	int status = begin_locked(jobs, work, who, name, NULL, job, why);
	pthread_mutex_unlock(&jobs->lock);
	return status;
}

int disk_job_begin_gc(struct disk_jobs *jobs, const struct credentials *who, const struct disk_gc_options *options, uint64_t *job,
                      char *why)
{
	pthread_mutex_lock(&jobs->lock);
	struct disk_gc_options all = {options->dry, options->damaged_before_ns, jobs->policy.tell, jobs->policy.arg};
	int status = begin_locked(jobs, DISK_GC, who, "", &all, job, why);
	pthread_mutex_unlock(&jobs->lock);
	return status;
}

int disk_job_look(struct disk_jobs *jobs, const struct credentials *who, uint64_t job, struct disk_job_view *view)
{
	pthread_mutex_lock(&jobs->lock);
	int status = job > jobs->first && job <= jobs->last ? MPIG_ERETRY : MPIG_ENOENT;
	for (uint32_t i = 0; i < DISK_JOBS && job; i++) {
		struct job *j = &jobs->job[i];
		if (j->kept.number != job)
			continue;
		status = j->who.uid == who->uid || credentials_admin(who) ? 0 : MPIG_ENOENT;
		if (status)
			break;
		*view = (struct disk_job_view){
			.state = j->state,
			.done = atomic_load(&j->progress.done),
			.total = atomic_load(&j->progress.total),
		};
		if (j->state != DISK_DONE)
			break;
		j->kept.told += j->who.uid == who->uid;
		view->status = j->status;
		view->result = j->result;
		view->gc = j->gc_result;
		memcpy(view->why, j->why, sizeof view->why);
	}
	pthread_mutex_unlock(&jobs->lock);
	return status;
}
