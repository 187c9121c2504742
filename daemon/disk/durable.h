// Small files that a power loss leaves whole: the one before or the new one, and the new one once the call has answered 0.
#ifndef MPIG_DISK_DURABLE_H
#define MPIG_DISK_DURABLE_H

#include "daemon/disk/io.h"

// Writes `temporary`, fsync, renames it to `name`, fsync of the directory. 0 or -errno; then `temporary` may be left. *changed (NULL is allowed):
// whether `name` is the new file's, also where the last step failed, so that nobody knows for how long.
int durable_replace(struct io *io, int dir, const char *temporary, const char *name, const void *data, uint64_t bytes,
                    bool *changed);
// Removes `name` and syncs the directory; one that is not there is fine. 0 or -errno.
int durable_remove(int dir, const char *name, bool *changed);
// The name of the directory itself: whatever was made by whomever, a power loss must not take all of it. 0 or -errno.
int durable_parent(int dir);

#endif
