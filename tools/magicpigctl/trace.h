// magicpigctl trace: what its parts share.
#ifndef MAGICPIGCTL_TRACE_H
#define MAGICPIGCTL_TRACE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "ctl.h"

extern volatile sig_atomic_t trace_interrupted; // by SIGINT, SIGTERM or SIGHUP: what was begun is finished

struct trace_record_options {
	uint64_t requests; // 0: no limit
	uint64_t seconds;  // 0: no limit
	uint64_t ring_mib;
};
int trace_record(const struct ctl_command *self, const char *name, const char *path, const struct trace_record_options *o);

// How queries are asked again. What it does not name is as recorded.
struct trace_config {
	char text[80]; // as it was given
	int proposal;  // -1: as recorded, as are the negative ones below
	float budget, error, floor, cap, delta;
};
#define TRACE_CONFIGS 8
// "recorded", or a proposal's name and any of budget=B, error=E, floor=F, cap=C, delta=D, between commas. False, and what is wrong.
bool trace_config_parse(const char *text, struct trace_config *config, char why[128]);
void trace_config_apply(const struct trace_config *config, struct mpig_attend *attend);

struct trace_replay_options {
	struct trace_config config[TRACE_CONFIGS];
	int configs;
	uint64_t requests; // the first so many; 0: all
	double speed;      // of the recorded pace; 0: each as soon as the one before is answered
	bool exact;        // compare with exact answers
};
// context: NULL for the one that was recorded.
int trace_replay(const struct ctl_command *self, const char *path, const char *context, const struct trace_replay_options *o);

#endif
