// A queue's region: asking the daemon for one, handing the old one back to the next daemon, giving it up.
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_ENTRIES 64u
#define DEFAULT_SLOT_BYTES (256u * 1024u)
#define DEFAULT_SPIN_US 100u
#define DEFAULT_TIMEOUT_MS 30000
#define ADOPT_AGAIN_NS 1000000

uint64_t queue_deadline(const mpig_queue *q)
{
	return deadline_in(q->timeout_ms);
}

// ---- attaching (client lock held) --------------------------------------------------------------------------------------

static bool same_file(int a, int b)
{
	struct stat x, y;
	return a >= 0 && b >= 0 && fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void region_drop(mpig_queue *q)
{
	if (q->base)
		munmap(q->base, q->header.region_bytes);
	if (q->region_fd >= 0)
		close(q->region_fd);
	q->base = NULL;
	q->region_fd = -1;
}

// Maps what the daemon sent unless it is the region we have, and checks the header it wrote. Takes region_fd over.
static int region_take(mpig_queue *q, const struct mpig_ctl_queue_create *reply, int region_fd)
{
	mpig_client *c = q->client;
	uint64_t bytes;
	int rc = mpig_region_check(region_fd, reply->region_bytes, MPIG_MAX_REGION_BYTES, &bytes);
	if (rc) {
		close(region_fd);
		return error_set(c, MPIG_EPROTO, "the daemon's queue region is not a sealed memfd of %llu bytes",
		                 (unsigned long long)reply->region_bytes);
	}
	void *base = q->base;
	bool adopted = same_file(region_fd, q->region_fd) && bytes == q->header.region_bytes;
	if (!adopted && mpig_region_map(region_fd, bytes, 1, &base)) {
		close(region_fd);
		return error_set(c, MPIG_ENOMEM, "mapping a queue region of %llu bytes failed", (unsigned long long)bytes);
	}
	struct mpig_queue_header header;
	rc = mpig_queue_header_check(base, bytes, &header);
	if (rc == MPIG_OK && header.epoch != c->epoch)
		rc = MPIG_EPROTO;
	if (rc == MPIG_OK && q->flights &&
	    (header.entries != q->header.entries || header.slot_count != q->header.slot_count ||
	     header.slot_bytes != q->header.slot_bytes))
		rc = MPIG_ELIMIT;
	if (rc) {
		if (!adopted)
			munmap(base, bytes);
		close(region_fd);
		return error_set(c, rc, "the queue region the daemon sent does not fit: %s",
		                 rc == MPIG_ELIMIT ? "its entries or slots differ from those of the queue it replaces"
		                                   : mpig_status_text(rc));
	}
	if (adopted) {
		close(region_fd);
	} else {
		region_drop(q);
		q->region_fd = region_fd;
		q->base = base;
	}
	q->header = header;
	q->shared = base;
	return MPIG_OK;
}

static int request_region(mpig_queue *q, bool adopt)
{
	mpig_client *c = q->client;
	struct mpig_ctl_queue_create request = {.entries = q->header.entries,
	                                        .slot_count = q->header.slot_count,
	                                        .slot_bytes = q->header.slot_bytes,
	                                        .adopt = adopt};
	int fds[2];
	int rc =
		client_call(c, MPIG_CTL_QUEUE_CREATE, &request, sizeof(request), adopt ? q->region_fd : -1, sizeof(request), fds);
	if (rc)
		return rc;
	const struct mpig_ctl_queue_create *reply = (const void *)c->reply;
	uint32_t id = reply->queue_id;
	uint64_t connection = atomic_load_explicit(&c->connection, memory_order_relaxed);
	if (fds[0] < 0 || fds[1] < 0) {
		for (int i = 0; i < 2; i++)
			if (fds[i] >= 0)
				close(fds[i]);
		rc = error_set(c, MPIG_EPROTO, "the daemon's answer came without the queue's region and eventfd");
	} else {
		rc = region_take(q, reply, fds[0]);
		if (rc)
			close(fds[1]);
	}
	if (rc) {
		struct mpig_ctl_queue_destroy destroy = {.queue_id = id};
		control_post(c, MPIG_CTL_QUEUE_DESTROY, &destroy, sizeof(destroy));
		return rc;
	}
	if (q->event_fd >= 0)
		close(q->event_fd);
	q->event_fd = fds[1];
	q->id = id;
	q->connection = connection;
	q->suspect = false;
	return MPIG_OK;
}

// Lock held. `old` is the connection under which q was attached before and has not been destroyed, 0 if there is none. MPIG_EAGAIN: requests of
// the queue that had the region of this lent one are still being served.
static int queue_attach(mpig_queue *q, uint64_t old)
{
	mpig_client *c = q->client;
	int rc = client_connected(c);
	if (rc)
		return rc;
	if (old == atomic_load_explicit(&c->connection, memory_order_relaxed)) { // closed by a daemon that lives
		struct mpig_ctl_queue_destroy destroy = {.queue_id = q->id};
		control_exchange(c, MPIG_CTL_QUEUE_DESTROY, &destroy, sizeof(destroy), -1, sizeof(struct mpig_control_header),
		                 NULL);
	}
	bool adopt = q->base && !q->suspect;
	rc = request_region(q, adopt);
	if (rc == MPIG_EAGAIN && q->lent)
		return rc;
	if (rc && adopt && rc != MPIG_ERETRY && rc != MPIG_ETIMEDOUT && rc != MPIG_ENODAEMON) {
		if (q->lent)
			return error_set(c, MPIG_ELOST,
			                 "the daemon does not take over the region of a lent queue: detach it and make another");
		rc = request_region(
			q, false); // a daemon may refuse to adopt; a new region is as good where nobody has registered it
	}
	return rc;
}

static void rings_begin(mpig_queue *q)
{
	mpig_client_rings(q->base, &q->header, &q->sq, &q->cq);
	flights_reset_slots(q);
	q->looked_ns = now_ns();
}

static bool attached(const mpig_queue *q)
{
	if (!q->connection)
		return false;
	bool closed = __atomic_load_n(&q->shared->sq_flags, __ATOMIC_ACQUIRE) & MPIG_SQ_CLOSED;
	closed |= __atomic_load_n(&q->shared->magic, __ATOMIC_RELAXED) == 0; // long ago: the daemon has taken the memory back
	return !closed && q->connection == atomic_load_explicit(&q->client->connection, memory_order_acquire);
}

static int attach_again(mpig_queue *q)
{
	mpig_client *c = q->client;
	uint64_t end = deadline_in(q->timeout_ms);
	flights_fail(q, MPIG_ERETRY);
	pthread_mutex_lock(&c->lock);
	int rc = queue_attach(q, q->attached_before);
	// A daemon that lives may still be serving requests of the queue that had the region, and they write into it. Whoever has registered
	// the region needs it, and waits for them (for others a new one is as good): without the lock, for other threads have other business.
	while (rc == MPIG_EAGAIN && q->lent && now_ns() < end) {
		pthread_mutex_unlock(&c->lock);
		nanosleep(&(struct timespec){.tv_nsec = ADOPT_AGAIN_NS}, NULL);
		pthread_mutex_lock(&c->lock);
		rc = queue_attach(q, 0);
	}
	pthread_mutex_unlock(&c->lock);
	if (rc == MPIG_EAGAIN && q->lent)
		return error_set(
			c, MPIG_ETIMEDOUT,
			"requests that were in flight when this lent queue was closed are still being served: try again");
	if (rc == MPIG_OK)
		rings_begin(q);
	return rc;
}

int queue_ready(mpig_queue *q)
{
	if (client_forked(q->client))
		return MPIG_EFORK;
	if (q->lent)
		return error_set(q->client, MPIG_EBUSY,
		                 "this queue is lent: mpig_queue_take_back (or detaching the GPU) ends that");
	if (attached(q))
		return MPIG_OK;
	flights_reap(q);
	return attach_again(q);
}

int queue_ready_lent(mpig_queue *q)
{
	if (attached(q))
		return MPIG_OK;
	int rc = attach_again(q);
	return rc ? rc : 1;
}

void queue_look(mpig_queue *q)
{
	mpig_client *c = q->client;
	q->looked_ns = now_ns();
	if (pthread_mutex_trylock(&c->lock))
		return; // whoever holds it is talking to the daemon, and finds out
	if (c->fd >= 0 && connection_hung_up(c))
		connection_lost(c);
	pthread_mutex_unlock(&c->lock);
}

// ---- creating and destroying -------------------------------------------------------------------------------------------

static int options_check(const mpig_client *c, struct mpig_queue_options *o)
{
	o->entries = o->entries ? o->entries : DEFAULT_ENTRIES;
	o->slots = o->slots ? o->slots : o->entries;
	o->slot_bytes = o->slot_bytes ? o->slot_bytes : DEFAULT_SLOT_BYTES;
	o->spin_us = o->spin_us ? o->spin_us : DEFAULT_SPIN_US;
	o->timeout_ms = o->timeout_ms ? o->timeout_ms : DEFAULT_TIMEOUT_MS;
	if (o->entries & (o->entries - 1) || o->entries > MPIG_MAX_QUEUE_ENTRIES)
		return error_set(c, MPIG_EINVAL, "entries = %u: must be a power of two, at most %u", o->entries,
		                 MPIG_MAX_QUEUE_ENTRIES);
	if (o->slot_bytes > MPIG_MAX_SLOT_BYTES - 4095)
		return error_set(c, MPIG_ELIMIT, "slot_bytes = %zu: at most %llu", o->slot_bytes,
		                 (unsigned long long)MPIG_MAX_SLOT_BYTES - 4096);
	o->slot_bytes = (o->slot_bytes + 4095) & ~(size_t)4095;
	if ((uint64_t)o->slots > MPIG_MAX_REGION_BYTES / o->slot_bytes)
		return error_set(c, MPIG_ELIMIT, "slots = %u of slot_bytes = %zu: a queue's region has at most %llu bytes",
		                 o->slots, o->slot_bytes, (unsigned long long)MPIG_MAX_REGION_BYTES);
	return MPIG_OK;
}

static int tables_allocate(mpig_queue *q)
{
	q->flights = calloc(q->header.entries, sizeof(*q->flights));
	q->free_slots = calloc(q->header.slot_count, sizeof(*q->free_slots));
	if (!q->flights || !q->free_slots)
		return error_set(q->client, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	for (uint32_t i = 0; i < q->header.entries; i++)
		q->flights[i].next = i + 1 < q->header.entries ? i + 1 : NO_FLIGHT;
	q->free_flight = 0;
	q->done_first = q->done_last = NO_FLIGHT;
	return MPIG_OK;
}

int mpig_queue_create(mpig_client *c, const struct mpig_queue_options *options, mpig_queue **queue)
{
	struct mpig_queue_options o;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = options_copy(c, "mpig_queue_options", options, &o, sizeof(o));
	rc = rc ? rc : options_check(c, &o);
	if (rc)
		return rc;
	mpig_queue *q = calloc(1, sizeof(*q));
	if (!q)
		return error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	q->client = c;
	q->region_fd = q->event_fd = -1;
	q->spin_ns = o.spin_us * UINT64_C(1000);
	q->timeout_ms = o.timeout_ms;
	q->header = (struct mpig_queue_header){.entries = o.entries, .slot_count = o.slots, .slot_bytes = o.slot_bytes};
	pthread_mutex_lock(&c->lock);
	rc = queue_attach(q, 0);
	rc = rc ? rc : tables_allocate(q);
	if (rc == MPIG_OK) {
		q->next = c->queues;
		c->queues = q;
	}
	pthread_mutex_unlock(&c->lock);
	if (rc) {
		mpig_queue_destroy(q);
		return rc;
	}
	rings_begin(q);
	*queue = q;
	return MPIG_OK;
}

// In a forked child the region was never mapped (MADV_DONTFORK): its addresses may be somebody else's by now.
void queue_free(mpig_queue *q, bool forked)
{
	if (forked)
		q->base = NULL;
	if (q->flights)
		flights_drop(q);
	region_drop(q);
	if (q->event_fd >= 0)
		close(q->event_fd);
	free(q->flights);
	free(q->free_slots);
	free(q);
}

void mpig_queue_destroy(mpig_queue *q)
{
	if (!q || client_forked(q->client))
		return;
	mpig_client *c = q->client;
	pthread_mutex_lock(&c->lock);
	for (mpig_queue **link = &c->queues; *link; link = &(*link)->next)
		if (*link == q) {
			*link = q->next;
			break;
		}
	if (c->fd >= 0 && q->connection && q->connection == atomic_load_explicit(&c->connection, memory_order_relaxed)) {
		struct mpig_ctl_queue_destroy destroy = {.queue_id = q->id};
		control_exchange(c, MPIG_CTL_QUEUE_DESTROY, &destroy, sizeof(destroy), -1, sizeof(struct mpig_control_header),
		                 NULL);
	}
	queue_free(q, false);
	pthread_mutex_unlock(&c->lock);
}
