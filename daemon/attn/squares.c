#include "daemon/attn/squares.h"

#include <stdbool.h>
#include <string.h>

enum { FLUSH = 64, SCALE_BLOCK = 32 }; // rows between two additions to the double; int8 values of one scale

typedef float float4 __attribute__((vector_size(16)));
typedef float float8 __attribute__((vector_size(32)));
typedef uint32_t word4 __attribute__((vector_size(16), aligned(1)));
typedef uint32_t word8 __attribute__((vector_size(32), aligned(1)));
typedef int32_t int4 __attribute__((vector_size(16)));

// A sum of squares does not care in which order a row's values come, so two 16-bit values share a lane: first all low halves,
// then all high ones. `square` turns a vector of words into the sum of the two squares.
#define DEFINE_SQUARES(name, lanes, word, square, attributes)                                                                    \
	attributes static double name(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,        \
	                              const float *c)                                                                            \
	{                                                                                                                        \
		enum { WIDTH = sizeof(word) };                                                                                   \
		double total = 0;                                                                                                \
		for (uint32_t first = 0; first < n; first += FLUSH) {                                                            \
			uint32_t last = n - first < FLUSH ? n : first + FLUSH;                                                   \
			lanes even = {0}, odd = {0};                                                                             \
			for (uint32_t i = first; i < last; i++) {                                                                \
				const uint8_t *v = rows + (size_t)(index ? index[i] : i) * f->stride + f->v_offset;              \
				lanes row_even = {0}, row_odd = {0};                                                             \
				uint32_t bytes = 2 * f->d_v, at = 0;                                                             \
				for (; at + 2 * WIDTH <= bytes; at += 2 * WIDTH) {                                               \
					square(lanes, row_even, *(const word *)(const void *)(v + at));                          \
					square(lanes, row_odd, *(const word *)(const void *)(v + at + WIDTH));                   \
				}                                                                                                \
				if (at < bytes)                                                                                  \
					square(lanes, row_even, *(const word *)(const void *)(v + at));                          \
				even += row_even * c[i];                                                                         \
				odd += row_odd * c[i];                                                                           \
			}                                                                                                        \
			even += odd;                                                                                             \
			for (uint32_t l = 0; l < WIDTH / 4; l++)                                                                 \
				total += (double)even[l];                                                                        \
		}                                                                                                                \
		return total;                                                                                                    \
	}

// A bf16 is the upper half of a float.
#define SQUARE_BF16(lanes, sum, words)                                                                                           \
	do {                                                                                                                     \
		lanes low = (lanes)((words) << 16), high = (lanes)((words)&0xffff0000u);                                         \
		sum += low * low;                                                                                                \
		sum += high * high;                                                                                              \
	} while (0)

// A half's magnitude bits under a float's exponent are its value times 2^-112, subnormals included.
#define SQUARE_F16(lanes, sum, words)                                                                                            \
	do {                                                                                                                     \
		lanes low = (lanes)(((words)&0x7fff) << 13) * 0x1p112f;                                                          \
		lanes high = (lanes)((words) >> 3 & (0x7fffu << 13)) * 0x1p112f;                                                 \
		sum += low * low;                                                                                                \
		sum += high * high;                                                                                              \
	} while (0)

// Four int8 values a lane, sixteen a vector; both twins use the short vectors, because a block may hold only sixteen values.
#define DEFINE_SQUARES_I8(name, attributes)                                                                                      \
	attributes static double name(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,        \
	                              const float *c)                                                                            \
	{                                                                                                                        \
		double total = 0;                                                                                                \
		for (uint32_t first = 0; first < n; first += FLUSH) {                                                            \
			uint32_t last = n - first < FLUSH ? n : first + FLUSH;                                                   \
			float4 sum = {0};                                                                                        \
			for (uint32_t i = first; i < last; i++) {                                                                \
				const uint8_t *v = rows + (size_t)(index ? index[i] : i) * f->stride + f->v_offset;              \
				for (uint32_t j = 0; j < f->d_v; j += SCALE_BLOCK) {                                             \
					uint16_t half;                                                                           \
					memcpy(&half, v + f->d_v + j / SCALE_BLOCK * sizeof(half), sizeof(half));                \
					float scale = f16_to_f32(half);                                                          \
					float4 block = {0};                                                                      \
					for (uint32_t l = j; l < f->d_v && l < j + SCALE_BLOCK; l += sizeof(word4)) {            \
						int4 w = (int4) * (const word4 *)(const void *)(v + l);                          \
						float4 x0 = __builtin_convertvector(w << 24 >> 24, float4);                      \
						float4 x1 = __builtin_convertvector(w << 16 >> 24, float4);                      \
						float4 x2 = __builtin_convertvector(w << 8 >> 24, float4);                       \
						float4 x3 = __builtin_convertvector(w >> 24, float4);                            \
						block += x0 * x0 + x1 * x1 + (x2 * x2 + x3 * x3);                                \
					}                                                                                        \
					sum += block * (c[i] * scale * scale);                                                   \
				}                                                                                                \
			}                                                                                                        \
			for (uint32_t l = 0; l < 4; l++)                                                                         \
				total += (double)sum[l];                                                                         \
		}                                                                                                                \
		return total;                                                                                                    \
	}

typedef double squares(const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n, const float *c);

DEFINE_SQUARES(bf16_base, float4, word4, SQUARE_BF16, )
DEFINE_SQUARES(f16_base, float4, word4, SQUARE_F16, )
DEFINE_SQUARES_I8(i8_base, )
static squares *const BASE[ROW_TYPES] = {bf16_base, f16_base, i8_base};

#ifdef __x86_64__
#define AVX2 __attribute__((target("avx2")))
DEFINE_SQUARES(bf16_avx2, float8, word8, SQUARE_BF16, AVX2)
DEFINE_SQUARES(f16_avx2, float8, word8, SQUARE_F16, AVX2)
DEFINE_SQUARES_I8(i8_avx2, AVX2)
static squares *const WITH_AVX2[ROW_TYPES] = {bf16_avx2, f16_avx2, i8_avx2};
#else
#define WITH_AVX2 BASE
#endif

double value_squares(const struct kernels *k, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                     const float *c)
{
	bool avx2 = strncmp(k->isa, "avx", 3) == 0; // every ISA above the baseline includes it
	return (avx2 ? WITH_AVX2 : BASE)[f->type](f, rows, index, n, c);
}
