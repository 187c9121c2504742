// Every kernel of every ISA this CPU has, against a plain definition of what it computes (in double where the result may round),
// on arrays that end at forbidden pages. MPIG_SEED chooses the inputs, MPIG_LONG=1 runs thirty times as many.
#include <check.h>
#include <float.h>
#include <signal.h>
#include <stdbool.h>

#include "tests/kernels/kernel_harness.h"
#include "tests/lib/suite.h"

static struct isa isas[MAX_ISAS];
static uint32_t isa_count;
static uint64_t seed = 1;
static uint32_t rounds = 150;
static char what[512]; // the case at hand, for the message of a failure or a crash

static const uint32_t dims[] = {64, 80, 96, 128, 256, 16, 48};
static const char *const type_names[] = {"bf16", "f16", "i8"};

#define FAIL(...)                                                                                                                \
	do {                                                                                                                     \
		char why_[256];                                                                                                  \
		snprintf(why_, sizeof why_, __VA_ARGS__);                                                                        \
		ck_abort_msg("%s: %s", what, why_);                                                                              \
	} while (0)

static void on_crash(int number)
{
	ssize_t ignored = write(STDERR_FILENO, what, strlen(what));
	(void)ignored;
	signal(number, SIG_DFL);
	raise(number);
}

static uint64_t case_seed(const char *kernel, uint32_t round)
{
	uint64_t s = seed;
	for (; *kernel; kernel++)
		s = s * 31 + (uint8_t)*kernel;
	s += round;
	return rng_next(&s);
}

static bool same_bits(float a, float b)
{
	return !memcmp(&a, &b, sizeof a) || (isnan(a) && isnan(b));
}

// ---- signature scan --------------------------------------------------------------------------------------------------

struct sig_case {
	uint32_t n, d_pad, bits, heads;
	struct guarded codes, factors, noise, q[SIG_MAX_HEADS];
	struct sig_query queries[SIG_MAX_HEADS];
};

static int8_t sig_random_q(uint64_t *r, uint32_t kind)
{
	return kind == 0 ? 127 : kind == 1 ? -128 : (int8_t)rng_next(r);
}

static uint16_t sig_random_factor(uint64_t *r)
{
	uint32_t kind = rng_below(r, 40);
	if (kind < 3)
		return (uint16_t[]){0, 0x0001, 0x7bff}[kind];
	return kind == 3 ? 0x7e00 : f32_to_f16(.5f + 3 * rng_unit(r));
}

static void sig_case_init(struct sig_case *c, uint64_t *r, uint32_t isa)
{
	static const uint32_t sizes[] = {1, 15, 16, 17, 63, 64, 65, 128, 200, 256};
	c->n = rng_below(r, 4) ? 1 + rng_below(r, 700) : sizes[rng_below(r, 10)];
	c->d_pad = 64u << rng_below(r, 3);
	c->bits = 1u << rng_below(r, 3);
	c->heads = 1 + rng_below(r, SIG_MAX_HEADS);
	snprintf(what, sizeof what, "%s seed %llu n %u d_pad %u bits %u heads %u", isas[isa].name, (unsigned long long)seed, c->n,
	         c->d_pad, c->bits, c->heads);
	size_t code_bytes = (size_t)(c->n + 15) / 16 * 16 * c->d_pad * c->bits / 8;
	uint8_t *codes = guard_alloc(&c->codes, code_bytes);
	bool full = rng_below(r, 8) == 0;
	for (size_t i = 0; i < code_bytes; i++)
		codes[i] = full ? 0xff : (uint8_t)rng_next(r);
	uint16_t *g = guard_alloc(&c->factors, 2 * (size_t)c->n);
	float *noise = guard_alloc(&c->noise, 4 * (size_t)c->n);
	for (uint32_t i = 0; i < c->n; i++) {
		g[i] = sig_random_factor(r);
		noise[i] = -logf(rng_unit(r));
	}
	for (uint32_t h = 0; h < c->heads; h++) {
		int8_t *q = guard_alloc(&c->q[h], c->d_pad);
		uint32_t kind = rng_below(r, 8);
		int sum = 0;
		for (uint32_t j = 0; j < c->d_pad; j++)
			sum += q[j] = sig_random_q(r, kind);
		c->queries[h] = (struct sig_query){
			.q = q,
			.factor = rng_below(r, 8) ? 1e-4f * rng_unit(r) : 1e3f * rng_normal(r),
			.zero = (c->bits == 1   ? .5f
		                 : c->bits == 2 ? 1.5f
		                                : 7.5f) *
		                (float)sum,
			.bias = 4 * rng_normal(r),
			.slope = rng_below(r, 2) ? 0 : .01f * rng_normal(r),
		};
	}
}

static void sig_case_free(struct sig_case *c)
{
	guard_free(&c->codes);
	guard_free(&c->factors);
	guard_free(&c->noise);
	for (uint32_t h = 0; h < c->heads; h++)
		guard_free(&c->q[h]);
}

// kernels.h's definition, one dimension at a time.
static float sig_reference(const struct sig_case *c, uint32_t h, uint32_t i)
{
	const uint8_t *codes = c->codes.at;
	const struct sig_query *q = &c->queries[h];
	uint32_t bytes = c->d_pad * c->bits / 8, sum_at = 0;
	int sum = 0;
	for (uint32_t f = 0; f < 8 / c->bits; f++)
		for (uint32_t w = 0; w < bytes / 4; w++)
			for (uint32_t k = 0; k < 4; k++, sum_at++) {
				uint8_t byte = codes[(size_t)(i / 16) * 16 * bytes + 64 * w + 4 * (i % 16) + k];
				sum += (byte >> c->bits * f & ((1 << c->bits) - 1)) * q->q[f * bytes + 4 * w + k];
			}
	ck_assert_uint_eq(sum_at, c->d_pad);
	volatile float t = (float)sum - q->zero;
	t = f16_to_f32(((uint16_t *)c->factors.at)[i]) * t;
	t = t * q->factor;
	t = t + q->bias;
	if (q->slope != 0) {
		volatile float u = q->slope * (float)i;
		t = t + u;
	}
	return t;
}

START_TEST(sig_estimate)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < rounds; round++) {
		uint64_t r = case_seed("sig_estimate", round);
		struct sig_case c;
		struct guarded out;
		sig_case_init(&c, &r, (uint32_t)_i);
		size_t ld = c.n + rng_below(&r, 3) * 5;
		float *got = guard_alloc(&out, ((c.heads - 1) * ld + c.n) * sizeof *got);
		memset(got, 0x55, ((c.heads - 1) * ld + c.n) * sizeof *got);
		k->sig_estimate(c.codes.at, c.factors.at, c.n, c.d_pad, c.bits, c.queries, c.heads, got, ld);
		for (uint32_t h = 0; h < c.heads; h++) {
			for (uint32_t i = 0; i < c.n; i++) {
				float want = sig_reference(&c, h, i);
				if (!same_bits(got[h * ld + i], want))
					FAIL("head %u row %u: %.9g, want %.9g", h, i, (double)got[h * ld + i], (double)want);
			}
			for (size_t i = c.n; i < ld && h + 1 < c.heads; i++)
				if (memcmp(&got[h * ld + i], "UUUU", 4))
					FAIL("head %u: wrote past its rows", h);
		}
		guard_free(&out);
		sig_case_free(&c);
	}
}
END_TEST

START_TEST(sig_estimate_groups)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < rounds; round++) {
		uint64_t r = case_seed("sig_estimate_groups", round);
		struct sig_case c;
		sig_case_init(&c, &r, (uint32_t)_i);
		uint32_t whole = c.n / SIG_GROUP, n = whole ? 1 + rng_below(&r, 9) : 0, group[9];
		size_t ld = n * SIG_GROUP + rng_below(&r, 5);
		struct guarded out;
		float *got = guard_alloc(&out, (n ? (c.heads - 1) * ld + n * SIG_GROUP : 1) * sizeof *got);
		for (uint32_t i = 0; i < n; i++)
			group[i] = rng_below(&r, whole);
		if (n)
			k->sig_estimate_groups(c.codes.at, c.factors.at, group, n, c.d_pad, c.bits, c.queries, c.heads, got, ld);
		for (uint32_t h = 0; h < c.heads; h++) {
			c.queries[h].slope = 0;
			for (uint32_t i = 0; i < n * SIG_GROUP; i++) {
				uint32_t row = group[i / SIG_GROUP] * SIG_GROUP + i % SIG_GROUP;
				if (!same_bits(got[h * ld + i], sig_reference(&c, h, row)))
					FAIL("head %u group %u: estimate %u differs", h, group[i / SIG_GROUP], i);
			}
		}
		guard_free(&out);
		sig_case_free(&c);
	}
}
END_TEST

START_TEST(sig_select)
{
	static const uint8_t somewhere[64];
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < rounds; round++) {
		uint64_t r = case_seed("sig_select", round);
		struct sig_case c;
		sig_case_init(&c, &r, (uint32_t)_i);
		uint32_t begin = rng_below(&r, 2) ? 0 : rng_below(&r, c.n),
			 end = rng_below(&r, 2) ? c.n : begin + rng_below(&r, c.n - begin + 1);
		struct guarded row[SIG_MAX_HEADS], estimate[SIG_MAX_HEADS];
		struct sig_hits hits[SIG_MAX_HEADS];
		uint32_t want_n[SIG_MAX_HEADS], had[SIG_MAX_HEADS];
		uint32_t *want = malloc(sizeof *want * SIG_MAX_HEADS * c.n);
		const float *noise = c.noise.at;
		snprintf(what + strlen(what), sizeof what - strlen(what), " rows [%u, %u)", begin, end);
		for (uint32_t h = 0; h < c.heads; h++) {
			uint32_t kind = rng_below(&r, 6);
			c.queries[h].tau = kind == 0 ? -INFINITY : kind == 1 ? INFINITY : c.queries[h].bias + 3 * rng_normal(&r);
			want_n[h] = 0;
			for (uint32_t i = begin; i < end; i++) {
				volatile float noisy = sig_reference(&c, h, i) + noise[i];
				if (noisy > c.queries[h].tau)
					want[h * c.n + want_n[h]++] = i;
			}
			had[h] = rng_below(&r, 4);
			hits[h].n = had[h];
			hits[h].row = guard_alloc(&row[h], (had[h] + want_n[h]) * sizeof(uint32_t));
			hits[h].estimate = guard_alloc(&estimate[h], (had[h] + want_n[h]) * sizeof(float));
		}
		k->sig_select(c.codes.at, c.factors.at, begin, end, c.d_pad, c.bits, c.queries, c.heads, noise, hits,
		              rng_below(&r, 2) ? somewhere : NULL, 512, 512);
		for (uint32_t h = 0; h < c.heads; h++) {
			if (hits[h].n != had[h] + want_n[h])
				FAIL("head %u: %u hits, want %u", h, hits[h].n - had[h], want_n[h]);
			for (uint32_t j = 0; j < want_n[h]; j++) {
				uint32_t i = want[h * c.n + j];
				if (hits[h].row[had[h] + j] != i)
					FAIL("head %u hit %u: row %u, want %u", h, j, hits[h].row[had[h] + j], i);
				if (!same_bits(hits[h].estimate[had[h] + j], sig_reference(&c, h, i)))
					FAIL("head %u row %u: estimate differs", h, i);
			}
			for (uint32_t j = 0; j < had[h]; j++)
				if (hits[h].row[j] != 0xa5a5a5a5u)
					FAIL("head %u: earlier hit %u overwritten", h, j);
			guard_free(&row[h]);
			guard_free(&estimate[h]);
		}
		free(want);
		sig_case_free(&c);
	}
}
END_TEST

// The weight of one estimate, found by bisection: alone in a group, it is taken from some chain on.
static uint32_t choose_weight(const struct kernels *k, float estimate, float tau)
{
	float group[SIG_GROUP], e;
	uint32_t row, low = 0,
		      high = 1u << SIG_CHOOSE_BITS; // taken at high (it would carry there without any weight), not below low
	for (uint32_t i = 0; i < SIG_GROUP; i++)
		group[i] = -INFINITY;
	group[5] = estimate;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2, chain = middle;
		struct sig_hits hits = {&row, &e, 0};
		k->sig_choose(group, &tau, 1, &chain, &hits);
		if (hits.n)
			high = middle;
		else
			low = middle + 1;
	}
	return (1u << SIG_CHOOSE_BITS) - low;
}

START_TEST(sig_choose)
{
	const struct kernels *k = &isas[_i].k, *plain = &isas[0].k;
	const uint32_t one = 1u << SIG_CHOOSE_BITS;
	for (uint32_t round = 0; round < rounds; round++) {
		uint64_t r = case_seed("sig_choose", round);
		uint32_t groups = 1 + rng_below(&r, 6), had = rng_below(&r, 4), chain = rng_below(&r, one), at = chain, n = 0;
		struct guarded estimates, tau, row, estimate;
		float *e = guard_alloc(&estimates, groups * SIG_GROUP * sizeof *e), *t = guard_alloc(&tau, groups * sizeof *t);
		uint32_t want[6 * SIG_GROUP];
		for (uint32_t i = 0; i < groups; i++) {
			uint32_t kind = rng_below(&r, 8);
			t[i] = kind == 0 ? -INFINITY : kind == 1 ? INFINITY : 3 * rng_normal(&r) + (kind == 2 ? -4 : 2);
			for (uint32_t j = i * SIG_GROUP; j < (i + 1) * SIG_GROUP; j++) {
				uint32_t odd = rng_below(&r, 60);
				e[j] = odd == 0 ? NAN : odd == 1 ? INFINITY : odd == 2 ? -INFINITY : 4 * rng_normal(&r);
				float over = e[j] - t[i];
				uint32_t w = choose_weight(k, e[j], t[i]);
				double exact = isnan(over) ? 0 : ldexp(exp(fmin(0, (double)over)), SIG_CHOOSE_BITS);
				if (fabs(w - exact) > 1 + 6e-7 * exact || w > one || (over >= 0 && w != one))
					FAIL("estimate %a, tau %a: weight %u, want %.1f", (double)e[j], (double)t[i], w, exact);
				if (w != choose_weight(plain, e[j], t[i]))
					FAIL("estimate %a, tau %a: not the weight of plain C", (double)e[j], (double)t[i]);
				at += w;
				if (at >= one) {
					at -= one;
					want[n++] = j;
				}
			}
		}
		struct sig_hits hits = {guard_alloc(&row, (had + n) * sizeof(uint32_t)),
		                        guard_alloc(&estimate, (had + n) * sizeof(float)), had};
		k->sig_choose(e, t, groups, &chain, &hits);
		if (hits.n != had + n || chain != at)
			FAIL("%u rows, want %u; chain %u, want %u", hits.n - had, n, chain, at);
		for (uint32_t i = 0; i < n; i++)
			if (hits.row[had + i] != want[i] || !same_bits(hits.estimate[had + i], e[want[i]]))
				FAIL("choice %u: row %u, want %u", i, hits.row[had + i], want[i]);
		for (uint32_t i = 0; i < had; i++)
			if (hits.row[i] != 0xa5a5a5a5u)
				FAIL("earlier hit %u overwritten", i);
		guard_free(&estimates);
		guard_free(&tau);
		guard_free(&row);
		guard_free(&estimate);
	}
}
END_TEST

// ---- rows ------------------------------------------------------------------------------------------------------------

struct row_case {
	struct row_format f;
	uint32_t stored, n, heads;
	size_t ld;
	struct guarded rows, index;
	const uint32_t *at; // NULL: contiguous
	float *k, *v;       // decoded, [stored][d]
};

static void row_case_init(struct row_case *c, uint64_t *r, uint32_t isa, enum row_type type)
{
	uint32_t d_k = dims[rng_below(r, 7)], d_v = rng_below(r, 3) ? d_k : dims[rng_below(r, 7)];
	ck_assert_int_eq(row_format_init(&c->f, type, d_k, d_v), 0);
	if (rng_below(r, 3) == 0)
		c->f.stride += type == ROW_I8 ? 32 : 64;
	c->stored = 1 + rng_below(r, 90);
	c->heads = rng_below(r, 3) ? 1 + rng_below(r, 5) : 1 + rng_below(r, 17);
	uint32_t shape = rng_below(r, 4);
	c->n = shape == 0 ? c->stored : shape == 1 ? rng_below(r, c->stored + 1) : rng_below(r, 2 * c->stored);
	c->ld = c->n + rng_below(r, 4);
	snprintf(what, sizeof what, "%s seed %llu %s d_k %u d_v %u stride %u stored %u n %u heads %u shape %u", isas[isa].name,
	         (unsigned long long)seed, type_names[type], d_k, d_v, c->f.stride, c->stored, c->n, c->heads, shape);
	c->k = malloc(sizeof(float) * c->stored * d_k);
	c->v = malloc(sizeof(float) * c->stored * d_v);
	uint8_t *rows = guard_alloc(&c->rows, (size_t)c->stored * c->f.stride);
	float k[256], v[256];
	for (uint32_t i = 0; i < c->stored; i++) {
		for (uint32_t j = 0; j < d_k; j++)
			k[j] = rng_biased(r);
		for (uint32_t j = 0; j < d_v; j++)
			v[j] = rng_biased(r);
		uint8_t *row = rows + (size_t)i * c->f.stride;
		row_encode(&c->f, k, v, NULL, row);
		row_decode(&c->f, row, NULL, c->k + (size_t)i * d_k, c->v + (size_t)i * d_v);
	}
	uint32_t *index = guard_alloc(&c->index, c->n * sizeof *index);
	for (uint32_t i = 0; i < c->n; i++)
		index[i] = shape == 1 ? i : rng_below(r, c->stored);
	c->at = shape == 0 ? NULL : index;
}

static void row_case_free(struct row_case *c)
{
	guard_free(&c->rows);
	guard_free(&c->index);
	free(c->k);
	free(c->v);
}

static uint32_t row_case_row(const struct row_case *c, uint32_t i)
{
	return c->at ? c->at[i] : i;
}

static size_t strided(uint32_t heads, size_t ld, uint32_t n)
{
	return (heads - 1) * ld + n;
}

START_TEST(scores)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < 3 * rounds; round++) {
		uint64_t r = case_seed("scores", round);
		enum row_type type = round % ROW_TYPES;
		struct row_case c;
		struct guarded q_map, s_map;
		row_case_init(&c, &r, (uint32_t)_i, type);
		float *q = guard_alloc(&q_map, sizeof *q * c.heads * c.f.d_k);
		for (uint32_t j = 0; j < c.heads * c.f.d_k; j++)
			q[j] = rng_biased(&r);
		float *s = guard_alloc(&s_map, sizeof *s * strided(c.heads, c.ld, c.n));
		k->scores[type](&c.f, c.rows.at, c.at, c.n, q, c.heads, s, c.ld);
		for (uint32_t h = 0; h < c.heads; h++) {
			for (uint32_t i = 0; i < c.n; i++) {
				const float *row = c.k + (size_t)row_case_row(&c, i) * c.f.d_k;
				double want = 0, size = 0;
				for (uint32_t j = 0; j < c.f.d_k; j++) {
					double x = (double)q[h * c.f.d_k + j] * (double)row[j];
					want += x;
					size += fabs(x);
				}
				double bound = 2 * c.f.d_k * (double)FLT_EPSILON * size + c.f.d_k * 0x1p-149;
				if (!(fabs((double)s[h * c.ld + i] - want) <= bound))
					FAIL("head %u row %u: %.9g, want %.9g +- %.2g", h, i, (double)s[h * c.ld + i], want,
					     bound);
			}
			for (size_t i = c.n; i < c.ld && h + 1 < c.heads; i++)
				if (memcmp(&s[h * c.ld + i], "\xa5\xa5\xa5\xa5", 4))
					FAIL("head %u: wrote past its rows", h);
		}
		guard_free(&q_map);
		guard_free(&s_map);
		row_case_free(&c);
	}
}
END_TEST

// out [heads][d_v] against what it was and the weighted rows.
static void check_values(const struct row_case *c, const float *w, uint32_t heads, const float *before, const float *out)
{
	for (uint32_t h = 0; h < heads; h++)
		for (uint32_t j = 0; j < c->f.d_v; j++) {
			double want = (double)before[h * c->f.d_v + j], size = fabs(want);
			for (uint32_t i = 0; i < c->n; i++) {
				double x = (double)w[h * c->ld + i] * (double)c->v[(size_t)row_case_row(c, i) * c->f.d_v + j];
				want += x;
				size += fabs(x);
			}
			double bound = 2 * (c->n + 1) * (double)FLT_EPSILON * size + (c->n + 1) * 0x1p-149,
			       got = (double)out[h * c->f.d_v + j];
			if (!(fabs(got - want) <= bound))
				FAIL("head %u element %u: %.9g, want %.9g +- %.2g", h, j, got, want, bound);
		}
}

START_TEST(values)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < 3 * rounds; round++) {
		uint64_t r = case_seed("values", round);
		enum row_type type = round % ROW_TYPES;
		struct row_case c;
		struct guarded w_map, out_map;
		row_case_init(&c, &r, (uint32_t)_i, type);
		float *w = guard_alloc(&w_map, sizeof *w * strided(c.heads, c.ld, c.n));
		for (size_t i = 0; i < strided(c.heads, c.ld, c.n); i++)
			w[i] = rng_below(&r, 4) ? rng_unit(&r) : rng_biased(&r);
		float *out = guard_alloc(&out_map, sizeof *out * c.heads * c.f.d_v);
		float *before = malloc(sizeof *out * c.heads * c.f.d_v);
		for (uint32_t j = 0; j < c.heads * c.f.d_v; j++)
			out[j] = before[j] = rng_biased(&r);
		k->values[type](&c.f, c.rows.at, c.at, c.n, w, c.ld, c.heads, out);
		check_values(&c, w, c.heads, before, out);
		free(before);
		guard_free(&w_map);
		guard_free(&out_map);
		row_case_free(&c);
	}
}
END_TEST

// out to the tolerance of values, and the squares to that which kernels.h states. Weights span what a sample gives: e in [0, 1] or
// extreme, and (1 - pi) e^2 down to zero, subnormal, and up to 1e8.
static float extreme_weight(uint64_t *r)
{
	switch (rng_below(r, 8)) {
	case 0:
		return 0;
	case 1:
		return rng_unit(r) * 1e-40f;
	case 2:
		return rng_unit(r) * 1e-20f;
	case 3:
		return rng_unit(r) * 1e8f;
	default:
		return rng_unit(r);
	}
}

static void check_squares(const struct row_case *c, const float *w, double got)
{
	double want = 0, largest = 1;
	for (uint32_t i = 0; i < c->n; i++) {
		const float *v = c->v + (size_t)row_case_row(c, i) * c->f.d_v;
		double square = 0, weight = (double)w[c->ld + i];
		for (uint32_t j = 0; j < c->f.d_v; j++)
			square += (double)v[j] * (double)v[j];
		want += weight * square;
		largest = fmax(largest, weight);
	}
	double bound = (c->f.d_v + 32) * (double)FLT_EPSILON * want + (double)c->n * c->f.d_v * largest * 0x1p-149;
	if (!(fabs(got - want) <= bound))
		FAIL("squares: %.9g, want %.9g +- %.2g", got, want, bound);
}

START_TEST(values_squares)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < 3 * rounds; round++) {
		uint64_t r = case_seed("values_squares", round);
		enum row_type type = round % ROW_TYPES;
		struct row_case c;
		struct guarded w_map, out_map;
		row_case_init(&c, &r, (uint32_t)_i, type);
		float *w = guard_alloc(&w_map, sizeof *w * strided(2, c.ld, c.n));
		for (size_t i = 0; i < strided(2, c.ld, c.n); i++)
			w[i] = extreme_weight(&r);
		float *out = guard_alloc(&out_map, sizeof *out * 2 * c.f.d_v), before[2 * 256];
		for (uint32_t j = 0; j < 2 * c.f.d_v; j++)
			out[j] = before[j] = rng_biased(&r);
		check_squares(&c, w, k->values_squares[type](&c.f, c.rows.at, c.at, c.n, w, c.ld, out));
		check_values(&c, w, 2, before, out);
		guard_free(&w_map);
		guard_free(&out_map);
		row_case_free(&c);
	}
}
END_TEST

// A NaN shows in the results that depend on it and in no other.
START_TEST(nan_in_rows)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t type = ROW_BF16; type <= ROW_F16; type++)
		for (uint32_t bad = 0; bad < 37; bad += 5) {
			enum { N = 37, D = 80, HEADS = 3 };
			struct row_format f;
			float x[D], q[HEADS * D], s[HEADS * N], out[HEADS * D] = {0}, w[HEADS * N];
			uint8_t rows[N * 384];
			ck_assert_int_eq(row_format_init(&f, (enum row_type)type, D, D), 0);
			ck_assert_uint_eq(f.stride, 320);
			snprintf(what, sizeof what, "%s %s NaN in row %u", isas[_i].name, type_names[type], bad);
			for (uint32_t i = 0; i < N; i++) {
				for (uint32_t j = 0; j < D; j++)
					x[j] = (float)(i + j) * .01f;
				x[70] = i == bad ? NAN : 1;
				row_encode(&f, x, x, NULL, rows + i * f.stride);
			}
			for (uint32_t j = 0; j < HEADS * D; j++)
				q[j] = 1;
			for (uint32_t i = 0; i < HEADS * N; i++)
				w[i] = .5f;
			k->scores[type](&f, rows, NULL, N, q, HEADS, s, N);
			k->values[type](&f, rows, NULL, N, w, N, HEADS, out);
			float two[2 * D] = {0};
			if (!isnan(k->values_squares[type](&f, rows, NULL, N, w, N, two)))
				FAIL("NaN lost from the squares");
			for (uint32_t i = 0; i < HEADS * N; i++)
				if (!isnan(s[i]) != (i % N != bad))
					FAIL("score of row %u is %g", i % N, (double)s[i]);
			for (uint32_t j = 0; j < HEADS * D; j++)
				if (!isnan(out[j]) != (j % D != 70))
					FAIL("output %u is %g", j % D, (double)out[j]);
		}
}
END_TEST

// ---- weights ---------------------------------------------------------------------------------------------------------

static float random_logit(uint64_t *r)
{
	switch (rng_below(r, 12)) {
	case 0:
		return -INFINITY;
	case 1:
		return -1e4f * rng_unit(r);
	case 2:
		return -87.33f + .2f * rng_normal(r);
	case 3:
		return rng_biased(r);
	default:
		return -90 * rng_unit(r);
	}
}

START_TEST(exp_sum)
{
	const struct kernels *k = &isas[_i].k;
	double worst = 0;
	for (uint32_t round = 0; round < 4 * rounds; round++) {
		uint64_t r = case_seed("exp_sum", round);
		uint32_t n = rng_below(&r, 2) ? rng_below(&r, 40) : rng_below(&r, 1000);
		float shift = rng_below(&r, 2) ? 0 : 20 * rng_normal(&r);
		struct guarded map;
		float *s = guard_alloc(&map, sizeof *s * n), *before = malloc(sizeof *s * (n + 1));
		snprintf(what, sizeof what, "%s seed %llu n %u shift %.9g", isas[_i].name, (unsigned long long)seed, n,
		         (double)shift);
		for (uint32_t i = 0; i < n; i++) {
			s[i] = before[i] = random_logit(&r) + shift;
			if (s[i] - shift > 88)
				s[i] = before[i] = shift;
		}
		double got = k->exp_sum(s, n, shift), sum = 0;
		for (uint32_t i = 0; i < n; i++) {
			volatile float x = before[i] - shift;
			double want = x < -87.33f ? 0 : exp((double)x);
			double error = want > 0 ? fabs((double)s[i] - want) / want : fabs((double)s[i]);
			worst = error > worst ? error : worst;
			if (!(error <= 4e-7))
				FAIL("exp(%.9g) = %.9g, want %.9g: relative error %.2g", (double)x, (double)s[i], want, error);
			sum += (double)s[i];
		}
		if (!(fabs(got - sum) <= 1e-12 * sum))
			FAIL("sum %.17g, want %.17g", got, sum);
		guard_free(&map);
		free(before);
	}
	printf("  exp_sum %-12s largest relative error %.2e\n", isas[_i].name, worst);
}
END_TEST

START_TEST(exp_sum_limits)
{
	const struct kernels *k = &isas[_i].k;
	snprintf(what, sizeof what, "%s limits", isas[_i].name);
	for (uint32_t at = 0; at < 33; at += 4) {
		float s[33];
		for (uint32_t i = 0; i < 33; i++)
			s[i] = -INFINITY;
		ck_assert_msg(k->exp_sum(s, 33, -INFINITY) == 0, "%s: nothing but -inf", what);
		for (uint32_t i = 0; i < 33; i++) {
			ck_assert_msg(s[i] == 0, "%s: exp(-inf) = %g", what, (double)s[i]);
			s[i] = -1;
		}
		s[at] = NAN;
		ck_assert_msg(isnan(k->exp_sum(s, 33, 0)), "%s: NaN lost from the sum", what);
		for (uint32_t i = 0; i < 33; i++)
			ck_assert_msg(isnan(s[i]) == (i == at), "%s: NaN at %u, result %u is %g", what, at, i, (double)s[i]);
		for (uint32_t i = 0; i < 33; i++)
			s[i] = i == at ? INFINITY : 0;
		ck_assert_msg(k->exp_sum(s, 33, 0) == INFINITY, "%s: exp(inf)", what);
		s[at] = 100;
		k->exp_sum(s, 33, 0);
		ck_assert_msg(s[at] == INFINITY, "%s: exp(100) = %g", what, (double)s[at]);
	}
}
END_TEST

START_TEST(max)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < 4 * rounds; round++) {
		uint64_t r = case_seed("max", round);
		uint32_t n = rng_below(&r, 100);
		struct guarded map;
		float *s = guard_alloc(&map, sizeof *s * n), want = -INFINITY;
		snprintf(what, sizeof what, "%s seed %llu n %u", isas[_i].name, (unsigned long long)seed, n);
		for (uint32_t i = 0; i < n; i++) {
			s[i] = rng_below(&r, 2) ? random_logit(&r) : rng_biased(&r);
			want = s[i] > want ? s[i] : want;
		}
		float got = k->max(s, n);
		if (got != want)
			FAIL("%.9g, want %.9g", (double)got, (double)want);
		if (n) {
			s[rng_below(&r, n)] = NAN;
			if (!isnan(k->max(s, n)))
				FAIL("NaN lost");
		}
		guard_free(&map);
	}
}
END_TEST

START_TEST(split_sums)
{
	const struct kernels *k = &isas[_i].k;
	for (uint32_t round = 0; round < 4 * rounds; round++) {
		uint64_t r = case_seed("split_sums", round);
		uint32_t n = rng_below(&r, 300);
		struct guarded map;
		float *w = guard_alloc(&map, sizeof *w * n);
		float theta = rng_below(&r, 8) ? rng_unit(&r) : rng_below(&r, 2) ? 0 : INFINITY;
		double sum = 0, squares = 0, below, below2;
		uint64_t count = 0, above;
		for (uint32_t i = 0; i < n; i++) {
			w[i] = rng_below(&r, 8) ? rng_unit(&r) : rng_below(&r, 2) ? theta : fabsf(rng_biased(&r));
			if (w[i] >= theta) {
				count++;
			} else {
				sum += (double)w[i];
				squares += (double)w[i] * (double)w[i];
			}
		}
		snprintf(what, sizeof what, "%s seed %llu n %u theta %.9g", isas[_i].name, (unsigned long long)seed, n,
		         (double)theta);
		k->split_sums(w, n, theta, &below, &below2, &above);
		if (above != count)
			FAIL("%llu above, want %llu", (unsigned long long)above, (unsigned long long)count);
		if (!(fabs(below - sum) <= 1e-12 * sum && fabs(below2 - squares) <= 1e-12 * squares))
			FAIL("below %.17g, %.17g; want %.17g, %.17g", below, below2, sum, squares);
		if (n) {
			w[rng_below(&r, n)] = NAN;
			k->split_sums(w, n, theta, &below, &below2, &above);
			if (!isnan(below) || !isnan(below2))
				FAIL("NaN lost");
		}
		guard_free(&map);
	}
}
END_TEST

// ---- rotation --------------------------------------------------------------------------------------------------------

START_TEST(rotate)
{
	struct kernels c;
	const struct kernels *k = &isas[_i].k;
	kernels_init_c(&c);
	for (uint32_t round = 0; round < rounds; round++) {
		uint64_t r = case_seed("rotate", round);
		uint32_t d = 64u << rng_below(&r, 3);
		struct guarded x_map, s_map;
		float *x = guard_alloc(&x_map, sizeof *x * d), *signs = guard_alloc(&s_map, sizeof *x * 3 * d), same[256];
		double y[256], z[256], norm = 0;
		snprintf(what, sizeof what, "%s seed %llu d_pad %u", isas[_i].name, (unsigned long long)seed, d);
		for (uint32_t j = 0; j < 3 * d; j++)
			signs[j] = rng_below(&r, 2) ? 1.f : -1.f;
		for (uint32_t j = 0; j < d; j++) {
			x[j] = same[j] = rng_biased(&r);
			y[j] = (double)x[j];
			norm += y[j] * y[j];
		}
		for (uint32_t pass = 0; pass < 3; pass++, memcpy(y, z, sizeof y))
			for (uint32_t i = 0; i < d; i++) {
				z[i] = 0;
				for (uint32_t j = 0; j < d; j++)
					z[i] += (__builtin_popcount(i & j) & 1 ? -1 : 1) * y[j] * (double)signs[pass * d + j] /
					        sqrt(d);
			}
		k->rotate(x, d, signs);
		c.rotate(same, d, signs);
		for (uint32_t j = 0; j < d; j++) {
			if (!same_bits(x[j], same[j]))
				FAIL("element %u: %.9g, C says %.9g", j, (double)x[j], (double)same[j]);
			if (!(fabs((double)x[j] - y[j]) <= 24 * (double)FLT_EPSILON * sqrt(norm)))
				FAIL("element %u: %.9g, want %.9g", j, (double)x[j], y[j]);
		}
		guard_free(&x_map);
		guard_free(&s_map);
	}
}
END_TEST

// ---- signs of projections --------------------------------------------------------------------------------------------

// Bits must be those of the C twin; and those of a sum in double wherever that is not within rounding of 0.
static void check_sign(bool got, bool c, const float *x, size_t step, const float *direction, uint32_t d)
{
	double sum = 0, size = 0;
	for (uint32_t j = 0; j < d; j++) {
		sum += (double)x[j * step] * (double)direction[j];
		size += fabs((double)x[j * step] * (double)direction[j]);
	}
	if (got != c)
		FAIL("%d, C says %d", got, c);
	if (fabs(sum) > d * (double)FLT_EPSILON * size + 1e-40 && got != (sum > 0))
		FAIL("%d for a projection of %g", got, sum);
}

START_TEST(signs_of_projections)
{
	static const uint32_t head_dims[] = {16, 64, 80, 96, 128, 256};
	struct kernels c;
	const struct kernels *k = &isas[_i].k;
	kernels_init_c(&c);
	for (uint32_t round = 0; round < rounds; round++) {
		uint64_t r = case_seed("signs", round);
		uint32_t d = head_dims[rng_below(&r, 6)], count = 1 + rng_below(&r, 40), n = 1 + rng_below(&r, SIGNS_QUERIES);
		struct guarded x_map, d_map, p_map;
		float *x = guard_alloc(&x_map, sizeof *x * d * SIGNS_KEYS),
		      *directions = guard_alloc(&d_map, sizeof *x * d * count);
		uint16_t *keys = guard_alloc(&p_map, sizeof *keys * count), same_keys[40];
		snprintf(what, sizeof what, "%s seed %llu d %u count %u", isas[_i].name, (unsigned long long)seed, d, count);
		for (uint32_t i = 0; i < d * SIGNS_KEYS; i++)
			x[i] = rng_below(&r, 4) ? rng_normal(&r) : rng_below(&r, 2) ? rng_biased(&r) : 0;
		for (uint32_t i = 0; i < d * count; i++)
			directions[i] = rng_below(&r, 16) ? rng_normal(&r) : 0;
		k->signs_block(x, d, directions, count, keys);
		c.signs_block(x, d, directions, count, same_keys);
		for (uint32_t i = 0; i < count; i++)
			for (uint32_t s = 0; s < SIGNS_KEYS; s++)
				check_sign(keys[i] >> s & 1, same_keys[i] >> s & 1, x + s, SIGNS_KEYS, directions + i * d, d);
		guard_free(&p_map);
		uint8_t *queries = guard_alloc(&p_map, count), same_queries[40];
		memmove(x + (SIGNS_KEYS - n) * d, x, sizeof *x * n * d); // up to the guard
		x += (SIGNS_KEYS - n) * d;
		k->signs_queries(x, n, d, directions, count, queries);
		c.signs_queries(x, n, d, directions, count, same_queries);
		for (uint32_t i = 0; i < count; i++) {
			if (queries[i] >> n)
				FAIL("bits of no query: %x", queries[i]);
			for (uint32_t s = 0; s < n; s++)
				check_sign(queries[i] >> s & 1, same_queries[i] >> s & 1, x + s * d, 1, directions + i * d, d);
		}
		guard_free(&p_map);
		guard_free(&x_map);
		guard_free(&d_map);
	}
}
END_TEST

static void add_test(TCase *tc, const TTest *test)
{
	tcase_add_loop_test(tc, test, 0, (int)isa_count);
}

int main(void)
{
	const char *text = getenv("MPIG_SEED");
	if (text)
		seed = strtoull(text, NULL, 0);
	if (getenv("MPIG_LONG"))
		rounds *= 30;
	isa_count = isas_of_cpu(isas);
	for (uint32_t i = 0; i < isa_count; i++)
		printf("  isa %u: %s\n", i, isas[i].name);
	fflush(stdout);
	signal(SIGSEGV, on_crash);
	signal(SIGBUS, on_crash);

	Suite *suite = suite_create("kernels");
	TCase *tc = tcase_create("kernels");
	tcase_set_timeout(tc, 600);
	add_test(tc, sig_estimate);
	add_test(tc, sig_estimate_groups);
	add_test(tc, sig_select);
	add_test(tc, sig_choose);
	add_test(tc, scores);
	add_test(tc, values);
	add_test(tc, values_squares);
	add_test(tc, nan_in_rows);
	add_test(tc, exp_sum);
	add_test(tc, exp_sum_limits);
	add_test(tc, max);
	add_test(tc, split_sums);
	add_test(tc, rotate);
	add_test(tc, signs_of_projections);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
