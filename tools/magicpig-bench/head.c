// One KV head of one layer, one thread, without rings: the engine's own time.
// Several strips are visited in turn so that none stays in the caches, as a
// model's layers would not.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/pool.h"
#include "tools/magicpig-bench/bench.h"
#include "tools/magicpig-bench/strips.h"

enum { D = STRIP_DIM, GROUP = STRIP_GROUP, STRIPS = 6, REPETITIONS = 31, DECODED = 64 };

// Where a signature request's time goes: up to the first unit's end it plans,
// signs the queries and sets the thresholds; a request for almost no rows scans
// as one for 1 % does, and attends nothing.
static void signature_stages(struct fixture *f, struct context *c, uint32_t layer, uint32_t rows, uint64_t seed, double *pilot_ms,
                             double *scan_ms)
{
	struct engine_request r = {.entry = strip_request(layer, rows, MPIG_PROPOSAL_SIGNATURE, 1e-6f, seed),
	                           .payload_in = f->slot,
	                           .payload_out = f->slot,
	                           .slot_bytes = f->slot_bytes,
	                           .context = c};
	double start = seconds();
	struct job *job = job_create(f->engine, &r);
	if (!job)
		abort();
	enum job_state state = job_run(job, 0, 1, f->scratch[0]);
	*pilot_ms = (seconds() - start) * 1e3;
	start = seconds();
	while (state != JOB_DONE)
		state = job_run(job, 0, 1, f->scratch[0]);
	*scan_ms = (seconds() - start) * 1e3;
	job_destroy(job);
}

// ns per row of the scan where nothing has to come from memory and nothing is
// taken: what its instructions take.
static double scan_in_cache(const struct kernels *k, uint32_t bits)
{
	enum { ROWS = 512, PASSES = 64 };
	static _Alignas(64) uint8_t codes[ROWS * D / 2];
	static _Alignas(64) float noise[ROWS];
	static uint16_t factors[ROWS];
	static int8_t q[GROUP][D];
	struct sig_query query[GROUP];
	struct sig_hits hits[GROUP] = {0};
	for (uint32_t i = 0; i < sizeof(codes); i++)
		codes[i] = (uint8_t)(i * 167 >> 3);
	for (uint32_t h = 0; h < GROUP; h++) {
		memset(q[h], (int)h + 1, D);
		query[h] = (struct sig_query){.q = q[h], .factor = 1e-3f, .tau = INFINITY};
	}
	double ns[REPETITIONS];
	for (uint32_t i = 0; i < REPETITIONS; i++) {
		double start = seconds();
		for (uint32_t pass = 0; pass < PASSES; pass++)
			k->sig_select(codes, factors, 0, ROWS, D, bits, query, GROUP, noise, hits, NULL, 0, 0);
		ns[i] = (seconds() - start) * 1e9 / (ROWS * PASSES);
	}
	return median(ns, REPETITIONS);
}

struct head_result bench_head(uint32_t rows, uint32_t mask, int with_paper)
{
	struct fixture f;
	struct head_result r = {.rows = rows, .d = D, .group = GROUP, .bits = 2, .budget = .01};
	uint64_t per_row = 2 * D * 2 + 64 + (with_paper ? 320 : 0) + 16;
	fixture_start(&f, (per_row * rows * STRIPS * 5 / 4 + (UINT64_C(64) << 20)) & ~UINT64_C(0x1fffff), mask);
	struct mpig_wire_layer layer = fixture_layer(GROUP, 1, D, MPIG_BF16);
	layer.signature_bits = 2;
	layer.paper_k = with_paper ? 10 : 0;
	layer.paper_l = with_paper ? 150 : 0;
	struct context *c = fixture_context(&f, "bench", &layer, STRIPS, 1);
	float k[D], v[D], q[GROUP * D];
	fill_normal(q, GROUP * D, 3, 1);
	strips_append(&f, c, STRIPS, rows, q);
	double start = seconds();
	fixture_commit(&f, c, 0, rows, true);
	r.index_us_per_row = (seconds() - start) * 1e6 / ((double)rows * STRIPS);
	while (pool_collapse(f.pool, 64)) // as an idle daemon has done by now
		;
	double dense[REPETITIONS], signature[REPETITIONS], paper[REPETITIONS], pilot[REPETITIONS], scan[REPETITIONS], ignored = 0;
	for (int i = 0; i < REPETITIONS; i++) {
		fill_normal(q, GROUP * D, 100u + (uint64_t)i, 1);
		uint32_t l = (uint32_t)i % STRIPS;
		dense[i] = strip_attend_ms(&f, c, l, rows, MPIG_PROPOSAL_DENSE, 1, q, &ignored, NULL);
		signature[i] = strip_attend_ms(&f, c, (l + 2) % STRIPS, rows, MPIG_PROPOSAL_SIGNATURE, (uint64_t)i, q,
		                               &r.signature_rows, &r.fetched_rows);
		signature_stages(&f, c, (l + 3) % STRIPS, rows, (uint64_t)i, &pilot[i], &scan[i]);
		paper[i] = with_paper ? strip_attend_ms(&f, c, (l + 4) % STRIPS, rows, MPIG_PROPOSAL_PAPER, 1, q, &r.paper_rows,
		                                        NULL)
		                      : 0;
	}
	r.dense_ms = median(dense, REPETITIONS);
	r.signature_ms = median(signature, REPETITIONS);
	r.pilot_ms = median(pilot, REPETITIONS);
	r.scan_ms = median(scan, REPETITIONS);
	r.paper_ms = with_paper ? median(paper, REPETITIONS) : NAN;
	r.signature_rows /= REPETITIONS;
	r.fetched_rows /= REPETITIONS;
	r.scan_hot_ns = scan_in_cache(&f.kernels, r.bits);
	r.paper_rows = with_paper ? r.paper_rows / REPETITIONS : NAN;
	fill_normal(k, D, 5, 1);
	fill_normal(v, D, 6, 1);
	double append[DECODED];
	for (uint32_t i = 0; i < DECODED; i++) {
		double total = 0;
		for (uint32_t l = 0; l < STRIPS; l++) {
			start = seconds();
			fixture_append(&f, c, l, rows + i, 1, k, v, NULL, 0);
			total += seconds() - start;
		}
		append[i] = total * 1e6 / STRIPS;
		fixture_commit(&f, c, rows + i, 1, false);
	}
	r.append_us = median(append, DECODED);
	context_unref(c);
	fixture_stop(&f);
	return r;
}
