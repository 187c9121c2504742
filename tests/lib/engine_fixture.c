#include "tests/lib/engine_fixture.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/rng.h"
#include "daemon/store/pool.h"

#define REQUIRE(condition, ...)                                                                                                  \
	do {                                                                                                                     \
		if (!(condition)) {                                                                                              \
			fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                          \
			fprintf(stderr, __VA_ARGS__);                                                                            \
			fputc('\n', stderr);                                                                                     \
			abort();                                                                                                 \
		}                                                                                                                \
	} while (0)

void fixture_start(struct fixture *f, uint64_t pool_bytes, uint32_t mask)
{
	memset(f, 0, sizeof(*f));
	kernels_init(&f->kernels, cpu_features() & mask, NULL, 0);
	snprintf(f->dir, sizeof(f->dir), "/dev/shm/mpig-test-%d-XXXXXX", (int)getpid());
	REQUIRE(mkdtemp(f->dir), "mkdtemp %s", f->dir);
	char why[256] = "";
	struct pool_options po = {.dir = f->dir, .instance = "test", .bytes = pool_bytes, .huge_pages = true};
	REQUIRE(!pool_create(&po, &f->pool, why, sizeof(why)), "%s", why);
	struct store_options so = {.pool = f->pool};
	REQUIRE(!store_create(&so, &f->store), "store");
	fixture_engine(f, &(struct engine_options){0});
	for (uint32_t i = 0; i < 16; i++)
		REQUIRE((f->scratch[i] = engine_scratch_create()), "scratch");
	f->slot_bytes = UINT64_C(64) << 20;
	REQUIRE((f->slot = aligned_alloc(4096, f->slot_bytes)), "slot");
	f->threads = 1;
}

void fixture_engine(struct fixture *f, const struct engine_options *options)
{
	struct engine_options with = *options;
	with.kernels = &f->kernels;
	with.store = f->store;
	engine_destroy(f->engine);
	REQUIRE(!engine_create(&with, &f->engine), "engine");
}

void fixture_upper(struct fixture *f, uint64_t reach, uint64_t rows, float most)
{
	struct store_options so = {.pool = f->pool, .upper_reach = reach};
	engine_destroy(f->engine);
	store_destroy(f->store);
	REQUIRE(!store_create(&so, &f->store), "store");
	struct engine_options eo = {.kernels = &f->kernels, .store = f->store, .upper_rows = rows, .upper_most = most};
	REQUIRE(!engine_create(&eo, &f->engine), "engine");
}

void fixture_stop(struct fixture *f)
{
	for (uint32_t i = 0; i < 16; i++)
		engine_scratch_destroy(f->scratch[i]);
	engine_destroy(f->engine);
	store_destroy(f->store);
	pool_close(f->pool, true);
	rmdir(f->dir);
	free(f->slot);
}

struct mpig_wire_layer fixture_layer(uint32_t query_heads, uint32_t kv_heads, uint32_t d, uint32_t row_dtype)
{
	return (struct mpig_wire_layer){.kind = MPIG_LAYER_GLOBAL,
	                                .row_dtype = (uint8_t)row_dtype,
	                                .query_heads = (uint16_t)query_heads,
	                                .kv_heads = (uint16_t)kv_heads,
	                                .d_k = (uint16_t)d,
	                                .d_v = (uint16_t)d};
}

struct context *fixture_context(struct fixture *f, const char *name, const struct mpig_wire_layer *layer, uint32_t layers,
                                uint64_t seed)
{
	struct mpig_wire_layer *all = calloc(layers, sizeof(*all));
	REQUIRE(all, "layers");
	for (uint32_t i = 0; i < layers; i++)
		all[i] = *layer;
	struct mpig_ctl_create body = {.layer_count = layers, .seed = seed, .mode = 0600};
	snprintf(body.name, sizeof(body.name), "%s", name);
	struct credentials who = {0};
	char why[MPIG_TEXT_BYTES] = "";
	struct context *c;
	REQUIRE(!store_context_create(f->store, &who, &body, all, &c, why), "%s", why);
	REQUIRE(!context_lease(f->store, c, &who, 1, why), "%s", why);
	free(all);
	return c;
}

struct helper {
	struct fixture *f;
	struct job *job;
	uint32_t number;
	atomic_bool *done;
};

static void *help(void *argument)
{
	struct helper *h = argument;
	while (!atomic_load(h->done)) {
		enum job_state state = job_run(h->job, h->number, h->f->threads, h->f->scratch[h->number]);
		if (state == JOB_DONE)
			atomic_store(h->done, true);
	}
	return NULL;
}

struct engine_result fixture_run(struct fixture *f, struct context *c, const struct mpig_sqe *entry,
                                 const struct mpig_slot_header *header)
{
	struct engine_request request = {.entry = *entry,
	                                 .payload_in = f->slot,
	                                 .payload_out = f->slot,
	                                 .slot_bytes = f->slot_bytes,
	                                 .context = c,
	                                 .writer = true,
	                                 .defaults = f->defaults};
	if (header)
		request.slot = *header;
	struct job *job = job_create(f->engine, &request);
	REQUIRE(job, "job");
	atomic_bool done = false;
	struct helper helper[16];
	pthread_t thread[16];
	for (uint32_t i = 0; i < f->threads; i++)
		helper[i] = (struct helper){.f = f, .job = job, .number = i, .done = &done};
	for (uint32_t i = 1; i < f->threads; i++)
		REQUIRE(!pthread_create(&thread[i], NULL, help, &helper[i]), "thread");
	help(&helper[0]);
	for (uint32_t i = 1; i < f->threads; i++)
		pthread_join(thread[i], NULL);
	struct engine_result result = *job_result(job);
	job_destroy(job);
	return result;
}

static struct mpig_layer_shape shape_of(struct context *c, uint32_t layer)
{
	const struct layer *l = context_layer(c, layer);
	REQUIRE(l, "layer %u", layer);
	return l->shape;
}

struct engine_result fixture_append(struct fixture *f, struct context *c, uint32_t layer, uint64_t position, uint32_t rows,
                                    const float *k, const float *v, const float *queries, uint32_t query_count)
{
	struct mpig_layer_shape s = shape_of(c, layer);
	struct mpig_payload_layout l = mpig_append_layout(&s, rows, MPIG_F32, query_count);
	REQUIRE(l.bytes <= f->slot_bytes, "append of %u rows", rows);
	memcpy(f->slot + l.k, k, (size_t)rows * s.kv_heads * s.d_k * 4);
	memcpy(f->slot + l.v, v, (size_t)rows * s.kv_heads * s.d_v * 4);
	if (queries)
		memcpy(f->slot + l.queries, queries, (size_t)query_count * s.query_heads * s.d_k * 4);
	struct mpig_slot_header header = {.present = queries ? MPIG_HAS_QUERIES : 0, .query_count = queries ? query_count : 0};
	struct mpig_sqe e = {.op = MPIG_OP_APPEND, .layer = (uint16_t)layer, .count = rows, .begin = position, .dtype = MPIG_F32};
	return fixture_run(f, c, &e, &header);
}

struct engine_result fixture_commit(struct fixture *f, struct context *c, uint64_t position, uint32_t count, bool seal)
{
	struct mpig_payload_layout l = mpig_commit_layout(count);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t id = (uint32_t)(position + i);
		memcpy(f->slot + l.tokens + 4 * (size_t)i, &id, 4);
	}
	struct mpig_sqe e = {.op = MPIG_OP_COMMIT, .count = count, .begin = position, .flags = seal ? MPIG_SQE_SEAL : 0};
	return fixture_run(f, c, &e, NULL);
}

static void *copy_out(const uint8_t *from, size_t bytes)
{
	void *to = malloc(bytes ? bytes : 1);
	REQUIRE(to, "answer");
	memcpy(to, from, bytes);
	return to;
}

struct answer fixture_attend(struct fixture *f, struct context *c, const struct mpig_sqe *entry,
                             const struct mpig_slot_header *header, const float *q)
{
	struct mpig_layer_shape s = shape_of(c, entry->layer);
	struct mpig_payload_layout l = mpig_attend_layout(&s, entry->count, MPIG_F32, header ? header->present : 0);
	size_t heads = (size_t)entry->count * s.query_heads;
	memcpy(f->slot + l.q, q, heads * s.d_k * 4);
	memset(f->slot + l.out, 0xee, l.bytes - l.out);
	struct mpig_sqe e = *entry;
	e.op = MPIG_OP_ATTEND;
	struct answer a = {.result = fixture_run(f, c, &e, header)};
	a.out = copy_out(f->slot + l.out, heads * s.d_v * 4);
	a.lse = copy_out(f->slot + l.lse, heads * 4);
	a.v = copy_out(f->slot + l.error_v, heads * 4);
	a.a = copy_out(f->slot + l.error_a, heads * 4);
	a.rows = copy_out(f->slot + l.rows, heads * 4);
	return a;
}

void answer_free(struct answer *a)
{
	free(a->out);
	free(a->lse);
	free(a->v);
	free(a->a);
	free(a->rows);
}

void fill_normal(float *x, size_t n, uint64_t seed, float spread)
{
	struct rng r = {.state = rng_hash(0, seed)};
	rng_gaussian(&r, x, n);
	for (size_t i = 0; i < n; i++)
		x[i] *= spread;
}
