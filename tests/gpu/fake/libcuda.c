// A CUDA driver without a GPU: memory is the host's, streams run at once, graphs are lists of launches, kernels are their twins on the CPU
// (simt.h). It counts what is alive, and fails when told to.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/driver.h"
#include "tests/gpu/fake/simt.h"

#define EXPORT __attribute__((visibility("default")))
#define MOST_ARGUMENT 1024u
#define CU_INVALID_VALUE 1

struct launch {
	const struct simt_kernel *kernel;
	unsigned grid_x, grid_y, block;
	_Alignas(16) uint8_t argument[MOST_ARGUMENT];
};
struct graph {
	uint32_t count;
	struct launch launch[128];
};
struct stream {
	struct graph *capturing;
	const uint32_t *wait; // for *wait - value >= 0
	uint32_t value;
};

static struct stream default_stream;
static int live, primary, pushed, context_object, module_object;
static CUcontext current; // of the one thread that tests have
static char fail_name[64];
static int fail_after;

// ---- for tests -------------------------------------------------------------------------------------------------------
// The call of `name` after `after` more answers "out of memory". NULL: none.
EXPORT void fake_fail(const char *name, int after);
EXPORT int fake_live(void); // allocations, registrations, modules, streams, graphs, retained and pushed contexts

void fake_fail(const char *name, int after)
{
	snprintf(fail_name, sizeof(fail_name), "%s", name ? name : "");
	fail_after = after;
}

int fake_live(void)
{
	return live + primary + pushed;
}

static bool fails(const char *name)
{
	return !strcmp(fail_name, name) && fail_after-- == 0;
}

#define CALL(name, ...)                                                                                                          \
	EXPORT int name(__VA_ARGS__);                                                                                            \
	int name(__VA_ARGS__)
#define MAY_FAIL                                                                                                                 \
	do {                                                                                                                     \
		if (fails(__func__))                                                                                             \
			return CU_OUT_OF_MEMORY;                                                                                 \
	} while (0)

// ---- devices, contexts -------------------------------------------------------------------------------------------------
CALL(cuInit, unsigned flags)
{
	MAY_FAIL;
	return flags ? CU_INVALID_VALUE : CU_OK;
}
CALL(cuGetErrorString, int error, const char **text)
{
	*text = error == CU_OUT_OF_MEMORY ? "out of memory" : "a fake failure";
	return CU_OK;
}
CALL(cuDeviceGet, CUdevice *device, int ordinal)
{
	MAY_FAIL;
	*device = ordinal;
	return CU_OK;
}
CALL(cuDeviceGetName, char *name, int bytes, CUdevice device)
{
	MAY_FAIL;
	snprintf(name, (size_t)bytes, "fake GPU %d", device);
	return CU_OK;
}
CALL(cuDeviceGetAttribute, int *value, int attribute, CUdevice device)
{
	(void)device;
	MAY_FAIL;
	*value = attribute == CU_ATTRIBUTE_MAJOR ? 9 : 0;
	return CU_OK;
}
CALL(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)
{
	(void)device;
	MAY_FAIL;
	primary++;
	*context = (CUcontext)&context_object;
	return CU_OK;
}
CALL(cuDevicePrimaryCtxRelease_v2, CUdevice device)
{
	(void)device;
	primary--;
	return CU_OK;
}
CALL(cuCtxGetCurrent, CUcontext *context)
{
	*context = current;
	return CU_OK;
}
CALL(cuCtxGetDevice, CUdevice *device)
{
	MAY_FAIL;
	*device = 0;
	return CU_OK;
}
CALL(cuCtxPushCurrent_v2, CUcontext context)
{
	MAY_FAIL;
	pushed++;
	current = context;
	return CU_OK;
}
CALL(cuCtxPopCurrent_v2, CUcontext *context)
{
	*context = current;
	if (--pushed == 0)
		current = NULL;
	return CU_OK;
}
CALL(cuCtxSynchronize, void)
{
	return CU_OK;
}

// ---- memory ------------------------------------------------------------------------------------------------------------
CALL(cuMemAlloc_v2, CUdeviceptr *p, size_t bytes)
{
	MAY_FAIL;
	void *memory = aligned_alloc(256, (bytes + 255) & ~(size_t)255);
	if (!memory)
		return CU_OUT_OF_MEMORY;
	memset(memory, 0xa5, bytes); // nobody may count on zeros
	live++;
	*p = (CUdeviceptr)(uintptr_t)memory;
	return CU_OK;
}
CALL(cuMemFree_v2, CUdeviceptr p)
{
	free((void *)(uintptr_t)p);
	live--;
	return CU_OK;
}
CALL(cuMemHostAlloc, void **p, size_t bytes, unsigned flags)
{
	(void)flags;
	MAY_FAIL;
	CUdeviceptr memory = 0;
	int result = cuMemAlloc_v2(&memory, bytes);
	*p = (void *)(uintptr_t)memory;
	return result;
}
CALL(cuMemFreeHost, void *p)
{
	return cuMemFree_v2((CUdeviceptr)(uintptr_t)p);
}
CALL(cuMemHostRegister_v2, void *p, size_t bytes, unsigned flags)
{
	(void)flags;
	MAY_FAIL;
	if ((uintptr_t)p % 4096 || bytes % 4096)
		return CU_INVALID_VALUE;
	live++;
	return CU_OK;
}
CALL(cuMemHostUnregister, void *p)
{
	(void)p;
	live--;
	return CU_OK;
}
CALL(cuMemHostGetDevicePointer_v2, CUdeviceptr *device, void *p, unsigned flags)
{
	MAY_FAIL;
	*device = (CUdeviceptr)(uintptr_t)p;
	return flags ? CU_INVALID_VALUE : CU_OK;
}
CALL(cuMemcpyHtoD_v2, CUdeviceptr to, const void *from, size_t bytes)
{
	MAY_FAIL;
	memcpy((void *)(uintptr_t)to, from, bytes);
	return CU_OK;
}
CALL(cuMemcpyDtoH_v2, void *to, CUdeviceptr from, size_t bytes)
{
	MAY_FAIL;
	memcpy(to, (const void *)(uintptr_t)from, bytes);
	return CU_OK;
}
CALL(cuMemsetD8_v2, CUdeviceptr p, unsigned char value, size_t bytes)
{
	MAY_FAIL;
	memset((void *)(uintptr_t)p, value, bytes);
	return CU_OK;
}

// ---- kernels -----------------------------------------------------------------------------------------------------------
CALL(cuModuleLoadData, CUmodule *module, const void *image)
{
	MAY_FAIL;
	if (!image)
		return CU_INVALID_VALUE;
	live++;
	*module = (CUmodule)&module_object;
	return CU_OK;
}
CALL(cuModuleUnload, CUmodule module)
{
	(void)module;
	live--;
	return CU_OK;
}
CALL(cuModuleGetFunction, CUfunction *function, CUmodule module, const char *name)
{
	(void)module;
	MAY_FAIL;
	*function = (CUfunction)(uintptr_t)simt_find(name);
	return *function ? CU_OK : CU_INVALID_VALUE;
}
CALL(cuFuncGetAttribute, int *value, int attribute, CUfunction function)
{
	(void)function;
	*value = attribute;
	return CU_OK;
}

static int run(const struct launch *l)
{
	return simt_run(l->kernel, l->grid_x, l->grid_y, l->block, l->argument) ? CU_OUT_OF_MEMORY : CU_OK;
}

static struct stream *stream_of(CUstream stream)
{
	return stream ? stream : &default_stream;
}

CALL(cuLaunchKernel, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
     unsigned block_z, unsigned shared_bytes, CUstream stream, void **arguments, void **extra)
{
	(void)shared_bytes;
	MAY_FAIL;
	struct stream *s = stream_of(stream);
	struct launch l = {.kernel = (const struct simt_kernel *)(const void *)function,
	                   .grid_x = grid_x,
	                   .grid_y = grid_y,
	                   .block = block_x};
	if (extra || grid_z != 1 || block_y != 1 || block_z != 1 || !grid_x || grid_y > 65535 || !grid_y || !block_x ||
	    block_x > l.kernel->most_threads || block_x % 32 || l.kernel->argument_bytes > MOST_ARGUMENT || !current)
		return CU_INVALID_VALUE;
	memcpy(l.argument, arguments[0], l.kernel->argument_bytes);
	if (!s->capturing)
		return run(&l);
	if (s->capturing->count == sizeof(s->capturing->launch) / sizeof(l))
		return CU_OUT_OF_MEMORY;
	s->capturing->launch[s->capturing->count++] = l;
	return CU_OK;
}

// ---- streams and graphs ------------------------------------------------------------------------------------------------
CALL(cuStreamCreate, CUstream *stream, unsigned flags)
{
	(void)flags;
	MAY_FAIL;
	struct stream *s = calloc(1, sizeof(*s));
	live += s != NULL;
	*stream = s;
	return s ? CU_OK : CU_OUT_OF_MEMORY;
}
CALL(cuStreamDestroy_v2, CUstream stream)
{
	free(stream);
	live--;
	return CU_OK;
}
CALL(cuStreamQuery, CUstream stream)
{
	struct stream *s = stream_of(stream);
	if (s->wait && (int32_t)(__atomic_load_n(s->wait, __ATOMIC_ACQUIRE) - s->value) < 0)
		return CU_NOT_READY;
	s->wait = NULL;
	return CU_OK;
}
CALL(cuStreamSynchronize, CUstream stream)
{
	while (cuStreamQuery(stream) == CU_NOT_READY)
		continue;
	return CU_OK;
}
CALL(cuStreamWaitValue32_v2, CUstream stream, CUdeviceptr p, uint32_t value, unsigned flags)
{
	MAY_FAIL;
	*stream_of(stream) = (struct stream){.wait = (const uint32_t *)(uintptr_t)p, .value = value};
	return flags == CU_WAIT_GEQ ? CU_OK : CU_INVALID_VALUE;
}
CALL(cuStreamWriteValue32_v2, CUstream stream, CUdeviceptr p, uint32_t value, unsigned flags)
{
	(void)stream, (void)flags;
	__atomic_store_n((uint32_t *)(uintptr_t)p, value, __ATOMIC_RELEASE);
	return CU_OK;
}
CALL(cuStreamBeginCapture_v2, CUstream stream, int mode)
{
	(void)mode;
	struct stream *s = stream_of(stream);
	if (s->capturing || s == &default_stream)
		return CU_INVALID_VALUE;
	s->capturing = calloc(1, sizeof(*s->capturing));
	live += s->capturing != NULL;
	return s->capturing ? CU_OK : CU_OUT_OF_MEMORY;
}
CALL(cuStreamEndCapture, CUstream stream, void **graph)
{
	struct stream *s = stream_of(stream);
	*graph = s->capturing;
	s->capturing = NULL;
	return *graph ? CU_OK : CU_INVALID_VALUE;
}
CALL(cuGraphInstantiateWithFlags, void **executable, void *graph, unsigned long long flags)
{
	(void)flags;
	struct graph *copy = malloc(sizeof(*copy));
	if (!copy)
		return CU_OUT_OF_MEMORY;
	memcpy(copy, graph, sizeof(*copy));
	live++;
	*executable = copy;
	return CU_OK;
}
CALL(cuGraphDestroy, void *graph)
{
	free(graph);
	live--;
	return CU_OK;
}
CALL(cuGraphExecDestroy, void *executable)
{
	return cuGraphDestroy(executable);
}
CALL(cuGraphLaunch, void *executable, CUstream stream)
{
	(void)stream;
	const struct graph *g = executable;
	int result = CU_OK;
	for (uint32_t i = 0; i < g->count && result == CU_OK; i++)
		result = run(&g->launch[i]);
	return result;
}

// ---- events: the CPU's clock --------------------------------------------------------------------------------------------
CALL(cuEventCreate, void **event, unsigned flags)
{
	(void)flags;
	*event = calloc(1, sizeof(struct timespec));
	return *event ? CU_OK : CU_OUT_OF_MEMORY;
}
CALL(cuEventRecord, void *event, CUstream stream)
{
	(void)stream;
	clock_gettime(CLOCK_MONOTONIC, event);
	return CU_OK;
}
CALL(cuEventElapsedTime_v2, float *ms, void *before, void *after)
{
	const struct timespec *a = before, *b = after;
	*ms = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) * 1e-6);
	return CU_OK;
}
