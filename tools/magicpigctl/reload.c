// magicpigctl reload: the daemon reads its configuration again.
#include <stdio.h>
#include <string.h>

#include "config.h"
#include "ctl.h"
#include "json.h"

static const char restart[] = "needs a restart: ";

// The lines that begin with `restart`, or the others.
static void list(struct json *json, const char *key, const char *text, bool wants_restart)
{
	char line[512];
	json_array(json, key);
	for (const char *at = text; *at; at += strcspn(at, "\n") + (strchr(at, '\n') != NULL)) {
		bool is = strncmp(at, restart, sizeof(restart) - 1) == 0;
		const char *begin = is ? at + sizeof(restart) - 1 : at;
		snprintf(line, sizeof(line), "%.*s", (int)strcspn(begin, "\n"), begin);
		if (is == wants_restart)
			json_string(json, NULL, line);
	}
	json_array_end(json);
}

int config_print_changes(const char *text)
{
	struct json json;
	if (!ctl_globals.json) {
		fputs(*text ? text : "nothing has changed\n", stdout);
		return CTL_OK;
	}
	json_begin(&json, stdout);
	json_object(&json, NULL);
	list(&json, "changed", text, false);
	list(&json, "needs_restart", text, true);
	json_object_end(&json);
	json_finish(&json);
	return CTL_OK;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	if (optind < argc)
		return ctl_usage(self, "one argument too many: '%s'", argv[optind]);
	char text[16384];
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = mpig_daemon_configure(client, NULL, text, sizeof(text));
	code = status < 0 ? ctl_failed(self, client, NULL, status) : config_print_changes(text);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_reload = {
	.name = "reload",
	.arguments = "",
	.summary = "Lets the daemon read its configuration again (administrators)",
	.options = NULL,
	.run = run,
};
