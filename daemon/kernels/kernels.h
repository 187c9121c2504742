// Inner loops, chosen once at start by CPU and mask. Every slot is filled with plain C first; each ISA's file then replaces
// what it does better. A C twin and a property test exist for every kernel (tests/kernels).
//
// Rows: K | V side by side, `stride` bytes apart, K at offset 0 and V at `v_offset` (struct row_format).
//   bf16, fp16   d_k then d_v elements of 2 bytes
//   int8         d_k values int8, ceil(d_k/32) scales fp16, d_v values int8, ceil(d_v/32) scales fp16; K in its frame
// Codes: signature codes of 16 rows interleaved (a "group"): for word w of a row's d_pad*b/8 bytes, 16 x 4 bytes, one per
// row. Byte k of word w holds fields f = 0..8/b-1 at bit b*f: the code of dimension f * (d_pad*b/8) + 4w + k. So masking
// a field in place leaves code << (b*f), and one VNNI step multiplies it by four neighbouring query bytes.
#ifndef MPIG_KERNELS_H
#define MPIG_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum row_type { ROW_BF16 = 0, ROW_F16 = 1, ROW_I8 = 2, ROW_TYPES = 3 };

struct row_format {
	enum row_type type;
	uint32_t d_k, d_v;
	uint32_t v_offset; // bytes from a row's start to its V
	uint32_t stride;   // bytes; a multiple of 64 (bf16, fp16) or 32 (int8)
};

#define SIG_GROUP 16u
#define SIG_MAX_HEADS 16u   // heads scanned together
#define SIG_CHOOSE_BITS 27u // sig_choose counts inclusion probabilities in units of 2^-27
#define SIGNS_KEYS 16u      // keys projected together
#define SIGNS_QUERIES 4u    // queries projected together

// An upper layer over the codes of a segment's rows (daemon/index/upper.h): for every group of sixteen alike rows a signature of its
// centroid, sixteen of them interleaved as rows are, with two fp16, and for each of its rows codes, factor and number.
#define SIG_UPPER_BITS 4u
static inline size_t sig_upper_groups(uint32_t rows) // with what fills up the last sixteen
{
	return ((size_t)rows + SIG_GROUP * SIG_GROUP - 1) / (SIG_GROUP * SIG_GROUP) * SIG_GROUP;
}
static inline size_t sig_upper_bytes(uint32_t d_pad, uint32_t bits, uint32_t rows)
{
	return sig_upper_groups(rows) * (d_pad * SIG_UPPER_BITS / 8 + 4 + SIG_GROUP * (d_pad * bits / 8 + 4));
}

// One query head against one set of signature parameters.
struct sig_query {
	const int8_t *q; // [d_pad] rotated, quantised
	float factor;    // logit per unit of g * (sum code*q - zero), = layer scale * query scale
	float zero;      // level offset * sum q  (offset .5, 1.5, 7.5 for b = 1, 2, 4)
	float bias;      // layer scale * q.mu, plus ALiBi at row 0 of the run
	float slope;     // ALiBi slope per row; 0 otherwise
	float tau;       // sig_select: the threshold
};

// One selected row: its position in the run and its estimated logit (before clamping pi to 1).
struct sig_hits {
	uint32_t *row;
	float *estimate;
	uint32_t n; // in: already there; out: raised by what was selected
};

// The best uniform grid for a Gaussian at 1, 2 and 4 bits; 1 knows only the sign.
struct sig_grid {
	float step; // of the levels, in units of sigma
	float offset, top;
};
static inline struct sig_grid sig_grid_of(uint32_t bits)
{
	return bits == 1   ? (struct sig_grid){1.f, .5f, 1.f}
	       : bits == 2 ? (struct sig_grid){.9957f, 1.5f, 3.f}
	                   : (struct sig_grid){.3352f, 7.5f, 15.f};
}

// What keys are encoded by.
struct sig_encoding {
	const float *mu, *balance; // [d_k]
	const float *signs;        // [3][d_pad] of +-1
	uint32_t d_k, d_pad, bits;
};

struct kernels {
	const char *isa;

	// Estimates of the rows i in [0, n) of the run, which begins at a group boundary; heads <= SIG_MAX_HEADS, ld >= n.
	// Factors g are fp16, n of them. With S = sum_j code_ij q_hj, an exact integer (|S| <= 15 * 128 * 256 < 2^24), each step
	// rounded to fp32:
	//     t = (float)S - zero_h;  t = g_i * t;  t = t * factor_h;  t = t + bias_h;  if (slope_h != 0) t = t + slope_h * (float)i
	// and out[h][i] (stride ld) = t. Nothing is fused or reordered on any ISA: estimates agree to the bit.
	void (*sig_estimate)(const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad, uint32_t bits,
	                     const struct sig_query *queries, uint32_t heads, float *out, size_t ld);
	// The same estimates of the rows of n groups, in any order and number: out[h][16 i + r] is row r of group[i]. Slopes are taken for 0.
	// Codes and factors of whole groups are read.
	void (*sig_estimate_groups)(const uint8_t *codes, const uint16_t *factors, const uint32_t *group, uint32_t n,
	                            uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads, float *out,
	                            size_t ld);
	// The same estimates; appends the rows i in [begin, end) with estimate + noise[i] > tau_h (noise = -log U, end floats) to
	// hits[h], ascending, and asks the memory system for the hit rows (rows may be NULL; row i at rows + i * stride,
	// row_bytes).
	void (*sig_select)(const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end, uint32_t d_pad,
	                   uint32_t bits, const struct sig_query *queries, uint32_t heads, const float *noise,
	                   struct sig_hits *hits, const uint8_t *rows, uint32_t stride, uint32_t row_bytes);
	// Systematic choice of rows, one head: of group i (estimates[16 i ..]) each row is taken with probability w / 2^27 exactly, over a
	// *chain that is uniform in [0, 2^27) at first, w the whole number nearest 2^27 exp(min(0, estimate - tau[i])): the weights are added
	// up in order, and a row is taken where the sum passes a multiple of 2^27. Rows taken are appended to hits, as positions
	// among these estimates; *chain goes on in the next call. tau +inf: nothing of the group is taken, and the chain is as it was.
	// A NaN is never taken. The exponential is the same sequence of rounded steps on every ISA: choices agree to the bit.
	void (*sig_choose)(const float *estimates, const float *tau, uint32_t groups, uint32_t *chain, struct sig_hits *hits);
	// s[h][i] (stride ld) = q_h . K[row_i]; row_i = index ? index[i] : i. q is [heads][d_k] fp32, heads any; d_k and d_v are
	// multiples of 16. fp32 accumulation in an order of the ISA's choosing; |error| <= 2 d eps sum |q_j k_j|. A caller that
	// wants every line of contiguous rows fetched once runs scores and values over the same few hundred rows at a time.
	void (*scores[ROW_TYPES])(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
	                          const float *q, uint32_t heads, float *s, size_t ld);
	// out[h][:] += sum_i w[h][i] V[row_i]; out [heads][d_v] fp32.
	void (*values[ROW_TYPES])(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
	                          const float *w, size_t ld, uint32_t heads, float *out);
	// What a sample with error terms wants of its rows, in one visit: out as `values` gives it for two heads, and the result is
	// sum_i w[1][i] |V[row_i]|^2, w[1] >= 0. Squares and products are added in fp32 over at most 16 rows, then in double:
	// |error| <= (d_v + 32) eps of the sum + n d_v max(1, w) 2^-149.
	double (*values_squares[ROW_TYPES])(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
	                                    const float *w, size_t ld, float *out);
	// w[i] = exp(x), x = s[i] - shift rounded to fp32, in place; returns sum w. s[i] = -inf gives 0 whatever the shift, and
	// so does x < -87.33 (exp(x) would be subnormal). Relative error of each w <= 4e-7 for x in [-87.33, 88]; above, +inf.
	// NaN stays NaN.
	double (*exp_sum)(float *s, uint32_t n, float shift);
	float (*max)(const float *s, uint32_t n); // -inf for n = 0; NaN if any is NaN
	// One step of the threshold search: over w[0..n): *below = sum of w_i < theta, *below2 = sum of their squares, *above =
	// count of w_i >= theta. Sums in double, order of the ISA's choosing. A NaN counts as below, so that it shows in the
	// sums.
	void (*split_sums)(const float *w, uint32_t n, float theta, double *below, double *below2, uint64_t *above);
	// x [d_pad] -> H D3 H D2 H D1 x / d_pad^(3/2) in place; signs [3][d_pad] of +-1.f; d_pad 64, 128 or 256. Each round
	// multiplies by its signs and runs the butterflies (a + b, a - b) at distances 1, 2, 4, .. d_pad/2; one factor at the
	// end. Equal to the bit on every ISA.
	void (*rotate)(float *x, uint32_t d_pad, const float *signs);
	// Codes and factors of a whole group: keys [SIG_GROUP][d_k] into the group's SIG_GROUP * d_pad * bits / 8 bytes and its sixteen
	// factors, what sig_encode (daemon/index) makes of each, to the bit. NULL: there is nothing better than that.
	void (*sig_encode16)(const float *keys, const struct sig_encoding *e, uint8_t *codes, uint16_t *factors);
	// The same of bf16 keys, `stride` bytes apart, of any alignment.
	void (*sig_encode16_bf16)(const void *keys, size_t stride, const struct sig_encoding *e, uint8_t *codes,
	                          uint16_t *factors);
	// half_copy_finite (below): copies n elements of 2 bytes and looks at them; of any alignment, n a multiple of 16.
	bool (*copy_finite)(void *restrict dst, const void *restrict src, size_t n, uint16_t exponent);
	// Copies to where nobody will read soon: past the caches where that can be. dst is aligned to 32 bytes, and `bytes` a multiple of
	// 32. copies_done comes before others are told of them.
	void (*stream)(void *restrict dst, const void *restrict src, size_t bytes);
	void (*copies_done)(void);
	// XXH3 64-bit, without seed or secret.
	uint64_t (*checksum)(const void *data, size_t bytes);
	// bf16_widen_finite, row_encode and row_decode_key (below), to the bit.
	bool (*bf16_widen)(const void *src, size_t n, float *dst);
	void (*row_encode)(const struct row_format *f, const float *k, const float *v, const float *frame, uint8_t *dst);
	void (*row_decode_key)(const struct row_format *f, const uint8_t *src, const float *frame, float *k);
	// Of x [n][d], d a multiple of 16: sum[j] += x[i][j], or with a centre [d] += (x[i][j] - centre[j])^2, in double, added in the order of i;
	// equal to the bit on every ISA.
	void (*add_columns)(const float *x, size_t n, uint32_t d, const float *centre, double *sum);
	// On which side of `count` directions [count][d] vectors lie; d is a multiple of 16. Equal to the bit on every ISA: products
	// and sums are rounded one by one. Sixteen keys, transposed [d][SIGNS_KEYS]: bit r of positive[c] is set where
	// sum_j keys[j][r] direction_c[j], added in the order of j, is above 0.
	void (*signs_block)(const float *keys, uint32_t d, const float *directions, uint32_t count, uint16_t *positive);
	// 1 to SIGNS_QUERIES queries [n][d]: bit r of positive[c] is set where the projection of query r is above 0. Sixteen partial
	// sums p_l over j = l mod 16, then t_l = (p_l + p_(l+8)) + (p_(l+4) + p_(l+12)) and (t_0 + t_1) + (t_2 + t_3).
	void (*signs_queries)(const float *queries, uint32_t n, uint32_t d, const float *directions, uint32_t count,
	                      uint8_t *positive);
};

// CPU features, and the mask (MAGICPIG_CPU_MASK: a number, or names joined by '+': c, avx2, avx512, avx512vnni, amx, ...).
// A name allows its ISA and all that it builds on; "all" allows everything.
enum cpu_feature {
	CPU_AVX2 = 1u << 0,
	CPU_AVX512 = 1u << 1,
	CPU_AVX512_VNNI = 1u << 2,
	CPU_AVX512_BF16 = 1u << 3,
	CPU_AMX_INT8 = 1u << 4
};
// Of this CPU and OS state. Asks the kernel once for the right to use tiles, which holds for all threads that begin later.
uint32_t cpu_features(void);
int cpu_mask_parse(const char *text, uint32_t *mask); // 0, or -1 for an unknown name (*mask unchanged)
// Fills the table for features & mask. `name` (>= 64 bytes, may be NULL) gets what was chosen, e.g. "avx512+vnni".
void kernels_init(struct kernels *k, uint32_t features, char *name, size_t name_bytes);

void kernels_init_c(struct kernels *k);
void kernels_init_avx2(struct kernels *k);
void kernels_init_avx512(struct kernels *k);
void kernels_init_avx512vnni(struct kernels *k); // the two scans only
void kernels_init_amx(struct kernels *k);        // the same

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f); // round to nearest even; overflow to infinity
float bf16_to_f32(uint16_t b);
uint16_t f32_to_bf16(float f); // round to nearest even; NaN stays NaN

// n elements of any alignment to fp32; false if one is NaN or infinite (dst is written all the same).
bool f32_copy_finite(const void *src, size_t n, float *dst);
bool f16_widen_finite(const void *src, size_t n, float *dst);
bool bf16_widen_finite(const void *src, size_t n, float *dst);

// Copies n elements of any alignment; false if one has all bits of `exponent` set and is not finite (0x7f80: bf16, 0x7c00: fp16). All are
// written either way.
bool half_copy_finite(void *restrict dst, const void *restrict src, size_t n, uint16_t exponent);

// Row layout for a type and dimensions; 0, or -1 if unsupported.
int row_format_init(struct row_format *f, enum row_type type, uint32_t d_k, uint32_t d_v);
// Encodes one row from fp32. frame: of int8 keys (below), else ignored. dst has f->stride bytes.
void row_encode(const struct row_format *f, const float *k, const float *v, const float *frame, uint8_t *dst);
// Its key alone, or both, to fp32.
void row_decode_key(const struct row_format *f, const uint8_t *src, const float *frame, float *k);
void row_decode(const struct row_format *f, const uint8_t *src, const float *frame, float *k, float *v);

// The frame of int8 keys, float [2][d_k]: a centre c and a scale s > 0 for each dimension. What is stored is (k - c) / s, so that
// q.k = (q s).stored + q.c, and the loop over rows multiplies as if there were no frame. NULL: 0 and 1.
#define ROW_FRAME(d_k) (2 * (size_t)(d_k))
// From n >= 1 keys [n][d_k]: c is their mean, s the root of their deviation. Dimensions of one block of 32 share a step: dividing by the
// deviation itself would spend as many steps on a dimension that hardly differs between keys as on one that decides.
void row_frame_fit(const float *k, size_t n, uint32_t d_k, float *frame);
void row_frame_none(uint32_t d_k, float *frame); // 0 and 1
// q s into out [d_k]; returns q.c.
float row_frame_query(const float *frame, const float *q, uint32_t d_k, float *out);

#endif
