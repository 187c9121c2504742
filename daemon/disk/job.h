// Saves and loads in the background: one thread, one after the other. Whoever asks for one gets a number and looks at it again.
#ifndef MPIG_DISK_JOB_H
#define MPIG_DISK_JOB_H

#include "daemon/disk/disk.h"

#define DISK_JOBS 64u         // known at a time, waiting, running or done (base/keep.h: which are forgotten first)
#define DISK_JOBS_PER_UID 16u // waiting or running

enum disk_work { DISK_SAVE = 1, DISK_LOAD = 2, DISK_CHECK = 3, DISK_ERASE = 4, DISK_GC = 5, DISK_WORKS };
enum disk_state { DISK_WAITING = 0, DISK_RUNNING = 1, DISK_DONE = 2 };
struct disk_job_view {
	enum disk_state state;
	int status; // when done
	uint64_t done, total;
	struct disk_result result;
	struct disk_gc_result gc; // of DISK_GC
	char why[MPIG_TEXT_BYTES];
};

// What the thread does by itself, about once a second, when nobody waits for it.
struct disk_policy {
	struct persist_default otherwise; // of contexts whose policy does not say
	uint64_t rate;                    // bytes a second of saves and loads; 0: no limit
	double high, low;                 // evict when more than this share of the pool is in use, down to that; high >= 1: never
	void (*tell)(void *arg, bool failed, const char *text); // any of it: what was done or failed
	void *arg;
};
struct disk_jobs;
// disk NULL: there is none, and no job; only the time of contexts is watched.
int disk_jobs_start(struct disk *disk, struct store *store, struct pool *pool, const struct disk_policy *policy,
                    struct disk_jobs **out); // 0 or MPIG_ENOMEM
// Takes effect with the next piece of work.
void disk_jobs_set_policy(struct disk_jobs *jobs, const struct disk_policy *policy);
// Cancels what runs, and waits for the thread. What waited is not done; with save_all, contexts are saved first whose policy is not to be lost.
// Meanwhile `progress` (NULL: nobody listens) is called about once a second if something was written since.
void disk_jobs_stop(struct disk_jobs *jobs, bool save_all, void (*progress)(void *arg), void *arg);
// MPIG_ELIMIT: too many are waiting; MPIG_ENOMEM. The same work on the same name that still waits for this uid is joined.
int disk_job_begin(struct disk_jobs *jobs, enum disk_work work, const struct credentials *who, const char *name, uint64_t *job,
                   char *why);
// DISK_GC; tell and arg of the options are the policy's.
int disk_job_begin_gc(struct disk_jobs *jobs, const struct credentials *who, const struct disk_gc_options *options, uint64_t *job,
                      char *why);
struct disk_counts {
	uint64_t contexts, bytes; // on disk now; a segment that two contexts share counts twice
	uint64_t saves, loads, errors,
		evictions; // since the start, evictions by policy only. errors: saves and loads that failed
};
void disk_jobs_counts(struct disk_jobs *jobs, struct disk_counts *counts); // any thread
// MPIG_ENOENT: there is no such job, or it is another user's. MPIG_ERETRY: it ended, and how has been forgotten.
int disk_job_look(struct disk_jobs *jobs, const struct credentials *who, uint64_t job, struct disk_job_view *view);

#endif
