// What is worth saving, and what may leave memory because it has been.
#include <stdlib.h>
#include <string.h>

#include "daemon/store/image.h"
#include "daemon/store/internal.h"

#define NS UINT64_C(1000000000)
#define CLOCK_SLACK_NS (5 * NS) // a clock that runs a little fast or slow is not one that is set

bool context_is_saved(const struct context *c)
{
	return c->on_disk && c->disk_tokens == context_committed(c) && c->disk_cuts == atomic_load(&c->cuts);
}

static bool due(const struct store *s, const struct context *c, const struct persist_default *otherwise, bool stopping)
{
	bool own = c->policy.persist != MPIG_PERSIST_DEFAULT;
	uint32_t persist = own ? c->policy.persist : otherwise->persist;
	uint64_t idle = own && c->policy.idle_s ? c->policy.idle_s * NS : otherwise->idle_ns;
	if (stopping)
		return persist != MPIG_PERSIST_NONE;
	return persist == MPIG_PERSIST_COMMIT ||
	       (persist == MPIG_PERSIST_IDLE && atomic_load(&c->used_ns) + idle <= store_now(s));
}

bool store_next_unsaved(struct store *s, const struct persist_default *otherwise, bool stopping, uint64_t *cursor,
                        char name[MPIG_NAME_BYTES])
{
	bool found = false;
	store_lock(s);
	for (size_t i = 0; i < s->count && !found; i++) { // by id
		const struct context *c = s->context[i];
		found = c->id > *cursor && !c->damage && !context_is_saved(c) && due(s, c, otherwise, stopping);
		if (found) {
			memcpy(name, c->name, MPIG_NAME_BYTES);
			*cursor = c->id;
		}
	}
	store_unlock(s);
	return found;
}

// Nobody has it open, writes it, indexes it or saves it.
static bool unused(const struct context *c)
{
	return !c->damage && atomic_load(&c->refs) == 1 && !atomic_load(&c->holder) && !c->sealing && !atomic_load(&c->pins[0]) &&
	       !atomic_load(&c->pins[1]);
}

static bool may_leave(const struct store *s, const struct context *c)
{
	return !context_pinned(s, c) && context_is_saved(c) && unused(c);
}

bool store_evict(struct store *s, char name[MPIG_NAME_BYTES])
{
	struct context *oldest = NULL;
	store_lock(s);
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		if (may_leave(s, c) && (!oldest || atomic_load(&c->used_ns) < atomic_load(&oldest->used_ns)))
			oldest = c;
	}
	if (oldest) {
		memcpy(name, oldest->name, MPIG_NAME_BYTES);
		context_drop(s, oldest);
	}
	store_unlock(s);
	return oldest != NULL;
}

int store_context_evict(struct store *s, const struct credentials *who, const char *name, char *why)
{
	struct context *c;
	store_lock(s);
	int status = context_find(s, who, name, ACCESS_OWN, &c, why);
	if (!status && !context_is_saved(c))
		status = refuse(why, MPIG_EBUSY, "context '%s' is not on disk as it is: save it first", c->name);
	if (!status && context_pinned(s, c))
		status = refuse(why, MPIG_EBUSY, "context '%s' is pinned", c->name);
	if (!status && !may_leave(s, c))
		status = refuse(why, MPIG_EBUSY, "context '%s' is open: close it first", c->name);
	if (!status)
		context_drop(s, c);
	store_unlock(s);
	return status;
}

// ---- the end of a context's time -------------------------------------------------------------------------------------

static bool over(const struct store *s, const struct context *c)
{
	uint64_t now = store_now(s);
	return c->policy.ttl_s && !context_pinned(s, c) && unused(c) && atomic_load(&c->used_ns) + c->policy.ttl_s * NS <= now &&
	       c->patient_until_ns <= now;
}

bool store_next_expired(struct store *s, const struct persist_default *otherwise, bool disk, struct expiry *out)
{
	bool found = false;
	store_lock(s);
	for (size_t i = 0; i < s->count && !found; i++) {
		struct context *c = s->context[i];
		if (!over(s, c))
			continue;
		found = true;
		bool saved = context_is_saved(c), keep = disk && due(s, c, otherwise, true);
		*out = (struct expiry){.what = disk && c->policy.flags & MPIG_POLICY_ERASE ? EXPIRED_ERASE
		                               : !saved && keep                            ? EXPIRED_SAVE
		                                                                           : EXPIRED_LEFT,
		                       .lost = !saved,
		                       .created_ns = c->created_ns,
		                       .uid = c->identity.uid};
		memcpy(out->name, c->name, sizeof out->name);
		if (out->what == EXPIRED_LEFT)
			context_drop(s, c);
	}
	store_unlock(s);
	return found;
}

bool store_drop_expired(struct store *s, const struct expiry *of)
{
	store_lock(s);
	struct context *c = name_find(s, of->name);
	bool good = c && c->created_ns == of->created_ns && over(s, c);
	if (good)
		context_drop(s, c);
	store_unlock(s);
	return good;
}

void store_not_expired_before(struct store *s, const char *name, uint64_t until_ns)
{
	store_lock(s);
	struct context *c = name_find(s, name);
	if (c)
		c->patient_until_ns = until_ns;
	store_unlock(s);
}

uint64_t store_used_ns(struct store *s, const char *name, uint64_t created_ns)
{
	store_lock(s);
	const struct context *c = name_find(s, name);
	uint64_t used = c && c->created_ns == created_ns ? atomic_load(&c->used_ns) : 0;
	store_unlock(s);
	return used;
}

void store_note_clock(struct store *s, uint64_t steady_ns)
{
	store_lock(s);
	uint64_t now = store_now(s), before = s->clock.real_ns + (steady_ns - s->clock.steady_ns); // what it should be now
	bool known = s->clock.steady_ns;
	uint64_t by = now - before, off = now > before ? by : 0 - by;
	for (size_t i = 0; known && off > CLOCK_SLACK_NS && i < s->count; i++) {
		uint64_t used = atomic_load(&s->context[i]->used_ns), next = used + by; // by may stand for less than zero
		atomic_store(&s->context[i]->used_ns,
		             next < now ? next : now); // one that was used since the clock was set has the new time
	}
	s->clock.real_ns = now;
	s->clock.steady_ns = steady_ns;
	store_unlock(s);
}

// A word of the record each, once a minute at most or eight times in the TTL.
void store_note_uses(struct store *s)
{
	store_lock(s);
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		uint64_t used = atomic_load(&c->used_ns), step = c->policy.ttl_s * NS / 8;
		step = step < 60 * NS ? step : 60 * NS;
		if (c->policy.ttl_s && !c->damage && used >= c->record->used_ns + step)
			pool_publish_word(s->pool, &c->record->used_ns, used);
	}
	store_unlock(s);
}

// ---- what the owner wants --------------------------------------------------------------------------------------------

int policy_check(const struct mpig_wire_policy *p, char *why)
{
	if (p->persist >= MPIG_PERSIST_COUNT)
		return refuse(why, MPIG_EINVAL, "persist is %u, must be less than %u", p->persist, MPIG_PERSIST_COUNT);
	if (p->idle_s && p->persist != MPIG_PERSIST_IDLE)
		return refuse(why, MPIG_EINVAL, "idle_s is %u: only persist = idle has such a time", p->idle_s);
	if (p->flags & ~(uint32_t)MPIG_POLICY_FLAGS || (p->flags & MPIG_POLICY_ERASE && !p->ttl_s))
		return refuse(why, MPIG_EINVAL, "policy flags are %#x: only %#x is known, and it needs a TTL", p->flags,
		              MPIG_POLICY_ERASE);
	return 0;
}

int store_context_policy(struct store *s, const struct credentials *who, const char *name, uint32_t set,
                         const struct mpig_wire_policy *policy, struct mpig_wire_policy *out, char *why)
{
	struct context *c;
	store_lock(s);
	int status = context_find(s, who, name, ACCESS_OWN, &c, why);
	struct mpig_wire_policy next = status ? (struct mpig_wire_policy){0} : c->policy;
	if (set & MPIG_SET_PIN)
		next.pinned_until_ns = policy->pinned_until_ns;
	if (set & MPIG_SET_PERSIST) {
		next.persist = policy->persist;
		next.idle_s = policy->idle_s;
	}
	if (set & MPIG_SET_TTL) {
		next.ttl_s = policy->ttl_s;
		next.flags = policy->flags;
	}
	if (!status)
		status = policy_check(&next, why);
	if (!status && memcmp(&next, &c->policy, sizeof next)) {
		c->policy = next;
		c->policy_stale = true;
		c->patient_until_ns = 0;
		if (next.ttl_s)
			pool_publish_word(s->pool, &c->record->used_ns, atomic_load(&c->used_ns));
		struct context_slot slot;
		slot_fill(c, atomic_load(&c->snapshot), &slot);
		slot_publish(s->pool, c->record, &slot);
	}
	if (!status)
		*out = next;
	store_unlock(s);
	return status;
}

static void describe_policy(const struct context *c, struct changed_policy *out)
{
	*out = (struct changed_policy){.policy = c->policy, .created_ns = c->created_ns, .identity = c->identity};
	memcpy(out->name, c->name, sizeof out->name);
}

void policy_left(struct store *s, const struct context *c)
{
	struct changed_policy *changed = c->policy_stale && !c->damage ? malloc(sizeof *changed) : NULL;
	if (!changed)
		return;
	describe_policy(c, changed);
	struct changed_policy **end = &s->changed;
	while (*end)
		end = &(*end)->next;
	*end = changed;
}

bool store_next_changed_policy(struct store *s, struct changed_policy *out)
{
	store_lock(s);
	struct changed_policy *left = s->changed;
	bool found = left;
	if (left) {
		s->changed = left->next;
		*out = *left;
		free(left);
	}
	for (size_t i = 0; i < s->count && !found; i++) {
		struct context *c = s->context[i];
		found = c->policy_stale && !c->damage;
		if (!found)
			continue;
		c->policy_stale = false;
		describe_policy(c, out);
	}
	store_unlock(s);
	return found;
}
