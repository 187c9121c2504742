#include "analyze_model.h"

#include <math.h>

#define GATHER_COST 2 // of a byte of a gathered row, over one of a stream; as the daemon reckons

enum { TOP_POINTS = 96, MIDDLE_POINTS = 32, REST_POINTS = CURVE_POINTS - TOP_POINTS - MIDDLE_POINTS };

// Cuts ranks [from, to) into `count` groups, by equal ratios, with weights rank^-power that add up to `mass`.
static void part(struct curve *c, int at, int count, double from, double to, double power, double mass)
{
	double sum = 0, low = from, step = pow((to + 1) / (from + 1), 1.0 / count);
	for (int i = 0; i < count; i++) {
		double high = i + 1 == count ? to : (low + 1) * step - 1, middle = sqrt((low + 1) * (high + 1));
		c->rows[at + i] = high - low;
		c->weight[at + i] = pow(middle, -power);
		sum += c->rows[at + i] * c->weight[at + i];
		low = high;
	}
	for (int i = 0; i < count; i++)
		c->weight[at + i] *= sum > 0 ? mass / sum : 0;
}

static double squares(const struct curve *c, int at, int count)
{
	double sum = 0;
	for (int i = at; i < at + count; i++)
		sum += c->rows[i] * c->weight[i] * c->weight[i];
	return sum;
}

// The power at which the group's first weight is `first`, by bisection; the weights fall off faster, the larger it is.
static double power_for_first(struct curve *c, int at, int count, double from, double to, double mass, double first)
{
	double low = 0, high = 8;
	for (int i = 0; i < 50; i++) {
		double middle = (low + high) / 2;
		part(c, at, count, from, to, middle, mass);
		*(c->weight[at] < first ? &low : &high) = middle;
	}
	return (low + high) / 2;
}

void curve_make(struct curve *c, double rows, double n_eff, double mass_1, double mass_5, double noise)
{
	double one = rows / 100, five = rows / 20;
	mass_1 = fmin(fmax(mass_1, .01), 1);
	mass_5 = fmin(fmax(mass_5, fmax(mass_1, .05)), 1);
	n_eff = fmin(fmax(n_eff, 1), rows);
	c->points = CURVE_POINTS;
	c->noise2 = noise * noise;
	double low = 0, high = 8; // the largest 1 %: the power that gives n_eff
	part(c, TOP_POINTS, MIDDLE_POINTS, one, five, 0, mass_5 - mass_1);
	part(c, TOP_POINTS + MIDDLE_POINTS, REST_POINTS, five, rows, 0, 1 - mass_5);
	double others = squares(c, TOP_POINTS, MIDDLE_POINTS + REST_POINTS);
	for (int i = 0; i < 50; i++) {
		double middle = (low + high) / 2;
		part(c, 0, TOP_POINTS, 0, one, middle, mass_1);
		*(squares(c, 0, TOP_POINTS) + others < 1 / n_eff ? &low : &high) = middle;
	}
	double end = c->weight[TOP_POINTS - 1]; // and the rest goes on from where that ends
	double power = power_for_first(c, TOP_POINTS, MIDDLE_POINTS, one, five, mass_5 - mass_1, end);
	part(c, TOP_POINTS, MIDDLE_POINTS, one, five, power, mass_5 - mass_1);
	end = c->weight[TOP_POINTS + MIDDLE_POINTS - 1];
	power = power_for_first(c, TOP_POINTS + MIDDLE_POINTS, REST_POINTS, five, rows, 1 - mass_5, end);
	part(c, TOP_POINTS + MIDDLE_POINTS, REST_POINTS, five, rows, power, 1 - mass_5);
}

static double expected_rows(const struct curve *c, double threshold)
{
	double rows = 0;
	for (int i = 0; i < c->points; i++)
		rows += c->rows[i] * fmin(1, c->weight[i] / threshold);
	return rows;
}

static double total_rows(const struct curve *c)
{
	double rows = 0;
	for (int i = 0; i < c->points; i++)
		rows += c->rows[i];
	return rows;
}

double curve_error(const struct curve *c, double budget)
{
	double low = -80, high = 1; // log of the threshold
	if (budget >= total_rows(c) * (1 - 1e-9))
		return 0;
	for (int i = 0; i < 60; i++) {
		double middle = (low + high) / 2;
		*(expected_rows(c, exp(middle)) > budget ? &low : &high) = middle;
	}
	double threshold = exp((low + high) / 2), variance = 0;
	for (int i = 0; i < c->points; i++)
		if (c->weight[i] < threshold)
			variance += c->rows[i] * c->weight[i] * (threshold - c->weight[i]);
	return sqrt(variance * exp(c->noise2));
}

double curve_budget(const struct curve *c, double error)
{
	double low = 0, high = total_rows(c);
	for (int i = 0; i < 60; i++) {
		double middle = (low + high) / 2;
		*(curve_error(c, middle) > error ? &low : &high) = middle;
	}
	return high;
}

// ---- what it costs -----------------------------------------------------------------------------------------------------
static int value_width(const struct mpig_layer *l)
{
	return l->d_v ? l->d_v : l->d_k;
}

double layer_row_bytes(const struct mpig_layer *l)
{
	int values = l->d_k + value_width(l);
	if (l->row_dtype == MPIG_I8) // with a scale for each block of 32, in multiples of 32
		return (values + 2 * ((l->d_k + 31) / 32 + (value_width(l) + 31) / 32) + 31) / 32 * 32;
	return (2 * values + 63) / 64 * 64;
}

double layer_code_bytes(const struct mpig_layer *l, int bits)
{
	int padded = l->d_k <= 64 ? 64 : l->d_k <= 128 ? 128 : 256;
	return bits ? padded * bits / 8.0 + 2 : 0;
}

double layer_gain(const struct mpig_layer *l, int bits, double rows, double budget)
{
	double heads = (double)l->query_heads / l->kv_heads;
	double sampled = rows * layer_code_bytes(l, bits) + GATHER_COST * heads * budget * layer_row_bytes(l);
	return sampled > 0 ? rows * layer_row_bytes(l) / sampled : 0;
}
