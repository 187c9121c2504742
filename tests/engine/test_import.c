// What comes from a file that anybody may have written is believed only where it can do no harm.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/engine.h"
#include "daemon/index/index.h"
#include "tests/lib/suite.h"

enum { ROWS = 40, D = 64 };

static void fill(float *x, uint32_t n, uint32_t seed)
{
	for (uint32_t i = 0; i < n; i++)
		x[i] = (float)((i + seed) * 2654435761u % 2001) / 1000 - 1;
}

// One number of one row is turned into NaN or infinity, wherever it lies.
START_TEST(rows_are_numbers)
{
	static const float bad[] = {NAN, INFINITY, -INFINITY};
	struct layer layer = {.shape = {4, 1, D, D}};
	ck_assert_int_eq(row_format_init(&layer.rows, (enum row_type)_i, D, D), 0);
	float k[D], v[D], frame[ROW_FRAME(D)];
	for (uint32_t j = 0; j < D; j++) {
		frame[j] = .5f;
		frame[D + j] = 2;
	}
	uint8_t *rows = calloc(ROWS, layer.rows.stride);
	for (uint32_t i = 0; i < ROWS; i++) {
		fill(k, D, i);
		fill(v, D, i + 7);
		row_encode(&layer.rows, k, v, frame, rows + (size_t)i * layer.rows.stride);
	}
	ck_assert(engine_rows_good(&layer, rows, ROWS, frame));
	for (uint32_t i = 0; i < ROWS; i += 13)
		for (uint32_t half = 0; half < 2; half++)
			for (uint32_t b = 0; b < 3 && _i != ROW_I8; b++) {
				uint8_t *at =
					rows + (size_t)i * layer.rows.stride + (half ? layer.rows.v_offset : 0) + 2 * (i + b);
				uint16_t was, now = _i == ROW_BF16 ? f32_to_bf16(bad[b]) : f32_to_f16(bad[b]);
				memcpy(&was, at, 2);
				memcpy(at, &now, 2);
				ck_assert(!engine_rows_good(&layer, rows, ROWS, frame));
				memcpy(at, &was, 2);
			}
	if (_i == ROW_I8) { // a scale is fp16; a frame may make finite bytes infinite
		uint16_t inf = 0x7c00, was;
		uint8_t *scale = rows + 5 * layer.rows.stride + layer.rows.v_offset + D;
		memcpy(&was, scale, 2);
		memcpy(scale, &inf, 2);
		ck_assert(!engine_rows_good(&layer, rows, ROWS, frame));
		memcpy(scale, &was, 2);
		frame[D + 3] = INFINITY;
		ck_assert(!engine_rows_good(&layer, rows, ROWS, frame));
		frame[D + 3] = 2;
	}
	ck_assert(engine_rows_good(&layer, rows, ROWS, frame));
	free(rows);
}
END_TEST

// Every 16- and 32-bit word of a small table set to what would lead outside.
START_TEST(tables_lead_nowhere)
{
	enum { K = 3, L = 4, N = 20 };
	struct layer layer = {.shape = {4, 1, D, D}, .wire = {.paper_k = K, .paper_l = L}};
	float keys[N * D], mu[D] = {0};
	uint16_t scratch[N * L];
	struct kernels kernels;
	kernels_init(&kernels, 0, NULL, 0);
	struct table_params p = {.d_k = D, .d_pad = D, .K = K, .L = L, .mu = mu};
	float *vectors = calloc(table_vector_count(&p), sizeof *vectors);
	table_vectors(1, &p, vectors);
	p.vectors = vectors;
	fill(keys, N * D, 3);
	uint64_t bytes = engine_table_bytes(&layer, N);
	uint8_t *table = aligned_alloc(64, bytes), *copy = aligned_alloc(64, bytes);
	memset(table, 0, bytes);
	table_build(&kernels, &p, keys, N, table, scratch);
	ck_assert(engine_table_good(&layer, table, N));
	uint32_t starts = L * ((1 << K) + 1), refused = 0;
	for (uint32_t i = 0; i < starts; i++) {
		uint32_t beyond = N + 1;
		memcpy(copy, table, bytes);
		memcpy(copy + 4 * i, &beyond, 4);
		ck_assert(!engine_table_good(&layer, copy, N));
	}
	uint64_t ids = (4ull * starts + 63) / 64 * 64;
	for (uint32_t i = 0; i < N * L; i++) {
		uint16_t beyond = N;
		memcpy(copy, table, bytes);
		memcpy(copy + ids + 2 * i, &beyond, 2);
		ck_assert(!engine_table_good(&layer, copy, N));
		refused++;
	}
	const float *norms = table_norms(table, K, L, N);
	static const float bad[] = {NAN, INFINITY, -1};
	for (uint32_t i = 0; i < 3; i++) {
		memcpy(copy, table, bytes);
		memcpy(copy + ((const uint8_t *)norms - table) + 4 * i, &bad[i], 4);
		ck_assert(!engine_table_good(&layer, copy, N));
	}
	ck_assert_uint_eq(refused, N * L);
	free(vectors);
	free(table);
	free(copy);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("import");
	TCase *t = tcase_create("import");
	tcase_add_loop_test(t, rows_are_numbers, ROW_BF16, ROW_TYPES);
	tcase_add_test(t, tables_lead_nowhere);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
