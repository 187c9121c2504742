// Control operations on the store on disk: begun here, done by the disk's thread, looked at again by the client.
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/disk/job.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

static int check_disk(struct peer *p, struct request *r, const struct mpig_ctl_disk *in)
{
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "DISK: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->state || in->done || in->total || in->tokens || in->bytes || in->moved || in->segments || in->shared ||
	    in->leftovers || in->orphans || in->damaged || in->dry > 1 || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "DISK: fields of the reply and reserved bytes must be zero in a request");
	if (in->work != MPIG_DISK_GC && (in->dry || in->damaged_days))
		return control_fail(r, MPIG_EPROTO, "DISK: dry and damaged_days belong to GC");
	if (in->work < MPIG_DISK_SAVE || in->work >= MPIG_DISK_WORKS)
		return control_fail(r, MPIG_EPROTO, "DISK: work %u is not known", in->work);
	if (!p->server->disk)
		return control_fail(r, MPIG_ENOTSUP, "this daemon keeps nothing on disk: set disk.dir in its configuration");
	if (!in->job && p->server->draining)
		return control_fail(r, MPIG_ESHUTDOWN, "the daemon is shutting down; connect again when it is back");
	return MPIG_OK;
}

#define DAYS_MAX 100000u // in nanoseconds that is still a number

static int begin_gc(struct disk_jobs *jobs, struct peer *p, struct request *r, const struct mpig_ctl_disk *in, uint64_t *job)
{
	if (in->damaged_days > DAYS_MAX && in->damaged_days != UINT32_MAX)
		return control_fail(r, MPIG_EINVAL, "DISK: damaged_days = %u: at most %u, or %u for none", in->damaged_days,
		                    DAYS_MAX, UINT32_MAX);
	uint64_t now = real_ns(), age = in->damaged_days * UINT64_C(86400000000000);
	struct disk_gc_options options = {.dry = in->dry,
	                                  .damaged_before_ns = in->damaged_days == UINT32_MAX ? 0
	                                                       : now > age                    ? now - age
	                                                                                      : 1};
	return disk_job_begin_gc(jobs, &p->who, &options, job, r->why);
}

int control_disk(struct peer *p, struct request *r)
{
	static_assert((int)MPIG_DISK_GC == (int)DISK_GC && (int)MPIG_DISK_WORKS == (int)DISK_WORKS, "the same numbers");
	const struct mpig_ctl_disk *in = (const void *)r->header;
	struct disk_jobs *jobs = p->server->jobs;
	struct disk_job_view view;
	uint64_t job = in->job;
	int status = check_disk(p, r, in);
	if (status == MPIG_OK && !job && in->work == MPIG_DISK_GC)
		status = begin_gc(jobs, p, r, in, &job);
	else if (status == MPIG_OK && !job)
		status = disk_job_begin(jobs, (enum disk_work)in->work, &p->who, in->name, &job, r->why);
	if (status != MPIG_OK)
		return status;
	status = disk_job_look(jobs, &p->who, job, &view);
	if (status == MPIG_ERETRY)
		return control_fail(
			r, status,
			"how this ended is not known any more: it ended long ago, and many have since; see what there is "
			"(magicpigctl ls, saved), and ask again if need be");
	if (status != MPIG_OK)
		return control_fail(r, MPIG_EINVAL, "DISK: there is no job %llu of yours", (unsigned long long)job);
	if (view.state == DISK_DONE && view.status != MPIG_OK) {
		if (view.status == MPIG_ECORRUPT)
			log_event(LOG_EVENT_DAMAGED, LOG_LEVEL_ERROR, "context '%s' on disk: %s", in->name, view.why);
		return control_fail(r, view.status, "%s", view.why);
	}
	if (view.state == DISK_DONE)
		server_refresh_stats(p->server);
	struct mpig_ctl_disk reply = {
		.work = in->work,
		.state = view.state,
		.job = job,
		.done = view.done,
		.total = view.total,
		.tokens = view.result.tokens,
		.bytes = view.result.bytes,
		.moved = view.result.moved,
		.segments = view.result.segments,
		.shared = view.result.shared,
		.leftovers = view.gc.leftovers,
		.orphans = view.gc.orphans,
		.damaged = view.gc.damaged,
	};
	if (in->work == MPIG_DISK_GC)
		reply.bytes = view.gc.bytes;
	memcpy(reply.name, in->name, sizeof reply.name);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}

int control_saved(struct peer *p, struct request *r)
{
	const struct mpig_ctl_saved *in = (const void *)r->header;
	if (!memchr(in->after, 0, sizeof in->after) || in->count > MPIG_LIST_PAGE || in->more ||
	    !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "SAVED: after must end with a zero, count be at most %u, and all else zero",
		                    MPIG_LIST_PAGE);
	if (!p->server->disk)
		return control_fail(r, MPIG_ENOTSUP, "this daemon keeps nothing on disk: set disk.dir in its configuration");
	struct {
		struct mpig_ctl_saved page;
		struct mpig_wire_saved context[MPIG_LIST_PAGE];
	} *reply = calloc(1, sizeof *reply);
	struct disk_saved *saved = calloc(MPIG_LIST_PAGE, sizeof *saved);
	int status = MPIG_OK;
	bool more = false;
	if (reply && saved)
		reply->page.count = disk_list(p->server->disk, &p->who, in->after, saved,
		                              in->count ? in->count : MPIG_LIST_PAGE_UNASKED, &more);
	else
		status = control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	for (uint32_t i = 0; status == MPIG_OK && i < reply->page.count; i++) {
		struct mpig_wire_saved *out = &reply->context[i];
		memcpy(out->name, saved[i].name, sizeof out->name);
		memcpy(out->fingerprint, saved[i].fingerprint, sizeof out->fingerprint);
		out->committed = saved[i].committed;
		out->bytes = saved[i].bytes;
		out->saved_ns = saved[i].saved_ns;
		out->uid = saved[i].identity.uid;
		out->gid = saved[i].identity.gid;
		out->mode = saved[i].identity.mode;
		out->policy = saved[i].policy;
	}
	if (status == MPIG_OK) {
		reply->page.more = more;
		status = control_reply(p, r, reply, sizeof reply->page + reply->page.count * sizeof reply->context[0], NULL, 0);
	}
	free(saved);
	free(reply);
	return status;
}

// ---- opening what is on disk -----------------------------------------------------------------------------------------

int control_load(struct peer *p, struct request *r, const char *name)
{
	struct server *s = p->server;
	struct disk_job_view view;
	if (!s->disk || !s->options.disk.load_on_open)
		return MPIG_ENOENT;
	if (!disk_has(s->disk, name)) // soon after the start it is not known yet what there is
		return disk_is_known(s->disk)
		               ? MPIG_ENOENT
		               : control_fail(r, MPIG_EAGAIN, "context '%s': the disk is being looked through", name);
	if (p->loading && strcmp(p->loading_name, name) != 0)
		p->loading = 0;
	int looked = p->loading ? disk_job_look(s->jobs, &p->who, p->loading, &view) : MPIG_OK;
	if (looked != MPIG_OK) // forgotten: again
		p->loading = 0;
	if (p->loading && view.state == DISK_DONE) {
		p->loading = 0;
		if (view.status != MPIG_OK && view.status != MPIG_EEXIST)
			return control_fail(r, view.status, "%s", view.why);
	}
	int status = p->loading ? MPIG_OK : disk_job_begin(s->jobs, DISK_LOAD, &p->who, name, &p->loading, r->why);
	if (status == MPIG_OK)
		status = disk_job_look(s->jobs, &p->who, p->loading, &view);
	if (status != MPIG_OK) {
		p->loading = 0;
		return status;
	}
	strcpy(p->loading_name, name);
	return control_fail(r, MPIG_EAGAIN, "context '%s' is being loaded from disk: %u %%", name,
	                    view.total ? (unsigned)(100 * view.done / view.total) : 0);
}
