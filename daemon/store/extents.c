#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "daemon/store/internal.h"

int extents_want(struct extents *x, uint64_t bytes, int node)
{
	if (x->count == x->capacity) {
		size_t capacity = x->capacity ? 2 * x->capacity : 32;
		struct extent *item = realloc(x->item, capacity * sizeof *item);
		if (!item)
			return MPIG_ENOMEM;
		x->item = item;
		x->capacity = capacity;
	}
	x->item[x->count++] = (struct extent){.bytes = pool_round(bytes), .node = node};
	return 0;
}

uint64_t extents_total(const struct extents *x)
{
	uint64_t total = 0;
	for (size_t i = 0; i < x->count; i++)
		total += x->item[i].bytes;
	return total;
}

int extents_alloc(struct store *s, struct extents *x, char *why)
{
	for (size_t i = 0; i < x->count; i++) {
		x->item[i].offset = pool_alloc(s->pool, x->item[i].bytes, x->item[i].node);
		if (x->item[i].offset)
			continue;
		uint64_t total = extents_total(x), used = pool_used(s->pool);
		for (size_t k = 0; k < i; k++)
			pool_free(s->pool, x->item[k].offset, x->item[k].bytes);
		return refuse(why, MPIG_ENOSPC,
		              "the pool is full: %" PRIu64 " KiB wanted, %" PRIu64 " of %" PRIu64
		              " MiB in use; drop contexts, or give the daemon a larger pool",
		              total >> 10, used >> 20, pool_bytes(s->pool) >> 20);
	}
	return 0;
}

uint64_t extents_next(struct extents *x)
{
	assert(x->cursor < x->count);
	return x->item[x->cursor++].offset;
}

void extents_give(struct store *s, struct extents *x)
{
	for (size_t i = 0; i < x->count; i++)
		if (x->item[i].offset)
			pool_free(s->pool, x->item[i].offset, x->item[i].bytes);
	extents_fini(x);
}

void extents_fini(struct extents *x)
{
	free(x->item);
	*x = (struct extents){0};
}

static void trash_destroy(struct store *s, struct garbage *g)
{
	struct trash *t = (struct trash *)g;
	extents_give(s, &t->list);
	free(t);
}

struct trash *trash_new(size_t capacity)
{
	struct trash *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	t->garbage.settle = store_bury;
	t->garbage.destroy = trash_destroy;
	t->list.item = malloc((capacity ? capacity : 1) * sizeof *t->list.item);
	t->list.capacity = capacity;
	if (!t->list.item) {
		free(t);
		return NULL;
	}
	return t;
}

void trash_add(struct trash *t, uint64_t offset, uint64_t bytes)
{
	assert(t->list.count < t->list.capacity);
	t->list.item[t->list.count++] = (struct extent){.offset = offset, .bytes = bytes};
}
