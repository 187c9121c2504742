// The two halves of an ATTEND: attend.c plans it and merges what its units found; proposal.c holds the units, one set of functions per
// way of choosing rows.
#ifndef MPIG_ENGINE_ATTEND_H
#define MPIG_ENGINE_ATTEND_H

#include "daemon/engine/job.h"
#include "daemon/store/format.h"

extern const struct job_ops dense_ops, signature_ops, paper_ops, topk_ops, uniform_ops;

// Query r = t * G + j of KV head g.
static inline const float *attend_query(const struct attend *a, uint32_t g, uint32_t r)
{
	return a->q + ((size_t)g * a->queries + r) * a->layer->shape.d_k;
}
static inline uint32_t attend_token(const struct attend *a, uint32_t r)
{
	return r / a->group_heads;
}
// The model's query head.
static inline uint32_t attend_head(const struct attend *a, uint32_t g, uint32_t r)
{
	return g * a->group_heads + r % a->group_heads;
}
static inline struct attn_partial *attend_partial(const struct attend *a, uint32_t g, uint32_t unit, uint32_t r)
{
	return (struct attn_partial *)(a->partial + (((size_t)g * a->main_units + unit) * a->queries + r) * a->partial_bytes);
}
// Rows of [first, first + n) that query r sees: a prefix.
static inline uint32_t attend_visible(const struct attend *a, uint32_t r, uint64_t first, uint32_t n)
{
	uint64_t limit = a->limit[attend_token(a, r)];
	return limit <= first ? 0 : limit - first < n ? (uint32_t)(limit - first) : n;
}
// Rows of the whole range that query r sees.
static inline uint64_t attend_visible_total(const struct attend *a, uint32_t r)
{
	uint64_t limit = a->limit[attend_token(a, r)];
	return limit > a->view.begin ? limit - a->view.begin : 0;
}
float attend_alibi_slope(const struct attend *a, uint32_t g, uint32_t r);
// The head's logits for rows counted from token position `first`; centre: int8 rows.
struct attn_head attend_logits(const struct attend *a, uint32_t g, uint32_t r, uint64_t first, const float *centre);
// Notes rows fetched and bytes looked at (rows and index).
void attend_count(struct attend *a, uint64_t rows, uint64_t bytes);
int attend_finish(struct job *j, struct engine_scratch *s);
// A unit that attends every visible row of a span.
int attend_span(struct job *j, uint32_t group, uint32_t unit, const struct span *span, struct engine_scratch *s);
int attend_close(struct job *j, uint32_t group, struct engine_scratch *s);
void attend_release(struct job *j);

#endif
