// Every system call, transfer and allocation of a save, a load, a check, an erasure and a start fails, or is cut short: the answer is a
// status with a reason, or success; in memory and on disk everything is as it was or as asked for; nothing whole is called damaged.
#include "shm/status.h"
#include "tests/disk/fixture.h"
#include "tests/lib/figures.h"
#include "tests/lib/points.h"
#include "tests/lib/suite.h"

static const struct kind_of_error {
	unsigned kinds;
	int error;
	uint64_t count;
} errors[] = {
	{POINT_CALL, EIO, 1},     {POINT_CALL, ENOSPC, 1},           {POINT_CALL, EINTR, 1},
	{POINT_CALL, EAGAIN, 1},  {POINT_CALL, POINTS_SHORT, 1},     {POINT_CALL, POINTS_SHORT, UINT64_MAX},
	{POINT_ALLOC, ENOMEM, 1}, {POINT_ALLOC, ENOMEM, UINT64_MAX}, {POINT_CALL, ENOMEM, 1},
};
#define ERRORS (sizeof errors / sizeof errors[0])

static uint64_t failures, borne;

// ---- completions of an io_uring --------------------------------------------------------------------------------------
// Without a ring, or with one whose completions fail.

static bool no_ring, bad_write;
static uint64_t transfers, bad_transfer;
static int bad_error;

static int hook(const struct disk_call *call, int after)
{
	if (no_ring && !after && !strcmp(call->call, "io_uring"))
		return EPERM;
	bool transfer = !strcmp(call->call, "read") || !strcmp(call->call, "write");
	if (!after || !transfer || ++transfers != bad_transfer)
		return 0;
	bad_write = call->call[0] == 'w';
	return bad_error;
}

// ---- trials ----------------------------------------------------------------------------------------------------------

static struct context *book;

// 700 tokens, of which the first 300 and the next 300 are sealed; on disk as they were at 640.
static void make_book(void)
{
	book = create("book", 1);
	grow(book, 300, true);
	grow(book, 600, true);
	grow(book, 640, false);
	ck_assert_int_eq(save("book"), 0);
	grow(book, 700, false);
}

static void check_on_disk(uint64_t one, uint64_t other)
{
	progress = (struct disk_progress){0};
	ck_assert_msg(disk_check(disk, f.store, &root, "book", &progress, &result, f.why) == 0, "%s", f.why);
	must(result.tokens == one || result.tokens == other);
	ck_assert_uint_eq(files_in("damaged"), 0);
}

static bool persistent; // what failed went on to fail, so that nothing could be taken back
static uint32_t segments_before;

// After a save that failed: with the old manifest or the new one, there is nothing that is not named.
static void check_files(int status)
{
	char manifest[200];
	snprintf(manifest, sizeof manifest, "%s/contexts/new/manifest", where);
	if (persistent || !status || access(manifest, F_OK) == 0)
		return; // the last one: only the sync after the manifest's rename has failed
	ck_assert_uint_eq(files_in("segments"), segments_before);
	ck_assert_uint_eq(files_in("contexts"), 1);
	ck_assert_uint_eq(files_in("contexts/book"), 4);
}

static void after_save(int status)
{
	check_files(status);
	check_context("book", 700);
	check_on_disk(700, status ? 640 : 700);
	ck_assert_int_eq(save("book"), 0);
	grow(book, 740, false);
	must(context_truncate(f.store, book, 640, f.why) == 0);
	ck_assert_int_eq(save("book"), 0);
	grow(book, 700, false);
}

static int try_save(void)
{
	return save("book");
}

static int try_first_save(void)
{
	return save("new");
}

static void after_first_save(int status)
{
	check_files(status);
	ck_assert_int_eq(save("new"), 0);
	check_on_disk(640, 640);
	ck_assert_int_eq(disk_erase(disk, f.store, &root, "new", f.why), 0);
	ck_assert_uint_le(files_in("contexts"), 2);
}

static int try_load(void)
{
	return load("book");
}

static void after_load(int status)
{
	if (!status) {
		check_context("book", 640);
		ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	}
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	audit(NULL, NULL);
	check_on_disk(640, 640);
}

static int try_check(void)
{
	progress = (struct disk_progress){0};
	return disk_check(disk, f.store, &root, "book", &progress, &result, f.why);
}

static void after_check(int status)
{
	(void)status;
	check_on_disk(640, 640);
}

static int try_erase(void)
{
	return disk_erase(disk, f.store, &root, "book", f.why);
}

static void after_erase(int status)
{
	disk_destroy(disk); // what it could not remove goes now
	open_disk();
	must(disk_recognise(disk, f.store, NULL, NULL) == 0);
	int now = try_check();
	must(now == MPIG_ENOENT || (status && now == 0));
	ck_assert_uint_eq(files_in("damaged"), 0);
	ck_assert_uint_eq(files_in("contexts"), now == 0);
	check_context("book", 700);
	must(context_truncate(f.store, book, 640, f.why) == 0);
	ck_assert_int_eq(save("book"), 0);
	grow(book, 700, false);
}

// Of the start only what disk_create does must answer; what cannot be read is told of, and stays.
static uint32_t told;

static void hear(void *arg, bool failed, const char *text)
{
	(void)arg;
	told += failed && text[0];
}

static int try_start(void)
{
	struct disk_options o = {.dir = where, .depth = 3, .chunk = IMAGE_PART_MAX, .table_bytes = test_table_bytes};
	struct disk *other = NULL;
	told = 0;
	int status = disk_create(&o, &other, f.why);
	if (status)
		return status;
	uint32_t bad = disk_recognise(other, NULL, hear, NULL);
	must(bad == told);
	disk_destroy(other);
	return 0;
}

static void before_start(void)
{
	disk_destroy(disk);
}

static void after_start(int status)
{
	(void)status;
	open_disk();
	must(disk_recognise(disk, NULL, hear, NULL) == 0);
	check_on_disk(640, 640);
}

static const struct trial {
	const char *name;
	bool in_memory; // otherwise on disk only
	int (*attempt)(void);
	void (*before)(void), (*after)(int status);
} trials[] = {
	{"save", true, try_save, NULL, after_save},    {"first save", true, try_first_save, NULL, after_first_save},
	{"load", false, try_load, NULL, after_load},   {"check", false, try_check, NULL, after_check},
	{"erase", true, try_erase, NULL, after_erase}, {"start", false, try_start, before_start, after_start},
};
#define TRIALS ((int)(sizeof trials / sizeof trials[0]))

static void judge(const struct trial *t, const char *call, uint64_t number, const char *error, int status)
{
	if (!strcmp(call, "flock") && status == MPIG_EBUSY)
		return; // that is what EAGAIN means there
	ck_assert_msg(!status || status == MPIG_EIO || status == MPIG_ENOSPC || status == MPIG_ENOMEM,
	              "%s, %s, number %lu fails with %s: %d %s", t->name, call, (unsigned long)number, error, status, f.why);
	ck_assert_msg(!status || f.why[0], "%s, %s: no reason", t->name, call);
}

// In memory: thousands of times an fsync would take minutes.
static void setup_in_memory(void)
{
	setup();
	disk_destroy(disk);
	shell("rm -rf %s", "");
	snprintf(where, sizeof where, "/dev/shm/mpig-disk-%d", (int)getpid());
	open_disk();
}

static void try_one(const struct trial *t, const struct kind_of_error *e)
{
	for (uint64_t k = 1, calls = k; calls >= k - 1; k += getenv("MPIG_LONG") || k < 40 ? 1 : 3) { // until it is not reached
		const char *call, *error = e->error < 0 ? "a short one" : strerror(e->error);
		figures_doing("%s, call %lu: %s, %s", t->name, (unsigned long)k, error, no_ring ? "no ring" : "a ring");
		f.why[0] = 0;
		persistent = e->count > 1;
		segments_before = files_in("segments");
		if (t->before)
			t->before();
		points_fail(e->kinds, k, e->count, e->error);
		int status = t->attempt();
		calls = points_off(&call);
		failures += status != 0;
		borne += !status && calls >= k;
		figures_doing("%s, call %lu, %s: %s, %s: %s", t->name, (unsigned long)k, call, error,
		              no_ring ? "no ring" : "a ring", status ? f.why : "done");
		judge(t, call, k, error, status);
		must(!status || e->error != POINTS_SHORT);
		t->after(status);
	}
}

static void try_completions(const struct trial *t)
{
	static const int codes[] = {EIO, ENOSPC};
	persistent = false;
	for (bad_transfer = 1; transfers == 0 || transfers + 1 >= bad_transfer; bad_transfer++) {
		if (t->before)
			t->before();
		uint64_t number = bad_transfer;
		segments_before = files_in("segments");
		transfers = 0;
		bad_error = codes[number % 2];
		int status = t->attempt();
		uint64_t made = transfers;
		bad_transfer = 0;
		failures += status != 0;
		judge(t, "completion", number, strerror(bad_error), status);
		must(status || made < number || !bad_write); // a file that cannot be read may be written again
		t->after(status);
		bad_transfer = number;
		transfers = made;
		if (made < number)
			break;
	}
	bad_transfer = 0;
}

START_TEST(failing)
{
	const struct trial *t = &trials[_i / 2];
	no_ring = _i % 2;
	disk_hook = hook;
	make_book();
	if (t->attempt == try_first_save) {
		struct context *c;
		must(store_context_fork(f.store, &root, book, 640, "new", &c, f.why) == 0);
		context_unref(c);
	}
	if (!t->in_memory)
		done_with(book, "book");
	for (size_t i = 0; i < ERRORS; i++)
		try_one(t, &errors[i]);
	if (t->attempt != try_erase && t->attempt != try_start)
		try_completions(t);
	figures_doing("%s", "");
	fprintf(stderr, "%s%s: %lu failures, %lu borne\n", t->name, no_ring ? " without a ring" : "", (unsigned long)failures,
	        (unsigned long)borne);
	figures_add("errors.refused", (double)failures);
	figures_add("errors.borne", (double)borne);
	ck_assert_uint_gt(failures, 10);
	ck_assert_uint_gt(borne, 5);
	disk_hook = NULL;
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk errors");
	TCase *t = tcase_create("errors");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_checked_fixture(t, setup_in_memory, teardown);
	tcase_add_loop_test(t, failing, 0, 2 * TRIALS);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
