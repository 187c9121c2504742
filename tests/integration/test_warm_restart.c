// How long it takes until a daemon that attaches a large pool has answered its first ATTEND, measured from before its exec, at several sizes.
// The answers are asserted, the time is reported (and goes to build/persist/report.json). MPIG_LONG=1 goes to 8 GiB of contexts.
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/figures.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { LAYERS = 4, KV = 8, HEADS = 32, D = 128, PIECE = 2048, PIECES = 16, TOKENS = PIECE * PIECES, ROUNDS = 3 };

static struct test_daemon *d;
static struct test_client s;
static uint16_t *rows; // bf16 [PIECE][KV][D]
static uint32_t *ids;

static double now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void make_rows(void)
{
	size_t n = (size_t)PIECE * KV * D;
	float *x = malloc(n * sizeof *x);
	rows = malloc(n * sizeof *rows);
	ids = malloc(TOKENS * sizeof *ids);
	ck_assert(x && rows && ids);
	model_heavy(x, (size_t)PIECE * KV, D, 3);
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		memcpy(&bits, &x[i], sizeof bits);
		rows[i] = (uint16_t)(bits >> 16);
	}
	free(x);
}

static void make_context(uint32_t number)
{
	struct mpig_layer layer = test_client_layer(HEADS, KV, D), layers[LAYERS] = {layer, layer, layer, layer};
	struct mpig_spec spec = test_client_spec(layers, LAYERS);
	mpig_context *x;
	char name[16];
	snprintf(name, sizeof name, "c%u", number);
	ck_assert_status(mpig_context_create(s.client, name, &spec, &x), MPIG_OK);
	for (uint32_t i = 0; i < TOKENS; i++)
		ids[i] = i ^ number << 20;
	for (uint64_t at = 0; at < TOKENS; at += PIECE)
		for (int l = 0; l < LAYERS; l++)
			ck_assert_status(mpig_append(s.queue, x, l, at, PIECE, MPIG_BF16, rows, rows, NULL, 0), MPIG_OK);
	ck_assert_status(mpig_commit(s.queue, x, 0, TOKENS, ids, MPIG_COMMIT_SEAL), MPIG_OK);
	mpig_context_close(x);
}

struct answer {
	float out[HEADS * D], lse[HEADS];
	uint32_t rows[HEADS];
};

static int ask(mpig_context *x, struct answer *answer)
{
	float q[HEADS * D];
	model_normal(q, HEADS * D, 9);
	struct mpig_attend attend = {.size = sizeof attend,
	                             .layer = 2,
	                             .proposal = MPIG_PROPOSAL_SIGNATURE,
	                             .q = q,
	                             .begin = 4,
	                             .budget = .01f,
	                             .seed = 1};
	struct mpig_result result = {.size = sizeof result, .out = answer->out, .lse = answer->lse, .rows = answer->rows};
	return mpig_attend(s.queue, x, &attend, &result);
}

static int by_value(const void *x, const void *y)
{
	double a = *(const double *)x, b = *(const double *)y;
	return (a > b) - (a < b);
}

// Milliseconds until a context of the pool has been attended, the median of several kills.
static double restart(uint32_t contexts)
{
	double ms[ROUNDS];
	struct answer before, after;
	mpig_context *x;
	char name[16];
	snprintf(name, sizeof name, "c%u", contexts / 2);
	memset(&before, 0, sizeof before);
	ck_assert_status(test_client_find(&s, name, MPIG_READ, &x), MPIG_OK);
	ck_assert_status(ask(x, &before), MPIG_OK);
	ck_assert_uint_gt(before.rows[0], 0);
	for (int i = 0; i < ROUNDS; i++) {
		test_client_close(&s);
		test_daemon_kill(d);
		double begin = now_ms();
		test_daemon_again(d);
		test_client_open_hasty(&s, d, 60000, 60000);
		memset(&after, 0, sizeof after);
		ck_assert_status(test_client_find(&s, name, MPIG_READ, &x), MPIG_OK);
		ck_assert_status(ask(x, &after), MPIG_OK);
		ms[i] = now_ms() - begin;
		ck_assert_mem_eq(&before, &after, sizeof before);
		struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
		ck_assert_status(mpig_daemon_status(s.client, &status), MPIG_OK);
		ck_assert_uint_eq(status.contexts, contexts);
	}
	qsort(ms, ROUNDS, sizeof ms[0], by_value);
	return ms[ROUNDS / 2];
}

static uint64_t mib_available(void)
{
	char line[128];
	unsigned long long kib = 0;
	FILE *f = fopen("/proc/meminfo", "r");
	while (f && !kib && fgets(line, sizeof line, f))
		sscanf(line, "MemAvailable: %llu", &kib);
	if (f)
		fclose(f);
	return kib >> 10;
}

START_TEST(first_answer)
{
	uint32_t wanted = getenv("MPIG_LONG") ? 17 : 1, most = wanted, made = 0;
	uint64_t each = 580, mib = most * each + 64, available = mib_available(); // of a context: 512 MiB of rows, and its index
	while (mib + mib / 4 + 512 > available && most > 1)
		mib = --most * each + 64;
	if (most < wanted)
		fprintf(stderr, "only %llu MiB of memory are available: %u contexts instead of %u\n",
		        (unsigned long long)available, most, wanted);
	figures_put("restart contexts wanted", wanted);
	figures_put("restart contexts", most);
	char config[100];
	snprintf(config, sizeof config, "[pool]\nsize = %lluM\nkeep = yes\n", (unsigned long long)mib);
	d = test_daemon_start(config);
	test_client_open_hasty(&s, d, 60000, 60000);
	make_rows();
	for (uint32_t target = 1; made < most; target = 2 * target < most && 4 * target > most ? most : 2 * target) {
		for (; made < target && made < most; made++)
			make_context(made);
		struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
		ck_assert_status(mpig_daemon_status(s.client, &status), MPIG_OK);
		double ms = restart(made);
		char name[64];
		snprintf(name, sizeof name, "restart.%llu", (unsigned long long)(status.pool_used >> 20));
		figures_put(name, ms);
		fprintf(stderr, "%u contexts, %llu MiB: first ATTEND %.0f ms after exec\n", made,
		        (unsigned long long)(status.pool_used >> 20), ms);
	}
	test_client_close(&s);
	test_daemon_free(d);
	free(rows);
	free(ids);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/warm restart");
	TCase *t = tcase_create("restart");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 1800 : 240);
	tcase_add_test(t, first_answer);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
