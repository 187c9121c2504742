// A queue without workers: geometry and adoption, the claim, what is taken and refused, and completions.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/server/queue.h"
#include "daemon/server/task.h"
#include "shm/region.h"
#include "shm/status.h"
#include "tests/lib/suite.h"

#define ENTRIES 8u
#define SLOTS 4u
#define SLOT_BYTES 8192u
#define LAST_RESERVED (sizeof((struct mpig_slot_header){0}.reserved) - 1)

static struct session *session;
static struct queue *q;
static int region = -1;
static char why[MPIG_TEXT_BYTES];
static void *base; // the client's mapping
static struct mpig_queue_header header;
static struct mpig_producer sq;
static struct mpig_consumer cq;

static struct queue_options options(int adopt)
{
	return (struct queue_options){.entries = ENTRIES,
	                              .slot_count = SLOTS,
	                              .slot_bytes = SLOT_BYTES,
	                              .epoch = 77,
	                              .max_query_tokens = 16,
	                              .adopt_fd = adopt};
}

static void map_client(void)
{
	uint64_t bytes;
	ck_assert_int_eq(mpig_region_check(region, 0, MPIG_MAX_REGION_BYTES, &bytes), MPIG_OK);
	ck_assert_int_eq(mpig_region_map(region, bytes, 0, &base), MPIG_OK);
	ck_assert_int_eq(mpig_queue_header_check(base, bytes, &header), MPIG_OK);
	mpig_client_rings(base, &header, &sq, &cq);
}

static void setup(void)
{
	session = session_create();
	struct queue_options o = options(-1);
	ck_assert_msg(queue_create(&o, session, &q, &region, why) == MPIG_OK, "%s", why);
	map_client();
}

static void teardown(void)
{
	munmap(base, header.region_bytes);
	queue_destroy(q);
	close(region);
	session_unref(session);
}

static struct mpig_slot_header *client_slot(uint32_t slot)
{
	return (struct mpig_slot_header *)(void *)((uint8_t *)base + header.slots_offset + slot * header.slot_bytes);
}

static void put(const struct mpig_sqe *entry)
{
	ck_assert_int_gt(mpig_producer_room(&sq), 0);
	mpig_producer_put(&sq, entry);
	mpig_producer_publish(&sq);
}

static struct mpig_cqe cqe_of(const struct submission *s, int status)
{
	return (struct mpig_cqe){
		.user_data = s->entry.user_data, .status = status, .slot = s->entry.slot, .sequence = s->sequence};
}

// ---- making ----------------------------------------------------------------------------------------------------------
START_TEST(header_tells_the_geometry)
{
	ck_assert_uint_eq(header.epoch, 77);
	ck_assert_uint_eq(header.entries, ENTRIES);
	ck_assert_uint_eq(header.slot_count, SLOTS);
	ck_assert_uint_eq(header.slot_bytes, SLOT_BYTES);
}
END_TEST

static const struct {
	uint32_t entries, slots;
	uint64_t slot_bytes;
	int status;
} sizes[] = {
	{0, 1, 4096, MPIG_EINVAL},
	{3, 1, 4096, MPIG_EINVAL},
	{8192, 1, 4096, MPIG_ELIMIT},
	{8, 0, 4096, MPIG_EINVAL},
	{8, 1, 4095, MPIG_EINVAL},
	{8, 1, 0, MPIG_EINVAL},
	{8, 1, UINT64_C(1) << 40, MPIG_ELIMIT},
	{8, UINT32_MAX, UINT64_C(1) << 30, MPIG_ELIMIT},
	{8, 1, UINT64_MAX - 4095, MPIG_ELIMIT},
};

START_TEST(wrong_sizes_are_refused)
{
	struct queue_options o = options(-1);
	o.entries = sizes[_i].entries;
	o.slot_count = sizes[_i].slots;
	o.slot_bytes = sizes[_i].slot_bytes;
	struct queue *other = NULL;
	int fd;
	ck_assert_int_eq(queue_create(&o, session, &other, &fd, why), sizes[_i].status);
	ck_assert_ptr_null(other);
	ck_assert_ptr_nonnull(strstr(why, "entries"));
	uint64_t bytes;
	ck_assert_int_eq(queue_region_bytes(&o, &bytes, why), sizes[_i].status);
}
END_TEST

START_TEST(adopts_its_own_old_region)
{
	struct mpig_sqe entry = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	put(&entry);
	client_slot(2)->query_position = 42; // the client's payloads are not touched
	queue_destroy(q);
	struct queue_options o = options(region);
	o.epoch = 78;
	int fd;
	ck_assert_msg(queue_create(&o, session, &q, &fd, why) == MPIG_OK, "%s", why);
	close(fd);
	ck_assert_int_eq(mpig_queue_header_check(base, header.region_bytes, &header), MPIG_OK); // the same memory
	ck_assert_uint_eq(header.epoch, 78);
	ck_assert_uint_eq(client_slot(2)->query_position, 42);
	ck_assert(!queue_pending(q)); // both rings begin anew
	mpig_client_rings(base, &header, &sq, &cq);
	put(&entry);
	ck_assert(queue_pending(q));
}
END_TEST

static int memfd(uint64_t bytes, unsigned seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ck_assert_int_eq(fallocate(fd, 0, 0, (off_t)bytes), 0);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

#define ALL_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
static const struct {
	int more_bytes;
	unsigned seals;
	bool good;
} adoptions[] = {
	{0, ALL_SEALS, true},
	{0, F_SEAL_SHRINK | F_SEAL_GROW, false},
	{0, F_SEAL_SHRINK | F_SEAL_SEAL, false},
	{0, F_SEAL_GROW | F_SEAL_SEAL, false},
	{0, 0, false},
	{0, ALL_SEALS | F_SEAL_WRITE, false},
	{4096, ALL_SEALS, false},
	{-4096, ALL_SEALS, false},
};

START_TEST(adopts_only_what_cannot_shrink_under_it)
{
	int fd = memfd((uint64_t)((int64_t)header.region_bytes + adoptions[_i].more_bytes), adoptions[_i].seals), fd2;
	struct queue_options o = options(fd);
	struct queue *other = NULL;
	int status = queue_create(&o, session, &other, &fd2, why);
	ck_assert_int_eq(status, adoptions[_i].good ? MPIG_OK : MPIG_EINVAL);
	if (status == MPIG_OK) {
		queue_destroy(other);
		close(fd2);
	} else {
		ck_assert_ptr_nonnull(strstr(why, "seals"));
	}
	close(fd);
}
END_TEST

// Who has registered the region with a GPU would go on in pages that are the file's no more.
START_TEST(adopts_no_region_with_missing_pages)
{
	struct queue_options o = options(region);
	struct queue *other = NULL;
	int fd;
	ck_assert_int_eq(madvise((uint8_t *)base + 4096, 4096, MADV_REMOVE), 0);
	ck_assert_int_eq(queue_create(&o, session, &other, &fd, why), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(why, "missing"));
	ck_assert_int_eq(fallocate(region, 0, 0, (off_t)header.region_bytes), 0);
	ck_assert_int_eq(queue_create(&o, session, &other, &fd, why), MPIG_OK);
	queue_destroy(other);
	close(fd);
}
END_TEST

START_TEST(adopts_no_ordinary_file)
{
	char path[] = "/tmp/mpig-test-queue-XXXXXX";
	int fd = mkstemp(path), fd2;
	ck_assert_int_eq(ftruncate(fd, (off_t)header.region_bytes), 0);
	struct queue_options o = options(fd);
	struct queue *other = NULL;
	ck_assert_int_eq(queue_create(&o, session, &other, &fd2, why), MPIG_EINVAL);
	unlink(path);
	close(fd);
}
END_TEST

// ---- claiming --------------------------------------------------------------------------------------------------------
START_TEST(one_claim_at_a_time)
{
	ck_assert(queue_claim(q, 0));
	ck_assert(!queue_claim(q, 0));
	ck_assert(!queue_claim(q, 3));
	queue_release(q);
	ck_assert(queue_claim(q, 3));
	queue_release(q);
}
END_TEST

#define CLAIMS 20000
static uint64_t claimed; // plain: the claim is what guards it

static void *claimer(void *arg)
{
	for (int mine = 0; mine < CLAIMS;)
		if (queue_claim(q, (uint32_t)(uintptr_t)arg)) {
			claimed++;
			mine++;
			queue_release(q);
		} else {
			sched_yield();
		}
	return NULL;
}

START_TEST(the_claim_excludes)
{
	pthread_t threads[3];
	claimed = 0;
	for (uintptr_t i = 0; i < 3; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, claimer, (void *)i), 0);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	ck_assert_uint_eq(claimed, 3 * CLAIMS);
}
END_TEST

// ---- taking ----------------------------------------------------------------------------------------------------------
START_TEST(an_entry_is_copied_once)
{
	struct mpig_sqe entry = {.op = MPIG_OP_ATTEND, .slot = 1, .count = 1, .user_data = 5};
	client_slot(1)->query_position = 9;
	put(&entry);
	struct submission *s = queue_next(q);
	ck_assert_ptr_nonnull(s);
	// Rewritten by the client after it was taken: nothing changes.
	struct mpig_sqe *raw = (struct mpig_sqe *)(void *)((uint8_t *)base + header.sq_offset);
	raw->op = 0xff;
	client_slot(1)->query_position = 10;
	client_slot(1)->present = UINT32_MAX;
	ck_assert_ptr_eq(queue_next(q), s); // the same one until it is done
	ck_assert_uint_eq(s->entry.op, MPIG_OP_ATTEND);
	ck_assert_uint_eq(s->slot.query_position, 9);
	ck_assert_int_eq(queue_check(q, s), MPIG_OK);
	ck_assert(queue_pending(q));
	queue_next_done(q);
	ck_assert(!queue_pending(q));
	ck_assert_ptr_null(queue_next(q));
}
END_TEST

START_TEST(sequence_counts_entries)
{
	struct mpig_sqe entry = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	for (uint64_t i = 0; i < 3 * ENTRIES; i++) {
		put(&entry);
		struct submission *s = queue_next(q);
		ck_assert_ptr_nonnull(s);
		ck_assert_uint_eq(s->sequence, i);
		struct mpig_cqe done = cqe_of(s, 0), seen;
		queue_complete(q, &done, NULL);
		queue_next_done(q);
		ck_assert_int_eq(mpig_consumer_ready(&cq), 1);
		mpig_consumer_take(&cq, &seen);
		mpig_consumer_release(&cq);
		ck_assert_uint_eq(seen.sequence, i);
	}
}
END_TEST

static const struct bad_entry {
	const char *what;
	struct mpig_sqe entry;
	struct mpig_slot_header slot;
	int status;
} bad_entries[] = {
	{"good attend", {.op = MPIG_OP_ATTEND, .count = 16, .budget = 1}, {0}, MPIG_OK},
	{"good append",
         {.op = MPIG_OP_APPEND, .count = 1, .dtype = MPIG_F16},
         {.present = MPIG_HAS_QUERIES, .query_count = 4},
         MPIG_OK},
	{"good commit", {.op = MPIG_OP_COMMIT, .count = 1, .flags = MPIG_SQE_SEAL}, {0}, MPIG_OK},
	{"good empty commit", {.op = MPIG_OP_COMMIT, .slot = MPIG_NO_SLOT}, {0}, MPIG_OK},
	{"good truncate", {.op = MPIG_OP_TRUNCATE, .slot = MPIG_NO_SLOT}, {0}, MPIG_OK},
	{"good read", {.op = MPIG_OP_READ, .count = 1}, {0}, MPIG_OK},
	{"operation", {.op = MPIG_OP_COUNT}, {0}, MPIG_EPROTO},
	{"operation", {.op = 255}, {0}, MPIG_EPROTO},
	{"unknown flag", {.op = MPIG_OP_ATTEND, .count = 1, .flags = 0x10}, {0}, MPIG_EPROTO},
	{"another's flag", {.op = MPIG_OP_APPEND, .count = 1, .flags = MPIG_SQE_SEAL}, {0}, MPIG_EINVAL},
	{"another's flag", {.op = MPIG_OP_COMMIT, .count = 1, .flags = MPIG_SQE_CAUSAL}, {0}, MPIG_EINVAL},
	{"reserved0", {.op = MPIG_OP_NOP, .reserved0 = 1}, {0}, MPIG_EPROTO},
	{"reserved1", {.op = MPIG_OP_NOP, .reserved1 = UINT64_C(1) << 63}, {0}, MPIG_EPROTO},
	{"slot", {.op = MPIG_OP_ATTEND, .count = 1, .slot = SLOTS}, {0}, MPIG_EPROTO},
	{"slot", {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT - 1}, {0}, MPIG_EPROTO},
	{"no slot", {.op = MPIG_OP_ATTEND, .count = 1, .slot = MPIG_NO_SLOT}, {0}, MPIG_EINVAL},
	{"no slot", {.op = MPIG_OP_APPEND, .count = 1, .slot = MPIG_NO_SLOT}, {0}, MPIG_EINVAL},
	{"no slot", {.op = MPIG_OP_COMMIT, .count = 1, .slot = MPIG_NO_SLOT}, {0}, MPIG_EINVAL},
	{"reserved in the slot", {.op = MPIG_OP_ATTEND, .count = 1}, {.reserved = {[83] = 1}}, MPIG_EPROTO},
	{"unknown part", {.op = MPIG_OP_ATTEND, .count = 1}, {.present = MPIG_PRESENT_FLAGS + 1}, MPIG_EPROTO},
	{"another's part", {.op = MPIG_OP_ATTEND, .count = 1}, {.present = MPIG_HAS_QUERIES}, MPIG_EINVAL},
	{"another's part", {.op = MPIG_OP_APPEND, .count = 1}, {.present = MPIG_HAS_WINDOW_LSE}, MPIG_EINVAL},
	{"dtype", {.op = MPIG_OP_ATTEND, .count = 1, .dtype = MPIG_I8}, {0}, MPIG_EINVAL},
	{"dtype", {.op = MPIG_OP_APPEND, .count = 1, .dtype = 200}, {0}, MPIG_EINVAL},
	{"proposal", {.op = MPIG_OP_ATTEND, .count = 1, .proposal = MPIG_PROPOSAL_COUNT}, {0}, MPIG_EINVAL},
	{"proposal of another operation", {.op = MPIG_OP_APPEND, .count = 1, .proposal = 1}, {0}, MPIG_EINVAL},
	{"layer of an operation without", {.op = MPIG_OP_COMMIT, .count = 1, .layer = 1}, {0}, MPIG_EINVAL},
	{"no query token", {.op = MPIG_OP_ATTEND}, {0}, MPIG_EINVAL},
	{"too many query tokens", {.op = MPIG_OP_ATTEND, .count = 17}, {0}, MPIG_ELIMIT},
	{"budget", {.op = MPIG_OP_ATTEND, .count = 1, .budget = 1.01f}, {0}, MPIG_EINVAL},
	{"budget", {.op = MPIG_OP_ATTEND, .count = 1, .budget = -.1f}, {0}, MPIG_EINVAL},
	{"budget", {.op = MPIG_OP_ATTEND, .count = 1, .budget = __builtin_nanf("")}, {0}, MPIG_EINVAL},
};

START_TEST(entries_are_checked)
{
	const struct bad_entry *bad = &bad_entries[_i];
	if (bad->entry.slot < SLOTS)
		*client_slot(bad->entry.slot) = bad->slot;
	put(&bad->entry);
	struct submission *s = queue_next(q);
	ck_assert_ptr_nonnull(s);
	int status = queue_check(q, s);
	ck_assert_msg(status == bad->status, "%s: %s, not %s", bad->what, mpig_status_name(status),
	              mpig_status_name(bad->status));
}
END_TEST

START_TEST(an_impossible_tail_breaks_the_queue)
{
	struct mpig_queue_header *h = base;
	__atomic_store_n(&h->sq_tail, ENTRIES + 1, __ATOMIC_RELEASE);
	ck_assert(queue_pending(q));
	ck_assert_ptr_null(queue_next(q));
	ck_assert(atomic_load(&q->broken));
	__atomic_store_n(&h->sq_tail, 1, __ATOMIC_RELEASE);
	ck_assert_ptr_null(queue_next(q)); // it stays so
}
END_TEST

START_TEST(an_impossible_completion_head_breaks_the_queue)
{
	struct mpig_queue_header *h = base;
	struct mpig_sqe entry = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	put(&entry);
	__atomic_store_n(&h->cq_head, 1, __ATOMIC_RELEASE); // nothing was completed yet
	ck_assert_ptr_null(queue_next(q));
	ck_assert(atomic_load(&q->broken));
}
END_TEST

START_TEST(completions_never_overrun)
{
	struct mpig_sqe entry = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	uint32_t answered = 0;
	for (uint32_t i = 0; i < 2 * ENTRIES; i++) { // a client that submits and does not reap
		if (mpig_producer_room(&sq) > 0)
			put(&entry);
		struct submission *s = queue_next(q);
		if (!s)
			continue;
		struct mpig_cqe done = cqe_of(s, 0);
		queue_complete(q, &done, NULL);
		queue_next_done(q);
		answered++;
	}
	ck_assert_uint_eq(answered, ENTRIES);
	ck_assert(queue_pending(q)); // the rest waits in the submission ring
	struct mpig_cqe seen;
	mpig_consumer_take(&cq, &seen);
	mpig_consumer_release(&cq);
	ck_assert_ptr_nonnull(queue_next(q)); // one place, one entry
	struct mpig_cqe done = cqe_of(queue_next(q), 0);
	queue_complete(q, &done, NULL);
	queue_next_done(q);
	ck_assert_ptr_null(queue_next(q));
	ck_assert(!atomic_load(&q->broken));
}
END_TEST

START_TEST(requests_in_flight_keep_their_places)
{
	struct mpig_sqe entry = {.op = MPIG_OP_ATTEND, .slot = 0, .count = 1};
	static struct task tasks[ENTRIES];
	static struct binding binding;
	for (uint32_t i = 0; i < ENTRIES; i++) {
		put(&entry);
		ck_assert_ptr_nonnull(queue_next(q));
		tasks[i].binding = &binding;
		queue_fly(q, &tasks[i]);
		queue_next_done(q);
	}
	put(&entry);
	ck_assert_ptr_null(queue_next(q)); // every place of the completion ring is promised
	struct mpig_cqe done = {0}, seen;
	queue_complete(q, &done, &tasks[3]);
	ck_assert_ptr_null(queue_next(q));
	mpig_consumer_take(&cq, &seen);
	mpig_consumer_release(&cq);
	ck_assert_ptr_nonnull(queue_next(q));
	ck_assert_uint_eq(q->flying_count, ENTRIES - 1);
}
END_TEST

START_TEST(writes_wait_on_their_context_only)
{
	static struct task read_task, write_task;
	static struct binding reading, writing;
	reading.context = (struct context *)0x1000;
	writing.context = (struct context *)0x2000;
	read_task = (struct task){.binding = &reading};
	write_task = (struct task){.binding = &writing, .writes = true};
	queue_fly(q, &read_task);
	queue_fly(q, &write_task);
	ck_assert(!queue_conflicts(q, reading.context, false));
	ck_assert(queue_conflicts(q, reading.context, true));
	ck_assert(queue_conflicts(q, writing.context, false));
	ck_assert(queue_conflicts(q, writing.context, true));
	ck_assert(!queue_conflicts(q, (struct context *)0x3000, true));
	struct mpig_cqe done = {0};
	queue_complete(q, &done, &write_task);
	ck_assert(!queue_conflicts(q, writing.context, true));
	queue_complete(q, &done, &read_task);
	ck_assert(!queue_conflicts(q, reading.context, true));
}
END_TEST

START_TEST(closing_tells_the_client)
{
	struct mpig_queue_header *h = base;
	struct mpig_sqe entry = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT};
	queue_need_wakeup(q, true);
	ck_assert_uint_eq(h->sq_flags, MPIG_SQ_NEED_WAKEUP);
	put(&entry);
	queue_close(q);
	ck_assert_uint_eq(h->sq_flags, MPIG_SQ_NEED_WAKEUP | MPIG_SQ_CLOSED);
	queue_need_wakeup(q, false);
	ck_assert_uint_eq(h->sq_flags, MPIG_SQ_CLOSED);
	ck_assert_ptr_null(queue_next(q));
}
END_TEST

// ---- handles ---------------------------------------------------------------------------------------------------------
START_TEST(handles_have_limits)
{
	ck_assert_int_eq(session_free_handle(session, 0), MPIG_OK);
	ck_assert_int_eq(session_free_handle(session, MPIG_MAX_HANDLES - 1), MPIG_OK);
	ck_assert_int_eq(session_free_handle(session, MPIG_MAX_HANDLES), MPIG_ELIMIT);
	ck_assert_int_eq(session_unbind(session, 7), MPIG_ENOENT);
	ck_assert_ptr_null(session_get(session, 7));
	ck_assert_ptr_null(session_get(session, UINT32_MAX));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("queue");
	TCase *t = tcase_create("queue");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, header_tells_the_geometry);
	tcase_add_loop_test(t, wrong_sizes_are_refused, 0, sizeof sizes / sizeof sizes[0]);
	tcase_add_test(t, adopts_its_own_old_region);
	tcase_add_loop_test(t, adopts_only_what_cannot_shrink_under_it, 0, sizeof adoptions / sizeof adoptions[0]);
	tcase_add_test(t, adopts_no_region_with_missing_pages);
	tcase_add_test(t, adopts_no_ordinary_file);
	tcase_add_test(t, one_claim_at_a_time);
	tcase_add_test(t, the_claim_excludes);
	tcase_add_test(t, an_entry_is_copied_once);
	tcase_add_test(t, sequence_counts_entries);
	tcase_add_loop_test(t, entries_are_checked, 0, sizeof bad_entries / sizeof bad_entries[0]);
	tcase_add_test(t, an_impossible_tail_breaks_the_queue);
	tcase_add_test(t, an_impossible_completion_head_breaks_the_queue);
	tcase_add_test(t, completions_never_overrun);
	tcase_add_test(t, requests_in_flight_keep_their_places);
	tcase_add_test(t, writes_wait_on_their_context_only);
	tcase_add_test(t, closing_tells_the_client);
	tcase_add_test(t, handles_have_limits);
	suite_add_tcase(s, t);
	return suite_run(s);
}
