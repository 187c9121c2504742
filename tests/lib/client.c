#include "tests/lib/client.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/model.h"

const char test_client_fingerprint[8] = "testing";

static const char *last_error(const struct test_client *s)
{
	return s->client ? mpig_last_error(s->client) : "";
}

void test_client_open_hasty(struct test_client *s, const struct test_daemon *d, int timeout_ms, int reconnect_ms)
{
	struct mpig_connect_options connect = MPIG_INIT(struct mpig_connect_options);
	struct mpig_queue_options queue = MPIG_INIT(struct mpig_queue_options);
	connect.socket_path = d->socket;
	connect.timeout_ms = timeout_ms;
	connect.reconnect_ms = reconnect_ms;
	queue.timeout_ms = timeout_ms;
	memset(s, 0, sizeof(*s));
	ck_assert_status(mpig_connect(&connect, &s->client), MPIG_OK);
	int status = mpig_queue_create(s->client, &queue, &s->queue);
	ck_assert_msg(status == MPIG_OK, "queue: %s: %s", mpig_strerror(status), last_error(s));
}

void test_client_open(struct test_client *s, const struct test_daemon *d)
{
	test_client_open_hasty(s, d, 0, 0);
}

void test_client_close(struct test_client *s)
{
	mpig_disconnect(s->client);
	memset(s, 0, sizeof(*s));
}

// ---- model data --------------------------------------------------------------------------------------------------------
static size_t row_floats(const struct model_data *m)
{
	return (size_t)m->layer.kv_heads * (size_t)m->layer.d_k;
}

void model_data_make(struct model_data *m, const struct mpig_layer *layer, int layers, uint64_t tokens, uint64_t seed)
{
	*m = (struct model_data){.seed = seed, .tokens = tokens, .layer = *layer, .layers = layers};
	size_t rows = (size_t)layers * tokens * (size_t)layer->kv_heads, d = (size_t)layer->d_k;
	m->k = malloc(rows * d * sizeof(float));
	m->v = malloc(rows * d * sizeof(float));
	m->ids = malloc(tokens * sizeof(uint32_t));
	ck_assert(m->k && m->v && m->ids);
	model_heavy(m->k, rows, d, seed);
	model_normal(m->v, rows * d, seed + 1);
	model_round_bf16(m->k, rows * d);
	model_round_bf16(m->v, rows * d);
	uint64_t state = seed + 2;
	for (uint64_t i = 0; i < tokens; i++)
		m->ids[i] = (uint32_t)(model_random(&state) % 50000);
}

void model_data_free(struct model_data *m)
{
	free(m->k);
	free(m->v);
	free(m->ids);
	memset(m, 0, sizeof(*m));
}

const float *model_data_k(const struct model_data *m, int layer, uint64_t token)
{
	return m->k + ((size_t)layer * m->tokens + token) * row_floats(m);
}

const float *model_data_v(const struct model_data *m, int layer, uint64_t token)
{
	return m->v + ((size_t)layer * m->tokens + token) * row_floats(m);
}

// ---- contexts ----------------------------------------------------------------------------------------------------------
struct mpig_layer test_client_layer(int query_heads, int kv_heads, int d)
{
	return (struct mpig_layer){.kind = MPIG_LAYER_GLOBAL,
	                           .row_dtype = MPIG_BF16,
	                           .query_heads = query_heads,
	                           .kv_heads = kv_heads,
	                           .d_k = d,
	                           .signature_bits = 2};
}

struct mpig_spec test_client_spec(const struct mpig_layer *layers, int count)
{
	struct mpig_spec spec = MPIG_INIT(struct mpig_spec);
	spec.layer_count = count;
	spec.layers = layers;
	spec.fingerprint = test_client_fingerprint;
	spec.fingerprint_bytes = sizeof(test_client_fingerprint);
	spec.seed = 17;
	return spec;
}

mpig_context *test_client_create(struct test_client *s, const char *name, const struct model_data *m)
{
	struct mpig_layer layers[16];
	mpig_context *x = NULL;
	ck_assert_int_le(m->layers, 16);
	for (int i = 0; i < m->layers; i++)
		layers[i] = m->layer;
	struct mpig_spec spec = test_client_spec(layers, m->layers);
	int status = mpig_context_create(s->client, name, &spec, &x);
	ck_assert_msg(status == MPIG_OK, "create %s: %s: %s", name, mpig_strerror(status), last_error(s));
	return x;
}

int test_client_append(struct test_client *s, mpig_context *x, const struct model_data *m, uint64_t from, uint64_t to)
{
	int status = MPIG_OK;
	for (int layer = 0; layer < m->layers && status == MPIG_OK; layer++)
		status = mpig_append(s->queue, x, layer, from, to - from, MPIG_F32, model_data_k(m, layer, from),
		                     model_data_v(m, layer, from), NULL, 0);
	return status;
}

int test_client_fill(struct test_client *s, mpig_context *x, const struct model_data *m, uint64_t from, uint64_t to, int flags)
{
	int status = test_client_append(s, x, m, from, to);
	return status ? status : mpig_commit(s->queue, x, from, to - from, m->ids + from, flags);
}

int test_client_find(struct test_client *s, const char *name, int mode, mpig_context **x)
{
	struct mpig_open_options options = MPIG_INIT(struct mpig_open_options);
	options.mode = mode;
	options.fingerprint = test_client_fingerprint;
	options.fingerprint_bytes = sizeof(test_client_fingerprint);
	return mpig_context_open(s->client, name, &options, x);
}

static void assert_dense_layer(struct test_client *s, mpig_context *x, const struct model_data *m, int layer, uint64_t begin,
                               uint64_t end)
{
	size_t heads = (size_t)m->layer.query_heads, d = (size_t)m->layer.d_k;
	float *q = malloc(heads * d * sizeof(*q)), *out = malloc(heads * d * sizeof(*out)), *lse = malloc(heads * sizeof(*lse));
	uint32_t *rows = malloc(heads * sizeof(*rows));
	double *true_out = malloc(heads * d * sizeof(*true_out)), *true_lse = malloc(heads * sizeof(*true_lse));
	ck_assert(q && out && lse && rows && true_out && true_lse);
	model_normal(q, heads * d, m->seed + 100 + (uint64_t)layer);
	struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
	attend.layer = layer;
	attend.proposal = MPIG_PROPOSAL_DENSE;
	attend.q = q;
	attend.begin = begin;
	attend.end = (int64_t)end;
	struct mpig_result result = MPIG_INIT(struct mpig_result);
	result.out = out;
	result.lse = lse;
	result.rows = rows;
	int status = mpig_attend(s->queue, x, &attend, &result);
	ck_assert_msg(status == MPIG_OK, "attend: %s: %s", mpig_strerror(status), last_error(s));
	struct model_attention truth = {.q = q,
	                                .k = model_data_k(m, layer, 0),
	                                .v = model_data_v(m, layer, 0),
	                                .tokens = 1,
	                                .query_heads = (uint32_t)heads,
	                                .kv_heads = (uint32_t)m->layer.kv_heads,
	                                .d_k = (uint32_t)d,
	                                .d_v = (uint32_t)d,
	                                .begin = begin,
	                                .end = end,
	                                .scale = (double)m->layer.scale,
	                                .softcap = (double)m->layer.softcap,
	                                .alibi_slope_base = (double)m->layer.alibi_slope_base,
	                                .query_position = mpig_context_committed(x)};
	model_attend(&truth, true_out, true_lse);
	double error = model_relative_l2(out, true_out, heads * d), lse_error = model_max_difference(lse, true_lse, heads);
	ck_assert_msg(error < 2e-5, "layer %d rows %llu..%llu: out differs by %g", layer, (unsigned long long)begin,
	              (unsigned long long)end, error);
	ck_assert_msg(lse_error < 2e-5, "layer %d: LSE differs by %g", layer, lse_error);
	for (size_t h = 0; h < heads; h++)
		ck_assert_uint_eq(rows[h], end - begin);
	free(q), free(out), free(lse), free(rows), free(true_out), free(true_lse);
}

void test_client_assert_dense(struct test_client *s, mpig_context *x, const struct model_data *m, uint64_t begin, uint64_t end)
{
	for (int layer = 0; layer < m->layers; layer++)
		assert_dense_layer(s, x, m, layer, begin, end);
}

int test_client_attend(struct test_client *s, mpig_context *x, const struct model_data *m)
{
	float q[32 * 128];
	size_t n = (size_t)m->layer.query_heads * (size_t)m->layer.d_k;
	ck_assert_uint_le(n, sizeof(q) / sizeof(q[0]));
	model_normal(q, n, 5);
	struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
	struct mpig_result result = MPIG_INIT(struct mpig_result);
	attend.proposal = MPIG_PROPOSAL_DENSE;
	attend.q = q;
	return mpig_attend(s->queue, x, &attend, &result);
}
