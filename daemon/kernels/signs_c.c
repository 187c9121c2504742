// Signs of projections, in C.
#include <string.h>

#include "daemon/kernels/parts.h"

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef float vf_unaligned __attribute__((vector_size(16), aligned(4), may_alias));

INLINE vf load(const float *p)
{
	return *(const vf_unaligned *)p;
}

// Bit l: lane l is above 0.
INLINE uint32_t positive4(vf x)
{
	const vi bit = {1, 2, 4, 8};
	vi bits = (x > 0) & bit;
	bits |= __builtin_shufflevector(bits, bits, 2, 3, 0, 1);
	return (uint32_t)(bits[0] | bits[1]);
}

static void signs_block_c(const float *keys, uint32_t d, const float *directions, uint32_t count, uint16_t *positive)
{
	for (uint32_t c = 0; c < count; c++, directions += d) {
		vf s[4] = {{0}};
		for (uint32_t j = 0; j < d; j++)
			EACH (v, 4)
				s[v] += load(keys + SIGNS_KEYS * j + 4 * v) * directions[j];
		positive[c] = (uint16_t)(positive4(s[0]) | positive4(s[1]) << 4 | positive4(s[2]) << 8 | positive4(s[3]) << 12);
	}
}

static void signs_queries_c(const float *queries, uint32_t n, uint32_t d, const float *directions, uint32_t count,
                            uint8_t *positive)
{
	memset(positive, 0, count);
	for (uint32_t c = 0; c < count; c++, directions += d)
		for (uint32_t r = 0; r < n; r++) {
			const float *q = queries + (size_t)r * d;
			vf s[4] = {{0}};
			for (uint32_t j = 0; j < d; j += 16)
				EACH (v, 4)
					s[v] += load(q + j + 4 * v) * load(directions + j + 4 * v);
			vf t = (s[0] + s[2]) + (s[1] + s[3]);
			positive[c] |= (uint8_t)(((t[0] + t[1]) + (t[2] + t[3]) > 0) << r);
		}
}

void signs_init_c(struct kernels *k)
{
	k->signs_block = signs_block_c;
	k->signs_queries = signs_queries_c;
}
