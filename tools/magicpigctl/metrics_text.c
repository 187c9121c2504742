#include "metrics.h"

#include <inttypes.h>
#include <string.h>

#include "health.h"
#include "shm/abi.h"
#include "stats.h"

// Bounds of the histogram: powers of two, which are bounds of the buckets kept, from half a microsecond to seventeen seconds.
#define FIRST_BOUND 9u
#define LAST_BOUND 34u

struct writer {
	FILE *out;
	enum metrics_format format;
};

static void family(const struct writer *w, const char *name, const char *type, const char *unit, const char *help)
{
	bool open = w->format == METRICS_OPENMETRICS, counter = strcmp(type, "counter") == 0;
	const char *suffix = counter && !open ? "_total" : "";
	fprintf(w->out, "# HELP magicpig_%s%s %s\n# TYPE magicpig_%s%s %s\n", name, suffix, help, name, suffix, type);
	if (open && unit)
		fprintf(w->out, "# UNIT magicpig_%s %s\n", name, unit);
}

static void gauge(const struct writer *w, const char *name, const char *unit, const char *help, double value)
{
	family(w, name, "gauge", unit, help);
	fprintf(w->out, "magicpig_%s %.15g\n", name, value);
}

static void counter(const struct writer *w, const char *name, const char *unit, const char *help, uint64_t value)
{
	family(w, name, "counter", unit, help);
	fprintf(w->out, "magicpig_%s_total %" PRIu64 "\n", name, value);
}

// A label's value, with what the format wants escaped.
static void label(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '\\' || *text == '"')
			putc('\\', out);
		if (*text == '\n')
			fputs("\\n", out);
		else
			putc(*text, out);
	}
}

static void about(const struct writer *w, const struct stats_sample *s)
{
	struct health health = health_of(s);
	if (w->format == METRICS_OPENMETRICS) {
		family(w, "build", "info", NULL, "Of the daemon whose statistics these are.");
	} else {
		family(w, "build_info", "gauge", NULL, "Of the daemon whose statistics these are.");
	}
	fputs("magicpig_build_info{version=\"", w->out);
	label(w->out, s->head.release);
	fputs("\",daemon_instance=\"", w->out);
	label(w->out, s->head.instance);
	fputs("\"} 1\n", w->out);
	gauge(w, "start_time_seconds", "seconds", "When the daemon started, since the epoch.",
	      (double)s->head.start_realtime_ns / 1e9);
	gauge(w, "alive", NULL, "1 if all its threads that should run were seen lately.", health.alive);
	gauge(w, "ready", NULL, "1 if it also takes newcomers: neither starting, drained nor stopping.", health.ready);
	gauge(w, "drained", NULL, "1 if it was told to open nothing more.", !!(s->head.flags & MPIG_STATS_DRAINED));
	double control = s->taken_ns > s->head.heartbeat_ns ? (double)(s->taken_ns - s->head.heartbeat_ns) / 1e9 : 0;
	gauge(w, "heartbeat_age_seconds", "seconds", "How long ago the control thread was last seen.", control);
}

static void holdings(const struct writer *w, const struct stats_sample *s)
{
	gauge(w, "pool_size_bytes", "bytes", "Memory of the pool.", (double)s->head.pool_bytes);
	gauge(w, "pool_used_bytes", "bytes", "Of it, in use.", (double)s->head.pool_used);
	gauge(w, "pool_metadata_bytes", "bytes", "Of that, for records of contexts and segments.", (double)s->head.pool_metadata);
	gauge(w, "contexts", NULL, "Contexts in memory.", (double)s->head.contexts);
	gauge(w, "clients", NULL, "Connections.", (double)s->head.clients);
	gauge(w, "queues", NULL, "Queues of them.", (double)s->head.queues);
	gauge(w, "saved_contexts", NULL, "Contexts on disk.", (double)s->head.saved_contexts);
	gauge(w, "saved_bytes", "bytes", "Of their files; a segment that two of them share counts twice.",
	      (double)s->head.saved_bytes);
	counter(w, "saves", NULL, "Contexts written to disk.", s->head.saves);
	counter(w, "loads", NULL, "Contexts read from disk.", s->head.loads);
	counter(w, "disk_errors", NULL, "Saves and loads that failed.", s->head.disk_errors);
	counter(w, "evictions", NULL, "Contexts that left memory by policy.", s->head.evictions);
	counter(w, "control_messages", NULL, "Messages on the control socket.", s->head.control_messages);
	counter(w, "control_errors", NULL, "Of them, answered with an error.", s->head.control_errors);
	counter(w, "clients_died", NULL, "Clients whose process ended without a word.", s->head.clients_died);
	counter(w, "clients_refused", NULL, "Connections over a limit.", s->head.clients_refused);
}

static void histogram(const struct writer *w, const struct stats_sample *s, size_t op)
{
	const uint64_t *buckets = s->total.latency[op];
	uint64_t below = 0;
	uint32_t bucket = 0;
	for (uint32_t bound = FIRST_BOUND; bound <= LAST_BOUND; bound++) {
		while (bucket < MPIG_STATS_BUCKETS && mpig_stats_bucket_ns(bucket) < UINT64_C(1) << bound)
			below += buckets[bucket++];
		fprintf(w->out, "magicpig_request_duration_seconds_bucket{op=\"%s\",le=\"%.12g\"} %" PRIu64 "\n",
		        stats_op_name(op), (double)(UINT64_C(1) << bound) / 1e9, below);
	}
	while (bucket < MPIG_STATS_BUCKETS)
		below += buckets[bucket++];
	fprintf(w->out, "magicpig_request_duration_seconds_bucket{op=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", stats_op_name(op),
	        below);
	fprintf(w->out, "magicpig_request_duration_seconds_sum{op=\"%s\"} %.9f\n", stats_op_name(op),
	        (double)s->total.latency_sum_ns[op] / 1e9);
	fprintf(w->out, "magicpig_request_duration_seconds_count{op=\"%s\"} %" PRIu64 "\n", stats_op_name(op), below);
}

static void work(const struct writer *w, const struct stats_sample *s)
{
	family(w, "requests", "counter", NULL, "Requests answered, by operation.");
	for (size_t op = 0; stats_op_name(op); op++)
		fprintf(w->out, "magicpig_requests_total{op=\"%s\"} %" PRIu64 "\n", stats_op_name(op), s->total.by_op[op]);
	counter(w, "request_errors", NULL, "Requests answered with an error.", s->total.errors);
	counter(w, "rows_read", NULL, "Rows fetched by attention.", s->total.rows_read);
	counter(w, "read_bytes", "bytes", "Bytes of rows and index that attention looked at.", s->total.bytes_read);
	counter(w, "appended_rows", NULL, "Rows appended, of all layers.", s->total.appended_rows);
	family(w, "request_duration_seconds", "histogram", "seconds",
	       "From taking a request out of its ring to posting its completion.");
	for (size_t op = 0; stats_op_name(op); op++)
		histogram(w, s, op);
}

struct column {
	const char *name, *help;
	size_t offset; // in struct stats_work
};

static void per_worker(const struct writer *w, const struct stats_sample *s)
{
	static const struct column columns[] = {
		{"worker_units", "Units of work done.", offsetof(struct stats_work, units)},
		{"worker_steals", "Of them, of requests that another worker took.", offsetof(struct stats_work, steals)},
		{"worker_wakeups", "Times a worker woke from sleep.", offsetof(struct stats_work, wakeups)},
		{"worker_prefetched_bytes", "Asked for while it waited, for the request expected next.",
	         offsetof(struct stats_work, prefetched_bytes)},
		{"worker_foreseen", "Attends that had been expected to come next.", offsetof(struct stats_work, foreseen)},
	};
	family(w, "worker_seconds", "counter", "seconds", "What a worker's time went to.");
	for (uint64_t i = 0; i < s->workers; i++) {
		const struct stats_work *worker = &s->worker[i];
		fprintf(w->out,
		        "magicpig_worker_seconds_total{worker=\"%" PRIu64 "\",state=\"busy\"} %.9f\n"
		        "magicpig_worker_seconds_total{worker=\"%" PRIu64 "\",state=\"spin\"} %.9f\n"
		        "magicpig_worker_seconds_total{worker=\"%" PRIu64 "\",state=\"park\"} %.9f\n",
		        i, (double)worker->busy_ns / 1e9, i, (double)worker->spin_ns / 1e9, i, (double)worker->park_ns / 1e9);
	}
	for (size_t c = 0; c < sizeof(columns) / sizeof(columns[0]); c++) {
		family(w, columns[c].name, "counter", NULL, columns[c].help);
		for (uint64_t i = 0; i < s->workers; i++)
			fprintf(w->out, "magicpig_%s_total{worker=\"%" PRIu64 "\"} %" PRIu64 "\n", columns[c].name, i,
			        *(const uint64_t *)((const char *)&s->worker[i] + columns[c].offset));
	}
}

void metrics_write(FILE *out, const struct stats_sample *sample, enum metrics_format format)
{
	struct writer w = {out, format};
	about(&w, sample);
	holdings(&w, sample);
	work(&w, sample);
	per_worker(&w, sample);
	if (format == METRICS_OPENMETRICS)
		fputs("# EOF\n", out);
}
