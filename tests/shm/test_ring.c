// Rings one step at a time: geometry, header check, impossible indices, wraparound, flags. test_ring_circle.c runs them for real.
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "shm/ring.h"
#include "shm/status.h"
#include "tests/lib/suite.h"

#define ENTRIES 8u

static void *region;
static struct mpig_queue_header header;

static struct mpig_queue_header *shared(void)
{
	return region;
}

static void region_setup(void)
{
	ck_assert_int_eq(mpig_queue_geometry(ENTRIES, 4, 4096, &header), MPIG_OK);
	region = aligned_alloc(4096, header.region_bytes);
	ck_assert_ptr_nonnull(region);
	memset(region, 0, header.region_bytes);
	memcpy(region, &header, sizeof(header));
}

static void region_teardown(void)
{
	free(region);
}

START_TEST(geometry_is_laid_out_as_drawn)
{
	struct mpig_queue_header h;
	static const uint32_t counts[] = {1, 2, 32, 64, 128, MPIG_MAX_QUEUE_ENTRIES};
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		ck_assert_int_eq(mpig_queue_geometry(counts[i], 3, 8192, &h), MPIG_OK);
		ck_assert_uint_eq(h.magic, MPIG_QUEUE_MAGIC);
		ck_assert_uint_eq(h.abi_version, MPIG_ABI_VERSION);
		ck_assert_uint_eq(h.entries, counts[i]);
		ck_assert_uint_eq(h.sq_offset, 4096);
		ck_assert_uint_eq(h.cq_offset, 4096 + 64ull * counts[i]);
		ck_assert_uint_eq(h.slots_offset % 4096, 0);
		ck_assert_uint_ge(h.slots_offset, h.cq_offset + 64ull * counts[i]);
		ck_assert_uint_lt(h.slots_offset - (h.cq_offset + 64ull * counts[i]), 4096);
		ck_assert_uint_eq(h.region_bytes, h.slots_offset + 3 * 8192ull);
	}
}
END_TEST

START_TEST(geometry_refuses_what_is_out_of_bounds)
{
	static const struct {
		uint32_t entries, slot_count;
		uint64_t slot_bytes;
		int status;
	} cases[] = {
		{0, 1, 4096, MPIG_EINVAL},
		{3, 1, 4096, MPIG_EINVAL},
		{UINT32_MAX, 1, 4096, MPIG_EINVAL},
		{8, 0, 4096, MPIG_EINVAL},
		{8, 1, 0, MPIG_EINVAL},
		{8, 1, 4095, MPIG_EINVAL},
		{8, 1, 4096 + 64, MPIG_EINVAL},
		{8, 1, UINT64_MAX, MPIG_EINVAL},
		{2 * MPIG_MAX_QUEUE_ENTRIES, 1, 4096, MPIG_ELIMIT},
		{1u << 31, 1, 4096, MPIG_ELIMIT},
		{8, 1, MPIG_MAX_SLOT_BYTES + 4096, MPIG_ELIMIT},
		{8, 1, UINT64_MAX - 4095, MPIG_ELIMIT},
		{8, 4, MPIG_MAX_SLOT_BYTES, MPIG_ELIMIT}, // 4 GiB of slots leave no room for the rings
		{8, UINT32_MAX, MPIG_MAX_SLOT_BYTES, MPIG_ELIMIT},
		{8, UINT32_MAX, 4096, MPIG_ELIMIT},
		{8, 1u << 20, 4096, MPIG_ELIMIT},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mpig_queue_header h = {.magic = 7};
		ck_assert_msg(mpig_queue_geometry(cases[i].entries, cases[i].slot_count, cases[i].slot_bytes, &h) ==
		                      cases[i].status,
		              "case %zu", i);
		ck_assert_uint_eq(h.magic, 7); // outputs only on success
	}
	struct mpig_queue_header h;
	ck_assert_int_eq(mpig_queue_geometry(8, 3, MPIG_MAX_SLOT_BYTES, &h), MPIG_OK);
	ck_assert_int_eq(mpig_queue_geometry(8, (1u << 20) - 2, 4096, &h), MPIG_OK);
	ck_assert_uint_eq(h.region_bytes, MPIG_MAX_REGION_BYTES);
}
END_TEST

START_TEST(header_check_accepts_a_good_header)
{
	struct mpig_queue_header out;
	shared()->epoch = 99;
	shared()->features = UINT64_C(1) << 40; // additions a reader need not know
	shared()->sq_tail = shared()->cq_head = shared()->sq_head = shared()->cq_tail = 0xfffffff0;
	ck_assert_int_eq(mpig_queue_header_check(region, header.region_bytes, &out), MPIG_OK);
	ck_assert_mem_eq(&out, region, sizeof(out));
}
END_TEST

START_TEST(header_check_refuses_every_corrupt_field)
{
	// Every byte of the header but those that may hold anything: features, epoch, the ring words.
	for (size_t at = 0; at < sizeof(header); at++) {
		bool free_byte =
			(at >= offsetof(struct mpig_queue_header, features) &&
		         at < offsetof(struct mpig_queue_header, region_bytes)) ||
			(at >= offsetof(struct mpig_queue_header, epoch) && at < offsetof(struct mpig_queue_header, reserved0)) ||
			(at >= 128 && at < 132) || (at >= 256 && at < 264) || (at >= 384 && at < 392) ||
			(at >= 512 && at < 520) || (at >= 640 && at < 652);
		for (unsigned bit = 0; bit < 8; bit += 7) {
			struct mpig_queue_header out = {.magic = 7};
			uint8_t *byte = (uint8_t *)region + at;
			*byte = (uint8_t)(*byte ^ (1u << bit));
			int status = mpig_queue_header_check(region, header.region_bytes, &out);
			*byte = (uint8_t)(*byte ^ (1u << bit));
			if (free_byte) {
				ck_assert_int_eq(status, MPIG_OK);
				continue;
			}
			bool version = at >= 4 && at < 8;
			ck_assert_msg(status == (version ? MPIG_EVERSION : MPIG_EPROTO), "byte %zu: status %d", at, status);
			ck_assert_uint_eq(out.magic, 7);
		}
	}
}
END_TEST

START_TEST(header_check_refuses_a_wrong_size)
{
	struct mpig_queue_header out;
	static const uint64_t sizes[] = {0, 1, 4095, 4096, UINT64_MAX};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		ck_assert_int_eq(mpig_queue_header_check(region, sizes[i], &out), MPIG_EPROTO);
	ck_assert_int_eq(mpig_queue_header_check(region, header.region_bytes - 4096, &out), MPIG_EPROTO);
	ck_assert_int_eq(mpig_queue_header_check(region, header.region_bytes + 4096, &out), MPIG_EPROTO);
}
END_TEST

// Consistent with itself, but larger than any queue may be.
START_TEST(header_check_refuses_geometry_beyond_the_limits)
{
	struct mpig_queue_header out;
	shared()->entries = 2 * MPIG_MAX_QUEUE_ENTRIES;
	shared()->cq_offset = 4096 + 64ull * shared()->entries;
	shared()->slots_offset = shared()->cq_offset + 64ull * shared()->entries;
	shared()->region_bytes = shared()->slots_offset + 4 * 4096;
	ck_assert_int_eq(mpig_queue_header_check(region, shared()->region_bytes, &out), MPIG_EPROTO);
}
END_TEST

static struct mpig_sqe numbered(uint64_t n)
{
	struct mpig_sqe e;
	memset(&e, (int)(n & 0xff), sizeof(e));
	e.user_data = n;
	return e;
}

static const uint32_t starts[] = {0, 1, 0x7ffffffc, 0xfffffff9, 0xfffffffc, 0xffffffff};

START_TEST(full_and_empty_across_the_end_of_the_numbers)
{
	uint32_t start = starts[_i];
	shared()->sq_tail = shared()->sq_head = start;
	struct mpig_producer sq, cq_daemon;
	struct mpig_consumer daemon_side, cq;
	mpig_client_rings(region, &header, &sq, &cq);
	mpig_daemon_rings(region, &header, &daemon_side, &cq_daemon);
	uint64_t sent = 0, seen = 0;
	for (unsigned round = 0; round < 20; round++) {
		ck_assert_int_eq(mpig_consumer_ready(&daemon_side), 0);
		unsigned burst = 1 + round % ENTRIES;
		for (unsigned i = 0; i < burst; i++) {
			ck_assert_int_ge(mpig_producer_room(&sq), 1);
			struct mpig_sqe e = numbered(sent++);
			mpig_producer_put(&sq, &e);
		}
		ck_assert_int_eq(mpig_consumer_ready(&daemon_side), 0); // not before it is published
		mpig_producer_publish(&sq);
		ck_assert_uint_eq(shared()->sq_tail, (uint32_t)(start + sent));
		ck_assert_int_eq(mpig_consumer_ready(&daemon_side), (int)burst);
		for (unsigned i = 0; i < burst; i++) {
			struct mpig_sqe got, want = numbered(seen++);
			mpig_consumer_take(&daemon_side, &got);
			ck_assert_mem_eq(&got, &want, sizeof(got));
		}
		ck_assert_uint_eq(shared()->sq_head, (uint32_t)(start + sent - burst)); // places are given back by release only
		mpig_consumer_release(&daemon_side);
		ck_assert_uint_eq(shared()->sq_head, (uint32_t)(start + seen));
	}
}
END_TEST

START_TEST(a_full_ring_has_no_room_until_places_are_released)
{
	shared()->cq_tail = shared()->cq_head = starts[_i];
	struct mpig_producer sq, cq_daemon;
	struct mpig_consumer daemon_side, cq;
	mpig_client_rings(region, &header, &sq, &cq);
	mpig_daemon_rings(region, &header, &daemon_side, &cq_daemon);
	struct mpig_cqe e = {.user_data = 5};
	for (int room = (int)ENTRIES; room > 0; room--) {
		ck_assert_int_eq(mpig_producer_room(&cq_daemon), room);
		mpig_producer_put(&cq_daemon, &e);
	}
	ck_assert_int_eq(mpig_producer_room(&cq_daemon), 0);
	mpig_producer_publish(&cq_daemon);
	ck_assert_int_eq(mpig_producer_room(&cq_daemon), 0);
	ck_assert_int_eq(mpig_consumer_ready(&cq), (int)ENTRIES);
	for (int i = 0; i < 3; i++)
		mpig_consumer_take(&cq, &e);
	ck_assert_int_eq(mpig_producer_room(&cq_daemon), 0);
	mpig_consumer_release(&cq);
	ck_assert_int_eq(mpig_producer_room(&cq_daemon), 3);
	ck_assert_int_eq(mpig_consumer_ready(&cq), (int)ENTRIES - 3);
}
END_TEST

enum { BRIEFS = 300000 };

static uint32_t brief_of(uint32_t tail)
{
	return MPIG_CQ_BRIEF(tail * UINT64_C(0x9e3779b97f4a7c15), tail % 3 ? 0 : MPIG_EINVAL);
}

static void *publish_briefs(void *arg)
{
	struct mpig_producer *cq = arg;
	for (int i = 0; i < BRIEFS; i++) {
		cq->next++;
		mpig_producer_publish_brief(cq, brief_of(cq->next));
	}
	return NULL;
}

// Tail and brief are seen together or not at all, and the tail alone is what it is for those who do not know of a brief.
START_TEST(a_brief_is_that_of_its_tail)
{
	typedef uint64_t __attribute__((may_alias)) both_word;
	struct mpig_producer cq_daemon;
	struct mpig_consumer daemon_side;
	uint32_t start = starts[_i], tail = start;
	shared()->cq_tail = start;
	shared()->cq_brief = brief_of(start);
	mpig_daemon_rings(region, &header, &daemon_side, &cq_daemon);
	pthread_t thread;
	ck_assert_int_eq(pthread_create(&thread, NULL, publish_briefs, &cq_daemon), 0);
	while (tail != start + BRIEFS) {
		uint64_t both = __atomic_load_n((const both_word *)(const void *)&shared()->cq_tail, __ATOMIC_ACQUIRE);
		ck_assert_uint_le((uint32_t)both - tail, BRIEFS); // forwards
		tail = (uint32_t)both;
		ck_assert_uint_eq(both >> 32, brief_of(tail));
	}
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_uint_eq(shared()->cq_tail, start + BRIEFS);
	ck_assert_uint_eq(MPIG_CQ_BRIEF(UINT64_C(0xffffffff80000001), 0), 3);
	ck_assert_uint_eq(MPIG_CQ_BRIEF(1, MPIG_EINVAL), 2);
	ck_assert_uint_ne(MPIG_CQ_BRIEF(0, 0), 0); // what a daemon that writes none leaves
}
END_TEST

// The peer's head is looked at only when the known one says full.
START_TEST(room_is_cached)
{
	struct mpig_producer sq;
	struct mpig_consumer cq;
	mpig_client_rings(region, &header, &sq, &cq);
	struct mpig_sqe e = numbered(1);
	ck_assert_int_eq(mpig_producer_room(&sq), (int)ENTRIES);
	mpig_producer_put(&sq, &e);
	shared()->sq_head = 12345; // impossible, but not asked for yet
	for (int room = (int)ENTRIES - 1; room > 0; room--) {
		ck_assert_int_eq(mpig_producer_room(&sq), room);
		mpig_producer_put(&sq, &e);
	}
	ck_assert_int_eq(mpig_producer_room(&sq), MPIG_EPROTO);
}
END_TEST

START_TEST(impossible_indices_are_refused)
{
	uint32_t start = starts[_i];
	static const uint32_t bad[] = {ENTRIES + 1, ENTRIES + 2, 1000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct mpig_producer p, other_p;
		struct mpig_consumer c, other_c;
		shared()->sq_tail = shared()->cq_head = shared()->sq_head = shared()->cq_tail = start;
		mpig_client_rings(region, &header, &p, &other_c);
		mpig_daemon_rings(region, &header, &c, &other_p);
		shared()->sq_tail = start + bad[i];
		ck_assert_int_eq(mpig_consumer_ready(&c), MPIG_EPROTO);
		shared()->sq_head = start - bad[i];
		ck_assert_int_eq(mpig_producer_room(&p), MPIG_EPROTO);
	}
	// The greatest fill that is possible.
	struct mpig_producer p;
	struct mpig_consumer c;
	shared()->sq_tail = shared()->sq_head = start;
	mpig_client_rings(region, &header, &p, &c);
	shared()->sq_head = start - ENTRIES;
	ck_assert_int_eq(mpig_producer_room(&p), 0);
}
END_TEST

// What the peer does to a word we own changes nothing for us.
START_TEST(own_words_are_private)
{
	struct mpig_producer sq, cq_daemon;
	struct mpig_consumer daemon_side, cq;
	mpig_client_rings(region, &header, &sq, &cq);
	mpig_daemon_rings(region, &header, &daemon_side, &cq_daemon);
	struct mpig_sqe e = numbered(3), got;
	mpig_producer_put(&sq, &e);
	mpig_producer_publish(&sq);
	shared()->sq_head = 0xdeadbeef;
	ck_assert_int_eq(mpig_consumer_ready(&daemon_side), 1);
	mpig_consumer_take(&daemon_side, &got);
	mpig_consumer_release(&daemon_side);
	ck_assert_uint_eq(shared()->sq_head, 1);
	ck_assert_mem_eq(&got, &e, sizeof(e));
}
END_TEST

START_TEST(flags)
{
	uint32_t *word = &shared()->sq_flags;
	ck_assert(!mpig_flag_peer(word, MPIG_SQ_NEED_WAKEUP));
	mpig_flag_set(word, MPIG_SQ_NEED_WAKEUP);
	ck_assert(mpig_flag_peer(word, MPIG_SQ_NEED_WAKEUP));
	ck_assert(!mpig_flag_peer(word, MPIG_SQ_CLOSED));
	mpig_flag_set(word, MPIG_SQ_CLOSED);
	ck_assert_uint_eq(*word, MPIG_SQ_NEED_WAKEUP | MPIG_SQ_CLOSED);
	mpig_flag_clear(word, MPIG_SQ_NEED_WAKEUP);
	ck_assert_uint_eq(*word, MPIG_SQ_CLOSED);
	ck_assert(mpig_flag_peer(word, MPIG_SQ_NEED_WAKEUP | MPIG_SQ_CLOSED));
}
END_TEST

int main(void)
{
	const int start_count = (int)(sizeof(starts) / sizeof(starts[0]));
	Suite *suite = suite_create("shm/ring");
	TCase *geometry = tcase_create("geometry");
	tcase_add_checked_fixture(geometry, region_setup, region_teardown);
	tcase_add_test(geometry, geometry_is_laid_out_as_drawn);
	tcase_add_test(geometry, geometry_refuses_what_is_out_of_bounds);
	tcase_add_test(geometry, header_check_accepts_a_good_header);
	tcase_add_test(geometry, header_check_refuses_every_corrupt_field);
	tcase_add_test(geometry, header_check_refuses_a_wrong_size);
	tcase_add_test(geometry, header_check_refuses_geometry_beyond_the_limits);
	suite_add_tcase(suite, geometry);
	TCase *steps = tcase_create("steps");
	tcase_add_checked_fixture(steps, region_setup, region_teardown);
	tcase_add_loop_test(steps, full_and_empty_across_the_end_of_the_numbers, 0, start_count);
	tcase_add_loop_test(steps, a_full_ring_has_no_room_until_places_are_released, 0, start_count);
	tcase_add_test(steps, room_is_cached);
	tcase_add_loop_test(steps, a_brief_is_that_of_its_tail, 0, start_count);
	tcase_add_loop_test(steps, impossible_indices_are_refused, 0, start_count);
	tcase_add_test(steps, own_words_are_private);
	tcase_add_test(steps, flags);
	suite_add_tcase(suite, steps);
	return suite_run(suite);
}
