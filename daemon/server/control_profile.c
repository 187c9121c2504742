// The control operations PROFILE, how contexts of a fingerprint are answered by default, and QUERIES, what a strip was asked of late.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/engine/asked.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

static int check_profile(struct request *r, const struct mpig_ctl_profile *in)
{
	if (in->action >= MPIG_PROFILE_ACTIONS || in->reserved0 || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "PROFILE: action %u is not known, or reserved fields are not zero",
		                    in->action);
	if (in->length > MPIG_PROFILE_BYTES || r->bytes != sizeof *in + in->length)
		return control_fail(r, MPIG_EPROTO, "PROFILE has %zu bytes; %zu expected for a text of %u, at most %u", r->bytes,
		                    sizeof *in + (size_t)in->length, in->length, MPIG_PROFILE_BYTES);
	if (!in->length != (in->action != MPIG_PROFILE_SET))
		return control_fail(r, MPIG_EPROTO, "PROFILE: a text belongs to SET, and to nothing else");
	if (in->action != MPIG_PROFILE_NEXT && mpig_all_zero(in->fingerprint, sizeof in->fingerprint))
		return control_fail(r, MPIG_EINVAL,
		                    "there is no profile of contexts without a fingerprint: they may be of any model");
	return MPIG_OK;
}

static int tell(struct peer *p, struct request *r, const struct mpig_ctl_profile *in, const struct profile_entry *e)
{
	if (!e)
		return control_fail(r, MPIG_ENOENT, "there is no %s",
		                    in->action == MPIG_PROFILE_NEXT ? "other profile" : "profile of this fingerprint");
	struct mpig_ctl_profile *reply = calloc(1, sizeof *reply + e->bytes);
	if (!reply)
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	memcpy(reply->fingerprint, e->fingerprint, sizeof reply->fingerprint);
	reply->action = in->action;
	reply->uid = e->uid;
	reply->length = (uint32_t)e->bytes;
	memcpy(reply + 1, e->text, e->bytes);
	int status = control_reply(p, r, reply, sizeof *reply + e->bytes, NULL, 0);
	free(reply);
	return status;
}

// Who waits for a change to be on disk.
struct asked_change {
	struct peer *peer; // NULL: it has gone
	struct mpig_control_header request;
	uint32_t action, uid, by;
	uint8_t fingerprint[64];
};

static void changed(void *arg, int status, const char *why)
{
	struct asked_change *a = arg;
	struct mpig_ctl_profile reply = {.action = a->action, .uid = a->uid};
	char whose[24] = "all users", hex[PROFILE_HEX_BYTES];
	if (a->uid != MPIG_PROFILE_ALL)
		snprintf(whose, sizeof whose, "uid %u", a->uid);
	profile_hex(a->fingerprint, hex);
	memcpy(reply.fingerprint, a->fingerprint, sizeof reply.fingerprint);
	if (status == MPIG_OK)
		log_info("uid %u has %s the profile of %s for fingerprint %.16s", a->by,
		         a->action == MPIG_PROFILE_SET ? "set" : "cleared", whose, hex);
	else
		log_warn("uid %u has not %s the profile of %s for fingerprint %.16s: %s", a->by,
		         a->action == MPIG_PROFILE_SET ? "set" : "cleared", whose, hex, why);
	if (a->peer) {
		a->peer->awaited = NULL;
		control_answer_later(a->peer, &a->request, status, why, &reply, sizeof reply);
	}
	free(a);
}

static int change(struct peer *p, struct request *r, const struct mpig_ctl_profile *in, uint32_t uid)
{
	struct profiles *all = &p->server->profiles;
	const uint8_t *fingerprint = (const uint8_t *)in->fingerprint;
	struct asked_change *a = p->awaited ? NULL : malloc(sizeof *a);
	if (p->awaited)
		return control_fail(r, MPIG_EAGAIN, "PROFILE: this connection's change before is being written");
	if (!a)
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	*a = (struct asked_change){.peer = p, .request = *r->header, .action = in->action, .uid = uid, .by = p->who.uid};
	memcpy(a->fingerprint, fingerprint, sizeof a->fingerprint);
	p->awaited = &a->peer;
	int status = in->action == MPIG_PROFILE_SET
	                     ? profiles_set(all, uid, fingerprint, (const char *)(in + 1), in->length, changed, a, r->why)
	                     : profiles_clear(all, uid, fingerprint, changed, a, r->why);
	if (status != MPIG_OK) {
		p->awaited = NULL;
		free(a);
	}
	return status;
}

int control_profile(struct peer *p, struct request *r)
{
	const struct mpig_ctl_profile *in = (const void *)r->header;
	const uint8_t *fingerprint = (const uint8_t *)in->fingerprint;
	int status = check_profile(r, in);
	if (status != MPIG_OK)
		return status;
	const struct profiles *all = &p->server->profiles;
	if (in->action == MPIG_PROFILE_NEXT)
		return tell(p, r, in, profiles_next(all, fingerprint, in->uid, p->who.uid, peer_administers(p)));
	bool looks = in->action == MPIG_PROFILE_GET, own = in->uid == UINT32_MAX;
	uint32_t uid = own ? p->who.uid : in->uid;
	if (own && uid == MPIG_PROFILE_ALL && !looks) // there may be such a user, nfsnobody of old
		return control_fail(r, MPIG_ENOTSUP,
		                    "uid %u stands for all users: whoever has it goes by the profile of all, "
		                    "and has none of their own",
		                    uid);
	bool anothers = uid != p->who.uid || uid == MPIG_PROFILE_ALL;
	if (anothers && !(looks && uid == MPIG_PROFILE_ALL) && !peer_administers(p))
		return control_fail(
			r, MPIG_EACCES,
			"only root, the daemon's user and members of daemon.admin_group may look at profiles of others "
			"and set those of all; uid %u may not",
			p->who.uid);
	if (looks)
		return tell(p, r, in, own ? profiles_of(all, uid, fingerprint) : profiles_find(all, uid, fingerprint));
	return change(p, r, in, uid);
}

// ---- queries ---------------------------------------------------------------------------------------------------------
struct queries_reply {
	struct mpig_ctl_queries head;
	float query[ASKED_QUERIES * MPIG_MAX_HEAD_DIM];
};
static_assert(offsetof(struct queries_reply, query) == sizeof(struct mpig_ctl_queries), "queries follow at once");
static_assert(MPIG_QUERIES_PAGE == ASKED_QUERIES, "all that are kept fit the reply");

int control_queries(struct peer *p, struct request *r)
{
	static const uint8_t any_fingerprint[64];
	const struct mpig_ctl_queries *in = (const void *)r->header;
	struct context *c;
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "QUERIES: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->count || in->d_k || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "QUERIES: fields of the reply and reserved bytes must be zero in a request");
	int status = store_context_open(p->server->store, &p->who, in->name, any_fingerprint, &c, r->why);
	if (status != MPIG_OK)
		return status;
	const struct layer *layer = context_layer(c, in->layer);
	struct queries_reply *reply = calloc(1, sizeof *reply);
	if (!context_may(p->server->store, c, &p->who, ACCESS_OWN))
		status = control_fail(r, MPIG_EACCES, "context '%s' is not yours: what it was asked is its owner's", in->name);
	else if (!layer || in->kv_head >= layer->shape.kv_heads)
		status = control_fail(r, MPIG_EINVAL, "QUERIES: '%s' has no KV head %u in layer %u", in->name, in->kv_head,
		                      in->layer);
	else if (!reply)
		status = control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	if (status == MPIG_OK) {
		float rms[MPIG_MAX_HEAD_DIM];
		memcpy(reply->head.name, in->name, sizeof reply->head.name);
		reply->head.layer = in->layer;
		reply->head.kv_head = in->kv_head;
		reply->head.d_k = layer->shape.d_k;
		asked_read(c, layer, layer->first_strip + in->kv_head, rms, reply->query, &reply->head.count);
	}
	context_unref(c);
	if (status == MPIG_OK)
		status = control_reply(p, r, reply,
		                       sizeof reply->head + (size_t)reply->head.count * reply->head.d_k * sizeof(float), NULL, 0);
	free(reply);
	return status;
}
