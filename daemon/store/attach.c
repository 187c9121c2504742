// Attaching a pool: from the records alone, what a daemon knows is derived again. In three steps:
//
//   read    every context's records are checked (check.c), and all that a checksum vouches for is claimed in the free map: records,
//           lists, parameters, sealed segments. First of living contexts, then of those quarantined before.
//   claim   open segments change in place and have no checksum. What two of them claim belongs to neither: both are damaged.
//   publish contexts are listed; what cannot be believed any more is marked in the pool; uncommitted rows are given back, as when a
//           writer leaves; what is free is zeroed.
//
// Until `publish` nothing in the pool changes.
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

struct lookup { // of segments and parameters by their offset
	struct {
		uint64_t offset;
		void *object;
	} * entry;
	size_t count, capacity; // a power of two
};

struct attach {
	struct store *s;
	const struct store_attach_options *options;
	struct store_attached *out;
	struct lookup segments, params;
	bool *owned;             // [contexts_max] entries of the context table that lead to a context; the others are cleared
	struct extents conflict; // claimed by more than one open segment
	char why[MPIG_TEXT_BYTES];
	bool no_memory;
};

// ---- objects by offset -----------------------------------------------------------------------------------------------

static size_t lookup_slot(const struct lookup *l, uint64_t offset)
{
	size_t i = (size_t)(offset / POOL_GRANULE * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (l->capacity - 1);
	while (l->entry[i].offset && l->entry[i].offset != offset)
		i = (i + 1) & (l->capacity - 1);
	return i;
}

static void *lookup_find(const struct lookup *l, uint64_t offset)
{
	return l->capacity ? l->entry[lookup_slot(l, offset)].object : NULL;
}

static bool lookup_room(struct lookup *l)
{
	if (2 * l->count < l->capacity)
		return true;
	struct lookup larger = {.count = l->count, .capacity = l->capacity ? 2 * l->capacity : 64};
	larger.entry = calloc(larger.capacity, sizeof *larger.entry);
	if (!larger.entry)
		return false;
	for (size_t i = 0; i < l->capacity; i++)
		if (l->entry[i].offset)
			larger.entry[lookup_slot(&larger, l->entry[i].offset)] = l->entry[i];
	free(l->entry);
	*l = larger;
	return true;
}

static void lookup_add(struct lookup *l, uint64_t offset, void *object)
{
	size_t i = lookup_slot(l, offset);
	l->entry[i].offset = offset;
	l->entry[i].object = object;
	l->count++;
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
static bool claim_segment(struct attach *a, struct segment *seg, struct extent *failed)
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

// ---- reading: parts of a context -------------------------------------------------------------------------------------

__attribute__((format(printf, 3, 4))) static bool damaged(struct attach *a, struct context *c, const char *format, ...)
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

static bool claim_record(struct attach *a, struct context *c, uint64_t offset, uint64_t bytes, const char *what)
{
	if (pool_claim(a->s->pool, offset, bytes)) {
		a->out->extents++;
		return true;
	}
	return damaged(a, c, "its %s at %#" PRIx64 " belongs to another", what, offset);
}

static struct spec *spec_empty(void)
{
	struct spec *spec = calloc(1, sizeof *spec);
	if (spec)
		spec->refs = 1;
	return spec;
}

static bool read_spec(struct attach *a, struct context *c)
{
	uint32_t layers = c->record->layer_count;
	uint64_t offset = c->record->spec_offset, used = sizeof(struct record_header) + layers * sizeof(struct mpig_wire_layer);
	struct record_header *h =
		layers > 0 && layers <= MPIG_MAX_LAYERS ? record_at(a->s->pool, offset, RECORD_SPEC, pool_round(used)) : NULL;
	if (!h || h->checksum != record_checksum(h, used))
		return damaged(a, c, "no valid spec at %#" PRIx64, offset);
	struct spec *spec;
	int status = spec_create((const struct mpig_wire_layer *)(const void *)(h + 1), layers,
	                         &spec, a->why);
	if (status == MPIG_ENOMEM)
		a->no_memory = true;
	if (status)
		return damaged(a, c, "its spec: %.200s", a->why);
	_Atomic uint64_t *rows = calloc(layers, sizeof *rows);
	if (!rows || !claim_record(a, c, offset, spec_bytes(spec), "spec")) {
		a->no_memory |= !rows;
		free(rows);
		spec_unref(spec);
		return false;
	}
	free(c->rows);
	spec_unref(c->spec);
	c->rows = rows;
	c->spec = spec;
	c->spec_offset = offset;
	c->fixed_bytes += spec_bytes(spec);
	return true;
}

static struct params *find_params(struct attach *a, struct context *c, uint64_t offset, uint32_t version)
{
	struct params *p = lookup_find(&a->params, offset);
	uint64_t bytes = c->spec->params_bytes;
	if (p && (p->bytes != bytes || p->version != version)) {
		damaged(a, c, "the parameters at %#" PRIx64 " are of another spec", offset);
		return NULL;
	}
	if (p)
		return p;
	const struct params_record *r = record_at(a->s->pool, offset, RECORD_PARAMS, bytes);
	if (!r || r->version != version || r->strips != c->spec->strips || r->bytes != bytes ||
	    (a->options->verify >= VERIFY_HEADER && r->header.checksum != record_checksum(r, bytes))) {
		damaged(a, c, "no valid parameters at %#" PRIx64, offset);
		return NULL;
	}
	if (!lookup_room(&a->params) || !(p = calloc(1, sizeof *p))) {
		a->no_memory = true;
		return NULL;
	}
	if (!claim_record(a, c, offset, bytes, "parameters")) {
		free(p);
		return NULL;
	}
	*p = (struct params){.offset = offset, .bytes = bytes, .version = version, .charge.bytes = bytes};
	a->s->metadata_bytes += bytes;
	lookup_add(&a->params, offset, p);
	return p;
}

static bool read_params(struct attach *a, struct context *c, const struct context_slot *slot)
{
	if (!slot->params_offset)
		return slot->signature_version == 0 || damaged(a, c, "parameters without an offset");
	struct params *p = find_params(a, c, slot->params_offset, slot->signature_version);
	if (!p)
		return false;
	p->refs++;
	atomic_store(&c->params, p);
	atomic_store(&c->signature_version, p->version);
	return true;
}

// ---- reading: segments -----------------------------------------------------------------------------------------------

static bool same_spec(const struct spec *a, const struct spec *b)
{
	if (a->layer_count != b->layer_count)
		return false;
	for (uint32_t i = 0; i < a->layer_count; i++)
		if (memcmp(&a->layer[i].wire, &b->layer[i].wire, sizeof a->layer[i].wire))
			return false;
	return true;
}

static bool content_good(const struct pool *pool, const struct segment *seg)
{
	struct segment_walk walk = {0};
	while (segment_verify_step(pool, seg, &walk))
		;
	return !walk.damaged;
}

static struct segment *make_segment(struct attach *a, struct context *c, uint64_t offset)
{
	struct segment *seg = lookup_room(&a->segments) ? calloc(1, sizeof *seg) : NULL;
	if (!seg) {
		a->no_memory = true;
		return NULL;
	}
	*seg = (struct segment){.offset = offset, .record = pool_at(a->s->pool, offset), .spec = c->spec};
	atomic_fetch_add(&c->spec->refs, 1);
	return seg;
}

static void free_segment(struct segment *seg)
{
	charge_fini(&seg->charge);
	spec_unref(seg->spec);
	free(seg);
}

// A segment nobody has read yet. Sealed: claimed.
static struct segment *new_segment(struct attach *a, struct context *c, uint32_t i, uint64_t offset)
{
	struct segment *seg = make_segment(a, c, offset);
	struct extent failed;
	if (!seg)
		return NULL;
	if (seg->record->sealed_rows && !claim_segment(a, seg, &failed)) {
		damaged(a, c, "segment %u: %#" PRIx64 " belongs to another", i, failed.offset);
		free_segment(seg);
		return NULL;
	}
	lookup_add(&a->segments, offset, seg);
	seg->damaged = seg->record->sealed_rows && a->options->verify == VERIFY_FULL && !content_good(a->s->pool, seg);
	return seg;
}

static struct segment *find_segment(struct attach *a, struct context *c, uint32_t i, uint64_t offset, uint32_t rows)
{
	const struct params *p = atomic_load(&c->params);
	struct segment *seg = lookup_find(&a->segments, offset);
	struct segment_use use = {a->s->pool, c->spec, offset, p ? p->offset : 0, rows, a->options->table_bytes};
	if (seg && (!seg->record->sealed_rows || !same_spec(seg->spec, c->spec))) {
		damaged(a, c, "segment %u at %#" PRIx64 " belongs to another", i, offset);
		return NULL;
	}
	if (!segment_check(&use, a->why)) {
		damaged(a, c, "segment %u at %#" PRIx64 ": %.180s", i, offset, a->why);
		return NULL;
	}
	if (!seg)
		seg = new_segment(a, c, i, offset);
	if (seg && seg->damaged)
		damaged(a, c, "segment %u at %#" PRIx64 ": its rows or its index do not have their checksum", i, offset);
	return seg;
}

static struct segment_list_record *find_list(struct attach *a, struct context *c, const struct context_slot *slot)
{
	struct segment_list_record *list =
		pool_inside(a->s->pool, slot->segments_offset, sizeof *list) ? pool_at(a->s->pool, slot->segments_offset) : NULL;
	uint64_t bytes = list ? sizeof *list + (uint64_t)list->count * sizeof(struct segment_ref) : 0;
	if (!list || !record_at(a->s->pool, slot->segments_offset, RECORD_SEGMENT_LIST, list_bytes(list->count)) ||
	    list->header.checksum != record_checksum(list, bytes) || slot->segment_count > list->count || !slot->segment_count) {
		damaged(a, c, "no valid list of segments at %#" PRIx64, slot->segments_offset);
		return NULL;
	}
	return claim_record(a, c, slot->segments_offset, list_bytes(list->count), "segment list") ? list : NULL;
}

// Committed tokens in ref i; false: they do not fit a segment.
static bool ref_use(const struct segment_ref *ref, uint32_t i, uint32_t count, uint64_t committed, uint32_t *rows)
{
	uint64_t end = i + 1 < count ? ref[i + 1].first : UINT64_MAX, used;
	if ((i == 0 && ref[0].first) || end <= ref[i].first)
		return false;
	end = end < committed ? end : committed;
	used = end > ref[i].first ? end - ref[i].first : 0;
	*rows = (uint32_t)used;
	return used <= SEGMENT_MAX_ROWS;
}

// A quarantined context keeps the segments that are good, so that their memory is not handed out.
static bool read_segments(struct attach *a, struct context *c, const struct context_slot *slot, uint64_t committed)
{
	if (!slot->segments_offset)
		return (!slot->segment_count && !committed) || damaged(a, c, "%" PRIu64 " tokens without segments", committed);
	struct segment_list_record *list = find_list(a, c, slot);
	if (!list)
		return false;
	struct snapshot *snap = snapshot_new(slot->segment_count);
	if (!snap) {
		a->no_memory = true;
		return false;
	}
	snap->count = 0;
	snap->list_offset = slot->segments_offset;
	snap->list_bytes = list_bytes(list->count);
	free(atomic_load(&c->snapshot));
	atomic_store(&c->snapshot, snap);
	const struct segment_ref *ref = list_refs(list);
	for (uint32_t i = 0; i < slot->segment_count; i++) {
		uint32_t rows;
		if (!ref_use(ref, i, slot->segment_count, committed, &rows)) {
			damaged(a, c, "segment %u: tokens %" PRIu64 " on do not fit", i, ref[i].first);
			continue;
		}
		struct segment *seg = find_segment(a, c, i, ref[i].segment_offset, rows);
		if (!seg)
			continue;
		seg->refs++;
		snap->ref[snap->count++] = (struct ref){seg, ref[i].first};
	}
	return !c->damage;
}

// ---- reading: a context ----------------------------------------------------------------------------------------------

static struct context *make_context(struct attach *a, uint32_t table_slot, uint64_t offset)
{
	struct context *c = aligned_alloc(_Alignof(struct context), sizeof *c);
	struct snapshot *snap = snapshot_new(0);
	struct spec *spec = spec_empty();
	if (!c || !snap || !spec) {
		free(c);
		free(snap);
		free(spec);
		a->no_memory = true;
		return NULL;
	}
	memset(c, 0, sizeof *c);
	c->store = a->s;
	c->refs = 1;
	c->spec = spec;
	c->offset = offset;
	c->record = pool_at(a->s->pool, offset);
	c->table_slot = table_slot;
	c->fixed_bytes = pool_round(sizeof(struct context_record));
	c->identity = (struct identity){.mode = 0600}; // root's, until its slot says otherwise
	c->used_ns = store_now(a->s);
	snprintf(c->name, sizeof c->name, "damaged.%u", table_slot);
	atomic_init(&c->snapshot, snap);
	return c;
}

static const struct context_record *valid_record(const struct attach *a, uint64_t offset)
{
	const struct context_record *r = record_at(a->s->pool, offset, RECORD_CONTEXT, pool_round(sizeof *r));
	return r && r->header.checksum == record_checksum(r, offsetof(struct context_record, state)) ? r : NULL;
}

static void read_identity(struct attach *a, struct context *c)
{
	const struct context_record *r = c->record;
	c->id = r->id;
	c->parent_id = r->parent_id;
	c->fork_tokens = r->fork_tokens;
	c->created_ns = r->created_ns;
	c->seed = r->seed;
	memcpy(c->fingerprint, r->fingerprint, sizeof c->fingerprint);
	if (name_valid(r->name, "name", a->why))
		damaged(a, c, "its record: %.200s", a->why);
	else
		strcpy(c->name, r->name);
}

static void read_context(struct attach *a, struct context *c)
{
	uint64_t committed = c->record->committed, state = c->record->state;
	read_identity(a, c);
	if (state != CONTEXT_LIVE)
		damaged(a, c, state == CONTEXT_QUARANTINED ? "found damaged at an earlier start" : "its state is %" PRIu64,
		        state);
	const struct context_slot *slot = slot_newest(c->record);
	if (!slot) {
		damaged(a, c, "neither of its slots is valid");
		return;
	}
	c->identity = (struct identity){slot->uid, slot->gid, slot->mode};
	if (committed > MPIG_MAX_TOKENS) {
		damaged(a, c, "%" PRIu64 " tokens are more than a context can hold", committed);
		committed = 0;
	}
	if (read_spec(a, c) && read_params(a, c, slot))
		read_segments(a, c, slot, committed);
	if (!c->damage)
		atomic_store(&c->committed, committed);
}

static void link_name(struct attach *a, struct context *c)
{
	if (name_find(a->s, c->name)) {
		damaged(a, c, "another context is named '%.100s' too", c->name);
		snprintf(c->name, sizeof c->name, "damaged.%u", c->table_slot);
	}
	struct context **chain = &a->s->by_name[name_bucket(c->name)];
	c->name_next = *chain;
	*chain = c;
	a->s->prefix.late = true;
}

static void forget_entry(struct attach *a, uint32_t slot, uint64_t offset)
{
	char text[MPIG_TEXT_BYTES];
	snprintf(text, sizeof text, "entry %u of the context table led to %#" PRIx64 ", where no context of its own is: cleared",
	         slot, offset);
	a->out->lost++;
	if (a->options->warn)
		a->options->warn(a->options->arg, text);
}

enum turn { TURN_LIVE, TURN_QUARANTINED, TURN_UNREADABLE };

static enum turn turn_of(const struct context_record *r)
{
	return !r ? TURN_UNREADABLE : r->state == CONTEXT_QUARANTINED ? TURN_QUARANTINED : TURN_LIVE;
}

static void read_entry(struct attach *a, uint32_t slot, uint64_t offset, enum turn turn)
{
	const struct context_record *r = valid_record(a, offset);
	if ((r && r->state == CONTEXT_DROPPED) || turn_of(r) != turn)
		return;
	if (!pool_claim(a->s->pool, offset, pool_round(sizeof *r))) {
		forget_entry(a, slot, offset);
		return;
	}
	a->out->extents++;
	struct context *c = make_context(a, slot, offset);
	if (!c)
		return;
	a->owned[slot] = true;
	a->s->context[a->s->count++] = c;
	if (r)
		read_context(a, c);
	else
		damaged(a, c, "its record at %#" PRIx64 " is not valid", offset);
	link_name(a, c);
}

static void read_all(struct attach *a, enum turn turn)
{
	const struct superblock *sb = pool_superblock(a->s->pool);
	const uint64_t *table = pool_at(a->s->pool, sb->contexts_offset);
	for (uint32_t i = 0; i < sb->contexts_max && !a->no_memory; i++)
		if (table[i])
			read_entry(a, i, table[i], turn);
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
		a->segments.entry[lookup_slot(&a->segments, seg->offset)].object = NULL;
		free_segment(seg);
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
		if (claim_segment(a, seg, &failed)) {
			claimed++;
			continue;
		}
		damaged(a, c, "segment %u: %#" PRIx64 " belongs to another", i, failed.offset);
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
	damaged(a, c, "%#" PRIx64 " is claimed by another too", meet.at);
	drop_open_segments(a, c, UINT32_MAX);
}

// Contexts read after the living ones keep what is sealed only.
static void claim_all(struct attach *a)
{
	struct store *s = a->s;
	for (size_t i = 0; i < s->count && !a->no_memory; i++)
		claim_open(a, s->context[i]);
	for (size_t i = 0; i < s->count && !a->no_memory; i++)
		check_conflicts(a, s->context[i]);
	size_t living = s->count;
	read_all(a, TURN_QUARANTINED);
	read_all(a, TURN_UNREADABLE);
	for (size_t i = living; i < s->count && !a->no_memory; i++)
		drop_open_segments(a, s->context[i], 0);
}

// ---- charges and the catalogue ---------------------------------------------------------------------------------------

static int by_id(const void *x, const void *y)
{
	const struct context *a = *(struct context *const *)x, *b = *(struct context *const *)y;
	return a->id < b->id ? -1 : a->id > b->id;
}

// Not while reading: a segment's bytes are known when all its extents are claimed.
static int charge_context(struct store *s, struct context *c)
{
	uint32_t uid = c->identity.uid;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct params *p = atomic_load(&c->params);
	if (account_open(s, uid) || (p && charge_reference(s, &p->charge, uid)))
		return MPIG_ENOMEM;
	for (uint32_t i = 0; i < snap->count; i++) {
		struct segment *seg = snap->ref[i].segment;
		if (!seg->charge.count)
			s->metadata_bytes += seg->metadata_bytes;
		seg->charge.bytes = segment_bytes(seg);
		if (charge_reference(s, &seg->charge, uid))
			return MPIG_ENOMEM;
	}
	account_add(s, uid, context_own_bytes(c));
	account_contexts(s, uid, 1);
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
	if (valid_record(a, c->offset) && c->record->state != CONTEXT_QUARANTINED)
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

static void publish(struct attach *a)
{
	struct store *s = a->s;
	store_lock(s);
	publish_table(a);
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
		read_all(&a, TURN_LIVE);
		claim_all(&a);
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
