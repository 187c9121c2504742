// An engine and a store small enough to watch: what the server's tests give the workers instead of the real ones. A job has
// `count` units (at least one); each takes a moment. Jobs of one context check and record who runs beside them.
#ifndef MPIG_TESTS_SERVER_FAKE_ENGINE_H
#define MPIG_TESTS_SERVER_FAKE_ENGINE_H

#include <stdatomic.h>
#include <stdint.h>

#define FAKE_LOG 65536u

struct context {
	atomic_uint references;
	atomic_uint readers, writers; // jobs in progress
	atomic_uint overlaps;         // a writer met anybody
	atomic_uint most_readers;
	atomic_uint logged;            // writes, in the order in which they took effect
	uint64_t log[FAKE_LOG];        // their seeds
	atomic_ullong released_holder; // of the lease given back last
	atomic_uint writers_at_release;
	atomic_uint hold; // units wait while it is nonzero; 2: within job_run
};

struct context *fake_context(void);
extern atomic_uint fake_jobs, fake_contexts; // alive
// Reading ahead: jobs that were asked what comes next, and lists made of it; steps of a byte that there are, and that were taken; and how often each worker asked a job for work.
#define FAKE_WORKERS 8u
extern atomic_uint fake_learned, fake_listed, fake_to_read, fake_reads, fake_looks[FAKE_WORKERS], fake_units;

#endif
