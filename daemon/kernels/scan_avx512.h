// The two signature scans for AVX-512, given how an ISA sums products. Included by the files of AVX-512 ISAs only.
#ifndef MPIG_KERNELS_SCAN_AVX512_H
#define MPIG_KERNELS_SCAN_AVX512_H

#include <immintrin.h>
#include <stdbool.h>

#include "daemon/kernels/parts.h"
#include "daemon/kernels/scan.h"

// Sums of the whole groups that hold `rows` rows (at most 64). Asks for the codes `ahead` bytes on, one line for each that it reads.
typedef void block_sums_fn(const uint8_t *codes, uint32_t rows, uint32_t d_pad, uint32_t bits, const struct sig_query *queries,
                           uint32_t heads, size_t ahead, struct scan_sums *sums);

// Sums of n groups (at most four), each at its own place. Asks for the codes at `next`, a group for each.
typedef void list_sums_fn(const uint8_t *const *at, const uint8_t *const *next, uint32_t n, uint32_t d_pad, uint32_t bits,
                          const struct sig_query *queries, uint32_t heads, struct scan_sums *sums);

// A head's constants in registers.
struct head_lanes {
	__m512 zero, factor, bias, slope, tau;
	bool sloped;
};

INLINE struct head_lanes head_load(const struct sig_query *q)
{
	return (struct head_lanes){
		.zero = _mm512_set1_ps(q->zero),
		.factor = _mm512_set1_ps(q->factor),
		.bias = _mm512_set1_ps(q->bias),
		.slope = _mm512_set1_ps(q->slope),
		.tau = _mm512_set1_ps(q->tau),
		.sloped = q->slope != 0,
	};
}

// Sixteen estimates, in the steps that kernels.h lays down.
INLINE __m512 estimate16(const int32_t *sums, __m512 g, const struct head_lanes *h, uint32_t row)
{
	__m512 t = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums)), h->zero);
	t = _mm512_mul_ps(g, t);
	t = _mm512_mul_ps(t, h->factor);
	t = _mm512_add_ps(t, h->bias);
	if (h->sloped) {
		const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
		__m512i at = _mm512_add_epi32(_mm512_set1_epi32((int)row), lane);
		t = _mm512_add_ps(t, _mm512_mul_ps(h->slope, _mm512_cvtepi32_ps(at)));
	}
	return t;
}

// Factors of the rows in `lanes`; nothing else is read.
INLINE __m512 factors16(const uint16_t *factors, __mmask16 lanes)
{
	return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, factors));
}

// Blocks between a code's prefetch and its use: the hardware's prefetcher stops at each page. Two to eight measure alike; more
// lose. One prefetch beside each load, because a burst of 32 fills the core's line buffers.
#define SCAN_AHEAD 2u
#define LIST_AHEAD 8u // groups, where they lie apart

INLINE size_t codes_ahead(size_t code_bytes, uint32_t rows_left)
{
	return rows_left < (SCAN_AHEAD + 1) * SCAN_ROWS ? 0 : SCAN_AHEAD * SCAN_ROWS * code_bytes;
}

INLINE void estimate_avx512(block_sums_fn *block_sums, const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad,
                            uint32_t bits, const struct sig_query *queries, uint32_t heads, float *out, size_t ld)
{
	const size_t code_bytes = d_pad * bits / 8;
	struct scan_sums sums;
	for (uint32_t first = 0; first < n; first += SCAN_ROWS) {
		const uint64_t valid = scan_valid(first, 0, n);
		block_sums(codes + first * code_bytes, scan_min(SCAN_ROWS, n - first), d_pad, bits, queries, heads,
		           codes_ahead(code_bytes, n - first), &sums);
		for (uint32_t h = 0; h < heads; h++) {
			const struct head_lanes head = head_load(&queries[h]);
			for (uint32_t r = 0; r < SCAN_ROWS && first + r < n; r += 16) {
				__mmask16 lanes = (__mmask16)(valid >> r);
				__m512 t = estimate16(&sums.at[h][r], factors16(factors + first + r, lanes), &head, first + r);
				_mm512_mask_storeu_ps(out + h * ld + first + r, lanes, t);
			}
		}
	}
}

INLINE void estimate_groups_avx512(list_sums_fn *list_sums, const uint8_t *codes, const uint16_t *factors, const uint32_t *group,
                                   uint32_t n, uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads,
                                   float *out, size_t ld)
{
	const size_t group_bytes = SIG_GROUP * (d_pad * bits / 8);
	struct scan_sums sums;
	for (uint32_t first = 0; first < n; first += 4) {
		const uint8_t *at[4], *next[4];
		const uint32_t some = scan_min(4, n - first);
		__m512 g[4];
		for (uint32_t i = 0; i < some; i++) {
			at[i] = codes + group[first + i] * group_bytes;
			next[i] = codes + group[scan_min(first + i + LIST_AHEAD, n - 1)] * group_bytes;
			g[i] = factors16(factors + (size_t)group[first + i] * SIG_GROUP, 0xffff);
		}
		list_sums(at, next, some, d_pad, bits, queries, heads, &sums);
		for (uint32_t h = 0; h < heads; h++) {
			struct head_lanes head = head_load(&queries[h]);
			head.sloped = false;
			for (uint32_t i = 0; i < some; i++)
				_mm512_storeu_ps(out + h * ld + (size_t)(first + i) * SIG_GROUP,
				                 estimate16(&sums.at[h][SIG_GROUP * i], g[i], &head, 0));
		}
	}
}

INLINE uint64_t block_hits(const struct scan_sums *sums, const __m512 *g, uint32_t h, const struct sig_query *query,
                           uint32_t first, uint64_t valid, const float *noise, struct scan_block *block)
{
	const struct head_lanes head = head_load(query);
	uint64_t hit = 0;
	EACH (i, SCAN_ROWS / 16) {
		const uint32_t r = 16 * i;
		__mmask16 lanes = (__mmask16)(valid >> r);
		__m512 t = estimate16(&sums->at[h][r], g[i], &head, first + r);
		__m512 noisy = _mm512_add_ps(t, _mm512_maskz_loadu_ps(lanes, noise + first + r));
		_mm512_store_ps(&block->estimate[h][r], t);
		hit |= (uint64_t)_mm512_mask_cmp_ps_mask(lanes, noisy, head.tau, _CMP_GT_OQ) << r;
	}
	return hit;
}

INLINE void select_avx512(block_sums_fn *block_sums, const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end,
                          uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads, const float *noise,
                          struct sig_hits *hits, const uint8_t *rows, uint32_t stride, uint32_t row_bytes)
{
	const size_t code_bytes = d_pad * bits / 8;
	struct scan_sums sums = {0}; // sums of groups past the end are looked at, then masked
	struct scan_block block;
	for (uint32_t first = begin / SIG_GROUP * SIG_GROUP; first < end; first += SCAN_ROWS) {
		const uint64_t valid = scan_valid(first, begin, end);
		__m512 g[SCAN_ROWS / 16];
		block_sums(codes + first * code_bytes, scan_min(SCAN_ROWS, end - first), d_pad, bits, queries, heads,
		           codes_ahead(code_bytes, end - first), &sums);
		EACH (i, SCAN_ROWS / 16)
			g[i] = factors16(factors + first + 16 * i, (__mmask16)(valid >> 16 * i));
		for (uint32_t h = 0; h < heads; h++)
			block.hit[h] = block_hits(&sums, g, h, &queries[h], first, valid, noise, &block);
		scan_take(&block, first, heads, hits, rows, stride, row_bytes);
	}
}

#define SCAN_KERNELS(storage, isa)                                                                                               \
	storage void sig_estimate_##isa(const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad,               \
	                                uint32_t bits, const struct sig_query *queries, uint32_t heads, float *out, size_t ld)   \
	{                                                                                                                        \
		estimate_avx512(block_sums, codes, factors, n, d_pad, bits, queries, heads, out, ld);                            \
	}                                                                                                                        \
	storage void sig_estimate_groups_##isa(const uint8_t *codes, const uint16_t *factors, const uint32_t *group, uint32_t n, \
	                                       uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads,   \
	                                       float *out, size_t ld)                                                            \
	{                                                                                                                        \
		estimate_groups_avx512(list_sums, codes, factors, group, n, d_pad, bits, queries, heads, out, ld);               \
	}                                                                                                                        \
	storage void sig_select_##isa(const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end,               \
	                              uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads,            \
	                              const float *noise, struct sig_hits *hits, const uint8_t *rows, uint32_t stride,           \
	                              uint32_t row_bytes)                                                                        \
	{                                                                                                                        \
		select_avx512(block_sums, codes, factors, begin, end, d_pad, bits, queries, heads, noise, hits, rows, stride,    \
		              row_bytes);                                                                                        \
	}

#endif
