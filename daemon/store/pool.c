// Extents of the pool: handed out, given back, made into huge pages.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/store/pool_private.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

int pool_allocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
	int rc;
	do
		rc = fallocate(fd, mode, (off_t)offset, (off_t)bytes);
	while (rc && errno == EINTR);
	return rc;
}

// Gives the bytes back to the machine; where the kernel cannot, at least what was there is gone.
static void punch(const struct node *n, uint64_t at, uint64_t bytes)
{
	if (pool_allocate(n->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, bytes))
		memset(n->base + at, 0, bytes);
}

// Huge pages hold several extents: those that became free as a whole are given back, the rest is cleared. Lock held.
static void punch_pages(const struct pool *pool, const struct node *n, uint64_t at, uint64_t bytes)
{
	uint32_t per_page = (uint32_t)(pool->page / POOL_GRANULE);
	for (uint64_t page = at / pool->page; page <= (at + bytes - 1) / pool->page; page++) {
		uint64_t lo = page * pool->page, begin = at > lo ? at : lo;
		uint64_t end = at + bytes < lo + pool->page ? at + bytes : lo + pool->page;
		memset(n->base + begin, 0, end - begin);
		if (extent_map_all_free(&n->map, (uint32_t)page * per_page, per_page))
			(void)pool_allocate(n->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, lo, pool->page);
	}
}

// Lock held.
static void note_filled(struct node *n, uint64_t at, uint64_t bytes)
{
	for (uint64_t range = at / HUGE_PAGE; n->filled && range <= (at + bytes - 1) / HUGE_PAGE; range++) {
		uint64_t bit = UINT64_C(1) << (range % 64);
		n->candidates += !(n->filled[range / 64] & bit);
		n->filled[range / 64] |= bit;
	}
}

// The next candidate that is handed out as a whole; UINT64_MAX: none is left. Others wait for the next allocation in them.
static uint64_t next_filled(struct node *n, uint64_t ranges)
{
	uint32_t per_page = (uint32_t)(HUGE_PAGE / POOL_GRANULE);
	uint64_t found = UINT64_MAX;
	pthread_mutex_lock(&n->lock);
	for (uint64_t w = 0; n->candidates && found == UINT64_MAX && w < (ranges + 63) / 64; w++)
		while (n->filled[w] && found == UINT64_MAX) {
			uint64_t range = w * 64 + (uint64_t)__builtin_ctzll(n->filled[w]);
			n->filled[w] &= n->filled[w] - 1;
			n->candidates--;
			if (extent_map_all_used(&n->map, (uint32_t)range * per_page, per_page))
				found = range;
		}
	pthread_mutex_unlock(&n->lock);
	return found;
}

uint32_t pool_collapse(struct pool *pool, uint32_t most)
{
	uint32_t left = 0;
	for (uint32_t i = 0; i < pool->nodes; i++) {
		struct node *n = &pool->node[i];
		uint64_t range;
		for (; n->filled && most && (range = next_filled(n, pool->part / HUGE_PAGE)) != UINT64_MAX; most--)
			(void)madvise(n->base + range * HUGE_PAGE, HUGE_PAGE, MADV_COLLAPSE); // best effort
		pthread_mutex_lock(&n->lock);
		left += n->candidates;
		pthread_mutex_unlock(&n->lock);
	}
	return left;
}

enum taken {
	TAKEN,
	NO_ROOM,   // in the pool
	NO_MEMORY, // the machine is full though the pool is not
};

static enum taken take(const struct pool *pool, struct node *n, uint64_t bytes, uint64_t *at)
{
	bool shared_pages = pool->page != POOL_GRANULE;
	uint32_t granules = (uint32_t)(bytes / POOL_GRANULE);
	pthread_mutex_lock(&n->lock);
	uint32_t first = extent_map_take(&n->map, granules);
	if (first == EXTENT_NONE) {
		pthread_mutex_unlock(&n->lock);
		return NO_ROOM;
	}
	*at = (uint64_t)first * POOL_GRANULE;
	bool there = pool_is_ready(n, *at, bytes);
	if (!shared_pages && !there)
		note_filled(n, *at, bytes);
	if (!shared_pages)
		pthread_mutex_unlock(&n->lock);
	uint64_t lo = *at / pool->page * pool->page, hi = (*at + bytes + pool->page - 1) / pool->page * pool->page;
	bool got = there || pool_allocate(n->fd, 0, lo, hi - lo) == 0;
	if (!got) {
		if (!shared_pages)
			pthread_mutex_lock(&n->lock);
		pool_not_ready(n, *at, bytes); // what was there of it the kernel may have taken back
		extent_map_give(&n->map, first, granules);
		if (!shared_pages)
			pthread_mutex_unlock(&n->lock);
	}
	if (shared_pages)
		pthread_mutex_unlock(&n->lock);
	return got ? TAKEN : NO_MEMORY;
}

// What is kept ready stands in nobody's way: a range that is being filled is waited for, and memory that is short is taken from it.
uint64_t pool_take(struct pool *pool, struct node *n, uint64_t bytes)
{
	uint64_t at;
	enum taken taken = take(pool, n, bytes, &at);
	if (taken != TAKEN && n->ready) {
		pthread_mutex_lock(&n->filling);
		do
			taken = take(pool, n, bytes, &at);
		while (taken == NO_MEMORY && pool_give_ready(n));
		pthread_mutex_unlock(&n->filling);
	}
	return taken == TAKEN ? n->offset + at : UINT64_MAX;
}

uint64_t pool_alloc(struct pool *pool, uint64_t bytes, int node)
{
	if (!bytes || bytes > pool->part)
		return 0;
	bytes = pool_round(bytes);
	uint32_t wanted = node > 0 ? (uint32_t)node % pool->nodes : 0;
	for (uint32_t i = 0; i < pool->nodes; i++) {
		uint64_t offset = pool_take(pool, &pool->node[(wanted + i) % pool->nodes], bytes);
		if (offset != UINT64_MAX)
			return offset;
	}
	return 0;
}

void pool_free(struct pool *pool, uint64_t offset, uint64_t bytes)
{
	bytes = pool_round(bytes);
	if (!bytes)
		return;
	assert(offset % POOL_GRANULE == 0 && offset < pool->bytes && bytes <= pool->part);
	struct node *n = &pool->node[offset / pool->part];
	uint64_t at = offset - n->offset;
	assert(bytes <= pool->part - at);
	bool shared_pages = pool->page != POOL_GRANULE;
	if (!shared_pages) {
		pthread_mutex_lock(&n->lock);
		pool_not_ready(n, at, bytes);
		n->full = false;
		pthread_mutex_unlock(&n->lock);
		punch(n, at, bytes); // before it can be handed out again
	}
	pthread_mutex_lock(&n->lock);
	extent_map_give(&n->map, (uint32_t)(at / POOL_GRANULE), (uint32_t)(bytes / POOL_GRANULE));
	if (shared_pages)
		punch_pages(pool, n, at, bytes);
	pthread_mutex_unlock(&n->lock);
}

// ---- attaching -------------------------------------------------------------------------------------------------------

bool pool_inside(const struct pool *pool, uint64_t offset, uint64_t bytes)
{
	if (!bytes || offset % POOL_GRANULE || offset >= pool->bytes || bytes > pool->part)
		return false;
	uint64_t at = offset % pool->part;
	return at && bytes <= pool->part - at; // at 0 is a superblock
}

static struct node *node_of(struct pool *pool, uint64_t offset, uint64_t bytes)
{
	return bytes % POOL_GRANULE == 0 && pool_inside(pool, offset, bytes) ? &pool->node[offset / pool->part] : NULL;
}

bool pool_claim(struct pool *pool, uint64_t offset, uint64_t bytes)
{
	struct node *n = node_of(pool, offset, bytes);
	if (!n)
		return false;
	uint64_t at = offset - n->offset;
	pthread_mutex_lock(&n->lock);
	bool claimed = extent_map_claim(&n->map, (uint32_t)(at / POOL_GRANULE), (uint32_t)(bytes / POOL_GRANULE));
	pthread_mutex_unlock(&n->lock);
	return claimed;
}

void pool_unclaim(struct pool *pool, uint64_t offset, uint64_t bytes)
{
	struct node *n = node_of(pool, offset, bytes);
	assert(n);
	pthread_mutex_lock(&n->lock);
	extent_map_give(&n->map, (uint32_t)((offset - n->offset) / POOL_GRANULE), (uint32_t)(bytes / POOL_GRANULE));
	pthread_mutex_unlock(&n->lock);
}

bool pool_is_free(struct pool *pool, uint64_t offset, uint64_t bytes)
{
	for (uint64_t end = offset + bytes, n; offset < end; offset += n) {
		struct node *node = &pool->node[offset / pool->part];
		uint64_t at = offset - node->offset;
		n = end - offset < pool->part - at ? end - offset : pool->part - at;
		pthread_mutex_lock(&node->lock);
		bool all = extent_map_all_free(&node->map, (uint32_t)(at / POOL_GRANULE), (uint32_t)(n / POOL_GRANULE));
		pthread_mutex_unlock(&node->lock);
		if (!all)
			return false;
	}
	return true;
}

// Of huge pages in use only the free part is cleared; one without any use may have no memory behind it and is not touched.
static void scrub_pages(const struct pool *pool, const struct node *n, uint64_t at, uint64_t bytes)
{
	uint32_t per_page = (uint32_t)(pool->page / POOL_GRANULE);
	for (uint64_t page = at / pool->page; page <= (at + bytes - 1) / pool->page; page++) {
		uint64_t lo = page * pool->page, begin = at > lo ? at : lo;
		uint64_t end = at + bytes < lo + pool->page ? at + bytes : lo + pool->page;
		if (extent_map_all_free(&n->map, (uint32_t)page * per_page, per_page))
			punch(n, lo, pool->page);
		else
			memset(n->base + begin, 0, end - begin);
	}
}

void pool_scrub(struct pool *pool)
{
	for (uint32_t i = 0; i < pool->nodes; i++) {
		struct node *n = &pool->node[i];
		uint32_t from = 0, first, run;
		pthread_mutex_lock(&n->lock);
		for (; (first = extent_map_free_run(&n->map, from, &run)) != EXTENT_NONE; from = first + run) {
			uint64_t at = (uint64_t)first * POOL_GRANULE, bytes = (uint64_t)run * POOL_GRANULE;
			if (pool->page == POOL_GRANULE)
				punch(n, at, bytes);
			else
				scrub_pages(pool, n, at, bytes);
		}
		pthread_mutex_unlock(&n->lock);
	}
}

// ---- accessors -------------------------------------------------------------------------------------------------------

void *pool_at(const struct pool *pool, uint64_t offset)
{
	return pool->base + offset;
}

struct superblock *pool_superblock(struct pool *pool)
{
	return (struct superblock *)(void *)pool->base;
}

uint64_t pool_bytes(const struct pool *pool)
{
	return pool->bytes;
}

uint64_t pool_used(const struct pool *pool)
{
	uint64_t used = 0;
	for (uint32_t i = 0; i < pool->nodes; i++) {
		struct node *n = (struct node *)&pool->node[i];
		pthread_mutex_lock(&n->lock);
		used += (uint64_t)(n->map.granules - n->map.free) * POOL_GRANULE;
		pthread_mutex_unlock(&n->lock);
	}
	return used;
}

const char *pool_path(const struct pool *pool)
{
	return pool->path;
}

int pool_nodes(const struct pool *pool)
{
	return (int)pool->nodes;
}
