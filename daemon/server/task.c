#include "daemon/server/task.h"

#include <stddef.h>

static uint32_t number_of(const struct task_table *table, const struct task *task)
{
	return (uint32_t)(task - table->task);
}

struct task *task_alloc(struct task_table *table)
{
	for (uint32_t word = 0; word < TASK_WORDS; word++) {
		uint64_t used = atomic_load_explicit(&table->used[word], memory_order_relaxed);
		while (~used) {
			uint32_t bit = (uint32_t)__builtin_ctzll(~used);
			if (atomic_compare_exchange_weak_explicit(&table->used[word], &used, used | UINT64_C(1) << bit,
			                                          memory_order_acquire, memory_order_relaxed))
				return &table->task[word * 64 + bit];
		}
	}
	return NULL;
}

void task_free(struct task_table *table, struct task *task)
{
	uint32_t n = number_of(table, task);
	atomic_fetch_and_explicit(&table->used[n / 64], ~(UINT64_C(1) << n % 64),
	                          memory_order_release); // partner: task_alloc's CAS
}

void task_publish(struct task_table *table, struct task *task, uint32_t room)
{
	uint32_t n = number_of(table, task);
	atomic_store_explicit(&task->room, room, memory_order_relaxed);
	atomic_fetch_add_explicit(&task->news, 1, memory_order_relaxed);
	atomic_store_explicit(&task->users, TASK_OPEN, memory_order_release); // partner: task_enter's CAS
	// Sequentially consistent with a parking worker's announcement: see README.md, "Parking".
	atomic_fetch_or(&table->open[n / 64], UINT64_C(1) << n % 64);
}

void task_more(struct task *task, uint32_t room)
{
	atomic_store_explicit(&task->room, room, memory_order_relaxed);
	atomic_fetch_add(&task->news, 1); // as the open bit's above
}

bool task_wants(const struct task *task, uint32_t worker, uint32_t workers)
{
	uint64_t room = atomic_load_explicit(&task->room, memory_order_relaxed);
	uint32_t claimer = atomic_load_explicit(&task->claimer, memory_order_relaxed);
	if (room >= workers || worker == claimer)
		return true;
	uint64_t unit = worker * room / workers;
	return unit != claimer * room / workers && (!worker || unit != (worker - 1) * room / workers);
}

bool task_enter(struct task *task)
{
	uint32_t users = atomic_load_explicit(&task->users, memory_order_relaxed);
	while (users & TASK_OPEN)
		if (atomic_compare_exchange_weak_explicit(&task->users, &users, users + 1, memory_order_acquire,
		                                          memory_order_relaxed))
			return true;
	return false;
}

uint32_t task_find(const struct task_table *table, uint32_t *cursor, uint32_t *looked)
{
	while (*looked < TASKS) {
		uint32_t at = *cursor % TASKS;
		uint64_t rest = atomic_load(&table->open[at / 64]) >> at % 64;
		uint32_t skip = rest ? (uint32_t)__builtin_ctzll(rest) : 64 - at % 64;
		*looked += skip + (rest ? 1 : 0);
		*cursor = (at + skip + (rest ? 1 : 0)) % TASKS;
		if (rest)
			return at + skip;
	}
	return TASKS;
}

void task_shut(struct task_table *table, struct task *task)
{
	uint32_t n = number_of(table, task);
	atomic_fetch_and_explicit(&table->open[n / 64], ~(UINT64_C(1) << n % 64), memory_order_relaxed);
	atomic_fetch_and_explicit(&task->users, ~TASK_OPEN, memory_order_relaxed);
}

bool task_leave(struct task *task)
{
	// Release: what this helper read and wrote comes before the destruction; acquire: the last one sees it.
	return atomic_fetch_sub_explicit(&task->users, 1, memory_order_acq_rel) == 1;
}

uint32_t task_open_count(const struct task_table *table)
{
	uint32_t count = 0;
	for (uint32_t word = 0; word < TASK_WORDS; word++)
		count += (uint32_t)__builtin_popcountll(atomic_load(&table->open[word]));
	return count;
}

uint32_t task_room(const struct task_table *table)
{
	uint32_t room = TASKS;
	for (uint32_t word = 0; word < TASK_WORDS; word++)
		room -= (uint32_t)__builtin_popcountll(atomic_load_explicit(&table->used[word], memory_order_relaxed));
	return room;
}

bool task_any(const struct task_table *table)
{
	for (uint32_t word = 0; word < TASK_WORDS; word++)
		if (atomic_load_explicit(&table->used[word], memory_order_acquire))
			return true;
	return false;
}
