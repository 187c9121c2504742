// io_uring: multishot accept and poll, recvmsg and sendmsg. user_data is the source's address; its low bits say which operation.
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/server/loop_private.h"

#define RING_ENTRIES 256
#define TAG_MAIN 0u // accept, poll, receive
#define TAG_SEND 1u
#define TAG_NONE 2u // cancellations: their result does not matter

static int uring_open(struct loop *loop)
{
	static const uint32_t flags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0};
	int status = -ENOSYS;
	for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
		struct io_uring_params params = {.flags = flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
		                                 .cq_entries = 4 * RING_ENTRIES};
		status = io_uring_queue_init_params(RING_ENTRIES, &loop->ring, &params);
		if (status == 0 &&
		    !(params.features & IORING_FEAT_EXT_ARG)) { // before 5.11: waits with a deadline would take entries
			io_uring_queue_exit(&loop->ring);
			return -ENOSYS;
		}
		if (status != -EINVAL)
			break; // EINVAL: flags the kernel does not know
	}
	if (status != 0)
		return status;
	struct io_uring_probe *probe = io_uring_get_probe_ring(&loop->ring);
	// Multishot accept came with 5.19, as did IORING_OP_SOCKET, which a probe can see.
	bool able = probe && io_uring_opcode_supported(probe, IORING_OP_SOCKET);
	io_uring_free_probe(probe);
	if (!able) {
		io_uring_queue_exit(&loop->ring);
		return -ENOSYS;
	}
	return 0;
}

static void uring_close(struct loop *loop)
{
	io_uring_queue_exit(&loop->ring);
}

static struct io_uring_sqe *next_sqe(struct loop *loop)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);
	if (!sqe && io_uring_submit(&loop->ring) >= 0)
		sqe = io_uring_get_sqe(&loop->ring);
	return sqe;
}

static void tag(struct io_uring_sqe *sqe, struct loop_source *s, unsigned which)
{
	io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)s | which);
}

static int uring_start(struct loop_source *s)
{
	struct io_uring_sqe *sqe = next_sqe(s->loop);
	if (!sqe)
		return -EBUSY;
	switch (s->kind) {
	case SOURCE_ACCEPT:
		io_uring_prep_multishot_accept(sqe, s->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case SOURCE_POLL:
		io_uring_prep_poll_multishot(sqe, s->fd, POLLIN);
		break;
	case SOURCE_RECEIVE:
		source_prepare_receive(s);
		io_uring_prep_recvmsg(sqe, s->fd, &s->in, MSG_CMSG_CLOEXEC);
		break;
	case SOURCE_TIMER:
		break;
	}
	tag(sqe, s, TAG_MAIN);
	s->pending++;
	return 0;
}

static int uring_send(struct loop_source *s)
{
	struct io_uring_sqe *sqe = next_sqe(s->loop);
	if (!sqe)
		return -EBUSY;
	source_prepare_send(s);
	io_uring_prep_sendmsg(sqe, s->fd, &s->out, MSG_NOSIGNAL);
	tag(sqe, s, TAG_SEND);
	s->sending = true;
	s->pending++;
	return 0;
}

static void uring_stop(struct loop_source *s)
{
	static const unsigned which[] = {TAG_MAIN, TAG_SEND};
	for (size_t i = 0; i < 2 && s->pending; i++) {
		struct io_uring_sqe *sqe = next_sqe(s->loop);
		if (!sqe)
			return; // the operation ends with the socket
		io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)s | which[i], 0);
		io_uring_sqe_set_data64(sqe, TAG_NONE);
	}
	io_uring_submit(&s->loop->ring); // the caller may close the fd now
}

static void complete_main(struct loop_source *s, int result, bool more)
{
	switch (s->kind) {
	case SOURCE_ACCEPT:
		if (result >= 0 && s->cancelled)
			close(result);
		else if (!s->cancelled && result != -ECANCELED)
			s->fn.accept(s->arg, result);
		break;
	case SOURCE_POLL:
		if (!s->cancelled && result >= 0)
			s->fn.poll(s->arg, (uint32_t)result);
		break;
	case SOURCE_RECEIVE:
		if (result != -EINTR && result != -EAGAIN)
			source_received(s, result);
		more = s->ended; // no more receiving then
		break;
	case SOURCE_TIMER:
		break;
	}
	if (!more && !s->cancelled && (result >= 0 || s->kind == SOURCE_RECEIVE))
		uring_start(s);
}

static void complete(struct io_uring_cqe *cqe)
{
	uint64_t data = io_uring_cqe_get_data64(cqe);
	unsigned which = (unsigned)(data & 7);
	if (which == TAG_NONE)
		return;
	struct loop_source *s = (struct loop_source *)(uintptr_t)(data & ~UINT64_C(7));
	bool more = (cqe->flags & IORING_CQE_F_MORE) != 0;
	if (!more)
		s->pending--;
	if (which == TAG_SEND)
		source_sent(s);
	else
		complete_main(s, cqe->res, more);
}

static int uring_turn(struct loop *loop, uint64_t timeout_ns)
{
	struct timespec t = timespec_of(timeout_ns);
	struct __kernel_timespec timeout = {.tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec};
	struct io_uring_cqe *cqe;
	int status = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, timeout_ns == UINT64_MAX ? NULL : &timeout, NULL);
	if (status < 0 && status != -ETIME && status != -EINTR)
		return status;
	// One completion at a time: callbacks submit, and may reap what uring_stop's submission brought.
	while (io_uring_peek_cqe(&loop->ring, &cqe) == 0) {
		struct io_uring_cqe copy = *cqe;
		io_uring_cqe_seen(&loop->ring, cqe);
		complete(&copy);
	}
	return 0;
}

const struct backend backend_uring = {
	.name = "io_uring",
	.open = uring_open,
	.close = uring_close,
	.start = uring_start,
	.send = uring_send,
	.stop = uring_stop,
	.wait = uring_turn,
};
