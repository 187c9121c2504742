// The event loop, every test on both backends.
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <liburing.h>

#include "daemon/server/loop.h"

// The ring, as the backend sees it, may have no entry (a full queue that the kernel does not take), or the kernel may refuse to take entries.
static bool no_entry, not_taken, busy_wait;

static struct io_uring_sqe *get_sqe(struct io_uring *ring)
{
	return no_entry ? NULL : io_uring_get_sqe(ring);
}

static int submit(struct io_uring *ring)
{
	return no_entry || not_taken ? -EBUSY : io_uring_submit(ring);
}

static int submit_and_wait(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n, struct __kernel_timespec *t,
                           sigset_t *mask)
{
	int status = io_uring_submit_and_wait_timeout(ring, cqe, n, t, mask);
	return busy_wait ? -EBUSY : status;
}

#define io_uring_get_sqe get_sqe
#define io_uring_submit submit
#define io_uring_submit_and_wait_timeout submit_and_wait
#include "daemon/server/loop_uring.c"
#include "tests/lib/suite.h"

#define TURNS 200
#define TURN_NS 10000000u // bounds a turn; nothing is asserted about time

static const enum loop_backend backends[] = {LOOP_URING, LOOP_EPOLL};
static struct loop *loop;
static int index_of_backend;

static bool start(int which)
{
	int refused;
	index_of_backend = which;
	int status = loop_create(backends[which], &loop, &refused);
	if (status != 0 && backends[which] == LOOP_URING)
		return false; // this machine refuses io_uring: the daemon would take epoll, which is tested next
	ck_assert_int_eq(status, 0);
	ck_assert_str_eq(loop_backend_name(loop), which == 0 ? "io_uring" : "epoll");
	return true;
}

struct seen {
	int accepted[4];
	int accepts;
	int messages, errors, ends;
	size_t bytes;
	char last[256];
	int fd;
	bool too_long;
	int polls, ticks;
	struct loop_source *source;
	bool cancel_self;
};

static void turn_until(const int *counter, int value)
{
	for (int i = 0; i < TURNS && *counter < value; i++)
		ck_assert_int_eq(loop_turn(loop, TURN_NS), 0);
	ck_assert_int_ge(*counter, value);
}

static void on_accept(void *arg, int fd)
{
	struct seen *s = arg;
	ck_assert_int_ge(fd, 0);
	s->accepted[s->accepts++] = fd;
}

static void on_message(void *arg, int error, struct loop_message *m)
{
	struct seen *s = arg;
	if (error) {
		s->errors++;
		return;
	}
	if (m->bytes == 0) {
		s->ends++;
		return;
	}
	s->messages++;
	s->bytes = m->bytes;
	s->too_long |= m->too_long;
	memcpy(s->last, m->data, m->bytes < sizeof s->last ? m->bytes : sizeof s->last);
	if (m->fd_count) {
		s->fd = m->fds[0];
		m->fds[0] = -1;
	}
	if (s->cancel_self)
		loop_cancel(s->source);
}

static void on_poll(void *arg, uint32_t events)
{
	struct seen *s = arg;
	ck_assert(events & POLLIN);
	s->polls++;
}

static void on_tick(void *arg)
{
	struct seen *s = arg;
	s->ticks++;
	if (s->cancel_self)
		loop_cancel(s->source);
}

static int listening(struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "mpig-test-loop-%d-%d", getpid(), index_of_backend);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)address, sizeof *address), 0);
	ck_assert_int_eq(listen(fd, 8), 0);
	return fd;
}

START_TEST(accepts_many)
{
	if (!start(_i))
		return;
	struct sockaddr_un address;
	int fd = listening(&address), clients[3];
	struct seen s = {0};
	ck_assert_ptr_nonnull(loop_accept(loop, fd, on_accept, &s));
	for (int i = 0; i < 3; i++) {
		clients[i] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
		ck_assert_int_eq(connect(clients[i], (struct sockaddr *)&address, sizeof address), 0);
		turn_until(&s.accepts, i + 1);
	}
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(write(clients[i], "x", 1), 1);
		char c;
		ck_assert_int_eq(read(s.accepted[i], &c, 1), 1);
		close(clients[i]);
		close(s.accepted[i]);
	}
	loop_destroy(loop);
	close(fd);
}
END_TEST

START_TEST(receives_messages_fds_and_the_end)
{
	if (!start(_i))
		return;
	int pair[2], event = eventfd(7, 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	struct seen s = {.fd = -1};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	ck_assert_int_eq(send(pair[1], "hello", 5, 0), 5);
	turn_until(&s.messages, 1);
	ck_assert_uint_eq(s.bytes, 5);
	ck_assert_mem_eq(s.last, "hello", 5);
	ck_assert(!s.too_long);
	// With a descriptor: it is the same eventfd.
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {.iov_base = "fd", .iov_len = 2};
	struct msghdr out = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&out);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &event, sizeof event);
	ck_assert_int_eq(sendmsg(pair[1], &out, 0), 2);
	turn_until(&s.messages, 2);
	uint64_t value = 0;
	ck_assert_int_ge(s.fd, 0);
	ck_assert_int_eq(read(s.fd, &value, 8), 8);
	ck_assert_uint_eq(value, 7);
	close(s.fd);
	// Longer than the buffer: said so.
	char big[65];
	memset(big, 'b', sizeof big);
	ck_assert_int_eq(send(pair[1], big, sizeof big, 0), sizeof big);
	turn_until(&s.messages, 3);
	ck_assert(s.too_long);
	close(pair[1]);
	turn_until(&s.ends, 1);
	for (int i = 0; i < 3; i++)
		loop_turn(loop, 1000000);
	ck_assert_int_eq(s.ends, 1);
	loop_cancel(s.source);
	close(pair[0]);
	loop_destroy(loop);
	close(event);
}
END_TEST

START_TEST(too_many_fds_are_closed)
{
	if (!start(_i))
		return;
	int pair[2], fds[3];
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	int pipes[2];
	ck_assert_int_eq(pipe(pipes), 0);
	for (int i = 0; i < 3; i++)
		fds[i] = pipes[1];
	struct seen s = {.fd = -1};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {0};
	struct iovec iov = {.iov_base = "fd", .iov_len = 2};
	struct msghdr out = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&out);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fds);
	memcpy(CMSG_DATA(c), fds, sizeof fds);
	ck_assert_int_eq(sendmsg(pair[1], &out, 0), 2);
	turn_until(&s.messages, 1);
	ck_assert(s.too_long);
	close(s.fd);
	close(pipes[1]);
	char byte; // every copy of the write end is closed: the reader sees the end
	ck_assert_int_eq(read(pipes[0], &byte, 1), 0);
	loop_destroy(loop);
	close(pair[0]);
	close(pair[1]);
	close(pipes[0]);
}
END_TEST

START_TEST(sends_in_order_and_bounds_the_backlog)
{
	if (!start(_i))
		return;
	int pair[2];
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	int small = 4096;
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	struct seen s = {0};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	static char message[2048];
	uint32_t sent = 0;
	int status = 0;
	for (; sent < 1000; sent++) {
		memcpy(message, &sent, sizeof sent);
		status = loop_send(s.source, message, sizeof message, NULL, 0);
		if (status != 0)
			break;
		ck_assert_int_eq(loop_turn(loop, 0), 0);
	}
	ck_assert_int_eq(status, -EAGAIN); // nobody reads: bounded, and never blocked
	for (uint32_t i = 0; i < sent; i++) {
		uint32_t number = UINT32_MAX;
		for (int turns = 0; turns < TURNS; turns++) {
			ssize_t n = recv(pair[1], message, sizeof message, MSG_DONTWAIT);
			if (n == (ssize_t)sizeof message) {
				memcpy(&number, message, sizeof number);
				break;
			}
			ck_assert_int_eq(loop_turn(loop, 1000000), 0);
		}
		ck_assert_uint_eq(number, i);
	}
	ck_assert_int_eq(loop_send(s.source, "again", 5, NULL, 0), 0);
	loop_destroy(loop);
	close(pair[0]);
	close(pair[1]);
}
END_TEST

START_TEST(sends_fds)
{
	if (!start(_i))
		return;
	int pair[2], fds[2] = {eventfd(1, 0), eventfd(2, 0)};
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	struct seen s = {0}, peer = {.fd = -1};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	peer.source = loop_receive(loop, pair[1], 64, on_message, &peer);
	ck_assert_int_eq(loop_send(s.source, "two", 3, fds, 2), 0);
	close(fds[0]); // the loop has its own
	close(fds[1]);
	turn_until(&peer.messages, 1);
	uint64_t value = 0;
	ck_assert_int_eq(read(peer.fd, &value, 8), 8);
	ck_assert_uint_eq(value, 1);
	close(peer.fd);
	loop_destroy(loop);
	close(pair[0]);
	close(pair[1]);
}
END_TEST

START_TEST(send_to_a_dead_peer_is_harmless)
{
	if (!start(_i))
		return;
	int pair[2];
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	struct seen s = {0};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	close(pair[1]);
	loop_send(s.source, "x", 1, NULL, 0);
	turn_until(&s.ends, 1);
	loop_destroy(loop);
	close(pair[0]);
}
END_TEST

START_TEST(polls_each_write)
{
	if (!start(_i))
		return;
	int event = eventfd(0, EFD_NONBLOCK);
	struct seen s = {0};
	s.source = loop_poll(loop, event, on_poll, &s);
	for (int i = 1; i <= 4; i++) { // never read: each write is an edge
		ck_assert_int_eq(eventfd_write(event, 1), 0);
		turn_until(&s.polls, i);
	}
	int polls = s.polls;
	for (int i = 0; i < 3; i++)
		loop_turn(loop, 1000000);
	ck_assert_int_eq(s.polls, polls);
	loop_cancel(s.source);
	eventfd_write(event, 1);
	loop_turn(loop, 1000000);
	loop_turn(loop, 1000000);
	ck_assert_int_eq(s.polls, polls);
	loop_destroy(loop);
	close(event);
}
END_TEST

START_TEST(timers_tick_until_cancelled)
{
	if (!start(_i))
		return;
	struct seen s = {0}, once = {.cancel_self = true};
	s.source = loop_timer(loop, 1000000, on_tick, &s);
	once.source = loop_timer(loop, 1000000, on_tick, &once);
	turn_until(&s.ticks, 5);
	ck_assert_int_eq(once.ticks, 1);
	loop_cancel(s.source);
	int ticks = s.ticks;
	for (int i = 0; i < 3; i++)
		loop_turn(loop, 3000000);
	ck_assert_int_eq(s.ticks, ticks);
	loop_destroy(loop);
}
END_TEST

START_TEST(callback_may_cancel_itself)
{
	if (!start(_i))
		return;
	int pair[2];
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	struct seen s = {.cancel_self = true};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(send(pair[1], "x", 1, 0), 1);
	turn_until(&s.messages, 1);
	for (int i = 0; i < 3; i++)
		loop_turn(loop, 1000000);
	ck_assert_int_eq(s.messages, 1);
	close(pair[0]);
	close(pair[1]);
	loop_destroy(loop);
}
END_TEST

static void connected(int pair[2])
{
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
}

static void disconnected(const int pair[2])
{
	close(pair[0]);
	close(pair[1]);
}

// A connection whose next receive found no entry is not deaf: it is armed when there is one.
START_TEST(what_had_no_entry_is_armed_later)
{
	if (!start(0))
		return;
	int pair[2];
	connected(pair);
	struct seen s = {.fd = -1}, late = {.fd = -1};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	no_entry = true;
	ck_assert_int_eq(send(pair[1], "one", 3, 0), 3);
	turn_until(&s.messages, 1);
	ck_assert_int_eq(send(pair[1], "two", 3, 0), 3);
	int other[2];
	connected(other);
	late.source = loop_receive(loop, other[0], 64, on_message, &late); // a newcomer waits as well
	ck_assert_ptr_nonnull(late.source);
	ck_assert_int_eq(send(other[1], "x", 1, 0), 1);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(loop_turn(loop, UINT64_MAX), 0); // comes back, though nothing happens
	ck_assert_int_eq(s.messages, 1);
	no_entry = false;
	turn_until(&s.messages, 2);
	ck_assert_mem_eq(s.last, "two", 3);
	turn_until(&late.messages, 1);
	loop_destroy(loop);
	disconnected(pair);
	disconnected(other);
}
END_TEST

START_TEST(answers_that_had_no_entry_are_sent_in_order)
{
	if (!start(0))
		return;
	int pair[2];
	connected(pair);
	struct seen s = {.fd = -1};
	char got[8];
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	no_entry = true;
	ck_assert_int_eq(loop_send(s.source, "one", 3, NULL, 0), 0);
	ck_assert_int_eq(loop_send(s.source, "two", 3, NULL, 0), 0);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	ck_assert_int_eq(recv(pair[1], got, sizeof got, MSG_DONTWAIT), -1);
	no_entry = false;
	for (int i = 0; i < 2; i++) {
		ssize_t n = -1;
		for (int turns = 0; turns < TURNS && n < 0; turns++) {
			ck_assert_int_eq(loop_turn(loop, 1000000), 0);
			n = recv(pair[1], got, sizeof got, MSG_DONTWAIT);
		}
		ck_assert_int_eq(n, 3);
		ck_assert_mem_eq(got, i ? "two" : "one", 3);
	}
	loop_destroy(loop);
	disconnected(pair);
}
END_TEST

// The kernel holds the socket of a receive that nobody could cancel: its other end sees the end when there is an entry again.
START_TEST(a_connection_ends_that_had_no_entry_for_it)
{
	if (!start(0))
		return;
	int pair[2];
	connected(pair);
	struct seen s = {.fd = -1};
	char got[8];
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	no_entry = true;
	loop_cancel(s.source);
	close(pair[0]);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	ck_assert_int_eq(recv(pair[1], got, sizeof got, MSG_DONTWAIT), -1);
	no_entry = false;
	ssize_t n = -1;
	for (int turns = 0; turns < TURNS && n < 0; turns++) {
		ck_assert_int_eq(loop_turn(loop, 1000000), 0);
		n = recv(pair[1], got, sizeof got, MSG_DONTWAIT);
	}
	ck_assert_int_eq(n, 0);
	loop_destroy(loop);
	close(pair[1]);
}
END_TEST

// An entry that the kernel did not take before its source was cancelled names a number of a file; the next file of that number is not read.
START_TEST(a_cancelled_entry_touches_no_other_file)
{
	if (!start(0))
		return;
	int first[2], next[2];
	connected(first);
	connected(next);
	struct seen s = {.fd = -1};
	char got[8];
	s.source = loop_receive(loop, first[0], 64, on_message, &s);
	loop_send(s.source, "old", 3, NULL, 0);
	not_taken = true;
	loop_cancel(s.source);
	not_taken = false;
	ck_assert_int_eq(dup2(next[0], first[0]), first[0]);
	ck_assert_int_eq(send(next[1], "new", 3, 0), 3);
	for (int i = 0; i < 5; i++)
		ck_assert_int_eq(loop_turn(loop, 1000000), 0);
	ck_assert_int_eq(recv(next[1], got, sizeof got, MSG_DONTWAIT), -1);
	ck_assert_int_eq(recv(next[0], got, sizeof got, MSG_DONTWAIT), 3);
	ck_assert_mem_eq(got, "new", 3);
	loop_destroy(loop);
	disconnected(first);
	disconnected(next);
}
END_TEST

// What does not say that the ring is broken does not end the loop.
START_TEST(a_busy_kernel_is_waited_for)
{
	if (!start(0))
		return;
	int pair[2];
	connected(pair);
	struct seen s = {.fd = -1};
	s.source = loop_receive(loop, pair[0], 64, on_message, &s);
	busy_wait = true;
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	for (int i = 1; i <= 3; i++) {
		ck_assert_int_eq(send(pair[1], "x", 1, 0), 1);
		turn_until(&s.messages, i);
	}
	busy_wait = false;
	loop_destroy(loop);
	disconnected(pair);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("loop");
	TCase *t = tcase_create("backends");
	int n = (int)(sizeof backends / sizeof backends[0]);
	tcase_add_loop_test(t, accepts_many, 0, n);
	tcase_add_loop_test(t, receives_messages_fds_and_the_end, 0, n);
	tcase_add_loop_test(t, too_many_fds_are_closed, 0, n);
	tcase_add_loop_test(t, sends_in_order_and_bounds_the_backlog, 0, n);
	tcase_add_loop_test(t, sends_fds, 0, n);
	tcase_add_loop_test(t, send_to_a_dead_peer_is_harmless, 0, n);
	tcase_add_loop_test(t, polls_each_write, 0, n);
	tcase_add_loop_test(t, timers_tick_until_cancelled, 0, n);
	tcase_add_loop_test(t, callback_may_cancel_itself, 0, n);
	tcase_add_test(t, what_had_no_entry_is_armed_later);
	tcase_add_test(t, answers_that_had_no_entry_are_sent_in_order);
	tcase_add_test(t, a_connection_ends_that_had_no_entry_for_it);
	tcase_add_test(t, a_cancelled_entry_touches_no_other_file);
	tcase_add_test(t, a_busy_kernel_is_waited_for);
	suite_add_tcase(s, t);
	return suite_run(s);
}
