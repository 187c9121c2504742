// Times every kernel of every ISA this CPU has, next to what memory allows in the same run: a stream of reads and a random gather
// of rows.
//
//   bench_kernels [--json FILE] [--rows N] [--mib M] [--repeats R]
//
// One thread (pin it: taskset -c N). Each repeat runs all ISAs in turn, on the next window of a region of M MiB, so that nothing
// is in a cache that would not be there in a daemon with many contexts; medians over the repeats. GB/s count the bytes a kernel
// must read: codes and factors, or the rows' K and V; cycles are of the time stamp counter, which runs at one speed whatever the core's.
#include <errno.h>
#include <inttypes.h>
#include <time.h>
#include <x86intrin.h>

#include "tests/kernels/kernel_harness.h"
#include "tools/common/output.c"

#define D 128u
#define HEADS 16u
#define UNIT 4096u
#define DENSE 256u // rows that scores and values visit together
#define MAX_REPEATS 101u

struct bench {
	uint32_t rows, repeats, windows, window;
	size_t region_bytes;
	uint8_t *region; // rows, or codes, whatever the shape reads; filled anew for each type: normal numbers, or random codes
	uint16_t *factors;
	float *noise, *scores, *out, *signs;
	uint32_t *hit_row[HEADS], *index;
	float *hit_estimate[HEADS];
	int8_t q8[HEADS][256];
	float q[HEADS * 256];
	volatile uint64_t sink;
	double cycles_per_ns;
	int filled; // enum row_type, or -1: codes
	uint64_t rng;
	struct isa isas[MAX_ISAS];
	uint32_t isa_count;
	FILE *json; // into text, which goes to `path` when all is measured
	const char *path;
	char *text;
	size_t text_bytes;
	uint32_t lines;
};

// What one row of the table measures.
struct shape {
	const char *kernel;
	enum row_type type;
	uint32_t bits, heads;
	uint32_t bytes; // per row, for GB/s and for the window's size; 0: cached data
	void (*run)(struct bench *b, const struct kernels *k, const struct shape *s);
	uint32_t rows; // per run; 0: b->rows
};

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *x, uint32_t n)
{
	qsort(x, n, sizeof *x, by_value);
	return x[n / 2];
}

static void *allocate(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("bench_kernels: memory");
		exit(1);
	}
	madvise(p, bytes, MADV_HUGEPAGE);
	memset(p, 0, bytes);
	return p;
}

// The next window of the region, 4 KiB aligned.
static const uint8_t *next_window(struct bench *b, size_t bytes)
{
	size_t step = (bytes + 4095) / 4096 * 4096, windows = b->region_bytes / step;
	return b->region + step * (b->window++ % windows);
}

// ---- what memory allows ------------------------------------------------------------------------------------------------

static double stream_gb_s(struct bench *b, size_t ahead)
{
	double ns[MAX_REPEATS];
	const size_t bytes = (size_t)b->rows * 4 * D;
	for (uint32_t i = 0; i < b->repeats; i++) {
		const uint64_t *p = (const void *)next_window(b, bytes);
		uint64_t sum[8] = {0};
		double start = now_ns();
		for (size_t j = 0; j < bytes / 8; j += 8) {
			if (ahead)
				__builtin_prefetch((const uint8_t *)(p + j) + ahead);
			for (uint32_t l = 0; l < 8; l++)
				sum[l] += p[j + l];
		}
		ns[i] = now_ns() - start;
		for (uint32_t l = 0; l < 8; l++)
			b->sink += sum[l];
	}
	return (double)bytes / median(ns, b->repeats);
}

static double gather_gb_s(struct bench *b, uint32_t row_bytes, uint32_t ahead)
{
	double ns[MAX_REPEATS];
	const uint32_t n = 16384;
	for (uint32_t i = 0; i < b->repeats; i++) {
		for (uint32_t j = 0; j < n; j++)
			b->index[j] = rng_below(&b->rng, (uint32_t)(b->region_bytes / row_bytes));
		uint64_t sum = 0;
		double start = now_ns();
		for (uint32_t j = 0; j < n; j++) {
			if (ahead && j + ahead < n)
				for (uint32_t at = 0; at < row_bytes; at += 64)
					__builtin_prefetch(b->region + (size_t)b->index[j + ahead] * row_bytes + at);
			const uint8_t *row = b->region + (size_t)b->index[j] * row_bytes;
			for (uint32_t at = 0; at < row_bytes; at += 64)
				sum += *(const uint64_t *)(const void *)(row + at);
		}
		ns[i] = now_ns() - start;
		b->sink += sum;
	}
	return (double)n * row_bytes / median(ns, b->repeats);
}

static double best(double a, double b, double c)
{
	double m = a > b ? a : b;
	return m > c ? m : c;
}

static void roofline(struct bench *b)
{
	double stream = best(stream_gb_s(b, 0), stream_gb_s(b, 1024), stream_gb_s(b, 4096));
	double wide = best(gather_gb_s(b, 512, 0), gather_gb_s(b, 512, 8), gather_gb_s(b, 512, 16));
	double narrow = best(gather_gb_s(b, 288, 0), gather_gb_s(b, 288, 8), gather_gb_s(b, 288, 16));
	printf("memory, one core: stream %.1f GB/s, random rows of 512 bytes %.1f GB/s, of 288 bytes %.1f GB/s\n\n", stream, wide,
	       narrow);
	if (b->json)
		fprintf(b->json,
		        "{\"stream_gb_s\": %.2f, \"gather_512_gb_s\": %.2f, \"gather_288_gb_s\": %.2f, \"rows\": %u, "
		        "\"results\": [",
		        stream, wide, narrow, b->rows);
}

// ---- shapes ----------------------------------------------------------------------------------------------------------

static void queries_init(struct bench *b, const struct shape *s, struct sig_query *queries)
{
	for (uint32_t h = 0; h < s->heads; h++) {
		int sum = 0;
		for (uint32_t j = 0; j < D; j++)
			sum += b->q8[h][j];
		queries[h] = (struct sig_query){.q = b->q8[h],
		                                .factor = 2e-4f,
		                                .zero = (s->bits == 1   ? .5f
		                                         : s->bits == 2 ? 1.5f
		                                                        : 7.5f) *
		                                        (float)sum,
		                                .tau = INFINITY};
	}
}

// tau for one row in a hundred, from the estimates of one unit.
static void choose_tau(struct bench *b, const struct kernels *k, const struct shape *s, const uint8_t *codes,
                       struct sig_query *queries)
{
	k->sig_estimate(codes, b->factors, UNIT, D, s->bits, queries, s->heads, b->scores, UNIT);
	for (uint32_t h = 0; h < s->heads; h++) {
		double sorted[UNIT];
		for (uint32_t i = 0; i < UNIT; i++)
			sorted[i] = (double)(b->scores[h * UNIT + i] + b->noise[i]);
		qsort(sorted, UNIT, sizeof *sorted, by_value);
		queries[h].tau = (float)sorted[UNIT - UNIT / 100];
	}
}

static void run_select(struct bench *b, const struct kernels *k, const struct shape *s)
{
	static struct sig_query queries[3][HEADS];
	struct sig_query *q = queries[s->bits / 2];
	const size_t code_bytes = D * s->bits / 8;
	const uint8_t *codes = next_window(b, (size_t)b->rows * code_bytes), *rows = next_window(b, (size_t)b->rows * 512);
	if (!q->q) { // for whatever number of heads
		struct shape all = *s;
		all.heads = HEADS;
		queries_init(b, &all, q);
		choose_tau(b, k, &all, codes, q);
	}
	double start = now_ns();
	for (uint32_t at = 0; at < b->rows; at += UNIT) {
		uint32_t n = b->rows - at < UNIT ? b->rows - at : UNIT;
		struct sig_hits hits[HEADS];
		for (uint32_t h = 0; h < s->heads; h++)
			hits[h] = (struct sig_hits){b->hit_row[h], b->hit_estimate[h], 0};
		k->sig_select(codes + at * code_bytes, b->factors + at, 0, n, D, s->bits, q, s->heads, b->noise + at, hits,
		              s->type ? NULL : rows + (size_t)at * 512, 512, 512);
		b->sink += hits[0].n;
	}
	b->out[0] = (float)(now_ns() - start);
}

static void run_estimate(struct bench *b, const struct kernels *k, const struct shape *s)
{
	struct sig_query queries[HEADS];
	const size_t code_bytes = D * s->bits / 8;
	const uint8_t *codes = next_window(b, (size_t)b->rows * code_bytes);
	queries_init(b, s, queries);
	double start = now_ns();
	for (uint32_t at = 0; at < b->rows; at += UNIT)
		k->sig_estimate(codes + at * code_bytes, b->factors + at, b->rows - at < UNIT ? b->rows - at : UNIT, D, s->bits,
		                queries, s->heads, b->scores, UNIT);
	b->out[0] = (float)(now_ns() - start);
}

// A dense pass without its exponentials: scores and values of a few hundred rows at a time.
static void run_dense(struct bench *b, const struct kernels *k, const struct shape *s)
{
	struct row_format f;
	row_format_init(&f, s->type, D, D);
	const uint8_t *rows = next_window(b, (size_t)b->rows * f.stride);
	double start = now_ns();
	for (uint32_t at = 0; at < b->rows; at += DENSE) {
		uint32_t n = b->rows - at < DENSE ? b->rows - at : DENSE;
		const uint8_t *base = rows + (size_t)at * f.stride;
		k->scores[s->type](&f, base, NULL, n, b->q, s->heads, b->scores, DENSE);
		k->values[s->type](&f, base, NULL, n, b->scores, DENSE, s->heads, b->out + 1);
	}
	b->out[0] = (float)(now_ns() - start);
}

// One row in a hundred, a unit's share per call, one head: as after sig_select, but nothing has been prefetched.
static void run_gather(struct bench *b, const struct kernels *k, const struct shape *s)
{
	struct row_format f;
	row_format_init(&f, s->type, D, D);
	const uint32_t per_unit = 40;
	const uint8_t *rows = next_window(b, (size_t)s->rows / per_unit * UNIT * f.stride);
	for (uint32_t i = 0; i < s->rows; i++)
		b->index[i] = i % per_unit * (UNIT / per_unit) + rng_below(&b->rng, UNIT / per_unit);
	double start = now_ns();
	for (uint32_t i = 0, unit = 0; i < s->rows; i += per_unit, unit++) {
		const uint8_t *base = rows + (size_t)unit * UNIT * f.stride;
		k->scores[s->type](&f, base, b->index + i, per_unit, b->q, s->heads, b->scores, UNIT);
		k->values[s->type](&f, base, b->index + i, per_unit, b->scores, UNIT, s->heads, b->out + 1);
	}
	b->out[0] = (float)(now_ns() - start);
}

// The same with the error terms' weights: what a sample costs after its scan.
static void run_gather_squares(struct bench *b, const struct kernels *k, const struct shape *s)
{
	struct row_format f;
	row_format_init(&f, s->type, D, D);
	const uint32_t per_unit = 40;
	const uint8_t *rows = next_window(b, (size_t)s->rows / per_unit * UNIT * f.stride);
	for (uint32_t i = 0; i < s->rows; i++)
		b->index[i] = i % per_unit * (UNIT / per_unit) + rng_below(&b->rng, UNIT / per_unit);
	double start = now_ns(), squares = 0;
	for (uint32_t i = 0, unit = 0; i < s->rows; i += per_unit, unit++) {
		const uint8_t *base = rows + (size_t)unit * UNIT * f.stride;
		k->scores[s->type](&f, base, b->index + i, per_unit, b->q, 1, b->scores, UNIT);
		squares += k->values_squares[s->type](&f, base, b->index + i, per_unit, b->noise, per_unit, b->out + 1);
	}
	b->out[0] = (float)(now_ns() - start);
	b->sink += squares > 0;
}

static void run_exp(struct bench *b, const struct kernels *k, const struct shape *s)
{
	for (uint32_t i = 0; i < s->rows; i++)
		b->scores[i] = -b->noise[i];
	double start = now_ns();
	k->exp_sum(b->scores, s->rows, 0);
	b->out[0] = (float)(now_ns() - start);
}

static void run_max(struct bench *b, const struct kernels *k, const struct shape *s)
{
	double start = now_ns();
	float m = k->max(b->noise, s->rows);
	b->out[0] = (float)(now_ns() - start);
	b->sink += m > 0;
}

static void run_split(struct bench *b, const struct kernels *k, const struct shape *s)
{
	double below, below2;
	uint64_t above;
	double start = now_ns();
	k->split_sums(b->noise, s->rows, 1, &below, &below2, &above);
	b->out[0] = (float)(now_ns() - start);
	b->sink += above;
}

static void run_rotate(struct bench *b, const struct kernels *k, const struct shape *s)
{
	double start = now_ns();
	for (uint32_t i = 0; i < s->rows; i++)
		k->rotate(b->q, D, b->signs);
	b->out[0] = (float)(now_ns() - start);
}

// ---- data ------------------------------------------------------------------------------------------------------------

// 1,024 encoded rows of normal numbers, again and again; or random codes. Random bits would make one number in a hundred
// subnormal, which some cores compute at a tenth of their speed.
static void fill_region(struct bench *b, int kind)
{
	enum { ROWS = 1024 };
	if (kind == b->filled)
		return;
	b->filled = kind;
	if (kind < 0) {
		for (size_t i = 0; i < b->region_bytes / 8; i++)
			((uint64_t *)(void *)b->region)[i] = rng_next(&b->rng);
		return;
	}
	struct row_format f;
	float k[D], v[D];
	row_format_init(&f, (enum row_type)kind, D, D);
	const size_t bytes = (size_t)ROWS * f.stride;
	for (uint32_t i = 0; i < ROWS; i++) {
		for (uint32_t j = 0; j < D; j++) {
			k[j] = rng_normal(&b->rng);
			v[j] = rng_normal(&b->rng);
		}
		row_encode(&f, k, v, NULL, b->region + (size_t)i * f.stride);
	}
	for (size_t at = bytes; at < b->region_bytes; at += bytes)
		memcpy(b->region + at, b->region, at + bytes > b->region_bytes ? b->region_bytes - at : bytes);
}

static double tsc_per_ns(void)
{
	double start = now_ns(), taken;
	uint64_t from = __rdtsc();
	while ((taken = now_ns() - start) < 2e7)
		;
	return (double)(__rdtsc() - from) / taken;
}

// ---- table -----------------------------------------------------------------------------------------------------------

static void measure(struct bench *b, const struct shape *s)
{
	static const char *const types[] = {"bf16", "f16", "i8"};
	static double ns[MAX_ISAS][MAX_REPEATS];
	char shape[64];
	const uint32_t rows = s->rows ? s->rows : b->rows;
	if (s->bits)
		snprintf(shape, sizeof shape, "b=%u heads=%u%s", s->bits, s->heads,
		         s->run == run_select && s->type ? " no rows" : "");
	else if (s->bytes)
		snprintf(shape, sizeof shape, "%s heads=%u", types[s->type], s->heads);
	else
		snprintf(shape, sizeof shape, "n=%u", s->rows);
	if (s->bytes)
		fill_region(b, s->bits ? -1 : (int)s->type);
	for (uint32_t rep = 0; rep < b->repeats; rep++)
		for (uint32_t i = 0; i < b->isa_count; i++) {
			s->run(b, &b->isas[i].k, s);
			ns[i][rep] = (double)b->out[0];
		}
	for (uint32_t i = 0; i < b->isa_count; i++) {
		double t = median(ns[i], b->repeats), gb_s = (double)rows * s->bytes / t;
		printf("%-14s %-18s %-12s %9.3f us %9.3f ns/row %9.2f cycles/row", s->kernel, shape, b->isas[i].name, t / 1e3,
		       t / rows, t / rows * b->cycles_per_ns);
		if (s->bytes)
			printf(" %7.2f GB/s", gb_s);
		printf("\n");
		if (b->json)
			fprintf(b->json,
			        "%s\n{\"kernel\": \"%s\", \"shape\": \"%s\", \"isa\": \"%s\", \"us\": %.3f, \"ns_per_row\": "
			        "%.4f, \"cycles_per_row\": %.3f, \"gb_s\": %.3f}",
			        b->lines++ ? "," : "", s->kernel, shape, b->isas[i].name, t / 1e3, t / rows,
			        t / rows * b->cycles_per_ns, gb_s);
	}
}

static uint32_t number(const char *text, uint32_t low, uint32_t high)
{
	char *end;
	unsigned long n = text ? strtoul(text, &end, 10) : 0;
	if (!text || *end || n < low || n > high) {
		fprintf(stderr, "bench_kernels: want a number from %u to %u\n", low, high);
		exit(2);
	}
	return (uint32_t)n;
}

static void cannot_write(const char *path)
{
	fprintf(stderr, "bench_kernels: cannot write %s: %s\n", path, strerror(errno));
	exit(1);
}

static void write_text(FILE *out, const void *text)
{
	fputs(text, out);
}

static void options(struct bench *b, int argc, char **argv)
{
	for (int i = 1; i < argc; i += 2) {
		if (!strcmp(argv[i], "--json") && i + 1 < argc) {
			b->path = argv[i + 1];
			if (output_check(b->path) != 0 || !(b->json = open_memstream(&b->text, &b->text_bytes)))
				cannot_write(b->path);
		} else if (!strcmp(argv[i], "--rows")) {
			b->rows = number(argv[i + 1], UNIT, 1 << 20);
		} else if (!strcmp(argv[i], "--mib")) {
			b->region_bytes = (size_t)number(argv[i + 1], 64, 1 << 16) << 20;
		} else if (!strcmp(argv[i], "--repeats")) {
			b->repeats = number(argv[i + 1], 1, MAX_REPEATS);
		} else {
			fprintf(stderr, "usage: bench_kernels [--json FILE] [--rows N] [--mib M] [--repeats R]\n");
			exit(2);
		}
	}
	if (b->region_bytes < (size_t)b->rows * 512) {
		fprintf(stderr, "bench_kernels: --mib must hold --rows rows of 512 bytes\n");
		exit(2);
	}
}

static void fill(struct bench *b)
{
	b->region = allocate(b->region_bytes);
	fill_region(b, ROW_BF16);
	b->cycles_per_ns = tsc_per_ns();
	b->factors = allocate((size_t)b->rows * 2);
	b->noise = allocate((size_t)b->rows * 4);
	b->scores = allocate((size_t)HEADS * UNIT * 4);
	b->out = allocate((1 + HEADS * 256) * sizeof(float));
	b->signs = allocate(3 * 256 * sizeof(float));
	for (uint32_t j = 0; j < 3 * 256; j++)
		b->signs[j] = rng_below(&b->rng, 2) ? 1.f : -1.f;
	b->index = allocate(16384 * sizeof *b->index);
	for (uint32_t h = 0; h < HEADS; h++) {
		b->hit_row[h] = allocate(UNIT * 4);
		b->hit_estimate[h] = allocate(UNIT * 4);
	}
	for (uint32_t i = 0; i < b->rows; i++) {
		b->factors[i] = f32_to_f16(1 + rng_unit(&b->rng));
		b->noise[i] = -logf(rng_unit(&b->rng));
	}
	for (uint32_t h = 0; h < HEADS; h++)
		for (uint32_t j = 0; j < 256; j++) {
			b->q8[h][j] = (int8_t)(40 * rng_normal(&b->rng));
			b->q[h * 256 + j] = rng_normal(&b->rng);
		}
}

int main(int argc, char **argv)
{
	static const struct shape shapes[] = {
		{"sig_select", ROW_BF16, 1, 4, 18, run_select, 0},
		{"sig_select", ROW_BF16, 2, 4, 34, run_select, 0},
		{"sig_select", ROW_BF16, 4, 4, 66, run_select, 0},
		{"sig_select", ROW_F16, 2, 4, 34, run_select, 0},
		{"sig_select", ROW_BF16, 2, 1, 34, run_select, 0},
		{"sig_select", ROW_BF16, 2, 2, 34, run_select, 0},
		{"sig_select", ROW_BF16, 2, 8, 34, run_select, 0},
		{"sig_select", ROW_F16, 2, 8, 34, run_select, 0},
		{"sig_select", ROW_F16, 1, 8, 18, run_select, 0},
		{"sig_select", ROW_F16, 2, 16, 34, run_select, 0},
		{"sig_select", ROW_F16, 1, 4, 18, run_select, 0},
		{"sig_estimate", ROW_BF16, 2, 4, 34, run_estimate, 0},
		{"dense", ROW_BF16, 0, 4, 512, run_dense, 0},
		{"dense", ROW_F16, 0, 4, 512, run_dense, 0},
		{"dense", ROW_I8, 0, 4, 288, run_dense, 0},
		{"dense", ROW_BF16, 0, 1, 512, run_dense, 0},
		{"gather", ROW_BF16, 0, 1, 512, run_gather, 960},
		{"gather", ROW_F16, 0, 1, 512, run_gather, 960},
		{"gather", ROW_I8, 0, 1, 288, run_gather, 960},
		{"gather+squares", ROW_BF16, 0, 1, 512, run_gather_squares, 960},
		{"gather+squares", ROW_F16, 0, 1, 512, run_gather_squares, 960},
		{"gather+squares", ROW_I8, 0, 1, 288, run_gather_squares, 960},
		{"exp_sum", ROW_BF16, 0, 1, 0, run_exp, UNIT},
		{"max", ROW_BF16, 0, 1, 0, run_max, UNIT},
		{"split_sums", ROW_BF16, 0, 1, 0, run_split, UNIT},
		{"rotate 128", ROW_BF16, 0, 1, 0, run_rotate, 1000},
	};
	static struct bench b = {.filled = -2, .rows = 96000, .repeats = 15, .region_bytes = (size_t)512 << 20, .rng = 1};
	options(&b, argc, argv);
	b.isa_count = isas_of_cpu(b.isas);
	fill(&b);
	roofline(&b);
	for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
		measure(&b, &shapes[i]);
	if (b.json) {
		fprintf(b.json, "\n]}\n");
		if (fclose(b.json) != 0 || output_write(b.path, write_text, b.text) != 0)
			cannot_write(b.path);
		free(b.text);
	}
	return 0;
}
