// Exact scores and weighted values, AVX2. Vectors come in pairs of 16 elements: natural order, except bf16, where a pair is the
// even and the odd elements (a shift and a mask of the same load); queries and outputs are taken into that order.
#include <immintrin.h>
#include <stdbool.h>

#include "daemon/kernels/parts.h"

struct pair {
	__m256 a, b;
};

// Elements j .. j+15 of half a row of d elements.
INLINE struct pair load_pair(enum row_type type, const uint8_t *half, uint32_t d, uint32_t j)
{
	struct pair x;
	if (type == ROW_BF16) {
		__m256i u = _mm256_loadu_si256((const void *)(half + 2 * (size_t)j));
		x.a = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
		x.b = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000)));
	} else if (type == ROW_F16) {
		x.a = _mm256_cvtph_ps(_mm_loadu_si128((const void *)(half + 2 * (size_t)j)));
		x.b = _mm256_cvtph_ps(_mm_loadu_si128((const void *)(half + 2 * (size_t)j + 16)));
	} else {
		uint16_t scale;
		__builtin_memcpy(&scale, half + d + j / 32 * 2, 2);
		__m256 step = _mm256_set1_ps(_cvtsh_ss(scale));
		__m128i u = _mm_loadu_si128((const void *)(half + j));
		x.a = _mm256_mul_ps(step, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(u)));
		x.b = _mm256_mul_ps(step, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(u, u))));
	}
	return x;
}

INLINE struct pair to_lanes(enum row_type type, const float *x)
{
	__m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8);
	if (type != ROW_BF16)
		return (struct pair){x0, x1};
	__m256d even = _mm256_castps_pd(_mm256_shuffle_ps(x0, x1, 0x88)), odd = _mm256_castps_pd(_mm256_shuffle_ps(x0, x1, 0xdd));
	return (struct pair){_mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8)),
	                     _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8))};
}

INLINE void from_lanes(enum row_type type, struct pair p, float *x)
{
	if (type == ROW_BF16) {
		__m256 low = _mm256_unpacklo_ps(p.a, p.b), high = _mm256_unpackhi_ps(p.a, p.b);
		p.a = _mm256_permute2f128_ps(low, high, 0x20);
		p.b = _mm256_permute2f128_ps(low, high, 0x31);
	}
	_mm256_storeu_ps(x, p.a);
	_mm256_storeu_ps(x + 8, p.b);
}

INLINE __m128 sum4(const __m256 *x)
{
	__m256 t = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
	return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

// Four rows against one or two heads (q in lane order, 256 apart).
INLINE void scores_four(enum row_type type, const uint8_t *const *row, uint32_t count, uint32_t d, const float *q, uint32_t heads,
                        float *s, size_t ld)
{
	__m256 acc[2][4];
	EACH (h, heads)
		EACH (r, 4)
			acc[h][r] = _mm256_setzero_ps();
	for (uint32_t j = 0; j < d; j += 16)
		EACH (r, 4) {
			struct pair k = load_pair(type, row[r], d, j);
			EACH (h, heads) {
				acc[h][r] = _mm256_fmadd_ps(k.a, _mm256_load_ps(q + 256 * h + j), acc[h][r]);
				acc[h][r] = _mm256_fmadd_ps(k.b, _mm256_load_ps(q + 256 * h + j + 8), acc[h][r]);
			}
		}
	EACH (h, heads) {
		_Alignas(16) float four[4];
		_mm_store_ps(four, sum4(acc[h]));
		if (count == 4)
			_mm_storeu_ps(s + h * ld, _mm_load_ps(four));
		else
			for (uint32_t r = 0; r < count; r++)
				s[h * ld + r] = four[r];
	}
}

INLINE void scores_block(enum row_type type, const struct row_source *src, const struct row_block *b, uint32_t d, const float *q,
                         uint32_t heads, bool first_pass, float *s, size_t ld)
{
	_Alignas(32) float lanes[2][256];
	for (uint32_t h = 0; h < heads; h++)
		for (uint32_t j = 0; j < d; j += 16) {
			struct pair p = to_lanes(type, q + (size_t)h * d + j);
			_mm256_store_ps(&lanes[h][j], p.a);
			_mm256_store_ps(&lanes[h][j + 8], p.b);
		}
	for (uint32_t r = 0; r < b->n; r += 4) {
		uint32_t count = b->n - r < 4 ? b->n - r : 4;
		if (first_pass)
			for (uint32_t i = 0; i < 4; i++)
				row_prefetch(src, b->first + r + ROW_BLOCK + i);
		scores_four(type, b->at + r, count, d, lanes[0], heads, s + b->first + r, ld);
	}
}

INLINE void scores_avx2(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                        const float *q, uint32_t heads, float *s, size_t ld)
{
	const struct row_source src = k_source(f, type, rows, index, n);
	const uint32_t d = f->d_k;
	struct row_block b;
	row_prefetch_first(&src);
	for (uint32_t first = 0; first < n; first += ROW_BLOCK) {
		row_block_take(&src, first, &b);
		uint32_t h = 0;
		for (; h + 2 <= heads; h += 2)
			scores_block(type, &src, &b, d, q + (size_t)h * d, 2, h == 0, s + h * ld, ld);
		if (h < heads)
			scores_block(type, &src, &b, d, q + (size_t)h * d, 1, h == 0, s + h * ld, ld);
	}
}

// `pairs` pairs of output from element j on, for one or two heads, over the block's rows. square: NULL, or
// lanes that take (weight of head 1) * V^2.
INLINE void values_block(enum row_type type, const struct row_source *src, const struct row_block *b, uint32_t d, uint32_t j,
                         uint32_t pairs, uint32_t heads, bool first_pass, const float *w, size_t ld, float *out, __m256 *square)
{
	struct pair acc[2][4];
	EACH (h, heads)
		EACH (p, pairs)
			acc[h][p] = to_lanes(type, out + (size_t)h * d + j + 16 * p);
	for (uint32_t r = 0; r < b->n; r++) {
		if (first_pass)
			row_prefetch(src, b->first + r + ROW_BLOCK);
		__m256 of_row = _mm256_setzero_ps();
		EACH (p, pairs) {
			struct pair v = load_pair(type, b->at[r], d, j + 16 * p);
			EACH (h, heads) {
				__m256 weight = _mm256_set1_ps(w[h * ld + b->first + r]);
				acc[h][p].a = _mm256_fmadd_ps(weight, v.a, acc[h][p].a);
				acc[h][p].b = _mm256_fmadd_ps(weight, v.b, acc[h][p].b);
			}
			if (square) {
				of_row = _mm256_fmadd_ps(v.a, v.a, of_row);
				of_row = _mm256_fmadd_ps(v.b, v.b, of_row);
			}
		}
		if (square)
			*square = _mm256_fmadd_ps(_mm256_set1_ps(w[ld + b->first + r]), of_row, *square);
	}
	EACH (h, heads)
		EACH (p, pairs)
			from_lanes(type, acc[h][p], out + (size_t)h * d + j + 16 * p);
}

INLINE void values_heads(enum row_type type, const struct row_source *src, const struct row_block *b, uint32_t d, uint32_t heads,
                         bool first_pass, const float *w, size_t ld, float *out, __m256 *square)
{
	const uint32_t pairs = heads == 2 ? 2 : 4;
	uint32_t j = 0;
	for (; j + 16 * pairs <= d; j += 16 * pairs)
		values_block(type, src, b, d, j, pairs, heads, first_pass && j == 0, w, ld, out, square);
	for (; j < d; j += 16)
		values_block(type, src, b, d, j, 1, heads, first_pass && j == 0, w, ld, out, square);
}

INLINE void values_avx2(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                        const float *w, size_t ld, uint32_t heads, float *out)
{
	const struct row_source src = v_source(f, type, rows, index, n);
	const uint32_t d = f->d_v;
	struct row_block b;
	row_prefetch_first(&src);
	for (uint32_t first = 0; first < n; first += ROW_BLOCK) {
		row_block_take(&src, first, &b);
		uint32_t h = 0;
		for (; h + 2 <= heads; h += 2)
			values_heads(type, &src, &b, d, 2, h == 0, w + h * ld, ld, out + (size_t)h * d, NULL);
		if (h < heads)
			values_heads(type, &src, &b, d, 1, h == 0, w + h * ld, ld, out + (size_t)h * d, NULL);
	}
}

INLINE double values_squares_avx2(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                                  uint32_t n, const float *w, size_t ld, float *out)
{
	const struct row_source src = v_source(f, type, rows, index, n);
	double total = 0;
	struct row_block b;
	row_prefetch_first(&src);
	for (uint32_t first = 0; first < n; first += ROW_BLOCK) {
		__m256 square = _mm256_setzero_ps();
		row_block_take(&src, first, &b);
		values_heads(type, &src, &b, f->d_v, 2, true, w, ld, out, &square);
		__m256d wide = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(square)),
		                             _mm256_cvtps_pd(_mm256_extractf128_ps(square, 1)));
		__m128d pair = _mm_add_pd(_mm256_castpd256_pd128(wide), _mm256_extractf128_pd(wide, 1));
		total += _mm_cvtsd_f64(pair) + _mm_cvtsd_f64(_mm_unpackhi_pd(pair, pair));
	}
	return total;
}

ROW_KERNELS(avx2, bf16, ROW_BF16)
ROW_KERNELS(avx2, f16, ROW_F16)
ROW_KERNELS(avx2, i8, ROW_I8)

void rows_init_avx2(struct kernels *k)
{
	k->scores[ROW_BF16] = scores_bf16_avx2;
	k->scores[ROW_F16] = scores_f16_avx2;
	k->scores[ROW_I8] = scores_i8_avx2;
	k->values[ROW_BF16] = values_bf16_avx2;
	k->values[ROW_F16] = values_f16_avx2;
	k->values[ROW_I8] = values_i8_avx2;
	k->values_squares[ROW_BF16] = values_squares_bf16_avx2;
	k->values_squares[ROW_F16] = values_squares_f16_avx2;
	k->values_squares[ROW_I8] = values_squares_i8_avx2;
}
