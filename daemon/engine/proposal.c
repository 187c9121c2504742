// The units of an ATTEND: how each proposal chooses rows. All of them end in attn_selected or attn_dense, and leave one partial result
// per (unit, query).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/attend.h"

enum {
	DENSE_QUERIES = 16, // queries of one KV head that read a span's rows together
	PILOT_RUN = 64,     // rows of one stretch of the pilot
	PILOT_STRIDE = 16,  // one stretch in so many is looked at
	PILOT_LEAST = 2048, // ... unless the range is short
	PILOT_MOST = 16384, // ... or very long
};

// ---- dense -----------------------------------------------------------------------------------------------------------
int attend_span(struct job *j, uint32_t g, uint32_t unit, const struct span *span, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct layer *layer = a->layer;
	float *scratch = scratch_get(s, (size_t)DENSE_QUERIES * span->n * sizeof(float));
	if (!scratch)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u logits", span->n);
	uint32_t most = 0;
	for (uint32_t r0 = 0; r0 < a->queries; r0 += DENSE_QUERIES) {
		uint32_t heads = a->queries - r0 < DENSE_QUERIES ? a->queries - r0 : DENSE_QUERIES;
		struct attn_head h[DENSE_QUERIES];
		uint32_t limit[DENSE_QUERIES];
		for (uint32_t i = 0; i < heads; i++) {
			h[i] = attend_logits(a, g, r0 + i, span->first, span->centre);
			limit[i] = attend_visible(a, r0 + i, span->first, span->n);
			most = limit[i] > most ? limit[i] : most;
		}
		attn_dense(j->engine->kernels, &layer->rows, span->rows, span->n, attend_query(a, g, r0), h, heads, limit,
		           attend_partial(a, g, unit, r0), a->partial_bytes, scratch);
	}
	attend_count(a, most, (uint64_t)most * layer->rows.stride);
	return 0;
}

static int dense_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	return attend_span(j, g, unit, &j->attend.view.strip[g].spans[unit], s);
}

const struct job_ops dense_ops = {.main = dense_main, .close = attend_close, .finish = attend_finish, .release = attend_release};

// ---- a selection of rows of one block --------------------------------------------------------------------------------
// Positions are counted from `base` (token position `first`); ascending.
struct selection {
	const uint8_t *base;
	uint64_t first;
	const float *centre;
	const uint32_t *index;
	const float *neg_log_pi; // NULL: all certain
	uint32_t n;
};

static void attend_selection(struct job *j, uint32_t g, uint32_t r, const struct selection *sel, struct attn_partial *p,
                             float *scratch)
{
	struct attend *a = &j->attend;
	struct attn_head h = attend_logits(a, g, r, sel->first, sel->centre);
	attn_selected(j->engine->kernels, &a->layer->rows, sel->base, sel->index, sel->neg_log_pi, sel->n, attend_query(a, g, r),
	              &h, p, scratch);
}

// Rows wanted by at least one head count once.
struct row_set {
	uint64_t word[BLOCK_MAX_ROWS / 64 + 1];
};

static void row_set_add(struct row_set *set, const uint32_t *row, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		set->word[row[i] / 64] |= UINT64_C(1) << (row[i] % 64);
}

static uint64_t row_set_count(const struct row_set *set)
{
	uint64_t n = 0;
	for (size_t i = 0; i < sizeof(set->word) / sizeof(set->word[0]); i++)
		n += (uint64_t)__builtin_popcountll(set->word[i]);
	return n;
}

// ---- signature -------------------------------------------------------------------------------------------------------
static struct sig_query *signature_query(const struct attend *a, uint32_t g, uint32_t r)
{
	return a->sig + (size_t)g * a->queries + r;
}

static struct sig_params strip_sig_params(const struct attend *a, uint32_t g)
{
	const struct strip_params *p = &a->view.strip[g].params;
	return (struct sig_params){.d_k = a->layer->shape.d_k,
	                           .d_pad = a->layer->d_pad,
	                           .bits = a->layer->wire.signature_bits,
	                           .mu = p->mu,
	                           .balance = p->balance,
	                           .signs = a->signs};
}

// Rotates and quantises the group's queries (unless the client did), and sets what a scan needs of them.
static void sign_queries(struct job *j, uint32_t g)
{
	struct attend *a = &j->attend;
	struct sig_params params = strip_sig_params(a, g);
	float offset = params.bits == 1 ? .5f : params.bits == 2 ? 1.5f : 7.5f;
	float rotated[MPIG_MAX_HEAD_DIM];
	for (uint32_t r = 0; r < a->queries; r++) {
		struct sig_query *sq = signature_query(a, g, r);
		int8_t *signature = a->signature + ((size_t)g * a->queries + r) * params.d_pad;
		const float *q = attend_query(a, g, r);
		float scale = sq->factor, q_mu = 0;
		if (a->client_signature)
			for (uint32_t d = 0; d < params.d_k; d++)
				q_mu += q[d] * params.mu[d];
		else
			sig_encode_query(j->engine->kernels, &params, q, signature, &scale, &q_mu, rotated);
		int32_t sum = 0, square = 0;
		for (uint32_t d = 0; d < params.d_pad; d++) {
			sum += signature[d];
			square += signature[d] * signature[d];
		}
		// A verified answer takes each row for as large as the codes' noise may hide: that noise goes with g, as the estimate
		// does, so that it is a part of the zero point.
		float hidden = 0;
		if (a->delta > 0)
			hidden = (float)a->deviations * sig_noise(params.bits) * sqrtf((float)square);
		*sq = (struct sig_query){.q = signature,
		                         .factor = scale * a->layer->scale,
		                         .zero = offset * (float)sum - hidden,
		                         .bias = q_mu * a->layer->scale};
	}
}

// Estimates as the scan would see them: the soft cap bends the product before ALiBi is added.
static void bend(float *estimate, uint32_t n, float cap, float slope, float at_zero)
{
	for (uint32_t i = 0; i < n; i++)
		estimate[i] = cap * tanhf(estimate[i] / cap) + slope * (float)i + at_zero;
}

// A query against the run that begins at token position `first`.
static struct sig_query query_for_run(const struct attend *a, uint32_t g, uint32_t r, uint64_t first)
{
	struct sig_query sq = *signature_query(a, g, r);
	float slope = attend_alibi_slope(a, g, r);
	if (slope != 0 && a->layer->wire.softcap <= 0) {
		sq.slope = slope;
		sq.bias += slope * (float)((double)first - (double)(a->position + attend_token(a, r)));
	}
	return sq;
}

// Estimates of rows [row, row + n) of a block for up to SIG_MAX_HEADS queries of one token: out[i * ld].
static void estimate_run(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, const struct span *span, uint32_t row,
                         uint32_t n, float *out, size_t ld)
{
	struct attend *a = &j->attend;
	uint64_t first = span->first - span->block_row + row;
	struct sig_query sq[SIG_MAX_HEADS];
	for (uint32_t i = 0; i < heads; i++)
		sq[i] = query_for_run(a, g, r0 + i, first);
	const uint8_t *codes = span->codes + sig_code_bytes(a->layer->d_pad, a->layer->wire.signature_bits, row);
	j->engine->kernels->sig_estimate(codes, span->factors + row, n, a->layer->d_pad, a->layer->wire.signature_bits, sq, heads,
	                                 out, ld);
	if (a->layer->wire.softcap <= 0)
		return;
	for (uint32_t i = 0; i < heads; i++) {
		float slope = attend_alibi_slope(a, g, r0 + i);
		float at_zero = slope == 0 ? 0 : slope * (float)((double)first - (double)(a->position + attend_token(a, r0)));
		bend(out + i * ld, n, a->layer->wire.softcap, slope, at_zero);
	}
}

static uint64_t indexed_rows(const struct attend *a, uint32_t g, uint32_t r)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < a->view.span_count; i++) {
		const struct span *span = &a->view.strip[g].spans[i];
		if (span->codes)
			n += attend_visible(a, r, span->first, span->n);
	}
	return n;
}

static uint32_t pilot_stride(uint64_t rows)
{
	if (rows < (uint64_t)PILOT_LEAST * PILOT_STRIDE)
		return rows <= PILOT_LEAST ? 1 : (uint32_t)(rows / PILOT_LEAST);
	uint64_t stride = rows / PILOT_MOST;
	return stride > PILOT_STRIDE ? (uint32_t)stride : PILOT_STRIDE;
}

// Estimates of one stretch in `stride` (whole groups inside the visible rows), for up to SIG_MAX_HEADS queries of one token; returns
// how many rows.
static uint32_t pilot_estimates(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, uint32_t stride, float *out, size_t ld)
{
	struct attend *a = &j->attend;
	uint32_t n = 0;
	uint64_t stretch = 0;
	for (uint32_t i = 0; i < a->view.span_count; i++) {
		const struct span *span = &a->view.strip[g].spans[i];
		uint32_t end = span->block_row + attend_visible(a, r0, span->first, span->n);
		if (!span->codes)
			continue;
		for (uint32_t row = (span->block_row + SIG_GROUP - 1) & ~(SIG_GROUP - 1); row < end;
		     row += PILOT_RUN, stretch++) {
			uint32_t run = end - row < PILOT_RUN ? end - row : PILOT_RUN;
			if (stretch % stride)
				continue;
			estimate_run(j, g, r0, heads, span, row, run, out + n, ld);
			n += run;
		}
	}
	return n;
}

static float pilot_threshold(struct job *j, uint32_t g, uint32_t r, const float *estimate, uint32_t n, uint64_t rows, float *w)
{
	struct attend *a = &j->attend;
	const struct kernels *k = j->engine->kernels;
	double repeat = n ? (double)rows / n : 0;
	if (!(a->error_target > 0))
		return tau_for_budget(k, estimate, n, repeat, a->budget * (double)rows, w);
	size_t at = (size_t)g * a->queries + r;
	float window = a->window_lse ? a->window_lse[at] : -INFINITY;
	double floor = floor_rows(a->budget_floor, rows), cap = a->budget_cap * (double)rows;
	double eps = a->error_target / (a->delta > 0 ? a->deviations : sqrt((double)a->ratio[g]));
	float tau = tau_for_error(k, estimate, n, repeat, eps, window, floor, cap, w);
	if (a->delta > 0)
		a->lowest[at] = tau_for_budget(k, estimate, n, repeat, cap, w);
	else
		a->predicted[at] = (float)relative_variance(k, estimate, n, repeat, window, tau, w);
	return tau;
}

// One threshold per (strip, head), over all segments, before any random number is drawn.
static int signature_pre(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	(void)unit;
	struct attend *a = &j->attend;
	sign_queries(j, g);
	uint64_t longest = indexed_rows(a, g, a->queries - 1);
	uint32_t stride = pilot_stride(longest);
	size_t most = (size_t)(longest / stride + (uint64_t)PILOT_RUN * (a->view.span_count + 1));
	float *estimate = scratch_get(s, (SIG_MAX_HEADS + 1) * most * sizeof(float)), *w = estimate + SIG_MAX_HEADS * most;
	if (!estimate)
		return job_fail(j, MPIG_ENOMEM, "no memory for a pilot of %zu rows", most);
	uint32_t n = 0;
	for (uint32_t t = 0; t < a->tokens; t++)
		for (uint32_t i0 = 0; i0 < a->group_heads; i0 += SIG_MAX_HEADS) {
			uint32_t r0 = t * a->group_heads + i0;
			uint32_t heads = a->group_heads - i0 < SIG_MAX_HEADS ? a->group_heads - i0 : SIG_MAX_HEADS;
			uint64_t rows = indexed_rows(a, g, r0);
			n = pilot_estimates(j, g, r0, heads, stride, estimate, most);
			for (uint32_t i = 0; i < heads; i++)
				signature_query(a, g, r0 + i)->tau =
					pilot_threshold(j, g, r0 + i, estimate + i * most, n, rows, w);
		}
	attend_count(a, 0, n * a->layer->code_bytes_per_row);
	return 0;
}

// The scan of one span for up to SIG_MAX_HEADS queries of one token: rows with estimate + noise > tau.
static void scan_span(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, const struct span *span, uint32_t visible,
                      struct sig_hits *hits, float *estimates)
{
	struct attend *a = &j->attend;
	const struct layer *layer = a->layer;
	const struct kernels *k = j->engine->kernels;
	uint64_t block_first = span->first - span->block_row;
	const float *noise = j->engine->noise +
	                     noise_offset(a->seed, a->position + attend_token(a, r0), j->request.entry.layer, g, block_first);
	uint32_t begin = span->block_row, end = begin + visible;
	const uint8_t *rows = span->rows - (size_t)span->block_row * layer->rows.stride;
	uint32_t row_bytes = layer->rows.stride;
	if (layer->wire.softcap <= 0) {
		struct sig_query sq[SIG_MAX_HEADS];
		for (uint32_t i = 0; i < heads; i++)
			sq[i] = query_for_run(a, g, r0 + i, block_first);
		k->sig_select(span->codes, span->factors, begin, end, layer->d_pad, layer->wire.signature_bits, sq, heads, noise,
		              hits, rows, layer->rows.stride, row_bytes);
		return;
	}
	for (uint32_t i = 0; i < heads; i++) {
		float tau = signature_query(a, g, r0 + i)->tau;
		estimate_run(j, g, r0 + i, 1, span, 0, end, estimates, end);
		for (uint32_t row = begin; row < end; row++)
			if (estimates[row] + noise[row] > tau) {
				hits[i].row[hits[i].n] = row;
				hits[i].estimate[hits[i].n++] = estimates[row];
			}
	}
}

static int signature_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct span *span = &a->view.strip[g].spans[unit];
	if (!span->codes) // exact: verified answers have it from the first sample
		return a->delta > 0 && !a->measuring ? 0 : attend_span(j, g, unit, span, s);
	const uint32_t most = BLOCK_MAX_ROWS;
	uint8_t *memory = scratch_get(s, most * (SIG_MAX_HEADS * 8 + 16));
	if (!memory)
		return job_fail(j, MPIG_ENOMEM, "no memory for a scan");
	struct sig_hits hits[SIG_MAX_HEADS];
	for (uint32_t i = 0; i < SIG_MAX_HEADS; i++)
		hits[i] = (struct sig_hits){.row = (uint32_t *)memory + i * most,
		                            .estimate = (float *)memory + (SIG_MAX_HEADS + i) * most};
	float *scratch = (float *)memory + 2 * SIG_MAX_HEADS * most; // 3 x most for attn_selected, 1 x for estimates
	struct row_set set = {0};
	uint32_t scanned = 0;
	for (uint32_t t = 0; t < a->tokens; t++) {
		uint32_t visible = attend_visible(a, t * a->group_heads, span->first, span->n);
		scanned = visible > scanned ? visible : scanned;
		for (uint32_t i0 = 0; i0 < a->group_heads; i0 += SIG_MAX_HEADS) {
			uint32_t r0 = t * a->group_heads + i0;
			uint32_t heads = a->group_heads - i0 < SIG_MAX_HEADS ? a->group_heads - i0 : SIG_MAX_HEADS;
			for (uint32_t i = 0; i < heads; i++)
				hits[i].n = 0;
			if (visible)
				scan_span(j, g, r0, heads, span, visible, hits, scratch + 3 * most);
			for (uint32_t i = 0; i < heads; i++) {
				float tau = signature_query(a, g, r0 + i)->tau, *neg_log_pi = hits[i].estimate;
				for (uint32_t n = 0; n < hits[i].n; n++)
					neg_log_pi[n] = fmaxf(0, tau - hits[i].estimate[n]);
				struct heavy *heavy = a->delta > 0 ? attend_heavy(a, g, unit, r0 + i) : NULL;
				if (heavy && !a->measuring)
					hits[i].n = heavy_force(heavy, hits[i].row, neg_log_pi, hits[i].n);
				row_set_add(&set, hits[i].row, hits[i].n);
				struct selection sel = {.base = span->rows - (size_t)span->block_row * a->layer->rows.stride,
				                        .first = span->first - span->block_row,
				                        .centre = span->centre,
				                        .index = hits[i].row,
				                        .neg_log_pi = neg_log_pi,
				                        .n = hits[i].n};
				struct attn_partial *p = attend_partial(a, g, unit, r0 + i);
				attend_selection(j, g, r0 + i, &sel, p, scratch);
				if (heavy && a->measuring)
					heavy_note(heavy, sel.index, neg_log_pi, scratch, p->m > -INFINITY ? sel.n : 0,
					           p->m - tau);
			}
		}
	}
	uint64_t rows = row_set_count(&set);
	attend_count(a, rows, rows * a->layer->rows.stride + scanned * a->layer->code_bytes_per_row);
	return 0;
}

const struct job_ops signature_ops = {
	.pre = signature_pre, .main = signature_main, .close = attend_close, .finish = attend_finish, .release = attend_release};

const struct job_ops verified_ops = {
	.pre = signature_pre, .main = signature_main, .close = verify_close, .finish = verify_finish, .release = attend_release};

// ---- uniform ---------------------------------------------------------------------------------------------------------
static int uniform_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct span *span = &a->view.strip[g].spans[unit];
	const uint32_t most = BLOCK_MAX_ROWS;
	uint32_t *row = scratch_get(s, most * 5 * sizeof(float));
	if (!row)
		return job_fail(j, MPIG_ENOMEM, "no memory for a sample");
	float *neg_log_pi = (float *)row + most, *scratch = (float *)row + 2 * most, tau = -logf(a->budget);
	struct row_set set = {0};
	for (uint32_t r = 0; r < a->queries; r++) {
		const float *noise = j->engine->noise +
		                     noise_offset(a->seed, a->position + attend_token(a, r), j->request.entry.layer, g,
		                                  span->first - span->block_row) +
		                     span->block_row;
		uint32_t n = 0, visible = attend_visible(a, r, span->first, span->n);
		for (uint32_t i = 0; i < visible; i++)
			if (noise[i] > tau) {
				row[n] = i;
				neg_log_pi[n++] = tau;
			}
		row_set_add(&set, row, n);
		struct selection sel = {.base = span->rows,
		                        .first = span->first,
		                        .centre = span->centre,
		                        .index = row,
		                        .neg_log_pi = neg_log_pi,
		                        .n = n};
		attend_selection(j, g, r, &sel, attend_partial(a, g, unit, r), scratch);
	}
	uint64_t rows = row_set_count(&set);
	attend_count(a, rows, rows * a->layer->rows.stride);
	return 0;
}

const struct job_ops uniform_ops = {
	.main = uniform_main, .close = attend_close, .finish = attend_finish, .release = attend_release};

// ---- exact top-k -----------------------------------------------------------------------------------------------------
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

const struct job_ops topk_ops = {.pre = topk_pre,
                                 .turn = topk_turn,
                                 .main = topk_main,
                                 .close = attend_close,
                                 .finish = attend_finish,
                                 .release = attend_release};
