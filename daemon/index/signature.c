#include <float.h>
#include <math.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"

// The product of balanced key and query is what is scanned, so a dimension is worth bits in proportion to std_k * rms_q: the
// balance makes both spreads alike, and the two constants keep a dimension that one side hardly uses from being blown up.
static const double QUERY_FLOOR = .3, KEY_FLOOR = .05;

// Root of the mean square per dimension about `centre` (NULL: about 0).
static void spread(const struct kernels *k, const float *x, size_t n, const float *centre, uint32_t d, double *out)
{
	static const float zero[SIG_MAX_DIM];
	for (uint32_t j = 0; j < d; j++)
		out[j] = 0;
	k->add_columns(x, n, d, centre ? centre : zero, out);
	for (uint32_t j = 0; j < d; j++)
		out[j] = sqrt(out[j] / (double)n);
}

static double mean(const double *x, uint32_t n)
{
	double sum = 0;
	for (uint32_t j = 0; j < n; j++)
		sum += x[j];
	return sum / n;
}

void sig_fit(const struct kernels *k, const float *keys, size_t n, const float *queries, size_t query_count, uint32_t d_k,
             float *mu, float *balance)
{
	double std[SIG_MAX_DIM], rms[SIG_MAX_DIM], sum[SIG_MAX_DIM] = {0};
	k->add_columns(keys, n, d_k, NULL, sum);
	for (uint32_t j = 0; j < d_k; j++)
		mu[j] = (float)(sum[j] / (double)n);
	spread(k, keys, n, mu, d_k, std);
	double mean_std = mean(std, d_k), mean_rms = 0;
	if (queries && query_count) {
		spread(k, queries, query_count, NULL, d_k, rms);
		mean_rms = mean(rms, d_k);
	}
	bool flat = !(mean_rms > 0 && isfinite(mean_rms)); // no queries, or nothing but zeros
	if (!(mean_std > 0 && isfinite(mean_std))) {       // every key is the mean: nothing to balance
		for (uint32_t j = 0; j < d_k; j++)
			balance[j] = 1;
		return;
	}
	double square[SIG_MAX_DIM], a[SIG_MAX_DIM];
	for (uint32_t j = 0; j < d_k; j++) {
		double size = flat ? 1 + QUERY_FLOOR : rms[j] / mean_rms + QUERY_FLOOR;
		a[j] = sqrt(size / (std[j] / mean_std + KEY_FLOOR));
		square[j] = a[j] * a[j] * std[j] * std[j];
	}
	double common = 1 / sqrt(mean(square, d_k));
	for (uint32_t j = 0; j < d_k; j++)
		balance[j] = (float)(a[j] * common);
}

void sig_signs(uint64_t seed, uint32_t layer, uint32_t kv_head, uint32_t d_pad, float *signs)
{
	struct rng rng = {rng_hash(rng_hash(seed, (uint64_t)layer << 32 | kv_head), UINT64_C(0x7369676e73))}; // "signs"
	for (uint32_t j = 0; j < 3 * d_pad; j += 64) {
		uint64_t bits = rng_next(&rng);
		for (uint32_t b = 0; b < 64; b++)
			signs[j + b] = bits >> b & 1 ? -1.f : 1.f;
	}
}

size_t sig_code_bytes(uint32_t d_pad, uint32_t bits, uint32_t rows)
{
	size_t groups = ((size_t)rows + SIG_GROUP - 1) / SIG_GROUP;
	return groups * SIG_GROUP * (d_pad * bits / 8);
}

typedef float lanes __attribute__((vector_size(16)));
typedef int32_t whole __attribute__((vector_size(16)));

static float total(lanes a, lanes b)
{
	a += b;
	return (a[0] + a[2]) + (a[1] + a[3]);
}

static lanes load(const float *x)
{
	lanes v;
	memcpy(&v, x, sizeof(v));
	return v;
}

static float norm2(const float *x, uint32_t n)
{
	lanes even = {0}, odd = {0};
	for (uint32_t j = 0; j < n; j += 8) {
		lanes a = load(x + j), b = load(x + j + 4);
		even += a * a;
		odd += b * b;
	}
	return total(even, odd);
}

// code[j] = the cell of x_j; returns <level, x>.
static float quantise(const float *x, uint32_t d_pad, struct sig_grid g, float sigma, int32_t *code)
{
	float per_step = 1 / (g.step * sigma);
	lanes half = (lanes){0} + (g.offset + .5f), top = (lanes){0} + g.top, sum = {0};
	for (uint32_t j = 0; j < d_pad; j += 4) {
		lanes v = load(x + j), cell = v * per_step + half;
		cell = (lanes)((whole)cell & (cell > 0));
		whole inside = cell < top;
		cell = (lanes)(((whole)cell & inside) | ((whole)top & ~inside));
		whole c = __builtin_convertvector(cell, whole);
		memcpy(code + j, &c, sizeof(c));
		sum += (__builtin_convertvector(c, lanes) - g.offset) * v;
	}
	return total(sum, (lanes){0});
}

// Byte j of a row holds the codes of the dimensions j, j + bytes, j + 2 * bytes ..., the first in the lowest bits.
static void pack(const int32_t *code, uint32_t bits, uint32_t bytes, uint8_t *packed)
{
	int32_t sum[SIG_MAX_DIM / 2];
	for (uint32_t j = 0; j < bytes; j += 4) {
		whole fields, next;
		memcpy(&fields, code + j, sizeof(fields));
		for (uint32_t field = 1; field < 8 / bits; field++) {
			memcpy(&next, code + field * bytes + j, sizeof(next));
			fields |= next << (int32_t)(bits * field);
		}
		memcpy(sum + j, &fields, sizeof(fields));
	}
	for (uint32_t j = 0; j < bytes; j++)
		packed[j] = (uint8_t)sum[j];
}

static void balance_key(const float *restrict key, const float *restrict mu, const float *restrict balance, uint32_t d_k,
                        uint32_t d_pad, float *restrict x)
{
	for (uint32_t j = 0; j < d_k; j++)
		x[j] = (key[j] - mu[j]) * balance[j];
	memset(x + d_k, 0, (d_pad - d_k) * sizeof(*x));
}

void sig_encode_rotated(uint32_t bits, const float *x, uint32_t d_pad, uint8_t *codes, uint16_t *factors, uint32_t row)
{
	uint32_t bytes = d_pad * bits / 8;
	int32_t code[SIG_MAX_DIM];
	uint8_t packed[SIG_MAX_DIM / 2] = {0};
	float square = norm2(x, d_pad), factor = 0;
	if (square >= FLT_MIN && square <= FLT_MAX) {
		float dot = quantise(x, d_pad, sig_grid_of(bits), sqrtf(square / (float)d_pad), code);
		factor = square / dot;
		pack(code, bits, bytes, packed);
	}
	factors[row] = f32_to_f16(factor < 65504.f ? factor : 65504.f);

	uint8_t *group = codes + (size_t)(row / SIG_GROUP) * SIG_GROUP * bytes + row % SIG_GROUP * 4;
	for (uint32_t w = 0; w < bytes / 4; w++)
		memcpy(group + (size_t)w * SIG_GROUP * 4, packed + (size_t)w * 4, 4);
}

void sig_encode(const struct kernels *k, const struct sig_params *p, const float *key, uint8_t *codes, uint16_t *factors,
                uint32_t row, float *scratch)
{
	balance_key(key, p->mu, p->balance, p->d_k, p->d_pad, scratch);
	k->rotate(scratch, p->d_pad, p->signs);
	sig_encode_rotated(p->bits, scratch, p->d_pad, codes, factors, row);
}

void sig_encode_rows(const struct kernels *k, const struct sig_params *p, const float *keys, uint32_t n, uint8_t *codes,
                     uint16_t *factors, uint32_t row)
{
	const struct sig_encoding e = {p->mu, p->balance, p->signs, p->d_k, p->d_pad, p->bits};
	const uint32_t bytes = p->d_pad * p->bits / 8;
	float rotated[SIG_MAX_DIM];
	for (uint32_t end = row + n; row < end;) {
		uint32_t step = k->sig_encode16 && row % SIG_GROUP == 0 && end - row >= SIG_GROUP ? SIG_GROUP : 1;
		if (step == SIG_GROUP)
			k->sig_encode16(keys, &e, codes + (size_t)row * bytes, factors + row);
		else
			sig_encode(k, p, keys, codes, factors, row, rotated);
		row += step;
		keys += (size_t)step * p->d_k;
	}
}

void sig_encode_bf16(const struct kernels *k, const struct sig_params *p, const void *keys, size_t stride, uint32_t n,
                     uint8_t *codes, uint16_t *factors, uint32_t row)
{
	const struct sig_encoding e = {p->mu, p->balance, p->signs, p->d_k, p->d_pad, p->bits};
	const uint32_t bytes = p->d_pad * p->bits / 8;
	const uint8_t *key = keys;
	float wide[SIG_MAX_DIM], rotated[SIG_MAX_DIM];
	for (uint32_t end = row + n, step; row < end; row += step, key += step * stride) {
		step = k->sig_encode16_bf16 && row % SIG_GROUP == 0 && end - row >= SIG_GROUP ? SIG_GROUP : 1;
		if (step == SIG_GROUP) {
			k->sig_encode16_bf16(key, stride, &e, codes + (size_t)row * bytes, factors + row);
		} else {
			k->bf16_widen(key, p->d_k, wide);
			sig_encode(k, p, wide, codes, factors, row, rotated);
		}
	}
}

static void balance_query(const float *restrict q, const float *restrict balance, uint32_t d_k, uint32_t d_pad, float *restrict x)
{
	for (uint32_t j = 0; j < d_k; j++)
		x[j] = q[j] / balance[j];
	memset(x + d_k, 0, (d_pad - d_k) * sizeof(*x));
}

float sig_query_mu(const float *restrict q, const float *restrict mu, uint32_t d_k)
{
	double dot[4] = {0};
	for (uint32_t j = 0; j < d_k; j += 4)
		for (uint32_t l = 0; l < 4; l++)
			dot[l] += (double)q[j + l] * (double)mu[j + l];
	return (float)((dot[0] + dot[2]) + (dot[1] + dot[3]));
}

// The largest |x_j|; infinity or NaN if one is. Magnitudes order as their bits do.
static float largest_of(const float *x, uint32_t n)
{
	int32_t bits[SIG_MAX_DIM], largest = 0;
	memcpy(bits, x, n * sizeof(*bits));
	for (uint32_t j = 0; j < n; j++) {
		int32_t size = bits[j] & INT32_MAX;
		largest = size > largest ? size : largest;
	}
	float value;
	memcpy(&value, &largest, sizeof(value));
	return value;
}

// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
#define ROUND 0x1.8p23f

static void round_to_bytes(const float *restrict x, uint32_t n, float per_unit, int8_t *restrict out)
{
	for (uint32_t j = 0; j < n; j++)
		out[j] = (int8_t)(int32_t)(x[j] * per_unit + ROUND - ROUND);
}

void sig_encode_query(const struct kernels *k, const struct sig_params *p, const float *q, int8_t *out, float *scale, float *q_mu,
                      float *scratch)
{
	*q_mu = sig_query_mu(q, p->mu, p->d_k);
	balance_query(q, p->balance, p->d_k, p->d_pad, scratch);
	k->rotate(scratch, p->d_pad, p->signs);
	float largest = largest_of(scratch, p->d_pad);
	if (!(largest >= 128 * FLT_MIN && largest <= FLT_MAX)) {
		memset(out, 0, p->d_pad);
		*scale = 0;
		return;
	}
	round_to_bytes(scratch, p->d_pad, 127 / largest, out);
	*scale = largest / 127;
}

// With u normal and l its level: E[l u] sqrt(1/rho^2 - 1), where g = sigma / E[l u] and the error is sqrt(1/rho^2 - 1) |q'| sigma.
float sig_noise(uint32_t bits)
{
	return bits == 1 ? .3014f : bits == 2 ? .3250f : .3187f;
}

struct sig_query sig_query_of(const struct sig_params *p, const int8_t *signature, float factor, float bias)
{
	float offset = p->bits == 1 ? .5f : p->bits == 2 ? 1.5f : 7.5f;
	int32_t sum = 0;
	for (uint32_t j = 0; j < p->d_pad; j++)
		sum += signature[j];
	return (struct sig_query){.q = signature, .factor = factor, .zero = offset * (float)sum, .bias = bias};
}
