#include "daemon/attn/attn.h"

#include <math.h>
#include <string.h>

enum {
	CHUNK = 256, // rows of a dense pass at a time: their keys and values stay in L2 between scores and values
	BATCH = 8,   // heads that share one visit to a chunk
	MAX_DIM = 256
};

// s = cap * tanh(s / cap), by tanh |x| = (1 - t) / (1 + t) with t = exp(-2 |x|). Absolute error <= 1e-6 cap.
static void soft_cap(const struct kernels *k, float *s, uint32_t n, float cap)
{
	float t[CHUNK], to_exponent = 2 / cap;
	for (uint32_t from = 0; from < n; from += CHUNK) {
		uint32_t m = n - from < CHUNK ? n - from : CHUNK;
		float *x = s + from;
		for (uint32_t i = 0; i < m; i++)
			t[i] = -to_exponent * fabsf(x[i]);
		k->exp_sum(t, m, 0);
		for (uint32_t i = 0; i < m; i++)
			x[i] = copysignf(cap * ((1 - t[i]) / (1 + t[i])), x[i]);
	}
}

// From q.K to logits. The i-th of the n rows is index[i], or first + i.
static void logits(const struct kernels *k, const struct attn_head *h, const uint32_t *index, uint32_t first, float *s,
                   uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		s[i] = h->scale * (s[i] + h->q_centre);
	if (h->softcap > 0)
		soft_cap(k, s, n, h->softcap);
	if (h->alibi_slope == 0)
		return;
	for (uint32_t i = 0; i < n; i++)
		s[i] += h->alibi_slope * ((float)(index ? index[i] : first + i) + h->alibi_base);
}

void attn_selected(const struct kernels *k, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                   const float *neg_log_pi, uint32_t n, const float *q, const struct attn_head *h, struct attn_partial *p,
                   float *scratch)
{
	k->scores[f->type](f, rows, index, n, q, 1, scratch, n);
	attn_scored(k, f, rows, index, neg_log_pi, !neg_log_pi, n, h, p, scratch);
}

void attn_scored(const struct kernels *k, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                 const float *neg_log_pi, bool without_errors, uint32_t n, const struct attn_head *h, struct attn_partial *p,
                 float *scratch)
{
	// e and (1 - pi) e^2 side by side, as values_squares wants its weights: one visit to each V gives out and bv, which are
	// neighbours too, and b2.
	float *e = scratch, *c = scratch + n;
	attn_partial_clear(p, f->d_v);
	p->rows = n;
	logits(k, h, index, 0, e, n);
	if (neg_log_pi)
		for (uint32_t i = 0; i < n; i++)
			e[i] += neg_log_pi[i];
	p->m = k->max(e, n);
	if (p->m == -INFINITY)
		return;
	p->sum = k->exp_sum(e, n, p->m);
	if (without_errors) {
		k->values[f->type](f, rows, index, n, e, n, 1, attn_partial_out(p));
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		c[i] = neg_log_pi[i] > 0 ? -neg_log_pi[i] : 0;
	k->exp_sum(c, n, 0); // pi
	for (uint32_t i = 0; i < n; i++)
		c[i] = (1 - c[i]) * e[i] * e[i];
	p->b2 = k->values_squares[f->type](f, rows, index, n, scratch, n, attn_partial_out(p));
	for (uint32_t i = 0; i < n; i++)
		p->a += (double)c[i];
}

// One head's chunk: s becomes weights relative to the new maximum, 0 beyond `visible`, and what the partial held is brought to
// it.
static void rescale(const struct kernels *k, struct attn_partial *p, uint32_t d_v, float *s, uint32_t n, uint32_t visible)
{
	float m = k->max(s, visible);
	p->rows += visible;
	if (!(m <= p->m)) { // a NaN is taken over, not hidden
		double shrink = exp((double)p->m - (double)m);
		float *out = attn_partial_out(p), by = (float)shrink;
		for (uint32_t j = 0; j < d_v; j++)
			out[j] *= by;
		p->sum *= shrink;
		p->m = m;
	}
	if (p->m == -INFINITY)
		visible = 0;
	else
		p->sum += k->exp_sum(s, visible, p->m);
	memset(s + visible, 0, (n - visible) * sizeof(*s));
}

void attn_dense(const struct kernels *k, const struct row_format *f, const uint8_t *rows, uint32_t n, const float *q,
                const struct attn_head *h, uint32_t heads, const uint32_t *limit, struct attn_partial *partials, size_t stride,
                float *scratch)
{
	uint32_t last = limit ? 0 : n; // no head sees a row from here on
	for (uint32_t i = 0; i < heads; i++) {
		attn_partial_clear((struct attn_partial *)((char *)partials + i * stride), f->d_v);
		if (limit && limit[i] > last)
			last = limit[i] < n ? limit[i] : n;
	}
	for (uint32_t first = 0; first < last; first += CHUNK) {
		uint32_t m = last - first < CHUNK ? last - first : CHUNK;
		const uint8_t *chunk = rows + (size_t)first * f->stride;
		for (uint32_t from = 0; from < heads; from += BATCH) {
			uint32_t batch = heads - from < BATCH ? heads - from : BATCH;
			float sum[BATCH * MAX_DIM];
			memset(sum, 0, (size_t)batch * f->d_v * sizeof(*sum));
			k->scores[f->type](f, chunk, NULL, m, q + (size_t)from * f->d_k, batch, scratch, m);
			for (uint32_t i = 0; i < batch; i++) {
				struct attn_partial *p = (struct attn_partial *)((char *)partials + (from + i) * stride);
				float *s = scratch + (size_t)i * m;
				uint32_t bound = limit ? limit[from + i] : last;
				uint32_t visible = bound <= first ? 0 : bound - first < m ? bound - first : m;
				logits(k, h + from + i, NULL, first, s, visible);
				rescale(k, p, f->d_v, s, m, visible);
			}
			k->values[f->type](f, chunk, NULL, m, scratch, m, batch, sum);
			for (uint32_t i = 0; i < batch; i++) {
				float *out = attn_partial_out((struct attn_partial *)((char *)partials + (from + i) * stride));
				for (uint32_t j = 0; j < f->d_v; j++)
					out[j] += sum[(size_t)i * f->d_v + j];
			}
		}
	}
}
