// SimHash (Charikar, STOC 2002): bit b of a bucket's number is the sign of the projection on the table's b-th Gaussian direction.
#include <string.h>

#include "daemon/index/index.h"

enum { RUN = 512 }; // directions whose signs are held at a time: whole tables

static size_t vector_count(const struct table_params *p)
{
	return (size_t)p->K * p->L * p->d_k;
}

static void vectors(struct rng *rng, const struct table_params *p, float *directions)
{
	rng_gaussian(rng, directions, vector_count(p));
}

static void keys(const struct kernels *k, const struct table_params *p, const float *x, uint32_t n, uint16_t *ids,
                 size_t table_step, size_t vector_step)
{
	_Alignas(64) float transposed[SIG_MAX_DIM * SIGNS_KEYS];
	uint16_t positive[RUN];
	uint32_t d = p->d_k, run = RUN / p->K; // tables
	if (n < SIGNS_KEYS)
		memset(transposed, 0, sizeof(transposed));
	for (uint32_t r = 0; r < n; r++)
		for (uint32_t j = 0; j < d; j++)
			transposed[j * SIGNS_KEYS + r] = x[(size_t)r * d + j];
	for (uint32_t first = 0; first < p->L; first += run) {
		uint32_t tables = p->L - first < run ? p->L - first : run;
		k->signs_block(transposed, d, p->vectors + (size_t)first * p->K * d, tables * p->K, positive);
		for (uint32_t t = 0; t < tables; t++) {
			uint16_t id[SIGNS_KEYS] = {0};
			for (uint32_t b = 0; b < p->K; b++)
				for (uint32_t r = 0; r < SIGNS_KEYS; r++)
					id[r] |= (uint16_t)((positive[t * p->K + b] >> r & 1) << b);
			for (uint32_t r = 0; r < n; r++)
				ids[(first + t) * table_step + r * vector_step] = id[r];
		}
	}
}

static void queries(const struct kernels *k, const struct table_params *p, const float *x, uint32_t n, uint16_t *ids,
                    size_t table_step, size_t vector_step)
{
	uint8_t positive[RUN];
	uint32_t run = RUN / p->K;
	for (uint32_t first = 0; first < p->L; first += run) {
		uint32_t tables = p->L - first < run ? p->L - first : run;
		k->signs_queries(x, n, p->d_k, p->vectors + (size_t)first * p->K * p->d_k, tables * p->K, positive);
		for (uint32_t t = 0; t < tables; t++)
			for (uint32_t r = 0; r < n; r++) {
				uint32_t id = 0;
				for (uint32_t b = 0; b < p->K; b++)
					id |= (uint32_t)(positive[t * p->K + b] >> r & 1) << b;
				ids[(first + t) * table_step + r * vector_step] = (uint16_t)id;
			}
	}
}

const struct table_hasher simhash = {keys, queries, vectors, vector_count};
