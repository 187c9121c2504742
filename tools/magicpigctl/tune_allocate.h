// Time dealt out to layers so that all of them together err least: pure arithmetic.
//
// Each layer can be answered in several ways, of a time and an error (squared: layers err independently, so that squares add up). What
// matters is the lower convex hull of these points: from the cheapest of every layer on, the step along a hull that takes away the most error for its time comes
// first, in whichever layer that is, so that in the end all layers stand at equal slopes. What a step overshoots is given back.
#ifndef MAGICPIGCTL_TUNE_ALLOCATE_H
#define MAGICPIGCTL_TUNE_ALLOCATE_H

#include <stdbool.h>

struct tune_point {
	double ms, error2; // error2 infinite: this layer cannot be answered so
};
struct tune_goal {
	double error2; // mean over the layers, at most; 0 with ms: none
	double ms;     // sum over the layers, at most; 0: none
};
struct tune_total {
	double ms, error2; // sum, mean
};

// points [layers][ways]: each layer has one with a finite error. choice [layers]: of the ways. With an error, the least time that reaches it; with a time
// alone, the least error within it. False: not to be had; then choice is what comes nearest.
bool tune_allocate(const struct tune_point *points, int layers, int ways, const struct tune_goal *goal, int *choice);
struct tune_total tune_total(const struct tune_point *points, int layers, int ways, const int *choice);

#endif
