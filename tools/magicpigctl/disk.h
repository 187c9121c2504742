// What save, load and fsck share: names or --all, a bar on a terminal, a line or an object for each.
#ifndef MAGICPIGCTL_DISK_H
#define MAGICPIGCTL_DISK_H

#include "ctl.h"

struct disk_command {
	int (*work)(mpig_client *, const char *name, const struct mpig_disk_options *, struct mpig_disk_result *);
	const char *past, *moved; // "saved", "written"
	bool from_memory;         // --all: every context in memory; otherwise every one on disk
	bool all_by_default;
};
int disk_run(const struct ctl_command *self, const struct disk_command *command, int argc, char **argv);
#define DISK_OPTIONS "  -a, --all           all that the caller may\n"

#endif
