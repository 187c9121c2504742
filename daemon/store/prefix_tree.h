// The radix tree of token ids under prefix.c: nodes, the table that finds children, splitting and joining. Inside daemon/store; the
// store's lock is held.
#ifndef MPIG_STORE_PREFIX_TREE_H
#define MPIG_STORE_PREFIX_TREE_H

#include "daemon/store/internal.h"

struct prefix_node {                                       // the edge that leads to it, and what hangs below
	struct prefix_node *parent, *child, *next, **link; // siblings are a list; `link` is what points here
	struct prefix_node *bucket_next;                   // of the table that finds a child by its first token
	uint64_t begin, n, capacity;                       // token[0..n) are those at positions begin..begin+n; a root has none
	uint32_t *token;
	struct prefix_end *ends; // begin < tokens <= begin + n
};

struct prefix_tree {
	struct prefix_node root;
	uint8_t fingerprint[64];
	struct prefix_tree *next;
};

struct prefix_place { // after `offset` ids of a node's edge
	struct prefix_node *node;
	uint64_t offset;
};

static inline uint64_t prefix_node_end(const struct prefix_node *n)
{
	return n->begin + n->n;
}

// Room for what one prefix_grow adds. MPIG_ENOMEM.
int prefix_reserve(struct prefix_index *index);
struct prefix_tree *prefix_tree_of(const struct prefix_index *index, const uint8_t fingerprint[64]); // NULL: there is none
struct prefix_tree *prefix_tree_make(struct prefix_index *index,
                                     const uint8_t fingerprint[64]); // or the one there is; NULL: no memory
// Follows `count` ids down from a place as far as the tree has them; returns how many.
uint64_t prefix_descend(const struct prefix_index *index, struct prefix_place *at, const uint32_t *token, uint64_t count);
// Makes the tree hold `count` more ids after a place where it does not have the first of them; returns the node where they end. NULL: no
// memory, and the tree is as before.
struct prefix_node *prefix_grow(struct prefix_index *index, const struct prefix_place *at, const uint32_t *token, uint64_t count);
// A sequence ends at a node; no longer ends anywhere; after it has left: what none needs any more goes.
void prefix_end_at(struct prefix_end *end, struct prefix_node *n, uint64_t tokens);
void prefix_end_nowhere(struct prefix_end *end);
void prefix_tidy(struct prefix_index *index, struct prefix_node *n);

#endif
