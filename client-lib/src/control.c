// The control socket: one datagram out, one back, matched by tag; fds by SCM_RIGHTS. All under the client's lock.
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int milliseconds_left(uint64_t deadline)
{
	if (deadline == NO_DEADLINE)
		return -1;
	uint64_t now = now_ns();
	uint64_t left = now >= deadline ? 0 : (deadline - now + NS_PER_MS - 1) / NS_PER_MS;
	return left > 1000000 ? 1000000 : (int)left;
}

// Waits for `events`; false at the deadline.
static bool socket_wait(int fd, short events, uint64_t deadline)
{
	for (;;) {
		struct pollfd p = {.fd = fd, .events = events};
		int left = milliseconds_left(deadline);
		int n = poll(&p, 1, left);
		if (n > 0)
			return true;
		if (n == 0 && left >= 0 && now_ns() >= deadline)
			return false;
	}
}

static int connect_refusal(const mpig_client *c, int reason)
{
	switch (reason) {
	case EACCES:
	case EPERM:
		return error_set(c, MPIG_EACCES,
		                 "no permission to connect to %s: ask for membership of the group that owns the socket", c->path);
	case ENOENT:
		return error_set(c, MPIG_ENODAEMON,
		                 "%s does not exist: start magicpigd, or set MAGICPIG_SOCKET to the daemon's socket", c->path);
	case ECONNREFUSED:
		return error_set(c, MPIG_ENODAEMON, "nobody listens on %s: the daemon that made it is gone; start magicpigd",
		                 c->path);
	case EPROTOTYPE:
		return error_set(c, MPIG_ENODAEMON,
		                 "%s is not the socket of a magicpigd (another socket type): check MAGICPIG_SOCKET", c->path);
	default:
		return error_set(c, MPIG_ENODAEMON,
		                 "cannot connect to %s: %s; is magicpigd running? set MAGICPIG_SOCKET if it is elsewhere",
		                 c->path, strerror(reason));
	}
}

int socket_connect(const mpig_client *c, uint64_t deadline, int *fd_out)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(c, MPIG_ENOMEM, "socket: %s", strerror(errno));
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, c->path, strnlen(c->path, sizeof(address.sun_path) - 1));
	while (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		int reason = errno;
		if (reason == EINTR)
			continue;
		if (reason == EAGAIN && now_ns() < deadline) { // its backlog is full
			usleep(2000);
			continue;
		}
		close(fd);
		return reason == EAGAIN ? error_set(c, MPIG_ETIMEDOUT, "the daemon on %s accepts no connection", c->path)
		                        : connect_refusal(c, reason);
	}
	*fd_out = fd;
	return MPIG_OK;
}

void connection_lost(mpig_client *c)
{
	if (c->fd < 0)
		return;
	close(c->fd);
	c->fd = -1;
	atomic_fetch_add_explicit(&c->connection, 1, memory_order_release);
}

bool connection_hung_up(const mpig_client *c)
{
	struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
	return poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL);
}

static int send_datagram(mpig_client *c, void *bytes, size_t count, int fd, uint64_t deadline)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {{0}};
	struct iovec part = {.iov_base = bytes, .iov_len = count};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	if (fd >= 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof(control.bytes);
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(head), &fd, sizeof(int));
	}
	while (sendmsg(c->fd, &message, MSG_NOSIGNAL) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK) {
			connection_lost(c);
			return NOT_SENT;
		}
		if (!socket_wait(c->fd, POLLOUT, deadline))
			return error_set(c, MPIG_ETIMEDOUT, "the daemon on %s takes no requests (%d ms)", c->path, c->timeout_ms);
	}
	return MPIG_OK;
}

static void close_received(int fds[2])
{
	for (int i = 0; i < 2; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

static void collect_fds(struct msghdr *message, int fds[2])
{
	int n = 0;
	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		size_t bytes = head->cmsg_len - CMSG_LEN(0);
		for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
			int fd;
			memcpy(&fd, CMSG_DATA(head) + at, sizeof(fd));
			if (n < 2)
				fds[n++] = fd;
			else
				close(fd);
		}
	}
}

// The next datagram into c->reply, checked as far as its header goes. MPIG_ERETRY if the daemon is gone.
static int receive_datagram(mpig_client *c, int fds[2], uint64_t deadline)
{
	union {
		char bytes[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control;
	fds[0] = fds[1] = -1;
	for (;;) {
		struct iovec part = {.iov_base = c->reply, .iov_len = MPIG_CONTROL_MAX_BYTES};
		struct msghdr message = {
			.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
		ssize_t n = recvmsg(c->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		if (n > 0) {
			collect_fds(&message, fds);
			struct mpig_control_header *h = (struct mpig_control_header *)(void *)c->reply;
			c->reply_bytes = (uint32_t)n;
			if ((size_t)n >= sizeof(*h) && h->magic == MPIG_CONTROL_MAGIC && h->size == (uint32_t)n &&
			    h->status <= 0 && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
				return MPIG_OK;
			close_received(fds);
			connection_lost(c);
			return error_set(c, MPIG_EPROTO,
			                 "malformed answer of %zd bytes on %s: is this a magicpigd of this version (%s)?", n,
			                 c->path, MPIG_VERSION_STRING);
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
			connection_lost(c);
			return error_set(c, MPIG_ERETRY, "the daemon on %s closed the connection before it answered; try again",
			                 c->path);
		}
		if (!socket_wait(c->fd, POLLIN, deadline))
			return error_set(c, MPIG_ETIMEDOUT, "the daemon on %s has not answered for %d ms", c->path,
			                 c->timeout_ms);
	}
}

static void fill_header(mpig_client *c, uint16_t op, void *request, size_t bytes)
{
	*(struct mpig_control_header *)request = (struct mpig_control_header){
		.magic = MPIG_CONTROL_MAGIC, .version = MPIG_CONTROL_VERSION, .op = op, .size = (uint32_t)bytes, .tag = ++c->tag};
}

void control_post(mpig_client *c, uint16_t op, void *request, size_t bytes)
{
	fill_header(c, op, request, bytes);
	if (c->fd >= 0)
		send_datagram(c, request, bytes, -1, 0);
}

// An answer nobody waits for any more. What it gave us is given back.
static void drop_late_answer(mpig_client *c, int fds[2])
{
	const struct mpig_ctl_queue_create *late = (const void *)c->reply;
	close_received(fds);
	if (late->h.op == MPIG_CTL_QUEUE_CREATE && late->h.status == MPIG_OK && c->reply_bytes >= sizeof(*late)) {
		struct mpig_ctl_queue_destroy destroy = {.queue_id = late->queue_id};
		control_post(c, MPIG_CTL_QUEUE_DESTROY, &destroy, sizeof(destroy));
	}
	const struct mpig_ctl_trace *begun = (const void *)c->reply;
	if (begun->h.op == MPIG_CTL_TRACE && begun->h.status == MPIG_OK && c->reply_bytes >= sizeof(*begun) &&
	    begun->action == MPIG_TRACE_START) {
		struct mpig_ctl_trace stop = {.action = MPIG_TRACE_STOP, .number = begun->number};
		memcpy(stop.name, begun->name, sizeof(stop.name) - 1);
		control_post(c, MPIG_CTL_TRACE, &stop, sizeof(stop));
	}
}

// The status and text of an answer that says no, or comes from another version.
static int refusal(const mpig_client *c)
{
	const struct mpig_ctl_error *e = (const void *)c->reply;
	char text[MPIG_TEXT_BYTES] = "";
	if (c->reply_bytes >= sizeof(*e)) {
		memcpy(text, e->text, sizeof(text) - 1);
		for (char *p = text; *p; p++)
			if ((unsigned char)*p < ' ')
				*p = ' ';
	}
	if (e->h.version != MPIG_CONTROL_VERSION)
		return error_set(c, MPIG_EVERSION, "the daemon on %s speaks control version %u, this library (%s) version %u%s%s",
		                 c->path, e->h.version, MPIG_VERSION_STRING, MPIG_CONTROL_VERSION, *text ? ": " : "", text);
	return error_set(c, e->h.status, "%s", *text ? text : mpig_status_text(e->h.status));
}

int control_exchange(mpig_client *c, uint16_t op, void *request, size_t bytes, int send_fd, size_t reply_min, int fds[2])
{
	uint64_t deadline = deadline_in(c->timeout_ms);
	int got[2];
	fill_header(c, op, request, bytes);
	uint32_t tag = c->tag;
	int rc = send_datagram(c, request, bytes, send_fd, deadline);
	if (rc)
		return rc;
	const struct mpig_control_header *h = (const void *)c->reply;
	for (;;) {
		rc = receive_datagram(c, got, deadline);
		if (rc)
			return rc;
		if (h->tag == tag)
			break;
		drop_late_answer(c, got);
		if (c->fd < 0)
			return error_set(c, MPIG_ERETRY, "the daemon on %s closed the connection before it answered; try again",
			                 c->path);
	}
	if (h->version != MPIG_CONTROL_VERSION || h->status) {
		close_received(got);
		return refusal(c);
	}
	if (c->reply_bytes < reply_min) {
		close_received(got);
		connection_lost(c);
		return error_set(c, MPIG_EPROTO, "the daemon's answer to request %u is %u bytes, not the %zu of version %u", op,
		                 c->reply_bytes, reply_min, MPIG_CONTROL_VERSION);
	}
	if (fds) {
		fds[0] = got[0];
		fds[1] = got[1];
	} else {
		close_received(got);
	}
	return MPIG_OK;
}

int page_records(mpig_client *c, const char *what, uint32_t count, uint32_t most, size_t head_bytes, size_t record_bytes,
                 uint32_t max)
{
	if (count > most || c->reply_bytes < head_bytes + count * record_bytes)
		return error_set(c, MPIG_EPROTO, "a list of %u %s in %u bytes", count, what, c->reply_bytes);
	return (int)(count < max ? count : max);
}
