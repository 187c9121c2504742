// magicpigctl erase: removes what is saved of contexts; what is in memory stays.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "text.h"

static bool confirmed(const char *name)
{
	char shown[256];
	fprintf(stderr, "Erase what is saved of '%s'? [y/N] ", text_printable(shown, sizeof(shown), name));
	return ctl_confirmed();
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"yes", no_argument, NULL, 'y'}, {NULL, 0, NULL, 0}};
	bool ask = isatty(STDIN_FILENO);
	while (ctl_option(self, argc, argv, "hy", options) != -1)
		ask = false;
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl saved` shows them)");
	mpig_client *client;
	int first_failure = ctl_connect(self, &client);
	for (int i = optind; client && i < argc; i++) {
		if (ask && !confirmed(argv[i]))
			continue;
		int status = mpig_saved_erase(client, argv[i]);
		int code = status == MPIG_OK ? CTL_OK : ctl_failed(self, client, argv[i], status);
		first_failure = first_failure ? first_failure : code;
	}
	mpig_disconnect(client);
	return first_failure;
}

const struct ctl_command ctl_erase = {
	.name = "erase",
	.arguments = "NAME...",
	.summary = "Removes what is saved of contexts; asks first on a terminal",
	.options = "  -y, --yes           do not ask\n",
	.run = run,
};
