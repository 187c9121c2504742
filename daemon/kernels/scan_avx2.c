// Signature scan, AVX2: eight rows per register, products by vpmaddubsw. Fields are shifted down before they are multiplied: in
// place (code << shift up to 192) a pair of products would saturate. Exact sums, so any order.
#include <immintrin.h>

#include "daemon/kernels/parts.h"
#include "daemon/kernels/scan.h"

// Adds 16-bit sums to the rows' totals, which stay in memory: the registers are all taken.
INLINE void widen(__m256i sums[][2], uint32_t heads, int32_t out[][SCAN_ROWS], uint32_t row)
{
	const __m256i ones = _mm256_set1_epi16(1);
	EACH (h, heads)
		EACH (v, 2) {
			__m256i *total = (__m256i *)(void *)&out[h][row + 8 * v];
			_mm256_store_si256(total,
			                   _mm256_add_epi32(_mm256_load_si256(total), _mm256_madd_epi16(sums[h][v], ones)));
			sums[h][v] = _mm256_setzero_si256();
		}
}

INLINE void group_sums(const uint8_t *codes, uint32_t words, uint32_t bits, const struct sig_query *queries, uint32_t heads,
                       int32_t out[][SCAN_ROWS], uint32_t row)
{
	const __m256i mask = _mm256_set1_epi8((char)((1u << bits) - 1));
	const uint32_t limit = scan_words16(bits);
	__m256i sums[SCAN_HEADS][2];
	uint32_t added = 0;
	EACH (h, heads) {
		memset(&out[h][row], 0, SIG_GROUP * sizeof **out);
		EACH (v, 2)
			sums[h][v] = _mm256_setzero_si256();
	}
	for (uint32_t f = 0; f < 8 / bits; f++) {
		const __m128i shift = _mm_cvtsi32_si128((int)(bits * f));
		for (uint32_t w = 0; w < words; w++) {
			const uint8_t *word = codes + 64 * (size_t)w;
			const size_t q_at = 4 * ((size_t)f * words + w);
			__m256i a = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256((const void *)word), shift), mask);
			__m256i b =
				_mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256((const void *)(word + 32)), shift), mask);
			EACH (h, heads) {
				__m256i q = _mm256_set1_epi32((int)scan_query_word(queries[h].q + q_at));
				sums[h][0] = _mm256_add_epi16(sums[h][0], _mm256_maddubs_epi16(a, q));
				sums[h][1] = _mm256_add_epi16(sums[h][1], _mm256_maddubs_epi16(b, q));
			}
			if (++added == limit) {
				widen(sums, heads, out, row);
				added = 0;
			}
		}
	}
	widen(sums, heads, out, row);
}

static void block_sums(const uint8_t *codes, uint32_t rows, uint32_t d_pad, uint32_t bits, const struct sig_query *queries,
                       uint32_t heads, struct scan_sums *sums)
{
	const uint32_t words = d_pad * bits / 32;
	for (uint32_t row = 0; row < rows; row += SIG_GROUP, codes += (size_t)words * 64)
		for (uint32_t h = 0; h < heads; h += SCAN_HEADS)
			switch (heads - h) {
			case 1:
				group_sums(codes, words, bits, queries + h, 1, sums->at + h, row);
				break;
			case 2:
				group_sums(codes, words, bits, queries + h, 2, sums->at + h, row);
				break;
			case 3:
				group_sums(codes, words, bits, queries + h, 3, sums->at + h, row);
				break;
			default:
				group_sums(codes, words, bits, queries + h, 4, sums->at + h, row);
			}
}

// Eight estimates, in the steps that kernels.h lays down.
INLINE __m256 estimate8(const int32_t *sums, __m256 g, const struct sig_query *q, uint32_t row)
{
	__m256 t = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_load_si256((const void *)sums)), _mm256_set1_ps(q->zero));
	t = _mm256_mul_ps(g, t);
	t = _mm256_mul_ps(t, _mm256_set1_ps(q->factor));
	t = _mm256_add_ps(t, _mm256_set1_ps(q->bias));
	if (q->slope != 0) {
		__m256i at = _mm256_add_epi32(_mm256_set1_epi32((int)row), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
		t = _mm256_add_ps(t, _mm256_mul_ps(_mm256_set1_ps(q->slope), _mm256_cvtepi32_ps(at)));
	}
	return t;
}

INLINE __m256 factors8(const uint16_t *factors)
{
	return _mm256_cvtph_ps(_mm_loadu_si128((const void *)factors));
}

// A block's factors or noise may end before 64 rows: then they are staged in a whole block of our own.
INLINE const void *staged(const void *src, uint32_t rows, size_t size, void *stage)
{
	if (rows == SCAN_ROWS)
		return src;
	memset(stage, 0, SCAN_ROWS * size);
	memcpy(stage, src, rows * size);
	return stage;
}

static void sig_estimate_avx2(const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad, uint32_t bits,
                              const struct sig_query *queries, uint32_t heads, float *out, size_t ld)
{
	const size_t code_bytes = d_pad * bits / 8;
	struct scan_sums sums;
	float tail[SCAN_ROWS];
	uint16_t stage[SCAN_ROWS];
	for (uint32_t first = 0; first < n; first += SCAN_ROWS) {
		uint32_t rows = scan_min(SCAN_ROWS, n - first), padded = (rows + 7) / 8 * 8;
		const uint16_t *g = staged(factors + first, rows, sizeof *g, stage);
		block_sums(codes + first * code_bytes, rows, d_pad, bits, queries, heads, &sums);
		for (uint32_t h = 0; h < heads; h++) {
			float *to = rows == SCAN_ROWS ? out + h * ld + first : tail;
			for (uint32_t r = 0; r < padded; r += 8)
				_mm256_storeu_ps(to + r, estimate8(&sums.at[h][r], factors8(g + r), &queries[h], first + r));
			if (to == tail)
				memcpy(out + h * ld + first, tail, rows * sizeof *tail);
		}
	}
}

#define LIST_AHEAD 4u // groups between a prefetch and its use

static void sig_estimate_groups_avx2(const uint8_t *codes, const uint16_t *factors, const uint32_t *group, uint32_t n,
                                     uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads, float *out,
                                     size_t ld)
{
	const size_t group_bytes = SIG_GROUP * (d_pad * bits / 8);
	struct sig_query flat[SIG_MAX_HEADS];
	struct scan_sums sums;
	for (uint32_t h = 0; h < heads; h++) {
		flat[h] = queries[h];
		flat[h].slope = 0;
	}
	for (uint32_t i = 0; i < n; i++, out += SIG_GROUP) {
		const uint16_t *g = factors + (size_t)group[i] * SIG_GROUP;
		const uint8_t *next = codes + group[scan_min(i + LIST_AHEAD, n - 1)] * group_bytes;
		for (size_t at = 0; at < group_bytes; at += 64)
			__builtin_prefetch(next + at);
		block_sums(codes + group[i] * group_bytes, SIG_GROUP, d_pad, bits, flat, heads, &sums);
		for (uint32_t h = 0; h < heads; h++)
			for (uint32_t r = 0; r < SIG_GROUP; r += 8)
				_mm256_storeu_ps(out + h * ld + r, estimate8(&sums.at[h][r], factors8(g + r), &flat[h], 0));
	}
}

static void sig_select_avx2(const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end, uint32_t d_pad,
                            uint32_t bits, const struct sig_query *queries, uint32_t heads, const float *noise,
                            struct sig_hits *hits, const uint8_t *rows, uint32_t stride, uint32_t row_bytes)
{
	const size_t code_bytes = d_pad * bits / 8;
	struct scan_sums sums;
	struct scan_block block;
	uint16_t factor_stage[SCAN_ROWS];
	float noise_stage[SCAN_ROWS];
	for (uint32_t first = begin / SIG_GROUP * SIG_GROUP; first < end; first += SCAN_ROWS) {
		uint32_t count = scan_min(SCAN_ROWS, end - first), padded = (count + 7) / 8 * 8;
		uint64_t valid = scan_valid(first, begin, end);
		const uint16_t *g = staged(factors + first, count, sizeof *g, factor_stage);
		const float *u = staged(noise + first, count, sizeof *u, noise_stage);
		block_sums(codes + first * code_bytes, count, d_pad, bits, queries, heads, &sums);
		for (uint32_t h = 0; h < heads; h++) {
			const __m256 tau = _mm256_set1_ps(queries[h].tau);
			uint64_t hit = 0;
			for (uint32_t r = 0; r < padded; r += 8) {
				__m256 t = estimate8(&sums.at[h][r], factors8(g + r), &queries[h], first + r);
				__m256 above = _mm256_cmp_ps(_mm256_add_ps(t, _mm256_loadu_ps(u + r)), tau, _CMP_GT_OQ);
				_mm256_store_ps(&block.estimate[h][r], t);
				hit |= (uint64_t)(uint32_t)_mm256_movemask_ps(above) << r;
			}
			block.hit[h] = hit & valid;
		}
		scan_take(&block, first, heads, hits, rows, stride, row_bytes);
	}
}

void scan_init_avx2(struct kernels *k)
{
	k->sig_estimate = sig_estimate_avx2;
	k->sig_estimate_groups = sig_estimate_groups_avx2;
	k->sig_select = sig_select_avx2;
}
