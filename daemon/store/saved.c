// What searches must know of contexts on disk: who may read them, and where their tokens end in the tree.
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

struct saved *saved_find(const struct store *s, const char *name)
{
	struct saved *saved = s->saved[name_bucket(name)];
	while (saved && strcmp(saved->name, name))
		saved = saved->next;
	return saved;
}

static void forget(struct store *s, struct saved *saved)
{
	struct saved **link = &s->saved[name_bucket(saved->name)];
	while (*link != saved)
		link = &(*link)->next;
	*link = saved->next;
	prefix_cut_end(s, &saved->prefix, 0);
	free(saved);
}

void saved_put(struct store *s, const struct context *like, const struct image_context *from)
{
	struct saved *saved = saved_find(s, from->name);
	if (saved)
		prefix_cut_end(s, &saved->prefix, 0);
	else if (!(saved = calloc(1, sizeof *saved)))
		return; // it is not found by its tokens
	bool fresh = !saved->number;
	saved->prefix.saved = true;
	saved->identity = from->identity;
	saved->created_ns = from->created_ns;
	saved->committed = from->committed;
	saved->number = ++s->saved_number;
	saved->given_up = false;
	saved->in_memory = name_find(s, from->name) != NULL;
	memcpy(saved->fingerprint, from->fingerprint, sizeof saved->fingerprint);
	memcpy(saved->name, from->name, sizeof saved->name);
	if (!like || !prefix_share_end(&saved->prefix, &like->prefix, from->committed))
		s->saved_late = true;
	if (!fresh)
		return;
	struct saved **bucket = &s->saved[name_bucket(saved->name)];
	saved->next = *bucket;
	*bucket = saved;
}

void saved_free_all(struct store *s)
{
	for (uint32_t i = 0; i < NAME_BUCKETS; i++)
		while (s->saved[i])
			forget(s, s->saved[i]);
}

// ---- for the disk ----------------------------------------------------------------------------------------------------

void store_saved_put(struct store *s, const struct image_context *from)
{
	store_lock(s);
	saved_put(s, NULL, from);
	store_unlock(s);
}

void store_saved_identity(struct store *s, const char *name, const struct identity *identity)
{
	store_lock(s);
	struct saved *saved = saved_find(s, name);
	if (saved)
		saved->identity = *identity;
	store_unlock(s);
}

void store_saved_remove(struct store *s, const char *name)
{
	store_lock(s);
	struct saved *saved = saved_find(s, name);
	if (saved)
		forget(s, saved);
	store_unlock(s);
}

bool store_next_unplaced(struct store *s, struct unplaced *out)
{
	bool found = false;
	store_lock(s);
	for (uint32_t i = 0; i < NAME_BUCKETS && s->saved_late && !found; i++)
		for (const struct saved *saved = s->saved[i]; saved && !found; saved = saved->next) {
			found = !saved->prefix.node && saved->committed && !saved->given_up;
			if (!found)
				continue;
			*out = (struct unplaced){.number = saved->number};
			memcpy(out->name, saved->name, sizeof out->name);
		}
	s->saved_late = found;
	store_unlock(s);
	return found;
}

static struct saved *find_unplaced(const struct store *s, const struct unplaced *of)
{
	struct saved *saved = saved_find(s, of->name);
	return saved && saved->number == of->number ? saved : NULL;
}

int store_place_saved(struct store *s, const struct unplaced *of, uint64_t position, const uint32_t *tokens, uint64_t count)
{
	int status = 0;
	store_lock(s);
	struct saved *saved = find_unplaced(s, of);
	uint64_t have = saved && saved->prefix.node ? saved->prefix.tokens : 0;
	if (!saved || have != position || position + count > saved->committed)
		status = MPIG_ENOENT;
	else
		status = prefix_extend_end(s, &saved->prefix, saved->fingerprint, tokens, count);
	store_unlock(s);
	return status;
}

void store_give_up_placing(struct store *s, const struct unplaced *of)
{
	store_lock(s);
	struct saved *saved = find_unplaced(s, of);
	if (saved) {
		prefix_cut_end(s, &saved->prefix, 0);
		saved->given_up = true;
	}
	store_unlock(s);
}
