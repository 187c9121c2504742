// What commands say of a context, and how they go through all of them.
#ifndef MAGICPIGCTL_CONTEXT_H
#define MAGICPIGCTL_CONTEXT_H

#include <magicpig.h>

#include "json.h"

// The fields of a context as members of an object that the caller has begun.
void context_json(struct json *json, const struct mpig_context_info *info);

// Calls `each` for every context the caller may read, until it answers other than 0. That, or the status of a list that failed, or 0.
int context_each(mpig_client *client, int (*each)(void *argument, const struct mpig_context_info *info), void *argument);
// The same for every context on the daemon's disk, by name.
int saved_each(mpig_client *client, int (*each)(void *argument, const struct mpig_saved_info *info), void *argument);

#endif
