// How long the way to the daemon and back takes.
#include <stdlib.h>

#include "cuda/private.h"

#define MOST_ROUNDS 65536u

// The multiprocessor's cycles as nanoseconds, by the clock that all of the GPU shares, which ticks more coarsely.
static void cycles_to_ns(const uint64_t *cycles, unsigned count, float *ns)
{
	double per_cycle = (double)cycles[count + 1] / (double)(cycles[count] ? cycles[count] : 1);
	for (unsigned i = 0; i < count; i++)
		ns[i] = (float)((double)cycles[i] * per_cycle);
}

int mpig_cuda_round_trips(mpig_cuda *gpu, unsigned count, float *ns)
{
	cuda_error_clear();
	if (!gpu || !ns || !count || count > MOST_ROUNDS)
		return cuda_error_set(MPIG_EINVAL, "gpu and ns must not be NULL, count = %u: 1 to %u", count, MOST_ROUNDS);
	const struct driver *d = gpu->driver;
	size_t bytes = (count + 2ul) * sizeof(uint64_t);
	uint64_t *cycles = malloc(bytes);
	struct gpu_rounds a = {.queue = gpu->args, .item = gpu->nop, .slot = 0, .count = count};
	int rc = cycles ? gpu_enter(gpu) : cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	if (rc)
		goto free_cycles;
	rc = cuda_error_of(d, d->alloc(&a.cycles, bytes), "allocating GPU memory");
	if (rc)
		goto leave;
	rc = gpu_launch(gpu, gpu->kernel.rounds, "mpig_rounds", 1, 1, GPU_WARP, NULL, &a);
	rc = rc ? rc : cuda_error_of(d, d->synchronize(), "waiting for the GPU");
	rc = rc ? rc : mpig_cuda_failure(gpu, NULL);
	rc = rc ? rc : cuda_error_of(d, d->from_device(cycles, a.cycles, bytes), "copying from the GPU");
	d->free(a.cycles);
	if (rc == MPIG_OK)
		cycles_to_ns(cycles, count, ns);
leave:
	gpu_leave(gpu);
free_cycles:
	free(cycles);
	return rc;
}
