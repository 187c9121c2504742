#include "daemon/server/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/peer.h"
#include "daemon/server/reload.h"
#include "daemon/server/service.h"

#define REFRESH_NS UINT64_C(1000000000)
#define IDLE_NS UINT64_C(5000000) // between looks for idle work
#define IDLE_PAGES 4u             // huge pages that are made ready in one
#define REAP_NS UINT64_C(1000000)
#define DRAIN_NS UINT64_C(5000000)
#define ACCEPT_PAUSE_NS UINT64_C(100000000)
#define QUIET_TICKS 2u // of DRAIN_NS without a request in progress: then nothing is between ring and table either

// ---- statistics ------------------------------------------------------------------------------------------------------
static void refresh_disk(struct server *s)
{
	if (!s->disk)
		return;
	struct mpig_stats *stats = s->stats.stats;
	struct disk_counts counts;
	disk_jobs_counts(s->jobs, &counts);
	stats_set(&stats->saved_contexts, counts.contexts);
	stats_set(&stats->saved_bytes, counts.bytes);
	stats_set(&stats->saves, counts.saves);
	stats_set(&stats->loads, counts.loads);
	stats_set(&stats->disk_errors, counts.errors);
	stats_set(&stats->evictions, counts.evictions);
}

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
	places_show(&s->contexts);
	places_show(&s->clients);
	refresh_disk(s);
	stats_set(&stats->flags, (s->drained ? MPIG_STATS_DRAINED : 0) | (s->draining ? MPIG_STATS_STOPPING : 0) |
	                                 (s->started && !s->draining && !s->drained ? MPIG_STATS_READY : 0) |
	                                 (s->disk ? MPIG_STATS_DISK : 0));
}

// ---- idle work -------------------------------------------------------------------------------------------------------
// A few huge pages a tick, and only while no request is in progress: one that comes meanwhile is late by a copy of 2 MiB at most. Whether
// there may be more to do.
static bool idle_work(struct server *s)
{
	uint32_t most = IDLE_PAGES;
	bool more = s->options.pool.huge_pages && workers_idle(s->workers) && pool_collapse(s->pool, 1) != 0;
	while (!more && most-- && workers_idle(s->workers))
		if (!pool_make_ready(s->pool, s->options.pool.ready))
			return false;
	return workers_idle(s->workers);
}

static void on_idle(void *arg)
{
	struct server *s = arg;
	if (!idle_work(s)) {
		loop_cancel(s->idler);
		s->idler = NULL;
	}
}

void server_tell_status(struct server *s)
{
	char text[sizeof s->told];
	struct store_totals totals;
	store_totals(s->store, &totals);
	snprintf(text, sizeof text, "Serving %llu contexts to %u clients, %.0f %% of %llu MiB in use",
	         (unsigned long long)totals.contexts, s->peer_count,
	         100 * (double)pool_used(s->pool) / (double)pool_bytes(s->pool), (unsigned long long)(pool_bytes(s->pool) >> 20));
	if (strcmp(text, s->told) == 0 || s->draining)
		return;
	memcpy(s->told, text, sizeof text);
	service_status("%s", text);
}

static void on_refresh(void *arg)
{
	struct server *s = arg;
	server_refresh_stats(s);
	server_tell_status(s);
	if (!s->idler && idle_work(s))
		s->idler = loop_timer(s->loop, IDLE_NS, on_idle, s);
}

// ---- the watchdog ----------------------------------------------------------------------------------------------------
// This thread gets here only if it is alive itself; a worker that does not come back from a request is not helped by waiting. The
// disk's thread does not count: a slow disk is no reason to end the daemon.
static void on_watchdog(void *arg)
{
	static struct log_limit limit = LOG_LIMIT_INIT;
	struct server *s = arg;
	uint32_t left_out;
	int stuck = workers_stuck(s->workers, mono_ns(), s->watchdog_ns / 2);
	if (stuck < 0)
		service_alive();
	else if (log_limit_pass(&limit, mono_ns(), &left_out))
		log_event(
			LOG_EVENT_STUCK, LOG_LEVEL_ERROR,
			"worker %d has not come back from its work for %llu ms: the service manager will restart the daemon; the "
			"pool stays",
			stuck, (unsigned long long)(s->watchdog_ns / 2000000));
}

// ---- retired queues --------------------------------------------------------------------------------------------------
void server_leave_region(struct server *s, const struct left_region *region, bool given_up, int pidfd)
{
	if (given_up)
		leftovers_give_up(&s->leftovers, region);
	else
		leftovers_keep(&s->leftovers, region, pidfd, s->options.limits.region_keep_ns);
}

void server_free_queue(struct server *s, struct queue *q)
{
	struct account *accounts[] = {account_get(&s->accounts, q->uid), account_get(&s->accounts, ACCOUNT_GROUP(q->gid))};
	for (int i = 0; i < 2; i++)
		if (accounts[i]) // there is one: it counts this queue
			accounts[i]->queues--;
	s->queue_count--;
	places_leave(&s->clients, q->place);
	struct left_region region = {.base = q->base,
	                             .bytes = q->geometry.region_bytes,
	                             .device = q->region_device,
	                             .inode = q->region_inode,
	                             .uid = q->uid,
	                             .gid = q->gid};
	q->base = NULL;
	server_leave_region(s, &region, !q->left, q->pidfd);
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
		server_free_queue(s, q);
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

void server_retire_queue(struct server *s, struct queue *q, const struct peer *leaver)
{
	q->left = leaver != NULL;
	q->pidfd = leaver && leaver->pidfd >= 0 ? fcntl(leaver->pidfd, F_DUPFD_CLOEXEC, 0)
	                                        : -1; // -1: then limits.region_keep decides
	q->retired_epoch = workers_remove_queue(s->workers, q);
	q->next_retired = s->retired;
	s->retired = q;
	reap(s);
	if (s->retired && !s->reaper)
		s->reaper = loop_timer(s->loop, REAP_NS, reap, s);
}

bool server_region_in_use(struct server *s, int fd)
{
	reap(s);
	for (const struct queue *q = s->retired; q; q = q->next_retired)
		if (queue_has_region(q, fd))
			return true;
	for (const struct peer *p = s->peers; p; p = p->next)
		for (uint32_t i = 0; i < p->queue_count; i++)
			if (queue_has_region(p->queues[i], fd))
				return true;
	return false;
}

static void on_control_event(void *arg, uint32_t events)
{
	struct server *s = arg;
	(void)events;
	struct queue *q;
	while ((q = workers_broken_queue(s->workers)) != NULL) {
		const struct peer *owner = NULL;
		for (struct peer *p = s->peers; p; p = p->next)
			if (peer_queue(p, q->id) == q) {
				log_warn("client pid %u uid %u: queue %u closed: its ring holds an impossible index", p->who.pid,
				         p->who.uid, q->id);
				peer_forget_queue(p, q);
				owner = p;
				break;
			}
		server_retire_queue(s, q, owner);
	}
}

// ---- accepting -------------------------------------------------------------------------------------------------------
static void on_accept(void *arg, int fd);

static void accept_again(void *arg)
{
	struct server *s = arg;
	s->accepting = loop_accept(s->loop, s->listener.fd, on_accept, s);
	if (!s->accepting)
		return; // the next tick tries again
	loop_cancel(s->accept_again);
	s->accept_again = NULL;
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
	s->quiet_ticks = workers_idle(s->workers) && !profiles_changing(&s->profiles) ? s->quiet_ticks + 1 : 0;
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
	log_event(LOG_EVENT_STOPPING, LOG_LEVEL_INFO, "%s: stopping when the requests in progress are done; new ones are refused",
	          signal_name);
	service_stopping();
	s->draining = true;
	server_refresh_stats(s);
	workers_drain(s->workers);
	loop_cancel(s->accepting);
	loop_cancel(s->accept_again);
	listener_close(&s->listener, false);
	s->drain_timer = loop_timer(s->loop, DRAIN_NS, on_drain_tick, s);
	if (!s->drain_timer)
		s->stopping = true;
}

static void on_signal(void *arg, uint32_t events)
{
	struct server *s = arg;
	(void)events;
	struct signalfd_siginfo info;
	while (read(s->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
		char changed[RELOAD_TEXT_BYTES], why[OPTIONS_WHY_BYTES];
		if (info.ssi_signo == SIGHUP)
			server_reload(s, "SIGHUP", changed, why);
		else
			drain(s, info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
	}
}

int server_watch(struct server *s)
{
	bool all = loop_poll(s->loop, s->signal_fd, on_signal, s) && loop_poll(s->loop, s->control_fd, on_control_event, s) &&
	           loop_timer(s->loop, REFRESH_NS, on_refresh, s);
	s->watchdog_ns = service_watchdog_ns();
	if (s->watchdog_ns)
		all &= loop_timer(s->loop, s->watchdog_ns / 4, on_watchdog, s) != NULL;
	return all ? 0 : -1;
}

int server_accept(struct server *s)
{
	s->accepting = loop_accept(s->loop, s->listener.fd, on_accept, s);
	return s->accepting ? 0 : -1;
}

// ---- the daemon's life -----------------------------------------------------------------------------------------------
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
		.next_peer = 1,
	};
	int status = server_start(&s);
	while (status == 0 && !s.stopping) {
		int turned = loop_turn(s.loop, UINT64_MAX);
		if (turned != 0) {
			log_error("the event loop failed: %s; stopping", strerror(-turned));
			status = -1;
		}
	}
	bool ran = s.stopping;
	server_stop(&s);
	if (ran)
		log_event(LOG_EVENT_STOPPED, LOG_LEVEL_INFO, "magicpigd stopped");
	return status == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
