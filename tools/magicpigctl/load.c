// magicpigctl load: brings saved contexts back into memory.
#include "disk.h"

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct disk_command command = {
		.work = mpig_context_load, .past = "loaded", .moved = "read", .from_memory = false, .all_by_default = false};
	return disk_run(self, &command, argc, argv);
}

const struct ctl_command ctl_load = {
	.name = "load",
	.arguments = "NAME...|--all",
	.summary = "Brings saved contexts back into memory",
	.options = DISK_OPTIONS,
	.run = run,
};
