// Inside of tune's measuring: what its files share.
#ifndef MAGICPIGCTL_TUNE_RUN_H
#define MAGICPIGCTL_TUNE_RUN_H

#include "tune.h"

struct run {
	struct tune *t;
	mpig_client *client;
	mpig_queue *queue;
	mpig_context *base, *fork; // what is asked about, and what is asked: a fork of it
	bool copied;               // base is of one layer, made by tune_copies
	char base_name[64], fork_name[64], copy_name[64];
	float *out, *part, *lse, *part_lse;
	double owed_s; // of rest
	uint64_t done, total;
};
#define TUNE_TTL 60 // seconds after which what we made goes by itself, if we are killed

static inline int tune_value_width(const struct mpig_layer *l)
{
	return l->d_v ? l->d_v : l->d_k;
}
static inline bool tune_way_copied(const struct tune_way *way) // asks for an index that the context has not
{
	return way->bits || way->paper_l;
}
float tune_rounded(double x); // three digits: what a profile says in text is the number that was used

// tune_measure.c: another fork of r->base in the place of r->fork, in which nothing has been asked yet; one question more.
int tune_fresh_fork(struct run *r);
int tune_drop_fork(struct run *r);
int tune_ask_way(struct run *r, struct tune_layer *l, int way, int seed, int step);
void tune_rest(struct run *r, double busy_s);
void tune_tell(struct run *r, uint64_t more);
// tune_copies.c: layer by layer, the ways that ask for another index, on private copies of the layer's rows.
int tune_copies(struct run *r);
// tune_rates.c
void tune_fit_rates(struct tune *t, float *request_ns, int count);

#endif
