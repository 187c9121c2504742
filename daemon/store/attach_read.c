// Attaching, first step: records are checked and become contexts, segments and parameters.
#include "daemon/store/attach.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

// ---- reading: parts of a context -------------------------------------------------------------------------------------

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
		return attach_damaged(a, c, "no valid spec at %#" PRIx64, offset);
	struct spec *spec;
	int status = spec_create((const struct mpig_wire_layer *)(const void *)(h + 1), layers, &spec, a->why);
	if (status == MPIG_ENOMEM)
		a->no_memory = true;
	if (status)
		return attach_damaged(a, c, "its spec: %.200s", a->why);
	_Atomic uint64_t *rows = calloc(layers, sizeof *rows);
	if (!rows || !attach_claim_record(a, c, offset, spec_bytes(spec), "spec")) {
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
		attach_damaged(a, c, "the parameters at %#" PRIx64 " are of another spec", offset);
		return NULL;
	}
	if (p)
		return p;
	struct params_record *r = record_at(a->s->pool, offset, RECORD_PARAMS, bytes);
	if (!r || r->version != version || r->strips != c->spec->strips || r->bytes != bytes ||
	    !params_bits_good(c->spec, params_bits(r)) ||
	    (a->options->verify >= VERIFY_HEADER && r->header.checksum != record_checksum(r, bytes))) {
		attach_damaged(a, c, "no valid parameters at %#" PRIx64, offset);
		return NULL;
	}
	if (!lookup_room(&a->params) || !(p = calloc(1, sizeof *p))) {
		a->no_memory = true;
		return NULL;
	}
	if (!attach_claim_record(a, c, offset, bytes, "parameters")) {
		free(p);
		return NULL;
	}
	*p = (struct params){.offset = offset, .bytes = bytes, .version = version, .charge.bytes = bytes};
	a->s->metadata_bytes += bytes;
	lookup_add(&a->params, offset, p);
	return p;
}

bool attach_has_params(const struct attach *a, uint64_t offset)
{
	return lookup_find(&a->params, offset) != NULL;
}

static bool read_params(struct attach *a, struct context *c, const struct context_slot *slot)
{
	if (!slot->params_offset)
		return slot->signature_version == 0 || attach_damaged(a, c, "parameters without an offset");
	struct params *p = find_params(a, c, slot->params_offset, slot->signature_version);
	if (!p)
		return false;
	p->refs++;
	atomic_store(&c->params, p);
	atomic_store(&c->signature_version, p->version);
	return true;
}

// ---- reading: segments -----------------------------------------------------------------------------------------------

static bool content_good(const struct store *s, const struct segment *seg)
{
	struct segment_walk walk = {0};
	while (segment_verify_step(s, seg, &walk))
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

void attach_forget_segment(struct attach *a, struct segment *seg)
{
	a->segments.entry[lookup_slot(&a->segments, seg->offset)].object = NULL;
	segment_free(seg);
}

// A segment nobody has read yet. Sealed: claimed.
static struct segment *new_segment(struct attach *a, struct context *c, uint32_t i, uint64_t offset)
{
	struct segment *seg = make_segment(a, c, offset);
	struct extent failed;
	if (!seg)
		return NULL;
	if (seg->record->sealed_rows && !attach_claim_segment(a, seg, &failed)) {
		attach_damaged(a, c, "segment %u: %#" PRIx64 " belongs to another", i, failed.offset);
		segment_free(seg);
		return NULL;
	}
	lookup_add(&a->segments, offset, seg);
	seg->damaged = seg->record->sealed_rows && a->options->verify == VERIFY_FULL && !content_good(a->s, seg);
	return seg;
}

static struct segment *find_segment(struct attach *a, struct context *c, uint32_t i, uint64_t offset, uint32_t rows)
{
	const struct params *p = atomic_load(&c->params);
	struct segment *seg = lookup_find(&a->segments, offset);
	struct segment_use use = {a->s->pool, c->spec, offset, p ? p->offset : 0, rows, a->options->table_bytes};
	if (seg && (!seg->record->sealed_rows || !spec_same(seg->spec, c->spec))) {
		attach_damaged(a, c, "segment %u at %#" PRIx64 " belongs to another", i, offset);
		return NULL;
	}
	if (!segment_check(&use, a->why)) {
		attach_damaged(a, c, "segment %u at %#" PRIx64 ": %.180s", i, offset, a->why);
		return NULL;
	}
	if (!seg)
		seg = new_segment(a, c, i, offset);
	if (seg && seg->damaged)
		attach_damaged(a, c, "segment %u at %#" PRIx64 ": its rows or its index do not have their checksum", i, offset);
	return seg;
}

static struct segment_list_record *find_list(struct attach *a, struct context *c, const struct context_slot *slot)
{
	struct segment_list_record *list =
		pool_inside(a->s->pool, slot->segments_offset, sizeof *list) ? pool_at(a->s->pool, slot->segments_offset) : NULL;
	uint64_t bytes = list ? sizeof *list + (uint64_t)list->count * sizeof(struct segment_ref) : 0;
	if (!list || !record_at(a->s->pool, slot->segments_offset, RECORD_SEGMENT_LIST, list_bytes(list->count)) ||
	    list->header.checksum != record_checksum(list, bytes) || slot->segment_count > list->count || !slot->segment_count) {
		attach_damaged(a, c, "no valid list of segments at %#" PRIx64, slot->segments_offset);
		return NULL;
	}
	return attach_claim_record(a, c, slot->segments_offset, list_bytes(list->count), "segment list") ? list : NULL;
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
		return (!slot->segment_count && !committed) ||
		       attach_damaged(a, c, "%" PRIu64 " tokens without segments", committed);
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
			attach_damaged(a, c, "segment %u: tokens %" PRIu64 " on do not fit", i, ref[i].first);
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

const struct context_record *attach_valid_record(const struct attach *a, uint64_t offset)
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
		attach_damaged(a, c, "its record: %.200s", a->why);
	else
		strcpy(c->name, r->name);
}

static void read_context(struct attach *a, struct context *c)
{
	uint64_t committed = c->record->committed, state = c->record->state;
	read_identity(a, c);
	if (state != CONTEXT_LIVE)
		attach_damaged(a, c, state == CONTEXT_QUARANTINED ? "found damaged at an earlier start" : "its state is %" PRIu64,
		               state);
	const struct context_slot *slot = slot_newest(c->record);
	if (!slot) {
		attach_damaged(a, c, "neither of its slots is valid");
		return;
	}
	c->identity = (struct identity){slot->uid, slot->gid, slot->mode};
	c->policy = slot->policy;
	c->policy_stale = true;
	if (c->record->used_ns && c->policy.ttl_s) // its time goes on while no daemon runs
		c->used_ns = c->record->used_ns;
	if (committed > MPIG_MAX_TOKENS) {
		attach_damaged(a, c, "%" PRIu64 " tokens are more than a context can hold", committed);
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
		attach_damaged(a, c, "another context is named '%.100s' too", c->name);
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

static enum turn turn_of(const struct context_record *r)
{
	return !r ? TURN_UNREADABLE : r->state == CONTEXT_QUARANTINED ? TURN_QUARANTINED : TURN_LIVE;
}

static void read_entry(struct attach *a, uint32_t slot, uint64_t offset, enum turn turn)
{
	const struct context_record *r = attach_valid_record(a, offset);
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
		attach_damaged(a, c, "its record at %#" PRIx64 " is not valid", offset);
	link_name(a, c);
}

void attach_read_all(struct attach *a, enum turn turn)
{
	const struct superblock *sb = pool_superblock(a->s->pool);
	const uint64_t *table = pool_at(a->s->pool, sb->contexts_offset);
	for (uint32_t i = 0; i < sb->contexts_max && !a->no_memory; i++)
		if (table[i]) {
			read_entry(a, i, table[i], turn);
			if (a->options->progress)
				a->options->progress(a->options->arg);
		}
}
