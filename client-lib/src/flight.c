// The data path of a queue: flights out over the submission ring, home over the completion ring, in any order.
#include "internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPINS_PER_LOOK 64 // looks at the ring between looks at the clock

static void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

// ---- bookkeeping -------------------------------------------------------------------------------------------------------

static uint32_t flight_index(const mpig_queue *q, const struct flight *f)
{
	return (uint32_t)(f - q->flights);
}

void flights_reset_slots(mpig_queue *q)
{
	q->free_slot_count = q->header.slot_count;
	for (uint32_t i = 0; i < q->free_slot_count; i++)
		q->free_slots[i] = q->free_slot_count - 1 - i; // slot 0 is taken first
}

static void done_append(mpig_queue *q, struct flight *f)
{
	uint32_t i = flight_index(q, f);
	f->next = NO_FLIGHT;
	f->previous = q->done_last;
	if (q->done_last == NO_FLIGHT)
		q->done_first = i;
	else
		q->flights[q->done_last].next = i;
	q->done_last = i;
}

static void done_remove(mpig_queue *q, struct flight *f)
{
	if (f->previous == NO_FLIGHT)
		q->done_first = f->next;
	else
		q->flights[f->previous].next = f->next;
	if (f->next == NO_FLIGHT)
		q->done_last = f->previous;
	else
		q->flights[f->next].previous = f->previous;
}

static void flight_release(mpig_queue *q, struct flight *f)
{
	if (f->context)
		atomic_fetch_sub_explicit(&f->context->flights, 1, memory_order_release);
	f->context = NULL;
	f->state = FLIGHT_FREE;
	f->next = q->free_flight;
	q->free_flight = flight_index(q, f);
}

static void flight_end(mpig_queue *q, struct flight *f, int status)
{
	q->out--;
	f->status = status;
	f->state = FLIGHT_DONE;
	if (f->detached)
		flight_release(q, f);
	else
		done_append(q, f);
}

void flights_fail(mpig_queue *q, int status)
{
	if (q->connection)
		q->attached_before = q->connection;
	q->connection = 0;
	for (uint32_t i = 0; q->out && i < q->header.entries; i++)
		if (q->flights[i].state == FLIGHT_OUT)
			flight_end(q, &q->flights[i], status);
}

void flights_drop(mpig_queue *q)
{
	for (uint32_t i = 0; i < q->header.entries; i++)
		if (q->flights[i].state != FLIGHT_FREE)
			flight_release(q, &q->flights[i]);
	q->out = 0;
}

// ---- submitting --------------------------------------------------------------------------------------------------------

int flight_begin(mpig_queue *q, bool slot, struct flight **out)
{
	if (q->free_flight == NO_FLIGHT || (slot && !q->free_slot_count))
		flights_reap(q);
	if (!q->connection)
		return error_set(q->client, MPIG_ERETRY, "%s", mpig_status_text(MPIG_ERETRY));
	if (q->free_flight == NO_FLIGHT)
		return error_set(q->client, MPIG_EAGAIN, "%u requests are in flight or not yet polled (entries = %u)",
		                 q->header.entries, q->header.entries);
	if (slot && !q->free_slot_count)
		return error_set(q->client, MPIG_EAGAIN, "all %u payload slots are in flight", q->header.slot_count);
	struct flight *f = &q->flights[q->free_flight];
	q->free_flight = f->next;
	*f = (struct flight){.slot = slot ? q->free_slots[--q->free_slot_count] : MPIG_NO_SLOT};
	*out = f;
	return MPIG_OK;
}

static int64_t submit_failed(mpig_queue *q, struct flight *f, int status, const char *why)
{
	if (f->slot != MPIG_NO_SLOT)
		q->free_slots[q->free_slot_count++] = f->slot;
	f->context = NULL; // not yet counted
	flight_release(q, f);
	return error_set(q->client, status, "%s", why);
}

void wake_worker(const mpig_queue *q)
{
	uint64_t one = 1;
	while (write(q->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

int64_t flight_submit(mpig_queue *q, struct flight *f, struct mpig_sqe *entry)
{
	int room = mpig_producer_room(&q->sq);
	if (room < 0) {
		q->suspect = true;
		flights_fail(q, MPIG_EPROTO);
		return submit_failed(q, f, MPIG_EPROTO, "the submission ring is broken: its head is impossible");
	}
	if (room == 0)
		return submit_failed(q, f, MPIG_EAGAIN, "the submission ring is full");
	if (f->context)
		atomic_fetch_add_explicit(&f->context->flights, 1, memory_order_relaxed);
	f->ticket = (int64_t)(++q->serial * MPIG_MAX_QUEUE_ENTRIES + flight_index(q, f));
	f->state = FLIGHT_OUT;
	f->op = entry->op;
	f->layer = entry->layer;
	f->begin = entry->begin;
	f->count = entry->count;
	entry->user_data = (uint64_t)f->ticket;
	entry->slot = f->slot;
	entry->handle = f->context ? f->context->handle : 0;
	q->out++;
	mpig_producer_put(&q->sq, entry);
	mpig_producer_publish(&q->sq);
	if (mpig_flag_peer(&q->shared->sq_flags, MPIG_SQ_NEED_WAKEUP))
		wake_worker(q);
	return f->ticket;
}

// ---- completions -------------------------------------------------------------------------------------------------------

static void copy_out(void *to, const uint8_t *slot, uint64_t offset, uint64_t bytes)
{
	if (to)
		memcpy(to, slot + offset, bytes);
}

static void take_result(const mpig_queue *q, struct flight *f, const struct mpig_cqe *e)
{
	const uint8_t *slot = f->slot == MPIG_NO_SLOT ? NULL : slot_payload(q, f->slot);
	uint64_t heads = (uint64_t)f->heads;
	if (f->op == MPIG_OP_ATTEND) {
		struct mpig_result *r = f->result;
		copy_out(r->out, slot, f->layout.out, heads * f->d_v * 4);
		copy_out(r->lse, slot, f->layout.lse, heads * 4);
		copy_out(r->error_v, slot, f->layout.error_v, heads * 4);
		copy_out(r->error_a, slot, f->layout.error_a, heads * 4);
		copy_out(r->rows, slot, f->layout.rows, heads * 4);
		r->committed = e->committed;
		r->rows_read = e->rows_read;
		r->bytes_read = e->bytes_read;
		r->service_ns = e->service_ns;
	} else if (f->op == MPIG_OP_READ) {
		copy_out(f->k, slot, f->layout.k, heads * f->d_k * 4);
		copy_out(f->v, slot, f->layout.v, heads * f->d_v * 4);
	}
}

static void take_context_news(const struct flight *f, const struct mpig_cqe *e)
{
	mpig_context *x = f->context;
	if (!x)
		return;
	atomic_store_explicit(&x->committed, e->committed, memory_order_relaxed);
	atomic_store_explicit(&x->signature_version, e->signature_version, memory_order_relaxed);
	uint64_t appended = atomic_load_explicit(&x->appended, memory_order_relaxed), end = f->begin + f->count;
	if (f->op == MPIG_OP_APPEND && end > appended)
		atomic_store_explicit(&x->appended, end, memory_order_relaxed);
	else if (f->op == MPIG_OP_TRUNCATE)
		atomic_store_explicit(&x->appended, f->begin, memory_order_relaxed);
}

// False if the completion answers nothing that is out.
static bool take_completion(mpig_queue *q, const struct mpig_cqe *e)
{
	uint64_t index = e->user_data % MPIG_MAX_QUEUE_ENTRIES;
	if (index >= q->header.entries)
		return false;
	struct flight *f = &q->flights[index];
	if (f->state != FLIGHT_OUT || (uint64_t)f->ticket != e->user_data || f->slot != e->slot || e->status > 0)
		return false;
	if (e->status == MPIG_OK) {
		if (!f->detached)
			take_result(q, f, e);
		take_context_news(f, e);
	} else if (f->context &&
	           e->committed > mpig_context_committed(f->context)) { // a commit whose tokens could not be indexed
		atomic_store_explicit(&f->context->committed, e->committed, memory_order_relaxed);
	}
	if (f->slot != MPIG_NO_SLOT)
		q->free_slots[q->free_slot_count++] = f->slot;
	flight_end(q, f, e->status);
	return true;
}

void flights_reap(mpig_queue *q)
{
	if (!q->connection || !q->out)
		return;
	// Looked at first: what was completed before the queue was closed, or the connection lost, is still taken.
	bool closed = __atomic_load_n(&q->shared->sq_flags, __ATOMIC_ACQUIRE) & MPIG_SQ_CLOSED;
	bool lost = q->connection != atomic_load_explicit(&q->client->connection, memory_order_acquire);
	int ready = mpig_consumer_ready(&q->cq);
	bool sound = ready >= 0;
	for (int i = 0; sound && i < ready; i++) {
		struct mpig_cqe e;
		mpig_consumer_take(&q->cq, &e);
		sound = take_completion(q, &e);
	}
	if (!sound) {
		q->suspect = true;
		flights_fail(q, MPIG_EPROTO);
		return;
	}
	if (ready)
		mpig_consumer_release(&q->cq);
	if (closed || lost)
		flights_fail(q, MPIG_ERETRY);
}

struct flight *flight_find(mpig_queue *q, int64_t ticket)
{
	if (ticket <= 0)
		return NULL;
	uint64_t index = (uint64_t)ticket % MPIG_MAX_QUEUE_ENTRIES;
	struct flight *f = index < q->header.entries ? &q->flights[index] : NULL;
	return f && f->state != FLIGHT_FREE && f->ticket == ticket && !f->detached ? f : NULL;
}

static const char *op_name(uint8_t op)
{
	static const char *const names[MPIG_OP_COUNT] = {"nop", "attend", "append", "commit", "truncate", "read"};
	return op < MPIG_OP_COUNT ? names[op] : "request";
}

int flight_consume(mpig_queue *q, struct flight *f)
{
	int status = f->status;
	if (status && f->context)
		error_set(q->client, status, "%s, layer %u of '%s', tokens from %llu, count %u: %s (committed %llu)",
		          op_name(f->op), f->layer, f->context->name, (unsigned long long)f->begin, f->count,
		          mpig_status_text(status), (unsigned long long)mpig_context_committed(f->context));
	else if (status)
		error_set(q->client, status, "%s: %s", op_name(f->op), mpig_status_text(status));
	done_remove(q, f);
	flight_release(q, f);
	return status;
}

void flight_detach(mpig_queue *q, struct flight *f)
{
	if (f->state == FLIGHT_DONE) {
		done_remove(q, f);
		flight_release(q, f);
	} else {
		f->detached = true;
	}
}

// ---- waiting -----------------------------------------------------------------------------------------------------------

struct wait_goal {
	const struct flight *flight; // done, or, if NULL,
	uint32_t out;                // fewer than this are out
};

static bool reached(const mpig_queue *q, struct wait_goal goal)
{
	return goal.flight ? goal.flight->state == FLIGHT_DONE : q->out < goal.out;
}

static bool spin(mpig_queue *q, struct wait_goal goal, uint64_t begin, uint64_t until)
{
	uint64_t looked = begin; // a first look at once would cost more than most answers take
	for (;;) {
		for (int i = 0; i < SPINS_PER_LOOK; i++) {
			flights_reap(q);
			if (reached(q, goal))
				return true;
			cpu_pause();
		}
		uint64_t now = now_ns();
		if (now >= until)
			return false;
		if (now - looked >= LIVENESS_NS) {
			queue_look(q);
			looked = now;
		}
	}
}

// Until the completion ring moves, `limit` passes, or a signal comes.
static void sleep_on_ring(mpig_queue *q, uint64_t limit)
{
	mpig_flag_set(&q->shared->cq_waiting, 1); // F5
	if (mpig_consumer_ready(&q->cq) == 0) {
		struct timespec t = {.tv_sec = (time_t)(limit / UINT64_C(1000000000)),
		                     .tv_nsec = (long)(limit % UINT64_C(1000000000))};
		syscall(SYS_futex, &q->shared->cq_tail, FUTEX_WAIT, q->cq.next, &t, NULL, 0);
	}
	mpig_flag_clear(&q->shared->cq_waiting, 1);
}

int flight_wait(mpig_queue *q, const struct flight *flight, uint64_t deadline)
{
	struct wait_goal goal = {.flight = flight, .out = q->out};
	flights_reap(q);
	if (reached(q, goal))
		return MPIG_OK;
	uint64_t now = now_ns(), left = now < deadline ? deadline - now : 0;
	if (spin(q, goal, now, now + (q->spin_ns < left ? q->spin_ns : left)))
		return MPIG_OK;
	for (;;) {
		now = now_ns();
		if (now - q->looked_ns >= LIVENESS_NS)
			queue_look(q);
		else if (now < deadline)
			sleep_on_ring(q, deadline - now < SLEEP_SLICE_NS ? deadline - now : SLEEP_SLICE_NS);
		flights_reap(q);
		if (reached(q, goal))
			return MPIG_OK;
		if (now >= deadline)
			return error_set(q->client, MPIG_ETIMEDOUT,
			                 "no completion before the deadline; %u requests are in flight", q->out);
	}
}

// ---- the public calls --------------------------------------------------------------------------------------------------

int mpig_poll(mpig_queue *q, struct mpig_completion *completions, int max)
{
	if (!q)
		return MPIG_EINVAL;
	if (client_forked(q->client))
		return MPIG_EFORK;
	if (max < 0 || (max > 0 && !completions))
		return error_set(q->client, MPIG_EINVAL, "max = %d: must not be negative, and completions not NULL", max);
	flights_reap(q);
	if (q->done_first == NO_FLIGHT && q->out && now_ns() - q->looked_ns >= LIVENESS_NS) {
		queue_look(q);
		flights_reap(q);
	}
	int n = 0;
	while (n < max && q->done_first != NO_FLIGHT) {
		struct flight *f = &q->flights[q->done_first];
		completions[n].user_data = f->user_data;
		completions[n++].status = f->status;
		flight_consume(q, f);
	}
	return n;
}

int mpig_wait(mpig_queue *q, int64_t ticket, int timeout_ms)
{
	if (!q)
		return MPIG_EINVAL;
	if (client_forked(q->client))
		return MPIG_EFORK;
	struct flight *f = flight_find(q, ticket);
	if (!f)
		return error_set(q->client, MPIG_EINVAL, "ticket %lld: not of this queue, or its completion has been taken",
		                 (long long)ticket);
	int rc = flight_wait(q, f, timeout_ms ? deadline_in(timeout_ms) : queue_deadline(q));
	return rc ? rc : flight_consume(q, f);
}
