// The daemon's parts, started in order and stopped backwards.
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/cache.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/indexer.h"
#include "daemon/server/peer.h"
#include "daemon/server/reload.h"
#include "daemon/server/server.h"
#include "daemon/server/service.h"
#include "daemon/store/format.h"
#include "shm/status.h"

// ---- starting --------------------------------------------------------------------------------------------------------
static int open_signals(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) // before the workers, which inherit it
		return -1;
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void raise_descriptor_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static uint32_t choose_cpus(const struct options *o, cpu_set_t *cpus)
{
	cpu_set_t allowed;
	cpu_allowed(&allowed);
	if (CPU_COUNT(&o->workers.cpus) == 0) {
		cpu_choose_workers(&allowed, cpus);
		// More workers than the default leaves: all CPUs, the clients' too.
		if (o->workers.count > (uint32_t)CPU_COUNT(cpus))
			*cpus = allowed;
	} else {
		*cpus = o->workers.cpus;
		cpu_set_t usable;
		CPU_AND(&usable, cpus, &allowed);
		if (!CPU_EQUAL(&usable, cpus))
			log_warn("workers.cpus: some are not available to this process; those workers are not pinned");
	}
	uint32_t available = (uint32_t)CPU_COUNT(cpus), count = o->workers.count ? o->workers.count : available;
	if (count > MAX_WORKERS)
		count = MAX_WORKERS;
	if (count > available)
		log_warn("workers.count = %u, but there are %u CPUs for them: they will wait for each other", count, available);
	return count;
}

static int open_pool(struct server *s)
{
	const struct options *o = &s->options;
	struct pool_options pool = {.dir = o->pool.dir,
	                            .instance = o->daemon.instance,
	                            .bytes = o->pool.size,
	                            .lock_memory = o->pool.lock_memory,
	                            .huge_pages = o->pool.huge_pages,
	                            .ready = o->pool.ready};
	char why[OPTIONS_WHY_BYTES] = "";
	int status = o->pool.restart == RESTART_ATTACH ? pool_open(&pool, &s->pool, why, sizeof why) : MPIG_ENOENT;
	s->attached = status == MPIG_OK;
	if (status == MPIG_ENOENT)
		status = pool_create(&pool, &s->pool, why, sizeof why);
	if (status != MPIG_OK) {
		log_error("pool: %s", why);
		return -1;
	}
	uint64_t mib = pool_bytes(s->pool) >> 20, asked = o->pool.size >> 20;
	if (s->attached && asked && asked / 2 != mib / 2)
		log_warn("pool.size = %lluM, but the pool attached has %lluM: a pool keeps the size it was made with",
		         (unsigned long long)asked, (unsigned long long)mib);
	return 0;
}

static void warn(void *arg, const char *text)
{
	(void)arg;
	log_event(LOG_EVENT_DAMAGED, LOG_LEVEL_WARN, "%s", text);
}

static int open_store(struct server *s)
{
	static_assert((int)OPTION_VERIFY_HEADER == (int)VERIFY_HEADER && (int)OPTION_VERIFY_FULL == (int)VERIFY_FULL,
	              "the option's words are the store's levels");
	const struct options *o = &s->options;
	struct store_options store = {
		.pool = s->pool,
		.upper_reach = o->engine.upper_rows ? o->engine.upper_rows / 4 + 1 : 0,
		.checksum = s->kernels.checksum,
	};
	limits_for_store(&s->limits, o, &store.limits);
	if (!s->attached)
		return store_create(&store, &s->store);
	struct store_attach_options attach = {
		.verify = (enum verify_level)o->pool.verify,
		.table_bytes = engine_table_bytes,
		.warn = warn,
		.progress = service_progress,
	};
	struct store_attached found;
	uint64_t begin = mono_ns();
	int status = store_attach(&store, &attach, &s->store, &found);
	if (status == MPIG_OK)
		log_info("attached %llu contexts, %llu tokens in %.1f ms; %llu quarantined", (unsigned long long)found.contexts,
		         (unsigned long long)found.tokens, (double)(mono_ns() - begin) / 1e6,
		         (unsigned long long)found.quarantined);
	return status;
}

static int start_memory(struct server *s, uint32_t workers)
{
	const struct options *o = &s->options;
	uint32_t mask;
	if (cpu_mask_parse(o->engine.cpu_mask, &mask) != 0) {
		log_error("engine.cpu_mask = %s: unknown instruction set; a number, or names joined by + such as c, avx2, "
		          "avx512, avx512vnni, amx, all",
		          o->engine.cpu_mask);
		return -1;
	}
	kernels_init(&s->kernels, cpu_features() & mask, s->kernels_name, sizeof s->kernels_name);
	if (open_pool(s) != 0)
		return -1;
	struct engine_options engine = {.kernels = &s->kernels,
	                                .error_target = o->engine.error_target,
	                                .budget_floor = o->engine.budget_floor,
	                                .budget_cap = o->engine.budget_cap,
	                                .default_budget = o->engine.default_budget,
	                                .workers = workers,
	                                .ahead_bytes = server_ahead_bytes(s),
	                                .upper_rows = o->engine.upper_rows};
	int status = open_store(s);
	engine.store = s->store;
	if (status == MPIG_OK)
		status = engine_create(&engine, &s->engine);
	if (status != MPIG_OK)
		log_error("cannot start the engine: %s", mpig_status_text(status));
	return status == MPIG_OK ? 0 : -1;
}

void server_tell_disk(void *arg, bool failed, const char *text)
{
	(void)arg;
	if (failed)
		log_event(LOG_EVENT_NOT_SAVED, LOG_LEVEL_ERROR, "%s", text);
	else
		log_info("%s", text);
}

static void tell_index(void *arg, bool failed, const char *text)
{
	(void)arg;
	if (failed)
		log_warn("%s", text);
	else
		log_info("%s", text);
}

static int start_indexer(struct server *s)
{
	struct indexer_options o = {
		.engine = s->engine, .store = s->store, .drift = (double)s->options.engine.reindex_drift, .tell = tell_index};
	int status = indexer_start(&o, &s->indexer);
	if (status != MPIG_OK)
		log_error("no memory for the indexer's thread");
	return status == MPIG_OK ? 0 : -1;
}

static int start_streams(struct server *s)
{
	struct streams_options o = {.store = s->store,
	                            .archive = {.table_bytes = engine_table_bytes,
	                                        .checks = {.rows_good = engine_rows_good,
	                                                   .table_good = engine_table_good,
	                                                   .upper_good = engine_upper_good}},
	                            .tell = server_tell_disk};
	int status = streams_create(&o, &s->streams);
	if (status != MPIG_OK)
		log_error("no memory for exports and imports");
	return status == MPIG_OK ? 0 : -1;
}

static int start_disk(struct server *s)
{
	const struct options *o = &s->options;
	struct disk_options disk = {.dir = o->disk.dir,
	                            .depth = o->disk.queue_depth,
	                            .chunk = o->disk.chunk,
	                            .rate = o->disk.rate,
	                            .table_bytes = engine_table_bytes};
	char why[MPIG_TEXT_BYTES];
	memcpy(disk.pool_id, pool_superblock(s->pool)->instance_id, sizeof disk.pool_id);
	int status = o->disk.dir[0] ? disk_create(&disk, &s->disk, why) : MPIG_OK;
	if (status != MPIG_OK) {
		log_error("disk.dir: %s", why);
		return -1;
	}
	struct disk_policy policy = server_disk_policy(o);
	status = disk_jobs_start(s->disk, s->store, s->pool, &policy, &s->jobs);
	if (status != MPIG_OK)
		log_error("cannot start the disk's thread: %s", mpig_status_text(status));
	return status == MPIG_OK ? 0 : -1;
}

static int start_stats(struct server *s, uint32_t workers, gid_t gid)
{
	char why[OPTIONS_WHY_BYTES];
	if (stats_open(&s->stats, s->options.daemon.stats, workers, gid, why, sizeof why) != 0) {
		log_error("no memory for statistics");
		return -1;
	}
	if (why[0])
		log_warn("no statistics file: %s", why);
	struct mpig_stats *stats = s->stats.stats;
	stats->epoch = s->epoch;
	stats->start_realtime_ns = s->epoch;
	stats->pid = (uint64_t)getpid();
	snprintf(stats->release, sizeof stats->release, "%s", MPIG_VERSION_STRING);
	snprintf(stats->instance, sizeof stats->instance, "%s", s->options.daemon.instance);
	places_init(&s->contexts, stats, PLACES_CONTEXTS);
	places_init(&s->clients, stats, PLACES_CLIENTS);
	return 0;
}

static int start_loop(struct server *s)
{
	int refused, status = loop_create(LOOP_AUTO, &s->loop, &refused);
	if (status != 0) {
		log_error("cannot start the event loop: %s", strerror(-status));
		return -1;
	}
	if (refused)
		log_warn("io_uring is refused here (%s): using epoll", strerror(refused));
	s->signal_fd = open_signals();
	s->control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->signal_fd < 0 || s->control_fd < 0 || server_watch(s) != 0 ||
	    leftovers_open(&s->leftovers, s->loop, &s->accounts) != 0) {
		log_error("cannot start the event loop: no memory or descriptors");
		return -1;
	}
	return 0;
}

static int start_workers(struct server *s, uint32_t count, const cpu_set_t *cpus)
{
	s->recordings = recordings_create();
	if (!s->recordings) {
		log_error("cannot start workers: no memory");
		return -1;
	}
	struct workers_options options = {
		.count = count,
		.cpus = *cpus,
		.spin_ns = s->options.workers.spin_ns,
		.awake_ns = s->options.workers.awake_ns,
		.look_ns = s->options.workers.look_ns,
		.uring = strcmp(loop_backend_name(s->loop), "io_uring") == 0,
		.engine = s->engine,
		.recordings = s->recordings,
		.stats = s->stats.stats->worker,
		.control_fd = s->control_fd,
	};
	int status = workers_create(&options, &s->workers);
	if (status != MPIG_OK)
		log_error("cannot start %u workers: %s (%m)", count, mpig_status_text(status));
	return status == MPIG_OK ? 0 : -1;
}

static int start_listening(struct server *s, gid_t gid)
{
	char why[LISTENER_WHY_BYTES];
	if (!s->listener.adopted && listener_open(&s->listener, s->options.daemon.socket_mode, gid, why) != 0) {
		log_error("%s", why);
		return -1;
	}
	if (server_accept(s) != 0) {
		log_error("cannot accept connections: no memory");
		return -1;
	}
	return 0;
}

// One daemon for a socket: the lock, and the service manager's socket if there is one.
static int take_socket(struct server *s)
{
	char why[LISTENER_WHY_BYTES];
	static_assert(LISTENER_WHY_BYTES >= SERVICE_WHY_BYTES, "one buffer for both");
	const char *path = s->options.daemon.socket;
	int fd = service_socket(path, why);
	int status = fd >= 0    ? listener_adopt(&s->listener, path, fd, why)
	             : fd == -1 ? listener_lock(&s->listener, path, why)
	                        : -1;
	if (status != 0)
		log_error("%s", why);
	return status;
}

int server_start(struct server *s)
{
	uint32_t gid;
	cpu_set_t cpus;
	char why[OPTIONS_WHY_BYTES];
	service_init();
	if (take_socket(s) != 0)
		return -1;
	service_status("Attaching the pool");
	raise_descriptor_limit();
	if (server_find_group("daemon.socket_group", s->options.daemon.socket_group, &gid, why) != 0 ||
	    server_find_group("daemon.admin_group", s->options.daemon.admin_group, &s->admin_gid, why) != 0 ||
	    limits_resolve(&s->options, &s->limits, why) != 0) {
		log_error("%s", why);
		return -1;
	}
	uint32_t workers = choose_cpus(&s->options, &cpus);
	s->l2_bytes = cpu_l2_share(CPU_CACHE_ROOT, &cpus, workers);
	if (start_memory(s, workers) != 0 || start_loop(s) != 0 || start_disk(s) != 0 || start_streams(s) != 0 ||
	    start_indexer(s) != 0)
		return -1;
	if (profiles_open(&s->profiles, s->options.daemon.profiles, s->loop) != MPIG_OK) {
		log_error("no memory, or no file descriptors, for profiles");
		return -1;
	}
	if (start_stats(s, workers, gid) != 0 || start_workers(s, workers, &cpus) != 0 || start_listening(s, gid) != 0)
		return -1;
	s->started = true;
	server_refresh_stats(s);
	char list[128];
	cpu_list_format(&cpus, list, sizeof list);
	log_event(LOG_EVENT_READY, LOG_LEVEL_INFO,
	          "magicpigd %s ready: instance %s on %s, pool of %llu MiB in %s, %u workers on CPUs %s, kernels %s, %s",
	          MPIG_VERSION_STRING, s->options.daemon.instance, s->options.daemon.socket,
	          (unsigned long long)(pool_bytes(s->pool) >> 20), s->options.pool.dir, workers, list, s->kernels_name,
	          loop_backend_name(s->loop));
	server_tell_status(s);
	service_ready();
	return 0;
}

// ---- stopping: the start backwards -----------------------------------------------------------------------------------
static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void server_stop(struct server *s)
{
	listener_close(&s->listener, false);
	bool complete = !s->workers || workers_stop(s->workers);
	while (s->peers) // closes their queues: clients that sleep on them are woken
		peer_close(s->peers, "the daemon stops");
	streams_destroy(s->streams);
	indexer_stop(s->indexer);
	// Leases are given back by now, and with them what was not committed.
	bool save = s->started && complete && !s->hurry && s->disk; // whichever contexts' policy says so
	if (save)
		service_status("Saving contexts to %s", s->options.disk.dir);
	disk_jobs_stop(s->jobs, save, service_progress, NULL);
	disk_destroy(s->disk);
	// A request that was cut off leaves its job, and what the job points to, to the end of the process.
	if (complete) {
		while (s->retired) {
			struct queue *q = s->retired;
			s->retired = q->next_retired;
			server_free_queue(s, q);
		}
		workers_destroy(s->workers);
		recordings_destroy(s->recordings);
		engine_destroy(s->engine);
		store_destroy(s->store);
	}
	leftovers_close(&s->leftovers);
	loop_destroy(s->loop);
	close_fd(s->control_fd);
	close_fd(s->signal_fd);
	if (s->stats.stats)
		stats_close(&s->stats);
	if (s->pool) {
		// A start that failed takes away only what it made itself.
		bool remove = s->started ? !s->options.pool.keep : !s->attached;
		pool_close(s->pool, remove);
		if (remove)
			rmdir(s->options.pool.dir); // if it is empty and we may; the next start makes it again
	}
	account_free(&s->accounts);
	profiles_close(&s->profiles);
	listener_close(&s->listener, true);
}
