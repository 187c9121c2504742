// A segment of a strip through its upper layer: groups of alike rows are looked at with a probability of their own, and rows are
// chosen inside those (daemon/index/README.md).
#ifndef MPIG_ENGINE_UPPER_H
#define MPIG_ENGINE_UPPER_H

#include "daemon/engine/selection.h"
#include "daemon/index/upper.h"

// A query against summaries: where codes are centred, and UPPER_SPREAD times the logit's variance inside a group for each unit of its spread.
struct upper_query {
	float zero, per_spread;
};

// Whether the span's segment is looked at through its upper layer, in one unit.
bool upper_through(const struct attend *a, uint32_t span);

// Sets upper_query for queries [from, to) of a KV head, which are signed.
void upper_prepare(struct job *j, uint32_t g, uint32_t from, uint32_t to);

// Bytes of scratch that upper_attend takes.
size_t upper_scratch(const struct attend *a);
// Queries [r0, r0 + heads) of one token, heads <= signature_batch: their partials of the unit are set. False, and nothing is set: so many
// groups would have to be looked at that a scan of all rows is as good. That depends on the queries and the rows, not on any random
// number.
bool upper_attend(struct job *j, uint32_t g, uint32_t unit, uint32_t r0, uint32_t heads, void *scratch);

#endif
