// Joining partial attention results: log-sum-exp merge (Milakov and Gimelshein, arXiv 1805.02867, section 3), and the error of
// the merged output from the Poisson-design variance terms of its partials.
#include "internal.h"

#include <math.h>

void mpig_merge(size_t heads, size_t d_v, float *out_a, float *lse_a, const float *out_b, const float *lse_b)
{
	for (size_t h = 0; h < heads; h++) {
		const float *b = out_b + h * d_v;
		float *a = out_a + h * d_v;
		double la = lse_a[h], lb = lse_b[h];
		if (lb == -HUGE_VAL) { // no row in b; and if none in a either, a is the empty result it must be
			if (la == -HUGE_VAL)
				for (size_t j = 0; j < d_v; j++)
					a[j] = 0;
			continue;
		}
		double top = la > lb ? la : lb;
		double wa = exp(la - top), wb = exp(lb - top), sum = wa + wb;
		double share_a = wa / sum, share_b = wb / sum;
		for (size_t j = 0; j < d_v; j++) // an empty part's bytes are never looked at
			a[j] = (float)((share_a > 0 ? share_a * a[j] : 0) + share_b * b[j]);
		lse_a[h] = (float)(top + log(sum));
	}
}

static double largest_lse(size_t count, const float *const *lse, size_t h)
{
	double top = -HUGE_VAL;
	for (size_t p = 0; p < count; p++)
		if (lse[p][h] > top)
			top = lse[p][h];
	return top;
}

static double square_distance(const float *a, const float *b, size_t d)
{
	double sum = 0;
	for (size_t j = 0; j < d; j++)
		sum += ((double)a[j] - b[j]) * ((double)a[j] - b[j]);
	return sum;
}

static double length(const float *a, size_t d)
{
	double sum = 0;
	for (size_t j = 0; j < d; j++)
		sum += (double)a[j] * a[j];
	return sqrt(sum);
}

void mpig_merge_error(size_t heads, size_t d_v, size_t count, const float *const *out, const float *const *lse,
                      const float *const *error_v, const float *const *error_a, const float *merged_out, float *err)
{
	for (size_t h = 0; h < heads; h++) {
		const float *merged = merged_out + h * d_v;
		double top = largest_lse(count, lse, h), mass = 0, variance = 0;
		for (size_t p = 0; p < count; p++)
			mass += lse[p][h] > -HUGE_VALF ? exp(lse[p][h] - top) : 0;
		for (size_t p = 0; p < count; p++) {
			if (!(lse[p][h] > -HUGE_VALF) || (!(error_v && error_v[p]) && !(error_a && error_a[p])))
				continue; // empty or exact
			double lambda = exp(lse[p][h] - top) / mass;
			double v = error_v && error_v[p] ? error_v[p][h] : 0, a = error_a && error_a[p] ? error_a[p][h] : 0;
			variance += lambda * lambda * (v + square_distance(out[p] + h * d_v, merged, d_v) * a);
		}
		double size = length(merged, d_v);
		err[h] = variance > 0 ? (float)(sqrt(variance) / size) : 0;
	}
}
