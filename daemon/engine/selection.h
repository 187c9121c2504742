// What a unit of a sampling proposal ends in: attention over a selection of rows of one block, and a count of the rows that were fetched.
#ifndef MPIG_ENGINE_SELECTION_H
#define MPIG_ENGINE_SELECTION_H

#include "daemon/engine/attend.h"

// Positions are counted from `base` (token position `first`); ascending.
struct selection {
	const uint8_t *base;
	uint64_t first;
	const float *frame; // of int8 rows
	const uint32_t *index;
	const float *neg_log_pi; // NULL: all certain
	uint32_t n;
};

// Query r of KV head g over the selection. scratch: 3 x n floats; the first n hold the rows' weights afterwards.
void attend_selection(struct job *j, uint32_t g, uint32_t r, const struct selection *sel, struct attn_partial *p, float *scratch);

// Rows wanted by at least one head count once.
struct row_set {
	uint64_t word[BLOCK_MAX_ROWS / 64 + 1];
};
void row_set_add(struct row_set *set, const uint32_t *row, uint32_t n);
uint64_t row_set_count(const struct row_set *set);

#endif
