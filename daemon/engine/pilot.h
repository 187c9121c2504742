// Estimated logits of a query against the codes of a strip, and the pilot that sets the threshold from a sample of them.
#ifndef MPIG_ENGINE_PILOT_H
#define MPIG_ENGINE_PILOT_H

#include "daemon/engine/attend.h"

static inline struct sig_query *signature_query(const struct attend *a, uint32_t g, uint32_t r)
{
	return a->sig + (size_t)g * a->queries + r;
}
// Queries of one token of a group are estimated and scanned so many at a time.
static inline uint32_t signature_batch(const struct attend *a)
{
	return a->group_heads < SIG_MAX_HEADS ? a->group_heads : SIG_MAX_HEADS;
}
// A query against the run that begins at token position `first`.
struct sig_query query_for_run(const struct attend *a, uint32_t g, uint32_t r, uint64_t first);
// Estimates of rows [row, row + n) of a block for up to SIG_MAX_HEADS queries of one token: out[i * ld].
void estimate_run(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, const struct span *span, uint32_t row, uint32_t n,
                  float *out, size_t ld);
// Rotates and quantises queries [from, to) of a group (unless the client did), and sets what a scan needs of them.
void sign_queries(struct job *j, uint32_t g, uint32_t from, uint32_t to);
// What a pilot of a KV head will read, run by run.
void pilot_reads(const struct attend *a, uint32_t g, void (*read)(void *data, const void *from, size_t bytes), void *data);
int signature_check(struct job *j, const struct layer *layer);
void signature_carve(struct job *j, struct carve *c);
int signature_prepare(struct job *j);
uint32_t signature_cut(const struct attend *a,
                       uint32_t *first); // counts units; first [units + 1]: the span each begins with, and the end
uint32_t signature_pre_units(const struct attend *a);
int signature_pre(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s);

#endif
