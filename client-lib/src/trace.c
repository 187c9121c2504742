// Recording queries: the reader's side of a ring that the daemon writes (shm/trace.h). Nothing in it is believed before it was copied.
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "shm/trace.h"

#define RING_BYTES (UINT64_C(32) << 20)
#define LOOK_NS NS_PER_MS                 // how often an empty ring is looked at
#define CONTEXT_NS (UINT64_C(1000000000)) // how often it is asked whether the context is still there

struct mpig_trace {
	mpig_client *client;
	uint64_t connection; // over which it was begun
	uint32_t number;
	char name[MPIG_NAME_BYTES];
	struct mpig_trace_ring *shared;
	uint64_t region_bytes, ring_bytes, head;
	uint64_t began_ns, context_id;
	uint32_t ended;
	uint64_t looked_ns; // when the context was last asked for
	struct mpig_wire_layer *layers;
	uint32_t layer_count;
	uint8_t *record; // the copy of the last one
	uint64_t room;
	struct mpig_attend attend;
};

// Lock held. The context's layers, and that it is the one that is recorded.
static int fetch_layers(mpig_trace *t)
{
	mpig_client *c = t->client;
	const struct mpig_wire_layer *layers;
	struct mpig_ctl_open request = {0};
	memcpy(request.name, t->name, sizeof(request.name));
	int rc = client_call(c, MPIG_CTL_SHOW, &request, sizeof(request), -1, sizeof(struct mpig_ctl_context_reply), NULL);
	rc = rc ? rc : reply_layers(c, &layers, &t->layer_count);
	if (rc)
		return rc;
	if (((const struct mpig_ctl_context_reply *)(const void *)c->reply)->context.id != t->context_id)
		return error_set(c, MPIG_ENOENT, "'%s' was dropped meanwhile", t->name);
	t->layers = malloc((t->layer_count ? t->layer_count : 1) * sizeof(*layers));
	if (!t->layers)
		return error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	memcpy(t->layers, layers, t->layer_count * sizeof(*layers));
	return MPIG_OK;
}

static int map_ring(mpig_trace *t, int fd)
{
	uint64_t size;
	void *base;
	int rc = mpig_region_check(fd, t->region_bytes, t->region_bytes, &size);
	if (rc)
		return error_set(t->client, MPIG_EPROTO, "the daemon's ring is no sealed memfd of %llu bytes",
		                 (unsigned long long)t->region_bytes);
	rc = mpig_region_map(fd, t->region_bytes, 1, &base);
	if (rc)
		return error_set(t->client, rc, "no address space for a ring of %llu bytes", (unsigned long long)t->ring_bytes);
	t->shared = base;
	return MPIG_OK;
}

// Lock held.
static int begin(mpig_trace *t)
{
	mpig_client *c = t->client;
	struct mpig_ctl_trace request = {.action = MPIG_TRACE_START, .ring_bytes = t->ring_bytes};
	int fds[2];
	memcpy(request.name, t->name, sizeof(request.name));
	int rc = client_call(c, MPIG_CTL_TRACE, &request, sizeof(request), -1, sizeof(request), fds);
	if (rc)
		return rc;
	const struct mpig_ctl_trace *r = (const void *)c->reply;
	t->connection = atomic_load_explicit(&c->connection, memory_order_relaxed);
	t->number = r->number;
	t->region_bytes = r->region_bytes;
	t->context_id = r->context_id;
	t->began_ns = r->began_ns;
	if (fds[0] < 0 || fds[1] >= 0 || r->ring_bytes != t->ring_bytes ||
	    t->region_bytes != sizeof(struct mpig_trace_ring) + t->ring_bytes)
		rc = error_set(c, MPIG_EPROTO, "the daemon's answer makes no sense: a ring of %llu bytes",
		               (unsigned long long)r->ring_bytes);
	rc = rc ? rc : map_ring(t, fds[0]);
	for (int i = 0; i < 2; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	rc = rc ? rc : fetch_layers(t);
	if (rc == MPIG_OK && t->connection != atomic_load_explicit(&c->connection, memory_order_relaxed))
		rc = error_set(c, MPIG_ERETRY, "the daemon went away while recording began; try again");
	return rc;
}

int mpig_trace_start(mpig_client *c, const char *name, const struct mpig_trace_options *given, mpig_trace **out)
{
	if (client_forked(c))
		return MPIG_EFORK;
	struct mpig_trace_options o;
	int rc = options_copy(c, "mpig_trace_options", given, &o, sizeof(o));
	rc = rc ? rc : name_check(c, "name", name);
	if (rc)
		return rc;
	if (!out)
		return error_set(c, MPIG_EINVAL, "trace is NULL");
	if (o.ring_bytes > MPIG_TRACE_RING_MAX)
		return error_set(c, MPIG_EINVAL, "ring_bytes %zu: at most %llu", o.ring_bytes,
		                 (unsigned long long)MPIG_TRACE_RING_MAX);
	mpig_trace *t = calloc(1, sizeof(*t));
	if (!t)
		return error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	t->client = c;
	t->ring_bytes = o.ring_bytes ? ((uint64_t)o.ring_bytes + 4095) / 4096 * 4096 : RING_BYTES;
	memcpy(t->name, name, strlen(name));
	t->looked_ns = now_ns();
	pthread_mutex_lock(&c->lock);
	rc = begin(t);
	pthread_mutex_unlock(&c->lock);
	if (rc) {
		mpig_trace_stop(t);
		return rc;
	}
	*out = t;
	return MPIG_OK;
}

// ---- reading ---------------------------------------------------------------------------------------------------------
static int nonsense(mpig_trace *t, const char *what)
{
	t->ended = MPIG_TRACE_BROKEN;
	return error_set(t->client, MPIG_EPROTO, "the ring of recorded queries makes no sense: %s", what);
}

static const uint8_t *place(const mpig_trace *t)
{
	return (const uint8_t *)(t->shared + 1) + t->head % t->ring_bytes;
}

static void release(mpig_trace *t, uint64_t bytes)
{
	t->head += bytes;
	__atomic_store_n(&t->shared->head, t->head, __ATOMIC_RELEASE); // partner: the daemon's look for room
}

// Copies the record at the head, pads skipped. 1; 0: the ring is empty.
static int take(mpig_trace *t)
{
	for (;;) {
		uint64_t peer_tail = __atomic_load_n(&t->shared->tail, __ATOMIC_ACQUIRE); // partner: the daemon's release
		uint64_t fill = peer_tail - t->head, left = t->ring_bytes - t->head % t->ring_bytes;
		if (fill == 0)
			return 0;
		struct mpig_trace_head head;
		if (peer_tail < t->head || fill > t->ring_bytes || fill < sizeof(head))
			return nonsense(t, "its tail");
		memcpy(&head, place(t), sizeof(head));
		if (head.magic != MPIG_TRACE_RECORD_MAGIC || head.bytes > fill || head.bytes > left ||
		    head.bytes < sizeof(head) || head.bytes % MPIG_PAYLOAD_ALIGN)
			return nonsense(t, "the head of a record");
		if (head.kind == MPIG_TRACE_PAD) {
			release(t, head.bytes);
			continue;
		}
		if (head.kind != MPIG_TRACE_QUERY || head.bytes < MPIG_TRACE_RECORD_BYTES)
			return nonsense(t, "the kind of a record");
		if (head.bytes > t->room) {
			uint8_t *more = aligned_alloc(MPIG_PAYLOAD_ALIGN, head.bytes);
			if (!more)
				return error_set(t->client, MPIG_ENOMEM, "no memory for a record of %llu bytes",
				                 (unsigned long long)head.bytes);
			free(t->record);
			t->record = more;
			t->room = head.bytes;
		}
		memcpy(t->record, place(t), head.bytes);
		((struct mpig_trace_record *)(void *)t->record)->head = head; // the one that was checked
		release(t, head.bytes);
		return 1;
	}
}

static int describe(mpig_trace *t, struct mpig_traced *out)
{
	const struct mpig_trace_record *r = (const void *)t->record;
	const struct mpig_wire_layer *layer = r->layer < t->layer_count ? &t->layers[r->layer] : NULL;
	if (!layer || layer->kind != MPIG_LAYER_GLOBAL || r->tokens < 1 || r->tokens > MPIG_MAX_QUERY_TOKENS ||
	    r->dtype != MPIG_F32)
		return nonsense(t, "a query's layer");
	struct mpig_layer_shape shape = layer_shape(layer);
	struct mpig_trace_layout l = mpig_trace_layout(&shape, r->tokens, r->dtype, r->present);
	if (l.bytes != r->head.bytes || r->end > MPIG_MAX_TOKENS || r->begin > r->end)
		return nonsense(t, "a query's size");
	t->attend = (struct mpig_attend){
		.size = sizeof(t->attend),
		MPIG_TRACE_ASKED(r),
		.q = t->record + l.q,
		.window_lse = l.window_lse ? (const float *)(const void *)(t->record + l.window_lse) : NULL,
		.window_out = l.window_out ? (const float *)(const void *)(t->record + l.window_out) : NULL,
	};
	struct mpig_traced known = {
		.attend = &t->attend,
		.number = r->number,
		.taken_ns = r->taken_ns,
		.service_ns = r->service_ns,
		.rows_read = r->rows_read,
		.bytes_read = r->bytes_read,
		.committed = r->committed,
		.client = r->client,
		.queue = r->queue,
		.signature_version = r->signature_version,
		.units = r->units,
		.asked_dtype = r->asked_dtype,
		.had_signature = r->present & MPIG_HAS_SIGNATURE ? 1 : 0,
	};
	return options_return(t->client, "mpig_traced", out, &known, sizeof(known));
}

// Whether more may come: looks at what the daemon says, whether it lives, and now and then whether the context does.
static void look(mpig_trace *t)
{
	mpig_client *c = t->client;
	if (!t->ended) {
		uint32_t ended = __atomic_load_n(&t->shared->ended, __ATOMIC_ACQUIRE);
		t->ended = ended <= MPIG_TRACE_REVOKED ? ended : MPIG_TRACE_BROKEN;
	}
	if (t->ended)
		return;
	pthread_mutex_lock(&c->lock);
	bool gone = t->connection != atomic_load_explicit(&c->connection, memory_order_relaxed) || connection_hung_up(c);
	if (!gone && now_ns() - t->looked_ns >= CONTEXT_NS) {
		struct mpig_ctl_open request = {0};
		memcpy(request.name, t->name, sizeof(request.name));
		int rc =
			client_call(c, MPIG_CTL_SHOW, &request, sizeof(request), -1, sizeof(struct mpig_ctl_context_reply), NULL);
		const struct mpig_ctl_context_reply *reply = (const void *)c->reply;
		t->looked_ns = now_ns();
		gone = t->connection != atomic_load_explicit(&c->connection, memory_order_relaxed);
		if (rc == MPIG_ENOENT || (rc == MPIG_OK && reply->context.id != t->context_id))
			t->ended = MPIG_TRACE_DROPPED;
	}
	if (gone)
		t->ended = MPIG_TRACE_SHUTDOWN;
	pthread_mutex_unlock(&c->lock);
}

int mpig_trace_next(mpig_trace *t, struct mpig_traced *traced, int timeout_ms)
{
	if (client_forked(t->client))
		return MPIG_EFORK;
	if (!traced)
		return error_set(t->client, MPIG_EINVAL, "traced is NULL");
	uint64_t deadline = deadline_in(timeout_ms);
	for (;;) {
		bool over = t->ended != MPIG_TRACE_GOES_ON; // what came before is still read
		int got = t->ended == MPIG_TRACE_BROKEN ? 0 : take(t);
		if (got)
			return got < 0 ? got : (got = describe(t, traced)) != MPIG_OK ? got : 1;
		if (over || now_ns() >= deadline)
			return 0;
		look(t);
		if (!t->ended)
			nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
	}
}

int mpig_trace_get(mpig_trace *t, struct mpig_trace_state *state)
{
	static_assert((int)MPIG_TRACED_REVOKED == (int)MPIG_TRACE_REVOKED && (int)MPIG_TRACED_DROPPED == (int)MPIG_TRACE_DROPPED,
	              "the same words");
	if (client_forked(t->client))
		return MPIG_EFORK;
	if (!state)
		return error_set(t->client, MPIG_EINVAL, "state is NULL");
	struct mpig_trace_state known = {
		.began_ns = t->began_ns,
		.context_id = t->context_id,
		.answers = __atomic_load_n(&t->shared->answers, __ATOMIC_RELAXED),
		.lost = __atomic_load_n(&t->shared->lost, __ATOMIC_RELAXED),
		.too_long = __atomic_load_n(&t->shared->too_long, __ATOMIC_RELAXED),
		.ended = t->ended,
	};
	return options_return(t->client, "mpig_trace_state", state, &known, sizeof(known));
}

void mpig_trace_stop(mpig_trace *t)
{
	if (!t ||
	    client_forked(t->client)) // in a forked child the ring was never mapped: its addresses may be somebody else's by now
		return;
	mpig_client *c = t->client;
	if (t->number) {
		struct mpig_ctl_trace request = {.action = MPIG_TRACE_STOP, .number = t->number};
		memcpy(request.name, t->name, sizeof(request.name));
		pthread_mutex_lock(&c->lock);
		if (t->connection == atomic_load_explicit(&c->connection, memory_order_relaxed) && !connection_hung_up(c))
			control_exchange(c, MPIG_CTL_TRACE, &request, sizeof(request), -1, sizeof(request), NULL);
		pthread_mutex_unlock(&c->lock);
	}
	if (t->shared)
		munmap(t->shared, t->region_bytes);
	free(t->layers);
	free(t->record);
	free(t);
}
