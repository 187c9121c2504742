// Sealing: from here on the rows of a segment do not change, and it has an index.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/sealing.h"

#define SEAL_FIRST_ROWS 4096u // unsealed rows that are worth the first parameters
#define SEAL_TABLE_ROWS 1024u // unsealed rows that are worth tables

uint32_t ref_rows(const struct context *c, const struct snapshot *snap, uint32_t i)
{
	uint64_t committed = context_committed(c), end = i + 1 < snap->count ? snap->ref[i + 1].first : committed;
	end = end < committed ? end : committed;
	return end > snap->ref[i].first ? (uint32_t)(end - snap->ref[i].first) : 0;
}

uint32_t unsealed_rows(const struct context *c, uint32_t *index)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	uint32_t i = 0;
	while (i < snap->count && snap->ref[i].segment->record->sealed_rows)
		i++;
	if (i == snap->count)
		return 0;
	*index = i;
	uint32_t rows = ref_rows(c, snap, i);
	bool last = i + 1 == snap->count;
	bool whole = last ? rows == SEGMENT_MAX_ROWS || !context_busy_writing(c) : snap->ref[i + 1].first <= context_committed(c);
	return whole ? rows : 0;
}

bool context_wants_seal(const struct context *c)
{
	struct store *s = c->store;
	store_lock(s);
	uint32_t index, rows = context_dropped(c) || c->sealing ? 0 : unsealed_rows(c, &index);
	bool indexes = c->spec->has_codes || c->spec->has_tables;
	bool wants = rows == SEGMENT_MAX_ROWS || (indexes && !atomic_load(&c->params) && rows >= SEAL_FIRST_ROWS) ||
	             (c->spec->has_tables && rows >= SEAL_TABLE_ROWS);
	store_unlock(s);
	return wants;
}

int context_seal_room(struct store *s, struct seal_plan *plan, table_bytes_fn *table_bytes, char *why)
{
	struct seal_work *w = plan->private_;
	struct context *c = plan->context;
	store_lock(s);
	int status = context_alive(c, why);
	if (!status)
		status = work_want(s, w, plan, table_bytes);
	if (status == MPIG_ENOMEM)
		refuse(why, status, "the daemon has no memory to seal %u rows", w->rows);
	if (!status)
		status = work_alloc(s, w, &w->extents, why);
	if (!status)
		work_build(s, w, plan);
	else
		extents_fini(&w->extents); // nothing was allocated
	store_unlock(s);
	return status;
}

// ---- begin -----------------------------------------------------------------------------------------------------------

// An upper layer is made of codes. The first block of an open segment may have none: see EXACT_ROWS in write.c.
static bool all_coded(const struct store *s, const struct seal_work *w)
{
	const struct generation_record *g = segment_generation(s->pool, w->segment);
	uint32_t b = 0;
	while (g && b < w->blocks && g->code_block[b])
		b++;
	return g && b == w->blocks;
}

static int prepare(struct store *s, struct context *c, uint32_t index, uint32_t rows, struct seal_plan *plan, char *why)
{
	const struct spec *spec = c->spec;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct segment *seg = snap->ref[index].segment;
	struct seal_work *w = calloc(1, sizeof *w);
	if (!w)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to seal %u rows", rows);
	w->segment = seg;
	w->rows = rows;
	w->owner = c->identity;
	w->fresh = (spec->has_codes || spec->has_tables) && !seg->record->generation[0].offset;
	work_blocks(w);
	plan_init(plan, c, w, snap->ref[index].first);
	plan->needs_params = (spec->has_codes || spec->has_tables) && !atomic_load(&c->params);
	plan->needs_codes = spec->has_codes && w->fresh;
	plan->needs_upper = plan->needs_upper && (w->fresh || all_coded(s, w));
	w->trash = segment_trash_new(s, seg, rows, true, 2 * (size_t)spec->strips);
	int status = w->trash ? 0 : refuse(why, MPIG_ENOMEM, "the daemon has no memory to seal %u rows", rows);
	if (!status && plan->needs_params)
		status = work_params(s, c, w, 1, why);
	if (status) {
		work_free(w);
		return status;
	}
	const struct params *now = atomic_load(&c->params);
	if (!w->params_offset)
		w->params_offset = seg->record->generation[0].offset ? seg->record->generation[0].params : 0;
	if (!w->params_offset && now)
		w->params_offset = now->offset;
	w->epoch = context_pin(c);
	c->sealing = true;
	return 0;
}

int context_seal_begin(struct store *s, struct context *c, struct seal_plan *plan, char *why)
{
	uint32_t index = 0;
	*plan = (struct seal_plan){.context = c};
	store_lock(s);
	int status = context_alive(c, why);
	if (!status && c->sealing)
		status = refuse(why, MPIG_EBUSY, "context '%s' is being indexed already", c->name);
	if (!status) {
		writer_leave(s, c);
		uint32_t rows = unsealed_rows(c, &index);
		if (rows)
			status = prepare(s, c, index, rows, plan, why);
	}
	store_unlock(s);
	if (status)
		*plan = (struct seal_plan){.context = c};
	return status;
}

// ---- finish ----------------------------------------------------------------------------------------------------------

static void publish_params(struct store *s, struct context *c, struct seal_work *w)
{
	struct params *p = w->params;
	struct params_record *r = pool_at(s->pool, p->offset);
	r->header.checksum = record_checksum(r, p->bytes);
	(void)charge_reference(s, &p->charge, &c->identity); // has room for its owner
	charge_grow(s, &p->charge, p->bytes);
	s->metadata_bytes += p->bytes;
	atomic_store(&c->params, p);
	atomic_store(&c->signature_version, p->version);
	w->params = NULL;
	struct context_slot slot;
	slot_fill(c, atomic_load(&c->snapshot), &slot);
	slot_publish(s->pool, c->record, &slot);
}

// Each step leaves a state that means something: parameters without an index; an open segment with codes; and with the one
// store of sealed_rows the tables count and the unused tails are gone.
static void publish_seal(struct store *s, struct context *c, struct seal_work *w)
{
	struct segment *seg = w->segment;
	struct segment_record *r = seg->record;
	if (w->params)
		publish_params(s, c, w);
	if (w->new_generation)
		generation_publish(s->pool, r, 0, w->new_generation);
	if (w->table) {
		pool_publish(s->pool, generation_tables(w->generation), w->table, 2 * seg->spec->strips * sizeof *w->table);
		if (w->needs_tables)
			pool_publish_word32(s->pool, &w->generation->table_rows, w->rows);
		if (w->needs_upper)
			pool_publish_word32(s->pool, &w->generation->upper_rows, w->rows);
	}
	segment_grow(s, seg, w->index_bytes, USE_INDEX);
	segment_grow(s, seg, w->metadata_bytes, USE_METADATA);
	segment_trash_fill(s, seg, w->rows, true, w->trash);
	if (w->sums)
		content_sums_publish(s->pool, r, w->generation, w->sums);
	segment_publish_sealed(s->pool, seg->spec, r, w->rows);
	piece_sums_free(seg);
	context_retire(s, c, &w->trash->garbage);
	w->trash = NULL;
}

uint32_t context_seal_sums(struct seal_plan *plan)
{
	struct seal_work *w = plan->private_;
	w->sums = content_sums_begin(w->segment, w->rows);
	return w->sums ? w->sums->parts : 0;
}

void context_seal_sum(struct seal_plan *plan, uint32_t part)
{
	const struct seal_work *w = plan->private_;
	const struct context *c = plan->context;
	content_sum(c->store, w->segment, w->generation, w->table, w->rows, part, w->sums);
}

void context_seal_finish(struct store *s, struct seal_plan *plan, bool publish)
{
	struct seal_work *w = plan->private_;
	struct context *c = plan->context;
	if (!w)
		return;
	if (publish && w->sums)
		content_sums_end(s, w->generation, w->table, w->sums);
	else if (publish) // the plan's pin keeps what is read
		w->sums = content_sums_new(s, w->segment, w->generation, w->table, w->rows);
	store_lock(s);
	account_sub(s, &w->owner, w->held);
	bool give_back = !publish || context_dropped(c);
	if (!give_back)
		publish_seal(s, c, w);
	c->sealing = false;
	context_unpin_locked(c, w->epoch);
	context_collect(s, c);
	store_unlock(s);
	if (give_back) {
		extents_give(s, &w->own);
		extents_give(s, &w->extents);
	}
	work_free(w);
	plan->private_ = NULL;
}
