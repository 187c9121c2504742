// The parts of an ISA's table that live in files of their own, and what several ISAs share: the constants of exp, and the
// blocks of rows that scores and values walk. Internal to daemon/kernels.
#ifndef MPIG_KERNELS_PARTS_H
#define MPIG_KERNELS_PARTS_H

#include "daemon/kernels/kernels.h"

void signs_init_c(struct kernels *k);
void signs_init_avx2(struct kernels *k);
void signs_init_avx512(struct kernels *k);
void encode_init_avx512(struct kernels *k);
uint64_t checksum_c(const void *data, size_t bytes);
uint64_t checksum_avx2(const void *data, size_t bytes);
uint64_t checksum_avx512(const void *data, size_t bytes);
void choose_init_c(struct kernels *k);
void choose_init_avx2(struct kernels *k);
void choose_init_avx512(struct kernels *k);
void scan_init_avx2(struct kernels *k);
void rows_init_avx2(struct kernels *k);
void scan_init_avx512(struct kernels *k);
void sig_estimate_avx512vnni(const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad, uint32_t bits,
                             const struct sig_query *queries, uint32_t heads, float *out, size_t ld);
void sig_estimate_groups_avx512vnni(const uint8_t *codes, const uint16_t *factors, const uint32_t *group, uint32_t n,
                                    uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads, float *out,
                                    size_t ld);
void sig_select_avx512vnni(const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end, uint32_t d_pad,
                           uint32_t bits, const struct sig_query *queries, uint32_t heads, const float *noise,
                           struct sig_hits *hits, const uint8_t *rows, uint32_t stride, uint32_t row_bytes);
void rows_init_avx512(struct kernels *k);

// A short loop with a constant bound, completely unrolled, so that its array of vectors lives in registers. Not under a
// sanitizer, whose checks would be multiplied with it (a minute for one file).
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MPIG_UNROLL
#elif defined(__clang__)
#define MPIG_UNROLL _Pragma("unroll")
#else
#define MPIG_UNROLL _Pragma("GCC unroll 32")
#endif
#define EACH(i, n) MPIG_UNROLL for (uint32_t i = 0; i < (n); i++)
#define INLINE static inline __attribute__((always_inline))

// exp: Cephes' expf (S. Moshier). Below EXP_LOWEST the result would be subnormal and is 0.
#define EXP_LOWEST (-87.33f)
#define EXP_LOG2E 1.44269504f
#define EXP_LN2_HIGH .693359375f
#define EXP_LN2_LOW (-2.12194440e-4f)
#define EXP_P0 1.9875691500e-4f
#define EXP_P1 1.3981999507e-3f
#define EXP_P2 8.3334519073e-3f
#define EXP_P3 4.1665795894e-2f
#define EXP_P4 1.6666665459e-1f
#define EXP_P5 5.0000001201e-1f

// Rows are taken in blocks: within one, every head passes over rows that are in L1, and the rows one block ahead are on their
// way.
#define ROW_BLOCK 16u
struct row_source {
	const uint8_t *base; // row 0's K or V
	const uint32_t *index;
	size_t stride;
	uint32_t bytes; // of K or V
	uint32_t n;
};
struct row_block {
	const uint8_t *at[ROW_BLOCK]; // padded to a multiple of 4 by repeating the last
	uint32_t first, n;
};

INLINE const uint8_t *row_at(const struct row_source *s, uint32_t i)
{
	return s->base + (size_t)(s->index ? s->index[i] : i) * s->stride;
}

INLINE void row_prefetch(const struct row_source *s, uint32_t i)
{
	if (i >= s->n)
		return;
	const uint8_t *row = row_at(s, i);
	for (uint32_t at = 0; at < s->bytes; at += 64)
		__builtin_prefetch(row + at);
	__builtin_prefetch(row + s->bytes - 1);
}

INLINE void row_prefetch_first(const struct row_source *s)
{
	for (uint32_t i = 0; i < ROW_BLOCK; i++)
		row_prefetch(s, i);
}

INLINE void row_block_take(const struct row_source *s, uint32_t first, struct row_block *b)
{
	b->first = first;
	b->n = s->n - first < ROW_BLOCK ? s->n - first : ROW_BLOCK;
	for (uint32_t r = 0; r < b->n; r++)
		b->at[r] = row_at(s, first + r);
	for (uint32_t r = b->n; r % 4; r++)
		b->at[r] = b->at[b->n - 1];
}

INLINE uint32_t half_row_bytes(enum row_type type, uint32_t d)
{
	return type == ROW_I8 ? d + 2 * ((d + 31) / 32) : 2 * d;
}

INLINE struct row_source k_source(const struct row_format *f, enum row_type type, const uint8_t *rows, const uint32_t *index,
                                  uint32_t n)
{
	return (struct row_source){rows, index, f->stride, half_row_bytes(type, f->d_k), n};
}

INLINE struct row_source v_source(const struct row_format *f, enum row_type type, const uint8_t *rows, const uint32_t *index,
                                  uint32_t n)
{
	return (struct row_source){rows + f->v_offset, index, f->stride, half_row_bytes(type, f->d_v), n};
}

// The table entries for a row type, from an ISA's generic `scores`, `values` and `values_squares`.
#define ROW_KERNELS(isa, name, type)                                                                                             \
	static void scores_##name##_##isa(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,    \
	                                  const float *q, uint32_t heads, float *s, size_t ld)                                   \
	{                                                                                                                        \
		scores_##isa(type, f, rows, index, n, q, heads, s, ld);                                                          \
	}                                                                                                                        \
	static void values_##name##_##isa(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,    \
	                                  const float *w, size_t ld, uint32_t heads, float *out)                                 \
	{                                                                                                                        \
		values_##isa(type, f, rows, index, n, w, ld, heads, out);                                                        \
	}                                                                                                                        \
	static double values_squares_##name##_##isa(const struct row_format *f, const uint8_t *rows, const uint32_t *index,      \
	                                            uint32_t n, const float *w, size_t ld, float *out)                           \
	{                                                                                                                        \
		return values_squares_##isa(type, f, rows, index, n, w, ld, out);                                                \
	}

#endif
