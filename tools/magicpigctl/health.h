// Whether the daemon is alive and ready, from its statistics file.
#ifndef MAGICPIGCTL_HEALTH_H
#define MAGICPIGCTL_HEALTH_H

#include <stdbool.h>

struct stats_sample;

#define HEALTH_CONTROL_STALE_NS UINT64_C(5000000000) // it shows itself once a second
#define HEALTH_WORKER_STALE_NS UINT64_C(10000000000) // those that are awake, between units of work

struct health {
	bool alive;       // every thread that should be running has been seen lately
	bool ready;       // and it serves newcomers
	char reason[160]; // why not; "" if both
};
struct health health_of(const struct stats_sample *sample);

#endif
