#include <unistd.h>

#include "tools/common/roofline.h"
#include "tools/magicpig-bench/bench.h"

enum { MEGABYTES = 512, REPETITIONS = 7 };

struct roofline bench_roofline(uint32_t row_bytes)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t threads = cpus > 2 ? (uint32_t)cpus - 1 : 1; // the last is the client's
	size_t bytes = ((size_t)MEGABYTES << 20) * (threads > 4 ? 4 : 1) / threads / row_bytes * row_bytes;
	struct roofline_options one = {
		.row_bytes = row_bytes, .bytes = (size_t)MEGABYTES << 20, .threads = 1, .repetitions = REPETITIONS};
	struct roofline_options all = {.row_bytes = row_bytes, .bytes = bytes, .threads = threads, .repetitions = REPETITIONS};
	struct roofline_rates single = {0}, together = {0};
	struct roofline r = {.row_bytes = row_bytes, .threads = threads};
	if (roofline_measure(&one, &single) == 0 && roofline_measure(&all, &together) == 0) {
		r.stream_gbs = single.stream_bytes_per_s * 1e-9;
		r.gather_gbs = single.gather_bytes_per_s * 1e-9;
		r.all_stream_gbs = together.stream_bytes_per_s * 1e-9;
		r.all_gather_gbs = together.gather_bytes_per_s * 1e-9;
	}
	return r;
}
