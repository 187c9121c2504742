// The longest common token prefix, by a radix tree of token ids for each fingerprint. An edge's ids are the tree's own copy; every
// context with committed tokens ends somewhere on an edge. A search walks down along the query, so its time depends on the query's
// length and not on how many contexts there are; only where contexts end on the way back up, or may not be read, are they looked at
// one by one.
#include <inttypes.h>
#include <stdlib.h>

#include "daemon/store/prefix_tree.h"

// ---- contexts come, grow, shrink and go --------------------------------------------------------------------------------

int prefix_extend(struct store *s, struct context *c, const uint32_t *token, uint64_t count)
{
	struct prefix_index *index = &s->prefix;
	if (!count)
		return 0;
	if (prefix_reserve(index))
		return MPIG_ENOMEM;
	struct prefix_node *old = c->prefix;
	uint64_t end = (old ? c->prefix_end : 0) + count;
	struct prefix_place at = {old, old ? c->prefix_end - old->begin : 0};
	if (!old) {
		struct prefix_tree *t = prefix_tree_make(index, c->fingerprint);
		if (!t)
			return MPIG_ENOMEM;
		at.node = &t->root;
	}
	uint64_t known = prefix_descend(index, &at, token, count);
	struct prefix_node *n = known == count ? at.node : prefix_grow(index, &at, token + known, count - known);
	if (!n) {
		if (!old)
			prefix_tidy(index, at.node);
		return MPIG_ENOMEM;
	}
	old = c->prefix; // a split may have moved it
	if (old)
		prefix_end_nowhere(c);
	prefix_end_at(c, n, end);
	if (old && old != n)
		prefix_tidy(index, old);
	return 0;
}

int prefix_complete(struct store *s, struct context *c)
{
	enum { CHUNK = 4096 };
	uint32_t token[CHUNK];
	uint64_t committed = c->prefix || c->damage ? 0 : context_committed(c);
	for (uint64_t done = 0; done < committed;) {
		uint64_t n = committed - done < CHUNK ? committed - done : CHUNK;
		tokens_read(c, done, n, token);
		if (prefix_extend(s, c, token, n)) {
			prefix_cut(s, c, 0);
			return MPIG_ENOMEM;
		}
		done += n;
	}
	return 0;
}

// The node of c's path that holds its first `tokens`.
static struct prefix_node *node_at(const struct context *c, uint64_t tokens)
{
	struct prefix_node *n = c->prefix;
	while (n->begin >= tokens)
		n = n->parent;
	return n;
}

void prefix_cut(struct store *s, struct context *c, uint64_t tokens)
{
	struct prefix_node *old = c->prefix;
	if (!old || tokens >= c->prefix_end)
		return;
	struct prefix_node *n = tokens ? node_at(c, tokens) : NULL;
	prefix_end_nowhere(c);
	if (n)
		prefix_end_at(c, n, tokens);
	prefix_tidy(&s->prefix, old);
}

void prefix_share(struct store *s, struct context *child, const struct context *parent, uint64_t tokens)
{
	if (tokens && parent->prefix)
		prefix_end_at(child, node_at(parent, tokens), tokens);
	else if (tokens)
		s->prefix.late = true;
}

// Contexts that were attached get their places when somebody first searches: a daemon's start reads no token ids. One without memory
// for it is not found, and tried again.
static void complete_all(struct store *s)
{
	s->prefix.late = false;
	for (size_t i = 0; i < s->count; i++)
		if (prefix_complete(s, s->context[i]))
			s->prefix.late = true;
}

void prefix_close(struct store *s)
{
	free(s->prefix.bucket);
	s->prefix = (struct prefix_index){0};
}

// ---- searching -------------------------------------------------------------------------------------------------------

// The best of those that end on this edge: longest match with its first `offset` ids, then fewest tokens beyond, then the oldest.
static struct context *best_end(const struct prefix_node *n, uint64_t offset, const struct credentials *who, uint64_t *matched)
{
	struct context *best = NULL;
	uint64_t most = n->begin + offset;
	for (struct context *c = n->ends; c; c = c->prefix_next) {
		uint64_t match = c->prefix_end < most ? c->prefix_end : most;
		bool better = !best || match > *matched || (match == *matched && c->prefix_end < best->prefix_end) ||
		              (match == *matched && c->prefix_end == best->prefix_end && c->id < best->id);
		if (better && access_check(&c->identity, who, ACCESS_READ)) {
			best = c;
			*matched = match;
		}
	}
	return best;
}

// Some readable context below a node, not at it, nor at or below `seen`.
static struct context *any_below(const struct prefix_node *top, const struct prefix_node *seen, const struct credentials *who)
{
	const struct prefix_node *n = top->child;
	while (n) {
		for (struct context *c = n == seen ? NULL : n->ends; c; c = c->prefix_next)
			if (access_check(&c->identity, who, ACCESS_READ))
				return c;
		if (n->child && n != seen) {
			n = n->child;
			continue;
		}
		while (n != top && !n->next)
			n = n->parent;
		n = n == top ? NULL : n->next;
	}
	return NULL;
}

// The longest match; of equal ones best_end's choice among those that end on the last edge, else any.
static struct context *search(const struct prefix_index *index, const struct credentials *who, const uint8_t fingerprint[64],
                              const uint32_t *token, uint64_t count, uint64_t *matched)
{
	struct prefix_tree *t = prefix_tree_of(index, fingerprint);
	if (!t)
		return NULL;
	struct prefix_place at = {&t->root, 0};
	prefix_descend(index, &at, token, count);
	const struct prefix_node *seen = NULL;
	for (struct prefix_node *n = at.node; n->parent; seen = n, n = n->parent) {
		uint64_t offset = n == at.node ? at.offset : n->n;
		struct context *c = best_end(n, offset, who, matched);
		if (c && *matched == n->begin + offset)
			return c;
		struct context *below = any_below(n, seen, who);
		if (below) {
			*matched = n->begin + offset;
			return below;
		}
		if (c)
			return c;
	}
	return NULL;
}

int store_context_open_prefix(struct store *s, const struct credentials *who, const uint8_t fingerprint[64],
                              const uint32_t *tokens, uint64_t count, uint64_t min_tokens, struct context **context,
                              uint64_t *matched, char *why)
{
	if (count > MPIG_MAX_TOKENS)
		return refuse(why, MPIG_EINVAL, "tokens: %" PRIu64 " ids, must be at most %" PRIu64, count, MPIG_MAX_TOKENS);
	uint64_t n = 0, least = min_tokens ? min_tokens : 1;
	int status = 0;
	store_lock(s);
	if (s->prefix.late)
		complete_all(s);
	struct context *c = search(&s->prefix, who, fingerprint, tokens, count, &n);
	if (c && n >= least) {
		context_ref(c);
		*context = c;
		*matched = n;
	} else {
		status = refuse(why, MPIG_ENOENT,
		                "no readable context of this fingerprint shares %" PRIu64
		                " tokens or more (the best shares %" PRIu64 ")",
		                least, n);
	}
	store_unlock(s);
	return status;
}
