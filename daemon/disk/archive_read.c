// Reading the stream of a context: see archive.h. It comes from anybody: each chunk is read whole into a private buffer, compared with its checksum
// and with what must come here, and only then used; what all of it makes is checked again before there is a context.
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/disk/archive.h"
#include "daemon/disk/private.h"
#include "daemon/store/format.h"
#include "shm/status.h"

struct reading {
	const struct archive_io *io;
	const struct archive_options *options;
	struct store *store;
	struct mpig_archive_header header;
	struct mpig_archive_chunk head; // of the chunk in `data`
	uint8_t *data;                  // MPIG_ARCHIVE_CHUNK_MAX
	uint64_t got, number, blocks;
	XXH3_state_t *heads;
	struct manifest manifest;
	struct making *making;
	char *why;
};

static int bad(const struct reading *r, const char *what)
{
	return disk_fail(r->why, MPIG_ECORRUPT, "chunk %llu, before byte %llu: %s", (unsigned long long)r->head.number,
	                 (unsigned long long)r->got, what);
}

static int no_memory(const struct reading *r)
{
	return disk_fail(r->why, MPIG_ENOMEM, "the daemon has no memory to import a context");
}

static int get(struct reading *r, void *data, size_t bytes)
{
	char text[MPIG_TEXT_BYTES] = "";
	int status = r->io->get(r->io->arg, data, bytes, text);
	if (status == MPIG_ERANGE)
		return disk_fail(r->why, MPIG_ECORRUPT, "it ends after byte %llu of %llu: it is not whole",
		                 (unsigned long long)r->got, (unsigned long long)r->header.total_bytes);
	if (status)
		return disk_fail(r->why, status, "%s", text);
	r->got += bytes;
	return 0;
}

// ---- the layers of the stream ----------------------------------------------------------------------------------------

static int get_header(struct reading *r)
{
	struct mpig_archive_header *h = &r->header;
	static const uint8_t zeros[sizeof h->reserved];
	int status = get(r, h, sizeof *h);
	if (status)
		return status;
	if (h->magic != MPIG_ARCHIVE_MAGIC)
		return disk_fail(r->why, MPIG_ECORRUPT, "that is no exported context: it does not begin like one");
	if (h->version > MPIG_ARCHIVE_VERSION)
		return disk_fail(r->why, MPIG_EVERSION, "it was exported in version %u, this daemon reads up to %u", h->version,
		                 MPIG_ARCHIVE_VERSION);
	if (h->checksum != XXH3_64bits(h, offsetof(struct mpig_archive_header, checksum)) || h->header_bytes != sizeof *h ||
	    h->version == 0 || memcmp(h->reserved, zeros, sizeof zeros))
		return disk_fail(r->why, MPIG_ECORRUPT, "its header (64 bytes) is damaged");
	return 0;
}

// The next chunk, which must be of that kind, into r->head and r->data.
static int next_chunk(struct reading *r, enum mpig_archive_kind kind)
{
	struct mpig_archive_chunk *h = &r->head;
	int status = get(r, h, sizeof *h);
	if (status)
		return status;
	bool sound = h->magic == MPIG_ARCHIVE_CHUNK_MAGIC &&
	             h->checksum == XXH3_64bits(h, offsetof(struct mpig_archive_chunk, checksum));
	h->number = sound ? h->number : r->number;
	if (!sound)
		return bad(r, "its head is damaged");
	if (h->number != r->number)
		return bad(r, "chunks are missing or out of order");
	if (h->reserved || h->bytes > MPIG_ARCHIVE_CHUNK_MAX ||
	    (kind < MPIG_ARCHIVE_PARTS ? h->kind >= MPIG_ARCHIVE_PARTS : h->kind != kind))
		return bad(r, "another kind of chunk belongs here");
	r->number++;
	status = get(r, r->data, h->bytes);
	if (status)
		return status;
	if (h->data_checksum != XXH3_64bits(r->data, h->bytes))
		return bad(r, "it does not have its checksum");
	if (kind != MPIG_ARCHIVE_END)
		XXH3_64bits_update(r->heads, h, sizeof *h);
	return 0;
}

// ---- the context -----------------------------------------------------------------------------------------------------

static int get_context(struct reading *r)
{
	uint8_t *manifest = NULL;
	uint64_t have = 0, want = sizeof(struct disk_manifest);
	int status = 0;
	while (!status && have < want) {
		status = next_chunk(r, MPIG_ARCHIVE_CONTEXT);
		if (status)
			break;
		if (r->head.at != have || !r->head.bytes || have + r->head.bytes > DISK_MANIFEST_MAX) {
			status = bad(r, "the description of the context has gaps or no end");
			break;
		}
		uint8_t *all = realloc(manifest, have + r->head.bytes);
		if (!all) {
			status = no_memory(r);
			break;
		}
		manifest = all;
		memcpy(manifest + have, r->data, r->head.bytes);
		have += r->head.bytes;
		if (have >= sizeof(struct disk_manifest))
			memcpy(&want, manifest + offsetof(struct disk_manifest, file_bytes), sizeof want);
	}
	if (!status)
		status = manifest_decode(manifest, have, "the import", &r->manifest, r->why);
	free(manifest);
	return status;
}

// What the shapes take in the daemon's memory grows only as far as what they describe could be had: of the pool, and by its owner.
static int may_grow(struct reading *r, const struct credentials *who, uint32_t blocks)
{
	const struct image_context *c = &r->manifest.context;
	if (c->segment_count > c->committed)
		return bad(r, "it has more segments than tokens");
	if (blocks > SEGMENT_MAX_BLOCKS)
		return bad(r, "the segment has more blocks than one can have");
	r->blocks += blocks;
	return making_admits(r->store, who, c->segment_count, r->blocks, r->why);
}

static int get_shape(struct reading *r, const struct credentials *who, uint32_t i)
{
	struct mpig_archive_shape shape;
	struct image_segment *out = &r->manifest.context.segment[i];
	int status = next_chunk(r, MPIG_ARCHIVE_SEGMENT);
	if (status)
		return status;
	if (r->head.segment != i || r->head.bytes < sizeof shape)
		return bad(r, "it is another segment's");
	memcpy(&shape, r->data, sizeof shape);
	if (shape.reserved || shape.flags & ~(uint32_t)DISK_FLAGS || shape.rows != r->manifest.segment[i].rows ||
	    shape.flags != r->manifest.segment[i].flags ||
	    r->head.bytes != sizeof shape + (uint64_t)shape.block_count * sizeof(struct disk_block))
		return bad(r, "the shape of the segment contradicts itself");
	status = may_grow(r, who, shape.block_count);
	if (status)
		return status;
	out->block = calloc(shape.block_count + UINT64_C(1), sizeof *out->block);
	if (!out->block)
		return no_memory(r);
	out->rows = shape.rows;
	segment_take_flags(out, shape.flags);
	out->block_count = shape.block_count;
	out->table_content = shape.table_content;
	for (uint32_t b = 0; b < shape.block_count; b++) {
		struct disk_block block;
		memcpy(&block, r->data + sizeof shape + b * sizeof block, sizeof block);
		out->block[b] = block_from_disk(&block);
	}
	if (r->header.version < MPIG_ARCHIVE_VERSION_SUMS)
		segment_without_sums(out);
	return 0;
}

static int get_parts(struct reading *r, uint32_t i)
{
	struct image_part *part;
	size_t count;
	if (making_parts(r->making, i, &part, &count))
		return no_memory(r);
	int status = 0;
	for (size_t k = 0; k < count && !status; k++) {
		status = next_chunk(r, (enum mpig_archive_kind)part[k].kind);
		const struct mpig_archive_chunk *h = &r->head;
		if (!status && (h->segment != i || h->kind != part[k].kind || h->block != part[k].block ||
		                h->strip != part[k].strip || h->at != part[k].at || h->bytes != part[k].bytes))
			status = bad(r, "another part of the context belongs here");
		if (!status)
			making_write(r->making, i, &part[k], r->data);
	}
	free(part);
	return status;
}

static int get_end(struct reading *r)
{
	struct mpig_archive_end end;
	int status = next_chunk(r, MPIG_ARCHIVE_END);
	if (status)
		return status;
	if (r->head.bytes != sizeof end)
		return bad(r, "the end has another length");
	memcpy(&end, r->data, sizeof end);
	if (end.reserved || end.tokens != r->manifest.context.committed || end.segments != r->manifest.context.segment_count ||
	    end.heads_checksum != XXH3_64bits_digest(r->heads) || r->number != r->header.chunks ||
	    r->got != r->header.total_bytes)
		return bad(r, "the end does not fit what came before");
	return 0;
}

static int begin(struct reading *r, const struct credentials *who, const char *name)
{
	struct image_context *c = &r->manifest.context;
	c->foreign = true;
	c->policy = (struct mpig_wire_policy){0};
	c->identity.uid = who->uid;
	c->identity.gid = who->gid;
	for (uint32_t i = 0; i < c->segment_count; i++)
		memset(c->segment[i].id, 0, IMAGE_ID_BYTES); // to share by it is to be given what others have
	if (*name) {
		memset(c->name, 0, sizeof c->name);
		memcpy(c->name, name, strlen(name));
	}
	return making_begin(r->store, c, r->options->table_bytes, &r->making, r->why);
}

static int get_all(struct reading *r, const struct credentials *who, const char *name)
{
	int status = get_header(r);
	if (!status)
		status = get_context(r);
	uint32_t count = status ? 0 : r->manifest.context.segment_count;
	for (uint32_t i = 0; i < count && !status; i++)
		status = get_shape(r, who, i);
	if (!status)
		status = begin(r, who, name);
	for (uint32_t i = count; i > 0 && !status; i--)
		status = get_parts(r, i - 1);
	if (!status)
		status = get_end(r);
	return status ? status : making_check(r->making, &r->options->checks, r->why);
}

int archive_read(struct store *s, const struct credentials *who, const char *name, const struct archive_options *options,
                 const struct archive_io *io, struct mpig_archive_result *result, char *why)
{
	struct reading r = {.io = io, .options = options, .store = s, .why = why, .heads = XXH3_createState()};
	r.data = malloc(MPIG_ARCHIVE_CHUNK_MAX);
	int status = r.data && r.heads ? 0 : no_memory(&r);
	if (!status) {
		XXH3_64bits_reset(r.heads);
		status = get_all(&r, who, name);
	}
	if (status) {
		making_cancel(r.making);
	} else {
		const struct image_context *c = &r.manifest.context;
		struct mpig_archive_result done = {.segments = c->segment_count, .tokens = c->committed, .bytes = r.got};
		memcpy(done.name, c->name, sizeof done.name);
		status = making_finish(r.making, why);
		if (!status)
			*result = done;
	}
	manifest_free(&r.manifest);
	free(r.data);
	XXH3_freeState(r.heads);
	return status;
}
