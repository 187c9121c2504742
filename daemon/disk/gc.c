// What nothing on disk needs any more: what killed saves left, segment files that no context has, and, if asked, old damaged contexts.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/disk/private.h"
#include "shm/status.h"

struct gc {
	struct disk *d;
	const struct disk_gc_options *options;
	struct disk_gc_result result;
	int failed; // the first error
};

static void note(const struct gc *gc, const char *directory, const char *file, const char *what, uint64_t bytes)
{
	char text[2 * MPIG_TEXT_BYTES];
	if (!gc->options->tell)
		return;
	snprintf(text, sizeof text, "%.160s/%.160s: %s, %llu bytes%s", directory, file, what, (unsigned long long)bytes,
	         gc->options->dry ? "; would be removed" : "; removed");
	gc->options->tell(gc->options->arg, false, text);
}

// One file; its bytes are free if this was its last name. Segment files have a second one, which goes with the orphans.
static void remove_file(struct gc *gc, int dir, const char *directory, const char *file, const char *what, uint32_t *count)
{
	struct stat st;
	if (fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) || S_ISDIR(st.st_mode))
		return;
	uint64_t bytes = st.st_nlink == 1 ? (uint64_t)st.st_size : 0;
	int rc = gc->options->dry ? 0 : disk_unlink(dir, file);
	if (rc) {
		gc->failed = gc->failed ? gc->failed : rc;
		return;
	}
	struct stat other;
	bool orphan =
		st.st_nlink == 2 && !fstatat(gc->d->segments, file, &other, AT_SYMLINK_NOFOLLOW) && other.st_ino == st.st_ino;
	if (gc->options->dry && orphan) { // it is found by its links only when this one is gone
		gc->result.orphans++;
		gc->result.bytes += (uint64_t)st.st_size;
		note(gc, "segments", file, "a segment no context has", (uint64_t)st.st_size);
	}
	++*count;
	gc->result.bytes += bytes;
	note(gc, directory, file, what, bytes);
}

static bool is_named(const char *file, const struct manifest *m)
{
	bool named = !strcmp(file, "manifest");
	for (uint32_t i = 0; i < m->context.segment_count && !named; i++) {
		char name[FILE_NAME_BYTES];
		segment_name(name, m->segment[i].id, m->segment[i].flags & DISK_SEALED);
		named = !strcmp(file, name);
	}
	return named;
}

static void collect_context(struct gc *gc, struct io *io, const char *name)
{
	struct manifest m = {0};
	char why[MPIG_TEXT_BYTES];
	int dir = disk_open(gc->d->contexts, name, O_RDONLY | O_DIRECTORY, false);
	if (dir < 0)
		return;
	// As at start (load.c): the manifest is to last before anything that it does not name goes.
	int rc = gc->options->dry ? 0 : disk_sync(dir, name);
	if (rc) {
		gc->failed = gc->failed ? gc->failed : rc;
		close(dir);
		return;
	}
	int status = manifest_read(io, dir, name, &m, why);
	DIR *list = !status || status == MPIG_ENOENT ? list_directory(dir) : NULL; // else it is for fsck to say
	for (struct dirent *e; list && (e = readdir(list));)
		if (e->d_name[0] != '.' && (status || !is_named(e->d_name, &m)))
			remove_file(gc, dir, name, e->d_name, "left by a save that was cut off", &gc->result.leftovers);
	if (list)
		closedir(list);
	manifest_free(&m);
	close(dir);
	if (status == MPIG_ENOENT && !gc->options->dry)
		(void)disk_rmdir(gc->d->contexts, name);
}

static void collect_contexts(struct gc *gc, struct io *io)
{
	DIR *list = list_directory(gc->d->contexts);
	for (struct dirent *e; list && (e = readdir(list));)
		if (e->d_name[0] != '.')
			collect_context(gc, io, e->d_name);
	if (list)
		closedir(list);
}

// damaged/NAME.TIME, TIME in hexadecimal nanoseconds.
static bool is_old(const char *name, uint64_t before_ns)
{
	const char *dot = strrchr(name, '.');
	char *end;
	if (!dot || strlen(dot + 1) != 16)
		return false;
	errno = 0;
	uint64_t time = strtoull(dot + 1, &end, 16);
	return !errno && !*end && time < before_ns;
}

static void collect_damaged(struct gc *gc)
{
	int damaged = disk_open(gc->d->root, "damaged", O_RDONLY | O_DIRECTORY, false);
	DIR *list = damaged < 0 ? NULL : list_directory(damaged);
	for (struct dirent *e; list && (e = readdir(list));) {
		if (!is_old(e->d_name, gc->options->damaged_before_ns))
			continue;
		int dir = disk_open(damaged, e->d_name, O_RDONLY | O_DIRECTORY, false);
		DIR *files = dir < 0 ? NULL : list_directory(dir);
		uint32_t count = 0;
		for (struct dirent *file; files && (file = readdir(files));)
			remove_file(gc, dir, e->d_name, file->d_name, "of a damaged context", &count);
		if (files)
			closedir(files);
		if (dir >= 0)
			close(dir);
		if (gc->options->dry || !disk_rmdir(damaged, e->d_name))
			gc->result.damaged++;
	}
	if (list)
		closedir(list);
	if (damaged >= 0)
		close(damaged);
}

static void collect_segments(struct gc *gc)
{
	struct stat st;
	DIR *list = list_directory(gc->d->segments);
	for (struct dirent *e; list && (e = readdir(list));)
		if (!fstatat(gc->d->segments, e->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode) && st.st_nlink == 1)
			remove_file(gc, gc->d->segments, "segments", e->d_name, "a segment no context has", &gc->result.orphans);
	if (list)
		closedir(list);
}

int disk_gc(struct disk *d, const struct disk_gc_options *options, struct disk_gc_result *result, char *why)
{
	struct gc gc = {.d = d, .options = options};
	struct io io;
	int rc = io_open(&io, 1, d->options.chunk, 0);
	if (rc)
		return disk_errno(why, rc, "cannot look through", d->dir);
	collect_contexts(&gc, &io);
	io_close(&io);
	if (options->damaged_before_ns)
		collect_damaged(&gc);
	collect_segments(&gc);
	if (gc.failed)
		return disk_errno(why, gc.failed, "not all could be removed from", d->dir);
	*result = gc.result;
	return 0;
}
