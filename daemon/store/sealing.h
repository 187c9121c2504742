// The memory of an index being made, and what the engine asks of it: for a segment that is sealed (seal.c), or for one that was (reindex.c).
// Inside daemon/store.
#ifndef MPIG_STORE_SEALING_H
#define MPIG_STORE_SEALING_H

#include "daemon/store/internal.h"

struct seal_work {
	struct segment *segment;
	uint32_t rows, blocks; // to be sealed, and the blocks they are in
	uint64_t epoch;        // our pin
	struct identity owner; // charged for `held` bytes until they belong to the segment
	uint64_t held;
	bool fresh;                  // it gets a generation
	struct extents own, extents; // of the parameters, and of all else
	struct trash *trash;
	struct params *params;                // new, or NULL
	uint64_t params_offset;               // new, of the open segment's generation, or in force; 0: the context has no index
	struct generation_record *generation; // new or the open segment's; NULL likewise
	uint64_t new_generation;              // its offset; 0: it is the open segment's
	struct table_extent *table;           // [2 strips]: tables, upper layers; or NULL
	bool needs_tables, needs_upper;       // as in the plan
	uint64_t index_bytes, metadata_bytes; // of what was allocated, but for params
	struct content_sums *sums;            // NULL without memory: then the segment has none
};

#define SEAL_UPPER_ROWS 4096u // rows of a segment that are worth an upper layer, unless the options say

typedef uint64_t table_bytes_fn(const struct layer *, uint32_t rows);

void work_free(struct seal_work *w);
void work_blocks(struct seal_work *w); // that hold its rows
void plan_init(struct seal_plan *plan, struct context *c, struct seal_work *w, uint64_t first);
// Within the quota of the context's owner, who is charged for w->held until it belongs to something. On failure nothing is allocated.
int work_alloc(struct store *s, struct seal_work *w, struct extents *x, char *why);
int work_params(struct store *s, const struct context *c, struct seal_work *w, uint32_t version, char *why); // new ones
int work_want(struct store *s, struct seal_work *w, const struct seal_plan *plan, table_bytes_fn *bytes_of); // 0 or MPIG_ENOMEM
void work_build(struct store *s, struct seal_work *w, const struct seal_plan *plan); // records nobody reaches yet

#endif
