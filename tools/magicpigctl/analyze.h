// magicpigctl analyze: what its parts share.
#ifndef MAGICPIGCTL_ANALYZE_H
#define MAGICPIGCTL_ANALYZE_H

#include <stdbool.h>
#include <stdio.h>

#include "analyze_model.h"

#define ANALYZE_PAYS 1.5 // gain from which sampling is worth its while

struct analyzed_head {
	const struct mpig_head *seen;
	const struct mpig_layer *layer;
	bool known;    // enough answers were seen
	double error;  // at the budget asked about
	double needed; // share of the rows that the error asked for takes
	double gain;   // at that error; at most what the codes' scan leaves, and 1 where all rows are read anyway
};
struct analyzed_layer {
	int number, kv_heads, known;               // known: of its heads
	double n_eff, mass_1, error, needed, gain; // medians; the error is the worst head's
	bool pays;
};
struct analysis {
	struct mpig_context_info info;
	double error_target, budget;
	struct analyzed_head *head;
	int heads, known;
	struct analyzed_layer *layer; // those that store rows
	int layers, paying;
	double rows;   // that the figures are of, the most of any head
	double needed; // of all rows of all known heads, at the error asked for
	double gain;   // of all of them together, where those that do not pay stay dense
};

void analyze_html(FILE *out, const struct analysis *a);

#endif
