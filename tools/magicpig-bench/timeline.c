// Where a layer's time goes: one layer of an 8B-class model in the engine alone, with threads that spin for jobs as workers do, and a stamp
// at the beginning and end of each piece of the job. What `layer` takes beyond this is the way through ring, daemon and client.
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/store/pool.h"
#include "tests/lib/engine_fixture.h"
#include "tools/magicpig-bench/bench.h"

enum {
	D = 128,
	KV_HEADS = 8,
	HEADS = 32,
	LAYERS = 4,
	CHUNK = 1024,
	REPETITIONS = 41,
	WARM_UP = 8,
	MAX_THREADS = 16,
	MAX_EVENTS = 512
};

struct event {
	double at;
	enum engine_piece piece;
	bool end;
};

struct lane { // what one thread did in one job
	_Alignas(64) uint32_t count;
	struct event event[MAX_EVENTS];
};

struct timeline {
	struct fixture f;
	struct lane lane[MAX_THREADS];
	uint32_t threads;
	_Alignas(64) _Atomic(struct job *) job;
	atomic_uint inside; // threads that may look at the job
	atomic_bool stop;
};

static void fill_quickly(float *x, size_t n, uint64_t seed)
{
	for (size_t i = 0; i < n; i++)
		x[i] = quick_normal(&seed);
}

struct thread {
	struct timeline *t;
	uint32_t number;
	pthread_t id;
};

static void note(void *data, uint32_t worker, enum engine_piece piece, bool end)
{
	struct lane *lane = &((struct timeline *)data)->lane[worker];
	if (lane->count < MAX_EVENTS)
		lane->event[lane->count++] = (struct event){seconds(), piece, end};
}

// Runs units until there are none for it; true: this call completed the job.
static bool work(struct timeline *t, struct job *job, uint32_t number)
{
	enum job_state state;
	do
		state = job_run(job, number, t->threads, t->f.scratch[number]);
	while (state == JOB_RAN);
	return state == JOB_DONE;
}

static void *spin(void *argument)
{
	struct thread *me = argument;
	struct timeline *t = me->t;
	while (!atomic_load_explicit(&t->stop, memory_order_relaxed)) {
		atomic_fetch_add(&t->inside, 1);
		struct job *job = atomic_load(&t->job);
		bool done = job && work(t, job, me->number);
		if (done)
			atomic_store(&t->job, NULL);
		atomic_fetch_sub(&t->inside, 1);
		for (int i = 0; i < 8 && !atomic_load_explicit(&t->job, memory_order_relaxed); i++)
			cpu_relax();
	}
	return NULL;
}

// One job; the clock stands at 0 where the request is taken up.
static double run_job(struct timeline *t, const struct engine_request *request, double *create_s)
{
	for (uint32_t i = 0; i < t->threads; i++)
		t->lane[i].count = 0;
	double start = seconds();
	struct job *job = job_create(t->f.engine, request, t->f.scratch[0]);
	if (!job)
		abort();
	*create_s = seconds() - start;
	atomic_store(&t->job, job);
	while (atomic_load(&t->job))
		if (work(t, job, 0))
			atomic_store(&t->job, NULL);
	double taken = seconds() - start;
	while (atomic_load(&t->inside))
		cpu_relax();
	job_destroy(job);
	for (uint32_t i = 0; i < t->threads; i++)
		for (uint32_t e = 0; e < t->lane[i].count; e++)
			t->lane[i].event[e].at -= start;
	return taken;
}

static double total_of(const struct lane *lane, enum engine_piece piece)
{
	double sum = 0;
	for (uint32_t e = 0; e < lane->count; e++)
		if (lane->event[e].piece == piece)
			sum += lane->event[e].end ? lane->event[e].at : -lane->event[e].at;
	return sum;
}

static void judge(const struct timeline *t, double taken, struct timeline_sample *s)
{
	double first_idle = taken, all = taken * t->threads, longest = 0;
	*s = (struct timeline_sample){.ms = taken * 1e3, .first_main_ms = taken * 1e3};
	for (uint32_t i = 0; i < t->threads; i++) {
		const struct lane *lane = &t->lane[i];
		double pre = total_of(lane, ENGINE_PRE) + total_of(lane, ENGINE_TURN), last = 0;
		s->pre_share += pre / all;
		s->main_share += total_of(lane, ENGINE_MAIN) / all;
		s->close_share += total_of(lane, ENGINE_CLOSE) / all;
		for (uint32_t e = 0; e < lane->count; e++) {
			double at = lane->event[e].at;
			last = lane->event[e].piece == ENGINE_MAIN && lane->event[e].end ? at : last;
			if (lane->event[e].piece == ENGINE_MAIN && !lane->event[e].end && at * 1e3 < s->first_main_ms)
				s->first_main_ms = at * 1e3;
			if (lane->event[e].piece <= ENGINE_TURN && lane->event[e].end && at * 1e3 > s->last_pre_ms)
				s->last_pre_ms = at * 1e3;
			if (lane->event[e].piece == ENGINE_MAIN && lane->event[e].end && e &&
			    at - lane->event[e - 1].at > longest)
				longest = at - lane->event[e - 1].at;
		}
		first_idle = last < first_idle ? last : first_idle;
	}
	s->tail_ms = (taken - first_idle) * 1e3;
	s->longest_unit_ms = longest * 1e3;
}

static void ingest(struct timeline *t, struct context *c, uint32_t rows)
{
	const size_t chunk = (size_t)CHUNK * KV_HEADS * D;
	float *k = malloc(chunk * sizeof(*k)), *v = malloc(chunk * sizeof(*v)), *q = malloc((size_t)HEADS * D * sizeof(*q));
	if (!k || !v || !q)
		abort();
	fill_quickly(v, chunk, 7);
	fill_quickly(q, (size_t)HEADS * D, 8);
	for (uint32_t at = 0; at < rows; at += CHUNK)
		for (uint32_t layer = 0; layer < LAYERS; layer++) {
			uint32_t n = rows - at < CHUNK ? rows - at : CHUNK;
			fill_quickly(k, chunk, (uint64_t)at * LAYERS + layer);
			fixture_append(&t->f, c, layer, at, n, k, v, at + n == rows ? q : NULL, 1);
		}
	fixture_commit(&t->f, c, 0, rows, true);
	free(k);
	free(v);
	free(q);
}

static struct engine_request request(struct timeline *t, struct context *c, uint32_t layer, uint32_t rows, uint8_t proposal,
                                     uint64_t seed)
{
	struct mpig_sqe e = {.op = MPIG_OP_ATTEND,
	                     .layer = (uint16_t)(layer % LAYERS),
	                     .count = 1,
	                     .end = rows,
	                     .proposal = proposal,
	                     .budget = .01f,
	                     .seed = seed};
	return (struct engine_request){
		.entry = e, .payload_in = t->f.slot, .payload_out = t->f.slot, .slot_bytes = t->f.slot_bytes, .context = c};
}

// A dense pass over another layer goes before each request, so that no more of it is in the caches than in `layer`.
static void measure(struct timeline *t, struct context *c, uint32_t rows, struct timeline_result *out)
{
	double figure[TIMELINE_FIGURES][REPETITIONS];
	struct mpig_layer_shape s = context_layer(c, 0)->shape;
	struct mpig_payload_layout l = mpig_attend_layout(&s, 1, MPIG_F32, 0);
	struct timeline_sample sample;
	for (int i = -WARM_UP; i < REPETITIONS; i++) {
		uint32_t layer = (uint32_t)(i + WARM_UP);
		struct engine_request dense = request(t, c, layer, rows, MPIG_PROPOSAL_DENSE, 1),
				      sampled = request(t, c, layer + LAYERS / 2, rows, MPIG_PROPOSAL_SIGNATURE, layer);
		fill_quickly((float *)(void *)(t->f.slot + l.q), (size_t)HEADS * D, (uint64_t)i);
		double create;
		run_job(t, &dense, &create);
		judge(t, run_job(t, &sampled, &create), &sample);
		sample.create_ms = create * 1e3;
		for (int n = 0; i >= 0 && n < TIMELINE_FIGURES; n++)
			figure[n][i] = ((const double *)&sample)[n];
	}
	for (int n = 0; n < TIMELINE_FIGURES; n++)
		((double *)&out->median)[n] = median(figure[n], REPETITIONS);
	out->threads = t->threads;
}

static void run(struct timeline *t, struct context *c, uint32_t rows, uint32_t threads, struct timeline_result *out)
{
	struct thread thread[MAX_THREADS];
	const struct engine_trace trace = {note, t};
	fixture_engine(&t->f, &(struct engine_options){.workers = threads, .trace = &trace});
	atomic_store(&t->stop, false);
	t->threads = t->f.threads = threads;
	for (uint32_t i = 1; i < threads; i++) {
		thread[i] = (struct thread){.t = t, .number = i};
		if (pthread_create(&thread[i].id, NULL, spin, &thread[i]))
			abort();
	}
	measure(t, c, rows, out);
	atomic_store(&t->stop, true);
	for (uint32_t i = 1; i < threads; i++)
		pthread_join(thread[i].id, NULL);
}

void bench_timeline(uint32_t rows, uint32_t mask, const unsigned *threads, unsigned counts, struct timeline_result *out)
{
	struct timeline *t = aligned_alloc(64, sizeof(*t));
	if (!t)
		abort();
	memset(t, 0, sizeof(*t));
	uint64_t pool = (uint64_t)rows * LAYERS * KV_HEADS * (4 * D + 64) * 5 / 4 + (UINT64_C(256) << 20);
	fixture_start(&t->f, pool & ~UINT64_C(0x1fffff), mask);
	struct mpig_wire_layer layer = fixture_layer(HEADS, KV_HEADS, D, MPIG_BF16);
	layer.signature_bits = 2;
	struct context *c = fixture_context(&t->f, "bench", &layer, LAYERS, 1);
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	t->f.threads = cpus < MAX_THREADS ? (uint32_t)cpus : MAX_THREADS;
	ingest(t, c, rows);
	while (pool_collapse(t->f.pool, 64)) // as an idle daemon has done by now
		;
	for (unsigned i = 0; i < counts; i++)
		run(t, c, rows, threads[i] < MAX_THREADS ? threads[i] : MAX_THREADS, &out[i]);
	context_unref(c);
	fixture_stop(&t->f);
	free(t);
}
