// Two micro-batches: while the daemon attends for one, the GPU computes for the other. Each has a queue and a stream of its own, and a GPU
// that waits in one stream goes on in the other. Prints how long a step takes, and which share of it the GPU has nothing to do, when both
// batches follow one another in one stream, and side by side.
//
//     cc two_batches.c $(pkg-config --cflags --libs magicpig-cuda magicpig) -I/usr/local/cuda/include -lcuda -o two_batches
//     ./two_batches [TOKENS of each context [STEPS [WORK_TOKENS]]]
//
// A model's own kernels are stood for by a kernel that is at hand: signatures of WORK_TOKENS tokens, as often as takes about as long as a layer of an
// 8B model. They are launched one by one here; mpig_cuda_submit and mpig_cuda_merge may as well be captured in a graph for each stream.
#include <cuda.h>
#include <magicpig_cuda.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LANES = 2, LAYERS = 8, HEADS = 32, KV_HEADS = 8, D = 128, PIECE = 1024, LAYER_US = 170 };

static mpig_client *client;
static uint64_t tokens = 32768, steps = 20, work_tokens = 128;

struct lane { // a micro-batch of one context
	mpig_context *context;
	mpig_queue *queue;
	mpig_cuda *gpu;
	mpig_cuda_plan *plan[LAYERS], *model; // model: what stands for the model's kernels
	struct mpig_cuda_step ask, work;
	CUdeviceptr signature, scale;
	CUstream stream;
};

static void check(int status, const char *what)
{
	if (status >= 0)
		return;
	fprintf(stderr, "%s: %s (%s%s)\n", what, mpig_strerror(status), mpig_cuda_error(), client ? mpig_last_error(client) : "");
	exit(1);
}

static void cuda(CUresult result, const char *what)
{
	const char *text = "?";
	if (result == CUDA_SUCCESS)
		return;
	cuGetErrorString(result, &text);
	fprintf(stderr, "%s: %s\n", what, text);
	exit(1);
}

static CUdeviceptr device_copy(const void *from, size_t bytes)
{
	CUdeviceptr p;
	cuda(cuMemAlloc(&p, bytes), "memory of the GPU");
	cuda(from ? cuMemcpyHtoD(p, from, bytes) : cuMemsetD8(p, 0, bytes), "a copy to the GPU");
	return p;
}

// Numbers in [-range, range) as bf16.
static uint16_t *random_bf16(size_t n, float range)
{
	uint16_t *x = malloc(n * sizeof(*x));
	for (size_t i = 0; x && i < n; i++) {
		float f = range * ((float)(rand() % 2000) / 1000 - 1);
		uint32_t bits;
		memcpy(&bits, &f, sizeof(bits));
		x[i] = (uint16_t)(bits >> 16);
	}
	if (!x)
		fprintf(stderr, "no memory\n"), exit(1);
	return x;
}

static mpig_context *prefill(const char *name)
{
	struct mpig_layer layers[LAYERS];
	for (int i = 0; i < LAYERS; i++)
		layers[i] = (struct mpig_layer){
			.row_dtype = MPIG_I8, .query_heads = HEADS, .kv_heads = KV_HEADS, .d_k = D, .signature_bits = 2};
	struct mpig_spec spec = {.size = sizeof(spec), .layer_count = LAYERS, .layers = layers};
	struct mpig_queue_options options = {.size = sizeof(options), .slot_bytes = 8 << 20};
	mpig_context *context;
	mpig_queue *queue;
	mpig_context_drop(client, name); // of an earlier run, if any
	check(mpig_context_create(client, name, &spec, &context), "create");
	check(mpig_queue_create(client, &options, &queue), "queue");
	uint16_t *k = random_bf16((size_t)PIECE * KV_HEADS * D, 4), *v = random_bf16((size_t)PIECE * KV_HEADS * D, 1);
	static uint32_t ids[PIECE];
	for (uint64_t at = 0; at < tokens; at += PIECE) {
		uint64_t n = tokens - at < PIECE ? tokens - at : PIECE;
		for (int i = 0; i < LAYERS; i++)
			check(mpig_append(queue, context, i, at, n, MPIG_BF16, k, v, NULL, 0), "append");
		check(mpig_commit(queue, context, at, n, ids, at + n == tokens ? MPIG_COMMIT_SEAL : 0), "commit");
	}
	free(k), free(v);
	mpig_queue_destroy(queue);
	return context;
}

static void lane_open(struct lane *l, const char *name)
{
	struct mpig_queue_options options = {.size = sizeof(options), .slots = LAYERS, .slot_bytes = 4 << 20};
	struct mpig_cuda_spec spec = {
		.size = sizeof(spec), .contexts = 1, .context = &l->context, .dtype = MPIG_BF16, .budget = .01f};
	l->context = prefill(name);
	check(mpig_queue_create(client, &options, &l->queue), "queue");
	check(mpig_cuda_attach(l->queue, NULL, &l->gpu), "attach");
	for (int i = 0; i < LAYERS; i++) {
		spec.layer = spec.first_slot = (unsigned)i;
		check(mpig_cuda_plan_create(l->gpu, &spec, &l->plan[i]), "plan");
	}
	spec.tokens = (unsigned)work_tokens;
	check(mpig_cuda_plan_create(l->gpu, &spec, &l->model), "plan");
	uint16_t *q = random_bf16(work_tokens * HEADS * D, 2);
	l->work = (struct mpig_cuda_step){.size = sizeof(l->work), .q = device_copy(q, work_tokens * HEADS * D * 2)};
	l->ask = l->work; // all rows are the daemon's: nothing of its own, and no split
	l->ask.out = device_copy(NULL, (size_t)HEADS * D * 2);
	l->ask.out_dtype = MPIG_BF16;
	l->signature = device_copy(NULL, work_tokens * HEADS * D);
	l->scale = device_copy(NULL, work_tokens * HEADS * sizeof(float));
	cuda(cuStreamCreate(&l->stream, CU_STREAM_NON_BLOCKING), "stream");
	free(q);
}

static void lane_close(struct lane *l)
{
	mpig_cuda_plan_destroy(l->model);
	for (int i = 0; i < LAYERS; i++)
		mpig_cuda_plan_destroy(l->plan[i]);
	mpig_cuda_detach(l->gpu);
	mpig_queue_destroy(l->queue);
	check(mpig_context_drop(client, mpig_context_name(l->context)), "drop");
	cuMemFree(l->work.q), cuMemFree(l->ask.out), cuMemFree(l->signature), cuMemFree(l->scale);
	cuStreamDestroy(l->stream);
}

static void layer_of_the_model(struct lane *l, CUstream stream, int launches)
{
	for (int i = 0; i < launches; i++)
		check(mpig_cuda_sign(l->model, stream, &l->work, l->signature, l->scale), "sign");
}

enum way { WORK_ALONE, IN_TURN, SIDE_BY_SIDE };

// Milliseconds of a step of all layers for both batches.
static double step_ms(struct lane lane[LANES], enum way way, int launches)
{
	struct timespec begin, end;
	for (int i = 0; i < LANES; i++)
		check(mpig_cuda_begin(lane[i].gpu, 2000), "begin");
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int n = 0; n < (int)steps * LAYERS; n++)
		for (int i = 0; i < LANES; i++) {
			CUstream stream = lane[way == SIDE_BY_SIDE ? i : 0].stream;
			layer_of_the_model(&lane[i], stream, launches);
			if (way == WORK_ALONE)
				continue;
			check(mpig_cuda_submit(lane[i].plan[n % LAYERS], stream, &lane[i].ask), "submit");
			check(mpig_cuda_merge(lane[i].plan[n % LAYERS], stream, &lane[i].ask), "merge");
		}
	cuda(cuCtxSynchronize(), "the GPU");
	clock_gettime(CLOCK_MONOTONIC, &end);
	for (int i = 0; i < LANES; i++)
		check(mpig_cuda_failure(lane[i].gpu, NULL), "a step");
	return ((double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) * 1e-6) / (double)steps;
}

int main(int argc, char **argv)
{
	uint64_t *const option[] = {&tokens, &steps, &work_tokens};
	for (int i = 1; i < argc && i <= 3; i++)
		*option[i - 1] = strtoull(argv[i], NULL, 10);
	if (!tokens || !steps || !work_tokens)
		fprintf(stderr, "usage: two_batches [TOKENS [STEPS [WORK_TOKENS]]], numbers above 0\n"), exit(2);
	CUdevice device;
	CUcontext context;
	cuda(cuInit(0), "no GPU");
	cuda(cuDeviceGet(&device, 0), "no GPU");
	cuda(cuDevicePrimaryCtxRetain(&context, device), "no GPU");
	cuda(cuCtxPushCurrent(context), "no GPU");
	check(mpig_connect(NULL, &client), "connect");
	static struct lane lane[LANES];
	lane_open(&lane[0], "two-batches-0");
	lane_open(&lane[1], "two-batches-1");

	step_ms(lane, WORK_ALONE, 1); // warm
	double launch_us = step_ms(lane, WORK_ALONE, 1) * 1e3 / (LANES * LAYERS);
	int launches = launch_us < LAYER_US ? (int)(LAYER_US / launch_us) : 1;
	step_ms(lane, SIDE_BY_SIDE, launches);
	double work = step_ms(lane, WORK_ALONE, launches), turn = step_ms(lane, IN_TURN, launches),
	       side = step_ms(lane, SIDE_BY_SIDE, launches);
	printf("%d layers, 2 contexts of %llu tokens; the model's own work: %.2f ms a step\n", LAYERS, (unsigned long long)tokens,
	       work);
	printf("in turn       %7.2f ms a step, the GPU is idle %3.0f %%\n", turn, 100 * (1 - work / turn));
	printf("side by side  %7.2f ms a step, the GPU is idle %3.0f %%\n", side, work < side ? 100 * (1 - work / side) : 0);
	for (int i = 0; i < LANES; i++)
		lane_close(&lane[i]);
	mpig_disconnect(client);
	cuDevicePrimaryCtxRelease(device);
	return 0;
}
