// Weights and rotation, AVX2; scans and rows are in scan_avx2.c and rows_avx2.c.
#include <immintrin.h>
#include <math.h>

#include "daemon/kernels/parts.h"

// ---- weights ---------------------------------------------------------------------------------------------------------

// minps and maxps return their second operand if either is NaN: so NaN passes both clamps.
INLINE __m256 exp8(__m256 x)
{
	__m256 c = _mm256_max_ps(_mm256_set1_ps(-88.f), _mm256_min_ps(_mm256_set1_ps(89.f), x));
	__m256 n = _mm256_round_ps(_mm256_mul_ps(c, _mm256_set1_ps(EXP_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	__m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_HIGH), c);
	r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_LOW), r);
	__m256 p = _mm256_set1_ps(EXP_P0);
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P1));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P2));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P3));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P4));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P5));
	p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r), _mm256_set1_ps(1));
	__m256i two = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
	__m256 y = _mm256_mul_ps(p, _mm256_castsi256_ps(two));
	return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(EXP_LOWEST), _CMP_LT_OQ), y);
}

INLINE __m256 weights8(__m256 s, __m256 shift)
{
	__m256 none = _mm256_cmp_ps(s, _mm256_set1_ps(-INFINITY), _CMP_EQ_OQ);
	return _mm256_andnot_ps(none, exp8(_mm256_sub_ps(s, shift)));
}

INLINE __m256d low_pd(__m256 x)
{
	return _mm256_cvtps_pd(_mm256_castps256_ps128(x));
}

INLINE __m256d high_pd(__m256 x)
{
	return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}

INLINE double sum_pd(__m256d x)
{
	__m128d t = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
	return _mm_cvtsd_f64(t) + _mm_cvtsd_f64(_mm_unpackhi_pd(t, t));
}

// Lanes [0, n) of a vector, n < 8.
INLINE __m256i first_lanes(uint32_t n)
{
	return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static double exp_sum_avx2(float *s, uint32_t n, float shift)
{
	const __m256 by = _mm256_set1_ps(shift);
	__m256d low = _mm256_setzero_pd(), high = low;
	uint32_t i = 0;
	for (; n - i >= 8; i += 8) {
		__m256 w = weights8(_mm256_loadu_ps(s + i), by);
		_mm256_storeu_ps(s + i, w);
		low = _mm256_add_pd(low, low_pd(w));
		high = _mm256_add_pd(high, high_pd(w));
	}
	if (i < n) {
		__m256i lanes = first_lanes(n - i);
		__m256 w = _mm256_and_ps(weights8(_mm256_maskload_ps(s + i, lanes), by), _mm256_castsi256_ps(lanes));
		_mm256_maskstore_ps(s + i, lanes, w);
		low = _mm256_add_pd(low, low_pd(w));
		high = _mm256_add_pd(high, high_pd(w));
	}
	return sum_pd(_mm256_add_pd(low, high));
}

static float max_avx2(const float *s, uint32_t n)
{
	const __m256 lowest = _mm256_set1_ps(-INFINITY);
	__m256 m0 = lowest, m1 = lowest, nan = _mm256_setzero_ps();
	uint32_t i = 0;
	for (; n - i >= 16; i += 16) {
		__m256 a = _mm256_loadu_ps(s + i), b = _mm256_loadu_ps(s + i + 8);
		m0 = _mm256_max_ps(a, m0);
		m1 = _mm256_max_ps(b, m1);
		nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
	}
	for (; i < n; i += 8) {
		__m256i lanes = n - i < 8 ? first_lanes(n - i) : _mm256_set1_epi32(-1);
		__m256 a = _mm256_blendv_ps(lowest, _mm256_maskload_ps(s + i, lanes), _mm256_castsi256_ps(lanes));
		m0 = _mm256_max_ps(a, m0);
		nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
	}
	if (_mm256_movemask_ps(nan))
		return NAN;
	m0 = _mm256_max_ps(m0, m1);
	__m128 m = _mm_max_ps(_mm256_castps256_ps128(m0), _mm256_extractf128_ps(m0, 1));
	m = _mm_max_ps(m, _mm_movehl_ps(m, m));
	return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static void split_sums_avx2(const float *w, uint32_t n, float theta, double *below, double *below2, uint64_t *above)
{
	const __m256 limit = _mm256_set1_ps(theta);
	__m256d sum[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()}, squares[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
	uint64_t count = 0;
	for (uint32_t i = 0; i < n; i += 8) {
		__m256i lanes = n - i < 8 ? first_lanes(n - i) : _mm256_set1_epi32(-1);
		__m256 x = _mm256_maskload_ps(w + i, lanes);
		__m256 ge = _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ), _mm256_castsi256_ps(lanes));
		count += (uint64_t)__builtin_popcount((unsigned)_mm256_movemask_ps(ge));
		x = _mm256_andnot_ps(ge, x);
		__m256d low = low_pd(x), high = high_pd(x);
		sum[0] = _mm256_add_pd(sum[0], low);
		sum[1] = _mm256_add_pd(sum[1], high);
		squares[0] = _mm256_fmadd_pd(low, low, squares[0]);
		squares[1] = _mm256_fmadd_pd(high, high, squares[1]);
	}
	*below = sum_pd(_mm256_add_pd(sum[0], sum[1]));
	*below2 = sum_pd(_mm256_add_pd(squares[0], squares[1]));
	*above = count;
}

// ---- rotation --------------------------------------------------------------------------------------------------------

// Butterflies inside a register: `other` holds each lane's partner, `minus` the sign bit of the lanes that become a - b.
INLINE __m256 butterfly(__m256 x, __m256 other, __m256 minus)
{
	return _mm256_add_ps(_mm256_xor_ps(x, minus), other);
}

INLINE void rotate_vectors(float *x, uint32_t vectors, const float *signs)
{
	const __m256 minus1 = _mm256_setr_ps(0.f, -0.f, 0.f, -0.f, 0.f, -0.f, 0.f, -0.f);
	const __m256 minus2 = _mm256_setr_ps(0.f, 0.f, -0.f, -0.f, 0.f, 0.f, -0.f, -0.f);
	const __m256 minus4 = _mm256_setr_ps(0.f, 0.f, 0.f, 0.f, -0.f, -0.f, -0.f, -0.f);
	const double d = 8. * vectors;
	const __m256 scale = _mm256_set1_ps((float)(1 / (d * sqrt(d))));
	__m256 y[32];
	EACH (v, vectors)
		y[v] = _mm256_loadu_ps(x + 8 * v);
	for (uint32_t round = 0; round < 3; round++, signs += 8 * vectors) {
		EACH (v, vectors) {
			__m256 t = _mm256_mul_ps(y[v], _mm256_loadu_ps(signs + 8 * v));
			t = butterfly(t, _mm256_permute_ps(t, 0xb1), minus1);
			t = butterfly(t, _mm256_permute_ps(t, 0x4e), minus2);
			y[v] = butterfly(t, _mm256_permute2f128_ps(t, t, 1), minus4);
		}
		EACH (stage, 5)
			EACH (v, vectors) {
				const uint32_t h = 1u << stage;
				if (!(v & h) && v + h < vectors) {
					__m256 a = y[v], b = y[v + h];
					y[v] = _mm256_add_ps(a, b);
					y[v + h] = _mm256_sub_ps(a, b);
				}
			}
	}
	EACH (v, vectors)
		_mm256_storeu_ps(x + 8 * v, _mm256_mul_ps(y[v], scale));
}

static void rotate_avx2(float *x, uint32_t d_pad, const float *signs)
{
	if (d_pad == 64)
		rotate_vectors(x, 8, signs);
	else if (d_pad == 128)
		rotate_vectors(x, 16, signs);
	else
		rotate_vectors(x, 32, signs);
}

void kernels_init_avx2(struct kernels *k)
{
	choose_init_avx2(k);
	scan_init_avx2(k);
	rows_init_avx2(k);
	k->checksum = checksum_avx2;
	signs_init_avx2(k);
	k->isa = "avx2";
	k->exp_sum = exp_sum_avx2;
	k->max = max_avx2;
	k->split_sums = split_sums_avx2;
	k->rotate = rotate_avx2;
}
