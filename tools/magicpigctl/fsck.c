// magicpigctl fsck: compares saved contexts with their checksums.
#include "disk.h"

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct disk_command command = {
		.work = mpig_saved_check, .past = "good", .moved = "read", .from_memory = false, .all_by_default = true};
	return disk_run(self, &command, argc, argv);
}

const struct ctl_command ctl_fsck = {
	.name = "fsck",
	.arguments = "[NAME...]",
	.summary = "Compares saved contexts with their checksums",
	.options = DISK_OPTIONS,
	.run = run,
};
