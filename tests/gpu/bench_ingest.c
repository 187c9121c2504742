// Prefill from the GPU, measured in one run: bench_ingest [--json FILE] [--tokens N] [--chunk N] [--rows bf16|int8] [--slot-mib N] [--slots N]
// [--blocks N] [--compute-ms X] [--sweep] [--cold]
//
//   link        the GPU's copy engine into pinned memory, large copies: what everything is compared with
//   prefill     32 layers of an 8B model's shape, chunk by chunk and layer by layer as a prefill computes them, until the daemon has rows,
//               signatures and checksums of all tokens: nothing is computed between layers, so the link and the daemon set the pace
//   hidden      the same while the GPU is kept busy for X ms a layer: what is left of it behind the computation
//               (--cold: without memory that the daemon has made ready, pool.ready)
//   host        the same rows by mpig_append from the host's memory, for comparison
//
// Runs over the fake driver too; its times mean nothing.
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "tests/gpu/device.h"
#include "tests/lib/model.h"
#include "tools/common/output.h"
#include "tools/magicpig-bench/private_daemon.h"

#include <magicpig_cuda.h>

enum { QUERY_HEADS = 32, KV_HEADS = 8, D = 128, WIDTH = KV_HEADS * D, LAYERS = 32, BUFFERS = 2 };

static struct {
	const char *json;
	uint64_t tokens, chunk;
	int row_dtype;
	size_t slot_bytes;
	unsigned slots, blocks;
	double compute_ms;
	bool sweep, ready;
} option = {.ready = true, .tokens = 98304, .chunk = 8192, .row_dtype = MPIG_BF16, .compute_ms = 8};

struct line {
	char name[64];
	const char *unit;
	double value;
};
static struct line lines[256];
static int line_count;

static void note(double value, const char *unit, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void note(double value, const char *unit, const char *format, ...)
{
	struct line *l = &lines[line_count++];
	va_list args;
	va_start(args, format);
	vsnprintf(l->name, sizeof(l->name), format, args);
	va_end(args);
	l->unit = unit;
	l->value = value;
	printf("%-52s %10.3f %s\n", l->name, value, unit);
	fflush(stdout);
}

static void must(int64_t status, const char *what)
{
	if (status >= 0)
		return;
	fprintf(stderr, "%s: %s (%s)\n", what, mpig_strerror((int)status), mpig_cuda_error());
	exit(1);
}
#define MUST(call) must((call), #call)

static struct private_daemon own;
static mpig_client *client;
static CUstream stream;
static bool fake;
static int layers = LAYERS;
static double link_gbs;

// ---- events ------------------------------------------------------------------------------------------------------------
static void *event_make(void)
{
	void *e;
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &e, 0u);
	return e;
}

static void event_record(void *e, CUstream s)
{
	DEVICE_CALL("cuEventRecord", (void *, CUstream), e, s);
}

static double event_ms(void *a, void *b)
{
	float ms;
	DEVICE_CALL("cuEventElapsedTime_v2", (float *, void *, void *), &ms, a, b);
	return (double)ms;
}

static void copy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	DEVICE_CALL("cuMemcpyDtoDAsync_v2", (CUdeviceptr, CUdeviceptr, size_t, CUstream), to, from, bytes, stream);
}

// ---- the link ------------------------------------------------------------------------------------------------------------
static void measure_link(void)
{
	const struct driver *d = device_driver();
	enum { COPIES = 16, ROUNDS = 5 };
	size_t bytes = fake ? 1 << 20 : 64 << 20;
	void *host, *before = event_make(), *after = event_make();
	CUdeviceptr from = device_bytes(NULL, bytes);
	DEVICE_MUST(d->host_alloc(&host, bytes, CU_HOST_ALLOC_PORTABLE_DEVICEMAP));
	for (int round = 0; round < ROUNDS; round++) {
		event_record(before, stream);
		for (int i = 0; i < COPIES; i++)
			DEVICE_CALL("cuMemcpyDtoHAsync_v2", (void *, CUdeviceptr, size_t, CUstream), host, from, bytes, stream);
		event_record(after, stream);
		device_wait(stream);
		double gbs = (double)(bytes * COPIES) / event_ms(before, after) * 1e-6;
		link_gbs = gbs > link_gbs ? gbs : link_gbs;
	}
	note(link_gbs, "GB/s", "link: copy engine to pinned memory");
	device_free(from);
	DEVICE_MUST(d->host_free(host));
}

// ---- a model's layers, without a model -----------------------------------------------------------------------------------
// K and V of a layer are made from the same numbers, other rows first in each: what a kernel would write.
static struct {
	CUdeviceptr master[2], buffer[BUFFERS][2], scratch;
	void *host[2]; // the same numbers
	size_t scratch_bytes;
	double copy_us; // of the scratch
} world;

static size_t chunk_bytes(void)
{
	return option.chunk * WIDTH * 2;
}

static void world_make(void)
{
	float *x = malloc(option.chunk * WIDTH * sizeof(*x));
	for (int i = 0; i < 2; i++) {
		if (i)
			model_normal(x, option.chunk * WIDTH, 2);
		else
			model_heavy(x, option.chunk * KV_HEADS, D, 1);
		world.host[i] = elements_of(x, option.chunk * WIDTH, MPIG_BF16);
		world.master[i] = device_bytes(world.host[i], chunk_bytes());
		for (int b = 0; b < BUFFERS; b++)
			world.buffer[b][i] = device_bytes(NULL, chunk_bytes());
	}
	free(x);
	world.scratch_bytes = fake ? 4096 : 32 << 20;
	world.scratch = device_bytes(NULL, 2 * world.scratch_bytes);
	void *before = event_make(), *after = event_make();
	for (int i = 0; i < 3; i++) {
		event_record(before, stream);
		for (int n = 0; n < 100; n++)
			copy(world.scratch, world.scratch + world.scratch_bytes, world.scratch_bytes);
		event_record(after, stream);
		device_wait(stream);
		world.copy_us = event_ms(before, after) * 10;
	}
}

static void compute(int buffer, unsigned number, double ms)
{
	size_t row = WIDTH * 2, shift = number * 613 % option.chunk * row, rest = chunk_bytes() - shift;
	for (int n = (int)(ms * 1000 / world.copy_us); n > 0; n--)
		copy(world.scratch, world.scratch + world.scratch_bytes, world.scratch_bytes);
	for (int i = 0; i < 2; i++) {
		copy(world.buffer[buffer][i], world.master[i] + shift, rest);
		if (shift)
			copy(world.buffer[buffer][i] + rest, world.master[i], shift);
	}
}

// ---- runs ----------------------------------------------------------------------------------------------------------------
static mpig_context *context_make(void)
{
	struct mpig_layer layer[LAYERS];
	for (int i = 0; i < layers; i++)
		layer[i] = (struct mpig_layer){.row_dtype = option.row_dtype,
		                               .query_heads = QUERY_HEADS,
		                               .kv_heads = KV_HEADS,
		                               .d_k = D,
		                               .signature_bits = 2};
	struct mpig_spec spec = {
		.size = sizeof(spec), .layer_count = layers, .layers = layer, .fingerprint = "b", .fingerprint_bytes = 1};
	mpig_context *x;
	MUST(mpig_context_create(client, "prefill", &spec, &x));
	return x;
}

static void context_end(mpig_context *x)
{
	mpig_context_close(x);
	MUST(mpig_context_drop(client, "prefill"));
}

static uint32_t *ids_make(uint64_t tokens)
{
	uint32_t *ids = malloc(tokens * sizeof(*ids));
	for (uint64_t i = 0; i < tokens; i++)
		ids[i] = (uint32_t)(i * 7919 % 50000);
	return ids;
}

// Until the daemon has made memory ready again: what it had was given back with the last context.
static void settle(void)
{
	uint64_t last = 0, now;
	for (int i = 0, quiet = 0; option.ready && i < 120 && quiet < 3; i++) {
		usleep(500000);
		now = private_daemon_resident(&own);
		quiet = now > last ? 0 : quiet + 1;
		last = now;
	}
}

static void prefill(const char *name, uint64_t tokens, size_t slot_bytes, unsigned slots, double compute_ms)
{
	struct mpig_cuda_ingest_options o = {.size = sizeof(o),
	                                     .slot_bytes = slot_bytes ? slot_bytes + 4096 : 0, // and a page for the header
	                                     .slots = slots,
	                                     .blocks = option.blocks};
	struct mpig_cuda_ingest_report rows = {.size = sizeof(rows)}, seal = {.size = sizeof(seal)};
	mpig_cuda_ingest *ingest;
	settle();
	mpig_context *x = context_make();
	uint32_t *ids = ids_make(tokens);
	int64_t ticket[BUFFERS] = {0};
	unsigned turn = 0;
	void *before = event_make(), *after = event_make();
	MUST(mpig_cuda_ingest_create(client, &o, &ingest));
	double cpu = private_daemon_cpu(&own);
	uint64_t begin = mono_ns();
	event_record(before, stream);
	for (uint64_t at = 0; at < tokens; at += option.chunk) {
		uint64_t n = tokens - at < option.chunk ? tokens - at : option.chunk;
		for (int l = 0; l < layers; l++, turn++) {
			int b = (int)(turn % BUFFERS);
			if (ticket[b])
				MUST(mpig_cuda_ingest_release(ingest, ticket[b], stream));
			compute(b, turn, compute_ms);
			struct mpig_cuda_rows r = {.size = sizeof(r),
			                           .layer = l,
			                           .dtype = MPIG_BF16,
			                           .first = at,
			                           .count = n,
			                           .k = world.buffer[b][0],
			                           .v = world.buffer[b][1]};
			MUST(ticket[b] = mpig_cuda_ingest_layer(ingest, x, &r, stream));
		}
		if (at + n < tokens)
			MUST(mpig_cuda_ingest_commit(ingest, x, at, n, ids + at, 0));
	}
	event_record(after, stream);
	MUST(mpig_cuda_ingest_finish(ingest, &rows));
	double appended = (double)(mono_ns() - begin) * 1e-9;
	uint64_t last = (tokens - 1) / option.chunk * option.chunk;
	MUST(mpig_cuda_ingest_commit(ingest, x, last, tokens - last, ids + last, MPIG_COMMIT_SEAL));
	MUST(mpig_cuda_ingest_finish(ingest, &seal));
	double total = (double)(mono_ns() - begin) * 1e-9, bytes = (double)rows.bytes;
	device_wait(stream);
	double computed = event_ms(before, after) * 1e-3;
	note(total, "s", "%s", name);
	note(bytes / total * 1e-9, "GB/s", "  K and V, sealed and indexed");
	note(bytes / total * 1e-9 / link_gbs, "", "  of the link");
	note(bytes / appended * 1e-9, "GB/s", "  until the last row (%.3f s)", appended);
	note(bytes / (double)rows.copy_ns, "GB/s", "  while rows are on the bus");
	note((double)rows.copy_ns * 1e-9, "s", "  bus");
	note((double)rows.wait_ns * 1e-9, "s", "  waiting for the daemon");
	note(total - appended, "s", "  last seal");
	note((double)rows.service_ns * 1e-9 / (double)rows.appends * 1e6, "us", "  daemon's time of an append");
	note(private_daemon_cpu(&own) - cpu, "s", "  daemon's CPU");
	if (compute_ms > 0) {
		note(computed, "s", "  the stream that computes");
		note(total - computed, "s", "  behind it");
	}
	mpig_cuda_ingest_destroy(ingest);
	free(ids);
	context_end(x);
}

// The computation of a prefill alone.
static void compute_alone(uint64_t tokens, double compute_ms)
{
	void *before = event_make(), *after = event_make();
	event_record(before, stream);
	for (unsigned turn = 0; turn < (tokens + option.chunk - 1) / option.chunk * (unsigned)layers; turn++)
		compute((int)(turn % BUFFERS), turn, compute_ms);
	event_record(after, stream);
	device_wait(stream);
	note(event_ms(before, after) * 1e-3, "s", "the computation of a prefill, alone");
}

static void host(uint64_t tokens)
{
	struct mpig_queue_options q = {.size = sizeof(q), .entries = 16, .slot_bytes = 8 << 20, .slots = 8};
	mpig_queue *queue;
	mpig_context *x = context_make();
	uint32_t *ids = ids_make(tokens);
	MUST(mpig_queue_create(client, &q, &queue));
	uint64_t begin = mono_ns();
	for (uint64_t at = 0; at < tokens; at += option.chunk) {
		uint64_t n = tokens - at < option.chunk ? tokens - at : option.chunk;
		for (int l = 0; l < layers; l++)
			MUST(mpig_append(queue, x, l, at, n, MPIG_BF16, world.host[0], world.host[1], NULL, 0));
		MUST(mpig_commit(queue, x, at, n, ids + at, at + n == tokens ? MPIG_COMMIT_SEAL : 0));
	}
	double total = (double)(mono_ns() - begin) * 1e-9;
	note((double)tokens * layers * WIDTH * 4 / total * 1e-9, "GB/s", "host: mpig_append of %llu tokens",
	     (unsigned long long)tokens);
	mpig_queue_destroy(queue);
	free(ids);
	context_end(x);
}

// ---- the program ---------------------------------------------------------------------------------------------------------
static void write_json(FILE *f, const void *device)
{
	fprintf(f, "{\"device\": \"%s\", \"measurements\": [\n", (const char *)device);
	for (int i = 0; i < line_count; i++)
		fprintf(f, "  {\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}%s\n",
		        lines[i].name + strspn(lines[i].name, " "), lines[i].value, lines[i].unit, i + 1 < line_count ? "," : "");
	fprintf(f, "]}\n");
}

static int cannot_write(void)
{
	fprintf(stderr, "bench_ingest: --json %s: %s\n", option.json, strerror(errno));
	return 1;
}

static bool take_option(const char *name, const char *value)
{
	if (!strcmp(name, "--json"))
		option.json = value;
	else if (!strcmp(name, "--tokens"))
		option.tokens = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--chunk"))
		option.chunk = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--rows"))
		option.row_dtype = !strcmp(value, "int8") ? MPIG_I8 : MPIG_BF16;
	else if (!strcmp(name, "--slot-mib"))
		option.slot_bytes = (size_t)strtoull(value, NULL, 10) << 20;
	else if (!strcmp(name, "--slots"))
		option.slots = (unsigned)strtoul(value, NULL, 10);
	else if (!strcmp(name, "--blocks"))
		option.blocks = (unsigned)strtoul(value, NULL, 10);
	else if (!strcmp(name, "--compute-ms"))
		option.compute_ms = strtod(value, NULL);
	else
		return false;
	return true;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--cold")) {
			option.ready = false;
		} else if (!strcmp(argv[i], "--sweep")) {
			option.sweep = true;
		} else if (i + 1 >= argc || !take_option(argv[i], argv[i + 1])) {
			fprintf(stderr,
			        "usage: bench_ingest [--json FILE] [--tokens N] [--chunk N] [--rows bf16|int8] [--slot-mib N] "
			        "[--slots N] [--blocks N] [--compute-ms X] [--sweep] [--cold]\n");
			return 2;
		} else {
			i++;
		}
	if (option.json && output_check(option.json) != 0)
		return cannot_write();
	device_open();
	stream = device_stream();
	char device[64];
	DEVICE_MUST(device_driver()->device_name(device, sizeof(device), 0));
	fake = !strncmp(device, "fake", 4);
	if (fake) {
		option.tokens = option.tokens > 300 ? 300 : option.tokens;
		option.chunk = option.chunk > 128 ? 128 : option.chunk;
		option.compute_ms = 0;
		layers = 2;
	}
	const char *program = getenv("MAGICPIGD");
	uint64_t row = option.row_dtype == MPIG_I8 ? 320 : 560;
	uint64_t pool = (UINT64_C(512) << 20) + option.tokens * (uint64_t)layers * KV_HEADS * row;
	char lines_of[64] = "";
	if (option.ready)
		snprintf(lines_of, sizeof(lines_of), "[pool]\nready = %llu\n", (unsigned long long)pool);
	if (private_daemon_start_with(&own, program ? program : "build/magicpigd", 0, pool, lines_of))
		return 1;
	client = own.client;
	struct mpig_daemon_status status = {.size = sizeof(status)};
	MUST(mpig_daemon_status(client, &status));
	printf("%s; daemon: %u workers, %s\n", device, status.workers, status.kernels);
	world_make();
	measure_link();
	if (option.sweep)
		for (size_t mib = 2; mib <= 16; mib *= 2)
			for (unsigned slots = 2; slots <= 8; slots *= 2) {
				char name[64];
				snprintf(name, sizeof(name), "prefill, %zu tokens, %u slots of %zu MiB",
				         (size_t)option.tokens / 4, slots, mib);
				prefill(name, option.tokens / 4, mib << 20, slots, 0);
			}
	host(option.tokens / 8);
	prefill("prefill", option.tokens, option.slot_bytes, option.slots, 0);
	prefill("prefill again", option.tokens, option.slot_bytes, option.slots, 0);
	if (option.compute_ms > 0)
		compute_alone(option.tokens, option.compute_ms);
	if (option.compute_ms > 0)
		prefill("prefill, hidden", option.tokens, option.slot_bytes, option.slots, option.compute_ms);
	private_daemon_stop(&own);
	return option.json && output_write(option.json, write_json, device) != 0 ? cannot_write() : 0;
}
