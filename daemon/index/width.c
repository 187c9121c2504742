#include <math.h>

#include "daemon/index/index.h"

static const double GATHER = 2; // a byte of a gathered row over one of a scan

// Of an estimate, relative: sqrt(1 / rho^2 - 1) of the grids in signature.c.
static double relative_noise(uint32_t bits)
{
	return bits == 1 ? .7555 : bits == 2 ? .3673 : .1081;
}

double sig_cost(const struct sig_use *use, uint32_t bits)
{
	double ratio = relative_noise(bits) / relative_noise(use->bits);
	double drawn = use->drawn * exp(use->noise * use->noise * (ratio * ratio - 1));
	drawn = fmin(drawn, use->rows);
	return use->rows * (double)(use->d_pad * bits / 8 + 2) + GATHER * use->heads * drawn * use->row_bytes;
}

uint32_t sig_best_bits(const struct sig_use *use)
{
	if (!isfinite(use->rows + use->drawn + use->noise))
		return 0;
	uint32_t best = 1;
	for (uint32_t bits = 2; bits <= 4; bits *= 2)
		if (sig_cost(use, bits) < sig_cost(use, best))
			best = bits;
	return best;
}
