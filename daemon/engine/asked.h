// What queries have been like lately, strip by strip: of one answer in HEADS_EVERY, one query head in turn. What the balance of an index
// is compared with, and made from when a context is indexed again. Transient, as heads.h.
#ifndef MPIG_ENGINE_ASKED_H
#define MPIG_ENGINE_ASKED_H

#include <stdint.h>

#include "daemon/store/store.h"

#define ASKED_QUERIES 16u // kept as they were
#define ASKED_MEMORY 64u  // queries that the mean squares go back to

void asked_note(struct context *c, const struct layer *layer, uint32_t strip, const float *q); // forgotten without memory
// How many were noted, ever. rms [d_k] and queries [ASKED_QUERIES][d_k] are written, of which *kept count; all of it if any was noted.
uint64_t asked_read(const struct context *c, const struct layer *layer, uint32_t strip, float *rms, float *queries,
                    uint32_t *kept);
void asked_forget(struct context *c); // from here on they count anew

#endif
