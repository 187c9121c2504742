// The index of a plan's rows: parameters fitted, widths chosen, rows signed, tables built. Units for jobs that have one group per strip.
#ifndef MPIG_ENGINE_INDEXING_H
#define MPIG_ENGINE_INDEXING_H

#include "daemon/engine/job.h"

// Sets what a job indexes with; its arrays are the job's memory. 0 or the status of the failed job.
int indexing_init(struct job *j, struct indexing *x);
// Units of one strip, and how many there are of the second kind: one per chunk of rows, then one for the table.
int indexing_fit(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, struct engine_scratch *s);
uint32_t indexing_units(const struct seal_plan *plan);
int indexing_unit(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, uint32_t unit,
                  struct engine_scratch *s);
// When the units of the second kind are done.
int indexing_close(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, struct engine_scratch *s);
// Between them, when all strips are fitted: the widths that are automatic, into bits [strips].
void indexing_widths(const struct job *j, const struct indexing *x, uint8_t *bits);

enum {
	SINK_ROWS = 4,   // attention sinks are outliers: they are left out of the mean
	FIT_ROWS = 4096, // rows that a fit looks at, evenly spread
	NEAR_ROWS = 64,  // last rows, which a client is taken to attend itself where a width is chosen
};
// What the cost of widths is measured on: see struct sig_sample. An answer takes the rows that the daemon takes by itself.
struct fitted {
	const float *mu, *balance, *keys, *queries;
	uint32_t n, near, query_count;
	uint64_t rows;
};
void indexing_measure(const struct engine *e, const struct indexing *x, uint32_t strip, const struct fitted *f); // sets x->cost

#endif
