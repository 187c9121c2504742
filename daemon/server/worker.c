#include "daemon/server/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/server/park.h"
#include "daemon/server/stats.h"
#include "shm/status.h"

#define CLOCK_EVERY 16u                // idle turns between looks at the clock
#define PAUSE 256u                     // idle turns, some 20 us, after which a client is taken to be busy with other things
#define NAP_FIRST_NS UINT64_C(1000000) // of a worker whose queues wait for something that wakes nobody (room for completions)
#define NAP_LAST_NS UINT64_C(32000000)

void worker_set_state(struct worker *w, enum mpig_worker_state state)
{
	int before = atomic_load_explicit(&w->state, memory_order_relaxed);
	if (before == (int)state)
		return;
	if (state == MPIG_WORKER_BUSY)
		w->began_ns = mono_ns();
	atomic_store_explicit(&w->state, (int)state, memory_order_relaxed);
	stats_set(&w->stats->state, (uint64_t)state);
}

// The time since `then` goes to what it was spent on; returns now.
static uint64_t account(struct worker *w, uint64_t then)
{
	struct mpig_stats_worker *s = w->stats;
	uint64_t now = mono_ns(), busy_from = now;
	if (atomic_load_explicit(&w->state, memory_order_relaxed) == MPIG_WORKER_BUSY)
		busy_from = w->began_ns > then ? w->began_ns : then;
	stats_set(&s->busy_ns, s->busy_ns + now - busy_from);
	stats_set(&s->spin_ns, s->spin_ns + busy_from - then);
	stats_set(&s->accounted_ns, now);
	stats_set(&s->heartbeat_ns, now);
	return now;
}

// ---- the table of queues ---------------------------------------------------------------------------------------------
static bool is_home(const struct worker *w, uint32_t id)
{
	for (uint32_t i = 0; i < w->home_count; i++)
		if (w->home[i].id == id)
			return true;
	return false;
}

static bool in_table(const struct home *table, uint32_t count, uint32_t id)
{
	for (uint32_t i = 0; i < count; i++)
		if (table[i].id == id)
			return true;
	return false;
}

// Rebuilds both lists. Queues are compared by id: a struct's address may have been used again while the worker slept.
static void refresh(struct worker *w)
{
	struct home now[MAX_QUEUES];
	uint32_t count = 0;
	w->version = atomic_load(&w->all->version); // before the table: a change meanwhile is seen on the next turn
	w->other_count = 0;
	uint32_t high = atomic_load(&w->all->queue_high);
	for (uint32_t i = 0; i < high; i++) {
		struct queue *q = atomic_load(&w->all->queue[i]);
		if (!q)
			continue;
		if (q->id % w->all->options.count == w->number)
			now[count++] = (struct home){.id = q->id, .queue = q};
		else
			w->other[w->other_count++] = q;
	}
	for (uint32_t i = 0; i < w->home_count; i++)
		if (!in_table(now, count, w->home[i].id))
			park_unwatch(w->park, w->home[i].id);
	for (uint32_t i = 0; i < count; i++)
		if (!is_home(w, now[i].id) && !park_watch(w->park, now[i].id, now[i].queue->eventfd))
			log_error("worker %u: no descriptor or memory to watch queue %u; it is looked at only while the worker "
			          "is awake",
			          w->number, now[i].id);
	memcpy(w->home, now, count * sizeof now[0]);
	w->home_count = count;
}

// ---- one turn --------------------------------------------------------------------------------------------------------
// Nothing read from the table before this point is used after it.
static void quiesce(struct worker *w)
{
	uint64_t epoch = atomic_load_explicit(&w->all->epoch, memory_order_acquire);
	atomic_store_explicit(&w->seen, epoch, memory_order_release); // partner: workers_left
	if (atomic_load_explicit(&w->all->version, memory_order_acquire) != w->version)
		refresh(w);
}

static uint32_t serve_others(struct worker *w)
{
	uint32_t moved = 0;
	for (uint32_t i = 0; i < w->other_count; i++) {
		struct queue *q = w->other[i];
		const struct worker *home = &w->all->worker[q->id % w->all->options.count];
		// A spinning home sees it by itself; a second pair of eyes on the client's line would only slow both.
		if (atomic_load_explicit(&home->state, memory_order_relaxed) != MPIG_WORKER_SPIN && queue_pending(q))
			moved += serve_queue(w, q);
	}
	return moved;
}

static uint32_t turn(struct worker *w)
{
	quiesce(w);
	uint32_t moved = 0;
	for (uint32_t i = 0; i < w->home_count; i++)
		moved += serve_queue(w, w->home[i].queue);
	moved += serve_tasks(w);
	return moved ? moved : serve_others(w);
}

// ---- leases ----------------------------------------------------------------------------------------------------------
// The greatest lease of any client counts for all workers: a request needs them all. Returns whether there is one.
static bool leased(struct worker *w, uint64_t now)
{
	struct workers *all = w->all;
	uint64_t most = all->options.awake_ns, end = 0;
	for (uint32_t i = 0; most && i < w->home_count; i++) {
		uint64_t asked = queue_lease(w->home[i].queue, now, most);
		end = asked > end ? asked : end;
	}
	uint64_t known = atomic_load_explicit(&all->awake_until, memory_order_relaxed), before = known;
	while (known < end && !atomic_compare_exchange_weak(&all->awake_until, &known, end))
		continue;
	if (before <= now && end > now)
		workers_wake_helpers(all, all->options.count);
	return now < (known > end ? known : end);
}

static bool any_silent(const struct worker *w)
{
	for (uint32_t i = 0; i < w->home_count; i++)
		if (queue_silent(w->home[i].queue))
			return true;
	return false;
}

// ---- parking ---------------------------------------------------------------------------------------------------------
static void announce(struct worker *w, bool parked)
{
	uint64_t bit = UINT64_C(1) << w->number % 64;
	if (parked)
		atomic_fetch_or(&w->all->parked[w->number / 64], bit); // partner: workers_wake_helpers
	else
		atomic_fetch_and(&w->all->parked[w->number / 64], ~bit);
	for (uint32_t i = 0; i < w->home_count; i++)
		queue_need_wakeup(w->home[i].queue, parked); // F5
}

static bool waiting(const struct worker *w)
{
	for (uint32_t i = 0; i < w->home_count; i++)
		if (queue_pending(w->home[i].queue))
			return true;
	return task_open_count(w->all->tasks) > 0;
}

static void go_online(struct worker *w)
{
	atomic_store(&w->seen, atomic_load(&w->all->epoch));
	atomic_thread_fence(memory_order_seq_cst); // partner: workers_remove_queue. Either it sees us, or we see the queue gone
	quiesce(w);
}

// Announces, looks once more, and sleeps. Returns whether the last look found work.
static bool park(struct worker *w, uint64_t *nap_ns)
{
	quiesce(w); // so that every home queue gets the flag
	uint64_t version = w->version;
	announce(w, true);
	bool found = turn(w) > 0 || w->version != version || atomic_load(&w->all->stop) || leased(w, mono_ns());
	if (!found) {
		bool nap = waiting(w);
		uint64_t most = w->all->options.look_ns && any_silent(w) ? w->all->options.look_ns : UINT64_MAX;
		worker_set_state(w, MPIG_WORKER_PARKED);
		uint64_t before = mono_ns();
		stats_set(&w->stats->accounted_ns, before);
		atomic_store(&w->seen, WORKER_OFFLINE);
		park_sleep(w->park, nap && *nap_ns < most ? *nap_ns : most);
		go_online(w);
		w->woken = true;
		stats_set(&w->stats->heartbeat_ns, mono_ns()); // before it counts as awake: see workers_stuck
		worker_set_state(w, MPIG_WORKER_SPIN);
		uint64_t after = mono_ns();
		stats_set(&w->stats->park_ns, w->stats->park_ns + after - before);
		stats_set(&w->stats->accounted_ns, after);
		stats_set(&w->stats->wakeups, w->stats->wakeups + 1);
		*nap_ns = nap && *nap_ns < NAP_LAST_NS ? 2 * *nap_ns : *nap_ns;
	}
	announce(w, false);
	return found;
}

// A client that has not asked again at once is busy with other things. Its queue may have gone meanwhile.
static void foresee(struct worker *w)
{
	struct queue *q = NULL;
	for (uint32_t i = 0; i < w->home_count; i++)
		q = w->home[i].id == w->answered.queue ? w->home[i].queue : q;
	for (uint32_t i = 0; i < w->other_count; i++)
		q = w->other[i]->id == w->answered.queue ? w->other[i] : q;
	if (q)
		worker_foresee(w, q);
	w->answered.next.some = false;
}

// While it waits, and nobody else works: a few KB of what is likely to be asked for next.
static bool read_ahead(struct worker *w)
{
	if (task_open_count(w->all->tasks))
		return false;
	uint32_t bytes = engine_read_ahead(w->all->options.engine, w->number);
	if (bytes)
		stats_set(&w->stats->prefetched_bytes, w->stats->prefetched_bytes + bytes);
	return bytes > 0;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	uint64_t now = mono_ns(), last_work = now, nap_ns = NAP_FIRST_NS;
	stats_set(&w->stats->heartbeat_ns, now);
	worker_set_state(w, MPIG_WORKER_SPIN);
	for (uint32_t idle = 0; !atomic_load_explicit(&w->all->stop, memory_order_relaxed);) {
		uint32_t moved = turn(w);
		if (moved) {
			last_work = now = account(w, now);
			nap_ns = NAP_FIRST_NS;
			idle = 0;
			continue;
		}
		if (idle == PAUSE && w->answered.next.some)
			foresee(w);
		worker_set_state(w, MPIG_WORKER_SPIN);
		if (!read_ahead(w))
			cpu_relax();
		if (++idle % CLOCK_EVERY)
			continue;
		now = account(w, now);
		bool awake = leased(w, now);
		if (awake || now - last_work < __atomic_load_n(&w->all->options.spin_ns, __ATOMIC_RELAXED))
			continue;
		bool found = park(w, &nap_ns);
		now = found ? account(w, now) : mono_ns();
		if (found)
			last_work = now;
	}
	atomic_store(&w->seen, WORKER_OFFLINE);
	return NULL;
}

// The ring belongs to the thread that makes it; CPU and state are settled before the first turn.
static void *worker_start(void *arg)
{
	struct worker *w = arg;
	char name[16];
	snprintf(name, sizeof name, "worker-%u", w->number);
	pthread_setname_np(pthread_self(), name);
	int cpu = cpu_nth(&w->all->options.cpus, w->number);
	int status = cpu < 0 ? 0 : cpu_pin(cpu);
	if (status != 0)
		log_warn("worker %u: cannot be pinned to CPU %d: %s", w->number, cpu, strerror(-status));
	stats_set(&w->stats->cpu, cpu < 0 || status != 0 ? UINT64_MAX : (uint64_t)cpu);
	w->park = park_create(w->wake_fd, w->all->options.uring);
	bool able = w->park != NULL;
	if (!able)
		atomic_store(&w->all->unable, true);
	sem_post(&w->all->ready); // partner: workers_create
	if (able)
		worker_main(w);
	park_destroy(w->park);
	return NULL;
}

// ---- the control thread ----------------------------------------------------------------------------------------------
void workers_wake_helpers(struct workers *all, uint32_t count)
{
	for (uint32_t word = 0; word < WORKER_WORDS && count; word++) {
		uint64_t parked = atomic_load(&all->parked[word]);
		while (parked && count) {
			uint64_t bit = parked & -parked;
			parked &= ~bit;
			if (!(atomic_fetch_and(&all->parked[word], ~bit) & bit))
				continue; // somebody else wakes it
			park_wake(all->worker[word * 64 + (uint32_t)__builtin_ctzll(bit)].wake_fd);
			count--;
		}
	}
}

static int worker_init(struct workers *all, uint32_t number)
{
	struct worker *w = &all->worker[number];
	w->all = all;
	w->number = number;
	w->stats = &all->options.stats[number];
	w->version = UINT64_MAX;
	w->cursor = number;
	w->again = TASKS;
	atomic_init(&w->seen, 0);
	w->home = calloc(MAX_QUEUES, sizeof *w->home);
	w->other = calloc(MAX_QUEUES, sizeof(struct queue *));
	w->look = calloc(TASKS, sizeof *w->look);
	w->scratch = engine_scratch_create();
	w->wake_fd = park_wake_fd();
	return w->home && w->other && w->look && w->scratch && w->wake_fd >= 0 ? MPIG_OK : MPIG_ENOMEM;
}

int workers_create(const struct workers_options *options, struct workers **out)
{
	struct workers *all = calloc(1, sizeof *all);
	if (!all)
		return MPIG_ENOMEM;
	all->options = *options;
	atomic_init(&all->epoch, 1);
	sem_init(&all->ready, 0, 0);
	all->tasks = aligned_alloc(64, sizeof *all->tasks);
	all->worker = aligned_alloc(64, options->count * sizeof *all->worker);
	int status = all->tasks && all->worker ? MPIG_OK : MPIG_ENOMEM;
	if (all->tasks)
		memset(all->tasks, 0, sizeof *all->tasks);
	if (all->worker) {
		memset(all->worker, 0, options->count * sizeof *all->worker);
		for (uint32_t i = 0; i < options->count; i++)
			all->worker[i].wake_fd = -1;
		for (uint32_t i = 0; i < options->count && status == MPIG_OK; i++)
			status = worker_init(all, i);
	}
	for (; status == MPIG_OK && all->started < options->count; all->started++) {
		errno = pthread_create(&all->worker[all->started].thread, NULL, worker_start, &all->worker[all->started]);
		if (errno != 0)
			status = MPIG_EIO;
		if (status != MPIG_OK)
			break;
	}
	for (uint32_t i = 0; i < all->started; i++)
		while (sem_wait(&all->ready) != 0)
			continue;
	if (status == MPIG_OK && atomic_load(&all->unable)) {
		errno = EMFILE;
		status = MPIG_EIO;
	}
	if (status != MPIG_OK) {
		int cause = errno;
		workers_stop(all);
		workers_destroy(all);
		errno = cause;
		return status;
	}
	*out = all;
	return MPIG_OK;
}

int workers_add_queue(struct workers *all, struct queue *q)
{
	uint32_t place = 0;
	while (place < MAX_QUEUES && atomic_load_explicit(&all->queue[place], memory_order_relaxed))
		place++;
	if (place == MAX_QUEUES)
		return MPIG_ELIMIT;
	atomic_store(&all->queue[place], q);
	if (place >= atomic_load(&all->queue_high))
		atomic_store(&all->queue_high, place + 1);
	atomic_fetch_add(&all->version, 1);
	park_wake(all->worker[q->id % all->options.count].wake_fd);
	return MPIG_OK;
}

uint64_t workers_remove_queue(struct workers *all, struct queue *q)
{
	queue_close(q);
	for (uint32_t place = 0; place < MAX_QUEUES; place++)
		if (atomic_load_explicit(&all->queue[place], memory_order_relaxed) == q)
			atomic_store(&all->queue[place], NULL);
	atomic_fetch_add(&all->version, 1);
	uint64_t epoch = atomic_fetch_add(&all->epoch, 1) + 1;      // after the table's change, for quiesce
	atomic_thread_fence(memory_order_seq_cst);                  // partner: go_online
	park_wake(all->worker[q->id % all->options.count].wake_fd); // stops watching the eventfd
	return epoch;
}

bool workers_left(struct workers *all, uint64_t epoch)
{
	for (uint32_t i = 0; i < all->options.count; i++)
		if (atomic_load(&all->worker[i].seen) < epoch) // WORKER_OFFLINE is above every epoch
			return false;
	return true;
}

struct queue *workers_broken_queue(struct workers *all)
{
	uint32_t high = atomic_load(&all->queue_high);
	for (uint32_t i = 0; i < high; i++) {
		struct queue *q = atomic_load_explicit(&all->queue[i], memory_order_relaxed);
		if (q && atomic_load_explicit(&q->broken, memory_order_acquire))
			return q;
	}
	return NULL;
}

void workers_set_spin(struct workers *all, uint64_t spin_ns)
{
	__atomic_store_n(&all->options.spin_ns, spin_ns, __ATOMIC_RELAXED);
}

void workers_drain(struct workers *all)
{
	atomic_store(&all->draining, true);
}

int workers_stuck(const struct workers *all, uint64_t now_ns, uint64_t limit_ns)
{
	for (uint32_t i = 0; i < all->options.count; i++) {
		const struct mpig_stats_worker *stats = all->worker[i].stats;
		if (__atomic_load_n(&stats->state, __ATOMIC_RELAXED) == MPIG_WORKER_PARKED)
			continue;
		uint64_t last = __atomic_load_n(&stats->heartbeat_ns, __ATOMIC_RELAXED);
		if (now_ns > last && now_ns - last > limit_ns)
			return (int)i;
	}
	return -1;
}

bool workers_idle(struct workers *all)
{
	return !task_any(all->tasks);
}

bool workers_stop(struct workers *all)
{
	atomic_store(&all->stop, true);
	for (uint32_t i = 0; i < all->started; i++)
		park_wake(all->worker[i].wake_fd);
	for (uint32_t i = 0; i < all->started; i++)
		pthread_join(all->worker[i].thread, NULL);
	all->started = 0;
	return !all->tasks || !task_any(all->tasks);
}

void workers_destroy(struct workers *all)
{
	if (!all)
		return;
	for (uint32_t i = 0; all->worker && i < all->options.count; i++) {
		struct worker *w = &all->worker[i];
		free(w->home);
		free(w->other);
		free(w->look);
		if (w->scratch)
			engine_scratch_destroy(w->scratch);
		if (w->wake_fd >= 0)
			close(w->wake_fd);
	}
	sem_destroy(&all->ready);
	free(all->worker);
	free(all->tasks);
	free(all);
}
