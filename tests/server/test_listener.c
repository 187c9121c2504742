// One daemon per socket: what is refused and with which words, and what is cleared away.
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/server/listener.h"
#include "tests/lib/suite.h"

static char dir[64], path[128], why[LISTENER_WHY_BYTES];
static struct listener l;

static void setup(void)
{
	snprintf(dir, sizeof dir, "/tmp/mpig-test-listener-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof path, "%.60s/sub/d.sock", dir);
	why[0] = '\0';
}

static void teardown(void)
{
	char command[128];
	snprintf(command, sizeof command, "rm -rf %.60s", dir);
	ck_assert_int_eq(system(command), 0);
}

static void says(const char *words)
{
	ck_assert_msg(strstr(why, words) != NULL, "'%s' not in '%s'", words, why);
}

static void open_all(uint32_t mode)
{
	ck_assert_msg(listener_lock(&l, path, why) == 0, "%s", why);
	ck_assert_msg(listener_open(&l, mode, (gid_t)-1, why) == 0, "%s", why);
}

static bool connects(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof address.sun_path, "%.100s", path);
	bool yes = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
	close(fd);
	return yes;
}

START_TEST(listens_with_the_mode_and_leaves_nothing)
{
	open_all(0640);
	struct stat st;
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0640);
	ck_assert(connects());
	listener_close(&l, false);
	ck_assert_int_ne(access(path, F_OK), 0);
	ck_assert_int_eq(access(l.lock_path, F_OK), 0); // still ours
	listener_close(&l, true);
	ck_assert_int_ne(access(l.lock_path, F_OK), 0);
}
END_TEST

START_TEST(a_running_daemon_is_named)
{
	open_all(0600);
	struct listener second;
	char pid[32];
	snprintf(pid, sizeof pid, "(pid %ld)", (long)getpid());
	ck_assert_int_eq(listener_lock(&second, path, why), -1);
	says(pid);
	says(path);
	says("stop it (kill");
	ck_assert(connects()); // the first one is not harmed
	listener_close(&l, true);
	ck_assert_int_eq(listener_lock(&second, path, why), 0);
	listener_close(&second, true);
}
END_TEST

START_TEST(a_dead_daemons_socket_is_removed)
{
	open_all(0600);
	pid_t pid = fork();
	if (pid == 0) { // holds the socket for a moment longer than the lock: an io_uring being taken down
		usleep(100000);
		_exit(0);
	}
	close(l.fd);
	close(l.lock_fd);
	ck_assert_int_eq(access(path, F_OK), 0);
	struct listener second;
	int status;
	// The child holds the lock's file description as well.
	ck_assert_int_eq(listener_lock(&second, path, why), -1);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(listener_lock(&second, path, why) == 0, "%s", why);
	ck_assert_int_ne(access(path, F_OK), 0);
	listener_close(&second, true);
}
END_TEST

// The socket answers for a while although nobody has the lock.
START_TEST(a_lingering_socket_gets_a_moment)
{
	open_all(0600);
	pid_t pid = fork();
	if (pid == 0) {
		close(l.lock_fd);
		usleep(200000);
		_exit(0);
	}
	close(l.fd);
	// Only this process's descriptor is left to the lock once the child has closed its own.
	struct listener second;
	int tries = 0;
	close(l.lock_fd);
	while (listener_lock(&second, path, why) != 0 && tries++ < 100)
		usleep(1000);
	ck_assert_msg(second.lock_fd >= 0, "%s", why);
	ck_assert_int_ne(access(path, F_OK), 0);
	listener_close(&second, true);
	waitpid(pid, NULL, 0);
}
END_TEST

START_TEST(a_file_that_is_no_socket_stays)
{
	char sub[128];
	snprintf(sub, sizeof sub, "%.60s/sub", dir);
	ck_assert_int_eq(mkdir(sub, 0700), 0);
	int fd = open(path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	ck_assert_int_eq(listener_lock(&l, path, why), -1);
	says("is no socket: remove it");
	ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(a_missing_directory_is_named)
{
	snprintf(path, sizeof path, "%.60s/a/b/d.sock", dir);
	ck_assert_int_eq(listener_lock(&l, path, why), -1);
	says("cannot create");
	says("choose another daemon.socket");
}
END_TEST

START_TEST(a_directory_that_is_a_file_is_named)
{
	snprintf(path, sizeof path, "%.60s/sub", dir);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	snprintf(path, sizeof path, "%.60s/sub/d.sock", dir);
	ck_assert_int_eq(listener_lock(&l, path, why), -1);
	says("is not a directory");
}
END_TEST

START_TEST(a_long_path_is_refused)
{
	memset(path, 'a', sizeof path - 1);
	path[0] = '/';
	path[sizeof path - 1] = '\0';
	ck_assert_int_eq(listener_lock(&l, path, why), -1);
	says("at most 107 bytes");
}
END_TEST

START_TEST(a_foreign_group_is_refused)
{
	if (geteuid() == 0 && setuid(65534) != 0)
		ck_abort_msg("cannot become another user");
	char mine[] = "/tmp/mpig-test-listener-XXXXXX";
	ck_assert_ptr_nonnull(mkdtemp(mine));
	snprintf(path, sizeof path, "%.60s/d.sock", mine);
	ck_assert_msg(listener_lock(&l, path, why) == 0, "%s", why);
	ck_assert_int_eq(listener_open(&l, 0600, 12345, why), -1);
	says("to group 12345");
	ck_assert_int_ne(access(path, F_OK), 0);
	listener_close(&l, true);
	rmdir(mine);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("listener");
	TCase *t = tcase_create("listener");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, listens_with_the_mode_and_leaves_nothing);
	tcase_add_test(t, a_running_daemon_is_named);
	tcase_add_test(t, a_dead_daemons_socket_is_removed);
	tcase_add_test(t, a_lingering_socket_gets_a_moment);
	tcase_add_test(t, a_file_that_is_no_socket_stays);
	tcase_add_test(t, a_missing_directory_is_named);
	tcase_add_test(t, a_directory_that_is_a_file_is_named);
	tcase_add_test(t, a_long_path_is_refused);
	suite_add_tcase(s, t);
	TCase *u = tcase_create("user");
	tcase_add_test(u, a_foreign_group_is_refused);
	suite_add_tcase(s, u);
	return suite_run(s);
}
