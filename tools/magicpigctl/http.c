#include "http.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 32
#define REQUEST_BYTES 8192
#define DEADLINE_MS 5000 // of a connection, from its acceptance to its end
#define LISTENERS 8
#define REST_MS 200       // without accepting, after accept has failed
#define SILENCE_MS 60000u // between two lines about that

struct connection {
	int fd; // -1: free
	uint64_t deadline_ms;
	size_t received, sent, bytes;
	char *answer; // NULL: still receiving
	bool lingers; // it is sent; what the client still sends is read until it closes, or the answer might be lost to a reset
	char request[REQUEST_BYTES + 1];
};

// Where accept fails for want of something (descriptors, memory) the newcomer stays in the backlog, and poll would tell of it at once again.
struct rest {
	uint64_t until_ms, said_ms; // said_ms 0: never
};

static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void finish(struct connection *c)
{
	close(c->fd);
	free(c->answer);
	c->fd = -1;
	c->answer = NULL;
}

static const char *reason(int status)
{
	switch (status) {
	case 200:
		return "OK";
	case 400:
		return "Bad Request";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	case 431:
		return "Request Header Fields Too Large";
	default:
		return "Service Unavailable";
	}
}

// Takes over the body. Without memory for the answer the connection is just closed.
static void answer(struct connection *c, struct http_answer *a, bool head_only)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	if (out) {
		fprintf(out,
		        "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n"
		        "Cache-Control: no-store\r\n%s\r\n",
		        a->status, reason(a->status), a->type, a->bytes, a->status == 405 ? "Allow: GET, HEAD\r\n" : "");
		if (!head_only)
			fwrite(a->body, 1, a->bytes, out);
		bool whole = !ferror(out);
		if (fclose(out) == 0 && whole) {
			c->answer = text;
			c->bytes = bytes;
			text = NULL;
		}
	}
	free(text);
	free(a->body);
	if (!c->answer)
		finish(c);
}

static void answer_text(struct connection *c, int status, const char *text)
{
	struct http_answer a = {
		.status = status, .type = "text/plain; charset=utf-8", .body = strdup(text), .bytes = strlen(text)};
	if (a.body)
		answer(c, &a, false);
	else
		finish(c);
}

// Whether a header of the request takes OpenMetrics.
static bool takes_open_metrics(const char *headers)
{
	for (const char *line = headers; line && *line; line = strstr(line, "\r\n"), line = line ? line + 2 : NULL)
		if (strncasecmp(line, "accept:", 7) == 0) {
			const char *end = strstr(line, "\r\n");
			char value[1024];
			snprintf(value, sizeof(value), "%.*s", (int)(end ? end - line : (long)strlen(line)), line);
			return strcasestr(value, "application/openmetrics-text") != NULL;
		}
	return false;
}

static void respond(struct connection *c, http_handler *handler, void *argument)
{
	char *method = c->request, *line_end = strstr(c->request, "\r\n"), *headers = line_end + 2;
	*line_end = 0;
	char *path = strchr(method, ' '), *version = path ? strchr(path + 1, ' ') : NULL;
	if (!version || strncmp(version + 1, "HTTP/1.", 7) != 0 || path[1] != '/') {
		answer_text(c, 400, "bad request\n");
		return;
	}
	*path++ = 0;
	*version = 0;
	path[strcspn(path, "?")] = 0;
	bool head = strcmp(method, "HEAD") == 0;
	if (!head && strcmp(method, "GET") != 0) {
		answer_text(c, 405, "GET and HEAD only\n");
		return;
	}
	struct http_answer a = {.status = 503, .type = "text/plain; charset=utf-8"};
	handler(argument, path, takes_open_metrics(headers), &a);
	answer(c, &a, head);
}

static void receive(struct connection *c, http_handler *handler, void *argument)
{
	ssize_t n = read(c->fd, c->request + c->received, REQUEST_BYTES - c->received);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		finish(c);
		return;
	}
	c->received += (size_t)n;
	c->request[c->received] = 0;
	if (memchr(c->request, 0, c->received))
		answer_text(c, 400, "bad request\n");
	else if (strstr(c->request, "\r\n\r\n"))
		respond(c, handler, argument);
	else if (c->received == REQUEST_BYTES)
		answer_text(c, 431, "the request is too long\n");
}

static void transmit(struct connection *c)
{
	ssize_t n = send(c->fd, c->answer + c->sent, c->bytes - c->sent, MSG_NOSIGNAL);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	c->sent += n > 0 ? (size_t)n : 0;
	if (n <= 0 || (c->sent == c->bytes && shutdown(c->fd, SHUT_WR) != 0))
		finish(c);
	else
		c->lingers = c->sent == c->bytes;
}

static void linger(struct connection *c)
{
	ssize_t n = read(c->fd, c->request, REQUEST_BYTES);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		finish(c);
}

static void begin_rest(struct rest *rest, int reason)
{
	uint64_t now = now_ms();
	rest->until_ms = now + REST_MS;
	if (rest->said_ms && now - rest->said_ms < SILENCE_MS)
		return;
	rest->said_ms = now;
	fprintf(stderr, "magicpigctl: no connection can be accepted: %s; who asks waits, and it is tried again every %d ms\n",
	        strerror(reason), REST_MS);
}

// As many as there are places for.
static void take(struct connection *connections, int listener, struct rest *rest)
{
	for (int i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &connections[i];
		if (c->fd >= 0)
			continue;
		c->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (c->fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			begin_rest(rest, errno);
		if (c->fd < 0)
			return;
		c->deadline_ms = now_ms() + DEADLINE_MS;
		c->received = c->sent = c->bytes = 0;
		c->lingers = false;
	}
}

static int signals(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	return sigprocmask(SIG_BLOCK, &set, NULL) ? -1 : signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

// While all places are taken nobody is accepted: newcomers wait in the backlog, and every connection has an end.
static int turn(const struct http_listener *listeners, size_t count, struct connection *connections, struct rest *rest,
                int signal_fd, http_handler *handler, void *argument)
{
	struct pollfd polled[1 + LISTENERS + CONNECTIONS];
	int used = 0;
	for (int i = 0; i < CONNECTIONS; i++)
		used += connections[i].fd >= 0;
	bool resting = now_ms() < rest->until_ms;
	polled[0] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
	for (size_t i = 0; i < count; i++)
		polled[1 + i] = (struct pollfd){.fd = used < CONNECTIONS && !resting ? listeners[i].fd : -1, .events = POLLIN};
	for (int i = 0; i < CONNECTIONS; i++)
		polled[1 + LISTENERS + i] = (struct pollfd){
			.fd = connections[i].fd, .events = connections[i].answer && !connections[i].lingers ? POLLOUT : POLLIN};
	for (size_t i = count; i < LISTENERS; i++)
		polled[1 + i] = (struct pollfd){.fd = -1};
	if (poll(polled, sizeof(polled) / sizeof(polled[0]), used || resting ? REST_MS : -1) < 0)
		return errno == EINTR ? 0 : -1;
	if (polled[0].revents)
		return 1;
	for (int i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &connections[i];
		if (c->fd < 0)
			continue;
		if (polled[1 + LISTENERS + i].revents && c->lingers)
			linger(c);
		else if (polled[1 + LISTENERS + i].revents && c->answer)
			transmit(c);
		else if (polled[1 + LISTENERS + i].revents)
			receive(c, handler, argument);
		if (c->fd >= 0 && now_ms() > c->deadline_ms)
			finish(c);
	}
	for (size_t i = 0; i < count; i++)
		if (polled[1 + i].revents)
			take(connections, listeners[i].fd, rest);
	return 0;
}

int http_serve(struct http_listener *listeners, size_t count, http_handler *handler, void *argument)
{
	struct connection *connections = calloc(CONNECTIONS, sizeof(*connections));
	struct rest rest = {0};
	int signal_fd = signals(), status = connections && signal_fd >= 0 && count <= LISTENERS ? 0 : -1;
	for (int i = 0; connections && i < CONNECTIONS; i++)
		connections[i].fd = -1;
	while (status == 0)
		status = turn(listeners, count, connections, &rest, signal_fd, handler, argument);
	for (int i = 0; connections && i < CONNECTIONS; i++)
		if (connections[i].fd >= 0)
			finish(&connections[i]);
	for (size_t i = 0; i < count; i++) {
		close(listeners[i].fd);
		if (listeners[i].unlink[0])
			unlink(listeners[i].unlink);
	}
	if (signal_fd >= 0)
		close(signal_fd);
	free(connections);
	return status > 0 ? 0 : -1;
}
