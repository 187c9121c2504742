// Control operations on contexts. The store decides who may do what; here messages are checked, handles bound and answers built.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/server/peer.h"
#include "daemon/store/image.h"
#include "shm/status.h"
#include "shm/zero.h"

#define MAX_PREFIX_TOKENS (UINT64_C(1) << 24) // of one search: 64 MiB that a client makes the daemon read

static bool terminated(const char *text, size_t bytes)
{
	return memchr(text, '\0', bytes) != NULL;
}

static int check_open(struct request *r, const struct mpig_ctl_open *in)
{
	if (!terminated(in->name, sizeof in->name) || !terminated(in->new_name, sizeof in->new_name))
		return control_fail(r, MPIG_EPROTO, "name and new_name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->reserved0 || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "reserved fields must be zero");
	if (in->flags & ~(uint32_t)MPIG_OPEN_FLAGS)
		return control_fail(r, MPIG_EPROTO, "flags %#x: only %#x are known", in->flags, MPIG_OPEN_FLAGS);
	return MPIG_OK;
}

// What only a disk can keep is not promised without one.
static int check_policy(struct peer *p, struct request *r, const struct mpig_wire_policy *policy)
{
	bool disk = policy->persist > MPIG_PERSIST_NONE || policy->flags & MPIG_POLICY_ERASE;
	if (disk && !p->server->disk)
		return control_fail(r, MPIG_ENOTSUP, "this daemon keeps nothing on disk: set disk.dir in its configuration");
	return MPIG_OK;
}

static int check_handle(struct peer *p, struct request *r, uint32_t handle)
{
	int status = session_free_handle(p->session, handle);
	if (status == MPIG_ELIMIT)
		return control_fail(r, status, "handle %u: a connection has handles 0 to %u", handle, MPIG_MAX_HANDLES - 1);
	if (status == MPIG_EBUSY)
		return control_fail(r, status, "handle %u is in use on this connection; close it first", handle);
	return status;
}

// The profile that the context's answers go by if it is opened now.
static const struct profile_entry *profile_of(const struct server *s, const struct context *c)
{
	return profiles_of(&s->profiles, context_owner(c), context_fingerprint(c));
}

static uint32_t whose_profile(const struct server *s, uint32_t owner, const void *fingerprint)
{
	const struct profile_entry *e = profiles_of(&s->profiles, owner, fingerprint);
	return !e ? MPIG_PROFILE_NONE : e->uid == MPIG_PROFILE_ALL ? MPIG_PROFILE_COMMON : MPIG_PROFILE_OWNER;
}

static void describe(struct peer *p, struct context *c, struct mpig_wire_context *out)
{
	store_context_info(p->server->store, c, out);
	out->profile = whose_profile(p->server, out->uid, out->fingerprint);
	if (recordings_of(p->server->recordings, out->id))
		out->flags |= MPIG_CONTEXT_RECORDED;
}

static int reply_context(struct peer *p, struct request *r, struct context *c, uint32_t handle, uint64_t matched)
{
	struct mpig_ctl_context_reply reply = {0};
	describe(p, c, &reply.context);
	reply.context.handle = handle;
	reply.context.matched = matched;
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

// Takes the lease if asked to, binds the handle and answers. Takes over the reference of `c` in every case.
static int bind_and_reply(struct peer *p, struct request *r, struct context *c, uint32_t handle, bool write, uint64_t matched)
{
	struct server *s = p->server;
	uint64_t holder = 0;
	if (write) {
		uint64_t next = s->next_holder++;
		int status = context_lease(s->store, c, &p->who, next, r->why);
		if (status != MPIG_OK) {
			context_unref(c);
			return status;
		}
		holder = next;
	}
	uint32_t place = places_take(&s->contexts, context_id(c), context_owner(c), 0);
	struct engine_default *defaults = profiles_defaults(profile_of(s, c), c);
	int status = session_bind(p->session, handle, s->store, c, holder, &s->contexts, place, defaults);
	if (status != MPIG_OK) {
		free(defaults);
		places_leave(&s->contexts, place);
		if (holder)
			context_release(s->store, c, holder);
		context_unref(c);
		return control_fail(r, status, "handle %u cannot be bound: %s", handle, mpig_status_text(status));
	}
	return reply_context(p, r, c, handle, matched);
}

int control_create(struct peer *p, struct request *r)
{
	const struct mpig_ctl_create *in = (const void *)r->header;
	if (in->layer_count == 0 || in->layer_count > MPIG_MAX_LAYERS)
		return control_fail(r, MPIG_EINVAL, "layer_count %u: 1 to %u", in->layer_count, MPIG_MAX_LAYERS);
	if (r->bytes != sizeof *in + in->layer_count * sizeof(struct mpig_wire_layer))
		return control_fail(r, MPIG_EPROTO, "CREATE has %zu bytes; %zu expected for %u layers", r->bytes,
		                    sizeof *in + in->layer_count * sizeof(struct mpig_wire_layer), in->layer_count);
	if (!terminated(in->name, sizeof in->name) || !mpig_all_zero(in->reserved, sizeof in->reserved) || in->flags)
		return control_fail(r, MPIG_EPROTO,
		                    "CREATE: name must end with a zero within %u bytes, flags and reserved must be zero",
		                    MPIG_NAME_BYTES);
	int status = check_handle(p, r, in->handle);
	if (status != MPIG_OK)
		return status;
	status = check_policy(p, r, &in->policy);
	if (status != MPIG_OK)
		return status;
	static struct mpig_wire_layer layers[MPIG_MAX_LAYERS]; // the control thread's
	struct context *c;
	memcpy(layers, in + 1, in->layer_count * sizeof layers[0]);
	profiles_resolve(profiles_of(&p->server->profiles, p->who.uid, (const uint8_t *)in->fingerprint), layers,
	                 in->layer_count);
	status = store_context_create(p->server->store, &p->who, in, layers, &c, r->why);
	if (status != MPIG_OK)
		return status;
	status = bind_and_reply(p, r, c, in->handle, true, 0);
	if (status != MPIG_OK && status != MPIG_EIO) {
		char ignored[MPIG_TEXT_BYTES];
		store_context_drop(p->server->store, &p->who, in->name, ignored);
	}
	server_refresh_stats(p->server);
	return status;
}

int control_open(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	int status = check_open(r, in);
	if (status == MPIG_OK && in->flags & MPIG_OPEN_FORK)
		return control_fail(r, MPIG_EINVAL, "OPEN: MPIG_OPEN_FORK belongs to OPEN_PREFIX; use FORK");
	if (status == MPIG_OK)
		status = check_handle(p, r, in->handle);
	struct context *c;
	if (status == MPIG_OK)
		status = store_context_open(p->server->store, &p->who, in->name, (const uint8_t *)in->fingerprint, &c, r->why);
	if (status == MPIG_ENOENT && in->flags & MPIG_OPEN_LOAD)
		status = control_load(p, r, in->name);
	if (status != MPIG_OK)
		return status;
	return bind_and_reply(p, r, c, in->handle, in->flags & MPIG_OPEN_WRITE, 0);
}

// The tokens lie in a file of the client's. Only tmpfs (a memfd is one): reading another file system may wait for a device, a
// server, or the client itself.
static int read_tokens(struct request *r, uint64_t count, uint32_t **tokens)
{
	if (r->fd_count != 1)
		return control_fail(r, MPIG_EPROTO, "OPEN_PREFIX: one file descriptor with the token ids expected");
	if (count == 0 || count > MAX_PREFIX_TOKENS)
		return control_fail(r, MPIG_ELIMIT, "tokens %" PRIu64 ": a prefix search takes 1 to %" PRIu64, count,
		                    MAX_PREFIX_TOKENS);
	struct stat st;
	struct statfs fs;
	int mode = fcntl(r->fds[0], F_GETFL);
	if (mode < 0 || (mode & O_ACCMODE) == O_WRONLY || fstat(r->fds[0], &st) != 0 || fstatfs(r->fds[0], &fs) != 0 ||
	    !S_ISREG(st.st_mode) || fs.f_type != TMPFS_MAGIC)
		return control_fail(r, MPIG_EINVAL, "OPEN_PREFIX: the token ids must be in a readable memfd");
	if ((uint64_t)st.st_size < count * sizeof(uint32_t))
		return control_fail(r, MPIG_EINVAL, "OPEN_PREFIX: the file has %lld bytes, %" PRIu64 " tokens need %" PRIu64,
		                    (long long)st.st_size, count, count * sizeof(uint32_t));
	uint32_t *read = malloc(count * sizeof *read);
	if (!read)
		return control_fail(r, MPIG_ENOMEM, "the daemon has no memory for %" PRIu64 " tokens", count);
	for (size_t done = 0, all = count * sizeof *read; done < all;) {
		ssize_t n = pread(r->fds[0], (uint8_t *)read + done, all - done, (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) { // made shorter meanwhile
			free(read);
			return control_fail(r, MPIG_EINVAL, "OPEN_PREFIX: the file ends before its tokens");
		}
		done += (size_t)n;
	}
	*tokens = read;
	return MPIG_OK;
}

// Replaces *c by its fork at `tokens`.
static int fork_context(struct peer *p, struct request *r, struct context **c, uint64_t tokens, const char *new_name)
{
	struct context *child;
	int status = store_context_fork(p->server->store, &p->who, *c, tokens, new_name, &child, r->why);
	context_unref(*c);
	if (status == MPIG_OK)
		*c = child;
	return status;
}

int control_open_prefix(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	int status = check_open(r, in);
	if (status == MPIG_OK)
		status = check_handle(p, r, in->handle);
	uint32_t *tokens = NULL;
	if (status == MPIG_OK)
		status = read_tokens(r, in->tokens, &tokens);
	if (status != MPIG_OK)
		return status;
	const struct prefix_query query = {
		.fingerprint = (const uint8_t *)in->fingerprint,
		.tokens = tokens,
		.count = in->tokens,
		.min_tokens = in->min_tokens,
		.saved = in->flags & MPIG_OPEN_LOAD && p->server->disk && p->server->options.disk.load_on_open,
	};
	struct prefix_found found = {0};
	status = store_find_prefix(p->server->store, &p->who, &query, &found, r->why);
	free(tokens);
	if (status == MPIG_OK && !found.context)
		status = control_load(p, r, found.saved); // never 0: the client asks again
	bool fork = in->flags & MPIG_OPEN_FORK;
	if (status == MPIG_OK && fork)
		status = fork_context(p, r, &found.context, found.matched, in->new_name);
	if (status != MPIG_OK)
		return status;
	status = bind_and_reply(p, r, found.context, in->handle, fork || in->flags & MPIG_OPEN_WRITE, found.matched);
	server_refresh_stats(p->server);
	return status;
}

int control_fork(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	static const uint8_t any_fingerprint[64];
	int status = check_open(r, in);
	if (status == MPIG_OK)
		status = check_handle(p, r, in->handle);
	struct context *c;
	if (status == MPIG_OK)
		status = store_context_open(p->server->store, &p->who, in->name, any_fingerprint, &c, r->why);
	if (status == MPIG_OK)
		status = fork_context(p, r, &c, in->tokens, in->new_name);
	if (status != MPIG_OK)
		return status;
	status = bind_and_reply(p, r, c, in->handle, true, in->tokens);
	server_refresh_stats(p->server);
	return status;
}

static int reply_empty(struct peer *p, struct request *r)
{
	struct mpig_control_header reply;
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_close(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	if (session_unbind(p->session, in->handle) != MPIG_OK)
		return control_fail(r, MPIG_EINVAL, "handle %u is not open on this connection", in->handle);
	return reply_empty(p, r);
}

int control_drop(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	int status = check_open(r, in);
	if (status == MPIG_OK)
		status = store_context_drop(p->server->store, &p->who, in->name, r->why);
	if (status != MPIG_OK)
		return status;
	server_refresh_stats(p->server);
	return reply_empty(p, r);
}

int control_evict(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	int status = check_open(r, in);
	if (status == MPIG_OK)
		status = store_context_evict(p->server->store, &p->who, in->name, r->why);
	if (status != MPIG_OK)
		return status;
	server_refresh_stats(p->server);
	return reply_empty(p, r);
}

int control_policy(struct peer *p, struct request *r)
{
	const struct mpig_ctl_policy *in = (const void *)r->header;
	if (!terminated(in->name, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "POLICY: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->reserved0 || !mpig_all_zero(in->reserved, sizeof in->reserved) || !in->set || in->set & ~(uint32_t)MPIG_SET_ALL)
		return control_fail(r, MPIG_EPROTO,
		                    "POLICY: set names no part or one that is not known, or reserved fields are not zero");
	struct mpig_ctl_policy reply = {.set = in->set};
	int status = check_policy(p, r, &in->policy);
	if (status == MPIG_OK)
		status = store_context_policy(p->server->store, &p->who, in->name, in->set, &in->policy, &reply.policy, r->why);
	if (status != MPIG_OK)
		return status;
	memcpy(reply.name, in->name, sizeof reply.name);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_chmod(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	int status = check_open(r, in);
	if (status == MPIG_OK)
		status = store_context_chmod(p->server->store, &p->who, in->name, in->mode, in->uid, in->gid, r->why);
	if (status != MPIG_OK)
		return status;
	recordings_revoke(p->server->recordings, in->name);
	return reply_empty(p, r);
}

int control_list(struct peer *p, struct request *r)
{
	const struct mpig_ctl_list *in = (const void *)r->header;
	if (in->count > MPIG_LIST_PAGE || in->reserved)
		return control_fail(r, MPIG_EPROTO, "LIST: count must be at most %u, and reserved zero", MPIG_LIST_PAGE);
	struct {
		struct mpig_ctl_list list;
		struct mpig_wire_context context[MPIG_LIST_PAGE];
	} *reply = calloc(1, sizeof *reply);
	if (!reply)
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	reply->list.cursor = in->cursor;
	reply->list.count = store_context_list(p->server->store, &p->who, &reply->list.cursor, reply->context,
	                                       in->count ? in->count : MPIG_LIST_PAGE_UNASKED);
	for (uint32_t i = 0; i < reply->list.count && recordings_any(p->server->recordings); i++)
		if (recordings_of(p->server->recordings, reply->context[i].id))
			reply->context[i].flags |= MPIG_CONTEXT_RECORDED;
	for (uint32_t i = 0; i < reply->list.count; i++)
		reply->context[i].profile = whose_profile(p->server, reply->context[i].uid, reply->context[i].fingerprint);
	size_t bytes = sizeof reply->list + reply->list.count * sizeof reply->context[0];
	int status = control_reply(p, r, reply, bytes, NULL, 0);
	free(reply);
	return status;
}

int control_show(struct peer *p, struct request *r)
{
	const struct mpig_ctl_open *in = (const void *)r->header;
	int status = check_open(r, in);
	struct context *c;
	if (status == MPIG_OK)
		status = store_context_open(p->server->store, &p->who, in->name, (const uint8_t *)in->fingerprint, &c, r->why);
	if (status != MPIG_OK)
		return status;
	uint32_t layers = context_layer_count(c);
	size_t bytes = sizeof(struct mpig_ctl_context_reply) + layers * sizeof(struct mpig_wire_layer);
	struct mpig_ctl_context_reply *reply = calloc(1, bytes);
	if (!reply) {
		context_unref(c);
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	}
	describe(p, c, &reply->context);
	struct mpig_wire_layer *out = (struct mpig_wire_layer *)(void *)(reply + 1);
	for (uint32_t i = 0; i < layers; i++)
		out[i] = *context_spec_layer(c, i);
	context_unref(c);
	status = control_reply(p, r, reply, bytes, NULL, 0);
	free(reply);
	return status;
}

int control_verify(struct peer *p, struct request *r)
{
	const struct mpig_ctl_verify *in = (const void *)r->header;
	if (!terminated(in->name, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "VERIFY: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->bytes || in->checked || in->unchecked || in->damaged || in->more ||
	    !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "VERIFY: fields of the reply and reserved bytes must be zero in a request");
	struct verify_part part = {.segment = in->segment, .part = in->part, .sum = in->sum};
	int status = store_context_verify(p->server->store, &p->who, in->name, &part, r->why);
	if (status != MPIG_OK)
		return status;
	if (part.damaged)
		log_event(LOG_EVENT_DAMAGED, LOG_LEVEL_ERROR,
		          "context '%s': segment %u, part %u does not have its checksum: its rows or its index are damaged",
		          in->name, in->segment, in->part);
	struct mpig_ctl_verify reply = {
		.segment = part.segment,
		.part = part.part,
		.sum = part.sum,
		.bytes = part.bytes,
		.checked = part.checked,
		.unchecked = part.unchecked,
		.damaged = part.damaged,
		.more = part.more,
	};
	memcpy(reply.name, in->name, sizeof reply.name);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}
