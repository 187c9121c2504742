// The units of `dense`: every row of a span, for every query of the group.
#include <string.h>

#include "daemon/engine/attend.h"

enum { DENSE_QUERIES = 16 }; // queries of one KV head that read a span's rows together

int attend_span(struct job *j, uint32_t g, uint32_t unit, const struct span *span, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct layer *layer = a->layer;
	float *scratch = scratch_get(s, (size_t)DENSE_QUERIES * (span->n + layer->shape.d_k) * sizeof(float));
	float *framed = scratch + (size_t)DENSE_QUERIES * span->n;
	if (!scratch)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u logits", span->n);
	uint32_t most = 0;
	for (uint32_t r0 = 0; r0 < a->queries; r0 += DENSE_QUERIES) {
		uint32_t heads = a->queries - r0 < DENSE_QUERIES ? a->queries - r0 : DENSE_QUERIES;
		struct attn_head h[DENSE_QUERIES];
		uint32_t limit[DENSE_QUERIES];
		for (uint32_t i = 0; i < heads; i++) {
			struct row_query query;
			attend_logits(a, g, r0 + i, span->first, span->frame, &query);
			h[i] = query.head;
			if (span->frame)
				memcpy(framed + (size_t)i * layer->shape.d_k, query.q, layer->shape.d_k * sizeof(float));
			limit[i] = attend_visible(a, r0 + i, span->first, span->n);
			most = limit[i] > most ? limit[i] : most;
		}
		attn_dense(j->engine->kernels, &layer->rows, span->rows, span->n, span->frame ? framed : attend_query(a, g, r0),
		           h, heads, limit, attend_partial(a, g, unit, r0), a->partial_bytes, scratch);
	}
	attend_count(a, g, most, (uint64_t)most * layer->rows.stride);
	return 0;
}

static int dense_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	int status = attend_queries(j, g);
	return status ? status : attend_span(j, g, unit, &j->attend.view.strip[g].spans[unit], s);
}

const struct proposal dense_proposal = {.ops = {.main = dense_main,
                                                .merge = attend_merge_unit,
                                                .close = attend_close,
                                                .finish = attend_finish,
                                                .release = attend_release}};
