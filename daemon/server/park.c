#include "daemon/server/park.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/base/clock.h"

#define RING_ENTRIES 128
#define TOKEN_NONE 0u

struct watched {
	uint32_t id;
	int fd;         // ours, a dup
	uint64_t token; // user_data of its poll; never used again
};

struct park {
	int wake_fd;
	bool uring;
	struct io_uring ring;
	int epoll;
	struct watched *watched;
	uint32_t count, capacity;
	uint64_t next_token, wake_token;
};

int park_wake_fd(void)
{
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void park_wake(int wake_fd)
{
	eventfd_write(wake_fd, 1); // nonblocking; EAGAIN only when it is full, and then it is awake anyway
}

// ---- io_uring --------------------------------------------------------------------------------------------------------
static bool open_ring(struct park *p)
{
	static const uint32_t flags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
	for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
		struct io_uring_params params = {.flags = flags[i]};
		if (io_uring_queue_init_params(RING_ENTRIES, &p->ring, &params) != 0)
			continue;
		if (params.features & IORING_FEAT_EXT_ARG)
			return true;
		io_uring_queue_exit(&p->ring);
		return false;
	}
	return false;
}

static struct io_uring_sqe *next_sqe(struct park *p)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
	if (!sqe && io_uring_submit(&p->ring) >= 0)
		sqe = io_uring_get_sqe(&p->ring);
	return sqe;
}

static bool arm(struct park *p, int fd, uint64_t token)
{
	struct io_uring_sqe *sqe = next_sqe(p);
	if (!sqe)
		return false;
	io_uring_prep_poll_multishot(sqe, fd, POLLIN);
	io_uring_sqe_set_data64(sqe, token);
	return true;
}

static void disarm(struct park *p, uint64_t token)
{
	struct io_uring_sqe *sqe = next_sqe(p);
	if (!sqe)
		return; // a poll left over wakes the worker needlessly, no more
	io_uring_prep_poll_remove(sqe, token);
	io_uring_sqe_set_data64(sqe, TOKEN_NONE);
}

static void rearm(struct park *p, uint64_t token)
{
	if (token == p->wake_token)
		arm(p, p->wake_fd, token);
	for (uint32_t i = 0; i < p->count; i++)
		if (p->watched[i].token == token)
			arm(p, p->watched[i].fd, token);
}

static void sleep_on_ring(struct park *p, uint64_t timeout_ns)
{
	struct timespec t = timespec_of(timeout_ns);
	struct __kernel_timespec timeout = {.tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec};
	struct io_uring_cqe *cqe;
	io_uring_submit_and_wait_timeout(&p->ring, &cqe, 1, timeout_ns == UINT64_MAX ? NULL : &timeout, NULL);
	while (io_uring_peek_cqe(&p->ring, &cqe) == 0) {
		uint64_t token = io_uring_cqe_get_data64(cqe);
		bool again = cqe->res >= 0 && !(cqe->flags & IORING_CQE_F_MORE);
		io_uring_cqe_seen(&p->ring, cqe);
		if (token != TOKEN_NONE && again)
			rearm(p, token);
	}
}

// ---- epoll -----------------------------------------------------------------------------------------------------------
static bool epoll_add(struct park *p, int fd)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	return epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void sleep_on_epoll(struct park *p, uint64_t timeout_ns)
{
	struct epoll_event events[16];
	int timeout = timeout_ns > UINT64_C(3600000000000) ? -1 : (int)((timeout_ns + 999999) / 1000000);
	epoll_wait(p->epoll, events, 16, timeout);
}

// ---- both ------------------------------------------------------------------------------------------------------------
struct park *park_create(int wake_fd, bool uring)
{
	struct park *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->wake_fd = wake_fd;
	p->epoll = -1;
	p->next_token = TOKEN_NONE + 1;
	p->wake_token = p->next_token++;
	p->uring = uring && open_ring(p);
	if (p->uring) {
		arm(p, wake_fd, p->wake_token);
		return p;
	}
	p->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (p->epoll >= 0 && epoll_add(p, wake_fd))
		return p;
	park_destroy(p);
	return NULL;
}

void park_destroy(struct park *p)
{
	if (!p)
		return;
	if (p->uring)
		io_uring_queue_exit(&p->ring);
	if (p->epoll >= 0)
		close(p->epoll);
	for (uint32_t i = 0; i < p->count; i++)
		close(p->watched[i].fd);
	free(p->watched);
	free(p);
}

bool park_watch(struct park *p, uint32_t id, int fd)
{
	if (p->count == p->capacity) {
		uint32_t capacity = p->capacity ? 2 * p->capacity : 16;
		struct watched *more = realloc(p->watched, capacity * sizeof *more);
		if (!more)
			return false;
		p->watched = more;
		p->capacity = capacity;
	}
	struct watched w = {.id = id, .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .token = p->next_token++};
	if (w.fd < 0)
		return false;
	if (!(p->uring ? arm(p, w.fd, w.token) : epoll_add(p, w.fd))) {
		close(w.fd);
		return false;
	}
	p->watched[p->count++] = w;
	return true;
}

void park_unwatch(struct park *p, uint32_t id)
{
	for (uint32_t i = 0; i < p->count; i++) {
		if (p->watched[i].id != id)
			continue;
		struct watched w = p->watched[i];
		p->watched[i] = p->watched[--p->count];
		if (p->uring) {
			disarm(p, w.token);
			io_uring_submit(&p->ring); // before the fd's number is used for another
		} else {
			epoll_ctl(p->epoll, EPOLL_CTL_DEL, w.fd, NULL); // closing is not enough: the client has the file open too
		}
		close(w.fd);
		return;
	}
}

void park_sleep(struct park *p, uint64_t timeout_ns)
{
	if (p->uring)
		sleep_on_ring(p, timeout_ns);
	else
		sleep_on_epoll(p, timeout_ns);
}
