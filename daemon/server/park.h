// Where a worker sleeps: on its wake eventfd and on the eventfds of its home queues, with an io_uring of its own (or epoll). One
// thread, the worker's; only park_wake may be called by others.
#ifndef MPIG_SERVER_PARK_H
#define MPIG_SERVER_PARK_H

#include <stdbool.h>
#include <stdint.h>

struct park;
int park_wake_fd(void);      // an eventfd for park_create, or -1
void park_wake(int wake_fd); // any thread; not lost if the worker is not asleep yet

// wake_fd stays the caller's. `uring`: try io_uring first. NULL: out of memory or descriptors.
struct park *park_create(int wake_fd, bool uring);
void park_destroy(struct park *park);
// Watches an eventfd of a client, edge-triggered and never read: the client shares its file description, so reading could block
// or hide another's wake-up. The fd is dup'ed: it may be closed by its owner meanwhile. False: no memory or descriptor.
bool park_watch(struct park *park, uint32_t id, int fd);
void park_unwatch(struct park *park, uint32_t id);
// Sleeps until a wake-up, an eventfd was written, or timeout_ns (UINT64_MAX: none) has passed. May return early.
void park_sleep(struct park *park, uint64_t timeout_ns);

#endif
