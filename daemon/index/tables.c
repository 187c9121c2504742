#include <float.h>
#include <math.h>
#include <string.h>

#include "daemon/index/index.h"
#include "shm/abi.h"

static const struct table_hasher *const hashers[MPIG_HASH_COUNT] = {
	[MPIG_HASH_SIMHASH] = &simhash, [MPIG_HASH_CROSSPOLYTOPE] = &crosspolytope};

// A table blob: starts u32 [L][2^K + 1] | ids u16 [L][rows] | norms f32 [rows], each part at a multiple of 64 bytes.
struct layout {
	size_t ids, norms, bytes;
	uint32_t buckets;
};

static size_t align64(size_t bytes)
{
	return (bytes + 63) & ~(size_t)63;
}

static struct layout layout_of(uint32_t K, uint32_t L, uint32_t rows)
{
	struct layout l = {.buckets = 1u << K};
	l.ids = align64((size_t)L * (l.buckets + 1) * sizeof(uint32_t));
	l.norms = l.ids + align64((size_t)L * rows * sizeof(uint16_t));
	l.bytes = l.norms + align64((size_t)rows * sizeof(float));
	return l;
}

size_t table_bytes(uint32_t K, uint32_t L, uint32_t rows)
{
	return layout_of(K, L, rows).bytes;
}

const float *table_norms(const void *table, uint32_t K, uint32_t L, uint32_t rows)
{
	return (const float *)((const char *)table + layout_of(K, L, rows).norms);
}

bool table_good(const void *table, uint32_t K, uint32_t L, uint32_t rows)
{
	struct layout l = layout_of(K, L, rows);
	const uint32_t *starts = table;
	const uint16_t *ids = (const uint16_t *)((const char *)table + l.ids);
	const float *norms = (const float *)((const char *)table + l.norms);
	for (uint32_t t = 0; t < L; t++, starts += l.buckets + 1, ids += rows) {
		uint32_t high = 0;
		bool good = starts[0] == 0 && starts[l.buckets] == rows;
		for (uint32_t b = 0; b < l.buckets && good; b++)
			good = starts[b] <= starts[b + 1];
		for (uint32_t i = 0; i < rows; i++)
			high = ids[i] > high ? ids[i] : high;
		if (!good || high >= rows)
			return false;
	}
	for (uint32_t i = 0; i < rows; i++)
		if (!(norms[i] >= 0 && norms[i] <= FLT_MAX))
			return false;
	return true;
}

size_t table_vector_count(const struct table_params *p)
{
	return hashers[p->hash]->vector_count(p);
}

void table_vectors(uint64_t seed, const struct table_params *p, float *vectors)
{
	struct rng rng = {rng_hash(rng_hash(seed, p->hash), UINT64_C(0x7061706572))}; // "paper"
	hashers[p->hash]->vectors(&rng, p, vectors);
}

// ---- build -----------------------------------------------------------------------------------------------------------
// Rows sorted by bucket, ascending inside each: a counting sort, filled from the back so that each end becomes its bucket's
// start.
static void fill_table(const uint16_t *id, uint32_t rows, uint32_t buckets, uint32_t *starts, uint16_t *sorted)
{
	memset(starts, 0, buckets * sizeof(*starts));
	for (uint32_t i = 0; i < rows; i++)
		starts[id[i]]++;
	for (uint32_t b = 1; b < buckets; b++)
		starts[b] += starts[b - 1];
	starts[buckets] = rows;
	for (uint32_t i = rows; i-- > 0;)
		sorted[--starts[id[i]]] = (uint16_t)i;
}

// x = (key - mu) * a; returns |x|. The sum runs over sixteen lanes, in an order that does not depend on the compiler.
static float transform(const struct table_params *p, const float *key, float *x)
{
	float lane[16] = {0}, square = 0;
	for (uint32_t j = 0; j < p->d_k; j++)
		x[j] = key[j] - p->mu[j];
	for (uint32_t j = 0; p->balance && j < p->d_k; j++)
		x[j] *= p->balance[j];
	for (uint32_t j = 0; j < p->d_k; j += 16)
		for (uint32_t l = 0; l < 16; l++)
			lane[l] += x[j + l] * x[j + l];
	for (uint32_t l = 0; l < 16; l++)
		square += lane[l];
	return sqrtf(square);
}

void table_build(const struct kernels *k, const struct table_params *p, const float *keys, uint32_t rows, void *table,
                 uint16_t *scratch)
{
	struct layout l = layout_of(p->K, p->L, rows);
	float *norms = (float *)((char *)table + l.norms);
	_Alignas(64) float x[SIGNS_KEYS * SIG_MAX_DIM];
	for (uint32_t first = 0; first < rows; first += SIGNS_KEYS) {
		uint32_t n = rows - first < SIGNS_KEYS ? rows - first : SIGNS_KEYS;
		for (uint32_t r = 0; r < n; r++)
			norms[first + r] = transform(p, keys + (size_t)(first + r) * p->d_k, x + (size_t)r * p->d_k);
		hashers[p->hash]->keys(k, p, x, n, scratch + first, rows, 1);
	}
	for (uint32_t t = 0; t < p->L; t++)
		fill_table(scratch + (size_t)t * rows, rows, l.buckets, (uint32_t *)table + (size_t)t * (l.buckets + 1),
		           (uint16_t *)((char *)table + l.ids) + (size_t)t * rows);
}

void table_hash(const struct kernels *k, const struct table_params *p, const float *q, uint32_t n, uint16_t *ids)
{
	_Alignas(64) float x[SIGNS_QUERIES * SIG_MAX_DIM];
	for (uint32_t first = 0; first < n; first += SIGNS_QUERIES) {
		uint32_t m = n - first < SIGNS_QUERIES ? n - first : SIGNS_QUERIES;
		const float *from = q + (size_t)first * p->d_k;
		memcpy(x, from, (size_t)m * p->d_k * sizeof(*x));
		for (uint32_t r = 0; p->balance && r < m; r++)
			for (uint32_t j = 0; j < p->d_k; j++)
				x[r * p->d_k + j] /= p->balance[j];
		hashers[p->hash]->queries(k, p, x, m, ids + (size_t)first * p->L, 1, p->L);
	}
}

// ---- lookup ----------------------------------------------------------------------------------------------------------
// First of [from, to) whose id is >= row.
static uint32_t lower_bound(const uint16_t *ids, uint32_t from, uint32_t to, uint32_t row)
{
	while (from < to) {
		uint32_t middle = from + (to - from) / 2;
		if (ids[middle] < row)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}

void table_lookup(const struct table_params *p, const void *table, uint32_t rows, const uint16_t *ids, uint32_t begin,
                  uint32_t end, uint64_t *once, uint64_t *twice)
{
	enum { NEAR = 8, FAR = 24 }; // tables ahead: their starts are asked for first, then the ids these point at
	struct layout l = layout_of(p->K, p->L, rows);
	const uint32_t *starts = table;
	const uint16_t *sorted = (const uint16_t *)((const char *)table + l.ids);
	size_t step = l.buckets + 1;
	if (begin >= end)
		return;
	for (uint32_t t = 0; t < p->L; t++) {
		if (t + FAR < p->L)
			__builtin_prefetch(starts + (t + FAR) * step + ids[t + FAR]);
		if (t + NEAR < p->L) {
			const uint32_t *run = starts + (t + NEAR) * step + ids[t + NEAR];
			for (uint32_t i = run[0]; i < run[1]; i += 32)
				__builtin_prefetch(sorted + (size_t)(t + NEAR) * rows + i);
		}
		const uint16_t *bucket = sorted + (size_t)t * rows;
		uint32_t from = starts[t * step + ids[t]], to = starts[t * step + ids[t] + 1];
		if (begin > 0)
			from = lower_bound(bucket, from, to, begin);
		if (end < rows)
			to = lower_bound(bucket, from, to, end);
		for (uint32_t i = from; i < to; i++) {
			uint32_t word = bucket[i] / 64;
			uint64_t bit = UINT64_C(1) << (bucket[i] % 64);
			twice[word] |= once[word] & bit;
			once[word] |= bit;
		}
	}
	memset(once + begin / 64, 0, ((end - 1) / 64 - begin / 64 + 1) * sizeof(*once));
}

// ---- inclusion probability -------------------------------------------------------------------------------------------
double log_pi_of_collision(double P, uint32_t L)
{
	double miss = pow(1 - P, L - 1.);
	double u = 1 - (1 - P) * miss - L * P * miss;
	return log((u > 0 ? u : 0) + 1e-4);
}

double table_collision(uint32_t hash, uint32_t d_pad, uint32_t K, double angle)
{
	if (hash == MPIG_HASH_SIMHASH)
		return pow(1 - angle / M_PI, K);
	const float *log_p = crosspolytope_log_p[d_pad == 64 ? 0 : d_pad == 128 ? 1 : 2];
	double at = angle / M_PI * CROSSPOLYTOPE_STEPS;
	uint32_t i = at < CROSSPOLYTOPE_STEPS ? (uint32_t)at : CROSSPOLYTOPE_STEPS - 1;
	return exp((double)log_p[i] + (at - i) * ((double)log_p[i + 1] - (double)log_p[i]));
}

// Steps are uniform in t(c) = sqrt(1 - c) for c >= 0 and 2 - sqrt(1 + c) below: smooth, and as an angle at both ends, without an arc
// cosine per row.
enum { PI_STEPS = sizeof(((struct table_pi *)0)->node) / sizeof(float) - 1 };

void table_pi_init(struct table_pi *t, const struct table_params *p)
{
	for (uint32_t i = 0; i <= PI_STEPS; i++) {
		double x = 2. * i / PI_STEPS, c = x <= 1 ? 1 - x * x : (2 - x) * (2 - x) - 1, angle = acos(c);
		t->node[i] = (float)log_pi_of_collision(table_collision(p->hash, p->d_pad, p->K, angle), p->L);
	}
}

float table_pi_get(const struct table_pi *t, float cosine)
{
	float c = isnan(cosine) ? 0 : cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
	float root = sqrtf(1 - fabsf(c)), at = (c < 0 ? 2 - root : root) * (PI_STEPS / 2);
	uint32_t i = (uint32_t)at;
	if (i >= PI_STEPS)
		return t->node[PI_STEPS];
	float part = at - (float)i;
	return t->node[i] + part * (t->node[i + 1] - t->node[i]);
}
