// The frame of int8 keys: see kernels.h.
#include <math.h>

#include "daemon/kernels/kernels.h"

enum { MAX_DIM = 256 };

void row_frame_none(uint32_t d_k, float *frame)
{
	for (uint32_t j = 0; j < d_k; j++) {
		frame[j] = 0;
		frame[d_k + j] = 1;
	}
}

void row_frame_fit(const float *k, size_t n, uint32_t d_k, float *frame)
{
	double sum[MAX_DIM] = {0}, squares[MAX_DIM] = {0}, mean_deviation = 0;
	for (size_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < d_k; j++)
			sum[j] += (double)k[i * d_k + j];
	for (uint32_t j = 0; j < d_k; j++)
		sum[j] /= (double)n;
	for (size_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < d_k; j++) {
			double x = (double)k[i * d_k + j] - sum[j];
			squares[j] += x * x;
		}
	for (uint32_t j = 0; j < d_k; j++) {
		squares[j] = sqrt(squares[j] / (double)n);
		mean_deviation += squares[j] / d_k;
	}
	for (uint32_t j = 0; j < d_k; j++) {
		// A dimension that these keys do not move in may be one that later keys do: its steps are a few times finer, no more.
		double scale = sqrt(squares[j] + .05 * mean_deviation);
		frame[j] = (float)sum[j];
		frame[d_k + j] = mean_deviation > 0 && isfinite(scale) ? (float)scale : 1;
	}
}

float row_frame_query(const float *frame, const float *q, uint32_t d_k, float *out)
{
	float product = 0;
	for (uint32_t j = 0; j < d_k; j++) {
		product += q[j] * frame[j];
		out[j] = q[j] * frame[d_k + j];
	}
	return product;
}
