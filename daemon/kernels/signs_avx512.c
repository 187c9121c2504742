// Signs of projections, AVX-512. Nothing is fused: the bits are those of the C twin.
#include <immintrin.h>

#include "daemon/kernels/parts.h"

enum { TILE = 8 }; // directions that share a visit to the keys

INLINE void block_tile(const float *keys, uint32_t d, const float *directions, uint32_t tile, uint16_t *positive)
{
	__m512 sum[TILE];
	EACH (c, tile)
		sum[c] = _mm512_setzero_ps();
	for (uint32_t j = 0; j < d; j++) {
		__m512 a = _mm512_loadu_ps(keys + SIGNS_KEYS * j);
		EACH (c, tile)
			sum[c] = _mm512_add_ps(sum[c], _mm512_mul_ps(a, _mm512_set1_ps(directions[(size_t)c * d + j])));
	}
	EACH (c, tile)
		positive[c] = _mm512_cmp_ps_mask(sum[c], _mm512_setzero_ps(), _CMP_GT_OQ);
}

static void signs_block_avx512(const float *keys, uint32_t d, const float *directions, uint32_t count, uint16_t *positive)
{
	uint32_t c = 0;
	for (; count - c >= TILE; c += TILE)
		block_tile(keys, d, directions + (size_t)c * d, TILE, positive + c);
	for (; c < count; c++)
		block_tile(keys, d, directions + (size_t)c * d, 1, positive + c);
}

// Lanes l, l + 4, l + 8, l + 12 of sixteen, as the C twin adds them.
INLINE __m128 fold(__m512 x)
{
	__m256 t = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
	return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

INLINE void queries_n(const float *queries, uint32_t n, uint32_t d, const float *directions, uint32_t count, uint8_t *positive)
{
	for (uint32_t c = 0; c < count; c++, directions += d) {
		__m512 sum[SIGNS_QUERIES];
		EACH (r, n)
			sum[r] = _mm512_setzero_ps();
		for (uint32_t j = 0; j < d; j += 16) {
			__m512 a = _mm512_loadu_ps(directions + j);
			EACH (r, n)
				sum[r] = _mm512_add_ps(sum[r], _mm512_mul_ps(_mm512_loadu_ps(queries + (size_t)r * d + j), a));
		}
		__m128 t[SIGNS_QUERIES];
		EACH (r, SIGNS_QUERIES)
			t[r] = r < n ? fold(sum[r]) : _mm_setzero_ps();
		__m128 sums = _mm_hadd_ps(_mm_hadd_ps(t[0], t[1]), _mm_hadd_ps(t[2], t[3]));
		positive[c] = (uint8_t)_mm_movemask_ps(_mm_cmpgt_ps(sums, _mm_setzero_ps()));
	}
}

static void signs_queries_avx512(const float *queries, uint32_t n, uint32_t d, const float *directions, uint32_t count,
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

void signs_init_avx512(struct kernels *k)
{
	k->signs_block = signs_block_avx512;
	k->signs_queries = signs_queries_avx512;
}
