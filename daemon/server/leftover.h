// Regions that clients gave up or left behind: queues' and recordings'. A client can keep the memfd, or a mapping of it, for as long as it likes, and
// its pages are the daemon's in the eyes of the kernel. So they are removed from the file: who touches it again gets memory of its own. Until that is
// done they count as the user's.
//
// Removing takes the file's lock, which a client can hold for ever (a write from memory whose pages do not come): each user's removals are made one
// after the other by threads that nobody waits for. Control thread only.
#ifndef MPIG_SERVER_LEFTOVER_H
#define MPIG_SERVER_LEFTOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/server/account.h"
#include "daemon/server/loop.h"

struct left_region {
	void *base; // the daemon's mapping, which nobody in the daemon uses any more
	uint64_t bytes;
	uint64_t device, inode; // of the memfd; zeros: it will not be adopted
	uint32_t uid, gid;      // charged for it
};

struct leftover;
struct leftovers {
	struct loop *loop;
	struct account **accounts; // that hold region_bytes
	struct leftover *first;
	struct loop_source *timer, *done;
	int done_fd; // an eventfd: threads report
};

int leftovers_open(struct leftovers *all, struct loop *loop, struct account **accounts); // 0 or a negative errno
// At the daemon's end: takes its mappings away and leaves the pages to who has them, who may offer them to the next daemon.
void leftovers_close(struct leftovers *all);

// The region's mapping is taken over. Pages and charge go at once: done when this returns, if the client does not keep the file locked.
void leftovers_give_up(struct leftovers *all, const struct left_region *region);
// Kept as it is for the client to offer again, for keep_ns (0: given up) or until its process has ended, and then given up. pidfd: of that process, the
// caller's; -1: not known.
void leftovers_keep(struct leftovers *all, const struct left_region *region, int pidfd, uint64_t keep_ns);

// What is known of a file that is offered: NULL, nothing; *gone: it was given up, and its pages are being removed.
struct leftover *leftovers_find(struct leftovers *all, int fd, bool *gone);
uint64_t leftover_bytes_of(const struct leftover *l, uint32_t uid); // that it is charged for it
void leftovers_adopted(struct leftovers *all, struct leftover *l);  // it is a queue's again, which is charged for it: forgotten

#endif
