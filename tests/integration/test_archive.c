// Exports and imports through the public API: the same answers from another daemon, through files and pipes; a client that reads nothing or
// sends nonsense; a daemon that stops in the middle.
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/store/image.h"
#include "shm/archive.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"
#include "tests/lib/suite.h"

enum { PREFILL = 5000, TOKENS = 5300, HEADS = 9, D = 64, ASKED = 8 };

static struct test_daemon *d;
static struct model_data data;
static char file[64], other[64];

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(HEADS, 3, D);
	layer.paper_k = 8;
	layer.paper_l = 20;
	model_data_make(&data, &layer, 2, TOKENS, 11);
	snprintf(file, sizeof(file), "/tmp/mpig-test-export-%d", (int)getpid());
	snprintf(other, sizeof(other), "/tmp/mpig-test-export2-%d", (int)getpid());
	d = test_daemon_start("[pool]\nkeep = no\n");
}

static void teardown(void)
{
	test_daemon_free(d);
	model_data_free(&data);
	unlink(file);
	unlink(other);
}

struct answer {
	float out[HEADS * D], lse[HEADS];
	uint32_t rows[HEADS];
};

static void ask_all(struct test_client *s, const char *name, struct answer answer[ASKED])
{
	mpig_context *x;
	ck_assert_status(test_client_find(s, name, 0, &x), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), TOKENS);
	for (uint64_t i = 0; i < ASKED; i++) {
		float q[HEADS * D];
		model_normal(q, HEADS * D, 1000 + i);
		struct mpig_attend attend = MPIG_INIT(struct mpig_attend);
		struct mpig_result result = MPIG_INIT(struct mpig_result);
		attend.layer = (int)(i % 2);
		attend.proposal = i % 4 < 2 ? MPIG_PROPOSAL_SIGNATURE : MPIG_PROPOSAL_PAPER;
		attend.q = q;
		attend.begin = 4;
		attend.end = -8;
		attend.budget = i % 4 < 2 ? .05f : 0;
		attend.seed = i;
		attend.query_position = PREFILL;
		memset(&answer[i], 0, sizeof(answer[i]));
		result.out = answer[i].out;
		result.lse = answer[i].lse;
		result.rows = answer[i].rows;
		ck_assert_status(mpig_attend(s->queue, x, &attend, &result), MPIG_OK);
		ck_assert_uint_gt(answer[i].rows[0], 0);
	}
	mpig_context_close(x);
}

static mpig_context *make(struct test_client *s, const char *name)
{
	mpig_context *x = test_client_create(s, name, &data);
	ck_assert_status(test_client_fill(s, x, &data, 0, PREFILL, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_fill(s, x, &data, PREFILL, TOKENS, 0), MPIG_OK);
	return x;
}

static void restart(struct test_client *s)
{
	test_client_close(s);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	test_daemon_again(d);
	test_client_open(s, d);
}

static void count(void *argument, uint64_t done, uint64_t total)
{
	uint64_t *seen = argument;
	ck_assert(done <= total && done >= seen[0]);
	seen[0] = done;
	seen[1] = total;
}

START_TEST(the_same_answers)
{
	struct answer *before = calloc(ASKED, sizeof(*before)), *after = calloc(ASKED, sizeof(*after));
	struct test_client s;
	struct mpig_disk_result result = MPIG_INIT(struct mpig_disk_result);
	struct mpig_disk_options options = MPIG_INIT(struct mpig_disk_options);
	uint64_t seen[2] = {0};
	struct stat st;
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book"));
	ask_all(&s, "book", before);
	options.progress = count;
	options.argument = seen;
	ck_assert_status(mpig_context_export_file(s.client, "book", file, &options, &result), MPIG_OK);
	ck_assert_uint_eq(result.tokens, TOKENS);
	ck_assert_str_eq(result.name, "book");
	ck_assert_int_eq(stat(file, &st), 0);
	ck_assert_uint_eq((uint64_t)st.st_size, result.bytes);
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
	ck_assert(seen[0] == result.bytes && seen[1] == result.bytes);
	restart(&s); // with an empty pool
	ck_assert_status(mpig_context_export_file(s.client, "book", other, NULL, NULL), MPIG_ENOENT);
	ck_assert_int_ne(access(other, F_OK), 0);
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	ck_assert_status(mpig_context_import(s.client, fd, NULL, NULL, &result), MPIG_OK);
	ck_assert_str_eq(result.name, "book");
	ck_assert_uint_eq(result.tokens, TOKENS);
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
	ck_assert_status(mpig_context_import(s.client, fd, NULL, NULL, NULL), MPIG_EEXIST);
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
	ck_assert_status(mpig_context_import(s.client, fd, "second", NULL, NULL), MPIG_OK);
	close(fd);
	ask_all(&s, "book", after);
	ck_assert_mem_eq(before, after, ASKED * sizeof(*before));
	ask_all(&s, "second", after);
	ck_assert_mem_eq(before, after, ASKED * sizeof(*before));
	struct mpig_verification v = MPIG_INIT(struct mpig_verification);
	ck_assert_status(mpig_context_verify(s.client, "book", &v), MPIG_OK);
	mpig_context *x;
	ck_assert_status(test_client_find(&s, "book", 0, &x), MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, TOKENS);
	mpig_context_close(x);
	test_client_close(&s);
	free(before);
	free(after);
}
END_TEST

// What is cut short, what is no export at all, and places that take none.
START_TEST(refused)
{
	struct test_client s;
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book"));
	ck_assert_status(mpig_context_export_file(s.client, "book", file, NULL, NULL), MPIG_OK);
	ck_assert_int_eq(truncate(file, 100000), 0);
	int fd = open(file, O_RDWR | O_CLOEXEC);
	ck_assert_status(mpig_context_import(s.client, fd, "x", NULL, NULL), MPIG_ECORRUPT);
	ck_assert(strstr(mpig_last_error(s.client), " of 1"));
	ck_assert_int_eq(pwrite(fd, "nothing", 7, 0), 7);
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
	ck_assert_status(mpig_context_import(s.client, fd, "x", NULL, NULL), MPIG_ECORRUPT);
	ck_assert(strstr(mpig_last_error(s.client), "no exported context"));
	ck_assert_status(mpig_context_import(s.client, fd, "a/b", NULL, NULL), MPIG_EINVAL);
	close(fd);
	ck_assert_status(mpig_context_export_file(s.client, "book", "/dev/null", NULL, NULL), MPIG_EINVAL);
	ck_assert_status(mpig_context_export_file(s.client, "book", "/nowhere/x", NULL, NULL), MPIG_EIO);
	fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	ck_assert_status(mpig_context_export(s.client, "book", fd, NULL, NULL), MPIG_EIO);
	close(fd);
	test_client_close(&s);
}
END_TEST

// An index made up, with all the checksums of chunks right: whoever makes an export can name any rows in it.
START_TEST(made_up_index)
{
	static const uint16_t kinds[] = {IMAGE_ROWS, IMAGE_TABLE, IMAGE_UPPER};
	static const char *const says[] = {"a row has a NaN", "name rows that do not exist", "does not name every row once"};
	struct test_client s;
	struct stat st;
	test_daemon_free(d); // one with upper layers in small contexts
	d = test_daemon_start("[pool]\nkeep = no\n[engine]\nupper_rows = 4000\n");
	test_client_open(&s, d);
	mpig_context_close(make(&s, "book"));
	ck_assert_status(mpig_context_export_file(s.client, "book", file, NULL, NULL), MPIG_OK);
	for (int k = 0; k < 3; k++) {
		int fd = open(file, O_RDWR | O_CLOEXEC);
		ck_assert_int_eq(fstat(fd, &st), 0);
		uint8_t *data_of = malloc((size_t)st.st_size), *at = data_of + sizeof(struct mpig_archive_header);
		ck_assert_int_eq(pread(fd, data_of, (size_t)st.st_size, 0), st.st_size);
		XXH3_state_t *heads = XXH3_createState();
		XXH3_64bits_reset(heads);
		struct mpig_archive_chunk h;
		for (bool done = false;; at += sizeof(h) + h.bytes) {
			memcpy(&h, at, sizeof(h));
			if (h.kind == MPIG_ARCHIVE_END) {
				uint64_t sum = XXH3_64bits_digest(heads);
				memcpy(at + sizeof(h), &sum, sizeof(sum));
			} else if (h.kind == kinds[k] && h.segment == 0 && !done) {
				memset(at + sizeof(h), 0xff, h.bytes);
				done = true;
			}
			h.data_checksum = XXH3_64bits(at + sizeof(h), h.bytes);
			h.checksum = XXH3_64bits(&h, offsetof(struct mpig_archive_chunk, checksum));
			memcpy(at, &h, sizeof(h));
			if (h.kind == MPIG_ARCHIVE_END) {
				ck_assert(done);
				break;
			}
			XXH3_64bits_update(heads, &h, sizeof(h));
		}
		XXH3_freeState(heads);
		int changed = open(other, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		ck_assert_int_eq(write(changed, data_of, (size_t)st.st_size), st.st_size);
		ck_assert_int_eq(lseek(changed, 0, SEEK_SET), 0);
		ck_assert_status(mpig_context_import(s.client, changed, "x", NULL, NULL), MPIG_ECORRUPT);
		ck_assert_msg(strstr(mpig_last_error(s.client), says[k]), "%s", mpig_last_error(s.client));
		close(changed);
		close(fd);
		free(data_of);
	}
	test_client_close(&s);
}
END_TEST

// ---- pipes -----------------------------------------------------------------------------------------------------------

struct copying {
	struct test_client s;
	int fd, status;
};

static void *export_to_pipe(void *argument)
{
	struct copying *c = argument;
	c->status = mpig_context_export(c->s.client, "book", c->fd, NULL, NULL);
	close(c->fd);
	return NULL;
}

START_TEST(through_a_pipe)
{
	struct copying c;
	struct test_client s;
	pthread_t thread;
	int ends[2];
	test_client_open(&s, d);
	test_client_open(&c.s, d);
	mpig_context_close(make(&s, "book"));
	ck_assert_int_eq(pipe(ends), 0);
	c.fd = ends[1];
	ck_assert_int_eq(pthread_create(&thread, NULL, export_to_pipe, &c), 0);
	ck_assert_status(mpig_context_import(s.client, ends[0], "copy", NULL, NULL), MPIG_OK);
	pthread_join(thread, NULL);
	ck_assert_status(c.status, MPIG_OK);
	close(ends[0]);
	mpig_context *x;
	ck_assert_status(test_client_find(&s, "copy", 0, &x), MPIG_OK);
	test_client_assert_dense(&s, x, &data, 0, TOKENS);
	mpig_context_close(x);
	test_client_close(&c.s);
	test_client_close(&s);
}
END_TEST

// Nobody reads: the daemon serves others meanwhile, allows so many and no more, and stops at once.
START_TEST(nobody_reads)
{
	struct copying c;
	struct test_client s;
	pthread_t thread;
	int ends[2];
	test_client_open(&s, d);
	test_client_open_hasty(&c.s, d, 20000, -1);
	mpig_context *x = make(&s, "book");
	ck_assert_int_eq(pipe(ends), 0);
	c.fd = ends[1];
	ck_assert_int_eq(pthread_create(&thread, NULL, export_to_pipe, &c), 0);
	char byte;
	ck_assert_int_eq(read(ends[0], &byte, 1), 1); // it has begun
	test_client_assert_dense(&s, x, &data, 0, TOKENS);
	ck_assert_status(mpig_context_export_file(s.client, "book", file, NULL, NULL), MPIG_OK); // the second
	mpig_context_close(x);
	test_client_close(&s);
	test_daemon_term(d);
	ck_assert_int_eq(test_daemon_wait(d), 0);
	static char rest[1 << 16];
	while (read(ends[0], rest, sizeof(rest)) > 0)
		;
	pthread_join(thread, NULL);
	ck_assert(c.status == MPIG_ERETRY || c.status == MPIG_ESHUTDOWN);
	close(ends[0]);
	test_client_close(&c.s);
}
END_TEST

// What is dropped meanwhile leaves the pool, though nobody reads the rest of the export.
START_TEST(dropped_while_nobody_reads)
{
	struct copying c;
	struct test_client s;
	struct mpig_daemon_status info = MPIG_INIT(struct mpig_daemon_status);
	pthread_t thread;
	int ends[2];
	test_client_open(&s, d);
	test_client_open(&c.s, d);
	ck_assert_status(mpig_daemon_status(s.client, &info), MPIG_OK);
	uint64_t empty = info.pool_used;
	mpig_context_close(make(&s, "book"));
	ck_assert_int_eq(pipe(ends), 0);
	c.fd = ends[1];
	ck_assert_int_eq(pthread_create(&thread, NULL, export_to_pipe, &c), 0);
	char byte;
	ck_assert_int_eq(read(ends[0], &byte, 1), 1);
	ck_assert_status(mpig_context_drop(s.client, "book"), MPIG_OK);
	do {
		usleep(10000);
		ck_assert_status(mpig_daemon_status(s.client, &info), MPIG_OK);
	} while (info.pool_used > empty);
	static char rest[1 << 16];
	while (read(ends[0], rest, sizeof(rest)) > 0)
		;
	pthread_join(thread, NULL);
	ck_assert(c.status == MPIG_ENOENT || c.status == MPIG_ERETRY); // told between two chunks, or cut off within one
	close(ends[0]);
	test_client_close(&c.s);
	test_client_close(&s);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("archive");
	TCase *t = tcase_create("archive");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, the_same_answers);
	tcase_add_test(t, refused);
	tcase_add_test(t, made_up_index);
	tcase_add_test(t, through_a_pipe);
	tcase_add_test(t, nobody_reads);
	tcase_add_test(t, dropped_while_nobody_reads);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
