// Places of contexts and clients in the statistics (shm/stats.h): a bounded number, each in use by one context or client at a time.
// Place 0 is everybody's who found none.
#ifndef MPIG_SERVER_PLACES_H
#define MPIG_SERVER_PLACES_H

#include <stdatomic.h>
#include <stdint.h>

#include "shm/stats.h"

enum places_kind { PLACES_CONTEXTS, PLACES_CLIENTS };
struct places {
	struct mpig_stats *stats; // borrowed
	enum places_kind kind;
	atomic_uint users[MPIG_STATS_PLACES]; // handles, or a client and its queues
};

void places_init(struct places *places, struct mpig_stats *stats, enum places_kind kind);
// A use of the place of `id`: the one it has, or had last, or the free one that was moved into longest ago; 0 if there is none. Control
// thread.
uint32_t places_take(struct places *places, uint64_t id, uint32_t uid, uint32_t pid);
// One use more of a place that has one. Any thread.
void places_share(struct places *places, uint32_t place);
// One use less; after the last the place is free, and its counters go on being shown until somebody moves in. Any thread.
void places_leave(struct places *places, uint32_t place);

// Shows in the directory how many uses each place has. Control thread.
void places_show(struct places *places);

// Sums over the workers for the one that is in a place since it moved in. Any thread.
struct mpig_stats_use places_use(const struct places *places, uint32_t place);

#endif
