// What a kill, an error, damage or a truncation in the middle of saving and loading leaves: the old state or the new one.
#include "tests/disk/fixture.h"
#include "tests/lib/suite.h"

// ---- kills and errors ------------------------------------------------------------------------------------------------

static uint64_t calls, stop_at;
static int what; // an errno, or -1: SIGKILL

static int hook(const struct disk_call *call, int after)
{
	(void)call;
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

static void publication(const void *dst, size_t bytes, int after)
{
	(void)dst, (void)bytes, (void)after;
	if (++calls == stop_at)
		kill(getpid(), SIGKILL);
}

static void attach_both_again(void)
{
	struct store_attached attached = attach_again();
	ck_assert_uint_eq(attached.contexts, 2);
	ck_assert_uint_eq(attached.quarantined, 0);
}

// The sums that a fork left out are stored one by one: whatever of them there is, the segment is believed, and gets the rest later.
START_TEST(killed_while_sums_are_stored)
{
	uint64_t k = 1;
	for (bool finished = false; !finished; k++) {
		struct context *c = create("book", 0), *child;
		grow(c, 100, false);
		grow(c, 700, false);
		ck_assert_int_eq(store_context_fork(f.store, &root, c, 650, "child", &child, f.why), 0);
		pid_t pid = fork();
		must(pid >= 0);
		if (!pid) {
			calls = 0;
			stop_at = k;
			pool_publish_hook = publication;
			_exit(save("child") ? 1 : 0);
		}
		int status;
		must(waitpid(pid, &status, 0) == pid);
		finished = WIFEXITED(status);
		ck_assert(!finished || WEXITSTATUS(status) == 0);
		context_release(f.store, c, 1);
		context_unref(c);
		context_unref(child);
		attach_both_again();
		check_context("child", 650);
		ck_assert_int_eq(save("child"), 0);
		ck_assert_uint_eq(unchecked_parts("child"), 0);
		ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
		ck_assert_int_eq(store_context_drop(f.store, &root, "child", f.why), 0);
	}
	ck_assert_uint_gt(k, 6);
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0); // an opened pool did not make its directory and leaves it
	open_small();
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
		ck_assert_msg(disk_check(disk, f.store, &root, "book", &progress, &result, f.why) == 0, "call %lu: %s",
		              (unsigned long)k, f.why);
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

static int order(const struct disk_call *made, int after)
{
	const char *call = made->call, *file = made->file;
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

static bool unsyncable, synced;

static int collecting(const struct disk_call *call, int after)
{
	bool sync = !strcmp(call->call, "fsync") && !strcmp(call->file, "book");
	synced |= sync && after;
	ck_assert_msg(synced || strcmp(call->call, "unlink"), "%s goes before the manifest is durable", call->file);
	return unsyncable && sync ? EIO : 0;
}

// A killed daemon's manifest may be in place and not durable: what the one before it named is collected only after that, if at all.
START_TEST(collected_after_the_manifest)
{
	struct disk_gc_options options = {.dry = true};
	struct disk_gc_result found;
	struct context *c = create("book", 0);
	grow(c, 300, true);
	ck_assert_int_eq(save("book"), 0);
	done_with(c, "book");
	shell("touch %s/contexts/book/writing.tmp", "");
	disk_hook = collecting;
	ck_assert_int_eq(disk_gc(disk, &options, &found, f.why), 0);
	ck_assert_uint_eq(found.leftovers, 1);
	ck_assert(!synced); // it only looks
	options.dry = false;
	unsyncable = true;
	ck_assert_int_ne(disk_gc(disk, &options, &found, f.why), 0);
	ck_assert_uint_eq(files_in("contexts/book"), 3);
	unsyncable = false;
	ck_assert_int_eq(disk_gc(disk, &options, &found, f.why), 0);
	disk_hook = NULL;
	ck_assert_uint_eq(found.leftovers, 1);
	ck_assert_uint_eq(files_in("contexts/book"), 2);
	ck_assert_int_eq(load("book"), 0);
}
END_TEST

static int truncate_once(const struct disk_call *call, int after)
{
	struct context *c;
	if (after || strcmp(call->call, "write") || ++calls != stop_at)
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

// What was found damaged is not what anything else relies on: neither what is in memory of it, nor those that share its files, count as
// saved any more, and they are saved whole.
START_TEST(damage_is_not_relied_on)
{
	char path[600], directory[128];
	struct context *c = create("book", 1), *child;
	grow(c, 300, true);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 300, "child", &child, f.why), 0);
	ck_assert_int_eq(save("book"), 0);
	ck_assert_int_eq(save("child"), 0);
	ck_assert_uint_eq(result.shared, 1);
	context_release(f.store, c, 1);
	context_unref(c);
	context_unref(child);
	snprintf(directory, sizeof directory, "%s/segments", where);
	DIR *list = opendir(directory);
	must(list);
	for (struct dirent *e; (e = readdir(list));)
		if (e->d_name[0] != '.') {
			snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
			damage_file(path, 8192, false);
		}
	closedir(list);
	progress = (struct disk_progress){0};
	ck_assert_int_eq(disk_check(disk, f.store, &root, "book", &progress, &result, f.why), MPIG_ECORRUPT);
	ck_assert_int_eq(store_context_evict(f.store, &root, "book", f.why), MPIG_EBUSY);
	ck_assert_int_eq(store_context_evict(f.store, &root, "child", f.why), MPIG_EBUSY);
	ck_assert_int_eq(save("child"), 0);
	ck_assert_uint_eq(result.shared, 0);
	ck_assert_int_eq(save("book"), 0);
	ck_assert_uint_eq(result.shared, 1);
	ck_assert_int_eq(store_context_evict(f.store, &root, "book", f.why), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "child", f.why), 0);
	ck_assert_int_eq(load("book"), 0);
	ck_assert_int_eq(load("child"), 0);
	check_context("book", 300);
	check_context("child", 300);
	ck_assert_uint_eq(files_in("damaged"), 1);
}
END_TEST

// Found while tokens are looked up: what is in memory does not count as saved any more, and is not let go.
START_TEST(damage_found_while_placing)
{
	char path[200];
	struct context *c = create("book", 1);
	grow(c, 300, true);
	ck_assert_int_eq(save("book"), 0);
	context_release(f.store, c, 1);
	context_unref(c);
	snprintf(path, sizeof path, "%s/contexts/book/manifest", where);
	damage_file(path, 100, false);
	const struct unplaced of = {.name = "book", .number = 1};
	static const atomic_bool nobody;
	ck_assert_int_eq(disk_place(disk, f.store, &of, &nobody, &nobody, f.why), MPIG_ECORRUPT);
	ck_assert_uint_eq(files_in("damaged"), 1);
	ck_assert_int_eq(store_context_evict(f.store, &root, "book", f.why), MPIG_EBUSY);
	ck_assert_int_eq(save("book"), 0);
	ck_assert_int_eq(store_context_evict(f.store, &root, "book", f.why), 0);
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 300);
}
END_TEST

// A manifest that is damaged is in nobody's way.
START_TEST(saved_over_damage)
{
	char path[200];
	struct context *c = create("book", 1);
	grow(c, 300, true);
	ck_assert_int_eq(save("book"), 0);
	snprintf(path, sizeof path, "%s/contexts/book/manifest", where);
	damage_file(path, 100, false);
	grow(c, 340, false);
	ck_assert_msg(save("book") == 0, "%s", f.why);
	ck_assert_uint_eq(files_in("damaged"), 1);
	done_with(c, "book");
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
	ck_assert(!disk_is_known(disk));
	ck_assert_uint_eq(disk_recognise(disk, NULL, hear, NULL), 1); // the manifest of 'bad' names another
	ck_assert(disk_is_known(disk));
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

// Another version, earlier or later, is refused, and left as it is.
START_TEST(another_version)
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
	uint32_t version = _i ? DISK_VERSION + 1 : DISK_VERSION_OLDEST - 1;
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

// A segment file as version 2 had it: sums of other parts, which are nobody's business. Returns its header's checksum.
static uint64_t make_older(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDWR);
	must(fd >= 0 && fstat(fd, &st) == 0);
	uint8_t *data = malloc((size_t)st.st_size);
	must(data && pread(fd, data, (size_t)st.st_size, 0) == st.st_size);
	struct disk_segment_header *h = (struct disk_segment_header *)(void *)data;
	must(h->version == DISK_VERSION && h->block_count);
	struct disk_block *block = (struct disk_block *)(void *)(data + h->index_offset);
	for (uint32_t b = 0; b < h->block_count && h->flags & DISK_SEALED; b++) {
		must(block[b].content != 0);
		block[b].content = 12345 + b;
		block[b].codes_content = block[b].has_codes ? 54321 : 0;
	}
	h->table_content = h->flags & (DISK_TABLES | DISK_UPPER) ? 999 : 0;
	h->version = 2;
	h->index_checksum = XXH3_64bits(block, h->index_bytes);
	uint64_t sum = h->checksum = XXH3_64bits(h, offsetof(struct disk_segment_header, checksum));
	must(pwrite(fd, data, (size_t)st.st_size, 0) == st.st_size);
	free(data);
	close(fd);
	return sum;
}

static uint32_t verified(const char *name, uint32_t *unchecked)
{
	struct verify_part part = {0};
	uint32_t checked = 0;
	*unchecked = 0;
	do {
		ck_assert_int_eq(store_context_verify(f.store, &root, name, &part, f.why), 0);
		ck_assert_uint_eq(part.damaged, 0);
		checked += part.checked;
		*unchecked += part.unchecked;
	} while (part.more);
	return checked;
}

// Files of version 2 are read, their sums are made from what came, and what is saved is of this version; of a damaged one nothing is believed.
START_TEST(the_version_before)
{
	struct context *c = create("book", 1);
	grow(c, 300, true);
	grow(c, 500, true);
	grow(c, 540, false);
	ck_assert_int_eq(save("book"), 0);
	uint32_t unchecked, checked = verified("book", &unchecked), still;
	done_with(c, "book");
	char path[200], segment[500], id[40];
	static _Alignas(8) unsigned char data[1 << 16];
	snprintf(path, sizeof path, "%s/contexts/book/manifest", where);
	int fd = open(path, O_RDWR);
	ssize_t n = read(fd, data, sizeof data);
	must(n > (ssize_t)sizeof(struct disk_manifest) && n < (ssize_t)sizeof data);
	struct disk_manifest *m = (struct disk_manifest *)(void *)data;
	struct disk_segment_ref *ref =
		(struct disk_segment_ref *)(void *)(data + sizeof *m + m->layer_count * sizeof(struct mpig_wire_layer));
	ck_assert_uint_eq(m->segment_count, 3);
	m->version = 2;
	for (uint32_t i = 0; i < m->segment_count; i++) {
		for (uint32_t b = 0; b < IMAGE_ID_BYTES; b++)
			snprintf(id + 2 * b, 3, "%02x", ref[i].id[b]);
		snprintf(segment, sizeof segment, "%s/contexts/book/%s.%s", where, id,
		         ref[i].flags & DISK_SEALED ? "seg" : "open");
		ref[i].header_checksum = make_older(segment);
	}
	uint64_t sum = XXH3_64bits(data, (size_t)n - 8);
	memcpy(data + n - 8, &sum, 8);
	must(pwrite(fd, data, (size_t)n, 0) == n);
	close(fd);
	ck_assert_msg(load("book") == 0, "%s", f.why);
	check_context("book", 540);
	ck_assert_uint_eq(verified("book", &still), checked);
	ck_assert_uint_eq(still, unchecked);
	ck_assert_uint_eq(attach_again().quarantined, 0); // which looks at all of it
	ck_assert_msg(store_context_open(f.store, &root, "book", NULL, &c, f.why) == 0, "%s", f.why);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	grow(c, 700, false);
	ck_assert_msg(save("book") == 0, "%s", f.why);
	done_with(c, "book");
	ck_assert_msg(load("book") == 0, "%s", f.why);
	check_context("book", 700);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	fd = open(path, O_RDONLY);
	must(pread(fd, data, sizeof data, 0) > (ssize_t)sizeof *m);
	close(fd);
	ck_assert_uint_eq(m->version, DISK_VERSION);
	for (uint32_t b = 0; b < IMAGE_ID_BYTES; b++)
		snprintf(id + 2 * b, 3, "%02x", ref[0].id[b]);
	snprintf(segment, sizeof segment, "%s/contexts/book/%s.seg", where, id);
	damage_file(segment, 8192, false);
	ck_assert_int_eq(load("book"), MPIG_ECORRUPT);
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0); // an opened pool did not make its directory and leaves it
	open_small();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk faults");
	TCase *t = tcase_create("disk");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, killed_at_every_call);
	tcase_add_test(t, killed_while_sums_are_stored);
	tcase_add_test(t, errors_while_saving);
	tcase_add_test(t, errors_while_loading);
	tcase_add_test(t, order_of_calls);
	tcase_add_test(t, collected_after_the_manifest);
	tcase_add_test(t, truncated_meanwhile);
	tcase_add_test(t, damaged_files);
	tcase_add_test(t, damage_is_not_relied_on);
	tcase_add_test(t, damage_found_while_placing);
	tcase_add_test(t, saved_over_damage);
	tcase_add_test(t, tidied_at_start);
	tcase_add_loop_test(t, another_version, 0, 2);
	tcase_add_test(t, the_version_before);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
