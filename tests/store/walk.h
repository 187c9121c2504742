// Reads a pool as a newly started daemon would, from the format alone: no code of the store. Checks what it meets and marks every
// extent it can reach.
#ifndef MPIG_TESTS_STORE_WALK_H
#define MPIG_TESTS_STORE_WALK_H

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/store/format.h"
#include "shm/abi.h"

// As ck_assert, for inner loops: Check writes to a pipe for every assertion that holds.
#define must(condition)                                                                                                          \
	do {                                                                                                                     \
		if (!(condition))                                                                                                \
			ck_abort_msg("%s:%d: %s", __FILE__, __LINE__, #condition);                                               \
	} while (0)

struct walk {
	unsigned char *base;
	uint64_t bytes;
	unsigned char *mark; // per granule
	uint64_t reached;    // bytes, the superblock and the table included
	uint64_t seen[4096]; // segments and parameters already marked
	uint32_t seen_count;
	uint32_t contexts;
};

struct walk_context {
	const struct context_record *record;
	const struct context_slot *slot;
	const struct mpig_wire_layer *layer;
	const struct segment_ref *ref; // [slot->segment_count]
	uint32_t strips, strip_layer[1024], max_d_k;
	int int8;
};

static inline uint64_t walk_round(uint64_t n)
{
	return (n + POOL_GRANULE - 1) / POOL_GRANULE * POOL_GRANULE;
}

static inline uint64_t walk_checksum(const void *record, size_t bytes)
{
	struct record_header h = *(const struct record_header *)record;
	h.checksum = 0;
	return XXH3_64bits_withSeed((const char *)record + sizeof h, bytes - sizeof h, XXH3_64bits(&h, sizeof h));
}

static inline void walk_mark(struct walk *w, uint64_t offset, uint64_t bytes)
{
	bytes = walk_round(bytes);
	must(offset % POOL_GRANULE == 0);
	must(bytes && offset < w->bytes && bytes <= w->bytes - offset);
	for (uint64_t g = offset / POOL_GRANULE; g < (offset + bytes) / POOL_GRANULE; g++) {
		must(!w->mark[g]); // otherwise two extents overlap
		w->mark[g] = 1;
	}
	w->reached += bytes;
}

static inline void *walk_record(struct walk *w, uint64_t offset, enum record_kind kind, uint64_t least)
{
	struct record_header *h = (void *)(w->base + offset);
	must(offset && offset % POOL_GRANULE == 0 && offset < w->bytes);
	must(h->magic == RECORD_MAGIC);
	must(h->kind == kind);
	must(h->bytes >= least && h->bytes <= w->bytes - offset);
	return h;
}

static inline int walk_first_time(struct walk *w, uint64_t offset)
{
	for (uint32_t i = 0; i < w->seen_count; i++)
		if (w->seen[i] == offset)
			return 0;
	must(w->seen_count < 4096);
	w->seen[w->seen_count++] = offset;
	return 1;
}

static inline uint64_t walk_stride(const struct mpig_wire_layer *l)
{
	uint64_t k = l->d_k, v = l->d_v;
	if (l->row_dtype == MPIG_I8)
		return (k + v + 2 * ((k + 31) / 32 + (v + 31) / 32) + 31) / 32 * 32;
	return (2 * (k + v) + 63) / 64 * 64;
}

// The widths of codes stand behind the generation's tables, and behind the head of the parameters.
static inline uint64_t walk_code_bytes(const struct walk *w, const struct mpig_wire_layer *l, const struct generation_record *g,
                                       uint32_t strip)
{
	uint8_t bits = ((const uint8_t *)(g + 1))[2 * sizeof(struct table_extent) * g->strips + strip];
	must(bits == w->base[g->params_offset + sizeof(struct params_record) + strip]);
	must(l->signature_bits == MPIG_BITS_AUTO ? bits == 1 || bits == 2 || bits == 4 : bits == l->signature_bits);
	return (uint64_t)(l->d_k <= 64 ? 64 : l->d_k <= 128 ? 128 : 256) * bits / 8;
}

static inline void walk_codes(struct walk *w, const struct walk_context *c, const struct generation_record *g, uint32_t b,
                              const struct block_record *block, uint32_t used)
{
	const struct code_block_record *cb = NULL;
	const uint64_t *codes = NULL;
	if (g && g->code_block[b]) {
		uint64_t bytes = sizeof *cb + 8ull * c->strips;
		cb = walk_record(w, g->code_block[b], RECORD_CODE_BLOCK, bytes);
		walk_mark(w, g->code_block[b], bytes);
		must(cb->rows == block->rows);
		codes = (const uint64_t *)(const void *)(cb + 1);
	}
	for (uint32_t s = 0; s < c->strips; s++) {
		const struct mpig_wire_layer *l = &c->layer[c->strip_layer[s]];
		if (!codes || !codes[s])
			continue;
		uint64_t per_row = walk_code_bytes(w, l, g, s), factors = block->rows * per_row;
		uint64_t lead = walk_round((used + 15) / 16 * 16 * per_row), tail = factors / POOL_GRANULE * POOL_GRANULE;
		if (lead < tail) {
			walk_mark(w, codes[s], lead);
			walk_mark(w, codes[s] + tail, factors - tail + 2ull * used);
		} else {
			walk_mark(w, codes[s], factors + 2ull * used);
		}
	}
}

static inline void walk_segment(struct walk *w, const struct walk_context *c, uint64_t offset, uint64_t least_rows)
{
	const struct segment_record *r = walk_record(w, offset, RECORD_SEGMENT, sizeof *r);
	must(r->strips == c->strips);
	must(r->block_count <= SEGMENT_MAX_BLOCKS);
	uint64_t rows = 0;
	for (uint32_t b = 0; b < r->block_count; b++) {
		must(r->block[b].first_row == rows);
		must(r->block[b].rows >= BLOCK_MIN_ROWS && r->block[b].rows <= BLOCK_MAX_ROWS);
		rows += r->block[b].rows;
	}
	must(rows <= SEGMENT_MAX_ROWS);
	must((r->sealed_rows ? r->sealed_rows : rows) >= least_rows);
	if (!walk_first_time(w, offset))
		return;
	walk_mark(w, offset, sizeof *r);
	if (r->frames_offset)
		walk_mark(w, r->frames_offset, 8ull * c->strips * c->max_d_k);
	must((r->frames_offset != 0) == c->int8);
	const struct generation_record *generation[2] = {NULL, NULL};
	for (int slot = 0; slot < 2; slot++) {
		const struct generation_record *g;
		if (!r->generation[slot].offset)
			continue;
		uint64_t bytes = sizeof *g + (2 * sizeof(struct table_extent) + 1) * c->strips;
		g = generation[slot] = walk_record(w, r->generation[slot].offset, RECORD_GENERATION, bytes);
		walk_mark(w, r->generation[slot].offset, bytes);
		must(g->params_offset == r->generation[slot].params);
		must(r->sealed_rows || (slot == 0 && g->params_offset == c->slot->params_offset));
		const struct table_extent *t = (const void *)(g + 1);
		for (uint32_t s = 0; r->sealed_rows && (g->table_rows || g->upper_rows) && s < 2 * c->strips; s++)
			if (t[s].offset)
				walk_mark(w, t[s].offset, t[s].bytes);
	}
	for (uint32_t b = 0; b < r->block_count; b++) {
		if (r->sealed_rows && r->block[b].first_row >= r->sealed_rows)
			break;
		uint64_t bytes = sizeof(struct block_record) + 8ull * c->strips + 4ull * r->block[b].rows;
		const struct block_record *block = walk_record(w, r->block[b].offset, RECORD_BLOCK, bytes);
		walk_mark(w, r->block[b].offset, bytes);
		must(block->rows == r->block[b].rows);
		uint32_t used = block->rows;
		if (r->sealed_rows && r->sealed_rows - r->block[b].first_row < used)
			used = r->sealed_rows - r->block[b].first_row;
		const uint64_t *at = (const uint64_t *)(const void *)(block + 1);
		for (uint32_t s = 0; s < c->strips; s++)
			if (at[s])
				walk_mark(w, at[s], used * walk_stride(&c->layer[c->strip_layer[s]]));
		for (int slot = 0; slot < 2; slot++)
			walk_codes(w, c, generation[slot], b, block, used);
	}
}

static inline const struct context_slot *walk_slot(const struct context_record *r)
{
	const struct context_slot *best = NULL;
	for (int i = 0; i < 2; i++) {
		const struct context_slot *s = &r->slot[i];
		if (s->sequence && s->checksum == XXH3_64bits(s, offsetof(struct context_slot, checksum)) &&
		    (!best || s->sequence > best->sequence))
			best = s;
	}
	return best;
}

static inline void walk_context(struct walk *w, uint64_t offset, struct walk_context *c)
{
	const struct context_record *r = walk_record(w, offset, RECORD_CONTEXT, sizeof *r);
	must(r->header.checksum == walk_checksum(r, offsetof(struct context_record, state)));
	*c = (struct walk_context){.record = r, .slot = walk_slot(r)};
	must(c->slot);
	walk_mark(w, offset, sizeof *r);
	uint64_t spec_bytes = sizeof(struct record_header) + r->layer_count * sizeof(struct mpig_wire_layer);
	const struct record_header *spec = walk_record(w, r->spec_offset, RECORD_SPEC, spec_bytes);
	must(spec->checksum == walk_checksum(spec, spec_bytes));
	walk_mark(w, r->spec_offset, spec_bytes);
	c->layer = (const void *)(spec + 1);
	uint64_t params = 0;
	for (uint32_t i = 0; i < r->layer_count; i++) {
		if (c->layer[i].kind != MPIG_LAYER_GLOBAL)
			continue;
		for (uint32_t h = 0; h < c->layer[i].kv_heads; h++)
			c->strip_layer[c->strips++] = i;
		c->max_d_k = c->layer[i].d_k > c->max_d_k ? c->layer[i].d_k : c->max_d_k;
		c->int8 |= c->layer[i].row_dtype == MPIG_I8;
		params += 8ull * c->layer[i].kv_heads * c->layer[i].d_k;
	}
	params += (sizeof(struct params_record) + c->strips + 63) / 64 * 64;
	if (c->slot->params_offset) {
		const struct params_record *p = walk_record(w, c->slot->params_offset, RECORD_PARAMS, params);
		must(p->header.checksum == walk_checksum(p, p->bytes));
		must(p->version == c->slot->signature_version);
		if (walk_first_time(w, c->slot->params_offset))
			walk_mark(w, c->slot->params_offset, params);
	}
	if (!c->slot->segments_offset) {
		must(c->slot->segment_count == 0);
		must(r->committed == 0);
		return;
	}
	const struct segment_list_record *list = walk_record(w, c->slot->segments_offset, RECORD_SEGMENT_LIST, sizeof *list);
	uint64_t bytes = sizeof *list + list->count * sizeof(struct segment_ref);
	must(list->header.checksum == walk_checksum(list, bytes));
	must(c->slot->segment_count <= list->count);
	walk_mark(w, c->slot->segments_offset, bytes);
	c->ref = (const void *)(list + 1);
	uint64_t next = 0;
	for (uint32_t i = 0; i < c->slot->segment_count; i++) {
		must(c->ref[i].first == next);
		next = i + 1 < list->count ? c->ref[i + 1].first : UINT64_MAX;
		uint64_t end = next < r->committed ? next : r->committed;
		walk_segment(w, c, c->ref[i].segment_offset, end > c->ref[i].first ? end - c->ref[i].first : 0);
	}
	must((next) >= r->committed);
}

// Row `token` of a strip, or its id with strip UINT32_MAX. NULL: there is none.
static inline const void *walk_find(const struct walk *w, const struct walk_context *c, uint64_t token, uint32_t strip)
{
	uint32_t i = c->slot->segment_count;
	while (i && c->ref[i - 1].first > token)
		i--;
	if (!i)
		return NULL;
	const struct segment_record *r = (const void *)(w->base + c->ref[i - 1].segment_offset);
	uint64_t row = token - c->ref[i - 1].first;
	for (uint32_t b = 0; b < r->block_count; b++) {
		if (row >= (uint64_t)r->block[b].first_row + r->block[b].rows)
			continue;
		const struct block_record *block = (const void *)(w->base + r->block[b].offset);
		const uint64_t *rows = (const void *)(block + 1);
		row -= r->block[b].first_row;
		if (strip == UINT32_MAX)
			return (const uint32_t *)(const void *)(rows + block->strips) + row;
		return rows[strip] ? w->base + rows[strip] + row * walk_stride(&c->layer[c->strip_layer[strip]]) : NULL;
	}
	return NULL;
}

// Calls `each` for every live context, having checked and marked all it reaches.
static inline void walk_pool(struct walk *w, unsigned char *base, uint64_t bytes,
                             void (*each)(struct walk *w, const struct walk_context *c, void *arg), void *arg)
{
	*w = (struct walk){.base = base, .bytes = bytes, .mark = calloc(bytes / POOL_GRANULE, 1)};
	const struct superblock *sb = (const void *)base;
	must(sb->pool_magic == POOL_MAGIC);
	must(sb->header.checksum == walk_checksum(sb, sizeof *sb));
	must(sb->pool_bytes == bytes);
	for (uint32_t i = 0; i < sb->node_count; i++)
		walk_mark(w, i * (bytes / sb->node_count), POOL_GRANULE);
	walk_mark(w, sb->contexts_offset, 8ull * sb->contexts_max);
	const uint64_t *table = (const void *)(base + sb->contexts_offset);
	struct walk_context *c = malloc(sizeof *c);
	for (uint32_t i = 0; i < sb->contexts_max; i++) {
		if (!table[i] || ((const struct context_record *)(const void *)(base + table[i]))->state != CONTEXT_LIVE)
			continue;
		walk_context(w, table[i], c);
		w->contexts++;
		if (each)
			each(w, c, arg);
	}
	free(c);
}

static inline void walk_free(struct walk *w)
{
	free(w->mark);
}

#endif
