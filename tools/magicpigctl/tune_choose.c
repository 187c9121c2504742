// From what was measured to a choice: half of the queries choose, the other half says what the choice is worth.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tune_run.h"

#define TRIES 12      // of aiming lower
#define STRICTEST .01 // of what is asked for

// What a row costs to look at. Of codes of another width nobody has measured, as much more as they have more bytes.
static double scan_ns(const struct tune *t, const struct tune_layer *l, int way)
{
	int padded = l->spec.d_k <= 64 ? 64 : l->spec.d_k <= 128 ? 128 : 256, bits = l->way[way].bits;
	if (bits && t->rates.scan_bits[bits / 2] > 0)
		return t->rates.scan_bits[bits / 2];
	return t->rates.scan * (bits && l->code_bytes > 0 ? (padded * bits / 8.0 + 2) / l->code_bytes : 1);
}

static double answer_ms(const struct tune *t, const struct tune_layer *l, int way, double rows, double looked)
{
	const struct tune_rates *r = &t->rates;
	int proposal = l->way[way].proposal;
	double ns = r->request;
	if (proposal == MPIG_PROPOSAL_DENSE || rows >= looked) // short ranges are answered so, whatever is asked for
		ns += r->dense * looked;
	else if (proposal == MPIG_PROPOSAL_SIGNATURE)
		ns += scan_ns(t, l, way) * looked + r->read * rows;
	else
		ns += r->lookup * tune_hash_bits(&l->spec, &l->way[way]) + r->read * rows;
	return ns / 1e6;
}

struct tune_point tune_point_of(const struct tune *t, int layer, int way, int seed, enum tune_half half)
{
	const struct tune_layer *l = &t->layer[layer];
	struct tune_cell sum = {0};
	for (int s = 0; s < t->seeds; s++) {
		const struct tune_cell *c = &l->cell[way][s][half];
		if (seed >= 0 && s != seed)
			continue;
		sum.error2 += c->error2;
		sum.rows += c->rows;
		sum.looked += c->looked;
		sum.count += c->count;
	}
	if (!l->can[way] || !(sum.count > 0))
		return (struct tune_point){.error2 = INFINITY};
	return (struct tune_point){.ms = answer_ms(t, l, way, sum.rows / sum.count, sum.looked / sum.count),
	                           .error2 = sum.error2 / sum.count};
}

double tune_share(const struct tune *t, int layer, int way)
{
	double rows = 0, looked = 0;
	for (int s = 0; s < t->seeds; s++)
		for (int half = 0; half < TUNE_HALVES; half++) {
			rows += t->layer[layer].cell[way][s][half].rows;
			looked += t->layer[layer].cell[way][s][half].looked;
		}
	return looked > 0 ? fmin(rows / looked, 1) : 0;
}

static int profile_word(int proposal)
{
	switch (proposal) {
	case MPIG_PROPOSAL_SIGNATURE:
		return PROFILE_SIGNATURE;
	case MPIG_PROPOSAL_DENSE:
		return PROFILE_DENSE;
	case MPIG_PROPOSAL_PAPER:
		return PROFILE_PAPER;
	case MPIG_PROPOSAL_CROSSPOLYTOPE:
		return PROFILE_CROSSPOLYTOPE;
	default:
		return -1;
	}
}

// choosing: ways that a profile cannot name are out of the question, and so are copies of the index as it is.
static void fill_points(const struct tune *t, int seed, enum tune_half half, bool choosing, struct tune_point *points)
{
	for (int l = 0; l < t->layers; l++)
		for (int w = 0; w < t->ways; w++) {
			struct tune_point *p = &points[(size_t)l * (size_t)t->ways + (size_t)w];
			*p = tune_point_of(t, l, w, seed, half);
			const struct tune_way *way = &t->layer[l].way[w];
			bool same = way->bits && way->bits == t->layer[l].spec.signature_bits;
			if (choosing && (same || profile_word(way->proposal) < 0))
				p->error2 = INFINITY;
		}
}

struct points {
	struct tune_point *fit, *check;
};

static struct tune_total checked(const struct tune *t, const struct points *p, const int *way)
{
	return tune_total(p->check, t->layers, t->ways, way);
}

static bool good(const struct tune *t, const struct tune_total *total)
{
	return !(t->goal.error2 > 0 && total->error2 > t->goal.error2) && !(t->goal.ms > 0 && total->ms > t->goal.ms);
}

// What was chosen for one half of the queries may miss the goal on the other: then it is aimed lower, as little as is enough.
static bool choose(const struct tune *t, const struct points *p, struct tune_choice *choice)
{
	struct tune_choice tried;
	double lax = 1,
	       strict =
		       STRICTEST; // factors of the goal's error, or of its time: missed on the check; met, or not to be had at all
	bool by_error = t->goal.error2 > 0, met = false;
	for (int i = 0; i < TRIES; i++) {
		double factor = i ? sqrt(lax * strict) : 1;
		struct tune_goal aim = {.error2 = t->goal.error2 * (by_error ? factor : 1),
		                        .ms = t->goal.ms * (by_error ? 1 : factor)};
		bool had = tune_allocate(p->fit, t->layers, t->ways, &aim, tried.way);
		tried.check = checked(t, p, tried.way);
		bool meets = had && good(t, &tried.check);
		met |= meets;
		if (meets || i == 0)
			*choice = tried;
		if (i == 0 && (meets || !had))
			break;
		*(meets || !had ? &strict : &lax) = factor;
	}
	return met;
}

// The best for time after time, from the least to what the most exact rung of the ladder takes.
static void tuned_curve(const struct tune *t, const struct points *p, struct tune_result *r)
{
	struct tune_choice least, most;
	tune_allocate(p->fit, t->layers, t->ways, &(struct tune_goal){.ms = 1e-12}, least.way);
	tune_allocate(p->fit, t->layers, t->ways, &(struct tune_goal){.error2 = 1e-300}, most.way);
	double from = checked(t, p, least.way).ms, to = checked(t, p, most.way).ms;
	for (int i = 0; i < TUNE_CURVE && from > 0; i++) {
		struct tune_goal goal = {.ms = from * pow(to / from, (double)i / (TUNE_CURVE - 1)) * 1.0001};
		tune_allocate(p->fit, t->layers, t->ways, &goal, most.way);
		r->tuned[r->tuned_count++] = checked(t, p, most.way);
	}
}

static void uniform_curve(const struct tune *t, const struct points *p, struct tune_result *r)
{
	struct tune_choice same;
	for (int w = t->ladder; w < t->ladder_end; w++) {
		bool all = true;
		for (int l = 0; l < t->layers; l++) {
			same.way[l] = w;
			all &= t->layer[l].can[w];
		}
		if (all)
			r->uniform[r->uniform_count++] = checked(t, p, same.way);
	}
}

// On contexts whose index is as this one's. A layer without the tables stays as its spec says, as it is before.
static void as_it_is(const struct tune *t, const struct points *p, struct tune_result *r)
{
	struct tune_choice same;
	for (int l = 0; l < t->layers; l++) {
		int way = r->after.way[l];
		same.way[l] = t->as_is[way];
		r->reindexed += t->as_is[way] != way;
	}
	r->present = checked(t, p, same.way);
}

static void over_seeds(const struct tune *t, const struct points *p, struct tune_result *r)
{
	size_t size = (size_t)t->layers * (size_t)t->ways * sizeof(*p->fit);
	struct points one = {.fit = malloc(size), .check = malloc(size)};
	for (int s = 0; one.fit && one.check && s < t->seeds; s++) {
		fill_points(t, s, TUNE_FIT, true, one.fit);
		fill_points(t, s, TUNE_CHECK, false, one.check);
		tune_allocate(one.fit, t->layers, t->ways, &t->goal, r->of_seed[s].way);
		r->of_seed[s].check = checked(t, p, r->of_seed[s].way);
		r->of_draw[s] = checked(t, &one, r->after.way);
	}
	for (int l = 0; l < t->layers; l++) {
		bool same = true;
		for (int s = 1; s < t->seeds; s++)
			same &= r->of_seed[s].way[l] == r->of_seed[0].way[l];
		r->agree += same;
	}
	free(one.fit);
	free(one.check);
}

bool tune_choose(const struct tune *t, struct tune_result *r)
{
	size_t size = (size_t)t->layers * (size_t)t->ways * sizeof(struct tune_point);
	struct points p = {.fit = malloc(size), .check = malloc(size)};
	memset(r, 0, sizeof(*r));
	bool memory = p.fit && p.check;
	if (memory) {
		fill_points(t, -1, TUNE_FIT, true, p.fit);
		fill_points(t, -1, TUNE_CHECK, false, p.check);
		for (int l = 0; l < t->layers; l++)
			r->before.way[l] = t->before;
		r->before.check = checked(t, &p, r->before.way);
		r->reached = choose(t, &p, &r->after);
		as_it_is(t, &p, r);
		uniform_curve(t, &p, r);
		tuned_curve(t, &p, r);
		over_seeds(t, &p, r);
	}
	free(p.fit);
	free(p.check);
	return memory;
}

void tune_profile(const struct tune *t, const struct tune_result *r, struct profile *profile)
{
	*profile = (struct profile){.seed = t->seed,
	                            .seeds = (uint32_t)t->seeds,
	                            .rates_tokens = (uint32_t)t->rates_tokens,
	                            .goal_error = (float)sqrt(t->goal.error2),
	                            .goal_ms = (float)t->goal.ms,
	                            .error = tune_rounded(sqrt(r->after.check.error2)),
	                            .ms = tune_rounded(r->after.check.ms),
	                            .ns_request = (float)t->rates.request,
	                            .ns_dense = (float)t->rates.dense,
	                            .ns_scan = (float)t->rates.scan,
	                            .ns_read = (float)t->rates.read,
	                            .ns_lookup = (float)t->rates.lookup,
	                            .ns_scan_1 = (float)t->rates.scan_bits[0],
	                            .ns_scan_2 = (float)t->rates.scan_bits[1],
	                            .ns_scan_4 = (float)t->rates.scan_bits[2],
	                            .count = (uint32_t)t->layers};
	profile_hex(t->info.fingerprint, profile->fingerprint);
	for (int i = 0; i < t->layers; i++) {
		const struct tune_layer *l = &t->layer[i];
		int w = r->after.way[i];
		const struct tune_way *way = &l->way[w];
		struct tune_point check = tune_point_of(t, i, w, -1, TUNE_CHECK);
		bool named = l->spec.signature_bits && l->spec.signature_bits != MPIG_BITS_AUTO;
		int bits = way->bits ? way->bits : named ? l->spec.signature_bits : 0;
		profile->queries += (uint32_t)l->steps;
		profile->layer[i] = (struct profile_layer){.number = (uint32_t)l->number,
		                                           .proposal = profile_word(way->proposal),
		                                           .budget = way->budget,
		                                           .error_target = way->error_target,
		                                           .budget_floor = way->floor,
		                                           .budget_cap = way->cap,
		                                           .signature_bits = (uint32_t)bits,
		                                           .paper_k = (uint32_t)(way->paper_l ? way->paper_k : l->spec.paper_k),
		                                           .paper_l = (uint32_t)(way->paper_l ? way->paper_l : l->spec.paper_l),
		                                           .rows = tune_rounded(tune_share(t, i, w)),
		                                           .error = tune_rounded(sqrt(check.error2)),
		                                           .ms = tune_rounded(check.ms)};
	}
}
