// What branches of a common prefix cost: memory beyond the prefix and their own tokens.
#include "daemon/store/internal.h"
#include "tests/lib/suite.h"
#include "tests/store/segments.h"

enum { PREFIX = 32768, BRANCHES = 64, DEEP = 4 };

static void setup(void)
{
	fixture_open(&f, 320 << 20, 0, 0);
}
static void teardown(void)
{
	fixture_close(&f);
}

static struct context *prefix(const uint64_t *tags)
{
	struct mpig_wire_layer layer[DEEP];
	for (int i = 0; i < DEEP; i++)
		layer[i] = layer_of(4, 2, 64, MPIG_BF16, 2, 0, 0);
	struct mpig_ctl_create body = create_of("prefix", DEEP);
	struct context *c;
	ck_assert_msg(store_context_create(f.store, &root, &body, layer, &c, f.why) == 0, "%s", f.why);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	for (uint32_t i = 0; i < DEEP; i++)
		ck_assert_int_eq(append_rows(&f, c, i, 0, PREFIX, tags), 0);
	ck_assert_int_eq(commit(c, 0, PREFIX, tags), 0);
	ck_assert_uint_eq(seal(c, tags), PREFIX);
	return c;
}

static void decode(struct context *c, uint64_t own, const uint64_t *tags)
{
	for (uint64_t t = PREFIX; t < PREFIX + own; t++) {
		for (uint32_t i = 0; i < DEEP; i++)
			must(append_rows(&f, c, i, t, 1, tags + t) == 0);
		must(commit(c, t, 1, tags + t) == 0);
	}
}

static const uint64_t own_tokens[] = {16, 64, 256, 1000};

START_TEST(of_one_prefix)
{
	uint64_t own = own_tokens[_i];
	uint64_t *tags = tags_from(1, PREFIX + own), empty = pool_used(f.pool);
	struct context *c = prefix(tags), *branch[BRANCHES];
	uint64_t whole = pool_used(f.pool) - empty;
	for (int i = 0; i < BRANCHES; i++) {
		char name[16];
		snprintf(name, sizeof name, "branch %d", i);
		ck_assert_int_eq(store_context_fork(f.store, &root, c, PREFIX, name, &branch[i], f.why), 0);
		ck_assert_int_eq(context_lease(f.store, branch[i], &root, 2 + (uint64_t)i, f.why), 0);
		decode(branch[i], own, tags);
	}
	uint64_t token = c->spec->token_bytes + sizeof(uint32_t), needed = whole + BRANCHES * own * token;
	double more = (double)(pool_used(f.pool) - empty) / (double)needed - 1;
	fprintf(stderr, "%d branches of %d tokens, with %lu of their own each: %.1f %% more than both\n", BRANCHES, PREFIX,
	        (unsigned long)own, 100 * more);
	ck_assert_msg(more <= .05, "%.3f", more);
	for (uint32_t i = 0; i < DEEP; i++) // and they hold what they should
		view_all(branch[BRANCHES - 1], i, tags);
	audit(NULL, NULL);
	for (int i = 0; i < BRANCHES; i++) {
		char name[16];
		snprintf(name, sizeof name, "branch %d", i);
		context_release(f.store, branch[i], 2 + (uint64_t)i);
		context_unref(branch[i]);
		ck_assert_int_eq(store_context_drop(f.store, &root, name, f.why), 0);
	}
	ck_assert_uint_eq(pool_used(f.pool) - empty, whole);
	context_release(f.store, c, 1);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, "prefix", f.why), 0);
	free(tags);
}
END_TEST

// However the rows come, and however short memory is, a segment holds its 65,536 in the blocks there are.
START_TEST(blocks_enough)
{
	uint64_t *tags = tags_from(1, 70000), at = 0, random = 5;
	struct mpig_wire_layer layer = layer_of(1, 1, 64, MPIG_BF16, 0, 0, 0);
	struct mpig_ctl_create body = create_of("a", 1);
	struct context *c;
	ck_assert_int_eq(store_context_create(f.store, &root, &body, &layer, &c, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	uint64_t taken[400], most = 0;
	while (at < 70000) {
		uint64_t n = _i == 0 ? 1 : _i == 1 ? 17 : 1 + next_below(&random, 90);
		n = n < 70000 - at ? n : 70000 - at;
		if (_i == 3 && !most) // only what an append needs is left
			while (most < 400 && (taken[most] = pool_alloc(f.pool, 1 << 20, 0)))
				most++;
		int status = append_rows(&f, c, 0, at, n, tags + at);
		if (status == MPIG_ENOSPC && most) {
			pool_free(f.pool, taken[--most], 1 << 20);
			continue;
		}
		ck_assert_msg(status == 0, "row %lu: %s", (unsigned long)at, f.why);
		at += n;
	}
	while (most)
		pool_free(f.pool, taken[--most], 1 << 20);
	ck_assert_int_eq(commit(c, 0, 70000, tags), 0);
	view_all(c, 0, tags);
	audit(NULL, NULL);
	context_release(f.store, c, 1);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	free(tags);
}
END_TEST

// A segment that a fork seals keeps the sums of its pieces, for those of its content are not made yet; when they are, nothing is kept, but for
// another thread that is making them.
START_TEST(sums_of_pieces_last_as_long_as_they_are_needed)
{
	enum { OWN = 2000 };
	uint64_t *tags = tags_from(1, PREFIX + OWN);
	struct context *c = prefix(tags), *child;
	decode(c, OWN, tags);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, PREFIX + OWN, "child", &child, f.why), 0);
	struct segment *seg = atomic_load(&c->snapshot)->ref[1].segment, *first = atomic_load(&c->snapshot)->ref[0].segment;
	ck_assert_uint_eq(seg->record->sealed_rows, OWN);
	ck_assert_ptr_null(first->pieces);
	ck_assert_ptr_nonnull(seg->pieces);
	struct image *image[2];
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(image_take(f.store, &root, "child", ACCESS_READ, &image[i], f.why), 0);
	seg->summing = _i; // 1: another thread
	ck_assert_int_eq(image_make_sums(image[0], 1), 0);
	ck_assert(segment_has_sums(f.pool, seg, NULL));
	ck_assert_int_eq(seg->pieces != NULL, _i);
	seg->summing = 0;
	ck_assert_int_eq(image_make_sums(image[1], 1), 0);
	for (int i = 0; i < 2; i++)
		image_release(image[i]);
	struct verify_part part = {.more = true};
	while (part.more) {
		ck_assert_int_eq(store_context_verify(f.store, &root, "child", &part, f.why), 0);
		ck_assert_uint_eq(part.damaged, 0);
	}
	audit(NULL, NULL);
	context_unref(child);
	ck_assert_int_eq(store_context_drop(f.store, &root, "child", f.why), 0);
	context_release(f.store, c, 1);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, "prefix", f.why), 0);
	free(tags);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("fork");
	TCase *t = tcase_create("fork");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, of_one_prefix, 0, 4);
	tcase_add_loop_test(t, blocks_enough, 0, 4);
	tcase_add_loop_test(t, sums_of_pieces_last_as_long_as_they_are_needed, 0, 2);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
