// What tune makes of what it is told: steps from noted queries, rates from times, a choice from errors. No daemon is asked.
#include <check.h>

#include "tests/lib/suite.h"
#include "tools/magicpigctl/trace_file.c"
#include "tools/magicpigctl/tune_allocate.c"
#include "tools/magicpigctl/tune_choose.c"
#include "tools/magicpigctl/tune_queries.c"
#include "tools/magicpigctl/tune_rates.c"
#include "tools/magicpigctl/tune_ways.c"

#include "config/profile.h"

enum { LAYERS = 3, KEPT = 16 };

static struct tune t;
static struct mpig_layer specs[LAYERS];

// Layer 1 has a sliding neighbour, so that places and numbers differ.
static void setup(void)
{
	static const struct mpig_layer spec = {
		.query_heads = 6, .kv_heads = 2, .d_k = 64, .signature_bits = 2, .default_proposal = MPIG_PROPOSAL_SIGNATURE};
	t = (struct tune){.queries = 64,
	                  .seeds = 2,
	                  .error_target = .055f,
	                  .floor = .005f,
	                  .cap = .08f,
	                  .sinks = 4,
	                  .window = 64,
	                  .spec = specs,
	                  .layer_count = LAYERS,
	                  .layers = LAYERS,
	                  .info = {.committed = 8192}};
	t.layer = calloc(LAYERS, sizeof(*t.layer));
	for (int i = 0; i < LAYERS; i++)
		t.layer[i] = (struct tune_layer){.number = 2 * i, .spec = spec, .code_bytes = 18};
}

static void teardown(void)
{
	tune_layers_free(&t);
}

// ---- queries ---------------------------------------------------------------------------------------------------------
START_TEST(a_noted_query_is_in_one_half_only)
{
	static float noted[2 * KEPT * 64];
	int kept[] = {_i, _i / 2 + 2}, half[2 * KEPT], seen = 0;
	char why[TUNE_WHY_BYTES];
	struct tune_layer *l = &t.layer[0];
	for (int i = 0; i < 2 * KEPT; i++) {
		noted[i * 64] = (float)i; // KV head and number
		half[i] = -1;
	}
	ck_assert_int_eq(add_noted(&t, l, noted, kept, why), 0);
	ck_assert_int_eq(l->steps % 2, 0);
	for (int step = 0; step < l->steps; step++)
		for (int h = 0; h < 6; h++) {
			int which = (int)l->step[step].q[h * 64];
			ck_assert_int_eq(which / KEPT, h / 3); // of its own KV head
			ck_assert_int_lt(which % KEPT, kept[h / 3]);
			ck_assert_msg(half[which] < 0 || half[which] == step % 2, "query %d of %d is in both halves", which, _i);
			seen += half[which] < 0;
			half[which] = step % 2;
		}
	ck_assert_int_eq(seen, (kept[0] & ~1) + (kept[1] & ~1)); // and none is left out
	for (int step = 0; step < l->steps; step++) {
		ck_assert_uint_eq(l->step[step].begin, 4);
		ck_assert_uint_eq(l->step[step].end, 8192 - 64);
		ck_assert_uint_eq(l->step[step].position, 8192 + (uint64_t)step); // the ratio learns from step to step
	}
}
END_TEST

START_TEST(a_head_that_nobody_asked_is_named)
{
	static float noted[2 * KEPT * 64];
	int kept[] = {16, 1};
	char why[TUNE_WHY_BYTES];
	for (int i = 0; i < LAYERS; i++)
		ck_assert_int_eq(add_noted(&t, &t.layer[i], noted, i == 1 ? kept : (int[]){16, 16}, why), 0);
	ck_assert_int_eq(check_counts(&t, "here", "ask more", why), -1);
	ck_assert_str_eq(why, "here has 0 queries of layer 2: at least 2 are needed, to choose by and to check with; ask more");
}
END_TEST

// A profile may name a floor above the daemon's cap, or a cap below its floor: the daemon takes the cap.
START_TEST(a_floor_is_not_above_its_cap)
{
	struct profile profile = {.count = 2,
	                          .layer = {{.number = 0, .error_target = .1f, .budget_floor = .9f},
	                                    {.number = 2, .error_target = .1f, .budget_cap = .001f}}};
	tune_ways(&t, &profile);
	for (int i = 0; i < LAYERS; i++) {
		const struct tune_way *way = &t.layer[i].way[t.before];
		const float cap[LAYERS] = {.08f, .001f, .08f}, floor[LAYERS] = {.08f, .001f, .005f};
		ck_assert_float_eq(way->cap, cap[i]);
		ck_assert_float_eq(way->floor, floor[i]);
	}
}
END_TEST

START_TEST(many_queries_are_thinned_evenly)
{
	struct tune_layer *l = &t.layer[0];
	for (int i = 0; i < 1000; i++)
		add_step(l)->position = (uint64_t)i;
	thin(l, 64);
	ck_assert_int_eq(l->steps, 64);
	for (int i = 1; i < 64; i++) {
		uint64_t gap = l->step[i].position - l->step[i - 1].position;
		ck_assert(gap == 15 || gap == 16);
	}
}
END_TEST

// ---- rates and choice ------------------------------------------------------------------------------------------------
static const struct tune_rates truth = {.request = 5000, .dense = 20, .scan = 3, .read = 50};

// Answers that take what `truth` says, one in three of them disturbed; layer 1 errs ten times as much as the others.
static float request_ns[64];
static void fill(void)
{
	tune_ways(&t, NULL);
	for (int i = 0; i < 64; i++)
		request_ns[i] = (float)(truth.request * (i % 3 ? 1 : 4));
	for (int i = 0; i < LAYERS; i++)
		for (int w = 0; w < t.ways; w++) {
			struct tune_layer *l = &t.layer[i];
			const struct tune_way *way = &l->way[w];
			double looked = 2 * 8000,
			       share = way->budget > 0 ? (double)way->budget : .0002 / pow((double)way->error_target, 2);
			double rows = way->proposal == MPIG_PROPOSAL_DENSE ? looked : fmin(share, .9) * looked;
			double ns =
				truth.request + (way->proposal == MPIG_PROPOSAL_DENSE ? truth.dense * looked
			                                                              : truth.scan * looked + truth.read * rows);
			if (!l->can[w])
				continue;
			l->ns[w] = malloc(12 * sizeof(float));
			for (int n = 0; n < 12; n++)
				l->ns[w][l->ns_count[w]++] = (float)(ns * (n % 3 ? 1 : 1.7));
			for (int s = 0; s < t.seeds; s++)
				for (int half = 0; half < TUNE_HALVES; half++)
					l->cell[w][s][half] =
						(struct tune_cell){.error2 = rows < looked ? (i == 1 ? 10 : 1) / rows : 0,
					                           .rows = rows,
					                           .looked = looked,
					                           .count = 1};
		}
}

START_TEST(rates_are_found_again)
{
	fill();
	tune_fit_rates(&t, request_ns, 64);
	ck_assert_double_eq_tol(t.rates.request, truth.request, 1e-6);
	ck_assert_double_eq_tol(t.rates.dense, truth.dense, .05);
	ck_assert_double_eq_tol(t.rates.scan, truth.scan, .02);
	ck_assert_double_eq_tol(t.rates.read, truth.read, .5);
	ck_assert_double_eq(t.rates.lookup, 0); // there are no tables
	ck_assert_double_eq(t.rates.scan_bits[0], 0);
}
END_TEST

START_TEST(what_errs_more_gets_more_rows)
{
	static struct tune_result r;
	static struct profile profile;
	fill();
	t.rates = truth;
	t.goal.error2 = .15 * .15;
	ck_assert(tune_choose(&t, &r));
	ck_assert(r.reached && r.after.check.error2 <= t.goal.error2);
	ck_assert_double_gt(tune_share(&t, 1, r.after.way[1]), 2 * tune_share(&t, 0, r.after.way[0]));
	ck_assert_int_eq(r.agree, LAYERS); // seeds drew the same here
	ck_assert_int_eq(r.reindexed, 0);
	ck_assert_int_eq(r.uniform_count, 13);
	// No rule for all layers that reaches it is quicker, nor is a point of the curve below it.
	for (int i = 0; i < r.uniform_count; i++)
		ck_assert(r.uniform[i].error2 > t.goal.error2 || r.uniform[i].ms >= r.after.check.ms - 1e-9);
	for (int i = 1; i < r.tuned_count; i++)
		ck_assert(r.tuned[i].ms >= r.tuned[i - 1].ms - 1e-9 && r.tuned[i].error2 <= r.tuned[i - 1].error2 + 1e-12);
	t.info.fingerprint[0] = 0xab;
	tune_profile(&t, &r, &profile);
	ck_assert_uint_eq(profile.count, LAYERS);
	for (int i = 0; i < LAYERS; i++) {
		ck_assert_uint_eq(profile.layer[i].number, 2 * (uint32_t)i);
		ck_assert_uint_eq(profile.layer[i].signature_bits, 2);
	}
	static char text[PROFILE_TEXT_BYTES], why[PROFILE_WHY_BYTES];
	static struct profile again;
	ck_assert_int_eq(profile_parse(text, profile_format(&profile, text), &again, why), 0);
	ck_assert_mem_eq(&again, &profile, sizeof again);
}
END_TEST

// What one half of the queries promises, the other does not keep: it is aimed lower until it does.
START_TEST(the_other_half_must_reach_the_goal)
{
	static struct tune_result r;
	fill();
	t.rates = truth;
	for (int i = 0; i < LAYERS; i++)
		for (int w = 0; w < t.ways; w++)
			for (int s = 0; s < t.seeds; s++)
				t.layer[i].cell[w][s][TUNE_CHECK].error2 *= 1.8;
	t.goal.error2 = .02;
	ck_assert(tune_choose(&t, &r));
	ck_assert(r.reached && r.after.check.error2 <= t.goal.error2);
	double fit = 0;
	for (int i = 0; i < LAYERS; i++)
		fit += tune_point_of(&t, i, r.after.way[i], -1, TUNE_FIT).error2 / LAYERS;
	ck_assert_double_le(fit, .02 / 1.8 + 1e-12);
	ck_assert_double_ge(fit, .02 / 1.8 * .6); // no lower than need be
	t.goal = (struct tune_goal){.ms = .01};
	ck_assert(tune_choose(&t, &r));
	ck_assert(!r.reached);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/magicpigctl/tune_parts");
	TCase *tcase = tcase_create("parts");
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_loop_test(tcase, a_noted_query_is_in_one_half_only, 2, KEPT + 1);
	tcase_add_test(tcase, a_head_that_nobody_asked_is_named);
	tcase_add_test(tcase, a_floor_is_not_above_its_cap);
	tcase_add_test(tcase, many_queries_are_thinned_evenly);
	tcase_add_test(tcase, rates_are_found_again);
	tcase_add_test(tcase, what_errs_more_gets_more_rows);
	tcase_add_test(tcase, the_other_half_must_reach_the_goal);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
