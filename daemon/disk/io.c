#include "daemon/disk/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/disk/format.h"

int (*disk_hook)(const struct disk_call *call, int after);

static int before(struct disk_call *call)
{
	return disk_hook ? disk_hook(call, 0) : 0;
}

static int after(struct disk_call *call, int rc)
{
	call->result = rc < 0 ? -errno : rc;
	if (disk_hook)
		disk_hook(call, 1);
	return call->result;
}

// ---- names -----------------------------------------------------------------------------------------------------------

int disk_open(int dir, const char *name, int flags, bool direct)
{
	struct disk_call call = {.call = "open", .file = name, .dir = dir, .flags = flags};
	int error = before(&call);
	if (error)
		return -error;
	int fd = direct ? openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW | O_DIRECT, 0600) : -1;
	if (!direct || (fd < 0 && errno == EINVAL)) // tmpfs, some network file systems
		fd = openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	call.fd = fd;
	return after(&call, fd);
}

int disk_mkdir(int dir, const char *name)
{
	struct disk_call call = {.call = "mkdir", .file = name, .dir = dir};
	int error = before(&call);
	if (error)
		return -error;
	int rc = mkdirat(dir, name, 0700);
	return after(&call, rc && errno == EEXIST ? 0 : rc);
}

int disk_sync(int fd, const char *name)
{
	struct disk_call call = {.call = "fsync", .file = name, .fd = fd};
	int error = before(&call);
	return error ? -error : after(&call, fsync(fd));
}

int disk_rename(int dir, const char *from, const char *to)
{
	struct disk_call call = {.call = "rename", .file = to, .from = from, .dir = dir};
	int error = before(&call);
	return error ? -error : after(&call, renameat(dir, from, dir, to));
}

int disk_link(int from_dir, int to_dir, const char *name)
{
	struct disk_call call = {.call = "link", .file = name, .dir = from_dir, .to_dir = to_dir};
	int error = before(&call);
	if (error)
		return -error;
	int rc = linkat(from_dir, name, to_dir, name, 0);
	return after(&call, rc && errno == EEXIST ? 0 : rc);
}

int disk_touch(int dir, const char *name)
{
	struct disk_call call = {.call = "touch", .file = name, .dir = dir};
	int error = before(&call);
	return error ? -error : after(&call, utimensat(dir, name, NULL, AT_SYMLINK_NOFOLLOW));
}

int disk_unlink(int dir, const char *name)
{
	struct disk_call call = {.call = "unlink", .file = name, .dir = dir};
	int error = before(&call);
	return error ? -error : after(&call, unlinkat(dir, name, 0));
}

int disk_rmdir(int dir, const char *name)
{
	struct disk_call call = {.call = "rmdir", .file = name, .dir = dir};
	int error = before(&call);
	return error ? -error : after(&call, unlinkat(dir, name, AT_REMOVEDIR));
}

// ---- data ------------------------------------------------------------------------------------------------------------

int io_open(struct io *io, uint32_t depth, uint64_t chunk, uint64_t rate)
{
	*io = (struct io){
		.depth = depth < IO_SLOTS_MAX ? depth : IO_SLOTS_MAX, .chunk = chunk, .rate = rate, .begin_ns = mono_ns()};
	io->memory = aligned_alloc(DISK_PAGE, io->depth * chunk);
	if (!io->memory)
		return -ENOMEM;
	for (uint32_t i = 0; i < io->depth; i++)
		io->slot[i].data = io->memory + i * chunk;
	struct disk_call call = {.call = "io_uring", .file = "ring"};
	int error = before(&call);
	io->uring = !error && io_uring_queue_init(io->depth, &io->ring, 0) == 0;
	return 0;
}

int io_drain(struct io *io)
{
	int first = 0;
	while (io->busy) {
		int slot = io_reap(io);
		first = slot < 0 && !first ? slot : first;
	}
	return first;
}

void io_close(struct io *io)
{
	if (!io->memory)
		return;
	(void)io_drain(io);
	if (io->uring)
		io_uring_queue_exit(&io->ring);
	free(io->memory);
	io->memory = NULL;
}

int io_free_slot(struct io *io)
{
	for (uint32_t i = 0; i < io->depth; i++)
		if (!io->slot[i].busy)
			return (int)i;
	return -1;
}

#define NAP_US UINT64_C(50000) // between looks whether to go on sleeping
#define FOREVER_NS 1e18

// Sleeps until the bytes moved so far fit the rate.
static void throttle(struct io *io, uint32_t bytes)
{
	io->moved += bytes;
	if (!io->rate)
		return;
	double takes = (double)io->moved / (double)io->rate * 1e9;
	uint64_t due = io->begin_ns + (uint64_t)(takes < FOREVER_NS ? takes : FOREVER_NS);
	for (uint64_t now; (now = mono_ns()) < due && !(io->cancel && atomic_load(io->cancel));) {
		uint64_t left = (due - now) / 1000 + 1;
		usleep((useconds_t)(left < NAP_US ? left : NAP_US));
	}
}

static int transfer(struct io_slot *s)
{
	while (s->done < s->bytes) {
		uint8_t *at = s->data + s->done;
		size_t left = s->bytes - s->done;
		off_t where = (off_t)(s->offset + s->done);
		ssize_t n = s->write ? pwrite(s->fd, at, left, where) : pread(s->fd, at, left, where);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return s->write ? -EIO : 0;
		s->done += (uint32_t)n;
	}
	return 0;
}

static struct disk_call call_of(const struct io_slot *s)
{
	return (struct disk_call){.call = s->write ? "write" : "read",
	                          .file = s->file,
	                          .fd = s->fd,
	                          .offset = s->offset,
	                          .data = s->data,
	                          .bytes = s->bytes};
}

#define NO_SLOT UINT64_MAX

// False: the kernel did not take it. The entry cannot be taken out of the ring again; it does nothing when it goes with the next one.
static bool submit(struct io *io, const struct io_slot *s, uint64_t number)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
	if (!sqe)
		return false;
	if (s->write)
		io_uring_prep_write(sqe, s->fd, s->data, s->bytes, s->offset);
	else
		io_uring_prep_read(sqe, s->fd, s->data, s->bytes, s->offset);
	io_uring_sqe_set_data64(sqe, number);
	(void)io_uring_submit(&io->ring);
	if (!io_uring_sq_ready(&io->ring))
		return true;
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data64(sqe, NO_SLOT);
	return false;
}

int io_begin(struct io *io, int slot, int fd, const char *file, bool write, uint64_t offset, uint32_t bytes)
{
	struct io_slot *s = &io->slot[slot];
	throttle(io, bytes);
	*s = (struct io_slot){
		.data = s->data, .file = file, .offset = offset, .tag = s->tag, .bytes = bytes, .fd = fd, .write = write};
	struct disk_call call = call_of(s);
	int error = before(&call);
	if (error)
		return -error;
	s->plain = !io->uring || !submit(io, s, (uint64_t)slot); // done when it is reaped
	s->busy = true;
	io->busy++;
	return 0;
}

static int finish(struct io *io, int slot, int rc)
{
	struct io_slot *s = &io->slot[slot];
	s->busy = false;
	io->busy--;
	if (disk_hook) {
		struct disk_call call = call_of(s);
		call.result = rc;
		int error = disk_hook(&call, 1);
		rc = error ? -error : rc;
	}
	return rc < 0 ? rc : slot;
}

// The next completion of a slot. Whatever the kernel says of waiting, the buffers are in flight until it comes.
static int wait_for_slot(struct io *io, int *result)
{
	for (;;) {
		struct io_uring_cqe *cqe = NULL;
		int rc = io_uring_wait_cqe(&io->ring, &cqe);
		if (rc < 0 && rc != -EINTR)
			usleep(1000);
		if (rc < 0)
			continue;
		uint64_t slot = io_uring_cqe_get_data64(cqe);
		*result = cqe->res;
		io_uring_cqe_seen(&io->ring, cqe);
		if (slot != NO_SLOT)
			return (int)slot;
	}
}

int io_reap(struct io *io)
{
	if (!io->busy)
		return -EINVAL;
	for (uint32_t i = 0; i < io->depth; i++)
		if (io->slot[i].busy && io->slot[i].plain)
			return finish(io, (int)i, transfer(&io->slot[i]));
	int result, slot = wait_for_slot(io, &result);
	struct io_slot *s = &io->slot[slot];
	if (result == -EINTR || result == -EAGAIN)
		result = 0;
	if (result >= 0) {
		s->done = (uint32_t)result;
		if (s->done < s->bytes) // the rest of a short one, in the plain way
			result = transfer(s);
	}
	return finish(io, slot, result);
}
