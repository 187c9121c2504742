// bench_forks: what 64 forks of one prefix of 32,768 tokens cost, with tokens of their own, beside what they would if the prefix were
// copied; and how long a fork takes. Not a test: it asserts nothing about size or time.
#include <time.h>

#include "tests/lib/figures.h"
#include "tests/store/fixture.h"

enum { PREFIX = 32768, FORKS = 64, LAYERS = 4 };

static struct fixture f;
static struct credentials root;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void grow(struct context *c, uint64_t at, uint64_t n, const uint32_t *ids)
{
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		must(context_reserve(f.store, c, layer, at, n, f.why) == 0);
		context_appended(c, layer, at + n);
	}
	must(context_commit(f.store, c, at, n, ids + at, f.why) == 0);
}

static void measure(uint32_t own)
{
	struct mpig_wire_layer layer[LAYERS];
	for (int i = 0; i < LAYERS; i++)
		layer[i] = layer_of(8, 2, 64, 0, 2, 0, 0);
	struct mpig_ctl_create body = create_of("prefix", LAYERS);
	struct context *c, *fork[FORKS];
	struct seal_plan plan;
	uint32_t *ids = calloc(PREFIX + own + 1u, sizeof *ids);
	fixture_open(&f, UINT64_C(512) << 20, 0, 0);
	root = user(0);
	uint64_t empty = pool_used(f.pool);
	must(store_context_create(f.store, &root, &body, layer, &c, f.why) == 0);
	must(context_lease(f.store, c, &root, 1, f.why) == 0);
	grow(c, 0, PREFIX, ids);
	must(seal_begin(f.store, c, test_table_bytes, &plan, f.why) == 0 && plan.rows == PREFIX);
	context_seal_finish(f.store, &plan, true);
	uint64_t prefix = pool_used(f.pool) - empty;
	double begin = now();
	for (int i = 0; i < FORKS; i++) {
		char name[16];
		snprintf(name, sizeof name, "fork%d", i);
		must(store_context_fork(f.store, &root, c, PREFIX, name, &fork[i], f.why) == 0);
	}
	double us = (now() - begin) / FORKS * 1e6;
	for (int i = 0; i < FORKS && own; i++) {
		must(context_lease(f.store, fork[i], &root, (uint64_t)i + 2, f.why) == 0);
		for (uint64_t at = 0; at < own; at++) // decoded one by one
			grow(fork[i], PREFIX + at, 1, ids);
	}
	uint64_t all = pool_used(f.pool) - empty;
	double needed = (double)prefix + (double)prefix / PREFIX * FORKS * own, above = 100 * ((double)all / needed - 1);
	printf("%d forks of %d tokens with %u of their own: %.1f MiB, %.2f %% above prefix and own tokens (copies: %.0f MiB); "
	       "%.1f us a fork\n",
	       FORKS, PREFIX, own, (double)all / (1 << 20), above,
	       (double)(prefix * (FORKS + 1)) / (1 << 20) + (double)prefix / PREFIX * FORKS * own / (1 << 20), us);
	char name[64];
	snprintf(name, sizeof name, "forks.%u", own);
	figures_put(name, above);
	figures_put("fork us", us);
	for (int i = 0; i < FORKS; i++) {
		context_release(f.store, fork[i], (uint64_t)i + 2);
		context_unref(fork[i]);
	}
	context_release(f.store, c, 1);
	context_unref(c);
	free(ids);
	fixture_close(&f);
}

START_TEST(forks)
{
	static const uint32_t own[] = {0, 64, 256, 1000};
	for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
		measure(own[i]);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("bench_forks"); // what it borrows from the tests wants one
	TCase *t = tcase_create("measure");
	tcase_add_test(t, forks);
	suite_add_tcase(suite, t);
	SRunner *runner = srunner_create(suite);
	srunner_set_fork_status(runner, CK_NOFORK);
	srunner_run_all(runner, CK_SILENT);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
