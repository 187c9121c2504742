#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

struct segment *segment_new(struct store *s, struct spec *spec, const struct identity *owner)
{
	struct segment *seg = calloc(1, sizeof *seg);
	if (!seg)
		return NULL;
	if (charge_reference(s, &seg->charge, owner)) {
		free(seg);
		return NULL;
	}
	seg->spec = spec;
	atomic_fetch_add(&spec->refs, 1);
	seg->refs = 1;
	return seg;
}

void segment_free(struct segment *seg)
{
	piece_sums_free(seg);
	charge_fini(&seg->charge);
	spec_unref(seg->spec);
	free(seg);
}

// ---- generations -----------------------------------------------------------------------------------------------------

struct generation_record *generation_at(const struct pool *pool, const struct segment_record *r, uint32_t slot)
{
	uint64_t offset = load_word(&r->generation[slot].offset);
	return offset ? pool_at(pool, offset) : NULL;
}

// Another context's generation may go at any time, so it is not looked into: its slot says what it was made with. A slot whose parameters are
// the asking context's keeps its generation for as long as that reads with them.
uint32_t generation_slot(const struct segment_record *r, uint64_t params_offset)
{
	uint32_t slot = 0;
	while (slot < GENERATIONS &&
	       (!load_word(&r->generation[slot].offset) || load_word(&r->generation[slot].params) != params_offset))
		slot++;
	return slot;
}

struct generation_record *generation_of(const struct pool *pool, const struct segment_record *r, uint64_t params_offset)
{
	uint32_t slot = params_offset ? generation_slot(r, params_offset) : GENERATIONS;
	return slot < GENERATIONS ? generation_at(pool, r, slot) : NULL;
}

void generation_publish(struct pool *pool, struct segment_record *r, uint32_t slot, uint64_t offset)
{
	const struct generation_record *g = pool_at(pool, offset);
	pool_publish_word(pool, &r->generation[slot].params, g->params_offset);
	pool_publish_word(pool, &r->generation[slot].offset, offset);
}

struct generation_record *segment_generation(const struct pool *pool, const struct segment *seg)
{
	return generation_at(pool, seg->record, 0);
}

uint8_t *segment_id(struct segment *seg, uint64_t params_offset)
{
	const struct segment_record *r = seg->record;
	uint32_t slot = params_offset ? generation_slot(r, params_offset) : GENERATIONS;
	if (slot < GENERATIONS)
		return seg->id[slot];
	return load_word(&r->generation[0].offset) || load_word(&r->generation[1].offset) ? NULL : seg->id[0];
}

float *segment_frame(const struct pool *pool, const struct segment *seg, uint32_t strip)
{
	return (float *)pool_at(pool, seg->record->frames_offset) + strip * ROW_FRAME(seg->spec->max_d_k);
}

const uint8_t *generation_widths(const struct pool *pool, const struct segment_record *r)
{
	const struct generation_record *g = generation_at(pool, r, 0);
	return g ? generation_bits(g) : NULL;
}

// ---- extents of a segment --------------------------------------------------------------------------------------------
// An extent of codes holds the codes of all `rows` rows of its block, then as many factors. Of a sealed block only `used` rows
// count: what lies between the last used code and the first factor, and after the last used factor, is given back.
struct code_parts {
	uint64_t lead, tail, end;
}; // [0, lead) and [tail, end) stay; lead == tail: one piece

static struct code_parts code_parts(uint64_t per_row, uint32_t rows, uint32_t used)
{
	uint64_t factors = rows * per_row;
	struct code_parts p = {
		.lead = pool_round((used + SIG_GROUP - 1) / SIG_GROUP * SIG_GROUP * per_row),
		.tail = factors / POOL_GRANULE * POOL_GRANULE,
		.end = pool_round(factors + (uint64_t)used * 2),
	};
	if (p.lead > p.tail)
		p.lead = p.tail;
	return p;
}

uint32_t code_ranges(uint64_t per_row, uint32_t rows, uint32_t used, struct code_range range[2])
{
	struct code_parts p = code_parts(per_row, rows, used);
	range[0] = (struct code_range){0, p.lead == p.tail ? p.end : p.lead};
	range[1] = (struct code_range){p.tail, p.end};
	return p.lead == p.tail ? 1 : 2;
}

static void put(struct extent_sink *sink, uint64_t base, uint64_t begin, uint64_t end, enum extent_use use)
{
	if (end > begin)
		sink->put(sink, base + begin, end - begin, use);
}

// What a block keeps of its codes in one generation when `used` of its rows count, or is left over then.
static void code_extents(const struct pool *pool, const struct segment *seg, const struct generation_record *g, uint32_t b,
                         uint32_t used, bool surplus, struct extent_sink *sink)
{
	if (!g || !g->code_block[b])
		return;
	const uint64_t *codes = code_offsets(pool_at(pool, g->code_block[b]));
	uint32_t rows = seg->record->block[b].rows;
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++) {
		uint64_t per_row = code_bytes(seg->spec, generation_bits(g), strip);
		struct code_parts now = code_parts(per_row, rows, used), whole = code_parts(per_row, rows, rows);
		if (!codes[strip])
			continue;
		put(sink, codes[strip], surplus ? now.lead : 0, surplus ? now.tail : now.lead, USE_INDEX);
		put(sink, codes[strip], surplus ? now.end : now.tail, surplus ? whole.end : now.end, USE_INDEX);
	}
	if (!surplus)
		put(sink, g->code_block[b], 0, code_block_bytes(seg->spec->strips), USE_METADATA);
}

static void block_extents(const struct pool *pool, const struct segment *seg, uint32_t b, uint32_t used, struct extent_sink *sink)
{
	const struct segment_record *r = seg->record;
	struct block_record *record = pool_at(pool, r->block[b].offset);
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++)
		if (block_rows(record)[strip])
			put(sink, block_rows(record)[strip], 0,
			    pool_round((uint64_t)used * spec_strip(seg->spec, strip)->rows.stride), USE_ROWS);
	put(sink, r->block[b].offset, 0, block_bytes(seg->spec->strips, r->block[b].rows), USE_METADATA);
}

static void block_surplus(const struct pool *pool, const struct segment *seg, uint32_t b, uint32_t used, struct extent_sink *sink)
{
	struct block_record *record = pool_at(pool, seg->record->block[b].offset);
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++) {
		const struct layer *l = spec_strip(seg->spec, strip);
		if (block_rows(record)[strip])
			put(sink, block_rows(record)[strip], pool_round((uint64_t)used * l->rows.stride),
			    pool_round((uint64_t)seg->record->block[b].rows * l->rows.stride), USE_ROWS);
	}
}

void segment_surplus(const struct pool *pool, const struct segment *seg, uint32_t rows, bool trim, struct extent_sink *sink)
{
	const struct segment_record *r = seg->record;
	const struct generation_record *g = segment_generation(pool, seg);
	for (uint32_t b = 0; b < r->block_count; b++) {
		uint32_t first = r->block[b].first_row, n = r->block[b].rows;
		if (first >= rows) {
			code_extents(pool, seg, g, b, n, false, sink);
			block_extents(pool, seg, b, n, sink);
		} else if (trim && rows - first < n) {
			code_extents(pool, seg, g, b, rows - first, true, sink);
			block_surplus(pool, seg, b, rows - first, sink);
		}
	}
}

// Rows of a block that count: all of an open segment's, else what lies below sealed_rows.
static uint32_t rows_used(const struct segment_record *r, uint32_t b, uint32_t sealed_rows)
{
	uint32_t first = r->block[b].first_row, n = r->block[b].rows;
	return !sealed_rows ? n : first >= sealed_rows ? 0 : sealed_rows - first < n ? sealed_rows - first : n;
}

void generation_extents(const struct pool *pool, const struct segment *seg, const struct generation_record *g, uint64_t offset,
                        uint32_t rows, struct extent_sink *sink)
{
	const struct table_extent *table = generation_tables((struct generation_record *)g);
	for (uint32_t b = 0; b < seg->record->block_count; b++)
		if (rows_used(seg->record, b, rows))
			code_extents(pool, seg, g, b, rows_used(seg->record, b, rows), false, sink);
	for (uint32_t i = 0; rows && generation_has_tables(g) && i < 2 * g->strips; i++)
		if (table[i].offset)
			put(sink, table[i].offset, 0, pool_round(table[i].bytes), USE_INDEX);
	put(sink, offset, 0, g->header.bytes, USE_METADATA);
}

void generation_surplus(const struct pool *pool, const struct segment *seg, const struct generation_record *g, uint32_t rows,
                        struct extent_sink *sink)
{
	for (uint32_t b = 0; b < seg->record->block_count; b++) {
		uint32_t used = rows_used(seg->record, b, rows);
		if (used && used < seg->record->block[b].rows)
			code_extents(pool, seg, g, b, used, true, sink);
	}
}

void segment_extents(const struct pool *pool, const struct segment *seg, struct extent_sink *sink)
{
	const struct segment_record *r = seg->record;
	for (uint32_t slot = 0; slot < GENERATIONS; slot++) {
		const struct generation_record *g = generation_at(pool, r, slot);
		if (g)
			generation_extents(pool, seg, g, r->generation[slot].offset, r->sealed_rows, sink);
	}
	for (uint32_t b = 0; b < r->block_count; b++)
		if (rows_used(r, b, r->sealed_rows))
			block_extents(pool, seg, b, rows_used(r, b, r->sealed_rows), sink);
	if (r->frames_offset)
		put(sink, r->frames_offset, 0, pool_round(frames_bytes(seg->spec)), USE_METADATA);
	put(sink, seg->offset, 0, r->header.bytes, USE_METADATA);
}

// ---- accounting ------------------------------------------------------------------------------------------------------

static uint64_t *use_counter(struct segment *seg, enum extent_use use)
{
	return use == USE_ROWS ? &seg->rows_bytes : use == USE_INDEX ? &seg->index_bytes : &seg->metadata_bytes;
}

void segment_grow(struct store *s, struct segment *seg, uint64_t bytes, enum extent_use use)
{
	*use_counter(seg, use) += bytes;
	if (use == USE_METADATA)
		s->metadata_bytes += bytes;
	charge_grow(s, &seg->charge, bytes);
}

void segment_shrink(struct store *s, struct segment *seg, uint64_t bytes, enum extent_use use)
{
	assert(*use_counter(seg, use) >= bytes);
	*use_counter(seg, use) -= bytes;
	if (use == USE_METADATA)
		s->metadata_bytes -= bytes;
	charge_shrink(s, &seg->charge, bytes);
}

// ---- trimming --------------------------------------------------------------------------------------------------------

struct counting_sink {
	struct extent_sink sink;
	size_t count;
};
static void count_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	(void)offset, (void)bytes, (void)use;
	((struct counting_sink *)sink)->count++;
}

struct trash_sink {
	struct extent_sink sink;
	struct trash *trash;
	struct store *store;
	struct segment *segment;
};
static void trash_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct trash_sink *t = (struct trash_sink *)sink;
	trash_add(t->trash, offset, bytes);
	segment_shrink(t->store, t->segment, bytes, use);
}

struct trash *segment_trash_new(const struct store *s, const struct segment *seg, uint32_t rows, bool trim, size_t more)
{
	struct counting_sink counter = {.sink = {count_put}};
	segment_surplus(s->pool, seg, rows, trim, &counter.sink);
	return trash_new(counter.count + more);
}

void segment_trash_fill(struct store *s, struct segment *seg, uint32_t rows, bool trim, struct trash *trash)
{
	struct trash_sink sink = {.sink = {trash_put}, .trash = trash, .store = s, .segment = seg};
	segment_surplus(s->pool, seg, rows, trim, &sink.sink);
}

// ---- the end of a segment, of parameters -----------------------------------------------------------------------------

struct freeing_sink {
	struct extent_sink sink;
	struct pool *pool;
};
static void free_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	(void)use;
	pool_free(((struct freeing_sink *)sink)->pool, offset, bytes);
}

struct drop_sink {
	struct extent_sink sink;
	struct store *store;
	struct segment *segment;
	struct trash *trash;
};
static void drop_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct drop_sink *d = (struct drop_sink *)sink;
	segment_shrink(d->store, d->segment, bytes, use);
	if (d->trash)
		trash_add(d->trash, offset, bytes);
	else
		pool_free(d->store->pool, offset, bytes);
}

size_t generation_extent_count(const struct pool *pool, const struct segment *seg, uint32_t slot)
{
	struct counting_sink counter = {.sink = {count_put}};
	const struct segment_record *r = seg->record;
	generation_extents(pool, seg, generation_at(pool, r, slot), r->generation[slot].offset, r->sealed_rows, &counter.sink);
	return counter.count;
}

void generation_drop(struct store *s, struct segment *seg, uint32_t slot, struct trash *trash)
{
	struct drop_sink sink = {.sink = {drop_put}, .store = s, .segment = seg, .trash = trash};
	struct segment_record *r = seg->record;
	uint64_t offset = r->generation[slot].offset;
	pool_publish_word(s->pool, &r->generation[slot].offset, 0);
	memset(seg->id[slot], 0, sizeof seg->id[slot]);
	generation_extents(s->pool, seg, pool_at(s->pool, offset), offset, r->sealed_rows, &sink.sink);
}

// Extents are put innermost first, records after what they lead to: a record is never read after it was freed.
static void segment_destroy(struct store *s, struct garbage *g)
{
	struct segment *seg = (struct segment *)g;
	struct freeing_sink sink = {.sink = {free_put}, .pool = s->pool};
	segment_extents(s->pool, seg, &sink.sink);
	segment_free(seg);
}

void segment_put(struct store *s, struct segment *seg)
{
	if (--seg->refs)
		return;
	s->metadata_bytes -= seg->metadata_bytes;
	seg->garbage.destroy = segment_destroy;
	store_bury(s, &seg->garbage);
}

static void params_destroy(struct store *s, struct garbage *g)
{
	struct params *p = (struct params *)g;
	pool_free(s->pool, p->offset, p->bytes);
	charge_fini(&p->charge);
	free(p);
}

// Nobody reads with these parameters any more: what was made with them goes, before their own memory does.
static void drop_generations(struct store *s, uint64_t params_offset)
{
	for (size_t i = 0; i < s->count; i++) {
		const struct snapshot *snap = atomic_load(&s->context[i]->snapshot);
		for (uint32_t k = 0; k < snap->count; k++) {
			struct segment *seg = snap->ref[k].segment;
			uint32_t slot = generation_slot(seg->record, params_offset);
			if (slot == GENERATIONS || !seg->record->sealed_rows)
				continue;
			struct trash *trash = trash_new(generation_extent_count(s->pool, seg, slot));
			generation_drop(s, seg, slot, trash);
			if (trash)
				store_bury(s, &trash->garbage);
		}
	}
}

void params_put(struct store *s, struct params *p)
{
	if (!p || --p->refs)
		return;
	drop_generations(s, p->offset);
	s->metadata_bytes -= p->bytes;
	p->garbage.destroy = params_destroy;
	store_bury(s, &p->garbage);
}
