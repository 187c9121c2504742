// What integration tests do over and over with the public API: connect, fill a context with model data, compare its answers
// with the truth. Every function fails the test when a step it takes for granted fails.
#ifndef MPIG_TESTS_LIB_CLIENT_H
#define MPIG_TESTS_LIB_CLIENT_H

#include <magicpig.h>

#include "tests/lib/daemon.h"

// A status by name in the failure's text.
#define ck_assert_status(call, expected)                                                                                         \
	do {                                                                                                                     \
		int status_ = (int)(call), expected_ = (expected);                                                               \
		ck_assert_msg(status_ == expected_, #call ": %d (%s), not %d (%s)", status_, mpig_strerror(status_), expected_,  \
		              mpig_strerror(expected_));                                                                         \
	} while (0)

struct test_client {
	mpig_client *client;
	mpig_queue *queue;
};
void test_client_open(struct test_client *s, const struct test_daemon *d);
// With limits on waiting, so that a test of a vanished daemon ends soon: calls wait timeout_ms and reconnect for reconnect_ms
// (-1 = never).
void test_client_open_hasty(struct test_client *s, const struct test_daemon *d, int timeout_ms, int reconnect_ms);
void test_client_close(struct test_client *s);

// Model data: a function of seed, layer and absolute token, so that any part of a context can be made again.
struct model_data {
	uint64_t seed, tokens;
	struct mpig_layer layer; // all layers alike
	int layers;
	float *k, *v;  // [layers][tokens][kv_heads][d], bf16-exact
	uint32_t *ids; // [tokens]
};
void model_data_make(struct model_data *m, const struct mpig_layer *layer, int layers, uint64_t tokens, uint64_t seed);
void model_data_free(struct model_data *m);
const float *model_data_k(const struct model_data *m, int layer, uint64_t token);
const float *model_data_v(const struct model_data *m, int layer, uint64_t token);

// A global layer of bf16 rows with a 2-bit signature index.
struct mpig_layer test_client_layer(int query_heads, int kv_heads, int d);
extern const char test_client_fingerprint[8];
struct mpig_spec test_client_spec(const struct mpig_layer *layers, int count);
mpig_context *test_client_create(struct test_client *s, const char *name, const struct model_data *m);
// Appends tokens [from, to) of all layers; test_client_fill commits them too.
int test_client_append(struct test_client *s, mpig_context *x, const struct model_data *m, uint64_t from, uint64_t to);
int test_client_fill(struct test_client *s, mpig_context *x, const struct model_data *m, uint64_t from, uint64_t to, int flags);
// Opens by name.
int test_client_find(struct test_client *s, const char *name, int mode, mpig_context **x);
// Asserts that a dense pass over rows [begin, end) of each layer agrees with the double-precision reference.
void test_client_assert_dense(struct test_client *s, mpig_context *x, const struct model_data *m, uint64_t begin, uint64_t end);
// Status of one dense ATTEND of a random query over the whole context (layer 0).
int test_client_attend(struct test_client *s, mpig_context *x, const struct model_data *m);

#endif
