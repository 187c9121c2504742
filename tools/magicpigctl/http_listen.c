#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "http.h"

#define BACKLOG 64

// A socket file whose owner is gone may be taken over; one that answers, and anything else, may not.
static bool abandoned(const struct sockaddr_un *address)
{
	struct stat st;
	if (lstat(address->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode))
		return false;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool refused = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0 && errno == ECONNREFUSED;
	if (fd >= 0)
		close(fd);
	return refused;
}

static int listen_unix(const char *path, struct http_listener *l, char *why, size_t why_bytes)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (!*path || strlen(path) >= sizeof(address.sun_path)) {
		snprintf(why, why_bytes, "a socket's path has 1 to %zu bytes", sizeof(address.sun_path) - 1);
		return -1;
	}
	strcpy(address.sun_path, path);
	if (abandoned(&address))
		unlink(path);
	l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->fd < 0 || bind(l->fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
		snprintf(why, why_bytes, "%s", strerror(errno));
		return -1;
	}
	strcpy(l->unlink, path);
	return 0;
}

static bool port_of(const char *text, uint16_t *port)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);
	if (end == text || *end || text[0] == '-' || text[0] == '+' || value > 65535)
		return false;
	*port = htons((uint16_t)value);
	return true;
}

#define NOT_LOOPBACK "not a loopback address: there is neither TLS nor a password here; put a proxy before it"

static bool is_loopback(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
	return address->sa_family == AF_INET6 &&
	       IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

static int listen_tcp(const char *text, struct http_listener *l, char *why, size_t why_bytes)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} address = {0};
	char host[64];
	const char *colon = strrchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	bool bracket = length > 2 && text[0] == '[' && text[length - 1] == ']';
	if (!colon || length >= sizeof(host) || (!bracket && strchr(text, ':') != colon)) {
		snprintf(why, why_bytes, "unix:/PATH, 127.0.0.1:PORT or [::1]:PORT expected");
		return -1;
	}
	snprintf(host, sizeof(host), "%.*s", (int)(bracket ? length - 2 : length), text + bracket);
	bool v4 = inet_pton(AF_INET, host, &address.v4.sin_addr) == 1,
	     v6 = !v4 && inet_pton(AF_INET6, host, &address.v6.sin6_addr) == 1;
	address.any.sa_family = v6 ? AF_INET6 : AF_INET;
	if (!(v4 || v6) || !port_of(colon + 1, v6 ? &address.v6.sin6_port : &address.v4.sin_port)) {
		snprintf(why, why_bytes, "unix:/PATH, 127.0.0.1:PORT or [::1]:PORT expected");
		return -1;
	}
	if (!is_loopback(&address.any)) {
		snprintf(why, why_bytes, NOT_LOOPBACK);
		return -1;
	}
	socklen_t bytes = v6 ? sizeof(address.v6) : sizeof(address.v4);
	l->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->fd < 0 || setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) != 0 ||
	    bind(l->fd, &address.any, bytes) != 0 || getsockname(l->fd, &address.any, &bytes) != 0) {
		snprintf(why, why_bytes, "%s", strerror(errno));
		return -1;
	}
	unsigned port = ntohs(v6 ? address.v6.sin6_port : address.v4.sin_port);
	snprintf(l->where, sizeof(l->where), v6 ? "[%s]:%u" : "%s:%u", host, port);
	return 0;
}

int http_listen(const char *address, struct http_listener *l, char *why, size_t why_bytes)
{
	*l = (struct http_listener){.fd = -1};
	snprintf(l->where, sizeof(l->where), "%s", address);
	int failed = strncmp(address, "unix:", 5) == 0 ? listen_unix(address + 5, l, why, why_bytes)
	                                               : listen_tcp(address, l, why, why_bytes);
	if (!failed && listen(l->fd, BACKLOG) != 0) {
		snprintf(why, why_bytes, "%s", strerror(errno));
		failed = -1;
	}
	if (failed && l->fd >= 0)
		close(l->fd);
	if (failed && l->unlink[0])
		unlink(l->unlink);
	return failed;
}

#define FIRST_INHERITED 3 // SD_LISTEN_FDS_START

static int inherit(int fd, struct http_listener *l, char *why, size_t why_bytes)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
		struct sockaddr_un local;
	} address;
	int type = 0, listening = 0;
	socklen_t bytes = sizeof(type), address_bytes = sizeof(address);
	char host[INET6_ADDRSTRLEN] = "";
	memset(&address, 0, sizeof(address));
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) != 0 || type != SOCK_STREAM ||
	    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) != 0 || !listening ||
	    getsockname(fd, &address.any, &address_bytes) != 0) {
		snprintf(why, why_bytes, "descriptor %d is no listening stream socket", fd);
		return -1;
	}
	if (address.any.sa_family != AF_UNIX && !is_loopback(&address.any)) {
		snprintf(why, why_bytes, NOT_LOOPBACK);
		return -1;
	}
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
		snprintf(why, why_bytes, "descriptor %d: %s", fd, strerror(errno));
		return -1;
	}
	*l = (struct http_listener){.fd = fd}; // its file is the service manager's
	if (address.any.sa_family == AF_UNIX)
		snprintf(l->where, sizeof(l->where), "unix:%.108s", address.local.sun_path);
	else if (address.any.sa_family == AF_INET)
		snprintf(l->where, sizeof(l->where), "%s:%u", inet_ntop(AF_INET, &address.v4.sin_addr, host, sizeof(host)),
		         ntohs(address.v4.sin_port));
	else
		snprintf(l->where, sizeof(l->where), "[%s]:%u", inet_ntop(AF_INET6, &address.v6.sin6_addr, host, sizeof(host)),
		         ntohs(address.v6.sin6_port));
	return 0;
}

int http_inherit(struct http_listener *listeners, int most, char *why, size_t why_bytes)
{
	const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
	int count = fds ? atoi(fds) : 0;
	if (!pid || atol(pid) != (long)getpid() || count < 1) {
		snprintf(why, why_bytes, "no socket came from a service manager: start magicpigd-metrics.socket");
		return -1;
	}
	if (count > most) {
		snprintf(why, why_bytes, "%d sockets came from the service manager; at most %d are served", count, most);
		return -1;
	}
	for (int i = 0; i < count; i++)
		if (inherit(FIRST_INHERITED + i, &listeners[i], why, why_bytes) != 0)
			return -1;
	return count;
}
