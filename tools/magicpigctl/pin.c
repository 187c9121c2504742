// magicpigctl pin, unpin: whether contexts may leave memory by themselves.
#include "policy.h"

static int pin_one(mpig_client *client, const char *name, const void *seconds)
{
	uint32_t n = *(const uint32_t *)seconds;
	return n ? mpig_context_pin_for(client, name, n) : mpig_context_pin(client, name, 1);
}

static int unpin_one(mpig_client *client, const char *name, const void *none)
{
	(void)none;
	return mpig_context_pin(client, name, 0);
}

static int pin(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"ttl", required_argument, NULL, 't'}, {NULL, 0, NULL, 0}};
	uint32_t seconds = 0;
	while (ctl_option(self, argc, argv, "ht:", options) != -1)
		if (!policy_seconds(optarg, &seconds))
			return ctl_usage(self, "--ttl: '%s' is no time such as 90s, 15min, 2h or 7d", optarg);
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl ls` shows them)");
	return policy_change(self, argv + optind, argc - optind, pin_one, &seconds);
}

static int unpin(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl ls` shows them)");
	return policy_change(self, argv + optind, argc - optind, unpin_one, NULL);
}

const struct ctl_command ctl_pin = {
	.name = "pin",
	.arguments = "NAME...",
	.summary = "Keeps contexts in memory, over restarts too",
	.options = "  -t, --ttl TIME      for so long only (90s, 15min, 2h, 7d)\n",
	.run = pin,
};

const struct ctl_command ctl_unpin = {
	.name = "unpin",
	.arguments = "NAME...",
	.summary = "Lets contexts leave memory again",
	.options = NULL,
	.run = unpin,
};
