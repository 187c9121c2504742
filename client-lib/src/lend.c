// Queues that somebody else feeds, such as a GPU, and leases that keep the daemon's workers awake for them.
#include "internal.h"

#include <string.h>

static void describe(const mpig_queue *q, struct mpig_region *out)
{
	*out = (struct mpig_region){
		.base = q->base,
		.bytes = q->header.region_bytes,
		.sq_offset = q->header.sq_offset,
		.cq_offset = q->header.cq_offset,
		.slots_offset = q->header.slots_offset,
		.slot_bytes = q->header.slot_bytes,
		.entries = q->header.entries,
		.slots = q->header.slot_count,
		.sq_tail = q->sq.next,
		.cq_head = q->cq.next,
	};
}

// A worker that sleeps already sleeps without a timer: it is woken to see the word.
static void set_silent(mpig_queue *q, uint32_t silent)
{
	__atomic_store_n(&q->shared->sq_silent, silent, __ATOMIC_RELAXED);
	if (silent && mpig_flag_peer(&q->shared->sq_flags, MPIG_SQ_NEED_WAKEUP)) // F4
		wake_worker(q);
}

int mpig_queue_lend(mpig_queue *q, struct mpig_region *region)
{
	if (!q)
		return MPIG_EINVAL;
	if (!region)
		return error_set(q->client, MPIG_EINVAL, "region is NULL");
	int rc = queue_ready(q);
	if (rc)
		return rc;
	flights_reap(q);
	if (q->out || q->done_first != NO_FLIGHT)
		return error_set(q->client, MPIG_EBUSY, "a queue is lent empty: %u requests are in flight%s", q->out,
		                 q->done_first != NO_FLIGHT ? " and some are not polled" : "");
	struct mpig_region known;
	describe(q, &known);
	rc = options_return(q->client, "mpig_region", region, &known, sizeof(known));
	if (rc)
		return rc;
	q->lent = true;
	set_silent(q, 1);
	return MPIG_OK;
}

int mpig_queue_renew(mpig_queue *q, struct mpig_region *region)
{
	if (!q)
		return MPIG_EINVAL;
	if (client_forked(q->client))
		return MPIG_EFORK;
	if (!q->lent || !region)
		return error_set(q->client, MPIG_EINVAL, "%s", region ? "this queue is not lent" : "region is NULL");
	queue_look(q);
	int rc = queue_ready_lent(q);
	if (rc == MPIG_OK)
		contexts_again(q->client); // whoever feeds the queue names contexts without asking
	if (rc != 1)
		return rc;
	set_silent(q, 1);
	struct mpig_region known;
	describe(q, &known);
	rc = options_return(q->client, "mpig_region", region, &known, sizeof(known));
	return rc ? rc : 1;
}

// What the borrower left in flight will still be answered, in slots that the queue takes for free: then it gets a new region.
void mpig_queue_take_back(mpig_queue *q)
{
	if (!q || client_forked(q->client) || !q->lent)
		return;
	q->lent = false;
	set_silent(q, 0);
	mpig_client_rings(q->base, &q->header, &q->sq, &q->cq);
	if (q->sq.next != q->cq.next) {
		q->suspect = true;
		flights_fail(q, MPIG_ERETRY);
	}
}

int mpig_awake(mpig_queue *q, int ms)
{
	if (!q)
		return MPIG_EINVAL;
	mpig_client *c = q->client;
	if (client_forked(c))
		return MPIG_EFORK;
	if (ms < 0)
		return error_set(c, MPIG_EINVAL, "ms = %d: must not be negative", ms);
	queue_look(q);
	if (!q->connection || q->connection != atomic_load_explicit(&c->connection, memory_order_acquire))
		return error_set(c, MPIG_ERETRY, "%s", mpig_status_text(MPIG_ERETRY));
	if (!(q->header.features & MPIG_FEATURE_AWAKE))
		return error_set(c, MPIG_ENOTSUP, "this daemon knows no leases");
	__atomic_store_n(&q->shared->awake_until, ms ? deadline_in(ms) : 0, __ATOMIC_RELAXED);
	if (ms && mpig_flag_peer(&q->shared->sq_flags, MPIG_SQ_NEED_WAKEUP)) // F4
		wake_worker(q);
	return MPIG_OK;
}
