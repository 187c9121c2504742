// The directory: opened, tidied, and what its parts share.
#include "daemon/disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/base/clock.h"
#include "daemon/disk/durable.h"
#include "daemon/disk/private.h"

int disk_fail(char *why, int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, MPIG_TEXT_BYTES, format, args);
	va_end(args);
	return status;
}

int disk_errno(char *why, int error, const char *what, const char *file)
{
	int status = error == -ENOSPC || error == -EDQUOT  ? MPIG_ENOSPC
	             : error == -EACCES || error == -EPERM ? MPIG_EACCES
	             : error == -ENOMEM                    ? MPIG_ENOMEM
	                                                   : MPIG_EIO;
	return disk_fail(why, status, "%s %s: %s", what, file, strerror(-error));
}

int check_name(const char *name, char *why)
{
	size_t n = strnlen(name, MPIG_NAME_BYTES);
	if (!n || n == MPIG_NAME_BYTES || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return disk_fail(why, MPIG_EINVAL, "that is not the name of a context");
	return 0;
}

DIR *list_directory(int dir)
{
	int fd = dup(dir); // shares the offset
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	if (!list && fd >= 0)
		close(fd);
	if (list)
		rewinddir(list);
	return list;
}

uint64_t spec_hash(const struct mpig_wire_layer *layer, uint32_t count)
{
	return XXH3_64bits(layer, count * sizeof *layer);
}

void segment_name(char name[FILE_NAME_BYTES], const uint8_t id[IMAGE_ID_BYTES], bool sealed)
{
	for (uint32_t i = 0; i < IMAGE_ID_BYTES; i++)
		snprintf(name + 2 * i, 3, "%02x", id[i]);
	strcpy(name + 2 * IMAGE_ID_BYTES, sealed ? ".seg" : ".open");
}

int file_bytes(int fd, uint64_t *bytes, uint64_t *changed_ns)
{
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	*bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
	if (changed_ns)
		*changed_ns = (uint64_t)st.st_mtim.tv_sec * UINT64_C(1000000000) + (uint64_t)st.st_mtim.tv_nsec;
	return 0;
}

// Through one slot at a time: for what is small.
int io_move(struct io *io, int fd, const char *file, bool write, uint64_t offset, void *data, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += io->chunk) {
		uint32_t n = (uint32_t)(bytes - at < io->chunk ? bytes - at : io->chunk);
		int slot = io_free_slot(io);
		if (slot < 0)
			return -EBUSY;
		if (write)
			memcpy(io->slot[slot].data, (uint8_t *)data + at, n);
		int rc = io_begin(io, slot, fd, file, write, offset + at, n);
		if (!rc)
			rc = io_reap(io);
		if (rc < 0)
			return rc;
		if (io->slot[slot].done != n)
			return -EIO;
		if (!write)
			memcpy((uint8_t *)data + at, io->slot[slot].data, n);
	}
	return 0;
}

// ---- tidying ---------------------------------------------------------------------------------------------------------

void disk_tidy(struct disk *d, int dir, const struct disk_segment_ref *ref, uint32_t count)
{
	DIR *list = list_directory(dir);
	struct dirent *entry;
	while (list && (entry = readdir(list))) {
		bool named = entry->d_name[0] == '.' || !strcmp(entry->d_name, "manifest");
		for (uint32_t i = 0; i < count && !named; i++) {
			char name[FILE_NAME_BYTES];
			segment_name(name, ref[i].id, ref[i].flags & DISK_SEALED);
			named = !strcmp(name, entry->d_name);
		}
		struct stat st;
		if (named || disk_unlink(dir, entry->d_name))
			continue;
		if (!fstatat(d->segments, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) && st.st_nlink == 1)
			(void)disk_unlink(d->segments, entry->d_name);
	}
	if (list)
		closedir(list);
}

// ---- damage ----------------------------------------------------------------------------------------------------------

static bool segment_id(const char *name, uint8_t id[IMAGE_ID_BYTES])
{
	char again[FILE_NAME_BYTES];
	unsigned byte;
	for (uint32_t i = 0; i < IMAGE_ID_BYTES; i++) {
		if (sscanf(name + 2 * i, "%2x", &byte) != 1)
			return false;
		id[i] = (uint8_t)byte;
	}
	segment_name(again, id, true);
	return !strcmp(again, name);
}

static void forget_segments(struct disk *d, struct store *s, const char *name)
{
	int dir = disk_open(d->contexts, name, O_RDONLY | O_DIRECTORY, false);
	DIR *list = dir < 0 ? NULL : list_directory(dir);
	struct dirent *entry;
	struct stat mine, shared;
	uint8_t id[IMAGE_ID_BYTES];
	while (list && (entry = readdir(list))) {
		if (strlen(entry->d_name) <= 2 * IMAGE_ID_BYTES || !segment_id(entry->d_name, id))
			continue;
		if (fstatat(dir, entry->d_name, &mine, AT_SYMLINK_NOFOLLOW) == 0 &&
		    fstatat(d->segments, entry->d_name, &shared, AT_SYMLINK_NOFOLLOW) == 0 && mine.st_ino != shared.st_ino)
			continue; // a copy
		(void)disk_unlink(d->segments, entry->d_name);
		if (s)
			store_segment_not_on_disk(s, id);
	}
	if (list)
		closedir(list);
	if (dir >= 0)
		close(dir);
}

// A store that was opened to be looked at only may have none yet.
static int make_damaged(struct disk *d)
{
	if (!d->options.existing)
		return 0;
	int rc = disk_mkdir(d->root, "damaged");
	return rc ? rc : disk_sync(d->root, ".");
}

void disk_put_aside(struct disk *d, struct store *s, const char *name)
{
	char from[MPIG_NAME_BYTES + 16], to[MPIG_NAME_BYTES + 48];
	if (s)
		store_context_not_on_disk(s, name);
	forget_segments(d, s, name);
	snprintf(from, sizeof from, "contexts/%s", name);
	snprintf(to, sizeof to, "damaged/%s.%016llx", name, (unsigned long long)real_ns());
	int damaged = make_damaged(d) || disk_rename(d->root, from, to)
	                      ? -1
	                      : disk_open(d->root, "damaged", O_RDONLY | O_DIRECTORY, false);
	if (damaged >= 0) { // its new name first
		(void)(disk_sync(damaged, "damaged") || disk_sync(d->contexts, "contexts"));
		close(damaged);
	}
	catalogue_remove(d, name);
}

// ---- opening ---------------------------------------------------------------------------------------------------------

static int open_directory(int dir, const char *name, bool existing)
{
	int rc = existing ? 0 : disk_mkdir(dir, name);
	return rc ? rc : disk_open(dir, name, O_RDONLY | O_DIRECTORY, false);
}

// Segment files that no context has: of a save that was cut off, or of contexts that are gone.
static void tidy_segments(const struct disk *d)
{
	DIR *list = list_directory(d->segments);
	struct stat st;
	struct dirent *entry;
	while (list && (entry = readdir(list)))
		if (!fstatat(d->segments, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode) && st.st_nlink == 1)
			(void)disk_unlink(d->segments, entry->d_name);
	if (list)
		closedir(list);
}

// Others could otherwise put files under it, or read them.
static int check_root(const struct disk *d)
{
	struct stat st;
	if (fstat(d->root, &st))
		return -errno;
	return st.st_uid == geteuid() && !(st.st_mode & 022) ? 0 : -EPERM;
}

int disk_create(const struct disk_options *options, struct disk **out, char *why)
{
	struct disk *d = calloc(1, sizeof *d);
	if (!d)
		return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory for its disk");
	d->options = *options;
	snprintf(d->dir, sizeof d->dir, "%s", options->dir);
	d->contexts = d->segments = -1;
	pthread_mutex_init(&d->lock, NULL);
	d->root = open_directory(AT_FDCWD, d->dir, options->existing);
	int rc = d->root < 0 ? d->root : check_root(d), status;
	bool locked = rc || flock(d->root, LOCK_EX | LOCK_NB) == 0;
	if (!locked && errno != EWOULDBLOCK)
		rc = -errno;
	else if (!locked) {
		status = disk_fail(why, MPIG_EBUSY, "%s is in use by another daemon", d->dir);
		disk_destroy(d);
		return status;
	}
	if (!rc && (d->contexts = open_directory(d->root, "contexts", options->existing)) < 0)
		rc = d->contexts;
	if (!rc && (d->segments = open_directory(d->root, "segments", options->existing)) < 0)
		rc = d->segments;
	if (options->existing && (rc == -ENOENT || rc == -ENOTDIR)) {
		status = disk_fail(why, MPIG_ENOENT, "%s is no store of contexts: it has no directories contexts and segments",
		                   d->dir);
		disk_destroy(d);
		return status;
	}
	if (!rc && !options->existing) // else it is made when something is put there
		rc = disk_mkdir(d->root, "damaged");
	if (!rc)
		rc = disk_sync(d->root, ".");
	if (!rc)
		rc = durable_parent(d->root);
	if (rc) {
		status = disk_errno(why, rc, "cannot use", d->dir);
		disk_destroy(d);
		return status;
	}
	if (!options->leave)
		tidy_segments(d);
	*out = d;
	return 0;
}

void disk_set_rate(struct disk *d, uint64_t rate)
{
	d->options.rate = rate;
}

void disk_destroy(struct disk *d)
{
	if (!d)
		return;
	if (d->segments >= 0)
		close(d->segments);
	if (d->contexts >= 0)
		close(d->contexts);
	if (d->root >= 0)
		close(d->root);
	pthread_mutex_destroy(&d->lock);
	free(d->saved);
	free(d);
}
