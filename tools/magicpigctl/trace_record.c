// magicpigctl trace record: from the daemon's ring into a file.
#include "trace_file.h" // first: shm/ has the enumerations that magicpig.h copies

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "text.h"
#include "trace.h"

struct recorder {
	const struct ctl_command *self;
	const char *path, *name;
	FILE *file;
	bool made;   // the file is ours to remove
	bool closed; // the daemon ended the connection, and lives
	struct trace_writer writer;
	struct mpig_trace_header header;
	struct mpig_wire_layer *layers;
	struct mpig_trace_end end;
};

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

// On disk, as far as it was written.
static bool holds_queries(const struct recorder *r)
{
	struct stat st;
	return fstat(fileno(r->file), &st) == 0 &&
	       (uint64_t)st.st_size > sizeof(r->header) + r->header.layer_count * sizeof(*r->layers);
}

static int file_failed(const struct recorder *r)
{
	int cause = errno;
	bool kept = r->made && r->file && holds_queries(r);
	if (r->file == stdout) { // it is said once
		__fpurge(stdout);
		clearerr(stdout);
	}
	fprintf(stderr, "magicpigctl %s: '%s': %s%s\n", r->self->name, r->path, strerror(cause),
	        kept ? "; the queries that were written before are kept" : "");
	return cause == EACCES ? CTL_PERMISSION : CTL_FAILED;
}

// Readable by its owner only. One that is there is left alone: it may hold what cannot be had again.
static int open_file(struct recorder *r)
{
	if (strcmp(r->path, "-") == 0) {
		if (isatty(STDOUT_FILENO))
			return ctl_usage(r->self, "a terminal is no place for recorded queries: give a file, or a pipe");
		r->file = stdout;
		return CTL_OK;
	}
	int fd = open(r->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EEXIST) {
		fprintf(stderr, "magicpigctl %s: '%s' is there already; give another name, or remove it\n", r->self->name,
		        r->path);
		return CTL_FAILED;
	}
	r->file = fd < 0 ? NULL : fdopen(fd, "wb");
	r->made = fd >= 0;
	return r->file ? CTL_OK : file_failed(r);
}

static struct mpig_wire_layer layer_to_wire(const struct mpig_layer *l)
{
	return (struct mpig_wire_layer){
		.kind = (uint8_t)l->kind,
		.row_dtype = (uint8_t)l->row_dtype,
		.default_proposal = (uint8_t)l->default_proposal,
		.signature_bits = (uint8_t)l->signature_bits,
		.query_heads = (uint16_t)l->query_heads,
		.kv_heads = (uint16_t)l->kv_heads,
		.d_k = (uint16_t)l->d_k,
		.d_v = (uint16_t)l->d_v,
		.paper_k = (uint16_t)l->paper_k,
		.paper_l = (uint16_t)l->paper_l,
		.scale = l->scale,
		.softcap = l->softcap,
		.default_budget = l->default_budget,
		.alibi_slope_base = l->alibi_slope_base,
		.window = (uint32_t)l->window,
		.table_hash = (uint8_t)l->table_hash,
		.table_balance = (uint8_t)l->table_balance,
		.signature_bytes = (uint16_t)l->signature_bytes,
	};
}

// What the file says of the context. A status.
static int describe(struct recorder *r, mpig_client *client, const struct mpig_trace_state *state)
{
	struct mpig_context_info info = MPIG_INIT(info);
	struct mpig_daemon_status daemon = MPIG_INIT(daemon);
	struct mpig_layer layers[MPIG_MAX_LAYERS];
	int status = mpig_context_info(client, r->name, &info);
	status = status ? status : mpig_daemon_status(client, &daemon);
	int count = status ? status : mpig_context_layers(client, r->name, layers, MPIG_MAX_LAYERS);
	if (count < 0)
		return count;
	r->header = (struct mpig_trace_header){
		.recorded_ns = state->began_ns,
		.context_id = info.id,
		.context_seed = info.seed,
		.committed = info.committed,
		.layer_count = (uint32_t)count,
		.signature_version = info.signature_version,
	};
	if (info.id != state->context_id)
		return MPIG_ENOENT; // dropped, and made again, in between
	memcpy(r->header.name, info.name, sizeof(r->header.name) - 1);
	memcpy(r->header.fingerprint, info.fingerprint, sizeof(r->header.fingerprint));
	memcpy(r->header.release, daemon.version, sizeof(r->header.release) - 1);
	r->layers = malloc((size_t)count * sizeof(*r->layers));
	if (!r->layers)
		return MPIG_ENOMEM;
	for (int i = 0; i < count; i++)
		r->layers[i] = layer_to_wire(&layers[i]);
	return MPIG_OK;
}

static int keep(struct recorder *r, const struct mpig_traced *t)
{
	const struct mpig_attend *a = t->attend;
	const struct mpig_wire_layer *l = &r->layers[a->layer];
	struct mpig_layer_shape shape = {.query_heads = l->query_heads, .kv_heads = l->kv_heads, .d_k = l->d_k, .d_v = l->d_v};
	struct mpig_trace_record record = {
		.number = t->number,
		.taken_ns = t->taken_ns,
		.service_ns = t->service_ns,
		.rows_read = t->rows_read,
		.bytes_read = t->bytes_read,
		.committed = t->committed,
		.begin = a->begin,
		.end = (uint64_t)a->end,
		.causal_base = a->causal_base,
		.query_position = a->query_position,
		.seed = a->seed,
		.client = t->client,
		.queue = t->queue,
		.tokens = a->tokens,
		.budget = a->budget,
		.error_target = a->error_target,
		.budget_floor = a->budget_floor,
		.budget_cap = a->budget_cap,
		.delta = a->delta,
		.present = (a->window_lse ? MPIG_HAS_WINDOW_LSE : 0u) | (a->window_out ? MPIG_HAS_WINDOW_OUT : 0u) |
	                   (t->had_signature ? MPIG_HAS_SIGNATURE : 0u),
		.layer = (uint16_t)a->layer,
		.proposal = (uint8_t)a->proposal,
		.asked_dtype = (uint8_t)t->asked_dtype,
		.flags = a->causal ? MPIG_SQE_CAUSAL : 0,
		.signature_version = t->signature_version,
		.units = t->units,
	};
	return trace_write(&r->writer, &record, &shape, a->q, a->window_lse, a->window_out);
}

// Until a limit, a signal, or the recording's own end. A status; MPIG_EIO: the file, errno says why.
static int follow(struct recorder *r, mpig_trace *trace, const struct trace_record_options *o)
{
	struct mpig_trace_state state = MPIG_INIT(state);
	struct mpig_traced traced = MPIG_INIT(traced);
	uint64_t began = now_ns(), last = UINT64_MAX; // last: how many answers there were when it was time to stop
	int got, status = MPIG_OK;
	for (;;) {
		got = mpig_trace_next(trace, &traced, last == UINT64_MAX ? 50 : 0);
		if (got > 0 && keep(r, &traced) != 0)
			return MPIG_EIO;
		if (got == 0 && fflush(r->file) != 0) // whoever reads the pipe sees what is there
			return MPIG_EIO;
		status = got < 0 ? got : mpig_trace_get(trace, &state);
		bool full = o->requests && r->writer.records >= o->requests;
		if (status || full || (got == 0 && (state.ended || last != UINT64_MAX)) || (got > 0 && traced.number + 1 >= last))
			break;
		if (last == UINT64_MAX &&
		    (trace_interrupted || (o->seconds && now_ns() - began >= o->seconds * UINT64_C(1000000000))))
			last = state.answers;
	}
	r->closed = state.ended == MPIG_TRACED_STOPPED; // since it was not stopped here
	r->end = (struct mpig_trace_end){.answers = state.answers,
	                                 .lost = state.lost,
	                                 .too_long = state.too_long,
	                                 .duration_ns = now_ns() - began,
	                                 .ended = state.ended ? state.ended : MPIG_TRACE_STOPPED};
	return status;
}

static void report(const struct recorder *r)
{
	static const char *const ends[] = {"", "stopped", "dropped", "shutdown", "broken", "revoked"};
	static const char *const why[] = {"",
	                                  "",
	                                  ": the context is no longer in memory",
	                                  ": the daemon ended",
	                                  ": the ring was written by somebody else",
	                                  ": the context's owner or permissions changed"};
	FILE *out = r->file == stdout ? stderr : stdout;
	char shown[256], count[TEXT_SHORT], time[TEXT_SHORT], bytes[TEXT_SHORT];
	if (ctl_globals.json) {
		struct json json;
		json_begin(&json, out);
		json_object(&json, NULL);
		json_string(&json, "name", r->name);
		json_string(&json, "file", r->path);
		json_uint(&json, "records", r->writer.records);
		json_uint(&json, "bytes", r->writer.bytes);
		json_uint(&json, "answers", r->end.answers);
		json_uint(&json, "lost", r->end.lost);
		json_uint(&json, "too_long", r->end.too_long);
		json_uint(&json, "duration_ns", r->end.duration_ns);
		json_string(&json, "ended", r->closed ? "closed" : ends[r->end.ended]);
		json_object_end(&json);
		json_finish(&json);
		return;
	}
	bool brief = r->end.duration_ns < UINT64_C(10000000000);
	if (brief)
		text_latency(time, (double)r->end.duration_ns);
	else
		text_duration(time, r->end.duration_ns);
	fprintf(out, "%s: recorded %s %s in %s, %s%s\n", text_printable(shown, sizeof(shown), r->name),
	        text_count(count, r->writer.records), r->writer.records == 1 ? "query" : "queries", time,
	        text_bytes(bytes, r->writer.bytes), r->closed ? ": the daemon ended this connection" : why[r->end.ended]);
	if (r->end.lost)
		fprintf(stderr,
		        "magicpigctl %s: %s of %llu were lost: %llu were larger than a quarter of the ring, for the others it "
		        "had no room\n",
		        r->self->name, text_count(count, r->end.lost), (unsigned long long)r->end.answers,
		        (unsigned long long)r->end.too_long);
}

static int finish(struct recorder *r)
{
	bool failed = trace_write_end(&r->writer, &r->end) != 0 || fflush(r->file) != 0;
	if (!failed && r->made)
		failed = fsync(fileno(r->file)) != 0 && errno != EINVAL;
	return failed ? -1 : 0;
}

int trace_record(const struct ctl_command *self, const char *name, const char *path, const struct trace_record_options *o)
{
	struct recorder r = {.self = self, .path = path, .name = name};
	struct mpig_trace_options options = MPIG_INIT(options);
	struct mpig_trace_state state = MPIG_INIT(state);
	mpig_client *client;
	mpig_trace *trace = NULL;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	options.ring_bytes = (size_t)o->ring_mib << 20;
	int status = mpig_trace_start(client, name, &options, &trace);
	status = status ? status : mpig_trace_get(trace, &state);
	status = status ? status : describe(&r, client, &state);
	if (status) {
		code = ctl_failed(self, client, name, status);
		goto stop;
	}
	code = open_file(&r);
	if (code)
		goto stop;
	r.writer.file = r.file;
	if (!ctl_globals.json && isatty(STDERR_FILENO) && !o->requests && !o->seconds)
		fprintf(stderr, "Recording; Ctrl-C ends it.\n");
	status = trace_write_header(&r.writer, &r.header, r.layers) ? MPIG_EIO : follow(&r, trace, o);
	if (status == MPIG_OK && finish(&r) != 0)
		status = MPIG_EIO;
	if (status)
		code = status == MPIG_EIO ? file_failed(&r) : ctl_failed(self, client, name, status);
	else
		report(&r);
	trace_writer_free(&r.writer);
	bool kept = !r.made || holds_queries(&r);
	bool closed = !r.made || fclose(r.file) == 0;
	r.file = NULL;
	if (!closed && !code)
		code = file_failed(&r);
	if (code && !kept)
		unlink(path);
stop:
	mpig_trace_stop(trace);
	mpig_disconnect(client);
	free(r.layers);
	return code;
}
