// Making a context from an image: see image.h.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/image_making.h"

// ---- what an image must be to make sense -----------------------------------------------------------------------------

static bool blocks_fit(const struct image_segment *seg)
{
	uint32_t rows = 0;
	if (!seg->block_count || seg->block_count > SEGMENT_MAX_BLOCKS)
		return false;
	for (uint32_t b = 0; b < seg->block_count; b++) {
		const struct image_block *block = &seg->block[b];
		uint32_t n = block->rows;
		if (block->first_row != rows || rows >= seg->rows || n < BLOCK_MIN_ROWS || n > BLOCK_MAX_ROWS || n % SIG_GROUP ||
		    n > SEGMENT_MAX_ROWS - rows || (block->has_codes && !seg->indexed))
			return false;
		rows += n;
	}
	return seg->rows <= rows;
}

static bool segment_fits(const struct image_context *from, const struct spec *spec, uint32_t i)
{
	const struct image_segment *seg = &from->segment[i];
	uint64_t end = i + 1 < from->segment_count ? from->segment[i + 1].first : from->committed;
	uint64_t used = end > seg->first ? end - seg->first : 0;
	if ((i == 0 && seg->first) || !used || used > seg->rows || (!seg->sealed && used != seg->rows) || !blocks_fit(seg))
		return false;
	if ((seg->has_tables || seg->has_upper) && (!seg->sealed || !seg->indexed))
		return false;
	if ((seg->has_tables && !spec->has_tables) || (seg->has_upper && !spec->has_upper))
		return false;
	for (uint32_t b = 0; b < seg->block_count; b++)
		if (seg->block[b].has_codes && !spec->has_codes)
			return false;
	return !seg->indexed || from->params_bytes;
}

static int check(const struct image_context *from, const struct spec *spec, char *why)
{
	char text[MPIG_TEXT_BYTES];
	if (name_valid(from->name, "name", text) || policy_check(&from->policy, text))
		return refuse(why, MPIG_ECORRUPT, "the image: %.200s", text);
	uint64_t params = from->params ? spec->params_bytes - sizeof(struct params_record) : 0;
	if (from->identity.mode > 0777 || from->committed > MPIG_MAX_TOKENS || !from->committed != !from->segment_count ||
	    from->params_bytes != params || !from->params != !from->signature_version || from->signature_version == UINT32_MAX)
		return refuse(why, MPIG_ECORRUPT, "the image of '%s' contradicts itself", from->name);
	if (from->params && !params_bits_good(spec, from->params))
		return refuse(why, MPIG_ECORRUPT, "the parameters of the image of '%s' name impossible widths of codes",
		              from->name);
	for (uint32_t i = 0; i < from->segment_count; i++)
		if (!segment_fits(from, spec, i))
			return refuse(why, MPIG_ECORRUPT, "segment %u of the image of '%s' contradicts itself", i, from->name);
	return 0;
}

static void *copy_of(const void *data, size_t bytes)
{
	void *copy = malloc(bytes ? bytes : 1);
	if (copy && bytes)
		memcpy(copy, data, bytes);
	return copy;
}

static int copy(struct making *m, const struct image_context *from)
{
	struct image_context *to = &m->from;
	*to = *from;
	to->layer = NULL;
	to->segment = copy_of(from->segment, from->segment_count * sizeof *to->segment);
	to->params = from->params ? copy_of(from->params, from->params_bytes) : NULL;
	bool all = to->segment && (to->params || !from->params);
	for (uint32_t i = 0; to->segment && i < from->segment_count; i++)
		to->segment[i].block = NULL;
	for (uint32_t i = 0; all && i < from->segment_count; i++)
		all = (to->segment[i].block = copy_of(from->segment[i].block,
		                                      from->segment[i].block_count * sizeof(struct image_block))) != NULL;
	m->segment = calloc(from->segment_count + 1, sizeof(struct segment *));
	m->shared = calloc(from->segment_count + 1, sizeof *m->shared);
	m->extents = calloc(from->segment_count + 1, sizeof *m->extents);
	return all && m->segment && m->shared && m->extents ? 0 : MPIG_ENOMEM;
}

// ---- sharing; lock held ----------------------------------------------------------------------------------------------

static bool same_params(const struct making *m, const struct params *p)
{
	return p ? m->from.params && p->version == m->from.signature_version &&
	                       !memcmp((const uint8_t *)pool_at(m->store->pool, p->offset) + sizeof(struct params_record),
	                               m->from.params, m->from.params_bytes)
	         : !m->from.params;
}

// A context of the pool that has segments of ours, and the parameters they were made with.
static int share_with(struct making *m, struct context *c)
{
	struct params *p = atomic_load(&c->params);
	const struct snapshot *snap = atomic_load(&c->snapshot);
	if (m->from.foreign || c->damage || !spec_same(c->spec, m->spec) || !same_params(m, p) || (m->params && m->params != p))
		return 0;
	for (uint32_t i = 0; i < m->from.segment_count; i++)
		for (uint32_t k = 0; k < snap->count && !m->segment[i]; k++) {
			struct segment *seg = snap->ref[k].segment;
			const struct image_segment *mine = &m->from.segment[i];
			const uint8_t *id = segment_id(seg, p ? p->offset : 0);
			if (!mine->sealed || !image_id_is_set(mine->id) || !id || memcmp(mine->id, id, sizeof mine->id) ||
			    seg->record->sealed_rows != mine->rows)
				continue;
			if (p && !m->params) {
				if (charge_reference(m->store, &p->charge, &m->from.identity))
					return MPIG_ENOMEM;
				p->refs++;
				m->params = p;
			}
			if (charge_reference(m->store, &seg->charge, &m->from.identity))
				return MPIG_ENOMEM;
			seg->refs++;
			m->segment[i] = seg;
			m->shared[i] = true;
		}
	return 0;
}

// ---- before the beginning --------------------------------------------------------------------------------------------

int making_admits(struct store *s, const struct credentials *who, uint64_t segments, uint64_t blocks, char *why)
{
	struct identity owner = {.uid = who->uid, .gid = who->gid};
	uint64_t least = (segments + blocks) * POOL_GRANULE; // a record each
	if (least > pool_bytes(s->pool))
		return refuse(why, MPIG_ENOSPC,
		              "it has %" PRIu64 " segments and %" PRIu64 " blocks: the pool has no room for them", segments,
		              blocks);
	store_lock(s);
	int status = quota_admit(s, &owner, least, 0, why);
	store_unlock(s);
	return status;
}

// ---- the beginning ---------------------------------------------------------------------------------------------------

static int begin_locked(struct making *m, char *why)
{
	struct store *s = m->store;
	int status = name_check(s, m->from.name, "name", why);
	if (!status && account_open(s, &m->from.identity))
		status = MPIG_ENOMEM;
	m->account = !status;
	for (size_t i = 0; i < s->count && !status; i++)
		status = share_with(m, s->context[i]);
	if (!status)
		status = making_want_all(m);
	if (status == MPIG_ENOMEM)
		refuse(why, status, "the daemon has no memory to load '%s'", m->from.name);
	return status ? status : making_hold_all(m, why);
}

int making_begin(struct store *s, const struct image_context *from, uint64_t (*table_bytes)(const struct layer *, uint32_t rows),
                 struct making **out, char *why)
{
	struct making *m = calloc(1, sizeof *m);
	if (!m)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to load a context");
	m->store = s;
	m->table_bytes = table_bytes;
	int status = spec_create(from->layer, from->layer_count, &m->spec, why);
	if (!status)
		status = check(from, m->spec, why);
	else if (status != MPIG_ENOMEM)
		status = MPIG_ECORRUPT;
	if (!status && copy(m, from))
		status = refuse(why, MPIG_ENOMEM, "the daemon has no memory to load '%s'", from->name);
	if (!status) {
		store_lock(s);
		status = begin_locked(m, why);
		store_unlock(s);
	}
	if (!status)
		status = making_alloc_all(m, why);
	if (!status)
		making_build_all(m);
	if (status) {
		making_cancel(m);
		return status;
	}
	*out = m;
	return 0;
}

// ---- filling ---------------------------------------------------------------------------------------------------------

bool making_wants(const struct making *m, uint32_t segment)
{
	return !m->shared[segment];
}

int making_parts(const struct making *m, uint32_t segment, struct image_part **parts, size_t *count)
{
	return parts_list(m->segment[segment], segment_generation(m->store->pool, m->segment[segment]), &m->from.segment[segment],
	                  parts, count);
}

void making_write(struct making *m, uint32_t segment, const struct image_part *part, const void *bytes)
{
	memcpy(part_memory(m->store->pool, m->segment[segment], segment_generation(m->store->pool, m->segment[segment]), part),
	       bytes, part->bytes);
}

// ---- the end ---------------------------------------------------------------------------------------------------------

struct book_sink {
	struct extent_sink sink;
	struct making *m;
	struct segment *segment;
	bool free;
};
static void book_put(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use)
{
	struct book_sink *b = (struct book_sink *)sink;
	if (b->free)
		pool_free(b->m->store->pool, offset, bytes);
	else
		segment_grow(b->m->store, b->segment, bytes, use);
}

// Lock held. The charges that were held move to what they are for.
static void book(struct making *m)
{
	account_sub(m->store, &m->from.identity, m->held);
	m->held = 0;
	for (uint32_t i = 0; i < m->from.segment_count; i++) {
		struct book_sink sink = {.sink = {book_put}, .m = m, .segment = m->segment[i]};
		if (m->shared[i]) // it has its id; and may have none for these parameters any more
			continue;
		segment_extents(m->store->pool, m->segment[i], &sink.sink);
		if (m->from.segment[i].sealed && !m->from.foreign)
			memcpy(segment_id(m->segment[i], m->params ? m->params->offset : 0), m->from.segment[i].id,
			       IMAGE_ID_BYTES);
	}
	if (m->own.count) {
		charge_grow(m->store, &m->params->charge, m->params->bytes);
		m->store->metadata_bytes += m->params->bytes;
	}
}

static int check_segments(struct making *m, char *why)
{
	const struct image_context *from = &m->from;
	for (uint32_t i = 0; i < from->segment_count; i++) {
		char text[MPIG_TEXT_BYTES];
		struct segment_record *r = m->segment[i]->record;
		if (m->shared[i]) // with a living context: another's generation of it may go at any time
			continue;
		uint64_t end = i + 1 < from->segment_count ? from->segment[i + 1].first : from->committed;
		struct segment_use use = {m->store->pool,
		                          m->spec,
		                          m->segment[i]->offset,
		                          m->params ? m->params->offset : 0,
		                          (uint32_t)(end - from->segment[i].first),
		                          m->table_bytes};
		struct generation_record *g = segment_generation(m->store->pool, m->segment[i]);
		if (from->segment[i].sealed)
			r->header.checksum = segment_checksum(m->store->pool, m->spec, r, r->sealed_rows);
		if (from->segment[i].sealed && g)
			g->records = generation_checksum(m->store->pool, r, g, r->sealed_rows);
		if (!segment_check(&use, text))
			return refuse(why, MPIG_ECORRUPT, "segment %u of '%s': %.150s", i, from->name, text);
	}
	return 0;
}

static int announce(struct making *m, char *why)
{
	struct store *s = m->store;
	struct context_draft draft = {
		.name = m->from.name,
		.fingerprint = m->from.fingerprint,
		.identity = m->from.identity,
		.policy = m->from.policy,
		.seed = m->from.seed,
		.segment_count = m->from.segment_count,
	};
	struct context *c;
	int status = name_check(s, m->from.name, "name", why);
	if (!status)
		status = context_build(s, &draft, m->spec, &c, why);
	if (status)
		return status;
	book(m);
	struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; i < snap->count; i++)
		snap->ref[i] = (struct ref){m->segment[i], m->from.segment[i].first};
	atomic_store(&c->params, m->params);
	atomic_store(&c->signature_version, m->params ? m->params->version : 0);
	if (!m->from.foreign)
		c->created_ns = m->from.created_ns;
	atomic_store(&c->committed, m->from.committed);
	c->on_disk = !m->from.foreign;
	c->disk_tokens = m->from.committed;
	context_announce(s, c);
	const struct saved *saved = saved_find(s, c->name);
	if (!saved || m->from.foreign || saved->created_ns != c->created_ns || saved->committed != m->from.committed ||
	    !prefix_share_end(&c->prefix, &saved->prefix, saved->committed))
		s->prefix.late = true;
	m->params = NULL;
	memset(m->segment, 0, m->from.segment_count * sizeof(struct segment *));
	return 0;
}

int making_finish(struct making *m, char *why)
{
	int status = check_segments(m, why); // reads the records and the frames, not the rows
	if (!status) {
		store_lock(m->store);
		status = announce(m, why);
		store_unlock(m->store);
	}
	making_cancel(m);
	return status;
}

// Lock held: who pays, and what is shared. The memory of the others goes back without it.
static void give_charges(struct making *m)
{
	if (m->account)
		account_sub(m->store, &m->from.identity, m->held);
	for (uint32_t i = 0; m->segment && i < m->from.segment_count; i++) {
		struct segment *seg = m->segment[i];
		if (!seg)
			continue;
		charge_release(m->store, &seg->charge, &m->from.identity);
		if (m->shared[i]) {
			segment_put(m->store, seg);
			m->segment[i] = NULL;
		}
	}
}

static void give_segment(struct making *m, struct segment *seg)
{
	struct book_sink sink = {.sink = {book_put}, .m = m, .free = true};
	if (!seg)
		return;
	if (seg->record)
		segment_extents(m->store->pool, seg, &sink.sink);
	segment_free(seg);
}

static void give_params(struct making *m)
{
	struct params *p = m->params;
	if (!p)
		return;
	if (charge_has(&p->charge, party_user(m->from.identity.uid)))
		charge_release(m->store, &p->charge, &m->from.identity);
	if (!p->offset) { // was not allocated
		charge_fini(&p->charge);
		free(p);
		return;
	}
	m->store->metadata_bytes += m->own.count ? p->bytes : 0; // params_put takes it off
	params_put(m->store, p);
}

void making_cancel(struct making *m)
{
	if (!m)
		return;
	store_lock(m->store);
	give_charges(m);
	give_params(m);
	store_unlock(m->store);
	for (uint32_t i = 0; m->segment && i < m->from.segment_count; i++)
		give_segment(m, m->segment[i]);
	for (uint32_t i = 0; m->extents && i < m->from.segment_count; i++)
		extents_fini(&m->extents[i]);
	extents_fini(&m->own);
	image_context_free(&m->from);
	spec_unref(m->spec);
	free(m->segment);
	free(m->shared);
	free(m->extents);
	free(m);
}
