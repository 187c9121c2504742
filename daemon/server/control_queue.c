// Control operations on queues.
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

int control_check_region(struct peer *p, struct request *r, const struct account *a, uint64_t bytes, const char *advice)
{
	uint64_t limit = p->server->options.limits.region_bytes_per_uid;
	uint64_t most = server_limit(p->server, p->who.uid, OVERRIDE_QUEUES);
	if (!bytes)
		return MPIG_OK; // charged for it already
	if (a->leftovers >= (most ? most : MAX_QUEUES))
		return control_fail(
			r, MPIG_EQUOTA,
			"limits.queues_per_uid: uid %u has left %u regions of queues and recordings, which are kept for "
			"limits.region_keep or cannot be taken back yet: end the processes that have them",
			p->who.uid, a->leftovers);
	if (bytes > limit || a->region_bytes > limit - bytes)
		return control_fail(r, MPIG_EQUOTA,
		                    "limits.region_bytes_per_uid: this user's queues and recordings have %" PRIu64
		                    " bytes (%" PRIu64 " of connections that ended, kept for limits.region_keep), %" PRIu64
		                    " more would pass the limit of %" PRIu64 "; %s",
		                    a->region_bytes, a->left_bytes, bytes, limit, advice);
	return MPIG_OK;
}

static int check_quota(struct peer *p, struct request *r, const struct account *a, const struct account *group, uint64_t bytes)
{
	uint64_t user_limit = server_limit(p->server, p->who.uid, OVERRIDE_QUEUES),
		 group_limit = server_limit(p->server, ACCOUNT_GROUP(p->who.gid), OVERRIDE_QUEUES);
	if (user_limit && a->queues >= user_limit)
		return control_fail(r, MPIG_EQUOTA,
		                    "limits.queues_per_uid: uid %u has %u queues and may have %" PRIu64 ": destroy one",
		                    p->who.uid, a->queues, user_limit);
	if (group_limit && group->queues >= group_limit)
		return control_fail(r, MPIG_EQUOTA,
		                    "limits.queues_per_gid: gid %u has %u queues and may have %" PRIu64 ": destroy one",
		                    p->who.gid, group->queues, group_limit);
	return control_check_region(p, r, a, bytes, "use fewer or smaller slots");
}

static int put_in_service(struct peer *p, struct request *r, struct queue *q)
{
	if (workers_add_queue(p->server->workers, q) != MPIG_OK)
		return control_fail(r, MPIG_ELIMIT, "the daemon has %u queues, its limit", MAX_QUEUES);
	if (peer_add_queue(p, q) == MPIG_OK)
		return MPIG_OK;
	return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
}

int control_queue_create(struct peer *p, struct request *r)
{
	const struct mpig_ctl_queue_create *in = (const void *)r->header;
	struct server *s = p->server;
	if (in->adopt > 1 || r->fd_count != in->adopt || in->region_bytes || in->queue_id ||
	    !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(
			r, MPIG_EPROTO,
			"QUEUE_CREATE: adopt must be 1 with one file descriptor or 0 with none, reserved fields zero");
	struct queue_options o = {.entries = in->entries,
	                          .slot_count = in->slot_count,
	                          .slot_bytes = in->slot_bytes,
	                          .epoch = s->epoch,
	                          .max_query_tokens = s->options.limits.attend_max_tokens,
	                          .adopt_fd = in->adopt ? r->fds[0] : -1};
	uint64_t bytes = 0;
	int status = queue_region_bytes(&o, &bytes, r->why);
	if (status != MPIG_OK)
		return status;
	struct account *a = account_get(&s->accounts, p->who.uid); // there are both: they count this connection
	struct account *group = account_get(&s->accounts, ACCOUNT_GROUP(p->who.gid));
	if (in->adopt && server_region_in_use(s, o.adopt_fd))
		return control_fail(
			r, MPIG_EAGAIN,
			"the region to adopt is still another queue's, or requests of its last queue are being served");
	bool gone = false; // asked now: a queue that is gone leaves its region
	struct leftover *left = in->adopt ? leftovers_find(&s->leftovers, o.adopt_fd, &gone) : NULL;
	if (gone)
		return control_fail(r, MPIG_EINVAL, "the region to adopt was given up: its memory is being taken back");
	uint64_t charged = leftover_bytes_of(left, p->who.uid);
	status = check_quota(p, r, a, group, bytes - (charged < bytes ? charged : bytes));
	if (status != MPIG_OK)
		return status;
	if (s->queue_count >= MAX_QUEUES)
		return control_fail(r, MPIG_ELIMIT, "the daemon has %u queues, its limit", MAX_QUEUES);
	struct queue *q;
	int region_fd;
	status = queue_create(&o, p->session, &q, &region_fd, r->why);
	if (status != MPIG_OK)
		return status;
	leftovers_adopted(&s->leftovers, left); // the accounts stay: they count this connection
	q->id = s->next_queue_id++;
	q->uid = p->who.uid;
	q->client = p->id;
	if (!p->place)
		p->place = places_take(&s->clients, p->id, p->who.uid, p->who.pid);
	q->place = p->place;
	places_share(&s->clients, q->place); // until it is destroyed, which may be after its client has left
	q->gid = p->who.gid;
	q->rate[0] = &a->rate;
	q->rate[1] = &group->rate;
	q->tasks = &a->tasks;
	s->queue_count++;
	a->queues++;
	a->region_bytes += bytes;
	group->queues++;
	group->region_bytes += bytes;
	status = put_in_service(p, r, q);
	if (status == MPIG_OK) {
		struct mpig_ctl_queue_create reply = *in;
		reply.region_bytes = bytes;
		reply.queue_id = q->id;
		status = control_reply(p, r, &reply, sizeof reply, (int[]){region_fd, q->eventfd}, 2);
	} else {
		server_retire_queue(s, q, in->adopt ? p : NULL);
	}
	close(region_fd);
	server_refresh_stats(s);
	return status;
}

static void give_up(struct peer *p, struct queue *q)
{
	peer_forget_queue(p, q);
	server_retire_queue(p->server, q, NULL);
}

int control_queue_destroy(struct peer *p, struct request *r)
{
	const struct mpig_ctl_queue_destroy *in = (const void *)r->header;
	if (in->reserved)
		return control_fail(r, MPIG_EPROTO, "QUEUE_DESTROY: reserved fields must be zero");
	struct mpig_control_header reply;
	if (in->queue_id == MPIG_ALL_QUEUES) {
		while (p->queue_count)
			give_up(p, p->queues[p->queue_count - 1]);
		(void)control_reply(p, r, &reply, sizeof reply, NULL, 0); // who disconnects next does not wait for it
		return MPIG_OK;
	}
	struct queue *q = peer_queue(p, in->queue_id);
	if (!q)
		return control_fail(r, MPIG_EINVAL, "queue_id %u is no queue of this connection", in->queue_id);
	give_up(p, q);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}
