// magicpigctl pin, unpin: whether contexts may leave memory by themselves.
#include "ctl.h"

static int each(const struct ctl_command *self, int argc, char **argv, int pinned)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl ls` shows them)");
	mpig_client *client;
	int first_failure = ctl_connect(self, &client);
	for (int i = optind; client && i < argc; i++) {
		int status = mpig_context_pin(client, argv[i], pinned);
		int code = status == MPIG_OK ? CTL_OK : ctl_failed(self, client, argv[i], status);
		first_failure = first_failure ? first_failure : code;
	}
	mpig_disconnect(client);
	return first_failure;
}

static int pin(const struct ctl_command *self, int argc, char **argv)
{
	return each(self, argc, argv, 1);
}

static int unpin(const struct ctl_command *self, int argc, char **argv)
{
	return each(self, argc, argv, 0);
}

const struct ctl_command ctl_pin = {
	.name = "pin",
	.arguments = "NAME...",
	.summary = "Keeps contexts in memory until the daemon ends",
	.options = NULL,
	.run = pin,
};

const struct ctl_command ctl_unpin = {
	.name = "unpin",
	.arguments = "NAME...",
	.summary = "Lets contexts leave memory again",
	.options = NULL,
	.run = unpin,
};
