#include "tests/lib/points.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "daemon/store/pool.h"

static struct points own, *points = &own;
static uint64_t kill_at, kill_number;
static const char *kill_call;
static _Atomic unsigned kinds; // 0: nothing fails
static _Atomic uint64_t fail_at, fail_count, seen;
static int fail_with;
static char failed[32];

// ---- arming ----------------------------------------------------------------------------------------------------------

static void pass(enum point_kind kind, const char *name)
{
	if (kind == POINT_ALLOC)
		return;
	atomic_fetch_add(kind == POINT_CALL ? &points->calls : &points->publications, 1);
	uint64_t number = atomic_fetch_add(&points->passed, 1) + 1;
	if (number <= kill_at || !kill_at)
		strncpy(points->last, name, sizeof points->last - 1);
	bool told = kill_call && !strncmp(name, kill_call, strlen(kill_call)) && !strcmp(name + strlen(kill_call), " done");
	if (number == kill_at || (told && --kill_number == 0))
		kill(getpid(), SIGKILL);
}

// A publication of several words may stop between two of them: then the rest is as it was before.
static _Thread_local unsigned char rest_before[1 << 16];

static void publication(const void *dst, size_t bytes, int after)
{
	size_t half = bytes / 16 * 8;
	half += half ? (uintptr_t)dst % 8 : 0; // between words, which are stored as a whole
	size_t rest = bytes - half;
	rest = half && rest <= sizeof rest_before ? rest : 0;
	if (!after)
		pass(POINT_PUBLICATION, "publication");
	if (!after && rest)
		memcpy(rest_before, (const unsigned char *)dst + half, rest);
	if (!after)
		return;
	if (rest && points->passed + 1 == kill_at)
		memcpy((unsigned char *)(uintptr_t)dst + half, rest_before, rest);
	if (rest)
		pass(POINT_PUBLICATION, "publication half done");
	pass(POINT_PUBLICATION, "publication done");
}

void points_arm(struct points *out, uint64_t at)
{
	points = out ? out : &own;
	memset(points, 0, sizeof *points);
	kill_at = at;
	pool_publish_hook = publication;
}

void points_kill_after(const char *call, uint64_t number)
{
	kill_call = call;
	kill_number = number;
}

void points_fail(unsigned which, uint64_t at, uint64_t count, int error)
{
	fail_at = at;
	fail_count = count;
	fail_with = error;
	seen = 0;
	failed[0] = 0;
	kinds = which;
}

uint64_t points_off(const char **name)
{
	kinds = 0;
	if (name)
		*name = failed;
	return seen;
}

static int fail(enum point_kind kind, const char *name)
{
	if (!(kinds & kind))
		return 0;
	uint64_t number = atomic_fetch_add(&seen, 1) + 1;
	if (number < fail_at || number - fail_at >= fail_count)
		return 0;
	if (number == fail_at)
		strncpy(failed, name, sizeof failed - 1);
	return fail_with;
}

// Before a call: the errno with which it is to fail, POINTS_SHORT, or 0.
static int enter(enum point_kind kind, const char *name)
{
	pass(kind, name);
	return fail(kind, name);
}

// ---- calls -----------------------------------------------------------------------------------------------------------

#define WRAP(kind, type, name, parameters, arguments, failure)                                                                   \
	type __real_##name parameters;                                                                                           \
	type __wrap_##name parameters;                                                                                           \
	type __wrap_##name parameters                                                                                            \
	{                                                                                                                        \
		int error_ = enter(kind, #name);                                                                                 \
		if (error_ > 0) {                                                                                                \
			errno = error_;                                                                                          \
			return failure;                                                                                          \
		}                                                                                                                \
		type result_ = __real_##name arguments;                                                                          \
		pass(kind, #name " done");                                                                                       \
		return result_;                                                                                                  \
	}

WRAP(POINT_CALL, int, fallocate, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes), -1)
WRAP(POINT_CALL, void *, mmap, (void *at, size_t bytes, int prot, int flags, int fd, off_t offset),
     (at, bytes, prot, flags, fd, offset), MAP_FAILED)
WRAP(POINT_CALL, int, ftruncate, (int fd, off_t bytes), (fd, bytes), -1)
WRAP(POINT_CALL, int, mkdir, (const char *path, mode_t mode), (path, mode), -1)
WRAP(POINT_CALL, int, mkdirat, (int dir, const char *path, mode_t mode), (dir, path, mode), -1)
WRAP(POINT_CALL, int, fsync, (int fd), (fd), -1)
WRAP(POINT_CALL, int, renameat, (int from_dir, const char *from, int to_dir, const char *to), (from_dir, from, to_dir, to), -1)
WRAP(POINT_CALL, int, linkat, (int from_dir, const char *from, int to_dir, const char *to, int flags),
     (from_dir, from, to_dir, to, flags), -1)
WRAP(POINT_CALL, int, unlinkat, (int dir, const char *path, int flags), (dir, path, flags), -1)
WRAP(POINT_CALL, int, fstat, (int fd, struct stat *st), (fd, st), -1)
WRAP(POINT_CALL, int, fstatat, (int dir, const char *path, struct stat *st, int flags), (dir, path, st, flags), -1)
WRAP(POINT_CALL, int, fstatfs, (int fd, struct statfs *fs), (fd, fs), -1)
WRAP(POINT_CALL, int, flock, (int fd, int how), (fd, how), -1)
WRAP(POINT_CALL, int, dup, (int fd), (fd), -1)
WRAP(POINT_CALL, DIR *, fdopendir, (int fd), (fd), NULL)
WRAP(POINT_CALL, ssize_t, getrandom, (void *out, size_t bytes, unsigned flags), (out, bytes, flags), -1)
WRAP(POINT_ALLOC, void *, malloc, (size_t bytes), (bytes), NULL)
WRAP(POINT_ALLOC, void *, calloc, (size_t count, size_t bytes), (count, bytes), NULL)
WRAP(POINT_ALLOC, void *, realloc, (void *old, size_t bytes), (old, bytes), NULL)
WRAP(POINT_ALLOC, void *, aligned_alloc, (size_t align, size_t bytes), (align, bytes), NULL)

static size_t shortened(size_t bytes)
{
	return bytes >= 1024 ? bytes / 2 / 512 * 512 : bytes;
}

#define WRAP_TRANSFER(name, buffer)                                                                                              \
	ssize_t __real_##name(int fd, buffer data, size_t bytes, off_t at);                                                      \
	ssize_t __wrap_##name(int fd, buffer data, size_t bytes, off_t at);                                                      \
	ssize_t __wrap_##name(int fd, buffer data, size_t bytes, off_t at)                                                       \
	{                                                                                                                        \
		int error = enter(POINT_CALL, #name);                                                                            \
		if (error > 0) {                                                                                                 \
			errno = error;                                                                                           \
			return -1;                                                                                               \
		}                                                                                                                \
		ssize_t result = __real_##name(fd, data, error == POINTS_SHORT ? shortened(bytes) : bytes, at);                  \
		pass(POINT_CALL, #name " done");                                                                                 \
		return result;                                                                                                   \
	}
WRAP_TRANSFER(pread, void *)
WRAP_TRANSFER(pwrite, const void *)

int __real_openat(int dir, const char *path, int flags, ...);
int __wrap_openat(int dir, const char *path, int flags, ...);
int __wrap_openat(int dir, const char *path, int flags, ...)
{
	int error = enter(POINT_CALL, "openat");
	if (error > 0) {
		errno = error;
		return -1;
	}
	va_list rest;
	va_start(rest, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
	va_end(rest);
	int fd = __real_openat(dir, path, flags, mode);
	pass(POINT_CALL, "openat done");
	return fd;
}

// liburing answers -errno.
int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
	int error = enter(POINT_CALL, "io_uring_queue_init");
	return error > 0 ? -error : __real_io_uring_queue_init(entries, ring, flags);
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
	int error = enter(POINT_CALL, "io_uring_submit");
	if (error > 0)
		return -error;
	if (error == POINTS_SHORT) {
		struct io_uring_sqe *last = &ring->sq.sqes[(ring->sq.sqe_tail - 1) & ring->sq.ring_mask];
		last->len = (unsigned)shortened(last->len);
	}
	int result = __real_io_uring_submit(ring);
	pass(POINT_CALL, "io_uring_submit done");
	return result;
}

int __real___io_uring_get_cqe(struct io_uring *ring, struct io_uring_cqe **out, unsigned submit, unsigned wait, sigset_t *mask);
int __wrap___io_uring_get_cqe(struct io_uring *ring, struct io_uring_cqe **out, unsigned submit, unsigned wait, sigset_t *mask);
int __wrap___io_uring_get_cqe(struct io_uring *ring, struct io_uring_cqe **out, unsigned submit, unsigned wait, sigset_t *mask)
{
	int error = fail(POINT_CALL, "io_uring_enter"); // whether it is called depends on the disk: not a point to be killed at
	return error > 0 ? -error : __real___io_uring_get_cqe(ring, out, submit, wait, mask);
}
