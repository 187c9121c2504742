// What the signature scans of all ISAs share: blocks of 64 rows, whose sums an ISA's inner loop leaves in memory and whose hits
// are a 64-bit mask per head. Internal to daemon/kernels.
#ifndef MPIG_KERNELS_SCAN_H
#define MPIG_KERNELS_SCAN_H

#include <string.h>

#include "daemon/kernels/kernels.h"

#define SCAN_ROWS 64u // four groups
#define SCAN_HEADS 4u // as many as have their sums in registers

// Sums and estimates of one block, [head][row].
struct scan_sums {
	_Alignas(64) int32_t at[SIG_MAX_HEADS][SCAN_ROWS];
};
struct scan_block {
	_Alignas(64) float estimate[SIG_MAX_HEADS][SCAN_ROWS];
	uint64_t hit[SIG_MAX_HEADS]; // bit r: row r of the block was selected
};

static inline uint32_t scan_min(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

// Bits of the block's rows that lie in [begin, end), for a block that starts at row `first` < end, first + 64 > begin.
static inline uint64_t scan_valid(uint32_t first, uint32_t begin, uint32_t end)
{
	uint64_t low = begin > first ? UINT64_MAX << (begin - first) : UINT64_MAX;
	return end - first >= SCAN_ROWS ? low : low & (UINT64_MAX >> (SCAN_ROWS - (end - first)));
}

// Partial sums in 16 bits: a product pair is at most 2 * (2^b - 1) * 128, so that many words of one field may be added before the
// sums are widened (8 * 3840, 32 * 768, 64 * 256: all < 2^15).
static inline uint32_t scan_words16(uint32_t bits)
{
	return bits == 4 ? 8 : bits == 2 ? 32 : 64;
}

static inline uint32_t scan_query_word(const int8_t *q)
{
	uint32_t word;
	memcpy(&word, q, sizeof word);
	return word;
}

// Appends the block's hits, and prefetches each hit row once: into L2, because the rows of a whole call can exceed L1.
static inline void scan_take(const struct scan_block *b, uint32_t first, uint32_t heads, struct sig_hits *hits,
                             const uint8_t *rows, uint32_t stride, uint32_t row_bytes)
{
	uint64_t any = 0;
	for (uint32_t h = 0; h < heads; h++) {
		uint64_t mask = b->hit[h];
		uint32_t n = hits[h].n;
		any |= mask;
		for (; mask; mask &= mask - 1, n++) {
			uint32_t r = (uint32_t)__builtin_ctzll(mask);
			hits[h].row[n] = first + r;
			hits[h].estimate[n] = b->estimate[h][r];
		}
		hits[h].n = n;
	}
	if (!rows)
		return;
	for (; any; any &= any - 1) {
		const uint8_t *row = rows + (size_t)(first + (uint32_t)__builtin_ctzll(any)) * stride;
		for (uint32_t at = 0; at < row_bytes; at += 64)
			__builtin_prefetch(row + at, 0, 2);
	}
}

#endif
