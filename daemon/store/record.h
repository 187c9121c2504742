// Records of the pool: headers, checksums, slots, and where their variable parts lie.
#ifndef MPIG_STORE_RECORD_H
#define MPIG_STORE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/store/format.h"
#include "daemon/store/pool.h"

// Partner: the release at the end of pool_publish.
static inline uint64_t load_word(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}
static inline uint32_t load_word32(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

// Checksum of a record whose immutable part is `bytes` long, header included.
uint64_t record_checksum(const void *record, size_t bytes);
void record_init(struct record_header *header, enum record_kind kind, uint64_t bytes);
bool record_is(const struct record_header *header, enum record_kind kind);
// The newer slot with a valid checksum; NULL: neither, the context is corrupt.
const struct context_slot *slot_newest(const struct context_record *record);
// Writes *next over the older slot; sequence and checksum are filled in.
void slot_publish(struct pool *pool, struct context_record *record, struct context_slot *next);

static inline uint64_t *block_rows(struct block_record *b)
{
	return (uint64_t *)(void *)(b + 1);
}
static inline uint32_t *block_tokens(struct block_record *b)
{
	return (uint32_t *)(void *)(block_rows(b) + b->strips);
}
static inline uint64_t *code_offsets(struct code_block_record *b)
{
	return (uint64_t *)(void *)(b + 1);
}
static inline struct table_extent *generation_tables(struct generation_record *g)
{
	return (struct table_extent *)(void *)(g + 1);
}
static inline struct table_extent *generation_uppers(struct generation_record *g)
{
	return generation_tables(g) + g->strips;
}
static inline bool generation_has_tables(const struct generation_record *g) // or upper layers
{
	return g->table_rows || g->upper_rows;
}
static inline uint8_t *generation_bits(const struct generation_record *g)
{
	return (uint8_t *)(generation_tables((struct generation_record *)g) + 2 * (size_t)g->strips);
}
static inline struct segment_ref *list_refs(struct segment_list_record *l)
{
	return (struct segment_ref *)(void *)(l + 1);
}
static inline uint64_t block_bytes(uint32_t strips, uint32_t rows)
{
	return pool_round(sizeof(struct block_record) + (uint64_t)strips * 8 + (uint64_t)rows * 4);
}
static inline uint64_t code_block_bytes(uint32_t strips)
{
	return pool_round(sizeof(struct code_block_record) + (uint64_t)strips * 8);
}
static inline uint64_t generation_bytes(uint32_t strips)
{
	return pool_round(sizeof(struct generation_record) + strips * (2 * sizeof(struct table_extent) + UINT64_C(1)));
}
static inline uint64_t list_bytes(uint64_t count)
{
	return pool_round(sizeof(struct segment_list_record) + count * sizeof(struct segment_ref));
}

#endif
