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
// [count][KV heads][d] of the payload to [KV head][count][d]; false if a value is not finite or does not fit fp16 rows.
static bool copy_heads(const uint8_t *src, uint32_t dtype, uint32_t count, uint32_t heads, uint32_t d, float *dst)
{
	size_t element = mpig_dtype_bytes(dtype);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t g = 0; g < heads; g++)
			if (!payload_to_f32(src + ((size_t)i * heads + g) * d * element, dtype, d,
			                    dst + ((size_t)g * count + i) * d))
				return false;
	return true;
}

static bool fits_f16(const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fabsf(x[i]) > 65504)
			return false;
	return true;
}

static void carve_arrays(struct job *j, struct carve *c, uint32_t query_count)
{
	struct append *a = &j->append;
	const struct mpig_layer_shape *s = &a->layer->shape;
	a->k = carve(c, (uint64_t)a->count * s->kv_heads * s->d_k, sizeof(float));
	a->v = carve(c, (uint64_t)a->count * s->kv_heads * s->d_v, sizeof(float));
	a->signs = carve(c, 3 * (uint64_t)a->layer->d_pad, sizeof(float));
	a->queries = carve(c, (uint64_t)query_count * s->query_heads * s->d_k, sizeof(float));
}

static int copy_payload(struct job *j, const struct mpig_payload_layout *layout, uint32_t query_count)
{
	struct append *a = &j->append;
	const struct mpig_layer_shape *s = &a->layer->shape;
	const uint8_t *slot = j->request.payload_in;
	uint32_t dtype = j->request.entry.dtype;
	struct carve c = {0};
	carve_arrays(j, &c, query_count);
	j->memory = c.overflow ? NULL : memory_get(&j->engine->memory, c.used);
	if (!j->memory)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u rows", a->count);
	c = (struct carve){.base = j->memory};
	carve_arrays(j, &c, query_count);
	if (!copy_heads(slot + layout->k, dtype, a->count, s->kv_heads, s->d_k, a->k) ||
	    !copy_heads(slot + layout->v, dtype, a->count, s->kv_heads, s->d_v, a->v))
		return job_fail(j, MPIG_ENAN, "K or V of layer %u holds NaN or infinity", j->request.entry.layer);
	if (a->layer->rows.type == ROW_F16 && (!fits_f16(a->k, (size_t)a->count * s->kv_heads * s->d_k) ||
	                                       !fits_f16(a->v, (size_t)a->count * s->kv_heads * s->d_v)))
		return job_fail(j, MPIG_ERANGE, "K or V of layer %u is above fp16's 65504: use bf16 rows",
		                j->request.entry.layer);
	if (query_count &&
	    !payload_to_f32(slot + layout->queries, dtype, (size_t)query_count * s->query_heads * s->d_k, a->queries))
		return job_fail(j, MPIG_ENAN, "the queries of layer %u hold NaN or infinity", j->request.entry.layer);
	return 0;
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

static int append_head(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *scratch)
{
	(void)unit;
	(void)scratch;
	struct append *a = &j->append;
	const struct layer *layer = a->layer;
	const struct mpig_layer_shape *s = &layer->shape;
	float rotated[MPIG_MAX_HEAD_DIM];
	const float *k = a->k + (size_t)g * a->count * s->d_k, *v = a->v + (size_t)g * a->count * s->d_v;
	for (uint32_t done = 0; done < a->count;) {
		struct write_span w;
		context_write_span(j->engine->store, j->request.context, j->request.entry.layer, g, a->position + done, &w);
		uint32_t n = w.n < a->count - done ? w.n : a->count - done;
		if (w.frame_fresh)
			set_frame(k, a->count - done, a->position + done, s->d_k, &w);
		struct sig_params params = {.d_k = s->d_k,
		                            .d_pad = layer->d_pad,
		                            .bits = w.params.bits,
		                            .mu = w.params.mu,
		                            .balance = w.params.balance,
		                            .signs = a->signs};
		for (uint32_t i = 0; i < n; i++, k += s->d_k, v += s->d_v) {
			row_encode(&layer->rows, k, v, w.frame, w.rows + (size_t)i * layer->rows.stride);
			if (w.codes)
				sig_encode(j->engine->kernels, &params, k, w.codes, w.factors, w.block_row + i, rotated);
		}
		done += n;
	}
	return 0;
}

static int append_finish(struct job *j, struct engine_scratch *scratch)
{
	(void)scratch;
	struct append *a = &j->append;
	if (atomic_load(&j->failed))
		return 0;
	context_appended(j->request.context, j->request.entry.layer, a->position + a->count);
	PROBE4(append, context_id(j->request.context), j->request.entry.layer, a->position, a->count);
	return 0;
}

static const struct job_ops append_ops = {.main = append_head, .finish = append_finish};

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
	if ((status = copy_payload(j, &layout, query_count)))
		return status;
	char why[MPIG_TEXT_BYTES] = "";
	status = context_reserve(j->engine->store, j->request.context, e->layer, a->position, a->count, why);
	if (status)
		return job_fail(j, status, "%s", why);
	sig_signs(context_seed(j->request.context), 0, 0, a->layer->d_pad, a->signs);
	if (query_count && (status = recent_note(j->request.context, a->layer, a->queries, query_count)))
		return job_fail(j, status, "no memory for the queries of layer %u", e->layer);
	struct round *r = round_new(a->layer->shape.kv_heads);
	if (!r)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u KV heads", a->layer->shape.kv_heads);
	for (uint32_t g = 0; g < r->group_count; g++)
		r->group[g].main_n = 1;
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
