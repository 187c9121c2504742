#include "daemon/engine/ranked.h"

#include <math.h>
#include <string.h>

#include "daemon/engine/pilot.h"
#include "daemon/engine/selection.h"

static float *scores_of(const struct attend *a, uint32_t g, uint32_t r, uint64_t first)
{
	return a->score + ((size_t)g * a->queries + r) * (a->view.end - a->view.begin) + (first - a->view.begin);
}

// Spans without codes have no estimates: they are attended whole, outside the budget.
static bool is_ranked(const struct attend *a, const struct span *span)
{
	return !a->how->estimates || span->codes;
}

static uint64_t ranked_rows(const struct attend *a, uint32_t g, uint32_t r)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < a->view.span_count; i++) {
		const struct span *span = &a->view.strip[g].spans[i];
		n += is_ranked(a, span) ? attend_visible(a, r, span->first, span->n) : 0;
	}
	return n;
}

uint32_t ranked_spans(const struct attend *a)
{
	return a->main_units;
}

void ranked_carve(struct job *j, struct carve *c)
{
	struct attend *a = &j->attend;
	uint64_t all = (uint64_t)a->layer->shape.kv_heads * a->queries;
	a->score = carve(c, all * (a->view.end - a->view.begin), sizeof(float));
	a->cut = carve(c, all, sizeof(struct cut));
	a->rest = carve(c, all, sizeof(float));
}

void ranked_codes_carve(struct job *j, struct carve *c)
{
	signature_carve(j, c);
	ranked_carve(j, c);
}

int ranked_scores(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	(void)s;
	struct attend *a = &j->attend;
	if (unit >= a->view.span_count)
		return 0;
	const struct span *span = &a->view.strip[g].spans[unit];
	const struct layer *layer = a->layer;
	for (uint32_t r = 0; r < a->queries; r++) {
		float *score = scores_of(a, g, r, span->first);
		struct row_query query;
		attend_logits(a, g, r, span->first, span->frame, &query);
		j->engine->kernels->scores[layer->rows.type](&layer->rows, span->rows, NULL, span->n, query.q, 1, score, span->n);
		struct attn_head h = query.head;
		for (uint32_t i = 0; i < span->n; i++) {
			float logit = (score[i] + h.q_centre) * h.scale;
			if (h.softcap > 0)
				logit = h.softcap * tanhf(logit / h.softcap);
			score[i] = logit + h.alibi_slope * ((float)i + h.alibi_base);
		}
	}
	attend_count(a, g, 0, (uint64_t)span->n * layer->rows.stride / 2);
	return 0;
}

// Codes are read in whole groups, so that rows before the span are estimated too where it begins inside one.
static void estimate_span(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, const struct span *span, float *estimate)
{
	struct attend *a = &j->attend;
	uint32_t from = span->block_row & ~(SIG_GROUP - 1u), before = span->block_row - from;
	const size_t ld = BLOCK_MAX_ROWS;
	estimate_run(j, g, r0, heads, span, from, before + span->n, estimate, ld);
	for (uint32_t i = 0; i < heads; i++)
		memcpy(scores_of(a, g, r0 + i, span->first), estimate + i * ld + before, span->n * sizeof(float));
}

int ranked_estimates(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	(void)unit;
	struct attend *a = &j->attend;
	sign_queries(j, g, 0, j->attend.queries);
	const uint32_t batch = signature_batch(a);
	float *estimate = scratch_get(s, (size_t)batch * BLOCK_MAX_ROWS * sizeof(float));
	if (!estimate)
		return job_fail(j, MPIG_ENOMEM, "no memory for estimates");
	for (uint32_t u = 0; u < a->view.span_count; u++) {
		const struct span *span = &a->view.strip[g].spans[u];
		for (uint32_t r = 0; !span->codes && r < a->queries; r++)
			for (uint32_t i = 0; i < span->n; i++)
				scores_of(a, g, r, span->first)[i] = -INFINITY;
		if (!span->codes)
			continue;
		for (uint32_t t = 0; t < a->tokens; t++)
			for (uint32_t i = 0; i < a->group_heads; i += batch) {
				uint32_t left = a->group_heads - i;
				estimate_span(j, g, t * a->group_heads + i, left < batch ? left : batch, span, estimate);
			}
		attend_count(a, g, 0, (uint64_t)span->n * attend_code_bytes(a, g));
	}
	return 0;
}

int ranked_turn(struct job *j, uint32_t g, struct engine_scratch *s)
{
	(void)s;
	struct attend *a = &j->attend;
	for (uint32_t r = 0; r < a->queries; r++) {
		uint64_t n = ranked_rows(a, g, r), visible = attend_visible_total(a, r);
		if (visible > a->view.end - a->view.begin)
			visible = a->view.end - a->view.begin;
		uint64_t rows = (uint64_t)ceil(a->budget * (double)n * (1 - 1e-6)); // .05f is a little more than .05
		uint64_t k = a->how->draws_rest ? rows / 2 : rows; // one row alone is drawn: the mass stays unbiased
		size_t at = (size_t)g * a->queries + r;
		a->cut[at] = cut_largest(scores_of(a, g, r, a->view.begin), visible, k);
		a->rest[at] = rows > k ? -logf((float)((double)(rows - k) / (double)(n - k))) : INFINITY;
	}
	return 0;
}

// Rows of a span for one query: those above the cut, and what is drawn of the others. Returns how many.
static uint32_t choose(const struct attend *a, uint32_t g, uint32_t r, const struct span *span, const float *noise, uint32_t *row,
                       float *neg_log_pi)
{
	const struct cut *cut = &a->cut[(size_t)g * a->queries + r];
	const float *score = scores_of(a, g, r, span->first), rest = a->rest[(size_t)g * a->queries + r];
	uint64_t offset = span->first - a->view.begin;
	uint32_t n = 0, visible = attend_visible(a, r, span->first, span->n);
	for (uint32_t i = 0; i < visible; i++) {
		bool heavy = score[i] > cut->value || (score[i] == cut->value && offset + i < cut->end);
		if (!heavy && !(noise[i] > rest))
			continue;
		row[n] = i;
		neg_log_pi[n++] = heavy ? 0 : rest;
	}
	return n;
}

int ranked_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct span *span = &a->view.strip[g].spans[unit];
	if (!is_ranked(a, span))
		return attend_span(j, g, unit, span, s);
	uint32_t *row = scratch_get(s, BLOCK_MAX_ROWS * 5 * sizeof(float));
	if (!row)
		return job_fail(j, MPIG_ENOMEM, "no memory for a selection");
	float *neg_log_pi = (float *)row + BLOCK_MAX_ROWS, *scratch = neg_log_pi + BLOCK_MAX_ROWS;
	struct row_set set = {0};
	for (uint32_t r = 0; r < a->queries; r++) {
		const float *noise = j->engine->noise +
		                     noise_offset(a->seed, a->position + attend_token(a, r), j->request.entry.layer, g,
		                                  span->first - span->block_row) +
		                     span->block_row;
		uint32_t n = choose(a, g, r, span, noise, row, neg_log_pi);
		bool drawn = a->rest[(size_t)g * a->queries + r] < INFINITY;
		row_set_add(&set, row, n);
		struct selection sel = {.base = span->rows,
		                        .first = span->first,
		                        .frame = span->frame,
		                        .index = row,
		                        .neg_log_pi = drawn ? neg_log_pi : NULL,
		                        .n = n};
		attend_selection(j, g, r, &sel, attend_partial(a, g, unit, r), scratch);
	}
	uint64_t rows = row_set_count(&set);
	attend_count(a, g, rows, rows * a->layer->rows.stride);
	return 0;
}
