// A small HTTP/1.1 server for probes and scrapers: GET and HEAD, one request a connection, one thread. On a Unix socket, or on a loopback
// address; there is neither TLS nor a password.
#ifndef MAGICPIGCTL_HTTP_H
#define MAGICPIGCTL_HTTP_H

#include <stdbool.h>
#include <stddef.h>

struct http_answer {
	int status;       // 200, 404, 503
	const char *type; // of the body; a constant
	char *body;       // freed by the server
	size_t bytes;
};
// `path` is without its query; open_metrics: the client takes that format. Answers 404 itself for paths it does not know.
typedef void http_handler(void *argument, const char *path, bool open_metrics, struct http_answer *answer);

struct http_listener {
	int fd;
	char where[128];  // as it was given
	char unlink[108]; // a socket's file, to be removed at the end; "" otherwise
};
// "unix:/path", "127.0.0.1:9464" or "[::1]:9464"; port 0: any, and `where` tells which. 0, or -1 with a reason.
int http_listen(const char *address, struct http_listener *listener, char *why, size_t why_bytes);
// Sockets that the service manager listens on for this process ($LISTEN_FDS, as sd_listen_fds(3) has it). Their number, at most `most`; -1 with a
// reason: there are none, or one is no listening stream socket on a path or a loopback address.
int http_inherit(struct http_listener *listeners, int most, char *why, size_t why_bytes);
// Serves until SIGINT or SIGTERM, then closes the listeners. 0, or -1 with errno.
int http_serve(struct http_listener *listeners, size_t count, http_handler *handler, void *argument);

#endif
