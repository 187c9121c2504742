// TRUNCATE and READ: rows back, and out.
#include <string.h>

#include "daemon/engine/job.h"

int rows_check(struct job *j, const struct layer **layer)
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
	int status = rows_check(j, &layer);
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
