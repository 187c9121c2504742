// magicpigctl drop: removes contexts by name.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "batch.h"
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

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"yes", no_argument, NULL, 'y'}, {NULL, 0, NULL, 0}};
	bool ask = isatty(STDIN_FILENO);
	while (ctl_option(self, argc, argv, "hy", options) != -1)
		ask = false;
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl ls` shows them)");

	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	for (int i = optind; i < argc; i++) {
		if (ask && !confirmed(batch.client, argv[i])) {
			batch_result(&batch, argv[i], "kept");
			continue;
		}
		int status = mpig_context_drop(batch.client, argv[i]);
		batch_note(&batch, argv[i], status);
		if (status == MPIG_OK)
			batch_result(&batch, argv[i], "dropped");
		else if (ctl_globals.json)
			batch_result(&batch, argv[i], mpig_strerror(status));
	}
	return batch_end(&batch);
}

const struct ctl_command ctl_drop = {
	.name = "drop",
	.arguments = "NAME...",
	.summary = "Removes contexts; asks first on a terminal",
	.options = "  -y, --yes           do not ask\n",
	.run = run,
};
