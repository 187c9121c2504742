// The k largest of n scores by radix: three passes of at most 2,048 counters, whatever the scores are.
#include <math.h>
#include <string.h>

#include "daemon/index/index.h"

enum { DIGIT_BITS = 11 };

// Orders as floats do, with -0 as 0 and a NaN below everything.
static uint32_t order_key(float x)
{
	if (isnan(x))
		return 0;
	x += 0.f;
	uint32_t bits;
	memcpy(&bits, &x, sizeof(bits));
	return bits >> 31 ? ~bits : bits | UINT32_C(1) << 31;
}

static float key_value(uint32_t key)
{
	uint32_t bits = key >> 31 ? key & ~(UINT32_C(1) << 31) : ~key;
	float x;
	memcpy(&x, &bits, sizeof(x));
	return x;
}

struct cut cut_largest(const float *x, uint64_t n, uint64_t k)
{
	static const uint32_t shifts[] = {21, 10, 0};
	if (!k)
		return (struct cut){INFINITY, 0};
	if (k >= n)
		return (struct cut){-INFINITY, n};
	uint32_t prefix = 0, mask = 0;
	uint64_t left = k; // of those that share the prefix
	for (uint32_t pass = 0; pass < 3; pass++) {
		uint32_t shift = shifts[pass], digits = pass < 2 ? 1u << DIGIT_BITS : 1u << (DIGIT_BITS - 1), digit = digits - 1;
		uint64_t count[1u << DIGIT_BITS] = {0};
		for (uint64_t i = 0; i < n; i++) {
			uint32_t key = order_key(x[i]);
			if ((key & mask) == prefix)
				count[key >> shift & (digits - 1)]++;
		}
		while (left > count[digit])
			left -= count[digit--];
		prefix |= digit << shift;
		mask |= (digits - 1) << shift;
	}
	if (!prefix)
		return (struct cut){-INFINITY, n}; // fewer than k are numbers
	uint64_t end = 0;
	while (left)
		left -= order_key(x[end++]) == prefix;
	return (struct cut){key_value(prefix), end};
}
