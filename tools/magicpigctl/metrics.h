// The statistics as text for Prometheus.
#ifndef MAGICPIGCTL_METRICS_H
#define MAGICPIGCTL_METRICS_H

#include <stdbool.h>
#include <stdio.h>

struct stats_sample;

enum metrics_format { METRICS_PROMETHEUS, METRICS_OPENMETRICS }; // text format 0.0.4; OpenMetrics 1.0.0

// Labels are bounded: operations, states, workers; no context and no client.
void metrics_write(FILE *out, const struct stats_sample *sample, enum metrics_format format);

#endif
