// What this machine's memory gives: threads that read their own large array in order (stream), or rows of it here and there (gather).
#ifndef MPIG_TOOLS_ROOFLINE_H
#define MPIG_TOOLS_ROOFLINE_H

#include <stddef.h>
#include <stdint.h>

#define ROOFLINE_MAX_THREADS 256

struct roofline_options {
	uint32_t row_bytes;   // of a gathered row: a multiple of 64
	size_t bytes;         // of each thread's array; more than the caches hold, or it is they that are measured
	uint32_t threads;     // 1 to ROOFLINE_MAX_THREADS
	const int *cpus;      // [threads] where they run, -1 = anywhere; NULL: all anywhere
	uint32_t repetitions; // whose median counts
};
struct roofline_rates {
	double stream_bytes_per_s, gather_bytes_per_s; // of all threads together
};
// 0, or -1 with errno (no memory, no threads).
int roofline_measure(const struct roofline_options *options, struct roofline_rates *rates);

#endif
