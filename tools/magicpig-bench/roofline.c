#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/rng.h"
#include "tools/magicpig-bench/bench.h"

typedef uint64_t lane __attribute__((vector_size(64)));

enum { MEGABYTES = 512, REPETITIONS = 7, AHEAD = 8 };

static volatile uint64_t sink;

static double stream_once(const lane *x, size_t n)
{
	lane a = {0}, b = {0}, c = {0}, d = {0};
	double start = seconds();
	for (size_t i = 0; i < n; i += 4) {
		__builtin_prefetch(x + i + 32);
		__builtin_prefetch(x + i + 34);
		a += x[i];
		b += x[i + 1];
		c += x[i + 2];
		d += x[i + 3];
	}
	double taken = seconds() - start;
	a += b + c + d;
	sink = a[0] + a[7];
	return (double)(n * sizeof(lane)) / taken * 1e-9;
}

static double gather_once(const uint8_t *x, const uint32_t *order, uint32_t row_bytes, size_t n)
{
	lane a = {0};
	double start = seconds();
	for (size_t i = 0; i + AHEAD < n; i++) {
		const uint8_t *ahead = x + (size_t)order[i + AHEAD] * row_bytes;
		for (uint32_t b = 0; b < row_bytes; b += 64)
			__builtin_prefetch(ahead + b);
		const uint8_t *row = x + (size_t)order[i] * row_bytes;
		for (uint32_t b = 0; b + 64 <= row_bytes; b += 64)
			a += *(const lane *)(const void *)(row + b);
	}
	double taken = seconds() - start;
	sink = a[0];
	return (double)((n - AHEAD) * row_bytes) / taken * 1e-9;
}

// What `threads` cores do together: each streams a part of its own, and then gathers from everywhere.
struct crew {
	pthread_barrier_t barrier;
	const uint8_t *x;
	size_t bytes, picks;
	const uint32_t *order;
	uint32_t row_bytes, threads;
	double stream[REPETITIONS], gather[REPETITIONS]; // seconds of the slowest, by the first of the crew
};
struct hand {
	struct crew *crew;
	uint32_t number;
	pthread_t thread;
};

static void *work(void *argument)
{
	struct hand *me = argument;
	struct crew *c = me->crew;
	size_t lanes = c->bytes / c->threads / sizeof(lane) & ~(size_t)3, picks = c->picks / c->threads;
	for (int i = 0; i < 2 * REPETITIONS; i++) {
		pthread_barrier_wait(&c->barrier);
		double start = seconds();
		if (i % 2)
			gather_once(c->x, c->order + me->number * picks, c->row_bytes, picks);
		else
			stream_once((const lane *)(const void *)c->x + me->number * lanes, lanes);
		pthread_barrier_wait(&c->barrier);
		if (me->number == 0)
			(i % 2 ? c->gather : c->stream)[i / 2] = seconds() - start;
	}
	return NULL;
}

static void together(struct crew *c, struct roofline *r)
{
	struct hand *hand = calloc(c->threads, sizeof(*hand));
	if (!hand || pthread_barrier_init(&c->barrier, NULL, c->threads))
		abort();
	for (uint32_t i = 0; i < c->threads; i++) {
		hand[i] = (struct hand){.crew = c, .number = i};
		if (i && pthread_create(&hand[i].thread, NULL, work, &hand[i]))
			abort();
	}
	work(&hand[0]);
	for (uint32_t i = 1; i < c->threads; i++)
		pthread_join(hand[i].thread, NULL);
	pthread_barrier_destroy(&c->barrier);
	free(hand);
	r->threads = c->threads;
	r->all_stream_gbs = (double)c->bytes / median(c->stream, REPETITIONS) * 1e-9;
	r->all_gather_gbs = (double)c->picks * c->row_bytes / median(c->gather, REPETITIONS) * 1e-9;
}

struct roofline bench_roofline(uint32_t row_bytes)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct crew crew = {.row_bytes = row_bytes, .threads = cpus > 2 ? (uint32_t)cpus - 1 : 1}; // the last is the client's
	size_t bytes = ((size_t)MEGABYTES << 20) * (crew.threads > 4 ? 4 : 1), rows = bytes / row_bytes, picks = rows / 8;
	uint8_t *x = aligned_alloc(2 << 20, bytes);
	uint32_t *order = malloc(picks * sizeof(*order));
	struct roofline r = {.row_bytes = row_bytes};
	if (x && order) {
		madvise(x, bytes, MADV_HUGEPAGE);
		memset(x, 1, bytes);
		struct rng rng = {.state = 1};
		double stream[REPETITIONS], gather[REPETITIONS];
		size_t part = (size_t)MEGABYTES << 20, some = part / row_bytes / 8;
		for (int i = 0; i < REPETITIONS; i++) {
			for (size_t p = 0; p < picks; p++)
				order[p] = rng_below(&rng, (uint32_t)rows);
			stream[i] = stream_once((const lane *)(const void *)x, part / sizeof(lane) & ~(size_t)3);
			gather[i] = gather_once(x, order, row_bytes, some);
		}
		r.stream_gbs = median(stream, REPETITIONS);
		r.gather_gbs = median(gather, REPETITIONS);
		crew.x = x;
		crew.bytes = bytes;
		crew.order = order;
		crew.picks = picks;
		together(&crew, &r);
	}
	free(order);
	free(x);
	return r;
}
