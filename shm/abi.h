// The records two processes share through a queue: the only ABI of the data path.
//
// A queue is one memfd, created, sized and sealed (SHRINK|GROW|SEAL) by the daemon and passed to the client. A client, or a
// GPU on its behalf, produces submissions; the daemon produces completions. Everything here is distrusted by its reader.
//
//   offset
//   0          +--------------------------------------------------------------+
//              | struct mpig_queue_header (4096 bytes)                        |
//              |   line 0    geometry            daemon writes once           |
//              |   line 1    sq_tail             CLIENT writes   (128 B)      |
//              |   line 2    cq_head, cq_waiting CLIENT writes   (128 B)      |
//              |   line 3    sq_head, sq_flags   daemon writes   (128 B)      |
//              |   line 4    cq_tail             daemon writes   (128 B)      |
//              |   line 5    awake_until, ...    CLIENT writes   (128 B)      |
//   4096       +--------------------------------------------------------------+
//              | submission ring: entries x struct mpig_sqe (64 bytes)        |
//              +--------------------------------------------------------------+  cq_offset
//              | completion ring: entries x struct mpig_cqe (64 bytes)        |
//              +--------------------------------------------------------------+  slots_offset (4096-aligned)
//              | payload slot 0: struct mpig_slot_header (128 B) | payload    |
//              | payload slot 1 ...               slot_count x slot_bytes     |
//              +--------------------------------------------------------------+  region_bytes
//
// Ordering is io_uring's (see ring.h for the named pairs). Only naturally aligned loads and stores are used, never a
// read-modify-write, so that a GPU behind PCIe can be the producer. Reserved bytes must be zero; a nonzero reserved byte
// is refused with MPIG_EPROTO, so that it can be given a meaning later.
#ifndef MPIG_SHM_ABI_H
#define MPIG_SHM_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define MPIG_ABI_VERSION 1u
#define MPIG_QUEUE_MAGIC 0x5147504du // "MPGQ", little-endian
#define MPIG_QUEUE_HEADER_BYTES 4096u
#define MPIG_NO_SLOT UINT32_MAX
#define MPIG_MAX_QUEUE_ENTRIES 4096u
#define MPIG_MAX_SLOT_BYTES (UINT64_C(1) << 30)
#define MPIG_MAX_REGION_BYTES (UINT64_C(4) << 30)
#define MPIG_SLOT_HEADER_BYTES 128u
#define MPIG_PAYLOAD_ALIGN 64u

#define MPIG_MAX_TOKENS (UINT64_C(1) << 31) // tokens of one context
#define MPIG_MAX_LAYERS 512u
#define MPIG_MAX_HEADS 256u // query heads of one layer
#define MPIG_MAX_HEAD_DIM 256u
#define MPIG_MAX_QUERY_TOKENS 4096u // query tokens of one ATTEND

// ---- operations of a queue -------------------------------------------------------------------------------------------
enum mpig_op {
	MPIG_OP_NOP = 0,
	MPIG_OP_ATTEND = 1,   // queries in, (out, LSE, rows, V, A) per head out
	MPIG_OP_APPEND = 2,   // K and V rows of one layer at an absolute position; idempotent
	MPIG_OP_COMMIT = 3,   // all layers hold rows up to begin + count; token ids in the slot; idempotent
	MPIG_OP_TRUNCATE = 4, // back to token position `begin`
	MPIG_OP_READ = 5,     // rows of one layer back, as fp32 K then V
	MPIG_OP_COUNT
};

enum mpig_proposal {
	MPIG_PROPOSAL_DEFAULT = 0, // what the layer's spec says
	MPIG_PROPOSAL_DENSE = 1,
	MPIG_PROPOSAL_SIGNATURE = 2,
	MPIG_PROPOSAL_PAPER = 3,
	MPIG_PROPOSAL_TOPK = 4,
	MPIG_PROPOSAL_UNIFORM = 5,
	MPIG_PROPOSAL_TOPK_ESTIMATED = 6,
	MPIG_PROPOSAL_HEAVY_UNIFORM = 7,
	MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED = 8,
	MPIG_PROPOSAL_WINDOW = 9,
	MPIG_PROPOSAL_CROSSPOLYTOPE = 10,
	MPIG_PROPOSAL_COUNT
};

// What the tables of a layer hash with.
enum mpig_table_hash { MPIG_HASH_SIMHASH = 0, MPIG_HASH_CROSSPOLYTOPE = 1, MPIG_HASH_COUNT };

enum mpig_dtype { MPIG_F32 = 0, MPIG_BF16 = 1, MPIG_F16 = 2, MPIG_I8 = 3, MPIG_DTYPE_COUNT }; // I8: rows only (blocks of 32)

enum mpig_sqe_flags {
	MPIG_SQE_END_RELATIVE = 1u << 0,  // ATTEND, READ: `end` is added to the committed length (so it is <= 0)
	MPIG_SQE_SEED_SEQUENCE = 1u << 1, // ATTEND: seed = seed + the entry's sequence number in its queue (graph replay)
	MPIG_SQE_CAUSAL = 1u << 2,        // ATTEND: query token t sees rows < causal_base + t (slot header)
	MPIG_SQE_SEAL = 1u << 3,          // COMMIT: end of a prefill: seal and index what has been committed
	MPIG_SQE_FLAGS = 0x0f
};

// One submission. Field offsets are frozen by the assertions below.
struct mpig_sqe {
	uint8_t op;         // enum mpig_op
	uint8_t flags;      // enum mpig_sqe_flags
	uint16_t layer;     // ATTEND, APPEND, READ
	uint32_t handle;    // context handle, chosen by the client at open; survives a reconnect
	uint64_t user_data; // returned untouched
	uint32_t slot;      // payload slot or MPIG_NO_SLOT
	uint32_t count;     // ATTEND: query tokens T; APPEND, COMMIT, READ: rows
	uint64_t begin;     // first token of the range (ATTEND, READ), position (APPEND, COMMIT, TRUNCATE)
	int64_t end;        // ATTEND: end of the range, exclusive, absolute or relative; otherwise 0
	uint64_t seed;      // ATTEND
	float budget;       // ATTEND: expected share of rows in (0, 1]; 0 = the layer's default, else by error
	uint8_t proposal;   // enum mpig_proposal
	uint8_t dtype;      // enum mpig_dtype of the payload's q, or K and V
	uint16_t reserved0;
	uint64_t reserved1;
};

// One completion.
struct mpig_cqe {
	uint64_t user_data;
	int32_t status;             // 0 or a negative MPIG_E* code
	uint32_t slot;              // the submission's slot, free for the client again
	uint64_t committed;         // committed tokens of the context when the operation took effect
	uint64_t rows_read;         // ATTEND: rows fetched, all heads (a row wanted by several heads of a group counts once)
	uint64_t bytes_read;        // ATTEND: bytes of rows and index looked at
	uint64_t service_ns;        // time from claim to completion
	uint32_t signature_version; // of the context now; a client's own signatures should carry it
	uint32_t units;             // units of work the request was cut into
	uint64_t sequence;          // number of the submission in its queue, from 0
};

// What an entry has no room for. At the start of a slot; zero where not used.
struct mpig_slot_header {
	uint64_t causal_base;       // ATTEND with MPIG_SQE_CAUSAL
	uint32_t present;           // enum mpig_present: optional parts of the payload
	uint32_t signature_version; // ATTEND with MPIG_HAS_SIGNATURE
	float error_target;         // ATTEND: relative error of the mass (eps), before any share; 0 = none named
	float budget_floor;         // with error_target: least and greatest share of rows; 0 = default
	float budget_cap;
	uint32_t query_count;    // APPEND with MPIG_HAS_QUERIES: recent query tokens R
	uint64_t query_position; // ATTEND: absolute position of query token 0 (ALiBi, random streams)
	float delta;             // ATTEND: verified: a head's merged output may err by more than error_target this often; 0 = no
	uint8_t reserved[84];
};

enum mpig_present {
	MPIG_HAS_WINDOW_LSE = 1u << 0, // ATTEND: LSE of the client's exact part, per token and head
	MPIG_HAS_SIGNATURE = 1u << 1,  // ATTEND: rotated int8 queries and their scales, computed by the client
	MPIG_HAS_QUERIES = 1u << 2,    // APPEND: the layer's recent queries follow V (they set the balance)
	MPIG_HAS_WINDOW_OUT = 1u << 3, // ATTEND: output of the client's exact part, per token and head; with a window LSE
	MPIG_PRESENT_FLAGS = 0x0f
};

enum mpig_sq_flags {
	MPIG_SQ_NEED_WAKEUP = 1u << 0, // the worker sleeps: write the queue's eventfd after publishing the tail
	MPIG_SQ_CLOSED = 1u << 1       // the daemon no longer serves this queue
};

// Compatible additions, in the header's `features`: what this daemon looks at.
enum mpig_features {
	MPIG_FEATURE_AWAKE = 1u << 0, // awake_until and sq_silent
	MPIG_FEATURE_BRIEF = 1u << 1, // cq_brief
	MPIG_FEATURE_HEADS = 1u << 2, // answers of an ATTEND can be taken head by head: layout of a payload
	MPIG_FEATURES = 0x07
};

// cq_brief of a completion: which request it answers, by the lower 31 bits of its user_data, and whether the answer is 0. Never 0 for one
// that is.
#define MPIG_CQ_BRIEF(user_data, status) ((uint32_t)(user_data) << 1 | ((status) == 0))

struct mpig_queue_header {
	// line 0: the daemon, before the fd is passed (and again when it adopts a region)
	uint32_t magic;
	uint32_t abi_version;
	uint64_t features; // enum mpig_features
	uint64_t region_bytes;
	uint32_t entries; // of each ring, a power of two
	uint32_t slot_count;
	uint64_t slot_bytes; // header included, a multiple of 4096
	uint64_t sq_offset;
	uint64_t cq_offset;
	uint64_t slots_offset;
	uint64_t epoch; // the daemon's start, to tell one daemon from the next
	uint8_t reserved0[56];
	// line 1: the client (or its GPU)
	uint32_t sq_tail;
	uint8_t reserved1[124];
	// line 2: the client
	uint32_t cq_head;
	uint32_t cq_waiting; // nonzero: futex-wake cq_tail after a completion
	uint8_t reserved2[120];
	// line 3: the daemon
	uint32_t sq_head;
	uint32_t sq_flags; // enum mpig_sq_flags
	uint8_t reserved3[120];
	// line 4: the daemon
	uint32_t cq_tail;  // also the futex word of a sleeping client
	uint32_t cq_brief; // of the completion before cq_tail: MPIG_CQ_BRIEF. One 64-bit store with cq_tail
	uint8_t reserved4[120];
	// line 5: the client's host, also where a GPU writes lines 1 and 2
	uint64_t awake_until; // CLOCK_MONOTONIC, ns: workers are asked not to sleep until then; the daemon has a limit of its own
	uint32_t sq_silent;   // nonzero: who writes sq_tail cannot wake a sleeping worker; it looks by a timer
	uint8_t reserved5[116];
	uint8_t reserved6[3328];
};

#define MPIG_ASSERT_OFFSET(type, field, offset)                                                                                  \
	static_assert(offsetof(struct type, field) == (offset), "ABI frozen: add a feature bit and use reserved bytes instead")
#define MPIG_ASSERT_SIZE(type, size)                                                                                             \
	static_assert(sizeof(struct type) == (size), "ABI frozen: raise MPIG_ABI_VERSION to change " #type)

MPIG_ASSERT_SIZE(mpig_sqe, 64);
MPIG_ASSERT_OFFSET(mpig_sqe, handle, 4);
MPIG_ASSERT_OFFSET(mpig_sqe, user_data, 8);
MPIG_ASSERT_OFFSET(mpig_sqe, slot, 16);
MPIG_ASSERT_OFFSET(mpig_sqe, begin, 24);
MPIG_ASSERT_OFFSET(mpig_sqe, end, 32);
MPIG_ASSERT_OFFSET(mpig_sqe, seed, 40);
MPIG_ASSERT_OFFSET(mpig_sqe, budget, 48);
MPIG_ASSERT_OFFSET(mpig_sqe, reserved1, 56);
MPIG_ASSERT_SIZE(mpig_cqe, 64);
MPIG_ASSERT_OFFSET(mpig_cqe, status, 8);
MPIG_ASSERT_OFFSET(mpig_cqe, service_ns, 40);
MPIG_ASSERT_OFFSET(mpig_cqe, sequence, 56);
MPIG_ASSERT_SIZE(mpig_slot_header, MPIG_SLOT_HEADER_BYTES);
MPIG_ASSERT_OFFSET(mpig_slot_header, query_position, 32);
MPIG_ASSERT_OFFSET(mpig_slot_header, delta, 40);
MPIG_ASSERT_SIZE(mpig_queue_header, MPIG_QUEUE_HEADER_BYTES);
MPIG_ASSERT_OFFSET(mpig_queue_header, sq_tail, 128);
MPIG_ASSERT_OFFSET(mpig_queue_header, cq_head, 256);
MPIG_ASSERT_OFFSET(mpig_queue_header, sq_head, 384);
MPIG_ASSERT_OFFSET(mpig_queue_header, cq_tail, 512);
MPIG_ASSERT_OFFSET(mpig_queue_header, cq_brief, 516);
MPIG_ASSERT_OFFSET(mpig_queue_header, awake_until, 640);
MPIG_ASSERT_OFFSET(mpig_queue_header, reserved6, 768);

// ---- layout of a payload ---------------------------------------------------------------------------------------------
// Both sides compute it from the layer's spec; every part starts at a multiple of MPIG_PAYLOAD_ALIGN after the slot header.
//
//   ATTEND   q       [T][query heads][d_k]           dtype of the entry
//            signature  [T][query heads][d_pad] int8, then scales [T][query heads] f32     if MPIG_HAS_SIGNATURE
//            window LSE [T][query heads] f32                                               if MPIG_HAS_WINDOW_LSE
//            window out [T][query heads][d_v] f32                                          if MPIG_HAS_WINDOW_OUT
//            out     [T][query heads][d_v] f32       written by the daemon, as are the four below
//            lse, V, A  [T][query heads] f32 each; rows [T][query heads] u32
//            The last element of a head's output is written once, with release, after all else of that head (MPIG_FEATURE_HEADS): who has put
//            something else there, and by an acquire sees that changed, may read the head's answer. Whether the request has gone well only its
//            completion says.
//   APPEND   K       [count][KV heads][d_k], V [count][KV heads][d_v]      dtype of the entry
//            queries [R][query heads][d_k]                                 if MPIG_HAS_QUERIES
//   COMMIT   token ids [count] u32
//   READ     K [count][KV heads][d_k] f32, V [count][KV heads][d_v] f32    written by the daemon

struct mpig_layer_shape {
	uint32_t query_heads, kv_heads, d_k, d_v;
};

struct mpig_payload_layout { // byte offsets from the start of the slot; 0 = absent
	uint64_t q, signature, signature_scale, window_lse, window_out;
	uint64_t out, lse, error_v, error_a, rows;
	uint64_t k, v, queries, tokens;
	uint64_t bytes; // total, slot header included
};

static inline uint64_t mpig_dtype_bytes(uint32_t dtype)
{
	return dtype == MPIG_F32 ? 4 : dtype == MPIG_I8 ? 1 : 2;
}

// The signature's dimension: the next power of two, at least 64.
static inline uint32_t mpig_padded_dim(uint32_t d)
{
	return d <= 64 ? 64 : d <= 128 ? 128 : 256;
}

// Bits of a cross-polytope hash of d dimensions: an index and a sign.
static inline uint32_t mpig_crosspolytope_bits(uint32_t d)
{
	return mpig_padded_dim(d) == 64 ? 7 : mpig_padded_dim(d) == 128 ? 8 : 9;
}

static inline uint64_t mpig_layout_part(uint64_t *cursor, uint64_t bytes)
{
	uint64_t at = *cursor;
	*cursor = (at + bytes + MPIG_PAYLOAD_ALIGN - 1) / MPIG_PAYLOAD_ALIGN * MPIG_PAYLOAD_ALIGN;
	return at;
}

// No overflow: every factor is bounded (T <= 4096, heads <= 256, d <= 256, 4 bytes).
static inline struct mpig_payload_layout mpig_attend_layout(const struct mpig_layer_shape *s, uint32_t t, uint32_t dtype,
                                                            uint32_t present)
{
	struct mpig_payload_layout l = {0};
	uint64_t at = MPIG_SLOT_HEADER_BYTES, heads = (uint64_t)t * s->query_heads;
	l.q = mpig_layout_part(&at, heads * s->d_k * mpig_dtype_bytes(dtype));
	if (present & MPIG_HAS_SIGNATURE) {
		l.signature = mpig_layout_part(&at, heads * mpig_padded_dim(s->d_k));
		l.signature_scale = mpig_layout_part(&at, heads * 4);
	}
	if (present & MPIG_HAS_WINDOW_LSE)
		l.window_lse = mpig_layout_part(&at, heads * 4);
	if (present & MPIG_HAS_WINDOW_OUT)
		l.window_out = mpig_layout_part(&at, heads * s->d_v * 4);
	l.out = mpig_layout_part(&at, heads * s->d_v * 4);
	l.lse = mpig_layout_part(&at, heads * 4);
	l.error_v = mpig_layout_part(&at, heads * 4);
	l.error_a = mpig_layout_part(&at, heads * 4);
	l.rows = mpig_layout_part(&at, heads * 4);
	l.bytes = at;
	return l;
}

static inline struct mpig_payload_layout mpig_append_layout(const struct mpig_layer_shape *s, uint32_t count, uint32_t dtype,
                                                            uint32_t query_count)
{
	struct mpig_payload_layout l = {0};
	uint64_t at = MPIG_SLOT_HEADER_BYTES, rows = (uint64_t)count * s->kv_heads;
	l.k = mpig_layout_part(&at, rows * s->d_k * mpig_dtype_bytes(dtype));
	l.v = mpig_layout_part(&at, rows * s->d_v * mpig_dtype_bytes(dtype));
	if (query_count)
		l.queries = mpig_layout_part(&at, (uint64_t)query_count * s->query_heads * s->d_k * mpig_dtype_bytes(dtype));
	l.bytes = at;
	return l;
}

static inline struct mpig_payload_layout mpig_commit_layout(uint32_t count)
{
	struct mpig_payload_layout l = {0};
	uint64_t at = MPIG_SLOT_HEADER_BYTES;
	l.tokens = mpig_layout_part(&at, (uint64_t)count * 4);
	l.bytes = at;
	return l;
}

static inline struct mpig_payload_layout mpig_read_layout(const struct mpig_layer_shape *s, uint32_t count)
{
	return mpig_append_layout(s, count, MPIG_F32, 0);
}

#endif
