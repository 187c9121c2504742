// What counting one request costs its worker: in the caches, and spread over all places and times. Run by hand:
// make build/tests/server/bench_stats && build/tests/server/bench_stats
#include <stdio.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "daemon/server/stats.h"

enum { REQUESTS = 2000000, ROUNDS = 9 };

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double once(struct mpig_stats_worker *stats, uint32_t places)
{
	struct mpig_sqe e = {.op = MPIG_OP_ATTEND};
	struct mpig_cqe c = {.rows_read = 1000, .bytes_read = 1000000};
	uint64_t start = mono_ns(), state = 1;
	for (uint32_t i = 0; i < REQUESTS; i++) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		c.service_ns = 20000 + (places > 1 ? state >> 44 : 0);
		stats_count(stats, &e, &c, (uint32_t)(state >> 33) % places, (uint32_t)(state >> 40) % places);
	}
	return (double)(mono_ns() - start) / REQUESTS;
}

int main(void)
{
	struct stats_file file;
	char why[256];
	double near[ROUNDS], wide[ROUNDS];
	if (stats_open(&file, "none", 1, (gid_t)-1, why, sizeof why) != 0)
		return EXIT_FAILURE;
	for (int i = 0; i < ROUNDS; i++) {
		near[i] = once(file.stats->worker, 1);
		wide[i] = once(file.stats->worker, MPIG_STATS_PLACES);
	}
	qsort(near, ROUNDS, sizeof near[0], by_value);
	qsort(wide, ROUNDS, sizeof wide[0], by_value);
	printf("counting a request: %.1f ns for one client, %.1f ns over %u clients and contexts (medians of %d)\n",
	       near[ROUNDS / 2], wide[ROUNDS / 2], MPIG_STATS_PLACES, ROUNDS);
	stats_close(&file);
	return EXIT_SUCCESS;
}
