// The DRAM the daemon hands out: one file on tmpfs or hugetlbfs per NUMA node, mapped once, and an allocator of extents whose
// free map lives in private memory. Bytes are fallocate()d before they are handed out, so a full machine is a refusal,
// never SIGBUS; freed bytes are punched out and go back to the machine.
#ifndef MPIG_STORE_POOL_H
#define MPIG_STORE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pool;
struct pool_options {
	const char *dir; // created 0700 if absent; must be ours, not a symlink, not writable by others
	const char *instance;
	uint64_t bytes;   // 0 = half of MemAvailable
	bool lock_memory; // mlock2(ONFAULT) where allowed
	bool huge_pages;  // remember filled 2 MiB ranges for pool_collapse
	uint64_t
		ready; // free memory that pool_make_ready will be asked to keep; 0 = none. Not on hugetlbfs, whose pages are there
	uint32_t nodes; // files, one per NUMA node; 0 = as many as the machine has
};
// Creates a fresh pool (an old file of a dead daemon is emptied; one whose daemon lives is refused by flock: MPIG_EBUSY).
// 0 or MPIG_EBUSY, MPIG_EACCES, MPIG_ENOSPC, MPIG_EIO, MPIG_ENOMEM, MPIG_EINVAL (options; not a tmpfs or hugetlbfs);
// `why` (>= 256 bytes) says what, where, what to do. On failure nothing is left behind.
int pool_create(const struct pool_options *options, struct pool **pool, char *why, size_t why_bytes);
// The pool an earlier daemon of this instance left, as it is; its size and number of nodes are the file's, not the options'.
// Everything but the superblocks and the context table counts as free: store_attach claims what contexts reach, then scrubs the
// rest. MPIG_ENOENT: there is no pool (pool_create makes one); otherwise nothing of what is there has been touched: MPIG_EVERSION
// (another layout, or features unknown here), MPIG_EEXIST (of another instance), MPIG_ECORRUPT, and what pool_create answers.
int pool_open(const struct pool_options *options, struct pool **pool, char *why, size_t why_bytes);
// Unmaps; removes the file if `remove`.
void pool_close(struct pool *pool, bool remove);

// An extent of at least `bytes`, zeroed, granule-aligned, on the node asked for or else another. Thread-safe. 0 on failure (offset 0
// is the superblock's).
uint64_t pool_alloc(struct pool *pool, uint64_t bytes, int node);
// Gives [offset, offset + bytes) back (any granule-aligned part of an allocation, so that a tail can be trimmed). Thread-safe.
void pool_free(struct pool *pool, uint64_t offset, uint64_t bytes);
// Whether [offset, offset + bytes) could be an extent: begins at a granule, lies on one node, is not a superblock. For offsets that are
// not trusted yet.
bool pool_inside(const struct pool *pool, uint64_t offset, uint64_t bytes);
// For attaching, before anything is allocated. Takes exactly [offset, offset + bytes), which may be anything: false if it is not
// whole granules of one node or not free.
bool pool_claim(struct pool *pool, uint64_t offset, uint64_t bytes);
void pool_unclaim(struct pool *pool, uint64_t offset, uint64_t bytes); // a claim, taken back; its bytes stay as they are
bool pool_is_free(struct pool *pool, uint64_t offset, uint64_t bytes); // whole granules, on any nodes
void pool_scrub(struct pool *pool); // what is free is zero from here on: punched out, so that pool_alloc keeps its promise
static inline uint64_t pool_round(uint64_t bytes)
{
	return (bytes + 4095) & ~UINT64_C(4095);
}
// Idle work, with huge_pages: makes up to `most` filled 2 MiB ranges one page each where the kernel can, and returns how many are left
// to try. A range costs milliseconds (the kernel copies it), so this is not done on allocation. Thread-safe.
uint32_t pool_collapse(struct pool *pool, uint32_t most);
// Idle work: fills one more free range of 2 MiB, zeroed, as a huge page where the kernel can, and mapped, unless `want` bytes in such ranges
// are free: extents taken from them cost no page. False: there is nothing to do, or the machine is full. A range costs a millisecond. Thread-safe.
bool pool_make_ready(struct pool *pool, uint64_t want);
// Address of an offset of ours (trusted).
void *pool_at(const struct pool *pool, uint64_t offset);

// The only way metadata changes: copies `bytes` to `dst` inside the pool word by word (dst and bytes multiples of 4; no aligned
// 8-byte word is ever half written when both sides are 8-aligned); the last word is stored with release order after everything
// before it. The crash hook of the tests runs before and after.
void pool_publish(struct pool *pool, void *dst, const void *src, size_t bytes);
static inline void pool_publish_word(struct pool *pool, uint64_t *dst, uint64_t value)
{
	pool_publish(pool, dst, &value, 8);
}
static inline void pool_publish_word32(struct pool *pool, uint32_t *dst, uint32_t value)
{
	pool_publish(pool, dst, &value, 4);
}
extern void (*pool_publish_hook)(const void *dst, size_t bytes, int after); // tests only; NULL

struct superblock;
struct superblock *pool_superblock(struct pool *pool);
uint64_t pool_bytes(const struct pool *pool);
uint64_t pool_used(const struct pool *pool);
const char *pool_path(const struct pool *pool);
int pool_nodes(const struct pool *pool);

#endif
