// magicpigctl version: of this program, and of the daemon that answers.
#include <stdio.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static void print(const struct mpig_daemon_status *daemon)
{
	if (ctl_globals.json) {
		struct json json;
		json_begin(&json, stdout);
		json_object(&json, NULL);
		json_string(&json, "magicpigctl", mpig_version());
		json_string(&json, "magicpigd", daemon ? daemon->version : NULL);
		json_object_end(&json);
		json_finish(&json);
		return;
	}
	printf("magicpigctl %s\n", mpig_version());
	if (daemon)
		printf("magicpigd   %s (instance %s, pid %u)\n", daemon->version, daemon->instance, daemon->pid);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"client", no_argument, NULL, 'c'}, {NULL, 0, NULL, 0}};
	bool own_only = false;
	while (ctl_option(self, argc, argv, "hc", options) != -1)
		own_only = true;
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);
	struct mpig_daemon_status daemon = MPIG_INIT(daemon);
	mpig_client *client = NULL;
	int code = own_only ? CTL_OK : ctl_connect(self, &client);
	int status = client ? mpig_daemon_status(client, &daemon) : MPIG_OK;
	if (status)
		code = ctl_failed(self, client, NULL, status);
	print(client && !status ? &daemon : NULL);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_version = {
	.name = "version",
	.arguments = "",
	.summary = "Tells the version of this program and of the daemon",
	.options = "  -c, --client        of this program only\n",
	.run = run,
};
