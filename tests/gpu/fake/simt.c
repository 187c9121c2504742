#include "tests/gpu/fake/simt.h"

#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cuda/device.h"
#include "daemon/kernels/kernels.h"
#include "shm/status.h"

#define STACK_BYTES (128u * 1024u)
#define MOST_THREADS 1024u

// ---- fibers ----------------------------------------------------------------------------------------------------------
// What a call must preserve is on the stack; the rest is a stack pointer.
__asm__(".text\n"
        ".type fiber_switch, @function\n"
        "fiber_switch:\n" // (void **save, void *to)
        "	pushq %rbp\n	pushq %rbx\n	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
        "	movq %rsp, (%rdi)\n"
        "	movq %rsi, %rsp\n"
        "	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n	popq %rbx\n	popq %rbp\n"
        "	ret\n"
        ".size fiber_switch, . - fiber_switch\n");
void fiber_switch(void **save, void *to);

struct index {
	unsigned x, y, z;
};
static struct index threadIdx, blockIdx, blockDim, gridDim;

static struct {
	const struct simt_kernel *kernel;
	const void *argument;
	uint8_t *stacks;
	void *sp[MOST_THREADS], *scheduler;
	bool done[MOST_THREADS];
	unsigned alive, arrived, generation, readers;
	int any;
	struct {
		unsigned arrived, generation;
		uint32_t value[GPU_WARP];
	} warp[MOST_THREADS / GPU_WARP];
} block;

static void yield(void)
{
	fiber_switch(&block.sp[threadIdx.x], block.scheduler);
}

static void fiber_main(void)
{
	block.kernel->run(block.argument);
	block.done[threadIdx.x] = true;
	block.alive--;
	for (;;)
		yield();
}

static void fiber_begin(unsigned i)
{
	void **top = (void **)(void *)(block.stacks + (size_t)(i + 1) * STACK_BYTES);
	*--top = NULL; // a return address for fiber_main, and the alignment of a call
	*--top = (void *)(uintptr_t)fiber_main;
	top -= 6; // registers
	memset(top, 0, 6 * sizeof(*top));
	block.sp[i] = top;
	block.done[i] = false;
}

static void block_barrier(void)
{
	unsigned generation = block.generation;
	block.arrived++;
	while (block.generation == generation) {
		if (block.arrived == block.alive) {
			block.arrived = 0;
			block.generation++;
			break;
		}
		yield();
	}
}

static int block_any(int x)
{
	block.any |= x;
	block_barrier();
	int any = block.any;
	if (++block.readers == block.alive)
		block.any = 0, block.readers = 0;
	block_barrier();
	return any;
}

static void barrier_of_warp(unsigned w)
{
	unsigned generation = block.warp[w].generation;
	if (++block.warp[w].arrived == GPU_WARP) {
		block.warp[w].arrived = 0;
		block.warp[w].generation++;
	}
	while (block.warp[w].generation == generation)
		yield();
}

static uint32_t shuffle(uint32_t x, unsigned from)
{
	unsigned w = threadIdx.x / GPU_WARP, lane = threadIdx.x % GPU_WARP;
	block.warp[w].value[lane] = x;
	barrier_of_warp(w);
	uint32_t other = block.warp[w].value[from];
	barrier_of_warp(w);
	return other;
}

static void run_block(void)
{
	block.alive = blockDim.x;
	block.arrived = 0;
	block.any = 0;
	block.readers = 0;
	memset(block.warp, 0, sizeof(block.warp));
	for (unsigned i = 0; i < blockDim.x; i++)
		fiber_begin(i);
	while (block.alive)
		for (unsigned i = 0; i < blockDim.x; i++)
			if (!block.done[i]) {
				threadIdx.x = i;
				fiber_switch(&block.scheduler, block.sp[i]);
			}
}

int simt_run(const struct simt_kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned threads, const void *argument)
{
	if (!block.stacks) {
		void *stacks = mmap(NULL, (size_t)MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
		                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (stacks == MAP_FAILED)
			return -1;
		block.stacks = stacks;
	}
	block.kernel = kernel;
	block.argument = argument;
	gridDim = (struct index){grid_x, grid_y, 1};
	blockDim = (struct index){threads, 1, 1};
	for (unsigned y = 0; y < grid_y; y++)
		for (unsigned x = 0; x < grid_x; x++) {
			blockIdx = (struct index){x, y, 0};
			run_block();
		}
	return 0;
}

// ---- what the kernels are written in ---------------------------------------------------------------------------------
#define KERNEL(threads) static void
#define KERNEL_OF(threads, blocks) static void
#define ARGUMENT(type) const struct type
#define DEVICE static inline
#define SHARED static
#define UNROLL
#define UNROLL_BY_4
#define NO_UNROLL
#define ALIGNED_16 _Alignas(16)

DEVICE uint32_t load_acquire(const uint32_t *p)
{
	sched_yield(); // whoever is waited for may need this CPU
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
DEVICE uint64_t load_acquire_long(const uint64_t *p)
{
	sched_yield();
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
DEVICE void store_release(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}
DEVICE void fence_release(void)
{
	__atomic_thread_fence(__ATOMIC_ACQ_REL);
}
DEVICE void store_relaxed(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}
DEVICE void load_pair(const uint64_t *p, uint64_t *words)
{
	words[0] = __atomic_load_n(p, __ATOMIC_RELAXED);
	words[1] = __atomic_load_n(p + 1, __ATOMIC_RELAXED);
}
DEVICE void store_word(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}
DEVICE void store_pair(uint64_t *p, const uint64_t *words)
{
	memcpy(p, words, 16);
}
DEVICE uint64_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}
DEVICE uint64_t clock_cycles(void)
{
	return clock_ns();
}
DEVICE float bits_float(int bits)
{
	float x;
	memcpy(&x, &bits, sizeof(x));
	return x;
}
DEVICE int float_bits(float x)
{
	int bits;
	memcpy(&bits, &x, sizeof(bits));
	return bits;
}
DEVICE float bf16_value(uint16_t b)
{
	return bf16_to_f32(b);
}
DEVICE float f16_value(uint16_t b)
{
	return f16_to_f32(b);
}
DEVICE uint16_t to_bf16(float x)
{
	return f32_to_bf16(x);
}
DEVICE uint16_t to_f16(float x)
{
	return f32_to_f16(x);
}
DEVICE int shuffle_xor_i(int x, int distance)
{
	return (int)shuffle((uint32_t)x, threadIdx.x % GPU_WARP ^ (unsigned)distance);
}
DEVICE float shuffle_xor_f(float x, int distance)
{
	return bits_float(shuffle_xor_i(float_bits(x), distance));
}
DEVICE float shuffle_from(float x, uint32_t lane)
{
	return bits_float((int)shuffle((uint32_t)float_bits(x), lane));
}
DEVICE uint32_t shuffle_word(uint32_t x, uint32_t lane)
{
	return shuffle(x, lane);
}
DEVICE int warp_all(int x)
{
	const unsigned w = threadIdx.x / GPU_WARP;
	int all = 1;
	block.warp[w].value[threadIdx.x % GPU_WARP] = x != 0;
	barrier_of_warp(w);
	for (uint32_t lane = 0; lane < GPU_WARP; lane++)
		all &= block.warp[w].value[lane] != 0;
	barrier_of_warp(w);
	return all;
}
DEVICE void grid_wait(void)
{
}
DEVICE void grid_go(void)
{
}
DEVICE void store_global(int count, uint64_t to, const uint32_t *words)
{
	memcpy((void *)to, words, (size_t)count * 4);
}
DEVICE void warp_barrier(void)
{
	barrier_of_warp(threadIdx.x / GPU_WARP);
}
DEVICE void load_4(const float *p, float *x)
{
	memcpy(x, __builtin_assume_aligned(p, 16), 16);
}
DEVICE void store_4(float *p, const float *x)
{
	memcpy(__builtin_assume_aligned(p, 16), x, 16);
}
DEVICE void load_2(const float *p, float *x)
{
	memcpy(x, __builtin_assume_aligned(p, 8), 8);
}
DEVICE void store_2(float *p, const float *x)
{
	memcpy(__builtin_assume_aligned(p, 8), x, 8);
}
DEVICE void load_shared(const void *p, uint32_t *words)
{
	memcpy(words, __builtin_assume_aligned(p, 16), 16);
}
DEVICE void store_shared(void *p, const uint32_t *words)
{
	memcpy(__builtin_assume_aligned(p, 16), words, 16);
}
DEVICE void copy_begin(float *to, uint64_t from)
{
	memcpy(__builtin_assume_aligned(to, 16), (const void *)from, 16);
}
DEVICE void copies_wait(void)
{
}
DEVICE void load_global(int count, uint64_t from, uint32_t *words)
{
	memcpy(words, (const void *)from, (size_t)count * 4);
}
DEVICE float larger_size(float a, float b)
{
	float x = fabsf(a), y = fabsf(b);
	return isnan(x) || x > y ? x : y;
}
DEVICE uint32_t low_bytes(const int *four)
{
	uint32_t bytes = 0;
	for (int i = 0; i < 4; i++)
		bytes |= ((uint32_t)four[i] & 0xff) << 8 * i;
	return bytes;
}
DEVICE void flag_raise(uint32_t *flag)
{
	*flag = 1;
}
DEVICE uint32_t flag_look(uint32_t *flag)
{
	return *flag;
}
DEVICE uint32_t arrive(uint32_t *counter, uint32_t count)
{
	uint32_t before = *counter;
	*counter += count;
	return before;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wint-to-pointer-cast"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wconversion"
#include "cuda/kernels.cu"
#pragma GCC diagnostic pop

#define TWIN(kernel, type)                                                                                                       \
	static void run_##kernel(const void *argument)                                                                           \
	{                                                                                                                        \
		kernel(*(const struct type *)argument);                                                                          \
	}
TWIN(mpig_sign, gpu_sign)
TWIN(mpig_submit, gpu_submit)
TWIN(mpig_window_64, gpu_window)
TWIN(mpig_window_128, gpu_window)
TWIN(mpig_window_256, gpu_window)
TWIN(mpig_wait, gpu_wait)
TWIN(mpig_merge, gpu_merge)
TWIN(mpig_merge_fused, gpu_merge)
TWIN(mpig_rounds, gpu_rounds)
TWIN(mpig_ingest, gpu_ingest)

const struct simt_kernel *simt_find(const char *name)
{
	static const struct simt_kernel all[] = {
		{"mpig_sign", run_mpig_sign, sizeof(struct gpu_sign), GPU_SIGN_THREADS},
		{"mpig_submit", run_mpig_submit, sizeof(struct gpu_submit), GPU_SUBMIT_THREADS},
		{"mpig_window_64", run_mpig_window_64, sizeof(struct gpu_window), GPU_WINDOW_THREADS},
		{"mpig_window_128", run_mpig_window_128, sizeof(struct gpu_window), GPU_WINDOW_THREADS},
		{"mpig_window_256", run_mpig_window_256, sizeof(struct gpu_window), GPU_WINDOW_THREADS},
		{"mpig_wait", run_mpig_wait, sizeof(struct gpu_wait), GPU_WARP},
		{"mpig_merge", run_mpig_merge, sizeof(struct gpu_merge), GPU_BLOCK},
		{"mpig_merge_fused", run_mpig_merge_fused, sizeof(struct gpu_merge), GPU_FUSED_BLOCK},
		{"mpig_rounds", run_mpig_rounds, sizeof(struct gpu_rounds), GPU_WARP},
		{"mpig_ingest", run_mpig_ingest, sizeof(struct gpu_ingest), GPU_BLOCK},
	};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(all[i].name, name))
			return &all[i];
	return NULL;
}
