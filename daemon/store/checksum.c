// Checksums of sealed segments. One over the segment's records, kept in the segment record, is checked whenever a pool is attached: with
// it every offset the segment leads to can be trusted; it covers the frames of int8 keys too. Others, of what the records lead to (content.c), are
// made while sealing and checked on request.
#include <stdlib.h>

#define XXH_STATIC_LINKING_ONLY // a state on the stack
#include <xxhash.h>

#include "daemon/store/internal.h"

// ---- the records -----------------------------------------------------------------------------------------------------

// XXH3 of a record's head and what follows it; without sums: as if it had no checksum of content yet.
static uint64_t hash_record(const struct record_header *head, size_t bytes, bool sums, uint64_t h)
{
	if (sums || !head->checksum)
		return XXH3_64bits_withSeed(head, bytes, h);
	struct record_header bare = *head;
	XXH3_state_t state;
	bare.checksum = 0;
	XXH3_64bits_reset_withSeed(&state, h);
	XXH3_64bits_update(&state, &bare, sizeof bare);
	XXH3_64bits_update(&state, head + 1, bytes - sizeof bare);
	return XXH3_64bits_digest(&state);
}

static uint64_t hash_codes(const struct pool *pool, const struct segment_record *r, uint32_t b, const struct generation_record *g,
                           bool sums, uint64_t h)
{
	h = XXH3_64bits_withSeed(&g->code_block[b], 8, h);
	if (!g->code_block[b])
		return h;
	const struct code_block_record *cb = pool_at(pool, g->code_block[b]);
	return hash_record(&cb->header, sizeof *cb + (uint64_t)r->strips * 8, sums, h);
}

static uint64_t hash_records(const struct pool *pool, const struct spec *spec, const struct segment_record *r,
                             uint32_t sealed_rows, bool sums)
{
	uint64_t head[] = {r->frames_offset, sealed_rows, r->strips};
	uint64_t h = XXH3_64bits(head, sizeof head);
	uint32_t rows = 0;
	for (uint32_t b = 0; rows < sealed_rows; rows += r->block[b++].rows) {
		const struct block_record *block = pool_at(pool, r->block[b].offset);
		h = XXH3_64bits_withSeed(&r->block[b], sizeof r->block[b], h);
		h = hash_record(&block->header, sizeof *block + (uint64_t)r->strips * 8, sums, h);
	}
	if (r->frames_offset)
		h = XXH3_64bits_withSeed(pool_at(pool, r->frames_offset), frames_bytes(spec), h);
	return not_zero(h);
}

static uint64_t hash_generation(const struct pool *pool, const struct segment_record *r, const struct generation_record *g,
                                uint32_t sealed_rows, bool sums)
{
	uint64_t head[] = {g->params_offset,
	                   g->version,
	                   g->strips,
	                   g->table_rows,
	                   g->upper_rows,
	                   sealed_rows,
	                   sums ? g->header.checksum : 0};
	uint64_t h = XXH3_64bits(head, sizeof head);
	uint32_t rows = 0;
	for (uint32_t b = 0; rows < sealed_rows; rows += r->block[b++].rows)
		h = hash_codes(pool, r, b, g, sums, h);
	h = XXH3_64bits_withSeed(generation_bits(g), r->strips, h);
	if (generation_has_tables(g))
		h = XXH3_64bits_withSeed(generation_tables((struct generation_record *)g),
		                         2 * r->strips * sizeof(struct table_extent), h);
	return not_zero(h);
}

uint64_t generation_checksum(const struct pool *pool, const struct segment_record *r, const struct generation_record *g,
                             uint32_t sealed_rows)
{
	return hash_generation(pool, r, g, sealed_rows, true);
}

uint64_t segment_identity(const struct segment_record *r, const struct generation_record *g)
{
	uint64_t both[] = {r->header.checksum, g ? g->records : 0};
	return XXH3_64bits(both, sizeof both);
}

uint64_t segment_checksum(const struct pool *pool, const struct spec *spec, const struct segment_record *r, uint32_t sealed_rows)
{
	return hash_records(pool, spec, r, sealed_rows, true);
}

// NULL: there is none in the slot, or none that the walk may look at.
static struct generation_record *walked(const struct pool *pool, const struct segment_record *r, uint32_t slot,
                                        const struct segment_walk *walk)
{
	if (walk && walk->own && load_word(&r->generation[slot].params) != walk->params)
		return NULL;
	return generation_at(pool, r, slot);
}

bool segment_records_good(const struct pool *pool, const struct spec *spec, const struct segment_record *r,
                          const struct segment_walk *walk)
{
	uint64_t stored = load_word(&r->header.checksum); // before the sums: segment_make_sums stores it after them
	bool good = stored == hash_records(pool, spec, r, r->sealed_rows, true) ||
	            stored == hash_records(pool, spec, r, r->sealed_rows, false);
	for (uint32_t slot = 0; slot < GENERATIONS; slot++) {
		const struct generation_record *g = walked(pool, r, slot, walk);
		uint64_t records = g ? load_word(&g->records) : 0;
		good = good && (!g || records == hash_generation(pool, r, g, r->sealed_rows, true) ||
		                records == hash_generation(pool, r, g, r->sealed_rows, false));
	}
	return good;
}

void segment_publish_sealed(struct pool *pool, const struct spec *spec, struct segment_record *r, uint32_t rows)
{
	struct generation_record *g = generation_at(pool, r, 0);
	if (g)
		pool_publish_word(pool, &g->records, generation_checksum(pool, r, g, rows));
	pool_publish_word(pool, &r->header.checksum, segment_checksum(pool, spec, r, rows));
	pool_publish_word32(pool, &r->sealed_rows, rows);
}

// ---- verification ----------------------------------------------------------------------------------------------------

static void compare(struct segment_walk *walk, uint64_t stored, uint64_t found, uint64_t bytes)
{
	walk->damaged |= stored && stored != found;
	walk->bytes += bytes;
	walk->checked += stored != 0;
	walk->unchecked += stored == 0;
}

static void verify_codes(const struct store *s, const struct segment *seg, const struct generation_record *g, uint32_t b,
                         struct segment_walk *walk)
{
	const struct segment_record *r = seg->record;
	struct code_block_record *cb = g && g->code_block[b] ? pool_at(s->pool, g->code_block[b]) : NULL;
	uint64_t bytes = 0;
	for (uint32_t strip = 0; cb && strip < seg->spec->strips; strip++)
		bytes += code_offsets(cb)[strip] ? 2 + code_bytes(seg->spec, generation_bits(g), strip) : 0;
	if (cb)
		compare(walk, cb->header.checksum, cb->header.checksum ? code_block_content(s, seg, g, b, r->sealed_rows) : 0,
		        used_rows(r, b, r->sealed_rows) * bytes);
}

static void verify_block(const struct store *s, const struct segment *seg, uint32_t b, struct segment_walk *walk)
{
	const struct segment_record *r = seg->record;
	const struct block_record *block = pool_at(s->pool, r->block[b].offset);
	uint64_t rows = 4;
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++)
		rows += spec_strip(seg->spec, strip)->rows.stride;
	compare(walk, block->header.checksum, block->header.checksum ? block_content(s, seg, b, r->sealed_rows) : 0,
	        used_rows(r, b, r->sealed_rows) * rows);
}

// The sum that was carried from step to step is good enough to say that all is well. If it is another, the generation may have come, or
// changed, in between: damage is only what one look at all of it finds.
static uint64_t tables_found(const struct store *s, struct generation_record *g, uint64_t sum, uint32_t tables)
{
	uint64_t found = not_zero(sum);
	return !g->header.checksum || found == g->header.checksum ? found : tables_content(s, generation_tables(g), tables);
}

// Blocks, then of each generation the codes of each block and the table of each strip. Generations come and go while a living context is
// verified; the caller holds what keeps those that there are now.
bool segment_verify_step(const struct store *s, const struct segment *seg, struct segment_walk *walk)
{
	const struct pool *pool = s->pool;
	const struct segment_record *r = seg->record;
	uint32_t blocks = blocks_of(r, r->sealed_rows), tables = 2 * seg->spec->strips, step = walk->step;
	if (step >= blocks + GENERATIONS * (blocks + tables))
		return false;
	walk->step++;
	if (step == 0)
		compare(walk, 1, segment_records_good(pool, seg->spec, r, walk), pool_round(sizeof *r) + frames_bytes(seg->spec));
	if (step < blocks) {
		verify_block(s, seg, step, walk);
		return true;
	}
	uint32_t slot = (step - blocks) / (blocks + tables), part = (step - blocks) % (blocks + tables);
	struct generation_record *g = walked(pool, r, slot, walk);
	if (part < blocks) {
		verify_codes(s, seg, g, part, walk);
		return true;
	}
	walk->sum = part == blocks ? 0 : walk->sum;
	if (!g || !generation_has_tables(g))
		return true;
	const struct table_extent *table = &generation_tables(g)[part - blocks];
	walk->sum += g->header.checksum ? table_content(s, table, part - blocks) : 0;
	walk->bytes += table->offset ? table->bytes : 0;
	if (part + 1 == blocks + tables)
		compare(walk, g->header.checksum, tables_found(s, g, walk->sum, tables), 0);
	return true;
}

// ---- sums made later -------------------------------------------------------------------------------------------------

static bool codes_have_sums(const struct pool *pool, const struct segment_record *r, const struct generation_record *g)
{
	bool all = !generation_has_tables(g) || g->header.checksum;
	for (uint32_t b = 0, blocks = blocks_of(r, r->sealed_rows); b < blocks; b++) {
		const struct code_block_record *cb = g->code_block[b] ? pool_at(pool, g->code_block[b]) : NULL;
		all = all && (!cb || cb->header.checksum);
	}
	return all && g->records == generation_checksum(pool, r, g, r->sealed_rows);
}

bool segment_has_sums(const struct pool *pool, const struct segment *seg, const struct generation_record *g)
{
	const struct segment_record *r = seg->record;
	bool all = !g || codes_have_sums(pool, r, g);
	for (uint32_t b = 0, blocks = blocks_of(r, r->sealed_rows); b < blocks; b++)
		all = all && ((const struct block_record *)pool_at(pool, r->block[b].offset))->header.checksum;
	return all && r->header.checksum == segment_checksum(pool, seg->spec, r, r->sealed_rows);
}

int segment_make_sums(struct store *s, struct segment *seg, struct generation_record *g)
{
	struct segment_record *r = seg->record;
	if (segment_has_sums(s->pool, seg, g))
		return 0;
	const struct table_extent *table = g && generation_has_tables(g) ? generation_tables(g) : NULL;
	store_lock(s);
	seg->summing++;
	store_unlock(s);
	struct content_sums *sums = content_sums_new(s, seg, g, table, r->sealed_rows);
	store_lock(s);
	if (sums) {
		content_sums_publish(s->pool, r, g, sums);
		if (g)
			pool_publish_word(s->pool, &g->records, generation_checksum(s->pool, r, g, r->sealed_rows));
		pool_publish_word(s->pool, &r->header.checksum, segment_checksum(s->pool, seg->spec, r, r->sealed_rows));
	}
	if (--seg->summing == 0 && segment_has_sums(s->pool, seg, NULL))
		piece_sums_free(seg);
	store_unlock(s);
	int status = sums ? 0 : MPIG_ENOMEM;
	free(sums);
	return status;
}

// ---- a context, part by part -----------------------------------------------------------------------------------------

// The parameters of the index come after the last segment.
static void verify_params(const struct store *s, const struct context *c, struct verify_part *part)
{
	const struct params *p = atomic_load(&c->params);
	if (!p)
		return;
	const struct params_record *r = pool_at(s->pool, p->offset);
	part->segment++;
	part->part = 0;
	part->bytes = p->bytes;
	part->checked = 1;
	part->damaged = r->header.checksum != record_checksum(r, p->bytes);
}

static void verify_pinned(const struct store *s, const struct context *c, struct verify_part *part)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	if (part->segment == snap->count)
		verify_params(s, c, part);
	if (part->segment >= snap->count)
		return;
	const struct segment *seg = snap->ref[part->segment].segment;
	const struct params *p = atomic_load(&c->params);
	struct segment_walk walk = {
		.step = part->part, .sum = part->part ? part->sum : 0, .own = true, .params = p ? p->offset : 0};
	part->more = true;
	if (load_word32(&seg->record->sealed_rows) && segment_verify_step(s, seg, &walk)) {
		part->part++;
	} else {
		walk.unchecked += !seg->record->sealed_rows;
		part->segment++;
		part->part = 0;
	}
	part->sum = walk.sum;
	part->bytes = walk.bytes;
	part->checked = walk.checked;
	part->unchecked = walk.unchecked;
	part->damaged = walk.damaged;
}

int store_context_verify(struct store *s, const struct credentials *who, const char *name, struct verify_part *part, char *why)
{
	struct context *c;
	store_lock(s);
	int status = context_find(s, who, name, ACCESS_READ, &c, why);
	if (!status)
		context_ref(c);
	store_unlock(s);
	if (status)
		return status;
	*part = (struct verify_part){.segment = part->segment, .part = part->part, .sum = part->sum};
	uint64_t epoch = context_pin(c);
	if (!context_dropped(c))
		verify_pinned(s, c, part);
	context_unpin(c, epoch);
	context_unref(c);
	return 0;
}
