// io_uring: multishot accept and poll, recvmsg and sendmsg. user_data is the source's address; its low bits say which operation.
#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/server/loop_private.h"

#define RING_ENTRIES 256
#define TAG_MAIN 0u // accept, poll, receive
#define TAG_SEND 1u
#define TAG_NONE 2u // cancellations: their result does not matter

// What a source is owed while the ring has no entry for it: a full submission queue that the kernel does not take (EBUSY, EAGAIN).
#define OWED_START 1u
#define OWED_SEND 2u
#define OWED_STOP 4u
#define AGAIN_NS 1000000u // until it is tried again

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

static int owe(struct loop_source *s, unsigned what)
{
	s->owed |= what;
	s->loop->owes = true;
	return 0;
}

static int uring_start(struct loop_source *s)
{
	struct io_uring_sqe *sqe = next_sqe(s->loop);
	if (!sqe)
		return owe(s, OWED_START);
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
	s->sending = true;
	if (!sqe)
		return owe(s, OWED_SEND);
	source_prepare_send(s);
	io_uring_prep_sendmsg(sqe, s->fd, &s->out, MSG_NOSIGNAL);
	tag(sqe, s, TAG_SEND);
	s->pending++;
	return 0;
}

// Entries that the kernel has not taken name the fd by its number, which may be another's when it takes them.
static void forget_untaken(struct loop_source *s)
{
	struct io_uring_sq *sq = &s->loop->ring.sq;
	for (unsigned i = __atomic_load_n(sq->khead, __ATOMIC_ACQUIRE); i != sq->sqe_tail; i++) {
		struct io_uring_sqe *sqe = &sq->sqes[i & sq->ring_mask];
		uint64_t data = sqe->user_data;
		if (data != ((uint64_t)(uintptr_t)s | TAG_MAIN) && data != ((uint64_t)(uintptr_t)s | TAG_SEND))
			continue;
		io_uring_prep_nop(sqe);
		io_uring_sqe_set_data64(sqe, data);
	}
}

static void uring_stop(struct loop_source *s)
{
	static const unsigned which[] = {TAG_MAIN, TAG_SEND};
	s->owed = 0;
	for (size_t i = 0; i < 2 && s->pending; i++) {
		struct io_uring_sqe *sqe = next_sqe(s->loop);
		if (!sqe) {
			owe(s, OWED_STOP); // until then the kernel keeps the socket open
			break;
		}
		io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)s | which[i], 0);
		io_uring_sqe_set_data64(sqe, TAG_NONE);
	}
	io_uring_submit(&s->loop->ring); // the caller may close the fd now
	forget_untaken(s);
}

static void pay(struct loop *loop)
{
	if (!loop->owes)
		return;
	loop->owes = false;
	for (struct loop_source *s = loop->sources; s; s = s->next) {
		unsigned owed = s->owed;
		s->owed = 0;
		if (owed & OWED_START)
			uring_start(s);
		if (owed & OWED_SEND)
			uring_send(s);
		if (owed & OWED_STOP)
			uring_stop(s);
	}
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
	pay(loop);
	struct timespec t = timespec_of(loop->owes && timeout_ns > AGAIN_NS ? AGAIN_NS : timeout_ns);
	struct __kernel_timespec timeout = {.tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec};
	struct io_uring_cqe *cqe;
	bool forever = timeout_ns == UINT64_MAX && !loop->owes;
	int status = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, forever ? NULL : &timeout, NULL);
	bool busy = status == -EBUSY || status == -EAGAIN; // completions wait for room, or the kernel for memory
	if (status < 0 && status != -ETIME && status != -EINTR && !busy)
		return status;
	// One completion at a time: callbacks submit, and may reap what uring_stop's submission brought.
	bool any = false;
	for (; io_uring_peek_cqe(&loop->ring, &cqe) == 0; any = true) {
		struct io_uring_cqe copy = *cqe;
		io_uring_cqe_seen(&loop->ring, cqe);
		complete(&copy);
	}
	if (busy && !any)
		nanosleep(&(struct timespec){.tv_nsec = AGAIN_NS}, NULL);
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
