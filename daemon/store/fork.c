#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

// A fork shares sealed segments only, so the parent's unsealed ones that it needs are sealed as they are: with the codes they
// have, without tables.
struct fork_plan {
	struct context *parent;
	struct snapshot *snap; // of the parent
	uint32_t segments;     // of the parent's that the child needs
	uint32_t first_unsealed;
	struct trash **trash; // [segments - first_unsealed]
};

static void plan_fini(struct fork_plan *plan)
{
	for (uint32_t i = plan->first_unsealed; plan->trash && i < plan->segments; i++)
		if (plan->trash[i - plan->first_unsealed]) {
			extents_fini(&plan->trash[i - plan->first_unsealed]->list);
			free(plan->trash[i - plan->first_unsealed]);
		}
	free(plan->trash);
}

static int plan_fork(struct store *s, struct context *parent, uint64_t tokens, struct fork_plan *plan, char *why)
{
	struct snapshot *snap = atomic_load(&parent->snapshot);
	*plan = (struct fork_plan){.parent = parent, .snap = snap, .segments = tokens ? snapshot_find(snap, tokens - 1) + 1 : 0};
	while (plan->first_unsealed < plan->segments && snap->ref[plan->first_unsealed].segment->record->sealed_rows)
		plan->first_unsealed++;
	uint32_t unsealed = plan->segments - plan->first_unsealed;
	if (unsealed && parent->sealing)
		return refuse(why, MPIG_EBUSY, "context '%s' is being indexed: try again", parent->name);
	bool last = plan->segments == snap->count;
	bool whole = last ? !context_busy_writing(parent) : snap->ref[plan->segments].first <= context_committed(parent);
	if (unsealed && !whole)
		return refuse(why, MPIG_EBUSY,
		              "context '%s' has rows appended beyond its %" PRIu64 " committed tokens: commit or truncate them, "
		              "or fork at %" PRIu64 " tokens at most",
		              parent->name, context_committed(parent), snap->ref[plan->segments - 1].first);
	plan->trash = calloc(unsealed ? unsealed : 1, sizeof(struct trash *));
	for (uint32_t i = 0; plan->trash && i < unsealed; i++) {
		uint32_t index = plan->first_unsealed + i;
		plan->trash[i] = segment_trash_new(s, snap->ref[index].segment, ref_rows(parent, snap, index), true, 0);
		if (!plan->trash[i])
			return refuse(why, MPIG_ENOMEM, "the daemon has no memory to fork '%s'", parent->name);
	}
	return plan->trash ? 0 : refuse(why, MPIG_ENOMEM, "the daemon has no memory to fork '%s'", parent->name);
}

static void seal_parent(struct store *s, struct fork_plan *plan)
{
	for (uint32_t i = plan->first_unsealed; i < plan->segments; i++) {
		struct segment *seg = plan->snap->ref[i].segment;
		struct trash **trash = &plan->trash[i - plan->first_unsealed];
		uint32_t rows = ref_rows(plan->parent, plan->snap, i);
		segment_trash_fill(s, seg, rows, true, *trash);
		segment_publish_sealed(s->pool, seg->spec, seg->record, rows);
		context_retire(s, plan->parent, &(*trash)->garbage);
		*trash = NULL;
	}
}

// What the child references, charged to its owner; or nothing.
static int share(struct store *s, const struct fork_plan *plan, struct context *child, char *why)
{
	const struct identity *owner = &child->identity;
	uint32_t done = 0;
	struct params *p = atomic_load(&plan->parent->params);
	bool failed = p && charge_reference(s, &p->charge, owner);
	while (!failed && done < plan->segments && !charge_reference(s, &plan->snap->ref[done].segment->charge, owner))
		done++;
	if (failed || done < plan->segments) {
		while (done)
			charge_release(s, &plan->snap->ref[--done].segment->charge, owner);
		if (p && !failed)
			charge_release(s, &p->charge, owner);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to fork '%s'", plan->parent->name);
	}
	struct snapshot *snap = atomic_load(&child->snapshot);
	for (uint32_t i = 0; i < plan->segments; i++) {
		snap->ref[i] = plan->snap->ref[i];
		snap->ref[i].segment->refs++;
	}
	if (p) {
		p->refs++;
		atomic_store(&child->params, p);
		atomic_store(&child->signature_version, p->version);
	}
	return 0;
}

// What the owner is not yet charged for.
static struct need new_need(const struct fork_plan *plan, const struct identity *owner)
{
	struct need need = {0};
	const struct params *p = atomic_load(&plan->parent->params);
	if (p)
		charge_need(&p->charge, owner, p->bytes, &need);
	for (uint32_t i = 0; i < plan->segments; i++) {
		const struct segment *seg = plan->snap->ref[i].segment;
		charge_need(&seg->charge, owner, segment_bytes(seg), &need);
	}
	return need;
}

static int fork_locked(struct store *s, const struct credentials *who, struct context *parent, uint64_t tokens, const char *name,
                       struct context **out, char *why)
{
	int status = context_alive(parent, why);
	if (status)
		return status;
	if (!access_check(&parent->identity, who, ACCESS_READ))
		return refuse(why, MPIG_EACCES, "context '%s' belongs to uid %u, mode %04o: uid %u may not read it", parent->name,
		              parent->identity.uid, parent->identity.mode, who->uid);
	if (tokens > context_committed(parent))
		return refuse(why, MPIG_ERANGE, "fork at %" PRIu64 " tokens: context '%s' has %" PRIu64 " committed", tokens,
		              parent->name, context_committed(parent));
	status = name_check(s, name, "new_name", why);
	if (status)
		return status;
	struct fork_plan plan;
	status = plan_fork(s, parent, tokens, &plan, why);
	struct context_draft draft = {
		.name = name,
		.fingerprint = parent->fingerprint,
		.seed = parent->seed,
		.parent_id = parent->id,
		.fork_tokens = tokens,
		.identity = {who->uid, who->gid, who->uid == parent->identity.uid ? parent->identity.mode : 0600},
		.segment_count = plan.segments,
	};
	draft.more = new_need(&plan, &draft.identity);
	struct context *child = NULL;
	if (!status)
		status = context_build(s, &draft, parent->spec, &child, why);
	if (!status)
		status = share(s, &plan, child, why);
	if (status) {
		if (child)
			context_discard(s, child);
		plan_fini(&plan);
		return status;
	}
	seal_parent(s, &plan);
	plan_fini(&plan);
	prefix_share(s, child, parent, tokens);
	atomic_store(&child->committed, tokens);
	context_announce(s, child);
	context_ref(child);
	*out = child;
	return 0;
}

int store_context_fork(struct store *s, const struct credentials *who, struct context *parent, uint64_t tokens,
                       const char *new_name, struct context **child, char *why)
{
	store_lock(s);
	int status = fork_locked(s, who, parent, tokens, new_name, child, why);
	store_unlock(s);
	return status;
}
