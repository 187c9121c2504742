// COMMIT, and the sealing of segments it may bring: parameters are fitted, rows get their signatures and tables, and the
// store publishes the lot. One group per strip; a round per segment.
#include <stdlib.h>
#include <string.h>

#include "daemon/base/probe.h"
#include "daemon/engine/job.h"
#include "daemon/engine/recent.h"

enum {
	SINK_ROWS = 4,      // attention sinks are outliers: they are left out of the mean
	FIT_ROWS = 4096,    // rows that a fit looks at, evenly spread
	ENCODE_ROWS = 4096, // rows of one unit
};

uint64_t engine_table_bytes(const struct layer *layer, uint32_t rows)
{
	return layer->wire.paper_l ? table_bytes(layer->wire.paper_k, layer->wire.paper_l, rows) : 0;
}

static const float *signs_of(const struct commit *c, const struct layer *layer)
{
	return c->signs[layer->d_pad == 64 ? 0 : layer->d_pad == 128 ? 1 : 2];
}

// Keys [begin, begin + n * step) of a strip, every step-th, as fp32.
static void decode_keys(const struct commit *c, uint32_t strip, uint32_t begin, uint32_t n, uint32_t step, float *keys)
{
	struct seal_plan *plan = (struct seal_plan *)&c->plan;
	const struct layer *layer = c->layer_of[strip];
	const float *frame = plan->frame(plan, strip);
	uint32_t d_k = layer->shape.d_k, known = 0, first = 0;
	const uint8_t *rows = NULL;
	float v[MPIG_MAX_HEAD_DIM];
	for (uint32_t i = 0; i < n; i++) {
		uint32_t row = begin + i * step;
		if (!rows || row - first >= known) {
			first = row;
			rows = plan->rows_at(plan, strip, row, &known);
		}
		row_decode(&layer->rows, rows + (size_t)(row - first) * layer->rows.stride, frame, keys + (size_t)i * d_k, v);
	}
}

// Mean and balance of one strip.
static int fit_strip(struct job *j, uint32_t strip, uint32_t unit, struct engine_scratch *s)
{
	(void)unit;
	struct commit *c = &j->commit;
	struct seal_plan *plan = &c->plan;
	if (!plan->needs_params)
		return 0;
	uint32_t d_k = c->layer_of[strip]->shape.d_k;
	uint32_t begin = plan->first == 0 && plan->rows > 2 * SINK_ROWS ? SINK_ROWS : 0;
	uint32_t rows = plan->rows - begin, step = (rows + FIT_ROWS - 1) / FIT_ROWS, n = (rows + step - 1) / step;
	float *keys = scratch_get(s, (size_t)n * d_k * sizeof(float));
	if (!keys)
		return job_fail(j, MPIG_ENOMEM, "no memory to fit %u rows", n);
	decode_keys(c, strip, begin, n, step, keys);
	const float *rms = recent_rms(j->request.context, strip);
	sig_fit(keys, n, rms, rms ? 1 : 0, d_k, plan->mu(plan, strip), plan->balance(plan, strip));
	return 0;
}

static int encode_chunk(struct job *j, uint32_t strip, uint32_t begin, struct engine_scratch *s)
{
	struct commit *c = &j->commit;
	struct seal_plan *plan = &c->plan;
	const struct layer *layer = c->layer_of[strip];
	if (!plan->needs_codes || !layer->wire.signature_bits)
		return 0;
	uint32_t end = plan->rows - begin < ENCODE_ROWS ? plan->rows : begin + ENCODE_ROWS, d_k = layer->shape.d_k;
	float *keys = scratch_get(s, ((size_t)(end - begin) * d_k + MPIG_MAX_HEAD_DIM) * sizeof(float));
	if (!keys)
		return job_fail(j, MPIG_ENOMEM, "no memory to sign %u rows", end - begin);
	float *rotated = keys + (size_t)(end - begin) * d_k;
	decode_keys(c, strip, begin, end - begin, 1, keys);
	struct sig_params params = {.d_k = d_k,
	                            .d_pad = layer->d_pad,
	                            .bits = layer->wire.signature_bits,
	                            .mu = plan->mu(plan, strip),
	                            .balance = plan->balance(plan, strip),
	                            .signs = signs_of(c, layer)};
	for (uint32_t row = begin; row < end;) {
		uint16_t *factors;
		uint32_t block_row, n;
		uint8_t *codes = plan->codes(plan, strip, row, &factors, &block_row, &n);
		for (uint32_t i = 0; i < n && row < end; i++, row++)
			sig_encode(j->engine->kernels, &params, keys + (size_t)(row - begin) * d_k, codes, factors, block_row + i,
			           rotated);
	}
	return 0;
}

static int build_table(struct job *j, uint32_t strip, struct engine_scratch *s)
{
	struct commit *c = &j->commit;
	struct seal_plan *plan = &c->plan;
	const struct layer *layer = c->layer_of[strip];
	if (!plan->needs_tables || !layer->wire.paper_l)
		return 0;
	struct hash_set *set = hash_set_get(j->engine->hashes, context_seed(j->request.context), layer);
	size_t key_bytes = (size_t)plan->rows * layer->shape.d_k * sizeof(float);
	float *keys = set ? scratch_get(s, key_bytes + (size_t)plan->rows * set->params.L * sizeof(uint16_t)) : NULL;
	if (!keys) {
		hash_set_put(j->engine->hashes, set);
		return job_fail(j, MPIG_ENOMEM, "no memory for the tables of %u rows", plan->rows);
	}
	decode_keys(c, strip, 0, plan->rows, 1, keys);
	struct table_params params = hash_set_params(set, layer, plan->mu(plan, strip), plan->balance(plan, strip));
	table_build(j->engine->kernels, &params, keys, plan->rows, plan->table(plan, strip),
	            (uint16_t *)((uint8_t *)keys + key_bytes));
	hash_set_put(j->engine->hashes, set);
	return 0;
}

// Units of a strip: one per chunk of rows, then one for the table.
static int index_unit(struct job *j, uint32_t strip, uint32_t unit, struct engine_scratch *s)
{
	uint32_t chunks = (j->commit.plan.rows + ENCODE_ROWS - 1) / ENCODE_ROWS;
	return unit < chunks ? encode_chunk(j, strip, unit * ENCODE_ROWS, s) : build_table(j, strip, s);
}

// Begins the next segment's round; MPIG_EAGAIN if there is one, 0 if nothing is left to seal.
static int next_segment(struct job *j)
{
	struct commit *c = &j->commit;
	char why[MPIG_TEXT_BYTES] = "";
	int status = context_seal_begin(j->engine->store, j->request.context, engine_table_bytes, &c->plan, why);
	if (status)
		return job_fail(j, status, "the tokens are committed but not indexed: %s", why);
	if (!c->plan.rows)
		return 0;
	c->sealing = true;
	struct round *r = round_new(c->strips);
	if (!r) {
		context_seal_finish(j->engine->store, &c->plan, false);
		c->sealing = false;
		return job_fail(j, MPIG_ENOMEM, "the tokens are committed but not indexed: no memory for %u strips", c->strips);
	}
	for (uint32_t i = 0; i < c->strips; i++) {
		r->group[i].pre_n = 1;
		r->group[i].main_n = (c->plan.rows + ENCODE_ROWS - 1) / ENCODE_ROWS + 1;
	}
	round_publish(j, r);
	return MPIG_EAGAIN;
}

static int seal_finish(struct job *j, struct engine_scratch *s)
{
	(void)s;
	struct commit *c = &j->commit;
	bool good = !atomic_load(&j->failed);
	c->sealing = false;
	PROBE4(seal, context_id(j->request.context), c->plan.first, c->plan.rows, good);
	context_seal_finish(j->engine->store, &c->plan, good);
	int status = good ? next_segment(j) : 0;
	if (!status && good)
		recent_forget(j->request.context);
	return status;
}

static void seal_release(struct job *j)
{
	if (j->commit.sealing)
		context_seal_finish(j->engine->store, &j->commit.plan, false);
	j->commit.sealing = false;
}

static const struct job_ops seal_ops = {.pre = fit_strip, .main = index_unit, .finish = seal_finish, .release = seal_release};

static void carve_arrays(struct commit *c, struct carve *m)
{
	c->layer_of = carve(m, c->strips, sizeof(*c->layer_of));
	c->signs[0] = carve(m, 3 * 64, sizeof(float));
	c->signs[1] = carve(m, 3 * 128, sizeof(float));
	c->signs[2] = carve(m, 3 * 256, sizeof(float));
}

static int prepare_seal(struct job *j)
{
	struct commit *c = &j->commit;
	const struct context *context = j->request.context;
	for (uint32_t i = 0; i < context_layer_count(context); i++) {
		const struct layer *layer = context_layer(context, i);
		if (layer)
			c->strips = layer->first_strip + layer->shape.kv_heads;
	}
	struct carve m = {0};
	carve_arrays(c, &m);
	j->memory = memory_get(&j->engine->memory, m.used);
	if (!j->memory)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u strips", c->strips);
	m = (struct carve){.base = j->memory};
	carve_arrays(c, &m);
	for (uint32_t i = 0; i < context_layer_count(context); i++) {
		const struct layer *layer = context_layer(context, i);
		for (uint32_t g = 0; layer && g < layer->shape.kv_heads; g++)
			c->layer_of[layer->first_strip + g] = layer;
	}
	for (uint32_t i = 0; i < 3; i++)
		sig_signs(context_seed(context), 0, 0, 64u << i, c->signs[i]);
	return 0;
}

int commit_plan(struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	if (e->begin > MPIG_MAX_TOKENS || e->count > MPIG_MAX_TOKENS - e->begin)
		return job_fail(j, MPIG_ERANGE, "tokens %llu + %u are not inside 0..%llu", (unsigned long long)e->begin, e->count,
		                (unsigned long long)MPIG_MAX_TOKENS);
	if (e->count) {
		struct mpig_payload_layout layout = mpig_commit_layout(e->count);
		if (!j->request.payload_in || layout.bytes > j->request.slot_bytes)
			return job_fail(j, MPIG_EINVAL, "the payload needs %llu bytes, the slot has %llu",
			                (unsigned long long)layout.bytes, (unsigned long long)j->request.slot_bytes);
		uint32_t *tokens = malloc(e->count * sizeof(uint32_t));
		if (!tokens)
			return job_fail(j, MPIG_ENOMEM, "no memory for %u token ids", e->count);
		memcpy(tokens, j->request.payload_in + layout.tokens, e->count * sizeof(uint32_t));
		char why[MPIG_TEXT_BYTES] = "";
		int status = context_commit(j->engine->store, j->request.context, e->begin, e->count, tokens, why);
		free(tokens);
		if (status)
			return job_fail(j, status, "%s", why);
	}
	j->result.units = 1;
	if (!(e->flags & MPIG_SQE_SEAL) && !context_wants_seal(j->request.context))
		return 0;
	int status = prepare_seal(j);
	if (status || !(status = next_segment(j)))
		return status;
	if (status != MPIG_EAGAIN)
		return status;
	j->ops = &seal_ops;
	return 0;
}
