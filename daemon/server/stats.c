#include "daemon/server/stats.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/status.h"

static void *map_file(struct stats_file *file, const char *path, gid_t gid, char *why, size_t why_bytes)
{
	char fresh[sizeof file->path + 8];
	snprintf(fresh, sizeof fresh, "%s.new", path);
	unlink(fresh); // left by a daemon that died in here
	int fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		snprintf(why, why_bytes, "cannot create %s: %m", fresh);
		return NULL;
	}
	void *map = MAP_FAILED;
	// Allocated before it is mapped: a full disk is an error here, not a SIGBUS later.
	if (posix_fallocate(fd, 0, (off_t)file->bytes) == 0 && (gid == (gid_t)-1 || fchown(fd, (uid_t)-1, gid) == 0) &&
	    fchmod(fd, 0640) == 0)
		map = mmap(NULL, file->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED || rename(fresh, path) != 0) {
		snprintf(why, why_bytes, "cannot make %s: %m", path);
		if (map != MAP_FAILED)
			munmap(map, file->bytes);
		unlink(fresh);
		map = NULL;
	}
	close(fd);
	return map;
}

int stats_open(struct stats_file *file, const char *path, uint32_t workers, gid_t gid, char *why, size_t why_bytes)
{
	*file = (struct stats_file){.bytes = sizeof(struct mpig_stats) + (uint64_t)workers * sizeof(struct mpig_stats_worker)};
	why[0] = '\0';
	if (strcmp(path, "none") != 0)
		file->stats = map_file(file, path, gid, why, why_bytes);
	if (file->stats) {
		snprintf(file->path, sizeof file->path, "%s", path);
	} else {
		void *map = mmap(NULL, file->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (map == MAP_FAILED)
			return -1;
		file->stats = map;
	}
	file->stats->version = MPIG_STATS_VERSION;
	file->stats->bytes = file->bytes;
	file->stats->workers = workers;
	__atomic_store_n(&file->stats->magic, MPIG_STATS_MAGIC, __ATOMIC_RELEASE); // a reader that sees it sees the geometry
	return 0;
}

static void add(uint64_t *counter, uint64_t n)
{
	stats_set(counter, *counter + n);
}

static void count_use(struct mpig_stats_use *use, const struct mpig_sqe *e, const struct mpig_cqe *c)
{
	add(&use->requests, 1);
	add(&use->service_ns, c->service_ns);
	if (e->op == MPIG_OP_ATTEND) {
		add(&use->attends, 1);
		add(&use->rows_read, c->rows_read);
		add(&use->bytes_read, c->bytes_read);
	} else if (e->op == MPIG_OP_APPEND && c->status == MPIG_OK) {
		add(&use->appended_rows, e->count);
	}
	if (c->status < 0)
		add(&use->errors, 1);
}

void stats_count(struct mpig_stats_worker *s, const struct mpig_sqe *e, const struct mpig_cqe *c, uint32_t client,
                 uint32_t context)
{
	uint32_t op = e->op < MPIG_STATS_OPS ? e->op : MPIG_STATS_OPS - 1; // what is not known is counted with the last
	add(&s->requests[op], 1);
	add(&s->latency_sum_ns[op], c->service_ns);
	add(&s->latency[op][mpig_stats_bucket(c->service_ns)], 1);
	add(&s->rows_read, c->rows_read);
	add(&s->bytes_read, c->bytes_read);
	if (e->op == MPIG_OP_APPEND && c->status == MPIG_OK)
		add(&s->appended_rows, e->count);
	if (c->status < 0)
		add(&s->errors, 1);
	count_use(&s->client[client], e, c);
	count_use(&s->context[context], e, c);
}

void stats_close(struct stats_file *file)
{
	if (file->path[0])
		unlink(file->path);
	if (file->stats)
		munmap(file->stats, file->bytes);
	*file = (struct stats_file){0};
}
