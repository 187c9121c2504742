// What the kernels are written in, and what all of them use. The tests define the first part for the CPU (tests/gpu/fake/simt.c).
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/device.h"
#include "shm/status.h"

#define KERNEL(threads) KERNEL_OF(threads, 1)
#define KERNEL_OF(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) // blocks: of a multiprocessor
#define ARGUMENT(type) const __grid_constant__ struct type
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_4 _Pragma("unroll 4")
#define NO_UNROLL _Pragma("unroll 1")
#define FULL 0xffffffffu
#define ALIGNED_16 __align__(16)

DEVICE uint32_t load_acquire(const uint32_t *p)
{
	uint32_t v;
	asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}
DEVICE uint64_t load_acquire_long(const uint64_t *p)
{
	uint64_t v;
	asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
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
DEVICE float shuffle_from(float x, uint32_t lane)
{
	return __shfl_sync(FULL, x, (int)lane);
}
DEVICE uint32_t shuffle_word(uint32_t x, uint32_t lane)
{
	return __shfl_sync(FULL, x, (int)lane);
}
DEVICE int warp_all(int x)
{
	return __all_sync(FULL, x);
}
DEVICE void warp_barrier(void)
{
	__syncwarp();
}
DEVICE void block_barrier(void)
{
	__syncthreads();
}
DEVICE int block_any(int x)
{
	return __syncthreads_or(x);
}
// What the kernel launched before this one wrote is seen after: this one may have begun before that has ended, where the GPU can.
DEVICE void grid_wait(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}
// The kernel launched after this one may begin, as far as its grid_wait.
DEVICE void grid_go(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Blocks of one kernel meet: what those before wrote is seen by those after, in a block behind a barrier. `count`: what this one adds. Returns the sum
// of those before.
DEVICE uint32_t arrive(uint32_t *counter, uint32_t count)
{
	uint32_t before;
	asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(count) : "memory");
	return before;
}
// A flag in shared memory that a thread raises and others look at in between. Orders nothing.
DEVICE void flag_raise(uint32_t *flag)
{
	atomicExch(flag, 1u);
}
DEVICE uint32_t flag_look(uint32_t *flag)
{
	return atomicOr(flag, 0u);
}
// Neighbours, at addresses that are multiples of their size.
DEVICE void load_4(const float *p, float *x)
{
	float4 v = *(const float4 *)p;
	x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
DEVICE void store_4(float *p, const float *x)
{
	*(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
}
DEVICE void load_2(const float *p, float *x)
{
	float2 v = *(const float2 *)p;
	x[0] = v.x, x[1] = v.y;
}
DEVICE void store_2(float *p, const float *x)
{
	*(float2 *)p = make_float2(x[0], x[1]);
}
// 16 bytes of shared memory.
DEVICE void load_shared(const void *p, uint32_t *words)
{
	uint4 v = *(const uint4 *)p;
	words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}
DEVICE void store_shared(void *p, const uint32_t *words)
{
	*(uint4 *)p = make_uint4(words[0], words[1], words[2], words[3]);
}
// 16 bytes of global memory on their way to shared memory; both addresses are multiples of 16.
DEVICE void copy_begin(float *to, uint64_t from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
	             :
	             : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
	             : "memory");
}
// This thread's are there.
DEVICE void copies_wait(void)
{
	asm volatile("cp.async.wait_all;" : : : "memory");
}
// Words of global memory, by as wide loads as there are. Not moved across grid_wait.
DEVICE void load_global(int count, uint64_t from, uint32_t *words)
{
	if (count == 1)
		asm volatile("ld.global.u32 %0, [%1];" : "=r"(words[0]) : "l"(from));
	if (count == 2)
		asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(from));
	UNROLL
	for (int i = 0; i + 4 <= count; i += 4)
		asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
		             : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
		             : "l"(from + (uint64_t)i * 4));
}
DEVICE void store_global(int count, uint64_t to, const uint32_t *words)
{
	if (count == 1)
		*(uint32_t *)to = words[0];
	if (count == 2)
		*(uint2 *)to = make_uint2(words[0], words[1]);
	UNROLL
	for (int i = 0; i + 4 <= count; i += 4)
		((uint4 *)to)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
}
// The larger magnitude of two; NaN if either is.
DEVICE float larger_size(float a, float b)
{
	float size;
	asm("max.NaN.f32 %0, %1, %2;" : "=f"(size) : "f"(fabsf(a)), "f"(fabsf(b)));
	return size;
}
DEVICE uint32_t low_bytes(const int *four)
{
	uint32_t low = __byte_perm((uint32_t)four[0], (uint32_t)four[1], 0x0040),
		 high = __byte_perm((uint32_t)four[2], (uint32_t)four[3], 0x0040);
	return __byte_perm(low, high, 0x5410);
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
