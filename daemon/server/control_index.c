// The control operation REINDEX: begun here, done by the indexer's thread, looked at again by the client.
#include <string.h>

#include "daemon/server/indexer.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

static int check_reindex(struct peer *p, struct request *r, const struct mpig_ctl_reindex *in)
{
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "REINDEX: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->state || in->signature_version || in->done || in->total || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "REINDEX: fields of the reply and reserved bytes must be zero in a request");
	if (!in->job && p->server->draining)
		return control_fail(r, MPIG_ESHUTDOWN, "the daemon is shutting down; connect again when it is back");
	return MPIG_OK;
}

static int begin(struct peer *p, struct request *r, const char *name, uint64_t *job)
{
	static const uint8_t any_fingerprint[64];
	struct context *c;
	int status = store_context_open(p->server->store, &p->who, name, any_fingerprint, &c, r->why);
	if (status != MPIG_OK)
		return status;
	if (!context_may(p->server->store, c, &p->who, ACCESS_OWN))
		status = control_fail(r, MPIG_EACCES, "context '%s' is not yours to index again", name);
	if (status == MPIG_OK)
		status = indexer_begin(p->server->indexer, p->who.uid, c, job, r->why);
	context_unref(c);
	return status;
}

int control_reindex(struct peer *p, struct request *r)
{
	const struct mpig_ctl_reindex *in = (const void *)r->header;
	struct indexer_view view;
	uint64_t job = in->job;
	int status = check_reindex(p, r, in);
	if (status == MPIG_OK && !job)
		status = begin(p, r, in->name, &job);
	if (status != MPIG_OK)
		return status;
	status = indexer_look(p->server->indexer, p->who.uid, job, &view);
	if (status == MPIG_ERETRY)
		return control_fail(
			r, status,
			"how indexing '%s' again ended is not known any more: it ended long ago, and many have since; ask "
			"again if need be",
			in->name);
	if (status != MPIG_OK)
		return control_fail(r, MPIG_EINVAL, "REINDEX: there is no job %llu of yours", (unsigned long long)job);
	if (view.state == INDEXER_DONE && view.status != MPIG_OK)
		return control_fail(r, view.status, "%s", view.why);
	struct mpig_ctl_reindex reply = {
		.job = job,
		.state = view.state,
		.signature_version = view.signature_version,
		.done = view.done,
		.total = view.total,
	};
	memcpy(reply.name, in->name, sizeof reply.name);
	return control_reply(p, r, &reply, sizeof reply, NULL, 0);
}
