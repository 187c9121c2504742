// Number formats against their definitions, over every pattern; rows of every type; the CPU mask's names.
#include <check.h>
#include <float.h>
#include <stdbool.h>
#include <xxhash.h>

#include "tests/kernels/kernel_harness.h"
#include "tests/lib/suite.h"

static double f16_value(uint16_t h)
{
	int exponent = h >> 10 & 31, mantissa = h & 0x3ff;
	double x = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
	return h & 0x8000 ? -x : x;
}

START_TEST(f16_round_trip)
{
	for (uint32_t h = 0; h < 0x10000; h++) {
		float f = f16_to_f32((uint16_t)h);
		ck_assert_msg(f32_to_f16(f) == h, "fp16 %04x came back as %04x", h, f32_to_f16(f));
		if ((h & 0x7fff) > 0x7c00)
			ck_assert_msg(isnan(f), "fp16 %04x is %g", h, (double)f);
		else if ((h & 0x7fff) == 0x7c00)
			ck_assert_msg(f == (h & 0x8000 ? -INFINITY : INFINITY), "fp16 %04x is %g", h, (double)f);
		else
			ck_assert_msg((double)f == f16_value((uint16_t)h) && !signbit(f) == !(h & 0x8000), "fp16 %04x is %g", h,
			              (double)f);
	}
}
END_TEST

// Between any two neighbours: the middle goes to the even one, its neighbours in fp32 to the nearer one.
START_TEST(f16_rounding)
{
	for (uint32_t h = 0; h < 0x7bff; h++) {
		float middle = (float)((f16_value((uint16_t)h) + f16_value((uint16_t)(h + 1))) / 2);
		uint16_t even = (uint16_t)(h + (h & 1));
		ck_assert_msg(f32_to_f16(middle) == even, "tie above %04x: %04x", h, f32_to_f16(middle));
		ck_assert_msg(f32_to_f16(-middle) == (even | 0x8000), "tie below -%04x: %04x", h, f32_to_f16(-middle));
		ck_assert_msg(f32_to_f16(nextafterf(middle, 0)) == h, "just below the tie above %04x", h);
		ck_assert_msg(f32_to_f16(nextafterf(middle, INFINITY)) == h + 1, "just above the tie above %04x", h);
	}
	ck_assert_uint_eq(f32_to_f16(65519.996f), 0x7bff);
	ck_assert_uint_eq(f32_to_f16(65520.f), 0x7c00);
	ck_assert_uint_eq(f32_to_f16(-65536.f), 0xfc00);
	ck_assert_uint_eq(f32_to_f16(FLT_MAX), 0x7c00);
	ck_assert_uint_eq(f32_to_f16(-INFINITY), 0xfc00);
	ck_assert_uint_eq(f32_to_f16(0x1p-149f), 0);
	ck_assert_uint_eq(f32_to_f16(-0.f), 0x8000);
}
END_TEST

START_TEST(bf16_round_trip)
{
	for (uint32_t b = 0; b < 0x10000; b++) {
		float f = bf16_to_f32((uint16_t)b);
		ck_assert_msg(f32_to_bf16(f) == b, "bf16 %04x came back as %04x", b, f32_to_bf16(f));
		int exponent = (int)(b >> 7 & 255), mantissa = (int)(b & 127);
		if (exponent == 255) {
			ck_assert_msg(mantissa ? isnan(f) : isinf(f), "bf16 %04x is %g", b, (double)f);
			continue;
		}
		double want = exponent ? ldexp(128 + mantissa, exponent - 134) : ldexp(mantissa, -133);
		ck_assert_msg((double)f == (b & 0x8000 ? -want : want), "bf16 %04x is %g", b, (double)f);
	}
}
END_TEST

START_TEST(bf16_rounding)
{
	for (uint32_t b = 0; b < 0x7f7f; b++) {
		float middle = (float)(((double)bf16_to_f32((uint16_t)b) + (double)bf16_to_f32((uint16_t)(b + 1))) / 2);
		uint16_t even = (uint16_t)(b + (b & 1));
		ck_assert_msg(f32_to_bf16(middle) == even, "tie above %04x: %04x", b, f32_to_bf16(middle));
		ck_assert_msg(f32_to_bf16(-middle) == (even | 0x8000), "tie below -%04x", b);
		ck_assert_msg(f32_to_bf16(nextafterf(middle, 0)) == b, "just below the tie above %04x", b);
		ck_assert_msg(f32_to_bf16(nextafterf(middle, INFINITY)) == b + 1, "just above the tie above %04x", b);
	}
	ck_assert_uint_eq(f32_to_bf16(FLT_MAX), 0x7f80);
	ck_assert_uint_eq(f32_to_bf16(-FLT_MAX), 0xff80);
}
END_TEST

// NaNs whose payload lies in the bits that are cut off must not become infinities.
START_TEST(nan_stays_nan)
{
	for (uint32_t bit = 0; bit < 23; bit++)
		for (uint32_t sign = 0; sign < 2; sign++) {
			uint32_t u = sign << 31 | 0x7f800000u | 1u << bit;
			float f;
			memcpy(&f, &u, sizeof f);
			uint16_t h = f32_to_f16(f), b = f32_to_bf16(f);
			ck_assert_msg((h & 0x7fff) > 0x7c00 && h >> 15 == sign, "NaN %08x became fp16 %04x", u, h);
			ck_assert_msg((b & 0x7fff) > 0x7f80 && b >> 15 == sign, "NaN %08x became bf16 %04x", u, b);
		}
}
END_TEST

// ---- rows ------------------------------------------------------------------------------------------------------------

static const uint32_t dims[] = {16, 48, 64, 80, 96, 128, 256};

// Every 16-bit pattern at each place of an unaligned run, among finite neighbours: the value is that of the one-number function, and
// the run is refused exactly if the pattern is not finite.
START_TEST(runs_of_halves)
{
	enum { N = 37 };
	uint8_t bytes[2 * N + 1];
	float out[N];
	for (uint32_t pattern = 0; pattern <= 0xffff; pattern++) {
		uint16_t half[N];
		uint32_t at = pattern % N;
		for (uint32_t i = 0; i < N; i++)
			half[i] = (uint16_t)(0x3c00 + i);
		half[at] = (uint16_t)pattern;
		memcpy(bytes + 1, half, sizeof half);
		for (int bf16 = 0; bf16 < 2; bf16++) {
			float (*one)(uint16_t) = bf16 ? bf16_to_f32 : f16_to_f32;
			bool finite = (bf16 ? bf16_widen_finite : f16_widen_finite)(bytes + 1, N, out);
			ck_assert_int_eq(finite, isfinite(one(half[at])) != 0);
			for (uint32_t i = 0; i < N; i++) {
				float wanted = one(half[i]);
				ck_assert_int_eq(memcmp(&out[i], &wanted, sizeof wanted), 0);
			}
		}
	}
}
END_TEST

START_TEST(runs_of_floats)
{
	const float special[] = {0, -0.f, FLT_MIN / 2, FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN, -NAN};
	float in[19], out[19];
	for (size_t i = 0; i < 19 * sizeof(special) / sizeof(special[0]); i++) {
		for (int j = 0; j < 19; j++)
			in[j] = (float)j - 9;
		in[i % 19] = special[i / 19];
		ck_assert_int_eq(f32_copy_finite(in, 19, out), isfinite(special[i / 19]) != 0);
		ck_assert_int_eq(memcmp(in, out, sizeof in), 0);
	}
}
END_TEST

START_TEST(row_layout)
{
	struct row_format f;
	for (uint32_t i = 0; i < 7; i++)
		for (uint32_t j = 0; j < 7; j++) {
			uint32_t k = dims[i], v = dims[j];
			for (uint32_t type = ROW_BF16; type <= ROW_F16; type++) {
				ck_assert_int_eq(row_format_init(&f, (enum row_type)type, k, v), 0);
				ck_assert_uint_eq(f.v_offset, 2 * k);
				ck_assert_uint_eq(f.stride % 64, 0);
				ck_assert_uint_ge(f.stride, 2 * (k + v));
				ck_assert_uint_lt(f.stride, 2 * (k + v) + 64);
			}
			uint32_t used = k + v + 2 * ((k + 31) / 32 + (v + 31) / 32);
			ck_assert_int_eq(row_format_init(&f, ROW_I8, k, v), 0);
			ck_assert_uint_eq(f.v_offset, k + 2 * ((k + 31) / 32));
			ck_assert_uint_eq(f.stride, (used + 31) / 32 * 32);
		}
	ck_assert_int_eq(row_format_init(&f, ROW_I8, 128, 128), 0);
	ck_assert_uint_eq(f.stride, 288);
	ck_assert_int_eq(row_format_init(&f, ROW_BF16, 0, 64), -1);
	ck_assert_int_eq(row_format_init(&f, ROW_BF16, 72, 64), -1);
	ck_assert_int_eq(row_format_init(&f, ROW_BF16, 64, 272), -1);
	ck_assert_int_eq(row_format_init(&f, ROW_TYPES, 64, 64), -1);
}
END_TEST

// Half the distance to the next number of the format, at the size of x.
static double half_step(enum row_type type, double x)
{
	int digits = type == ROW_F16 ? 11 : 8, lowest = type == ROW_F16 ? -24 : -133, exponent;
	frexp(x, &exponent);
	exponent -= digits;
	return ldexp(.5, exponent < lowest ? lowest : exponent);
}

// Half the scale that a block's largest number calls for, rounded up to fp16.
// Of what is stored: x in its frame.
static double i8_half_step(const double *x, uint32_t d, uint32_t j)
{
	double largest = 0;
	for (uint32_t i = j / 32 * 32; i < d && i < j / 32 * 32 + 32; i++)
		largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
	return .5 * (largest / 127 * (1 + 0x1p-10 + 0x1p-20) + 0x1p-24);
}

static void check_half(enum row_type type, const char *name, const float *x, const float *frame, const float *got, uint32_t d)
{
	double framed[256];
	for (uint32_t j = 0; j < d; j++)
		framed[j] = frame ? ((double)x[j] - (double)frame[j]) / (double)frame[d + j] : (double)x[j];
	for (uint32_t j = 0; j < d; j++) {
		double scale = frame ? (double)frame[d + j] : 1, centre = frame ? (double)frame[j] : 0;
		double rounding = 2 * (double)FLT_EPSILON * (fabs((double)x[j]) + fabs(centre));
		double bound =
			type == ROW_I8 ? scale * i8_half_step(framed, d, j) + rounding + 1e-30 : half_step(type, (double)x[j]);
		double error = fabs((double)got[j] - (double)x[j]);
		ck_assert_msg(error <= bound, "type %d d %u %s[%u]: %g became %g, error %g > %g", type, d, name, j, (double)x[j],
		              (double)got[j], error, bound);
	}
}

START_TEST(row_round_trip)
{
	uint64_t r = 7;
	for (uint32_t round = 0; round < 900; round++) {
		enum row_type type = (enum row_type)(round % ROW_TYPES);
		struct row_format f;
		struct guarded map;
		float k[256], v[256], frame[512], k2[256], v2[256];
		bool framed = type == ROW_I8 && rng_below(&r, 2);
		ck_assert_int_eq(row_format_init(&f, type, dims[rng_below(&r, 7)], dims[rng_below(&r, 7)]), 0);
		float size = rng_below(&r, 4) ? 1 : rng_below(&r, 2) ? 1e-5f : 100;
		for (uint32_t j = 0; j < 256; j++) {
			k[j] = size * rng_biased(&r) / 100;
			v[j] = size * rng_biased(&r) / 100;
		}
		for (uint32_t j = 0; j < f.d_k; j++) {
			frame[j] = rng_normal(&r);
			frame[f.d_k + j] = expf(2 * rng_normal(&r));
		}
		uint8_t *row = guard_alloc(&map, f.stride);
		row_encode(&f, k, v, framed ? frame : NULL, row);
		row_decode(&f, row, framed ? frame : NULL, k2, v2);
		check_half(type, "k", k, framed ? frame : NULL, k2, f.d_k);
		check_half(type, "v", v, NULL, v2, f.d_v);
		uint32_t used = f.v_offset + (type == ROW_I8 ? f.d_v + 2 * ((f.d_v + 31) / 32) : 2 * f.d_v);
		for (uint32_t at = used; at < f.stride; at++)
			ck_assert_msg(row[at] == 0, "padding byte %u is %u", at, row[at]);
		guard_free(&map);
	}
}
END_TEST

// q.k is (q s).stored + q.c; the fit is the mean and the root of the deviation; keys that are all alike have a frame as well.
START_TEST(row_frames)
{
	enum { N = 500, DIM = 80 };
	static float k[N * DIM];
	float frame[2 * DIM], q[DIM], framed[DIM];
	uint64_t r = 21;
	for (uint32_t i = 0; i < N; i++)
		for (uint32_t j = 0; j < DIM; j++)
			k[i * DIM + j] = (float)j - 40 + (j % 7 == 0 ? 20 : .5f) * rng_normal(&r);
	row_frame_fit(k, N, DIM, frame);
	for (uint32_t j = 0; j < DIM; j++) { // deviations of means and roots of deviations over 500 keys, by 6
		double deviation = j % 7 == 0 ? 20 : .5, mean = (20 * 12 + .5 * 68) / 80;
		ck_assert_double_le(fabs((double)frame[j] - (j - 40.)), 6 * deviation / sqrt(N));
		ck_assert_double_le(fabs((double)frame[DIM + j] / sqrt(deviation + .05 * mean) - 1), .12);
		q[j] = rng_normal(&r);
	}
	float product = row_frame_query(frame, q, DIM, framed);
	for (uint32_t i = 0; i < N; i++) {
		double true_product = 0, in_frame = (double)product, size = fabs(in_frame);
		for (uint32_t j = 0; j < DIM; j++) {
			double x = ((double)k[i * DIM + j] - (double)frame[j]) / (double)frame[DIM + j];
			true_product += (double)q[j] * (double)k[i * DIM + j];
			in_frame += (double)framed[j] * x;
			size += fabs((double)framed[j] * x) + fabs((double)q[j] * (double)frame[j]);
		}
		ck_assert_double_le(fabs(true_product - in_frame), DIM * (double)FLT_EPSILON * size);
	}
	for (uint32_t i = 0; i < DIM; i++)
		k[i] = 3;
	row_frame_fit(k, 1, DIM, frame);
	for (uint32_t j = 0; j < DIM; j++)
		ck_assert(frame[j] == 3 && frame[DIM + j] == 1);
	row_frame_none(DIM, frame);
	for (uint32_t j = 0; j < DIM; j++)
		ck_assert(frame[j] == 0 && frame[DIM + j] == 1);
}
END_TEST

START_TEST(row_i8_extremes)
{
	struct row_format f;
	float k[64] = {0}, v[64], k2[64], v2[64];
	uint8_t row[192];
	ck_assert_int_eq(row_format_init(&f, ROW_I8, 64, 64), 0);
	ck_assert_uint_le(f.stride, sizeof row);
	for (uint32_t j = 0; j < 64; j++)
		v[j] = j == 5 ? 1e9f : j < 32 ? 1e5f * (float)j : -1e-20f * (float)j;
	row_encode(&f, k, v, NULL, row);
	row_decode(&f, row, NULL, k2, v2);
	for (uint32_t j = 0; j < 64; j++) {
		ck_assert_msg(k2[j] == 0, "zero became %g", (double)k2[j]);
		ck_assert_msg(isfinite(v2[j]), "%g became %g", (double)v[j], (double)v2[j]);
	}
	ck_assert_msg(v2[5] == 127 * 65504.f, "1e9 became %g", (double)v2[5]); // the largest that fp16 scales can say
}
END_TEST

// ---- CPU mask --------------------------------------------------------------------------------------------------------

START_TEST(mask_names)
{
	static const struct {
		const char *text;
		int status;
		uint32_t mask;
	} cases[] = {
		{"c", 0, 0},
		{"avx2", 0, CPU_AVX2},
		{"avx512", 0, CPU_AVX2 | CPU_AVX512},
		{"avx512vnni", 0, CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI},
		{"avx512vnni+avx512bf16", 0, CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI | CPU_AVX512_BF16},
		{"c+avx2", 0, CPU_AVX2},
		{"all", 0, UINT32_MAX},
		{"0", 0, 0},
		{"0x3", 0, 3},
		{"4294967295", 0, UINT32_MAX},
		{"4294967296", -1, 0},
		{"", -1, 0},
		{"+", -1, 0},
		{"avx2+", -1, 0},
		{"avx", -1, 0},
		{"avx2 ", -1, 0},
		{"3x", -1, 0},
		{"-1", -1, 0},
	};
	for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		uint32_t mask = 12345;
		int status = cpu_mask_parse(cases[i].text, &mask);
		ck_assert_msg(status == cases[i].status, "\"%s\": status %d", cases[i].text, status);
		ck_assert_msg(mask == (status ? 12345 : cases[i].mask), "\"%s\": mask %#x", cases[i].text, mask);
	}
}
END_TEST

// Every rung fills every slot, and says its name.
START_TEST(tables_are_full)
{
	struct isa isas[MAX_ISAS];
	uint32_t n = isas_of_cpu(isas);
	ck_assert_str_eq(isas[0].name, "c");
	for (uint32_t i = 0; i < n; i++) {
		const struct kernels *k = &isas[i].k;
		ck_assert_str_eq(k->isa, isas[i].name);
		ck_assert(k->sig_estimate && k->sig_select && k->exp_sum && k->max && k->split_sums && k->rotate &&
		          k->copy_finite && k->stream && k->copies_done && k->add_columns && k->checksum && k->bf16_widen &&
		          k->row_encode && k->row_decode_key);
		for (uint32_t type = 0; type < ROW_TYPES; type++)
			ck_assert(k->scores[type] && k->values[type]);
		ck_assert_msg(i == 0 || strcmp(isas[i].name, isas[i - 1].name), "rung %u changed nothing", i);
	}
	struct kernels k;
	kernels_init(&k, CPU_AVX512_VNNI, NULL, 0); // VNNI without its base: not used
	ck_assert_str_eq(k.isa, "c");
}
END_TEST

// Every 16-bit pattern in every place of a vector, for both formats, of any alignment; what is beside is left alone.
START_TEST(copies_that_check)
{
	enum { N = 112, GUARD = 48 };
	static _Alignas(64) uint16_t to[N + 2 * GUARD], from[N + 1];
	static const uint16_t exponents[] = {0x7f80, 0x7c00};
	static const uint32_t features[] = {0, CPU_AVX2, CPU_AVX2 | CPU_AVX512, UINT32_MAX};
	for (size_t isa = 0; isa < sizeof(features) / sizeof(features[0]); isa++) {
		struct kernels k;
		kernels_init(&k, cpu_features() & features[isa], NULL, 0);
		for (uint32_t pattern = 0; pattern < 0x10000; pattern += pattern < 0x100 ? 1 : 0x10)
			for (int format = 0; format < 2; format++) {
				uint16_t x = (uint16_t)(pattern | (pattern >> 4 & 0xf)), exponent = exponents[format];
				size_t n = pattern % 7 * 16 + 16, at = pattern * 5 % n, skew = pattern % 2,
				       shift = pattern % 3 * 16 + pattern % 5;
				memset(to, 0xa5, sizeof(to));
				for (size_t i = 0; i < n; i++)
					from[skew + i] = (uint16_t)(i * 77 & 0x3fff);
				from[skew + at] = x;
				bool finite = (x & exponent) != exponent;
				ck_assert_msg(k.copy_finite(to + GUARD + shift, from + skew, n, exponent) == finite,
				              "%s: %04x at %zu of %zu", k.isa, x, at, n);
				ck_assert_mem_eq(to + GUARD + shift, from + skew, 2 * n);
				ck_assert_uint_eq(to[GUARD + shift - 1], 0xa5a5);
				ck_assert_uint_eq(to[GUARD + shift + n], 0xa5a5);
			}
	}
}
END_TEST

// Rows on their way to the pool: of any length and of every place that a row may begin at, and nothing beside.
START_TEST(streams)
{
	enum { MOST = 8192, GUARD = 64 };
	static _Alignas(64) uint8_t to[MOST + 2 * GUARD], from[MOST + 7];
	static const uint32_t features[] = {0, CPU_AVX2, CPU_AVX2 | CPU_AVX512, UINT32_MAX};
	for (size_t i = 0; i < sizeof(from); i++)
		from[i] = (uint8_t)(i * 131 >> 3);
	for (size_t isa = 0; isa < sizeof(features) / sizeof(features[0]); isa++) {
		struct kernels k;
		kernels_init(&k, cpu_features() & features[isa], NULL, 0);
		for (size_t bytes = 0, n = 0; bytes <= MOST; bytes += bytes < 512 ? 32 : 608, n++) {
			uint8_t *at = to + GUARD - n % 2 * 32;
			memset(to, 0xa5, sizeof(to));
			k.stream(at, from + n % 7, bytes);
			k.copies_done();
			ck_assert_mem_eq(at, from + n % 7, bytes);
			ck_assert_msg(at[-1] == 0xa5 && at[bytes] == 0xa5, "%s: beside %zu bytes", k.isa, bytes);
		}
	}
}
END_TEST

// On every ISA the sum that the library makes, of any length and alignment: all its ways, by length, end below 2,048 bytes.
START_TEST(checksums_are_alike)
{
	static uint8_t data[40000];
	static const uint32_t features[] = {0, CPU_AVX2, CPU_AVX2 | CPU_AVX512, UINT32_MAX};
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * i * 2654435761u >> 13);
	for (size_t isa = 0; isa < sizeof(features) / sizeof(features[0]); isa++) {
		struct kernels k;
		kernels_init(&k, cpu_features() & features[isa], NULL, 0);
		for (size_t bytes = 0, n = 0; bytes < sizeof(data) - 64; bytes += bytes < 2100 ? 1 : 613, n++)
			ck_assert_msg(k.checksum(data + n % 64, bytes) == XXH3_64bits(data + n % 64, bytes), "%s: %zu bytes",
			              k.isa, bytes);
	}
}
END_TEST

// On every ISA the sums that C makes, to the bit: of one row to many, and about a centre.
START_TEST(columns_are_added_alike)
{
	enum { ROWS = 37, MOST = 256 };
	static float x[ROWS * MOST], centre[MOST];
	static const uint32_t features[] = {CPU_AVX2, CPU_AVX2 | CPU_AVX512, UINT32_MAX};
	struct kernels plain;
	kernels_init_c(&plain);
	for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); i++)
		x[i] = (float)((int)((uint32_t)i * 2654435761u >> 8) - (1 << 23)) * (i % 11 ? 1e-3f : 1e4f);
	for (size_t j = 0; j < MOST; j++)
		centre[j] = (float)j - 100.5f;
	for (size_t isa = 0; isa < sizeof(features) / sizeof(features[0]); isa++) {
		struct kernels k;
		kernels_init(&k, cpu_features() & features[isa], NULL, 0);
		for (uint32_t d = 16; d <= MOST; d += 16)
			for (size_t n = 0; n <= ROWS; n += n < 3 ? 1 : 17)
				for (int about = 0; about < 2; about++) {
					double got[MOST + 1], want[MOST + 1];
					for (size_t j = 0; j <= MOST; j++)
						got[j] = want[j] = (double)j / 3;
					k.add_columns(x, n, d, about ? centre : NULL, got);
					plain.add_columns(x, n, d, about ? centre : NULL, want);
					ck_assert_mem_eq(got, want, sizeof(got));
				}
	}
}
END_TEST

// On every ISA what C makes, to the bit: rows of every type and dimension, with frames and without; values from zero through fp16's end of
// scales to fp32's.
START_TEST(rows_are_encoded_alike)
{
	static const uint32_t features[] = {CPU_AVX2, CPU_AVX2 | CPU_AVX512, UINT32_MAX};
	static const float sizes[] = {0, 1e-40f, 1e-9f, 1, 77, 6e4f, 8.3e6f, 9e6f, 3e38f};
	for (size_t isa = 0; isa < sizeof(features) / sizeof(features[0]); isa++) {
		struct kernels k;
		kernels_init(&k, cpu_features() & features[isa], NULL, 0);
		for (uint32_t d_k = 16; d_k <= 256; d_k += 16)
			for (int i = 0; i < 60; i++) {
				struct row_format f;
				uint32_t d_v = 272 - d_k, seed = 1000 * d_k + (uint32_t)i;
				float x[256], v[256], frame[512], wide[2][256];
				uint8_t got[1088], want[1088];
				uint16_t half[256];
				ck_assert_int_eq(row_format_init(&f, (enum row_type)(i % 3), d_k, d_v), 0);
				for (uint32_t n = 0; n < 256; n++) {
					seed = seed * 1664525u + 1013904223u;
					x[n] = ((float)(seed >> 8) / 0x1p23f - 1) * sizes[i / 3 % 9];
					v[n] = n % 5 ? x[n] : -x[n] / 3;
					frame[n] = (float)(seed >> 12 & 255) / 100 - 1;
					frame[256 + n] = (float)(1 + (seed >> 16 & 15)) / 7;
					half[n] = (uint16_t)(seed >> 16);
				}
				memmove(frame + d_k, frame + 256, d_k * sizeof(*frame));
				memset(got, 1, sizeof(got)), memset(want, 1, sizeof(want));
				k.row_encode(&f, x, v, i % 2 ? frame : NULL, got);
				row_encode(&f, x, v, i % 2 ? frame : NULL, want);
				ck_assert_mem_eq(got, want, sizeof(got));
				memset(wide, 0, sizeof(wide));
				k.row_decode_key(&f, want, i % 2 ? frame : NULL, wide[0]);
				row_decode_key(&f, want, i % 2 ? frame : NULL, wide[1]);
				ck_assert_mem_eq(wide[0], wide[1], sizeof(wide[0]));
				memset(wide, 0, sizeof(wide));
				ck_assert_int_eq(k.bf16_widen(half, d_k - (uint32_t)(i % 16), wide[0]),
				                 bf16_widen_finite(half, d_k - (uint32_t)(i % 16), wide[1]));
				ck_assert_mem_eq(wide[0], wide[1], sizeof(wide[0]));
			}
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("convert");
	TCase *tc = tcase_create("convert");
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, f16_round_trip);
	tcase_add_test(tc, f16_rounding);
	tcase_add_test(tc, bf16_round_trip);
	tcase_add_test(tc, bf16_rounding);
	tcase_add_test(tc, nan_stays_nan);
	tcase_add_test(tc, runs_of_halves);
	tcase_add_test(tc, runs_of_floats);
	tcase_add_test(tc, copies_that_check);
	tcase_add_test(tc, streams);
	tcase_add_test(tc, checksums_are_alike);
	tcase_add_test(tc, columns_are_added_alike);
	tcase_add_test(tc, rows_are_encoded_alike);
	tcase_add_test(tc, row_layout);
	tcase_add_test(tc, row_round_trip);
	tcase_add_test(tc, row_frames);
	tcase_add_test(tc, row_i8_extremes);
	tcase_add_test(tc, mask_names);
	tcase_add_test(tc, tables_are_full);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
