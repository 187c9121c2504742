// Opens by longest token prefix among many contexts: prints the median time of a search. Only token ids matter, so the contexts have
// no rows and no pool. Of every other pair one is on disk only.
//
//   bench_prefix [CONTEXTS [TOKENS]]        default 10000 8192
#include <time.h>

#include "daemon/store/internal.h"
#include "tests/store/fixture.h"

enum { SEARCHES = 1001 };

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

// Half of the contexts share one system prompt of 1,000 tokens, the others ten prompts of 3,000.
static uint32_t token_of(uint64_t context, uint64_t position)
{
	uint64_t shared = context % 2 ? 1000 : 3000, trunk = context % 2 ? 0 : 1 + context / 2 % 10;
	return (uint32_t)mix(position < shared ? trunk << 40 | position : (context + 100) << 40 | position) % 50000;
}

static void search_all(struct fixture *f, uint64_t contexts, uint64_t tokens, uint32_t uid, bool saved, const char *what)
{
	static double us[SEARCHES];
	uint32_t *query = malloc(tokens * sizeof *query);
	uint64_t random = 1, sum = 0, on_disk = 0;
	for (int i = 0; i < SEARCHES; i++) {
		uint64_t like = next_below(&random, (uint32_t)contexts), branch = next_below(&random, (uint32_t)tokens);
		for (uint64_t t = 0; t < tokens; t++)
			query[t] = t < branch ? token_of(like, t) : UINT32_MAX;
		uint8_t fingerprint[64] = {1};
		struct credentials who = user(uid);
		double start = now_us();
		struct prefix_query q = {
			.fingerprint = fingerprint, .tokens = query, .count = tokens, .min_tokens = 1, .saved = saved};
		struct prefix_found found = {0};
		int status = store_find_prefix(f->store, &who, &q, &found, f->why);
		us[i] = now_us() - start;
		sum += found.matched;
		on_disk += !status && !found.context;
		if (found.context)
			context_unref(found.context);
	}
	qsort(us, SEARCHES, sizeof us[0], ascending);
	printf("%-32s p50 %8.1f us  p99 %8.1f us  longest %8.1f us  (%.0f tokens matched on average, %.0f %% on disk)\n", what,
	       us[SEARCHES / 2], us[SEARCHES * 99 / 100], us[SEARCHES - 1], (double)sum / SEARCHES,
	       100. * (double)on_disk / SEARCHES);
	free(query);
}

static int put_on_disk(struct fixture *f, uint64_t i, const uint32_t *token, uint64_t tokens)
{
	struct image_context c = {.identity = {1, 1, 0600}, .fingerprint = {1}, .created_ns = i, .committed = tokens};
	struct unplaced of;
	snprintf(c.name, sizeof c.name, "context %llu", (unsigned long long)i);
	store_saved_put(f->store, &c);
	return !store_next_unplaced(f->store, &of) || store_place_saved(f->store, &of, 0, token, tokens);
}

int main(int argc, char **argv)
{
	uint64_t contexts = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000,
		 tokens = argc > 2 ? strtoull(argv[2], NULL, 10) : 8192;
	struct fixture f = {0};
	snprintf(f.dir, sizeof f.dir, "/dev/shm/mpig-bench-%d", (int)getpid());
	struct pool_options pool = {.dir = f.dir, .instance = "bench", .bytes = 64 << 20};
	if (pool_create(&pool, &f.pool, f.why, sizeof f.why) || store_create(&(struct store_options){.pool = f.pool}, &f.store)) {
		fprintf(stderr, "pool: %s\n", f.why);
		return 1;
	}
	uint32_t *token = malloc(tokens * sizeof *token);
	struct context *all = calloc(contexts, sizeof *all);
	double spent = 0;
	for (uint64_t i = 0; token && all && i < contexts; i++) {
		all[i].identity = (struct identity){1, 1, 0600};
		all[i].id = i;
		all[i].fingerprint[0] = 1;
		context_ref(&all[i]);
		for (uint64_t t = 0; t < tokens; t++)
			token[t] = token_of(i, t);
		double start = now_us();
		if (i / 2 % 2 ? put_on_disk(&f, i, token, tokens) : prefix_extend(f.store, &all[i], token, tokens)) {
			fprintf(stderr, "no memory for context %llu\n", (unsigned long long)i);
			return 1;
		}
		spent += now_us() - start;
	}
	printf("%llu contexts of %llu tokens added in %.2f s\n", (unsigned long long)contexts, (unsigned long long)tokens,
	       spent * 1e-6);
	search_all(&f, contexts, tokens, 1, true, "as their owner");
	search_all(&f, contexts, tokens, 1, false, "as their owner, in memory");
	search_all(&f, contexts, tokens, 2, true, "as somebody who may read none");
	for (uint64_t i = 0; i < contexts; i++)
		prefix_cut(f.store, &all[i], 0);
	free(all);
	free(token);
	store_destroy(f.store);
	pool_close(f.pool, true);
	return 0;
}
