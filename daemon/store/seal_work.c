#include <stdlib.h>
#include <string.h>

#include "daemon/store/sealing.h"

void work_free(struct seal_work *w)
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

void work_blocks(struct seal_work *w)
{
	const struct segment_record *r = w->segment->record;
	while (w->blocks < r->block_count && r->block[w->blocks].first_row < w->rows)
		w->blocks++;
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

static void *plan_upper(struct seal_plan *plan, uint32_t strip)
{
	return plan->needs_upper ? plan_table(plan, plan->context->spec->strips + strip) : NULL;
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

static bool worth_upper(const struct store *s, uint64_t first, uint32_t rows)
{
	uint32_t least = s->options.upper_least ? s->options.upper_least : SEAL_UPPER_ROWS;
	return s->options.upper_reach && first + rows >= s->options.upper_reach && rows >= least;
}

void plan_init(struct seal_plan *plan, struct context *c, struct seal_work *w, uint64_t first)
{
	*plan = (struct seal_plan){
		.first = first,
		.rows = w->rows,
		.needs_tables = c->spec->has_tables,
		.needs_upper = c->spec->has_upper && worth_upper(c->store, first, w->rows),
		.mu = plan_mu,
		.balance = plan_balance,
		.bits = plan_bits,
		.codes = plan_codes,
		.table = plan_table,
		.upper = plan_upper,
		.rows_at = plan_rows_at,
		.frame = plan_frame,
		.context = c,
		.private_ = w,
	};
}

// ---- room for the index ----------------------------------------------------------------------------------------------

static uint64_t code_extent(const struct store *s, const struct seal_work *w, uint32_t b, uint32_t strip)
{
	const struct spec *spec = w->segment->spec;
	if (!spec_strip(spec, strip)->code_bytes_per_row)
		return 0;
	return w->segment->record->block[b].rows * (2 + code_bytes(spec, params_bits(pool_at(s->pool, w->params_offset)), strip));
}

// The same order as in work_build.
int work_want(struct store *s, struct seal_work *w, const struct seal_plan *plan, table_bytes_fn *bytes_of)
{
	const struct spec *spec = w->segment->spec;
	struct extents *x = &w->extents;
	w->needs_tables = plan->needs_tables;
	w->needs_upper = plan->needs_upper;
	if ((w->needs_tables || w->needs_upper) && !(w->table = calloc(2 * (size_t)spec->strips, sizeof *w->table)))
		return MPIG_ENOMEM;
	int status = w->fresh ? extents_want(x, generation_bytes(spec->strips), 0) : 0;
	for (uint32_t b = 0; plan->needs_codes && b < w->blocks && !status; b++) {
		status |= extents_want(x, code_block_bytes(spec->strips), 0);
		for (uint32_t strip = 0; strip < spec->strips && !status; strip++) {
			const struct layer *l = spec_strip(spec, strip);
			uint64_t bytes = code_extent(s, w, b, strip);
			if (bytes)
				status |= extents_want(x, bytes, strip_node(s, l, strip - l->first_strip));
		}
	}
	const uint8_t *widths = w->params_offset ? params_bits(pool_at(s->pool, w->params_offset)) : NULL;
	for (uint32_t i = 0; w->table && i < 2 * spec->strips && !status; i++) {
		const struct layer *l = spec_strip(spec, i % spec->strips);
		struct table_extent *t = &w->table[i];
		if (i < spec->strips)
			t->bytes = plan->needs_tables && l->wire.paper_k ? bytes_of(l, w->rows) : 0;
		else
			t->bytes = plan->needs_upper ? upper_bytes(spec, widths, i - spec->strips, w->rows) : 0;
		if (t->bytes)
			status |= extents_want(x, t->bytes, strip_node(s, l, i % spec->strips - l->first_strip));
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

void work_build(struct store *s, struct seal_work *w, const struct seal_plan *plan)
{
	const struct spec *spec = w->segment->spec;
	struct params_record *params = w->params_offset ? pool_at(s->pool, w->params_offset) : NULL;
	if (!w->fresh) {
		w->generation = segment_generation(s->pool, w->segment);
	} else {
		w->new_generation = extents_next(&w->extents);
		w->generation = pool_at(s->pool, w->new_generation);
		record_init(&w->generation->header, RECORD_GENERATION, generation_bytes(spec->strips));
		w->generation->params_offset = w->params_offset;
		w->generation->version = params->version;
		w->generation->strips = spec->strips;
		memcpy(generation_bits(w->generation), params_bits(params), spec->strips);
		w->metadata_bytes += generation_bytes(spec->strips);
	}
	for (uint32_t b = 0; plan->needs_codes && b < w->blocks; b++)
		build_code_block(s, w, b);
	for (uint32_t i = 0; w->table && i < 2 * spec->strips; i++)
		if (w->table[i].bytes) {
			w->table[i].offset = extents_next(&w->extents);
			w->index_bytes += pool_round(w->table[i].bytes);
		}
}

int work_alloc(struct store *s, struct seal_work *w, struct extents *x, char *why)
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

int work_params(struct store *s, const struct context *c, struct seal_work *w, uint32_t version, char *why)
{
	const struct spec *spec = c->spec;
	struct params *p = w->params = calloc(1, sizeof *p);
	if (!p || !(p->charge.who = calloc(CHARGE_OWNER, sizeof *p->charge.who)) || extents_want(&w->own, spec->params_bytes, 0))
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory for the parameters of '%s'", c->name);
	p->charge.capacity = CHARGE_OWNER;
	int status = work_alloc(s, w, &w->own, why);
	if (status)
		return status;
	p->offset = extents_next(&w->own);
	p->bytes = spec->params_bytes;
	p->version = version;
	p->refs = 1;
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
