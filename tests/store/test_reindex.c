// A context indexed again: what readers, forks and the free map see of it. Kills at each publication are in test_crash.c and test_attach.c.
#include "tests/lib/suite.h"
#include "tests/store/segments.h"

static struct context *sealed(const char *name, int kind, const uint64_t *tags, uint64_t rows)
{
	struct context *c = create(name, kind);
	append_all(c, 0, rows, tags);
	ck_assert_int_eq(commit(c, 0, rows, tags), 0);
	ck_assert_uint_eq(seal(c, tags), rows);
	return c;
}

static uint64_t indexed(struct context *c)
{
	struct mpig_wire_context info;
	store_context_info(f.store, c, &info);
	return info.indexed;
}

static void audited(void)
{
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
}

static uint64_t coded(const struct layer_view *v)
{
	uint64_t rows = 0;
	for (uint32_t i = 0; i < v->span_count; i++)
		rows += v->strip[0].spans[i].codes ? v->strip[0].spans[i].n : 0;
	return rows;
}

// What a reader began with stays as it is until it leaves. Then there is one index again: indexing three times in a row, with widths that go
// round, ends with the memory that it began with.
START_TEST(readers_keep_what_they_began_with)
{
	uint64_t *tags = tags_from(1, 6000);
	struct context *c = sealed("a", _i, tags, 6000);
	uint64_t used = pool_used(f.pool), bytes = store_uid_bytes(f.store, 0);
	struct layer_view old, now;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 6000, &old), 0);
	for (uint32_t version = 2; version <= 4; version++) {
		int status = reindex(&f, c, tags, 6000);
		ck_assert_msg(status == 0, "%d: %s", status, f.why);
		ck_assert_uint_eq(context_signature_version(c), version);
		ck_assert_uint_eq(indexed(c), 6000);
		ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 6000, &now), 0);
		check_view(&now, tags);
		ck_assert_uint_eq(now.signature_version, version);
		ck_assert(coded(&now) == coded(&old) &&
		          (!coded(&now) || now.strip[0].spans[0].codes != old.strip[0].spans[0].codes));
		layer_view_free(f.store, &now);
		check_view(&old, tags);
	}
	ck_assert_uint_gt(pool_used(f.pool), used);
	layer_view_free(f.store, &old);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), bytes);
	audited();
	context_unref(c);
	free(tags);
}
END_TEST

static void check_all(struct context *c, uint32_t version, const uint64_t *tags, uint64_t rows)
{
	struct layer_view view;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, rows, &view), 0);
	ck_assert_uint_eq(view.signature_version, version);
	ck_assert_uint_eq(coded(&view), rows);
	check_view(&view, tags);
	layer_view_free(f.store, &view);
}

// A fork keeps the index it has; a third one for what is shared is refused until the first is given up; and what nobody uses is freed.
START_TEST(forks_keep_theirs)
{
	uint64_t *tags = tags_from(1, 6000), used, all;
	struct context *c = sealed("parent", 0, tags, 6000), *one, *two;
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 5000, "one", &one, f.why), 0);
	used = pool_used(f.pool);
	ck_assert_int_eq(reindex(&f, c, tags, 6000), 0);
	all = pool_used(f.pool);
	ck_assert_uint_gt(all, used);
	check_all(c, 2, tags, 6000);
	check_all(one, 1, tags, 5000);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 4000, "two", &two, f.why), 0);
	check_all(two, 2, tags, 4000);
	ck_assert_int_eq(reindex(&f, c, tags, 6000), MPIG_EBUSY);
	ck_assert_ptr_nonnull(strstr(f.why, "shared with forks"));
	check_all(c, 2, tags, 6000);
	audited();
	ck_assert_int_eq(store_context_drop(f.store, &root, "one", f.why), 0); // the last with parameters of version 1
	context_unref(one);
	ck_assert_int_eq(store_context_drop(f.store, &root, "two", f.why), 0);
	context_unref(two);
	audited();
	struct context *again = create("again", 3); // of what went away nothing is left
	ck_assert_int_eq(store_context_drop(f.store, &root, "again", f.why), 0);
	context_unref(again);
	ck_assert_int_eq(reindex(&f, c, tags, 6000), 0);
	check_all(c, 3, tags, 6000);
	audited();
	context_unref(c);
	free(tags);
}
END_TEST

// Rows that come while the index is made: the switch waits for a commit, the few without a new index are attended exactly, and later rows get
// codes of the new parameters.
START_TEST(rows_that_come_meanwhile)
{
	uint64_t *tags = tags_from(1, 20000);
	struct context *c = sealed("a", 2 * _i, tags, 6000);
	struct reindex *x, *second;
	struct seal_plan plan;
	if (_i) { // neither codes nor tables
		ck_assert_int_eq(reindex_begin(f.store, c, &x, f.why), MPIG_ENOTSUP);
		context_unref(c);
		free(tags);
		return;
	}
	ck_assert_int_eq(reindex_begin(f.store, c, &x, f.why), 0);
	ck_assert_int_eq(reindex_begin(f.store, c, &second, f.why), MPIG_EBUSY);
	for (uint32_t strip = 0; strip < context_strips(c); strip++) {
		for (uint32_t i = 0; i < (strip < 2 ? 64 : 80); i++) {
			reindex_mu(x, strip)[i] = (float)strip;
			reindex_balance(x, strip)[i] = (float)i;
		}
		if (reindex_bits(x)[strip] == MPIG_BITS_AUTO)
			reindex_bits(x)[strip] = 2;
	}
	ck_assert_int_eq(reindex_next(x, test_table_bytes, &plan, f.why), 1);
	ck_assert_uint_eq(plan.rows, 6000);
	seal_fill(c, &plan, tags);
	append_all(c, 6000, 300, tags + 6000);
	reindex_done(x, &plan, true);
	ck_assert_int_eq(reindex_next(x, test_table_bytes, &plan, f.why), 0);
	ck_assert_int_eq(reindex_switch(x, f.why), MPIG_EAGAIN);
	ck_assert_int_eq(commit(c, 6000, 300, tags + 6000), 0);
	append_all(c, 6300, 5000, tags + 6300);
	ck_assert_int_eq(commit(c, 6300, 5000, tags + 6300), 0);
	ck_assert_int_eq(reindex_switch(x, f.why), 1); // too many to attend exactly
	ck_assert_int_eq(reindex_next(x, test_table_bytes, &plan, f.why), 1);
	ck_assert_uint_eq(plan.first, 6000);
	seal_fill(c, &plan, tags + plan.first);
	reindex_done(x, &plan, true);
	append_all(c, 11300, 200, tags + 11300);
	ck_assert_int_eq(commit(c, 11300, 200, tags + 11300), 0);
	ck_assert_int_eq(reindex_switch(x, f.why), 0);
	reindex_end(x);
	struct layer_view view;
	append_all(c, 11500, 1000, tags + 11500);
	ck_assert_int_eq(commit(c, 11500, 1000, tags + 11500), 0);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 12500, &view), 0);
	ck_assert_uint_eq(coded(&view), 11300 + 1000);
	check_view(&view, tags);
	layer_view_free(f.store, &view);
	ck_assert_int_eq(reindex(&f, c, tags, 12500), 0); // the 200 have their turn the next time
	check_all(c, 3, tags, 12500);
	audited();
	context_unref(c);
	free(tags);
}
END_TEST

// Up to `steps` more parts of a verification; returns how many of them are damaged.
static uint32_t verify(const char *name, struct verify_part *part, uint32_t steps)
{
	uint32_t damaged = 0;
	for (uint32_t i = 0; i < steps && part->more; i++) {
		ck_assert_int_eq(store_context_verify(f.store, &root, name, part, f.why), 0);
		damaged += part->damaged;
	}
	return damaged;
}

// Indexed again after any of its parts: no part of what there is then is taken for damaged.
START_TEST(verified_meanwhile)
{
	uint64_t *tags = tags_from(1, 6000);
	struct context *c = sealed("a", 1, tags, 6000);
	bool more = true;
	for (uint32_t stop = 0; more; stop++) {
		struct verify_part part = {.more = true};
		uint32_t damaged = verify("a", &part, stop);
		more = part.more;
		ck_assert_int_eq(reindex(&f, c, tags, 6000), 0);
		damaged += verify("a", &part, UINT32_MAX);
		ck_assert_msg(damaged == 0, "%u damaged parts of an index made after %u", damaged, stop);
	}
	context_unref(c);
	free(tags);
}
END_TEST

// A context's verification keeps its own index and no other's from being freed, so it looks at no other's.
START_TEST(verified_alone)
{
	uint64_t *tags = tags_from(1, 6000);
	struct context *c = sealed("parent", 1, tags, 6000), *one;
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 5000, "one", &one, f.why), 0);
	ck_assert_int_eq(reindex(&f, c, tags, 6000), 0);
	struct layer_view view;
	ck_assert_int_eq(layer_view_get(f.store, one, 0, 0, 5000, &view), 0);
	uint8_t *code = (uint8_t *)(uintptr_t)view.strip[0].spans[0].codes;
	for (int damaged = 0; damaged < 2; damaged++) {
		struct verify_part mine = {.more = true}, theirs = {.more = true};
		*code ^= damaged ? 0xff : 0;
		ck_assert_uint_eq(verify("parent", &mine, UINT32_MAX), 0);
		ck_assert_uint_eq(verify("one", &theirs, UINT32_MAX), damaged);
	}
	*code ^= 0xff;
	layer_view_free(f.store, &view);
	context_unref(one);
	context_unref(c);
	free(tags);
}
END_TEST

// Given up, dropped, refused for want of memory: nothing is left of it.
START_TEST(given_up)
{
	uint64_t *tags = tags_from(1, 6000);
	struct context *c = sealed("a", 0, tags, 6000);
	uint64_t used = pool_used(f.pool), bytes = store_uid_bytes(f.store, 0);
	struct reindex *x;
	struct seal_plan plan;
	ck_assert_int_eq(reindex_begin(f.store, c, &x, f.why), 0);
	memset(reindex_bits(x), 2, 2);
	ck_assert_int_eq(reindex_next(x, test_table_bytes, &plan, f.why), 1);
	seal_fill(c, &plan, tags);
	reindex_done(x, &plan, _i != 0);
	reindex_end(x);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), bytes);
	check_all(c, 1, tags, 6000);
	audited();
	ck_assert_int_eq(reindex_begin(f.store, c, &x, f.why), 0);
	memset(reindex_bits(x), 2, 2);
	ck_assert_int_eq(reindex_next(x, test_table_bytes, &plan, f.why), 1);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	reindex_done(x, &plan, true);
	ck_assert_int_eq(reindex_switch(x, f.why), MPIG_ENOENT);
	reindex_end(x);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	context_unref(c);
	audited();
	free(tags);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("reindex");
	TCase *t = tcase_create("reindex");
	tcase_add_checked_fixture(t, open_small, close_all);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, readers_keep_what_they_began_with, 0, 2);
	tcase_add_test(t, forks_keep_theirs);
	tcase_add_loop_test(t, rows_that_come_meanwhile, 0, 2);
	tcase_add_test(t, verified_meanwhile);
	tcase_add_test(t, verified_alone);
	tcase_add_loop_test(t, given_up, 0, 2);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
