// How long contexts stay on disk, with which policy, and for whom.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/disk/private.h"
#include "shm/status.h"

#define NS UINT64_C(1000000000)

static int rewrite(struct disk *d, struct io *io, int dir, const struct changed_policy *changed, char *why)
{
	struct manifest m;
	int status = manifest_read(io, dir, changed->name, &m, why);
	if (status)
		return status;
	struct image_context *c = &m.context;
	if (c->created_ns == changed->created_ns && c->identity.uid == changed->identity.uid &&
	    (memcmp(&c->policy, &changed->policy, sizeof c->policy) ||
	     memcmp(&c->identity, &changed->identity, sizeof c->identity))) {
		c->policy = changed->policy;
		c->identity = changed->identity;
		status = manifest_write(io, dir, &m, why);
		if (!status)
			catalogue_put(d, &m);
		if (!status && d->store)
			store_saved_identity(d->store, changed->name, &c->identity);
	}
	manifest_free(&m);
	return status;
}

int disk_note_policy(struct disk *d, const struct changed_policy *changed, char *why)
{
	struct io io;
	if (!disk_has(d, changed->name))
		return 0;
	int rc = io_open(&io, 1, d->options.chunk, 0);
	if (rc)
		return disk_errno(why, rc, "cannot change", changed->name);
	int dir = disk_open(d->contexts, changed->name, O_RDONLY | O_DIRECTORY, false);
	int status = dir < 0 ? disk_errno(why, dir, "cannot open", changed->name) : rewrite(d, &io, dir, changed, why);
	if (dir >= 0)
		close(dir);
	io_close(&io);
	return status;
}

// It is in memory, and was used since the disk last knew: noted in the file's time now and then, for the next daemon.
static void note_use(struct disk *d, const struct disk_saved *saved, uint64_t used_ns)
{
	uint64_t step = saved->policy.ttl_s * NS / 8;
	step = step < 60 * NS ? step : 60 * NS;
	if (used_ns < saved->used_ns + step)
		return;
	int dir = disk_open(d->contexts, saved->name, O_RDONLY | O_DIRECTORY, false);
	if (dir < 0)
		return;
	(void)disk_touch(dir, "manifest");
	close(dir);
	catalogue_used(d, saved->name, used_ns);
}

void disk_expire(struct disk *d, struct store *s, uint64_t now_ns, void (*tell)(void *arg, bool failed, const char *text),
                 void *arg)
{
	static const struct credentials root;
	struct disk_saved saved = {0};
	while (catalogue_next_mortal(d, saved.name, &saved)) {
		uint64_t used = store_used_ns(s, saved.name, saved.created_ns);
		char why[MPIG_TEXT_BYTES], text[2 * MPIG_TEXT_BYTES];
		if (used) {
			note_use(d, &saved, used);
			continue;
		}
		if (saved.used_ns + saved.policy.ttl_s * NS > now_ns || saved.policy.pinned_until_ns > now_ns)
			continue;
		int status = disk_erase(d, s, &root, saved.name, why);
		snprintf(text, sizeof text, "context '%s' is %serased from disk: unused for its time of %u s%s%s", saved.name,
		         status ? "not " : "", saved.policy.ttl_s, status ? ": " : "", status ? why : "");
		if (tell && status != MPIG_ENOENT)
			tell(arg, status != 0, text);
	}
}
