// The longest common token prefix, by a radix tree of token ids for each fingerprint. An edge's ids are the tree's own copy; every
// context with committed tokens ends somewhere on an edge. A search walks down along the query, so its time depends on the query's
// length and not on how many contexts there are; only where contexts end on the way back up, or may not be read, are they looked at
// one by one.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/store/internal.h"

enum { FEWEST_BUCKETS = 1024 };

struct prefix_node {                                       // the edge that leads to it, and what hangs below
	struct prefix_node *parent, *child, *next, **link; // siblings are a list; `link` is what points here
	struct prefix_node *bucket_next;                   // of the table that finds a child by its first token
	uint64_t begin, n, capacity;                       // token[0..n) are those at positions begin..begin+n; a root has none
	uint32_t *token;
	struct context *ends; // begin < prefix_end <= begin + n
};

struct prefix_tree {
	struct prefix_node root;
	uint8_t fingerprint[64];
	struct prefix_tree *next;
};

static uint64_t node_end(const struct prefix_node *n)
{
	return n->begin + n->n;
}

// ---- the table of children -------------------------------------------------------------------------------------------

static struct prefix_node **bucket_of(const struct prefix_index *index, const struct prefix_node *parent, uint32_t token)
{
	struct {
		uint64_t parent, token;
	} key = {(uintptr_t)parent, token};
	return &index->bucket[XXH3_64bits(&key, sizeof key) & (index->buckets - 1)];
}

static void table_add(struct prefix_index *index, struct prefix_node *n)
{
	struct prefix_node **bucket = bucket_of(index, n->parent, n->token[0]);
	n->bucket_next = *bucket;
	*bucket = n;
}

static void table_remove(struct prefix_index *index, const struct prefix_node *n)
{
	struct prefix_node **at = bucket_of(index, n->parent, n->token[0]);
	while (*at != n)
		at = &(*at)->bucket_next;
	*at = n->bucket_next;
}

static struct prefix_node *child_by(const struct prefix_index *index, const struct prefix_node *parent, uint32_t token)
{
	struct prefix_node *n = parent->child ? *bucket_of(index, parent, token) : NULL;
	while (n && (n->parent != parent || n->token[0] != token))
		n = n->bucket_next;
	return n;
}

// Room for two more nodes, so that what follows cannot fail. A table that cannot grow only gets slower.
static int table_reserve(struct prefix_index *index)
{
	if (index->bucket && index->nodes + 2 <= index->buckets)
		return 0;
	size_t buckets = index->bucket ? index->buckets * 2 : FEWEST_BUCKETS;
	struct prefix_node **bucket = calloc(buckets, sizeof *bucket);
	if (!bucket)
		return index->bucket ? 0 : MPIG_ENOMEM;
	struct prefix_index old = *index;
	index->bucket = bucket;
	index->buckets = buckets;
	for (size_t i = 0; old.bucket && i < old.buckets; i++)
		for (struct prefix_node *n = old.bucket[i], *next; n; n = next) {
			next = n->bucket_next;
			table_add(index, n);
		}
	free(old.bucket);
	return 0;
}

// ---- nodes -----------------------------------------------------------------------------------------------------------

static struct prefix_node *node_new(uint64_t capacity)
{
	struct prefix_node *n = calloc(1, sizeof *n);
	uint32_t *token = malloc(capacity * sizeof *token);
	if (!n || !token) {
		free(n);
		free(token);
		return NULL;
	}
	n->token = token;
	n->capacity = capacity;
	return n;
}

static void node_free(struct prefix_node *n)
{
	if (n)
		free(n->token);
	free(n);
}

static void hang(struct prefix_index *index, struct prefix_node *parent, struct prefix_node *n)
{
	n->parent = parent;
	n->next = parent->child;
	n->link = &parent->child;
	if (n->next)
		n->next->link = &n->next;
	parent->child = n;
	table_add(index, n);
	index->nodes++;
}

static void unhang(struct prefix_index *index, struct prefix_node *n)
{
	table_remove(index, n);
	index->nodes--;
	*n->link = n->next;
	if (n->next)
		n->next->link = n->link;
}

static void end_at(struct context *c, struct prefix_node *n, uint64_t end)
{
	c->prefix = n;
	c->prefix_end = end;
	c->prefix_next = n->ends;
	c->prefix_link = &n->ends;
	if (c->prefix_next)
		c->prefix_next->prefix_link = &c->prefix_next;
	n->ends = c;
}

static void end_nowhere(struct context *c)
{
	*c->prefix_link = c->prefix_next;
	if (c->prefix_next)
		c->prefix_next->prefix_link = c->prefix_link;
	c->prefix = NULL;
}

// `upper`, empty and with room for them, takes the first `keep` ids of n and everything that ends on them, and n below itself.
static void split(struct prefix_index *index, struct prefix_node *n, uint64_t keep, struct prefix_node *upper)
{
	struct prefix_node *parent = n->parent;
	unhang(index, n);
	memcpy(upper->token, n->token, keep * sizeof *n->token);
	upper->begin = n->begin;
	upper->n = keep;
	n->n -= keep;
	n->begin += keep;
	memmove(n->token, n->token + keep, n->n * sizeof *n->token);
	hang(index, parent, upper);
	hang(index, upper, n);
	for (struct context *c = n->ends, *next; c; c = next) {
		next = c->prefix_next;
		if (c->prefix_end > n->begin)
			continue;
		end_nowhere(c);
		end_at(c, upper, c->prefix_end);
	}
}

// An edge that nothing ends on and that leads to one node only becomes part of that node's.
static void join(struct prefix_index *index, struct prefix_node *n)
{
	struct prefix_node *below = n->child;
	uint64_t tokens = n->n + below->n;
	uint32_t *token = realloc(below->token, tokens * sizeof *token);
	if (!token)
		return; // two edges do as well
	below->token = token;
	below->capacity = tokens;
	unhang(index, below);
	memmove(token + n->n, token, below->n * sizeof *token);
	memcpy(token, n->token, n->n * sizeof *token);
	below->begin = n->begin;
	below->n = tokens;
	struct prefix_node *parent = n->parent;
	unhang(index, n);
	node_free(n);
	hang(index, parent, below);
}

static void tree_free(struct prefix_index *index, struct prefix_tree *t)
{
	struct prefix_tree **at = &index->tree;
	while (*at != t)
		at = &(*at)->next;
	*at = t->next;
	free(t);
}

// After a context has left a node: what no context needs any more goes.
static void tidy(struct prefix_index *index, struct prefix_node *n)
{
	while (n->parent && !n->child && !n->ends) {
		struct prefix_node *parent = n->parent;
		unhang(index, n);
		node_free(n);
		n = parent;
	}
	if (!n->parent) {
		if (!n->child)
			tree_free(index, (struct prefix_tree *)n); // its first member
		return;
	}
	if (!n->child) {
		uint64_t end = 0;
		for (const struct context *c = n->ends; c; c = c->prefix_next)
			end = c->prefix_end > end ? c->prefix_end : end;
		n->n = end - n->begin;
	} else if (!n->ends && !n->child->next) {
		join(index, n);
	}
}

// ---- contexts come, grow, shrink and go --------------------------------------------------------------------------------

static struct prefix_tree *tree_of(const struct prefix_index *index, const uint8_t fingerprint[64])
{
	struct prefix_tree *t = index->tree;
	while (t && memcmp(t->fingerprint, fingerprint, sizeof t->fingerprint))
		t = t->next;
	return t;
}

static struct prefix_tree *tree_make(struct prefix_index *index, const uint8_t fingerprint[64])
{
	struct prefix_tree *t = tree_of(index, fingerprint);
	if (t || !(t = calloc(1, sizeof *t)))
		return t;
	memcpy(t->fingerprint, fingerprint, sizeof t->fingerprint);
	t->next = index->tree;
	index->tree = t;
	return t;
}

struct place { // after `offset` ids of a node's edge
	struct prefix_node *node;
	uint64_t offset;
};

// Follows `count` ids down from a place as far as the tree has them; returns how many.
static uint64_t descend(const struct prefix_index *index, struct place *at, const uint32_t *token, uint64_t count)
{
	uint64_t done = 0;
	while (done < count) {
		struct prefix_node *n = at->node;
		if (at->offset == n->n) {
			struct prefix_node *child = child_by(index, n, token[done]);
			if (!child)
				break;
			*at = (struct place){child, 0};
			continue;
		}
		if (n->token[at->offset] != token[done])
			break;
		at->offset++;
		done++;
	}
	return done;
}

// Makes the tree hold `count` more ids after a place where it does not have the first of them. On failure it is as before.
static struct prefix_node *grow(struct prefix_index *index, const struct place *at, const uint32_t *token, uint64_t count)
{
	struct prefix_node *n = at->node;
	if (n->parent && !n->child && at->offset == n->n) { // the edge itself grows
		if (n->n + count > n->capacity) {
			uint64_t capacity = n->n + count + n->n / 2;
			uint32_t *more = realloc(n->token, capacity * sizeof *more);
			if (!more)
				return NULL;
			n->token = more;
			n->capacity = capacity;
		}
		memcpy(n->token + n->n, token, count * sizeof *token);
		n->n += count;
		return n;
	}
	bool fork = at->offset < n->n;
	struct prefix_node *leaf = node_new(count), *upper = fork ? node_new(at->offset) : NULL;
	if (!leaf || (fork && !upper)) {
		node_free(leaf);
		node_free(upper);
		return NULL;
	}
	if (fork)
		split(index, n, at->offset, upper);
	leaf->begin = fork ? node_end(upper) : node_end(n);
	leaf->n = count;
	memcpy(leaf->token, token, count * sizeof *token);
	hang(index, fork ? upper : n, leaf);
	return leaf;
}

int prefix_extend(struct store *s, struct context *c, const uint32_t *token, uint64_t count)
{
	struct prefix_index *index = &s->prefix;
	if (!count)
		return 0;
	if (table_reserve(index))
		return MPIG_ENOMEM;
	struct prefix_node *old = c->prefix;
	uint64_t end = (old ? c->prefix_end : 0) + count;
	struct place at = {old, old ? c->prefix_end - old->begin : 0};
	if (!old) {
		struct prefix_tree *t = tree_make(index, c->fingerprint);
		if (!t)
			return MPIG_ENOMEM;
		at.node = &t->root;
	}
	uint64_t known = descend(index, &at, token, count);
	struct prefix_node *n = known == count ? at.node : grow(index, &at, token + known, count - known);
	if (!n) {
		if (!old)
			tidy(index, at.node);
		return MPIG_ENOMEM;
	}
	old = c->prefix; // a split may have moved it
	if (old)
		end_nowhere(c);
	end_at(c, n, end);
	if (old && old != n)
		tidy(index, old);
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
	end_nowhere(c);
	if (n)
		end_at(c, n, tokens);
	tidy(&s->prefix, old);
}

void prefix_share(struct store *s, struct context *child, const struct context *parent, uint64_t tokens)
{
	if (tokens && parent->prefix)
		end_at(child, node_at(parent, tokens), tokens);
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
	struct prefix_tree *t = tree_of(index, fingerprint);
	if (!t)
		return NULL;
	struct place at = {&t->root, 0};
	descend(index, &at, token, count);
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
