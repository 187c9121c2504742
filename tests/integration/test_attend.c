// One client, one context, the whole line: what a dense pass returns is the attention of the definition, for every shape of
// layer, for several query tokens under a causal limit, for every part of a context and every way it came to be.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

static struct test_daemon *d;
static struct test_client s;

static void setup(void)
{
	d = test_daemon_start(NULL);
	test_client_open(&s, d);
}

static void teardown(void)
{
	test_client_close(&s);
	test_daemon_stop(d);
}

static const struct shape {
	int query_heads, kv_heads, d;
	float scale, softcap, alibi;
} shapes[] = {
	{1, 1, 64, 0, 0, 0},    {9, 3, 64, 0, 0, 0},           {32, 8, 80, 0, 0, 0},   {12, 12, 96, 0, 0, 0},
	{16, 2, 128, 0, 0, 0},  {4, 1, 256, 0, 0, 0},          {8, 2, 64, 0.3f, 0, 0}, {8, 4, 128, 0, 20.0f, 0},
	{8, 8, 64, 0, 0, 0.5f}, {6, 2, 96, 0.2f, 30.0f, 0.7f},
};

// _i: the shape. Appended in pieces of many sizes, one of them sealed in the middle.
START_TEST(dense_is_the_definition)
{
	struct mpig_layer layer = test_client_layer(shapes[_i].query_heads, shapes[_i].kv_heads, shapes[_i].d);
	struct model_data m;
	static const uint64_t cuts[] = {0, 1, 2, 17, 300, 1300, 1301, 1310, 1700};
	layer.scale = shapes[_i].scale;
	layer.softcap = shapes[_i].softcap;
	layer.alibi_slope_base = shapes[_i].alibi;
	model_data_make(&m, &layer, 1, 1700, 50 + (uint64_t)_i);
	mpig_context *x = test_client_create(&s, "x", &m);
	for (size_t i = 1; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		ck_assert_status(test_client_fill(&s, x, &m, cuts[i - 1], cuts[i], cuts[i] == 1300 ? MPIG_COMMIT_SEAL : 0),
		                 MPIG_OK);
		test_client_assert_dense(&s, x, &m, 0, cuts[i]);
	}
	test_client_assert_dense(&s, x, &m, 4, 1700 - 64);
	test_client_assert_dense(&s, x, &m, 1299, 1302);
	test_client_assert_dense(&s, x, &m, 1699, 1700);
	model_data_free(&m);
}
END_TEST

#define T 5u
START_TEST(several_query_tokens_under_a_causal_limit)
{
	struct mpig_layer layer = test_client_layer(8, 2, 64);
	struct model_data m;
	float q[T * 8 * 64], out[T * 8 * 64], lse[T * 8];
	double true_out[T * 8 * 64], true_lse[T * 8];
	uint32_t rows[T * 8];
	model_data_make(&m, &layer, 1, 900, 4);
	mpig_context *x = test_client_create(&s, "x", &m);
	ck_assert_status(test_client_fill(&s, x, &m, 0, 900, MPIG_COMMIT_SEAL), MPIG_OK);
	model_normal(q, T * 8 * 64, 9);
	for (uint64_t base = 0; base < 900; base += 223) {
		struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
		struct mpig_result result = MPIG_INIT(struct mpig_result);
		attend.proposal = MPIG_PROPOSAL_DENSE;
		attend.tokens = T;
		attend.q = q;
		attend.causal = 1;
		attend.causal_base = base;
		attend.query_position = base;
		result.out = out;
		result.lse = lse;
		result.rows = rows;
		ck_assert_status(mpig_attend(s.queue, x, &attend, &result), MPIG_OK);
		struct model_attention truth = {.q = q,
		                                .k = m.k,
		                                .v = m.v,
		                                .tokens = T,
		                                .query_heads = 8,
		                                .kv_heads = 2,
		                                .d_k = 64,
		                                .d_v = 64,
		                                .end = 900,
		                                .causal = true,
		                                .causal_base = base,
		                                .query_position = base};
		model_attend(&truth, true_out, true_lse);
		ck_assert_double_lt(model_relative_l2(out, true_out, T * 8 * 64), 2e-5);
		ck_assert_double_lt(model_max_difference(lse, true_lse, T * 8), 2e-5);
		for (uint32_t t = 0; t < T; t++)
			ck_assert_uint_eq(rows[t * 8], base + t);
		if (base == 0) // token 0 sees nothing
			ck_assert(isinf(lse[0]) && lse[0] < 0 && out[0] == 0);
	}
	model_data_free(&m);
}
END_TEST

// The window is the client's: what the daemon leaves out and the client adds is the whole.
START_TEST(parts_merge_to_the_whole)
{
	struct mpig_layer layer = test_client_layer(6, 3, 64);
	struct model_data m;
	float q[6 * 64], whole[6 * 64], whole_lse[6], out[6 * 64], lse[6], part[6 * 64], part_lse[6];
	model_data_make(&m, &layer, 1, 1000, 4);
	mpig_context *x = test_client_create(&s, "x", &m);
	ck_assert_status(test_client_fill(&s, x, &m, 0, 1000, 0), MPIG_OK);
	model_normal(q, 6 * 64, 9);
	static const struct {
		uint64_t begin;
		int64_t end;
	} ranges[] = {{0, 1000}, {0, 4}, {4, -64}, {936, 0}, {500, -500}, {900, -200}};
	for (size_t i = 0; i < 6; i++) {
		struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
		struct mpig_result result = MPIG_INIT(struct mpig_result);
		attend.proposal = MPIG_PROPOSAL_DENSE;
		attend.q = q;
		attend.begin = ranges[i].begin;
		attend.end = ranges[i].end;
		result.out = i == 0 ? whole : i == 1 ? out : part;
		result.lse = i == 0 ? whole_lse : i == 1 ? lse : part_lse;
		ck_assert_status(mpig_attend(s.queue, x, &attend, &result), MPIG_OK);
		if (i > 1)
			mpig_merge(6, 64, out, lse, part, part_lse); // the last two are empty and change nothing
	}
	for (int i = 0; i < 6 * 64; i++)
		ck_assert_float_eq_tol(out[i], whole[i], 2e-5f);
	for (int h = 0; h < 6; h++)
		ck_assert_float_eq_tol(lse[h], whole_lse[h], 2e-5f);
	model_data_free(&m);
}
END_TEST

START_TEST(rows_come_back_as_they_went_in)
{
	struct mpig_layer layer = test_client_layer(4, 2, 128);
	struct model_data m;
	model_data_make(&m, &layer, 2, 3000, 4);
	mpig_context *x = test_client_create(&s, "x", &m);
	ck_assert_status(test_client_fill(&s, x, &m, 0, 3000, MPIG_COMMIT_SEAL), MPIG_OK);
	float *k = malloc(3000 * 2 * 128 * sizeof(*k)), *v = malloc(3000 * 2 * 128 * sizeof(*v));
	ck_assert(k && v);
	for (int l = 0; l < 2; l++) {
		ck_assert_status(mpig_read(s.queue, x, l, 0, 3000, k, v), MPIG_OK);
		ck_assert_mem_eq(k, model_data_k(&m, l, 0), 3000 * 2 * 128 * sizeof(*k));
		ck_assert_mem_eq(v, model_data_v(&m, l, 0), 3000 * 2 * 128 * sizeof(*v));
	}
	free(k);
	free(v);
	model_data_free(&m);
}
END_TEST

// A sampled answer at a tenth of the rows is near the truth on average over seeds: the estimate is of the right thing.
START_TEST(sampling_estimates_the_same_attention)
{
	struct mpig_layer layer = test_client_layer(4, 1, 64);
	struct model_data m;
	float q[4 * 64], out[4 * 64], lse[4];
	double true_out[4 * 64], true_lse[4], mass[4] = {0};
	uint32_t rows[4];
	uint64_t total_rows = 0;
	enum { SEEDS = 100 };
	model_data_make(&m, &layer, 1, 8000, 4);
	mpig_context *x = test_client_create(&s, "x", &m);
	ck_assert_status(test_client_fill(&s, x, &m, 0, 8000, MPIG_COMMIT_SEAL), MPIG_OK);
	model_normal(q, 4 * 64, 9);
	for (int i = 0; i < 4 * 64; i++)
		q[i] *= 0.5f;
	struct model_attention truth = {.q = q,
	                                .k = m.k,
	                                .v = m.v,
	                                .tokens = 1,
	                                .query_heads = 4,
	                                .kv_heads = 1,
	                                .d_k = 64,
	                                .d_v = 64,
	                                .end = 8000,
	                                .query_position = 8000};
	model_attend(&truth, true_out, true_lse);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
		struct mpig_result result = MPIG_INIT(struct mpig_result);
		attend.proposal = MPIG_PROPOSAL_SIGNATURE;
		attend.budget = 0.1f;
		attend.q = q;
		attend.seed = seed;
		result.out = out;
		result.lse = lse;
		result.rows = rows;
		ck_assert_status(mpig_attend(s.queue, x, &attend, &result), MPIG_OK);
		ck_assert_double_lt(model_relative_l2(out, true_out, 4 * 64), 0.5);
		for (int h = 0; h < 4; h++) {
			mass[h] += exp((double)lse[h] - true_lse[h]) / SEEDS;
			total_rows += rows[h];
		}
	}
	for (int h = 0; h < 4; h++) // exp(LSE) is unbiased; its deviation is some percent for one seed
		ck_assert_double_eq_tol(mass[h], 1, 0.05);
	ck_assert_uint_gt(total_rows, UINT64_C(4) * SEEDS * 400); // 800 expected
	ck_assert_uint_lt(total_rows, UINT64_C(4) * SEEDS * 1600);
	model_data_free(&m);
}
END_TEST

// Bytes read for one answer by a daemon with this configuration; the answer is near the whole attention.
static uint64_t bytes_of_an_answer(const char *config, const struct model_data *m, const float *q)
{
	float out[64], lse[1], whole[64], whole_lse[1];
	struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
	struct mpig_result result = MPIG_INIT(struct mpig_result), exact = MPIG_INIT(struct mpig_result);
	teardown();
	d = test_daemon_start(config);
	test_client_open(&s, d);
	mpig_context *x = test_client_create(&s, "x", m);
	ck_assert_status(test_client_fill(&s, x, m, 0, m->tokens, MPIG_COMMIT_SEAL), MPIG_OK);
	attend.proposal = MPIG_PROPOSAL_SIGNATURE;
	attend.budget = 0.005f;
	attend.q = q;
	result.out = out;
	result.lse = lse;
	ck_assert_status(mpig_attend(s.queue, x, &attend, &result), MPIG_OK);
	attend.proposal = MPIG_PROPOSAL_DENSE;
	exact.out = whole;
	exact.lse = whole_lse;
	ck_assert_status(mpig_attend(s.queue, x, &attend, &exact), MPIG_OK);
	ck_assert_float_eq_tol(lse[0], whole_lse[0], 0.5f);
	return result.bytes_read;
}

// From engine.upper_rows on a part of the codes is read, groups of rows before them.
START_TEST(long_ranges_go_through_upper_layers)
{
	struct mpig_layer layer = test_client_layer(1, 1, 64);
	struct model_data m;
	float q[64];
	model_data_make(&m, &layer, 1, 20000, 4);
	model_normal(q, 64, 9);
	uint64_t plain = bytes_of_an_answer("[engine]\nupper_rows = 0\n", &m, q);
	uint64_t upper = bytes_of_an_answer("[engine]\nupper_rows = 20000\n", &m, q);
	uint64_t shorter = bytes_of_an_answer("[engine]\nupper_rows = 20001\n", &m, q);
	ck_assert_uint_ge(plain, 20000 * 16); // all codes
	ck_assert_uint_eq(shorter, plain);
	ck_assert_uint_lt(upper, plain * 3 / 4);
	model_data_free(&m);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/attend");
	TCase *t = tcase_create("attend");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, dense_is_the_definition, 0, (int)(sizeof(shapes) / sizeof(shapes[0])));
	tcase_add_test(t, several_query_tokens_under_a_causal_limit);
	tcase_add_test(t, parts_merge_to_the_whole);
	tcase_add_test(t, rows_come_back_as_they_went_in);
	tcase_add_test(t, sampling_estimates_the_same_attention);
	tcase_add_test(t, long_ranges_go_through_upper_layers);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
