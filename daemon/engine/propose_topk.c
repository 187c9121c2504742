// `topk`: the largest `budget` of the logits, exactly: an oracle to compare with, since it reads every key. `topk_estimated`: the same
// by estimated logits, from the codes.
#include "daemon/engine/pilot.h"
#include "daemon/engine/ranked.h"

const struct proposal topk_proposal = {.ops = {.pre = ranked_scores,
                                               .turn = ranked_turn,
                                               .main = ranked_main,
                                               .merge = attend_merge_unit,
                                               .close = attend_close,
                                               .finish = attend_finish,
                                               .release = attend_release},
                                       .pre_units = ranked_spans,
                                       .carve = ranked_carve};

const struct proposal topk_estimated_proposal = {.ops = {.pre = ranked_estimates,
                                                         .turn = ranked_turn,
                                                         .main = ranked_main,
                                                         .merge = attend_merge_unit,
                                                         .close = attend_close,
                                                         .finish = attend_finish,
                                                         .release = attend_release},
                                                 .estimates = true,
                                                 .check = signature_check,
                                                 .carve = ranked_codes_carve,
                                                 .prepare = signature_prepare};
