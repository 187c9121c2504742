// Division by a number whose inverse is known, to the bit of IEEE division.

// x / a, where inverse is 1 / a, both rounded to nearest, ties to even. The first product is off by less than 1.5 ulp; the remainder is exact
// there; adding the remainder's quotient errs by less than the distance of any quotient of two floats from the middle of two others
// (Markstein's theorem, and where the first product is off by more than an ulp, both mantissas are so near to 2 that no float x lies
// where it would matter). Holds as long as nothing underflows: |a| between 2^-30 and 2^30, and |x| 2^-63 or more; or x is 0, whose
// quotient may lose its sign. An infinite x gives NaN, as does an x so large that the product overflows, if only by rounding: all stand for
// "too large", since a rotation doubles what is within an ulp of the greatest float.
DEVICE float quotient(float x, float a, float inverse)
{
	float near = x * inverse, rest = fmaf(-near, a, x);
	return fmaf(rest, inverse, near);
}

// Folds what quotient_holds wants to know of some elements, as they lie in a word: one of fp32 or two of bf16.
DEVICE uint32_t quotient_look(uint32_t seen, uint32_t word)
{
	return seen & (word | word << 1);
}

// Whether all elements that were looked at, from `seen` = all ones on, are in quotient()'s range: of their exponents, which have eight bits, one of the
// upper two is 1. A zero is not. All of fp16 are.
DEVICE int quotient_holds(uint32_t seen, uint32_t dtype)
{
	const uint32_t bits = dtype == MPIG_F32 ? 0x40000000u : 0x40004000u;
	return (seen & bits) == bits;
}
