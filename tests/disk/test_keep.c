// How long contexts are kept: policies that outlive daemon, pool and memory; the end of a context's time.
#include "tests/disk/fixture.h"

#include "daemon/base/clock.h"
#include "daemon/store/internal.h"
#include "tests/lib/suite.h"

#define S UINT64_C(1000000000)

static uint64_t ahead_ns; // of the system's clock
static uint64_t test_now(void)
{
	return real_ns() + ahead_ns;
}

static void set_clock(void)
{
	f.store->options.now_ns = test_now;
}

static int set_policy(const char *name, uint32_t set, struct mpig_wire_policy policy)
{
	struct mpig_wire_policy now;
	return store_context_policy(f.store, &root, name, set, &policy, &now, f.why);
}

static struct mpig_wire_policy policy_of(const char *name)
{
	struct context *c;
	struct mpig_wire_context info;
	ck_assert_msg(store_context_open(f.store, &root, name, NULL, &c, f.why) == 0, "%s", f.why);
	store_context_info(f.store, c, &info);
	context_unref(c);
	return info.policy;
}

static void close_it(struct context *c)
{
	context_release(f.store, c, 1);
	context_unref(c);
}

static void reopen_the_pool(void) // after attach_again
{
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0); // an opened pool did not make its directory and leaves it
	open_small();
}

static const struct persist_default never = {.persist = MPIG_PERSIST_NONE};
static const struct mpig_wire_policy all = {
	.pinned_until_ns = UINT64_MAX - 7, .persist = MPIG_PERSIST_IDLE, .idle_s = 30, .ttl_s = 100, .flags = MPIG_POLICY_ERASE};

START_TEST(what_it_may_say)
{
	struct credentials other = user(9);
	struct mpig_wire_policy out;
	struct context *c = create("book", 0);
	ck_assert_int_eq(store_context_policy(f.store, &other, "book", MPIG_SET_PIN, &all, &out, f.why), MPIG_EACCES);
	ck_assert_int_eq(set_policy("none", MPIG_SET_PIN, all), MPIG_ENOENT);
	ck_assert_int_eq(set_policy("book", MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = MPIG_PERSIST_COUNT}),
	                 MPIG_EINVAL);
	ck_assert_int_eq(
		set_policy("book", MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = MPIG_PERSIST_COMMIT, .idle_s = 1}),
		MPIG_EINVAL);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.flags = MPIG_POLICY_ERASE}), MPIG_EINVAL);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 1, .flags = 2}), MPIG_EINVAL);
	struct mpig_wire_policy none = {0}, now = policy_of("book");
	ck_assert_mem_eq(&now, &none, sizeof now);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, all), 0); // only what is named
	now = policy_of("book");
	ck_assert(now.ttl_s == 100 && now.flags == MPIG_POLICY_ERASE && !now.persist && !now.idle_s && !now.pinned_until_ns);
	ck_assert_int_eq(set_policy("book", MPIG_SET_ALL, all), 0);
	now = policy_of("book");
	ck_assert_mem_eq(&now, &all, sizeof now);
	close_it(c);
}
END_TEST

// Over a restart by the pool; over the loss of the pool by the disk, whether it was set before the save or after it.
START_TEST(it_survives)
{
	struct changed_policy changed;
	struct context *c = create("book", 0);
	grow(c, 300, true);
	ck_assert_int_eq(set_policy("book", MPIG_SET_ALL, all), 0);
	close_it(c);
	(void)attach_again();
	struct mpig_wire_policy now = policy_of("book");
	ck_assert_mem_eq(&now, &all, sizeof now);
	ck_assert_int_eq(save("book"), 0);
	must(!store_next_changed_policy(f.store, &changed)); // the save has told
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	ck_assert_int_eq(load("book"), 0);
	now = policy_of("book");
	ck_assert_mem_eq(&now, &all, sizeof now);
	must(!store_next_changed_policy(f.store, &changed));
	ck_assert_int_eq(set_policy("book", MPIG_SET_ALL, (struct mpig_wire_policy){.ttl_s = 5}), 0);
	must(store_next_changed_policy(f.store, &changed) && !store_next_changed_policy(f.store, &changed));
	ck_assert_int_eq(disk_note_policy(disk, &changed, f.why), 0);
	struct disk_saved saved;
	must(disk_find(disk, "book", &saved) && saved.policy.ttl_s == 5 && !saved.policy.persist);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	disk_destroy(disk);
	open_disk();
	ck_assert_uint_eq(disk_recognise(disk, f.store, NULL, NULL), 0);
	ck_assert_int_eq(load("book"), 0);
	now = policy_of("book");
	ck_assert(now.ttl_s == 5 && !now.persist && !now.idle_s && !now.pinned_until_ns && !now.flags);
	check_context("book", 300);
	// One that leaves memory at once.
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 5, .flags = MPIG_POLICY_ERASE}), 0);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	must(store_next_changed_policy(f.store, &changed) && changed.policy.flags &&
	     !store_next_changed_policy(f.store, &changed));
	ck_assert_int_eq(disk_note_policy(disk, &changed, f.why), 0);
	must(disk_find(disk, "book", &saved) && saved.policy.flags);
	ck_assert_int_eq(load("book"), 0);
	// What is on disk of another context keeps its own.
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 6}), 0);
	must(store_next_changed_policy(f.store, &changed));
	changed.created_ns++;
	ck_assert_int_eq(disk_note_policy(disk, &changed, f.why), 0);
	must(disk_find(disk, "book", &saved) && saved.policy.ttl_s == 5);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	reopen_the_pool();
}
END_TEST

// What is on disk has the permissions that its owner gave the context since: a stranger who waits for the daemon's end reads no more than before it.
START_TEST(permissions_are_those_of_now)
{
	static const struct credentials stranger = {.uid = 4711, .gid = 4711};
	struct changed_policy changed;
	struct disk_saved saved;
	struct context *c = create("book", 0);
	grow(c, 300, true);
	close_it(c);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "book", 0644, UINT32_MAX, UINT32_MAX, f.why), 0);
	ck_assert_int_eq(save("book"), 0);
	must(!store_next_changed_policy(f.store, &changed)); // the save has told
	ck_assert_int_eq(store_context_chmod(f.store, &root, "book", 0600, UINT32_MAX, 7, f.why), 0);
	must(store_next_changed_policy(f.store, &changed) && !store_next_changed_policy(f.store, &changed));
	ck_assert_int_eq(disk_note_policy(disk, &changed, f.why), 0);
	must(disk_find(disk, "book", &saved) && saved.identity.mode == 0600 && saved.identity.gid == 7);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	ck_assert_int_eq(disk_load(disk, f.store, &stranger, "book", &progress, &result, f.why), MPIG_EACCES);
	disk_destroy(disk);
	open_disk();
	ck_assert_uint_eq(disk_recognise(disk, f.store, NULL, NULL), 0);
	ck_assert_int_eq(disk_load(disk, f.store, &stranger, "book", &progress, &result, f.why), MPIG_EACCES);
	ck_assert_int_eq(load("book"), 0);
	check_context("book", 300);
	// Another user's, of the same name: not his to change.
	ck_assert_int_eq(store_context_chmod(f.store, &root, "book", 0666, UINT32_MAX, UINT32_MAX, f.why), 0);
	must(store_next_changed_policy(f.store, &changed));
	changed.identity.uid = 4711;
	ck_assert_int_eq(disk_note_policy(disk, &changed, f.why), 0);
	must(disk_find(disk, "book", &saved) && saved.identity.mode == 0600);
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
}
END_TEST

// A fork and an import begin without one.
START_TEST(it_is_not_inherited)
{
	struct context *c = create("book", 0), *child;
	grow(c, 300, false);
	ck_assert_int_eq(set_policy("book", MPIG_SET_ALL, all), 0);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 300, "child", &child, f.why), 0);
	struct mpig_wire_policy none = {0}, now = policy_of("child");
	ck_assert_mem_eq(&now, &none, sizeof now);
	close_it(c);
	context_unref(child);
}
END_TEST

START_TEST(saved_by_its_own)
{
	static const struct persist_default commit = {.persist = MPIG_PERSIST_COMMIT};
	char name[MPIG_NAME_BYTES];
	set_clock();
	struct context *c = create("book", 0);
	grow(c, 300, false);
#define DUE(otherwise, stopping) store_next_unsaved(f.store, otherwise, stopping, &(uint64_t){0}, name)
	must(!DUE(&never, false) && !DUE(&never, true));
	must(DUE(&commit, false));
	ck_assert_int_eq(set_policy("book", MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = MPIG_PERSIST_NONE}), 0);
	must(!DUE(&commit, false) && !DUE(&commit, true));
	ck_assert_int_eq(set_policy("book", MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = MPIG_PERSIST_SHUTDOWN}), 0);
	must(!DUE(&commit, false) && DUE(&never, true));
	ck_assert_int_eq(
		set_policy("book", MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = MPIG_PERSIST_IDLE, .idle_s = 30}), 0);
	must(!DUE(&never, false) && DUE(&never, true));
	ahead_ns = 31 * S;
	must(DUE(&never, false));
	ck_assert_int_eq(set_policy("book", MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = MPIG_PERSIST_COMMIT}), 0);
	ahead_ns = 0;
	must(DUE(&never, false));
	ck_assert_int_eq(save("book"), 0);
	must(!DUE(&never, false) && !DUE(&never, true));
	close_it(c);
}
END_TEST

static bool expired(const struct persist_default *otherwise, struct expiry *e)
{
	return store_next_expired(f.store, otherwise, true, e);
}

START_TEST(its_time_is_over)
{
	static const struct persist_default shutdown = {.persist = MPIG_PERSIST_SHUTDOWN};
	struct expiry e;
	set_clock();
	struct context *c = create("book", 0);
	grow(c, 300, true);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 100}), 0);
	ahead_ns = 101 * S;
	must(!expired(&never, &e)); // somebody has it open
	close_it(c);
	ahead_ns = 99 * S;
	must(!expired(&never, &e));
	ahead_ns = 101 * S;
	ck_assert_int_eq(pin(&f, "book", &root, UINT64_MAX), 0);
	must(!expired(&never, &e));
	ck_assert_int_eq(pin(&f, "book", &root, test_now() + 50 * S), 0);
	must(!expired(&never, &e));
	ahead_ns = 152 * S; // pins end
	must(expired(&shutdown, &e) && e.what == EXPIRED_SAVE && !strcmp(e.name, "book"));
	store_not_expired_before(f.store, "book", test_now() + 60 * S);
	must(!expired(&shutdown, &e)); // a save failed
	ahead_ns += 61 * S;
	must(expired(&shutdown, &e) && e.what == EXPIRED_SAVE);
	ck_assert_int_eq(save("book"), 0);
	must(expired(&shutdown, &e) && e.what == EXPIRED_LEFT && !e.lost);
	must(!expired(&shutdown, &e));
	ck_assert_int_eq(load("book"), 0);
	must(!expired(&shutdown, &e)); // loading is use
	check_context("book", 300);
	ahead_ns += 101 * S;
	must(expired(&never, &e) && e.what == EXPIRED_LEFT && !e.lost);
	c = create("other", 0);
	grow(c, 300, true);
	close_it(c);
	ck_assert_int_eq(set_policy("other", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 10}), 0);
	ahead_ns += 11 * S;
	must(expired(&never, &e) && e.what == EXPIRED_LEFT && e.lost && !strcmp(e.name, "other"));
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
}
END_TEST

// A clock that is set right, or wrong, is no time that has passed.
START_TEST(a_clock_that_is_set)
{
	struct expiry e;
	set_clock();
	struct context *c = create("book", 0);
	grow(c, 300, true);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 100}), 0);
	close_it(c);
	uint64_t steady = 7 * S;
	store_note_clock(f.store, steady);
	ahead_ns = 50 * S; // that pass
	store_note_clock(f.store, steady += 50 * S);
	must(!expired(&never, &e));
	ahead_ns += 1000000 * S; // that do not
	store_note_clock(f.store, steady += S / 10);
	must(!expired(&never, &e));
	ahead_ns -= 2000000 * S;
	store_note_clock(f.store, steady += S / 10);
	must(!expired(&never, &e));
	ahead_ns += 40 * S;
	store_note_clock(f.store, steady += 40 * S);
	must(!expired(&never, &e));
	ahead_ns += 11 * S;
	store_note_clock(f.store, steady += 11 * S);
	must(expired(&never, &e) && !strcmp(e.name, "book"));
	ahead_ns = 0;
}
END_TEST

START_TEST(erased_at_its_end)
{
	static const struct persist_default commit = {.persist = MPIG_PERSIST_COMMIT};
	struct expiry e;
	set_clock();
	struct context *c = create("book", 0);
	grow(c, 300, true);
	close_it(c);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 100, .flags = MPIG_POLICY_ERASE}),
	                 0);
	ck_assert_int_eq(save("book"), 0);
	ahead_ns = 101 * S;
	must(expired(&commit, &e) && e.what == EXPIRED_ERASE);
	check_context("book", 300); // somebody used it in between
	must(!store_drop_expired(f.store, &e));
	ahead_ns += 101 * S;
	must(expired(&commit, &e) && store_drop_expired(f.store, &e));
	must(!store_drop_expired(f.store, &e));
	// On disk only: by what the disk knows of its use.
	uint64_t now = real_ns();
	disk_expire(disk, f.store, now + 90 * S, NULL, NULL);
	must(disk_has(disk, "book"));
	ck_assert_int_eq(load("book"), 0);
	disk_expire(disk, f.store, now + 1000 * S, NULL, NULL); // it is in memory
	must(disk_has(disk, "book"));
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
	disk_destroy(disk);
	open_disk();
	(void)disk_recognise(disk, f.store, NULL, NULL);
	disk_expire(disk, f.store, now + 99 * S, NULL, NULL); // it was loaded after `now`
	must(disk_has(disk, "book"));
	disk_expire(disk, f.store, real_ns() + 101 * S, NULL, NULL); // its use in memory was noted ahead of the clock
	struct disk_saved saved;
	if (disk_find(disk, "book", &saved))
		disk_expire(disk, f.store, saved.used_ns + 101 * S, NULL, NULL);
	must(!disk_has(disk, "book"));
	ck_assert_uint_eq(files_in("segments"), 0);
	ck_assert_uint_eq(files_in("contexts"), 0);
}
END_TEST

// Time goes on while no daemon runs; what was used was noted.
START_TEST(over_a_restart)
{
	struct expiry e;
	set_clock();
	struct context *c = create("book", 0), *d = create("young", 0);
	grow(c, 300, true);
	grow(d, 300, true);
	ck_assert_int_eq(set_policy("book", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 100}), 0);
	ck_assert_int_eq(set_policy("young", MPIG_SET_TTL, (struct mpig_wire_policy){.ttl_s = 100}), 0);
	close_it(c);
	close_it(d);
	ahead_ns = 60 * S;
	check_context("young", 300);
	store_note_uses(f.store);
	(void)attach_again();
	set_clock();
	ahead_ns = 101 * S;
	must(expired(&never, &e) && !strcmp(e.name, "book"));
	must(!expired(&never, &e));
	ahead_ns = 161 * S;
	must(expired(&never, &e) && !strcmp(e.name, "young"));
	reopen_the_pool();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("keep");
	TCase *t = tcase_create("keep");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, what_it_may_say);
	tcase_add_test(t, it_survives);
	tcase_add_test(t, permissions_are_those_of_now);
	tcase_add_test(t, it_is_not_inherited);
	tcase_add_test(t, saved_by_its_own);
	tcase_add_test(t, its_time_is_over);
	tcase_add_test(t, a_clock_that_is_set);
	tcase_add_test(t, erased_at_its_end);
	tcase_add_test(t, over_a_restart);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
