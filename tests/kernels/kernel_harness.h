// What the kernel tests and the kernel benchmark share: the ISAs this CPU has, random but biased inputs, guarded arrays.
#ifndef MPIG_TESTS_KERNEL_HARNESS_H
#define MPIG_TESTS_KERNEL_HARNESS_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/kernels/kernels.h"

#define MAX_ISAS 5u
struct isa {
	struct kernels k;
	char name[64];
};

// C first, then every rung that this CPU can climb.
static inline uint32_t isas_of_cpu(struct isa *isas)
{
	static const uint32_t rungs[MAX_ISAS] = {0, CPU_AVX2, CPU_AVX2 | CPU_AVX512, CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI,
	                                         CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI | CPU_AMX_INT8};
	uint32_t n = 0, features = cpu_features();
	for (uint32_t i = 0; i < MAX_ISAS; i++)
		if ((rungs[i] & features) == rungs[i]) {
			kernels_init(&isas[n].k, rungs[i], isas[n].name, sizeof isas[n].name);
			n++;
		}
	return n;
}

// splitmix64
static inline uint64_t rng_next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static inline uint32_t rng_below(uint64_t *state, uint32_t n)
{
	return (uint32_t)((rng_next(state) >> 32) * n >> 32);
}

static inline float rng_unit(uint64_t *state) // (0, 1)
{
	return ((float)(rng_next(state) >> 41) + .5f) * 0x1p-23f;
}

static inline float rng_normal(uint64_t *state)
{
	return sqrtf(-2 * logf(rng_unit(state))) * cosf(6.2831853f * rng_unit(state));
}

// Mostly ordinary numbers; also zeros of both signs, subnormals, tiny, large.
static inline float rng_biased(uint64_t *state)
{
	float x = rng_normal(state);
	switch (rng_below(state, 24)) {
	case 0:
		return 0.f;
	case 1:
		return -0.f;
	case 2:
		return x * 1e-40f;
	case 3:
		return x * 1e-30f;
	case 4:
		return x * 1e-6f;
	case 5:
		return x * 1e4f;
	default:
		return x;
	}
}

// An array that ends at a page nobody may touch, and begins after another (unless its first page has room to spare).
struct guarded {
	uint8_t *map;
	size_t map_bytes;
	void *at;
};

static inline void *guard_alloc(struct guarded *g, size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
	g->map_bytes = body + 2 * page;
	g->map = mmap(NULL, g->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->map == MAP_FAILED || mprotect(g->map, page, PROT_NONE) || mprotect(g->map + page + body, page, PROT_NONE)) {
		perror("guard_alloc");
		abort();
	}
	memset(g->map + page, 0xa5, body);
	g->at = g->map + page + body - bytes;
	return g->at;
}

static inline void guard_free(struct guarded *g)
{
	munmap(g->map, g->map_bytes);
}

#endif
