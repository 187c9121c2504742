// Rotors, by running the rotation of kernel_rotate.cuh on names instead of numbers: which element a register of a lane holds at each step, and
// which sign it owes.
#include "cuda/rotate.h"

#include <string.h>

enum { REGISTERS = 1 << GPU_PART_BITS, MOST_LANES = 256 / REGISTERS };

struct lane {
	uint8_t name[REGISTERS];
	int8_t owed[REGISTERS];
};

struct run {
	struct lane lane[MOST_LANES];
	uint32_t lanes;
	float *rotor;
	uint32_t at; // how many factors of each lane there are
};

static float *rotor_at(const struct run *r, uint32_t lane, uint32_t n)
{
	return r->rotor + (n / 4 * r->lanes + lane) * 4 + n % 4;
}

// The butterfly of registers p and q, which the kernel computes as p + r q and p - r q. Registers keep their names. Where p has the second
// element of the pair, it gets the difference, which owes another sign.
static float join(struct lane *l, uint32_t p, uint32_t q)
{
	const int8_t owed = l->owed[p];
	const int ratio = owed * l->owed[q], turned = l->name[p] > l->name[q];
	l->owed[p] = turned ? (int8_t)-owed : owed;
	l->owed[q] = owed;
	return (float)(turned ? -ratio : ratio);
}

static void stage(struct run *r, uint32_t i)
{
	for (uint32_t l = 0; l < r->lanes; l++)
		for (uint32_t p = 0; p < REGISTERS; p++)
			if (!(p >> i & 1))
				*rotor_at(r, l, r->at + (p >> (i + 1))) = join(&r->lane[l], p, p | 1u << i);
	r->at += REGISTERS >> (i + 1);
}

static void exchange(struct run *r, uint32_t distance)
{
	const struct run before = *r;
	for (uint32_t l = 0; l < r->lanes; l++)
		for (uint32_t p = REGISTERS / 2; p < REGISTERS; p++) {
			r->lane[l].name[p] = before.lane[l ^ distance].name[p];
			r->lane[l].owed[p] = before.lane[l ^ distance].owed[p];
		}
}

static void begin(struct run *r)
{
	for (uint32_t l = 0; l < r->lanes; l++)
		for (uint32_t p = 0; p < REGISTERS; p++) {
			r->lane[l].name[p] = (uint8_t)(p ^ l << (GPU_PART_BITS - 1) ^ l << GPU_PART_BITS);
			r->lane[l].owed[p] = 1;
		}
}

static void sign(struct run *r, const uint8_t *signs, uint32_t first)
{
	for (uint32_t l = 0; l < r->lanes; l++)
		for (uint32_t p = 0; p < REGISTERS; p++) {
			uint32_t bit = first + r->lane[l].name[p];
			if (signs[bit / 8] >> bit % 8 & 1)
				r->lane[l].owed[p] = (int8_t)-r->lane[l].owed[p];
		}
}

void rotor_make(const uint8_t *signs, uint32_t d_pad, float by, float *rotor)
{
	struct run r = {.lanes = d_pad >> GPU_PART_BITS, .rotor = rotor};
	memset(rotor, 0, GPU_ROTOR_FOURS * r.lanes * 4 * sizeof(*rotor));
	begin(&r);
	for (uint32_t round = 0; round < 3; round++) {
		r.at = round * GPU_ROTOR_ROUND;
		if (round)
			sign(&r, signs, round * d_pad);
		for (uint32_t i = 0; i < GPU_PART_BITS; i++)
			stage(&r, i);
		for (uint32_t distance = 1; distance < r.lanes; distance *= 2) {
			exchange(&r, distance);
			stage(&r, GPU_PART_BITS - 1);
		}
		exchange(&r, r.lanes - 1);
	}
	for (uint32_t l = 0; l < r.lanes; l++)
		for (uint32_t half = 0; half < 2; half++)
			*rotor_at(&r, l, GPU_ROTOR_BY + half) = by * (float)r.lane[l].owed[half * REGISTERS / 2];
}
