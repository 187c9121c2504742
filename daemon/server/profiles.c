#include "daemon/server/profiles.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/base/log.h"
#include "shm/control.h"
#include "shm/status.h"

enum { NAME_BYTES = PROFILE_HEX_BYTES + 32, HEAD_BYTES = 64 };
static const char HEAD[] = "# a profile of magicpigd, not to be edited; XXH3 of what follows: ";
static_assert(sizeof HEAD + 17 <= 2 * HEAD_BYTES, "a line of this length");
static_assert(PROFILE_TEXT_BYTES == MPIG_PROFILE_BYTES, "a text that the file holds fits a message");

__attribute__((format(printf, 3, 4))) static int refuse(char *why, int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, MPIG_TEXT_BYTES, format, args);
	va_end(args);
	return status;
}

// ---- in memory -------------------------------------------------------------------------------------------------------
static void entry_free(struct profile_entry *e)
{
	if (!e)
		return;
	free(e->profile);
	free(e->text);
	free(e);
}

// Checked, and a copy of it. `profile` is the caller's, for its size.
static int entry_make(uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes, struct profile *profile,
                      struct profile_entry **out, char *why)
{
	uint8_t own[64];
	if (profile_parse(text, bytes, profile, why) != 0)
		return MPIG_EINVAL;
	profile_unhex(profile->fingerprint, own);
	if (memcmp(own, fingerprint, sizeof own) != 0)
		return refuse(why, MPIG_EINVAL, "the profile is of another fingerprint, %.16s...", profile->fingerprint);
	size_t used = offsetof(struct profile, layer) + profile->count * sizeof profile->layer[0];
	struct profile_entry *e = calloc(1, sizeof *e);
	if (e) {
		e->uid = uid;
		memcpy(e->fingerprint, fingerprint, sizeof e->fingerprint);
		e->profile = malloc(used);
		e->text = malloc(bytes);
		e->bytes = bytes;
	}
	if (!e || !e->profile || !e->text) {
		entry_free(e);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory for a profile");
	}
	memcpy(e->profile, profile, used);
	memcpy(e->text, text, bytes);
	*out = e;
	return MPIG_OK;
}

static struct profile_entry **place_of(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	struct profile_entry **at = &all->first;
	while (*at && ((*at)->uid != uid || memcmp((*at)->fingerprint, fingerprint, 64) != 0))
		at = &(*at)->next;
	return at;
}

const struct profile_entry *profiles_find(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	for (const struct profile_entry *e = all->first; e; e = e->next)
		if (e->uid == uid && memcmp(e->fingerprint, fingerprint, 64) == 0)
			return e;
	return NULL;
}

const struct profile_entry *profiles_of(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	const struct profile_entry *own = profiles_find(all, uid, fingerprint);
	return own ? own : profiles_find(all, MPIG_PROFILE_ALL, fingerprint);
}

// Before, at or behind (fingerprint, uid): below, equal to or above 0.
static int compare(const struct profile_entry *e, const uint8_t fingerprint[64], uint32_t uid)
{
	int order = memcmp(e->fingerprint, fingerprint, 64);
	return order ? order : (e->uid > uid) - (e->uid < uid);
}

const struct profile_entry *profiles_next(const struct profiles *all, const uint8_t fingerprint[64], uint32_t uid, uint32_t who,
                                          bool any)
{
	const struct profile_entry *next = NULL;
	for (const struct profile_entry *e = all->first; e; e = e->next)
		if ((any || e->uid == who || e->uid == MPIG_PROFILE_ALL) && compare(e, fingerprint, uid) > 0 &&
		    (!next || compare(e, next->fingerprint, next->uid) < 0))
			next = e;
	return next;
}

static void put(struct profiles *all, struct profile_entry *e)
{
	struct profile_entry **at = place_of(all, e->uid, e->fingerprint), *old = *at;
	e->next = old ? old->next : NULL;
	*at = e;
	all->count += !old;
	entry_free(old);
}

// ---- in files --------------------------------------------------------------------------------------------------------
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

static int open_dir(const struct profiles *all)
{
	return openat(AT_FDCWD, all->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
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

static bool write_all(int fd, const char *text, size_t bytes, size_t offset)
{
	for (size_t at = 0; at < bytes;) {
		ssize_t n = pwrite(fd, text + at, bytes - at, (off_t)(offset + at));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

static int write_file(const struct profiles *all, const struct profile_entry *e, char *why)
{
	char name[NAME_BYTES], temporary[NAME_BYTES + 8], head[2 * HEAD_BYTES];
	int length = snprintf(head, sizeof head, "%s%016" PRIx64 "\n", HEAD, (uint64_t)XXH3_64bits(e->text, e->bytes));
	file_name(e->uid, e->fingerprint, name);
	snprintf(temporary, sizeof temporary, ".%s.new", name);
	int dir = mkdir(all->dir, 0700) == 0 || errno == EEXIST ? open_dir(all) : -1;
	int fd = dir < 0 ? -1 : openat(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	bool good = fd >= 0 && write_all(fd, head, (size_t)length, 0) && write_all(fd, e->text, e->bytes, (size_t)length);
	int error = errno;
	if (fd >= 0 && close(fd) != 0 && good) {
		good = false;
		error = errno;
	}
	if (good && renameat(dir, temporary, dir, name) != 0) {
		good = false;
		error = errno;
	}
	if (!good && fd >= 0)
		unlinkat(dir, temporary, 0);
	if (dir >= 0)
		close(dir);
	if (good)
		return MPIG_OK;
	int status = error == ENOSPC || error == EDQUOT ? MPIG_ENOSPC : MPIG_EIO;
	return refuse(why, status, "cannot keep the profile in %.160s (daemon.profiles): %s", all->dir, strerror(error));
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

static void read_one(struct profiles *all, int dir, const char *name, struct profile *profile, char *text, size_t room)
{
	char why[MPIG_TEXT_BYTES] = "";
	uint32_t uid;
	uint8_t fingerprint[64];
	struct profile_entry *e;
	if (!name_means(name, &uid, fingerprint) || all->count == PROFILES_MOST)
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
	else if (entry_make(uid, fingerprint, body, bytes, profile, &e, why) == MPIG_OK)
		put(all, e);
	if (why[0])
		log_warn("profile %s/%s is not used: %s; remove it, or run magicpigctl tune again", all->dir, name, why);
}

void profiles_open(struct profiles *all, const char *dir)
{
	enum { ROOM = PROFILE_TEXT_BYTES + 4 * HEAD_BYTES };
	*all = (struct profiles){.dir = dir};
	int fd = open_dir(all);
	DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
	struct profile *profile = malloc(sizeof *profile);
	char *text = malloc(ROOM);
	if (fd >= 0 && (!list || !profile || !text))
		log_warn("daemon.profiles: cannot read %s: no memory", dir);
	else if (fd < 0 && errno != ENOENT)
		log_warn("daemon.profiles: cannot read %s: %m", dir);
	for (struct dirent *e; list && profile && text && (e = readdir(list));)
		if (left_over(e->d_name))
			unlinkat(fd, e->d_name, 0);
		else
			read_one(all, fd, e->d_name, profile, text, ROOM);
	if (list)
		closedir(list);
	else if (fd >= 0)
		close(fd);
	free(profile);
	free(text);
	if (all->count)
		log_info("%u profiles in %s", all->count, dir);
}

void profiles_close(struct profiles *all)
{
	for (struct profile_entry *e = all->first, *next; e; e = next) {
		next = e->next;
		entry_free(e);
	}
	*all = (struct profiles){0};
}

// ---- changing them ---------------------------------------------------------------------------------------------------
static int check_room(const struct profiles *all, uint32_t uid, char *why)
{
	uint32_t own = 0;
	for (const struct profile_entry *e = all->first; e; e = e->next)
		own += e->uid == uid;
	if (own >= PROFILES_PER_UID)
		return refuse(why, MPIG_ELIMIT,
		              "%u profiles are kept for one user, which is the most: clear one (magicpigctl tune --clear)", own);
	if (all->count >= PROFILES_MOST)
		return refuse(why, MPIG_ELIMIT,
		              "this daemon keeps %u profiles, which is the most: clear some (magicpigctl tune --clear)",
		              all->count);
	return MPIG_OK;
}

int profiles_set(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes, char *why)
{
	struct profile_entry *e = NULL;
	struct profile *profile = malloc(sizeof *profile);
	int status = profile ? MPIG_OK : refuse(why, MPIG_ENOMEM, "the daemon has no memory for a profile");
	if (status == MPIG_OK && !profiles_find(all, uid, fingerprint))
		status = check_room(all, uid, why);
	if (status == MPIG_OK)
		status = entry_make(uid, fingerprint, text, bytes, profile, &e, why);
	free(profile);
	if (status == MPIG_OK)
		status = write_file(all, e, why);
	if (status == MPIG_OK)
		put(all, e);
	else
		entry_free(e);
	return status;
}

int profiles_clear(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], char *why)
{
	char name[NAME_BYTES];
	struct profile_entry **at = place_of(all, uid, fingerprint), *old = *at;
	if (!old && uid != MPIG_PROFILE_ALL && profiles_find(all, MPIG_PROFILE_ALL, fingerprint))
		return refuse(why, MPIG_ENOENT,
		              "there is no profile of this fingerprint of uid %u's own; what holds is that of all users, which "
		              "administrators clear (tune --clear --all-users)",
		              uid);
	if (!old)
		return refuse(why, MPIG_ENOENT, "there is no profile of this fingerprint");
	int dir = open_dir(all);
	file_name(uid, fingerprint, name);
	bool gone = dir >= 0 ? unlinkat(dir, name, 0) == 0 || errno == ENOENT : errno == ENOENT;
	int error = errno;
	if (dir >= 0)
		close(dir);
	if (!gone)
		return refuse(why, MPIG_EIO, "cannot remove %s from %.100s: %s", name, all->dir, strerror(error));
	*at = old->next;
	all->count--;
	entry_free(old);
	return MPIG_OK;
}

// ---- what goes by them -----------------------------------------------------------------------------------------------
static bool layer_can(const struct mpig_wire_layer *w, uint8_t proposal)
{
	switch (proposal) {
	case MPIG_PROPOSAL_SIGNATURE:
		return w->signature_bits;
	case MPIG_PROPOSAL_PAPER:
		return w->paper_l && w->table_hash == MPIG_HASH_SIMHASH;
	case MPIG_PROPOSAL_CROSSPOLYTOPE:
		return w->paper_l && w->table_hash == MPIG_HASH_CROSSPOLYTOPE;
	default:
		return true;
	}
}

struct engine_default *profiles_defaults(const struct profile_entry *entry, const struct context *c)
{
	static const uint8_t proposals[PROFILE_PROPOSALS] = {
		[PROFILE_SIGNATURE] = MPIG_PROPOSAL_SIGNATURE,
		[PROFILE_DENSE] = MPIG_PROPOSAL_DENSE,
		[PROFILE_PAPER] = MPIG_PROPOSAL_PAPER,
		[PROFILE_CROSSPOLYTOPE] = MPIG_PROPOSAL_CROSSPOLYTOPE,
	};
	struct engine_default *defaults = entry ? calloc(context_layer_count(c), sizeof *defaults) : NULL;
	if (entry && !defaults)
		log_warn("context %" PRIu64 " is opened without its profile: no memory", context_id(c));
	for (uint32_t i = 0; defaults && i < entry->profile->count; i++) {
		const struct profile_layer *l = &entry->profile->layer[i];
		const struct layer *layer = context_layer(c, l->number);
		if (layer && layer_can(&layer->wire, proposals[l->proposal]))
			defaults[l->number] = (struct engine_default){.proposal = proposals[l->proposal],
			                                              .budget = l->budget,
			                                              .error_target = l->error_target,
			                                              .budget_floor = l->budget_floor,
			                                              .budget_cap = l->budget_cap};
	}
	return defaults;
}

// As published for SimHash; as many cross-polytope tables as find what (10, 150) finds at a cosine of .5.
static void default_tables(struct mpig_wire_layer *w)
{
	uint32_t d = mpig_padded_dim(w->d_k);
	bool simhash = w->table_hash == MPIG_HASH_SIMHASH;
	w->paper_k = simhash ? 10 : 0;
	w->paper_l = simhash ? 150 : d <= 64 ? 28 : d <= 128 ? 35 : 46;
}

void profiles_resolve(const struct profile_entry *entry, struct mpig_wire_layer *layers, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct mpig_wire_layer *w = &layers[i];
		const struct profile_layer *l = entry ? profile_find(entry->profile, i) : NULL;
		if (l && l->signature_bits && w->signature_bits == MPIG_BITS_AUTO && !w->signature_bytes)
			w->signature_bits = (uint8_t)l->signature_bits;
		if (w->paper_l != MPIG_TABLES_AUTO || w->paper_k)
			continue;
		default_tables(w);
		if (l && l->paper_l && (l->paper_k || w->table_hash == MPIG_HASH_CROSSPOLYTOPE)) {
			w->paper_k = w->table_hash == MPIG_HASH_SIMHASH ? (uint16_t)l->paper_k : 0;
			w->paper_l = (uint16_t)l->paper_l;
		}
	}
}
