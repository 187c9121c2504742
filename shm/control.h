// Control messages: one SOCK_SEQPACKET datagram each way. Requests and replies are fixed-size records behind a common
// header; a reply carries its request's `tag`. File descriptors travel by SCM_RIGHTS, at most two per message.
// Identity is the kernel's (SO_PEERCRED), never a field. All integers little-endian; reserved bytes zero.
//
//   client                              daemon
//   HELLO        ------------------->   versions, epoch, instance, limits
//   QUEUE_CREATE [old memfd]  ------>   geometry + memfd, eventfd (SCM_RIGHTS)
//   CREATE / OPEN / OPEN_PREFIX ---->   context record, bound to the client's handle
//   CLOSE, DROP, LIST, SHOW, FORK, CHMOD, STATUS, PING, CONFIG_GET, VERIFY, HEADS, REINDEX, DISK, SAVED, EVICT, POLICY,
//   SIGNATURE, STREAM, CLIENTS, KILL, QUOTA, DRAIN, TRACE, PROFILE, QUERIES, CONFIGURE
#ifndef MPIG_SHM_CONTROL_H
#define MPIG_SHM_CONTROL_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "shm/abi.h"

#define MPIG_CONTROL_MAGIC 0x4347504du // "MPGC"
#define MPIG_CONTROL_VERSION 1u
#define MPIG_CONTROL_MAX_BYTES 65536u
#define MPIG_NAME_BYTES 128u // including the terminating zero
#define MPIG_TEXT_BYTES 256u
#define MPIG_LIST_PAGE 160u        // contexts of one answer to LIST or SAVED, at most
#define MPIG_LIST_PAGE_UNASKED 64u // of one to a client that does not say how many it takes, as clients once did not
#define MPIG_HEADS_PAGE 512u
#define MPIG_SIGNATURE_PAGE 48u
#define MPIG_CLIENTS_PAGE 256u
#define MPIG_COMMAND_BYTES 32u
#define MPIG_QUERIES_PAGE 16u
#define MPIG_PROFILE_BYTES 65024u // of a profile's text
#define MPIG_MAX_HANDLES 4096u    // per connection

enum mpig_control_op {
	MPIG_CTL_HELLO = 1,
	MPIG_CTL_PING = 2,
	MPIG_CTL_QUEUE_CREATE = 3, // optional fd: the client's old region, to be adopted
	MPIG_CTL_QUEUE_DESTROY = 4,
	MPIG_CTL_CREATE = 5, // body followed by layer_count x struct mpig_wire_layer, then layer_count * alibi slopes if any
	MPIG_CTL_OPEN = 6,
	MPIG_CTL_OPEN_PREFIX = 7, // fd: a file of u32 token ids (read with pread, never mapped)
	MPIG_CTL_CLOSE = 8,
	MPIG_CTL_DROP = 9,
	MPIG_CTL_LIST = 10,
	MPIG_CTL_SHOW = 11, // reply followed by layer_count x struct mpig_wire_layer
	MPIG_CTL_FORK = 12,
	MPIG_CTL_CHMOD = 13,
	MPIG_CTL_STATUS = 14,
	MPIG_CTL_CONFIG_GET = 15,
	MPIG_CTL_VERIFY = 16,    // one part of a context a message, until the reply has more = 0
	MPIG_CTL_HEADS = 17,     // a page of KV heads a message
	MPIG_CTL_DISK = 18,      // begins work on disk, and looks at it again until it is done
	MPIG_CTL_SAVED = 19,     // a page of what is on disk a message
	MPIG_CTL_EVICT = 20,     // a context that is on disk leaves memory
	MPIG_CTL_POLICY = 21,    // how long a context is kept, and where
	MPIG_CTL_REINDEX = 23,   // a context gets a new index, while it is served; asked again until it is done
	MPIG_CTL_SIGNATURE = 22, // what a client needs to compute signatures of a layer: a page of KV heads a message
	MPIG_CTL_STREAM = 24,    // a context leaves, or comes, as a stream of bytes; the reply brings the socket for it
	MPIG_CTL_CLIENTS = 32,   // a page of connections a message
	MPIG_CTL_KILL = 33,      // a connection is closed
	MPIG_CTL_QUOTA = 34,     // what a user holds, and may hold
	MPIG_CTL_DRAIN = 35,     // nothing more is opened, or is again; or only how that stands
	MPIG_CTL_TRACE = 36,     // queries of a context are recorded from now on, or no longer
	MPIG_CTL_PROFILE = 40,   // how contexts of a fingerprint are answered by default; followed by a text, as is the reply
	MPIG_CTL_QUERIES = 41,   // what a strip was asked of late
	MPIG_CTL_CONFIGURE = 48, // an option is set, or the configuration read again
	MPIG_CTL_COUNT
};

struct mpig_control_header {
	uint32_t magic;
	uint16_t version;
	uint16_t op;
	uint32_t size; // of the whole datagram
	uint32_t tag;
	int32_t status; // replies; 0 in requests
	uint32_t reserved;
};

enum mpig_layer_kind { MPIG_LAYER_GLOBAL = 0, MPIG_LAYER_SLIDING = 1, MPIG_LAYER_CHUNKED = 2, MPIG_LAYER_KIND_COUNT };

// One layer of a spec. Layers that are not GLOBAL store no rows; they are listed so that layer numbers are the model's.
struct mpig_wire_layer {
	uint8_t kind;             // enum mpig_layer_kind
	uint8_t row_dtype;        // enum mpig_dtype: BF16, F16 or I8
	uint8_t default_proposal; // enum mpig_proposal
	uint8_t signature_bits;   // 0 (no signature index), 1, 2, 4, or MPIG_BITS_AUTO: chosen for each KV head
	uint16_t query_heads;
	uint16_t kv_heads;
	uint16_t d_k;
	uint16_t d_v;
	uint16_t paper_k;         // 0 (no tables) or 1..16; cross-polytope: 0 or log2(2 d_pad), which it becomes
	uint16_t paper_l;         // tables: 0 or 2..512
	float scale;              // logits are scale * q.k; 0 = 1/sqrt(d_k)
	float softcap;            // 0 = none; cap * tanh(s / cap)
	float default_budget;     // share of rows; 0 = the daemon's way: by error
	float alibi_slope_base;   // 0 = none; slope of head h = base^(h+1) (ALiBi, section 3)
	uint32_t window;          // SLIDING, CHUNKED: its width (informative)
	uint8_t table_hash;       // enum mpig_table_hash
	uint8_t table_balance;    // 1: the tables hash (k - mu) * a and q / a, a as for signatures; 0: k - mu and q
	uint16_t signature_bytes; // AUTO: at most so many bytes of codes per row, mean over the KV heads; 0 = no limit
	uint8_t reserved[24];
};
static_assert(sizeof(struct mpig_wire_layer) == 64, "wire format frozen");
#define MPIG_BITS_AUTO 255
#define MPIG_TABLES_AUTO 65535 // as paper_l, with paper_k 0: K and L of the profile, else as published
static inline bool mpig_bits_fixed(uint32_t bits)
{
	return bits == 1 || bits == 2 || bits == 4;
}
// Bytes of one row of a signature index: its code and a factor.
static inline uint32_t mpig_code_bytes(uint32_t d_k, uint32_t bits)
{
	return mpig_padded_dim(d_k) * bits / 8 + 2;
}

enum mpig_open_flags {
	MPIG_OPEN_WRITE = 1u << 0, // take the writer lease
	MPIG_OPEN_FORK = 1u << 1,  // OPEN_PREFIX: fork at the matched length under a new name
	MPIG_OPEN_LOAD = 1u << 2,  // bring it back if it is on disk; MPIG_EAGAIN while that goes on: ask again
	MPIG_OPEN_FLAGS = 0x07
};

struct mpig_ctl_hello { // request and reply
	struct mpig_control_header h;
	uint32_t abi_version;
	uint32_t pid_reserved; // zero
	uint64_t epoch;        // reply
	char instance[64];     // reply
	char version[32];      // reply: the daemon's version
	uint64_t max_slot_bytes, max_region_bytes;
	uint32_t max_entries, workers;
	uint32_t list_page; // reply: what LIST and SAVED may be asked for at once; 0: a daemon that takes no number
	uint8_t reserved[60];
};

struct mpig_ctl_queue_create { // request and reply (reply: values in force; fds: region, eventfd)
	struct mpig_control_header h;
	uint32_t entries, slot_count;
	uint64_t slot_bytes;
	uint64_t region_bytes; // reply
	uint32_t queue_id;     // reply
	uint32_t adopt;        // request: an old region is attached
	uint8_t reserved[32];
};

// The queue's region is given up with it: its pages are removed, in whichever mapping, so that a GPU that has registered them must be detached
// before. MPIG_ALL_QUEUES: all of the connection's, before it is closed; else the daemon keeps their regions for a while, for a client that offers them again.
#define MPIG_ALL_QUEUES UINT32_MAX
struct mpig_ctl_queue_destroy {
	struct mpig_control_header h;
	uint32_t queue_id;
	uint32_t reserved;
};

enum mpig_persist {                // when a context is saved unasked
	MPIG_PERSIST_DEFAULT = 0,  // as the daemon is configured (disk.persist)
	MPIG_PERSIST_NONE = 1,     // never
	MPIG_PERSIST_SHUTDOWN = 2, // at a clean stop
	MPIG_PERSIST_IDLE = 3,     // also when nobody has used it for idle_s
	MPIG_PERSIST_COMMIT = 4,   // also soon after each commit
	MPIG_PERSIST_COUNT
};
enum mpig_policy_flags {
	MPIG_POLICY_ERASE = 1u << 0, // at the end of its time it is erased from disk, too
	MPIG_POLICY_FLAGS = 0x01
};
struct mpig_wire_policy { // of a context: what its owner wants to become of it. All zero: as the daemon is configured
	uint64_t
		pinned_until_ns; // CLOCK_REALTIME: it does not leave memory by itself before; 0 = it may; UINT64_MAX = never does
	uint32_t persist;        // enum mpig_persist
	uint32_t idle_s;         // IDLE: seconds; 0 = disk.idle
	uint32_t ttl_s;          // leaves memory when unused for so long; 0 = never
	uint32_t flags;          // enum mpig_policy_flags
};
static_assert(sizeof(struct mpig_wire_policy) == 24, "wire format, pool and files frozen");

struct mpig_ctl_create {
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	char fingerprint[64]; // model + adapters + tokenizer + RoPE + multimodal inputs, any bytes (a hash)
	uint32_t handle;
	uint32_t mode; // permission bits, 0 = 0600
	uint32_t layer_count;
	uint32_t flags;
	uint64_t seed;            // of rotations and hash directions; 0 = chosen by the daemon
	uint64_t expected_tokens; // 0 = unknown; checked against quota and pool before anything is built
	struct mpig_wire_policy policy;
	uint8_t reserved[8];
};

struct mpig_ctl_open { // OPEN, SHOW (handle ignored), DROP, EVICT, FORK (new_name), CHMOD, CLOSE (handle only)
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	char new_name[MPIG_NAME_BYTES]; // FORK; OPEN_PREFIX with MPIG_OPEN_FORK
	char fingerprint[64];           // OPEN, OPEN_PREFIX: must match if not all zero
	uint32_t handle;
	uint32_t flags;          // enum mpig_open_flags
	uint64_t tokens;         // FORK: at this token; OPEN_PREFIX: token count in the fd
	uint64_t min_tokens;     // OPEN_PREFIX: least useful match
	uint32_t mode, uid, gid; // CHMOD: mode; uid, gid = UINT32_MAX: unchanged
	uint32_t reserved0;
	uint8_t reserved[32];
};

enum mpig_context_flags {
	MPIG_CONTEXT_QUARANTINED = 1u << 0, // damaged: listed and dropped, nothing else
	MPIG_CONTEXT_SAVED = 1u << 1,       // all that is committed is on disk
	MPIG_CONTEXT_PINNED = 1u << 2,      // never leaves memory by itself
	MPIG_CONTEXT_RECORDED = 1u << 3,    // its owner records the queries that are asked of it
};

enum mpig_profile_of { // the profile that a context's answers go by
	MPIG_PROFILE_NONE = 0,
	MPIG_PROFILE_OWNER = 1,  // its owner's
	MPIG_PROFILE_COMMON = 2, // that of all users who have none
};

// A context as others see it.
struct mpig_wire_context {
	char name[MPIG_NAME_BYTES];
	char fingerprint[64];
	uint64_t id;
	uint64_t committed;                               // tokens
	uint64_t indexed;                                 // tokens with a sealed index
	uint64_t rows_bytes, index_bytes, metadata_bytes; // held in the pool; shared segments counted in full
	uint64_t shared_bytes;                            // of these, in segments other contexts reference too
	uint64_t created_ns, used_ns;                     // CLOCK_REALTIME
	uint64_t parent_id, fork_tokens;
	uint64_t matched; // OPEN_PREFIX: tokens of the longest common prefix
	uint64_t seed;
	uint32_t uid, gid, mode;
	uint32_t layer_count, global_layers, segments;
	uint32_t signature_version; // 0 = no signature parameters yet
	uint32_t readers;           // connections that have it open
	uint32_t writer_pid;        // 0 = no lease
	uint32_t handle;
	uint32_t flags;   // enum mpig_context_flags
	uint32_t profile; // enum mpig_profile_of
	struct mpig_wire_policy policy;
	uint8_t reserved[32];
};

struct mpig_ctl_context_reply { // CREATE, OPEN, OPEN_PREFIX, FORK, SHOW
	struct mpig_control_header h;
	struct mpig_wire_context context;
};

// The daemon compares a part of a context (a block of rows or a table of a sealed segment; the parameters) with its checksum, and keeps nothing
// between messages: the next request carries what the reply said.
struct mpig_ctl_verify { // request and reply
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t segment, part;      // 0, 0 to begin
	uint64_t sum;                // of the tables so far
	uint64_t bytes;              // reply: that were read
	uint32_t checked, unchecked; // reply: parts with a checksum, and without one (open segments have none)
	uint32_t damaged;            // reply: parts that differ from theirs
	uint32_t more;               // reply: 0 = that was all
	uint8_t reserved[32];
};

struct mpig_ctl_reindex { // request and reply
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint64_t job;               // 0 to begin; then what the reply said
	uint32_t state;             // reply: 0 waiting, 1 running, 2 done
	uint32_t signature_version; // reply, when done
	uint64_t done, total;       // reply: rows
	uint8_t reserved[32];
};
#define MPIG_REINDEX_DONE 2u

// What sampled answers showed about one KV head of a global layer, and how it is indexed.
struct mpig_wire_head {
	uint32_t layer, kv_head;
	uint32_t signature_bits;    // of its codes; 0 = no signature index, MPIG_BITS_AUTO: not chosen yet
	uint32_t signature_version; // 0 = none yet
	uint64_t samples;           // answers looked at since the daemon began; 0: what follows is 0
	uint64_t rows;              // the figures are of, in the last of them
	float noise;                // root mean square of (estimated - true) logit
	float n_eff;                // effective number of rows, (sum w)^2 / sum w^2, by estimates; a mean, as are the next two
	float mass_1, mass_5;       // share of the mass in the largest 1 % and 5 % of the rows, by estimates
	float drawn;                // rows an answer draws, those that are certain left out; a mean
	uint32_t best_bits;         // signature_bits at which answers of the same error read least; 0 = not known
	uint8_t reserved[8];
};
static_assert(sizeof(struct mpig_wire_head) == 64, "wire format frozen");

struct mpig_ctl_heads { // request and reply; the reply is followed by count x struct mpig_wire_head
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t first; // in the order of layers and KV heads, 0 to begin
	uint32_t count; // reply: that follow
	uint32_t total; // reply: of the context
	uint32_t reserved0;
	uint8_t reserved[32];
};

// What turns a query into its signature: x_j = q_j / balance_j of the query's KV head, then three rounds of signs and butterflies.
struct mpig_ctl_signature { // request and reply; the reply is followed by count x d_k floats: balances
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t layer;
	uint32_t first;    // KV head, 0 to begin
	uint32_t count;    // reply: KV heads that follow, at most MPIG_SIGNATURE_PAGE; 0 if version is 0
	uint32_t kv_heads; // reply: of the layer, as the four below
	uint32_t version;  // reply: of all that is said here; 0 = none yet (nothing was sealed)
	uint32_t bits, d_k, d_pad;
	uint8_t signs[96]; // reply: [3][d_pad], bit j % 8 of byte j / 8 set: -1
	uint8_t reserved[32];
};

enum mpig_policy_set { MPIG_SET_PERSIST = 1u << 0, MPIG_SET_PIN = 1u << 1, MPIG_SET_TTL = 1u << 2, MPIG_SET_ALL = 0x07 };

struct mpig_ctl_policy { // request and reply (reply: the policy in force)
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t set; // enum mpig_policy_set: which parts of the policy are to be changed
	uint32_t reserved0;
	struct mpig_wire_policy policy; // fields of parts that are not set are zero
	uint8_t reserved[32];
};

enum mpig_disk_work {
	MPIG_DISK_SAVE = 1,
	MPIG_DISK_LOAD = 2,
	MPIG_DISK_CHECK = 3,
	MPIG_DISK_ERASE = 4,
	MPIG_DISK_GC = 5,
	MPIG_DISK_WORKS
};
enum mpig_disk_state { MPIG_DISK_WAITING = 0, MPIG_DISK_RUNNING = 1, MPIG_DISK_DONE = 2 };

// Work on disk takes longer than a request may: it is begun with job = 0, and looked at with the job of the reply until `state` is
// MPIG_DISK_DONE or the answer is an error, which is the work's.
struct mpig_ctl_disk { // request and reply
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t work;  // enum mpig_disk_work
	uint32_t state; // reply: enum mpig_disk_state
	uint64_t job;
	uint64_t done, total;          // reply: bytes of the work
	uint64_t tokens, bytes, moved; // reply, when done: of the context; of its files; that were written or read now
	uint32_t segments, shared;     // reply, when done: of the context; that were there already
	uint32_t dry;                  // GC, request: 1 = only count
	uint32_t damaged_days;         // GC, request: damaged contexts put aside longer ago go, too; UINT32_MAX = none do
	uint32_t leftovers,
		orphans;  // GC, reply, when done: files of cut-off saves; segment files that no context had; `bytes` are free
	uint32_t damaged; // GC, reply, when done: contexts
	uint8_t reserved[20];
};

enum mpig_stream_way { MPIG_STREAM_EXPORT = 1, MPIG_STREAM_IMPORT = 2 };

// The reply carries a stream socket, on which what shm/archive.h says comes, or is expected and then answered. The client moves the bytes
// to or from wherever it likes; a client that moves nothing for 30 seconds is given up.
struct mpig_ctl_stream { // request and reply
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES]; // EXPORT: what the caller may read; IMPORT: "" for the name it had
	uint32_t way;               // enum mpig_stream_way
	uint32_t reserved0;
	uint8_t reserved[32];
};

struct mpig_wire_saved { // a context on disk
	char name[MPIG_NAME_BYTES];
	char fingerprint[64];
	uint64_t committed, bytes, saved_ns;
	uint32_t uid, gid, mode, reserved0;
	struct mpig_wire_policy policy; // as it was saved
};
static_assert(sizeof(struct mpig_wire_saved) == 256, "wire format frozen");

struct mpig_ctl_saved { // request and reply; the reply is followed by count x struct mpig_wire_saved, by name
	struct mpig_control_header h;
	char after[MPIG_NAME_BYTES]; // the names after this one; "" to begin
	uint32_t count;              // request: how many at most, 0 = MPIG_LIST_PAGE_UNASKED; reply: that follow
	uint32_t more;               // reply: 0 = those were all
	uint8_t reserved[32];
};

struct mpig_ctl_list {
	struct mpig_control_header h;
	uint64_t cursor; // 0 to begin; the reply's cursor to go on; 0 in a reply = end
	uint32_t count;  // request: how many at most, 0 = MPIG_LIST_PAGE_UNASKED; reply: contexts that follow
	uint32_t reserved;
};

struct mpig_ctl_status_reply {
	struct mpig_control_header h;
	uint64_t epoch, uptime_ns;
	uint64_t pool_bytes, pool_used, pool_metadata;
	uint64_t contexts, clients, queues;
	uint64_t attends, appended_rows, commits, rows_read, bytes_read, errors;
	uint64_t quota_bytes, quota_used; // of the caller's uid; 0 = unlimited
	uint32_t workers, pid;
	char version[32], instance[64], kernels[64], io_backend[16];
	char pool_dir[MPIG_TEXT_BYTES], config_file[MPIG_TEXT_BYTES], stats_file[MPIG_TEXT_BYTES];
	uint32_t drained; // 1: no queue and no context is opened
	uint8_t reserved[124];
};

enum mpig_client_flags {
	MPIG_CLIENT_COUNTED = 1u << 0, // it has a place in the statistics; otherwise its counters are 0
	MPIG_CLIENT_SELF = 1u << 1,    // the connection that asks
};

// A connection. Users see their own; root and the user the daemon runs as see all.
struct mpig_wire_client {
	uint64_t id, connected_ns; // CLOCK_REALTIME
	uint32_t uid, gid, pid, flags;
	uint32_t queues, handles, leases, in_flight;
	uint64_t region_bytes; // of its queues
	uint64_t requests, attends, errors, rows_read, bytes_read, appended_rows, service_ns;
	char command[MPIG_COMMAND_BYTES]; // what its process called itself when it connected
	uint8_t reserved[48];
};
static_assert(sizeof(struct mpig_wire_client) == 192, "wire format frozen");

struct mpig_ctl_clients { // request and reply; the reply is followed by count x struct mpig_wire_client, by descending id
	struct mpig_control_header h;
	uint64_t before;      // the ids below this one; 0 to begin
	uint32_t count, more; // reply: that follow; 0 = those were all
	uint8_t reserved[32];
};

struct mpig_ctl_kill { // own connections; root and the daemon's user: all
	struct mpig_control_header h;
	uint64_t id;
	uint8_t reserved[32];
};

struct mpig_ctl_quota { // request and reply; own uid and own groups; root and the daemon's user: all
	struct mpig_control_header h;
	uint32_t uid;                // UINT32_MAX in a request: the caller's
	uint32_t group;              // 1: `uid` is the number of a group; UINT32_MAX: the caller's first
	uint64_t bytes, bytes_limit; // reply, as all that follows; a limit of 0: unlimited
	uint64_t contexts, contexts_limit;
	uint64_t clients, clients_limit;
	uint64_t queues, queues_limit;
	uint64_t region_bytes, region_bytes_limit; // of a group: no limit
	uint64_t requests_limit;                   // a second
	uint8_t reserved[56];
};

enum mpig_drain_action { MPIG_DRAIN_LOOK = 0, MPIG_DRAIN_BEGIN = 1, MPIG_DRAIN_END = 2, MPIG_DRAIN_ACTIONS };

struct mpig_ctl_drain { // request and reply; to begin and to end: root and the daemon's user
	struct mpig_control_header h;
	uint32_t action;          // enum mpig_drain_action
	uint32_t drained;         // reply
	uint64_t clients, queues; // reply: that are still there, the asking client among them
	uint8_t reserved[32];
};

enum mpig_trace_action { MPIG_TRACE_START = 1, MPIG_TRACE_STOP = 2 };

// Queries of a context go into a ring (shm/trace.h) from now on; the reply to START carries it. It ends with STOP, with the connection, or as
// the ring says. Owner only, who must be allowed to read the context.
struct mpig_ctl_trace { // request and reply
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t action;       // enum mpig_trace_action
	uint32_t number;       // START, reply; STOP, request: of the recording
	uint64_t ring_bytes;   // START: a multiple of 4096; counted with the regions of the user's queues
	uint64_t region_bytes; // START, reply: as the two below
	uint64_t context_id;
	uint64_t began_ns; // CLOCK_REALTIME
	uint8_t reserved[32];
};

// NEXT: the first, by fingerprint and uid, behind those of the request that the caller may look at.
enum mpig_profile_action {
	MPIG_PROFILE_GET = 0,
	MPIG_PROFILE_SET = 1,
	MPIG_PROFILE_CLEAR = 2,
	MPIG_PROFILE_NEXT = 3,
	MPIG_PROFILE_ACTIONS
};
#define MPIG_PROFILE_ALL (UINT32_MAX - 1) // as a uid: all users who have none for the fingerprint

// A profile belongs to a user and a fingerprint, and holds for that user's contexts of that fingerprint that are opened or made later. The text is
// that of config/profile.h. SET is followed by `length` bytes of it, and so is the reply to GET.
struct mpig_ctl_profile { // request and reply; own uid; administrators: all, and MPIG_PROFILE_ALL, which anybody may GET
	struct mpig_control_header h;
	char fingerprint[64];
	uint32_t action; // enum mpig_profile_action
	uint32_t uid;    // whose; UINT32_MAX: the caller's, and for GET, without one, that of all; in the reply: whose it is
	uint32_t length; // of the text that follows
	uint32_t reserved0;
	uint8_t reserved[32];
};

struct mpig_ctl_queries { // request and reply; the reply is followed by count x d_k floats, the latest first
	struct mpig_control_header h;
	char name[MPIG_NAME_BYTES];
	uint32_t layer, kv_head;
	uint32_t count, d_k; // reply; count <= MPIG_QUERIES_PAGE
	uint8_t reserved[32];
};

struct mpig_ctl_configure { // for administrators; the reply is a text, a line for each option that differs
	struct mpig_control_header h;
	char assignment[MPIG_TEXT_BYTES]; // "section.key=value"; "": read file and command line again
	uint8_t reserved[32];
};

// CONFIG_GET: the reply is the header followed by "section.key = value\n" lines.
struct mpig_ctl_text_reply {
	struct mpig_control_header h;
	uint32_t length;
	uint32_t reserved;
	char text[];
};

// Any failed request may be answered with this instead of its own reply: status and what to do.
struct mpig_ctl_error {
	struct mpig_control_header h; // status < 0
	char text[MPIG_TEXT_BYTES];
};

static_assert(sizeof(struct mpig_control_header) == 24, "wire format frozen");
static_assert(sizeof(struct mpig_wire_context) % 8 == 0, "wire format frozen");
static_assert(sizeof(struct mpig_ctl_list) + MPIG_LIST_PAGE * sizeof(struct mpig_wire_context) <= MPIG_CONTROL_MAX_BYTES,
              "a page of contexts fits one datagram");
static_assert(sizeof(struct mpig_ctl_saved) + MPIG_LIST_PAGE * sizeof(struct mpig_wire_saved) <= MPIG_CONTROL_MAX_BYTES,
              "a page of saved contexts fits one datagram");
static_assert(sizeof(struct mpig_ctl_heads) + MPIG_HEADS_PAGE * sizeof(struct mpig_wire_head) <= MPIG_CONTROL_MAX_BYTES,
              "a page of heads fits one datagram");
static_assert(sizeof(struct mpig_ctl_signature) + MPIG_SIGNATURE_PAGE * 256 * sizeof(float) <= MPIG_CONTROL_MAX_BYTES,
              "a page of balances fits one datagram");
static_assert(sizeof(struct mpig_ctl_clients) + MPIG_CLIENTS_PAGE * sizeof(struct mpig_wire_client) <= MPIG_CONTROL_MAX_BYTES,
              "a page of connections fits one datagram");

#endif
