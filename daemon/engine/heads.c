#include "daemon/engine/heads.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

struct strip_heads {
	_Atomic uint64_t answers;
	struct head_numbers mean; // .noise: still squared
};

struct heads {
	pthread_mutex_t lock; // of the means
	uint32_t strips;
	struct strip_heads strip[];
};

static void heads_release(void *data)
{
	struct heads *h = data;
	if (!h)
		return;
	pthread_mutex_destroy(&h->lock);
	free(h);
}

static struct heads *heads_of(struct context *c)
{
	struct heads *h = context_companion(c, COMPANION_HEADS);
	if (h)
		return h;
	uint32_t strips = context_strips(c);
	h = calloc(1, sizeof(*h) + strips * sizeof(h->strip[0]));
	if (!h)
		return NULL;
	pthread_mutex_init(&h->lock, NULL);
	h->strips = strips;
	if (context_companion_set(c, COMPANION_HEADS, h, heads_release))
		return h;
	heads_release(h);
	return context_companion(c, COMPANION_HEADS);
}

bool heads_turn(struct context *c, uint32_t strip, uint64_t *turn)
{
	struct heads *h = heads_of(c);
	if (!h)
		return false;
	uint64_t answers = atomic_fetch_add_explicit(&h->strip[strip].answers, 1, memory_order_relaxed);
	*turn = answers / HEADS_EVERY;
	return answers % HEADS_EVERY == 0;
}

static void approach(double *mean, double value, uint64_t samples)
{
	*mean += (value - *mean) / (double)(samples < HEADS_MEMORY ? samples : HEADS_MEMORY);
}

void heads_note(struct context *c, uint32_t strip, const struct head_sample *sample)
{
	struct heads *h = context_companion(c, COMPANION_HEADS);
	if (!h || !isfinite(sample->noise2 + sample->n_eff + sample->mass[0] + sample->mass[1] + sample->drawn))
		return;
	pthread_mutex_lock(&h->lock);
	struct head_numbers *mean = &h->strip[strip].mean;
	mean->samples++;
	mean->rows = sample->rows;
	approach(&mean->noise, sample->noise2, mean->samples);
	approach(&mean->n_eff, sample->n_eff, mean->samples);
	approach(&mean->drawn, sample->drawn, mean->samples);
	for (int i = 0; i < 2; i++)
		approach(&mean->mass[i], sample->mass[i], mean->samples);
	pthread_mutex_unlock(&h->lock);
}

struct head_numbers heads_read(const struct context *c, uint32_t strip)
{
	struct heads *h = context_companion(c, COMPANION_HEADS);
	if (!h || strip >= h->strips)
		return (struct head_numbers){0};
	pthread_mutex_lock(&h->lock);
	struct head_numbers numbers = h->strip[strip].mean;
	pthread_mutex_unlock(&h->lock);
	numbers.noise = sqrt(numbers.noise);
	return numbers;
}
