// kill -9 at every point of work on pool and disk together: each publication to the pool and each system call of the store and of
// the disk, while contexts are created, filled, sealed, cut, forked, dropped, saved, loaded, evicted, erased; and again while the next
// daemon attaches. Then what was committed is in memory and what was acknowledged as saved is on disk, bit for bit; every byte of
// the pool has one owner; work goes on.
//
// $MPIG_POINT = SEED:POINT repeats one of them. `MPIG_LONG=1` visits about fifty times as many.
#include "tests/disk/crash.h"
#include "tests/lib/figures.h"
#include "tests/lib/suite.h"

static uint64_t second_kills;

// ---- what is found ---------------------------------------------------------------------------------------------------

static void check_memory(void)
{
	uint64_t found = 0;
	for (int i = 0; i < SLOTS; i++) {
		struct told *t = &report->slot[i];
		context[i] = NULL;
		int status = t->name[0] ? store_context_open(f.store, &root, t->name, NULL, &context[i], f.why) : MPIG_ENOENT;
		must(status == 0 || status == MPIG_ENOENT);
		must(status == 0 ? t->existed || t->exists : !t->existed || !t->exists);
		t->existed = t->exists = !status;
		if (status)
			continue;
		uint64_t committed = context_committed(context[i]);
		must(committed == t->committed || committed == t->will_be);
		check_content(context[i], t->tags, committed);
		t->committed = t->will_be = committed;
		must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
		found++;
	}
	struct store_totals totals;
	store_totals(f.store, &totals);
	must(totals.contexts == found);
}

// On disk there is, of each name, the version before the action that was cut off or the one after it.
static void check_disk(void)
{
	struct disk_saved saved[SLOTS + 1];
	bool more;
	uint32_t count = disk_list(disk, &root, "", saved, SLOTS + 1, &more), known = 0;
	must(!more);
	for (int i = 0; i < SLOTS; i++) {
		struct told *t = &report->slot[i];
		struct disk_progress progress = {0};
		struct disk_result result;
		int status = t->name[0] ? disk_check(disk, f.store, &root, t->name, &progress, &result, f.why) : MPIG_ENOENT;
		ck_assert_msg(status == 0 || status == MPIG_ENOENT, "%s", f.why);
		if (status) {
			must(!t->saved[0].exists || !t->saved[1].exists);
			forget_version(&t->saved[0]);
			continue;
		}
		known++;
		must((t->saved[0].exists && t->saved[0].committed == result.tokens) ||
		     (t->saved[1].exists && t->saved[1].committed == result.tokens));
	}
	must(known == count); // and nothing else
}

static void drop_all(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (context[i])
			do_drop(i);
}

// With memory empty: loads everything and compares it.
static void check_loads(void)
{
	for (int i = 0; i < SLOTS; i++) {
		struct told *t = &report->slot[i];
		struct disk_progress progress = {0};
		struct disk_result result;
		int status = t->name[0] ? disk_load(disk, f.store, &root, t->name, &progress, &result, f.why) : MPIG_ENOENT;
		ck_assert_msg(status == 0 || status == MPIG_ENOENT, "%s", f.why);
		if (status)
			continue;
		must(store_context_open(f.store, &root, t->name, NULL, &context[i], f.why) == 0);
		int which = is_version(context[i], &t->saved[0]) ? 0 : 1;
		must(is_version(context[i], &t->saved[which]));
		t->saved[1 - which] = t->saved[which];
		check_content(context[i], t->saved[which].tags, t->saved[which].committed);
		memcpy(t->tags, t->saved[which].tags, sizeof t->tags);
		t->committed = t->will_be = t->saved[which].committed;
		t->exists = t->existed = 1;
		must(context_lease(f.store, context[i], &root, (uint64_t)i + 1, f.why) == 0);
	}
	audit();
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

// Every file is named by a manifest, and each sealed segment is there once.
static void check_files(void)
{
	char line[400];
	snprintf(line, sizeof line,
	         "cd %s && ls damaged | wc -l | grep -qx 0 && ! find contexts -name '*.tmp' | grep -q . && "
	         "! find segments -type f -links 1 | grep -q . && ! find contexts -mindepth 1 -maxdepth 1 -type d "
	         "'!' -exec test -e '{}/manifest' ';' -print | grep -q .",
	         where);
	must(system(line) == 0);
}

// A daemon that is killed while it starts, at its k-th point.
static void start_killed(uint64_t k)
{
	int status;
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid) {
		points_arm(&report->points, k);
		start_again();
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid);
	must(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
	second_kills += WIFSIGNALED(status);
}

static void go_on(const struct action *which, uint64_t *random)
{
	actions = which;
	for (int step = 0; step < 6; step++) {
		int i = (int)next_below(random, SLOTS);
		draw_action(context[i] != NULL, random)->act(i, random);
	}
	actions = all_actions;
}

static void examine(uint64_t seed)
{
	uint64_t random = seed;
	root = user(0);
	stop(); // the parent's own, untouched
	for (int i = 0; i < 2; i++)
		start_killed(1 + next_below(&random, 200));
	start_again();
	audit();
	check_memory();
	check_disk();
	if (seed % 4 == 0)
		check_files();
	go_on(memory_actions, &random);
	let_go();
	stop();
	start_again();
	audit();
	check_memory();
	drop_all();
	audit();
	check_loads();
	go_on(all_actions, &random);
	let_go();
	stop();
	start_again();
	audit();
	check_memory();
	drop_all();
	check_loads();
	drop_all();
	audit();
	stop();
}

static void open_all(void)
{
	fixture_open(&f, 48 << 20, 0, 0);
	snprintf(where, sizeof where, "%s-disk", f.dir);
	shell("rm -rf %s");
	open_disk();
}

static void close_all(void)
{
	shell("rm -rf %s");
	snprintf(where, sizeof where, "%s", f.dir);
	shell("rm -rf %s");
}

// Of even seeds: without an io_uring, so that the calls are the same each time.
static int no_uring(const struct disk_call *call, int after)
{
	return !after && !strcmp(call->call, "io_uring") ? EPERM : 0;
}

static int one_point(uint64_t seed, uint64_t k)
{
	char name[64], action[16], last[32];
	snprintf(name, sizeof name, "MPIG_POINT=%lu:%lu", (unsigned long)seed, (unsigned long)k);
	open_all();
	disk_hook = seed % 2 ? NULL : no_uring;
	int finished = run(seed, k);
	snprintf(action, sizeof action, "%s", report->action);
	snprintf(last, sizeof last, "%s", report->points.last);
	figures_doing("%s (in %s, at %s)", name, action, last);
	examine(seed + k);
	close_all();
	figures_doing("%s", "");
	return finished;
}

// ---- tests -----------------------------------------------------------------------------------------------------------

static void setup(void)
{
	crash_open();
	actions = all_actions;
	most_rows = 700;
	work_steps = 90;
}

START_TEST(killed_at_any_point)
{
	uint64_t seed = 5000 + (uint64_t)_i, points = 0, all;
	open_all(); // how many there are
	disk_hook = seed % 2 ? NULL : no_uring;
	must(run(seed, 0));
	all = report->points.passed;
	stop();
	close_all();
	ck_assert_uint_gt(report->points.publications, 200);
	ck_assert_uint_gt(report->points.calls, 600);
	uint64_t runs = getenv("MPIG_LONG") ? 400 : 8, random = seed;
	for (uint64_t i = 0; i < runs; i++) // one in each of as many equal parts
		points += !one_point(seed, 1 + i * all / runs + next_below(&random, (uint32_t)(all / runs)));
	ck_assert_uint_ge(points + 1, runs); // the last may lie behind the end: how much is punched out at once differs
	ck_assert_uint_ge(second_kills, runs / 2);
	figures_add("crash.store and disk", (double)points);
	figures_add("crash.starting again", (double)second_kills);
}
END_TEST

START_TEST(one_named)
{
	unsigned long seed, k;
	const char *point = getenv("MPIG_POINT");
	if (point) {
		must(sscanf(point, "%lu:%lu", &seed, &k) == 2);
		(void)one_point(seed, k);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk crash");
	TCase *t = tcase_create("crash");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_checked_fixture(t, setup, NULL);
	if (getenv("MPIG_POINT"))
		tcase_add_test(t, one_named);
	else
		tcase_add_loop_test(t, killed_at_any_point, 0, 8);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
