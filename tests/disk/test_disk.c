// Contexts saved and loaded: the same bytes, shared files, whose they are, and what leaves memory.
#include "tests/disk/fixture.h"
#include "tests/lib/suite.h"

// ---- round trips -----------------------------------------------------------------------------------------------------

START_TEST(round_trip)
{
	struct context *c = create("book", _i);
	grow(c, 5000, true);
	grow(c, 8100, true);
	grow(c, 8777, false);
	ck_assert_msg(save("book") == 0, "%s", f.why);
	ck_assert_uint_eq(result.tokens, 8777);
	ck_assert_uint_eq(result.segments, 3);
	ck_assert_uint_eq(result.moved, result.bytes);
	ck_assert_uint_eq(progress.done, progress.total);
	uint64_t whole = result.bytes;
	grow(c, 8900, false);
	ck_assert_int_eq(save("book"), 0); // sealed segments are not written again
	ck_assert_uint_eq(result.shared, 2);
	ck_assert_uint_lt(result.moved, whole / 4);
	ck_assert_uint_eq(files_in("segments"), 2);
	ck_assert_uint_eq(files_in("contexts/book"), 4);
	check_context("book", 8900);
	ck_assert_uint_eq(progress.done, progress.total);
	done_with(c, "book");
	ck_assert_msg(load("book") == 0, "%s", f.why);
	ck_assert_uint_eq(progress.done, progress.total);
	check_context("book", 8900);
	ck_assert_uint_eq(unchecked_parts("book"), 1); // the open segment
	ck_assert_int_eq(load("book"), MPIG_EEXIST);
	ck_assert_int_eq(store_context_open(f.store, &root, "book", NULL, &c, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	grow(c, 9500, false); // and work goes on
	ck_assert_uint_eq(seal(c, tags), 9500 - 8100);
	check_context("book", 9500);
	ck_assert_int_eq(save("book"), 0);
	ck_assert_uint_eq(result.shared, 2);
	done_with(c, "book");
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 9500);
	ck_assert_uint_eq(unchecked_parts("book"), 0);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
}
END_TEST

// tmpfs: older kernels have no O_DIRECT there. And without an io_uring.
static int no_uring(const struct disk_call *call, int after)
{
	return !after && !strcmp(call->call, "io_uring") ? EPERM : 0;
}

START_TEST(plain_files)
{
	disk_destroy(disk);
	shell("rm -rf %s", "");
	snprintf(where, sizeof where, "/dev/shm/mpig-disk-%d", (int)getpid());
	open_disk();
	disk_hook = _i ? no_uring : NULL;
	struct context *c = create("book", 1);
	grow(c, 5000, true);
	grow(c, 5100, false);
	ck_assert_msg(save("book") == 0, "%s", f.why);
	done_with(c, "book");
	ck_assert_msg(load("book") == 0, "%s", f.why);
	check_context("book", 5100);
	disk_hook = NULL;
}
END_TEST

START_TEST(empty_context)
{
	struct context *c = create("empty", 0);
	ck_assert_int_eq(save("empty"), 0);
	done_with(c, "empty");
	ck_assert_int_eq(load("empty"), 0);
	check_context("empty", 0);
	ck_assert_int_eq(load("nothing"), MPIG_ENOENT);
	ck_assert_int_eq(load("../segments"), MPIG_EINVAL);
}
END_TEST

// A fork seals without sums; they are made by the save. Files and, after loading, memory are shared.
START_TEST(forks_share)
{
	struct context *c = create("parent", 1), *child;
	grow(c, 5000, true);
	grow(c, 6000, false);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 5900, "child", &child, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, child, &root, 1, f.why), 0);
	ck_assert_uint_gt(unchecked_parts("child"), 0);
	ck_assert_int_eq(save("parent"), 0);
	ck_assert_uint_eq(result.shared, 0);
	ck_assert_uint_eq(unchecked_parts("child"), 0);
	ck_assert_int_eq(save("child"), 0);
	ck_assert_uint_eq(result.shared, 2);
	ck_assert_uint_eq(result.moved, 0);
	ck_assert_uint_eq(files_in("segments"), 2);
	done_with(c, "parent");
	done_with(child, "child");
	uint64_t before = pool_used(f.pool);
	ck_assert_int_eq(load("child"), 0);
	ck_assert_uint_eq(result.shared, 0);
	uint64_t one = pool_used(f.pool) - before;
	ck_assert_int_eq(load("parent"), 0);
	ck_assert_uint_eq(result.shared, 2);
	ck_assert_uint_eq(progress.done, progress.total);
	ck_assert_uint_lt(pool_used(f.pool) - before, one + one / 4);
	check_context("child", 5900);
	check_context("parent", 6000);
	ck_assert_int_eq(store_context_drop(f.store, &root, "parent", f.why), 0);
	check_context("child", 5900);
}
END_TEST

START_TEST(found_again_after_a_restart)
{
	struct context *c = create("book", 0);
	grow(c, 5000, true);
	grow(c, 6000, true);
	ck_assert_int_eq(save("book"), 0);
	context_release(f.store, c, 1);
	context_unref(c);
	for (int round = 0; round < 2; round++) {
		(void)attach_again();
		if (round == 1)
			ck_assert_uint_eq(disk_recognise(disk, f.store, NULL, NULL), 0);
		if (round == 1)
			ck_assert_int_eq(save("book"), 0);
	}
	ck_assert_uint_eq(result.shared, 2);
	ck_assert_uint_eq(result.moved, 0);
	check_context("book", 6000);
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0); // an opened pool did not make its directory and leaves it
	open_small();
}
END_TEST

// ---- access ----------------------------------------------------------------------------------------------------------

START_TEST(who_may)
{
	struct credentials other = user(7), owner = user(5);
	struct context *c = create("book", 2);
	grow(c, 300, false);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "book", 0600, 5, 5, f.why), 0);
	ck_assert_int_eq(disk_save(disk, f.store, &other, "book", true, &progress, &result, f.why), MPIG_EACCES);
	ck_assert_int_eq(disk_save(disk, f.store, &owner, "book", true, &progress, &result, f.why), 0);
	ck_assert_int_eq(disk_save(disk, f.store, &owner, "none", true, &progress, &result, f.why), MPIG_ENOENT);
	done_with(c, "book");
	ck_assert_int_eq(disk_load(disk, f.store, &other, "book", &progress, &result, f.why), MPIG_EACCES);
	struct mpig_wire_layer layer[LAYERS];
	make_spec(2, layer);
	struct mpig_ctl_create body = create_of("book", LAYERS);
	ck_assert_int_eq(store_context_create(f.store, &other, &body, layer, &c, f.why), 0);
	ck_assert_int_eq(disk_save(disk, f.store, &other, "book", true, &progress, &result, f.why), MPIG_EACCES);
	done_with(c, "book");
	ck_assert_int_eq(disk_load(disk, f.store, &owner, "book", &progress, &result, f.why), 0);
	ck_assert_uint_gt(store_uid_bytes(f.store, 5), 300 * 800);
	ck_assert_uint_eq(store_uid_bytes(f.store, 7), 0);
}
END_TEST

START_TEST(one_daemon_a_directory)
{
	struct disk *second;
	struct disk_options o = {.dir = where, .depth = 1, .chunk = IMAGE_PART_MAX};
	ck_assert_int_eq(disk_create(&o, &second, f.why), MPIG_EBUSY);
	char open[80];
	snprintf(open, sizeof open, "%s/open", where);
	must(mkdir(open, 0700) == 0 && chmod(open, 0777) == 0);
	o.dir = open;
	ck_assert_int_eq(disk_create(&o, &second, f.why), MPIG_EACCES); // anybody could write there
	o.dir = "/proc/nowhere";
	ck_assert_int_lt(disk_create(&o, &second, f.why), 0);
}
END_TEST

START_TEST(a_full_pool)
{
	struct context *c = create("book", 0);
	grow(c, 9000, true);
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	uint64_t used = pool_used(f.pool), most = 0, at;
	uint64_t taken[200];
	while (most < 200 && (at = pool_alloc(f.pool, 1 << 20, 0)))
		taken[most++] = at;
	ck_assert_int_eq(load("book"), MPIG_ENOSPC);
	while (most)
		pool_free(f.pool, taken[--most], 1 << 20);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 9000);
}
END_TEST

// Nothing that is not on disk as it is, or that somebody has open, leaves memory; the least recently used goes first.
START_TEST(evicted)
{
	static const struct persist_default at_once = {.persist = MPIG_PERSIST_COMMIT};
	static const struct persist_default idle = {.persist = MPIG_PERSIST_IDLE, .idle_ns = UINT64_C(60000000000)};
	char name[MPIG_NAME_BYTES] = "";
	uint64_t cursor = 0;
	struct context *a = create("a", 0), *b = create("b", 0);
	grow(a, 300, true);
	grow(b, 300, true);
	must(!store_evict(f.store, name));
	must(store_next_unsaved(f.store, &at_once, false, &cursor, name) && !strcmp(name, "a"));
	must(store_next_unsaved(f.store, &at_once, false, &cursor, name) && !strcmp(name, "b"));
	must(!store_next_unsaved(f.store, &at_once, false, &cursor, name));
	ck_assert_int_eq(save("a"), 0);
	ck_assert_int_eq(save("b"), 0);
	must(!store_evict(f.store, name)); // both are open
	check_context("a", 300);           // the more recently used
	context_release(f.store, a, 1);
	context_unref(a);
	grow(b, 310, false); // not as it is on disk
	context_release(f.store, b, 1);
	context_unref(b);
	must(store_evict(f.store, name) && !strcmp(name, "a"));
	must(!store_evict(f.store, name));
	cursor = 0;
	must(store_next_unsaved(f.store, &at_once, false, &cursor, name) && !strcmp(name, "b"));
	must(!store_next_unsaved(f.store, &idle, false, &(uint64_t){0}, name)); // used since
	ck_assert_int_eq(save("b"), 0);
	ck_assert_int_eq(load("a"), 0);
	struct credentials other = user(9);
	ck_assert_int_eq(pin(&f, "a", &other, UINT64_MAX), MPIG_EACCES);
	ck_assert_int_eq(store_context_evict(f.store, &other, "a", f.why), MPIG_EACCES);
	ck_assert_int_eq(pin(&f, "a", &root, UINT64_MAX), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "a", f.why), MPIG_EBUSY);
	must(store_evict(f.store, name) && !strcmp(name, "b"));
	must(!store_evict(f.store, name)); // pinned
	ck_assert_int_eq(pin(&f, "a", &root, 0), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "a", f.why), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "a", f.why), MPIG_ENOENT);
	ck_assert_int_eq(load("a"), 0);
	ck_assert_int_eq(load("b"), 0);
	check_context("b", 310);
	check_context("a", 300);
	must(store_evict(f.store, name) && !strcmp(name, "b"));
	must(store_evict(f.store, name) && !strcmp(name, "a"));
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	ck_assert_int_eq(load("b"), 0);
	check_context("b", 310);
	ck_assert_int_eq(disk_erase(disk, f.store, &root, "b", f.why), 0);
	must(!store_evict(f.store, name)); // not on disk any more
	ck_assert_int_eq(disk_erase(disk, f.store, &root, "b", f.why), MPIG_ENOENT);
	must(!disk_has(disk, "b") && disk_has(disk, "a"));
}
END_TEST

// Indexed again while it was saved: the file has the index before.
START_TEST(indexed_meanwhile)
{
	struct image *image;
	struct context *c = create("book", 0);
	grow(c, 5000, true);
	ck_assert_int_eq(image_take(f.store, &root, "book", ACCESS_READ, &image, f.why), 0);
	ck_assert_int_eq(reindex(&f, c, tags, 5000), 0);
	image_saved(image);
	image_release(image);
	context_release(f.store, c, 1);
	context_unref(c);
	ck_assert_int_eq(store_context_evict(f.store, &root, "book", f.why), MPIG_EBUSY);
	ck_assert_int_eq(save("book"), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "book", f.why), 0);
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 5000);
}
END_TEST

// What is done unasked does not replace what somebody saved.
START_TEST(an_older_one)
{
	struct context *c = create("book", 0);
	grow(c, 300, false);
	ck_assert_int_eq(save("book"), 0);
	grow(c, 310, false);
	ck_assert_int_eq(disk_save(disk, f.store, &root, "book", false, &progress, &result, f.why), 0);
	done_with(c, "book");
	c = create("book", 0);
	grow(c, 20, false);
	ck_assert_int_eq(disk_save(disk, f.store, &root, "book", false, &progress, &result, f.why), MPIG_EEXIST);
	ck_assert_int_eq(disk_check(disk, f.store, &root, "book", &progress, &result, f.why), 0);
	ck_assert_uint_eq(result.tokens, 310);
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 20);
}
END_TEST

START_TEST(cancelled)
{
	struct context *c = create("book", 0);
	grow(c, 300, false);
	progress = (struct disk_progress){.cancel = true};
	ck_assert_int_eq(disk_save(disk, f.store, &root, "book", true, &progress, &result, f.why), MPIG_ESHUTDOWN);
	ck_assert_int_eq(disk_check(disk, f.store, &root, "book", &progress, &result, f.why), MPIG_ENOENT);
	done_with(c, "book");
}
END_TEST

// A daemon that stops does not wait until the rate allows the next bytes.
static pthread_t canceller;
static bool cancels;

static void *cancel(void *unused)
{
	(void)unused;
	usleep(20000);
	atomic_store(&progress.cancel, true);
	return NULL;
}

static int cancel_soon(const struct disk_call *call, int after)
{
	if (!cancels && !after && !strcmp(call->call, "io_uring")) {
		cancels = true;
		must(pthread_create(&canceller, NULL, cancel, NULL) == 0);
	}
	return 0;
}

START_TEST(a_slow_rate_holds_nobody_up)
{
	struct context *c = create("book", 0);
	grow(c, 300, true);
	for (int round = 0; round < 2; round++) {
		disk_set_rate(disk, 1); // a byte a second
		disk_hook = cancel_soon;
		cancels = false;
		int status = round ? load("book") : save("book"); // done, if it was the last bytes that waited
		ck_assert(status == 0 || status == MPIG_ESHUTDOWN);
		disk_hook = NULL;
		ck_assert_int_eq(pthread_join(canceller, NULL), 0);
		disk_set_rate(disk, 0);
		if (round && status)
			ck_assert_int_eq(load("book"), 0);
		if (round)
			break;
		ck_assert_int_eq(save("book"), 0);
		done_with(c, "book");
	}
	check_context("book", 300);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk");
	TCase *t = tcase_create("disk");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, round_trip, 0, 4);
	tcase_add_loop_test(t, plain_files, 0, 2);
	tcase_add_test(t, empty_context);
	tcase_add_test(t, a_slow_rate_holds_nobody_up);
	tcase_add_test(t, forks_share);
	tcase_add_test(t, found_again_after_a_restart);
	tcase_add_test(t, who_may);
	tcase_add_test(t, one_daemon_a_directory);
	tcase_add_test(t, a_full_pool);
	tcase_add_test(t, evicted);
	tcase_add_test(t, indexed_meanwhile);
	tcase_add_test(t, an_older_one);
	tcase_add_test(t, cancelled);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
