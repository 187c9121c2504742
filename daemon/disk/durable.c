#include "daemon/disk/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "daemon/disk/private.h"

int durable_replace(struct io *io, int dir, const char *temporary, const char *name, const void *data, uint64_t bytes,
                    bool *changed)
{
	int fd = disk_open(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC, false);
	int rc = fd < 0 ? fd : io_move(io, fd, temporary, true, 0, (void *)(uintptr_t)data, bytes); // a write only reads it
	if (!rc)
		rc = disk_sync(fd, temporary);
	if (fd >= 0)
		close(fd);
	if (!rc)
		rc = disk_rename(dir, temporary, name);
	if (changed)
		*changed = !rc;
	return rc ? rc : disk_sync(dir, ".");
}

int durable_remove(int dir, const char *name, bool *changed)
{
	int rc = disk_unlink(dir, name);
	if (changed)
		*changed = !rc;
	return rc && rc != -ENOENT ? rc : disk_sync(dir, ".");
}

int durable_parent(int dir)
{
	int parent = disk_open(dir, "..", O_RDONLY | O_DIRECTORY, false);
	if (parent == -EACCES) // one that we may not list
		return syncfs(dir) ? -errno : 0;
	int rc = parent < 0 ? parent : disk_sync(parent, "..");
	if (parent >= 0)
		close(parent);
	return rc;
}
