// What sampling can be expected to give for one KV head, from what the daemon saw of it (struct mpig_head).
//
// Three numbers describe how a head's attention is spread: the effective number of rows n_eff = (sum w)^2 / sum w^2, and the mass of the largest
// 1 % and 5 % of the rows. A curve with these three is made: the largest 1 % follow a power of the rank whose exponent gives n_eff, the next
// 4 % and the rest fall off by powers of the rank that carry their mass and meet. On it, threshold sampling of budget B (each row with
// probability min(1, p / c), c such that the probabilities add up to B) has the relative variance sum over p < c of p (c - p), times
// exp(noise^2) for weights known only by noisy estimates. Accurate to some tens of percent where the shape is smooth; it says which
// heads gain, not what an answer's error is (answers carry their own).
#ifndef MAGICPIGCTL_ANALYZE_MODEL_H
#define MAGICPIGCTL_ANALYZE_MODEL_H

#include <magicpig.h>

#define CURVE_POINTS 192

struct curve { // groups of rows of equal weight, the largest first; weights add up to 1
	int points;
	double rows[CURVE_POINTS], weight[CURVE_POINTS]; // how many rows; the share of the mass of each of them
	double noise2;
};

// rows > 0, n_eff in [1, rows], 0 < mass_1 <= mass_5 <= 1; what does not fit together is bent until it does.
void curve_make(struct curve *curve, double rows, double n_eff, double mass_1, double mass_5, double noise);
// Standard deviation of the mass, relative, when `budget` rows are expected to be read.
double curve_error(const struct curve *curve, double budget);
// The least budget, in rows, at which the error is at most `error`; all rows if it takes them all.
double curve_budget(const struct curve *curve, double error);

// Bytes of K and V of one row, and of its codes.
double layer_row_bytes(const struct mpig_layer *layer);
double layer_code_bytes(const struct mpig_layer *layer, int bits); // 0 bits: none
// How many times less a sampled answer of a KV head costs than a dense one, in bytes of a stream: codes of all rows once, `budget` rows for each
// query head, gathered (which costs twice as much a byte).
double layer_gain(const struct mpig_layer *layer, int bits, double rows, double budget);

#endif
