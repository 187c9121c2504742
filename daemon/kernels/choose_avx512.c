// Systematic choice inside groups, AVX-512: a group is a register.
#include <immintrin.h>
#include <math.h>

#include "daemon/kernels/choose.h"
#include "daemon/kernels/parts.h"

// Sixteen weights, in the steps that kernels.h lays down. A NaN is taken for the lowest: vmaxps gives its second operand.
INLINE __m512i weights16(__m512 e, __m512 tau)
{
	__m512 x = _mm512_max_ps(_mm512_sub_ps(e, tau), _mm512_set1_ps(CHOOSE_LOWEST));
	x = _mm512_min_ps(x, _mm512_setzero_ps());
	const __m512 round = _mm512_set1_ps(CHOOSE_ROUND);
	__m512 t = _mm512_mul_ps(x, _mm512_set1_ps(CHOOSE_LOG2E)), n = _mm512_sub_ps(_mm512_add_ps(t, round), round);
	__m512 r = _mm512_sub_ps(t, n);
	__m512 p = _mm512_add_ps(_mm512_mul_ps(r, _mm512_set1_ps(CHOOSE_P6)), _mm512_set1_ps(CHOOSE_P5));
	p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(CHOOSE_P4));
	p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(CHOOSE_P3));
	p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(CHOOSE_P2));
	p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(CHOOSE_P1));
	p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1));
	__m512i exponent = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127 + SIG_CHOOSE_BITS));
	__m512 scaled = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
	__m512i w = _mm512_cvttps_epi32(_mm512_add_ps(scaled, _mm512_set1_ps(.5f)));
	return _mm512_min_epi32(w, _mm512_set1_epi32((int)CHOOSE_ONE));
}

// Up to 16 * 2^27, which an int does not hold: _mm512_reduce_add_epi32 ends in an addition of two of those.
static uint32_t total16(__m512i w)
{
	__m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(w), _mm512_extracti64x4_epi64(w, 1));
	__m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
	four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
	four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
	return (uint32_t)_mm_cvtsi128_si32(four);
}

static void sig_choose_avx512(const float *estimates, const float *tau, uint32_t groups, uint32_t *chain, struct sig_hits *hits)
{
	uint32_t at = *chain;
	for (uint32_t i = 0; i < groups; i++, estimates += SIG_GROUP) {
		if (tau[i] == INFINITY)
			continue;
		__m512i w = weights16(_mm512_loadu_ps(estimates), _mm512_set1_ps(tau[i]));
		uint32_t sum = total16(w);
		if (!((at + sum) >> SIG_CHOOSE_BITS)) {
			at += sum;
			continue;
		}
		_Alignas(64) uint32_t weight[SIG_GROUP];
		_mm512_store_si512(weight, w);
		at = choose_rows(weight, estimates, SIG_GROUP * i, at, hits);
	}
	*chain = at;
}

void choose_init_avx512(struct kernels *k)
{
	k->sig_choose = sig_choose_avx512;
}
