// Regions that clients gave up or left, without a server: when pages and charge go, and what happens where they cannot be removed.
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

static int fail_empty;    // so often it fails with EPERM
static int fail_threads;  // so many threads cannot be made
static int fail_memory;   // so many allocations
static int emptied_count; // that were tried

#include "shm/region.h"
static int test_empty(void *base, uint64_t bytes);
static int test_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *), void *argument);
static void *test_calloc(size_t count, size_t bytes);
#define mpig_region_empty test_empty
#define pthread_create test_pthread_create
#define calloc test_calloc
#include "daemon/server/leftover.c"
#include "tests/lib/suite.h"
#undef mpig_region_empty
#undef pthread_create
#undef calloc

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int test_empty(void *base, uint64_t bytes)
{
	__atomic_add_fetch(&emptied_count, 1, __ATOMIC_RELAXED);
	if (__atomic_load_n(&fail_empty, __ATOMIC_RELAXED) > 0) {
		__atomic_sub_fetch(&fail_empty, 1, __ATOMIC_RELAXED);
		errno = EPERM;
		return MPIG_EIO;
	}
	return mpig_region_empty(base, bytes);
}

static int test_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *), void *argument)
{
	return fail_threads-- > 0 ? EAGAIN : pthread_create(thread, attributes, fn, argument);
}

static void *test_calloc(size_t count, size_t bytes)
{
	return fail_memory-- > 0 ? NULL : calloc(count, bytes);
}

#define BYTES (UINT64_C(1) << 20)
#define MINUTE UINT64_C(60000000000)
#define UID 5u
#define GID 6u

static struct loop *loop;
static struct account *accounts;
static struct leftovers all;

static void setup(void)
{
	int refused;
	fail_empty = fail_threads = fail_memory = emptied_count = 0;
	ck_assert_int_eq(loop_create(LOOP_AUTO, &loop, &refused), 0);
	ck_assert_int_eq(leftovers_open(&all, loop, &accounts), 0);
}

static void teardown(void)
{
	leftovers_close(&all);
	loop_destroy(loop);
	account_free(&accounts);
}

// A region that UID is charged for, and the fd that its client keeps.
static struct left_region region(int *fd)
{
	struct stat file;
	struct left_region r = {.bytes = BYTES, .uid = UID, .gid = GID};
	ck_assert_int_eq(mpig_region_create("left", BYTES, fd), MPIG_OK);
	ck_assert_int_eq(mpig_region_map(*fd, BYTES, 1, &r.base), MPIG_OK);
	ck_assert_int_eq(fstat(*fd, &file), 0);
	r.device = file.st_dev;
	r.inode = file.st_ino;
	account_get(&accounts, UID)->region_bytes += BYTES;
	account_get(&accounts, ACCOUNT_GROUP(GID))->region_bytes += BYTES;
	return r;
}

static uint64_t blocks(int fd)
{
	struct stat file;
	ck_assert_int_eq(fstat(fd, &file), 0);
	return (uint64_t)file.st_blocks * 512;
}

static uint64_t charged(void)
{
	uint64_t user = account_get(&accounts, UID)->region_bytes;
	ck_assert_uint_eq(user, account_get(&accounts, ACCOUNT_GROUP(GID))->region_bytes);
	return user;
}

static void turn_until(bool (*over)(int fd), int fd)
{
	for (uint64_t end = mono_ns() + 20 * UINT64_C(1000000000); !over(fd) && mono_ns() < end;)
		ck_assert_int_eq(loop_turn(loop, UINT64_C(50000000)), 0);
	ck_assert(over(fd));
}

static bool is_empty(int fd)
{
	return blocks(fd) == 0 && charged() == 0;
}

START_TEST(what_is_given_up_is_gone_at_once)
{
	int fd;
	struct left_region r = region(&fd);
	ck_assert_uint_eq(blocks(fd), BYTES);
	ck_assert_uint_eq(charged(), BYTES);
	leftovers_give_up(&all, &r);
	ck_assert_uint_eq(blocks(fd), 0);
	ck_assert_uint_eq(charged(), 0);
	ck_assert_uint_eq(account_get(&accounts, UID)->leftovers, 0);
	ck_assert_uint_eq(account_get(&accounts, UID)->left_bytes, 0);
	ck_assert_ptr_null(all.first);
	ck_assert_ptr_null(all.timer);
	close(fd);
}
END_TEST

START_TEST(what_is_left_is_kept_for_a_while)
{
	int fd;
	bool gone;
	struct left_region r = region(&fd);
	leftovers_keep(&all, &r, -1, MINUTE);
	ck_assert_int_eq(loop_turn(loop, 2 * TICK_NS), 0);
	ck_assert_uint_eq(blocks(fd), BYTES);
	ck_assert_uint_eq(charged(), BYTES);
	ck_assert_uint_eq(account_get(&accounts, UID)->leftovers, 1);
	ck_assert_uint_eq(account_get(&accounts, UID)->left_bytes, BYTES);
	struct leftover *l = leftovers_find(&all, fd, &gone);
	ck_assert_ptr_nonnull(l);
	ck_assert(!gone);
	ck_assert_uint_eq(leftover_bytes_of(l, UID), BYTES);
	ck_assert_uint_eq(leftover_bytes_of(l, UID + 1), 0);
	ck_assert_uint_eq(leftover_bytes_of(NULL, UID), 0);
	leftovers_adopted(&all, l); // whole, and somebody else's charge
	ck_assert_uint_eq(blocks(fd), BYTES);
	ck_assert_uint_eq(charged(), 0);
	ck_assert_ptr_null(leftovers_find(&all, fd, &gone));
	ck_assert(!gone);
	close(fd);
}
END_TEST

START_TEST(until_the_time_is_over)
{
	int fd;
	bool gone;
	struct left_region r = region(&fd);
	leftovers_keep(&all, &r, -1, 1);                     // a nanosecond, which is over
	ck_assert_ptr_null(leftovers_find(&all, fd, &gone)); // gone, or about to be
	turn_until(is_empty, fd);
	close(fd);
	r = region(&fd);
	leftovers_keep(&all, &r, -1, 0); // not kept at all
	turn_until(is_empty, fd);
	close(fd);
}
END_TEST

static int child_of(pid_t *pid)
{
	*pid = fork();
	if (*pid == 0) {
		pause();
		_exit(0);
	}
	int fd = (int)syscall(434, *pid, 0); // pidfd_open
	ck_assert_int_ge(fd, 0);
	return fd;
}

START_TEST(or_its_process_has_ended)
{
	int fd, fd2;
	pid_t pid;
	int pidfd = child_of(&pid);
	struct left_region r = region(&fd);
	leftovers_keep(&all, &r, pidfd, MINUTE);
	ck_assert_int_eq(loop_turn(loop, 2 * TICK_NS), 0);
	ck_assert_uint_eq(blocks(fd), BYTES);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	turn_until(is_empty, fd);
	r = region(&fd2); // of one that has ended already
	leftovers_keep(&all, &r, pidfd, MINUTE);
	turn_until(is_empty, fd2);
	close(pidfd);
	close(fd);
	close(fd2);
}
END_TEST

// _i: the pages cannot be removed, or nobody can be sent to do it. The charge stays until it was possible.
START_TEST(where_it_fails_the_charge_stays)
{
	int fd;
	bool gone;
	struct left_region r = region(&fd);
	*(_i ? &fail_threads : &fail_empty) = 2;
	leftovers_give_up(&all, &r);
	ck_assert_uint_eq(blocks(fd), BYTES);
	ck_assert_uint_eq(charged(), BYTES);
	ck_assert_uint_eq(account_get(&accounts, UID)->leftovers, 1);
	ck_assert_ptr_null(leftovers_find(&all, fd, &gone)); // it was given up: nobody gets it again
	ck_assert(gone);
	turn_until(is_empty, fd);
	ck_assert_int_eq(emptied_count, _i ? 1 : 3);
	close(fd);
}
END_TEST

// What cannot be remembered is not kept; if it cannot be removed either, the charge stays.
START_TEST(without_memory)
{
	int fd;
	account_get(&accounts, UID);
	account_get(&accounts, ACCOUNT_GROUP(GID));
	struct left_region r = region(&fd);
	fail_memory = 1;
	leftovers_keep(&all, &r, -1, MINUTE);
	ck_assert_uint_eq(blocks(fd), 0);
	ck_assert_uint_eq(charged(), 0);
	close(fd);
	r = region(&fd);
	fail_memory = fail_empty = 1;
	leftovers_keep(&all, &r, -1, MINUTE);
	ck_assert_uint_eq(blocks(fd), BYTES);
	ck_assert_uint_eq(charged(), BYTES);
	ck_assert_ptr_null(all.first);
	close(fd);
}
END_TEST

// The daemon's end takes nothing from those who live on.
START_TEST(the_daemons_end)
{
	int fd;
	struct left_region r = region(&fd);
	leftovers_keep(&all, &r, -1, MINUTE);
	leftovers_close(&all);
	ck_assert_uint_eq(blocks(fd), BYTES);
	leftovers_close(&all); // allowed
	close(fd);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("server/leftover");
	TCase *t = tcase_create("leftover");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, what_is_given_up_is_gone_at_once);
	tcase_add_test(t, what_is_left_is_kept_for_a_while);
	tcase_add_test(t, until_the_time_is_over);
	tcase_add_test(t, or_its_process_has_ended);
	tcase_add_loop_test(t, where_it_fails_the_charge_stays, 0, 2);
	tcase_add_test(t, without_memory);
	tcase_add_test(t, the_daemons_end);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
