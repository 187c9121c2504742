// Looking after a daemon: connections, what users hold, draining.
#include "internal.h"

#include <string.h>

#define LIST_END UINT64_MAX // cursor after the last page

static void client_from_wire(const struct mpig_wire_client *w, struct mpig_client_info *info)
{
	static_assert((int)MPIG_CLIENT_INFO_COUNTED == (int)MPIG_CLIENT_COUNTED, "the same flags");
	static_assert((int)MPIG_CLIENT_INFO_SELF == (int)MPIG_CLIENT_SELF, "the same flags");
	static_assert(sizeof(info->command) == sizeof(w->command), "the same field");
	*info = (struct mpig_client_info){
		.id = w->id,
		.connected_ns = w->connected_ns,
		.uid = w->uid,
		.gid = w->gid,
		.pid = w->pid,
		.flags = w->flags,
		.queues = w->queues,
		.contexts = w->handles,
		.leases = w->leases,
		.in_flight = w->in_flight,
		.region_bytes = w->region_bytes,
		.requests = w->requests,
		.attends = w->attends,
		.errors = w->errors,
		.rows_read = w->rows_read,
		.bytes_read = w->bytes_read,
		.appended_rows = w->appended_rows,
		.service_ns = w->service_ns,
	};
	memcpy(info->command, w->command, sizeof(info->command));
	info->command[sizeof(info->command) - 1] = 0;
}

static int take_clients(mpig_client *c, uint64_t *cursor, struct mpig_client_info *infos, uint32_t max)
{
	const struct mpig_ctl_clients *page = (const void *)c->reply;
	const struct mpig_wire_client *w = (const void *)(page + 1);
	int n = page_records(c, "clients", page->count, MPIG_CLIENTS_PAGE, sizeof(*page), sizeof(*w), max);
	for (int i = 0; i < n; i++) {
		struct mpig_client_info known;
		client_from_wire(&w[i], &known);
		int rc = options_return_at(c, "mpig_client_info", infos, i, &known, sizeof(known));
		if (rc)
			return rc;
	}
	if (n >= 0)
		*cursor = n && ((uint32_t)n < page->count || page->more) ? w[n - 1].id : LIST_END;
	return n;
}

int mpig_client_list(mpig_client *c, uint64_t *cursor, struct mpig_client_info *infos, int max)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (!cursor || !infos || max < 1)
		return error_set(c, MPIG_EINVAL, "max = %d: must be at least 1, with cursor and infos not NULL", max);
	if (*cursor == LIST_END)
		return 0;
	struct mpig_ctl_clients request = {.before = *cursor};
	pthread_mutex_lock(&c->lock);
	int rc = client_call(c, MPIG_CTL_CLIENTS, &request, sizeof(request), -1, sizeof(request), NULL);
	rc = rc ? rc : take_clients(c, cursor, infos, (uint32_t)max);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_client_kill(mpig_client *c, uint64_t id)
{
	if (client_forked(c))
		return MPIG_EFORK;
	struct mpig_ctl_kill request = {.id = id};
	pthread_mutex_lock(&c->lock);
	int rc = client_call(c, MPIG_CTL_KILL, &request, sizeof(request), -1, sizeof(struct mpig_control_header), NULL);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

static int quota_get(mpig_client *c, uint32_t number, uint32_t group, struct mpig_quota *quota)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (!quota)
		return error_set(c, MPIG_EINVAL, "quota is NULL");
	struct mpig_ctl_quota request = {.uid = number, .group = group};
	pthread_mutex_lock(&c->lock);
	int rc = client_call(c, MPIG_CTL_QUOTA, &request, sizeof(request), -1, sizeof(request), NULL);
	if (rc == MPIG_OK) {
		const struct mpig_ctl_quota *r = (const void *)c->reply;
		struct mpig_quota known = {
			.bytes = r->bytes,
			.bytes_limit = r->bytes_limit,
			.contexts = r->contexts,
			.contexts_limit = r->contexts_limit,
			.clients = r->clients,
			.clients_limit = r->clients_limit,
			.queues = r->queues,
			.queues_limit = r->queues_limit,
			.region_bytes = r->region_bytes,
			.region_bytes_limit = r->region_bytes_limit,
			.uid = r->uid,
			.group = r->group,
			.requests_limit = r->requests_limit,
		};
		rc = options_return(c, "mpig_quota", quota, &known, sizeof(known));
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_quota_get(mpig_client *c, uint32_t uid, struct mpig_quota *quota)
{
	return quota_get(c, uid, 0, quota);
}

int mpig_quota_get_group(mpig_client *c, uint32_t gid, struct mpig_quota *quota)
{
	return quota_get(c, gid, 1, quota);
}

int mpig_daemon_drain(mpig_client *c, int what, struct mpig_drain_state *state)
{
	static_assert((int)MPIG_DRAIN_ON == (int)MPIG_DRAIN_BEGIN && (int)MPIG_DRAIN_OFF == (int)MPIG_DRAIN_END,
	              "the same words");
	if (client_forked(c))
		return MPIG_EFORK;
	if (what < MPIG_DRAIN_STATE || what > MPIG_DRAIN_OFF)
		return error_set(c, MPIG_EINVAL, "what = %d: one of enum mpig_drain", what);
	struct mpig_ctl_drain request = {.action = (uint32_t)what};
	pthread_mutex_lock(&c->lock);
	int rc = client_call(c, MPIG_CTL_DRAIN, &request, sizeof(request), -1, sizeof(request), NULL);
	if (rc == MPIG_OK && state) {
		const struct mpig_ctl_drain *r = (const void *)c->reply;
		struct mpig_drain_state known = {.clients = r->clients, .queues = r->queues, .drained = r->drained};
		rc = options_return(c, "mpig_drain_state", state, &known, sizeof(known));
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}
