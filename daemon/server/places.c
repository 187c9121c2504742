#include "daemon/server/places.h"

#include "daemon/base/clock.h"
#include "daemon/server/stats.h"

#define USE_WORDS (sizeof(struct mpig_stats_use) / sizeof(uint64_t))

static struct mpig_stats_place *directory(const struct places *p)
{
	return p->kind == PLACES_CONTEXTS ? p->stats->context : p->stats->client;
}

void places_init(struct places *p, struct mpig_stats *stats, enum places_kind kind)
{
	*p = (struct places){.stats = stats, .kind = kind};
	for (uint32_t i = 0; i < MPIG_STATS_PLACES; i++)
		atomic_init(&p->users[i], 0);
}

static struct mpig_stats_use sum(const struct places *p, uint32_t place)
{
	struct mpig_stats_use all = {0};
	uint64_t *to = (uint64_t *)&all;
	for (uint64_t w = 0; w < p->stats->workers; w++) {
		const struct mpig_stats_worker *worker = &p->stats->worker[w];
		const uint64_t *from =
			(const uint64_t *)(p->kind == PLACES_CONTEXTS ? &worker->context[place] : &worker->client[place]);
		for (size_t i = 0; i < USE_WORDS; i++)
			to[i] += stats_get(&from[i]);
	}
	return all;
}

struct mpig_stats_use places_use(const struct places *p, uint32_t place)
{
	struct mpig_stats_use use = sum(p, place);
	uint64_t *to = (uint64_t *)&use;
	const uint64_t *before = (const uint64_t *)&directory(p)[place].before;
	for (size_t i = 0; i < USE_WORDS; i++)
		to[i] -= before[i];
	return use;
}

// The newcomer's numbers, between two steps of the sequence, for readers who hold no lock.
static void move_in(struct places *p, uint32_t place, uint64_t id, uint32_t uid, uint32_t pid)
{
	struct mpig_stats_place *at = &directory(p)[place];
	struct mpig_stats_use before = sum(p, place);
	uint64_t sequence = at->sequence;
	stats_set(&at->sequence, sequence + 1);
	atomic_thread_fence(memory_order_release);
	stats_set(&at->id, id);
	stats_set(&at->uid, uid);
	stats_set(&at->pid, pid);
	stats_set(&at->since_ns, real_ns());
	for (size_t i = 0; i < USE_WORDS; i++)
		stats_set(&((uint64_t *)&at->before)[i], ((uint64_t *)&before)[i]);
	__atomic_store_n(&at->sequence, sequence + 2, __ATOMIC_RELEASE);
}

uint32_t places_take(struct places *p, uint64_t id, uint32_t uid, uint32_t pid)
{
	const struct mpig_stats_place *all = directory(p);
	uint32_t best = 0;
	for (uint32_t i = 1; i < MPIG_STATS_PLACES; i++) {
		if (all[i].id == id) {
			atomic_fetch_add(&p->users[i], 1);
			return i;
		}
		// Only this thread brings a count up from 0, so a place seen free stays free.
		if (atomic_load(&p->users[i]) == 0 && (!best || all[i].since_ns < all[best].since_ns))
			best = i;
	}
	if (best) {
		atomic_store(&p->users[best], 1);
		move_in(p, best, id, uid, pid);
	}
	return best;
}

void places_show(struct places *p)
{
	for (uint32_t i = 1; i < MPIG_STATS_PLACES; i++)
		stats_set(&directory(p)[i].users, atomic_load_explicit(&p->users[i], memory_order_relaxed));
}

void places_share(struct places *p, uint32_t place)
{
	if (place)
		atomic_fetch_add(&p->users[place], 1);
}

void places_leave(struct places *p, uint32_t place)
{
	if (place)
		atomic_fetch_sub(&p->users[place], 1);
}
