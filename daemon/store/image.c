// Taking an image: see image.h.
#include "daemon/store/image.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/store/image_parts.h"
#include "daemon/store/internal.h"

struct image {
	struct image_context context;
	struct store *store;
	struct context *source;
	struct params *params;
	struct segment **segment; // references
	uint64_t cuts;
};

void image_context_free(struct image_context *c)
{
	for (uint32_t i = 0; c->segment && i < c->segment_count; i++)
		free(c->segment[i].block);
	free(c->segment);
	free(c->layer);
	free(c->params);
	*c = (struct image_context){0};
}

const struct image_context *image_of(const struct image *image)
{
	return &image->context;
}

// ---- describing; lock held -------------------------------------------------------------------------------------------

static struct generation_record *generation_in(const struct pool *pool, const struct segment *seg, const struct params *p)
{
	return p ? generation_of(pool, seg->record, p->offset) : NULL;
}

static void fill_sums(const struct pool *pool, const struct segment *seg, const struct generation_record *g,
                      struct image_segment *out)
{
	const struct segment_record *r = seg->record;
	for (uint32_t b = 0; b < out->block_count; b++) {
		const struct block_record *block = pool_at(pool, r->block[b].offset);
		const struct code_block_record *cb = g && g->code_block[b] ? pool_at(pool, g->code_block[b]) : NULL;
		out->block[b].content = block->header.checksum;
		out->block[b].codes_content = cb ? cb->header.checksum : 0;
	}
	out->table_content = out->has_tables || out->has_upper ? g->header.checksum : 0;
	out->checksum = segment_identity(r, g);
}

static int describe_segment(const struct pool *pool, struct segment *seg, const struct params *p, uint64_t first, uint32_t used,
                            struct image_segment *out)
{
	const struct segment_record *r = seg->record;
	const struct generation_record *g = generation_in(pool, seg, p);
	const uint8_t *id = segment_id(seg, p ? p->offset : 0);
	uint32_t blocks = 0, rows = r->sealed_rows ? r->sealed_rows : used;
	while (blocks < r->block_count && r->block[blocks].first_row < rows)
		blocks++;
	*out = (struct image_segment){
		.first = first,
		.rows = rows,
		.sealed = r->sealed_rows != 0,
		.indexed = g != NULL,
		.has_tables = g && r->sealed_rows && g->table_rows,
		.has_upper = g && r->sealed_rows && g->upper_rows,
		.block_count = blocks,
		.block = calloc(blocks ? blocks : 1, sizeof(struct image_block)),
		.offset = seg->offset,
	};
	if (!out->block)
		return MPIG_ENOMEM;
	if (id)
		memcpy(out->id, id, sizeof out->id);
	for (uint32_t b = 0; b < blocks; b++)
		out->block[b] = (struct image_block){
			.first_row = r->block[b].first_row,
			.rows = r->block[b].rows,
			.has_codes = g && g->code_block[b],
		};
	if (out->sealed)
		fill_sums(pool, seg, g, out);
	return 0;
}

static int describe_params(const struct store *s, const struct context *c, struct image_context *out)
{
	const struct params *p = atomic_load(&c->params);
	if (!p)
		return 0;
	out->params_bytes = p->bytes - sizeof(struct params_record);
	out->signature_version = p->version;
	out->params = malloc(out->params_bytes);
	if (!out->params)
		return MPIG_ENOMEM;
	memcpy(out->params, (const uint8_t *)pool_at(s->pool, p->offset) + sizeof(struct params_record), out->params_bytes);
	return 0;
}

// Segments that hold committed rows.
static int describe_segments(const struct store *s, const struct context *c, struct image *image)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct image_context *out = &image->context;
	uint32_t count = 0;
	while (count < snap->count && ref_rows(c, snap, count))
		count++;
	out->segment = calloc(count ? count : 1, sizeof *out->segment);
	image->segment = calloc(count ? count : 1, sizeof(struct segment *));
	if (!out->segment || !image->segment)
		return MPIG_ENOMEM;
	for (; out->segment_count < count; out->segment_count++) {
		uint32_t i = out->segment_count;
		if (describe_segment(s->pool, snap->ref[i].segment, image->params, snap->ref[i].first, ref_rows(c, snap, i),
		                     &out->segment[i]))
			return MPIG_ENOMEM;
		image->segment[i] = snap->ref[i].segment;
		image->segment[i]->refs++;
	}
	return 0;
}

static int describe(const struct store *s, struct context *c, struct image *image)
{
	struct image_context *out = &image->context;
	*out = (struct image_context){
		.identity = c->identity,
		.policy = c->policy,
		.created_ns = c->created_ns,
		.used_ns = atomic_load(&c->used_ns),
		.seed = c->seed,
		.committed = context_committed(c),
		.layer_count = c->spec->layer_count,
		.layer = calloc(c->spec->layer_count, sizeof *out->layer),
	};
	if (!out->layer)
		return MPIG_ENOMEM;
	memcpy(out->name, c->name, sizeof out->name);
	memcpy(out->fingerprint, c->fingerprint, sizeof out->fingerprint);
	for (uint32_t i = 0; i < out->layer_count; i++)
		out->layer[i] = c->spec->layer[i].wire;
	image->cuts = atomic_load(&c->cuts);
	image->params = atomic_load(&c->params);
	if (image->params)
		image->params->refs++;
	int status = describe_params(s, c, out);
	return status ? status : describe_segments(s, c, image);
}

int image_take(struct store *s, const struct credentials *who, const char *name, enum access want, struct image **out, char *why)
{
	struct image *image = calloc(1, sizeof *image);
	if (!image)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to save a context");
	image->store = s;
	store_lock(s);
	int status = context_find(s, who, name, want, &image->source, why);
	if (!status) {
		context_ref(image->source);
		if (describe(s, image->source, image))
			status = refuse(why, MPIG_ENOMEM, "the daemon has no memory to save '%s'", image->source->name);
	}
	store_unlock(s);
	if (status) {
		image_release(image);
		return status;
	}
	*out = image;
	return 0;
}

bool image_dropped(const struct image *image)
{
	return context_dropped(image->source);
}

void image_release(struct image *image)
{
	if (!image)
		return;
	struct store *s = image->store;
	store_lock(s);
	for (uint32_t i = 0; image->segment && i < image->context.segment_count; i++)
		segment_put(s, image->segment[i]);
	params_put(s, image->params);
	store_unlock(s);
	if (image->source)
		context_unref(image->source);
	free(image->segment);
	image_context_free(&image->context);
	free(image);
}

// ---- reading ---------------------------------------------------------------------------------------------------------

// With a pin held: is the open segment what it was? Truncations count before they let rows be overwritten.
static bool unchanged(const struct image *image, uint32_t i)
{
	return !context_dropped(image->source) && atomic_load(&image->source->cuts) == image->cuts &&
	       !load_word32(&image->segment[i]->record->sealed_rows);
}

int image_parts(const struct image *image, uint32_t i, struct image_part **parts, size_t *count)
{
	struct segment *seg = image->segment[i];
	return parts_list(seg, generation_in(image->store->pool, seg, image->params), &image->context.segment[i], parts, count);
}

int image_read(const struct image *image, uint32_t i, const struct image_part *part, void *out)
{
	const struct pool *pool = image->store->pool;
	struct segment *seg = image->segment[i];
	if (image->context.segment[i].sealed) {
		memcpy(out, part_memory(pool, seg, generation_in(pool, seg, image->params), part), part->bytes);
		return 0;
	}
	uint64_t epoch = context_pin(image->source);
	bool good = unchanged(image, i);
	if (good)
		memcpy(out, part_memory(pool, seg, generation_in(pool, seg, image->params), part), part->bytes);
	context_unpin(image->source, epoch);
	return good ? 0 : MPIG_EAGAIN;
}

int image_make_sums(struct image *image, uint32_t i)
{
	struct image_segment *description = &image->context.segment[i];
	if (!description->sealed)
		return 0;
	struct segment *seg = image->segment[i];
	struct generation_record *g = description->indexed ? generation_in(image->store->pool, seg, image->params) : NULL;
	int status = segment_make_sums(image->store, seg, g);
	if (!status)
		fill_sums(image->store->pool, seg, g, description);
	return status;
}

// ---- what is on disk -------------------------------------------------------------------------------------------------

void image_set_id(struct image *image, uint32_t i, const uint8_t id[IMAGE_ID_BYTES])
{
	store_lock(image->store);
	uint8_t *place = segment_id(image->segment[i], image->params ? image->params->offset : 0);
	bool indexed = image->params && generation_in(image->store->pool, image->segment[i], image->params);
	if (place && indexed == image->context.segment[i].indexed)
		memcpy(place, id, IMAGE_ID_BYTES);
	store_unlock(image->store);
	memcpy(image->context.segment[i].id, id, IMAGE_ID_BYTES);
}

void image_saved(struct image *image)
{
	struct context *c = image->source;
	store_lock(image->store);
	c->on_disk = memcmp(&c->identity, &image->context.identity, sizeof c->identity) == 0 &&
	             (!image->params || image->params == atomic_load(&c->params)); // else it was indexed again meanwhile
	c->disk_tokens = image->context.committed;
	c->disk_cuts = image->cuts;
	bool same = !context_dropped(c) && atomic_load(&c->cuts) == image->cuts;
	saved_put(image->store, same ? c : NULL, &image->context);
	c->policy_stale = memcmp(&c->policy, &image->context.policy, sizeof c->policy) != 0 ||
	                  memcmp(&c->identity, &image->context.identity, sizeof c->identity) != 0;
	store_unlock(image->store);
}

void store_context_not_on_disk(struct store *s, const char *name)
{
	store_lock(s);
	struct context *c = name_find(s, name);
	if (c)
		c->on_disk = false;
	store_unlock(s);
}

void store_segment_not_on_disk(struct store *s, const uint8_t id[IMAGE_ID_BYTES])
{
	store_lock(s);
	for (int forget = 0; forget < 2; forget++) // all contexts first: they share it
		for (size_t i = 0; i < s->count; i++) {
			const struct snapshot *snap = atomic_load(&s->context[i]->snapshot);
			for (uint32_t k = 0; k < snap->count; k++) {
				struct segment *seg = snap->ref[k].segment;
				for (uint32_t slot = 0; slot < GENERATIONS; slot++) {
					if (memcmp(seg->id[slot], id, IMAGE_ID_BYTES) != 0)
						continue;
					s->context[i]->on_disk = false;
					if (forget)
						memset(seg->id[slot], 0, IMAGE_ID_BYTES);
				}
			}
		}
	store_unlock(s);
}

// Of which of its generations the file is, or of the rows alone.
static bool recognise(struct store *s, struct segment *seg, uint64_t identity, const uint8_t id[IMAGE_ID_BYTES])
{
	const struct segment_record *r = seg->record;
	uint32_t slot = 0;
	while (slot < GENERATIONS && segment_identity(r, generation_at(s->pool, r, slot)) != identity)
		slot++;
	if (slot == GENERATIONS)
		return false;
	if (!image_id_is_set(seg->id[slot]) && segment_has_sums(s->pool, seg, generation_at(s->pool, r, slot)))
		memcpy(seg->id[slot], id, IMAGE_ID_BYTES);
	return true;
}

bool store_segment_on_disk(struct store *s, uint32_t uid, uint64_t offset, uint64_t checksum, const uint8_t id[IMAGE_ID_BYTES])
{
	bool found = false;
	store_lock(s);
	for (size_t i = 0; i < s->count; i++) {
		const struct snapshot *snap = atomic_load(&s->context[i]->snapshot);
		for (uint32_t k = 0; k < snap->count && s->context[i]->identity.uid == uid; k++) {
			struct segment *seg = snap->ref[k].segment;
			if (seg->offset == offset && seg->record->sealed_rows)
				found |= recognise(s, seg, checksum, id);
		}
	}
	store_unlock(s);
	return found;
}
