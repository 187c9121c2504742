// Making a pool: its directory, files, size, mapping and superblocks; and taking it down.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <numa.h>
#include <numaif.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/store/pool_private.h"
#include "daemon/store/record.h"
#include "shm/status.h"

#define LOCK_PATIENCE_NS UINT64_C(2000000000)
#define TMPFS_FS_MAGIC 0x01021994
#define HUGETLB_FS_MAGIC 0x958458f6

int pool_fail(const struct reason *why, int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why->text, why->bytes, format, args);
	va_end(args);
	return status;
}

int pool_errno_status(int error)
{
	return error == EACCES || error == EPERM || error == EROFS || error == ELOOP || error == ENOTDIR ? MPIG_EACCES
	       : error == ENOSPC || error == EDQUOT || error == EFBIG                                    ? MPIG_ENOSPC
	       : error == ENOMEM                                                                         ? MPIG_ENOMEM
	                                                                                                 : MPIG_EIO;
}

// ---- directory and files ---------------------------------------------------------------------------------------------

int pool_open_directory(struct pool *pool, bool create, const struct reason *why)
{
	const char *dir = pool->dir;
	if (!create && access(dir, F_OK) && errno == ENOENT)
		return pool_fail(why, MPIG_ENOENT, "pool directory %s does not exist", dir);
	if (mkdir(dir, 0700) == 0)
		pool->made_dir = true;
	else if (errno != EEXIST)
		return pool_fail(why, pool_errno_status(errno), "pool directory %s: cannot create: %s", dir, strerror(errno));
	pool->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (pool->dir_fd < 0 && (errno == ELOOP || errno == ENOTDIR))
		return pool_fail(why, MPIG_EACCES,
		                 "pool directory %s is a symbolic link or not a directory: name a real directory", dir);
	if (pool->dir_fd < 0)
		return pool_fail(why, pool_errno_status(errno), "pool directory %s: cannot open: %s", dir, strerror(errno));
	struct stat st;
	if (fstat(pool->dir_fd, &st))
		return pool_fail(why, MPIG_EIO, "pool directory %s: %s", dir, strerror(errno));
	if (st.st_uid != geteuid())
		return pool_fail(why, MPIG_EACCES,
		                 "pool directory %s belongs to uid %u, not to this daemon's %u: choose another, or chown it", dir,
		                 st.st_uid, geteuid());
	if (st.st_mode & 022)
		return pool_fail(why, MPIG_EACCES, "pool directory %s has mode %04o and others may write there: chmod 700 it",
		                 dir, st.st_mode & 07777);
	struct statfs fs;
	if (fstatfs(pool->dir_fd, &fs))
		return pool_fail(why, MPIG_EIO, "pool directory %s: %s", dir, strerror(errno));
	if ((uint32_t)fs.f_type != TMPFS_FS_MAGIC && (uint32_t)fs.f_type != HUGETLB_FS_MAGIC)
		return pool_fail(why, MPIG_EINVAL, "pool directory %s is not on a tmpfs or hugetlbfs: use one below /dev/shm",
		                 dir);
	pool->page = (uint32_t)fs.f_type == HUGETLB_FS_MAGIC ? (uint64_t)fs.f_bsize : POOL_GRANULE;
	return 0;
}

static int check_file(const struct pool *pool, const struct node *n, const struct stat *st, const struct reason *why)
{
	if (!S_ISREG(st->st_mode) || st->st_uid != geteuid() || (st->st_mode & 077))
		return pool_fail(why, MPIG_EACCES,
		                 "pool file %s/%s is not a private file of uid %u: remove it, or choose another pool directory",
		                 pool->dir, n->name, geteuid());
	if (st->st_nlink != 1)
		return pool_fail(why, MPIG_EACCES, "pool file %s/%s has %lu links: someone else holds a name of it; remove it",
		                 pool->dir, n->name, (unsigned long)st->st_nlink);
	return 0;
}

// *created: it is ours to remove again.
static int open_file(const struct pool *pool, const struct node *n, bool create, bool *created)
{
	int flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC;
	int fd = create ? openat(pool->dir_fd, n->name, flags | O_CREAT | O_EXCL, 0600) : -1;
	*created = fd >= 0;
	if (!create || (fd < 0 && errno == EEXIST))
		fd = openat(pool->dir_fd, n->name, flags);
	return fd;
}

// The lock goes with the last reference to a killed daemon's file, and mappings may keep one for a moment after the process has been
// waited for.
static int lock_soon(int fd)
{
	uint64_t end = mono_ns() + LOCK_PATIENCE_NS;
	struct timespec pause = timespec_of(5 * 1000 * 1000);
	int failed;
	while ((failed = flock(fd, LOCK_EX | LOCK_NB)) && errno == EWOULDBLOCK && mono_ns() < end)
		nanosleep(&pause, NULL);
	return failed;
}

// A daemon that ends may unlink the name between our open and our lock: then there is a new one to open.
int pool_lock_file(const struct pool *pool, struct node *n, bool create, const struct reason *why)
{
	for (int attempt = 0; attempt < 16; attempt++) {
		bool created;
		int fd = open_file(pool, n, create, &created);
		if (fd < 0 && errno == ENOENT && create)
			continue; // gone since
		if (fd < 0 && errno == ENOENT)
			return pool_fail(why, MPIG_ENOENT, "pool file %s/%s does not exist", pool->dir, n->name);
		if (fd < 0)
			return pool_fail(why, pool_errno_status(errno), "pool file %s/%s: cannot open: %s", pool->dir, n->name,
			                 strerror(errno));
		struct stat ours, named;
		int status = 0;
		if (fstat(fd, &ours))
			status = pool_fail(why, MPIG_EIO, "pool file %s/%s: %s", pool->dir, n->name, strerror(errno));
		else if (ours.st_nlink)
			status = check_file(pool, n, &ours, why);
		if (!status && lock_soon(fd))
			status = errno == EWOULDBLOCK
			                 ? pool_fail(why, MPIG_EBUSY,
			                             "pool file %s/%s is locked: another daemon uses this pool directory; "
			                             "stop it, or choose another",
			                             pool->dir, n->name)
			                 : pool_fail(why, MPIG_EIO, "pool file %s/%s: flock: %s", pool->dir, n->name,
			                             strerror(errno));
		if (status) {
			if (created && status != MPIG_EBUSY && !flock(fd, LOCK_EX | LOCK_NB))
				unlinkat(pool->dir_fd, n->name, 0);
			close(fd);
			return status;
		}
		if (fstatat(pool->dir_fd, n->name, &named, AT_SYMLINK_NOFOLLOW) == 0 && named.st_ino == ours.st_ino) {
			n->fd = fd;
			return 0;
		}
		close(fd);
	}
	return pool_fail(why, MPIG_EBUSY, "pool file %s/%s keeps changing: another daemon starts and stops there", pool->dir,
	                 n->name);
}

static int open_empty_file(const struct pool *pool, struct node *n, const struct reason *why)
{
	int status = pool_lock_file(pool, n, true, why);
	if (!status && ftruncate(n->fd, 0))
		return pool_fail(why, pool_errno_status(errno), "pool file %s/%s: cannot empty: %s", pool->dir, n->name,
		                 strerror(errno));
	return status;
}

// ---- size ------------------------------------------------------------------------------------------------------------

// A line of /proc/meminfo in bytes (kB) or as a number; 0 if absent.
static uint64_t meminfo(const char *key, uint64_t unit)
{
	FILE *f = fopen("/proc/meminfo", "re");
	if (!f)
		return 0;
	char line[256];
	uint64_t value = 0;
	size_t length = strlen(key);
	while (!value && fgets(line, sizeof line, f))
		if (!strncmp(line, key, length) && line[length] == ':')
			value = strtoull(line + length + 1, NULL, 10) * unit;
	fclose(f);
	return value;
}

static uint64_t default_bytes(const struct pool *pool)
{
	if (pool->page != POOL_GRANULE)
		return meminfo("HugePages_Free", pool->page);
	uint64_t available = meminfo("MemAvailable", 1024);
	struct sysinfo si;
	if (!available && sysinfo(&si) == 0)
		available = (uint64_t)si.freeram * si.mem_unit;
	return available / 2;
}

static int choose_size(struct pool *pool, uint64_t asked, const struct reason *why)
{
	struct statfs fs;
	if (fstatfs(pool->dir_fd, &fs))
		return pool_fail(why, MPIG_EIO, "pool directory %s: %s", pool->dir, strerror(errno));
	uint64_t room =
		fs.f_blocks ? (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize : UINT64_MAX; // no blocks: a mount without a limit
	uint64_t bytes = asked ? asked : default_bytes(pool);
	if (asked > room)
		return pool_fail(why, MPIG_ENOSPC,
		                 "a pool of %" PRIu64 " MiB was asked for, but %s has %" PRIu64 " MiB free: "
		                 "lower the pool size, free space there, or remount it with a larger size=",
		                 asked >> 20, pool->dir, room >> 20);
	if (bytes > room)
		bytes = room;
	uint64_t unit = pool->page > HUGE_PAGE ? pool->page : HUGE_PAGE;
	pool->part = bytes / pool->nodes / unit * unit;
	pool->bytes = pool->part * pool->nodes;
	if (pool->part < POOL_MIN_BYTES)
		return pool_fail(why, asked ? MPIG_EINVAL : MPIG_ENOSPC,
		                 "a pool of %" PRIu64 " MiB in %u part(s) is too small: at least %" PRIu64
		                 " MiB each are needed%s",
		                 bytes >> 20, pool->nodes, POOL_MIN_BYTES >> 20,
		                 asked ? ", raise the pool size" : "; free memory, or set the pool size");
	if (pool->part / POOL_GRANULE > INT32_MAX)
		return pool_fail(why, MPIG_EINVAL,
		                 "a pool of %" PRIu64 " MiB per node is above the limit of %" PRIu64 " MiB: lower the pool size",
		                 pool->part >> 20, (INT32_MAX * (uint64_t)POOL_GRANULE) >> 20);
	return 0;
}

// ---- mapping ---------------------------------------------------------------------------------------------------------

// Reserves addresses for the whole pool, huge-page-aligned, then lays the files into them.
int pool_map(struct pool *pool, bool lock_memory, const struct reason *why)
{
	uint64_t align = pool->page > HUGE_PAGE ? pool->page : HUGE_PAGE;
	unsigned char *hint = mmap(NULL, pool->bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (hint == MAP_FAILED)
		return pool_fail(why, pool_errno_status(errno),
		                 "cannot reserve %" PRIu64 " MiB of addresses for the pool: %s (see ulimit -v)",
		                 pool->bytes >> 20, strerror(errno));
	unsigned char *base = hint + (align - (uintptr_t)hint % align) % align;
	if (base > hint)
		munmap(hint, (size_t)(base - hint));
	if (base + pool->bytes < hint + pool->bytes + align)
		munmap(base + pool->bytes, (size_t)(hint + align - base));
	pool->base = base;
	for (uint32_t i = 0; i < pool->nodes; i++) {
		struct node *n = &pool->node[i];
		n->offset = i * pool->part;
		n->base = base + n->offset;
		if (ftruncate(n->fd, (off_t)pool->part))
			return pool_fail(why, pool_errno_status(errno), "pool file %s/%s: cannot grow to %" PRIu64 " MiB: %s",
			                 pool->dir, n->name, pool->part >> 20, strerror(errno));
		if (mmap(n->base, pool->part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, n->fd, 0) == MAP_FAILED)
			return pool_fail(why, pool_errno_status(errno), "pool file %s/%s: cannot map %" PRIu64 " MiB: %s",
			                 pool->dir, n->name, pool->part >> 20, strerror(errno));
		if (lock_memory)
			(void)mlock2(n->base, pool->part, MLOCK_ONFAULT); // best effort: RLIMIT_MEMLOCK decides
		if (pool->nodes > 1 && numa_available() >= 0 && (int)i <= numa_max_node()) {
			unsigned long mask = 1ul << i;
			(void)mbind(n->base, pool->part, MPOL_PREFERRED, &mask, sizeof mask * CHAR_BIT, 0);
		}
	}
	return 0;
}

// ---- superblock ------------------------------------------------------------------------------------------------------

int pool_prepare_node(struct pool *pool, uint32_t i, const struct reason *why)
{
	struct node *n = &pool->node[i];
	if (extent_map_init(&n->map, (uint32_t)(pool->part / POOL_GRANULE)))
		return pool_fail(why, MPIG_ENOMEM, "no memory for the free map of a pool of %" PRIu64 " MiB", pool->bytes >> 20);
	if (pool->huge_pages && !(n->filled = calloc((pool->part / HUGE_PAGE + 63) / 64, sizeof *n->filled)))
		return pool_fail(why, MPIG_ENOMEM, "no memory for the page map of a pool of %" PRIu64 " MiB", pool->bytes >> 20);
	if (pool->ready && pool->page == POOL_GRANULE &&
	    !(n->ready = calloc((pool->part / HUGE_PAGE + 63) / 64, sizeof *n->ready)))
		return pool_fail(why, MPIG_ENOMEM, "no memory for the page map of a pool of %" PRIu64 " MiB", pool->bytes >> 20);
	uint64_t table = i ? 0 : pool_round(sizeof(uint64_t) * POOL_MAX_CONTEXTS);
	if (pool_take(pool, n, POOL_GRANULE + table) != n->offset)
		return pool_fail(why, MPIG_ENOSPC, "%s has no room for the pool's first %" PRIu64 " KiB: free space there",
		                 pool->dir, (POOL_GRANULE + table) >> 10);
	return 0;
}

// A superblock counts once its magic number is there, and a pool once that of node 0 is: it is written last.
static void format_node(struct pool *pool, uint32_t i, const char *instance, const uint8_t id[16])
{
	struct node *n = &pool->node[i];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	struct superblock sb = {
		.header = {.magic = RECORD_MAGIC, .kind = RECORD_SUPERBLOCK, .format = 1, .bytes = POOL_GRANULE},
		.pool_magic = POOL_MAGIC,
		.layout_version = POOL_LAYOUT_VERSION,
		.granule = POOL_GRANULE,
		.compat = POOL_FEATURES_COMPAT,
		.ro_compat = POOL_FEATURES_RO_COMPAT,
		.incompat = POOL_FEATURES_INCOMPAT,
		.pool_bytes = pool->bytes,
		.contexts_offset = POOL_GRANULE,
		.contexts_max = POOL_MAX_CONTEXTS,
		.node = i,
		.node_count = pool->nodes,
		.created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
	};
	memcpy(sb.instance_id, id, 16);
	memcpy(sb.instance, instance, strnlen(instance, sizeof sb.instance - 1));
	sb.header.checksum = record_checksum(&sb, sizeof sb);
	sb.pool_magic = 0;
	pool_publish(pool, n->base, &sb, sizeof sb);
	pool_publish_word(pool, &((struct superblock *)(void *)n->base)->pool_magic, POOL_MAGIC);
}

static bool instance_valid(const char *instance)
{
	size_t n = strnlen(instance, 64);
	return n && n < 64 && instance[0] != '.' && !strchr(instance, '/');
}

int pool_new(const struct pool_options *options, uint32_t nodes, struct pool **out, const struct reason *why)
{
	if (!options->dir || !*options->dir || strlen(options->dir) >= sizeof((struct pool *)0)->dir)
		return pool_fail(why, MPIG_EINVAL, "pool directory: an absolute path of at most %zu bytes is needed",
		                 sizeof((struct pool *)0)->dir - 1);
	if (!options->instance || !instance_valid(options->instance))
		return pool_fail(why, MPIG_EINVAL, "instance name: 1 to 63 bytes, no '/', not starting with '.'");
	if (nodes > MAX_NODES)
		return pool_fail(why, MPIG_EINVAL, "%u NUMA nodes: at most %u are supported", nodes, MAX_NODES);
	struct pool *pool = calloc(1, sizeof *pool);
	if (!pool)
		return pool_fail(why, MPIG_ENOMEM, "no memory for the pool's own record");
	*pool = (struct pool){.nodes = nodes, .dir_fd = -1, .huge_pages = options->huge_pages, .ready = options->ready > 0};
	strcpy(pool->dir, options->dir);
	for (uint32_t i = 0; i < MAX_NODES; i++) {
		struct node *n = &pool->node[i];
		n->fd = -1;
		pthread_mutex_init(&n->lock, NULL);
		pthread_mutex_init(&n->filling, NULL);
		snprintf(n->name, sizeof n->name, "node%u.pool", i);
	}
	snprintf(pool->path, sizeof pool->path, "%s/%s", pool->dir, pool->node[0].name);
	*out = pool;
	return 0;
}

int pool_create(const struct pool_options *options, struct pool **out, char *text, size_t text_bytes)
{
	struct reason why = {text, text_bytes};
	uint32_t nodes = options->nodes ? options->nodes : numa_available() < 0 ? 1 : (uint32_t)numa_max_node() + 1;
	struct pool *pool;
	int status = pool_new(options, nodes, &pool, &why);
	if (status)
		return status;
	uint8_t id[16] = {0};
	if (getrandom(id, sizeof id, 0) != sizeof id)
		memcpy(id, &(struct timespec){.tv_sec = time(NULL), .tv_nsec = getpid()}, sizeof id);
	status = pool_open_directory(pool, true, &why);
	for (uint32_t i = 0; i < nodes && !status; i++)
		status = open_empty_file(pool, &pool->node[i], &why);
	if (!status)
		status = choose_size(pool, options->bytes, &why);
	if (!status)
		status = pool_map(pool, options->lock_memory, &why);
	for (uint32_t i = 0; i < nodes && !status; i++)
		status = pool_prepare_node(pool, i, &why);
	if (status) {
		pool_close(pool, true);
		return status;
	}
	for (uint32_t i = nodes; i-- > 0;)
		format_node(pool, i, options->instance, id);
	*out = pool;
	return 0;
}

void pool_close(struct pool *pool, bool remove)
{
	if (!pool)
		return;
	if (pool->base)
		munmap(pool->base, pool->bytes);
	for (uint32_t i = 0; i < MAX_NODES; i++) {
		struct node *n = &pool->node[i];
		if (n->fd >= 0) {
			while (!remove && pool_give_ready(n)) // nobody is there to use it
				continue;
			if (remove)
				unlinkat(pool->dir_fd, n->name, 0);
			close(n->fd); // and with it the lock
		}
		extent_map_fini(&n->map);
		free(n->filled);
		free(n->ready);
		pthread_mutex_destroy(&n->lock);
		pthread_mutex_destroy(&n->filling);
	}
	if (pool->dir_fd >= 0)
		close(pool->dir_fd);
	if (remove && pool->made_dir)
		(void)rmdir(pool->dir); // stays if something else lives there
	free(pool);
}
