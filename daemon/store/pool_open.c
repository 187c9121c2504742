// Opening the pool an earlier daemon left. Nothing is written to it here, and what is not understood is left as it is.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/store/pool_private.h"
#include "daemon/store/record.h"
#include "shm/status.h"

#define WHAT_TO_DO "move it away, or discard it with pool.restart = fresh"

// A daemon that was killed while it made the pool: the magic number is stored last, and there are no contexts before it.
static bool unfinished(const struct node *n, const struct superblock *sb)
{
	static const uint64_t none[POOL_GRANULE / 8];
	uint64_t table[POOL_GRANULE / 8];
	if (sb->pool_magic)
		return false;
	for (uint32_t i = 0; i < POOL_MAX_CONTEXTS * 8 / POOL_GRANULE; i++) {
		ssize_t got = pread(n->fd, table, sizeof table, (off_t)(POOL_GRANULE * (1 + (uint64_t)i)));
		if (got < 0 || memcmp(table, none, (size_t)got))
			return false;
		if (got < (ssize_t)sizeof table)
			break;
	}
	return true;
}

static int read_superblock(const struct pool *pool, struct node *n, struct superblock *sb, uint64_t *file_bytes,
                           const struct reason *why)
{
	struct stat st;
	if (fstat(n->fd, &st))
		return pool_fail(why, MPIG_EIO, "pool file %s/%s: %s", pool->dir, n->name, strerror(errno));
	*file_bytes = (uint64_t)st.st_size;
	ssize_t got = pread(n->fd, sb, sizeof *sb, 0);
	if (got < 0)
		return pool_fail(why, MPIG_EIO, "pool file %s/%s: cannot read: %s", pool->dir, n->name, strerror(errno));
	memset((char *)sb + got, 0, sizeof *sb - (size_t)got);
	return 0;
}

static int check_version(const struct pool *pool, const struct node *n, const struct superblock *sb, const struct reason *why)
{
	if (sb->pool_magic != POOL_MAGIC)
		return pool_fail(why, MPIG_ECORRUPT,
		                 "%s/%s is not a pool of magicpigd, or its superblock is damaged: " WHAT_TO_DO, pool->dir,
		                 n->name);
	if (sb->layout_version != POOL_LAYOUT_VERSION)
		return pool_fail(
			why, MPIG_EVERSION,
			"pool %s/%s has layout version %u and this daemon reads %u: start the version that made it, " WHAT_TO_DO,
			pool->dir, n->name, sb->layout_version, POOL_LAYOUT_VERSION);
	if (sb->header.checksum != record_checksum(sb, sizeof *sb) || !record_is(&sb->header, RECORD_SUPERBLOCK))
		return pool_fail(why, MPIG_ECORRUPT, "pool %s/%s: the superblock is damaged: " WHAT_TO_DO, pool->dir, n->name);
	uint64_t unknown = (sb->incompat & ~POOL_FEATURES_INCOMPAT) | (sb->ro_compat & ~POOL_FEATURES_RO_COMPAT);
	if (unknown)
		return pool_fail(why, MPIG_EVERSION,
		                 "pool %s/%s uses features %#" PRIx64
		                 " this daemon does not know: start the version that made it, " WHAT_TO_DO,
		                 pool->dir, n->name, unknown);
	return 0;
}

static int check_geometry(const struct pool *pool, const struct node *n, const struct superblock *sb, uint64_t file_bytes,
                          const struct reason *why)
{
	uint64_t unit = pool->page > HUGE_PAGE ? pool->page : HUGE_PAGE,
		 part = sb->node_count ? sb->pool_bytes / sb->node_count : 0;
	bool good = sb->granule == POOL_GRANULE && sb->node_count && sb->node_count <= MAX_NODES &&
	            part * sb->node_count == sb->pool_bytes && part >= POOL_MIN_BYTES && part % unit == 0 &&
	            part / POOL_GRANULE <= INT32_MAX && sb->contexts_offset == POOL_GRANULE &&
	            sb->contexts_max == POOL_MAX_CONTEXTS && sb->node < sb->node_count;
	if (!good)
		return pool_fail(why, MPIG_ECORRUPT, "pool %s/%s: the superblock contradicts itself: " WHAT_TO_DO, pool->dir,
		                 n->name);
	if (file_bytes != part)
		return pool_fail(why, MPIG_ECORRUPT,
		                 "pool %s/%s has %" PRIu64 " bytes and %" PRIu64 " when it was made: " WHAT_TO_DO, pool->dir,
		                 n->name, file_bytes, part);
	return 0;
}

static int check_instance(const struct pool *pool, const struct node *n, const struct superblock *sb, const char *instance,
                          const struct reason *why)
{
	if (strnlen(sb->instance, sizeof sb->instance) == sizeof sb->instance || strcmp(sb->instance, instance))
		return pool_fail(why, MPIG_EEXIST,
		                 "pool %s/%s belongs to instance '%.63s', this daemon is '%s': start it under that name, choose "
		                 "another pool.dir, or discard it with pool.restart = fresh",
		                 pool->dir, n->name, sb->instance, instance);
	return 0;
}

static int open_node(struct pool *pool, uint32_t i, const char *instance, struct superblock *sb, const struct reason *why)
{
	struct node *n = &pool->node[i];
	uint64_t file_bytes = 0;
	int status = pool_lock_file(pool, n, false, why);
	if (!status)
		status = read_superblock(pool, n, sb, &file_bytes, why);
	if (!status && i == 0 && unfinished(n, sb))
		return pool_fail(why, MPIG_ENOENT, "pool file %s/%s was never finished", pool->dir, n->name);
	if (!status)
		status = check_version(pool, n, sb, why);
	if (!status)
		status = check_instance(pool, n, sb, instance, why);
	if (!status)
		status = check_geometry(pool, n, sb, file_bytes, why);
	return status;
}

static int open_others(struct pool *pool, const char *instance, const struct superblock *first, const struct reason *why)
{
	for (uint32_t i = 1; i < pool->nodes; i++) {
		struct superblock sb;
		int status = open_node(pool, i, instance, &sb, why);
		if (status == MPIG_ENOENT)
			status = MPIG_ECORRUPT; // the first file says there is one
		if (!status && (sb.node != i || sb.node_count != first->node_count || sb.pool_bytes != first->pool_bytes ||
		                memcmp(sb.instance_id, first->instance_id, sizeof sb.instance_id)))
			status = pool_fail(why, MPIG_ECORRUPT, "pool files %s/%s and %s do not belong together: " WHAT_TO_DO,
			                   pool->dir, pool->node[0].name, pool->node[i].name);
		if (status)
			return status;
	}
	return 0;
}

int pool_open(const struct pool_options *options, struct pool **out, char *text, size_t text_bytes)
{
	struct reason why = {text, text_bytes};
	struct superblock sb;
	struct pool *pool;
	int status = pool_new(options, 1, &pool, &why);
	if (status)
		return status;
	status = pool_open_directory(pool, false, &why);
	if (!status)
		status = open_node(pool, 0, options->instance, &sb, &why);
	if (!status) {
		pool->nodes = sb.node_count;
		pool->bytes = sb.pool_bytes;
		pool->part = sb.pool_bytes / sb.node_count;
		status = open_others(pool, options->instance, &sb, &why);
	}
	if (!status)
		status = pool_map(pool, options->lock_memory, &why);
	for (uint32_t i = 0; i < pool->nodes && !status; i++)
		status = pool_prepare_node(pool, i, &why);
	if (status) {
		pool_close(pool, false);
		return status;
	}
	*out = pool;
	return 0;
}
