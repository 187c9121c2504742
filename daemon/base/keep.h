// Tables of jobs that one message begins and later ones look at until they are done: which place a new job takes. How a job ended is kept for
// whoever began it until they have been told; only when there is no other place do those go whose own turn it is: of the user who wants one more.
#ifndef MPIG_BASE_KEEP_H
#define MPIG_BASE_KEEP_H

#include <stdbool.h>
#include <stdint.h>

struct kept {
	uint64_t number;      // of the job, from 1, in order; 0: a free place
	uint32_t uid;         // who began it
	uint32_t asked, told; // how many began it (work that waits is joined), and have been told how it ended
	bool done;
};

// From the first to go to the last; of one rank the oldest goes first.
enum keep { KEEP_FREE, KEEP_TOLD, KEEP_OWN, KEEP_OTHERS, KEEP_RUNNING };

static inline enum keep keep_rank(const struct kept *k, uint32_t uid)
{
	return !k->number            ? KEEP_FREE
	       : !k->done            ? KEEP_RUNNING
	       : k->told >= k->asked ? KEEP_TOLD
	       : k->uid == uid       ? KEEP_OWN
	                             : KEEP_OTHERS;
}

// Whether a new job of this user takes the place of `a` rather than that of `b` (NULL: none was found).
static inline bool keep_takes(const struct kept *a, const struct kept *b, uint32_t uid)
{
	enum keep rank = keep_rank(a, uid), other = b ? keep_rank(b, uid) : KEEP_RUNNING;
	return rank < other || (b && rank == other && rank != KEEP_RUNNING && a->number < b->number);
}

#endif
