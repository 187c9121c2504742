#include "daemon/disk/stream.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/base/clock.h"
#include "daemon/disk/private.h"
#include "shm/status.h"

#define LOOK_MS 100 // how long a stop may take to be noticed
#define SILENCE_MS 30000u

struct stream {
	struct streams *all;
	bool used;
	int fd; // ours; non-blocking
	struct credentials who;
	struct image *image; // of an export; NULL: an import
	char name[MPIG_NAME_BYTES];
};

struct streams {
	struct streams_options options;
	pthread_mutex_t lock;
	pthread_cond_t idle;
	uint32_t count;
	atomic_bool stop;
	struct stream stream[STREAMS_MAX];
};

// ---- the socket ------------------------------------------------------------------------------------------------------

static bool stopped(const struct stream *st, char *why)
{
	bool stop = atomic_load(&st->all->stop);
	if (stop)
		(void)disk_fail(why, MPIG_ESHUTDOWN, "the daemon stops");
	return stop;
}

// Until the socket is ready; the client may be silent for so long.
static int await(const struct stream *st, short events, uint64_t since_ns, char *why)
{
	struct pollfd p = {.fd = st->fd, .events = events};
	while (poll(&p, 1, LOOK_MS) <= 0) {
		if (stopped(st, why))
			return MPIG_ESHUTDOWN;
		if (st->image && image_dropped(st->image)) // a reader that is slow does not keep its memory
			return disk_fail(why, MPIG_ENOENT, "'%s' was dropped while it was exported", st->name);
		if (mono_ns() - since_ns > st->all->options.silence_ms * UINT64_C(1000000))
			return disk_fail(why, MPIG_ETIMEDOUT, "the client moved nothing for %u ms", st->all->options.silence_ms);
	}
	return 0;
}

static int put(void *arg, const void *data, size_t bytes, char *why)
{
	const struct stream *st = arg;
	const uint8_t *at = data;
	uint64_t since = mono_ns();
	while (bytes) {
		if (stopped(st, why))
			return MPIG_ESHUTDOWN;
		ssize_t n = send(st->fd, at, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0) {
			at += n;
			bytes -= (size_t)n;
			since = mono_ns();
			continue;
		}
		if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return disk_fail(why, MPIG_EIO, "the client is gone");
		int status = await(st, POLLOUT, since, why);
		if (status)
			return status;
	}
	return 0;
}

static int get(void *arg, void *data, size_t bytes, char *why)
{
	const struct stream *st = arg;
	uint8_t *at = data;
	uint64_t since = mono_ns();
	while (bytes) {
		if (stopped(st, why))
			return MPIG_ESHUTDOWN;
		ssize_t n = recv(st->fd, at, bytes, MSG_DONTWAIT);
		if (n > 0) {
			at += n;
			bytes -= (size_t)n;
			since = mono_ns();
			continue;
		}
		if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
			return MPIG_ERANGE;
		int status = await(st, POLLIN, since, why);
		if (status)
			return status;
	}
	return 0;
}

static void put_result(struct stream *st, const struct mpig_archive_result *result)
{
	char ignored[MPIG_TEXT_BYTES];
	struct {
		struct mpig_archive_chunk head;
		struct mpig_archive_result result;
	} chunk = {.head = {.magic = MPIG_ARCHIVE_CHUNK_MAGIC, .kind = MPIG_ARCHIVE_RESULT, .bytes = sizeof *result},
	           .result = *result};
	chunk.head.data_checksum = XXH3_64bits(result, sizeof *result);
	chunk.head.checksum = XXH3_64bits(&chunk.head, offsetof(struct mpig_archive_chunk, checksum));
	size_t bytes = sizeof chunk.head + sizeof chunk.result;
	if (put(st, &chunk, bytes, ignored) == MPIG_ESHUTDOWN)
		(void)send(st->fd, &chunk, bytes, MSG_DONTWAIT | MSG_NOSIGNAL); // if there is room
}

// ---- the work --------------------------------------------------------------------------------------------------------

__attribute__((format(printf, 3, 4))) static void tell(const struct streams *all, bool failed, const char *format, ...)
{
	char text[2 * MPIG_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (all->options.tell)
		all->options.tell(all->options.arg, failed, text);
}

static void work(struct stream *st)
{
	const struct streams_options *o = &st->all->options;
	const struct archive_io io = {.put = put, .get = get, .arg = st};
	struct mpig_archive_result result = {0};
	char why[MPIG_TEXT_BYTES] = "";
	bool out = st->image;
	int status = out ? archive_write(st->image, &io, &result, why)
	                 : archive_read(o->store, &st->who, st->name, &o->archive, &io, &result, why);
	if (status) {
		image_release(st->image); // the client may take its time to hear of it
		st->image = NULL;
		result = (struct mpig_archive_result){.status = status};
		memcpy(result.name, st->name, sizeof result.name);
		snprintf(result.text, sizeof result.text, "%s", why);
	}
	if (status || !out)
		put_result(st, &result);
	if (status)
		tell(st->all, false, "uid %u: %s of '%s' failed: %s", st->who.uid, out ? "export" : "import", st->name, why);
	else
		tell(st->all, false, "uid %u %s context '%s', %llu tokens", st->who.uid, out ? "exported" : "imported",
		     result.name, (unsigned long long)result.tokens);
}

static void *run(void *arg)
{
	struct stream *st = arg;
	struct streams *all = st->all;
	work(st);
	image_release(st->image);
	close(st->fd);
	pthread_mutex_lock(&all->lock);
	*st = (struct stream){.fd = -1};
	all->count--;
	pthread_cond_signal(&all->idle); // the last thing of `all` that this thread touches, but for the lock
	pthread_mutex_unlock(&all->lock);
	return NULL;
}

// ---- beginning and ending --------------------------------------------------------------------------------------------

static struct stream *take_place(struct streams *all, const struct credentials *who)
{
	struct stream *free_one = NULL;
	uint32_t same = 0;
	for (uint32_t i = 0; i < STREAMS_MAX; i++) {
		struct stream *st = &all->stream[i];
		same += st->used && st->who.uid == who->uid;
		free_one = !st->used && !free_one ? st : free_one;
	}
	return same < STREAMS_PER_UID ? free_one : NULL;
}

static int start_thread(struct stream *st)
{
	pthread_t thread;
	pthread_attr_t attr;
	if (pthread_attr_init(&attr))
		return -1;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	int rc = pthread_create(&thread, &attr, run, st);
	if (!rc)
		pthread_setname_np(thread, "stream");
	pthread_attr_destroy(&attr);
	return rc;
}

static int begin(struct streams *all, const struct credentials *who, struct image *image, const char *name, int *fd, char *why)
{
	int pair[2], status = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return disk_fail(why, MPIG_ENOMEM, "no socket: %s", strerror(errno));
	pthread_mutex_lock(&all->lock);
	struct stream *st = atomic_load(&all->stop) ? NULL : take_place(all, who);
	if (!st) {
		status = disk_fail(why, MPIG_ELIMIT,
		                   "%u exports and imports of yours, or %u in all, are under way: try again later",
		                   STREAMS_PER_UID, STREAMS_MAX);
	} else {
		*st = (struct stream){.all = all, .used = true, .fd = pair[0], .who = *who, .image = image};
		st->who.groups = NULL; // what they allow was asked already
		st->who.group_count = 0;
		memcpy(st->name, name, strlen(name));
		all->count++;
		if (start_thread(st)) {
			*st = (struct stream){.fd = -1};
			all->count--;
			status = disk_fail(why, MPIG_ENOMEM, "the daemon can make no thread");
		}
	}
	pthread_mutex_unlock(&all->lock);
	if (status) {
		close(pair[0]);
		close(pair[1]);
		return status;
	}
	*fd = pair[1];
	return 0;
}

int streams_export(struct streams *all, const struct credentials *who, struct image *image, int *fd, char *why)
{
	return begin(all, who, image, image_of(image)->name, fd, why);
}

int streams_import(struct streams *all, const struct credentials *who, const char *name, int *fd, char *why)
{
	return begin(all, who, NULL, name, fd, why);
}

int streams_create(const struct streams_options *options, struct streams **out)
{
	struct streams *all = calloc(1, sizeof *all);
	if (!all)
		return MPIG_ENOMEM;
	all->options = *options;
	all->options.silence_ms = options->silence_ms ? options->silence_ms : SILENCE_MS;
	pthread_mutex_init(&all->lock, NULL);
	pthread_cond_init(&all->idle, NULL);
	*out = all;
	return 0;
}

void streams_destroy(struct streams *all)
{
	if (!all)
		return;
	pthread_mutex_lock(&all->lock);
	atomic_store(&all->stop, true);
	while (all->count)
		pthread_cond_wait(&all->idle, &all->lock);
	pthread_mutex_unlock(&all->lock);
	pthread_cond_destroy(&all->idle);
	pthread_mutex_destroy(&all->lock);
	free(all);
}
