// magicpig-bench: what this machine does, next to what it could do. Every figure is a median of interleaved repetitions.
#ifndef MPIG_BENCH_H
#define MPIG_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct roofline {
	double stream_gbs; // one core reading a large array in order
	double gather_gbs; // one core reading random rows
	uint32_t row_bytes;
};
struct head_result { // one KV head, one thread
	uint32_t rows, d, group, bits;
	double budget;
	double dense_ms, signature_ms, paper_ms;
	double pilot_ms, scan_ms;           // parts of signature_ms: up to the thresholds; the scan
	double signature_rows, paper_rows;  // rows per query head
	double index_us_per_row, append_us; // build at seal; one decoded token of one KV head
};
enum { BENCH_PROPOSALS = 10 };
struct proposal_result { // one KV head, one thread, 4 query heads, d = 128
	const char *name;
	double ms, rows; // rows per query head
};
struct layer_result { // one layer through the ring: 8 KV heads, 32 query heads, d = 128
	unsigned workers;
	double dense_ms, signature_ms;                 // as the client sees it
	double dense_service_ms, signature_service_ms; // inside the daemon
	double append_gbs, seal_s;                     // of all layers together
};
struct queue_result {
	double nop_p50_us, nop_p99_us;
	double idle_cpu; // cores
};

double median(double *x, size_t n);
double percentile(double *x, size_t n, double p); // sorts x
double seconds(void);

struct roofline bench_roofline(uint32_t row_bytes);
// mask: CPU features to use. Prints nothing.
struct head_result bench_head(uint32_t rows, uint32_t mask, int with_paper);
void bench_proposals(uint32_t rows, uint32_t mask, struct proposal_result out[BENCH_PROPOSALS]);
// Starts `daemon` privately, measures, stops it. 0, or -1 with a message on stderr.
int bench_queue(const char *daemon, struct queue_result *out);

int bench_layer(const char *daemon, uint32_t rows, unsigned workers, struct layer_result *out);

#endif
