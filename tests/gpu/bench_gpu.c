// What the GPU's side costs, measured in one run: bench_gpu [--json FILE] [--decode TOKENS]
//
//   round trip     a request that does nothing, GPU -> worker -> GPU, from one kernel
//   kernels        each in a graph of many, so that a launch's host time is not counted
//   attend         a whole step over 64 rows less what the daemon took for it: what the hand-shake and three kernels cost; with own rows
//                  while the daemon works, and with own rows first
//   decode         32 layers of an 8B model's shape over TOKENS rows, without the model's own work
//
// Runs over the fake driver too; its times mean nothing.
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "tests/gpu/device.h"
#include "tests/lib/model.h"
#include "tools/common/output.h"
#include "tools/magicpig-bench/private_daemon.h"

#include <magicpig_cuda.h>

enum { HEADS = 32, KV_HEADS = 8, D = 128, LAYERS = 32, SINKS = 4, OWN = 1024, MANY = 32, BIG = 1024, ROUNDS = 5, ROWS = 25 };

struct line {
	char name[64];
	const char *unit, *note;
	double value;
};
static struct line lines[96];
static int line_count;

static void note(const char *name, double value, const char *unit, const char *text)
{
	struct line *made = &lines[line_count++];
	*made = (struct line){.unit = unit, .note = text, .value = value};
	snprintf(made->name, sizeof(made->name), "%s", name);
	printf("%-34s %10.2f %-6s %s\n", name, value, unit, text);
	fflush(stdout);
}

static void must(int status, const char *what)
{
	if (status >= 0)
		return;
	fprintf(stderr, "%s: %s (%s)\n", what, mpig_strerror(status), mpig_cuda_error());
	exit(1);
}
#define MUST(call) must((call), #call)

// ---- a daemon, a client, a GPU -----------------------------------------------------------------------------------------
static mpig_client *client;
static mpig_queue *host;
static CUstream stream;
static bool fake;
static unsigned own_rows = OWN, many = MANY, rounds = ROUNDS; // fewer over the fake driver

struct lane { // a queue of the GPU's
	mpig_queue *queue;
	mpig_cuda *gpu;
};

static struct lane lane_open(unsigned slots, size_t slot_bytes)
{
	struct mpig_queue_options o = {.size = sizeof(o), .entries = 64, .slots = slots, .slot_bytes = slot_bytes};
	struct lane l;
	MUST(mpig_queue_create(client, &o, &l.queue));
	MUST(mpig_cuda_attach(l.queue, NULL, &l.gpu));
	return l;
}

static void lane_close(struct lane *l)
{
	mpig_cuda_detach(l->gpu);
	mpig_queue_destroy(l->queue);
}

// Checks that nothing failed: times of steps that did not happen are no times.
static void settled(const struct lane *l)
{
	device_wait(stream);
	MUST(mpig_cuda_failure(l->gpu, NULL));
}

static mpig_context *context_make(const char *name, int layers, uint64_t tokens)
{
	struct mpig_layer layer[LAYERS];
	for (int i = 0; i < layers; i++)
		layer[i] = (struct mpig_layer){
			.row_dtype = MPIG_I8, .query_heads = HEADS, .kv_heads = KV_HEADS, .d_k = D, .signature_bits = 2};
	struct mpig_spec spec = {
		.size = sizeof(spec), .layer_count = layers, .layers = layer, .fingerprint = "b", .fingerprint_bytes = 1};
	mpig_context *x;
	MUST(mpig_context_create(client, name, &spec, &x));
	enum { PIECE = 4096 };
	size_t width = KV_HEADS * D;
	float *k = malloc(PIECE * width * sizeof(float)), *v = malloc(PIECE * width * sizeof(float));
	uint32_t *ids = malloc(tokens * sizeof(*ids));
	for (uint64_t i = 0; i < tokens; i++)
		ids[i] = (uint32_t)(i * 7919 % 50000);
	model_heavy(k, PIECE * KV_HEADS, D, 1);
	model_normal(v, PIECE * width, 2);
	void *k16 = elements_of(k, PIECE * width, MPIG_BF16), *v16 = elements_of(v, PIECE * width, MPIG_BF16);
	uint64_t begin = mono_ns();
	for (uint64_t at = 0; at < tokens; at += PIECE) {
		uint64_t n = tokens - at < PIECE ? tokens - at : PIECE;
		for (int i = 0; i < layers; i++)
			MUST(mpig_append(host, x, i, at, n, MPIG_BF16, k16, v16, NULL, 0));
		MUST(mpig_commit(host, x, at, n, ids + at, at + n == tokens ? MPIG_COMMIT_SEAL : 0));
	}
	if (layers > 1)
		printf("%llu tokens of %d layers in %.1f s\n", (unsigned long long)tokens, layers,
		       (double)(mono_ns() - begin) * 1e-9);
	free(k), free(v), free(ids), free(k16), free(v16);
	return x;
}

// ---- timing ------------------------------------------------------------------------------------------------------------
static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

static float quantile(float *x, size_t n, double q)
{
	qsort(x, n, sizeof(*x), by_value);
	return x[(size_t)(q * (double)(n - 1))];
}

// Microseconds of a graph, by the GPU's clock: the median of some rounds.
static double graph_us(const struct lane *l, void *graph)
{
	void *before, *after;
	float ms[ROUNDS];
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &before, 0u);
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &after, 0u);
	for (int i = -1; i < (int)rounds; i++) { // the first is not counted
		MUST(mpig_cuda_begin(l->gpu, 1000));
		DEVICE_CALL("cuEventRecord", (void *, CUstream), before, stream);
		device_replay(graph, stream);
		DEVICE_CALL("cuEventRecord", (void *, CUstream), after, stream);
		settled(l);
		float t;
		DEVICE_CALL("cuEventElapsedTime_v2", (float *, void *, void *), &t, before, after);
		if (i >= 0)
			ms[i] = t;
	}
	device_forget(graph);
	return 1000.0 * (double)quantile(ms, rounds, .5);
}

// ---- round trips -------------------------------------------------------------------------------------------------------
static void round_trips(void)
{
	enum { N = 20000 };
	struct lane l = lane_open(MANY, 1 << 17);
	unsigned n = fake ? 200 : N;
	float *ns = malloc(N * sizeof(*ns));
	MUST(mpig_cuda_begin(l.gpu, 1000));
	MUST(mpig_cuda_round_trips(l.gpu, n, ns)); // warm
	MUST(mpig_cuda_begin(l.gpu, 1000));
	MUST(mpig_cuda_round_trips(l.gpu, n, ns));
	note("round trip p50", (double)quantile(ns, n, .5) * 1e-3, "us", "a request that does nothing, from one kernel");
	note("round trip p99", (double)quantile(ns, n, .99) * 1e-3, "us", "");
	note("round trip p99.9", (double)quantile(ns, n, .999) * 1e-3, "us", "");
	device_capture(stream);
	for (unsigned i = 0; i < many; i++) {
		MUST(mpig_cuda_nop(l.gpu, stream, 0));
		MUST(mpig_cuda_wait(l.gpu, stream, 0));
	}
	note("round trip, two kernels", graph_us(&l, device_captured(stream)) / many, "us",
	     "submit and wait as kernels of a graph");
	free(ns);
	lane_close(&l);
}

// The same with the stream waiting for the completion ring's tail instead of a kernel.
static void stream_waits(void)
{
	struct lane l = lane_open(MANY, 1 << 12);
	struct mpig_cuda_info info = {.size = sizeof(info)};
	MUST(mpig_cuda_get_info(l.gpu, &info));
	note("stream wait woken by CPU", info.stream_wait, "", "1: a store of the CPU ends cuStreamWaitValue32");
	if (!info.stream_wait || fake) {
		lane_close(&l);
		return;
	}
	void *before, *after;
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &before, 0u);
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &after, 0u);
	float ms[2][ROUNDS];
	for (int kernel = 0; kernel < 2; kernel++)
		for (int r = 0; r < ROUNDS; r++) {
			MUST(mpig_cuda_begin(l.gpu, 1000));
			uint32_t tail = (uint32_t)(2 * r * MANY + kernel * ROUNDS * 2 * MANY);
			for (int warm = 0; warm < 2; warm++) {
				DEVICE_CALL("cuEventRecord", (void *, CUstream), before, stream);
				for (unsigned i = 0; i < many; i++) {
					MUST(mpig_cuda_nop(l.gpu, stream, 0));
					if (!kernel)
						DEVICE_MUST(device_driver()->stream_wait(
							stream, info.region + offsetof(struct mpig_queue_header, cq_tail), ++tail,
							CU_WAIT_GEQ));
					MUST(mpig_cuda_wait(l.gpu, stream, 0));
				}
				DEVICE_CALL("cuEventRecord", (void *, CUstream), after, stream);
				settled(&l);
			}
			DEVICE_CALL("cuEventElapsedTime_v2", (float *, void *, void *), &ms[kernel][r], before, after);
		}
	note("eager, stream wait + take", 1000.0 * (double)quantile(ms[0], ROUNDS, .5) / many, "us",
	     "submit, cuStreamWaitValue32, take: no graph");
	note("eager, kernel waits", 1000.0 * (double)quantile(ms[1], ROUNDS, .5) / many, "us", "submit, wait: no graph");
	lane_close(&l);
}

// ---- kernels and steps -------------------------------------------------------------------------------------------------
struct tensors {
	struct mpig_cuda_step step;
};

static struct tensors tensors_make(uint64_t tokens, uint64_t rows, uint64_t split)
{
	struct tensors t = {
		.step = {.size = sizeof(t.step), .kv_dtype = MPIG_BF16, .out_dtype = MPIG_BF16, .ring_rows = own_rows}};
	int64_t where[2] = {(int64_t)split, (int64_t)rows};
	size_t n = tokens * HEADS * D, kv = (size_t)(own_rows + SINKS) * KV_HEADS * D;
	float *x = malloc((n > kv ? n : kv) * sizeof(float));
	model_normal(x, n, 1);
	t.step.q = device_elements(x, n, MPIG_BF16);
	model_normal(x, kv, 2);
	t.step.k = device_elements(x, kv, MPIG_BF16);
	t.step.v = device_elements(x, kv, MPIG_BF16);
	t.step.split = device_bytes(where, sizeof(where));
	t.step.rows = t.step.split + 8;
	t.step.out = device_bytes(NULL, n * 2);
	free(x);
	return t;
}

static void tensors_free(struct tensors *t)
{
	device_free(t->step.q), device_free(t->step.k), device_free(t->step.v), device_free(t->step.split),
		device_free(t->step.out);
}

static struct mpig_cuda_spec spec_of(mpig_context *const *x, int layer)
{
	return (struct mpig_cuda_spec){.size = sizeof(struct mpig_cuda_spec),
	                               .layer = layer,
	                               .contexts = 1,
	                               .context = x,
	                               .dtype = MPIG_BF16,
	                               .sinks = SINKS,
	                               .window = own_rows,
	                               .own_rows = own_rows + SINKS};
}

static void kernels(mpig_context *x)
{
	struct lane l = lane_open(MANY, 1 << 17);
	struct tensors t = tensors_make(1, 4096, 4096 - own_rows);
	struct mpig_cuda_spec spec = spec_of(&x, 0);
	mpig_cuda_plan *plan[MANY];
	for (unsigned i = 0; i < many; i++) {
		spec.first_slot = i;
		MUST(mpig_cuda_plan_create(l.gpu, &spec, &plan[i]));
	}
	CUdeviceptr signature = device_bytes(NULL, HEADS * D), scale = device_bytes(NULL, HEADS * 4);
	device_capture(stream);
	for (unsigned i = 0; i < many; i++)
		MUST(mpig_cuda_sign(plan[i], stream, &t.step, signature, scale));
	note("signature, 32 heads", graph_us(&l, device_captured(stream)) / many, "us",
	     "d = 128, to GPU memory; a kernel of a graph");
	device_capture(stream);
	for (unsigned i = 0; i < many; i++)
		MUST(mpig_cuda_window(plan[i], stream, &t.step));
	note("own rows, 1028 of 8 KV heads", graph_us(&l, device_captured(stream)) / many, "us", "");
	// Submissions alone, the waits in a graph of their own.
	void *before, *after, *wait;
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &before, 0u);
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &after, 0u);
	device_capture(stream);
	for (unsigned i = 0; i < many; i++)
		MUST(mpig_cuda_submit(plan[i], stream, &t.step));
	void *submit = device_captured(stream);
	device_capture(stream);
	for (unsigned i = 0; i < many; i++)
		MUST(mpig_cuda_merge(plan[i], stream, &t.step));
	wait = device_captured(stream);
	float ms[ROUNDS];
	for (int i = -1; i < (int)rounds; i++) {
		float one;
		MUST(mpig_cuda_begin(l.gpu, 1000));
		DEVICE_CALL("cuEventRecord", (void *, CUstream), before, stream);
		device_replay(submit, stream);
		DEVICE_CALL("cuEventRecord", (void *, CUstream), after, stream);
		device_replay(wait, stream);
		settled(&l);
		DEVICE_CALL("cuEventElapsedTime_v2", (float *, void *, void *), &one, before, after);
		if (i >= 0)
			ms[i] = one;
	}
	note("submission, 32 heads", 1000.0 * (double)quantile(ms, rounds, .5) / many, "us",
	     "q, signature, entry and tail into host memory");
	device_forget(submit), device_forget(wait);
	for (unsigned i = 0; i < many; i++)
		mpig_cuda_plan_destroy(plan[i]);
	tensors_free(&t);
	lane_close(&l);
}

// Signatures of many tokens: buffers that together are several times the L2, against copies of as many bytes in the same order.
static void signatures(mpig_context *x, unsigned tokens)
{
	enum { BUFFERS = 24 };
	int buffers = fake ? 1 : BUFFERS * BIG / (int)tokens;
	char title[64];
	size_t q_bytes = (size_t)tokens * HEADS * D * 2, s_bytes = q_bytes / 2;
	struct lane l = lane_open(1, 40 << 20);
	struct mpig_cuda_spec spec = spec_of(&x, 0);
	mpig_cuda_plan *plan;
	spec.tokens = tokens;
	MUST(mpig_cuda_plan_create(l.gpu, &spec, &plan));
	struct mpig_cuda_step step = {.size = sizeof(step)};
	float *q = malloc((size_t)tokens * HEADS * D * 4);
	model_normal(q, (size_t)tokens * HEADS * D, 1);
	CUdeviceptr from[4 * BUFFERS], to[4 * BUFFERS], scale = device_bytes(NULL, (size_t)tokens * HEADS * 4);
	for (int i = 0; i < buffers; i++) {
		from[i] = device_elements(q, (size_t)tokens * HEADS * D, MPIG_BF16);
		to[i] = device_bytes(NULL, q_bytes);
	}
	device_capture(stream);
	for (int i = 0; i < buffers; i++) {
		step.q = from[i];
		MUST(mpig_cuda_sign(plan, stream, &step, to[i], scale));
	}
	double sign = graph_us(&l, device_captured(stream)) / buffers;
	double moved = (double)(q_bytes + s_bytes + (size_t)tokens * HEADS * 4);
	snprintf(title, sizeof(title), "signature, %u x 32 heads", tokens);
	note(title, sign, "us", "");
	note("  bytes moved a second", moved / sign * 1e-6, "TB/s", "");
	if (!fake) {
		device_capture(stream);
		for (int i = 0; i < buffers; i++)
			DEVICE_CALL("cuMemcpyDtoDAsync_v2", (CUdeviceptr, CUdeviceptr, size_t, CUstream), to[i], from[i],
			            (size_t)moved / 2, stream);
		double copy = graph_us(&l, device_captured(stream)) / buffers;
		note("  a copy that moves as much", copy, "us", "");
		note("  signature / copy", sign / copy, "", "");
	}
	for (int i = 0; i < buffers; i++)
		device_free(from[i]), device_free(to[i]);
	free(q);
	mpig_cuda_plan_destroy(plan);
	lane_close(&l);
}

// The daemon's time of the last `count` requests, by their completions, which are in the ring until others take their places.
static double service_us(const struct lane *l, unsigned count)
{
	struct mpig_cuda_info info = {.size = sizeof(info)};
	struct mpig_queue_header h;
	struct mpig_cqe ring[64];
	double sum = 0;
	MUST(mpig_cuda_get_info(l->gpu, &info));
	device_read(&h, info.region, sizeof(h));
	if (h.entries > sizeof(ring) / sizeof(ring[0]) || count > h.entries)
		must(MPIG_ELIMIT, "completions of a row of steps");
	device_read(ring, info.region + h.cq_offset, h.entries * sizeof(ring[0]));
	for (unsigned i = 1; i <= count; i++)
		sum += (double)ring[(h.cq_tail - i) & (h.entries - 1)].service_ns * 1e-3;
	return sum / count;
}

// A graph of `many` steps, one after another: what a step takes, and what it takes beyond the daemon's own time of these very requests.
static void note_row(const struct lane *l, void *graph, const char *name)
{
	int rows = fake ? 1 : ROWS;
	float us[ROWS], service[ROWS], extra[ROWS];
	void *before, *after;
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &before, 0u);
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &after, 0u);
	for (int i = -1; i < rows; i++) { // the first is not counted
		float ms;
		MUST(mpig_cuda_begin(l->gpu, 1000));
		DEVICE_CALL("cuEventRecord", (void *, CUstream), before, stream);
		device_replay(graph, stream);
		DEVICE_CALL("cuEventRecord", (void *, CUstream), after, stream);
		settled(l);
		DEVICE_CALL("cuEventElapsedTime_v2", (float *, void *, void *), &ms, before, after);
		if (i < 0)
			continue;
		us[i] = ms * 1000 / (float)many;
		service[i] = (float)service_us(l, many);
		extra[i] = us[i] - service[i];
	}
	device_forget(graph);
	note(name, (double)quantile(us, (size_t)rows, .5), "us", "a step of 32, one after another in a graph");
	note("  of it the daemon's", (double)quantile(service, (size_t)rows, .5), "us", "of these requests, by its clock");
	note("  beyond the daemon's", (double)quantile(extra, (size_t)rows, .5), "us", "");
}

// A step of one layer whose range has few rows: what it takes beyond the daemon's own time, by the daemon's clock.
static void attend(mpig_context *x)
{
	struct lane l = lane_open(MANY, 1 << 17);
	struct tensors t = tensors_make(1, 4096, SINKS + 64);
	struct mpig_cuda_spec spec = spec_of(&x, 0);
	struct mpig_cuda_answer answer = {.size = sizeof(answer)};
	mpig_cuda_plan *plan;
	MUST(mpig_cuda_plan_create(l.gpu, &spec, &plan));
	t.step.k = 0; // the daemon's part alone
	enum { STEPS = 200 };
	int steps = fake ? 2 : STEPS;
	float us[STEPS], service[STEPS], extra[STEPS];
	void *before, *after;
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &before, 0u);
	DEVICE_CALL("cuEventCreate", (void **, unsigned), &after, 0u);
	device_capture(stream);
	MUST(mpig_cuda_submit(plan, stream, &t.step));
	MUST(mpig_cuda_merge(plan, stream, &t.step));
	void *graph = device_captured(stream);
	for (int i = 0; i < steps; i++) {
		float ms;
		MUST(mpig_cuda_begin(l.gpu, 1000));
		DEVICE_CALL("cuEventRecord", (void *, CUstream), before, stream);
		device_replay(graph, stream);
		DEVICE_CALL("cuEventRecord", (void *, CUstream), after, stream);
		settled(&l);
		MUST(mpig_cuda_last_answer(l.gpu, &answer));
		DEVICE_CALL("cuEventElapsedTime_v2", (float *, void *, void *), &ms, before, after);
		us[i] = ms * 1000;
		service[i] = (float)answer.service_ns * 1e-3f;
		extra[i] = us[i] - service[i];
	}
	note("attend, 32 heads over 64 rows", (double)quantile(us, (size_t)steps, .5), "us",
	     "submit and merge, between two events");
	note("  of it the daemon's", (double)quantile(service, (size_t)steps, .5), "us",
	     "from claim to completion, by its clock");
	note("  beyond the daemon's", (double)quantile(extra, (size_t)steps, .5), "us", "");
	device_forget(graph);
	device_capture(stream);
	for (unsigned i = 0; i < many; i++) {
		MUST(mpig_cuda_submit(plan, stream, &t.step));
		MUST(mpig_cuda_merge(plan, stream, &t.step));
	}
	note_row(&l, device_captured(stream), "attend, in a row");
	mpig_cuda_plan_destroy(plan);
	tensors_free(&t);
	lane_close(&l);
}

// Steps with own rows, in both orders, one after another in a graph: what they take beyond the daemon's own time.
static void own_parts(mpig_context *x)
{
	struct lane l = lane_open(1, 1 << 17);
	struct tensors t = tensors_make(1, 4096, SINKS + 64);
	int64_t rows = SINKS + 64 + own_rows; // as many as there are in the ring
	device_write(t.step.rows, &rows, sizeof(rows));
	for (unsigned first = 0; first < 2; first++) {
		struct mpig_cuda_spec spec = spec_of(&x, 0);
		mpig_cuda_plan *plan;
		spec.own_first = first;
		MUST(mpig_cuda_plan_create(l.gpu, &spec, &plan));
		device_capture(stream);
		for (unsigned i = 0; i < many; i++) {
			if (first)
				MUST(mpig_cuda_window(plan, stream, &t.step));
			MUST(mpig_cuda_submit(plan, stream, &t.step));
			if (!first)
				MUST(mpig_cuda_window(plan, stream, &t.step));
			MUST(mpig_cuda_merge(plan, stream, &t.step));
		}
		note_row(&l, device_captured(stream), first ? "attend, own rows first" : "attend, own rows meanwhile");
		mpig_cuda_plan_destroy(plan);
	}
	tensors_free(&t);
	lane_close(&l);
}

// ---- a decode step -----------------------------------------------------------------------------------------------------
static void decode(uint64_t tokens)
{
	int layers = fake ? 2 : LAYERS;
	mpig_context *x = context_make("decode", layers, tokens);
	struct lane l = lane_open(LAYERS, 1 << 17);
	struct tensors t = tensors_make(1, tokens + 1, tokens - own_rows);
	struct mpig_cuda_answer answer = {.size = sizeof(answer)};
	static const float budgets[] = {.01f, .02f, 0};
	static const char *const names[] = {"decode step, 1 % of rows", "decode step, 2 % of rows", "decode step, by error"};
	for (size_t b = 0; b < sizeof(budgets) / sizeof(budgets[0]); b++) {
		mpig_cuda_plan *plan[LAYERS];
		for (int i = 0; i < layers; i++) {
			struct mpig_cuda_spec spec = spec_of(&x, i);
			spec.first_slot = (unsigned)i;
			spec.budget = budgets[b];
			spec.own_first = budgets[b] == 0;
			MUST(mpig_cuda_plan_create(l.gpu, &spec, &plan[i]));
		}
		device_capture(stream);
		for (int i = 0; i < layers; i++) {
			if (budgets[b] == 0)
				MUST(mpig_cuda_window(plan[i], stream, &t.step));
			MUST(mpig_cuda_submit(plan[i], stream, &t.step));
			if (budgets[b] != 0)
				MUST(mpig_cuda_window(plan[i], stream, &t.step));
			MUST(mpig_cuda_merge(plan[i], stream, &t.step));
		}
		double us = graph_us(&l, device_captured(stream));
		MUST(mpig_cuda_last_answer(l.gpu, &answer));
		note(names[b], us * 1e-3, "ms", "32 layers, batch 1: submit, own rows, wait and merge");
		note("  a layer", us / layers, "us", "");
		note("  the daemon's, last layer", (double)answer.service_ns * 1e-3, "us", "");
		note("  rows read, last layer", (double)answer.rows_read / KV_HEADS, "", "of a KV head");
		for (int i = 0; i < layers; i++)
			mpig_cuda_plan_destroy(plan[i]);
	}
	tensors_free(&t);
	lane_close(&l);
	mpig_context_close(x);
	mpig_context_drop(client, "decode");
}

static void write_json(FILE *f, const void *device)
{
	fprintf(f, "{\"device\": \"%s\", \"measurements\": [\n", (const char *)device);
	for (int i = 0; i < line_count; i++)
		fprintf(f, "  {\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"note\": \"%s\"}%s\n",
		        lines[i].name + strspn(lines[i].name, " "), lines[i].value, lines[i].unit, lines[i].note,
		        i + 1 < line_count ? "," : "");
	fprintf(f, "]}\n");
}

static int cannot_write(const char *path)
{
	fprintf(stderr, "bench_gpu: --json %s: %s\n", path, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	const char *json = NULL;
	uint64_t tokens = 0;
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--json") && i + 1 < argc) {
			json = argv[++i];
		} else if (!strcmp(argv[i], "--decode") && i + 1 < argc) {
			tokens = strtoull(argv[++i], NULL, 10);
		} else {
			fprintf(stderr, "usage: bench_gpu [--json FILE] [--decode TOKENS]\n");
			return 2;
		}
	if (json && output_check(json) != 0)
		return cannot_write(json);
	const char *program = getenv("MAGICPIGD");
	struct private_daemon own;
	if (private_daemon_start(&own, program ? program : "build/magicpigd", 0,
	                         (UINT64_C(512) << 20) + tokens * LAYERS * KV_HEADS * 420))
		return 1;
	client = own.client;
	struct mpig_queue_options queue = {.size = sizeof(queue), .slot_bytes = 8 << 20, .entries = 16};
	MUST(mpig_queue_create(client, &queue, &host));
	device_open();
	stream = device_stream();
	char device[64];
	DEVICE_MUST(device_driver()->device_name(device, sizeof(device), 0));
	fake = !strncmp(device, "fake", 4);
	if (fake)
		own_rows = 64, many = 2, rounds = 1;
	struct mpig_daemon_status status = {.size = sizeof(status)};
	MUST(mpig_daemon_status(client, &status));
	printf("%s; daemon: %u workers, %s\n", device, status.workers, status.kernels);
	mpig_context *x = context_make("small", 1, 4096);
	round_trips();
	stream_waits();
	kernels(x);
	for (unsigned n = fake ? 8 : BIG / 4; n <= (fake ? 8 : BIG); n *= 2)
		signatures(x, n);
	attend(x);
	own_parts(x);
	if (tokens)
		decode(tokens);
	private_daemon_stop(&own);
	return json && output_write(json, write_json, device) != 0 ? cannot_write(json) : 0;
}
