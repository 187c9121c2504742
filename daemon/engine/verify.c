// `verified` answers: (eps, delta) for the merged output of each query head. A first sample only measures, and the answer is drawn with
// random numbers of its own from a threshold and a list of certain rows that the first sample has set. Nothing is drawn again
// after looking: an error estimate from the sample that is returned is small just when a heavy row was missed.
//
// 1. Variance. With the first sample's weights a_i (shares of the merged mass), c the merged output, pi_i(tau) = min(1, e^(s_hat_i - tau)),
//    Var(tau_1) = sum (1 - pi_i) a_i^2 |v_i - c|^2 is the output's, and (1 - pi)/pi <= e^(tau - tau_1) (1 - pi_1)/pi_1, so that
//    Var(tau) <= e^(tau - tau_1) Var(tau_1) for tau <= tau_1. The answer's tau makes that (eps |c| / z)^2, z the normal quantile of delta.
// 2. Heavy rows that were found, whose terms are more than a sixteenth of that, are made certain, which spares lowering tau for all. To what
//    is left 2 standard deviations of its estimate are added: Var(estimate) <= (largest term) * estimate.
// 3. Heavy rows that were missed, because the code underrates them. A row's size is taken z deviations of the code's noise above its
//    estimate (pilot.c: that noise is known, and goes with the factor g), and tau is at most the logit of a row that alone breaks the
//    promise, less z deviations of the noise that the first sample has seen.
#include <math.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/engine/attend.h"

static const double HEAVY = 1. / 16; // of the variance allowed

double verify_deviations(double delta)
{
	double low = 0, high = 40;
	while (high - low > 1e-9) {
		double z = (low + high) / 2;
		*(erfc(z / sqrt(2)) > delta ? &low : &high) = z;
	}
	return high;
}

uint64_t verify_seed(uint64_t seed)
{
	return rng_hash(seed, UINT64_C(0x6d65617375726564));
}

// Of the sample's uncertain rows those with the largest terms (1 - pi) e^2.
void heavy_note(struct heavy *heavy, const uint32_t *row, const float *neg_log_pi, const float *weights, uint32_t n, float top)
{
	const float *term = weights + n;
	*heavy = (struct heavy){0};
	// s - s_hat of an uncertain row: its e is exp(s - log pi - m), and its -log pi is tau - s_hat.
	for (uint32_t i = 0; i < n; i++)
		if (neg_log_pi[i] > 0 && weights[i] > 0) {
			double excess = (double)logf(weights[i]) + (double)top;
			heavy->noise_n++;
			heavy->noise += excess;
			heavy->noise2 += excess * excess;
		}
	for (uint32_t i = 0; i < n; i++) {
		if (!(term[i] > 0) || (heavy->n == HEAVY_ROWS && term[i] <= heavy->term[HEAVY_ROWS - 1]))
			continue;
		uint32_t at = heavy->n < HEAVY_ROWS ? heavy->n++ : HEAVY_ROWS - 1;
		for (; at && heavy->term[at - 1] < term[i]; at--) {
			heavy->term[at] = heavy->term[at - 1];
			heavy->row[at] = heavy->row[at - 1];
			heavy->neg_log_pi[at] = heavy->neg_log_pi[at - 1];
		}
		heavy->term[at] = term[i];
		heavy->row[at] = row[i];
		heavy->neg_log_pi[at] = neg_log_pi[i];
	}
}

// Makes the listed rows certain: those that were drawn get -log pi = 0, the others are put in their places (ascending).
uint32_t heavy_force(const struct heavy *heavy, uint32_t *row, float *neg_log_pi, uint32_t n)
{
	for (uint32_t i = 0; i < heavy->n; i++) {
		uint32_t at = n;
		while (at && row[at - 1] >= heavy->row[i])
			at--;
		if (at == n || row[at] != heavy->row[i]) {
			memmove(row + at + 1, row + at, (n - at) * sizeof(*row));
			memmove(neg_log_pi + at + 1, neg_log_pi + at, (n - at) * sizeof(*neg_log_pi));
			row[at] = heavy->row[i];
			n++;
		}
		neg_log_pi[at] = 0;
	}
	return n;
}

// The merged output as the first sample has it.
struct merged {
	const struct attn_partial *total;
	double share;    // of the daemon's part in the merged mass
	double variance; // of the merged output
	double square;   // |out|^2
	float out[MPIG_MAX_HEAD_DIM];
};

// total: merged over units, m > -inf. Returns the daemon's own LSE.
static float merge_window(const struct attend *a, uint32_t g, uint32_t r, struct attn_partial *total, struct merged *x)
{
	uint32_t d_v = a->layer->shape.d_v;
	size_t at = (size_t)g * a->queries + r;
	float lse, v, error_a;
	attn_partial_finish(total, d_v, x->out, &lse, &v, &error_a);
	bool window = a->window_out && a->window_lse[at] > -INFINITY;
	x->total = total;
	x->share = window ? 1 / (1 + exp((double)a->window_lse[at] - (double)lse)) : 1;
	const float *bv = attn_partial_bv(total, d_v);
	double cross = 0;
	x->square = 0;
	for (uint32_t d = 0; d < d_v; d++) {
		double o = (double)x->out[d] * x->share;
		if (window)
			o += (double)a->window_out[at * d_v + d] * (1 - x->share);
		x->out[d] = (float)o;
		x->square += o * o;
		cross += o * (double)bv[d];
	}
	double weight = x->share / total->sum;
	x->variance = fmax(0, (total->b2 - 2 * cross + x->square * total->a) * weight * weight);
	return lse;
}

static double distance2(const struct job *j, const struct span *span, uint32_t row, const float *from)
{
	const struct row_format *f = &j->attend.layer->rows;
	float v[MPIG_MAX_HEAD_DIM] = {0}, one = 1;
	j->engine->kernels->values[f->type](f, span->rows - (size_t)span->block_row * f->stride, &row, 1, &one, 1, 1, v);
	double sum = 0;
	for (uint32_t d = 0; d < f->d_v; d++)
		sum += ((double)v[d] - (double)from[d]) * ((double)v[d] - (double)from[d]);
	return sum;
}

// Keeps the rows of one unit that are heavy in the merged output; returns what is known to leave its variance with them. That is pi times
// the term: a row that was found with probability pi stands for 1/pi rows like it, of which only one becomes certain.
static double keep_heavy(const struct job *j, uint32_t g, uint32_t unit, uint32_t r, const struct merged *x, double least)
{
	const struct attend *a = &j->attend;
	struct heavy *heavy = attend_heavy(a, g, unit, r);
	double weight = exp((double)attend_partial(a, g, unit, r)->m - (double)x->total->m) * x->share / x->total->sum, sum = 0;
	uint32_t kept = 0;
	for (uint32_t i = 0; i < heavy->n; i++) {
		double term = (double)heavy->term[i] * weight * weight *
		              distance2(j, &a->view.strip[g].spans[unit], heavy->row[i], x->out);
		if (term > least) {
			heavy->row[kept++] = heavy->row[i];
			sum += term * exp(-(double)heavy->neg_log_pi[i]);
		}
	}
	heavy->n = kept;
	return sum;
}

// The threshold of 3: a row that alone breaks the promise holds the share eps |c| / |v - c| of the mass, where the sample's root mean
// square stands for the distance.
static double guard(const struct attend *a, uint32_t g, uint32_t r, const struct merged *x, float lse)
{
	double n = 0, sum = 0, square = 0;
	for (uint32_t u = 0; u < a->main_units; u++) {
		const struct heavy *heavy = attend_heavy(a, g, u, r);
		n += heavy->noise_n;
		sum += heavy->noise;
		square += heavy->noise2;
	}
	double weight = x->share / x->total->sum, mass_variance = x->total->a * weight * weight;
	if (!(n > 1) || !(x->variance > 0))
		return INFINITY;
	double noise = sqrt(fmax(0, square - sum * sum / n) / (n - 1));
	double share = a->error_target * sqrt(x->square * mass_variance / x->variance);
	return (double)lse - log(x->share) + log(fmin(share, 1)) - a->deviations * noise;
}

static void set_threshold(struct job *j, uint32_t g, uint32_t r, struct attn_partial *total)
{
	struct attend *a = &j->attend;
	size_t at = (size_t)g * a->queries + r;
	struct merged x;
	float lse = merge_window(a, g, r, total, &x);
	double allowed = x.square * (double)a->error_target * (double)a->error_target / (a->deviations * a->deviations);
	double variance = x.variance, guarded = guard(a, g, r, &x, lse);
	for (uint32_t u = 0; u < a->main_units; u++)
		variance -= keep_heavy(j, g, u, r, &x, HEAVY * allowed);
	variance = fmax(0, variance);
	variance += 2 * sqrt(HEAVY * allowed * variance);
	if (variance > allowed)
		a->sig[at].tau = fmaxf(a->sig[at].tau - (float)log(variance / allowed), a->lowest[at]);
	a->sig[at].tau = fmaxf(fminf(a->sig[at].tau, (float)guarded), a->lowest[at]);
}

int verify_close(struct job *j, uint32_t g, struct engine_scratch *scratch)
{
	struct attend *a = &j->attend;
	if (!a->measuring)
		return attend_close(j, g, scratch);
	struct attn_partial *total = scratch_get(scratch, a->partial_bytes);
	if (!total)
		return job_fail(j, MPIG_ENOMEM, "no memory to merge");
	for (uint32_t r = 0; r < a->queries; r++) {
		attend_merge(a, g, r, total);
		if (total->m > -INFINITY)
			set_threshold(j, g, r, total);
	}
	return 0;
}

int verify_finish(struct job *j, struct engine_scratch *scratch)
{
	struct attend *a = &j->attend;
	if (!a->measuring || atomic_load_explicit(&j->failed, memory_order_acquire))
		return attend_finish(j, scratch);
	uint32_t groups = a->layer->shape.kv_heads;
	struct round *r = round_new(j, groups);
	if (!r)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u KV heads", groups);
	for (uint32_t g = 0; g < groups; g++) {
		r->group[g].main_n = a->main_units;
		r->group[g].pre_n = !a->main_units; // an empty range still has an answer to write
	}
	a->measuring = false;
	a->seed = j->request.entry.flags & MPIG_SQE_SEED_SEQUENCE ? j->request.entry.seed + j->request.sequence
	                                                          : j->request.entry.seed;
	round_publish(j, r);
	return MPIG_EAGAIN;
}
