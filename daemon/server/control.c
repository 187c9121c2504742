// Control messages: framing, the table of operations, and the small ones among them.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/control_access.h"
#include "daemon/server/peer.h"
#include "shm/abi.h"
#include "shm/status.h"
#include "shm/zero.h"

static const struct {
	const char *name;
	control_fn *fn;
	enum control_access access;
	size_t bytes; // of the fixed record
	bool longer;  // followed by more
	uint32_t max_fds;
	bool any_time; // while shutting down, too
	bool begins;   // not while the daemon is drained
} operations[MPIG_CTL_COUNT] = {
	[MPIG_CTL_HELLO] = {"HELLO", control_hello, CONTROL_ANYBODY, sizeof(struct mpig_ctl_hello), false, 0, true, false},
	[MPIG_CTL_PING] = {"PING", control_ping, CONTROL_ANYBODY, sizeof(struct mpig_control_header), false, 0, true, false},
	[MPIG_CTL_QUEUE_CREATE] = {"QUEUE_CREATE", control_queue_create, CONTROL_OWN_CONNECTION,
                                   sizeof(struct mpig_ctl_queue_create), false, 1, false, true},
	[MPIG_CTL_QUEUE_DESTROY] = {"QUEUE_DESTROY", control_queue_destroy, CONTROL_OWN_CONNECTION,
                                    sizeof(struct mpig_ctl_queue_destroy), false, 0, true, false},
	[MPIG_CTL_CREATE] = {"CREATE", control_create, CONTROL_CREATE, sizeof(struct mpig_ctl_create), true, 0, false, true},
	[MPIG_CTL_OPEN] = {"OPEN", control_open, CONTROL_OPEN, sizeof(struct mpig_ctl_open), false, 0, false, true},
	[MPIG_CTL_OPEN_PREFIX] = {"OPEN_PREFIX", control_open_prefix, CONTROL_WHAT_ONE_MAY_READ, sizeof(struct mpig_ctl_open),
                                  false, 1, false, true},
	[MPIG_CTL_CLOSE] = {"CLOSE", control_close, CONTROL_OWN_CONNECTION, sizeof(struct mpig_ctl_open), false, 0, true, false},
	[MPIG_CTL_DROP] = {"DROP", control_drop, CONTROL_OWN, sizeof(struct mpig_ctl_open), false, 0, false, false},
	[MPIG_CTL_LIST] = {"LIST", control_list, CONTROL_WHAT_ONE_MAY_READ, sizeof(struct mpig_ctl_list), false, 0, true, false},
	[MPIG_CTL_SHOW] = {"SHOW", control_show, CONTROL_READ, sizeof(struct mpig_ctl_open), false, 0, true, false},
	[MPIG_CTL_FORK] = {"FORK", control_fork, CONTROL_READ, sizeof(struct mpig_ctl_open), false, 0, false, true},
	[MPIG_CTL_CHMOD] = {"CHMOD", control_chmod, CONTROL_OWN, sizeof(struct mpig_ctl_open), false, 0, false, false},
	[MPIG_CTL_STATUS] = {"STATUS", control_status, CONTROL_ANYBODY, sizeof(struct mpig_control_header), false, 0, true,
                             false},
	[MPIG_CTL_CONFIG_GET] = {"CONFIG_GET", control_config_get, CONTROL_ANYBODY, sizeof(struct mpig_control_header), false, 0,
                                 true, false},
	[MPIG_CTL_VERIFY] = {"VERIFY", control_verify, CONTROL_READ, sizeof(struct mpig_ctl_verify), false, 0, false, false},
	[MPIG_CTL_DISK] = {"DISK", control_disk, CONTROL_DISK, sizeof(struct mpig_ctl_disk), false, 0, true, false},
	[MPIG_CTL_SAVED] = {"SAVED", control_saved, CONTROL_WHAT_ONE_MAY_READ, sizeof(struct mpig_ctl_saved), false, 0, true,
                            false},
	[MPIG_CTL_EVICT] = {"EVICT", control_evict, CONTROL_OWN, sizeof(struct mpig_ctl_open), false, 0, false, false},
	[MPIG_CTL_POLICY] = {"POLICY", control_policy, CONTROL_OWN, sizeof(struct mpig_ctl_policy), false, 0, false, false},
	[MPIG_CTL_REINDEX] = {"REINDEX", control_reindex, CONTROL_OWN, sizeof(struct mpig_ctl_reindex), false, 0, true, false},
	[MPIG_CTL_HEADS] = {"HEADS", control_heads, CONTROL_READ, sizeof(struct mpig_ctl_heads), false, 0, true, false},
	[MPIG_CTL_CONFIGURE] = {"CONFIGURE", control_configure, CONTROL_ADMIN, sizeof(struct mpig_ctl_configure), false, 0, false,
                                false},
	[MPIG_CTL_SIGNATURE] = {"SIGNATURE", control_signature, CONTROL_READ, sizeof(struct mpig_ctl_signature), false, 0, true,
                                false},
	[MPIG_CTL_STREAM] = {"STREAM", control_stream, CONTROL_STREAM, sizeof(struct mpig_ctl_stream), false, 0, false, false},
	[MPIG_CTL_CLIENTS] = {"CLIENTS", control_clients, CONTROL_OWN_USER, sizeof(struct mpig_ctl_clients), false, 0, true,
                              false},
	[MPIG_CTL_KILL] = {"KILL", control_kill, CONTROL_OWN_USER, sizeof(struct mpig_ctl_kill), false, 0, true, false},
	[MPIG_CTL_QUOTA] = {"QUOTA", control_quota, CONTROL_OWN_USER, sizeof(struct mpig_ctl_quota), false, 0, true, false},
	[MPIG_CTL_TRACE] = {"TRACE", control_trace, CONTROL_OWN, sizeof(struct mpig_ctl_trace), false, 0, false, false},
	[MPIG_CTL_PROFILE] = {"PROFILE", control_profile, CONTROL_OWN_USER, sizeof(struct mpig_ctl_profile), true, 0, false,
                              false},
	[MPIG_CTL_QUERIES] = {"QUERIES", control_queries, CONTROL_OWN, sizeof(struct mpig_ctl_queries), false, 0, true, false},
	[MPIG_CTL_DRAIN] = {"DRAIN", control_drain, CONTROL_DRAIN, sizeof(struct mpig_ctl_drain), false, 0, true, false},
};

int control_fail(struct request *r, int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(r->why, sizeof r->why, format, args);
	va_end(args);
	return status;
}

static struct mpig_control_header reply_header(const struct request *r, size_t bytes, int status)
{
	return (struct mpig_control_header){.magic = MPIG_CONTROL_MAGIC,
	                                    .version = MPIG_CONTROL_VERSION,
	                                    .op = r->header->op,
	                                    .size = (uint32_t)bytes,
	                                    .tag = r->header->tag,
	                                    .status = status};
}

int control_reply(struct peer *p, const struct request *r, void *reply, size_t bytes, const int *fds, uint32_t fd_count)
{
	struct mpig_control_header header = reply_header(r, bytes, MPIG_OK);
	memcpy(reply, &header, sizeof header);
	return loop_send(p->messages, reply, bytes, fds, fd_count) == 0 ? MPIG_OK : MPIG_EIO;
}

static bool answer_error(struct peer *p, const struct request *r, int status)
{
	const struct mpig_control_header *h = r->header;
	log_debug("client pid %u uid %u: %s: %s", p->who.pid, p->who.uid,
	          h->op < MPIG_CTL_COUNT && operations[h->op].name ? operations[h->op].name : "message",
	          r->why[0] ? r->why : mpig_status_text(status));
	struct mpig_stats *stats = p->server->stats.stats;
	stats_set(&stats->control_errors, stats->control_errors + 1);
	struct mpig_ctl_error reply = {.h = reply_header(r, sizeof reply, status)};
	snprintf(reply.text, sizeof reply.text, "%s", r->why[0] ? r->why : mpig_status_text(status));
	return loop_send(p->messages, &reply, sizeof reply, NULL, 0) == 0;
}

void control_answer_later(struct peer *p, const struct mpig_control_header *request, int status, const char *why, void *reply,
                          size_t bytes)
{
	struct request r = {.header = request};
	if (status != MPIG_OK)
		snprintf(r.why, sizeof r.why, "%s", why);
	bool taken = status == MPIG_OK ? control_reply(p, &r, reply, bytes, NULL, 0) == MPIG_OK : answer_error(p, &r, status);
	if (!taken)
		peer_close(p, "it does not read its answers");
}

static int check(struct peer *p, struct request *r)
{
	const struct mpig_control_header *h = r->header;
	if (p->refused == PEER_OVER_UID)
		return control_fail(r, MPIG_EQUOTA,
		                    "limits.clients_per_uid: uid %u has %llu connections and may have no more: close one",
		                    p->who.uid, (unsigned long long)server_limit(p->server, p->who.uid, OVERRIDE_CLIENTS));
	if (p->refused == PEER_OVER_GID)
		return control_fail(
			r, MPIG_EQUOTA, "limits.clients_per_gid: gid %u has %llu connections and may have no more: close one",
			p->who.gid, (unsigned long long)server_limit(p->server, ACCOUNT_GROUP(p->who.gid), OVERRIDE_CLIENTS));
	if (h->version != MPIG_CONTROL_VERSION)
		return control_fail(r, MPIG_EVERSION, "the message has control version %u, this daemon (%s) speaks %u",
		                    h->version, MPIG_VERSION_STRING, MPIG_CONTROL_VERSION);
	if (h->op >= MPIG_CTL_COUNT || !operations[h->op].fn)
		return control_fail(r, MPIG_ENOTSUP, "operation %u is not known to this daemon (%s)", h->op, MPIG_VERSION_STRING);
	const char *name = operations[h->op].name;
	size_t want = operations[h->op].bytes;
	if (operations[h->op].longer ? r->bytes < want : r->bytes != want)
		return control_fail(r, MPIG_EPROTO, "%s has %zu bytes; %s%zu expected", name, r->bytes,
		                    operations[h->op].longer ? "at least " : "", want);
	if (h->status || h->reserved)
		return control_fail(r, MPIG_EPROTO, "%s: status and reserved must be zero in a request", name);
	if (r->fd_count > operations[h->op].max_fds)
		return control_fail(r, MPIG_EPROTO, "%s carries %u file descriptors; at most %u expected", name, r->fd_count,
		                    operations[h->op].max_fds);
	if (!p->greeted && h->op != MPIG_CTL_HELLO && h->op != MPIG_CTL_PING)
		return control_fail(r, MPIG_EPROTO, "%s before HELLO: say HELLO first", name);
	if (p->server->draining && !operations[h->op].any_time)
		return control_fail(r, MPIG_ESHUTDOWN, "the daemon is shutting down; connect again when it is back");
	if (p->server->drained && operations[h->op].begins)
		return control_fail(r, MPIG_ESHUTDOWN,
		                    "the daemon is drained: it opens no queue and no context until `magicpigctl drain --undo`");
	return control_access_check(p, r, operations[h->op].access);
}

bool control_handle(struct peer *p, struct loop_message *message)
{
	struct mpig_stats *stats = p->server->stats.stats;
	stats_set(&stats->control_messages, stats->control_messages + 1);
	const struct mpig_control_header *h = (const void *)message->data;
	if (message->too_long || message->bytes < sizeof *h || h->magic != MPIG_CONTROL_MAGIC || h->size != message->bytes)
		return false;
	struct request r = {.header = h, .bytes = message->bytes, .fds = message->fds, .fd_count = message->fd_count};
	int status = check(p, &r);
	if (status == MPIG_OK)
		status = operations[h->op].fn(p, &r);
	if (status == MPIG_OK)
		return true;
	if (status == MPIG_EIO && !r.why[0])
		return false; // the answer could not be sent
	return answer_error(p, &r, status);
}

// ---- small operations ------------------------------------------------------------------------------------------------
int control_hello(struct peer *p, struct request *r)
{
	const struct mpig_ctl_hello *in = (const void *)r->header;
	if (in->abi_version != MPIG_ABI_VERSION)
		return control_fail(
			r, MPIG_EVERSION,
			"the client has ABI version %u, this daemon (%s) has %u: use a library of the daemon's version",
			in->abi_version, MPIG_VERSION_STRING, MPIG_ABI_VERSION);
	if (in->pid_reserved || in->list_page || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "HELLO: reserved fields must be zero");
	p->greeted = true;
	struct server *s = p->server;
	struct mpig_ctl_hello reply = {
		.abi_version = MPIG_ABI_VERSION,
		.epoch = s->epoch,
		.version = MPIG_VERSION_STRING,
		.max_slot_bytes = MPIG_MAX_SLOT_BYTES,
		.max_region_bytes = MPIG_MAX_REGION_BYTES,
		.max_entries = MPIG_MAX_QUEUE_ENTRIES,
		.workers = s->workers->options.count,
		.list_page = MPIG_LIST_PAGE,
	};
	snprintf(reply.instance, sizeof reply.instance, "%s", s->options.daemon.instance);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_ping(struct peer *p, struct request *r)
{
	struct mpig_control_header reply;
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

static void add_worker(struct mpig_ctl_status_reply *reply, const struct mpig_stats_worker *w)
{
	reply->attends += stats_get(&w->requests[MPIG_OP_ATTEND]);
	reply->commits += stats_get(&w->requests[MPIG_OP_COMMIT]);
	reply->appended_rows += stats_get(&w->appended_rows);
	reply->rows_read += stats_get(&w->rows_read);
	reply->bytes_read += stats_get(&w->bytes_read);
	reply->errors += stats_get(&w->errors);
}

int control_status(struct peer *p, struct request *r)
{
	struct server *s = p->server;
	struct store_totals totals;
	store_totals(s->store, &totals);
	struct mpig_ctl_status_reply reply = {
		.epoch = s->epoch,
		.uptime_ns = mono_ns() - s->start_ns,
		.pool_bytes = pool_bytes(s->pool),
		.pool_used = pool_used(s->pool),
		.pool_metadata = totals.metadata_bytes,
		.contexts = totals.contexts,
		.clients = s->peer_count,
		.queues = s->queue_count,
		.quota_bytes = server_limit(s, p->who.uid, OVERRIDE_BYTES),
		.quota_used = store_uid_bytes(s->store, p->who.uid),
		.workers = s->workers->options.count,
		.pid = (uint32_t)getpid(),
		.drained = s->drained,
		.version = MPIG_VERSION_STRING,
	};
	for (uint32_t i = 0; i < s->workers->options.count; i++)
		add_worker(&reply, &s->stats.stats->worker[i]);
	snprintf(reply.instance, sizeof reply.instance, "%s", s->options.daemon.instance);
	snprintf(reply.kernels, sizeof reply.kernels, "%s", s->kernels_name);
	snprintf(reply.io_backend, sizeof reply.io_backend, "%s", loop_backend_name(s->loop));
	snprintf(reply.pool_dir, sizeof reply.pool_dir, "%s", s->options.pool.dir);
	snprintf(reply.config_file, sizeof reply.config_file, "%s", s->options.config_file);
	snprintf(reply.stats_file, sizeof reply.stats_file, "%s", s->stats.path);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}
