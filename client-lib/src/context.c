// Contexts of this client: creating, finding, forking and closing them; the same handles again after a reconnect.
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int name_check(const mpig_client *c, const char *field, const char *name)
{
	size_t length = name ? strnlen(name, MPIG_NAME_BYTES) : 0;
	if (length == 0 || length >= MPIG_NAME_BYTES)
		return error_set(c, MPIG_EINVAL, "%s: a name has 1..%u bytes", field, MPIG_NAME_BYTES - 1);
	for (const unsigned char *p = (const unsigned char *)name; *p; p++)
		if (*p < ' ' || *p == 0x7f || *p == '/')
			return error_set(c, MPIG_EINVAL, "%s: byte 0x%02x at %zu; a name has printable bytes without '/'", field,
			                 *p, (size_t)(p - (const unsigned char *)name));
	return MPIG_OK;
}

// ---- handles and lifetimes (client lock held) ------------------------------------------------------------------------

static void context_free(mpig_context *x)
{
	free(x->layers);
	free(x);
}

// Frees closed contexts whose last request has come back. Only then may their handle name another: an entry still in a ring
// carries it.
static void sweep_closed(mpig_client *c)
{
	for (mpig_context **link = &c->contexts; *link;) {
		mpig_context *x = *link;
		if (x->closed && atomic_load_explicit(&x->flights, memory_order_acquire) == 0) {
			*link = x->next;
			c->handles[x->handle / 64] &= ~(UINT64_C(1) << x->handle % 64);
			context_free(x);
		} else {
			link = &x->next;
		}
	}
}

static int context_allocate(mpig_client *c, mpig_context **out)
{
	sweep_closed(c);
	uint32_t handle = 0;
	while (handle < MPIG_MAX_HANDLES && c->handles[handle / 64] >> handle % 64 & 1)
		handle++;
	if (handle == MPIG_MAX_HANDLES)
		return error_set(c, MPIG_ELIMIT, "%u contexts are open on this connection: close some", MPIG_MAX_HANDLES - 1);
	mpig_context *x = calloc(1, sizeof(*x));
	if (!x)
		return error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	c->handles[handle / 64] |= UINT64_C(1) << handle % 64;
	x->client = c;
	x->handle = handle;
	*out = x;
	return MPIG_OK;
}

// Gives back what context_allocate took, and on the daemon's side whatever an unseen answer may have bound to the handle.
static void context_discard(mpig_client *c, mpig_context *x, int status)
{
	struct mpig_ctl_open close_it = {.handle = x->handle};
	if (status == MPIG_ETIMEDOUT || x->id)
		control_post(c, MPIG_CTL_CLOSE, &close_it, sizeof(close_it));
	c->handles[x->handle / 64] &= ~(UINT64_C(1) << x->handle % 64);
	context_free(x);
}

void contexts_free(mpig_client *c)
{
	while (c->contexts) {
		mpig_context *x = c->contexts;
		c->contexts = x->next;
		context_free(x);
	}
}

// ---- binding (client lock held) ----------------------------------------------------------------------------------------

// What other threads may be reading is atomic; name, id and layers are written once, before anybody else knows the context.
static void take_state(mpig_context *x, const struct mpig_wire_context *wire)
{
	atomic_store_explicit(&x->committed, wire->committed, memory_order_relaxed);
	atomic_store_explicit(&x->signature_version, wire->signature_version, memory_order_relaxed);
}

int reply_layers(mpig_client *c, const struct mpig_wire_layer **layers, uint32_t *count)
{
	const struct mpig_ctl_context_reply *r = (const void *)c->reply;
	const struct mpig_wire_layer *l = (const void *)(c->reply + sizeof(*r));
	uint32_t n = r->context.layer_count;
	bool sound = n <= MPIG_MAX_LAYERS && c->reply_bytes >= sizeof(*r) + n * sizeof(*l);
	for (uint32_t i = 0; sound && i < n; i++) {
		bool heads = l[i].query_heads <= MPIG_MAX_HEADS && l[i].kv_heads <= MPIG_MAX_HEADS;
		bool dims = l[i].d_k <= MPIG_MAX_HEAD_DIM && l[i].d_v <= MPIG_MAX_HEAD_DIM;
		bool shape = l[i].kind != MPIG_LAYER_GLOBAL || (l[i].query_heads && l[i].kv_heads && l[i].d_k && l[i].d_v);
		sound = heads && dims && shape;
	}
	if (!sound)
		return error_set(c, MPIG_EPROTO, "the daemon's description of '%.127s' makes no sense", r->context.name);
	*layers = l;
	*count = n;
	return MPIG_OK;
}

static int show(mpig_client *c, const char *name)
{
	struct mpig_ctl_open request = {0};
	memcpy(request.name, name, strlen(name));
	return client_call(c, MPIG_CTL_SHOW, &request, sizeof(request), -1, sizeof(struct mpig_ctl_context_reply), NULL);
}

static int fetch_layers(mpig_client *c, mpig_context *x)
{
	const struct mpig_wire_layer *layers;
	uint32_t count;
	int rc = show(c, x->name);
	if (rc == MPIG_OK)
		rc = reply_layers(c, &layers, &count);
	if (rc == MPIG_OK && ((const struct mpig_ctl_context_reply *)(const void *)c->reply)->context.id != x->id)
		rc = error_set(c, MPIG_ENOENT, "'%s' was dropped while it was being opened", x->name);
	if (rc)
		return rc;
	x->layers = malloc((count ? count : 1) * sizeof(*layers));
	if (!x->layers)
		return error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	memcpy(x->layers, layers, count * sizeof(*layers));
	x->layer_count = count;
	return MPIG_OK;
}

// Sends a request that binds x->handle (already in it), and completes x from the answer. Layers are fetched unless x has them.
// On failure x is gone.
static int context_bind(mpig_client *c, uint16_t op, void *request, size_t bytes, int fd, mpig_context *x, uint64_t *matched)
{
	int rc = client_call(c, op, request, bytes, fd, sizeof(struct mpig_ctl_context_reply), NULL);
	if (rc == MPIG_OK) {
		const struct mpig_ctl_context_reply *r = (const void *)c->reply;
		uint64_t connection = atomic_load_explicit(&c->connection, memory_order_relaxed);
		memcpy(x->name, r->context.name, sizeof(x->name) - 1);
		x->id = r->context.id;
		take_state(x, &r->context);
		if (matched)
			*matched = r->context.matched;
		if (!x->layers)
			rc = fetch_layers(c, x);
		if (connection != atomic_load_explicit(&c->connection, memory_order_relaxed))
			rc = error_set(c, MPIG_ERETRY, "the daemon went away while '%s' was being opened; try again", x->name);
	}
	if (rc) {
		context_discard(c, x, rc);
		return rc;
	}
	x->next = c->contexts;
	c->contexts = x;
	return MPIG_OK;
}

static int reopen(mpig_client *c, const mpig_context *x, bool write)
{
	struct mpig_ctl_open request = {.handle = x->handle, .flags = write ? MPIG_OPEN_WRITE : 0};
	memcpy(request.name, x->name, sizeof(request.name));
	return control_exchange(c, MPIG_CTL_OPEN, &request, sizeof(request), -1, sizeof(struct mpig_ctl_context_reply), NULL);
}

// Reasons that say how the daemon fares now and nothing about the context: what failed for one of them is tried again.
static bool passing(int fault)
{
	return fault == MPIG_ENOMEM || fault == MPIG_ELIMIT || fault == MPIG_EAGAIN || fault == MPIG_EBUSY;
}

// One context on a connection that knows nothing of it. Fails only if the connection does.
static int context_reopen(mpig_client *c, mpig_context *x, uint64_t deadline)
{
	bool write = atomic_load(&x->writer);
	int rc = reopen(c, x, write);
	while (rc == MPIG_EBUSY && write && now_ns() < deadline) { // our own old connection may not have been noticed yet
		usleep(5000);
		rc = reopen(c, x, write);
	}
	if (rc == MPIG_EBUSY && write) {
		atomic_store(&x->writer, false);
		rc = reopen(c, x, false);
	}
	if (rc == NOT_SENT || c->fd < 0)
		return error_set(c, MPIG_ERETRY, "the daemon on %s went away again", c->path);
	if (rc == MPIG_ETIMEDOUT || rc == MPIG_ESHUTDOWN) // says nothing about the context
		return rc;
	const struct mpig_ctl_context_reply *r = (const void *)c->reply;
	if (rc == MPIG_OK && r->context.id == x->id && r->context.layer_count == x->layer_count) {
		take_state(x, &r->context);
		if (atomic_exchange(&x->appended, 0) > r->context.committed)
			atomic_store(&x->rows_lost, true);
		atomic_store(&x->fault, MPIG_OK);
		return MPIG_OK;
	}
	if (rc == MPIG_OK) { // another context of the same name
		struct mpig_ctl_open close_it = {.handle = x->handle};
		control_post(c, MPIG_CTL_CLOSE, &close_it, sizeof(close_it));
	}
	if (passing(rc))
		atomic_store(&c->unopened, true);
	atomic_store(&x->fault, rc == MPIG_OK || rc == MPIG_ENOENT ? MPIG_ELOST : rc);
	return MPIG_OK;
}

int contexts_reopen(mpig_client *c, uint64_t deadline)
{
	sweep_closed(c);
	atomic_store(&c->unopened, false);
	for (mpig_context *x = c->contexts; x; x = x->next) {
		int fault = atomic_load(&x->fault);
		if (x->closed || (fault && !passing(fault)))
			continue;
		int rc = context_reopen(c, x, deadline);
		if (rc)
			return rc;
	}
	return MPIG_OK;
}

// Lock held: another try at one whose reopening failed for a passing reason. The connection's own failure is returned, with its text; the
// context's is in x->fault, and its text is the last one of this thread.
static int context_again(mpig_client *c, mpig_context *x)
{
	int rc = client_connected(c); // a new connection has tried it already
	if (rc || !passing(atomic_load(&x->fault)))
		return rc;
	rc = context_reopen(c, x, 0);
	if (rc == MPIG_ETIMEDOUT) { // the daemon may open it yet, under a handle that the next try names as well
		struct mpig_ctl_open close_it = {.handle = x->handle};
		control_post(c, MPIG_CTL_CLOSE, &close_it, sizeof(close_it));
	}
	return rc;
}

void contexts_again(mpig_client *c)
{
	if (!atomic_load_explicit(&c->unopened, memory_order_relaxed))
		return;
	pthread_mutex_lock(&c->lock);
	atomic_store(&c->unopened, false);
	for (mpig_context *x = c->contexts; x; x = x->next)
		if (!x->closed && passing(atomic_load(&x->fault)) && context_again(c, x)) {
			atomic_store(&c->unopened, true);
			break;
		}
	pthread_mutex_unlock(&c->lock);
}

int context_usable(mpig_client *c, mpig_context *x)
{
	if (!x || x->client != c)
		return error_set(c, MPIG_EINVAL, "context is %s", x ? "of another client" : "NULL");
	int fault = atomic_load_explicit(&x->fault, memory_order_relaxed);
	if (!passing(fault))
		return fault ? error_set(c, fault, "context '%s': %s", x->name, mpig_status_text(fault)) : MPIG_OK;
	pthread_mutex_lock(&c->lock);
	int rc = context_again(c, x);
	fault = atomic_load(&x->fault);
	pthread_mutex_unlock(&c->lock);
	if (rc || !fault)
		return rc;
	char why[MPIG_TEXT_BYTES];
	snprintf(why, sizeof(why), "%s", passing(fault) ? mpig_last_error(c) : mpig_status_text(fault));
	return error_set(c, fault, "context '%s' could not be opened again: %s%s", x->name, why,
	                 passing(fault) ? " (every call tries again)" : "");
}

// ---- the public calls --------------------------------------------------------------------------------------------------

static int spec_check(const mpig_client *c, const struct mpig_spec *s)
{
	if (s->layer_count < 1 || s->layer_count > (int)MPIG_MAX_LAYERS)
		return error_set(c, MPIG_EINVAL, "spec.layer_count = %d: must be 1..%u", s->layer_count, MPIG_MAX_LAYERS);
	if (!s->layers)
		return error_set(c, MPIG_EINVAL, "spec.layers is NULL");
	if (s->mode & ~0666u)
		return error_set(c, MPIG_EINVAL, "spec.mode = 0%o: only read and write bits (0666)", s->mode);
	if (s->expected_tokens > MPIG_MAX_TOKENS)
		return error_set(c, MPIG_EINVAL, "spec.expected_tokens = %llu: a context has at most %llu",
		                 (unsigned long long)s->expected_tokens, (unsigned long long)MPIG_MAX_TOKENS);
	if (s->fingerprint_bytes && !s->fingerprint)
		return error_set(c, MPIG_EINVAL, "spec.fingerprint is NULL and fingerprint_bytes = %zu", s->fingerprint_bytes);
	return MPIG_OK;
}

int mpig_context_create(mpig_client *c, const char *name, const struct mpig_spec *spec, mpig_context **context)
{
	struct mpig_spec s;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	rc = rc ? rc : options_copy(c, "mpig_spec", spec, &s, sizeof(s));
	rc = rc ? rc : spec_check(c, &s);
	if (rc)
		return rc;
	size_t bytes = sizeof(struct mpig_ctl_create) + (size_t)s.layer_count * sizeof(struct mpig_wire_layer);
	struct mpig_ctl_create *request = calloc(1, bytes);
	if (!request)
		return error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	struct mpig_wire_layer *layers = (void *)(request + 1);
	rc = spec_to_wire(c, &s, layers);
	memcpy(request->name, name, strlen(name));
	fingerprint_hash(s.fingerprint, s.fingerprint_bytes, request->fingerprint);
	request->mode = s.mode;
	request->layer_count = (uint32_t)s.layer_count;
	request->seed = s.seed;
	request->expected_tokens = s.expected_tokens;
	request->policy = (struct mpig_wire_policy){.persist = (uint32_t)s.persist,
	                                            .idle_s = s.idle_s,
	                                            .ttl_s = s.ttl_s,
	                                            .flags = s.ttl_erase ? MPIG_POLICY_ERASE : 0};
	pthread_mutex_lock(&c->lock);
	mpig_context *x = NULL;
	rc = rc ? rc : context_allocate(c, &x);
	if (rc == MPIG_OK) {
		request->handle = x->handle;
		atomic_init(&x->writer, true);
		rc = context_bind(c, MPIG_CTL_CREATE, request, bytes, -1, x, NULL);
	}
	pthread_mutex_unlock(&c->lock);
	free(request);
	if (rc == MPIG_OK)
		*context = x;
	return rc;
}

static int open_options(const mpig_client *c, const struct mpig_open_options *given, struct mpig_open_options *o)
{
	int rc = options_copy(c, "mpig_open_options", given, o, sizeof(*o));
	if (rc)
		return rc;
	if (o->mode != MPIG_READ && o->mode != MPIG_WRITE)
		return error_set(c, MPIG_EINVAL, "mode = %d: must be MPIG_READ or MPIG_WRITE", o->mode);
	if (o->fingerprint_bytes && !o->fingerprint)
		return error_set(c, MPIG_EINVAL, "fingerprint is NULL and fingerprint_bytes = %zu", o->fingerprint_bytes);
	return MPIG_OK;
}

// Allocates, binds, hands over. `request` lacks only its handle.
static int open_with(mpig_client *c, uint16_t op, struct mpig_ctl_open *request, int fd, bool writer, mpig_context **context,
                     uint64_t *matched)
{
	mpig_context *x;
	pthread_mutex_lock(&c->lock);
	int rc = context_allocate(c, &x);
	if (rc == MPIG_OK) {
		request->handle = x->handle;
		atomic_init(&x->writer, writer);
		rc = context_bind(c, op, request, sizeof(*request), fd, x, matched);
	}
	pthread_mutex_unlock(&c->lock);
	if (rc == MPIG_OK)
		*context = x;
	return rc;
}

// What is on disk only is brought back first: the daemon says so until it is there.
static int open_or_load(mpig_client *c, uint16_t op, struct mpig_ctl_open *request, int fd, bool writer, mpig_context **context,
                        uint64_t *matched)
{
	long pause = 1000000;
	int rc = open_with(c, op, request, fd, writer, context, matched);
	while (rc == MPIG_EAGAIN) {
		nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
		pause = pause < 20000000 ? pause + pause / 2 : pause;
		rc = open_with(c, op, request, fd, writer, context, matched);
	}
	return rc;
}

int mpig_context_open(mpig_client *c, const char *name, const struct mpig_open_options *options, mpig_context **context)
{
	struct mpig_open_options o;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	rc = rc ? rc : open_options(c, options, &o);
	if (rc)
		return rc;
	struct mpig_ctl_open request = {.flags = MPIG_OPEN_LOAD | (o.mode == MPIG_WRITE ? MPIG_OPEN_WRITE : 0)};
	memcpy(request.name, name, strlen(name));
	fingerprint_hash(o.fingerprint, o.fingerprint_bytes, request.fingerprint);
	return open_or_load(c, MPIG_CTL_OPEN, &request, -1, o.mode == MPIG_WRITE, context, NULL);
}

// The token ids in a sealed memfd: no size limit of a datagram, and nothing for the daemon to map.
static int tokens_fd(const mpig_client *c, const uint32_t *tokens, uint64_t count, int *out)
{
	int fd = memfd_create("magicpig-tokens", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return error_set(c, MPIG_ENOMEM, "memfd_create: %s", strerror(errno));
	size_t bytes = count * sizeof(*tokens);
	for (size_t at = 0; at < bytes;) {
		ssize_t n = write(fd, (const uint8_t *)tokens + at, bytes - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			int reason = errno;
			close(fd);
			return error_set(c, MPIG_ENOMEM, "writing %zu bytes of token ids to a memfd: %s", bytes,
			                 strerror(reason));
		}
		at += (size_t)n;
	}
	fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	*out = fd;
	return MPIG_OK;
}

int mpig_context_open_prefix(mpig_client *c, const uint32_t *tokens, uint64_t count, const struct mpig_open_options *options,
                             mpig_context **context, uint64_t *matched)
{
	struct mpig_open_options o;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = open_options(c, options, &o);
	if (rc == MPIG_OK && o.fork_name)
		rc = name_check(c, "fork_name", o.fork_name);
	if (rc)
		return rc;
	if (!o.fingerprint_bytes)
		return error_set(c, MPIG_EINVAL, "fingerprint: required, or contexts of other models would match");
	if (!tokens || count < 1 || count > MPIG_MAX_TOKENS)
		return error_set(c, MPIG_EINVAL, "count = %llu: must be 1..%llu, with tokens not NULL", (unsigned long long)count,
		                 (unsigned long long)MPIG_MAX_TOKENS);
	bool writer = o.mode == MPIG_WRITE || o.fork_name;
	struct mpig_ctl_open request = {.flags = MPIG_OPEN_LOAD | (writer ? MPIG_OPEN_WRITE : 0) |
	                                         (o.fork_name ? MPIG_OPEN_FORK : 0),
	                                .tokens = count,
	                                .min_tokens = o.min_tokens ? o.min_tokens : 1};
	if (o.fork_name)
		memcpy(request.new_name, o.fork_name, strlen(o.fork_name));
	fingerprint_hash(o.fingerprint, o.fingerprint_bytes, request.fingerprint);
	int fd = -1;
	uint64_t common;
	rc = tokens_fd(c, tokens, count, &fd);
	if (rc)
		return rc;
	rc = open_or_load(c, MPIG_CTL_OPEN_PREFIX, &request, fd, writer, context, &common);
	close(fd);
	if (rc == MPIG_OK && matched)
		*matched = common;
	return rc;
}

int mpig_context_fork(mpig_context *parent, const char *new_name, uint64_t tokens, mpig_context **fork)
{
	if (!parent)
		return MPIG_EINVAL;
	mpig_client *c = parent->client;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = context_usable(c, parent);
	rc = rc ? rc : name_check(c, "new_name", new_name);
	if (rc)
		return rc;
	struct mpig_ctl_open request = {.flags = MPIG_OPEN_WRITE, .tokens = tokens};
	memcpy(request.name, parent->name, sizeof(request.name));
	memcpy(request.new_name, new_name, strlen(new_name));
	return open_with(c, MPIG_CTL_FORK, &request, -1, true, fork, NULL);
}

void mpig_context_close(mpig_context *x)
{
	if (!x || client_forked(x->client))
		return;
	mpig_client *c = x->client;
	struct mpig_ctl_open request = {.handle = x->handle};
	pthread_mutex_lock(&c->lock);
	if (c->fd >= 0 && !atomic_load(&x->fault))
		control_exchange(c, MPIG_CTL_CLOSE, &request, sizeof(request), -1, sizeof(struct mpig_control_header), NULL);
	x->closed = true;
	sweep_closed(c);
	pthread_mutex_unlock(&c->lock);
}

const char *mpig_context_name(const mpig_context *x)
{
	return x->name;
}

uint64_t mpig_context_committed(const mpig_context *x)
{
	return atomic_load_explicit(&x->committed, memory_order_relaxed);
}

int mpig_context_layer(const mpig_context *x, int layer, struct mpig_layer *out)
{
	if (!x || layer < 0 || (uint32_t)layer >= x->layer_count || !out)
		return MPIG_EINVAL;
	layer_from_wire(&x->layers[layer], out);
	return MPIG_OK;
}

uint32_t mpig_context_handle(const mpig_context *x)
{
	return x->handle;
}

uint32_t mpig_context_signature_version(const mpig_context *x)
{
	return atomic_load_explicit(&x->signature_version, memory_order_relaxed);
}
