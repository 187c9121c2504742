// The protocols spoken directly, without the client library: what a hostile or broken client can do.
#ifndef MPIG_TESTS_LIB_WIRE_H
#define MPIG_TESTS_LIB_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/control.h"
#include "shm/ring.h"
#include "tests/lib/daemon.h"

// A connected SOCK_SEQPACKET socket. Nothing has been said yet.
int wire_connect(const struct test_daemon *d);
// Sends one datagram with at most one fd (-1 = none). Returns 0 or -1 (the daemon closed).
int wire_send(int socket, const void *message, size_t bytes, int fd);
// Receives one datagram within 5 s into reply; up to two fds (-1 where none came). Returns its length, 0 if the daemon closed;
// fails the test if nothing came.
ssize_t wire_receive(int socket, void *reply, size_t bytes, int fds[2]);
void wire_header(struct mpig_control_header *h, enum mpig_control_op op, size_t size);
// One request and its reply; the reply's status, or MPIG_ENODAEMON if the daemon closed instead of answering.
int wire_call(int socket, const void *request, size_t bytes, void *reply, size_t reply_bytes);
int wire_hello(int socket);

struct wire_queue {
	void *base;
	struct mpig_queue_header header;
	int region, eventfd;
	uint32_t id;
	struct mpig_producer sq;
	struct mpig_consumer cq;
};
// Creates a queue on a socket that has said HELLO; asserts success.
void wire_queue_open(int socket, uint32_t entries, uint32_t slots, uint64_t slot_bytes, struct wire_queue *q);
void wire_queue_close(struct wire_queue *q);
uint8_t *wire_slot(const struct wire_queue *q, uint32_t slot);
// Puts, publishes, wakes. Needs room.
void wire_submit(struct wire_queue *q, const struct mpig_sqe *entry);
void wire_wake(struct wire_queue *q);
// Waits at most 10 s for the next completion; fails the test otherwise.
struct mpig_cqe wire_complete(struct wire_queue *q);

#endif
