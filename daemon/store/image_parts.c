#include "daemon/store/image_parts.h"

#include <stdlib.h>

struct list {
	struct image_part *part;
	size_t count, capacity;
	bool no_memory;
};

static void add_one(struct list *list, const struct image_part *part)
{
	if (list->count == list->capacity && !list->no_memory) {
		size_t capacity = list->capacity ? 2 * list->capacity : 64;
		struct image_part *all = realloc(list->part, capacity * sizeof *all);
		list->no_memory = !all;
		list->part = all ? all : list->part;
		list->capacity = all ? capacity : list->capacity;
	}
	if (!list->no_memory)
		list->part[list->count++] = *part;
}

// Range [begin, end) of a thing, cut into parts.
static void add(struct list *list, enum image_kind kind, uint32_t block, uint32_t strip, uint64_t begin, uint64_t end)
{
	for (uint64_t at = begin; at < end; at += IMAGE_PART_MAX) {
		uint64_t left = end - at;
		struct image_part part = {
			.kind = (uint16_t)kind,
			.block = (uint16_t)block,
			.strip = strip,
			.at = at,
			.bytes = left < IMAGE_PART_MAX ? left : IMAGE_PART_MAX,
		};
		add_one(list, &part);
	}
}

static void add_block(struct list *list, const struct spec *spec, const uint8_t *bits, uint32_t b,
                      const struct image_block *block, uint32_t used)
{
	add(list, IMAGE_TOKENS, b, 0, 0, (uint64_t)used * 4);
	for (uint32_t strip = 0; strip < spec->strips; strip++) {
		const struct layer *l = spec_strip(spec, strip);
		add(list, IMAGE_ROWS, b, strip, 0, (uint64_t)used * l->rows.stride);
		if (!block->has_codes || !l->code_bytes_per_row)
			continue;
		struct code_range range[2];
		uint32_t n = code_ranges(code_bytes(spec, bits, strip), block->rows, used, range);
		for (uint32_t i = 0; i < n; i++)
			add(list, IMAGE_CODES, b, strip, range[i].begin, range[i].end);
	}
}

int parts_list(const struct segment *seg, struct generation_record *g, const struct image_segment *shape,
               struct image_part **parts, size_t *count)
{
	struct list list = {0};
	const struct spec *spec = seg->spec;
	for (uint32_t b = 0; b < shape->block_count; b++) {
		uint32_t left = shape->rows - shape->block[b].first_row;
		add_block(&list, spec, g ? generation_bits(g) : NULL, b, &shape->block[b],
		          left < shape->block[b].rows ? left : shape->block[b].rows);
	}
	for (uint32_t strip = 0; shape->has_tables && strip < spec->strips; strip++)
		add(&list, IMAGE_TABLE, 0, strip, 0, generation_tables(g)[strip].bytes);
	for (uint32_t strip = 0; shape->has_upper && strip < spec->strips; strip++)
		add(&list, IMAGE_UPPER, 0, strip, 0, generation_uppers(g)[strip].bytes);
	add(&list, IMAGE_FRAMES, 0, 0, 0, frames_bytes(spec));
	if (list.no_memory) {
		free(list.part);
		return MPIG_ENOMEM;
	}
	*parts = list.part;
	*count = list.count;
	return 0;
}

void *part_memory(const struct pool *pool, const struct segment *seg, struct generation_record *g, const struct image_part *part)
{
	const struct segment_record *r = seg->record;
	struct block_record *block = part->kind <= IMAGE_CODES ? pool_at(pool, r->block[part->block].offset) : NULL;
	uint8_t *base = NULL;
	switch ((enum image_kind)part->kind) {
	case IMAGE_TOKENS:
		base = (uint8_t *)block_tokens(block);
		break;
	case IMAGE_ROWS:
		base = pool_at(pool, block_rows(block)[part->strip]);
		break;
	case IMAGE_CODES:
		base = pool_at(pool, code_offsets(pool_at(pool, g->code_block[part->block]))[part->strip]);
		break;
	case IMAGE_TABLE:
		base = pool_at(pool, generation_tables(g)[part->strip].offset);
		break;
	case IMAGE_UPPER:
		base = pool_at(pool, generation_uppers(g)[part->strip].offset);
		break;
	case IMAGE_FRAMES:
		base = pool_at(pool, r->frames_offset);
		break;
	case IMAGE_KINDS:
		abort();
	}
	return base + part->at;
}
