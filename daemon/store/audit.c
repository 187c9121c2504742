// The free map against the catalogue: a second map is filled from what contexts reach and compared with the pool's books.
#include <inttypes.h>
#include <stdlib.h>

#include "daemon/store/alloc.h"
#include "daemon/store/internal.h"

struct audit {
	struct extent_sink sink;
	struct store *s;
	struct extent_map map; // of the whole pool
	struct extent twice;
	uint64_t bytes;
};

static void take(struct audit *a, uint64_t offset, uint64_t bytes)
{
	bytes = pool_round(bytes);
	bool granules = offset % POOL_GRANULE == 0 && offset / POOL_GRANULE < UINT32_MAX;
	if (!granules || !extent_map_claim(&a->map, (uint32_t)(offset / POOL_GRANULE), (uint32_t)(bytes / POOL_GRANULE)))
		a->twice = (struct extent){.offset = offset, .bytes = bytes};
	a->bytes += bytes;
}

static void take_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	(void)use;
	take((struct audit *)sink, offset, bytes);
}

// Objects that contexts share, as addresses to be sorted; those of parameters have bit 0 set.
static int ascending(const void *x, const void *y)
{
	uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
	return a < b ? -1 : a > b;
}

static size_t list_shared(const struct store *s, uint64_t *out)
{
	size_t n = 0;
	for (size_t i = 0; i < s->count; i++) {
		const struct snapshot *snap = atomic_load(&s->context[i]->snapshot);
		const struct params *p = atomic_load(&s->context[i]->params);
		if (p) {
			if (out)
				out[n] = (uint64_t)(uintptr_t)p | 1;
			n++;
		}
		for (uint32_t k = 0; k < snap->count; k++, n++)
			if (out)
				out[n] = (uint64_t)(uintptr_t)snap->ref[k].segment;
	}
	return n;
}

static void take_shared(struct audit *a, const uint64_t *object, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (i && object[i] == object[i - 1])
			continue;
		if (object[i] & 1) {
			const struct params *p = (const struct params *)(uintptr_t)(object[i] & ~UINT64_C(1));
			take(a, p->offset, p->bytes);
		} else {
			segment_extents(a->s->pool, (const struct segment *)(uintptr_t)object[i], &a->sink);
		}
	}
}

static void take_own(struct audit *a)
{
	const struct superblock *sb = pool_superblock(a->s->pool);
	for (uint32_t i = 0; i < sb->node_count; i++)
		take(a, i * (sb->pool_bytes / sb->node_count), POOL_GRANULE);
	take(a, sb->contexts_offset, sb->contexts_max * sizeof(uint64_t));
	for (size_t i = 0; i < a->s->count; i++) {
		const struct context *c = a->s->context[i];
		const struct snapshot *snap = atomic_load(&c->snapshot);
		take(a, c->offset, sizeof(struct context_record));
		if (c->spec_offset)
			take(a, c->spec_offset, spec_bytes(c->spec));
		if (snap->list_offset)
			take(a, snap->list_offset, snap->list_bytes);
	}
}

static int compare(const struct audit *a, char *why)
{
	uint64_t used = pool_used(a->s->pool);
	if (a->twice.bytes)
		return refuse(why, MPIG_ECORRUPT, "%" PRIu64 " bytes at %#" PRIx64 " have two owners or lie outside the pool",
		              a->twice.bytes, a->twice.offset);
	if (a->bytes != used)
		return refuse(why, MPIG_ECORRUPT, "contexts reach %" PRIu64 " bytes, the free map has %" PRIu64 " in use",
		              a->bytes, used);
	for (uint32_t at = 0, n; (at = extent_map_free_run(&a->map, at, &n)) != EXTENT_NONE; at += n)
		if (!pool_is_free(a->s->pool, (uint64_t)at * POOL_GRANULE, (uint64_t)n * POOL_GRANULE))
			return refuse(why, MPIG_ECORRUPT,
			              "some of %" PRIu64 " bytes at %#" PRIx64 " are in use, and nobody reaches them",
			              (uint64_t)n * POOL_GRANULE, (uint64_t)at * POOL_GRANULE);
	return 0;
}

int store_audit(struct store *s, char *why)
{
	struct audit a = {.sink = {take_put}, .s = s};
	uint64_t granules = pool_bytes(s->pool) / POOL_GRANULE;
	if (granules > UINT32_MAX || extent_map_init(&a.map, (uint32_t)granules))
		return refuse(why, MPIG_ENOMEM, "no memory for an audit");
	store_lock(s);
	size_t count = list_shared(s, NULL);
	uint64_t *object = malloc((count + 1) * sizeof *object);
	int status = object ? 0 : refuse(why, MPIG_ENOMEM, "no memory for an audit");
	if (object) {
		list_shared(s, object);
		qsort(object, count, sizeof *object, ascending);
		take_own(&a);
		take_shared(&a, object, count);
		status = compare(&a, why);
	}
	store_unlock(s);
	free(object);
	extent_map_fini(&a.map);
	return status;
}
