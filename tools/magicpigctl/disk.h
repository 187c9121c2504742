// What commands that move a context's bytes share: a bar on a terminal; for save, load and fsck, names or --all, and a line or an object for
// each.
#ifndef MAGICPIGCTL_DISK_H
#define MAGICPIGCTL_DISK_H

#include "ctl.h"

struct disk_bar {
	bool drawn; // on a terminal only
	uint64_t last;
};
void disk_draw(void *bar, uint64_t done, uint64_t total);
void disk_draw_end(const struct disk_bar *bar);

struct disk_command {
	int (*work)(mpig_client *, const char *name, const struct mpig_disk_options *, struct mpig_disk_result *);
	const char *past, *moved; // "saved", "written"
	bool from_memory;         // --all: every context in memory; otherwise every one on disk
	bool all_by_default;
};
int disk_run(const struct ctl_command *self, const struct disk_command *command, int argc, char **argv);
#define DISK_OPTIONS "  -a, --all           all that the caller may\n"

#endif
