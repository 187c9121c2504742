// magicpigctl reindex: has the daemon index contexts again, for their rows and queries as they are now.
#include <stdio.h>

#include "batch.h"
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
	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	for (int i = optind; i < argc; i++) {
		struct mpig_reindex_result result = MPIG_INIT(result);
		int status = mpig_context_reindex(batch.client, argv[i], &result);
		batch_note(&batch, argv[i], status);
		if (status == MPIG_OK)
			report(&batch.json, argv[i], &result);
	}
	return batch_end(&batch);
}

const struct ctl_command ctl_reindex = {
	.name = "reindex",
	.arguments = "NAME...",
	.summary = "Makes new indexes for contexts, while they are served",
	.options = NULL,
	.run = run,
};
