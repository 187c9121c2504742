// Saving a context. The order is what makes a kill at any point harmless: segment files, their directories, the manifest, and only
// then is anything removed.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/probe.h"
#include "daemon/disk/private.h"
#include "shm/status.h"

#define TRIES 16 // to find a context's open segment unchanged

struct saving {
	struct disk *d;
	struct io io;
	struct image *image;
	int dir; // of the context
	struct disk_segment_ref *ref;
	bool wrote; // a segment file, or a part of one
	struct disk_progress *progress;
	struct disk_result result;
	char *why;
};

static int new_id(uint8_t id[IMAGE_ID_BYTES])
{
	ssize_t n;
	do
		n = getrandom(id, IMAGE_ID_BYTES, 0);
	while (n < 0 && errno == EINTR);
	return n == IMAGE_ID_BYTES ? 0 : -EIO;
}

// A sealed segment's file by its id: is it there, whole as far as its length tells, and linked into the context's directory?
static bool link_existing(struct saving *s, const uint8_t id[IMAGE_ID_BYTES], struct disk_segment_ref *ref)
{
	char name[FILE_NAME_BYTES];
	struct stat st;
	struct disk_segment_header h;
	segment_name(name, id, true);
	int fd = image_id_is_set(id) ? disk_open(s->d->segments, name, O_RDONLY, false) : -ENOENT;
	if (fd < 0)
		return false;
	bool good = !io_move(&s->io, fd, name, false, 0, &h, sizeof h) && h.magic == DISK_SEGMENT_MAGIC &&
	            !memcmp(h.id, id, sizeof h.id) && !fstat(fd, &st) && (uint64_t)st.st_size == h.file_bytes;
	close(fd);
	if (!good || disk_link(s->d->segments, s->dir, name))
		return false;
	ref->file_bytes = h.file_bytes;
	ref->header_checksum = h.checksum;
	return true;
}

static int write_segment(struct saving *s, uint32_t i, struct disk_segment_ref *ref)
{
	const struct image_segment *seg = &image_of(s->image)->segment[i];
	int dir = seg->sealed ? s->d->segments : s->dir;
	char name[FILE_NAME_BYTES], temporary[] = "writing.tmp";
	struct segment_written written;
	if (new_id(ref->id))
		return disk_fail(s->why, MPIG_EIO, "no random numbers for the name of a segment");
	segment_name(name, ref->id, seg->sealed);
	s->wrote = true;
	int status = segment_file_write(&s->io, s->image, i, dir, temporary, ref->id, s->progress, &written, s->why);
	int rc = status ? 0 : disk_rename(dir, temporary, name);
	bool named = !status && !rc;
	if (named && seg->sealed)
		rc = disk_sync(dir, "segments");
	if (!status && !rc && seg->sealed)
		rc = disk_link(dir, s->dir, name);
	if (rc)
		status = disk_errno(s->why, rc, "cannot name", name);
	if (status) {
		(void)disk_unlink(dir, named ? name : temporary);
		return status;
	}
	ref->file_bytes = written.file_bytes;
	ref->header_checksum = written.header_checksum;
	s->result.moved += written.file_bytes;
	if (seg->sealed)
		image_set_id(s->image, i, ref->id);
	return 0;
}

static uint64_t segment_bytes(const struct image *image, uint32_t i)
{
	struct image_part *part;
	size_t count;
	uint64_t bytes = 0;
	if (image_parts(image, i, &part, &count))
		return 0;
	for (size_t k = 0; k < count; k++)
		bytes += part[k].bytes;
	free(part);
	return bytes;
}

static int save_segment(struct saving *s, uint32_t i)
{
	if (image_make_sums(s->image, i))
		return disk_fail(s->why, MPIG_ENOMEM, "the daemon has no memory to save");
	const struct image_segment *seg = &image_of(s->image)->segment[i];
	struct disk_segment_ref *ref = &s->ref[i];
	*ref = (struct disk_segment_ref){
		.first = seg->first,
		.rows = seg->rows,
		.flags = segment_flags(seg),
		.pool_offset = seg->sealed ? seg->offset : 0,
		.pool_checksum = seg->sealed ? seg->checksum : 0,
	};
	int status = 0;
	if (seg->sealed && link_existing(s, seg->id, ref)) {
		memcpy(ref->id, seg->id, sizeof ref->id);
		s->result.shared++;
		atomic_fetch_add(&s->progress->done, segment_bytes(s->image, i));
	} else {
		status = write_segment(s, i, ref);
	}
	s->result.segments++;
	s->result.bytes += ref->file_bytes;
	return status;
}

static int save_image(struct saving *s)
{
	const struct image_context *c = image_of(s->image);
	int status = 0;
	s->result = (struct disk_result){.tokens = c->committed};
	s->ref = calloc(c->segment_count + 1u, sizeof *s->ref);
	if (!s->ref)
		return disk_fail(s->why, MPIG_ENOMEM, "the daemon has no memory to save");
	for (uint32_t i = 0; i < c->segment_count && !status; i++)
		status = save_segment(s, i);
	if (status)
		return status;
	int rc = disk_sync(s->dir, c->name);
	if (rc)
		return disk_errno(s->why, rc, "cannot make durable", c->name);
	struct manifest m = {.context = *c, .segment = s->ref, .saved_ns = real_ns(), .used_ns = c->used_ns};
	memcpy(m.pool_id, s->d->options.pool_id, sizeof m.pool_id);
	status = manifest_write(&s->io, s->dir, &m, s->why);
	if (status)
		return status;
	image_saved(s->image);
	catalogue_put(s->d, &m);
	disk_tidy(s->d, s->dir, s->ref, s->result.segments);
	return 0;
}

static int save_once(struct saving *s, struct store *store, const struct credentials *who, const char *name)
{
	int status = image_take(store, who, name, ACCESS_OWN, &s->image, s->why);
	if (status)
		return status;
	atomic_store(&s->progress->done, 0);
	atomic_store(&s->progress->total, 0);
	for (uint32_t i = 0; i < image_of(s->image)->segment_count; i++)
		atomic_fetch_add(&s->progress->total, segment_bytes(s->image, i));
	status = save_image(s);
	free(s->ref);
	s->ref = NULL;
	image_release(s->image);
	s->image = NULL;
	return status;
}

// Somebody else's context of that name may be there, or an older one.
static int check_owner(struct saving *s, const struct credentials *who, const char *name, uint64_t created_ns)
{
	struct manifest m;
	int status = manifest_read(&s->io, s->dir, name, &m, s->why);
	if (status)
		return status == MPIG_ENOENT ? 0 : status;
	if (!access_check(&m.context.identity, who, ACCESS_OWN))
		status = disk_fail(s->why, MPIG_EACCES, "a context '%s' of uid %u is on disk: give this one another name", name,
		                   m.context.identity.uid);
	else if (created_ns && m.context.created_ns != created_ns)
		status = disk_fail(s->why, MPIG_EEXIST,
		                   "an older context '%s' is on disk: save this one by name, or erase that one", name);
	manifest_free(&m);
	return status;
}

// The context's, made if there is none.
static int open_directory(struct saving *s, const char *name)
{
	if (s->dir >= 0)
		close(s->dir);
	s->dir = -1;
	int rc = disk_mkdir(s->d->contexts, name);
	if (!rc)
		rc = disk_sync(s->d->contexts, "contexts");
	if (!rc && (s->dir = disk_open(s->d->contexts, name, O_RDONLY | O_DIRECTORY, false)) < 0)
		rc = s->dir;
	return rc ? disk_errno(s->why, rc, "cannot save", name) : 0;
}

// What a save that failed has written goes, or a full disk would be fuller each time. Whichever manifest is there is safe before anything is
// removed; where that cannot be had, all stays until the next save or start.
static void take_back(struct saving *s, const char *name)
{
	char why[MPIG_TEXT_BYTES];
	struct manifest m = {0};
	int status = disk_sync(s->dir, name) ? MPIG_EIO : manifest_read(&s->io, s->dir, name, &m, why);
	if (!status || status == MPIG_ENOENT)
		disk_tidy(s->d, s->dir, m.segment, status ? 0 : m.context.segment_count);
	manifest_free(&m);
}

int disk_save(struct disk *d, struct store *store, const struct credentials *who, const char *name, bool replace,
              struct disk_progress *progress, struct disk_result *result, char *why)
{
	struct saving s = {.d = d, .progress = progress, .why = why, .dir = -1};
	int status = image_take(store, who, name, ACCESS_OWN, &s.image, why); // before anything is made: may it be saved?
	if (status)
		return status;
	uint64_t created_ns = replace ? 0 : image_of(s.image)->created_ns;
	image_release(s.image);
	s.image = NULL;
	int rc = io_open(&s.io, d->options.depth, d->options.chunk, d->options.rate);
	s.io.cancel = &progress->cancel;
	status = rc ? disk_errno(why, rc, "cannot save", name) : open_directory(&s, name);
	status = status ? status : check_owner(&s, who, name, created_ns);
	if (status == MPIG_ECORRUPT) { // what is there is of no use to anybody
		disk_put_aside(d, store, name);
		status = open_directory(&s, name);
	}
	for (int i = 0; i < TRIES && (status == MPIG_EAGAIN || (i == 0 && !status)); i++)
		status = save_once(&s, store, who, name);
	if (status == MPIG_EAGAIN)
		disk_fail(why, status, "'%s' was truncated or sealed each time it was read: try again", name);
	if (status && s.wrote)
		take_back(&s, name);
	if (status)
		(void)disk_rmdir(d->contexts, name); // if there is nothing in it
	if (s.dir >= 0)
		close(s.dir);
	io_close(&s.io);
	if (!status)
		*result = s.result;
	PROBE4(save, name, status, s.result.tokens, s.result.moved);
	return status;
}

// The manifest goes first: a kill in between leaves files that mean nothing.
int disk_erase(struct disk *d, struct store *store, const struct credentials *who, const char *name, char *why)
{
	struct saving s = {.d = d, .why = why, .dir = -1};
	int status = check_name(name, why);
	if (status)
		return status;
	int rc = io_open(&s.io, 1, d->options.chunk, 0);
	if (!rc && (s.dir = disk_open(d->contexts, name, O_RDONLY | O_DIRECTORY, false)) < 0)
		rc = s.dir;
	struct manifest m = {0};
	status = rc == -ENOENT ? disk_fail(why, MPIG_ENOENT, "no context '%s' is on disk", name)
	         : rc          ? disk_errno(why, rc, "cannot erase", name)
	                       : manifest_read(&s.io, s.dir, name, &m, why);
	if (!status && !access_check(&m.context.identity, who, ACCESS_OWN))
		status = disk_fail(why, MPIG_EACCES, "context '%s' on disk belongs to uid %u", name, m.context.identity.uid);
	manifest_free(&m);
	if (!status) {
		store_context_not_on_disk(store, name);
		rc = disk_unlink(s.dir, "manifest");
		rc = rc ? rc : disk_sync(s.dir, name);
		status = rc ? disk_errno(why, rc, "cannot erase", name) : 0;
	}
	if (!status) {
		store_saved_remove(store, name);
		catalogue_remove(d, name);
		disk_tidy(d, s.dir, NULL, 0);
		(void)disk_rmdir(d->contexts, name);
	}
	if (s.dir >= 0)
		close(s.dir);
	io_close(&s.io);
	return status;
}
