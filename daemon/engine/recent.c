#include "daemon/engine/recent.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct recent_strip {
	float *rms; // [d_k], then KEPT queries; NULL where nothing was noted
	uint32_t kept;
};

struct recent {
	uint32_t strips;
	struct recent_strip strip[];
};

static void recent_release(void *data)
{
	struct recent *r = data;
	if (!r)
		return;
	for (uint32_t i = 0; i < r->strips; i++)
		free(r->strip[i].rms);
	free(r);
}

static struct recent *recent_of(struct context *c)
{
	struct recent *r = context_private(c);
	if (r)
		return r;
	uint32_t strips = context_strips(c);
	r = calloc(1, sizeof(*r) + strips * sizeof(r->strip[0]));
	if (r) {
		r->strips = strips;
		context_private_set(c, r, recent_release);
	}
	return r;
}

// Some of them, spread over tokens and heads. queries: the group's first head of the first token.
static void keep(struct recent_strip *strip, const float *queries, uint32_t count, uint32_t heads,
                 const struct mpig_layer_shape *s)
{
	uint32_t all = count * heads;
	strip->kept = all < RECENT_QUERIES ? all : RECENT_QUERIES;
	for (uint32_t i = 0; i < strip->kept; i++) {
		uint32_t token = i * count / strip->kept, head = all <= RECENT_QUERIES ? i % heads : (i + token) % heads;
		const float *q = queries + ((size_t)token * s->query_heads + head) * s->d_k;
		memcpy(strip->rms + (size_t)(1 + i) * s->d_k, q, s->d_k * sizeof(float));
	}
}

int recent_note(struct context *c, const struct layer *layer, const float *queries, uint32_t count)
{
	struct recent *r = recent_of(c);
	if (!r)
		return MPIG_ENOMEM;
	const struct mpig_layer_shape *s = &layer->shape;
	uint32_t heads = s->query_heads / s->kv_heads;
	for (uint32_t g = 0; g < s->kv_heads; g++) {
		struct recent_strip *strip = &r->strip[layer->first_strip + g];
		if (!strip->rms && !(strip->rms = malloc((1 + RECENT_QUERIES) * s->d_k * sizeof(float))))
			return MPIG_ENOMEM;
		keep(strip, queries + (size_t)g * heads * s->d_k, count, heads, s);
		for (uint32_t d = 0; d < s->d_k; d++) {
			double sum = 0;
			for (uint32_t i = 0; i < count; i++)
				for (uint32_t h = 0; h < heads; h++) {
					float q = queries[((size_t)i * s->query_heads + g * heads + h) * s->d_k + d];
					sum += (double)q * q;
				}
			strip->rms[d] = (float)sqrt(sum / ((double)count * heads));
		}
	}
	return 0;
}

const float *recent_rms(const struct context *c, uint32_t strip)
{
	const struct recent *r = context_private(c);
	return r && strip < r->strips ? r->strip[strip].rms : NULL;
}

const float *recent_queries(const struct context *c, uint32_t strip, uint32_t d_k, uint32_t *count)
{
	const float *rms = recent_rms(c, strip);
	*count = rms ? ((const struct recent *)context_private(c))->strip[strip].kept : 0;
	return rms ? rms + d_k : NULL;
}

void recent_forget(struct context *c)
{
	context_private_set(c, NULL, NULL);
}
