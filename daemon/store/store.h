// Contexts in the pool: segments, blocks, index generations, leases, access, quotas. All control-plane mutations take the
// store's one lock; a context's rows are written by the one job that holds its writer side, and read by many.
//
// What readers may rely on without the lock: everything below the `committed` they loaded (acquire) stays where it is while
// they hold a pin. Memory that a drop, a truncation or a trim gives up is freed when the last pin taken before is released.
#ifndef MPIG_STORE_STORE_H
#define MPIG_STORE_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/kernels/kernels.h"
#include "shm/abi.h"
#include "shm/control.h"
#include "shm/status.h"

struct store;
struct pool;
struct layer;
struct context; // opaque but for the accessors below

struct credentials {
	uint32_t uid, gid;
	const uint32_t *groups;
	uint32_t group_count;
	uint32_t pid;
	bool admin; // may do what uid 0 may
};
enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_OWN }; // OWN: drop, chmod
struct identity {
	uint32_t uid, gid, mode;
};
bool credentials_admin(const struct credentials *who); // uid 0, and who is marked as one
bool credentials_in_group(const struct credentials *who, uint32_t gid);
// The one access decision: owner, group and other bits as for a file (r = attend, w = append); OWN = owner; administrators may all.
bool access_check(const struct identity *object, const struct credentials *who, enum access want);

// What users and groups may hold; 0 = unlimited. A context counts for its uid and its gid, shared bytes once for each.
#define STORE_OWN_LIMITS 64u
struct store_limits {
	uint64_t uid_bytes, gid_bytes;
	uint32_t uid_contexts, gid_contexts;
	struct store_own_limit { // of one user or group, instead of the above
		bool group;
		uint32_t number, contexts;
		uint64_t bytes;
	} own[STORE_OWN_LIMITS];
	uint32_t own_count;
};
struct store_options {
	struct pool *pool; // borrowed; must outlive the store
	struct store_limits limits;
	uint64_t upper_reach;     // sealed segments that end at this token position or later get an upper layer; 0 = none do
	uint32_t upper_least;     // ... if they hold so many rows; 0 = 4,096
	uint64_t (*now_ns)(void); // CLOCK_REALTIME; NULL = the system's
	uint64_t (*checksum)(const void *data, size_t bytes); // XXH3 64-bit; NULL = the library's
};
int store_create(const struct store_options *options, struct store **store); // MPIG_ENOTSUP: the pool holds contexts

// What is looked at when a pool is attached. Offsets, lengths and counts are always checked, and so are the checksums of records that
// lead to others; the time taken depends on the number of extents, not on what is in them. VERIFY_HEADER reads the index's parameters
// too, VERIFY_FULL all rows, token ids, codes and tables of sealed segments.
enum verify_level { VERIFY_NONE, VERIFY_HEADER, VERIFY_FULL };
struct store_attach_options {
	enum verify_level verify;
	uint64_t (*table_bytes)(const struct layer *, uint32_t rows); // as context_seal_begin asks
	void (*warn)(void *arg, const char *text); // once for every damaged or lost context; NULL: nobody listens
	void (*progress)(void *arg);               // once for every context read; NULL: nobody listens
	void *arg;
};
struct store_attached {
	uint64_t contexts, tokens, segments, extents; // that are served
	uint64_t quarantined;                         // listed, and kept until dropped as far as their records can be trusted
	uint64_t lost;                                // entries of the context table that led nowhere, cleared
};
// A store over what a pool just opened (pool_open) holds: free map, catalogue, sharing and charges are derived from the records,
// what was not committed is given back, and free memory is zeroed. 0 or MPIG_ENOMEM; then the pool is as it was.
int store_attach(const struct store_options *options, const struct store_attach_options *attach, struct store **store,
                 struct store_attached *attached);
// Compares the pool's free map with what contexts reach: every byte has one owner or is free. For tests, with nothing going on.
// 0, MPIG_ECORRUPT (see `why`), MPIG_ENOMEM.
int store_audit(struct store *s, char *why);
void store_destroy(struct store *store);

// A layer of a context, derived from its spec once.
struct layer {
	struct mpig_wire_layer wire; // with defaults resolved
	struct mpig_layer_shape shape;
	struct row_format rows;
	float scale;
	uint32_t first_strip; // UINT32_MAX for layers that store nothing
	uint32_t d_pad;
	uint64_t code_bytes_per_row; // 0 = no signature index (codes + factor)
	bool may_have_upper;         // codes, and logits that are their products alone
};

// ---- control plane (store lock inside) -------------------------------------------------------------------------------
// `why` (MPIG_TEXT_BYTES) is filled on failure. All return 0 or a negative status. *context is returned with a reference.
int store_context_create(struct store *s, const struct credentials *who, const struct mpig_ctl_create *body,
                         const struct mpig_wire_layer *layers, struct context **context, char *why);
int store_context_open(struct store *s, const struct credentials *who, const char *name, const uint8_t fingerprint[64],
                       struct context **context, char *why);
int store_context_open_prefix(struct store *s, const struct credentials *who, const uint8_t fingerprint[64],
                              const uint32_t *tokens, uint64_t count, uint64_t min_tokens, struct context **context,
                              uint64_t *matched, char *why);
struct prefix_query {
	const uint8_t *fingerprint;
	const uint32_t *tokens;
	uint64_t count, min_tokens;
	bool saved; // contexts that are on disk only count, too
};
struct prefix_found {
	struct context *context;     // a reference; NULL: the best one is on disk only
	char saved[MPIG_NAME_BYTES]; // then this is its name
	uint64_t matched;
};
int store_find_prefix(struct store *s, const struct credentials *who, const struct prefix_query *query,
                      struct prefix_found *found, char *why);
int store_context_fork(struct store *s, const struct credentials *who, struct context *parent, uint64_t tokens,
                       const char *new_name, struct context **child, char *why);
int store_context_drop(struct store *s, const struct credentials *who, const char *name, char *why);
// Changes the parts that `set` (enum mpig_policy_set) names; *out is the policy then in force. The owner's business. MPIG_EINVAL: contradictory.
int store_context_policy(struct store *s, const struct credentials *who, const char *name, uint32_t set,
                         const struct mpig_wire_policy *policy, struct mpig_wire_policy *out, char *why);
// Is it one? 0 or MPIG_EINVAL.
int policy_check(const struct mpig_wire_policy *policy, char *why);
int store_context_chmod(struct store *s, const struct credentials *who, const char *name, uint32_t mode, uint32_t uid,
                        uint32_t gid, char *why);
// Contexts with id > *cursor that `who` may read, ascending; returns how many were written, advances *cursor (0 = end).
uint32_t store_context_list(struct store *s, const struct credentials *who, uint64_t *cursor, struct mpig_wire_context *out,
                            uint32_t max);
// Compares the next part of a context with its checksum (checksum.c): part->segment and part->part say which, and are advanced; at
// the end `more` is false. Readable contexts only. Takes the time of reading a block of rows of all layers.
struct verify_part {
	uint32_t segment, part;
	uint64_t sum, bytes;
	uint32_t checked, unchecked, damaged;
	bool more;
};
int store_context_verify(struct store *s, const struct credentials *who, const char *name, struct verify_part *part, char *why);
void store_context_info(struct store *s, struct context *c, struct mpig_wire_context *out);
// A reference keeps the struct alive, not the data: operations on a dropped context answer MPIG_ENOENT.
void context_ref(struct context *c);
void context_unref(struct context *c);
// Writer lease of a connection (an opaque nonzero id). MPIG_EBUSY if another holds it; MPIG_EACCES without write permission. Releasing
// forgets uncommitted rows.
int context_lease(struct store *s, struct context *c, const struct credentials *who, uint64_t holder, char *why);
void context_release(struct store *s, struct context *c, uint64_t holder);
bool context_leased_by(const struct context *c, uint64_t holder);
bool context_may(struct store *s, const struct context *c, const struct credentials *who, enum access want);

struct store_totals {
	uint64_t contexts, metadata_bytes;
};
void store_totals(struct store *s, struct store_totals *out);
uint64_t store_uid_bytes(struct store *s, uint32_t uid);
uint64_t store_uid_contexts(struct store *s, uint32_t uid);
uint64_t store_gid_bytes(struct store *s, uint32_t gid);
uint64_t store_gid_contexts(struct store *s, uint32_t gid);
void store_set_limits(struct store *s, const struct store_limits *limits); // what is held beyond them stays
// Whether `who` may do this to a context in memory: 0, MPIG_ENOENT, or MPIG_EACCES and why.
int store_context_access(struct store *s, const struct credentials *who, const char *name, enum access want, char *why);

// ---- accessors (any thread) ------------------------------------------------------------------------------------------
const struct layer *context_layer(const struct context *c, uint32_t layer); // NULL if out of range or not GLOBAL
uint32_t context_layer_count(const struct context *c);
uint32_t context_strips(const struct context *c); // KV heads of all global layers
const struct mpig_wire_layer *context_spec_layer(const struct context *c,
                                                 uint32_t layer); // any kind, defaults resolved; NULL out of range
uint64_t context_committed(const struct context *c);              // acquire
uint64_t context_seed(const struct context *c);
uint64_t context_id(const struct context *c);
uint32_t context_owner(const struct context *c);             // uid
const uint8_t *context_fingerprint(const struct context *c); // [64], all zero: it has none; never changes
uint32_t context_signature_version(const struct context *c);
uint32_t context_strip_bits(struct context *c, uint32_t strip); // width of a strip's codes in force; 0: none (yet)
bool context_dropped(const struct context *c);

// ---- reading (no lock) -----------------------------------------------------------------------------------------------
// Signature parameters of one strip, as pointers into the pool.
struct strip_params {
	const float *mu, *balance;
	uint32_t bits; // of codes; 0: none
};

struct span {           // consecutive rows in memory: the part of one block inside the asked range, of one strip
	uint64_t first; // token position of its first row
	uint32_t n;
	const uint8_t *rows;
	const uint8_t *codes;    // of the block's first row's group; NULL: not in the signature index, attend exactly
	const uint16_t *factors; // of the block's first row
	uint32_t block_row; // index in the block of the span's first row (codes and factors are indexed from the block's start)
	uint32_t table;     // index into tables of the segment's SimHash table; UINT32_MAX: none covers this span
	uint32_t upper;     // likewise into uppers
	const float *frame; // of int8 rows (row_frame_fit); NULL otherwise
};
struct table_view { // SimHash tables, or the upper layer, of one segment of one strip
	const void *table;
	uint64_t first; // token position of table row 0
	uint32_t rows;
	uint32_t span_begin, span_end; // the spans of this segment
};
struct strip_view {
	struct span *spans;
	struct table_view *tables, *uppers;
	struct strip_params params; // mu NULL: no signature parameters yet
};
struct layer_view {
	const struct layer *layer;
	uint64_t begin, end, committed;
	uint32_t span_count, table_count, upper_count, signature_version;
	struct strip_view *strip; // [kv_heads]
	void *memory;             // one allocation holding all of the above; free() by layer_view_free
	struct context *context;  // pinned
};
// Pins the context and describes rows [begin, end) of a layer; `end` is clipped to committed only if end_relative was resolved by
// the caller. MPIG_ERANGE if begin > end or end > committed; MPIG_ENOENT if dropped; MPIG_ENOMEM.
int layer_view_get(struct store *s, struct context *c, uint32_t layer, uint64_t begin, uint64_t end, struct layer_view *view);
void layer_view_free(struct store *s, struct layer_view *view); // unpins

// ---- writing (the lease holder's jobs; one at a time per context) ----------------------------------------------------
// Makes room for rows [position, position + count) of a layer in the open segment (opening one, adding blocks, charging the quota).
// position must be <= rows appended to that layer so far (MPIG_ERANGE otherwise) and >= committed. Nothing is half-done on failure:
// MPIG_ENOSPC, MPIG_EQUOTA, MPIG_ELIMIT, MPIG_ENOMEM; MPIG_EAGAIN only after a truncation that answered so. The memory stays, whatever
// is dropped meanwhile, until context_appended or the holder's next reserve, commit, truncation or release.
int context_reserve(struct store *s, struct context *c, uint32_t layer, uint64_t position, uint64_t count, char *why);
#define PIECE_ROWS 16u // of a strip: what a checksum is of. Pieces begin at multiples of this in their block
// Of the bytes of a piece's rows; never 0.
static inline uint64_t piece_sum(uint64_t (*checksum)(const void *data, size_t bytes), const void *rows, size_t bytes)
{
	uint64_t sum = checksum(rows, bytes);
	return sum ? sum : 1;
}
struct write_span {
	uint32_t n; // consecutive rows from position
	uint8_t *rows;
	uint8_t *codes; // NULL: rows are indexed later, at seal
	uint16_t *factors;
	uint32_t block_row;
	// For the checksum of a sealed segment: sums of the pieces from the one on that block_row is in; NULL: nobody keeps them. Whoever writes rows of
	// a piece stores its piece_sum, or 0: it is not known, and the seal reads the rows again.
	uint64_t *piece;
	struct strip_params params;
	float *frame; // of int8 rows. frame_fresh: the caller sets it from its first rows
	bool frame_fresh;
	const float *frame_before; // of the segment before, if there is one
};
// Where the reserved rows of one strip go, from position on.
void context_write_span(struct store *s, struct context *c, uint32_t layer, uint32_t kv_head, uint64_t position,
                        struct write_span *out);
// Notes that rows up to `end` of a layer are complete.
void context_appended(struct context *c, uint32_t layer, uint64_t end);
// Instead: of what was reserved, nothing counts, and blocks that no layer has rows in are given back. position: of the layer's first row that
// may have been written; rows from there on that an earlier append had left, uncommitted, are gone. UINT64_MAX: none was written.
void context_append_failed(struct store *s, struct context *c, uint32_t layer, uint64_t position);
uint64_t context_rows(const struct context *c, uint32_t layer); // appended so far
// Private memory of the layer above, kept with the context and released with it. NULL until set. Only the writer side's job
// touches it.
void *context_private(const struct context *c);
// Replaces, and releases, what was there.
void context_private_set(struct context *c, void *data, void (*release)(void *data));
// More of them, which any job may read at any time; each is set once (false: somebody was faster, and `data` stays the caller's).
enum companion { COMPANION_RATIO, COMPANION_HEADS, COMPANION_ASKED, COMPANIONS };
void *context_companion(const struct context *c, enum companion which);
bool context_companion_set(struct context *c, enum companion which, void *data, void (*release)(void *data));
// Commits tokens [position, position + count): every global layer must hold them (MPIG_ERANGE names the layer in why). Re-committing
// the same position with the same ids is success.
int context_commit(struct store *s, struct context *c, uint64_t position, uint64_t count, const uint32_t *tokens, char *why);
// Back to `position` tokens. MPIG_EAGAIN: done for all who look from now on, but readers from before are still inside the rows that
// are to be overwritten; nothing can be reserved until the same call has answered 0.
int context_truncate(struct store *s, struct context *c, uint64_t position, char *why);
// Token ids [begin, begin + n).
void context_tokens(struct store *s, const struct context *c, uint64_t begin, uint64_t n, uint32_t *out);

// ---- sealing: the engine builds, the store publishes -----------------------------------------------------------------
// The open segment's committed rows, to be sealed. rows == 0: nothing to do.
struct seal_plan {
	uint64_t first;    // token position of the segment's first row
	uint32_t rows;     // committed rows of the open segment
	bool needs_params; // the context has no signature parameters: fill mu, balance and bits below
	bool needs_codes;  // codes must be built (rows appended before there were parameters)
	bool needs_tables; // some layer has SimHash tables
	bool needs_upper;  // upper layers are wanted of layers that may have one, over the finished codes
	float *(*mu)(struct seal_plan *, uint32_t strip),
		*(*balance)(struct seal_plan *, uint32_t strip); // [d_k]: to fill if needs_params, else those in force
	uint8_t *(*bits)(struct seal_plan *); // [strips]: MPIG_BITS_AUTO is to be replaced if needs_params; else as in force
	uint8_t *(*codes)(struct seal_plan *, uint32_t strip, uint32_t row, uint16_t **factors, uint32_t *block_row, uint32_t *n);
	void *(*table)(struct seal_plan *, uint32_t strip); // table_bytes(K, L, rows) bytes
	void *(*upper)(struct seal_plan *, uint32_t strip); // sig_upper_bytes(d_pad, bits, rows); NULL: none
	const uint8_t *(*rows_at)(struct seal_plan *, uint32_t strip, uint32_t row, uint32_t *n); // consecutive rows from `row`
	const float *(*frame)(struct seal_plan *, uint32_t strip);
	struct context *context;
	void *private_;
};
// Begins with the earliest unsealed segment whose rows are all committed; the last segment waits while rows beyond the committed ones are
// appended to it. Until context_seal_finish the memory stays, whatever is dropped. Rows can be read, and parameters filled.
int context_seal_begin(struct store *s, struct context *c, struct seal_plan *plan, char *why);
// Then: allocates the index, whose size follows from the widths in the parameters; after that codes and tables can be filled.
// table_bytes(layer, rows) is asked for layers with tables (the index's business, not the store's). On failure nothing was allocated;
// context_seal_finish is still to be called.
int context_seal_room(struct store *s, struct seal_plan *plan, uint64_t (*table_bytes)(const struct layer *, uint32_t rows),
                      char *why);
// And last, once the index is filled: checksums of rows, codes and tables, a part at a time, in any order and by any threads, if nobody
// did, context_seal_finish makes them. How many parts; 0 without memory.
uint32_t context_seal_sums(struct seal_plan *plan);
void context_seal_sum(struct seal_plan *plan, uint32_t part);
// Publishes parameters, generation and sealed length, trims unused tails; or gives everything back.
void context_seal_finish(struct store *s, struct seal_plan *plan, bool publish);
// ---- a new index for what is sealed already ----------------------------------------------------------------------------
// Parameters belong to a context, generations to (segment, parameters). A context that is indexed again gets new parameters, and each of its
// sealed segments a generation beside the one it has; then the context goes over from one to the other, with one store, while readers
// go on with what they began with. A fork keeps its parameters and so the old generations: what both share has two, and a third one is refused.
// What nobody has parameters for any more is freed. Rows appended meanwhile are indexed as before; those that the switch finds without a
// new index, 4,096 at most, are attended exactly until the next time.
//
//   begin -> fill mu, balance, bits [strips] -> { next -> fill codes and tables -> done }* -> switch -> end
//
// One thread at a time for all contexts. All return 0 or a negative status with `why`.
struct reindex;
// MPIG_ENOTSUP: it has no index yet; MPIG_EBUSY: somebody is at it; MPIG_EQUOTA, MPIG_ENOSPC, MPIG_ENOMEM. Keeps a reference.
int reindex_begin(struct store *s, struct context *c, struct reindex **out, char *why);
float *reindex_mu(const struct reindex *x, uint32_t strip), *reindex_balance(const struct reindex *x, uint32_t strip);
uint8_t *reindex_bits(const struct reindex *x); // as layers name them; MPIG_BITS_AUTO is to be replaced
// The next segment without a new generation: 1, and the plan is as one of sealing; 0: there is none. MPIG_EBUSY: it has two others.
int reindex_next(struct reindex *x, uint64_t (*table_bytes)(const struct layer *, uint32_t rows), struct seal_plan *plan,
                 char *why);
void reindex_done(struct reindex *x, struct seal_plan *plan, bool publish); // with a plan from reindex_next
// 0: done. 1: rows came meanwhile, go on with reindex_next. MPIG_EAGAIN: somebody is between an append and its commit; ask again.
int reindex_switch(struct reindex *x, char *why);
void reindex_end(struct reindex *x); // gives back what was not switched to; NULL is nothing

// True when a commit should seal although it was not asked to (no parameters yet and >= 4,096 rows; tables wanted and >= 1,024
// unindexed rows; the segment is full).
bool context_wants_seal(const struct context *c);

#endif
