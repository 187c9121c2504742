// What a power loss may leave of a directory: the calls of daemon/disk are recorded through its hook while they are really made, and
// directories are made as they could be found afterwards. In the manner of SQLite's crash tests and of ALICE (Pillai et al., OSDI 2014).
//
// What is assumed of the file system is what POSIX promises and ext4 and XFS keep, and no more:
//   - bytes written are there once an fsync of the file that began after the write was done has answered. Before that each sector of
//     512 bytes may be there or not, in any order, also as zeros or as anything; the length may be that of before, or any later one;
//   - a name (created, linked, renamed, removed) is there once an fsync of its directory has answered. Before that it may be lost,
//     each on its own, in any order: an fsync of the file does not keep its name;
//   - a rename is done or not done, never half; across two directories it is safe when both are synced.
//
// One at a time. What is recorded lies in shared memory, so that a forked child can be recorded, killed, and looked at by its parent.
#ifndef MPIG_TESTS_LIB_POWER_H
#define MPIG_TESTS_LIB_POWER_H

#include <stdint.h>

enum power_mode {
	POWER_NOTHING, // of what was not synced, nothing is there
	POWER_ALL,
	POWER_RANDOM, // each by a coin, data torn
	POWER_NAMES,  // names without the data
	POWER_DATA,   // data without the names
	POWER_ONE_LOST,
	POWER_ONE_KEPT,
	POWER_ORDERED, // names up to some moment (a journal), data torn
	POWER_MODES
};
extern const char *const power_mode_name[POWER_MODES];

void power_begin(const char *top);      // an empty directory: everything happens below it
uint64_t power_now(void);               // events so far
uint64_t power_pending(uint64_t event); // how many changes were under way then: recorded, not synced
uint64_t power_tense(uint64_t *random); // an event at which some name was recorded and not synced
void power_died(void); // the process that was recorded was killed just after it had made its last change of a name
// Makes `into` (which does not exist) what `top` could be after a power loss at `event`.
void power_make(uint64_t event, enum power_mode mode, uint64_t *random, const char *into);
void power_end(void);

#endif
