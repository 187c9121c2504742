// An ATTEND's query as the engine had it, for whoever records queries.
#include <string.h>

#include "daemon/engine/attend.h"

bool job_query(const struct job *j, struct job_query *query)
{
	const struct mpig_sqe *e = &j->request.entry;
	const struct attend *a = &j->attend;
	if (e->op != MPIG_OP_ATTEND || j->result.status != MPIG_OK)
		return false;
	*query = (struct job_query){
		.shape = a->layer->shape,
		.slot = &j->request.slot,
		.begin = a->view.begin,
		.end = a->view.end,
		.seed = e->flags & MPIG_SQE_SEED_SEQUENCE ? e->seed + j->request.sequence : e->seed,
		.window_lse = a->window_lse != NULL,
		.window_out = a->window_out != NULL,
	};
	return true;
}

void job_query_copy(const struct job *j, float *q, float *window_lse, float *window_out)
{
	const struct attend *a = &j->attend;
	const struct mpig_layer_shape *s = &a->layer->shape;
	for (uint32_t g = 0; g < s->kv_heads; g++)
		for (uint32_t r = 0; r < a->queries; r++) {
			size_t from = (size_t)g * a->queries + r,
			       to = (size_t)attend_token(a, r) * s->query_heads + attend_head(a, g, r);
			memcpy(q + to * s->d_k, a->q + from * s->d_k, s->d_k * sizeof(float));
			if (a->window_lse)
				window_lse[to] = a->window_lse[from];
			if (a->window_out)
				memcpy(window_out + to * s->d_v, a->window_out + from * s->d_v, s->d_v * sizeof(float));
		}
}
