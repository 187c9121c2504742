// A command over several names: each is tried, each failure is said, and the first decides the exit code.
#ifndef MAGICPIGCTL_BATCH_H
#define MAGICPIGCTL_BATCH_H

#include "ctl.h"
#include "json.h"

struct batch {
	const struct ctl_command *self;
	mpig_client *client;
	struct json json; // with --json: within an array on stdout, an element for each name
	int first_failure;
};

// Connects. CTL_OK, or says why not and returns the exit code; then there is nothing to end.
int batch_begin(struct batch *batch, const struct ctl_command *self);
// Says what failed, unless `status` is MPIG_OK; subject as in ctl_failed.
void batch_note(struct batch *batch, const char *subject, int status);
// A line, or an object, that says what became of it: "book: dropped".
void batch_result(struct batch *batch, const char *name, const char *result);
// Disconnects; returns the exit code.
int batch_end(struct batch *batch);

#endif
