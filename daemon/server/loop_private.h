// What the loop and its two backends share.
#ifndef MPIG_SERVER_LOOP_PRIVATE_H
#define MPIG_SERVER_LOOP_PRIVATE_H

#include <liburing.h>
#include <sys/socket.h>

#include "daemon/server/loop.h"

enum source_kind { SOURCE_ACCEPT, SOURCE_POLL, SOURCE_RECEIVE, SOURCE_TIMER };

struct outgoing {
	struct outgoing *next;
	int fds[LOOP_MESSAGE_FDS];
	uint32_t fd_count;
	size_t bytes;
	uint8_t data[];
};

#define CONTROL_BYTES CMSG_SPACE(LOOP_MESSAGE_FDS * sizeof(int))

struct loop_source {
	struct loop *loop;
	struct loop_source *next, *previous;
	enum source_kind kind;
	int fd;
	union {
		loop_accept_fn *accept;
		loop_poll_fn *poll;
		loop_receive_fn *receive;
		loop_timer_fn *timer;
	} fn;
	void *arg;
	bool cancelled;
	uint32_t pending; // operations the kernel holds
	unsigned owed;    // io_uring: operations for which the ring had no entry; given to it at the next turn
	// SOURCE_TIMER
	uint64_t interval_ns, due_ns;
	// SOURCE_RECEIVE
	bool ended;   // after an error or the end: no more receiving
	bool sending; // the head of the backlog is with the kernel (io_uring), or waits for room (epoll)
	uint8_t *buffer;
	size_t buffer_bytes;
	struct msghdr in, out;
	struct iovec in_iov, out_iov;
	_Alignas(struct cmsghdr) char in_control[CONTROL_BYTES];
	_Alignas(struct cmsghdr) char out_control[CONTROL_BYTES];
	struct outgoing *backlog, **backlog_end;
	uint32_t backlog_count;
};

struct backend {
	const char *name;
	int (*open)(struct loop *loop);
	void (*close)(struct loop *loop);
	int (*start)(struct loop_source *source); // accept, poll, receive
	int (*send)(struct loop_source *source);  // hands out the head of the backlog
	void (*stop)(struct loop_source *source); // after cancelled was set
	int (*wait)(struct loop *loop, uint64_t timeout_ns);
};
extern const struct backend backend_uring, backend_epoll;

struct loop {
	const struct backend *backend;
	struct loop_source *sources; // all, cancelled ones too until they are freed
	struct io_uring ring;
	bool owes; // some source's `owed` is not 0
	int epoll;
};

// For backends: reports to callbacks, with the source possibly cancelled afterwards.
void source_received(struct loop_source *source, int result); // bytes or a negative errno, of the msghdr `in`
void source_prepare_receive(struct loop_source *source);
void source_prepare_send(struct loop_source *source);
// Pops the head of the backlog, sent or not (a socket that refuses an answer reports its end to the receiver), and sends the
// next.
void source_sent(struct loop_source *source);

#endif
