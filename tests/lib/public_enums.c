#include "tests/lib/public_enums.h"

#include <magicpig.h>
#include <stddef.h>

#if defined(MPIG_SHM_STATUS_H) || defined(MPIG_SHM_ABI_H) || defined(MPIG_SHM_CONTROL_H)
#error "this file must see the public header alone"
#endif

// clang-format off
#define E(name) {#name, name}

const struct public_enum public_statuses[] = {
	E(MPIG_OK),      E(MPIG_EINVAL),    E(MPIG_ENOENT),    E(MPIG_EEXIST),   E(MPIG_EACCES), E(MPIG_ENOMEM),  E(MPIG_ENOSPC),
	E(MPIG_EQUOTA),  E(MPIG_EBUSY),     E(MPIG_EPROTO),    E(MPIG_EVERSION), E(MPIG_ERETRY), E(MPIG_ENODAEMON),
	E(MPIG_ETIMEDOUT), E(MPIG_EFORK),   E(MPIG_ENAN),      E(MPIG_ERANGE),   E(MPIG_EAGAIN), E(MPIG_EIO),     E(MPIG_ELOST),
	E(MPIG_ELEASE),  E(MPIG_ENOTSUP),   E(MPIG_ESHUTDOWN), E(MPIG_ELIMIT),   E(MPIG_ECORRUPT), {NULL, 0},
};

const struct public_enum public_dtypes[] = {E(MPIG_F32), E(MPIG_BF16), E(MPIG_F16), E(MPIG_I8), {NULL, 0}};

const struct public_enum public_proposals[] = {
	E(MPIG_PROPOSAL_DEFAULT), E(MPIG_PROPOSAL_DENSE), E(MPIG_PROPOSAL_SIGNATURE), E(MPIG_PROPOSAL_PAPER),
	E(MPIG_PROPOSAL_TOPK),    E(MPIG_PROPOSAL_UNIFORM),
	E(MPIG_PROPOSAL_TOPK_ESTIMATED), E(MPIG_PROPOSAL_HEAVY_UNIFORM),
	E(MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED), E(MPIG_PROPOSAL_WINDOW),
	E(MPIG_PROPOSAL_CROSSPOLYTOPE), {NULL, 0},
};

const struct public_enum public_table_hashes[] = {E(MPIG_HASH_SIMHASH), E(MPIG_HASH_CROSSPOLYTOPE), {NULL, 0}};

const struct public_enum public_layer_kinds[] = {E(MPIG_LAYER_GLOBAL), E(MPIG_LAYER_SLIDING), E(MPIG_LAYER_CHUNKED), {NULL, 0}};
// clang-format on
