// Systematic choice inside groups, plain C on vectors of 16 bytes.
#include <string.h>

#include <math.h>

#include "daemon/kernels/choose.h"
#include "daemon/kernels/parts.h"

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

// Four weights, in the steps that kernels.h lays down. A NaN is taken for the lowest.
static inline vi weights4(vf e, float tau)
{
	vf x = e - tau;
	vi in = x > CHOOSE_LOWEST;
	x = (vf)((in & (vi)x) | (~in & (vi)((vf){0} + CHOOSE_LOWEST)));
	x = (vf)((x < 0) & (vi)x);
	vf t = x * CHOOSE_LOG2E, n = (t + CHOOSE_ROUND) - CHOOSE_ROUND, r = t - n;
	vf p = r * CHOOSE_P6 + CHOOSE_P5;
	p = p * r + CHOOSE_P4;
	p = p * r + CHOOSE_P3;
	p = p * r + CHOOSE_P2;
	p = p * r + CHOOSE_P1;
	p = p * r + 1.f;
	vf scale = (vf)((__builtin_convertvector(n, vi) + (int32_t)(127 + SIG_CHOOSE_BITS)) << 23);
	vi w = __builtin_convertvector(p * scale + .5f, vi), over = w > (int32_t)CHOOSE_ONE;
	return (w & ~over) | ((int32_t)CHOOSE_ONE & over);
}

static void sig_choose_c(const float *estimates, const float *tau, uint32_t groups, uint32_t *chain, struct sig_hits *hits)
{
	uint32_t at = *chain;
	for (uint32_t i = 0; i < groups; i++, estimates += SIG_GROUP) {
		if (tau[i] == INFINITY)
			continue;
		uint32_t weight[SIG_GROUP], sum = 0;
		for (uint32_t r = 0; r < SIG_GROUP; r += 4) {
			vf e;
			memcpy(&e, estimates + r, sizeof e);
			vi w = weights4(e, tau[i]);
			memcpy(weight + r, &w, sizeof w);
			sum += (uint32_t)(w[0] + w[1]) + (uint32_t)(w[2] + w[3]);
		}
		at = (at + sum) >> SIG_CHOOSE_BITS ? choose_rows(weight, estimates, SIG_GROUP * i, at, hits) : at + sum;
	}
	*chain = at;
}

void choose_init_c(struct kernels *k)
{
	k->sig_choose = sig_choose_c;
}
