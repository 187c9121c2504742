// One request end to end, with no I/O: no socket, ring, clock or thread of its own. The server's workers (or a test's threads) lend
// their time by calling job_run until the job is done; which thread runs which unit never changes a result.
//
// A job is cut into units (a span of at most 4,096 rows of one KV head; one segment of one KV head for SimHash lookups). Phases:
//
//   ATTEND   prepare (the claimer: query signatures) -> pilot per KV head -> tau -> scan + attend per unit -> merge in unit order
//   APPEND   one unit per KV head
//   COMMIT   store_commit; if it seals: fit -> encode -> tables, one unit per strip -> publish
//
// Everything a job reads from a client was copied and checked when it was made, or is by the unit that uses it, once: the payload of an APPEND, and
// the queries of a dense ATTEND whose KV heads have one unit each.
#ifndef MPIG_ENGINE_H
#define MPIG_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/kernels/kernels.h"
#include "daemon/store/store.h"
#include "shm/abi.h"

// Whoever wants a timeline of a job's pieces is told as each begins and ends, by the thread that does it.
enum engine_piece { ENGINE_PRE, ENGINE_TURN, ENGINE_MAIN, ENGINE_CLOSE };
struct engine_trace {
	void (*note)(void *data, uint32_t worker, enum engine_piece piece, bool end);
	void *data;
};

struct engine;
struct engine_options {
	const struct kernels *kernels;    // borrowed, must outlive the engine
	struct store *store;              // borrowed
	float error_target;               // eps where neither request nor layer names a share of rows; 0: default_budget
	float budget_floor, budget_cap;   // shares of rows under an error target; 0 = .005, .08
	float default_budget;             // share of rows where there is no error target; 0 = .01
	uint32_t workers;                 // threads that will run jobs: how finely some work is cut, never what comes out; 0 = 1
	const struct engine_trace *trace; // borrowed; NULL: nobody looks
	uint64_t upper_rows;              // ranges of so many rows go through upper layers, where there are some; 0: none do
	float upper_most;                 // share of a segment's groups beyond which all its rows are scanned instead; 0 = .5
	uint64_t ahead_bytes;             // as of engine_set_ahead
};
int engine_create(const struct engine_options *options, struct engine **engine); // builds the noise table
void engine_destroy(struct engine *engine);
uint64_t engine_table_bytes(const struct layer *layer, uint32_t rows); // of SimHash tables; store_attach checks them by it
// Of what comes from a file that anybody may have written: no NaN or infinity; no row id outside.
bool engine_rows_good(const struct layer *layer, const uint8_t *rows, uint32_t n, const float *frame);
bool engine_table_good(const struct layer *layer, const void *table, uint32_t rows);
bool engine_upper_good(const struct layer *layer, uint32_t bits, const void *upper, uint32_t rows);

// Scratch of one thread. Grows on demand; MPIG_ENOMEM fails the job, not the daemon.
struct engine_scratch;
struct engine_scratch *engine_scratch_create(void);
void engine_scratch_destroy(struct engine_scratch *scratch);

// A request: private copies. The payload pointers are read during job_create only; outputs are written by the call that completes the
// job, straight into the payload slot, and never read back.
// What answers of a layer take where the request names neither share nor error target, and no proposal but this one.
struct engine_default {
	uint8_t proposal;                                     // enum mpig_proposal; 0: there is nothing here
	float budget, error_target, budget_floor, budget_cap; // of MPIG_PROPOSAL_SIGNATURE; each 0: what layer and daemon say
};
struct engine_request {
	struct mpig_sqe entry;        // the private copy
	struct mpig_slot_header slot; // the private copy; zeros without a slot
	const uint8_t *
		payload_in; // the slot's start (client-writable: each element is read once, then checked), or NULL; until the job is done
	uint8_t *payload_out; // the slot's start, or NULL
	uint64_t slot_bytes;
	uint64_t sequence;                     // of the entry in its queue
	struct context *context;               // borrowed until job_destroy
	bool writer;                           // the connection holds the context's lease
	const struct engine_default *defaults; // [layers of the context], borrowed until job_destroy; NULL: none
};
struct engine_result { // what the completion needs
	int status;
	uint64_t committed, rows_read, bytes_read;
	uint32_t signature_version, units;
	char why[MPIG_TEXT_BYTES]; // "" on success
};

struct job;
// Copies, checks, plans. Always returns a job unless memory is out (NULL): a bad request gives a job that is already done with an error.
// The caller's thread claims the queue; other threads may call job_run as soon as it is published.
struct job *job_create(struct engine *e, const struct engine_request *request);
enum job_state {
	JOB_IDLE, // nothing for this caller now; others are working on the last units of a phase
	JOB_RAN,  // ran a unit; more may follow
	JOB_MORE, // the same, and now others may claim units that were not open before
	JOB_DONE  // this call completed the job: exactly one call returns it; then only job_result and job_destroy may follow
};
// Runs at most one unit (about 100 us at most). `worker` is the caller's number: units are claimed by affinity first, then stolen.
enum job_state job_run(struct job *job, uint32_t worker, uint32_t workers, struct engine_scratch *scratch);
uint32_t job_parallelism(const struct job *job); // units of the present phase not yet claimed: how many helpers are worth waking
const struct engine_result *job_result(const struct job *job);
// What an ATTEND that was answered had been asked, with what is relative in it resolved; between JOB_DONE and job_destroy. False: it was no
// ATTEND, or was refused.
struct job_query {
	struct mpig_layer_shape shape;       // of its layer
	const struct mpig_slot_header *slot; // the private copy
	uint64_t begin, end, seed;           // end: after the rows it was about
	bool window_lse, window_out;         // there are such
};
bool job_query(const struct job *job, struct job_query *query);
// q [tokens][query_heads][d_k], window_lse [tokens][query_heads], window_out [tokens][query_heads][d_v]; those that are not there are not
// written.
void job_query_copy(const struct job *job, float *q, float *window_lse, float *window_out);
void job_destroy(struct job *job); // after JOB_DONE and after every other thread has left job_run

// ---- reading ahead (ahead.h) -----------------------------------------------------------------------------------------
// How much of what the next ATTEND will scan each worker fetches while it waits; 0: nothing. Any thread.
void engine_set_ahead(struct engine *engine, uint64_t bytes);
// What is likely to be asked next of a context. A value: nothing is kept for its sake.
struct engine_foresight {
	bool some;  // else nothing is likely
	bool upper; // the rest: ahead.c
	uint32_t layer;
	float delta;
	uint64_t begin, end, list;
};
// Notes what an ATTEND asked for, once, as soon as all its units are begun; by one who may call job_run, or after JOB_DONE. True: this call
// did it, and that the request would come had been foreseen. *next is always set.
bool job_learn(struct job *job, struct engine_foresight *next);
// Lists what that would read, unless a request was planned since the answer. Takes about 10 us (8 KV heads, 2 workers) to 40 (15): for who has
// nothing else to do.
void engine_list_ahead(struct engine *engine, struct context *context, const struct engine_foresight *next);
// Asks for the next few KB of the worker's list, and returns how many bytes; 0: there is none, no more of it, or a request was planned since
// it was made. At most one caller for a worker; `worker` as in job_run.
uint32_t engine_read_ahead(struct engine *engine, uint32_t worker);

// Whether this entry changes its context (APPEND, COMMIT, TRUNCATE): on one queue such entries wait for all before them.
bool engine_op_writes(uint8_t op);

#endif
