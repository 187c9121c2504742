#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/kernels/kernels.h"
#include "tools/magicpig-bench/bench.h"

double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *x, const void *y)
{
	double a = *(const double *)x, b = *(const double *)y;
	return (a > b) - (a < b);
}

double percentile(double *x, size_t n, double p)
{
	qsort(x, n, sizeof(*x), ascending);
	size_t i = (size_t)(p * (double)n);
	return x[i < n ? i : n - 1];
}

double median(double *x, size_t n)
{
	return percentile(x, n, .5);
}

static const char usage[] = "usage: magicpig-bench [--rows N] [--mask NAMES] [--no-paper] [--daemon PATH] [--json FILE]\n"
			    "  --rows N       rows of one KV head (96000)\n"
			    "  --mask NAMES   CPU features to use, joined by '+' (c, avx2, avx512, avx512vnni); all by default\n"
			    "  --no-paper     leave out the SimHash tables, whose build takes most of the time\n"
			    "  --daemon PATH  also measure the ring: start this magicpigd privately\n"
			    "  --json FILE    write the figures\n";

struct options {
	uint32_t rows, mask;
	int paper;
	const char *daemon, *json;
};

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {{"rows", 1, NULL, 'r'},   {"mask", 1, NULL, 'm'}, {"no-paper", 0, NULL, 'p'},
	                                      {"daemon", 1, NULL, 'd'}, {"json", 1, NULL, 'j'}, {"help", 0, NULL, 'h'},
	                                      {NULL, 0, NULL, 0}};
	*o = (struct options){.rows = 96000, .mask = UINT32_MAX, .paper = 1};
	for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
		char *end;
		unsigned long n;
		switch (c) {
		case 'r':
			n = strtoul(optarg, &end, 10);
			if (*end || n < 1024 || n > 8000000) {
				fprintf(stderr, "magicpig-bench: --rows %s: a number from 1024 to 8000000\n", optarg);
				return 2;
			}
			o->rows = (uint32_t)n;
			break;
		case 'm':
			if (cpu_mask_parse(optarg, &o->mask)) {
				fprintf(stderr, "magicpig-bench: --mask %s: unknown name\n", optarg);
				return 2;
			}
			break;
		case 'p':
			o->paper = 0;
			break;
		case 'd':
			o->daemon = optarg;
			break;
		case 'j':
			o->json = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	return 0;
}

static void print(FILE *out, const char *isa, const struct roofline *roof, const struct head_result *h,
                  const struct queue_result *q, int json)
{
	double code_bytes = h->d * h->bits / 8. + 2;
	const struct {
		const char *key, *text;
		double value;
	} line[] = {
		{"stream_gbs", "one core streams, GB/s", roof->stream_gbs},
		{"gather_gbs", "one core gathers rows of d=128 bf16, GB/s", roof->gather_gbs},
		{"rows", "rows of the KV head", h->rows},
		{"dense_ms", "dense bf16 pass, 4 query heads, ms", h->dense_ms},
		{"dense_share_of_stream", "  of stream bandwidth",
	         h->dense_ms > 0 ? h->rows * 512. / h->dense_ms * 1e-6 / roof->stream_gbs : 0},
		{"signature_ms", "signature b=2 at 1 %, ms", h->signature_ms},
		{"signature_rows", "  rows per query head", h->signature_rows},
		{"signature_code_gbs", "  code bytes, GB/s", h->rows * code_bytes / h->signature_ms * 1e-6},
		{"dense_over_signature", "  times faster than dense", h->dense_ms / h->signature_ms},
		{"paper_ms", "paper (10,150), ms", h->paper_ms},
		{"paper_rows", "  rows per query head", h->paper_rows},
		{"index_us_per_row", "index build, us per row per KV head (all indexes)", h->index_us_per_row},
		{"append_us", "one decoded token per KV head, us", h->append_us},
		{"nop_p50_us", "NOP round trip p50, us", q->nop_p50_us},
		{"nop_p99_us", "NOP round trip p99, us", q->nop_p99_us},
		{"idle_cpu", "idle daemon, cores", q->idle_cpu},
	};
	size_t n = sizeof(line) / sizeof(line[0]);
	if (json)
		fprintf(out, "{\n  \"kernels\": \"%s\"", isa);
	else
		fprintf(out, "kernels: %s\n", isa);
	for (size_t i = 0; i < n; i++)
		fprintf(out, json ? ",\n  \"%s\": %.6g" : "%-52s %10.4g\n", json ? line[i].key : line[i].text, line[i].value);
	if (json)
		fputs("\n}\n", out);
}

int main(int argc, char **argv)
{
	struct options o;
	int status = parse(argc, argv, &o);
	if (status)
		return status;
	struct kernels kernels;
	char isa[64];
	kernels_init(&kernels, cpu_features() & o.mask, isa, sizeof(isa));
	struct roofline roof = bench_roofline(512);
	struct head_result head = bench_head(o.rows, o.mask, o.paper);
	struct queue_result queue = {0};
	if (o.daemon && bench_queue(o.daemon, &queue))
		return 1;
	print(stdout, isa, &roof, &head, &queue, 0);
	if (!o.json)
		return 0;
	FILE *file = fopen(o.json, "w");
	if (!file) {
		perror(o.json);
		return 1;
	}
	print(file, isa, &roof, &head, &queue, 1);
	return fclose(file) ? 1 : 0;
}
