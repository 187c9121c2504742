// A context as one stream of bytes (shm/archive.h): written from memory, and read into memory again. No file and no socket here: bytes go
// through two functions of the caller's.
#ifndef MPIG_DISK_ARCHIVE_H
#define MPIG_DISK_ARCHIVE_H

#include "daemon/disk/disk.h"
#include "shm/archive.h"

// All of `bytes`, or a status with a text in *why: MPIG_ERANGE if the stream ends here.
struct archive_io {
	int (*put)(void *arg, const void *data, size_t bytes, char *why);
	int (*get)(void *arg, void *data, size_t bytes, char *why);
	void *arg;
};
// MPIG_EAGAIN: the open segment was truncated or sealed meanwhile, and what was put is worth nothing: take another image. MPIG_ENOENT: the
// context was dropped meanwhile. MPIG_ENOMEM, and what `put` answers.
int archive_write(const struct image *image, const struct archive_io *io, struct mpig_archive_result *result, char *why);

struct archive_options {
	uint64_t (*table_bytes)(const struct layer *, uint32_t rows);
	struct making_checks checks;
};
// Makes the context for `who`, under `name` or ("") the name it had. Nothing that is read is trusted. MPIG_ECORRUPT (damaged, cut short or not an
// exported context; `why` says where), MPIG_EVERSION, MPIG_EEXIST, MPIG_ENOSPC, MPIG_EQUOTA, MPIG_ENOMEM, and what `get` answers.
int archive_read(struct store *s, const struct credentials *who, const char *name, const struct archive_options *options,
                 const struct archive_io *io, struct mpig_archive_result *result, char *why);

#endif
