// Long contexts with and without upper layers: one KV head, 4 query heads, d = 128, one thread, without rings; time and error of both on
// the same rows, queries and shares, in turns.
//
// Rows are drawn from a model of real ones. With tensors (tools/quality/export_head.py writes them: a head of d <= 128 with its rows in groups of
// sixteen alike): a random group's mean plus a normal combination of its rows' residuals, the same for K and V, so that groups keep their
// means and covariances; d = 128 by one random orthonormal map. Without: normal keys whose coordinates have variance j^-.6, and queries
// likewise, so that logits have deviation 3.5; there no rows are more alike than chance makes them.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/pool.h"
#include "tools/magicpig-bench/bench.h"
#include "tools/magicpig-bench/strips.h"

enum { D = STRIP_DIM, GROUP = STRIP_GROUP, CHUNK = 4096, REPETITIONS = 21, QUERIES = 4, ALIKE = 16 };
static const uint32_t MAGIC = 0x4c454144;

struct model {
	uint32_t rows, d, positions, heads; // of the tensors; rows 0: none
	float *k, *v, *q;                   // [rows][d] twice, [positions][heads][d]
	float *mean;                        // [rows / ALIKE][2][d]
	float map[D][D];                    // [d][D]
};

static void *need(void *p)
{
	if (!p)
		abort();
	return p;
}

static float dot(const float *a, const float *b)
{
	float sum = 0;
	for (uint32_t j = 0; j < D; j++)
		sum += a[j] * b[j];
	return sum;
}

static void make_map(struct model *m)
{
	fill_normal(&m->map[0][0], (size_t)D * D, 77, 1);
	for (uint32_t a = 0; a < m->d; a++) {
		for (uint32_t b = 0; b < a; b++) {
			float along = dot(m->map[a], m->map[b]);
			for (uint32_t j = 0; j < D; j++)
				m->map[a][j] -= along * m->map[b][j];
		}
		float size = sqrtf(dot(m->map[a], m->map[a]));
		for (uint32_t j = 0; j < D; j++)
			m->map[a][j] /= size;
	}
}

static int read_model(const char *path, struct model *m)
{
	FILE *file = fopen(path, "rb");
	uint32_t head[5] = {0};
	int good = file && fread(head, 4, 5, file) == 5 && head[0] == MAGIC && head[1] >= ALIKE && head[1] <= 1u << 20 &&
	           head[1] % ALIKE == 0 && head[2] >= 16 && head[2] <= D && head[3] >= QUERIES && head[3] <= 4096 &&
	           head[4] >= 1 && head[4] <= 64;
	if (good) {
		*m = (struct model){.rows = head[1], .d = head[2], .positions = head[3], .heads = head[4]};
		size_t n = (size_t)m->rows * m->d, queries = (size_t)m->positions * m->heads * m->d;
		m->k = need(malloc(n * 4));
		m->v = need(malloc(n * 4));
		m->q = need(malloc(queries * 4));
		good = fread(m->k, 4, n, file) == n && fread(m->v, 4, n, file) == n && fread(m->q, 4, queries, file) == queries;
	}
	if (file)
		fclose(file);
	if (!good) {
		fprintf(stderr, "magicpig-bench: %s: not tensors as tools/quality/export_head.py writes them\n", path);
		return -1;
	}
	m->mean = need(calloc((size_t)m->rows / ALIKE * 2 * m->d, 4));
	for (uint32_t i = 0; i < m->rows; i++)
		for (uint32_t j = 0; j < m->d; j++) {
			float *mean = m->mean + (size_t)(i / ALIKE) * 2 * m->d;
			mean[j] += m->k[(size_t)i * m->d + j] / ALIKE;
			mean[m->d + j] += m->v[(size_t)i * m->d + j] / ALIKE;
		}
	make_map(m);
	return 0;
}

static void map_out(const struct model *m, const float *x, float by, float *out)
{
	memset(out, 0, D * sizeof(*out));
	for (uint32_t a = 0; a < m->d; a++)
		for (uint32_t j = 0; j < D; j++)
			out[j] += by * x[a] * m->map[a][j];
}

static void real_rows(const struct model *m, uint32_t first, uint32_t n, float *k, float *v)
{
	float *mix = need(malloc((size_t)n * ALIKE * 4)), x[2 * D];
	fill_normal(mix, (size_t)n * ALIKE, first + 5, .25f); // sixteen of variance 1/16
	for (uint32_t i = 0; i < n; i++) {
		uint32_t group = ((first + i) * 2654435761u >> 7) % (m->rows / ALIKE);
		const float *mean = m->mean + (size_t)group * 2 * m->d;
		memcpy(x, mean, 2 * m->d * sizeof(*x));
		for (uint32_t r = 0; r < ALIKE; r++)
			for (uint32_t j = 0; j < m->d; j++) {
				size_t at = ((size_t)group * ALIKE + r) * m->d + j;
				x[j] += mix[i * ALIKE + r] * (m->k[at] - mean[j]);
				x[m->d + j] += mix[i * ALIKE + r] * (m->v[at] - mean[m->d + j]);
			}
		map_out(m, x, 1, k + (size_t)i * D);
		map_out(m, x + m->d, 1, v + (size_t)i * D);
	}
	free(mix);
}

static float spread(uint32_t j)
{
	return powf(1 + (float)j, -.3f);
}

static void normal_rows(uint32_t first, uint32_t n, float *k, float *v)
{
	fill_normal(k, (size_t)n * D, first, 1);
	fill_normal(v, (size_t)n * D, first + 1, 1);
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < D; j++)
			k[(size_t)i * D + j] *= spread(j);
}

// Queries of the group at a position. The tensors' scale is 1/sqrt(d), ours 1/sqrt(D).
static void make_queries(const struct model *m, uint32_t position, float *q)
{
	if (m->rows) {
		for (uint32_t h = 0; h < GROUP; h++) {
			size_t at = ((size_t)(position + h / m->heads) % m->positions * m->heads + h % m->heads) * m->d;
			map_out(m, m->q + at, sqrtf((float)D / (float)m->d), q + (size_t)h * D);
		}
		return;
	}
	float common[D];
	fill_normal(common, D, 1000 + position, .7f);
	fill_normal(q, GROUP * D, 2000 + position, .7f);
	for (uint32_t h = 0; h < GROUP; h++) {
		float variance = 0;
		for (uint32_t j = 0; j < D; j++) {
			q[h * D + j] = (q[h * D + j] + common[j]) * spread(j);
			variance += q[h * D + j] * q[h * D + j] * spread(j) * spread(j);
		}
		for (uint32_t j = 0; j < D; j++)
			q[h * D + j] *= 3.5f * sqrtf(D / variance);
	}
}

static void append_rows(struct fixture *f, struct context *c, const struct model *m, uint32_t rows)
{
	float *k = need(malloc((size_t)CHUNK * D * 4)), *v = need(malloc((size_t)CHUNK * D * 4)), q[QUERIES * GROUP * D];
	for (uint32_t p = 0; p < QUERIES; p++)
		make_queries(m, p, q + (size_t)p * GROUP * D);
	for (uint32_t at = 0; at < rows; at += CHUNK) {
		if (m->rows)
			real_rows(m, at, CHUNK, k, v);
		else
			normal_rows(at, CHUNK, k, v);
		if (fixture_append(f, c, 0, at, CHUNK, k, v, q, QUERIES).status)
			abort();
		if ((at + CHUNK) % 65536 == 0 && fixture_commit(f, c, at + CHUNK - 65536, 65536, true).status)
			abort();
	}
	free(k);
	free(v);
}

static void use_upper(struct fixture *f, uint64_t rows)
{
	struct engine_options o = {.kernels = &f->kernels, .store = f->store, .upper_rows = rows};
	engine_destroy(f->engine);
	if (engine_create(&o, &f->engine))
		abort();
}

static void add_errors(const struct answer *a, const struct answer *exact, struct upper_side *to)
{
	for (uint32_t h = 0; h < GROUP; h++) {
		double mass = exp((double)a->lse[h] - (double)exact->lse[h]) - 1, error = 0, size = 0;
		for (uint32_t j = 0; j < D; j++) {
			double d = (double)a->out[h * D + j] - (double)exact->out[h * D + j];
			error += d * d;
			size += (double)exact->out[h * D + j] * (double)exact->out[h * D + j];
		}
		to->mass_error += mass * mass / (REPETITIONS * QUERIES * GROUP);
		to->out_error += error / size / (REPETITIONS * QUERIES * GROUP);
		to->rows += a->rows[h] / (double)(REPETITIONS * QUERIES * GROUP);
	}
	to->bytes += (double)a->result.bytes_read / (REPETITIONS * QUERIES);
}

static void measure(struct fixture *f, struct context *c, const struct model *m, struct upper_result *r)
{
	static double ms[2][REPETITIONS * QUERIES];
	struct upper_side *side[] = {&r->plain, &r->upper};
	float share = .005f, q[GROUP * D];
	if (r->rows > 98304)
		share *= sqrtf(98304.f / (float)r->rows); // as the floor under an error target
	for (uint32_t p = 0; p < QUERIES; p++) {
		make_queries(m, p, q);
		struct mpig_sqe e = strip_request(0, r->rows, MPIG_PROPOSAL_DENSE, 0, 0);
		struct answer exact = fixture_attend(f, c, &e, NULL, q);
		for (uint32_t i = 0; i < REPETITIONS; i++)
			for (uint32_t u = 0; u < 2; u++) {
				use_upper(f, u);
				e = strip_request(0, r->rows, MPIG_PROPOSAL_SIGNATURE, share, i);
				double start = seconds();
				struct answer a = fixture_attend(f, c, &e, NULL, q);
				ms[u][p * REPETITIONS + i] = (seconds() - start) * 1e3;
				add_errors(&a, &exact, side[u]);
				answer_free(&a);
			}
		answer_free(&exact);
	}
	for (uint32_t u = 0; u < 2; u++) {
		side[u]->ms = median(ms[u], REPETITIONS * QUERIES);
		side[u]->mass_error = sqrt(side[u]->mass_error);
		side[u]->out_error = sqrt(side[u]->out_error);
	}
}

int bench_upper(const uint32_t *rows, size_t count, uint32_t mask, const char *tensors, struct upper_result *out)
{
	static struct model m;
	if (tensors && read_model(tensors, &m))
		return -1;
	for (size_t i = 0; i < count; i++) {
		struct fixture f;
		fixture_start(&f, ((uint64_t)rows[i] * 620 + (UINT64_C(128) << 20)) & ~UINT64_C(0x1fffff), mask);
		fixture_upper(&f, 1, 1, 0);
		struct mpig_wire_layer layer = fixture_layer(GROUP, 1, D, MPIG_BF16);
		layer.signature_bits = 2;
		struct context *c = fixture_context(&f, "bench", &layer, 1, 1);
		out[i] = (struct upper_result){.rows = rows[i]};
		append_rows(&f, c, &m, rows[i]);
		while (pool_collapse(f.pool, 64)) // as an idle daemon has done by now
			;
		measure(&f, c, &m, &out[i]);
		context_unref(c);
		fixture_stop(&f);
	}
	free(m.k);
	free(m.v);
	free(m.q);
	free(m.mean);
	return 0;
}
