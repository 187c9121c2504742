/* libmagicpig-cuda: a GPU talks to magicpigd without its host.
 *
 * A kernel writes the queries of a layer, their signatures and the entry into the queue's shared memory; workers of the daemon answer
 * there; a second kernel computes the attention of the rows the client has itself meanwhile; a third waits for the answer and merges
 * the two. Nothing of it needs the host, and all of it can be captured in a CUDA graph and replayed.
 *
 *     mpig_queue_create(client, &queue_options, &queue);     // one queue for each stream that submits
 *     mpig_cuda_attach(queue, NULL, &gpu);                   // in the thread whose current CUDA context is to be used
 *     for each layer:  mpig_cuda_plan_create(gpu, &spec, &plan[layer]);
 *     each step:       mpig_cuda_begin(gpu, 100);            // workers awake for 100 ms; a restarted daemon is found here
 *         for each layer, or once for the graph that holds them:
 *                      mpig_cuda_submit(plan, stream, &step);    // q and signature into the ring
 *                      mpig_cuda_window(plan, stream, &step);    // own rows, while the daemon works
 *                      mpig_cuda_merge(plan, stream, &step);     // wait, and merge
 *                      or, with own_first: window, submit, merge // rows by error, which go by what the client has itself
 *                      mpig_cuda_failure(gpu, &failure);      // after the stream has been synchronised
 *
 * Conventions are those of magicpig.h: 0 or a negative MPIG_E* code, mpig_cuda_error() says more, outputs are written on success only,
 * option structs begin with their size, zero means "default". Device pointers are uint64_t (CUdeviceptr), streams CUstream. Strides are
 * in elements. The CUDA driver is found at run time: the library loads on machines without one, where attaching answers MPIG_ENOTSUP.
 *
 * Threads. A mpig_cuda and its plans belong to one thread at a time. Their kernels belong to one stream at a time: two streams that
 * submit need two queues.
 *
 * Failure. A kernel never waits longer than timeout_ms. The first failure (no answer in time, an answer with an error, a ring that makes no
 * sense) is kept in memory the host can read without a call to CUDA; from then on every kernel of the queue returns at once, and
 * outputs are NaN, until mpig_cuda_recover. Nothing hangs, and no wrong number looks like a right one.
 */
#ifndef MAGICPIG_CUDA_H
#define MAGICPIG_CUDA_H

#include <magicpig.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mpig_cuda mpig_cuda;           /* a queue that a GPU feeds */
typedef struct mpig_cuda_plan mpig_cuda_plan; /* one layer of some contexts: everything that is the same in every step */
typedef void *mpig_cuda_stream;               /* CUstream, cudaStream_t; NULL: the default stream */

/* Text of this thread's last failed call of this library: what, where, what to do. "" if none. Valid until its next call. */
MPIG_API const char *mpig_cuda_error(void);

/* ---- attaching ----------------------------------------------------------------------------------------------------- */
struct mpig_cuda_options {
	size_t size;
	int timeout_ms; /* longest wait of a kernel for the daemon; 0 = 2000, at most 60000 */
};
/* Registers the queue's memory, and only that, with the current CUDA context (the primary one of device 0 if there is none), and lends
 * the queue to it: calls of the data path on the queue answer MPIG_EBUSY until mpig_cuda_detach. *gpu is the caller's until then.
 * Errors: MPIG_ENOTSUP (no driver, no GPU, or one older than compute capability 8.0), MPIG_EBUSY (requests in flight), MPIG_ENOMEM,
 * MPIG_EIO (another error of CUDA). */
MPIG_API int mpig_cuda_attach(mpig_queue *queue, const struct mpig_cuda_options *options, mpig_cuda **gpu);
/* Waits until the GPU does nothing more with the queue, unregisters it and takes it back. Plans must have been destroyed, and graphs that
 * hold kernels of theirs must not be launched again. Before mpig_queue_destroy. NULL is allowed. */
MPIG_API void mpig_cuda_detach(mpig_cuda *gpu);

struct mpig_cuda_info {
	size_t size;
	char device[64];
	int compute_major, compute_minor;
	uint64_t region; /* device address of the queue's memory */
	uint64_t bytes;  /* registered */
	uint32_t entries, slots;
	int stream_wait; /* 1: a store of the CPU was seen to wake cuStreamWaitValue32; see cuda/README.md why kernels wait otherwise */
};
MPIG_API int mpig_cuda_get_info(const mpig_cuda *gpu, struct mpig_cuda_info *info);

/* Before each step or replay. Asks whether the daemon lives and keeps its workers awake for `awake_ms` (mpig_awake), and begins a step: what
 * was launched of another one and never merged, as its own rows, is forgotten. 0; or 1 if the daemon had been restarted: the queue is
 * attached to the new one, the same plans and graphs serve, rows that were not committed are lost and contexts that did not survive
 * answer MPIG_ELOST. A daemon killed some milliseconds ago may still seem to live; then the step fails by its deadline. Errors:
 * MPIG_ENODAEMON, MPIG_ERETRY (a failure is noted: mpig_cuda_recover), MPIG_ELOST (see mpig_queue_renew). */
MPIG_API int mpig_cuda_begin(mpig_cuda *gpu, int awake_ms);

struct mpig_cuda_failure {
	size_t size;
	int status; /* of the first failure: MPIG_ETIMEDOUT (no answer), an answer's error, MPIG_EPROTO, MPIG_EBUSY (a slot in flight) */
	uint32_t slot;     /* of the request */
	uint64_t sequence; /* number of the request in the queue since it was attached */
};
/* The failure that is noted, if any: its status, or 0. Reads host memory only; *failure (may be NULL) is written if there is one. What
 * kernels have not yet executed is not known: synchronise the stream first. */
MPIG_API int mpig_cuda_failure(const mpig_cuda *gpu, struct mpig_cuda_failure *failure);
/* After a failure, with nothing of this queue on the GPU any more (it synchronises the context). Waits until what the daemon still works on is
 * done, or attaches to the next daemon if it is gone, and forgets the failure. 0, or 1 as mpig_cuda_begin. MPIG_ETIMEDOUT: the
 * daemon lives and still works on an old request; the failure stays, and the call may be repeated. */
MPIG_API int mpig_cuda_recover(mpig_cuda *gpu);

struct mpig_cuda_answer { /* of the last request that was waited for */
	size_t size;
	uint64_t sequence, committed, rows_read, bytes_read, service_ns;
};
/* Reads host memory only. All 0 if none was, or if the queue has recovered or gone to another daemon since. While kernels of the queue run, what it says may
 * be of two answers: synchronise the stream first. */
MPIG_API int mpig_cuda_last_answer(const mpig_cuda *gpu, struct mpig_cuda_answer *answer);

/* ---- plans ----------------------------------------------------------------------------------------------------------- */
/* B contexts of the same spec, T query tokens each; one request of the daemon a context. */
struct mpig_cuda_spec {
	size_t size;
	int layer;
	unsigned contexts;            /* B; at most the queue's entries */
	mpig_context *const *context; /* [B]; they must stay open as long as the plan */
	unsigned tokens;              /* T; 0 = 1 */
	/* Slots first_slot .. first_slot + B - 1 of the queue are used, each by one request at a time. Plans whose requests are in flight
	 * together must not share any. */
	unsigned first_slot;
	int dtype;    /* of q: MPIG_BF16, MPIG_F16, MPIG_F32 */
	int proposal; /* as in mpig_attend, as are the next four */
	float budget;
	float error_target, budget_floor, budget_cap;
	uint64_t seed;         /* of request n of the queue: seed + n, so that a replayed graph samples anew */
	uint64_t sinks;        /* rows [0, sinks) are the client's */
	uint64_t window;       /* where a step names no `split`: the daemon has rows [sinks, committed - window) */
	unsigned no_signature; /* nonzero: leave signatures to the daemon */
	/* Rows [0, sinks) and [split, rows) are cut into pieces for as many as this; more are right, but slower. 0 = 1024. */
	unsigned own_rows;
	float delta; /* as in mpig_attend; with own_first, the promise is about the merged output */
	/* Nonzero: a step is window, submit, merge, and the request carries the LSE and the output of this step's own rows, as window_lse and
	 * window_out of mpig_attend do; without a window it says that there are none. For rows by error, which are wasted or, worse,
	 * missed without it, and for delta; it costs the time of the window's kernel, and query_heads * d_v floats over the bus. 0: a
	 * step is submit, window, merge, the own rows are attended while the daemon works, and the request carries the LSE of the
	 * plan's step before. For fixed shares, which go by neither. */
	unsigned own_first;
};
/* Asks the daemon for what signatures need (mpig_context_signature); a context that has nothing sealed yet is served without, until
 * mpig_cuda_plan_refresh. Errors: MPIG_EINVAL, MPIG_ELIMIT (the queue's slots are too small or too few: the text says what is needed),
 * MPIG_ENOTSUP (layer not global), and those of CUDA as in mpig_cuda_attach. */
MPIG_API int mpig_cuda_plan_create(mpig_cuda *gpu, const struct mpig_cuda_spec *spec, mpig_cuda_plan **plan);
/* The stream must be done with it. NULL is allowed. */
MPIG_API void mpig_cuda_plan_destroy(mpig_cuda_plan *plan);
/* Fetches signature parameters anew where a context's version (mpig_context_signature_version) has changed, in place: captured graphs use
 * them. Until then the daemon computes signatures itself. Nothing of the plan may be running. */
MPIG_API int mpig_cuda_plan_refresh(mpig_cuda_plan *plan);

/* ---- a step ---------------------------------------------------------------------------------------------------------- */
/* All pointers are device addresses, read when kernels execute: what changes from step to step is changed there. Elements of a tensor are
 * contiguous in its last dimension; strides of 0 mean dense in the order written. */
struct mpig_cuda_step {
	size_t size;
	uint64_t q;                         /* [B][T][query_heads][d_k], dtype of the plan */
	int64_t q_context, q_token, q_head; /* strides */
	/* int64 [B]: the daemon attends rows [sinks, split), which must be committed; the client the rest below `rows`. 0: the daemon
	 * attends [sinks, committed - window); for steps without own rows. */
	uint64_t split;
	/* int64 [B]: tokens of each context so far, those of this step included; query token t is number rows - T + t, and sees no later
	 * ones. */
	uint64_t rows;

	/* Own rows. k == 0: there are none, and `out` is the daemon's part alone. Row r of KV head g of context b is, contiguous, at
	 * b * kv_context + row(r) * kv_row + g * kv_head; paged, at page_table[b * page_stride + row(r) / page_rows] * kv_page +
	 * row(r) % page_rows * kv_row + g * kv_head. */
	uint64_t k, v;
	int kv_dtype; /* MPIG_BF16, MPIG_F16, MPIG_F32 */
	/* Strides, of k and v alike (so d_k = d_v). kv_head 0: d_k; kv_row 0: kv_heads * d_k; kv_page 0: page_rows * kv_row; kv_context
	 * must be given if B > 1 and nothing is paged. */
	int64_t kv_context, kv_page, kv_row, kv_head;
	uint64_t page_table; /* int32; 0: contiguous */
	int64_t page_stride; /* entries of a context's table */
	unsigned page_rows;
	unsigned ring_rows; /* 0: row(r) = r. Else rows from `sinks` on go round: row(r) = sinks + (r - sinks) % ring_rows */

	/* Answers. */
	uint64_t out;                             /* [B][T][query_heads][d_v] of out_dtype */
	int out_dtype;                            /* MPIG_BF16, MPIG_F16, MPIG_F32 */
	int64_t out_context, out_token, out_head; /* strides */
	uint64_t lse;                             /* float [B][T][query_heads], or 0 */
	unsigned flags;                           /* enum mpig_cuda_flags */
};
enum mpig_cuda_flags {
	MPIG_CUDA_LSE2 = 1,        /* lse in base 2, as FlashInfer's: log2(sum 2^(s log2 e)) */
	MPIG_CUDA_DAEMON_ONLY = 2, /* out and lse are the daemon's part alone, for callers that merge by themselves */
};
/* Each launches one kernel (merge: two where B * T * query_heads > 32) on `stream` and returns; may be captured. Order: submit, then window
 * in any place before merge; with own_first window, submit, merge, where a window behind the submit is merged all the same. Without a window
 * the caller's own part is not merged. Errors: MPIG_EINVAL, MPIG_EIO. */
MPIG_API int mpig_cuda_submit(mpig_cuda_plan *plan, mpig_cuda_stream stream, const struct mpig_cuda_step *step);
MPIG_API int mpig_cuda_window(mpig_cuda_plan *plan, mpig_cuda_stream stream, const struct mpig_cuda_step *step);
MPIG_API int mpig_cuda_merge(mpig_cuda_plan *plan, mpig_cuda_stream stream, const struct mpig_cuda_step *step);

/* Signatures alone: [B][T][query_heads][d_pad] int8 and their scales, bit for bit those of the daemon (the rounding rule is at mpig_context_
 * signature). Contexts without parameters: MPIG_EAGAIN. */
MPIG_API int mpig_cuda_sign(mpig_cuda_plan *plan, mpig_cuda_stream stream, const struct mpig_cuda_step *step, uint64_t signature,
                            uint64_t scale);

/* A request that does nothing, and the wait for it. */
MPIG_API int mpig_cuda_nop(mpig_cuda *gpu, mpig_cuda_stream stream, unsigned slot);
MPIG_API int mpig_cuda_wait(mpig_cuda *gpu, mpig_cuda_stream stream, unsigned slot);
/* How long the way to the daemon and back takes: `count` (1 to 65536) requests that do nothing, one after another, by one thread of one
 * kernel; ns [count]. Nothing may be in flight; synchronises the context. Errors: a failure's status (then as after any failure). */
MPIG_API int mpig_cuda_round_trips(mpig_cuda *gpu, unsigned count, float *ns);

/* ---- prefill: rows of the GPU into the daemon ------------------------------------------------------------------------ */
/* K and V of a layer go into the staging slots of a queue while the GPU computes the next layer: a kernel on a stream of the ingest's own
 * writes them over the bus, in the layout the daemon takes, and publishes the append. No host thread takes part, and nothing is copied
 * twice on the way.
 *
 *     mpig_cuda_ingest_create(client, NULL, &ingest);
 *     for each chunk of the prompt:
 *         for each layer:  ... kernels that compute K and V, on `stream` ...
 *                          ticket = mpig_cuda_ingest_layer(ingest, context, &rows, stream);
 *                          ... and before K and V are overwritten, by the next chunk or layer:
 *                          mpig_cuda_ingest_release(ingest, ticket, stream);    // the stream waits until they have been read
 *         mpig_cuda_ingest_commit(ingest, context, position, count, tokens, 0);  // MPIG_COMMIT_SEAL with the last one
 *     mpig_cuda_ingest_finish(ingest, &report);                                  // waits until all of it is committed
 *
 * Back-pressure. A slot is used again when the daemon has taken its rows; until then the ingest's stream waits, and nothing else does. What
 * computes is held up only where it asks by mpig_cuda_ingest_release, and the host only where it is 64 slots ahead of the copies: then
 * mpig_cuda_ingest_layer waits. A daemon that is slow is no failure; one that answers nothing at all for timeout_ms is.
 *
 * Patience. A stream that the caller has blocked holds up the rows that were given on it, and whoever waits for them. A call that has waited for
 * patience_ms while nothing moved answers MPIG_EAGAIN. That is no failure: nothing is lost, the same call with the same arguments goes on where
 * it was (positions are absolute, so what it had sent is sent again to no harm), or another thing can be done first. K, V and queries of a
 * layer that answered it belong to the ingest until a later ticket is released.
 *
 * Failure. The first one is kept, nothing after it reaches the daemon, and all calls but failure, recover and destroy answer it. What was
 * committed stays, and nothing is half committed: rows without their commit are written again or forgotten. After mpig_cuda_ingest_recover
 * mpig_context_committed says how far each context is; go on from there.
 *
 * Threads. An ingest belongs to one thread at a time, and to the CUDA context that was current when it was made. While it has rows of a
 * context under way, nobody else may append to that context, commit or truncate it. Contexts are of the ingest's client, and stay open until
 * finish or recover has returned 0 (recover also 1), or the ingest is destroyed: both ask where they are. */
typedef struct mpig_cuda_ingest mpig_cuda_ingest;

struct mpig_cuda_ingest_options {
	size_t size;
	size_t slot_bytes; /* of a staging slot: what one append carries, with its header; 0 = 16 MiB, 4 KiB. At least a row of the widest layer */
	unsigned slots;  /* 2 to 64; 0 = 4. slots * slot_bytes of host memory are registered */
	int timeout_ms;  /* longest time in which the daemon answers nothing; 0 = 30000, at most 60000 */
	unsigned blocks; /* of the kernel that copies, 256 threads each; 0 = 32, at most 1024 */
	int patience_ms; /* longest time that a call waits while nothing moves; 0 = 120000; negative: no limit */
};
/* Makes a queue of the client's, attaches the current CUDA context to it (the primary one of device 0 if there is none), and a stream.
 * Errors: those of mpig_queue_create and mpig_cuda_attach. *ingest is the caller's until mpig_cuda_ingest_destroy, before
 * mpig_disconnect. */
MPIG_API int mpig_cuda_ingest_create(mpig_client *client, const struct mpig_cuda_ingest_options *options,
                                     mpig_cuda_ingest **ingest);
/* Waits for what is under way, at most timeout_ms without an answer, and for the streams that rows were given on, however long they take: memory
 * that the GPU is yet to use cannot be given back. Rows that were not committed are as after a client's end. NULL is allowed. */
MPIG_API void mpig_cuda_ingest_destroy(mpig_cuda_ingest *ingest);

struct mpig_cuda_rows { /* some tokens' K and V of one layer, in the GPU's memory */
	size_t size;
	int layer;
	int dtype;             /* of k, v and queries: MPIG_BF16, MPIG_F16, MPIG_F32 */
	uint64_t first, count; /* tokens first .. first + count - 1 of the context */
	uint64_t k, v;         /* device addresses of token `first`, KV head 0; the elements of a head are contiguous */
	int64_t k_row,
		k_head; /* strides from token to token and from head to head, in elements; 0 and 0: [count][kv_heads][d_k] */
	int64_t v_row, v_head; /* 0 and 0: [count][kv_heads][d_v] */
	uint64_t queries; /* the layer's last query_count queries, which set the balance when the prefill is sealed; 0: none */
	unsigned query_count;
	int64_t q_row, q_head; /* 0 and 0: [query_count][query_heads][d_k] */
};
/* Rows of a layer, as what is on `stream` before leaves them. Returns without waiting for them: a ticket > 0 for release and released, or a
 * negative status. Positions are as in mpig_append. Errors: MPIG_EINVAL (dtype, layer, strides, addresses), MPIG_ERANGE (tokens), MPIG_ELIMIT
 * (the slots are too small: the text says what is needed), MPIG_ENOTSUP (layer not global), MPIG_EIO, MPIG_EAGAIN (patience), and a failure noted
 * before. */
MPIG_API int64_t mpig_cuda_ingest_layer(mpig_cuda_ingest *ingest, mpig_context *context, const struct mpig_cuda_rows *rows,
                                        mpig_cuda_stream stream);
/* May K, V and queries of a ticket, and of those before it, be overwritten? `stream` waits until they may be, without the host: what is
 * launched on it from now on may write them. */
MPIG_API int mpig_cuda_ingest_release(mpig_cuda_ingest *ingest, int64_t ticket, mpig_cuda_stream stream);
/* The same asked by the host: 1 yes, 0 not yet, or a failure (after which they may be once the stream of the ingest is through:
 * mpig_cuda_ingest_recover). */
MPIG_API int mpig_cuda_ingest_released(mpig_cuda_ingest *ingest, int64_t ticket);
/* Commits tokens [position, position + count) behind the appends before it, as mpig_commit does: all global layers must have been given up
 * to there. Returns without waiting, as a rule (MPIG_EAGAIN); token ids are copied. */
MPIG_API int mpig_cuda_ingest_commit(mpig_cuda_ingest *ingest, mpig_context *context, uint64_t position, uint64_t count,
                                     const uint32_t *tokens, int flags);

struct mpig_cuda_ingest_report { /* since the ingest was made, recovered, or finished before */
	size_t size;
	uint64_t rows, bytes; /* a token of a layer is a row; bytes over the bus, of K, V, queries and token ids */
	uint64_t appends, commits;
	uint64_t elapsed_ns; /* from the first call to the last answer */
	uint64_t copy_ns;    /* rows were on the bus */
	uint64_t wait_ns;    /* the stream waited for the daemon: for a slot, and at the end for the last answers */
	uint64_t service_ns; /* of all requests, from claim to answer, by the daemon's clock */
};
/* Waits until the daemon has answered everything. Then mpig_context_committed of the contexts is up to date. *report (may be NULL) is
 * written on success. Errors: MPIG_EAGAIN (patience), and the failure, which mpig_cuda_ingest_failure describes. */
MPIG_API int mpig_cuda_ingest_finish(mpig_cuda_ingest *ingest, struct mpig_cuda_ingest_report *report);

struct mpig_cuda_ingest_failure {
	size_t size;
	/* MPIG_ETIMEDOUT: no answer for timeout_ms; MPIG_ERETRY: the daemon is gone; MPIG_ESHUTDOWN: it closed the queue; MPIG_EIO: CUDA
	 * failed; or an answer: MPIG_EQUOTA, MPIG_ENOSPC, MPIG_ENAN, MPIG_ERANGE, MPIG_ELEASE, MPIG_ELOST .. */
	int status;
	int layer;             /* of the request; -1: a commit, or none */
	uint64_t first, count; /* its tokens */
	mpig_context *context; /* NULL: the failure is nobody's request */
};
/* As mpig_cuda_failure: the failure's status, or 0; it also asks whether the daemon lives. */
MPIG_API int mpig_cuda_ingest_failure(mpig_cuda_ingest *ingest, struct mpig_cuda_ingest_failure *failure);
/* After a failure: waits for the GPU and for what the daemon still works on, or goes over to the next daemon. 0, or 1 as mpig_cuda_begin;
 * mpig_context_committed of the contexts is up to date, and what was given beyond that is to be given again. May be repeated after
 * MPIG_ETIMEDOUT (the daemon still works on a request) and MPIG_ENODAEMON, and must be after MPIG_EAGAIN (patience). It also waits for what else
 * the context's streams have to do. */
MPIG_API int mpig_cuda_ingest_recover(mpig_cuda_ingest *ingest);

#ifdef __cplusplus
}
#endif
#endif
