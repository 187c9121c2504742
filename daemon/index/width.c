// Which width of codes: what an answer costs at each, from answers or measured on a sample, and widths for several strips together.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/index/index.h"

static const double GATHER = 2; // a byte of a gathered row over one of a scan

// Of an estimate, relative: sqrt(1 / rho^2 - 1) of the grids in signature.c.
static double relative_noise(uint32_t bits)
{
	return bits == 1 ? .7555 : bits == 2 ? .3673 : .1081;
}

static double cost(const struct sig_use *use, uint32_t bits, double drawn)
{
	drawn = fmin(drawn, use->rows);
	return use->rows * (double)(use->d_pad * bits / 8 + 2) + GATHER * use->heads * drawn * use->row_bytes;
}

double sig_cost(const struct sig_use *use, uint32_t bits)
{
	double ratio = relative_noise(bits) / relative_noise(use->bits);
	return cost(use, bits, use->drawn * exp(use->noise * use->noise * (ratio * ratio - 1)));
}

uint32_t sig_best_bits(const struct sig_use *use)
{
	if (!isfinite(use->rows + use->drawn + use->noise))
		return 0;
	uint32_t best = 1;
	for (uint32_t bits = 2; bits <= 4; bits *= 2)
		if (sig_cost(use, bits) < sig_cost(use, best))
			best = bits;
	return best;
}

// ---- measured on a sample --------------------------------------------------------------------------------------------
// A row of weight w = e^s that is taken with pi = min(1, e^(estimate - tau)) adds w^2 (1/pi - 1) to the variance of the mass, whatever
// the noise of estimates is like. So the variance an answer without noise would have, with the rows that it would take, says which
// tau, and so how many rows, each width needs for the same.

struct measuring {
	const struct kernels *k;
	const struct sig_sample *sample;
	float *logit, *work, *estimate; // [n + near] each
	double *weight, *over, *mass;   // [n] w^2, w^2 / e^estimate, e^estimate; w over the largest weight
	float *rotated;                 // [d_pad]
	int8_t *signature;              // [d_pad]
	uint16_t *factors[3];           // [n]
	uint8_t *codes[3];
	double rows[3]; // that answers take at each width, summed over queries
};

static struct sig_params params_at(const struct measuring *m, uint32_t width)
{
	struct sig_params p = m->sample->params;
	p.bits = 1u << width;
	return p;
}

static void bend(float *x, uint32_t n, float cap)
{
	for (uint32_t i = 0; cap > 0 && i < n; i++)
		x[i] = cap * tanhf(x[i] / cap);
}

static void true_logits(struct measuring *m, const float *q)
{
	const struct sig_sample *s = m->sample;
	for (uint32_t i = 0; i < s->n + s->near; i++) {
		const float *key = s->keys + (size_t)i * s->params.d_k;
		float sum[8] = {0}; // d_k is a multiple of 16
		for (uint32_t j = 0; j < s->params.d_k; j += 8)
			for (uint32_t l = 0; l < 8; l++)
				sum[l] += q[j + l] * key[j + l];
		m->logit[i] = s->scale * (((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])));
	}
	bend(m->logit, s->n + s->near, s->softcap);
}

static float true_tau(struct measuring *m)
{
	const struct sig_sample *s = m->sample;
	double repeat = s->rows / s->n;
	if (s->eps <= 0)
		return tau_for_budget(m->k, m->logit, s->n, repeat, s->budget_rows, m->work);
	memcpy(m->work, m->logit + s->n, s->near * sizeof(float));
	float top = m->k->max(m->work, s->near);
	float exact = s->near ? top + (float)log(m->k->exp_sum(m->work, s->near, top)) : -INFINITY;
	return tau_for_error(m->k, m->logit, s->n, repeat, s->eps, exact, s->floor_rows, s->cap_rows, m->work);
}

static void set_weights(struct measuring *m, const float *estimate, float top)
{
	for (uint32_t i = 0; i < m->sample->n; i++) {
		double s = (double)m->logit[i] - (double)top, guess = (double)estimate[i] - (double)top;
		m->weight[i] = exp(2 * s);
		m->mass[i] = exp(guess);
		m->over[i] = exp(2 * s - guess);
	}
}

// The variance of the mass of the sample's rows where theta = e^(tau - top), and how many are taken.
static double variance(const struct measuring *m, double theta, double *rows)
{
	double above = 0, over = 0, weight = 0, mass = 0;
	for (uint32_t i = 0; i < m->sample->n; i++) {
		bool drawn = m->mass[i] < theta;
		over += drawn ? m->over[i] : 0;
		weight += drawn ? m->weight[i] : 0;
		mass += drawn ? m->mass[i] : 0;
		above += drawn ? 0 : 1;
	}
	*rows = above + mass / theta;
	return over * theta - weight;
}

// Rows taken at the tau that brings the variance to `target`, by bisection: it grows with tau, and is 0 where all rows are certain.
static double rows_at(const struct measuring *m, double target)
{
	double lo = INFINITY, hi = 0, rows;
	for (uint32_t i = 0; i < m->sample->n; i++) {
		lo = fmin(lo, m->mass[i]);
		hi = fmax(hi, m->mass[i]);
	}
	lo = fmax(log(lo), -700); // theta is a normal number
	hi = log(hi) + 20;
	for (int step = 0; step < 20; step++) {
		double mid = (lo + hi) / 2;
		if (variance(m, exp(mid), &rows) <= target)
			lo = mid;
		else
			hi = mid;
	}
	variance(m, exp(lo), &rows);
	return rows;
}

static void measure_query(struct measuring *m, const float *q)
{
	const struct sig_sample *s = m->sample;
	true_logits(m, q);
	float top = m->k->max(m->logit, s->n), scale, q_mu;
	double tau = (double)true_tau(m), rows, target = 0;
	set_weights(m, m->logit, top);
	if (isfinite(tau))
		target = variance(m, exp(tau - (double)top), &rows);
	sig_encode_query(m->k, &s->params, q, m->signature, &scale, &q_mu, m->rotated);
	for (uint32_t width = 0; width < 3; width++) {
		struct sig_params p = params_at(m, width);
		struct sig_query query = sig_query_of(&p, m->signature, scale * s->scale, q_mu * s->scale);
		m->k->sig_estimate(m->codes[width], m->factors[width], s->n, p.d_pad, p.bits, &query, 1, m->estimate, s->n);
		bend(m->estimate, s->n, s->softcap);
		set_weights(m, m->estimate, top);
		m->rows[width] += s->rows / s->n * rows_at(m, target);
	}
}

static void measure(struct measuring *m)
{
	const struct sig_sample *s = m->sample;
	for (uint32_t width = 0; width < 3; width++) {
		struct sig_params p = params_at(m, width);
		memset(m->codes[width], 0, sig_code_bytes(p.d_pad, p.bits, s->n));
		for (uint32_t i = 0; i < s->n; i++)
			sig_encode(m->k, &p, s->keys + (size_t)i * p.d_k, m->codes[width], m->factors[width], i, m->rotated);
	}
	for (uint32_t r = 0; r < s->query_count; r++)
		measure_query(m, s->queries + (size_t)r * s->params.d_k);
}

static void *take(uint8_t **at, size_t bytes)
{
	void *mine = *at;
	*at += (bytes + 63) & ~(size_t)63;
	return mine;
}

bool sig_width_costs(const struct kernels *k, const struct sig_sample *sample, double out[3])
{
	size_t d_pad = sample->params.d_pad, n = sample->n, all = n + sample->near;
	size_t code_bytes = sig_code_bytes((uint32_t)d_pad, 4, sample->n);
	size_t bytes =
		3 * n * sizeof(double) + (3 * all + d_pad) * sizeof(float) + d_pad + 3 * (n * sizeof(uint16_t) + code_bytes);
	struct measuring m = {.k = k, .sample = sample};
	uint8_t *memory = aligned_alloc(64, (bytes + 16 * 64) & ~(size_t)63), *at = memory;
	if (!memory)
		return false;
	m.weight = take(&at, n * sizeof(double));
	m.over = take(&at, n * sizeof(double));
	m.mass = take(&at, n * sizeof(double));
	m.logit = take(&at, all * sizeof(float));
	m.work = take(&at, all * sizeof(float));
	m.estimate = take(&at, all * sizeof(float));
	m.rotated = take(&at, d_pad * sizeof(float));
	m.signature = take(&at, d_pad);
	for (int width = 0; width < 3; width++) {
		m.factors[width] = take(&at, n * sizeof(uint16_t));
		m.codes[width] = take(&at, code_bytes);
	}
	measure(&m);
	free(memory);
	struct sig_use use = {
		.d_pad = sample->params.d_pad, .heads = sample->heads, .row_bytes = sample->row_bytes, .rows = sample->rows};
	for (uint32_t width = 0; width < 3; width++)
		out[width] = cost(&use, 1u << width, m.rows[width] / sample->query_count);
	return true;
}

// ---- several strips --------------------------------------------------------------------------------------------------

enum { UNKNOWN_BITS = 2 };

static uint32_t row_bytes(uint32_t d_pad, uint32_t bits)
{
	return d_pad * bits / 8 + 2;
}

static double cost_at(const double cost[3], uint32_t bits)
{
	return cost[bits == 4 ? 2 : bits - 1];
}

// What narrowing a strip costs, for each byte that it saves.
static double price(const double cost[3], uint32_t d_pad, uint32_t bits)
{
	double more = cost_at(cost, bits / 2) - cost_at(cost, bits);
	return (isfinite(more) ? more : 0) / (row_bytes(d_pad, bits) - row_bytes(d_pad, bits / 2));
}

void sig_choose_widths(const double (*cost)[3], uint32_t n, uint32_t d_pad, uint32_t limit, uint8_t *bits)
{
	uint64_t total = 0;
	for (uint32_t i = 0; i < n; i++) {
		bool known = isfinite(cost[i][0] + cost[i][1] + cost[i][2]);
		bits[i] = known ? 1 : UNKNOWN_BITS;
		for (uint32_t b = 2; known && b <= 4; b *= 2)
			if (cost_at(cost[i], b) < cost_at(cost[i], bits[i]))
				bits[i] = (uint8_t)b;
		total += row_bytes(d_pad, bits[i]);
	}
	while (limit && total > (uint64_t)limit * n) {
		uint32_t cheapest = n;
		for (uint32_t i = 0; i < n; i++)
			if (bits[i] > 1 &&
			    (cheapest == n || price(cost[i], d_pad, bits[i]) < price(cost[cheapest], d_pad, bits[cheapest])))
				cheapest = i;
		if (cheapest == n)
			return;
		total -= row_bytes(d_pad, bits[cheapest]) - row_bytes(d_pad, bits[cheapest] / 2);
		bits[cheapest] /= 2;
	}
}
