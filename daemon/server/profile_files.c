#include "daemon/server/profile_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/profile.h"
#include "daemon/base/log.h"
#include "daemon/disk/durable.h"
#include "shm/control.h"
#include "shm/status.h"

enum { NAME_BYTES = PROFILE_HEX_BYTES + 32, HEAD_BYTES = 2 * 64, CHUNK = 64 << 10 };
static const char HEAD[] = "# a profile of magicpigd, not to be edited; XXH3 of what follows: ";
static_assert(sizeof HEAD + 17 <= HEAD_BYTES, "a line of this length");

// ---- names -----------------------------------------------------------------------------------------------------------
static void file_name(uint32_t uid, const uint8_t fingerprint[64], char name[NAME_BYTES])
{
	char hex[PROFILE_HEX_BYTES], who[16] = "all";
	profile_hex(fingerprint, hex);
	if (uid != MPIG_PROFILE_ALL)
		snprintf(who, sizeof who, "%u", uid);
	snprintf(name, NAME_BYTES, "%s.%s.profile", hex, who);
}

// Whose file it is, by its name. False: no profile's name.
static bool name_means(const char *name, uint32_t *uid, uint8_t fingerprint[64])
{
	char hex[PROFILE_HEX_BYTES], who[16], again[NAME_BYTES];
	if (sscanf(name, "%128[0-9a-f].%15[0-9al].profile", hex, who) != 2 || !profile_unhex(hex, fingerprint))
		return false;
	*uid = strcmp(who, "all") == 0 ? MPIG_PROFILE_ALL : (uint32_t)strtoul(who, NULL, 10);
	file_name(*uid, fingerprint, again);
	return strcmp(name, again) == 0;
}

// ".NAME.new" of a daemon that was killed before it renamed it: one daemon has the directory.
static bool left_over(const char *name)
{
	char kept[NAME_BYTES];
	uint32_t uid;
	uint8_t fingerprint[64];
	size_t n = strlen(name);
	if (n < 6 || n - 5 >= sizeof kept || name[0] != '.' || strcmp(name + n - 4, ".new") != 0)
		return false;
	memcpy(kept, name + 1, n - 5);
	kept[n - 5] = '\0';
	return name_means(kept, &uid, fingerprint);
}

// ---- reading ---------------------------------------------------------------------------------------------------------
static int open_dir(const char *dir)
{
	return disk_open(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY, false);
}

// All of a file, with a zero behind it: its length, or -1 with errno.
static ssize_t read_file(int dir, const char *name, char *text, size_t room)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	size_t n = 0;
	ssize_t got = -1;
	if (fd < 0)
		return -1;
	errno = EINVAL;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		while (n + 1 < room && (got = pread(fd, text + n, room - 1 - n, (off_t)n)) > 0)
			n += (size_t)got;
	close(fd);
	text[n] = '\0';
	return got < 0 ? -1 : (ssize_t)n;
}

static void read_one(const char *where, int dir, const char *name, char *text, size_t room, profile_file_fn *fn, void *arg)
{
	char why[MPIG_TEXT_BYTES] = "";
	uint32_t uid;
	uint8_t fingerprint[64];
	if (!name_means(name, &uid, fingerprint))
		return;
	ssize_t n = read_file(dir, name, text, room);
	const char *body = n < 0 ? NULL : memchr(text, '\n', (size_t)n);
	uint64_t sum = 0;
	bool sound = body && strncmp(text, HEAD, sizeof HEAD - 1) == 0 && sscanf(text + sizeof HEAD - 1, "%" SCNx64, &sum) == 1;
	size_t bytes = body ? (size_t)(text + n - ++body) : 0;
	if (n < 0)
		snprintf(why, sizeof why, "%s", strerror(errno));
	else if (!sound || sum != XXH3_64bits(body, bytes))
		snprintf(why, sizeof why, "it does not have its checksum: it was damaged or edited");
	else
		(void)fn(arg, uid, fingerprint, body, bytes, why);
	if (why[0])
		log_warn("profile %s/%s is not used: %s; remove it, or run magicpigctl tune again", where, name, why);
}

void profile_files_read(const char *where, profile_file_fn *fn, void *arg)
{
	enum { ROOM = PROFILE_TEXT_BYTES + 2 * HEAD_BYTES };
	int dir = open_dir(where);
	DIR *list = dir >= 0 ? fdopendir(dir) : NULL;
	char *text = malloc(ROOM);
	if (dir >= 0 && (!list || !text))
		log_warn("daemon.profiles: cannot read %s: no memory", where);
	else if (dir < 0 && dir != -ENOENT)
		log_warn("daemon.profiles: cannot read %s: %s", where, strerror(-dir));
	// A daemon that was killed between renaming and syncing leaves a name that a power loss would still take back.
	int rc = dir < 0 ? 0 : disk_sync(dir, ".");
	if (rc)
		log_warn("daemon.profiles: a power loss may take what is in %s: fsync: %s", where, strerror(-rc));
	for (struct dirent *e; list && text && (e = readdir(list));)
		if (left_over(e->d_name))
			(void)disk_unlink(dir, e->d_name);
		else
			read_one(where, dir, e->d_name, text, ROOM, fn, arg);
	if (list)
		closedir(list);
	else if (dir >= 0)
		close(dir);
	free(text);
}

// ---- writing ---------------------------------------------------------------------------------------------------------
// The file of a text, or none (text NULL). *changed: whether the name is the new file's, or gone.
static int put(struct io *io, int dir, const struct profile_file *of, const char *text, size_t bytes, bool *changed)
{
	char name[NAME_BYTES], temporary[NAME_BYTES + 8];
	file_name(of->uid, of->fingerprint, name);
	snprintf(temporary, sizeof temporary, ".%s.new", name);
	if (!text)
		return durable_remove(dir, name, changed);
	char *whole = malloc(HEAD_BYTES + bytes);
	*changed = false;
	if (!whole)
		return -ENOMEM;
	int head = snprintf(whole, HEAD_BYTES, "%s%016" PRIx64 "\n", HEAD, (uint64_t)XXH3_64bits(text, bytes));
	memcpy(whole + head, text, bytes);
	int rc = durable_replace(io, dir, temporary, name, whole, (uint64_t)head + bytes, changed);
	if (rc && !*changed)
		(void)disk_unlink(dir, temporary);
	free(whole);
	return rc;
}

static int change(struct io *io, const struct profile_file *of, const char *text, size_t bytes, const char *old, size_t old_bytes)
{
	bool changed = false;
	int rc = text ? disk_mkdir(AT_FDCWD, of->dir) : 0;
	int dir = rc ? rc : open_dir(of->dir);
	if (dir < 0)
		return !text && dir == -ENOENT ? 0 : dir;
	rc = text ? durable_parent(dir) : 0;
	if (!rc)
		rc = put(io, dir, of, text, bytes, &changed);
	// A name that is not known to last is taken back, so that memory and disk say the same.
	if (rc && changed && put(io, dir, of, old, old_bytes, &changed))
		log_error("profiles in %s: %s, and neither can the one before be put back: the next daemon may find either",
		          of->dir, strerror(-rc));
	close(dir);
	return rc;
}

int profile_file_change(const struct profile_file *of, const char *text, size_t bytes, const char *old, size_t old_bytes,
                        char *why)
{
	struct io io;
	int rc = io_open(&io, 1, CHUNK, 0);
	if (!rc)
		rc = change(&io, of, text, bytes, old, old_bytes);
	io_close(&io);
	if (!rc)
		return MPIG_OK;
	snprintf(why, MPIG_TEXT_BYTES, "cannot %s the profile %s %.160s (daemon.profiles): %s", text ? "keep" : "clear",
	         text ? "in" : "from", of->dir, strerror(-rc));
	return rc == -ENOSPC || rc == -EDQUOT ? MPIG_ENOSPC : rc == -ENOMEM ? MPIG_ENOMEM : MPIG_EIO;
}
