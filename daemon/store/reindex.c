// A new index for a context: see store.h. New parameters and, for every sealed segment, a generation made with them are built where nobody
// reaches them; each generation takes the free slot of its segment when it is done, which no reader looks at yet; and one slot of the
// context makes the switch. A daemon killed in between leaves generations without a context that has their parameters: attaching clears them.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/sealing.h"

#define LEFT_ROWS 4096u // rows without a new index that do not hold up the switch: they are attended exactly

struct old_params {
	struct garbage garbage;
	struct params *params;
};

struct reindex {
	struct store *store;
	struct context *context;  // a reference
	struct seal_work *params; // theirs; no segment
	struct old_params *old;   // room for what the switch gives up
	bool switched;
};

int reindex_begin(struct store *s, struct context *c, struct reindex **out, char *why)
{
	struct reindex *x = calloc(1, sizeof *x);
	if (!x || !(x->params = calloc(1, sizeof *x->params)) || !(x->old = calloc(1, sizeof *x->old))) {
		if (x)
			free(x->params);
		free(x);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to index '%s' again", c->name);
	}
	store_lock(s);
	int status = context_alive(c, why);
	if (!status && c->reindexing)
		status = refuse(why, MPIG_EBUSY, "context '%s' is being indexed again already", c->name);
	const struct params *now = atomic_load(&c->params);
	if (!status && !now)
		status = refuse(why, MPIG_ENOTSUP, "context '%s' has no index yet: the first seal makes one", c->name);
	x->params->owner = c->identity;
	if (!status)
		status = work_params(s, c, x->params, now->version + 1, why);
	if (!status)
		c->reindexing = true;
	store_unlock(s);
	if (status) {
		work_free(x->params);
		free(x->old);
		free(x);
		return status;
	}
	context_ref(c);
	x->store = s;
	x->context = c;
	*out = x;
	return 0;
}

static struct params_record *record_of(const struct reindex *x)
{
	return pool_at(x->store->pool, x->params->params_offset);
}

float *reindex_mu(const struct reindex *x, uint32_t strip)
{
	return spec_params(x->context->spec, record_of(x), strip);
}

float *reindex_balance(const struct reindex *x, uint32_t strip)
{
	return reindex_mu(x, strip) + spec_strip(x->context->spec, strip)->shape.d_k;
}

uint8_t *reindex_bits(const struct reindex *x)
{
	return params_bits(record_of(x));
}

// ---- segment by segment ----------------------------------------------------------------------------------------------

// What is committed of the open segment, sealed with the codes it has. Not while somebody is in it.
static void seal_as_it_is(struct store *s, struct context *c)
{
	if (c->sealing || c->draining || context_busy_writing(c))
		return;
	context_forget(s, c); // blocks and segments without rows
	const struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; i < snap->count; i++) {
		struct segment *seg = snap->ref[i].segment;
		uint32_t rows = ref_rows(c, snap, i);
		if (seg->record->sealed_rows || !rows)
			continue;
		struct trash *trash = segment_trash_new(s, seg, rows, true, 0);
		if (!trash)
			return;
		segment_trash_fill(s, seg, rows, true, trash);
		segment_publish_sealed(s->pool, seg->spec, seg->record, rows);
		context_retire(s, c, &trash->garbage);
	}
}

static uint32_t free_slot(const struct segment_record *r)
{
	uint32_t slot = 0;
	while (slot < GENERATIONS && r->generation[slot].offset)
		slot++;
	return slot;
}

struct give_sink {
	struct extent_sink sink;
	struct store *store;
	struct segment *segment;
	bool book; // into the segment's books; else back to the pool
};
static void give_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct give_sink *g = (struct give_sink *)sink;
	if (g->book)
		segment_grow(g->store, g->segment, bytes, use);
	else
		pool_free(g->store->pool, offset, bytes);
}

static int start(struct reindex *x, uint32_t i, table_bytes_fn *table_bytes, struct seal_plan *plan, char *why)
{
	struct store *s = x->store;
	struct context *c = x->context;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct segment *seg = snap->ref[i].segment;
	struct seal_work *w = calloc(1, sizeof *w);
	if (!w)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to index '%s' again", c->name);
	w->segment = seg;
	w->rows = seg->record->sealed_rows;
	w->owner = c->identity;
	w->fresh = true;
	w->params_offset = x->params->params_offset;
	work_blocks(w);
	plan_init(plan, c, w, snap->ref[i].first);
	plan->needs_codes = c->spec->has_codes;
	int status = 0;
	if (free_slot(seg->record) == GENERATIONS)
		status = refuse(why, MPIG_EBUSY,
		                "segment %u of '%s' is shared with forks that have %u other indexes of it: index those again, or "
		                "drop them",
		                i, c->name, GENERATIONS);
	if (!status && work_want(s, w, plan, table_bytes))
		status = refuse(why, MPIG_ENOMEM, "the daemon has no memory to index '%s' again", c->name);
	if (!status)
		status = work_alloc(s, w, &w->extents, why);
	if (status) {
		work_free(w);
		*plan = (struct seal_plan){.context = c};
		return status;
	}
	work_build(s, w, plan);
	if (w->table) { // nobody reaches it yet
		memcpy(generation_tables(w->generation), w->table, 2 * c->spec->strips * sizeof *w->table);
		w->generation->table_rows = w->needs_tables ? w->rows : 0;
		w->generation->upper_rows = w->needs_upper ? w->rows : 0;
	}
	struct give_sink surplus = {.sink = {give_put}, .store = s, .segment = seg};
	generation_surplus(s->pool, seg, w->generation, w->rows, &surplus.sink);
	seg->refs++;
	return 1;
}

int reindex_next(struct reindex *x, table_bytes_fn *table_bytes, struct seal_plan *plan, char *why)
{
	struct store *s = x->store;
	struct context *c = x->context;
	*plan = (struct seal_plan){.context = c};
	store_lock(s);
	int status = context_alive(c, why);
	if (!status)
		seal_as_it_is(s, c);
	const struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; !status && i < snap->count; i++) {
		const struct segment_record *r = snap->ref[i].segment->record;
		if (r->sealed_rows && ref_rows(c, snap, i) && generation_slot(r, x->params->params_offset) == GENERATIONS)
			status = start(x, i, table_bytes, plan, why);
	}
	store_unlock(s);
	return status;
}

void reindex_done(struct reindex *x, struct seal_plan *plan, bool publish)
{
	struct store *s = x->store;
	struct seal_work *w = plan->private_;
	if (!w)
		return;
	struct segment *seg = w->segment;
	if (publish)
		generation_sums(s, seg, w->generation, w->rows);
	store_lock(s);
	account_sub(s, &w->owner, w->held);
	uint32_t slot = free_slot(seg->record);
	bool good = publish && !context_dropped(x->context) && slot < GENERATIONS;
	struct give_sink sink = {.sink = {give_put}, .store = s, .segment = seg, .book = good};
	generation_extents(s->pool, seg, w->generation, w->new_generation, w->rows, &sink.sink);
	if (good) {
		memset(seg->id[slot], 0, sizeof seg->id[slot]);
		generation_publish(s->pool, seg->record, slot, w->new_generation);
	}
	segment_put(s, seg);
	store_unlock(s);
	work_free(w);
	plan->private_ = NULL;
}

// ---- the switch ------------------------------------------------------------------------------------------------------

static void old_settle(struct store *s, struct garbage *g)
{
	params_put(s, ((struct old_params *)g)->params);
	store_bury(s, g);
}

static void old_destroy(struct store *s, struct garbage *g)
{
	(void)s;
	free(g);
}

// Of segments that are this context's alone the old generation goes when its readers have left; of others when nobody has its parameters.
static void retire_generations(struct store *s, struct context *c, uint64_t old_params)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; i < snap->count; i++) {
		struct segment *seg = snap->ref[i].segment;
		uint32_t slot = generation_slot(seg->record, old_params);
		struct trash *trash = NULL;
		if (seg->refs == 1 && slot < GENERATIONS)
			trash = trash_new(generation_extent_count(s->pool, seg, slot));
		if (!trash)
			continue;
		generation_drop(s, seg, slot, trash);
		context_retire(s, c, &trash->garbage);
	}
}

static void publish_switch(struct reindex *x)
{
	struct store *s = x->store;
	struct context *c = x->context;
	struct params *p = x->params->params, *old = atomic_load(&c->params);
	struct params_record *r = record_of(x);
	r->header.checksum = record_checksum(r, p->bytes);
	account_sub(s, &x->params->owner, x->params->held);
	(void)charge_reference(s, &p->charge, &c->identity); // has room for its owner
	charge_grow(s, &p->charge, p->bytes);
	s->metadata_bytes += p->bytes;
	atomic_store(&c->params, p);
	atomic_store(&c->signature_version, p->version);
	x->params->params = NULL;
	struct context_slot slot;
	slot_fill(c, atomic_load(&c->snapshot), &slot);
	slot_publish(s->pool, c->record, &slot);
	c->on_disk = false;
	charge_release(s, &old->charge, &c->identity);
	retire_generations(s, c, old->offset);
	*x->old = (struct old_params){.garbage = {.settle = old_settle, .destroy = old_destroy}, .params = old};
	context_retire(s, c, &x->old->garbage);
	context_collect(s, c);
	x->old = NULL;
	x->switched = true;
}

static uint64_t rows_left(const struct reindex *x)
{
	const struct context *c = x->context;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	uint64_t left = 0;
	for (uint32_t i = 0; i < snap->count; i++)
		if (generation_slot(snap->ref[i].segment->record, x->params->params_offset) == GENERATIONS)
			left += ref_rows(c, snap, i);
	return left;
}

int reindex_switch(struct reindex *x, char *why)
{
	struct store *s = x->store;
	struct context *c = x->context;
	store_lock(s);
	int status = context_alive(c, why);
	if (!status && (c->sealing || c->draining || context_busy_writing(c)))
		status = MPIG_EAGAIN;
	if (!status && rows_left(x) > LEFT_ROWS)
		status = 1;
	uint32_t index;
	if (!status) {
		seal_as_it_is(s, c);
		status =
			unsealed_rows(c, &index) ? refuse(why, MPIG_ENOMEM, "the daemon has no memory to seal '%s'", c->name) : 0;
	}
	if (!status)
		publish_switch(x);
	store_unlock(s);
	return status;
}

void reindex_end(struct reindex *x)
{
	if (!x)
		return;
	struct store *s = x->store;
	struct params *p = x->params->params;
	store_lock(s);
	x->context->reindexing = false;
	if (p) { // nobody got to read with them
		account_sub(s, &x->params->owner, x->params->held);
		x->params->params = NULL;
		s->metadata_bytes += p->bytes; // params_put takes it off
		params_put(s, p);
	}
	store_unlock(s);
	work_free(x->params);
	free(x->old);
	context_unref(x->context);
	free(x);
}
