// The pre units of `signature`: sign the group's queries, estimate the logits of a sample of the rows, and set one threshold per head.
#include "daemon/engine/pilot.h"

#include <math.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/engine/asked.h"
#include "daemon/engine/heads.h"
#include "daemon/engine/upper.h"

enum {
	PILOT_RUN = 64,     // rows of one stretch of the pilot
	PILOT_STRIDE = 16,  // one stretch in so many is looked at
	PILOT_LEAST = 2048, // ... unless the range is short
	PILOT_MOST = 16384, // ... or very long
};

static struct sig_params strip_sig_params(const struct attend *a, uint32_t g)
{
	const struct strip_params *p = &a->view.strip[g].params;
	return (struct sig_params){.d_k = a->layer->shape.d_k,
	                           .d_pad = a->layer->d_pad,
	                           .bits = p->bits,
	                           .mu = p->mu,
	                           .balance = p->balance,
	                           .signs = a->signs};
}

void sign_queries(struct job *j, uint32_t g, uint32_t from, uint32_t to)
{
	struct attend *a = &j->attend;
	struct sig_params params = strip_sig_params(a, g);
	float rotated[MPIG_MAX_HEAD_DIM];
	for (uint32_t r = from; r < to; r++) {
		struct sig_query *sq = signature_query(a, g, r);
		int8_t *signature = a->signature + ((size_t)g * a->queries + r) * params.d_pad;
		const float *q = attend_query(a, g, r);
		float scale = sq->factor, q_mu = 0;
		if (a->client_signature)
			q_mu = sig_query_mu(q, params.mu, params.d_k);
		else
			sig_encode_query(j->engine->kernels, &params, q, signature, &scale, &q_mu, rotated);
		*sq = sig_query_of(&params, signature, scale * a->layer->scale, q_mu * a->layer->scale);
		if (a->delta <= 0)
			continue;
		// A verified answer takes each row for as large as the codes' noise may hide: that noise goes with g, as the estimate
		// does, so that it is a part of the zero point.
		int32_t square = 0;
		for (uint32_t d = 0; d < params.d_pad; d++)
			square += signature[d] * signature[d];
		sq->zero -= (float)a->deviations * sig_noise(params.bits) * sqrtf((float)square);
	}
}

// Estimates as the scan would see them: the soft cap bends the product before ALiBi is added.
static void bend(float *estimate, uint32_t n, float cap, float slope, float at_zero)
{
	for (uint32_t i = 0; i < n; i++)
		estimate[i] = cap * tanhf(estimate[i] / cap) + slope * (float)i + at_zero;
}

// A query against the run that begins at token position `first`.
struct sig_query query_for_run(const struct attend *a, uint32_t g, uint32_t r, uint64_t first)
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
void estimate_run(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, const struct span *span, uint32_t row, uint32_t n,
                  float *out, size_t ld)
{
	struct attend *a = &j->attend;
	uint64_t first = span->first - span->block_row + row;
	struct sig_query sq[SIG_MAX_HEADS];
	for (uint32_t i = 0; i < heads; i++)
		sq[i] = query_for_run(a, g, r0 + i, first);
	uint32_t bits = a->view.strip[g].params.bits;
	const uint8_t *codes = span->codes + sig_code_bytes(a->layer->d_pad, bits, row);
	j->engine->kernels->sig_estimate(codes, span->factors + row, n, a->layer->d_pad, bits, sq, heads, out, ld);
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

// The stretches of a pilot, one in `stride`: whole groups inside the visible rows.
struct stretch {
	const struct span *span; // NULL: there are no more
	uint32_t row, rows;      // of the block
	uint32_t at;             // span's number
	uint64_t number;         // of the stretch
};

// The first stretch at or after s->row of span s->at.
static void find_stretch(const struct attend *a, uint32_t g, uint32_t r, uint32_t stride, struct stretch *s)
{
	for (; s->at < a->view.span_count; s->at++, s->row = 0) {
		const struct span *span = &a->view.strip[g].spans[s->at];
		uint32_t first = (span->block_row + SIG_GROUP - 1) & ~(SIG_GROUP - 1);
		uint32_t end = span->block_row + attend_visible(a, r, span->first, span->n);
		if (!span->codes)
			continue;
		s->row = s->row > first ? s->row : first;
		uint32_t left = s->row < end ? (end - s->row + PILOT_RUN - 1) / PILOT_RUN : 0;
		uint64_t skip = (stride - s->number % stride) % stride;
		if (skip < left) {
			s->span = span;
			s->row += (uint32_t)skip * PILOT_RUN;
			s->rows = end - s->row < PILOT_RUN ? end - s->row : PILOT_RUN;
			s->number += skip;
			return;
		}
		s->number += left;
	}
	s->span = NULL;
}

static const uint8_t *stretch_codes(const struct attend *a, uint32_t g, const struct stretch *s, uint32_t row)
{
	return s->span->codes + sig_code_bytes(a->layer->d_pad, a->view.strip[g].params.bits, row);
}

// Stretches lie too far from one another for the hardware to guess the next.
static void fetch_stretch(const struct attend *a, uint32_t g, const struct stretch *s)
{
	const uint8_t *end = stretch_codes(a, g, s, s->row + s->rows);
	for (const uint8_t *at = stretch_codes(a, g, s, s->row); at < end; at += 64)
		__builtin_prefetch(at);
	for (uint32_t i = 0; i < s->rows; i += 32)
		__builtin_prefetch(s->span->factors + s->row + i);
}

void pilot_reads(const struct attend *a, uint32_t g, void (*read)(void *data, const void *from, size_t bytes), void *data)
{
	uint32_t stride = pilot_stride(indexed_rows(a, g, a->queries - 1));
	struct stretch s = {0};
	for (find_stretch(a, g, 0, stride, &s); s.span; find_stretch(a, g, 0, stride, &s)) {
		const uint8_t *codes = stretch_codes(a, g, &s, s.row);
		read(data, codes, (size_t)(stretch_codes(a, g, &s, s.row + s.rows) - codes));
		read(data, s.span->factors + s.row, s.rows * sizeof(*s.span->factors));
		s.row += PILOT_RUN;
		s.number++;
	}
}

// Estimates of the pilot's rows for up to SIG_MAX_HEADS queries of one token; returns how many rows.
static uint32_t pilot_estimates(struct job *j, uint32_t g, uint32_t r0, uint32_t heads, uint32_t stride, float *out, size_t ld)
{
	struct attend *a = &j->attend;
	uint32_t n = 0;
	struct stretch next = {0};
	find_stretch(a, g, r0, stride, &next);
	while (next.span) {
		struct stretch now = next;
		next.row += PILOT_RUN;
		next.number++;
		find_stretch(a, g, r0, stride, &next);
		if (next.span)
			fetch_stretch(a, g, &next);
		estimate_run(j, g, r0, heads, now.span, now.row, now.rows, out + n, ld);
		n += now.rows;
	}
	return n;
}

// Root mean square of |v|, from a few rows spread over the range. It scales what the window's mass counts (value_share).
static double value_size(struct job *j, uint32_t g)
{
	enum { LOOKS = 16 };
	struct attend *a = &j->attend;
	const struct row_format *f = &a->layer->rows;
	double sum = 0;
	for (uint32_t i = 0; i < LOOKS && a->view.span_count; i++) {
		const struct span *span = &a->view.strip[g].spans[(uint64_t)i * a->view.span_count / LOOKS];
		float out[2 * MPIG_MAX_HEAD_DIM] = {0}, w[2] = {0, 1};
		uint32_t row = (uint32_t)(rng_hash(i, g) % span->n);
		sum += j->engine->kernels->values_squares[f->type](f, span->rows, &row, 1, w, 1, out);
	}
	return sqrt(sum / LOOKS);
}

// How far the exact part's mass is something that an error of ours could hide behind. Rows that only collect attention (the first of a
// text) have values near zero: their mass is most of the head's, and its output is what the other rows give.
static float value_share(const struct attend *a, size_t at, double size)
{
	const size_t d_v = a->layer->shape.d_v;
	const float *out = a->window_out + at * d_v;
	double square = 0;
	for (size_t d = 0; d < d_v; d++)
		square += (double)out[d] * (double)out[d];
	return size > 0 ? (float)fmin(sqrt(square) / size, 1) : 1;
}

static float pilot_threshold(struct job *j, uint32_t g, uint32_t r, const float *estimate, uint32_t n, uint64_t rows, double size,
                             float *w)
{
	struct attend *a = &j->attend;
	const struct kernels *k = j->engine->kernels;
	double repeat = n ? (double)rows / n : 0;
	if (!(a->error_target > 0))
		return tau_for_budget(k, estimate, n, repeat, a->budget * (double)rows, w);
	size_t at = (size_t)g * a->queries + r;
	float window = a->window_lse ? a->window_lse[at] : -INFINITY;
	double floor = floor_rows(a->budget_floor, rows), cap = a->budget_cap * (double)rows;
	double eps = (double)a->error_target;
	if (a->delta > 0) {
		a->lowest[at] = tau_for_budget(k, estimate, n, repeat, cap, w);
		return tau_for_error(k, estimate, n, repeat, eps / a->deviations, window, floor, cap, w);
	}
	float counted = a->window_out ? window + logf(value_share(a, at, size)) : window;
	double ratio = (double)a->ratio[g], predicted;
	float tau = tau_for_share(k, estimate, n, repeat, eps * eps, counted, floor, cap, w, window, &predicted);
	if (ratio * predicted > eps * eps) {
		tau = fminf(tau, tau_for_error(k, estimate, n, repeat, eps / sqrt(ratio), window, floor, cap, w));
		predicted = relative_variance(k, estimate, n, repeat, window, tau, w);
	}
	a->predicted[at] = (float)predicted;
	return tau;
}

// ---- what the pilot shows (heads.h) ----------------------------------------------------------------------------------

// Moves the `most` largest of w, at least one, to its front, in their order; returns their number and their sum.
static uint32_t keep_largest(float *w, uint32_t n, uint32_t most, double *sum)
{
	struct cut cut = cut_largest(w, n, most ? most : 1);
	uint32_t kept = 0;
	*sum = 0;
	for (uint32_t i = 0; i < n; i++)
		if (w[i] > cut.value || (w[i] == cut.value && i < cut.end)) {
			*sum += (double)w[i];
			w[kept++] = w[i];
		}
	return kept;
}

// Mean square of (estimate - logit) over a stretch of one of the spans: `turn` picks it. Negative: no rows.
static double measure_noise(struct job *j, uint32_t g, uint32_t r, uint64_t turn)
{
	struct attend *a = &j->attend;
	const struct layer *layer = a->layer;
	const struct span *span = &a->view.strip[g].spans[turn % a->view.span_count];
	uint32_t n = attend_visible(a, r, span->first, span->n), groups = n / PILOT_RUN;
	if (!span->codes || !groups)
		return -1;
	uint32_t row = (span->block_row + SIG_GROUP - 1) & ~(SIG_GROUP - 1);
	row += (uint32_t)(rng_hash(turn, g) % groups) * PILOT_RUN;
	uint32_t run = span->block_row + n - row < PILOT_RUN ? span->block_row + n - row : PILOT_RUN;
	struct sig_query query = *signature_query(a, g, r);
	struct row_query asked;
	attend_logits(a, g, r, span->first, span->frame, &asked);
	float estimate[PILOT_RUN], product[PILOT_RUN];
	uint32_t bits = a->view.strip[g].params.bits;
	const uint8_t *codes = span->codes + sig_code_bytes(layer->d_pad, bits, row);
	j->engine->kernels->sig_estimate(codes, span->factors + row, run, layer->d_pad, bits, &query, 1, estimate, PILOT_RUN);
	j->engine->kernels->scores[layer->rows.type](&layer->rows,
	                                             span->rows + (size_t)(row - span->block_row) * layer->rows.stride, NULL, run,
	                                             asked.q, 1, product, PILOT_RUN);
	for (uint32_t i = 0; i < run; i++)
		product[i] = asked.head.scale * (product[i] + asked.head.q_centre);
	if (layer->wire.softcap > 0) {
		bend(estimate, run, layer->wire.softcap, 0, 0);
		bend(product, run, layer->wire.softcap, 0, 0);
	}
	double sum = 0;
	for (uint32_t i = 0; i < run; i++) {
		double error = (double)estimate[i] - (double)product[i];
		sum += error * error;
	}
	attend_count(a, g, 0, run * (uint64_t)layer->rows.stride);
	return sum / run;
}

static void observe(struct job *j, uint32_t g, uint32_t r, uint64_t turn, const float *estimate, uint32_t n, uint64_t rows,
                    float *w)
{
	const struct kernels *k = j->engine->kernels;
	asked_note(j->request.context, j->attend.layer, j->attend.layer->first_strip + g, attend_query(&j->attend, g, r));
	double noise2 = n ? measure_noise(j, g, r, turn) : -1;
	if (noise2 < 0)
		return;
	memcpy(w, estimate, n * sizeof(*w));
	float top = k->max(estimate, n), theta = expf(signature_query(&j->attend, g, r)->tau - top);
	double total = k->exp_sum(w, n, top), below, below2, squares;
	uint64_t above;
	k->split_sums(w, n, INFINITY, &below, &squares, &above);
	k->split_sums(w, n, theta, &below, &below2, &above);
	double drawn = theta > 0 ? below / (double)theta : 0, mass_5, mass_1;
	uint32_t kept = keep_largest(w, n, (n + 10) / 20, &mass_5);
	keep_largest(w, kept, (n + 50) / 100, &mass_1);
	struct head_sample sample = {.noise2 = noise2,
	                             .n_eff = total * total / squares * (double)rows / n,
	                             .mass = {mass_1 / total, mass_5 / total},
	                             .rows = rows,
	                             .drawn = drawn * (double)rows / n};
	heads_note(j->request.context, j->attend.layer->first_strip + g, &sample);
}

// As many for each token as it takes to give every worker one; each reads the pilot's codes again, and all set their thresholds to the same
// bits.
uint32_t signature_pre_units(const struct attend *a)
{
	return a->tokens * a->pilots;
}

// One threshold per (strip, head), over all segments, before any random number is drawn.
int signature_pre(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	uint32_t first = unit / a->pilots * a->group_heads, part = unit % a->pilots;
	uint32_t r0 = first + a->group_heads * part / a->pilots, end = first + a->group_heads * (part + 1) / a->pilots;
	sign_queries(j, g, r0, end);
	if (a->upper)
		upper_prepare(j, g, r0, end);
	uint64_t rows = indexed_rows(a, g, r0);
	uint32_t stride = pilot_stride(indexed_rows(a, g, a->queries - 1)), n = 0;
	size_t most = (size_t)(rows / stride + (uint64_t)PILOT_RUN * (a->view.span_count + 1));
	const uint32_t batch = signature_batch(a);
	float *estimate = scratch_get(s, (batch + 1) * most * sizeof(float)), *w = estimate + batch * most;
	if (!estimate)
		return job_fail(j, MPIG_ENOMEM, "no memory for a pilot of %zu rows", most);
	uint64_t turn = a->turn[g];
	const double size = a->window_out && !(a->delta > 0) ? value_size(j, g) : 0;
	uint32_t looked = turn == UINT64_MAX ? UINT32_MAX : (uint32_t)(turn % a->queries);
	for (uint32_t heads; r0 < end; r0 += heads) {
		heads = end - r0 < batch ? end - r0 : batch;
		n = pilot_estimates(j, g, r0, heads, stride, estimate, most);
		for (uint32_t i = 0; i < heads; i++) {
			signature_query(a, g, r0 + i)->tau = pilot_threshold(j, g, r0 + i, estimate + i * most, n, rows, size, w);
			if (r0 + i == looked)
				observe(j, g, looked, turn, estimate + i * most, n, rows, w);
		}
	}
	if (end == a->queries) // codes that several pilots read count once
		attend_count(a, g, 0, n * attend_code_bytes(a, g));
	return 0;
}
