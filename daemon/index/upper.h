// The upper layer of a segment of one strip (upper.c, README.md): its rows' codes in clustered order, and a signature for each group of
// sixteen. Pure functions on arrays, as in index.h.
#ifndef MPIG_INDEX_UPPER_H
#define MPIG_INDEX_UPPER_H

#include "daemon/index/index.h"

struct upper {
	uint32_t rows, groups;        // groups: of SIG_GROUP positions; the last one may end early
	uint8_t *summaries;           // codes of the centroids, SIG_UPPER_BITS wide, sixteen groups interleaved
	uint8_t *codes;               // of the rows, by position
	uint16_t *factors;            // [groups] of the centroids, fp16
	uint16_t *spreads;            // [groups] variance of the rows' codes about their mean per dimension, fp16
	uint16_t *row, *code_factors; // [positions] the segment's row, and its factor
};
// What lies in sig_upper_bytes(d_pad, bits, rows) bytes at `memory` (64-byte aligned).
struct upper upper_at(void *memory, uint32_t d_pad, uint32_t bits, uint32_t rows);

// Codes and factors of consecutive rows of the segment; all but the last of a segment's runs hold a multiple of 16 rows.
struct sig_run {
	const uint8_t *codes;
	const uint16_t *factors;
	uint32_t rows;
};
// Builds into `memory` (sig_upper_bytes) from the codes of `rows` rows, 1 to 65,536, in as many runs as it takes. Deterministic. scratch:
// upper_scratch_bytes.
void upper_build(const struct kernels *k, uint32_t d_pad, uint32_t bits, const struct sig_run *runs, uint32_t rows, void *memory,
                 void *scratch);
size_t upper_scratch_bytes(uint32_t d_pad, uint32_t rows);

// What may come from elsewhere: every row once, and numbers.
bool upper_good(uint32_t d_pad, uint32_t bits, const void *memory, uint32_t rows);

// log of the probability with which a group is looked at: min(0, centroid's estimate + per_spread * spread + log 64 - tau), with
// per_spread = UPPER_SPREAD times the variance of logits inside a group for each unit of its spread.
// What is made of the centroids' estimates of a head: estimate[i] becomes log P of group i, most[i] the largest so far of all heads (-inf
// before the first).
void upper_weigh(float *estimate, const float *spread, uint32_t groups, float per_spread, float tau, float *most);
// Which groups a head looks at: where log_p[i] + noise[i] > 0 (noise = -log U) it becomes tau + log P, elsewhere infinity; nearest[i] the
// least so far of all heads (infinity before the first).
void upper_draw(float *log_p, const float *noise, uint32_t groups, float tau, float *nearest);
#define UPPER_SPREAD .85f
#define UPPER_LOG_ROWS 4.15888308f

#endif
