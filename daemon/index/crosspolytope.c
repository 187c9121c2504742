// Cross-polytope hashing (Andoni et al., NeurIPS 2015): a bucket is the index and sign of the largest coordinate after a random rotation,
// here H D3 H D2 H D1 of the padded vector, drawn for every table.
#include <math.h>
#include <string.h>

#include "daemon/index/index.h"

static size_t vector_count(const struct table_params *p)
{
	return (size_t)p->L * 3 * p->d_pad;
}

static void vectors(struct rng *rng, const struct table_params *p, float *signs)
{
	for (size_t i = 0, n = vector_count(p); i < n; i += 64) {
		uint64_t bits = rng_next(rng);
		for (uint32_t b = 0; b < 64; b++)
			signs[i + b] = bits >> b & 1 ? 1.f : -1.f;
	}
}

// 2 * index + (negative) of the largest |y|, the first of equals.
static uint32_t largest(const float *y, uint32_t d)
{
	float lane[16] = {0}, most = 0;
	for (uint32_t j = 0; j < d; j += 16)
		for (uint32_t l = 0; l < 16; l++)
			lane[l] = fabsf(y[j + l]) > lane[l] ? fabsf(y[j + l]) : lane[l];
	for (uint32_t l = 0; l < 16; l++)
		most = lane[l] > most ? lane[l] : most;
	uint32_t at = 0;
	while (at < d - 1 && fabsf(y[at]) != most)
		at++;
	return 2 * at + (y[at] < 0);
}

static void hash(const struct kernels *k, const struct table_params *p, const float *x, uint32_t n, uint16_t *ids,
                 size_t table_step, size_t vector_step)
{
	_Alignas(64) float y[SIG_MAX_DIM];
	for (uint32_t t = 0; t < p->L; t++)
		for (uint32_t r = 0; r < n; r++) {
			memcpy(y, x + (size_t)r * p->d_k, p->d_k * sizeof(*y));
			memset(y + p->d_k, 0, (p->d_pad - p->d_k) * sizeof(*y));
			k->rotate(y, p->d_pad, p->vectors + (size_t)t * 3 * p->d_pad);
			ids[t * table_step + r * vector_step] = (uint16_t)largest(y, p->d_pad);
		}
}

const struct table_hasher crosspolytope = {hash, hash, vectors, vector_count};
