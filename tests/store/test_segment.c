// Segments: blocks, spans, sealing, truncation, forks; random sequences of operations against a model in plain arrays, and an audit of
// every extent.
#include <pthread.h>

#include "tests/store/fixture.h"

#define LAYERS 3
#define MOST 12000u

static struct fixture f;
static struct credentials root;

static void open_small(void)
{
	fixture_open(&f, 96 << 20, 0, 0);
	root = user(0);
}

static void close_all(void)
{
	fixture_close(&f);
}

static void make_spec(int kind, struct mpig_wire_layer layer[LAYERS])
{
	layer[0] = layer_of(4, 2, 64, kind == 1 ? MPIG_I8 : 0, kind < 2 ? 2 : 0, kind == 1 || kind == 3 ? 4 : 0, kind == 1 || kind == 3 ? 8 : 0);
	layer[1] = (struct mpig_wire_layer){.kind = MPIG_LAYER_SLIDING, .window = 64};
	layer[2] = layer_of(3, 1, 80, MPIG_F16, kind < 2 ? 1 : 0, 0, 0);
}

static struct context *create(const char *name, int kind)
{
	struct mpig_wire_layer layer[LAYERS];
	make_spec(kind, layer);
	struct mpig_ctl_create body = create_of(name, LAYERS);
	struct context *c = NULL;
	ck_assert_msg(store_context_create(f.store, &root, &body, layer, &c, f.why) == 0, "%s", f.why);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	return c;
}

static uint64_t *tags_from(uint64_t base, uint64_t n)
{
	uint64_t *tags = malloc(n * sizeof *tags);
	for (uint64_t i = 0; i < n; i++)
		tags[i] = mix(base + i);
	return tags;
}

static void append_all(struct context *c, uint64_t position, uint64_t n, const uint64_t *tags)
{
	for (uint32_t l = 0; l < context_layer_count(c); l++)
		if (context_layer(c, l))
			ck_assert_msg(append_rows(&f, c, l, position, n, tags) == 0, "%s", f.why);
}

static int commit(struct context *c, uint64_t position, uint64_t n, const uint64_t *tags)
{
	uint32_t *ids = malloc((n ? n : 1) * sizeof *ids);
	for (uint64_t i = 0; i < n; i++)
		ids[i] = (uint32_t)tags[i];
	int status = context_commit(f.store, c, position, n, ids, f.why);
	free(ids);
	return status;
}

// Seals one segment whose rows have the tags of all[first..]; returns its rows.
static uint32_t seal(struct context *c, const uint64_t *all)
{
	struct seal_plan plan;
	ck_assert_msg(context_seal_begin(f.store, c, test_table_bytes, &plan, f.why) == 0, "%s", f.why);
	if (plan.rows)
		seal_fill(c, &plan, all + plan.first);
	context_seal_finish(f.store, &plan, true);
	return plan.rows;
}

// Each row of [begin, end) once, in order, with the bytes of its tag; returns how many rows have codes.
static uint64_t check_view(const struct layer_view *v, const uint64_t *tags)
{
	uint64_t coded = 0;
	const struct layer *l = v->layer;
	for (uint32_t h = 0; h < l->shape.kv_heads; h++) {
		const struct strip_view *s = &v->strip[h];
		uint32_t strip = l->first_strip + h;
		uint64_t at = v->begin;
		must((v->signature_version != 0) == (s->params.mu != NULL));
		if (s->params.mu)
			must(s->params.mu[0] == (float)strip && s->params.balance[l->shape.d_k - 1] == (float)(l->shape.d_k - 1));
		for (uint32_t i = 0; i < v->span_count; i++) {
			const struct span *span = &s->spans[i];
			must(span->first == at && span->n && span->n <= BLOCK_MAX_ROWS);
			for (uint32_t r = 0; r < span->n; r++) {
				must(row_is(span->rows + (uint64_t)r * l->rows.stride, l->rows.stride, tags[at + r], strip));
				must(!span->codes || codes_are(span->codes, span->factors, span->block_row + r, l->code_bytes_per_row - 2, tags[at + r], strip));
			}
			coded += span->codes && h == 0 ? span->n : 0;
			must((l->rows.type == ROW_I8) == (span->centre != NULL));
			if (span->table != UINT32_MAX) {
				must(span->table < v->table_count);
				const struct table_view *t = &s->tables[span->table];
				must(i >= t->span_begin && i < t->span_end && span->first >= t->first && span->first + span->n <= t->first + t->rows);
				must(*(const uint8_t *)t->table == (uint8_t)(strip + 1));
			}
			at += span->n;
		}
		must(at == v->end);
	}
	return coded;
}

static uint64_t view_all(struct context *c, uint32_t layer, const uint64_t *tags)
{
	struct layer_view v;
	ck_assert_int_eq(layer_view_get(f.store, c, layer, 0, context_committed(c), &v), 0);
	uint64_t coded = check_view(&v, tags);
	layer_view_free(f.store, &v);
	return coded;
}

static void audit(void (*each)(struct walk *, const struct walk_context *, void *), void *arg)
{
	struct walk w;
	walk_pool(&w, pool_at(f.pool, 0), pool_bytes(f.pool), each, arg);
	ck_assert_uint_eq(w.reached, pool_used(f.pool));
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), w.reached - POOL_GRANULE - walk_round(8ull * POOL_MAX_CONTEXTS));
	walk_free(&w);
}

// ---- one thing at a time ---------------------------------------------------------------------------------------------

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
	ck_assert_uint_eq(info.rows_bytes, 2 * (walk_round(4096 * 256) + walk_round(1904 * 256)) + walk_round(4096 * 320) + walk_round(1904 * 320));
	for (uint64_t t = 6000; t < 6400; t++) { // decoding: no rebuild, codes at once
		append_all(c, t, 1, tags + t);
		ck_assert_int_eq(commit(c, t, 1, tags + t), 0);
	}
	ck_assert_uint_eq(view_all(c, 0, tags), 6400);
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
	static const uint32_t decode[] = {256, 256, 512, 1024, 1024};
	for (size_t i = 0; i < 5; at += decode[i++]) {
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

START_TEST(more_than_one_segment_before_the_commit)
{
	struct context *c = create("a", 3);
	uint64_t *tags = tags_from(1, 70000);
	append_all(c, 0, 50000, tags);
	append_all(c, 50000, 20000, tags + 50000);
	ck_assert_int_eq(commit(c, 0, 60000, tags), 0);
	ck_assert_uint_eq(seal(c, tags), 0); // the rest of the segment is not committed
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

START_TEST(int8_centre_is_set_once_per_segment_and_layer)
{
	struct context *c = create("a", 1);
	uint64_t *tags = tags_from(1, 600);
	struct write_span span;
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, 300, f.why), 0);
	context_write_span(f.store, c, 0, 1, 0, &span);
	ck_assert(span.centre && span.centre_fresh);
	context_write_span(f.store, c, 0, 1, 256, &span);
	ck_assert(span.centre && !span.centre_fresh);
	ck_assert_int_eq(append_rows(&f, c, 0, 0, 300, tags), 0);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, 10, f.why), 0);
	context_write_span(f.store, c, 0, 1, 0, &span);
	ck_assert(!span.centre_fresh); // rows behind it were coded with the old one
	ck_assert_int_eq(context_reserve(f.store, c, 2, 0, 10, f.why), 0);
	context_write_span(f.store, c, 2, 0, 0, &span);
	ck_assert_ptr_null(span.centre);
	ck_assert_int_eq(context_truncate(f.store, c, 0, f.why), 0);
	ck_assert_int_eq(context_reserve(f.store, c, 0, 0, 10, f.why), 0);
	context_write_span(f.store, c, 0, 0, 0, &span);
	ck_assert(span.centre_fresh);
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
		ck_assert_int_eq(context_seal_begin(f.store, c, test_table_bytes, &plan, f.why), 0);
		ck_assert(plan.needs_params && plan.needs_codes && plan.needs_tables);
		ck_assert_int_eq(context_seal_begin(f.store, c, test_table_bytes, &second, f.why), MPIG_EBUSY);
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
	ck_assert_int_eq(context_seal_begin(f.store, c, test_table_bytes, &plan, f.why), 0);
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

// ---- random sequences against a model --------------------------------------------------------------------------------

struct model {
	struct context *c;
	char name[16];
	uint64_t tags[MOST], committed, rows[LAYERS], most;
};
struct held { struct layer_view view; struct model *of; uint64_t tags[MOST]; };

static struct model *models[6];
static struct held *held[8];
static uint64_t serial;

static void let_go(int i)
{
	if (!held[i])
		return;
	check_view(&held[i]->view, held[i]->tags);
	layer_view_free(f.store, &held[i]->view);
	free(held[i]);
	held[i] = NULL;
}

static int holds(const struct model *m)
{
	int n = 0;
	for (int i = 0; i < 8; i++)
		n += held[i] && held[i]->of == m;
	return n;
}

static void model_rows(struct model *m, uint64_t position)
{
	m->most = m->most < position ? m->most : position;
	for (int l = 0; l < LAYERS; l++)
		m->rows[l] = m->rows[l] < position ? m->rows[l] : position;
}

static void do_append(struct model *m, uint64_t *random)
{
	static const uint32_t sizes[] = {1, 1, 2, 5, 70, 300, 1500, 4500};
	uint32_t layer = next_below(random, 2) * 2;
	uint64_t back = m->rows[layer] - m->committed, position = m->rows[layer] - next_below(random, (uint32_t)(back < 5 ? back + 1 : 5));
	uint64_t n = 1 + next_below(random, sizes[next_below(random, 8)]);
	if (position + n > MOST)
		n = MOST - position;
	for (uint64_t t = m->most; t < position + n; t++)
		m->tags[t] = mix(++serial);
	uint64_t used = pool_used(f.pool), charged = store_uid_bytes(f.store, 0);
	int status = append_rows(&f, m->c, layer, position, n, m->tags + position);
	must(status == 0 || status == MPIG_ENOSPC);
	if (status) {
		must(pool_used(f.pool) == used && store_uid_bytes(f.store, 0) == charged);
		return;
	}
	if (position + n > m->most)
		m->most = position + n;
	if (position + n > m->rows[layer])
		m->rows[layer] = position + n;
}

static void do_truncate(struct model *m, uint64_t *random)
{
	uint64_t most = m->most > m->committed ? m->most : m->committed;
	uint64_t position = next_below(random, 3) ? most - next_below(random, (uint32_t)(most < 50 ? most + 1 : 50)) : next_below(random, (uint32_t)most + 1);
	int status = context_truncate(f.store, m->c, position, f.why);
	must(status == 0 || (status == MPIG_EAGAIN && holds(m)));
	m->committed = m->committed < position ? m->committed : position;
	model_rows(m, position);
	if (status) {
		must(context_reserve(f.store, m->c, 0, m->rows[0], 1, f.why) == MPIG_EAGAIN);
		for (int i = 0; i < 8; i++)
			if (held[i] && held[i]->of == m)
				let_go(i);
		must(context_truncate(f.store, m->c, position, f.why) == 0);
	}
}

static void do_commit(struct model *m, uint64_t *random)
{
	uint64_t least = m->rows[0] < m->rows[2] ? m->rows[0] : m->rows[2];
	uint64_t end = m->committed + (least > m->committed ? next_below(random, (uint32_t)(least - m->committed) + 1) : 0);
	if (next_below(random, 2))
		end = least > m->committed ? least : m->committed;
	must(commit(m->c, m->committed, end - m->committed, m->tags + m->committed) == 0);
	m->committed = end;
	must(commit(m->c, least + 1, 1, m->tags) == MPIG_ERANGE);
}

static void do_seal(struct model *m, uint64_t *random)
{
	struct seal_plan plan;
	int status = context_seal_begin(f.store, m->c, test_table_bytes, &plan, f.why);
	must(status == 0 || status == MPIG_ENOSPC);
	if (status || !plan.rows)
		return;
	must(plan.first + plan.rows <= m->committed);
	seal_fill(m->c, &plan, m->tags + plan.first);
	context_seal_finish(f.store, &plan, next_below(random, 8) != 0);
}

static void do_fork(struct model *m, uint64_t *random)
{
	uint32_t slot = next_below(random, 6);
	if (models[slot])
		return;
	struct model *child = calloc(1, sizeof *child);
	uint64_t at = next_below(random, (uint32_t)m->committed + 1);
	if (next_below(random, 2))
		at = m->committed;
	snprintf(child->name, sizeof child->name, "m%lu", (unsigned long)++serial);
	int status = store_context_fork(f.store, &root, m->c, at, child->name, &child->c, f.why);
	must(status == 0 || (status == MPIG_EBUSY && m->most > m->committed) || status == MPIG_ENOSPC);
	if (status) {
		free(child);
		return;
	}
	must(context_lease(f.store, child->c, &root, slot + 1, f.why) == 0);
	memcpy(child->tags, m->tags, at * sizeof *child->tags);
	child->committed = at;
	child->most = child->rows[0] = child->rows[2] = at;
	models[slot] = child;
}

static void do_drop(uint32_t slot)
{
	struct model *m = models[slot];
	must(store_context_drop(f.store, &root, m->name, f.why) == 0);
	for (int i = 0; i < 8; i++)
		if (held[i] && held[i]->of == m)
			let_go(i);
	context_release(f.store, m->c, slot + 1);
	context_unref(m->c);
	free(m);
	models[slot] = NULL;
}

static void do_view(struct model *m, uint64_t *random)
{
	uint32_t i = next_below(random, 8);
	let_go((int)i);
	uint64_t begin = next_below(random, (uint32_t)m->committed + 1), end = begin + next_below(random, (uint32_t)(m->committed - begin) + 1);
	struct held *h = malloc(sizeof *h);
	must(layer_view_get(f.store, m->c, next_below(random, 2) * 2, begin, end, &h->view) == 0);
	must(h->view.committed == m->committed);
	h->of = m;
	memcpy(h->tags, m->tags, m->committed * sizeof *h->tags);
	held[i] = h;
}

static void compare_with_model(struct walk *w, const struct walk_context *c, void *arg)
{
	(void)arg;
	struct model *m = NULL;
	for (int i = 0; i < 6; i++)
		if (models[i] && !strcmp(models[i]->name, c->record->name))
			m = models[i];
	must(m && c->record->committed == m->committed);
	for (uint64_t t = 0; t < m->committed; t += t % 97 + 1) {
		must(*(const uint32_t *)walk_find(w, c, t, UINT32_MAX) == (uint32_t)m->tags[t]);
		for (uint32_t s = 0; s < c->strips; s++)
			must(row_is(walk_find(w, c, t, s), (uint32_t)walk_stride(&c->layer[c->strip_layer[s]]), m->tags[t], s));
	}
}

static void check_everything(void)
{
	int any = 0;
	for (int i = 0; i < 8; i++)
		any |= held[i] != NULL;
	for (int i = 0; i < 6; i++)
		if (models[i])
			must(context_rows(models[i]->c, 0) == models[i]->rows[0] && context_rows(models[i]->c, 2) == models[i]->rows[2]);
	if (!any)
		audit(compare_with_model, NULL);
}

START_TEST(random_sequences_agree_with_a_model)
{
	uint64_t random = (uint64_t)_i * 7919;
	for (int step = 0; step < (getenv("MPIG_LONG") ? 20000 : 1200); step++) {
		uint32_t slot = next_below(&random, 6);
		struct model *m = models[slot];
		if (!m) {
			if (next_below(&random, 10))
				continue;
			m = models[slot] = calloc(1, sizeof *m);
			snprintf(m->name, sizeof m->name, "m%lu", (unsigned long)++serial);
			struct mpig_wire_layer layer[LAYERS];
			make_spec(_i % 4, layer);
			struct mpig_ctl_create body = create_of(m->name, LAYERS);
			must(store_context_create(f.store, &root, &body, layer, &m->c, f.why) == 0);
			must(context_lease(f.store, m->c, &root, slot + 1, f.why) == 0);
			continue;
		}
		switch (next_below(&random, 16)) {
		case 0: case 1: case 2: case 3: case 4: do_append(m, &random); break;
		case 5: case 6: case 7: do_commit(m, &random); break;
		case 8: case 9: do_view(m, &random); break;
		case 10: do_seal(m, &random); break;
		case 11: do_truncate(m, &random); break;
		case 12: do_fork(m, &random); break;
		case 13: if (next_below(&random, 3) == 0) do_drop(slot); break;
		case 14: let_go((int)next_below(&random, 8)); break;
		case 15:
			context_release(f.store, m->c, slot + 1);
			model_rows(m, m->committed);
			must(context_lease(f.store, m->c, &root, slot + 1, f.why) == 0);
			break;
		}
		if (step % 25 == 24) {
			if (step % 100 == 99)
				for (int i = 0; i < 8; i++)
					let_go(i);
			check_everything();
		}
	}
	for (int i = 0; i < 8; i++)
		let_go(i);
	for (uint32_t i = 0; i < 6; i++)
		if (models[i])
			do_drop(i);
	ck_assert_uint_eq(pool_used(f.pool), POOL_GRANULE + walk_round(8ull * POOL_MAX_CONTEXTS));
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	struct store_totals totals;
	store_totals(f.store, &totals);
	ck_assert_uint_eq(totals.contexts, 0);
	ck_assert_uint_eq(totals.metadata_bytes, pool_used(f.pool));
}
END_TEST

// ---- readers beside a writer -----------------------------------------------------------------------------------------

static _Atomic int stop;

// A row says which token it is; while it is pinned it does not change.
static void *reader(void *arg)
{
	struct context *c = arg;
	uint64_t random = (uint64_t)pthread_self(), looked = 0;
	while (!stop || looked < 50) {
		uint64_t committed = context_committed(c), begin = committed ? next_below(&random, (uint32_t)committed) : 0;
		struct layer_view v;
		int status = layer_view_get(f.store, c, 0, begin, committed, &v);
		if (status == MPIG_ERANGE)
			continue; // truncated since
		must(status == 0);
		for (uint32_t h = 0; h < 2; h++)
			for (uint64_t at = begin, i = 0; i < v.span_count; at += v.strip[h].spans[i++].n) {
				const struct span *span = &v.strip[h].spans[i];
				must(span->first == at);
				for (uint32_t r = 0; r < span->n; r += 1 + r / 8) {
					uint64_t tag, again;
					memcpy(&tag, span->rows + (uint64_t)r * 256, 8);
					must((tag & 0xffffffff) == at + r);
					memcpy(&again, span->rows + (uint64_t)r * 256 + 8, 8);
					must(again == tag);
				}
			}
		layer_view_free(f.store, &v);
		looked++;
	}
	return (void *)looked;
}

static void append_tagged(struct context *c, uint64_t position, uint64_t n, uint64_t version)
{
	for (uint32_t layer = 0; layer < LAYERS; layer += 2) {
		ck_assert_msg(context_reserve(f.store, c, layer, position, n, f.why) == 0, "%s", f.why);
		for (uint32_t h = 0; h < context_layer(c, layer)->shape.kv_heads; h++)
			for (uint64_t at = position; at < position + n;) {
				struct write_span span;
				context_write_span(f.store, c, layer, h, at, &span);
				uint32_t stride = context_layer(c, layer)->rows.stride;
				for (uint32_t r = 0; r < span.n && at < position + n; r++, at++) {
					uint64_t tag = at | version << 32;
					memcpy(span.rows + (uint64_t)r * stride, &tag, 8);
					memcpy(span.rows + (uint64_t)r * stride + 8, &tag, 8);
				}
			}
		context_appended(c, layer, position + n);
	}
	uint32_t *ids = calloc(n, sizeof *ids);
	ck_assert_msg(context_commit(f.store, c, position, n, ids, f.why) == 0, "%s", f.why);
	free(ids);
}

START_TEST(readers_run_beside_a_writer)
{
	struct context *c = create("a", 0);
	pthread_t t[2];
	uint64_t random = 3;
	stop = 0;
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, reader, c);
	for (uint64_t step = 0; step < 1500; step++) {
		uint64_t committed = context_committed(c);
		uint32_t what = next_below(&random, 20);
		if (what < 14 && committed < 9000) {
			append_tagged(c, committed, what ? 1 + next_below(&random, 40) : 1000, step);
		} else if (what < 16) {
			struct seal_plan plan;
			ck_assert_int_eq(context_seal_begin(f.store, c, test_table_bytes, &plan, f.why), 0);
			context_seal_finish(f.store, &plan, true);
		} else {
			uint64_t to = what == 19 ? next_below(&random, (uint32_t)committed + 1) : committed - committed / 50;
			while (context_truncate(f.store, c, to, f.why) == MPIG_EAGAIN)
				sched_yield();
		}
	}
	stop = 1;
	uint64_t looked = 0;
	for (int i = 0; i < 2; i++) {
		void *n;
		pthread_join(t[i], &n);
		looked += (uint64_t)n;
	}
	ck_assert_uint_ge(looked, 100);
	context_unref(c);
	audit(NULL, NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("segment");
	TCase *t = tcase_create("segment");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 600 : 120);
	tcase_add_checked_fixture(t, open_small, close_all);
	tcase_add_test(t, prefill_of_6000_is_sealed_indexed_and_trimmed);
	tcase_add_test(t, blocks_grow_as_they_should);
	tcase_add_test(t, more_than_one_segment_before_the_commit);
	tcase_add_test(t, positions_are_checked);
	tcase_add_test(t, int8_centre_is_set_once_per_segment_and_layer);
	tcase_add_test(t, truncation_waits_for_readers_of_what_it_gives_up);
	tcase_add_test(t, truncation_into_sealed_rows_leaves_forks_alone);
	tcase_add_test(t, drop_under_readers_and_a_writer);
	tcase_add_test(t, drop_and_release_during_a_seal);
	tcase_add_test(t, an_abandoned_seal_changes_nothing);
	tcase_add_test(t, a_full_pool_refuses_before_anything_changes);
	tcase_add_test(t, a_dead_writers_rows_vanish);
	tcase_add_loop_test(t, random_sequences_agree_with_a_model, 0, 8);
	tcase_add_test(t, readers_run_beside_a_writer);
	suite_add_tcase(suite, t);
	SRunner *runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
