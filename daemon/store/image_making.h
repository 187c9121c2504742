// A context being made from an image: what the two files that do it share. Inside daemon/store.
#ifndef MPIG_STORE_IMAGE_MAKING_H
#define MPIG_STORE_IMAGE_MAKING_H

#include "daemon/store/image_parts.h"

struct making {
	struct store *store;
	struct image_context from; // a copy: blocks, layers and parameters are ours
	struct spec *spec;
	struct params *params;
	struct segment **segment; // references
	bool *shared;             // [segment_count]
	struct extents *extents;  // [segment_count] of those that are not
	struct extents own;       // the parameters
	uint64_t held;            // bytes the owner is charged for until they belong to something
	bool account;
	uint64_t (*table_bytes)(const struct layer *, uint32_t rows);
};

// image_build.c: memory and records of what is not shared, which nobody can reach.
int making_want_all(struct making *m);             // lists the extents; lock held; 0 or MPIG_ENOMEM
int making_hold_all(struct making *m, char *why);  // the quota; lock held
int making_alloc_all(struct making *m, char *why); // lock not held
void making_build_all(struct making *m);           // likewise

#endif
