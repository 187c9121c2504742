#include "daemon/server/leftover.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "shm/region.h"
#include "shm/status.h"

#define TICK_NS UINT64_C(100000000)
#define AGAIN_NS UINT64_C(1000000000) // after a failure
#define SHORT_WHILE_NS UINT64_C(100000000)
#define STACK_BYTES (64u << 10)

struct leftover {
	struct leftover *next;
	struct left_region region;
	uint64_t until_ns; // mono_ns; 0: now
	int pidfd;         // -1: not known
	bool given_up;     // not to be adopted any more
	bool emptying;     // a thread is at it
	int done_fd;
	atomic_int result; // of that thread: 1, or a negative errno; 0: not yet
};

static struct log_limit failed_limit = LOG_LIMIT_INIT;

// ---- the thread ------------------------------------------------------------------------------------------------------
// It may stand still for as long as the client wants, also beyond the daemon's end: it has no file open that the next daemon needs.
static void let_go_of_files(int but)
{
	if (unshare(CLONE_FILES) != 0)
		return;
	if (but > 0)
		(void)close_range(0, (unsigned)but - 1, 0);
	(void)close_range((unsigned)but + 1, UINT_MAX, 0);
}

static void *empty(void *argument)
{
	struct leftover *l = argument;
	int done_fd = l->done_fd;
	let_go_of_files(done_fd);
	int rc = mpig_region_empty(l->region.base, l->region.bytes) == MPIG_OK ? 1 : -errno;
	atomic_store_explicit(&l->result, rc, memory_order_release); // partner: collect(), which may free it at once
	(void)!write(done_fd, &(uint64_t){1}, sizeof(uint64_t));
	return NULL;
}

static int begin_thread(struct leftover *l)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int rc = pthread_attr_init(&attributes);
	if (rc)
		return rc;
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	rc = pthread_create(&thread, &attributes, empty, l);
	pthread_attr_destroy(&attributes);
	return rc;
}

// ---- accounts --------------------------------------------------------------------------------------------------------
static void count(struct leftovers *all, const struct leftover *l, bool in)
{
	struct account *who[] = {account_get(all->accounts, l->region.uid),
	                         account_get(all->accounts, ACCOUNT_GROUP(l->region.gid))};
	for (int i = 0; i < 2; i++)
		if (who[i]) { // there is one: it is charged for this region
			who[i]->leftovers += in ? 1 : UINT32_MAX;
			who[i]->left_bytes += in ? l->region.bytes : (uint64_t)0 - l->region.bytes;
		}
}

static void discharge(struct leftovers *all, const struct left_region *region)
{
	struct account *who[] = {account_get(all->accounts, region->uid), account_get(all->accounts, ACCOUNT_GROUP(region->gid))};
	for (int i = 0; i < 2; i++)
		if (who[i])
			who[i]->region_bytes -= region->bytes;
}

// ---- the list --------------------------------------------------------------------------------------------------------
static void forget(struct leftovers *all, struct leftover *l)
{
	for (struct leftover **at = &all->first; *at; at = &(*at)->next)
		if (*at == l) {
			*at = l->next;
			break;
		}
	count(all, l, false);
	discharge(all, &l->region);
	munmap(l->region.base, l->region.bytes);
	if (l->pidfd >= 0)
		close(l->pidfd);
	free(l);
}

static void failed(struct leftover *l, int error)
{
	log_limited(
		&failed_limit, LOG_LEVEL_ERROR,
		"memory that uid %u shared with the daemon (%llu bytes) cannot be taken back: %s; it counts as that user's, and "
		"this is tried again every second",
		l->region.uid, (unsigned long long)l->region.bytes, strerror(error));
	l->emptying = false;
	l->until_ns = mono_ns() + AGAIN_NS;
}

static void collect(struct leftovers *all)
{
	for (struct leftover *l = all->first, *next; l; l = next) {
		next = l->next;
		int result = l->emptying ? atomic_load_explicit(&l->result, memory_order_acquire) : 0; // partner: empty()
		if (result > 0)
			forget(all, l);
		else if (result < 0)
			failed(l, -result);
	}
}

static bool process_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	return pidfd >= 0 && poll(&p, 1, 0) == 1 && p.revents & POLLIN;
}

static bool busy(const struct leftovers *all, uint32_t uid)
{
	for (const struct leftover *l = all->first; l; l = l->next)
		if (l->emptying && l->region.uid == uid)
			return true;
	return false;
}

static void begin(struct leftovers *all)
{
	uint64_t now = mono_ns();
	for (struct leftover *l = all->first; l; l = l->next) {
		if (l->emptying || (l->until_ns > now && (l->given_up || !process_ended(l->pidfd))))
			continue;
		l->given_up = true;
		if (busy(all, l->region.uid))
			continue;
		atomic_store_explicit(&l->result, 0, memory_order_relaxed); // pthread_create orders it
		int rc = begin_thread(l);
		if (rc)
			failed(l, rc);
		else
			l->emptying = true;
	}
}

static void on_tick(void *arg);

static void go_on(struct leftovers *all)
{
	collect(all);
	begin(all);
	if (all->first && !all->timer) {
		all->timer = loop_timer(all->loop, TICK_NS, on_tick, all); // NULL: the next one that is left tries again
	} else if (!all->first && all->timer) {
		loop_cancel(all->timer);
		all->timer = NULL;
	}
}

static void on_tick(void *arg)
{
	struct leftovers *all = arg;
	go_on(all);
	account_tidy(all->accounts);
}

static void on_done(void *arg, uint32_t events)
{
	(void)events;
	struct leftovers *all = arg;
	uint64_t many;
	(void)!read(all->done_fd, &many, sizeof many);
	on_tick(all);
}

int leftovers_open(struct leftovers *all, struct loop *loop, struct account **accounts)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	struct loop_source *done = loop_poll(loop, fd, on_done, all);
	if (!done) {
		close(fd);
		return -ENOMEM;
	}
	*all = (struct leftovers){.loop = loop, .accounts = accounts, .done = done, .done_fd = fd};
	return 0;
}

void leftovers_close(struct leftovers *all)
{
	if (!all->loop)
		return;
	loop_cancel(all->timer);
	loop_cancel(all->done);
	collect(all);
	for (struct leftover *l = all->first, *next; l; l = next) {
		next = l->next;
		if (!l->emptying) // else its thread has it, to the end of the process
			forget(all, l);
	}
	if (!all->first) // else it is that thread's
		close(all->done_fd);
	*all = (struct leftovers){0};
}

// ---- what comes in ---------------------------------------------------------------------------------------------------
static struct leftover *add(struct leftovers *all, const struct left_region *region)
{
	struct leftover *l = calloc(1, sizeof *l);
	if (!l) { // it cannot be remembered: then here and now
		if (mpig_region_empty(region->base, region->bytes) == MPIG_OK)
			discharge(all, region);
		else
			log_error("memory that uid %u shared with the daemon (%llu bytes) cannot be taken back: %s; it counts as "
			          "that "
			          "user's until the daemon is restarted",
			          region->uid, (unsigned long long)region->bytes, strerror(errno));
		munmap(region->base, region->bytes);
		return NULL;
	}
	l->region = *region;
	l->pidfd = -1;
	l->done_fd = all->done_fd;
	l->next = all->first;
	all->first = l;
	count(all, l, true);
	return l;
}

static bool being_emptied(const struct leftovers *all, const struct leftover *which)
{
	for (const struct leftover *l = all->first; l; l = l->next)
		if (l == which)
			return l->emptying;
	return false;
}

void leftovers_give_up(struct leftovers *all, const struct left_region *region)
{
	struct leftover *l = add(all, region);
	if (!l)
		return;
	l->given_up = true;
	go_on(all);
	// Usually it is a matter of microseconds to milliseconds, and who asks for its quota next sees it.
	for (uint64_t end = mono_ns() + SHORT_WHILE_NS, now; being_emptied(all, l) && (now = mono_ns()) < end; collect(all)) {
		struct pollfd done = {.fd = all->done_fd, .events = POLLIN};
		uint64_t many;
		if (poll(&done, 1, (int)((end - now) / 1000000) + 1) == 1)
			(void)!read(all->done_fd, &many, sizeof many);
	}
	go_on(all);
}

void leftovers_keep(struct leftovers *all, const struct left_region *region, int pidfd, uint64_t keep_ns)
{
	struct leftover *l = add(all, region);
	if (!l)
		return;
	if (keep_ns && !process_ended(pidfd)) {
		l->pidfd = pidfd < 0 ? -1 : fcntl(pidfd, F_DUPFD_CLOEXEC, 0); // -1: then the time decides
		l->until_ns = mono_ns() + keep_ns;
	} else {
		l->given_up = true;
	}
	go_on(all);
}

// ---- adoption --------------------------------------------------------------------------------------------------------
struct leftover *leftovers_find(struct leftovers *all, int fd, bool *gone)
{
	struct stat file;
	*gone = false;
	go_on(all);
	if (fstat(fd, &file) != 0)
		return NULL;
	for (struct leftover *l = all->first; l; l = l->next)
		if (l->region.inode && l->region.device == file.st_dev && l->region.inode == file.st_ino) {
			*gone = l->given_up;
			return l->given_up ? NULL : l;
		}
	return NULL;
}

uint64_t leftover_bytes_of(const struct leftover *l, uint32_t uid)
{
	return l && l->region.uid == uid ? l->region.bytes : 0;
}

void leftovers_adopted(struct leftovers *all, struct leftover *l)
{
	if (l)
		forget(all, l);
}
