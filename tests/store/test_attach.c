// Attaching what a daemon left: after a kill at any publication, and after damage. What was committed is served, bit for bit; what was not
// is gone; every byte of the pool has one owner or is free; and work goes on.
#include "tests/store/crash.h"

static char warnings[4][MPIG_TEXT_BYTES];
static int warned;

static void warn(void *arg, const char *text)
{
	(void)arg;
	snprintf(warnings[warned++ % 4], MPIG_TEXT_BYTES, "%s", text);
}

static struct store_attached attach_at(enum verify_level verify)
{
	struct pool_options p = {.dir = f.dir, .instance = "test"};
	ck_assert_msg(pool_open(&p, &f.pool, f.why, sizeof f.why) == 0, "%s", f.why);
	struct store_options o = {.pool = f.pool};
	struct store_attach_options a = {.verify = verify, .table_bytes = test_table_bytes, .warn = warn};
	struct store_attached attached;
	warned = 0;
	ck_assert_int_eq(store_attach(&o, &a, &f.store, &attached), 0);
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
	return attached;
}

static void detach(void)
{
	store_destroy(f.store);
	pool_close(f.pool, false);
}

// An opened pool did not make its directory and leaves it.
static void close_last(void)
{
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0);
}

static struct store_attached attach_again(enum verify_level verify)
{
	detach();
	return attach_at(verify);
}

// Independent of the store: the test's own walker reaches what the free map says is used.
static void audit(void)
{
	struct walk w;
	walk_pool(&w, pool_at(f.pool, 0), pool_bytes(f.pool), NULL, NULL);
	must(w.reached == pool_used(f.pool));
	must(store_uid_bytes(f.store, 0) == w.reached - POOL_GRANULE - walk_round(8ull * POOL_MAX_CONTEXTS));
	walk_free(&w);
}

// All that is free can be had, and is zero.
static void check_free_memory(void)
{
	uint64_t offset[64], n = 0, bytes = 1 << 20;
	static const unsigned char zero[4096];
	for (; bytes >= 4096; bytes /= 4)
		while (n < 64 && (offset[n] = pool_alloc(f.pool, bytes, 0))) {
			for (uint64_t at = 0; at < bytes; at += 4096)
				must(!memcmp((char *)pool_at(f.pool, offset[n]) + at, zero, 4096));
			n++;
		}
	must(n);
	detach(); // what was taken here is nobody's: the next to attach finds it free
	attach_at(VERIFY_NONE);
}

// ---- contents --------------------------------------------------------------------------------------------------------

static uint64_t check_strip(const struct layer_view *v, uint32_t h, const uint64_t *tags)
{
	const struct layer *l = v->layer;
	uint64_t at = v->begin;
	uint32_t strip = l->first_strip + h;
	for (uint32_t i = 0; i < v->span_count; i++) {
		const struct span *span = &v->strip[h].spans[i];
		must(span->first == at);
		for (uint32_t r = 0; r < span->n; r++) {
			must(row_is(span->rows + (uint64_t)r * l->rows.stride, l->rows.stride, tags[at + r], strip));
			must(!span->codes || codes_are(span->codes, span->factors, span->block_row + r, l->code_bytes_per_row - 2,
			                               tags[at + r], strip));
		}
		if (span->table != UINT32_MAX) {
			const struct table_view *t = &v->strip[h].tables[span->table];
			must(*(const uint8_t *)t->table == (uint8_t)(strip + 1));
		}
		at += span->n;
	}
	return at;
}

static void check_rows(struct context *c, const uint64_t *tags, uint64_t committed)
{
	for (uint32_t layer = 0; layer < context_layer_count(c); layer++) {
		struct layer_view v;
		ck_assert_int_eq(layer_view_get(f.store, c, layer, 0, committed, &v), 0);
		for (uint32_t h = 0; h < v.layer->shape.kv_heads; h++)
			must(check_strip(&v, h, tags) == committed);
		layer_view_free(f.store, &v);
	}
	uint32_t ids[64];
	for (uint64_t at = 0; at < committed; at += 64) {
		uint64_t n = committed - at < 64 ? committed - at : 64;
		context_tokens(f.store, c, at, n, ids);
		for (uint64_t i = 0; i < n; i++)
			must(ids[i] == (uint32_t)tags[at + i]);
	}
}

// What the dead child had told, against what there is; the slots then hold the contexts found.
static int check_told(void)
{
	int found = 0;
	for (int i = 0; i < SLOTS; i++) {
		struct told *t = &report->slot[i];
		context[i] = NULL;
		int status = t->name[0] ? store_context_open(f.store, &root, t->name, NULL, &context[i], f.why) : MPIG_ENOENT;
		must(status == 0 || status == MPIG_ENOENT);
		must(status == 0 ? t->existed || t->exists : !t->existed || !t->exists);
		if (status)
			continue;
		uint64_t committed = context_committed(context[i]);
		must(committed == t->committed || committed == t->will_be);
		check_rows(context[i], t->tags, committed);
		t->committed = t->will_be = committed;
		t->existed = t->exists = 1;
		must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
		found++;
	}
	return found;
}

static void let_go(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (context[i]) {
			context_release(f.store, context[i], (uint64_t)i + 1);
			context_unref(context[i]);
			context[i] = NULL;
		}
}

// Every kind of work on what was found, as if nothing had happened.
static void go_on(uint64_t seed)
{
	uint64_t random = seed;
	for (int step = 0; step < 12; step++) {
		int i = (int)next_below(&random, SLOTS), other = (int)next_below(&random, SLOTS);
		if (!context[i])
			continue;
		struct told *t = &report->slot[i];
		if (step % 3 == 0 && t->committed < MOST)
			do_append(i, 1 + next_below(&random, 900), UINT64_MAX);
		else if (step % 3 == 1)
			do_seal(i);
		else if (!context[other])
			do_fork(i, other, next_below(&random, (uint32_t)t->committed + 1));
		else
			do_truncate(i, t->committed - next_below(&random, (uint32_t)t->committed + 1) / 9);
	}
}

static void examine(uint64_t seed)
{
	root = user(0);
	struct store_attached attached = attach_again(VERIFY_FULL);
	must(attached.quarantined == 0 && attached.lost == 0 && warned == 0);
	audit();
	must(attached.contexts == (uint64_t)check_told());
	let_go();
	if (seed % 4 == 0)
		check_free_memory();
	check_told();
	go_on(seed);
	let_go();
	audit();
	attach_again(VERIFY_FULL);
	must(warned == 0);
	audit();
	check_told();
	let_go();
}

START_TEST(killed_at_any_publication)
{
	crash_open();
	uint64_t seed = 3000 + (uint64_t)_i, k = 1 + (uint64_t)_i, runs = 0;
	int finished = 0;
	uint64_t stride = getenv("MPIG_LONG") ? 1 : 23; // odd: kills before and after publications alternate
	for (; !finished; k += stride, runs++) {
		fixture_open(&f, 64 << 20, 0, 0);
		finished = run(seed, k);
		examine(seed + k);
		close_last();
	}
	ck_assert_uint_gt(runs, 15);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("attach");
	TCase *t = tcase_create("attach");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_loop_test(t, killed_at_any_publication, 0, 6);
	suite_add_tcase(suite, t);
	SRunner *runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
