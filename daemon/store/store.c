#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "daemon/store/image.h"
#include "daemon/store/internal.h"

int refuse(char *why, int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, MPIG_TEXT_BYTES, format, args);
	va_end(args);
	return status;
}

uint64_t store_now(const struct store *s)
{
	if (s->options.now_ns)
		return s->options.now_ns();
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct store *store_new(const struct store_options *options)
{
	struct store *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	s->pool = options->pool;
	s->options = *options;
	s->options.checksum = options->checksum ? options->checksum : XXH3_64bits;
	s->next_id = 1;
	s->metadata_bytes = pool_used(options->pool);
	pthread_mutex_init(&s->lock, NULL);
	return s;
}

int store_create(const struct store_options *options, struct store **out)
{
	const struct superblock *sb = pool_superblock(options->pool);
	const uint64_t *table = pool_at(options->pool, sb->contexts_offset);
	for (uint32_t i = 0; i < sb->contexts_max; i++)
		if (table[i])
			return MPIG_ENOTSUP; // its free map has to be derived first: store_attach
	struct store *s = store_new(options);
	if (!s)
		return MPIG_ENOMEM;
	*out = s;
	return 0;
}

// The pool keeps what it holds; only the private mirror goes.
void store_destroy(struct store *s)
{
	if (!s)
		return;
	store_lock(s);
	for (size_t i = 0; i < s->count; i++)
		context_collect(s, s->context[i]);
	store_unlock(s);
	for (struct changed_policy ignored; s->changed;)
		(void)store_next_changed_policy(s, &ignored);
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		prefix_cut(s, c, 0);
		struct snapshot *snap = atomic_load(&c->snapshot);
		for (uint32_t k = 0; k < snap->count; k++) {
			struct segment *seg = snap->ref[k].segment;
			if (--seg->refs)
				continue;
			segment_free(seg);
		}
		free(snap);
		struct params *p = atomic_load(&c->params);
		if (p && !--p->refs) {
			charge_fini(&p->charge);
			free(p);
		}
		atomic_store(&c->snapshot, NULL);
		atomic_store(&c->params, NULL);
		atomic_store(&c->dropped, true);
		context_unref(c);
	}
	saved_free_all(s);
	prefix_close(s);
	free(s->context);
	free(s->account);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

// ---- the lock, and what is destroyed after it ------------------------------------------------------------------------

void store_lock(struct store *s)
{
	pthread_mutex_lock(&s->lock);
}

// Memory goes back to the machine outside the lock: punching gigabytes takes a while.
void store_unlock(struct store *s)
{
	struct garbage *g = s->dead;
	s->dead = NULL;
	pthread_mutex_unlock(&s->lock);
	while (g) {
		struct garbage *next = g->next;
		g->destroy(s, g);
		g = next;
	}
}

void store_bury(struct store *s, struct garbage *g)
{
	g->next = s->dead;
	s->dead = g;
}

// ---- pins ------------------------------------------------------------------------------------------------------------

uint64_t context_pin(struct context *c)
{
	for (;;) {
		uint64_t e = atomic_load(&c->epoch);
		atomic_fetch_add(&c->pins[e & 1], 1); // R0
		if (atomic_load(&c->epoch) == e)      // R1
			return e;
		context_unpin(c, e);
	}
}

// The caller holds a reference beyond this call.
void context_unpin(struct context *c, uint64_t epoch)
{
	if (atomic_fetch_sub(&c->pins[epoch & 1], 1) == 1 && atomic_load(&c->retired)) { // R3
		store_lock(c->store);
		context_collect(c->store, c);
		store_unlock(c->store);
	}
}

void context_unpin_locked(struct context *c, uint64_t epoch)
{
	atomic_fetch_sub(&c->pins[epoch & 1], 1);
}

void context_retire(struct store *s, struct context *c, struct garbage *g)
{
	struct garbage **list = &c->garbage[atomic_load(&c->epoch) & 1];
	g->next = *list;
	*list = g; // P1
	atomic_store(&c->retired, true);
	context_collect(s, c);
}

static void settle_all(struct store *s, struct garbage **list)
{
	struct garbage *g = *list;
	*list = NULL;
	while (g) {
		struct garbage *next = g->next;
		g->settle(s, g);
		g = next;
	}
}

void context_collect(struct store *s, struct context *c)
{
	for (;;) {
		uint64_t e = atomic_load(&c->epoch);
		if (atomic_load(&c->pins[(e + 1) & 1]))
			return;
		settle_all(s, &c->garbage[(e + 1) & 1]); // P3
		if (!c->garbage[e & 1]) {
			atomic_store(&c->retired, false);
			return;
		}
		atomic_store(&c->epoch, e + 1); // P2
	}
}

// The writer's pin: from a reservation to its end, so that nobody's drop takes the memory from under its stores.
void writer_enter(struct context *c)
{
	if (atomic_load(&c->writing))
		return;
	c->write_epoch = context_pin(c);
	atomic_store(&c->writing, true);
}

void writer_leave(struct store *s, struct context *c)
{
	if (!atomic_exchange(&c->writing, false))
		return;
	context_unpin_locked(c, c->write_epoch);
	context_collect(s, c);
}

// ---- references and small accessors ----------------------------------------------------------------------------------

void context_ref(struct context *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
}

void context_unref(struct context *c)
{
	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (c->private_release)
		c->private_release(c->private_data);
	for (uint32_t i = 0; i < COMPANIONS; i++)
		if (c->companion[i].release)
			c->companion[i].release(c->companion[i].data);
	spec_unref(c->spec);
	free(c->rows);
	free(c->damage);
	free(c);
}

const struct layer *context_layer(const struct context *c, uint32_t layer)
{
	if (layer >= c->spec->layer_count || c->spec->layer[layer].wire.kind != MPIG_LAYER_GLOBAL)
		return NULL;
	return &c->spec->layer[layer];
}

const struct mpig_wire_layer *context_spec_layer(const struct context *c, uint32_t layer)
{
	return layer < c->spec->layer_count ? &c->spec->layer[layer].wire : NULL;
}

uint32_t context_layer_count(const struct context *c)
{
	return c->spec->layer_count;
}
uint32_t context_strips(const struct context *c)
{
	return c->spec->strips;
}
uint64_t context_committed(const struct context *c)
{
	return atomic_load_explicit(&c->committed, memory_order_acquire);
}
uint64_t context_seed(const struct context *c)
{
	return c->seed;
}
uint64_t context_id(const struct context *c)
{
	return c->id;
}
const uint8_t *context_fingerprint(const struct context *c)
{
	return c->fingerprint;
}

uint32_t context_owner(const struct context *c)
{
	return c->identity.uid;
}
bool context_dropped(const struct context *c)
{
	return atomic_load_explicit(&c->dropped, memory_order_acquire);
}
uint32_t context_signature_version(const struct context *c)
{
	return atomic_load_explicit(&c->signature_version, memory_order_acquire);
}
uint32_t context_strip_bits(struct context *c, uint32_t strip)
{
	uint64_t epoch = context_pin(c);
	const struct params *p = atomic_load(&c->params);
	uint32_t bits = 0;
	if (p && !context_dropped(c) && strip < c->spec->strips)
		bits = params_bits(pool_at(c->store->pool, p->offset))[strip];
	context_unpin(c, epoch);
	return bits;
}
void *context_private(const struct context *c)
{
	return c->private_data;
}

void context_private_set(struct context *c, void *data, void (*release)(void *data))
{
	if (c->private_release && c->private_data != data)
		c->private_release(c->private_data);
	c->private_data = data;
	c->private_release = release;
}

void *context_companion(const struct context *c, enum companion which)
{
	return atomic_load_explicit(&c->companion[which].data, memory_order_acquire);
}

bool context_companion_set(struct context *c, enum companion which, void *data, void (*release)(void *data))
{
	void *none = NULL;
	if (!atomic_compare_exchange_strong_explicit(&c->companion[which].data, &none, data, memory_order_acq_rel,
	                                             memory_order_acquire))
		return false;
	c->companion[which].release = release;
	return true;
}

int context_alive(const struct context *c, char *why)
{
	return context_dropped(c) ? refuse(why, MPIG_ENOENT, "context '%s' has been dropped", c->name) : 0;
}

void store_totals(struct store *s, struct store_totals *out)
{
	store_lock(s);
	*out = (struct store_totals){.contexts = s->count, .metadata_bytes = s->metadata_bytes};
	store_unlock(s);
}
