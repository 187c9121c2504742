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

int (*disk_hook)(const char *call, const char *file, int after);

static int before(const char *call, const char *file)
{
	return disk_hook ? disk_hook(call, file, 0) : 0;
}

static int after(const char *call, const char *file, int rc)
{
	int error = errno;
	if (disk_hook)
		disk_hook(call, file, 1);
	return rc < 0 ? -error : rc;
}

// ---- names -----------------------------------------------------------------------------------------------------------

int disk_open(int dir, const char *name, int flags, bool direct)
{
	int error = before("open", name);
	if (error)
		return -error;
	int fd = direct ? openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW | O_DIRECT, 0600) : -1;
	if (!direct || (fd < 0 && errno == EINVAL)) // tmpfs, some network file systems
		fd = openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	return after("open", name, fd);
}

int disk_mkdir(int dir, const char *name)
{
	int error = before("mkdir", name);
	if (error)
		return -error;
	int rc = mkdirat(dir, name, 0700);
	return after("mkdir", name, rc && errno == EEXIST ? 0 : rc);
}

int disk_sync(int fd, const char *name)
{
	int error = before("fsync", name);
	return error ? -error : after("fsync", name, fsync(fd));
}

int disk_rename(int dir, const char *from, const char *to)
{
	int error = before("rename", to);
	return error ? -error : after("rename", to, renameat(dir, from, dir, to));
}

int disk_link(int from_dir, int to_dir, const char *name)
{
	int error = before("link", name);
	if (error)
		return -error;
	int rc = linkat(from_dir, name, to_dir, name, 0);
	return after("link", name, rc && errno == EEXIST ? 0 : rc);
}

int disk_unlink(int dir, const char *name)
{
	int error = before("unlink", name);
	return error ? -error : after("unlink", name, unlinkat(dir, name, 0));
}

int disk_rmdir(int dir, const char *name)
{
	int error = before("rmdir", name);
	return error ? -error : after("rmdir", name, unlinkat(dir, name, AT_REMOVEDIR));
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
	int error = before("io_uring", "ring");
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

// Sleeps until the bytes moved so far fit the rate.
static void throttle(struct io *io, uint32_t bytes)
{
	io->moved += bytes;
	if (!io->rate)
		return;
	uint64_t due = (uint64_t)((double)io->moved / (double)io->rate * 1e9), spent = mono_ns() - io->begin_ns;
	if (due > spent)
		usleep((useconds_t)((due - spent) / 1000));
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

int io_begin(struct io *io, int slot, int fd, const char *file, bool write, uint64_t offset, uint32_t bytes)
{
	struct io_slot *s = &io->slot[slot];
	throttle(io, bytes);
	int error = before(write ? "write" : "read", file);
	if (error)
		return -error;
	*s = (struct io_slot){.data = s->data,
	                      .file = file,
	                      .offset = offset,
	                      .tag = s->tag,
	                      .bytes = bytes,
	                      .fd = fd,
	                      .busy = true,
	                      .write = write};
	io->busy++;
	if (!io->uring)
		return 0; // done when it is reaped
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
	if (write)
		io_uring_prep_write(sqe, fd, s->data, bytes, offset);
	else
		io_uring_prep_read(sqe, fd, s->data, bytes, offset);
	io_uring_sqe_set_data64(sqe, (uint64_t)slot);
	int rc = io_uring_submit(&io->ring);
	if (rc == 1)
		return 0;
	s->busy = false;
	io->busy--;
	return rc < 0 ? rc : -EIO;
}

static int finish(struct io *io, int slot, int rc)
{
	struct io_slot *s = &io->slot[slot];
	s->busy = false;
	io->busy--;
	if (disk_hook)
		disk_hook(s->write ? "write" : "read", s->file, 1);
	return rc < 0 ? rc : slot;
}

int io_reap(struct io *io)
{
	if (!io->uring) {
		for (uint32_t i = 0; i < io->depth; i++)
			if (io->slot[i].busy)
				return finish(io, (int)i, transfer(&io->slot[i]));
		return -EINVAL;
	}
	struct io_uring_cqe *cqe;
	int rc;
	do
		rc = io_uring_wait_cqe(&io->ring, &cqe);
	while (rc == -EINTR);
	if (rc < 0)
		abort(); // buffers in flight that nobody could ever free
	int slot = (int)io_uring_cqe_get_data64(cqe), result = cqe->res;
	io_uring_cqe_seen(&io->ring, cqe);
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
