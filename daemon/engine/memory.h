// Work space of jobs, kept from one to the next.
//
// A decode step of one layer needs about a megabyte, for less than a millisecond. The allocator would give it back to the system and
// fetch it again each time: a page fault for every 4 KiB and, as it goes, an interrupt on every core where a worker runs. With 15 workers
// that was a fifth of the step.
//
// Clients choose how much a job needs, and how many jobs there are: what all of them have together is no more than the machine can give.
#ifndef MPIG_ENGINE_MEMORY_H
#define MPIG_ENGINE_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { MEMORY_KEPT = 16 };
#define MEMORY_KEPT_BYTES ((size_t)64 << 20)     // of all that is kept together
#define MEMORY_UNASKED_BYTES ((size_t)256 << 20) // of all that is in use; beyond, the machine is asked whether it has that much

struct memory {
	_Atomic(struct memory_piece *) kept[MEMORY_KEPT];
	atomic_size_t bytes;         // of what is kept
	atomic_size_t used;          // of what is handed out
	uint64_t (*available)(void); // bytes that the machine could still give; NULL: it is not asked
};

// A zeroed struct is an empty one. Any thread, without a lock.
// `bytes`, 64-aligned, with whatever was left in them. NULL: out of memory, or what is in use would be more than half of what the machine could
// still give: what is handed out need not be touched yet, so both count.
void *memory_get(struct memory *m, size_t bytes);
void memory_put(struct memory *m, void *memory); // NULL: nothing to do
void memory_drop(struct memory *m);              // frees what is kept; nobody else may be inside

#endif
