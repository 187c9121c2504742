// What the tests of daemon/disk share: a store, a directory, and steps of a context's life.
#ifndef MPIG_TESTS_DISK_FIXTURE_H
#define MPIG_TESTS_DISK_FIXTURE_H

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

static inline void shell(const char *format, const char *a)
{
	char line[400];
	snprintf(line, sizeof line, format, where, a);
	must(system(line) == 0);
}

static inline void open_disk(void)
{
	struct disk_options o = {.dir = where, .depth = 3, .chunk = IMAGE_PART_MAX, .table_bytes = test_table_bytes};
	memcpy(o.pool_id, pool_superblock(f.pool)->instance_id, sizeof o.pool_id);
	ck_assert_msg(disk_create(&o, &disk, f.why) == 0, "%s", f.why);
}

// A new store and disk over the pool and the directory as they are.
static inline struct store_attached attach_again(void)
{
	disk_destroy(disk);
	store_destroy(f.store);
	pool_close(f.pool, false);
	struct pool_options p = {.dir = f.dir, .instance = "test"};
	ck_assert_int_eq(pool_open(&p, &f.pool, f.why, sizeof f.why), 0);
	struct store_options o = {.pool = f.pool, .upper_reach = 1, .upper_least = 1};
	struct store_attach_options a = {.verify = VERIFY_FULL, .table_bytes = test_table_bytes};
	struct store_attached attached;
	ck_assert_int_eq(store_attach(&o, &a, &f.store, &attached), 0);
	open_disk();
	return attached;
}

static inline void setup(void)
{
	open_small();
	snprintf(where, sizeof where, "/tmp/mpig-disk-%d", (int)getpid());
	shell("rm -rf %s", ""); // of a test that was killed and had our number
	tags = tags_from(1, TAGS);
	open_disk();
}

static inline void teardown(void)
{
	disk_destroy(disk);
	shell("rm -rf %s", "");
	free(tags);
	close_all();
}

// ---- steps -----------------------------------------------------------------------------------------------------------

static inline void grow(struct context *c, uint64_t to, bool sealed)
{
	uint64_t at = context_committed(c);
	append_all(c, at, to - at, tags + at);
	ck_assert_int_eq(commit(c, at, to - at, tags + at), 0);
	if (sealed)
		ck_assert_uint_eq(seal(c, tags), to - at);
}

static inline void done_with(struct context *c, const char *name)
{
	context_release(f.store, c, 1);
	context_unref(c);
	ck_assert_int_eq(store_context_drop(f.store, &root, name, f.why), 0);
}

static inline int save(const char *name)
{
	progress = (struct disk_progress){0};
	return disk_save(disk, f.store, &root, name, true, &progress, &result, f.why);
}

static inline int load(const char *name)
{
	progress = (struct disk_progress){0};
	return disk_load(disk, f.store, &root, name, &progress, &result, f.why);
}

static inline void check_context(const char *name, uint64_t tokens)
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

static inline uint32_t unchecked_parts(const char *name)
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

static inline uint32_t files_in(const char *sub)
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

#endif
