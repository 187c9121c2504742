/* libmagicpig: the client of magicpigd, the daemon that owns the KV cache of long contexts in host memory.
 *
 * A model process keeps a small exact part of each context (the first few tokens and a recent window) and leaves the rest
 * to the daemon. For every layer of every decode step it submits queries; the daemon samples cached rows with known
 * probabilities, attends, and returns (out, LSE); mpig_merge() joins that with the client's exact part:
 *
 *     mpig_client *c;   mpig_connect(NULL, &c);
 *     mpig_queue  *q;   mpig_queue_create(c, NULL, &q);
 *     mpig_context *x;  mpig_context_create(c, "book", &spec, &x);           // x holds the writer lease
 *     for each layer:   mpig_append(q, x, layer, 0, n, MPIG_F32, k, v, ...);
 *                       mpig_commit(q, x, 0, n, token_ids, MPIG_COMMIT_SEAL);
 *     each step, layer: mpig_attend(q, x, &attend, &result);                  // then mpig_merge with the window
 *
 * Conventions. Every function that can fail returns 0 (or a count) or a negative MPIG_E* code, and mpig_strerror() says
 * what it means; mpig_last_error() adds what, where and what to do. Outputs are written only on success. Option structs
 * begin with their size: set it with MPIG_INIT, and zero means "default" in every other field. Nothing is printed and
 * there are no globals. Arrays are row-major; sizes are in elements unless called bytes; strings are copied.
 *
 * Threads. An mpig_client may be used by any thread (a lock inside guards the control socket). An mpig_queue belongs to
 * one thread at a time; open one per thread. An mpig_context is immutable to the caller and may be used by any thread on
 * any queue of its client. After fork() the child may only call mpig_disconnect-like functions; others return MPIG_EFORK.
 *
 * Reconnect. When the daemon goes away, calls in flight return MPIG_ERETRY. The next call reconnects (up to
 * reconnect_ms), hands its queues' memory to the new daemon, and opens the same contexts again under the same handles; a
 * context the new daemon does not have answers MPIG_ELOST from then on. One that it could not open for want of something
 * (MPIG_ENOMEM, MPIG_ELIMIT, MPIG_EBUSY) answers so, and every call that names it tries again.
 */
#ifndef MAGICPIG_H
#define MAGICPIG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MPIG_VERSION_MAJOR 0
#define MPIG_VERSION_MINOR 1
#define MPIG_VERSION_PATCH 0

#if defined(__GNUC__)
#define MPIG_API __attribute__((visibility("default")))
#else
#define MPIG_API
#endif

/* ---- status ------------------------------------------------------------------------------------------------------- */
#ifndef MPIG_SHM_STATUS_H /* the daemon's tree has the same codes in shm/status.h; a test holds the two lists together */
enum mpig_status {
	MPIG_OK = 0,
	MPIG_EINVAL = -1,     /* invalid argument */
	MPIG_ENOENT = -2,     /* no such context */
	MPIG_EEXIST = -3,     /* a context of this name exists */
	MPIG_EACCES = -4,     /* permission denied */
	MPIG_ENOMEM = -5,     /* out of memory in this process */
	MPIG_ENOSPC = -6,     /* the pool is full */
	MPIG_EQUOTA = -7,     /* over quota */
	MPIG_EBUSY = -8,      /* another client holds the writer lease, or the object is in use */
	MPIG_EPROTO = -9,     /* malformed message or ring entry */
	MPIG_EVERSION = -10,  /* incompatible version */
	MPIG_ERETRY = -11,    /* the daemon went away while this was in flight; try again */
	MPIG_ENODAEMON = -12, /* no daemon answers on the socket */
	MPIG_ETIMEDOUT = -13, /* deadline passed */
	MPIG_EFORK = -14,     /* this handle belongs to the parent process */
	MPIG_ENAN = -15,      /* NaN or infinity in the input */
	MPIG_ERANGE = -16,    /* token range or position outside the context */
	MPIG_EAGAIN = -17,    /* nothing ready, or no room in the queue */
	MPIG_EIO = -18,       /* input/output error */
	MPIG_ELOST = -19,     /* the context did not survive the daemon's restart */
	MPIG_ELEASE = -20,    /* this client does not hold the writer lease */
	MPIG_ENOTSUP = -21,   /* not supported by this daemon or layer */
	MPIG_ESHUTDOWN = -22, /* the daemon is shutting down, or this queue was closed */
	MPIG_ELIMIT = -23,    /* a fixed limit of the daemon is reached */
	MPIG_ECORRUPT = -24   /* stored data failed its checks */
};
#endif

/* Constant text for a status code. Any thread. */
MPIG_API const char *mpig_strerror(int status);
/* "0.1.0". Any thread. */
MPIG_API const char *mpig_version(void);

/* ---- element types, proposals -------------------------------------------------------------------------------------- */
#ifndef MPIG_SHM_ABI_H
enum mpig_dtype { MPIG_F32 = 0, MPIG_BF16 = 1, MPIG_F16 = 2, MPIG_I8 = 3 };
enum mpig_proposal {
	MPIG_PROPOSAL_DEFAULT = 0,                 /* what the layer's spec says */
	MPIG_PROPOSAL_DENSE = 1,                   /* every row: exact */
	MPIG_PROPOSAL_SIGNATURE = 2,               /* balanced codes + threshold PPS sampling */
	MPIG_PROPOSAL_PAPER = 3,                   /* SimHash tables, >= 2 collisions (arXiv 2410.16179) */
	MPIG_PROPOSAL_TOPK = 4,                    /* the largest logits, exactly: a baseline */
	MPIG_PROPOSAL_UNIFORM = 5,                 /* uniform rows: a baseline */
	MPIG_PROPOSAL_TOPK_ESTIMATED = 6,          /* the largest logits as signatures estimate them: a baseline */
	MPIG_PROPOSAL_HEAVY_UNIFORM = 7,           /* half of the rows by TOPK, half uniform over the rest: a baseline */
	MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED = 8, /* ... by TOPK_ESTIMATED */
	MPIG_PROPOSAL_WINDOW = 9,                  /* no rows: LSE -inf, what the client's own part alone gives */
	MPIG_PROPOSAL_CROSSPOLYTOPE = 10           /* PAPER's rule over cross-polytope tables */
};
enum mpig_table_hash { MPIG_HASH_SIMHASH = 0, MPIG_HASH_CROSSPOLYTOPE = 1 }; /* of a layer's tables */
#endif
#ifndef MPIG_SHM_CONTROL_H
enum mpig_layer_kind { MPIG_LAYER_GLOBAL = 0, MPIG_LAYER_SLIDING = 1, MPIG_LAYER_CHUNKED = 2 };
enum mpig_persist {                            /* when a context is saved unasked */
	            MPIG_PERSIST_DEFAULT = 0,  /* as the daemon is configured (disk.persist) */
	            MPIG_PERSIST_NONE = 1,     /* never */
	            MPIG_PERSIST_SHUTDOWN = 2, /* at a clean stop of the daemon */
	            MPIG_PERSIST_IDLE = 3,     /* also when nobody has used it for a while */
	            MPIG_PERSIST_COMMIT = 4    /* also soon after each commit */
};
#endif

#define MPIG_INIT(type)                                                                                                          \
	{                                                                                                                        \
		.size = sizeof(type)                                                                                             \
	}

typedef struct mpig_client mpig_client;
typedef struct mpig_queue mpig_queue;
typedef struct mpig_context mpig_context;

/* ---- connection ---------------------------------------------------------------------------------------------------- */
struct mpig_connect_options {
	size_t size;
	/* NULL: $MAGICPIG_SOCKET, else $XDG_RUNTIME_DIR/magicpig/magicpigd.sock if it exists, else /run/magicpig/magicpigd.sock */
	const char *socket_path;
	int timeout_ms;   /* of a control call; 0 = 5000 */
	int reconnect_ms; /* how long a call tries to reach a restarted daemon; 0 = 3000, -1 = never */
};
/* Connects. *client is owned by the caller until mpig_disconnect. options may be NULL.
 * Errors: MPIG_ENODAEMON (nobody listens), MPIG_EACCES (socket permissions), MPIG_EVERSION, MPIG_ETIMEDOUT. */
MPIG_API int mpig_connect(const struct mpig_connect_options *options, mpig_client **client);
/* Closes the connection, its queues and contexts (the KV stays in the daemon). NULL is allowed. In a forked child it
 * frees the child's copies only. All queues and contexts of the client are invalid afterwards. */
MPIG_API void mpig_disconnect(mpig_client *client);
/* Text of the last failed call of this thread on this client: what, where, what to do. "" if none. Valid until the
 * thread's next call on the client. NULL: of this thread's last failed mpig_connect, which has no client yet. Any thread. */
MPIG_API const char *mpig_last_error(mpig_client *client);
/* Round trip over the control socket. */
MPIG_API int mpig_ping(mpig_client *client);

struct mpig_daemon_status {
	size_t size;
	uint64_t epoch, uptime_ns;
	uint64_t pool_bytes, pool_used, pool_metadata;
	uint64_t contexts, clients, queues;
	uint64_t attends, appended_rows, commits, rows_read, bytes_read, errors;
	uint64_t quota_bytes, quota_used; /* of the caller's uid; 0 = unlimited */
	uint32_t workers, pid;
	char version[32], instance[64], kernels[64], io_backend[16];
	char pool_dir[256], config_file[256], stats_file[256];
	uint32_t drained; /* nonzero: it opens no queue and no context (mpig_daemon_drain) */
};
MPIG_API int mpig_daemon_status(mpig_client *client, struct mpig_daemon_status *status);
/* The daemon's configuration in force as "section.key = value\n" lines, into `text` (at most `bytes`, always
 * terminated). Returns the length that was needed, without the zero. */
MPIG_API int mpig_daemon_config(mpig_client *client, char *text, size_t bytes);
/* Changes the configuration while the daemon runs, for administrators (root, the daemon's user, daemon.admin_group). assignment
 * "section.key=value": one option, until the next reload or restart; NULL or "": reads the daemon's configuration file again. `text` gets
 * a line for each option that differs now, "section.key = new (was old)\n", after "needs a restart: " where it cannot change while the daemon
 * runs. Returns the length that was needed, without the zero. MPIG_EACCES; MPIG_EINVAL: nothing was changed, mpig_last_error says where
 * and why; MPIG_ENOTSUP: this option cannot change while the daemon runs. */
MPIG_API int mpig_daemon_configure(mpig_client *client, const char *assignment, char *text, size_t bytes);

/* ---- looking after a daemon: one's own connections and use; administrators (root, the daemon's user, daemon.admin_group) see all - */
enum mpig_client_info_flags {
	MPIG_CLIENT_INFO_COUNTED = 1, /* its requests are counted one by one: the statistics have places for so many clients */
	MPIG_CLIENT_INFO_SELF = 2     /* the connection that asks */
};
struct mpig_client_info { /* a connection */
	size_t size;
	uint64_t id, connected_ns; /* unique while the daemon runs; CLOCK_REALTIME */
	uint32_t uid, gid, pid, flags;
	uint32_t queues, contexts, leases, in_flight; /* handles it has open, writer leases among them; requests being served */
	uint64_t region_bytes;                        /* of its queues */
	uint64_t requests, attends, errors, rows_read, bytes_read, appended_rows, service_ns; /* 0 if it is not counted */
	char command[32]; /* what its process called itself when it connected */
};
/* Connections, the newest first: fills up to `max` records from *cursor (begin with 0; opaque after that) and advances it; returns how
 * many, 0 at the end. infos[0].size must be set: it is the stride of the array, and is written into every record. */
MPIG_API int mpig_client_list(mpig_client *client, uint64_t *cursor, struct mpig_client_info *infos, int max);
/* Closes a connection: its queues and leases are given back at once, what it did not commit is lost, its contexts stay. Its requests
 * in flight end with MPIG_ERETRY, and it may connect again. Errors: MPIG_ENOENT, MPIG_EACCES (another user's), MPIG_EINVAL (one's own:
 * use mpig_disconnect). */
MPIG_API int mpig_client_kill(mpig_client *client, uint64_t id);
struct mpig_quota { /* what a user, or a group, holds and may hold; a limit of 0: unlimited */
	size_t size;
	uint64_t bytes, bytes_limit; /* of the pool */
	uint64_t contexts, contexts_limit;
	uint64_t clients, clients_limit;
	uint64_t queues, queues_limit;
	uint64_t region_bytes, region_bytes_limit; /* of queues and of recordings, until the daemon has the memory back */
	uint32_t uid;
	uint32_t group;          /* nonzero: uid is the number of a group */
	uint64_t requests_limit; /* a second */
};
/* uid UINT32_MAX: the caller's. Errors: MPIG_EACCES (another user's). */
MPIG_API int mpig_quota_get(mpig_client *client, uint32_t uid, struct mpig_quota *quota);
/* Of all members of a group together: of contexts that have it, and of connections whose first group it is. gid UINT32_MAX: the caller's first.
 * Errors: MPIG_EACCES (a group that the caller is not in). */
MPIG_API int mpig_quota_get_group(mpig_client *client, uint32_t gid, struct mpig_quota *quota);
enum mpig_drain { MPIG_DRAIN_STATE = 0, MPIG_DRAIN_ON = 1, MPIG_DRAIN_OFF = 2 };
struct mpig_drain_state {
	size_t size;
	uint64_t clients, queues; /* that are still there, the caller among the clients */
	uint32_t drained;
};
/* ON: the daemon opens no queue and no context any more (MPIG_ESHUTDOWN), and serves those that are open; OFF: again. Root and the
 * daemon's user; MPIG_DRAIN_STATE: anybody. state may be NULL. Errors: MPIG_EACCES. */
MPIG_API int mpig_daemon_drain(mpig_client *client, int what, struct mpig_drain_state *state);

/* ---- contexts ------------------------------------------------------------------------------------------------------ */
/* signature_bits: the daemon chooses 1, 2 or 4 for each KV head when it first builds an index, by what an answer costs at each: it
 * measures how noisy estimates are for the queries that came with mpig_append. Without queries it takes 2. */
#ifndef MPIG_SHM_CONTROL_H
#define MPIG_BITS_AUTO 255
#define MPIG_TABLES_AUTO                                                                                                         \
	65535 /* as paper_l, with paper_k 0: K and L of the profile, else (10, 150), or 28 to 46 cross-polytope ones by d_k */
#endif
struct mpig_layer { /* zero = default wherever a default is named */
	int kind;   /* enum mpig_layer_kind; only GLOBAL layers store rows */
	int row_dtype; /* MPIG_BF16 (also for 0), MPIG_F16, MPIG_I8 (blocks of 32 values; K less a mean, over a scale per dimension) */
	int query_heads, kv_heads; /* any ratio that divides */
	int d_k, d_v;              /* 64, 80, 96, 128 or 256; d_v 0 = d_k */
	float scale;               /* logits are scale * q.k; 0 = 1/sqrt(d_k) */
	float softcap;             /* 0 = none */
	float alibi_slope_base;    /* 0 = none; slope of head h is base^(h+1) */
	int default_proposal;      /* 0 = SIGNATURE if it has one, else PAPER or CROSSPOLYTOPE by its tables, else DENSE */
	float default_budget;      /* share of rows; 0 = as the daemon is configured: by error */
	int signature_bits;        /* 0 = none, 1, 2, 4, or MPIG_BITS_AUTO */
	int paper_k,
		paper_l; /* tables: 0, 0 = none; k 1..16 bits a hash, l 2..512 tables, or 0, MPIG_TABLES_AUTO; k is 0 for cross-polytope */
	int window;          /* SLIDING, CHUNKED: informative */
	int table_hash;      /* enum mpig_table_hash of the tables */
	int table_balance;   /* 1: tables of balanced keys and queries, as signatures are; 0: of k - mean and q, as published */
	int signature_bytes; /* MPIG_BITS_AUTO: at most so many bytes of codes per row, mean over the KV heads; 0 = no limit */
};
struct mpig_spec {
	size_t size;
	int layer_count; /* 1..512, numbered as in the model */
	const struct mpig_layer *layers;
	const void *fingerprint;  /* what the KV depends on besides token ids: model, adapters, tokenizer, RoPE, inputs */
	size_t fingerprint_bytes; /* hashed to 32 bytes by the library */
	unsigned mode;            /* permission bits as of a file; 0 = 0600 */
	uint64_t seed;            /* of rotations and hash directions; 0 = chosen by the daemon */
	uint64_t expected_tokens; /* 0 = unknown; refused early if it cannot fit */
	int persist;              /* enum mpig_persist; see mpig_context_persist */
	uint32_t idle_s;          /* MPIG_PERSIST_IDLE: seconds; 0 = disk.idle */
	uint32_t ttl_s;           /* see mpig_context_ttl; 0 = none */
	int ttl_erase;
};
struct mpig_context_info {
	size_t size;
	char name[128];
	uint8_t fingerprint[64];
	uint64_t id, committed, indexed;
	uint64_t rows_bytes, index_bytes, metadata_bytes, shared_bytes;
	uint64_t created_ns, used_ns; /* CLOCK_REALTIME */
	uint64_t parent_id, fork_tokens, matched, seed;
	uint32_t uid, gid, mode, layer_count, global_layers, segments, signature_version, readers, writer_pid;
	uint32_t flags; /* enum mpig_context_flags */
	int persist;    /* enum mpig_persist, and what belongs to it */
	uint32_t idle_s, ttl_s;
	int ttl_erase;
	uint64_t pinned_until_ns; /* CLOCK_REALTIME; 0 = not pinned, UINT64_MAX = until it is unpinned */
	int profile;              /* enum mpig_profile_of: what it is answered by, by default, where it is opened from now on */
};
#ifndef MPIG_SHM_CONTROL_H
enum mpig_profile_of {
	MPIG_PROFILE_NONE = 0,
	MPIG_PROFILE_OWNER = 1, /* its owner's */
	MPIG_PROFILE_COMMON = 2 /* that of all users who have none for its fingerprint */
};
#define MPIG_PROFILE_ALL (UINT32_MAX - 1) /* as a uid: all users who have none */
enum mpig_context_flags {
	MPIG_CONTEXT_QUARANTINED = 1, /* found damaged when the daemon started: can be listed and dropped, nothing else */
	MPIG_CONTEXT_SAVED = 2,       /* all that is committed is on disk */
	MPIG_CONTEXT_PINNED = 4,      /* does not leave memory by itself */
	MPIG_CONTEXT_RECORDED = 8     /* its owner records the queries that are asked of it (mpig_trace_start) */
};
#endif

/* Creates an empty context and takes its writer lease. name: 1..127 printable bytes without '/'. *context is owned by the
 * caller until mpig_context_close or mpig_disconnect. Errors: MPIG_EEXIST, MPIG_EINVAL (the text names field and limit),
 * MPIG_EQUOTA, MPIG_ENOSPC. */
MPIG_API int mpig_context_create(mpig_client *client, const char *name, const struct mpig_spec *spec, mpig_context **context);

enum mpig_open_mode { MPIG_READ = 0, MPIG_WRITE = 1 };
struct mpig_open_options {
	size_t size;
	int mode;                /* enum mpig_open_mode; MPIG_WRITE takes the writer lease (MPIG_EBUSY if held) */
	const void *fingerprint; /* checked if given, as in mpig_spec; required by mpig_context_open_prefix */
	size_t fingerprint_bytes;
	const char *fork_name; /* open_prefix: fork the match at the common length under this name (implies MPIG_WRITE) */
	uint64_t min_tokens;   /* open_prefix: MPIG_ENOENT for shorter matches; 0 = 1 */
};
/* One that is on the daemon's disk only is brought back first, which this call waits for. */
MPIG_API int mpig_context_open(mpig_client *client, const char *name, const struct mpig_open_options *options,
                               mpig_context **context);
/* Opens the readable context of this fingerprint with the longest common prefix of `tokens`; *matched (may be NULL) is its
 * length. Without fork_name the context itself is opened. One that is on the daemon's disk only counts as well, after those in memory that match
 * as far, and is brought back first. MPIG_ELIMIT: more tokens than 2^24, the most of one search. */
MPIG_API int mpig_context_open_prefix(mpig_client *client, const uint32_t *tokens, uint64_t count,
                                      const struct mpig_open_options *options, mpig_context **context, uint64_t *matched);
/* A new context `new_name` sharing the first `tokens` committed tokens; nothing is copied; the fork's lease is taken. */
MPIG_API int mpig_context_fork(mpig_context *context, const char *new_name, uint64_t tokens, mpig_context **fork);
/* Gives the handle and the lease back; the context stays in the daemon. NULL is allowed. */
MPIG_API void mpig_context_close(mpig_context *context);
/* Removes a context by name (owner, or root). Its memory is free when its last reader has left. */
/* From memory only: what is saved of it stays, and comes back when it is opened; see mpig_saved_erase. */
MPIG_API int mpig_context_drop(mpig_client *client, const char *name);
/* mode: permission bits; uid/gid UINT32_MAX = unchanged (only root may change the uid). What is saved of it follows within a second or
 * so, but for the uid. */
MPIG_API int mpig_context_chmod(mpig_client *client, const char *name, unsigned mode, uint32_t uid, uint32_t gid);
MPIG_API int mpig_context_info(mpig_client *client, const char *name, struct mpig_context_info *info);
/* The layers of a context; returns their number, copies at most `max`. */
MPIG_API int mpig_context_layers(mpig_client *client, const char *name, struct mpig_layer *layers, int max);
struct mpig_head { /* a KV head of a global layer: how it is indexed, and what sampled answers showed about it */
	size_t size;
	int layer, kv_head;
	int signature_bits;         /* of its codes; 0 = no signature index, MPIG_BITS_AUTO: not chosen yet */
	uint32_t signature_version; /* 0 = none yet */
	uint64_t samples;           /* answers looked at since the daemon began, one in 64; 0: what follows is 0 */
	uint64_t rows;              /* that the figures are of, in the last of them */
	float noise;                /* root mean square of (estimated - true) logit */
	float n_eff;          /* effective number of rows, (sum w)^2 / sum w^2, by estimates; a running mean, as the next two */
	float mass_1, mass_5; /* share of the mass in the largest 1 % and 5 % of the rows, by estimates */
	float drawn;          /* rows an answer draws, those that are certain left out; a running mean */
	uint32_t best_bits;   /* signature_bits at which answers of the same error read least, by what was seen; 0 = not known */
};
/* All KV heads of a context, by layer and number; returns how many there are, fills at most `max`. heads[0].size must be set:
 * it is the stride of the array, and is written into every record. heads may be NULL if max is 0. */
MPIG_API int mpig_context_heads(mpig_client *client, const char *name, struct mpig_head *heads, int max);
/* What a KV head was asked of late: up to `max` queries [max][d_k], the latest first, of those that the daemon has noted (one in 64 answers,
 * of one query head in turn); returns how many there are, at most 16. Only the owner may. */
MPIG_API int mpig_context_queries(mpig_client *client, const char *name, int layer, int kv_head, float *queries, int max);
struct mpig_verification {
	size_t size;
	uint64_t bytes;                       /* read */
	uint32_t checked, unchecked, damaged; /* parts with a checksum; without one; of the former, those that differ from it */
};
/* Compares what a context holds in the daemon with the checksums made when it was sealed; what is not sealed yet has none. Reads
 * all of it, in many requests: takes as long as memory takes. Errors: MPIG_ECORRUPT if something differs (*result is written)
 * or the context is quarantined, MPIG_ENOENT, MPIG_EACCES. */
MPIG_API int mpig_context_verify(mpig_client *client, const char *name, struct mpig_verification *result);
struct mpig_reindex_result {
	size_t size;
	uint64_t tokens; /* that were indexed */
	uint32_t signature_version;
};
/* Makes a new index for a context, for its rows and the queries of late as they are now, while it is served and written; forks keep
 * theirs. Returns when answers come from it; signatures of older versions are made again by the daemon. The daemon does the same by
 * itself when an index has drifted (engine.reindex_drift). Only the owner may. result: may be NULL. Errors: MPIG_ENOTSUP (there is no
 * index yet), MPIG_EBUSY (somebody is at it; forks have two other indexes; rows were left uncommitted for a minute), MPIG_EQUOTA, MPIG_ENOSPC,
 * MPIG_ENOENT, MPIG_EACCES. */
MPIG_API int mpig_context_reindex(mpig_client *client, const char *name, struct mpig_reindex_result *result);
/* Fills up to `max` records from *cursor (begin with 0; opaque after that) and advances it; returns how many, 0 at the end.
 * infos[0].size must be set: it is the stride of the array, and is written into every record. Only contexts the caller may
 * read are listed. */
MPIG_API int mpig_context_list(mpig_client *client, uint64_t *cursor, struct mpig_context_info *infos, int max);

/* ---- profiles: how a model's contexts are answered by default ------------------------------------------------------- */
/* A profile belongs to a user and a fingerprint (as in mpig_context_info), and holds for that user's contexts of that fingerprint, from the next
 * time that each is opened or made. An attend that names neither budget nor error_target, and no proposal or the profile's, goes by its layer's section; a layer
 * made with MPIG_BITS_AUTO takes its signature_bits. The text is that of `magicpigctl tune --show`. Profiles outlive the daemon.
 * uid: UINT32_MAX, the caller's; another user's or MPIG_PROFILE_ALL is for administrators (MPIG_EACCES), but for looking at that of all. A user who
 * has that number as uid goes by the profile of all, and has none of their own (MPIG_ENOTSUP). */
/* Into `text`, at most `bytes`, always terminated. Returns the length that was needed, without the zero. whose (may be NULL): the uid it belongs to;
 * with uid UINT32_MAX that of all where the caller has none. MPIG_ENOENT. */
MPIG_API int mpig_profile_get(mpig_client *client, const uint8_t fingerprint[64], uint32_t uid, char *text, size_t bytes,
                              uint32_t *whose);
/* Both answer when the daemon's disk has the change. MPIG_EINVAL: not a profile, the text says in which line, or one of another fingerprint.
 * MPIG_ELIMIT: 64 for a user, 1,024 in all. MPIG_EAGAIN: another change of this profile is being written. MPIG_EIO, MPIG_ENOSPC: all is as it was. */
MPIG_API int mpig_profile_set(mpig_client *client, const uint8_t fingerprint[64], uint32_t uid, const char *text);
MPIG_API int mpig_profile_clear(mpig_client *client, const uint8_t fingerprint[64], uint32_t uid); /* MPIG_ENOENT */
/* The next profile that the caller may look at (own ones and those of all users; administrators: everybody's), in order of fingerprint and uid:
 * begin with 64 zeros and 0; both, and `text` as above, are those of the one that is found. The length of its text. MPIG_ENOENT: no more. */
MPIG_API int mpig_profile_next(mpig_client *client, uint8_t fingerprint[64], uint32_t *uid, char *text, size_t bytes);

/* ---- contexts on the daemon's disk (MPIG_ENOTSUP: it keeps none) ---------------------------------------------------- */
struct mpig_disk_options {
	size_t size;
	void (*progress)(void *argument, uint64_t done, uint64_t total); /* bytes; called by the waiting call; NULL = none */
	void *argument;
};
struct mpig_disk_result {
	size_t size;
	uint64_t tokens;           /* of the context */
	uint64_t bytes;            /* of its files */
	uint64_t moved;            /* that were written, or read, by this call */
	uint32_t segments, shared; /* shared: those that were there already */
	char name[128];            /* of the context */
};
/* Writes what is committed to stable storage, and waits for it; readers and the writer go on meanwhile. Sealed segments that are on disk
 * already are not written again. On failure what was saved before is as it was. Owner only. options and result may be NULL.
 * Errors: MPIG_EIO, MPIG_ENOSPC, MPIG_EACCES (also: another owner's context of that name is on disk), MPIG_EAGAIN (truncated too often
 * meanwhile), MPIG_ELIMIT (too many are waiting), MPIG_ENOENT, MPIG_ESHUTDOWN; as all that the daemon does in the background, MPIG_ERETRY (it is
 * not known how it ended: another daemon serves now, or this one has forgotten). */
MPIG_API int mpig_context_save(mpig_client *client, const char *name, const struct mpig_disk_options *options,
                               struct mpig_disk_result *result);
/* Makes a saved context again, for the owner it had; the caller must be allowed to read it. Errors: MPIG_EEXIST (it is in memory),
 * MPIG_ENOENT, MPIG_EACCES, MPIG_ECORRUPT (a file is damaged; the context is put aside), MPIG_EVERSION, MPIG_ENOSPC, MPIG_EQUOTA. */
MPIG_API int mpig_context_load(mpig_client *client, const char *name, const struct mpig_disk_options *options,
                               struct mpig_disk_result *result);
/* Takes a context out of memory that is on disk as it is and that nobody has open, else MPIG_EBUSY. Owner only. */
MPIG_API int mpig_context_evict(mpig_client *client, const char *name);
/* Whether a context must stay in memory: when memory is short, and when its time is over. Holds over restarts, and comes back with a context that
 * is loaded. Owner only, as the three below. */
MPIG_API int mpig_context_pin(mpig_client *client, const char *name, int pinned);
/* The same for so many seconds from now. */
MPIG_API int mpig_context_pin_for(mpig_client *client, const char *name, uint64_t seconds);
/* When it is saved unasked: enum mpig_persist; idle_s as in mpig_spec. MPIG_ENOTSUP: the daemon keeps nothing on disk. */
MPIG_API int mpig_context_persist(mpig_client *client, const char *name, int persist, uint32_t idle_s);
/* A context that nobody has open and nobody has used for ttl_s seconds leaves memory (0: never). If it is to be saved by its persist, or the daemon's, it is
 * saved first, and stays if that fails; with MPIG_PERSIST_NONE what is not on disk is gone. erase: it is erased from disk as well, whatever persist says.
 * A pinned context stays. Use is attending, reading, appending and committing; time goes on while no daemon runs. */
MPIG_API int mpig_context_ttl(mpig_client *client, const char *name, uint32_t ttl_s, int erase);
/* Reads a saved context and compares it with its checksums. Errors as of loading. */
MPIG_API int mpig_saved_check(mpig_client *client, const char *name, const struct mpig_disk_options *options,
                              struct mpig_disk_result *result);
/* Removes what is saved of a context; what is in memory stays. Owner only. */
MPIG_API int mpig_saved_erase(mpig_client *client, const char *name);
#define MPIG_GC_NO_DAMAGED UINT32_MAX
struct mpig_gc_result {
	size_t size;
	uint32_t leftovers; /* files that saves left which were cut off */
	uint32_t orphans;   /* segment files that no context had */
	uint32_t damaged;   /* contexts that had been put aside because they were damaged */
	uint64_t bytes;     /* that are free now */
};
/* Removes from the daemon's disk what nothing needs, and damaged contexts that were put aside at least damaged_days ago (at most
 * 100,000; MPIG_GC_NO_DAMAGED: none of them). dry: only counts. Administrators only (MPIG_EACCES). result may be NULL. */
MPIG_API int mpig_saved_gc(mpig_client *client, int dry, uint32_t damaged_days, struct mpig_gc_result *result);
/* Writes a whole context (rows, index, token ids, seed) into fd, which may be a pipe: one stream with checksums throughout, described in
 * daemon/disk/FORMAT.md. What is on disk only is loaded first. This process writes; the daemon opens nothing. fd is left behind what was written; on
 * failure what was written is worth nothing. The caller must be allowed to read the context. Errors: MPIG_EIO (fd), MPIG_EAGAIN (truncated or
 * sealed meanwhile; files are begun again by themselves), MPIG_ELIMIT (too many are under way), MPIG_ENOENT, MPIG_EACCES, MPIG_ESHUTDOWN. */
MPIG_API int mpig_context_export(mpig_client *client, const char *name, int fd, const struct mpig_disk_options *options,
                                 struct mpig_disk_result *result);
/* Into a file, for its owner only (0600): there is the whole of it on stable storage, in the place of a file of that name, or nothing. */
MPIG_API int mpig_context_export_file(mpig_client *client, const char *name, const char *path,
                                      const struct mpig_disk_options *options, struct mpig_disk_result *result);
/* Reads such a stream from fd, from where it is, and makes the context again, as the caller's and charged to the caller, under `name` (NULL: the
 * name it had). Errors: MPIG_ECORRUPT (altered, cut short, or something else: the text says where), MPIG_EVERSION, MPIG_EEXIST, MPIG_ENOSPC,
 * MPIG_EQUOTA, MPIG_EIO (fd), MPIG_ELIMIT; then there is no context. */
MPIG_API int mpig_context_import(mpig_client *client, int fd, const char *name, const struct mpig_disk_options *options,
                                 struct mpig_disk_result *result);
struct mpig_saved_info {
	size_t size;
	char name[128];
	uint8_t fingerprint[64];
	uint64_t committed, bytes, saved_ns; /* tokens; of its files; CLOCK_REALTIME */
	uint32_t uid, gid, mode;
	int persist; /* as in mpig_context_info, when it was saved or changed last */
	uint32_t idle_s, ttl_s;
	int ttl_erase;
	uint64_t pinned_until_ns;
};
/* Saved contexts the caller may read, by name, those after `after` ("" or NULL: from the first); returns how many were filled, 0 at the
 * end. infos[0].size must be set: it is the stride of the array. Right after the daemon's start the list may still grow. */
MPIG_API int mpig_saved_list(mpig_client *client, const char *after, struct mpig_saved_info *infos, int max);

/* What turns queries into signatures, for callers that compute them (mpig_attend.signature): for query head h of KV head g,
 * x_j = q_j / balance[g][j], zeros up to d_pad, then three rounds of: x_j times its sign, and butterflies (a + b, a - b) at distances
 * 1, 2, 4 .. d_pad / 2; at the end x times d_pad^-1.5; scale = max |x_j| / 127, and each x_j * (127 / max |x_j|) rounded to the nearest
 * integer, ties to even. Every step rounds to fp32 and none is fused. All zero, and scale 0, if max |x_j| is below 2^-119 or not finite.
 * A signature of another version than the context's is ignored and computed by the daemon. */
struct mpig_signature {
	size_t size;
	uint32_t version; /* 0: none yet (nothing was sealed); then balances are not written */
	uint32_t bits;    /* of the codes: 1, 2, 4 */
	uint32_t d_k, d_pad;
	uint32_t kv_heads;
	uint8_t signs[96]; /* [3][d_pad]: bit j % 8 of byte j / 8 set: -1 */
};
/* balance [kv_heads][d_k], or NULL. Errors: MPIG_ENOTSUP (the layer has no signature index), MPIG_EINVAL, MPIG_ENOENT, MPIG_ELOST (the
 * context was dropped, and one of other shape has its name). */
MPIG_API int mpig_context_signature(mpig_context *context, int layer, struct mpig_signature *signature, float *balance);

/* What the handle knows without asking the daemon. */
MPIG_API const char *mpig_context_name(const mpig_context *context);
MPIG_API uint64_t mpig_context_committed(const mpig_context *context); /* as of the last completion seen */
MPIG_API uint32_t mpig_context_signature_version(const mpig_context *context);
/* The layer as the daemon has it, defaults resolved. MPIG_EINVAL: no such layer. */
MPIG_API int mpig_context_layer(const mpig_context *context, int layer, struct mpig_layer *out);
MPIG_API uint32_t
mpig_context_handle(const mpig_context *context); /* in entries of a queue (shm/abi.h); the same after a reconnect */

/* ---- queues -------------------------------------------------------------------------------------------------------- */
struct mpig_queue_options {
	size_t size;
	unsigned entries;  /* requests in flight or answered and not yet polled, a power of two, at most 4096; 0 = 64 */
	unsigned slots;    /* payload slots; 0 = entries */
	size_t slot_bytes; /* 0 = 256 KiB; rounded up to 4096. Larger appends and commits are cut by the library */
	unsigned spin_us;  /* waiting calls spin this long before they sleep; 0 = 100 */
	int timeout_ms;    /* of blocking calls, counted from the last piece that came back; 0 = 30000, -1 = none */
};
/* Errors: MPIG_EINVAL, MPIG_ELIMIT, MPIG_EQUOTA, MPIG_ENOMEM. *queue is owned by the caller until mpig_queue_destroy. */
MPIG_API int mpig_queue_create(mpig_client *client, const struct mpig_queue_options *options, mpig_queue **queue);
/* Gives its memory up: the daemon removes the pages, also from what else maps them. A GPU must be detached before (mpig_cuda_detach), and a
 * borrower have ended; the same holds for mpig_disconnect, which destroys all queues of the connection. */
MPIG_API void mpig_queue_destroy(mpig_queue *queue);

/* Asks that the daemon's workers do not sleep for the next `ms` milliseconds (0: no longer), so that requests that cannot wake them, a
 * GPU's, are seen at once; the daemon has a limit (workers.awake_max). Also asks whether the daemon lives: MPIG_ERETRY if it has gone
 * away. Costs no more than a look at the socket where the workers are awake. MPIG_ENOTSUP: a daemon that knows no leases. */
MPIG_API int mpig_awake(mpig_queue *queue, int ms);

/* A queue that is lent is fed by somebody else, such as a GPU: its rings and slots are written by the borrower, in the format and with
 * the ordering of shm/README.md, and the calls of the data path answer MPIG_EBUSY. The mapping stays where it is until
 * mpig_queue_destroy, also when the daemon is restarted. */
struct mpig_region {
	size_t size;
	void *base;     /* of the mapping, page-aligned */
	uint64_t bytes; /* of it */
	uint64_t sq_offset, cq_offset, slots_offset, slot_bytes;
	uint32_t entries, slots;
	uint32_t sq_tail, cq_head; /* where the rings stand; the same number as long as nothing is in flight */
};
/* Lends it. MPIG_EBUSY: requests are in flight, or completions not polled, or it is lent already. */
MPIG_API int mpig_queue_lend(mpig_queue *queue, struct mpig_region *region);
/* For a lent queue: 0 if it is still served by the daemon it was lent under. If that is gone, connects again, hands the region to
 * the new daemon (or to the same one, after mpig_client_kill) and opens the contexts again: then 1, *region is written, both rings begin at 0, and
 * what was in flight will never be answered. MPIG_ELOST: the daemon did not take the region, as when it is offered later than
 * limits.region_keep after the connection's end; the queue is of no more use. MPIG_ENODAEMON, MPIG_ETIMEDOUT: none
 * is there yet, or it lives and still serves what was in flight when the queue was closed; the call may be repeated. */
MPIG_API int mpig_queue_renew(mpig_queue *queue, struct mpig_region *region);
/* Ends the loan. Nobody may write the region from now on. NULL and queues that are not lent are allowed. */
MPIG_API void mpig_queue_take_back(mpig_queue *queue);

/* ---- the data path, blocking --------------------------------------------------------------------------------------- */
struct mpig_attend {
	size_t size;
	int layer;
	int proposal;    /* enum mpig_proposal; 0 = the profile's, or the layer's default */
	int dtype;       /* of q */
	unsigned tokens; /* T query tokens; 0 = 1 */
	const void *q;   /* [T][query_heads][d_k] */
	uint64_t begin;  /* first row; a client with sinks skips them here */
	int64_t end;     /* exclusive; <= 0: relative to the committed length (-window) */
	float budget; /* expected share of rows in (0, 1]; 0 = the profile's way, the layer's default, or by error if it names none */
	uint64_t seed;           /* same seed, same rows, same bits */
	uint64_t query_position; /* of query token 0 (random streams, ALiBi); 0 with T = 1: the committed length */
	int causal;              /* nonzero: query token t sees rows < causal_base + t */
	uint64_t causal_base;
	/* eps of the adaptive budget, before any share: the mass of a head deviates by that at most; 0 = none, or the default where no
	 * share is named. */
	float error_target;
	float budget_floor, budget_cap; /* with an adaptive budget; 0 = as configured: .005, .08; with delta .02, 1 */
	/* [T][query_heads] LSE of the caller's exact part, or NULL. It sets the rows of an adaptive budget only, and should be this
	 * token's: that of the step before costs accuracy. */
	const float *window_lse;
	const int8_t *signature;      /* [T][query_heads][d_pad] rotated queries computed by the caller, or NULL */
	const float *signature_scale; /* [T][query_heads] */
	uint32_t signature_version;
	/* > 0: verified: a head's output, merged with window_out, is to be within error_target of the exact one (relative L2 norm) with
	 * probability 1 - delta. Takes two samples, and as many rows as that needs: the cap's default is 1. Needs error_target; SIGNATURE
	 * or DENSE. */
	float delta;
	/* With window_lse: [T][query_heads][d_v] output of the caller's exact part. For an adaptive budget it tells mass that matters from
	 * mass on values near zero (NULL: all matters); with delta the promise is about the merged output (NULL: about the daemon's part
	 * alone). */
	const float *window_out;
};
struct mpig_result { /* arrays of the caller; NULL where not wanted */
	size_t size;
	float *out;               /* [T][query_heads][d_v] */
	float *lse;               /* [T][query_heads], natural log; -inf where no row was seen */
	float *error_v, *error_a; /* [T][query_heads] terms of the error, for mpig_merge (0 for exact answers) */
	uint32_t *rows;           /* [T][query_heads] rows attended */
	uint64_t committed, rows_read, bytes_read, service_ns; /* written */
};
/* Attends. The context may be open for reading. Errors: MPIG_ERANGE, MPIG_ENAN, MPIG_EINVAL, MPIG_ENOTSUP (no such index),
 * MPIG_ERETRY, MPIG_ETIMEDOUT; MPIG_ELIMIT if T query tokens and their answers do not fit one slot (the text names the
 * slot_bytes needed); MPIG_EAGAIN if unpolled completions hold every entry of the queue. */
MPIG_API int mpig_attend(mpig_queue *queue, mpig_context *context, const struct mpig_attend *attend, struct mpig_result *result);
/* Rows of one layer at position..position+count: k [count][kv_heads][d_k], v [count][kv_heads][d_v]. queries (or NULL):
 * the layer's last R queries [R][query_heads][d_k], which set the balance when the prefill is sealed; they must fit one slot
 * beside a row (MPIG_ELIMIT). Idempotent until committed. Needs the writer lease (MPIG_ELEASE). On failure rows from some
 * position on are not there; append them again. */
MPIG_API int mpig_append(mpig_queue *queue, mpig_context *context, int layer, uint64_t position, uint64_t count, int dtype,
                         const void *k, const void *v, const void *queries, unsigned query_count);
/* End of a prefill: seal and index. Where a layer has rows beyond what is committed, the last ones are not sealed: truncate to the commit's end first. */
enum mpig_commit_flags { MPIG_COMMIT_SEAL = 1 };
/* Makes position..position+count visible and durable across a crash of either side: all global layers must hold them.
 * MPIG_ERETRY also where the daemon that took uncommitted rows is gone: keep them until this returns 0, and append again from
 * mpig_context_committed(). A failure (MPIG_ENOSPC, MPIG_EQUOTA, MPIG_ENOMEM) of what follows the commit, indexing, leaves the tokens committed:
 * mpig_context_committed() tells, and the same call again indexes them. */
MPIG_API int mpig_commit(mpig_queue *queue, mpig_context *context, uint64_t position, uint64_t count, const uint32_t *tokens,
                         int flags);
/* Back to `position` tokens (speculation, cropping). */
MPIG_API int mpig_truncate(mpig_queue *queue, mpig_context *context, uint64_t position);
/* Rows back as fp32: k [count][kv_heads][d_k], v [count][kv_heads][d_v]. */
MPIG_API int mpig_read(mpig_queue *queue, mpig_context *context, int layer, uint64_t position, uint64_t count, float *k,
                       float *v);
MPIG_API int mpig_nop(mpig_queue *queue);

/* ---- the data path, non-blocking ----------------------------------------------------------------------------------- */
struct mpig_completion {
	uint64_t user_data;
	int status;
};
/* Submits; the arrays of `attend` are copied before it returns, those of `result` (and the struct) must stay valid until
 * the completion is seen. Returns a ticket > 0, or a negative status (MPIG_EAGAIN: no room; poll first). */
MPIG_API int64_t mpig_submit_attend(mpig_queue *queue, mpig_context *context, const struct mpig_attend *attend,
                                    struct mpig_result *result, uint64_t user_data);
/* As mpig_append / mpig_commit, but `count` must fit one slot (MPIG_ELIMIT). */
MPIG_API int64_t mpig_submit_append(mpig_queue *queue, mpig_context *context, int layer, uint64_t position, uint64_t count,
                                    int dtype, const void *k, const void *v, const void *queries, unsigned query_count,
                                    uint64_t user_data);
MPIG_API int64_t mpig_submit_commit(mpig_queue *queue, mpig_context *context, uint64_t position, uint64_t count,
                                    const uint32_t *tokens, int flags, uint64_t user_data);
MPIG_API int64_t mpig_submit_nop(mpig_queue *queue, uint64_t user_data);
/* Takes up to `max` completions without waiting; returns how many. Never sleeps; makes no system call but where nothing has
 * come back for a millisecond: then it asks whether the daemon lives, so that its death ends requests with MPIG_ERETRY. */
MPIG_API int mpig_poll(mpig_queue *queue, struct mpig_completion *completions, int max);
/* Waits until the ticket is done (spinning, then asleep) and returns its status; timeout_ms: 0 = the queue's, -1 = none. Its
 * completion is consumed; those of other tickets stay for mpig_poll. After MPIG_ETIMEDOUT the request is still in flight. */
MPIG_API int mpig_wait(mpig_queue *queue, int64_t ticket, int timeout_ms);

/* ---- recording queries ---------------------------------------------------------------------------------------------- */
typedef struct mpig_trace mpig_trace;
struct mpig_trace_options {
	size_t size;
	size_t ring_bytes; /* of memory between the daemon and the caller, 1 MiB to 1 GiB, rounded up to 4096; 0 = 32 MiB */
};
struct mpig_traced { /* a query that a client of the daemon asked, and was answered */
	size_t size;
	/* As it was asked, with what was relative resolved (begin, end, seed): asked again, it has the same answer. q is fp32 whatever it was.
	   The struct and what it points to are valid until the next call on the trace. window_out is there where the answer made use of it. */
	const struct mpig_attend *attend;
	uint64_t number;   /* of the answer since recording began, from 0: a gap tells how many were lost */
	uint64_t taken_ns; /* since recording began: when the daemon took the request */
	uint64_t service_ns, rows_read, bytes_read, committed; /* of the answer, as in struct mpig_result */
	uint64_t client;                                       /* connection (mpig_client_info.id) and queue it came over */
	uint32_t queue, signature_version, units;
	int asked_dtype;   /* of q */
	int had_signature; /* it came with a signature of the client's */
};
/* Why no more queries come. */
enum mpig_traced_end {
	MPIG_TRACED_GOES_ON = 0,
	MPIG_TRACED_STOPPED = 1,
	MPIG_TRACED_DROPPED = 2,  /* the context is gone */
	MPIG_TRACED_SHUTDOWN = 3, /* the daemon has ended */
	MPIG_TRACED_BROKEN = 4,   /* the memory between the two was written by somebody else */
	MPIG_TRACED_REVOKED = 5   /* the context's owner or permissions changed */
};
struct mpig_trace_state {
	size_t size;
	uint64_t began_ns;   /* CLOCK_REALTIME */
	uint64_t context_id; /* what is recorded */
	uint64_t answers;    /* that there were */
	uint64_t lost;       /* of these, that the ring had no room for */
	uint64_t too_long;   /* of these, that are larger than a quarter of the ring */
	uint32_t ended;      /* enum mpig_traced_end */
};
/* Records the queries that any client asks of a context, from now on; those of its forks are not among them. For its owner, who must be
 * allowed to read it: queries reveal text. Others see that it is recorded (MPIG_CONTEXT_RECORDED). The daemon never waits for the caller: queries that
 * the ring has no room for are lost and counted. Errors: MPIG_ENOENT, MPIG_EACCES, MPIG_EBUSY (somebody records it already), MPIG_ELIMIT,
 * MPIG_EQUOTA (the ring counts as a queue's region does), MPIG_ENOMEM, MPIG_EINVAL. A trace belongs to one thread at a time, and ends with
 * mpig_trace_stop, which must come before mpig_disconnect. */
MPIG_API int mpig_trace_start(mpig_client *client, const char *name, const struct mpig_trace_options *options,
                              mpig_trace **trace);
/* The next query: 1; 0 if none came within timeout_ms (0: does not wait), or none will come any more (see mpig_trace_get). MPIG_EPROTO: the
 * daemon's side makes no sense. */
MPIG_API int mpig_trace_next(mpig_trace *trace, struct mpig_traced *traced, int timeout_ms);
MPIG_API int mpig_trace_get(mpig_trace *trace, struct mpig_trace_state *state);
MPIG_API void mpig_trace_stop(mpig_trace *trace); /* NULL is allowed. What was not read is gone */

/* ---- joining partial results --------------------------------------------------------------------------------------- */
/* Merges b into a, head by head: out_a, lse_a become those of the union of the two disjoint row sets (m = max(L1, L2);
 * out = (e^(L1-m) o1 + e^(L2-m) o2) / (e^(L1-m) + e^(L2-m))). heads = T * query_heads. Both empty: LSE -inf, out 0.
 * Pure; any thread. */
MPIG_API void mpig_merge(size_t heads, size_t d_v, float *out_a, float *lse_a, const float *out_b, const float *lse_b);
/* Estimated relative error of merged outputs: for each head, partials p = 0..count-1 with out[p] [heads][d_v], lse[p],
 * error_v[p], error_a[p] (NULL = exact) and the merged out: err = sqrt(sum_p lambda_p^2 (V_p + |out_p - out|^2 A_p)) / |out|.
 * The variance's cross term, which would need a vector of each part, has either sign and is left out. err [heads]. Pure; any
 * thread. */
MPIG_API void mpig_merge_error(size_t heads, size_t d_v, size_t count, const float *const *out, const float *const *lse,
                               const float *const *error_v, const float *const *error_a, const float *merged_out, float *err);

#ifdef __cplusplus
}
#endif
#endif
