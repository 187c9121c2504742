#include "tests/lib/wire.h"

#include <check.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "shm/region.h"
#include "shm/status.h"

int wire_connect(const struct test_daemon *d)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ck_assert_int_ge(fd, 0);
	memcpy(address.sun_path, d->socket, strlen(d->socket) + 1);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

int wire_send(int socket, const void *message, size_t bytes, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {(void *)(uintptr_t)message, bytes};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	if (fd >= 0) {
		memset(&control, 0, sizeof(control));
		m.msg_control = &control;
		m.msg_controllen = sizeof(control.bytes);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	return sendmsg(socket, &m, MSG_NOSIGNAL) == (ssize_t)bytes ? 0 : -1;
}

static void take_fds(struct msghdr *m, int fds[2])
{
	size_t taken = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (fds && taken < 2)
				fds[taken++] = fd;
			else
				close(fd);
		}
	}
}

ssize_t wire_receive(int socket, void *reply, size_t bytes, int fds[2])
{
	union {
		char bytes[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {reply, bytes};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct pollfd ready = {.fd = socket, .events = POLLIN};
	if (fds)
		fds[0] = fds[1] = -1;
	ck_assert_msg(poll(&ready, 1, 5000) == 1, "the daemon neither answers nor closes");
	ssize_t n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC);
	if (n <= 0)
		return 0; // also ECONNRESET: closed with messages of ours unread
	take_fds(&m, fds);
	return n;
}

void wire_header(struct mpig_control_header *h, enum mpig_control_op op, size_t size)
{
	static uint32_t tag;
	*h = (struct mpig_control_header){.magic = MPIG_CONTROL_MAGIC,
	                                  .version = MPIG_CONTROL_VERSION,
	                                  .op = (uint16_t)op,
	                                  .size = (uint32_t)size,
	                                  .tag = ++tag};
}

int wire_call(int socket, const void *request, size_t bytes, void *reply, size_t reply_bytes)
{
	struct mpig_control_header h;
	if (wire_send(socket, request, bytes, -1))
		return MPIG_ENODAEMON;
	ssize_t n = wire_receive(socket, reply, reply_bytes, NULL);
	if (n == 0)
		return MPIG_ENODAEMON;
	ck_assert_int_ge(n, (int)sizeof(h));
	memcpy(&h, reply, sizeof(h));
	ck_assert_uint_eq(h.magic, MPIG_CONTROL_MAGIC);
	return h.status;
}

int wire_hello(int socket)
{
	struct mpig_ctl_hello hello = {.abi_version = MPIG_ABI_VERSION};
	union {
		struct mpig_ctl_hello hello;
		struct mpig_ctl_error error;
	} reply;
	wire_header(&hello.h, MPIG_CTL_HELLO, sizeof(hello));
	return wire_call(socket, &hello, sizeof(hello), &reply, sizeof(reply));
}

void wire_queue_open(int socket, uint32_t entries, uint32_t slots, uint64_t slot_bytes, struct wire_queue *q)
{
	struct mpig_ctl_queue_create request = {.entries = entries, .slot_count = slots, .slot_bytes = slot_bytes}, reply;
	int fds[2];
	wire_header(&request.h, MPIG_CTL_QUEUE_CREATE, sizeof(request));
	ck_assert_int_eq(wire_send(socket, &request, sizeof(request), -1), 0);
	ck_assert_int_eq(wire_receive(socket, &reply, sizeof(reply), fds), (int)sizeof(reply));
	ck_assert_int_eq(reply.h.status, MPIG_OK);
	uint64_t size;
	*q = (struct wire_queue){.region = fds[0], .eventfd = fds[1], .id = reply.queue_id};
	ck_assert_int_eq(mpig_region_check(q->region, reply.region_bytes, 0, &size), MPIG_OK);
	ck_assert_int_eq(mpig_region_map(q->region, size, 1, &q->base), MPIG_OK);
	ck_assert_int_eq(mpig_queue_header_check(q->base, size, &q->header), MPIG_OK);
	mpig_client_rings(q->base, &q->header, &q->sq, &q->cq);
}

void wire_queue_close(struct wire_queue *q)
{
	munmap(q->base, q->header.region_bytes);
	close(q->region);
	close(q->eventfd);
}

uint8_t *wire_slot(const struct wire_queue *q, uint32_t slot)
{
	return (uint8_t *)q->base + q->header.slots_offset + slot * q->header.slot_bytes;
}

void wire_wake(struct wire_queue *q)
{
	uint64_t one = 1;
	struct mpig_queue_header *words = q->base;
	if (mpig_flag_peer(&words->sq_flags, MPIG_SQ_NEED_WAKEUP)) // F4
		ck_assert_int_eq((int)write(q->eventfd, &one, sizeof(one)), (int)sizeof(one));
}

void wire_submit(struct wire_queue *q, const struct mpig_sqe *entry)
{
	ck_assert_int_ge(mpig_producer_room(&q->sq), 1);
	mpig_producer_put(&q->sq, entry);
	mpig_producer_publish(&q->sq); // R0
	wire_wake(q);
}

struct mpig_cqe wire_complete(struct wire_queue *q)
{
	struct mpig_cqe e = {0};
	struct timespec step = {0, 200000};
	int ready = 0;
	for (int waited = 0; waited < 50000 && (ready = mpig_consumer_ready(&q->cq)) == 0; waited++)
		nanosleep(&step, NULL);
	ck_assert_msg(ready > 0, "no completion (%d)", ready);
	mpig_consumer_take(&q->cq, &e);
	mpig_consumer_release(&q->cq);
	return e;
}
