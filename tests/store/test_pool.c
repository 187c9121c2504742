// The extent allocator against a model, the pool against a failing kernel and a hostile directory.
#include "daemon/store/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "daemon/store/alloc.h"
#include "daemon/store/format.h"
#include "shm/status.h"
#include "tests/lib/suite.h"
#include "tests/store/fixture.h"

// ---- failures, injected in place of libc's calls ----------------------------------------------------------------------
static int fail_fallocate, fail_punch, fail_mmap, fail_ftruncate, fail_flock;

static uint64_t machine;           // bytes that a file may have; 0: any
static void (*while_filled)(void); // called as a range of 2 MiB is filled

static off_t holes(int fd, off_t at, off_t end)
{
	off_t bytes = 0;
	while (at < end) {
		off_t data = lseek(fd, at, SEEK_DATA);
		data = data < 0 || data > end ? end : data;
		bytes += data - at;
		at = data < end ? lseek(fd, data, SEEK_HOLE) : end;
	}
	return bytes;
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	struct stat st;
	if (machine && !mode && fstat(fd, &st) == 0 &&
	    (uint64_t)st.st_blocks * 512 + (uint64_t)holes(fd, offset, offset + len) > machine) {
		errno = ENOSPC;
		return -1;
	}
	if (while_filled && !mode && len == 2 << 20)
		while_filled();
	if (mode ? fail_punch : fail_fallocate) {
		errno = mode ? fail_punch : fail_fallocate;
		if (errno == EINTR)
			fail_fallocate = fail_punch = 0;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

int ftruncate(int fd, off_t length)
{
	if (fail_ftruncate && length > 0) {
		errno = fail_ftruncate;
		return -1;
	}
	return (int)syscall(SYS_ftruncate, fd, length);
}

int flock(int fd, int operation)
{
	if (fail_flock) {
		errno = fail_flock;
		return -1;
	}
	return (int)syscall(SYS_flock, fd, operation);
}

#ifndef __SANITIZE_THREAD__ // its runtime needs libc's mmap
void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	if (fail_mmap && fd >= 0) {
		errno = fail_mmap;
		return MAP_FAILED;
	}
	return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}
#endif

static char why[256];
static char dir[64];

static void setup(void)
{
	fail_fallocate = fail_punch = fail_mmap = fail_ftruncate = fail_flock = 0;
	snprintf(dir, sizeof dir, "/dev/shm/mpig-test-%d", (int)getpid());
}

static int make(struct pool **pool, uint64_t bytes, uint32_t nodes)
{
	struct pool_options o = {.dir = dir, .instance = "t", .bytes = bytes, .nodes = nodes};
	return pool_create(&o, pool, why, sizeof why);
}

// ---- the free map ----------------------------------------------------------------------------------------------------

START_TEST(map_agrees_with_a_plain_array)
{
	uint64_t random = (uint64_t)_i;
	uint32_t granules = 1 + next_below(&random, 3000);
	struct extent_map map;
	ck_assert_int_eq(extent_map_init(&map, granules), 0);
	unsigned char *used = calloc(granules, 1);
	for (int step = 0; step < 3000; step++) {
		uint32_t n = 1 + next_below(&random, next_below(&random, 4) ? 20 : 300);
		if (next_below(&random, 100) < 55) {
			uint32_t expected = EXTENT_NONE, run = 0;
			for (uint32_t g = 0; g < granules && expected == EXTENT_NONE; g++)
				if ((run = used[g] ? 0 : run + 1) == n)
					expected = g + 1 - n;
			must(extent_map_take(&map, n) == expected);
			if (expected != EXTENT_NONE)
				memset(used + expected, 1, n);
		} else {
			uint32_t first = next_below(&random, granules), count = 0;
			while (count < n && first + count < granules && used[first + count])
				count++;
			must(count == 0 || extent_map_all_used(&map, first, count));
			if (count) {
				extent_map_give(&map, first, count);
				memset(used + first, 0, count);
				must(extent_map_all_free(&map, first, count));
			}
		}
		uint32_t sum = 0;
		for (uint32_t g = 0; g < granules; g++)
			sum += !used[g];
		must(map.free == sum);
	}
	extent_map_fini(&map);
	free(used);
}
END_TEST

START_TEST(giving_twice_aborts)
{
	struct extent_map map;
	extent_map_init(&map, 100);
	uint32_t first = extent_map_take(&map, 10);
	extent_map_give(&map, first, 10);
	extent_map_give(&map, first + 3, 1);
}
END_TEST

// ---- extents ---------------------------------------------------------------------------------------------------------

START_TEST(extents_are_zeroed_disjoint_and_all_come_back)
{
	struct pool *pool;
	uint64_t random = 5, offset[200], bytes[200], begin;
	ck_assert_msg(make(&pool, 32 << 20, (uint32_t)_i) == 0, "%s", why);
	ck_assert_int_eq(pool_nodes(pool), _i);
	begin = pool_used(pool);
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 200; i++) {
			bytes[i] = 1 + next_below(&random, 200000);
			offset[i] = pool_alloc(pool, bytes[i], i);
			if (!offset[i])
				continue;
			unsigned char *p = pool_at(pool, offset[i]);
			for (uint64_t b = 0; b < pool_round(bytes[i]); b++)
				must(p[b] == 0);
			memset(p, i + 1, pool_round(bytes[i]));
		}
		for (int i = 0; i < 200; i++) {
			const unsigned char *p = offset[i] ? pool_at(pool, offset[i]) : NULL;
			for (uint64_t b = 0; p && b < pool_round(bytes[i]); b += 512)
				must(p[b] == (unsigned char)(i + 1));
			if (offset[i] && bytes[i] > 8192) { // the tail first, as a trim does
				pool_free(pool, offset[i] + 4096, bytes[i] - 4096);
				pool_free(pool, offset[i], 4096);
			} else if (offset[i]) {
				pool_free(pool, offset[i], bytes[i]);
			}
		}
		ck_assert_uint_eq(pool_used(pool), begin);
	}
	ck_assert_uint_eq(pool_alloc(pool, 0, 0), 0);
	ck_assert_uint_eq(pool_alloc(pool, UINT64_MAX, 0), 0);
	ck_assert_uint_eq(pool_alloc(pool, 33 << 20, 0), 0);
	struct stat st;
	ck_assert_int_eq(stat(pool_path(pool), &st), 0);
	ck_assert_uint_le((uint64_t)st.st_blocks * 512, 1 << 20); // the machine has its memory back
	pool_close(pool, true);
	ck_assert_int_ne(access(dir, F_OK), 0);
}
END_TEST

START_TEST(full_pool_refuses_and_recovers)
{
	struct pool *pool;
	ck_assert_int_eq(make(&pool, 8 << 20, 1), 0);
	uint64_t begin = pool_used(pool), got[4096], n = 0;
	while ((got[n] = pool_alloc(pool, 4096, 0)))
		n++;
	ck_assert_uint_eq(pool_used(pool), pool_bytes(pool));
	ck_assert_uint_eq(n, (pool_bytes(pool) - begin) / 4096);
	pool_free(pool, got[7], 4096);
	ck_assert_uint_eq(pool_alloc(pool, 8192, 0), 0);
	ck_assert_uint_eq(pool_alloc(pool, 100, 0), got[7]);
	for (uint64_t i = 0; i < n; i++)
		pool_free(pool, got[i], 4096);
	ck_assert_uint_ne(pool_alloc(pool, pool_bytes(pool) - begin, 0), 0); // neighbours have coalesced
	pool_close(pool, true);
}
END_TEST

START_TEST(full_machine_is_a_refusal)
{
	struct pool *pool;
	ck_assert_int_eq(make(&pool, 8 << 20, 1), 0);
	uint64_t begin = pool_used(pool);
	fail_fallocate = ENOSPC;
	ck_assert_uint_eq(pool_alloc(pool, 100000, 0), 0);
	ck_assert_uint_eq(pool_used(pool), begin);
	fail_fallocate = EINTR; // once
	uint64_t a = pool_alloc(pool, 100000, 0);
	ck_assert_uint_ne(a, 0);
	memset(pool_at(pool, a), 255, 100000);
	fail_punch = EOPNOTSUPP; // what cannot be punched is cleared
	pool_free(pool, a, 100000);
	ck_assert_uint_eq(pool_used(pool), begin);
	fail_punch = 0;
	ck_assert_uint_eq(pool_alloc(pool, 100000, 0), a);
	const unsigned char *p = pool_at(pool, a);
	for (int i = 0; i < 100000; i++)
		must(p[i] == 0);
	pool_close(pool, true);
}
END_TEST

static void *churn(void *arg)
{
	struct pool *pool = arg;
	uint64_t random = (uint64_t)pthread_self();
	for (int i = 0; i < 2000; i++) {
		uint64_t bytes = 1 + next_below(&random, 100000), at = pool_alloc(pool, bytes, (int)next_below(&random, 2));
		if (!at)
			continue;
		uint64_t *p = pool_at(pool, at), mark = mix(at + bytes);
		must(*p == 0);
		p[0] = p[(bytes - 1) / 8] = mark;
		must(p[0] == mark);
		pool_free(pool, at, bytes);
	}
	return NULL;
}

// _i: while free memory is made ready.
START_TEST(threads_share_the_allocator)
{
	struct pool_options o = {
		.dir = dir, .instance = "t", .bytes = 16 << 20, .huge_pages = _i, .ready = _i ? 6 << 20 : 0, .nodes = 2};
	struct pool *pool;
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), 0);
	uint64_t begin = pool_used(pool);
	pthread_t t[3];
	for (int i = 0; i < 3; i++)
		pthread_create(&t[i], NULL, churn, pool);
	for (int i = 0; i < 1000; i++)
		pool_make_ready(pool, o.ready);
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	ck_assert_uint_eq(pool_used(pool), begin);
	pool_close(pool, true);
}
END_TEST

static int hook_calls;
static void count_hook(const void *dst, size_t bytes, int after)
{
	(void)dst, (void)bytes;
	hook_calls += after ? 100 : 1;
}

START_TEST(publish_copies_any_alignment_and_calls_the_hook)
{
	struct pool *pool;
	ck_assert_int_eq(make(&pool, 8 << 20, 1), 0);
	unsigned char *p = pool_at(pool, pool_alloc(pool, 4096, 0)), src[256];
	for (int i = 0; i < 256; i++)
		src[i] = (unsigned char)(i + 1);
	pool_publish_hook = count_hook;
	for (size_t at = 0; at < 24; at += 4)
		for (size_t n = 4; n <= 64; n += 4) {
			memset(p, 0, 128);
			hook_calls = 0;
			pool_publish(pool, p + at, src, n);
			ck_assert_int_eq(hook_calls, 101);
			ck_assert_mem_eq(p + at, src, n);
			for (size_t i = 0; i < 128; i++)
				must(p[i] == 0 || (i >= at && i < at + n));
		}
	pool_publish_hook = NULL;
	pool_close(pool, true);
}
END_TEST

// ---- creation --------------------------------------------------------------------------------------------------------

START_TEST(superblock_says_what_it_is)
{
	struct pool *pool;
	ck_assert_int_eq(make(&pool, 8 << 20, 1), 0);
	const struct superblock *sb = pool_superblock(pool);
	ck_assert_uint_eq(sb->pool_magic, POOL_MAGIC);
	ck_assert_uint_eq(sb->pool_bytes, 8 << 20);
	ck_assert_uint_eq(sb->contexts_max, POOL_MAX_CONTEXTS);
	ck_assert_str_eq(sb->instance, "t");
	ck_assert_uint_eq((uintptr_t)pool_at(pool, 0) % (2 << 20), 0);
	struct stat st;
	ck_assert_int_eq(stat(dir, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0700);
	ck_assert_int_eq(stat(pool_path(pool), &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
	pool_close(pool, true);
}
END_TEST

START_TEST(kernel_failures_leave_nothing)
{
	struct {
		int *which;
		int error, status;
		const char *says;
	} cases[] = {
#ifndef __SANITIZE_THREAD__
		{&fail_mmap, ENOMEM, MPIG_ENOMEM, "map"},
#endif
		{&fail_ftruncate, ENOSPC, MPIG_ENOSPC, "grow"},    {&fail_ftruncate, EIO, MPIG_EIO, "grow"},
		{&fail_flock, ENOLCK, MPIG_EIO, "flock"},          {&fail_flock, EWOULDBLOCK, MPIG_EBUSY, "another daemon"},
		{&fail_fallocate, ENOSPC, MPIG_ENOSPC, "no room"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct pool *pool = NULL;
		*cases[i].which = cases[i].error;
		ck_assert_int_eq(make(&pool, 8 << 20, 1), cases[i].status);
		*cases[i].which = 0;
		ck_assert_msg(strstr(why, cases[i].says) && strstr(why, "pool"), "%s", why);
		ck_assert_ptr_null(pool);
		char command[128];
		snprintf(command, sizeof command, "rm -rf %s", dir);
		if (cases[i].which != &fail_flock) // an unlocked file may be another's: it is left alone
			ck_assert_int_ne(access(dir, F_OK), 0);
		else
			ck_assert_int_eq(system(command), 0);
	}
}
END_TEST

static void expect_refusal(int status, const char *says)
{
	struct pool *pool = NULL;
	ck_assert_int_eq(make(&pool, 8 << 20, 1), status);
	ck_assert_msg(strstr(why, says) != NULL, "'%s' does not say '%s'", why, says);
}

START_TEST(hostile_directories_are_refused)
{
	char link[80], file[96], other[96];
	snprintf(link, sizeof link, "%s-real", dir);
	snprintf(file, sizeof file, "%s/node0.pool", dir);
	snprintf(other, sizeof other, "%s/x", dir);
	ck_assert_int_eq(mkdir(link, 0700), 0);
	ck_assert_int_eq(symlink(link, dir), 0);
	expect_refusal(MPIG_EACCES, "symbolic link");
	unlink(dir);
	rmdir(link);

	ck_assert_int_eq(mkdir(dir, 0700), 0);
	chmod(dir, 0770);
	expect_refusal(MPIG_EACCES, "chmod 700");
	chmod(dir, 0700);
	if (geteuid() == 0) {
		ck_assert_int_eq(chown(dir, 12345, 12345), 0);
		expect_refusal(MPIG_EACCES, "belongs to uid 12345");
		ck_assert_int_eq(chown(dir, 0, 0), 0);
	}
	close(open(file, O_CREAT | O_RDWR, 0600));
	chmod(file, 0644);
	expect_refusal(MPIG_EACCES, "not a private file");
	chmod(file, 0600);
	ck_assert_int_eq(rename(file, other), 0);
	ck_assert_int_eq(symlink(other, file), 0);
	expect_refusal(MPIG_EACCES, "cannot open");
	unlink(file);
	ck_assert_int_eq(rename(other, file), 0);
	ck_assert_int_eq(linkat(AT_FDCWD, file, AT_FDCWD, other, 0), 0);
	expect_refusal(MPIG_EACCES, "2 links");
	unlink(other);

	int fd = open(file, O_RDWR);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	expect_refusal(MPIG_EBUSY, "another daemon");
	ck_assert_int_eq(access(file, F_OK), 0); // the living daemon's file stays
	ck_assert_int_eq((int)write(fd, "old", 3), 3);
	close(fd);

	struct pool *pool; // a dead daemon's file is taken over, empty
	ck_assert_msg(make(&pool, 8 << 20, 1) == 0, "%s", why);
	ck_assert_uint_eq(pool_superblock(pool)->pool_magic, POOL_MAGIC);
	pool_close(pool, true);
	ck_assert_int_eq(access(dir, F_OK), 0); // we did not make it
	rmdir(dir);
}
END_TEST

static void *unmap_soon(void *mapping)
{
	nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
	munmap(mapping, 4096);
	return NULL;
}

// A killed daemon's lock lives as long as its last mapping does, which somebody who looked at the process may hold up.
START_TEST(a_lock_that_will_go_is_awaited)
{
	char file[96];
	struct pool *pool;
	pthread_t thread;
	snprintf(file, sizeof file, "%s/node0.pool", dir);
	ck_assert_int_eq(mkdir(dir, 0700), 0);
	int fd = open(file, O_CREAT | O_RDWR, 0600);
	ck_assert_int_eq(ftruncate(fd, 4096), 0);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	void *mapping = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	fd = open(file, O_RDWR);
	ck_assert(flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK);
	close(fd);
	ck_assert_int_eq(pthread_create(&thread, NULL, unmap_soon, mapping), 0);
	ck_assert_msg(make(&pool, 8 << 20, 1) == 0, "%s", why);
	pthread_join(thread, NULL);
	pool_close(pool, true);
	rmdir(dir);
}
END_TEST

START_TEST(sizes_and_places_are_checked)
{
	struct pool *pool;
	ck_assert_int_eq(make(&pool, UINT64_C(1) << 50, 1), MPIG_ENOSPC);
	ck_assert_msg(strstr(why, "lower the pool size") != NULL, "%s", why);
	ck_assert_int_eq(make(&pool, 1 << 20, 1), MPIG_EINVAL);
	ck_assert_int_eq(make(&pool, 8 << 20, 65), MPIG_EINVAL);
	struct pool_options o = {.dir = "/tmp/mpig-not-a-tmpfs", .instance = "t", .bytes = 8 << 20};
	int status = pool_create(&o, &pool, why, sizeof why);
	if (status == 0) // a machine whose /tmp is a tmpfs
		pool_close(pool, true);
	else
		ck_assert_msg(status == MPIG_EINVAL && strstr(why, "tmpfs"), "%s", why);
	ck_assert_int_ne(access(o.dir, F_OK), 0);
	o = (struct pool_options){.dir = dir, .instance = "a/b", .bytes = 8 << 20};
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), MPIG_EINVAL);
	o.instance = "";
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), MPIG_EINVAL);
	o = (struct pool_options){.dir = "/nonexistent/deep", .instance = "a", .bytes = 8 << 20};
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), MPIG_EIO);
	ck_assert_int_ne(access(dir, F_OK), 0);
}
END_TEST

START_TEST(default_size_locking_and_huge_pages)
{
	struct pool_options o = {.dir = dir, .instance = "t", .lock_memory = true, .huge_pages = true};
	struct pool *pool;
	ck_assert_msg(pool_create(&o, &pool, why, sizeof why) == 0, "%s", why);
	ck_assert_uint_gt(pool_bytes(pool), 0);
	uint64_t a = pool_alloc(pool, 8 << 20, 0);
	ck_assert_uint_ne(a, 0);
	unsigned char *p = pool_at(pool, a);
	for (int i = 0; i < 8 << 20; i += 64)
		must(p[i] == 0);
	memset(p, 1, 8 << 20);
	uint32_t left = pool_collapse(pool, 2), before = left;
	ck_assert_uint_ge(left, 1);
	while (left)
		left = pool_collapse(pool, 1);
	ck_assert_uint_lt(before, 8);
	ck_assert_uint_eq(pool_collapse(pool, 100), 0);
	for (int i = 0; i < 8 << 20; i += 64)
		must(p[i] == 1); // pages moved, bytes did not
	pool_free(pool, a, 8 << 20);
	ck_assert_uint_eq(pool_alloc(pool, 8 << 20, 0), a);
	for (int i = 0; i < 8 << 20; i += 64)
		must(p[i] == 0);
	pool_close(pool, true);
}
END_TEST

static uint64_t blocks_of_file(void)
{
	char path[256];
	struct stat st;
	snprintf(path, sizeof path, "%s/node0.pool", dir);
	ck_assert_int_eq(stat(path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

// So much of what is free is there before it is asked for, in whole ranges from the first free one on. It is zero again when it was used and
// given back, and then no longer there.
START_TEST(free_memory_is_made_ready)
{
	struct pool_options o = {.dir = dir, .instance = "t", .bytes = 32 << 20, .huge_pages = _i, .ready = 8 << 20, .nodes = 1};
	struct pool *pool;
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), 0);
	uint64_t used = pool_used(pool), before = blocks_of_file();
	int made = 0;
	while (pool_make_ready(pool, o.ready))
		made++;
	ck_assert_int_eq(made, 4);
	ck_assert_uint_eq(pool_used(pool), used); // it is free all the same
	ck_assert_uint_eq(blocks_of_file(), before + (8 << 20));
	uint64_t a = pool_alloc(pool, 2 << 20, 0), b = pool_alloc(pool, 5 << 20, 0);
	ck_assert(a && b);
	ck_assert_uint_le(blocks_of_file(), before + (10 << 20)); // the first begins before them
	unsigned char *p = pool_at(pool, b);
	for (int i = 0; i < 5 << 20; i += 64)
		must(p[i] == 0);
	memset(p, 7, 5 << 20);
	pool_free(pool, b, 5 << 20);
	ck_assert_uint_eq(pool_alloc(pool, 5 << 20, 0), b);
	for (int i = 0; i < 5 << 20; i += 64)
		must(p[i] == 0);
	memset(p, 7, 5 << 20);
	while (pool_make_ready(pool, o.ready))
		continue;
	for (int i = 0; i < 5 << 20; i += 64)
		must(p[i] == 7); // what is in use is left alone
	pool_free(pool, b, 5 << 20);
	while (pool_make_ready(pool, o.ready))
		continue;
	ck_assert_uint_eq(pool_alloc(pool, 5 << 20, 0), b);
	for (int i = 0; i < 5 << 20; i += 64)
		must(p[i] == 0);
	ck_assert(!pool_make_ready(pool, 0));
	while (pool_make_ready(pool, UINT64_MAX)) // all there is
		continue;
	ck_assert_uint_ge(blocks_of_file(), 30 << 20);
	while (pool_alloc(pool, 1 << 20, 0))
		continue;
	ck_assert(!pool_make_ready(pool, UINT64_MAX));
	pool_close(pool, true);
}
END_TEST

// A machine without memory: what is kept ready is there for extents that lie elsewhere, too.
START_TEST(memory_kept_ready_is_no_loss)
{
	struct pool_options o = {.dir = dir, .instance = "t", .bytes = 32 << 20, .ready = 8 << 20, .nodes = 1};
	struct pool *pool;
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), 0);
	while (pool_make_ready(pool, o.ready))
		continue;
	uint64_t used = pool_used(pool), got[9];
	machine = blocks_of_file();
	ck_assert_uint_ne(got[0] = pool_alloc(pool, 4096, 0), 0); // before the first that is ready
	ck_assert_uint_le(blocks_of_file(), machine);
	for (int i = 1; i < 7; i++)
		ck_assert_uint_ne(got[i] = pool_alloc(pool, 1 << 20, 0), 0);
	ck_assert_uint_eq(pool_alloc(pool, 20 << 20, 0), 0);
	ck_assert(!pool_make_ready(pool, o.ready)); // not until something is given back
	ck_assert_uint_eq(pool_used(pool), used + 4096 + (6 << 20));
	ck_assert_uint_le(blocks_of_file(), machine);
	machine = 0;
	for (int i = 1; i < 7; i++)
		pool_free(pool, got[i], 1 << 20);
	pool_free(pool, got[0], 4096);
	ck_assert_uint_eq(pool_used(pool), used);
	ck_assert(pool_make_ready(pool, o.ready));
	pool_close(pool, true);
}
END_TEST

START_TEST(a_pool_that_is_left_keeps_nothing_ready)
{
	struct pool_options o = {.dir = dir, .instance = "t", .bytes = 32 << 20, .ready = 8 << 20, .nodes = 1};
	struct pool *pool;
	ck_assert_int_eq(pool_create(&o, &pool, why, sizeof why), 0);
	uint64_t before = blocks_of_file();
	while (pool_make_ready(pool, o.ready))
		continue;
	uint64_t at = pool_alloc(pool, 3 << 20, 0);
	memset(pool_at(pool, at), 7, 3 << 20);
	ck_assert_uint_ge(blocks_of_file(), before + (8 << 20));
	pool_close(pool, false);
	ck_assert_uint_le(blocks_of_file(), before + (4 << 20)); // what is used, and what is beside it in its ranges
	ck_assert_int_eq(pool_open(&o, &pool, why, sizeof why), 0);
	for (int i = 0; i < 3 << 20; i += 64)
		must(((unsigned char *)pool_at(pool, at))[i] == 7);
	pool_close(pool, true);
}
END_TEST

static struct pool *filling;
static uint64_t taken, all_of_it;
static pthread_t taker;

static void *take_all(void *arg)
{
	(void)arg;
	taken = pool_alloc(filling, all_of_it, 0);
	return NULL;
}

static void take_meanwhile(void)
{
	while_filled = NULL;
	must(pthread_create(&taker, NULL, take_all, NULL) == 0);
	usleep(100000); // it asks now, or soon
}

START_TEST(a_range_that_is_being_filled_is_waited_for)
{
	struct pool_options o = {.dir = dir, .instance = "t", .bytes = 32 << 20, .ready = 8 << 20, .nodes = 1};
	ck_assert_int_eq(pool_create(&o, &filling, why, sizeof why), 0);
	all_of_it = pool_bytes(filling) - pool_used(filling);
	while_filled = take_meanwhile;
	ck_assert(pool_make_ready(filling, o.ready));
	ck_assert_int_eq(pthread_join(taker, NULL), 0);
	ck_assert_uint_ne(taken, 0);
	ck_assert_uint_eq(pool_used(filling), pool_bytes(filling));
	pool_close(filling, true);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("pool");
	TCase *t = tcase_create("pool");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, NULL);
	tcase_add_loop_test(t, map_agrees_with_a_plain_array, 0, 12);
	tcase_add_test_raise_signal(t, giving_twice_aborts, 6);
	tcase_add_loop_test(t, extents_are_zeroed_disjoint_and_all_come_back, 1, 4);
	tcase_add_test(t, full_pool_refuses_and_recovers);
	tcase_add_test(t, full_machine_is_a_refusal);
	tcase_add_loop_test(t, threads_share_the_allocator, 0, 2);
	tcase_add_test(t, publish_copies_any_alignment_and_calls_the_hook);
	tcase_add_test(t, superblock_says_what_it_is);
	tcase_add_test(t, kernel_failures_leave_nothing);
	tcase_add_test(t, hostile_directories_are_refused);
	tcase_add_test(t, a_lock_that_will_go_is_awaited);
	tcase_add_test(t, sizes_and_places_are_checked);
	tcase_add_test(t, default_size_locking_and_huge_pages);
	tcase_add_loop_test(t, free_memory_is_made_ready, 0, 2);
	tcase_add_test(t, memory_kept_ready_is_no_loss);
	tcase_add_test(t, a_pool_that_is_left_keeps_nothing_ready);
	tcase_add_test(t, a_range_that_is_being_filled_is_waited_for);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
