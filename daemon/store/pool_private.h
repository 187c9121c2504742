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
#define POOL_MIN_BYTES (UINT64_C(4) << 20) // per node

struct reason { // where a failure is explained
	char *text;
	size_t bytes;
};

struct node {
	pthread_mutex_t lock; // the map; on hugetlbfs also what fallocate and punch do to shared pages
	struct extent_map map;
	uint64_t *
		filled; // a bit per 2 MiB range that allocations have touched since pool_collapse looked; NULL without huge_pages
	uint32_t candidates; // bits set in it
	uint64_t *ready; // a bit per 2 MiB range whose pages are all there, and zero where it is free; NULL: none is kept ready
	bool full;       // the machine had no memory for one; until something is given back
	pthread_mutex_t
		filling; // held while a free range is filled or emptied, which nobody can take for so long; taken before `lock`
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
	bool huge_pages, ready, made_dir;
	int dir_fd;
	char dir[PATH_MAX - 64], path[PATH_MAX];
	struct node node[MAX_NODES];
};

// An extent of whole granules on one node; its offset in the pool, UINT64_MAX on failure.
uint64_t pool_take(struct pool *pool, struct node *n, uint64_t bytes);

int pool_allocate(int fd, int mode, uint64_t offset, uint64_t bytes); // fallocate, until it is not interrupted
// Whether all ranges of an extent are ready; and those of one that is given back no longer are. Lock held.
bool pool_is_ready(const struct node *n, uint64_t at, uint64_t bytes);
void pool_not_ready(struct node *n, uint64_t at, uint64_t bytes);
// Gives the memory of one free range that is ready back to the machine, which has no other. False: there is none. `filling` held.
bool pool_give_ready(struct node *n);

// What making a pool and opening one share (pool_create.c). `create`: what is missing is made; otherwise MPIG_ENOENT.
__attribute__((format(printf, 3, 4))) int pool_fail(const struct reason *why, int status, const char *format, ...);
int pool_errno_status(int error);
int pool_new(const struct pool_options *options, uint32_t nodes, struct pool **pool, const struct reason *why);
int pool_open_directory(struct pool *pool, bool create, const struct reason *why);
int pool_lock_file(const struct pool *pool, struct node *n, bool create, const struct reason *why);
int pool_map(struct pool *pool, bool lock_memory, const struct reason *why);    // bytes and part are known
int pool_prepare_node(struct pool *pool, uint32_t i, const struct reason *why); // its free map, with superblock and table taken

#endif
