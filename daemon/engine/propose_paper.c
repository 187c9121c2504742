// The units of the `paper` proposal (MagicPIG, arXiv 2410.16179) and of `crosspolytope`, which differ in the hash alone: a row is chosen
// iff it shares the query's bucket in at least two of L tables; log pi follows from its cosine. A unit is one segment of one KV head, because
// tables are built per segment; rows that no table covers (the open tail) are attended exactly, a span a unit.
#include <math.h>
#include <string.h>

#include "daemon/engine/attend.h"

static uint16_t *buckets(const struct attend *a, uint32_t g, uint32_t r)
{
	return a->bucket + ((size_t)g * a->queries + r) * a->layer->wire.paper_l;
}

static struct table_params strip_tables(const struct attend *a, uint32_t g)
{
	return hash_set_params(a->hashes, a->layer, a->view.strip[g].params.mu, a->view.strip[g].params.balance);
}

static int paper_pre(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	(void)unit;
	(void)s;
	struct attend *a = &j->attend;
	struct table_params params = strip_tables(a, g);
	if (params.mu) // else there are no tables yet, and no unit will look at the buckets
		table_hash(j->engine->kernels, &params, attend_query(a, g, 0), a->queries, buckets(a, g, 0));
	return 0;
}

// The rows of one span that one query chose, counted in the span.
struct chosen {
	uint32_t span, query, n;
	uint32_t *row;
};

struct lookup {
	struct table_params params;
	const struct table_view *table;
	const float *norms;         // of the table's rows
	float *query_norm, *centre; // of each query: |q / a|, q.mu
	size_t words;
	uint64_t *once, *twice; // bitmaps over the table's rows: once [words], zero between lookups; twice [queries][words]
	struct chosen chosen[2];
	float *neg_log_pi;
	float *scratch; // a span
	struct attn_partial *part;
};

static int lookup_init(struct job *j, uint32_t g, const struct table_view *t, struct lookup *l, struct engine_scratch *s)
{
	const struct attend *a = &j->attend;
	l->params = strip_tables(a, g);
	l->table = t;
	l->norms = table_norms(t->table, l->params.K, l->params.L, t->rows);
	l->words = ((size_t)t->rows + 63) / 64;
	for (struct carve c = {0};;) {
		l->once = carve(&c, l->words, 8);
		l->twice = carve(&c, l->words * a->queries, 8);
		l->query_norm = carve(&c, a->queries, 4);
		l->centre = carve(&c, a->queries, 4);
		l->chosen[0].row = carve(&c, BLOCK_MAX_ROWS, 4);
		l->chosen[1].row = carve(&c, BLOCK_MAX_ROWS, 4);
		l->neg_log_pi = carve(&c, BLOCK_MAX_ROWS, 4);
		l->scratch = carve(&c, BLOCK_MAX_ROWS, 4);
		l->part = carve(&c, 1, a->partial_bytes);
		if (c.base)
			break;
		uint8_t *base = scratch_get(s, c.used);
		if (!base)
			return job_fail(j, MPIG_ENOMEM, "no memory for a lookup of %u rows", t->rows);
		c = (struct carve){.base = base};
	}
	memset(l->once, 0, l->words * 8);
	memset(l->twice, 0, l->words * a->queries * 8);
	return 0;
}

// Marks the rows of every query, and notes what their cosines need of it.
static void look_up(struct job *j, uint32_t g, struct lookup *l)
{
	const struct attend *a = &j->attend;
	const struct table_view *t = l->table;
	uint32_t begin = a->view.begin > t->first ? (uint32_t)(a->view.begin - t->first) : 0;
	for (uint32_t r = 0; r < a->queries; r++) {
		const float *q = attend_query(a, g, r);
		double norm = 0, centre = 0;
		for (uint32_t d = 0; d < l->params.d_k; d++) {
			double x = l->params.balance ? (double)(q[d] / l->params.balance[d]) : (double)q[d];
			norm += x * x;
			centre += (double)q[d] * (double)l->params.mu[d];
		}
		l->query_norm[r] = (float)sqrt(norm);
		l->centre[r] = (float)centre;
		table_lookup(&l->params, t->table, t->rows, buckets(a, g, r), begin, attend_visible(a, r, t->first, t->rows),
		             l->once, l->twice + r * l->words);
	}
}

// Lists the rows of c's span and query, and asks the memory system for them.
static void list_rows(const struct attend *a, const struct span *span, const struct lookup *l, struct chosen *c)
{
	const struct row_format *f = &a->layer->rows;
	const uint64_t *marks = l->twice + c->query * l->words;
	uint32_t begin = (uint32_t)(span->first - l->table->first), end = begin + span->n;
	c->n = 0;
	for (uint32_t word = begin / 64; word <= (end - 1) / 64; word++)
		for (uint64_t left = marks[word]; left; left &= left - 1) {
			uint32_t at = word * 64 + (uint32_t)__builtin_ctzll(left);
			if (at < begin || at >= end)
				continue;
			const uint8_t *row = span->rows + (size_t)(at - begin) * f->stride;
			for (uint32_t line = 0; line < f->stride; line += 64)
				__builtin_prefetch(row + line, 0, 2);
			__builtin_prefetch(l->norms + at, 0, 2);
			c->row[c->n++] = at - begin;
		}
}

// Attends the listed rows: -log pi from the cosine of q / a and (k - mu) a, or of q and k - mu, whose product is q.(k - mu) either way.
// Only keys are centred, which shifts every logit alike.
static void attend_rows(struct job *j, uint32_t g, const struct span *span, const struct chosen *c, uint32_t unit,
                        struct lookup *l)
{
	struct attend *a = &j->attend;
	const struct row_format *f = &a->layer->rows;
	const float *norms = l->norms + (span->first - l->table->first);
	struct row_query query;
	attend_logits(a, g, c->query, span->first, span->frame, &query);
	float shift = query.head.q_centre - l->centre[c->query], *dot = l->scratch;
	j->engine->kernels->scores[f->type](f, span->rows, c->row, c->n, query.q, 1, dot, c->n);
	for (uint32_t i = 0; i < c->n; i++) {
		float size = l->query_norm[c->query] * norms[c->row[i]];
		l->neg_log_pi[i] = -table_pi_get(&a->hashes->pi, size > 0 ? (dot[i] + shift) / size : 0);
	}
	// Tables collide jointly, not independently: the Poisson error terms would be wrong, so none are reported.
	attn_scored(j->engine->kernels, f, span->rows, c->row, l->neg_log_pi, true, c->n, &query.head, l->part, l->scratch);
	attn_partial_merge(attend_partial(a, g, unit, c->query), l->part, f->d_v);
}

// Rows that at least one query chose: those a group fetches.
static uint64_t chosen_rows(const struct attend *a, const struct lookup *l)
{
	uint64_t rows = 0;
	for (size_t word = 0; word < l->words; word++) {
		uint64_t any = 0;
		for (uint32_t r = 0; r < a->queries; r++)
			any |= l->twice[r * l->words + word];
		rows += (uint64_t)__builtin_popcountll(any);
	}
	return rows;
}

static int table_unit(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct strip_view *strip = &a->view.strip[g];
	const struct table_view *t = &strip->tables[unit];
	uint32_t spans = t->span_end - t->span_begin;
	struct lookup l;
	int status = lookup_init(j, g, t, &l, s);
	if (status)
		return status;
	for (uint32_t r = 0; r < a->queries; r++)
		attn_partial_clear(attend_partial(a, g, unit, r), a->layer->shape.d_v);
	look_up(j, g, &l);

	// All queries of a span before the next span, so that a row which several want comes from memory once; and always one list
	// ahead, whose rows are on their way while another's are attended.
	uint64_t lists = (uint64_t)spans * a->queries;
	for (uint64_t i = 0; i <= lists; i++) {
		struct chosen *next = &l.chosen[i % 2], *now = &l.chosen[(i + 1) % 2];
		if (i < lists) {
			next->span = t->span_begin + (uint32_t)(i / a->queries);
			next->query = (uint32_t)(i % a->queries);
			list_rows(a, &strip->spans[next->span], &l, next);
		}
		if (i && now->n)
			attend_rows(j, g, &strip->spans[now->span], now, unit, &l);
	}
	// The lists are rows / 2^K ids in each of L tables, and each query has lists of its own; a row comes with its norm.
	uint64_t rows = chosen_rows(a, &l), list_bytes = (uint64_t)t->rows * l.params.L * sizeof(uint16_t) >> l.params.K;
	attend_count(a, g, rows, rows * (a->layer->rows.stride + sizeof(float)) + a->queries * list_bytes);
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
	if (layer->wire.paper_l && layer->wire.table_hash == MPIG_HASH_SIMHASH)
		return 0;
	return job_fail(j, MPIG_ENOTSUP, "layer %u has no SimHash tables (paper_l is %u, table_hash %u)", j->request.entry.layer,
	                layer->wire.paper_l, layer->wire.table_hash);
}

static int crosspolytope_check(struct job *j, const struct layer *layer)
{
	if (layer->wire.table_hash == MPIG_HASH_CROSSPOLYTOPE)
		return 0;
	return job_fail(j, MPIG_ENOTSUP, "layer %u has no cross-polytope tables (paper_l is %u, table_hash %u)",
	                j->request.entry.layer, layer->wire.paper_l, layer->wire.table_hash);
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
	a->hashes = hash_set_get(j->engine->hashes, context_seed(j->request.context), a->layer);
	if (!a->hashes)
		return job_fail(j, MPIG_ENOMEM, "no memory for the random numbers of %u hashes", a->layer->wire.paper_l);
	for (uint32_t i = 0; i < a->view.span_count; i++)
		if (a->view.strip->spans[i].table == UINT32_MAX)
			a->dense_span[a->dense_spans++] = i;
	return 0;
}

#define TABLE_OPS                                                                                                                \
	{                                                                                                                        \
		.pre = paper_pre, .main = paper_main, .merge = attend_merge_unit, .close = attend_close,                         \
		.finish = attend_finish, .release = attend_release                                                               \
	}
const struct proposal paper_proposal = {
	.ops = TABLE_OPS, .check = paper_check, .main_units = paper_main_units, .carve = paper_carve, .prepare = paper_prepare};
const struct proposal crosspolytope_proposal = {.ops = TABLE_OPS,
                                                .check = crosspolytope_check,
                                                .main_units = paper_main_units,
                                                .carve = paper_carve,
                                                .prepare = paper_prepare};
