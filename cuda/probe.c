// Whether cuStreamWaitValue32 on host memory is woken by a plain store of the CPU. Some drivers watch only the GPU's own writes.
#include <time.h>

#include "cuda/private.h"

#define PATIENCE_NS UINT64_C(200000000)
#define LOOK_NS 50000

// Whether the stream is done before the end of patience.
static int done_in_time(const struct driver *d, CUstream stream)
{
	for (uint64_t waited = 0; waited < PATIENCE_NS; waited += LOOK_NS) {
		if (d->stream_query(stream) != CU_NOT_READY)
			return 1;
		nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
	}
	return 0;
}

static int wakes(const struct driver *d, CUstream stream, CUstream other, uint32_t *word, CUdeviceptr address)
{
	__atomic_store_n(word, 0, __ATOMIC_RELEASE);
	if (d->stream_wait(stream, address, 1, CU_WAIT_GEQ) != CU_OK || d->stream_query(stream) != CU_NOT_READY)
		return 0;
	__atomic_store_n(word, 1, __ATOMIC_RELEASE);
	if (done_in_time(d, stream))
		return 1;
	d->stream_write(other, address, 1, 0); // the stream must not be left waiting
	done_in_time(d, stream);
	return 0;
}

int probe_stream_wait(const struct driver *d)
{
	CUstream stream = NULL, other = NULL;
	void *word = NULL;
	CUdeviceptr address;
	int woken = 0;
	if (d->host_alloc(&word, sizeof(uint32_t), CU_HOST_ALLOC_PORTABLE_DEVICEMAP) == CU_OK &&
	    d->host_pointer(&address, word, 0) == CU_OK && d->stream_create(&stream, CU_STREAM_NON_BLOCKING) == CU_OK &&
	    d->stream_create(&other, CU_STREAM_NON_BLOCKING) == CU_OK)
		woken = wakes(d, stream, other, word, address);
	if (other)
		d->stream_destroy(other);
	if (stream)
		d->stream_destroy(stream);
	if (word)
		d->host_free(word);
	return woken;
}
