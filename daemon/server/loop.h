// The control thread's event loop: accept, messages with file descriptors, readiness, timers. Two backends behind one interface,
// chosen once: io_uring, and epoll where the kernel or a sandbox refuses io_uring. One thread; callbacks run inside loop_turn. A
// callback may cancel any source, its own included.
#ifndef MPIG_SERVER_LOOP_H
#define MPIG_SERVER_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOOP_MESSAGE_FDS 2 // file descriptors of one message, either way
#define LOOP_BACKLOG 8     // messages waiting for a peer that does not read

enum loop_backend { LOOP_AUTO, LOOP_URING, LOOP_EPOLL };

struct loop;
struct loop_source; // something watched; freed by the loop after loop_cancel, once the kernel has let go of it

struct loop_message {
	const uint8_t *data;       // valid during the callback
	size_t bytes;              // 0: the peer has closed its end
	int fds[LOOP_MESSAGE_FDS]; // the callback takes one by setting it to -1; the others are closed after it
	uint32_t fd_count;
	bool too_long; // data or file descriptors were cut off
};

typedef void loop_accept_fn(void *arg, int fd_or_error); // fd (owned by the callback, close-on-exec), or a
	// negative errno: nothing more is accepted then; cancel, and start again later
typedef void loop_receive_fn(void *arg, int error, struct loop_message *message); // error: negative errno, message then empty
typedef void loop_poll_fn(void *arg, uint32_t events);                            // POLLIN, ...; edge-triggered
typedef void loop_timer_fn(void *arg);

// 0 or a negative errno. `refused` gets the errno with which io_uring was refused before epoll was taken (0: it was not).
int loop_create(enum loop_backend want, struct loop **loop, int *refused);
void loop_destroy(struct loop *loop);                   // with all sources left
const char *loop_backend_name(const struct loop *loop); // "io_uring" or "epoll"

// NULL: out of memory, or the kernel refused. The fd stays the caller's; it may be closed after loop_cancel.
struct loop_source *loop_accept(struct loop *loop, int fd, loop_accept_fn *fn, void *arg);
struct loop_source *loop_poll(struct loop *loop, int fd, loop_poll_fn *fn, void *arg);
// Messages of a SOCK_SEQPACKET socket of at most max_bytes. After an error or an end nothing more is received.
struct loop_source *loop_receive(struct loop *loop, int fd, size_t max_bytes, loop_receive_fn *fn, void *arg);
// Every interval_ns (> 0), first after one interval. No catching up.
struct loop_source *loop_timer(struct loop *loop, uint64_t interval_ns, loop_timer_fn *fn, void *arg);
void loop_cancel(struct loop_source *source); // its callback is not called again; NULL allowed

// Sends a message on a loop_receive source. Never blocks: what the socket does not take at once waits, at most LOOP_BACKLOG
// messages. Copies data; dups fds. 0, -EAGAIN (the backlog is full: give the peer up), or another negative errno.
int loop_send(struct loop_source *source, const void *data, size_t bytes, const int *fds, uint32_t fd_count);

// Waits for events (at most timeout_ns; UINT64_MAX: as long as it takes) and runs their callbacks. 0 or a negative errno.
int loop_turn(struct loop *loop, uint64_t timeout_ns);

#endif
