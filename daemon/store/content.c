// Checksums of what a sealed segment's records lead to: rows and token ids (in each block record), codes (in each code block), tables and
// upper layers (in the generation).
//
//   piece    PIECE_ROWS rows of a strip, or the last ones of a block: of their bytes
//   strip    of the sums of its pieces in a block; of its codes and its factors there
//   block    of the sums of its token ids and of its strips
//
// So everything but the last step is anybody's: strips are summed by as many threads as there are, and pieces while they are in the caches of
// whoever wrote them (struct piece_sums). What those were is private memory: without them rows are read.
#include <stdlib.h>

#define XXH_STATIC_LINKING_ONLY // a state on the stack
#include <xxhash.h>

#include "daemon/store/internal.h"

// ---- pieces of open segments -----------------------------------------------------------------------------------------

static size_t pieces_of(uint32_t rows)
{
	return (rows + PIECE_ROWS - 1) / PIECE_ROWS;
}

void piece_sums_block(struct segment *seg, uint32_t block, uint32_t rows)
{
	if (!seg->pieces)
		seg->pieces = calloc(1, sizeof *seg->pieces);
	if (!seg->pieces)
		return;
	free(seg->pieces->block[block]);
	seg->pieces->block[block] = calloc(seg->spec->strips * pieces_of(rows), sizeof(uint64_t));
}

uint64_t *piece_sums_at(const struct segment *seg, uint32_t block, uint32_t strip, uint32_t block_row)
{
	uint64_t *sums = seg->pieces ? seg->pieces->block[block] : NULL;
	return sums ? sums + strip * pieces_of(seg->record->block[block].rows) + block_row / PIECE_ROWS : NULL;
}

void piece_sums_free(struct segment *seg)
{
	for (uint32_t b = 0; seg->pieces && b < SEGMENT_MAX_BLOCKS; b++)
		free(seg->pieces->block[b]);
	free(seg->pieces);
	seg->pieces = NULL;
}

// ---- strips ----------------------------------------------------------------------------------------------------------

static void fold(XXH3_state_t *state, uint64_t sum)
{
	XXH3_64bits_update(state, &sum, sizeof sum);
}

// known: sums of its pieces, or NULL: all rows are read.
static uint64_t rows_sum(const struct store *s, const struct segment *seg, uint32_t b, uint32_t strip, uint32_t used,
                         const uint64_t *known)
{
	const struct block_record *block = pool_at(s->pool, seg->record->block[b].offset);
	const uint8_t *rows = pool_at(s->pool, block_rows((struct block_record *)block)[strip]);
	uint64_t stride = spec_strip(seg->spec, strip)->rows.stride;
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	for (uint32_t row = 0; row < used; row += PIECE_ROWS) {
		uint32_t n = used - row < PIECE_ROWS ? used - row : PIECE_ROWS;
		uint64_t sum = known && n == PIECE_ROWS ? known[row / PIECE_ROWS] : 0;
		fold(&state, sum ? sum : piece_sum(s->options.checksum, rows + row * stride, n * stride));
	}
	return XXH3_64bits_digest(&state);
}

// 0: the strip has none.
static uint64_t codes_sum(const struct store *s, const struct segment *seg, const struct generation_record *g, uint32_t b,
                          uint32_t strip, uint32_t used)
{
	struct code_block_record *cb = pool_at(s->pool, g->code_block[b]);
	if (!code_offsets(cb)[strip])
		return 0;
	const uint8_t *codes = pool_at(s->pool, code_offsets(cb)[strip]);
	uint64_t per_row = code_bytes(seg->spec, generation_bits(g), strip), groups = (used + SIG_GROUP - 1) / SIG_GROUP;
	uint64_t both[] = {s->options.checksum(codes, groups * SIG_GROUP * per_row),
	                   s->options.checksum(codes + seg->record->block[b].rows * per_row, (uint64_t)used * 2)};
	return s->options.checksum(both, sizeof both);
}

static uint64_t tokens_sum(const struct store *s, const struct segment *seg, uint32_t b, uint32_t used)
{
	return s->options.checksum(block_tokens(pool_at(s->pool, seg->record->block[b].offset)), (uint64_t)used * 4);
}

// ---- the whole of a part, as it lies there now ---------------------------------------------------------------------------

uint64_t block_content(const struct store *s, const struct segment *seg, uint32_t b, uint32_t rows)
{
	uint32_t used = used_rows(seg->record, b, rows);
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	fold(&state, tokens_sum(s, seg, b, used));
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++)
		fold(&state, rows_sum(s, seg, b, strip, used, NULL));
	return not_zero(XXH3_64bits_digest(&state));
}

uint64_t code_block_content(const struct store *s, const struct segment *seg, const struct generation_record *g, uint32_t b,
                            uint32_t rows)
{
	uint32_t used = used_rows(seg->record, b, rows);
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	fold(&state, used);
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++)
		fold(&state, codes_sum(s, seg, g, b, strip, used));
	return not_zero(XXH3_64bits_digest(&state));
}

uint64_t table_content(const struct store *s, const struct table_extent *table, uint32_t i)
{
	if (!table->offset)
		return 0;
	uint64_t both[] = {i, s->options.checksum(pool_at(s->pool, table->offset), table->bytes)};
	return s->options.checksum(both, sizeof both);
}

uint64_t tables_content(const struct store *s, const struct table_extent *table, uint32_t count)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < count; i++)
		sum += table_content(s, &table[i], i);
	return not_zero(sum);
}

// ---- all of a segment, part by part ----------------------------------------------------------------------------------

// Parts: each strip of each block; then each table and upper layer.
struct content_sums *content_sums_begin(const struct segment *seg, uint32_t rows)
{
	uint32_t blocks = blocks_of(seg->record, rows), strips = seg->spec->strips;
	size_t words = 2 * (size_t)blocks * (1 + strips) + 2 * (size_t)strips;
	struct content_sums *sums = calloc(1, sizeof *sums + words * sizeof(uint64_t));
	if (!sums)
		return NULL;
	sums->blocks = blocks;
	sums->strips = strips;
	sums->parts = blocks * strips + 2 * strips;
	return sums;
}

static uint64_t *rows_sums(struct content_sums *sums, uint32_t b) // of token ids, then of strips
{
	return sums->part + (size_t)b * (1 + sums->strips);
}

static uint64_t *codes_sums(struct content_sums *sums, uint32_t b) // rows, then of strips
{
	return rows_sums(sums, sums->blocks + b);
}

static uint64_t *tables_sums(struct content_sums *sums)
{
	return rows_sums(sums, 2 * sums->blocks);
}

void content_sum(const struct store *s, const struct segment *seg, const struct generation_record *g,
                 const struct table_extent *table, uint32_t rows, uint32_t part, struct content_sums *sums)
{
	uint32_t strips = sums->strips, b = part / strips, strip = part % strips;
	if (b >= sums->blocks) {
		uint32_t i = part - sums->blocks * strips;
		tables_sums(sums)[i] = table ? table_content(s, &table[i], i) : 0;
		return;
	}
	uint32_t used = used_rows(seg->record, b, rows);
	if (strip == 0) {
		rows_sums(sums, b)[0] = tokens_sum(s, seg, b, used);
		codes_sums(sums, b)[0] = used;
	}
	rows_sums(sums, b)[1 + strip] = rows_sum(s, seg, b, strip, used, piece_sums_at(seg, b, strip, 0));
	codes_sums(sums, b)[1 + strip] = g && g->code_block[b] ? codes_sum(s, seg, g, b, strip, used) : 0;
}

void content_sums_end(const struct store *s, const struct generation_record *g, const struct table_extent *table,
                      struct content_sums *sums)
{
	size_t bytes = (1 + (size_t)sums->strips) * sizeof(uint64_t);
	for (uint32_t b = 0; b < sums->blocks; b++) {
		sums->block[b] = not_zero(s->options.checksum(rows_sums(sums, b), bytes));
		sums->code_block[b] = g && g->code_block[b] ? not_zero(s->options.checksum(codes_sums(sums, b), bytes)) : 0;
	}
	uint64_t sum = 0;
	for (uint32_t i = 0; i < 2 * sums->strips; i++)
		sum += tables_sums(sums)[i];
	sums->tables = table ? not_zero(sum) : 0;
}

struct content_sums *content_sums_new(const struct store *s, const struct segment *seg, const struct generation_record *g,
                                      const struct table_extent *table, uint32_t rows)
{
	struct content_sums *sums = content_sums_begin(seg, rows);
	if (!sums)
		return NULL;
	for (uint32_t part = 0; part < sums->parts; part++)
		content_sum(s, seg, g, table, rows, part, sums);
	content_sums_end(s, g, table, sums);
	return sums;
}

void generation_sums(const struct store *s, const struct segment *seg, struct generation_record *g, uint32_t rows)
{
	for (uint32_t b = 0, blocks = blocks_of(seg->record, rows); b < blocks; b++)
		if (g->code_block[b])
			((struct code_block_record *)pool_at(s->pool, g->code_block[b]))->header.checksum =
				code_block_content(s, seg, g, b, rows);
	if (generation_has_tables(g))
		g->header.checksum = tables_content(s, generation_tables(g), 2 * seg->spec->strips);
	g->records = generation_checksum(s->pool, seg->record, g, rows);
}

void content_sums_publish(struct pool *pool, const struct segment_record *r, struct generation_record *g,
                          const struct content_sums *sums)
{
	for (uint32_t b = 0; b < sums->blocks; b++) {
		struct block_record *block = pool_at(pool, r->block[b].offset);
		pool_publish_word(pool, &block->header.checksum, sums->block[b]);
		if (!sums->code_block[b])
			continue;
		struct code_block_record *cb = pool_at(pool, g->code_block[b]);
		pool_publish_word(pool, &cb->header.checksum, sums->code_block[b]);
	}
	if (sums->tables)
		pool_publish_word(pool, &g->header.checksum, sums->tables);
}
