// Systematic choice inside groups, AVX2.
#include <immintrin.h>
#include <math.h>

#include "daemon/kernels/choose.h"
#include "daemon/kernels/parts.h"

// Eight weights, in the steps that kernels.h lays down. A NaN is taken for the lowest: maxps gives its second operand.
INLINE __m256i weights8(__m256 e, __m256 tau)
{
	__m256 x = _mm256_max_ps(_mm256_sub_ps(e, tau), _mm256_set1_ps(CHOOSE_LOWEST));
	x = _mm256_min_ps(x, _mm256_setzero_ps());
	const __m256 round = _mm256_set1_ps(CHOOSE_ROUND);
	__m256 t = _mm256_mul_ps(x, _mm256_set1_ps(CHOOSE_LOG2E)), n = _mm256_sub_ps(_mm256_add_ps(t, round), round);
	__m256 r = _mm256_sub_ps(t, n);
	__m256 p = _mm256_add_ps(_mm256_mul_ps(r, _mm256_set1_ps(CHOOSE_P6)), _mm256_set1_ps(CHOOSE_P5));
	p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(CHOOSE_P4));
	p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(CHOOSE_P3));
	p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(CHOOSE_P2));
	p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(CHOOSE_P1));
	p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1));
	__m256i exponent = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127 + SIG_CHOOSE_BITS));
	__m256 scaled = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
	__m256i w = _mm256_cvttps_epi32(_mm256_add_ps(scaled, _mm256_set1_ps(.5f)));
	return _mm256_min_epi32(w, _mm256_set1_epi32((int)CHOOSE_ONE));
}

INLINE uint32_t total8(__m256i w)
{
	__m128i s = _mm_add_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
	s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
	s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
	return (uint32_t)_mm_cvtsi128_si32(s);
}

static void sig_choose_avx2(const float *estimates, const float *tau, uint32_t groups, uint32_t *chain, struct sig_hits *hits)
{
	uint32_t at = *chain;
	for (uint32_t i = 0; i < groups; i++, estimates += SIG_GROUP) {
		if (tau[i] == INFINITY)
			continue;
		const __m256 t = _mm256_set1_ps(tau[i]);
		__m256i a = weights8(_mm256_loadu_ps(estimates), t), b = weights8(_mm256_loadu_ps(estimates + 8), t);
		uint32_t sum = total8(_mm256_add_epi32(a, b));
		if (!((at + sum) >> SIG_CHOOSE_BITS)) {
			at += sum;
			continue;
		}
		_Alignas(32) uint32_t weight[SIG_GROUP];
		_mm256_store_si256((__m256i *)(void *)weight, a);
		_mm256_store_si256((__m256i *)(void *)(weight + 8), b);
		at = choose_rows(weight, estimates, SIG_GROUP * i, at, hits);
	}
	*chain = at;
}

void choose_init_avx2(struct kernels *k)
{
	k->sig_choose = sig_choose_avx2;
}
