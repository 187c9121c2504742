#include "daemon/engine/recent.h"

#include <math.h>
#include <stdlib.h>

struct recent {
	uint32_t strips;
	float *rms[]; // [strips], NULL where nothing was noted
};

static void recent_release(void *data)
{
	struct recent *r = data;
	if (!r)
		return;
	for (uint32_t i = 0; i < r->strips; i++)
		free(r->rms[i]);
	free(r);
}

static struct recent *recent_of(struct context *c)
{
	struct recent *r = context_private(c);
	if (r)
		return r;
	uint32_t strips = context_strips(c);
	r = calloc(1, sizeof(*r) + strips * sizeof(r->rms[0]));
	if (r) {
		r->strips = strips;
		context_private_set(c, r, recent_release);
	}
	return r;
}

int recent_note(struct context *c, const struct layer *layer, const float *queries, uint32_t count)
{
	struct recent *r = recent_of(c);
	if (!r)
		return MPIG_ENOMEM;
	const struct mpig_layer_shape *s = &layer->shape;
	uint32_t heads = s->query_heads / s->kv_heads;
	for (uint32_t g = 0; g < s->kv_heads; g++) {
		float **rms = &r->rms[layer->first_strip + g];
		if (!*rms && !(*rms = malloc(s->d_k * sizeof(float))))
			return MPIG_ENOMEM;
		for (uint32_t d = 0; d < s->d_k; d++) {
			double sum = 0;
			for (uint32_t i = 0; i < count; i++)
				for (uint32_t h = 0; h < heads; h++) {
					float q = queries[((size_t)i * s->query_heads + g * heads + h) * s->d_k + d];
					sum += (double)q * q;
				}
			(*rms)[d] = (float)sqrt(sum / ((double)count * heads));
		}
	}
	return 0;
}

const float *recent_rms(const struct context *c, uint32_t strip)
{
	const struct recent *r = context_private(c);
	return r && strip < r->strips ? r->rms[strip] : NULL;
}

void recent_forget(struct context *c)
{
	context_private_set(c, NULL, NULL);
}
