// Readers beside a writer that appends, seals and truncates.
#include <pthread.h>
#include <sched.h>

#include "tests/lib/suite.h"
#include "tests/store/segments.h"

static _Atomic int stop;

// A row says which token it is; while it is pinned it does not change.
static void *reader(void *arg)
{
	struct context *c = arg;
	uint64_t random = (uint64_t)pthread_self(), looked = 0;
	while (!stop || looked < 50) {
		uint64_t committed = context_committed(c), begin = committed ? next_below(&random, (uint32_t)committed) : 0;
		struct layer_view v;
		int status = layer_view_get(f.store, c, 0, begin, committed, &v);
		if (status == MPIG_ERANGE)
			continue; // truncated since
		must(status == 0);
		for (uint32_t h = 0; h < 2; h++)
			for (uint64_t at = begin, i = 0; i < v.span_count; at += v.strip[h].spans[i++].n) {
				const struct span *span = &v.strip[h].spans[i];
				must(span->first == at);
				for (uint32_t r = 0; r < span->n; r += 1 + r / 8) {
					uint64_t tag, again;
					memcpy(&tag, span->rows + (uint64_t)r * 256, 8);
					must((tag & 0xffffffff) == at + r);
					memcpy(&again, span->rows + (uint64_t)r * 256 + 8, 8);
					must(again == tag);
				}
			}
		layer_view_free(f.store, &v);
		looked++;
	}
	return (void *)looked;
}

static void append_tagged(struct context *c, uint64_t position, uint64_t n, uint64_t version)
{
	for (uint32_t layer = 0; layer < LAYERS; layer += 2) {
		ck_assert_msg(context_reserve(f.store, c, layer, position, n, f.why) == 0, "%s", f.why);
		for (uint32_t h = 0; h < context_layer(c, layer)->shape.kv_heads; h++)
			for (uint64_t at = position; at < position + n;) {
				struct write_span span;
				context_write_span(f.store, c, layer, h, at, &span);
				uint32_t stride = context_layer(c, layer)->rows.stride;
				for (uint32_t r = 0; r < span.n && at < position + n; r++, at++) {
					uint64_t tag = at | version << 32;
					memcpy(span.rows + (uint64_t)r * stride, &tag, 8);
					memcpy(span.rows + (uint64_t)r * stride + 8, &tag, 8);
				}
			}
		context_appended(c, layer, position + n);
	}
	uint32_t *ids = calloc(n, sizeof *ids);
	ck_assert_msg(context_commit(f.store, c, position, n, ids, f.why) == 0, "%s", f.why);
	free(ids);
}

START_TEST(readers_run_beside_a_writer)
{
	struct context *c = create("a", 0);
	pthread_t t[2];
	uint64_t random = 3;
	stop = 0;
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, reader, c);
	for (uint64_t step = 0; step < 1500; step++) {
		uint64_t committed = context_committed(c);
		uint32_t what = next_below(&random, 20);
		if (what < 14 && committed < 9000) {
			append_tagged(c, committed, what ? 1 + next_below(&random, 40) : 1000, step);
		} else if (what < 16) {
			struct seal_plan plan;
			ck_assert_int_eq(seal_begin(f.store, c, test_table_bytes, &plan, f.why), 0);
			context_seal_finish(f.store, &plan, true);
		} else {
			uint64_t to = what == 19 ? next_below(&random, (uint32_t)committed + 1) : committed - committed / 50;
			while (context_truncate(f.store, c, to, f.why) == MPIG_EAGAIN)
				sched_yield();
		}
	}
	stop = 1;
	uint64_t looked = 0;
	for (int i = 0; i < 2; i++) {
		void *n;
		pthread_join(t[i], &n);
		looked += (uint64_t)n;
	}
	ck_assert_uint_ge(looked, 100);
	context_unref(c);
	audit(NULL, NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("readers");
	TCase *t = tcase_create("readers");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, open_small, close_all);
	tcase_add_test(t, readers_run_beside_a_writer);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
