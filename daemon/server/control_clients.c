// Control operations of those who look after the daemon: connections, what users hold, draining. Users see and end their own
// connections; root and the user the daemon runs as, everybody's.
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

static bool may_see(const struct peer *p, uint32_t uid)
{
	return p->who.uid == uid || peer_administers(p);
}

static struct mpig_wire_client describe(const struct peer *asking, const struct peer *p)
{
	struct mpig_wire_client out = {
		.id = p->id,
		.connected_ns = p->connected_ns,
		.uid = p->who.uid,
		.gid = p->who.gid,
		.pid = p->who.pid,
		.flags = (p->place ? MPIG_CLIENT_COUNTED : 0) | (p == asking ? MPIG_CLIENT_SELF : 0),
		.queues = p->queue_count,
	};
	if (p->session)
		out.handles = session_count(p->session, &out.leases);
	for (uint32_t i = 0; i < p->queue_count; i++) {
		out.region_bytes += p->queues[i]->geometry.region_bytes;
		out.in_flight += atomic_load_explicit(&p->queues[i]->in_flight, memory_order_relaxed);
	}
	if (p->place) {
		struct mpig_stats_use use = places_use(&p->server->clients, p->place);
		out.requests = use.requests;
		out.attends = use.attends;
		out.errors = use.errors;
		out.rows_read = use.rows_read;
		out.bytes_read = use.bytes_read;
		out.appended_rows = use.appended_rows;
		out.service_ns = use.service_ns;
	}
	memcpy(out.command, p->command, sizeof out.command);
	return out;
}

int control_clients(struct peer *p, struct request *r)
{
	const struct mpig_ctl_clients *in = (const void *)r->header;
	if (in->count || in->more || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "CLIENTS: all but before must be zero in a request");
	struct {
		struct mpig_ctl_clients page;
		struct mpig_wire_client client[MPIG_CLIENTS_PAGE];
	} *reply = calloc(1, sizeof *reply);
	if (!reply)
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	reply->page.before = in->before;
	for (const struct peer *each = p->server->peers; each && !reply->page.more; each = each->next) { // the newest first
		if ((in->before && each->id >= in->before) || each->refused || !may_see(p, each->who.uid))
			continue;
		reply->page.more = reply->page.count == MPIG_CLIENTS_PAGE;
		if (!reply->page.more)
			reply->client[reply->page.count++] = describe(p, each);
	}
	int status = control_reply(p, r, reply, sizeof reply->page + reply->page.count * sizeof reply->client[0], NULL, 0);
	free(reply);
	return status;
}

int control_kill(struct peer *p, struct request *r)
{
	const struct mpig_ctl_kill *in = (const void *)r->header;
	if (!mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "KILL: reserved fields must be zero");
	struct peer *victim = p->server->peers;
	while (victim && victim->id != in->id)
		victim = victim->next;
	if (!victim)
		return control_fail(r, MPIG_ENOENT, "there is no client %llu", (unsigned long long)in->id);
	if (!may_see(p, victim->who.uid))
		return control_fail(
			r, MPIG_EACCES,
			"client %llu belongs to uid %u: only that user and administrators may end it (root, the daemon's user, "
			"members of daemon.admin_group)",
			(unsigned long long)in->id, victim->who.uid);
	if (victim == p)
		return control_fail(r, MPIG_EINVAL, "client %llu is this connection", (unsigned long long)in->id);
	log_info("client %llu (pid %u uid %u) is ended by uid %u", (unsigned long long)victim->id, victim->who.pid,
	         victim->who.uid, p->who.uid);
	peer_close(victim, "it was ended by an administrator");
	struct mpig_control_header reply;
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_quota(struct peer *p, struct request *r)
{
	const struct mpig_ctl_quota *in = (const void *)r->header;
	struct server *s = p->server;
	size_t asked = offsetof(struct mpig_ctl_quota, bytes);
	if (!mpig_all_zero(&in->bytes, sizeof *in - asked) || in->group > 1)
		return control_fail(r, MPIG_EPROTO,
		                    "QUOTA: all but uid and group must be zero in a request, and group at most 1");
	uint32_t own = in->group ? p->who.gid : p->who.uid, number = in->uid == UINT32_MAX ? own : in->uid;
	if (!in->group && !may_see(p, number))
		return control_fail(r, MPIG_EACCES, "what uid %u holds is shown to that user, to root and to the daemon's user",
		                    number);
	if (in->group && !credentials_in_group(&p->who, number) && !peer_administers(p))
		return control_fail(r, MPIG_EACCES, "what gid %u holds is shown to that group, to root and to the daemon's user",
		                    number);
	uint64_t who = in->group ? ACCOUNT_GROUP(number) : number;
	const struct account *a = s->accounts;
	while (a && a->who != who)
		a = a->next;
	struct mpig_ctl_quota reply = {
		.uid = number,
		.group = in->group,
		.bytes = in->group ? store_gid_bytes(s->store, number) : store_uid_bytes(s->store, number),
		.bytes_limit = server_limit(s, who, OVERRIDE_BYTES),
		.contexts = in->group ? store_gid_contexts(s->store, number) : store_uid_contexts(s->store, number),
		.contexts_limit = server_limit(s, who, OVERRIDE_CONTEXTS),
		.clients = a ? a->clients : 0,
		.clients_limit = server_limit(s, who, OVERRIDE_CLIENTS),
		.queues = a ? a->queues : 0,
		.queues_limit = server_limit(s, who, OVERRIDE_QUEUES),
		.region_bytes = a ? a->region_bytes : 0,
		.region_bytes_limit = in->group ? 0 : s->options.limits.region_bytes_per_uid,
		.requests_limit = server_limit(s, who, OVERRIDE_REQUESTS),
	};
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_drain(struct peer *p, struct request *r)
{
	const struct mpig_ctl_drain *in = (const void *)r->header;
	struct server *s = p->server;
	if (in->drained || in->clients || in->queues || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "DRAIN: all but action must be zero in a request");
	if (in->action >= MPIG_DRAIN_ACTIONS)
		return control_fail(r, MPIG_EPROTO, "DRAIN: action %u is not known", in->action);
	bool drained = in->action == MPIG_DRAIN_LOOK ? s->drained : in->action == MPIG_DRAIN_BEGIN;
	if (drained != s->drained) {
		s->drained = drained;
		log_info(drained ? "drained by uid %u: no queue and no context is opened from now on"
		                 : "no longer drained, by uid %u",
		         p->who.uid);
		server_refresh_stats(s);
	}
	struct mpig_ctl_drain reply = {
		.action = in->action, .drained = s->drained, .clients = s->peer_count, .queues = s->queue_count};
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}
