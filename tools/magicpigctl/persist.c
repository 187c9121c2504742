// magicpigctl persist, ttl: when a context is saved unasked, and how long it is kept unused.
#include <string.h>

#include "policy.h"

static int set_persist(mpig_client *client, const char *name, const void *argument)
{
	const struct policy *p = argument;
	return mpig_context_persist(client, name, p->persist, p->idle_s);
}

static int set_ttl(mpig_client *client, const char *name, const void *argument)
{
	const struct policy *p = argument;
	return mpig_context_ttl(client, name, p->ttl_s, p->ttl_erase);
}

static int persist(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	struct policy p = {0};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	int given = argc - optind;
	if (given != 2 && given != 3)
		return ctl_usage(self, "give the name of a context, and none, shutdown, idle, commit or default");
	if (!policy_persist(argv[optind + 1], &p.persist))
		return ctl_usage(self, "'%s' is not none, shutdown, idle, commit or default", argv[optind + 1]);
	if (given == 3 && (p.persist != MPIG_PERSIST_IDLE || !policy_seconds(argv[optind + 2], &p.idle_s)))
		return ctl_usage(self, "'%s': only idle takes a time, such as 90s, 15min, 2h or 7d", argv[optind + 2]);
	return policy_change(self, argv + optind, 1, set_persist, &p);
}

static int ttl(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"erase", no_argument, NULL, 'e'}, {NULL, 0, NULL, 0}};
	struct policy p = {0};
	while (ctl_option(self, argc, argv, "he", options) != -1)
		p.ttl_erase = 1;
	if (argc - optind != 2)
		return ctl_usage(self, "give the name of a context, and a time or none");
	const char *time = argv[optind + 1];
	bool none = strcmp(time, "none") == 0;
	if (none ? p.ttl_erase : !policy_seconds(time, &p.ttl_s))
		return ctl_usage(self, "'%s': give a time such as 90s, 15min, 2h or 7d, or none without --erase", time);
	return policy_change(self, argv + optind, 1, set_ttl, &p);
}

const struct ctl_command ctl_persist = {
	.name = "persist",
	.arguments = "NAME WHEN [TIME]",
	.summary = "When a context is saved: none, shutdown, idle [TIME], commit, default",
	.options = NULL,
	.run = persist,
};

const struct ctl_command ctl_ttl = {
	.name = "ttl",
	.arguments = "NAME TIME|none",
	.summary = "How long a context is kept unused; then it leaves memory",
	.options = "  -e, --erase         then it is erased from disk, too\n",
	.run = ttl,
};
