// Queries of live clients, recorded: what a daemon hands to a recorder through shared memory, and what a file of them holds. Both are
// rows of the same records, so that a recorder has little to do but copy.
//
//   ring: a sealed memfd, made by the daemon      file: read and written front to back, so it may be a pipe
//
//   0     +-----------------------------+         0             +--------------------------------------+
//         | struct mpig_trace_ring      |                       | struct mpig_trace_header             |
//   4096  +-----------------------------+                       | layer_count x struct mpig_wire_layer |
//         | records, from tail % bytes  |         header_bytes  +--------------------------------------+
//         | on; none goes over the end: |                       | records QUERY, by `number`           |
//         | a PAD fills what is left    |                       | one record END: a file without it was|
//   end   +-----------------------------+                       | cut short                            |
//                                                               +--------------------------------------+
//
// The ring. The daemon copies the query of an answer into it when the answer is complete, and raises `tail`; the recorder reads,
// and raises `head`. Where there is no room the record is left out and counted: the daemon waits for nobody. Both words count bytes since
// recording began and never wrap. Each side goes by its own copy of the word it owns; a word of the other side that cannot be (more
// than the ring holds, or backwards) ends the recording.
//
// Integers little-endian, reserved bytes zero, records and their parts at multiples of 64 bytes.
#ifndef MPIG_SHM_TRACE_H
#define MPIG_SHM_TRACE_H

#include <assert.h>
#include <stdint.h>

#include "shm/abi.h"
#include "shm/control.h"

#define MPIG_TRACE_MAGIC UINT64_C(0x454341525447504d) // "MPGTRACE"
#define MPIG_TRACE_VERSION 1u
#define MPIG_TRACE_RECORD_MAGIC 0x5247504du // "MPGR"
#define MPIG_TRACE_RING_MIN (UINT64_C(1) << 20)
#define MPIG_TRACE_RING_MAX (UINT64_C(1) << 30)
#define MPIG_TRACE_RECORD_MAX (MPIG_TRACE_RING_MAX / 4) // a record takes a quarter of its ring at most
#define MPIG_TRACE_RECORD_BYTES 256u                    // of its head

enum mpig_trace_kind {
	MPIG_TRACE_QUERY = 1,
	MPIG_TRACE_PAD = 2, // in a ring only: `bytes` to be skipped
	MPIG_TRACE_END = 3, // in a file only
};

enum mpig_trace_ended { // why no more will come
	MPIG_TRACE_GOES_ON = 0,
	MPIG_TRACE_STOPPED = 1,  // by the recorder
	MPIG_TRACE_DROPPED = 2,  // the context is gone
	MPIG_TRACE_SHUTDOWN = 3, // the daemon ends, or has ended
	MPIG_TRACE_BROKEN = 4,   // the ring's words made no sense
	MPIG_TRACE_REVOKED = 5,  // the context's owner or permissions changed
};

// Every record begins like this.
struct mpig_trace_head {
	uint32_t magic;
	uint32_t kind;     // enum mpig_trace_kind
	uint64_t bytes;    // of the record, this head and what follows it included
	uint64_t checksum; // in a file: XXH3 of the record's bytes with this field zero; in a ring: zero
};

// One answered ATTEND. Followed by
//   q           [tokens][query heads][d_k]     `dtype`
//   window LSE  [tokens][query heads] f32            if MPIG_HAS_WINDOW_LSE
//   window out  [tokens][query heads][d_v] f32       if MPIG_HAS_WINDOW_OUT
struct mpig_trace_record {
	struct mpig_trace_head head;
	uint64_t number;     // of the answer since recording began, from 0, lost ones counted: a gap tells how many are missing
	uint64_t taken_ns;   // since recording began: when the daemon took the request; a request in progress then has 0
	uint64_t service_ns; // the answer's, as the three below
	uint64_t rows_read, bytes_read;
	uint64_t committed;      // tokens of the context then
	uint64_t begin, end;     // the rows it was about, as token positions
	uint64_t causal_base;    // with MPIG_SQE_CAUSAL in flags
	uint64_t query_position; // as asked, as all that follows down to delta
	uint64_t seed;           // the one used: MPIG_SQE_SEED_SEQUENCE is in it
	uint64_t client;         // number of the connection it came over
	uint32_t queue;          // number of its queue
	uint32_t tokens;         // T query tokens
	float budget, error_target, budget_floor, budget_cap, delta;
	uint32_t
		present; // enum mpig_present: WINDOW_LSE, WINDOW_OUT: follow; SIGNATURE: the request brought one, which is not kept
	uint16_t layer;
	uint8_t proposal;    // 0: the layer's default
	uint8_t dtype;       // of q here: MPIG_F32, or MPIG_BF16 where nothing is lost by it; in a ring MPIG_F32
	uint8_t asked_dtype; // of q in the request
	uint8_t flags;       // MPIG_SQE_CAUSAL or 0
	uint16_t reserved0;
	uint32_t signature_version; // of the context then
	uint32_t units;             // of work that the answer was cut into
	uint8_t reserved[84];
};
static_assert(sizeof(struct mpig_trace_record) == MPIG_TRACE_RECORD_BYTES, "format frozen: make another version");

// What was asked, as members of magicpig.h's struct mpig_attend, for an initialiser: all but the addresses q, window_lse and window_out.
#define MPIG_TRACE_ASKED(r)                                                                                                      \
	.layer = (r)->layer, .proposal = (r)->proposal, .dtype = (r)->dtype, .tokens = (r)->tokens, .begin = (r)->begin,         \
	.end = (int64_t)(r)->end, .budget = (r)->budget, .seed = (r)->seed, .query_position = (r)->query_position,               \
	.causal = (r)->flags & MPIG_SQE_CAUSAL ? 1 : 0, .causal_base = (r)->causal_base, .error_target = (r)->error_target,      \
	.budget_floor = (r)->budget_floor, .budget_cap = (r)->budget_cap, .delta = (r)->delta

struct mpig_trace_end { // kind END
	struct mpig_trace_head head;
	uint64_t file_bytes;  // this record included
	uint64_t records;     // QUERY records in the file
	uint64_t answers;     // that there were while it was recorded
	uint64_t lost;        // of these, for which the ring had no room
	uint64_t too_long;    // of these, whose records were larger than a quarter of the ring
	uint64_t duration_ns; // of recording
	uint32_t ended;       // enum mpig_trace_ended
	uint32_t reserved0;
	uint8_t reserved[48];
};
static_assert(sizeof(struct mpig_trace_end) == 128, "format frozen: make another version");

struct mpig_trace_header { // of a file, followed by the layers of the context, defaults resolved
	uint64_t magic;
	uint32_t version, header_bytes; // header_bytes: with the layers
	uint64_t checksum;              // XXH3 of header_bytes bytes with this field zero
	uint64_t recorded_ns;           // CLOCK_REALTIME when recording began
	uint64_t context_id, context_seed;
	uint64_t committed; // tokens when recording began
	uint32_t layer_count, signature_version;
	char name[MPIG_NAME_BYTES]; // of the context
	uint8_t fingerprint[64];
	char release[32]; // of the daemon
	uint8_t reserved[32];
};
static_assert(sizeof(struct mpig_trace_header) == 320, "format frozen: make another version");

struct mpig_trace_ring { // at 0 of the region
	// line 0: the daemon, before the descriptor is passed
	uint64_t magic;
	uint32_t version, reserved0;
	uint64_t region_bytes; // 4096 + ring_bytes
	uint64_t ring_bytes;   // a multiple of 4096
	uint64_t began_ns;     // CLOCK_REALTIME
	uint64_t context_id;
	uint8_t reserved1[80];
	// line 1: the daemon
	uint64_t tail;
	uint64_t answers, lost, too_long; // as in struct mpig_trace_end; stored before `tail` is
	uint32_t ended;                   // enum mpig_trace_ended
	uint32_t reserved2;
	uint8_t reserved3[88];
	// line 2: the recorder
	uint64_t head;
	uint8_t reserved4[120];
	uint8_t reserved5[3712];
};
static_assert(sizeof(struct mpig_trace_ring) == 4096, "format frozen: make another version");
MPIG_ASSERT_OFFSET(mpig_trace_ring, tail, 128);
MPIG_ASSERT_OFFSET(mpig_trace_ring, head, 256);
MPIG_ASSERT_OFFSET(mpig_trace_record, number, 24);
MPIG_ASSERT_OFFSET(mpig_trace_record, queue, 120);
MPIG_ASSERT_OFFSET(mpig_trace_record, layer, 152);

struct mpig_trace_layout { // byte offsets from the start of a QUERY record; 0 = absent
	uint64_t q, window_lse, window_out;
	uint64_t bytes; // of the record
};

// No overflow: every factor is bounded (T <= 4096, heads <= 256, d <= 256, 4 bytes).
static inline struct mpig_trace_layout mpig_trace_layout(const struct mpig_layer_shape *s, uint32_t t, uint32_t dtype,
                                                         uint32_t present)
{
	struct mpig_trace_layout l = {0};
	uint64_t at = MPIG_TRACE_RECORD_BYTES, heads = (uint64_t)t * s->query_heads;
	l.q = mpig_layout_part(&at, heads * s->d_k * mpig_dtype_bytes(dtype));
	if (present & MPIG_HAS_WINDOW_LSE)
		l.window_lse = mpig_layout_part(&at, heads * 4);
	if (present & MPIG_HAS_WINDOW_OUT)
		l.window_out = mpig_layout_part(&at, heads * s->d_v * 4);
	l.bytes = at;
	return l;
}

#endif
