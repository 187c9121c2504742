// magicpigctl erase: removes what is saved of contexts; what is in memory stays.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "batch.h"
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
	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	for (int i = optind; i < argc; i++) {
		if (ask && !confirmed(argv[i])) {
			batch_result(&batch, argv[i], "kept");
			continue;
		}
		int status = mpig_saved_erase(batch.client, argv[i]);
		batch_note(&batch, argv[i], status);
		if (status == MPIG_OK)
			batch_result(&batch, argv[i], "erased");
		else if (ctl_globals.json)
			batch_result(&batch, argv[i], mpig_strerror(status));
	}
	return batch_end(&batch);
}

const struct ctl_command ctl_erase = {
	.name = "erase",
	.arguments = "NAME...",
	.summary = "Removes what is saved of contexts; asks first on a terminal",
	.options = "  -y, --yes           do not ask\n",
	.run = run,
};
