// Reports that are written after long work: checked before it, whole or not at all, and what was there stays when they fail.
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int fail_rename, fail_sync, fail_flush; // errno of the next one, once
static int test_rename(const char *from, const char *to);
static int test_fsync(int fd);
#define rename test_rename
#define fsync test_fsync
#include "tests/lib/suite.h"
#include "tools/common/output.c"
#undef rename
#undef fsync

static int once(int *reason)
{
	errno = *reason;
	*reason = 0;
	return -1;
}

static int test_rename(const char *from, const char *to)
{
	return fail_rename ? once(&fail_rename) : rename(from, to);
}

static int test_fsync(int fd)
{
	return fail_sync ? once(&fail_sync) : fsync(fd);
}

static char dir[64], path[128], link_path[128];

static void setup(void)
{
	snprintf(dir, sizeof dir, "/tmp/mpig-output-%d", (int)getpid());
	snprintf(path, sizeof path, "%s/report", dir);
	snprintf(link_path, sizeof link_path, "%s/link", dir);
	ck_assert_int_eq(mkdir(dir, 0700), 0);
	umask(027);
}

static int files(void)
{
	int n = 0;
	DIR *list = opendir(dir);
	for (struct dirent *e; (e = readdir(list));)
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(list);
	return n;
}

static void teardown(void)
{
	char line[100];
	snprintf(line, sizeof line, "rm -rf %s", dir);
	ck_assert_int_eq(system(line), 0);
}

static void put(FILE *out, const void *text)
{
	fputs(text, out);
	if (fail_flush) // a disk that is full when the buffer is written
		close(fileno(out));
}

static void has(const char *where, const char *text)
{
	char found[64] = "";
	FILE *in = fopen(where, "r");
	ck_assert_ptr_nonnull(in);
	ck_assert_uint_eq(fread(found, 1, sizeof found - 1, in), strlen(text));
	fclose(in);
	ck_assert_str_eq(found, text);
}

static mode_t mode_of(const char *where)
{
	struct stat st;
	ck_assert_int_eq(lstat(where, &st), 0);
	return st.st_mode & 0777;
}

START_TEST(a_new_file)
{
	ck_assert_int_eq(output_check(path), 0);
	ck_assert_int_eq(files(), 0);
	ck_assert_int_eq(output_write(path, put, "one"), 0);
	has(path, "one");
	ck_assert_uint_eq(mode_of(path), 0640);
	ck_assert_int_eq(files(), 1);
	ck_assert_int_eq(chdir(dir), 0);
	ck_assert_int_eq(output_check("here"), 0);
	ck_assert_int_eq(output_write("here", put, "two"), 0);
	has("here", "two");
	ck_assert_int_eq(files(), 2);
}
END_TEST

START_TEST(the_old_one_stays_until_the_new_one_is_whole)
{
	int *const failures[] = {&fail_rename, &fail_sync, &fail_flush};
	ck_assert_int_eq(output_write(path, put, "old"), 0);
	ck_assert_int_eq(chmod(path, 0604), 0);
	ck_assert_int_eq(output_check(path), 0);
	has(path, "old");
	*failures[_i] = EIO;
	ck_assert_int_eq(output_write(path, put, "new"), -1);
	ck_assert_int_eq(errno, failures[_i] == &fail_flush ? EBADF : EIO);
	fail_flush = 0;
	has(path, "old");
	ck_assert_int_eq(files(), 1);
	ck_assert_int_eq(output_write(path, put, "new"), 0);
	has(path, "new");
	ck_assert_uint_eq(mode_of(path), 0604);
	ck_assert_int_eq(files(), 1);
}
END_TEST

START_TEST(a_link_stays_one)
{
	ck_assert_int_eq(output_write(path, put, "old"), 0);
	ck_assert_int_eq(symlink("report", link_path), 0);
	ck_assert_int_eq(output_check(link_path), 0);
	ck_assert_int_eq(output_write(link_path, put, "new"), 0);
	has(path, "new");
	ck_assert_int_eq(files(), 2);
	// One to nothing makes what it points to.
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(output_check(link_path), 0);
	ck_assert_int_eq(files(), 1);
	ck_assert_int_eq(output_write(link_path, put, "again"), 0);
	has(path, "again");
}
END_TEST

START_TEST(what_is_no_file_is_written_to)
{
	int ends[2];
	char found[16] = "";
	ck_assert_int_eq(pipe(ends), 0);
	snprintf(path, sizeof path, "/proc/self/fd/%d", ends[1]);
	ck_assert_int_eq(output_check(path), 0);
	ck_assert_int_eq(output_write(path, put, "through"), 0);
	ck_assert_int_eq(read(ends[0], found, sizeof found), 7);
	ck_assert_str_eq(found, "through");
	ck_assert_int_eq(output_check("/dev/full"), 0);
	ck_assert_int_eq(output_write("/dev/full", put, "nothing"), -1);
	ck_assert_int_eq(errno, ENOSPC);
	ck_assert_int_eq(access("/dev/full", W_OK), 0);
}
END_TEST

START_TEST(what_cannot_be_written_is_known_before)
{
	static char longest[PATH_MAX + 1];
	char inside[140];
	memset(longest, 'x', PATH_MAX);
	snprintf(inside, sizeof inside, "%s/report", path); // below what is no directory
	ck_assert_int_eq(output_write(path, put, "old"), 0);
	const struct {
		const char *path;
		int reason;
	} bad[] = {{"/nowhere/report", ENOENT}, {dir, EISDIR},           {"new/", EISDIR},        {"", ENOENT},
	           {inside, ENOTDIR},           {longest, ENAMETOOLONG}, {"/proc/report", ENOENT}};
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		ck_assert_msg(output_check(bad[i].path) == -1 && errno == bad[i].reason, "%.40s: %s", bad[i].path,
		              strerror(errno));
		ck_assert_msg(output_write(bad[i].path, put, "x") == -1 && errno == bad[i].reason, "%.40s: %s", bad[i].path,
		              strerror(errno));
	}
	ck_assert_int_eq(files(), 1);
}
END_TEST

START_TEST(permissions)
{
	ck_assert_int_eq(output_write(path, put, "old"), 0);
	ck_assert_int_eq(chmod(path, 0444), 0);
	ck_assert_int_eq(chmod(dir, 0755), 0);
	if (geteuid() == 0) {
		ck_assert_int_eq(chown(dir, 65534, 65534) | chown(path, 65534, 65534), 0);
		ck_assert_int_eq(setegid(65534) | seteuid(65534), 0);
	}
	ck_assert_int_eq(output_check(path), -1); // a report that was made read-only
	ck_assert_int_eq(errno, EACCES);
	ck_assert_int_eq(output_write(path, put, "new"), -1);
	has(path, "old");
	ck_assert_int_eq(chmod(path, 0644) | chmod(dir, 0555), 0);
	ck_assert_int_eq(output_check(path), -1);
	ck_assert_int_eq(errno, EACCES);
	ck_assert_int_eq(chmod(dir, 0755), 0);
	ck_assert_int_eq(output_check(path), 0);
	if (getuid() == 0)
		ck_assert_int_eq(seteuid(0) | setegid(0), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/common/output");
	TCase *t = tcase_create("output");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_new_file);
	tcase_add_loop_test(t, the_old_one_stays_until_the_new_one_is_whole, 0, 3);
	tcase_add_test(t, a_link_stays_one);
	tcase_add_test(t, what_is_no_file_is_written_to);
	tcase_add_test(t, what_cannot_be_written_is_known_before);
	tcase_add_test(t, permissions);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
