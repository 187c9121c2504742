// Requests that are wrong: each is refused with the right status and a text, changes nothing, and the next right one works.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

static struct test_daemon *d;
static struct model_data data;
static struct test_client s;

static void setup_with(const char *config)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 2, 2000, 7);
	d = test_daemon_start(config);
	test_client_open(&s, d);
}

static void setup(void)
{
	setup_with(NULL);
}

static void setup_small(void)
{
	setup_with("[pool]\nsize = 16M\n");
}

static void teardown(void)
{
	test_client_close(&s);
	test_daemon_stop(d);
	model_data_free(&data);
}

// ---- NaN and infinity --------------------------------------------------------------------------------------------------
static const float poisons[] = {NAN, INFINITY, -INFINITY};

START_TEST(nan_in_q_is_an_error_completion)
{
	float q[4 * 64], out[4 * 64], lse[4];
	mpig_context *x = test_client_create(&s, "x", &data);
	static const int proposals[] = {MPIG_PROPOSAL_DENSE, MPIG_PROPOSAL_SIGNATURE, MPIG_PROPOSAL_TOPK, MPIG_PROPOSAL_UNIFORM};
	ck_assert_status(test_client_fill(&s, x, &data, 0, 2000, MPIG_COMMIT_SEAL), MPIG_OK);
	for (size_t p = 0; p < sizeof(proposals) / sizeof(proposals[0]); p++)
		for (size_t i = 0; i < 3; i++) {
			struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
			struct mpig_result result = MPIG_INIT(struct mpig_result);
			model_normal(q, 4 * 64, 11);
			attend.proposal = proposals[p];
			attend.q = q;
			result.out = out;
			result.lse = lse;
			ck_assert_status(mpig_attend(s.queue, x, &attend, &result), MPIG_OK);
			q[i == 0 ? 0 : i == 1 ? 100 : 255] = poisons[i];
			memset(out, 0x11, sizeof(out));
			ck_assert_status(mpig_attend(s.queue, x, &attend, &result), MPIG_ENAN);
			for (size_t j = 0; j < 4 * 64; j++) // outputs only on success
				ck_assert_mem_eq(&out[j], "\x11\x11\x11\x11", 4);
		}
	test_client_assert_dense(&s, x, &data, 0, 2000);
}
END_TEST

// _i: where the poison is put: K or V, first or last row.
START_TEST(nan_in_rows_stores_nothing)
{
	mpig_context *x = test_client_create(&s, "x", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 1000, 0), MPIG_OK);
	float *array = _i % 2 ? data.v : data.k;
	size_t at = (_i / 2 ? 1099 : 1000) * (2 * 64) + 77;
	float saved = array[at];
	for (size_t i = 0; i < 3; i++) {
		array[at] = poisons[i];
		ck_assert_status(mpig_append(s.queue, x, 0, 1000, 100, MPIG_F32, model_data_k(&data, 0, 1000),
		                             model_data_v(&data, 0, 1000), NULL, 0),
		                 MPIG_ENAN);
		array[at] = saved;
		ck_assert_status(mpig_commit(s.queue, x, 1000, 100, data.ids + 1000, 0),
		                 MPIG_ERANGE); // the layer holds nothing new
	}
	ck_assert_status(test_client_fill(&s, x, &data, 1000, 2000, MPIG_COMMIT_SEAL), MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, 2000);
}
END_TEST

// ---- specs -------------------------------------------------------------------------------------------------------------
// clang-format off
enum spec_change {
	LAYER_COUNT, KIND, ROW_DTYPE, QUERY_HEADS, KV_HEADS, D_K, D_V, PROPOSAL, BITS, PAPER_K, PAPER_L, HASH, BALANCE, BUDGET,
	SCALE, SOFTCAP, ALIBI, MODE
};
static const struct bad_spec {
	const char *what;
	enum spec_change change;
	float value;
} bad_specs[] = {
	{"no layers", LAYER_COUNT, 0},          {"too many layers", LAYER_COUNT, 513}, {"a negative count", LAYER_COUNT, -1},
	{"unknown kind", KIND, 3},              {"unknown row type", ROW_DTYPE, 17},       {"no query heads", QUERY_HEADS, 0},
	{"too many query heads", QUERY_HEADS, 258}, {"no KV heads", KV_HEADS, 0},      {"heads that do not divide", KV_HEADS, 3},
	{"more KV heads than query heads", KV_HEADS, 8}, {"an odd dimension", D_K, 72}, {"no dimension", D_K, 0},
	{"too large a dimension", D_K, 512},    {"an odd value dimension", D_V, 100},  {"unknown proposal", PROPOSAL, 77},
	{"3-bit signatures", BITS, 3},          {"8-bit signatures", BITS, 8},         {"K without L", PAPER_K, 10},
	{"an unknown hash", HASH, 2},           {"a negative hash", HASH, -1},         {"K of cross-polytope tables", HASH, 1},
	{"two balances", BALANCE, 2},
	{"L without K", PAPER_L, 150},          {"a budget above 1", BUDGET, 1.5f},    {"a negative budget", BUDGET, -0.1f},
	{"NaN for a budget", BUDGET, NAN},      {"NaN for a scale", SCALE, NAN},       {"an infinite scale", SCALE, INFINITY},
	{"a negative soft cap", SOFTCAP, -1},   {"NaN for a soft cap", SOFTCAP, NAN},  {"NaN for ALiBi", ALIBI, NAN},
	{"mode bits beyond 0777", MODE, 01777},
};

static void spec_change(struct mpig_spec *spec, struct mpig_layer *layer, const struct bad_spec *bad)
{
	int n = isnan(bad->value) || isinf(bad->value) ? 0 : (int)bad->value;
	switch (bad->change) {
	case LAYER_COUNT: spec->layer_count = n; break;
	case KIND: layer->kind = n; break;
	case ROW_DTYPE: layer->row_dtype = n; break;
	case QUERY_HEADS: layer->query_heads = n; break;
	case KV_HEADS: layer->kv_heads = n; break;
	case D_K: layer->d_k = n; break;
	case D_V: layer->d_v = n; break;
	case PROPOSAL: layer->default_proposal = n; break;
	case BITS: layer->signature_bits = n; break;
	case PAPER_K: layer->paper_k = n; break;
	case PAPER_L: layer->paper_l = n; break;
	case HASH: layer->paper_l = 20, layer->paper_k = 6, layer->table_hash = n; break;
	case BALANCE: layer->paper_l = 20, layer->paper_k = 6, layer->table_balance = n; break;
	case BUDGET: layer->default_budget = bad->value; break;
	case SCALE: layer->scale = bad->value; break;
	case SOFTCAP: layer->softcap = bad->value; break;
	case ALIBI: layer->alibi_slope_base = bad->value; break;
	case MODE: spec->mode = (unsigned)n; break;
	}
}
// clang-format on

START_TEST(a_wrong_spec_is_refused)
{
	struct mpig_layer *layers = calloc(600, sizeof(*layers));
	ck_assert_ptr_nonnull(layers);
	for (size_t i = 0; i < sizeof(bad_specs) / sizeof(bad_specs[0]); i++) {
		mpig_context *x = NULL;
		for (int l = 0; l < 600; l++)
			layers[l] = data.layer;
		struct mpig_spec spec = test_client_spec(layers, 2);
		spec_change(&spec, &layers[1], &bad_specs[i]);
		int status = mpig_context_create(s.client, "bad", &spec, &x);
		ck_assert_msg(status == MPIG_EINVAL || status == MPIG_ELIMIT, "%s: status %d (%s)", bad_specs[i].what, status,
		              mpig_strerror(status));
		ck_assert_ptr_null(x);
		ck_assert_msg(strlen(mpig_last_error(s.client)) > 10, "%s: no text", bad_specs[i].what);
	}
	free(layers);
	test_client_create(&s, "good", &data);
}
END_TEST

START_TEST(a_wrong_name_is_refused)
{
	static const char long_name[] = "0123456789012345678901234567890123456789012345678901234567890123"
					"0123456789012345678901234567890123456789012345678901234567890123";
	static const char *const names[] = {"", "a/b", "/", "new\nline", "tab\t", long_name};
	struct mpig_spec spec = test_client_spec(&data.layer, 1);
	mpig_context *x = NULL;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		ck_assert_msg(mpig_context_create(s.client, names[i], &spec, &x) == MPIG_EINVAL, "name '%s'", names[i]);
	ck_assert_status(mpig_context_create(s.client, long_name + 1, &spec, &x), MPIG_OK); // 127 bytes
	mpig_context *same = NULL;
	ck_assert_status(mpig_context_create(s.client, long_name + 1, &spec, &same), MPIG_EEXIST);
	ck_assert_status(test_client_find(&s, "nobody", MPIG_READ, &same), MPIG_ENOENT);
	ck_assert_status(mpig_context_drop(s.client, "nobody"), MPIG_ENOENT);
}
END_TEST

START_TEST(another_fingerprint_is_refused)
{
	mpig_context *x = NULL;
	test_client_create(&s, "x", &data);
	struct mpig_open_options options = MPIG_INIT(struct mpig_open_options);
	options.fingerprint = "another model";
	options.fingerprint_bytes = 13;
	int status = mpig_context_open(s.client, "x", &options, &x);
	ck_assert_int_lt(status, 0);
	ck_assert_ptr_null(x);
	ck_assert_status(test_client_find(&s, "x", MPIG_READ, &x), MPIG_OK);
}
END_TEST

// ---- ranges and parameters ---------------------------------------------------------------------------------------------
static int attend_with(mpig_context *x, void (*change)(struct mpig_attend *))
{
	float q[4 * 64];
	struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
	struct mpig_result result = MPIG_INIT(struct mpig_result);
	model_normal(q, 4 * 64, 3);
	attend.q = q;
	attend.proposal = MPIG_PROPOSAL_SIGNATURE;
	change(&attend);
	return mpig_attend(s.queue, x, &attend, &result);
}

// clang-format off
static void end_after_commit(struct mpig_attend *a) { a->end = 1001; }
static void end_far_after(struct mpig_attend *a) { a->end = INT64_MAX; }
static void begin_after_end(struct mpig_attend *a) { a->begin = 500, a->end = 400; }
static void begin_after_all(struct mpig_attend *a) { a->begin = UINT64_MAX, a->end = 0; }
static void end_before_all(struct mpig_attend *a) { a->end = -1001; }
static void end_far_before(struct mpig_attend *a) { a->end = INT64_MIN; }
static void layer_too_great(struct mpig_attend *a) { a->layer = 2; }
static void layer_negative(struct mpig_attend *a) { a->layer = -1; }
static void budget_above(struct mpig_attend *a) { a->budget = 1.01f; }
static void budget_negative(struct mpig_attend *a) { a->budget = -.01f; }
static void budget_nan(struct mpig_attend *a) { a->budget = NAN; }
static void proposal_unknown(struct mpig_attend *a) { a->proposal = MPIG_PROPOSAL_CROSSPOLYTOPE + 1; }
static void dtype_unknown(struct mpig_attend *a) { a->dtype = 4; }
static void no_tables(struct mpig_attend *a) { a->proposal = MPIG_PROPOSAL_PAPER; }
static void no_crosspolytope(struct mpig_attend *a) { a->proposal = MPIG_PROPOSAL_CROSSPOLYTOPE; }
static void no_query(struct mpig_attend *a) { a->q = NULL; }
static void last_row(struct mpig_attend *a) { a->begin = 999, a->end = 1000; }
static void nothing(struct mpig_attend *a) { a->begin = 1000, a->end = 1000; }
static void up_to_a_window(struct mpig_attend *a) { a->begin = 4, a->end = -64; }
static void all_budget(struct mpig_attend *a) { a->budget = 1; }
// clang-format on

START_TEST(attend_checks_its_parameters)
{
	static const struct {
		void (*change)(struct mpig_attend *);
		int status, or_status;
	} cases[] = {
		{end_after_commit, MPIG_ERANGE, 0},
		{end_far_after, MPIG_ERANGE, 0},
		{begin_after_end, MPIG_ERANGE, 0},
		{begin_after_all, MPIG_ERANGE, 0},
		{end_before_all, MPIG_OK, 0},
		{end_far_before, MPIG_OK, MPIG_ERANGE},
		{layer_too_great, MPIG_EINVAL, MPIG_ERANGE},
		{layer_negative, MPIG_EINVAL, MPIG_ERANGE},
		{budget_above, MPIG_EINVAL, 0},
		{budget_negative, MPIG_EINVAL, 0},
		{budget_nan, MPIG_EINVAL, MPIG_ENAN},
		{proposal_unknown, MPIG_EINVAL, 0},
		{dtype_unknown, MPIG_EINVAL, 0},
		{no_tables, MPIG_ENOTSUP, 0},
		{no_crosspolytope, MPIG_ENOTSUP, 0},
		{no_query, MPIG_EINVAL, 0},
		{last_row, MPIG_OK, 0},
		{nothing, MPIG_OK, 0},
		{up_to_a_window, MPIG_OK, 0},
		{all_budget, MPIG_OK, 0},
	};
	mpig_context *x = test_client_create(&s, "x", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int status = attend_with(x, cases[i].change);
		ck_assert_msg(status == cases[i].status || (cases[i].or_status && status == cases[i].or_status),
		              "case %zu: %d (%s: %s)", i, status, mpig_strerror(status), mpig_last_error(s.client));
	}
	test_client_assert_dense(&s, x, &data, 0, 1000);
}
END_TEST

START_TEST(writing_checks_positions)
{
	mpig_context *x = test_client_create(&s, "x", &data);
	ck_assert_status(mpig_commit(s.queue, x, 0, 10, data.ids, 0), MPIG_ERANGE); // no rows yet
	ck_assert_status(test_client_append(&s, x, &data, 1, 2), MPIG_ERANGE);      // a gap
	ck_assert_status(mpig_append(s.queue, x, 0, 0, 100, MPIG_F32, data.k, data.v, NULL, 0), MPIG_OK);
	ck_assert_status(mpig_commit(s.queue, x, 0, 100, data.ids, 0), MPIG_ERANGE); // layer 1 lacks them
	ck_assert_status(test_client_append(&s, x, &data, 0, 100), MPIG_OK);         // again: idempotent
	ck_assert_status(mpig_commit(s.queue, x, 0, 101, data.ids, 0), MPIG_ERANGE);
	ck_assert_status(mpig_commit(s.queue, x, 50, 50, data.ids, 0), MPIG_ERANGE);
	ck_assert_status(mpig_commit(s.queue, x, 0, 100, data.ids, 0), MPIG_OK);
	ck_assert_status(mpig_commit(s.queue, x, 0, 100, data.ids, 0), MPIG_OK); // again: idempotent
	int status = test_client_append(&s, x, &data, 99, 100);                  // committed rows do not change
	ck_assert_msg(status == MPIG_ERANGE || status == MPIG_OK, "status %d", status);
	status = mpig_append(s.queue, x, 2, 100, 1, MPIG_F32, data.k, data.v, NULL, 0);
	ck_assert_msg(status == MPIG_EINVAL || status == MPIG_ERANGE, "status %d", status);
	ck_assert_int_lt(mpig_append(s.queue, x, 0, UINT64_MAX, 1, MPIG_F32, data.k, data.v, NULL, 0), 0);
	ck_assert_int_lt(mpig_append(s.queue, x, 0, UINT64_C(1) << 40, 1, MPIG_F32, data.k, data.v, NULL, 0), 0);
	ck_assert_status(mpig_truncate(s.queue, x, 101), MPIG_ERANGE);
	ck_assert_status(mpig_truncate(s.queue, x, UINT64_MAX), MPIG_ERANGE);
	ck_assert_status(mpig_truncate(s.queue, x, 60), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), 60);
	test_client_assert_dense(&s, x, &data, 0, 60);
	float k[2 * 64], v[2 * 64];
	ck_assert_status(mpig_read(s.queue, x, 0, 60, 1, k, v), MPIG_ERANGE);
	ck_assert_status(mpig_read(s.queue, x, 0, 59, 1, k, v), MPIG_OK);
	ck_assert_mem_eq(k, model_data_k(&data, 0, 59), sizeof(k));
	ck_assert_mem_eq(v, model_data_v(&data, 0, 59), sizeof(v));
	ck_assert_status(test_client_fill(&s, x, &data, 60, 500, 0), MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, 500);
}
END_TEST

// ---- the pool ----------------------------------------------------------------------------------------------------------
START_TEST(a_full_pool_refuses_and_keeps_what_it_has)
{
	struct model_data large;
	char name[16];
	model_data_make(&large, &data.layer, 1, 20000, 3);
	mpig_context *x[8] = {NULL};
	uint64_t held[8] = {0};
	int contexts = 0, status = MPIG_OK;
	for (; contexts < 8 && status == MPIG_OK; contexts += status == MPIG_OK) { // 8 * 10 MB into 16 MiB
		struct mpig_spec spec = test_client_spec(&large.layer, 1);
		snprintf(name, sizeof(name), "x%d", contexts);
		status = mpig_context_create(s.client, name, &spec, &x[contexts]);
		while (status == MPIG_OK && held[contexts] < large.tokens) {
			status = test_client_fill(&s, x[contexts], &large, held[contexts], held[contexts] + 1000, 0);
			held[contexts] += status == MPIG_OK ? 1000 : 0;
		}
	}
	ck_assert_status(status, MPIG_ENOSPC);
	ck_assert_str_ne(mpig_last_error(s.client), "");
	ck_assert_uint_gt(held[0], 5000);
	for (int i = 0; i < 8 && x[i]; i++)
		test_client_assert_dense(&s, x[i], &large, 0, held[i]);
	test_daemon_assert_alive(d);
	// Room again after a drop.
	mpig_context_close(x[0]);
	ck_assert_status(mpig_context_drop(s.client, "x0"), MPIG_OK);
	mpig_context *next = test_client_create(&s, "next", &large);
	ck_assert_status(test_client_fill(&s, next, &large, 0, 5000, MPIG_COMMIT_SEAL), MPIG_OK);
	test_client_assert_dense(&s, next, &large, 0, 5000);
	model_data_free(&large);
}
END_TEST

START_TEST(an_expected_size_that_cannot_fit_is_refused_early)
{
	mpig_context *x = NULL;
	struct mpig_spec spec = test_client_spec(&data.layer, 1);
	spec.expected_tokens = 1000000;
	int status = mpig_context_create(s.client, "large", &spec, &x);
	ck_assert_msg(status == MPIG_ENOSPC || status == MPIG_EQUOTA, "status %d", status);
	spec.expected_tokens = 1000;
	ck_assert_status(mpig_context_create(s.client, "large", &spec, &x), MPIG_OK);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/refusals");
	TCase *requests = tcase_create("requests"), *pool = tcase_create("pool");
	tcase_add_checked_fixture(requests, setup, teardown);
	tcase_set_timeout(requests, 60);
	tcase_add_test(requests, nan_in_q_is_an_error_completion);
	tcase_add_loop_test(requests, nan_in_rows_stores_nothing, 0, 4);
	tcase_add_test(requests, a_wrong_spec_is_refused);
	tcase_add_test(requests, a_wrong_name_is_refused);
	tcase_add_test(requests, another_fingerprint_is_refused);
	tcase_add_test(requests, attend_checks_its_parameters);
	tcase_add_test(requests, writing_checks_positions);
	suite_add_tcase(suite, requests);
	tcase_add_checked_fixture(pool, setup_small, teardown);
	tcase_set_timeout(pool, 60);
	tcase_add_test(pool, a_full_pool_refuses_and_keeps_what_it_has);
	tcase_add_test(pool, an_expected_size_that_cannot_fit_is_refused_early);
	suite_add_tcase(suite, pool);
	return suite_run(suite);
}
