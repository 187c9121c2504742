// Rates between two looks at the statistics.
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "top.h"

#define FIRST_MS 200 // between the first two samples

struct top_source {
	char path[512];
	struct stats_file file;
	dev_t device;
	ino_t inode;
	bool sampled; // `before` is one of this file
	double peak_bytes;
	struct limit limit;
	struct stats_sample before, after;
};

struct top_source *top_source_open(const char *path)
{
	struct top_source *source = calloc(1, sizeof(*source));
	if (!source)
		return NULL;
	snprintf(source->path, sizeof(source->path), "%s", path);
	if (limit_read(&source->limit) != 0)
		source->limit = (struct limit){0};
	return source;
}

void top_source_close(struct top_source *source)
{
	if (!source)
		return;
	stats_close(&source->file);
	free(source);
}

// Another daemon makes another file of the same name; one that stopped takes its file along.
static bool attach(struct top_source *s, char *why, size_t why_bytes)
{
	struct stat st;
	bool there = stat(s->path, &st) == 0;
	if (s->file.map && there && st.st_dev == s->device && st.st_ino == s->inode)
		return true;
	stats_close(&s->file);
	s->sampled = false;
	if (stats_open(s->path, &s->file, why, why_bytes) != 0)
		return false;
	s->device = st.st_dev;
	s->inode = st.st_ino;
	return there;
}

// ---- parts -------------------------------------------------------------------------------------------------------------

// What the process calls itself, without asking the daemon.
static void command_of(uint64_t pid, char *name, size_t bytes)
{
	char path[40], text[32] = "";
	snprintf(path, sizeof(path), "/proc/%" PRIu64 "/comm", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	text_printable(name, bytes, *text ? text : "gone");
	if (fd >= 0)
		close(fd);
}

static double key(const struct top_user *u, enum top_sort sort)
{
	return sort == TOP_BY_ROWS ? u->rows + u->appended : sort == TOP_BY_BYTES ? u->bytes : u->requests;
}

static enum top_sort sorting; // of qsort's comparison; one thread

static int compare(const void *a, const void *b)
{
	const struct top_user *x = a, *y = b;
	double kx = key(x, sorting), ky = key(y, sorting);
	if (sorting != TOP_BY_NAME && kx != ky)
		return kx < ky ? 1 : -1;
	int names = strcmp(x->name, y->name);
	return names ? names : (x->id > y->id) - (x->id < y->id);
}

static void users(struct top_users *out, const struct stats_user *before, const struct stats_user *after, double seconds,
                  bool clients, enum top_sort sort)
{
	out->count = 0;
	for (uint32_t i = 0; i < MPIG_STATS_PLACES; i++) {
		struct mpig_stats_use use = stats_use_between(&before[i], &after[i]);
		bool present = after[i].id && after[i].users;
		if (!use.requests && !present) // it was here, and left
			continue;
		struct top_user *u = &out->user[out->count++];
		*u = (struct top_user){
			.id = after[i].id,
			.uid = after[i].uid,
			.pid = after[i].pid,
			.requests = (double)use.requests / seconds,
			.attends = (double)use.attends / seconds,
			.rows = (double)use.rows_read / seconds,
			.bytes = (double)use.bytes_read / seconds,
			.appended = (double)use.appended_rows / seconds,
			.errors = (double)use.errors / seconds,
			.service = (double)use.service_ns / 1e9 / seconds,
		};
		if (i == 0)
			snprintf(u->name, sizeof(u->name), "(others)");
		else if (clients)
			command_of(u->pid, u->name, sizeof(u->name));
		else
			names_context(u->id, u->name, sizeof(u->name));
	}
	sorting = sort;
	qsort(out->user, out->count, sizeof(out->user[0]), compare);
}

static void operations(struct top_view *view, const struct stats_work *work, const struct stats_work *total)
{
	view->operations = 0;
	for (size_t op = 0; stats_op_name(op); op++) {
		if (!total->by_op[op])
			continue;
		view->operation[view->operations++] = (struct top_operation){
			.name = stats_op_name(op),
			.rate = (double)work->by_op[op] / view->seconds,
			.p50 = stats_quantile(work->latency[op], .5),
			.p90 = stats_quantile(work->latency[op], .9),
			.p99 = stats_quantile(work->latency[op], .99),
			.p999 = stats_quantile(work->latency[op], .999),
		};
	}
}

static void worker(struct top_worker *out, const struct stats_work *work, double seconds, bool stale)
{
	double all = (double)(work->busy_ns + work->spin_ns + work->park_ns);
	*out = (struct top_worker){
		.cpu = work->cpu,
		.state = work->state,
		.stuck = stale && work->state != MPIG_WORKER_PARKED,
		.units = (double)work->units / seconds,
		.bytes = (double)work->bytes_read / seconds,
	};
	if (all > 0) {
		out->busy = (double)work->busy_ns / all;
		out->spin = (double)work->spin_ns / all;
		out->park = (double)work->park_ns / all;
	}
}

static void fill(struct top_view *view, const struct stats_sample *before, const struct stats_sample *after, enum top_sort sort)
{
	static struct stats_work work; // some 10 KB; one thread
	view->seconds = (double)(after->taken_ns - before->taken_ns) / 1e9;
	view->head = after->head;
	view->health = health_of(after);
	work = stats_between(&before->total, &after->total);
	view->requests = (double)work.requests / view->seconds;
	view->rows = (double)work.rows_read / view->seconds;
	view->bytes = (double)work.bytes_read / view->seconds;
	view->appended = (double)work.appended_rows / view->seconds;
	view->errors = (double)work.errors / view->seconds;
	double all = (double)(work.busy_ns + work.spin_ns + work.park_ns);
	view->busy = all > 0 ? (double)work.busy_ns / all : 0;
	operations(view, &work, &after->total);
	view->workers = (uint32_t)after->workers;
	bool stale = stats_stale(after->head.heartbeat_ns, after->taken_ns);
	for (uint32_t i = 0; i < view->workers; i++) {
		work = stats_between(&before->worker[i], &after->worker[i]);
		worker(&view->worker[i], &work, view->seconds, stale);
	}
	users(&view->contexts, before->context, after->context, view->seconds, false, sort);
	users(&view->clients, before->client, after->client, view->seconds, true, sort);
}

void top_look(struct top_source *s, enum top_sort sort, struct top_view *view)
{
	char why[128];
	view->waiting = !attach(s, why, sizeof(why));
	if (view->waiting) {
		snprintf(view->why, sizeof(view->why), "no daemon: %s", why);
		return;
	}
	if (s->sampled) {
		s->before = s->after;
	} else {
		stats_take(&s->file, &s->before);
		nanosleep(&(struct timespec){.tv_nsec = FIRST_MS * 1000000L}, NULL);
	}
	stats_take(&s->file, &s->after);
	s->sampled = true;
	if (s->after.taken_ns <= s->before.taken_ns)
		s->after.taken_ns = s->before.taken_ns + 1;
	fill(view, &s->before, &s->after, sort);
	s->peak_bytes = view->bytes > s->peak_bytes ? view->bytes : s->peak_bytes;
	view->peak_bytes = s->peak_bytes;
	view->limit = s->limit;
}
