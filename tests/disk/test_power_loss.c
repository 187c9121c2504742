// Power is lost at any moment of saving, saving again, erasing, loading and of a daemon's start: what an unsynced directory may look like
// afterwards (tests/lib/power.h) is made, hundreds of times, and a daemon started on it. A context acknowledged as saved is there, bit
// for bit, or what a later save or erase that was under way would have made of it; nothing else is; nothing is called damaged.
#include "tests/disk/crash.h"
#include "tests/lib/figures.h"
#include "tests/lib/power.h"
#include "tests/lib/suite.h"

// ---- what was promised -----------------------------------------------------------------------------------------------

#define MOST_SAID 600

static struct history {
	uint32_t count;
	struct said {
		uint64_t event;
		char name[32];
		bool acknowledged;
		struct version version;
	} said[MOST_SAID];
} * history; // shared with a child that is killed

static void say(const char *name, const struct version *v, bool acknowledged)
{
	must(history->count < MOST_SAID);
	struct said *s = &history->said[history->count++];
	s->event = power_now();
	s->acknowledged = acknowledged;
	snprintf(s->name, sizeof s->name, "%s", name);
	s->version.exists = v->exists;
	s->version.committed = v->committed;
	memcpy(s->version.tags, v->tags, v->committed * sizeof *v->tags);
}

// The versions a context may have at `event`: what was acknowledged last, and what was begun after that.
static uint32_t allowed(const char *name, uint64_t event, const struct version **version)
{
	static const struct version absent;
	uint32_t n = 0;
	version[n++] = &absent;
	for (uint32_t i = 0; i < history->count; i++) {
		const struct said *s = &history->said[i];
		if (strcmp(s->name, name) || s->event > event)
			continue;
		n = s->acknowledged ? 0 : n;
		version[n++] = &s->version;
	}
	return n;
}

// ---- one state -------------------------------------------------------------------------------------------------------

static char top[72], afterwards[72];
static uint64_t old_ones, new_ones, absent_ones;

static bool first_of_name(uint32_t i)
{
	for (uint32_t k = 0; k < i; k++)
		if (!strcmp(history->said[k].name, history->said[i].name))
			return false;
	return true;
}

static bool check_context(const char *name, uint64_t event)
{
	static const struct version *version[MOST_SAID + 1];
	struct disk_progress progress = {0};
	struct disk_result result;
	struct context *c;
	uint32_t n = allowed(name, event, version), which = n;
	int checked = disk_check(disk, f.store, &root, name, &progress, &result, f.why);
	int status = disk_load(disk, f.store, &root, name, &progress, &result, f.why);
	ck_assert_msg(status == 0 || status == MPIG_ENOENT, "%s: %s", name, f.why);
	must(checked == status);
	if (!status)
		must(store_context_open(f.store, &root, name, NULL, &c, f.why) == 0);
	for (uint32_t i = n; i-- > 0 && which == n;)
		which = status ? (version[i]->exists ? n : i) : is_version(c, version[i]) ? i : n;
	ck_assert_msg(which < n, "%s is %s, which it never was", name, status ? "not there" : "there with other tokens");
	absent_ones += status != 0;
	old_ones += !status && which == 0 && n > 1;
	new_ones += !status && which > 0;
	if (status)
		return false;
	check_content(c, version[which]->tags, version[which]->committed);
	context_unref(c);
	must(store_context_drop(f.store, &root, name, f.why) == 0);
	return true;
}

static void check_state(uint64_t event, enum power_mode mode, uint64_t seed)
{
	struct disk_saved saved[64];
	bool more;
	uint64_t random = seed;
	uint32_t found = 0;
	figures_doing("event %lu of %lu, %s kept, seed %lu", (unsigned long)event, (unsigned long)power_now(),
	              power_mode_name[mode], (unsigned long)seed);
	power_make(event, mode, &random, afterwards);
	snprintf(where, sizeof where, "%s/disk", afterwards);
	int (*hook)(const struct disk_call *, int) = disk_hook;
	disk_hook = NULL;
	bad_told = 0;
	open_disk();
	must(disk_recognise(disk, f.store, hear_bad, NULL) == 0);
	ck_assert_msg(!bad_told, "%s", bad_text);
	uint32_t listed = disk_list(disk, &root, "", saved, 64, &more);
	for (uint32_t i = 0; i < history->count; i++)
		found += first_of_name(i) && check_context(history->said[i].name, event);
	must(found == listed && !more);
	audit();
	disk_destroy(disk);
	disk_hook = hook;
	snprintf(where, sizeof where, "%s", afterwards);
	shell("rm -rf %s");
}

// ---- tests -----------------------------------------------------------------------------------------------------------

static void setup(void)
{
	crash_open();
	history = mmap(NULL, sizeof *history, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(history != MAP_FAILED);
	fixture_open(&f, 48 << 20, 0, 0);
	snprintf(top, sizeof top, "%s-top", f.dir);
	snprintf(afterwards, sizeof afterwards, "%s-after", f.dir);
	snprintf(where, sizeof where, "%s %s", top, afterwards);
	shell("rm -rf %s"); // of a test that was killed and had our number
	must(mkdir(top, 0700) == 0);
	power_begin(top);
	snprintf(where, sizeof where, "%s/disk", top);
	actions = all_actions;
	disk_told = say;
	most_rows = 120;
	work_steps = 90;
	root = user(0);
}

static void teardown(void)
{
	figures_doing("%s", "");
	power_end();
	fixture_close(&f);
	snprintf(where, sizeof where, "%s", top);
	shell("rm -rf %s");
}

static void clear_memory(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (context[i])
			do_drop(i);
}

static uint64_t check_states(uint64_t seed)
{
	uint64_t random = seed, states = getenv("MPIG_LONG") ? 2000 : 96, pending = 0;
	for (uint64_t i = 0; i < states; i++) {
		uint64_t event = mix(random += UINT64_C(0x9e3779b97f4a7c15)) % (power_now() + 1);
		event = i / POWER_MODES % 2 ? power_tense(&random) : event;
		pending += power_pending(event);
		check_state(event, (enum power_mode)(i % POWER_MODES), random);
	}
	ck_assert_uint_gt(pending, states); // there was something to lose
	return states;
}

START_TEST(lost_while_working)
{
	open_disk();
	work(9000 + (uint64_t)_i);
	clear_memory();
	disk_destroy(disk);
	ck_assert_uint_gt(history->count, 16);
	uint64_t states = check_states(100 + (uint64_t)_i);
	ck_assert_uint_gt(old_ones, 3);
	ck_assert_uint_gt(new_ones, 3);
	ck_assert_uint_gt(absent_ones, 3);
	figures_add("power.states", (double)states);
}
END_TEST

// ---- killed first ----------------------------------------------------------------------------------------------------
// The daemon is killed, and power is lost while the next one starts, or after that: what it has told of is there for good.

static void work_and_die(uint64_t seed, const char *call, uint64_t number)
{
	points_arm(&report->points, 0);
	points_kill_after(call, number);
	work(seed);
}

static void erase_and_die(uint64_t seed, const char *call, uint64_t number)
{
	uint64_t random = seed;
	do_create(0, 1);
	do_append(0, 300, 300);
	do_seal(0);
	do_append(0, 40, 40);
	act_save(0, &random);
	points_arm(&report->points, 0);
	points_kill_after(call, number);
	act_erase(0, &random);
}

static void killed(void (*until)(uint64_t seed, const char *call, uint64_t number), uint64_t seed, const char *call,
                   uint64_t number)
{
	int status;
	open_disk();
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid) {
		until(seed, call, number);
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && (WIFSIGNALED(status) || WEXITSTATUS(status) == 0));
	disk_destroy(disk);
	power_died();
}

// What the next daemon finds, it says, and that counts as acknowledged.
static void tell_found(void)
{
	for (int i = 0; i < SLOTS; i++) {
		struct told *t = &report->slot[i];
		struct disk_progress progress = {0};
		struct disk_result result = {0};
		if (!t->name[0])
			continue;
		int found = disk_check(disk, f.store, &root, t->name, &progress, &result, f.why) == 0, fits = 0, which = 0;
		for (int v = 0; v < 2; v++)
			if (t->saved[v].exists == found && (!found || t->saved[v].committed == result.tokens))
				which = v, fits++;
		if (fits == 1)
			say(t->name, &t->saved[which], true);
	}
}

static void start_recorded(void)
{
	open_disk();
	must(disk_recognise(disk, NULL, hear_bad, NULL) == 0);
	tell_found();
	disk_destroy(disk);
	store_destroy(f.store);
	pool_close(f.pool, true);
	fixture_open(&f, 48 << 20, 0, 0);
}

static void begin_anew(void)
{
	history->count = 0;
	memset(report, 0, sizeof *report);
	power_end();
	snprintf(where, sizeof where, "%s/disk", top);
	shell("rm -rf %s");
	power_begin(top);
}

static uint64_t check_since(uint64_t begin, uint64_t rounds, uint64_t seed)
{
	uint64_t states = 0, random = seed;
	for (uint64_t i = 0; i < rounds * POWER_MODES; i++, states++) {
		uint64_t event = begin + mix(random += UINT64_C(0x9e3779b97f4a7c15)) % (power_now() - begin + 1);
		check_state(i % 5 ? event : power_now(), (enum power_mode)(i % POWER_MODES), random);
	}
	return states;
}

START_TEST(lost_after_a_kill)
{
	uint64_t states = 0, rounds = getenv("MPIG_LONG") ? 40 : 5;
	for (uint64_t k = 0; k < rounds; k++) {
		killed(work_and_die, 9100 + 50 * (uint64_t)_i + k, _i % 2 ? "unlinkat" : "renameat",
		       2 + k * (1 + (uint64_t)_i / 2));
		uint64_t begin = power_now();
		start_recorded();
		states += check_since(begin, 2, 7 + k);
		begin_anew();
	}
	ck_assert_uint_ge(states, 80);
	figures_add("power.states", (double)states);
}
END_TEST

START_TEST(lost_after_a_killed_erase)
{
	for (uint64_t k = 1; k < 6; k++) {
		killed(erase_and_die, 1, "unlinkat", k);
		uint64_t begin = power_now(), states;
		start_recorded();
		states = check_since(begin, 4, 70 + k);
		figures_add("power.states", (double)states);
		begin_anew();
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk power");
	TCase *t = tcase_create("power");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, lost_while_working, 0, 4);
	tcase_add_loop_test(t, lost_after_a_kill, 0, 4);
	tcase_add_test(t, lost_after_a_killed_erase);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
