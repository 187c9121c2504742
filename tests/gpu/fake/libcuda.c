// A CUDA driver without a GPU: memory is the host's, graphs are lists of launches, kernels are their twins on the CPU (simt.h). Streams run at
// once; or, when told to (fake_defer), as late as they may: what is launched waits until somebody waits for it or asks for it; or in a thread
// beside the caller's, which does not wait for them. Which of the streams that may go on does is a matter of dice: an order that no event asks
// for is not what happens. It counts what is alive, and fails when told to.
#include <pthread.h>
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
struct event {
	struct timespec when;
	uint64_t asked, done; // records of it that were launched, and that have run
};
struct op { // a launch, or the record of an event (count != 0), or the wait for one
	enum { OP_LAUNCH, OP_RECORD, OP_WAIT, OP_COPY, OP_VALUE } kind; // VALUE: until *from - count >= 0, 32 bits
	struct launch launch;
	struct event *event;
	uint64_t count; // which record of the event
	void *to;
	const void *from;
	void *owned; // what is copied from, if it is freed after
	size_t bytes;
	struct op *next;
};
struct stream {
	struct graph *capturing;
	struct op *first, *last; // not run yet
	struct stream *older;
};

static struct stream default_stream;
static struct stream *newest = &default_stream;
static enum { AT_ONCE, LATE, BESIDE } running;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // of streams' operations and events
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool runner; // there is a thread for BESIDE
static bool busy;   // an operation runs: one at a time, whatever thread runs it
static int failure; // of an operation, not told yet
static int live, primary, pushed, context_object, module_object;
static CUcontext current; // of the one thread that tests have
static int age = 13000;   // version of the driver
static unsigned overlaps;
static char fail_name[64];
static int fail_after;

// ---- for tests -------------------------------------------------------------------------------------------------------
// The call of `name` after `after` more answers "out of memory". NULL: none.
EXPORT void fake_version(int version);
EXPORT unsigned fake_overlaps(void); // launches of kernels that might begin before the one before had ended
EXPORT void fake_fail(const char *name, int after);
EXPORT void fake_defer(int how); // 0: at once, 1: late, 2: beside the caller
EXPORT int fake_live(void);      // allocations, registrations, modules, streams, graphs, retained and pushed contexts

void fake_fail(const char *name, int after)
{
	snprintf(fail_name, sizeof(fail_name), "%s", name ? name : "");
	fail_after = after;
}

int fake_live(void)
{
	return live + primary + pushed;
}

void fake_version(int version)
{
	age = version;
}

unsigned fake_overlaps(void)
{
	return overlaps;
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
CALL(cuDriverGetVersion, int *version)
{
	MAY_FAIL;
	*version = age;
	return CU_OK;
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
	*value = attribute == CU_ATTRIBUTE_MAJOR ? 9 : attribute == CU_ATTRIBUTE_MULTIPROCESSORS ? 1 : 0;
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
static int run_streams(void);
static int run_default(void);
static int copy_by_default(void *to, void *from, size_t bytes);
CALL(cuCtxSynchronize, void)
{
	return run_streams();
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
	run_default();
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
	void *copy = malloc(bytes + 1);
	if (copy)
		memcpy(copy, from, bytes);
	run_default();
	return copy_by_default((void *)(uintptr_t)to, copy, bytes);
}
CALL(cuMemcpyDtoH_v2, void *to, CUdeviceptr from, size_t bytes)
{
	MAY_FAIL;
	run_default();
	memcpy(to, (const void *)(uintptr_t)from, bytes);
	return CU_OK;
}
CALL(cuMemsetD8_v2, CUdeviceptr p, unsigned char value, size_t bytes)
{
	MAY_FAIL;
	void *copy = malloc(bytes + 1);
	if (copy)
		memset(copy, value, bytes);
	return copy_by_default((void *)(uintptr_t)p, copy, bytes);
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

static int run_op(const struct op *op)
{
	if (op->kind == OP_LAUNCH)
		return run(&op->launch);
	if (op->kind == OP_COPY)
		memcpy(op->to, op->from, op->bytes);
	return CU_OK;
}

static bool may_run(const struct stream *s)
{
	const struct op *op = s->first;
	if (op && op->kind == OP_VALUE)
		return (int32_t)(__atomic_load_n((const uint32_t *)op->from, __ATOMIC_ACQUIRE) - (uint32_t)op->count) >= 0;
	return op && (op->kind != OP_WAIT || op->event->done >= op->count);
}

// A stream whose next operation may run, any of them, by the same dice every time; NULL: there is none. Locked, as the next.
static struct stream *runnable(void)
{
	static uint32_t dice = 1;
	struct stream *chosen = NULL;
	uint32_t count = 0;
	for (struct stream *s = newest; s; s = s->older)
		if (may_run(s)) {
			dice = dice * 1664525u + 1013904223u;
			chosen = (dice >> 16) % ++count ? chosen : s;
		}
	return chosen;
}

static void run_next(struct stream *s)
{
	struct op *op = s->first; // stays until it is done
	busy = true;
	pthread_mutex_unlock(&lock);
	int result = run_op(op);
	pthread_mutex_lock(&lock);
	busy = false;
	if (op->kind == OP_RECORD) {
		clock_gettime(CLOCK_MONOTONIC, &op->event->when);
		op->event->done = op->count;
	}
	failure = failure ? failure : result;
	s->first = op->next;
	free(op->owned);
	free(op);
	pthread_cond_broadcast(&changed);
}

static void *run_beside(void *unused)
{
	pthread_mutex_lock(&lock);
	for (struct stream *s;;)
		if (running == BESIDE && !busy && (s = runnable()) != NULL)
			run_next(s);
		else
			pthread_cond_wait(&changed, &lock);
	return unused;
}

// Returns when nothing may run any more; the first failure.
static int run_streams(void)
{
	pthread_mutex_lock(&lock);
	for (struct stream *s; (s = runnable()) != NULL;)
		if (running == BESIDE || busy)
			pthread_cond_wait(&changed, &lock);
		else
			run_next(s);
	int result = failure;
	failure = CU_OK;
	pthread_mutex_unlock(&lock);
	return result;
}

static int put(struct stream *s, const struct op *op)
{
	struct op *copy = malloc(sizeof(*copy));
	if (!copy)
		return CU_OUT_OF_MEMORY;
	*copy = *op;
	copy->next = NULL;
	pthread_mutex_lock(&lock);
	if (s->first)
		s->last->next = copy;
	else
		s->first = copy;
	s->last = copy;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	return running == AT_ONCE ? run_streams() : CU_OK;
}

// The default stream has nothing left to do, others may. Where streams are late: else it never has.
static int run_default(void)
{
	pthread_mutex_lock(&lock);
	while (running == LATE && default_stream.first) {
		struct stream *s = may_run(&default_stream) ? &default_stream : runnable();
		if (!s)
			break; // it waits for what never comes
		run_next(s);
	}
	pthread_mutex_unlock(&lock);
	return CU_OK;
}

// Fills, and copies out of ordinary memory, are on their way when the driver returns. Takes `from` over.
static int copy_by_default(void *to, void *from, size_t bytes)
{
	if (!from)
		return CU_OUT_OF_MEMORY;
	if (running == LATE)
		return put(&default_stream, &(struct op){.kind = OP_COPY, .to = to, .from = from, .owned = from, .bytes = bytes});
	memcpy(to, from, bytes);
	free(from);
	return CU_OK;
}

void fake_defer(int how)
{
	pthread_t thread;
	run_streams();
	pthread_mutex_lock(&lock);
	running = how;
	if (running == BESIDE && !runner)
		runner = pthread_create(&thread, NULL, run_beside, NULL) == 0;
	pthread_mutex_unlock(&lock);
}

CALL(cuLaunchKernelEx, const struct driver_launch *launch, CUfunction function, void **arguments, void **extra)
{
	MAY_FAIL;
	struct stream *s = stream_of(launch->stream);
	struct launch l = {.kernel = (const struct simt_kernel *)(const void *)function,
	                   .grid_x = launch->grid_x,
	                   .grid_y = launch->grid_y,
	                   .block = launch->block_x};
	if (extra || launch->grid_z != 1 || launch->block_y != 1 || launch->block_z != 1 || !l.grid_x || l.grid_y > 65535 ||
	    !l.grid_y || !l.block || l.block > l.kernel->most_threads || l.block % 32 ||
	    l.kernel->argument_bytes > MOST_ARGUMENT || !current || launch->shared_bytes || launch->attribute_count > 1 ||
	    (launch->attribute_count && launch->attributes[0].id != CU_LAUNCH_PROGRAMMATIC))
		return CU_INVALID_VALUE;
	overlaps += launch->attribute_count && launch->attributes[0].value.allowed;
	memcpy(l.argument, arguments[0], l.kernel->argument_bytes);
	if (!s->capturing)
		return put(s, &(struct op){.kind = OP_LAUNCH, .launch = l});
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
	*stream = s;
	if (!s)
		return CU_OUT_OF_MEMORY;
	live++;
	pthread_mutex_lock(&lock);
	s->older = newest;
	newest = s;
	pthread_mutex_unlock(&lock);
	return CU_OK;
}
CALL(cuStreamCreateWithPriority, CUstream *stream, unsigned flags, int priority)
{
	MAY_FAIL;
	return priority > 0 || priority < -5 ? CU_INVALID_VALUE : cuStreamCreate(stream, flags);
}
CALL(cuCtxGetStreamPriorityRange, int *least, int *greatest)
{
	MAY_FAIL;
	*least = 0;
	*greatest = -5;
	return CU_OK;
}
CALL(cuStreamDestroy_v2, CUstream stream)
{
	struct stream **at = &newest;
	run_streams();
	pthread_mutex_lock(&lock);
	while (*at != stream)
		at = &(*at)->older;
	*at = (*at)->older;
	pthread_mutex_unlock(&lock);
	free(stream);
	live--;
	return CU_OK;
}
CALL(cuStreamQuery, CUstream stream)
{
	struct stream *s = stream_of(stream);
	int result = running == BESIDE ? CU_OK : run_streams();
	pthread_mutex_lock(&lock);
	bool more = s->first;
	pthread_cond_broadcast(&changed); // a value that a stream waits for may have been stored by anybody
	pthread_mutex_unlock(&lock);
	return result ? result : more ? CU_NOT_READY : CU_OK;
}
CALL(cuStreamSynchronize, CUstream stream)
{
	MAY_FAIL;
	if (!stream && running == LATE)
		return run_default();
	while (cuStreamQuery(stream) == CU_NOT_READY)
		continue;
	return CU_OK;
}
CALL(cuStreamWaitValue32_v2, CUstream stream, CUdeviceptr p, uint32_t value, unsigned flags)
{
	MAY_FAIL;
	struct op op = {.kind = OP_VALUE, .from = (const void *)(uintptr_t)p, .count = value};
	return flags == CU_WAIT_GEQ ? put(stream_of(stream), &op) : CU_INVALID_VALUE;
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
	const struct graph *g = executable;
	int result = CU_OK;
	for (uint32_t i = 0; i < g->count && result == CU_OK; i++)
		result = put(stream_of(stream), &(struct op){.kind = OP_LAUNCH, .launch = g->launch[i]});
	return result;
}

// ---- events: by the CPU's clock -----------------------------------------------------------------------------------------
CALL(cuEventCreate, CUevent *event, unsigned flags)
{
	(void)flags;
	MAY_FAIL;
	struct event *e = calloc(1, sizeof(*e));
	live += e != NULL;
	*event = (CUevent)(void *)e;
	return e ? CU_OK : CU_OUT_OF_MEMORY;
}
CALL(cuEventDestroy_v2, CUevent event)
{
	run_streams();
	free(event);
	live--;
	return CU_OK;
}
CALL(cuEventRecord, CUevent event, CUstream stream)
{
	MAY_FAIL;
	struct event *e = (struct event *)(void *)event;
	return put(stream_of(stream), &(struct op){.kind = OP_RECORD, .event = e, .count = ++e->asked});
}
// Waits for the last record that was launched before this call.
CALL(cuStreamWaitEvent, CUstream stream, CUevent event, unsigned flags)
{
	MAY_FAIL;
	struct event *e = (struct event *)(void *)event;
	return flags ? CU_INVALID_VALUE : put(stream_of(stream), &(struct op){.kind = OP_WAIT, .event = e, .count = e->asked});
}
CALL(cuEventElapsedTime_v2, float *ms, CUevent before, CUevent after)
{
	run_streams();
	const struct timespec *a = &((struct event *)(void *)before)->when, *b = &((struct event *)(void *)after)->when;
	*ms = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) * 1e-6);
	return CU_OK;
}
CALL(cuMemcpyDtoDAsync_v2, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	MAY_FAIL;
	return put(stream_of(stream),
	           &(struct op){
			   .kind = OP_COPY, .to = (void *)(uintptr_t)to, .from = (const void *)(uintptr_t)from, .bytes = bytes});
}
CALL(cuMemcpyDtoHAsync_v2, void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return cuMemcpyDtoDAsync_v2((CUdeviceptr)(uintptr_t)to, from, bytes, stream);
}
