#include "daemon/engine/asked.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct asked_strip {
	uint64_t count;
	double *squares; // [d_k], running means; then ASKED_QUERIES queries, a ring
};

struct asked {
	pthread_mutex_t lock;
	uint32_t strips;
	struct asked_strip strip[];
};

static void asked_release(void *data)
{
	struct asked *a = data;
	if (!a)
		return;
	for (uint32_t i = 0; i < a->strips; i++)
		free(a->strip[i].squares);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

static struct asked *asked_of(struct context *c)
{
	struct asked *a = context_companion(c, COMPANION_ASKED);
	if (a)
		return a;
	uint32_t strips = context_strips(c);
	a = calloc(1, sizeof(*a) + strips * sizeof(a->strip[0]));
	if (!a)
		return NULL;
	pthread_mutex_init(&a->lock, NULL);
	a->strips = strips;
	if (context_companion_set(c, COMPANION_ASKED, a, asked_release))
		return a;
	asked_release(a);
	return context_companion(c, COMPANION_ASKED);
}

static float *kept(const struct asked_strip *s, uint32_t d_k)
{
	return (float *)(void *)(s->squares + d_k);
}

void asked_note(struct context *c, const struct layer *layer, uint32_t strip, const float *q)
{
	struct asked *a = asked_of(c);
	uint32_t d_k = layer->shape.d_k;
	if (!a)
		return;
	pthread_mutex_lock(&a->lock);
	struct asked_strip *s = &a->strip[strip];
	if (!s->squares)
		s->squares = malloc(d_k * (sizeof(double) + ASKED_QUERIES * sizeof(float)));
	if (s->squares) {
		uint64_t seen = ++s->count < ASKED_MEMORY ? s->count : ASKED_MEMORY;
		for (uint32_t d = 0; d < d_k; d++) {
			double square = (double)q[d] * (double)q[d], *mean = &s->squares[d];
			*mean = seen == 1 ? square : *mean + (square - *mean) / (double)seen;
		}
		memcpy(kept(s, d_k) + s->count % ASKED_QUERIES * d_k, q, d_k * sizeof(float));
	}
	pthread_mutex_unlock(&a->lock);
}

uint64_t asked_read(const struct context *c, const struct layer *layer, uint32_t strip, float *rms, float *queries,
                    uint32_t *count)
{
	struct asked *a = context_companion(c, COMPANION_ASKED);
	uint32_t d_k = layer->shape.d_k;
	*count = 0;
	if (!a)
		return 0;
	pthread_mutex_lock(&a->lock);
	const struct asked_strip *s = &a->strip[strip];
	uint64_t seen = s->count;
	*count = seen < ASKED_QUERIES ? (uint32_t)seen : ASKED_QUERIES;
	for (uint32_t d = 0; seen && d < d_k; d++)
		rms[d] = (float)sqrt(s->squares[d]);
	for (uint32_t i = 0; i < *count; i++)
		memcpy(queries + (size_t)i * d_k, kept(s, d_k) + (seen - i) % ASKED_QUERIES * d_k, d_k * sizeof(float));
	pthread_mutex_unlock(&a->lock);
	return seen;
}

void asked_forget(struct context *c)
{
	struct asked *a = context_companion(c, COMPANION_ASKED);
	if (!a)
		return;
	pthread_mutex_lock(&a->lock);
	for (uint32_t i = 0; i < a->strips; i++)
		a->strip[i].count = 0;
	pthread_mutex_unlock(&a->lock);
}
