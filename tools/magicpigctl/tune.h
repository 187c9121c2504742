// magicpigctl tune: queries that were asked, ways of answering them, what each of these costs and errs by, and what was chosen.
#ifndef MAGICPIGCTL_TUNE_H
#define MAGICPIGCTL_TUNE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <magicpig.h>

#include "config/profile.h"
#include "tune_allocate.h"

#define TUNE_LAYERS 512
#define TUNE_WAYS 64
#define TUNE_SEEDS 32
#define TUNE_CURVE 24
#define TUNE_WHY_BYTES 256

enum tune_half { TUNE_FIT, TUNE_CHECK, TUNE_HALVES }; // of the queries: what is chosen by, and what the choice is checked on

struct tune_step {                  // one query token of one layer
	uint64_t begin, end, after; // rows [begin, end) are the daemon's; the client's own are before begin, and up to after
	uint64_t position;
	bool tells_lse, tells_out;        // the client tells the daemon of its own part
	bool own_known;                   // own_lse and own_out were recorded; else the context's rows give them
	float *q;                         // [query_heads][d_k]
	float *own_lse, *own_out, *exact; // [query_heads], [query_heads][d_v] twice; of the same allocation as q
};

struct tune_way {     // how a layer can be answered
	int proposal; // enum mpig_proposal
	float budget, error_target, floor, cap;
	int bits, paper_k, paper_l; // of an index that the context has not; all 0: as it is
};

struct tune_cell { // sums over steps
	double error2, rows, looked,
		count; // mean over the heads of (relative error)^2; rows read; rows of the range x KV heads; steps
};

struct tune_layer {
	int number;
	struct mpig_layer spec;
	int steps;
	struct tune_step *step;
	struct tune_way way[TUNE_WAYS];
	bool can[TUNE_WAYS];
	double code_bytes; // of a row's code, mean over the KV heads
	struct tune_cell cell[TUNE_WAYS][TUNE_SEEDS][TUNE_HALVES];
	float *ns[TUNE_WAYS]; // [steps * seeds]
	int ns_count[TUNE_WAYS];
};

struct tune_rates {               // nanoseconds
	double request;           // of a request
	double dense, scan, read; // of a row and KV head that is attended densely, looked at, read
	double lookup;            // of a hash bit of a query (K L of them for each head)
	double scan_bits[3];      // as scan, of codes of 1, 2 and 4 bits; 0: not known, by their bytes
};

struct tune {
	// asked for
	const char *name;
	double load;        // share of the time that a request of ours is in flight
	int queries, seeds; // of a layer at most; draws
	uint32_t seed;
	uint64_t sinks, window; // of queries whose ranges nobody has noted
	struct tune_goal goal;
	bool index; // ways that ask for another index, too
	// found
	struct mpig_context_info info;
	float error_target, floor, cap; // of the daemon
	struct mpig_layer *spec;
	int layer_count, layers; // of the spec; of these, that store rows
	struct tune_layer *layer;
	bool profiled; // `before` is a profile
	int ways, before, dense, ladder,
		ladder_end;   // before, dense: ways; [ladder, ladder_end): the daemon's rule at other errors
	int as_is[TUNE_WAYS]; // the same rule with the index as it is
	struct tune_rates rates;
	bool rates_given;
	const char *rates_from; // in words
	uint64_t rates_tokens;  // of the context on which they were measured; 0: given
	uint64_t requests, rows_read;
	double seconds, busy_s;
	void (*progress)(const struct tune *t, double share);
};

extern volatile sig_atomic_t tune_interrupted;

// ---- tune_queries.c: fill t->layer[].step. 0, or -1 and why (TUNE_WHY_BYTES)
int tune_queries_trace(struct tune *t, const char *path, char *why);
int tune_queries_noted(struct tune *t, mpig_client *client, char *why); // those that the daemon has noted
void tune_layers_free(struct tune *t);

// ---- tune_ways.c
// The ways each layer can be answered: as now, by error, by share, dense, through tables. profile: in force, or NULL.
void tune_ways(struct tune *t, const struct profile *profile);
// K L query heads, of the tables that a way goes through, else 0.
double tune_hash_bits(const struct mpig_layer *l, const struct tune_way *way);

// ---- tune_measure.c
// Asks all queries in all ways, on forks of the context that are dropped again. A status; MPIG_EAGAIN with tune_interrupted.
int tune_measure(struct tune *t, mpig_client *client);

// ---- tune_choose.c
struct tune_choice {
	int way[TUNE_LAYERS];    // of each layer that stores rows
	struct tune_total check; // on the queries of the check, all draws
};
struct tune_result {
	bool reached;
	struct tune_choice before, after, of_seed[TUNE_SEEDS]; // of_seed: chosen by the draws of one seed alone
	struct tune_total of_draw[TUNE_SEEDS];                 // what `after` does on one seed's draws
	struct tune_total uniform[TUNE_WAYS],
		tuned[TUNE_CURVE]; // all layers at one rung of the ladder; at the best for so much time
	int uniform_count, tuned_count;
	int reindexed;             // layers for which another index was chosen,
	struct tune_total present; // ... and what the same rules do with the index as it is
	int agree;                 // layers for which all seeds choose the same
};
// seed -1: all draws together.
struct tune_point tune_point_of(const struct tune *t, int layer, int way, int seed, enum tune_half half);
double tune_share(const struct tune *t, int layer,
                  int way); // of the range's rows that are read, mean over queries, draws and KV heads
bool tune_choose(const struct tune *t, struct tune_result *r); // false: no memory
void tune_profile(const struct tune *t, const struct tune_result *r, struct profile *profile);

// ---- tune_report.c, tune_html.c
const char *tune_way_text(const struct tune_way *way, char text[64]);
void tune_print(const struct tune *t, const struct tune_result *r);
void tune_json(const struct tune *t, const struct tune_result *r, const struct profile *profile);
void tune_html(FILE *out, const struct tune *t, const struct tune_result *r);

#endif
