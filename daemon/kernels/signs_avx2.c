// Signs of projections, AVX2. Nothing is fused: the bits are those of the C twin.
#include <immintrin.h>

#include "daemon/kernels/parts.h"

enum { TILE = 4 }; // directions that share a visit to the keys: eight accumulators

INLINE void block_tile(const float *keys, uint32_t d, const float *directions, uint32_t tile, uint16_t *positive)
{
	const __m256 zero = _mm256_setzero_ps();
	__m256 low[TILE], high[TILE];
	EACH (c, tile)
		low[c] = high[c] = zero;
	for (uint32_t j = 0; j < d; j++) {
		__m256 a = _mm256_loadu_ps(keys + SIGNS_KEYS * j), b = _mm256_loadu_ps(keys + SIGNS_KEYS * j + 8);
		EACH (c, tile) {
			__m256 x = _mm256_broadcast_ss(directions + (size_t)c * d + j);
			low[c] = _mm256_add_ps(low[c], _mm256_mul_ps(a, x));
			high[c] = _mm256_add_ps(high[c], _mm256_mul_ps(b, x));
		}
	}
	EACH (c, tile) {
		int above = _mm256_movemask_ps(_mm256_cmp_ps(low[c], zero, _CMP_GT_OQ)) |
		            _mm256_movemask_ps(_mm256_cmp_ps(high[c], zero, _CMP_GT_OQ)) << 8;
		positive[c] = (uint16_t)above;
	}
}

static void signs_block_avx2(const float *keys, uint32_t d, const float *directions, uint32_t count, uint16_t *positive)
{
	uint32_t c = 0;
	for (; count - c >= TILE; c += TILE)
		block_tile(keys, d, directions + (size_t)c * d, TILE, positive + c);
	for (; c < count; c++)
		block_tile(keys, d, directions + (size_t)c * d, 1, positive + c);
}

// Lanes l, l + 4, l + 8, l + 12 of sixteen, as the C twin adds them.
INLINE __m128 fold(__m256 low, __m256 high)
{
	__m256 t = _mm256_add_ps(low, high);
	return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

INLINE void queries_n(const float *queries, uint32_t n, uint32_t d, const float *directions, uint32_t count, uint8_t *positive)
{
	for (uint32_t c = 0; c < count; c++, directions += d) {
		__m256 low[SIGNS_QUERIES], high[SIGNS_QUERIES];
		EACH (r, n)
			low[r] = high[r] = _mm256_setzero_ps();
		for (uint32_t j = 0; j < d; j += 16) {
			__m256 a = _mm256_loadu_ps(directions + j), b = _mm256_loadu_ps(directions + j + 8);
			EACH (r, n) {
				const float *q = queries + (size_t)r * d + j;
				low[r] = _mm256_add_ps(low[r], _mm256_mul_ps(_mm256_loadu_ps(q), a));
				high[r] = _mm256_add_ps(high[r], _mm256_mul_ps(_mm256_loadu_ps(q + 8), b));
			}
		}
		__m128 t[SIGNS_QUERIES];
		EACH (r, SIGNS_QUERIES)
			t[r] = r < n ? fold(low[r], high[r]) : _mm_setzero_ps();
		__m128 sums = _mm_hadd_ps(_mm_hadd_ps(t[0], t[1]), _mm_hadd_ps(t[2], t[3]));
		positive[c] = (uint8_t)_mm_movemask_ps(_mm_cmpgt_ps(sums, _mm_setzero_ps()));
	}
}

static void signs_queries_avx2(const float *queries, uint32_t n, uint32_t d, const float *directions, uint32_t count,
                               uint8_t *positive)
{
	if (n == 1)
		queries_n(queries, 1, d, directions, count, positive);
	else if (n == 2)
		queries_n(queries, 2, d, directions, count, positive);
	else if (n == 3)
		queries_n(queries, 3, d, directions, count, positive);
	else
		queries_n(queries, 4, d, directions, count, positive);
}

void signs_init_avx2(struct kernels *k)
{
	k->signs_block = signs_block_avx2;
	k->signs_queries = signs_queries_avx2;
}
