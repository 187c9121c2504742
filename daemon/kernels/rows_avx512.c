// Exact scores and weighted values, AVX-512. Vectors come in pairs of 32 elements: natural order, except bf16, where a pair is
// the even and the odd elements (a shift and a mask of one load); queries and outputs are taken into that order. A last 16
// elements (d = 80) are a single vector in natural order.
#include <immintrin.h>
#include <stdbool.h>

#include "daemon/kernels/parts.h"

#define HEADS 4u // at once

struct pair {
	__m512 a, b;
};

// fp32 scales of the block's int8 rows, one for 32 elements.
struct steps {
	_Alignas(64) float at[ROW_BLOCK][8];
};

INLINE void steps_load(const struct row_block *b, uint32_t d, struct steps *s)
{
	const __mmask8 present = (__mmask8)((1u << (d + 31) / 32) - 1);
	for (uint32_t r = 0; r < (b->n + 3) / 4 * 4; r++)
		_mm256_store_ps(s->at[r], _mm256_cvtph_ps(_mm_maskz_loadu_epi16(present, b->at[r] + d)));
}

// Elements j .. j+31 of half a row, j a multiple of 32.
INLINE struct pair load_pair(enum row_type type, const uint8_t *half, const float *step, uint32_t j)
{
	struct pair x;
	if (type == ROW_BF16) {
		__m512i u = _mm512_loadu_si512(half + 2 * (size_t)j);
		x.a = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
		x.b = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000)));
	} else if (type == ROW_F16) {
		x.a = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(half + 2 * (size_t)j)));
		x.b = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(half + 2 * (size_t)j + 32)));
	} else {
		__m512 by = _mm512_set1_ps(step[j / 32]);
		x.a = _mm512_mul_ps(by, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(half + j)))));
		x.b = _mm512_mul_ps(by, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(half + j + 16)))));
	}
	return x;
}

// Elements j .. j+15, j a multiple of 32.
INLINE __m512 load_single(enum row_type type, const uint8_t *half, const float *step, uint32_t j)
{
	if (type == ROW_BF16) {
		__m256i u = _mm256_loadu_si256((const void *)(half + 2 * (size_t)j));
		return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(u), 16));
	}
	if (type == ROW_F16)
		return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(half + 2 * (size_t)j)));
	__m512 by = _mm512_set1_ps(step[j / 32]);
	return _mm512_mul_ps(by, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(half + j)))));
}

INLINE struct pair to_lanes(enum row_type type, const float *x)
{
	__m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
	if (type != ROW_BF16)
		return (struct pair){x0, x1};
	const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
	const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
	return (struct pair){_mm512_permutex2var_ps(x0, even, x1), _mm512_permutex2var_ps(x0, odd, x1)};
}

INLINE void from_lanes(enum row_type type, struct pair p, float *x)
{
	if (type == ROW_BF16) {
		const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
		const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
		p = (struct pair){_mm512_permutex2var_ps(p.a, low, p.b), _mm512_permutex2var_ps(p.a, high, p.b)};
	}
	_mm512_storeu_ps(x, p.a);
	_mm512_storeu_ps(x + 16, p.b);
}

// The four vectors' sums of lanes.
INLINE __m128 sum4(const __m512 *x)
{
	__m512d t01 = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1])));
	__m512d t23 = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3])));
	__m512 t = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(t01, t23)), _mm512_castpd_ps(_mm512_unpackhi_pd(t01, t23)));
	__m256 y = _mm256_add_ps(_mm512_castps512_ps256(t), _mm512_extractf32x8_ps(t, 1));
	return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}

// Four rows against up to four heads (q in lane order, 256 apart).
INLINE void scores_four(enum row_type type, const uint8_t *const *row, const float (*step)[8], uint32_t count, uint32_t d,
                        const float *q, uint32_t heads, float *s, size_t ld)
{
	__m512 acc[HEADS][4];
	EACH (h, heads)
		EACH (r, 4)
			acc[h][r] = _mm512_setzero_ps();
	uint32_t j = 0;
	for (; j + 32 <= d; j += 32) {
		struct pair k[4];
		EACH (r, 4)
			k[r] = load_pair(type, row[r], step[r], j);
		EACH (h, heads) {
			__m512 q0 = _mm512_load_ps(q + 256 * h + j), q1 = _mm512_load_ps(q + 256 * h + j + 16);
			EACH (r, 4) {
				acc[h][r] = _mm512_fmadd_ps(k[r].a, q0, acc[h][r]);
				acc[h][r] = _mm512_fmadd_ps(k[r].b, q1, acc[h][r]);
			}
		}
	}
	if (j < d)
		EACH (r, 4) {
			__m512 k = load_single(type, row[r], step[r], j);
			EACH (h, heads)
				acc[h][r] = _mm512_fmadd_ps(k, _mm512_load_ps(q + 256 * h + j), acc[h][r]);
		}
	const __mmask8 lanes = (__mmask8)((1u << count) - 1);
	EACH (h, heads)
		_mm_mask_storeu_ps(s + h * ld, lanes, sum4(acc[h]));
}

INLINE void scores_block(enum row_type type, const struct row_source *src, const struct row_block *b, const struct steps *steps,
                         uint32_t d, const float *q, uint32_t heads, bool first_pass, float *s, size_t ld)
{
	_Alignas(64) float lanes[HEADS][256];
	for (uint32_t h = 0; h < heads; h++) {
		const float *from = q + (size_t)h * d;
		uint32_t j = 0;
		for (; j + 32 <= d; j += 32) {
			struct pair p = to_lanes(type, from + j);
			_mm512_store_ps(&lanes[h][j], p.a);
			_mm512_store_ps(&lanes[h][j + 16], p.b);
		}
		if (j < d)
			_mm512_store_ps(&lanes[h][j], _mm512_loadu_ps(from + j));
	}
	for (uint32_t r = 0; r < b->n; r += 4) {
		uint32_t count = b->n - r < 4 ? b->n - r : 4;
		if (first_pass)
			for (uint32_t i = 0; i < 4; i++)
				row_prefetch(src, b->first + r + ROW_BLOCK + i);
		scores_four(type, b->at + r, steps->at + r, count, d, lanes[0], heads, s + b->first + r, ld);
	}
}

INLINE void scores_avx512(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                          const float *q, uint32_t heads, float *s, size_t ld)
{
	const struct row_source src = k_source(f, type, rows, index, n);
	const uint32_t d = f->d_k;
	struct row_block b;
	struct steps steps;
	row_prefetch_first(&src);
	for (uint32_t first = 0; first < n; first += ROW_BLOCK) {
		row_block_take(&src, first, &b);
		if (type == ROW_I8)
			steps_load(&b, d, &steps);
		for (uint32_t h = 0; h < heads; h += HEADS) {
			const float *qh = q + (size_t)h * d;
			float *sh = s + h * ld;
			switch (heads - h) {
			case 1:
				scores_block(type, &src, &b, &steps, d, qh, 1, h == 0, sh, ld);
				break;
			case 2:
				scores_block(type, &src, &b, &steps, d, qh, 2, h == 0, sh, ld);
				break;
			case 3:
				scores_block(type, &src, &b, &steps, d, qh, 3, h == 0, sh, ld);
				break;
			default:
				scores_block(type, &src, &b, &steps, d, qh, 4, h == 0, sh, ld);
			}
		}
	}
}

// `pairs` pairs of output from element j on, over the block's rows. square: NULL, or
// lanes that take (weight of head 1) * V^2.
INLINE void values_block(enum row_type type, const struct row_source *src, const struct row_block *b, const struct steps *steps,
                         uint32_t d, uint32_t j, uint32_t pairs, uint32_t heads, bool first_pass, const float *w, size_t ld,
                         float *out, __m512 *square)
{
	struct pair acc[HEADS][4];
	EACH (h, heads)
		EACH (p, pairs)
			acc[h][p] = to_lanes(type, out + (size_t)h * d + j + 32 * p);
	for (uint32_t r = 0; r < b->n; r++) {
		if (first_pass)
			row_prefetch(src, b->first + r + ROW_BLOCK);
		__m512 of_row = _mm512_setzero_ps();
		EACH (p, pairs) {
			struct pair v = load_pair(type, b->at[r], steps->at[r], j + 32 * p);
			EACH (h, heads) {
				__m512 weight = _mm512_set1_ps(w[h * ld + b->first + r]);
				acc[h][p].a = _mm512_fmadd_ps(weight, v.a, acc[h][p].a);
				acc[h][p].b = _mm512_fmadd_ps(weight, v.b, acc[h][p].b);
			}
			if (square) {
				of_row = _mm512_fmadd_ps(v.a, v.a, of_row);
				of_row = _mm512_fmadd_ps(v.b, v.b, of_row);
			}
		}
		if (square)
			*square = _mm512_fmadd_ps(_mm512_set1_ps(w[ld + b->first + r]), of_row, *square);
	}
	EACH (h, heads)
		EACH (p, pairs)
			from_lanes(type, acc[h][p], out + (size_t)h * d + j + 32 * p);
}

INLINE void values_single(enum row_type type, const struct row_block *b, const struct steps *steps, uint32_t d, uint32_t j,
                          uint32_t heads, const float *w, size_t ld, float *out, __m512 *square)
{
	__m512 acc[HEADS];
	EACH (h, heads)
		acc[h] = _mm512_loadu_ps(out + (size_t)h * d + j);
	for (uint32_t r = 0; r < b->n; r++) {
		__m512 v = load_single(type, b->at[r], steps->at[r], j);
		EACH (h, heads)
			acc[h] = _mm512_fmadd_ps(_mm512_set1_ps(w[h * ld + b->first + r]), v, acc[h]);
		if (square)
			*square = _mm512_fmadd_ps(_mm512_set1_ps(w[ld + b->first + r]), _mm512_mul_ps(v, v), *square);
	}
	EACH (h, heads)
		_mm512_storeu_ps(out + (size_t)h * d + j, acc[h]);
}

// Sixteen accumulators with two heads or more; eight, an FMA's latency times its rate, with one.
INLINE void values_heads(enum row_type type, const struct row_source *src, const struct row_block *b, const struct steps *steps,
                         uint32_t d, uint32_t heads, bool first_pass, const float *w, size_t ld, float *out, __m512 *square)
{
	const uint32_t pairs = heads <= 2 ? 4 : 2;
	uint32_t j = 0;
	for (; j + 32 * pairs <= d; j += 32 * pairs)
		values_block(type, src, b, steps, d, j, pairs, heads, first_pass && j == 0, w, ld, out, square);
	for (; j + 32 <= d; j += 32)
		values_block(type, src, b, steps, d, j, 1, heads, first_pass && j == 0, w, ld, out, square);
	if (j < d)
		values_single(type, b, steps, d, j, heads, w, ld, out, square);
}

INLINE void values_avx512(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                          const float *w, size_t ld, uint32_t heads, float *out)
{
	const struct row_source src = v_source(f, type, rows, index, n);
	const uint32_t d = f->d_v;
	struct row_block b;
	struct steps steps;
	row_prefetch_first(&src);
	for (uint32_t first = 0; first < n; first += ROW_BLOCK) {
		row_block_take(&src, first, &b);
		if (type == ROW_I8)
			steps_load(&b, d, &steps);
		for (uint32_t h = 0; h < heads; h += HEADS) {
			const float *wh = w + h * ld;
			float *oh = out + (size_t)h * d;
			switch (heads - h) {
			case 1:
				values_heads(type, &src, &b, &steps, d, 1, h == 0, wh, ld, oh, NULL);
				break;
			case 2:
				values_heads(type, &src, &b, &steps, d, 2, h == 0, wh, ld, oh, NULL);
				break;
			case 3:
				values_heads(type, &src, &b, &steps, d, 3, h == 0, wh, ld, oh, NULL);
				break;
			default:
				values_heads(type, &src, &b, &steps, d, 4, h == 0, wh, ld, oh, NULL);
			}
		}
	}
}

INLINE double values_squares_avx512(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                                    uint32_t n, const float *w, size_t ld, float *out)
{
	const struct row_source src = v_source(f, type, rows, index, n);
	double total = 0;
	struct row_block b;
	struct steps steps;
	row_prefetch_first(&src);
	for (uint32_t first = 0; first < n; first += ROW_BLOCK) {
		__m512 square = _mm512_setzero_ps();
		row_block_take(&src, first, &b);
		if (type == ROW_I8)
			steps_load(&b, f->d_v, &steps);
		values_heads(type, &src, &b, &steps, f->d_v, 2, true, w, ld, out, &square);
		total += _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(square)),
		                                            _mm512_cvtps_pd(_mm512_extractf32x8_ps(square, 1))));
	}
	return total;
}

ROW_KERNELS(avx512, bf16, ROW_BF16)
ROW_KERNELS(avx512, f16, ROW_F16)
ROW_KERNELS(avx512, i8, ROW_I8)

void rows_init_avx512(struct kernels *k)
{
	k->scores[ROW_BF16] = scores_bf16_avx512;
	k->scores[ROW_F16] = scores_f16_avx512;
	k->scores[ROW_I8] = scores_i8_avx512;
	k->values[ROW_BF16] = values_bf16_avx512;
	k->values[ROW_F16] = values_f16_avx512;
	k->values[ROW_I8] = values_i8_avx512;
	k->values_squares[ROW_BF16] = values_squares_bf16_avx512;
	k->values_squares[ROW_F16] = values_squares_f16_avx512;
	k->values_squares[ROW_I8] = values_squares_i8_avx512;
}
