// Exporting and importing: the daemon's end of a socket gives or takes the stream of shm/archive.h; the files are this process's.
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/archive.h"

#define TRIES 16 // to export a context whose open segment keeps changing

struct move {
	mpig_client *client;
	int socket, fd;
	struct mpig_disk_options options;
	uint64_t done, total;
	uint8_t *buffer; // a chunk and its head
	struct mpig_archive_result result;
};
#define BUFFER_BYTES (MPIG_ARCHIVE_CHUNK_MAX + sizeof(struct mpig_archive_chunk))

static void progress(struct move *m, uint64_t bytes)
{
	m->done += bytes;
	if (m->options.progress)
		m->options.progress(m->options.argument, m->done, m->total);
}

static int begin_once(struct move *m, uint32_t way, const char *name)
{
	mpig_client *c = m->client;
	struct mpig_ctl_stream request = {.way = way};
	int fds[2];
	if (name)
		memcpy(request.name, name, strlen(name));
	pthread_mutex_lock(&c->lock);
	int rc = client_call(c, MPIG_CTL_STREAM, &request, sizeof(request), -1, sizeof(request), fds);
	if (rc == MPIG_OK && fds[0] < 0)
		rc = error_set(c, MPIG_EPROTO, "the daemon's answer lacks the socket for the stream");
	pthread_mutex_unlock(&c->lock);
	if (rc)
		return rc;
	if (fds[1] >= 0)
		close(fds[1]);
	m->socket = fds[0];
	m->done = m->total = 0;
	return MPIG_OK;
}

// The daemon may still be ending the one before.
static int begin(struct move *m, uint32_t way, const char *name)
{
	uint64_t deadline = deadline_in(1000);
	int rc = begin_once(m, way, name);
	while (rc == MPIG_ELIMIT && now_ns() < deadline) {
		usleep(10000);
		rc = begin_once(m, way, name);
	}
	return rc;
}

// All of it, or fewer bytes at the end; -1: an error.
static ssize_t read_all(int fd, void *data, size_t bytes)
{
	size_t got = 0;
	while (got < bytes) {
		ssize_t n = read(fd, (uint8_t *)data + got, bytes - got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

static int write_all(struct move *m, const void *data, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		ssize_t n = write(m->fd, (const uint8_t *)data + at, bytes - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(m->client, MPIG_EIO, "cannot write the export: %s", strerror(errno));
		at += (size_t)n;
	}
	progress(m, bytes);
	return MPIG_OK;
}

static int gone(const struct move *m)
{
	return error_set(m->client, MPIG_ERETRY, "the daemon went away after %llu bytes; try again", (unsigned long long)m->done);
}

// ---- the daemon's word -----------------------------------------------------------------------------------------------

static int take_result(struct move *m, const void *data)
{
	memcpy(&m->result, data, sizeof(m->result));
	m->result.name[sizeof(m->result.name) - 1] = m->result.text[sizeof(m->result.text) - 1] = 0;
	for (char *p = m->result.text; *p; p++)
		if ((unsigned char)*p < ' ')
			*p = ' ';
	if (m->result.status == MPIG_OK)
		return MPIG_OK;
	int status = m->result.status < 0 ? m->result.status : MPIG_EPROTO;
	return error_set(m->client, status, "%s", *m->result.text ? m->result.text : mpig_status_text(status));
}

// The next chunk, head and bytes, in the buffer.
static int next_chunk(struct move *m, struct mpig_archive_chunk *head)
{
	ssize_t n = read_all(m->socket, head, sizeof(*head));
	if (n != (ssize_t)sizeof(*head))
		return gone(m);
	if (head->magic != MPIG_ARCHIVE_CHUNK_MAGIC || head->bytes > MPIG_ARCHIVE_CHUNK_MAX)
		return error_set(m->client, MPIG_EPROTO, "the daemon's stream makes no sense after %llu bytes",
		                 (unsigned long long)m->done);
	memcpy(m->buffer, head, sizeof(*head));
	n = read_all(m->socket, m->buffer + sizeof(*head), head->bytes);
	return n == (ssize_t)head->bytes ? MPIG_OK : gone(m);
}

// ---- export ----------------------------------------------------------------------------------------------------------

static int receive(struct move *m)
{
	struct mpig_archive_header header;
	struct mpig_archive_chunk head = {0};
	struct {
		uint32_t magic; // what begins both a header and a chunk
	} first;
	if (recv(m->socket, &first, sizeof(first), MSG_PEEK | MSG_WAITALL) != sizeof(first))
		return gone(m);
	if (first.magic != MPIG_ARCHIVE_CHUNK_MAGIC) { // no RESULT already
		if (read_all(m->socket, &header, sizeof(header)) != (ssize_t)sizeof(header))
			return gone(m);
		if (header.magic != MPIG_ARCHIVE_MAGIC || header.version != MPIG_ARCHIVE_VERSION)
			return error_set(m->client, MPIG_EVERSION, "the daemon exports in version %u, this library (%s) knows %u",
			                 header.version, MPIG_VERSION_STRING, MPIG_ARCHIVE_VERSION);
		m->total = header.total_bytes;
		int rc = write_all(m, &header, sizeof(header));
		if (rc)
			return rc;
	}
	while (head.kind != MPIG_ARCHIVE_END) {
		int rc = next_chunk(m, &head);
		if (rc == MPIG_OK && head.kind == MPIG_ARCHIVE_RESULT) {
			rc = head.bytes == sizeof(m->result) ? take_result(m, m->buffer + sizeof(head)) : MPIG_OK;
			return rc ? rc : error_set(m->client, MPIG_EPROTO, "the daemon ended its stream too early");
		}
		if (rc == MPIG_OK)
			rc = write_all(m, m->buffer, sizeof(head) + head.bytes);
		if (rc)
			return rc;
	}
	struct mpig_archive_end end;
	if (head.bytes != sizeof(end))
		return error_set(m->client, MPIG_EPROTO, "the end of the daemon's stream makes no sense");
	memcpy(&end, m->buffer + sizeof(head), sizeof(end));
	m->result.tokens = end.tokens;
	m->result.segments = (uint32_t)end.segments;
	return MPIG_OK;
}

// What is on disk only is loaded first.
static int begin_export(struct move *m, const char *name)
{
	int rc = begin(m, MPIG_STREAM_EXPORT, name);
	if (rc != MPIG_ENOENT)
		return rc;
	rc = mpig_context_load(m->client, name, &m->options, NULL);
	if (rc == MPIG_ENOTSUP || rc == MPIG_ENOENT)
		return error_set(m->client, MPIG_ENOENT, "no context is named '%s'", name);
	return rc == MPIG_OK || rc == MPIG_EEXIST ? begin(m, MPIG_STREAM_EXPORT, name) : rc;
}

// From where fd stands; a file is begun again if the context changed.
static int export_to(struct move *m, const char *name)
{
	off_t start = lseek(m->fd, 0, SEEK_CUR);
	int rc = MPIG_EAGAIN;
	for (int i = 0; i < TRIES && rc == MPIG_EAGAIN; i++) {
		if (i && (start < 0 || lseek(m->fd, start, SEEK_SET) != start || ftruncate(m->fd, start)))
			return rc; // its text is the last attempt's
		rc = begin_export(m, name);
		if (rc)
			return rc;
		rc = receive(m);
		close(m->socket);
	}
	return rc;
}

static int move_begin(struct move *m, mpig_client *c, int fd, const struct mpig_disk_options *options)
{
	*m = (struct move){.client = c, .fd = fd, .socket = -1};
	int rc = options_copy(c, "mpig_disk_options", options, &m->options, sizeof(m->options));
	if (rc)
		return rc;
	m->options.size = sizeof(m->options); // a load is told of it, too
	m->buffer = malloc(BUFFER_BYTES);
	return m->buffer ? MPIG_OK : error_set(c, MPIG_ENOMEM, "%s", mpig_status_text(MPIG_ENOMEM));
}

static int move_end(struct move *m, int rc, struct mpig_disk_result *result)
{
	free(m->buffer);
	if (rc || !result)
		return rc;
	struct mpig_disk_result known = {
		.tokens = m->result.tokens, .bytes = m->done, .moved = m->done, .segments = m->result.segments};
	memcpy(known.name, m->result.name, sizeof(known.name));
	return options_return(m->client, "mpig_disk_result", result, &known, sizeof(known));
}

int mpig_context_export(mpig_client *c, const char *name, int fd, const struct mpig_disk_options *options,
                        struct mpig_disk_result *result)
{
	struct move m;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	rc = rc ? rc : move_begin(&m, c, fd, options);
	if (rc)
		return rc;
	rc = export_to(&m, name);
	memcpy(m.result.name, name, strlen(name) + 1);
	return move_end(&m, rc, result);
}

static int sync_directory(const mpig_client *c, const char *path)
{
	char dir[PATH_MAX];
	const char *slash = strrchr(path, '/');
	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int bad = fd < 0 || fsync(fd) ? errno : 0;
	if (fd >= 0)
		close(fd);
	return bad ? error_set(c, MPIG_EIO, "cannot make %s durable: %s", dir, strerror(bad)) : MPIG_OK;
}

int mpig_context_export_file(mpig_client *c, const char *name, const char *path, const struct mpig_disk_options *options,
                             struct mpig_disk_result *result)
{
	char temporary[PATH_MAX];
	struct stat st;
	if (client_forked(c))
		return MPIG_EFORK;
	if (!path || snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= (int)sizeof(temporary))
		return error_set(c, MPIG_EINVAL, "path is %s", path ? "too long" : "NULL");
	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return error_set(c, MPIG_EINVAL, "%s is there and not a file", path);
	int fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return error_set(c, errno == EACCES ? MPIG_EACCES : MPIG_EIO, "cannot create %s: %s", temporary, strerror(errno));
	int rc = mpig_context_export(c, name, fd, options, result);
	if (rc == MPIG_OK && fsync(fd))
		rc = error_set(c, MPIG_EIO, "cannot make %s durable: %s", temporary, strerror(errno));
	if (close(fd) && rc == MPIG_OK)
		rc = error_set(c, MPIG_EIO, "cannot close %s: %s", temporary, strerror(errno));
	if (rc == MPIG_OK && rename(temporary, path))
		rc = error_set(c, MPIG_EIO, "cannot name %s: %s", path, strerror(errno));
	if (rc) {
		unlink(temporary);
		return rc;
	}
	return sync_directory(c, path);
}

// ---- import ----------------------------------------------------------------------------------------------------------

// False: the daemon takes no more, and its RESULT says why.
static bool send_all(struct move *m, const uint8_t *data, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		ssize_t n = send(m->socket, data + at, bytes - at, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	progress(m, bytes);
	return true;
}

// What the header says there is; of anything else, the little that tells the daemon so.
static int send_file(struct move *m)
{
	struct mpig_archive_header header = {0};
	ssize_t n = read_all(m->fd, &header, sizeof(header));
	bool known = n == (ssize_t)sizeof(header) && header.magic == MPIG_ARCHIVE_MAGIC;
	m->total = known ? header.total_bytes : 0;
	bool more = n > 0 && send_all(m, (const uint8_t *)&header, (size_t)n);
	while (n > 0 && more && m->done < m->total) {
		uint64_t left = m->total - m->done;
		n = read_all(m->fd, m->buffer, left < BUFFER_BYTES ? left : BUFFER_BYTES);
		more = n > 0 && send_all(m, m->buffer, (size_t)n);
	}
	return n < 0 ? error_set(m->client, MPIG_EIO, "cannot read the file: %s", strerror(errno)) : MPIG_OK;
}

static int await_result(struct move *m)
{
	struct mpig_archive_chunk head;
	shutdown(m->socket, SHUT_WR);
	int rc = next_chunk(m, &head);
	if (rc)
		return rc;
	if (head.kind != MPIG_ARCHIVE_RESULT || head.bytes != sizeof(m->result))
		return error_set(m->client, MPIG_EPROTO, "the daemon's answer to an import makes no sense");
	return take_result(m, m->buffer + sizeof(head));
}

int mpig_context_import(mpig_client *c, int fd, const char *name, const struct mpig_disk_options *options,
                        struct mpig_disk_result *result)
{
	struct move m;
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name ? name_check(c, "name", name) : MPIG_OK;
	rc = rc ? rc : move_begin(&m, c, fd, options);
	if (rc)
		return rc;
	rc = begin(&m, MPIG_STREAM_IMPORT, name);
	if (rc == MPIG_OK) {
		rc = send_file(&m);
		rc = rc ? rc : await_result(&m);
		close(m.socket);
	}
	return move_end(&m, rc, result);
}
