// The two halves of an ATTEND: attend.c plans it and merges what its units found; propose_*.c hold the units, a file per way of choosing
// rows. All of them end in attn_selected or attn_dense, and leave one partial result per (unit, query).
#ifndef MPIG_ENGINE_ATTEND_H
#define MPIG_ENGINE_ATTEND_H

#include "daemon/engine/job.h"
#include "daemon/store/format.h"

// Rows of one unit for one query: while measuring those with the largest terms of the variance, for the answer those that are certain.
enum { HEAVY_ROWS = 8 };
struct heavy {
	uint32_t n, row[HEAVY_ROWS]; // rows as in a selection
	float term[HEAVY_ROWS];      // (1 - pi) e^2, descending
	float neg_log_pi[HEAVY_ROWS];
	uint32_t noise_n;     // uncertain rows of the sample, and of their logit's excess over the estimate:
	double noise, noise2; // sum, sum of squares
};

// A way of choosing rows. What is NULL is not needed.
struct proposal {
	struct job_ops ops;
	bool estimates;                                         // looks at signature codes, and only at those of an indexed strip
	bool draws_rest;                                        // ranked: half of the budget, from the rows below the cut
	int (*check)(struct job *j, const struct layer *layer); // has the layer what it takes?
	uint32_t (*pre_units)(const struct attend *a);          // of a KV head; NULL: one, if there is ops.pre
	uint32_t (*main_units)(const struct attend *a);         // NULL: one per span
	void (*carve)(struct job *j, struct carve *c);          // its arrays; called twice, after main_units is set
	int (*prepare)(struct job *j);                          // once the queries are in place
};
extern const struct proposal dense_proposal, signature_proposal, verified_proposal, paper_proposal, crosspolytope_proposal,
	topk_proposal, uniform_proposal, topk_estimated_proposal, heavy_uniform_proposal, heavy_uniform_estimated_proposal,
	window_proposal;

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
static inline struct heavy *attend_heavy(const struct attend *a, uint32_t g, uint32_t unit, uint32_t r)
{
	return a->heavy + ((size_t)g * a->main_units + unit) * a->queries + r;
}
// Bytes of a row's code and factor.
static inline uint64_t attend_code_bytes(const struct attend *a, uint32_t g)
{
	return mpig_code_bytes(a->layer->shape.d_k, a->view.strip[g].params.bits);
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
// A query for rows of one frame: what is multiplied with them, and what makes logits of the products.
struct row_query {
	const float *q; // the query itself, or `framed`
	struct attn_head head;
	float framed[MPIG_MAX_HEAD_DIM];
};
// For rows counted from token position `first`; frame: of int8 rows, else NULL.
void attend_logits(const struct attend *a, uint32_t g, uint32_t r, uint64_t first, const float *frame, struct row_query *out);
// Copies the group's queries where that was left to its only unit. 0 or the job's failure.
int attend_queries(struct job *j, uint32_t g);
// Notes rows fetched and bytes looked at (rows and index).
void attend_count(struct attend *a, uint32_t g, uint64_t rows, uint64_t bytes);
int attend_finish(struct job *j, struct engine_scratch *s);
// A unit that attends every visible row of a span.
int attend_span(struct job *j, uint32_t group, uint32_t unit, const struct span *span, struct engine_scratch *s);
// The query's units merged in their order into total (partial_bytes).
void attend_merge(const struct attend *a, uint32_t g, uint32_t r, struct attn_partial *total);
// What one unit found, into what another did. In order: see job.h.
int attend_merge_unit(struct job *j, uint32_t group, uint32_t to, uint32_t unit);
int attend_close(struct job *j, uint32_t group, struct engine_scratch *s);
void attend_release(struct job *j);

// ---- verify.c
double verify_deviations(double delta); // z with P(|normal| > z) = delta
uint64_t verify_seed(uint64_t seed);    // of the sample that only measures
// A sample's rows, their -log pi, and what attn_selected left: weights[n] = e_i, then terms [n]. top: m - tau.
void heavy_note(struct heavy *heavy, const uint32_t *row, const float *neg_log_pi, const float *weights, uint32_t n, float top);
// Returns the new n; row and neg_log_pi have room for HEAVY_ROWS more.
uint32_t heavy_force(const struct heavy *heavy, uint32_t *row, float *neg_log_pi, uint32_t n);
int verify_close(struct job *j, uint32_t group, struct engine_scratch *s);
int verify_finish(struct job *j, struct engine_scratch *s);

#endif
