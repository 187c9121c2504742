// Inside libmagicpig-cuda.
//
//   driver.c  error.c   libcuda.so.1 at run time; texts
//   attach.c            a queue on a GPU: registering, failures, another daemon
//   probe.c             whether a store of the CPU wakes a stream
//   plan.c              what is the same in every step, in the GPU's memory
//   step.c              arguments of kernels, and their launch
//   rotate.{h,c}        what a plan says of the rotation of queries
//   rounds.c            how long the way to the daemon and back takes
//   image.c             the kernels, as nvcc made them of kernels.cu
#ifndef MPIG_CUDA_PRIVATE_H
#define MPIG_CUDA_PRIVATE_H

#include <stdbool.h>

#include "cuda/device.h"
#include "cuda/driver.h"
#include "shm/status.h"

#include <magicpig_cuda.h>

extern const unsigned char mpig_cuda_image[]; // a fatbin

struct mpig_cuda {
	const struct driver *driver;
	mpig_queue *queue;
	struct mpig_region region;
	CUcontext context;
	CUdevice device;
	int driver_version, multiprocessors;
	bool retained; // the context is the primary one, and ours to release
	bool registered;
	bool ready; // attached: the state on the GPU means something
	CUmodule module;
	struct {
		CUfunction sign, submit, window_64, window_128, window_256, wait, merge, merge_fused, rounds, ingest;
	} kernel;
	struct gpu_queue args;     // what kernels are told of the queue
	struct gpu_report *report; // pinned
	CUdeviceptr state, nop;    // nop: struct gpu_item [slots]
	uint32_t plans;
	uint64_t step; // from 1; mpig_cuda_begin and mpig_cuda_recover begin another
	struct mpig_cuda_info info;
};

struct mpig_cuda_plan {
	struct mpig_cuda *gpu;
	struct mpig_cuda_spec spec; // context: a copy of ours
	struct mpig_layer layer;
	struct gpu_shape shape;
	struct gpu_item *items; // [contexts], as they are on the GPU
	CUdeviceptr memory;     // all that follows is in it
	CUdeviceptr device_items, balance, inverse, rotors, part_out, part_most, part_sum, own_out, own_lse, counters;
	uint32_t pieces;
	uint64_t window_step; // the step in which the window was launched and not merged yet, whose own part is there; 0: none
};

// Makes the GPU's context current around calls of the driver, whatever the caller's thread has.
int gpu_enter(const struct mpig_cuda *gpu);
void gpu_leave(const struct mpig_cuda *gpu);

// What has been copied and filled is in the GPU's memory. A fill, and a copy out of ordinary memory, may still be on its way when the driver
// returns, and streams of the caller's need not wait for the default one, where it is. In the current context.
int gpu_settle(const struct mpig_cuda *gpu);

// 1 if a store of this CPU ends a cuStreamWaitValue32, 0 if not; in the current context.
int probe_stream_wait(const struct driver *driver);

int gpu_launch(const struct mpig_cuda *gpu, CUfunction function, const char *name, unsigned grid_x, unsigned grid_y,
               unsigned block, CUstream stream, const void *argument);
// Copies an option struct of the caller's age (as magicpig.h's conventions say) into `known`.
int gpu_options(const char *name, const void *given, void *known, size_t bytes);
int gpu_options_return(const char *name, void *given, const void *known, size_t bytes);

#endif
