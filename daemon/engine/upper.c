#include "daemon/engine/upper.h"

#include <math.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/engine/pilot.h"

enum {
	CHUNK = 256, // groups scanned at a time
	CHUNK_ROWS = CHUNK * SIG_GROUP,
	HELD = 2 * CHUNK_ROWS, // chosen rows of a head that wait to be attended
	SAMPLE_GROUPS = 256,   // groups that tell how logits vary inside one ...
	SAMPLE_LEAST = 4,      // ... of each segment
};
static const uint64_t SALT = UINT64_C(0x7570706572); // "upper"
static const uint32_t CHAIN = (1u << SIG_CHOOSE_BITS) - 1;

// ---- units -----------------------------------------------------------------------------------------------------------

// A segment is worth it if most of it is in the range.
bool upper_through(const struct attend *a, uint32_t span)
{
	const struct span *s = &a->view.strip[0].spans[span];
	if (!a->upper || s->upper == UINT32_MAX)
		return false;
	const struct table_view *u = &a->view.strip[0].uppers[s->upper];
	uint64_t end = u->first + u->rows < a->view.end ? u->first + u->rows : a->view.end;
	uint64_t begin = u->first > a->view.begin ? u->first : a->view.begin;
	return end > begin && 2 * (end - begin) >= u->rows;
}

// ---- queries ---------------------------------------------------------------------------------------------------------

// Sums over sampled groups of the variance of their rows' estimates, for each head, and of their spreads.
struct sample {
	double within[SIG_MAX_HEADS], spread;
};

static void sample_group(struct job *j, const struct upper *u, uint32_t bits, uint32_t group, const struct sig_query *query,
                         uint32_t heads, struct sample *sample)
{
	const struct layer *layer = j->attend.layer;
	size_t bytes = SIG_GROUP * (layer->d_pad * bits / 8);
	float estimate[SIG_MAX_HEADS * SIG_GROUP];
	uint32_t n = u->rows - group * SIG_GROUP < SIG_GROUP ? u->rows - group * SIG_GROUP : SIG_GROUP;
	j->engine->kernels->sig_estimate(u->codes + group * bytes, u->code_factors + group * SIG_GROUP, n, layer->d_pad, bits,
	                                 query, heads, estimate, SIG_GROUP);
	for (uint32_t h = 0; h < heads; h++) {
		float sum = 0, squares = 0;
		for (uint32_t i = 0; i < n; i++)
			sum += estimate[h * SIG_GROUP + i];
		for (uint32_t i = 0; i < n; i++) {
			float x = estimate[h * SIG_GROUP + i] - sum / (float)n;
			squares += x * x;
		}
		sample->within[h] += (double)(squares / (float)n);
	}
	sample->spread += (double)f16_to_f32(u->spreads[group]);
}

// The spread of a group is the same in all directions, as if rotated codes varied alike in each. They do not, and queries look along
// where keys vary: how much more the logits of a group do is measured on some groups of every segment.
void upper_prepare(struct job *j, uint32_t g, uint32_t from, uint32_t to)
{
	struct attend *a = &j->attend;
	const struct strip_view *strip = &a->view.strip[g];
	uint32_t bits = strip->params.bits, batch = signature_batch(a), some = SAMPLE_GROUPS / a->view.upper_count;
	some = some > SAMPLE_LEAST ? some : SAMPLE_LEAST;
	for (uint32_t r0 = from; r0 < to; r0 += batch) {
		uint32_t heads = to - r0 < batch ? to - r0 : batch;
		const struct sig_query *query = signature_query(a, g, r0);
		struct sample sample = {0};
		for (uint32_t s = 0; s < a->view.upper_count; s++) {
			struct upper u =
				upper_at((void *)(uintptr_t)strip->uppers[s].table, a->layer->d_pad, bits, strip->uppers[s].rows);
			for (uint32_t i = 0; i < some; i++)
				sample_group(j, &u, bits, (uint32_t)((i + .5) / some * u.groups), query, heads, &sample);
		}
		for (uint32_t h = 0; h < heads; h++) {
			int32_t sum = 0;
			for (uint32_t d = 0; d < a->layer->d_pad; d++)
				sum += query[h].q[d];
			double per_spread = sample.spread > 0 ? sample.within[h] / sample.spread : 0;
			a->upper_query[(size_t)g * a->queries + r0 + h] =
				(struct upper_query){.zero = 7.5f * (float)sum, .per_spread = UPPER_SPREAD * (float)per_spread};
		}
	}
	attend_count(a, g, 0, (uint64_t)some * a->view.upper_count * SIG_GROUP * (attend_code_bytes(a, g) + 2));
}

// ---- a segment for some heads ----------------------------------------------------------------------------------------

struct look {
	struct job *j;
	struct attend *a;
	struct upper u;
	uint64_t first;          // token position of the segment's row 0
	uint64_t begin, end;     // token positions that are seen
	const struct span *span; // of the unit
	uint32_t spans, g, unit, r0, heads;
	const uint8_t *base; // the lowest row; index counts from it where every span's rows are a whole number of rows away
	bool one_base;
	struct sig_query fine[SIG_MAX_HEADS];
	uint32_t chain[SIG_MAX_HEADS], held[SIG_MAX_HEADS];
	float *group_tau;     // [heads][groups] of a group that is looked at for a head: tau + log P; inf: it is not
	float *most, *spread; // [groups]
	uint32_t *list;       // groups that some head looks at
	uint32_t listed;
	float *estimate, *tau;      // [heads][CHUNK_ROWS], [CHUNK]
	struct sig_hits hits;       // of CHUNK_ROWS
	uint32_t *row;              // [heads][HELD] index, or row of the segment
	float *neg_log_pi;          // [heads][HELD]
	uint32_t *part_row;         // [HELD] the same of one span
	float *part_pi, *attention; // [HELD], [3 HELD]
	struct attn_partial *partial;
	uint64_t *seen; // rows of the segment that some head chose: one bit each
};

static void *take(uint8_t **at, size_t bytes)
{
	uint8_t *here = *at;
	if (here)
		*at += (bytes + 63) & ~(size_t)63;
	return here;
}

// Lays the arrays out from `scratch`, and returns the bytes they take; with a counting look, of the largest segment there can be.
static size_t lay_out(struct look *l, uint32_t heads, uint32_t groups, size_t partial_bytes, uint8_t *scratch)
{
	uint8_t *at = scratch;
	l->group_tau = take(&at, (size_t)heads * groups * sizeof(float));
	l->most = take(&at, groups * sizeof(float));
	l->spread = take(&at, groups * sizeof(float));
	l->list = take(&at, groups * sizeof(uint32_t));
	l->estimate = take(&at, (size_t)heads * CHUNK_ROWS * sizeof(float));
	l->tau = take(&at, CHUNK * sizeof(float));
	l->hits.row = take(&at, CHUNK_ROWS * sizeof(uint32_t));
	l->hits.estimate = take(&at, CHUNK_ROWS * sizeof(float));
	l->row = take(&at, (size_t)heads * HELD * sizeof(uint32_t));
	l->neg_log_pi = take(&at, (size_t)heads * HELD * sizeof(float));
	l->part_row = take(&at, HELD * sizeof(uint32_t));
	l->part_pi = take(&at, HELD * sizeof(float));
	l->attention = take(&at, 3 * (size_t)HELD * sizeof(float));
	l->partial = take(&at, partial_bytes);
	l->seen = take(&at, SEGMENT_MAX_ROWS / 8);
	return (size_t)(at - scratch);
}

size_t upper_scratch(const struct attend *a)
{
	static uint8_t from; // only counted from
	struct look l;
	return lay_out(&l, signature_batch(a), SEGMENT_MAX_ROWS / SIG_GROUP, a->partial_bytes, &from);
}

// log P of every group for every head: how likely it is looked at. Returns the groups that are, in the mean.
static double weigh_groups(struct look *l)
{
	const struct kernels *k = l->j->engine->kernels;
	const struct layer *layer = l->a->layer;
	uint32_t groups = l->u.groups;
	struct sig_query coarse[SIG_MAX_HEADS];
	for (uint32_t h = 0; h < l->heads; h++) {
		coarse[h] = l->fine[h];
		coarse[h].zero = l->a->upper_query[(size_t)l->g * l->a->queries + l->r0 + h].zero;
	}
	k->sig_estimate(l->u.summaries, l->u.factors, groups, layer->d_pad, SIG_UPPER_BITS, coarse, l->heads, l->group_tau,
	                groups);
	(void)f16_widen_finite(l->u.spreads, groups, l->spread);
	for (uint32_t i = 0; i < groups; i++)
		l->most[i] = -INFINITY;
	for (uint32_t h = 0; h < l->heads; h++) {
		float per_spread = l->a->upper_query[(size_t)l->g * l->a->queries + l->r0 + h].per_spread;
		upper_weigh(l->group_tau + (size_t)h * groups, l->spread, groups, per_spread, l->fine[h].tau, l->most);
	}
	return k->exp_sum(l->most, groups, 0);
}

// Draws which groups are looked at: one random number a group for all heads. Lists those that some head looks at.
static void draw_groups(struct look *l)
{
	uint32_t groups = l->u.groups;
	uint64_t seed = rng_hash(l->a->seed, SALT), position = l->a->position + attend_token(l->a, l->r0);
	uint32_t layer = l->j->request.entry.layer;
	const float *noise = l->j->engine->noise + noise_offset(seed, position, layer, l->g, l->first);
	float *nearest = l->most;
	for (uint32_t i = 0; i < groups; i++)
		nearest[i] = INFINITY;
	for (uint32_t h = 0; h < l->heads; h++) {
		upper_draw(l->group_tau + (size_t)h * groups, noise, groups, l->fine[h].tau, nearest);
		l->chain[h] = (uint32_t)rng_hash(rng_hash(seed, position << 16 | layer),
		                                 rng_hash(l->first, (uint64_t)l->g << 32 | (l->r0 + h))) &
		              CHAIN;
	}
	uint32_t n = 0;
	for (uint32_t i = 0; i < groups; i++) {
		l->list[n] = i;
		n += nearest[i] < INFINITY;
	}
	l->listed = n;
}

static uint32_t span_of(const struct look *l, uint64_t token)
{
	uint32_t low = 0, high = l->spans;
	while (high - low > 1) {
		uint32_t middle = (low + high) / 2;
		if (l->span[middle].first <= token)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static void attend_rows(struct look *l, uint32_t h, const uint8_t *base, const uint32_t *index, const float *neg_log_pi,
                        uint32_t n)
{
	struct selection sel = {
		.base = base, .first = l->first, .frame = l->span->frame, .index = index, .neg_log_pi = neg_log_pi, .n = n};
	attend_selection(l->j, l->g, l->r0 + h, &sel, l->partial, l->attention);
	attn_partial_merge(attend_partial(l->a, l->g, l->unit, l->r0 + h), l->partial, l->a->layer->shape.d_v);
}

// The rows that a head holds, attended.
static void flush(struct look *l, uint32_t h)
{
	const uint32_t *row = l->row + (size_t)h * HELD;
	const float *neg_log_pi = l->neg_log_pi + (size_t)h * HELD;
	uint32_t held = l->held[h];
	l->held[h] = 0;
	if (!held)
		return;
	if (l->one_base) {
		attend_rows(l, h, l->base, row, neg_log_pi, held);
		return;
	}
	for (uint32_t s = 0; s < l->spans; s++) {
		uint64_t first = l->span[s].first - l->first;
		uint32_t n = 0;
		for (uint32_t i = 0; i < held; i++) {
			l->part_row[n] = row[i] - (uint32_t)first;
			l->part_pi[n] = neg_log_pi[i];
			n += row[i] >= first && row[i] - first < l->span[s].n;
		}
		if (n)
			attend_rows(l, h, l->span[s].rows, l->part_row, l->part_pi, n);
	}
}

// Keeps a chosen row, unless this range does not hold it, and asks for its bytes.
static void hold(struct look *l, uint32_t h, uint32_t position, float neg_log_pi)
{
	uint32_t row = position < l->u.rows ? l->u.row[position] : UINT32_MAX, stride = l->a->layer->rows.stride;
	uint64_t token = l->first + row;
	if (row == UINT32_MAX || token < l->begin || token >= l->end)
		return;
	const struct span *span = &l->span[span_of(l, token)];
	const uint8_t *bytes = span->rows + (token - span->first) * stride;
	uint32_t at = h * HELD + l->held[h]++;
	l->row[at] = l->one_base ? (uint32_t)((size_t)(bytes - l->base) / stride) : row;
	l->neg_log_pi[at] = neg_log_pi;
	l->seen[row / 64] |= UINT64_C(1) << row % 64;
	for (uint32_t line = 0; line < stride; line += 64)
		__builtin_prefetch(bytes + line, 0, 2);
}

// Chooses among the estimated rows of listed groups [from, from + n).
static void choose(struct look *l, uint32_t h, uint32_t from, uint32_t n)
{
	const float *group_tau = l->group_tau + (size_t)h * l->u.groups, tau = l->fine[h].tau;
	for (uint32_t i = 0; i < n; i++)
		l->tau[i] = group_tau[l->list[from + i]];
	l->hits.n = 0;
	l->j->engine->kernels->sig_choose(l->estimate + (size_t)h * CHUNK_ROWS, l->tau, n, &l->chain[h], &l->hits);
	for (uint32_t i = 0; i < l->hits.n; i++) {
		uint32_t group = l->hits.row[i] / SIG_GROUP, in_group = l->hits.row[i] % SIG_GROUP;
		// pi = P min(1, exp(estimate - tau - log P))
		float neg_log_pi = fmaxf(tau - l->tau[group], tau - l->hits.estimate[i]);
		hold(l, h, l->list[from + group] * SIG_GROUP + in_group, fmaxf(0, neg_log_pi));
	}
	if (l->held[h] > HELD - CHUNK_ROWS)
		flush(l, h);
}

static void find_base(struct look *l)
{
	uint32_t stride = l->a->layer->rows.stride;
	uint64_t farthest = 0;
	l->base = l->span[0].rows;
	for (uint32_t s = 1; s < l->spans; s++)
		l->base = l->span[s].rows < l->base ? l->span[s].rows : l->base;
	l->one_base = true;
	for (uint32_t s = 0; s < l->spans; s++) {
		uint64_t away = (uint64_t)(l->span[s].rows - l->base);
		l->one_base = l->one_base && away % stride == 0;
		farthest = away > farthest ? away : farthest;
	}
	l->one_base = l->one_base && farthest / stride < UINT32_MAX - BLOCK_MAX_ROWS;
}

static void count(const struct look *l)
{
	const struct layer *layer = l->a->layer;
	uint64_t rows = 0, bytes = l->u.groups * (uint64_t)(layer->d_pad * SIG_UPPER_BITS / 8 + 4);
	for (uint32_t i = 0; i < SEGMENT_MAX_ROWS / 64; i++)
		rows += (uint64_t)__builtin_popcountll(l->seen[i]);
	bytes += (uint64_t)l->listed * SIG_GROUP * (attend_code_bytes(l->a, l->g) + 2);
	attend_count(l->a, l->g, rows, rows * layer->rows.stride + bytes);
}

bool upper_attend(struct job *j, uint32_t g, uint32_t unit, uint32_t r0, uint32_t heads, void *scratch)
{
	struct attend *a = &j->attend;
	struct look l = {.j = j, .a = a, .g = g, .unit = unit, .r0 = r0, .heads = heads};
	uint32_t begin = a->unit_span[unit];
	l.span = &a->view.strip[g].spans[begin];
	l.spans = a->unit_span[unit + 1] - begin;
	const struct table_view *view = &a->view.strip[g].uppers[l.span->upper];
	const struct span *last = &l.span[l.spans - 1];
	uint64_t limit = a->limit[attend_token(a, r0)];
	l.first = view->first;
	l.begin = l.span->first;
	l.end = last->first + last->n < limit ? last->first + last->n : limit;
	l.u = upper_at((void *)(uintptr_t)view->table, a->layer->d_pad, a->view.strip[g].params.bits, view->rows);
	lay_out(&l, heads, l.u.groups, a->partial_bytes, scratch);
	for (uint32_t h = 0; h < heads; h++)
		l.fine[h] = *signature_query(a, g, r0 + h);
	if (weigh_groups(&l) > (double)j->engine->upper_most * l.u.groups)
		return false;
	find_base(&l);
	memset(l.seen, 0, SEGMENT_MAX_ROWS / 8);
	draw_groups(&l);
	for (uint32_t h = 0; h < heads; h++)
		attn_partial_clear(attend_partial(a, g, unit, r0 + h), a->layer->shape.d_v);
	for (uint32_t from = 0; from < l.listed; from += CHUNK) {
		uint32_t n = l.listed - from < CHUNK ? l.listed - from : CHUNK;
		j->engine->kernels->sig_estimate_groups(l.u.codes, l.u.code_factors, l.list + from, n, a->layer->d_pad,
		                                        a->view.strip[g].params.bits, l.fine, heads, l.estimate, CHUNK_ROWS);
		for (uint32_t h = 0; h < heads; h++)
			choose(&l, h, from, n);
	}
	for (uint32_t h = 0; h < heads; h++)
		flush(&l, h);
	count(&l);
	return true;
}
