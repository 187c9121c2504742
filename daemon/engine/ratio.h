// How far the sampling's variance comes out above what the estimates predict, per strip of a context.
//
// The closed form takes estimated sizes for true ones; the codes' noise makes the realised variance larger, by a factor that belongs
// to the strip (its keys, its queries, its bits) and changes slowly. It is measured on every answer, for nothing, as A (attn/README.md)
// over the prediction, and eps^2 is divided by its running mean. A sample that missed a heavy row says too little, so a factor
// below 1 is taken as 1.
//
// Which answers a request's factor is made of must not depend on timing:
//   - only requests of one query token are noted, under their query position;
//   - what was noted at a position counts from the first such request at another position on;
//   - noting is commutative to the bit (fixed point), so the answers of one position may complete in any order.
// So a client that waits for a step's answers before it asks for the next step gets the same bits in every run over the same context.
// Transient: it is lost with the daemon, and a fork begins anew.
#ifndef MPIG_ENGINE_RATIO_H
#define MPIG_ENGINE_RATIO_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/store.h"

#define RATIO_MOST 16.f

// The factors of a layer's KV heads, in [1, RATIO_MOST], into ratio [kv_heads]; `step`: a request of one query token, at `position`.
// All 1 where memory is out.
void ratio_take(struct context *c, const struct layer *layer, bool step, uint64_t position, float *ratio);
// Notes what one answer of one KV head realised over what was predicted (the mean over its query heads). Ignored if negative or not
// a number, and if a request at another position came in between.
void ratio_note(struct context *c, const struct layer *layer, uint32_t kv_head, uint64_t position, double ratio);

#endif
