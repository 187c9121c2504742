#include "tools/common/roofline.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { AHEAD = 8, SHARE = 8, MAX_REPETITIONS = 64 }; // one row in SHARE is gathered

typedef uint64_t lane __attribute__((vector_size(64)));

// All threads read at the same time: each waits for the next phase, and the one that asked until all have done it.
struct meeting {
	const struct roofline_options *options;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint32_t phase, done; // 2i + 1: the i-th stream, 2i + 2: the i-th gather; how many threads have done it
	bool over, failed;
};

struct reader {
	struct meeting *meeting;
	pthread_t thread;
	uint32_t number;
	uint8_t *data;
	uint32_t *order; // of the rows that are gathered
	size_t picks;
	double seconds[2]; // of the last stream, and of the last gather
	uint64_t sink;     // so that nothing is optimised away
};

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void stream(struct reader *r, size_t bytes)
{
	const lane *x = (const lane *)(const void *)r->data;
	size_t n = bytes / sizeof(lane) & ~(size_t)3;
	lane a = {0}, b = {0}, c = {0}, d = {0};
	double start = now();
	for (size_t i = 0; i < n; i += 4) {
		__builtin_prefetch(x + i + 32);
		__builtin_prefetch(x + i + 34);
		a += x[i];
		b += x[i + 1];
		c += x[i + 2];
		d += x[i + 3];
	}
	r->seconds[0] = now() - start;
	a += b + c + d;
	r->sink += a[0] + a[7];
}

static void gather(struct reader *r, uint32_t row_bytes)
{
	lane a = {0};
	double start = now();
	for (size_t i = 0; i + AHEAD < r->picks; i++) {
		const uint8_t *ahead = r->data + (size_t)r->order[i + AHEAD] * row_bytes;
		for (uint32_t b = 0; b < row_bytes; b += 64)
			__builtin_prefetch(ahead + b);
		const uint8_t *row = r->data + (size_t)r->order[i] * row_bytes;
		for (uint32_t b = 0; b < row_bytes; b += 64)
			a += *(const lane *)(const void *)(row + b);
	}
	r->seconds[1] = now() - start;
	r->sink += a[0];
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static bool prepare(struct reader *r, const struct roofline_options *o)
{
	size_t huge = (size_t)2 << 20, bytes = (o->bytes + huge - 1) / huge * huge;
	r->picks = o->bytes / o->row_bytes / SHARE;
	r->data = aligned_alloc(huge, bytes);
	r->order = malloc((r->picks + 1) * sizeof(*r->order));
	if (!r->data || !r->order)
		return false;
	madvise(r->data, bytes, MADV_HUGEPAGE);
	memset(r->data, 1, bytes); // by this thread: on its node
	uint64_t state = 88172645463325252u + r->number, rows = o->bytes / o->row_bytes;
	for (size_t i = 0; i < r->picks; i++)
		r->order[i] = (uint32_t)(random_next(&state) % rows);
	return true;
}

// False: there is no next one.
static bool next_phase(struct meeting *m, uint32_t *seen)
{
	pthread_mutex_lock(&m->lock);
	while (m->phase == *seen && !m->over)
		pthread_cond_wait(&m->changed, &m->lock);
	*seen = m->phase;
	bool go_on = !m->over;
	pthread_mutex_unlock(&m->lock);
	return go_on;
}

static void phase_done(struct meeting *m, bool failed)
{
	pthread_mutex_lock(&m->lock);
	m->done++;
	m->failed |= failed;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

// Phase 0 is the preparation.
static void *read_all(void *argument)
{
	struct reader *r = argument;
	const struct roofline_options *o = r->meeting->options;
	int cpu = o->cpus ? o->cpus[r->number] : -1;
	if (cpu >= 0 && cpu < CPU_SETSIZE) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		sched_setaffinity(0, sizeof(set), &set); // where that is refused it runs anywhere
	}
	bool failed = !prepare(r, o);
	phase_done(r->meeting, failed);
	for (uint32_t phase = 0; next_phase(r->meeting, &phase); phase_done(r->meeting, failed))
		if (!failed && phase % 2)
			stream(r, o->bytes);
		else if (!failed)
			gather(r, o->row_bytes);
	free(r->data);
	free(r->order);
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *x, size_t n)
{
	qsort(x, n, sizeof(*x), by_value);
	return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

// Has all threads do the next phase, or end. Waits for them. False: one of them failed.
static bool turn(struct meeting *m, uint32_t threads, bool over)
{
	pthread_mutex_lock(&m->lock);
	while (m->done < threads) // of the phase before
		pthread_cond_wait(&m->changed, &m->lock);
	m->done = 0;
	m->phase++;
	m->over = over;
	pthread_cond_broadcast(&m->changed);
	while (!over && m->done < threads)
		pthread_cond_wait(&m->changed, &m->lock);
	bool good = !m->failed;
	pthread_mutex_unlock(&m->lock);
	return good;
}

// Again and again: the slowest thread's time counts.
static void run(struct meeting *m, struct reader *readers, struct roofline_rates *rates)
{
	const struct roofline_options *o = m->options;
	double rate[2][MAX_REPETITIONS];
	for (uint32_t i = 0; i < 2 * o->repetitions && turn(m, o->threads, false); i++) {
		double slowest = 1e-9;
		for (uint32_t t = 0; t < o->threads; t++)
			slowest = readers[t].seconds[i % 2] > slowest ? readers[t].seconds[i % 2] : slowest;
		size_t bytes = i % 2 == 0 ? o->bytes / 256 * 256 : (readers[0].picks - AHEAD) * o->row_bytes;
		rate[i % 2][i / 2] = (double)bytes * o->threads / slowest;
	}
	if (m->failed)
		return;
	rates->stream_bytes_per_s = median(rate[0], o->repetitions);
	rates->gather_bytes_per_s = median(rate[1], o->repetitions);
}

int roofline_measure(const struct roofline_options *o, struct roofline_rates *rates)
{
	if (!o->threads || o->threads > ROOFLINE_MAX_THREADS || !o->repetitions || o->repetitions > MAX_REPETITIONS ||
	    o->row_bytes % 64 || !o->row_bytes || o->bytes / o->row_bytes / SHARE <= 2 * AHEAD)
		return errno = EINVAL, -1;
	struct meeting m = {.options = o, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	struct reader *readers = calloc(o->threads, sizeof(*readers));
	if (!readers)
		return -1;
	uint32_t started = 0;
	int error = 0;
	while (started < o->threads && !error) {
		readers[started] = (struct reader){.meeting = &m, .number = started};
		error = pthread_create(&readers[started].thread, NULL, read_all, &readers[started]);
		started += !error;
	}
	struct roofline_rates found = {0};
	if (!error)
		run(&m, readers, &found);
	turn(&m, started, true);
	for (uint32_t t = 0; t < started; t++)
		pthread_join(readers[t].thread, NULL);
	free(readers);
	if (error || m.failed)
		return errno = error ? error : ENOMEM, -1;
	*rates = found;
	return 0;
}
