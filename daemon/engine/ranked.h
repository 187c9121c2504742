// What proposals that order all rows by a score share: logits or their estimates, a cut at the k largest, and perhaps a uniform sample
// of the others.
#ifndef MPIG_ENGINE_RANKED_H
#define MPIG_ENGINE_RANKED_H

#include "daemon/engine/attend.h"

uint32_t ranked_spans(const struct attend *a);           // pre units of true scores: one per span
void ranked_carve(struct job *j, struct carve *c);       // for true scores
void ranked_codes_carve(struct job *j, struct carve *c); // for estimates
int ranked_scores(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s);
int ranked_estimates(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s);
// The k largest of a budget of rows: k is all of it, or half where the proposal draws the other half from the rows that are left.
int ranked_turn(struct job *j, uint32_t g, struct engine_scratch *s);
int ranked_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s);

#endif
