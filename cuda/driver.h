// The part of the CUDA driver API that is used, found at run time: nothing of CUDA is needed to build or load the library. Names and
// numbers are the driver's ABI (cuda.h, versioned entry points as of CUDA 12).
#ifndef MPIG_CUDA_DRIVER_H
#define MPIG_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef void *CUstream;
typedef struct CUevent_st *CUevent;
typedef uint64_t CUdeviceptr;
typedef int CUdevice;

enum {
	CU_OK = 0,
	CU_OUT_OF_MEMORY = 2,
	CU_NO_DEVICE = 100,
	CU_NOT_READY = 600,
	CU_HOST_REGISTER_PORTABLE_DEVICEMAP = 3,
	CU_HOST_ALLOC_PORTABLE_DEVICEMAP = 3,
	CU_ATTRIBUTE_MULTIPROCESSORS = 16,
	CU_ATTRIBUTE_MAJOR = 75,
	CU_ATTRIBUTE_MINOR = 76,
	CU_STREAM_NON_BLOCKING = 1,
	CU_WAIT_GEQ = 0,
	CU_EVENT_DISABLE_TIMING = 2,
	CU_FUNCTION_REGISTERS = 4,
	CU_LAUNCH_PROGRAMMATIC = 6, // ..._ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
};

struct driver_launch_attribute { // CUlaunchAttribute
	int id, reserved;
	union {
		int allowed;
		char bytes[64];
	} value;
};
struct driver_launch { // CUlaunchConfig
	unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
	CUstream stream;
	struct driver_launch_attribute *attributes;
	unsigned attribute_count;
};

// X(result, name of ours, symbol, arguments)
#define DRIVER_LIST(X)                                                                                                           \
	X(init, "cuInit", (unsigned flags))                                                                                      \
	X(error_string, "cuGetErrorString", (int error, const char **text))                                                      \
	X(device_get, "cuDeviceGet", (CUdevice * device, int ordinal))                                                           \
	X(device_name, "cuDeviceGetName", (char *name, int bytes, CUdevice device))                                              \
	X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, CUdevice device))                                \
	X(primary_retain, "cuDevicePrimaryCtxRetain", (CUcontext * context, CUdevice device))                                    \
	X(primary_release, "cuDevicePrimaryCtxRelease_v2", (CUdevice device))                                                    \
	X(current, "cuCtxGetCurrent", (CUcontext * context))                                                                     \
	X(current_device, "cuCtxGetDevice", (CUdevice * device))                                                                 \
	X(push, "cuCtxPushCurrent_v2", (CUcontext context))                                                                      \
	X(pop, "cuCtxPopCurrent_v2", (CUcontext * context))                                                                      \
	X(synchronize, "cuCtxSynchronize", (void))                                                                               \
	X(module_load, "cuModuleLoadData", (CUmodule * module, const void *image))                                               \
	X(module_unload, "cuModuleUnload", (CUmodule module))                                                                    \
	X(module_function, "cuModuleGetFunction", (CUfunction * function, CUmodule module, const char *name))                    \
	X(function_attribute, "cuFuncGetAttribute", (int *value, int attribute, CUfunction function))                            \
	X(version, "cuDriverGetVersion", (int *version))                                                                         \
	X(launch, "cuLaunchKernelEx", (const struct driver_launch *launch, CUfunction function, void **arguments, void **extra)) \
	X(host_register, "cuMemHostRegister_v2", (void *p, size_t bytes, unsigned flags))                                        \
	X(host_unregister, "cuMemHostUnregister", (void *p))                                                                     \
	X(host_pointer, "cuMemHostGetDevicePointer_v2", (CUdeviceptr * device, void *p, unsigned flags))                         \
	X(host_alloc, "cuMemHostAlloc", (void **p, size_t bytes, unsigned flags))                                                \
	X(host_free, "cuMemFreeHost", (void *p))                                                                                 \
	X(alloc, "cuMemAlloc_v2", (CUdeviceptr * p, size_t bytes))                                                               \
	X(free, "cuMemFree_v2", (CUdeviceptr p))                                                                                 \
	X(to_device, "cuMemcpyHtoD_v2", (CUdeviceptr to, const void *from, size_t bytes))                                        \
	X(from_device, "cuMemcpyDtoH_v2", (void *to, CUdeviceptr from, size_t bytes))                                            \
	X(fill, "cuMemsetD8_v2", (CUdeviceptr p, unsigned char value, size_t bytes))                                             \
	X(stream_create, "cuStreamCreate", (CUstream * stream, unsigned flags))                                                  \
	X(stream_create_with, "cuStreamCreateWithPriority", (CUstream * stream, unsigned flags, int priority))                   \
	X(stream_priorities, "cuCtxGetStreamPriorityRange", (int *least, int *greatest))                                         \
	X(stream_destroy, "cuStreamDestroy_v2", (CUstream stream))                                                               \
	X(stream_query, "cuStreamQuery", (CUstream stream))                                                                      \
	X(stream_synchronize, "cuStreamSynchronize", (CUstream stream))                                                          \
	X(stream_after, "cuStreamWaitEvent", (CUstream stream, CUevent event, unsigned flags))                                   \
	X(event_create, "cuEventCreate", (CUevent * event, unsigned flags))                                                      \
	X(event_record, "cuEventRecord", (CUevent event, CUstream stream))                                                       \
	X(event_destroy, "cuEventDestroy_v2", (CUevent event))                                                                   \
	X(stream_wait, "cuStreamWaitValue32_v2", (CUstream stream, CUdeviceptr p, uint32_t value, unsigned flags))               \
	X(stream_write, "cuStreamWriteValue32_v2", (CUstream stream, CUdeviceptr p, uint32_t value, unsigned flags))

struct driver {
#define X(name, symbol, arguments) int(*name) arguments;
	DRIVER_LIST(X)
#undef X
};

// Loads the driver on the first call (any thread) and keeps it. MPIG_ENOTSUP: none, or one that lacks a function; the text is error_cuda's.
int driver_get(const struct driver **driver);
void *driver_symbol(const char *name); // of a loaded driver, for tests and benchmarks; NULL if it has none

// ---- error.c -----------------------------------------------------------------------------------------------------------
int cuda_error_set(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cuda_error_clear(void);
// A result of the driver's as a status; sets "what: the driver's text" unless it is CU_OK.
int cuda_error_of(const struct driver *driver, int result, const char *what);

#endif
