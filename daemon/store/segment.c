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

struct generation_record *segment_generation(const struct pool *pool, const struct segment *seg)
{
	uint64_t offset = load_word(&seg->record->generation_offset);
	return offset ? pool_at(pool, offset) : NULL;
}

float *segment_frame(const struct pool *pool, const struct segment *seg, uint32_t strip)
{
	return (float *)pool_at(pool, seg->record->frames_offset) + strip * ROW_FRAME(seg->spec->max_d_k);
}

const uint8_t *generation_widths(const struct pool *pool, const struct segment_record *r)
{
	uint64_t offset = load_word(&r->generation_offset);
	return offset ? generation_bits(pool_at(pool, offset)) : NULL;
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

struct block_view {
	struct block_record *record;
	const uint64_t *codes; // NULL: the block has no codes
	const uint8_t *bits;   // of its generation
	uint64_t offset, code_block;
	uint32_t first_row, rows;
};

static struct block_view block_at(const struct pool *pool, const struct segment *seg, uint32_t b)
{
	const struct generation_record *g = segment_generation(pool, seg);
	struct block_view v = {
		.offset = seg->record->block[b].offset,
		.first_row = seg->record->block[b].first_row,
		.rows = seg->record->block[b].rows,
		.code_block = g ? g->code_block[b] : 0,
		.bits = g ? generation_bits(g) : NULL,
	};
	v.record = pool_at(pool, v.offset);
	v.codes = v.code_block ? code_offsets(pool_at(pool, v.code_block)) : NULL;
	return v;
}

static void block_extents(const struct segment *seg, const struct block_view *v, uint32_t used, struct extent_sink *sink)
{
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++) {
		const struct layer *l = spec_strip(seg->spec, strip);
		uint64_t rows = block_rows(v->record)[strip], codes = v->codes ? v->codes[strip] : 0;
		if (rows)
			put(sink, rows, 0, pool_round((uint64_t)used * l->rows.stride), USE_ROWS);
		if (codes) {
			struct code_parts p = code_parts(code_bytes(seg->spec, v->bits, strip), v->rows, used);
			put(sink, codes, 0, p.lead, USE_INDEX);
			put(sink, codes, p.tail, p.end, USE_INDEX);
		}
	}
	if (v->code_block)
		put(sink, v->code_block, 0, code_block_bytes(seg->spec->strips), USE_METADATA);
	put(sink, v->offset, 0, block_bytes(seg->spec->strips, v->rows), USE_METADATA);
}

static void block_surplus(const struct segment *seg, const struct block_view *v, uint32_t used, struct extent_sink *sink)
{
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++) {
		const struct layer *l = spec_strip(seg->spec, strip);
		uint64_t rows = block_rows(v->record)[strip], codes = v->codes ? v->codes[strip] : 0;
		if (rows)
			put(sink, rows, pool_round((uint64_t)used * l->rows.stride),
			    pool_round((uint64_t)v->rows * l->rows.stride), USE_ROWS);
		if (codes) {
			uint64_t per_row = code_bytes(seg->spec, v->bits, strip);
			struct code_parts now = code_parts(per_row, v->rows, used), whole = code_parts(per_row, v->rows, v->rows);
			put(sink, codes, now.lead, now.tail, USE_INDEX);
			put(sink, codes, now.end, whole.end, USE_INDEX);
		}
	}
}

void segment_surplus(const struct pool *pool, const struct segment *seg, uint32_t rows, bool trim, struct extent_sink *sink)
{
	for (uint32_t b = 0; b < seg->record->block_count; b++) {
		struct block_view v = block_at(pool, seg, b);
		if (v.first_row >= rows)
			block_extents(seg, &v, v.rows, sink);
		else if (trim && rows - v.first_row < v.rows)
			block_surplus(seg, &v, rows - v.first_row, sink);
	}
}

void segment_extents(const struct pool *pool, const struct segment *seg, struct extent_sink *sink)
{
	const struct segment_record *r = seg->record;
	const struct generation_record *g = segment_generation(pool, seg);
	for (uint32_t b = 0; b < r->block_count; b++) {
		struct block_view v = block_at(pool, seg, b);
		if (!r->sealed_rows)
			block_extents(seg, &v, v.rows, sink);
		else if (v.first_row < r->sealed_rows)
			block_extents(seg, &v, r->sealed_rows - v.first_row < v.rows ? r->sealed_rows - v.first_row : v.rows,
			              sink);
	}
	if (g) {
		const struct table_extent *table = generation_tables((struct generation_record *)g);
		for (uint32_t strip = 0; r->sealed_rows && g->table_rows && strip < g->strips; strip++)
			if (table[strip].offset)
				put(sink, table[strip].offset, 0, pool_round(table[strip].bytes), USE_INDEX);
		put(sink, r->generation_offset, 0, g->header.bytes, USE_METADATA);
	}
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

// Extents are put innermost first, records after what they lead to: a record is never read after it was freed.
static void segment_destroy(struct store *s, struct garbage *g)
{
	struct segment *seg = (struct segment *)g;
	struct freeing_sink sink = {.sink = {free_put}, .pool = s->pool};
	segment_extents(s->pool, seg, &sink.sink);
	charge_fini(&seg->charge);
	spec_unref(seg->spec);
	free(seg);
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

void params_put(struct store *s, struct params *p)
{
	if (!p || --p->refs)
		return;
	s->metadata_bytes -= p->bytes;
	p->garbage.destroy = params_destroy;
	store_bury(s, &p->garbage);
}
