#include "daemon/server/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/probe.h"
#include "daemon/server/task.h"
#include "shm/region.h"
#include "shm/status.h"
#include "shm/zero.h"

static struct mpig_queue_header *shared(const struct queue *q)
{
	return q->base;
}

// ---- making ----------------------------------------------------------------------------------------------------------
static int geometry(const struct queue_options *o, struct mpig_queue_header *header, char *why)
{
	int status = mpig_queue_geometry(o->entries, o->slot_count, o->slot_bytes, header);
	if (status != MPIG_OK)
		snprintf(why, MPIG_TEXT_BYTES,
		         "entries %u (a power of two, 1 to %u), slot_count %u (>= 1), slot_bytes %" PRIu64
		         " (a multiple of 4096, to %" PRIu64 "): the region may have %" PRIu64 " bytes",
		         o->entries, MPIG_MAX_QUEUE_ENTRIES, o->slot_count, o->slot_bytes, MPIG_MAX_SLOT_BYTES,
		         MPIG_MAX_REGION_BYTES);
	return status;
}

int queue_region_bytes(const struct queue_options *o, uint64_t *bytes, char *why)
{
	struct mpig_queue_header header;
	int status = geometry(o, &header, why);
	if (status == MPIG_OK)
		*bytes = header.region_bytes;
	return status;
}

// The client's old region: ours by its seals, of the size asked for, with all its pages. Where some are missing they were removed, and who has
// registered the region (a GPU) writes into pages that are no longer the file's. Takes no lock that the client could hold.
static int adopt(int fd, uint64_t bytes, int *region_fd, char *why)
{
	uint64_t size;
	if (mpig_region_check(fd, bytes, bytes, &size) != MPIG_OK) {
		snprintf(why, MPIG_TEXT_BYTES,
		         "the region to adopt is not a memfd of exactly %" PRIu64
		         " bytes with exactly the seals SHRINK, GROW and SEAL",
		         bytes);
		return MPIG_EINVAL;
	}
	struct stat file;
	if (fstat(fd, &file) != 0 || (uint64_t)file.st_blocks * 512 < bytes) {
		snprintf(why, MPIG_TEXT_BYTES,
		         "pages of the region to adopt are missing: it was given up, or offered later than limits.region_keep "
		         "after its "
		         "connection's end");
		return MPIG_EINVAL;
	}
	*region_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (*region_fd >= 0)
		return MPIG_OK;
	snprintf(why, MPIG_TEXT_BYTES, "the daemon has no file descriptor left");
	return MPIG_ENOMEM;
}

static int make_region(const struct queue_options *o, uint64_t bytes, int *region_fd, char *why)
{
	if (o->adopt_fd >= 0)
		return adopt(o->adopt_fd, bytes, region_fd, why);
	int status = mpig_region_create("magicpig-queue", bytes, region_fd);
	if (status != MPIG_OK)
		snprintf(why, MPIG_TEXT_BYTES, "no memory for a region of %" PRIu64 " bytes: %m", bytes);
	return status;
}

static void init_rings(struct queue *q)
{
	// An adopted region's old rings are forgotten: the client starts both from 0 too.
	memset(q->base, 0, q->geometry.slots_offset);
	memcpy(q->base, &q->geometry, sizeof q->geometry);
	mpig_daemon_rings(q->base, &q->geometry, &q->sq, &q->cq);
}

int queue_create(const struct queue_options *o, struct session *session, struct queue **out, int *region_fd, char *why)
{
	struct mpig_queue_header header;
	int fd, status = geometry(o, &header, why);
	if (status != MPIG_OK)
		return status;
	status = make_region(o, header.region_bytes, &fd, why);
	if (status != MPIG_OK)
		return status;
	struct queue *q = aligned_alloc(64, (sizeof *q + 63) / 64 * 64);
	if (!q)
		goto close_region;
	memset(q, 0, sizeof *q);
	header.epoch = o->epoch;
	q->geometry = header;
	q->max_query_tokens = o->max_query_tokens;
	q->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->eventfd < 0)
		goto free_queue;
	struct stat file;
	if (fstat(fd, &file) != 0 || mpig_region_map(fd, header.region_bytes, 1, &q->base) != MPIG_OK)
		goto close_eventfd;
	q->region_device = file.st_dev;
	q->region_inode = file.st_ino;
	init_rings(q);
	pthread_mutex_init(&q->lock, NULL);
	q->session = session_ref(session);
	q->pidfd = -1;
	*out = q;
	*region_fd = fd;
	return MPIG_OK;

close_eventfd:
	close(q->eventfd);
free_queue:
	free(q);
close_region:
	close(fd);
	snprintf(why, MPIG_TEXT_BYTES, "the daemon has no memory, file descriptor or address space left for this queue");
	return MPIG_ENOMEM;
}

bool queue_has_region(const struct queue *q, int fd)
{
	struct stat file;
	return fstat(fd, &file) == 0 && file.st_dev == q->region_device && file.st_ino == q->region_inode;
}

void queue_destroy(struct queue *q)
{
	if (!q)
		return;
	if (q->base)
		munmap(q->base, q->geometry.region_bytes);
	if (q->pidfd >= 0)
		close(q->pidfd);
	close(q->eventfd);
	session_unref(q->session);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

static void wake_client(struct queue *q)
{
	syscall(SYS_futex, &shared(q)->cq_tail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void queue_close(struct queue *q)
{
	atomic_store(&q->state, QUEUE_CLOSING);
	pthread_mutex_lock(&q->lock); // the flag word has two writers in here
	mpig_flag_set(&shared(q)->sq_flags, MPIG_SQ_CLOSED);
	pthread_mutex_unlock(&q->lock);
	wake_client(q);
}

void queue_need_wakeup(struct queue *q, bool need)
{
	pthread_mutex_lock(&q->lock);
	if (need)
		mpig_flag_set(&shared(q)->sq_flags, MPIG_SQ_NEED_WAKEUP); // F5
	else
		mpig_flag_clear(&shared(q)->sq_flags, MPIG_SQ_NEED_WAKEUP);
	pthread_mutex_unlock(&q->lock);
}

uint64_t queue_lease(struct queue *q, uint64_t now, uint64_t most)
{
	uint64_t peer_until = __atomic_load_n(&shared(q)->awake_until, __ATOMIC_RELAXED);
	if (peer_until == q->awake_seen)
		return 0;
	q->awake_seen = peer_until;
	if (peer_until <= now)
		return 0;
	return peer_until - now < most ? peer_until : now + most;
}

bool queue_silent(const struct queue *q)
{
	return __atomic_load_n(&shared(q)->sq_silent, __ATOMIC_RELAXED) != 0;
}

// ---- claiming --------------------------------------------------------------------------------------------------------
bool queue_claim(struct queue *q, uint32_t worker)
{
	uint32_t nobody = 0;
	return atomic_load_explicit(&q->claim, memory_order_relaxed) == 0 &&
	       atomic_compare_exchange_strong_explicit(&q->claim, &nobody, worker + 1, memory_order_acquire,
	                                               memory_order_relaxed);
}

void queue_release(struct queue *q)
{
	atomic_store_explicit(&q->claim, 0, memory_order_release); // partner: the next claim's CAS
}

bool queue_pending(const struct queue *q)
{
	uint32_t peer_tail = __atomic_load_n(q->sq.peer_tail, __ATOMIC_RELAXED); // only a hint: A1 follows under the claim
	return atomic_load_explicit(&q->held, memory_order_relaxed) ||
	       peer_tail != atomic_load_explicit(&q->taken, memory_order_relaxed);
}

// ---- taking ----------------------------------------------------------------------------------------------------------
static void mark_broken(struct queue *q)
{
	atomic_store_explicit(&q->broken, true, memory_order_release);
}

// Room for one more completion than those already owed.
static bool may_take(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	int room = mpig_producer_room(&q->cq);
	if (room >= 0 && (uint32_t)room <= q->flying_count) {
		q->cq.known_head = q->cq.next - q->cq.mask - 1; // as if full: look at the client's head again
		room = mpig_producer_room(&q->cq);
	}
	bool ok = room >= 0 && (uint32_t)room > q->flying_count && q->flying_count < QUEUE_IN_FLIGHT;
	pthread_mutex_unlock(&q->lock);
	if (room < 0)
		mark_broken(q);
	return ok;
}

// Slot headers are written by the client, maybe at this moment: each word is loaded once.
static void copy_slot_header(const uint8_t *slot, struct mpig_slot_header *out)
{
	typedef uint64_t __attribute__((may_alias)) word;
	const word *from = (const word *)(const void *)slot;
	uint64_t words[sizeof *out / sizeof(uint64_t)];
	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
		words[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	memcpy(out, words, sizeof *out);
}

struct submission *queue_next(struct queue *q)
{
	if (atomic_load_explicit(&q->state, memory_order_relaxed) != QUEUE_OPEN ||
	    atomic_load_explicit(&q->broken, memory_order_relaxed))
		return NULL;
	if (atomic_load_explicit(&q->held, memory_order_relaxed))
		return &q->next;
	int ready = mpig_consumer_ready(&q->sq);
	if (ready < 0)
		mark_broken(q);
	if (ready <= 0 || !may_take(q))
		return NULL;
	struct submission *s = &q->next;
	mpig_consumer_take(&q->sq, &s->entry);
	memset(&s->slot, 0, sizeof s->slot);
	if (s->entry.slot < q->geometry.slot_count)
		copy_slot_header(queue_slot(q, s->entry.slot), &s->slot);
	mpig_consumer_release(&q->sq);
	s->sequence = q->sequence++;
	s->taken_ns = mono_ns();
	s->admitted = false;
	PROBE4(submit, q->id, s->sequence, s->entry.op, s->entry.handle);
	atomic_store_explicit(&q->taken, q->sq.next, memory_order_relaxed);
	atomic_store_explicit(&q->held, true, memory_order_relaxed);
	return s;
}

void queue_next_done(struct queue *q)
{
	atomic_store_explicit(&q->held, false, memory_order_relaxed);
}

uint8_t *queue_slot(const struct queue *q, uint32_t slot)
{
	if (slot == MPIG_NO_SLOT)
		return NULL;
	return (uint8_t *)q->base + q->geometry.slots_offset + slot * q->geometry.slot_bytes;
}

// ---- checking --------------------------------------------------------------------------------------------------------
static const struct {
	uint8_t flags;    // allowed
	uint32_t present; // allowed in the slot header
	bool slot;        // needed
	bool layer;       // means something
	bool dtype;
} rules[MPIG_OP_COUNT] = {
	[MPIG_OP_NOP] = {0},
	[MPIG_OP_ATTEND] = {MPIG_SQE_END_RELATIVE | MPIG_SQE_SEED_SEQUENCE | MPIG_SQE_CAUSAL,
                            MPIG_HAS_WINDOW_LSE | MPIG_HAS_SIGNATURE | MPIG_HAS_WINDOW_OUT, true, true, true},
	[MPIG_OP_APPEND] = {0, MPIG_HAS_QUERIES, true, true, true},
	[MPIG_OP_COMMIT] = {MPIG_SQE_SEAL, 0, false, false, false},
	[MPIG_OP_TRUNCATE] = {0},
	[MPIG_OP_READ] = {MPIG_SQE_END_RELATIVE, 0, true, true, false},
};

int queue_check(const struct queue *q, const struct submission *s)
{
	const struct mpig_sqe *e = &s->entry;
	if (e->op >= MPIG_OP_COUNT || e->reserved0 || e->reserved1 || e->flags & ~MPIG_SQE_FLAGS)
		return MPIG_EPROTO;
	if (e->slot != MPIG_NO_SLOT && e->slot >= q->geometry.slot_count)
		return MPIG_EPROTO;
	if (!mpig_all_zero(s->slot.reserved, sizeof s->slot.reserved) || s->slot.present & ~(uint32_t)MPIG_PRESENT_FLAGS)
		return MPIG_EPROTO;
	if (e->op == MPIG_OP_NOP)
		return MPIG_OK;
	bool needs_slot = rules[e->op].slot || (e->op == MPIG_OP_COMMIT && e->count > 0);
	if ((needs_slot && e->slot == MPIG_NO_SLOT) || e->flags & ~rules[e->op].flags || s->slot.present & ~rules[e->op].present)
		return MPIG_EINVAL;
	if (rules[e->op].dtype ? e->dtype >= MPIG_I8 : e->dtype != MPIG_F32)
		return MPIG_EINVAL;
	if ((!rules[e->op].layer && e->layer) || (e->op != MPIG_OP_ATTEND && (e->proposal || e->budget != 0)) ||
	    e->proposal >= MPIG_PROPOSAL_COUNT)
		return MPIG_EINVAL;
	if (e->op == MPIG_OP_ATTEND && (e->count == 0 || !(e->budget >= 0 && e->budget <= 1)))
		return MPIG_EINVAL;
	if (e->op == MPIG_OP_ATTEND && e->count > q->max_query_tokens)
		return MPIG_ELIMIT;
	return MPIG_OK;
}

// ---- in flight, and completing ---------------------------------------------------------------------------------------
bool queue_conflicts(struct queue *q, const struct context *context, bool writes)
{
	bool conflict = false;
	pthread_mutex_lock(&q->lock);
	for (uint32_t i = 0; i < q->flying_count; i++)
		conflict |= q->flying[i]->binding->context == context && (writes || q->flying[i]->writes);
	pthread_mutex_unlock(&q->lock);
	return conflict;
}

void queue_fly(struct queue *q, struct task *task)
{
	atomic_fetch_add_explicit(&q->in_flight, 1, memory_order_relaxed);
	pthread_mutex_lock(&q->lock);
	q->flying[q->flying_count++] = task;
	pthread_mutex_unlock(&q->lock);
}

static void forget(struct queue *q, const struct task *task)
{
	for (uint32_t i = 0; i < q->flying_count; i++)
		if (q->flying[i] == task) {
			q->flying[i] = q->flying[--q->flying_count];
			return;
		}
}

void queue_complete(struct queue *q, const struct mpig_cqe *cqe, struct task *task)
{
	pthread_mutex_lock(&q->lock);
	forget(q, task);
	mpig_producer_put(&q->cq, cqe);
	mpig_producer_publish_brief(&q->cq, MPIG_CQ_BRIEF(cqe->user_data, cqe->status)); // R0
	pthread_mutex_unlock(&q->lock);
	if (mpig_flag_peer(&shared(q)->cq_waiting, UINT32_MAX)) // F4
		wake_client(q);
}
