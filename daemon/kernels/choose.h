// Systematic choice, what its ISAs share: weights are whole numbers of 2^-27, so that sums are exact in any order and a row is chosen by
// the carry out of them. Internal to daemon/kernels.
#ifndef MPIG_KERNELS_CHOOSE_H
#define MPIG_KERNELS_CHOOSE_H

#include "daemon/kernels/kernels.h"

#define CHOOSE_ONE (1u << SIG_CHOOSE_BITS)
// exp(x) = 2^n p(t - n), t = x log2 e, n = t rounded to nearest even by adding and taking away 1.5 * 2^23; |p / 2^r - 1| < 3e-7 (the series
// of 2^r, whose last term is 1.5e-4 * .5^6).
#define CHOOSE_LOWEST (-30.f)
#define CHOOSE_LOG2E 1.44269504f
#define CHOOSE_ROUND 12582912.f
#define CHOOSE_P1 .693147181f
#define CHOOSE_P2 .240226507f
#define CHOOSE_P3 .0555041087f
#define CHOOSE_P4 .00961812911f
#define CHOOSE_P5 .00133335581f
#define CHOOSE_P6 .000154035304f

// One group's weights, whose sum carries: appends the chosen rows; returns the chain after them.
static inline uint32_t choose_rows(const uint32_t *weight, const float *estimates, uint32_t first, uint32_t chain,
                                   struct sig_hits *hits)
{
	uint32_t n = hits->n;
	for (uint32_t r = 0; r < SIG_GROUP; r++) {
		chain += weight[r];
		if (chain >> SIG_CHOOSE_BITS) {
			chain -= CHOOSE_ONE;
			hits->row[n] = first + r;
			hits->estimate[n++] = estimates[r];
		}
	}
	hits->n = n;
	return chain;
}

#endif
