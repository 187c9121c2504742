// Inside of an ingest: ingest.c makes and ends it, and knows how far it is; ingest_rows.c makes requests.
#ifndef MPIG_CUDA_INGEST_H
#define MPIG_CUDA_INGEST_H

#include "cuda/private.h"

#define INGEST_MOST_SLOTS 64u
#define INGEST_AHEAD 64u // kernels that were launched and have not copied yet, at most
#define INGEST_LOG (INGEST_AHEAD + INGEST_MOST_SLOTS)
#define INGEST_TOKENS 16384u // ids of one commit
#define INGEST_TOKEN_PLACES 8u

struct ingest_request { // what a failure is about
	mpig_context *context;
	int layer; // -1: a commit
	uint64_t first, count;
};

// Pinned; its GPU's address is in args.report.
struct ingest_host {
	struct gpu_ingest_report report;
	_Alignas(64) uint32_t tokens[INGEST_TOKEN_PLACES][INGEST_TOKENS];
};

struct mpig_cuda_ingest {
	mpig_client *client;
	mpig_queue *queue, *own; // the GPU's; the host's, to ask where contexts are
	mpig_cuda *gpu;
	CUstream stream;
	CUevent event;              // on a caller's stream; recorded and waited for at once
	CUevent read[INGEST_AHEAD]; // behind the kernels of ticket n, at n % INGEST_AHEAD; older ones have copied
	uint64_t read_kernel[INGEST_AHEAD];
	uint64_t tickets;
	struct ingest_host *host;
	CUdeviceptr host_device, state;
	uint64_t patience_ns;                       // UINT64_MAX: no limit
	uint64_t launched;                          // kernels
	uint64_t token_kernel[INGEST_TOKEN_PLACES]; // that reads a place
	uint64_t commits_made;                      // pieces, for the next place
	uint64_t sequence;                          // of the next request, as the GPU will count it
	uint32_t slot;                              // of the next request
	bool gated;                                 // ... a kernel that was launched waits for it
	int failed;                                 // found by the host: CUDA's, or the daemon is gone
	struct ingest_request request[INGEST_LOG];  // at sequence % INGEST_LOG
	mpig_context **context;                     // with requests since the last finish
	uint32_t contexts, context_room;
	uint32_t blocks;
	int timeout_ms;
	uint64_t looked_ns; // when the daemon was asked last
	uint64_t began_ns;  // 0: nothing was asked for since
	struct mpig_cuda_ingest_report sums;
	struct gpu_ingest_report before; // the GPU's sums when they began
};

// The failure that is noted, by either side; asks the daemon now and then whether it lives.
int ingest_status(struct mpig_cuda_ingest *g);
// Waits until *word, which a kernel stores, is at least `number`. Ends, as kernels do. MPIG_OK, also after a failure, or MPIG_EIO.
int ingest_await(struct mpig_cuda_ingest *g, const uint64_t *word, uint64_t number);
// A kernel without a request, which waits for `slots` slots from `first` on.
int ingest_launch_wait(struct mpig_cuda_ingest *g, uint32_t first, uint32_t slots);
int ingest_launch(struct mpig_cuda_ingest *g, struct gpu_ingest *a, unsigned blocks);
// Beginning of a call that makes requests; notes the context.
int ingest_begin(struct mpig_cuda_ingest *g, mpig_context *context);

#endif
