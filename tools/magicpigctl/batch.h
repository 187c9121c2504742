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
// The same for a command that asked the client for the names before, and has them: an empty array then says that there are none. Takes it over.
void batch_over(struct batch *batch, const struct ctl_command *self, mpig_client *client);
// Says what failed, unless `status` is MPIG_OK; subject as in ctl_failed.
void batch_note(struct batch *batch, const char *subject, int status);
// A line, or an object, that says what became of it: "book: dropped".
void batch_result(struct batch *batch, const char *name, const char *result);
// Disconnects; returns the exit code.
int batch_end(struct batch *batch);

struct batch_removal {
	bool (*confirmed)(mpig_client *client, const char *name); // asks on a terminal
	int (*remove)(mpig_client *client, const char *name);     // a status
	const char *done, *list;                                  // "dropped"; the command that shows the names
};
// A whole command: removes what is named, each after a question if there is a terminal and no --yes.
int batch_remove(const struct ctl_command *self, const struct batch_removal *removal, int argc, char **argv);

#endif
