#include "proposal.h"

#include <string.h>

#include <magicpig.h>

static const char *const names[] = {"default",        "dense",         "signature",
                                    "paper",          "topk",          "uniform",
                                    "topk_estimated", "heavy_uniform", "heavy_uniform_estimated",
                                    "window",         "crosspolytope"};

const char *proposal_name(int proposal)
{
	return proposal >= 0 && proposal <= MPIG_PROPOSAL_CROSSPOLYTOPE ? names[proposal] : "unknown";
}

int proposal_number(const char *name)
{
	for (int i = 0; i <= MPIG_PROPOSAL_CROSSPOLYTOPE; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	return -1;
}
