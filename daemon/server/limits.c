#include "daemon/server/limits.h"

#include <assert.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/server/account.h"

// A number is one even if nobody has it yet; a name must be known. Only the control thread asks, at start and when the configuration changes.
static bool number_of(const struct override *o, uint32_t *number)
{
	char *end;
	errno = 0;
	unsigned long value = strtoul(o->name, &end, 10);
	if (o->name[0] >= '0' && o->name[0] <= '9' && !*end && !errno && value < UINT32_MAX) {
		*number = (uint32_t)value;
		return true;
	}
	const struct passwd *user = o->group ? NULL : getpwnam(o->name);
	const struct group *group = o->group ? getgrnam(o->name) : NULL;
	if (!user && !group)
		return false;
	*number = user ? user->pw_uid : group->gr_gid;
	return true;
}

int limits_resolve(const struct options *options, struct limits *limits, char *why)
{
	limits->overrides = options->overrides;
	limits->count = 0;
	for (uint32_t i = 0; i < limits->overrides.count; i++) {
		const struct override *o = &limits->overrides.of[i];
		const char *kind = o->group ? "group" : "user";
		uint32_t number;
		if (!number_of(o, &number)) {
			snprintf(why, OPTIONS_WHY_BYTES,
			         "[limits %s %s]: there is no %s of that name; a number is allowed as well", kind, o->name, kind);
			return -1;
		}
		limits->own[limits->count++] =
			(struct own_limits){.who = o->group ? ACCOUNT_GROUP((uint64_t)number) : number, .of = o};
	}
	return 0;
}

uint64_t limits_get(const struct limits *limits, const struct options *options, uint64_t who, enum override_key key)
{
	for (uint32_t i = 0; i < limits->count; i++)
		if (limits->own[i].who == who && limits->own[i].of->set & 1u << key)
			return limits->own[i].of->value[key];
	bool group = ACCOUNT_IS_GROUP(who);
	switch (key) {
	case OVERRIDE_BYTES:
		return group ? options->limits.bytes_per_gid : options->limits.bytes_per_uid;
	case OVERRIDE_CONTEXTS:
		return group ? options->limits.contexts_per_gid : options->limits.contexts_per_uid;
	case OVERRIDE_CLIENTS:
		return group ? options->limits.clients_per_gid : options->limits.clients_per_uid;
	case OVERRIDE_QUEUES:
		return group ? options->limits.queues_per_gid : options->limits.queues_per_uid;
	case OVERRIDE_REQUESTS:
		return group ? options->limits.requests_per_gid : options->limits.requests_per_uid;
	case OVERRIDE_KEYS:
		break;
	}
	return 0;
}

void limits_for_store(const struct limits *limits, const struct options *options, struct store_limits *out)
{
	static_assert(OVERRIDES <= STORE_OWN_LIMITS, "all of them");
	*out = (struct store_limits){
		.uid_bytes = options->limits.bytes_per_uid,
		.gid_bytes = options->limits.bytes_per_gid,
		.uid_contexts = options->limits.contexts_per_uid,
		.gid_contexts = options->limits.contexts_per_gid,
		.own_count = limits->count,
	};
	for (uint32_t i = 0; i < limits->count; i++) {
		uint64_t who = limits->own[i].who;
		out->own[i] = (struct store_own_limit){
			.group = ACCOUNT_IS_GROUP(who),
			.number = (uint32_t)who,
			.bytes = limits_get(limits, options, who, OVERRIDE_BYTES),
			.contexts = (uint32_t)limits_get(limits, options, who, OVERRIDE_CONTEXTS),
		};
	}
}
