#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

static double gather_once(const uint8_t *x, size_t rows, uint32_t row_bytes, const uint32_t *order, size_t n)
{
	lane a = {0};
	(void)rows;
	double start = seconds();
	for (size_t i = 0; i + AHEAD < n; i++) {
		const uint8_t *ahead = x + (size_t)order[i + AHEAD] * row_bytes;
		for (uint32_t b = 0; b < row_bytes; b += 64)
			__builtin_prefetch(ahead + b);
		const uint8_t *row = x + (size_t)order[i] * row_bytes;
		for (uint32_t b = 0; b + 64 <= row_bytes; b += 64)
			a += *(const lane *)(row + b);
	}
	double taken = seconds() - start;
	sink = a[0];
	return (double)((n - AHEAD) * row_bytes) / taken * 1e-9;
}

struct roofline bench_roofline(uint32_t row_bytes)
{
	size_t bytes = (size_t)MEGABYTES << 20, rows = bytes / row_bytes, picks = rows / 8;
	uint8_t *x = aligned_alloc(2 << 20, bytes);
	uint32_t *order = malloc(picks * sizeof(*order));
	struct roofline r = {.row_bytes = row_bytes};
	if (x && order) {
		madvise(x, bytes, MADV_HUGEPAGE);
		memset(x, 1, bytes);
		struct rng rng = {.state = 1};
		double stream[REPETITIONS], gather[REPETITIONS];
		for (int i = 0; i < REPETITIONS; i++) {
			for (size_t p = 0; p < picks; p++)
				order[p] = rng_below(&rng, (uint32_t)rows);
			stream[i] = stream_once((const lane *)x, bytes / sizeof(lane) & ~(size_t)3);
			gather[i] = gather_once(x, rows, row_bytes, order, picks);
		}
		r.stream_gbs = median(stream, REPETITIONS);
		r.gather_gbs = median(gather, REPETITIONS);
	}
	free(order);
	free(x);
	return r;
}
