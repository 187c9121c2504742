// The data path: payloads, cutting, slots, completions in any order, sleeping and waking, and every way a queue can end.
#include "tests/client-lib/fixture.h"

#include <math.h>
#include <time.h>

#define T 3
#define HEADS 4

struct answer {
	float out[T * HEADS * 64], lse[T * HEADS], v[T * HEADS], a[T * HEADS];
	uint32_t rows[T * HEADS];
	struct mpig_result result;
};

static void answer_init(struct answer *a)
{
	memset(a, 0, sizeof(*a));
	a->result = (struct mpig_result){
		.size = sizeof(a->result), .out = a->out, .lse = a->lse, .error_v = a->v, .error_a = a->a, .rows = a->rows};
}

// Context "book" with 300 committed tokens.
struct scene {
	mpig_client *c;
	mpig_context *x;
	mpig_queue *q;
	float query[T * HEADS * 64];
	struct mpig_attend attend;
};

static void scene_init(struct scene *s, unsigned entries, unsigned slots, size_t slot_bytes)
{
	s->c = fixture_connect(0, 3000);
	s->x = fixture_create(s->c, "book");
	s->q = fixture_queue(s->c, entries, slots, slot_bytes);
	ck_assert_int_eq(fixture_append(s->q, s->x, 0, 300), MPIG_OK);
	ck_assert_int_eq(fixture_commit(s->q, s->x, 0, 300, MPIG_COMMIT_SEAL), MPIG_OK);
	for (int i = 0; i < T * HEADS * 64; i++)
		s->query[i] = (float)i;
	s->attend = (struct mpig_attend){.size = sizeof(s->attend), .q = s->query, .seed = 5, .end = -64, .begin = 4};
}

static struct mpig_sqe logged(unsigned from_last)
{
	pthread_mutex_lock(&fixture_fake->lock);
	struct mpig_sqe e = fixture_fake->log[(atomic_load(&fixture_fake->log_count) - 1 - from_last) % FAKE_LOG];
	pthread_mutex_unlock(&fixture_fake->lock);
	return e;
}

static struct mpig_slot_header served_slot(void)
{
	pthread_mutex_lock(&fixture_fake->lock);
	struct mpig_slot_header h = fixture_fake->last_slot;
	pthread_mutex_unlock(&fixture_fake->lock);
	return h;
}

static unsigned log_now(void)
{
	return atomic_load(&fixture_fake->log_count);
}

static void wait_logged(unsigned count)
{
	while (log_now() < count)
		usleep(100);
}

START_TEST(attend_carries_every_part)
{
	struct scene s;
	struct answer got;
	float window[T * HEADS], scale[T * HEADS], window_out[T * HEADS * 64];
	int8_t signature[T * HEADS * 64];
	scene_init(&s, 8, 4, 65536);
	answer_init(&got);
	ck_assert_int_eq(mpig_attend(s.q, s.x, &s.attend, &got.result), MPIG_OK); // T = 1
	for (int h = 0; h < HEADS; h++) {
		ck_assert_float_eq(got.lse[h], s.query[h * 64]);
		ck_assert_uint_eq(got.rows[h], (unsigned)h);
		for (unsigned j = 0; j < 64; j++)
			ck_assert_float_eq(got.out[h * 64 + (int)j], fake_attend(s.query[h * 64], 0, 5, j));
	}
	ck_assert_float_eq(got.lse[HEADS], 0); // nothing beyond T = 1
	ck_assert_uint_eq(got.result.committed, 300);
	ck_assert_uint_eq(got.result.rows_read, 7);
	struct mpig_sqe e = logged(0);
	ck_assert_uint_eq(e.flags, MPIG_SQE_END_RELATIVE);
	ck_assert_int_eq(e.end, -64);
	ck_assert_uint_eq(e.begin, 4);
	ck_assert_uint_eq(served_slot().query_position, 300); // T = 1: the committed length

	for (int i = 0; i < T * HEADS; i++) {
		window[i] = (float)i * .5f;
		scale[i] = (float)i;
	}
	for (int i = 0; i < T * HEADS * 64; i++) {
		signature[i] = (int8_t)(i % 50);
		window_out[i] = (float)(i % 1000);
	}
	struct mpig_attend a = s.attend;
	a.tokens = T;
	a.end = 200;
	a.window_lse = window;
	a.signature = signature;
	a.signature_scale = scale;
	a.signature_version = 6;
	a.causal = 1;
	a.causal_base = 190;
	a.query_position = 299;
	a.error_target = .02f;
	a.delta = .1f;
	a.window_out = window_out;
	a.budget = .25f;
	a.proposal = MPIG_PROPOSAL_TOPK;
	answer_init(&got);
	ck_assert_int_eq(mpig_attend(s.q, s.x, &a, &got.result), MPIG_OK);
	for (int h = 0; h < T * HEADS; h++) {
		float q0 = s.query[h * 64] + scale[h] * (float)signature[h * 64];
		ck_assert_float_eq(got.lse[h], q0);
		ck_assert_float_eq(got.v[h], .25f);
		ck_assert_float_eq(got.a[h], .5f);
		for (unsigned j = 0; j < 64; j++)
			ck_assert_float_eq(got.out[h * 64 + (int)j],
			                   fake_attend(q0, window[h], 5, j) + window_out[h * 64 + (int)j]);
	}
	e = logged(0);
	ck_assert_uint_eq(e.flags, MPIG_SQE_CAUSAL);
	ck_assert_uint_eq(e.proposal, MPIG_PROPOSAL_TOPK);
	ck_assert_float_eq(e.budget, .25f);
	ck_assert_uint_eq(e.count, T);
	struct mpig_slot_header h = served_slot();
	ck_assert_uint_eq(h.causal_base, 190);
	ck_assert_uint_eq(h.query_position, 299);
	ck_assert_uint_eq(h.signature_version, 6);
	ck_assert_float_eq(h.error_target, .02f);
	ck_assert_float_eq(h.delta, .1f);
	ck_assert_uint_eq(h.present, MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT | MPIG_HAS_SIGNATURE);
	got.result = (struct mpig_result){.size = sizeof(got.result)}; // nothing wanted
	ck_assert_int_eq(mpig_attend(s.q, s.x, &a, &got.result), MPIG_OK);
	mpig_disconnect(s.c);
}
END_TEST

START_TEST(bad_requests_never_reach_the_ring)
{
	struct scene s;
	struct answer got;
	scene_init(&s, 8, 4, 4096);
	answer_init(&got);
	unsigned before = log_now();
	struct mpig_attend a;
#define REFUSED(status, text, ...)                                                                                               \
	do {                                                                                                                     \
		a = s.attend;                                                                                                    \
		__VA_ARGS__;                                                                                                     \
		ck_assert_int_eq(mpig_attend(s.q, s.x, &a, &got.result), status);                                                \
		ck_assert_msg(strstr(mpig_last_error(s.c), text) != NULL, "'%s'", mpig_last_error(s.c));                         \
	} while (0)
	REFUSED(MPIG_EINVAL, "MPIG_INIT", a.size = 0);
	REFUSED(MPIG_EINVAL, "attend.q", a.q = NULL);
	REFUSED(MPIG_EINVAL, "layer = 3: 'book' has layers 0..2", a.layer = 3);
	REFUSED(MPIG_EINVAL, "layer = -1", a.layer = -1);
	REFUSED(MPIG_ENOTSUP, "not global", a.layer = 1);
	REFUSED(MPIG_EINVAL, "dtype = 3", a.dtype = MPIG_I8);
	REFUSED(MPIG_EINVAL, "attend.budget = 1.5", a.budget = 1.5f);
	REFUSED(MPIG_EINVAL, "attend.budget", a.budget = NAN);
	REFUSED(MPIG_EINVAL, "attend.error_target", a.error_target = NAN);
	REFUSED(MPIG_EINVAL, "attend.delta", a.delta = .1f);
	REFUSED(MPIG_EINVAL, "attend.delta", a.delta = 1; a.error_target = .1f);
	REFUSED(MPIG_EINVAL, "attend.delta", a.delta = NAN; a.error_target = .1f);
	REFUSED(MPIG_EINVAL, "attend.window_out", a.window_out = s.query; a.delta = .1f; a.error_target = .1f);
	REFUSED(MPIG_EINVAL, "attend.proposal = 11", a.proposal = 11);
	REFUSED(MPIG_ELIMIT, "at most 4096", a.tokens = 4097);
	REFUSED(MPIG_ERANGE, "attend.begin = 10", a.begin = 10; a.end = 9);
	REFUSED(MPIG_EINVAL, "signature_scale", a.signature = (const int8_t *)s.query);
	struct mpig_layer_shape shape = {4, 2, 64, 64};
	char need[64];
	snprintf(need, sizeof(need), "slot_bytes >= %llu",
	         (unsigned long long)(mpig_attend_layout(&shape, T, 0, 0).bytes + 4095) / 4096 * 4096);
	REFUSED(MPIG_ELIMIT, need, a.tokens = T);
#undef REFUSED
	ck_assert_int_eq(mpig_attend(s.q, s.x, &s.attend, NULL), MPIG_EINVAL);
	ck_assert_int_eq(mpig_attend(s.q, s.x, NULL, &got.result), MPIG_EINVAL);
	ck_assert_int_eq(mpig_attend(s.q, NULL, &s.attend, &got.result), MPIG_EINVAL);
	ck_assert_int_eq(mpig_attend(NULL, s.x, &s.attend, &got.result), MPIG_EINVAL);
	float *k = fixture_rows(0, 300, 128, 0);
	ck_assert_int_eq(mpig_append(s.q, s.x, 0, 0, 0, MPIG_F32, k, k, NULL, 0), MPIG_EINVAL);
	ck_assert_int_eq(mpig_append(s.q, s.x, 0, MPIG_MAX_TOKENS, 1, MPIG_F32, k, k, NULL, 0), MPIG_ERANGE);
	ck_assert_int_eq(mpig_append(s.q, s.x, 0, 0, 1, MPIG_F32, k, NULL, NULL, 0), MPIG_EINVAL);
	ck_assert_int_eq(mpig_append(s.q, s.x, 0, 300, 1, MPIG_F32, k, k, k, 300), MPIG_ELIMIT); // queries fit no slot
	ck_assert_int_lt(mpig_submit_append(s.q, s.x, 0, 300, 300, MPIG_F32, k, k, NULL, 0, 0), 0);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.c), "slot_bytes >= "));
	ck_assert_int_eq(mpig_commit(s.q, s.x, 0, 1, NULL, 0), MPIG_EINVAL);
	ck_assert_int_eq(mpig_commit(s.q, s.x, 0, 0, NULL, 6), MPIG_EINVAL);
	ck_assert_int_eq(mpig_wait(s.q, 12345, 0), MPIG_EINVAL);
	mpig_context *reading;
	mpig_client *other = fixture_connect(0, 0);
	mpig_queue *oq = fixture_queue(other, 4, 4, 4096);
	ck_assert_int_eq(mpig_context_open(other, "book", NULL, &reading), MPIG_OK);
	ck_assert_int_eq(mpig_append(oq, reading, 0, 300, 1, MPIG_F32, k, k, NULL, 0), MPIG_ELEASE);
	ck_assert_int_eq(mpig_append(oq, s.x, 0, 300, 1, MPIG_F32, k, k, NULL, 0), MPIG_EINVAL); // another client's context
	free(k);
	ck_assert_uint_eq(log_now(), before);
	mpig_disconnect(other);
	mpig_disconnect(s.c);
}
END_TEST

// 5,000 rows of 1 KiB through 16 KiB slots; the rows, the token ids and SEAL arrive whole, once and in place.
START_TEST(appends_and_commits_are_cut)
{
	mpig_client *c = fixture_connect(0, 0);
	mpig_context *x = fixture_create(c, "book");
	mpig_queue *q = fixture_queue(c, 4, 3, 16384);
	const uint64_t n = 5000;
	float *k = fixture_rows(0, n, 128, 0), *v = fixture_rows(0, n, 128, 1);
	ck_assert_int_eq(mpig_append(q, x, 0, 0, n, MPIG_F32, k, v, k, 10), MPIG_OK); // with 10 queries of 256 floats
	pthread_mutex_lock(&fixture_fake->lock);
	ck_assert_uint_eq(fixture_fake->last_query_count, 10);
	pthread_mutex_unlock(&fixture_fake->lock);
	unsigned pieces = log_now();
	ck_assert_uint_ge(pieces, n * 1024 / 16384);
	uint64_t next = 0;
	for (unsigned i = 0; i < pieces; i++) {
		struct mpig_sqe e = logged(pieces - 1 - i);
		ck_assert_uint_eq(e.begin, next);
		next += e.count;
	}
	ck_assert_uint_eq(next, n);
	ck_assert_int_eq(mpig_append(q, x, 2, 0, n, MPIG_F32, k, v, NULL, 0), MPIG_OK);
	unsigned before = log_now();
	ck_assert_int_eq(fixture_commit(q, x, 0, n, MPIG_COMMIT_SEAL), MPIG_OK);
	pieces = log_now() - before;
	ck_assert_uint_eq(pieces, 2); // 4,048 ids to a slot
	ck_assert_uint_eq(logged(1).flags, 0);
	ck_assert_uint_eq(logged(0).flags, MPIG_SQE_SEAL);
	uint32_t *tokens = fixture_tokens(n);
	pthread_mutex_lock(&fixture_fake->lock);
	ck_assert_mem_eq(fixture_store->contexts[0].tokens, tokens, n * 4);
	ck_assert_mem_eq(fixture_store->contexts[0].k[0], k, n * 128 * 4);
	ck_assert_mem_eq(fixture_store->contexts[0].v[0], v, n * 128 * 4);
	ck_assert_mem_eq(fixture_store->contexts[0].k[2], k, n * 80 * 4);
	ck_assert_mem_eq(fixture_store->contexts[0].v[2], v, n * 64 * 4);
	pthread_mutex_unlock(&fixture_fake->lock);
	float *rk = calloc(n * 128, 4), *rv = calloc(n * 128, 4);
	ck_assert_int_eq(mpig_read(q, x, 0, 1, n - 1, rk, rv), MPIG_OK);
	ck_assert_mem_eq(rk, k + 128, (n - 1) * 128 * 4);
	ck_assert_mem_eq(rv, v + 128, (n - 1) * 128 * 4);
	ck_assert_int_eq(mpig_read(q, x, 0, 1, n, rk, rv), MPIG_ERANGE);
	ck_assert_int_eq(mpig_commit(q, x, n, 0, NULL, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_int_eq(mpig_truncate(q, x, 10), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), 10);
	free(k), free(v), free(rk), free(rv), free(tokens);
	mpig_disconnect(c);
}
END_TEST

START_TEST(a_failed_piece_ends_the_append)
{
	mpig_client *c = fixture_connect(0, 0);
	mpig_context *x = fixture_create(c, "book");
	mpig_queue *q = fixture_queue(c, 8, 8, 16384);
	float *k = fixture_rows(0, 1000, 128, 0);
	ck_assert_int_eq(mpig_append(q, x, 0, 0, 1000, MPIG_F32, k, k, NULL, 0), MPIG_OK);
	uint64_t rows = logged(1).count;
	atomic_store(&fixture_fake->fail_append_at, (int)(1000 + 3 * rows));
	ck_assert_int_eq(mpig_append(q, x, 0, 1000, 1000, MPIG_F32, k, k, NULL, 0),
	                 MPIG_ENOSPC); // not a later piece's MPIG_ERANGE
	char from[64];
	snprintf(from, sizeof(from), "append, layer 0 of 'book', tokens from %llu,", (unsigned long long)(1000 + 3 * rows));
	ck_assert_msg(strstr(mpig_last_error(c), from) != NULL, "'%s'", mpig_last_error(c));
	atomic_store(&fixture_fake->fail_append_at, -1);
	ck_assert_int_eq(mpig_append(q, x, 0, 1000, 1000, MPIG_F32, k, k, NULL, 0), MPIG_OK); // and all slots came back
	free(k);
	mpig_disconnect(c);
}
END_TEST

// The tokens are committed, but not indexed.
START_TEST(a_commit_that_fails_behind_the_commit)
{
	mpig_client *c = fixture_connect(0, 0);
	mpig_context *x = fixture_create(c, "book");
	mpig_queue *q = fixture_queue(c, 8, 8, 16384);
	float *k = fixture_rows(0, 20, 128, 0);
	uint32_t tokens[20] = {0};
	ck_assert_int_eq(mpig_append(q, x, 0, 0, 20, MPIG_F32, k, k, NULL, 0), MPIG_OK);
	ck_assert_int_eq(mpig_append(q, x, 2, 0, 20, MPIG_F32, k, k, NULL, 0), MPIG_OK);
	atomic_store(&fixture_fake->fail_seal, true);
	ck_assert_int_eq(mpig_commit(q, x, 0, 20, tokens, MPIG_COMMIT_SEAL), MPIG_ENOSPC);
	ck_assert_uint_eq(mpig_context_committed(x), 20);
	ck_assert_msg(strstr(mpig_last_error(c), "(committed 20)") != NULL, "'%s'", mpig_last_error(c));
	atomic_store(&fixture_fake->fail_seal, false);
	ck_assert_int_eq(mpig_commit(q, x, 0, 20, tokens, MPIG_COMMIT_SEAL), MPIG_OK);
	free(k);
	mpig_disconnect(c);
}
END_TEST

START_TEST(no_room_is_eagain)
{
	struct scene s;
	struct answer got[3];
	struct mpig_completion done[8];
	scene_init(&s, 4, 2, 65536);
	atomic_store(&fixture_fake->hold, true);
	for (int i = 0; i < 3; i++)
		answer_init(&got[i]);
	ck_assert_int_gt(mpig_submit_attend(s.q, s.x, &s.attend, &got[0].result, 10), 0);
	ck_assert_int_gt(mpig_submit_attend(s.q, s.x, &s.attend, &got[1].result, 11), 0);
	ck_assert_int_eq(mpig_submit_attend(s.q, s.x, &s.attend, &got[2].result, 12), MPIG_EAGAIN); // two slots
	ck_assert_int_gt(mpig_submit_nop(s.q, 13), 0);
	ck_assert_int_gt(mpig_submit_nop(s.q, 14), 0);
	ck_assert_int_eq(mpig_submit_nop(s.q, 15), MPIG_EAGAIN); // four entries
	ck_assert_int_eq(mpig_poll(s.q, done, 8), 0);
	atomic_store(&fixture_fake->hold, false);
	int n = 0;
	while (n < 3)
		n += mpig_poll(s.q, done + n, 3 - n);
	ck_assert_int_eq(n, 3);
	ck_assert_uint_eq(done[0].user_data, 10);
	ck_assert_uint_eq(done[2].user_data, 13);
	ck_assert_int_eq(mpig_attend(s.q, s.x, &s.attend, &got[2].result), MPIG_OK);
	while (n < 4)
		n += mpig_poll(s.q, done, 8);
	ck_assert_uint_eq(done[0].user_data, 14);
	for (int i = 0; i < 4; i++) // answered and not yet polled: they hold their places
		ck_assert_int_gt(mpig_submit_nop(s.q, 20), 0);
	ck_assert_int_eq(mpig_nop(s.q), MPIG_EAGAIN);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.c), "not yet polled"));
	mpig_disconnect(s.c);
}
END_TEST

static void *release_later(void *fake)
{
	struct fake *f = fake;
	usleep(20000);
	atomic_store(&f->hold, false);
	return NULL;
}

// A blocking call on a queue whose slots are all in flight waits for one instead of failing. Only where room depends on the
// caller's own polling does it say so.
START_TEST(blocking_calls_wait_for_room)
{
	struct scene s;
	struct answer got[2];
	struct mpig_completion done[8];
	pthread_t thread;
	scene_init(&s, 4, 1, 1u << 20);
	atomic_store(&fixture_fake->hold, true);
	answer_init(&got[0]);
	answer_init(&got[1]);
	ck_assert_int_gt(mpig_submit_attend(s.q, s.x, &s.attend, &got[0].result, 1), 0);
	pthread_create(&thread, NULL, release_later, fixture_fake);
	ck_assert_int_eq(mpig_attend(s.q, s.x, &s.attend, &got[1].result), MPIG_OK);
	pthread_join(thread, NULL);
	ck_assert_float_eq(got[1].out[1], fake_attend(0, 0, 5, 1));
	ck_assert_int_eq(mpig_poll(s.q, done, 8), 1);
	ck_assert_uint_eq(done[0].user_data, 1);

	atomic_store(&fixture_fake->hold, true);
	for (unsigned i = 0; i < 4; i++)
		ck_assert_int_gt(mpig_submit_nop(s.q, i), 0);
	pthread_create(&thread, NULL, release_later, fixture_fake);
	ck_assert_int_eq(mpig_nop(s.q), MPIG_EAGAIN);
	pthread_join(thread, NULL);
	ck_assert_int_eq(mpig_poll(s.q, done, 8), 4);
	ck_assert_int_eq(mpig_nop(s.q), MPIG_OK);
	mpig_disconnect(s.c);
}
END_TEST

START_TEST(completions_out_of_order)
{
	struct scene s;
	struct answer got[4];
	struct mpig_completion done[4];
	int64_t ticket[4];
	scene_init(&s, 8, 8, 65536);
	atomic_store(&fixture_fake->reverse, true);
	unsigned before = log_now();
	atomic_store(&fixture_fake->hold, true);
	for (unsigned i = 0; i < 4; i++) {
		answer_init(&got[i]);
		struct mpig_attend a = s.attend;
		a.seed = 100 + i;
		ticket[i] = mpig_submit_attend(s.q, s.x, &a, &got[i].result, 50 + i);
		ck_assert_int_gt(ticket[i], i ? ticket[i - 1] : 0);
	}
	wait_logged(before + 4);
	atomic_store(&fixture_fake->hold, false);
	ck_assert_int_eq(mpig_wait(s.q, ticket[1], 5000), MPIG_OK);
	ck_assert_int_eq(mpig_wait(s.q, ticket[1], 5000), MPIG_EINVAL); // consumed
	ck_assert_int_eq(mpig_wait(s.q, ticket[0], 5000), MPIG_OK);
	ck_assert_int_eq(mpig_poll(s.q, done, 4), 2); // the others stayed for poll, in the order they came
	ck_assert_uint_eq(done[0].user_data, 53);
	ck_assert_uint_eq(done[1].user_data, 52);
	for (unsigned i = 0; i < 4; i++)
		ck_assert_float_eq(got[i].out[3], fake_attend(0, 0, 100 + i, 3));
	mpig_disconnect(s.c);
}
END_TEST

START_TEST(deadlines)
{
	struct scene s;
	struct answer got;
	scene_init(&s, 8, 2, 65536);
	atomic_store(&fixture_fake->hold, true);
	answer_init(&got);
	int64_t ticket = mpig_submit_attend(s.q, s.x, &s.attend, &got.result, 1);
	ck_assert_int_eq(mpig_wait(s.q, ticket, 1), MPIG_ETIMEDOUT);
	ck_assert_int_eq(mpig_wait(s.q, ticket, 30), MPIG_ETIMEDOUT); // long enough to sleep
	atomic_store(&fixture_fake->hold, false);
	ck_assert_int_eq(mpig_wait(s.q, ticket, -1), MPIG_OK);
	ck_assert_float_eq(got.out[1], fake_attend(0, 0, 5, 1));

	struct mpig_queue_options o = {.size = sizeof(o), .entries = 4, .slots = 1, .timeout_ms = 30};
	mpig_queue *hasty;
	ck_assert_int_eq(mpig_queue_create(s.c, &o, &hasty), MPIG_OK);
	atomic_store(&fixture_fake->hold, true);
	answer_init(&got);
	ck_assert_int_eq(mpig_attend(hasty, s.x, &s.attend, &got.result), MPIG_ETIMEDOUT);
	atomic_store(&fixture_fake->hold, false);
	struct answer second;
	answer_init(&second);
	s.attend.seed = 9;
	while (mpig_attend(hasty, s.x, &s.attend, &second.result) == MPIG_ETIMEDOUT) // until the first has given its slot back
		;
	ck_assert_float_eq(second.out[1], fake_attend(0, 0, 9, 1));
	ck_assert_float_eq(got.out[1], 0); // the abandoned answer was not written
	mpig_disconnect(s.c);
}
END_TEST

// With the daemon asleep on the eventfd, and the client on the futex, nothing is lost in either direction.
START_TEST(sleeping_and_waking)
{
	struct scene s;
	scene_init(&s, 4, 2, 65536);
	struct mpig_queue_options o = {.size = sizeof(o), .entries = 4, .spin_us = 1};
	mpig_queue *q;
	ck_assert_int_eq(mpig_queue_create(s.c, &o, &q), MPIG_OK);
	atomic_store(&fixture_fake->park, true);
	for (int i = 0; i < 2000; i++) {
		ck_assert_int_eq(mpig_nop(q), MPIG_OK);
		if (i % 8 == 0)
			usleep(100); // long enough for the daemon to fall asleep
	}
	ck_assert_uint_gt(atomic_load(&fixture_fake->wakeups), 10);
	mpig_disconnect(s.c);
}
END_TEST

enum ending { KILLED, CLOSED, BAD_SLOT, BAD_TICKET, BAD_TAIL, ENDINGS };

static void end_queue(enum ending how)
{
	struct mpig_queue_header *shared;
	switch (how) {
	case KILLED:
		fixture_kill();
		fixture_start(101);
		break;
	case CLOSED:
	case BAD_TAIL:
		pthread_mutex_lock(&fixture_fake->lock);
		shared = fixture_fake->queues[0].base;
		if (how == CLOSED)
			mpig_flag_set(&shared->sq_flags, MPIG_SQ_CLOSED);
		else
			__atomic_store_n(&shared->cq_tail, shared->cq_tail + 1000, __ATOMIC_RELEASE);
		pthread_mutex_unlock(&fixture_fake->lock);
		break;
	case BAD_SLOT:
		atomic_store(&fixture_fake->bad_slot, true);
		atomic_store(&fixture_fake->hold, false);
		break;
	default:
		atomic_store(&fixture_fake->bad_ticket, true);
		atomic_store(&fixture_fake->hold, false);
	}
}

// However a queue ends: what is in flight ends with a clear status, nothing is written, and the next call finds a whole queue.
START_TEST(endings)
{
	enum ending how = (enum ending)(_i % ENDINGS);
	bool by_poll = _i >= ENDINGS;
	struct scene s;
	struct answer got[2];
	struct mpig_completion done[4];
	scene_init(&s, 8, 2, 65536);
	unsigned before = log_now();
	atomic_store(&fixture_fake->hold, true);
	int64_t tickets[2];
	for (int i = 0; i < 2; i++) {
		answer_init(&got[i]);
		tickets[i] = mpig_submit_attend(s.q, s.x, &s.attend, &got[i].result, 70 + (uint64_t)i);
		ck_assert_int_gt(tickets[i], 0);
	}
	wait_logged(before + 2);
	end_queue(how);
	int expected = how == KILLED || how == CLOSED ? MPIG_ERETRY : MPIG_EPROTO;
	if (by_poll) {
		int n = 0;
		while (n < 2)
			n += mpig_poll(s.q, done + n, 4 - n);
		ck_assert_int_eq(n, 2);
		for (int i = 0; i < 2; i++) {
			ck_assert_int_eq(done[i].status, expected);
			ck_assert(done[i].user_data == 70 || done[i].user_data == 71);
		}
		ck_assert_uint_ne(done[0].user_data, done[1].user_data);
	} else {
		ck_assert_int_eq(mpig_wait(s.q, tickets[1], 20000), expected);
		ck_assert_int_eq(mpig_wait(s.q, tickets[0], 20000), expected);
	}
	ck_assert_float_eq(got[0].out[1], 0);
	atomic_store(&fixture_fake->hold, false);
	atomic_store(&fixture_fake->bad_slot, false);
	atomic_store(&fixture_fake->bad_ticket, false);
	unsigned adopted = atomic_load(&fixture_fake->adoptions);
	for (int i = 0; i < 10; i++) // more than there are slots or entries: all are free again
		ck_assert_int_eq(mpig_attend(s.q, s.x, &s.attend, &got[0].result), MPIG_OK);
	ck_assert_float_eq(got[0].out[1], fake_attend(0, 0, 5, 1));
	ck_assert_float_eq(got[1].out[1], 0);
	adopted = atomic_load(&fixture_fake->adoptions) - adopted;
	ck_assert_uint_eq(adopted, how == KILLED || how == CLOSED ? 1 : 0); // a region in doubt is not handed back
	mpig_disconnect(s.c);
}
END_TEST

START_TEST(refused_adoption_gets_a_new_region)
{
	struct scene s;
	struct answer got;
	scene_init(&s, 8, 2, 65536);
	answer_init(&got);
	fixture_kill();
	fixture_start(101);
	atomic_store(&fixture_fake->refuse_adoption, true);
	ck_assert_int_eq(mpig_ping(s.c), MPIG_OK);
	ck_assert_int_eq(mpig_attend(s.q, s.x, &s.attend, &got.result), MPIG_OK);
	ck_assert_float_eq(got.out[1], fake_attend(0, 0, 5, 1));
	ck_assert_uint_eq(atomic_load(&fixture_fake->adoptions), 0);
	ck_assert_uint_eq(atomic_load(&fixture_fake->regions), 1);
	mpig_disconnect(s.c);
}
END_TEST

// A region another daemon wrote, or nobody re-initialised, is not used.
START_TEST(regions_of_another_epoch_are_refused)
{
	mpig_client *c = fixture_connect(0, 0);
	mpig_queue *q = NULL;
	atomic_store(&fixture_fake->other_epoch, true);
	ck_assert_int_eq(mpig_queue_create(c, NULL, &q), MPIG_EPROTO);
	ck_assert_ptr_null(q);
	atomic_store(&fixture_fake->other_epoch, false);
	ck_assert_int_eq(mpig_queue_create(c, NULL, &q), MPIG_OK);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
	ck_assert_uint_eq(atomic_load(&fixture_fake->destroyed), 1); // the daemon was told to take the first one back
	mpig_disconnect(c);
}
END_TEST

// A queue that never sleeps notices its daemon's death as well.
START_TEST(death_is_noticed_while_spinning)
{
	mpig_client *c = fixture_connect(0, 0);
	struct mpig_queue_options o = {.size = sizeof(o), .entries = 4, .spin_us = 4000000000u};
	mpig_queue *q;
	ck_assert_int_eq(mpig_queue_create(c, &o, &q), MPIG_OK);
	atomic_store(&fixture_fake->hold, true);
	int64_t ticket = mpig_submit_nop(q, 1);
	ck_assert_int_gt(ticket, 0);
	fixture_kill();
	ck_assert_int_eq(mpig_wait(q, ticket, -1), MPIG_ERETRY);
	mpig_disconnect(c);
}
END_TEST

// Rows acknowledged by a daemon that died before their commit: the commit says so instead of failing obscurely or lying.
START_TEST(rows_lost_before_commit)
{
	struct scene s;
	scene_init(&s, 8, 2, 1u << 20);
	ck_assert_int_eq(fixture_append(s.q, s.x, 300, 5), MPIG_OK);
	fixture_kill();
	fixture_start(101);
	ck_assert_int_eq(mpig_ping(s.c), MPIG_OK);
	ck_assert_int_eq(fixture_commit(s.q, s.x, 300, 5, 0), MPIG_ERETRY);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(s.c), "append again from token 300"));
	ck_assert_int_eq(fixture_append(s.q, s.x, 300, 5), MPIG_OK);
	ck_assert_int_eq(fixture_commit(s.q, s.x, 300, 5, 0), MPIG_OK);
	fixture_kill(); // all committed: nothing is lost this time
	fixture_start(102);
	ck_assert_int_eq(mpig_ping(s.c), MPIG_OK);
	ck_assert_int_eq(fixture_commit(s.q, s.x, 300, 5, 0), MPIG_OK);
	mpig_disconnect(s.c);
}
END_TEST

// A handle may name another context only once every entry that carries it is home.
START_TEST(closing_with_requests_in_flight)
{
	struct scene s;
	struct answer got;
	struct mpig_completion done;
	scene_init(&s, 8, 2, 65536);
	unsigned before = log_now();
	atomic_store(&fixture_fake->hold, true);
	answer_init(&got);
	ck_assert_int_gt(mpig_submit_attend(s.q, s.x, &s.attend, &got.result, 1), 0);
	wait_logged(before + 1);
	uint32_t handle = logged(0).handle;
	mpig_context_close(s.x);
	mpig_context *y = fixture_create(s.c, "next");
	ck_assert_int_gt(mpig_submit_attend(s.q, y, &s.attend, &got.result, 2), 0);
	wait_logged(before + 2);
	ck_assert_uint_ne(logged(0).handle, handle);
	atomic_store(&fixture_fake->hold, false);
	while (mpig_poll(s.q, &done, 1) == 0)
		;
	ck_assert_uint_eq(done.user_data, 1);
	ck_assert_int_eq(done.status, MPIG_ENOENT); // the daemon knows the handle no more
	while (mpig_poll(s.q, &done, 1) == 0)
		;
	ck_assert_int_eq(done.status, MPIG_OK);
	mpig_context *z = fixture_create(s.c, "after");
	ck_assert_int_eq(mpig_attend(s.q, z, &s.attend, &got.result), MPIG_OK);
	ck_assert_uint_eq(logged(0).handle, handle); // free again
	mpig_disconnect(s.c);
}
END_TEST

struct worker {
	pthread_t thread;
	mpig_client *c;
	mpig_context *x;
	int failures, retries, answers;
};

static void *attend_much(void *arg)
{
	struct worker *w = arg;
	float query[HEADS * 64] = {0}, out[HEADS * 64];
	mpig_queue *q;
	struct mpig_queue_options o = {.size = sizeof(o), .entries = 4, .slot_bytes = 65536, .spin_us = 20};
	w->failures = mpig_queue_create(w->c, &o, &q) != MPIG_OK;
	for (uint64_t i = 0; i < 3000 && !w->failures; i++) {
		struct mpig_attend a = {.size = sizeof(a), .q = query, .seed = i, .end = 300};
		struct mpig_result r = {.size = sizeof(r), .out = out};
		int rc = mpig_attend(q, w->x, &a, &r);
		if (rc == MPIG_ERETRY)
			w->retries++;
		else if (rc != MPIG_OK || out[3] != fake_attend(0, 0, i, 3))
			w->failures++;
		else
			w->answers++;
	}
	if (!w->failures)
		mpig_queue_destroy(q);
	return NULL;
}

// Threads with a queue each on one client, the daemon restarted under them: answers or MPIG_ERETRY, nothing else.
START_TEST(threads_through_restarts)
{
	struct scene s;
	struct worker workers[3];
	scene_init(&s, 4, 2, 1u << 20);
	for (int i = 0; i < 3; i++) {
		workers[i] = (struct worker){.c = s.c, .x = s.x};
		pthread_create(&workers[i].thread, NULL, attend_much, &workers[i]);
	}
	for (uint64_t i = 0; i < 3; i++) {
		wait_logged(log_now() + 300);
		fixture_kill();
		fixture_start(101 + i);
	}
	for (int i = 0; i < 3; i++) {
		pthread_join(workers[i].thread, NULL);
		ck_assert_int_eq(workers[i].failures, 0);
		ck_assert_int_le(workers[i].retries, 3);
		ck_assert_int_ge(workers[i].answers, 2997);
	}
	mpig_disconnect(s.c);
}
END_TEST

static void add_tests(TCase *t)
{
	tcase_add_test(t, attend_carries_every_part);
	tcase_add_test(t, bad_requests_never_reach_the_ring);
	tcase_add_test(t, appends_and_commits_are_cut);
	tcase_add_test(t, a_failed_piece_ends_the_append);
	tcase_add_test(t, a_commit_that_fails_behind_the_commit);
	tcase_add_test(t, no_room_is_eagain);
	tcase_add_test(t, blocking_calls_wait_for_room);
	tcase_add_test(t, completions_out_of_order);
	tcase_add_test(t, deadlines);
	tcase_add_test(t, sleeping_and_waking);
	tcase_add_loop_test(t, endings, 0, 2 * ENDINGS);
	tcase_add_test(t, refused_adoption_gets_a_new_region);
	tcase_add_test(t, regions_of_another_epoch_are_refused);
	tcase_add_test(t, death_is_noticed_while_spinning);
	tcase_add_test(t, rows_lost_before_commit);
	tcase_add_test(t, closing_with_requests_in_flight);
	tcase_add_test(t, threads_through_restarts);
}

int main(void)
{
	return fixture_run("queue", add_tests);
}
