// A private daemon for each integration test: its own directory, socket, pool and log.
//
// If the test ends in any other way than by test_daemon_stop or test_daemon_free (an assertion, a signal, a timeout) the daemon
// dies with it, its log is printed and its files are removed by a small keeper process that outlives the test.
//
// $MAGICPIGD names the program; default build/magicpigd.
#ifndef MPIG_TESTS_LIB_DAEMON_H
#define MPIG_TESTS_LIB_DAEMON_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#define TEST_DAEMON_PATH 108 // of any file of the daemon: its socket's has the shortest limit

struct test_daemon {
	pid_t pid; // 0 = not running
	char dir[TEST_DAEMON_PATH - 32], pool_dir[TEST_DAEMON_PATH];
	char socket[TEST_DAEMON_PATH], config[TEST_DAEMON_PATH], log[TEST_DAEMON_PATH];
	bool pool_dir_left; // by a daemon that was killed: the next one finds it and may leave it
	pid_t keeper;
	int keeper_pipe;
};

// Writes a configuration (2 workers, a pool of 256 MiB, not kept) followed by `config_extra_lines` (sections and keys; later ones win; may
// be NULL), starts a daemon and waits until its socket answers, at most 10 s. Fails the test otherwise.
struct test_daemon *test_daemon_start(const char *config_extra_lines);
// The same without starting one; and starting it when it may be killed (by $MPIG_KILL_AT, tests/lib/points.h) before it answers: false.
struct test_daemon *test_daemon_new(const char *config_extra_lines);
bool test_daemon_survives_start(struct test_daemon *d);
// SIGTERM; asserts exit status 0 and that socket and pool are gone (of a pool directory that an earlier daemon left, only the
// content). Frees d.
void test_daemon_stop(struct test_daemon *d);
// SIGKILL. Its files stay as they are.
void test_daemon_kill(struct test_daemon *d);
// SIGTERM without waiting, for tests that look at the daemon's end from a client; then test_daemon_wait.
void test_daemon_term(struct test_daemon *d);
// Waits for the end of a daemon that was told to; returns its exit status, 128 + signal if one killed it. Fails the test after
// 10 s.
int test_daemon_wait(struct test_daemon *d);
// SIGSTOP, returning when no thread of it runs any more; and SIGCONT.
void test_daemon_freeze(struct test_daemon *d);
void test_daemon_thaw(struct test_daemon *d);
// Starts another daemon on the same configuration after the first one's end. It attaches the pool that a killed one left; one that
// stopped left none, unless the extra lines say keep = yes.
void test_daemon_again(struct test_daemon *d);
// Asserts that the daemon runs.
void test_daemon_assert_alive(struct test_daemon *d);
// Whether its log holds `text`.
bool test_daemon_logged(const struct test_daemon *d, const char *text);
// Kills it if it runs and removes its files.
void test_daemon_free(struct test_daemon *d);

#endif
