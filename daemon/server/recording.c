#include "daemon/server/recording.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "shm/region.h"
#include "shm/status.h"

struct recordings *recordings_create(void)
{
	struct recordings *all = aligned_alloc(64, sizeof *all);
	if (all)
		memset(all, 0, sizeof *all);
	for (uint32_t i = 0; all && i < RECORDINGS; i++)
		pthread_mutex_init(&all->recording[i].lock, NULL);
	return all;
}

void recordings_destroy(struct recordings *all)
{
	if (!all)
		return;
	for (uint32_t i = 0; i < RECORDINGS; i++) {
		if (all->recording[i].shared)
			munmap(all->recording[i].shared, sizeof(struct mpig_trace_ring) + all->recording[i].ring_bytes);
		pthread_mutex_destroy(&all->recording[i].lock);
	}
	free(all);
}

// ---- the control thread ----------------------------------------------------------------------------------------------
static struct recording *find_room(struct recordings *all, const struct recording_wish *wish, int *status, char *why)
{
	struct recording *room = NULL;
	uint32_t theirs = 0;
	for (uint32_t i = 0; i < RECORDINGS; i++) {
		struct recording *r = &all->recording[i];
		if (r->shared && atomic_load_explicit(&r->context, memory_order_relaxed) == wish->context) {
			snprintf(why, MPIG_TEXT_BYTES, "its queries are being recorded already; one recorder at a time");
			*status = MPIG_EBUSY;
			return NULL;
		}
		theirs += r->shared && r->uid == wish->uid;
		if (!r->shared)
			room = r;
	}
	if (!wish->admin && theirs >= RECORDINGS_OF_A_USER) {
		snprintf(why, MPIG_TEXT_BYTES, "uid %u records %u contexts, as many as one user may at a time: stop one",
		         wish->uid, theirs);
		*status = MPIG_ELIMIT;
		return NULL;
	}
	if (!room) {
		snprintf(why, MPIG_TEXT_BYTES, "the daemon records %u contexts at a time, its limit", RECORDINGS);
		*status = MPIG_ELIMIT;
	}
	return room;
}

int recordings_start(struct recordings *all, const struct recording_wish *wish, uint32_t *number, uint64_t *began_ns, int *fd,
                     char *why)
{
	int status = MPIG_OK, region;
	uint64_t bytes = sizeof(struct mpig_trace_ring) + wish->ring_bytes;
	struct recording *r = find_room(all, wish, &status, why);
	if (!r)
		return status;
	void *base;
	status = mpig_region_create("magicpig-trace", bytes, &region);
	if (status == MPIG_OK && (status = mpig_region_map(region, bytes, 1, &base)) != MPIG_OK)
		close(region);
	if (status != MPIG_OK) {
		snprintf(why, MPIG_TEXT_BYTES, "no memory for a ring of %llu bytes", (unsigned long long)wish->ring_bytes);
		return MPIG_ENOMEM;
	}
	struct mpig_trace_ring *shared = base;
	*shared = (struct mpig_trace_ring){.magic = MPIG_TRACE_MAGIC,
	                                   .version = MPIG_TRACE_VERSION,
	                                   .region_bytes = bytes,
	                                   .ring_bytes = wish->ring_bytes,
	                                   .began_ns = real_ns(),
	                                   .context_id = wish->context};
	pthread_mutex_lock(&r->lock);
	r->client = wish->client;
	r->uid = wish->uid;
	r->number = ++all->next_number;
	snprintf(r->name, sizeof r->name, "%s", wish->name);
	r->shared = shared;
	r->ring_bytes = wish->ring_bytes;
	r->began_ns = mono_ns();
	r->tail = r->head = r->answers = r->lost = r->too_long = 0;
	atomic_store_explicit(&r->context, wish->context, memory_order_relaxed);
	pthread_mutex_unlock(&r->lock);
	atomic_fetch_add_explicit(&all->active, 1, memory_order_relaxed); // the lock orders the rest
	*number = r->number;
	*began_ns = shared->began_ns;
	*fd = region;
	return MPIG_OK;
}

// Under its lock: nothing more is written. Told once.
static void end(struct recordings *all, struct recording *r, enum mpig_trace_ended why)
{
	if (!atomic_load_explicit(&r->context, memory_order_relaxed))
		return;
	atomic_store_explicit(&r->context, 0, memory_order_relaxed);
	atomic_fetch_sub_explicit(&all->active, 1, memory_order_relaxed);
	__atomic_store_n(&r->shared->ended, why, __ATOMIC_RELEASE); // partner: the recorder's look after an empty ring
}

uint64_t recordings_stop(struct recordings *all, uint64_t client, uint32_t number, enum mpig_trace_ended why, void **base)
{
	for (uint32_t i = 0; i < RECORDINGS; i++) {
		struct recording *r = &all->recording[i];
		if (!r->shared || r->client != client || (number && r->number != number))
			continue;
		pthread_mutex_lock(&r->lock);
		*base = r->shared;
		end(all, r, why);
		r->shared = NULL;
		pthread_mutex_unlock(&r->lock);
		return sizeof(struct mpig_trace_ring) + r->ring_bytes;
	}
	return 0;
}

void recordings_revoke(struct recordings *all, const char *name)
{
	for (uint32_t i = 0; i < RECORDINGS; i++) {
		struct recording *r = &all->recording[i];
		if (!r->shared || strcmp(r->name, name) != 0)
			continue;
		pthread_mutex_lock(&r->lock);
		end(all, r, MPIG_TRACE_REVOKED);
		pthread_mutex_unlock(&r->lock);
	}
}

void recordings_ask_again(struct recordings *all, recording_may_fn *may, void *arg)
{
	for (uint32_t i = 0; i < RECORDINGS; i++) {
		struct recording *r = &all->recording[i];
		if (!r->shared || may(arg, r->client, r->name))
			continue;
		pthread_mutex_lock(&r->lock);
		end(all, r, MPIG_TRACE_REVOKED);
		pthread_mutex_unlock(&r->lock);
	}
}

bool recordings_of(const struct recordings *all, uint64_t context)
{
	for (uint32_t i = 0; recordings_any(all) && i < RECORDINGS; i++)
		if (atomic_load_explicit(&all->recording[i].context, memory_order_relaxed) == context)
			return true;
	return false;
}

// ---- workers ---------------------------------------------------------------------------------------------------------
static uint8_t *place(const struct recording *r, uint64_t at)
{
	return (uint8_t *)(r->shared + 1) + at % r->ring_bytes;
}

// Room for `bytes` in one piece, behind a pad where they would go over the ring's end. NULL: not now, or the ring is broken.
static uint8_t *reserve(struct recordings *all, struct recording *r, uint64_t bytes)
{
	uint64_t left = r->ring_bytes - r->tail % r->ring_bytes, pad = left < bytes ? left : 0;
	if (r->ring_bytes - (r->tail - r->head) < pad + bytes) {
		uint64_t peer_head = __atomic_load_n(&r->shared->head, __ATOMIC_ACQUIRE); // partner: the recorder is done reading
		if (peer_head < r->head || peer_head > r->tail) {
			end(all, r, MPIG_TRACE_BROKEN);
			return NULL;
		}
		r->head = peer_head;
		if (r->ring_bytes - (r->tail - r->head) < pad + bytes)
			return NULL;
	}
	if (pad) {
		struct mpig_trace_head head = {.magic = MPIG_TRACE_RECORD_MAGIC, .kind = MPIG_TRACE_PAD, .bytes = pad};
		memcpy(place(r, r->tail), &head, sizeof head);
		r->tail += pad;
	}
	return place(r, r->tail);
}

static void fill(const struct recording *r, const struct task *t, const struct mpig_cqe *cqe, const struct job_query *query,
                 const struct mpig_trace_layout *layout, uint32_t present, uint8_t *at)
{
	const struct mpig_sqe *e = &t->entry;
	const struct mpig_slot_header *h = query->slot;
	struct mpig_trace_record record = {
		.head = {.magic = MPIG_TRACE_RECORD_MAGIC, .kind = MPIG_TRACE_QUERY, .bytes = layout->bytes},
		.number = r->answers,
		.taken_ns = t->taken_ns > r->began_ns ? t->taken_ns - r->began_ns : 0,
		.service_ns = cqe->service_ns,
		.rows_read = cqe->rows_read,
		.bytes_read = cqe->bytes_read,
		.committed = cqe->committed,
		.begin = query->begin,
		.end = query->end,
		.causal_base = e->flags & MPIG_SQE_CAUSAL ? h->causal_base : 0,
		.query_position = h->query_position,
		.seed = query->seed,
		.client = t->queue->client,
		.queue = t->queue->id,
		.tokens = e->count,
		.budget = e->budget,
		.error_target = h->error_target,
		.budget_floor = h->budget_floor,
		.budget_cap = h->budget_cap,
		.delta = h->delta,
		.present = present,
		.layer = e->layer,
		.proposal = e->proposal,
		.dtype = MPIG_F32,
		.asked_dtype = e->dtype,
		.flags = e->flags & MPIG_SQE_CAUSAL,
		.signature_version = cqe->signature_version,
		.units = cqe->units,
	};
	memcpy(at, &record, sizeof record);
	job_query_copy(t->job, (float *)(void *)(at + layout->q), (float *)(void *)(at + layout->window_lse),
	               (float *)(void *)(at + layout->window_out));
}

static void note(struct recordings *all, struct recording *r, const struct task *t, const struct mpig_cqe *cqe)
{
	struct job_query query;
	if (!job_query(t->job, &query))
		return;
	uint32_t present = (query.window_lse ? MPIG_HAS_WINDOW_LSE : 0u) | (query.window_out ? MPIG_HAS_WINDOW_OUT : 0u);
	struct mpig_trace_layout layout = mpig_trace_layout(&query.shape, t->entry.count, MPIG_F32, present);
	uint8_t *at = layout.bytes <= r->ring_bytes / 4 ? reserve(all, r, layout.bytes) : NULL;
	if (at)
		fill(r, t, cqe, &query, &layout, present | (query.slot->present & MPIG_HAS_SIGNATURE), at);
	r->answers++;
	r->lost += !at;
	r->too_long += layout.bytes > r->ring_bytes / 4;
	__atomic_store_n(&r->shared->answers, r->answers, __ATOMIC_RELAXED);
	__atomic_store_n(&r->shared->lost, r->lost, __ATOMIC_RELAXED);
	__atomic_store_n(&r->shared->too_long, r->too_long, __ATOMIC_RELAXED);
	if (at)
		r->tail += layout.bytes;
	__atomic_store_n(&r->shared->tail, r->tail, __ATOMIC_RELEASE); // partner: the recorder's acquire
}

void recordings_note(struct recordings *all, const struct task *t, const struct mpig_cqe *cqe)
{
	uint64_t context = context_id(t->binding->context);
	for (uint32_t i = 0; i < RECORDINGS; i++) {
		struct recording *r = &all->recording[i];
		if (atomic_load_explicit(&r->context, memory_order_relaxed) != context)
			continue;
		pthread_mutex_lock(&r->lock);
		if (atomic_load_explicit(&r->context, memory_order_relaxed) == context) // the lock orders the rest
			note(all, r, t, cqe);
		pthread_mutex_unlock(&r->lock);
	}
}
