// How the kernels rotate a query: what lanes of a warp must know of it.
#ifndef MPIG_CUDA_ROTATE_H
#define MPIG_CUDA_ROTATE_H

#include <stdint.h>

#include "cuda/device.h"

// The rotors of the lanes that share a query, of which each has 2^GPU_PART_BITS elements: float [GPU_ROTOR_FOURS][lanes][4].
// For each round the factors of the lane's butterflies in the order in which kernel_rotate.cuh uses them, from a multiple of four on; then
// what its elements are scaled by, two numbers (`by` with the signs that they owe), and two zeros. `signs`: [3][d_pad] bits, of which the first d_pad are
// not in it: the balance has them.
void rotor_make(const uint8_t *signs, uint32_t d_pad, float by, float *rotor);

#endif
