// The statistics file (shm/stats.h): made at start, written by its mapping, readable by owner and group while the daemon lives or
// is stuck.
#ifndef MPIG_SERVER_STATS_H
#define MPIG_SERVER_STATS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/abi.h"
#include "shm/stats.h"

struct stats_file {
	struct mpig_stats *stats; // always valid after stats_open, file or not
	uint64_t bytes;
	char path[256]; // "" without a file
};

// Makes the block for `workers` workers; at `path` unless it is "none". Mode 0640. A file that cannot be made is
// no reason not to start: then the block is private and `why` (>= 256 bytes) says why, otherwise "". -1: out of memory.
int stats_open(struct stats_file *file, const char *path, uint32_t workers, gid_t gid, char *why, size_t why_bytes);
void stats_close(struct stats_file *file); // removes the file

// One request that is complete, into its worker's block; places of the client and of the context (places.h). By that worker only.
void stats_count(struct mpig_stats_worker *stats, const struct mpig_sqe *entry, const struct mpig_cqe *cqe, uint32_t client,
                 uint32_t context);

static inline void stats_set(uint64_t *counter, uint64_t value)
{
	__atomic_store_n(counter, value, __ATOMIC_RELAXED);
}
static inline uint64_t stats_get(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

#endif
