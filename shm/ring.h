// The two SPSC rings of a queue. io_uring's ordering; the named edges:
//
//   R0 producer: store tail, release          publishes the entry (and the slot it names)
//   A1 consumer: load tail, acquire           sees them
//   R2 consumer: store head, release          gives the entry's place back
//   A3 producer: load head, acquire           may overwrite it
//   F4 producer: full fence after R0, before it looks at NEED_WAKEUP (cq: cq_waiting)
//   F5 consumer: full fence after it sets NEED_WAKEUP (cq_waiting), before it looks at the tail again and sleeps
//   F4 and F5 together: either the producer sees the flag, or the consumer sees the entry. Never neither.
//
// Words the peer writes have the prefix peer_ where they are read; each is read once into a local. Head and tail run freely
// modulo 2^32; a peer's word is believed only if tail - head <= entries, otherwise the ring is broken (MPIG_EPROTO) and
// its queue is to be closed. One thread on each side; the structs are private to the process.
#ifndef MPIG_SHM_RING_H
#define MPIG_SHM_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

struct mpig_producer {
	uint32_t *tail; // ours, in the region
	const uint32_t *peer_head;
	uint8_t *entries; // 64-byte entries
	uint32_t mask;
	uint32_t next;       // private copy of tail, not yet published entries included
	uint32_t known_head; // last believed peer_head
};

struct mpig_consumer {
	uint32_t *head; // ours, in the region
	const uint32_t *peer_tail;
	const uint8_t *entries;
	uint32_t mask;
	uint32_t next; // private copy of head
};

// Both sides of a queue's region. `base` stays mapped as long as they are used; geometry comes from a checked header.
void mpig_client_rings(void *base, const struct mpig_queue_header *checked, struct mpig_producer *sq, struct mpig_consumer *cq);
void mpig_daemon_rings(void *base, const struct mpig_queue_header *checked, struct mpig_consumer *sq, struct mpig_producer *cq);

// Free places: 0 = full; MPIG_EPROTO if the peer's head is impossible.
int mpig_producer_room(struct mpig_producer *p);
// Writes one 64-byte entry at the next place. Needs room. Not visible before mpig_producer_publish.
void mpig_producer_put(struct mpig_producer *p, const void *entry);
void mpig_producer_publish(struct mpig_producer *p); // R0
// The same where a word follows the tail that is to be seen with it (cq_brief): one 64-bit store. R0
void mpig_producer_publish_brief(struct mpig_producer *p, uint32_t brief);
// Entries ready: MPIG_EPROTO if the peer's tail is impossible. A1.
int mpig_consumer_ready(struct mpig_consumer *c);
// Copies the next entry out. Needs one ready. The place is given back by mpig_consumer_release.
void mpig_consumer_take(struct mpig_consumer *c, void *entry);
void mpig_consumer_release(struct mpig_consumer *c); // R2

// Flag words (sq_flags, cq_waiting): set/clear by their owner; `peer` reads follow F4.
void mpig_flag_set(uint32_t *flags, uint32_t bits); // then a full fence: F5
void mpig_flag_clear(uint32_t *flags, uint32_t bits);
bool mpig_flag_peer(const uint32_t *peer_flags, uint32_t bits); // full fence first: F4

// Geometry. Fills the header's geometry for the given sizes; MPIG_EINVAL / MPIG_ELIMIT where they are out of bounds
// (entries a power of two in [1, MPIG_MAX_QUEUE_ENTRIES], slot_bytes a multiple of 4096, region <= MPIG_MAX_REGION_BYTES).
int mpig_queue_geometry(uint32_t entries, uint32_t slot_count, uint64_t slot_bytes, struct mpig_queue_header *out);
// Copies the header out of a mapped region and checks every field against `region_bytes`. 0, MPIG_EVERSION or MPIG_EPROTO.
int mpig_queue_header_check(const void *base, uint64_t region_bytes, struct mpig_queue_header *out);

#endif
