// The pool's own record, shared by the file that makes pools and the one that hands out extents.
#ifndef MPIG_STORE_POOL_PRIVATE_H
#define MPIG_STORE_POOL_PRIVATE_H

#include <limits.h>
#include <pthread.h>

#include "daemon/store/alloc.h"
#include "daemon/store/format.h"
#include "daemon/store/pool.h"

#define HUGE_PAGE (UINT64_C(2) << 20)
#define MAX_NODES 64u

struct node {
	pthread_mutex_t lock; // the map; on hugetlbfs also what fallocate and punch do to shared pages
	struct extent_map map;
	uint64_t *
		filled; // a bit per 2 MiB range that allocations have touched since pool_collapse looked; NULL without huge_pages
	uint32_t candidates; // bits set in it
	unsigned char *base;
	uint64_t offset; // of its first byte in the pool
	int fd;
	char name[32]; // in the pool's directory
};

struct pool {
	unsigned char *base;
	uint64_t bytes, part; // part: bytes of one node
	uint64_t page;        // what fallocate and punch work in: 4096, or the huge page size on hugetlbfs
	uint32_t nodes;
	bool huge_pages, made_dir;
	int dir_fd;
	char dir[PATH_MAX - 64], path[PATH_MAX];
	struct node node[MAX_NODES];
};

// An extent of whole granules on one node; its offset in the pool, UINT64_MAX on failure.
uint64_t pool_take(struct pool *pool, struct node *n, uint64_t bytes);

#endif
