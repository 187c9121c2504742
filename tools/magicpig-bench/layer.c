// One layer of an 8B-class model (8 KV heads, 32 query heads, d = 128, bf16 rows) through a real daemon and ring, for growing numbers
// of workers. Several layers are asked in turn so that none stays in the caches.
#include <magicpig.h>
#include <stdbool.h>
#include <stdlib.h>

#include "tools/magicpig-bench/bench.h"
#include "tools/magicpig-bench/model.h"
#include "tools/magicpig-bench/private_daemon.h"

enum {
	D = MODEL_D,
	KV_HEADS = MODEL_KV_HEADS,
	HEADS = MODEL_HEADS,
	LAYERS = 4,
	CHUNK = 1024,
	REPETITIONS = 41,
	WARM_UP = 8,
	QUERIES = 16
};

struct run {
	mpig_queue *queue;
	mpig_context *context;
	uint16_t *k, *v, *q;
};

static int ingest(struct run *r, uint32_t rows, struct layer_result *out)
{
	const size_t chunk = (size_t)CHUNK * KV_HEADS * D;
	double start = seconds(), spent_filling = 0;
	for (uint32_t at = 0; at < rows; at += CHUNK)
		for (int layer = 0; layer < LAYERS; layer++) {
			uint32_t n = rows - at < CHUNK ? rows - at : CHUNK;
			double before = seconds();
			fill_bf16(r->k, chunk, (uint64_t)at * LAYERS + (unsigned)layer);
			fill_bf16(r->q, (size_t)QUERIES * HEADS * D, at);
			spent_filling += seconds() - before;
			bool last = at + n == rows;
			int status = mpig_append(r->queue, r->context, layer, at, n, MPIG_BF16, r->k, r->v, last ? r->q : NULL,
			                         last ? QUERIES : 0);
			if (status)
				return status;
		}
	out->append_gbs = (double)rows * LAYERS * KV_HEADS * 4 * D / (seconds() - start - spent_filling) * 1e-9;
	uint32_t *tokens = calloc(rows, sizeof(*tokens));
	if (!tokens)
		return MPIG_ENOMEM;
	start = seconds();
	int status = mpig_commit(r->queue, r->context, 0, rows, tokens, MPIG_COMMIT_SEAL);
	out->seal_s = seconds() - start;
	free(tokens);
	return status;
}

static int attend(struct run *r, int layer, int proposal, uint64_t seed, float *answer, double *ms, double *service_ms)
{
	struct mpig_attend a = MPIG_INIT(a);
	a.layer = layer;
	a.proposal = proposal;
	a.dtype = MPIG_BF16;
	a.q = r->q;
	a.budget = .01f;
	a.seed = seed;
	struct mpig_result result = MPIG_INIT(result);
	result.out = answer;
	result.lse = answer + HEADS * D;
	double start = seconds();
	int status = mpig_attend(r->queue, r->context, &a, &result);
	*ms = (seconds() - start) * 1e3;
	*service_ms = (double)result.service_ns * 1e-6;
	return status;
}

static int measure(struct run *r, struct layer_result *out)
{
	static float answer[HEADS * D + HEADS];
	double dense[REPETITIONS], sampled[REPETITIONS], dense_service[REPETITIONS], service[REPETITIONS];
	for (int i = -WARM_UP; i < REPETITIONS; i++) {
		int at = i < 0 ? 0 : i, layer = (i + WARM_UP) % LAYERS, status;
		fill_bf16(r->q, (size_t)HEADS * D, (uint64_t)i);
		if ((status = attend(r, layer, MPIG_PROPOSAL_DENSE, 1, answer, &dense[at], &dense_service[at])) ||
		    (status = attend(r, (layer + LAYERS / 2) % LAYERS, MPIG_PROPOSAL_SIGNATURE, (uint64_t)i, answer, &sampled[at],
		                     &service[at])))
			return status;
	}
	out->dense_ms = median(dense, REPETITIONS);
	out->signature_ms = median(sampled, REPETITIONS);
	out->dense_service_ms = median(dense_service, REPETITIONS);
	out->signature_service_ms = median(service, REPETITIONS);
	return 0;
}

static int run(struct private_daemon *d, uint32_t rows, struct layer_result *out)
{
	struct run r = {0};
	const size_t chunk = (size_t)CHUNK * KV_HEADS * D;
	r.k = malloc(chunk * sizeof(*r.k));
	r.v = malloc(chunk * sizeof(*r.v));
	r.q = malloc((size_t)QUERIES * HEADS * D * sizeof(*r.q));
	int status = r.k && r.v && r.q ? 0 : MPIG_ENOMEM;
	if (!status) {
		fill_bf16(r.v, chunk, 7);
		status = model_queue(d->client, &r.queue);
	}
	if (!status)
		status = model_context(d->client, "bench", LAYERS, 0, &r.context);
	if (!status)
		status = ingest(&r, rows, out);
	if (!status) {
		private_daemon_settle(d);
		out->huge_share = private_daemon_huge(d);
		status = measure(&r, out);
	}
	if (status)
		fprintf(stderr, "magicpig-bench: %s (%s)\n", mpig_strerror(status), mpig_last_error(d->client));
	mpig_context_close(r.context);
	mpig_queue_destroy(r.queue);
	free(r.k);
	free(r.v);
	free(r.q);
	return status;
}

int bench_layer(const char *program, uint32_t rows, unsigned workers, struct layer_result *out)
{
	*out = (struct layer_result){.workers = workers};
	uint64_t pool = ((uint64_t)rows * LAYERS * KV_HEADS * (4 * D + 64) * 5 / 4 + (UINT64_C(256) << 20)) & ~UINT64_C(0x1fffff);
	struct private_daemon d;
	if (private_daemon_start(&d, program, workers, pool))
		return -1;
	int status = run(&d, rows, out);
	private_daemon_stop(&d);
	return status ? -1 : 0;
}
