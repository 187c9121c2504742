// magicpigctl reindex: has the daemon index contexts again, for their rows and queries as they are now.
#include <stdio.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static void report(struct json *json, const char *name, const struct mpig_reindex_result *result)
{
	char shown[256], tokens[TEXT_SHORT];
	if (!ctl_globals.json) {
		printf("%s: indexed again, %s tokens, version %u\n", text_printable(shown, sizeof(shown), name),
		       text_count(tokens, result->tokens), result->signature_version);
		return;
	}
	json_object(json, NULL);
	json_string(json, "name", name);
	json_uint(json, "tokens", result->tokens);
	json_uint(json, "signature_version", result->signature_version);
	json_object_end(json);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	if (optind == argc)
		return ctl_usage(self, "give at least one name");
	mpig_client *client;
	struct json json;
	int first_failure = ctl_connect(self, &client);
	if (first_failure)
		return first_failure;
	json_begin(&json, stdout);
	if (ctl_globals.json)
		json_array(&json, NULL);
	for (int i = optind; i < argc; i++) {
		struct mpig_reindex_result result = MPIG_INIT(result);
		int status = mpig_context_reindex(client, argv[i], &result);
		if (status == MPIG_OK) {
			report(&json, argv[i], &result);
			continue;
		}
		int code = ctl_failed(self, client, argv[i], status);
		first_failure = first_failure ? first_failure : code;
	}
	if (ctl_globals.json) {
		json_array_end(&json);
		json_finish(&json);
	}
	mpig_disconnect(client);
	return first_failure;
}

const struct ctl_command ctl_reindex = {
	.name = "reindex",
	.arguments = "NAME...",
	.summary = "Makes new indexes for contexts, while they are served",
	.options = NULL,
	.run = run,
};
