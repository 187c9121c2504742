// The units of `topk`: all logits, then the largest `budget` of them, exactly. An oracle to compare with: it reads every key.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/selection.h"

static float *topk_scores(const struct attend *a, uint32_t g, uint32_t r, uint64_t first)
{
	return a->score + ((size_t)g * a->queries + r) * (a->view.end - a->view.begin) + (first - a->view.begin);
}

static int topk_pre(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	(void)s;
	struct attend *a = &j->attend;
	if (unit >= a->view.span_count)
		return 0;
	const struct span *span = &a->view.strip[g].spans[unit];
	const struct layer *layer = a->layer;
	for (uint32_t r = 0; r < a->queries; r++) {
		float *score = topk_scores(a, g, r, span->first);
		j->engine->kernels->scores[layer->rows.type](&layer->rows, span->rows, NULL, span->n, attend_query(a, g, r), 1,
		                                             score, span->n);
		// What orders rows is the logit up to a monotone map per head, except for ALiBi.
		struct attn_head h = attend_logits(a, g, r, span->first, span->centre);
		for (uint32_t i = 0; i < span->n; i++) {
			float logit = (score[i] + h.q_centre) * h.scale;
			if (h.softcap > 0)
				logit = h.softcap * tanhf(logit / h.softcap);
			score[i] = logit + h.alibi_slope * ((float)i + h.alibi_base);
		}
	}
	attend_count(a, 0, (uint64_t)span->n * layer->rows.stride / 2);
	return 0;
}

static int descending(const void *x, const void *y)
{
	float a = *(const float *)x, b = *(const float *)y;
	return (a < b) - (a > b);
}

static int topk_turn(struct job *j, uint32_t g, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	for (uint32_t r = 0; r < a->queries; r++) {
		uint64_t n = attend_visible_total(a, r);
		uint64_t k = (uint64_t)ceil(a->budget * (double)n * (1 - 1e-6)); // .05f is a little more than .05
		if (n > a->view.end - a->view.begin)
			n = a->view.end - a->view.begin;
		float *threshold = &a->threshold[(size_t)g * a->queries + r];
		*threshold = INFINITY;
		if (!k)
			continue;
		float *sorted = scratch_get(s, n * sizeof(float));
		if (!sorted)
			return job_fail(j, MPIG_ENOMEM, "no memory to order %llu logits", (unsigned long long)n);
		memcpy(sorted, topk_scores(a, g, r, a->view.begin), n * sizeof(float));
		qsort(sorted, n, sizeof(float), descending);
		*threshold = sorted[(k < n ? k : n) - 1];
	}
	return 0;
}

static int topk_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct span *span = &a->view.strip[g].spans[unit];
	uint32_t *row = scratch_get(s, BLOCK_MAX_ROWS * 4 * sizeof(float));
	if (!row)
		return job_fail(j, MPIG_ENOMEM, "no memory for a selection");
	struct row_set set = {0};
	for (uint32_t r = 0; r < a->queries; r++) {
		const float *score = topk_scores(a, g, r, span->first);
		float threshold = a->threshold[(size_t)g * a->queries + r];
		uint32_t n = 0, visible = attend_visible(a, r, span->first, span->n);
		for (uint32_t i = 0; i < visible; i++)
			if (score[i] >= threshold)
				row[n++] = i;
		row_set_add(&set, row, n);
		struct selection sel = {.base = span->rows, .first = span->first, .centre = span->centre, .index = row, .n = n};
		attend_selection(j, g, r, &sel, attend_partial(a, g, unit, r), (float *)row + BLOCK_MAX_ROWS);
	}
	uint64_t rows = row_set_count(&set);
	attend_count(a, rows, rows * a->layer->rows.stride);
	return 0;
}

static uint32_t topk_pre_units(const struct attend *a)
{
	return a->main_units;
}

static void topk_carve(struct job *j, struct carve *c)
{
	struct attend *a = &j->attend;
	uint64_t all = (uint64_t)a->layer->shape.kv_heads * a->queries;
	a->score = carve(c, all * (a->view.end - a->view.begin), sizeof(float));
	a->threshold = carve(c, all, sizeof(float));
}

const struct proposal topk_proposal = {.ops = {.pre = topk_pre,
                                               .turn = topk_turn,
                                               .main = topk_main,
                                               .close = attend_close,
                                               .finish = attend_finish,
                                               .release = attend_release},
                                       .carve = topk_carve,
                                       .pre_units = topk_pre_units};
