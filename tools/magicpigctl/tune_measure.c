// Every query asked in every way, on forks of the context: the context's own ratios, notes and statistics stay as clients made them, and each
// rule starts from the same state, so that a seed gives the same rows in every run.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tune_run.h"

volatile sig_atomic_t tune_interrupted;

static double now_s(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

// ---- forks -----------------------------------------------------------------------------------------------------------
// Dropped by whoever made it; if nobody comes to that, the daemon does it a minute after the connection has ended.
static int make_fork(struct run *r, mpig_context *of, const char *name, mpig_context **fork)
{
	int status = mpig_context_fork(of, name, r->t->info.committed, fork);
	if (status)
		return status;
	(void)mpig_context_persist(r->client, name, MPIG_PERSIST_NONE, 0); // not known to a daemon without a disk
	status = mpig_context_pin(r->client, name, 0);
	return status ? status : mpig_context_ttl(r->client, name, TUNE_TTL, 0);
}

static int drop(struct run *r, mpig_context **fork, const char *name)
{
	if (!*fork)
		return MPIG_OK;
	mpig_context_close(*fork);
	*fork = NULL;
	return mpig_context_drop(r->client, name);
}

int tune_drop_fork(struct run *r)
{
	return drop(r, &r->fork, r->fork_name);
}

int tune_fresh_fork(struct run *r)
{
	int status = tune_drop_fork(r);
	return status ? status : make_fork(r, r->base, r->fork_name, &r->fork);
}

// ---- asking ----------------------------------------------------------------------------------------------------------
void tune_rest(struct run *r, double busy_s)
{
	r->t->busy_s += busy_s;
	r->owed_s += busy_s * (1 / r->t->load - 1);
	if (r->owed_s < .002)
		return;
	struct timespec pause = {.tv_sec = (time_t)r->owed_s, .tv_nsec = (long)((r->owed_s - floor(r->owed_s)) * 1e9)};
	double begin = now_s();
	nanosleep(&pause, NULL);
	r->owed_s -= now_s() - begin;
}

static int ask(struct run *r, struct mpig_attend *a, float *out, float *lse, struct mpig_result *result)
{
	*result = (struct mpig_result){.size = sizeof(*result), .out = out, .lse = lse};
	double begin = now_s();
	int status = tune_interrupted ? MPIG_EAGAIN : mpig_attend(r->queue, r->fork, a, result);
	if (status)
		return status;
	r->t->requests++;
	r->t->rows_read += result->rows_read;
	tune_rest(r, now_s() - begin);
	return MPIG_OK;
}

static struct mpig_attend question(const struct tune_layer *l, const struct tune_step *s, uint64_t begin, uint64_t end)
{
	return (struct mpig_attend){.size = sizeof(struct mpig_attend),
	                            .layer = l->number,
	                            .proposal = MPIG_PROPOSAL_DENSE,
	                            .q = s->q,
	                            .begin = begin,
	                            .end = (int64_t)end,
	                            .query_position = s->position};
}

static void note_time(struct tune_layer *l, int way, const struct mpig_result *result)
{
	if (l->ns[way])
		l->ns[way][l->ns_count[way]++] = (float)result->service_ns;
}

static void note(struct tune_layer *l, int way, int seed, int step, double error2, const struct tune_step *s, uint64_t rows)
{
	struct tune_cell *c = &l->cell[way][seed][step % 2 ? TUNE_CHECK : TUNE_FIT];
	c->error2 += error2;
	c->rows += (double)rows;
	c->looked += (double)(s->end - s->begin) * l->spec.kv_heads;
	c->count++;
}

// A part of the context's rows, merged into what is there. End 0 would mean all that is committed.
static int add_part(struct run *r, const struct tune_layer *l, const struct tune_step *s, uint64_t begin, uint64_t end,
                    float *out, float *lse)
{
	struct mpig_attend a = question(l, s, begin, end);
	struct mpig_result result;
	int status = begin < end ? ask(r, &a, r->part, r->part_lse, &result) : MPIG_OK;
	if (!status && begin < end)
		mpig_merge((size_t)l->spec.query_heads, (size_t)tune_value_width(&l->spec), out, lse, r->part, r->part_lse);
	return status;
}

// The exact answer, of the client's own part and of all; what the dense way costs is seen in passing.
static int ask_exactly(struct run *r, struct tune_layer *l, int step, int dense)
{
	struct tune_step *s = &l->step[step];
	size_t heads = (size_t)l->spec.query_heads, d_v = (size_t)tune_value_width(&l->spec);
	struct mpig_attend a = question(l, s, s->begin, s->end);
	struct mpig_result result;
	int status = MPIG_OK;
	if (!s->own_known) {
		memset(s->own_out, 0, heads * d_v * sizeof(float));
		for (size_t h = 0; h < heads; h++)
			s->own_lse[h] = -INFINITY;
		status = add_part(r, l, s, 0, s->begin, s->own_out, s->own_lse);
		status = status ? status : add_part(r, l, s, s->end, s->after, s->own_out, s->own_lse);
	}
	status = status ? status : ask(r, &a, s->exact, r->lse, &result);
	if (status)
		return status;
	for (int seed = 0; seed < r->t->seeds; seed++)
		note(l, dense, seed, step, 0, s, result.rows_read);
	note_time(l, dense, &result);
	mpig_merge(heads, d_v, s->exact, r->lse, s->own_out, s->own_lse);
	return MPIG_OK;
}

// Mean over the heads of the squared relative error of the merged output.
static double squared_error(const struct tune_layer *l, const struct tune_step *s, float *out, float *lse)
{
	size_t heads = (size_t)l->spec.query_heads, d_v = (size_t)tune_value_width(&l->spec);
	double sum = 0;
	mpig_merge(heads, d_v, out, lse, s->own_out, s->own_lse);
	for (size_t h = 0; h < heads; h++) {
		double wrong = 0, size = 0;
		for (size_t j = h * d_v; j < (h + 1) * d_v; j++) {
			double e = (double)out[j] - (double)s->exact[j];
			wrong += e * e;
			size += (double)s->exact[j] * (double)s->exact[j];
		}
		sum += size > 0 ? wrong / size : 0;
	}
	return sum / (double)heads;
}

int tune_ask_way(struct run *r, struct tune_layer *l, int way, int seed, int step)
{
	struct tune_step *s = &l->step[step];
	const struct tune_way *w = &l->way[way];
	struct mpig_attend a = question(l, s, s->begin, s->end);
	struct mpig_result result;
	a.layer = r->copied ? 0 : l->number;
	a.proposal = w->proposal;
	a.budget = w->budget;
	a.error_target = w->error_target;
	a.budget_floor = w->floor;
	a.budget_cap = w->cap;
	a.window_lse = s->tells_lse ? s->own_lse : NULL;
	a.window_out = s->tells_lse && s->tells_out ? s->own_out : NULL;
	a.seed = ((uint64_t)r->t->seed << 32) + (uint64_t)seed * 65536 + (uint64_t)step + 1;
	int status = ask(r, &a, r->out, r->lse, &result);
	if (status)
		return status;
	note(l, way, seed, step, squared_error(l, s, r->out, r->lse), s, result.rows_read);
	note_time(l, way, &result);
	return MPIG_OK;
}

void tune_tell(struct run *r, uint64_t more)
{
	r->done += more;
	if (r->t->progress)
		r->t->progress(r->t, (double)r->done / (double)r->total);
}

// Steps outside, layers inside, as a model decodes: a layer's rows have left the caches when it is asked again.
static int each(struct run *r, int (*what)(struct run *, struct tune_layer *, int step, int way, int seed), int way, int seed)
{
	int status = MPIG_OK;
	for (int step = 0; step < r->t->queries && !status; step++)
		for (int i = 0; i < r->t->layers && !status; i++) {
			struct tune_layer *l = &r->t->layer[i];
			if (step >= l->steps || !l->can[way] || tune_way_copied(&l->way[way]))
				continue;
			status = what(r, l, step, way, seed);
			tune_tell(r, 1);
		}
	return status;
}

static int exact_step(struct run *r, struct tune_layer *l, int step, int way, int seed)
{
	(void)seed;
	return ask_exactly(r, l, step, way);
}

static int way_step(struct run *r, struct tune_layer *l, int step, int way, int seed)
{
	return tune_ask_way(r, l, way, seed, step);
}

enum { TIMES = 64 };

// What a request costs of which no row is looked at.
static int time_requests(struct run *r, float *ns)
{
	struct tune_layer *l = &r->t->layer[0];
	int status = MPIG_OK;
	for (int i = 0; i < TIMES && !status; i++) {
		struct mpig_attend a = question(l, &l->step[0], l->step[0].begin, l->step[0].end);
		struct mpig_result result;
		a.proposal = MPIG_PROPOSAL_WINDOW;
		status = ask(r, &a, r->out, r->lse, &result);
		ns[i] = status ? 0 : (float)result.service_ns;
	}
	return status;
}

static int measure_all(struct run *r, float *request_ns)
{
	struct tune *t = r->t;
	int status = time_requests(r, request_ns);
	status = status ? status : each(r, exact_step, t->dense, 0);
	for (int seed = 0; seed < t->seeds && !status; seed++)
		for (int way = 0; way < t->ways && !status; way++) {
			// What an error target makes of a query depends on the answers before it: each begins anew.
			bool steered = way == t->before || (way >= t->ladder && way < t->ladder_end);
			if (way == t->dense)
				continue;
			status = steered ? tune_fresh_fork(r) : MPIG_OK;
			status = status ? status : each(r, way_step, way, seed);
		}
	return status ? status : t->index ? tune_copies(r) : MPIG_OK;
}

// ---- all of it -------------------------------------------------------------------------------------------------------
static int make_room(struct run *r)
{
	struct tune *t = r->t;
	size_t widest = 0, heads = 0;
	for (int i = 0; i < t->layers; i++) {
		struct tune_layer *l = &t->layer[i];
		size_t n = (size_t)l->spec.query_heads, all = n * (size_t)tune_value_width(&l->spec);
		widest = all > widest ? all : widest;
		heads = n > heads ? n : heads;
		memset(l->cell, 0, sizeof(l->cell));
		for (int w = 0; w < t->ways; w++) {
			l->ns_count[w] = 0;
			if (l->can[w] && !(l->ns[w] = malloc((size_t)l->steps * (size_t)t->seeds * sizeof(float))))
				return MPIG_ENOMEM;
			r->total += l->can[w] ? (uint64_t)l->steps *
			                                (l->way[w].proposal == MPIG_PROPOSAL_DENSE ? 1 : (uint64_t)t->seeds)
			                      : 0;
		}
	}
	r->out = malloc(2 * (widest + heads) * sizeof(float));
	if (!r->out)
		return MPIG_ENOMEM;
	r->part = r->out + widest;
	r->lse = r->part + widest;
	r->part_lse = r->lse + heads;
	return MPIG_OK;
}

int tune_measure(struct tune *t, mpig_client *client)
{
	struct mpig_queue_options queue = {.size = sizeof(queue), .entries = 8, .slots = 2, .slot_bytes = 1 << 20};
	struct run r = {.t = t, .client = client};
	float request_ns[TIMES];
	mpig_context *context = NULL;
	double begin = now_s();
	snprintf(r.base_name, sizeof(r.base_name), "magicpigctl-tune-%d", (int)getpid());
	snprintf(r.copy_name, sizeof(r.copy_name), "magicpigctl-tune-%d-index", (int)getpid());
	snprintf(r.fork_name, sizeof(r.fork_name), "magicpigctl-tune-%d-rule", (int)getpid());
	int status = make_room(&r);
	status = status ? status : mpig_queue_create(client, &queue, &r.queue);
	status = status ? status : mpig_context_open(client, t->name, NULL, &context);
	status = status ? status : make_fork(&r, context, r.base_name, &r.base);
	// The context's open rows are sealed by its first fork and by no other: those that follow are of the fork.
	mpig_context_close(context);
	status = status ? status : tune_fresh_fork(&r);
	status = status ? status : measure_all(&r, request_ns);
	int dropped = tune_drop_fork(&r), base = drop(&r, &r.base, r.base_name);
	status = status ? status : dropped ? dropped : base;
	mpig_queue_destroy(r.queue);
	free(r.out);
	t->seconds = now_s() - begin;
	if (!status && !t->rates_given)
		tune_fit_rates(t, request_ns, TIMES);
	return status;
}
