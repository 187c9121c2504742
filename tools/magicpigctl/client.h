// The connections of a daemon that the caller may see.
#ifndef MAGICPIGCTL_CLIENT_H
#define MAGICPIGCTL_CLIENT_H

#include <magicpig.h>

// Calls `each` for every one of them, the newest first, until it returns a status; which is returned, or that of listing them.
int client_each(mpig_client *client, int (*each)(void *argument, const struct mpig_client_info *info), void *argument);

#endif
