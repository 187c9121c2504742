// What this machine's memory gives, as `magicpigctl bench` measured it last: kept in a file of the user's cache, for `top` to compare with.
#ifndef MAGICPIGCTL_LIMIT_H
#define MAGICPIGCTL_LIMIT_H

#include <stdint.h>

struct limit {
	double stream_bytes_per_s; // all CPUs read one after another
	double gather_bytes_per_s; // all CPUs read rows here and there
	uint32_t threads, row_bytes;
	uint64_t measured_ns; // CLOCK_REALTIME
};

// 0, or -1: nothing was measured on this host, or what was kept cannot be read.
int limit_read(struct limit *limit);
// 0, or -1 with errno. Replaces what was kept, whole.
int limit_write(const struct limit *limit);

#endif
