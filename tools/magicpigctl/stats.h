// A look at the daemon's statistics file (shm/stats.h), which can be read while the daemon is stuck.
#ifndef MAGICPIGCTL_STATS_H
#define MAGICPIGCTL_STATS_H

#include <stddef.h>
#include <stdint.h>

#include "shm/stats.h"

struct ctl_command;
struct stats_file {
	const struct mpig_stats *map; // read-only
	size_t bytes;
	uint64_t workers; // checked against the file's size
};

// Maps the file and checks it. Returns 0, or -1 with a reason in `why`. Undone by stats_close.
int stats_open(const char *path, struct stats_file *file, char *why, size_t why_bytes);
void stats_close(struct stats_file *file); // a zeroed struct is allowed

// The path of the file: `named` if it is not NULL, else the only one beside the socket, else what the daemon says. Returns enum ctl_exit,
// after it said what is wrong.
int stats_find(const struct ctl_command *self, const char *named, char *path, size_t bytes);

// What one worker, or all of them together, has done since the daemon's start.
struct stats_work {
	uint64_t state, cpu; // enum mpig_worker_state; of no meaning in a sum
	uint64_t busy_ns, spin_ns, park_ns, wakeups, steals, units, prefetched_bytes, foreseen;
	uint64_t attends, appends, commits, requests, errors;
	uint64_t rows_read, bytes_read, appended_rows;
	uint64_t by_op[MPIG_STATS_OPS], latency_sum_ns[MPIG_STATS_OPS], latency[MPIG_STATS_OPS][MPIG_STATS_BUCKETS];
};
// What the control thread says.
struct stats_head {
	uint64_t epoch, start_realtime_ns, pid, heartbeat_ns, flags; // enum mpig_stats_flags
	uint64_t pool_bytes, pool_used, pool_metadata;
	uint64_t contexts, clients, queues;
	uint64_t control_messages, control_errors, clients_died, clients_refused;
	uint64_t saved_contexts, saved_bytes, saves, loads, disk_errors, evictions;
	char release[32], instance[64];
};
// What was done for the context or client that is in a place of the statistics, since it moved in. id 0 with place 0: the rest together.
struct stats_user {
	uint64_t id, uid, pid, since_ns, users;
	struct mpig_stats_use use;
};
struct stats_sample {
	uint64_t taken_ns; // CLOCK_MONOTONIC, as the heartbeats
	struct stats_head head;
	uint64_t workers;
	uint64_t oldest_heartbeat_ns; // of the workers that are not parked; 0 = all are
	struct stats_work total, worker[MPIG_STATS_MAX_WORKERS];
	struct stats_user context[MPIG_STATS_PLACES], client[MPIG_STATS_PLACES];
};

// Copies every counter once. They are each whole, though not all of one instant. The time of workers that sleep is counted up to now.
void stats_take(const struct stats_file *file, struct stats_sample *sample);
// What was done between two samples (counters only; state and cpu are the later one's).
struct stats_work stats_between(const struct stats_work *before, const struct stats_work *after);
// Of the operation: "attend" and so on, NULL for numbers that name none.
const char *stats_op_name(size_t op);
// Whether a heartbeat is too old for something that is alive (2 s).
int stats_stale(uint64_t heartbeat_ns, uint64_t now_ns);
// What one user did between two samples, in its place; all since it moved in if it did meanwhile.
struct mpig_stats_use stats_use_between(const struct stats_user *before, const struct stats_user *after);
// Time below which the share q of the histogram's events stayed, interpolated inside its bucket; ns, 0 without events.
double stats_quantile(const uint64_t buckets[MPIG_STATS_BUCKETS], double q);

#endif
