#include "daemon/server/reload.h"
#include <assert.h>

#include <grp.h>
#include <stdio.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/server/indexer.h"
#include "daemon/server/peer.h"
#include "daemon/server/service.h"
#include "shm/status.h"

int server_find_group(const char *option, const char *name, uint32_t *gid, char *why)
{
	*gid = UINT32_MAX;
	if (!name[0])
		return 0;
	const struct group *group = getgrnam(name); // only the control thread asks
	if (!group) {
		snprintf(why, OPTIONS_WHY_BYTES, "%s = %s: no such group; make it (groupadd), or give another one", option, name);
		return -1;
	}
	*gid = group->gr_gid;
	return 0;
}

struct disk_policy server_disk_policy(const struct options *o)
{
	static_assert((int)PERSIST_NONE + 1 == (int)MPIG_PERSIST_NONE && (int)PERSIST_COMMIT + 1 == (int)MPIG_PERSIST_COMMIT,
	              "the option's words are those of contexts, but for default");
	return (struct disk_policy){
		.otherwise = {.persist = (uint32_t)o->disk.persist + 1, .idle_ns = o->disk.idle_ns},
		.rate = o->disk.rate,
		.high = (double)o->disk.evict_high,
		.low = (double)o->disk.evict_low,
		.tell = server_tell_disk,
	};
}

uint64_t server_ahead_bytes(const struct server *s)
{
	return (uint64_t)((double)s->options.workers.prefetch * (double)s->l2_bytes);
}

// Who recorded as an administrator may be none any more.
static bool may_record(void *arg, uint64_t client, const char *name)
{
	struct server *s = arg;
	char why[MPIG_TEXT_BYTES];
	const struct peer *p = s->peers;
	while (p && p->id != client)
		p = p->next;
	return p && store_context_access(s->store, &p->who, name, ACCESS_OWN, why) != MPIG_EACCES;
}

// What is kept outside s->options follows it.
static void apply(struct server *s)
{
	const struct options *o = &s->options;
	struct store_limits limits;
	limits_for_store(&s->limits, o, &limits);
	log_set_level((enum log_level)o->daemon.log_level);
	store_set_limits(s->store, &limits);
	for (struct account *a = s->accounts; a; a = a->next)
		rate_set(&a->rate, (uint32_t)server_limit(s, a->who, OVERRIDE_REQUESTS));
	workers_set_spin(s->workers, o->workers.spin_ns);
	engine_set_ahead(s->engine, server_ahead_bytes(s));
	indexer_set_drift(s->indexer, (double)o->engine.reindex_drift);
	if (s->jobs) {
		struct disk_policy policy = server_disk_policy(o);
		disk_jobs_set_policy(s->jobs, &policy);
	}
	peer_find_administrators(s);
	recordings_ask_again(s->recordings, may_record, s);
}

uint64_t server_limit(const struct server *s, uint64_t who, enum override_key key)
{
	return limits_get(&s->limits, &s->options, who, key);
}

static int take(struct server *s, const struct options *fresh, const char *cause, char *changed, char *why)
{
	uint32_t admin_gid;
	struct limits limits;
	if (limits_resolve(fresh, &limits, why) != 0)
		return MPIG_EINVAL;
	if (server_find_group("daemon.admin_group", fresh->daemon.admin_group, &admin_gid, why) != 0)
		return MPIG_EINVAL;
	options_differences(&s->options, fresh, changed, RELOAD_TEXT_BYTES);
	options_take_live(&s->options, fresh);
	s->admin_gid = admin_gid;
	(void)limits_resolve(&s->options, &s->limits, why); // the same names as a moment ago
	apply(s);
	if (!changed[0])
		log_event(LOG_EVENT_RELOADED, LOG_LEVEL_INFO, "%s: nothing has changed", cause);
	char line[256];
	for (const char *at = changed; *at; at += strcspn(at, "\n") + 1) {
		snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
		log_event(LOG_EVENT_RELOADED, LOG_LEVEL_INFO, "%s: %s", cause, line);
	}
	return MPIG_OK;
}

int server_reload(struct server *s, const char *cause, char *changed, char *why)
{
	struct options fresh;
	service_reloading();
	int status = s->reload(s->reload_arg, &fresh, why) == 0 ? take(s, &fresh, cause, changed, why) : MPIG_EINVAL;
	if (status != MPIG_OK)
		log_event(LOG_EVENT_RELOAD_REFUSED, LOG_LEVEL_ERROR, "%s: configuration unchanged: %s", cause, why);
	service_ready();
	return status;
}

int server_configure(struct server *s, const char *assignment, char *changed, char *why)
{
	struct options fresh = s->options;
	if (options_assign(&fresh, "config set", assignment, why) != 0 || options_check(&fresh, why) != 0)
		return MPIG_EINVAL;
	if (!options_text_is_live(assignment)) {
		snprintf(why, OPTIONS_WHY_BYTES,
		         "%.*s cannot change while the daemon runs: put it into %s and restart the daemon",
		         (int)strcspn(assignment, "="), assignment,
		         s->options.config_file[0] ? s->options.config_file : "its configuration file");
		return MPIG_ENOTSUP;
	}
	return take(s, &fresh, "magicpigctl config set", changed, why);
}
