// Weights and rotation, AVX-512 (F, BW, DQ, VL); scans and rows are in scan_avx512.c and rows_avx512.c.
#include <immintrin.h>
#include <math.h>

#include "daemon/kernels/parts.h"

// ---- weights ---------------------------------------------------------------------------------------------------------

// vminps and vmaxps return their second operand if either is NaN: so NaN passes both clamps.
INLINE __m512 exp16(__m512 x)
{
	__m512 c = _mm512_max_ps(_mm512_set1_ps(-88.f), _mm512_min_ps(_mm512_set1_ps(89.f), x));
	__m512 n =
		_mm512_roundscale_ps(_mm512_mul_ps(c, _mm512_set1_ps(EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	__m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_HIGH), c);
	r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_LOW), r);
	__m512 p = _mm512_set1_ps(EXP_P0);
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P1));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P2));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P3));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P4));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P5));
	p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1));
	__mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_LOWEST), _CMP_NLT_UQ);
	return _mm512_maskz_scalef_ps(counts, p, n);
}

INLINE __m512 weights16(__m512 s, __m512 shift)
{
	__mmask16 some = _mm512_cmp_ps_mask(s, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
	return _mm512_maskz_mov_ps(some, exp16(_mm512_sub_ps(s, shift)));
}

INLINE __m512d low_pd(__m512 x)
{
	return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}

INLINE __m512d high_pd(__m512 x)
{
	return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}

// The first min(16, n) lanes.
INLINE __mmask16 first_lanes(uint32_t n)
{
	return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffffu);
}

static double exp_sum_avx512(float *s, uint32_t n, float shift)
{
	const __m512 by = _mm512_set1_ps(shift);
	__m512d low = _mm512_setzero_pd(), high = low;
	for (uint32_t i = 0; i < n; i += 16) {
		__mmask16 lanes = first_lanes(n - i);
		__m512 w = _mm512_maskz_mov_ps(lanes, weights16(_mm512_maskz_loadu_ps(lanes, s + i), by));
		_mm512_mask_storeu_ps(s + i, lanes, w);
		low = _mm512_add_pd(low, low_pd(w));
		high = _mm512_add_pd(high, high_pd(w));
	}
	return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

static float max_avx512(const float *s, uint32_t n)
{
	const __m512 lowest = _mm512_set1_ps(-INFINITY);
	__m512 m0 = lowest, m1 = lowest;
	unsigned nan = 0;
	uint32_t i = 0;
	for (; n - i >= 32; i += 32) {
		__m512 a = _mm512_loadu_ps(s + i), b = _mm512_loadu_ps(s + i + 16);
		m0 = _mm512_max_ps(a, m0);
		m1 = _mm512_max_ps(b, m1);
		nan |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
	}
	for (; i < n; i += 16) {
		__m512 a = _mm512_mask_loadu_ps(lowest, first_lanes(n - i), s + i);
		m0 = _mm512_max_ps(a, m0);
		nan |= _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
	}
	return nan ? NAN : _mm512_reduce_max_ps(_mm512_max_ps(m0, m1));
}

static void split_sums_avx512(const float *w, uint32_t n, float theta, double *below, double *below2, uint64_t *above)
{
	const __m512 limit = _mm512_set1_ps(theta);
	__m512d sum[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()}, squares[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
	uint64_t count = 0;
	for (uint32_t i = 0; i < n; i += 16) {
		__mmask16 lanes = first_lanes(n - i);
		__m512 x = _mm512_maskz_loadu_ps(lanes, w + i);
		__mmask16 ge = _mm512_mask_cmp_ps_mask(lanes, x, limit, _CMP_GE_OQ);
		count += (uint64_t)__builtin_popcount(ge);
		x = _mm512_maskz_mov_ps((__mmask16)~ge, x);
		__m512d low = low_pd(x), high = high_pd(x);
		sum[0] = _mm512_add_pd(sum[0], low);
		sum[1] = _mm512_add_pd(sum[1], high);
		squares[0] = _mm512_fmadd_pd(low, low, squares[0]);
		squares[1] = _mm512_fmadd_pd(high, high, squares[1]);
	}
	*below = _mm512_reduce_add_pd(_mm512_add_pd(sum[0], sum[1]));
	*below2 = _mm512_reduce_add_pd(_mm512_add_pd(squares[0], squares[1]));
	*above = count;
}

// ---- rotation --------------------------------------------------------------------------------------------------------

// Butterflies inside a register: `other` holds each lane's partner, `upper` the lanes that become a - b = other - x.
INLINE __m512 butterfly(__m512 x, __m512 other, __mmask16 upper)
{
	return _mm512_mask_sub_ps(_mm512_add_ps(x, other), upper, other, x);
}

INLINE void rotate_vectors(float *x, uint32_t vectors, const float *signs)
{
	const double d = 16. * vectors;
	const __m512 scale = _mm512_set1_ps((float)(1 / (d * sqrt(d))));
	__m512 y[16];
	EACH (v, vectors)
		y[v] = _mm512_loadu_ps(x + 16 * v);
	for (uint32_t round = 0; round < 3; round++, signs += 16 * vectors) {
		EACH (v, vectors) {
			__m512 t = _mm512_mul_ps(y[v], _mm512_loadu_ps(signs + 16 * v));
			t = butterfly(t, _mm512_permute_ps(t, 0xb1), 0xaaaa);
			t = butterfly(t, _mm512_permute_ps(t, 0x4e), 0xcccc);
			t = butterfly(t, _mm512_shuffle_f32x4(t, t, 0xb1), 0xf0f0);
			y[v] = butterfly(t, _mm512_shuffle_f32x4(t, t, 0x4e), 0xff00);
		}
		EACH (stage, 5)
			EACH (v, vectors) {
				const uint32_t h = 1u << stage;
				if (!(v & h) && v + h < vectors) {
					__m512 a = y[v], b = y[v + h];
					y[v] = _mm512_add_ps(a, b);
					y[v + h] = _mm512_sub_ps(a, b);
				}
			}
	}
	EACH (v, vectors)
		_mm512_storeu_ps(x + 16 * v, _mm512_mul_ps(y[v], scale));
}

static void rotate_avx512(float *x, uint32_t d_pad, const float *signs)
{
	if (d_pad == 64)
		rotate_vectors(x, 4, signs);
	else if (d_pad == 128)
		rotate_vectors(x, 8, signs);
	else
		rotate_vectors(x, 16, signs);
}

void kernels_init_avx512(struct kernels *k)
{
	choose_init_avx512(k);
	scan_init_avx512(k);
	rows_init_avx512(k);
	signs_init_avx512(k);
	encode_init_avx512(k);
	k->checksum = checksum_avx512;
	k->isa = "avx512";
	k->exp_sum = exp_sum_avx512;
	k->max = max_avx512;
	k->split_sums = split_sums_avx512;
	k->rotate = rotate_avx512;
}
