// The GPU's side against a real daemon: signatures to the bit, answers against the definition, graphs, and everything that can end
// a step otherwise. `make check` runs it over a driver whose kernels run on the CPU, `make check-gpu` on a GPU.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/private.h"
#include "daemon/index/index.h"
#include "shm/ring.h"
#include "tests/gpu/device.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { SINKS = 4, WINDOW = 40, MOST_T = 4 };

static struct test_daemon *d;
static struct test_client s; // its own queue: appends, commits
static mpig_queue *queue;    // the GPU's
static mpig_cuda *gpu;
static CUstream stream;

#define ck_assert_cuda(call, expected)                                                                                           \
	do {                                                                                                                     \
		int status_ = (int)(call), expected_ = (expected);                                                               \
		ck_assert_msg(status_ == expected_, "%s: %d (%s: %s), not %d", #call, status_, mpig_strerror(status_),           \
		              mpig_cuda_error(), expected_);                                                                     \
	} while (0)

static void queue_open(unsigned entries, size_t slot_bytes)
{
	struct mpig_queue_options o = {.size = sizeof(o), .entries = entries, .slots = 8, .slot_bytes = slot_bytes};
	ck_assert_status(mpig_queue_create(s.client, &o, &queue), MPIG_OK);
}

static void attach(int timeout_ms)
{
	struct mpig_cuda_options o = {.size = sizeof(o), .timeout_ms = timeout_ms};
	ck_assert_cuda(mpig_cuda_attach(queue, &o, &gpu), MPIG_OK);
}

static void setup(void)
{
	d = test_daemon_start(NULL);
	test_client_open(&s, d);
	device_open();
	stream = device_stream();
	queue_open(4, 1 << 20);
	attach(20000);
}

static void teardown(void)
{
	mpig_cuda_detach(gpu);
	test_client_close(&s);
	test_daemon_free(d);
}

// ---- a context, its rows on the GPU, and steps -------------------------------------------------------------------------
// Contexts of one layer: `tokens` rows exist, of which `committed` are the daemon's.
struct world {
	struct model_data m[3];
	mpig_context *x[3];
	unsigned contexts, tokens; // B, T
	uint64_t committed, rows, split;
	bool own_first;
	float q[3][MOST_T * 32 * 256]; // [T][query heads][d]
	struct mpig_cuda_step step;
	mpig_cuda_plan *plan;
};

static struct mpig_cuda_spec world_spec(const struct world *w)
{
	return (struct mpig_cuda_spec){.size = sizeof(struct mpig_cuda_spec),
	                               .contexts = w->contexts,
	                               .context = w->x,
	                               .tokens = w->tokens,
	                               .dtype = MPIG_BF16,
	                               .proposal = MPIG_PROPOSAL_DENSE,
	                               .sinks = SINKS,
	                               .window = WINDOW,
	                               .own_first = w->own_first};
}

static size_t q_floats(const struct world *w)
{
	return (size_t)w->tokens * (size_t)w->m[0].layer.query_heads * (size_t)w->m[0].layer.d_k;
}

// New queries, and where rows and split are now, into the same device memory.
static void world_move(struct world *w, uint64_t rows, uint64_t split, uint64_t seed)
{
	int64_t where[6];
	float *all = malloc(3 * sizeof(w->q[0]));
	for (unsigned i = 0; i < w->contexts; i++) {
		model_normal(w->q[i], q_floats(w), seed + i);
		model_round_bf16(w->q[i], q_floats(w));
		memcpy(all + i * q_floats(w), w->q[i], q_floats(w) * sizeof(float));
		where[i] = (int64_t)split;
		where[w->contexts + i] = (int64_t)rows;
	}
	void *bytes = elements_of(all, w->contexts * q_floats(w), MPIG_BF16);
	w->rows = rows;
	w->split = split;
	device_write(w->step.q, bytes, w->contexts * q_floats(w) * 2);
	device_write(w->step.split, where, 2 * w->contexts * 8);
	free(bytes);
	free(all);
}

static void world_make(struct world *w, const struct mpig_layer *layer, unsigned contexts, unsigned tokens, uint64_t committed,
                       uint64_t rows)
{
	*w = (struct world){.contexts = contexts, .tokens = tokens, .committed = committed, .step = {.size = sizeof(w->step)}};
	for (unsigned i = 0; i < contexts; i++) {
		char name[16];
		snprintf(name, sizeof(name), "x%u", i);
		model_data_make(&w->m[i], layer, 1, rows + 64, 100 + 10 * i);
		w->x[i] = test_client_create(&s, name, &w->m[i]);
		ck_assert_status(test_client_fill(&s, w->x[i], &w->m[i], 0, committed, MPIG_COMMIT_SEAL), MPIG_OK);
	}
	size_t out = contexts * (size_t)tokens * (size_t)layer->query_heads;
	w->step.q = device_bytes(NULL, contexts * q_floats(w) * 2);
	w->step.split = device_bytes(NULL, 2 * contexts * 8);
	w->step.rows = w->step.split + contexts * 8;
	w->step.out = device_bytes(NULL, out * (size_t)layer->d_k * 4);
	w->step.lse = device_bytes(NULL, out * 4);
	world_move(w, rows, committed - WINDOW, 7);
}

static void world_plan(struct world *w)
{
	struct mpig_cuda_spec spec = world_spec(w);
	ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &w->plan), MPIG_OK);
}

static void world_free(struct world *w)
{
	mpig_cuda_plan_destroy(w->plan);
	for (unsigned i = 0; i < w->contexts; i++)
		model_data_free(&w->m[i]);
	device_free(w->step.q);
	device_free(w->step.split);
	device_free(w->step.out);
	device_free(w->step.lse);
	free(w);
}

enum kv_layout { CONTIGUOUS, RING, PAGED, KV_LAYOUTS };
enum { PAGE = 16 };

// Where row r of a context lies, in rows.
static size_t kv_place(const struct world *w, enum kv_layout layout, unsigned context, uint64_t r)
{
	if (layout == RING && r >= SINKS)
		return SINKS + (r - SINKS) % w->step.ring_rows;
	if (layout == PAGED)
		return ((r / PAGE * 5 + 3 + context) % w->step.page_stride * w->contexts + context) * PAGE +
		       r % PAGE; // 5: a permutation
	return r;
}

// Copies K and V to the GPU: own rows where the layout has them, and NaN everywhere else, so that reading one shows.
static void world_kv(struct world *w, enum kv_layout layout, int dtype, uint64_t from, uint64_t to)
{
	size_t width = (size_t)w->m[0].layer.kv_heads * (size_t)w->m[0].layer.d_k;
	size_t rows = layout == RING ? SINKS + 128 : (w->m[0].tokens + PAGE - 1) / PAGE * PAGE;
	while (layout == PAGED && rows / PAGE % 5 == 0)
		rows += PAGE;
	w->step.kv_dtype = dtype;
	w->step.ring_rows = layout == RING ? 128 : 0;
	w->step.page_rows = layout == PAGED ? PAGE : 0;
	w->step.page_stride = (int64_t)(rows / PAGE);
	w->step.kv_context = (int64_t)(rows * width);
	float *kv = malloc(w->contexts * rows * width * sizeof(float));
	int32_t *table = malloc(w->contexts * rows / PAGE * sizeof(*table));
	for (int side = 0; side < 2; side++) {
		for (size_t i = 0; i < w->contexts * rows * width; i++)
			kv[i] = NAN;
		for (unsigned c = 0; c < w->contexts; c++) {
			const struct model_data *m = &w->m[c];
			float *base = layout == PAGED ? kv : kv + c * rows * width;
			for (uint64_t r = 0; r < to; r++)
				if (r < SINKS || r >= from)
					memcpy(base + kv_place(w, layout, c, r) * width,
					       side ? model_data_v(m, 0, r) : model_data_k(m, 0, r), width * sizeof(float));
			for (uint64_t p = 0; p < rows / PAGE; p++)
				table[c * rows / PAGE + p] =
					layout == PAGED ? (int32_t)(kv_place(w, PAGED, c, p * PAGE) / PAGE) : 0;
		}
		*(side ? &w->step.v : &w->step.k) = device_elements(kv, w->contexts * rows * width, dtype);
	}
	w->step.page_table = layout == PAGED ? device_bytes(table, w->contexts * rows / PAGE * sizeof(*table)) : 0;
	free(kv);
	free(table);
}

static void world_kv_free(struct world *w)
{
	device_free(w->step.k);
	device_free(w->step.v);
	if (w->step.page_table)
		device_free(w->step.page_table);
}

static void launch_step(struct world *w)
{
	if (w->step.k && w->own_first)
		ck_assert_cuda(mpig_cuda_window(w->plan, stream, &w->step), MPIG_OK);
	ck_assert_cuda(mpig_cuda_submit(w->plan, stream, &w->step), MPIG_OK);
	if (w->step.k && !w->own_first)
		ck_assert_cuda(mpig_cuda_window(w->plan, stream, &w->step), MPIG_OK);
	ck_assert_cuda(mpig_cuda_merge(w->plan, stream, &w->step), MPIG_OK);
}

static struct model_attention attention_of(const struct world *w, unsigned c, uint64_t begin, uint64_t end)
{
	const struct mpig_layer *l = &w->m[c].layer;
	return (struct model_attention){.q = w->q[c],
	                                .k = w->m[c].k,
	                                .v = w->m[c].v,
	                                .tokens = w->tokens,
	                                .query_heads = (uint32_t)l->query_heads,
	                                .kv_heads = (uint32_t)l->kv_heads,
	                                .d_k = (uint32_t)l->d_k,
	                                .d_v = (uint32_t)l->d_k,
	                                .begin = begin,
	                                .end = end,
	                                .scale = (double)l->scale,
	                                .softcap = (double)l->softcap,
	                                .alibi_slope_base = (double)l->alibi_slope_base,
	                                .query_position = w->rows - w->tokens,
	                                .causal = true,
	                                .causal_base = w->rows - w->tokens + 1};
}

// Asserts that the request that was sent last has carried the attention over the sinks and rows from `split` on, to the bit as it is merged; none: that
// there is no such row.
static void assert_carries_own_part(const struct world *w, bool none)
{
	const struct mpig_layer *l = &w->m[0].layer;
	size_t dim = (size_t)l->d_k, heads = (size_t)w->tokens * (size_t)l->query_heads, n = heads * dim;
	float *own = malloc(w->contexts * n * sizeof(float)), *own_lse = malloc(w->contexts * heads * sizeof(float));
	double *out[2], *lse[2];
	for (int i = 0; i < 2; i++)
		out[i] = malloc(n * sizeof(double)), lse[i] = malloc(heads * sizeof(double));
	device_read(own, w->plan->own_out, w->contexts * n * sizeof(float));
	device_read(own_lse, w->plan->own_lse, w->contexts * heads * sizeof(float));
	for (unsigned c = 0; c < w->contexts; c++) {
		const struct gpu_item *item = &w->plan->items[c];
		const uint8_t *slot = (const uint8_t *)gpu->region.base + gpu->region.slots_offset + c * gpu->region.slot_bytes;
		const struct mpig_slot_header *header = (const struct mpig_slot_header *)(const void *)slot;
		const float *sent = (const float *)(const void *)(slot + item->window_out),
			    *sent_lse = (const float *)(const void *)(slot + item->window_lse);
		ck_assert_uint_eq(header->present & (MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT),
		                  MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT);
		for (size_t h = 0; none && h < heads; h++)
			ck_assert(sent_lse[h] == -INFINITY);
		for (size_t i = 0; none && i < n; i++)
			ck_assert(sent[i] == 0);
		if (none)
			continue;
		ck_assert_mem_eq(sent, own + c * n, n * sizeof(float));
		ck_assert_mem_eq(sent_lse, own_lse + c * heads, heads * sizeof(float));
		struct model_attention sinks = attention_of(w, c, 0, SINKS), recent = attention_of(w, c, w->split, w->rows);
		model_attend(&sinks, out[0], lse[0]);
		model_attend(&recent, out[1], lse[1]);
		for (size_t h = 0; h < heads; h++) {
			double most = fmax(lse[0][h], lse[1][h]), a = exp(lse[0][h] - most), b = exp(lse[1][h] - most);
			lse[0][h] = most + log(a + b);
			for (size_t e = h * dim; e < (h + 1) * dim; e++)
				out[0][e] = (a * out[0][e] + b * out[1][e]) / (a + b);
		}
		double worst = model_relative_l2(sent, out[0], n), worst_lse = model_max_difference(sent_lse, lse[0], heads);
		ck_assert_msg(worst <= 1e-5 && worst_lse <= 1e-4, "context %u: own part differs by %g, its LSE by %g", c, worst,
		              worst_lse);
	}
	for (int i = 0; i < 2; i++)
		free(out[i]), free(lse[i]);
	free(own), free(own_lse);
}

// Asserts that out and lse are the attention of each query token over all rows up to its own.
static void assert_attention(struct world *w, double tolerance)
{
	const struct mpig_layer *l = &w->m[0].layer;
	size_t heads = (size_t)w->tokens * (size_t)l->query_heads, n = heads * (size_t)l->d_k;
	float *out = malloc(w->contexts * n * sizeof(float)), *lse = malloc(w->contexts * heads * sizeof(float));
	double *exact = malloc(n * sizeof(double)), *exact_lse = malloc(heads * sizeof(double));
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	device_read_elements(out, w->step.out, w->contexts * n, w->step.out_dtype);
	device_read(lse, w->step.lse, w->contexts * heads * sizeof(float));
	for (unsigned c = 0; c < w->contexts; c++) {
		const struct model_attention a = attention_of(w, c, 0, w->rows);
		model_attend(&a, exact, exact_lse);
		for (size_t h = 0; w->step.flags & MPIG_CUDA_LSE2 && h < heads; h++)
			exact_lse[h] *= 1 / log(2);
		double worst = model_relative_l2(out + c * n, exact, n);
		ck_assert_msg(worst <= tolerance, "context %u: outputs differ by %g", c, worst);
		worst = model_max_difference(lse + c * heads, exact_lse, heads);
		ck_assert_msg(worst <= 1e-3, "context %u: LSE differs by %g", c, worst);
	}
	free(out), free(lse), free(exact), free(exact_lse);
}

static bool all_nan(const struct world *w)
{
	size_t n = w->contexts * q_floats(w), bad = 0;
	float *out = malloc(n * sizeof(float));
	device_read_elements(out, w->step.out, n, w->step.out_dtype);
	for (size_t i = 0; i < n; i++)
		bad += isnan(out[i]) != 0;
	free(out);
	return bad == n;
}

// ---- attaching ---------------------------------------------------------------------------------------------------------
START_TEST(an_attached_queue_is_lent)
{
	struct mpig_cuda_info info = MPIG_INIT(struct mpig_cuda_info);
	mpig_cuda *second;
	ck_assert_cuda(mpig_cuda_get_info(gpu, &info), MPIG_OK);
	ck_assert(info.device[0] && info.region && info.compute_major >= 8);
	ck_assert_uint_eq(info.slots, 8);
	ck_assert_uint_eq(info.entries, 4);
	printf("%s: stream wait woken by the CPU: %s\n", info.device, info.stream_wait ? "yes" : "no");
	ck_assert_status(mpig_nop(queue), MPIG_EBUSY);
	ck_assert_cuda(mpig_cuda_attach(queue, NULL, &second), MPIG_EBUSY);
	mpig_cuda_detach(gpu);
	ck_assert_status(mpig_nop(queue), MPIG_OK);
	ck_assert_cuda(mpig_cuda_attach(queue, NULL, &gpu), MPIG_OK); // its rings stand at 1 now
	for (int i = 0; i < 10; i++) {
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, 3), MPIG_OK);
		ck_assert_cuda(mpig_cuda_wait(gpu, stream, 3), MPIG_OK);
	}
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	const void *base = gpu->region.base;
	mpig_cuda_detach(gpu);
	ck_assert_status(mpig_nop(queue), MPIG_OK);
	attach(0);
	ck_assert_ptr_eq(gpu->region.base, base); // nothing was in flight: no other region
}
END_TEST

// A driver that would lose it in graphs is not asked to let kernels overlap.
START_TEST(kernels_overlap_where_the_driver_can)
{
	void (*age)(int) = (void (*)(int))driver_symbol("fake_version");
	unsigned (*overlaps)(void) = (unsigned (*)(void))driver_symbol("fake_overlaps");
	static const int versions[] = {12030, 12040, 13000};
	if (!age)
		return; // a real driver
	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
		mpig_cuda_detach(gpu);
		age(versions[i]);
		attach(0);
		unsigned before = overlaps();
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, 0), MPIG_OK);
		ck_assert_cuda(mpig_cuda_wait(gpu, stream, 0), MPIG_OK);
		device_wait(stream);
		ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
		ck_assert_uint_eq(overlaps() - before, versions[i] >= 12040 ? 2 : 0);
	}
}
END_TEST

START_TEST(arguments_are_checked)
{
	struct mpig_cuda_options o = {.size = sizeof(o), .timeout_ms = 60001};
	mpig_cuda *other;
	ck_assert_cuda(mpig_cuda_attach(NULL, NULL, &other), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_attach(queue, &o, &other), MPIG_EINVAL);
	ck_assert(strstr(mpig_cuda_error(), "timeout_ms"));
	ck_assert_cuda(mpig_cuda_nop(gpu, stream, 8), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_begin(gpu, -1), MPIG_EINVAL);
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	world_make(w, &layer, 1, 1, 200, 210);
	struct mpig_cuda_spec good = world_spec(w), spec = good;
	mpig_cuda_plan *plan;
#define REFUSED(field, value, status)                                                                                            \
	do {                                                                                                                     \
		spec = good;                                                                                                     \
		spec.field = (value);                                                                                            \
		ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &plan), status);                                                \
		ck_assert_msg(mpig_cuda_error()[0], "no text: " #field);                                                         \
	} while (0)
	REFUSED(layer, 1, MPIG_EINVAL);
	REFUSED(layer, -1, MPIG_EINVAL);
	REFUSED(contexts, 0, MPIG_EINVAL);
	REFUSED(contexts, 5, MPIG_ELIMIT);
	REFUSED(first_slot, 8, MPIG_ELIMIT);
	REFUSED(dtype, MPIG_I8, MPIG_EINVAL);
	REFUSED(proposal, MPIG_PROPOSAL_COUNT, MPIG_EINVAL);
	REFUSED(budget, 1.5f, MPIG_EINVAL);
	REFUSED(delta, 1.f, MPIG_EINVAL);
	REFUSED(delta, .1f, MPIG_EINVAL); // without an error_target
	REFUSED(tokens, 5000, MPIG_ELIMIT);
	REFUSED(tokens, 4000, MPIG_ELIMIT); // the slot
	world_plan(w);
	struct mpig_cuda_step step = w->step;
	step.q = 0;
	ck_assert_cuda(mpig_cuda_submit(w->plan, stream, &step), MPIG_EINVAL);
	step = w->step;
	ck_assert_cuda(mpig_cuda_window(w->plan, stream, &step), MPIG_EINVAL); // no rows
	step.out = 0;
	ck_assert_cuda(mpig_cuda_merge(w->plan, stream, &step), MPIG_EINVAL);
	step = w->step;
	step.flags = 8;
	ck_assert_cuda(mpig_cuda_merge(w->plan, stream, &step), MPIG_EINVAL);
	world_free(w);
}
END_TEST

// Every call of the driver that attaching makes fails once: the queue is as before, and nothing stays behind.
START_TEST(a_driver_that_fails_leaves_nothing_behind)
{
	void (*break_it)(const char *, int) = (void (*)(const char *, int))driver_symbol("fake_fail");
	int (*live)(void) = (int (*)(void))driver_symbol("fake_live");
	static const char *const calls[] = {
		"cuDeviceGetName",    "cuDeviceGetAttribute", "cuCtxGetDevice",       "cuCtxPushCurrent_v2",
		"cuMemAlloc_v2",      "cuMemHostAlloc",       "cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2",
		"cuMemcpyHtoD_v2",    "cuMemsetD8_v2",        "cuModuleLoadData",     "cuModuleGetFunction",
		"cuDriverGetVersion", "cuStreamSynchronize"};
	if (!break_it)
		return; // a real driver
	mpig_cuda_detach(gpu);
	int before = live(), refused = 0;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (int after = 0; after < 3; after++) {
			break_it(calls[i], after);
			int status = mpig_cuda_attach(queue, NULL, &gpu);
			break_it(NULL, 0);
			if (status == MPIG_OK) { // fewer calls than that
				mpig_cuda_detach(gpu);
			} else {
				ck_assert_int_eq(status, MPIG_ENOMEM);
				ck_assert(mpig_cuda_error()[0]);
				refused++;
			}
			ck_assert_msg(live() == before, "%s: %d left", calls[i], live() - before);
			ck_assert_status(mpig_nop(queue), MPIG_OK);
		}
	ck_assert_int_ge(refused, (int)(sizeof(calls) / sizeof(calls[0])));
	attach(0);
}
END_TEST

// ---- signatures --------------------------------------------------------------------------------------------------------
static const int sign_d[] = {64, 80, 96, 128, 256};

// Queries that are ordinary, zero, huge, tiny, on the ties of the rounding, or not finite.
static void strange_queries(float *q, size_t n, size_t d_k)
{
	model_normal(q, n * d_k, 3);
	for (size_t j = 0; j < d_k; j++) {
		q[1 * d_k + j] = 0;
		q[2 * d_k + j] *= 1e37f;
		q[3 * d_k + j] *= 1e-38f;
		q[4 * d_k + j] = j == 5 ? 1 : 0; // all levels alike: +-127
		q[5 * d_k + j] = (float)(j % 2);
		q[6 * d_k + j] *= j ? 0 : 1e30f;
	}
	q[7 * d_k + 3] = INFINITY;
	q[8 * d_k + 3] = NAN;
}

// Signatures of some contexts' queries, `tokens` x 6 heads each, against the daemon's. Queries lie dense, or with heads apart by an odd
// stride, as in a tensor that holds more than q; signatures at a multiple of 16 bytes, or of 8.
static void signatures_compare(int dim, int dtype, uint32_t contexts, uint32_t tokens)
{
	const uint32_t heads = 6, d_k = (uint32_t)dim, d_pad = mpig_padded_dim(d_k);
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer((int)heads, 2, dim);
	world_make(w, &layer, contexts, 1, 300, 310);
	struct mpig_cuda_spec spec = world_spec(w);
	spec.dtype = dtype;
	spec.tokens = tokens;
	ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &w->plan), MPIG_OK);

	const size_t each = heads * tokens, n = contexts * each, pitch = d_k + 3;
	float *q = calloc(n * pitch, sizeof(*q)), *plain = malloc(n * d_k * sizeof(*plain));
	for (uint32_t c = 0; c < contexts; c++)
		strange_queries(plain + c * each * d_k, each, d_k);
	for (size_t i = 0; i < n; i++)
		memcpy(q + i * pitch, plain + i * d_k, d_k * sizeof(*q));
	void *elements = elements_of(plain, n * d_k, dtype);

	struct kernels k;
	kernels_init_c(&k);
	for (int dense = 0; dense < 2; dense++) {
		struct mpig_cuda_step step = {.size = sizeof(step), .q_head = dense ? 0 : (int64_t)pitch};
		step.q = device_elements(dense ? plain : q, n * (dense ? d_k : pitch), dtype);
		CUdeviceptr signature = device_bytes(NULL, n * d_pad + 8), scale = device_bytes(NULL, n * 4);
		ck_assert_cuda(mpig_cuda_sign(w->plan, stream, &step, signature + (dense ? 0 : 8), scale), MPIG_OK);
		int8_t *got = malloc(n * d_pad), want[256];
		float *got_scale = malloc(n * 4), want_scale, q_mu, scratch[256], given[256], balance[2 * 256], signs[3 * 256],
		      mu[256] = {0};
		device_wait(stream);
		device_read(got, signature + (dense ? 0 : 8), n * d_pad);
		device_read(got_scale, scale, n * 4);
		struct mpig_signature params = MPIG_INIT(struct mpig_signature);
		for (size_t i = 0; i < n; i++) {
			if (i % each == 0) {
				ck_assert_status(mpig_context_signature(w->x[i / each], 0, &params, balance), MPIG_OK);
				ck_assert_uint_eq(params.version, 1);
				for (uint32_t j = 0; j < 3 * d_pad; j++)
					signs[j] = params.signs[j / 8] >> j % 8 & 1 ? -1.f : 1.f;
			}
			for (uint32_t j = 0; j < d_k; j++) { // what the kernel reads
				uint16_t h;
				memcpy(&h, (uint8_t *)elements + (i * d_k + j) * 2 % (n * d_k * 4), 2);
				given[j] = dtype == MPIG_F32    ? plain[i * d_k + j]
				           : dtype == MPIG_BF16 ? bf16_to_f32(h)
				                                : f16_to_f32(h);
			}
			const struct sig_params p = {.d_k = d_k,
			                             .d_pad = d_pad,
			                             .bits = params.bits,
			                             .mu = mu,
			                             .balance = balance + i % heads / (heads / 2) * d_k,
			                             .signs = signs};
			sig_encode_query(&k, &p, given, want, &want_scale, &q_mu, scratch);
			ck_assert_msg(!memcmp(want, got + i * d_pad, d_pad), "d %d, type %d, query %zu: signatures differ", dim,
			              dtype, i);
			ck_assert_msg(!memcmp(&want_scale, got_scale + i, 4), "d %d, type %d, query %zu: scales %a and %a", dim,
			              dtype, i, (double)want_scale, (double)got_scale[i]);
		}
		free(got), free(got_scale);
		device_free(step.q), device_free(signature), device_free(scale);
	}
	free(q), free(plain), free(elements);
	world_free(w);
}

// _i: dimension and element type.
START_TEST(signatures_are_the_daemons_to_the_bit)
{
	signatures_compare(sign_d[_i / 3], _i % 3, 1, 4);
}
END_TEST

// So many that a warp signs more than one batch; a context's are no multiple of what it takes at once.
START_TEST(many_signatures_are_the_daemons_to_the_bit)
{
	enum { CONTEXTS = 3, HEADS = 6 };
	const uint32_t all = driver_symbol("fake_version") ? 4096 : 20480; // more than a large GPU's warps take in one batch each
	struct mpig_queue_options o = {.size = sizeof(o), .entries = 4, .slots = CONTEXTS, .slot_bytes = 24 << 20};
	mpig_cuda_detach(gpu);
	ck_assert_status(mpig_queue_create(s.client, &o, &queue), MPIG_OK);
	attach(20000);
	signatures_compare(sign_d[_i / 3], _i % 3, CONTEXTS, (all / (HEADS * CONTEXTS) + 2) | 1);
}
END_TEST

// The daemon's answer to the GPU is its answer to a client that asks for the same with the same seed: signature, entry and header
// are what they should be. With and without signatures of the GPU's.
START_TEST(the_daemon_answers_a_gpu_as_any_client)
{
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(8, 2, 128);
	world_make(w, &layer, 1, 1, 3000, 3001);
	for (unsigned none = 0; none < 2; none++) {
		struct mpig_cuda_spec spec = world_spec(w);
		spec.proposal = MPIG_PROPOSAL_SIGNATURE;
		spec.budget = .05f;
		spec.seed = 77;
		spec.no_signature = none;
		ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &w->plan), MPIG_OK);
		w->step.flags = MPIG_CUDA_DAEMON_ONLY;
		for (int i = 0; i < 3; i++) {
			struct mpig_cuda_answer answer = MPIG_INIT(struct mpig_cuda_answer);
			float out[8 * 128], lse[8], want[8 * 128], want_lse[8];
			world_move(w, 3001, 3000 - WINDOW, 20 + (uint64_t)i);
			launch_step(w);
			device_wait(stream);
			ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
			device_read(out, w->step.out, sizeof(out));
			device_read(lse, w->step.lse, sizeof(lse));
			ck_assert_cuda(mpig_cuda_last_answer(gpu, &answer), MPIG_OK);
			ck_assert_uint_eq(answer.sequence, 3 * none + (unsigned)i);
			ck_assert_uint_eq(answer.committed, 3000);
			struct mpig_attend ask = {.size = sizeof(ask),
			                          .proposal = MPIG_PROPOSAL_SIGNATURE,
			                          .q = w->q[0],
			                          .begin = SINKS,
			                          .end = 3000 - WINDOW,
			                          .budget = .05f,
			                          .seed = 77 + answer.sequence};
			struct mpig_result result = {.size = sizeof(result), .out = want, .lse = want_lse};
			ck_assert_status(mpig_attend(s.queue, w->x[0], &ask, &result), MPIG_OK);
			ck_assert_mem_eq(out, want, sizeof(want));
			ck_assert_mem_eq(lse, want_lse, sizeof(want_lse));
			ck_assert_uint_eq(answer.rows_read, result.rows_read);
		}
		mpig_cuda_plan_destroy(w->plan);
		w->plan = NULL;
	}
	world_free(w);
}
END_TEST

// A recorder gets a GPU's queries as it gets any client's: with the seed of a replayed graph in it, and the same answer when asked again.
START_TEST(what_a_gpu_asks_is_recorded)
{
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(8, 2, 128);
	mpig_trace *trace;
	world_make(w, &layer, 1, 1, 3000, 3001);
	struct mpig_cuda_spec spec = world_spec(w);
	spec.proposal = MPIG_PROPOSAL_SIGNATURE;
	spec.budget = .05f;
	spec.seed = 77;
	ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &w->plan), MPIG_OK);
	w->step.flags = MPIG_CUDA_DAEMON_ONLY;
	ck_assert_status(mpig_trace_start(s.client, "x0", NULL, &trace), MPIG_OK);
	for (unsigned i = 0; i < 3; i++) {
		float out[8 * 128], again[8 * 128];
		struct mpig_traced t = MPIG_INIT(t);
		world_move(w, 3001, 3000 - WINDOW, 20 + i);
		launch_step(w);
		device_wait(stream);
		ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
		device_read(out, w->step.out, sizeof(out));
		ck_assert_int_eq(mpig_trace_next(trace, &t, 10000), 1);
		ck_assert_uint_eq(t.number, 2 * i); // the odd ones are asked below
		ck_assert_int_eq(t.asked_dtype, MPIG_BF16);
		ck_assert_int_eq(t.had_signature, 1);
		ck_assert_uint_eq(t.attend->seed, 77 + i);
		ck_assert_uint_eq(t.attend->begin, SINKS);
		ck_assert_int_eq(t.attend->end, 3000 - WINDOW);
		ck_assert_mem_eq(t.attend->q, w->q[0], sizeof(float) * 8 * 128);
		struct mpig_result result = {.size = sizeof(result), .out = again};
		ck_assert_status(mpig_attend(s.queue, w->x[0], t.attend, &result), MPIG_OK);
		ck_assert_mem_eq(out, again, sizeof(out));
		ck_assert_int_eq(mpig_trace_next(trace, &t, 10000), 1);
		ck_assert_int_eq(t.had_signature, 0);
	}
	mpig_trace_stop(trace);
	mpig_cuda_plan_destroy(w->plan);
	w->plan = NULL;
	world_free(w);
}
END_TEST

// ---- whole steps -------------------------------------------------------------------------------------------------------
static const struct shape {
	int query_heads, kv_heads, d;
	float scale, softcap, alibi;
	unsigned contexts, tokens;
	enum kv_layout layout;
	int kv_dtype, out_dtype;
	unsigned flags;
	double tolerance;
} shapes[] = {
	{8, 2, 128, 0, 0, 0, 1, 1, CONTIGUOUS, MPIG_BF16, MPIG_F32, 0, 1e-5},
	{8, 2, 128, 0, 0, 0, 1, 1, PAGED, MPIG_BF16, MPIG_BF16, MPIG_CUDA_LSE2, 2e-3},
	{32, 8, 128, 0, 0, 0, 1, 1, RING, MPIG_BF16, MPIG_F16, 0, 1e-3},
	{6, 1, 64, .2f, 0, 0, 3, 1, PAGED, MPIG_F32, MPIG_F32, 0, 1e-5},
	{14, 2, 80, 0, 15, 0, 2, 3, RING, MPIG_BF16, MPIG_F32, MPIG_CUDA_LSE2, 1e-5},
	{4, 4, 96, 0, 0, .5f, 1, 4, PAGED, MPIG_F32, MPIG_F32, 0, 1e-5},
	{10, 2, 256, 0, 0, 0, 2, 2, CONTIGUOUS, MPIG_F32, MPIG_BF16, 0, 2e-3},
};

// _i: the shape, and the order of the kernels. Rows 260 .. 300 are the client's alone.
START_TEST(a_step_is_the_attention_over_all_rows)
{
	const struct shape *c = &shapes[_i / 2];
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(c->query_heads, c->kv_heads, c->d);
	layer.scale = c->scale;
	layer.softcap = c->softcap;
	layer.alibi_slope_base = c->alibi;
	world_make(w, &layer, c->contexts, c->tokens, 290, 300);
	w->step.out_dtype = c->out_dtype;
	w->step.flags = c->flags;
	w->own_first = _i % 2;
	world_kv(w, c->layout, c->kv_dtype, 250, 300);
	world_plan(w);
	for (uint64_t i = 0; i < 3; i++) {
		if (i)
			world_move(w, 300 - i, i == 1 ? 290 : 277, 33 + i); // a split that is the commit, and another
		launch_step(w);
		assert_attention(w, c->tolerance);
		if (w->own_first)
			assert_carries_own_part(w, false);
	}
	world_kv_free(w);
	world_free(w);
}
END_TEST

START_TEST(parts_that_are_empty)
{
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	world_make(w, &layer, 1, 1, 200, 204);
	world_kv(w, CONTIGUOUS, MPIG_F32, 0, 204);
	world_plan(w);
	world_move(w, 204, SINKS, 5); // the daemon has no row
	launch_step(w);
	assert_attention(w, 1e-5);
	world_move(w, 200, 200, 6); // the client has its sinks alone
	launch_step(w);
	assert_attention(w, 1e-5);
	world_kv_free(w);
	world_free(w);
}
END_TEST

// The step that has been launched, of a plan with own_first and two contexts of 6 heads of 80, had no own rows: none were sent, and none merged.
static void assert_daemons_part_alone(const struct world *w)
{
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	assert_carries_own_part(w, true);
	for (unsigned c = 0; c < 2; c++) {
		enum { N = 2 * 6 * 80 };
		float out[N], lse[2 * 6];
		double exact[N], exact_lse[2 * 6];
		const struct model_attention a = attention_of(w, c, SINKS, w->split);
		model_attend(&a, exact, exact_lse);
		device_read(out, w->step.out + c * sizeof(out), sizeof(out));
		device_read(lse, w->step.lse + c * sizeof(lse), sizeof(lse));
		ck_assert(model_relative_l2(out, exact, N) <= 1e-5);
		ck_assert(model_max_difference(lse, exact_lse, 2 * 6) <= 1e-3);
	}
}

// With a plan whose requests carry the own part.
static struct world *own_first_world(void)
{
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(6, 2, 80);
	world_make(w, &layer, 2, 2, 290, 300);
	w->own_first = true;
	world_kv(w, CONTIGUOUS, MPIG_BF16, 200, 300);
	world_plan(w);
	return w;
}

// A plan whose requests carry the own part, and steps that have none, before and after one that has; and one whose window comes too late to be sent.
START_TEST(a_step_without_own_rows_says_so)
{
	struct world *w = own_first_world();
	for (uint64_t i = 0; i < 4; i++) {
		const struct mpig_cuda_step all = w->step;
		world_move(w, 300 - i, 250 + i, i);
		if (i % 2) {
			launch_step(w);
			assert_attention(w, 1e-5);
			assert_carries_own_part(w, false);
			continue;
		}
		w->step.k = w->step.v = 0;
		launch_step(w);
		assert_daemons_part_alone(w);
		w->step = all;
	}
	world_move(w, 300, 250, 9);
	ck_assert_cuda(mpig_cuda_submit(w->plan, stream, &w->step), MPIG_OK);
	ck_assert_cuda(mpig_cuda_window(w->plan, stream, &w->step), MPIG_OK);
	ck_assert_cuda(mpig_cuda_merge(w->plan, stream, &w->step), MPIG_OK);
	assert_attention(w, 1e-5);
	assert_carries_own_part(w, true);
	world_kv_free(w);
	world_free(w);
}
END_TEST

// A step that is given up behind its window, and one behind its request: the next, which has no own rows, sends and merges none of theirs.
START_TEST(a_step_given_up_leaves_nothing_to_the_next)
{
	struct world *w = own_first_world();
	const struct mpig_cuda_step all = w->step;
	for (uint64_t i = 0; i < 4; i++) {
		w->step = all;
		world_move(w, 300 - i, 250 + i, i);
		ck_assert_cuda(mpig_cuda_begin(gpu, 100), 0);
		ck_assert_cuda(mpig_cuda_window(w->plan, stream, &w->step), MPIG_OK);
		if (i % 2) {
			ck_assert_cuda(mpig_cuda_submit(w->plan, stream, &w->step), MPIG_OK);
			device_wait(stream);
			ck_assert_cuda(mpig_cuda_recover(gpu), 0);
		}
		w->step.k = w->step.v = 0;
		ck_assert_cuda(mpig_cuda_begin(gpu, 100), 0);
		launch_step(w);
		assert_daemons_part_alone(w);
	}
	w->step = all;
	launch_step(w); // and with own rows it is as ever
	assert_attention(w, 1e-5);
	world_kv_free(w);
	world_free(w);
}
END_TEST

// Rows by error: the default, one with a target of its own, and verified. The daemon's answer is that to a client that sends the same own part, to the
// bit; with the part of the step before, an LSE alone or a greater one, it is another.
START_TEST(rows_by_error_are_those_of_any_client)
{
	static const struct {
		float error_target, delta;
	} ask_for[] = {{0, 0}, {.03f, 0}, {.2f, .1f}};
	enum { ROWS = 9000, OWN = 1000, HEADS = 8, N = HEADS * 128 };
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(HEADS, 2, 128);
	world_make(w, &layer, 1, 1, ROWS, ROWS + 10);
	w->own_first = true;
	world_kv(w, CONTIGUOUS, MPIG_BF16, ROWS - OWN, ROWS + 10);
	struct mpig_cuda_spec spec = world_spec(w);
	spec.proposal = MPIG_PROPOSAL_SIGNATURE;
	spec.error_target = ask_for[_i].error_target;
	spec.delta = ask_for[_i].delta;
	spec.seed = 77;
	ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &w->plan), MPIG_OK);
	w->step.flags = MPIG_CUDA_DAEMON_ONLY;
	float before[N], before_lse[HEADS];
	unsigned others = 0;
	for (uint64_t i = 0; i < 5; i++) {
		struct mpig_cuda_answer answer = MPIG_INIT(answer);
		float out[N], lse[HEADS], want[N], want_lse[HEADS], own[N], own_lse[HEADS];
		world_move(w, ROWS + 1 + i, ROWS - OWN, 20 + i);
		launch_step(w);
		device_wait(stream);
		ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
		assert_carries_own_part(w, false);
		device_read(out, w->step.out, sizeof(out));
		device_read(lse, w->step.lse, sizeof(lse));
		device_read(own, w->plan->own_out, sizeof(own));
		device_read(own_lse, w->plan->own_lse, sizeof(own_lse));
		ck_assert_cuda(mpig_cuda_last_answer(gpu, &answer), MPIG_OK);
		struct mpig_attend ask = {.size = sizeof(ask),
		                          .proposal = MPIG_PROPOSAL_SIGNATURE,
		                          .q = w->q[0],
		                          .begin = SINKS,
		                          .end = ROWS - OWN,
		                          .error_target = ask_for[_i].error_target,
		                          .delta = ask_for[_i].delta,
		                          .query_position = w->rows - 1,
		                          .seed = 77 + answer.sequence,
		                          .window_lse = own_lse,
		                          .window_out = own};
		struct mpig_result result = {.size = sizeof(result), .out = want, .lse = want_lse};
		ck_assert_status(mpig_attend(s.queue, w->x[0], &ask, &result), MPIG_OK);
		ck_assert_mem_eq(out, want, sizeof(want));
		ck_assert_mem_eq(lse, want_lse, sizeof(want_lse));
		ck_assert_uint_eq(answer.rows_read, result.rows_read);
		ask.window_out = NULL;
		ck_assert_status(mpig_attend(s.queue, w->x[0], &ask, &result), MPIG_OK);
		others += memcmp(out, want, sizeof(want)) != 0;
		if (i) {
			ask.window_lse = before_lse;
			ask.window_out = before;
			ck_assert_status(mpig_attend(s.queue, w->x[0], &ask, &result), MPIG_OK);
			others += memcmp(out, want, sizeof(want)) != 0;
		}
		memcpy(before, own, sizeof(own));
		memcpy(before_lse, own_lse, sizeof(own_lse));
		for (int h = 0; h < HEADS; h++)
			own_lse[h] += 4;
		ask.window_lse = own_lse;
		ask.window_out = own;
		ck_assert_status(mpig_attend(s.queue, w->x[0], &ask, &result), MPIG_OK);
		others += memcmp(out, want, sizeof(want)) != 0;
	}
	// These keys are alike: a verified answer takes as many rows with any own part (test_real_heads.py has others).
	ck_assert_msg(others >= 5 || ask_for[_i].delta > 0, "the own part made no difference but %u times of 14", others);
	world_kv_free(w);
	world_free(w);
}
END_TEST

// More own rows than the plan was made for, in one piece and in several.
START_TEST(long_windows)
{
	struct world *w = malloc(sizeof(*w));
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	world_make(w, &layer, 1, 1, 700, 1000);
	world_kv(w, PAGED, MPIG_BF16, 300, 1000);
	for (unsigned own = 1; own < 300; own += 150) {
		struct mpig_cuda_spec spec = world_spec(w);
		spec.own_rows = own;
		ck_assert_cuda(mpig_cuda_plan_create(gpu, &spec, &w->plan), MPIG_OK);
		world_move(w, 1000, 300, own);
		launch_step(w);
		assert_attention(w, 1e-5);
		mpig_cuda_plan_destroy(w->plan);
	}
	w->plan = NULL;
	world_kv_free(w);
	world_free(w);
}
END_TEST

// ---- graphs, and daemons that come and go ------------------------------------------------------------------------------
// _i of the tests below: whether own rows come first.
struct recorded {
	struct world *w;
	void *graph;
};

static struct recorded record(bool own_first)
{
	struct recorded r = {.w = malloc(sizeof(*r.w))};
	struct mpig_layer layer = test_client_layer(8, 2, 64);
	world_make(r.w, &layer, 1, 1, 200, 210);
	r.w->own_first = own_first;
	world_kv(r.w, CONTIGUOUS, MPIG_BF16, 100, 210);
	world_plan(r.w);
	device_capture(stream);
	launch_step(r.w);
	r.graph = device_captured(stream);
	return r;
}

static void replay(struct recorded *r, uint64_t seed)
{
	world_move(r->w, 190 + seed % 20, 150 + seed % 7, seed);
	device_replay(r->graph, stream);
	device_wait(stream);
}

static void forget(struct recorded *r)
{
	device_forget(r->graph);
	world_kv_free(r->w);
	world_free(r->w);
}

// Far more steps than the rings have entries: positions and sequence numbers are the GPU's.
START_TEST(a_graph_is_replayed)
{
	struct recorded r = record(_i);
	struct mpig_cuda_answer answer = MPIG_INIT(struct mpig_cuda_answer);
	for (uint64_t i = 0; i < 50; i++) {
		ck_assert_cuda(mpig_cuda_begin(gpu, 100), 0);
		replay(&r, i);
		assert_attention(r.w, 1e-5);
		ck_assert_cuda(mpig_cuda_last_answer(gpu, &answer), MPIG_OK);
		ck_assert_uint_eq(answer.sequence, i);
	}
	forget(&r);
}
END_TEST

// The daemon is killed between two steps: the next one serves the same memory, plan and graph.
START_TEST(a_graph_survives_the_daemon)
{
	struct recorded r = record(_i);
	const void *base = gpu->region.base;
	replay(&r, 1);
	assert_attention(r.w, 1e-5);
	for (uint64_t i = 0; i < 2; i++) {
		test_daemon_kill(d);
		test_daemon_again(d);
		int rc = 0; // the kernel may hold the dead daemon's sockets for some milliseconds
		for (int tries = 0; tries < 1000 && (rc = mpig_cuda_begin(gpu, 100)) == 0; tries++)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		ck_assert_cuda(rc, 1);
		ck_assert_ptr_eq(gpu->region.base, base);
		ck_assert_cuda(mpig_cuda_begin(gpu, 100), 0);
		for (uint64_t n = 0; n < 6; n++) {
			replay(&r, 2 + n);
			assert_attention(r.w, 1e-5);
		}
	}
	forget(&r);
}
END_TEST

static void end_all_but(mpig_client *admin)
{
	struct mpig_client_info infos[4];
	uint64_t cursor = 0;
	for (int i = 0; i < 4; i++)
		infos[i] = (struct mpig_client_info)MPIG_INIT(struct mpig_client_info);
	int n = mpig_client_list(admin, &cursor, infos, 4);
	for (int i = 0; i < n; i++)
		if (!(infos[i].flags & MPIG_CLIENT_INFO_SELF))
			ck_assert_int_eq(mpig_client_kill(admin, infos[i].id), MPIG_OK);
}

// An administrator ends the connection: the memory is kept for it to come back to. Where it is not, pages are gone that the GPU has registered:
// the queue is lost, and says so.
START_TEST(a_graph_survives_an_administrator_who_lets_it)
{
	struct recorded r = record(_i);
	struct test_client admin;
	char text[1024];
	const void *base = gpu->region.base;
	test_client_open(&admin, d);
	for (uint64_t i = 0; i < 2; i++) {
		end_all_but(admin.client);
		ck_assert_cuda(mpig_cuda_begin(gpu, 100), 1);
		ck_assert_ptr_eq(gpu->region.base, base);
		replay(&r, 2 + i);
		assert_attention(r.w, 1e-5);
	}
	ck_assert_int_ge(mpig_daemon_configure(admin.client, "limits.region_keep=0us", text, sizeof(text)), 0);
	end_all_but(admin.client);
	ck_assert_cuda(mpig_cuda_begin(gpu, 100), MPIG_ELOST);
	ck_assert_cuda(mpig_cuda_begin(gpu, 100), MPIG_ELOST);
	forget(&r);
	test_client_close(&admin);
}
END_TEST

static void assert_failed(int status)
{
	struct mpig_cuda_failure failure = MPIG_INIT(struct mpig_cuda_failure);
	ck_assert_cuda(mpig_cuda_failure(gpu, &failure), status);
	ck_assert_int_eq(failure.status, status);
	ck_assert_cuda(mpig_cuda_begin(gpu, 10), MPIG_ERETRY);
}

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void hasty(void)
{
	mpig_cuda_detach(gpu);
	attach(100);
}

// It neither answers nor dies: the step ends by its deadline with NaN and a note, the ones after it at once.
START_TEST(a_daemon_that_is_slow)
{
	hasty();
	struct recorded r = record(_i);
	replay(&r, 1);
	assert_attention(r.w, 1e-5);
	test_daemon_freeze(d);
	replay(&r, 2);
	assert_failed(MPIG_ETIMEDOUT);
	ck_assert(all_nan(r.w));
	double before = seconds();
	for (uint64_t i = 0; i < 20; i++)
		replay(&r, 3);
	ck_assert_msg(seconds() - before < 1.9, "20 steps after a failure took %g s: each waited", seconds() - before);
	ck_assert(all_nan(r.w));
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_ETIMEDOUT); // it still has the request
	assert_failed(MPIG_ETIMEDOUT);
	test_daemon_thaw(d);
	int rc;
	while ((rc = mpig_cuda_recover(gpu)) == MPIG_ETIMEDOUT)
		continue;
	ck_assert_cuda(rc, MPIG_OK);
	replay(&r, 4);
	assert_attention(r.w, 1e-5);
	forget(&r);
}
END_TEST

// It is killed with a request in the ring.
START_TEST(a_daemon_that_dies_in_a_step)
{
	hasty();
	struct recorded r = record(_i);
	replay(&r, 1);
	test_daemon_freeze(d);
	replay(&r, 2);
	test_daemon_kill(d);
	assert_failed(MPIG_ETIMEDOUT);
	replay(&r, 3);
	ck_assert(all_nan(r.w));
	test_daemon_again(d);
	ck_assert_cuda(mpig_cuda_recover(gpu), 1);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	replay(&r, 4);
	assert_attention(r.w, 1e-5);
	forget(&r);
}
END_TEST

// It stops properly: the kernel sees that the queue was closed, long before its deadline.
START_TEST(a_daemon_that_leaves)
{
	struct recorded r = record(_i);
	replay(&r, 1);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	double before = seconds();
	replay(&r, 2);
	assert_failed(MPIG_ESHUTDOWN);
	ck_assert_msg(seconds() - before < 15, "%g s", seconds() - before);
	ck_assert(all_nan(r.w));
	forget(&r);
}
END_TEST

START_TEST(an_answer_that_is_an_error)
{
	struct recorded r = record(_i);
	float bad[8 * 64] = {NAN};
	void *elements = elements_of(bad, 8 * 64, MPIG_BF16);
	device_write(r.w->step.q, elements, 8 * 64 * 2);
	device_replay(r.graph, stream);
	device_wait(stream);
	assert_failed(MPIG_ENAN);
	ck_assert(all_nan(r.w));
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_OK);
	replay(&r, 2);
	assert_attention(r.w, 1e-5);
	world_move(r.w, 210, 201, 1); // a split beyond the commit
	device_replay(r.graph, stream);
	device_wait(stream);
	assert_failed(MPIG_ERANGE);
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_OK);
	replay(&r, 3);
	assert_attention(r.w, 1e-5);
	if (r.w->own_first) { // an own row that is not a number: of a client's own part nothing else is said, and the next step is right
		uint16_t row[2 * 64], none[2 * 64];
		CUdeviceptr at = r.w->step.k + 205 * sizeof(row);
		memset(none, 0xff, sizeof(none));
		device_read(row, at, sizeof(row));
		device_write(at, none, sizeof(none));
		world_move(r.w, 208, 150, 4);
		device_replay(r.graph, stream);
		device_wait(stream);
		assert_failed(MPIG_ENAN);
		ck_assert(all_nan(r.w));
		ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_OK);
		device_write(at, row, sizeof(row));
		replay(&r, 5);
		assert_attention(r.w, 1e-5);
		assert_carries_own_part(r.w, false);
	}
	free(elements);
	forget(&r);
}
END_TEST

START_TEST(a_slot_that_is_in_flight)
{
	ck_assert_cuda(mpig_cuda_nop(gpu, stream, 2), MPIG_OK);
	ck_assert_cuda(mpig_cuda_nop(gpu, stream, 2), MPIG_OK);
	device_wait(stream);
	assert_failed(MPIG_EBUSY);
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_OK);
	ck_assert_cuda(mpig_cuda_wait(gpu, stream, 2), MPIG_OK); // nothing is in it
	device_wait(stream);
	assert_failed(MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_OK);
}
END_TEST

// Several in flight, waited for in another order than they were answered in; more than the ring has places.
START_TEST(several_in_flight)
{
	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < 4; i++)
			ck_assert_cuda(mpig_cuda_nop(gpu, stream, (i + round) & 7), MPIG_OK);
		for (unsigned i = 4; i--;)
			ck_assert_cuda(mpig_cuda_wait(gpu, stream, (i + round) & 7), MPIG_OK);
	}
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
}
END_TEST

static struct mpig_cuda_answer last_answer(void)
{
	struct mpig_cuda_answer a = {.size = sizeof(a)};
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	ck_assert_cuda(mpig_cuda_last_answer(gpu, &a), MPIG_OK);
	return a;
}

// What the last answer says is read in the ring, of four places here, round which the answers go; no longer when the ring is another's.
START_TEST(the_last_answer)
{
	const struct mpig_cuda_answer none = {.size = sizeof(none)};
	struct mpig_cuda_answer known = last_answer();
	ck_assert_mem_eq(&known, &none, sizeof(none));
	for (unsigned i = 0; i < 10; i++) {
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, i & 7), MPIG_OK);
		ck_assert_cuda(mpig_cuda_wait(gpu, stream, i & 7), MPIG_OK);
		ck_assert_uint_eq(last_answer().sequence, i);
	}
	for (unsigned i = 0; i < 3; i++)
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, i), MPIG_OK);
	for (unsigned i = 3; i--;) // the first of these waits takes all
		ck_assert_cuda(mpig_cuda_wait(gpu, stream, i), MPIG_OK);
	ck_assert_uint_eq(last_answer().sequence, 12);
	ck_assert_cuda(mpig_cuda_wait(gpu, stream, 0), MPIG_OK); // nothing is in it
	device_wait(stream);
	assert_failed(MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_OK);
	known = last_answer();
	ck_assert_mem_eq(&known, &none, sizeof(none));
	ck_assert_cuda(mpig_cuda_nop(gpu, stream, 5), MPIG_OK);
	ck_assert_cuda(mpig_cuda_wait(gpu, stream, 5), MPIG_OK);
	ck_assert_uint_eq(last_answer().sequence, 13);
}
END_TEST

START_TEST(round_trips_are_measured)
{
	float ns[100];
	ck_assert_cuda(mpig_cuda_round_trips(gpu, 0, ns), MPIG_EINVAL);
	for (int i = 0; i < 3; i++) {
		memset(ns, 0, sizeof(ns));
		ck_assert_cuda(mpig_cuda_begin(gpu, 100), 0);
		ck_assert_cuda(mpig_cuda_round_trips(gpu, 100, ns), MPIG_OK);
		for (int n = 0; n < 100; n++)
			ck_assert(ns[n] > 0);
	}
	hasty();
	test_daemon_freeze(d);
	ck_assert_cuda(mpig_cuda_round_trips(gpu, 100, ns), MPIG_ETIMEDOUT);
	test_daemon_thaw(d);
	while (mpig_cuda_recover(gpu) == MPIG_ETIMEDOUT)
		continue;
	ck_assert_cuda(mpig_cuda_round_trips(gpu, 100, ns), MPIG_OK);
}
END_TEST

// What a broken daemon could write.
START_TEST(rings_that_make_no_sense)
{
	hasty();
	struct mpig_queue_header *h = gpu->region.base;
	test_daemon_freeze(d);
	ck_assert_cuda(mpig_cuda_nop(gpu, stream, 0), MPIG_OK);
	device_wait(stream);
	__atomic_store_n(&h->cq_tail, 1000, __ATOMIC_RELEASE);
	ck_assert_cuda(mpig_cuda_wait(gpu, stream, 0), MPIG_OK);
	device_wait(stream);
	assert_failed(MPIG_EPROTO);
	ck_assert_cuda(mpig_cuda_recover(gpu), MPIG_EPROTO);
	test_daemon_thaw(d);
	mpig_cuda_detach(gpu); // the queue gets another region, and works
	ck_assert_status(mpig_nop(queue), MPIG_OK);
	attach(100);
	h = gpu->region.base;
	test_daemon_freeze(d);
	__atomic_store_n(&h->sq_head, 1000, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < 5; i++)
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, i), MPIG_OK);
	device_wait(stream);
	assert_failed(MPIG_EPROTO);
	test_daemon_thaw(d);
}
END_TEST

// The block that finds no room is not the one that publishes: nothing is.
START_TEST(no_room_for_a_step_of_many_blocks)
{
	struct mpig_layer layer = test_client_layer(32, 8, 64);
	struct world *w = malloc(sizeof(*w));
	world_make(w, &layer, 1, MOST_T, 200, 210);
	world_plan(w);
	struct mpig_queue_header *h = gpu->region.base;
	test_daemon_freeze(d);
	uint32_t tail = __atomic_load_n(&h->sq_tail, __ATOMIC_ACQUIRE);
	__atomic_store_n(&h->sq_head, tail + 1000, __ATOMIC_RELEASE);
	ck_assert_cuda(mpig_cuda_submit(w->plan, stream, &w->step), MPIG_OK);
	device_wait(stream);
	assert_failed(MPIG_EPROTO);
	ck_assert_uint_eq(__atomic_load_n(&h->sq_tail, __ATOMIC_ACQUIRE), tail);
	test_daemon_thaw(d);
	world_free(w);
}
END_TEST

// Posts a completion as a daemon would, with this word beside the tail.
static void forge(struct mpig_queue_header *h, const struct mpig_cqe *answer, uint32_t brief)
{
	struct mpig_queue_header checked;
	struct mpig_consumer sq;
	struct mpig_producer cq;
	ck_assert_int_eq(mpig_queue_header_check(h, gpu->region.bytes, &checked), MPIG_OK);
	mpig_daemon_rings(h, &checked, &sq, &cq);
	mpig_producer_put(&cq, answer);
	mpig_producer_publish_brief(&cq, brief);
}

// The word beside the tail says what the usual answer is; with any other, the completion itself counts.
START_TEST(a_brief_is_a_hint)
{
	hasty();
	struct mpig_queue_header *h = gpu->region.base;
	test_daemon_freeze(d);
	for (uint64_t i = 0; i < 3; i++) {
		// Right; none, as of an older daemon; of another request.
		const uint32_t briefs[] = {MPIG_CQ_BRIEF(i, 0), 0, MPIG_CQ_BRIEF(i + 7, 0)};
		const struct mpig_cqe answer = {.user_data = i, .slot = (uint32_t)i};
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, (unsigned)i), MPIG_OK);
		device_wait(stream);
		forge(h, &answer, briefs[i]);
		ck_assert_cuda(mpig_cuda_wait(gpu, stream, (unsigned)i), MPIG_OK);
		device_wait(stream);
		ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	}
	const struct mpig_cqe other = {.user_data = 99, .slot = 3};
	ck_assert_cuda(mpig_cuda_nop(gpu, stream, 3), MPIG_OK);
	device_wait(stream);
	forge(h, &other, MPIG_CQ_BRIEF(99, 0));
	ck_assert_cuda(mpig_cuda_wait(gpu, stream, 3), MPIG_OK);
	device_wait(stream);
	assert_failed(MPIG_EPROTO);
	test_daemon_thaw(d);
}
END_TEST

// ---- answers that come head by head ------------------------------------------------------------------------------------
// A request of eight heads in slot 0, and a test in the place of the daemon, which stands still.
enum { BY_HEAD = 8, BY_HEAD_D = 64 };

struct by_head {
	struct world *w;
	struct mpig_queue_header *h;
	uint64_t sequence;
};

// Streams run beside the test, which a GPU's do anyway.
static void run_beside(bool on)
{
	void (*defer)(int) = (void (*)(int))driver_symbol("fake_defer");
	if (defer)
		defer(on ? 2 : 0);
}

static void by_head_attach(struct by_head *b)
{
	world_plan(b->w);
	b->h = gpu->region.base;
	b->sequence = 0;
	test_daemon_freeze(d);
	run_beside(true);
}

static struct by_head by_head_begin(void)
{
	struct by_head b = {.w = malloc(sizeof(*b.w))};
	struct mpig_layer layer = test_client_layer(BY_HEAD, 2, BY_HEAD_D);
	world_make(b.w, &layer, 1, 1, 200, 210);
	b.w->step.flags = MPIG_CUDA_DAEMON_ONLY;
	return b;
}

static void by_head_end(struct by_head *b)
{
	run_beside(false);
	test_daemon_thaw(d);
	world_free(b->w);
}

static float *answer_of(const struct by_head *b, unsigned head)
{
	uint8_t *slot = (uint8_t *)gpu->region.base + gpu->region.slots_offset;
	return (float *)(void *)(slot + b->w->plan->items[0].out) + (size_t)head * BY_HEAD_D;
}

static bool is_marked(const struct by_head *b, unsigned head)
{
	return __atomic_load_n((uint32_t *)(void *)(answer_of(b, head) + BY_HEAD_D - 1), __ATOMIC_ACQUIRE) == GPU_ANSWER_MARK;
}

static float answer_value(unsigned head, unsigned e, float of)
{
	return of + (float)head + (float)e / 64;
}

// Writes a head's answer as a daemon does, whose last element is `last`.
static void answer_write(const struct by_head *b, unsigned head, float of, float last)
{
	float *out = answer_of(b, head), lse = 1;
	for (unsigned e = 0; e + 1 < BY_HEAD_D; e++)
		out[e] = answer_value(head, e, of);
	memcpy((uint8_t *)gpu->region.base + gpu->region.slots_offset + b->w->plan->items[0].lse + (size_t)head * 4, &lse, 4);
	__atomic_store(out + BY_HEAD_D - 1, &last, __ATOMIC_RELEASE);
}

static void answer(const struct by_head *b, unsigned head, float of)
{
	answer_write(b, head, of, answer_value(head, BY_HEAD_D - 1, of));
}

// Launches a step; its request is there when this returns, and its merge waits.
static void by_head_ask(struct by_head *b)
{
	uint32_t tail = __atomic_load_n(&b->h->sq_tail, __ATOMIC_ACQUIRE);
	launch_step(b->w);
	while (__atomic_load_n(&b->h->sq_tail, __ATOMIC_ACQUIRE) == tail)
		nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static void by_head_complete(struct by_head *b, int status)
{
	const struct mpig_cqe done = {.user_data = b->sequence, .status = status};
	__atomic_store_n(&b->h->sq_head, b->h->sq_tail, __ATOMIC_RELEASE);
	forge(b->h, &done, MPIG_CQ_BRIEF(b->sequence, status));
	b->sequence++;
	device_wait(stream);
}

static bool head_is(const float *out, unsigned head, float of)
{
	for (unsigned e = 0; e < BY_HEAD_D; e++)
		if (out[head * BY_HEAD_D + e] != answer_value(head, e, of))
			return false;
	return true;
}

// What a head's answer is when its last element comes is what is merged; what is written later is not seen, and who waits for longer has seen it at last.
START_TEST(an_answer_is_taken_when_it_is_there)
{
	struct by_head b = by_head_begin();
	bool seen = false;
	by_head_attach(&b);
	for (long wait = 1000000; wait < 8000000000 && !seen; wait *= 2) {
		float out[BY_HEAD * BY_HEAD_D];
		by_head_ask(&b);
		for (unsigned head = 0; head < BY_HEAD; head++)
			ck_assert(is_marked(&b, head));
		answer(&b, 3, 100);
		nanosleep(&(struct timespec){.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000}, NULL);
		for (unsigned head = BY_HEAD; head--;)
			answer(&b, head, 200);
		by_head_complete(&b, 0);
		ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
		device_read(out, b.w->step.out, sizeof(out));
		seen = head_is(out, 3, 100);
		for (unsigned head = 0; head < BY_HEAD; head++)
			ck_assert_msg(head_is(out, head, 200) || (head == 3 && seen), "head %u", head);
	}
	ck_assert(seen);
	by_head_end(&b);
}
END_TEST

// An answer that looks like the mark, or none, waits for the completion; one that has come to an end in an error is none.
START_TEST(a_mark_is_a_hint)
{
	struct by_head b = by_head_begin();
	float out[BY_HEAD * BY_HEAD_D], mark;
	uint32_t bits = GPU_ANSWER_MARK;
	memcpy(&mark, &bits, sizeof(mark));
	by_head_attach(&b);
	by_head_ask(&b);
	for (unsigned head = 0; head < BY_HEAD; head++)
		answer_write(&b, head, 10, head % 3 ? answer_value(head, BY_HEAD_D - 1, 10) : mark);
	by_head_complete(&b, 0);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	device_read(out, b.w->step.out, sizeof(out));
	for (unsigned head = 0; head < BY_HEAD; head++) {
		float *last = &out[head * BY_HEAD_D + BY_HEAD_D - 1];
		ck_assert(head % 3 || isnan(*last));
		*last = head % 3 ? *last : answer_value(head, BY_HEAD_D - 1, 10);
		ck_assert_msg(head_is(out, head, 10), "head %u", head);
	}
	by_head_ask(&b);
	for (unsigned head = 0; head < 5; head++)
		answer(&b, head, 20);
	by_head_complete(&b, MPIG_ENAN);
	assert_failed(MPIG_ENAN);
	ck_assert(all_nan(b.w));
	by_head_end(&b);
}
END_TEST

// A daemon that does not say that it writes them so: nothing is marked, and an answer whose last element comes first is read when all of it is there. The next
// daemon says so.
START_TEST(a_daemon_that_answers_as_a_whole)
{
	struct by_head b = by_head_begin();
	float out[BY_HEAD * BY_HEAD_D];
	b.h = gpu->region.base;
	b.h->features &= ~(uint64_t)MPIG_FEATURE_HEADS;
	mpig_cuda_detach(gpu);
	attach(20000);
	by_head_attach(&b);
	memset(answer_of(&b, 0), 0, sizeof(out));
	by_head_ask(&b);
	for (unsigned head = 0; head < BY_HEAD; head++) {
		ck_assert(!is_marked(&b, head));
		answer_of(&b, head)[BY_HEAD_D - 1] = 7;
	}
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	for (unsigned head = 0; head < BY_HEAD; head++)
		answer(&b, head, 30);
	by_head_complete(&b, 0);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	device_read(out, b.w->step.out, sizeof(out));
	for (unsigned head = 0; head < BY_HEAD; head++)
		ck_assert_msg(head_is(out, head, 30), "head %u", head);
	run_beside(false);
	test_daemon_kill(d);
	test_daemon_again(d);
	int rc = 0;
	for (int tries = 0; tries < 1000 && (rc = mpig_cuda_begin(gpu, 100)) == 0; tries++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	ck_assert_cuda(rc, 1);
	launch_step(b.w);
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	mpig_cuda_plan_destroy(b.w->plan);
	by_head_attach(&b);
	b.sequence = 1;
	by_head_ask(&b);
	for (unsigned head = 0; head < BY_HEAD; head++) {
		ck_assert(is_marked(&b, head));
		answer(&b, head, 40);
	}
	by_head_complete(&b, 0);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	by_head_end(&b);
}
END_TEST

// The workers sleep and cannot be woken: they look by themselves.
START_TEST(workers_that_sleep)
{
	for (int i = 0; i < 5; i++) {
		nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
		ck_assert_cuda(mpig_cuda_nop(gpu, stream, 0), MPIG_OK);
		ck_assert_cuda(mpig_cuda_wait(gpu, stream, 0), MPIG_OK);
		device_wait(stream);
		ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	}
}
END_TEST

// Steps that nobody waits for between: kernels of several may be under way together, in the same slot and the same places of the rings. _i % 2 + 1
// query tokens: the wait and the merge are one kernel, or two; and the order of the kernels.
START_TEST(steps_behind_one_another)
{
	enum { STEPS = 12 };
	struct mpig_layer layer = test_client_layer(32, 4, 64);
	struct world *w = malloc(sizeof(*w));
	world_make(w, &layer, 1, (unsigned)_i % 2 + 1, 200, 210);
	w->own_first = _i / 2;
	world_plan(w);
	world_kv(w, CONTIGUOUS, MPIG_BF16, 160, 210);
	const struct mpig_cuda_step first = w->step;
	struct mpig_cuda_step step[STEPS];
	size_t heads = w->tokens * 32ul;
	for (uint64_t n = 0; n < STEPS; n++) {
		w->step.q = device_bytes(NULL, q_floats(w) * 2);
		w->step.out = device_bytes(NULL, heads * 64 * 4);
		w->step.lse = device_bytes(NULL, heads * 4);
		world_move(w, 210, 160, 50 + n);
		step[n] = w->step;
	}
	device_capture(stream);
	for (int n = 0; n < STEPS; n++) {
		w->step = step[n];
		launch_step(w);
	}
	void *graph = device_captured(stream);
	for (int replay = 0; replay < 3; replay++) {
		device_replay(graph, stream);
		for (uint64_t n = 0; n < STEPS; n++) {
			w->step = step[n];
			model_normal(w->q[0], q_floats(w), 50 + n);
			model_round_bf16(w->q[0], q_floats(w));
			assert_attention(w, 1e-5);
		}
	}
	device_forget(graph);
	for (int n = 0; n < STEPS; n++) {
		device_free(step[n].q);
		device_free(step[n].out);
		device_free(step[n].lse);
	}
	w->step = first;
	world_kv_free(w);
	world_free(w);
}
END_TEST

// What a plan is made of is on the GPU when it is made: streams that do not wait for the driver's copies may use it at once.
START_TEST(a_plan_is_there_when_it_is_made)
{
	void (*defer)(int) = (void (*)(int))driver_symbol("fake_defer");
	struct mpig_layer layer = test_client_layer(8, 2, 64);
	struct world *w = malloc(sizeof(*w));
	world_make(w, &layer, 1, 1, 200, 210);
	world_kv(w, CONTIGUOUS, MPIG_BF16, 160, 210);
	for (int i = 0; i < 8; i++) {
		if (defer)
			defer(1); // late, and in an order that nobody asked for
		world_plan(w);
		launch_step(w);
		assert_attention(w, 1e-5);
		mpig_cuda_plan_destroy(w->plan);
		if (defer)
			defer(0);
	}
	w->plan = NULL;
	world_kv_free(w);
	world_free(w);
}
END_TEST

// A plan made before there is an index, and refreshed after.
START_TEST(a_plan_is_refreshed)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	struct world *w = malloc(sizeof(*w));
	world_make(w, &layer, 1, 1, 10, 11);
	mpig_context_close(w->x[0]);
	ck_assert_status(mpig_context_drop(s.client, "x0"), MPIG_OK);
	model_data_free(&w->m[0]);
	model_data_make(&w->m[0], &layer, 1, 400, 5);
	w->x[0] = test_client_create(&s, "x0", &w->m[0]);
	ck_assert_status(test_client_fill(&s, w->x[0], &w->m[0], 0, 100, 0), MPIG_OK);
	world_plan(w);
	ck_assert_uint_eq(w->plan->items[0].header.signature_version, 0);
	ck_assert_cuda(mpig_cuda_sign(w->plan, stream, &w->step, w->step.out, w->step.lse), MPIG_EAGAIN);
	ck_assert_cuda(mpig_cuda_plan_refresh(w->plan), MPIG_OK);
	ck_assert_uint_eq(w->plan->items[0].header.signature_version, 0);
	ck_assert_status(test_client_fill(&s, w->x[0], &w->m[0], 100, 300, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_cuda(mpig_cuda_plan_refresh(w->plan), MPIG_OK);
	ck_assert_uint_eq(w->plan->items[0].header.signature_version, 1);
	world_move(w, 301, 290, 3);
	launch_step(w);
	device_wait(stream);
	ck_assert_cuda(mpig_cuda_failure(gpu, NULL), 0);
	world_free(w);
}
END_TEST

static TCase *add_case(Suite *suite, const char *name)
{
	TCase *t = tcase_create(name);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	suite_add_tcase(suite, t);
	return t;
}

int main(void)
{
	Suite *suite = suite_create("gpu");
	TCase *t = add_case(suite, "attach");
	tcase_add_test(t, an_attached_queue_is_lent);
	tcase_add_test(t, kernels_overlap_where_the_driver_can);
	tcase_add_test(t, arguments_are_checked);
	tcase_add_test(t, a_driver_that_fails_leaves_nothing_behind);
	t = add_case(suite, "signatures");
	tcase_add_loop_test(t, signatures_are_the_daemons_to_the_bit, 0, 3 * (int)(sizeof(sign_d) / sizeof(sign_d[0])));
	tcase_add_loop_test(t, many_signatures_are_the_daemons_to_the_bit, 0, 3 * (int)(sizeof(sign_d) / sizeof(sign_d[0])));
	tcase_add_test(t, the_daemon_answers_a_gpu_as_any_client);
	tcase_add_test(t, a_plan_is_there_when_it_is_made);
	tcase_add_test(t, a_plan_is_refreshed);
	tcase_add_test(t, what_a_gpu_asks_is_recorded);
	t = add_case(suite, "steps");
	tcase_add_loop_test(t, a_step_is_the_attention_over_all_rows, 0, 2 * (int)(sizeof(shapes) / sizeof(shapes[0])));
	tcase_add_test(t, parts_that_are_empty);
	tcase_add_test(t, long_windows);
	tcase_add_loop_test(t, a_graph_is_replayed, 0, 2);
	tcase_add_loop_test(t, steps_behind_one_another, 0, 4);
	tcase_add_test(t, a_step_without_own_rows_says_so);
	tcase_add_test(t, a_step_given_up_leaves_nothing_to_the_next);
	tcase_add_loop_test(t, rows_by_error_are_those_of_any_client, 0, 3);
	t = add_case(suite, "daemons");
	tcase_add_loop_test(t, a_graph_survives_the_daemon, 0, 2);
	tcase_add_loop_test(t, a_graph_survives_an_administrator_who_lets_it, 0, 2);
	tcase_add_loop_test(t, a_daemon_that_is_slow, 0, 2);
	tcase_add_loop_test(t, a_daemon_that_dies_in_a_step, 0, 2);
	tcase_add_loop_test(t, a_daemon_that_leaves, 0, 2);
	tcase_add_test(t, workers_that_sleep);
	t = add_case(suite, "rings");
	tcase_add_loop_test(t, an_answer_that_is_an_error, 0, 2);
	tcase_add_test(t, a_slot_that_is_in_flight);
	tcase_add_test(t, several_in_flight);
	tcase_add_test(t, the_last_answer);
	tcase_add_test(t, round_trips_are_measured);
	tcase_add_test(t, rings_that_make_no_sense);
	tcase_add_test(t, no_room_for_a_step_of_many_blocks);
	tcase_add_test(t, a_brief_is_a_hint);
	tcase_add_test(t, an_answer_is_taken_when_it_is_there);
	tcase_add_test(t, a_mark_is_a_hint);
	tcase_add_test(t, a_daemon_that_answers_as_a_whole);
	return suite_run(suite);
}
