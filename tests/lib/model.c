#include "tests/lib/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

uint64_t model_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

// In (0, 1).
static double uniform(uint64_t *state)
{
	return ((double)(model_random(state) >> 11) + 0.5) * 0x1p-53;
}

void model_normal(float *x, size_t n, uint64_t seed)
{
	uint64_t state = seed;
	for (size_t i = 0; i < n; i += 2) { // Box-Muller
		double radius = sqrt(-2 * log(uniform(&state))), angle = 2 * M_PI * uniform(&state);
		x[i] = (float)(radius * cos(angle));
		if (i + 1 < n)
			x[i + 1] = (float)(radius * sin(angle));
	}
}

void model_heavy(float *x, size_t rows, size_t d, uint64_t seed)
{
	uint64_t state = ~seed;
	model_normal(x, rows * d, seed);
	for (size_t r = 0; r < rows; r++) {
		float factor = (float)fmin(8, 1 / sqrt(uniform(&state)));
		for (size_t j = 0; j < d; j++)
			x[r * d + j] *= factor;
	}
}

void model_round_bf16(float *x, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		memcpy(&bits, &x[i], sizeof(bits));
		bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
		memcpy(&x[i], &bits, sizeof(bits));
	}
}

static double logit(const struct model_attention *a, uint32_t t, uint32_t head, uint64_t row)
{
	uint32_t kv_head = head / (a->query_heads / a->kv_heads);
	const float *q = a->q + ((size_t)t * a->query_heads + head) * a->d_k, *k = a->k + (row * a->kv_heads + kv_head) * a->d_k;
	double s = 0;
	for (uint32_t j = 0; j < a->d_k; j++)
		s += (double)q[j] * (double)k[j];
	s *= a->scale != 0 ? a->scale : 1 / sqrt(a->d_k);
	if (a->softcap > 0)
		s = a->softcap * tanh(s / a->softcap);
	if (a->alibi_slope_base > 0)
		s += pow(a->alibi_slope_base, head + 1) * ((double)row - (double)(a->query_position + t));
	return s;
}

static void attend_head(const struct model_attention *a, uint32_t t, uint32_t head, double *weights, double *out, double *lse)
{
	uint32_t kv_head = head / (a->query_heads / a->kv_heads);
	uint64_t end = a->causal && a->causal_base + t < a->end ? a->causal_base + t : a->end;
	double greatest = -INFINITY, sum = 0;
	memset(out, 0, a->d_v * sizeof(*out));
	for (uint64_t row = a->begin; row < end; row++) {
		weights[row - a->begin] = logit(a, t, head, row);
		greatest = fmax(greatest, weights[row - a->begin]);
	}
	for (uint64_t row = a->begin; row < end; row++) {
		double w = exp(weights[row - a->begin] - greatest);
		const float *v = a->v + (row * a->kv_heads + kv_head) * a->d_v;
		sum += w;
		for (uint32_t j = 0; j < a->d_v; j++)
			out[j] += w * (double)v[j];
	}
	for (uint32_t j = 0; j < a->d_v && sum > 0; j++)
		out[j] /= sum;
	*lse = sum > 0 ? greatest + log(sum) : -INFINITY;
}

void model_attend(const struct model_attention *a, double *out, double *lse)
{
	double *weights = calloc(a->end > a->begin ? a->end - a->begin : 1, sizeof(*weights));
	if (!weights)
		abort();
	for (uint32_t t = 0; t < a->tokens; t++)
		for (uint32_t head = 0; head < a->query_heads; head++) {
			size_t at = (size_t)t * a->query_heads + head;
			attend_head(a, t, head, weights, out + at * a->d_v, &lse[at]);
		}
	free(weights);
}

double model_relative_l2(const float *a, const double *b, size_t n)
{
	double difference = 0, norm = 0;
	for (size_t i = 0; i < n; i++) {
		difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
		norm += b[i] * b[i];
	}
	return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

double model_max_difference(const float *a, const double *b, size_t n)
{
	double greatest = 0;
	for (size_t i = 0; i < n; i++) {
		if ((double)a[i] == b[i])
			continue;
		double difference = fabs((double)a[i] - b[i]);
		if (isnan(difference))
			return INFINITY;
		greatest = fmax(greatest, difference);
	}
	return greatest;
}
