// Sealing: from here on the rows of a segment do not change, and it has an index.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

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

struct seal_work {
	struct segment *segment;
	uint32_t rows, blocks; // to be sealed, and the blocks they are in
	uint64_t epoch;        // our pin
	struct identity owner; // charged for `held` bytes until they belong to the segment
	uint64_t held;
	struct extents own, extents; // of the parameters, and of all else
	struct trash *trash;
	struct params *params;                // new, or NULL
	uint64_t params_offset;               // new, of the open segment's generation, or in force; 0: the context has no index
	struct generation_record *generation; // new or the open segment's; NULL likewise
	uint64_t new_generation;              // its offset; 0: it is the open segment's
	struct table_extent *table;           // [strips], or NULL
	uint64_t index_bytes, metadata_bytes; // of what was allocated, but for params
	struct content_sums *sums;            // NULL without memory: then the segment has none
};

static void work_free(struct seal_work *w)
{
	if (w->trash) {
		extents_fini(&w->trash->list);
		free(w->trash);
	}
	if (w->params) {
		charge_fini(&w->params->charge);
		free(w->params);
	}
	extents_fini(&w->own);
	extents_fini(&w->extents);
	free(w->table);
	free(w->sums);
	free(w);
}

// ---- what the engine asks of a plan ----------------------------------------------------------------------------------

static float *plan_mu(struct seal_plan *plan, uint32_t strip)
{
	const struct seal_work *w = plan->private_;
	return spec_params(plan->context->spec, pool_at(plan->context->store->pool, w->params_offset), strip);
}

static float *plan_balance(struct seal_plan *plan, uint32_t strip)
{
	return plan_mu(plan, strip) + spec_strip(plan->context->spec, strip)->shape.d_k;
}

static uint8_t *plan_bits(struct seal_plan *plan)
{
	const struct seal_work *w = plan->private_;
	return params_bits(pool_at(plan->context->store->pool, w->params_offset));
}

static uint32_t block_of(const struct seal_work *w, uint32_t row, uint32_t *block_row, uint32_t *n)
{
	const struct segment_record *r = w->segment->record;
	uint32_t b = 0;
	while (row >= r->block[b].first_row + r->block[b].rows)
		b++;
	uint32_t end = r->block[b].first_row + r->block[b].rows;
	*block_row = row - r->block[b].first_row;
	*n = (end < w->rows ? end : w->rows) - row;
	return b;
}

static uint8_t *plan_codes(struct seal_plan *plan, uint32_t strip, uint32_t row, uint16_t **factors, uint32_t *block_row,
                           uint32_t *n)
{
	const struct seal_work *w = plan->private_;
	const struct pool *pool = plan->context->store->pool;
	uint32_t b = block_of(w, row, block_row, n);
	uint64_t code_block = w->generation ? w->generation->code_block[b] : 0;
	uint64_t offset = code_block ? code_offsets(pool_at(pool, code_block))[strip] : 0;
	if (!offset)
		return NULL;
	uint8_t *codes = pool_at(pool, offset);
	uint64_t per_row = code_bytes(plan->context->spec, generation_bits(w->generation), strip);
	*factors = (uint16_t *)(void *)(codes + w->segment->record->block[b].rows * per_row);
	return codes;
}

static void *plan_table(struct seal_plan *plan, uint32_t strip)
{
	const struct seal_work *w = plan->private_;
	return w->table && w->table[strip].offset ? pool_at(plan->context->store->pool, w->table[strip].offset) : NULL;
}

static const uint8_t *plan_rows_at(struct seal_plan *plan, uint32_t strip, uint32_t row, uint32_t *n)
{
	const struct seal_work *w = plan->private_;
	const struct pool *pool = plan->context->store->pool;
	uint32_t block_row, b = block_of(w, row, &block_row, n);
	struct block_record *record = pool_at(pool, w->segment->record->block[b].offset);
	return (const uint8_t *)pool_at(pool, block_rows(record)[strip]) +
	       (uint64_t)block_row * spec_strip(plan->context->spec, strip)->rows.stride;
}

static const float *plan_frame(struct seal_plan *plan, uint32_t strip)
{
	const struct seal_work *w = plan->private_;
	if (spec_strip(plan->context->spec, strip)->rows.type != ROW_I8)
		return NULL;
	return segment_frame(plan->context->store->pool, w->segment, strip);
}

// ---- room for the index ----------------------------------------------------------------------------------------------

typedef uint64_t table_bytes_fn(const struct layer *, uint32_t rows);

static uint64_t code_extent(const struct store *s, const struct seal_work *w, uint32_t b, uint32_t strip)
{
	const struct spec *spec = w->segment->spec;
	if (!spec_strip(spec, strip)->code_bytes_per_row)
		return 0;
	return w->segment->record->block[b].rows * (2 + code_bytes(spec, params_bits(pool_at(s->pool, w->params_offset)), strip));
}

// The same order as in build_all.
static int want_all(struct store *s, const struct context *c, struct seal_work *w, const struct seal_plan *plan,
                    table_bytes_fn *bytes_of)
{
	const struct spec *spec = c->spec;
	struct extents *x = &w->extents;
	bool indexes = spec->has_codes || spec->has_tables, fresh = indexes && !w->segment->record->generation[0].offset;
	int status = fresh ? extents_want(x, generation_bytes(spec->strips), 0) : 0;
	for (uint32_t b = 0; plan->needs_codes && b < w->blocks && !status; b++) {
		status |= extents_want(x, code_block_bytes(spec->strips), 0);
		for (uint32_t strip = 0; strip < spec->strips && !status; strip++) {
			const struct layer *l = spec_strip(spec, strip);
			uint64_t bytes = code_extent(s, w, b, strip);
			if (bytes)
				status |= extents_want(x, bytes, strip_node(s, l, strip - l->first_strip));
		}
	}
	for (uint32_t strip = 0; w->table && strip < spec->strips && !status; strip++) {
		const struct layer *l = spec_strip(spec, strip);
		if (!l->wire.paper_k)
			continue;
		w->table[strip].bytes = bytes_of(l, w->rows);
		status |= extents_want(x, w->table[strip].bytes, strip_node(s, l, strip - l->first_strip));
	}
	return status;
}

static void build_code_block(struct store *s, struct seal_work *w, uint32_t b)
{
	const struct spec *spec = w->segment->spec;
	uint64_t offset = extents_next(&w->extents);
	struct code_block_record *cb = pool_at(s->pool, offset);
	record_init(&cb->header, RECORD_CODE_BLOCK, code_block_bytes(spec->strips));
	cb->rows = w->segment->record->block[b].rows;
	cb->strips = spec->strips;
	for (uint32_t strip = 0; strip < spec->strips; strip++)
		if (code_extent(s, w, b, strip)) {
			code_offsets(cb)[strip] = extents_next(&w->extents);
			w->index_bytes += pool_round(code_extent(s, w, b, strip));
		}
	w->generation->code_block[b] = offset;
	w->metadata_bytes += code_block_bytes(spec->strips);
}

// Records nobody reaches yet.
static void build_all(struct store *s, const struct context *c, struct seal_work *w, const struct seal_plan *plan)
{
	const struct spec *spec = c->spec;
	const struct params *now = w->params ? w->params : atomic_load(&c->params);
	if (w->segment->record->generation[0].offset) {
		w->generation = segment_generation(s->pool, w->segment);
	} else if (spec->has_codes || spec->has_tables) {
		w->new_generation = extents_next(&w->extents);
		w->generation = pool_at(s->pool, w->new_generation);
		record_init(&w->generation->header, RECORD_GENERATION, generation_bytes(spec->strips));
		w->generation->params_offset = now->offset;
		w->generation->version = now->version;
		w->generation->strips = spec->strips;
		memcpy(generation_bits(w->generation), params_bits(pool_at(s->pool, now->offset)), spec->strips);
		w->metadata_bytes += generation_bytes(spec->strips);
	}
	for (uint32_t b = 0; plan->needs_codes && b < w->blocks; b++)
		build_code_block(s, w, b);
	for (uint32_t strip = 0; w->table && strip < spec->strips; strip++)
		if (spec_strip(spec, strip)->wire.paper_k) {
			w->table[strip].offset = extents_next(&w->extents);
			w->index_bytes += pool_round(w->table[strip].bytes);
		}
}

// Bytes of what is to be allocated, against the quota of the context's owner, who is charged for them until they belong to something.
static int hold(struct store *s, struct seal_work *w, struct extents *x, char *why)
{
	int status = quota_admit(s, &w->owner, extents_total(x), 0, why);
	if (!status)
		status = extents_alloc(s, x, why);
	if (status)
		return status;
	w->held += extents_total(x);
	account_add(s, &w->owner, extents_total(x));
	return 0;
}

int context_seal_room(struct store *s, struct seal_plan *plan, table_bytes_fn *table_bytes, char *why)
{
	struct seal_work *w = plan->private_;
	struct context *c = plan->context;
	store_lock(s);
	int status = context_alive(c, why);
	if (!status && plan->needs_tables && !(w->table = calloc(c->spec->strips, sizeof *w->table)))
		status = MPIG_ENOMEM;
	if (!status)
		status = want_all(s, c, w, plan, table_bytes);
	if (status == MPIG_ENOMEM)
		refuse(why, status, "the daemon has no memory to seal %u rows", w->rows);
	if (!status)
		status = hold(s, w, &w->extents, why);
	if (!status)
		build_all(s, c, w, plan);
	else
		extents_fini(&w->extents); // nothing was allocated
	store_unlock(s);
	return status;
}

// ---- begin -----------------------------------------------------------------------------------------------------------

static int new_params(struct store *s, const struct context *c, struct seal_work *w, char *why)
{
	const struct spec *spec = c->spec;
	struct params *p = w->params = calloc(1, sizeof *p);
	if (!p || !(p->charge.who = calloc(CHARGE_OWNER, sizeof *p->charge.who)) || extents_want(&w->own, spec->params_bytes, 0))
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to seal %u rows", w->rows);
	p->charge.capacity = CHARGE_OWNER;
	int status = hold(s, w, &w->own, why);
	if (status)
		return status;
	p->offset = extents_next(&w->own);
	p->bytes = spec->params_bytes;
	p->version = p->refs = 1;
	struct params_record *r = pool_at(s->pool, p->offset);
	w->params_offset = p->offset;
	record_init(&r->header, RECORD_PARAMS, p->bytes);
	r->version = p->version;
	r->strips = spec->strips;
	r->bytes = p->bytes;
	for (uint32_t strip = 0; strip < spec->strips; strip++)
		params_bits(r)[strip] = spec_strip(spec, strip)->wire.signature_bits;
	return 0;
}

static int prepare(struct store *s, struct context *c, uint32_t index, uint32_t rows, struct seal_plan *plan, char *why)
{
	const struct spec *spec = c->spec;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct segment *seg = snap->ref[index].segment;
	*plan = (struct seal_plan){
		.first = snap->ref[index].first,
		.rows = rows,
		.context = c,
		.needs_params = (spec->has_codes || spec->has_tables) && !atomic_load(&c->params),
		.needs_codes = spec->has_codes && !seg->record->generation[0].offset,
		.needs_tables = spec->has_tables,
		.mu = plan_mu,
		.balance = plan_balance,
		.bits = plan_bits,
		.codes = plan_codes,
		.table = plan_table,
		.rows_at = plan_rows_at,
		.frame = plan_frame,
	};
	struct seal_work *w = calloc(1, sizeof *w);
	if (!w)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to seal %u rows", rows);
	w->segment = seg;
	w->rows = rows;
	w->owner = c->identity;
	while (w->blocks < seg->record->block_count && seg->record->block[w->blocks].first_row < rows)
		w->blocks++;
	w->trash = segment_trash_new(s, seg, rows, true, 2 * (size_t)spec->strips);
	int status = w->trash ? 0 : refuse(why, MPIG_ENOMEM, "the daemon has no memory to seal %u rows", rows);
	if (!status && plan->needs_params)
		status = new_params(s, c, w, why);
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
	plan->private_ = w;
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
		pool_publish(s->pool, generation_tables(w->generation), w->table, seg->spec->strips * sizeof *w->table);
		pool_publish_word32(s->pool, &w->generation->table_rows, w->rows);
	}
	segment_grow(s, seg, w->index_bytes, USE_INDEX);
	segment_grow(s, seg, w->metadata_bytes, USE_METADATA);
	segment_trash_fill(s, seg, w->rows, true, w->trash);
	if (w->sums)
		content_sums_publish(s->pool, r, w->generation, w->sums, w->rows);
	segment_publish_sealed(s->pool, seg->spec, r, w->rows);
	context_retire(s, c, &w->trash->garbage);
	w->trash = NULL;
}

void context_seal_finish(struct store *s, struct seal_plan *plan, bool publish)
{
	struct seal_work *w = plan->private_;
	struct context *c = plan->context;
	if (!w)
		return;
	if (publish) // the plan's pin keeps what is read
		w->sums = content_sums_new(s->pool, c->spec, w->segment->record, w->generation, w->table, w->rows);
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
