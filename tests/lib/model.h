// Data and the truth for integration tests: deterministic K, V and q, and attention in double precision by the definition.
#ifndef MPIG_TESTS_LIB_MODEL_H
#define MPIG_TESTS_LIB_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// splitmix64 (Steele, Lea, Flood 2014): the next number of a stream.
uint64_t model_random(uint64_t *state);
// Standard normal numbers; the same seed gives the same array everywhere.
void model_normal(float *x, size_t n, uint64_t seed);
// As model_normal, but each row of `d` numbers is scaled by a Pareto factor (index 2, at most 8): a few rows hold much of the
// mass.
void model_heavy(float *x, size_t rows, size_t d, uint64_t seed);
// Rounds to bf16 (nearest even) in place, so that rows stored as bf16 hold exactly these numbers.
void model_round_bf16(float *x, size_t n);

struct model_attention {
	const float *q;     // [tokens][query_heads][d_k]
	const float *k, *v; // [rows][kv_heads][d_k], [d_v]; row 0 is token 0 of the context
	uint32_t tokens, query_heads, kv_heads, d_k, d_v;
	uint64_t begin, end;     // rows attended
	double scale;            // 0 = 1/sqrt(d_k)
	double softcap;          // 0 = none
	double alibi_slope_base; // 0 = none; slope of head h = base^(h+1), times (row - position)
	uint64_t query_position; // of query token 0
	bool causal;             // query token t sees rows < causal_base + t
	uint64_t causal_base;
};
// out [tokens][query_heads][d_v], lse [tokens][query_heads]; -inf and zeros where no row is seen.
void model_attend(const struct model_attention *a, double *out, double *lse);

// |a - b| / |b|, both taken as vectors of n numbers; |a| if b is zero.
double model_relative_l2(const float *a, const double *b, size_t n);
// Greatest |a - b|; equal infinities count as 0, a NaN as infinity.
double model_max_difference(const float *a, const double *b, size_t n);

#endif
