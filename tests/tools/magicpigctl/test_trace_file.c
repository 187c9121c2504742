// Files of recorded queries: what is written is read back, and a file that is cut, altered or nonsense is told from a good one.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tools/magicpigctl/trace_file.c"

#define QUERIES 3
static const struct mpig_wire_layer layers[2] = {
	{.kind = MPIG_LAYER_SLIDING, .query_heads = 4, .kv_heads = 2, .d_k = 64, .d_v = 64},
	{.kind = MPIG_LAYER_GLOBAL, .query_heads = 4, .kv_heads = 2, .d_k = 64, .d_v = 80},
};
static const struct mpig_layer_shape shape = {.query_heads = 4, .kv_heads = 2, .d_k = 64, .d_v = 80};
static char path[] = "/dev/shm/magicpig-trace-XXXXXX"; // in memory: it is written some ten thousand times
static float q[2 * 4 * 64], lse[2 * 4], out[2 * 4 * 80];
static uint8_t *good; // a whole file
static size_t good_bytes;
static char why[TRACE_WHY_BYTES];

static float coarse(int i)
{
	return (float)(i % 17 - 8) / 4; // a bf16, too
}

static struct mpig_trace_record record(int i)
{
	struct mpig_trace_record r = {
		.number = (uint64_t)i * 2,
		.taken_ns = 1000 * (uint64_t)i,
		.service_ns = 17,
		.rows_read = 100,
		.bytes_read = 5000,
		.committed = 4000,
		.begin = 4,
		.end = 3900,
		.query_position = 4000,
		.seed = 99 + (uint64_t)i,
		.client = 7,
		.queue = 3,
		.tokens = i == 1 ? 2 : 1,
		.budget = i == 0 ? .02f : 0,
		.error_target = i == 0 ? 0 : .05f,
		.layer = 1,
		.proposal = i == 2 ? MPIG_PROPOSAL_DENSE : 0,
		.asked_dtype = i == 0 ? MPIG_F32 : MPIG_BF16,
		.present = i == 1 ? MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT | MPIG_HAS_SIGNATURE : 0,
		.units = 5,
	};
	return r;
}

static void write_good(void)
{
	FILE *file = open_memstream((char **)&good, &good_bytes);
	struct trace_writer w = {.file = file};
	struct mpig_trace_header h = {.layer_count = 2, .name = "book", .context_id = 12, .committed = 4000, .recorded_ns = 5};
	memset(h.fingerprint, 0xab, sizeof(h.fingerprint));
	ck_assert_int_eq(trace_write_header(&w, &h, layers), 0);
	for (int i = 0; i < QUERIES; i++) {
		struct mpig_trace_record r = record(i);
		ck_assert_int_eq(trace_write(&w, &r, &shape, q, lse, out), 0);
	}
	struct mpig_trace_end end = {.answers = 6, .lost = 3, .too_long = 1, .duration_ns = 9, .ended = MPIG_TRACE_DROPPED};
	ck_assert_int_eq(trace_write_end(&w, &end), 0);
	trace_writer_free(&w);
	fclose(file);
}

static void setup(void)
{
	for (int i = 0; i < 2 * 4 * 64; i++)
		q[i] = coarse(i);
	for (int i = 0; i < 2 * 4; i++)
		lse[i] = (float)i + .125f;
	for (int i = 0; i < 2 * 4 * 80; i++)
		out[i] = (float)i / 3;
	strcpy(path + strlen(path) - 6, "XXXXXX");
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	close(fd);
	write_good();
}

static void teardown(void)
{
	unlink(path);
	free(good);
}

static void store(const uint8_t *bytes, size_t count)
{
	FILE *file = fopen(path, "wb");
	ck_assert_uint_eq(fwrite(bytes, 1, count, file), count);
	fclose(file);
}

// Reads as far as it goes: how many queries, or -1 for an error. *ended: there was an END.
static int read_all(bool *ended)
{
	struct trace_reader *r;
	struct trace_query query;
	int status, count = 0;
	*ended = false;
	if (trace_open(path, &r, why) != 0)
		return -1;
	while ((status = trace_next(r, &query, why)) > 0)
		count++;
	*ended = trace_end(r) != NULL;
	trace_close(r);
	return status < 0 ? -1 : count;
}

START_TEST(what_is_written_is_read)
{
	struct trace_reader *r;
	struct trace_query query;
	store(good, good_bytes);
	ck_assert_int_eq(trace_open(path, &r, why), 0);
	ck_assert_str_eq(trace_header(r)->name, "book");
	ck_assert_uint_eq(trace_header(r)->layer_count, 2);
	ck_assert_mem_eq(trace_layers(r), layers, sizeof(layers));
	for (int i = 0; i < QUERIES; i++) {
		struct mpig_trace_record want = record(i);
		ck_assert_int_eq(trace_next(r, &query, why), 1);
		ck_assert_int_eq(query.record->dtype, i == 0 ? MPIG_F32 : MPIG_BF16);
		size_t from = sizeof(want.head);
		want.dtype = query.record->dtype;
		ck_assert_mem_eq((const uint8_t *)query.record + from, (const uint8_t *)&want + from, sizeof(want) - from);
		for (uint32_t at = 0; at < want.tokens * 4 * 64; at++) {
			uint16_t half;
			uint32_t bits;
			float value;
			memcpy(&half, (const uint8_t *)query.q + 2 * at, 2);
			bits = (uint32_t)half << 16;
			memcpy(&value, &bits, 4);
			if (i == 0)
				memcpy(&value, (const uint8_t *)query.q + 4 * at, 4);
			ck_assert_float_eq(value, q[at]);
		}
		ck_assert(!query.window_lse == (i != 1) && !query.window_out == (i != 1));
		if (i == 1) {
			ck_assert_mem_eq(query.window_lse, lse, 2 * 4 * 4);
			ck_assert_mem_eq(query.window_out, out, 2 * 4 * 80 * 4);
		}
		struct mpig_attend attend;
		ck_assert(trace_attend(&query, &attend));
		ck_assert_int_eq(attend.layer, 1);
		ck_assert_int_eq(attend.end, 3900);
		ck_assert_uint_eq(attend.seed, want.seed);
		ck_assert_ptr_eq(attend.window_lse, query.window_lse);
	}
	ck_assert_int_eq(trace_next(r, &query, why), 0);
	ck_assert_ptr_nonnull(trace_end(r));
	ck_assert_uint_eq(trace_end(r)->lost, 3);
	ck_assert_uint_eq(trace_end(r)->records, 3);
	ck_assert_uint_eq(trace_end(r)->file_bytes, good_bytes);
	ck_assert_int_eq(trace_next(r, &query, why), 0);
	trace_close(r);
}
END_TEST

START_TEST(what_does_not_fit_bf16_stays_whole)
{
	struct mpig_trace_record r = record(2);
	struct trace_reader *reader;
	struct trace_query query;
	FILE *file = fopen(path, "wb");
	struct trace_writer w = {.file = file};
	struct mpig_trace_header h = {.layer_count = 2, .name = "book"};
	q[5] = 1 + ldexpf(1, -20);
	ck_assert_int_eq(trace_write_header(&w, &h, layers), 0);
	ck_assert_int_eq(trace_write(&w, &r, &shape, q, NULL, NULL), 0);
	trace_writer_free(&w);
	fclose(file);
	ck_assert_int_eq(trace_open(path, &reader, why), 0);
	ck_assert_int_eq(trace_next(reader, &query, why), 1);
	ck_assert_int_eq(query.record->dtype, MPIG_F32);
	ck_assert_mem_eq(query.q, q, 4 * 64 * 4);
	trace_close(reader);
}
END_TEST

// Wherever it is cut, what came before is read, and that it is not whole is seen.
START_TEST(cut_short)
{
	uint64_t header = sizeof(struct mpig_trace_header) + sizeof(layers);
	int before = 0;
	for (size_t bytes = 0; bytes < good_bytes; bytes++) {
		bool ended;
		store(good, bytes);
		int count = read_all(&ended);
		ck_assert(!ended);
		if (bytes < header) {
			ck_assert_int_eq(count, -1);
			continue;
		}
		ck_assert_int_ge(count, before);
		before = count;
	}
	ck_assert_int_eq(before, QUERIES);
}
END_TEST

START_TEST(altered_bytes)
{
	for (size_t at = 0; at < good_bytes; at++) {
		bool ended;
		good[at] ^= 0x10;
		store(good, good_bytes);
		ck_assert_msg(read_all(&ended) == -1, "byte %zu", at); // not as one that was cut short
		good[at] ^= 0x10;
	}
}
END_TEST

START_TEST(something_behind_the_end)
{
	bool ended;
	uint8_t *more = calloc(1, good_bytes + 1);
	memcpy(more, good, good_bytes);
	store(more, good_bytes + 1);
	ck_assert_int_eq(read_all(&ended), -1);
	ck_assert_ptr_nonnull(strstr(why, "something follows its last record"));
	free(more);
}
END_TEST

// With a right checksum, as who makes files by hand can give it.
static void resum(uint8_t *record)
{
	struct mpig_trace_head *head = (void *)record;
	head->checksum = checksum(record, head->bytes, &head->checksum);
}

START_TEST(fields_that_make_no_sense)
{
	uint64_t header = sizeof(struct mpig_trace_header) + sizeof(layers);
	static const struct {
		size_t offset;
		uint8_t byte;
	} change[] = {
		{offsetof(struct mpig_trace_record, layer), 0}, // a sliding one
		{offsetof(struct mpig_trace_record, layer), 2},
		{offsetof(struct mpig_trace_record, tokens), 0},
		{offsetof(struct mpig_trace_record, tokens), 2}, // not what its bytes say
		{offsetof(struct mpig_trace_record, tokens) + 3, 1},
		{offsetof(struct mpig_trace_record, dtype), MPIG_F16},
		{offsetof(struct mpig_trace_record, asked_dtype), MPIG_I8},
		{offsetof(struct mpig_trace_record, present), MPIG_HAS_QUERIES},
		{offsetof(struct mpig_trace_record, flags), MPIG_SQE_SEAL},
		{offsetof(struct mpig_trace_record, proposal), MPIG_PROPOSAL_COUNT},
		{offsetof(struct mpig_trace_record, begin) + 3, 1},
		{offsetof(struct mpig_trace_record, end) + 7, 1},
		{offsetof(struct mpig_trace_record, reserved) + 83, 1},
	};
	for (size_t i = 0; i < sizeof(change) / sizeof(change[0]); i++) {
		uint8_t *at = good + header + change[i].offset, was = *at;
		bool ended;
		*at = change[i].byte;
		resum(good + header);
		store(good, good_bytes);
		ck_assert_msg(read_all(&ended) == -1, "change %zu", i);
		ck_assert_ptr_nonnull(strstr(why, "at byte 448: "));
		*at = was;
		resum(good + header);
	}
	bool ended;
	store(good, good_bytes);
	ck_assert_int_eq(read_all(&ended), QUERIES);
	ck_assert(ended);
}
END_TEST

// Several times: a file, and what comes through a pipe, in more than one buffer of it.
START_TEST(kept_and_read_again)
{
	for (int pipe = 0; pipe < 2; pipe++) {
		struct trace_reader *r;
		struct trace_query query;
		pid_t writer = 0;
		store(good, good_bytes);
		if (pipe) {
			unlink(path);
			ck_assert_int_eq(mkfifo(path, 0600), 0);
			writer = fork();
			if (!writer) {
				store(good, good_bytes);
				_exit(0);
			}
		}
		ck_assert_int_eq(trace_open(path, &r, why), 0);
		ck_assert_int_eq(trace_keep(r, why), 0);
		for (int pass = 0; pass < 3; pass++) {
			int count = 0, got;
			if (pass)
				ck_assert_int_eq(trace_rewind(r, why), 0);
			for (; count < QUERIES - (pass == 1) && (got = trace_next(r, &query, why)) > 0; count++) {
				ck_assert_uint_eq(query.record->number, 2 * (uint64_t)count);
				ck_assert_uint_eq(query.record->seed, 99 + (uint64_t)count);
			}
			ck_assert_int_eq(count, QUERIES - (pass == 1)); // once not to its end
			if (pass == 1)
				continue;
			ck_assert_int_eq(trace_next(r, &query, why), 0);
			ck_assert_ptr_nonnull(trace_end(r));
		}
		trace_close(r);
		if (pipe)
			ck_assert_int_eq(waitpid(writer, NULL, 0), writer);
	}
}
END_TEST

START_TEST(not_such_files)
{
	struct trace_reader *r;
	store((const uint8_t *)"hello", 5);
	ck_assert_int_eq(trace_open(path, &r, why), -1);
	ck_assert_ptr_nonnull(strstr(why, "this is no file of recorded queries"));
	((struct mpig_trace_header *)(void *)good)->version = 9;
	store(good, good_bytes);
	ck_assert_int_eq(trace_open(path, &r, why), -1);
	ck_assert_ptr_nonnull(strstr(why, "format version 9, this program reads version 1"));
	unlink(path);
	ck_assert_int_eq(trace_open(path, &r, why), -1);
	ck_assert_ptr_nonnull(strstr(why, "No such file"));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("trace_file");
	TCase *tc = tcase_create("trace_file");
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, what_is_written_is_read);
	tcase_add_test(tc, what_does_not_fit_bf16_stays_whole);
	tcase_add_test(tc, cut_short);
	tcase_add_test(tc, altered_bytes);
	tcase_add_test(tc, something_behind_the_end);
	tcase_add_test(tc, fields_that_make_no_sense);
	tcase_add_test(tc, kept_and_read_again);
	tcase_add_test(tc, not_such_files);
	suite_add_tcase(suite, tc);
	return suite_run(suite);
}
