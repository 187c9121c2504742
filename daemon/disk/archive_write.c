// Writing the stream of a context: see archive.h. The order of the chunks follows from the context's shape.
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/base/clock.h"
#include "daemon/disk/archive.h"
#include "daemon/disk/private.h"
#include "shm/status.h"

struct parts {
	struct image_part *part;
	size_t count;
};
struct writing {
	const struct image *image;
	const struct archive_io *io;
	uint8_t *manifest;
	uint64_t manifest_bytes;
	struct parts *parts; // [segment_count]
	XXH3_state_t *heads;
	uint8_t *buffer; // MPIG_ARCHIVE_CHUNK_MAX
	uint64_t number, put;
	char *why;
};

static int put(struct writing *w, const void *data, size_t bytes)
{
	int status = w->io->put(w->io->arg, data, bytes, w->why);
	w->put += bytes;
	return status;
}

static int put_chunk(struct writing *w, struct mpig_archive_chunk head, const void *data)
{
	head.magic = MPIG_ARCHIVE_CHUNK_MAGIC;
	head.number = w->number++;
	head.data_checksum = XXH3_64bits(data, head.bytes);
	head.checksum = XXH3_64bits(&head, offsetof(struct mpig_archive_chunk, checksum));
	XXH3_64bits_update(w->heads, &head, sizeof head);
	int status = put(w, &head, sizeof head);
	return status ? status : put(w, data, head.bytes);
}

static int no_memory(char *why)
{
	return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to export a context");
}

// ---- what there will be ----------------------------------------------------------------------------------------------

static uint64_t pieces(uint64_t bytes)
{
	return (bytes + MPIG_ARCHIVE_CHUNK_MAX - 1) / MPIG_ARCHIVE_CHUNK_MAX;
}

// Ids and places in the pool are the daemon's own business.
static int prepare(struct writing *w)
{
	const struct image_context *c = image_of(w->image);
	struct manifest m = {.context = *c, .saved_ns = real_ns()};
	m.segment = calloc(c->segment_count + 1u, sizeof *m.segment);
	w->parts = calloc(c->segment_count + 1u, sizeof *w->parts);
	w->buffer = malloc(MPIG_ARCHIVE_CHUNK_MAX);
	w->heads = XXH3_createState();
	bool good = m.segment && w->parts && w->buffer && w->heads;
	for (uint32_t i = 0; i < c->segment_count && good; i++) {
		m.segment[i].first = c->segment[i].first;
		m.segment[i].rows = c->segment[i].rows;
		m.segment[i].flags = segment_flags(&c->segment[i]);
		good = !image_parts(w->image, i, &w->parts[i].part, &w->parts[i].count);
	}
	w->manifest = good ? manifest_encode(&m, &w->manifest_bytes) : NULL;
	free(m.segment);
	return w->manifest ? 0 : no_memory(w->why);
}

static int put_header(struct writing *w)
{
	const struct image_context *c = image_of(w->image);
	uint64_t chunks = pieces(w->manifest_bytes) + c->segment_count + 1, bytes = sizeof(struct mpig_archive_end);
	bytes += w->manifest_bytes;
	for (uint32_t i = 0; i < c->segment_count; i++) {
		bytes += sizeof(struct mpig_archive_shape) + c->segment[i].block_count * sizeof(struct disk_block);
		chunks += w->parts[i].count;
		for (size_t k = 0; k < w->parts[i].count; k++)
			bytes += w->parts[i].part[k].bytes;
	}
	struct mpig_archive_header h = {
		.magic = MPIG_ARCHIVE_MAGIC,
		.version = MPIG_ARCHIVE_VERSION,
		.header_bytes = sizeof h,
		.total_bytes = sizeof h + chunks * sizeof(struct mpig_archive_chunk) + bytes,
		.chunks = chunks,
	};
	h.checksum = XXH3_64bits(&h, offsetof(struct mpig_archive_header, checksum));
	XXH3_64bits_reset(w->heads);
	return put(w, &h, sizeof h);
}

// ---- chunks ----------------------------------------------------------------------------------------------------------

static int put_context(struct writing *w)
{
	int status = 0;
	for (uint64_t at = 0; at < w->manifest_bytes && !status; at += MPIG_ARCHIVE_CHUNK_MAX) {
		uint64_t left = w->manifest_bytes - at;
		struct mpig_archive_chunk head = {.kind = MPIG_ARCHIVE_CONTEXT,
		                                  .at = at,
		                                  .bytes = left < MPIG_ARCHIVE_CHUNK_MAX ? left : MPIG_ARCHIVE_CHUNK_MAX};
		status = put_chunk(w, head, w->manifest + at);
	}
	return status;
}

static int put_shape(struct writing *w, uint32_t i)
{
	const struct image_segment *seg = &image_of(w->image)->segment[i];
	struct mpig_archive_shape shape = {.rows = seg->rows,
	                                   .flags = segment_flags(seg),
	                                   .block_count = seg->block_count,
	                                   .table_content = seg->table_content};
	uint8_t *at = w->buffer;
	memcpy(at, &shape, sizeof shape);
	at += sizeof shape;
	for (uint32_t b = 0; b < seg->block_count; b++, at += sizeof(struct disk_block)) {
		struct disk_block block = block_to_disk(&seg->block[b]);
		memcpy(at, &block, sizeof block);
	}
	return put_chunk(
		w, (struct mpig_archive_chunk){.kind = MPIG_ARCHIVE_SEGMENT, .segment = i, .bytes = (uint64_t)(at - w->buffer)},
		w->buffer);
}

static int put_parts(struct writing *w, uint32_t i)
{
	int status = 0;
	for (size_t k = 0; k < w->parts[i].count && !status; k++) {
		const struct image_part *part = &w->parts[i].part[k];
		struct mpig_archive_chunk head = {.kind = part->kind,
		                                  .block = part->block,
		                                  .segment = i,
		                                  .strip = part->strip,
		                                  .at = part->at,
		                                  .bytes = part->bytes};
		if (image_dropped(w->image))
			return disk_fail(w->why, MPIG_ENOENT, "'%s' was dropped while it was exported", image_of(w->image)->name);
		if (image_read(w->image, i, part, w->buffer))
			return disk_fail(w->why, MPIG_EAGAIN, "'%s' was truncated or sealed while it was exported: try again",
			                 image_of(w->image)->name);
		status = put_chunk(w, head, w->buffer);
	}
	return status;
}

static int put_end(struct writing *w)
{
	const struct image_context *c = image_of(w->image);
	struct mpig_archive_end end = {XXH3_64bits_digest(w->heads), c->committed, c->segment_count, 0};
	return put_chunk(w, (struct mpig_archive_chunk){.kind = MPIG_ARCHIVE_END, .bytes = sizeof end}, &end);
}

int archive_write(const struct image *image, const struct archive_io *io, struct mpig_archive_result *result, char *why)
{
	const struct image_context *c = image_of(image);
	struct writing w = {.image = image, .io = io, .why = why};
	int status = prepare(&w);
	if (!status)
		status = put_header(&w);
	if (!status)
		status = put_context(&w);
	for (uint32_t i = 0; i < c->segment_count && !status; i++)
		status = put_shape(&w, i);
	for (uint32_t i = c->segment_count; i > 0 && !status; i--) // what may still change comes first
		status = put_parts(&w, i - 1);
	if (!status)
		status = put_end(&w);
	if (!status) {
		*result = (struct mpig_archive_result){.segments = c->segment_count, .tokens = c->committed, .bytes = w.put};
		memcpy(result->name, c->name, sizeof result->name);
	}
	for (uint32_t i = 0; w.parts && i < c->segment_count; i++)
		free(w.parts[i].part);
	free(w.parts);
	free(w.manifest);
	free(w.buffer);
	XXH3_freeState(w.heads);
	return status;
}
