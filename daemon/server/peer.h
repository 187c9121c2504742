// A connection: who it is, what it has open, which queues are its. Control thread only.
#ifndef MPIG_SERVER_PEER_H
#define MPIG_SERVER_PEER_H

#include "daemon/server/server.h"
#include "shm/control.h"

struct peer {
	struct server *server;
	struct peer *next, *previous;
	int fd, pidfd; // pidfd -1: the kernel gave none; then the socket's end tells
	struct loop_source *messages, *death;
	uint64_t id, connected_ns; // unique while the daemon runs; CLOCK_REALTIME
	uint32_t place;            // in the statistics, from its first queue on
	char command[MPIG_COMMAND_BYTES];
	struct credentials who; // of the process that connected, groups included
	uint32_t *groups;
	struct session *session;
	struct queue **queues;
	uint32_t queue_count, queue_capacity;
	uint64_t loading; // a job that brings back the context it wants to open; 0: none
	char loading_name[MPIG_NAME_BYTES];
	struct peer **
		awaited; // the pointer to this peer of the answer that comes later (one at a time), NULL: none; cleared when the peer goes
	bool greeted; // its HELLO was accepted
	// Over a limit on connections: the first message is answered with why, then it is closed.
	enum peer_refused { PEER_ADMITTED, PEER_OVER_UID, PEER_OVER_GID } refused;
};

// Takes over the fd.
void peer_accept(struct server *s, int fd);
// Frees the peer's queues, handles and leases; nothing else. The struct is freed by this call.
void peer_close(struct peer *p, const char *reason);
// Whether it may look after the daemon and what belongs to others: root, the user the daemon runs as, and the group daemon.admin_group.
bool peer_administers(const struct peer *p);
void peer_find_administrators(struct server *s);     // again, after admin_gid has changed
int peer_add_queue(struct peer *p, struct queue *q); // MPIG_ENOMEM
struct queue *peer_queue(struct peer *p, uint32_t id);
void peer_forget_queue(struct peer *p, struct queue *q);

// ---- control messages (control.c) ------------------------------------------------------------------------------------
// One request: a private copy in the peer's buffer.
struct request {
	const struct mpig_control_header *header;
	size_t bytes;
	int *fds;
	uint32_t fd_count;
	char why[MPIG_TEXT_BYTES];
};
// Answers one message. False: malformed framing, or the peer does not read; close it.
bool control_handle(struct peer *p, struct loop_message *message);

// An operation: sends its own reply, or has begun what ends in control_answer_later, and returns 0; or returns a status and fills why.
typedef int control_fn(struct peer *p, struct request *r);
control_fn control_queue_create, control_queue_destroy;
control_fn control_create, control_open, control_open_prefix, control_close, control_drop, control_list, control_show,
	control_fork, control_chmod, control_verify, control_heads, control_reindex, control_disk, control_saved, control_evict,
	control_policy, control_signature, control_stream;
control_fn control_clients, control_kill, control_quota, control_drain, control_trace, control_profile, control_queries;
control_fn control_hello, control_ping, control_status, control_config_get, control_configure;

// The context is not in memory: MPIG_EAGAIN if it is on disk and is being loaded (r->why says how far), why loading failed, or MPIG_ENOENT
// with r->why left alone.
int control_load(struct peer *p, struct request *r, const char *name);
// Whether the user may have so many bytes more shared with the daemon: 0 or MPIG_EQUOTA.
int control_check_region(struct peer *p, struct request *r, const struct account *a, uint64_t bytes, const char *advice);
// Fills the reply's header and sends it. 0, or a status after which the peer is closed (it does not read).
int control_reply(struct peer *p, const struct request *r, void *reply, size_t bytes, const int *fds, uint32_t fd_count);
// Answers a request whose operation has returned 0 without a reply: with this one, or with a status and why. Closes a peer that does not read.
void control_answer_later(struct peer *p, const struct mpig_control_header *request, int status, const char *why, void *reply,
                          size_t bytes);
int control_fail(struct request *r, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
