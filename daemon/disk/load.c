// Loading a context, and checking one without loading it.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/probe.h"
#include "daemon/disk/private.h"
#include "shm/status.h"

struct loading {
	struct disk *d;
	struct store *store; // that is told of damage; NULL: there is none
	struct io io;
	int dir;
	struct manifest manifest;
	struct segment_file *file; // [segment_count]
	struct disk_progress *progress;
	struct disk_result result;
	char *why;
};

static int open_context(struct loading *l, const struct credentials *who, const char *name)
{
	int status = check_name(name, l->why);
	if (status)
		return status;
	l->dir = disk_open(l->d->contexts, name, O_RDONLY | O_DIRECTORY, false);
	if (l->dir == -ENOENT)
		return disk_fail(l->why, MPIG_ENOENT, "no context '%s' is on disk", name);
	if (l->dir < 0)
		return disk_errno(l->why, l->dir, "cannot open", name);
	status = manifest_read(&l->io, l->dir, name, &l->manifest, l->why);
	if (!status && !access_check(&l->manifest.context.identity, who, ACCESS_READ))
		status = disk_fail(l->why, MPIG_EACCES,
		                   "context '%s' on disk belongs to uid %u, mode %04o: uid %u may not read it", name,
		                   l->manifest.context.identity.uid, l->manifest.context.identity.mode, who->uid);
	return status;
}

// Their lengths are not checked yet.
static uint64_t section_bytes(const struct segment_file *file)
{
	uint64_t bytes = 0;
	for (uint64_t i = 0; i < file->header.section_count; i++)
		bytes += file->section[i].bytes < IMAGE_PART_MAX ? file->section[i].bytes : IMAGE_PART_MAX;
	return bytes;
}

static int open_files(struct loading *l)
{
	struct image_context *c = &l->manifest.context;
	uint64_t hash = spec_hash(c->layer, c->layer_count), total = 0;
	int status = 0;
	l->file = calloc(c->segment_count + 1u, sizeof *l->file);
	if (!l->file)
		return disk_fail(l->why, MPIG_ENOMEM, "the daemon has no memory to load");
	for (uint32_t i = 0; i < c->segment_count && !status; i++) {
		status = segment_file_open(&l->io, l->dir, &l->manifest.segment[i], hash, &l->file[i], &c->segment[i], l->why);
		if (!status)
			l->result.bytes += l->file[i].header.file_bytes;
		total += status ? 0 : section_bytes(&l->file[i]);
	}
	l->result.segments = c->segment_count;
	l->result.tokens = c->committed;
	atomic_store(&l->progress->total, total);
	return status;
}

static int read_files(struct loading *l, struct making *m)
{
	int status = 0;
	for (uint32_t i = 0; i < l->manifest.context.segment_count && !status; i++) {
		if (m && !making_wants(m, i)) {
			l->result.shared++;
			atomic_fetch_add(&l->progress->done, section_bytes(&l->file[i]));
			continue;
		}
		status = segment_file_read(&l->io, &l->file[i], m, i, l->progress, l->why);
		if (!status && m && l->file[i].header.version < DISK_VERSION_SUMS)
			status = making_sum(m, i, l->why);
		l->result.moved += l->file[i].header.file_bytes;
	}
	return status;
}

static void finish(struct loading *l, const char *name, int status)
{
	(void)io_drain(&l->io);
	for (uint32_t i = 0; l->file && i < l->manifest.context.segment_count; i++)
		segment_file_close(&l->file[i]);
	free(l->file);
	manifest_free(&l->manifest);
	if (l->dir >= 0)
		close(l->dir);
	if (status == MPIG_ECORRUPT)
		disk_put_aside(l->d, l->store, name);
	io_close(&l->io);
}

static int begin(struct loading *l, const struct credentials *who, const char *name, const atomic_bool *hurry)
{
	int rc = io_open(&l->io, l->d->options.depth, l->d->options.chunk, l->d->options.rate);
	l->io.cancel = hurry;
	if (rc)
		return disk_errno(l->why, rc, "cannot load", name);
	int status = open_context(l, who, name);
	return status ? status : open_files(l);
}

int disk_load(struct disk *d, struct store *s, const struct credentials *who, const char *name, struct disk_progress *progress,
              struct disk_result *result, char *why)
{
	struct loading l = {.d = d, .store = s, .dir = -1, .progress = progress, .why = why};
	struct making *m = NULL;
	int status = begin(&l, who, name, &progress->cancel);
	if (!status)
		status = making_begin(s, &l.manifest.context, d->options.table_bytes, &m, why);
	if (!status)
		status = read_files(&l, m);
	if (!status)
		status = making_finish(m, why);
	else
		making_cancel(m);
	if (!status) {
		(void)disk_touch(l.dir, "manifest"); // its time on disk begins again; without that, somewhat early
		catalogue_used(d, name, real_ns());
		*result = l.result;
	}
	PROBE4(load, name, status, l.result.tokens, l.result.moved);
	finish(&l, name, status);
	return status;
}

int disk_check(struct disk *d, struct store *s, const struct credentials *who, const char *name, struct disk_progress *progress,
               struct disk_result *result, char *why)
{
	struct loading l = {.d = d, .store = s, .dir = -1, .progress = progress, .why = why};
	int status = begin(&l, who, name, &progress->cancel);
	if (!status)
		status = read_files(&l, NULL);
	if (!status)
		*result = l.result;
	finish(&l, name, status);
	return status;
}

// ---- found by their tokens -------------------------------------------------------------------------------------------

struct placing {
	struct store *store;
	const struct unplaced *of;
	const atomic_bool *stop;
	uint64_t first; // token of the segment's first row
};

static int place(void *arg, uint32_t row, const uint32_t *tokens, uint32_t n)
{
	const struct placing *p = arg;
	if (atomic_load(p->stop))
		return MPIG_ESHUTDOWN;
	return store_place_saved(p->store, p->of, p->first + row, tokens, n);
}

static int place_all(struct loading *l, struct placing *p)
{
	const struct image_context *c = &l->manifest.context;
	int status = 0;
	for (uint32_t i = 0; i < c->segment_count && !status; i++) {
		const struct image_segment *seg = &c->segment[i];
		uint64_t end = i + 1 < c->segment_count ? c->segment[i + 1].first : c->committed;
		p->first = seg->first;
		if (end < seg->first || end - seg->first > seg->rows)
			return disk_fail(l->why, MPIG_ECORRUPT, "the manifest of '%s' contradicts its segments", c->name);
		status = segment_file_tokens(&l->io, &l->file[i], seg, (uint32_t)(end - seg->first), place, p, l->why);
	}
	return status;
}

int disk_place(struct disk *d, struct store *s, const struct unplaced *of, const atomic_bool *hurry, const atomic_bool *stop,
               char *why)
{
	static const struct credentials root;
	struct disk_progress none = {0};
	struct loading l = {.d = d, .store = s, .dir = -1, .progress = &none, .why = why};
	struct placing p = {.store = s, .of = of, .stop = stop};
	int status = begin(&l, &root, of->name, hurry);
	if (!status)
		status = place_all(&l, &p);
	finish(&l, of->name, status);
	if (status)
		store_give_up_placing(s, of); // if it is the same still
	return status;
}

static void tell_segments(const struct loading *l, struct store *s)
{
	if (memcmp(l->manifest.pool_id, l->d->options.pool_id, sizeof l->manifest.pool_id))
		return;
	for (uint32_t i = 0; i < l->manifest.context.segment_count; i++) {
		const struct disk_segment_ref *ref = &l->manifest.segment[i];
		if (ref->flags & DISK_SEALED)
			store_segment_on_disk(s, l->manifest.context.identity.uid, ref->pool_offset, ref->pool_checksum, ref->id);
	}
}

// A directory without a manifest is what is left of a first save that was cut off, or of an erasure. A daemon that was killed may not
// have synced the manifest that it put in place, or removed: that is done before anything else is removed, and before anybody is told.
static int recognise(struct loading *l, struct store *s, const char *name)
{
	static const struct credentials root;
	int status = open_context(l, &root, name), rc = 0;
	bool absent = status == MPIG_ENOENT && l->dir >= 0;
	if (!status || absent)
		rc = disk_sync(l->dir, name);
	if (rc) {
		status = disk_errno(l->why, rc, "cannot make durable", name);
	} else if (!status) {
		catalogue_put(l->d, &l->manifest);
		disk_tidy(l->d, l->dir, l->manifest.segment, l->manifest.context.segment_count);
	} else if (absent) {
		disk_tidy(l->d, l->dir, NULL, 0);
		(void)disk_rmdir(l->d->contexts, name);
	}
	if (!status && s) {
		tell_segments(l, s);
		store_saved_put(s, &l->manifest.context);
	}
	manifest_free(&l->manifest);
	if (l->dir >= 0)
		close(l->dir);
	l->dir = -1;
	if (status == MPIG_ECORRUPT)
		disk_put_aside(l->d, l->store, name);
	return status == MPIG_ENOENT ? 0 : status;
}

uint32_t disk_recognise(struct disk *d, struct store *s, void (*tell)(void *arg, bool failed, const char *text), void *arg)
{
	char why[MPIG_TEXT_BYTES];
	uint32_t bad = 0;
	struct disk_progress none = {0};
	struct loading l = {.d = d, .store = s, .dir = -1, .progress = &none, .why = why};
	d->store = s;
	DIR *list = list_directory(d->contexts);
	struct dirent *entry;
	bool ready = list && !io_open(&l.io, 1, d->options.chunk, 0);
	while (ready && (entry = readdir(list))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (!recognise(&l, s, entry->d_name))
			continue;
		bad++;
		if (tell)
			tell(arg, true, why);
	}
	if (ready)
		io_close(&l.io);
	if (list)
		closedir(list);
	atomic_store(&d->known, true);
	return bad;
}
