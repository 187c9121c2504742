// Contexts saved and loaded: the same bytes, whatever a kill, an error or damage did in between.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/disk/disk.h"
#include "daemon/disk/format.h"
#include "daemon/disk/io.h"
#include "tests/store/segments.h"

#define TAGS 20000u

static struct disk *disk;
static char where[64];
static uint64_t *tags;
static struct disk_result result;
static struct disk_progress progress;

static void shell(const char *format, const char *a)
{
	char line[400];
	snprintf(line, sizeof line, format, where, a);
	must(system(line) == 0);
}

static void open_disk(void)
{
	struct disk_options o = {.dir = where, .depth = 3, .chunk = IMAGE_PART_MAX, .table_bytes = test_table_bytes};
	memcpy(o.pool_id, pool_superblock(f.pool)->instance_id, sizeof o.pool_id);
	ck_assert_msg(disk_create(&o, &disk, f.why) == 0, "%s", f.why);
}

static void setup(void)
{
	open_small();
	snprintf(where, sizeof where, "/tmp/mpig-disk-%d", (int)getpid());
	tags = tags_from(1, TAGS);
	open_disk();
}

static void teardown(void)
{
	disk_destroy(disk);
	shell("rm -rf %s", "");
	free(tags);
	close_all();
}

// ---- steps -----------------------------------------------------------------------------------------------------------

static void grow(struct context *c, uint64_t to, bool sealed)
{
	uint64_t at = context_committed(c);
	append_all(c, at, to - at, tags + at);
	ck_assert_int_eq(commit(c, at, to - at, tags + at), 0);
	if (sealed)
		ck_assert_uint_eq(seal(c, tags), to - at);
}

static void done_with(struct context *c, const char *name)
{
	context_release(f.store, c, 1);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, name, f.why), 0);
}

static int save(const char *name)
{
	progress = (struct disk_progress){0};
	return disk_save(disk, f.store, &root, name, true, &progress, &result, f.why);
}

static int load(const char *name)
{
	progress = (struct disk_progress){0};
	return disk_load(disk, f.store, &root, name, &progress, &result, f.why);
}

static void check_context(const char *name, uint64_t tokens)
{
	struct context *c;
	ck_assert_msg(store_context_open(f.store, &root, name, NULL, &c, f.why) == 0, "%s", f.why);
	ck_assert_uint_eq(context_committed(c), tokens);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		if (context_layer(c, layer))
			view_all(c, layer, tags);
	uint32_t *ids = malloc((tokens + 1) * sizeof *ids);
	context_tokens(f.store, c, 0, tokens, ids);
	for (uint64_t i = 0; i < tokens; i++)
		must(ids[i] == (uint32_t)tags[i]);
	free(ids);
	context_unref(c);
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
	audit(NULL, NULL);
}

static uint32_t unchecked_parts(const char *name)
{
	uint32_t unchecked = 0;
	struct verify_part part = {.more = true};
	while (part.more) {
		ck_assert_int_eq(store_context_verify(f.store, &root, name, &part, f.why), 0);
		ck_assert_uint_eq(part.damaged, 0);
		unchecked += part.unchecked;
	}
	return unchecked;
}

static uint32_t files_in(const char *sub)
{
	char path[300];
	snprintf(path, sizeof path, "%s/%s", where, sub);
	DIR *list = opendir(path);
	uint32_t n = 0;
	must(list);
	for (struct dirent *e; (e = readdir(list));)
		n += e->d_name[0] != '.';
	closedir(list);
	return n;
}

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
static int no_uring(const char *call, const char *file, int after)
{
	(void)file;
	return !after && !strcmp(call, "io_uring") ? EPERM : 0;
}

START_TEST(plain_files)
{
	disk_destroy(disk);
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
		disk_destroy(disk);
		store_destroy(f.store);
		pool_close(f.pool, false);
		struct pool_options p = {.dir = f.dir, .instance = "test"};
		ck_assert_int_eq(pool_open(&p, &f.pool, f.why, sizeof f.why), 0);
		struct store_options o = {.pool = f.pool};
		struct store_attach_options a = {.verify = VERIFY_FULL, .table_bytes = test_table_bytes};
		struct store_attached attached;
		ck_assert_int_eq(store_attach(&o, &a, &f.store, &attached), 0);
		open_disk();
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

// ---- kills and errors ------------------------------------------------------------------------------------------------

static uint64_t calls, stop_at;
static int what; // an errno, or -1: SIGKILL

static int hook(const char *call, const char *file, int after)
{
	(void)call, (void)file;
	if (what >= 0 && after)
		return 0;
	if (++calls != stop_at)
		return 0;
	if (what < 0)
		kill(getpid(), SIGKILL);
	return what;
}

static struct context *old_and_new(void)
{
	struct context *c = create("book", 1);
	grow(c, 300, true);
	grow(c, 340, false);
	ck_assert_int_eq(save("book"), 0);
	grow(c, 600, false);
	ck_assert_uint_eq(seal(c, tags), 300);
	grow(c, 650, false);
	return c;
}

START_TEST(killed_at_every_call)
{
	uint64_t k = 1, old = 0, new = 0;
	for (bool finished = false; !finished; k++) {
		struct context *c = old_and_new();
		pid_t pid = fork();
		must(pid >= 0);
		if (!pid) {
			calls = 0;
			stop_at = k;
			what = -1;
			disk_hook = hook;
			_exit(save("book") ? 1 : 0);
		}
		int status;
		must(waitpid(pid, &status, 0) == pid);
		finished = WIFEXITED(status);
		ck_assert_msg(!finished || WEXITSTATUS(status) == 0, "call %lu", (unsigned long)k);
		done_with(c, "book");
		ck_assert_msg(load("book") == 0, "killed at call %lu: %s", (unsigned long)k, f.why);
		ck_assert_msg(result.tokens == 340 || result.tokens == 650, "%lu tokens", (unsigned long)result.tokens);
		old += result.tokens == 340;
		new += result.tokens == 650;
		check_context("book", result.tokens);
		ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	}
	fprintf(stderr, "a save killed at %lu points: %lu left the old state, %lu the new one\n", (unsigned long)k - 2,
	        (unsigned long)old, (unsigned long)new);
	ck_assert_uint_gt(old, 20);
	ck_assert_uint_gt(new, 2);
	struct context *c = old_and_new();
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	disk_destroy(disk);
	open_disk(); // removes what the killed ones left
	ck_assert_uint_eq(files_in("segments"), 2);
	ck_assert_uint_eq(files_in("contexts/book"), 4);
}
END_TEST

START_TEST(errors_while_saving)
{
	static const int codes[] = {EIO, ENOSPC};
	uint64_t failed = 0;
	struct context *c = NULL;
	for (uint64_t k = 1;; k++) {
		c = old_and_new();
		calls = 0;
		stop_at = k;
		what = codes[k % 2];
		disk_hook = hook;
		int status = save("book");
		disk_hook = NULL;
		bool reached = calls >= k;
		ck_assert_msg(!status || status == MPIG_EIO || status == MPIG_ENOSPC, "call %lu: %d %s", (unsigned long)k, status,
		              f.why);
		failed += status != 0;
		check_context("book", 650); // in memory nothing has changed
		progress = (struct disk_progress){0};
		ck_assert_msg(disk_check(disk, &root, "book", &progress, &result, f.why) == 0, "call %lu: %s", (unsigned long)k,
		              f.why);
		ck_assert(result.tokens == 650 || (status && result.tokens == 340));
		ck_assert_msg(save("book") == 0, "%s", f.why);
		done_with(c, "book");
		ck_assert_int_eq(load("book"), 0);
		check_context("book", 650);
		ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
		if (!reached)
			break;
	}
	ck_assert_uint_gt(failed, 20);
}
END_TEST

START_TEST(errors_while_loading)
{
	struct context *c = old_and_new();
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	uint64_t failed = 0, used = pool_used(f.pool);
	for (uint64_t k = 1;; k++) {
		calls = 0;
		stop_at = k;
		what = EIO;
		disk_hook = hook;
		int status = load("book");
		disk_hook = NULL;
		failed += status != 0;
		ck_assert_int_eq(!status || status == MPIG_EIO, 1);
		if (!status) {
			check_context("book", 650);
			ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
		}
		ck_assert_uint_eq(pool_used(f.pool), used);
		ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
		if (calls < k)
			break;
	}
	ck_assert_uint_gt(failed, 8);
}
END_TEST

// ---- the order of calls ----------------------------------------------------------------------------------------------
// What a power loss may take back: bytes of a file that was not synced since, names of a directory that was not.

static struct {
	bool file, segments, context; // something in them is not synced
	bool committed;               // the manifest has its name, and that is synced
	uint32_t renames, unlinks;
} durable;

static int order(const char *call, const char *file, int after)
{
	if (after)
		return 0;
	bool sync = !strcmp(call, "fsync"), rename = !strcmp(call, "rename"), manifest = !strcmp(file, "manifest");
	if (!strcmp(call, "write"))
		durable.file = true;
	if (sync && (!strcmp(file, "writing.tmp") || !strcmp(file, "manifest.tmp")))
		durable.file = false;
	if (rename) {
		ck_assert_msg(!durable.file, "%s gets its name before its bytes are safe", file);
		durable.renames++;
	}
	if (rename && manifest)
		ck_assert_msg(!durable.segments && !durable.context, "the manifest comes before the files it names");
	durable.segments |= rename && strstr(file, ".seg");
	durable.context |= (rename && strstr(file, ".open")) || !strcmp(call, "link");
	durable.segments &= !(sync && !strcmp(file, "segments"));
	durable.context &= !(sync && !strcmp(file, "book"));
	if (rename && manifest)
		durable.committed = false;
	durable.committed |= sync && !strcmp(file, ".");
	if (!strcmp(call, "unlink")) {
		ck_assert_msg(durable.committed, "%s goes before the manifest without it is safe", file);
		durable.unlinks++;
	}
	return 0;
}

START_TEST(order_of_calls)
{
	struct context *c = old_and_new();
	memset(&durable, 0, sizeof durable);
	disk_hook = order;
	ck_assert_int_eq(save("book"), 0);
	ck_assert_uint_eq(durable.renames, 3); // a sealed segment, the open one, the manifest
	ck_assert_uint_ge(durable.unlinks, 1);
	durable.committed = false;
	grow(c, 660, false);
	ck_assert_int_eq(save("book"), 0);
	disk_hook = NULL;
	ck_assert_uint_eq(durable.renames, 5);
	done_with(c, "book");
}
END_TEST

static int truncate_once(const char *call, const char *file, int after)
{
	(void)file;
	struct context *c;
	if (after || strcmp(call, "write") || ++calls != stop_at)
		return 0;
	must(store_context_open(f.store, &root, "book", NULL, &c, f.why) == 0);
	must(context_truncate(f.store, c, 5200, f.why) == 0);
	context_unref(c);
	return 0;
}

// The open segment is cut while it is read: the image is taken again.
START_TEST(truncated_meanwhile)
{
	struct context *c = create("book", 0);
	grow(c, 5000, true);
	grow(c, 19000, false);
	calls = 0;
	stop_at = 6;
	disk_hook = truncate_once;
	ck_assert_msg(save("book") == 0, "%s", f.why);
	disk_hook = NULL;
	ck_assert_uint_ge(calls, stop_at);
	ck_assert_uint_eq(result.tokens, 5200);
	done_with(c, "book");
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 5200);
}
END_TEST

// Nothing that is not on disk as it is, or that somebody has open, leaves memory; the least recently used goes first.
START_TEST(evicted)
{
	char name[MPIG_NAME_BYTES] = "";
	uint64_t cursor = 0;
	struct context *a = create("a", 0), *b = create("b", 0);
	grow(a, 300, true);
	grow(b, 300, true);
	must(!store_evict(f.store, name));
	must(store_next_unsaved(f.store, UINT64_MAX, &cursor, name) && !strcmp(name, "a"));
	must(store_next_unsaved(f.store, UINT64_MAX, &cursor, name) && !strcmp(name, "b"));
	must(!store_next_unsaved(f.store, UINT64_MAX, &cursor, name));
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
	must(store_next_unsaved(f.store, UINT64_MAX, &cursor, name) && !strcmp(name, "b"));
	must(!store_next_unsaved(f.store, 1, &(uint64_t){0}, name)); // used since
	ck_assert_int_eq(save("b"), 0);
	ck_assert_int_eq(load("a"), 0);
	struct credentials other = user(9);
	ck_assert_int_eq(store_context_pin(f.store, &other, "a", true, f.why), MPIG_EACCES);
	ck_assert_int_eq(store_context_evict(f.store, &other, "a", f.why), MPIG_EACCES);
	ck_assert_int_eq(store_context_pin(f.store, &root, "a", true, f.why), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "a", f.why), MPIG_EBUSY);
	must(store_evict(f.store, name) && !strcmp(name, "b"));
	must(!store_evict(f.store, name)); // pinned
	ck_assert_int_eq(store_context_pin(f.store, &root, "a", false, f.why), 0);
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
	ck_assert_int_eq(disk_check(disk, &root, "book", &progress, &result, f.why), 0);
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
	ck_assert_int_eq(disk_check(disk, &root, "book", &progress, &result, f.why), MPIG_ENOENT);
	done_with(c, "book");
}
END_TEST

// ---- damage ----------------------------------------------------------------------------------------------------------

static void damage_file(const char *path, off_t at, bool cut)
{
	int fd = open(path, O_RDWR);
	must(fd >= 0);
	unsigned char byte;
	if (cut) {
		must(ftruncate(fd, at) == 0);
	} else {
		must(pread(fd, &byte, 1, at) == 1);
		byte ^= 0x40;
		must(pwrite(fd, &byte, 1, at) == 1);
	}
	close(fd);
}

static void restore(void)
{
	shell("cd %s && rm -rf contexts/book segments/* damaged/* && cp -a backup/book contexts/", "");
}

// Every page of every file, and cut short: named, put aside, and nothing of it gets into the pool.
START_TEST(damaged_files)
{
	struct context *c = create("book", 1);
	grow(c, 300, true);
	grow(c, 340, false);
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	shell("cd %s && mkdir backup && cp -a contexts/book backup/", "");
	char path[600], directory[128];
	uint64_t used = pool_used(f.pool), found = 0;
	snprintf(directory, sizeof directory, "%s/backup/book", where);
	DIR *list = opendir(directory);
	must(list);
	for (struct dirent *e; (e = readdir(list));) {
		struct stat st;
		snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
		must(stat(path, &st) == 0);
		if (!S_ISREG(st.st_mode))
			continue;
		snprintf(path, sizeof path, "%s/contexts/book/%s", where, e->d_name);
		off_t step = st.st_size > 4096 ? 4096 : 64;
		for (off_t at = 0; at < st.st_size; at += step)
			for (int cut = 0; cut < 2; cut++) {
				restore();
				damage_file(path, at, cut);
				ck_assert_msg(load("book") == MPIG_ECORRUPT, "%s at %ld, cut %d: %s", e->d_name, (long)at, cut,
				              f.why);
				ck_assert(strstr(f.why, "damaged"));
				ck_assert_uint_eq(pool_used(f.pool), used);
				ck_assert_uint_eq(files_in("damaged"), 1);
				ck_assert_int_eq(load("book"), MPIG_ENOENT);
				found++;
			}
	}
	closedir(list);
	ck_assert_uint_gt(found, 60);
	restore();
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 340);
}
END_TEST

static uint32_t told;

static void hear(void *arg, bool failed, const char *text)
{
	(void)arg;
	told += failed && strstr(text, "'bad'");
}

// At start: what a first save left is gone, a damaged manifest is put aside, and files that no manifest names are removed.
START_TEST(tidied_at_start)
{
	struct disk_saved saved[4];
	bool more;
	struct context *c = create("book", 0);
	grow(c, 300, true);
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	shell("cd %s/contexts && mkdir half bad && ln ../segments/*.seg half/ && cp book/* bad/ && touch book/writing.tmp", "");
	shell("cd %s && cp contexts/book/*.seg segments/0.seg && ln segments/0.seg contexts/half/", "");
	disk_destroy(disk);
	open_disk();
	ck_assert_uint_eq(files_in("segments"), 2);
	told = 0;
	ck_assert_uint_eq(disk_recognise(disk, NULL, hear, NULL), 1); // the manifest of 'bad' names another
	ck_assert_uint_eq(told, 1);
	ck_assert_uint_eq(files_in("segments"), 1);
	ck_assert_uint_eq(files_in("contexts"), 1);
	ck_assert_uint_eq(files_in("contexts/book"), 2);
	ck_assert_uint_eq(files_in("damaged"), 1);
	ck_assert_uint_eq(disk_list(disk, &root, "", saved, 4, &more), 1);
	must(!more && !strcmp(saved[0].name, "book") && saved[0].committed == 300);
	ck_assert_uint_eq(disk_list(disk, &root, "book", saved, 4, &more), 0);
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 300);
}
END_TEST

// A later version is refused, and left as it is.
START_TEST(a_future_version)
{
	struct context *c = create("book", 0);
	grow(c, 300, false);
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	char path[200];
	unsigned char data[4096];
	snprintf(path, sizeof path, "%s/contexts/book/manifest", where);
	int fd = open(path, O_RDWR);
	ssize_t n = read(fd, data, sizeof data);
	must(n > 8 && n < (ssize_t)sizeof data);
	uint32_t version = DISK_VERSION + 1;
	memcpy(data + offsetof(struct disk_manifest, version), &version, 4);
	uint64_t sum = XXH3_64bits(data, (size_t)n - 8);
	memcpy(data + n - 8, &sum, 8);
	must(pwrite(fd, data, (size_t)n, 0) == n);
	close(fd);
	ck_assert_int_eq(load("book"), MPIG_EVERSION);
	ck_assert_int_eq(load("book"), MPIG_EVERSION);
	c = create("book", 0);
	ck_assert_int_eq(save("book"), MPIG_EVERSION); // it is not overwritten either
	done_with(c, "book");
	ck_assert_uint_eq(files_in("damaged"), 0);
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
	tcase_add_test(t, forks_share);
	tcase_add_test(t, found_again_after_a_restart);
	tcase_add_test(t, who_may);
	tcase_add_test(t, one_daemon_a_directory);
	tcase_add_test(t, a_full_pool);
	tcase_add_test(t, killed_at_every_call);
	tcase_add_test(t, errors_while_saving);
	tcase_add_test(t, errors_while_loading);
	tcase_add_test(t, order_of_calls);
	tcase_add_test(t, truncated_meanwhile);
	tcase_add_test(t, evicted);
	tcase_add_test(t, an_older_one);
	tcase_add_test(t, cancelled);
	tcase_add_test(t, damaged_files);
	tcase_add_test(t, tidied_at_start);
	tcase_add_test(t, a_future_version);
	suite_add_tcase(suite, t);
	SRunner *runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
