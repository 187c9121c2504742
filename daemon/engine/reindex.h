// A context indexed again: parameters fitted to its rows as they are now and to the queries of late, new codes and tables, and the switch
// (store.h). In steps of a few milliseconds, for a thread that has nothing better to do; one context at a time. And how far an index has
// drifted from what it was made for.
#ifndef MPIG_ENGINE_REINDEX_H
#define MPIG_ENGINE_REINDEX_H

#include "daemon/engine/engine.h"

struct engine_reindex;
// Keeps a reference to the context. 0, or a negative status with `why` (reindex_begin in store.h).
int engine_reindex_begin(struct engine *e, struct context *c, struct engine_scratch *scratch, struct engine_reindex **out,
                         char *why);
enum { REINDEX_DONE = 0, REINDEX_MORE = 1, REINDEX_WAIT = 2 }; // WAIT: rows are being appended; ask again in a while
int engine_reindex_step(struct engine_reindex *x, struct engine_scratch *scratch, char *why);  // or a negative status: end it
void engine_reindex_progress(const struct engine_reindex *x, uint64_t *done, uint64_t *total); // rows, any thread
void engine_reindex_end(struct engine_reindex *x); // what was not switched to is given back; NULL is nothing

// The noise of a logit goes with |q / a| |(k - mu) a|. Its variance under the parameters in force over that under newly fitted ones, for rows
// as they are now and the queries of late, in the mean over the strips of which at least DRIFT_QUERIES queries were noted: 1 where
// nothing has changed. 0: no strip has so many, or there is no index. Reads 4,096 keys of each such strip. `why` on a negative status.
#define DRIFT_QUERIES 8u
int engine_drift(struct engine *e, struct context *c, struct engine_scratch *scratch, double *drift, char *why);

#endif
