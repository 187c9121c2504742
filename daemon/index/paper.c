#include <math.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"

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

size_t paper_table_bytes(uint32_t K, uint32_t L, uint32_t rows)
{
	return layout_of(K, L, rows).bytes;
}

const float *paper_norms(const void *table, uint32_t K, uint32_t L, uint32_t rows)
{
	return (const float *)((const char *)table + layout_of(K, L, rows).norms);
}

void paper_directions(uint64_t seed, uint32_t layer, uint32_t kv_head, uint32_t d_k, uint32_t count, float *directions)
{
	struct rng rng = {rng_hash(rng_hash(seed, (uint64_t)layer << 32 | kv_head), UINT64_C(0x7061706572))}; // "paper"
	rng_gaussian(&rng, directions, (size_t)count * d_k);
}

// ---- hashing ---------------------------------------------------------------------------------------------------------
// Bit b of a table's id is the sign of the projection on its b-th direction. Both loops below are written once and compiled
// twice: for the baseline, and for AVX2 without fused multiply-add, so that every ISA files a key under the same buckets.
enum { BLOCK = 16, TILE = 4 };
typedef float float4 __attribute__((vector_size(16), aligned(4)));
typedef float float8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t mask4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t mask8 __attribute__((vector_size(32), aligned(4)));

// Sixteen keys, transposed ([d][BLOCK]), on TILE directions: positive[t][r] = -1 where key r is on the positive side, 0
// elsewhere.
#define DEFINE_PROJECT(name, lanes, masks, attributes)                                                                           \
	attributes static void name(const float *keys, const float *directions, uint32_t d, int32_t positive[TILE][BLOCK])       \
	{                                                                                                                        \
		enum { WIDTH = sizeof(lanes) / sizeof(float) };                                                                  \
		const float *d0 = directions, *d1 = d0 + d, *d2 = d1 + d, *d3 = d2 + d;                                          \
		for (uint32_t r = 0; r < BLOCK; r += 2 * WIDTH) {                                                                \
			const float *x = keys + r;                                                                               \
			lanes s00 = {0}, s01 = {0}, s10 = {0}, s11 = {0}, s20 = {0}, s21 = {0}, s30 = {0}, s31 = {0};            \
			for (uint32_t j = 0; j < d; j++, x += BLOCK) {                                                           \
				lanes low = *(const lanes *)x, high = *(const lanes *)(x + WIDTH);                               \
				s00 += low * d0[j], s01 += high * d0[j];                                                         \
				s10 += low * d1[j], s11 += high * d1[j];                                                         \
				s20 += low * d2[j], s21 += high * d2[j];                                                         \
				s30 += low * d3[j], s31 += high * d3[j];                                                         \
			}                                                                                                        \
			*(masks *)&positive[0][r] = s00 > 0, *(masks *)&positive[0][r + WIDTH] = s01 > 0;                        \
			*(masks *)&positive[1][r] = s10 > 0, *(masks *)&positive[1][r + WIDTH] = s11 > 0;                        \
			*(masks *)&positive[2][r] = s20 > 0, *(masks *)&positive[2][r + WIDTH] = s21 > 0;                        \
			*(masks *)&positive[3][r] = s30 > 0, *(masks *)&positive[3][r + WIDTH] = s31 > 0;                        \
		}                                                                                                                \
	}

// One vector on TILE directions: bit t is set where it is on the positive side. d is a multiple of 8.
#define DEFINE_SIDES(name, lanes, attributes)                                                                                    \
	attributes static uint32_t name(const float *x, const float *directions, uint32_t d)                                     \
	{                                                                                                                        \
		enum { WIDTH = sizeof(lanes) / sizeof(float) };                                                                  \
		const float *d0 = directions, *d1 = d0 + d, *d2 = d1 + d, *d3 = d2 + d;                                          \
		lanes sum[TILE] = {{0}};                                                                                         \
		for (uint32_t j = 0; j < d; j += WIDTH) {                                                                        \
			lanes v = *(const lanes *)(x + j);                                                                       \
			sum[0] += v * *(const lanes *)(d0 + j);                                                                  \
			sum[1] += v * *(const lanes *)(d1 + j);                                                                  \
			sum[2] += v * *(const lanes *)(d2 + j);                                                                  \
			sum[3] += v * *(const lanes *)(d3 + j);                                                                  \
		}                                                                                                                \
		uint32_t bits = 0;                                                                                               \
		for (uint32_t t = 0; t < TILE; t++) {                                                                            \
			float total = 0;                                                                                         \
			for (uint32_t l = 0; l < WIDTH; l++)                                                                     \
				total += sum[t][l];                                                                              \
			bits |= (uint32_t)(total > 0) << t;                                                                      \
		}                                                                                                                \
		return bits;                                                                                                     \
	}

DEFINE_PROJECT(project_base, float4, mask4, )
DEFINE_SIDES(sides_base, float4, )
#ifdef __x86_64__
DEFINE_PROJECT(project_avx2, float8, mask8, __attribute__((target("avx2"))))
DEFINE_SIDES(sides_avx2, float8, __attribute__((target("avx2"))))
#else
#define project_avx2 project_base
#define sides_avx2 sides_base
#endif

static bool has_avx2(const struct kernels *k)
{
	return strncmp(k->isa, "avx", 3) == 0; // every ISA above the baseline includes it
}

// The last directions of a set, when they do not fill a tile: a copy padded with zeros.
static const float *tile_at(const struct paper_params *p, uint32_t first, float *padded)
{
	uint32_t left = p->K * p->L - first;
	const float *at = p->directions + (size_t)first * p->d_k;
	if (left >= TILE)
		return at;
	memset(padded, 0, (size_t)TILE * p->d_k * sizeof(float));
	return memcpy(padded, at, (size_t)left * p->d_k * sizeof(float));
}

void paper_hash(const struct kernels *k, const struct paper_params *p, const float *x, uint16_t *ids)
{
	uint32_t (*sides)(const float *, const float *, uint32_t) = has_avx2(k) ? sides_avx2 : sides_base;
	float padded[TILE * SIG_MAX_DIM];
	uint32_t count = p->K * p->L, table = 0, bit = 0, id = 0;
	for (uint32_t first = 0; first < count; first += TILE) {
		uint32_t bits = sides(x, tile_at(p, first, padded), p->d_k);
		for (uint32_t t = 0; t < TILE && first + t < count; t++) {
			id |= (bits >> t & 1) << bit;
			if (++bit == p->K) {
				ids[table++] = (uint16_t)id;
				bit = id = 0;
			}
		}
	}
}

// Bucket ids of up to BLOCK rows: ids[table * rows + row].
static void hash_block(const struct paper_params *p, bool avx2, const float *transposed, uint32_t n, uint32_t rows, uint16_t *ids)
{
	void (*project)(const float *, const float *, uint32_t, int32_t(*)[BLOCK]) = avx2 ? project_avx2 : project_base;
	float padded[TILE * SIG_MAX_DIM];
	uint32_t count = p->K * p->L, table = 0, bit = 0;
	int32_t id[BLOCK] = {0};
	for (uint32_t first = 0; first < count; first += TILE) {
		int32_t positive[TILE][BLOCK];
		project(transposed, tile_at(p, first, padded), p->d_k, positive);
		for (uint32_t t = 0; t < TILE && first + t < count; t++) {
			for (uint32_t r = 0; r < BLOCK; r++)
				id[r] |= positive[t][r] & (1 << bit);
			if (++bit < p->K)
				continue;
			for (uint32_t r = 0; r < n; r++)
				ids[(size_t)table * rows + r] = (uint16_t)id[r];
			memset(id, 0, sizeof(id));
			bit = 0;
			table++;
		}
	}
}

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

void paper_build(const struct kernels *k, const struct paper_params *p, const float *keys, uint32_t rows, void *table,
                 uint16_t *scratch)
{
	struct layout l = layout_of(p->K, p->L, rows);
	float *norms = (float *)((char *)table + l.norms);
	_Alignas(64) float x[SIG_MAX_DIM * BLOCK];
	for (uint32_t first = 0; first < rows; first += BLOCK) {
		uint32_t n = rows - first < BLOCK ? rows - first : BLOCK;
		float square[BLOCK] = {0};
		memset(x, 0, sizeof(x));
		for (uint32_t r = 0; r < n; r++)
			for (uint32_t j = 0; j < p->d_k; j++)
				x[j * BLOCK + r] = keys[(size_t)(first + r) * p->d_k + j] - p->mu[j];
		for (uint32_t j = 0; j < p->d_k; j++)
			for (uint32_t r = 0; r < BLOCK; r++)
				square[r] += x[j * BLOCK + r] * x[j * BLOCK + r];
		for (uint32_t r = 0; r < n; r++)
			norms[first + r] = sqrtf(square[r]);
		hash_block(p, has_avx2(k), x, n, rows, scratch + first);
	}
	for (uint32_t t = 0; t < p->L; t++)
		fill_table(scratch + (size_t)t * rows, rows, l.buckets, (uint32_t *)table + (size_t)t * (l.buckets + 1),
		           (uint16_t *)((char *)table + l.ids) + (size_t)t * rows);
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

uint32_t paper_lookup(const struct paper_params *p, const void *table, uint32_t rows, const uint16_t *ids, uint32_t begin,
                      uint32_t end, uint64_t *seen, uint32_t *out)
{
	enum { NEAR = 4, FAR = 16 }; // tables ahead: their starts are asked for first, then the ids these point at
	struct layout l = layout_of(p->K, p->L, rows);
	const uint32_t *starts = table;
	const uint16_t *sorted = (const uint16_t *)((const char *)table + l.ids);
	size_t words = ((size_t)rows + 63) / 64, step = l.buckets + 1;
	uint64_t *once = seen, *twice = seen + words;
	if (begin >= end)
		return 0;
	for (uint32_t t = 0; t < p->L; t++) {
		if (t + FAR < p->L)
			__builtin_prefetch(starts + (t + FAR) * step + ids[t + FAR]);
		if (t + NEAR < p->L)
			__builtin_prefetch(sorted + (size_t)(t + NEAR) * rows + starts[(t + NEAR) * step + ids[t + NEAR]]);
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

	uint32_t count = 0;
	for (uint32_t word = begin / 64; word <= (end - 1) / 64; word++) {
		for (uint64_t left = twice[word]; left; left &= left - 1)
			out[count++] = word * 64 + (uint32_t)__builtin_ctzll(left);
		once[word] = twice[word] = 0;
	}
	return count;
}

// ---- inclusion probability -------------------------------------------------------------------------------------------
static double log_pi_of_angle(double angle, uint32_t K, uint32_t L)
{
	double P = pow(1 - angle / M_PI, K);
	double miss = pow(1 - P, L - 1.);
	double u = 1 - (1 - P) * miss - L * P * miss;
	return log((u > 0 ? u : 0) + 1e-4);
}

static float clamp_cosine(float c)
{
	if (isnan(c))
		return 0;
	return c > 1 ? 1 : c < -1 ? -1 : c;
}

float paper_log_pi(float cosine, uint32_t K, uint32_t L)
{
	return (float)log_pi_of_angle(acos((double)clamp_cosine(cosine)), K, L);
}

enum { PI_STEPS = sizeof(((struct paper_pi *)0)->node) / sizeof(float) - 1 };

void paper_pi_init(struct paper_pi *t, uint32_t K, uint32_t L)
{
	t->K = K;
	t->L = L;
	for (uint32_t i = 0; i <= PI_STEPS; i++)
		t->node[i] = (float)log_pi_of_angle(i * M_PI / PI_STEPS, K, L);
}

float paper_pi_get(const struct paper_pi *t, float cosine)
{
	float at = acosf(clamp_cosine(cosine)) * (float)(PI_STEPS / M_PI);
	uint32_t i = (uint32_t)at;
	if (i >= PI_STEPS)
		return t->node[PI_STEPS];
	float part = at - (float)i;
	return t->node[i] + part * (t->node[i + 1] - t->node[i]);
}
