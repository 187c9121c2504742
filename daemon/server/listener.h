// The control socket: exactly one daemon per path, and never a stale file in the way.
//
// A lock file beside the socket (PATH.lock, flock) says whether a daemon lives; it holds its pid. Whoever has the lock and finds
// a socket on which nobody answers removes it.
#ifndef MPIG_SERVER_LISTENER_H
#define MPIG_SERVER_LISTENER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LISTENER_WHY_BYTES 512

struct listener {
	char path[108];
	char lock_path[128];
	int fd, lock_fd; // -1: none
	bool adopted;    // the socket is the service manager's
};

// Takes the lock and makes the way free; creates the directory (one level). 0 or -1 and `why` (LISTENER_WHY_BYTES): what, where,
// what to do.
int listener_lock(struct listener *l, const char *path, char *why);
// The same, where a service manager listens and has passed its socket `fd`: there is nothing to make free, and the socket stays in
// place when the daemon ends, so that clients wait for the next one instead of failing.
int listener_adopt(struct listener *l, const char *path, int fd, char *why);
// Binds and listens, nonblocking. gid (gid_t)-1: the process's.
int listener_open(struct listener *l, uint32_t mode, gid_t gid, char *why);
// Stops listening; removes the socket, if it is not adopted, and with `unlock` the lock file.
void listener_close(struct listener *l, bool unlock);

#endif
