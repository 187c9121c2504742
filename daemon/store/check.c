// Records found in a pool, looked at before they are believed: every offset, length and count is compared with what the spec says it must
// be, so that whoever reads the context afterwards reads inside the pool, and inside extents of the right size.
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "daemon/store/internal.h"

__attribute__((format(printf, 2, 3))) static bool bad(char *why, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, MPIG_TEXT_BYTES, format, args);
	va_end(args);
	return false;
}

void *record_at(const struct pool *pool, uint64_t offset, enum record_kind kind, uint64_t bytes)
{
	if (!pool_inside(pool, offset, bytes))
		return NULL;
	struct record_header *header = pool_at(pool, offset);
	return record_is(header, kind) && header->bytes == bytes ? header : NULL;
}

// A segment, its block `b`, and how many rows of the block there are.
struct block_use {
	const struct segment_use *use;
	const struct segment_record *r;
	const struct generation_record *g;
	uint32_t b, rows;
	bool needed; // the context uses rows of it: all strips must be there
};

static bool check_codes(const struct block_use *u, const struct block_record *block, char *why)
{
	const struct spec *spec = u->use->spec;
	uint64_t offset = u->g ? u->g->code_block[u->b] : 0;
	if (!offset)
		return true;
	struct code_block_record *cb = record_at(u->use->pool, offset, RECORD_CODE_BLOCK, code_block_bytes(spec->strips));
	if (!spec->has_codes || !cb || cb->rows != block->rows || cb->strips != spec->strips)
		return bad(why, "no code block of block %u at %#" PRIx64, u->b, offset);
	for (uint32_t strip = 0; strip < spec->strips; strip++) {
		const struct layer *l = spec_strip(spec, strip);
		uint64_t codes = code_offsets(cb)[strip];
		uint64_t bytes = block->rows * code_bytes(spec, generation_bits(u->g), strip) + (uint64_t)u->rows * 2;
		bool wanted = l->code_bytes_per_row && block_rows((struct block_record *)block)[strip];
		if (codes ? !l->code_bytes_per_row || !pool_inside(u->use->pool, codes, bytes) : wanted)
			return bad(why, "codes of block %u, strip %u, cannot be at %#" PRIx64, u->b, strip, codes);
	}
	return true;
}

static bool check_block(const struct block_use *u, char *why)
{
	const struct spec *spec = u->use->spec;
	uint64_t offset = u->r->block[u->b].offset;
	uint32_t rows = u->r->block[u->b].rows;
	struct block_record *block = record_at(u->use->pool, offset, RECORD_BLOCK, block_bytes(spec->strips, rows));
	if (!block || block->rows != rows || block->strips != spec->strips)
		return bad(why, "no record of block %u at %#" PRIx64, u->b, offset);
	for (uint32_t strip = 0; strip < spec->strips; strip++) {
		uint64_t at = block_rows(block)[strip];
		if (at ? !pool_inside(u->use->pool, at, (uint64_t)u->rows * spec_strip(spec, strip)->rows.stride) : u->needed)
			return bad(why, "rows of block %u, strip %u, cannot be at %#" PRIx64, u->b, strip, at);
	}
	return check_codes(u, block, why);
}

// The extents of a kind: what a layer's must be, or none. rows: 0 if there are none of this kind.
static bool check_extents(const struct segment_use *use, const struct table_extent *t, const uint8_t *bits, bool upper,
                          uint32_t rows, char *why)
{
	for (uint32_t strip = 0; strip < use->spec->strips; strip++) {
		const struct layer *l = spec_strip(use->spec, strip);
		uint64_t wanted = 0;
		if (rows && upper)
			wanted = upper_bytes(use->spec, bits, strip, rows);
		else if (rows && l->wire.paper_k)
			wanted = use->table_bytes(l, rows);
		bool good =
			wanted ? t[strip].bytes == wanted && pool_inside(use->pool, t[strip].offset, wanted) : !t[strip].offset;
		if (!good)
			return bad(why, "the %s of strip %u cannot be %" PRIu64 " bytes at %#" PRIx64,
			           upper ? "upper layer" : "table", strip, t[strip].bytes, t[strip].offset);
	}
	return true;
}

static bool check_tables(const struct segment_use *use, const struct segment_record *r, struct generation_record *g, char *why)
{
	if (!g || !r->sealed_rows || !generation_has_tables(g))
		return true;
	if (g->table_rows && (g->table_rows != r->sealed_rows || !use->spec->has_tables))
		return bad(why, "tables of %u rows in a segment of %u", g->table_rows, r->sealed_rows);
	if (g->upper_rows && (g->upper_rows != r->sealed_rows || !use->spec->has_upper))
		return bad(why, "an upper layer of %u rows in a segment of %u", g->upper_rows, r->sealed_rows);
	for (uint32_t b = 0; g->upper_rows && b < r->block_count && r->block[b].first_row < r->sealed_rows; b++)
		if (!g->code_block[b])
			return bad(why, "an upper layer over block %u, which has no codes", b);
	const uint8_t *bits = generation_bits(g);
	return check_extents(use, generation_tables(g), bits, false, g->table_rows, why) &&
	       check_extents(use, generation_uppers(g), bits, true, g->upper_rows, why);
}

static bool check_head(const struct segment_use *use, const struct segment_record *r, char *why)
{
	const struct spec *spec = use->spec;
	if (r->strips != spec->strips || r->block_count > SEGMENT_MAX_BLOCKS)
		return bad(why, "%u strips and %u blocks", r->strips, r->block_count);
	if (spec->has_int8 ? !pool_inside(use->pool, r->frames_offset, frames_bytes(spec)) : r->frames_offset != 0)
		return bad(why, "frames cannot be at %#" PRIx64, r->frames_offset);
	return true;
}

// An open segment has the generation of its context's parameters, or none.
static bool check_generation(const struct segment_use *use, const struct segment_record *r, uint32_t slot,
                             struct generation_record **g, char *why)
{
	const struct spec *spec = use->spec;
	uint64_t offset = r->generation[slot].offset, params = r->generation[slot].params;
	*g = NULL;
	if (!offset)
		return true;
	*g = record_at(use->pool, offset, RECORD_GENERATION, generation_bytes(spec->strips));
	if (!*g || (*g)->strips != spec->strips || !params || (*g)->params_offset != params ||
	    !params_bits_good(spec, generation_bits(*g)) || (!r->sealed_rows && (slot || params != use->params_offset)))
		return bad(why, "no index generation of the parameters %#" PRIx64 " at %#" PRIx64, params, offset);
	if (params == use->params_offset &&
	    memcmp(generation_bits(*g), params_bits(pool_at(use->pool, params)), spec->strips) != 0)
		return bad(why, "codes of the generation at %#" PRIx64 " are not as wide as the parameters say", offset);
	return true;
}

static bool check_blocks(const struct segment_use *use, const struct segment_record *r, const struct generation_record *g,
                         uint32_t *rows, char *why)
{
	for (uint32_t b = 0; b < r->block_count; b++) {
		uint32_t n = r->block[b].rows, first = r->block[b].first_row;
		if (r->sealed_rows && *rows >= r->sealed_rows) { // does not exist any more
			if (first < r->sealed_rows)
				return bad(why, "block %u says it holds rows from %u on", b, first);
			continue;
		}
		if (first != *rows || n < BLOCK_MIN_ROWS || n > BLOCK_MAX_ROWS || n % SIG_GROUP || n > SEGMENT_MAX_ROWS - *rows)
			return bad(why, "block %u holds %u rows from %u on", b, n, first);
		uint32_t count = r->sealed_rows && r->sealed_rows - first < n ? r->sealed_rows - first : n;
		struct block_use u = {use, r, g, b, count, r->sealed_rows || first < use->rows};
		if (!check_block(&u, why))
			return false;
		*rows += n;
	}
	return true;
}

bool segment_check(const struct segment_use *use, char *why)
{
	uint32_t rows = 0;
	const struct segment_record *r = record_at(use->pool, use->offset, RECORD_SEGMENT, pool_round(sizeof *r));
	if (!r)
		return bad(why, "no record");
	if (!check_head(use, r, why))
		return false;
	for (uint32_t slot = 0; slot < GENERATIONS; slot++) {
		struct generation_record *g;
		rows = 0;
		if (!check_generation(use, r, slot, &g, why) || !check_blocks(use, r, g, &rows, why) ||
		    !check_tables(use, r, g, why))
			return false;
	}
	if (r->sealed_rows > rows || use->rows > (r->sealed_rows ? r->sealed_rows : rows))
		return bad(why, "%u rows in blocks, %u sealed, %u used", rows, r->sealed_rows, use->rows);
	if (r->sealed_rows && !segment_records_good(use->pool, use->spec, r, NULL))
		return bad(why, "its records do not have their checksum");
	return true;
}
