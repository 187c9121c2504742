// The longest common prefix against a plain comparison of every context.
#include "daemon/store/internal.h"
#include "tests/lib/suite.h"
#include "tests/store/fixture.h"

#define CONTEXTS 12
#define MOST 2000u

static struct fixture f;
static void setup(void)
{
	fixture_open(&f, 128 << 20, 0, 0);
}
static void teardown(void)
{
	fixture_close(&f);
}

static struct {
	struct context *c;
	uint32_t token[MOST];
	uint64_t n;
	uint32_t uid, mode;
	uint8_t fingerprint;
} held[CONTEXTS];

static void append(int i, uint64_t count)
{
	uint64_t *tags = calloc(count, sizeof *tags);
	must(append_rows(&f, held[i].c, 0, held[i].n, count, tags) == 0);
	must(context_commit(f.store, held[i].c, held[i].n, count, held[i].token + held[i].n, f.why) == 0);
	held[i].n += count;
	free(tags);
}

// Sequences branch off a few trunks, so that long prefixes are shared.
static void make(int i, uint64_t *random)
{
	char name[16];
	snprintf(name, sizeof name, "c%d", i);
	struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
	struct mpig_ctl_create body = create_of(name, 1);
	held[i].uid = next_below(random, 3);
	held[i].mode = next_below(random, 2) ? 0600 : 0644;
	held[i].fingerprint = (uint8_t)(1 + next_below(random, 2));
	body.mode = held[i].mode;
	body.fingerprint[0] = (char)held[i].fingerprint;
	struct credentials who = user(held[i].uid);
	must(store_context_create(f.store, &who, &body, &layer, &held[i].c, f.why) == 0);
	must(context_lease(f.store, held[i].c, &who, 1, f.why) == 0);
	uint32_t branch = next_below(random, MOST);
	for (uint32_t t = 0; t < MOST; t++)
		held[i].token[t] = t < branch ? t % 7 : (uint32_t)mix((uint64_t)i * MOST + t) % 50;
	held[i].n = 0;
}

START_TEST(agrees_with_comparing_everything)
{
	uint64_t random = (uint64_t)_i, found = 0;
	for (int i = 0; i < CONTEXTS; i++) {
		make(i, &random);
		for (int k = 0; k < 3; k++)
			append(i, 1 + next_below(&random, 600));
		if (next_below(&random, 2)) { // and on, otherwise
			uint64_t to = next_below(&random, (uint32_t)held[i].n + 1);
			must(context_truncate(f.store, held[i].c, to, f.why) == 0);
			for (uint64_t t = to; t < MOST; t++)
				held[i].token[t] = (uint32_t)t % 7;
			held[i].n = to;
			append(i, 1 + next_below(&random, (uint32_t)(MOST - to)));
		}
	}
	for (int query = 0; query < 200; query++) {
		uint32_t token[MOST], base = next_below(&random, CONTEXTS), branch = next_below(&random, MOST),
				      n = next_below(&random, MOST) + 1;
		for (uint32_t t = 0; t < MOST; t++)
			token[t] = t < branch ? held[base].token[t] : next_below(&random, 50);
		struct credentials who = user(next_below(&random, 3));
		uint8_t fingerprint[64] = {(uint8_t)(1 + next_below(&random, 2))};
		uint64_t best = 0, matched = 0;
		for (int i = 0; i < CONTEXTS; i++) {
			if (held[i].fingerprint != fingerprint[0] || (who.uid && who.uid != held[i].uid && held[i].mode == 0600))
				continue;
			uint64_t same = 0;
			while (same < n && same < held[i].n && held[i].token[same] == token[same])
				same++;
			best = same > best ? same : best;
		}
		struct context *c = NULL;
		int status = store_context_open_prefix(f.store, &who, fingerprint, token, n, 0, &c, &matched, f.why);
		must(status == (best ? 0 : MPIG_ENOENT));
		if (!best)
			continue;
		must(matched == best);
		int i = 0;
		while (held[i].c != c)
			i++;
		must(held[i].n >= best && !memcmp(held[i].token, token, best * sizeof *token));
		context_unref(c);
		must(store_context_open_prefix(f.store, &who, fingerprint, token, n, best + 1, &c, &matched, f.why) ==
		     MPIG_ENOENT);
		found++;
	}
	ck_assert_uint_gt(found, 50);
	for (int i = 0; i < CONTEXTS; i++)
		context_unref(held[i].c);
}
END_TEST

START_TEST(of_equal_matches_the_one_with_least_beyond)
{
	struct credentials root = user(0);
	static const uint64_t length[] = {900, 600, 800};
	for (int i = 0; i < 3; i++) {
		struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
		struct mpig_ctl_create body = create_of((char[]){'d', (char)('0' + i), 0}, 1);
		ck_assert_int_eq(store_context_create(f.store, &root, &body, &layer, &held[i].c, f.why), 0);
		ck_assert_int_eq(context_lease(f.store, held[i].c, &root, 1, f.why), 0);
		held[i].n = 0;
		for (uint32_t t = 0; t < MOST; t++)
			held[i].token[t] = t;
		append(i, length[i]);
	}
	uint8_t fingerprint[64] = {1};
	struct context *c;
	uint64_t matched;
	ck_assert_int_eq(store_context_open_prefix(f.store, &root, fingerprint, held[0].token, 700, 1, &c, &matched, f.why), 0);
	ck_assert_ptr_eq(c, held[2].c);
	ck_assert_uint_eq(matched, 700);
	context_unref(c);
	ck_assert_int_eq(store_context_open_prefix(f.store, &root, fingerprint, held[0].token, 850, 1, &c, &matched, f.why), 0);
	ck_assert_ptr_eq(c, held[0].c);
	context_unref(c);
	struct credentials someone = user(77); // to whom none of them is there
	ck_assert_int_eq(store_context_open_prefix(f.store, &someone, fingerprint, held[0].token, 700, 1, &c, &matched, f.why),
	                 MPIG_ENOENT);
	ck_assert_int_eq(store_context_open_prefix(f.store, &root, fingerprint, held[0].token, MPIG_MAX_TOKENS + 1, 1, &c,
	                                           &matched, f.why),
	                 MPIG_EINVAL);
	fingerprint[0] = 9;
	ck_assert_int_eq(store_context_open_prefix(f.store, &root, fingerprint, held[0].token, 700, 1, &c, &matched, f.why),
	                 MPIG_ENOENT);
	for (int i = 0; i < 3; i++)
		context_unref(held[i].c);
}
END_TEST

START_TEST(a_fork_is_found_as_its_parent_is)
{
	uint64_t random = 2, matched;
	struct credentials root = user(0);
	make(0, &random);
	append(0, 1000);
	struct context *child, *c;
	uint8_t fingerprint[64] = {held[0].fingerprint};
	ck_assert_int_eq(store_context_fork(f.store, &root, held[0].c, 777, "child", &child, f.why), 0);
	ck_assert_int_eq(store_context_open_prefix(f.store, &root, fingerprint, held[0].token, 777, 1, &c, &matched, f.why), 0);
	ck_assert_ptr_eq(c, child);
	ck_assert_uint_eq(matched, 777);
	context_unref(c);
	ck_assert_int_eq(store_context_open_prefix(f.store, &root, fingerprint, held[0].token, 778, 1, &c, &matched, f.why), 0);
	ck_assert_ptr_eq(c, held[0].c);
	context_unref(c);
	context_unref(child);
	context_unref(held[0].c);
}
END_TEST

// ---- a life of appends, truncations, forks and drops, against comparing everything -------------------------------------

static void drop(int i)
{
	struct credentials root = user(0);
	char name[MPIG_NAME_BYTES];
	snprintf(name, sizeof name, "%s", held[i].c->name);
	context_release(f.store, held[i].c, 1);
	must(store_context_drop(f.store, &root, name, f.why) == 0);
	context_unref(held[i].c);
	held[i].c = NULL;
}

static void begin(int i, uint32_t number)
{
	struct credentials root = user(0);
	struct mpig_wire_layer layer = layer_of(1, 1, 64, 0, 0, 0, 0);
	char name[16];
	snprintf(name, sizeof name, "n%u", number);
	struct mpig_ctl_create body = create_of(name, 1);
	must(store_context_create(f.store, &root, &body, &layer, &held[i].c, f.why) == 0);
	must(context_lease(f.store, held[i].c, &root, 1, f.why) == 0);
	held[i].n = 0;
}

static void fork_of(int i, int parent, uint64_t tokens, uint32_t number)
{
	struct credentials root = user(0);
	char name[16];
	snprintf(name, sizeof name, "n%u", number);
	must(store_context_fork(f.store, &root, held[parent].c, tokens, name, &held[i].c, f.why) == 0);
	must(context_lease(f.store, held[i].c, &root, 1, f.why) == 0);
	memcpy(held[i].token, held[parent].token, sizeof held[i].token);
	held[i].n = tokens;
}

// Three symbols, so that sequences meet again after they have parted.
static void extend(int i, uint64_t *random)
{
	uint32_t count = 1 + next_below(random, next_below(random, 4) ? 3 : 40);
	if (held[i].n + count > MOST)
		return;
	for (uint32_t t = 0; t < count; t++)
		held[i].token[held[i].n + t] = next_below(random, 8) ? 0 : 1 + next_below(random, 2);
	append(i, count);
}

static void ask(uint64_t *random)
{
	uint8_t fingerprint[64] = {1};
	struct credentials root = user(0);
	uint32_t token[100], n = 1 + next_below(random, 100);
	for (uint32_t t = 0; t < n; t++)
		token[t] = next_below(random, 8) ? 0 : 1 + next_below(random, 2);
	uint64_t best = 0, matched = 0;
	for (int i = 0; i < CONTEXTS; i++) {
		uint64_t same = 0;
		while (held[i].c && same < n && same < held[i].n && held[i].token[same] == token[same])
			same++;
		best = same > best ? same : best;
	}
	struct context *c = NULL;
	must(store_context_open_prefix(f.store, &root, fingerprint, token, n, 1, &c, &matched, f.why) ==
	     (best ? 0 : MPIG_ENOENT));
	if (!best)
		return;
	must(matched == best);
	for (int i = 0; i < CONTEXTS; i++)
		must(held[i].c != c || (held[i].n >= best && !memcmp(held[i].token, token, best * sizeof *token)));
	context_unref(c);
}

START_TEST(agrees_through_a_life)
{
	uint64_t random = 100 + (uint64_t)_i;
	for (int i = 0; i < CONTEXTS; i++)
		held[i].c = NULL;
	for (uint32_t step = 0; step < 1500; step++) {
		int i = (int)next_below(&random, CONTEXTS), parent = (int)next_below(&random, CONTEXTS);
		uint32_t what = next_below(&random, 10);
		if (!held[i].c && held[parent].c && what < 6)
			fork_of(i, parent, next_below(&random, (uint32_t)held[parent].n + 1), step);
		else if (!held[i].c)
			begin(i, step);
		else if (what == 0)
			drop(i);
		else if (what == 1) {
			held[i].n = next_below(&random, (uint32_t)held[i].n + 1);
			must(context_truncate(f.store, held[i].c, held[i].n, f.why) == 0);
		} else
			extend(i, &random);
		ask(&random);
	}
	for (int i = 0; i < CONTEXTS; i++)
		if (held[i].c)
			drop(i);
	ck_assert_ptr_null(f.store->prefix.tree); // nothing of the tree is left
	ck_assert_uint_eq(f.store->prefix.nodes, 0);
}
END_TEST

// ---- on disk too -------------------------------------------------------------------------------------------------------

static void put_on_disk(int i, uint64_t *random)
{
	struct image_context c = {.identity = {held[i].uid, 0, held[i].mode},
	                          .fingerprint = {held[i].fingerprint},
	                          .created_ns = 1 + (uint64_t)i,
	                          .committed = held[i].n};
	struct unplaced of;
	struct credentials who = user(held[i].uid);
	snprintf(c.name, sizeof c.name, "c%d", i);
	store_saved_put(f.store, &c);
	must(store_next_unplaced(f.store, &of) && !strcmp(of.name, c.name));
	for (uint64_t at = 0, n; at < held[i].n; at += n) {
		n = 1 + next_below(random, (uint32_t)(held[i].n - at));
		must(store_place_saved(f.store, &of, at, held[i].token + at, n) == 0);
	}
	must(!store_next_unplaced(f.store, &of));
	context_release(f.store, held[i].c, 1);
	context_unref(held[i].c);
	must(store_context_drop(f.store, &who, c.name, f.why) == 0);
	held[i].c = NULL;
}

static uint64_t best_of(const struct credentials *who, uint8_t fingerprint, const uint32_t *token, uint64_t n, bool saved)
{
	uint64_t best = 0;
	for (int i = 0; i < CONTEXTS; i++) {
		if (held[i].fingerprint != fingerprint || (who->uid && who->uid != held[i].uid && held[i].mode == 0600) ||
		    (!held[i].c && !saved))
			continue;
		uint64_t same = 0;
		while (same < n && same < held[i].n && held[i].token[same] == token[same])
			same++;
		best = same > best ? same : best;
	}
	return best;
}

START_TEST(agrees_with_half_on_disk)
{
	uint64_t random = 50 + (uint64_t)_i, memory = 0, disk = 0;
	for (int i = 0; i < CONTEXTS; i++) {
		make(i, &random);
		append(i, 1 + next_below(&random, 1500));
		if (i % 2)
			put_on_disk(i, &random);
	}
	for (int query = 0; query < 300; query++) {
		uint32_t token[MOST], base = next_below(&random, CONTEXTS), branch = next_below(&random, MOST),
				      n = next_below(&random, MOST) + 1;
		for (uint32_t t = 0; t < MOST; t++)
			token[t] = t < branch ? held[base].token[t] : next_below(&random, 50);
		struct credentials who = user(next_below(&random, 3));
		uint8_t fingerprint[64] = {(uint8_t)(1 + next_below(&random, 2))};
		struct prefix_query q = {.fingerprint = fingerprint, .tokens = token, .count = n, .saved = query % 3 != 0};
		struct prefix_found found;
		uint64_t best = best_of(&who, fingerprint[0], token, n, q.saved);
		int status = store_find_prefix(f.store, &who, &q, &found, f.why);
		must(status == (best ? 0 : MPIG_ENOENT));
		if (status)
			continue;
		must(found.matched == best && (q.saved || found.context));
		if (best_of(&who, fingerprint[0], token, n, false) == best)
			must(found.context); // what is in memory comes first
		int i = 0;
		while (found.context ? held[i].c != found.context : atoi(found.saved + 1) != i)
			i++;
		must(held[i].n >= best && !memcmp(held[i].token, token, best * sizeof *token));
		memory += found.context != NULL;
		disk += !found.context;
		if (found.context)
			context_unref(found.context);
	}
	ck_assert(memory > 20 && disk > 5);
	for (int i = 0; i < CONTEXTS; i++) {
		char name[16];
		struct credentials who = user(held[i].uid);
		snprintf(name, sizeof name, "c%d", i);
		store_saved_remove(f.store, name);
		if (!held[i].c)
			continue;
		context_release(f.store, held[i].c, 1);
		context_unref(held[i].c);
		must(store_context_drop(f.store, &who, name, f.why) == 0);
	}
	ck_assert_ptr_null(f.store->prefix.tree);
	ck_assert_uint_eq(f.store->prefix.nodes, 0);
}
END_TEST

// A context of the same name in memory hides what is on disk of it; a state that was replaced takes no more tokens.
START_TEST(of_the_same_name)
{
	uint64_t random = 3;
	struct credentials root = user(0);
	struct prefix_found found;
	struct unplaced of, later;
	make(0, &random);
	held[0].uid = 0;
	append(0, 900);
	struct image_context c = {.name = "c0", .fingerprint = {held[0].fingerprint}, .committed = 1000};
	uint8_t fingerprint[64] = {held[0].fingerprint};
	struct prefix_query q = {.fingerprint = fingerprint, .tokens = held[0].token, .count = 1000, .saved = true};
	store_saved_put(f.store, &c);
	must(store_next_unplaced(f.store, &of));
	ck_assert_int_eq(store_place_saved(f.store, &of, 0, held[0].token, 500), 0);
	ck_assert_int_eq(store_place_saved(f.store, &of, 400, held[0].token, 100), MPIG_ENOENT); // out of order
	ck_assert_int_eq(store_place_saved(f.store, &of, 500, held[0].token, 501), MPIG_ENOENT); // too many
	ck_assert_int_eq(store_place_saved(f.store, &of, 500, held[0].token + 500, 500), 0);
	ck_assert_int_eq(store_find_prefix(f.store, &root, &q, &found, f.why), 0);
	must(found.context && found.matched == 900);
	context_unref(found.context);
	context_release(f.store, held[0].c, 1);
	context_unref(held[0].c);
	ck_assert_int_eq(store_context_drop(f.store, &root, "c0", f.why), 0);
	ck_assert_int_eq(store_find_prefix(f.store, &root, &q, &found, f.why), 0);
	must(!found.context && found.matched == 1000 && !strcmp(found.saved, "c0"));
	c.committed = 700;
	store_saved_put(f.store, &c); // it was saved again
	ck_assert_int_eq(store_find_prefix(f.store, &root, &q, &found, f.why), MPIG_ENOENT);
	ck_assert_int_eq(store_place_saved(f.store, &of, 0, held[0].token, 700), MPIG_ENOENT);
	must(store_next_unplaced(f.store, &later));
	store_give_up_placing(f.store, &of); // is not this one
	ck_assert_int_eq(store_place_saved(f.store, &later, 0, held[0].token, 700), 0);
	ck_assert_int_eq(store_find_prefix(f.store, &root, &q, &found, f.why), 0);
	must(found.matched == 700);
	store_give_up_placing(f.store, &later);
	ck_assert_int_eq(store_find_prefix(f.store, &root, &q, &found, f.why), MPIG_ENOENT);
	must(!store_next_unplaced(f.store, &later));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("prefix");
	TCase *t = tcase_create("prefix");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, agrees_with_comparing_everything, 0, 10);
	tcase_add_loop_test(t, agrees_through_a_life, 0, 10);
	tcase_add_loop_test(t, agrees_with_half_on_disk, 0, 10);
	tcase_add_test(t, of_the_same_name);
	tcase_add_test(t, of_equal_matches_the_one_with_least_beyond);
	tcase_add_test(t, a_fork_is_found_as_its_parent_is);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
