// What a plan says of the rotation of queries: followed as the kernels follow it, it gives the daemon's rotation to the bit.
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/rotate.h"
#include "daemon/base/rng.h"
#include "daemon/kernels/kernels.h"
#include "tests/lib/suite.h"

enum { PART = 1 << GPU_PART_BITS, MOST_D = 256, MOST_LANES = MOST_D / PART };

static float numbers[MOST_LANES][PART]; // of each lane, its registers
static uint32_t lane_bits, used, strange;
static const float *rotor;

static float rotor_at(uint32_t lane, uint32_t n)
{
	return rotor[((n / 4 << lane_bits) + lane) * 4 + n % 4];
}

// Butterflies of registers that differ in bit i: the next factors of each lane.
static void stage(uint32_t i)
{
	for (uint32_t lane = 0; lane < 1u << lane_bits; lane++)
		for (uint32_t p = 0; p < PART; p++)
			if (!(p >> i & 1)) {
				float ratio = rotor_at(lane, used + (p >> (i + 1)));
				float *one = &numbers[lane][p], *two = &numbers[lane][p | 1u << i], first = *one, second = *two;
				strange += ratio != 1 && ratio != -1;
				*one = fmaf(second, ratio, first);
				*two = fmaf(second, -ratio, first);
			}
	used += PART >> (i + 1);
}

static void exchange(uint32_t distance)
{
	float before[MOST_LANES][PART];
	memcpy(before, numbers, sizeof(before));
	for (uint32_t lane = 0; lane < 1u << lane_bits; lane++)
		for (uint32_t p = PART / 2; p < PART; p++)
			numbers[lane][p] = before[lane ^ distance][p];
}

static void rotate(void)
{
	for (uint32_t round = 0; round < 3; round++) {
		used = round * GPU_ROTOR_ROUND;
		for (uint32_t i = 0; i < GPU_PART_BITS; i++)
			stage(i);
		for (uint32_t j = 0; j < lane_bits; j++) {
			exchange(1u << j);
			stage(GPU_PART_BITS - 1);
		}
		exchange((1u << lane_bits) - 1);
		strange += used > (round + 1) * GPU_ROTOR_ROUND;
	}
}

static uint32_t name(uint32_t lane, uint32_t p)
{
	return p ^ lane << (GPU_PART_BITS - 1) ^ lane << GPU_PART_BITS;
}

static float unit(struct rng *rng)
{
	return (float)(int32_t)(uint32_t)rng_next(rng) * 0x1p-31f;
}

static void compare(struct rng *rng, uint32_t d_pad)
{
	static float table[GPU_ROTOR_BYTES(MOST_D) / 4];
	const float by = (float)(1 / ((double)d_pad * sqrt((double)d_pad)));
	float want[MOST_D], signs[3 * MOST_D];
	uint8_t bits[3 * MOST_D / 8];
	int seen[MOST_D] = {0};
	struct kernels k;
	kernels_init_c(&k);
	for (uint32_t i = 0; i < sizeof(bits); i++)
		bits[i] = (uint8_t)rng_next(rng);
	for (uint32_t i = 0; i < 3 * d_pad; i++)
		signs[i] = bits[i / 8] >> i % 8 & 1 ? -1.f : 1.f;
	for (uint32_t i = 0; i < d_pad; i++)
		want[i] = unit(rng);
	rotor_make(bits, d_pad, by, table);
	rotor = table;
	for (uint32_t lane = 0; lane < 1u << lane_bits; lane++)
		for (uint32_t p = 0; p < PART; p++)
			numbers[lane][p] = want[name(lane, p)] * signs[name(lane, p)];
	rotate();
	k.rotate(want, d_pad, signs);
	for (uint32_t lane = 0; lane < 1u << lane_bits; lane++)
		for (uint32_t p = 0; p < PART; p++) {
			const uint32_t n = name(lane, p), half = p >> (GPU_PART_BITS - 1);
			float got = numbers[lane][p] * rotor_at(lane, GPU_ROTOR_BY + half);
			seen[n % MOST_D]++;
			if (got != want[n % MOST_D])
				ck_abort_msg("d_pad %u, element %u: %a, not %a", d_pad, n, (double)got, (double)want[n % MOST_D]);
		}
	for (uint32_t i = 0; i < MOST_D; i++)
		strange += seen[i] != (i < d_pad);
	ck_assert_uint_eq(
		strange,
		0); // factors that are none, more of them than there is room for, elements that are in two places or none
}

START_TEST(rotors_rotate)
{
	struct rng rng = {11};
	for (uint32_t d_pad = 64; d_pad <= MOST_D; d_pad *= 2) {
		lane_bits = 0;
		while (d_pad >> (GPU_PART_BITS + lane_bits + 1))
			lane_bits++;
		for (int i = 0; i < 200; i++)
			compare(&rng, d_pad);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("rotate");
	TCase *t = tcase_create("rotate");
	tcase_add_test(t, rotors_rotate);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
