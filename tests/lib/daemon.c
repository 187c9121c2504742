#include "tests/lib/daemon.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE_MS 10000
#define STEP_MS 5

static void pause_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	nanosleep(&t, NULL);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *walk)
{
	(void)st, (void)type, (void)walk;
	return remove(path);
}

static void remove_tree(const char *path)
{
	nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void print_log(const struct test_daemon *d)
{
	char line[1024];
	FILE *f = fopen(d->log, "r");
	if (!f)
		return;
	fprintf(stderr, "---- log of the daemon in %s\n", d->dir);
	while (fgets(line, sizeof(line), f))
		fprintf(stderr, "| %s", line);
	fclose(f);
}

// Runs until the test says it cleaned up (a byte) or is gone (end of file).
static void keep(const struct test_daemon *d, int pipe_end)
{
	char byte;
	ssize_t n;
	setsid(); // Check kills the test's process group
	while ((n = read(pipe_end, &byte, 1)) < 0 && errno == EINTR)
		;
	if (n == 1)
		_exit(0);
	print_log(d);
	pause_ms(200); // the daemon dies with its parent (PR_SET_PDEATHSIG)
	remove_tree(d->dir);
	remove_tree(d->pool_dir);
	_exit(0);
}

static void start_keeper(struct test_daemon *d)
{
	int ends[2];
	ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
	fflush(NULL);
	d->keeper = fork();
	ck_assert_int_ge(d->keeper, 0);
	if (d->keeper == 0) {
		close(ends[1]);
		keep(d, ends[0]);
	}
	close(ends[0]);
	d->keeper_pipe = ends[1];
}

static void write_config(const struct test_daemon *d, const char *extra)
{
	FILE *f = fopen(d->config, "w");
	ck_assert_ptr_nonnull(f);
	fprintf(f, "[daemon]\ninstance = %s\nsocket = %s\nlog_level = debug\n\n", strrchr(d->dir, '/') + 1, d->socket);
	fprintf(f, "[pool]\ndir = %s\nsize = 256M\nkeep = no\n\n[workers]\ncount = 2\n\n%s\n", d->pool_dir, extra ? extra : "");
	ck_assert_int_eq(fclose(f), 0);
}

static void run(struct test_daemon *d)
{
	const char *program = getenv("MAGICPIGD");
	pid_t parent = getpid();
	if (!program)
		program = "build/magicpigd";
	ck_assert_msg(access(program, X_OK) == 0, "no daemon to test: %s (set MAGICPIGD)", program);
	fflush(NULL);
	d->pid = fork();
	ck_assert_int_ge(d->pid, 0);
	if (d->pid)
		return;
	int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600), null = open("/dev/null", O_RDONLY);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(127);
	execl(program, program, "--config", d->config, (char *)NULL);
	fprintf(stderr, "cannot execute %s: %s\n", program, strerror(errno));
	_exit(127);
}

static bool answers(const struct test_daemon *d)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ck_assert_int_ge(fd, 0);
	memcpy(address.sun_path, d->socket, strlen(d->socket) + 1);
	bool connected = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
	// The socket of a daemon that was killed takes connections until the kernel has taken its io_uring down.
	struct ucred who = {0};
	socklen_t bytes = sizeof(who);
	connected = connected && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) == 0 && who.pid == d->pid;
	close(fd);
	return connected;
}

static int exit_status(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Its exit status if it ends instead, else -1.
static int wait_until_it_answers(struct test_daemon *d)
{
	for (int waited = 0; waited < DEADLINE_MS; waited += STEP_MS) {
		int status;
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			d->pid = 0;
			return exit_status(status);
		}
		if (answers(d))
			return -1;
		pause_ms(STEP_MS);
	}
	ck_abort_msg("the daemon does not answer on %s", d->socket);
	return -1;
}

static void run_and_wait(struct test_daemon *d)
{
	run(d);
	int status = wait_until_it_answers(d);
	ck_assert_msg(status < 0, "the daemon ended at start with %d", status);
}

struct test_daemon *test_daemon_new(const char *config_extra_lines)
{
	const char *tmp = getenv("TMPDIR");
	struct test_daemon *d = calloc(1, sizeof(*d));
	ck_assert_ptr_nonnull(d);
	snprintf(d->dir, sizeof(d->dir), "%s/mpig-test-XXXXXX", tmp && strlen(tmp) < 32 ? tmp : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(d->dir));
	ck_assert_int_eq(chmod(d->dir, 0711), 0); // clients of other uids reach the socket
	snprintf(d->pool_dir, sizeof(d->pool_dir), "/dev/shm/%s", strrchr(d->dir, '/') + 1);
	snprintf(d->socket, sizeof(d->socket), "%s/magicpigd.sock", d->dir);
	snprintf(d->config, sizeof(d->config), "%s/magicpigd.conf", d->dir);
	snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	start_keeper(d);
	write_config(d, config_extra_lines);
	return d;
}

struct test_daemon *test_daemon_start(const char *config_extra_lines)
{
	struct test_daemon *d = test_daemon_new(config_extra_lines);
	run_and_wait(d);
	return d;
}

bool test_daemon_survives_start(struct test_daemon *d)
{
	ck_assert_int_eq(d->pid, 0);
	run(d);
	int status = wait_until_it_answers(d);
	ck_assert_msg(status < 0 || status == 128 + SIGKILL, "the daemon ended at start with %d", status);
	return status < 0;
}

int test_daemon_wait(struct test_daemon *d)
{
	int status;
	for (int waited = 0; waited < DEADLINE_MS; waited += STEP_MS) {
		pid_t ended = waitpid(d->pid, &status, WNOHANG);
		ck_assert_int_ge(ended, 0);
		if (ended == d->pid) {
			d->pid = 0;
			return exit_status(status);
		}
		pause_ms(STEP_MS);
	}
	ck_abort_msg("the daemon does not end");
	return -1;
}

void test_daemon_term(struct test_daemon *d)
{
	ck_assert_int_eq(kill(d->pid, SIGTERM), 0);
}

void test_daemon_kill(struct test_daemon *d)
{
	ck_assert_int_eq(kill(d->pid, SIGKILL), 0);
	ck_assert_int_eq(test_daemon_wait(d), 128 + SIGKILL);
}

void test_daemon_freeze(struct test_daemon *d)
{
	int status;
	ck_assert_int_eq(kill(d->pid, SIGSTOP), 0);
	ck_assert_int_eq(waitpid(d->pid, &status, WUNTRACED), d->pid);
	ck_assert(WIFSTOPPED(status));
}

void test_daemon_thaw(struct test_daemon *d)
{
	ck_assert_int_eq(kill(d->pid, SIGCONT), 0);
}

void test_daemon_again(struct test_daemon *d)
{
	ck_assert_int_eq(d->pid, 0);
	d->pool_dir_left = access(d->pool_dir, F_OK) == 0;
	run_and_wait(d);
}

void test_daemon_assert_alive(struct test_daemon *d)
{
	int status;
	pid_t ended = waitpid(d->pid, &status, WNOHANG);
	if (ended == 0)
		return;
	d->pid = 0;
	ck_abort_msg("the daemon died: %d", exit_status(status));
}

static void assert_gone(const char *path)
{
	struct stat st;
	ck_assert_msg(lstat(path, &st) != 0 && errno == ENOENT, "%s is still there after a clean stop", path);
}

void test_daemon_stop(struct test_daemon *d)
{
	test_daemon_assert_alive(d);
	test_daemon_term(d);
	int status = test_daemon_wait(d);
	ck_assert_msg(status == 0, "the daemon ended with %d at SIGTERM", status);
	assert_gone(d->socket);
	if (d->pool_dir_left)
		rmdir(d->pool_dir); // succeeds if it is empty
	assert_gone(d->pool_dir);
	test_daemon_free(d);
}

bool test_daemon_logged(const struct test_daemon *d, const char *text)
{
	char line[1024];
	bool found = false;
	FILE *f = fopen(d->log, "r");
	ck_assert_ptr_nonnull(f);
	while (!found && fgets(line, sizeof(line), f))
		found = strstr(line, text) != NULL;
	fclose(f);
	return found;
}

void test_daemon_free(struct test_daemon *d)
{
	int status;
	if (d->pid)
		test_daemon_kill(d);
	ck_assert_int_eq((int)write(d->keeper_pipe, "k", 1), 1);
	close(d->keeper_pipe);
	ck_assert_int_eq(waitpid(d->keeper, &status, 0), d->keeper);
	remove_tree(d->dir);
	remove_tree(d->pool_dir);
	free(d);
}
