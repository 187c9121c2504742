// `heavy_uniform`: half of the budget are the largest logits, certain; the other half is uniform over the rows that are left, with known
// probability. By true scores, which reads every key, or (`heavy_uniform_estimated`) by those of the codes.
#include "daemon/engine/pilot.h"
#include "daemon/engine/ranked.h"

const struct proposal heavy_uniform_proposal = {.ops = {.pre = ranked_scores,
                                                        .turn = ranked_turn,
                                                        .main = ranked_main,
                                                        .merge = attend_merge_unit,
                                                        .close = attend_close,
                                                        .finish = attend_finish,
                                                        .release = attend_release},
                                                .draws_rest = true,
                                                .pre_units = ranked_spans,
                                                .carve = ranked_carve};

const struct proposal heavy_uniform_estimated_proposal = {.ops = {.pre = ranked_estimates,
                                                                  .turn = ranked_turn,
                                                                  .main = ranked_main,
                                                                  .merge = attend_merge_unit,
                                                                  .close = attend_close,
                                                                  .finish = attend_finish,
                                                                  .release = attend_release},
                                                          .estimates = true,
                                                          .draws_rest = true,
                                                          .check = signature_check,
                                                          .carve = ranked_codes_carve,
                                                          .prepare = signature_prepare};
