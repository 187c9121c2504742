// Attaching what a daemon left: after a kill at any point, and after damage. What was committed is served, bit for bit; what was not
// is gone; every byte of the pool has one owner or is free; and work goes on.
#include <time.h>

#include "tests/lib/figures.h"
#include "tests/lib/suite.h"
#include "tests/store/crash.h"

static uint64_t attach_killed_in;
static char warnings[4][MPIG_TEXT_BYTES];
static int warned;

static void warn(void *arg, const char *text)
{
	(void)arg;
	snprintf(warnings[warned++ % 4], MPIG_TEXT_BYTES, "%s", text);
}

static struct store_attached attach_at(enum verify_level verify)
{
	struct pool_options p = {.dir = f.dir, .instance = "test"};
	ck_assert_msg(pool_open(&p, &f.pool, f.why, sizeof f.why) == 0, "%s", f.why);
	struct store_options o = {.pool = f.pool, .upper_reach = 1, .upper_least = 1};
	struct store_attach_options a = {.verify = verify, .table_bytes = test_table_bytes, .warn = warn};
	struct store_attached attached;
	warned = 0;
	ck_assert_int_eq(store_attach(&o, &a, &f.store, &attached), 0);
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
	return attached;
}

static void detach(void)
{
	store_destroy(f.store);
	pool_close(f.pool, false);
}

// An opened pool did not make its directory and leaves it.
static void close_last(void)
{
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0);
}

static struct store_attached attach_again(enum verify_level verify)
{
	detach();
	return attach_at(verify);
}

// Independent of the store: the test's own walker reaches what the free map says is used.
static void audit(void)
{
	struct walk w;
	walk_pool(&w, pool_at(f.pool, 0), pool_bytes(f.pool), NULL, NULL);
	must(w.reached == pool_used(f.pool));
	uint64_t fixed = (uint64_t)pool_nodes(f.pool) * POOL_GRANULE + walk_round(8ull * POOL_MAX_CONTEXTS);
	must(store_uid_bytes(f.store, 0) == w.reached - fixed);
	walk_free(&w);
}

// All that is free can be had, and is zero.
static void check_free_memory(void)
{
	uint64_t offset[64], n = 0, bytes = 1 << 20;
	static const unsigned char zero[4096];
	for (; bytes >= 4096; bytes /= 4)
		while (n < 64 && (offset[n] = pool_alloc(f.pool, bytes, 0))) {
			for (uint64_t at = 0; at < bytes; at += 4096)
				must(!memcmp((char *)pool_at(f.pool, offset[n]) + at, zero, 4096));
			n++;
		}
	must(n);
	detach(); // what was taken here is nobody's: the next to attach finds it free
	attach_at(VERIFY_NONE);
}

// ---- contents --------------------------------------------------------------------------------------------------------

static uint64_t check_strip(const struct layer_view *v, uint32_t h, const uint64_t *tags)
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
		if (span->table != UINT32_MAX) {
			const struct table_view *t = &v->strip[h].tables[span->table];
			must(*(const uint8_t *)t->table == (uint8_t)(strip + 1));
		}
		at += span->n;
	}
	return at;
}

static void check_rows(struct context *c, const uint64_t *tags, uint64_t committed)
{
	for (uint32_t layer = 0; layer < context_layer_count(c); layer++) {
		struct layer_view v;
		ck_assert_int_eq(layer_view_get(f.store, c, layer, 0, committed, &v), 0);
		for (uint32_t h = 0; h < v.layer->shape.kv_heads; h++)
			must(check_strip(&v, h, tags) == committed);
		layer_view_free(f.store, &v);
	}
	uint32_t ids[64];
	for (uint64_t at = 0; at < committed; at += 64) {
		uint64_t n = committed - at < 64 ? committed - at : 64;
		context_tokens(f.store, c, at, n, ids);
		for (uint64_t i = 0; i < n; i++)
			must(ids[i] == (uint32_t)tags[at + i]);
	}
}

// What the dead child had told, against what there is; the slots then hold the contexts found.
static int check_told(void)
{
	int found = 0;
	for (int i = 0; i < SLOTS; i++) {
		struct told *t = &report->slot[i];
		context[i] = NULL;
		int status = t->name[0] ? store_context_open(f.store, &root, t->name, NULL, &context[i], f.why) : MPIG_ENOENT;
		must(status == 0 || status == MPIG_ENOENT);
		must(status == 0 ? t->existed || t->exists : !t->existed || !t->exists);
		if (status)
			continue;
		uint64_t committed = context_committed(context[i]);
		must(committed == t->committed || committed == t->will_be);
		check_rows(context[i], t->tags, committed);
		t->committed = t->will_be = committed;
		t->existed = t->exists = 1;
		must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
		found++;
	}
	return found;
}

static void let_go(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (context[i]) {
			context_release(f.store, context[i], (uint64_t)i + 1);
			context_unref(context[i]);
			context[i] = NULL;
		}
}

// Every kind of work on what was found, as if nothing had happened.
static void go_on(uint64_t seed)
{
	uint64_t random = seed;
	for (int step = 0; step < 12; step++) {
		int i = (int)next_below(&random, SLOTS), other = (int)next_below(&random, SLOTS);
		if (!context[i])
			continue;
		struct told *t = &report->slot[i];
		if (step % 3 == 0 && t->committed < MOST)
			do_append(i, 1 + next_below(&random, 900), UINT64_MAX);
		else if (step % 3 == 1)
			do_seal(i);
		else if (!context[other])
			do_fork(i, other, next_below(&random, (uint32_t)t->committed + 1));
		else
			do_truncate(i, t->committed - next_below(&random, (uint32_t)t->committed + 1) / 9);
	}
}

// A daemon that is killed while it attaches, at its k-th point.
static void attach_killed(uint64_t k)
{
	int status;
	detach();
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid) {
		points_arm(&report->points, k);
		attach_at(VERIFY_NONE);
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid);
	must(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
	attach_killed_in += WIFSIGNALED(status);
	attach_at(VERIFY_NONE);
}

static void examine(uint64_t seed)
{
	root = user(0);
	uint64_t random = seed;
	for (int i = 0; i < 3; i++)
		attach_killed(1 + next_below(&random, 80));
	struct store_attached attached = attach_again(VERIFY_FULL);
	must(attached.quarantined == 0 && attached.lost == 0 && warned == 0);
	audit();
	must(attached.contexts == (uint64_t)check_told());
	let_go();
	if (seed % 4 == 0)
		check_free_memory();
	check_told();
	go_on(seed);
	let_go();
	audit();
	attach_again(VERIFY_FULL);
	must(warned == 0);
	audit();
	check_told();
	let_go();
}

START_TEST(killed_at_any_point)
{
	crash_open();
	uint64_t seed = 3000 + (uint64_t)_i, k = 1 + (uint64_t)_i, runs = 0;
	int finished = 0;
	uint64_t stride = getenv("MPIG_LONG") ? 5 : 97; // odd: kills before and after alternate
	for (; !finished; k += stride, runs++) {
		fixture_open(&f, 64 << 20, 0, 0);
		finished = run(seed, k);
		examine(seed + k);
		close_last();
	}
	ck_assert_uint_gt(runs, 5);
	ck_assert_uint_gt(attach_killed_in, 0);
	figures_add("crash.store", (double)runs - 1);
	figures_add("crash.starting again", (double)attach_killed_in);
}
END_TEST

// Killed at each publication of a seal; then a fork seals the segment, longer by some rows and without tables.
static int die_in_seal(uint64_t k)
{
	int status;
	memset(report, 0, sizeof *report);
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid) {
		do_create(0, 1);
		do_append(0, 300, 300);
		points_arm(&report->points, k);
		do_seal(0);
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status);
}

START_TEST(killed_in_a_seal)
{
	crash_open();
	root = user(0);
	uint64_t k = 1;
	for (int finished = 0; !finished; k++) {
		fixture_open(&f, 12 << 20, 0, 0);
		finished = die_in_seal(k);
		attach_again(VERIFY_FULL);
		must(check_told() == 1);
		do_append(0, 20, 20);
		do_fork(0, 1, 310);
		let_go();
		audit();
		attach_again(VERIFY_FULL);
		must(warned == 0 && check_told() == 2);
		let_go();
		audit();
		close_last();
	}
	ck_assert_uint_gt(k, 12);
}
END_TEST

// ---- damage ----------------------------------------------------------------------------------------------------------
// Two families that share nothing: slots 0 and 1 (a fork of 0), 2 and 3 (a fork of 2); each has sealed, indexed rows and an open
// segment.
#define POOL_BYTES (12u << 20)

static unsigned char *image; // of the undamaged pool

static void pool_file(void *data, int write)
{
	char path[96];
	snprintf(path, sizeof path, "%s/node0.pool", f.dir);
	FILE *file = fopen(path, write ? "r+" : "r");
	must(file && (write ? fwrite(data, 1, POOL_BYTES, file) : fread(data, 1, POOL_BYTES, file)) == POOL_BYTES);
	must(fclose(file) == 0);
}

static void make_families(void)
{
	crash_open();
	root = user(0);
	warned = 0;
	fixture_open(&f, POOL_BYTES, 0, 0);
	for (int i = 0; i < SLOTS; i += 2) {
		do_create(i, 1);
		do_append(i, 300, 300);
		do_seal(i);
		do_append(i, 40, 40);
		do_fork(i, i + 1, 320);
		for (int k = 0; k < 2; k++)
			do_append(i + k, 30, 20);
	}
	for (int i = 0; i < SLOTS; i++)
		context_unref(context[i]);
	detach();
	image = malloc(POOL_BYTES);
	must(image);
	pool_file(image, 0);
}

static void unmake_families(void)
{
	close_last();
	free(image);
}

// Puts the undamaged pool back, and attaches it after `change` bytes were written at `at` (within *image).
static struct store_attached attach_changed(uint64_t at, const void *bytes, size_t change, enum verify_level verify)
{
	unsigned char *copy = malloc(POOL_BYTES);
	must(copy);
	memcpy(copy, image, POOL_BYTES);
	memcpy(copy + at, bytes, change);
	pool_file(copy, 1);
	free(copy);
	return attach_at(verify);
}

static int quarantined(int slot)
{
	struct mpig_wire_context list[8];
	uint64_t cursor = 0;
	uint32_t n = store_context_list(f.store, &root, &cursor, list, 8);
	for (uint32_t i = 0; i < n; i++)
		if (!strcmp(list[i].name, report->slot[slot].name)) {
			must((list[i].flags & MPIG_CONTEXT_QUARANTINED) != 0 ||
			     store_context_open(f.store, &root, list[i].name, NULL, &context[slot], f.why) == 0);
			if (!(list[i].flags & MPIG_CONTEXT_QUARANTINED))
				context_unref(context[slot]);
			return (list[i].flags & MPIG_CONTEXT_QUARANTINED) != 0;
		}
	return -1;
}

static void check_whole(int slot)
{
	struct told *t = &report->slot[slot];
	ck_assert_msg(store_context_open(f.store, &root, t->name, NULL, &context[slot], f.why) == 0, "%s", f.why);
	must(context_committed(context[slot]) == t->committed);
	check_rows(context[slot], t->tags, t->committed);
	context_unref(context[slot]);
}

// Where things are in the undamaged pool.
static const struct context_record *record_of(int slot)
{
	const uint64_t *table = (const void *)(image + POOL_GRANULE);
	for (uint32_t i = 0; i < POOL_MAX_CONTEXTS; i++) {
		const struct context_record *r = table[i] ? (const void *)(image + table[i]) : NULL;
		if (r && !strcmp(r->name, report->slot[slot].name))
			return r;
	}
	ck_abort_msg("no record");
}

static const struct segment_record *segment_of(int slot, int last)
{
	const struct context_slot *s = walk_slot(record_of(slot));
	const struct segment_ref *ref = (const void *)(image + s->segments_offset + sizeof(struct segment_list_record));
	return (const void *)(image + ref[last ? s->segment_count - 1 : 0].segment_offset);
}

static uint64_t offset_in(const void *p)
{
	return (uint64_t)((const unsigned char *)p - image);
}

static const struct block_record *block_of(const struct segment_record *r)
{
	return (const void *)(image + r->block[0].offset);
}

static const uint64_t *rows_of(const struct segment_record *r)
{
	return (const void *)(block_of(r) + 1);
}

START_TEST(undamaged)
{
	make_families();
	struct store_attached a = attach_changed(0, image, 1, VERIFY_FULL);
	must(a.contexts == 4 && a.quarantined == 0 && warned == 0);
	for (int i = 0; i < SLOTS; i++)
		check_whole(i);
	audit();
	unmake_families();
}
END_TEST

// A byte of a sealed row, a token id, a code, a table, a parameter: found by the level that reads it, and not by those below.
START_TEST(damaged_content)
{
	make_families();
	const struct segment_record *r = segment_of(0, 0);
	must(r->sealed_rows == 300 && r->generation[0].offset);
	const struct generation_record *g = (const void *)(image + r->generation[0].offset);
	const struct code_block_record *cb = (const void *)(image + g->code_block[0]);
	const uint64_t *codes = (const void *)(cb + 1);
	const struct table_extent *table = (const void *)(g + 1), *upper = table + r->strips;
	const struct {
		uint64_t at;
		enum verify_level found;
	} hit[] = {
		{rows_of(r)[0] + 299 * walk_stride(&(struct mpig_wire_layer){.d_k = 64, .d_v = 64, .row_dtype = MPIG_I8}),
	         VERIFY_FULL},
		{rows_of(r)[2] + 17, VERIFY_FULL},
		{offset_in(rows_of(r) + r->strips) + 4 * 299, VERIFY_FULL},
		{codes[0] + 100, VERIFY_FULL},
		{table[0].offset + table[0].bytes - 1, VERIFY_FULL},
		{upper[0].offset + upper[0].bytes - 1, VERIFY_FULL},
		{offset_in(&upper[0].bytes), VERIFY_NONE},
		{g->params_offset + sizeof(struct params_record) + 64, VERIFY_HEADER},
		{r->frames_offset + 4 * 100, VERIFY_NONE},
	};
	must(codes[0] && table[0].offset && upper[0].offset && g->upper_rows == 300 && r->frames_offset);
	for (size_t i = 0; i < sizeof hit / sizeof hit[0]; i++)
		for (enum verify_level level = VERIFY_NONE; level <= VERIFY_FULL; level++) {
			unsigned char wrong = (unsigned char)~image[hit[i].at];
			struct store_attached a = attach_changed(hit[i].at, &wrong, 1, level);
			int found = level >= hit[i].found;
			ck_assert_msg(a.quarantined == (found ? 2 : 0), "hit %zu, level %d: %lu quarantined", i, (int)level,
			              (unsigned long)a.quarantined);
			must(quarantined(0) == found && quarantined(1) == found && !quarantined(2) && !quarantined(3));
			check_whole(2);
			check_whole(3);
			detach();
		}
	attach_at(VERIFY_NONE);
	unmake_families();
}
END_TEST

static struct verify_part verify_online(const char *name)
{
	struct verify_part all = {0}, part = {.more = true};
	while (part.more) {
		must(store_context_verify(f.store, &root, name, &part, f.why) == 0);
		all.checked += part.checked;
		all.unchecked += part.unchecked;
		all.damaged += part.damaged;
		all.bytes += part.bytes;
	}
	return all;
}

// A living context: parameters and frames are compared, too.
START_TEST(damaged_while_served)
{
	make_families();
	const struct segment_record *r = segment_of(0, 0);
	const struct generation_record *g = (const void *)(image + r->generation[0].offset);
	const uint64_t at[] = {0, g->params_offset + sizeof(struct params_record) + 64, r->frames_offset, rows_of(r)[1]};
	attach_at(VERIFY_NONE);
	for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
		unsigned char *byte = (unsigned char *)pool_at(f.pool, at[i]) + (i ? 3 : 0);
		*byte ^= i ? 0xff : 0;
		struct verify_part found = verify_online(report->slot[0].name);
		must(found.checked >= 3 && found.damaged == (i > 0));
		*byte ^= i ? 0xff : 0;
	}
	unmake_families();
}
END_TEST

START_TEST(quarantine_lasts_until_dropped)
{
	make_families();
	const struct context_record *r = record_of(0);
	uint64_t at = offset_in(&r->spec_offset);
	struct store_attached a = attach_changed(at, &(uint64_t){r->spec_offset + 8}, 8, VERIFY_NONE);
	must(a.contexts == 3 && a.quarantined == 1 && warned == 1); // its record has a checksum: not even its name is known
	detach();
	a = attach_changed(offset_in(block_of(segment_of(0, 1))), &(uint64_t){0}, 8, VERIFY_NONE);
	must(a.contexts == 3 && a.quarantined == 1);
	for (int round = 0; round < 2; round++) {
		must(quarantined(0) == 1 && !quarantined(1));
		must(store_context_open(f.store, &root, report->slot[0].name, NULL, &context[0], f.why) == MPIG_ECORRUPT);
		must(strstr(f.why, "quarantined"));
		must(store_context_chmod(f.store, &root, report->slot[0].name, 0644, UINT32_MAX, UINT32_MAX, f.why) ==
		     MPIG_ECORRUPT);
		for (int i = 1; i < SLOTS; i++)
			check_whole(i);
		a = attach_again(VERIFY_FULL);
		must(a.contexts == 3 && a.quarantined == 1);
	}
	struct credentials other = user(7);
	must(store_context_drop(f.store, &other, report->slot[0].name, f.why) == MPIG_EACCES);
	for (int i = 0; i < SLOTS; i++)
		must(store_context_drop(f.store, &root, report->slot[i].name, f.why) == 0);
	ck_assert_uint_eq(pool_used(f.pool), POOL_GRANULE + 8ull * POOL_MAX_CONTEXTS);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	unmake_families();
}
END_TEST

// An open segment that claims another's rows: of a sealed segment, whose offsets have a checksum, it is the claimant that is damaged; of an
// open one nobody can tell.
START_TEST(two_claim_the_same_rows)
{
	make_families();
	const uint64_t *mine = rows_of(segment_of(0, 1));
	struct store_attached a = attach_changed(offset_in(mine), &rows_of(segment_of(2, 0))[0], 8, VERIFY_NONE);
	must(a.quarantined == 1 && quarantined(0) == 1);
	detach();
	a = attach_changed(offset_in(mine), &rows_of(segment_of(2, 1))[0], 8, VERIFY_NONE);
	must(a.quarantined == 2 && quarantined(0) == 1 && quarantined(2) == 1 && !quarantined(1) && !quarantined(3));
	check_whole(1);
	check_whole(3);
	detach();
	a = attach_changed(offset_in(mine), &(uint64_t){POOL_BYTES}, 8, VERIFY_NONE);
	must(a.quarantined == 1 && quarantined(0) == 1);
	unmake_families();
}
END_TEST

// Entries of the context table that lead to nothing of their own.
START_TEST(damaged_table)
{
	make_families();
	const uint64_t bad[] = {4096, 12345, POOL_BYTES, UINT64_MAX, 0, offset_in(record_of(2))};
	const uint64_t *table = (const void *)(image + POOL_GRANULE);
	uint32_t slot = 0;
	while (table[slot] != offset_in(record_of(0)))
		slot++;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		struct store_attached a = attach_changed(POOL_GRANULE + 8 * slot, &bad[i], 8, VERIFY_FULL);
		must(a.contexts == 3 && a.quarantined == 0 && a.lost == (bad[i] != 0));
		must(quarantined(0) == -1);
		for (int k = 1; k < SLOTS; k++)
			check_whole(k);
		a = attach_again(VERIFY_FULL);
		must(a.contexts == 3 && a.lost == 0);
		detach();
	}
	attach_at(VERIFY_NONE);
	unmake_families();
}
END_TEST

// ---- random damage ---------------------------------------------------------------------------------------------------

// All records of a context, by their offsets.
static uint32_t list_records(int slot, uint64_t *out)
{
	const struct context_record *c = record_of(slot);
	const struct context_slot *s = walk_slot(c);
	const struct segment_ref *ref = (const void *)(image + s->segments_offset + sizeof(struct segment_list_record));
	uint32_t n = 0;
	out[n++] = offset_in(c);
	out[n++] = c->spec_offset;
	out[n++] = s->segments_offset;
	out[n++] = s->params_offset;
	for (uint32_t i = 0; i < s->segment_count; i++) {
		const struct segment_record *r = (const void *)(image + ref[i].segment_offset);
		const struct generation_record *g =
			r->generation[0].offset ? (const void *)(image + r->generation[0].offset) : NULL;
		out[n++] = offset_in(r);
		if (g)
			out[n++] = r->generation[0].offset;
		for (uint32_t b = 0; b < r->block_count; b++) {
			out[n++] = r->block[b].offset;
			if (g && g->code_block[b])
				out[n++] = g->code_block[b];
		}
	}
	return n;
}

// Mostly where something is, and mostly in the words that lead somewhere.
static uint64_t random_place(uint64_t *random, const uint64_t *record, uint32_t records)
{
	uint64_t at = record[next_below(random, records)];
	uint32_t within = next_below(random, 4) ? 448 : 4096;
	return at + next_below(random, within);
}

static void touch_everything(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < SLOTS; i++) {
		struct context *c;
		if (store_context_open(f.store, &root, report->slot[i].name, NULL, &c, f.why))
			continue;
		uint64_t committed = context_committed(c);
		uint32_t ids[64];
		for (uint64_t at = 0; at < committed; at += 64)
			context_tokens(f.store, c, at, committed - at < 64 ? committed - at : 64, ids);
		for (uint32_t layer = 0; layer < context_layer_count(c); layer++) {
			struct layer_view v;
			if (!context_layer(c, layer) || layer_view_get(f.store, c, layer, 0, committed, &v))
				continue;
			for (uint32_t h = 0; h < v.layer->shape.kv_heads; h++)
				for (uint32_t k = 0; k < v.span_count; k++) {
					const struct span *span = &v.strip[h].spans[k];
					for (uint64_t b = 0; b < span->n * (uint64_t)v.layer->rows.stride; b += 64)
						sum += span->rows[b];
					for (uint32_t r = 0; span->codes && r < span->n; r++)
						sum += span->factors[span->block_row + r];
				}
			layer_view_free(f.store, &v);
		}
		if (context_lease(f.store, c, &root, 9, f.why) == 0) {
			uint64_t tags[3] = {1, 2, 3};
			for (uint32_t layer = 0; layer < context_layer_count(c); layer++)
				if (context_layer(c, layer))
					append_rows(&f, c, layer, committed, 3, tags);
			context_release(f.store, c, 9);
		}
		context_unref(c);
	}
	__asm__ volatile("" : : "r"(sum)); // or nothing would be read
}

START_TEST(damaged_at_random)
{
	make_families();
	uint64_t record[64], random = 77 + (uint64_t)_i, served = 0, kept_out = 0;
	unsigned char *good = malloc(POOL_BYTES);
	must(good);
	memcpy(good, image, POOL_BYTES);
	int rounds = getenv("MPIG_LONG") ? 5000 : 150;
	for (int round = 0; round < rounds; round++) {
		memcpy(image, good, POOL_BYTES);
		uint32_t records = list_records(0, record), hits = 1 + next_below(&random, 4);
		records += list_records(1, record + records);
		uint64_t place[4];
		for (uint32_t i = 0; i < hits; i++)
			place[i] = random_place(&random, record, records);
		for (uint32_t i = 0; i < hits; i++)
			image[place[i]] = (unsigned char)(next_below(&random, 3) ? image[place[i]] ^ 1u << next_below(&random, 8)
			                                                         : next_below(&random, 256));
		pool_file(image, 1);
		struct store_attached a = attach_at((enum verify_level)next_below(&random, 3));
		must(a.contexts + a.quarantined + a.lost <= 5 && a.contexts >= 2);
		served += a.contexts - 2;
		kept_out += a.quarantined;
		check_whole(2);
		check_whole(3);
		touch_everything();
		ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
		attach_again(VERIFY_NONE);
		check_whole(2);
		check_whole(3);
		detach();
	}
	must(served && kept_out); // some hits matter, some do not
	free(good);
	attach_at(VERIFY_NONE);
	unmake_families();
}
END_TEST

// ---- pools that are not opened ---------------------------------------------------------------------------------------

static int open_status(const char *instance)
{
	struct pool_options p = {.dir = f.dir, .instance = instance};
	struct pool *pool = NULL;
	f.why[0] = 0;
	int status = pool_open(&p, &pool, f.why, sizeof f.why);
	must((status == 0) == (pool != NULL));
	must(status == 0 || f.why[0]);
	pool_close(pool, false);
	return status;
}

// The status with *at changed, which is part of the superblock; its checksum is made to fit if `seal`.
static int changed_status(uint64_t at, uint64_t value, size_t bytes, int seal)
{
	unsigned char *copy = malloc(POOL_BYTES), *after = malloc(POOL_BYTES);
	must(copy && after);
	memcpy(copy, image, POOL_BYTES);
	memcpy(copy + at, &value, bytes);
	struct superblock *sb = (void *)copy;
	if (seal)
		sb->header.checksum = walk_checksum(sb, sizeof *sb);
	pool_file(copy, 1);
	int status = open_status("test");
	pool_file(after, 0);
	must(!memcmp(copy, after, POOL_BYTES)); // untouched
	free(copy);
	free(after);
	return status;
}

#define SB(member) offsetof(struct superblock, member)

START_TEST(refused_and_left_alone)
{
	make_families();
	must(open_status("test") == 0);
	must(open_status("other") == MPIG_EEXIST && strstr(f.why, "other") && strstr(f.why, "fresh"));
	must(changed_status(SB(layout_version), 2, 4, 1) == MPIG_EVERSION && strstr(f.why, "layout version 2"));
	must(changed_status(SB(incompat), 4, 8, 1) == MPIG_EVERSION && strstr(f.why, "0x4"));
	must(changed_status(SB(ro_compat), 1, 8, 1) == MPIG_EVERSION);
	must(changed_status(SB(compat), 1, 8, 1) == 0);
	must(changed_status(SB(compat), 1, 8, 0) == MPIG_ECORRUPT);
	must(changed_status(SB(pool_magic), 17, 8, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(pool_magic), 0, 8, 1) == MPIG_ECORRUPT); // not unfinished: there are contexts
	must(changed_status(SB(pool_bytes), POOL_BYTES / 2, 8, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(pool_bytes), UINT64_C(1) << 60, 8, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(node_count), 0, 4, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(node_count), 65, 4, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(node_count), 2, 4, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(contexts_offset), 8192, 8, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(contexts_max), 1u << 31, 4, 1) == MPIG_ECORRUPT);
	must(changed_status(SB(granule), 65536, 4, 1) == MPIG_ECORRUPT);
	pool_file(image, 1);
	attach_at(VERIFY_FULL);
	must(open_status("test") == MPIG_EBUSY); // the one that is open
	unmake_families();
}
END_TEST

START_TEST(nothing_to_open)
{
	snprintf(f.dir, sizeof f.dir, "/dev/shm/mpig-test-%d", (int)getpid());
	must(open_status("test") == MPIG_ENOENT);
	must(access(f.dir, F_OK) != 0); // opening makes no directory
	fixture_pool(&f, POOL_BYTES, 1);
	pool_publish_word(f.pool, &pool_superblock(f.pool)->pool_magic, 0); // as if killed just before
	pool_close(f.pool, false);
	must(open_status("test") == MPIG_ENOENT);
	char path[96];
	snprintf(path, sizeof path, "%s/node0.pool", f.dir);
	must(truncate(path, 0) == 0);
	must(open_status("test") == MPIG_ENOENT);
	must(truncate(path, 5000) == 0);
	must(open_status("test") == MPIG_ENOENT);
	must(unlink(path) == 0 && open_status("test") == MPIG_ENOENT && rmdir(f.dir) == 0);
}
END_TEST

// Two files: rows of KV head 1 are in the second.
START_TEST(two_nodes)
{
	crash_open();
	root = user(0);
	fixture_pool(&f, 2 * POOL_BYTES, 2);
	struct store_options o = {.pool = f.pool, .upper_reach = 1, .upper_least = 1};
	ck_assert_int_eq(store_create(&o, &f.store), 0);
	do_create(0, 0);
	do_append(0, 600, 600);
	do_seal(0);
	do_append(0, 50, 30);
	context_unref(context[0]);
	uint64_t used = pool_used(f.pool);
	must(attach_again(VERIFY_FULL).contexts == 1 && pool_used(f.pool) == used);
	check_whole(0);
	audit();
	detach();
	char path[96], away[96];
	snprintf(path, sizeof path, "%s/node1.pool", f.dir);
	snprintf(away, sizeof away, "%s/away", f.dir);
	must(rename(path, away) == 0);
	must(open_status("test") == MPIG_ECORRUPT && strstr(f.why, "node1"));
	must(rename(away, path) == 0);
	attach_at(VERIFY_NONE);
	check_whole(0);
	close_last();
}
END_TEST

// ---- how long --------------------------------------------------------------------------------------------------------

static double ms_since(const struct timespec *begin)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - begin->tv_sec) * 1e3 + (double)(now.tv_nsec - begin->tv_nsec) / 1e6;
}

// A context of 30 layers of 3 KV heads, sealed but for its last rows. Nothing is written into the rows: nobody looks.
static void make_large(const char *name, uint32_t rows)
{
	enum { LAYERS = 30 };
	struct mpig_wire_layer layer[LAYERS];
	for (int i = 0; i < LAYERS; i++)
		layer[i] = layer_of(9, 3, 64, 0, 2, 0, 0);
	struct mpig_ctl_create body = create_of(name, LAYERS);
	struct context *c;
	struct seal_plan plan;
	uint32_t *ids = calloc(rows, sizeof *ids);
	must(store_context_create(f.store, &root, &body, layer, &c, f.why) == 0);
	must(context_lease(f.store, c, &root, 1, f.why) == 0);
	for (uint32_t at = 0, n = rows - 10; at < rows; at += n, n = 10) {
		for (uint32_t i = 0; i < LAYERS; i++) {
			ck_assert_msg(context_reserve(f.store, c, i, at, n, f.why) == 0, "%s", f.why);
			context_appended(c, i, at + n);
		}
		must(context_commit(f.store, c, at, n, ids, f.why) == 0);
		if (at)
			break;
		must(seal_begin(f.store, c, test_table_bytes, &plan, f.why) == 0 && plan.rows == n);
		context_seal_finish(f.store, &plan, true);
	}
	context_release(f.store, c, 1);
	context_unref(c);
	free(ids);
}

// Reported, not asserted.
START_TEST(takes_no_longer_with_longer_rows)
{
	uint64_t bytes = (getenv("MPIG_LONG") ? UINT64_C(9) << 30 : UINT64_C(600) << 20), count = bytes / (UINT64_C(220) << 20);
	root = user(0);
	fixture_open(&f, bytes, 0, 0);
	for (uint64_t i = 0; i < count; i++) {
		char name[16];
		snprintf(name, sizeof name, "large%lu", (unsigned long)i);
		make_large(name, 8192);
	}
	uint64_t used = pool_used(f.pool);
	for (enum verify_level level = VERIFY_NONE; level <= VERIFY_FULL; level++) {
		struct timespec begin;
		detach();
		struct pool_options p = {.dir = f.dir, .instance = "test"};
		struct store_options o = {0};
		struct store_attach_options a = {.verify = level, .table_bytes = test_table_bytes, .warn = warn};
		struct store_attached attached;
		clock_gettime(CLOCK_MONOTONIC, &begin);
		must(pool_open(&p, &f.pool, f.why, sizeof f.why) == 0);
		o.pool = f.pool;
		must(store_attach(&o, &a, &f.store, &attached) == 0);
		double ms = ms_since(&begin);
		must(attached.contexts == count && attached.tokens == count * 8192 && pool_used(f.pool) == used);
		printf("attach, verify level %d: %lu MiB, %lu extents in %.1f ms (%.0f ns an extent)\n", (int)level,
		       (unsigned long)(used >> 20), (unsigned long)attached.extents, ms, ms * 1e6 / (double)attached.extents);
	}
	close_last();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("attach");
	TCase *t = tcase_create("attach");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_loop_test(t, killed_at_any_point, 0, 6);
	tcase_add_test(t, killed_in_a_seal);
	suite_add_tcase(suite, t);
	t = tcase_create("damage");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_test(t, undamaged);
	tcase_add_test(t, damaged_content);
	tcase_add_test(t, damaged_while_served);
	tcase_add_test(t, quarantine_lasts_until_dropped);
	tcase_add_test(t, two_claim_the_same_rows);
	tcase_add_test(t, damaged_table);
	tcase_add_loop_test(t, damaged_at_random, 0, 2);
	suite_add_tcase(suite, t);
	t = tcase_create("refusals");
	tcase_set_timeout(t, 120);
	tcase_add_test(t, refused_and_left_alone);
	tcase_add_test(t, nothing_to_open);
	tcase_add_test(t, two_nodes);
	suite_add_tcase(suite, t);
	t = tcase_create("time");
	tcase_set_timeout(t, 600);
	tcase_add_test(t, takes_no_longer_with_longer_rows);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
