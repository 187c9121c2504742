// The longest common token prefix, by a radix tree of token ids for each fingerprint. An edge's ids are the tree's own copy; every
// context with committed tokens, in memory or on disk (saved.c), ends somewhere on an edge. A search walks down along the query, so its time depends on the query's
// length and not on how many contexts there are; only where contexts end on the way back up, or may not be read, are they looked at
// one by one.
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/prefix_tree.h"

// ---- contexts come, grow, shrink and go --------------------------------------------------------------------------------

int prefix_extend_end(struct store *s, struct prefix_end *end, const uint8_t fingerprint[64], const uint32_t *token,
                      uint64_t count)
{
	struct prefix_index *index = &s->prefix;
	if (!count)
		return 0;
	if (prefix_reserve(index))
		return MPIG_ENOMEM;
	struct prefix_node *old = end->node;
	uint64_t tokens = (old ? end->tokens : 0) + count;
	struct prefix_place at = {old, old ? end->tokens - old->begin : 0};
	if (!old) {
		struct prefix_tree *t = prefix_tree_make(index, fingerprint);
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
	old = end->node; // a split may have moved it
	if (old)
		prefix_end_nowhere(end);
	prefix_end_at(end, n, tokens);
	if (old && old != n)
		prefix_tidy(index, old);
	return 0;
}

int prefix_extend(struct store *s, struct context *c, const uint32_t *token, uint64_t count)
{
	return prefix_extend_end(s, &c->prefix, c->fingerprint, token, count);
}

int prefix_complete(struct store *s, struct context *c)
{
	enum { CHUNK = 4096 };
	uint32_t token[CHUNK];
	uint64_t committed = c->prefix.node || c->damage ? 0 : context_committed(c);
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

// The node of a path that holds its first `tokens`.
static struct prefix_node *node_at(const struct prefix_end *end, uint64_t tokens)
{
	struct prefix_node *n = end->node;
	while (n->begin >= tokens)
		n = n->parent;
	return n;
}

void prefix_cut_end(struct store *s, struct prefix_end *end, uint64_t tokens)
{
	struct prefix_node *old = end->node;
	if (!old || tokens >= end->tokens)
		return;
	struct prefix_node *n = tokens ? node_at(end, tokens) : NULL;
	prefix_end_nowhere(end);
	if (n)
		prefix_end_at(end, n, tokens);
	prefix_tidy(&s->prefix, old);
}

void prefix_cut(struct store *s, struct context *c, uint64_t tokens)
{
	prefix_cut_end(s, &c->prefix, tokens);
}

bool prefix_share_end(struct prefix_end *end, const struct prefix_end *with, uint64_t tokens)
{
	if (!tokens || !with->node || with->tokens < tokens)
		return !tokens;
	prefix_end_at(end, node_at(with, tokens), tokens);
	return true;
}

void prefix_share(struct store *s, struct context *child, const struct context *parent, uint64_t tokens)
{
	if (!prefix_share_end(&child->prefix, &parent->prefix, tokens))
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

struct search {
	const struct prefix_index *index;
	const struct credentials *who;
	bool saved; // contexts that are on disk only count, too
};

static struct context *context_of(const struct prefix_end *e)
{
	return (struct context *)(void *)((unsigned char *)(uintptr_t)e - offsetof(struct context, prefix));
}

static struct saved *saved_of(const struct prefix_end *e)
{
	return (struct saved *)(void *)((unsigned char *)(uintptr_t)e - offsetof(struct saved, prefix));
}

static bool may_read(const struct search *q, const struct prefix_end *e)
{
	if (!e->saved)
		return access_check(&context_of(e)->identity, q->who, ACCESS_READ);
	return q->saved && !saved_of(e)->in_memory && access_check(&saved_of(e)->identity, q->who, ACCESS_READ);
}

// Of two that match as far: what is in memory, then fewest tokens beyond, then the oldest.
static bool is_before(const struct prefix_end *a, const struct prefix_end *b)
{
	if (a->saved != b->saved)
		return b->saved;
	if (a->tokens != b->tokens)
		return a->tokens < b->tokens;
	return a->saved ? saved_of(a)->created_ns < saved_of(b)->created_ns : context_of(a)->id < context_of(b)->id;
}

// The best of those that end on this edge: longest match with its first `offset` ids, then by is_before.
static const struct prefix_end *best_end(const struct search *q, const struct prefix_node *n, uint64_t offset, uint64_t *matched)
{
	const struct prefix_end *best = NULL;
	uint64_t most = n->begin + offset;
	for (const struct prefix_end *e = n->ends; e; e = e->next) {
		uint64_t match = e->tokens < most ? e->tokens : most;
		bool better = !best || match > *matched || (match == *matched && is_before(e, best));
		if (better && may_read(q, e)) {
			best = e;
			*matched = match;
		}
	}
	return best;
}

// Some readable one below a node, not at it, nor at or below `seen`. One that is on disk only if none in memory is soon found.
static const struct prefix_end *any_below(const struct search *q, const struct prefix_node *top, const struct prefix_node *seen)
{
	enum { FURTHER = 64 };
	const struct prefix_node *n = top->child;
	const struct prefix_end *saved = NULL;
	for (uint32_t looked = 0; n && looked < FURTHER;) {
		for (const struct prefix_end *e = n == seen ? NULL : n->ends; e; e = e->next) {
			looked += saved != NULL;
			if ((saved && e->saved) || !may_read(q, e))
				continue;
			if (!e->saved)
				return e;
			saved = e;
		}
		if (n->child && n != seen) {
			n = n->child;
			continue;
		}
		while (n != top && !n->next)
			n = n->parent;
		n = n == top ? NULL : n->next;
	}
	return saved;
}

// The longest match; of equal ones best_end's choice among those that end on the last edge, else any.
static const struct prefix_end *search(const struct search *q, const uint8_t fingerprint[64], const uint32_t *token,
                                       uint64_t count, uint64_t *matched)
{
	struct prefix_tree *t = prefix_tree_of(q->index, fingerprint);
	if (!t)
		return NULL;
	struct prefix_place at = {&t->root, 0};
	prefix_descend(q->index, &at, token, count);
	const struct prefix_node *seen = NULL;
	for (struct prefix_node *n = at.node; n->parent; seen = n, n = n->parent) {
		uint64_t offset = n == at.node ? at.offset : n->n;
		const struct prefix_end *e = best_end(q, n, offset, matched);
		bool full = e && *matched == n->begin + offset;
		if (full && !e->saved)
			return e;
		const struct prefix_end *below = any_below(q, n, seen);
		if (below && !(full && below->saved)) {
			*matched = n->begin + offset;
			return below;
		}
		if (e)
			return e;
	}
	return NULL;
}

int store_find_prefix(struct store *s, const struct credentials *who, const struct prefix_query *query,
                      struct prefix_found *found, char *why)
{
	if (query->count > MPIG_MAX_TOKENS)
		return refuse(why, MPIG_EINVAL, "tokens: %" PRIu64 " ids, must be at most %" PRIu64, query->count,
		              MPIG_MAX_TOKENS);
	uint64_t n = 0, least = query->min_tokens ? query->min_tokens : 1;
	int status = 0;
	store_lock(s);
	if (s->prefix.late)
		complete_all(s);
	const struct search q = {&s->prefix, who, query->saved};
	const struct prefix_end *e = search(&q, query->fingerprint, query->tokens, query->count, &n);
	if (e && n >= least) {
		*found = (struct prefix_found){.context = e->saved ? NULL : context_of(e), .matched = n};
		if (e->saved)
			memcpy(found->saved, saved_of(e)->name, sizeof found->saved);
		else
			context_ref(found->context);
	} else {
		status = refuse(why, MPIG_ENOENT,
		                "no readable context of this fingerprint shares %" PRIu64
		                " tokens or more (the best shares %" PRIu64 ")",
		                least, n);
	}
	store_unlock(s);
	return status;
}

int store_context_open_prefix(struct store *s, const struct credentials *who, const uint8_t fingerprint[64],
                              const uint32_t *tokens, uint64_t count, uint64_t min_tokens, struct context **context,
                              uint64_t *matched, char *why)
{
	const struct prefix_query query = {
		.fingerprint = fingerprint, .tokens = tokens, .count = count, .min_tokens = min_tokens};
	struct prefix_found found;
	int status = store_find_prefix(s, who, &query, &found, why);
	if (!status) {
		*context = found.context;
		*matched = found.matched;
	}
	return status;
}
