#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/region.h"
#include "shm/status.h"
#include "tests/lib/suite.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

#define BYTES (UINT64_C(64) << 10)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int made_region(void)
{
	int fd = -1;
	ck_assert_int_eq(mpig_region_create("region-test", BYTES, &fd), MPIG_OK);
	ck_assert_int_ge(fd, 0);
	return fd;
}

static int check(int fd)
{
	uint64_t size = 77;
	int status = mpig_region_check(fd, BYTES, 0, &size);
	ck_assert_uint_eq(size, status == MPIG_OK ? BYTES : 77); // outputs only on success
	return status;
}

START_TEST(a_region_is_sealed_allocated_and_close_on_exec)
{
	int fd = made_region();
	struct stat st;
	ck_assert_int_eq(fcntl(fd, F_GET_SEALS) & ~F_SEAL_EXEC, SEALS);
	ck_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_uint_eq((uint64_t)st.st_size, BYTES);
	ck_assert_uint_ge((uint64_t)st.st_blocks * 512, BYTES);
	ck_assert_int_eq(check(fd), MPIG_OK);
	close(fd);
}
END_TEST

START_TEST(nobody_can_resize_or_reseal_a_region)
{
	int fd = made_region();
	ck_assert_int_eq(ftruncate(fd, 4096), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(ftruncate(fd, (off_t)BYTES + 4096), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(fallocate(fd, 0, (off_t)BYTES, 4096), -1);
	ck_assert_int_eq(pwrite(fd, "x", 1, (off_t)BYTES + 1), -1);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(check(fd), MPIG_OK);
	close(fd);
}
END_TEST

START_TEST(impossible_sizes_are_refused_when_made)
{
	int fd = -5;
	ck_assert_int_eq(mpig_region_create("none", 0, &fd), MPIG_EIO);
	ck_assert_int_eq(errno, EINVAL);
	ck_assert_int_eq(mpig_region_create("negative", UINT64_MAX, &fd), MPIG_ENOMEM);
	ck_assert_int_eq(mpig_region_create("huge", UINT64_C(1) << 62, &fd), MPIG_ENOMEM);
	ck_assert_int_eq(errno, ENOMEM);
	ck_assert_int_eq(fd, -5);
}
END_TEST

START_TEST(a_region_that_cannot_be_allocated_leaks_nothing)
{
	static const struct rlimit small = {4096, 4096};
	int before = dup(0), fd = -5;
	close(before);
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	ck_assert_int_eq(mpig_region_create("limited", BYTES, &fd), MPIG_ENOMEM);
	ck_assert_int_eq(errno, EFBIG);
	int after = dup(0);
	close(after);
	ck_assert_int_eq(before, after);
	ck_assert_int_eq(fd, -5);
}
END_TEST

static int memfd(unsigned flags, uint64_t bytes, int seals)
{
	int fd = memfd_create("foreign", MFD_CLOEXEC | flags);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	if (seals)
		ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

START_TEST(a_sealed_memfd_made_elsewhere_is_accepted)
{
	int fd = memfd(MFD_ALLOW_SEALING, BYTES, SEALS);
	ck_assert_int_eq(check(fd), MPIG_OK);
	close(fd);
}
END_TEST

START_TEST(every_other_set_of_seals_is_refused)
{
	static const int all[] = {F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE};
	for (unsigned set = 0; set < 32; set++) {
		int seals = 0;
		for (unsigned i = 0; i < 5; i++)
			if (set & (1u << i))
				seals |= all[i];
		if (seals == SEALS)
			continue;
		int fd = memfd(MFD_ALLOW_SEALING, BYTES, seals);
		ck_assert_msg(check(fd) == MPIG_EINVAL, "seals %#x", seals);
		close(fd);
	}
	int unsealable = memfd(0, BYTES, 0);
	ck_assert_int_eq(check(unsealable), MPIG_EINVAL);
	close(unsealable);
}
END_TEST

START_TEST(a_wrong_size_is_refused)
{
	static const uint64_t sizes[] = {0, 1, 4096, BYTES - 1, BYTES + 1, 2 * BYTES};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		int fd = memfd(MFD_ALLOW_SEALING, sizes[i], SEALS);
		ck_assert_int_eq(check(fd), MPIG_EINVAL);
		close(fd);
	}
}
END_TEST

START_TEST(a_size_not_known_before_has_a_limit)
{
	uint64_t size = 0;
	int fd = made_region();
	ck_assert_int_eq(mpig_region_check(fd, 0, BYTES - 1, &size), MPIG_EINVAL);
	ck_assert_int_eq(mpig_region_check(fd, 0, BYTES, &size), MPIG_OK);
	ck_assert_uint_eq(size, BYTES);
	int empty = memfd(MFD_ALLOW_SEALING, 0, SEALS);
	ck_assert_int_eq(mpig_region_check(empty, 0, BYTES, &size), MPIG_EINVAL);
	close(empty);
	close(fd);
}
END_TEST

static void refuse_file_in(const char *directory)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/mpig-region-XXXXXX", directory);
	int fd = mkstemp(path);
	if (fd < 0)
		return;
	unlink(path);
	ck_assert_int_eq(ftruncate(fd, (off_t)BYTES), 0);
	ck_assert_int_eq(check(fd), MPIG_EINVAL);
	close(fd);
}

START_TEST(ordinary_files_and_other_objects_are_refused)
{
	refuse_file_in("/tmp");
	refuse_file_in("/dev/shm"); // tmpfs, but without seals
	int pair[2], null = open("/dev/null", O_RDWR), directory = open("/dev/shm", O_RDONLY | O_DIRECTORY);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	ck_assert_int_eq(check(pair[0]), MPIG_EINVAL);
	ck_assert_int_eq(check(null), MPIG_EINVAL);
	ck_assert_int_eq(check(directory), MPIG_EINVAL);
	ck_assert_int_eq(check(-1), MPIG_EINVAL);
	close(pair[0]);
	close(pair[1]);
	close(null);
	close(directory);
}
END_TEST

// Its seals can be right; its pages may be missing at the time of the fault. The size is a page's, nothing is allocated.
START_TEST(hugetlb_is_refused)
{
	uint64_t size, bytes = UINT64_C(2) << 20;
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB);
	if (fd < 0) {
		printf("hugetlb_is_refused: skipped, the kernel has no hugetlbfs of 2 MiB pages\n");
		return;
	}
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	ck_assert_int_eq(mpig_region_check(fd, bytes, 0, &size), MPIG_EINVAL);
	close(fd);
}
END_TEST

START_TEST(a_descriptor_that_cannot_write_is_refused)
{
	char path[64];
	int fd = made_region();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int read_only = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_ge(read_only, 0);
	ck_assert_int_eq(check(read_only), MPIG_EINVAL);
	close(read_only);
	close(fd);
}
END_TEST

START_TEST(maps_of_one_region_share_memory)
{
	void *a, *b;
	int fd = made_region();
	ck_assert_int_eq(mpig_region_map(fd, BYTES, 0, &a), MPIG_OK);
	ck_assert_int_eq(mpig_region_map(fd, BYTES, 1, &b), MPIG_OK);
	close(fd);
	ck_assert_ptr_ne(a, b);
	memset(a, 0x5a, BYTES);
	ck_assert_mem_eq(a, b, BYTES);
	ck_assert_int_eq(munmap(a, BYTES), 0);
	ck_assert_int_eq(munmap(b, BYTES), 0);
}
END_TEST

START_TEST(a_map_that_fails_is_told)
{
	void *base = (void *)1;
	int fd = made_region();
	ck_assert_int_eq(mpig_region_map(fd, 0, 0, &base), MPIG_ENOMEM);
	ck_assert_int_eq(mpig_region_map(fd, UINT64_MAX, 0, &base), MPIG_ENOMEM);
	ck_assert_int_eq(mpig_region_map(-1, BYTES, 0, &base), MPIG_ENOMEM);
	ck_assert_ptr_eq(base, (void *)1);
	close(fd);
}
END_TEST

// A child that touches the parent's DONTFORK mapping dies of SIGSEGV; of an ordinary one it does not.
static bool child_can_read(const volatile uint8_t *at)
{
	int status;
	fflush(NULL);
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		static const struct rlimit no_core = {0, 0};
		setrlimit(RLIMIT_CORE, &no_core);
		signal(SIGSEGV, SIG_DFL); // a sanitizer would report it and exit
		_exit(*at == 0 ? 0 : 1);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

START_TEST(dontfork_hides_a_map_from_children)
{
	void *inherited, *hidden;
	int fd = made_region();
	ck_assert_int_eq(mpig_region_map(fd, BYTES, 0, &inherited), MPIG_OK);
	ck_assert_int_eq(mpig_region_map(fd, BYTES, 1, &hidden), MPIG_OK);
	ck_assert(child_can_read(inherited));
	ck_assert(!child_can_read(hidden));
	munmap(inherited, BYTES);
	munmap(hidden, BYTES);
	close(fd);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("shm/region");
	TCase *made = tcase_create("made"), *foreign = tcase_create("from outside"), *mapped = tcase_create("mapped");
	tcase_add_test(made, a_region_is_sealed_allocated_and_close_on_exec);
	tcase_add_test(made, nobody_can_resize_or_reseal_a_region);
	tcase_add_test(made, impossible_sizes_are_refused_when_made);
	tcase_add_test(made, a_region_that_cannot_be_allocated_leaks_nothing);
	suite_add_tcase(suite, made);
	tcase_add_test(foreign, a_sealed_memfd_made_elsewhere_is_accepted);
	tcase_add_test(foreign, every_other_set_of_seals_is_refused);
	tcase_add_test(foreign, a_wrong_size_is_refused);
	tcase_add_test(foreign, a_size_not_known_before_has_a_limit);
	tcase_add_test(foreign, ordinary_files_and_other_objects_are_refused);
	tcase_add_test(foreign, hugetlb_is_refused);
	tcase_add_test(foreign, a_descriptor_that_cannot_write_is_refused);
	suite_add_tcase(suite, foreign);
	tcase_add_test(mapped, maps_of_one_region_share_memory);
	tcase_add_test(mapped, a_map_that_fails_is_told);
	tcase_add_test(mapped, dontfork_hides_a_map_from_children);
	suite_add_tcase(suite, mapped);
	return suite_run(suite);
}
