// bench_disk [DIRECTORY [MIB]]: what saving and loading reach beside plain O_DIRECT io_uring with the same blocks and depth, on the same disk,
// in turns; and how long ATTEND takes while saves run. Not a test: it asserts nothing about time.
#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "daemon/disk/disk.h"
#include "daemon/disk/io.h"
#include "tests/lib/client.h"
#include "tests/lib/figures.h"
#include "tests/lib/model.h"
#include "tests/store/segments.h"

enum { ROUNDS = 5, DEPTH = 8, CHUNK = 1 << 20, TOKENS = 32768, BULK = 60000, HEADS = 8, D = 128, ASKED = 2000, TURNS = 3 };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *x, const void *y)
{
	double a = *(const double *)x, b = *(const double *)y;
	return (a > b) - (a < b);
}

static double nth(double *x, size_t n, double p)
{
	qsort(x, n, sizeof *x, ascending);
	return x[(size_t)(p * (double)(n - 1))];
}

// GB/s of one file, written (with its fsync) or read.
static double plain(const char *path, uint64_t bytes, bool write)
{
	struct io io;
	must(io_open(&io, DEPTH, CHUNK, 0) == 0);
	memset(io.memory, 0x5a, (size_t)DEPTH * CHUNK);
	double begin = now();
	int fd = disk_open(AT_FDCWD, path, write ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, true), slot;
	must(fd >= 0);
	for (uint64_t at = 0; at < bytes; at += CHUNK) {
		while ((slot = io_free_slot(&io)) < 0)
			must(io_reap(&io) >= 0);
		must(io_begin(&io, slot, fd, path, write, at, CHUNK) == 0);
	}
	must(io_drain(&io) == 0);
	if (write)
		must(disk_sync(fd, path) == 0);
	double taken = now() - begin;
	close(fd);
	io_close(&io);
	return (double)bytes / taken * 1e-9;
}

static void throughput(const char *directory, uint64_t mib)
{
	char path[300];
	uint64_t tokens = (mib << 20) / 832, most = tokens / 65536 + 1;
	double figure[4][ROUNDS];
	fixture_open(&f, (mib << 20) + (mib << 19) + (64 << 20), 0, 0);
	root = user(0);
	uint64_t *tags = tags_from(1, 65536);
	struct context *c = create("bulk", 2);
	for (uint64_t i = 0; i < most; i++) {
		append_all(c, i * 65536, 65536, tags);
		must(commit(c, i * 65536, 65536, tags) == 0);
		struct seal_plan plan;
		must(seal_begin(f.store, c, test_table_bytes, &plan, f.why) == 0);
		context_seal_finish(f.store, &plan, true);
	}
	context_release(f.store, c, 1);
	context_unref(c);
	struct disk *disk;
	struct disk_options o = {.dir = directory, .depth = DEPTH, .chunk = CHUNK, .table_bytes = test_table_bytes};
	struct disk_result result;
	must(disk_create(&o, &disk, f.why) == 0);
	snprintf(path, sizeof path, "%s/plain", directory);
	for (int i = 0; i < ROUNDS; i++) {
		struct disk_progress progress = {0};
		double begin = now();
		ck_assert_msg(disk_save(disk, f.store, &root, "bulk", true, &progress, &result, f.why) == 0, "%s", f.why);
		figure[0][i] = (double)result.moved / (now() - begin) * 1e-9;
		figure[1][i] = plain(path, result.moved / CHUNK * CHUNK, true);
		must(store_context_drop(f.store, &root, "bulk", f.why) == 0);
		begin = now();
		must(disk_load(disk, f.store, &root, "bulk", &progress, &result, f.why) == 0);
		figure[2][i] = (double)result.moved / (now() - begin) * 1e-9;
		figure[3][i] = plain(path, result.moved / CHUNK * CHUNK, false);
		must(disk_erase(disk, f.store, &root, "bulk", f.why) == 0);
		// Loaded segments keep their ids; their files are gone, so the next save writes them again.
	}
	double save = nth(figure[0], ROUNDS, .5), write = nth(figure[1], ROUNDS, .5), load = nth(figure[2], ROUNDS, .5),
	       read = nth(figure[3], ROUNDS, .5);
	printf("%lu MiB, blocks of %d KiB, depth %d, medians of %d\n", (unsigned long)(result.bytes >> 20), CHUNK >> 10, DEPTH,
	       ROUNDS);
	printf("save %.2f GB/s, plain writes %.2f: %.0f %%\nload %.2f GB/s, plain reads %.2f: %.0f %%\n", save, write,
	       100 * save / write, load, read, 100 * load / read);
	figures_put("disk.MiB", (double)(result.bytes >> 20));
	figures_put("disk.save GB/s", save);
	figures_put("disk.plain write GB/s", write);
	figures_put("disk.load GB/s", load);
	figures_put("disk.plain read GB/s", read);
	unlink(path);
	disk_destroy(disk);
	free(tags);
	fixture_close(&f);
}

// ---- ATTEND meanwhile ------------------------------------------------------------------------------------------------

struct saver {
	struct test_client s;
	_Atomic int stop, rounds;
};

static void *save_all_the_time(void *argument)
{
	struct saver *saver = argument;
	while (!saver->stop) {
		ck_assert_status(mpig_context_save(saver->s.client, "bulk", NULL, NULL), MPIG_OK);
		ck_assert_status(mpig_saved_erase(saver->s.client, "bulk"), MPIG_OK);
		saver->rounds++;
	}
	return NULL;
}

static void attend(struct test_client *s, mpig_context *x, double *us)
{
	static float q[HEADS * 4 * D], out[HEADS * 4 * D], lse[HEADS * 4];
	for (int i = 0; i < ASKED; i++) {
		struct mpig_attend ask = {
			.size = sizeof ask, .proposal = MPIG_PROPOSAL_SIGNATURE, .q = q, .begin = 4, .budget = .02f};
		struct mpig_result result = {.size = sizeof result, .out = out, .lse = lse};
		ask.seed = (uint64_t)i;
		ask.query_position = TOKENS;
		if (i % 64 == 0)
			model_normal(q, HEADS * 4 * D, (uint64_t)i);
		double begin = now();
		ck_assert_status(mpig_attend(s->queue, x, &ask, &result), MPIG_OK);
		us[i] = (now() - begin) * 1e6;
	}
}

static void latency(const char *directory)
{
	static double us[ASKED];
	double p50[2][TURNS], p99[2][TURNS];
	char config[300];
	struct model_data data;
	struct mpig_layer layer = test_client_layer(HEADS * 4, HEADS, D);
	struct saver saver = {.stop = 0};
	struct test_client s;
	pthread_t thread;
	model_data_make(&data, &layer, 1, BULK, 3);
	snprintf(config, sizeof config, "[pool]\nsize = 2G\n[workers]\ncount = 1\n[disk]\ndir = %s\n", directory);
	struct test_daemon *d = test_daemon_start(config);
	test_client_open(&s, d);
	test_client_open(&saver.s, d);
	mpig_context *x = test_client_create(&s, "book", &data), *bulk = test_client_create(&s, "bulk", &data);
	ck_assert_status(test_client_fill(&s, x, &data, 0, TOKENS, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(test_client_fill(&s, bulk, &data, 0, BULK, MPIG_COMMIT_SEAL), MPIG_OK);
	attend(&s, x, us);
	for (int turn = 0; turn < 2 * TURNS; turn++) { // in turns, so that what else the machine does meets both
		int saving = turn % 2;
		saver.stop = 0;
		if (saving)
			must(pthread_create(&thread, NULL, save_all_the_time, &saver) == 0);
		attend(&s, x, us);
		saver.stop = 1;
		if (saving)
			pthread_join(thread, NULL);
		p50[saving][turn / 2] = nth(us, ASKED, .5);
		p99[saving][turn / 2] = nth(us, ASKED, .99);
	}
	for (int saving = 0; saving < 2; saving++) {
		double half = nth(p50[saving], TURNS, .5), most = nth(p99[saving], TURNS, .5);
		printf("ATTEND of %d rows, %s: p50 %.0f us, p99 %.0f us (medians of %d turns)\n", TOKENS,
		       saving ? "while saving" : "nothing else", half, most, TURNS);
		figures_put(saving ? "attend.p50 us while saving" : "attend.p50 us", half);
		figures_put(saving ? "attend.p99 us while saving" : "attend.p99 us", most);
	}
	printf("%d saves went by\n", saver.rounds);
	test_client_close(&saver.s);
	test_client_close(&s);
	test_daemon_free(d);
	model_data_free(&data);
}

static const char *where;
static uint64_t mebibytes = 1024;

START_TEST(measure)
{
	throughput(where, mebibytes);
	latency(where);
}
END_TEST

int main(int argc, char **argv)
{
	char own[64], line[400];
	snprintf(own, sizeof own, "/tmp/mpig-bench-disk-%d", (int)getpid());
	where = argc > 1 ? argv[1] : own;
	mebibytes = argc > 2 ? strtoull(argv[2], NULL, 10) : mebibytes;
	Suite *suite = suite_create("bench_disk"); // what it borrows from the tests wants one
	TCase *t = tcase_create("measure");
	tcase_add_test(t, measure);
	suite_add_tcase(suite, t);
	SRunner *runner = srunner_create(suite);
	srunner_set_fork_status(runner, CK_NOFORK);
	srunner_run_all(runner, CK_SILENT);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	snprintf(line, sizeof line, "rm -rf %s", own);
	return system(line) || failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
