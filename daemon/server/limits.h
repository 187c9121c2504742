// The limits in force for a user or a group: what holds for all (section limits), unless it has its own (config/overrides.h). Control thread.
#ifndef MPIG_SERVER_LIMITS_H
#define MPIG_SERVER_LIMITS_H

#include "config/options.h"
#include "daemon/store/store.h"

struct limits {
	struct own_limits {
		uint64_t who; // a uid, or ACCOUNT_GROUP(gid)
		const struct override *of;
	} own[OVERRIDES];
	uint32_t count;
	struct overrides overrides; // the copy that `of` points into
};

// Finds the numbers of the users and groups that have limits of their own. 0, or -1 and why (OPTIONS_WHY_BYTES): there is none of that name.
int limits_resolve(const struct options *options, struct limits *limits, char *why);
// 0: no limit.
uint64_t limits_get(const struct limits *limits, const struct options *options, uint64_t who, enum override_key key);
// Those that the store looks after.
void limits_for_store(const struct limits *limits, const struct options *options, struct store_limits *out);

#endif
