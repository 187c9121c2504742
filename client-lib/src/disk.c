// Contexts on the daemon's disk: work is begun with one request and looked at with others until it is done.
#include "internal.h"

#include <string.h>
#include <time.h>

#define LOOK_FIRST_NS 500000
#define LOOK_LAST_NS 20000000

// One request; part->job is 0 to begin, and what the reply said after that. *epoch: of the daemon that began it.
static int ask(mpig_client *c, const char *name, struct mpig_ctl_disk *part, uint64_t *epoch)
{
	struct mpig_ctl_disk request = {
		.work = part->work, .job = part->job, .dry = part->dry, .damaged_days = part->damaged_days};
	memcpy(request.name, name, strlen(name));
	pthread_mutex_lock(&c->lock); // for one request only: other threads' calls go between
	int rc = client_call(c, MPIG_CTL_DISK, &request, sizeof(request), -1, sizeof(request), NULL);
	rc = client_same_daemon(c, part->job, epoch, rc);
	if (rc == MPIG_OK)
		memcpy(part, c->reply, sizeof(*part));
	pthread_mutex_unlock(&c->lock);
	return rc;
}

// part: what is asked for; then the answer.
static int until_done(mpig_client *c, const char *name, const struct mpig_disk_options *o, struct mpig_ctl_disk *part)
{
	long pause = LOOK_FIRST_NS;
	const uint32_t dry = part->dry, days = part->damaged_days;
	uint64_t epoch;
	int rc = ask(c, name, part, &epoch);
	while (rc == MPIG_OK && part->state != MPIG_DISK_DONE) {
		if (o->progress)
			o->progress(o->argument, part->done, part->total);
		struct timespec t = {.tv_nsec = pause};
		nanosleep(&t, NULL);
		pause = pause < LOOK_LAST_NS ? 2 * pause : pause;
		part->dry = dry;
		part->damaged_days = days;
		rc = ask(c, name, part, &epoch);
	}
	if (rc == MPIG_OK && o->progress)
		o->progress(o->argument, part->done, part->total);
	return rc;
}

static int disk_work(mpig_client *c, uint32_t work, const char *name, const struct mpig_disk_options *options,
                     struct mpig_disk_result *result)
{
	if (client_forked(c))
		return MPIG_EFORK;
	struct mpig_disk_options o;
	struct mpig_ctl_disk part = {.work = work};
	int rc = name_check(c, "name", name);
	rc = rc ? rc : options_copy(c, "mpig_disk_options", options, &o, sizeof(o));
	rc = rc ? rc : until_done(c, name, &o, &part);
	if (rc || !result)
		return rc;
	struct mpig_disk_result known = {
		.tokens = part.tokens,
		.bytes = part.bytes,
		.moved = part.moved,
		.segments = part.segments,
		.shared = part.shared,
	};
	memcpy(known.name, name, strlen(name));
	return options_return(c, "mpig_disk_result", result, &known, sizeof(known));
}

int mpig_context_save(mpig_client *c, const char *name, const struct mpig_disk_options *options, struct mpig_disk_result *result)
{
	return disk_work(c, MPIG_DISK_SAVE, name, options, result);
}

int mpig_context_load(mpig_client *c, const char *name, const struct mpig_disk_options *options, struct mpig_disk_result *result)
{
	return disk_work(c, MPIG_DISK_LOAD, name, options, result);
}

int mpig_saved_check(mpig_client *c, const char *name, const struct mpig_disk_options *options, struct mpig_disk_result *result)
{
	return disk_work(c, MPIG_DISK_CHECK, name, options, result);
}

int mpig_saved_erase(mpig_client *c, const char *name)
{
	return disk_work(c, MPIG_DISK_ERASE, name, NULL, NULL);
}

int mpig_saved_gc(mpig_client *c, int dry, uint32_t damaged_days, struct mpig_gc_result *result)
{
	if (client_forked(c))
		return MPIG_EFORK;
	static const struct mpig_disk_options silent = MPIG_INIT(struct mpig_disk_options);
	struct mpig_ctl_disk part = {.work = MPIG_DISK_GC, .dry = dry != 0, .damaged_days = damaged_days};
	int rc = until_done(c, "", &silent, &part);
	if (rc || !result)
		return rc;
	struct mpig_gc_result known = {
		.leftovers = part.leftovers, .orphans = part.orphans, .damaged = part.damaged, .bytes = part.bytes};
	return options_return(c, "mpig_gc_result", result, &known, sizeof(known));
}

static int take_page(mpig_client *c, struct mpig_saved_info *infos, uint32_t max)
{
	const struct mpig_ctl_saved *page = (const void *)c->reply;
	const struct mpig_wire_saved *w = (const void *)(page + 1);
	int n = page_records(c, "saved contexts", page->count, MPIG_LIST_PAGE, sizeof(*page), sizeof(*w), max);
	for (int i = 0; i < n; i++) {
		struct mpig_saved_info known = {
			.committed = w[i].committed,
			.bytes = w[i].bytes,
			.saved_ns = w[i].saved_ns,
			.uid = w[i].uid,
			.gid = w[i].gid,
			.mode = w[i].mode,
			.persist = (int)w[i].policy.persist,
			.idle_s = w[i].policy.idle_s,
			.ttl_s = w[i].policy.ttl_s,
			.ttl_erase = w[i].policy.flags & MPIG_POLICY_ERASE,
			.pinned_until_ns = w[i].policy.pinned_until_ns,
		};
		memcpy(known.name, w[i].name, sizeof(known.name) - 1);
		memcpy(known.fingerprint, w[i].fingerprint, sizeof(known.fingerprint));
		int rc = options_return_at(c, "mpig_saved_info", infos, i, &known, sizeof(known));
		if (rc)
			return rc;
	}
	return n;
}

int mpig_saved_list(mpig_client *c, const char *after, struct mpig_saved_info *infos, int max)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (!infos || max < 1)
		return error_set(c, MPIG_EINVAL, "max = %d: must be at least 1, with infos not NULL", max);
	struct mpig_ctl_saved request = {0};
	int rc = after && *after ? name_check(c, "after", after) : MPIG_OK;
	if (rc)
		return rc;
	if (after)
		memcpy(request.after, after, strlen(after));
	pthread_mutex_lock(&c->lock);
	rc = client_connected(c);
	request.count = c->list_page;
	rc = rc ? rc : client_call(c, MPIG_CTL_SAVED, &request, sizeof(request), -1, sizeof(request), NULL);
	if (rc == MPIG_OK)
		rc = take_page(c, infos, (uint32_t)max);
	pthread_mutex_unlock(&c->lock);
	return rc;
}
