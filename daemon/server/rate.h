// A limit on requests a second, for all queues of a user or of a group: the generic cell rate algorithm, on one word. A request over the
// rate is not refused; its entry waits in its queue, as it would for a worker.
#ifndef MPIG_SERVER_RATE_H
#define MPIG_SERVER_RATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define RATE_BURST_NS UINT64_C(100000000) // after a pause, as many requests at once as the rate gives in this time

struct rate {
	_Atomic uint64_t interval_ns; // 0: no limit. Control thread
	_Atomic uint64_t due_ns;      // when the requests taken so far would be over at the rate. Any worker
};

static inline void rate_set(struct rate *r, uint32_t per_second)
{
	atomic_store_explicit(&r->interval_ns, per_second ? UINT64_C(1000000000) / per_second : 0, memory_order_relaxed);
}

// False: not now. *took: what rate_give gives back.
static inline bool rate_take(struct rate *r, uint64_t now_ns, uint64_t *took)
{
	uint64_t interval = atomic_load_explicit(&r->interval_ns, memory_order_relaxed);
	*took = 0;
	if (!interval)
		return true;
	uint64_t due = atomic_load_explicit(&r->due_ns, memory_order_relaxed), begin;
	do {
		begin = due > now_ns ? due : now_ns;
		if (begin - now_ns > RATE_BURST_NS)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(&r->due_ns, &due, begin + interval, memory_order_relaxed,
	                                                memory_order_relaxed));
	*took = interval;
	return true;
}

// Undoes a rate_take that was not used. The limit may be another one meanwhile.
static inline void rate_give(struct rate *r, uint64_t took)
{
	atomic_fetch_sub_explicit(&r->due_ns, took, memory_order_relaxed);
}

#endif
