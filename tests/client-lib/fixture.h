// What the tests of the client library share: a socket in a temporary directory, a spec, a store that outlives its fake daemons.
#ifndef TESTS_CLIENT_LIB_FIXTURE_H
#define TESTS_CLIENT_LIB_FIXTURE_H

#include "tests/client-lib/fake_daemon.h"

#include <check.h>
#include <magicpig.h>

static char fixture_dir[64], fixture_path[96];
static struct fake_store *fixture_store;
static struct fake *fixture_fake; // NULL while no daemon runs

static const struct mpig_layer fixture_layers[3] = {
	{.query_heads = 4, .kv_heads = 2, .d_k = 64, .signature_bits = 2},
	{.kind = MPIG_LAYER_SLIDING, .window = 512},
	{.query_heads = 4, .kv_heads = 1, .d_k = 80, .d_v = 64, .row_dtype = MPIG_F16},
};
static const struct mpig_spec fixture_spec = {.size = sizeof(struct mpig_spec),
                                              .layer_count = 3,
                                              .layers = fixture_layers,
                                              .fingerprint = "a model",
                                              .fingerprint_bytes = 7};

static void fixture_start(uint64_t epoch)
{
	fixture_fake = fake_make(fixture_path, fixture_store, epoch);
	fake_run(fixture_fake);
}

static void fixture_kill(void)
{
	fake_kill(fixture_fake);
	fixture_fake = NULL;
}

static void fixture_setup(void)
{
	snprintf(fixture_dir, sizeof(fixture_dir), "/tmp/mpig-client-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(fixture_dir));
	snprintf(fixture_path, sizeof(fixture_path), "%s/s.sock", fixture_dir);
	fixture_store = calloc(1, sizeof(*fixture_store));
	fixture_start(100);
}

static void fixture_teardown(void)
{
	if (fixture_fake)
		fixture_kill();
	fake_store_free(fixture_store);
	unlink(fixture_path);
	rmdir(fixture_dir);
}

static mpig_client *fixture_connect(int timeout_ms, int reconnect_ms)
{
	struct mpig_connect_options o = {
		.size = sizeof(o), .socket_path = fixture_path, .timeout_ms = timeout_ms, .reconnect_ms = reconnect_ms};
	mpig_client *c = NULL;
	int rc = mpig_connect(&o, &c);
	ck_assert_msg(rc == 0, "connect: %d %s", rc, mpig_last_error(NULL));
	return c;
}

static inline mpig_context *fixture_create(mpig_client *c, const char *name)
{
	mpig_context *x = NULL;
	int rc = mpig_context_create(c, name, &fixture_spec, &x);
	ck_assert_msg(rc == 0, "create: %d %s", rc, mpig_last_error(c));
	return x;
}

static inline mpig_queue *fixture_queue(mpig_client *c, unsigned entries, unsigned slots, size_t slot_bytes)
{
	struct mpig_queue_options o = {.size = sizeof(o), .entries = entries, .slots = slots, .slot_bytes = slot_bytes};
	mpig_queue *q = NULL;
	int rc = mpig_queue_create(c, &o, &q);
	ck_assert_msg(rc == 0, "queue: %d %s", rc, mpig_last_error(c));
	return q;
}

// Deterministic rows: element i of row p of a layer.
static inline float fixture_value(uint64_t p, uint64_t i, int which)
{
	return (float)((p * 131 + i * 7 + (uint64_t)which * 17) % 1009);
}

static float *fixture_rows(uint64_t position, uint64_t count, uint64_t width, int which)
{
	float *rows = malloc(count * width * sizeof(float));
	for (uint64_t p = 0; p < count; p++)
		for (uint64_t i = 0; i < width; i++)
			rows[p * width + i] = fixture_value(position + p, i, which);
	return rows;
}

// Appends rows [position, position + count) to both global layers; the first failure's status.
static inline int fixture_append(mpig_queue *q, mpig_context *x, uint64_t position, uint64_t count)
{
	float *k = fixture_rows(position, count, 128, 0), *v = fixture_rows(position, count, 128, 1);
	int rc = mpig_append(q, x, 0, position, count, MPIG_F32, k, v, NULL, 0);
	rc = rc ? rc : mpig_append(q, x, 2, position, count, MPIG_F32, k, v, NULL, 0);
	free(k);
	free(v);
	return rc;
}

static uint32_t *fixture_tokens(uint64_t count)
{
	uint32_t *tokens = malloc(count * sizeof(*tokens));
	for (uint64_t i = 0; i < count; i++)
		tokens[i] = (uint32_t)(i * 2654435761u % 50000);
	return tokens;
}

static inline int fixture_commit(mpig_queue *q, mpig_context *x, uint64_t position, uint64_t count, int flags)
{
	uint32_t *tokens = fixture_tokens(position + count);
	int rc = mpig_commit(q, x, position, count, tokens + position, flags);
	free(tokens);
	return rc;
}

static int fixture_run(const char *name, void (*add)(TCase *))
{
	Suite *s = suite_create(name);
	TCase *t = tcase_create(name);
	tcase_add_checked_fixture(t, fixture_setup, fixture_teardown);
	tcase_set_timeout(t, 30);
	add(t);
	suite_add_tcase(s, t);
	SRunner *r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	int failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
