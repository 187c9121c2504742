// Prefill from a GPU against a real daemon: what it leaves is what an append of the host leaves, to the bit, whatever the layout; and everything
// that can go wrong on the way. In `make check` over tests/gpu/fake/, with streams that run at once, with streams that run as late and in as
// bad an order as events allow, and with streams that run in a thread of their own; `make check-gpu` runs it on a GPU.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/wait.h>

#include "cuda/ingest.h"
#include "tests/gpu/device.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

static struct test_daemon *d;
static struct test_client s; // the host's queue, for what is compared with
static CUstream stream;      // computes K and V
static mpig_cuda_ingest *ingest;

#define ck_assert_cuda(call, expected)                                                                                           \
	do {                                                                                                                     \
		int status_ = (int)(call), expected_ = (expected);                                                               \
		ck_assert_msg(status_ == expected_, "%s: %d (%s: %s), not %d", #call, status_, mpig_strerror(status_),           \
		              mpig_cuda_error(), expected_);                                                                     \
	} while (0)

enum { AT_ONCE, LATE, BESIDE, MODES };
static void defer(int how)
{
	void (*set)(int) = (void (*)(int))driver_symbol("fake_defer");
	if (set)
		set(how);
}

static void open_ingest(size_t slot_bytes, unsigned slots, int timeout_ms)
{
	struct mpig_cuda_ingest_options o = {
		.size = sizeof(o), .slot_bytes = slot_bytes, .slots = slots, .timeout_ms = timeout_ms, .blocks = 3};
	ck_assert_cuda(mpig_cuda_ingest_create(s.client, &o, &ingest), MPIG_OK);
}

static void setup_with(const char *lines)
{
	d = test_daemon_start(lines);
	test_client_open(&s, d);
	device_open();
	stream = device_stream();
}

static void setup(void)
{
	setup_with(NULL);
}

static void teardown(void)
{
	mpig_cuda_ingest_destroy(ingest);
	ingest = NULL;
	test_client_close(&s);
	test_daemon_free(d);
}

// ---- contexts and their K and V ----------------------------------------------------------------------------------------
enum layout { DENSE, HEAD_MAJOR, PADDED, CROOKED, LAYOUTS };

struct shape {
	int query_heads, kv_heads, d_k, d_v, row_dtype, dtype, layers, contexts;
	enum layout layout;
};

// [tokens][heads][d] of floats.
struct rows {
	float *x;
	size_t heads, d;
};

struct source { // of one context
	mpig_context *gpu, *cpu;
	struct rows *k, *v; // [layers]
	float *queries;     // [QUERIES][query heads][d_k], bf16-exact
};

enum { QUERIES = 5, MOST_CHUNK = 96, BUFFERS = 2, MASTERS = 512 };

struct world {
	struct shape shape;
	uint64_t tokens;
	struct source source[2];
	uint32_t *ids;
	CUdeviceptr buffer[BUFFERS]; // K, V and queries of a layer, computed again and again
	int64_t ticket[BUFFERS];
	unsigned turn;
	CUdeviceptr master[MASTERS]; // what is "computed"; freed at the end
	unsigned masters;
};

static struct rows rows_make(size_t tokens, size_t heads, size_t dim, uint64_t seed)
{
	struct rows r = {malloc(tokens * heads * dim * sizeof(float)), heads, dim};
	model_heavy(r.x, tokens * heads, dim, seed);
	model_round_bf16(r.x, tokens * heads * dim);
	return r;
}

static mpig_context *context_make(const struct shape *h, const char *name)
{
	struct mpig_layer layers[16], layer = test_client_layer(h->query_heads, h->kv_heads, h->d_k);
	mpig_context *x;
	layer.d_v = h->d_v;
	layer.row_dtype = h->row_dtype;
	for (int i = 0; i < h->layers; i++)
		layers[i] = layer;
	struct mpig_spec spec = test_client_spec(layers, h->layers);
	ck_assert_status(mpig_context_create(s.client, name, &spec, &x), MPIG_OK);
	return x;
}

static size_t element_of(const struct world *w)
{
	return mpig_dtype_bytes((uint32_t)w->shape.dtype);
}

enum { PAD = 32 }; // elements that a layout may add to a row or head

static struct world *world_make(const struct shape *h, uint64_t tokens)
{
	struct world *w = calloc(1, sizeof(*w));
	*w = (struct world){.shape = *h, .tokens = tokens, .ids = malloc(tokens * sizeof(*w->ids))};
	for (uint64_t i = 0; i < tokens; i++)
		w->ids[i] = (uint32_t)(i * 7919 % 50021);
	for (int c = 0; c < h->contexts; c++) {
		struct source *o = &w->source[c];
		char name[16];
		o->k = calloc((size_t)h->layers, sizeof(*o->k));
		o->v = calloc((size_t)h->layers, sizeof(*o->v));
		o->queries = rows_make(QUERIES, (size_t)h->query_heads, (size_t)h->d_k, 900 + (uint64_t)c).x;
		for (int l = 0; l < h->layers; l++) {
			uint64_t seed = (uint64_t)(100 * c + 2 * l);
			o->k[l] = rows_make(tokens, (size_t)h->kv_heads, (size_t)h->d_k, seed);
			o->v[l] = rows_make(tokens, (size_t)h->kv_heads, (size_t)h->d_v, seed + 1);
		}
		snprintf(name, sizeof(name), "gpu%d", c);
		o->gpu = context_make(h, name);
		snprintf(name, sizeof(name), "cpu%d", c);
		o->cpu = context_make(h, name);
	}
	size_t bytes = (size_t)(h->kv_heads * 2 + h->query_heads) * (256 + PAD) * (MOST_CHUNK + 2) * 4;
	for (int i = 0; i < BUFFERS; i++)
		w->buffer[i] = device_bytes(NULL, bytes);
	return w;
}

static void world_free(struct world *w)
{
	device_wait(stream);
	DEVICE_MUST(device_driver()->synchronize());
	for (unsigned i = 0; i < w->masters; i++)
		device_free(w->master[i]);
	for (int i = 0; i < BUFFERS; i++)
		device_free(w->buffer[i]);
	for (int c = 0; c < w->shape.contexts; c++) {
		for (int l = 0; l < w->shape.layers; l++)
			free(w->source[c].k[l].x), free(w->source[c].v[l].x);
		free(w->source[c].k), free(w->source[c].v), free(w->source[c].queries);
	}
	free(w->ids);
	free(w);
}

// How K (or V, or queries) lies in a buffer: strides in elements, and elements in all.
struct place {
	int64_t row, head;
	size_t first, total;
};

static struct place place_of(enum layout layout, size_t rows, size_t heads, size_t dim)
{
	switch (layout) {
	case DENSE:
		return (struct place){0, 0, 0, rows * heads * dim};
	case HEAD_MAJOR: // [heads][rows][d]
		return (struct place){(int64_t)dim, (int64_t)(rows * dim), 0, rows * heads * dim};
	case PADDED: // rows of a tensor that holds more, heads side by side
		return (struct place){(int64_t)(heads * dim + PAD), (int64_t)dim, PAD, rows * (heads * dim + PAD) + PAD};
	default: // odd strides, not aligned to anything, and backwards
		return (struct place){-(int64_t)(heads * (dim + 1) + 1), (int64_t)dim + 1,
		                      1 + (rows - 1) * (heads * (dim + 1) + 1), (rows + 1) * (heads * (dim + 1) + 1)};
	}
}

// Rows [first, first + n) where the layout has them, and NaN between: as elements.
static void *laid_out(const struct place *p, const float *x, size_t first, size_t n, size_t heads, size_t dim, int dtype)
{
	float *all = malloc(p->total * sizeof(*all));
	int64_t row = p->row ? p->row : (int64_t)(heads * dim), head = p->head ? p->head : (int64_t)dim;
	for (size_t i = 0; i < p->total; i++)
		all[i] = NAN;
	for (size_t r = 0; r < n; r++)
		for (size_t h = 0; h < heads; h++)
			memcpy(all + (int64_t)p->first + (int64_t)r * row + (int64_t)h * head,
			       x + ((first + r) * heads + h) * dim, dim * sizeof(float));
	void *elements = elements_of(all, p->total, dtype);
	free(all);
	return elements;
}

// "Computes" an array into a buffer on the stream; returns the address of its first row.
static CUdeviceptr compute(struct world *w, CUdeviceptr *at, const struct place *p, const float *x, size_t first, size_t n,
                           size_t heads, size_t dim)
{
	size_t bytes = p->total * element_of(w);
	void *elements = laid_out(p, x, first, n, heads, dim, w->shape.dtype);
	ck_assert_uint_lt(w->masters, MASTERS);
	CUdeviceptr master = w->master[w->masters++] = device_bytes(elements, bytes), to = *at;
	free(elements);
	DEVICE_CALL("cuMemcpyDtoDAsync_v2", (CUdeviceptr, CUdeviceptr, size_t, CUstream), to, master, bytes, stream);
	*at += (bytes + 255) & ~(size_t)255;
	return to + p->first * element_of(w);
}

// One layer of a chunk, with queries or without. The buffer is one that was given before: it may be written when that was copied.
static int64_t give_layer(struct world *w, int context, int layer, uint64_t first, uint64_t n, bool queries)
{
	const struct shape *h = &w->shape;
	const struct source *o = &w->source[context];
	unsigned b = w->turn++ % BUFFERS;
	struct place k = place_of(h->layout, n, (size_t)h->kv_heads, (size_t)h->d_k),
		     v = place_of(h->layout, n, (size_t)h->kv_heads, (size_t)h->d_v),
		     q = place_of(h->layout, QUERIES, (size_t)h->query_heads, (size_t)h->d_k);
	CUdeviceptr at = w->buffer[b];
	ck_assert_uint_le(n, MOST_CHUNK);
	if (w->ticket[b])
		ck_assert_cuda(mpig_cuda_ingest_release(ingest, w->ticket[b], stream), MPIG_OK);
	struct mpig_cuda_rows r = {.size = sizeof(r),
	                           .layer = layer,
	                           .dtype = h->dtype,
	                           .first = first,
	                           .count = n,
	                           .k_row = k.row,
	                           .k_head = k.head,
	                           .v_row = v.row,
	                           .v_head = v.head};
	r.k = compute(w, &at, &k, o->k[layer].x, first, n, o->k[layer].heads, o->k[layer].d);
	r.v = compute(w, &at, &v, o->v[layer].x, first, n, o->v[layer].heads, o->v[layer].d);
	if (queries) {
		r.queries = compute(w, &at, &q, o->queries, 0, QUERIES, (size_t)h->query_heads, (size_t)h->d_k);
		r.query_count = QUERIES;
		r.q_row = q.row;
		r.q_head = q.head;
	}
	int64_t ticket = mpig_cuda_ingest_layer(ingest, o->gpu, &r, stream);
	w->ticket[b] = ticket > 0 ? ticket : 0;
	return ticket;
}

// A chunk of all contexts, layer by layer in turn, and its commit.
static int give_chunk(struct world *w, uint64_t first, uint64_t n, int flags)
{
	for (int l = 0; l < w->shape.layers; l++)
		for (int c = 0; c < w->shape.contexts; c++) {
			int64_t ticket = give_layer(w, c, l, first, n, flags & MPIG_COMMIT_SEAL);
			if (ticket < 0)
				return (int)ticket;
		}
	for (int c = 0; c < w->shape.contexts; c++) {
		int rc = mpig_cuda_ingest_commit(ingest, w->source[c].gpu, first, n, w->ids + first, flags);
		if (rc)
			return rc;
	}
	return MPIG_OK;
}

// The same from the host, in the same pieces: a queue whose slots are as large.
static void give_host(struct world *w, mpig_queue *queue, uint64_t first, uint64_t n, int flags)
{
	bool seal = flags & MPIG_COMMIT_SEAL;
	for (int c = 0; c < w->shape.contexts; c++) {
		const struct source *o = &w->source[c];
		for (int l = 0; l < w->shape.layers; l++) {
			size_t k_row = o->k[l].heads * o->k[l].d, v_row = o->v[l].heads * o->v[l].d;
			void *k = elements_of(o->k[l].x + first * k_row, n * k_row, w->shape.dtype);
			void *v = elements_of(o->v[l].x + first * v_row, n * v_row, w->shape.dtype);
			void *q =
				elements_of(o->queries, (size_t)(QUERIES * w->shape.query_heads * w->shape.d_k), w->shape.dtype);
			ck_assert_status(mpig_append(queue, o->cpu, l, first, n, w->shape.dtype, k, v, seal ? q : NULL,
			                             seal ? QUERIES : 0),
			                 MPIG_OK);
			free(k), free(v), free(q);
		}
		ck_assert_status(mpig_commit(queue, o->cpu, first, n, w->ids + first, flags), MPIG_OK);
	}
}

static uint64_t chunk_of(const struct world *w, uint64_t done)
{
	uint64_t n = 40 + done % 50; // 40 .. 89
	return n < w->tokens - done ? n : w->tokens - done;
}

static void give_host_all(struct world *w, size_t slot_bytes)
{
	struct mpig_queue_options o = {.size = sizeof(o), .slot_bytes = slot_bytes};
	mpig_queue *queue;
	ck_assert_status(mpig_queue_create(s.client, &o, &queue), MPIG_OK);
	for (uint64_t done = 0, n; done < w->tokens; done += n) {
		n = chunk_of(w, done);
		give_host(w, queue, done, n, done + n == w->tokens ? MPIG_COMMIT_SEAL : 0);
	}
	mpig_queue_destroy(queue);
}

static int give_from(struct world *w, uint64_t done)
{
	int rc = MPIG_OK;
	for (uint64_t n; done < w->tokens && rc == MPIG_OK; done += n) {
		n = chunk_of(w, done);
		rc = give_chunk(w, done, n, done + n == w->tokens ? MPIG_COMMIT_SEAL : 0);
	}
	return rc;
}

// Rows [0, end) read back of both contexts, bit by bit.
static void assert_same_rows(const struct world *w, uint64_t end)
{
	const struct shape *h = &w->shape;
	size_t k_floats = end * (size_t)(h->kv_heads * h->d_k), v_floats = end * (size_t)(h->kv_heads * h->d_v);
	float *k[2] = {malloc(k_floats * 4), malloc(k_floats * 4)}, *v[2] = {malloc(v_floats * 4), malloc(v_floats * 4)};
	for (int c = 0; c < h->contexts; c++)
		for (int l = 0; l < h->layers; l++) {
			ck_assert_status(mpig_read(s.queue, w->source[c].gpu, l, 0, end, k[0], v[0]), MPIG_OK);
			ck_assert_status(mpig_read(s.queue, w->source[c].cpu, l, 0, end, k[1], v[1]), MPIG_OK);
			ck_assert_msg(!memcmp(k[0], k[1], k_floats * 4), "context %d, layer %d: K differs", c, l);
			ck_assert_msg(!memcmp(v[0], v[1], v_floats * 4), "context %d, layer %d: V differs", c, l);
		}
	for (int i = 0; i < 2; i++)
		free(k[i]), free(v[i]);
}

// All of it has checksums, and they are right.
static struct mpig_verification verified(const char *kind, int context)
{
	char name[16];
	struct mpig_verification v = MPIG_INIT(struct mpig_verification);
	snprintf(name, sizeof(name), "%s%d", kind, context);
	ck_assert_status(mpig_context_verify(s.client, name, &v), MPIG_OK);
	ck_assert_uint_eq(v.unchecked + v.damaged, 0);
	return v;
}

// ... and parameters of signatures, checksums, and answers by signature, which depend on the index.
static void assert_same_contexts(const struct world *w)
{
	const struct shape *h = &w->shape;
	size_t out = (size_t)(h->query_heads * h->d_v), floats = (size_t)(h->kv_heads * h->d_k);
	float *answer[2] = {malloc(out * 4), malloc(out * 4)}, lse[2][64], *balance[2] = {malloc(floats * 4), malloc(floats * 4)};
	assert_same_rows(w, w->tokens);
	for (int c = 0; c < h->contexts; c++) {
		struct mpig_verification gpu = verified("gpu", c), cpu = verified("cpu", c);
		ck_assert_uint_eq(gpu.checked, cpu.checked);
		ck_assert_uint_eq(gpu.bytes, cpu.bytes);
	}
	for (int c = 0; c < h->contexts; c++)
		for (int l = 0; l < h->layers; l++) {
			uint64_t rows_read[2];
			for (int i = 0; i < 2; i++) {
				mpig_context *x = i ? w->source[c].cpu : w->source[c].gpu;
				struct mpig_signature g = MPIG_INIT(struct mpig_signature);
				struct mpig_attend ask = {.size = sizeof(ask),
				                          .layer = l,
				                          .proposal = MPIG_PROPOSAL_SIGNATURE,
				                          .q = w->source[c].queries,
				                          .budget = .1f,
				                          .seed = 5};
				struct mpig_result result = {.size = sizeof(result), .out = answer[i], .lse = lse[i]};
				ck_assert_uint_eq(mpig_context_committed(x), w->tokens);
				ck_assert_status(mpig_context_signature(x, l, &g, balance[i]), MPIG_OK);
				ck_assert_uint_eq(g.version, 1);
				ck_assert_status(mpig_attend(s.queue, x, &ask, &result), MPIG_OK);
				rows_read[i] = result.rows_read;
			}
			ck_assert_mem_eq(balance[0], balance[1], floats * 4);
			ck_assert_mem_eq(answer[0], answer[1], out * 4);
			ck_assert_mem_eq(lse[0], lse[1], (size_t)h->query_heads * 4);
			ck_assert_uint_eq(rows_read[0], rows_read[1]);
			ck_assert_uint_lt(rows_read[0], w->tokens * (uint64_t)h->kv_heads);
		}
	for (int i = 0; i < 2; i++)
		free(answer[i]), free(balance[i]);
}

// The rest, from token `first` on, and then all is as it was given from the host. The end of w.
static void give_the_rest(struct world *w, uint64_t first)
{
	ck_assert_cuda(give_from(w, first), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	assert_same_contexts(w);
	world_free(w);
}

// ---- what arrives ------------------------------------------------------------------------------------------------------
static const struct shape shapes[] = {
	{4, 2, 64, 64, MPIG_BF16, MPIG_BF16, 3, 1, DENSE},       {8, 2, 128, 128, MPIG_I8, MPIG_BF16, 2, 2, DENSE},
	{4, 4, 80, 96, MPIG_BF16, MPIG_F32, 2, 1, HEAD_MAJOR},   {6, 1, 256, 128, MPIG_F16, MPIG_F16, 2, 2, PADDED},
	{4, 2, 64, 80, MPIG_I8, MPIG_F32, 2, 2, CROOKED},        {4, 2, 96, 96, MPIG_BF16, MPIG_BF16, 2, 1, CROOKED},
	{10, 5, 128, 64, MPIG_F16, MPIG_BF16, 1, 2, HEAD_MAJOR}, {4, 1, 64, 64, MPIG_F16, MPIG_F16, 4, 1, CROOKED},
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

// _i: the shape, and how streams run. Slots hold a few rows, so that a layer's chunk is cut.
START_TEST(rows_are_those_of_an_append)
{
	const struct shape *h = &shapes[_i / MODES];
	size_t slot_bytes = h->dtype == MPIG_F32 ? 65536 : 32768;
	struct world *w = world_make(h, 300);
	struct mpig_cuda_ingest_report report = MPIG_INIT(struct mpig_cuda_ingest_report);
	open_ingest(slot_bytes, 3, 20000);
	give_host_all(w, slot_bytes);
	defer(_i % MODES);
	ck_assert_cuda(give_from(w, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, &report), MPIG_OK);
	defer(AT_ONCE);
	assert_same_contexts(w);
	uint64_t rows = w->tokens * (uint64_t)(h->layers * h->contexts), element = element_of(w);
	ck_assert_uint_eq(report.rows, rows);
	ck_assert_uint_eq(report.bytes,
	                  rows * (uint64_t)(h->kv_heads * (h->d_k + h->d_v)) * element +
	                          (uint64_t)(h->layers * h->contexts * QUERIES * h->query_heads * h->d_k) * element +
	                          w->tokens * (uint64_t)h->contexts * 4);
	ck_assert_uint_gt(report.appends, (uint64_t)(5 * h->layers * h->contexts));
	ck_assert_uint_ge(report.commits, 5);
	ck_assert(report.copy_ns > 0 && report.service_ns > 0 && report.elapsed_ns >= report.copy_ns);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, &report), MPIG_OK); // nothing since
	ck_assert_uint_eq(report.rows + report.bytes + report.elapsed_ns + report.copy_ns, 0);
	world_free(w);
}
END_TEST

static const struct shape plain = {4, 2, 64, 64, MPIG_BF16, MPIG_BF16, 2, 1, DENSE};

START_TEST(tickets_say_what_may_be_overwritten)
{
	struct world *w = world_make(&plain, 300);
	open_ingest(32768, 2, 20000);
	ck_assert_cuda(mpig_cuda_ingest_released(ingest, 1), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_release(ingest, 0, stream), MPIG_EINVAL);
	defer(LATE);
	int64_t ticket = give_layer(w, 0, 0, 0, 50, false);
	ck_assert_int_gt(ticket, 0);
	if (driver_symbol("fake_defer"))
		ck_assert_cuda(mpig_cuda_ingest_released(ingest, ticket), 0); // nothing has run
	DEVICE_MUST(device_driver()->synchronize());
	ck_assert_cuda(mpig_cuda_ingest_released(ingest, ticket), 1);
	for (uint64_t at = 50; at < 250; at += 2) // more tickets than there are events
		ck_assert_int_gt(give_layer(w, 0, 0, at, 2, false), ticket);
	ck_assert_cuda(mpig_cuda_ingest_released(ingest, ticket), 1);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	defer(AT_ONCE);
	world_free(w);
}
END_TEST

// ---- the daemon's side ---------------------------------------------------------------------------------------------------
// After `ms` milliseconds, whatever this process does.
static pid_t thaw_in(int ms)
{
	pid_t pid = fork();
	if (pid)
		return pid;
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
	test_daemon_thaw(d);
	_exit(0);
}

// It stands still for a while: copies wait, nothing fails, and nothing is lost.
START_TEST(a_daemon_that_is_slow_is_waited_for)
{
	struct world *w = world_make(&plain, 1000);
	struct mpig_cuda_ingest_report report = MPIG_INIT(struct mpig_cuda_ingest_report);
	open_ingest(8192, 2, 20000); // 15 rows a slot: more requests than the host may be ahead
	give_host_all(w, 8192);
	test_daemon_freeze(d);
	pid_t pid = thaw_in(600);
	defer(_i);
	ck_assert_cuda(give_from(w, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, &report), MPIG_OK);
	defer(AT_ONCE);
	waitpid(pid, NULL, 0);
	ck_assert_uint_gt(report.wait_ns, 0);
	ck_assert_uint_gt(report.appends, INGEST_AHEAD);
	assert_same_contexts(w);
	world_free(w);
}
END_TEST

static void assert_failed(int status, int layer, uint64_t first, mpig_context *context)
{
	struct mpig_cuda_ingest_failure f = MPIG_INIT(struct mpig_cuda_ingest_failure);
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, &f), status);
	ck_assert_int_eq(f.status, status);
	ck_assert_ptr_eq(f.context, context);
	ck_assert_int_eq(f.layer, layer);
	ck_assert_uint_eq(f.first, first);
}

static int recover(void)
{
	int rc;
	for (int tries = 0; (rc = mpig_cuda_ingest_recover(ingest)) == MPIG_ETIMEDOUT && tries < 100; tries++)
		continue;
	return rc;
}

// ---- a stream of the caller's that does not go on ----------------------------------------------------------------------
static CUdeviceptr gate;
static CUstream opener;
static unsigned gates;

static void block(void)
{
	const struct driver *drv = device_driver();
	if (!gate) {
		uint32_t zero = 0;
		gate = device_bytes(&zero, sizeof(zero));
		opener = device_stream();
	}
	DEVICE_MUST(drv->stream_wait(stream, gate, ++gates, CU_WAIT_GEQ));
}

static void let_go(void)
{
	DEVICE_MUST(device_driver()->stream_write(opener, gate, gates, 0));
}

// 40 tokens are committed; what is given on `stream` from now on waits.
static struct world *blocked_world(uint64_t tokens, int how)
{
	struct world *w = world_make(&plain, tokens);
	struct mpig_cuda_ingest_options o = {
		.size = sizeof(o), .slot_bytes = 8192, .slots = 3, .timeout_ms = 20000, .blocks = 3, .patience_ms = 60};
	ck_assert_cuda(mpig_cuda_ingest_create(s.client, &o, &ingest), MPIG_OK);
	give_host_all(w, 8192);
	ck_assert_cuda(give_chunk(w, 0, 40, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	defer(how);
	block();
	return w;
}

static void assert_impatient(int rc)
{
	ck_assert_cuda(rc, MPIG_EAGAIN);
	ck_assert_ptr_nonnull(strstr(mpig_cuda_error(), "has not moved for 60 ms"));
	ck_assert_ptr_nonnull(strstr(mpig_cuda_error(), "nothing is lost"));
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, NULL), 0);
}

// Whoever waits gets an answer, nothing has failed, and when the stream goes on all is as if it had not stood still.
START_TEST(a_stream_that_is_blocked)
{
	struct world *w = blocked_world(1000, _i);
	int64_t ticket = give_layer(w, 0, 0, 40, 50, false);
	ck_assert_int_gt(ticket, 0); // not waited for
	assert_impatient(mpig_cuda_ingest_finish(ingest, NULL));
	assert_impatient(mpig_cuda_ingest_finish(ingest, NULL));
	ck_assert_cuda(mpig_cuda_ingest_released(ingest, ticket), 0);
	ck_assert_uint_eq(mpig_context_committed(w->source[0].gpu), 40);
	// As far ahead as the host may be; the answer comes in the middle of a layer's pieces.
	int64_t rc = give_layer(w, 0, 1, 40, 50, false);
	for (int i = 0; i < 40 && rc > 0; i++)
		rc = give_layer(w, 0, i % 2, 40, 50, false);
	assert_impatient((int)rc);
	assert_impatient((int)give_layer(w, 0, 0, 40, 50, false));
	int committed = mpig_cuda_ingest_commit(ingest, w->source[0].gpu, 40, 50, w->ids + 40, 0);
	assert_impatient(committed);
	let_go();
	ck_assert_cuda(give_chunk(w, 40, 50, 0), MPIG_OK); // the same again
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(w->source[0].gpu), 90);
	assert_same_rows(w, 90);
	defer(AT_ONCE);
	world_free(w);
}
END_TEST

// Recovery waits for it, too: it answers, may be repeated, and nothing was half done.
START_TEST(recovery_over_a_stream_that_is_blocked)
{
	struct world *w = blocked_world(300, _i);
	ck_assert_cuda(give_chunk(w, 40, 80, 0), MPIG_OK);
	for (int i = 0; i < 2; i++) {
		ck_assert_cuda(mpig_cuda_ingest_recover(ingest), MPIG_EAGAIN);
		ck_assert_cuda(mpig_cuda_ingest_failure(ingest, NULL), MPIG_ERETRY); // until it has recovered
		ck_assert_cuda(give_layer(w, 0, 0, 40, 5, false), MPIG_ERETRY);
	}
	let_go();
	ck_assert_cuda(recover(), MPIG_OK);
	defer(AT_ONCE);
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, NULL), 0);
	uint64_t committed = mpig_context_committed(w->source[0].gpu); // 120: no kernel had to wait for an answer
	ck_assert(committed == 40 || committed == 120);
	give_the_rest(w, committed);
}
END_TEST

// It stands still for longer than is waited for: an error, and when it is back everything goes on from the commit.
START_TEST(a_daemon_that_stands_still)
{
	struct world *w = world_make(&plain, 300);
	open_ingest(8192, 3, 1500); // longer than it takes on a busy machine
	give_host_all(w, 8192);
	ck_assert_cuda(give_chunk(w, 0, 40, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(w->source[0].gpu), 40);
	test_daemon_freeze(d);
	int rc = give_from(w, 40);
	ck_assert_cuda(rc ? rc : mpig_cuda_ingest_finish(ingest, NULL), MPIG_ETIMEDOUT);
	assert_failed(MPIG_ETIMEDOUT, 0, 40, w->source[0].gpu);
	ck_assert_cuda(give_layer(w, 0, 0, 40, 5, false), MPIG_ETIMEDOUT);
	ck_assert_cuda(mpig_cuda_ingest_commit(ingest, w->source[0].gpu, 40, 5, w->ids, 0), MPIG_ETIMEDOUT);
	ck_assert_cuda(mpig_cuda_ingest_recover(ingest), MPIG_ETIMEDOUT); // it still has requests
	test_daemon_thaw(d);
	ck_assert_cuda(recover(), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(w->source[0].gpu), 40);
	give_the_rest(w, 40);
}
END_TEST

// _i: it is killed this many requests after the first commit, at rest or while it stands still with requests in its ring. What was
// committed is there, nothing else; the rest is given again.
START_TEST(a_daemon_that_is_killed)
{
	struct world *w = world_make(&plain, 300);
	open_ingest(8192, 3, 20000);
	give_host_all(w, 8192);
	ck_assert_cuda(give_chunk(w, 0, 40, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	defer(BESIDE);
	if (_i % 2)
		test_daemon_freeze(d);
	for (int i = 0; i < _i && i < 2; i++)
		ck_assert_int_gt(give_layer(w, 0, i, 40, 14, false), 0); // a slot each
	test_daemon_kill(d);
	int rc = give_from(w, 40);
	ck_assert_cuda(rc ? rc : mpig_cuda_ingest_finish(ingest, NULL), MPIG_ERETRY);
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, NULL), MPIG_ERETRY);
	test_daemon_again(d);
	ck_assert_cuda(mpig_cuda_ingest_recover(ingest), 1);
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, NULL), 0);
	ck_assert_uint_eq(mpig_context_committed(w->source[0].gpu), 40);
	assert_same_rows(w, 40);
	give_the_rest(w, 40);
}
END_TEST

START_TEST(a_daemon_that_leaves)
{
	struct world *w = world_make(&plain, 100);
	open_ingest(8192, 2, 20000);
	defer(BESIDE);
	test_daemon_freeze(d);
	ck_assert_int_gt(give_layer(w, 0, 0, 0, 14, false), 0);
	test_daemon_term(d);
	test_daemon_thaw(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	int rc = give_from(w, 14);
	rc = rc ? rc : mpig_cuda_ingest_finish(ingest, NULL);
	ck_assert_msg(rc == MPIG_ESHUTDOWN || rc == MPIG_ERETRY, "%d", rc);
	rc = mpig_cuda_ingest_recover(ingest); // there is no other
	ck_assert_msg(rc == MPIG_ENODAEMON || rc == MPIG_ETIMEDOUT, "%d", rc);
	world_free(w);
}
END_TEST

// A pool, or a user's share of it, that is too small: the request that had no room is named, the commit before it stands, and with room it goes on.
static void assert_no_room(int status)
{
	struct shape h = plain;
	h.kv_heads = 4, h.query_heads = 4, h.d_k = h.d_v = 256, h.layers = 4;
	struct world *w = world_make(&h, 1500);
	struct mpig_cuda_ingest_failure f = MPIG_INIT(struct mpig_cuda_ingest_failure);
	uint64_t done = 0;
	open_ingest(1 << 20, 3, 20000);
	int rc = MPIG_OK;
	for (uint64_t n = 90; rc == MPIG_OK && done + n <= w->tokens; done += rc ? 0 : n) {
		rc = give_chunk(w, done, n, 0);
		rc = rc ? rc : mpig_cuda_ingest_finish(ingest, NULL);
	}
	ck_assert_cuda(rc, status);
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, &f), status);
	ck_assert_uint_eq(f.first, done);
	ck_assert(f.context == w->source[0].gpu && f.layer >= 0);
	ck_assert(strstr(mpig_cuda_error(), "gpu0"));
	ck_assert_cuda(mpig_cuda_ingest_recover(ingest), MPIG_OK);
	ck_assert_uint_gt(done, 0);
	ck_assert_uint_eq(mpig_context_committed(w->source[0].gpu), done);
	float *k = malloc(done * 1024 * 4), *v = malloc(done * 1024 * 4);
	ck_assert_status(mpig_read(s.queue, w->source[0].gpu, 3, 0, done, k, v), MPIG_OK);
	ck_assert_mem_eq(k, w->source[0].k[3].x, done * 1024 * 4);
	ck_assert_mem_eq(v, w->source[0].v[3].x, done * 1024 * 4);
	free(k), free(v);
	world_free(w);
}

START_TEST(a_pool_that_is_full)
{
	assert_no_room(MPIG_ENOSPC);
}
END_TEST

START_TEST(a_user_who_has_his_share)
{
	assert_no_room(MPIG_EQUOTA);
}
END_TEST

// Answers that are errors: each is the request's that earned it, and nothing after it has an effect.
START_TEST(answers_that_are_errors)
{
	struct world *w = world_make(&plain, 300);
	mpig_context *x = w->source[0].gpu;
	open_ingest(8192, 3, 20000);
	ck_assert_cuda(give_chunk(w, 0, 40, 0), MPIG_OK);
	ck_assert_int_gt(give_layer(w, 0, 1, 50, 10, false), 0); // rows between are missing
	ck_assert_int_gt(give_layer(w, 0, 0, 40, 10, false), 0);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_ERANGE);
	assert_failed(MPIG_ERANGE, 1, 50, x);
	ck_assert(strstr(mpig_cuda_error(), "layer 1"));
	ck_assert_cuda(recover(), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), 40);

	ck_assert_int_gt(give_layer(w, 0, 0, 40, 10, false), 0); // ... of layer 1
	ck_assert_cuda(mpig_cuda_ingest_commit(ingest, x, 40, 10, w->ids + 40, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_ERANGE);
	assert_failed(MPIG_ERANGE, -1, 40, x);
	ck_assert_cuda(recover(), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), 40);

	float kept = w->source[0].k[1].x[45 * 128 + 7];
	w->source[0].k[1].x[45 * 128 + 7] = NAN;
	int rc = give_chunk(w, 40, 10, 0);
	ck_assert_cuda(rc ? rc : mpig_cuda_ingest_finish(ingest, NULL), MPIG_ENAN);
	assert_failed(MPIG_ENAN, 1, 40, x);
	ck_assert_cuda(recover(), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), 40);
	w->source[0].k[1].x[45 * 128 + 7] = kept;

	give_host_all(w, 8192);
	give_the_rest(w, 40);
}
END_TEST

START_TEST(a_context_that_is_read_only)
{
	struct world *w = world_make(&plain, 100);
	mpig_context *other;
	struct test_client second;
	test_client_open(&second, d);
	ck_assert_status(test_client_find(&second, "gpu0", 0, &other), MPIG_OK);
	struct mpig_cuda_ingest_options o = {.size = sizeof(o), .slot_bytes = 8192};
	ck_assert_cuda(mpig_cuda_ingest_create(second.client, &o, &ingest), MPIG_OK);
	mpig_context *own = w->source[0].gpu;
	w->source[0].gpu = other;
	ck_assert_int_gt(give_layer(w, 0, 0, 0, 10, false), 0);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_ELEASE);
	assert_failed(MPIG_ELEASE, 0, 0, other);
	mpig_cuda_ingest_destroy(ingest);
	ingest = NULL;
	w->source[0].gpu = own;
	test_client_close(&second);
	world_free(w);
}
END_TEST

// ---- arguments, and the driver -------------------------------------------------------------------------------------------
START_TEST(arguments_are_checked)
{
	struct world *w = world_make(&plain, 100);
	struct mpig_cuda_ingest_options o = {.size = sizeof(o), .slots = 65};
	mpig_context *x = w->source[0].gpu;
	ck_assert_cuda(mpig_cuda_ingest_create(NULL, NULL, &ingest), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_create(s.client, &o, &ingest), MPIG_EINVAL);
	o = (struct mpig_cuda_ingest_options){.size = sizeof(o), .timeout_ms = 60001};
	ck_assert_cuda(mpig_cuda_ingest_create(s.client, &o, &ingest), MPIG_EINVAL);
	o = (struct mpig_cuda_ingest_options){.size = sizeof(o), .blocks = 2000};
	ck_assert_cuda(mpig_cuda_ingest_create(s.client, &o, &ingest), MPIG_EINVAL);
	open_ingest(4096, 2, 20000);
	CUdeviceptr bytes = device_bytes(NULL, 1 << 16);
	const struct mpig_cuda_rows good = {.size = sizeof(good), .dtype = MPIG_BF16, .count = 4, .k = bytes, .v = bytes};
#define REFUSED(status, ...)                                                                                                     \
	do {                                                                                                                     \
		struct mpig_cuda_rows r = good, set = {__VA_ARGS__};                                                             \
		r.layer = set.layer ? set.layer : r.layer;                                                                       \
		r.dtype = set.dtype ? set.dtype : r.dtype;                                                                       \
		r.first = set.first ? set.first : r.first;                                                                       \
		r.count = set.count ? set.count - 1 : r.count; /* one less, so that none can be said */                          \
		r.k = set.k ? set.k : r.k;                                                                                       \
		r.k_row = set.k_row, r.k_head = set.k_head, r.v_row = set.v_row;                                                 \
		r.queries = set.queries, r.query_count = set.query_count, r.q_row = set.q_row;                                   \
		ck_assert_cuda(mpig_cuda_ingest_layer(ingest, x, &r, stream), status);                                           \
		ck_assert_msg(mpig_cuda_error()[0], "no text: " #__VA_ARGS__);                                                   \
	} while (0)
	REFUSED(MPIG_EINVAL, .layer = 2);
	REFUSED(MPIG_EINVAL, .layer = -1);
	REFUSED(MPIG_EINVAL, .dtype = MPIG_I8);
	REFUSED(MPIG_EINVAL, .dtype = 77);
	REFUSED(MPIG_EINVAL, .count = 1);
	REFUSED(MPIG_ERANGE, .first = UINT64_MAX);
	REFUSED(MPIG_ERANGE, .first = MPIG_MAX_TOKENS - 3);
	REFUSED(MPIG_ERANGE, .count = UINT64_MAX);
	REFUSED(MPIG_EINVAL, .k = bytes + 1);
	REFUSED(MPIG_EINVAL, .k_row = 5);
	REFUSED(MPIG_EINVAL, .k_row = INT64_MAX, .k_head = 1);
	REFUSED(MPIG_EINVAL, .v_row = 1);
	REFUSED(MPIG_EINVAL, .queries = bytes);
	REFUSED(MPIG_EINVAL, .query_count = 3);
	REFUSED(MPIG_EINVAL, .queries = bytes, .query_count = 5000);
	REFUSED(MPIG_ELIMIT, .queries = bytes, .query_count = 10); // a slot has 4096 bytes, and they need 5120
	ck_assert(strstr(mpig_cuda_error(), "slot"));
	ck_assert_cuda(mpig_cuda_ingest_layer(NULL, x, &good, stream), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_layer(ingest, NULL, &good, stream), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_layer(ingest, x, NULL, stream), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_commit(ingest, x, 0, 5, NULL, 0), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_commit(ingest, x, 0, 5, w->ids, 8), MPIG_EINVAL);
	ck_assert_cuda(mpig_cuda_ingest_commit(ingest, x, MPIG_MAX_TOKENS, 5, w->ids, 0), MPIG_ERANGE);
	ck_assert_cuda(mpig_cuda_ingest_failure(ingest, NULL), 0);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK); // none of it was a request
	struct shape wide = plain;
	wide.kv_heads = 32, wide.query_heads = 32, wide.d_k = wide.d_v = 256;
	mpig_context *fat = context_make(&wide, "fat");
	ck_assert_cuda(mpig_cuda_ingest_layer(ingest, fat, &good, stream), MPIG_ELIMIT); // a row has 32 KiB
	device_free(bytes);
	world_free(w);
}
END_TEST

// Every call of the driver that making one needs fails once: nothing stays behind.
START_TEST(a_driver_that_fails_leaves_nothing_behind)
{
	void (*break_it)(const char *, int) = (void (*)(const char *, int))driver_symbol("fake_fail");
	int (*live)(void) = (int (*)(void))driver_symbol("fake_live");
	static const char *const calls[] = {"cuMemAlloc_v2",
	                                    "cuMemHostAlloc",
	                                    "cuMemHostRegister_v2",
	                                    "cuMemHostGetDevicePointer_v2",
	                                    "cuMemsetD8_v2",
	                                    "cuCtxPushCurrent_v2",
	                                    "cuModuleGetFunction",
	                                    "cuStreamCreateWithPriority",
	                                    "cuCtxGetStreamPriorityRange",
	                                    "cuEventCreate"};
	if (!break_it)
		return; // a real driver
	int before = live(), refused = 0;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (int after = 0; after < 4; after++) {
			break_it(calls[i], after);
			int status = mpig_cuda_ingest_create(s.client, NULL, &ingest);
			break_it(NULL, 0);
			if (status == MPIG_OK) { // fewer calls than that
				mpig_cuda_ingest_destroy(ingest);
			} else {
				ck_assert_int_eq(status, MPIG_ENOMEM);
				ck_assert(mpig_cuda_error()[0]);
				refused++;
			}
			ingest = NULL;
			ck_assert_msg(live() == before, "%s: %d left", calls[i], live() - before);
		}
	ck_assert_int_ge(refused, (int)(sizeof(calls) / sizeof(calls[0])));
}
END_TEST

// A launch that fails half-way through a layer: its text, and the ingest can be recovered.
START_TEST(a_launch_that_fails)
{
	void (*break_it)(const char *, int) = (void (*)(const char *, int))driver_symbol("fake_fail");
	static const char *const calls[] = {"cuLaunchKernelEx", "cuEventRecord", "cuStreamWaitEvent"};
	if (!break_it)
		return; // a real driver
	struct world *w = world_make(&plain, 300);
	open_ingest(8192, 3, 20000);
	give_host_all(w, 8192);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (int after = 0; after < 4; after++) {
			break_it(calls[i], after);
			int rc = (int)give_layer(w, 0, 0, 0, 60, false); // four slots
			break_it(NULL, 0);
			if (rc < 0)
				ck_assert_cuda(rc, MPIG_ENOMEM);
			ck_assert_cuda(mpig_cuda_ingest_recover(ingest), MPIG_OK);
		}
	ck_assert_cuda(give_from(w, 0), MPIG_OK);
	ck_assert_cuda(mpig_cuda_ingest_finish(ingest, NULL), MPIG_OK);
	assert_same_contexts(w);
	world_free(w);
}
END_TEST

static TCase *add_case(Suite *suite, const char *name, void (*begin)(void))
{
	TCase *t = tcase_create(name);
	tcase_add_checked_fixture(t, begin, teardown);
	tcase_set_timeout(t, 120);
	suite_add_tcase(suite, t);
	return t;
}

static void setup_small(void)
{
	setup_with("[pool]\nsize = 32M\n");
}

static void setup_quota(void)
{
	setup_with("[limits]\nbytes_per_uid = 32M\n");
}

int main(void)
{
	Suite *suite = suite_create("ingest");
	TCase *t = add_case(suite, "rows", setup);
	tcase_add_loop_test(t, rows_are_those_of_an_append, 0, MODES * SHAPES);
	tcase_add_test(t, tickets_say_what_may_be_overwritten);
	t = add_case(suite, "daemons", setup);
	tcase_add_loop_test(t, a_daemon_that_is_slow_is_waited_for, 0, MODES);
	tcase_add_loop_test(t, a_stream_that_is_blocked, 0, MODES);
	tcase_add_loop_test(t, recovery_over_a_stream_that_is_blocked, 0, MODES);
	tcase_add_test(t, a_daemon_that_stands_still);
	tcase_add_loop_test(t, a_daemon_that_is_killed, 0, 4);
	tcase_add_test(t, a_daemon_that_leaves);
	t = add_case(suite, "answers", setup);
	tcase_add_test(t, answers_that_are_errors);
	tcase_add_test(t, a_context_that_is_read_only);
	t = add_case(suite, "full", setup_small);
	tcase_add_test(t, a_pool_that_is_full);
	t = add_case(suite, "share", setup_quota);
	tcase_add_test(t, a_user_who_has_his_share);
	t = add_case(suite, "arguments", setup);
	tcase_add_test(t, arguments_are_checked);
	tcase_add_test(t, a_driver_that_fails_leaves_nothing_behind);
	tcase_add_test(t, a_launch_that_fails);
	return suite_run(suite);
}
