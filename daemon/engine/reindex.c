#include "daemon/engine/reindex.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/asked.h"
#include "daemon/engine/indexing.h"

struct engine_reindex {
	struct job *job; // what units run in
	struct indexing indexing;
	struct reindex *store;
	struct seal_plan plan;
	bool planned;
	uint32_t strip, unit; // the next one
	_Atomic uint64_t done, total;
};

// ---- rows and queries of a strip as they are now -----------------------------------------------------------------------

struct strip_now {
	uint32_t n, near, kept;
	uint64_t asked, rows;
	float *keys; // [n + near][d_k]
	float rms[MPIG_MAX_HEAD_DIM];
	float *queries; // [ASKED_QUERIES][d_k]
};

static void decode_key(const struct layer *layer, const struct span *span, uint64_t token, float *key)
{
	float v[MPIG_MAX_HEAD_DIM];
	row_decode(&layer->rows, span->rows + (token - span->first) * layer->rows.stride, span->frame, key, v);
}

// Keys of tokens begin, begin + step, ... (n of them), which the view covers.
static void keys_at(const struct layer_view *view, uint32_t g, uint64_t begin, uint64_t step, uint32_t n, float *keys)
{
	const struct span *span = view->strip[g].spans;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t token = begin + i * step;
		while (token >= span->first + span->n)
			span++;
		decode_key(view->layer, span, token, keys + (size_t)i * view->layer->shape.d_k);
	}
}

static int look(struct context *c, const struct layer_view *view, uint32_t g, struct engine_scratch *s, struct strip_now *now)
{
	const struct layer *layer = view->layer;
	uint64_t rows = view->end, begin = rows > 2 * SINK_ROWS ? SINK_ROWS : 0, step = (rows - begin + FIT_ROWS - 1) / FIT_ROWS;
	uint32_t last = rows < NEAR_ROWS ? (uint32_t)rows : NEAR_ROWS, d_k = layer->shape.d_k;
	now->n = (uint32_t)((rows - begin + step - 1) / step);
	now->near = (uint32_t)begin + last;
	now->rows = rows;
	now->keys = scratch_get(s, (size_t)(now->n + now->near + ASKED_QUERIES) * d_k * sizeof(float));
	if (!now->keys)
		return MPIG_ENOMEM;
	now->queries = now->keys + (size_t)(now->n + now->near) * d_k;
	float *near = now->keys + (size_t)now->n * d_k;
	keys_at(view, g, begin, step, now->n, now->keys);
	keys_at(view, g, 0, 1, (uint32_t)begin, near);
	keys_at(view, g, rows - last, 1, last, near + begin * d_k);
	now->asked = asked_read(c, layer, layer->first_strip + g, now->rms, now->queries, &now->kept);
	return 0;
}

// ---- drift -----------------------------------------------------------------------------------------------------------

// The variance of a logit's noise but for factors that do not depend on the parameters.
static double noise(const struct strip_now *now, uint32_t d_k, const float *mu, const float *balance)
{
	double query = 0, key = 0;
	for (uint32_t d = 0; d < d_k; d++) {
		double q = (double)now->rms[d] / (double)balance[d], square = 0;
		for (uint32_t i = 0; i < now->n; i++) {
			double x = ((double)now->keys[(size_t)i * d_k + d] - (double)mu[d]) * (double)balance[d];
			square += x * x;
		}
		query += q * q;
		key += square / now->n;
	}
	return query * key;
}

static int layer_drift(const struct kernels *k, struct context *c, const struct layer_view *view, struct engine_scratch *s,
                       double *sum, uint32_t *strips)
{
	const struct layer *layer = view->layer;
	float mu[MPIG_MAX_HEAD_DIM], balance[MPIG_MAX_HEAD_DIM];
	for (uint32_t g = 0; g < layer->shape.kv_heads; g++) {
		const struct strip_params *now = &view->strip[g].params;
		struct strip_now strip;
		if (!now->mu || !now->bits)
			continue;
		if (look(c, view, g, s, &strip))
			return MPIG_ENOMEM;
		if (strip.asked < DRIFT_QUERIES)
			continue;
		sig_fit(k, strip.keys, strip.n, strip.rms, 1, layer->shape.d_k, mu, balance);
		double best = noise(&strip, layer->shape.d_k, mu, balance);
		if (best > 0) {
			*sum += noise(&strip, layer->shape.d_k, now->mu, now->balance) / best;
			++*strips;
		}
	}
	return 0;
}

int engine_drift(struct engine *e, struct context *c, struct engine_scratch *scratch, double *drift, char *why)
{
	double sum = 0;
	uint32_t strips = 0;
	for (uint32_t i = 0; i < context_layer_count(c); i++) {
		struct layer_view view;
		uint64_t rows = context_committed(c);
		if (!context_layer(c, i) || !rows)
			continue;
		int status = layer_view_get(e->store, c, i, 0, rows, &view);
		if (!status) {
			status = layer_drift(e->kernels, c, &view, scratch, &sum, &strips);
			layer_view_free(e->store, &view);
		}
		if (status && status != MPIG_ERANGE) { // truncated a moment ago: there is nothing to say of it
			strcpy(why, status == MPIG_ENOENT ? "the context was dropped" : "no memory to look at its keys");
			return status;
		}
	}
	*drift = strips ? sum / strips : 0;
	return 0;
}

// ---- indexing again --------------------------------------------------------------------------------------------------

// Without queries the balance stays as it is, and so does an automatic width; the mean follows the keys either way.
static int fit_layer(struct engine_reindex *x, const struct layer_view *view, struct engine_scratch *s)
{
	const struct layer *layer = view->layer;
	uint32_t d_k = layer->shape.d_k;
	for (uint32_t g = 0; g < layer->shape.kv_heads; g++) {
		uint32_t strip = layer->first_strip + g;
		const struct strip_params *old = &view->strip[g].params;
		struct strip_now now;
		float *mu = reindex_mu(x->store, strip), *balance = reindex_balance(x->store, strip);
		if (look(x->job->request.context, view, g, s, &now))
			return MPIG_ENOMEM;
		sig_fit(x->job->engine->kernels, now.keys, now.n, now.asked ? now.rms : NULL, now.asked ? 1 : 0, d_k, mu,
		        balance);
		if (!now.asked)
			memcpy(balance, old->balance, d_k * sizeof(float));
		struct fitted f = {.mu = mu,
		                   .balance = balance,
		                   .keys = now.keys,
		                   .queries = now.queries,
		                   .n = now.n,
		                   .near = now.near,
		                   .query_count = now.kept,
		                   .rows = now.rows};
		if (layer->wire.signature_bits == MPIG_BITS_AUTO)
			indexing_measure(x->job->engine, &x->indexing, strip, &f);
	}
	return 0;
}

static int fit(struct engine_reindex *x, struct engine_scratch *s, char *why)
{
	struct context *c = x->job->request.context;
	uint8_t *bits = reindex_bits(x->store);
	uint64_t rows = context_committed(c);
	int status = rows ? 0 : MPIG_ENOTSUP;
	for (uint32_t i = 0; i < context_layer_count(c) && !status; i++) {
		struct layer_view view;
		if (!context_layer(c, i))
			continue;
		status = layer_view_get(x->job->engine->store, c, i, 0, rows, &view);
		if (!status) {
			status = fit_layer(x, &view, s);
			layer_view_free(x->job->engine->store, &view);
		}
	}
	if (status) {
		strcpy(why, status == MPIG_ENOTSUP  ? "it holds no tokens"
		            : status == MPIG_ENOENT ? "the context was dropped"
		            : status == MPIG_ERANGE ? "it was truncated meanwhile"
		                                    : "no memory to fit its parameters");
		return status;
	}
	indexing_widths(x->job, &x->indexing, bits);
	for (uint32_t strip = 0; strip < x->indexing.strips; strip++) {
		float rms[MPIG_MAX_HEAD_DIM], queries[ASKED_QUERIES * MPIG_MAX_HEAD_DIM];
		const struct layer *layer = x->indexing.layer_of[strip];
		uint32_t kept;
		if (layer->wire.signature_bits == MPIG_BITS_AUTO && !asked_read(c, layer, strip, rms, queries, &kept))
			bits[strip] = (uint8_t)context_strip_bits(c, strip);
	}
	return 0;
}

int engine_reindex_begin(struct engine *e, struct context *c, struct engine_scratch *scratch, struct engine_reindex **out,
                         char *why)
{
	struct engine_reindex *x = calloc(1, sizeof(*x));
	if (!x || !(x->job = job_new(e))) {
		free(x);
		strcpy(why, "no memory to index a context again");
		return MPIG_ENOMEM;
	}
	x->job->request.context = c;
	context_ref(c);
	int status = indexing_init(x->job, &x->indexing);
	if (status)
		strcpy(why, x->job->result.why);
	if (!status)
		status = reindex_begin(e->store, c, &x->store, why);
	if (!status)
		status = fit(x, scratch, why);
	if (status) {
		engine_reindex_end(x);
		return status;
	}
	atomic_store(&x->total, context_committed(c));
	*out = x;
	return 0;
}

// The next segment, or the switch if there is none.
static int turn(struct engine_reindex *x, char *why)
{
	int status = reindex_next(x->store, engine_table_bytes, &x->plan, why);
	if (status < 0)
		return status;
	x->planned = status == 1;
	x->strip = x->unit = 0;
	if (x->planned)
		return REINDEX_MORE;
	status = reindex_switch(x->store, why);
	if (status == MPIG_EAGAIN)
		return REINDEX_WAIT;
	if (!status)
		asked_forget(x->job->request.context);
	return status < 0 ? status : status ? REINDEX_MORE : REINDEX_DONE;
}

int engine_reindex_step(struct engine_reindex *x, struct engine_scratch *scratch, char *why)
{
	if (!x->planned)
		return turn(x, why);
	bool last = x->unit + 1 == indexing_units(&x->plan);
	int status = indexing_unit(x->job, &x->indexing, &x->plan, x->strip, x->unit, scratch);
	if (!status && last)
		status = indexing_close(x->job, &x->indexing, &x->plan, x->strip, scratch);
	if (status) {
		strcpy(why, x->job->result.why);
		return status;
	}
	x->unit++;
	if (!last)
		return REINDEX_MORE;
	x->unit = 0;
	if (++x->strip < x->indexing.strips)
		return REINDEX_MORE;
	atomic_fetch_add(&x->done, x->plan.rows);
	reindex_done(x->store, &x->plan, true);
	x->planned = false;
	return REINDEX_MORE;
}

void engine_reindex_progress(const struct engine_reindex *x, uint64_t *done, uint64_t *total)
{
	uint64_t all = atomic_load(&x->total), so_far = atomic_load(&x->done);
	*total = all;
	*done = so_far < all ? so_far : all;
}

void engine_reindex_end(struct engine_reindex *x)
{
	if (!x)
		return;
	if (x->planned)
		reindex_done(x->store, &x->plan, false);
	reindex_end(x->store);
	job_destroy(x->job); // and its reference to the context
	free(x);
}
