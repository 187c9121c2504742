#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/kernels/kernels.h"
#include "tools/common/output.h"
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

enum { ROOFLINE = 1, HEAD = 2, RING = 4, LAYER = 8, PROPOSALS = 16, TIMELINE = 32, UPPER = 64, GAP = 128, MAX_COUNTS = 16 };
static const uint32_t upper_rows[] = {131072, 262144, 524288, 1048576, 2097152, 4194304};
enum { UPPER_ROWS = sizeof(upper_rows) / sizeof(upper_rows[0]) };

static const char usage[] =
	"usage: magicpig-bench [OPTIONS] [PART...]\n"
	"Parts (all but 'upper' and 'gaps' by default):\n"
	"  roofline       what one core of this machine can read\n"
	"  head           one KV head, one thread, the engine alone\n"
	"  proposals      the same for every way of choosing rows\n"
	"  upper          128K to 4M rows with and without upper layers (2.6 GiB of memory, minutes)\n"
	"  ring           NOP round trips, and the idle daemon\n"
	"  layer          one layer (8 KV heads, 32 query heads) through a daemon "
	"with 1, 2, 4, ... workers\n"
	"  timeline       the same in the engine alone, and through the daemon's "
	"workers: where their time goes\n"
	"  gaps           layers in turn, with pauses between them in which workers read ahead or do not (10 GiB of memory)\n"
	"Options:\n"
	"  --rows N       rows of a KV head (96000)\n"
	"  --range N      rows that a request of 'timeline' is about, from the first; below 4096 it is dense, as in the daemon; "
	"default: all\n"
	"  --mask NAMES   CPU features to use in 'head' and 'proposals', joined by "
	"'+' (c, avx2, avx512, avx512vnni, amx); all "
	"by default\n"
	"  --tensors FILE rows for 'upper' like those of a real head (tools/quality/export_head.py); default: normal numbers\n"
	"  --most N       rows that 'upper' ends with (4194304)\n"
	"  --no-paper     leave out the SimHash tables, whose build takes most of "
	"the time\n"
	"  --workers LIST numbers of workers for 'layer', e.g. 1,4,15; default: "
	"powers of two and all but one CPU\n"
	"  --daemon PATH  the magicpigd that 'ring' and 'layer' start privately; "
	"default $MAGICPIGD, else magicpigd beside this "
	"program\n"
	"  --prefetch LIST  workers.prefetch for 'gaps', beside 0 (0.75)\n"
	"  --json FILE    write the figures\n"
	"It takes about 6 GiB of memory; use --rows for less.\n";

struct options {
	uint32_t rows, mask;
	int paper;
	unsigned parts, workers[MAX_COUNTS], worker_counts;
	const char *daemon, *json, *tensors;
	uint32_t most, range;
	struct gaps_result gaps;
};

static int refuse(const char *what, const char *value, const char *wanted)
{
	fprintf(stderr, "magicpig-bench: %s %s: %s\n", what, value, wanted);
	return 2;
}

static int parse_workers(const char *text, struct options *o)
{
	char *end;
	for (const char *at = text;; at = end + 1) {
		unsigned long n = strtoul(at, &end, 10);
		if (end == at || n < 1 || n > 256 || o->worker_counts == MAX_COUNTS || (*end && *end != ','))
			return refuse("--workers", text, "numbers from 1 to 256, with commas, at most 16 of them");
		o->workers[o->worker_counts++] = (unsigned)n;
		if (!*end)
			return 0;
	}
}

static int parse_prefetch(const char *text, struct options *o)
{
	char *end;
	for (const char *at = text;; at = end + 1) {
		double share = strtod(at, &end);
		if (end == at || !(share >= 0 && share <= 64) || o->gaps.shares == GAP_SHARES || (*end && *end != ','))
			return refuse("--prefetch", text, "shares from 0 to 64, with commas, at most 7 of them");
		o->gaps.share[o->gaps.shares++] = share;
		if (!*end)
			return 0;
	}
}

static int parse_part(const char *name, struct options *o)
{
	static const char *const names[] = {"roofline", "head", "ring", "layer", "proposals", "timeline", "upper", "gaps"};
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i]) == 0) {
			o->parts |= 1u << i;
			return 0;
		}
	return refuse("part", name, "one of roofline, head, proposals, upper, ring, layer, timeline, gaps");
}

static int parse_option(int c, struct options *o)
{
	char *end;
	unsigned long n;
	switch (c) {
	case 'r':
		n = strtoul(optarg, &end, 10);
		if (*end || n < 1024 || n > 8000000)
			return refuse("--rows", optarg, "a number from 1024 to 8000000");
		o->rows = (uint32_t)n;
		return 0;
	case 'R':
		n = strtoul(optarg, &end, 10);
		if (*end || !n || n > 8000000)
			return refuse("--range", optarg, "a number from 1 to 8000000");
		o->range = (uint32_t)n;
		return 0;
	case 'M':
		n = strtoul(optarg, &end, 10);
		if (*end || n < upper_rows[0])
			return refuse("--most", optarg, "a number from 131072 on");
		o->most = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
		return 0;
	case 't':
		o->tensors = optarg;
		return 0;
	case 'm':
		return cpu_mask_parse(optarg, &o->mask) ? refuse("--mask", optarg, "unknown name") : 0;
	case 'p':
		o->paper = 0;
		return 0;
	case 'w':
		return parse_workers(optarg, o);
	case 'P':
		return parse_prefetch(optarg, o);
	case 'd':
		o->daemon = optarg;
		return 0;
	case 'j':
		o->json = optarg;
		return 0;
	case 'h':
		fputs(usage, stdout);
		exit(0);
	default:
		fputs(usage, stderr);
		return 2;
	}
}

// "magicpigd" in the directory of this program.
static const char *beside(const char *program)
{
	static char path[4096];
	const char *slash = strrchr(program, '/');
	snprintf(path, sizeof(path), "%.*smagicpigd", slash ? (int)(slash - program + 1) : 0, program);
	return path;
}

static void default_workers(struct options *o)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	for (unsigned n = 1; n < (unsigned)cpus && o->worker_counts + 1 < MAX_COUNTS; n *= 2)
		o->workers[o->worker_counts++] = n;
	if (cpus > 2)
		o->workers[o->worker_counts++] = (unsigned)cpus - 1; // the last CPU is the client's
	if (!o->worker_counts)
		o->workers[o->worker_counts++] = 1;
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {{"rows", 1, NULL, 'r'},     {"mask", 1, NULL, 'm'},    {"no-paper", 0, NULL, 'p'},
	                                      {"daemon", 1, NULL, 'd'},   {"workers", 1, NULL, 'w'}, {"json", 1, NULL, 'j'},
	                                      {"tensors", 1, NULL, 't'},  {"most", 1, NULL, 'M'},    {"range", 1, NULL, 'R'},
	                                      {"prefetch", 1, NULL, 'P'}, {"help", 0, NULL, 'h'},    {NULL, 0, NULL, 0}};
	*o = (struct options){.rows = 96000, .mask = UINT32_MAX, .paper = 1, .most = UINT32_MAX, .daemon = getenv("MAGICPIGD")};
	o->gaps.shares = 1; // 0

	int status = 0;
	for (int c; !status && (c = getopt_long(argc, argv, "h", table, NULL)) != -1;)
		status = parse_option(c, o);
	for (int i = optind; !status && i < argc; i++)
		status = parse_part(argv[i], o);
	if (!o->parts)
		o->parts = ROOFLINE | HEAD | RING | LAYER | PROPOSALS | TIMELINE;
	if (!o->daemon)
		o->daemon = beside(argv[0]);
	if (!o->worker_counts)
		default_workers(o);
	if (o->gaps.shares == 1)
		o->gaps.share[o->gaps.shares++] = .75;
	o->gaps.workers = o->workers[o->worker_counts - 1];
	return status;
}

struct figure {
	const char *key, *text;
	double value;
};

// Figures as lines or as the members of a JSON object.
static void print(FILE *out, const struct figure *f, size_t n, int json)
{
	for (size_t i = 0, printed = 0; i < n; i++)
		if (!isnan(f[i].value) && (json || f[i].text)) // NaN: not measured; no text: for programs
			fprintf(out, json ? "%s\"%s\": %.6g" : "%s%-52s %10.4g\n", json && printed++ ? ", " : "",
			        json ? f[i].key : f[i].text, f[i].value);
}
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct results {
	char isa[64];
	struct roofline roof;
	struct head_result head;
	struct queue_result ring;
	struct layer_result layer[MAX_COUNTS];
	struct proposal_result proposal[BENCH_PROPOSALS];
	struct timeline_result timeline[2 * MAX_COUNTS];
	struct upper_result upper[UPPER_ROWS];
	struct gaps_result gaps;
	size_t uppers;
};

static void print_roofline(FILE *out, const struct results *r, int json)
{
	const struct figure f[] = {
		{"stream_gbs", "one core streams, GB/s", r->roof.stream_gbs},
		{"gather_gbs", "one core gathers rows of d=128 bf16, GB/s", r->roof.gather_gbs},
		{"threads", "threads together", r->roof.threads},
		{"all_stream_gbs", "  stream, GB/s", r->roof.all_stream_gbs},
		{"all_gather_gbs", "  gather, GB/s", r->roof.all_gather_gbs},
	};
	print(out, f, COUNT(f), json);
}

static void print_head(FILE *out, const struct results *r, int json)
{
	const struct head_result *h = &r->head;
	double row_bytes = 4. * h->d, code_bytes = h->d * h->bits / 8. + 2;
	// What a signature request must move at least: codes, noise, and each
	// selected row once. The scan also has its instructions.
	double stream_ms = h->rows * (code_bytes + 4) / r->roof.stream_gbs * 1e-6, hot_ms = h->rows * h->scan_hot_ns * 1e-6;
	double gather_ms = h->fetched_rows * row_bytes / r->roof.gather_gbs * 1e-6;
	double attend_ms = h->signature_ms - h->pilot_ms - h->scan_ms;
	const struct figure f[] = {
		{"rows", "rows of the KV head", h->rows},
		{"dense_ms", "dense bf16 pass, 4 query heads, ms", h->dense_ms},
		{"dense_share_of_stream", "  of stream bandwidth", h->rows * row_bytes / h->dense_ms * 1e-6 / r->roof.stream_gbs},
		{"signature_ms", "signature b=2 at 1 %, ms", h->signature_ms},
		{"pilot_ms", "  up to the thresholds", h->pilot_ms},
		{"scan_ms", "  scan", h->scan_ms},
		{"scan_ns", "    ns per row", h->scan_ms * 1e6 / h->rows},
		{"scan_hot_ns", "    ns per row, codes in the caches", h->scan_hot_ns},
		{"scan_share", "    of what stream or instructions allow", fmax(stream_ms, hot_ms) / h->scan_ms},
		{"attend_ms", "  attention over the rows", attend_ms},
		{"fetched_rows", "    rows fetched", h->fetched_rows},
		{"attend_share", "    of the gather rate", gather_ms / attend_ms},
		{"signature_roofline_ms", "  its bytes at stream and gather rates, ms", stream_ms + gather_ms},
		{"signature_rows", "  rows per query head", h->signature_rows},
		{"dense_over_signature", "  times faster than dense", h->dense_ms / h->signature_ms},
		{"paper_ms", "paper (10,150), ms", h->paper_ms},
		{"paper_rows", "  rows per query head", h->paper_rows},
		{"index_us_per_row", "index build, us per row per KV head (all indexes)", h->index_us_per_row},
		{"append_us", "one decoded token per KV head, us", h->append_us},
	};
	print(out, f, COUNT(f), json);
}

static void print_proposals(FILE *out, const struct results *r, int json)
{
	if (!json)
		fprintf(out, "%-36s %15s %10s\n", "one KV head, 4 query heads, 1 %", "rows per head", "ms");
	for (size_t i = 0; i < BENCH_PROPOSALS; i++) {
		const struct proposal_result *p = &r->proposal[i];
		fprintf(out, json ? "%s\"%s\": {\"rows\": %.6g, \"ms\": %.6g}" : "%s  %-34s %15.5g %10.4g\n",
		        json && i ? ", " : "", p->name, p->rows, p->ms);
	}
}

// The exponent of rows that fits the times best.
static double growth(const struct results *r, int upper)
{
	double n = (double)r->uppers, x = 0, y = 0, xx = 0, xy = 0;
	for (size_t i = 0; i < r->uppers; i++) {
		double a = log(r->upper[i].rows), b = log(upper ? r->upper[i].upper.ms : r->upper[i].plain.ms);
		x += a, y += b, xx += a * a, xy += a * b;
	}
	return r->uppers > 1 ? (n * xy - x * y) / (n * xx - x * x) : NAN;
}

static void print_side(FILE *out, const char *name, const struct results *r, const struct upper_side *s, int json)
{
	double roof = s->bytes / r->roof.stream_gbs * 1e-6; // bytes at stream rate
	fprintf(out,
	        json ? "\"%s\": {\"ms\": %.6g, \"rows\": %.6g, \"mb\": %.6g, \"roofline_ms\": %.6g, \"mass_error\": %.6g, "
	               "\"out_error\": %.6g}"
	             : "  %-6s %10.4g %10.5g %8.4g %10.4g %10.4g %10.4g\n",
	        name, s->ms, s->rows, s->bytes * 1e-6, roof, s->mass_error, s->out_error);
}

static void print_upper(FILE *out, const struct results *r, int json)
{
	if (!json)
		fprintf(out, "%-8s %10s %10s %8s %10s %10s %10s\n", "rows", "ms", "rows/head", "MB", "at stream", "mass err",
		        "out err");
	for (size_t i = 0; i < r->uppers; i++) {
		fprintf(out, json ? "%s\"%u\": {" : "%s%u\n", json && i ? ", " : "", r->upper[i].rows);
		print_side(out, "plain", r, &r->upper[i].plain, json);
		fputs(json ? ", " : "", out);
		print_side(out, "upper", r, &r->upper[i].upper, json);
		fputs(json ? "}" : "", out);
	}
	fprintf(out,
	        json ? "%s\"growth\": {\"plain\": %.4g, \"upper\": %.4g}"
	             : "%stime grows as rows to the power of %.3g, with upper layers %.3g\n",
	        json ? ", " : "", growth(r, 0), growth(r, 1));
}

static void print_ring(FILE *out, const struct results *r, int json)
{
	const struct figure f[] = {
		{"nop_p50_us", "NOP round trip p50, us", r->ring.nop_p50_us},
		{"nop_p99_us", "NOP round trip p99, us", r->ring.nop_p99_us},
		{"idle_cpu", "idle daemon, cores", r->ring.idle_cpu},
	};
	print(out, f, COUNT(f), json);
}

static void print_layer(FILE *out, const struct layer_result *l, int json)
{
	const struct figure f[] = {
		{"workers", "workers", l->workers},
		{"dense_ms", "  dense, ms", l->dense_ms},
		{"dense_service_ms", "    of which in the daemon", l->dense_service_ms},
		{"signature_ms", "  signature b=2 at 1 %, ms", l->signature_ms},
		{"signature_service_ms", "    of which in the daemon", l->signature_service_ms},
		{"dense_over_signature", "    times faster than dense", l->dense_ms / l->signature_ms},
		{"huge_share", "  of the pool in huge pages", l->huge_share},
		{"append_gbs", "  append, GB/s of bf16 rows", l->append_gbs},
		{"seal_s", "  commit and index of 4 layers, s", l->seal_s},
	};
	print(out, f, COUNT(f), json);
}

static void print_timeline(FILE *out, const struct timeline_result *t, int json)
{
	const struct timeline_sample *s = &t->median;
	const struct figure f[] = {
		{"threads", t->served ? "threads, through ring and daemon" : "threads, the engine alone", t->threads},
		{"served", NULL, t->served},
		{"ms", "  a request, ms", s->ms},
		{"create_ms", t->served ? "    on the way there and back" : "    until the request is planned", s->create_ms},
		{"begin_ms", "    until the first piece begins", s->begin_ms},
		{"first_main_ms", "    until the first rows are scanned", s->first_main_ms},
		{"last_pre_ms", "    until the last threshold is set", s->last_pre_ms},
		{"tail_ms", "    from the first idle thread to the end", s->tail_ms},
		{"end_ms", "    from the end of the last piece", s->end_ms},
		{"gap_us", "    of a thread between two pieces, us", s->gap_us},
		{"longest_unit_ms", "    longest piece of scanning", s->longest_unit_ms},
		{"pre_share", "    share of the threads' time: thresholds", s->pre_share},
		{"main_share", "      scan and attention", s->main_share},
		{"close_share", "      merging", s->close_share},
		{"row_ms", "    one after another, each, ms", s->row_ms},
		{"row_service_ms", "      of it the daemon's own", s->row_service_ms},
	};
	print(out, f, COUNT(f), json);
}

static void print_gaps(FILE *out, const struct results *r, int json)
{
	const struct gaps_result *g = &r->gaps;
	if (!json)
		fprintf(out, "%u workers; ms of a request that comes so long after the answer before\n%-40s", g->workers,
		        "workers.prefetch");
	else
		fprintf(out, "\"workers\": %u, \"prefetch\": [", g->workers);
	for (unsigned i = 0; i < g->shares; i++)
		fprintf(out, json ? "%s%g" : "%s%9.3g", json && i ? ", " : "", g->share[i]);
	for (int gap = 0; gap <= GAPS; gap++) {
		const double *ms = gap < GAPS ? g->ms[gap] : g->both_ms;
		if (gap < GAPS)
			fprintf(out, json ? "], \"after_%g_ms\": [" : "\n  %-38g", g->gap_ms[gap]);
		else
			fprintf(out, json ? "], \"two_at_once_ms\": [" : "\n  %-38s", "two contexts at once, a layer of both");
		for (unsigned i = 0; i < g->shares; i++)
			fprintf(out, json ? "%s%.6g" : "%s%9.4g", json && i ? ", " : "", ms[i]);
	}
	fputs(json ? "]" : "\n", out);
}

static void report(FILE *out, const struct options *o, const struct results *r, int json)
{
	static const struct {
		unsigned part;
		const char *name;
		void (*print)(FILE *out, const struct results *r, int json);
	} part[] = {{ROOFLINE, "roofline", print_roofline}, {HEAD, "head", print_head}, {PROPOSALS, "proposals", print_proposals},
	            {UPPER, "upper", print_upper},          {RING, "ring", print_ring}, {GAP, "gaps", print_gaps}};
	fprintf(out, json ? "{\n  \"kernels\": \"%s\"" : "kernels: %s\n", r->isa);
	for (size_t i = 0; i < COUNT(part); i++) {
		if (!(o->parts & part[i].part))
			continue;
		if (json)
			fprintf(out, ",\n  \"%s\": {", part[i].name);
		part[i].print(out, r, json);
		if (json)
			fputc('}', out);
	}
	for (unsigned list = 0; list < 2; list++) {
		if (!(o->parts & (list ? TIMELINE : LAYER)))
			continue;
		if (json)
			fprintf(out, ",\n  \"%s\": [", list ? "timeline" : "layer");
		for (unsigned i = 0; i < o->worker_counts << list; i++) {
			if (json)
				fprintf(out, "%s\n    {", i ? "," : "");
			if (list)
				print_timeline(out, &r->timeline[i], json);
			else
				print_layer(out, &r->layer[i], json);
			if (json)
				fputc('}', out);
		}
		if (json)
			fputs("\n  ]", out);
	}
	if (json)
		fputs("\n}\n", out);
}

struct reported {
	const struct options *options;
	const struct results *results;
};

static void write_json(FILE *out, const void *reported)
{
	const struct reported *r = reported;
	report(out, r->options, r->results, 1);
}

static int cannot_write(const char *path)
{
	fprintf(stderr, "magicpig-bench: cannot write %s: %s\n", path, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	struct options o;
	int status = parse(argc, argv, &o);
	if (status)
		return status;
	if (o.json && output_check(o.json) != 0)
		return cannot_write(o.json);
	static struct results r;
	struct kernels kernels;
	kernels_init(&kernels, cpu_features() & o.mask, r.isa, sizeof(r.isa));
	if (o.parts & (ROOFLINE | HEAD | TIMELINE | UPPER))
		r.roof = bench_roofline(512);
	if (o.parts & HEAD)
		r.head = bench_head(o.rows, o.mask, o.paper);
	if (o.parts & PROPOSALS)
		bench_proposals(o.rows, o.mask, r.proposal);
	while (o.parts & UPPER && r.uppers < UPPER_ROWS && upper_rows[r.uppers] <= o.most)
		r.uppers++;
	if (r.uppers && bench_upper(upper_rows, r.uppers, o.mask, o.tensors, r.upper))
		return 1;
	if (o.parts & RING && bench_queue(o.daemon, &r.ring))
		return 1;
	for (unsigned i = 0; o.parts & LAYER && i < o.worker_counts; i++)
		if (bench_layer(o.daemon, o.rows, o.workers[i], &r.layer[i]))
			return 1;
	r.gaps = o.gaps;
	if (o.parts & GAP && bench_gaps(o.daemon, o.rows, &r.gaps))
		return 1;
	if (o.parts & TIMELINE)
		bench_timeline(o.rows, o.range, o.mask, o.workers, o.worker_counts, r.timeline);
	report(stdout, &o, &r, 0);
	return o.json && output_write(o.json, write_json, &(struct reported){&o, &r}) != 0 ? cannot_write(o.json) : 0;
}
