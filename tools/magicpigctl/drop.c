// magicpigctl drop: removes contexts by name.
#include <stdio.h>

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
	static const struct batch_removal removal = {confirmed, mpig_context_drop, "dropped", "ls"};
	return batch_remove(self, &removal, argc, argv);
}

const struct ctl_command ctl_drop = {
	.name = "drop",
	.arguments = "NAME...",
	.summary = "Removes contexts; asks first on a terminal",
	.options = "  -y, --yes           do not ask\n",
	.run = run,
};
