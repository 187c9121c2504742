// The daemon put together: listener, peers, workers, pool, statistics, signals. One control thread, the caller's.
#ifndef MPIG_SERVER_SERVER_H
#define MPIG_SERVER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "config/options.h"
#include "daemon/disk/job.h"
#include "daemon/disk/stream.h"
#include "daemon/engine/engine.h"
#include "daemon/server/account.h"
#include "daemon/server/leftover.h"
#include "daemon/server/limits.h"
#include "daemon/server/listener.h"
#include "daemon/server/loop.h"
#include "daemon/server/places.h"
#include "daemon/server/profiles.h"
#include "daemon/server/recording.h"
#include "daemon/server/stats.h"
#include "daemon/server/worker.h"
#include "daemon/store/pool.h"
#include "daemon/store/store.h"

#define MAX_CLIENTS 1024u

// Reads the configuration again, for SIGHUP. 0, or -1 and why (OPTIONS_WHY_BYTES).
typedef int server_reload_fn(void *arg, struct options *options, char *why);

struct peer;
struct server {
	struct options options;
	server_reload_fn *reload;
	void *reload_arg;
	uint64_t epoch, start_ns; // CLOCK_REALTIME and CLOCK_MONOTONIC at start; the epoch is never that of another start
	char kernels_name[64];
	struct kernels kernels;
	struct pool *pool;
	struct store *store;
	struct engine *engine;
	struct disk *disk; // NULL: nothing is kept on disk
	struct disk_jobs *jobs;
	struct indexer *indexer;
	struct streams *streams;
	struct stats_file stats;
	struct places contexts, clients; // in the statistics
	struct loop *loop;
	struct listener listener;
	struct loop_source *accepting, *reaper, *drain_timer, *accept_again, *idler;
	struct recordings *recordings; // of queries
	struct workers *workers;
	int control_fd, signal_fd; // control_fd: workers report broken queues
	struct peer *peers;
	uint32_t peer_count, queue_count;
	struct account *accounts;
	struct leftovers leftovers;
	struct limits limits;
	struct profiles profiles;
	uint32_t admin_gid;    // members of the group may do what root may; UINT32_MAX: there is none
	struct queue *retired; // closed, waiting until nobody points to them
	uint32_t next_queue_id;
	uint64_t next_holder, next_peer;
	uint32_t quiet_ticks;
	uint64_t watchdog_ns; // 0: nobody watches
	char told[128];       // the status line the service manager has
	uint64_t l2_bytes;    // of second-level cache that a worker has
	bool draining, stopping, hurry;
	bool drained;           // by an administrator: what is open goes on, nothing more is opened
	bool attached, started; // to a pool an earlier daemon left; ready to serve
};

// Runs the daemon until it is told to stop. All errors are logged. The process's exit status.
int server_run(const struct options *options, server_reload_fn *reload, void *reload_arg);

// ---- for peers and control operations --------------------------------------------------------------------------------
void server_refresh_stats(struct server *s);
uint64_t server_limit(const struct server *s, uint64_t who, enum override_key key); // 0: none. who: as in struct account
void server_tell_status(struct server *s); // the service manager, if the line is a new one
// Takes a queue out of service; its memory is freed when nobody points to it any more. leaver: the connection that ended, or goes on, without having
// given the queue up (leftover.h); NULL: it was.
void server_retire_queue(struct server *s, struct queue *q, const struct peer *leaver);
// A region that is charged for and that nobody here uses any more: given up by its client, or left.
void server_leave_region(struct server *s, const struct left_region *region, bool given_up, int pidfd);
// Whether a queue has this region still: one in service, or one whose requests are not done, which write into it.
bool server_region_in_use(struct server *s, int fd);

// ---- inside (server.c, start.c) --------------------------------------------------------------------------------------
int server_start(struct server *s); // 0; -1 after the error was logged: server_stop undoes what was done
void server_stop(struct server *s);
struct disk_policy server_disk_policy(const struct options *o);
uint64_t server_ahead_bytes(const struct server *s);             // that a worker reads ahead
void server_tell_disk(void *arg, bool failed, const char *text); // what the disk's thread has to say
int server_watch(struct server *s);  // signals, reports of workers, the once-a-second work, the watchdog
int server_accept(struct server *s); // connections from now on; 0 or -1
void server_free_queue(struct server *s, struct queue *q);

#endif
