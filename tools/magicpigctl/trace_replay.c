// magicpigctl trace replay: recorded queries asked again, in one or several ways.
#include "trace_file.h" // first: shm/ has the enumerations that magicpig.h copies

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "json.h"
#include "text.h"
#include "trace.h"

#define WARM 64 // queries that are asked before the first pass counts

struct values {
	double *value;
	size_t count, room;
};

struct pass {                              // one way of asking
	const struct trace_config *config; // NULL: what was recorded
	struct values service, trip;       // ns: inside the daemon; as the client sees it
	struct values error;               // of each head of each query token, relative to its exact answer
	uint64_t asked, rows, bytes, late;
};

struct replay {
	const struct ctl_command *self;
	const struct trace_replay_options *o;
	const char *path;
	struct trace_reader *file;
	mpig_client *client;
	mpig_context *context;
	mpig_queue *queue;
	struct mpig_context_info info;
	struct mpig_trace_header header; // of the file
	struct pass recorded, pass[TRACE_CONFIGS];
	uint64_t queries, empty, beyond; // that the file has; about no rows; about rows that the context does not hold
	double visible;                  // rows of the context that the queries were about, all KV heads
	float *out[2], *lse[2];          // of the exact answer, and of the one that is looked at
	size_t room;                     // heads of each
};

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static bool add(struct values *v, double value)
{
	if (v->count == v->room) {
		size_t room = v->room ? 2 * v->room : 1024;
		double *more = reallocarray(v->value, room, sizeof(*more));
		if (!more)
			return false;
		v->value = more;
		v->room = room;
	}
	v->value[v->count++] = value;
	return true;
}

static double root_mean_square(const struct values *v)
{
	double sum = 0;
	for (size_t i = 0; i < v->count; i++)
		sum += v->value[i] * v->value[i];
	return v->count ? sqrt(sum / (double)v->count) : NAN;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double percentile(const struct values *sorted, double share)
{
	size_t at = (size_t)ceil(share * (double)sorted->count);
	return sorted->count ? sorted->value[at ? at - 1 : 0] : NAN;
}

static double mean(const struct values *v)
{
	double sum = 0;
	for (size_t i = 0; i < v->count; i++)
		sum += v->value[i];
	return v->count ? sum / (double)v->count : NAN;
}

static int out_of_memory(const struct replay *r)
{
	fprintf(stderr, "magicpigctl %s: out of memory\n", r->self->name);
	return CTL_FAILED;
}

// ---- the file and the context --------------------------------------------------------------------------------------
static int interrupted(const struct replay *r)
{
	fprintf(stderr, "magicpigctl %s: interrupted\n", r->self->name);
	return CTL_FAILED;
}

static int file_wrong(const struct replay *r, const char *why)
{
	if (trace_interrupted) // while it waited for a pipe
		return interrupted(r);
	fprintf(stderr, "magicpigctl %s: %s\n", r->self->name, why);
	return CTL_FAILED;
}

// The context has what the file's queries were asked of, layer by layer, as far as a query can tell.
static int compare_layers(const struct replay *r)
{
	struct mpig_layer layers[MPIG_MAX_LAYERS];
	const struct mpig_wire_layer *was = trace_layers(r->file);
	int count = mpig_context_layers(r->client, r->info.name, layers, MPIG_MAX_LAYERS);
	if (count < 0)
		return ctl_failed(r->self, r->client, r->info.name, count);
	bool same = (uint32_t)count == r->header.layer_count &&
	            memcmp(r->info.fingerprint, r->header.fingerprint, sizeof(r->header.fingerprint)) == 0;
	for (int i = 0; same && i < count; i++)
		same = layers[i].kind == was[i].kind && layers[i].query_heads == was[i].query_heads &&
		       layers[i].kv_heads == was[i].kv_heads && layers[i].d_k == was[i].d_k && layers[i].d_v == was[i].d_v;
	if (same)
		return CTL_OK;
	char shown[256];
	fprintf(stderr, "magicpigctl %s: '%s' is of another model than the queries: its fingerprint or its layers differ\n",
	        r->self->name, text_printable(shown, sizeof(shown), r->info.name));
	return CTL_FAILED;
}

static int open_context(struct replay *r, const char *name)
{
	struct mpig_open_options open = MPIG_INIT(open);
	r->header = *trace_header(r->file);
	name = name ? name : r->header.name;
	int status = mpig_context_open(r->client, name, &open, &r->context);
	status = status ? status : mpig_context_info(r->client, name, &r->info);
	if (status)
		return ctl_failed(r->self, r->client, name, status);
	return compare_layers(r);
}

// A slot for the largest query that the limits allow is too much: for the largest that there is.
static int measure(struct replay *r, uint64_t *slot_bytes)
{
	struct trace_query query;
	char why[TRACE_WHY_BYTES];
	int got;
	while ((!r->o->requests || r->queries < r->o->requests) && (got = trace_next(r->file, &query, why)) != 0) {
		if (got < 0)
			return file_wrong(r, why);
		if (trace_interrupted)
			return interrupted(r);
		const struct mpig_trace_record *q = query.record;
		struct mpig_payload_layout l =
			mpig_attend_layout(&query.shape, q->tokens, MPIG_F32, MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT);
		size_t heads = (size_t)q->tokens * query.shape.query_heads;
		*slot_bytes = l.bytes > *slot_bytes ? l.bytes : *slot_bytes;
		r->room = heads > r->room ? heads : r->room;
		r->queries++;
		bool empty = q->end <= q->begin, beyond = q->end > r->info.committed;
		r->empty += empty;
		r->beyond += !empty && beyond;
		if (empty || beyond)
			continue;
		r->visible += (double)(q->end - q->begin) * query.shape.kv_heads;
		r->recorded.rows += q->rows_read;
		r->recorded.bytes += q->bytes_read;
		r->recorded.asked++;
		if (!add(&r->recorded.service, (double)q->service_ns))
			return out_of_memory(r);
	}
	if (!trace_end(r->file) && !r->o->requests)
		fprintf(stderr, "magicpigctl %s: %s was cut short; what is there is replayed\n", r->self->name, r->path);
	return CTL_OK;
}

static int prepare(struct replay *r, uint64_t slot_bytes)
{
	struct mpig_queue_options queue = MPIG_INIT(queue);
	queue.entries = queue.slots = 2;
	queue.slot_bytes = (slot_bytes + 4095) / 4096 * 4096;
	int status = mpig_queue_create(r->client, &queue, &r->queue);
	if (status)
		return ctl_failed(r->self, r->client, NULL, status);
	size_t room = (r->room ? r->room : 1);
	for (int i = 0; i < 2; i++) {
		r->out[i] = calloc(room * MPIG_MAX_HEAD_DIM, sizeof(float));
		r->lse[i] = calloc(room, sizeof(float));
	}
	return r->out[0] && r->out[1] && r->lse[0] && r->lse[1] ? CTL_OK : out_of_memory(r);
}

// ---- asking --------------------------------------------------------------------------------------------------------
static int ask(const struct replay *r, const struct mpig_attend *attend, int place, struct mpig_result *result)
{
	*result = (struct mpig_result){.size = sizeof(*result), .out = r->out[place], .lse = r->lse[place]};
	return mpig_attend(r->queue, r->context, attend, result);
}

static void wait_until(double when_ns)
{
	for (double left; (left = when_ns - now_ns()) > 0 && !trace_interrupted;) {
		double s = floor(left / 1e9);
		nanosleep(&(struct timespec){.tv_sec = (time_t)s, .tv_nsec = (long)(left - s * 1e9)}, NULL);
	}
}

// The relative error of each head, merged with the client's own part where that was recorded.
static bool compare(struct replay *r, struct pass *p, const struct trace_query *query)
{
	size_t heads = (size_t)query->record->tokens * query->shape.query_heads, d = query->shape.d_v;
	if (query->window_lse && query->window_out)
		for (int i = 0; i < 2; i++) // exact, and this
			mpig_merge(heads, d, r->out[i], r->lse[i], query->window_out, query->window_lse);
	for (size_t h = 0; h < heads; h++) {
		double distance = 0, length = 0;
		for (size_t j = 0; j < d; j++) {
			double exact = (double)r->out[0][h * d + j], e = (double)r->out[1][h * d + j] - exact;
			distance += e * e;
			length += exact * exact;
		}
		if (length > 0 && !add(&p->error, sqrt(distance / length)))
			return false;
	}
	return true;
}

// One query in the pass's way; with its exact answer first, if that is what the pass is for. A status.
static int ask_one(struct replay *r, struct pass *p, const struct trace_query *query, const struct mpig_attend *recorded,
                   bool exact)
{
	struct mpig_attend attend = *recorded;
	struct mpig_result result;
	if (exact) {
		struct mpig_attend dense = *recorded;
		dense.proposal = MPIG_PROPOSAL_DENSE;
		dense.budget = dense.error_target = dense.budget_floor = dense.budget_cap = dense.delta = 0;
		int status = ask(r, &dense, 0, &result);
		if (status)
			return status;
	}
	trace_config_apply(p->config, &attend);
	double start = now_ns();
	int status = ask(r, &attend, 1, &result);
	double took = now_ns() - start;
	if (status)
		return status;
	if (exact)
		return compare(r, p, query) ? MPIG_OK : MPIG_ENOMEM;
	p->asked++;
	p->rows += result.rows_read;
	p->bytes += result.bytes_read;
	return add(&p->trip, took) && add(&p->service, (double)result.service_ns) ? MPIG_OK : MPIG_ENOMEM;
}

static int pass_failed(const struct replay *r, const struct pass *p, int status)
{
	const char *reason = mpig_last_error(r->client);
	fflush(stdout);
	fprintf(stderr, "magicpigctl %s: %s: %s\n", r->self->name, p->config->text,
	        status == MPIG_ENOMEM || !*reason ? mpig_strerror(status) : reason);
	return ctl_exit_code(status);
}

// All queries once. most: how many of them; exact: only for what they differ.
static int one_pass(struct replay *r, struct pass *p, uint64_t most, bool exact)
{
	struct trace_query query;
	struct mpig_attend attend;
	char why[TRACE_WHY_BYTES];
	int got = 0, status = MPIG_OK, code = CTL_OK;
	if (trace_rewind(r->file, why) != 0)
		return file_wrong(r, why);
	double began = now_ns();
	uint64_t first_ns = UINT64_MAX;
	for (uint64_t i = 0; i < most && !trace_interrupted && (got = trace_next(r->file, &query, why)) > 0; i++) {
		if (!trace_attend(&query, &attend) || query.record->end > r->info.committed)
			continue;
		if (r->o->speed > 0 && !exact) {
			first_ns = first_ns == UINT64_MAX ? query.record->taken_ns : first_ns;
			double due = began + ((double)query.record->taken_ns - (double)first_ns) / r->o->speed;
			p->late += due < now_ns() - 1e6;
			wait_until(due);
		}
		if ((status = ask_one(r, p, &query, &attend, exact)) != MPIG_OK)
			break;
	}
	if (status)
		code = pass_failed(r, p, status);
	else if (got < 0)
		code = file_wrong(r, why);
	else if (trace_interrupted)
		code = interrupted(r);
	return code;
}

static void forget(struct pass *p)
{
	free(p->service.value);
	free(p->trip.value);
	free(p->error.value);
	*p = (struct pass){.config = p->config};
}

static int all_passes(struct replay *r)
{
	uint64_t most = r->queries;
	int code = CTL_OK;
	for (int i = 0; i < r->o->configs; i++)
		r->pass[i].config = &r->o->config[i];
	for (int i = 0; i < r->o->configs && !code; i++) {
		if (r->o->speed <= 0) // at a pace everybody begins cold
			code = one_pass(r, &r->pass[i], most < WARM ? most : WARM, false);
		forget(&r->pass[i]);
		code = code ? code : one_pass(r, &r->pass[i], most, false);
	}
	// Apart from the times, since exact answers leave their rows in the caches.
	for (int i = 0; i < r->o->configs && !code && r->o->exact; i++)
		code = one_pass(r, &r->pass[i], most, true);
	return code;
}

// ---- telling -------------------------------------------------------------------------------------------------------
static void sort(struct values *v)
{
	if (v->count)
		qsort(v->value, v->count, sizeof(*v->value), by_value);
}

static void time_cell(struct table *table, double ns)
{
	char cell[TEXT_SHORT];
	table_cell(table, isnan(ns) ? "-" : text_latency(cell, ns));
}

static void share_cell(struct table *table, double share)
{
	char cell[TEXT_SHORT];
	table_cell(table, isnan(share) ? "-" : text_share(cell, share));
}

static void row(const struct replay *r, struct table *table, const struct pass *p)
{
	char cell[TEXT_SHORT];
	double asked = (double)p->asked;
	table_cell(table, p->config ? p->config->text : "when it was recorded");
	time_cell(table, percentile(&p->service, .5));
	time_cell(table, percentile(&p->service, .9));
	time_cell(table, percentile(&p->service, .99));
	time_cell(table, percentile(&p->trip, .5));
	table_cell(table, text_rate(cell, asked > 0 ? (double)p->rows / asked : 0));
	share_cell(table, r->visible > 0 ? (double)p->rows / r->visible : NAN);
	table_cell(table, text_bytes(cell, asked > 0 ? (uint64_t)((double)p->bytes / asked) : 0));
	if (r->o->exact) {
		share_cell(table, root_mean_square(&p->error));
		share_cell(table, percentile(&p->error, .95));
		share_cell(table, percentile(&p->error, 1));
	}
}

static void print_table(const struct replay *r)
{
	static const char *const titles[] = {"CONFIGURATION", ">P50",   ">P90",   ">P99",       ">ROUND TRIP", ">ROWS",
	                                     ">OF ALL",       ">BYTES", ">ERROR", ">ERROR P95", ">WORST"};
	char shown[256], count[TEXT_SHORT], ago[TEXT_SHORT];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	printf("%s: %s %s", text_printable(shown, sizeof(shown), r->info.name), text_count(count, r->recorded.asked),
	       r->recorded.asked == 1 ? "query" : "queries");
	printf(" of '%s', recorded %s\n", text_printable(shown, sizeof(shown), r->header.name),
	       text_ago(ago, r->header.recorded_ns, (uint64_t)now.tv_sec * UINT64_C(1000000000)));
	if (r->beyond)
		printf("%s more are left out: the context does not hold their rows\n", text_count(count, r->beyond));
	struct table *table = table_create(r->o->exact ? 11 : 8, titles);
	row(r, table, &r->recorded);
	for (int i = 0; i < r->o->configs; i++)
		row(r, table, &r->pass[i]);
	putchar('\n');
	table_print(table, stdout);
	table_destroy(table);
	for (int i = 0; i < r->o->configs; i++)
		if (r->pass[i].late)
			printf("\n%s: %s came a millisecond or more later than the pace asks for", r->pass[i].config->text,
			       text_count(count, r->pass[i].late));
	printf("\nTimes are inside the daemon, but for the round trip (median); rows and bytes are means of a query.\n");
	if (r->o->exact)
		printf("Errors are of query heads, relative to the exact output: root mean square, 95th percentile, worst; the "
		       "client's own part is\nmerged where it was recorded.\n");
}

static void values_json(struct json *json, const char *key, const struct values *v)
{
	if (!v->count)
		return;
	json_object(json, key);
	json_double(json, "mean", mean(v));
	json_double(json, "p50", percentile(v, .5));
	json_double(json, "p90", percentile(v, .9));
	json_double(json, "p95", percentile(v, .95));
	json_double(json, "p99", percentile(v, .99));
	json_double(json, "max", percentile(v, 1));
	json_double(json, "rms", root_mean_square(v));
	json_object_end(json);
}

static void pass_json(const struct replay *r, struct json *json, const char *key, const struct pass *p)
{
	json_object(json, key);
	if (p->config)
		json_string(json, "configuration", p->config->text);
	json_uint(json, "asked", p->asked);
	json_uint(json, "rows_read", p->rows);
	json_double(json, "share_of_rows", r->visible > 0 ? (double)p->rows / r->visible : NAN);
	json_uint(json, "bytes_read", p->bytes);
	if (r->o->speed > 0 && p->config)
		json_uint(json, "late", p->late);
	values_json(json, "service_ns", &p->service);
	values_json(json, "round_trip_ns", &p->trip);
	values_json(json, "error", &p->error);
	json_object_end(json);
}

static void print_json(const struct replay *r)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "context", r->info.name);
	json_string(&json, "recorded_from", r->header.name);
	json_uint(&json, "recorded_ns", r->header.recorded_ns);
	json_uint(&json, "queries", r->queries);
	json_uint(&json, "empty", r->empty);
	json_uint(&json, "beyond", r->beyond);
	json_double(&json, "speed", r->o->speed);
	pass_json(r, &json, "recorded", &r->recorded);
	json_array(&json, "replayed");
	for (int i = 0; i < r->o->configs; i++)
		pass_json(r, &json, NULL, &r->pass[i]);
	json_array_end(&json);
	json_object_end(&json);
	json_finish(&json);
}

static void tell(struct replay *r)
{
	sort(&r->recorded.service);
	for (int i = 0; i < r->o->configs; i++) {
		sort(&r->pass[i].service);
		sort(&r->pass[i].trip);
		sort(&r->pass[i].error);
	}
	if (ctl_globals.json)
		print_json(r);
	else
		print_table(r);
}

int trace_replay(const struct ctl_command *self, const char *path, const char *context, const struct trace_replay_options *given)
{
	struct trace_replay_options o = *given;
	struct replay r = {.self = self,
	                   .o = &o,
	                   .path = strcmp(path, "-") == 0 ? "standard input" : path,
	                   .info = {.size = sizeof(r.info)}};
	char why[TRACE_WHY_BYTES];
	uint64_t slot_bytes = 4096;
	if (!o.configs && trace_config_parse("recorded", &o.config[0], why))
		o.configs = 1;
	if (trace_open(path, &r.file, why) != 0)
		return file_wrong(&r, why);
	int code = trace_keep(r.file, why) == 0
	                   ? CTL_OK
	                   : file_wrong(&r, why); // each pass reads it; before the context is looked at, which may grow
	code = code ? code : ctl_connect(self, &r.client);
	code = code ? code : open_context(&r, context);
	code = code ? code : measure(&r, &slot_bytes);
	if (!code && !r.recorded.asked) {
		fprintf(stderr, "magicpigctl %s: %s holds no query that '%.100s' has the rows for\n", self->name, r.path,
		        r.info.name);
		code = CTL_FAILED;
	}
	code = code ? code : prepare(&r, slot_bytes);
	code = code ? code : all_passes(&r);
	if (!code)
		tell(&r);
	forget(&r.recorded);
	for (int i = 0; i < TRACE_CONFIGS; i++)
		forget(&r.pass[i]);
	for (int i = 0; i < 2; i++) {
		free(r.out[i]);
		free(r.lse[i]);
	}
	mpig_queue_destroy(r.queue);
	mpig_disconnect(r.client);
	trace_close(r.file);
	return code;
}
