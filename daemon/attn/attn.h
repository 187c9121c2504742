// Sampled attention over a selection, partial results, and their merge.
//
//   logit_i = s_i - log pi_i;   out = softmax-weighted mean of v_i;   LSE = log sum exp(logit_i)
//
// One kernel takes (rows, log pi) and serves every proposal. Pure functions; all scratch is the caller's.
#ifndef MPIG_ATTN_H
#define MPIG_ATTN_H

#include <stdint.h>

#include "daemon/kernels/kernels.h"

// What one query head got from one set of rows. Unnormalised: out = sum_i exp(logit_i - m) v_i.
struct attn_partial {
	float m; // the largest logit; -inf: no row
	uint32_t rows;
	double sum; // sum_i exp(logit_i - m)
	double a;   // sum_i (1 - pi_i) e_i^2            with e_i = exp(logit_i - m)
	double b2;  // sum_i (1 - pi_i) e_i^2 |v_i|^2
	// followed in memory (see attn_partial_bytes) by float out[d_v] = sum e_i v_i and float bv[d_v] = sum (1-pi) e_i^2 v_i
};
struct attn_head { // the logits of one head
	float scale, softcap;
	float q_centre;                // q.centre of int8 rows, before scaling
	float alibi_slope, alibi_base; // s += slope * (row + alibi_base), row counted in the run
};

static inline size_t attn_partial_bytes(uint32_t d_v)
{
	return sizeof(struct attn_partial) + 2 * (size_t)d_v * sizeof(float);
}
static inline float *attn_partial_out(struct attn_partial *p)
{
	return (float *)(p + 1);
}
static inline float *attn_partial_bv(struct attn_partial *p, uint32_t d_v)
{
	return (float *)(p + 1) + d_v;
}

void attn_partial_clear(struct attn_partial *p, uint32_t d_v);
// One head over n selected rows (index) with -log pi (neg_log_pi, or NULL: all certain). Overwrites *p. scratch: 2 * n floats; with
// neg_log_pi they hold e_i and then (1 - pi_i) e_i^2 afterwards, unless p->m is -inf.
void attn_selected(const struct kernels *k, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                   const float *neg_log_pi, uint32_t n, const float *q, const struct attn_head *h, struct attn_partial *p,
                   float *scratch);
// The same with q.K of the rows already in scratch[0..n). without_errors: a, b2 and bv stay 0, for a sample whose rows are not
// chosen independently; scratch holds e_i alone.
void attn_scored(const struct kernels *k, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                 const float *neg_log_pi, bool without_errors, uint32_t n, const struct attn_head *h, struct attn_partial *p,
                 float *scratch);
// All `heads` of a group over the contiguous rows [0, n): head h sees rows < limit[h] (limit NULL: all). partials are `stride`
// bytes apart. q [heads][d_k]. Rows are read once for all heads. scratch: heads * n floats.
void attn_dense(const struct kernels *k, const struct row_format *f, const uint8_t *rows, uint32_t n, const float *q,
                const struct attn_head *h, uint32_t heads, const uint32_t *limit, struct attn_partial *partials, size_t stride,
                float *scratch);
// a += b. Associative up to rounding; callers merge in a fixed order so that results do not depend on who computed what.
void attn_partial_merge(struct attn_partial *a, const struct attn_partial *b, uint32_t d_v);
// out [d_v] normalised, LSE, and the error terms V = sum (1-pi) a_i^2 |v_i - out|^2, A = sum (1-pi) a_i^2 with a_i the normalised
// weights. No rows: out 0, LSE -inf, V = A = 0. V comes from b2 - 2 out.bv + |out|^2 a, so it is rounded to about 1e-6 A |out|^2.
// A NaN in q or the rows comes out as NaN.
void attn_partial_finish(const struct attn_partial *p, uint32_t d_v, float *out, float *lse, float *error_v, float *error_a);

#endif
