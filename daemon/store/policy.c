// What is worth saving, and what may leave memory because it has been.
#include <string.h>

#include "daemon/store/image.h"
#include "daemon/store/internal.h"

bool context_is_saved(const struct context *c)
{
	return c->on_disk && c->disk_tokens == context_committed(c) && c->disk_cuts == atomic_load(&c->cuts);
}

bool store_next_unsaved(struct store *s, uint64_t idle_since_ns, uint64_t *cursor, char name[MPIG_NAME_BYTES])
{
	bool found = false;
	store_lock(s);
	for (size_t i = 0; i < s->count && !found; i++) { // by id
		const struct context *c = s->context[i];
		found = c->id > *cursor && !c->damage && !context_is_saved(c) && atomic_load(&c->used_ns) <= idle_since_ns;
		if (found) {
			memcpy(name, c->name, MPIG_NAME_BYTES);
			*cursor = c->id;
		}
	}
	store_unlock(s);
	return found;
}

// Nobody has it open, writes it, indexes it or saves it.
static bool may_leave(const struct context *c)
{
	return !c->pinned && !c->damage && context_is_saved(c) && atomic_load(&c->refs) == 1 && !atomic_load(&c->holder) &&
	       !c->sealing && !atomic_load(&c->pins[0]) && !atomic_load(&c->pins[1]);
}

bool store_evict(struct store *s, char name[MPIG_NAME_BYTES])
{
	struct context *oldest = NULL;
	store_lock(s);
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		if (may_leave(c) && (!oldest || atomic_load(&c->used_ns) < atomic_load(&oldest->used_ns)))
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
	if (!status && c->pinned)
		status = refuse(why, MPIG_EBUSY, "context '%s' is pinned", c->name);
	if (!status && !may_leave(c))
		status = refuse(why, MPIG_EBUSY, "context '%s' is open: close it first", c->name);
	if (!status)
		context_drop(s, c);
	store_unlock(s);
	return status;
}

int store_context_pin(struct store *s, const struct credentials *who, const char *name, bool pinned, char *why)
{
	struct context *c;
	store_lock(s);
	int status = context_find(s, who, name, ACCESS_OWN, &c, why);
	if (!status)
		c->pinned = pinned;
	store_unlock(s);
	return status;
}
