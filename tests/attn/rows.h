// Random rows in every format, and attention over them in double: the reference of both tests here.
#ifndef MPIG_TESTS_ROWS_H
#define MPIG_TESTS_ROWS_H

#include <string.h>

#include "daemon/attn/attn.h"
#include "daemon/base/rng.h"
#include "tests/index/isas.h"

struct rows {
	struct row_format f;
	uint32_t n;
	uint8_t *bytes;
	float *k, *v;     // as stored: decoded again, K of int8 rows without the centre
	float frame[512]; // of int8 keys: a centre, no scale
};

static inline void rows_make(struct rows *r, uint64_t seed, enum row_type type, uint32_t d_k, uint32_t d_v, uint32_t n)
{
	struct rng rng = {seed};
	r->n = n;
	ck_assert_int_eq(row_format_init(&r->f, type, d_k, d_v), 0);
	r->bytes = need(aligned_alloc(64, (n + 1) * (size_t)r->f.stride / 64 * 64 + 64));
	r->k = floats((size_t)n * d_k);
	r->v = floats((size_t)n * d_v);
	rng_gaussian(&rng, r->k, (size_t)n * d_k);
	rng_gaussian(&rng, r->v, (size_t)n * d_v);
	row_frame_none(d_k, r->frame);
	if (type == ROW_I8)
		rng_gaussian(&rng, r->frame, d_k);
	for (uint32_t i = 0; i < n; i++) {
		float *v = r->v + (size_t)i * d_v;
		for (uint32_t j = 0; j < d_v; j++)
			v[j] += 1; // a mean, as real values have
		row_encode(&r->f, r->k + (size_t)i * d_k, v, r->frame, r->bytes + (size_t)i * r->f.stride);
		row_decode(&r->f, r->bytes + (size_t)i * r->f.stride, NULL, r->k + (size_t)i * d_k, v);
	}
}

static inline void rows_free(struct rows *r)
{
	free(r->bytes);
	free(r->k);
	free(r->v);
}

static inline double reference_logit(const struct rows *r, uint32_t i, const float *q, const struct attn_head *h)
{
	double s = (double)h->q_centre;
	for (uint32_t j = 0; j < r->f.d_k; j++)
		s += (double)q[j] * (double)r->k[(size_t)i * r->f.d_k + j];
	s *= (double)h->scale;
	if (h->softcap > 0)
		s = (double)h->softcap * tanh(s / (double)h->softcap);
	return s + (double)h->alibi_slope * (i + (double)h->alibi_base);
}

struct reference {
	double lse, v, a, out[256];
};

// Rows index[0..n) (NULL: 0..n) with -log pi.
static inline void reference_attend(const struct rows *r, const uint32_t *index, const float *neg_log_pi, uint32_t n,
                                    const float *q, const struct attn_head *h, struct reference *to)
{
	double *s = need(malloc((n + 1) * sizeof(double))), m = (double)-INFINITY, sum = 0;
	memset(to, 0, sizeof(*to));
	to->lse = (double)-INFINITY;
	for (uint32_t i = 0; i < n; i++) {
		s[i] = reference_logit(r, index ? index[i] : i, q, h) + (neg_log_pi ? (double)neg_log_pi[i] : 0);
		m = fmax(m, s[i]);
	}
	for (uint32_t i = 0; i < n; i++)
		sum += exp(s[i] - m);
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < r->f.d_v; j++)
			to->out[j] += exp(s[i] - m) / sum * (double)r->v[(size_t)(index ? index[i] : i) * r->f.d_v + j];
	for (uint32_t i = 0; i < n; i++) {
		double w = exp(s[i] - m) / sum, distance = 0, missing = neg_log_pi ? -expm1(-(double)neg_log_pi[i]) : 0;
		for (uint32_t j = 0; j < r->f.d_v; j++)
			distance += pow((double)r->v[(size_t)(index ? index[i] : i) * r->f.d_v + j] - to->out[j], 2);
		to->v += missing * w * w * distance;
		to->a += missing * w * w;
	}
	if (n)
		to->lse = m + log(sum);
	free(s);
}

struct finished {
	float out[256], lse, v, a;
};

static inline struct attn_partial *partial_new(uint32_t d_v)
{
	struct attn_partial *p = need(malloc(attn_partial_bytes(d_v)));
	attn_partial_clear(p, d_v);
	return p;
}

static inline struct finished finish(const struct attn_partial *p, uint32_t d_v)
{
	struct finished x;
	attn_partial_finish(p, d_v, x.out, &x.lse, &x.v, &x.a);
	return x;
}

// Relative L2 distance.
static inline double out_error(const float *out, const double *reference, uint32_t d_v)
{
	double difference = 0, square = 0;
	for (uint32_t j = 0; j < d_v; j++) {
		difference += pow((double)out[j] - reference[j], 2);
		square += reference[j] * reference[j];
	}
	return sqrt(difference / square);
}

#endif
