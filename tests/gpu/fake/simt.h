// Kernels on the CPU: a block's threads are fibers that take turns at barriers and shuffles, blocks run one after another. The code is
// cuda/kernels.cu itself, so that the tests of the protocol, of the arithmetic and of failures need no GPU.
#ifndef MPIG_TESTS_SIMT_H
#define MPIG_TESTS_SIMT_H

#include <stddef.h>
#include <stdint.h>

struct simt_kernel {
	const char *name;
	void (*run)(const void *argument); // one thread
	size_t argument_bytes;
	unsigned most_threads; // of a block, as the kernel was compiled for
};
const struct simt_kernel *simt_find(const char *name); // NULL if there is none

// Runs all threads of all blocks. 0, or -1: no memory for stacks.
int simt_run(const struct simt_kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned block, const void *argument);

#endif
