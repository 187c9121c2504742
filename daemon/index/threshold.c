#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/index/index.h"

// Of the weights below theta, and of their squares; and how many are not below.
struct sums {
	float theta; // NaN: none yet
	double below, below2;
	uint64_t above;
};

// Estimated weights relative to the largest, so that theta = exp(tau - shift) is the threshold on w.
struct weights {
	const struct kernels *k;
	const float *estimate;
	float *w; // exp(estimate - shift)
	uint32_t n;
	float shift;
	double total;
	struct sums last; // a root's, most often asked for again by who looks for another from there
};

// A weight that fp32 lost to underflow has pi < 1e-10 at this theta. Below it such rows could matter, and the sorted search takes
// over.
static const double SMALLEST_THETA = 1e-28;
static const double HIGHEST_LOG_THETA = 80; // fp32 holds its exponential

// False if the estimates have no finite maximum (none, all -inf, a NaN, a +inf): then there is nothing to solve.
static bool weigh(struct weights *x, const struct kernels *k, const float *estimates, uint32_t n, float *w)
{
	uint32_t usable = 1;
	for (uint32_t i = 0; i < n; i++) {
		w[i] = estimates[i];
		usable &= w[i] <= FLT_MAX;
	}
	*x = (struct weights){.k = k, .estimate = estimates, .w = w, .n = n, .shift = k->max(w, n), .last.theta = NAN};
	if (!usable || !(x->shift > -INFINITY))
		return false;
	x->total = k->exp_sum(w, n, x->shift);
	return true;
}

static struct sums sums_at(struct weights *x, float theta)
{
	struct sums *s = &x->last;
	if (s->theta != theta) {
		s->theta = theta;
		x->k->split_sums(x->w, x->n, theta, &s->below, &s->below2, &s->above);
	}
	return *s;
}

static int descending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x < y) - (x > y);
}

// The same equation where the weights span more than fp32: with the m largest rows certain, tau_m = lse(others) - log(target -
// m), and m is right when the m-th row reaches tau_m. Going down from the most rows that can be certain, the first such m is the
// one.
static double fill_sorted(const struct weights *x, double target)
{
	uint32_t finite = 0;
	for (uint32_t i = 0; i < x->n; i++)
		if (x->estimate[i] > -INFINITY)
			x->w[finite++] = x->estimate[i];
	if (target >= finite)
		return -INFINITY;
	qsort(x->w, finite, sizeof(*x->w), descending);

	double top = (double)x->w[finite - 1], sum = 1; // lse of the rows after the m-th = top + log sum
	double tau = -INFINITY;
	for (uint32_t m = finite - 1;; m--) {
		if (m < target) {
			tau = top + log(sum) - log(target - m);
			if (m == 0 || (double)x->w[m - 1] >= tau)
				break;
		}
		double next = (double)x->w[m - 1];
		sum = sum * exp(top - next) + 1;
		top = next;
	}
	memcpy(x->w, x->estimate, x->n * sizeof(*x->w));
	x->k->exp_sum(x->w, x->n, x->shift);
	return tau;
}

// tau with sum_i min(1, exp(s_i - tau)) = target, 0 < target < n. From above: theta <- below / (target - above) never passes the
// root, and it is exact once the set above it stops growing.
static double fill(struct weights *x, double target)
{
	enum { STEPS = 32 };
	double theta = x->total / target;
	uint64_t known = 0;
	for (int step = 0; step < STEPS && theta >= SMALLEST_THETA; step++) {
		if (theta >= 1)
			return (double)x->shift + log(theta);
		struct sums s = sums_at(x, (float)theta);
		if (s.above == known)
			return (double)x->shift + log(theta);
		if (!((double)s.above < target))
			break;
		theta = s.below / (target - (double)s.above);
		known = s.above;
	}
	return fill_sorted(x, target);
}

// As fill, for any number of rows.
static double tau_of_rows(struct weights *x, double repeat, double rows)
{
	if (!(rows > 0))
		return INFINITY;
	if (rows >= repeat * x->n)
		return -INFINITY;
	return fill(x, rows / repeat);
}

float tau_for_budget(const struct kernels *k, const float *estimates, uint32_t n, double repeat, double budget, float *w)
{
	struct weights x;
	if (n && !(budget > 0))
		return INFINITY;
	if (budget >= repeat * n || !weigh(&x, k, estimates, n, w))
		return -INFINITY;
	return (float)tau_of_rows(&x, repeat, budget);
}

struct target {
	struct weights *x;
	double repeat, exact; // exact: the client's own mass, in units of exp(shift)
	double eps2;
};

// log of the relative variance over eps^2. A pilot row stands for `repeat` rows unless it is certain: then it was found, not
// drawn.
static double excess(const struct target *t, double log_theta)
{
	struct sums s = sums_at(t->x, (float)exp(log_theta));
	double variance = t->repeat * ((double)s.theta * s.below - s.below2);
	double mass = t->repeat * s.below + (t->x->total - s.below) + t->exact;
	return variance > 0 ? log(variance / t->eps2) - 2 * log(mass) : -INFINITY;
}

static double variance_at(struct weights *x, double repeat, float exact_lse, float tau)
{
	struct target t = {x, repeat, exact_lse > -INFINITY ? exp((double)exact_lse - (double)x->shift) : 0, 1};
	return exp(excess(&t, fmin((double)tau - (double)x->shift, HIGHEST_LOG_THETA)));
}

double relative_variance(const struct kernels *k, const float *estimates, uint32_t n, double repeat, float exact_lse, float tau,
                         float *w)
{
	struct weights x;
	if (!weigh(&x, k, estimates, n, w))
		return 0;
	return variance_at(&x, repeat, exact_lse, tau);
}

double floor_rows(double share, uint64_t rows)
{
	if (rows <= BUDGET_LINEAR_ROWS)
		return share * (double)rows;
	return share * sqrt((double)BUDGET_LINEAR_ROWS * (double)rows);
}

// The crossing between `low` (not in excess) and `high` (in excess), in log theta: false position, halving the end that stays
// (Illinois), with a bisection every third step. What is returned is never in excess.
static double solve(const struct target *t, double low, double high, double excess_low, double excess_high)
{
	const double tolerance = 1e-3;
	int stayed = 0; // > 0: `high` stayed, < 0: `low` did
	for (int step = 1; high - low > tolerance; step++) {
		double middle = (low + high) / 2;
		if (step % 3 && isfinite(excess_low)) {
			double secant = low + (high - low) * excess_low / (excess_low - excess_high);
			double margin = tolerance / 4;
			middle = fmin(fmax(secant, low + margin), high - margin);
		}
		double e = excess(t, middle);
		if (e <= 0) {
			low = middle;
			excess_low = e;
			excess_high *= stayed > 0 ? .5 : 1;
			stayed = 1;
		} else {
			high = middle;
			excess_high = e;
			excess_low *= stayed < 0 ? .5 : 1;
			stayed = -1;
		}
	}
	return low;
}

float tau_for_error(const struct kernels *k, const float *estimates, uint32_t n, double repeat, double eps, float exact_lse,
                    double floor_rows, double cap_rows, float *w)
{
	const double lowest = log(SMALLEST_THETA);
	struct weights x;
	if (!weigh(&x, k, estimates, n, w))
		return -INFINITY;
	double floor_tau = tau_of_rows(&x, repeat, fmin(floor_rows, cap_rows)), cap_tau = tau_of_rows(&x, repeat, cap_rows);
	if (!(eps > 0))
		return (float)cap_tau;
	struct target t = {&x, repeat, exact_lse > -INFINITY ? exp((double)exact_lse - (double)x.shift) : 0, eps * eps};
	double high = fmin(floor_tau - (double)x.shift, HIGHEST_LOG_THETA), low = fmax(cap_tau - (double)x.shift, lowest);
	double excess_high = high > lowest ? excess(&t, high) : 0;
	if (excess_high <= 0)
		return (float)floor_tau;
	double excess_low = low < high ? excess(&t, low) : excess_high;
	if (excess_low > 0)
		return (float)cap_tau;
	return (float)((double)x.shift + solve(&t, low, high, excess_low, excess_high));
}

static float tau_of_share(struct weights *x, double repeat, double share, float exact_lse, double floor_rows, double cap_rows)
{
	enum { STEPS = 64 };
	if (!(share > 0))
		return (float)tau_of_rows(x, repeat, cap_rows);
	double floor_tau = tau_of_rows(x, repeat, fmin(floor_rows, cap_rows));
	double exact = exact_lse > -INFINITY ? exp((double)exact_lse - (double)x->shift) : 0;
	double theta = exp(fmin(floor_tau - (double)x->shift, HIGHEST_LOG_THETA));
	uint64_t known = UINT64_MAX;
	// Z grows with theta, so that from above theta only falls, to the largest root; it is there once no row changes sides.
	for (int step = 0; step < STEPS; step++) {
		struct sums s = sums_at(x, (float)theta);
		if (step > 0 && repeat * ((double)s.above + s.below / theta) >= cap_rows)
			return (float)tau_of_rows(x, repeat, cap_rows);
		double next = share * (repeat * s.below + (x->total - s.below) + exact);
		if (!(next < theta)) {
			if (step == 0)
				return (float)floor_tau;
			break;
		}
		theta = next;
		if (theta <= SMALLEST_THETA)
			return (float)tau_of_rows(x, repeat, cap_rows);
		if (s.above == known)
			break;
		known = s.above;
	}
	return (float)((double)x->shift + log(theta));
}

float tau_for_share(const struct kernels *k, const float *estimates, uint32_t n, double repeat, double share, float exact_lse,
                    double floor_rows, double cap_rows, float *w, float variance_lse, double *variance)
{
	struct weights x;
	bool usable = weigh(&x, k, estimates, n, w);
	float tau = usable ? tau_of_share(&x, repeat, share, exact_lse, floor_rows, cap_rows) : -INFINITY;
	if (variance)
		*variance = usable ? variance_at(&x, repeat, variance_lse, tau) : 0;
	return tau;
}
