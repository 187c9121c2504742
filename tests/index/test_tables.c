// False alarms: each |z| < 6 fails by chance with probability 2e-9; some 150 comparisons: 3e-7.
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "shm/abi.h"
#include "tests/index/isas.h"
#include "tests/lib/suite.h"

struct tables {
	struct table_params p;
	uint32_t rows;
	float *vectors, *keys, *mu, *balance;
	void *table;
	size_t bytes;
	uint16_t *scratch, *ids; // ids of queries
	uint64_t *once, *twice;
};

struct shape {
	uint32_t hash, balanced, K, L, d, rows;
};
// Tiles of directions that end inside and outside a table, blocks of sixteen rows that do and do not fill, padded dimensions.
static const struct shape SHAPES[] = {{MPIG_HASH_SIMHASH, 0, 1, 2, 64, 1},         {MPIG_HASH_SIMHASH, 1, 3, 5, 64, 15},
                                      {MPIG_HASH_SIMHASH, 0, 4, 3, 80, 16},        {MPIG_HASH_SIMHASH, 1, 5, 7, 96, 17},
                                      {MPIG_HASH_SIMHASH, 0, 8, 75, 64, 700},      {MPIG_HASH_SIMHASH, 1, 10, 150, 128, 999},
                                      {MPIG_HASH_SIMHASH, 0, 16, 2, 64, 3000},     {MPIG_HASH_SIMHASH, 0, 2, 512, 64, 100},
                                      {MPIG_HASH_SIMHASH, 1, 6, 9, 256, 513},      {MPIG_HASH_SIMHASH, 0, 9, 4, 64, 65536},
                                      {MPIG_HASH_CROSSPOLYTOPE, 0, 7, 2, 64, 1},   {MPIG_HASH_CROSSPOLYTOPE, 1, 7, 28, 64, 700},
                                      {MPIG_HASH_CROSSPOLYTOPE, 0, 8, 5, 80, 17},  {MPIG_HASH_CROSSPOLYTOPE, 1, 8, 35, 128, 999},
                                      {MPIG_HASH_CROSSPOLYTOPE, 0, 9, 7, 256, 513}};
enum { SHAPE_COUNT = sizeof(SHAPES) / sizeof(*SHAPES) };

static void make(struct tables *t, uint64_t seed, const struct shape *s)
{
	struct rng rng = {seed};
	t->rows = s->rows;
	t->keys = floats((size_t)s->rows * s->d);
	t->mu = floats(s->d);
	t->balance = floats(s->d);
	t->p = (struct table_params){.hash = s->hash, .d_k = s->d, .d_pad = mpig_padded_dim(s->d), .K = s->K, .L = s->L};
	t->vectors = floats(table_vector_count(&t->p));
	table_vectors(seed, &t->p, t->vectors);
	rng_gaussian(&rng, t->keys, (size_t)s->rows * s->d);
	rng_gaussian(&rng, t->mu, s->d);
	for (uint32_t j = 0; j < s->d; j++)
		t->balance[j] = .25f + (float)rng_uniform(&rng);
	t->p.mu = t->mu;
	t->p.vectors = t->vectors;
	t->p.balance = s->balanced ? t->balance : NULL;
	t->bytes = table_bytes(s->K, s->L, s->rows);
	t->table = need(aligned_alloc(64, t->bytes));
	memset(t->table, 0xa5, t->bytes);
	t->scratch = need(malloc((size_t)s->rows * s->L * sizeof(uint16_t) + 1));
	t->ids = need(malloc(7 * s->L * sizeof(uint16_t)));
	t->once = need(calloc(s->rows / 64 + 1, sizeof(uint64_t)));
	t->twice = need(calloc(s->rows / 64 + 1, sizeof(uint64_t)));
}

static void drop(struct tables *t)
{
	free(t->vectors);
	free(t->keys);
	free(t->mu);
	free(t->balance);
	free(t->table);
	free(t->scratch);
	free(t->ids);
	free(t->once);
	free(t->twice);
}

// What is hashed of a key, or of a query, in double; returns its length.
static double hashed(const struct table_params *p, const float *x, bool key, double *out)
{
	double square = 0;
	for (uint32_t j = 0; j < p->d_k; j++) {
		double a = p->balance ? (double)p->balance[j] : 1;
		out[j] = key ? ((double)x[j] - (double)p->mu[j]) * a : (double)x[j] / a;
		square += out[j] * out[j];
	}
	return sqrt(square);
}

// Bucket of x in one table; *margin is how far it is from another one, over |x|: near 0 the bucket is anybody's.
static uint32_t simhash_bucket(const struct table_params *p, uint32_t table, const double *x, double norm, double *margin)
{
	uint32_t id = 0;
	*margin = INFINITY;
	for (uint32_t b = 0; b < p->K; b++) {
		const float *direction = p->vectors + (size_t)(table * p->K + b) * p->d_k;
		double sum = 0;
		for (uint32_t j = 0; j < p->d_k; j++)
			sum += x[j] * (double)direction[j];
		id |= (uint32_t)(sum > 0) << b;
		*margin = fmin(*margin, fabs(sum) / norm);
	}
	return id;
}

static uint32_t crosspolytope_bucket(const struct table_params *p, uint32_t table, const double *x, double norm, double *margin)
{
	uint32_t d = p->d_pad, best = 0;
	double y[SIG_MAX_DIM] = {0}, z[SIG_MAX_DIM];
	memcpy(y, x, p->d_k * sizeof(*y));
	for (uint32_t round = 0; round < 3; round++, memcpy(y, z, sizeof(y))) {
		const float *sign = p->vectors + ((size_t)table * 3 + round) * d;
		for (uint32_t i = 0; i < d; i++) {
			z[i] = 0;
			for (uint32_t j = 0; j < d; j++)
				z[i] += (__builtin_popcount(i & j) & 1 ? -1 : 1) * y[j] * (double)sign[j] / sqrt(d);
		}
	}
	for (uint32_t i = 1; i < d; i++)
		best = fabs(y[i]) > fabs(y[best]) ? i : best;
	*margin = INFINITY;
	for (uint32_t i = 0; i < d; i++)
		if (i != best)
			*margin = fmin(*margin, (fabs(y[best]) - fabs(y[i])) / norm);
	return 2 * best + (y[best] < 0);
}

static uint32_t bucket(const struct table_params *p, uint32_t table, const float *x, bool key, double *margin)
{
	double y[SIG_MAX_DIM], norm = hashed(p, x, key, y);
	return p->hash == MPIG_HASH_SIMHASH ? simhash_bucket(p, table, y, norm, margin)
	                                    : crosspolytope_bucket(p, table, y, norm, margin);
}

// scratch holds what table_build hashed, [table][row].
START_TEST(tables_are_sorted_buckets)
{
	struct kernels k[ISAS_MAX];
	uint32_t isa_count = isas(k), wrong = 0;
	const struct shape *s = &SHAPES[_i];
	struct tables t;
	make(&t, (uint64_t)_i, s);
	table_build(&k[0], &t.p, t.keys, s->rows, t.table, t.scratch);
	// Of the rows hashed again in double: a rotation takes 3 d^2 steps.
	uint32_t stride = s->rows > 2000 || (s->hash && s->rows > 100) ? 97 : 1;
	for (uint32_t table = 0; table < s->L; table++) {
		const uint32_t *starts = (const uint32_t *)t.table + (size_t)table * ((1u << s->K) + 1);
		size_t ids_at = (s->L * ((1u << s->K) + 1) * sizeof(uint32_t) + 63) / 64 * 64;
		const uint16_t *ids = (const uint16_t *)((char *)t.table + ids_at) + (size_t)table * s->rows;
		const uint16_t *found = t.scratch + (size_t)table * s->rows;
		uint8_t *seen = need(calloc(s->rows, 1));
		ck_assert_uint_eq(starts[0], 0);
		ck_assert_uint_eq(starts[1u << s->K], s->rows);
		for (uint32_t b = 0; b < 1u << s->K; b++)
			for (uint32_t i = starts[b]; i < starts[b + 1]; i++) {
				wrong += found[ids[i]] != b || seen[ids[i]] || (i > starts[b] && ids[i] <= ids[i - 1]);
				seen[ids[i]] = 1;
			}
		for (uint32_t i = 0; i < s->rows; i += stride) {
			double margin;
			uint32_t expected = bucket(&t.p, table, t.keys + (size_t)i * s->d, true, &margin);
			wrong += found[i] != expected && margin > 1e-5;
		}
		free(seen);
	}
	ck_assert_msg(!wrong, "hash %u, K %u, L %u: %u rows misplaced", s->hash, s->K, s->L, wrong);
	const float *norms = table_norms(t.table, s->K, s->L, s->rows);
	for (uint32_t i = 0; i < s->rows; i += stride) {
		double y[SIG_MAX_DIM], norm = hashed(&t.p, t.keys + (size_t)i * s->d, true, y);
		wrong += fabs((double)norms[i] / norm - 1) > 1e-5;
	}
	ck_assert_uint_eq(wrong, 0);
	ck_assert((const char *)(norms + s->rows) <= (char *)t.table + t.bytes);

	void *same = need(aligned_alloc(64, t.bytes)); // whatever the ISA
	memset(same, 0xa5, t.bytes);
	for (uint32_t isa = 1; isa < isa_count; isa++) {
		table_build(&k[isa], &t.p, t.keys, s->rows, same, t.scratch);
		ck_assert_int_eq(memcmp(same, t.table, t.bytes), 0);
	}
	free(same);
	drop(&t);
}
END_TEST

START_TEST(query_ids)
{
	struct kernels k[ISAS_MAX];
	uint32_t isa_count = isas(k);
	struct shape s = SHAPES[_i];
	s.rows = 7; // queries: more than are hashed together
	struct tables t;
	make(&t, (uint64_t)_i, &s);
	uint16_t *first = need(malloc(7 * s.L * sizeof(uint16_t)));
	for (uint32_t n = 1; n <= 7; n++)
		for (uint32_t isa = 0; isa < isa_count; isa++) {
			table_hash(&k[isa], &t.p, t.keys, n, t.ids);
			if (!isa)
				memcpy(first, t.ids, n * s.L * sizeof(uint16_t));
			ck_assert_int_eq(memcmp(first, t.ids, n * s.L * sizeof(uint16_t)), 0);
		}
	for (uint32_t query = 0; query < 7; query++)
		for (uint32_t table = 0; table < s.L; table++) {
			double margin;
			uint32_t expected = bucket(&t.p, table, t.keys + query * s.d, false, &margin);
			ck_assert(first[query * s.L + table] == expected || margin < 1e-5);
		}
	free(first);
	drop(&t);
}
END_TEST

START_TEST(lookup_counts_collisions)
{
	struct kernels k;
	kernels_init_c(&k);
	const struct shape *s = &SHAPES[_i];
	uint32_t total = 0, words = (s->rows + 63) / 64;
	struct tables t;
	make(&t, (uint64_t)_i, s);
	table_build(&k, &t.p, t.keys, s->rows, t.table, t.scratch);
	struct rng rng = {(uint64_t)_i};
	for (uint32_t query = 0; query < 12; query++) {
		float q[SIG_MAX_DIM]; // near some key, so that there is something to find
		rng_gaussian(&rng, q, s->d);
		uint32_t near = rng_below(&rng, s->rows), begin = query ? rng_below(&rng, s->rows) : 0, wrong = 0;
		uint32_t end = query ? begin + rng_below(&rng, s->rows - begin + 1) : s->rows;
		for (uint32_t j = 0; j < s->d; j++) {
			float a = t.p.balance ? t.balance[j] : 1;
			q[j] = a * (a * (t.keys[(size_t)near * s->d + j] - t.mu[j]) + .3f * q[j]);
		}
		table_hash(&k, &t.p, q, 1, t.ids);
		table_lookup(&t.p, t.table, s->rows, t.ids, begin, end, t.once, t.twice);
		for (uint32_t i = 0; i < s->rows; i++) {
			uint32_t collisions = 0, found = t.twice[i / 64] >> (i % 64) & 1;
			for (uint32_t table = 0; table < s->L; table++)
				collisions += t.scratch[(size_t)table * s->rows + i] == t.ids[table];
			wrong += found != (collisions >= 2 && i >= begin && i < end);
			total += found;
		}
		ck_assert_uint_eq(wrong, 0);
		for (uint32_t word = 0; word < words; word++)
			ck_assert_uint_eq(t.once[word], 0);
		memset(t.twice, 0, words * sizeof(*t.twice));
	}
	table_lookup(&t.p, t.table, s->rows, t.ids, s->rows, s->rows, t.once, t.twice);
	ck_assert_uint_eq(t.twice[0], 0);
	ck_assert_uint_ge(total, s->L >= 20 ? 8 : 0);
	drop(&t);
}
END_TEST

// Two vectors at a cosine through fresh tables: chosen as often as u says, which for cross-polytope is the committed table's
// word. Every draw has its own plane, since a Hadamard rotation knows the axes.
START_TEST(u_is_the_collision_probability)
{
	static const struct shape shapes[] = {
		{MPIG_HASH_SIMHASH, 0, 4, 20, 16, 0},       {MPIG_HASH_SIMHASH, 1, 4, 20, 64, 0},
		{MPIG_HASH_CROSSPOLYTOPE, 0, 7, 8, 64, 0},  {MPIG_HASH_CROSSPOLYTOPE, 1, 8, 8, 80, 0},
		{MPIG_HASH_CROSSPOLYTOPE, 0, 8, 8, 128, 0}, {MPIG_HASH_CROSSPOLYTOPE, 0, 9, 8, 256, 0}};
	enum { DRAWS = 6000, COSINES = 7 };
	const double cosines[COSINES] = {-.4, 0, .2, .4, .6, .8, .95};
	uint32_t chosen[COSINES] = {0};
	struct kernels k[ISAS_MAX];
	struct kernels *best = &k[isas(k) - 1];
	struct shape s = shapes[_i];
	s.rows = 1;
	struct tables t;
	make(&t, (uint64_t)_i, &s);
	struct rng rng = {UINT64_C(77) + (uint64_t)_i};
	for (uint32_t draw = 0; draw < DRAWS; draw++) {
		float x[SIG_MAX_DIM], z[SIG_MAX_DIM], q[SIG_MAX_DIM];
		double xx = 0, xz = 0, zz = 0;
		table_vectors(draw, &t.p, t.vectors);
		rng_gaussian(&rng, x, s.d);
		rng_gaussian(&rng, z, s.d);
		for (uint32_t j = 0; j < s.d; j++)
			xx += (double)x[j] * (double)x[j], xz += (double)x[j] * (double)z[j], zz += (double)z[j] * (double)z[j];
		double along = xz / xx, scale = sqrt(xx / (zz - xz * along));
		for (uint32_t j = 0; j < s.d; j++) {
			z[j] = (float)(((double)z[j] - along * (double)x[j]) * scale);
			t.keys[j] = x[j] / (t.p.balance ? t.balance[j] : 1) + t.mu[j];
		}
		table_build(best, &t.p, t.keys, 1, t.table, t.scratch);
		for (uint32_t c = 0; c < COSINES; c++) {
			double sine = sqrt(1 - cosines[c] * cosines[c]);
			for (uint32_t j = 0; j < s.d; j++)
				q[j] = (float)(3 * (cosines[c] * (double)x[j] + sine * (double)z[j])) *
				       (t.p.balance ? t.balance[j] : 1);
			table_hash(best, &t.p, q, 1, t.ids);
			table_lookup(&t.p, t.table, 1, t.ids, 0, 1, t.once, t.twice);
			chosen[c] += t.twice[0] & 1;
			t.twice[0] = 0;
		}
	}
	for (uint32_t c = 0; c < COSINES; c++) {
		double u = exp(log_pi_of_collision(table_collision(s.hash, t.p.d_pad, s.K, acos(cosines[c])), s.L)) - 1e-4;
		double sd = sqrt(DRAWS * fmax(u * (1 - u), 1. / DRAWS));
		ck_assert_msg(fabs(chosen[c] - DRAWS * u) < 6 * sd, "cosine %g: %u of %u chosen, u = %g", cosines[c], chosen[c],
		              DRAWS, u);
	}
	drop(&t);
}
END_TEST

// Published figures: p of one table, to their last digit or 4 % of them, whichever is more.
START_TEST(crosspolytope_probabilities)
{
	static const double p[3][10] = {{.0058, .0113, .0214, .0371, .0605, .0931, .141, .207, .304, .462},
	                                {.0029, .0070, .0143, .0263, .0440, .0731, .114, .177, .269, .431},
	                                {.0017, .0043, .0089, .0177, .0328, .0567, .0933, .150, .240, .400}};
	for (uint32_t i = 0; i < 3; i++) {
		uint32_t d = 64u << i;
		for (uint32_t c = 0; c < 10; c++) {
			double got = table_collision(MPIG_HASH_CROSSPOLYTOPE, d, 7 + i, acos(c / 10.));
			ck_assert_msg(fabs(got - p[i][c]) < fmax(.04 * p[i][c], 5e-4), "d %u, cosine .%u: %g, want %g", d, c, got,
			              p[i][c]);
		}
		ck_assert_double_eq(table_collision(MPIG_HASH_CROSSPOLYTOPE, d, 7 + i, 0), 1);
		for (uint32_t a = 1; a <= 1000; a++)
			ck_assert_double_le(table_collision(MPIG_HASH_CROSSPOLYTOPE, d, 7 + i, a * M_PI / 1000),
			                    table_collision(MPIG_HASH_CROSSPOLYTOPE, d, 7 + i, (a - 1) * M_PI / 1000));
	}
}
END_TEST

START_TEST(u_at_the_ends)
{
	static struct table_pi t;
	const struct table_params p = {.hash = MPIG_HASH_SIMHASH, .d_k = 64, .d_pad = 64, .K = 10, .L = 150};
	table_pi_init(&t, &p);
	ck_assert_double_eq_tol((double)table_pi_get(&t, 1), log(1 + 1e-4), 1e-6);
	ck_assert_double_eq_tol((double)table_pi_get(&t, 1.5f), log(1 + 1e-4), 1e-6);
	ck_assert_double_eq_tol((double)table_pi_get(&t, -1), log(1e-4), 1e-5);
	ck_assert_double_eq_tol((double)table_pi_get(&t, -INFINITY), log(1e-4), 1e-5);
	ck_assert_float_eq(table_pi_get(&t, NAN), table_pi_get(&t, 0)); // a key that is the mean has no direction
	double P = 0x1p-10, u = 1 - pow(1 - P, 150) - 150 * P * pow(1 - P, 149);
	ck_assert_double_eq_tol((double)table_pi_get(&t, 0), log(u + 1e-4), 1e-5);
}
END_TEST

START_TEST(pi_table_interpolates)
{
	static const struct table_params shapes[] = {{.K = 8, .L = 75},
	                                             {.K = 9, .L = 120},
	                                             {.K = 10, .L = 150},
	                                             {.K = 10, .L = 220},
	                                             {.K = 11, .L = 300},
	                                             {.K = 1, .L = 2},
	                                             {.K = 16, .L = 512},
	                                             {.hash = 1, .d_pad = 64, .K = 7, .L = 28},
	                                             {.hash = 1, .d_pad = 128, .K = 8, .L = 35},
	                                             {.hash = 1, .d_pad = 256, .K = 9, .L = 46}};
	static struct table_pi t;
	const struct table_params *p = &shapes[_i];
	double worst = 0;
	table_pi_init(&t, p);
	for (uint32_t i = 0; i <= 100000; i++) {
		double c = (double)(float)(i / 50000. - 1);
		double exact = log_pi_of_collision(table_collision(p->hash, p->d_pad, p->K, acos(c)), p->L);
		if (exp(exact) > 2e-4) // u > 1e-4
			worst = fmax(worst, fabs((double)table_pi_get(&t, (float)c) - exact));
	}
	ck_assert_msg(worst < (p->hash ? 1e-3 : 1e-4), "hash %u (%u, %u): error %g", p->hash, p->K, p->L, worst);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tables");
	TCase *tc = tcase_create("tables");
	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, tables_are_sorted_buckets, 0, SHAPE_COUNT);
	tcase_add_loop_test(tc, query_ids, 0, SHAPE_COUNT);
	tcase_add_loop_test(tc, lookup_counts_collisions, 0, SHAPE_COUNT);
	tcase_add_loop_test(tc, u_is_the_collision_probability, 0, 6);
	tcase_add_test(tc, crosspolytope_probabilities);
	tcase_add_test(tc, u_at_the_ends);
	tcase_add_loop_test(tc, pi_table_interpolates, 0, 10);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
