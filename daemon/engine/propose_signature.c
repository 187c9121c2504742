// The units of `signature` (and of its verified form): a pilot sets one threshold per head from estimated logits, then each span is
// scanned for rows whose estimate plus noise passes it, and those are attended. Memory and the check of a request are here; the
// pilot is in pilot.c.
#include <math.h>
#include <string.h>

#include "daemon/engine/heads.h"
#include "daemon/engine/pilot.h"
#include "daemon/engine/ratio.h"
#include "daemon/engine/upper.h"

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
		k->sig_select(span->codes, span->factors, begin, end, layer->d_pad, a->view.strip[g].params.bits, sq, heads,
		              noise, hits, rows, layer->rows.stride, row_bytes);
		return;
	}
	uint32_t from = begin & ~(SIG_GROUP - 1);
	for (uint32_t i = 0; i < heads; i++) {
		float tau = signature_query(a, g, r0 + i)->tau;
		estimate_run(j, g, r0 + i, 1, span, from, end - from, estimates, end);
		for (uint32_t row = begin; row < end; row++)
			if (estimates[row - from] + noise[row] > tau) {
				hits[i].row[hits[i].n] = row;
				hits[i].estimate[hits[i].n++] = estimates[row - from];
			}
	}
}

// What a unit works with: hits of a scan, arrays for attention, and where its spans' partial results are put before they are merged.
struct unit_memory {
	struct sig_hits hits[SIG_MAX_HEADS];
	float *scratch; // 3 x BLOCK_MAX_ROWS for attn_selected, 1 x for estimates
	struct attn_partial *partial;
	void *upper;
};

static int unit_memory(struct job *j, struct engine_scratch *s, struct unit_memory *m)
{
	const struct attend *a = &j->attend;
	const uint32_t most = BLOCK_MAX_ROWS, batch = signature_batch(a);
	size_t scan = most * (batch * 8 + 16), upper = a->upper ? upper_scratch(a) : 0;
	uint8_t *memory = scratch_get(s, scan + a->partial_bytes + upper);
	if (!memory)
		return job_fail(j, MPIG_ENOMEM, "no memory for a scan");
	for (uint32_t i = 0; i < batch; i++)
		m->hits[i] =
			(struct sig_hits){.row = (uint32_t *)memory + i * most, .estimate = (float *)memory + (batch + i) * most};
	m->scratch = (float *)memory + 2 * batch * most;
	m->partial = (struct attn_partial *)(memory + scan);
	m->upper = memory + scan + a->partial_bytes;
	return 0;
}

// Scans a span for some queries of one token and attends what it found. merge: into partials that are there already.
static void signature_span(struct job *j, uint32_t g, uint32_t unit, uint32_t r0, uint32_t heads, const struct span *span,
                           struct unit_memory *m, bool merge, struct row_set *set)
{
	struct attend *a = &j->attend;
	uint32_t visible = attend_visible(a, r0, span->first, span->n);
	for (uint32_t i = 0; i < heads; i++)
		m->hits[i].n = 0;
	if (visible)
		scan_span(j, g, r0, heads, span, visible, m->hits, m->scratch + 3 * BLOCK_MAX_ROWS);
	for (uint32_t i = 0; i < heads; i++) {
		struct sig_hits *hits = &m->hits[i];
		float tau = signature_query(a, g, r0 + i)->tau, *neg_log_pi = hits->estimate;
		for (uint32_t n = 0; n < hits->n; n++)
			neg_log_pi[n] = fmaxf(0, tau - hits->estimate[n]);
		struct heavy *heavy = a->delta > 0 ? attend_heavy(a, g, unit, r0 + i) : NULL;
		if (heavy && !a->measuring)
			hits->n = heavy_force(heavy, hits->row, neg_log_pi, hits->n);
		row_set_add(set, hits->row, hits->n);
		struct selection sel = {.base = span->rows - (size_t)span->block_row * a->layer->rows.stride,
		                        .first = span->first - span->block_row,
		                        .frame = span->frame,
		                        .index = hits->row,
		                        .neg_log_pi = neg_log_pi,
		                        .n = hits->n};
		struct attn_partial *p = attend_partial(a, g, unit, r0 + i), *to = merge ? m->partial : p;
		attend_selection(j, g, r0 + i, &sel, to, m->scratch);
		if (heavy && a->measuring)
			heavy_note(heavy, sel.index, neg_log_pi, m->scratch, to->m > -INFINITY ? sel.n : 0, to->m - tau);
		if (merge)
			attn_partial_merge(p, to, a->layer->shape.d_v);
	}
}

// Every query of a unit's spans, which are scanned.
static void signature_spans(struct job *j, uint32_t g, uint32_t unit, struct unit_memory *m)
{
	struct attend *a = &j->attend;
	const uint32_t batch = signature_batch(a), begin = a->unit_span[unit], end = a->unit_span[unit + 1];
	const bool merge = end - begin > 1;
	for (uint32_t r = 0; merge && r < a->queries; r++)
		attn_partial_clear(attend_partial(a, g, unit, r), a->layer->shape.d_v);
	for (uint32_t s = begin; s < end; s++) {
		const struct span *span = &a->view.strip[g].spans[s];
		struct row_set set = {0};
		uint32_t scanned = 0;
		for (uint32_t t = 0; t < a->tokens; t++) {
			uint32_t visible = attend_visible(a, t * a->group_heads, span->first, span->n);
			scanned = visible > scanned ? visible : scanned;
			for (uint32_t i0 = 0; i0 < a->group_heads; i0 += batch) {
				uint32_t heads = a->group_heads - i0 < batch ? a->group_heads - i0 : batch;
				signature_span(j, g, unit, t * a->group_heads + i0, heads, span, m, merge, &set);
			}
		}
		uint64_t rows = row_set_count(&set);
		attend_count(a, g, rows, rows * a->layer->rows.stride + scanned * attend_code_bytes(a, g));
	}
}

// A segment whose upper layer tells this batch of queries nothing.
static void signature_segment(struct job *j, uint32_t g, uint32_t unit, uint32_t r0, uint32_t heads, struct unit_memory *m)
{
	struct attend *a = &j->attend;
	for (uint32_t i = 0; i < heads; i++)
		attn_partial_clear(attend_partial(a, g, unit, r0 + i), a->layer->shape.d_v);
	for (uint32_t s = a->unit_span[unit]; s < a->unit_span[unit + 1]; s++) {
		const struct span *span = &a->view.strip[g].spans[s];
		struct row_set set = {0};
		signature_span(j, g, unit, r0, heads, span, m, true, &set);
		uint64_t rows = row_set_count(&set), scanned = attend_visible(a, r0, span->first, span->n);
		attend_count(a, g, rows, rows * a->layer->rows.stride + scanned * attend_code_bytes(a, g));
	}
}

static void signature_upper(struct job *j, uint32_t g, uint32_t unit, struct unit_memory *m)
{
	struct attend *a = &j->attend;
	const uint32_t batch = signature_batch(a);
	for (uint32_t t = 0; t < a->tokens; t++)
		for (uint32_t i0 = 0; i0 < a->group_heads; i0 += batch) {
			uint32_t r0 = t * a->group_heads + i0, heads = a->group_heads - i0 < batch ? a->group_heads - i0 : batch;
			if (!upper_attend(j, g, unit, r0, heads, m->upper))
				signature_segment(j, g, unit, r0, heads, m);
		}
}

static int signature_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const uint32_t first = a->unit_span[unit];
	const struct span *span = &a->view.strip[g].spans[first];
	if (!span->codes) // exact: verified answers have it from the first sample
		return a->delta > 0 && !a->measuring ? 0 : attend_span(j, g, unit, span, s);
	struct unit_memory memory;
	int status = unit_memory(j, s, &memory);
	if (status)
		return status;
	if (upper_through(a, first))
		signature_upper(j, g, unit, &memory);
	else
		signature_spans(j, g, unit, &memory);
	return 0;
}

// Spans are scanned in units of so many rows together: of the largest block, or fewer where a short range would give many workers too few
// units.
static uint32_t unit_rows(const struct attend *a)
{
	enum { UNITS = 16, LEAST = 1024 };
	uint64_t share = (a->view.end - a->view.begin) / UNITS;
	return share < LEAST ? LEAST : share < BLOCK_MAX_ROWS ? (uint32_t)share : BLOCK_MAX_ROWS;
}

// The end of the unit that begins with a span: a segment that is looked at through its upper layer; or spans to be scanned, since blocks of
// a context that grew by decoding or by small appends are small, and each unit costs a partial result and a start. A verified answer keeps
// notes about each span.
static uint32_t unit_end(const struct attend *a, uint32_t first)
{
	const struct span *s = a->view.strip[0].spans;
	if (upper_through(a, first))
		return a->view.strip[0].uppers[s[first].upper].span_end;
	uint32_t end = first + 1;
	uint64_t rows = s[first].n, most = unit_rows(a);
	if (!s[first].codes || a->delta > 0)
		return end;
	while (end < a->view.span_count && s[end].codes && rows + s[end].n <= most && !upper_through(a, end))
		rows += s[end++].n;
	return end;
}

// Counts units; first [units + 1]: where each begins, and the end; NULL: only counts.
uint32_t signature_cut(const struct attend *a, uint32_t *first)
{
	uint32_t n = 0, span = 0;
	for (; span < a->view.span_count; span = unit_end(a, span), n++)
		if (first)
			first[n] = span;
	if (first)
		first[n] = span;
	return n;
}

static uint32_t signature_units(const struct attend *a)
{
	return signature_cut(a, NULL);
}

int signature_check(struct job *j, const struct layer *layer)
{
	if (layer->wire.signature_bits)
		return 0;
	return job_fail(j, MPIG_ENOTSUP, "layer %u has no signature index (signature_bits is 0)", j->request.entry.layer);
}

void signature_carve(struct job *j, struct carve *c)
{
	struct attend *a = &j->attend;
	const struct mpig_layer_shape *s = &a->layer->shape;
	uint64_t all = (uint64_t)s->kv_heads * a->queries;
	a->signs = carve(c, 3 * a->layer->d_pad, sizeof(float));
	a->signature = carve(c, all, a->layer->d_pad);
	a->sig = carve(c, all, sizeof(struct sig_query));
	a->turn = carve(c, s->kv_heads, sizeof(uint64_t));
	a->unit_span = carve(c, (uint64_t)a->main_units + 1, sizeof(*a->unit_span));
	if (a->upper)
		a->upper_query = carve(c, all, sizeof(*a->upper_query));
	if (a->error_target > 0 && !(a->delta > 0)) {
		a->ratio = carve(c, s->kv_heads, sizeof(float));
		a->predicted = carve(c, all, sizeof(float));
	}
	if (a->error_target > 0 && j->request.slot.present & MPIG_HAS_WINDOW_OUT)
		a->window_out = carve(c, all * s->d_v, sizeof(float));
	if (a->delta > 0) {
		a->lowest = carve(c, all, sizeof(float));
		a->heavy = carve(c, all * a->main_units, sizeof(struct heavy));
	}
}

int signature_prepare(struct job *j)
{
	struct attend *a = &j->attend;
	sig_signs(context_seed(j->request.context), 0, 0, a->layer->d_pad, a->signs);
	(void)signature_cut(a, a->unit_span);
	if (a->ratio)
		ratio_take(j->request.context, a->layer, a->tokens == 1, a->position, a->ratio);
	uint32_t each = (j->engine->workers + a->layer->shape.kv_heads - 1) / a->layer->shape.kv_heads;
	a->pilots = each < a->group_heads ? each : a->group_heads;
	for (uint32_t g = 0; g < a->layer->shape.kv_heads; g++)
		if (a->delta > 0 || !heads_turn(j->request.context, a->layer->first_strip + g, &a->turn[g]))
			a->turn[g] = UINT64_MAX;
	if (a->heavy) // units without an index note nothing
		memset(a->heavy, 0, (size_t)a->layer->shape.kv_heads * a->main_units * a->queries * sizeof(*a->heavy));
	return 0;
}

const struct proposal signature_proposal = {.ops = {.pre = signature_pre,
                                                    .main = signature_main,
                                                    .merge = attend_merge_unit,
                                                    .close = attend_close,
                                                    .finish = attend_finish,
                                                    .release = attend_release},
                                            .estimates = true,
                                            .pre_units = signature_pre_units,
                                            .check = signature_check,
                                            .main_units = signature_units,
                                            .carve = signature_carve,
                                            .prepare = signature_prepare};

const struct proposal verified_proposal = {.ops = {.pre = signature_pre,
                                                   .main = signature_main,
                                                   .close = verify_close,
                                                   .finish = verify_finish,
                                                   .release = attend_release},
                                           .estimates = true,
                                           .pre_units = signature_pre_units,
                                           .check = signature_check,
                                           .main_units = signature_units,
                                           .carve = signature_carve,
                                           .prepare = signature_prepare};
