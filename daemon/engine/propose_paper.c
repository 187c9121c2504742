// The units of the `paper` proposal (MagicPIG, arXiv 2410.16179): a row is chosen iff it shares the query's bucket in at least two of
// L SimHash tables; log pi follows from its cosine. A unit is one segment of one KV head, because tables are built per segment;
// rows that no table covers (the open tail) are attended exactly, a span a unit.
#include <math.h>
#include <string.h>

#include "daemon/engine/attend.h"

static uint16_t *buckets(const struct attend *a, uint32_t g, uint32_t r)
{
	return a->bucket + ((size_t)g * a->queries + r) * a->layer->wire.paper_l;
}

static struct paper_params strip_paper_params(const struct attend *a, uint32_t g)
{
	return (struct paper_params){.d_k = a->layer->shape.d_k,
	                             .K = a->layer->wire.paper_k,
	                             .L = a->layer->wire.paper_l,
	                             .mu = a->view.strip[g].params.mu,
	                             .directions = a->directions->vector};
}

static int paper_pre(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	(void)unit;
	(void)s;
	struct attend *a = &j->attend;
	struct paper_params params = strip_paper_params(a, g);
	if (!params.mu)
		return 0; // no tables yet: no unit will look at the buckets
	for (uint32_t r = 0; r < a->queries; r++)
		paper_hash(j->engine->kernels, &params, attend_query(a, g, r), buckets(a, g, r));
	return 0;
}

// What a lookup needs, in the thread's scratch.
struct lookup {
	uint64_t *seen;  // 2 x words, zero between lookups
	uint32_t *row;   // rows of the segment
	uint32_t *index; // rows of one span
	float *neg_log_pi;
	float *scratch; // 3 x a span
	struct attn_partial *part;
};

static int lookup_init(struct job *j, uint32_t rows, struct lookup *l, struct engine_scratch *s)
{
	size_t words = (rows + 63) / 64;
	for (struct carve c = {0};;) {
		l->seen = carve(&c, 2 * words, 8);
		l->row = carve(&c, rows, 4);
		l->index = carve(&c, BLOCK_MAX_ROWS, 4);
		l->neg_log_pi = carve(&c, BLOCK_MAX_ROWS, 4);
		l->scratch = carve(&c, 3 * BLOCK_MAX_ROWS, 4);
		l->part = carve(&c, 1, j->attend.partial_bytes);
		if (c.base)
			break;
		uint8_t *base = scratch_get(s, c.used);
		if (!base)
			return job_fail(j, MPIG_ENOMEM, "no memory for a lookup of %u rows", rows);
		c = (struct carve){.base = base};
	}
	memset(l->seen, 0, 2 * words * 8);
	return 0;
}

// -log pi of the rows in l->index, from the cosine of q and k - mu. Only the keys are centred: that shifts every logit alike.
static void set_probabilities(struct job *j, uint32_t g, uint32_t r, const struct span *span, const float *norms, uint32_t n,
                              struct lookup *l)
{
	struct attend *a = &j->attend;
	const struct row_format *f = &a->layer->rows;
	const float *q = attend_query(a, g, r), *mu = a->view.strip[g].params.mu;
	float q_mu = 0, q_centre = 0, q_norm = 0, *dot = l->scratch;
	for (uint32_t d = 0; d < f->d_k; d++) {
		q_mu += q[d] * mu[d];
		q_norm += q[d] * q[d];
		q_centre += span->centre ? q[d] * span->centre[d] : 0;
	}
	q_norm = sqrtf(q_norm);
	j->engine->kernels->scores[f->type](f, span->rows, l->index, n, q, 1, dot, n);
	for (uint32_t i = 0; i < n; i++) {
		float size = q_norm * norms[l->index[i]];
		l->neg_log_pi[i] = -paper_pi_get(&a->directions->pi, size > 0 ? (dot[i] + q_centre - q_mu) / size : 0);
	}
}

static int table_unit(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct strip_view *strip = &a->view.strip[g];
	const struct table_view *t = &strip->tables[unit];
	const struct layer *layer = a->layer;
	struct paper_params params = strip_paper_params(a, g);
	const float *norms = paper_norms(t->table, params.K, params.L, t->rows);
	struct lookup l;
	int status = lookup_init(j, t->rows, &l, s);
	if (status)
		return status;
	uint64_t rows_read = 0;
	uint32_t begin = a->view.begin > t->first ? (uint32_t)(a->view.begin - t->first) : 0;
	for (uint32_t r = 0; r < a->queries; r++) {
		struct attn_partial *total = attend_partial(a, g, unit, r);
		attn_partial_clear(total, layer->shape.d_v);
		uint32_t end = attend_visible(a, r, t->first, t->rows), n = 0, at = 0;
		if (end > begin)
			n = paper_lookup(&params, t->table, t->rows, buckets(a, g, r), begin, end, l.seen, l.row);
		for (uint32_t i = t->span_begin; i < t->span_end && at < n; i++) {
			const struct span *span = &strip->spans[i];
			uint32_t offset = (uint32_t)(span->first - t->first), m = 0;
			while (at < n && l.row[at] - offset < span->n)
				l.index[m++] = l.row[at++] - offset;
			if (!m)
				continue;
			set_probabilities(j, g, r, span, norms + offset, m, &l);
			struct attn_head h = attend_logits(a, g, r, span->first, span->centre);
			attn_selected(j->engine->kernels, &layer->rows, span->rows, l.index, l.neg_log_pi, m,
			              attend_query(a, g, r), &h, l.part, l.scratch);
			attn_partial_merge(total, l.part, layer->shape.d_v);
		}
		// Tables collide jointly, not independently: the Poisson error terms would be wrong, so none are reported.
		total->a = total->b2 = 0;
		memset(attn_partial_bv(total, layer->shape.d_v), 0, layer->shape.d_v * sizeof(float));
		rows_read += n;
	}
	// Rows are fetched per head here; the lists themselves are rows / 2^K ids in each of L tables.
	uint64_t list_bytes = (uint64_t)t->rows * params.L * sizeof(uint16_t) >> params.K;
	attend_count(a, rows_read, rows_read * layer->rows.stride + a->queries * list_bytes);
	return 0;
}

static int paper_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	if (unit < a->view.table_count)
		return table_unit(j, g, unit, s);
	return attend_span(j, g, unit, &a->view.strip[g].spans[a->dense_span[unit - a->view.table_count]], s);
}

static int paper_check(struct job *j, const struct layer *layer)
{
	if (layer->wire.paper_l)
		return 0;
	return job_fail(j, MPIG_ENOTSUP, "layer %u has no SimHash tables (paper_l is 0)", j->request.entry.layer);
}

// A table is a unit; spans of the view that no table covers are units of their own after the tables.
static uint32_t paper_main_units(const struct attend *a)
{
	uint32_t n = a->view.table_count;
	for (uint32_t i = 0; i < a->view.span_count; i++)
		n += a->view.strip->spans[i].table == UINT32_MAX;
	return n;
}

static void paper_carve(struct job *j, struct carve *c)
{
	struct attend *a = &j->attend;
	uint64_t all = (uint64_t)a->layer->shape.kv_heads * a->queries;
	a->bucket = carve(c, all, a->layer->wire.paper_l * sizeof(uint16_t));
	a->dense_span = carve(c, a->view.span_count, sizeof(uint32_t));
}

static int paper_prepare(struct job *j)
{
	struct attend *a = &j->attend;
	const struct mpig_wire_layer *w = &a->layer->wire;
	a->directions = directions_get(j->engine->directions, context_seed(j->request.context), a->layer->shape.d_k, w->paper_k,
	                               w->paper_l);
	if (!a->directions)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u x %u hash directions", w->paper_l, w->paper_k);
	for (uint32_t i = 0; i < a->view.span_count; i++)
		if (a->view.strip->spans[i].table == UINT32_MAX)
			a->dense_span[a->dense_spans++] = i;
	return 0;
}

const struct proposal paper_proposal = {
	.ops = {.pre = paper_pre, .main = paper_main, .close = attend_close, .finish = attend_finish, .release = attend_release},
	.check = paper_check,
	.main_units = paper_main_units,
	.carve = paper_carve,
	.prepare = paper_prepare};
