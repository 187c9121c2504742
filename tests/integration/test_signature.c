// A client that computes signatures itself, from what the daemon tells it: its answers are the daemon's own, bit for bit.
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/index/index.h"
#include "shm/abi.h"
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

// 100 KV heads are three pages of the control operation.
static const struct shape {
	int query_heads, kv_heads, d;
	uint64_t tokens;
} shapes[] = {{8, 2, 128, 4000}, {4, 4, 80, 1000}, {100, 100, 64, 300}, {6, 3, 256, 600}};

static void sign(const struct mpig_signature *p, const float *balance, const float *q, int query_heads, int8_t *out, float *scale)
{
	struct kernels k;
	float signs[3 * 256], mu[256] = {0}, scratch[256], q_mu;
	kernels_init_c(&k);
	for (uint32_t j = 0; j < 3 * p->d_pad; j++)
		signs[j] = p->signs[j / 8] >> j % 8 & 1 ? -1.f : 1.f;
	for (int h = 0; h < query_heads; h++) {
		uint32_t g = (uint32_t)h / ((uint32_t)query_heads / p->kv_heads);
		struct sig_params params = {.d_k = p->d_k,
		                            .d_pad = p->d_pad,
		                            .bits = p->bits,
		                            .mu = mu,
		                            .balance = balance + g * p->d_k,
		                            .signs = signs};
		sig_encode_query(&k, &params, q + (uint32_t)h * p->d_k, out + (uint32_t)h * p->d_pad, scale + h, &q_mu, scratch);
	}
}

// _i: the shape.
START_TEST(a_clients_signatures_are_as_good_as_the_daemons)
{
	const struct shape *c = &shapes[_i];
	struct mpig_layer layer = test_client_layer(c->query_heads, c->kv_heads, c->d);
	struct model_data m;
	size_t heads = (size_t)c->query_heads, dim = (size_t)c->d, pad = mpig_padded_dim((uint32_t)c->d);
	model_data_make(&m, &layer, 1, c->tokens, 9);
	mpig_context *x = test_client_create(&s, "x", &m);
	ck_assert_status(test_client_fill(&s, x, &m, 0, c->tokens, MPIG_COMMIT_SEAL), MPIG_OK);
	struct mpig_signature p = MPIG_INIT(struct mpig_signature);
	float *balance = malloc((size_t)c->kv_heads * dim * 4), *q = malloc(heads * dim * 4), *scale = malloc(heads * 4);
	float *out[3], *lse[3];
	int8_t *signature = malloc(heads * pad);
	ck_assert_status(mpig_context_signature(x, 0, &p, balance), MPIG_OK);
	ck_assert_uint_eq(p.version, 1);
	ck_assert_uint_eq(p.kv_heads, (uint32_t)c->kv_heads);
	ck_assert_uint_eq(p.d_pad, pad);
	ck_assert_uint_eq(p.bits, 2);
	model_normal(q, heads * dim, 3);
	sign(&p, balance, q, c->query_heads, signature, scale);
	for (int i = 0; i < 3; i++) { // the daemon's; the client's; the client's, spoilt
		out[i] = malloc(heads * dim * 4);
		lse[i] = malloc(heads * 4);
		if (i == 2)
			for (size_t j = 0; j < heads * pad; j++)
				signature[j] = (int8_t)-signature[j];
		struct mpig_attend a = {.size = sizeof(a),
		                        .proposal = MPIG_PROPOSAL_SIGNATURE,
		                        .q = q,
		                        .budget = .1f,
		                        .seed = 4,
		                        .signature = i ? signature : NULL,
		                        .signature_scale = i ? scale : NULL,
		                        .signature_version = i ? p.version : 0};
		struct mpig_result r = {.size = sizeof(r), .out = out[i], .lse = lse[i]};
		ck_assert_status(mpig_attend(s.queue, x, &a, &r), MPIG_OK);
	}
	ck_assert_mem_eq(out[0], out[1], heads * dim * 4);
	ck_assert_mem_eq(lse[0], lse[1], heads * 4);
	ck_assert_mem_ne(lse[1], lse[2], heads * 4); // they were used
	for (int i = 0; i < 3; i++)
		free(out[i]), free(lse[i]);
	free(balance), free(q), free(scale), free(signature);
	model_data_free(&m);
}
END_TEST

START_TEST(layers_without_signatures)
{
	struct mpig_layer layers[3] = {test_client_layer(4, 2, 64), test_client_layer(4, 2, 64), test_client_layer(4, 2, 64)};
	layers[1].signature_bits = 0;
	layers[2].kind = MPIG_LAYER_SLIDING;
	struct mpig_spec spec = test_client_spec(layers, 3);
	struct mpig_signature p = MPIG_INIT(struct mpig_signature), small = {.size = 1};
	mpig_context *x;
	ck_assert_status(mpig_context_create(s.client, "x", &spec, &x), MPIG_OK);
	ck_assert_status(mpig_context_signature(x, 0, &p, NULL), MPIG_OK);
	ck_assert_uint_eq(p.version, 0); // nothing sealed
	ck_assert_status(mpig_context_signature(x, 1, &p, NULL), MPIG_ENOTSUP);
	ck_assert_status(mpig_context_signature(x, 2, &p, NULL), MPIG_EINVAL);
	ck_assert_status(mpig_context_signature(x, 3, &p, NULL), MPIG_EINVAL);
	ck_assert_status(mpig_context_signature(NULL, 0, &p, NULL), MPIG_EINVAL);
	ck_assert_status(mpig_context_signature(x, 0, &small, NULL), MPIG_EINVAL);
	struct mpig_layer got;
	ck_assert_status(mpig_context_layer(x, 0, &got), MPIG_OK);
	ck_assert_int_eq(got.d_k, 64);
	ck_assert_status(mpig_context_layer(x, 3, &got), MPIG_EINVAL);
	ck_assert_status(mpig_context_drop(s.client, "x"), MPIG_OK);
	ck_assert_status(mpig_context_signature(x, 0, &p, NULL), MPIG_ENOENT);
}
END_TEST

// The name belongs to a context of another shape meanwhile: nothing is written, least of all beyond what the caller has room for.
START_TEST(another_context_of_the_name)
{
	const struct mpig_layer before = test_client_layer(4, 2, 64),
				after[2] = {test_client_layer(100, 100, 64), test_client_layer(4, 2, 80)};
	float balance[2 * 64 + 1];
	for (int i = 0; i < 2; i++) {
		struct model_data m;
		struct mpig_spec spec = test_client_spec(&before, 1);
		struct mpig_signature p = MPIG_INIT(struct mpig_signature);
		mpig_context *x, *other;
		ck_assert_status(mpig_context_create(s.client, "x", &spec, &x), MPIG_OK);
		ck_assert_status(mpig_context_drop(s.client, "x"), MPIG_OK);
		model_data_make(&m, &after[i], 1, 300, 3);
		other = test_client_create(&s, "x", &m);
		ck_assert_status(test_client_fill(&s, other, &m, 0, 300, MPIG_COMMIT_SEAL), MPIG_OK);
		for (int k = 0; k <= 2 * 64; k++)
			balance[k] = 7;
		ck_assert_status(mpig_context_signature(x, 0, &p, balance), MPIG_ELOST);
		ck_assert_ptr_nonnull(strstr(mpig_last_error(s.client), "another context"));
		ck_assert_uint_eq(p.kv_heads, 0);
		for (int k = 0; k <= 2 * 64; k++)
			ck_assert_float_eq(balance[k], 7);
		ck_assert_status(mpig_context_signature(other, 0, &p, NULL), MPIG_OK);
		ck_assert_uint_eq(p.version, 1);
		ck_assert_status(mpig_context_drop(s.client, "x"), MPIG_OK);
		mpig_context_close(other);
		mpig_context_close(x);
		model_data_free(&m);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/signature");
	TCase *t = tcase_create("signature");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, a_clients_signatures_are_as_good_as_the_daemons, 0, (int)(sizeof(shapes) / sizeof(shapes[0])));
	tcase_add_test(t, layers_without_signatures);
	tcase_add_test(t, another_context_of_the_name);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
