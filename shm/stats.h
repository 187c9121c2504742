// Statistics: a read-only file (0640) beside the control socket, mapped by whoever may read it, so that the daemon can be
// watched while it is stuck. One 64-byte-aligned block per writer; every word is a naturally aligned 64-bit counter stored
// with relaxed atomics by its one writer, so a reader needs no lock and sees each counter whole (not all at one instant).
//
//   struct mpig_stats           the control thread's, among it the directory of places
//   struct mpig_stats_worker    worker 0's
//   ...
//
// Places. Work is also counted by context and by client, for a bounded number of them: each has a place while it is in use, and
// place 0 counts for those that found none. Who is in a place stands in the directory, by numbers: names are not for everybody who may
// read the file. A place keeps its counters when the next one moves in; the directory says what they were then.
#ifndef MPIG_SHM_STATS_H
#define MPIG_SHM_STATS_H

#include <assert.h>
#include <stdint.h>

#define MPIG_STATS_MAGIC 0x5347504du // "MPGS"
#define MPIG_STATS_VERSION 2u
#define MPIG_STATS_MAX_WORKERS 256u
#define MPIG_STATS_OPS 8u       // by enum mpig_op
#define MPIG_STATS_BUCKETS 144u // of a histogram of times, four an octave
#define MPIG_STATS_PLACES 64u   // for contexts, and for clients

enum mpig_worker_state { MPIG_WORKER_SPIN = 0, MPIG_WORKER_BUSY = 1, MPIG_WORKER_PARKED = 2 };

// Buckets 0 to 3 count 0 to 3 ns; 4o + s, o >= 1, counts [4 + s, 5 + s) * 2^(o - 1) ns. Longer than the last (a minute): in the last.
static inline uint32_t mpig_stats_bucket(uint64_t ns)
{
	if (ns < 4)
		return (uint32_t)ns;
	uint32_t exponent = 63u - (uint32_t)__builtin_clzll(ns),
		 bucket = 4 * (exponent - 1) + ((uint32_t)(ns >> (exponent - 2)) & 3);
	return bucket < MPIG_STATS_BUCKETS ? bucket : MPIG_STATS_BUCKETS - 1;
}
// The least time that falls into a bucket; that of the bucket after it bounds it above.
static inline uint64_t mpig_stats_bucket_ns(uint32_t bucket)
{
	return bucket < 4 ? bucket : (UINT64_C(4) + bucket % 4) << (bucket / 4 - 1);
}

struct mpig_stats_use { // what one worker did for one context, or for one client
	uint64_t requests, attends, errors, rows_read, bytes_read, appended_rows, service_ns;
	uint64_t reserved;
};
static_assert(sizeof(struct mpig_stats_use) == 64, "one line");

struct mpig_stats_worker {
	uint64_t state, cpu; // enum mpig_worker_state; UINT64_MAX: not pinned
	uint64_t busy_ns, spin_ns, park_ns, wakeups, steals, units;
	uint64_t accounted_ns; // CLOCK_MONOTONIC up to which the three times are counted; what came after is `state`'s
	uint64_t heartbeat_ns; // CLOCK_MONOTONIC
	uint64_t errors;       // completions with a negative status
	uint64_t rows_read, bytes_read, appended_rows;
	uint64_t prefetched_bytes; // asked for while it waited
	uint64_t foreseen;         // ATTENDs it answered that had been expected to come next
	uint64_t requests[MPIG_STATS_OPS];
	uint64_t latency_sum_ns[MPIG_STATS_OPS]; // claim to completion
	uint64_t latency[MPIG_STATS_OPS][MPIG_STATS_BUCKETS];
	struct mpig_stats_use context[MPIG_STATS_PLACES], client[MPIG_STATS_PLACES];
};
static_assert(sizeof(struct mpig_stats_worker) % 64 == 0, "one writer per line");

// Who is in a place. A seqlock: `sequence` is odd while the rest changes.
struct mpig_stats_place {
	uint64_t sequence;
	uint64_t id;       // of the context, or of the connection; 0: nobody yet
	uint64_t uid, pid; // pid: clients only
	uint64_t since_ns; // CLOCK_REALTIME
	uint64_t users;    // handles, or a client and its queues; refreshed once a second, and not under the sequence
	uint64_t reserved[2];
	struct mpig_stats_use before; // sums over the workers at that time
};
static_assert(sizeof(struct mpig_stats_place) == 128, "two lines");

enum mpig_stats_flags {
	MPIG_STATS_DRAINED = 1u << 0,  // new queues and contexts are refused, by order
	MPIG_STATS_STOPPING = 1u << 1, // the daemon ends when the requests in progress are done
	MPIG_STATS_READY = 1u << 2,    // it serves
	MPIG_STATS_DISK = 1u << 3,     // it has a store on disk
};

struct mpig_stats {
	uint32_t magic, version;
	uint64_t bytes; // of the file
	uint64_t epoch, start_realtime_ns, pid;
	uint64_t workers;
	uint64_t heartbeat_ns; // of the control thread; CLOCK_MONOTONIC, once a second
	uint64_t flags;        // enum mpig_stats_flags
	// the control thread's, at least once a second
	uint64_t pool_bytes, pool_used, pool_metadata;
	uint64_t contexts, clients, queues;
	uint64_t control_messages, control_errors, clients_died;
	uint64_t clients_refused;             // over a limit
	uint64_t saved_contexts, saved_bytes; // on disk; a segment that two share counts twice
	uint64_t saves, loads, disk_errors, evictions;
	char release[32], instance[64]; // of the daemon
	uint64_t reserved[4];
	struct mpig_stats_place context[MPIG_STATS_PLACES], client[MPIG_STATS_PLACES];
	struct mpig_stats_worker worker[];
};
static_assert(sizeof(struct mpig_stats) % 64 == 0, "workers start on a line of their own");

#endif
