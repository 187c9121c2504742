// Arrays, streams and graphs of a GPU for tests and benchmarks, by the driver's own calls. Every function fails the program when
// the driver does.
#ifndef MPIG_TESTS_GPU_DEVICE_H
#define MPIG_TESTS_GPU_DEVICE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/driver.h"
#include "daemon/kernels/kernels.h"
#include "shm/abi.h"

static inline const struct driver *device_driver(void)
{
	const struct driver *d;
	if (driver_get(&d) == 0)
		return d;
	fprintf(stderr, "no CUDA driver\n");
	exit(1);
}

static inline void device_must(int result, const char *what)
{
	const char *text = "?";
	if (result == CU_OK)
		return;
	device_driver()->error_string(result, &text);
	fprintf(stderr, "%s: %s (%d)\n", what, text, result);
	exit(1);
}
#define DEVICE_MUST(call) device_must((call), #call)

// The primary context of GPU 0 becomes current, for good.
static inline void device_open(void)
{
	const struct driver *d = device_driver();
	CUcontext context;
	CUdevice device;
	DEVICE_MUST(d->device_get(&device, 0));
	DEVICE_MUST(d->primary_retain(&context, device));
	DEVICE_MUST(d->push(context));
}

// It is there when this returns, for whatever stream.
static inline void device_write(CUdeviceptr to, const void *from, size_t bytes)
{
	DEVICE_MUST(device_driver()->to_device(to, from, bytes));
	DEVICE_MUST(device_driver()->stream_synchronize(NULL));
}

static inline CUdeviceptr device_bytes(const void *from, size_t bytes)
{
	CUdeviceptr p;
	DEVICE_MUST(device_driver()->alloc(&p, bytes));
	if (from)
		device_write(p, from, bytes);
	return p;
}

static inline void device_read(void *to, CUdeviceptr from, size_t bytes)
{
	DEVICE_MUST(device_driver()->synchronize());
	DEVICE_MUST(device_driver()->from_device(to, from, bytes));
}

static inline void device_free(CUdeviceptr p)
{
	device_driver()->free(p);
}

// fp32 numbers as elements of a type.
static inline void *elements_of(const float *x, size_t n, int dtype)
{
	uint8_t *bytes = malloc(n * 4 + 1);
	for (size_t i = 0; bytes && i < n; i++) {
		if (dtype == MPIG_F32) {
			memcpy(bytes + i * 4, x + i, 4);
		} else {
			uint16_t h = dtype == MPIG_BF16 ? f32_to_bf16(x[i]) : f32_to_f16(x[i]);
			memcpy(bytes + i * 2, &h, 2);
		}
	}
	return bytes;
}

static inline CUdeviceptr device_elements(const float *x, size_t n, int dtype)
{
	void *bytes = elements_of(x, n, dtype);
	CUdeviceptr p = device_bytes(bytes, n * mpig_dtype_bytes((uint32_t)dtype));
	free(bytes);
	return p;
}

static inline void device_read_elements(float *to, CUdeviceptr from, size_t n, int dtype)
{
	size_t element = mpig_dtype_bytes((uint32_t)dtype);
	uint8_t *bytes = malloc(n * element);
	device_read(bytes, from, n * element);
	for (size_t i = 0; i < n; i++) {
		uint16_t h;
		memcpy(&h, bytes + i * element, 2);
		if (dtype == MPIG_F32)
			memcpy(to + i, bytes + i * 4, 4);
		else
			to[i] = dtype == MPIG_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
	}
	free(bytes);
}

// ---- what only tests need of the driver --------------------------------------------------------------------------------
#define DEVICE_CALL(name, arguments, ...) device_must(((int(*) arguments)driver_symbol(name))(__VA_ARGS__), name)

static inline CUstream device_stream(void)
{
	CUstream s;
	DEVICE_MUST(device_driver()->stream_create(&s, CU_STREAM_NON_BLOCKING));
	return s;
}
static inline void device_wait(CUstream s)
{
	DEVICE_CALL("cuStreamSynchronize", (CUstream), s);
}
static inline void device_capture(CUstream s)
{
	DEVICE_CALL("cuStreamBeginCapture_v2", (CUstream, int), s, 0);
}
// What was captured, ready for device_replay.
static inline void *device_captured(CUstream s)
{
	void *graph, *executable;
	DEVICE_CALL("cuStreamEndCapture", (CUstream, void **), s, &graph);
	DEVICE_CALL("cuGraphInstantiateWithFlags", (void **, void *, unsigned long long), &executable, graph, 0ull);
	DEVICE_CALL("cuGraphDestroy", (void *), graph);
	return executable;
}
static inline void device_replay(void *executable, CUstream s)
{
	DEVICE_CALL("cuGraphLaunch", (void *, CUstream), executable, s);
}
static inline void device_forget(void *executable)
{
	DEVICE_CALL("cuGraphExecDestroy", (void *), executable);
}

#endif
