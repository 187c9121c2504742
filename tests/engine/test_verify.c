// Verified answers on heavy-tailed tensors: how often a head's merged output errs by more than eps.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/attn/attn.h"
#include "daemon/engine/attend.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { D = 64, QUERY_HEADS = 6, KV_HEADS = 2, GROUP = QUERY_HEADS / KV_HEADS, ROWS = 8192, SINKS = 4, WINDOW = 64 };
static const uint64_t POOL = UINT64_C(256) << 20;

static struct fixture f;

// Rows, one step's queries, and what attention over all of them and over the client's part comes to.
struct scene {
	float *k, *v, q[QUERY_HEADS * D];
	double out[QUERY_HEADS * D], lse[QUERY_HEADS];
	float window_out[QUERY_HEADS * D], window_lse[QUERY_HEADS];
	struct context *context;
};

static void setup(void)
{
	fixture_start(&f, POOL, UINT32_MAX);
}

static void teardown(void)
{
	fixture_stop(&f);
}

// out, lse of rows [begin, end) joined to what is there.
static void attend_exactly(const struct scene *s, uint64_t begin, uint64_t end, double *out, double *lse)
{
	struct model_attention m = {.q = s->q,
	                            .k = s->k,
	                            .v = s->v,
	                            .tokens = 1,
	                            .query_heads = QUERY_HEADS,
	                            .kv_heads = KV_HEADS,
	                            .d_k = D,
	                            .d_v = D,
	                            .begin = begin,
	                            .end = end};
	model_attend(&m, out, lse);
}

static float head_scale(int head) // from flat heads to peaked ones
{
	return .3f + .25f * (float)head;
}

static void scene_start(struct scene *s, uint64_t seed, uint8_t bits)
{
	size_t count = (size_t)ROWS * KV_HEADS * D;
	char name[32];
	snprintf(name, sizeof(name), "scene %u %llu", bits, (unsigned long long)seed);
	ck_assert_ptr_nonnull(s->k = malloc(count * 4));
	ck_assert_ptr_nonnull(s->v = malloc(count * 4));
	model_heavy(s->k, (size_t)ROWS * KV_HEADS, D, seed);
	model_normal(s->v, count, seed + 1);
	for (size_t i = 0; i < count; i++)
		s->v[i] += .3f;
	model_round_bf16(s->k, count);
	model_round_bf16(s->v, count);
	model_normal(s->q, QUERY_HEADS * D, seed + 2);
	for (int i = 0; i < QUERY_HEADS * D; i++)
		s->q[i] *= head_scale(i / D);
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, MPIG_BF16);
	layer.signature_bits = bits;
	s->context = fixture_context(&f, name, &layer, 1, seed);
	ck_assert_int_eq(fixture_append(&f, s->context, 0, 0, ROWS, s->k, s->v, s->q, 1).status, 0);
	ck_assert_int_eq(fixture_commit(&f, s->context, 0, ROWS, true).status, 0);

	attend_exactly(s, 0, ROWS, s->out, s->lse);
	double sink_out[QUERY_HEADS * D], out[QUERY_HEADS * D], sink_lse[QUERY_HEADS], lse[QUERY_HEADS];
	attend_exactly(s, 0, SINKS, sink_out, sink_lse);
	attend_exactly(s, ROWS - WINDOW, ROWS, out, lse);
	for (int h = 0; h < QUERY_HEADS; h++) {
		double m = fmax(lse[h], sink_lse[h]), a = exp(sink_lse[h] - m), b = exp(lse[h] - m);
		s->window_lse[h] = (float)(m + log(a + b));
		for (int d = 0; d < D; d++)
			s->window_out[h * D + d] = (float)((a * sink_out[h * D + d] + b * out[h * D + d]) / (a + b));
	}
}

static void scene_end(struct scene *s)
{
	struct credentials root = {0};
	struct mpig_wire_context info;
	char why[MPIG_TEXT_BYTES];
	store_context_info(f.store, s->context, &info);
	ck_assert_int_eq(store_context_drop(f.store, &root, info.name, why), 0);
	context_unref(s->context);
	free(s->k);
	free(s->v);
}

static struct answer ask(const struct scene *s, const struct mpig_slot_header *given, uint64_t seed)
{
	struct mpig_slot_header h = *given;
	h.present = MPIG_HAS_WINDOW_LSE | (h.delta > 0 ? MPIG_HAS_WINDOW_OUT : 0);
	struct mpig_payload_layout l = mpig_attend_layout(&context_layer(s->context, 0)->shape, 1, MPIG_F32, h.present);
	memcpy(f.slot + l.window_lse, s->window_lse, sizeof(s->window_lse));
	if (h.delta > 0)
		memcpy(f.slot + l.window_out, s->window_out, sizeof(s->window_out));
	struct mpig_sqe e = {.count = 1, .begin = SINKS, .end = -WINDOW, .flags = MPIG_SQE_END_RELATIVE, .seed = seed};
	struct answer a = fixture_attend(&f, s->context, &e, &h, s->q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	return a;
}

// |merged - exact| / |exact| of one head.
static double error_of(const struct scene *s, const struct answer *a, int h)
{
	double share = 1 / (1 + exp((double)s->window_lse[h] - (double)a->lse[h])), error = 0, norm = 0;
	for (int i = h * D; i < (h + 1) * D; i++) {
		double merged = share * (double)a->out[i] + (1 - share) * (double)s->window_out[i];
		error += (merged - s->out[i]) * (merged - s->out[i]);
		norm += s->out[i] * s->out[i];
	}
	return sqrt(error / norm);
}

struct tally {
	int heads, over, violations, samples;
	double worst, rows;
};

static void tally(struct tally *t, const struct scene *s, const struct mpig_slot_header *h, double delta)
{
	enum { SEEDS = 200 };
	int violations[QUERY_HEADS] = {0};
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct answer a = ask(s, h, seed);
		for (int i = 0; i < QUERY_HEADS; i++) {
			violations[i] += error_of(s, &a, i) > (double)h->error_target;
			t->rows += a.rows[i];
		}
		answer_free(&a);
	}
	for (int i = 0; i < QUERY_HEADS; i++) {
		t->heads++;
		t->over += violations[i] > delta * SEEDS;
		t->violations += violations[i];
		t->worst = fmax(t->worst, violations[i] / (double)SEEDS);
		t->samples += SEEDS;
	}
}

static void report(const char *what, uint8_t bits, const struct tally *t)
{
	printf("%u bits, %s: %d of %d heads above delta, pooled %.3f, worst head %.3f, %.1f %% of rows\n", bits, what, t->over,
	       t->heads, t->violations / (double)t->samples, t->worst, 100 * t->rows / t->samples / (ROWS - SINKS - WINDOW));
}

// eps = delta = .1 for 36 heads, 200 seeds each: the share of heads that err by more than eps in more than 20 of them. Seeds and data are
// fixed, so that the result is; with other seeds, a head whose true rate is delta / 3 would pass 20 of 200 with probability 4e-6.
// The same target for the mass and one sample (the adaptive budget without a cap) shows that the scenes are hard.
START_TEST(few_heads_break_the_promise)
{
	static const uint8_t bits[] = {1, 2, 4};
	static const int most[] = {1, 0, 0};
	const struct mpig_slot_header verified = {.error_target = .1f, .delta = .1f},
				      once = {.error_target = .1f, .budget_cap = 1};
	struct tally v = {0}, o = {0};
	for (uint64_t seed = 0; seed < 6; seed++) {
		struct scene s;
		scene_start(&s, 100 * seed + 7001, bits[_i]);
		tally(&v, &s, &verified, .1);
		tally(&o, &s, &once, .1);
		scene_end(&s);
	}
	report("verified", bits[_i], &v);
	report("one sample, by the mass", bits[_i], &o);
	ck_assert_int_le(v.over, most[_i]);
	ck_assert_double_lt(v.rows, .15 * ROWS * v.samples);
	ck_assert_int_gt(o.over, 4);
}
END_TEST

START_TEST(any_number_of_workers_gives_the_same_bits)
{
	const struct mpig_slot_header h = {.error_target = .05f, .delta = .05f};
	struct scene s;
	scene_start(&s, 11, 1);
	f.threads = 1;
	struct answer one = ask(&s, &h, 5);
	f.threads = 4;
	for (int again = 0; again < 8; again++) {
		struct answer four = ask(&s, &h, 5);
		ck_assert_mem_eq(one.out, four.out, sizeof(s.q));
		ck_assert_mem_eq(one.lse, four.lse, sizeof(s.window_lse));
		ck_assert_mem_eq(one.rows, four.rows, sizeof(s.window_lse));
		ck_assert_uint_eq(one.result.rows_read, four.result.rows_read);
		answer_free(&four);
	}
	answer_free(&one);
	scene_end(&s);
}
END_TEST

// What is read for the measuring counts in rows_read, not in rows; the cap holds where it is given; a range of no rows, and one that
// is attended densely, are exact.
START_TEST(rows_are_what_the_answer_has)
{
	struct mpig_slot_header h = {.error_target = .02f, .delta = .01f};
	struct scene s;
	scene_start(&s, 12, 2);
	struct answer a = ask(&s, &h, 5);
	uint32_t most = 0, all = 0;
	for (int i = 0; i < QUERY_HEADS; i++) {
		most = a.rows[i] > most ? a.rows[i] : most;
		all += a.rows[i];
	}
	ck_assert_uint_gt(most, ROWS / 20);
	ck_assert_uint_gt(a.result.rows_read, all / GROUP);
	answer_free(&a);
	h.budget_cap = .02f;
	a = ask(&s, &h, 5);
	for (int i = 0; i < QUERY_HEADS; i++) // 8 rows of each of 2 spans may be certain besides
		ck_assert_uint_lt(a.rows[i], (uint32_t)(.03 * ROWS) + 16);
	answer_free(&a);
	h.budget_cap = 0;
	for (int empty = 0; empty < 2; empty++) {
		struct mpig_sqe e = {.count = 1, .begin = 100, .end = empty ? 100 : 4000, .budget = .1f};
		a = fixture_attend(&f, s.context, &e, &h, s.q);
		ck_assert_msg(a.result.status == 0, "%s", a.result.why);
		for (int i = 0; i < QUERY_HEADS; i++) {
			ck_assert_uint_eq(a.rows[i], empty ? 0 : 3900);
			ck_assert_float_eq(a.v[i], 0);
		}
		answer_free(&a);
	}
	scene_end(&s);
}
END_TEST

// Several query tokens, each with a limit of its own, and rows that have no index yet.
START_TEST(tokens_and_tails_are_verified_too)
{
	enum { T = 3, TAIL = 40 };
	struct scene s;
	scene_start(&s, 13, 4);
	float q[T * QUERY_HEADS * D];
	for (int t = 0; t < T; t++)
		memcpy(q + t * QUERY_HEADS * D, s.q, sizeof(s.q));
	struct mpig_slot_header h = {.error_target = .03f, .delta = .001f, .causal_base = ROWS - TAIL};
	struct mpig_sqe e = {.count = T, .end = ROWS, .flags = MPIG_SQE_CAUSAL};
	struct answer a = fixture_attend(&f, s.context, &e, &h, q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	for (uint32_t t = 0; t < T; t++) {
		double out[QUERY_HEADS * D], lse[QUERY_HEADS];
		attend_exactly(&s, 0, ROWS - TAIL + t, out, lse);
		for (uint32_t i = 0; i < QUERY_HEADS; i++)
			ck_assert_double_lt(model_relative_l2(a.out + (t * QUERY_HEADS + i) * D, out + i * D, D), .03);
	}
	answer_free(&a);
	scene_end(&s);
}
END_TEST

START_TEST(what_makes_no_sense_is_refused)
{
	static const struct {
		struct mpig_slot_header header;
		uint8_t proposal;
		int status;
		const char *word;
	} wrong[] = {
		{{.delta = .1f}, 0, MPIG_EINVAL, "error_target"},
		{{.delta = 1, .error_target = .1f}, 0, MPIG_EINVAL, "delta"},
		{{.delta = -.1f, .error_target = .1f}, 0, MPIG_EINVAL, "delta"},
		{{.delta = NAN, .error_target = .1f}, 0, MPIG_EINVAL, "delta"},
		{{.delta = .1f, .error_target = .1f}, MPIG_PROPOSAL_TOPK, MPIG_ENOTSUP, "verified"},
		{{.delta = .1f, .error_target = .1f}, MPIG_PROPOSAL_UNIFORM, MPIG_ENOTSUP, "verified"},
		{{.delta = .1f, .error_target = .1f, .present = MPIG_HAS_WINDOW_OUT}, 0, MPIG_EINVAL, "LSE"},
	};
	struct scene s;
	scene_start(&s, 14, 2);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct mpig_sqe e = {.count = 1, .end = ROWS, .proposal = wrong[i].proposal};
		struct answer a = fixture_attend(&f, s.context, &e, &wrong[i].header, s.q);
		ck_assert_int_eq(a.result.status, wrong[i].status);
		ck_assert_msg(strstr(a.result.why, wrong[i].word) != NULL, "case %zu: '%s'", i, a.result.why);
		answer_free(&a);
	}
	struct mpig_slot_header h = {.delta = .1f, .error_target = .1f, .present = MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT};
	struct mpig_payload_layout l = mpig_attend_layout(&context_layer(s.context, 0)->shape, 1, MPIG_F32, h.present);
	s.window_out[3] = INFINITY;
	memcpy(f.slot + l.window_lse, s.window_lse, sizeof(s.window_lse));
	memcpy(f.slot + l.window_out, s.window_out, sizeof(s.window_out));
	struct mpig_sqe e = {.count = 1, .end = ROWS};
	struct answer a = fixture_attend(&f, s.context, &e, &h, s.q);
	ck_assert_int_eq(a.result.status, MPIG_ENAN);
	answer_free(&a);
	scene_end(&s);
}
END_TEST

START_TEST(heavy_rows_are_listed_and_put_in_order)
{
	enum { N = 20 };
	uint32_t row[N + HEAVY_ROWS];
	float neg_log_pi[N + HEAVY_ROWS], weight[2 * N];
	for (uint32_t i = 0; i < N; i++) {
		row[i] = 10 * i;
		neg_log_pi[i] = i % 4 ? .5f : 0;
		weight[i] = expf(.1f * (float)i);
		weight[N + i] = i % 4 ? (float)(i * 7 % N) : 0; // certain rows have no term
	}
	struct heavy heavy;
	heavy_note(&heavy, row, neg_log_pi, weight, N, 2);
	static const uint32_t want[HEAVY_ROWS] = {17, 14, 11, 5, 2,
	                                          19, 13, 10}; // i with the largest 7 i mod 20: 19, 18, 17, 15, 14, 13, 11, 10
	ck_assert_uint_eq(heavy.n, HEAVY_ROWS);
	for (int i = 0; i < HEAVY_ROWS; i++) {
		ck_assert_uint_eq(heavy.row[i], 10 * want[i]);
		ck_assert_float_eq(heavy.term[i], (float)(want[i] * 7 % N));
		ck_assert_float_eq(heavy.neg_log_pi[i], .5f);
	}
	ck_assert_uint_eq(heavy.noise_n, 15);
	ck_assert_double_eq_tol(heavy.noise / 15, 3, .01); // 2 + .1 i, over the i that are no multiple of 4

	struct heavy force = {.n = 4, .row = {40, 5, 1000, 0}};
	uint32_t n = heavy_force(&force, row, neg_log_pi, N);
	ck_assert_uint_eq(n, N + 2);
	for (uint32_t i = 0; i < n; i++) {
		ck_assert(!i || row[i] > row[i - 1]);
		bool forced = row[i] == 40 || row[i] == 5 || row[i] == 1000 || row[i] == 0;
		ck_assert_float_eq(neg_log_pi[i], forced || row[i] % 40 == 0 ? 0 : .5f);
	}
	ck_assert_uint_eq(row[1], 5);
	ck_assert_uint_eq(row[n - 1], 1000);
	ck_assert_uint_eq(heavy_force(&force, row, neg_log_pi, 0), 4); // nothing was drawn
	ck_assert_uint_eq(row[0], 0);
	ck_assert_uint_eq(row[3], 1000);
}
END_TEST

START_TEST(deviations_are_normal_quantiles)
{
	ck_assert_double_eq_tol(verify_deviations(.3173105), 1, 1e-6);
	ck_assert_double_eq_tol(verify_deviations(.05), 1.959964, 1e-6);
	ck_assert_double_eq_tol(verify_deviations(.002699796), 3, 1e-6);
	ck_assert_double_lt(verify_deviations(1e-30), 12);
	ck_assert_uint_ne(verify_seed(0), 0);
	ck_assert_uint_ne(verify_seed(1), verify_seed(0));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("verify");
	TCase *t = tcase_create("verify");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, few_heads_break_the_promise, 0, 3);
	tcase_add_test(t, any_number_of_workers_gives_the_same_bits);
	tcase_add_test(t, rows_are_what_the_answer_has);
	tcase_add_test(t, tokens_and_tails_are_verified_too);
	tcase_add_test(t, what_makes_no_sense_is_refused);
	tcase_add_test(t, heavy_rows_are_listed_and_put_in_order);
	tcase_add_test(t, deviations_are_normal_quantiles);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
