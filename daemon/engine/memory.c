#include "daemon/engine/memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct memory_piece {
	_Alignas(64) size_t bytes; // behind this header
};

static void forget(struct memory *m, struct memory_piece *piece)
{
	atomic_fetch_sub_explicit(&m->bytes, piece->bytes, memory_order_relaxed);
	free(piece);
}

// Into place i, and what was put there meanwhile goes.
static void keep(struct memory *m, uint32_t i, struct memory_piece *piece)
{
	struct memory_piece *other = atomic_exchange_explicit(&m->kept[i], piece, memory_order_acq_rel);
	if (other)
		forget(m, other);
}

static void *hand_out(struct memory *m, struct memory_piece *piece)
{
	atomic_fetch_add_explicit(&m->used, piece->bytes, memory_order_relaxed);
	return piece + 1;
}

static bool may_have(const struct memory *m, size_t bytes)
{
	size_t used = atomic_load_explicit(&m->used, memory_order_relaxed);
	return !m->available || (used <= MEMORY_UNASKED_BYTES && bytes <= MEMORY_UNASKED_BYTES - used) ||
	       used + bytes <= m->available() / 2;
}

void *memory_get(struct memory *m, size_t bytes)
{
	for (uint32_t i = 0; i < MEMORY_KEPT; i++) {
		if (!atomic_load_explicit(&m->kept[i], memory_order_relaxed))
			continue;
		struct memory_piece *piece = atomic_exchange_explicit(&m->kept[i], NULL, memory_order_acq_rel);
		if (piece && piece->bytes >= bytes) {
			atomic_fetch_sub_explicit(&m->bytes, piece->bytes, memory_order_relaxed);
			return hand_out(m, piece);
		}
		if (piece)
			keep(m, i, piece);
	}
	if (bytes > SIZE_MAX / 4 || !may_have(m, bytes))
		return NULL;
	bytes = (bytes + 63) & ~(size_t)63;
	struct memory_piece *piece = aligned_alloc(64, sizeof(*piece) + bytes);
	if (!piece)
		return NULL;
	piece->bytes = bytes;
	return hand_out(m, piece);
}

void memory_put(struct memory *m, void *memory)
{
	if (!memory)
		return;
	struct memory_piece *piece = (struct memory_piece *)memory - 1, *none = NULL;
	atomic_fetch_sub_explicit(&m->used, piece->bytes, memory_order_relaxed);
	size_t before = atomic_fetch_add_explicit(&m->bytes, piece->bytes, memory_order_relaxed);
	for (uint32_t i = 0; i < MEMORY_KEPT && before + piece->bytes <= MEMORY_KEPT_BYTES; i++, none = NULL)
		if (atomic_compare_exchange_strong_explicit(&m->kept[i], &none, piece, memory_order_acq_rel,
		                                            memory_order_relaxed))
			return;
	forget(m, piece);
}

void memory_drop(struct memory *m)
{
	for (uint32_t i = 0; i < MEMORY_KEPT; i++)
		keep(m, i, NULL);
}
