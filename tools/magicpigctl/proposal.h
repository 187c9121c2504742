// Names of proposals, as in the Python package.
#ifndef MAGICPIGCTL_PROPOSAL_H
#define MAGICPIGCTL_PROPOSAL_H

const char *proposal_name(int proposal); // "unknown" for what this program does not know
int proposal_number(const char *name);   // enum mpig_proposal, or -1

#endif
