// APPEND, TRUNCATE and READ: rows in, back, and out.
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

static int check_range(struct job *j, const struct layer **layer)
{
	const struct mpig_sqe *e = &j->request.entry;
	*layer = context_layer(j->request.context, e->layer);
	if (!*layer)
		return job_fail(j, MPIG_EINVAL, "layer %u stores no rows, or the context has only %u layers", e->layer,
		                context_layer_count(j->request.context));
	if (!e->count || e->begin > MPIG_MAX_TOKENS || e->count > MPIG_MAX_TOKENS - e->begin)
		return job_fail(j, MPIG_ERANGE, "rows %llu + %u are not inside 0..%llu", (unsigned long long)e->begin, e->count,
		                (unsigned long long)MPIG_MAX_TOKENS);
	return 0;
}

// ---- APPEND ----------------------------------------------------------------------------------------------------------
// A unit copies what it needs of the payload, each byte once, and works on the copy: rows that a failed append has written are nobody's. Int8 keys
// need the frames of the segments that begin here first: pre units, one of each KV head.
enum {
	UNIT_ROWS = 16,   // of a main unit: one KV head's, or all heads' of an append so long that workers have enough of them
	WHOLE_ROWS = 512, // ... then the payload is read as it lies, which the hardware foresees
};

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
				if (!payload_to_f32(k_of(a, &all, done + i, g), a->dtype, d_k, keys + (size_t)i * d_k))
					return not_finite(j);
			set_frame(keys, n, a->position + done, d_k, &w);
		}
		done += w.n < a->count - done ? w.n : a->count - done;
	}
	return 0;
}

// Rows of the payload's own type: bytes. The key is wanted as fp32 only where it gets codes.
static bool copy_row(const struct job *j, const uint8_t *k, const uint8_t *v, uint8_t *dst, float *key)
{
	const struct append *a = &j->append;
	const struct kernels *kernels = j->engine->kernels;
	const struct row_format *f = &a->layer->rows;
	uint16_t exponent = f->type == ROW_BF16 ? 0x7f80 : 0x7c00;
	bool (*copy)(void *restrict, const void *restrict, size_t, uint16_t) =
		a->count >= UNIT_ROWS ? kernels->copy_finite : half_copy_finite;
	uint32_t used = f->v_offset + 2 * f->d_v;
	bool good = copy(dst, k, f->d_k, exponent);
	good &= copy(dst + f->v_offset, v, f->d_v, exponent);
	if (f->stride > used)
		memset(dst + used, 0, f->stride - used);
	if (key && f->type == ROW_BF16)
		kernels->bf16_widen(k, f->d_k, key);
	else if (key)
		payload_to_f32(k, a->dtype, f->d_k, key);
	return good;
}

static int write_row(struct job *j, const uint8_t *k, const uint8_t *v, const struct write_span *w, uint8_t *dst, float *key)
{
	struct append *a = &j->append;
	const struct layer *layer = a->layer;
	const struct mpig_layer_shape *s = &layer->shape;
	float own[MPIG_MAX_HEAD_DIM], value[MPIG_MAX_HEAD_DIM];
	if ((layer->rows.type == ROW_BF16 && a->dtype == MPIG_BF16) || (layer->rows.type == ROW_F16 && a->dtype == MPIG_F16))
		return copy_row(j, k, v, dst, key) ? 0 : not_finite(j);
	key = key ? key : own;
	if (!payload_to_f32(k, a->dtype, s->d_k, key) || !payload_to_f32(v, a->dtype, s->d_v, value))
		return not_finite(j);
	if (layer->rows.type == ROW_F16 && (!fits_f16(key, s->d_k) || !fits_f16(value, s->d_v)))
		return job_fail(j, MPIG_ERANGE, "K or V of layer %u is above fp16's 65504: use bf16 rows",
		                j->request.entry.layer);
	j->engine->kernels->row_encode(&layer->rows, key, value, w->frame, dst);
	return 0;
}

// Rows [first, first + n) of the unit's, of a KV head, which lie in a row from w on. Keys go by groups of the codes.
static int write_rows(struct job *j, const struct payload *p, uint32_t first, uint32_t n, uint32_t g, const struct write_span *w)
{
	struct append *a = &j->append;
	const struct layer *layer = a->layer;
	const struct mpig_layer_shape *s = &layer->shape;
	float keys[SIG_GROUP * MPIG_MAX_HEAD_DIM];
	struct sig_params params = {.d_k = s->d_k,
	                            .d_pad = layer->d_pad,
	                            .bits = w->params.bits,
	                            .mu = w->params.mu,
	                            .balance = w->params.balance,
	                            .signs = a->signs};
	for (uint32_t done = 0; done < n;) {
		uint32_t row = w->block_row + done, step = SIG_GROUP - row % SIG_GROUP;
		step = step < n - done ? step : n - done;
		for (uint32_t i = 0; i < step; i++) {
			uint32_t at = first + done + i;
			int status = write_row(j, k_of(a, p, at, g), v_of(a, p, at, g), w,
			                       w->rows + (size_t)(done + i) * layer->rows.stride,
			                       w->codes ? keys + (size_t)i * s->d_k : NULL);
			if (status)
				return status;
		}
		if (w->codes)
			sig_encode_rows(j->engine->kernels, &params, keys, step, w->codes, w->factors, row);
		done += step;
	}
	return 0;
}

// Rows [0, n) of the unit's, which are `first` rows behind the append's first; g: of the unit's heads, head: of the layer's.
static int append_head(struct job *j, const struct payload *p, uint32_t first, uint32_t n, uint32_t g, uint32_t head)
{
	struct append *a = &j->append;
	int status = 0;
	for (uint32_t done = 0, step; done < n && !status; done += step) {
		struct write_span w;
		context_write_span(j->engine->store, j->request.context, j->request.entry.layer, head, a->position + first + done,
		                   &w);
		step = w.n < n - done ? w.n : n - done;
		status = write_rows(j, p, done, step, g, &w);
	}
	return status;
}

// n rows of `heads` heads from head g on, in two runs of bytes.
static int copy_payload(struct job *j, uint32_t first, uint32_t n, uint32_t g, uint32_t heads, struct engine_scratch *scratch,
                        struct payload *out)
{
	const struct append *a = &j->append;
	const struct mpig_layer_shape *s = &a->layer->shape;
	const struct payload all = {a->k, a->v, s->kv_heads};
	size_t element = mpig_dtype_bytes(a->dtype), k_row = heads * s->d_k * element, v_row = heads * s->d_v * element;
	uint8_t *k = scratch_get(scratch, (size_t)n * (k_row + v_row)), *v = k + (size_t)n * k_row;
	if (!k)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u rows", n);
	*out = (struct payload){k, v, heads};
	if (heads == s->kv_heads) {
		memcpy(k, k_of(a, &all, first, 0), (size_t)n * k_row);
		memcpy(v, v_of(a, &all, first, 0), (size_t)n * v_row);
		return 0;
	}
	for (uint32_t i = 0; i < n; i++) {
		memcpy(k + i * k_row, k_of(a, &all, first + i, g), k_row);
		memcpy(v + i * v_row, v_of(a, &all, first + i, g), v_row);
	}
	return 0;
}

static uint32_t unit_heads(const struct append *a)
{
	return a->count < WHOLE_ROWS ? 1 : a->layer->shape.kv_heads;
}

// Units end at multiples of UNIT_ROWS tokens of the context, where as a rule groups of codes end, too.
static uint32_t unit_skew(const struct append *a)
{
	return (uint32_t)(a->position % UNIT_ROWS);
}

static uint32_t unit_count(const struct append *a)
{
	return (unit_skew(a) + a->count + UNIT_ROWS - 1) / UNIT_ROWS * (a->layer->shape.kv_heads / unit_heads(a));
}

static int append_unit(struct job *j, uint32_t group, uint32_t unit, struct engine_scratch *scratch)
{
	(void)group;
	struct append *a = &j->append;
	struct payload own;
	uint32_t heads = unit_heads(a), parts = a->layer->shape.kv_heads / heads, skew = unit_skew(a);
	uint32_t at = unit / parts * UNIT_ROWS, g = unit % parts * heads;
	uint32_t first = at > skew ? at - skew : 0, end = at + UNIT_ROWS - skew < a->count ? at + UNIT_ROWS - skew : a->count;
	int status = copy_payload(j, first, end - first, g, heads, scratch, &own);
	for (uint32_t i = 0; i < heads && !status; i++)
		status = append_head(j, &own, first, end - first, i, g + i);
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
	int status = check_range(j, &a->layer);
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
	r->group[0].main_n = unit_count(a);
	char why[MPIG_TEXT_BYTES] = "";
	status = context_reserve(j->engine->store, j->request.context, e->layer, a->position, a->count, why);
	if (status) {
		round_free(j, r);
		return job_fail(j, status, "%s", why);
	}
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

// ---- TRUNCATE --------------------------------------------------------------------------------------------------------
static int truncate_attempt(struct job *j)
{
	char why[MPIG_TEXT_BYTES] = "";
	int status = context_truncate(j->engine->store, j->request.context, j->request.entry.begin, why);
	if (status && status != MPIG_EAGAIN)
		job_fail(j, status, "%s", why);
	return status;
}

static const struct job_ops truncate_ops = {.attempt = truncate_attempt};

int truncate_plan(struct job *j)
{
	j->result.units = 1;
	j->ops = &truncate_ops;
	return 0;
}

// ---- READ ------------------------------------------------------------------------------------------------------------
static int read_attempt(struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	const struct layer *layer;
	int status = check_range(j, &layer);
	if (status)
		return status;
	const struct mpig_layer_shape *s = &layer->shape;
	if (e->count > MPIG_MAX_REGION_BYTES / ((uint64_t)s->kv_heads * (s->d_k + s->d_v) * 4))
		return job_fail(j, MPIG_EINVAL, "%u rows do not fit any slot", e->count);
	struct mpig_payload_layout layout = mpig_read_layout(s, e->count);
	if (!j->request.payload_out || layout.bytes > j->request.slot_bytes)
		return job_fail(j, MPIG_EINVAL, "the payload needs %llu bytes, the slot has %llu",
		                (unsigned long long)layout.bytes, (unsigned long long)j->request.slot_bytes);
	struct layer_view view;
	status = layer_view_get(j->engine->store, j->request.context, e->layer, e->begin, e->begin + e->count, &view);
	if (status)
		return job_fail(j, status, "rows %llu + %u of layer %u: the context has %llu committed tokens",
		                (unsigned long long)e->begin, e->count, e->layer,
		                (unsigned long long)context_committed(j->request.context));
	float k[MPIG_MAX_HEAD_DIM], v[MPIG_MAX_HEAD_DIM];
	for (uint32_t g = 0; g < s->kv_heads; g++)
		for (uint32_t i = 0; i < view.span_count; i++) {
			const struct span *span = &view.strip[g].spans[i];
			for (uint32_t n = 0; n < span->n; n++) {
				size_t at = (span->first + n - e->begin) * s->kv_heads + g;
				row_decode(&layer->rows, span->rows + (size_t)n * layer->rows.stride, span->frame, k, v);
				memcpy(j->request.payload_out + layout.k + at * s->d_k * 4, k, s->d_k * 4);
				memcpy(j->request.payload_out + layout.v + at * s->d_v * 4, v, s->d_v * 4);
			}
		}
	layer_view_free(j->engine->store, &view);
	return 0;
}

static const struct job_ops read_ops = {.attempt = read_attempt};

int read_plan(struct job *j)
{
	j->result.units = 1;
	j->ops = &read_ops;
	return 0;
}
