// What the error terms need beyond the kernels' weighted sums of V.
#ifndef MPIG_ATTN_SQUARES_H
#define MPIG_ATTN_SQUARES_H

#include "daemon/kernels/kernels.h"

// sum_i c[i] |V[row_i]|^2, row_i = index ? index[i] : i. c >= 0; V finite; d_v a multiple of 16. Terms are added in fp32 for 64
// rows at a time, then in double: relative error <= 64 d_v / 32 * 2^-24.
double value_squares(const struct kernels *k, const struct row_format *f, const uint8_t *rows, const uint32_t *index, uint32_t n,
                     const float *c);

#endif
