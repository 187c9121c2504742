// Reading ahead: what is foreseen, what is listed for whom, when it stops, and that answers do not depend on it.
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/engine/ahead.h"
#include "daemon/engine/job.h"
#include "daemon/store/pool.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 64, QUERY_HEADS = 4, KV_HEADS = 2, ROWS = 6000, LAYERS = 3, WORKERS = 5, LINE = 64 };
static const uint64_t POOL = UINT64_C(256) << 20, PLENTY = UINT64_C(1) << 24;

static struct fixture f;
static struct context *c;
static float *q;

static void engine(uint64_t bytes)
{
	fixture_engine(&f, &(struct engine_options){.workers = WORKERS, .ahead_bytes = bytes});
}

static struct context *make_context(const char *name, uint64_t seed)
{
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, MPIG_BF16);
	layer.signature_bits = 2;
	struct context *made = fixture_context(&f, name, &layer, LAYERS, seed);
	float *rows = malloc((size_t)ROWS * KV_HEADS * D * sizeof(*rows));
	ck_assert_ptr_nonnull(rows);
	for (uint32_t l = 0; l < LAYERS; l++) {
		fill_normal(rows, (size_t)ROWS * KV_HEADS * D, seed + l, 1);
		ck_assert_int_eq(fixture_append(&f, made, l, 0, ROWS, rows, rows, q, 1).status, 0);
	}
	ck_assert_int_eq(fixture_commit(&f, made, 0, ROWS, true).status, 0);
	free(rows);
	return made;
}

static void setup(void)
{
	fixture_start(&f, POOL, UINT32_MAX);
	ck_assert_ptr_nonnull(q = malloc(QUERY_HEADS * D * sizeof(*q)));
	fill_normal(q, QUERY_HEADS * D, 3, 2);
	c = make_context("ahead", 7);
	engine(PLENTY);
}

static void teardown(void)
{
	context_unref(c);
	free(q);
	fixture_stop(&f);
}

static struct job *plan(struct context *of, uint32_t layer, uint64_t seed)
{
	struct mpig_layer_shape s = context_layer(of, layer)->shape;
	struct mpig_payload_layout l = mpig_attend_layout(&s, 1, MPIG_F32, 0);
	memcpy(f.slot + l.q, q, QUERY_HEADS * D * sizeof(*q));
	struct mpig_sqe e = {
		.op = MPIG_OP_ATTEND, .layer = (uint16_t)layer, .count = 1, .end = ROWS, .seed = seed, .budget = .01f};
	struct engine_request r = {
		.entry = e, .payload_in = f.slot, .payload_out = f.slot, .slot_bytes = f.slot_bytes, .context = of};
	struct job *job = job_create(f.engine, &r);
	ck_assert_ptr_nonnull(job);
	return job;
}

static void finish(struct job *job, uint32_t worker)
{
	while (job_run(job, worker, WORKERS, f.scratch[0]) != JOB_DONE)
		;
	ck_assert_msg(job_result(job)->status == 0, "%s", job_result(job)->why);
}

static bool foresee(struct job *job)
{
	struct engine_foresight next;
	bool foreseen = job_learn(job, &next);
	engine_list_ahead(f.engine, job->request.context, &next);
	return foreseen;
}

// One request from end to end; whether it had been foreseen.
static bool ask(struct context *of, uint32_t layer)
{
	struct job *job = plan(of, layer, layer);
	finish(job, layer % WORKERS);
	bool foreseen = foresee(job);
	ck_assert(!foresee(job)); // once
	job_destroy(job);
	return foreseen;
}

static uint64_t read_all(uint32_t worker)
{
	uint64_t bytes = 0;
	for (uint32_t n; (n = engine_read_ahead(f.engine, worker)) > 0; bytes += n)
		ck_assert_uint_le(n, AHEAD_STEP * LINE);
	return bytes;
}

static uint64_t read_everybody(void)
{
	uint64_t bytes = 0;
	for (uint32_t w = 0; w < WORKERS; w++)
		bytes += read_all(w);
	return bytes;
}

// Rounds of all layers in order; the requests of the last one that were foreseen.
static uint32_t rounds(struct context *of, uint32_t n)
{
	uint32_t foreseen = 0;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t l = 0; l < LAYERS; l++)
			foreseen += ask(of, l) && i + 1 == n;
	return foreseen;
}

// ---- what is foreseen ------------------------------------------------------------------------------------------------
START_TEST(a_cycle_of_layers_is_foreseen_in_its_third_round)
{
	ck_assert_uint_eq(rounds(c, 2), 0);
	ck_assert_uint_eq(rounds(c, 2),
	                  LAYERS); // the first of these sees the step from the last layer to the first for the second time
	ck_assert_uint_gt(read_everybody(), 0);
}
END_TEST

START_TEST(what_followed_once_only_is_not)
{
	ck_assert_uint_eq(rounds(c, 1), 0);
	ck_assert_uint_eq(read_everybody(), 0);
	ask(c, 0), ask(c, 2), ask(c, 0), ask(c, 1); // 0 -> 1, 2, 1
	ask(c, 0);
	ck_assert_uint_eq(read_everybody(), 0);
}
END_TEST

START_TEST(another_order_is_learned)
{
	rounds(c, 4);
	read_everybody();
	for (int i = 0; i < 3; i++)
		ask(c, 2), ask(c, 1), ask(c, 0);
	ck_assert(ask(c, 2));
	ck_assert(ask(c, 1));
	ck_assert_uint_gt(read_everybody(), 0);
}
END_TEST

START_TEST(contexts_are_learned_apart)
{
	struct context *other = make_context("other", 8);
	for (int i = 0; i < 4; i++)
		for (uint32_t l = 0; l < LAYERS; l++) {
			bool one = ask(c, l), two = ask(other, LAYERS - 1 - l);
			ck_assert(i < 3 || (one && two));
		}
	context_unref(other);
}
END_TEST

START_TEST(nothing_is_listed_for_requests_that_scan_no_codes)
{
	for (int i = 0; i < 12; i++) {
		struct mpig_sqe e = {.op = MPIG_OP_ATTEND,
		                     .layer = (uint16_t)(i % LAYERS),
		                     .count = 1,
		                     .end = 64,
		                     .proposal = MPIG_PROPOSAL_DENSE};
		struct engine_request r = {
			.entry = e, .payload_in = f.slot, .payload_out = f.slot, .slot_bytes = f.slot_bytes, .context = c};
		struct job *job = job_create(f.engine, &r);
		finish(job, 0);
		ck_assert(!foresee(job));
		job_destroy(job);
	}
	ck_assert_uint_eq(read_everybody(), 0);
}
END_TEST

// ---- what is listed --------------------------------------------------------------------------------------------------
// Lines of a lane, each once or more, marked in a map of the pool.
static uint8_t *map;
static uintptr_t map_base;

static uint64_t mark(uint32_t worker, uint8_t as)
{
	struct ahead_lane *lane = &f.engine->ahead->lane[worker];
	uint64_t lines = 0;
	for (uint32_t i = 0; i < atomic_load(&lane->count); i++) {
		uint64_t run = atomic_load(&lane->run[i]);
		for (uint64_t n = 0; n < (run & 0xffff); n++, lines++) {
			uint64_t at = ((run >> 16) + n) * LINE - map_base;
			ck_assert_uint_lt(at, POOL);
			map[at / LINE] |= as;
		}
	}
	return lines;
}

static void expect(const void *from, size_t bytes)
{
	uintptr_t at = (uintptr_t)from - map_base;
	for (uintptr_t line = at / LINE; line <= (at + bytes - 1) / LINE; line++)
		map[line] |= 2;
}

static void map_pool(void)
{
	map_base = (uintptr_t)pool_at(f.pool, 0);
	ck_assert_ptr_nonnull(map = calloc(POOL / LINE, 1));
}

START_TEST(all_codes_of_the_next_layer_are_listed_and_nothing_else)
{
	map_pool();
	rounds(c, 3);
	ask(c, 0), ask(c, 1);
	for (uint32_t w = 0; w < WORKERS; w++)
		mark(w, 1);
	struct layer_view view;
	ck_assert_int_eq(layer_view_get(f.store, c, 2, 0, ROWS, &view), 0);
	for (uint32_t g = 0; g < KV_HEADS; g++)
		for (uint32_t s = 0; s < view.span_count; s++) {
			const struct span *span = &view.strip[g].spans[s];
			ck_assert_ptr_nonnull(span->codes);
			expect(span->codes, sig_code_bytes(D, 2, (span->n + SIG_GROUP - 1) & ~(SIG_GROUP - 1)));
			expect(span->factors, span->n * sizeof(*span->factors));
		}
	layer_view_free(f.store, &view);
	uint64_t listed = 0;
	for (uint64_t i = 0; i < POOL / LINE; i++) {
		ck_assert_msg(map[i] == 0 || map[i] == 3, "line %llu: %s", (unsigned long long)i,
		              map[i] == 1 ? "is listed, but no code" : "is code, but not listed");
		listed += map[i] != 0;
	}
	ck_assert_uint_ge(listed, (uint64_t)ROWS * KV_HEADS * (D / 4 + 2) / LINE);
	free(map);
}
END_TEST

// What a worker fetches is what it will claim first, and no more than it may.
START_TEST(a_lane_is_no_longer_than_asked_for)
{
	for (uint64_t bytes = 4096; bytes <= 1 << 16; bytes *= 4) {
		engine_set_ahead(f.engine, bytes);
		rounds(c, 3);
		for (uint32_t w = 0; w < WORKERS; w++)
			ck_assert_uint_le(read_all(w), bytes);
		ask(c, 0);
		ck_assert_uint_gt(read_all(0), bytes / 2);
	}
	engine_set_ahead(f.engine, 0);
	ask(c, 1);
	ck_assert_uint_eq(read_everybody(), 0);
	ck_assert_uint_eq(engine_read_ahead(f.engine, WORKERS + 3), 0); // nobody's
}
END_TEST

// Workers' places cut the units of all groups into parts, in order, with none left over.
START_TEST(places_cover_all_units)
{
	static const uint32_t some[] = {1, 2, 3, 7, 8, 15, 16, 17, 24, 64, 100, 255};
	const uint32_t n = sizeof(some) / sizeof(some[0]);
	for (uint32_t a = 0; a < n; a++)
		for (uint32_t b = 0; b < n; b++)
			for (uint32_t w = 0; w < n; w++) {
				uint32_t groups = some[a], units = some[b], workers = some[w];
				uint64_t before = 0;
				for (uint32_t i = 0; i <= workers; i++) {
					struct place p = place_of(i, workers, groups, units);
					uint64_t at = (uint64_t)p.group * units + p.unit;
					ck_assert_uint_ge(at, before);
					ck_assert(i < workers ? p.group < groups && p.unit < units
					                      : at == (uint64_t)groups * units);
					before = at;
				}
				uint32_t end = 0;
				for (uint32_t s = 0; s < sections(units); s++) {
					ck_assert_uint_eq(section_begin(units, s), end);
					end = section_begin(units, s + 1);
				}
				ck_assert_uint_eq(end, units);
			}
}
END_TEST

// ---- when it stops ---------------------------------------------------------------------------------------------------
START_TEST(a_request_stops_it)
{
	rounds(c, 4);
	ck_assert_uint_gt(engine_read_ahead(f.engine, 1), 0);
	struct job *job = plan(c, 1, 5); // not even the one that was expected
	for (uint32_t w = 0; w < WORKERS; w++)
		ck_assert_uint_eq(engine_read_ahead(f.engine, w), 0);
	finish(job, 2);
	for (uint32_t w = 0; w < WORKERS; w++)
		ck_assert_uint_eq(engine_read_ahead(f.engine, w), 0); // what was left is not taken up again
	foresee(job);
	job_destroy(job);
}
END_TEST

// The next request may be there before the last one's worker comes to think of it.
START_TEST(a_request_that_is_there_is_not_read_ahead_for)
{
	rounds(c, 4);
	struct job *first = plan(c, 0, 1);
	finish(first, 0);
	struct job *second = plan(c, 1, 2);
	ck_assert(foresee(first));
	ck_assert_uint_eq(read_everybody(), 0);
	finish(second, 0);
	ck_assert(foresee(second));
	ck_assert_uint_gt(read_everybody(), 0); // of layer 2
	job_destroy(first);
	job_destroy(second);
}
END_TEST

START_TEST(nothing_is_foreseen_while_units_are_left)
{
	rounds(c, 4);
	struct job *job = plan(c, 0, 1);
	ck_assert(!foresee(job));
	ck_assert_int_eq(job_run(job, 0, WORKERS, f.scratch[0]), JOB_RAN);
	ck_assert(!foresee(job));
	finish(job, 0);
	ck_assert(foresee(job));
	job_destroy(job);
}
END_TEST

// Of two contexts in one batch, the first one to be done is the one that lists; where its lists leave room the second adds to them.
START_TEST(a_batch_shares_the_lists)
{
	struct context *other = make_context("other", 8);
	for (int i = 0; i < 4; i++)
		for (uint32_t l = 0; l < LAYERS; l++) {
			struct job *one = plan(c, l, 1), *two = plan(other, l, 2);
			finish(one, 0);
			foresee(one);
			uint32_t runs = atomic_load(&f.engine->ahead->lane[0].count);
			finish(two, 1);
			foresee(two);
			if (i == 3)
				ck_assert_uint_gt(atomic_load(&f.engine->ahead->lane[0].count), runs);
			job_destroy(one);
			job_destroy(two);
			read_everybody();
		}
	context_unref(other);
}
END_TEST

// Where nobody ever waits lists are not worth their making.
START_TEST(lists_that_nobody_reads_become_rare)
{
	rounds(c, 40);
	uint32_t made = 0;
	for (int i = 0; i < 66; i++) {
		ask(c, (uint32_t)i % LAYERS);
		made += (uint32_t)(atomic_load(&f.engine->ahead->list) & 1);
	}
	ck_assert_uint_gt(made, 0);
	ck_assert_uint_le(made, 16);
	for (uint32_t more = 1; more < 4; more++) // whatever else is planned between
		for (int i = made = 0; i < 66 || !made; i++) {
			for (uint32_t n = 0; n < more; n++) {
				struct job *job = plan(c, 0, 1);
				finish(job, 0);
				job_destroy(job);
			}
			ask(c, (uint32_t)i % LAYERS);
			made += (uint32_t)(atomic_load(&f.engine->ahead->list) & 1);
			ck_assert_int_lt(i, 200);
		}
	while (!read_everybody())
		ask(c, 0), ask(c, 1), ask(c, 2);
	for (uint32_t l = 0; l < LAYERS; l++) {
		ask(c, l);
		ck_assert_uint_gt(read_everybody(), 0);
	}
}
END_TEST

// ---- what it must not do ---------------------------------------------------------------------------------------------
START_TEST(answers_are_the_same_bits)
{
	struct answer plain[2 * LAYERS];
	f.threads = 4;
	for (int with = 0; with < 2; with++) {
		engine(with ? PLENTY : 0);
		for (uint32_t i = 0; i < 5 * LAYERS; i++) {
			struct mpig_sqe e = {.count = 1, .layer = (uint16_t)(i % LAYERS), .end = ROWS, .seed = i};
			struct mpig_slot_header h = {.error_target = .05f, .query_position = i};
			struct answer a = fixture_attend(&f, c, &e, &h, q);
			ck_assert_int_eq(a.result.status, 0);
			for (uint32_t w = 0; w < WORKERS; w++)
				engine_read_ahead(f.engine, w);
			ask(c, i % LAYERS);
			uint64_t read = read_everybody();
			ck_assert(with ? i < 4 * LAYERS || read > 0 : read == 0);
			if (i < 3 * LAYERS) {
				answer_free(&a);
				continue;
			}
			struct answer *p = &plain[i - 3 * LAYERS];
			if (!with) {
				*p = a;
				continue;
			}
			ck_assert_mem_eq(a.out, p->out, QUERY_HEADS * D * sizeof(float));
			ck_assert_mem_eq(a.lse, p->lse, QUERY_HEADS * sizeof(float));
			ck_assert_mem_eq(a.rows, p->rows, QUERY_HEADS * sizeof(uint32_t));
			answer_free(&a);
		}
	}
	for (int i = 0; i < 2 * LAYERS; i++)
		answer_free(&plain[i]);
}
END_TEST

// Lists hold nothing: a dropped context's memory is free while they are read.
START_TEST(a_dropped_context_is_not_kept)
{
	uint64_t before = pool_used(f.pool);
	struct context *other = make_context("other", 8);
	rounds(other, 4);
	ck_assert_uint_gt(engine_read_ahead(f.engine, 0), 0);
	struct credentials who = {0};
	char why[MPIG_TEXT_BYTES];
	context_release(f.store, other, 1);
	ck_assert_int_eq(store_context_drop(f.store, &who, "other", why), 0);
	context_unref(other);
	ck_assert_uint_eq(pool_used(f.pool), before);
	ck_assert_uint_gt(read_everybody(), 0);
}
END_TEST

// Threads that read ahead beside one that answers.
struct reader {
	uint32_t worker;
	atomic_bool *stop;
	uint64_t bytes;
};

static void *keep_reading(void *argument)
{
	struct reader *r = argument;
	while (!atomic_load_explicit(r->stop, memory_order_relaxed))
		r->bytes += engine_read_ahead(f.engine, r->worker);
	return NULL;
}

START_TEST(readers_beside_requests)
{
	atomic_bool stop = false;
	struct reader reader[WORKERS];
	pthread_t thread[WORKERS];
	rounds(c, 3);
	for (uint32_t w = 1; w < WORKERS; w++) {
		reader[w] = (struct reader){.worker = w, .stop = &stop};
		ck_assert_int_eq(pthread_create(&thread[w], NULL, keep_reading, &reader[w]), 0);
	}
	for (int i = 0; i < 30; i++) {
		ck_assert_uint_eq(rounds(c, 1), LAYERS);
		engine_set_ahead(f.engine, i % 2 ? PLENTY : 65536);
	}
	atomic_store(&stop, true);
	for (uint32_t w = 1; w < WORKERS; w++)
		pthread_join(thread[w], NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ahead");
	TCase *t = tcase_create("ahead");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_cycle_of_layers_is_foreseen_in_its_third_round);
	tcase_add_test(t, what_followed_once_only_is_not);
	tcase_add_test(t, another_order_is_learned);
	tcase_add_test(t, contexts_are_learned_apart);
	tcase_add_test(t, nothing_is_listed_for_requests_that_scan_no_codes);
	tcase_add_test(t, all_codes_of_the_next_layer_are_listed_and_nothing_else);
	tcase_add_test(t, a_lane_is_no_longer_than_asked_for);
	tcase_add_test(t, places_cover_all_units);
	tcase_add_test(t, a_request_stops_it);
	tcase_add_test(t, a_request_that_is_there_is_not_read_ahead_for);
	tcase_add_test(t, nothing_is_foreseen_while_units_are_left);
	tcase_add_test(t, a_batch_shares_the_lists);
	tcase_add_test(t, lists_that_nobody_reads_become_rare);
	tcase_add_test(t, answers_are_the_same_bits);
	tcase_add_test(t, a_dropped_context_is_not_kept);
	tcase_add_test(t, readers_beside_requests);
	suite_add_tcase(s, t);
	return suite_run(s);
}
