// Attaching: what is whose in the free map, and the second step, the claims of open segments.
#include "daemon/store/attach.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool attach_damaged(struct attach *a, struct context *c, const char *format, ...)
{
	char text[MPIG_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (!c->damage && !(c->damage = strdup(text)))
		a->no_memory = true;
	return false;
}

// ---- claiming --------------------------------------------------------------------------------------------------------

struct claim_sink {
	struct extent_sink sink;
	struct attach *a;
	struct segment *segment;
	uint64_t done; // extents claimed
	struct extent failed;
};

static void claim_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct claim_sink *c = (struct claim_sink *)sink;
	struct segment *seg = c->segment;
	if (c->failed.bytes)
		return;
	if (!pool_claim(c->a->s->pool, offset, bytes)) {
		c->failed = (struct extent){.offset = offset, .bytes = bytes};
		return;
	}
	*(use == USE_ROWS ? &seg->rows_bytes : use == USE_INDEX ? &seg->index_bytes : &seg->metadata_bytes) += bytes;
	c->done++;
}

static void unclaim_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct claim_sink *c = (struct claim_sink *)sink;
	(void)use;
	if (c->done) {
		pool_unclaim(c->a->s->pool, offset, bytes);
		c->done--;
	}
}

static void unclaim_segment(struct attach *a, struct segment *seg, uint64_t extents)
{
	struct claim_sink undo = {.sink = {unclaim_put}, .a = a, .segment = seg, .done = extents};
	segment_extents(a->s->pool, seg, &undo.sink);
	seg->rows_bytes = seg->index_bytes = seg->metadata_bytes = 0;
}

// All of a checked segment's extents, or none. `failed`: the first that could not be had.
bool attach_claim_segment(struct attach *a, struct segment *seg, struct extent *failed)
{
	struct claim_sink claim = {.sink = {claim_put}, .a = a, .segment = seg};
	segment_extents(a->s->pool, seg, &claim.sink);
	if (!claim.failed.bytes) {
		a->out->extents += claim.done;
		return true;
	}
	unclaim_segment(a, seg, claim.done);
	*failed = claim.failed;
	return false;
}

bool attach_claim_record(struct attach *a, struct context *c, uint64_t offset, uint64_t bytes, const char *what)
{
	if (pool_claim(a->s->pool, offset, bytes)) {
		a->out->extents++;
		return true;
	}
	return attach_damaged(a, c, "its %s at %#" PRIx64 " belongs to another", what, offset);
}

// ---- claiming open segments ------------------------------------------------------------------------------------------

static void drop_open_segments(struct attach *a, struct context *c, uint32_t claimed)
{
	struct snapshot *snap = atomic_load(&c->snapshot);
	uint32_t kept = 0, open = 0;
	for (uint32_t i = 0; i < snap->count; i++) {
		struct segment *seg = snap->ref[i].segment;
		if (seg->record->sealed_rows) {
			snap->ref[kept++] = snap->ref[i];
			continue;
		}
		if (open++ < claimed)
			unclaim_segment(a, seg, UINT64_MAX);
		attach_forget_segment(a, seg);
	}
	snap->count = kept;
}

static void claim_open(struct attach *a, struct context *c)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	uint32_t claimed = 0;
	struct extent failed = {0};
	for (uint32_t i = 0; i < snap->count && !c->damage; i++) {
		struct segment *seg = snap->ref[i].segment;
		if (seg->record->sealed_rows)
			continue;
		if (attach_claim_segment(a, seg, &failed)) {
			claimed++;
			continue;
		}
		attach_damaged(a, c, "segment %u: %#" PRIx64 " belongs to another", i, failed.offset);
		if (extents_want(&a->conflict, failed.bytes, 0))
			a->no_memory = true;
		else
			a->conflict.item[a->conflict.count - 1].offset = failed.offset;
	}
	if (c->damage)
		drop_open_segments(a, c, claimed);
}

struct meet_sink {
	struct extent_sink sink;
	const struct extents *conflict;
	uint64_t at; // 0: none
};
static void meet_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct meet_sink *m = (struct meet_sink *)sink;
	(void)use;
	for (size_t i = 0; i < m->conflict->count; i++) {
		const struct extent *e = &m->conflict->item[i];
		if (offset < e->offset + e->bytes && e->offset < offset + bytes)
			m->at = e->offset;
	}
}

// The other side of a conflict: which of the two is right cannot be told.
static void check_conflicts(struct attach *a, struct context *c)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct meet_sink meet = {.sink = {meet_put}, .conflict = &a->conflict};
	for (uint32_t i = 0; i < snap->count && !c->damage && a->conflict.count; i++)
		if (!snap->ref[i].segment->record->sealed_rows)
			segment_extents(a->s->pool, snap->ref[i].segment, &meet.sink);
	if (!meet.at)
		return;
	attach_damaged(a, c, "%#" PRIx64 " is claimed by another too", meet.at);
	drop_open_segments(a, c, UINT32_MAX);
}

// Contexts read after the living ones keep what is sealed only.
void attach_claim_all(struct attach *a)
{
	struct store *s = a->s;
	for (size_t i = 0; i < s->count && !a->no_memory; i++)
		claim_open(a, s->context[i]);
	for (size_t i = 0; i < s->count && !a->no_memory; i++)
		check_conflicts(a, s->context[i]);
	size_t living = s->count;
	attach_read_all(a, TURN_QUARANTINED);
	attach_read_all(a, TURN_UNREADABLE);
	for (size_t i = living; i < s->count && !a->no_memory; i++)
		drop_open_segments(a, s->context[i], 0);
}
