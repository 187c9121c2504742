// The system calls of daemon/disk, in one place, so that a test can make each of them fail or end the process at it.
//
// Data goes through private, page-aligned buffers ("slots") by an io_uring of the disk thread's own, or by pread and pwrite where the
// kernel refuses one. O_DIRECT where the file system has it.
#ifndef MPIG_DISK_IO_H
#define MPIG_DISK_IO_H

#include <liburing.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Tests only; NULL. Called before and after each call. A nonzero answer before is the error (an errno) that the call then seems to
// have had, without being made; a nonzero answer after a read or write, the error with which it seems to have completed.
struct disk_call {
	const char *call, *file; // file: a name in dir, or what is written about
	const char *from;        // rename: the old name
	int dir, to_dir;         // of names; to_dir: link
	int fd, flags;           // open: its flags, and after it the descriptor
	uint64_t offset;         // read, write
	const void *data;
	uint32_t bytes;
	int result; // after: what it answered, -errno
};
extern int (*disk_hook)(const struct disk_call *call, int after);

#define IO_SLOTS_MAX 64u
struct io_slot {
	uint8_t *data;
	const char *file;
	uint64_t offset, tag; // tag: the caller's
	uint32_t bytes, done;
	int fd;
	bool busy, write, plain; // plain: not given to the ring
};
struct io {
	struct io_uring ring;
	bool uring;
	uint32_t depth;
	uint64_t chunk; // bytes of a slot
	uint8_t *memory;
	struct io_slot slot[IO_SLOTS_MAX];
	uint32_t busy;
	uint64_t rate, begin_ns, moved; // bytes a second, 0 = as fast as it goes
	const atomic_bool *cancel;      // set by others: no more waiting for the rate. NULL: nobody does
};
int io_open(struct io *io, uint32_t depth, uint64_t chunk, uint64_t rate); // 0 or -errno
void io_close(struct io *io);                                              // waits for what is in flight
int io_free_slot(struct io *io);                                           // -1: all are busy
int io_begin(struct io *io, int slot, int fd, const char *file, bool write, uint64_t offset, uint32_t bytes);
int io_reap(struct io *io);  // waits for a slot to be done: its number, or -errno; its `done` may be short at the end of a file
int io_drain(struct io *io); // all of them; the first error

// 0 or a descriptor, else -errno. Names are relative to a directory.
int disk_open(int dir, const char *name, int flags, bool direct);
int disk_mkdir(int dir, const char *name); // one that exists is fine
int disk_sync(int fd, const char *name);
int disk_rename(int dir, const char *from, const char *to);
int disk_link(int from_dir, int to_dir, const char *name); // the same name; one that exists is fine
int disk_touch(int dir, const char *name);                 // its time of modification is now
int disk_unlink(int dir, const char *name);
int disk_rmdir(int dir, const char *name);

#endif
