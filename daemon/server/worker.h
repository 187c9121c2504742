// The worker threads and what they share. The control thread adds and removes queues; everything else happens in the workers.
//
// Reclamation. A worker holds pointers to queues only inside one turn of its loop. `epoch` is raised after a queue has been taken
// out of the table; each worker copies it into `seen` at the top of a turn, and shows WORKER_OFFLINE while it sleeps. A queue
// removed at epoch e is out of everybody's hands once every worker's `seen` is >= e (README.md, "Life of a queue").
#ifndef MPIG_SERVER_WORKER_H
#define MPIG_SERVER_WORKER_H

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/engine/engine.h"
#include "daemon/server/task.h"
#include "shm/stats.h"

#define MAX_QUEUES 1024u
#define MAX_WORKERS MPIG_STATS_MAX_WORKERS
#define WORKER_WORDS (MAX_WORKERS / 64u)
#define WORKER_OFFLINE UINT64_MAX

struct workers_options {
	uint32_t count; // 1 to MAX_WORKERS
	cpu_set_t cpus; // worker i is pinned to the i-th, going round
	uint64_t spin_ns;
	uint64_t awake_ns;               // longest lease of a client that keeps workers from sleeping; 0 = none
	uint64_t look_ns;                // how often a sleeping worker looks at silent queues; 0 = never
	bool uring;                      // try io_uring for sleeping
	struct engine *engine;           // borrowed
	struct recordings *recordings;   // of queries, borrowed; NULL: nobody can record
	struct mpig_stats_worker *stats; // [count], borrowed; each written by its worker only
	int control_fd;                  // eventfd written when the control thread has a broken queue to close
};

struct workers;

struct look { // at an open task, by one worker
	uint32_t news, due;
};

struct home { // a queue a worker looks at first, and sleeps on
	uint32_t id;
	struct queue *queue;
};

struct answered { // what a worker answered and nobody has thought about yet
	uint32_t queue, handle;
	struct engine_foresight next;
};

struct worker {
	struct workers *all;
	uint32_t number;
	pthread_t thread;
	int wake_fd;
	struct park *park;
	struct engine_scratch *scratch;
	struct mpig_stats_worker *stats;
	struct home *home; // [MAX_QUEUES]
	uint32_t home_count;
	struct queue **other; // [MAX_QUEUES]: queues of other homes
	uint32_t other_count;
	uint64_t version;      // of the table that the two lists show
	uint32_t cursor;       // where to look for tasks
	uint32_t again, turns; // the task it goes back to, and how often
	uint32_t looks;        // counts turns
	struct look *look;     // [TASKS]
	bool woken;            // and has not looked at the tasks since
	uint64_t began_ns;     // when it was last seen to turn from spinning to work
	struct answered answered;
	_Alignas(64) _Atomic uint64_t seen;
	atomic_int state; // enum mpig_worker_state
};

struct workers {
	struct workers_options options;
	struct worker *worker; // [count]
	uint32_t started;
	struct task_table *tasks;
	_Atomic(struct queue *) queue[MAX_QUEUES];
	atomic_uint queue_high;   // places in use are below
	_Atomic uint64_t version; // of the table
	_Atomic uint64_t epoch;
	_Atomic uint64_t parked[WORKER_WORDS];
	_Atomic uint64_t awake_until; // mono_ns until which a client's lease keeps all workers from sleeping
	atomic_bool draining;         // entries are answered MPIG_ESHUTDOWN
	atomic_bool stop;
	sem_t ready; // posted by each thread once it can serve, or cannot
	atomic_bool unable;
};

// ---- the control thread ----------------------------------------------------------------------------------------------
// 0, MPIG_ENOMEM or MPIG_EIO (threads; errno). The workers run when it returns.
int workers_create(const struct workers_options *options, struct workers **workers);
// The queue's id must be set. MPIG_ELIMIT: the table is full.
int workers_add_queue(struct workers *workers, struct queue *queue);
// Out of the table and closed. Returns the epoch for workers_left.
uint64_t workers_remove_queue(struct workers *workers, struct queue *queue);
bool workers_left(struct workers *workers, uint64_t epoch);
struct queue *workers_broken_queue(struct workers *workers); // one that is to be removed, or NULL
void workers_set_spin(struct workers *workers, uint64_t spin_ns);
void workers_drain(struct workers *workers); // new entries are refused from now on
// A worker that is awake and whose last turn ended more than limit_ns before now_ns, or -1. One that sleeps is not stuck.
int workers_stuck(const struct workers *all, uint64_t now_ns, uint64_t limit_ns);
bool workers_idle(struct workers *workers); // no request in progress
// Stops and joins the threads. False: requests were in progress; their jobs are left as they are.
bool workers_stop(struct workers *workers);
void workers_destroy(struct workers *workers); // after workers_stop

// ---- inside (worker.c, serve.c) --------------------------------------------------------------------------------------
// Takes entries from a queue and starts them. Returns how many.
uint32_t serve_queue(struct worker *w, struct queue *q);
// Runs units of open tasks, at most a few. Returns how many.
uint32_t serve_tasks(struct worker *w);
// Of what it answered last, on that queue: lists what is likely to be asked next.
void worker_foresee(struct worker *w, struct queue *q);
void worker_set_state(struct worker *w, enum mpig_worker_state state);
void workers_wake_helpers(struct workers *workers, uint32_t count);

#endif
