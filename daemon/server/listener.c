#include "daemon/server/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 64
#define STALE_TRIES 50
#define STALE_PAUSE_NS 20000000L

__attribute__((format(printf, 2, 3))) static int fail(char *why, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, LISTENER_WHY_BYTES, format, args);
	va_end(args);
	return -1;
}

static int make_directory(const char *path, char *why)
{
	char dir[108];
	const char *slash = strrchr(path, '/');
	if (!slash || slash == path)
		return 0;
	snprintf(dir, sizeof dir, "%.*s", (int)(slash - path), path);
	struct stat st;
	if (stat(dir, &st) == 0)
		return S_ISDIR(st.st_mode) ? 0 : fail(why, "%s is not a directory: choose another daemon.socket", dir);
	if (mkdir(dir, geteuid() == 0 ? 0755 : 0700) == 0 || errno == EEXIST)
		return 0;
	return fail(why, "cannot create %s for the control socket: %m; create it, or choose another daemon.socket", dir);
}

static long read_pid(int fd)
{
	char text[32] = "";
	return pread(fd, text, sizeof text - 1, 0) > 0 ? strtol(text, NULL, 10) : 0;
}

static int lock_busy(struct listener *l, int fd, char *why)
{
	long pid = read_pid(fd);
	close(fd);
	if (pid > 0)
		return fail(why, "a magicpigd (pid %ld) already serves %s: stop it (kill %ld), or choose another daemon.socket",
		            pid, l->path, pid);
	return fail(why, "a magicpigd already serves %s (it holds %s): stop it, or choose another daemon.socket", l->path,
	            l->lock_path);
}

// The file may be removed by its last holder between open and flock: then what was locked is not what the next daemon would find.
static int take_lock(struct listener *l, char *why)
{
	for (;;) {
		int fd = open(l->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			return fail(
				why,
				"cannot open the lock file %s: %m; check the directory's owner, or choose another daemon.socket",
				l->lock_path);
		if (flock(fd, LOCK_EX | LOCK_NB) != 0)
			return lock_busy(l, fd, why);
		struct stat ours, there;
		if (fstat(fd, &ours) == 0 && stat(l->lock_path, &there) == 0 && ours.st_ino == there.st_ino &&
		    ours.st_dev == there.st_dev) {
			l->lock_fd = fd;
			return 0;
		}
		close(fd);
	}
}

static void write_pid(int fd)
{
	char text[32];
	int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
	// Only for the message of the next daemon: a full disk is no reason not to start.
	if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
		return;
}

static void set_address(struct sockaddr_un *address, const char *path)
{
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, path, strlen(path));
}

// Whether somebody answers on the socket: 0 and its pid (0: unknown), or an errno.
static int try_connect(const char *path, pid_t *pid)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return errno;
	struct sockaddr_un address;
	set_address(&address, path);
	int error = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
	struct ucred server = {0};
	socklen_t bytes = sizeof server;
	if (error == 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &bytes) != 0)
		server.pid = 0;
	close(fd);
	*pid = server.pid;
	return error;
}

// What a file at the socket's place is: removed if it is a socket that nobody serves. The kernel takes an io_uring down some time
// after its process has died, and keeps the listening socket until then: what still answers gets a moment to fall silent.
static int clear_stale(struct listener *l, char *why)
{
	struct stat st;
	if (lstat(l->path, &st) != 0)
		return errno == ENOENT ? 0 : fail(why, "cannot look at %s: %m", l->path);
	if (!S_ISSOCK(st.st_mode))
		return fail(why, "%s exists and is no socket: remove it, or choose another daemon.socket", l->path);
	pid_t pid = 0;
	int error = 0;
	for (int tries = 0; tries < STALE_TRIES; tries++) {
		error = try_connect(l->path, &pid);
		if (error == ECONNREFUSED)
			return unlink(l->path) == 0
			               ? 0
			               : fail(why, "cannot remove the stale socket %s: %m; remove it yourself", l->path);
		if (error != 0 && error != EAGAIN) // EAGAIN: its backlog is full
			break;
		nanosleep(&(struct timespec){.tv_nsec = STALE_PAUSE_NS}, NULL);
	}
	errno = error;
	if (error != 0 && error != EAGAIN)
		return fail(why, "cannot find out who serves %s: %m; remove it, or choose another daemon.socket", l->path);
	if (pid > 0)
		return fail(why, "process %d already serves %s: stop it, or choose another daemon.socket", (int)pid, l->path);
	return fail(why, "another process already serves %s: stop it, or choose another daemon.socket", l->path);
}

static int begin(struct listener *l, const char *path, char *why)
{
	*l = (struct listener){.fd = -1, .lock_fd = -1};
	size_t bytes = strlen(path);
	if (bytes >= sizeof l->path)
		return fail(why, "%s: a socket's path has at most %zu bytes", path, sizeof l->path - 1);
	memcpy(l->path, path, bytes + 1);
	snprintf(l->lock_path, sizeof l->lock_path, "%s.lock", l->path);
	return make_directory(path, why) != 0 || take_lock(l, why) != 0 ? -1 : 0;
}

int listener_adopt(struct listener *l, const char *path, int fd, char *why)
{
	if (begin(l, path, why) != 0)
		return -1;
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
		listener_close(l, true);
		return fail(why, "cannot use the socket of the service manager: %m");
	}
	l->fd = fd;
	l->adopted = true;
	write_pid(l->lock_fd);
	return 0;
}

int listener_lock(struct listener *l, const char *path, char *why)
{
	if (begin(l, path, why) != 0)
		return -1;
	if (clear_stale(l, why) != 0) {
		close(l->lock_fd);
		l->lock_fd = -1;
		return -1;
	}
	write_pid(l->lock_fd);
	return 0;
}

int listener_open(struct listener *l, uint32_t mode, gid_t gid, char *why)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail(why, "cannot make a socket: %m");
	struct sockaddr_un address;
	set_address(&address, l->path);
	mode_t old = umask(0177); // nobody else connects before owner and mode are right
	int bound = bind(fd, (struct sockaddr *)&address, sizeof address);
	umask(old);
	if (bound != 0) {
		fail(why, "cannot bind the control socket %s: %m; check the directory, or choose another daemon.socket", l->path);
		goto close_socket;
	}
	if (gid != (gid_t)-1 && chown(l->path, (uid_t)-1, gid) != 0) {
		fail(why, "cannot give %s to group %u: %m; choose a daemon.socket_group this user is in", l->path, (unsigned)gid);
		goto remove_socket;
	}
	if (chmod(l->path, mode) != 0 || listen(fd, BACKLOG) != 0) {
		fail(why, "cannot listen on %s: %m", l->path);
		goto remove_socket;
	}
	l->fd = fd;
	return 0;

remove_socket:
	unlink(l->path);
close_socket:
	close(fd);
	return -1;
}

void listener_close(struct listener *l, bool unlock)
{
	if (l->fd >= 0) {
		if (!l->adopted)
			unlink(l->path);
		close(l->fd);
		l->fd = -1;
	}
	if (unlock && l->lock_fd >= 0) {
		unlink(l->lock_path); // while it is locked: see take_lock
		close(l->lock_fd);
		l->lock_fd = -1;
	}
}
