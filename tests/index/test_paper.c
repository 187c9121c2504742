// False alarms: each |z| < 5.5 fails by chance with probability 4e-8, 14 comparisons: 5e-7.
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"
#include "tests/index/isas.h"

struct tables {
	struct paper_params p;
	uint32_t rows;
	float *directions, *keys, *mu;
	void *table;
	size_t bytes;
	uint16_t *scratch, *ids; // ids of a query
	uint64_t *seen;
	uint32_t *found;
};

static void make(struct tables *t, uint64_t seed, uint32_t d, uint32_t K, uint32_t L, uint32_t rows)
{
	struct rng rng = {seed};
	t->rows = rows;
	t->directions = floats((size_t)K * L * d);
	t->keys = floats((size_t)rows * d);
	t->mu = floats(d);
	paper_directions(seed, 1, 2, d, K * L, t->directions);
	rng_gaussian(&rng, t->keys, (size_t)rows * d);
	rng_gaussian(&rng, t->mu, d);
	t->p = (struct paper_params){d, K, L, t->mu, t->directions};
	t->bytes = paper_table_bytes(K, L, rows);
	t->table = need(aligned_alloc(64, t->bytes));
	memset(t->table, 0xa5, t->bytes);
	t->scratch = need(malloc((size_t)rows * L * sizeof(uint16_t) + 1));
	t->ids = need(malloc(L * sizeof(uint16_t)));
	t->seen = need(calloc(2 * (rows / 64 + 1), sizeof(uint64_t)));
	t->found = need(malloc((rows + 1) * sizeof(uint32_t)));
}

static void drop(struct tables *t)
{
	free(t->directions);
	free(t->keys);
	free(t->mu);
	free(t->table);
	free(t->scratch);
	free(t->ids);
	free(t->seen);
	free(t->found);
}

// (K, L, d, rows): tiles of four directions that end inside and outside a table, blocks of sixteen rows that do and do not fill.
static const uint32_t SHAPES[][4] = {{1, 2, 64, 1},    {3, 5, 64, 15},      {4, 3, 80, 16},    {5, 7, 96, 17},
                                     {8, 75, 64, 700}, {10, 150, 128, 999}, {16, 2, 64, 3000}, {2, 512, 64, 100},
                                     {6, 9, 256, 513}, {9, 4, 64, 65536}};
enum { SHAPE_COUNT = sizeof(SHAPES) / sizeof(*SHAPES) };

// The bucket of x (less centre) in one table, in double; *margin is the smallest |projection| / |x|: near 0 the sign is
// anybody's.
static uint32_t bucket(const struct paper_params *p, uint32_t table, const float *x, const float *centre, double *margin)
{
	uint32_t id = 0;
	double norm = 0;
	*margin = INFINITY;
	for (uint32_t j = 0; j < p->d_k; j++)
		norm += pow((double)x[j] - (centre ? (double)centre[j] : 0), 2);
	for (uint32_t b = 0; b < p->K; b++) {
		const float *direction = p->directions + (size_t)(table * p->K + b) * p->d_k;
		double sum = 0;
		for (uint32_t j = 0; j < p->d_k; j++)
			sum += ((double)x[j] - (centre ? (double)centre[j] : 0)) * (double)direction[j];
		id |= (uint32_t)(sum > 0) << b;
		*margin = fmin(*margin, fabs(sum) / sqrt(norm));
	}
	return id;
}

// scratch holds what paper_build hashed, [table][row].
START_TEST(tables_are_sorted_buckets)
{
	struct kernels k[ISAS_MAX];
	uint32_t isa_count = isas(k);
	for (uint32_t c = 0; c < SHAPE_COUNT; c++) {
		uint32_t K = SHAPES[c][0], L = SHAPES[c][1], d = SHAPES[c][2], rows = SHAPES[c][3], wrong = 0;
		struct tables t;
		make(&t, c, d, K, L, rows);
		paper_build(&k[0], &t.p, t.keys, rows, t.table, t.scratch);
		uint32_t stride = rows > 2000 ? 97 : 1; // of the rows hashed again in double
		for (uint32_t table = 0; table < L; table++) {
			const uint32_t *starts = (const uint32_t *)t.table + (size_t)table * ((1u << K) + 1);
			size_t ids_at = (L * ((1u << K) + 1) * sizeof(uint32_t) + 63) / 64 * 64;
			const uint16_t *ids = (const uint16_t *)((char *)t.table + ids_at) + (size_t)table * rows;
			const uint16_t *hashed = t.scratch + (size_t)table * rows;
			uint8_t *seen = need(calloc(rows, 1));
			ck_assert_uint_eq(starts[0], 0);
			ck_assert_uint_eq(starts[1u << K], rows);
			for (uint32_t b = 0; b < 1u << K; b++)
				for (uint32_t i = starts[b]; i < starts[b + 1]; i++) {
					wrong += hashed[ids[i]] != b || seen[ids[i]] || (i > starts[b] && ids[i] <= ids[i - 1]);
					seen[ids[i]] = 1;
				}
			for (uint32_t i = 0; i < rows; i += stride) {
				double margin;
				uint32_t expected = bucket(&t.p, table, t.keys + (size_t)i * d, t.mu, &margin);
				wrong += hashed[i] != expected && margin > 1e-5;
			}
			free(seen);
		}
		ck_assert_msg(!wrong, "K %u, L %u: %u rows misplaced", K, L, wrong);
		const float *norms = paper_norms(t.table, K, L, rows);
		for (uint32_t i = 0; i < rows; i += stride) {
			double square = 0;
			for (uint32_t j = 0; j < d; j++)
				square += pow((double)t.keys[(size_t)i * d + j] - (double)t.mu[j], 2);
			wrong += fabs((double)norms[i] / sqrt(square) - 1) > 1e-5;
		}
		ck_assert_uint_eq(wrong, 0);
		ck_assert((const char *)(norms + rows) <= (char *)t.table + t.bytes);

		void *same = need(aligned_alloc(64, t.bytes)); // whatever the ISA
		memset(same, 0xa5, t.bytes);
		for (uint32_t isa = 1; isa < isa_count; isa++) {
			paper_build(&k[isa], &t.p, t.keys, rows, same, t.scratch);
			ck_assert_int_eq(memcmp(same, t.table, t.bytes), 0);
		}
		free(same);
		drop(&t);
	}
}
END_TEST

START_TEST(query_ids)
{
	struct kernels k[ISAS_MAX];
	uint32_t isa_count = isas(k);
	for (uint32_t c = 0; c < SHAPE_COUNT; c++) {
		struct tables t;
		make(&t, c, SHAPES[c][2], SHAPES[c][0], SHAPES[c][1], 1);
		for (uint32_t isa = 0; isa < isa_count; isa++) {
			paper_hash(&k[isa], &t.p, t.keys, t.ids);
			for (uint32_t table = 0; table < t.p.L; table++) {
				double margin;
				uint32_t expected = bucket(&t.p, table, t.keys, NULL, &margin);
				ck_assert(t.ids[table] == expected || margin < 1e-5);
			}
		}
		drop(&t);
	}
}
END_TEST

START_TEST(lookup_counts_collisions)
{
	struct kernels k;
	kernels_init_c(&k);
	uint32_t total = 0;
	for (uint32_t c = 0; c < SHAPE_COUNT; c++) {
		uint32_t L = SHAPES[c][1], rows = SHAPES[c][3];
		struct tables t;
		make(&t, c, SHAPES[c][2], SHAPES[c][0], L, rows);
		paper_build(&k, &t.p, t.keys, rows, t.table, t.scratch);
		struct rng rng = {c};
		for (uint32_t query = 0; query < 12; query++) {
			float q[SIG_MAX_DIM]; // near some key, so that there is something to find
			rng_gaussian(&rng, q, t.p.d_k);
			uint32_t near = rng_below(&rng, rows), begin = query ? rng_below(&rng, rows) : 0;
			uint32_t end = query ? begin + rng_below(&rng, rows - begin + 1) : rows;
			for (uint32_t j = 0; j < t.p.d_k; j++)
				q[j] = t.keys[(size_t)near * t.p.d_k + j] - t.mu[j] + .5f * q[j];
			paper_hash(&k, &t.p, q, t.ids);
			uint32_t n = paper_lookup(&t.p, t.table, rows, t.ids, begin, end, t.seen, t.found), expected = 0,
				 wrong = 0;
			for (uint32_t i = begin; i < end; i++) {
				uint32_t collisions = 0;
				for (uint32_t table = 0; table < L; table++)
					collisions += t.scratch[(size_t)table * rows + i] == t.ids[table];
				if (collisions >= 2)
					wrong += expected >= n || t.found[expected++] != i;
			}
			ck_assert_uint_eq(n, expected);
			ck_assert_uint_eq(wrong, 0);
			total += n;
			for (uint32_t word = 0; word < 2 * ((rows + 63) / 64); word++)
				wrong += t.seen[word] != 0;
			ck_assert_uint_eq(wrong, 0);
		}
		ck_assert_uint_eq(paper_lookup(&t.p, t.table, rows, t.ids, rows, rows, t.seen, t.found), 0);
		drop(&t);
	}
	ck_assert_uint_gt(total, 1000);
}
END_TEST

START_TEST(u_is_the_collision_probability)
{
	enum { D = 16, K = 4, L = 20, DRAWS = 3000 };
	const float cosines[] = {-.4f, 0, .2f, .4f, .6f, .8f, .95f};
	float *directions = floats(K * L * D);
	uint32_t chosen[7] = {0};
	struct kernels k;
	kernels_init_c(&k);
	for (uint32_t draw = 0; draw < DRAWS; draw++) {
		uint16_t a[L], b[L];
		float x[D] = {1}, y[D] = {0};
		paper_directions(draw, 3, 4, D, K * L, directions);
		struct paper_params p = {D, K, L, NULL, directions};
		paper_hash(&k, &p, x, a);
		for (uint32_t c = 0; c < 7; c++) {
			y[0] = 3 * cosines[c];
			y[1 + draw % (D - 1)] = 3 * sqrtf(1 - cosines[c] * cosines[c]);
			paper_hash(&k, &p, y, b);
			y[1 + draw % (D - 1)] = 0;
			uint32_t collisions = 0;
			for (uint32_t table = 0; table < L; table++)
				collisions += a[table] == b[table];
			chosen[c] += collisions >= 2;
		}
	}
	for (uint32_t c = 0; c < 7; c++) {
		double u = exp((double)paper_log_pi(cosines[c], K, L)) - 1e-4,
		       z = (chosen[c] - DRAWS * u) / sqrt(DRAWS * u * (1 - u));
		ck_assert_msg(fabs(z) < 5.5, "cosine %g: %u of %u chosen, u = %g", (double)cosines[c], chosen[c], DRAWS, u);
	}
	free(directions);
}
END_TEST

START_TEST(u_at_the_ends)
{
	ck_assert_double_eq_tol((double)paper_log_pi(1, 10, 150), log(1 + 1e-4), 1e-7);
	ck_assert_double_eq_tol((double)paper_log_pi(1.5f, 10, 150), log(1 + 1e-4), 1e-7);
	ck_assert_double_eq_tol((double)paper_log_pi(-1, 10, 150), log(1e-4), 1e-6);
	ck_assert_double_eq_tol((double)paper_log_pi(-INFINITY, 10, 150), log(1e-4), 1e-6);
	ck_assert_float_eq(paper_log_pi(NAN, 10, 150), paper_log_pi(0, 10, 150)); // a key that is the mean has no direction
	// p = 1/2 exactly: P = 2^-10, L = 150.
	double P = 0x1p-10, u = 1 - pow(1 - P, 150) - 150 * P * pow(1 - P, 149);
	ck_assert_double_eq_tol((double)paper_log_pi(0, 10, 150), log(u + 1e-4), 1e-6);
}
END_TEST

START_TEST(pi_table_interpolates)
{
	const uint32_t shapes[][2] = {{8, 75}, {9, 120}, {10, 150}, {10, 220}, {11, 300}, {1, 2}, {16, 512}};
	static struct paper_pi t;
	for (uint32_t s = 0; s < 7; s++) {
		uint32_t K = shapes[s][0], L = shapes[s][1];
		double worst = 0;
		paper_pi_init(&t, K, L);
		for (uint32_t i = 0; i <= 100000; i++) {
			float c = (float)(i / 50000. - 1);
			double exact = (double)paper_log_pi(c, K, L), error = fabs((double)paper_pi_get(&t, c) - exact);
			if (exp(exact) > 2e-4) // u > 1e-4
				worst = fmax(worst, error);
		}
		ck_assert_msg(worst < 1e-4, "(%u, %u): error %g", K, L, worst);
		ck_assert_float_eq_tol(paper_pi_get(&t, 1.0001f), paper_log_pi(1, K, L), 1e-6f);
		ck_assert_float_eq_tol(paper_pi_get(&t, -1.0001f), paper_log_pi(-1, K, L), 1e-5f);
		ck_assert_float_eq_tol(paper_pi_get(&t, NAN), paper_log_pi(0, K, L), 1e-4f);
	}
}
END_TEST

int main(void)
{
	return RUN_TESTS("paper", tables_are_sorted_buckets, query_ids, lookup_counts_collisions, u_is_the_collision_probability,
	                 u_at_the_ends, pi_table_interpolates);
}
