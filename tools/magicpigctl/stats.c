#include "stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "shm/abi.h"

static int check(const struct mpig_stats *map, size_t bytes, uint64_t *workers, char *why, size_t why_bytes)
{
	if (map->magic != MPIG_STATS_MAGIC) {
		snprintf(why, why_bytes, "not a statistics file of magicpigd");
		return -1;
	}
	if (map->version != MPIG_STATS_VERSION) {
		snprintf(why, why_bytes, "its version is %u, this program reads version %u", map->version, MPIG_STATS_VERSION);
		return -1;
	}
	*workers = map->workers;
	if (*workers > MPIG_STATS_MAX_WORKERS || *workers > (bytes - sizeof(*map)) / sizeof(map->worker[0])) {
		snprintf(why, why_bytes, "damaged: %zu bytes do not hold %llu workers", bytes, (unsigned long long)*workers);
		return -1;
	}
	return 0;
}

int stats_open(const char *path, struct stats_file *file, char *why, size_t why_bytes)
{
	struct stat st;
	*file = (struct stats_file){0};
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) != 0) {
		snprintf(why, why_bytes, "%s", strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(struct mpig_stats)) {
		snprintf(why, why_bytes, "not a statistics file of magicpigd");
		close(fd);
		return -1;
	}
	size_t bytes = (size_t)st.st_size;
	void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED) {
		snprintf(why, why_bytes, "mmap: %s", strerror(errno));
		return -1;
	}
	uint64_t workers;
	if (check(map, bytes, &workers, why, why_bytes) != 0) {
		munmap(map, bytes);
		return -1;
	}
	*file = (struct stats_file){.map = map, .bytes = bytes, .workers = workers};
	return 0;
}

void stats_close(struct stats_file *file)
{
	if (file->map)
		munmap((void *)(uintptr_t)file->map, file->bytes);
	*file = (struct stats_file){0};
}

// The daemon stores each word with a relaxed atomic; whole words are all a reader relies on.
static void copy_words(void *to, const void *from, size_t bytes)
{
	uint64_t *out = to;
	const uint64_t *in = from;
	for (size_t i = 0; i < bytes / sizeof(*in); i++)
		out[i] = __atomic_load_n(&in[i], __ATOMIC_RELAXED);
}

static struct stats_head head_of(const struct mpig_stats *map)
{
	struct mpig_stats h;
	copy_words(&h, map, offsetof(struct mpig_stats, context));
	struct stats_head head = {
		.epoch = h.epoch,
		.start_realtime_ns = h.start_realtime_ns,
		.pid = h.pid,
		.heartbeat_ns = h.heartbeat_ns,
		.flags = h.flags,
		.pool_bytes = h.pool_bytes,
		.pool_used = h.pool_used,
		.pool_metadata = h.pool_metadata,
		.contexts = h.contexts,
		.clients = h.clients,
		.queues = h.queues,
		.control_messages = h.control_messages,
		.control_errors = h.control_errors,
		.clients_died = h.clients_died,
		.clients_refused = h.clients_refused,
		.saved_contexts = h.saved_contexts,
		.saved_bytes = h.saved_bytes,
		.saves = h.saves,
		.loads = h.loads,
		.disk_errors = h.disk_errors,
		.evictions = h.evictions,
	};
	memcpy(head.release, h.release, sizeof(head.release) - 1);
	memcpy(head.instance, h.instance, sizeof(head.instance) - 1);
	return head;
}

static void work_of(const struct mpig_stats_worker *w, struct stats_work *work)
{
	*work = (struct stats_work){
		.state = w->state,
		.cpu = w->cpu,
		.busy_ns = w->busy_ns,
		.spin_ns = w->spin_ns,
		.park_ns = w->park_ns,
		.wakeups = w->wakeups,
		.steals = w->steals,
		.units = w->units,
		.prefetched_bytes = w->prefetched_bytes,
		.foreseen = w->foreseen,
		.attends = w->requests[MPIG_OP_ATTEND],
		.appends = w->requests[MPIG_OP_APPEND],
		.commits = w->requests[MPIG_OP_COMMIT],
		.errors = w->errors,
		.rows_read = w->rows_read,
		.bytes_read = w->bytes_read,
		.appended_rows = w->appended_rows,
	};
	for (size_t op = 0; op < MPIG_STATS_OPS; op++)
		work->requests += w->requests[op];
	memcpy(work->by_op, w->requests, sizeof(work->by_op));
	memcpy(work->latency_sum_ns, w->latency_sum_ns, sizeof(work->latency_sum_ns));
	memcpy(work->latency, w->latency, sizeof(work->latency));
}

// Every field of struct stats_work is a 64-bit counter: sums and differences go word by word.
#define WORK_WORDS (sizeof(struct stats_work) / sizeof(uint64_t))

static void work_add(struct stats_work *sum, const struct stats_work *work)
{
	uint64_t *s = (uint64_t *)sum;
	const uint64_t *w = (const uint64_t *)work;
	for (size_t i = 0; i < WORK_WORDS; i++)
		s[i] += w[i];
}

struct stats_work stats_between(const struct stats_work *before, const struct stats_work *after)
{
	struct stats_work result = *after;
	uint64_t *r = (uint64_t *)&result;
	const uint64_t *b = (const uint64_t *)before;
	for (size_t i = 0; i < WORK_WORDS; i++)
		r[i] -= b[i];
	result.state = after->state;
	result.cpu = after->cpu;
	return result;
}

static uint64_t monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void use_add(struct mpig_stats_use *sum, const struct mpig_stats_use *use, int sign)
{
	uint64_t *s = (uint64_t *)sum;
	const uint64_t *u = (const uint64_t *)use;
	for (size_t i = 0; i < sizeof(*sum) / sizeof(*s); i++)
		s[i] += sign > 0 ? u[i] : -u[i];
}

struct mpig_stats_use stats_use_between(const struct stats_user *before, const struct stats_user *after)
{
	struct mpig_stats_use use = after->use;
	if (before->id == after->id && before->since_ns == after->since_ns)
		use_add(&use, &before->use, -1);
	return use;
}

// A consistent copy of one place. A writer that is stopped in the middle leaves it as unknown.
static struct stats_user user_of(const struct mpig_stats_place *place, struct mpig_stats_use sum)
{
	enum { TRIES = 100 };
	for (int i = 0; i < TRIES; i++) {
		struct mpig_stats_place copy;
		uint64_t sequence = __atomic_load_n(&place->sequence, __ATOMIC_ACQUIRE);
		copy_words(&copy, place, sizeof(copy));
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (sequence % 2 || __atomic_load_n(&place->sequence, __ATOMIC_RELAXED) != sequence)
			continue;
		struct stats_user user = {.id = copy.id,
		                          .uid = copy.uid,
		                          .pid = copy.pid,
		                          .since_ns = copy.since_ns,
		                          .users = copy.users,
		                          .use = sum};
		use_add(&user.use, &copy.before, -1);
		// Sums are read before their directory: a newcomer's may be from before it moved in.
		if ((int64_t)user.use.requests < 0)
			user.use = (struct mpig_stats_use){0};
		return user;
	}
	return (struct stats_user){0};
}

static void users_of(const struct stats_file *file, bool clients, struct stats_user users[MPIG_STATS_PLACES])
{
	for (size_t i = 0; i < MPIG_STATS_PLACES; i++) {
		struct mpig_stats_use sum = {0};
		for (uint64_t w = 0; w < file->workers; w++) {
			const struct mpig_stats_worker *worker = &file->map->worker[w];
			struct mpig_stats_use use;
			copy_words(&use, clients ? &worker->client[i] : &worker->context[i], sizeof(use));
			use_add(&sum, &use, 1);
		}
		users[i] = user_of(clients ? &file->map->client[i] : &file->map->context[i], sum);
	}
}

void stats_take(const struct stats_file *file, struct stats_sample *sample)
{
	sample->taken_ns = monotonic_ns();
	sample->head = head_of(file->map);
	sample->workers = file->workers;
	sample->oldest_heartbeat_ns = 0;
	sample->total = (struct stats_work){0};
	for (uint64_t i = 0; i < file->workers; i++) {
		struct mpig_stats_worker worker;
		copy_words(&worker, &file->map->worker[i], offsetof(struct mpig_stats_worker, context));
		bool parked = worker.state == MPIG_WORKER_PARKED;
		if (parked && worker.accounted_ns && worker.accounted_ns < sample->taken_ns)
			worker.park_ns += sample->taken_ns - worker.accounted_ns;
		work_of(&worker, &sample->worker[i]);
		work_add(&sample->total, &sample->worker[i]);
		bool awake = !parked && worker.heartbeat_ns;
		if (awake && (!sample->oldest_heartbeat_ns || worker.heartbeat_ns < sample->oldest_heartbeat_ns))
			sample->oldest_heartbeat_ns = worker.heartbeat_ns;
	}
	users_of(file, false, sample->context);
	users_of(file, true, sample->client);
}

const char *stats_op_name(size_t op)
{
	static const char *const names[MPIG_STATS_OPS] = {"nop", "attend", "append", "commit", "truncate", "read"};
	return op < MPIG_STATS_OPS ? names[op] : NULL;
}

int stats_stale(uint64_t heartbeat_ns, uint64_t now_ns)
{
	return heartbeat_ns && now_ns > heartbeat_ns && now_ns - heartbeat_ns > UINT64_C(2000000000);
}

double stats_quantile(const uint64_t buckets[MPIG_STATS_BUCKETS], double q)
{
	uint64_t events = 0;
	for (uint32_t b = 0; b < MPIG_STATS_BUCKETS; b++)
		events += buckets[b];
	double wanted = q * (double)events, seen = 0;
	for (uint32_t b = 0; b < MPIG_STATS_BUCKETS && events; b++) {
		double here = (double)buckets[b], low = (double)mpig_stats_bucket_ns(b),
		       width = (double)mpig_stats_bucket_ns(b + 1) - low;
		if (here > 0 && seen + here >= wanted)
			return low + width * (wanted > seen ? (wanted - seen) / here : 0);
		seen += here;
	}
	return 0;
}
