// epoll emulation of the same operations. Everything is registered edge-triggered and drained, as io_uring's multishot requests
// would.
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "daemon/server/loop_private.h"

#define EVENTS 64
#define MESSAGES_PER_TURN 4 // of one connection, so that a talkative one does not keep others waiting

static int epoll_open(struct loop *loop)
{
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	return loop->epoll < 0 ? -errno : 0;
}

static void epoll_close(struct loop *loop)
{
	close(loop->epoll);
}

// Connections are level-triggered and change their interest; the rest is edge-triggered.
static uint32_t interest(const struct loop_source *s)
{
	if (s->kind != SOURCE_RECEIVE)
		return EPOLLIN | EPOLLET;
	return (s->ended ? 0 : EPOLLIN) | (s->sending ? EPOLLOUT : 0);
}

static int update(struct loop_source *s, int operation)
{
	struct epoll_event event = {.events = interest(s), .data.ptr = s};
	return epoll_ctl(s->loop->epoll, operation, s->fd, &event) != 0 ? -errno : 0;
}

static int epoll_start(struct loop_source *s)
{
	return update(s, EPOLL_CTL_ADD);
}

static void epoll_stop(struct loop_source *s)
{
	epoll_ctl(s->loop->epoll, EPOLL_CTL_DEL, s->fd, NULL);
}

static int epoll_send(struct loop_source *s)
{
	source_prepare_send(s);
	ssize_t n = sendmsg(s->fd, &s->out, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		s->sending = true;
		return update(s, EPOLL_CTL_MOD);
	}
	int error = n < 0 ? -errno : 0;
	source_sent(s);
	return error;
}

static void accept_all(struct loop_source *s)
{
	for (;;) {
		int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0 && errno == EAGAIN)
			return;
		s->fn.accept(s->arg, fd < 0 ? -errno : fd);
		if (fd < 0 || s->cancelled)
			return;
	}
}

static void receive_some(struct loop_source *s)
{
	for (int i = 0; i < MESSAGES_PER_TURN && !s->cancelled && !s->ended; i++) {
		source_prepare_receive(s);
		ssize_t n = recvmsg(s->fd, &s->in, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		source_received(s, n < 0 ? -errno : (int)n);
	}
	if (!s->cancelled && s->ended)
		update(s, EPOLL_CTL_MOD);
}

static void dispatch(struct loop_source *s, uint32_t events)
{
	switch (s->kind) {
	case SOURCE_ACCEPT:
		accept_all(s);
		break;
	case SOURCE_POLL:
		s->fn.poll(s->arg, events);
		break;
	case SOURCE_RECEIVE:
		if (events & EPOLLOUT && s->sending) {
			s->sending = false;
			epoll_send(s);
			if (!s->cancelled)
				update(s, EPOLL_CTL_MOD);
		}
		if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			receive_some(s);
		break;
	case SOURCE_TIMER:
		break;
	}
}

static int epoll_turn(struct loop *loop, uint64_t timeout_ns)
{
	struct epoll_event events[EVENTS];
	int timeout = timeout_ns > UINT64_C(3600000000000) ? -1 : (int)((timeout_ns + 999999) / 1000000);
	int n = epoll_wait(loop->epoll, events, EVENTS, timeout);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		struct loop_source *s = events[i].data.ptr; // alive: sources are freed between turns
		if (!s->cancelled)
			dispatch(s, events[i].events);
	}
	return 0;
}

const struct backend backend_epoll = {
	.name = "epoll",
	.open = epoll_open,
	.close = epoll_close,
	.start = epoll_start,
	.send = epoll_send,
	.stop = epoll_stop,
	.wait = epoll_turn,
};
