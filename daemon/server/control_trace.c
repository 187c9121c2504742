// The control operation TRACE: queries of a context are recorded.
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

static struct log_limit recorded_limit = LOG_LIMIT_INIT;

static int check_trace(struct request *r, const struct mpig_ctl_trace *in)
{
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "TRACE: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->region_bytes || in->context_id || in->began_ns || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "TRACE: fields of the reply and reserved bytes must be zero in a request");
	if (in->action == MPIG_TRACE_STOP)
		return in->ring_bytes ? control_fail(r, MPIG_EPROTO, "TRACE: ring_bytes must be zero to stop") : MPIG_OK;
	if (in->action != MPIG_TRACE_START || in->number)
		return control_fail(r, MPIG_EPROTO, "TRACE: action %u is not known, or number %u is given to start", in->action,
		                    in->number);
	if (in->ring_bytes < MPIG_TRACE_RING_MIN || in->ring_bytes > MPIG_TRACE_RING_MAX || in->ring_bytes % 4096)
		return control_fail(r, MPIG_EINVAL, "ring_bytes %llu: a multiple of 4096 from %llu to %llu",
		                    (unsigned long long)in->ring_bytes, (unsigned long long)MPIG_TRACE_RING_MIN,
		                    (unsigned long long)MPIG_TRACE_RING_MAX);
	return MPIG_OK;
}

static void charge(struct peer *p, uint64_t bytes)
{
	account_get(&p->server->accounts, p->who.uid)->region_bytes += bytes; // there are both: they count this connection
	account_get(&p->server->accounts, ACCOUNT_GROUP(p->who.gid))->region_bytes += bytes;
}

static int stop(struct peer *p, struct request *r, const struct mpig_ctl_trace *in)
{
	struct left_region ring = {.uid = p->who.uid, .gid = p->who.gid};
	if (in->number)
		ring.bytes = recordings_stop(p->server->recordings, p->id, in->number, MPIG_TRACE_STOPPED, &ring.base);
	if (!ring.bytes)
		return control_fail(r, MPIG_EINVAL, "recording %u is none of this connection", in->number);
	server_leave_region(p->server, &ring, true, -1);
	struct mpig_ctl_trace reply = {.action = in->action, .number = in->number};
	memcpy(reply.name, in->name, sizeof reply.name);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_trace(struct peer *p, struct request *r)
{
	static const uint8_t any_fingerprint[64];
	const struct mpig_ctl_trace *in = (const void *)r->header;
	struct server *s = p->server;
	int fd, status = check_trace(r, in);
	if (status != MPIG_OK)
		return status;
	if (in->action == MPIG_TRACE_STOP)
		return stop(p, r, in);
	struct context *c;
	status = store_context_open(s->store, &p->who, in->name, any_fingerprint, &c, r->why);
	if (status != MPIG_OK)
		return status;
	struct recording_wish wish = {.context = context_id(c),
	                              .client = p->id,
	                              .ring_bytes = in->ring_bytes,
	                              .uid = p->who.uid,
	                              .admin = peer_administers(p),
	                              .name = in->name};
	context_unref(c);
	struct mpig_ctl_trace reply = {.action = in->action,
	                               .ring_bytes = in->ring_bytes,
	                               .region_bytes = sizeof(struct mpig_trace_ring) + in->ring_bytes,
	                               .context_id = wish.context};
	memcpy(reply.name, in->name, sizeof reply.name);
	status = control_check_region(p, r, account_get(&s->accounts, p->who.uid), reply.region_bytes, "use a smaller ring");
	if (status == MPIG_OK)
		status = recordings_start(s->recordings, &wish, &reply.number, &reply.began_ns, &fd, r->why);
	if (status != MPIG_OK)
		return status;
	charge(p, reply.region_bytes);
	log_limited(&recorded_limit, LOG_LEVEL_INFO, "context '%s': its queries are recorded by uid %u, pid %u", in->name,
	            p->who.uid, p->who.pid);
	status = control_reply(p, r, &reply, sizeof reply, &fd, 1);
	close(fd); // the client has it now, or nobody
	return status;
}
