// Contexts as things with a name: made, found, listed. What changes them is in owner.c.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "daemon/store/internal.h"

// ---- names -----------------------------------------------------------------------------------------------------------

uint32_t name_bucket(const char *name)
{
	return (uint32_t)(XXH3_64bits(name, strlen(name)) % NAME_BUCKETS);
}

struct context *name_find(const struct store *s, const char *name)
{
	if (strnlen(name, MPIG_NAME_BYTES) == MPIG_NAME_BYTES)
		return NULL;
	struct context *c = s->by_name[name_bucket(name)];
	while (c && strcmp(c->name, name))
		c = c->name_next;
	return c;
}

int name_valid(const char *name, const char *field, char *why)
{
	size_t n = strnlen(name, MPIG_NAME_BYTES);
	if (n < 1 || n >= MPIG_NAME_BYTES)
		return refuse(why, MPIG_EINVAL, "%s: must be 1 to %u bytes long", field, MPIG_NAME_BYTES - 1);
	for (size_t i = 0; i < n; i++)
		if (name[i] < 0x20 || name[i] > 0x7e || name[i] == '/')
			return refuse(why, MPIG_EINVAL, "%s: byte %zu is 0x%02x, must be printable ASCII and not '/'", field, i,
			              (unsigned char)name[i]);
	if (!strcmp(name, ".") || !strcmp(name, ".."))
		return refuse(why, MPIG_EINVAL, "%s: '%s' is not a name", field, name);
	return 0;
}

int name_check(const struct store *s, const char *name, const char *field, char *why)
{
	int status = name_valid(name, field, why);
	if (!status && name_find(s, name))
		return refuse(why, MPIG_EEXIST, "a context named '%s' exists: drop it, or choose another name", name);
	return status;
}

int context_lookup(const struct store *s, const struct credentials *who, const char *name, enum access want, struct context **out,
                   char *why)
{
	struct context *c = name_find(s, name);
	if (!c)
		return refuse(why, MPIG_ENOENT, "no context is named '%.*s'", (int)MPIG_NAME_BYTES - 1, name);
	if (!access_check(&c->identity, who, want))
		return refuse(why, MPIG_EACCES, "context '%s' belongs to uid %u, mode %04o: uid %u may not %s it", c->name,
		              c->identity.uid, c->identity.mode, who->uid,
		              want == ACCESS_OWN     ? "change or drop"
		              : want == ACCESS_WRITE ? "write"
		                                     : "read");
	*out = c;
	return 0;
}

int context_find(const struct store *s, const struct credentials *who, const char *name, enum access want, struct context **out,
                 char *why)
{
	struct context *c;
	int status = context_lookup(s, who, name, want, &c, why);
	if (!status && c->damage)
		return refuse(why, MPIG_ECORRUPT, "context '%s' is quarantined and can only be dropped: %s", c->name, c->damage);
	if (!status)
		*out = c;
	return status;
}

int store_context_access(struct store *s, const struct credentials *who, const char *name, enum access want, char *why)
{
	struct context *c;
	store_lock(s);
	int status = context_lookup(s, who, name, want, &c, why);
	store_unlock(s);
	return status;
}

// ---- making ----------------------------------------------------------------------------------------------------------

uint64_t spec_bytes(const struct spec *spec)
{
	return pool_round(sizeof(struct record_header) + (uint64_t)spec->layer_count * sizeof(struct mpig_wire_layer));
}

uint64_t context_own_bytes(const struct context *c)
{
	return c->fixed_bytes + atomic_load(&c->snapshot)->list_bytes;
}

static int free_table_slot(const struct store *s, uint32_t *slot)
{
	const struct superblock *sb = pool_superblock(s->pool);
	const uint64_t *table = pool_at(s->pool, sb->contexts_offset);
	for (uint32_t i = 0; i < sb->contexts_max; i++) {
		*slot = (s->next_slot + i) % sb->contexts_max;
		if (!table[*slot])
			return 0;
	}
	return MPIG_ELIMIT;
}

static int room_for_one_more(struct store *s)
{
	if (s->count < s->capacity)
		return 0;
	size_t capacity = s->capacity ? 2 * s->capacity : 64;
	struct context **context = realloc(s->context, capacity * sizeof(struct context *));
	if (!context)
		return MPIG_ENOMEM;
	s->context = context;
	s->capacity = capacity;
	return 0;
}

static struct context *context_new(struct store *s, const struct context_draft *draft, struct spec *spec)
{
	struct context *c = aligned_alloc(_Alignof(struct context), sizeof *c);
	if (!c)
		return NULL;
	memset(c, 0, sizeof *c);
	c->rows = calloc(spec->layer_count, sizeof *c->rows);
	struct snapshot *snap = snapshot_new(draft->segment_count);
	if (!c->rows || !snap) {
		free(c->rows);
		free(snap);
		free(c);
		return NULL;
	}
	c->store = s;
	c->refs = 1;
	c->spec = spec;
	atomic_fetch_add(&spec->refs, 1);
	c->identity = draft->identity;
	c->policy = draft->policy;
	c->id = s->next_id++;
	c->parent_id = draft->parent_id;
	c->fork_tokens = draft->fork_tokens;
	c->created_ns = store_now(s);
	c->used_ns = c->created_ns;
	c->seed = draft->seed;
	memcpy(c->name, draft->name, strlen(draft->name));
	memcpy(c->fingerprint, draft->fingerprint, sizeof c->fingerprint);
	atomic_init(&c->snapshot, snap);
	return c;
}

int context_build(struct store *s, const struct context_draft *draft, struct spec *spec, struct context **out, char *why)
{
	uint64_t record = pool_round(sizeof(struct context_record)), specs = spec_bytes(spec);
	uint64_t list = draft->segment_count ? list_bytes(draft->segment_count) : 0;
	const struct identity *owner = &draft->identity;
	struct need need = draft->more;
	need.user_bytes += record + specs + list;
	need.group_bytes += record + specs + list;
	need.user_contexts = need.group_contexts = 1;
	uint32_t slot;
	int status = quota_admit_need(s, owner, &need, why);
	if (status)
		return status;
	if (free_table_slot(s, &slot))
		return refuse(why, MPIG_ELIMIT, "the pool holds its limit of %u contexts: drop some first", POOL_MAX_CONTEXTS);
	struct context *c = NULL;
	struct extents x = {0};
	if (account_open(s, owner) || room_for_one_more(s) || extents_want(&x, record, 0) || extents_want(&x, specs, 0) ||
	    (list && extents_want(&x, list, 0)) || !(c = context_new(s, draft, spec))) {
		extents_fini(&x);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory for another context");
	}
	status = extents_alloc(s, &x, why);
	if (status) {
		extents_fini(&x);
		free(atomic_load(&c->snapshot));
		context_unref(c);
		return status;
	}
	struct snapshot *snap = atomic_load(&c->snapshot);
	c->table_slot = slot;
	c->offset = extents_next(&x);
	c->record = pool_at(s->pool, c->offset);
	c->record->spec_offset = c->spec_offset = extents_next(&x);
	snap->list_offset = list ? extents_next(&x) : 0;
	snap->list_bytes = list;
	c->fixed_bytes = record + specs;
	account_add(s, owner, context_own_bytes(c));
	account_contexts(s, owner, 1);
	s->metadata_bytes += context_own_bytes(c);
	extents_fini(&x);
	*out = c;
	return 0;
}

void context_free_records(struct store *s, const struct context *c, const struct snapshot *snap)
{
	if (c->spec_offset)
		pool_free(s->pool, c->spec_offset, spec_bytes(c->spec));
	pool_free(s->pool, c->offset, pool_round(sizeof(struct context_record)));
	if (snap->list_offset)
		pool_free(s->pool, snap->list_offset, snap->list_bytes);
}

void context_discard(struct store *s, struct context *c)
{
	struct snapshot *snap = atomic_load(&c->snapshot);
	account_sub(s, &c->identity, context_own_bytes(c));
	account_contexts(s, &c->identity, -1);
	s->metadata_bytes -= context_own_bytes(c);
	context_free_records(s, c, snap);
	free(snap);
	context_unref(c);
}

void context_announce(struct store *s, struct context *c)
{
	struct snapshot *snap = atomic_load(&c->snapshot);
	struct record_header *spec = pool_at(s->pool, c->record->spec_offset);
	record_init(spec, RECORD_SPEC, spec_bytes(c->spec));
	struct mpig_wire_layer *wire = (struct mpig_wire_layer *)(void *)(spec + 1);
	for (uint32_t i = 0; i < c->spec->layer_count; i++)
		wire[i] = c->spec->layer[i].wire;
	spec->checksum = record_checksum(spec, sizeof *spec + c->spec->layer_count * sizeof *wire);
	if (snap->list_offset)
		fill_list(s, snap->list_offset, snap);

	struct context_record *r = c->record;
	record_init(&r->header, RECORD_CONTEXT, pool_round(sizeof *r));
	r->id = c->id;
	r->parent_id = c->parent_id;
	r->fork_tokens = c->fork_tokens;
	r->created_ns = c->created_ns;
	r->seed = c->seed;
	memcpy(r->name, c->name, sizeof r->name);
	memcpy(r->fingerprint, c->fingerprint, sizeof r->fingerprint);
	r->layer_count = c->spec->layer_count;
	r->header.checksum = record_checksum(r, offsetof(struct context_record, state));
	r->state = CONTEXT_LIVE;
	r->committed = atomic_load(&c->committed);
	struct context_slot slot;
	slot_fill(c, snap, &slot);
	slot_publish(s->pool, r, &slot);
	uint64_t *table = pool_at(s->pool, pool_superblock(s->pool)->contexts_offset);
	pool_publish_word(s->pool, &table[c->table_slot], c->offset);

	s->next_slot = c->table_slot + 1;
	s->context[s->count++] = c;
	struct context **chain = &s->by_name[name_bucket(c->name)];
	c->name_next = *chain;
	*chain = c;
	struct saved *saved = saved_find(s, c->name);
	if (saved)
		saved->in_memory = true;
}

static int check_expected(const struct store *s, const struct identity *owner, const struct spec *spec, uint64_t tokens,
                          char *why)
{
	uint64_t bytes, room = pool_bytes(s->pool) - pool_used(s->pool);
	if (tokens > MPIG_MAX_TOKENS || __builtin_mul_overflow(tokens, spec->token_bytes, &bytes))
		return refuse(why, MPIG_EINVAL, "expected_tokens is %" PRIu64 ", must be at most %" PRIu64, tokens,
		              MPIG_MAX_TOKENS);
	if (bytes > room)
		return refuse(why, MPIG_ENOSPC,
		              "expected_tokens is %" PRIu64 ", which takes %" PRIu64 " MiB; the pool has %" PRIu64
		              " MiB free: drop contexts, or give the daemon a larger pool",
		              tokens, bytes >> 20, room >> 20);
	return quota_admit(s, owner, bytes, 1, why);
}

static uint64_t random_seed(const struct store *s)
{
	uint64_t seed = 0;
	if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed)
		seed = store_now(s) * UINT64_C(0x9e3779b97f4a7c15);
	return seed ? seed : 1;
}

int store_context_create(struct store *s, const struct credentials *who, const struct mpig_ctl_create *body,
                         const struct mpig_wire_layer *layers, struct context **context, char *why)
{
	if (body->mode > 0777)
		return refuse(why, MPIG_EINVAL, "mode is %#o, must be at most 0777", body->mode);
	struct spec *spec;
	int status = policy_check(&body->policy, why);
	if (!status)
		status = spec_create(layers, body->layer_count, &spec, why);
	if (status)
		return status;
	struct context_draft draft = {
		.name = body->name,
		.fingerprint = (const uint8_t *)body->fingerprint,
		.identity = {who->uid, who->gid, body->mode ? body->mode : 0600},
		.policy = body->policy,
		.seed = body->seed ? body->seed : random_seed(s),
	};
	struct context *c;
	store_lock(s);
	status = name_check(s, body->name, "name", why);
	if (!status)
		status = check_expected(s, &draft.identity, spec, body->expected_tokens, why);
	if (!status)
		status = context_build(s, &draft, spec, &c, why);
	if (!status) {
		context_announce(s, c);
		context_ref(c);
		*context = c;
	}
	store_unlock(s);
	spec_unref(spec);
	return status;
}

// ---- opening, listing ------------------------------------------------------------------------------------------------

int store_context_open(struct store *s, const struct credentials *who, const char *name, const uint8_t fingerprint[64],
                       struct context **context, char *why)
{
	static const uint8_t any[64];
	struct context *c;
	store_lock(s);
	int status = context_find(s, who, name, ACCESS_READ, &c, why);
	if (!status && fingerprint && memcmp(fingerprint, any, sizeof any) && memcmp(fingerprint, c->fingerprint, sizeof any))
		status = refuse(why, MPIG_EINVAL,
		                "context '%s' has another fingerprint: it was built by another model, adapter, tokenizer or "
		                "RoPE setting",
		                c->name);
	if (!status) {
		context_ref(c);
		*context = c;
	}
	store_unlock(s);
	return status;
}

static void fill_info(const struct context *c, struct mpig_wire_context *out)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	*out = (struct mpig_wire_context){
		.id = c->id,
		.committed = context_committed(c),
		.created_ns = c->created_ns,
		.used_ns = atomic_load(&c->used_ns),
		.parent_id = c->parent_id,
		.fork_tokens = c->fork_tokens,
		.seed = c->seed,
		.uid = c->identity.uid,
		.gid = c->identity.gid,
		.mode = c->identity.mode,
		.layer_count = c->spec->layer_count,
		.global_layers = c->spec->global_layers,
		.segments = snap->count,
		.signature_version = context_signature_version(c),
		.metadata_bytes = context_own_bytes(c),
		.writer_pid = atomic_load(&c->holder) ? c->writer_pid : 0,
		.flags = c->damage ? MPIG_CONTEXT_QUARANTINED : 0,
	};
	out->flags |= context_pinned(c->store, c) ? MPIG_CONTEXT_PINNED : 0;
	out->policy = c->policy;
	if (context_is_saved(c))
		out->flags |= MPIG_CONTEXT_SAVED;
	memcpy(out->name, c->name, sizeof out->name);
	memcpy(out->fingerprint, c->fingerprint, sizeof out->fingerprint);
	const struct params *p = atomic_load(&c->params);
	out->index_bytes = p ? p->bytes : 0;
	out->shared_bytes = p && p->refs > 1 ? p->bytes : 0;
	for (uint32_t i = 0; i < snap->count; i++) {
		const struct segment *seg = snap->ref[i].segment;
		out->rows_bytes += seg->rows_bytes;
		out->index_bytes += seg->index_bytes;
		out->metadata_bytes += seg->metadata_bytes;
		if (seg->refs > 1)
			out->shared_bytes += segment_bytes(seg);
		if (seg->record->sealed_rows && p && generation_slot(seg->record, p->offset) < GENERATIONS)
			out->indexed += ref_rows(c, snap, i);
	}
	uint64_t refs = atomic_load(&c->refs), pins = atomic_load(&c->pins[0]) + atomic_load(&c->pins[1]) - c->writing;
	out->readers = refs > 1 + pins ? (uint32_t)(refs - 1 - pins) : 0;
}

void store_context_info(struct store *s, struct context *c, struct mpig_wire_context *out)
{
	store_lock(s);
	if (context_dropped(c)) {
		*out = (struct mpig_wire_context){.id = c->id};
		memcpy(out->name, c->name, sizeof out->name);
	} else {
		fill_info(c, out);
	}
	store_unlock(s);
}

uint32_t store_context_list(struct store *s, const struct credentials *who, uint64_t *cursor, struct mpig_wire_context *out,
                            uint32_t max)
{
	uint32_t n = 0;
	uint64_t last = 0;
	store_lock(s);
	size_t lo = 0, hi = s->count;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (s->context[mid]->id <= *cursor)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < s->count; lo++) {
		if (!access_check(&s->context[lo]->identity, who, ACCESS_READ))
			continue;
		if (n == max)
			break;
		fill_info(s->context[lo], &out[n++]);
		last = s->context[lo]->id;
	}
	*cursor = lo < s->count ? last : 0;
	store_unlock(s);
	return n;
}

bool context_may(struct store *s, const struct context *c, const struct credentials *who, enum access want)
{
	store_lock(s);
	bool may = access_check(&c->identity, who, want);
	store_unlock(s);
	return may;
}
