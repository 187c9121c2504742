// The kernels. In the part of C that CUDA C++ shares, so that a twin of each runs on the CPU in the tests (tests/gpu/fake/simt.c), with the
// same operations in the same order. Compiled without contraction: a product and a sum are fused only where fmaf says so.
#include "cuda/kernel_base.cuh"

#include "cuda/quotient.cuh"

#include "cuda/kernel_rotate.cuh"

#include "cuda/kernel_sign.cuh"

#include "cuda/kernel_own.cuh"

#include "cuda/kernel_ring.cuh"

#include "cuda/kernel_merge.cuh"

#include "cuda/kernel_window.cuh"

#include "cuda/kernel_ingest.cuh"
