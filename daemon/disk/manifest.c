// The manifest of a context: what makes its files a context. Written last.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/disk/durable.h"
#include "daemon/disk/private.h"
#include "shm/status.h"

void manifest_free(struct manifest *m)
{
	image_context_free(&m->context);
	free(m->segment);
	*m = (struct manifest){0};
}

static uint64_t size_of(const struct disk_manifest *h)
{
	return sizeof *h + (uint64_t)h->layer_count * sizeof(struct mpig_wire_layer) +
	       (uint64_t)h->segment_count * sizeof(struct disk_segment_ref) + h->params_bytes + sizeof(uint64_t);
}

uint8_t *manifest_encode(const struct manifest *m, uint64_t *bytes)
{
	const struct image_context *c = &m->context;
	struct disk_manifest h = {
		.magic = DISK_MANIFEST_MAGIC,
		.version = DISK_VERSION,
		.header_bytes = sizeof h,
		.created_ns = c->created_ns,
		.saved_ns = m->saved_ns,
		.seed = c->seed,
		.committed = c->committed,
		.params_bytes = c->params_bytes,
		.uid = c->identity.uid,
		.gid = c->identity.gid,
		.mode = c->identity.mode,
		.policy = c->policy,
		.used_ns = c->used_ns,
		.layer_count = c->layer_count,
		.signature_version = c->signature_version,
		.segment_count = c->segment_count,
	};
	memcpy(h.name, c->name, sizeof h.name);
	memcpy(h.fingerprint, c->fingerprint, sizeof h.fingerprint);
	memcpy(h.pool_id, m->pool_id, sizeof h.pool_id);
	h.file_bytes = *bytes = size_of(&h);
	uint8_t *data = malloc(*bytes), *at = data;
	if (!data)
		return NULL;
	memcpy(at, &h, sizeof h);
	memcpy(at += sizeof h, c->layer, c->layer_count * sizeof *c->layer);
	at += c->layer_count * sizeof *c->layer;
	if (c->segment_count)
		memcpy(at, m->segment, c->segment_count * sizeof *m->segment);
	at += c->segment_count * sizeof *m->segment;
	if (c->params_bytes)
		memcpy(at, c->params, c->params_bytes);
	at += c->params_bytes;
	uint64_t sum = XXH3_64bits(data, (size_t)(at - data));
	memcpy(at, &sum, sizeof sum);
	return data;
}

int manifest_write(struct io *io, int dir, const struct manifest *m, char *why)
{
	static const char temporary[] = "manifest.tmp", final[] = "manifest";
	uint64_t bytes;
	uint8_t *data = manifest_encode(m, &bytes);
	if (!data)
		return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to save");
	int rc = durable_replace(io, dir, temporary, final, data, bytes, NULL);
	free(data);
	return rc ? disk_errno(why, rc, "cannot write", final) : 0;
}

static void *take(const uint8_t **at, uint64_t bytes)
{
	void *copy = malloc(bytes ? bytes : 1);
	if (copy && bytes)
		memcpy(copy, *at, bytes);
	*at += bytes;
	return copy;
}

static int take_parts(const uint8_t *data, const struct disk_manifest *h, struct manifest *m, char *why)
{
	const uint8_t *at = data + sizeof *h;
	struct image_context *c = &m->context;
	*c = (struct image_context){
		.identity = {h->uid, h->gid, h->mode},
		.policy = h->policy,
		.used_ns = h->used_ns,
		.created_ns = h->created_ns,
		.seed = h->seed,
		.committed = h->committed,
		.layer_count = h->layer_count,
		.signature_version = h->signature_version,
		.params_bytes = h->params_bytes,
	};
	memcpy(c->name, h->name, sizeof c->name);
	memcpy(c->fingerprint, h->fingerprint, sizeof c->fingerprint);
	memcpy(m->pool_id, h->pool_id, sizeof m->pool_id);
	m->saved_ns = h->saved_ns;
	m->used_ns = h->used_ns;
	m->file_bytes = h->file_bytes;
	c->layer = take(&at, h->layer_count * sizeof *c->layer);
	m->segment = take(&at, h->segment_count * sizeof *m->segment);
	c->params = h->params_bytes ? take(&at, h->params_bytes) : NULL;
	c->segment = calloc(h->segment_count + 1u, sizeof *c->segment);
	if (!c->layer || !m->segment || !c->segment || (h->params_bytes && !c->params))
		return disk_fail(why, MPIG_ENOMEM, "the daemon has no memory to read a manifest");
	c->segment_count = h->segment_count;
	for (uint32_t i = 0; i < h->segment_count; i++) {
		memcpy(c->segment[i].id, m->segment[i].id, IMAGE_ID_BYTES);
		c->segment[i].first = m->segment[i].first;
	}
	return 0;
}

static int check(const uint8_t *data, uint64_t bytes, const char *name, struct disk_manifest *h, char *why)
{
	uint64_t sum;
	memcpy(h, data, sizeof *h);
	if (h->magic != DISK_MANIFEST_MAGIC)
		return disk_fail(why, MPIG_ECORRUPT, "the manifest of '%s' is damaged: no header", name);
	if (h->version < DISK_VERSION_OLDEST || h->version > DISK_VERSION)
		return disk_fail(
			why, MPIG_EVERSION,
			"'%s' on disk has version %u, this daemon reads versions %u to %u: use the daemon that wrote it, or "
			"erase and save again",
			name, h->version, DISK_VERSION_OLDEST, DISK_VERSION);
	memcpy(&sum, data + bytes - sizeof sum, sizeof sum);
	if (h->file_bytes != bytes || h->header_bytes != sizeof *h || h->params_bytes > bytes || size_of(h) != bytes ||
	    sum != XXH3_64bits(data, bytes - sizeof sum))
		return disk_fail(why, MPIG_ECORRUPT, "the manifest of '%s' is damaged: it does not have its checksum", name);
	return 0;
}

int manifest_decode(const uint8_t *data, uint64_t bytes, const char *of, struct manifest *m, char *why)
{
	struct disk_manifest h;
	*m = (struct manifest){0};
	if (bytes < sizeof h + sizeof(uint64_t) || bytes > DISK_MANIFEST_MAX)
		return disk_fail(why, MPIG_ECORRUPT, "the manifest of '%s' is damaged: its length is %llu", of,
		                 (unsigned long long)bytes);
	int status = check(data, bytes, of, &h, why);
	if (!status)
		status = take_parts(data, &h, m, why);
	if (status)
		manifest_free(m);
	return status;
}

int manifest_read(struct io *io, int dir, const char *name, struct manifest *m, char *why)
{
	*m = (struct manifest){0};
	uint64_t bytes = 0, touched = 0;
	int fd = disk_open(dir, "manifest", O_RDONLY, false);
	if (fd == -ENOENT)
		return disk_fail(why, MPIG_ENOENT, "no context '%s' is on disk", name);
	int rc = fd < 0 ? fd : file_bytes(fd, &bytes, &touched);
	if (!rc && (bytes > DISK_MANIFEST_MAX || bytes < sizeof(struct disk_manifest) + sizeof(uint64_t))) {
		close(fd);
		return disk_fail(why, MPIG_ECORRUPT, "the manifest of '%s' is damaged: its length is %llu", name,
		                 (unsigned long long)bytes);
	}
	uint8_t *data = rc ? NULL : malloc(bytes);
	if (!rc)
		rc = data ? io_move(io, fd, "manifest", false, 0, data, bytes) : -ENOMEM;
	if (fd >= 0)
		close(fd);
	int status = rc ? disk_errno(why, rc, "cannot read the manifest of", name) : manifest_decode(data, bytes, name, m, why);
	free(data);
	if (!status &&
	    (strnlen(m->context.name, sizeof m->context.name) == sizeof m->context.name || strcmp(m->context.name, name))) {
		manifest_free(m);
		status = disk_fail(why, MPIG_ECORRUPT, "the manifest of '%s' is another context's", name);
	}
	if (!status && touched > m->used_ns)
		m->used_ns = touched;
	return status;
}
