// Memory that is there before it is asked for. The kernel zeroes and maps pages at 1 to 5 GB/s and a GPU's link brings rows at 50, so free ranges
// of 2 MiB are allocated, made one page each and mapped while nothing else is to be done.
#include <fcntl.h>
#include <sys/mman.h>

#include "daemon/store/pool_private.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define GRANULES (uint32_t)(HUGE_PAGE / POOL_GRANULE)

static bool is_ready(const struct node *n, uint64_t range)
{
	return n->ready[range / 64] >> (range % 64) & 1;
}

bool pool_is_ready(const struct node *n, uint64_t at, uint64_t bytes)
{
	bool all = n->ready != NULL;
	for (uint64_t range = at / HUGE_PAGE; all && range <= (at + bytes - 1) / HUGE_PAGE; range++)
		all = is_ready(n, range);
	return all;
}

void pool_not_ready(struct node *n, uint64_t at, uint64_t bytes)
{
	for (uint64_t range = at / HUGE_PAGE; n->ready && range <= (at + bytes - 1) / HUGE_PAGE; range++)
		n->ready[range / 64] &= ~(UINT64_C(1) << (range % 64));
}

// The first free range that is not ready, where extents are taken first; UINT64_MAX: there are `want` bytes in free ranges that are.
static uint64_t next_range(const struct node *n, uint64_t ranges, uint64_t want)
{
	uint64_t have = 0;
	for (uint64_t range = 0; range < ranges && have < want; range++) {
		if (!extent_map_all_free(&n->map, (uint32_t)range * GRANULES, GRANULES))
			continue;
		if (!is_ready(n, range))
			return range;
		have += HUGE_PAGE;
	}
	return UINT64_MAX;
}

// A page of the range first, or there is nothing to make one of; then all of it, whatever came of that.
static bool fill_range(const struct pool *pool, const struct node *n, uint64_t at)
{
	if (pool->huge_pages && pool_allocate(n->fd, 0, at, POOL_GRANULE) == 0)
		(void)madvise(n->base + at, HUGE_PAGE, MADV_COLLAPSE); // best effort
	if (pool_allocate(n->fd, 0, at, HUGE_PAGE))
		return false;
	(void)madvise(n->base + at, HUGE_PAGE, MADV_POPULATE_WRITE); // likewise: what is not mapped is when it is touched
	return true;
}

// While the range is filled it is nobody else's. `filling` held.
static bool node_make_ready(const struct pool *pool, struct node *n, uint64_t want)
{
	pthread_mutex_lock(&n->lock);
	uint64_t range = n->ready && !n->full ? next_range(n, pool->part / HUGE_PAGE, want) : UINT64_MAX;
	if (range != UINT64_MAX)
		extent_map_claim(&n->map, (uint32_t)range * GRANULES, GRANULES);
	pthread_mutex_unlock(&n->lock);
	if (range == UINT64_MAX)
		return false;
	bool filled = fill_range(pool, n, range * HUGE_PAGE);
	pthread_mutex_lock(&n->lock);
	if (filled)
		n->ready[range / 64] |= UINT64_C(1) << (range % 64);
	n->full = !filled;
	extent_map_give(&n->map, (uint32_t)range * GRANULES, GRANULES);
	pthread_mutex_unlock(&n->lock);
	return filled;
}

// The last one, which would be taken last. No more are made until something is given back.
bool pool_give_ready(struct node *n)
{
	uint64_t range = n->ready ? n->map.granules / GRANULES : 0;
	bool found = false;
	pthread_mutex_lock(&n->lock);
	while (range && !found) {
		range--;
		found = is_ready(n, range) && extent_map_claim(&n->map, (uint32_t)range * GRANULES, GRANULES);
	}
	if (found) {
		pool_not_ready(n, range * HUGE_PAGE, HUGE_PAGE);
		n->full = true;
	}
	pthread_mutex_unlock(&n->lock);
	if (!found)
		return false;
	(void)pool_allocate(n->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range * HUGE_PAGE,
	                    HUGE_PAGE); // it is zero already
	pthread_mutex_lock(&n->lock);
	extent_map_give(&n->map, (uint32_t)range * GRANULES, GRANULES);
	pthread_mutex_unlock(&n->lock);
	return true;
}

bool pool_make_ready(struct pool *pool, uint64_t want)
{
	bool made = false;
	for (uint32_t i = 0; want && i < pool->nodes && !made; i++) {
		pthread_mutex_lock(&pool->node[i].filling);
		made = node_make_ready(pool, &pool->node[i], want / pool->nodes);
		pthread_mutex_unlock(&pool->node[i].filling);
	}
	return made;
}
