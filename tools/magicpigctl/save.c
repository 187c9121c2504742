// magicpigctl save: writes contexts to the daemon's disk.
#include "disk.h"

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct disk_command command = {
		.work = mpig_context_save, .past = "saved", .moved = "written", .from_memory = true, .all_by_default = false};
	return disk_run(self, &command, argc, argv);
}

const struct ctl_command ctl_save = {
	.name = "save",
	.arguments = "NAME...|--all",
	.summary = "Writes contexts to the daemon's disk",
	.options = DISK_OPTIONS,
	.run = run,
};
