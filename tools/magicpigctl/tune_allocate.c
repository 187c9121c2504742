#include "tune_allocate.h"

#include <math.h>
#include <stdlib.h>

static const struct tune_point *point(const struct tune_point *points, int ways, int layer, int way)
{
	return &points[(long)layer * ways + way];
}

struct tune_total tune_total(const struct tune_point *points, int layers, int ways, const int *choice)
{
	struct tune_total total = {0};
	for (int l = 0; l < layers; l++) {
		total.ms += point(points, ways, l, choice[l])->ms;
		total.error2 += point(points, ways, l, choice[l])->error2 / layers;
	}
	return total;
}

// The cheapest way of a layer, of the least error among those that cost the same.
static int cheapest(const struct tune_point *points, int ways, int layer)
{
	int best = -1;
	for (int w = 0; w < ways; w++) {
		const struct tune_point *p = point(points, ways, layer, w),
					*b = best < 0 ? NULL : point(points, ways, layer, best);
		if (isfinite(p->error2) && (!b || p->ms < b->ms || (p->ms == b->ms && p->error2 < b->error2)))
			best = w;
	}
	return best;
}

// The next corner of a layer's hull: the steepest way down from where it stands, and of equally steep ones the farthest. -1: none.
static int next_corner(const struct tune_point *points, int ways, int layer, int at, double *slope)
{
	const struct tune_point *from = point(points, ways, layer, at);
	int best = -1;
	*slope = 0;
	for (int w = 0; w < ways; w++) {
		const struct tune_point *p = point(points, ways, layer, w);
		if (!(p->error2 < from->error2) || !(p->ms > from->ms))
			continue;
		double down = (from->error2 - p->error2) / (p->ms - from->ms);
		if (down > *slope || (down == *slope && best >= 0 && p->error2 < point(points, ways, layer, best)->error2)) {
			*slope = down;
			best = w;
		}
	}
	return best;
}

static bool reached(const struct tune_total *total, const struct tune_goal *goal)
{
	return goal->error2 > 0 && total->error2 <= goal->error2;
}

// Steps down the hulls, steepest first, until the error is reached or no step is left that the time allows.
static void descend(const struct tune_point *points, int layers, int ways, const struct tune_goal *goal, double most_ms,
                    int *choice)
{
	struct tune_total total = tune_total(points, layers, ways, choice);
	while (!reached(&total, goal)) {
		int layer = -1, way = -1;
		double steepest = 0;
		for (int l = 0; l < layers; l++) {
			double slope;
			int next = next_corner(points, ways, l, choice[l], &slope);
			if (next < 0 || slope <= steepest)
				continue;
			double more = point(points, ways, l, next)->ms - point(points, ways, l, choice[l])->ms;
			if (most_ms > 0 && total.ms + more > most_ms)
				continue;
			steepest = slope;
			layer = l;
			way = next;
		}
		if (layer < 0)
			return;
		choice[layer] = way;
		total = tune_total(points, layers, ways, choice);
	}
}

// One change of one layer that gains the most and breaks nothing: time as long as the error stays reached, or error within the time.
static bool polish(const struct tune_point *points, int layers, int ways, const struct tune_goal *goal, int *choice)
{
	struct tune_total total = tune_total(points, layers, ways, choice);
	int layer = -1, way = -1;
	double most = 0;
	for (int l = 0; l < layers; l++)
		for (int w = 0; w < ways; w++) {
			const struct tune_point *p = point(points, ways, l, w), *now = point(points, ways, l, choice[l]);
			if (!isfinite(p->error2))
				continue;
			double saved = now->ms - p->ms, better = now->error2 - p->error2, gain;
			if (goal->error2 > 0)
				gain = total.error2 - better / layers <= goal->error2 ? saved : 0;
			else
				gain = total.ms - saved <= goal->ms ? better : 0;
			if (gain > most) {
				most = gain;
				layer = l;
				way = w;
			}
		}
	if (layer < 0)
		return false;
	choice[layer] = way;
	return true;
}

bool tune_allocate(const struct tune_point *points, int layers, int ways, const struct tune_goal *goal, int *choice)
{
	for (int l = 0; l < layers; l++)
		choice[l] = cheapest(points, ways, l);
	// With both goals the time is looked at afterwards: the least time for the error is what would have to fit.
	descend(points, layers, ways, goal, goal->error2 > 0 ? 0 : goal->ms, choice);
	struct tune_total total = tune_total(points, layers, ways, choice);
	if (goal->error2 > 0 ? !reached(&total, goal) : total.ms > goal->ms)
		return false;
	while (polish(points, layers, ways, goal, choice))
		;
	total = tune_total(points, layers, ways, choice);
	return !(goal->ms > 0 && total.ms > goal->ms);
}
