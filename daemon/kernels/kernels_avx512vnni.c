// Signature scan by vpdpbusd: a group of sixteen rows per register, four groups at a time so that a broadcast query word serves
// 64 rows.
//
// A field is masked in place, which leaves code << (bits * f). Fields go from the highest down into one accumulator per head and
// group, and before each next field the accumulator is shifted right by `bits`: every addend so far is a multiple of 2^bits then,
// so the shifts are exact and the last field ends at weight one. The largest value before a shift is 255 * 128 * d_pad < 2^23.
#include "daemon/kernels/scan_avx512.h"

#define GROUPS 4u

// `groups` groups against `heads` heads. With one or two heads even and odd words have accumulators of their own (`split` = 2;
// the number of words is even), for vpdpbusd's latency of five cycles at two per cycle.
INLINE void group_sums(const uint8_t *const *at, uint32_t words, uint32_t bits, const struct sig_query *queries, uint32_t groups,
                       uint32_t heads, uint32_t split, const uint8_t *const *next, int32_t out[][SCAN_ROWS], uint32_t row)
{
	const __m128i shift = _mm_cvtsi32_si128((int)bits);
	const int8_t *query[SCAN_HEADS];
	__m512i sums[2][SCAN_HEADS][GROUPS];
	EACH (h, heads) {
		query[h] = queries[h].q;
		EACH (g, groups)
			EACH (s, split)
				sums[s][h][g] = _mm512_setzero_si512();
	}
	for (uint32_t f = 8 / bits; f-- > 0;) {
		const __m512i mask = _mm512_set1_epi8((char)(((1u << bits) - 1) << bits * f));
		EACH (h, heads)
			EACH (g, groups)
				EACH (s, split)
					sums[s][h][g] = _mm512_sra_epi32(sums[s][h][g], shift);
		for (uint32_t w = 0; w < words; w += split)
			EACH (s, split) {
				const size_t q_at = 4 * ((size_t)f * words + w + s);
				__m512i field[GROUPS];
				if (f == 8 / bits - 1)
					EACH (g, groups)
						__builtin_prefetch(next[g] + 64 * (size_t)(w + s));
				EACH (g, groups)
					field[g] = _mm512_and_si512(_mm512_loadu_si512(at[g] + 64 * (size_t)(w + s)), mask);
				EACH (h, heads) {
					__m512i q = _mm512_set1_epi32((int)scan_query_word(query[h] + q_at));
					EACH (g, groups)
						sums[s][h][g] = _mm512_dpbusd_epi32(sums[s][h][g], field[g], q);
				}
			}
	}
	EACH (h, heads)
		EACH (g, groups) {
			__m512i t = split == 2 ? _mm512_add_epi32(sums[0][h][g], sums[1][h][g]) : sums[0][h][g];
			_mm512_store_si512(&out[h][row + 16 * g], t);
		}
}

INLINE void groups_sums(const uint8_t *const *at, uint32_t words, uint32_t bits, const struct sig_query *queries, uint32_t groups,
                        uint32_t heads, const uint8_t *const *next, int32_t out[][SCAN_ROWS], uint32_t row)
{
	for (uint32_t h = 0; h < heads; h += SCAN_HEADS)
		switch (heads - h) {
		case 1:
			group_sums(at, words, bits, queries + h, groups, 1, 2, next, out + h, row);
			break;
		case 2:
			group_sums(at, words, bits, queries + h, groups, 2, 2, next, out + h, row);
			break;
		case 3:
			group_sums(at, words, bits, queries + h, groups, 3, 1, next, out + h, row);
			break;
		default:
			group_sums(at, words, bits, queries + h, groups, 4, 1, next, out + h, row);
		}
}

static void block_sums(const uint8_t *codes, uint32_t rows, uint32_t d_pad, uint32_t bits, const struct sig_query *queries,
                       uint32_t heads, size_t ahead, struct scan_sums *sums)
{
	const uint32_t words = d_pad * bits / 32;
	const size_t group_bytes = 64 * (size_t)words;
	if (rows > SCAN_ROWS - SIG_GROUP) {
		const uint8_t *at[GROUPS], *next[GROUPS];
		EACH (g, GROUPS) {
			at[g] = codes + g * group_bytes;
			next[g] = at[g] + ahead;
		}
		groups_sums(at, words, bits, queries, GROUPS, heads, next, sums->at, 0);
		return;
	}
	for (uint32_t row = 0; row < rows; row += SIG_GROUP, codes += group_bytes) {
		const uint8_t *next = codes + ahead;
		groups_sums(&codes, words, bits, queries, 1, heads, &next, sums->at, row);
	}
}

static void list_sums(const uint8_t *const *at, const uint8_t *const *next, uint32_t n, uint32_t d_pad, uint32_t bits,
                      const struct sig_query *queries, uint32_t heads, struct scan_sums *sums)
{
	const uint32_t words = d_pad * bits / 32;
	if (n == GROUPS) {
		groups_sums(at, words, bits, queries, GROUPS, heads, next, sums->at, 0);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		groups_sums(at + i, words, bits, queries, 1, heads, next + i, sums->at, SIG_GROUP * i);
}

SCAN_KERNELS(, avx512vnni)

void kernels_init_avx512vnni(struct kernels *k)
{
	k->isa = "avx512+vnni";
	k->sig_estimate = sig_estimate_avx512vnni;
	k->sig_estimate_groups = sig_estimate_groups_avx512vnni;
	k->sig_select = sig_select_avx512vnni;
}
