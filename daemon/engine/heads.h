// What sampled answers show about each strip (a KV head of a layer), as numbers for people and planners. Nothing in the daemon goes
// by them. One answer in HEADS_EVERY is looked at, a query head at a time; means are over the last HEADS_MEMORY or so.
// Transient: they are lost with the daemon, and a fork begins anew.
#ifndef MPIG_ENGINE_HEADS_H
#define MPIG_ENGINE_HEADS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/store.h"

#define HEADS_EVERY 64u
#define HEADS_MEMORY 256u

struct head_sample {    // of one query head
	double noise2;  // mean square of (estimate - logit), over rows drawn without regard to either
	double n_eff;   // (sum w)^2 / sum w^2
	double mass[2]; // of the largest 1 % and 5 % of the rows, as a share
	uint64_t rows;  // these are of
	double drawn;   // expected number of rows that are drawn, not certain
};
struct head_numbers {
	uint64_t samples; // 0: the others mean nothing
	double noise;     // root of the mean of noise2
	double n_eff, mass[2], drawn;
	uint64_t rows; // of the last sample
};

// Whether this answer of a strip is to be looked at: *turn counts those that are. The strip's first one is. False without memory.
bool heads_turn(struct context *c, uint32_t strip, uint64_t *turn);
// Adds a sample to the running means; ignored if a number of it is not finite.
void heads_note(struct context *c, uint32_t strip, const struct head_sample *sample);
struct head_numbers heads_read(const struct context *c, uint32_t strip);

#endif
