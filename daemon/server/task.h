// Jobs in progress: a fixed table where every worker finds work. A task is open while its job has work to give; helpers count
// themselves in and out by one atomic word, and the last one out destroys the job.
//
//   users:  OPEN | helpers   helpers may enter        (published)
//                  helpers   nobody enters any more   (the job is done)
//                  0         destroyed by whoever made it 0
#ifndef MPIG_SERVER_TASK_H
#define MPIG_SERVER_TASK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/engine/engine.h"
#include "daemon/server/queue.h"

#define TASKS 256u
#define TASK_WORDS (TASKS / 64u)
#define TASK_OPEN (1u << 31)

struct task {
	_Alignas(64) atomic_uint users;
	// Read by everybody who looks for work, and not beside what they write.
	_Alignas(64) atomic_uint news; // raised when it is published, and when more of its units may be taken
	atomic_uint room;              // as many workers can have a unit each
	atomic_uint claimer;           // worker that published it
	struct job *job;
	struct queue *queue;
	struct binding *binding;
	struct mpig_sqe entry;
	uint64_t sequence, taken_ns;
	bool writes, first; // first: when it came nobody else's was in progress
};

struct task_table {
	_Atomic uint64_t used[TASK_WORDS];
	atomic_uint
		users; // who have requests in progress, of those whose are counted; beside what is written for each request as well
	_Alignas(64) _Atomic uint64_t open[TASK_WORDS];
	struct task task[TASKS];
};

struct task *task_alloc(struct task_table *table);           // NULL: all in use. Private to the caller until task_publish
void task_free(struct task_table *table, struct task *task); // never published
void task_publish(struct task_table *table, struct task *task, uint32_t room);
// Counted in. There are units now that could not be taken before: of them, as many as `room`.
void task_more(struct task *task, uint32_t room);
// The number of the first open task at or after *cursor, going round once; advances *cursor past it. TASKS: none.
uint32_t task_find(const struct task_table *table, uint32_t *cursor, uint32_t *looked);
// Who is to come first, where there are fewer units than workers: one for each unit that job_run would begin with by a worker's number, the
// claimer for its own. If all came, most would find nothing and be in the way of those who work; and the same unit falls to the same worker each
// time, in whose caches its rows are.
bool task_wants(const struct task *task, uint32_t worker, uint32_t workers);
// Counts the caller in. False: it is open no more.
bool task_enter(struct task *task);
// After the job is done: no more helpers. By the one that got JOB_DONE, before task_leave.
void task_shut(struct task_table *table, struct task *task);
// Counts the caller out. True: it was the last one of a shut task and has to destroy the job and free the task.
bool task_leave(struct task *task);
uint32_t task_open_count(const struct task_table *table);
uint32_t task_room(const struct task_table *table); // that are not in use
bool task_any(const struct task_table *table);      // any task in use

#endif
