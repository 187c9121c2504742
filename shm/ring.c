#include "ring.h"

#include <string.h>

#include "shm/zero.h"
#include "status.h"

#define ENTRY_BYTES 64u
#define ENTRY_WORDS (ENTRY_BYTES / sizeof(uint64_t))

static_assert(sizeof(struct mpig_sqe) == ENTRY_BYTES && sizeof(struct mpig_cqe) == ENTRY_BYTES, "one entry, one cache line");
static_assert(offsetof(struct mpig_queue_header, cq_waiting) == 260 && offsetof(struct mpig_queue_header, sq_flags) == 388,
              "flag words lie on their owner's line");

// An entry in the region: its peer may rewrite it at any time, so it is moved by atomic words, each touched exactly once.
typedef uint64_t __attribute__((may_alias)) entry_word;

static uint8_t *at(void *base, uint64_t offset)
{
	return (uint8_t *)base + offset;
}

static void producer_init(struct mpig_producer *p, uint32_t *tail, const uint32_t *peer_head, uint8_t *entries, uint32_t count)
{
	uint32_t next = __atomic_load_n(tail, __ATOMIC_RELAXED);
	// Begins as if full, so that the first look at the room reads and checks the peer's head.
	*p = (struct mpig_producer){.tail = tail,
	                            .peer_head = peer_head,
	                            .entries = entries,
	                            .mask = count - 1,
	                            .next = next,
	                            .known_head = next - count};
}

static void consumer_init(struct mpig_consumer *c, uint32_t *head, const uint32_t *peer_tail, const uint8_t *entries,
                          uint32_t count)
{
	uint32_t next = __atomic_load_n(head, __ATOMIC_RELAXED);
	*c = (struct mpig_consumer){.head = head, .peer_tail = peer_tail, .entries = entries, .mask = count - 1, .next = next};
}

void mpig_client_rings(void *base, const struct mpig_queue_header *checked, struct mpig_producer *sq, struct mpig_consumer *cq)
{
	struct mpig_queue_header *shared = base;
	producer_init(sq, &shared->sq_tail, &shared->sq_head, at(base, checked->sq_offset), checked->entries);
	consumer_init(cq, &shared->cq_head, &shared->cq_tail, at(base, checked->cq_offset), checked->entries);
}

void mpig_daemon_rings(void *base, const struct mpig_queue_header *checked, struct mpig_consumer *sq, struct mpig_producer *cq)
{
	struct mpig_queue_header *shared = base;
	consumer_init(sq, &shared->sq_head, &shared->sq_tail, at(base, checked->sq_offset), checked->entries);
	producer_init(cq, &shared->cq_tail, &shared->cq_head, at(base, checked->cq_offset), checked->entries);
}

int mpig_producer_room(struct mpig_producer *p)
{
	uint32_t count = p->mask + 1;
	if (p->next - p->known_head == count) {
		// A3, partner of the peer's R2: what it read from the place is read before we overwrite it.
		uint32_t peer_head = __atomic_load_n(p->peer_head, __ATOMIC_ACQUIRE);
		if (p->next - peer_head > count)
			return MPIG_EPROTO;
		p->known_head = peer_head;
	}
	return (int)(count - (p->next - p->known_head));
}

void mpig_producer_put(struct mpig_producer *p, const void *entry)
{
	uint64_t words[ENTRY_WORDS];
	memcpy(words, entry, ENTRY_BYTES);
	entry_word *place = (entry_word *)(void *)(p->entries + (uint64_t)(p->next & p->mask) * ENTRY_BYTES);
	for (size_t i = 0; i < ENTRY_WORDS; i++)
		__atomic_store_n(&place[i], words[i], __ATOMIC_RELAXED); // ordered by R0
	p->next++;
}

void mpig_producer_publish(struct mpig_producer *p)
{
	__atomic_store_n(p->tail, p->next, __ATOMIC_RELEASE); // R0, partner of the peer's A1
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && offsetof(struct mpig_queue_header, cq_tail) % 8 == 0 &&
                      offsetof(struct mpig_queue_header, cq_brief) == offsetof(struct mpig_queue_header, cq_tail) + 4,
              "tail and brief are the halves of an aligned word");

void mpig_producer_publish_brief(struct mpig_producer *p, uint32_t brief)
{
	entry_word *both = (entry_word *)(void *)p->tail;
	__atomic_store_n(both, (uint64_t)brief << 32 | p->next, __ATOMIC_RELEASE); // R0, partner of the peer's A1 of either width
}

int mpig_consumer_ready(struct mpig_consumer *c)
{
	uint32_t peer_tail = __atomic_load_n(c->peer_tail, __ATOMIC_ACQUIRE); // A1, partner of the peer's R0
	uint32_t ready = peer_tail - c->next;
	return ready > c->mask + 1 ? MPIG_EPROTO : (int)ready;
}

void mpig_consumer_take(struct mpig_consumer *c, void *entry)
{
	uint64_t words[ENTRY_WORDS];
	const entry_word *place = (const entry_word *)(const void *)(c->entries + (uint64_t)(c->next & c->mask) * ENTRY_BYTES);
	for (size_t i = 0; i < ENTRY_WORDS; i++)
		words[i] = __atomic_load_n(&place[i], __ATOMIC_RELAXED); // ordered by A1 before, R2 after
	memcpy(entry, words, ENTRY_BYTES);
	c->next++;
}

void mpig_consumer_release(struct mpig_consumer *c)
{
	__atomic_store_n(c->head, c->next, __ATOMIC_RELEASE); // R2, partner of the peer's A3
}

// The one StoreLoad fence of the protocol. ThreadSanitizer does not model fences and gcc says so; F4 and F5 order no plain
// data (R0 and A1 do), so nothing is hidden from it.
static void full_fence(void)
{
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
}

void mpig_flag_set(uint32_t *flags, uint32_t bits)
{
	uint32_t mine = __atomic_load_n(flags, __ATOMIC_RELAXED);
	__atomic_store_n(flags, mine | bits, __ATOMIC_RELAXED);
	full_fence(); // F5, partner of the peer's F4
}

void mpig_flag_clear(uint32_t *flags, uint32_t bits)
{
	uint32_t mine = __atomic_load_n(flags, __ATOMIC_RELAXED);
	__atomic_store_n(flags, mine & ~bits, __ATOMIC_RELAXED); // read late costs the peer one needless wake-up
}

bool mpig_flag_peer(const uint32_t *peer_flags, uint32_t bits)
{
	full_fence(); // F4, partner of the peer's F5
	return (__atomic_load_n(peer_flags, __ATOMIC_RELAXED) & bits) != 0;
}

int mpig_queue_geometry(uint32_t entries, uint32_t slot_count, uint64_t slot_bytes, struct mpig_queue_header *out)
{
	if (!entries || (entries & (entries - 1)) || !slot_count || !slot_bytes || slot_bytes % 4096)
		return MPIG_EINVAL;
	if (entries > MPIG_MAX_QUEUE_ENTRIES || slot_bytes > MPIG_MAX_SLOT_BYTES)
		return MPIG_ELIMIT;
	uint64_t ring_bytes = (uint64_t)entries * ENTRY_BYTES;
	uint64_t slots_offset = (MPIG_QUEUE_HEADER_BYTES + 2 * ring_bytes + 4095) / 4096 * 4096;
	uint64_t region_bytes = slots_offset + slot_count * slot_bytes; // < 2^20 + 2^32 * 2^30
	if (region_bytes > MPIG_MAX_REGION_BYTES)
		return MPIG_ELIMIT;
	*out = (struct mpig_queue_header){
		.magic = MPIG_QUEUE_MAGIC,
		.abi_version = MPIG_ABI_VERSION,
		.features = MPIG_FEATURES,
		.region_bytes = region_bytes,
		.entries = entries,
		.slot_count = slot_count,
		.slot_bytes = slot_bytes,
		.sq_offset = MPIG_QUEUE_HEADER_BYTES,
		.cq_offset = MPIG_QUEUE_HEADER_BYTES + ring_bytes,
		.slots_offset = slots_offset,
	};
	return MPIG_OK;
}

static bool reserved_zero(const struct mpig_queue_header *h)
{
	return mpig_all_zero(h->reserved0, sizeof(h->reserved0)) && mpig_all_zero(h->reserved1, sizeof(h->reserved1)) &&
	       mpig_all_zero(h->reserved2, sizeof(h->reserved2)) && mpig_all_zero(h->reserved3, sizeof(h->reserved3)) &&
	       mpig_all_zero(h->reserved4, sizeof(h->reserved4)) && mpig_all_zero(h->reserved5, sizeof(h->reserved5)) &&
	       mpig_all_zero(h->reserved6, sizeof(h->reserved6));
}

// Copies the header once, word by word: the peer may be running, and what is checked must be what is used.
static void header_copy(const void *base, struct mpig_queue_header *out)
{
	const entry_word *shared = base;
	uint64_t words[sizeof(*out) / sizeof(uint64_t)];
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		words[i] = __atomic_load_n(&shared[i], __ATOMIC_RELAXED);
	memcpy(out, words, sizeof(*out));
}

int mpig_queue_header_check(const void *base, uint64_t region_bytes, struct mpig_queue_header *out)
{
	struct mpig_queue_header h, expected;
	if (region_bytes < MPIG_QUEUE_HEADER_BYTES)
		return MPIG_EPROTO;
	header_copy(base, &h);
	if (h.magic != MPIG_QUEUE_MAGIC)
		return MPIG_EPROTO;
	if (h.abi_version != MPIG_ABI_VERSION)
		return MPIG_EVERSION;
	if (mpig_queue_geometry(h.entries, h.slot_count, h.slot_bytes, &expected) != MPIG_OK)
		return MPIG_EPROTO;
	if (h.region_bytes != region_bytes || h.region_bytes != expected.region_bytes || h.sq_offset != expected.sq_offset ||
	    h.cq_offset != expected.cq_offset || h.slots_offset != expected.slots_offset || !reserved_zero(&h))
		return MPIG_EPROTO;
	*out = h;
	return MPIG_OK;
}
