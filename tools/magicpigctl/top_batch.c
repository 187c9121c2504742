// A line for each interval: for logs, and for people without a terminal.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ctl.h"
#include "json.h"
#include "top.h"

#define TITLE_EVERY 24

static void time_of_day(char out[16])
{
	time_t now = time(NULL);
	struct tm tm;
	if (!localtime_r(&now, &tm) || !strftime(out, 16, "%H:%M:%S", &tm))
		strcpy(out, "?");
}

static const struct top_operation *attends(const struct top_view *view)
{
	static const struct top_operation none;
	for (uint32_t i = 0; i < view->operations; i++)
		if (strcmp(view->operation[i].name, "attend") == 0)
			return &view->operation[i];
	return &none;
}

static void print_line(const struct top_view *view, unsigned long number)
{
	char now[16], requests[TEXT_SHORT], rows[TEXT_SHORT], bytes[TEXT_SHORT], p50[TEXT_SHORT], p99[TEXT_SHORT],
		pool[TEXT_SHORT];
	char errors[TEXT_SHORT], busy[TEXT_SHORT];
	time_of_day(now);
	if (number % TITLE_EVERY == 0)
		printf("%-8s %10s %10s %12s %9s %9s %6s %6s %8s %8s %8s\n", "time", "requests/s", "rows/s", "read/s", "p50",
		       "p99", "busy", "pool", "contexts", "clients", "errors/s");
	if (view->waiting) {
		printf("%-8s %s\n", now, view->why);
		return;
	}
	const struct top_operation *attend = attends(view);
	double used = view->head.pool_bytes ? (double)view->head.pool_used / (double)view->head.pool_bytes : 0;
	printf("%-8s %10s %10s %12s %9s %9s %6s %6s %8" PRIu64 " %8" PRIu64 " %8s%s%s\n", now,
	       text_rate(requests, view->requests), text_rate(rows, view->rows), text_bytes(bytes, (uint64_t)view->bytes),
	       attend->p50 > 0 ? text_latency(p50, attend->p50) : "-", attend->p99 > 0 ? text_latency(p99, attend->p99) : "-",
	       text_share(busy, view->busy), text_share(pool, used), view->head.contexts, view->head.clients,
	       text_rate(errors, view->errors), view->health.reason[0] ? "  " : "", view->health.reason);
}

static void users_json(struct json *json, const char *key, const struct top_users *users, bool clients)
{
	json_array(json, key);
	for (uint32_t i = 0; i < users->count; i++) {
		const struct top_user *u = &users->user[i];
		json_object(json, NULL);
		json_uint(json, "id", u->id);
		json_string(json, clients ? "command" : "name", u->name);
		json_uint(json, "uid", u->uid);
		if (clients)
			json_uint(json, "pid", u->pid);
		json_double(json, "requests_per_s", u->requests);
		json_double(json, "attends_per_s", u->attends);
		json_double(json, "rows_read_per_s", u->rows);
		json_double(json, "bytes_read_per_s", u->bytes);
		json_double(json, "appended_rows_per_s", u->appended);
		json_double(json, "errors_per_s", u->errors);
		json_double(json, "service_share", u->service);
		json_object_end(json);
	}
	json_array_end(json);
}

static void limit_json(struct json *json, const struct top_view *view)
{
	if (view->limit.stream_bytes_per_s > 0)
		json_double(json, "limit_bytes_per_s", view->limit.stream_bytes_per_s);
	else
		json_string(json, "limit_bytes_per_s", NULL);
}

static void print_json(const struct top_view *view)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_bool(&json, "waiting", view->waiting);
	if (!view->waiting) {
		json_double(&json, "interval_s", view->seconds);
		json_uint(&json, "pid", view->head.pid);
		json_bool(&json, "healthy", view->health.alive);
		json_bool(&json, "ready", view->health.ready);
		json_uint(&json, "pool_bytes", view->head.pool_bytes);
		json_uint(&json, "pool_used", view->head.pool_used);
		json_uint(&json, "saved_contexts", view->head.saved_contexts);
		json_uint(&json, "saved_bytes", view->head.saved_bytes);
		json_uint(&json, "contexts", view->head.contexts);
		json_uint(&json, "clients", view->head.clients);
		json_uint(&json, "queues", view->head.queues);
		json_double(&json, "requests_per_s", view->requests);
		json_double(&json, "rows_read_per_s", view->rows);
		json_double(&json, "bytes_read_per_s", view->bytes);
		limit_json(&json, view);
		json_double(&json, "appended_rows_per_s", view->appended);
		json_double(&json, "errors_per_s", view->errors);
		json_array(&json, "operations");
		for (uint32_t i = 0; i < view->operations; i++) {
			const struct top_operation *o = &view->operation[i];
			json_object(&json, NULL);
			json_string(&json, "name", o->name);
			json_double(&json, "per_s", o->rate);
			json_double(&json, "p50_us", o->p50 / 1e3);
			json_double(&json, "p90_us", o->p90 / 1e3);
			json_double(&json, "p99_us", o->p99 / 1e3);
			json_double(&json, "p999_us", o->p999 / 1e3);
			json_object_end(&json);
		}
		json_array_end(&json);
		json_array(&json, "workers");
		for (uint32_t i = 0; i < view->workers; i++) {
			const struct top_worker *w = &view->worker[i];
			json_object(&json, NULL);
			json_uint(&json, "worker", i);
			json_bool(&json, "stuck", w->stuck);
			json_double(&json, "busy", w->busy);
			json_double(&json, "spin", w->spin);
			json_double(&json, "park", w->park);
			json_double(&json, "units_per_s", w->units);
			json_double(&json, "bytes_read_per_s", w->bytes);
			json_object_end(&json);
		}
		json_array_end(&json);
		users_json(&json, "contexts", &view->contexts, false);
		users_json(&json, "clients", &view->clients, true);
	}
	json_object_end(&json);
	json_finish(&json);
}

int top_batch(struct top_source *source, unsigned long delay_ms, unsigned long count)
{
	static struct top_view view;
	for (unsigned long i = 0; !count || i < count; i++) {
		if (i) // after the line before: a delay is never shorter than was asked for
			nanosleep(&(struct timespec){(time_t)(delay_ms / 1000), (long)(delay_ms % 1000) * 1000000L}, NULL);
		top_look(source, TOP_BY_REQUESTS, &view);
		if (ctl_globals.json)
			print_json(&view);
		else
			print_line(&view, i);
		if (fflush(stdout) != 0)
			return CTL_FAILED;
	}
	return CTL_OK;
}
