#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

static void snapshot_destroy(struct store *s, struct garbage *g)
{
	struct snapshot *snap = (struct snapshot *)g;
	if (snap->free_list && snap->list_offset)
		pool_free(s->pool, snap->list_offset, snap->list_bytes);
	free(snap);
}

static void snapshot_settle(struct store *s, struct garbage *g)
{
	struct snapshot *snap = (struct snapshot *)g;
	for (uint32_t i = snap->keep; i < snap->count; i++)
		segment_put(s, snap->ref[i].segment);
	store_bury(s, g);
}

struct snapshot *snapshot_new(uint32_t count)
{
	struct snapshot *snap = calloc(1, sizeof *snap + (size_t)count * sizeof snap->ref[0]);
	if (!snap)
		return NULL;
	snap->garbage.settle = snapshot_settle;
	snap->garbage.destroy = snapshot_destroy;
	snap->count = count;
	return snap;
}

// keep: refs of the old snapshot that the new one takes over; the owner is no longer charged for the others.
void snapshot_install(struct store *s, struct context *c, struct snapshot *next, uint32_t keep)
{
	struct snapshot *old = atomic_load(&c->snapshot);
	old->keep = keep;
	old->free_list = old->list_offset != next->list_offset;
	if (old->free_list && old->list_bytes) {
		account_sub(s, &c->identity, old->list_bytes);
		s->metadata_bytes -= old->list_bytes;
	}
	for (uint32_t i = keep; i < old->count; i++)
		charge_release(s, &old->ref[i].segment->charge, &c->identity);
	atomic_store(&c->snapshot, next);
	context_retire(s, c, &old->garbage);
}

uint32_t snapshot_find(const struct snapshot *snap, uint64_t token)
{
	uint32_t lo = 0, hi = snap->count; // refs below lo begin at or before token, those from hi on after it
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		if (snap->ref[mid].first <= token)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo ? lo - 1 : UINT32_MAX;
}

// The list record of a snapshot, into an extent nobody reaches yet.
void fill_list(struct store *s, uint64_t offset, const struct snapshot *snap)
{
	struct segment_list_record *list = pool_at(s->pool, offset);
	record_init(&list->header, RECORD_SEGMENT_LIST, list_bytes(snap->count));
	list->count = snap->count;
	for (uint32_t i = 0; i < snap->count; i++) {
		const struct ref *r = &snap->ref[i];
		bool last = i + 1 == snap->count;
		list_refs(list)[i] = (struct segment_ref){
			.segment_offset = r->segment->offset,
			.first = r->first,
			.length = last ? SEGMENT_OPEN : (uint32_t)(snap->ref[i + 1].first - r->first),
		};
	}
	list->header.checksum = record_checksum(list, sizeof *list + snap->count * sizeof(struct segment_ref));
}

void slot_fill(const struct context *c, const struct snapshot *snap, struct context_slot *slot)
{
	const struct params *p = atomic_load(&c->params);
	*slot = (struct context_slot){
		.segments_offset = snap->list_offset,
		.params_offset = p ? p->offset : 0,
		.segment_count = snap->count,
		.signature_version = p ? p->version : 0,
		.uid = c->identity.uid,
		.gid = c->identity.gid,
		.mode = c->identity.mode,
		.policy = c->policy,
	};
}
