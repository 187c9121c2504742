// The engine end to end on arrays: every proposal against a double-precision reference, and the estimators' promises.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/pool.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 64, QUERY_HEADS = 6, KV_HEADS = 2, GROUP = QUERY_HEADS / KV_HEADS };
static const uint64_t POOL = UINT64_C(256) << 20;

static struct fixture f;

static void setup(void)
{
	fixture_start(&f, POOL, UINT32_MAX);
}

static void teardown(void)
{
	fixture_stop(&f);
}

struct rows {
	uint32_t n;
	float *k, *v; // [n][KV_HEADS][D], already rounded to bf16
};

static struct rows make_rows(uint32_t n, uint64_t seed)
{
	size_t count = (size_t)n * KV_HEADS * D;
	struct rows r = {.n = n, .k = malloc(count * 4), .v = malloc(count * 4)};
	fill_normal(r.k, count, seed, 1.f);
	fill_normal(r.v, count, seed + 1, 1.f);
	for (size_t i = 0; i < count; i++) {
		r.k[i] = bf16_to_f32(f32_to_bf16(r.k[i] + .5f)); // a mean, so that centring matters
		r.v[i] = bf16_to_f32(f32_to_bf16(r.v[i]));
	}
	return r;
}

static void free_rows(struct rows *r)
{
	free(r->k);
	free(r->v);
}

static struct context *make_context(const char *name, const struct rows *r, const struct mpig_wire_layer *layer,
                                    const float *queries, uint32_t query_count)
{
	struct context *c = fixture_context(&f, name, layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, r->n, r->k, r->v, queries, query_count).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, r->n, true).status, 0);
	return c;
}

static void release(struct context *c)
{
	struct credentials root = {0};
	struct mpig_wire_context info;
	char why[MPIG_TEXT_BYTES];
	store_context_info(f.store, c, &info);
	ck_assert_int_eq(store_context_drop(f.store, &root, info.name, why), 0);
	context_unref(c);
}

// Exact attention of query head h over rows [begin, end).
static double reference(const struct rows *r, const float *q, uint32_t h, uint64_t begin, uint64_t end, float scale, double *out)
{
	uint32_t g = h / GROUP;
	double sum = 0, m = -INFINITY;
	memset(out, 0, D * sizeof(double));
	for (int pass = 0; pass < 2; pass++)
		for (uint64_t i = begin; i < end; i++) {
			const float *k = r->k + (i * KV_HEADS + g) * D, *v = r->v + (i * KV_HEADS + g) * D;
			double s = 0;
			for (int d = 0; d < D; d++)
				s += (double)q[h * D + d] * k[d];
			s *= scale;
			if (!pass) {
				m = fmax(m, s);
				continue;
			}
			double w = exp(s - m);
			sum += w;
			for (int d = 0; d < D; d++)
				out[d] += w * v[d];
		}
	for (int d = 0; d < D; d++)
		out[d] /= sum > 0 ? sum : 1;
	return sum > 0 ? m + log(sum) : -INFINITY;
}

static double relative_error(const float *got, const double *want)
{
	double e = 0, n = 0;
	for (int d = 0; d < D; d++) {
		e += (got[d] - want[d]) * (got[d] - want[d]);
		n += want[d] * want[d];
	}
	return sqrt(e / n);
}

static struct mpig_wire_layer indexed_layer(uint32_t dtype)
{
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, dtype);
	layer.signature_bits = 2;
	layer.paper_k = 6;
	layer.paper_l = 40;
	return layer;
}

START_TEST(dense_equals_the_reference)
{
	static const struct {
		uint32_t dtype;
		double tolerance;
	} type[] = {{MPIG_BF16, 2e-6}, {MPIG_F16, 2e-6}, {MPIG_I8, 5e-2}};
	struct rows r = make_rows(6000, 1);
	struct mpig_wire_layer layer = indexed_layer(type[_i].dtype);
	struct context *c = make_context("dense", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 2.f);
	static const uint64_t range[][2] = {{0, 6000}, {4, 5936}, {255, 257}, {1000, 1001}, {4096, 6000}};
	for (size_t n = 0; n < sizeof(range) / sizeof(range[0]); n++) {
		struct mpig_sqe e = {
			.count = 1, .begin = range[n][0], .end = (int64_t)range[n][1], .proposal = MPIG_PROPOSAL_DENSE};
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		ck_assert_msg(a.result.status == 0, "%s", a.result.why);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D], lse = reference(&r, q, h, range[n][0], range[n][1], .125f, want);
			ck_assert_double_le(relative_error(a.out + h * D, want), type[_i].tolerance);
			ck_assert_double_le(fabs(a.lse[h] - lse), type[_i].tolerance * 2);
			ck_assert_uint_eq(a.rows[h], range[n][1] - range[n][0]);
			ck_assert_float_eq(a.v[h], 0);
		}
		answer_free(&a);
	}
	release(c);
	free_rows(&r);
}
END_TEST

START_TEST(an_empty_range_is_an_empty_answer)
{
	struct rows r = make_rows(300, 1);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("empty", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 2.f);
	for (uint8_t p = 0; p < MPIG_PROPOSAL_COUNT; p++) {
		struct mpig_sqe e = {
			.count = 1, .begin = 4, .end = -1000, .flags = MPIG_SQE_END_RELATIVE, .proposal = p, .budget = .1f};
		if (p == MPIG_PROPOSAL_CROSSPOLYTOPE)
			continue; // the layer's tables are of the other hash
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		ck_assert_msg(a.result.status == 0, "proposal %u: %s", p, a.result.why);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			ck_assert(isinf(a.lse[h]) && a.lse[h] < 0);
			for (int d = 0; d < D; d++)
				ck_assert_float_eq(a.out[h * D + d], 0);
		}
		answer_free(&a);
	}
	release(c);
	free_rows(&r);
}
END_TEST

// Query token t sees rows < base + t.
START_TEST(causal_limits_hold_for_every_proposal_that_can_be_exact)
{
	struct rows r = make_rows(700, 5);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("causal", &r, &layer, NULL, 0);
	enum { T = 5 };
	float q[T * QUERY_HEADS * D];
	fill_normal(q, sizeof(q) / 4, 3, 2.f);
	static const uint8_t proposal[] = {MPIG_PROPOSAL_DENSE,
	                                   MPIG_PROPOSAL_SIGNATURE,
	                                   MPIG_PROPOSAL_TOPK,
	                                   MPIG_PROPOSAL_UNIFORM,
	                                   MPIG_PROPOSAL_TOPK_ESTIMATED,
	                                   MPIG_PROPOSAL_HEAVY_UNIFORM,
	                                   MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED};
	struct mpig_slot_header header = {.causal_base = 509, .query_position = 600};
	struct mpig_sqe e = {.count = T, .begin = 2, .end = 700, .flags = MPIG_SQE_CAUSAL, .budget = 1, .proposal = proposal[_i]};
	struct answer a = fixture_attend(&f, c, &e, &header, q);
	ck_assert_msg(a.result.status == 0, "%s", a.result.why);
	for (uint32_t t = 0; t < T; t++)
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D], lse = reference(&r, q + t * QUERY_HEADS * D, h, 2, 509 + t, .125f, want);
			size_t at = t * QUERY_HEADS + h;
			ck_assert_uint_eq(a.rows[at], 507 + t);
			ck_assert_double_le(relative_error(a.out + at * D, want), 3e-6);
			ck_assert_double_le(fabs(a.lse[at] - lse), 3e-6);
		}
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

START_TEST(the_same_seed_gives_the_same_bits_with_any_number_of_workers)
{
	struct rows r = make_rows(9000, 11);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("workers", &r, &layer, NULL, 0);
	enum { TOKENS = 2, ANSWERS = TOKENS * QUERY_HEADS };
	float q[ANSWERS * D];
	fill_normal(q, ANSWERS * D, 3, 2.f);
	for (uint8_t p = 1; p < MPIG_PROPOSAL_COUNT; p++) {
		struct mpig_sqe e = {.count = TOKENS, .begin = 4, .end = 8900, .proposal = p, .budget = .02f, .seed = 99};
		if (p == MPIG_PROPOSAL_CROSSPOLYTOPE)
			continue; // the layer's tables are of the other hash
		f.threads = 1;
		struct answer looked_at = fixture_attend(&f, c, &e, NULL, q); // a strip's first one reads more (engine/heads.h)
		answer_free(&looked_at);
		struct answer one = fixture_attend(&f, c, &e, NULL, q);
		for (int again = 0; again < 8; again++) {
			f.threads = 4;
			fixture_engine(&f, &(struct engine_options){.workers = again % 2 ? 4 : 64});
			struct answer four = fixture_attend(&f, c, &e, NULL, q);
			ck_assert_int_eq(four.result.status, 0);
			ck_assert_mem_eq(one.out, four.out, ANSWERS * D * 4);
			ck_assert_mem_eq(one.lse, four.lse, ANSWERS * 4);
			ck_assert_mem_eq(one.rows, four.rows, ANSWERS * 4);
			ck_assert_uint_eq(one.result.bytes_read, four.result.bytes_read);
			answer_free(&four);
		}
		f.threads = 1;
		fixture_engine(&f, &(struct engine_options){0});
		e.seed = 100;
		struct answer other = fixture_attend(&f, c, &e, NULL, q);
		if (p == MPIG_PROPOSAL_SIGNATURE || p == MPIG_PROPOSAL_UNIFORM || p == MPIG_PROPOSAL_HEAVY_UNIFORM ||
		    p == MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED)
			ck_assert(memcmp(one.out, other.out, ANSWERS * D * 4) != 0);
		answer_free(&one);
		answer_free(&other);
	}
	release(c);
	free_rows(&r);
}
END_TEST

// Mean of exp(LSE) over seeds against the truth: |z| < 5.5 per head, 24 heads over the proposals: false alarms below 1e-6 for a normal
// mean; the sums are of hundreds of rows over 1,200 seeds.
START_TEST(the_mass_is_unbiased)
{
	enum { SEEDS = 1200 };
	static const uint8_t proposal[] = {MPIG_PROPOSAL_SIGNATURE, MPIG_PROPOSAL_UNIFORM, MPIG_PROPOSAL_HEAVY_UNIFORM,
	                                   MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED};
	struct rows r = make_rows(4500, 21);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("unbiased", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 1.f);
	double sum[QUERY_HEADS] = {0}, square[QUERY_HEADS] = {0}, rows = 0, predicted = 0, error = 0;
	double want[QUERY_HEADS][D], lse[QUERY_HEADS];
	for (uint32_t h = 0; h < QUERY_HEADS; h++)
		lse[h] = reference(&r, q, h, 0, 4500, .125f, want[h]);
	for (int seed = 0; seed < SEEDS; seed++) {
		struct mpig_sqe e = {.count = 1, .end = 4500, .proposal = proposal[_i], .budget = .04f, .seed = (uint64_t)seed};
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double x = exp(a.lse[h] - lse[h]);
			sum[h] += x;
			square[h] += x * x;
			rows += a.rows[h];
			predicted += a.v[h];
			for (int d = 0; d < D; d++)
				error += (a.out[h * D + d] - want[h][d]) * (a.out[h * D + d] - want[h][d]);
		}
		answer_free(&a);
	}
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		double mean = sum[h] / SEEDS, sd = sqrt((square[h] / SEEDS - mean * mean) / SEEDS);
		ck_assert_msg(fabs(mean - 1) < 5.5 * sd, "head %u: mean %.5f, standard error %.5f", h, mean, sd);
	}
	ck_assert_double_ge(rows / SEEDS / QUERY_HEADS, .04 * 4500 * .8);
	ck_assert_double_le(rows / SEEDS / QUERY_HEADS, .04 * 4500 * 1.25);
	ck_assert_double_ge(sqrt(error / predicted), .8);
	ck_assert_double_le(sqrt(error / predicted), 1.25);
	release(c);
	free_rows(&r);
}
END_TEST

static double mean_error(struct context *c, const struct rows *r, const float *q, uint8_t proposal, float budget, uint32_t n)
{
	double total = 0;
	for (uint64_t seed = 0; seed < 10; seed++) {
		struct mpig_sqe e = {.count = 1, .end = n, .proposal = proposal, .budget = budget, .seed = seed};
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		ck_assert_msg(a.result.status == 0, "%s", a.result.why);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D];
			reference(r, q, h, 0, n, .125f, want);
			total += relative_error(a.out + h * D, want) / (10 * QUERY_HEADS);
		}
		answer_free(&a);
	}
	return total;
}

START_TEST(signatures_beat_uniform_rows_and_more_rows_beat_fewer)
{
	struct rows r = make_rows(6000, 31);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 3.f);
	double at[3];
	for (uint8_t i = 0; i < 3; i++) {
		struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
		layer.signature_bits = (uint8_t)(1u << i);
		struct context *c = make_context("better", &r, &layer, q, 1);
		at[i] = mean_error(c, &r, q, MPIG_PROPOSAL_SIGNATURE, .02f, 6000);
		ck_assert_double_lt(at[i], .5 * mean_error(c, &r, q, MPIG_PROPOSAL_UNIFORM, .02f, 6000));
		ck_assert_double_lt(mean_error(c, &r, q, MPIG_PROPOSAL_SIGNATURE, .2f, 6000), .5 * at[i]);
		release(c);
	}
	ck_assert_double_lt(at[1], at[0]);
	ck_assert_double_lt(at[2], at[1]);
	free_rows(&r);
}
END_TEST

static const struct {
	uint8_t hash, balance, proposal, other;
	uint16_t k, l;
} TABLES[] = {{MPIG_HASH_SIMHASH, 0, MPIG_PROPOSAL_PAPER, MPIG_PROPOSAL_CROSSPOLYTOPE, 6, 40},
              {MPIG_HASH_SIMHASH, 1, MPIG_PROPOSAL_PAPER, MPIG_PROPOSAL_CROSSPOLYTOPE, 6, 40},
              {MPIG_HASH_CROSSPOLYTOPE, 0, MPIG_PROPOSAL_CROSSPOLYTOPE, MPIG_PROPOSAL_PAPER, 0, 28},
              {MPIG_HASH_CROSSPOLYTOPE, 1, MPIG_PROPOSAL_CROSSPOLYTOPE, MPIG_PROPOSAL_PAPER, 0, 28}};
enum { TABLE_KINDS = sizeof(TABLES) / sizeof(*TABLES) };

static struct mpig_wire_layer table_layer(int kind)
{
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	layer.paper_k = TABLES[kind].k;
	layer.paper_l = TABLES[kind].l;
	layer.table_hash = TABLES[kind].hash;
	layer.table_balance = TABLES[kind].balance;
	return layer;
}

START_TEST(tables_find_rows_and_cover_the_tail_exactly)
{
	struct rows r = make_rows(3000, 41);
	struct mpig_wire_layer layer = table_layer(_i);
	struct context *c = fixture_context(&f, "tables", &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, 2500, r.k, r.v, NULL, 0).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, 2500, true).status, 0);
	size_t tail = 2500ul * KV_HEADS * D;
	ck_assert_int_eq(fixture_append(&f, c, 0, 2500, 500, r.k + tail, r.v + tail, NULL, 0).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 2500, 500, false).status, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 1.f);
	struct mpig_sqe e = {.count = 1, .end = 3000, .proposal = TABLES[_i].proposal};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_int_eq(a.result.status, 0);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		ck_assert_uint_gt(a.rows[h], 500); // the tail, and some
		ck_assert_uint_lt(a.rows[h], 2900);
		double want[D], lse = reference(&r, q, h, 0, 3000, .125f, want);
		ck_assert_double_le(fabs(a.lse[h] - lse), .5);
	}
	answer_free(&a);
	e.begin = 2500; // the tail alone is exact
	a = fixture_attend(&f, c, &e, NULL, q);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		double want[D];
		reference(&r, q, h, 2500, 3000, .125f, want);
		ck_assert_uint_eq(a.rows[h], 500);
		ck_assert_double_le(relative_error(a.out + h * D, want), 3e-6);
	}
	answer_free(&a);
	e.proposal = TABLES[_i].other;
	a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_int_eq(a.result.status, MPIG_ENOTSUP);
	ck_assert_ptr_nonnull(strstr(a.result.why, "tables"));
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

// A row equal to the query's direction is in the query's bucket of every table: it is always found, whatever the blocks and ranges.
START_TEST(tables_find_the_row_that_the_query_points_at)
{
	struct rows r = make_rows(9000, 43);
	struct mpig_wire_layer layer = table_layer(_i);
	struct context *c = make_context("pointed", &r, &layer, NULL, 0);
	for (uint32_t trial = 0; trial < 40; trial++) {
		uint32_t row = trial * 223 + 7;
		uint64_t begin = trial % 3 ? row - trial % 7 : 0, end = trial % 2 ? 9000 : row + 1;
		float q[QUERY_HEADS * D];
		const float *key = r.k + (size_t)row * KV_HEADS * D;
		for (uint32_t h = 0; h < QUERY_HEADS; h++)
			for (int d = 0; d < D; d++)
				q[h * D + d] = 6 * (key[h / GROUP * D + d] - .5f);
		struct mpig_sqe e = {.count = 1, .begin = begin, .end = (int64_t)end, .proposal = TABLES[_i].proposal};
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		ck_assert_msg(a.result.status == 0, "%s", a.result.why);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D];
			reference(&r, q, h, begin, end, .125f, want);
			ck_assert_uint_ge(a.rows[h], 1);
			ck_assert_double_le(relative_error(a.out + h * D, want), .05);
		}
		answer_free(&a);
	}
	release(c);
	free_rows(&r);
}
END_TEST

// Over tables drawn anew exp(LSE) is unbiased but for the 1e-4 that is added to u: 6 heads x 4 kinds, |t| < 7 with 39 degrees of freedom: false alarms 5e-7. The
// bias is below 1e-4 / u of each row, so below 1e-4 / u of the row that is least often chosen, of which the mass below u = .01 is
// bounded here too.
START_TEST(tables_are_unbiased_over_tables)
{
	enum { SEEDS = 40, N = 1200 };
	struct rows r = make_rows(N, 47);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 1.f);
	double sum[QUERY_HEADS] = {0}, square[QUERY_HEADS] = {0};
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct mpig_wire_layer layer = table_layer(_i);
		struct context *c = fixture_context(&f, "unbiased", &layer, 1, seed);
		ck_assert_int_eq(fixture_append(&f, c, 0, 0, N, r.k, r.v, NULL, 0).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, 0, N, true).status, 0);
		struct mpig_sqe e = {.count = 1, .end = N, .proposal = TABLES[_i].proposal};
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D], lse = reference(&r, q, h, 0, N, .125f, want), x = exp((double)a.lse[h] - lse);
			sum[h] += x;
			square[h] += x * x;
		}
		answer_free(&a);
		release(c);
	}
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		double mean = sum[h] / SEEDS, sd = sqrt((square[h] / SEEDS - mean * mean) / (SEEDS - 1));
		ck_assert_msg(fabs(mean - 1) < 7 * sd + .01, "head %u: mean %.4f, standard error %.4f", h, mean, sd);
		ck_assert_double_lt(sd, .05);
	}
	free_rows(&r);
}
END_TEST

// What is read counts once for a group: heads that ask the same want the same rows, others share some of theirs.
START_TEST(rows_that_heads_share_are_counted_once)
{
	static const uint8_t proposal[] = {MPIG_PROPOSAL_PAPER, MPIG_PROPOSAL_SIGNATURE, MPIG_PROPOSAL_TOPK_ESTIMATED,
	                                   MPIG_PROPOSAL_TOPK};
	struct rows r = make_rows(5000, 59);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("shared", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 5, 2.f);
	struct mpig_sqe e = {.count = 1, .begin = 3, .end = 4991, .proposal = proposal[_i], .budget = .05f, .seed = 9};
	struct answer apart = fixture_attend(&f, c, &e, NULL, q);
	for (uint32_t h = 0; h < QUERY_HEADS; h++)
		memcpy(q + h * D, q + h / GROUP * GROUP * D, D * sizeof(float));
	struct answer same = fixture_attend(&f, c, &e, NULL, q);
	uint64_t all = 0, most = 0;
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		all += apart.rows[h];
		most = apart.rows[h] > most ? apart.rows[h] : most;
	}
	ck_assert_uint_gt(apart.result.rows_read, most);
	ck_assert_uint_lt(apart.result.rows_read, all);
	ck_assert_uint_eq(same.result.rows_read, same.rows[0] + same.rows[GROUP]);
	ck_assert_uint_lt(same.result.bytes_read, apart.result.bytes_read);
	answer_free(&apart);
	answer_free(&same);
	release(c);
	free_rows(&r);
}
END_TEST

START_TEST(top_k_takes_the_largest_logits)
{
	struct rows r = make_rows(2000, 51);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("topk", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 3.f);
	struct mpig_sqe e = {.count = 1, .end = 2000, .proposal = MPIG_PROPOSAL_TOPK, .budget = .05f};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		double logit[2000], sum = 0;
		for (uint32_t i = 0; i < 2000; i++) {
			logit[i] = 0;
			for (int d = 0; d < D; d++)
				logit[i] += .125 * q[h * D + d] * r.k[((size_t)i * KV_HEADS + h / GROUP) * D + d];
		}
		for (uint32_t i = 0; i < 2000; i++) {
			uint32_t larger = 0;
			for (uint32_t o = 0; o < 2000; o++)
				larger += logit[o] > logit[i];
			sum += larger < 100 ? exp(logit[i]) : 0;
		}
		ck_assert_uint_eq(a.rows[h], 100);
		ck_assert_double_le(fabs(a.lse[h] - log(sum)), 1e-5);
	}
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

// Topk has the largest mass of so many rows there is; four bits find nearly all of it. The tail without codes is exact, and no part
// of the budget.
START_TEST(estimated_top_k_is_close_to_the_true_one)
{
	struct rows r = make_rows(2600, 53);
	struct mpig_wire_layer layer = indexed_layer(_i ? MPIG_I8 : MPIG_BF16);
	layer.signature_bits = 4;
	layer.softcap = _i == 2 ? 20 : 0;
	layer.alibi_slope_base = _i == 2 ? .5f : 0;
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 3.f);
	struct context *c = make_context("close", &r, &layer, q, 1);
	struct mpig_slot_header at = {.query_position = 2600};
	struct mpig_sqe e = {.count = 1, .begin = 5, .end = 2505, .proposal = MPIG_PROPOSAL_TOPK, .budget = .04f};
	struct answer truly = fixture_attend(&f, c, &e, &at, q);
	e.proposal = MPIG_PROPOSAL_TOPK_ESTIMATED;
	struct answer estimated = fixture_attend(&f, c, &e, &at, q);
	ck_assert_int_eq(truly.result.status | estimated.result.status, 0);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		ck_assert_uint_eq(truly.rows[h], 100);
		ck_assert_uint_eq(estimated.rows[h], 100);
		ck_assert_float_le(estimated.lse[h], truly.lse[h] + 1e-5f);
		ck_assert_float_ge(estimated.lse[h], truly.lse[h] - .1f);
	}
	ck_assert_uint_lt(estimated.result.bytes_read, truly.result.bytes_read);
	answer_free(&truly);
	answer_free(&estimated);
	release(c);
	free_rows(&r);
}
END_TEST

// Before a first seal there are no codes to estimate by: every row is attended.
START_TEST(estimates_without_an_index_are_exact)
{
	static const uint8_t proposal[] = {MPIG_PROPOSAL_TOPK_ESTIMATED, MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED};
	struct rows r = make_rows(500, 57);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = fixture_context(&f, "open", &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, 500, r.k, r.v, NULL, 0).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, 500, false).status, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 1.f);
	struct mpig_sqe e = {.count = 1, .end = 500, .proposal = proposal[_i], .budget = .01f};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_int_eq(a.result.status, 0);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		double want[D];
		reference(&r, q, h, 0, 500, .125f, want);
		ck_assert_uint_eq(a.rows[h], 500);
		ck_assert_double_le(relative_error(a.out + h * D, want), 3e-6);
	}
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

// A layer without codes refuses to estimate.
START_TEST(estimates_need_codes)
{
	static const uint8_t proposal[] = {MPIG_PROPOSAL_TOPK_ESTIMATED, MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED};
	struct rows r = make_rows(300, 57);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	layer.signature_bits = 0;
	struct context *c = make_context("bare", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D] = {0};
	struct mpig_sqe e = {.count = 1, .end = 300, .proposal = proposal[_i]};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_int_eq(a.result.status, MPIG_ENOTSUP);
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

// All logits equal: topk takes the first rows and no more; heavy+uniform as many as its budget in the mean. Of 3,900 rows that are left
// 100 are expected: deviation 9.87, of the mean over 6 x 200 drawings 0.285 if heads were independent; heads of a group share
// their numbers, so .285 * sqrt(3) = .494, and 5 of these are exceeded once in 1.7 million.
START_TEST(equal_logits_are_ordered_by_position)
{
	enum { SEEDS = 200 };
	struct rows r = make_rows(4000, 55);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("equal", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D] = {0};
	struct mpig_sqe e = {.count = 1, .end = 4000, .budget = .05f, .proposal = MPIG_PROPOSAL_TOPK};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		double want[D], lse = reference(&r, q, h, 0, 200, .125f, want);
		ck_assert_uint_eq(a.rows[h], 200);
		ck_assert_double_le(fabs(a.lse[h] - lse), 1e-5);
		ck_assert_double_le(relative_error(a.out + h * D, want), 1e-5);
	}
	answer_free(&a);
	e.proposal = MPIG_PROPOSAL_HEAVY_UNIFORM;
	double rows = 0;
	for (e.seed = 0; e.seed < SEEDS; e.seed++) {
		a = fixture_attend(&f, c, &e, NULL, q);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			ck_assert_uint_ge(a.rows[h], 100);
			rows += a.rows[h];
		}
		answer_free(&a);
	}
	ck_assert_double_le(fabs(rows / SEEDS / QUERY_HEADS - 200), 5 * .494);
	release(c);
	free_rows(&r);
}
END_TEST

START_TEST(the_window_reads_nothing)
{
	struct rows r = make_rows(5000, 59);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("window", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 1.f);
	struct mpig_sqe e = {.count = 1, .end = 5000, .proposal = MPIG_PROPOSAL_WINDOW};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	ck_assert_int_eq(a.result.status, 0);
	ck_assert_uint_eq(a.result.rows_read, 0);
	ck_assert_uint_eq(a.result.bytes_read, 0);
	for (uint32_t h = 0; h < QUERY_HEADS; h++) {
		ck_assert(isinf(a.lse[h]) && a.lse[h] < 0);
		ck_assert_uint_eq(a.rows[h], 0);
		for (int d = 0; d < D; d++)
			ck_assert_float_eq(a.out[h * D + d], 0);
	}
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

// 300 single tokens after a sealed prefill: they are in the index at once, and everything stays exact where it should be.
START_TEST(decode_appends_join_the_index)
{
	struct rows r = make_rows(6300, 61);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	layer.paper_k = layer.paper_l = 0;
	struct context *c = fixture_context(&f, "decode", &layer, 1, 7);
	size_t row = (size_t)KV_HEADS * D;
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, 6000, r.k, r.v, NULL, 0).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, 6000, true).status, 0);
	for (uint32_t i = 6000; i < 6300; i++) {
		ck_assert_int_eq(fixture_append(&f, c, 0, i, 1, r.k + i * row, r.v + i * row, NULL, 0).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, i, 1, false).status, 0);
	}
	float q[QUERY_HEADS * D];
	memcpy(q, r.k + 6200 * row, D * 4); // the first KV head's newest key, so that a decoded row is heavy
	fill_normal(q + D, (QUERY_HEADS - 1) * D, 3, 3.f);
	for (int d = 0; d < D; d++)
		q[d] *= 4;
	struct mpig_sqe e = {.count = 1, .end = 6300, .proposal = MPIG_PROPOSAL_SIGNATURE, .budget = .02f};
	struct answer a = fixture_attend(&f, c, &e, NULL, q);
	double want[D];
	reference(&r, q, 0, 0, 6300, .125f, want);
	ck_assert_double_le(relative_error(a.out, want), .05);
	for (uint32_t h = 0; h < QUERY_HEADS; h++)
		ck_assert_uint_lt(a.rows[h], 400); // nothing of the 300 is attended exactly for want of an index
	answer_free(&a);
	release(c);
	free_rows(&r);
}
END_TEST

// Appends of few rows make small blocks; several of those are scanned in a unit, here of a sixteenth of the range.
START_TEST(small_blocks_share_a_unit)
{
	enum { N = 32768, PIECE = 15, T = 3, FROM = 30000, UNITS = 16 };
	struct rows r = make_rows(N, 67);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	layer.paper_k = layer.paper_l = 0;
	struct context *c = fixture_context(&f, "small", &layer, 1, 7);
	size_t row = (size_t)KV_HEADS * D;
	for (uint32_t i = 0, n; i < N; i += n) {
		n = N - i < PIECE ? N - i : PIECE;
		ck_assert_int_eq(fixture_append(&f, c, 0, i, n, r.k + i * row, r.v + i * row, NULL, 0).status, 0);
	}
	ck_assert_int_eq(fixture_commit(&f, c, 0, N, true).status, 0);
	struct layer_view view;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, N, &view), 0);
	ck_assert_uint_gt(view.span_count, 2 * UNITS);
	layer_view_free(f.store, &view);

	float q[T * QUERY_HEADS * D];
	fill_normal(q, sizeof(q) / 4, 3, 2.f);
	struct mpig_slot_header header = {.causal_base = FROM, .query_position = FROM};
	struct mpig_sqe e = {
		.count = T, .begin = 0, .end = N, .flags = MPIG_SQE_CAUSAL, .budget = 1, .proposal = MPIG_PROPOSAL_SIGNATURE};
	struct answer all = fixture_attend(&f, c, &e, &header, q);
	ck_assert_uint_eq(all.result.units, KV_HEADS * (T + UNITS));
	ck_assert_uint_eq(all.result.rows_read, (uint64_t)KV_HEADS * (FROM + T - 1)); // by several tokens, but once
	for (uint32_t t = 0; t < T; t++)
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D], lse = reference(&r, q + t * QUERY_HEADS * D, h, 0, FROM + t, .125f, want);
			size_t at = t * QUERY_HEADS + h;
			ck_assert_uint_eq(all.rows[at], FROM + t);
			ck_assert_double_le(relative_error(all.out + at * D, want), 3e-6);
			ck_assert_double_le(fabs(all.lse[at] - lse), 3e-6);
		}
	answer_free(&all);

	e.budget = .02f;
	struct answer one = fixture_attend(&f, c, &e, &header, q);
	f.threads = 4;
	fixture_engine(&f, &(struct engine_options){.workers = 4});
	struct answer four = fixture_attend(&f, c, &e, &header, q);
	ck_assert_mem_eq(one.out, four.out, T * QUERY_HEADS * D * 4);
	ck_assert_mem_eq(one.rows, four.rows, T * QUERY_HEADS * 4);
	answer_free(&one);
	answer_free(&four);
	release(c);
	free_rows(&r);
}
END_TEST

START_TEST(truncate_goes_back_and_on)
{
	struct rows r = make_rows(1200, 71), other = make_rows(1200, 72);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("truncate", &r, &layer, NULL, 0);
	size_t row = (size_t)KV_HEADS * D;
	static const uint32_t back[] = {900, 700};
	for (int i = 0; i < 2; i++) { // into the sealed segment, then into what was appended after
		struct mpig_sqe t = {.op = MPIG_OP_TRUNCATE, .begin = back[i]};
		struct engine_result result = fixture_run(&f, c, &t, NULL);
		ck_assert_msg(result.status == 0, "%s", result.why);
		ck_assert_uint_eq(result.committed, back[i]);
		uint32_t n = 1100 - back[i];
		memcpy(r.k + back[i] * row, other.k + back[i] * row, n * row * 4);
		memcpy(r.v + back[i] * row, other.v + back[i] * row, n * row * 4);
		ck_assert_int_eq(fixture_append(&f, c, 0, back[i], n, r.k + back[i] * row, r.v + back[i] * row, NULL, 0).status,
		                 0);
		ck_assert_int_eq(fixture_commit(&f, c, back[i], n, false).status, 0);
		float q[QUERY_HEADS * D];
		fill_normal(q, QUERY_HEADS * D, 3, 2.f);
		struct mpig_sqe e = {.count = 1, .end = 1100, .proposal = MPIG_PROPOSAL_DENSE};
		struct answer a = fixture_attend(&f, c, &e, NULL, q);
		for (uint32_t h = 0; h < QUERY_HEADS; h++) {
			double want[D];
			reference(&r, q, h, 0, 1100, .125f, want);
			ck_assert_double_le(relative_error(a.out + h * D, want), 3e-6);
		}
		answer_free(&a);
	}
	release(c);
	free_rows(&r);
	free_rows(&other);
}
END_TEST

START_TEST(rows_read_back_as_they_were_written)
{
	struct rows r = make_rows(900, 81);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("read", &r, &layer, NULL, 0);
	struct mpig_sqe e = {.op = MPIG_OP_READ, .begin = 200, .count = 600};
	ck_assert_int_eq(fixture_run(&f, c, &e, NULL).status, 0);
	struct mpig_payload_layout l = mpig_read_layout(&context_layer(c, 0)->shape, 600);
	ck_assert_mem_eq(f.slot + l.k, r.k + 200 * KV_HEADS * D, 600 * KV_HEADS * D * 4);
	ck_assert_mem_eq(f.slot + l.v, r.v + 200 * KV_HEADS * D, 600 * KV_HEADS * D * 4);
	release(c);
	free_rows(&r);
}
END_TEST

// Dimensions of very different spread, a sink among the first rows, and a segment that begins inside an append: int8 keys keep to a
// few parts in a thousand of each dimension's own deviation, and rows that come one by one are no worse.
START_TEST(int8_keys_follow_each_dimension)
{
	enum { N = 65536 + 300, LATE = 5 };
	struct rows r = make_rows(N + LATE, 83);
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, MPIG_I8);
	for (size_t i = 0; i < (size_t)(N + LATE) * KV_HEADS; i++)
		for (int d = 0; d < D; d++) {
			float spread = d % 8 ? .25f : 16, shift = i / KV_HEADS < 65536 ? 3 : -40;
			r.k[i * D + d] = i < KV_HEADS ? 900 : shift + spread * r.k[i * D + d];
		}
	struct context *c = fixture_context(&f, "frames", &layer, 1, 7);
	for (uint32_t i = 0, n; i < N; i += n) {
		n = i < 65000 ? 13000 : N - i;
		size_t at = (size_t)i * KV_HEADS * D;
		ck_assert_int_eq(fixture_append(&f, c, 0, i, n, r.k + at, r.v + at, NULL, 0).status, 0);
	}
	ck_assert_int_eq(fixture_commit(&f, c, 0, N, true).status, 0);
	for (uint32_t i = N; i < N + LATE;
	     i++) { // in a segment of their own, which is sealed before there are rows to fit a frame to
		size_t at = (size_t)i * KV_HEADS * D;
		ck_assert_int_eq(fixture_append(&f, c, 0, i, 1, r.k + at, r.v + at, NULL, 0).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, i, 1, true).status, 0);
	}
	struct mpig_payload_layout l = mpig_read_layout(&context_layer(c, 0)->shape, 400);
	static const uint32_t from[] = {100, 65400, N + LATE - 400};
	for (size_t n = 0; n < sizeof(from) / sizeof(from[0]); n++) {
		struct mpig_sqe e = {.op = MPIG_OP_READ, .begin = from[n], .count = 400};
		ck_assert_int_eq(fixture_run(&f, c, &e, NULL).status, 0);
		const float *k = (const float *)(const void *)(f.slot + l.k);
		double error[D] = {0};
		for (size_t i = 0; i < 400 * KV_HEADS; i++)
			for (int d = 0; d < D; d++) {
				double e1 = (double)k[i * D + d] - (double)r.k[(from[n] * KV_HEADS + i) * D + d];
				error[d] += e1 * e1 / (400 * KV_HEADS);
			}
		// With one scale for a block of 32, a step is 16 * 4.5 / 127 and an error .16, 65 % of a dimension's .25.
		for (int d = 0; d < D; d++)
			ck_assert_double_le(sqrt(error[d]) / (d % 8 ? .25 : 16), d % 8 ? .12 : .02);
	}
	release(c);
	free_rows(&r);
}
END_TEST

START_TEST(bad_input_is_refused_and_named)
{
	struct rows r = make_rows(400, 91);
	struct mpig_wire_layer layer = indexed_layer(MPIG_BF16);
	struct context *c = make_context("bad", &r, &layer, NULL, 0);
	float q[QUERY_HEADS * D], bad[QUERY_HEADS * D];
	fill_normal(q, QUERY_HEADS * D, 3, 2.f);
	static const struct {
		struct mpig_sqe e;
		int status;
		const char *word;
	} wrong[] = {
		{{.count = 1, .end = 401}, MPIG_ERANGE, "400"},
		{{.count = 1, .begin = 300, .end = 200}, MPIG_ERANGE, "300"},
		{{.count = 1, .end = 1, .flags = MPIG_SQE_END_RELATIVE}, MPIG_ERANGE, "end"},
		{{.count = 0, .end = 400}, MPIG_EINVAL, "query tokens"},
		{{.count = 1, .end = 400, .budget = 1.5f}, MPIG_EINVAL, "budget"},
		{{.count = 1, .end = 400, .budget = -1}, MPIG_EINVAL, "budget"},
		{{.count = 1, .end = 400, .proposal = MPIG_PROPOSAL_COUNT}, MPIG_EINVAL, "proposal"},
		{{.count = 1, .end = 400, .dtype = MPIG_I8}, MPIG_EINVAL, "dtype"},
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct answer a = fixture_attend(&f, c, &wrong[i].e, NULL, q);
		ck_assert_int_eq(a.result.status, wrong[i].status);
		ck_assert_msg(strstr(a.result.why, wrong[i].word) != NULL, "case %zu: '%s' does not say %s", i, a.result.why,
		              wrong[i].word);
		answer_free(&a);
	}
	struct mpig_sqe e = {.count = 1, .end = 400};
	for (uint8_t proposal = 0; proposal <= MPIG_PROPOSAL_DENSE;
	     proposal++) // who answers a short range densely copies the queries later
		for (uint32_t i = 0; i < QUERY_HEADS * D; i += 77) {
			memcpy(bad, q, sizeof(q));
			bad[i] = i % 2 ? NAN : -INFINITY;
			e.proposal = proposal;
			struct answer a = fixture_attend(&f, c, &e, NULL, bad);
			ck_assert_int_eq(a.result.status, MPIG_ENAN);
			ck_assert_msg(strstr(a.result.why, "q of layer 0") != NULL, "'%s'", a.result.why);
			answer_free(&a);
		}
	e.layer = 1;
	e.op = MPIG_OP_ATTEND;
	ck_assert_int_eq(fixture_run(&f, c, &e, NULL).status, MPIG_EINVAL);
	r.k[5] = INFINITY;
	ck_assert_int_eq(fixture_append(&f, c, 0, 400, 10, r.k, r.v, NULL, 0).status, MPIG_ENAN);
	ck_assert_uint_eq(context_rows(c, 0), 400);
	ck_assert_int_eq(fixture_append(&f, c, 0, 500, 10, r.k + 1000, r.v, NULL, 0).status, MPIG_ERANGE);
	ck_assert_int_eq(fixture_commit(&f, c, 400, 10, false).status, MPIG_ERANGE);
	release(c);
	free_rows(&r);
}
END_TEST

// _i: the type of rows. The last of many rows is refused, when other units have written theirs: what was reserved is given back, what was there can
// be sealed, and the same rows can be appended again.
START_TEST(an_append_that_fails_leaves_nothing)
{
	enum { HAS = 300, MORE = 5000 };
	struct rows r = make_rows(HAS + MORE, 17);
	struct mpig_wire_layer layer = indexed_layer((uint32_t[]){MPIG_BF16, MPIG_F16, MPIG_I8}[_i]);
	size_t row = (size_t)KV_HEADS * D, last = (HAS + MORE - 1) * row + row - 3;
	for (uint32_t threads = 1; threads <= 8; threads += 7) {
		f.threads = threads;
		struct context *c = fixture_context(&f, threads > 1 ? "many" : "one", &layer, 1, 7);
		ck_assert_int_eq(fixture_append(&f, c, 0, 0, HAS, r.k, r.v, NULL, 0).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, 0, HAS, false).status, 0);
		uint64_t used = pool_used(f.pool);
		float *wrong[] = {&r.k[last], &r.v[last]};
		for (int v = 0; v < 2; v++) {
			float right = *wrong[v];
			*wrong[v] = _i == 1 ? 7e4f : NAN; // too large for fp16
			ck_assert_int_eq(fixture_append(&f, c, 0, HAS, MORE, r.k + HAS * row, r.v + HAS * row, NULL, 0).status,
			                 _i == 1 ? MPIG_ERANGE : MPIG_ENAN);
			*wrong[v] = right;
			ck_assert_uint_eq(context_rows(c, 0), HAS);
			ck_assert_uint_eq(pool_used(f.pool), used);
		}
		struct engine_result sealed = fixture_commit(&f, c, HAS, 0, true);
		ck_assert_int_eq(sealed.status, 0);
		ck_assert_uint_eq(sealed.signature_version, 1); // nobody is thought to be writing
		ck_assert_int_eq(fixture_append(&f, c, 0, HAS, MORE, r.k + HAS * row, r.v + HAS * row, NULL, 0).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, HAS, MORE, true).status, 0);
		release(c);
	}
	free_rows(&r);
}
END_TEST

// _i: the type of rows. Rows that are not committed may be given again. If that fails half way they are neither the old nor the new ones: they are
// not committed, and can be given once more.
START_TEST(a_failed_append_over_rows_takes_them_back)
{
	enum { HAS = 900, FROM = 300 };
	struct rows r = make_rows(HAS, 19);
	struct mpig_wire_layer layer = indexed_layer((uint32_t[]){MPIG_BF16, MPIG_F16, MPIG_I8}[_i]);
	const size_t row = (size_t)KV_HEADS * D, last = HAS * row - 3;
	struct context *c = fixture_context(&f, "again", &layer, 2, 7);
	for (uint32_t l = 0; l < 2; l++)
		ck_assert_int_eq(fixture_append(&f, c, l, 0, HAS, r.k, r.v, NULL, 0).status, 0);
	float right = r.v[last];
	r.v[last] = NAN;
	ck_assert_int_eq(fixture_append(&f, c, 1, FROM, HAS - FROM, r.k + FROM * row, r.v + FROM * row, NULL, 0).status,
	                 MPIG_ENAN);
	r.v[last] = right;
	ck_assert_uint_eq(context_rows(c, 0), HAS);
	ck_assert_uint_eq(context_rows(c, 1), FROM);
	ck_assert_int_eq(fixture_commit(&f, c, 0, HAS, false).status, MPIG_ERANGE);
	ck_assert_int_eq(fixture_commit(&f, c, 0, FROM, false).status, 0);
	ck_assert_int_eq(fixture_append(&f, c, 1, FROM, HAS - FROM, r.k + FROM * row, r.v + FROM * row, NULL, 0).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, FROM, HAS - FROM, true).status, 0);
	struct mpig_sqe e = {.op = MPIG_OP_READ, .layer = 1, .begin = 0, .count = HAS};
	ck_assert_int_eq(fixture_run(&f, c, &e, NULL).status, 0);
	release(c);
	free_rows(&r);
}
END_TEST

// Rows of fp32 that every type of payload holds exactly, as one of `dtype`.
static struct engine_result append_as(struct context *c, uint32_t dtype, uint64_t position, uint32_t n, const float *k,
                                      const float *v)
{
	const struct mpig_layer_shape s = {QUERY_HEADS, KV_HEADS, D, D};
	struct mpig_payload_layout l = mpig_append_layout(&s, n, dtype, 0);
	const float *from[] = {k, v};
	uint8_t *to[] = {f.slot + l.k, f.slot + l.v};
	for (int p = 0; p < 2; p++)
		for (size_t i = 0; i < (size_t)n * KV_HEADS * D; i++) {
			uint16_t half = dtype == MPIG_BF16 ? f32_to_bf16(from[p][i]) : f32_to_f16(from[p][i]);
			memcpy(to[p] + i * mpig_dtype_bytes(dtype), dtype == MPIG_F32 ? (const void *)&from[p][i] : &half,
			       mpig_dtype_bytes(dtype));
		}
	struct mpig_sqe e = {.op = MPIG_OP_APPEND, .count = n, .begin = position, .dtype = (uint8_t)dtype};
	return fixture_run(&f, c, &e, NULL);
}

struct stored_row {
	uint8_t row[2 * 2 * D], code[D / 4];
	uint16_t factor;
	bool has_code;
};

static void stored_rows(struct context *c, uint32_t n, struct stored_row *out)
{
	enum { BYTES = D / 4 }; // of a code of two bits
	struct layer_view view;
	ck_assert_int_eq(layer_view_get(f.store, c, 0, 0, n, &view), 0);
	for (uint32_t g = 0; g < KV_HEADS; g++)
		for (uint32_t b = 0; b < view.span_count; b++) {
			const struct span *s = &view.strip[g].spans[b];
			for (uint32_t i = 0; i < s->n; i++) {
				struct stored_row *r = &out[(s->first + i) * KV_HEADS + g];
				uint32_t at = s->block_row + i, stride = view.layer->rows.stride;
				memset(r, 0, sizeof(*r));
				memcpy(r->row, s->rows + (size_t)i * stride, stride);
				if (!(r->has_code = s->codes != NULL))
					continue;
				r->factor = s->factors[at];
				for (uint32_t w = 0; w < BYTES / 4; w++)
					memcpy(r->code + 4 * w,
					       s->codes + (size_t)(at & ~15u) * BYTES + (size_t)w * 64 + (size_t)(at & 15) * 4,
					       4);
			}
		}
	layer_view_free(f.store, &view);
}

// _i: types of rows and payload. What is stored is the same to the bit whether rows come one by one as fp32 to one worker, or as another type
// and many at once, from odd positions, to eight; codes where both have any.
START_TEST(rows_do_not_depend_on_how_they_came)
{
	enum { HAS = 301, N = 2500 };
	static const uint32_t pieces[] = {1, 33, 16, 5, 640, 17, 511, 513, 2, 700}, types[] = {MPIG_BF16, MPIG_F16, MPIG_I8},
			      payloads[] = {MPIG_F32, MPIG_BF16, MPIG_F16};
	struct rows r = make_rows(N, 23);
	for (size_t i = 0; i < (size_t)N * KV_HEADS * D; i++) {
		r.k[i] = fabsf(r.k[i]) < 1e-2f ? 0 : r.k[i];
		r.v[i] = fabsf(r.v[i]) < 1e-2f ? 0 : r.v[i];
	}
	struct mpig_wire_layer layer = indexed_layer(types[_i / 3]);
	layer.paper_k = layer.paper_l = 0;
	const size_t row = (size_t)KV_HEADS * D;
	struct stored_row *stored[2];
	for (int many = 0; many < 2; many++) {
		f.threads = 1;
		struct context *c = fixture_context(&f, many ? "many" : "one", &layer, 1, 7);
		ck_assert_int_eq(fixture_append(&f, c, 0, 0, HAS, r.k, r.v, NULL, 0).status, 0);
		ck_assert_int_eq(fixture_commit(&f, c, 0, HAS, true).status, 0);
		f.threads = many ? 8 : 1;
		for (uint32_t at = HAS, n, i = 0; at < N; at += n, i++) {
			n = at == HAS ? 20 : many ? pieces[i % 10] : 1; // the first say what frame int8 keys have
			n = n < N - at ? n : N - at;
			ck_assert_int_eq(
				append_as(c, many ? payloads[_i % 3] : MPIG_F32, at, n, r.k + at * row, r.v + at * row).status,
				0);
		}
		ck_assert_int_eq(fixture_commit(&f, c, HAS, N - HAS, false).status, 0);
		ck_assert_ptr_nonnull(stored[many] = calloc((size_t)N * KV_HEADS, sizeof(struct stored_row)));
		stored_rows(c, N, stored[many]);
		release(c);
	}
	uint32_t codes = 0;
	for (uint32_t i = 0; i < N * KV_HEADS; i++) {
		const struct stored_row *a = &stored[0][i], *b = &stored[1][i];
		ck_assert_msg(memcmp(a->row, b->row, sizeof(a->row)) == 0, "row %u, head %u", i / KV_HEADS, i % KV_HEADS);
		if (!a->has_code || !b->has_code)
			continue;
		codes++;
		ck_assert_msg(memcmp(a->code, b->code, sizeof(a->code)) == 0 && a->factor == b->factor, "code of row %u, head %u",
		              i / KV_HEADS, i % KV_HEADS);
	}
	ck_assert_uint_gt(codes, (N - 600) * KV_HEADS);
	free(stored[0]), free(stored[1]);
	free_rows(&r);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("engine");
	TCase *t = tcase_create("engine");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, dense_equals_the_reference, 0, 3);
	tcase_add_test(t, an_empty_range_is_an_empty_answer);
	tcase_add_loop_test(t, causal_limits_hold_for_every_proposal_that_can_be_exact, 0, 7);
	tcase_add_loop_test(t, estimated_top_k_is_close_to_the_true_one, 0, 3);
	tcase_add_loop_test(t, estimates_without_an_index_are_exact, 0, 2);
	tcase_add_loop_test(t, estimates_need_codes, 0, 2);
	tcase_add_test(t, equal_logits_are_ordered_by_position);
	tcase_add_test(t, the_window_reads_nothing);
	tcase_add_test(t, the_same_seed_gives_the_same_bits_with_any_number_of_workers);
	tcase_add_loop_test(t, the_mass_is_unbiased, 0, 4);
	tcase_add_test(t, signatures_beat_uniform_rows_and_more_rows_beat_fewer);
	tcase_add_loop_test(t, tables_find_rows_and_cover_the_tail_exactly, 0, TABLE_KINDS);
	tcase_add_loop_test(t, tables_find_the_row_that_the_query_points_at, 0, TABLE_KINDS);
	tcase_add_loop_test(t, tables_are_unbiased_over_tables, 0, TABLE_KINDS);
	tcase_add_loop_test(t, rows_that_heads_share_are_counted_once, 0, 4);
	tcase_add_test(t, top_k_takes_the_largest_logits);
	tcase_add_test(t, decode_appends_join_the_index);
	tcase_add_test(t, small_blocks_share_a_unit);
	tcase_add_test(t, truncate_goes_back_and_on);
	tcase_add_test(t, rows_read_back_as_they_were_written);
	tcase_add_test(t, int8_keys_follow_each_dimension);
	tcase_add_test(t, bad_input_is_refused_and_named);
	tcase_add_loop_test(t, an_append_that_fails_leaves_nothing, 0, 3);
	tcase_add_loop_test(t, a_failed_append_over_rows_takes_them_back, 0, 3);
	tcase_add_loop_test(t, rows_do_not_depend_on_how_they_came, 0, 9);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
