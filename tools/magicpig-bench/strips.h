// Strips of normal numbers in an engine without rings: what 'head' and
// 'proposals' measure on.
#ifndef MPIG_BENCH_STRIPS_H
#define MPIG_BENCH_STRIPS_H

#include "tests/lib/engine_fixture.h"

enum { STRIP_DIM = 128, STRIP_GROUP = 4 }; // one KV head and its query heads

// Appends `rows` rows to the first `layers` layers. q [STRIP_GROUP][STRIP_DIM]:
// for the balance.
void strips_append(struct fixture *f, struct context *c, uint32_t layers, uint32_t rows, const float *q);
struct mpig_sqe strip_request(uint32_t layer, uint32_t rows, uint8_t proposal, float budget, uint64_t seed);
// One request for 1 % of the rows; *kept grows by the rows per query head,
// *fetched (or NULL) by the rows that one head at least wants. Milliseconds.
double strip_attend_ms(struct fixture *f, struct context *c, uint32_t layer, uint32_t rows, uint8_t proposal, uint64_t seed,
                       const float *q, double *kept, double *fetched);

#endif
