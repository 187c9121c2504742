// Segments, one thing at a time: blocks, spans, sealing, truncation, drops, a full pool.
#include "tests/lib/suite.h"
#include "tests/store/segments.h"

START_TEST(prefill_of_6000_is_sealed_indexed_and_trimmed)
{
	struct context *c = create("a", 0);
	uint64_t *tags = tags_from(1, 6400);
	append_all(c, 0, 6000, tags);
	ck_assert_uint_eq(context_committed(c), 0);
	ck_assert_int_eq(commit(c, 0, 6000, tags), 0);
	ck_assert(context_wants_seal(c));
	ck_assert_uint_eq(view_all(c, 0, tags), 0);
	ck_assert_uint_eq(context_signature_version(c), 0);
	uint64_t before = pool_used(f.pool);
	ck_assert_uint_eq(seal(c, tags), 6000);
	ck_assert_uint_eq(seal(c, tags), 0);
	ck_assert(!context_wants_seal(c));
	ck_assert_uint_lt(pool_used(f.pool), before); // what was trimmed is more than the index
	ck_assert_uint_eq(context_signature_version(c), 1);
	ck_assert_uint_eq(view_all(c, 0, tags), 6000);
	ck_assert_uint_eq(view_all(c, 2, tags), 6000);
	struct mpig_wire_context info;
	store_context_info(f.store, c, &info);
	ck_assert_uint_eq(info.indexed, 6000);
	ck_assert_uint_eq(info.segments, 1);
	// 4096 and 1904 rows, 3 strips, whole granules; codes of 16 and 16 bytes a row, factors
	ck_assert_uint_eq(info.rows_bytes, 2 * (walk_round(4096 * 256) + walk_round(1904 * 256)) + walk_round(4096 * 320) +
	                                           walk_round(1904 * 320));
	for (uint64_t t = 6000; t < 6400; t++) { // decoding: no rebuild, codes at once when there are more than a few
		append_all(c, t, 1, tags + t);
		ck_assert_int_eq(commit(c, t, 1, tags + t), 0);
	}
	ck_assert_uint_eq(view_all(c, 0, tags), 6400 - 128); // the first of an open segment are attended exactly
	audit(NULL, NULL);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	audit(NULL, NULL);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	free(tags);
}
END_TEST

START_TEST(blocks_grow_as_they_should)
{
	struct context *c = create("a", 2);
	uint64_t *tags = tags_from(1, 4000), at = 0;
	static const uint32_t decode[] = {16, 16, 32, 64, 128, 256, 512, 1024, 1024};
	for (size_t i = 0; i < 9; at += decode[i++]) {
		uint64_t used = pool_used(f.pool);
		ck_assert_int_eq(append_rows(&f, c, 0, at, 1, tags), 0);
		ck_assert_uint_gt(pool_used(f.pool), used);
		struct write_span span;
		ck_assert_int_eq(context_reserve(f.store, c, 0, at + 1, 1, f.why), 0);
		context_write_span(f.store, c, 0, 0, at + 1, &span);
		ck_assert_uint_eq(span.n, decode[i] - 1);
		used = pool_used(f.pool);
		for (uint32_t r = 1; r < decode[i]; r++)
			ck_assert_int_eq(append_rows(&f, c, 0, at + r, 1, tags + r), 0);
		ck_assert_uint_eq(pool_used(f.pool), used);
	}
	context_unref(c);
	free(tags);
}
END_TEST

// A client whose slots hold few rows cuts a large append: its blocks are no smaller for that.
START_TEST(appends_cut_to_slots_make_large_blocks)
{
	enum { PIECE = 16, N = 16384 };
	struct context *c = create("a", 2);
	uint64_t *tags = tags_from(1, N);
	for (uint32_t at = 0; at < N; at += PIECE)
		ck_assert_int_eq(append_rows(&f, c, 0, at, PIECE, tags + at), 0);
	for (uint32_t at = 2048; at < N; at += at < 4096 ? at : 4096) {
		struct write_span span;
		ck_assert_int_eq(context_reserve(f.store, c, 0, at, PIECE, f.why), 0);
		context_write_span(f.store, c, 0, 0, at, &span);
		ck_assert_uint_eq(span.n, at < 4096 ? at : 4096);
	}
	context_unref(c);
	free(tags);
}
END_TEST

START_TEST(more_than_one_segment_before_the_commit)
{
	struct context *c = create("a", 3);
	uint64_t *tags = tags_from(1, 70000);
	append_all(c, 0, 50000, tags);
	append_all(c, 50000, 20000, tags + 50000);
	ck_assert_int_eq(commit(c, 0, 60000, tags), 0);
	ck_assert_uint_eq(seal(c, tags), 0);                        // the rest of the segment is not committed
	ck_assert_int_eq(commit(c, 50000, 20000, tags + 50000), 0); // overlaps what is committed
	ck_assert(context_wants_seal(c));
	view_all(c, 0, tags);
	struct layer_view v;
	ck_assert_int_eq(layer_view_get(f.store, c, 2, 65530, 65545, &v), 0);
	ck_assert_uint_eq(v.span_count, 2);
	check_view(&v, tags);
	layer_view_free(f.store, &v);
	ck_assert_uint_eq(seal(c, tags), 65536);
	ck_assert_uint_eq(seal(c, tags), 70000 - 65536);
	ck_assert_uint_eq(seal(c, tags), 0);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 65530, 65545, &v), 0);
	ck_assert_uint_eq(v.table_count, 2);
	ck_assert_uint_eq(v.strip[0].tables[1].first, 65536);
	ck_assert_uint_eq(v.strip[0].tables[1].rows, 4464);
	check_view(&v, tags);
	layer_view_free(f.store, &v);
	audit(NULL, NULL);
	context_unref(c);
	free(tags);
}
END_TEST

START_TEST(positions_are_checked)
{
	struct context *c = create("a", 0);
	uint64_t *tags = tags_from(1, 100);
	ck_assert_int_eq(append_rows(&f, c, 0, 1, 1, tags), MPIG_ERANGE);
	ck_assert_int_eq(append_rows(&f, c, 1, 0, 1, tags), MPIG_EINVAL);
	ck_assert_int_eq(append_rows(&f, c, 9, 0, 1, tags), MPIG_EINVAL);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, UINT64_MAX, f.why), MPIG_ELIMIT);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, MPIG_MAX_TOKENS + 1, f.why), MPIG_ELIMIT);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, MPIG_MAX_TOKENS, f.why), MPIG_ENOSPC);
	ck_assert_int_eq(append_rows(&f, c, 0, 0, 100, tags), 0);
	ck_assert_int_eq(append_rows(&f, c, 2, 0, 50, tags), 0);
	ck_assert_int_eq(commit(c, 0, 100, tags), MPIG_ERANGE);
	ck_assert_ptr_nonnull(strstr(f.why, "layer 2"));
	ck_assert_int_eq(commit(c, 1, 1, tags), MPIG_ERANGE);
	ck_assert_int_eq(commit(c, 0, 50, tags), 0);
	ck_assert_int_eq(commit(c, 0, 50, tags), 0);
	ck_assert_int_eq(commit(c, 10, 20, tags), MPIG_EINVAL); // other ids
	uint32_t id = 0;
	ck_assert_int_eq(context_commit(f.store, c, 10, UINT64_MAX, &id, f.why), MPIG_ELIMIT);
	ck_assert_int_eq(context_commit(f.store, c, 50, MPIG_MAX_TOKENS, &id, f.why), MPIG_ELIMIT);
	ck_assert_int_eq(append_rows(&f, c, 0, 49, 1, tags), MPIG_ERANGE);
	ck_assert_int_eq(append_rows(&f, c, 0, 60, 40, tags + 60), 0); // again, not committed
	ck_assert_uint_eq(context_rows(c, 0), 100);
	ck_assert_int_eq(context_truncate(f.store, c, 101, f.why), MPIG_ERANGE);
	struct layer_view v;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 51, &v), MPIG_ERANGE);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 5, 4, &v), MPIG_ERANGE);
	ck_assert_int_eq(layer_view_get(f.store, c, 1, 0, 1, &v), MPIG_EINVAL);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 7, 7, &v), 0);
	ck_assert_uint_eq(v.span_count, 0);
	layer_view_free(f.store, &v);
	uint32_t ids[50];
	context_tokens(f.store, c, 0, 50, ids);
	for (int i = 0; i < 50; i++)
		ck_assert_uint_eq(ids[i], (uint32_t)tags[i]);
	context_unref(c);
	free(tags);
}
END_TEST

START_TEST(int8_frame_is_set_once_per_segment_and_layer)
{
	struct context *c = create("a", 1);
	uint64_t *tags = tags_from(1, 600);
	struct write_span span;
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, 300, f.why), 0);
	context_write_span(f.store, c, 0, 1, 0, &span);
	ck_assert(span.frame && span.frame_fresh && !span.frame_before);
	context_write_span(f.store, c, 0, 1, 256, &span);
	ck_assert(span.frame && !span.frame_fresh);
	ck_assert_int_eq(append_rows(&f, c, 0, 0, 300, tags), 0);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, 10, f.why), 0);
	context_write_span(f.store, c, 0, 1, 0, &span);
	ck_assert(!span.frame_fresh); // rows behind it were coded with the old one
	ck_assert_int_eq(context_reserve(f.store, c, 2, 0, 10, f.why), 0);
	context_write_span(f.store, c, 2, 0, 0, &span);
	ck_assert_ptr_null(span.frame);
	ck_assert_int_eq(context_truncate(f.store, c, 0, f.why), 0);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, 10, f.why), 0);
	context_write_span(f.store, c, 0, 0, 0, &span);
	ck_assert(span.frame_fresh);
	append_all(c, 0, 300, tags);
	ck_assert_int_eq(commit(c, 0, 300, tags), 0);
	ck_assert_uint_eq(seal(c, tags), 300);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 300, 10, f.why), 0);
	const float *frame = span.frame;
	context_write_span(f.store, c, 0, 0, 300, &span);
	ck_assert(span.frame_fresh && span.frame != frame && span.frame_before == frame);
	context_unref(c);
	free(tags);
}
END_TEST

START_TEST(truncation_waits_for_readers_of_what_it_gives_up)
{
	struct context *c = create("a", 0);
	uint64_t *tags = tags_from(1, 2000), *other = tags_from(9000, 2000);
	append_all(c, 0, 1500, tags);
	ck_assert_int_eq(commit(c, 0, 1500, tags), 0);
	struct layer_view v, late;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 1500, &v), 0);
	ck_assert_int_eq(context_truncate(f.store, c, 700, f.why), MPIG_EAGAIN);
	ck_assert_uint_eq(context_committed(c), 700);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 701, &late), MPIG_ERANGE);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 700, &late), 0);
	check_view(&late, tags);
	ck_assert_int_eq(append_rows(&f, c, 0, 700, 10, other), MPIG_EAGAIN);
	check_view(&v, tags);
	layer_view_free(f.store, &v);
	ck_assert_int_eq(context_truncate(f.store, c, 700, f.why), 0); // `late` came after and sees nothing of it
	append_all(c, 700, 100, other);
	ck_assert_int_eq(commit(c, 700, 100, other), 0);
	check_view(&late, tags);
	layer_view_free(f.store, &late);
	memcpy(tags + 700, other, 100 * sizeof *tags);
	view_all(c, 0, tags);
	audit(NULL, NULL);
	context_unref(c);
	free(tags);
	free(other);
}
END_TEST

START_TEST(truncation_into_sealed_rows_leaves_forks_alone)
{
	struct context *c = create("a", 0), *child;
	uint64_t *tags = tags_from(1, 6000), *mine = tags_from(70000, 6000);
	append_all(c, 0, 5000, tags);
	ck_assert_int_eq(commit(c, 0, 5000, tags), 0);
	ck_assert_uint_eq(seal(c, tags), 5000);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 5000, "b", &child, f.why), 0);
	struct layer_view v;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 5000, &v), 0);
	ck_assert_int_eq(context_truncate(f.store, c, 1000, f.why), 0); // sealed rows stay where they are: nobody waits
	memcpy(mine, tags, 1000 * sizeof *tags);
	append_all(c, 1000, 300, mine + 1000);
	ck_assert_int_eq(commit(c, 1000, 300, mine + 1000), 0);
	check_view(&v, tags);
	layer_view_free(f.store, &v);
	ck_assert_uint_eq(view_all(c, 0, mine), 1300);
	ck_assert_uint_eq(view_all(child, 0, tags), 5000);
	audit(NULL, NULL);
	ck_assert_int_eq(context_truncate(f.store, c, 0, f.why), 0);
	ck_assert_uint_eq(view_all(child, 0, tags), 5000);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	ck_assert_uint_eq(view_all(child, 0, tags), 5000);
	ck_assert_int_eq(context_signature_version(child), 1);
	audit(NULL, NULL);
	context_unref(child);
	free(tags);
	free(mine);
}
END_TEST

START_TEST(drop_under_readers_and_a_writer)
{
	struct context *c = create("a", 0);
	uint64_t *tags = tags_from(1, 2000);
	append_all(c, 0, 1000, tags);
	ck_assert_int_eq(commit(c, 0, 1000, tags), 0);
	struct layer_view v, none;
	ck_assert_int_eq(layer_view_get(f.store, c, 2, 10, 900, &v), 0);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 1000, 500, f.why), 0);
	struct write_span span;
	context_write_span(f.store, c, 0, 0, 1000, &span);
	uint64_t used = pool_used(f.pool);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	ck_assert_uint_eq(pool_used(f.pool), used);
	memset(span.rows, 1, 24 * 256); // still ours
	check_view(&v, tags);
	layer_view_free(f.store, &v);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, 1, &none), MPIG_ENOENT);
	context_appended(c, 0, 1500);
	ck_assert_uint_lt(pool_used(f.pool), used);
	ck_assert_int_eq(append_rows(&f, c, 0, 1500, 1, tags), MPIG_ENOENT);
	ck_assert_int_eq(commit(c, 1000, 1, tags), MPIG_ENOENT);
	ck_assert_int_eq(context_truncate(f.store, c, 0, f.why), MPIG_ENOENT);
	ck_assert(context_dropped(c));
	ck_assert_uint_eq(context_committed(c), 1000);
	context_release(f.store, c, 1);
	context_unref(c);
	audit(NULL, NULL);
	free(tags);
}
END_TEST

START_TEST(drop_and_release_during_a_seal)
{
	uint64_t *tags = tags_from(1, 5000);
	for (int dropped = 0; dropped < 2; dropped++) {
		struct context *c = create("a", 1), *child;
		append_all(c, 0, 5000, tags);
		ck_assert_int_eq(commit(c, 0, 5000, tags), 0);
		struct seal_plan plan, second;
		ck_assert_int_eq(seal_begin(f.store, c, test_table_bytes, &plan, f.why), 0);
		ck_assert(plan.needs_params && plan.needs_codes && plan.needs_tables);
		ck_assert_int_eq(seal_begin(f.store, c, test_table_bytes, &second, f.why), MPIG_EBUSY);
		ck_assert_int_eq(store_context_fork(f.store, &root, c, 10, "x", &child, f.why), MPIG_EBUSY);
		context_release(f.store, c, 1);
		ck_assert_int_eq(context_lease(f.store, c, &root, 2, f.why), MPIG_EBUSY);
		if (dropped)
			ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
		seal_fill(c, &plan, tags);
		context_seal_finish(f.store, &plan, true);
		if (!dropped) {
			ck_assert_uint_eq(view_all(c, 0, tags), 5000);
			audit(NULL, NULL);
			ck_assert_int_eq(context_lease(f.store, c, &root, 2, f.why), 0);
			ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
		}
		context_unref(c);
		audit(NULL, NULL);
	}
	free(tags);
}
END_TEST

START_TEST(an_abandoned_seal_changes_nothing)
{
	struct context *c = create("a", 1);
	uint64_t *tags = tags_from(1, 5000), used, charged;
	append_all(c, 0, 5000, tags);
	ck_assert_int_eq(commit(c, 0, 5000, tags), 0);
	used = pool_used(f.pool);
	charged = store_uid_bytes(f.store, 0);
	struct seal_plan plan;
	ck_assert_int_eq(seal_begin(f.store, c, test_table_bytes, &plan, f.why), 0);
	ck_assert_uint_gt(pool_used(f.pool), used);
	context_seal_finish(f.store, &plan, false);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), charged);
	ck_assert_uint_eq(context_signature_version(c), 0);
	ck_assert_uint_eq(seal(c, tags), 5000);
	audit(NULL, NULL);
	context_unref(c);
	free(tags);
}
END_TEST

START_TEST(a_full_pool_refuses_before_anything_changes)
{
	struct context *c = create("a", 0);
	uint64_t *tags = tags_from(1, 64000), n = 0;
	for (;; n += 1000) {
		int status = append_rows(&f, c, 0, n, 1000, tags + n % 10000);
		if (!status)
			status = append_rows(&f, c, 2, n, 1000, tags + n % 10000);
		if (status) {
			ck_assert_int_eq(status, MPIG_ENOSPC);
			ck_assert_ptr_nonnull(strstr(f.why, "pool is full"));
			break;
		}
		ck_assert_int_eq(commit(c, n, 1000, tags + n % 10000), 0);
	}
	ck_assert_uint_gt(n, 50000);
	uint64_t used = pool_used(f.pool), charged = store_uid_bytes(f.store, 0);
	ck_assert_int_eq(append_rows(&f, c, 0, context_rows(c, 0), 64000, tags), MPIG_ENOSPC);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), charged);
	audit(NULL, NULL);
	ck_assert_int_eq(context_truncate(f.store, c, 1000, f.why), 0);
	ck_assert_int_eq(append_rows(&f, c, 0, 1000, 1000, tags), 0);
	audit(NULL, NULL);
	context_unref(c);
	free(tags);
}
END_TEST

START_TEST(a_dead_writers_rows_vanish)
{
	struct context *c = create("a", 0);
	uint64_t *tags = tags_from(1, 9000);
	append_all(c, 0, 1000, tags);
	ck_assert_int_eq(commit(c, 0, 700, tags), 0);
	struct context *child;
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 700, "b", &child, f.why), MPIG_EBUSY);
	ck_assert_int_eq(append_rows(&f, c, 0, 1000, 8000, tags + 1000), 0);
	context_release(f.store, c, 7); // not the holder
	ck_assert_uint_eq(context_rows(c, 0), 9000);
	uint64_t used = pool_used(f.pool);
	context_release(f.store, c, 1);
	ck_assert_uint_eq(context_rows(c, 0), 700);
	ck_assert_uint_lt(pool_used(f.pool), used);
	view_all(c, 0, tags);
	audit(NULL, NULL);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 700, "b", &child, f.why), 0);
	view_all(child, 2, tags);
	audit(NULL, NULL);
	context_unref(child);
	context_unref(c);
	free(tags);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("segment");
	TCase *t = tcase_create("segment");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, open_small, close_all);
	tcase_add_test(t, prefill_of_6000_is_sealed_indexed_and_trimmed);
	tcase_add_test(t, blocks_grow_as_they_should);
	tcase_add_test(t, appends_cut_to_slots_make_large_blocks);
	tcase_add_test(t, more_than_one_segment_before_the_commit);
	tcase_add_test(t, positions_are_checked);
	tcase_add_test(t, int8_frame_is_set_once_per_segment_and_layer);
	tcase_add_test(t, truncation_waits_for_readers_of_what_it_gives_up);
	tcase_add_test(t, truncation_into_sealed_rows_leaves_forks_alone);
	tcase_add_test(t, drop_under_readers_and_a_writer);
	tcase_add_test(t, drop_and_release_during_a_seal);
	tcase_add_test(t, an_abandoned_seal_changes_nothing);
	tcase_add_test(t, a_full_pool_refuses_before_anything_changes);
	tcase_add_test(t, a_dead_writers_rows_vanish);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
