// magicpig-bench: what this machine does, next to what it could do. Every
// figure is a median of interleaved repetitions.
#ifndef MPIG_BENCH_H
#define MPIG_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct roofline {
	double stream_gbs; // one core reading a large array in order
	double gather_gbs; // one core reading random rows
	uint32_t row_bytes, threads;
	double all_stream_gbs,
		all_gather_gbs; // `threads` cores together: all but one
};
struct head_result { // one KV head, one thread
	uint32_t rows, d, group, bits;
	double budget;
	double dense_ms, signature_ms, paper_ms;
	double pilot_ms,
		scan_ms;                   // parts of signature_ms: up to the thresholds; the scan
	double signature_rows, paper_rows; // rows per query head
	double fetched_rows;               // by `signature`, of all heads: a row that several want
					   // counts once
	double scan_hot_ns;                // per row, from the caches
	double index_us_per_row,
		append_us; // build at seal; one decoded token of one KV head
};
enum { BENCH_PROPOSALS = 10 };
struct proposal_result { // one KV head, one thread, 4 query heads, d = 128
	const char *name;
	double ms, rows; // rows per query head
};
struct upper_side {
	double ms, rows, bytes;       // rows per query head
	double mass_error, out_error; // root mean square of exp(LSE) / exact - 1, and of the output relative to its length
};
struct upper_result { // one KV head, one thread, 4 query heads, d = 128, the floor's share of rows
	uint32_t rows;
	struct upper_side plain, upper;
};
struct layer_result { // one layer through the ring: 8 KV heads, 32 query heads,
		      // d = 128
	unsigned workers;
	double dense_ms, signature_ms;                 // as the client sees it
	double dense_service_ms, signature_service_ms; // inside the daemon
	double append_gbs, seal_s;                     // of all layers together
	double huge_share;                             // of the pool
};
struct timeline_sample { // of one request; milliseconds, and shares of threads
	double ms;
	double create_ms; // the engine alone: until it is planned; through the daemon: all but the daemon's own time
	double begin_ms;  // the first piece begins
	double first_main_ms, last_pre_ms;
	double tail_ms; // from the first thread that finds nothing left to the end
	double end_ms;  // ... and from the end of the last piece
	double longest_unit_ms;
	double gap_us;                             // of a thread between two pieces
	double pre_share, main_share, close_share; // the rest is waiting
	double row_ms, row_service_ms; // one after another, through the daemon: each, and the daemon's own; NaN: not measured
};
enum { TIMELINE_FIGURES = sizeof(struct timeline_sample) / sizeof(double) };
struct timeline_result { // one layer as above
	unsigned threads;
	int served;                    // through a ring and the daemon's workers; 0: the engine alone
	struct timeline_sample median; // of each figure by itself
};
enum { GAPS = 4, GAP_SHARES = 8 };
struct gaps_result { // layers as above, int8 rows, by error
	unsigned workers, shares;
	double share[GAP_SHARES];                  // workers.prefetch; the first: 0
	double gap_ms[GAPS], ms[GAPS][GAP_SHARES]; // of a request that comes so long after the answer before
	double both_ms[GAP_SHARES];                // of a layer of two contexts that ask at once, without a gap
};
struct queue_result {
	double nop_p50_us, nop_p99_us;
	double idle_cpu; // cores
};

// Normal enough, and cheap: the sum of four uniform numbers, deviation about 1.
static inline float quick_normal(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
	uint64_t x = *state ^ *state >> 29;
	return 1.7f * ((float)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48)) / 65536 - 2);
}

double median(double *x, size_t n);
double percentile(double *x, size_t n, double p); // sorts x
double seconds(void);

struct roofline bench_roofline(uint32_t row_bytes);
// mask: CPU features to use. Prints nothing.
struct head_result bench_head(uint32_t rows, uint32_t mask, int with_paper);
void bench_proposals(uint32_t rows, uint32_t mask, struct proposal_result out[BENCH_PROPOSALS]);
// Contexts of rows[count] (multiples of 65,536). tensors: file of a real head's, or NULL. 0, or -1 with a message on stderr.
int bench_upper(const uint32_t *rows, size_t count, uint32_t mask, const char *tensors, struct upper_result *out);
// Starts `daemon` privately, measures, stops it. 0, or -1 with a message on
// stderr.
int bench_queue(const char *daemon, struct queue_result *out);

// range: rows that a request is about, of `rows`; 0: all. threads [counts], at most 16 each; out [2 * counts]: alone and through the daemon's workers, for each.
void bench_timeline(uint32_t rows, uint32_t range, uint32_t mask, const unsigned *threads, unsigned counts,
                    struct timeline_result *out);
int bench_layer(const char *daemon, uint32_t rows, unsigned workers, struct layer_result *out);
// out->workers, shares and share are given.
int bench_gaps(const char *daemon, uint32_t rows, struct gaps_result *out);

#endif
