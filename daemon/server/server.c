#include "daemon/server/server.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/peer.h"
#include "shm/status.h"

#define REFRESH_NS UINT64_C(1000000000)
#define REAP_NS UINT64_C(1000000)
#define DRAIN_NS UINT64_C(5000000)
#define ACCEPT_PAUSE_NS UINT64_C(100000000)
#define QUIET_TICKS 2u // of DRAIN_NS without a request in progress: then nothing is between ring and table either

// ---- statistics ------------------------------------------------------------------------------------------------------
void server_refresh_stats(struct server *s)
{
	struct mpig_stats *stats = s->stats.stats;
	struct store_totals totals;
	store_totals(s->store, &totals);
	stats_set(&stats->heartbeat_ns, mono_ns());
	stats_set(&stats->pool_bytes, pool_bytes(s->pool));
	stats_set(&stats->pool_used, pool_used(s->pool));
	stats_set(&stats->pool_metadata, totals.metadata_bytes);
	stats_set(&stats->contexts, totals.contexts);
	stats_set(&stats->clients, s->peer_count);
	stats_set(&stats->queues, s->queue_count);
}

static void on_refresh(void *arg)
{
	server_refresh_stats(arg);
}

// ---- retired queues --------------------------------------------------------------------------------------------------
static void free_queue(struct server *s, struct queue *q)
{
	struct account *a = account_get(&s->accounts, q->uid);
	if (a) {
		a->queues--;
		a->region_bytes -= q->geometry.region_bytes;
	}
	s->queue_count--;
	queue_destroy(q);
}

static void reap(void *arg)
{
	struct server *s = arg;
	bool freed = false;
	for (struct queue **at = &s->retired; *at;) {
		struct queue *q = *at;
		// The order matters: once nobody can start a request, the count can only fall.
		if (!workers_left(s->workers, q->retired_epoch) ||
		    atomic_load_explicit(&q->in_flight, memory_order_acquire) != 0) {
			at = &q->next_retired;
			continue;
		}
		*at = q->next_retired;
		free_queue(s, q);
		freed = true;
	}
	if (freed) {
		account_tidy(&s->accounts);
		server_refresh_stats(s);
	}
	if (!s->retired && s->reaper) {
		loop_cancel(s->reaper);
		s->reaper = NULL;
	}
}

void server_retire_queue(struct server *s, struct queue *q)
{
	q->retired_epoch = workers_remove_queue(s->workers, q);
	q->next_retired = s->retired;
	s->retired = q;
	reap(s);
	if (s->retired && !s->reaper)
		s->reaper = loop_timer(s->loop, REAP_NS, reap, s);
}

static void on_control_event(void *arg, uint32_t events)
{
	struct server *s = arg;
	(void)events;
	struct queue *q;
	while ((q = workers_broken_queue(s->workers)) != NULL) {
		for (struct peer *p = s->peers; p; p = p->next)
			if (peer_queue(p, q->id) == q) {
				log_warn("client pid %u uid %u: queue %u closed: its ring holds an impossible index", p->who.pid,
				         p->who.uid, q->id);
				peer_forget_queue(p, q);
				break;
			}
		server_retire_queue(s, q);
	}
}

// ---- accepting -------------------------------------------------------------------------------------------------------
static void on_accept(void *arg, int fd);

static void accept_again(void *arg)
{
	struct server *s = arg;
	loop_cancel(s->accept_again);
	s->accept_again = NULL;
	s->accepting = loop_accept(s->loop, s->listener.fd, on_accept, s);
}

static void on_accept(void *arg, int fd)
{
	static struct log_limit limit = LOG_LIMIT_INIT;
	struct server *s = arg;
	if (fd >= 0) {
		peer_accept(s, fd);
		return;
	}
	log_limited(&limit, LOG_LEVEL_ERROR, "cannot accept a connection: %s; trying again in 100 ms", strerror(-fd));
	loop_cancel(s->accepting);
	s->accepting = NULL;
	if (!s->accept_again)
		s->accept_again = loop_timer(s->loop, ACCEPT_PAUSE_NS, accept_again, s);
}

// ---- signals and the end ---------------------------------------------------------------------------------------------
static void on_drain_tick(void *arg)
{
	struct server *s = arg;
	s->quiet_ticks = workers_idle(s->workers) ? s->quiet_ticks + 1 : 0;
	if (s->quiet_ticks >= QUIET_TICKS)
		s->stopping = true;
}

static void drain(struct server *s, const char *signal_name)
{
	if (s->draining) {
		log_info("%s again: stopping without waiting for requests in progress", signal_name);
		s->hurry = s->stopping = true;
		return;
	}
	log_info("%s: stopping when the requests in progress are done; new ones are refused", signal_name);
	s->draining = true;
	workers_drain(s->workers);
	loop_cancel(s->accepting);
	loop_cancel(s->accept_again);
	listener_close(&s->listener, false);
	s->drain_timer = loop_timer(s->loop, DRAIN_NS, on_drain_tick, s);
	if (!s->drain_timer)
		s->stopping = true;
}

static void reload(struct server *s)
{
	struct options fresh;
	char why[OPTIONS_WHY_BYTES], fixed[256];
	if (s->reload(s->reload_arg, &fresh, why) != 0) {
		log_error("SIGHUP: configuration unchanged: %s", why);
		return;
	}
	log_set_level((enum log_level)fresh.daemon.log_level);
	options_changed_fixed(&s->options, &fresh, fixed, sizeof fixed);
	s->options.daemon.log_level = fresh.daemon.log_level;
	log_info("SIGHUP: log level is %s%s%s", log_level_names[fresh.daemon.log_level],
	         fixed[0] ? "; these changes need a restart: " : "", fixed);
}

static void on_signal(void *arg, uint32_t events)
{
	struct server *s = arg;
	(void)events;
	struct signalfd_siginfo info;
	while (read(s->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
		if (info.ssi_signo == SIGHUP)
			reload(s);
		else
			drain(s, info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
	}
}

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

// ---- starting --------------------------------------------------------------------------------------------------------
static int find_group(const char *name, gid_t *gid)
{
	*gid = (gid_t)-1;
	if (!name[0])
		return 0;
	struct group *group = getgrnam(name); // one thread yet
	if (!group) {
		log_error("daemon.socket_group = %s: no such group", name);
		return -1;
	}
	*gid = group->gr_gid;
	return 0;
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

static int start_memory(struct server *s)
{
	const struct options *o = &s->options;
	uint32_t mask;
	if (cpu_mask_parse(o->engine.cpu_mask, &mask) != 0) {
		log_error("engine.cpu_mask = %s: unknown instruction set; a number, or names joined by + such as c, avx2, "
		          "avx512, avx512vnni, all",
		          o->engine.cpu_mask);
		return -1;
	}
	kernels_init(&s->kernels, cpu_features() & mask, s->kernels_name, sizeof s->kernels_name);
	struct pool_options pool = {.dir = o->pool.dir,
	                            .instance = o->daemon.instance,
	                            .bytes = o->pool.size,
	                            .lock_memory = o->pool.lock_memory,
	                            .huge_pages = o->pool.huge_pages};
	char why[OPTIONS_WHY_BYTES] = "";
	if (pool_create(&pool, &s->pool, why, sizeof why) != MPIG_OK) {
		log_error("pool: %s", why);
		return -1;
	}
	struct store_options store = {
		.pool = s->pool, .quota_bytes = o->limits.bytes_per_uid, .quota_contexts = o->limits.contexts_per_uid};
	struct engine_options engine = {.kernels = &s->kernels, .default_budget = o->engine.default_budget};
	int status = store_create(&store, &s->store);
	engine.store = s->store;
	if (status == MPIG_OK)
		status = engine_create(&engine, &s->engine);
	if (status != MPIG_OK)
		log_error("cannot start the engine: %s", mpig_status_text(status));
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
	if (s->signal_fd < 0 || s->control_fd < 0 || !loop_poll(s->loop, s->signal_fd, on_signal, s) ||
	    !loop_poll(s->loop, s->control_fd, on_control_event, s) || !loop_timer(s->loop, REFRESH_NS, on_refresh, s)) {
		log_error("cannot start the event loop: no memory or descriptors");
		return -1;
	}
	return 0;
}

static int start_workers(struct server *s, uint32_t count, const cpu_set_t *cpus)
{
	struct workers_options options = {
		.count = count,
		.cpus = *cpus,
		.spin_ns = s->options.workers.spin_ns,
		.uring = strcmp(loop_backend_name(s->loop), "io_uring") == 0,
		.engine = s->engine,
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
	if (listener_open(&s->listener, s->options.daemon.socket_mode, gid, why) != 0) {
		log_error("%s", why);
		return -1;
	}
	s->accepting = loop_accept(s->loop, s->listener.fd, on_accept, s);
	if (!s->accepting) {
		log_error("cannot accept connections: no memory");
		return -1;
	}
	return 0;
}

static int start(struct server *s)
{
	char why[LISTENER_WHY_BYTES];
	gid_t gid;
	cpu_set_t cpus;
	if (listener_lock(&s->listener, s->options.daemon.socket, why) != 0) {
		log_error("%s", why);
		return -1;
	}
	raise_descriptor_limit();
	if (find_group(s->options.daemon.socket_group, &gid) != 0 || start_memory(s) != 0 || start_loop(s) != 0)
		return -1;
	uint32_t workers = choose_cpus(&s->options, &cpus);
	if (start_stats(s, workers, gid) != 0 || start_workers(s, workers, &cpus) != 0 || start_listening(s, gid) != 0)
		return -1;
	server_refresh_stats(s);
	char list[128];
	cpu_list_format(&cpus, list, sizeof list);
	log_info("magicpigd %s ready: instance %s on %s, pool of %llu MiB in %s, %u workers on CPUs %s, kernels %s, %s",
	         MPIG_VERSION_STRING, s->options.daemon.instance, s->options.daemon.socket,
	         (unsigned long long)(pool_bytes(s->pool) >> 20), s->options.pool.dir, workers, list, s->kernels_name,
	         loop_backend_name(s->loop));
	return 0;
}

// ---- stopping: the start backwards -----------------------------------------------------------------------------------
static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void stop(struct server *s)
{
	listener_close(&s->listener, false);
	bool complete = !s->workers || workers_stop(s->workers);
	while (s->peers) // closes their queues: clients that sleep on them are woken
		peer_close(s->peers, "the daemon stops");
	// A request that was cut off leaves its job, and what the job points to, to the end of the process.
	if (complete) {
		while (s->retired) {
			struct queue *q = s->retired;
			s->retired = q->next_retired;
			free_queue(s, q);
		}
		workers_destroy(s->workers);
		engine_destroy(s->engine);
		store_destroy(s->store);
	}
	loop_destroy(s->loop);
	close_fd(s->control_fd);
	close_fd(s->signal_fd);
	if (s->stats.stats)
		stats_close(&s->stats);
	if (s->pool) {
		pool_close(s->pool, true);
		rmdir(s->options.pool.dir); // if it is empty and we may; the next start makes it again
	}
	account_free(&s->accounts);
	listener_close(&s->listener, true);
}

int server_run(const struct options *options, server_reload_fn *reload_fn, void *reload_arg)
{
	struct server s = {
		.options = *options,
		.reload = reload_fn,
		.reload_arg = reload_arg,
		.epoch = real_ns(),
		.start_ns = mono_ns(),
		.listener = {.fd = -1, .lock_fd = -1},
		.control_fd = -1,
		.signal_fd = -1,
		.next_queue_id = 1,
		.next_holder = 1,
	};
	int status = start(&s);
	while (status == 0 && !s.stopping) {
		int turned = loop_turn(s.loop, UINT64_MAX);
		if (turned != 0) {
			log_error("the event loop failed: %s; stopping", strerror(-turned));
			status = -1;
		}
	}
	bool ran = s.stopping;
	stop(&s);
	if (ran)
		log_info("magicpigd stopped");
	return status == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
