// A daemon of threads inside the test: speaks shm/control.h on a real socket and serves rings with shm/ring.h, and can be told to
// misbehave. It stores rows as fp32, samples nothing, and answers ATTEND with a formula of what it was sent (fake_attend).
#ifndef TESTS_CLIENT_LIB_FAKE_DAEMON_H
#define TESTS_CLIENT_LIB_FAKE_DAEMON_H

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "shm/abi.h"
#include "shm/control.h"
#include "shm/region.h"
#include "shm/ring.h"
#include "shm/status.h"

#define FAKE_MAX 16
#define FAKE_TOKENS 20000u
#define FAKE_LOG 4096

struct fake_context {
	bool live;
	char name[MPIG_NAME_BYTES], fingerprint[64];
	uint64_t id, committed, appended[4];
	uint32_t layer_count, sealed;
	struct mpig_wire_layer layers[4];
	float *k[4], *v[4];
	uint32_t *tokens;
	int lease; // connection + 1
};
struct fake_store { // survives the daemon
	struct fake_context contexts[FAKE_MAX];
	uint64_t next_id;
};
struct fake_queue {
	bool live;
	int connection, fd, event_fd;
	void *base;
	struct mpig_queue_header header;
	struct mpig_consumer sq;
	struct mpig_producer cq;
	struct mpig_sqe held[MPIG_MAX_QUEUE_ENTRIES];
	uint32_t held_count;
	uint64_t sequence;
};
struct fake {
	char path[100];
	struct fake_store *store;
	uint64_t epoch;
	pthread_mutex_t lock;
	pthread_t control, rings;
	int listener, stop_fd, connections[FAKE_MAX];
	struct fake_context *handles[FAKE_MAX][MPIG_MAX_HANDLES];
	struct fake_queue queues[FAKE_MAX];
	struct mpig_sqe log[FAKE_LOG];
	atomic_uint log_count, control_count, wakeups, adoptions, regions, destroyed;
	atomic_bool stop;
	// behaviour
	uint16_t control_version;
	uint32_t abi_version;
	uint32_t heads, heads_shift, heads_more; // of every context; what HEADS says wrongly
	atomic_bool hold;                        // take entries, complete none until it is false again
	atomic_bool reverse;                     // complete held entries last first
	atomic_bool park;                        // sleep on the eventfds with NEED_WAKEUP set
	atomic_bool mute;                        // answer no control message but HELLO
	atomic_bool garble;                      // answer control messages with nonsense
	atomic_bool refuse_adoption;
	atomic_uint list_page;   // of HELLO; 0: a daemon that takes no number of contexts, and refuses one
	atomic_uint list_asked;  // for so many, last
	atomic_bool busy_region; // requests of the queue that had it are still being served
	atomic_uint adoptions_tried;
	atomic_bool other_epoch;   // write another daemon's epoch into new regions
	atomic_bool bad_slot;      // complete with a slot that was not sent
	atomic_bool bad_ticket;    // complete what was never submitted
	atomic_int refuse_open;    // 0, or what OPEN answers
	atomic_bool fail_seal;     // COMMIT with MPIG_SQE_SEAL commits, and answers MPIG_ENOSPC
	atomic_int fail_append_at; // -1, or the position whose append answers MPIG_ENOSPC
	uint32_t last_query_count;
	struct mpig_slot_header last_slot;
};

// What ATTEND answers, per head h and dimension j, to which it adds the window's output; the tests expect exactly this.
static inline float fake_attend(float q0, float window_lse, uint64_t seed, uint64_t j)
{
	return q0 + 2 * window_lse + (float)seed + (float)j / 1024;
}

static void fake_die(const char *what)
{
	fprintf(stderr, "fake daemon: %s: %s\n", what, strerror(errno));
	abort();
}

// ---- rings -------------------------------------------------------------------------------------------------------------

static int fake_serve_attend(struct fake *f, uint8_t *slot, const struct mpig_sqe *e, const struct mpig_wire_layer *w)
{
	struct mpig_layer_shape s = {w->query_heads, w->kv_heads, w->d_k, w->d_v};
	memcpy(&f->last_slot, slot, sizeof(f->last_slot));
	struct mpig_payload_layout l = mpig_attend_layout(&s, e->count, e->dtype, f->last_slot.present);
	for (uint64_t h = 0; h < (uint64_t)e->count * s.query_heads; h++) {
		float q0, window = 0, scale = 0;
		uint32_t rows = (uint32_t)h;
		memcpy(&q0, slot + l.q + h * s.d_k * 4, 4);
		if (l.window_lse)
			memcpy(&window, slot + l.window_lse + h * 4, 4);
		if (l.signature) {
			memcpy(&scale, slot + l.signature_scale + h * 4, 4);
			q0 += scale * (float)(int8_t)slot[l.signature + h * mpig_padded_dim(s.d_k)];
		}
		for (uint64_t j = 0; j < s.d_v; j++) {
			float out = fake_attend(q0, window, e->seed, j), window_out = 0;
			if (l.window_out)
				memcpy(&window_out, slot + l.window_out + (h * s.d_v + j) * 4, 4);
			out += window_out;
			memcpy(slot + l.out + (h * s.d_v + j) * 4, &out, 4);
		}
		float part[3] = {q0, .25f, .5f};
		memcpy(slot + l.lse + h * 4, &part[0], 4);
		memcpy(slot + l.error_v + h * 4, &part[1], 4);
		memcpy(slot + l.error_a + h * 4, &part[2], 4);
		memcpy(slot + l.rows + h * 4, &rows, 4);
	}
	return MPIG_OK;
}

static int fake_serve_append(struct fake *f, uint8_t *slot, const struct mpig_sqe *e, struct fake_context *x)
{
	const struct mpig_wire_layer *w = &x->layers[e->layer];
	struct mpig_layer_shape s = {w->query_heads, w->kv_heads, w->d_k, w->d_v};
	struct mpig_slot_header head;
	memcpy(&head, slot, sizeof(head));
	struct mpig_payload_layout l = mpig_append_layout(&s, e->count, e->dtype, head.query_count);
	if (atomic_load(&f->fail_append_at) == (int)e->begin)
		return MPIG_ENOSPC;
	if (e->begin > x->appended[e->layer] || e->begin + e->count > FAKE_TOKENS)
		return MPIG_ERANGE;
	if (head.present & MPIG_HAS_QUERIES)
		f->last_query_count = head.query_count;
	uint64_t kw = (uint64_t)w->kv_heads * w->d_k, vw = (uint64_t)w->kv_heads * w->d_v;
	memcpy(x->k[e->layer] + e->begin * kw, slot + l.k, e->count * kw * 4);
	memcpy(x->v[e->layer] + e->begin * vw, slot + l.v, e->count * vw * 4);
	if (e->begin + e->count > x->appended[e->layer])
		x->appended[e->layer] = e->begin + e->count;
	return MPIG_OK;
}

static int fake_serve_commit(struct fake *f, const uint8_t *slot, const struct mpig_sqe *e, struct fake_context *x)
{
	uint64_t end = e->begin + e->count;
	for (uint32_t i = 0; i < x->layer_count; i++)
		if (x->layers[i].kind == MPIG_LAYER_GLOBAL && x->appended[i] < end)
			return MPIG_ERANGE;
	if (e->begin > x->committed)
		return MPIG_ERANGE;
	memcpy(x->tokens + e->begin, slot + mpig_commit_layout(e->count).tokens, e->count * 4);
	x->committed = end;
	x->sealed += (e->flags & MPIG_SQE_SEAL) != 0;
	return e->flags & MPIG_SQE_SEAL && atomic_load(&f->fail_seal) ? MPIG_ENOSPC : MPIG_OK;
}

static int fake_serve_read(uint8_t *slot, const struct mpig_sqe *e, const struct fake_context *x)
{
	const struct mpig_wire_layer *w = &x->layers[e->layer];
	struct mpig_layer_shape s = {w->query_heads, w->kv_heads, w->d_k, w->d_v};
	struct mpig_payload_layout l = mpig_read_layout(&s, e->count);
	uint64_t kw = (uint64_t)w->kv_heads * w->d_k, vw = (uint64_t)w->kv_heads * w->d_v;
	if (e->begin + e->count > x->committed)
		return MPIG_ERANGE;
	memcpy(slot + l.k, x->k[e->layer] + e->begin * kw, e->count * kw * 4);
	memcpy(slot + l.v, x->v[e->layer] + e->begin * vw, e->count * vw * 4);
	return MPIG_OK;
}

static void fake_complete(struct fake *f, struct fake_queue *q, const struct mpig_sqe *e)
{
	struct fake_context *x = e->handle < MPIG_MAX_HANDLES ? f->handles[q->connection][e->handle] : NULL;
	uint8_t *slot =
		e->slot == MPIG_NO_SLOT ? NULL : (uint8_t *)q->base + q->header.slots_offset + e->slot * q->header.slot_bytes;
	int status = MPIG_OK;
	if (e->op != MPIG_OP_NOP && !x)
		status = MPIG_ENOENT;
	else if (e->op >= MPIG_OP_APPEND && e->op <= MPIG_OP_TRUNCATE && x->lease != q->connection + 1)
		status = MPIG_ELEASE;
	else if (e->op == MPIG_OP_ATTEND)
		status = fake_serve_attend(f, slot, e, &x->layers[e->layer]);
	else if (e->op == MPIG_OP_APPEND)
		status = fake_serve_append(f, slot, e, x);
	else if (e->op == MPIG_OP_COMMIT)
		status = fake_serve_commit(f, slot, e, x);
	else if (e->op == MPIG_OP_READ)
		status = fake_serve_read(slot, e, x);
	else if (e->op == MPIG_OP_TRUNCATE)
		x->committed = e->begin < x->committed ? e->begin : x->committed;
	struct mpig_cqe c = {.user_data = e->user_data,
	                     .status = status,
	                     .slot = e->slot,
	                     .committed = x ? x->committed : 0,
	                     .rows_read = 7,
	                     .bytes_read = 8,
	                     .service_ns = 9,
	                     .signature_version = 3,
	                     .sequence = q->sequence++};
	if (atomic_load(&f->bad_slot))
		c.slot ^= 1;
	if (atomic_load(&f->bad_ticket))
		c.user_data += MPIG_MAX_QUEUE_ENTRIES;
	if (mpig_producer_room(&q->cq) <= 0)
		fake_die("completion ring overflows");
	mpig_producer_put(&q->cq, &c);
	mpig_producer_publish(&q->cq);
	struct mpig_queue_header *shared = q->base;
	if (mpig_flag_peer(&shared->cq_waiting, 1))
		syscall(SYS_futex, &shared->cq_tail, FUTEX_WAKE, 1, NULL, NULL, 0);
}

// Returns whether there was work. Lock held.
static bool fake_serve(struct fake *f, struct fake_queue *q)
{
	int ready = mpig_consumer_ready(&q->sq);
	for (int i = 0; i < ready; i++) {
		struct mpig_sqe *e = &q->held[q->held_count++];
		mpig_consumer_take(&q->sq, e);
		f->log[atomic_load(&f->log_count) % FAKE_LOG] = *e;
		atomic_fetch_add(&f->log_count, 1);
	}
	if (ready > 0)
		mpig_consumer_release(&q->sq);
	if (atomic_load(&f->hold) || !q->held_count)
		return ready > 0;
	bool reverse = atomic_load(&f->reverse);
	for (uint32_t i = 0; i < q->held_count; i++)
		fake_complete(f, q, &q->held[reverse ? q->held_count - 1 - i : i]);
	q->held_count = 0;
	return true;
}

static bool fake_serve_all(struct fake *f)
{
	bool busy = false;
	pthread_mutex_lock(&f->lock);
	for (int i = 0; i < FAKE_MAX; i++)
		if (f->queues[i].live)
			busy |= fake_serve(f, &f->queues[i]);
	pthread_mutex_unlock(&f->lock);
	return busy;
}

static void fake_need_wakeup(struct fake *f, bool on)
{
	pthread_mutex_lock(&f->lock);
	for (int i = 0; i < FAKE_MAX; i++)
		if (f->queues[i].live) {
			struct mpig_queue_header *shared = f->queues[i].base;
			(on ? mpig_flag_set : mpig_flag_clear)(&shared->sq_flags, MPIG_SQ_NEED_WAKEUP);
		}
	pthread_mutex_unlock(&f->lock);
}

// Sleeps until an eventfd is written; nothing else ends it but the daemon's end.
static void fake_sleep(struct fake *f)
{
	fake_need_wakeup(f, true);
	if (!fake_serve_all(f)) {
		struct pollfd p[FAKE_MAX + 1] = {{.fd = f->stop_fd, .events = POLLIN}};
		pthread_mutex_lock(&f->lock);
		for (int i = 0; i < FAKE_MAX; i++)
			p[i + 1] = (struct pollfd){.fd = f->queues[i].live ? f->queues[i].event_fd : -1, .events = POLLIN};
		pthread_mutex_unlock(&f->lock);
		poll(p, FAKE_MAX + 1, -1);
		for (int i = 1; i <= FAKE_MAX; i++) {
			uint64_t count;
			if (p[i].fd >= 0 && p[i].revents & POLLIN && read(p[i].fd, &count, sizeof(count)) == sizeof(count))
				atomic_fetch_add(&f->wakeups, 1);
		}
	}
	fake_need_wakeup(f, false);
}

static void *fake_rings(void *arg)
{
	struct fake *f = arg;
	while (!atomic_load(&f->stop)) {
		if (fake_serve_all(f))
			continue;
		if (atomic_load(&f->park))
			fake_sleep(f);
		else
			usleep(20);
	}
	return NULL;
}

// ---- control -----------------------------------------------------------------------------------------------------------

static void fake_send(struct fake *f, int connection, const struct mpig_control_header *request, void *reply, size_t bytes,
                      int status, const int *fds, size_t fd_count)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = {0};
	*(struct mpig_control_header *)reply = (struct mpig_control_header){.magic = MPIG_CONTROL_MAGIC,
	                                                                    .version = f->control_version,
	                                                                    .op = request->op,
	                                                                    .size = (uint32_t)bytes,
	                                                                    .tag = request->tag,
	                                                                    .status = status};
	if (atomic_load(&f->garble))
		((struct mpig_control_header *)reply)->magic ^= 1;
	struct iovec part = {reply, bytes};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
	if (fd_count) {
		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
	}
	sendmsg(f->connections[connection], &m, MSG_NOSIGNAL);
}

static void fake_error(struct fake *f, int connection, const struct mpig_control_header *request, int status, const char *text)
{
	struct mpig_ctl_error e = {0};
	snprintf(e.text, sizeof(e.text), "%s", text);
	fake_send(f, connection, request, &e, sizeof(e), status, NULL, 0);
}

static struct fake_context *fake_find(struct fake *f, const char *name)
{
	for (int i = 0; i < FAKE_MAX; i++)
		if (f->store->contexts[i].live && !strcmp(f->store->contexts[i].name, name))
			return &f->store->contexts[i];
	return NULL;
}

static void fake_describe(const struct fake_context *x, struct mpig_wire_context *w)
{
	memcpy(w->name, x->name, sizeof(w->name));
	memcpy(w->fingerprint, x->fingerprint, sizeof(w->fingerprint));
	w->id = x->id;
	w->committed = x->committed;
	w->layer_count = x->layer_count;
	w->signature_version = 3;
}

static void fake_context_reply(struct fake *f, int connection, const struct mpig_control_header *h, const struct fake_context *x,
                               uint64_t matched, bool layers)
{
	union {
		struct mpig_ctl_context_reply r;
		uint8_t bytes[sizeof(struct mpig_ctl_context_reply) + 4 * sizeof(struct mpig_wire_layer)];
	} reply = {0};
	fake_describe(x, &reply.r.context);
	reply.r.context.matched = matched;
	memcpy(reply.bytes + sizeof(reply.r), x->layers, x->layer_count * sizeof(x->layers[0]));
	fake_send(f, connection, h, &reply, sizeof(reply.r) + (layers ? x->layer_count * sizeof(x->layers[0]) : 0), 0, NULL, 0);
}

static struct fake_context *fake_new_context(struct fake *f, const char *name, const char *fingerprint,
                                             const struct mpig_wire_layer *layers, uint32_t count)
{
	struct fake_context *x = f->store->contexts;
	while (x->live)
		x++;
	*x = (struct fake_context){.live = true, .id = ++f->store->next_id, .layer_count = count};
	memcpy(x->name, name, sizeof(x->name));
	memcpy(x->fingerprint, fingerprint, sizeof(x->fingerprint));
	memcpy(x->layers, layers, count * sizeof(*layers));
	x->tokens = calloc(FAKE_TOKENS, 4);
	for (uint32_t i = 0; i < count; i++) {
		x->k[i] = calloc(FAKE_TOKENS, (size_t)layers[i].kv_heads * layers[i].d_k * 4);
		x->v[i] = calloc(FAKE_TOKENS, (size_t)layers[i].kv_heads * layers[i].d_v * 4);
	}
	return x;
}

static void fake_store_free(struct fake_store *s)
{
	for (int n = 0; n < FAKE_MAX; n++)
		for (int i = 0; i < 4; i++) {
			free(s->contexts[n].k[i]);
			free(s->contexts[n].v[i]);
			if (i == 0)
				free(s->contexts[n].tokens);
		}
	free(s);
}

static void fake_create(struct fake *f, int n, const struct mpig_ctl_create *r)
{
	if (fake_find(f, r->name)) {
		fake_error(f, n, &r->h, MPIG_EEXIST, "that name is taken: open it, or choose another");
		return;
	}
	struct fake_context *x = fake_new_context(f, r->name, r->fingerprint, (const void *)(r + 1), r->layer_count);
	x->lease = n + 1;
	f->handles[n][r->handle] = x;
	fake_context_reply(f, n, &r->h, x, 0, false);
}

static uint64_t fake_common(const struct fake_context *x, const uint32_t *tokens, uint64_t count)
{
	uint64_t n = 0;
	while (n < count && n < x->committed && x->tokens[n] == tokens[n])
		n++;
	return n;
}

static void fake_open(struct fake *f, int n, const struct mpig_ctl_open *r, int fd)
{
	struct fake_context *x = fake_find(f, r->name);
	uint64_t matched = 0;
	if (atomic_load(&f->refuse_open)) {
		fake_error(f, n, &r->h, atomic_load(&f->refuse_open), "the fake daemon is full");
		return;
	}
	if (r->h.op == MPIG_CTL_OPEN_PREFIX) {
		uint32_t *tokens = calloc(r->tokens, 4);
		if (pread(fd, tokens, r->tokens * 4, 0) != (ssize_t)(r->tokens * 4))
			fake_die("pread of the tokens");
		for (int i = 0; i < FAKE_MAX; i++) {
			struct fake_context *y = &f->store->contexts[i];
			uint64_t common =
				y->live && !memcmp(y->fingerprint, r->fingerprint, 64) ? fake_common(y, tokens, r->tokens) : 0;
			if (common > matched) {
				matched = common;
				x = y;
			}
		}
		free(tokens);
		x = matched >= r->min_tokens ? x : NULL;
	}
	if (x && (r->flags & MPIG_OPEN_FORK || r->h.op == MPIG_CTL_FORK)) {
		struct fake_context *child = fake_new_context(f, r->new_name, x->fingerprint, x->layers, x->layer_count);
		child->committed = r->h.op == MPIG_CTL_FORK ? r->tokens : matched;
		x = child;
	}
	if (!x) {
		fake_error(f, n, &r->h, MPIG_ENOENT, "no context of that name");
		return;
	}
	if (r->flags & MPIG_OPEN_WRITE && x->lease && x->lease != n + 1) {
		fake_error(f, n, &r->h, MPIG_EBUSY, "another client writes");
		return;
	}
	if (r->flags & MPIG_OPEN_WRITE)
		x->lease = n + 1;
	f->handles[n][r->handle] = x;
	fake_context_reply(f, n, &r->h, x, matched, false);
}

static void fake_queue_free(struct fake_queue *q)
{
	munmap(q->base, q->header.region_bytes);
	close(q->fd);
	close(q->event_fd);
	q->live = false;
}

static void fake_queue_create(struct fake *f, int n, const struct mpig_ctl_queue_create *r, int old_fd)
{
	atomic_fetch_add(&f->adoptions_tried, r->adopt);
	if (r->adopt && atomic_load(&f->busy_region)) {
		fake_error(f, n, &r->h, MPIG_EAGAIN, "requests of the queue that had the region are still being served");
		return;
	}
	if (r->adopt && atomic_load(&f->refuse_adoption)) {
		fake_error(f, n, &r->h, MPIG_EINVAL, "that region is not one of ours");
		return;
	}
	struct fake_queue *q = f->queues;
	while (q->live)
		q++;
	memset(q, 0, sizeof(*q));
	uint64_t size;
	int rc = mpig_queue_geometry(r->entries, r->slot_count, r->slot_bytes, &q->header);
	if (rc) {
		fake_error(f, n, &r->h, rc, "impossible geometry");
		return;
	}
	q->header.epoch = f->epoch + atomic_load(&f->other_epoch);
	if (r->adopt && mpig_region_check(old_fd, q->header.region_bytes, 0, &size) == 0) {
		q->fd = dup(old_fd);
		atomic_fetch_add(&f->adoptions, 1);
	} else if (mpig_region_create("fake-queue", q->header.region_bytes, &q->fd)) {
		fake_die("region");
	}
	atomic_fetch_add(&f->regions, 1);
	if (mpig_region_map(q->fd, q->header.region_bytes, 0, &q->base))
		fake_die("map");
	memcpy(q->base, &q->header, sizeof(q->header));
	mpig_daemon_rings(q->base, &q->header, &q->sq, &q->cq);
	q->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	q->connection = n;
	q->live = true;
	struct mpig_ctl_queue_create reply = *r;
	reply.region_bytes = q->header.region_bytes;
	reply.queue_id = (uint32_t)(q - f->queues);
	fake_send(f, n, &r->h, &reply, sizeof(reply), 0, (int[]){q->fd, q->event_fd}, 2);
}

static void fake_list(struct fake *f, int n, const struct mpig_ctl_list *r)
{
	struct {
		struct mpig_ctl_list head;
		struct mpig_wire_context contexts[3];
	} reply = {0};
	atomic_store(&f->list_asked, r->count);
	if (r->count > atomic_load(&f->list_page)) {
		fake_error(f, n, &r->h, MPIG_EPROTO, "LIST: count and reserved must be zero in a request");
		return;
	}
	for (int i = 0; i < FAKE_MAX && reply.head.count < 3; i++)
		if (f->store->contexts[i].live && f->store->contexts[i].id > r->cursor)
			fake_describe(&f->store->contexts[i], &reply.contexts[reply.head.count++]);
	reply.head.cursor = reply.head.count == 3 ? reply.contexts[2].id : 0;
	fake_send(f, n, &r->h, &reply, sizeof(reply.head) + reply.head.count * sizeof(reply.contexts[0]), 0, NULL, 0);
}

static void fake_by_name(struct fake *f, int n, const struct mpig_ctl_open *r)
{
	struct fake_context *x = fake_find(f, r->name);
	struct mpig_control_header done;
	if (!x) {
		fake_error(f, n, &r->h, MPIG_ENOENT, "no context of that name");
	} else if (r->h.op == MPIG_CTL_SHOW) {
		fake_context_reply(f, n, &r->h, x, 0, true);
	} else {
		if (r->h.op == MPIG_CTL_DROP)
			x->live = false;
		fake_send(f, n, &r->h, &done, sizeof(done), 0, NULL, 0);
	}
}

// Pages of three. Head i is number i % 2 of layer i / 2.
static void fake_heads(struct fake *f, int n, const struct mpig_ctl_heads *r)
{
	struct {
		struct mpig_ctl_heads page;
		struct mpig_wire_head head[3];
	} reply = {.page = {.first = r->first + f->heads_shift, .total = f->heads}};
	for (uint32_t i = r->first; i < f->heads && reply.page.count < 3; i++)
		reply.head[reply.page.count++] = (struct mpig_wire_head){.layer = i / 2,
		                                                         .kv_head = i % 2,
		                                                         .signature_bits = 2,
		                                                         .samples = i,
		                                                         .noise = (float)i / 4,
		                                                         .n_eff = 7,
		                                                         .best_bits = 4};
	size_t bytes = sizeof(reply.page) + reply.page.count * sizeof(reply.head[0]);
	reply.page.count += f->heads_more;
	fake_send(f, n, &r->h, &reply, bytes, 0, NULL, 0);
}

static void fake_close(struct fake *f, int n, const struct mpig_ctl_open *r)
{
	struct mpig_control_header done;
	struct fake_context *x = f->handles[n][r->handle];
	if (x && x->lease == n + 1)
		x->lease = 0;
	f->handles[n][r->handle] = NULL;
	fake_send(f, n, &r->h, &done, sizeof(done), 0, NULL, 0);
}

static void fake_message(struct fake *f, int n, const struct mpig_control_header *h, int fd)
{
	struct mpig_ctl_hello hello = {
		.abi_version = f->abi_version, .epoch = f->epoch, .version = "fake", .list_page = atomic_load(&f->list_page)};
	struct mpig_ctl_status_reply status = {.epoch = f->epoch, .workers = 5, .version = "fake"};
	static const char text[] = "server.workers = 5\n\n";
	uint8_t config[sizeof(struct mpig_ctl_text_reply) + 32] __attribute__((aligned(8))) = {0};
	struct mpig_control_header done;
	atomic_fetch_add(&f->control_count, 1);
	if (atomic_load(&f->mute) && h->op != MPIG_CTL_HELLO)
		return;
	switch (h->op) {
	case MPIG_CTL_HELLO:
		fake_send(f, n, h, &hello, sizeof(hello), 0, NULL, 0);
		break;
	case MPIG_CTL_STATUS:
		fake_send(f, n, h, &status, sizeof(status), 0, NULL, 0);
		break;
	case MPIG_CTL_CONFIG_GET:
		((struct mpig_ctl_text_reply *)(void *)config)->length = sizeof(text) - 1;
		memcpy(config + sizeof(struct mpig_ctl_text_reply), text, sizeof(text));
		fake_send(f, n, h, config, sizeof(config), 0, NULL, 0);
		break;
	case MPIG_CTL_CREATE:
		fake_create(f, n, (const void *)h);
		break;
	case MPIG_CTL_OPEN:
	case MPIG_CTL_OPEN_PREFIX:
	case MPIG_CTL_FORK:
		fake_open(f, n, (const void *)h, fd);
		break;
	case MPIG_CTL_SHOW:
	case MPIG_CTL_DROP:
	case MPIG_CTL_CHMOD:
		fake_by_name(f, n, (const void *)h);
		break;
	case MPIG_CTL_CLOSE:
		fake_close(f, n, (const void *)h);
		break;
	case MPIG_CTL_LIST:
		fake_list(f, n, (const void *)h);
		break;
	case MPIG_CTL_HEADS:
		fake_heads(f, n, (const void *)h);
		break;
	case MPIG_CTL_QUEUE_CREATE:
		fake_queue_create(f, n, (const void *)h, fd);
		break;
	case MPIG_CTL_QUEUE_DESTROY:
		if (((const struct mpig_ctl_queue_destroy *)(const void *)h)->queue_id == MPIG_ALL_QUEUES)
			break; // it disconnects: fake_hang_up
		fake_queue_free(&f->queues[((const struct mpig_ctl_queue_destroy *)(const void *)h)->queue_id]);
		atomic_fetch_add(&f->destroyed, 1);
		/* fall through */
	default:
		fake_send(f, n, h, &done, sizeof(done), 0, NULL, 0);
	}
}

// Lock held. What a client's death frees: queues, leases, uncommitted rows.
static void fake_hang_up(struct fake *f, int n)
{
	close(f->connections[n]);
	f->connections[n] = -1;
	memset(f->handles[n], 0, sizeof(f->handles[n]));
	for (int i = 0; i < FAKE_MAX; i++) {
		struct fake_context *x = &f->store->contexts[i];
		if (f->queues[i].live && f->queues[i].connection == n)
			fake_queue_free(&f->queues[i]);
		if (x->live && x->lease == n + 1) {
			x->lease = 0;
			for (uint32_t l = 0; l < x->layer_count; l++)
				x->appended[l] = x->committed;
		}
	}
}

static void fake_receive(struct fake *f, int n)
{
	static _Thread_local uint8_t bytes[MPIG_CONTROL_MAX_BYTES] __attribute__((aligned(8)));
	char control[CMSG_SPACE(2 * sizeof(int))] __attribute__((aligned(8)));
	struct iovec part = {bytes, sizeof(bytes)};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(f->connections[n], &m, MSG_CMSG_CLOEXEC);
	if (got <= 0) {
		fake_hang_up(f, n);
		return;
	}
	int fd = -1;
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (c)
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	const struct mpig_control_header *h = (const void *)bytes;
	if (h->size != (uint32_t)got || h->magic != MPIG_CONTROL_MAGIC)
		fake_die("malformed request");
	fake_message(f, n, h, fd);
	if (fd >= 0)
		close(fd);
}

static void *fake_control(void *arg)
{
	struct fake *f = arg;
	while (!atomic_load(&f->stop)) {
		struct pollfd p[FAKE_MAX + 2] = {{.fd = f->stop_fd, .events = POLLIN}, {.fd = f->listener, .events = POLLIN}};
		for (int i = 0; i < FAKE_MAX; i++)
			p[i + 2] = (struct pollfd){.fd = f->connections[i], .events = POLLIN};
		poll(p, FAKE_MAX + 2, -1);
		pthread_mutex_lock(&f->lock);
		for (int i = 0; i < FAKE_MAX; i++)
			if (p[i + 2].revents)
				fake_receive(f, i);
		if (p[1].revents) {
			int i = 0;
			while (f->connections[i] >= 0)
				i++;
			f->connections[i] = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
		}
		pthread_mutex_unlock(&f->lock);
	}
	return NULL;
}

// ---- life --------------------------------------------------------------------------------------------------------------

// A daemon ready to be told how to behave; fake_run puts it on its socket.
static struct fake *fake_make(const char *path, struct fake_store *store, uint64_t epoch)
{
	struct fake *f = calloc(1, sizeof(*f));
	snprintf(f->path, sizeof(f->path), "%s", path);
	f->store = store;
	f->epoch = epoch;
	f->control_version = MPIG_CONTROL_VERSION;
	f->abi_version = MPIG_ABI_VERSION;
	atomic_init(&f->fail_append_at, -1);
	pthread_mutex_init(&f->lock, NULL);
	for (int i = 0; i < FAKE_MAX; i++)
		f->connections[i] = -1;
	return f;
}

static void fake_run(struct fake *f)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", f->path);
	f->stop_fd = eventfd(0, EFD_CLOEXEC);
	f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	unlink(f->path);
	if (bind(f->listener, (struct sockaddr *)&a, sizeof(a)) || listen(f->listener, 8))
		fake_die(f->path);
	pthread_create(&f->control, NULL, fake_control, f);
	pthread_create(&f->rings, NULL, fake_rings, f);
}

// Ends it as SIGKILL would: no word to anybody; the socket file stays.
static void fake_kill(struct fake *f)
{
	uint64_t one = 1;
	atomic_store(&f->stop, true);
	if (write(f->stop_fd, &one, sizeof(one)) < 0)
		fake_die("stop");
	pthread_join(f->control, NULL);
	pthread_join(f->rings, NULL);
	for (int i = 0; i < FAKE_MAX; i++)
		if (f->connections[i] >= 0)
			fake_hang_up(f, i);
	close(f->listener);
	close(f->stop_fd);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

#endif
