// Layers of an 8B-class model in turn, as a model asks for them, with a pause before each request in which a model would multiply matrices:
// what it is worth that workers read ahead meanwhile. Each pause with and without, in turns; then two contexts, one a fork of the other, on two
// queues, which leave the workers no pause.
#include <magicpig.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "tools/magicpig-bench/bench.h"
#include "tools/magicpig-bench/model.h"
#include "tools/magicpig-bench/private_daemon.h"

enum {
	D = MODEL_D,
	KV_HEADS = MODEL_KV_HEADS,
	HEADS = MODEL_HEADS,
	LAYERS = 32,
	CHUNK = 1024,
	STORE = 4, // chunks
	QUERIES = 16,
	TURNS = 5,
	TOKENS = 3,
	WARM_UP = 2, // tokens: as many as it takes to foresee a layer
	EACH = TOKENS * LAYERS,
	CONTEXTS = 2
};
static const double pauses[GAPS] = {0, .1, .25, .5};

struct side { // a context and its queue
	mpig_client *client;
	mpig_queue *queue;
	mpig_context *context;
	uint16_t *k, *v, *q;
	float *answer;
	struct mpig_result result;
};

// Keys are cut from a store of normal numbers, each chunk from another place: the same numbers, but other rows.
static int ingest(struct side *s, uint32_t rows)
{
	const size_t chunk = (size_t)CHUNK * KV_HEADS * D;
	uint64_t at_random = 5;
	fill_bf16(s->k, (STORE + 1) * chunk, 6);
	fill_bf16(s->v, chunk, 7);
	fill_bf16(s->q, (size_t)QUERIES * HEADS * D, 8);
	for (uint32_t at = 0; at < rows; at += CHUNK)
		for (int layer = 0; layer < LAYERS; layer++) {
			uint32_t n = rows - at < CHUNK ? rows - at : CHUNK;
			bool last = at + n == rows;
			at_random = at_random * UINT64_C(6364136223846793005) + 1442695040888963407u;
			const uint16_t *k = s->k + (at_random >> 33) % (STORE * chunk);
			int status = mpig_append(s->queue, s->context, layer, at, n, MPIG_BF16, k, s->v, last ? s->q : NULL,
			                         last ? QUERIES : 0);
			if (status)
				return status;
		}
	uint32_t *tokens = calloc(rows, sizeof(*tokens));
	int status = tokens ? mpig_commit(s->queue, s->context, 0, rows, tokens, MPIG_COMMIT_SEAL) : MPIG_ENOMEM;
	free(tokens);
	return status;
}

// The n-th request, which is for the next layer; returns its ticket, or a status.
static int64_t ask(struct side *s, unsigned n)
{
	struct mpig_attend a = MPIG_INIT(a);
	a.layer = (int)(n % LAYERS);
	a.dtype = MPIG_BF16;
	a.q = s->q;
	a.seed = n;
	s->result = (struct mpig_result)MPIG_INIT(s->result);
	s->result.out = s->answer;
	s->result.lse = s->answer + HEADS * D;
	return mpig_submit_attend(s->queue, s->context, &a, &s->result, 0);
}

static void pause_for(double ms)
{
	for (double end = seconds() + ms * 1e-3; seconds() < end;)
		;
}

// Some tokens; ms [EACH] gets the time of each request but those of the first tokens.
static int decode(struct side *s, double gap, double *ms)
{
	int status = mpig_awake(s->queue, 60000);
	for (unsigned n = 0; n < WARM_UP * LAYERS + EACH && !status; n++) {
		pause_for(gap);
		double start = seconds();
		int64_t ticket = ask(s, n);
		status = ticket < 0 ? (int)ticket : mpig_wait(s->queue, ticket, 0);
		if (n >= WARM_UP * LAYERS)
			ms[n - WARM_UP * LAYERS] = (seconds() - start) * 1e3;
	}
	return status;
}

// Both at once: each asks for its next layer as soon as the one before is answered. Milliseconds of a layer of both, in the mean.
static int together(struct side s[CONTEXTS], double *ms)
{
	const unsigned each = WARM_UP * LAYERS + EACH;
	unsigned asked[CONTEXTS] = {0}, answered = 0;
	double start = seconds();
	for (int i = 0; i < CONTEXTS; i++) {
		int64_t ticket = ask(&s[i], asked[i]++);
		if (ticket < 0)
			return (int)ticket;
	}
	while (answered < CONTEXTS * each)
		for (int i = 0; i < CONTEXTS; i++) {
			struct mpig_completion c;
			if (mpig_poll(s[i].queue, &c, 1) != 1)
				continue;
			int64_t ticket = c.status ? c.status : asked[i] < each ? ask(&s[i], asked[i]++) : 0;
			if (ticket < 0)
				return (int)ticket;
			answered++;
		}
	*ms = (seconds() - start) * 1e3 / each;
	return 0;
}

static int set_ahead(mpig_client *client, double share)
{
	char assignment[64], text[512];
	snprintf(assignment, sizeof(assignment), "workers.prefetch=%g", share);
	int status = mpig_daemon_configure(client, assignment, text, sizeof(text));
	return status < 0 ? status : 0;
}

// A turn of every pause at every share, and of two contexts at once.
static int take_turn(struct side s[CONTEXTS], const struct gaps_result *out, double *ms[GAPS][GAP_SHARES],
                     double both[GAP_SHARES])
{
	for (unsigned i = 0; i < out->shares; i++) {
		int status = set_ahead(s[0].client, out->share[i]);
		for (int g = 0; g < GAPS && !status; g++)
			status = decode(&s[0], pauses[g], ms[g][i]);
		if (status || (status = together(s, &both[i])))
			return status;
	}
	return 0;
}

static int measure(struct side s[CONTEXTS], struct gaps_result *out)
{
	static double ms[GAPS][GAP_SHARES][TURNS * EACH], both[TURNS][GAP_SHARES], one[TURNS];
	for (int turn = 0; turn < TURNS; turn++) {
		double *here[GAPS][GAP_SHARES];
		for (int g = 0; g < GAPS; g++)
			for (int i = 0; i < GAP_SHARES; i++)
				here[g][i] = &ms[g][i][turn * EACH];
		int status = take_turn(s, out, here, both[turn]);
		if (status)
			return status;
	}
	for (unsigned i = 0; i < out->shares; i++) {
		for (int g = 0; g < GAPS; g++) {
			out->gap_ms[g] = pauses[g];
			out->ms[g][i] = median(ms[g][i], TURNS * EACH);
		}
		for (int turn = 0; turn < TURNS; turn++)
			one[turn] = both[turn][i];
		out->both_ms[i] = median(one, TURNS);
	}
	return 0;
}

static int begin(struct side *s, mpig_client *client, mpig_context *parent, uint32_t rows)
{
	const size_t chunk = (size_t)CHUNK * KV_HEADS * D;
	s->client = client;
	s->k = malloc((STORE + 1) * chunk * sizeof(*s->k));
	s->v = malloc(chunk * sizeof(*s->v));
	s->q = malloc((size_t)QUERIES * HEADS * D * sizeof(*s->q));
	s->answer = malloc((HEADS * D + HEADS) * sizeof(*s->answer));
	int status = s->k && s->v && s->q && s->answer ? 0 : MPIG_ENOMEM;
	if (!status)
		status = model_queue(client, &s->queue);
	if (!status && parent)
		return mpig_context_fork(parent, "second", rows, &s->context);
	if (!status)
		status = model_context(client, "first", LAYERS, MPIG_I8, &s->context);
	return status ? status : ingest(s, rows);
}

static void end(struct side *s)
{
	mpig_context_close(s->context);
	mpig_queue_destroy(s->queue);
	free(s->k);
	free(s->v);
	free(s->q);
	free(s->answer);
}

int bench_gaps(const char *program, uint32_t rows, struct gaps_result *out)
{
	uint64_t pool = (uint64_t)rows * LAYERS * KV_HEADS * (2 * D + 64 + 64) * 5 / 4 + (UINT64_C(256) << 20);
	struct private_daemon d;
	if (private_daemon_start_with(&d, program, out->workers, pool & ~UINT64_C(0x1fffff), "awake_max = 60s\n"))
		return -1;
	struct side side[CONTEXTS] = {0};
	int status = 0;
	for (int i = 0; i < CONTEXTS && !status; i++)
		status = begin(&side[i], d.client, i ? side[0].context : NULL, rows);
	if (!status)
		private_daemon_settle(&d);
	if (!status)
		status = measure(side, out);
	if (status)
		fprintf(stderr, "magicpig-bench: %s (%s)\n", mpig_strerror(status), mpig_last_error(d.client));
	for (int i = 0; i < CONTEXTS; i++)
		end(&side[i]);
	private_daemon_stop(&d);
	return status ? -1 : 0;
}
