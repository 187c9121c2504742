// A connection and its life: connect, HELLO, reconnect, and the calls about the daemon as a whole.
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_MS 5000
#define DEFAULT_RECONNECT_MS 3000
#define DEFAULT_PATH "/run/magicpig/magicpigd.sock"

bool client_forked(const mpig_client *c)
{
	if (c->owner_page)
		return *(volatile const uint32_t *)c->owner_page == 0;
	return getpid() != c->pid;
}

// A page the kernel wipes in a forked child tells parent and child apart without a system call per request.
static void mark_owner(mpig_client *c)
{
	size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
	c->pid = getpid();
	void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return;
	if (madvise(page, bytes, MADV_WIPEONFORK)) {
		munmap(page, bytes);
		return;
	}
	c->owner_page = page;
	*c->owner_page = 1;
}

static int choose_path(mpig_client *c, const char *given)
{
	const char *path = given ? given : secure_getenv("MAGICPIG_SOCKET");
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
	char own[sizeof(c->path)];
	if (!path && runtime) {
		int n = snprintf(own, sizeof(own), "%s/magicpig/magicpigd.sock", runtime);
		if (n > 0 && (size_t)n < sizeof(own) && access(own, F_OK) == 0)
			path = own;
	}
	if (!path)
		path = DEFAULT_PATH;
	size_t length = strlen(path);
	if (length == 0 || length >= sizeof(c->path))
		return error_set(NULL, MPIG_EINVAL, "socket path of %zu bytes: a socket's path has 1..%zu", length,
		                 sizeof(c->path) - 1);
	memcpy(c->path, path, length + 1);
	return MPIG_OK;
}

// Greets a new connection. It is lost again on failure.
static int hello(mpig_client *c)
{
	struct mpig_ctl_hello request = {.abi_version = MPIG_ABI_VERSION};
	int rc = control_exchange(c, MPIG_CTL_HELLO, &request, sizeof(request), -1, sizeof(request), NULL);
	const struct mpig_ctl_hello *reply = (const void *)c->reply;
	if (rc == MPIG_OK && reply->abi_version != MPIG_ABI_VERSION)
		rc = error_set(c, MPIG_EVERSION,
		               "the daemon on %s (version %.31s) has ring ABI %u, this library (version %s) has %u: install "
		               "matching versions",
		               c->path, reply->version, reply->abi_version, MPIG_VERSION_STRING, MPIG_ABI_VERSION);
	if (rc == NOT_SENT)
		rc = error_set(c, MPIG_ERETRY, "the daemon on %s closed the connection at once", c->path);
	if (rc) {
		connection_lost(c);
		return rc;
	}
	c->epoch = reply->epoch;
	c->list_page = reply->list_page < MPIG_LIST_PAGE ? reply->list_page : MPIG_LIST_PAGE;
	return MPIG_OK;
}

int client_connected(mpig_client *c)
{
	if (c->fd >= 0 && !connection_hung_up(c))
		return MPIG_OK;
	connection_lost(c);
	if (c->reconnect_ms < 0)
		return error_set(c, MPIG_ENODAEMON, "the daemon on %s went away, and reconnect_ms = -1", c->path);
	uint64_t deadline = deadline_in(c->reconnect_ms);
	useconds_t pause = 2000;
	for (;;) {
		int rc = socket_connect(c, deadline, &c->fd);
		if (rc == MPIG_OK)
			rc = hello(c);
		if (rc == MPIG_OK)
			rc = contexts_reopen(c, deadline);
		if (rc == MPIG_OK)
			return rc;
		connection_lost(c); // on one that stays, what could not be opened again would be nobody's
		if (rc == MPIG_EVERSION || now_ns() >= deadline)
			return rc;
		usleep(pause);
		pause = pause < 40000 ? pause * 2 : pause;
	}
}

int client_call(mpig_client *c, uint16_t op, void *request, size_t bytes, int send_fd, size_t reply_min, int fds[2])
{
	int rc = NOT_SENT;
	for (int attempt = 0; attempt < 2 && rc == NOT_SENT; attempt++) {
		rc = client_connected(c);
		if (rc == MPIG_OK)
			rc = control_exchange(c, op, request, bytes, send_fd, reply_min, fds);
	}
	return rc == NOT_SENT ? error_set(c, MPIG_ERETRY, "the daemon on %s went away twice; try again", c->path) : rc;
}

int client_same_daemon(const mpig_client *c, uint64_t job, uint64_t *epoch, int rc)
{
	if (job && c->epoch != *epoch)
		return error_set(c, MPIG_ERETRY,
		                 "another daemon serves %s now: what was begun by the one before is not done; try again",
		                 c->path);
	*epoch = c->epoch;
	return rc;
}

static void client_release(mpig_client *c)
{
	if (c->owner_page)
		munmap(c->owner_page, (size_t)sysconf(_SC_PAGESIZE));
	free(c->reply);
	free(c);
}

int mpig_connect(const struct mpig_connect_options *options, mpig_client **client)
{
	struct mpig_connect_options o;
	int rc = options_copy(NULL, "mpig_connect_options", options, &o, sizeof(o));
	if (rc)
		return rc;
	if (!client)
		return error_set(NULL, MPIG_EINVAL, "client is NULL: there is nowhere to put the connection");
	if (o.timeout_ms < 0)
		return error_set(NULL, MPIG_EINVAL, "timeout_ms = %d: must be positive, or 0 for %d", o.timeout_ms,
		                 DEFAULT_TIMEOUT_MS);
	mpig_client *c = calloc(1, sizeof(*c));
	if (!c || !(c->reply = malloc(MPIG_CONTROL_MAX_BYTES))) {
		free(c);
		return error_set(NULL, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
	}
	pthread_mutex_init(&c->lock, NULL);
	mark_owner(c);
	atomic_init(&c->connection, 1);
	c->fd = -1;
	c->handles[0] = 1; // 0 is no context: NOP entries carry it
	c->timeout_ms = o.timeout_ms ? o.timeout_ms : DEFAULT_TIMEOUT_MS;
	c->reconnect_ms = o.reconnect_ms ? o.reconnect_ms : DEFAULT_RECONNECT_MS;
	error_clear(c);
	rc = choose_path(c, o.socket_path);
	if (rc == MPIG_OK) {
		rc = socket_connect(c, deadline_in(c->timeout_ms), &c->fd);
		if (rc == MPIG_OK)
			rc = hello(c);
		if (rc)
			error_set(NULL, rc, "%s", mpig_last_error(c));
	}
	if (rc) {
		error_clear(c);
		pthread_mutex_destroy(&c->lock);
		client_release(c);
		return rc;
	}
	*client = c;
	return MPIG_OK;
}

void mpig_disconnect(mpig_client *c)
{
	if (!c)
		return;
	bool forked = client_forked(c);
	if (!forked && c->queues && c->fd >= 0) {
		struct mpig_ctl_queue_destroy destroy = {.queue_id = MPIG_ALL_QUEUES};
		control_post(c, MPIG_CTL_QUEUE_DESTROY, &destroy, sizeof(destroy));
	}
	while (c->queues) {
		mpig_queue *q = c->queues;
		c->queues = q->next;
		queue_free(q, forked);
	}
	contexts_free(c);
	if (c->fd >= 0) {
		if (!forked) // a child may hold the socket open: the daemon is to see the end all the same
			shutdown(c->fd, SHUT_RDWR);
		close(c->fd);
	}
	if (!forked) // a forked copy may have been locked by a thread that exists no more
		pthread_mutex_destroy(&c->lock);
	error_clear(c);
	client_release(c);
}

// A call whose request is a bare header.
static int plain_call(mpig_client *c, uint16_t op, size_t reply_min)
{
	struct mpig_control_header request;
	return client_call(c, op, &request, sizeof(request), -1, reply_min, NULL);
}

int mpig_ping(mpig_client *c)
{
	if (client_forked(c))
		return MPIG_EFORK;
	pthread_mutex_lock(&c->lock);
	int rc = plain_call(c, MPIG_CTL_PING, sizeof(struct mpig_control_header));
	pthread_mutex_unlock(&c->lock);
	return rc;
}

#define COPY_TEXT(to, from)                                                                                                      \
	do {                                                                                                                     \
		static_assert(sizeof(to) == sizeof(from), "same field");                                                         \
		memcpy(to, from, sizeof(to));                                                                                    \
		(to)[sizeof(to) - 1] = 0;                                                                                        \
	} while (0)

int mpig_daemon_status(mpig_client *c, struct mpig_daemon_status *status)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (!status)
		return error_set(c, MPIG_EINVAL, "status is NULL");
	pthread_mutex_lock(&c->lock);
	int rc = plain_call(c, MPIG_CTL_STATUS, sizeof(struct mpig_ctl_status_reply));
	if (rc == MPIG_OK) {
		const struct mpig_ctl_status_reply *r = (const void *)c->reply;
		struct mpig_daemon_status s = {
			.epoch = r->epoch,
			.uptime_ns = r->uptime_ns,
			.pool_bytes = r->pool_bytes,
			.pool_used = r->pool_used,
			.pool_metadata = r->pool_metadata,
			.contexts = r->contexts,
			.clients = r->clients,
			.queues = r->queues,
			.attends = r->attends,
			.appended_rows = r->appended_rows,
			.commits = r->commits,
			.rows_read = r->rows_read,
			.bytes_read = r->bytes_read,
			.errors = r->errors,
			.quota_bytes = r->quota_bytes,
			.quota_used = r->quota_used,
			.workers = r->workers,
			.pid = r->pid,
			.drained = r->drained,
		};
		COPY_TEXT(s.version, r->version);
		COPY_TEXT(s.instance, r->instance);
		COPY_TEXT(s.kernels, r->kernels);
		COPY_TEXT(s.io_backend, r->io_backend);
		COPY_TEXT(s.pool_dir, r->pool_dir);
		COPY_TEXT(s.config_file, r->config_file);
		COPY_TEXT(s.stats_file, r->stats_file);
		rc = options_return(c, "mpig_daemon_status", status, &s, sizeof(s));
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

// The text of a reply, as much as fits. Returns its length.
static int take_text(const mpig_client *c, char *text, size_t bytes)
{
	const struct mpig_ctl_text_reply *r = (const void *)c->reply;
	size_t have = c->reply_bytes - sizeof(*r), length = r->length < have ? r->length : have;
	if (bytes) {
		size_t n = length < bytes - 1 ? length : bytes - 1;
		memcpy(text, r->text, n);
		text[n] = 0;
	}
	return (int)length;
}

int mpig_daemon_config(mpig_client *c, char *text, size_t bytes)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (bytes && !text)
		return error_set(c, MPIG_EINVAL, "text is NULL and bytes = %zu", bytes);
	pthread_mutex_lock(&c->lock);
	int rc = plain_call(c, MPIG_CTL_CONFIG_GET, sizeof(struct mpig_ctl_text_reply));
	if (rc == MPIG_OK)
		rc = take_text(c, text, bytes);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_daemon_configure(mpig_client *c, const char *assignment, char *text, size_t bytes)
{
	struct mpig_ctl_configure request = {0};
	if (client_forked(c))
		return MPIG_EFORK;
	if (bytes && !text)
		return error_set(c, MPIG_EINVAL, "text is NULL and bytes = %zu", bytes);
	size_t length = assignment ? strlen(assignment) : 0;
	if (length >= sizeof(request.assignment))
		return error_set(c, MPIG_EINVAL, "assignment has %zu bytes: at most %zu", length, sizeof(request.assignment) - 1);
	if (length)
		memcpy(request.assignment, assignment, length);
	pthread_mutex_lock(&c->lock);
	int rc = client_call(c, MPIG_CTL_CONFIGURE, &request, sizeof(request), -1, sizeof(struct mpig_ctl_text_reply), NULL);
	if (rc == MPIG_OK)
		rc = take_text(c, text, bytes);
	pthread_mutex_unlock(&c->lock);
	return rc;
}
