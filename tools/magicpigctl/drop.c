// magicpigctl drop: removes contexts by name.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static bool confirmed(mpig_client *client, const char *name)
{
	char shown[256], tokens[TEXT_SHORT], bytes[TEXT_SHORT];
	struct mpig_context_info info = MPIG_INIT(info);
	text_printable(shown, sizeof(shown), name);
	if (mpig_context_info(client, name, &info) != MPIG_OK)
		return true; // the drop itself will say what is wrong
	fprintf(stderr, "Drop context '%s' (%s tokens, %s)? [y/N] ", shown, text_count(tokens, info.committed),
	        text_bytes(bytes, info.rows_bytes + info.index_bytes + info.metadata_bytes));
	return ctl_confirmed();
}

static void report(struct json *json, const char *name, const char *result)
{
	char shown[256];
	if (!ctl_globals.json) {
		printf("%s: %s\n", text_printable(shown, sizeof(shown), name), result);
		return;
	}
	json_object(json, NULL);
	json_string(json, "name", name);
	json_string(json, "result", result);
	json_object_end(json);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"yes", no_argument, NULL, 'y'}, {NULL, 0, NULL, 0}};
	bool ask = isatty(STDIN_FILENO);
	while (ctl_option(self, argc, argv, "hy", options) != -1)
		ask = false;
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl ls` shows them)");

	mpig_client *client;
	struct json json;
	int first_failure = ctl_connect(self, &client);
	if (first_failure)
		return first_failure;
	json_begin(&json, stdout);
	if (ctl_globals.json)
		json_array(&json, NULL);
	for (int i = optind; i < argc; i++) {
		if (ask && !confirmed(client, argv[i])) {
			report(&json, argv[i], "kept");
			continue;
		}
		int status = mpig_context_drop(client, argv[i]);
		if (status == MPIG_OK) {
			report(&json, argv[i], "dropped");
			continue;
		}
		int code = ctl_failed(self, client, argv[i], status);
		first_failure = first_failure ? first_failure : code;
		if (ctl_globals.json)
			report(&json, argv[i], mpig_strerror(status));
	}
	if (ctl_globals.json) {
		json_array_end(&json);
		json_finish(&json);
	}
	mpig_disconnect(client);
	return first_failure;
}

const struct ctl_command ctl_drop = {
	.name = "drop",
	.arguments = "NAME...",
	.summary = "Removes contexts; asks first on a terminal",
	.options = "  -y, --yes           do not ask\n",
	.run = run,
};
