// Attention over rows against the same in double. Tolerances: a logit of size S carries about S * sqrt(d) * 2^-24 of fp32
// rounding, the cap 1e-6 of itself; with |S| <= 30 here that is below 2e-5 of everything.
#include "tests/attn/rows.h"

static const double TOLERANCE = 2e-5;
static const uint32_t DIMS[][2] = {{64, 64}, {80, 80}, {96, 96}, {128, 128}, {256, 256}, {128, 64}};

static struct attn_head head(const struct rows *r, const float *q, uint32_t variant)
{
	struct attn_head h = {.scale = 1 / sqrtf((float)r->f.d_k)};
	for (uint32_t j = 0; j < r->f.d_k; j++)
		h.q_centre += q[j] * r->frame[j];
	if (variant & 1)
		h.softcap = 5;
	if (variant & 2) {
		h.alibi_slope = .0625f;
		h.alibi_base = -300;
	}
	return h;
}

static void check(const struct finished *x, const struct reference *r, uint32_t d_v)
{
	ck_assert_double_lt(fabs((double)x->lse - r->lse), TOLERANCE + 1e-7 * fabs(r->lse));
	ck_assert_double_lt(out_error(x->out, r->out, d_v), TOLERANCE);
	// V is the difference of terms as large as A |out|^2, each with fp32 rounding of its own.
	double square = 0;
	for (uint32_t j = 0; j < d_v; j++)
		square += r->out[j] * r->out[j];
	ck_assert_double_le(fabs((double)x->v - r->v), 1e-3 * r->v + 2e-6 * r->a * square);
	ck_assert_double_le(fabs((double)x->a - r->a), 2e-4 * r->a);
}

START_TEST(dense_is_exact)
{
	const uint32_t counts[] = {1, 15, 256, 257, 600}, head_counts[] = {1, 3, 4, 9};
	struct kernels k[ISAS_MAX];
	float q[9 * 256], *scratch = floats(9 * 600);
	struct rng rng = {1};
	for (uint32_t isa = 0, isa_count = isas(k); isa < isa_count; isa++) {
		for (uint32_t c = 0; c < 6 * ROW_TYPES; c++) {
			struct rows r;
			uint32_t variant = c % 4, n = counts[c % 5], heads = head_counts[c / 2 % 4], d_v = DIMS[c % 6][1];
			rows_make(&r, c, c / 6, DIMS[c % 6][0], d_v, n);
			struct attn_head h[9];
			size_t stride = attn_partial_bytes(d_v) + 64;
			char *partials = need(malloc(9 * stride));
			rng_gaussian(&rng, q, heads * r.f.d_k);
			for (uint32_t i = 0; i < heads * r.f.d_k; i++)
				q[i] *= 2.5f;
			for (uint32_t i = 0; i < heads; i++)
				h[i] = head(&r, q + i * r.f.d_k, variant);
			attn_dense(&k[isa], &r.f, r.bytes, n, q, h, heads, NULL, (struct attn_partial *)partials, stride,
			           scratch);
			for (uint32_t i = 0; i < heads; i++) {
				const struct attn_partial *p = (const struct attn_partial *)(partials + i * stride);
				struct reference expected;
				struct finished got = finish(p, d_v);
				reference_attend(&r, NULL, NULL, n, q + i * r.f.d_k, &h[i], &expected);
				check(&got, &expected, d_v);
				ck_assert_uint_eq(p->rows, n);
				ck_assert_double_eq(p->a, 0);
				ck_assert_double_eq(p->b2, 0);
			}
			free(partials);
			rows_free(&r);
		}
	}
	free(scratch);
}
END_TEST

START_TEST(dense_respects_limits)
{
	enum { N = 700, HEADS = 10, D = 64 };
	const uint32_t limits[][HEADS] = {{0, 1, 255, 256, 257, 512, 699, 700, 900, 300}, {0}, {3, 0, 2, 1, 0, 0, 0, 0, 0, 0}};
	struct kernels k[ISAS_MAX];
	struct rows r;
	float q[HEADS * D], *scratch = floats(HEADS * N);
	struct rng rng = {2};
	struct attn_head h[HEADS];
	size_t stride = attn_partial_bytes(D);
	char *partials = need(malloc(HEADS * stride));
	rows_make(&r, 1, ROW_BF16, D, D, N);
	rng_gaussian(&rng, q, HEADS * D);
	for (uint32_t i = 0; i < HEADS; i++)
		h[i] = head(&r, q + i * D, i % 4);
	for (uint32_t isa = 0, isa_count = isas(k); isa < isa_count; isa++) {
		for (uint32_t c = 0; c < 3; c++) {
			attn_dense(&k[isa], &r.f, r.bytes, N, q, h, HEADS, limits[c], (struct attn_partial *)partials, stride,
			           scratch);
			for (uint32_t i = 0; i < HEADS; i++) {
				const struct attn_partial *p = (const struct attn_partial *)(partials + i * stride);
				uint32_t visible = limits[c][i] < N ? limits[c][i] : N;
				struct reference expected;
				struct finished got = finish(p, D);
				reference_attend(&r, NULL, NULL, visible, q + i * D, &h[i], &expected);
				ck_assert_uint_eq(p->rows, visible);
				if (visible) {
					check(&got, &expected, D);
					continue;
				}
				ck_assert_float_eq(got.lse, -INFINITY);
				for (uint32_t j = 0; j < D; j++)
					ck_assert_float_eq(got.out[j], 0);
			}
		}
		attn_dense(&k[isa], &r.f, r.bytes, 0, q, h, HEADS, NULL, (struct attn_partial *)partials, stride, scratch);
		ck_assert_float_eq(finish((struct attn_partial *)partials, D).lse, -INFINITY);
	}
	free(scratch);
	free(partials);
	rows_free(&r);
}
END_TEST

START_TEST(soft_cap_bounds_large_logits)
{
	enum { N = 300, D = 64 };
	struct kernels k[ISAS_MAX];
	struct rows r;
	float q[D], *scratch = floats(3 * N), sizes[] = {1e-6f, .1f, 1, 100, 1e6f};
	uint32_t index[N];
	struct rng rng = {3};
	rows_make(&r, 2, ROW_F16, D, D, N);
	for (uint32_t i = 0; i < N; i++)
		index[i] = i;
	struct attn_partial *p = partial_new(D);
	for (uint32_t isa = 0, isa_count = isas(k); isa < isa_count; isa++) {
		for (uint32_t s = 0; s < 5; s++) {
			rng_gaussian(&rng, q, D);
			for (uint32_t j = 0; j < D; j++)
				q[j] *= sizes[s];
			struct attn_head h = {.scale = .125f, .softcap = 30};
			struct reference expected;
			reference_attend(&r, NULL, NULL, N, q, &h, &expected);
			attn_selected(&k[isa], &r.f, r.bytes, index, NULL, N, q, &h, p, scratch);
			struct finished got = finish(p, D);
			ck_assert_double_lt(fabs((double)got.lse - expected.lse),
			                    6e-5); // 1e-6 of the cap, and fp32 of logits of 30
			ck_assert_double_lt(out_error(got.out, expected.out, D), 6e-5);
		}
	}
	free(p);
	free(scratch);
	rows_free(&r);
}
END_TEST

// A third of the rows, ascending, with probabilities from 1e-4 to 1, some of them exactly 1.
static uint32_t choose(uint32_t n, struct rng *rng, uint32_t *index, float *neg_log_pi)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < n; i++) {
		if (rng_below(rng, 3))
			continue;
		index[count] = i;
		neg_log_pi[count++] = rng_below(rng, 4) ? (float)(9 * pow(rng_uniform(rng), 3)) : 0;
	}
	return count;
}

START_TEST(selected_rows_and_error_terms)
{
	enum { N = 900 };
	struct kernels k[ISAS_MAX];
	uint32_t index[N];
	float q[256], neg_log_pi[N], *scratch = floats(3 * N);
	struct rng rng = {4};
	for (uint32_t isa = 0, isa_count = isas(k); isa < isa_count; isa++) {
		for (uint32_t c = 0; c < 6 * ROW_TYPES; c++) {
			struct rows r;
			uint32_t d_v = DIMS[c % 6][1];
			rows_make(&r, c, c / 6, DIMS[c % 6][0], d_v, N);
			struct attn_partial *p = partial_new(d_v);
			rng_gaussian(&rng, q, r.f.d_k);
			struct attn_head h = head(&r, q, c / 2 % 4);
			uint32_t n = choose(N, &rng, index, neg_log_pi);
			for (int certain = 0; certain < 2; certain++) {
				struct reference expected;
				const float *p_neg = certain ? NULL : neg_log_pi;
				reference_attend(&r, index, p_neg, n, q, &h, &expected);
				attn_selected(&k[isa], &r.f, r.bytes, index, p_neg, n, q, &h, p, scratch);
				struct finished got = finish(p, d_v);
				check(&got, &expected, d_v);
				ck_assert_uint_eq(p->rows, n);
				ck_assert(certain ? expected.v == 0 : expected.v > 0);
			}
			free(p);
			rows_free(&r);
		}
	}
	free(scratch);
}
END_TEST

START_TEST(no_rows)
{
	enum { D = 64 };
	struct kernels k[ISAS_MAX];
	struct rows r;
	float q[D] = {1}, scratch[3], pi[1] = {1};
	uint32_t index[1] = {0};
	rows_make(&r, 1, ROW_BF16, D, D, 1);
	struct attn_partial *p = partial_new(D), *other = partial_new(D);
	struct attn_head h = {.scale = 1};
	for (uint32_t isa = 0, isa_count = isas(k); isa < isa_count; isa++) {
		attn_selected(&k[isa], &r.f, r.bytes, index, pi, 0, q, &h, p, scratch);
		for (int merged = 0; merged < 2; merged++) {
			struct finished x = finish(p, D);
			ck_assert_float_eq(x.lse, -INFINITY);
			ck_assert_float_eq(x.v, 0);
			ck_assert_float_eq(x.a, 0);
			for (uint32_t j = 0; j < D; j++)
				ck_assert_float_eq(x.out[j], 0);
			attn_partial_merge(p, other, D); // empty and empty
		}
	}
	free(p);
	free(other);
	rows_free(&r);
}
END_TEST

START_TEST(not_a_number_is_not_hidden)
{
	enum { D = 64, N = 300 };
	struct kernels k[ISAS_MAX];
	struct rows r;
	float q[D] = {NAN}, *scratch = floats(3 * N), neg_log_pi[N] = {0};
	uint32_t index[N];
	for (uint32_t i = 0; i < N; i++)
		index[i] = i;
	rows_make(&r, 1, ROW_BF16, D, D, N);
	struct attn_partial *p = partial_new(D), *other = partial_new(D);
	struct attn_head h = {.scale = 1};
	for (uint32_t isa = 0, isa_count = isas(k); isa < isa_count; isa++) {
		attn_selected(&k[isa], &r.f, r.bytes, index, neg_log_pi, N, q, &h, p, scratch);
		ck_assert(isnan(finish(p, D).lse));
		attn_dense(&k[isa], &r.f, r.bytes, N, q, &h, 1, NULL, p, 0, scratch);
		ck_assert(isnan(finish(p, D).lse) && isnan(finish(p, D).out[0]));
		attn_partial_clear(other, D);
		attn_partial_merge(other, p, D);
		ck_assert(isnan(finish(other, D).lse));
	}
	free(p);
	free(other);
	free(scratch);
	rows_free(&r);
}
END_TEST

static void same(const struct finished *a, const struct finished *b, uint32_t d_v)
{
	double difference = 0, square = 0;
	for (uint32_t j = 0; j < d_v; j++) {
		difference += pow((double)a->out[j] - (double)b->out[j], 2);
		square += pow((double)b->out[j], 2);
	}
	ck_assert_double_le(sqrt(difference), 1e-6 * sqrt(square));
	ck_assert_double_le(fabs((double)a->lse - (double)b->lse), 1e-6 * (1 + fabs((double)b->lse)));
	ck_assert_double_le(fabs((double)a->v - (double)b->v),
	                    1e-5 * (double)b->v + 1e-6 * (double)b->a * square); // attn.h: rounding of V
	ck_assert_double_le(fabs((double)a->a - (double)b->a), 1e-6 * (double)b->a);
}

static struct attn_partial *merged(const struct attn_partial *const *parts, const uint32_t *order, uint32_t n, uint32_t d_v)
{
	struct attn_partial *p = partial_new(d_v);
	for (uint32_t i = 0; i < n; i++)
		attn_partial_merge(p, parts[order[i]], d_v);
	return p;
}

START_TEST(merge_is_associative_and_commutative)
{
	enum { N = 400, D = 96 };
	struct kernels k;
	struct rows r;
	uint32_t index[N];
	float q[D], neg_log_pi[N], *scratch = floats(3 * N);
	kernels_init_c(&k);
	for (uint32_t round = 0; round < 40; round++) {
		struct rng rng = {round};
		rows_make(&r, round, ROW_BF16, D, D, N);
		rng_gaussian(&rng, q, D);
		for (uint32_t j = 0; j < D; j++)
			q[j] *= 1 + (float)(round % 5) * 3; // maxima tens apart, so that some parts vanish
		struct attn_head h = head(&r, q, 0);
		uint32_t n = choose(N, &rng, index, neg_log_pi);
		uint32_t cut[4] = {0, rng_below(&rng, n), 0, n};
		cut[2] = round % 7 == 0 ? cut[1] : cut[1] + rng_below(&rng, n - cut[1] + 1); // sometimes an empty part
		struct attn_partial *part[3], *whole = partial_new(D);
		for (uint32_t i = 0; i < 3; i++) {
			part[i] = partial_new(D);
			attn_selected(&k, &r.f, r.bytes, index + cut[i], neg_log_pi + cut[i], cut[i + 1] - cut[i], q, &h, part[i],
			              scratch);
		}
		attn_selected(&k, &r.f, r.bytes, index, neg_log_pi, n, q, &h, whole, scratch);
		struct finished expected = finish(whole, D);
		const uint32_t orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
		for (uint32_t o = 0; o < 6; o++) {
			struct attn_partial *left = merged((const struct attn_partial *const *)part, orders[o], 3, D);
			struct attn_partial *right = partial_new(D); // first + (second + third)
			struct attn_partial *tail = merged((const struct attn_partial *const *)part, orders[o] + 1, 2, D);
			attn_partial_merge(right, part[orders[o][0]], D);
			attn_partial_merge(right, tail, D);
			struct finished x = finish(left, D), y = finish(right, D);
			same(&x, &y, D);
			same(&x, &expected, D);
			ck_assert_uint_eq(left->rows, n);
			free(left);
			free(right);
			free(tail);
		}
		struct attn_partial *empty = partial_new(D);
		struct finished before = finish(whole, D);
		attn_partial_merge(whole, empty, D);
		struct finished after = finish(whole, D);
		ck_assert_int_eq(memcmp(&before, &after, sizeof(float) * D), 0); // to the bit
		ck_assert_float_eq(before.lse, after.lse);
		free(empty);
		free(whole);
		for (uint32_t i = 0; i < 3; i++)
			free(part[i]);
		rows_free(&r);
	}
	free(scratch);
}
END_TEST

int main(void)
{
	return RUN_TESTS("attn", dense_is_exact, dense_respects_limits, soft_cap_bounds_large_logits,
	                 selected_rows_and_error_terms, no_rows, not_a_number_is_not_hidden,
	                 merge_is_associative_and_commutative);
}
