// magicpigctl bench: what the running daemon does, next to what this machine's memory could do, measured in the same minute.
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "json.h"
#include "limit.h"
#include "stats.h"
#include "text.h"

#define LEAST_TOKENS 4096u
#define ROOF_LEAST ((size_t)64 << 20) // of a thread's array
#define ROOF_MOST ((size_t)256 << 20)

static void on_signal(int number)
{
	(void)number;
	bench_interrupted = 1;
}

// ---- the machine -------------------------------------------------------------------------------------------------------
// As many threads as the daemon has workers, on their CPUs; where there is no telling, one for each CPU.
static void choose_threads(const struct ctl_command *self, const char *stats_file, struct roofline_options *o, int *cpus)
{
	static struct stats_sample sample;
	struct stats_file file;
	char why[128];
	(void)self;
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	o->threads = online < 1 ? 1 : online > ROOFLINE_MAX_THREADS ? ROOFLINE_MAX_THREADS : (uint32_t)online;
	if (!stats_file || !*stats_file || stats_open(stats_file, &file, why, sizeof(why)) != 0)
		return;
	stats_take(&file, &sample);
	stats_close(&file);
	o->threads = sample.workers ? (uint32_t)sample.workers : 1;
	for (uint32_t i = 0; i < o->threads; i++)
		cpus[i] = sample.worker[i].cpu == UINT64_MAX ? -1 : (int)sample.worker[i].cpu;
	o->cpus = cpus;
}

// A quarter of what is free, at most.
static void choose_bytes(struct roofline_options *o)
{
	unsigned long long free_kb = 0;
	char line[128];
	FILE *in = fopen("/proc/meminfo", "re");
	while (in && fgets(line, sizeof(line), in))
		if (sscanf(line, "MemAvailable: %llu kB", &free_kb) == 1)
			break;
	if (in)
		fclose(in);
	size_t most = (size_t)free_kb * 1024 / 4 / o->threads;
	o->bytes = most > ROOF_MOST ? ROOF_MOST : most < ROOF_LEAST ? ROOF_LEAST : most;
}

static void keep_limit(const struct ctl_command *self, const struct roofline_options *o, const struct roofline_rates *r)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	struct limit limit = {.stream_bytes_per_s = r->stream_bytes_per_s,
	                      .gather_bytes_per_s = r->gather_bytes_per_s,
	                      .threads = o->threads,
	                      .row_bytes = o->row_bytes,
	                      .measured_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec};
	if (limit_write(&limit) != 0)
		fprintf(stderr, "magicpigctl %s: the limit is not kept for top: %s\n", self->name, strerror(errno));
}

// ---- telling -----------------------------------------------------------------------------------------------------------
// The least time of one answer: its codes at the rate of a stream, its rows at that of a gather, by all threads together.
static double least_ns(const struct bench_times *t, const struct bench_figures *f, bool gathered)
{
	double rows = gathered ? t->rows * f->row_bytes : 0;
	return t->count ? ((t->bytes - rows) / f->roof.stream_bytes_per_s + rows / f->roof.gather_bytes_per_s) * 1e9 /
	                          (double)t->count
	                : 0;
}

static double share_of_roof(struct bench_times *t, const struct bench_figures *f, bool gathered, bool piped)
{
	double each = piped ? t->busy_s * 1e9 / (double)t->count : bench_service(t);
	return each > 0 ? least_ns(t, f, gathered) / each : 0;
}

static void row(struct table *table, const char *name, struct bench_times *t, double share)
{
	static const double shares[] = {.5, .9, .99, .999};
	char text[TEXT_SHORT];
	table_cell(table, name);
	table_cell(table, text_count(text, t->count));
	for (int i = 0; i < 4; i++)
		table_cell(table, text_latency(text, bench_percentile(t, shares[i])));
	table_cell(table, text_rate(text, (double)t->count / t->busy_s));
	table_cell(table, t->bytes > 0 ? text_bytes(text, (uint64_t)(t->bytes / t->busy_s)) : "-");
	table_cell(table, share > 0 ? text_share(text, share) : "-");
}

static void print_roof(const struct roofline_options *o, const struct roofline_rates *r)
{
	char stream[TEXT_SHORT], gather[TEXT_SHORT];
	printf("memory      stream %s/s, rows of %u bytes here and there %s/s, %u thread%s\n",
	       text_bytes(stream, (uint64_t)r->stream_bytes_per_s), o->row_bytes,
	       text_bytes(gather, (uint64_t)r->gather_bytes_per_s), o->threads, o->threads == 1 ? "" : "s");
}

static void print_figures(const struct bench_options *o, struct bench_figures *f)
{
	static const char *const titles[] = {"REQUEST", ">COUNT", ">P50",    ">P90",      ">P99",
	                                     ">P99.9",  ">/S",    ">READ/S", ">OF MEMORY"};
	char tokens[TEXT_SHORT], append[TEXT_SHORT], seal[TEXT_SHORT], piped[48], sampled[TEXT_SHORT + 16], budget[TEXT_SHORT];
	printf("context     %s tokens of one layer, %d query heads on %d KV heads of d %d\n", text_count(tokens, o->tokens),
	       o->query_heads, o->kv_heads, o->d);
	print_roof(&f->roof_options, &f->roof);
	printf("append      %s/s as stored, index in %s\n", text_bytes(append, (uint64_t)f->append_bytes_per_s),
	       text_latency(seal, f->seal_s * 1e9));
	struct table *table = table_create(9, titles);
	text_share(budget, (double)o->budget);
	snprintf(sampled, sizeof(sampled), "attend, %s", budget);
	snprintf(piped, sizeof(piped), "  %u in flight", o->flights);
	row(table, "nop", &f->nop, 0);
	row(table, "attend, dense", &f->dense, share_of_roof(&f->dense, f, false, false));
	row(table, sampled, &f->sampled, share_of_roof(&f->sampled, f, true, false));
	row(table, piped, &f->piped, share_of_roof(&f->piped, f, true, true));
	table_print(table, stdout);
	table_destroy(table);
	double dense = bench_percentile(&f->dense, .5), fast = bench_percentile(&f->sampled, .5);
	printf("sampled answers come %.3g times sooner than dense ones\n", fast > 0 ? dense / fast : 0);
}

static void times_json(struct json *json, const char *key, struct bench_times *t, double share)
{
	json_object(json, key);
	json_uint(json, "count", t->count);
	json_double(json, "p50_us", bench_percentile(t, .5) / 1e3);
	json_double(json, "p90_us", bench_percentile(t, .9) / 1e3);
	json_double(json, "p99_us", bench_percentile(t, .99) / 1e3);
	json_double(json, "p999_us", bench_percentile(t, .999) / 1e3);
	json_double(json, "per_s", (double)t->count / t->busy_s);
	if (t->bytes > 0) {
		json_double(json, "service_us", bench_service(t) / 1e3);
		json_double(json, "bytes_read_per_s", t->bytes / t->busy_s);
		json_double(json, "rows_read", t->rows / (double)t->count);
		json_double(json, "share_of_memory", share);
	}
	json_object_end(json);
}

static void roof_json(struct json *json, const struct roofline_options *o, const struct roofline_rates *r)
{
	json_object(json, "memory");
	json_double(json, "stream_bytes_per_s", r->stream_bytes_per_s);
	json_double(json, "gather_bytes_per_s", r->gather_bytes_per_s);
	json_uint(json, "row_bytes", o->row_bytes);
	json_uint(json, "threads", o->threads);
	json_object_end(json);
}

static void print_json(const struct bench_options *o, struct bench_figures *f)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	roof_json(&json, &f->roof_options, &f->roof);
	if (o) {
		json_uint(&json, "tokens", o->tokens);
		json_int(&json, "query_heads", o->query_heads);
		json_int(&json, "kv_heads", o->kv_heads);
		json_int(&json, "d", o->d);
		json_float(&json, "budget", o->budget);
		json_double(&json, "append_bytes_per_s", f->append_bytes_per_s);
		json_double(&json, "seal_s", f->seal_s);
		times_json(&json, "nop", &f->nop, 0);
		times_json(&json, "dense", &f->dense, share_of_roof(&f->dense, f, false, false));
		times_json(&json, "sampled", &f->sampled, share_of_roof(&f->sampled, f, true, false));
		json_uint(&json, "in_flight", o->flights);
		times_json(&json, "piped", &f->piped, share_of_roof(&f->piped, f, true, true));
	}
	json_object_end(&json);
	json_finish(&json);
}

// ---- the command -------------------------------------------------------------------------------------------------------
// A context that fits: half of what the pool has left.
static int fit_tokens(const struct ctl_command *self, const struct mpig_daemon_status *daemon, struct bench_options *o,
                      bool asked)
{
	double each = (double)o->kv_heads * (4.0 * o->d + o->d / 2.0); // rows, codes and what the records take
	double room = (double)(daemon->pool_bytes - daemon->pool_used) / 2 / each;
	char need[TEXT_SHORT];
	if ((double)o->tokens <= room)
		return CTL_OK;
	if (!asked && room >= LEAST_TOKENS) {
		o->tokens = (uint64_t)room / 1024 * 1024;
		return CTL_OK;
	}
	fprintf(stderr,
	        "magicpigctl %s: the pool has not twice the %s that %llu tokens take; give fewer --tokens or drop contexts\n",
	        self->name, text_bytes(need, (uint64_t)((double)o->tokens * each)), (unsigned long long)o->tokens);
	return CTL_FAILED;
}

static int measure_daemon(const struct ctl_command *self, struct bench_options *o, bool asked, struct bench_figures *f)
{
	static int cpus[ROOFLINE_MAX_THREADS];
	struct mpig_daemon_status daemon = MPIG_INIT(daemon);
	char name[64];
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = mpig_daemon_status(client, &daemon);
	if (!status && (code = fit_tokens(self, &daemon, o, asked)) == CTL_OK) {
		choose_threads(self, daemon.stats_file, &f->roof_options, cpus);
		choose_bytes(&f->roof_options);
		snprintf(name, sizeof(name), "magicpigctl-bench-%d", (int)getpid());
		errno = 0;
		status = bench_run(client, name, o, f);
	}
	if (status && bench_interrupted) {
		fprintf(stderr, "magicpigctl %s: interrupted\n", self->name);
		code = CTL_FAILED;
	} else if (status) {
		code = ctl_failed(self, client, NULL, status);
	}
	mpig_disconnect(client);
	return code;
}

static int measure_machine(const struct ctl_command *self, struct bench_figures *f)
{
	choose_threads(self, NULL, &f->roof_options, NULL);
	choose_bytes(&f->roof_options);
	f->roof_options.repetitions = 9;
	if (roofline_measure(&f->roof_options, &f->roof) == 0)
		return CTL_OK;
	fprintf(stderr, "magicpigctl %s: cannot measure memory: %s\n", self->name, strerror(errno));
	return CTL_FAILED;
}

static void shape(const struct ctl_command *self, const char *text, struct bench_options *o)
{
	int end = 0;
	if (sscanf(text, "%d/%d/%d%n", &o->query_heads, &o->kv_heads, &o->d, &end) != 3 || text[end] || o->kv_heads < 1 ||
	    o->query_heads < 1 || o->query_heads > 256 || o->query_heads % o->kv_heads)
		exit(ctl_usage(self, "--heads: '%s' is not QUERY/KV/D, as in 32/8/128", text));
	if (o->d != 64 && o->d != 80 && o->d != 96 && o->d != 128 && o->d != 256)
		exit(ctl_usage(self, "--heads: d is 64, 80, 96, 128 or 256"));
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	enum { MEMORY = CTL_OPTION_OWN, BUDGET, HEADS };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"tokens", required_argument, NULL, 't'},
	                                        {"seconds", required_argument, NULL, 's'},
	                                        {"flights", required_argument, NULL, 'f'},
	                                        {"budget", required_argument, NULL, BUDGET},
	                                        {"heads", required_argument, NULL, HEADS},
	                                        {"memory", no_argument, NULL, MEMORY},
	                                        {NULL, 0, NULL, 0}};
	struct bench_options o = {
		.tokens = 32768, .query_heads = 32, .kv_heads = 8, .d = 128, .budget = .01f, .seconds = 6, .flights = 4};
	struct bench_figures f = {.roof_options = {.repetitions = 2}};
	bool memory_only = false, tokens = false;
	char *end;
	for (int option; (option = ctl_option(self, argc, argv, "ht:s:f:", options)) != -1;)
		switch (option) {
		case 't':
			o.tokens = ctl_number(self, "--tokens", optarg, LEAST_TOKENS, 1u << 24);
			tokens = true;
			break;
		case 's':
			o.seconds = (double)ctl_number(self, "--seconds", optarg, 1, 3600);
			break;
		case 'f':
			o.flights = (unsigned)ctl_number(self, "--flights", optarg, 1, 16);
			break;
		case BUDGET:
			o.budget = strtof(optarg, &end);
			if (end == optarg || *end || !(o.budget > 0) || o.budget > 1)
				return ctl_usage(self, "--budget: '%s' is not a number above 0 and up to 1", optarg);
			break;
		case HEADS:
			shape(self, optarg, &o);
			break;
		case MEMORY:
			memory_only = true;
			break;
		}
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGINT, &action, NULL); // so that the context is dropped
	sigaction(SIGTERM, &action, NULL);
	f.roof_options.row_bytes = (uint32_t)(4 * o.d + 63) / 64 * 64; // K and V in bf16
	f.row_bytes = f.roof_options.row_bytes;
	int code = memory_only ? measure_machine(self, &f) : measure_daemon(self, &o, tokens, &f);
	if (code == CTL_OK) {
		if (ctl_globals.json)
			print_json(memory_only ? NULL : &o, &f);
		else if (memory_only)
			print_roof(&f.roof_options, &f.roof);
		else
			print_figures(&o, &f);
		keep_limit(self, &f.roof_options, &f.roof);
	}
	bench_free(&f);
	return code;
}

const struct ctl_command ctl_bench = {
	.name = "bench",
	.arguments = "",
	.summary = "Measures the running daemon next to this machine's memory",
	.options = "  -t, --tokens N      of its context, which it makes and drops (default 32768, or what half of the free pool "
		   "holds)\n"
		   "  -s, --seconds N     of answers, in turns with measurements of memory (default 6)\n"
		   "  -f, --flights N     requests in flight where throughput is measured (default 4)\n"
		   "      --budget B      share of the rows that sampled answers read (default 0.01)\n"
		   "      --heads Q/KV/D  query heads, KV heads and their dimension (default 32/8/128)\n"
		   "      --memory        memory only; needs no daemon\n"
		   "\n"
		   "Percentiles are of round trips as a client sees them. OF MEMORY: the least time that the bytes an answer "
		   "looked at\n"
		   "take at memory's own rates, over the time it took inside the daemon. The rates are kept for `magicpigctl "
		   "top`.\n",
	.run = run,
};
