#include "daemon/server/session.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server/places.h"

struct session {
	atomic_uint references;
	pthread_mutex_t lock; // the table; held for a few instructions
	struct binding **table;
	uint32_t size;
};

struct session *session_create(void)
{
	struct session *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	atomic_init(&s->references, 1);
	pthread_mutex_init(&s->lock, NULL);
	return s;
}

struct session *session_ref(struct session *s)
{
	atomic_fetch_add_explicit(&s->references, 1, memory_order_relaxed);
	return s;
}

void session_unref(struct session *s)
{
	if (!s || atomic_fetch_sub_explicit(&s->references, 1, memory_order_acq_rel) != 1)
		return;
	session_unbind_all(s);
	pthread_mutex_destroy(&s->lock);
	free(s->table);
	free(s);
}

static int free_handle_locked(struct session *s, uint32_t handle)
{
	if (handle >= MPIG_MAX_HANDLES)
		return MPIG_ELIMIT;
	return handle < s->size && s->table[handle] ? MPIG_EBUSY : MPIG_OK;
}

static int grow(struct session *s, uint32_t handle)
{
	uint32_t size = s->size ? s->size : 16;
	while (size <= handle)
		size *= 2;
	if (size == s->size)
		return MPIG_OK;
	struct binding **table = realloc(s->table, size * sizeof *table);
	if (!table)
		return MPIG_ENOMEM;
	memset(table + s->size, 0, (size - s->size) * sizeof *table);
	s->table = table;
	s->size = size;
	return MPIG_OK;
}

int session_free_handle(struct session *s, uint32_t handle)
{
	pthread_mutex_lock(&s->lock);
	int status = free_handle_locked(s, handle);
	pthread_mutex_unlock(&s->lock);
	return status;
}

int session_bind(struct session *s, uint32_t handle, struct store *store, struct context *context, uint64_t holder,
                 struct places *places, uint32_t place, struct engine_default *defaults)
{
	struct binding *b = calloc(1, sizeof *b);
	if (!b)
		return MPIG_ENOMEM;
	b->store = store;
	b->context = context;
	b->holder = holder;
	b->places = places;
	b->place = place;
	b->defaults = defaults;
	atomic_init(&b->busy, 1);
	atomic_init(&b->references, 1);
	pthread_mutex_lock(&s->lock);
	int status = free_handle_locked(s, handle);
	if (status == MPIG_OK)
		status = grow(s, handle);
	if (status == MPIG_OK)
		s->table[handle] = b;
	pthread_mutex_unlock(&s->lock);
	if (status != MPIG_OK)
		free(b);
	return status;
}

uint32_t session_count(struct session *s, uint32_t *leases)
{
	uint32_t handles = 0, writing = 0;
	pthread_mutex_lock(&s->lock);
	for (uint32_t handle = 0; handle < s->size; handle++) {
		handles += s->table[handle] != NULL;
		writing += s->table[handle] && s->table[handle]->holder;
	}
	pthread_mutex_unlock(&s->lock);
	*leases = writing;
	return handles;
}

static struct binding *take_out(struct session *s, uint32_t handle)
{
	pthread_mutex_lock(&s->lock);
	struct binding *b = handle < s->size ? s->table[handle] : NULL;
	if (b)
		s->table[handle] = NULL;
	pthread_mutex_unlock(&s->lock);
	return b;
}

int session_unbind(struct session *s, uint32_t handle)
{
	struct binding *b = take_out(s, handle);
	if (!b)
		return MPIG_ENOENT;
	binding_done(b);
	return MPIG_OK;
}

void session_unbind_all(struct session *s)
{
	for (uint32_t handle = 0; handle < s->size; handle++) {
		struct binding *b = take_out(s, handle);
		if (b)
			binding_done(b);
	}
}

struct binding *session_get(struct session *s, uint32_t handle)
{
	pthread_mutex_lock(&s->lock);
	struct binding *b = handle < s->size ? s->table[handle] : NULL;
	if (b) { // its handle counts as busy: neither count can be zero here
		atomic_fetch_add_explicit(&b->busy, 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&b->references, 1, memory_order_relaxed);
	}
	pthread_mutex_unlock(&s->lock);
	return b;
}

bool binding_begin_write(struct binding *b)
{
	return !atomic_exchange_explicit(&b->writing, true, memory_order_acquire);
}

void binding_end_write(struct binding *b)
{
	atomic_store_explicit(&b->writing, false, memory_order_release);
}

void binding_done(struct binding *b)
{
	if (atomic_fetch_sub_explicit(&b->busy, 1, memory_order_acq_rel) != 1)
		return;
	if (b->holder)
		context_release(b->store, b->context, b->holder);
	binding_put(b);
}

void binding_put(struct binding *b)
{
	if (atomic_fetch_sub_explicit(&b->references, 1, memory_order_acq_rel) != 1)
		return;
	context_unref(b->context);
	if (b->places)
		places_leave(b->places, b->place);
	free(b->defaults);
	free(b);
}
