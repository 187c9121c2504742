// Rows on their way into the pool, AVX-512 (F, BW, DQ, VL): copies, and signature codes of sixteen keys at a time, a key in each lane, so
// that butterflies are plain sums and a group's interleaved words are whole registers.
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "daemon/kernels/parts.h"

// ---- copies ----------------------------------------------------------------------------------------------------------
// The largest exponent tells: bits of it in the order of numbers, one maximum a register.
static bool copy_finite_avx512(void *restrict dst, const void *restrict src, size_t n, uint16_t exponent)
{
	const __m512i bits = _mm512_set1_epi16((short)exponent);
	__m512i most = _mm512_setzero_si512();
	uint8_t *to = dst;
	const uint8_t *from = src;
	size_t bytes = 2 * n, at = 0;
	for (; at + 64 <= bytes; at += 64) {
		__m512i x = _mm512_loadu_si512(from + at);
		most = _mm512_max_epu16(most, _mm512_and_si512(x, bits));
		_mm512_storeu_si512(to + at, x);
	}
	if (at < bytes) {
		__m256i x = _mm256_loadu_si256((const void *)(from + at));
		most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_zextsi256_si512(x), bits));
		_mm256_storeu_si256((void *)(to + at), x);
	}
	return !_mm512_cmpeq_epu16_mask(most, bits);
}

static void stream_avx512(void *restrict dst, const void *restrict src, size_t bytes)
{
	uint8_t *to = dst;
	const uint8_t *from = src;
	size_t at = 0;
	if ((uintptr_t)to % 64 == 0)
		for (; at + 64 <= bytes; at += 64)
			_mm512_stream_si512((void *)(to + at), _mm512_loadu_si512(from + at));
	for (; at < bytes; at += 32)
		_mm256_stream_si256((void *)(to + at), _mm256_loadu_si256((const void *)(from + at)));
}

static void copies_done_avx512(void)
{
	_mm_sfence();
}

static bool bf16_widen_avx512(const void *src, size_t n, float *dst)
{
	const __m512i exponent = _mm512_set1_epi32(0x7f800000);
	__mmask16 bad = 0;
	size_t i = 0;
	for (; i + 16 <= n; i += 16) {
		__m256i h = _mm256_loadu_si256((const void *)((const uint8_t *)src + 2 * i));
		__m512i x = _mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
		bad |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(x, exponent), exponent);
		_mm512_storeu_si512(dst + i, x);
	}
	bool rest = i == n || bf16_widen_finite((const uint8_t *)src + 2 * i, n - i, dst + i);
	return !bad && rest;
}

// ---- sums of columns -------------------------------------------------------------------------------------------------
// 64 dimensions at a time, whose sums stay in registers; fewer at the end.
INLINE void add_block(const float *x, size_t n, uint32_t d, const float *centre, double *sum, const uint32_t eights)
{
	__m512d total[8], middle[8];
	EACH (e, eights) {
		total[e] = _mm512_loadu_pd(sum + 8 * e);
		middle[e] = centre ? _mm512_cvtps_pd(_mm256_loadu_ps(centre + 8 * e)) : _mm512_setzero_pd();
	}
	for (size_t i = 0; i < n; i++, x += d)
		EACH (e, eights) {
			__m512d v = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x + 8 * e)), middle[e]);
			total[e] = _mm512_add_pd(total[e], centre ? _mm512_mul_pd(v, v) : v);
		}
	EACH (e, eights)
		_mm512_storeu_pd(sum + 8 * e, total[e]);
}

static void add_columns_avx512(const float *x, size_t n, uint32_t d, const float *centre, double *sum)
{
	uint32_t j = 0;
	for (; j + 64 <= d; j += 64)
		if (centre)
			add_block(x + j, n, d, centre + j, sum + j, 8);
		else
			add_block(x + j, n, d, NULL, sum + j, 8);
	for (; j < d; j += 16)
		add_block(x + j, n, d, centre ? centre + j : NULL, sum + j, 2);
}

// ---- int8 rows -------------------------------------------------------------------------------------------------------
// The smallest fp16 that is not below x, 0 <= x <= 65504: without a branch that goes either way as often.
INLINE uint16_t half_above(float x)
{
	return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
}

// f16_to_f32 of a number.

INLINE float of_half(uint16_t h)
{
	return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

// As encode_i8_block of convert.c: the scale of up to 32 values, and the values.
INLINE uint16_t encode_block(__m512 a, __m512 b, int8_t *out, uint32_t n)
{
	const __m512i size = _mm512_set1_epi32(0x7fffffff);
	__m512i most =
		_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), size), _mm512_and_si512(_mm512_castps_si512(b), size));
	float wanted = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(most)))) * (1 / 127.f);
	const uint16_t scale = half_above(wanted < 65504.f ? wanted : 65504.f);
	const float step = of_half(scale);
	const __m512 inverse = _mm512_set1_ps(step > 0 ? 1 / step : 0), top = _mm512_set1_ps(127), low = _mm512_set1_ps(-127),
		     magic = _mm512_set1_ps(12582912.f);
	__m512 x[2] = {_mm512_mul_ps(a, inverse), _mm512_mul_ps(b, inverse)};
	__m128i bytes[2];
	EACH (i, 2) {
		x[i] = _mm512_min_ps(_mm512_max_ps(x[i], low), top);
		bytes[i] = _mm512_cvtepi32_epi8(
			_mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(x[i], magic)), _mm512_castps_si512(magic)));
	}
	_mm_storeu_si128((void *)out, bytes[0]);
	if (n == 32)
		_mm_storeu_si128((void *)(out + 16), bytes[1]);
	return scale;
}

INLINE __m512 in_frame(const float *x, const float *frame, uint32_t d)
{
	__m512 v = _mm512_loadu_ps(x);
	return frame ? _mm512_div_ps(_mm512_sub_ps(v, _mm512_loadu_ps(frame)), _mm512_loadu_ps(frame + d)) : v;
}

INLINE void encode_half(const float *x, const float *frame, uint32_t d, uint8_t *dst)
{
	for (uint32_t at = 0; at < d; at += 32) {
		uint32_t n = d - at < 32 ? d - at : 32;
		const float *f = frame ? frame + at : NULL;
		__m512 a = in_frame(x + at, f, d),
		       b = n == 32 ? in_frame(x + at + 16, f ? f + 16 : NULL, d) : _mm512_setzero_ps();
		uint16_t scale = encode_block(a, b, (int8_t *)dst + at, n);
		memcpy(dst + d + at / 32 * 2, &scale, 2);
	}
}

static void row_encode_avx512(const struct row_format *f, const float *k, const float *v, const float *frame, uint8_t *dst)
{
	if (f->type != ROW_I8) {
		row_encode(f, k, v, frame, dst);
		return;
	}
	uint32_t used = f->v_offset + f->d_v + 2 * ((f->d_v + 31) / 32);
	if (frame)
		encode_half(k, frame, f->d_k, dst);
	else
		encode_half(k, NULL, f->d_k, dst);
	encode_half(v, NULL, f->d_v, dst + f->v_offset);
	memset(dst + used, 0, f->stride - used);
}

static void row_decode_key_avx512(const struct row_format *f, const uint8_t *src, const float *frame, float *k)
{
	if (f->type == ROW_BF16)
		bf16_widen_avx512(src, f->d_k, k);
	else if (f->type == ROW_F16)
		row_decode_key(f, src, frame, k);
	for (uint32_t at = 0; f->type == ROW_I8 && at < f->d_k; at += 16) {
		uint16_t scale;
		memcpy(&scale, src + f->d_k + at / 32 * 2, 2);
		__m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(src + at))));
		x = _mm512_mul_ps(_mm512_set1_ps(of_half(scale)), x);
		if (frame)
			x = _mm512_add_ps(_mm512_mul_ps(x, _mm512_loadu_ps(frame + f->d_k + at)), _mm512_loadu_ps(frame + at));
		_mm512_storeu_ps(k + at, x);
	}
}

// ---- codes of a group ------------------------------------------------------------------------------------------------
typedef __m512 column; // one dimension of sixteen keys

// Rows r[0..15] to columns, in place.
INLINE void transpose(__m512 *r)
{
	__m512 t[16];
	EACH (i, 8) {
		t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
		t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
	}
	EACH (i, 4) {
		const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]),
			      c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
		r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
		r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
		r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
		r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
	}
	EACH (i, 4) {
		t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
		t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
		t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
		t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
	}
	EACH (i, 8) {
		r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
		r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
	}
}

// (k - mu) * balance, zeros up to d_pad, times the signs of the first round: a sign is as exact on a factor as on the product.
INLINE void signed_balance(const struct sig_encoding *e, float *out)
{
	for (uint32_t j = 0; j < e->d_k; j += 16)
		_mm512_store_ps(out + j, _mm512_mul_ps(_mm512_loadu_ps(e->balance + j), _mm512_loadu_ps(e->signs + j)));
}

INLINE void pad16(const struct sig_encoding *e, column *x)
{
	for (uint32_t j = e->d_k; j < e->d_pad; j++)
		x[j] = _mm512_mul_ps(_mm512_setzero_ps(), _mm512_set1_ps(e->signs[j]));
}

INLINE column balanced(__m512 key, const struct sig_encoding *e, const float *balance, uint32_t j)
{
	return _mm512_mul_ps(_mm512_sub_ps(key, _mm512_set1_ps(e->mu[j])), _mm512_set1_ps(balance[j]));
}

INLINE void balance16(const float *keys, const struct sig_encoding *e, column *x)
{
	_Alignas(64) float balance[256];
	signed_balance(e, balance);
	for (uint32_t j = 0; j < e->d_k; j += 16) {
		__m512 r[16];
		EACH (i, 16)
			r[i] = _mm512_loadu_ps(keys + i * e->d_k + j);
		transpose(r);
		EACH (i, 16)
			x[j + i] = balanced(r[i], e, balance, j + i);
	}
	pad16(e, x);
}

// The same of bf16 keys: two dimensions go through the transposition in one lane.
INLINE void balance16_bf16(const uint8_t *keys, size_t stride, const struct sig_encoding *e, column *x)
{
	const __m512i high = _mm512_set1_epi32((int)0xffff0000);
	_Alignas(64) float balance[256];
	signed_balance(e, balance);
	for (uint32_t j = 0; j < e->d_k; j += 32) {
		const __mmask16 there = e->d_k - j < 32 ? 0xff : 0xffff; // d_k is a multiple of 16
		__m512 r[16];
		EACH (i, 16)
			r[i] = _mm512_maskz_loadu_ps(there, keys + i * stride + 2 * (size_t)j);
		transpose(r);
		EACH (i, 16) {
			if (!(there >> i & 1))
				break;
			__m512i two = _mm512_castps_si512(r[i]);
			uint32_t at = j + 2 * i;
			x[at] = balanced(_mm512_castsi512_ps(_mm512_slli_epi32(two, 16)), e, balance, at);
			x[at + 1] = balanced(_mm512_castsi512_ps(_mm512_and_si512(two, high)), e, balance, at + 1);
		}
	}
	pad16(e, x);
}

// Butterflies at distances `first` .. n / 2 of n columns.
INLINE void butterflies(column *y, const uint32_t n, const uint32_t first)
{
	EACH (stage, 4)
		EACH (v, n) {
			const uint32_t h = 1u << stage;
			if (h >= first && !(v & h) && v + h < n) {
				column a = y[v], b = y[v + h];
				y[v] = _mm512_add_ps(a, b);
				y[v + h] = _mm512_sub_ps(a, b);
			}
		}
}

// Butterflies at distance 1 with the signs before them: a product with 1 or -1 is exact, so it may be fused.
INLINE void signed_pairs(column *y, const float *signs)
{
	EACH (i, 8) {
		column a = _mm512_mul_ps(y[2 * i], _mm512_set1_ps(signs[2 * i])), s = _mm512_set1_ps(signs[2 * i + 1]);
		y[2 * i] = _mm512_fmadd_ps(y[2 * i + 1], s, a);
		y[2 * i + 1] = _mm512_fnmadd_ps(y[2 * i + 1], s, a);
	}
}

// As rotate, of columns that have had the signs of the first round: distances 1 to 8 within sixteen neighbours, then 16 and more across
// `blocks` of them.
INLINE void rotate16(column *x, const float *signs, const uint32_t blocks)
{
	const double d = 16. * blocks;
	const column scale = _mm512_set1_ps((float)(1 / (d * sqrt(d))));
	for (uint32_t round = 0; round < 3; round++, signs += 16 * blocks) {
		column y[16];
		for (uint32_t b = 0; b < blocks; b++) {
			EACH (i, 16)
				y[i] = x[16 * b + i];
			if (round)
				signed_pairs(y, signs + 16 * b);
			butterflies(y, 16, round ? 2 : 1);
			EACH (i, 16)
				x[16 * b + i] = y[i];
		}
		for (uint32_t i = 0; i < 16; i++) {
			EACH (b, blocks)
				y[b] = x[16 * b + i];
			butterflies(y, blocks, 1);
			EACH (b, blocks)
				x[16 * b + i] = round == 2 ? _mm512_mul_ps(y[b], scale) : y[b];
		}
	}
}

// The order of sums is sig_encode_rotated's.
INLINE __m512 square16(const column *x, uint32_t d_pad)
{
	__m512 sum[8];
	EACH (l, 8)
		sum[l] = _mm512_setzero_ps();
	for (uint32_t j = 0; j < d_pad; j += 8)
		EACH (l, 8)
			sum[l] = _mm512_add_ps(sum[l], _mm512_mul_ps(x[j + l], x[j + l]));
	EACH (l, 4)
		sum[l] = _mm512_add_ps(sum[l], sum[l + 4]);
	return _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
}

// Each column becomes its codes, 0 where !good; <level, x>.
INLINE __m512 quantise16(column *x, uint32_t d_pad, const struct sig_grid g, __m512 sigma, __mmask16 good)
{
	const __m512 per_step = _mm512_div_ps(_mm512_set1_ps(1), _mm512_mul_ps(_mm512_set1_ps(g.step), sigma));
	const __m512 half = _mm512_set1_ps(g.offset + .5f), top = _mm512_set1_ps(g.top), offset = _mm512_set1_ps(g.offset);
	__m512 sum[4];
	EACH (l, 4)
		sum[l] = _mm512_setzero_ps();
	for (uint32_t j = 0; j < d_pad; j += 4)
		EACH (l, 4) {
			__m512 v = x[j + l], cell = _mm512_add_ps(_mm512_mul_ps(v, per_step), half);
			cell = _mm512_min_ps(_mm512_max_ps(cell, _mm512_setzero_ps()), top); // a NaN becomes 0
			__m512i code = _mm512_maskz_cvttps_epi32(good, cell);
			x[j + l] = _mm512_castsi512_ps(code);
			sum[l] = _mm512_add_ps(sum[l], _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), offset), v));
		}
	return _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
}

INLINE void pack16(const column *code, const uint32_t bits, uint32_t d_pad, uint8_t *codes)
{
	const uint32_t bytes = d_pad * bits / 8, fields = 8 / bits;
	for (uint32_t w = 0; w < bytes / 4; w++) {
		__m512i word = _mm512_setzero_si512();
		EACH (k, 4)
			EACH (f, fields)
				word = _mm512_or_si512(word, _mm512_slli_epi32(_mm512_castps_si512(code[f * bytes + 4 * w + k]),
				                                               bits * f + 8 * k));
		_mm512_storeu_si512(codes + (size_t)w * 64, word);
	}
}

INLINE void encode16(column *x, const struct sig_encoding *e, uint8_t *codes, uint16_t *factors)
{
	if (e->d_pad == 64)
		rotate16(x, e->signs, 4);
	else if (e->d_pad == 128)
		rotate16(x, e->signs, 8);
	else
		rotate16(x, e->signs, 16);
	__m512 square = square16(x, e->d_pad);
	__mmask16 good = _mm512_cmp_ps_mask(square, _mm512_set1_ps(FLT_MIN), _CMP_GE_OQ) &
	                 _mm512_cmp_ps_mask(square, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
	__m512 sigma = _mm512_sqrt_ps(_mm512_div_ps(square, _mm512_set1_ps((float)e->d_pad)));
	__m512 factor = _mm512_div_ps(square, quantise16(x, e->d_pad, sig_grid_of(e->bits), sigma, good));
	factor = _mm512_maskz_min_ps(good, factor, _mm512_set1_ps(65504)); // a NaN becomes 65504
	_mm256_storeu_si256((void *)factors, _mm512_cvtps_ph(factor, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
	if (e->bits == 1)
		pack16(x, 1, e->d_pad, codes);
	else if (e->bits == 2)
		pack16(x, 2, e->d_pad, codes);
	else
		pack16(x, 4, e->d_pad, codes);
}

static void sig_encode16_avx512(const float *keys, const struct sig_encoding *e, uint8_t *codes, uint16_t *factors)
{
	column x[256];
	balance16(keys, e, x);
	encode16(x, e, codes, factors);
}

static void sig_encode16_bf16_avx512(const void *keys, size_t stride, const struct sig_encoding *e, uint8_t *codes,
                                     uint16_t *factors)
{
	column x[256];
	balance16_bf16(keys, stride, e, x);
	encode16(x, e, codes, factors);
}

void encode_init_avx512(struct kernels *k)
{
	k->copy_finite = copy_finite_avx512;
	k->add_columns = add_columns_avx512;
	k->stream = stream_avx512;
	k->copies_done = copies_done_avx512;
	k->bf16_widen = bf16_widen_avx512;
	k->row_encode = row_encode_avx512;
	k->row_decode_key = row_decode_key_avx512;
	k->sig_encode16 = sig_encode16_avx512;
	k->sig_encode16_bf16 = sig_encode16_bf16_avx512;
}
