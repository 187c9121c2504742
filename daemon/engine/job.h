// Inside of a job; private to daemon/engine.
//
// A round is a set of groups; a group is what shares a phase barrier (one KV head of an ATTEND, one strip of a seal):
//
//   pre units [0, pre_n)   ->   the last one to finish runs `turn`   ->   main units [0, main_n)   ->   the last one runs `close`
//
// Where there is a `merge`, main units are merged in their order as far as they are done, by one thread at a time, while others are at work: in
// a few chains, since workers begin at several places of a group. Whoever completes the last chain merges the chains and closes the group.
//
// Units are claimed by a fetch-add, so whoever comes takes the next. The last close of a round runs the job's `finish`, which may
// set up another round (a commit that seals several segments). Claims are per group, so that a worker returns to the same
// strips as long as nobody is behind; of what was read ahead it begins, in its first group, with the section of main units that it has in its
// caches (place_of), instead of the next one.
#ifndef MPIG_ENGINE_JOB_H
#define MPIG_ENGINE_JOB_H

#include <assert.h>
#include <stdatomic.h>

#include "daemon/attn/attn.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/memory.h"
#include "daemon/index/index.h"

struct ahead;
struct hash_set;
struct upper_query;
struct proposal;

struct engine {
	const struct kernels *kernels;
	struct store *store;
	const float *noise;
	float error_target, budget_floor, budget_cap, default_budget;
	uint32_t workers;
	uint64_t upper_rows;
	float upper_most;
	struct hash_cache *hashes;
	const struct engine_trace *trace;
	struct ahead *ahead;
	_Alignas(64) struct memory memory; // of jobs' arrays; not beside what everybody reads
	struct memory jobs;                // of struct job
};

enum { SECTIONS = 16, CHAINS = 4 };

struct group {
	_Alignas(64) atomic_uint pre_next;
	atomic_uint pre_done, main_next, main_done;
	atomic_uint open; // main units may be claimed
	uint32_t pre_n, main_n;
	// where the job's ops have `merge`
	atomic_uint merging;     // a bit for each chain: somebody does
	uint32_t merged[CHAINS]; // so many units of each chain are; whoever merges it. main_done: chains that are whole
	atomic_uchar *done;      // [main_n]
	_Alignas(64) atomic_uint section[SECTIONS]; // of main units: those claimed of each; main_next: of all
};
static_assert(SECTIONS * sizeof(atomic_uint) == 64, "one line");

// Main units [section_begin(s), section_begin(s + 1)) are section s's; there are sections(units) of them.
static inline uint32_t sections(uint32_t units)
{
	return units < SECTIONS ? units : SECTIONS;
}
static inline uint32_t section_begin(uint32_t units, uint32_t section)
{
	return units < SECTIONS ? section : (uint32_t)((uint64_t)section * units / SECTIONS);
}
// Likewise of chains: as many whatever the workers, since what is merged into what decides about bits; workers begin at several of them.
static inline uint32_t chains(uint32_t units)
{
	return units < 2 * CHAINS ? 1 : CHAINS;
}
static inline uint32_t chain_begin(uint32_t units, uint32_t chain)
{
	return (uint32_t)((uint64_t)chain * units / chains(units));
}
// Where a worker begins with `groups` groups of so many main units; the one after the last: the end.
struct place {
	uint32_t group, section, unit;
};
static inline struct place place_of(uint32_t worker, uint32_t workers, uint32_t groups, uint32_t units)
{
	uint32_t each = sections(units) ? sections(units) : 1;
	uint64_t at = (uint64_t)worker * groups * each / workers;
	struct place p = {.group = (uint32_t)(at / each), .section = (uint32_t)(at % each)};
	p.unit = section_begin(units, p.section);
	return p;
}
static inline bool place_same(struct place x, struct place y)
{
	return x.group == y.group && x.section == y.section;
}

struct round {
	struct round *older; // kept until job_destroy: late helpers may still look at it
	uint32_t group_count;
	_Alignas(64) atomic_uint closed; // not beside what everybody reads
	struct group group[];
};

struct job_ops { // unit functions return a status; the first failure becomes the job's
	int (*pre)(struct job *j, uint32_t group, uint32_t unit, struct engine_scratch *s);
	int (*turn)(struct job *j, uint32_t group, struct engine_scratch *s);
	int (*main)(struct job *j, uint32_t group, uint32_t unit, struct engine_scratch *s);
	int (*merge)(struct job *j, uint32_t group, uint32_t to,
	             uint32_t unit); // unit's result into that of `to`; NULL: close does it all
	int (*close)(struct job *j, uint32_t group, struct engine_scratch *s);
	int (*finish)(struct job *j, struct engine_scratch *s); // MPIG_EAGAIN: another round was published
	int (*attempt)(struct job *j);                          // instead of rounds: done in one go, or MPIG_EAGAIN: not now
	void (*release)(struct job *j);
};

struct reads { // of one KV head: a line of its own, since all its units add to it
	_Alignas(64) atomic_ullong rows, bytes;
};

struct attend {
	struct layer_view view;
	const struct layer *layer;
	uint32_t tokens, group_heads, queries; // T, G, T * G queries of one KV head, ordered [t][j]
	uint8_t proposal;
	const struct proposal *how; // what serves it: dense where that is as cheap
	float budget, error_target, budget_floor, budget_cap;
	uint64_t seed, position;
	struct mpig_payload_layout layout;
	float *q;              // [kv_heads][queries][d_k]
	float *window_lse;     // [kv_heads][queries] or NULL
	float *window_out;     // under an error target: [kv_heads][queries][d_v] or NULL
	float *ratio;          // under an error target: [kv_heads] realised over predicted variance, so far
	float *predicted;      // ... and [kv_heads][queries] what the sample's threshold makes one expect of it
	float delta;           // > 0: verified (verify.c)
	double deviations;     // ... the normal quantile of delta
	bool measuring;        // ... and this is the first sample
	float *lowest;         // ... [kv_heads][queries] tau of the cap
	struct heavy *heavy;   // ... [kv_heads][main units][queries]
	uint64_t *limit;       // [T] first token position not seen
	float *signs;          // [3][d_pad]
	int8_t *signature;     // [kv_heads][queries][d_pad]
	struct sig_query *sig; // [kv_heads][queries]
	bool client_signature;
	uint32_t pilots;                 // pilots of one token of a KV head, each for a part of its query heads
	uint64_t *turn;                  // [kv_heads] of heads_turn; UINT64_MAX: nobody looks
	bool upper;                      // through upper layers where there are some
	struct upper_query *upper_query; // ... [kv_heads][queries]
	uint32_t *unit_span;             // signature: [main units + 1] a unit's first span
	uint16_t *bucket;                // tables: [kv_heads][queries][L]
	struct hash_set *hashes;
	float *score;     // ranked: [kv_heads][queries][rows]
	struct cut *cut;  // ... [kv_heads][queries] its rows of large scores
	float *rest;      // ... [kv_heads][queries] -log pi of its other rows; inf: none are drawn
	uint8_t *partial; // [kv_heads][main units][queries] of partial_bytes
	size_t partial_bytes;
	uint32_t main_units;
	uint32_t *dense_span; // tables: spans that no table covers
	uint32_t dense_spans;
	atomic_uchar *done;   // [kv_heads][done_bytes], of the groups
	uint32_t done_bytes;  // of a KV head: whole cache lines
	struct reads *reads;  // [kv_heads]
	const uint8_t *later; // the payload, where each group has a unit that copies its queries from it; NULL: they are copied
};

struct append {
	const struct layer *layer;
	uint64_t position;
	uint32_t count, dtype, skew; // skew: rows of its first piece that lie before it
	const uint8_t *k, *v;        // [count][kv_heads][d] of dtype, where the client may write
	float *queries;              // [query_count][query_heads][d_k]
	float *signs;
};

struct indexing { // indexing.c
	uint32_t strips;
	const struct layer **layer_of; // [strips]
	double (*cost)[3];             // [strips] of widths, where they are to be chosen
	float *signs[3];               // for d_pad 64, 128, 256
};

struct commit {
	struct seal_plan plan;
	bool sealing; // the plan is to be finished or given back
	enum {
		SEAL_FIT,
		SEAL_INDEX,
		SEAL_SUM
	} phase; // what this round does: parameters; codes, tables and upper layers; checksums
	struct indexing indexing;
};

enum { FIRST_GROUPS = 16 }; // a first round of so many is a part of its job

struct job {
	struct engine *engine;
	struct engine_request request;
	struct engine_result result;
	const struct job_ops *ops; // NULL: done at creation
	_Atomic(struct round *) round;
	atomic_int failed;           // first failure
	_Atomic uint64_t ahead_list; // of struct ahead when it was planned, then when it was done
	atomic_bool learned;         // job_learn has looked
	bool read_ahead;             // of some of its rows, maybe: workers begin where they did that
	atomic_bool taken;           // jobs without rounds: one caller at a time
	void *memory;                // one allocation for the arrays of the union's member
	union {
		struct attend attend;
		struct append append;
		struct commit commit;
	};
	_Alignas(64) uint8_t first_round[sizeof(struct round) + FIRST_GROUPS * sizeof(struct group)];
};

// Planning; each fills result and ops. On failure the status is set and ops stays NULL.
int attend_plan(struct job *j);
int append_plan(struct job *j);
int commit_plan(struct job *j);
int read_plan(struct job *j);
int truncate_plan(struct job *j);
int rows_check(struct job *j, const struct layer **layer); // of an APPEND or READ: the layer, which stores rows, and which rows

struct job *job_new(struct engine *e); // an empty one, for job_destroy; NULL: out of memory
int job_fail(struct job *j, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
struct round *round_new(struct job *j, uint32_t groups); // NULL: out of memory; every group zero and closed
void round_free(struct job *j, struct round *r);         // of one that was not published
void round_publish(struct job *j, struct round *r);

// Bump allocation in one malloc: first pass with base NULL counts, second pass hands out.
struct carve {
	uint8_t *base;
	size_t used;
	bool overflow;
};
void *carve(struct carve *c, uint64_t count, uint64_t bytes);

// Scratch of a thread: `bytes` of memory, 64-aligned, valid until the next call. NULL: out of memory.
void *scratch_get(struct engine_scratch *s, size_t bytes);

// The random numbers of a layer's hash tables, shared by all strips of a context: kept while in use and a little longer.
struct hash_set {
	uint64_t seed;
	struct table_params params; // without mu and balance
	uint32_t references;
	uint64_t used;
	struct table_pi pi;
	float *vectors; // of params
	struct hash_set *next;
};
struct hash_cache *hash_cache_create(void);
void hash_cache_destroy(struct hash_cache *cache);
struct hash_set *hash_set_get(struct hash_cache *cache, uint64_t seed, const struct layer *layer); // NULL: out of memory
void hash_set_put(struct hash_cache *cache, struct hash_set *set);
// For one strip's keys and queries. The balance is taken if the layer's tables are of balanced keys.
struct table_params hash_set_params(const struct hash_set *set, const struct layer *layer, const float *mu, const float *balance);

// n elements of a payload dtype to fp32; false if one is NaN or infinite.
bool payload_to_f32(const uint8_t *src, uint32_t dtype, size_t n, float *dst);

#endif
