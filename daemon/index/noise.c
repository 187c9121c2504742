#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"

enum { NOISE_ENTRIES = 1 << NOISE_BITS };

static pthread_once_t noise_once = PTHREAD_ONCE_INIT;
static float *noise;

static void noise_build(void)
{
	const size_t huge = (size_t)2 << 20, bytes = (NOISE_ENTRIES + (size_t)NOISE_WRAP) * sizeof(float);
	float *table = aligned_alloc(huge, (bytes + huge - 1) & ~(huge - 1));
	if (!table)
		return;
	(void)madvise(table, bytes & ~(huge - 1), MADV_HUGEPAGE); // read at other places by each unit of a scan; best effort
	for (uint32_t j = 0; j < NOISE_ENTRIES; j++)
		table[j] = (float)-log((j + .5) / NOISE_ENTRIES);
	struct rng rng = {UINT64_C(0x6d61676963706967)}; // fixed: the table is the same in every daemon
	for (uint32_t j = NOISE_ENTRIES - 1; j > 0; j--) {
		uint32_t other = rng_below(&rng, j + 1);
		float swap = table[j];
		table[j] = table[other];
		table[other] = swap;
	}
	for (uint32_t j = 0; j < NOISE_WRAP; j++)
		table[NOISE_ENTRIES + j] = table[j];
	noise = table;
}

const float *noise_table(void)
{
	pthread_once(&noise_once, noise_build);
	return noise;
}

uint32_t noise_offset(uint64_t seed, uint64_t position, uint32_t layer, uint32_t kv_head, uint64_t first_row)
{
	uint64_t h = rng_hash(seed, position);
	h = rng_hash(h, (uint64_t)layer << 32 | kv_head);
	h = rng_hash(h, first_row);
	return (uint32_t)(h >> (64 - NOISE_BITS));
}
