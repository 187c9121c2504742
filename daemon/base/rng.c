#include "daemon/base/rng.h"

#include <math.h>

uint32_t rng_below(struct rng *r, uint32_t n)
{
	uint64_t product = (rng_next(r) >> 32) * n;
	if ((uint32_t)product < n) {
		uint32_t unfair = (uint32_t)-n % n; // 2^32 mod n: so many low halves would be counted once too often
		while ((uint32_t)product < unfair)
			product = (rng_next(r) >> 32) * n;
	}
	return (uint32_t)(product >> 32);
}

void rng_gaussian(struct rng *r, float *out, size_t n)
{
	for (size_t i = 0; i < n; i += 2) {
		double radius = sqrt(-2 * log(rng_uniform(r)));
		double angle = 2 * M_PI * rng_uniform(r);
		out[i] = (float)(radius * cos(angle));
		if (i + 1 < n)
			out[i + 1] = (float)(radius * sin(angle));
	}
}
