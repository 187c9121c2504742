// What an owner may do to a context: change who else may use it, give it away, drop it.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

// ---- changing the owner ----------------------------------------------------------------------------------------------

// What another owner would have to pay for a context that it does not pay for yet.
static struct need need_of(const struct context *c, const struct identity *owner)
{
	bool user = owner->uid != c->identity.uid, group = owner->gid != c->identity.gid;
	uint64_t own = context_own_bytes(c);
	struct need need = {user ? own : 0, group ? own : 0, user, group};
	const struct snapshot *snap = atomic_load(&c->snapshot);
	const struct params *p = atomic_load(&c->params);
	if (p)
		charge_need(&p->charge, owner, p->bytes, &need);
	for (uint32_t i = 0; i < snap->count; i++)
		charge_need(&snap->ref[i].segment->charge, owner, segment_bytes(snap->ref[i].segment), &need);
	return need;
}

// All that a context's owner pays for, moved to another one; or nothing is.
static int charge_to(struct store *s, struct context *c, const struct identity *owner, char *why)
{
	struct snapshot *snap = atomic_load(&c->snapshot);
	struct params *p = atomic_load(&c->params);
	struct need need = need_of(c, owner);
	int status = quota_admit_need(s, owner, &need, why);
	if (status)
		return status;
	bool short_of_memory = account_open(s, owner) || (p && charge_reference(s, &p->charge, owner));
	uint32_t done = 0;
	while (!short_of_memory && done < snap->count && !charge_reference(s, &snap->ref[done].segment->charge, owner))
		done++;
	if (short_of_memory || done < snap->count) {
		while (done)
			charge_release(s, &snap->ref[--done].segment->charge, owner);
		if (p && !short_of_memory)
			charge_release(s, &p->charge, owner);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to charge uid %u", owner->uid);
	}
	const struct identity *old = &c->identity;
	for (uint32_t i = 0; i < snap->count; i++)
		charge_release(s, &snap->ref[i].segment->charge, old);
	if (p)
		charge_release(s, &p->charge, old);
	account_sub(s, old, context_own_bytes(c));
	account_contexts(s, old, -1);
	account_add(s, owner, context_own_bytes(c));
	account_contexts(s, owner, 1);
	return 0;
}

int store_context_chmod(struct store *s, const struct credentials *who, const char *name, uint32_t mode, uint32_t uid,
                        uint32_t gid, char *why)
{
	struct context *c;
	if (mode > 0777)
		return refuse(why, MPIG_EINVAL, "mode is %#o, must be at most 0777", mode);
	store_lock(s);
	int status = context_find(s, who, name, ACCESS_OWN, &c, why);
	struct identity next = {uid, gid, mode};
	if (!status && uid == UINT32_MAX)
		next.uid = c->identity.uid;
	if (!status && gid == UINT32_MAX)
		next.gid = c->identity.gid;
	if (!status && next.uid != c->identity.uid && !credentials_admin(who))
		status = refuse(why, MPIG_EACCES, "context '%s': only root and administrators may give a context to another uid",
		                name);
	if (!status && next.gid != c->identity.gid && !credentials_admin(who) && !credentials_in_group(who, gid))
		status = refuse(why, MPIG_EACCES, "context '%s': uid %u is not in group %u", name, who->uid, gid);
	if (!status && (next.uid != c->identity.uid || next.gid != c->identity.gid))
		status = charge_to(s, c, &next, why);
	if (!status) {
		c->identity = next;
		c->policy_stale = true;
		struct context_slot slot;
		slot_fill(c, atomic_load(&c->snapshot), &slot);
		slot_publish(s->pool, c->record, &slot);
		c->on_disk = false;
	}
	store_unlock(s);
	return status;
}

// ---- dropping --------------------------------------------------------------------------------------------------------

static struct context *of_drop(struct garbage *g)
{
	return (struct context *)(void *)((unsigned char *)g - offsetof(struct context, drop));
}

static void drop_settle(struct store *s, struct garbage *g)
{
	struct context *c = of_drop(g);
	struct snapshot *snap = atomic_load(&c->snapshot);
	for (uint32_t i = 0; i < snap->count; i++)
		segment_put(s, snap->ref[i].segment);
	params_put(s, atomic_load(&c->params));
	s->metadata_bytes -= context_own_bytes(c);
	store_bury(s, g);
}

static void drop_destroy(struct store *s, struct garbage *g)
{
	struct context *c = of_drop(g);
	struct snapshot *snap = atomic_load(&c->snapshot);
	context_free_records(s, c, snap);
	atomic_store(&c->snapshot, NULL);
	free(snap);
	context_unref(c);
}

static void unlink_context(struct store *s, struct context *c)
{
	struct context **link = &s->by_name[name_bucket(c->name)];
	while (*link != c)
		link = &(*link)->name_next;
	*link = c->name_next;
	prefix_cut(s, c, 0);
	struct saved *saved = saved_find(s, c->name);
	if (saved)
		saved->in_memory = false;
	size_t i = 0;
	while (s->context[i] != c)
		i++;
	memmove(&s->context[i], &s->context[i + 1], (s->count - i - 1) * sizeof s->context[0]);
	s->count--;
}

void context_drop(struct store *s, struct context *c)
{
	pool_publish_word(s->pool, &c->record->state, CONTEXT_DROPPED);
	uint64_t *table = pool_at(s->pool, pool_superblock(s->pool)->contexts_offset);
	pool_publish_word(s->pool, &table[c->table_slot], 0);
	atomic_store(&c->dropped, true);
	policy_left(s, c);
	unlink_context(s, c);
	const struct snapshot *snap = atomic_load(&c->snapshot);
	struct params *p = atomic_load(&c->params);
	const struct identity *owner = &c->identity;
	for (uint32_t i = 0; i < snap->count; i++)
		charge_release(s, &snap->ref[i].segment->charge, owner);
	if (p)
		charge_release(s, &p->charge, owner);
	account_sub(s, owner, context_own_bytes(c));
	account_contexts(s, owner, -1);
	c->drop.settle = drop_settle;
	c->drop.destroy = drop_destroy;
	context_retire(s, c, &c->drop); // with the table's reference
}

int store_context_drop(struct store *s, const struct credentials *who, const char *name, char *why)
{
	struct context *c;
	store_lock(s);
	int status = context_lookup(s, who, name, ACCESS_OWN, &c, why);
	if (!status)
		context_drop(s, c);
	store_unlock(s);
	return status;
}
