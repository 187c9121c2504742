// Rows: making room for them, and where they go.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

#define BULK_ROWS 16u // appends of fewer rows are decoding: their blocks grow more slowly. Clients cut large ones to their slots
#define DECODE_MAX_ROWS 1024u
#define FRUGAL_ROWS 256u // of a block at least, once a segment is as long, where memory is short
// A segment's first so many get no codes while they are few: a page of codes for each head would be most of what a branch costs.
#define EXACT_ROWS 128u

// A reservation is planned block by block, everything it needs is allocated, and only then published.
struct piece {
	uint32_t ref, block; // the segment's number in the context, the block's in the segment
	uint32_t first_row, rows;
	uint64_t segment_first;   // token
	bool new_segment;         // this piece is its segment's first block, and the segment is new
	bool new_block, new_rows; // the layer has no rows in the block yet
	const uint8_t *bits;      // of the generation that the segment has or will have; NULL: none
	bool codes;               // the block has or will have codes
};

struct plan {
	struct context *c;
	const struct layer *layer;
	bool frugal; // blocks no larger than this append needs
	struct piece *piece;
	size_t count, capacity;
	uint32_t refs, new_refs; // in the snapshot now, and to be added
	struct extents extents;
	struct segment **segment; // [new_refs]
	struct snapshot *snap;    // if new_refs
};

static struct piece *add_piece(struct plan *p, const struct piece *piece)
{
	if (p->count == p->capacity) {
		size_t capacity = p->capacity ? 2 * p->capacity : 8;
		struct piece *all = realloc(p->piece, capacity * sizeof *all);
		if (!all)
			return NULL;
		p->piece = all;
		p->capacity = capacity;
	}
	p->piece[p->count] = *piece;
	return &p->piece[p->count++];
}

static uint32_t power_of_two_below(uint32_t n)
{
	return n ? 1u << (31 - __builtin_clz(n)) : 0;
}

// Rows of a new block that begins at `row` of its segment, for an append of `count` rows of which `left` are still to be placed.
static uint32_t block_capacity(uint32_t row, uint64_t left, uint64_t count, bool frugal)
{
	uint32_t limit = count >= BULK_ROWS ? BLOCK_MAX_ROWS : DECODE_MAX_ROWS;
	uint32_t least = row < SEGMENT_MAX_ROWS / 2 ? FRUGAL_ROWS : 2 * FRUGAL_ROWS; // so that 248 blocks hold 65,536 rows
	uint64_t wanted = (left + BLOCK_MIN_ROWS - 1) / BLOCK_MIN_ROWS * BLOCK_MIN_ROWS, so_far = power_of_two_below(row);
	so_far = frugal && so_far > least ? least : so_far;
	wanted = wanted > so_far ? wanted : so_far;
	wanted = wanted < BLOCK_MIN_ROWS ? BLOCK_MIN_ROWS : wanted > limit ? limit : wanted;
	return (uint32_t)(wanted < SEGMENT_MAX_ROWS - row ? wanted : SEGMENT_MAX_ROWS - row);
}

static bool has_rows(const struct pool *pool, const struct segment_record *r, uint32_t block, const struct layer *l)
{
	struct block_record *b = pool_at(pool, r->block[block].offset);
	return block_rows(b)[l->first_strip] != 0;
}

static int plan_pieces(struct plan *p, uint64_t position, uint64_t count, char *why)
{
	const struct context *c = p->c;
	const struct pool *pool = c->store->pool;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	const struct params *params = atomic_load(&c->params);
	bool indexes = params && (c->spec->has_codes || c->spec->has_tables);
	const uint8_t *bits = indexes ? params_bits(pool_at(pool, params->offset)) : NULL;
	uint32_t ref = snapshot_find(snap, position);
	if (ref == UINT32_MAX || snap->ref[ref].segment->record->sealed_rows)
		ref = snap->count; // sealed rows never change: a new segment begins here
	p->refs = snap->count;
	uint64_t end = position + count, first = ref < snap->count ? snap->ref[ref].first : position;
	uint32_t block = 0, blocks_end = 0; // of the segment being walked
	for (uint64_t at = position; at < end;) {
		const struct segment_record *r = ref < snap->count ? snap->ref[ref].segment->record : NULL;
		uint32_t row = (uint32_t)(at - first);
		if (row == SEGMENT_MAX_ROWS) {
			ref++;
			first = at;
			block = blocks_end = 0;
			continue;
		}
		struct piece piece = {.ref = ref, .segment_first = first, .bits = r ? generation_widths(pool, r) : bits};
		while (r && block < r->block_count && row >= r->block[block].first_row + r->block[block].rows)
			blocks_end = r->block[block].first_row + r->block[block].rows, block++;
		if (r && block < r->block_count) {
			piece.first_row = r->block[block].first_row;
			piece.rows = r->block[block].rows;
			piece.new_rows = !has_rows(pool, r, block, p->layer);
			piece.codes = piece.bits && segment_generation(pool, snap->ref[ref].segment)->code_block[block];
		} else {
			if (block == SEGMENT_MAX_BLOCKS)
				return refuse(why, MPIG_ELIMIT, "the open segment has its limit of %u blocks: seal it",
				              SEGMENT_MAX_BLOCKS);
			piece.first_row = blocks_end;
			piece.rows = block_capacity(blocks_end, end - at, count, p->frugal);
			piece.new_block = piece.new_rows = true;
			piece.codes = piece.bits && c->spec->has_codes && piece.first_row + piece.rows > EXACT_ROWS;
			piece.new_segment = !r && block == 0;
			p->new_refs += piece.new_segment;
		}
		piece.block = block++;
		blocks_end = piece.first_row + piece.rows;
		if ((piece.new_block || piece.new_rows) && !add_piece(p, &piece))
			return refuse(why, MPIG_ENOMEM, "the daemon has no memory to plan %" PRIu64 " rows", count);
		at = first + blocks_end;
	}
	return 0;
}

// The same order as in build_piece.
static int want_piece(struct plan *p, const struct piece *piece)
{
	const struct spec *spec = p->c->spec;
	const struct layer *l = p->layer;
	struct extents *x = &p->extents;
	int status = 0;
	if (piece->new_segment) {
		status |= extents_want(x, sizeof(struct segment_record), 0);
		if (frames_bytes(spec))
			status |= extents_want(x, frames_bytes(spec), 0);
		if (piece->bits)
			status |= extents_want(x, generation_bytes(spec->strips), 0);
	}
	if (piece->new_block) {
		status |= extents_want(x, block_bytes(spec->strips, piece->rows), 0);
		if (piece->codes)
			status |= extents_want(x, code_block_bytes(spec->strips), 0);
	}
	for (uint32_t h = 0; h < l->shape.kv_heads && !status; h++) {
		int node = strip_node(p->c->store, l, h);
		status |= extents_want(x, (uint64_t)piece->rows * l->rows.stride, node);
		if (piece->codes && l->code_bytes_per_row)
			status |= extents_want(x, piece->rows * (2 + code_bytes(spec, piece->bits, l->first_strip + h)), node);
	}
	return status;
}

static int want_all(struct plan *p)
{
	int status = 0;
	for (size_t i = 0; i < p->count && !status; i++)
		status = want_piece(p, &p->piece[i]);
	if (status || !p->new_refs)
		return status;
	status = extents_want(&p->extents, list_bytes(p->refs + p->new_refs), 0);
	p->segment = calloc(p->new_refs, sizeof(struct segment *));
	p->snap = snapshot_new(p->refs + p->new_refs);
	for (uint32_t i = 0; p->segment && i < p->new_refs; i++)
		if (!(p->segment[i] = segment_new(p->c->store, p->c->spec, &p->c->identity)))
			return MPIG_ENOMEM;
	return status || !p->segment || !p->snap ? MPIG_ENOMEM : 0;
}

static void plan_fini(struct plan *p)
{
	free(p->piece);
	extents_fini(&p->extents);
	for (uint32_t i = 0; p->segment && i < p->new_refs; i++)
		if (p->segment[i]) {
			charge_release(p->c->store, &p->segment[i]->charge, &p->c->identity);
			segment_free(p->segment[i]);
		}
	free(p->segment);
	free(p->snap);
}

// ---- publication -----------------------------------------------------------------------------------------------------

static void build_segment(struct store *s, struct plan *p, struct segment *seg)
{
	const struct spec *spec = seg->spec;
	seg->offset = extents_next(&p->extents);
	seg->record = pool_at(s->pool, seg->offset);
	record_init(&seg->record->header, RECORD_SEGMENT, pool_round(sizeof *seg->record));
	seg->record->strips = spec->strips;
	segment_grow(s, seg, pool_round(sizeof *seg->record), USE_METADATA);
	if (frames_bytes(spec)) {
		seg->record->frames_offset = extents_next(&p->extents);
		segment_grow(s, seg, pool_round(frames_bytes(spec)), USE_METADATA);
	}
}

static void build_generation(struct store *s, struct plan *p, struct segment *seg)
{
	const struct params *params = atomic_load(&p->c->params);
	uint64_t offset = extents_next(&p->extents), bytes = generation_bytes(seg->spec->strips);
	struct generation_record *g = pool_at(s->pool, offset);
	record_init(&g->header, RECORD_GENERATION, bytes);
	g->params_offset = params->offset;
	g->version = params->version;
	g->strips = seg->spec->strips;
	memcpy(generation_bits(g), params_bits(pool_at(s->pool, params->offset)), g->strips);
	seg->record->generation[0].params = params->offset;
	seg->record->generation[0].offset = offset;
	segment_grow(s, seg, bytes, USE_METADATA);
}

static void build_block(struct store *s, struct plan *p, struct segment *seg, const struct piece *piece)
{
	const struct spec *spec = seg->spec;
	struct segment_record *r = seg->record;
	uint64_t offset = extents_next(&p->extents), bytes = block_bytes(spec->strips, piece->rows);
	struct block_record *b = pool_at(s->pool, offset);
	record_init(&b->header, RECORD_BLOCK, bytes);
	b->rows = piece->rows;
	b->strips = spec->strips;
	segment_grow(s, seg, bytes, USE_METADATA);
	struct generation_record *g = segment_generation(s->pool, seg);
	if (piece->bits) {
		uint64_t code_offset = 0; // also where a block was that had codes, before a truncation
		if (piece->codes) {
			code_offset = extents_next(&p->extents);
			struct code_block_record *cb = pool_at(s->pool, code_offset);
			record_init(&cb->header, RECORD_CODE_BLOCK, code_block_bytes(spec->strips));
			cb->rows = piece->rows;
			cb->strips = spec->strips;
			segment_grow(s, seg, code_block_bytes(spec->strips), USE_METADATA);
		}
		pool_publish_word(s->pool, &g->code_block[piece->block], code_offset);
	}
	struct {
		uint64_t offset;
		uint32_t first_row, rows;
	} entry = {offset, piece->first_row, piece->rows};
	static_assert(sizeof entry == sizeof r->block[0], "an entry is published as a whole");
	piece_sums_block(seg, piece->block, piece->rows);
	pool_publish(s->pool, &r->block[piece->block], &entry, sizeof entry);
	pool_publish_word32(s->pool, &r->block_count, piece->block + 1);
}

static void build_rows(struct store *s, struct plan *p, struct segment *seg, const struct piece *piece)
{
	const struct layer *l = p->layer;
	struct block_record *b = pool_at(s->pool, seg->record->block[piece->block].offset);
	const struct generation_record *g = piece->codes ? segment_generation(s->pool, seg) : NULL;
	uint64_t row_bytes = pool_round((uint64_t)piece->rows * l->rows.stride);
	for (uint32_t h = 0; h < l->shape.kv_heads; h++) {
		uint64_t rows = extents_next(&p->extents);
		if (g && l->code_bytes_per_row) {
			struct code_block_record *cb = pool_at(s->pool, g->code_block[piece->block]);
			pool_publish_word(s->pool, &code_offsets(cb)[l->first_strip + h], extents_next(&p->extents));
			uint64_t per_row = 2 + code_bytes(seg->spec, piece->bits, l->first_strip + h);
			segment_grow(s, seg, pool_round(piece->rows * per_row), USE_INDEX);
		}
		pool_publish_word(s->pool, &block_rows(b)[l->first_strip + h], rows);
		segment_grow(s, seg, row_bytes, USE_ROWS);
	}
}

static void publish_list(struct store *s, struct plan *p)
{
	struct context *c = p->c;
	const struct snapshot *old = atomic_load(&c->snapshot);
	memcpy(p->snap->ref, old->ref, old->count * sizeof old->ref[0]);
	p->snap->list_offset = extents_next(&p->extents);
	p->snap->list_bytes = list_bytes(p->snap->count);
	account_add(s, &c->identity, p->snap->list_bytes);
	s->metadata_bytes += p->snap->list_bytes;
	fill_list(s, p->snap->list_offset, p->snap);
	struct context_slot slot;
	slot_fill(c, p->snap, &slot);
	slot_publish(s->pool, c->record, &slot);
	snapshot_install(s, c, p->snap, old->count);
	p->snap = NULL;
}

static void publish_plan(struct store *s, struct plan *p)
{
	const struct snapshot *old = atomic_load(&p->c->snapshot);
	uint32_t made = 0;
	for (size_t i = 0; i < p->count; i++) {
		const struct piece *piece = &p->piece[i];
		struct segment *seg =
			piece->ref < old->count ? old->ref[piece->ref].segment : p->segment[piece->ref - old->count];
		if (piece->new_segment) {
			build_segment(s, p, seg);
			if (piece->bits)
				build_generation(s, p, seg);
			p->snap->ref[old->count + made++] = (struct ref){seg, piece->segment_first};
		}
		if (piece->new_block)
			build_block(s, p, seg, piece);
		build_rows(s, p, seg, piece);
	}
	if (!p->new_refs)
		return;
	publish_list(s, p);
	memset(p->segment, 0, p->new_refs * sizeof(struct segment *)); // the snapshot's now
}

// ---- the writer's calls ----------------------------------------------------------------------------------------------

static int check_range(struct store *s, const struct context *c, const struct layer *l, uint32_t layer, uint64_t position,
                       uint64_t count, char *why)
{
	if (!l)
		return refuse(why, MPIG_EINVAL, "layer %u stores no rows or does not exist (%u layers)", layer,
		              c->spec->layer_count);
	uint64_t rows = atomic_load(&c->rows[layer]), committed = context_committed(c), end, bytes;
	if (position < committed)
		return refuse(why, MPIG_ERANGE,
		              "append at token %" PRIu64 " of layer %u: %" PRIu64 " tokens are committed and do not change",
		              position, layer, committed);
	if (position > rows)
		return refuse(why, MPIG_ERANGE,
		              "append at token %" PRIu64 ": layer %u holds rows of %" PRIu64
		              " only, the ones between are missing",
		              position, layer, rows);
	if (__builtin_add_overflow(position, count, &end) || end > MPIG_MAX_TOKENS)
		return refuse(why, MPIG_ELIMIT,
		              "append of %" PRIu64 " rows at token %" PRIu64 ": a context holds at most %" PRIu64 " tokens",
		              count, position, MPIG_MAX_TOKENS);
	if (__builtin_mul_overflow(count, (uint64_t)l->rows.stride * l->shape.kv_heads, &bytes) || bytes > pool_bytes(s->pool))
		return refuse(why, MPIG_ENOSPC, "append of %" PRIu64 " rows is larger than the pool of %" PRIu64 " MiB", count,
		              pool_bytes(s->pool) >> 20);
	return 0;
}

static int make_room(struct store *s, struct context *c, const struct layer *l, uint64_t position, uint64_t count, bool frugal,
                     char *why)
{
	struct plan p = {.c = c, .layer = l, .frugal = frugal};
	int status = plan_pieces(&p, position, count, why);
	if (!status && p.count) {
		status = want_all(&p) ? refuse(why, MPIG_ENOMEM, "the daemon has no memory to plan %" PRIu64 " rows", count) : 0;
		if (!status)
			status = quota_admit(s, &c->identity, extents_total(&p.extents), 0, why);
		if (!status)
			status = extents_alloc(s, &p.extents, why);
		if (!status)
			publish_plan(s, &p);
	}
	plan_fini(&p);
	return status;
}

static int reserve_locked(struct store *s, struct context *c, uint32_t layer, uint64_t position, uint64_t count, char *why)
{
	int status = context_alive(c, why);
	writer_leave(s, c);
	if (!status && c->sealing)
		status = refuse(why, MPIG_EBUSY, "context '%s' is being indexed: try again", c->name);
	if (!status && c->draining)
		context_collect(s, c);
	if (!status && c->draining)
		status = refuse(why, MPIG_EAGAIN, "readers are inside the rows that a truncation gave up: try again");
	const struct layer *l = context_layer(c, layer);
	if (!status)
		status = check_range(s, c, l, layer, position, count, why);
	if (!status) {
		status = make_room(s, c, l, position, count, false, why);
		if (status == MPIG_EQUOTA || status == MPIG_ENOSPC)
			status = make_room(s, c, l, position, count, true, why);
	}
	if (status)
		return status;
	c->reserved = position + count > c->reserved ? position + count : c->reserved;
	writer_enter(c);
	return 0;
}

int context_reserve(struct store *s, struct context *c, uint32_t layer, uint64_t position, uint64_t count, char *why)
{
	store_lock(s);
	int status = reserve_locked(s, c, layer, position, count, why);
	store_unlock(s);
	return status;
}

void context_write_span(struct store *s, struct context *c, uint32_t layer, uint32_t kv_head, uint64_t position,
                        struct write_span *out)
{
	const struct layer *l = &c->spec->layer[layer];
	const struct snapshot *snap = atomic_load(&c->snapshot); // stays: the writer holds a pin since context_reserve
	uint32_t i = snapshot_find(snap, position), strip = l->first_strip + kv_head, b = 0;
	const struct segment *seg = snap->ref[i].segment;
	const struct segment_record *r = seg->record;
	uint32_t row = (uint32_t)(position - snap->ref[i].first);
	while (row >= r->block[b].first_row + r->block[b].rows)
		b++;
	struct block_record *block = pool_at(s->pool, r->block[b].offset);
	uint32_t block_row = row - r->block[b].first_row;
	uint64_t offset = load_word(&block_rows(block)[strip]);
	assert(b < r->block_count && offset);
	*out = (struct write_span){
		.n = block->rows - block_row,
		.rows = (uint8_t *)pool_at(s->pool, offset) + (uint64_t)block_row * l->rows.stride,
		.block_row = block_row,
		.piece = piece_sums_at(seg, b, strip, block_row),
	};
	struct params *p = atomic_load(&c->params);
	if (p) {
		out->params.mu = spec_params(c->spec, pool_at(s->pool, p->offset), strip);
		out->params.balance = out->params.mu + l->shape.d_k;
		out->params.bits = params_bits(pool_at(s->pool, p->offset))[strip];
	}
	const struct generation_record *g = segment_generation(s->pool, seg);
	if (g && l->code_bytes_per_row && g->code_block[b]) {
		out->codes = pool_at(s->pool, code_offsets(pool_at(s->pool, g->code_block[b]))[strip]);
		out->factors = (uint16_t *)(void *)(out->codes + block->rows * code_bytes(c->spec, generation_bits(g), strip));
	}
	if (l->rows.type == ROW_I8) {
		out->frame = segment_frame(s->pool, seg, strip);
		out->frame_before = i ? segment_frame(s->pool, snap->ref[i - 1].segment, strip) : NULL;
		out->frame_fresh = row == 0 && atomic_load(&c->rows[layer]) <= snap->ref[i].first;
	}
}

void context_appended(struct context *c, uint32_t layer, uint64_t end)
{
	if (end > atomic_load(&c->rows[layer]))
		atomic_store(&c->rows[layer], end);
	if (atomic_exchange(&c->writing, false))
		context_unpin(c, c->write_epoch);
}

uint64_t context_rows(const struct context *c, uint32_t layer)
{
	return context_layer(c, layer) ? atomic_load(&c->rows[layer]) : 0;
}
