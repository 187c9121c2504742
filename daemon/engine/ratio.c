#include "daemon/engine/ratio.h"

#include <pthread.h>
#include <stdlib.h>

enum { MEMORY = 16 }; // observations in the running mean; the first counts as much as the 1 it starts from
static const double LARGEST = 64, ONE = 1 << 20; // fixed point: 2^20 is 1

struct strip_ratio {
	double mean;       // of settled positions
	uint32_t settled;  // how many, up to MEMORY
	uint64_t position; // of what follows
	uint64_t sum, count;
};

struct ratios {
	pthread_mutex_t lock;
	uint32_t strips;
	struct strip_ratio strip[];
};

static void ratios_release(void *data)
{
	struct ratios *r = data;
	if (!r)
		return;
	pthread_mutex_destroy(&r->lock);
	free(r);
}

static struct ratios *ratios_of(struct context *c)
{
	struct ratios *r = context_companion(c, COMPANION_RATIO);
	if (r)
		return r;
	uint32_t strips = context_strips(c);
	r = calloc(1, sizeof(*r) + strips * sizeof(r->strip[0]));
	if (!r)
		return NULL;
	pthread_mutex_init(&r->lock, NULL);
	r->strips = strips;
	for (uint32_t i = 0; i < strips; i++)
		r->strip[i].mean = 1;
	if (context_companion_set(c, COMPANION_RATIO, r, ratios_release))
		return r;
	ratios_release(r);
	return context_companion(c, COMPANION_RATIO);
}

static void settle(struct strip_ratio *s)
{
	if (!s->count)
		return;
	double seen = (double)s->sum / ((double)s->count * ONE);
	s->settled += s->settled < MEMORY - 1;
	s->mean += (seen - s->mean) / (s->settled + 1);
	s->sum = s->count = 0;
}

void ratio_take(struct context *c, const struct layer *layer, bool step, uint64_t position, float *ratio)
{
	struct ratios *r = ratios_of(c);
	for (uint32_t g = 0; g < layer->shape.kv_heads; g++)
		ratio[g] = 1;
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	for (uint32_t g = 0; g < layer->shape.kv_heads; g++) {
		struct strip_ratio *s = &r->strip[layer->first_strip + g];
		if (step && s->position != position) {
			settle(s);
			s->position = position;
		}
		ratio[g] = s->mean < 1 ? 1 : s->mean > RATIO_MOST ? RATIO_MOST : (float)s->mean;
	}
	pthread_mutex_unlock(&r->lock);
}

void ratio_note(struct context *c, const struct layer *layer, uint32_t kv_head, uint64_t position, double ratio)
{
	struct ratios *r = context_companion(c, COMPANION_RATIO);
	if (!r || !(ratio >= 0))
		return;
	pthread_mutex_lock(&r->lock);
	struct strip_ratio *s = &r->strip[layer->first_strip + kv_head];
	if (s->position == position) {
		s->sum += (uint64_t)((ratio < LARGEST ? ratio : LARGEST) * ONE);
		s->count++;
	}
	pthread_mutex_unlock(&r->lock);
}
