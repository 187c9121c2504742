// SimHash directions are 384 KB for (10, 150) at d = 64 and cost milliseconds to draw, so they are shared: one set for all
// strips of a context (keys are centred and balanced strip by strip), cached across requests.
#include <pthread.h>
#include <stdlib.h>

#include "daemon/engine/job.h"

enum { IDLE_SETS_KEPT = 16 };

struct hash_cache {
	pthread_mutex_t lock;
	struct hash_set *first;
	uint64_t clock;
};

struct hash_cache *hash_cache_create(void)
{
	struct hash_cache *cache = calloc(1, sizeof(*cache));
	if (cache)
		pthread_mutex_init(&cache->lock, NULL);
	return cache;
}

static void hash_set_free(struct hash_set *set)
{
	free(set->vectors);
	free(set);
}

void hash_cache_destroy(struct hash_cache *cache)
{
	if (!cache)
		return;
	for (struct hash_set *set = cache->first, *next; set; set = next) {
		next = set->next;
		hash_set_free(set);
	}
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

// Drops the idle set that was used longest ago while there are too many.
static void evict_idle(struct hash_cache *cache)
{
	for (;;) {
		uint32_t idle = 0;
		struct hash_set **oldest = NULL;
		for (struct hash_set **p = &cache->first; *p; p = &(*p)->next) {
			if ((*p)->references)
				continue;
			idle++;
			if (!oldest || (*p)->used < (*oldest)->used)
				oldest = p;
		}
		if (idle <= IDLE_SETS_KEPT)
			return;
		struct hash_set *gone = *oldest;
		*oldest = gone->next;
		hash_set_free(gone);
	}
}

static struct hash_set *draw(uint64_t seed, const struct table_params *params)
{
	struct hash_set *set = calloc(1, sizeof(*set));
	if (!set)
		return NULL;
	set->seed = seed;
	set->params = *params;
	set->params.vectors = set->vectors = malloc(table_vector_count(params) * sizeof(float));
	if (!set->vectors) {
		free(set);
		return NULL;
	}
	table_vectors(seed, params, set->vectors);
	table_pi_init(&set->pi, params);
	return set;
}

static bool alike(const struct table_params *a, const struct table_params *b)
{
	return a->hash == b->hash && a->d_k == b->d_k && a->K == b->K && a->L == b->L;
}

struct hash_set *hash_set_get(struct hash_cache *cache, uint64_t seed, const struct layer *layer)
{
	const struct table_params params = {.hash = layer->wire.table_hash,
	                                    .d_k = layer->shape.d_k,
	                                    .d_pad = layer->d_pad,
	                                    .K = layer->wire.paper_k,
	                                    .L = layer->wire.paper_l};
	pthread_mutex_lock(&cache->lock);
	struct hash_set *set = cache->first;
	while (set && !(set->seed == seed && alike(&set->params, &params)))
		set = set->next;
	if (!set && (set = draw(seed, &params))) {
		set->next = cache->first;
		cache->first = set;
	}
	if (set) {
		set->references++;
		set->used = ++cache->clock;
	}
	pthread_mutex_unlock(&cache->lock);
	return set;
}

struct table_params hash_set_params(const struct hash_set *set, const struct layer *layer, const float *mu, const float *balance)
{
	struct table_params p = set->params;
	p.mu = mu;
	p.balance = layer->wire.table_balance ? balance : NULL;
	return p;
}

void hash_set_put(struct hash_cache *cache, struct hash_set *set)
{
	if (!set)
		return;
	pthread_mutex_lock(&cache->lock);
	set->references--;
	evict_idle(cache);
	pthread_mutex_unlock(&cache->lock);
}
