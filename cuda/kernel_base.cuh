// What the kernels are written in, and what all of them use. The tests define the first part for the CPU (tests/gpu/fake/simt.c).
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/device.h"
#include "shm/status.h"

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define ARGUMENT(type) const __grid_constant__ struct type
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_4 _Pragma("unroll 4")
#define FULL 0xffffffffu

DEVICE uint32_t load_acquire(const uint32_t *p)
{
	uint32_t v;
	asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}
DEVICE void store_release(uint32_t *p, uint32_t v)
{
	asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
}
// What was written before, by whoever this thread has synchronised with, is seen by the CPU before what is stored after.
DEVICE void fence_release(void)
{
	asm volatile("fence.acq_rel.sys;" : : : "memory");
}
DEVICE void store_relaxed(uint32_t *p, uint32_t v)
{
	asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
}
// Two words, aligned to 16 bytes, each loaded once, after an acquire that covers them. Not `relaxed.sys`: such loads of one line wait for one
// another, a round trip over the bus each.
DEVICE void load_pair(const uint64_t *p, uint64_t *words)
{
	asm volatile("ld.global.v2.u64 {%0, %1}, [%2];" : "=l"(words[0]), "=l"(words[1]) : "l"(p) : "memory");
}
DEVICE void store_word(uint64_t *p, uint64_t v)
{
	asm volatile("st.relaxed.sys.global.u64 [%0], %1;" : : "l"(p), "l"(v) : "memory");
}
DEVICE void store_pair(uint64_t *p, const uint64_t *words)
{
	asm volatile("st.global.v2.u64 [%0], {%1, %2};" : : "l"(p), "l"(words[0]), "l"(words[1]) : "memory");
}
DEVICE uint64_t clock_ns(void)
{
	uint64_t t;
	asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
	return t;
}
DEVICE uint64_t clock_cycles(void)
{
	return (uint64_t)clock64();
}
DEVICE float bf16_value(uint16_t b)
{
	return __bfloat162float(__ushort_as_bfloat16(b));
}
DEVICE float f16_value(uint16_t b)
{
	return __half2float(__ushort_as_half(b));
}
DEVICE uint16_t to_bf16(float x)
{
	return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
DEVICE uint16_t to_f16(float x)
{
	return __half_as_ushort(__float2half_rn(x));
}
DEVICE float shuffle_xor_f(float x, int distance)
{
	return __shfl_xor_sync(FULL, x, distance);
}
DEVICE int shuffle_xor_i(int x, int distance)
{
	return __shfl_xor_sync(FULL, x, distance);
}
DEVICE float shuffle_from(float x, uint32_t lane)
{
	return __shfl_sync(FULL, x, (int)lane);
}
DEVICE void block_barrier(void)
{
	__syncthreads();
}
// Blocks of one kernel meet: what those before wrote is seen by those after.
DEVICE uint32_t arrive(uint32_t *counter)
{
	__threadfence();
	uint32_t before = atomicAdd(counter, 1u);
	__threadfence();
	return before;
}
DEVICE float bits_float(int bits)
{
	return __int_as_float(bits);
}
DEVICE int float_bits(float x)
{
	return __float_as_int(x);
}
#endif

#define AT(type, address) ((struct type *)(address))
#define NOT_A_NUMBER bits_float(0x7fffffff)
#define LEAST (-3.0e38f) // below every logit, and finite
#define INFINITE_FLOAT bits_float(0x7f800000)

// ---- small things ----------------------------------------------------------------------------------------------------
DEVICE float element(uint64_t base, int64_t at, uint32_t dtype)
{
	if (dtype == MPIG_F32)
		return ((const float *)base)[at];
	uint16_t b = ((const uint16_t *)base)[at];
	return dtype == MPIG_BF16 ? bf16_value(b) : f16_value(b);
}

DEVICE void put_element(uint64_t base, int64_t at, uint32_t dtype, float x)
{
	if (dtype == MPIG_F32)
		((float *)base)[at] = x;
	else
		((uint16_t *)base)[at] = dtype == MPIG_BF16 ? to_bf16(x) : to_f16(x);
}

DEVICE float warp_sum(float x)
{
	UNROLL
	for (int d = 16; d; d /= 2)
		x += shuffle_xor_f(x, d);
	return x;
}

DEVICE uint32_t lane_of(void)
{
	return threadIdx.x % GPU_WARP;
}

DEVICE uint64_t slot_address(const struct gpu_queue *q, uint32_t slot)
{
	return q->region + q->slots_offset + slot * q->slot_bytes;
}

DEVICE struct gpu_slot *slot_state(const struct gpu_queue *q, uint32_t slot)
{
	return (struct gpu_slot *)(q->state + sizeof(struct gpu_state)) + slot;
}

// The first failure stays: kept where later kernels look, and where the host does. One thread.
DEVICE void fail(const struct gpu_queue *q, int status, uint32_t slot, uint64_t sequence)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	struct gpu_report *r = AT(gpu_report, q->report);
	if (s->failed)
		return;
	s->failed = status;
	r->slot = slot;
	r->sequence = sequence;
	store_release((uint32_t *)&r->status, (uint32_t)status); // partner: mpig_cuda_failure
}
