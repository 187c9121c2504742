#include "daemon/server/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "shm/status.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 // Linux 6.5
#endif

#define REFUSED_AT_ONCE 8u // connections over a user's limit that are told why; more are closed without a word

static struct log_limit refused_limit = LOG_LIMIT_INIT, died_limit = LOG_LIMIT_INIT, malformed_limit = LOG_LIMIT_INIT;

static bool read_credentials(struct peer *p)
{
	struct ucred cred;
	socklen_t bytes = sizeof cred;
	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes) != 0)
		return false;
	p->who = (struct credentials){.uid = cred.uid, .gid = cred.gid, .pid = (uint32_t)cred.pid};
	bytes = 0;
	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &bytes) == 0 || errno != ERANGE)
		return true; // none
	p->groups = malloc(bytes);
	if (!p->groups || getsockopt(p->fd, SOL_SOCKET, SO_PEERGROUPS, p->groups, &bytes) != 0)
		return false;
	p->who.groups = p->groups;
	p->who.group_count = (uint32_t)(bytes / sizeof(gid_t));
	return true;
}

bool peer_administers(const struct peer *p)
{
	return credentials_admin(&p->who);
}

static void find_administrator(struct peer *p)
{
	uint32_t gid = p->server->admin_gid;
	p->who.admin = p->who.uid == geteuid() || (gid != UINT32_MAX && credentials_in_group(&p->who, gid));
}

void peer_find_administrators(struct server *s)
{
	for (struct peer *p = s->peers; p; p = p->next)
		find_administrator(p);
}

static int open_pidfd(const struct peer *p)
{
	int fd;
	socklen_t bytes = sizeof fd;
	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERPIDFD, &fd, &bytes) == 0)
		return fd; // close-on-exec
	return (int)syscall(SYS_pidfd_open, (pid_t)p->who.pid, 0);
}

// What the process calls itself: to be shown, never to be relied on. Empty where /proc does not say.
static void read_command(struct peer *p)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/%u/comm", p->who.pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, p->command, sizeof p->command - 1);
	p->command[n > 0 ? n : 0] = '\0';
	p->command[strcspn(p->command, "\n")] = '\0';
	if (fd >= 0)
		close(fd);
}

static void on_death(void *arg, uint32_t events)
{
	struct peer *p = arg;
	if (!(events & POLLIN))
		return;
	struct mpig_stats *stats = p->server->stats.stats;
	stats_set(&stats->clients_died, stats->clients_died + 1);
	peer_close(p, "its process ended");
}

static void on_message(void *arg, int error, struct loop_message *message)
{
	struct peer *p = arg;
	if (error)
		peer_close(p, strerror(-error));
	else if (message->bytes == 0)
		peer_close(p, "it disconnected");
	else if (!control_handle(p, message)) {
		log_limited(&malformed_limit, LOG_LEVEL_WARN,
		            "client pid %u uid %u: closed: a malformed message, or it does not read its answers", p->who.pid,
		            p->who.uid);
		peer_close(p, "malformed");
	} else if (p->refused)
		peer_close(p, "over a limit");
}

static void link_peer(struct server *s, struct peer *p)
{
	p->next = s->peers;
	if (p->next)
		p->next->previous = p;
	s->peers = p;
	s->peer_count++;
}

static void free_peer(struct peer *p)
{
	if (p->session) {
		session_unbind_all(p->session);
		session_unref(p->session);
	}
	if (p->pidfd >= 0)
		close(p->pidfd);
	close(p->fd);
	places_leave(&p->server->clients, p->place);
	free(p->queues);
	free(p->groups);
	free(p);
}

// False: no room, not even for a word of explanation.
static bool admit(struct server *s, struct peer *p)
{
	uint64_t user_limit = server_limit(s, p->who.uid, OVERRIDE_CLIENTS),
		 group_limit = server_limit(s, ACCOUNT_GROUP(p->who.gid), OVERRIDE_CLIENTS);
	struct account *user = account_get(&s->accounts, p->who.uid),
		       *group = account_get(&s->accounts, ACCOUNT_GROUP(p->who.gid));
	if (!user || !group || s->peer_count >= MAX_CLIENTS || (user_limit && user->clients >= user_limit + REFUSED_AT_ONCE) ||
	    (group_limit && group->clients >= group_limit + REFUSED_AT_ONCE)) {
		log_limited(&refused_limit, LOG_LEVEL_WARN,
		            "client pid %u uid %u gid %u refused: %u connections are open, %u of this user, %u of this group",
		            p->who.pid, p->who.uid, p->who.gid, s->peer_count, user ? user->clients : 0,
		            group ? group->clients : 0);
		stats_set(&s->stats.stats->clients_refused, s->stats.stats->clients_refused + 1);
		return false;
	}
	p->refused = user_limit && user->clients >= user_limit      ? PEER_OVER_UID
	             : group_limit && group->clients >= group_limit ? PEER_OVER_GID
	                                                            : PEER_ADMITTED;
	if (p->refused)
		stats_set(&s->stats.stats->clients_refused, s->stats.stats->clients_refused + 1);
	rate_set(&user->rate, (uint32_t)server_limit(s, p->who.uid, OVERRIDE_REQUESTS));
	rate_set(&group->rate, (uint32_t)server_limit(s, ACCOUNT_GROUP(p->who.gid), OVERRIDE_REQUESTS));
	user->clients++;
	group->clients++;
	return true;
}

void peer_accept(struct server *s, int fd)
{
	struct peer *p = calloc(1, sizeof *p);
	if (!p) {
		close(fd);
		return;
	}
	p->server = s;
	p->id = s->next_peer++;
	p->connected_ns = real_ns();
	p->fd = fd;
	p->pidfd = -1;
	if (!read_credentials(p) || !admit(s, p)) {
		account_tidy(&s->accounts);
		free_peer(p);
		return;
	}
	find_administrator(p);
	link_peer(s, p);
	p->session = session_create();
	p->messages = p->session ? loop_receive(s->loop, fd, MPIG_CONTROL_MAX_BYTES, on_message, p) : NULL;
	if (!p->messages) {
		peer_close(p, "no memory");
		return;
	}
	read_command(p);
	p->pidfd = open_pidfd(p);
	if (p->pidfd >= 0)
		p->death = loop_poll(s->loop, p->pidfd, on_death, p);
	log_debug("client pid %u uid %u connected", p->who.pid, p->who.uid);
	server_refresh_stats(s);
}

void peer_close(struct peer *p, const char *reason)
{
	struct server *s = p->server;
	log_limited(&died_limit, LOG_LEVEL_DEBUG, "client pid %u uid %u gone: %s", p->who.pid, p->who.uid, reason);
	loop_cancel(p->messages);
	loop_cancel(p->death);
	if (p->awaited)
		*p->awaited = NULL;
	while (p->queue_count) {
		struct queue *q = p->queues[p->queue_count - 1];
		peer_forget_queue(p, q);
		server_retire_queue(s, q, p);
	}
	if (p->previous)
		p->previous->next = p->next;
	else
		s->peers = p->next;
	if (p->next)
		p->next->previous = p->previous;
	s->peer_count--;
	struct account *accounts[] = {account_get(&s->accounts, p->who.uid),
	                              account_get(&s->accounts, ACCOUNT_GROUP(p->who.gid))};
	struct left_region ring = {.uid = p->who.uid, .gid = p->who.gid};
	while ((ring.bytes = recordings_stop(s->recordings, p->id, 0, s->draining ? MPIG_TRACE_SHUTDOWN : MPIG_TRACE_STOPPED,
	                                     &ring.base)) != 0)
		server_leave_region(s, &ring, false, p->pidfd);
	for (int i = 0; i < 2; i++)
		if (accounts[i]) // there is one: it counts this connection
			accounts[i]->clients--;
	free_peer(p);
	account_tidy(&s->accounts);
	server_refresh_stats(s);
}

int peer_add_queue(struct peer *p, struct queue *q)
{
	if (p->queue_count == p->queue_capacity) {
		uint32_t capacity = p->queue_capacity ? 2 * p->queue_capacity : 8;
		struct queue **more = realloc(p->queues, capacity * sizeof(struct queue *));
		if (!more)
			return MPIG_ENOMEM;
		p->queues = more;
		p->queue_capacity = capacity;
	}
	p->queues[p->queue_count++] = q;
	return MPIG_OK;
}

struct queue *peer_queue(struct peer *p, uint32_t id)
{
	for (uint32_t i = 0; i < p->queue_count; i++)
		if (p->queues[i]->id == id)
			return p->queues[i];
	return NULL;
}

void peer_forget_queue(struct peer *p, struct queue *q)
{
	for (uint32_t i = 0; i < p->queue_count; i++)
		if (p->queues[i] == q) {
			p->queues[i] = p->queues[--p->queue_count];
			return;
		}
}
