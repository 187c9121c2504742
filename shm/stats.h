// Statistics: a read-only file (0640) beside the control socket, mapped by whoever may read it, so that the daemon can be
// watched while it is stuck. One 64-byte-aligned block per writer; every word is a naturally aligned 64-bit counter stored
// with relaxed atomics by its one writer, so a reader needs no lock and sees each counter whole (not all at one instant).
#ifndef MPIG_SHM_STATS_H
#define MPIG_SHM_STATS_H

#include <assert.h>
#include <stdint.h>

#define MPIG_STATS_MAGIC 0x5347504du // "MPGS"
#define MPIG_STATS_VERSION 1u
#define MPIG_STATS_MAX_WORKERS 256u
#define MPIG_STATS_BUCKETS 40u // bucket b counts times in [2^b, 2^(b+1)) ns

enum mpig_worker_state { MPIG_WORKER_SPIN = 0, MPIG_WORKER_BUSY = 1, MPIG_WORKER_PARKED = 2 };

struct mpig_stats_worker {
	uint64_t state, cpu;
	uint64_t busy_ns, spin_ns, park_ns, wakeups, steals, units;
	uint64_t requests[8]; // by enum mpig_op
	uint64_t errors;      // completions with a negative status
	uint64_t rows_read, bytes_read, appended_rows;
	uint64_t heartbeat_ns; // CLOCK_MONOTONIC
	uint64_t reserved[3];
	uint64_t attend_ns[MPIG_STATS_BUCKETS]; // claim to completion
	uint64_t append_ns[MPIG_STATS_BUCKETS];
};
static_assert(sizeof(struct mpig_stats_worker) % 64 == 0, "one writer per line");

struct mpig_stats {
	uint32_t magic, version;
	uint64_t bytes;
	uint64_t epoch, start_realtime_ns, pid;
	uint64_t workers;
	uint64_t heartbeat_ns; // of the control thread
	uint64_t reserved0;
	// control thread
	uint64_t pool_bytes, pool_used, pool_metadata;
	uint64_t contexts, clients, queues;
	uint64_t control_messages, control_errors, clients_died;
	uint64_t reserved1[7];
	struct mpig_stats_worker worker[];
};
static_assert(sizeof(struct mpig_stats) % 64 == 0, "workers start on a line of their own");

#endif
