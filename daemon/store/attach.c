// Attaching a pool: from the records alone, what a daemon knows is derived again. In three steps:
//
//   read    every context's records are checked (check.c), and all that a checksum vouches for is claimed in the free map: records,
//           lists, parameters, sealed segments. First of living contexts, then of those quarantined before.
//   claim   open segments change in place and have no checksum. What two of them claim belongs to neither: both are damaged.
//   publish contexts are listed; what cannot be believed any more is marked in the pool; uncommitted rows are given back, as when a
//           writer leaves; what is free is zeroed.
//
// Until `publish` nothing in the pool changes.
#include "daemon/store/attach.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- charges and the catalogue ---------------------------------------------------------------------------------------

static int by_id(const void *x, const void *y)
{
	const struct context *a = *(struct context *const *)x, *b = *(struct context *const *)y;
	return a->id < b->id ? -1 : a->id > b->id;
}

// Not while reading: a segment's bytes are known when all its extents are claimed.
static int charge_context(struct store *s, struct context *c)
{
	const struct identity *owner = &c->identity;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct params *p = atomic_load(&c->params);
	if (account_open(s, owner) || (p && charge_reference(s, &p->charge, owner)))
		return MPIG_ENOMEM;
	for (uint32_t i = 0; i < snap->count; i++) {
		struct segment *seg = snap->ref[i].segment;
		if (!seg->charge.count)
			s->metadata_bytes += seg->metadata_bytes;
		seg->charge.bytes = segment_bytes(seg);
		if (charge_reference(s, &seg->charge, owner))
			return MPIG_ENOMEM;
	}
	account_add(s, owner, context_own_bytes(c));
	account_contexts(s, owner, 1);
	s->metadata_bytes += context_own_bytes(c);
	return 0;
}

// Contexts whose records cannot be read get new ids.
static int catalogue(struct attach *a)
{
	struct store *s = a->s;
	for (size_t i = 0; i < s->count; i++) {
		const struct context *c = s->context[i];
		uint64_t last = c->id > c->parent_id ? c->id : c->parent_id;
		s->next_id = last >= s->next_id && last < UINT64_MAX / 2 ? last + 1 : s->next_id;
	}
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		if (!c->id || c->id >= s->next_id)
			c->id = s->next_id++;
		if (charge_context(s, c))
			return MPIG_ENOMEM;
	}
	qsort(s->context, s->count, sizeof(struct context *), by_id);
	return 0;
}

// ---- publishing ------------------------------------------------------------------------------------------------------

static void publish_table(struct attach *a)
{
	const struct superblock *sb = pool_superblock(a->s->pool);
	uint64_t *table = pool_at(a->s->pool, sb->contexts_offset);
	for (uint32_t i = 0; i < sb->contexts_max; i++)
		if (table[i] && !a->owned[i])
			pool_publish_word(a->s->pool, &table[i], 0);
}

// A seal that was cut off may have left sums and tables; whoever seals the segment next need not make his own.
static void publish_open(struct pool *pool, const struct segment *seg)
{
	struct segment_record *r = seg->record;
	struct generation_record *g = segment_generation(pool, seg);
	if (g && g->table_rows)
		pool_publish_word32(pool, &g->table_rows, 0);
	if (g && g->upper_rows)
		pool_publish_word32(pool, &g->upper_rows, 0);
	if (g && g->header.checksum)
		pool_publish_word(pool, &g->header.checksum, 0);
	for (uint32_t b = 0; b < r->block_count; b++) {
		struct block_record *block = pool_at(pool, r->block[b].offset);
		struct code_block_record *cb = g && g->code_block[b] ? pool_at(pool, g->code_block[b]) : NULL;
		if (block->header.checksum)
			pool_publish_word(pool, &block->header.checksum, 0);
		if (cb && cb->header.checksum)
			pool_publish_word(pool, &cb->header.checksum, 0);
	}
}

static void publish_damaged(struct attach *a, struct context *c)
{
	char text[MPIG_TEXT_BYTES];
	a->out->quarantined++;
	snprintf(text, sizeof text, "context '%.100s' is quarantined: %.120s", c->name, c->damage);
	if (a->options->warn)
		a->options->warn(a->options->arg, text);
	if (attach_valid_record(a, c->offset) && c->record->state != CONTEXT_QUARANTINED)
		pool_publish_word(a->s->pool, &c->record->state, CONTEXT_QUARANTINED);
}

static void publish_context(struct attach *a, struct context *c)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; i < snap->count; i++)
		if (!snap->ref[i].segment->record->sealed_rows)
			publish_open(a->s->pool, snap->ref[i].segment);
	context_forget(a->s, c);
	a->out->contexts++;
	a->out->tokens += context_committed(c);
	a->out->segments += atomic_load(&c->snapshot)->count;
}

// Generations that a switch which never came, or one that had come, left behind: no context has their parameters.
static void drop_strays(struct attach *a, const struct context *c)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; i < snap->count; i++) {
		struct segment *seg = snap->ref[i].segment;
		for (uint32_t slot = 0; slot < GENERATIONS; slot++) {
			const struct segment_record *r = seg->record;
			if (r->sealed_rows && r->generation[slot].offset && !attach_has_params(a, r->generation[slot].params))
				generation_drop(a->s, seg, slot, NULL);
		}
	}
}

static void publish(struct attach *a)
{
	struct store *s = a->s;
	store_lock(s);
	publish_table(a);
	for (size_t i = 0; i < s->count; i++)
		drop_strays(a, s->context[i]);
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		if (c->damage)
			publish_damaged(a, c);
		else
			publish_context(a, c);
	}
	store_unlock(s);
	pool_scrub(s->pool);
}

// ---- all of it -------------------------------------------------------------------------------------------------------

static int prepare(struct attach *a)
{
	const struct superblock *sb = pool_superblock(a->s->pool);
	const uint64_t *table = pool_at(a->s->pool, sb->contexts_offset);
	size_t entries = 1;
	for (uint32_t i = 0; i < sb->contexts_max; i++)
		entries += table[i] != 0;
	a->owned = calloc(sb->contexts_max, sizeof *a->owned);
	a->s->context = calloc(entries, sizeof(struct context *));
	a->s->capacity = entries;
	return a->owned && a->s->context ? 0 : MPIG_ENOMEM;
}

int store_attach(const struct store_options *options, const struct store_attach_options *attach, struct store **out,
                 struct store_attached *attached)
{
	struct store_attached result = {0};
	struct attach a = {.options = attach, .out = &result, .s = store_new(options)};
	if (!a.s)
		return MPIG_ENOMEM;
	int status = prepare(&a);
	if (!status) {
		attach_read_all(&a, TURN_LIVE);
		attach_claim_all(&a);
		status = a.no_memory ? MPIG_ENOMEM : catalogue(&a);
	}
	if (!status)
		publish(&a);
	free(a.owned);
	free(a.segments.entry);
	free(a.params.entry);
	extents_fini(&a.conflict);
	if (status) {
		store_destroy(a.s);
		return status;
	}
	*out = a.s;
	*attached = result;
	return 0;
}
