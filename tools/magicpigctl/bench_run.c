// The measuring: a context of random numbers, then rounds in which everything has its turn, so that what disturbs one disturbs all.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

#define CHUNK 256 // tokens appended at a time
#define ROUNDS 5
#define NOPS 400 // of a round
#define MAX_FLIGHTS 16
#define MAX_POINTS 8
#define POINT_ROUNDS 12
#define POINT_ASKS 16
#define QUERIES 64                       // that are asked in turn
#define OTHER_MOST (UINT64_C(256) << 20) // bytes looked at between two questions: more than caches hold
#define OTHER_D 128

volatile sig_atomic_t bench_interrupted;

struct run {
	mpig_queue *queue;
	mpig_context *context;
	const struct bench_options *o;
	struct bench_figures *f;
	float *q, *out[MAX_FLIGHTS]; // q: QUERIES of them
	uint64_t seed;
	struct bench_point *points;
	int point_count, proposal;
	struct mpig_layer layers[2]; // the second, if there is one: what stands for the model's other layers
	int layer_count;
	uint64_t other_rows; // of it, that are looked at between two questions
};

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

// About normal: the sum of four uniform numbers.
static void fill(float *x, size_t n, uint64_t *state)
{
	for (size_t i = 0; i < n; i++) {
		*state = *state * 6364136223846793005u + 1442695040888963407u;
		uint64_t z = *state;
		float sum = (float)(z >> 48) + (float)(z >> 32 & 0xffff) + (float)(z >> 16 & 0xffff) + (float)(z >> 8 & 0xffff);
		x[i] = (sum / 65536 - 2) * 1.7f;
	}
}

static int append_layer(struct run *r, int layer, double *taken)
{
	uint64_t state = 1 + (uint64_t)layer, tokens = r->o->tokens;
	size_t row = (size_t)r->layers[layer].kv_heads * r->layers[layer].d_k;
	float *k = malloc(CHUNK * row * sizeof(*k)), *v = malloc(CHUNK * row * sizeof(*v));
	int status = k && v ? MPIG_OK : MPIG_ENOMEM;
	for (uint64_t at = 0; !status && at < tokens; at += CHUNK) {
		fill(k, CHUNK * row, &state);
		fill(v, CHUNK * row, &state);
		uint64_t n = tokens - at < CHUNK ? tokens - at : CHUNK;
		double start = now_ns();
		status = mpig_append(r->queue, r->context, layer, at, n, MPIG_F32, k, v, NULL, 0);
		*taken += now_ns() - start;
		if (!status && bench_interrupted)
			status = MPIG_EAGAIN;
	}
	free(k);
	free(v);
	return status;
}

static int append_all(struct run *r)
{
	const struct bench_options *o = r->o;
	uint32_t *ids = malloc(o->tokens * sizeof(*ids));
	double taken = 0, unused = 0, start;
	int status = ids ? MPIG_OK : MPIG_ENOMEM;
	for (int i = 0; i < r->layer_count && !status; i++)
		status = append_layer(r, i, i ? &unused : &taken);
	for (uint64_t i = 0; !status && i < o->tokens; i++)
		ids[i] = (uint32_t)i;
	start = now_ns();
	if (!status)
		status = mpig_commit(r->queue, r->context, 0, o->tokens, ids, MPIG_COMMIT_SEAL);
	r->f->seal_s = (now_ns() - start) / 1e9;
	r->f->append_bytes_per_s = taken > 0 ? (double)o->tokens * o->kv_heads * r->f->row_bytes / (taken / 1e9) : 0;
	free(ids);
	return status;
}

static int note(struct bench_times *t, double ns, const struct mpig_result *result)
{
	if (t->count == t->room) {
		uint64_t room = t->room ? 2 * t->room : 1024;
		double *longer = reallocarray(t->ns, room, sizeof(*longer));
		t->ns = longer ? longer : t->ns;
		double *other = reallocarray(t->service, room, sizeof(*other));
		t->service = other ? other : t->service;
		if (!longer || !other)
			return MPIG_ENOMEM;
		t->room = room;
	}
	t->ns[t->count] = ns;
	t->service[t->count++] = result ? (double)result->service_ns : 0;
	if (result) {
		t->bytes += (double)result->bytes_read;
		t->rows += (double)result->rows_read;
	}
	return MPIG_OK;
}

static void free_times(struct bench_times *t)
{
	free(t->ns);
	free(t->service);
}

static int nops(struct run *r)
{
	int status = MPIG_OK;
	double begin = now_ns();
	for (int i = 0; i < NOPS && !status; i++) {
		double start = now_ns();
		status = mpig_nop(r->queue);
		status = status ? status : note(&r->f->nop, now_ns() - start, NULL);
	}
	r->f->nop.busy_s += (now_ns() - begin) / 1e9;
	return status;
}

// end 0: all tokens.
static struct mpig_attend question(struct run *r, int proposal, int64_t end, double budget)
{
	const float *q = r->q + (size_t)(++r->seed % QUERIES) * r->o->query_heads * r->o->d;
	return (struct mpig_attend){.size = sizeof(struct mpig_attend),
	                            .proposal = proposal,
	                            .q = q,
	                            .end = end,
	                            .budget = (float)budget,
	                            .seed = r->seed};
}

// One after another, for about so long.
static int attends(struct run *r, int proposal, double seconds, struct bench_times *times)
{
	int status = MPIG_OK;
	double begin = now_ns();
	while (!status && now_ns() - begin < seconds * 1e9) {
		struct mpig_attend ask = question(r, proposal, 0, proposal == MPIG_PROPOSAL_SIGNATURE ? (double)r->o->budget : 0);
		struct mpig_result answer = {.size = sizeof(answer), .out = r->out[0]};
		double start = now_ns();
		status = mpig_attend(r->queue, r->context, &ask, &answer);
		status = status ? status : note(times, now_ns() - start, &answer);
		status = status ? status : bench_interrupted ? MPIG_EAGAIN : MPIG_OK;
	}
	times->busy_s += (now_ns() - begin) / 1e9;
	return status;
}

// Several in flight, for about so long.
static int piped(struct run *r, double seconds)
{
	struct mpig_result answer[MAX_FLIGHTS];
	int64_t ticket[MAX_FLIGHTS] = {0};
	double start[MAX_FLIGHTS], begin = now_ns();
	int status = MPIG_OK;
	bool out = true;
	for (uint64_t i = 0; out; i++) {
		unsigned place = (unsigned)(i % r->o->flights);
		if (ticket[place] > 0) {
			int rc = mpig_wait(r->queue, ticket[place], 0);
			ticket[place] = 0;
			status = status ? status : rc ? rc : note(&r->f->piped, now_ns() - start[place], &answer[place]);
		}
		if (!status && !bench_interrupted && now_ns() - begin < seconds * 1e9) {
			struct mpig_attend ask = question(r, MPIG_PROPOSAL_SIGNATURE, 0, (double)r->o->budget);
			answer[place] = (struct mpig_result){.size = sizeof(answer[place]), .out = r->out[place]};
			start[place] = now_ns();
			ticket[place] = mpig_submit_attend(r->queue, r->context, &ask, &answer[place], 0);
			status = ticket[place] < 0 ? (int)ticket[place] : status;
		}
		out = false;
		for (unsigned p = 0; p < r->o->flights; p++)
			out |= ticket[p] > 0;
	}
	r->f->piped.busy_s += (now_ns() - begin) / 1e9;
	return status ? status : bench_interrupted ? MPIG_EAGAIN : MPIG_OK;
}

static int measure(struct run *r)
{
	struct roofline_rates roof[ROUNDS];
	double part = r->o->seconds / ROUNDS / 3;
	struct bench_times first = {0}; // touches of what is not in the caches yet, nobody's time
	int status = attends(r, MPIG_PROPOSAL_SIGNATURE, .1, &first);
	free_times(&first);
	for (int i = 0; i < ROUNDS && !status; i++) {
		if (roofline_measure(&r->f->roof_options, &roof[i]) != 0)
			return MPIG_EIO;
		status = nops(r);
		status = status ? status : attends(r, MPIG_PROPOSAL_SIGNATURE, part, &r->f->sampled);
		status = status ? status : attends(r, MPIG_PROPOSAL_DENSE, part, &r->f->dense);
		status = status ? status : piped(r, part);
	}
	for (int i = 0; i < ROUNDS && !status; i++) { // what memory gives at its best: another's work must not count as its limit
		r->f->roof.stream_bytes_per_s = fmax(r->f->roof.stream_bytes_per_s, roof[i].stream_bytes_per_s);
		r->f->roof.gather_bytes_per_s = fmax(r->f->roof.gather_bytes_per_s, roof[i].gather_bytes_per_s);
	}
	return status;
}

static int prepare(struct run *r)
{
	size_t width = (size_t)r->o->query_heads * r->o->d;
	uint64_t state = 2;
	r->q = malloc(QUERIES * width * sizeof(*r->q));
	if (!r->q)
		return MPIG_ENOMEM;
	fill(r->q, QUERIES * width, &state);
	for (unsigned i = 0; i < r->o->flights; i++)
		if (!(r->out[i] = malloc(width * sizeof(float))))
			return MPIG_ENOMEM;
	return append_all(r);
}

// Makes the context, does `what` with it, and drops it.
static int with_context(mpig_client *client, const char *name, struct run *r, int (*what)(struct run *))
{
	struct mpig_spec spec = {.size = sizeof(spec),
	                         .layer_count = r->layer_count,
	                         .layers = r->layers,
	                         .expected_tokens = r->o->tokens,
	                         .seed = 1};
	struct mpig_queue_options queue = {.size = sizeof(queue), .entries = 32, .slots = MAX_FLIGHTS, .slot_bytes = 1 << 20};
	int status = mpig_context_create(client, name, &spec, &r->context);
	if (status)
		return status;
	status = mpig_queue_create(client, &queue, &r->queue);
	status = status ? status : prepare(r);
	status = status ? status : what(r);
	mpig_queue_destroy(r->queue);
	mpig_context_close(r->context);
	int dropped = mpig_context_drop(client, name);
	free(r->q);
	for (unsigned i = 0; i < r->o->flights; i++)
		free(r->out[i]);
	return status ? status : dropped;
}

int bench_run(mpig_client *client, const char *name, const struct bench_options *o, struct bench_figures *f)
{
	struct mpig_layer layer = {.query_heads = o->query_heads, .kv_heads = o->kv_heads, .d_k = o->d, .signature_bits = 2};
	struct run r = {.o = o, .f = f, .layers = {layer}, .layer_count = 1};
	return with_context(client, name, &r, measure);
}

// What the model's other layers do between two questions about one: takes the caches.
static int ask_others(struct run *r)
{
	if (!r->other_rows)
		return MPIG_OK;
	struct mpig_attend ask = {
		.size = sizeof(ask), .layer = 1, .proposal = MPIG_PROPOSAL_DENSE, .q = r->q, .end = (int64_t)r->other_rows};
	struct mpig_result answer = {.size = sizeof(answer)};
	return mpig_attend(r->queue, r->context, &ask, &answer);
}

static int measure_points(struct run *r)
{
	struct bench_times times[MAX_POINTS] = {{0}};
	int status = MPIG_OK;
	// The first round warms up; of the others everybody has its turn in each.
	for (int round = 0; round <= POINT_ROUNDS && !status; round++)
		for (int p = 0; p < r->point_count && !status; p++)
			for (int i = 0; i < POINT_ASKS && !status; i++) {
				uint64_t n = r->points[p].tokens, stretch = (uint64_t)i % (r->o->tokens / n);
				struct mpig_attend ask =
					question(r, r->proposal, (int64_t)((stretch + 1) * n), r->points[p].budget);
				ask.begin = stretch * n;
				struct mpig_result answer = {.size = sizeof(answer), .out = r->out[0]};
				status = ask_others(r);
				double start = now_ns();
				status = status ? status : mpig_attend(r->queue, r->context, &ask, &answer);
				if (!status && round)
					status = note(&times[p], now_ns() - start, &answer);
				status = status ? status : bench_interrupted ? MPIG_EAGAIN : MPIG_OK;
			}
	for (int p = 0; p < r->point_count; p++) {
		r->points[p].ns = bench_percentile(&times[p], .2);
		free_times(&times[p]);
	}
	return status;
}

// Heads of the layer that stands for others which look at so many bytes; 0: nothing has to.
static int other_heads(uint64_t tokens, double bytes)
{
	double most = fmin(bytes, (double)OTHER_MOST), heads = ceil(most / ((double)tokens * 4 * OTHER_D));
	return bytes < 65536 ? 0 : heads > 8 ? 8 : (int)heads;
}

uint64_t bench_points_bytes(uint64_t tokens, double other_bytes)
{
	return tokens * 4 * OTHER_D * (uint64_t)other_heads(tokens, other_bytes);
}

int bench_points(mpig_client *client, const char *name, const struct mpig_layer *layer, uint64_t tokens, double other_bytes,
                 int proposal, struct bench_point *points, int count)
{
	struct bench_options o = {
		.tokens = tokens, .query_heads = layer->query_heads, .kv_heads = layer->kv_heads, .d = layer->d_k, .flights = 1};
	struct bench_figures unused = {0};
	int heads = other_heads(tokens, other_bytes);
	struct run r = {.o = &o,
	                .f = &unused,
	                .points = points,
	                .proposal = proposal,
	                .point_count = count > MAX_POINTS ? MAX_POINTS : count,
	                .layers = {*layer, {.query_heads = heads, .kv_heads = heads, .d_k = OTHER_D}},
	                .layer_count = heads ? 2 : 1};
	if (heads)
		r.other_rows = (uint64_t)fmin((double)tokens, fmin(other_bytes, (double)OTHER_MOST) / (heads * 4.0 * OTHER_D));
	return with_context(client, name, &r, measure_points);
}

void bench_free(struct bench_figures *f)
{
	free_times(&f->nop);
	free_times(&f->dense);
	free_times(&f->sampled);
	free_times(&f->piped);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double percentile(double *values, uint64_t count, double share)
{
	if (!count)
		return 0;
	qsort(values, count, sizeof(*values), by_value);
	uint64_t at = (uint64_t)ceil(share * (double)count);
	return values[at ? at - 1 : 0];
}

double bench_percentile(struct bench_times *t, double share)
{
	return percentile(t->ns, t->count, share);
}

double bench_service(struct bench_times *t)
{
	return percentile(t->service, t->count, .5);
}
