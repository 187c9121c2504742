// Contexts: what a spec may say, names, finding, listing, forks, and what is told about them.
#include <math.h>

#include "tests/lib/suite.h"
#include "tests/store/fixture.h"

static struct fixture f;
static struct credentials root;
static void setup(void)
{
	fixture_open(&f, 48 << 20, 0, 0);
	root = user(0);
}
static void teardown(void)
{
	fixture_close(&f);
}

static int create(const struct mpig_ctl_create *body, const struct mpig_wire_layer *layers, struct context **c)
{
	*c = NULL;
	return store_context_create(f.store, &root, body, layers, c, f.why);
}

// ---- specs -----------------------------------------------------------------------------------------------------------

START_TEST(bad_specs_are_refused_by_field_layer_value_and_limit)
{
	const struct mpig_wire_layer good = layer_of(4, 2, 64, 0, 2, 8, 16);
	static const struct {
		const char *field, *value;
		size_t offset, size;
		uint64_t bits;
	} bad[] = {
		{"kind", "3", offsetof(struct mpig_wire_layer, kind), 1, 3},
		{"row_dtype", "4", offsetof(struct mpig_wire_layer, row_dtype), 1, 4},
		{"query_heads", "0", offsetof(struct mpig_wire_layer, query_heads), 2, 0},
		{"query_heads", "257", offsetof(struct mpig_wire_layer, query_heads), 2, 257},
		{"kv_heads", "0", offsetof(struct mpig_wire_layer, kv_heads), 2, 0},
		{"kv_heads", "3", offsetof(struct mpig_wire_layer, kv_heads), 2, 3},
		{"kv_heads", "8", offsetof(struct mpig_wire_layer, kv_heads), 2, 8},
		{"d_k", "0", offsetof(struct mpig_wire_layer, d_k), 2, 0},
		{"d_k", "72", offsetof(struct mpig_wire_layer, d_k), 2, 72},
		{"d_k", "512", offsetof(struct mpig_wire_layer, d_k), 2, 512},
		{"d_v", "100", offsetof(struct mpig_wire_layer, d_v), 2, 100},
		{"signature_bits", "3", offsetof(struct mpig_wire_layer, signature_bits), 1, 3},
		{"signature_bytes", "100", offsetof(struct mpig_wire_layer, signature_bytes), 2, 100}, // without AUTO
		{"signature_bits", "8", offsetof(struct mpig_wire_layer, signature_bits), 1, 8},
		{"paper_k", "0", offsetof(struct mpig_wire_layer, paper_k), 2, 0},
		{"paper_k", "17", offsetof(struct mpig_wire_layer, paper_k), 2, 17},
		{"paper_l", "0", offsetof(struct mpig_wire_layer, paper_l), 2, 0},
		{"paper_l", "1", offsetof(struct mpig_wire_layer, paper_l), 2, 1},
		{"paper_l", "513", offsetof(struct mpig_wire_layer, paper_l), 2, 513},
		{"table_hash", "2", offsetof(struct mpig_wire_layer, table_hash), 1, 2},
		{"paper_k", "8", offsetof(struct mpig_wire_layer, table_hash), 1, MPIG_HASH_CROSSPOLYTOPE},
		{"table_balance", "2", offsetof(struct mpig_wire_layer, table_balance), 1, 2},
		{"default_proposal", "11", offsetof(struct mpig_wire_layer, default_proposal), 1, MPIG_PROPOSAL_COUNT},
		{"scale", "nan", offsetof(struct mpig_wire_layer, scale), 4, 0x7fc00000},
		{"scale", "inf", offsetof(struct mpig_wire_layer, scale), 4, 0x7f800000},
		{"scale", "-1", offsetof(struct mpig_wire_layer, scale), 4, 0xbf800000},
		{"softcap", "-1", offsetof(struct mpig_wire_layer, softcap), 4, 0xbf800000},
		{"softcap", "inf", offsetof(struct mpig_wire_layer, softcap), 4, 0x7f800000},
		{"default_budget", "2", offsetof(struct mpig_wire_layer, default_budget), 4, 0x40000000},
		{"default_budget", "nan", offsetof(struct mpig_wire_layer, default_budget), 4, 0x7fc00000},
		{"alibi_slope_base", "2", offsetof(struct mpig_wire_layer, alibi_slope_base), 4, 0x40000000},
		{"reserved", "0", offsetof(struct mpig_wire_layer, reserved) + 23, 1, 1},
	};
	struct context *c;
	uint64_t used = pool_used(f.pool);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct mpig_wire_layer layer[2] = {good, good};
		memcpy((char *)&layer[1] + bad[i].offset, &bad[i].bits, bad[i].size);
		struct mpig_ctl_create body = create_of("a", 2);
		ck_assert_msg(create(&body, layer, &c) == MPIG_EINVAL, "%s %s", bad[i].field, bad[i].value);
		ck_assert_msg(strstr(f.why, "layer 1") && strstr(f.why, bad[i].field) && strstr(f.why, bad[i].value) &&
		                      strstr(f.why, "must"),
		              "%s %s: %s", bad[i].field, bad[i].value, f.why);
	}
	struct mpig_wire_layer layer = layer_of(4, 2, 64, 0, 0, 0, 0);
	struct mpig_ctl_create body = create_of("a", 1);
	layer.default_proposal = MPIG_PROPOSAL_SIGNATURE;
	ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(f.why, "signature_bits"));
	for (int i = 0; i < 2; i++) {
		layer.default_proposal = i ? MPIG_PROPOSAL_TOPK_ESTIMATED : MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED;
		ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL);
		ck_assert_ptr_nonnull(strstr(f.why, "estimates but signature_bits"));
	}
	layer.default_proposal = MPIG_PROPOSAL_PAPER;
	ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(f.why, "paper_k"));
	layer = (struct mpig_wire_layer){.kind = MPIG_LAYER_CHUNKED};
	ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL); // nothing to store
	for (int i = 0; i < 4; i++) { // what no client would believe of a layer, though it stores nothing
		struct mpig_wire_layer two[] = {good, {.kind = MPIG_LAYER_SLIDING}};
		*(i == 0 ? &two[1].query_heads : i == 1 ? &two[1].kv_heads : i == 2 ? &two[1].d_k : &two[1].d_v) = 257;
		body = create_of("a", 2);
		ck_assert_int_eq(create(&body, two, &c), MPIG_EINVAL);
		ck_assert_ptr_nonnull(strstr(f.why, "layer 1"));
		ck_assert_ptr_nonnull(strstr(f.why, "257"));
	}
	body.layer_count = 0;
	ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL);
	body.layer_count = 513;
	ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(f.why, "513"));
	body = create_of("a", 1);
	body.mode = 01777;
	ck_assert_int_eq(create(&body, &good, &c), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(f.why, "mode"));
	ck_assert_uint_eq(pool_used(f.pool), used);
}
END_TEST

START_TEST(defaults_are_resolved)
{
	static const uint32_t dims[] = {64, 80, 96, 128, 256};
	struct mpig_wire_layer layer[6];
	for (int i = 0; i < 5; i++)
		layer[i] = layer_of(6, 3, dims[i], i == 2 ? MPIG_I8 : 0,
		                    i == 0   ? 2
		                    : i == 1 ? 4
		                             : 0,
		                    i == 3 ? 10 : 0, i == 3 ? 150 : 0);
	layer[4].d_v = 64;
	layer[4].scale = .5f;
	layer[4].default_budget = .25f;
	layer[5] = (struct mpig_wire_layer){.kind = MPIG_LAYER_SLIDING, .window = 512};
	struct mpig_ctl_create body = create_of("a", 6);
	struct context *c;
	ck_assert_msg(create(&body, layer, &c) == 0, "%s", f.why);
	ck_assert_uint_eq(context_layer_count(c), 6);
	static const uint32_t padded[] = {64, 128, 128, 128, 256}, code_bytes[] = {18, 66, 0, 0, 0};
	static const uint8_t proposal[] = {MPIG_PROPOSAL_SIGNATURE, MPIG_PROPOSAL_SIGNATURE, MPIG_PROPOSAL_DENSE,
	                                   MPIG_PROPOSAL_PAPER, MPIG_PROPOSAL_DENSE};
	for (uint32_t i = 0; i < 5; i++) {
		const struct layer *l = context_layer(c, i);
		ck_assert_uint_eq(l->first_strip, 3 * i);
		ck_assert_uint_eq(l->d_pad, padded[i]);
		ck_assert_uint_eq(l->code_bytes_per_row, code_bytes[i]);
		ck_assert_uint_eq(l->wire.default_proposal, proposal[i]);
		ck_assert_float_eq_tol(l->scale, i == 4 ? .5f : 1 / sqrtf((float)dims[i]), 1e-7f);
		ck_assert_float_eq(l->wire.default_budget, i == 4 ? .25f : 0);
		ck_assert_uint_eq(l->shape.d_v, i == 4 ? 64 : dims[i]);
		ck_assert_uint_eq(l->wire.row_dtype, i == 2 ? MPIG_I8 : MPIG_BF16);
	}
	ck_assert_ptr_null(context_layer(c, 5));
	ck_assert_ptr_null(context_layer(c, 6));
	ck_assert_uint_eq(context_spec_layer(c, 5)->window, 512);
	ck_assert_ptr_null(context_spec_layer(c, 6));
	struct mpig_wire_context info;
	store_context_info(f.store, c, &info);
	ck_assert(info.global_layers == 5 && info.layer_count == 6 && info.mode == 0600 && info.seed == 7);
	context_unref(c);
}
END_TEST

// ---- names -----------------------------------------------------------------------------------------------------------

START_TEST(names_are_checked)
{
	struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
	static const char *const bad[] = {"", "a/b", "a\nb", "\x7f", "caf\xc3\xa9", ".", ".."};
	struct context *c, *second;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct mpig_ctl_create body = create_of(bad[i], 1);
		ck_assert_msg(create(&body, &layer, &c) == MPIG_EINVAL, "%s", bad[i]);
		ck_assert_ptr_nonnull(strstr(f.why, "name"));
	}
	struct mpig_ctl_create body = create_of("a", 1);
	memset(body.name, 'a', sizeof body.name);
	ck_assert_int_eq(create(&body, &layer, &c), MPIG_EINVAL);
	ck_assert_int_eq(store_context_open(f.store, &root, body.name, NULL, &c, f.why), MPIG_ENOENT);
	body.name[127] = 0;
	ck_assert_int_eq(create(&body, &layer, &c), 0);
	ck_assert_int_eq(create(&body, &layer, &second), MPIG_EEXIST);
	context_unref(c);
	body = create_of("~ A name, with: everything!", 1);
	ck_assert_int_eq(create(&body, &layer, &c), 0);
	uint8_t fingerprint[64] = {1};
	ck_assert_int_eq(store_context_open(f.store, &root, body.name, fingerprint, &second, f.why), 0);
	ck_assert_ptr_eq(c, second);
	context_unref(second);
	fingerprint[63] = 1;
	ck_assert_int_eq(store_context_open(f.store, &root, body.name, fingerprint, &second, f.why), MPIG_EINVAL);
	memset(fingerprint, 0, sizeof fingerprint);
	ck_assert_int_eq(store_context_open(f.store, &root, body.name, fingerprint, &second, f.why), 0);
	context_unref(second);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 0, body.name, &second, f.why), MPIG_EEXIST);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 0, "x/y", &second, f.why), MPIG_EINVAL);
	ck_assert_int_eq(store_context_drop(f.store, &root, "nobody", f.why), MPIG_ENOENT);
	ck_assert_int_eq(store_context_drop(f.store, &root, body.name, f.why), 0);
	ck_assert_int_eq(store_context_open(f.store, &root, body.name, NULL, &second, f.why), MPIG_ENOENT);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 0, "z", &second, f.why), MPIG_ENOENT);
	ck_assert_int_eq(create(&body, &layer, &second), 0); // the name is free, the handle stays dead
	ck_assert(context_dropped(c) && context_id(c) != context_id(second));
	struct mpig_wire_context info;
	store_context_info(f.store, c, &info);
	ck_assert_uint_eq(info.committed, 0);
	context_unref(c);
	context_unref(second);
}
END_TEST

START_TEST(many_contexts_are_listed_in_pages)
{
	struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
	uint64_t begin = pool_used(f.pool);
	for (int i = 0; i < 150; i++) {
		char name[16];
		snprintf(name, sizeof name, "c%d", i);
		struct mpig_ctl_create body = create_of(name, 1);
		struct credentials who = user(i % 3 == 0 ? 5 : 6);
		struct context *c;
		ck_assert_int_eq(store_context_create(f.store, &who, &body, &layer, &c, f.why), 0);
		context_unref(c);
	}
	struct mpig_wire_context page[40];
	for (uint32_t uid = 0; uid <= 6; uid += 5) {
		struct credentials who = user(uid);
		uint64_t cursor = 0, last = 0;
		uint32_t total = 0, pages = 0;
		do {
			uint32_t n = store_context_list(f.store, &who, &cursor, page, 40);
			for (uint32_t i = 0; i < n; i++) {
				must(page[i].id > last && (uid == 0 || page[i].uid == uid));
				last = page[i].id;
			}
			total += n;
			pages++;
		} while (cursor);
		ck_assert_uint_eq(total, uid == 0 ? 150 : 50);
		ck_assert_uint_eq(pages, uid == 0 ? 4 : 2);
	}
	struct store_totals totals;
	store_totals(f.store, &totals);
	ck_assert_uint_eq(totals.contexts, 150);
	ck_assert_uint_eq(totals.metadata_bytes, pool_used(f.pool));
	for (int i = 149; i >= 0; i--) {
		char name[16];
		snprintf(name, sizeof name, "c%d", (i * 7) % 150);
		ck_assert_int_eq(store_context_drop(f.store, &root, name, f.why), 0);
	}
	ck_assert_uint_eq(pool_used(f.pool), begin);
}
END_TEST

// ---- forks, private memory -------------------------------------------------------------------------------------------

START_TEST(forks_share_and_part)
{
	struct mpig_wire_layer layer = layer_of(2, 2, 64, 0, 2, 0, 0);
	struct mpig_ctl_create body = create_of("p", 1);
	struct context *p, *a, *b, *none;
	uint64_t tags[3000];
	uint32_t ids[3000], back[3000];
	for (uint32_t i = 0; i < 3000; i++)
		ids[i] = (uint32_t)(tags[i] = i + 5);
	ck_assert_int_eq(create(&body, &layer, &p), 0);
	ck_assert_int_eq(context_lease(f.store, p, &root, 1, f.why), 0);
	ck_assert_int_eq(append_rows(&f, p, 0, 0, 3000, tags), 0);
	ck_assert_int_eq(context_commit(f.store, p, 0, 3000, ids, f.why), 0);
	ck_assert_int_eq(store_context_fork(f.store, &root, p, 3001, "a", &a, f.why), MPIG_ERANGE);
	uint64_t used = pool_used(f.pool);
	ck_assert_int_eq(store_context_fork(f.store, &root, p, 2000, "a", &a, f.why), 0);
	ck_assert_int_eq(store_context_fork(f.store, &root, a, 500, "b", &b, f.why), 0); // of a fork, and before its end
	ck_assert_uint_lt(pool_used(f.pool), used + (64 << 10));
	struct mpig_wire_context info;
	store_context_info(f.store, b, &info);
	ck_assert(info.parent_id == context_id(a) && info.fork_tokens == 500 && info.committed == 500 && info.seed == 7);
	ck_assert_uint_eq(info.shared_bytes, info.rows_bytes + info.index_bytes + info.metadata_bytes - 4 * 4096 + 4096);
	ck_assert_int_eq(context_lease(f.store, b, &root, 2, f.why), 0);
	for (uint32_t i = 500; i < 900; i++)
		ids[i] = (uint32_t)(tags[i] = i + 100000);
	ck_assert_int_eq(append_rows(&f, b, 0, 500, 400, tags + 500), 0);
	ck_assert_int_eq(context_commit(f.store, b, 500, 400, ids + 500, f.why), 0);
	context_tokens(f.store, b, 0, 900, back);
	ck_assert_mem_eq(back, ids, 900 * sizeof *ids);
	context_tokens(f.store, p, 400, 1000, back);
	for (uint32_t i = 0; i < 1000; i++)
		must(back[i] == i + 405);
	struct layer_view v;
	ck_assert_int_eq(layer_view_get(f.store, b, 0, 490, 510, &v), 0);
	ck_assert_uint_eq(v.span_count, 2);
	for (uint32_t h = 0; h < 2; h++)
		for (uint32_t i = 0; i < 20; i++)
			must(row_is(v.strip[h].spans[i / 10].rows + i % 10 * 256, 256, tags[490 + i], h));
	layer_view_free(f.store, &v);
	ck_assert_int_eq(store_context_fork(f.store, &root, p, 0, "none", &none, f.why), 0);
	ck_assert_uint_eq(context_committed(none), 0);
	ck_assert_int_eq(store_context_drop(f.store, &root, "p", f.why), 0);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	context_tokens(f.store, b, 0, 900, back);
	ck_assert_mem_eq(back, ids, 900 * sizeof *ids);
	context_unref(p);
	context_unref(a);
	context_unref(b);
	context_unref(none);
}
END_TEST

static int released;
static void release(void *data)
{
	released += *(int *)data;
}

START_TEST(private_memory_goes_with_the_context)
{
	struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
	struct mpig_ctl_create body = create_of("a", 1);
	struct context *c;
	int one = 1, ten = 10;
	ck_assert_int_eq(create(&body, &layer, &c), 0);
	ck_assert_ptr_null(context_private(c));
	context_private_set(c, &one, release);
	ck_assert_ptr_eq(context_private(c), &one);
	context_private_set(c, &ten, release);
	ck_assert_int_eq(released, 1);
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	ck_assert_int_eq(released, 1);
	context_unref(c);
	ck_assert_int_eq(released, 11);
	context_unref(NULL);
}
END_TEST

START_TEST(a_store_takes_a_fresh_pool_only)
{
	struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
	struct mpig_ctl_create body = create_of("a", 1);
	struct context *c;
	ck_assert_int_eq(create(&body, &layer, &c), 0);
	context_unref(c);
	struct store *second;
	struct store_options o = {.pool = f.pool, .upper_reach = 1, .upper_least = 1};
	ck_assert_int_eq(store_create(&o, &second), MPIG_ENOTSUP);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("context");
	TCase *t = tcase_create("context");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, bad_specs_are_refused_by_field_layer_value_and_limit);
	tcase_add_test(t, defaults_are_resolved);
	tcase_add_test(t, names_are_checked);
	tcase_add_test(t, many_contexts_are_listed_in_pages);
	tcase_add_test(t, forks_share_and_part);
	tcase_add_test(t, private_memory_goes_with_the_context);
	tcase_add_test(t, a_store_takes_a_fresh_pool_only);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
