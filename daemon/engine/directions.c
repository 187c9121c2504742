// SimHash directions are 384 KB for (10, 150) at d = 64 and cost milliseconds to draw, so they are shared: one set for all
// strips of a context (keys are centred strip by strip), cached across requests.
#include <pthread.h>
#include <stdlib.h>

#include "daemon/engine/job.h"

enum { IDLE_SETS_KEPT = 16 };

struct direction_cache {
	pthread_mutex_t lock;
	struct directions *first;
	uint64_t clock;
};

struct direction_cache *direction_cache_create(void)
{
	struct direction_cache *cache = calloc(1, sizeof(*cache));
	if (cache)
		pthread_mutex_init(&cache->lock, NULL);
	return cache;
}

static void directions_free(struct directions *d)
{
	free(d->vector);
	free(d);
}

void direction_cache_destroy(struct direction_cache *cache)
{
	if (!cache)
		return;
	for (struct directions *d = cache->first, *next; d; d = next) {
		next = d->next;
		directions_free(d);
	}
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

// Drops the idle set that was used longest ago while there are too many.
static void evict_idle(struct direction_cache *cache)
{
	for (;;) {
		uint32_t idle = 0;
		struct directions **oldest = NULL;
		for (struct directions **p = &cache->first; *p; p = &(*p)->next) {
			if ((*p)->references)
				continue;
			idle++;
			if (!oldest || (*p)->used < (*oldest)->used)
				oldest = p;
		}
		if (idle <= IDLE_SETS_KEPT)
			return;
		struct directions *gone = *oldest;
		*oldest = gone->next;
		directions_free(gone);
	}
}

static struct directions *draw(uint64_t seed, uint32_t d_k, uint32_t K, uint32_t L)
{
	struct directions *d = calloc(1, sizeof(*d));
	if (!d)
		return NULL;
	d->seed = seed;
	d->d_k = d_k;
	d->K = K;
	d->L = L;
	d->vector = malloc((size_t)K * L * d_k * sizeof(float));
	if (!d->vector) {
		free(d);
		return NULL;
	}
	paper_directions(seed, 0, 0, d_k, K * L, d->vector);
	paper_pi_init(&d->pi, K, L);
	return d;
}

struct directions *directions_get(struct direction_cache *cache, uint64_t seed, uint32_t d_k, uint32_t K, uint32_t L)
{
	pthread_mutex_lock(&cache->lock);
	struct directions *d = cache->first;
	while (d && !(d->seed == seed && d->d_k == d_k && d->K == K && d->L == L))
		d = d->next;
	if (!d && (d = draw(seed, d_k, K, L))) {
		d->next = cache->first;
		cache->first = d;
	}
	if (d) {
		d->references++;
		d->used = ++cache->clock;
	}
	pthread_mutex_unlock(&cache->lock);
	return d;
}

void directions_put(struct direction_cache *cache, struct directions *d)
{
	if (!d)
		return;
	pthread_mutex_lock(&cache->lock);
	d->references--;
	evict_idle(cache);
	pthread_mutex_unlock(&cache->lock);
}
