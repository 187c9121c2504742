// Work space that is kept from one job to the next: never handed out twice, and bounded.
#include <check.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/memory.h"
#include "tests/lib/suite.h"

START_TEST(what_was_put_back_comes_again)
{
	struct memory m = {.bytes = 0};
	uint8_t *first = memory_get(&m, 1000);
	ck_assert_ptr_nonnull(first);
	ck_assert_uint_eq((uintptr_t)first % 64, 0);
	memset(first, 0xff, 1000);
	memory_put(&m, first);
	ck_assert_ptr_eq(memory_get(&m, 1024), first); // rounded up to whole lines
	void *second = memory_get(&m, 10);
	ck_assert_ptr_ne(second, first);
	memory_put(&m, second);
	void *larger = memory_get(&m, 4096); // what is kept does not hold it
	ck_assert_ptr_nonnull(larger);
	ck_assert_ptr_ne(larger, second);
	ck_assert_ptr_eq(memory_get(&m, 64), second);
	memory_put(&m, NULL);
	memory_put(&m, first);
	memory_put(&m, second);
	memory_put(&m, larger);
	memory_drop(&m);
	ck_assert_uint_eq(atomic_load(&m.bytes), 0);
}
END_TEST

START_TEST(no_more_is_kept_than_agreed)
{
	struct memory m = {.bytes = 0};
	void *all[3 * MEMORY_KEPT];
	for (size_t i = 0; i < 3 * MEMORY_KEPT; i++)
		ck_assert_ptr_nonnull(all[i] = memory_get(&m, 64));
	for (size_t i = 0; i < 3 * MEMORY_KEPT; i++)
		memory_put(&m, all[i]);
	ck_assert_uint_eq(atomic_load(&m.bytes), MEMORY_KEPT * 64);
	memory_drop(&m);
	for (size_t i = 0; i < 4; i++)
		ck_assert_ptr_nonnull(all[i] = memory_get(&m, MEMORY_KEPT_BYTES / 3));
	for (size_t i = 0; i < 4; i++)
		memory_put(&m, all[i]);
	ck_assert_uint_le(atomic_load(&m.bytes), MEMORY_KEPT_BYTES);
	ck_assert_uint_gt(atomic_load(&m.bytes), MEMORY_KEPT_BYTES / 2);
	memory_drop(&m);
	ck_assert_ptr_null(memory_get(&m, SIZE_MAX - 10));
	ck_assert_uint_eq(atomic_load(&m.bytes), 0);
}
END_TEST

static uint64_t can_give;

static uint64_t available(void)
{
	return can_give;
}

// What many clients ask for at once is not what ends the daemon.
START_TEST(no_more_is_in_use_than_the_machine_has)
{
	struct memory m = {.available = available};
	can_give = 0;
	void *small = memory_get(&m, MEMORY_UNASKED_BYTES / 2), *more = memory_get(&m, MEMORY_UNASKED_BYTES / 4);
	ck_assert(small && more);
	ck_assert_ptr_null(memory_get(&m, MEMORY_UNASKED_BYTES));
	can_give = 4 * MEMORY_UNASKED_BYTES;
	void *large = memory_get(&m, MEMORY_UNASKED_BYTES);
	ck_assert_ptr_nonnull(large);
	ck_assert_ptr_null(memory_get(&m, MEMORY_UNASKED_BYTES));
	memory_put(&m, large);
	large = memory_get(&m, MEMORY_UNASKED_BYTES);
	ck_assert_ptr_nonnull(large);
	memory_put(&m, large);
	memory_put(&m, small);
	memory_put(&m, more);
	ck_assert_uint_eq(atomic_load(&m.used), 0);
	memory_drop(&m);
}
END_TEST

enum { THREADS = 4, TURNS = 20000, HELD = 6 };

struct user {
	struct memory *m;
	uint32_t number;
	pthread_t thread;
	bool torn;
};

// Holds some pieces at a time, each filled with its own mark.
static void *use(void *argument)
{
	struct user *u = argument;
	uint32_t *held[HELD] = {0}, mark[HELD] = {0};
	for (uint32_t turn = 0; turn < TURNS; turn++) {
		uint32_t i = turn % HELD, words = 16 + (turn * 7 + u->number * 13) % 500;
		if (held[i]) {
			for (uint32_t w = 1; w < held[i][0]; w++)
				u->torn |= held[i][w] != mark[i];
			memory_put(u->m, held[i]);
		}
		held[i] = memory_get(u->m, words * sizeof(uint32_t));
		mark[i] = u->number << 24 | turn;
		held[i][0] = words;
		for (uint32_t w = 1; w < words; w++)
			held[i][w] = mark[i];
	}
	for (uint32_t i = 0; i < HELD; i++)
		memory_put(u->m, held[i]);
	return NULL;
}

START_TEST(no_piece_belongs_to_two)
{
	struct memory m = {.bytes = 0};
	struct user user[THREADS];
	for (uint32_t i = 0; i < THREADS; i++) {
		user[i] = (struct user){.m = &m, .number = i};
		ck_assert_int_eq(pthread_create(&user[i].thread, NULL, use, &user[i]), 0);
	}
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(user[i].thread, NULL);
	for (uint32_t i = 0; i < THREADS; i++)
		ck_assert(!user[i].torn);
	memory_drop(&m);
	ck_assert_uint_eq(atomic_load(&m.bytes), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("memory");
	TCase *tests = tcase_create("memory");
	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, what_was_put_back_comes_again);
	tcase_add_test(tests, no_more_is_kept_than_agreed);
	tcase_add_test(tests, no_more_is_in_use_than_the_machine_has);
	tcase_add_test(tests, no_piece_belongs_to_two);
	suite_add_tcase(suite, tests);
	return suite_run(suite);
}
