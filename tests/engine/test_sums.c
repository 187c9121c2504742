// Checksums of sealed rows, most of which were made when the rows were written: they are those of what lies in the pool, however rows came
// there, and what does not lie there as it should is found.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/rng.h"
#include "daemon/store/attach.h"
#include "daemon/store/internal.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { HEADS = 4, KV_HEADS = 2, LAYERS = 2, D = 64, WIDTH = KV_HEADS * D, MOST = 1200 };

static struct fixture f;
static float *rows_k, *rows_v;

static void start(void)
{
	fixture_start(&f, UINT64_C(64) << 20, UINT32_MAX);
	rows_k = malloc((size_t)MOST * WIDTH * sizeof(float));
	rows_v = malloc((size_t)MOST * WIDTH * sizeof(float));
	ck_assert(rows_k && rows_v);
	fill_normal(rows_k, (size_t)MOST * WIDTH, 1, 1);
	fill_normal(rows_v, (size_t)MOST * WIDTH, 2, 1);
}

static void stop(void)
{
	free(rows_k);
	free(rows_v);
	fixture_stop(&f);
}

static struct context *open_context(const char *name, uint32_t row_dtype)
{
	struct mpig_wire_layer layer = fixture_layer(HEADS, KV_HEADS, D, row_dtype);
	layer.signature_bits = 2;
	return fixture_context(&f, name, &layer, LAYERS, 3);
}

// Rows of the payload's type: of bf16 the upper halves.
static int append(struct context *c, uint64_t at, uint32_t n, uint32_t dtype)
{
	int status = 0;
	for (uint32_t layer = 0; layer < LAYERS && !status; layer++) {
		const struct mpig_layer_shape s = context_layer(c, layer)->shape;
		struct mpig_payload_layout l = mpig_append_layout(&s, n, dtype, 0);
		struct mpig_sqe e = {
			.op = MPIG_OP_APPEND, .layer = (uint16_t)layer, .count = n, .begin = at, .dtype = (uint8_t)dtype};
		for (size_t i = 0; i < (size_t)n * WIDTH; i++) {
			const float pair[] = {rows_k[at * WIDTH + i], rows_v[at * WIDTH + i]};
			const uint64_t place[] = {l.k, l.v};
			for (int p = 0; p < 2; p++) {
				uint16_t half = dtype == MPIG_BF16 ? f32_to_bf16(pair[p]) : f32_to_f16(pair[p]);
				if (dtype == MPIG_F32)
					memcpy(f.slot + place[p] + 4 * i, &pair[p], 4);
				else
					memcpy(f.slot + place[p] + 2 * i, &half, 2);
			}
		}
		status = fixture_run(&f, c, &e, NULL).status;
	}
	return status;
}

static const struct segment *segment_at(const struct context *c, uint32_t i)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	ck_assert_uint_lt(i, snap->count);
	return snap->ref[i].segment;
}

// Every piece that is whole, of the first `rows` rows of an open segment, is known.
static void assert_known(const struct context *c, uint32_t i, uint32_t rows)
{
	const struct segment *seg = segment_at(c, i);
	ck_assert_uint_eq(seg->record->sealed_rows, 0);
	for (uint32_t b = 0; b < seg->record->block_count; b++)
		for (uint32_t strip = 0; strip < seg->spec->strips; strip++)
			for (uint32_t row = 0; row < seg->record->block[b].rows; row += PIECE_ROWS) {
				const uint64_t *sum = piece_sums_at(seg, b, strip, row);
				if (seg->record->block[b].first_row + row + PIECE_ROWS <= rows)
					ck_assert_msg(sum && *sum, "block %u, strip %u, row %u: %u rows", b, strip, row, rows);
			}
}

struct verified {
	uint32_t checked, unchecked, damaged;
};

static struct verified verify(const char *name)
{
	static const struct credentials root;
	struct verified all = {0};
	char why[MPIG_TEXT_BYTES];
	struct verify_part part = {0};
	do {
		ck_assert_int_eq(store_context_verify(f.store, &root, name, &part, why), 0);
		all.checked += part.checked;
		all.unchecked += part.unchecked;
		all.damaged += part.damaged;
	} while (part.more);
	return all;
}

static void assert_good(const char *name)
{
	struct verified v = verify(name);
	ck_assert_uint_eq(v.damaged, 0);
	ck_assert_uint_eq(v.unchecked, 0);
	ck_assert_uint_gt(v.checked, 1);
}

static void commit(struct context *c, uint64_t at, uint32_t n, bool seal)
{
	struct engine_result r = fixture_commit(&f, c, at, n, seal);
	ck_assert_msg(r.status == 0, "%s", r.why);
}

// All ways of cutting appends: whole pieces, parts of them, a row at a time; every type of rows from payloads that are copied and such that are
// converted; by one thread and by several.
START_TEST(however_rows_are_cut)
{
	static const uint32_t cuts[] = {1, 3, 15, 16, 17, 63, 64, 100, 512, 513, 900};
	static const uint8_t types[][2] = {
		{MPIG_BF16, MPIG_BF16}, {MPIG_F16, MPIG_F16}, {MPIG_I8, MPIG_BF16}, {MPIG_BF16, MPIG_F32}};
	const uint32_t total = 907;
	f.threads = _i % 2 ? 4 : 1;
	for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		char name[32];
		snprintf(name, sizeof(name), "cut%u", cuts[i]);
		struct context *c = open_context(name, types[_i / 2][0]);
		for (uint32_t at = 0, n; at < total; at += n) {
			n = total - at < cuts[i] ? total - at : cuts[i];
			if (cuts[i] == 1 && at >= 40 && at < 800) // the middle faster
				n = 800 - at;
			ck_assert_int_eq(append(c, at, n, types[_i / 2][1]), 0);
		}
		assert_known(c, 0, total);
		commit(c, 0, total, true);
		ck_assert_uint_eq(segment_at(c, 0)->record->sealed_rows, total);
		assert_good(name);
		context_unref(c);
	}
}
END_TEST

// Rows that are taken back and written again, with others in their place: a piece is known by what it holds now.
START_TEST(taken_back_and_written_again)
{
	enum { LAST = 40 }; // rows that are appended in the end, at most
	struct context *c = open_context("again", _i ? MPIG_I8 : MPIG_BF16);
	uint64_t state = 77;
	uint32_t rows = 0;
	for (int step = 0; step < 60; step++) {
		uint32_t n = 1 + (uint32_t)(rng_hash(state, 1) % 90), back = (uint32_t)(rng_hash(state, 2) % 40);
		state = rng_hash(state, 3);
		if (rows + n > MOST - LAST)
			break;
		for (size_t i = (size_t)rows * WIDTH; i < (size_t)(rows + n) * WIDTH; i++)
			rows_k[i] += 1;
		ck_assert_int_eq(append(c, rows, n, MPIG_BF16), 0);
		rows += n;
		if (step % 3 == 0) {
			commit(c, context_committed(c), rows - (uint32_t)context_committed(c), false);
			back = back < rows ? back : rows;
			struct mpig_sqe e = {.op = MPIG_OP_TRUNCATE, .begin = rows - back};
			ck_assert_int_eq(fixture_run(&f, c, &e, NULL).status, 0);
			rows -= back;
		} else if (step % 3 == 1 && rows - context_committed(c) > 20) { // over what is there, but not committed
			for (size_t i = (size_t)(rows - 20) * WIDTH; i < (size_t)(rows - 9) * WIDTH; i++)
				rows_v[i] -= 1;
			ck_assert_int_eq(append(c, rows - 20, 11, MPIG_BF16), 0);
		}
	}
	ck_assert_uint_gt(rows, 400);
	ck_assert_int_eq(append(c, rows, LAST - rows % 16, MPIG_BF16), 0); // and once more, for good: whole pieces are cut
	rows += LAST - rows % 16;
	commit(c, context_committed(c), rows - (uint32_t)context_committed(c), false);
	struct mpig_sqe e = {.op = MPIG_OP_TRUNCATE, .begin = rows - 13};
	ck_assert_int_eq(fixture_run(&f, c, &e, NULL).status, 0);
	commit(c, rows - 13, 0, true);
	ck_assert_uint_gt(segment_at(c, 0)->record->sealed_rows, 0);
	assert_good("again");
	context_unref(c);
}
END_TEST

// An append that fails in the middle: what it has written is nobody's, and what others write there later is summed.
START_TEST(failed_appends)
{
	struct context *c = open_context("failed", MPIG_BF16);
	f.threads = 4;
	ck_assert_int_eq(append(c, 0, 100, MPIG_BF16), 0);
	for (uint32_t i = 0; i < 40; i++) {
		float *bad = &rows_v[(size_t)(100 + i * 20) * WIDTH + i];
		float good = *bad;
		*bad = i % 2 ? (float)NAN : (float)INFINITY;
		ck_assert_int_eq(append(c, 100, MOST - 100, MPIG_BF16), MPIG_ENAN);
		*bad = good;
	}
	ck_assert_int_eq(append(c, 100, 301, MPIG_BF16), 0);
	assert_known(c, 0, 401);
	commit(c, 0, 401, true);
	assert_good("failed");
	context_unref(c);
}
END_TEST

// A fork in the middle of a piece: the parent is sealed there, without sums of its content, and the child's own rows begin a segment whose pieces
// begin with it. Both go on.
START_TEST(forks)
{
	static const struct credentials root;
	struct context *c = open_context("parent", MPIG_BF16), *child;
	char why[MPIG_TEXT_BYTES] = "";
	ck_assert_int_eq(append(c, 0, 333, MPIG_BF16), 0);
	commit(c, 0, 333, false);
	ck_assert_msg(store_context_fork(f.store, &root, c, 217, "child", &child, why) == 0, "%s", why);
	ck_assert_int_eq(context_lease(f.store, child, &root, 2, why), 0);
	ck_assert_int_eq(append(child, 217, 129, MPIG_BF16), 0);
	ck_assert_int_eq(append(c, 333, 100, MPIG_BF16), 0);
	assert_known(child, 1, 129);
	assert_known(c, 1, 100);
	commit(child, 217, 129, true);
	commit(c, 333, 100, true);
	ck_assert_uint_eq(verify("child").damaged, 0);
	ck_assert_uint_eq(verify("parent").damaged, 0);
	ck_assert_uint_gt(verify("child").unchecked, 0); // what the fork sealed, until it is saved
	context_unref(child);
	context_unref(c);
}
END_TEST

// A bit in any piece of any strip, in the last rows that count, in token ids and codes; and a sum that was wrong from the beginning: the check
// reads the rows themselves.
START_TEST(any_piece_that_differs_is_found)
{
	const uint32_t total = 407;
	struct context *c = open_context("bits", _i ? MPIG_I8 : MPIG_BF16);
	ck_assert_int_eq(append(c, 0, total, MPIG_BF16), 0);
	commit(c, 0, total, true);
	assert_good("bits");
	const struct segment *seg = segment_at(c, 0);
	uint32_t found = 0;
	for (uint32_t strip = 0; strip < seg->spec->strips; strip++)
		for (uint32_t row = 0; row < total; row += row + PIECE_ROWS < total ? PIECE_ROWS : 1, found++) {
			uint32_t b = 0;
			while (row >= seg->record->block[b].first_row + seg->record->block[b].rows)
				b++;
			const struct block_record *block = pool_at(f.pool, seg->record->block[b].offset);
			uint32_t stride = spec_strip(seg->spec, strip)->rows.stride;
			uint8_t *byte = (uint8_t *)pool_at(f.pool, block_rows((struct block_record *)block)[strip]) +
			                (size_t)(row - seg->record->block[b].first_row) * stride + row * 7 % stride;
			*byte ^= (uint8_t)(1 << row % 8);
			ck_assert_msg(verify("bits").damaged == 1, "strip %u, row %u", strip, row);
			*byte ^= (uint8_t)(1 << row % 8);
		}
	ck_assert_uint_gt(found, 100);
	struct block_record *block = pool_at(f.pool, seg->record->block[0].offset);
	block_tokens(block)[3] ^= 1;
	ck_assert_uint_eq(verify("bits").damaged, 1);
	block_tokens(block)[3] ^= 1;
	const struct generation_record *g = generation_at(f.pool, seg->record, 0);
	uint8_t *codes = pool_at(f.pool, code_offsets(pool_at(f.pool, g->code_block[0]))[1]);
	codes[5] ^= 16;
	ck_assert_uint_eq(verify("bits").damaged, 1);
	codes[5] ^= 16;
	assert_good("bits");
	context_unref(c);
	c = open_context("wrong", MPIG_BF16);
	ck_assert_int_eq(append(c, 0, total, MPIG_BF16), 0);
	*piece_sums_at(segment_at(c, 0), 0, 1, 160) ^= 1;
	commit(c, 0, total, true);
	ck_assert_uint_eq(verify("wrong").damaged, 1);
	context_unref(c);
}
END_TEST

// The sums of pieces are gone with the process: who takes the pool over reads the rows, of a segment that others go on filling, too.
START_TEST(killed_between_append_and_seal)
{
	static const struct credentials root;
	char why[MPIG_TEXT_BYTES] = "";
	struct context *c = open_context("left", MPIG_BF16);
	ck_assert_int_eq(append(c, 0, 300, MPIG_BF16), 0);
	commit(c, 0, 300, false);
	ck_assert_int_eq(append(c, 300, 20, MPIG_BF16), 0); // not committed
	context_unref(c);
	engine_destroy(f.engine);
	f.engine = NULL;
	store_destroy(f.store); // stores nothing: as good as a kill
	pool_close(f.pool, false);
	struct pool_options p = {.dir = f.dir, .instance = "test"};
	ck_assert_msg(pool_open(&p, &f.pool, why, sizeof(why)) == 0, "%s", why);
	struct store_options o = {.pool = f.pool};
	struct store_attach_options a = {.verify = VERIFY_FULL, .table_bytes = engine_table_bytes};
	struct store_attached attached;
	ck_assert_int_eq(store_attach(&o, &a, &f.store, &attached), 0);
	ck_assert_uint_eq(attached.contexts, 1);
	fixture_engine(&f, &(struct engine_options){0});
	ck_assert_msg(store_context_open(f.store, &root, "left", NULL, &c, why) == 0, "%s", why);
	ck_assert_int_eq(context_lease(f.store, c, &root, 3, why), 0);
	ck_assert_uint_eq(context_committed(c), 300);
	ck_assert_ptr_null(segment_at(c, 0)->pieces);
	if (_i)
		ck_assert_int_eq(append(c, 300, 400, MPIG_BF16), 0);
	if (_i)
		commit(c, 300, 400, false);
	commit(c, context_committed(c), 0, true);
	assert_good("left");
	context_unref(c);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sums");
	TCase *t = tcase_create("sums");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, start, stop);
	tcase_add_loop_test(t, however_rows_are_cut, 0, 8);
	tcase_add_loop_test(t, taken_back_and_written_again, 0, 2);
	tcase_add_test(t, failed_appends);
	tcase_add_test(t, forks);
	tcase_add_loop_test(t, any_piece_that_differs_is_found, 0, 2);
	tcase_add_loop_test(t, killed_between_append_and_seal, 0, 2);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
