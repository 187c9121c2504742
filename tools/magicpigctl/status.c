// magicpigctl status: the daemon, its pool, its workers, and what they do at the moment.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shm/abi.h" // first: it has the enumerations that magicpig.h copies

#include "ctl.h"
#include "json.h"
#include "stats.h"
#include "text.h"

#define BAR_CELLS 32

// What was seen. Either source may be missing: the daemon's answer (with --stats) or the file (not readable for everybody).
struct view {
	bool answered;
	struct mpig_daemon_status daemon;
	bool counted;
	char stats_path[256];
	char why_not[128]; // why there is nothing from the file
	struct stats_sample before, after;
	unsigned long interval_ms;
	double seconds; // between the samples; since the daemon's start where interval_ms is 0
};

static const char *state_name(uint64_t state)
{
	static const char *const names[] = {"spin", "busy", "parked"};
	return state <= MPIG_WORKER_PARKED ? names[state] : "unknown";
}

static void look_at_file(struct view *view)
{
	unsigned long interval_ms = view->interval_ms;
	struct stats_file file;
	if (stats_open(view->stats_path, &file, view->why_not, sizeof(view->why_not)) != 0)
		return;
	stats_take(&file, &view->after);
	if (interval_ms) {
		view->before = view->after;
		nanosleep(&(struct timespec){(time_t)(interval_ms / 1000), (long)(interval_ms % 1000) * 1000000}, NULL);
		stats_take(&file, &view->after);
		view->seconds = (double)(view->after.taken_ns - view->before.taken_ns) / 1e9;
	} else {
		struct timespec now;
		clock_gettime(CLOCK_REALTIME, &now);
		view->seconds = (double)now.tv_sec + (double)now.tv_nsec / 1e9 - (double)view->after.head.start_realtime_ns / 1e9;
	}
	view->seconds = view->seconds > 0 ? view->seconds : 1e-9;
	view->counted = true;
	stats_close(&file);
}

static double rate(const struct view *view, uint64_t events)
{
	return (double)events / view->seconds;
}

static double busy_share(const struct stats_work *work)
{
	double all = (double)(work->busy_ns + work->spin_ns + work->park_ns);
	return all > 0 ? (double)work->busy_ns / all : 0;
}

static void print_memory(const char *what, uint64_t used, uint64_t total, uint64_t metadata)
{
	char a[TEXT_SHORT], b[TEXT_SHORT], c[TEXT_SHORT], d[TEXT_SHORT];
	double share = total ? (double)used / (double)total : 0;
	printf("  %-11s ", what);
	text_bar(stdout, share, BAR_CELLS);
	printf(" %s: %s of %s", text_share(a, share), text_bytes(b, used), text_bytes(c, total));
	if (metadata)
		printf(", metadata %s", text_bytes(d, metadata));
	putchar('\n');
}

static void print_answer(const struct mpig_daemon_status *d)
{
	char up[TEXT_SHORT], attends[TEXT_SHORT], rows[TEXT_SHORT], commits[TEXT_SHORT], read[TEXT_SHORT], bytes[TEXT_SHORT];
	char errors[TEXT_SHORT];
	printf("%smagicpigd %s%s  instance %s, pid %u, up %s\n", text_on(TEXT_BOLD), d->version, text_off(), d->instance, d->pid,
	       text_duration(up, d->uptime_ns));
	printf("  kernels     %s\n  i/o         %s\n", d->kernels, d->io_backend);
	if (d->config_file[0])
		printf("  config      %s\n", d->config_file);
	printf("  pool        %s\n", d->pool_dir);
	print_memory("", d->pool_used, d->pool_bytes, d->pool_metadata);
	if (d->quota_bytes)
		print_memory("your quota", d->quota_used, d->quota_bytes, 0);
	printf("  now         contexts %" PRIu64 ", clients %" PRIu64 ", queues %" PRIu64 ", workers %u%s%s%s\n", d->contexts,
	       d->clients, d->queues, d->workers, d->drained ? text_on(TEXT_WARN) : "",
	       d->drained ? ", drained: nothing more is opened" : "", d->drained ? text_off() : "");
	printf("  since start %s attends, %s rows appended, %s commits, %s rows read (%s), %s%s errors%s\n",
	       text_count(attends, d->attends), text_count(rows, d->appended_rows), text_count(commits, d->commits),
	       text_count(read, d->rows_read), text_bytes(bytes, d->bytes_read), d->errors ? text_on(TEXT_WARN) : "",
	       text_count(errors, d->errors), d->errors ? text_off() : "");
}

static void print_file_only(const struct stats_sample *s)
{
	char start[TEXT_SHORT];
	printf("%smagicpigd%s  pid %" PRIu64 ", started %s (from its statistics file)\n", text_on(TEXT_BOLD), text_off(),
	       s->head.pid, text_utc(start, s->head.start_realtime_ns));
	print_memory("pool", s->head.pool_used, s->head.pool_bytes, s->head.pool_metadata);
	printf("  now         contexts %" PRIu64 ", clients %" PRIu64 ", queues %" PRIu64 ", workers %" PRIu64 "\n",
	       s->head.contexts, s->head.clients, s->head.queues, s->workers);
}

static void warn_if_stale(const char *who, uint64_t heartbeat_ns, uint64_t now_ns)
{
	char ago[TEXT_SHORT];
	if (stats_stale(heartbeat_ns, now_ns))
		printf("  %s%s last seen alive %s%s\n", text_on(TEXT_BAD), who, text_ago(ago, heartbeat_ns, now_ns), text_off());
}

static void print_rates(const struct view *view)
{
	struct stats_work all = stats_between(&view->before.total, &view->after.total);
	char attends[TEXT_SHORT], appends[TEXT_SHORT], rows[TEXT_SHORT], bytes[TEXT_SHORT], p50[TEXT_SHORT], p99[TEXT_SHORT];
	char time[TEXT_SHORT];
	printf("  rates       %s attends/s, %s rows appended/s, %s rows/s read (%s/s), %s %s\n",
	       text_rate(attends, rate(view, all.attends)), text_rate(appends, rate(view, all.appended_rows)),
	       text_rate(rows, rate(view, all.rows_read)), text_bytes(bytes, (uint64_t)rate(view, all.bytes_read)),
	       view->interval_ms ? "over" : "averaged over",
	       view->seconds < 1 ? text_latency(time, view->seconds * 1e9)
	                         : text_duration(time, (uint64_t)(view->seconds * 1e9)));
	const uint64_t *times = view->after.total.latency[MPIG_OP_ATTEND];
	if (view->after.total.attends)
		printf("  attend      p50 %s, p99 %s inside the daemon, since its start\n",
		       text_latency(p50, stats_quantile(times, .5)), text_latency(p99, stats_quantile(times, .99)));
}

static void print_workers(const struct view *view)
{
	static const char *const titles[] = {">  WORKER", ">CPU",    "STATE",   ">BUSY",    ">REQUESTS/S", ">UNITS/S",
	                                     ">ROWS/S",   ">READ/S", ">STEALS", ">WAKEUPS", ">ERRORS"};
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	for (uint64_t i = 0; i < view->after.workers; i++) {
		const struct stats_work *total = &view->after.worker[i];
		struct stats_work work = stats_between(&view->before.worker[i], total);
		char cell[TEXT_SHORT];
		table_cell(table, text_count(cell, i));
		table_cell(table, total->cpu == UINT64_MAX ? "-" : text_count(cell, total->cpu));
		table_cell(table, state_name(total->state));
		table_cell(table, text_share(cell, busy_share(&work)));
		table_cell(table, text_rate(cell, rate(view, work.requests)));
		table_cell(table, text_rate(cell, rate(view, work.units)));
		table_cell(table, text_rate(cell, rate(view, work.rows_read)));
		table_cell(table, text_bytes(cell, (uint64_t)rate(view, work.bytes_read)));
		table_cell(table, text_count(cell, total->steals));
		table_cell(table, text_count(cell, total->wakeups));
		table_cell(table, text_count(cell, total->errors));
	}
	table_print(table, stdout);
	table_destroy(table);
}

static void print_text(const struct view *view)
{
	if (view->answered)
		print_answer(&view->daemon);
	else
		print_file_only(&view->after);
	if (!view->counted) {
		printf("  rates       not known: %s: %s\n", view->stats_path, view->why_not);
		return;
	}
	warn_if_stale("the control thread was", view->after.head.heartbeat_ns, view->after.taken_ns);
	warn_if_stale("a worker was", view->after.oldest_heartbeat_ns, view->after.taken_ns);
	print_rates(view);
	print_workers(view);
}

static void answer_json(struct json *json, const struct mpig_daemon_status *d)
{
	json_string(json, "version", d->version);
	json_string(json, "instance", d->instance);
	json_uint(json, "pid", d->pid);
	json_uint(json, "epoch", d->epoch);
	json_uint(json, "uptime_ns", d->uptime_ns);
	json_string(json, "kernels", d->kernels);
	json_string(json, "io_backend", d->io_backend);
	json_string(json, "pool_dir", d->pool_dir);
	json_string(json, "config_file", d->config_file);
	json_uint(json, "pool_bytes", d->pool_bytes);
	json_uint(json, "pool_used", d->pool_used);
	json_uint(json, "pool_metadata", d->pool_metadata);
	json_uint(json, "quota_bytes", d->quota_bytes);
	json_uint(json, "quota_used", d->quota_used);
	json_uint(json, "contexts", d->contexts);
	json_uint(json, "clients", d->clients);
	json_uint(json, "queues", d->queues);
	json_bool(json, "drained", d->drained);
	json_uint(json, "workers", d->workers);
	json_uint(json, "attends", d->attends);
	json_uint(json, "appended_rows", d->appended_rows);
	json_uint(json, "commits", d->commits);
	json_uint(json, "rows_read", d->rows_read);
	json_uint(json, "bytes_read", d->bytes_read);
	json_uint(json, "errors", d->errors);
}

static void file_head_json(struct json *json, const struct stats_sample *s)
{
	json_uint(json, "pid", s->head.pid);
	json_uint(json, "epoch", s->head.epoch);
	json_uint(json, "pool_bytes", s->head.pool_bytes);
	json_uint(json, "pool_used", s->head.pool_used);
	json_uint(json, "pool_metadata", s->head.pool_metadata);
	json_uint(json, "contexts", s->head.contexts);
	json_uint(json, "clients", s->head.clients);
	json_uint(json, "queues", s->head.queues);
	json_bool(json, "drained", s->head.flags & MPIG_STATS_DRAINED);
	json_uint(json, "workers", s->workers);
	json_uint(json, "attends", s->total.attends);
	json_uint(json, "appended_rows", s->total.appended_rows);
	json_uint(json, "commits", s->total.commits);
	json_uint(json, "rows_read", s->total.rows_read);
	json_uint(json, "bytes_read", s->total.bytes_read);
	json_uint(json, "errors", s->total.errors);
}

static void worker_json(struct json *json, const struct view *view, uint64_t i)
{
	const struct stats_work *total = &view->after.worker[i];
	struct stats_work work = stats_between(&view->before.worker[i], total);
	json_object(json, NULL);
	json_uint(json, "worker", i);
	if (total->cpu == UINT64_MAX)
		json_string(json, "cpu", NULL);
	else
		json_uint(json, "cpu", total->cpu);
	json_string(json, "state", state_name(total->state));
	json_double(json, "busy_share", busy_share(&work));
	json_double(json, "requests_per_s", rate(view, work.requests));
	json_double(json, "units_per_s", rate(view, work.units));
	json_double(json, "rows_read_per_s", rate(view, work.rows_read));
	json_double(json, "bytes_read_per_s", rate(view, work.bytes_read));
	json_uint(json, "steals", total->steals);
	json_uint(json, "wakeups", total->wakeups);
	json_uint(json, "prefetched_bytes", total->prefetched_bytes);
	json_uint(json, "foreseen", total->foreseen);
	json_uint(json, "errors", total->errors);
	json_object_end(json);
}

static void statistics_json(struct json *json, const struct view *view)
{
	const struct stats_sample *s = &view->after;
	struct stats_work all = stats_between(&view->before.total, &s->total);
	json_object(json, "statistics");
	json_double(json, "interval_s", view->seconds);
	json_uint(json, "control_messages", s->head.control_messages);
	json_uint(json, "control_errors", s->head.control_errors);
	json_uint(json, "clients_died", s->head.clients_died);
	json_double(json, "attends_per_s", rate(view, all.attends));
	json_double(json, "appended_rows_per_s", rate(view, all.appended_rows));
	json_double(json, "rows_read_per_s", rate(view, all.rows_read));
	json_double(json, "bytes_read_per_s", rate(view, all.bytes_read));
	json_double(json, "attend_p50_us", stats_quantile(s->total.latency[MPIG_OP_ATTEND], .5) / 1e3);
	json_double(json, "attend_p99_us", stats_quantile(s->total.latency[MPIG_OP_ATTEND], .99) / 1e3);
	json_double(json, "append_p50_us", stats_quantile(s->total.latency[MPIG_OP_APPEND], .5) / 1e3);
	json_double(json, "append_p99_us", stats_quantile(s->total.latency[MPIG_OP_APPEND], .99) / 1e3);
	json_array(json, "workers");
	for (uint64_t i = 0; i < s->workers; i++)
		worker_json(json, view, i);
	json_array_end(json);
	json_object_end(json);
}

static void print_json(const struct view *view)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_bool(&json, "answered", view->answered);
	if (view->answered)
		answer_json(&json, &view->daemon);
	else
		file_head_json(&json, &view->after);
	json_string(&json, "stats_file", view->stats_path);
	if (view->counted)
		statistics_json(&json, view);
	else
		json_string(&json, "statistics", NULL);
	json_object_end(&json);
	json_finish(&json);
}

static int ask_daemon(const struct ctl_command *self, struct view *view)
{
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	view->daemon.size = sizeof(view->daemon);
	int status = mpig_daemon_status(client, &view->daemon);
	if (status)
		code = ctl_failed(self, client, NULL, status);
	mpig_disconnect(client);
	if (code)
		return code;
	view->answered = true;
	snprintf(view->stats_path, sizeof(view->stats_path), "%s", view->daemon.stats_file);
	return CTL_OK;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"interval", required_argument, NULL, 'i'},
	                                        {"stats", required_argument, NULL, CTL_OPTION_OWN},
	                                        {NULL, 0, NULL, 0}};
	static struct view view; // some 5 MB, of which a page for each worker is touched
	const char *stats = NULL;
	for (int option; (option = ctl_option(self, argc, argv, "hi:", options)) != -1;)
		switch (option) {
		case 'i':
			view.interval_ms = ctl_number(self, "--interval", optarg, 0, 3600000);
			break;
		case CTL_OPTION_OWN:
			stats = optarg;
			break;
		}
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);

	int code = stats ? CTL_OK : ask_daemon(self, &view);
	if (code)
		return code;
	if (stats)
		snprintf(view.stats_path, sizeof(view.stats_path), "%s", stats);
	if (view.stats_path[0])
		look_at_file(&view);
	else
		snprintf(view.why_not, sizeof(view.why_not), "the daemon keeps no statistics file");
	if (stats && !view.counted) {
		fprintf(stderr, "magicpigctl status: %s: %s\n", stats, view.why_not);
		return CTL_FAILED;
	}
	if (ctl_globals.json)
		print_json(&view);
	else
		print_text(&view);
	return CTL_OK;
}

const struct ctl_command ctl_status = {
	.name = "status",
	.arguments = "",
	.summary = "Tells how the daemon is and what it is doing",
	.options = "  -i, --interval MS   measure rates this long (default 0: averages since the daemon's start)\n"
		   "  --stats FILE        ask nobody: read this statistics file, even while the daemon is stuck\n",
	.run = run,
};
