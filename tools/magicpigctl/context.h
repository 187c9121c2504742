// What ls and show both say of a context.
#ifndef MAGICPIGCTL_CONTEXT_H
#define MAGICPIGCTL_CONTEXT_H

#include <magicpig.h>

#include "json.h"

// The fields of a context as members of an object that the caller has begun.
void context_json(struct json *json, const struct mpig_context_info *info);

#endif
