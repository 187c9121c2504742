// The extents and records of a context being made; see image.h.
#include <stdlib.h>
#include <string.h>

#include "daemon/store/image_making.h"

static int want_block(const struct making *m, struct extents *x, const struct image_block *block)
{
	const struct spec *spec = m->spec;
	int status = extents_want(x, block_bytes(spec->strips, block->rows), 0);
	if (block->has_codes)
		status |= extents_want(x, code_block_bytes(spec->strips), 0);
	for (uint32_t strip = 0; strip < spec->strips && !status; strip++) {
		const struct layer *l = spec_strip(spec, strip);
		int node = strip_node(m->store, l, strip - l->first_strip);
		struct code_range whole[2] = {{0, 0}, {0, 0}};
		status = extents_want(x, (uint64_t)block->rows * l->rows.stride, node);
		if (!block->has_codes || !l->code_bytes_per_row)
			continue;
		uint32_t n = code_ranges(code_bytes(spec, m->from.params, strip), block->rows, block->rows, whole);
		status |= extents_want(x, whole[n - 1].end, node);
	}
	return status;
}

// Of the i-th extent beside the blocks: tables by strip, then upper layers by strip. 0: there is none.
static uint64_t side_bytes(const struct making *m, const struct image_segment *from, uint32_t i)
{
	const struct layer *l = spec_strip(m->spec, i % m->spec->strips);
	if (i < m->spec->strips)
		return from->has_tables && l->wire.paper_k ? m->table_bytes(l, from->rows) : 0;
	return from->has_upper ? upper_bytes(m->spec, m->from.params, i - m->spec->strips, from->rows)
	                       : 0; // widths come first in them
}

// The same order as in build_segment.
static int want_segment(const struct making *m, struct extents *x, const struct image_segment *from)
{
	const struct spec *spec = m->spec;
	int status = extents_want(x, sizeof(struct segment_record), 0);
	if (frames_bytes(spec))
		status |= extents_want(x, frames_bytes(spec), 0);
	if (from->indexed)
		status |= extents_want(x, generation_bytes(spec->strips), 0);
	for (uint32_t b = 0; b < from->block_count && !status; b++)
		status = want_block(m, x, &from->block[b]);
	for (uint32_t i = 0; i < 2 * spec->strips && !status; i++) {
		const struct layer *l = spec_strip(spec, i % spec->strips);
		uint64_t bytes = side_bytes(m, from, i);
		if (bytes)
			status = extents_want(x, bytes, strip_node(m->store, l, i % spec->strips - l->first_strip));
	}
	return status;
}

static void build_block(struct making *m, struct extents *x, struct segment_record *r, struct generation_record *g,
                        const struct image_segment *from, uint32_t b)
{
	const struct spec *spec = m->spec;
	const struct image_block *block = &from->block[b];
	uint64_t offset = extents_next(x), code_offset = block->has_codes ? extents_next(x) : 0;
	struct block_record *record = pool_at(m->store->pool, offset);
	struct code_block_record *cb = code_offset ? pool_at(m->store->pool, code_offset) : NULL;
	record_init(&record->header, RECORD_BLOCK, block_bytes(spec->strips, block->rows));
	record->rows = block->rows;
	record->strips = spec->strips;
	record->header.checksum = from->sealed ? block->content : 0;
	if (cb) {
		record_init(&cb->header, RECORD_CODE_BLOCK, code_block_bytes(spec->strips));
		cb->rows = block->rows;
		cb->strips = spec->strips;
		cb->header.checksum = from->sealed ? block->codes_content : 0;
		g->code_block[b] = code_offset;
	}
	for (uint32_t strip = 0; strip < spec->strips; strip++) {
		block_rows(record)[strip] = extents_next(x);
		if (cb && spec_strip(spec, strip)->code_bytes_per_row)
			code_offsets(cb)[strip] = extents_next(x);
	}
	r->block[b].offset = offset;
	r->block[b].first_row = block->first_row;
	r->block[b].rows = block->rows;
}

static struct generation_record *build_generation(struct making *m, uint64_t offset, const struct image_segment *from)
{
	struct generation_record *g = pool_at(m->store->pool, offset);
	record_init(&g->header, RECORD_GENERATION, generation_bytes(m->spec->strips));
	g->params_offset = m->params->offset;
	g->version = m->params->version;
	g->strips = m->spec->strips;
	memcpy(generation_bits(g), m->from.params, g->strips); // begin with them
	g->header.checksum = from->has_tables || from->has_upper ? from->table_content : 0;
	return g;
}

struct surplus_sink {
	struct extent_sink sink;
	struct making *m;
};
static void surplus_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct making *m = ((struct surplus_sink *)sink)->m;
	(void)use;
	pool_free(m->store->pool, offset, bytes);
}

static void build_segment(struct making *m, uint32_t i)
{
	const struct image_segment *from = &m->from.segment[i];
	struct extents *x = &m->extents[i];
	struct segment *seg = m->segment[i];
	struct generation_record *g = NULL;
	seg->offset = extents_next(x);
	struct segment_record *r = seg->record = pool_at(m->store->pool, seg->offset);
	record_init(&r->header, RECORD_SEGMENT, pool_round(sizeof *r));
	r->strips = m->spec->strips;
	if (frames_bytes(m->spec))
		r->frames_offset = extents_next(x);
	if (from->indexed) {
		r->generation[0].offset = extents_next(x);
		r->generation[0].params = m->params->offset;
		g = build_generation(m, r->generation[0].offset, from);
	}
	for (uint32_t b = 0; b < from->block_count; b++)
		build_block(m, x, r, g, from, b);
	r->block_count = from->block_count;
	for (uint32_t t = 0; g && t < 2 * m->spec->strips; t++) {
		uint64_t bytes = side_bytes(m, from, t);
		if (bytes)
			generation_tables(g)[t] = (struct table_extent){extents_next(x), bytes};
	}
	if (g) {
		g->table_rows = from->has_tables ? from->rows : 0;
		g->upper_rows = from->has_upper ? from->rows : 0;
	}
	extents_fini(x); // from here on the records say what there is
	struct surplus_sink surplus = {.sink = {surplus_put}, .m = m};
	if (from->sealed)
		segment_surplus(m->store->pool, seg, from->rows, true, &surplus.sink);
	r->sealed_rows = from->sealed ? from->rows : 0;
}

static void build_params(struct making *m)
{
	struct params *p = m->params;
	p->offset = extents_next(&m->own);
	struct params_record *r = pool_at(m->store->pool, p->offset);
	record_init(&r->header, RECORD_PARAMS, p->bytes);
	r->version = p->version;
	r->strips = m->spec->strips;
	r->bytes = p->bytes;
	memcpy(r + 1, m->from.params, m->from.params_bytes);
	r->header.checksum = record_checksum(r, p->bytes);
}

static int new_params(struct making *m)
{
	if (!m->from.params || m->params)
		return 0;
	struct params *p = calloc(1, sizeof *p);
	if (!p)
		return MPIG_ENOMEM;
	*p = (struct params){.bytes = m->spec->params_bytes, .version = m->from.signature_version, .refs = 1};
	m->params = p;
	if (charge_reference(m->store, &p->charge, &m->from.identity))
		return MPIG_ENOMEM;
	return extents_want(&m->own, p->bytes, 0);
}

int making_want_all(struct making *m)
{
	int status = new_params(m);
	for (uint32_t i = 0; i < m->from.segment_count && !status; i++) {
		if (m->shared[i])
			continue;
		m->segment[i] = segment_new(m->store, m->spec, &m->from.identity);
		status = m->segment[i] ? want_segment(m, &m->extents[i], &m->from.segment[i]) : MPIG_ENOMEM;
	}
	return status;
}

int making_hold_all(struct making *m, char *why)
{
	uint64_t total = extents_total(&m->own);
	for (uint32_t i = 0; i < m->from.segment_count; i++)
		total += extents_total(&m->extents[i]);
	int status = quota_admit(m->store, &m->from.identity, total, 1, why);
	if (status)
		return status;
	m->held = total;
	account_add(m->store, &m->from.identity, total);
	return 0;
}

// Without the lock: the pool clears what it hands out, which takes as long as the context is large.
int making_alloc_all(struct making *m, char *why)
{
	struct store *s = m->store;
	int status = 0;
	struct extents all = {0};
	for (size_t k = 0; !status && k < m->own.count; k++)
		status = extents_want(&all, m->own.item[k].bytes, m->own.item[k].node);
	for (uint32_t i = 0; !status && i < m->from.segment_count; i++)
		for (size_t k = 0; !status && k < m->extents[i].count; k++)
			status = extents_want(&all, m->extents[i].item[k].bytes, m->extents[i].item[k].node);
	if (status)
		refuse(why, status, "the daemon has no memory to load '%s'", m->from.name);
	else
		status = extents_alloc(s, &all, why);
	for (size_t k = 0; !status && k < m->own.count; k++)
		m->own.item[k].offset = extents_next(&all);
	for (uint32_t i = 0; !status && i < m->from.segment_count; i++)
		for (size_t k = 0; k < m->extents[i].count; k++)
			m->extents[i].item[k].offset = extents_next(&all);
	extents_fini(&all);
	return status;
}

void making_build_all(struct making *m)
{
	if (m->own.count)
		build_params(m);
	for (uint32_t i = 0; i < m->from.segment_count; i++)
		if (!m->shared[i])
			build_segment(m, i);
}
