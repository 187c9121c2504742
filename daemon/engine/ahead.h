// Reading ahead: while workers wait, they fetch into their caches what the ATTEND that is likely to come next will scan.
//
// A job that was answered tells which layer of its context followed which, and, if that has happened twice in a row, where the codes lie that
// the successor will read: runs of cache lines, a list ("lane") for each worker, cut as its units will be claimed (job_run), so that who
// fetched a span is the first to look for it. Lanes hold addresses and nothing else. They are only ever prefetched, which reads no value and
// faults on no address, so that nothing needs to be alive, and no lock or reference keeps a context, or its memory, for their sake.
#ifndef MPIG_ENGINE_AHEAD_H
#define MPIG_ENGINE_AHEAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct engine;
struct job;

enum {
	AHEAD_RUNS = 2048, // of a lane
	AHEAD_STEP = 64,   // lines that one call of engine_read_ahead asks for
	AHEAD_LAST = 256,  // contexts whose last layer is known
	AHEAD_NEXT = 8192, // layers whose successor is known
};

struct ahead_lane {
	_Alignas(64) atomic_uint count;                // runs that are there; whoever makes lists
	uint32_t planned;                              // lines of them; whoever makes lists
	_Alignas(64) uint64_t seen;                    // the list that the rest is about; all three: its worker
	uint32_t at, line;                             // what is fetched next
	_Alignas(64) _Atomic uint64_t run[AHEAD_RUNS]; // number of the first line << 16 | lines
};

struct ahead {
	_Atomic uint64_t bytes; // of each worker, at most; 0: nothing is read ahead
	uint32_t lanes;
	struct ahead_lane *lane;            // [lanes]
	_Alignas(64) _Atomic uint64_t list; // a number that grows << 1 | there is one to fetch
	atomic_bool making;                 // somebody writes lanes
	atomic_uint unread;                 // lists that could have been made since somebody fetched
	_Alignas(64) _Atomic uint64_t last[AHEAD_LAST], next[AHEAD_NEXT]; // ahead.c
};

struct ahead *ahead_create(uint32_t workers, uint64_t bytes); // NULL: out of memory
void ahead_destroy(struct ahead *ahead);
// A request was planned: what it will read is read by itself now, and what was foreseen of others would only be in its way.
// True: something was. *list: what `list` is then.
bool ahead_stop(struct ahead *ahead, uint64_t *list);

#endif
