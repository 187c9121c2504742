// Recordings of queries: workers copy what was asked of a context into a ring that its recorder reads (shm/trace.h). Nobody waits: where a
// ring has no room the query is left out and counted. Started and ended by the control thread, written by workers.
#ifndef MPIG_SERVER_RECORDING_H
#define MPIG_SERVER_RECORDING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/server/task.h"
#include "shm/trace.h"

#define RECORDINGS 8u           // at a time
#define RECORDINGS_OF_A_USER 4u // who is no administrator: nobody can keep all others from recording

struct recording {
	_Alignas(64) pthread_mutex_t lock; // a worker holds it while it copies one record, the control thread for a few stores
	_Atomic uint64_t context;          // id; 0: nothing is recorded here
	uint64_t client;                   // the connection of the recorder
	uint32_t number, uid;
	char name[MPIG_NAME_BYTES]; // of the context
	struct mpig_trace_ring *shared;
	uint64_t ring_bytes, began_ns; // began: mono_ns
	uint64_t tail, head;           // head: the recorder's, as it was last seen
	uint64_t answers, lost, too_long;
};
struct recordings {
	_Alignas(64) atomic_uint active; // how many record. Read for each request: on a line of its own
	_Alignas(64) uint32_t next_number;
	struct recording recording[RECORDINGS];
};

struct recordings *recordings_create(void);      // NULL: out of memory
void recordings_destroy(struct recordings *all); // no worker is left; NULL is allowed

struct recording_wish {
	uint64_t context, client, ring_bytes;
	uint32_t uid;
	bool admin; // uid may have all of them
	const char *name;
};
// *number, *began_ns (CLOCK_REALTIME) and *fd, the caller's to close, on success. MPIG_EBUSY (somebody records this context), MPIG_ELIMIT, MPIG_ENOMEM; `why` has
// MPIG_TEXT_BYTES.
int recordings_start(struct recordings *all, const struct recording_wish *wish, uint32_t *number, uint64_t *began_ns, int *fd,
                     char *why);
// One of a connection's; number 0: any. How many bytes its region has; the mapping of it, *base, is the caller's from now on. 0: there is none.
uint64_t recordings_stop(struct recordings *all, uint64_t client, uint32_t number, enum mpig_trace_ended why, void **base);
// The context of that name has another owner or other permissions: who records it is told, and gets no more.
void recordings_revoke(struct recordings *all, const char *name);
// Whether who began a recording may still have it is asked again; who may not is told, and gets no more.
typedef bool recording_may_fn(void *arg, uint64_t client, const char *name);
void recordings_ask_again(struct recordings *all, recording_may_fn *may, void *arg);
bool recordings_of(const struct recordings *all, uint64_t context); // whether it is recorded. Control thread

// ---- workers ---------------------------------------------------------------------------------------------------------
static inline bool recordings_any(const struct recordings *all)
{
	return all && atomic_load_explicit(&all->active, memory_order_relaxed);
}
// A task whose job is done, before it is answered.
void recordings_note(struct recordings *all, const struct task *task, const struct mpig_cqe *cqe);

#endif
