#include <stdlib.h>

#include "daemon/engine/job.h"

#define KEPT_BYTES                                                                                                               \
	((size_t)64 << 20) // more is given back when less will do: what a request of thousands of query tokens took, once

struct engine_scratch {
	void *memory;
	size_t bytes;
};

struct engine_scratch *engine_scratch_create(void)
{
	return calloc(1, sizeof(struct engine_scratch));
}

void engine_scratch_destroy(struct engine_scratch *scratch)
{
	if (!scratch)
		return;
	free(scratch->memory);
	free(scratch);
}

void *scratch_get(struct engine_scratch *s, size_t bytes)
{
	if (bytes > s->bytes || (s->bytes > KEPT_BYTES && bytes <= KEPT_BYTES / 2)) {
		size_t grown = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
		void *memory = aligned_alloc(64, grown);
		if (!memory)
			return bytes > s->bytes ? NULL : s->memory;
		free(s->memory);
		s->memory = memory;
		s->bytes = grown;
	}
	return s->memory;
}

void *carve(struct carve *c, uint64_t count, uint64_t bytes)
{
	uint64_t total, end;
	if (__builtin_mul_overflow(count, bytes, &total) || __builtin_add_overflow(total, c->used + 63, &end) ||
	    end > SIZE_MAX / 2) {
		c->overflow = true;
		return NULL;
	}
	void *at = c->base ? c->base + c->used : NULL;
	c->used = (size_t)(end & ~UINT64_C(63));
	return at;
}
