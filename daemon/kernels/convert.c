// Number formats and rows. Integer arithmetic wherever a NaN may pass, so that payloads survive; the loops over a row are written
// without branches, for the vectoriser.
#include <math.h>
#include <string.h>

#include "daemon/kernels/kernels.h"

#define I8_BLOCK 32u
#define F16_MAX 65504.f

static inline float as_float(uint32_t u)
{
	float f;
	memcpy(&f, &u, sizeof f);
	return f;
}

static inline uint32_t as_bits(float f)
{
	uint32_t u;
	memcpy(&u, &f, sizeof u);
	return u;
}

// A subnormal is read as the normal number with the same mantissa and exponent 1, less that number's leading one.
static inline float f16_widen(uint16_t h)
{
	uint32_t a = (uint32_t)(h & 0x7fffu) << 13;
	uint32_t subnormal = as_bits(as_float(a + (113u << 23)) - as_float(113u << 23));
	uint32_t normal = a + (112u << 23) + (a >= 0x7c00u << 13 ? 112u << 23 : 0);
	return as_float((uint32_t)(h & 0x8000u) << 16 | (a < 0x400u << 13 ? subnormal : normal));
}

// Results below 2^-14 are rounded by an addition whose unit in the last place is 2^-24, the subnormal's.
static inline uint16_t f16_round(float f)
{
	uint32_t u = as_bits(f), a = u & 0x7fffffffu;
	uint32_t subnormal = as_bits(as_float(a < 113u << 23 ? a : 0) + .5f) - as_bits(.5f);
	uint32_t normal = (a - (112u << 23) + 0xfffu + (a >> 13 & 1)) >> 13;
	uint32_t nan = 0x7c00u | (a >> 13 & 0x3ffu) | (a >> 13 & 0x3ffu ? 0 : 0x200u);
	uint32_t h = a < 113u << 23 ? subnormal : a < 143u << 23 ? normal : 0x7c00u;
	h = a > 0x7f800000u ? nan : h;
	return (uint16_t)(h | (u >> 16 & 0x8000u));
}

static inline uint16_t bf16_round(float f)
{
	uint32_t u = as_bits(f);
	uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
	uint32_t nan = u >> 16 | (u >> 16 & 0x7fu ? 0 : 0x40u);
	return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

float f16_to_f32(uint16_t h)
{
	return f16_widen(h);
}

uint16_t f32_to_f16(float f)
{
	return f16_round(f);
}

float bf16_to_f32(uint16_t b)
{
	return as_float((uint32_t)b << 16);
}

uint16_t f32_to_bf16(float f)
{
	return bf16_round(f);
}

// The finiteness of a run of floats, by their exponents: no branch, no rounding, any order.
static bool all_finite(const float *x, size_t n)
{
	const uint32_t exponent = 0x7f800000u;
	uint32_t found = 0;
	for (size_t i = 0; i < n; i++)
		found |= (as_bits(x[i]) & exponent) == exponent ? UINT32_MAX
		                                                : 0; // two vector operations; a maximum takes five without SSE4
	return !found;
}

bool f32_copy_finite(const void *src, size_t n, float *dst)
{
	memcpy(dst, src, n * sizeof(float));
	return all_finite(dst, n);
}

bool f16_widen_finite(const void *src, size_t n, float *dst)
{
	for (size_t i = 0; i < n; i++) {
		uint16_t h;
		memcpy(&h, (const char *)src + 2 * i, sizeof h);
		dst[i] = f16_widen(h);
	}
	return all_finite(dst, n);
}

bool bf16_widen_finite(const void *src, size_t n, float *dst)
{
	for (size_t i = 0; i < n; i++) {
		uint16_t b;
		memcpy(&b, (const char *)src + 2 * i, sizeof b);
		dst[i] = as_float((uint32_t)b << 16);
	}
	return all_finite(dst, n);
}

bool half_copy_finite(void *restrict dst, const void *restrict src, size_t n, uint16_t exponent)
{
	uint16_t bad = 0;
	for (size_t i = 0; i < n; i++) {
		uint16_t x;
		memcpy(&x, (const char *)src + 2 * i, sizeof x);
		bad |= (x & exponent) == exponent;
		memcpy((char *)dst + 2 * i, &x, sizeof x);
	}
	return !bad;
}

// ---- rows ------------------------------------------------------------------------------------------------------------

static uint32_t half_bytes(enum row_type type, uint32_t d)
{
	return type == ROW_I8 ? d + 2 * ((d + I8_BLOCK - 1) / I8_BLOCK) : 2 * d;
}

int row_format_init(struct row_format *f, enum row_type type, uint32_t d_k, uint32_t d_v)
{
	if ((unsigned)type >= ROW_TYPES || d_k < 16 || d_k > 256 || d_k % 16 || d_v < 16 || d_v > 256 || d_v % 16)
		return -1;
	uint32_t align = type == ROW_I8 ? 32 : 64;
	uint32_t bytes = half_bytes(type, d_k) + half_bytes(type, d_v);
	*f = (struct row_format){
		.type = type,
		.d_k = d_k,
		.d_v = d_v,
		.v_offset = half_bytes(type, d_k),
		.stride = (bytes + align - 1) / align * align,
	};
	return 0;
}

static void encode_bf16(const float *x, uint32_t d, uint8_t *dst)
{
	uint16_t out[256];
	for (uint32_t j = 0; j < d; j++)
		out[j] = bf16_round(x[j]);
	memcpy(dst, out, 2 * (size_t)d);
}

static void encode_f16(const float *x, uint32_t d, uint8_t *dst)
{
	uint16_t out[256];
	for (uint32_t j = 0; j < d; j++)
		out[j] = f16_round(x[j]);
	memcpy(dst, out, 2 * (size_t)d);
}

// Up to 32 values against scale = max |x| / 127, rounded up to fp16 (so that nothing is clamped) and at most fp16's largest
// number. |error| <= scale / 2 where max |x| < 8.3e6; all zeros if every x is 0.
static uint16_t encode_i8_block(const float *x, uint32_t n, int8_t *out)
{
	int32_t largest = 0;
	for (uint32_t j = 0; j < n; j++) {
		int32_t a = (int32_t)(as_bits(x[j]) & 0x7fffffffu);
		largest = a > largest ? a : largest;
	}
	float wanted = as_float((uint32_t)largest) * (1 / 127.f);
	uint16_t scale = f16_round(wanted < F16_MAX ? wanted : F16_MAX);
	if (f16_widen(scale) < wanted && scale < 0x7bffu)
		scale++;
	float step = f16_widen(scale), inverse = step > 0 ? 1 / step : 0;
	for (uint32_t j = 0; j < n; j++) {
		float t = x[j] * inverse;
		t = t > -127 ? t : -127;
		t = t < 127 ? t : 127;
		// Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
		out[j] = (int8_t)(as_bits(t + 12582912.f) - as_bits(12582912.f));
	}
	return scale;
}

static void encode_i8(const float *x, const float *frame, uint32_t d, uint8_t *dst)
{
	float block[I8_BLOCK];
	int8_t out[I8_BLOCK];
	for (uint32_t at = 0; at < d; at += I8_BLOCK) {
		uint32_t n = d - at < I8_BLOCK ? d - at : I8_BLOCK;
		for (uint32_t j = 0; j < n; j++)
			block[j] = frame ? (x[at + j] - frame[at + j]) / frame[d + at + j] : x[at + j];
		uint16_t scale = encode_i8_block(block, n, out);
		memcpy(dst + at, out, n);
		memcpy(dst + d + at / I8_BLOCK * 2, &scale, 2);
	}
}

void row_encode(const struct row_format *f, const float *k, const float *v, const float *frame, uint8_t *dst)
{
	uint32_t used = f->v_offset + half_bytes(f->type, f->d_v);
	switch (f->type) {
	case ROW_BF16:
		encode_bf16(k, f->d_k, dst);
		encode_bf16(v, f->d_v, dst + f->v_offset);
		break;
	case ROW_F16:
		encode_f16(k, f->d_k, dst);
		encode_f16(v, f->d_v, dst + f->v_offset);
		break;
	default:
		encode_i8(k, frame, f->d_k, dst);
		encode_i8(v, NULL, f->d_v, dst + f->v_offset);
	}
	memset(dst + used, 0, f->stride - used);
}

static void decode_half(enum row_type type, const uint8_t *src, uint32_t d, float *out)
{
	uint16_t half[256];
	if (type == ROW_I8) {
		memcpy(half, src + d, 2 * (size_t)((d + I8_BLOCK - 1) / I8_BLOCK));
		for (uint32_t at = 0; at < d; at += I8_BLOCK) {
			float step = f16_widen(half[at / I8_BLOCK]);
			for (uint32_t half_block = at; half_block < at + I8_BLOCK && half_block < d; half_block += I8_BLOCK / 2) {
				int8_t x[I8_BLOCK / 2]; // d is a multiple of 16
				memcpy(x, src + half_block, sizeof x);
				for (uint32_t j = 0; j < I8_BLOCK / 2; j++)
					out[half_block + j] = step * (float)x[j];
			}
		}
		return;
	}
	memcpy(half, src, 2 * (size_t)d);
	for (uint32_t j = 0; j < d; j++)
		out[j] = type == ROW_F16 ? f16_widen(half[j]) : as_float((uint32_t)half[j] << 16);
}

void row_decode_key(const struct row_format *f, const uint8_t *src, const float *frame, float *k)
{
	decode_half(f->type, src, f->d_k, k);
	if (frame && f->type == ROW_I8)
		for (uint32_t j = 0; j < f->d_k; j++)
			k[j] = k[j] * frame[f->d_k + j] + frame[j];
}

void row_decode(const struct row_format *f, const uint8_t *src, const float *frame, float *k, float *v)
{
	row_decode_key(f, src, frame, k);
	decode_half(f->type, src + f->v_offset, f->d_v, v);
}
