// bench_append: what the engine takes rows at, sealed and indexed, without rings or a GPU: a prefill of an 8B model's shape (8 KV heads, d = 128,
// bf16 payload) from the memory of this process, with threads that spin for units as workers do. Beside it, in the same run, what memory gives.
//
//   bench_append [--threads N] [--tokens N] [--layers N] [--chunk N] [--rows bf16|int8] [--bits N] [--slot-mib N] [--ring-mib N] [--repeat N]
//
// The payload goes round in a ring of --ring-mib in pieces of --slot-mib: a ring that fits the last-level cache is what a GPU's writes find
// at best, a large one has each byte come from DRAM. Not a test: it asserts nothing about time.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/engine/engine.h"
#include "daemon/store/pool.h"

enum { KV_HEADS = 8, QUERY_HEADS = 32, D = 128, ROW = 2 * KV_HEADS * D * 2, MAX_THREADS = 64, PAGE = 4096 };

static struct {
	uint32_t threads, tokens, layers, chunk, bits, repeat;
	uint32_t row_dtype;
	size_t slot, ring;
} option = {.tokens = 16384, .layers = 2, .chunk = 8192, .bits = 2, .repeat = 3, .row_dtype = MPIG_BF16};

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "bench_append: %s\n", what);
	exit(1);
}

static double now(void)
{
	return (double)mono_ns() * 1e-9;
}

// ---- what memory gives -------------------------------------------------------------------------------------------------
enum { MEMORY_READ, MEMORY_WRITE, MEMORY_COPY, MEMORY_KINDS };
typedef uint64_t lane __attribute__((vector_size(64)));
struct mover {
	pthread_t thread;
	pthread_barrier_t *barrier;
	size_t bytes;
	double seconds[MEMORY_KINDS];
	uint64_t sink;
};

static void move(struct mover *m, int kind, lane *from, lane *to)
{
	size_t n = m->bytes / sizeof(lane);
	lane sum = {0};
	double begin = now();
	for (size_t i = 0; i < n; i++) {
		if (kind != MEMORY_WRITE)
			sum += from[i];
		if (kind != MEMORY_READ)
			for (int w = 0; w < 8; w++) // past the caches, as rows are written
				__builtin_ia32_movnti64((long long *)(void *)(to + i) + w, (long long)sum[w]);
	}
	m->seconds[kind] = now() - begin;
	m->sink += sum[0];
}

static void *move_all(void *argument)
{
	struct mover *m = argument;
	lane *memory[2];
	for (int i = 0; i < 2; i++) {
		memory[i] = aligned_alloc(1 << 21, m->bytes);
		must(memory[i] != NULL, "no memory");
		madvise(memory[i], m->bytes, MADV_HUGEPAGE);
		memset(memory[i], 1, m->bytes);
	}
	for (int kind = 0; kind < MEMORY_KINDS; kind++) {
		pthread_barrier_wait(m->barrier);
		move(m, kind, memory[0], memory[1]);
	}
	for (int i = 0; i < 2; i++)
		free(memory[i]);
	return NULL;
}

static void memory_rates(void)
{
	struct mover mover[MAX_THREADS] = {0};
	pthread_barrier_t barrier;
	pthread_barrier_init(&barrier, NULL, option.threads);
	for (uint32_t i = 0; i < option.threads; i++) {
		mover[i] = (struct mover){.barrier = &barrier, .bytes = (size_t)128 << 20};
		must(!pthread_create(&mover[i].thread, NULL, move_all, &mover[i]), "no thread");
	}
	for (uint32_t i = 0; i < option.threads; i++)
		pthread_join(mover[i].thread, NULL);
	static const char *const name[] = {"read", "written past the caches", "copied past the caches (each byte counts twice)"};
	for (int kind = 0; kind < MEMORY_KINDS; kind++) {
		double slowest = 0;
		for (uint32_t i = 0; i < option.threads; i++)
			slowest = mover[i].seconds[kind] > slowest ? mover[i].seconds[kind] : slowest;
		printf("memory, %u threads: %-48s %7.1f GB/s\n", option.threads, name[kind],
		       (double)option.threads * (double)mover[0].bytes * (kind == MEMORY_COPY ? 2 : 1) / slowest * 1e-9);
	}
	pthread_barrier_destroy(&barrier);
}

// ---- the engine --------------------------------------------------------------------------------------------------------
static struct {
	struct kernels kernels;
	char isa[64];
	struct pool *pool;
	struct store *store;
	struct engine *engine;
	struct context *context;
	struct engine_scratch *scratch[MAX_THREADS];
	uint8_t *ring;
	size_t ring_bytes;
	_Alignas(64) _Atomic(struct job *) job;
	_Alignas(64) atomic_uint inside; // threads that may look at the job
	atomic_bool stop;
} world;

static bool work(struct job *job, uint32_t number)
{
	enum job_state state;
	do
		state = job_run(job, number, option.threads, world.scratch[number]);
	while (state == JOB_RAN);
	return state == JOB_DONE;
}

static void *spin(void *argument)
{
	uint32_t number = (uint32_t)(uintptr_t)argument;
	while (!atomic_load_explicit(&world.stop, memory_order_relaxed)) {
		atomic_fetch_add(&world.inside, 1);
		struct job *job = atomic_load(&world.job);
		if (job && work(job, number))
			atomic_store(&world.job, NULL);
		atomic_fetch_sub(&world.inside, 1);
		for (int i = 0; i < 8 && !atomic_load_explicit(&world.job, memory_order_relaxed); i++)
			cpu_relax();
	}
	return NULL;
}

static void run(const struct mpig_sqe *entry, uint8_t *slot, size_t slot_bytes, double *plan)
{
	struct engine_request request = {
		.entry = *entry, .payload_in = slot, .slot_bytes = slot_bytes, .context = world.context, .writer = true};
	double begin = now();
	struct job *job = job_create(world.engine, &request);
	must(job != NULL, "no memory for a job");
	*plan += now() - begin;
	atomic_store(&world.job, job);
	while (atomic_load(&world.job))
		if (work(job, 0))
			atomic_store(&world.job, NULL);
	while (atomic_load(&world.inside))
		cpu_relax();
	struct engine_result r = *job_result(job);
	must(r.status == 0, r.why);
	job_destroy(job);
}

static void open_context(void)
{
	struct mpig_wire_layer *layer = calloc(option.layers, sizeof(*layer));
	must(layer != NULL, "no memory");
	for (uint32_t i = 0; i < option.layers; i++)
		layer[i] = (struct mpig_wire_layer){.kind = MPIG_LAYER_GLOBAL,
		                                    .row_dtype = (uint8_t)option.row_dtype,
		                                    .query_heads = QUERY_HEADS,
		                                    .kv_heads = KV_HEADS,
		                                    .d_k = D,
		                                    .d_v = D,
		                                    .signature_bits = (uint8_t)option.bits};
	struct mpig_ctl_create body = {.name = "bench", .layer_count = option.layers, .seed = 1, .mode = 0600};
	struct credentials who = {0};
	char why[MPIG_TEXT_BYTES] = "";
	must(!store_context_create(world.store, &who, &body, layer, &world.context, why), why);
	must(!context_lease(world.store, world.context, &who, 1, why), why);
	free(layer);
}

struct times {
	double rows, plans, seals, last;
	uint32_t appends;
};

static void append_chunk(uint64_t at, uint32_t count, struct times *t)
{
	static size_t turn;
	const struct mpig_layer_shape shape = {.query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .d_k = D, .d_v = D};
	uint32_t most = (uint32_t)(option.slot / ROW); // beside its header, for which there is a page more
	for (uint32_t layer = 0; layer < option.layers; layer++)
		for (uint32_t done = 0, n; done < count; done += n, turn++) {
			n = count - done < most ? count - done : most;
			struct mpig_payload_layout l = mpig_append_layout(&shape, n, MPIG_BF16, 0);
			must(l.bytes <= option.slot + PAGE, "a slot is too small");
			struct mpig_sqe e = {.op = MPIG_OP_APPEND,
			                     .layer = (uint16_t)layer,
			                     .count = n,
			                     .begin = at + done,
			                     .dtype = MPIG_BF16};
			double begin = now();
			run(&e, world.ring + turn % (option.ring / option.slot) * (option.slot + PAGE), option.slot + PAGE,
			    &t->plans);
			t->rows += now() - begin;
			t->appends++;
		}
}

static void commit(uint64_t at, uint32_t count, bool seal, struct times *t)
{
	struct mpig_payload_layout l = mpig_commit_layout(count);
	uint8_t *slot = aligned_alloc(4096, (l.bytes + 4095) & ~(uint64_t)4095);
	must(slot != NULL, "no memory");
	for (uint32_t i = 0; i < count; i++) {
		uint32_t id = (uint32_t)(at + i) % 50000;
		memcpy(slot + l.tokens + 4 * (size_t)i, &id, 4);
	}
	struct mpig_sqe e = {.op = MPIG_OP_COMMIT, .count = count, .begin = at, .flags = seal ? MPIG_SQE_SEAL : 0};
	double begin = now(), none = 0;
	run(&e, slot, l.bytes, &none);
	*(seal ? &t->last : &t->seals) += now() - begin;
	free(slot);
}

static void prefill(void)
{
	struct times t = {0};
	struct credentials who = {0};
	char why[MPIG_TEXT_BYTES];
	while (pool_make_ready(world.pool, pool_bytes(world.pool)))
		continue;
	open_context();
	double begin = now(), first = 0;
	for (uint64_t at = 0; at < option.tokens; at += option.chunk) {
		uint32_t n = option.tokens - at < option.chunk ? (uint32_t)(option.tokens - at) : option.chunk;
		append_chunk(at, n, &t);
		commit(at, n, at + n == option.tokens, &t);
		first = at ? first : t.seals;
	}
	double whole = now() - begin, bytes = (double)option.tokens * option.layers * ROW;
	printf("%.2f GB/s; rows %.2f GB/s, %.1f us an append of which plan %.1f; of %.1f ms: rows %.1f, first seal %.1f, others "
	       "%.1f, last %.1f\n",
	       bytes / whole * 1e-9, bytes / t.rows * 1e-9, t.rows / t.appends * 1e6, t.plans / t.appends * 1e6, whole * 1e3,
	       t.rows * 1e3, first * 1e3, (t.seals - first) * 1e3, t.last * 1e3);
	context_unref(world.context);
	must(!store_context_drop(world.store, &who, "bench", why), why);
}

static void fill_ring(void)
{
	uint64_t state = 88172645463325252u;
	uint16_t *x = (uint16_t *)(void *)world.ring;
	for (size_t i = 0; i < world.ring_bytes / 2; i++) { // bf16 of either sign between 2^-4 and 4
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		x[i] = (uint16_t)((state & 0x80ff) | (0x3d80 + (state >> 20 & 0x200)));
	}
}

static bool take_option(const char *name, const char *value)
{
	unsigned long n = strtoul(value, NULL, 10);
	if (!strcmp(name, "--threads"))
		option.threads = (uint32_t)n;
	else if (!strcmp(name, "--tokens"))
		option.tokens = (uint32_t)n;
	else if (!strcmp(name, "--layers"))
		option.layers = (uint32_t)n;
	else if (!strcmp(name, "--chunk"))
		option.chunk = (uint32_t)n;
	else if (!strcmp(name, "--rows"))
		option.row_dtype = !strcmp(value, "int8") ? MPIG_I8 : MPIG_BF16;
	else if (!strcmp(name, "--bits"))
		option.bits = (uint32_t)n;
	else if (!strcmp(name, "--slot-mib"))
		option.slot = (size_t)n << 20;
	else if (!strcmp(name, "--ring-mib"))
		option.ring = (size_t)n << 20;
	else if (!strcmp(name, "--repeat"))
		option.repeat = (uint32_t)n;
	else
		return false;
	return true;
}

static void open_world(char *dir)
{
	char why[MPIG_TEXT_BYTES] = "";
	must(mkdtemp(dir) != NULL, "/dev/shm cannot be written");
	kernels_init(&world.kernels, cpu_features(), world.isa, sizeof(world.isa));
	uint64_t bytes = (uint64_t)option.tokens * option.layers * KV_HEADS * 620 + (UINT64_C(192) << 20);
	struct pool_options po = {
		.dir = dir, .instance = "bench", .bytes = bytes & ~UINT64_C(0x1fffff), .huge_pages = true, .ready = bytes};
	must(!pool_create(&po, &world.pool, why, sizeof why), why);
	must(!store_create(&(struct store_options){.pool = world.pool}, &world.store), "no memory for a store");
	struct engine_options eo = {.kernels = &world.kernels, .store = world.store, .workers = option.threads};
	must(!engine_create(&eo, &world.engine), "no memory for an engine");
	for (uint32_t i = 0; i < option.threads; i++)
		must((world.scratch[i] = engine_scratch_create()) != NULL, "no memory");
	world.ring_bytes = (option.ring / option.slot * (option.slot + PAGE) + (1 << 21)) & ~(size_t)0x1fffff;
	must((world.ring = aligned_alloc(1 << 21, world.ring_bytes)) != NULL, "no memory for the ring");
	madvise(world.ring, world.ring_bytes, MADV_HUGEPAGE);
	fill_ring();
}

int main(int argc, char **argv)
{
	char dir[] = "/dev/shm/mpig-bench-XXXXXX";
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	option.threads = cpus > 2 ? (uint32_t)cpus - 1 : 1;
	for (int i = 1; i + 1 < argc; i += 2)
		if (!take_option(argv[i], argv[i + 1])) {
			fprintf(stderr, "bench_append: unknown option %s\n", argv[i]);
			return 2;
		}
	option.slot = option.slot ? option.slot : (size_t)16 << 20;
	option.ring = option.ring > option.slot ? option.ring / option.slot * option.slot : option.slot;
	must(option.threads >= 1 && option.threads <= MAX_THREADS && option.tokens && option.layers && option.chunk, "options");
	memory_rates();
	open_world(dir);
	printf("%u threads, %s; %u tokens of %u layers, %s rows, slots of %zu MiB in a ring of %zu MiB\n", option.threads,
	       world.isa, option.tokens, option.layers, option.row_dtype == MPIG_I8 ? "int8" : "bf16", option.slot >> 20,
	       option.ring >> 20);
	pthread_t thread[MAX_THREADS];
	for (uint32_t i = 1; i < option.threads; i++)
		must(!pthread_create(&thread[i], NULL, spin, (void *)(uintptr_t)i), "no thread");
	for (uint32_t i = 0; i < option.repeat; i++)
		prefill();
	atomic_store(&world.stop, true);
	for (uint32_t i = 1; i < option.threads; i++)
		pthread_join(thread[i], NULL);
	for (uint32_t i = 0; i < option.threads; i++)
		engine_scratch_destroy(world.scratch[i]);
	engine_destroy(world.engine);
	store_destroy(world.store);
	pool_close(world.pool, true);
	rmdir(dir);
	free(world.ring);
	return 0;
}
