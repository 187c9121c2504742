// A segment file, written and read; FORMAT.md has the layout.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/disk/private.h"
#include "shm/status.h"

// ---- writing ---------------------------------------------------------------------------------------------------------

struct stream { // consecutive pages of a file through the slots
	struct io *io;
	const char *name;
	int fd, slot;
	uint32_t used;
	uint64_t offset; // of the slot's first byte
};

static int take_slot(struct stream *st)
{
	int rc;
	while ((st->slot = io_free_slot(st->io)) < 0)
		if ((rc = io_reap(st->io)) < 0)
			return rc;
	return 0;
}

static int flush(struct stream *st)
{
	if (st->slot < 0 || !st->used)
		return 0;
	int rc = io_begin(st->io, st->slot, st->fd, st->name, true, st->offset, st->used);
	st->offset += st->used;
	st->used = 0;
	st->slot = -1;
	return rc;
}

// Room for bytes that begin at a page; NULL: *rc says why. The rest of their last page is zero.
static uint8_t *room(struct stream *st, uint64_t bytes, uint64_t *at, int *rc)
{
	uint64_t pages = page_round(bytes);
	*rc = st->used + pages > st->io->chunk ? flush(st) : 0;
	if (!*rc && st->slot < 0)
		*rc = take_slot(st);
	if (*rc)
		return NULL;
	uint8_t *data = st->io->slot[st->slot].data + st->used;
	memset(data + bytes, 0, pages - bytes);
	*at = st->offset + st->used;
	st->used += (uint32_t)pages;
	return data;
}

struct writer {
	struct stream stream;
	const struct image *image;
	uint32_t segment;
	struct image_part *part;
	size_t count;
	struct disk_section *section;
	struct disk_progress *progress;
	char *why;
};

static int write_sections(struct writer *w)
{
	for (size_t i = 0; i < w->count; i++) {
		const struct image_part *part = &w->part[i];
		uint64_t at = 0;
		int rc;
		uint8_t *data = room(&w->stream, part->bytes, &at, &rc);
		if (!data)
			return disk_errno(w->why, rc, "cannot write", w->stream.name);
		if (image_read(w->image, w->segment, part, data))
			return MPIG_EAGAIN;
		w->section[i] = (struct disk_section){
			part->kind, part->block, part->strip, part->at, part->bytes, at, XXH3_64bits(data, part->bytes)};
		atomic_fetch_add(&w->progress->done, part->bytes);
		if (atomic_load(&w->progress->cancel))
			return disk_fail(w->why, MPIG_ESHUTDOWN, "the daemon stops: not saved");
	}
	return 0;
}

// Blocks, then sections; in one piece, for its checksum.
static uint8_t *make_index(const struct writer *w, const struct image_segment *seg, uint64_t *bytes)
{
	uint64_t blocks = seg->block_count * sizeof(struct disk_block);
	*bytes = blocks + w->count * sizeof(struct disk_section);
	uint8_t *index = calloc(1, page_round(*bytes));
	for (uint32_t b = 0; index && b < seg->block_count; b++) {
		struct disk_block block = block_to_disk(&seg->block[b]);
		memcpy(index + b * sizeof block, &block, sizeof block);
	}
	if (index)
		memcpy(index + blocks, w->section, w->count * sizeof *w->section);
	return index;
}

static int write_index(struct writer *w, const struct image_segment *seg, struct disk_segment_header *h)
{
	int rc = flush(&w->stream), waited = io_drain(w->stream.io);
	rc = rc ? rc : waited;
	uint8_t *index = make_index(w, seg, &h->index_bytes);
	if (!index)
		return disk_fail(w->why, MPIG_ENOMEM, "the daemon has no memory to save");
	h->index_offset = w->stream.offset;
	h->index_checksum = XXH3_64bits(index, h->index_bytes);
	h->section_count = w->count;
	h->file_bytes = h->index_offset + page_round(h->index_bytes);
	if (!rc)
		rc = io_move(w->stream.io, w->stream.fd, w->stream.name, true, h->index_offset, index,
		             page_round(h->index_bytes));
	free(index);
	h->checksum = XXH3_64bits(h, offsetof(struct disk_segment_header, checksum));
	if (!rc)
		rc = io_move(w->stream.io, w->stream.fd, w->stream.name, true, 0, h, sizeof *h);
	return rc ? disk_errno(w->why, rc, "cannot write", w->stream.name) : 0;
}

static int write_all(struct writer *w, const uint8_t id[IMAGE_ID_BYTES], struct segment_written *out)
{
	const struct image_context *context = image_of(w->image);
	const struct image_segment *seg = &context->segment[w->segment];
	struct disk_segment_header *h = calloc(1, sizeof *h);
	int status = h ? write_sections(w) : disk_fail(w->why, MPIG_ENOMEM, "the daemon has no memory to save");
	if (!status) {
		*h = (struct disk_segment_header){
			.magic = DISK_SEGMENT_MAGIC,
			.version = DISK_VERSION,
			.header_bytes = sizeof *h,
			.flags = segment_flags(seg),
			.rows = seg->rows,
			.block_count = seg->block_count,
			.spec_hash = spec_hash(context->layer, context->layer_count),
			.table_content = seg->table_content,
		};
		memcpy(h->id, id, sizeof h->id);
		status = write_index(w, seg, h);
	}
	int waited = io_drain(w->stream.io);
	if (!status && waited)
		status = disk_errno(w->why, waited, "cannot write", w->stream.name);
	if (!status && (waited = disk_sync(w->stream.fd, w->stream.name)))
		status = disk_errno(w->why, waited, "cannot make durable", w->stream.name);
	if (!status)
		*out = (struct segment_written){h->file_bytes, h->checksum};
	free(h);
	return status;
}

int segment_file_write(struct io *io, const struct image *image, uint32_t segment, int dir, const char *name,
                       const uint8_t id[IMAGE_ID_BYTES], struct disk_progress *progress, struct segment_written *out, char *why)
{
	struct writer w = {.image = image, .segment = segment, .progress = progress, .why = why};
	int status = image_parts(image, segment, &w.part, &w.count);
	w.section = status ? NULL : calloc(w.count + 1, sizeof *w.section);
	if (!w.section) {
		free(w.part);
		return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to save");
	}
	int fd = disk_open(dir, name, O_WRONLY | O_CREAT | O_TRUNC, true);
	w.stream = (struct stream){.io = io, .name = name, .fd = fd, .slot = -1, .offset = DISK_PAGE};
	status = fd < 0 ? disk_errno(why, fd, "cannot create", name) : write_all(&w, id, out);
	if (fd >= 0)
		close(fd);
	free(w.part);
	free(w.section);
	return status;
}

// ---- reading ---------------------------------------------------------------------------------------------------------

static int damaged(char *why, const char *name, const char *what)
{
	return disk_fail(why, MPIG_ECORRUPT, "segment file %s is damaged: %s", name, what);
}

static int check_header(const struct disk_segment_header *h, const struct disk_segment_ref *ref, uint64_t hash, uint64_t bytes,
                        const char *name, char *why)
{
	if (h->magic != DISK_SEGMENT_MAGIC)
		return damaged(why, name, "no header");
	if (h->version < DISK_VERSION_OLDEST || h->version > DISK_VERSION)
		return disk_fail(why, MPIG_EVERSION, "segment file %s has version %u, this daemon reads versions %u to %u", name,
		                 h->version, DISK_VERSION_OLDEST, DISK_VERSION);
	if (h->checksum != XXH3_64bits(h, offsetof(struct disk_segment_header, checksum)) || h->checksum != ref->header_checksum)
		return damaged(why, name, "its header does not have its checksum");
	uint64_t blocks = h->block_count * sizeof(struct disk_block);
	if (h->header_bytes != sizeof *h || h->file_bytes != bytes || h->file_bytes != ref->file_bytes)
		return damaged(why, name, "its length is not what it was");
	if (memcmp(h->id, ref->id, sizeof h->id) || h->rows != ref->rows || h->flags != ref->flags || h->flags & ~DISK_FLAGS ||
	    h->spec_hash != hash)
		return damaged(why, name, "it is another segment's");
	if (h->section_count > DISK_SECTIONS_MAX || h->index_bytes != blocks + h->section_count * sizeof(struct disk_section) ||
	    h->index_offset % DISK_PAGE || h->index_offset > bytes || page_round(h->index_bytes) != bytes - h->index_offset)
		return damaged(why, name, "its index cannot be where it says");
	return 0;
}

static int take_index(struct segment_file *file, const uint8_t *index, struct image_segment *out, char *why)
{
	const struct disk_segment_header *h = &file->header;
	out->rows = h->rows;
	segment_take_flags(out, h->flags);
	out->block_count = h->block_count;
	out->table_content = h->table_content;
	out->block = calloc(h->block_count + 1u, sizeof *out->block);
	file->section = calloc(h->section_count + 1, sizeof *file->section);
	if (!out->block || !file->section)
		return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to load");
	for (uint32_t b = 0; b < h->block_count; b++) {
		struct disk_block block;
		memcpy(&block, index + b * sizeof block, sizeof block);
		out->block[b] = block_from_disk(&block);
	}
	if (h->version < DISK_VERSION_SUMS)
		segment_without_sums(out);
	memcpy(file->section, index + h->block_count * sizeof(struct disk_block), h->section_count * sizeof *file->section);
	return 0;
}

static int read_index(struct io *io, struct segment_file *file, struct image_segment *out, char *why)
{
	const struct disk_segment_header *h = &file->header;
	uint64_t bytes = page_round(h->index_bytes);
	uint8_t *index = malloc(bytes ? bytes : 1);
	int rc = index ? io_move(io, file->fd, file->name, false, h->index_offset, index, bytes) : 0, status;
	if (!index)
		status = disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to load");
	else if (rc)
		status = disk_errno(why, rc, "cannot read", file->name);
	else if (XXH3_64bits(index, h->index_bytes) != h->index_checksum)
		status = damaged(why, file->name, "its index does not have its checksum");
	else
		status = take_index(file, index, out, why);
	free(index);
	return status;
}

int segment_file_open(struct io *io, int dir, const struct disk_segment_ref *ref, uint64_t hash, struct segment_file *file,
                      struct image_segment *out, char *why)
{
	uint64_t bytes;
	segment_name(file->name, ref->id, ref->flags & DISK_SEALED);
	file->fd = disk_open(dir, file->name, O_RDONLY, true);
	if (file->fd == -ENOENT)
		return damaged(why, file->name, "it is missing");
	if (file->fd < 0)
		return disk_errno(why, file->fd, "cannot open", file->name);
	int rc = file_bytes(file->fd, &bytes, NULL);
	if (!rc && bytes < sizeof file->header)
		return damaged(why, file->name, "it is too short");
	if (!rc)
		rc = io_move(io, file->fd, file->name, false, 0, &file->header, sizeof file->header);
	if (rc)
		return disk_errno(why, rc, "cannot read", file->name);
	int status = check_header(&file->header, ref, hash, bytes, file->name, why);
	return status ? status : read_index(io, file, out, why);
}

void segment_file_close(struct segment_file *file)
{
	if (file->fd > 0)
		close(file->fd);
	free(file->section);
	*file = (struct segment_file){0};
}

// Sections lie one after the other from the second page on.
static int check_sections(const struct segment_file *file, const struct image_part *part, size_t count, bool know, char *why)
{
	uint64_t at = DISK_PAGE;
	if (know && count != file->header.section_count)
		return damaged(why, file->name, "its sections are not those of its shape");
	for (uint64_t i = 0; i < file->header.section_count; i++) {
		const struct disk_section *s = &file->section[i];
		if (s->offset != at || !s->bytes || s->bytes > IMAGE_PART_MAX ||
		    page_round(s->bytes) > file->header.index_offset - at)
			return damaged(why, file->name, "its sections overlap or leave gaps");
		if (know && (s->kind != part[i].kind || s->block != part[i].block || s->strip != part[i].strip ||
		             s->at != part[i].at || s->bytes != part[i].bytes))
			return damaged(why, file->name, "its sections are not those of its shape");
		at += page_round(s->bytes);
	}
	return at == file->header.index_offset ? 0 : damaged(why, file->name, "its sections overlap or leave gaps");
}

// Takes what one slot has read: whole sections from number slot->tag on.
static int take_slot_read(const struct io_slot *slot, const struct segment_file *file, struct making *m, uint32_t segment,
                          struct disk_progress *progress, char *why)
{
	if (slot->done < slot->bytes)
		return damaged(why, file->name, "it ends too early");
	for (uint64_t i = slot->tag; i < file->header.section_count; i++) {
		const struct disk_section *s = &file->section[i];
		if (s->offset >= slot->offset + slot->bytes)
			break;
		const uint8_t *data = slot->data + (s->offset - slot->offset);
		if (XXH3_64bits(data, s->bytes) != s->checksum)
			return disk_fail(why, MPIG_ECORRUPT, "segment file %s is damaged: section %llu at %llu", file->name,
			                 (unsigned long long)i, (unsigned long long)s->offset);
		struct image_part part = {s->kind, s->block, s->strip, s->at, s->bytes};
		if (m)
			making_write(m, segment, &part, data);
		atomic_fetch_add(&progress->done, s->bytes);
	}
	return atomic_load(&progress->cancel) ? disk_fail(why, MPIG_ESHUTDOWN, "the daemon stops: not loaded") : 0;
}

static int begin_read(struct io *io, const struct segment_file *file, uint64_t *next)
{
	int slot = io_free_slot(io);
	uint64_t first = *next, begin = file->section[first].offset, end = begin;
	while (*next < file->header.section_count &&
	       file->section[*next].offset + page_round(file->section[*next].bytes) - begin <= io->chunk) {
		end = file->section[*next].offset + page_round(file->section[*next].bytes);
		++*next;
	}
	io->slot[slot].tag = first;
	return io_begin(io, slot, file->fd, file->name, false, begin, (uint32_t)(end - begin));
}

static int read_all(struct io *io, const struct segment_file *file, struct making *m, uint32_t segment,
                    struct disk_progress *progress, char *why)
{
	uint64_t next = 0;
	int status = 0;
	while (!status && (next < file->header.section_count || io->busy)) {
		int rc = 0;
		while (!rc && next < file->header.section_count && io_free_slot(io) >= 0)
			rc = begin_read(io, file, &next);
		int slot = rc ? rc : io_reap(io);
		status = slot < 0 ? disk_errno(why, slot, "cannot read", file->name)
		                  : take_slot_read(&io->slot[slot], file, m, segment, progress, why);
	}
	(void)io_drain(io); // what is still in flight lands in our own buffers
	return status;
}

static int read_section(struct io *io, const struct segment_file *file, const struct disk_section *s, uint8_t *data, char *why)
{
	if (s->offset % DISK_PAGE || s->bytes > IMAGE_PART_MAX || s->offset > file->header.index_offset ||
	    page_round(s->bytes) > file->header.index_offset - s->offset)
		return damaged(why, file->name, "its sections overlap or leave gaps");
	int rc = io_move(io, file->fd, file->name, false, s->offset, data, page_round(s->bytes));
	if (rc)
		return disk_errno(why, rc, "cannot read", file->name);
	return XXH3_64bits(data, s->bytes) == s->checksum ? 0
	                                                  : damaged(why, file->name, "its token ids do not have their checksum");
}

int segment_file_tokens(struct io *io, const struct segment_file *file, const struct image_segment *shape, uint32_t used,
                        int (*put)(void *arg, uint32_t row, const uint32_t *tokens, uint32_t n), void *arg, char *why)
{
	uint8_t *data = malloc(IMAGE_PART_MAX);
	uint32_t row = 0;
	int status = data ? 0 : disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to read token ids");
	for (uint64_t i = 0; i < file->header.section_count && row < used && !status; i++) {
		const struct disk_section *s = &file->section[i];
		if (s->kind != IMAGE_TOKENS)
			continue;
		if (s->block >= shape->block_count || shape->block[s->block].first_row + s->at / 4 != row || !s->bytes ||
		    s->bytes % 4)
			status = damaged(why, file->name, "its token ids are not where they belong");
		else
			status = read_section(io, file, s, data, why);
		uint32_t n = (uint32_t)(s->bytes / 4) < used - row ? (uint32_t)(s->bytes / 4) : used - row;
		if (!status)
			status = put(arg, row, (const uint32_t *)(const void *)data, n);
		row += n;
	}
	free(data);
	return !status && row < used ? damaged(why, file->name, "token ids are missing") : status;
}

int segment_file_read(struct io *io, const struct segment_file *file, struct making *m, uint32_t segment,
                      struct disk_progress *progress, char *why)
{
	struct image_part *part = NULL;
	size_t count = 0;
	if (m && making_parts(m, segment, &part, &count))
		return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to load");
	int status = check_sections(file, part, count, m != NULL, why);
	free(part);
	return status ? status : read_all(io, file, m, segment, progress, why);
}
