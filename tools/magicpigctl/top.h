// magicpigctl top: what its parts share.
#ifndef MAGICPIGCTL_TOP_H
#define MAGICPIGCTL_TOP_H

#include <stdbool.h>
#include <stdint.h>

#include "health.h"
#include "limit.h"
#include "stats.h"
#include "text.h"

enum top_sort { TOP_BY_REQUESTS, TOP_BY_ROWS, TOP_BY_BYTES, TOP_BY_NAME, TOP_SORTS };

struct top_user {              // a context or a client: what was done for it, a second
	uint64_t id, uid, pid; // id 0: those without a place of their own, together
	char name[128];
	double requests, attends, rows, bytes, appended, errors;
	double service; // seconds of requests being served, a second
};
struct top_users {
	struct top_user user[MPIG_STATS_PLACES];
	uint32_t count;
};
struct top_operation {
	const char *name;
	double rate, p50, p90, p99, p999; // a second; ns
};
struct top_worker {
	uint64_t cpu, state;
	bool stuck;              // awake, and not seen for long
	double busy, spin, park; // shares of the interval
	double units, bytes;
};

// One look: rates between two samples.
struct top_view {
	bool waiting; // for a daemon: `why` says what is missing, and nothing else is set
	char why[160];
	double seconds; // between the samples
	struct stats_head head;
	struct health health;
	double requests, rows, bytes, appended, errors, busy; // busy: of all workers
	struct top_operation operation[MPIG_STATS_OPS];       // those that were asked for since the daemon's start
	uint32_t operations;
	struct top_worker worker[MPIG_STATS_MAX_WORKERS];
	uint32_t workers;
	struct top_users contexts, clients;
	struct limit limit; // stream_bytes_per_s 0: not measured
	double peak_bytes;  // most that was seen since top started
};

struct top_source;
// Looks at that statistics file, and at the one that takes its place when another daemon starts. NULL: no memory.
struct top_source *top_source_open(const char *path);
void top_source_close(struct top_source *source);
// What has happened since the last call (at the first: a moment is waited). Never waits for the daemon.
void top_look(struct top_source *source, enum top_sort sort, struct top_view *view);

// Names of contexts, asked of the daemon by a thread of its own, so that nobody waits for it.
void names_start(void);
// The name of a context the caller may read; "#12" where it is not known (yet).
void names_context(uint64_t id, char *name, size_t bytes);

// Runs until the user has had enough; delay in ms. Returns enum ctl_exit.
int top_screen(struct top_source *source, unsigned long delay_ms);
// A line for each interval, `count` of them (0: until interrupted).
int top_batch(struct top_source *source, unsigned long delay_ms, unsigned long count);

#endif
