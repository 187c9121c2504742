// Signature scan for AVX-512 without VNNI: a group of sixteen rows per register, products by vpmaddubsw on fields shifted down
// (in place a pair of products would saturate). Exact sums, so any order.
#include "daemon/kernels/scan_avx512.h"

INLINE void widen(__m512i *sums, __m512i *totals, uint32_t heads)
{
	const __m512i ones = _mm512_set1_epi16(1);
	EACH (h, heads) {
		totals[h] = _mm512_add_epi32(totals[h], _mm512_madd_epi16(sums[h], ones));
		sums[h] = _mm512_setzero_si512();
	}
}

INLINE void group_sums(const uint8_t *codes, uint32_t words, uint32_t bits, const struct sig_query *queries, uint32_t heads,
                       const uint8_t *next, int32_t out[][SCAN_ROWS], uint32_t row)
{
	const __m512i mask = _mm512_set1_epi8((char)((1u << bits) - 1));
	const uint32_t limit = scan_words16(bits);
	__m512i sums[SCAN_HEADS], totals[SCAN_HEADS];
	uint32_t added = 0;
	EACH (h, heads)
		sums[h] = totals[h] = _mm512_setzero_si512();
	for (uint32_t f = 0; f < 8 / bits; f++) {
		const __m128i shift = _mm_cvtsi32_si128((int)(bits * f));
		for (uint32_t w = 0; w < words; w++) {
			const size_t q_at = 4 * ((size_t)f * words + w);
			__m512i word = _mm512_loadu_si512(codes + 64 * (size_t)w);
			if (f == 0)
				__builtin_prefetch(next + 64 * (size_t)w);
			__m512i field = _mm512_and_si512(_mm512_srl_epi16(word, shift), mask);
			EACH (h, heads) {
				__m512i q = _mm512_set1_epi32((int)scan_query_word(queries[h].q + q_at));
				sums[h] = _mm512_add_epi16(sums[h], _mm512_maddubs_epi16(field, q));
			}
			if (++added == limit) {
				widen(sums, totals, heads);
				added = 0;
			}
		}
	}
	widen(sums, totals, heads);
	EACH (h, heads)
		_mm512_store_si512(&out[h][row], totals[h]);
}

static void row_sums(const uint8_t *codes, uint32_t row, uint32_t words, uint32_t bits, const struct sig_query *queries,
                     uint32_t heads, const uint8_t *next, struct scan_sums *sums)
{
	for (uint32_t h = 0; h < heads; h += SCAN_HEADS)
		switch (heads - h) {
		case 1:
			group_sums(codes, words, bits, queries + h, 1, next, sums->at + h, row);
			break;
		case 2:
			group_sums(codes, words, bits, queries + h, 2, next, sums->at + h, row);
			break;
		case 3:
			group_sums(codes, words, bits, queries + h, 3, next, sums->at + h, row);
			break;
		default:
			group_sums(codes, words, bits, queries + h, 4, next, sums->at + h, row);
		}
}

static void block_sums(const uint8_t *codes, uint32_t rows, uint32_t d_pad, uint32_t bits, const struct sig_query *queries,
                       uint32_t heads, size_t ahead, struct scan_sums *sums)
{
	const uint32_t words = d_pad * bits / 32;
	for (uint32_t row = 0; row < rows; row += SIG_GROUP, codes += (size_t)words * 64)
		row_sums(codes, row, words, bits, queries, heads, codes + ahead, sums);
}

static void list_sums(const uint8_t *const *at, const uint8_t *const *next, uint32_t n, uint32_t d_pad, uint32_t bits,
                      const struct sig_query *queries, uint32_t heads, struct scan_sums *sums)
{
	for (uint32_t i = 0; i < n; i++)
		row_sums(at[i], SIG_GROUP * i, d_pad * bits / 32, bits, queries, heads, next[i], sums);
}

SCAN_KERNELS(static, avx512)

void scan_init_avx512(struct kernels *k)
{
	k->sig_estimate = sig_estimate_avx512;
	k->sig_estimate_groups = sig_estimate_groups_avx512;
	k->sig_select = sig_select_avx512;
}
