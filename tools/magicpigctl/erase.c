// magicpigctl erase: removes what is saved of contexts; what is in memory stays.
#include <stdio.h>

#include "batch.h"
#include "text.h"

static bool confirmed(mpig_client *client, const char *name)
{
	(void)client;
	char shown[256];
	fprintf(stderr, "Erase what is saved of '%s'? [y/N] ", text_printable(shown, sizeof(shown), name));
	return ctl_confirmed();
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct batch_removal removal = {confirmed, mpig_saved_erase, "erased", "saved"};
	return batch_remove(self, &removal, argc, argv);
}

const struct ctl_command ctl_erase = {
	.name = "erase",
	.arguments = "NAME...",
	.summary = "Removes what is saved of contexts; asks first on a terminal",
	.options = "  -y, --yes           do not ask\n",
	.run = run,
};
