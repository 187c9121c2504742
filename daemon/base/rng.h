// Reproducible random numbers. The state is one 64-bit word, so a stream is named by a hash of what it is for and needs no
// jump-ahead; every function is pure or works on the caller's state.
#ifndef MPIG_BASE_RNG_H
#define MPIG_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection that mixes all 64 bits.
static inline uint64_t rng_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

// Folds x into the hash h. Order matters: hash(hash(h, a), b) is not hash(hash(h, b), a).
static inline uint64_t rng_hash(uint64_t h, uint64_t x)
{
	return rng_mix((h ^ rng_mix(x + UINT64_C(0x9e3779b97f4a7c15))) + UINT64_C(0x9e3779b97f4a7c15));
}

struct rng {
	uint64_t state;
};

// The n-th value after state s is rng_mix(s + n * golden): splitmix64, period 2^64.
static inline uint64_t rng_next(struct rng *r)
{
	return rng_mix(r->state += UINT64_C(0x9e3779b97f4a7c15));
}

// Uniform in (0, 1): the centres of 2^53 equal cells, never an end.
static inline double rng_uniform(struct rng *r)
{
	return ((double)(rng_next(r) >> 11) + .5) * 0x1p-53;
}

// Uniform in [0, n), without bias (Lemire, ACM TOMACS 2019). n >= 1.
uint32_t rng_below(struct rng *r, uint32_t n);
// n standard Gaussians (Box-Muller in double, rounded to float).
void rng_gaussian(struct rng *r, float *out, size_t n);

#endif
