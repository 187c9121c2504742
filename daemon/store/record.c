#include "daemon/store/record.h"

#include <xxhash.h>

uint64_t record_checksum(const void *record, size_t bytes)
{
	struct record_header header = *(const struct record_header *)record;
	header.checksum = 0;
	const char *rest = (const char *)record + sizeof header;
	return XXH3_64bits_withSeed(rest, bytes - sizeof header, XXH3_64bits(&header, sizeof header));
}

void record_init(struct record_header *header, enum record_kind kind, uint64_t bytes)
{
	*header = (struct record_header){.magic = RECORD_MAGIC, .kind = (uint16_t)kind, .format = 1, .bytes = bytes};
}

bool record_is(const struct record_header *header, enum record_kind kind)
{
	return header->magic == RECORD_MAGIC && header->kind == kind && header->format == 1;
}

static uint64_t slot_checksum(const struct context_slot *slot)
{
	return XXH3_64bits(slot, offsetof(struct context_slot, checksum));
}

const struct context_slot *slot_newest(const struct context_record *record)
{
	const struct context_slot *best = NULL;
	for (int i = 0; i < 2; i++) {
		const struct context_slot *slot = &record->slot[i];
		if (slot->sequence && slot->checksum == slot_checksum(slot) && (!best || slot->sequence > best->sequence))
			best = slot;
	}
	return best;
}

void slot_publish(struct pool *pool, struct context_record *record, struct context_slot *next)
{
	const struct context_slot *newest = slot_newest(record);
	next->sequence = newest ? newest->sequence + 1 : 1;
	next->checksum = slot_checksum(next);
	pool_publish(pool, &record->slot[newest == &record->slot[0]], next, sizeof *next);
}
