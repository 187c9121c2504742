// APPEND: rows in.
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/probe.h"
#include "daemon/engine/job.h"
#include "daemon/engine/recent.h"

enum {
	FRAME_LEAST_ROWS = 16, // fewer first rows of a segment say too little about the frame of its int8 keys
	FRAME_SKIP = 16,       // first tokens of a context: some of them are sinks, whose keys lie far from all others
};

// A unit is a piece (PIECE_ROWS rows, which begin where a piece of the pool begins) of one KV head, or of all of them. It reads its part of the
// payload once, makes rows of it in its own memory and looks at them; and only if they are good it sums them, stores them and signs their keys.
// So what a failed append has written are whole rows with their sums, which are nobody's. Int8 keys need the frames of the segments that begin
// here first: pre units, one of each KV head.

// Appends of so many rows have units of all heads: then the payload is read as it lies, which the hardware foresees.
enum { WHOLE_ROWS = 512 };

// K and V [rows][heads][d] of the payload's type: where the client may write, or a unit's copy.
struct payload {
	const uint8_t *k, *v;
	uint32_t heads;
};

static const uint8_t *k_of(const struct append *a, const struct payload *p, uint32_t row, uint32_t g)
{
	return p->k + ((size_t)row * p->heads + g) * a->layer->shape.d_k * mpig_dtype_bytes(a->dtype);
}

static const uint8_t *v_of(const struct append *a, const struct payload *p, uint32_t row, uint32_t g)
{
	return p->v + ((size_t)row * p->heads + g) * a->layer->shape.d_v * mpig_dtype_bytes(a->dtype);
}

static int not_finite(struct job *j)
{
	return job_fail(j, MPIG_ENAN, "K or V of layer %u holds NaN or infinity", j->request.entry.layer);
}

static bool widen(const struct job *j, const uint8_t *src, uint32_t n, float *dst)
{
	return j->append.dtype == MPIG_BF16 ? j->engine->kernels->bf16_widen(src, n, dst)
	                                    : payload_to_f32(src, j->append.dtype, n, dst);
}

static bool fits_f16(const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fabsf(x[i]) > 65504)
			return false;
	return true;
}

// Of a segment whose first rows are k [n], token `position` on.
static void set_frame(const float *k, uint32_t n, uint64_t position, uint32_t d_k, const struct write_span *w)
{
	uint32_t skip = position < FRAME_SKIP ? (uint32_t)(FRAME_SKIP - position) : 0;
	if (n >= skip + FRAME_LEAST_ROWS)
		row_frame_fit(k + (size_t)skip * d_k, n - skip, d_k, w->frame);
	else if (w->frame_before)
		memcpy(w->frame, w->frame_before, ROW_FRAME(d_k) * sizeof(float));
	else if (n >= FRAME_LEAST_ROWS)
		row_frame_fit(k, n, d_k, w->frame);
	else
		row_frame_none(d_k, w->frame);
}

static int fit_frames(struct job *j, uint32_t group, uint32_t g, struct engine_scratch *scratch)
{
	(void)group;
	struct append *a = &j->append;
	uint32_t d_k = a->layer->shape.d_k;
	const struct payload all = {a->k, a->v, a->layer->shape.kv_heads};
	for (uint32_t done = 0; done < a->count;) {
		struct write_span w;
		context_write_span(j->engine->store, j->request.context, j->request.entry.layer, g, a->position + done, &w);
		if (w.frame_fresh) {
			uint32_t n = a->count - done;
			float *keys = scratch_get(scratch, (size_t)n * d_k * sizeof(float));
			if (!keys)
				return job_fail(j, MPIG_ENOMEM, "no memory for %u rows", n);
			for (uint32_t i = 0; i < n; i++)
				if (!widen(j, k_of(a, &all, done + i, g), d_k, keys + (size_t)i * d_k))
					return not_finite(j);
			set_frame(keys, n, a->position + done, d_k, &w);
		}
		done += w.n < a->count - done ? w.n : a->count - done;
	}
	return 0;
}

// The payload's elements are the rows': K and V need only be brought side by side.
static bool same_elements(const struct append *a)
{
	enum row_type type = a->layer->rows.type;
	return (type == ROW_BF16 && a->dtype == MPIG_BF16) || (type == ROW_F16 && a->dtype == MPIG_F16);
}

// From the rows of one head to those of the next: not a multiple of 4 KiB, or they would all want the same places of the nearest cache.
static size_t piece_pitch(const struct append *a)
{
	return (size_t)PIECE_ROWS * a->layer->rows.stride + 64;
}

// Rows [first, first + n) of the payload, heads [g, g + heads), to rows [heads][PIECE_ROWS].
static int take_rows(struct job *j, uint32_t first, uint32_t n, uint32_t g, uint32_t heads, uint8_t *rows)
{
	const struct append *a = &j->append;
	const struct row_format *f = &a->layer->rows;
	const struct payload all = {a->k, a->v, a->layer->shape.kv_heads};
	bool (*copy)(void *restrict, const void *restrict, size_t, uint16_t) = j->engine->kernels->copy_finite;
	uint16_t exponent = f->type == ROW_BF16 ? 0x7f80 : 0x7c00;
	uint32_t used = f->v_offset + 2 * f->d_v;
	bool good = true;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t h = 0; h < heads; h++)
			good &= copy(rows + h * piece_pitch(a) + i * f->stride, k_of(a, &all, first + i, g + h), f->d_k,
			             exponent);
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t h = 0; h < heads; h++) {
			uint8_t *row = rows + h * piece_pitch(a) + i * f->stride;
			good &= copy(row + f->v_offset, v_of(a, &all, first + i, g + h), f->d_v, exponent);
			if (f->stride > used)
				memset(row + used, 0, f->stride - used);
		}
	return good ? 0 : not_finite(j);
}

// The same rows as they lie there.
static void copy_payload(const struct append *a, uint32_t first, uint32_t n, uint32_t g, uint32_t heads, uint8_t *to,
                         struct payload *out)
{
	const struct mpig_layer_shape *s = &a->layer->shape;
	const struct payload all = {a->k, a->v, s->kv_heads};
	size_t element = mpig_dtype_bytes(a->dtype), k_row = heads * s->d_k * element, v_row = heads * s->d_v * element;
	uint8_t *k = to, *v = to + n * k_row;
	*out = (struct payload){k, v, heads};
	for (uint32_t i = 0; i < n; i++)
		memcpy(k + i * k_row, k_of(a, &all, first + i, g), k_row);
	for (uint32_t i = 0; i < n; i++)
		memcpy(v + i * v_row, v_of(a, &all, first + i, g), v_row);
}

// Of the unit's copy, head g of it; keys [n][d_k] as well.
static int encode_rows(struct job *j, const struct payload *p, uint32_t n, uint32_t g, const struct write_span *w, float *keys,
                       uint8_t *rows)
{
	struct append *a = &j->append;
	const struct layer *layer = a->layer;
	const struct mpig_layer_shape *s = &layer->shape;
	float value[MPIG_MAX_HEAD_DIM];
	for (uint32_t i = 0; i < n; i++) {
		float *key = keys + (size_t)i * s->d_k;
		if (!widen(j, k_of(a, p, i, g), s->d_k, key) || !widen(j, v_of(a, p, i, g), s->d_v, value))
			return not_finite(j);
		if (layer->rows.type == ROW_F16 && (!fits_f16(key, s->d_k) || !fits_f16(value, s->d_v)))
			return job_fail(j, MPIG_ERANGE, "K or V of layer %u is above fp16's 65504: use bf16 rows",
			                j->request.entry.layer);
		j->engine->kernels->row_encode(&layer->rows, key, value, w->frame, rows + (size_t)i * layer->rows.stride);
	}
	return 0;
}

// Stores n rows of a piece, and what its sum is now: whoever ends a piece that others began reads the whole of it, while it is in the caches.
static void store_rows(const struct job *j, const uint8_t *rows, uint32_t n, const struct write_span *w)
{
	const struct kernels *kernels = j->engine->kernels;
	size_t stride = j->append.layer->rows.stride;
	uint32_t before = w->block_row % PIECE_ROWS;
	uint64_t sum = 0;
	if (w->piece && n == PIECE_ROWS)
		sum = piece_sum(kernels->checksum, rows, n * stride);
	if (j->append.count >= PIECE_ROWS)
		kernels->stream(w->rows, rows, n * stride);
	else
		memcpy(w->rows, rows, n * stride);
	if (w->piece && n < PIECE_ROWS && before + n == PIECE_ROWS)
		sum = piece_sum(kernels->checksum, w->rows - before * stride, PIECE_ROWS * stride);
	if (w->piece)
		*w->piece = sum;
}

// rows: where they are bf16, from which keys are taken as they are; else keys [n][d_k].
static void sign_rows(const struct job *j, const uint8_t *rows, const float *keys, uint32_t n, const struct write_span *w)
{
	const struct append *a = &j->append;
	struct sig_params params = {.d_k = a->layer->shape.d_k,
	                            .d_pad = a->layer->d_pad,
	                            .bits = w->params.bits,
	                            .mu = w->params.mu,
	                            .balance = w->params.balance,
	                            .signs = a->signs};
	if (a->layer->rows.type == ROW_BF16 && same_elements(a))
		sig_encode_bf16(j->engine->kernels, &params, rows, a->layer->rows.stride, n, w->codes, w->factors, w->block_row);
	else
		sig_encode_rows(j->engine->kernels, &params, keys, n, w->codes, w->factors, w->block_row);
}

static void read_keys(const struct kernels *k, const struct append *a, const uint8_t *rows, uint32_t n, float *keys)
{
	const struct row_format *f = &a->layer->rows;
	for (uint32_t i = 0; i < n; i++)
		k->row_decode_key(f, rows + (size_t)i * f->stride, NULL, keys + (size_t)i * f->d_k);
}

static uint32_t unit_heads(const struct append *a)
{
	return a->count < WHOLE_ROWS ? 1 : a->layer->shape.kv_heads;
}

static uint32_t unit_count(const struct append *a)
{
	return (a->skew + a->count + PIECE_ROWS - 1) / PIECE_ROWS * (a->layer->shape.kv_heads / unit_heads(a));
}

// What a unit works on: its rows [heads][PIECE_ROWS], keys [PIECE_ROWS][d_k] of one head, and its copy of the payload if it needs one.
struct unit_memory {
	uint8_t *rows, *copy;
	float *keys;
};

static bool unit_memory(const struct append *a, uint32_t heads, struct engine_scratch *scratch, struct unit_memory *out)
{
	const struct mpig_layer_shape *s = &a->layer->shape;
	size_t keys = PIECE_ROWS * s->d_k * sizeof(float), rows = heads * piece_pitch(a),
	       copy = same_elements(a) ? 0 : (size_t)PIECE_ROWS * heads * (s->d_k + s->d_v) * mpig_dtype_bytes(a->dtype);
	uint8_t *memory = scratch_get(scratch, keys + rows + copy);
	if (!memory)
		return false;
	*out = (struct unit_memory){.keys = (float *)(void *)memory, .rows = memory + keys, .copy = memory + keys + rows};
	return true;
}

static int append_unit(struct job *j, uint32_t group, uint32_t unit, struct engine_scratch *scratch)
{
	(void)group;
	struct append *a = &j->append;
	bool same = same_elements(a);
	uint32_t heads = unit_heads(a), parts = a->layer->shape.kv_heads / heads, skew = a->skew;
	uint32_t at = unit / parts * PIECE_ROWS, g = unit % parts * heads;
	uint32_t first = at > skew ? at - skew : 0, end = at + PIECE_ROWS - skew < a->count ? at + PIECE_ROWS - skew : a->count;
	uint32_t n = end - first;
	struct unit_memory m;
	struct payload own = {0};
	if (!unit_memory(a, heads, scratch, &m))
		return job_fail(j, MPIG_ENOMEM, "no memory for %u rows", n);
	int status = 0;
	if (same)
		status = take_rows(j, first, n, g, heads, m.rows);
	else
		copy_payload(a, first, n, g, heads, m.copy, &own);
	for (uint32_t h = 0; h < heads && !status; h++) {
		struct write_span w;
		uint8_t *rows = m.rows + h * piece_pitch(a);
		context_write_span(j->engine->store, j->request.context, j->request.entry.layer, g + h, a->position + first, &w);
		assert(w.n >= n); // pieces do not cross blocks
		if (!same && (status = encode_rows(j, &own, n, h, &w, m.keys, rows)))
			break;
		store_rows(j, rows, n, &w);
		if (w.codes && same && a->layer->rows.type != ROW_BF16)
			read_keys(j->engine->kernels, a, rows, n, m.keys);
		if (w.codes)
			sign_rows(j, rows, m.keys, n, &w);
	}
	j->engine->kernels->copies_done();
	return status;
}

static int append_finish(struct job *j, struct engine_scratch *scratch)
{
	(void)scratch;
	struct append *a = &j->append;
	if (atomic_load(&j->failed)) {
		context_append_failed(j->engine->store, j->request.context, j->request.entry.layer, a->position);
		return 0;
	}
	context_appended(j->request.context, j->request.entry.layer, a->position + a->count);
	PROBE4(append, context_id(j->request.context), j->request.entry.layer, a->position, a->count);
	return 0;
}

static const struct job_ops append_ops = {.pre = fit_frames, .main = append_unit, .finish = append_finish};

static void carve_arrays(struct job *j, struct carve *c, uint32_t query_count)
{
	struct append *a = &j->append;
	const struct mpig_layer_shape *s = &a->layer->shape;
	a->signs = carve(c, 3 * (uint64_t)a->layer->d_pad, sizeof(float));
	a->queries = carve(c, (uint64_t)query_count * s->query_heads * s->d_k, sizeof(float));
}

static int take_payload(struct job *j, const struct mpig_payload_layout *layout, uint32_t query_count)
{
	struct append *a = &j->append;
	const struct mpig_layer_shape *s = &a->layer->shape;
	struct carve c = {0};
	carve_arrays(j, &c, query_count);
	j->memory = c.overflow ? NULL : memory_get(&j->engine->memory, c.used);
	if (!j->memory)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u queries", query_count);
	c = (struct carve){.base = j->memory};
	carve_arrays(j, &c, query_count);
	a->k = j->request.payload_in + layout->k;
	a->v = j->request.payload_in + layout->v;
	if (query_count && !payload_to_f32(j->request.payload_in + layout->queries, a->dtype,
	                                   (size_t)query_count * s->query_heads * s->d_k, a->queries))
		return job_fail(j, MPIG_ENAN, "the queries of layer %u hold NaN or infinity", j->request.entry.layer);
	return 0;
}

int append_plan(struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	const struct mpig_slot_header *h = &j->request.slot;
	struct append *a = &j->append;
	int status = rows_check(j, &a->layer);
	if (status)
		return status;
	if (e->dtype != MPIG_F32 && e->dtype != MPIG_BF16 && e->dtype != MPIG_F16)
		return job_fail(j, MPIG_EINVAL, "dtype %u of K and V is not fp32, bf16 or fp16", e->dtype);
	if (h->present & ~(uint32_t)MPIG_HAS_QUERIES)
		return job_fail(j, MPIG_EPROTO, "present 0x%x has bits that APPEND does not know", h->present);
	uint32_t query_count = h->present & MPIG_HAS_QUERIES ? h->query_count : 0;
	if (query_count > MPIG_MAX_QUERY_TOKENS)
		return job_fail(j, MPIG_EINVAL, "query_count %u is above %u", query_count, MPIG_MAX_QUERY_TOKENS);
	struct mpig_payload_layout layout = mpig_append_layout(&a->layer->shape, e->count, e->dtype, query_count);
	if (!j->request.payload_in || layout.bytes > j->request.slot_bytes)
		return job_fail(j, MPIG_EINVAL, "the payload needs %llu bytes, the slot has %llu",
		                (unsigned long long)layout.bytes, (unsigned long long)j->request.slot_bytes);
	a->position = e->begin;
	a->count = e->count;
	a->dtype = e->dtype;
	if ((status = take_payload(j, &layout, query_count)))
		return status;
	struct round *r = round_new(j, 1);
	if (!r)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u KV heads", a->layer->shape.kv_heads);
	r->group[0].pre_n = a->layer->rows.type == ROW_I8 ? a->layer->shape.kv_heads : 0;
	char why[MPIG_TEXT_BYTES] = "";
	status = context_reserve(j->engine->store, j->request.context, e->layer, a->position, a->count, why);
	if (status) {
		round_free(j, r);
		return job_fail(j, status, "%s", why);
	}
	struct write_span w;
	context_write_span(j->engine->store, j->request.context, e->layer, 0, a->position, &w);
	a->skew = w.block_row % PIECE_ROWS;
	r->group[0].main_n = unit_count(a);
	sig_signs(context_seed(j->request.context), 0, 0, a->layer->d_pad, a->signs);
	if (query_count && (status = recent_note(j->request.context, a->layer, a->queries, query_count))) {
		context_append_failed(j->engine->store, j->request.context, e->layer, UINT64_MAX);
		round_free(j, r);
		return job_fail(j, status, "no memory for the queries of layer %u", e->layer);
	}
	j->ops = &append_ops;
	round_publish(j, r);
	return 0;
}
