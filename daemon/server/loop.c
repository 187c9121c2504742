#include "daemon/server/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/server/loop_private.h"

int loop_create(enum loop_backend want, struct loop **out, int *refused)
{
	struct loop *loop = calloc(1, sizeof *loop);
	if (!loop)
		return -ENOMEM;
	*refused = 0;
	int status = -ENOSYS;
	if (want != LOOP_EPOLL) {
		loop->backend = &backend_uring;
		status = loop->backend->open(loop);
	}
	if (status != 0 && want != LOOP_URING) {
		*refused = want == LOOP_AUTO ? -status : 0;
		loop->backend = &backend_epoll;
		status = loop->backend->open(loop);
	}
	if (status != 0) {
		free(loop);
		return status;
	}
	*out = loop;
	return 0;
}

const char *loop_backend_name(const struct loop *loop)
{
	return loop->backend->name;
}

// ---- sources ---------------------------------------------------------------------------------------------------------
static struct loop_source *source_new(struct loop *loop, enum source_kind kind, int fd, void *arg)
{
	struct loop_source *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	s->loop = loop;
	s->kind = kind;
	s->fd = fd;
	s->arg = arg;
	s->backlog_end = &s->backlog;
	s->next = loop->sources;
	if (s->next)
		s->next->previous = s;
	loop->sources = s;
	return s;
}

static void outgoing_free(struct outgoing *message)
{
	for (uint32_t i = 0; i < message->fd_count; i++)
		close(message->fds[i]);
	free(message);
}

static void source_free(struct loop_source *s)
{
	if (s->previous)
		s->previous->next = s->next;
	else
		s->loop->sources = s->next;
	if (s->next)
		s->next->previous = s->previous;
	while (s->backlog) {
		struct outgoing *message = s->backlog;
		s->backlog = message->next;
		outgoing_free(message);
	}
	free(s->buffer);
	free(s);
}

static struct loop_source *source_start(struct loop_source *s)
{
	if (s && s->loop->backend->start(s) != 0) {
		source_free(s);
		return NULL;
	}
	return s;
}

struct loop_source *loop_accept(struct loop *loop, int fd, loop_accept_fn *fn, void *arg)
{
	struct loop_source *s = source_new(loop, SOURCE_ACCEPT, fd, arg);
	if (s)
		s->fn.accept = fn;
	return source_start(s);
}

struct loop_source *loop_poll(struct loop *loop, int fd, loop_poll_fn *fn, void *arg)
{
	struct loop_source *s = source_new(loop, SOURCE_POLL, fd, arg);
	if (s)
		s->fn.poll = fn;
	return source_start(s);
}

struct loop_source *loop_receive(struct loop *loop, int fd, size_t max_bytes, loop_receive_fn *fn, void *arg)
{
	struct loop_source *s = source_new(loop, SOURCE_RECEIVE, fd, arg);
	if (!s)
		return NULL;
	s->fn.receive = fn;
	s->buffer = malloc(max_bytes);
	s->buffer_bytes = max_bytes;
	if (!s->buffer) {
		source_free(s);
		return NULL;
	}
	return source_start(s);
}

struct loop_source *loop_timer(struct loop *loop, uint64_t interval_ns, loop_timer_fn *fn, void *arg)
{
	struct loop_source *s = source_new(loop, SOURCE_TIMER, -1, arg);
	if (!s)
		return NULL;
	s->fn.timer = fn;
	s->interval_ns = interval_ns;
	s->due_ns = mono_ns() + interval_ns;
	return s;
}

void loop_cancel(struct loop_source *source)
{
	if (!source || source->cancelled)
		return;
	source->cancelled = true;
	if (source->kind != SOURCE_TIMER)
		source->loop->backend->stop(source);
}

static void free_cancelled(struct loop *loop)
{
	for (struct loop_source *s = loop->sources, *next; s; s = next) {
		next = s->next;
		if (s->cancelled && s->pending == 0)
			source_free(s);
	}
}

void loop_destroy(struct loop *loop)
{
	if (!loop)
		return;
	for (struct loop_source *s = loop->sources; s; s = s->next)
		loop_cancel(s);
	free_cancelled(loop);
	// What the kernel still holds comes back as cancelled; it must not write into freed memory.
	for (int turns = 0; loop->sources && turns < 1000; turns++) {
		loop->backend->wait(loop, 1000000);
		free_cancelled(loop);
	}
	loop->backend->close(loop);
	while (loop->sources)
		source_free(loop->sources);
	free(loop);
}

// ---- receiving -------------------------------------------------------------------------------------------------------
void source_prepare_receive(struct loop_source *s)
{
	s->in_iov = (struct iovec){.iov_base = s->buffer, .iov_len = s->buffer_bytes};
	s->in = (struct msghdr){
		.msg_iov = &s->in_iov, .msg_iovlen = 1, .msg_control = s->in_control, .msg_controllen = sizeof s->in_control};
}

static void take_fds(struct msghdr *in, struct loop_message *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(in); c; c = CMSG_NXTHDR(in, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (message->fd_count < LOOP_MESSAGE_FDS)
				message->fds[message->fd_count++] = fd;
			else {
				close(fd);
				message->too_long = true;
			}
		}
	}
}

void source_received(struct loop_source *s, int result)
{
	struct loop_message message = {.data = s->buffer, .fds = {-1, -1}};
	if (result >= 0) {
		message.bytes = (size_t)result;
		message.too_long = (s->in.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
		take_fds(&s->in, &message);
	}
	if (result <= 0)
		s->ended = true;
	if (!s->cancelled)
		s->fn.receive(s->arg, result < 0 ? result : 0, &message);
	for (uint32_t i = 0; i < message.fd_count; i++)
		if (message.fds[i] >= 0)
			close(message.fds[i]);
}

// ---- sending ---------------------------------------------------------------------------------------------------------
void source_prepare_send(struct loop_source *s)
{
	struct outgoing *message = s->backlog;
	s->out_iov = (struct iovec){.iov_base = message->data, .iov_len = message->bytes};
	s->out = (struct msghdr){.msg_iov = &s->out_iov, .msg_iovlen = 1};
	if (message->fd_count == 0)
		return;
	memset(s->out_control, 0, sizeof s->out_control);
	s->out.msg_control = s->out_control;
	s->out.msg_controllen = CMSG_SPACE(message->fd_count * sizeof(int));
	struct cmsghdr *c = CMSG_FIRSTHDR(&s->out);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(message->fd_count * sizeof(int));
	memcpy(CMSG_DATA(c), message->fds, message->fd_count * sizeof(int));
}

void source_sent(struct loop_source *s)
{
	struct outgoing *message = s->backlog;
	s->backlog = message->next;
	if (!s->backlog)
		s->backlog_end = &s->backlog;
	s->backlog_count--;
	s->sending = false;
	outgoing_free(message);
	if (s->backlog && !s->cancelled)
		s->loop->backend->send(s);
}

int loop_send(struct loop_source *s, const void *data, size_t bytes, const int *fds, uint32_t fd_count)
{
	if (s->cancelled || s->ended)
		return -EPIPE;
	if (s->backlog_count >= LOOP_BACKLOG || fd_count > LOOP_MESSAGE_FDS)
		return -EAGAIN;
	struct outgoing *message = malloc(sizeof *message + bytes);
	if (!message)
		return -ENOMEM;
	*message = (struct outgoing){.bytes = bytes};
	memcpy(message->data, data, bytes);
	for (uint32_t i = 0; i < fd_count; i++) {
		message->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (message->fds[i] < 0) {
			int error = -errno;
			outgoing_free(message);
			return error;
		}
		message->fd_count++;
	}
	*s->backlog_end = message;
	s->backlog_end = &message->next;
	s->backlog_count++;
	return s->sending ? 0 : s->loop->backend->send(s);
}

// ---- turning ---------------------------------------------------------------------------------------------------------
static uint64_t until_next_timer(const struct loop *loop, uint64_t now, uint64_t timeout_ns)
{
	for (const struct loop_source *s = loop->sources; s; s = s->next)
		if (s->kind == SOURCE_TIMER && !s->cancelled) {
			uint64_t left = s->due_ns > now ? s->due_ns - now : 0;
			timeout_ns = left < timeout_ns ? left : timeout_ns;
		}
	return timeout_ns;
}

static void run_timers(struct loop *loop, uint64_t now)
{
	for (struct loop_source *s = loop->sources; s; s = s->next)
		if (s->kind == SOURCE_TIMER && !s->cancelled && s->due_ns <= now) {
			s->due_ns = now + s->interval_ns;
			s->fn.timer(s->arg);
		}
}

int loop_turn(struct loop *loop, uint64_t timeout_ns)
{
	int status = loop->backend->wait(loop, until_next_timer(loop, mono_ns(), timeout_ns));
	run_timers(loop, mono_ns());
	free_cancelled(loop);
	return status;
}
