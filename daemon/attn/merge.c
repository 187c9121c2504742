#include <math.h>
#include <string.h>

#include "daemon/attn/attn.h"

void attn_partial_clear(struct attn_partial *p, uint32_t d_v)
{
	memset(p, 0, attn_partial_bytes(d_v));
	p->m = -INFINITY;
}

void attn_partial_merge(struct attn_partial *a, const struct attn_partial *b, uint32_t d_v)
{
	a->rows += b->rows;
	if (b->m == -INFINITY)
		return;
	float m = a->m > b->m ? a->m : b->m;
	double fa = exp((double)a->m - (double)m), fb = exp((double)b->m - (double)m);
	a->m = m;
	a->sum = a->sum * fa + b->sum * fb;
	a->a = a->a * fa * fa + b->a * fb * fb;
	a->b2 = a->b2 * fa * fa + b->b2 * fb * fb;
	float *to = attn_partial_out(a), ga = (float)fa, gb = (float)fb;
	const float *from = (const float *)(b + 1); // as attn_partial_out
	for (uint32_t j = 0; j < d_v; j++)
		to[j] = to[j] * ga + from[j] * gb;
	ga *= ga;
	gb *= gb;
	for (uint32_t j = d_v; j < 2 * d_v; j++)
		to[j] = to[j] * ga + from[j] * gb;
}

void attn_partial_finish(const struct attn_partial *p, uint32_t d_v, float *out, float *lse, float *error_v, float *error_a)
{
	const float *sum = (const float *)(p + 1), *bv = sum + d_v; // as attn_partial_out, attn_partial_bv
	if (p->m == -INFINITY) {
		memset(out, 0, d_v * sizeof(*out));
		*lse = -INFINITY;
		*error_v = *error_a = 0;
		return;
	}
	enum { LANES = 8 }; // sums beside one another, which need not wait for each other
	double crosses[LANES] = {0}, squares[LANES] = {0}, cross = 0, square = 0, inverse = 1 / p->sum;
	uint32_t whole = d_v / LANES * LANES;
	for (uint32_t j = 0; j < whole; j += LANES)
		for (uint32_t l = 0; l < LANES; l++) {
			double o = (double)sum[j + l] * inverse;
			crosses[l] += o * (double)bv[j + l];
			squares[l] += o * o;
			out[j + l] = (float)o;
		}
	for (uint32_t j = whole; j < d_v; j++) {
		double o = (double)sum[j] * inverse;
		cross += o * (double)bv[j];
		square += o * o;
		out[j] = (float)o;
	}
	for (uint32_t l = 0; l < LANES; l++)
		cross += crosses[l], square += squares[l];
	double v = (p->b2 - 2 * cross + square * p->a) * inverse * inverse;
	*lse = (float)((double)p->m + log(p->sum));
	*error_v = v < 0 ? 0 : (float)v; // by rounding
	*error_a = (float)(p->a * inverse * inverse);
}
