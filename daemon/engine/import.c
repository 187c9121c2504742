// What the engine must be able to rely on in a context that it did not build: see engine.h.
#include "daemon/engine/engine.h"
#include "daemon/index/index.h"
#include "daemon/index/upper.h"

bool engine_upper_good(const struct layer *layer, uint32_t bits, const void *upper, uint32_t rows)
{
	return upper_good(layer->d_pad, bits, upper, rows);
}

bool engine_table_good(const struct layer *layer, const void *table, uint32_t rows)
{
	return table_good(table, layer->wire.paper_k, layer->wire.paper_l, rows);
}

// Codes are any bytes; their factors are fp16 like these.
static bool halves_finite(bool (*widen)(const void *src, size_t n, float *dst), const uint8_t *src, size_t n)
{
	enum { CHUNK = 4096 };
	float dst[CHUNK];
	bool good = true;
	for (size_t at = 0; at < n && good; at += CHUNK)
		good = widen(src + 2 * at, n - at < CHUNK ? n - at : CHUNK, dst);
	return good;
}

bool engine_rows_good(const struct layer *layer, const uint8_t *rows, uint32_t n, const float *frame)
{
	const struct row_format *f = &layer->rows;
	if (f->type == ROW_BF16 || f->type == ROW_F16)
		return halves_finite(f->type == ROW_F16 ? f16_widen_finite : bf16_widen_finite, rows, (size_t)n * f->stride / 2);
	float k[MPIG_MAX_HEAD_DIM], v[MPIG_MAX_HEAD_DIM], copy[MPIG_MAX_HEAD_DIM];
	bool good = true;
	for (uint32_t i = 0; i < n && good; i++) {
		row_decode(f, rows + (size_t)i * f->stride, frame, k, v);
		good = f32_copy_finite(k, f->d_k, copy) && f32_copy_finite(v, f->d_v, copy);
	}
	return good;
}
