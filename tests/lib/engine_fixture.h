// An engine over a store over a pool of its own, and requests without rings: what the tests of the engine and its benchmark share.
#ifndef MPIG_TESTS_LIB_ENGINE_FIXTURE_H
#define MPIG_TESTS_LIB_ENGINE_FIXTURE_H

#include "daemon/engine/engine.h"

struct fixture {
	struct kernels kernels;
	struct pool *pool;
	struct store *store;
	struct engine *engine;
	struct engine_scratch *scratch[16];
	uint8_t *slot;
	uint64_t slot_bytes;
	uint32_t threads;                      // that run each job; 1 = the caller alone
	const struct engine_default *defaults; // of requests; NULL: none
	char dir[64];
};

// Layers are all alike. mask: CPU features allowed.
void fixture_start(struct fixture *f, uint64_t pool_bytes, uint32_t mask);
// Begins anew, without contexts: upper layers for segments that reach this token position, used for ranges of so many rows, up to a
// share of groups that are looked at (0: the default).
void fixture_upper(struct fixture *f, uint64_t reach, uint64_t rows, float most);
void fixture_stop(struct fixture *f);
// Another engine in place of the first; kernels and store of the options are the fixture's.
void fixture_engine(struct fixture *f, const struct engine_options *options);
struct context *fixture_context(struct fixture *f, const char *name, const struct mpig_wire_layer *layer, uint32_t layers,
                                uint64_t seed);
// A global layer with the given shape; everything else default.
struct mpig_wire_layer fixture_layer(uint32_t query_heads, uint32_t kv_heads, uint32_t d, uint32_t row_dtype);

// Runs one entry to its end and returns its result. The payload is whatever f->slot holds.
struct engine_result fixture_run(struct fixture *f, struct context *c, const struct mpig_sqe *entry,
                                 const struct mpig_slot_header *header);

// fp32 arrays: k, v [rows][kv_heads][d]; q [tokens][query_heads][d]; queries may be NULL.
struct engine_result fixture_append(struct fixture *f, struct context *c, uint32_t layer, uint64_t position, uint32_t rows,
                                    const float *k, const float *v, const float *queries, uint32_t query_count);
struct engine_result fixture_commit(struct fixture *f, struct context *c, uint64_t position, uint32_t count,
                                    bool seal); // ids = position
struct answer {
	float *out, *lse, *v, *a; // [tokens][query heads]([d_v]); freed by answer_free
	uint32_t *rows;
	struct engine_result result;
};
struct answer fixture_attend(struct fixture *f, struct context *c, const struct mpig_sqe *entry,
                             const struct mpig_slot_header *header, const float *q);
void answer_free(struct answer *a);

// Standard normal numbers, and a context's worth of K, V whose attention has both a few heavy rows and a long tail.
void fill_normal(float *x, size_t n, uint64_t seed, float spread);

#endif
