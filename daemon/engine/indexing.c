#include "daemon/engine/indexing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/recent.h"
#include "daemon/index/upper.h"
#include "daemon/store/format.h"

enum { ENCODE_ROWS = 4096 }; // rows of one unit

uint64_t engine_table_bytes(const struct layer *layer, uint32_t rows)
{
	return layer->wire.paper_l ? table_bytes(layer->wire.paper_k, layer->wire.paper_l, rows) : 0;
}

static const float *signs_of(const struct indexing *x, const struct layer *layer)
{
	return x->signs[layer->d_pad == 64 ? 0 : layer->d_pad == 128 ? 1 : 2];
}

// Keys [begin, begin + n * step) of a strip, every step-th, as fp32.
static void decode_keys(const struct kernels *k, const struct layer *layer, struct seal_plan *plan, uint32_t strip,
                        uint32_t begin, uint32_t n, uint32_t step, float *keys)
{
	const float *frame = plan->frame(plan, strip);
	uint32_t d_k = layer->shape.d_k, known = 0, first = 0;
	const uint8_t *rows = NULL;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t row = begin + i * step;
		if (!rows || row - first >= known) {
			first = row;
			rows = plan->rows_at(plan, strip, row, &known);
		}
		k->row_decode_key(&layer->rows, rows + (size_t)(row - first) * layer->rows.stride, frame, keys + (size_t)i * d_k);
	}
}

// ---- parameters ------------------------------------------------------------------------------------------------------

void indexing_measure(const struct engine *e, const struct indexing *x, uint32_t strip, const struct fitted *f)
{
	const struct layer *layer = x->layer_of[strip];
	double rows = (double)f->rows, share = (double)layer->wire.default_budget, *cost = x->cost[strip];
	struct sig_sample sample = {
		.params = {.d_k = layer->shape.d_k,
	                   .d_pad = layer->d_pad,
	                   .mu = f->mu,
	                   .balance = f->balance,
	                   .signs = signs_of(x, layer)},
		.keys = f->keys,
		.n = f->n,
		.near = f->near,
		.rows = rows,
		.queries = f->queries,
		.query_count = f->query_count,
		.scale = layer->scale,
		.softcap = layer->wire.softcap,
		.heads = layer->shape.query_heads / layer->shape.kv_heads,
		.row_bytes = layer->rows.stride,
		.eps = share > 0 ? 0 : (double)e->error_target,
		.floor_rows = floor_rows((double)e->budget_floor, f->rows),
		.cap_rows = (double)e->budget_cap * rows,
		.budget_rows = (share > 0 ? share : (double)e->default_budget) * rows,
	};
	if (!f->query_count || !sig_width_costs(e->kernels, &sample, cost))
		cost[0] = cost[1] = cost[2] = (double)NAN;
}

int indexing_fit(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, struct engine_scratch *s)
{
	const struct layer *layer = x->layer_of[strip];
	uint32_t d_k = layer->shape.d_k, begin = plan->first == 0 && plan->rows > 2 * SINK_ROWS ? SINK_ROWS : 0;
	uint32_t rows = plan->rows - begin, step = (rows + FIT_ROWS - 1) / FIT_ROWS, n = (rows + step - 1) / step;
	float *keys = scratch_get(s, (size_t)(n + SINK_ROWS + NEAR_ROWS) * d_k * sizeof(float));
	if (!keys)
		return job_fail(j, MPIG_ENOMEM, "no memory to fit %u rows", n);
	decode_keys(j->engine->kernels, layer, plan, strip, begin, n, step, keys);
	const float *rms = recent_rms(j->request.context, strip);
	sig_fit(j->engine->kernels, keys, n, rms, rms ? 1 : 0, d_k, plan->mu(plan, strip), plan->balance(plan, strip));
	if (layer->wire.signature_bits != MPIG_BITS_AUTO)
		return 0;
	uint32_t last = plan->rows < NEAR_ROWS ? plan->rows : NEAR_ROWS;
	float *near = keys + (size_t)n * d_k;
	decode_keys(j->engine->kernels, layer, plan, strip, 0, begin, 1, near);
	decode_keys(j->engine->kernels, layer, plan, strip, plan->rows - last, last, 1, near + (size_t)begin * d_k);
	struct fitted f = {.mu = plan->mu(plan, strip),
	                   .balance = plan->balance(plan, strip),
	                   .keys = keys,
	                   .n = n,
	                   .near = begin + last,
	                   .rows = plan->rows};
	f.queries = recent_queries(j->request.context, strip, d_k, &f.query_count);
	indexing_measure(j->engine, x, strip, &f);
	return 0;
}

void indexing_widths(const struct job *j, const struct indexing *x, uint8_t *bits)
{
	for (uint32_t i = 0; i < context_layer_count(j->request.context); i++) {
		const struct layer *layer = context_layer(j->request.context, i);
		if (layer && layer->wire.signature_bits == MPIG_BITS_AUTO)
			sig_choose_widths(x->cost + layer->first_strip, layer->shape.kv_heads, layer->d_pad,
			                  layer->wire.signature_bytes, bits + layer->first_strip);
	}
}

// ---- codes and tables ------------------------------------------------------------------------------------------------

// Keys that are decoded and signed while they are in the nearest cache.
enum { DECODE_ROWS = 64 };

// Of rows [row, row + n), which lie in a row in one block, codes too.
static void encode_run(const struct job *j, const struct sig_params *params, const struct layer *layer, struct seal_plan *plan,
                       uint32_t strip, uint32_t row, uint32_t n, float *keys)
{
	uint16_t *factors;
	uint32_t block_row, there;
	uint8_t *codes = plan->codes(plan, strip, row, &factors, &block_row, &there);
	if (layer->rows.type == ROW_BF16) {
		const uint8_t *rows = plan->rows_at(plan, strip, row, &there);
		sig_encode_bf16(j->engine->kernels, params, rows, layer->rows.stride, n, codes, factors, block_row);
		return;
	}
	decode_keys(j->engine->kernels, layer, plan, strip, row, n, 1, keys);
	sig_encode_rows(j->engine->kernels, params, keys, n, codes, factors, block_row);
}

static int encode_chunk(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, uint32_t begin,
                        struct engine_scratch *s)
{
	const struct layer *layer = x->layer_of[strip];
	if (!plan->needs_codes || !layer->wire.signature_bits)
		return 0;
	uint32_t end = plan->rows - begin < ENCODE_ROWS ? plan->rows : begin + ENCODE_ROWS, d_k = layer->shape.d_k;
	float *keys = scratch_get(s, DECODE_ROWS * (size_t)d_k * sizeof(float));
	if (!keys)
		return job_fail(j, MPIG_ENOMEM, "no memory to sign %u rows", end - begin);
	struct sig_params params = {.d_k = d_k,
	                            .d_pad = layer->d_pad,
	                            .bits = plan->bits(plan)[strip],
	                            .mu = plan->mu(plan, strip),
	                            .balance = plan->balance(plan, strip),
	                            .signs = signs_of(x, layer)};
	for (uint32_t row = begin, n; row < end; row += n) {
		plan->rows_at(plan, strip, row, &n); // to the end of its block, where its codes end as well
		n = n < end - row ? n : end - row;
		n = n < DECODE_ROWS ? n : DECODE_ROWS;
		encode_run(j, &params, layer, plan, strip, row, n, keys);
	}
	return 0;
}

static int build_table(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, struct engine_scratch *s)
{
	const struct layer *layer = x->layer_of[strip];
	if (!plan->needs_tables || !layer->wire.paper_l)
		return 0;
	struct hash_set *set = hash_set_get(j->engine->hashes, context_seed(j->request.context), layer);
	size_t key_bytes = (size_t)plan->rows * layer->shape.d_k * sizeof(float);
	float *keys = set ? scratch_get(s, key_bytes + (size_t)plan->rows * set->params.L * sizeof(uint16_t)) : NULL;
	if (!keys) {
		hash_set_put(j->engine->hashes, set);
		return job_fail(j, MPIG_ENOMEM, "no memory for the tables of %u rows", plan->rows);
	}
	decode_keys(j->engine->kernels, layer, plan, strip, 0, plan->rows, 1, keys);
	struct table_params params = hash_set_params(set, layer, plan->mu(plan, strip), plan->balance(plan, strip));
	table_build(j->engine->kernels, &params, keys, plan->rows, plan->table(plan, strip),
	            (uint16_t *)((uint8_t *)keys + key_bytes));
	hash_set_put(j->engine->hashes, set);
	return 0;
}

uint32_t indexing_units(const struct seal_plan *plan)
{
	return (plan->rows + ENCODE_ROWS - 1) / ENCODE_ROWS + 1;
}

int indexing_unit(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, uint32_t unit,
                  struct engine_scratch *s)
{
	return unit + 1 < indexing_units(plan) ? encode_chunk(j, x, plan, strip, unit * ENCODE_ROWS, s)
	                                       : build_table(j, x, plan, strip, s);
}

// ---- upper layers ----------------------------------------------------------------------------------------------------

// Once all rows of the strip have codes: the upper layer over them.
int indexing_close(struct job *j, const struct indexing *x, struct seal_plan *plan, uint32_t strip, struct engine_scratch *s)
{
	const struct layer *layer = x->layer_of[strip];
	void *memory = plan->needs_upper ? plan->upper(plan, strip) : NULL;
	if (!memory)
		return 0;
	uint32_t count = 0, most = plan->rows / BLOCK_MIN_ROWS + 1;
	size_t scratch_bytes = (upper_scratch_bytes(layer->d_pad, plan->rows) + 63) & ~(size_t)63;
	uint8_t *scratch = scratch_get(s, scratch_bytes + most * sizeof(struct sig_run));
	if (!scratch)
		return job_fail(j, MPIG_ENOMEM, "no memory for the upper layer of %u rows", plan->rows);
	struct sig_run *runs = (struct sig_run *)(void *)(scratch + scratch_bytes);
	for (uint32_t row = 0, n; row < plan->rows; row += n) {
		uint32_t block_row;
		uint16_t *factors;
		const uint8_t *codes = plan->codes(plan, strip, row, &factors, &block_row, &n);
		runs[count++] = (struct sig_run){codes, factors, n};
	}
	upper_build(j->engine->kernels, layer->d_pad, plan->bits(plan)[strip], runs, plan->rows, memory, scratch);
	return 0;
}

// ---- what all of it needs --------------------------------------------------------------------------------------------

static void carve_arrays(struct indexing *x, struct carve *m)
{
	x->layer_of = carve(m, x->strips, sizeof(*x->layer_of));
	x->cost = carve(m, x->strips, sizeof(*x->cost));
	for (uint32_t i = 0; i < 3; i++)
		x->signs[i] = carve(m, 3 * (64u << i), sizeof(float));
}

int indexing_init(struct job *j, struct indexing *x)
{
	const struct context *context = j->request.context;
	x->strips = context_strips(context);
	struct carve m = {0};
	carve_arrays(x, &m);
	j->memory = memory_get(&j->engine->memory, m.used);
	if (!j->memory)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u strips", x->strips);
	m = (struct carve){.base = j->memory};
	carve_arrays(x, &m);
	for (uint32_t i = 0; i < context_layer_count(context); i++) {
		const struct layer *layer = context_layer(context, i);
		for (uint32_t g = 0; layer && g < layer->shape.kv_heads; g++)
			x->layer_of[layer->first_strip + g] = layer;
	}
	for (uint32_t i = 0; i < 3; i++)
		sig_signs(context_seed(context), 0, 0, 64u << i, x->signs[i]);
	return 0;
}
