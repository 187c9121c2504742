// Who may ask for what: one rule for each control operation, looked at before the operation begins. What the operation does looks at the
// context's permissions again, under the store's lock; nothing that is answered here can be overtaken there.
#include "daemon/server/control_access.h"

#include <stddef.h>
#include <string.h>

#include "shm/status.h"

const char *const control_access_names[CONTROL_ACCESS_COUNT] = {
	[CONTROL_NOBODY] = "nobody",
	[CONTROL_ANYBODY] = "anybody",
	[CONTROL_OWN_CONNECTION] = "anybody, on what the connection has open",
	[CONTROL_WHAT_ONE_MAY_READ] = "anybody; contexts that may not be read are left out",
	[CONTROL_CREATE] = "anybody, and owns what is made",
	[CONTROL_READ] = "who may read the context",
	[CONTROL_OPEN] = "who may read the context; with MPIG_OPEN_WRITE, who may write it",
	[CONTROL_OWN] = "the context's owner",
	[CONTROL_DISK] = "to save and erase: the owner; to load and check: who may read; to collect garbage: administrators",
	[CONTROL_STREAM] = "to export: who may read the context; to import: anybody, and owns what is made",
	[CONTROL_OWN_USER] = "anybody, on connections, profiles and limits of their own user and groups; administrators: of all",
	[CONTROL_DRAIN] = "to look: anybody; to begin and to end: administrators",
	[CONTROL_ADMIN] = "administrators",
};

static int check_administrator(struct peer *p, struct request *r)
{
	if (peer_administers(p))
		return MPIG_OK;
	return control_fail(r, MPIG_EACCES,
	                    "only root, the daemon's user and members of daemon.admin_group may do this; uid %u may not",
	                    p->who.uid);
}

static int check_disk(struct peer *p, struct request *r, const struct mpig_ctl_disk *in)
{
	static const enum access rules[MPIG_DISK_WORKS] = {
		[MPIG_DISK_SAVE] = ACCESS_OWN,
		[MPIG_DISK_LOAD] = ACCESS_READ,
		[MPIG_DISK_CHECK] = ACCESS_READ,
		[MPIG_DISK_ERASE] = ACCESS_OWN,
	};
	struct server *s = p->server;
	if (in->job || !s->disk || in->work < MPIG_DISK_SAVE || in->work >= MPIG_DISK_WORKS)
		return MPIG_OK; // jobs are their owners'; the rest is refused by the operation
	if (in->work == MPIG_DISK_GC)
		return check_administrator(p, r);
	int status = MPIG_OK;
	if (in->work == MPIG_DISK_SAVE)
		status = store_context_access(s->store, &p->who, in->name, ACCESS_OWN, r->why);
	return status == MPIG_EACCES ? status : disk_access(s->disk, &p->who, in->name, rules[in->work], r->why);
}

int control_access_check(struct peer *p, struct request *r, enum control_access rule)
{
	static_assert(offsetof(struct mpig_ctl_open, name) == sizeof(struct mpig_control_header) &&
	                      offsetof(struct mpig_ctl_verify, name) == sizeof(struct mpig_control_header) &&
	                      offsetof(struct mpig_ctl_heads, name) == sizeof(struct mpig_control_header) &&
	                      offsetof(struct mpig_ctl_disk, name) == sizeof(struct mpig_control_header),
	              "operations on a context have its name behind the header");
	static_assert(offsetof(struct mpig_ctl_signature, name) == sizeof(struct mpig_control_header) &&
	                      offsetof(struct mpig_ctl_stream, name) == sizeof(struct mpig_control_header) &&
	                      offsetof(struct mpig_ctl_policy, name) == sizeof(struct mpig_control_header) &&
	                      offsetof(struct mpig_ctl_queries, name) == sizeof(struct mpig_control_header),
	              "and these");
	static_assert(offsetof(struct mpig_ctl_trace, name) == sizeof(struct mpig_control_header), "and this");
	const char *name = (const char *)(r->header + 1);
	const struct mpig_ctl_open *open = (const void *)r->header;
	enum access want = ACCESS_READ;
	int status = MPIG_OK;
	switch (rule) {
	case CONTROL_ANYBODY:
	case CONTROL_OWN_CONNECTION:
	case CONTROL_WHAT_ONE_MAY_READ:
	case CONTROL_CREATE:
	case CONTROL_OWN_USER: // the operation knows whose they are
		return MPIG_OK;
	case CONTROL_STREAM:
		if (((const struct mpig_ctl_stream *)(const void *)r->header)->way != MPIG_STREAM_EXPORT)
			return MPIG_OK;
		break;
	case CONTROL_DRAIN:
		if (((const struct mpig_ctl_drain *)(const void *)r->header)->action == MPIG_DRAIN_LOOK)
			return MPIG_OK;
		__attribute__((fallthrough));
	case CONTROL_ADMIN:
		return check_administrator(p, r);
	case CONTROL_OPEN:
		want = open->flags & MPIG_OPEN_WRITE ? ACCESS_WRITE : ACCESS_READ;
		break;
	case CONTROL_OWN:
		want = ACCESS_OWN;
		break;
	case CONTROL_READ:
	case CONTROL_DISK:
		break;
	case CONTROL_NOBODY:
	case CONTROL_ACCESS_COUNT:
		return control_fail(r, MPIG_EACCES, "this operation has no rule of access");
	}
	if (!memchr(name, 0, MPIG_NAME_BYTES))
		return MPIG_OK; // refused by the operation
	status = rule == CONTROL_DISK ? check_disk(p, r, (const void *)r->header)
	                              : store_context_access(p->server->store, &p->who, name, want, r->why);
	if (status == MPIG_EACCES)
		return status;
	r->why[0] = '\0'; // what is not there, the operation may find on disk
	return MPIG_OK;
}
