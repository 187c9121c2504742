#include "daemon/store/prefix_tree.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { FEWEST_BUCKETS = 1024 };

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

// Two more nodes at most. A table that cannot grow only gets slower.
int prefix_reserve(struct prefix_index *index)
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

void prefix_end_at(struct prefix_end *end, struct prefix_node *n, uint64_t tokens)
{
	end->node = n;
	end->tokens = tokens;
	end->next = n->ends;
	end->link = &n->ends;
	if (end->next)
		end->next->link = &end->next;
	n->ends = end;
}

void prefix_end_nowhere(struct prefix_end *end)
{
	*end->link = end->next;
	if (end->next)
		end->next->link = end->link;
	end->node = NULL;
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
	for (struct prefix_end *e = n->ends, *next; e; e = next) {
		next = e->next;
		if (e->tokens > n->begin)
			continue;
		prefix_end_nowhere(e);
		prefix_end_at(e, upper, e->tokens);
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

void prefix_tidy(struct prefix_index *index, struct prefix_node *n)
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
		for (const struct prefix_end *e = n->ends; e; e = e->next)
			end = e->tokens > end ? e->tokens : end;
		n->n = end - n->begin;
	} else if (!n->ends && !n->child->next) {
		join(index, n);
	}
}

// ---- trees and places ------------------------------------------------------------------------------------------------

struct prefix_tree *prefix_tree_of(const struct prefix_index *index, const uint8_t fingerprint[64])
{
	struct prefix_tree *t = index->tree;
	while (t && memcmp(t->fingerprint, fingerprint, sizeof t->fingerprint))
		t = t->next;
	return t;
}

struct prefix_tree *prefix_tree_make(struct prefix_index *index, const uint8_t fingerprint[64])
{
	struct prefix_tree *t = prefix_tree_of(index, fingerprint);
	if (t || !(t = calloc(1, sizeof *t)))
		return t;
	memcpy(t->fingerprint, fingerprint, sizeof t->fingerprint);
	t->next = index->tree;
	index->tree = t;
	return t;
}

uint64_t prefix_descend(const struct prefix_index *index, struct prefix_place *at, const uint32_t *token, uint64_t count)
{
	uint64_t done = 0;
	while (done < count) {
		struct prefix_node *n = at->node;
		if (at->offset == n->n) {
			struct prefix_node *child = child_by(index, n, token[done]);
			if (!child)
				break;
			*at = (struct prefix_place){child, 0};
			continue;
		}
		if (n->token[at->offset] != token[done])
			break;
		at->offset++;
		done++;
	}
	return done;
}

struct prefix_node *prefix_grow(struct prefix_index *index, const struct prefix_place *at, const uint32_t *token, uint64_t count)
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
	leaf->begin = fork ? prefix_node_end(upper) : prefix_node_end(n);
	leaf->n = count;
	memcpy(leaf->token, token, count * sizeof *token);
	hang(index, fork ? upper : n, leaf);
	return leaf;
}
