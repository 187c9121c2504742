// The ways in which each layer can be answered.
#include <math.h>

#include "tune_run.h"

#define LADDER_STEPS 6     // rungs on each side of the daemon's own error target, a factor of sqrt(2) apart
#define SHARES 8           // fixed shares, a factor of 2 apart
#define SHARE_LEAST .0025f // the first of them

float tune_rounded(double x)
{
	if (!(x > 0))
		return 0;
	double unit = pow(10, floor(log10(x)) - 2);
	return (float)(round(x / unit) * unit);
}

double tune_hash_bits(const struct mpig_layer *l, const struct tune_way *way)
{
	if (way->proposal != MPIG_PROPOSAL_PAPER && way->proposal != MPIG_PROPOSAL_CROSSPOLYTOPE)
		return 0;
	int bits = way->proposal == MPIG_PROPOSAL_CROSSPOLYTOPE ? l->paper_k : way->paper_l ? way->paper_k : l->paper_k;
	return (double)bits * (way->paper_l ? way->paper_l : l->paper_l) * l->query_heads;
}

static bool has_tables(const struct mpig_layer *l, int hash)
{
	return l->paper_l && l->table_hash == hash;
}

// Whether a layer can be answered so: with the index it has, or with one that it would be made with instead.
static bool can(const struct mpig_layer *l, const struct tune_way *way)
{
	switch (way->proposal) {
	case MPIG_PROPOSAL_DENSE:
		return true;
	case MPIG_PROPOSAL_SIGNATURE:
		return l->signature_bits; // of its own width, too: what others are compared with
	case MPIG_PROPOSAL_PAPER:
		return has_tables(l, MPIG_HASH_SIMHASH) && !(way->paper_k == l->paper_k && way->paper_l == l->paper_l);
	case MPIG_PROPOSAL_CROSSPOLYTOPE:
		return has_tables(l, MPIG_HASH_CROSSPOLYTOPE) && way->paper_l != l->paper_l;
	default:
		return false;
	}
}

// as_is: the same rule with the index that the context has.
static void add_way(struct tune *t, const struct tune_way *way, int as_is)
{
	t->as_is[t->ways] = as_is;
	for (int i = 0; i < t->layers; i++) {
		struct tune_layer *l = &t->layer[i];
		l->way[t->ways] = *way;
		l->can[t->ways] = can(&l->spec, way);
	}
	t->ways++;
}

// As answers are now: by the profile, else by the spec.
static void add_before(struct tune *t, const struct profile *profile)
{
	static const int proposals[PROFILE_PROPOSALS] = {MPIG_PROPOSAL_SIGNATURE, MPIG_PROPOSAL_DENSE, MPIG_PROPOSAL_PAPER,
	                                                 MPIG_PROPOSAL_CROSSPOLYTOPE};
	t->before = t->ways++;
	t->as_is[t->before] = t->before;
	t->profiled = profile;
	for (int i = 0; i < t->layers; i++) {
		struct tune_layer *l = &t->layer[i];
		const struct profile_layer *p = profile ? profile_find(profile, (uint32_t)l->number) : NULL;
		struct tune_way way = {.proposal = l->spec.default_proposal};
		if (p)
			way = (struct tune_way){.proposal = proposals[p->proposal],
			                        .budget = p->budget,
			                        .error_target = p->error_target,
			                        .floor = p->budget_floor,
			                        .cap = p->budget_cap};
		if (way.proposal == MPIG_PROPOSAL_SIGNATURE && !(way.budget > 0) && !(way.error_target > 0)) {
			way.budget = l->spec.default_budget;
			way.error_target = way.budget > 0 ? 0 : t->error_target;
		}
		if (way.error_target > 0) {
			way.floor = way.floor > 0 ? way.floor : t->floor;
			way.cap = way.cap > 0 ? way.cap : t->cap;
			way.floor = fminf(way.floor, way.cap); // as the daemon takes it, where one of both is its own
		}
		l->way[t->before] = way;
		l->can[t->before] = true;
	}
}

// The rule of the daemon at another error: a smaller one also asks for more rows at least, and allows more at most.
static struct tune_way rung(const struct tune *t, int step)
{
	float factor = powf(2, (float)step / 2);
	return (struct tune_way){.proposal = MPIG_PROPOSAL_SIGNATURE,
	                         .error_target = fminf(tune_rounded((double)(t->error_target * factor)), 1),
	                         .floor = fminf(tune_rounded((double)(t->floor / factor)), 1),
	                         .cap = fminf(tune_rounded((double)(fmaxf(t->cap, t->floor) / factor)), 1)};
}

// Widths at every other rung, and hash tables as published: (8, 75) to (11, 300), or fewer and more cross-polytope ones.
static void add_indexes(struct tune *t, int paper, int crosspolytope)
{
	static const int tables[][2] = {{8, 75}, {9, 120}, {10, 150}, {10, 220}, {11, 300}}, hashes[] = {14, 20, 28, 35, 46, 64};
	for (int bits = 1; bits <= 4; bits *= 2)
		for (int step = -LADDER_STEPS; step <= LADDER_STEPS && t->error_target > 0; step += 2) {
			struct tune_way way = rung(t, step);
			way.bits = bits;
			add_way(t, &way, t->ladder + step + LADDER_STEPS);
		}
	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		add_way(t, &(struct tune_way){.proposal = MPIG_PROPOSAL_PAPER, .paper_k = tables[i][0], .paper_l = tables[i][1]},
		        paper);
	for (size_t i = 0; i < sizeof(hashes) / sizeof(hashes[0]); i++)
		add_way(t, &(struct tune_way){.proposal = MPIG_PROPOSAL_CROSSPOLYTOPE, .paper_l = hashes[i]}, crosspolytope);
}

void tune_ways(struct tune *t, const struct profile *profile)
{
	t->ways = 0;
	add_before(t, profile);
	t->ladder = t->ways;
	for (int step = -LADDER_STEPS; step <= LADDER_STEPS && t->error_target > 0; step++) {
		struct tune_way way = rung(t, step);
		add_way(t, &way, t->ways);
	}
	t->ladder_end = t->ways;
	for (int i = 0; i < SHARES; i++)
		add_way(t, &(struct tune_way){.proposal = MPIG_PROPOSAL_SIGNATURE, .budget = SHARE_LEAST * (float)(1 << i)},
		        t->ways);
	t->dense = t->ways;
	add_way(t, &(struct tune_way){.proposal = MPIG_PROPOSAL_DENSE}, t->ways);
	int paper = t->ways;
	add_way(t, &(struct tune_way){.proposal = MPIG_PROPOSAL_PAPER}, t->ways);
	int crosspolytope = t->ways;
	add_way(t, &(struct tune_way){.proposal = MPIG_PROPOSAL_CROSSPOLYTOPE}, t->ways);
	if (t->index)
		add_indexes(t, paper, crosspolytope);
}
