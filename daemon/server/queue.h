// A queue as the daemon has it: the region two processes share, and everything about it that the client cannot touch.
//
//             queue_create            queue_close               grace period over, in_flight == 0
//   (none) ---------------> OPEN ------------------> CLOSING ------------------------------------> queue_destroy
//
// One worker at a time claims a queue (a CAS) and takes entries out; any worker posts completions, one at a time (the lock).
// Nothing that lies in the region is read twice: entries and slot headers are copied, checked, and used from the copy.
#ifndef MPIG_SERVER_QUEUE_H
#define MPIG_SERVER_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/server/rate.h"
#include "daemon/server/session.h"
#include "shm/abi.h"
#include "shm/ring.h"

#define QUEUE_IN_FLIGHT 16u // requests of one queue being served

struct task;
enum queue_state { QUEUE_OPEN, QUEUE_CLOSING };

// An entry taken out of the ring: private copies.
struct submission {
	struct mpig_sqe entry;
	struct mpig_slot_header slot; // zeros without a slot
	uint64_t sequence;
	uint64_t taken_ns;
	bool admitted; // counted against the limits on requests a second
};

struct queue {
	uint32_t id;             // unique while the daemon runs; id % workers is its home
	uint32_t uid, gid;       // charged for it
	uint32_t place;          // of its client in the statistics
	uint64_t client;         // the connection's number
	struct rate *rate[2];    // of the user's and the group's requests; NULL: no limit can be set
	atomic_uint *tasks;      // the user's requests in progress, on all queues; NULL: not counted
	struct session *session; // a reference
	void *base;
	struct mpig_queue_header geometry;    // the private, checked copy
	uint64_t region_device, region_inode; // of the region's memfd
	int eventfd;                          // written by the client, polled by the home worker, read by nobody
	uint32_t max_query_tokens;            // of one ATTEND
	atomic_int state;                     // enum queue_state; control thread
	atomic_bool broken;                   // the client wrote an impossible index: to be closed
	atomic_uint in_flight;                // tasks that point here
	struct queue *next_retired;           // control thread, after its removal
	uint64_t retired_epoch;
	bool left;           // not given up by its client, who may offer the region again
	int pidfd;           // then: a dup of its process's, or -1
	uint64_t awake_seen; // the last lease of the client's that was believed; home worker
	// the worker that claims
	_Alignas(64) atomic_uint claim; // 0, or the worker's number + 1
	struct mpig_consumer sq;
	uint64_t sequence;
	struct submission next; // taken out, not yet started
	atomic_bool held;       // `next` is one
	_Atomic uint32_t taken; // sq.next for those who only look
	// whoever posts
	_Alignas(64) pthread_mutex_t lock;
	struct mpig_producer cq;
	struct task *flying[QUEUE_IN_FLIGHT];
	uint32_t flying_count;
};

struct queue_options {
	uint32_t entries, slot_count;
	uint64_t slot_bytes;
	uint64_t epoch;
	uint32_t max_query_tokens;
	int adopt_fd; // an old region from the client, or -1
};

// Makes or adopts the region and maps it; one with missing pages is not adopted. *region_fd is the caller's to close. MPIG_EINVAL, MPIG_ELIMIT, MPIG_ENOMEM; `why`
// (MPIG_TEXT_BYTES) names field and limit.
int queue_create(const struct queue_options *options, struct session *session, struct queue **queue, int *region_fd, char *why);
// The region's size for these options, for quotas: 0 or as queue_create.
int queue_region_bytes(const struct queue_options *options, uint64_t *bytes, char *why);
// Whether its region is that of a file. False for what is no file.
bool queue_has_region(const struct queue *queue, int fd);
void queue_destroy(struct queue *queue); // nobody may point to it any more; base NULL: the mapping has another owner
// No more entries are taken; the client is told (MPIG_SQ_CLOSED, and woken).
void queue_close(struct queue *queue);

bool queue_claim(struct queue *queue, uint32_t worker);
void queue_release(struct queue *queue);
// Whether there may be something to take. Any thread, no claim needed.
bool queue_pending(const struct queue *queue);

// ---- under the claim -------------------------------------------------------------------------------------------------
// The next entry, or NULL: none, no room for its completion, too many in flight, closed, or broken. The same again until
// queue_next_done.
struct submission *queue_next(struct queue *queue);
void queue_next_done(struct queue *queue);
// Checks a submission's fields against the ABI and the queue's geometry: MPIG_EPROTO (unknown operation or flag, reserved bytes,
// slot out of range), MPIG_EINVAL, MPIG_ELIMIT.
int queue_check(const struct queue *queue, const struct submission *submission);
uint8_t *queue_slot(const struct queue *queue, uint32_t slot); // NULL for MPIG_NO_SLOT; slot already checked
// Whether a request on this context must wait for one in flight on this queue.
bool queue_conflicts(struct queue *queue, const struct context *context, bool writes);
void queue_fly(struct queue *queue, struct task *task);

// ---- completing, any thread ------------------------------------------------------------------------------------------
// Posts, forgets the task in flight (or NULL), and wakes the client if it sleeps. There is room: queue_next saw to it.
void queue_complete(struct queue *queue, const struct mpig_cqe *cqe, struct task *task);

// ---- parking, the home worker ----------------------------------------------------------------------------------------
void queue_need_wakeup(struct queue *queue, bool need);
// Until when (mono_ns) the client asks that workers stay awake, if it has asked anew since the last look; else 0. At most `most` ns
// from now, whatever it wrote; a value counts once.
uint64_t queue_lease(struct queue *queue, uint64_t now, uint64_t most);
// Whether who writes the ring's tail cannot write the eventfd (a GPU): it must be looked at by a timer.
bool queue_silent(const struct queue *queue);

#endif
