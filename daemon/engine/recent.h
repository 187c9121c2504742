// What a prefill's last queries say about each strip: the root mean square of every dimension, over the query heads of its group.
// Kept with the context until it is sealed; the balance of the signature index is made from it. Some queries are kept as they are: a strip
// whose width of codes is to be chosen is measured with them.
#ifndef MPIG_ENGINE_RECENT_H
#define MPIG_ENGINE_RECENT_H

#include <stdint.h>

#include "daemon/store/store.h"

// Notes queries [count][query heads][d_k] of a layer, replacing what was there. 0 or MPIG_ENOMEM.
int recent_note(struct context *c, const struct layer *layer, const float *queries, uint32_t count);
// rms [d_k] of a strip, or NULL if none was noted.
const float *recent_rms(const struct context *c, uint32_t strip);
// *count <= RECENT_QUERIES of a strip's queries [*count][d_k]; NULL and 0 if none was noted.
#define RECENT_QUERIES 16u
const float *recent_queries(const struct context *c, uint32_t strip, uint32_t d_k, uint32_t *count);
void recent_forget(struct context *c);

#endif
