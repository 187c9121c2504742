// Inside libmagicpig. shm headers come before magicpig.h: both name the same enums, and shm's are the ones with assertions.
//
//   merge.c              pure functions
//   blocking.c           calls that wait; appends, commits and reads cut into slots
//   attend.c             payloads of single requests
//   queue.c  flight.c    attaching a region; submitting, reaping, waiting
//   lend.c               queues that others feed; leases on the workers' wakefulness
//   context.c  spec.c    handles, leases, reopening; specs
//   catalog.c            contexts by name
//   administer.c         connections, quotas, draining
//   trace.c              recording queries
//   profile.c            profiles, noted queries
//   client.c             connection, reconnection, daemon-wide calls
//   control.c  error.c   datagrams and tags; texts, option structs
//
// Locks: mpig_client.lock guards everything reached from the client but the data path. A queue belongs to one thread; of other
// threads' doings it sees only `connection` and a context's atomics. Order: nothing else is taken under the lock.
#ifndef MPIG_CLIENT_INTERNAL_H
#define MPIG_CLIENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/abi.h"
#include "shm/control.h"
#include "shm/region.h"
#include "shm/ring.h"
#include "shm/status.h"

#include <magicpig.h>

#define NS_PER_MS UINT64_C(1000000)
#define NO_DEADLINE UINT64_MAX
#define LIVENESS_NS NS_PER_MS           // how often a waiting queue asks whether its daemon is alive
#define SLEEP_SLICE_NS (10 * NS_PER_MS) // longest sleep without asking
#define NO_FLIGHT UINT32_MAX

struct mpig_client {
	pthread_mutex_t lock;
	// Raised (under the lock) when a connection is lost; a queue attached under another number has lost its daemon.
	_Atomic uint64_t connection;
	atomic_bool unopened; // some context's fault is a passing one
	int fd;               // -1: not connected
	int timeout_ms, reconnect_ms;
	uint64_t epoch;
	uint32_t list_page; // contexts that this daemon may be asked for at once
	uint32_t tag;
	uint32_t reply_bytes;
	uint8_t *reply;         // the last datagram received, MPIG_CONTROL_MAX_BYTES, 8-byte aligned
	mpig_context *contexts; // open ones, and closed ones whose requests are still in flight
	mpig_queue *queues;
	uint64_t handles[MPIG_MAX_HANDLES / 64]; // bit set: taken
	uint32_t *owner_page; // nonzero in the creating process; wiped in a forked child; NULL where the kernel cannot
	pid_t pid;            // of the creator, where owner_page is NULL
	char path[108];
};

struct mpig_context {
	mpig_client *client;
	mpig_context *next;
	_Atomic uint64_t committed;
	_Atomic uint32_t signature_version;
	_Atomic uint32_t flights;  // requests in flight that name it
	atomic_int fault;          // 0, or what every request answers: MPIG_ELOST, MPIG_EACCES ...
	_Atomic uint64_t appended; // end of the rows that appends to the present daemon reached
	atomic_bool rows_lost;     // rows beyond `committed` went to a daemon that is gone
	atomic_bool writer;        // the lease is ours
	bool closed;               // by its owner; freed when `flights` is 0
	uint32_t handle, layer_count;
	uint64_t id;
	char name[MPIG_NAME_BYTES];
	struct mpig_wire_layer *layers;
};

enum flight_state { FLIGHT_FREE, FLIGHT_OUT, FLIGHT_DONE };

// One request from submission until its completion has been handed to the caller.
struct flight {
	int64_t ticket; // serial * MPIG_MAX_QUEUE_ENTRIES + index in mpig_queue.flights; the entry's user_data
	uint64_t user_data;
	mpig_context *context; // counted in context->flights; NULL for NOP
	uint64_t begin;
	uint32_t count, slot;
	uint32_t next, previous; // list of done flights, in order of completion; next also links the free ones
	int32_t status;
	uint16_t layer;
	uint8_t op, state;
	bool detached;            // nobody waits: its result goes nowhere
	uint32_t heads, d_k, d_v; // elements to copy out: ATTEND heads = T * query heads; READ heads = rows * KV heads
	struct mpig_payload_layout layout;
	struct mpig_result *result; // ATTEND
	float *k, *v;               // READ
};

struct mpig_queue {
	mpig_client *client;
	mpig_queue *next;
	uint64_t connection;      // of the daemon it is attached to; 0: none
	uint64_t attached_before; // the last connection it was attached to
	uint32_t id;
	int region_fd, event_fd;
	uint8_t *base;
	struct mpig_queue_header header; // checked copy
	struct mpig_producer sq;
	struct mpig_consumer cq;
	struct mpig_queue_header *shared; // the header in the region, for the flag words only
	bool lent;                        // to whoever writes its rings now (lend.c)
	bool suspect;                     // the daemon's side wrote nonsense: do not offer the region for adoption
	struct flight *flights;           // [entries]
	uint32_t *free_slots;             // [slot_count]
	uint32_t free_slot_count, free_flight;
	uint32_t done_first, done_last, out; // out: flights in state OUT
	uint64_t serial;
	uint64_t looked_ns; // when the daemon was last seen to live
	uint64_t spin_ns;
	int timeout_ms;
};

// ---- error.c ---------------------------------------------------------------------------------------------------------
// Sets this thread's text for a client (NULL: for mpig_connect) and returns `status`.
int error_set(const mpig_client *client, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void error_clear(const mpig_client *client);
// Copies an option struct of the caller's age into ours: `given` of given->size bytes into `known` of `bytes`, the rest zero.
// Structs of a newer header are taken if the part we do not know is zero. NULL gives all zero.
int options_copy(const mpig_client *client, const char *name, const void *given, void *known, size_t bytes);
// The other way: writes min(caller's size, bytes), leaving the caller's size field alone.
int options_return(const mpig_client *client, const char *name, void *given, const void *known, size_t bytes);
// The same for element `i` of the caller's array, whose first element tells the size of all.
int options_return_at(const mpig_client *client, const char *name, void *array, size_t i, const void *known, size_t bytes);
uint64_t now_ns(void);
uint64_t deadline_in(int timeout_ms); // negative: NO_DEADLINE

// ---- control.c (client lock held) --------------------------------------------------------------------------------------
int socket_connect(const mpig_client *client, uint64_t deadline, int *fd); // MPIG_ENODAEMON, MPIG_EACCES, MPIG_ETIMEDOUT ...
void connection_lost(mpig_client *client);
bool connection_hung_up(const mpig_client *client);
// One request and its answer on the connection there is. Fills the header of `request`. The reply is in client->reply, at least
// reply_min bytes; up to two received fds in fds (or -1; NULL: none wanted). MPIG_ERETRY: lost after sending; NOT_SENT: before.
#define NOT_SENT 1
int control_exchange(mpig_client *client, uint16_t op, void *request, size_t bytes, int send_fd, size_t reply_min, int fds[2]);
// Records of the page in client->reply for a caller who takes `max` of them. MPIG_EPROTO: it says that it has more than `most`, or than its bytes hold.
int page_records(mpig_client *client, const char *what, uint32_t count, uint32_t most, size_t head_bytes, size_t record_bytes,
                 uint32_t max);
// Sends without awaiting the answer, which is skipped by its tag later.
void control_post(mpig_client *client, uint16_t op, void *request, size_t bytes);

// ---- client.c ----------------------------------------------------------------------------------------------------------
bool client_forked(const mpig_client *client);
int client_connected(mpig_client *client); // lock held: connects again if need be
// Lock held: client_connected + control_exchange, once more if the daemon turned out to be gone before the request was sent.
int client_call(mpig_client *client, uint16_t op, void *request, size_t bytes, int send_fd, size_t reply_min, int fds[2]);
// Lock held, after a call about work that a daemon does in the background: `rc`, the call's, if it was the daemon that began the work; another one's
// jobs have numbers of their own. job 0: it was begun now, and *epoch tells by whom.
int client_same_daemon(const mpig_client *client, uint64_t job, uint64_t *epoch, int rc);

// ---- context.c ---------------------------------------------------------------------------------------------------------
int contexts_reopen(mpig_client *client, uint64_t deadline); // lock held, freshly connected: same names, same handles
void contexts_free(mpig_client *client);
// Lock not held: another try at those whose reopening failed for a passing reason; costs nothing where there are none.
void contexts_again(mpig_client *client);
// Lock not held. MPIG_OK if requests may name it, else its fault with a text. One whose reopening failed for a passing reason (a full
// daemon) is tried again.
int context_usable(mpig_client *client, mpig_context *context);
int name_check(const mpig_client *client, const char *field, const char *name);
// Lock held, after a SHOW: the layers in the reply, checked so far that layouts computed from them cannot overflow.
int reply_layers(mpig_client *client, const struct mpig_wire_layer **layers, uint32_t *count);

// ---- spec.c ------------------------------------------------------------------------------------------------------------
int spec_to_wire(const mpig_client *client, const struct mpig_spec *spec, struct mpig_wire_layer *layers);
void layer_from_wire(const struct mpig_wire_layer *wire, struct mpig_layer *layer);
// 32 bytes of XXH3 in a field of 64; all zero for none.
void fingerprint_hash(const void *bytes, size_t count, char out[64]);
static inline struct mpig_layer_shape layer_shape(const struct mpig_wire_layer *l)
{
	return (struct mpig_layer_shape){.query_heads = l->query_heads, .kv_heads = l->kv_heads, .d_k = l->d_k, .d_v = l->d_v};
}

// ---- queue.c -----------------------------------------------------------------------------------------------------------
// Attached to a living daemon, as far as can be seen without asking; attaches again where it is not.
int queue_ready(mpig_queue *queue);
// The same for a queue that is lent, whose rings are not ours: 1 if it was attached anew.
int queue_ready_lent(mpig_queue *queue);
void queue_free(mpig_queue *queue, bool forked);
void queue_look(mpig_queue *queue); // asks the socket whether the daemon is alive

// ---- flight.c ----------------------------------------------------------------------------------------------------------
void flights_reset_slots(mpig_queue *queue);
// Ends every flight that is out with `status` and takes the queue off its daemon.
void flights_fail(mpig_queue *queue, int status);
void flights_drop(mpig_queue *queue); // forgets them all: the queue is about to go
// Takes a flight and, if `slot`, a payload slot. MPIG_EAGAIN if there is none.
int flight_begin(mpig_queue *queue, bool slot, struct flight **flight);
// Publishes; the flight is out. `entry` gets slot, handle and user_data from the flight. Returns its ticket or a negative status,
// after which the flight is free again.
int64_t flight_submit(mpig_queue *queue, struct flight *flight, struct mpig_sqe *entry);
// Takes completions off the ring, without waiting.
void flights_reap(mpig_queue *queue);
struct flight *flight_find(mpig_queue *queue, int64_t ticket); // NULL if its completion has been consumed
// Waits until the flight is done; NULL: until any flight comes back. MPIG_ETIMEDOUT at the deadline.
int flight_wait(mpig_queue *queue, const struct flight *flight, uint64_t deadline);
int flight_consume(mpig_queue *queue, struct flight *flight); // its status; sets the error text of a failed one
void flight_detach(mpig_queue *queue, struct flight *flight);
static inline uint8_t *slot_payload(const mpig_queue *queue, uint32_t slot)
{
	return queue->base + queue->header.slots_offset + slot * queue->header.slot_bytes;
}
uint64_t queue_deadline(const mpig_queue *queue);

void wake_worker(const mpig_queue *queue);

// ---- attend.c: each returns a ticket, or a negative status; the queue is ready ---------------------------------------
int layer_check(const mpig_queue *queue, mpig_context *context, int layer, const struct mpig_wire_layer **wire);
int64_t submit_attend(mpig_queue *queue, mpig_context *context, const struct mpig_attend *attend, struct mpig_result *result,
                      uint64_t user_data);
int64_t submit_append(mpig_queue *queue, mpig_context *context, int layer, uint64_t position, uint64_t count, int dtype,
                      const void *k, const void *v, const void *queries, unsigned query_count, uint64_t user_data);
int64_t submit_commit(mpig_queue *queue, mpig_context *context, uint64_t position, uint64_t count, const uint32_t *tokens,
                      int flags, uint64_t user_data);
int64_t submit_read(mpig_queue *queue, mpig_context *context, int layer, uint64_t position, uint64_t count, float *k, float *v);
int64_t submit_truncate(mpig_queue *queue, mpig_context *context, uint64_t position);
int64_t submit_nop(mpig_queue *queue, uint64_t user_data);

#endif
