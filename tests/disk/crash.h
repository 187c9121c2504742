// Work on a pool and a directory on disk, to be killed at any of its points: the actions of tests/store/crash.h and those of a disk; and
// what the next daemon must find.
#ifndef MPIG_TESTS_DISK_CRASH_H
#define MPIG_TESTS_DISK_CRASH_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "daemon/disk/disk.h"
#include "daemon/disk/format.h"
#include "daemon/disk/io.h"
#include "tests/store/crash.h"

static struct disk *disk;
static char where[160];

static inline void shell(const char *format)
{
	char line[300];
	snprintf(line, sizeof line, format, where);
	must(system(line) == 0);
}

static inline void open_disk(void)
{
	struct disk_options o = {.dir = where, .depth = 3, .chunk = IMAGE_PART_MAX, .table_bytes = test_table_bytes};
	memcpy(o.pool_id, pool_superblock(f.pool)->instance_id, sizeof o.pool_id);
	ck_assert_msg(disk_create(&o, &disk, f.why) == 0, "%s", f.why);
}

// Told to whoever keeps a history of what is on disk (tests/disk/test_power_loss.c): `now` is being made so, or has been.
static void (*disk_told)(const char *name, const struct version *now, bool acknowledged);

static inline void begin_disk(int i)
{
	if (disk_told)
		disk_told(report->slot[i].name, &report->slot[i].saved[1], false);
}

static inline void end_disk(int i)
{
	struct told *t = &report->slot[i];
	t->saved[0] = t->saved[1];
	if (disk_told)
		disk_told(t->name, &t->saved[0], true);
}

// ---- actions ---------------------------------------------------------------------------------------------------------

static inline void act_save(int i, uint64_t *random)
{
	(void)random;
	struct disk_progress progress = {0};
	struct disk_result result;
	struct told *t = &report->slot[i];
	memcpy(t->saved[1].tags, t->tags, t->committed * sizeof *t->tags);
	t->saved[1].committed = t->committed;
	t->saved[1].exists = 1;
	begin_disk(i);
	ck_assert_msg(disk_save(disk, f.store, &root, t->name, true, &progress, &result, f.why) == 0, "%s", f.why);
	must(result.tokens == t->committed);
	end_disk(i);
}

static inline void act_load(int i, uint64_t *random)
{
	(void)random;
	struct disk_progress progress = {0};
	struct disk_result result;
	struct told *t = &report->slot[i];
	if (!t->saved[0].exists)
		return;
	memcpy(t->tags, t->saved[0].tags, t->saved[0].committed * sizeof *t->tags);
	t->committed = t->will_be = t->saved[0].committed;
	t->exists = 1;
	ck_assert_msg(disk_load(disk, f.store, &root, t->name, &progress, &result, f.why) == 0, "%s", f.why);
	t->existed = 1;
	must(store_context_open(f.store, &root, t->name, NULL, &context[i], f.why) == 0);
	must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
}

static inline void act_erase(int i, uint64_t *random)
{
	(void)random;
	struct told *t = &report->slot[i];
	if (!t->saved[0].exists)
		return;
	t->saved[1].exists = 0;
	begin_disk(i);
	ck_assert_msg(disk_erase(disk, f.store, &root, t->name, f.why) == 0, "%s", f.why);
	end_disk(i);
}

static inline void act_check(int i, uint64_t *random)
{
	(void)random;
	struct disk_progress progress = {0};
	struct disk_result result;
	struct told *t = &report->slot[i];
	int status = disk_check(disk, f.store, &root, t->name, &progress, &result, f.why);
	must(status == (t->saved[0].exists ? 0 : t->name[0] ? MPIG_ENOENT : MPIG_EINVAL));
	must(status || result.tokens == t->saved[0].committed);
}

// Nobody has it open while it is pinned, refused, unpinned and, if it is on disk as it is, evicted.
static inline void act_evict(int i, uint64_t *random)
{
	struct told *t = &report->slot[i];
	context_release(f.store, context[i], (uint64_t)i + 1);
	context_unref(context[i]);
	must(pin(&f, t->name, &root, UINT64_MAX) == 0);
	must(store_context_evict(f.store, &root, t->name, f.why) == MPIG_EBUSY);
	must(pin(&f, t->name, &root, 0) == 0);
	t->exists = 0;
	if (next_below(random, 4) && store_context_evict(f.store, &root, t->name, f.why) == 0) {
		must(t->saved[0].exists && t->saved[0].committed == t->committed);
		must(!memcmp(t->saved[0].tags, t->tags, t->committed * sizeof *t->tags));
		t->existed = 0;
		context[i] = NULL;
		return;
	}
	t->exists = 1;
	must(store_context_open(f.store, &root, t->name, NULL, &context[i], f.why) == 0);
	must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
}

static const struct action all_actions[] = {
	{"create", 4, false, act_create},  {"load", 3, false, act_load},
	{"erase", 1, false, act_erase},    {"check", 1, false, act_check},
	{"append", 12, true, act_append},  {"seal", 5, true, act_seal},
	{"reindex", 2, true, act_reindex}, {"truncate", 2, true, act_truncate},
	{"chmod", 1, true, act_chmod},     {"fork", 3, true, act_fork},
	{"drop", 1, true, act_drop},       {"save", 5, true, act_save},
	{"evict", 2, true, act_evict},     {"erase", 1, true, act_erase},
	{"check", 1, true, act_check},     {NULL, 0, 0, NULL},
};

// ---- contents --------------------------------------------------------------------------------------------------------

static inline uint64_t check_strip(const struct layer_view *v, uint32_t h, const uint64_t *tags)
{
	const struct layer *l = v->layer;
	uint64_t at = v->begin;
	uint32_t strip = l->first_strip + h;
	for (uint32_t i = 0; i < v->span_count; i++) {
		const struct span *span = &v->strip[h].spans[i];
		must(span->first == at);
		for (uint32_t r = 0; r < span->n; r++) {
			must(row_is(span->rows + (uint64_t)r * l->rows.stride, l->rows.stride, tags[at + r], strip));
			must(!span->codes || codes_are(span->codes, span->factors, span->block_row + r,
			                               code_width(l, v->strip[h].params.bits), tags[at + r], strip));
		}
		at += span->n;
	}
	return at;
}

// Rows, codes and token ids of [0, committed).
static inline void check_content(struct context *c, const uint64_t *tags, uint64_t committed)
{
	for (uint32_t layer = 0; layer < context_layer_count(c); layer++) {
		struct layer_view v;
		ck_assert_int_eq(layer_view_get(f.store, c, layer, 0, committed, &v), 0);
		for (uint32_t h = 0; h < v.layer->shape.kv_heads; h++)
			must(check_strip(&v, h, tags) == committed);
		layer_view_free(f.store, &v);
	}
	uint32_t *ids = malloc((committed + 1) * sizeof *ids);
	context_tokens(f.store, c, 0, committed, ids);
	for (uint64_t i = 0; i < committed; i++)
		must(ids[i] == (uint32_t)tags[i]);
	free(ids);
}

static inline bool is_version(struct context *c, const struct version *v)
{
	uint64_t committed = context_committed(c);
	if (!v->exists || committed != v->committed)
		return false;
	uint32_t *ids = malloc((committed + 1) * sizeof *ids);
	bool same = true;
	context_tokens(f.store, c, 0, committed, ids);
	for (uint64_t i = 0; i < committed; i++)
		same &= ids[i] == (uint32_t)v->tags[i];
	free(ids);
	return same;
}

// Independent of the store: the tests' own walker reaches what the free map says is used.
static inline void audit(void)
{
	struct walk w;
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
	walk_pool(&w, pool_at(f.pool, 0), pool_bytes(f.pool), NULL, NULL);
	must(w.reached == pool_used(f.pool));
	uint64_t fixed = (uint64_t)pool_nodes(f.pool) * POOL_GRANULE + walk_round(8ull * POOL_MAX_CONTEXTS);
	must(store_uid_bytes(f.store, 0) == w.reached - fixed);
	walk_free(&w);
}

// ---- the next daemon -------------------------------------------------------------------------------------------------

static uint32_t bad_told;
static char bad_text[MPIG_TEXT_BYTES];

static inline void hear_bad(void *arg, bool failed, const char *text)
{
	(void)arg;
	bad_told += failed;
	if (failed)
		snprintf(bad_text, sizeof bad_text, "%s", text);
}

static inline void warn_bad(void *arg, const char *text)
{
	hear_bad(arg, true, text);
}

static inline void open_store(void)
{
	struct pool_options p = {.dir = f.dir, .instance = "test"};
	ck_assert_msg(pool_open(&p, &f.pool, f.why, sizeof f.why) == 0, "%s", f.why);
	struct store_options o = {.pool = f.pool};
	struct store_attach_options a = {.verify = VERIFY_FULL, .table_bytes = test_table_bytes, .warn = warn_bad};
	struct store_attached attached;
	ck_assert_int_eq(store_attach(&o, &a, &f.store, &attached), 0);
	must(attached.quarantined == 0 && attached.lost == 0);
}

// As a daemon does when it starts; what it complains of is counted in bad_told.
static inline void start_again(void)
{
	bad_told = 0;
	open_store();
	open_disk();
	must(disk_recognise(disk, f.store, hear_bad, NULL) == 0);
	ck_assert_msg(!bad_told, "%s", bad_text);
}

static inline void stop(void)
{
	disk_destroy(disk);
	store_destroy(f.store);
	pool_close(f.pool, false);
}

#endif
