// Every kernel in C but the signs of projections (signs_c.c): the reference, and the path of a CPU with nothing better. Where a loop must not depend on the vectoriser's
// mood it is written on 16-byte vectors (a GNU C extension, any architecture).
#include <math.h>
#include <string.h>

#include "daemon/kernels/parts.h"
#include "daemon/kernels/scan.h"

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));
typedef uint16_t vh __attribute__((vector_size(16)));

#define LOAD(type, p) (*(const type##_unaligned *)(const void *)(p))
#define STORE(type, p, x) (*(type##_unaligned *)(void *)(p) = (x))
typedef float vf_unaligned __attribute__((vector_size(16), aligned(1), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint32_t vu_unaligned __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(16), aligned(1), may_alias));

// ---- signature scan --------------------------------------------------------------------------------------------------

// A group's word seen as 32 lanes of 16 bits: lane 2r holds row r's bytes 0 and 1, lane 2r + 1 its bytes 2 and 3. Low bytes meet
// query bytes 0 and 2, high bytes 1 and 3, so that a row's sum over the word ends in its two lanes.
struct field {
	vh low[4], high[4];
};
struct packed_query {
	uint32_t even[256 / 4], odd[256 / 4]; // bytes 0 | 2 << 16, and 1 | 3 << 16, of each word
};

static void pack_queries(const struct sig_query *queries, uint32_t heads, uint32_t d_pad, struct packed_query *packed)
{
	for (uint32_t h = 0; h < heads; h++)
		for (uint32_t w = 0; w < d_pad / 4; w++) {
			const int8_t *q = queries[h].q + 4 * w;
			packed[h].even[w] = (uint32_t)(uint16_t)q[0] | (uint32_t)(uint16_t)q[2] << 16;
			packed[h].odd[w] = (uint32_t)(uint16_t)q[1] | (uint32_t)(uint16_t)q[3] << 16;
		}
}

// Every field of a group's words, in the order of the query's words.
static void unpack_fields(const uint8_t *codes, uint32_t words, uint32_t bits, struct field *out)
{
	const uint16_t m = (uint16_t)((1u << bits) - 1);
	const vh mask = {m, m, m, m, m, m, m, m};
	for (uint32_t f = 0; f < 8 / bits; f++)
		for (uint32_t w = 0; w < words; w++, out++)
			for (uint32_t v = 0; v < 4; v++) {
				vh x = LOAD(vh, codes + 64 * w + 16 * v);
				out->low[v] = x >> (uint16_t)(bits * f) & mask;
				out->high[v] = x >> (uint16_t)(bits * f + 8) & mask;
			}
}

// Sums of one head over `count` fields, few enough for 16 bits, added to the rows' totals.
static void add_products(const struct field *fields, const struct packed_query *q, uint32_t from, uint32_t count, int32_t *totals)
{
	vh s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
	for (uint32_t i = from; i < from + count; i++) {
		const struct field *x = &fields[i];
		uint32_t even = q->even[i], odd = q->odd[i];
		vh low = (vh)(vu){even, even, even, even}, high = (vh)(vu){odd, odd, odd, odd};
		s0 += x->low[0] * low + x->high[0] * high;
		s1 += x->low[1] * low + x->high[1] * high;
		s2 += x->low[2] * low + x->high[2] * high;
		s3 += x->low[3] * low + x->high[3] * high;
	}
	const vi pairs[4] = {(vi)s0, (vi)s1, (vi)s2, (vi)s3};
	for (uint32_t v = 0; v < 4; v++) {
		vi total = (pairs[v] >> 16) + ((vi)((vu)pairs[v] << 16) >> 16);
		STORE(vi, totals + 4 * v, LOAD(vi, totals + 4 * v) + total);
	}
}

static void block_sums(const uint8_t *codes, uint32_t rows, uint32_t d_pad, uint32_t bits, const struct packed_query *packed,
                       uint32_t heads, struct scan_sums *sums)
{
	const uint32_t words = d_pad * bits / 32, fields = d_pad / 4, limit = scan_words16(bits);
	struct field field[256 / 4];
	for (uint32_t row = 0; row < rows; row += SIG_GROUP) {
		unpack_fields(codes + (size_t)row * words * 4, words, bits, field);
		for (uint32_t h = 0; h < heads; h++) {
			memset(&sums->at[h][row], 0, SIG_GROUP * sizeof sums->at[h][row]);
			for (uint32_t from = 0; from < fields; from += limit)
				add_products(field, &packed[h], from, scan_min(limit, fields - from), &sums->at[h][row]);
		}
	}
}

static inline float estimate(int32_t sum, float g, const struct sig_query *q, uint32_t row)
{
	float t = (float)sum - q->zero;
	t = g * t;
	t = t * q->factor;
	t = t + q->bias;
	if (q->slope != 0)
		t = t + q->slope * (float)row;
	return t;
}

// Four halves, each in the low bits of its lane, as f16_to_f32.
static inline vf f16_widen4(vu half)
{
	const vu one = {113u << 23, 113u << 23, 113u << 23, 113u << 23};
	vu a = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
	vu subnormal = (vu)((vf)(a + one) - (vf)one), small = (vu)((vi)a < 0x400 << 13);
	vu normal = a + (112u << 23) + ((vu)((vi)a >= 0x7c00 << 13) & 112u << 23);
	return (vf)(sign | (small & subnormal) | (~small & normal));
}

static void block_estimates(const struct scan_sums *sums, const float *g, uint32_t first, uint32_t rows,
                            const struct sig_query *q, uint32_t h, float *out)
{
	const struct sig_query query = *q;
	for (uint32_t r = 0; r < rows; r++)
		out[r] = estimate(sums->at[h][r], g[r], &query, first + r);
}

static void block_factors(const uint16_t *factors, uint32_t rows, float *g)
{
	uint32_t r = 0;
	for (; rows - r >= 8; r += 8) {
		vh x = LOAD(vh, factors + r), zero = {0};
		STORE(vf, g + r, f16_widen4((vu)__builtin_shufflevector(x, zero, 0, 8, 1, 9, 2, 10, 3, 11)));
		STORE(vf, g + r + 4, f16_widen4((vu)__builtin_shufflevector(x, zero, 4, 12, 5, 13, 6, 14, 7, 15)));
	}
	for (; r < rows; r++)
		g[r] = f16_to_f32(factors[r]);
}

static void sig_estimate_c(const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad, uint32_t bits,
                           const struct sig_query *queries, uint32_t heads, float *out, size_t ld)
{
	const size_t row_bytes = d_pad * bits / 8;
	struct packed_query packed[SIG_MAX_HEADS];
	struct scan_sums sums;
	float g[SCAN_ROWS];
	pack_queries(queries, heads, d_pad, packed);
	for (uint32_t first = 0; first < n; first += SCAN_ROWS) {
		uint32_t rows = scan_min(SCAN_ROWS, n - first);
		block_sums(codes + first * row_bytes, rows, d_pad, bits, packed, heads, &sums);
		block_factors(factors + first, rows, g);
		for (uint32_t h = 0; h < heads; h++)
			block_estimates(&sums, g, first, rows, &queries[h], h, out + h * ld + first);
	}
}

static void sig_estimate_groups_c(const uint8_t *codes, const uint16_t *factors, const uint32_t *group, uint32_t n,
                                  uint32_t d_pad, uint32_t bits, const struct sig_query *queries, uint32_t heads, float *out,
                                  size_t ld)
{
	const size_t group_bytes = SIG_GROUP * (d_pad * bits / 8);
	struct packed_query packed[SIG_MAX_HEADS];
	struct scan_sums sums;
	float g[SIG_GROUP];
	pack_queries(queries, heads, d_pad, packed);
	for (uint32_t i = 0; i < n; i++) {
		block_sums(codes + group[i] * group_bytes, SIG_GROUP, d_pad, bits, packed, heads, &sums);
		block_factors(factors + (size_t)group[i] * SIG_GROUP, SIG_GROUP, g);
		for (uint32_t h = 0; h < heads; h++) {
			struct sig_query query = queries[h];
			query.slope = 0;
			block_estimates(&sums, g, 0, SIG_GROUP, &query, h, out + h * ld + (size_t)i * SIG_GROUP);
		}
	}
}

// Bit r: row r of n <= 32 is above the threshold.
static uint64_t hits32(const float *estimate, const float *noise, uint32_t n, float tau)
{
	uint64_t hit = 0;
	if (n < 32) {
		for (uint32_t r = 0; r < n; r++)
			hit |= (uint64_t)(estimate[r] + noise[r] > tau) << r;
		return hit;
	}
	const vi bit = {1, 2, 4, 8};
	vi bits = {0};
	for (uint32_t r = 0; r < 32; r += 4)
		bits |= (LOAD(vf, estimate + r) + LOAD(vf, noise + r) > tau) & (vi)((vu)bit << r);
	bits |= __builtin_shufflevector(bits, bits, 2, 3, 0, 1);
	return (uint32_t)(bits[0] | bits[1]);
}

static void sig_select_c(const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end, uint32_t d_pad,
                         uint32_t bits, const struct sig_query *queries, uint32_t heads, const float *noise,
                         struct sig_hits *hits, const uint8_t *rows, uint32_t stride, uint32_t row_bytes)
{
	const size_t code_bytes = d_pad * bits / 8;
	struct packed_query packed[SIG_MAX_HEADS];
	struct scan_sums sums;
	struct scan_block block;
	float g[SCAN_ROWS];
	pack_queries(queries, heads, d_pad, packed);
	for (uint32_t first = begin / SIG_GROUP * SIG_GROUP; first < end; first += SCAN_ROWS) {
		uint32_t count = scan_min(SCAN_ROWS, end - first);
		uint64_t valid = scan_valid(first, begin, end);
		block_sums(codes + first * code_bytes, count, d_pad, bits, packed, heads, &sums);
		block_factors(factors + first, count, g);
		for (uint32_t h = 0; h < heads; h++) {
			uint64_t hit = 0;
			block_estimates(&sums, g, first, count, &queries[h], h, block.estimate[h]);
			for (uint32_t r = 0; r < count; r += 32)
				hit |= hits32(&block.estimate[h][r], noise + first + r, scan_min(32, count - r), queries[h].tau)
				       << r;
			block.hit[h] = hit & valid;
		}
		scan_take(&block, first, heads, hits, rows, stride, row_bytes);
	}
}

// ---- rows ------------------------------------------------------------------------------------------------------------

// Half a row (K or V) as fp32.
INLINE void half_decode(enum row_type type, const uint8_t *src, uint32_t d, float *out)
{
	if (type == ROW_BF16) {
		for (uint32_t j = 0; j < d; j += 8) {
			vh x = LOAD(vh, src + 2 * (size_t)j), zero = {0};
			STORE(vh, out + j, __builtin_shufflevector(zero, x, 0, 8, 1, 9, 2, 10, 3, 11));
			STORE(vh, out + j + 4, __builtin_shufflevector(zero, x, 4, 12, 5, 13, 6, 14, 7, 15));
		}
	} else if (type == ROW_F16) {
		for (uint32_t j = 0; j < d; j += 8) {
			vh x = LOAD(vh, src + 2 * (size_t)j), zero = {0};
			vu half[2] = {(vu)__builtin_shufflevector(x, zero, 0, 8, 1, 9, 2, 10, 3, 11),
			              (vu)__builtin_shufflevector(x, zero, 4, 12, 5, 13, 6, 14, 7, 15)};
			STORE(vf, out + j, f16_widen4(half[0]));
			STORE(vf, out + j + 4, f16_widen4(half[1]));
		}
	} else {
		for (uint32_t at = 0; at < d; at += 32) {
			uint32_t n = scan_min(32, d - at);
			uint16_t scale;
			memcpy(&scale, src + d + at / 16, 2);
			float step = f16_to_f32(scale);
			for (uint32_t j = at; j < at + n; j++)
				out[j] = step * (float)(int8_t)src[j];
		}
	}
}

static inline float dot(const float *a, const float *b, uint32_t d)
{
	vf s[4] = {{0}};
	for (uint32_t j = 0; j < d; j += 16)
		for (uint32_t i = 0; i < 4; i++)
			s[i] += LOAD(vf, a + j + 4 * i) * LOAD(vf, b + j + 4 * i);
	vf t = (s[0] + s[1]) + (s[2] + s[3]);
	return (t[0] + t[1]) + (t[2] + t[3]);
}

INLINE void scores_c(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                     const float *q, uint32_t heads, float *s, size_t ld)
{
	const uint32_t ahead = 8;
	float k[256];
	for (uint32_t i = 0; i < n; i++) {
		if (index && i + ahead < n)
			__builtin_prefetch(rows + (size_t)index[i + ahead] * f->stride);
		half_decode(type, rows + (size_t)(index ? index[i] : i) * f->stride, f->d_k, k);
		for (uint32_t h = 0; h < heads; h++)
			s[h * ld + i] = dot(k, q + (size_t)h * f->d_k, f->d_k);
	}
}

// Four rows at a time, so that `out` passes through the cache once for four. squares: NULL, or what values_squares returns.
INLINE void values_pass(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                        const float *w, size_t ld, uint32_t heads, float *out, double *squares)
{
	const uint32_t d = f->d_v;
	float v[4][256];
	for (uint32_t i = 0; i < n; i += 4) {
		uint32_t count = scan_min(4, n - i);
		for (uint32_t r = 0; r < count; r++)
			half_decode(type, rows + (size_t)(index ? index[i + r] : i + r) * f->stride + f->v_offset, d, v[r]);
		for (uint32_t r = 0; squares && r < count; r++)
			*squares += (double)w[ld + i + r] * (double)dot(v[r], v[r], d);
		for (uint32_t h = 0; h < heads; h++) {
			const float *weight = w + h * ld + i;
			float *o = out + (size_t)h * d;
			if (count == 4)
				for (uint32_t j = 0; j < d; j += 4)
					STORE(vf, o + j,
					      LOAD(vf, o + j) + weight[0] * LOAD(vf, v[0] + j) + weight[1] * LOAD(vf, v[1] + j) +
					              weight[2] * LOAD(vf, v[2] + j) + weight[3] * LOAD(vf, v[3] + j));
			else
				for (uint32_t r = 0; r < count; r++)
					for (uint32_t j = 0; j < d; j += 4)
						STORE(vf, o + j, LOAD(vf, o + j) + weight[r] * LOAD(vf, v[r] + j));
		}
	}
}

INLINE void values_c(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                     const float *w, size_t ld, uint32_t heads, float *out)
{
	values_pass(type, f, rows, index, n, w, ld, heads, out, NULL);
}

INLINE double values_squares_c(enum row_type type, const struct row_format *f, const uint8_t *rows, const uint32_t *index,
                               uint32_t n, const float *w, size_t ld, float *out)
{
	double squares = 0;
	values_pass(type, f, rows, index, n, w, ld, 2, out, &squares);
	return squares;
}

ROW_KERNELS(c, bf16, ROW_BF16)
ROW_KERNELS(c, f16, ROW_F16)
ROW_KERNELS(c, i8, ROW_I8)

// ---- weights ---------------------------------------------------------------------------------------------------------

static inline vf select4(vi where, vf yes, vf no)
{
	return (vf)((where & (vi)yes) | (~where & (vi)no));
}

// exp(x) = 2^n exp(r), n = round(x log2 e), |r| <= .347, ln 2 in two parts; the polynomial is Cephes' expf (S. Moshier).
static inline vf exp4(vf x)
{
	vf c = select4(x < 89.f, x, (vf){0} + 89.f);
	c = select4(c > -88.f, c, (vf){0} - 88.f);
	vf n = (c * EXP_LOG2E + 12582912.f) - 12582912.f;
	vf r = (c - n * EXP_LN2_HIGH) - n * EXP_LN2_LOW;
	vf p = r * EXP_P0 + EXP_P1;
	p = p * r + EXP_P2;
	p = p * r + EXP_P3;
	p = p * r + EXP_P4;
	p = p * r + EXP_P5;
	p = (p * r * r + r) + 1;
	vf two = (vf)((__builtin_convertvector(n, vi) + 127) << 23);
	return select4(x != x, x, (vf)(~(x < EXP_LOWEST) & (vi)(p * two)));
}

static inline vf weights4(vf s, float shift)
{
	return (vf)(~(s == -INFINITY) & (vi)exp4(s - shift));
}

static double exp_sum_c(float *s, uint32_t n, float shift)
{
	double sum[4] = {0};
	uint32_t i = 0;
	for (; n - i >= 4; i += 4) {
		vf w = weights4(LOAD(vf, s + i), shift);
		STORE(vf, s + i, w);
		for (uint32_t l = 0; l < 4; l++)
			sum[l] += (double)w[l];
	}
	if (i < n) {
		vf last = (vf){0} - INFINITY;
		memcpy(&last, s + i, (n - i) * sizeof *s);
		last = weights4(last, shift);
		memcpy(s + i, &last, (n - i) * sizeof *s);
		for (uint32_t l = 0; l < 4; l++)
			sum[l] += (double)last[l];
	}
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static float max_c(const float *s, uint32_t n)
{
	float m = -INFINITY;
	for (uint32_t i = 0; i < n; i++)
		m = s[i] > m || s[i] != s[i] ? s[i] : m;
	return m;
}

static void split_sums_c(const float *w, uint32_t n, float theta, double *below, double *below2, uint64_t *above)
{
	double sum = 0, squares = 0;
	uint64_t count = 0;
	for (uint32_t i = 0; i < n; i++) {
		double x = w[i] >= theta ? 0 : (double)w[i];
		count += w[i] >= theta;
		sum += x;
		squares += x * x;
	}
	*below = sum;
	*below2 = squares;
	*above = count;
}

// Butterflies at distances 1 and 2: an upper element becomes a - b = (-b) + a, the same number.
static inline vf butterflies4(vf x)
{
	const vu minus1 = {0, 1u << 31, 0, 1u << 31}, minus2 = {0, 0, 1u << 31, 1u << 31};
	x = (vf)((vu)x ^ minus1) + __builtin_shufflevector(x, x, 1, 0, 3, 2);
	return (vf)((vu)x ^ minus2) + __builtin_shufflevector(x, x, 2, 3, 0, 1);
}

static void rotate_c(float *x, uint32_t d_pad, const float *signs)
{
	const float by = (float)(1 / ((double)d_pad * sqrt((double)d_pad)));
	const vf scale = {by, by, by, by};
	const uint32_t n = d_pad / 4;
	vf y[256 / 4];
	memcpy(y, x, d_pad * sizeof *x);
	for (uint32_t round = 0; round < 3; round++, signs += d_pad) {
		for (uint32_t j = 0; j < n; j++)
			y[j] = butterflies4(y[j] * LOAD(vf, signs + 4 * j));
		for (uint32_t h = 1; h < n; h *= 2)
			for (uint32_t i = 0; i < n; i += 2 * h)
				for (uint32_t j = i; j < i + h; j++) {
					vf a = y[j], b = y[j + h];
					y[j] = a + b;
					y[j + h] = a - b;
				}
	}
	for (uint32_t j = 0; j < n; j++)
		y[j] *= scale;
	memcpy(x, y, d_pad * sizeof *x);
}

static void add_columns_c(const float *x, size_t n, uint32_t d, const float *centre, double *sum)
{
	for (size_t i = 0; i < n; i++, x += d)
		for (uint32_t j = 0; j < d; j++) {
			double v = (double)x[j] - (centre ? (double)centre[j] : 0);
			sum[j] += centre ? v * v : v;
		}
}

static void stream_c(void *restrict dst, const void *restrict src, size_t bytes)
{
	memcpy(dst, src, bytes);
}

static void copies_done_c(void)
{
}

void kernels_init_c(struct kernels *k)
{
	*k = (struct kernels){
		.isa = "c",
		.sig_estimate = sig_estimate_c,
		.sig_estimate_groups = sig_estimate_groups_c,
		.sig_select = sig_select_c,
		.scores = {scores_bf16_c, scores_f16_c, scores_i8_c},
		.values = {values_bf16_c, values_f16_c, values_i8_c},
		.values_squares = {values_squares_bf16_c, values_squares_f16_c, values_squares_i8_c},
		.exp_sum = exp_sum_c,
		.max = max_c,
		.split_sums = split_sums_c,
		.rotate = rotate_c,
		.copy_finite = half_copy_finite,
		.add_columns = add_columns_c,
		.stream = stream_c,
		.copies_done = copies_done_c,
		.checksum = checksum_c,
		.bf16_widen = bf16_widen_finite,
		.row_encode = row_encode,
		.row_decode_key = row_decode_key,
	};
	choose_init_c(k);
	signs_init_c(k);
}
