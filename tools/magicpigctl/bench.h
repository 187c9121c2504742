// magicpigctl bench: what its parts share.
#ifndef MAGICPIGCTL_BENCH_H
#define MAGICPIGCTL_BENCH_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/common/roofline.h"

#include <magicpig.h>

struct bench_options {
	uint64_t tokens;
	int query_heads, kv_heads, d;
	float budget;     // of sampled answers
	double seconds;   // of measuring answers, about
	unsigned flights; // requests kept in flight where throughput is measured
};

struct bench_times {     // of one kind of request
	double *ns;      // each one's round trip
	double *service; // its time inside the daemon
	uint64_t count, room;
	double bytes, rows; // sums: looked at; rows fetched
	double busy_s;      // that these took, one after another or in flight together
};
struct bench_figures {
	struct bench_times nop, dense, sampled, piped; // piped: sampled, `flights` at a time
	double append_bytes_per_s, seal_s;             // K and V as stored
	double row_bytes;
	struct roofline_rates roof;
	struct roofline_options roof_options;
};

extern volatile sig_atomic_t bench_interrupted;

// Measures on a context of its own, named `name`, which it drops. 0, MPIG_EAGAIN when interrupted, or a status (mpig_last_error says more;
// of the roofline: errno). figures: to be freed, whatever is returned.
int bench_run(mpig_client *client, const char *name, const struct bench_options *options, struct bench_figures *figures);
// Round trips of sampled answers about so many tokens of a context of one layer, all points in turns.
struct bench_point {
	uint64_t tokens;
	double budget;
	double ns; // result: what one in five is below: others may be at work here, a planned machine is its own
};
// Makes such a context of `tokens` tokens, named `name`, measures, and drops it. other_bytes: what the model's other layers look at between two
// questions about one; as much is looked at here before each (up to 256 MiB), so that a question finds in the caches what it would find there.
// A status, as bench_run.
int bench_points(mpig_client *client, const char *name, const struct mpig_layer *layer, uint64_t tokens, double other_bytes,
                 int proposal, struct bench_point *points, int count);
uint64_t bench_points_bytes(uint64_t tokens, double other_bytes); // of the pool, that this takes besides the layer's own
void bench_free(struct bench_figures *figures);
double bench_percentile(struct bench_times *times, double share); // sorts them
double bench_service(struct bench_times *times);                  // the median, ns; sorts them

#endif
