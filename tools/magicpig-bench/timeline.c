// Where a layer's time goes: one layer of an 8B-class model, and a stamp at the beginning and end of each piece of the job. Twice: in the
// engine alone, with threads that spin for jobs as workers do, and through a ring and the daemon's own workers, which run in this process.
// What `layer` takes beyond the second is the client's.
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/clock.h"
#include "daemon/server/worker.h"
#include "daemon/store/pool.h"
#include "shm/region.h"
#include "tests/lib/engine_fixture.h"
#include "tools/magicpig-bench/bench.h"

enum {
	D = 128,
	KV_HEADS = 8,
	HEADS = 32,
	LAYERS = 4,
	CHUNK = 1024,
	REPETITIONS = 201,
	WARM_UP = 8,
	MAX_THREADS = 16,
	MAX_EVENTS = 512,
	SHORT = 4096,   // ranges below are attended densely (attend.c)
	ALONE_US = 100, // requests that are to be alone begin so long after the one before
	IN_A_ROW = 64,
	ROWS_OF_REQUESTS = 41
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
	uint32_t threads, range; // range: rows of a request
	struct served *served;   // NULL: the engine alone
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
	while (state == JOB_RAN || state == JOB_MORE);
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

static void begin_lanes(struct timeline *t)
{
	for (uint32_t i = 0; i < t->threads; i++)
		t->lane[i].count = 0;
}

static void end_lanes(struct timeline *t, double start)
{
	for (uint32_t i = 0; i < t->threads; i++)
		for (uint32_t e = 0; e < t->lane[i].count; e++)
			t->lane[i].event[e].at -= start;
}

// One job; the clock stands at 0 where the request is taken up.
static double run_job(struct timeline *t, const struct engine_request *request, double *create_s)
{
	begin_lanes(t);
	double start = seconds();
	struct job *job = job_create(t->f.engine, request);
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
	end_lanes(t, start);
	return taken;
}

// ---- the same through a ring and the daemon's workers ------------------------------------------------------------------
enum { HANDLE = 1 };
struct served {
	struct workers *workers;
	struct mpig_stats_worker *stats;
	struct session *session;
	struct queue *queue;
	void *base;
	struct mpig_queue_header header;
	struct mpig_producer sq;
	struct mpig_consumer cq;
	int control_fd;
};

static void *must(void *memory)
{
	return memory ? memory : (abort(), memory);
}

static void serve_begin(struct timeline *t, struct served *s, struct context *c)
{
	*s = (struct served){.control_fd = eventfd(0, EFD_NONBLOCK)};
	s->stats = must(calloc(t->threads, sizeof(*s->stats)));
	struct workers_options o = {.count = t->threads,
	                            .spin_ns = UINT64_C(1000000000),
	                            .engine = t->f.engine,
	                            .stats = s->stats,
	                            .control_fd = s->control_fd};
	cpu_set_t allowed;
	cpu_allowed(&allowed);
	cpu_choose_workers(&allowed, &o.cpus);
	if (t->threads > (uint32_t)CPU_COUNT(&o.cpus)) // as the daemon does
		o.cpus = allowed;
	s->session = must(session_create());
	struct queue_options qo = {.entries = 8,
	                           .slot_count = 1,
	                           .slot_bytes = 1 << 17,
	                           .epoch = 1,
	                           .max_query_tokens = MPIG_MAX_QUERY_TOKENS,
	                           .adopt_fd = -1};
	char why[MPIG_TEXT_BYTES];
	int region;
	context_ref(c);
	if (workers_create(&o, &s->workers) || session_bind(s->session, HANDLE, NULL, c, 0, NULL, 0, NULL) ||
	    queue_create(&qo, s->session, &s->queue, &region, why))
		abort();
	s->queue->id = t->threads; // the home of which is the first worker
	uint64_t bytes = s->queue->geometry.region_bytes;
	if (mpig_region_map(region, bytes, 0, &s->base) || mpig_queue_header_check(s->base, bytes, &s->header) ||
	    workers_add_queue(s->workers, s->queue))
		abort();
	close(region);
	mpig_client_rings(s->base, &s->header, &s->sq, &s->cq);
}

static void serve_end(struct served *s)
{
	uint64_t epoch = workers_remove_queue(s->workers, s->queue);
	while (!workers_left(s->workers, epoch) || atomic_load(&s->queue->in_flight))
		cpu_relax();
	queue_destroy(s->queue);
	munmap(s->base, s->header.region_bytes);
	workers_stop(s->workers);
	workers_destroy(s->workers);
	session_unref(s->session);
	free(s->stats);
	close(s->control_fd);
}

static double round_trip(struct timeline *t, const struct engine_request *request, double *start, struct mpig_cqe *answer)
{
	struct served *s = t->served;
	struct mpig_sqe entry = request->entry;
	entry.handle = HANDLE;
	memcpy((uint8_t *)s->base + s->header.slots_offset + MPIG_SLOT_HEADER_BYTES, t->f.slot + MPIG_SLOT_HEADER_BYTES,
	       (size_t)HEADS * D * sizeof(float)); // q comes first
	mpig_producer_put(&s->sq, &entry);
	*start = seconds();
	mpig_producer_publish(&s->sq);
	int ready;
	while (!(ready = mpig_consumer_ready(&s->cq)))
		cpu_relax();
	double taken = seconds() - *start;
	mpig_consumer_take(&s->cq, answer);
	mpig_consumer_release(&s->cq);
	if (ready < 0 || answer->status)
		abort();
	return taken;
}

static void until_nothing_flies(const struct served *s)
{
	while (atomic_load(&s->queue->in_flight))
		cpu_relax();
}

// The clock stands at 0 where the entry is published.
static double serve_job(struct timeline *t, const struct engine_request *request, double *create_s)
{
	double start;
	struct mpig_cqe answer;
	begin_lanes(t);
	double taken = round_trip(t, request, &start, &answer);
	until_nothing_flies(t->served); // lanes are written by others until then
	end_lanes(t, start);
	*create_s = taken - (double)answer.service_ns * 1e-9; // there and back; planning is the daemon's
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
	double first_idle = taken, all = taken * t->threads, longest = 0, first = taken, end = 0;
	static double gap[MAX_THREADS * MAX_EVENTS];
	size_t gaps = 0;
	*s = (struct timeline_sample){.ms = taken * 1e3, .first_main_ms = taken * 1e3, .row_ms = NAN, .row_service_ms = NAN};
	for (uint32_t i = 0; i < t->threads; i++) {
		const struct lane *lane = &t->lane[i];
		double pre = total_of(lane, ENGINE_PRE) + total_of(lane, ENGINE_TURN), last = 0;
		s->pre_share += pre / all;
		s->main_share += total_of(lane, ENGINE_MAIN) / all;
		s->close_share += total_of(lane, ENGINE_CLOSE) / all;
		for (uint32_t e = 0; e < lane->count; e++) {
			double at = lane->event[e].at;
			first = at < first ? at : first;
			end = at > end ? at : end;
			if (e && lane->event[e - 1].end)
				gap[gaps++] = at - lane->event[e - 1].at;
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
	s->begin_ms = first * 1e3;
	s->end_ms = (taken - end) * 1e3;
	s->gap_us = gaps ? median(gap, gaps) * 1e6 : 0;
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

static struct engine_request request(struct timeline *t, struct context *c, uint32_t layer, uint8_t proposal, uint64_t seed)
{
	struct mpig_sqe e = {.op = MPIG_OP_ATTEND,
	                     .layer = (uint16_t)(layer % LAYERS),
	                     .count = 1,
	                     .end = t->range,
	                     .proposal = proposal,
	                     .budget = .01f,
	                     .seed = seed};
	return (struct engine_request){
		.entry = e, .payload_in = t->f.slot, .payload_out = t->f.slot, .slot_bytes = t->f.slot_bytes, .context = c};
}

static double run_one(struct timeline *t, const struct engine_request *r, double *create_s)
{
	return t->served ? serve_job(t, r, create_s) : run_job(t, r, create_s);
}

static void fill_query(struct timeline *t, struct context *c, int i)
{
	struct mpig_layer_shape s = context_layer(c, 0)->shape;
	struct mpig_payload_layout l = mpig_attend_layout(&s, 1, MPIG_F32, 0);
	fill_quickly((float *)(void *)(t->f.slot + l.q), (size_t)HEADS * D, (uint64_t)i);
}

// Short ranges are asked as the daemon answers them where nothing else is said: every row.
static uint8_t proposal(const struct timeline *t)
{
	return t->range < SHORT ? MPIG_PROPOSAL_DENSE : MPIG_PROPOSAL_SIGNATURE;
}

// Requests one after another, each as soon as the answer to the one before is there: what one takes, and what of it the daemon says.
static void measure_row(struct timeline *t, struct context *c, struct timeline_sample *out)
{
	double taken[ROWS_OF_REQUESTS], service[ROWS_OF_REQUESTS];
	for (int i = 0; i < ROWS_OF_REQUESTS; i++) {
		double first = 0, start, sum = 0;
		for (uint32_t n = 0; n < IN_A_ROW; n++) {
			struct engine_request r = request(t, c, n, proposal(t), n);
			struct mpig_cqe answer;
			round_trip(t, &r, &start, &answer);
			first = n ? first : start;
			sum += (double)answer.service_ns * 1e-6;
		}
		taken[i] = (seconds() - first) * 1e3 / IN_A_ROW;
		service[i] = sum / IN_A_ROW;
		until_nothing_flies(t->served);
	}
	out->row_ms = median(taken, ROWS_OF_REQUESTS);
	out->row_service_ms = median(service, ROWS_OF_REQUESTS);
}

// A dense pass over another layer goes before each request of a long range, so that no more of it is in the caches than in `layer`.
static void measure(struct timeline *t, struct context *c, struct timeline_result *out)
{
	double figure[TIMELINE_FIGURES][REPETITIONS];
	struct timeline_sample sample;
	for (int i = -WARM_UP; i < REPETITIONS; i++) {
		uint32_t layer = (uint32_t)(i + WARM_UP);
		struct engine_request dense = request(t, c, layer, MPIG_PROPOSAL_DENSE, 1),
				      sampled = request(t, c, layer + LAYERS / 2, proposal(t), layer);
		fill_query(t, c, i);
		double create;
		run_one(t, &dense, &create);
		for (double since = seconds(); t->range < SHORT && seconds() - since < ALONE_US * 1e-6;)
			cpu_relax();
		judge(t, run_one(t, &sampled, &create), &sample);
		sample.create_ms = create * 1e3;
		for (int n = 0; i >= 0 && n < TIMELINE_FIGURES; n++)
			figure[n][i] = ((const double *)&sample)[n];
	}
	for (int n = 0; n < TIMELINE_FIGURES; n++)
		((double *)&out->median)[n] = median(figure[n], REPETITIONS);
	if (t->served && t->range < SHORT)
		measure_row(t, c, &out->median);
	out->threads = t->threads;
	out->served = t->served != NULL;
}

static void run_served(struct timeline *t, struct context *c, struct timeline_result *out)
{
	struct served served;
	serve_begin(t, &served, c);
	t->served = &served;
	measure(t, c, out);
	t->served = NULL;
	serve_end(&served);
}

static void run_alone(struct timeline *t, struct context *c, struct timeline_result *out)
{
	struct thread thread[MAX_THREADS];
	uint32_t threads = t->threads;
	atomic_store(&t->stop, false);
	for (uint32_t i = 1; i < threads; i++) {
		thread[i] = (struct thread){.t = t, .number = i};
		if (pthread_create(&thread[i].id, NULL, spin, &thread[i]))
			abort();
	}
	measure(t, c, out);
	atomic_store(&t->stop, true);
	for (uint32_t i = 1; i < threads; i++)
		pthread_join(thread[i].id, NULL);
}

static void run(struct timeline *t, struct context *c, uint32_t threads, struct timeline_result out[2])
{
	const struct engine_trace trace = {note, t};
	fixture_engine(&t->f, &(struct engine_options){.workers = threads, .trace = &trace});
	t->threads = t->f.threads = threads;
	run_alone(t, c, &out[0]);
	run_served(t, c, &out[1]);
}

void bench_timeline(uint32_t rows, uint32_t range, uint32_t mask, const unsigned *threads, unsigned counts,
                    struct timeline_result *out)
{
	struct timeline *t = aligned_alloc(64, sizeof(*t));
	if (!t)
		abort();
	memset(t, 0, sizeof(*t));
	t->range = range && range < rows ? range : rows;
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
		run(t, c, threads[i] < MAX_THREADS ? threads[i] : MAX_THREADS, &out[2 * i]);
	context_unref(c);
	fixture_stop(&t->f);
	free(t);
}
