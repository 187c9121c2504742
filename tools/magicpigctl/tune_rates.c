// What rows cost, from the times of all answers.
#include <math.h>
#include <stdlib.h>

#include "tune_run.h"

#define QUIET .2 // of times, the share below which they count: others' work makes some longer, nothing makes them shorter

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

static double quiet_time(float *ns, int count)
{
	if (!count)
		return 0;
	qsort(ns, (size_t)count, sizeof(*ns), by_value);
	return (double)ns[(int)(QUIET * (double)(count - 1))];
}

static void means(const struct tune *t, const struct tune_layer *l, int way, double *rows, double *looked)
{
	double count = 0;
	*rows = *looked = 0;
	for (int s = 0; s < t->seeds; s++)
		for (int half = 0; half < TUNE_HALVES; half++) {
			*rows += l->cell[way][s][half].rows;
			*looked += l->cell[way][s][half].looked;
			count += l->cell[way][s][half].count;
		}
	if (count > 0) {
		*rows /= count;
		*looked /= count;
	}
}

// time = request + scan * looked + read * rows, by least squares of relative errors over layers and ways; neither below zero.
static void fit_signature(struct tune *t)
{
	double ll = 0, lr = 0, rr = 0, lt = 0, rt = 0;
	for (int i = 0; i < t->layers; i++)
		for (int way = 0; way < t->ways; way++) {
			struct tune_layer *l = &t->layer[i];
			double rows, looked, ns = quiet_time(l->ns[way], l->ns_count[way]) - t->rates.request;
			means(t, l, way, &rows, &looked);
			if (l->way[way].proposal != MPIG_PROPOSAL_SIGNATURE || l->way[way].bits || !l->ns_count[way] ||
			    !(ns > 0) || rows >= looked)
				continue;
			ll += looked * looked / (ns * ns);
			lr += looked * rows / (ns * ns);
			rr += rows * rows / (ns * ns);
			lt += looked / ns;
			rt += rows / ns;
		}
	double det = ll * rr - lr * lr;
	t->rates.scan = det > 0 ? (lt * rr - rt * lr) / det : 0;
	t->rates.read = det > 0 ? (rt * ll - lt * lr) / det : 0;
	if (!(t->rates.scan > 0)) {
		t->rates.scan = 0;
		t->rates.read = rr > 0 ? rt / rr : 0;
	} else if (!(t->rates.read > 0)) {
		t->rates.read = 0;
		t->rates.scan = ll > 0 ? lt / ll : 0;
	}
}

// The mean over layers of what a row costs densely, and of what a hash bit of a query costs beside the rows that it finds.
static double fit_mean(struct tune *t, bool dense)
{
	double sum = 0;
	int count = 0;
	for (int i = 0; i < t->layers; i++)
		for (int way = 0; way < t->ways; way++) {
			struct tune_layer *l = &t->layer[i];
			double rows, looked, ns = quiet_time(l->ns[way], l->ns_count[way]) - t->rates.request;
			means(t, l, way, &rows, &looked);
			double per = dense ? looked : tune_hash_bits(&l->spec, &l->way[way]);
			if (!l->ns_count[way] || !(per > 0) || dense != (l->way[way].proposal == MPIG_PROPOSAL_DENSE))
				continue;
			sum += fmax(ns - (dense ? 0 : t->rates.read * rows), 0) / per;
			count++;
		}
	return count ? sum / count : 0;
}

// A row of codes of so many bits, on copies of one layer.
static double copied_scan(struct tune *t, struct tune_layer *l, int bits)
{
	double sum = 0;
	int count = 0;
	for (int way = 0; way < t->ways; way++) {
		double rows, looked, ns = quiet_time(l->ns[way], l->ns_count[way]) - t->rates.request;
		means(t, l, way, &rows, &looked);
		if (l->way[way].bits != bits || !l->ns_count[way] || rows >= looked)
			continue;
		sum += fmax(ns - t->rates.read * rows, 0) / looked;
		count++;
	}
	return count ? sum / count : 0;
}

// Copies of one layer stay in caches that a whole model does not stay in, so that widths are compared among copies: with that of the context, or
// with 2 bits where the daemon has chosen for each KV head.
static void fit_widths(struct tune *t)
{
	for (int b = 0; b < 3; b++) {
		double sum = 0;
		int count = 0;
		for (int i = 0; i < t->layers; i++) {
			struct tune_layer *l = &t->layer[i];
			double own = copied_scan(t, l, l->spec.signature_bits == MPIG_BITS_AUTO ? 2 : l->spec.signature_bits);
			double other = copied_scan(t, l, 1 << b);
			if (l->spec.signature_bits && own > 0 && other > 0) {
				sum += other / own;
				count++;
			}
		}
		t->rates.scan_bits[b] = count ? (double)tune_rounded(t->rates.scan * sum / count) : 0;
	}
}

void tune_fit_rates(struct tune *t, float *request_ns, int count)
{
	t->rates.request = (double)tune_rounded(quiet_time(request_ns, count));
	fit_signature(t);
	t->rates.scan = (double)tune_rounded(t->rates.scan);
	t->rates.read = (double)tune_rounded(t->rates.read);
	t->rates.dense = (double)tune_rounded(fit_mean(t, true));
	t->rates.lookup = (double)tune_rounded(fit_mean(t, false));
	fit_widths(t);
}
