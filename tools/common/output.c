#include "tools/common/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct place {
	bool as_it_is; // no regular file: written to where it is
	mode_t mode;
	char path[PATH_MAX], fresh[PATH_MAX + 16]; // fresh: a template for mkostemp
};

static mode_t usual_mode(void)
{
	mode_t mask = umask(077);
	umask(mask);
	return 0666 & ~mask;
}

static int find_place(const char *path, struct place *place)
{
	struct stat st;
	bool there = stat(path, &st) == 0;
	size_t n = strlen(path);
	*place = (struct place){.mode = there ? st.st_mode & 0777 : usual_mode()};
	if (!there && errno != ENOENT)
		return -1;
	if (!n || n >= sizeof place->path)
		return errno = n ? ENAMETOOLONG : ENOENT, -1;
	if (path[n - 1] == '/' || (there && S_ISDIR(st.st_mode)))
		return errno = EISDIR, -1;
	if (there && eaccess(path, W_OK) != 0) // made read-only so that it stays
		return -1;
	place->as_it_is = there ? !S_ISREG(st.st_mode) : lstat(path, &st) == 0; // else a link to nothing
	if (!there || place->as_it_is)
		strcpy(place->path, path);
	else if (!realpath(path, place->path))
		return -1;
	const char *slash = strrchr(place->path, '/'), *name = slash ? slash + 1 : place->path;
	snprintf(place->fresh, sizeof place->fresh, "%.*s.%.200s.XXXXXX", (int)(name - place->path), place->path, name);
	return 0;
}

// A descriptor to write to, or -1 with errno.
static int begin(struct place *place)
{
	if (place->as_it_is)
		return open(place->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	return mkostemp(place->fresh, O_CLOEXEC);
}

static int give_up(struct place *place, int reason)
{
	if (!place->as_it_is)
		unlink(place->fresh);
	return errno = reason, -1;
}

int output_check(const char *path)
{
	struct place place;
	if (find_place(path, &place) != 0)
		return -1;
	if (place.as_it_is) // to open a pipe is to wait for its reader, and to open it twice is to end it for that one
		return access(place.path, F_OK) != 0 || eaccess(place.path, W_OK) == 0 ? 0 : -1;
	int fd = begin(&place);
	if (fd < 0)
		return -1;
	close(fd);
	return unlink(place.fresh);
}

int output_write(const char *path, void (*write)(FILE *out, const void *argument), const void *argument)
{
	struct place place;
	int fd = find_place(path, &place) == 0 ? begin(&place) : -1;
	if (fd < 0)
		return -1;
	FILE *out = fdopen(fd, "w");
	if (!out) {
		int reason = errno;
		close(fd);
		return give_up(&place, reason);
	}
	errno = 0;
	write(out, argument);
	bool bad = fflush(out) != 0 || ferror(out);
	if (!bad && !place.as_it_is)
		bad = fchmod(fd, place.mode) != 0 || fsync(fd) != 0;
	int reason = errno ? errno : EIO; // an error of stdio that is older than the last call may have lost it
	if (fclose(out) != 0 && !bad) {
		bad = true;
		reason = errno;
	}
	if (!bad && !place.as_it_is && rename(place.fresh, place.path) != 0) {
		bad = true;
		reason = errno;
	}
	return bad ? give_up(&place, reason) : 0;
}
