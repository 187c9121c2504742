// Profiles without a server: what is answered lasts. The order of the calls, each of them failing, a power loss at every moment, also after a
// daemon was killed, and a disk that does not answer.
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

static int fail_threads; // so many threads cannot be made
static int test_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *), void *argument);
#define pthread_create test_pthread_create
#include "daemon/server/profiles.c"
#undef pthread_create

#include <fcntl.h>
#include <sys/stat.h>

#include "daemon/disk/io.h"
#include "tests/lib/figures.h"
#include "tests/lib/power.h"
#include "tests/lib/suite.h"

static int test_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *), void *argument)
{
	return fail_threads > 0 && fail_threads-- ? EAGAIN : pthread_create(thread, attributes, fn, argument);
}

#define UID 7u
static const uint8_t model[64] = {0xab, 0xcd};

static struct loop *loop;
static struct profiles all;
static char top[64], dir[96], after_dir[80], why[MPIG_TEXT_BYTES];

static void shell(const char *format, const char *a)
{
	char line[200];
	snprintf(line, sizeof line, format, a);
	ck_assert_int_eq(system(line), 0);
}

static void setup(void)
{
	int refused;
	snprintf(top, sizeof top, "/tmp/mpig-profiles-%d", (int)getpid());
	snprintf(after_dir, sizeof after_dir, "%s-after", top);
	snprintf(dir, sizeof dir, "%s/kept", top);
	shell("rm -rf %s", top); // of a test that was killed and had our number
	shell("rm -rf %s", after_dir);
	ck_assert_int_eq(mkdir(top, 0700), 0);
	log_set_level(LOG_LEVEL_ERROR);
	ck_assert_int_eq(loop_create(LOOP_AUTO, &loop, &refused), 0);
	ck_assert_int_eq(profiles_open(&all, dir, loop), MPIG_OK);
}

static void teardown(void)
{
	disk_hook = NULL;
	loop_destroy(loop);
	profiles_close(&all);
	shell("rm -rf %s", top);
	shell("rm -rf %s", after_dir);
}

// The profile that is told from others by its number.
static const char *text_of(uint32_t number, size_t *bytes)
{
	static struct profile p;
	static char text[PROFILE_TEXT_BYTES + 1];
	p = (struct profile){.seed = number, .count = 1};
	profile_hex(model, p.fingerprint);
	p.layer[0] = (struct profile_layer){.number = 0, .proposal = PROFILE_SIGNATURE, .budget = .05f};
	*bytes = profile_format(&p, text);
	return text;
}

// 0: there is none.
static uint32_t number_in(const struct profiles *of)
{
	const struct profile_entry *e = profiles_find(of, UID, model);
	return e ? (uint32_t)e->profile->seed : 0;
}

static int answer;
static void answered(void *arg, int status, const char *text)
{
	(void)arg;
	answer = status;
	if (status != MPIG_OK)
		snprintf(why, sizeof why, "%s", text);
}

// Begins to set (or, number 0, to clear) the profile.
static int begin(uint32_t number)
{
	size_t bytes = 0;
	const char *text = number ? text_of(number, &bytes) : NULL;
	answer = 1;
	return number ? profiles_set(&all, UID, model, text, bytes, answered, NULL, why)
	              : profiles_clear(&all, UID, model, answered, NULL, why);
}

static int change_to(uint32_t number)
{
	int status = begin(number);
	while (status == MPIG_OK && answer == 1)
		ck_assert_int_eq(loop_turn(loop, UINT64_C(1000000000)), 0);
	return status == MPIG_OK ? answer : status;
}

// As a daemon that starts finds them.
static uint32_t number_on_disk(const char *where)
{
	struct profiles found;
	struct loop *other;
	int refused;
	ck_assert_int_eq(loop_create(LOOP_EPOLL, &other, &refused), 0);
	ck_assert_int_eq(profiles_open(&found, where, other), MPIG_OK);
	uint32_t number = number_in(&found);
	loop_destroy(other);
	profiles_close(&found);
	return number;
}

static bool is_left(const char *what)
{
	char line[200];
	snprintf(line, sizeof line, "find %s -name '%s' | grep -q .", top, what);
	return system(line) == 0;
}

// ---- the order -------------------------------------------------------------------------------------------------------
static char calls[2000];
static int note(const struct disk_call *call, int after)
{
	size_t n = strlen(calls);
	const char *name = strstr(call->file, ".new") ? "new" : strstr(call->file, ".profile") ? "it" : call->file;
	name = strcmp(name, dir) == 0 ? "DIR" : name;
	if (!after && strcmp(call->call, "io_uring") != 0)
		snprintf(calls + n, sizeof calls - n, "%s %s%s; ", call->call, name, answer == 1 ? "" : " after the answer");
	return 0;
}

START_TEST(the_answer_comes_after_all_is_synced)
{
	disk_hook = note;
	ck_assert_int_eq(change_to(1), MPIG_OK);
	ck_assert_str_eq(calls, "mkdir DIR; open DIR; open ..; fsync ..; open new; write new; fsync new; rename it; fsync .; ");
	calls[0] = '\0';
	ck_assert_int_eq(change_to(0), MPIG_OK);
	ck_assert_str_eq(calls, "open DIR; unlink it; fsync .; ");
	// What a start believes, it has synced.
	ck_assert_int_eq(change_to(2), MPIG_OK);
	calls[0] = '\0';
	answer = 1;
	ck_assert_uint_eq(number_on_disk(dir), 2);
	ck_assert_str_eq(calls, "open DIR; fsync .; ");
}
END_TEST

// ---- calls that fail -------------------------------------------------------------------------------------------------
static int fail_at, fail_with, call_count;
static bool fail_for_good;
static int fail_one(const struct disk_call *call, int after)
{
	if (after || strcmp(call->call, "io_uring") == 0)
		return 0;
	call_count++;
	return call_count == fail_at || (fail_for_good && fail_at && call_count > fail_at) ? fail_with : 0;
}

// Number `before` is kept, or none; then a change to `next` fails at each of its calls.
static void every_call_fails(uint32_t before, uint32_t next)
{
	uint32_t trials = 0;
	for (int at = 1;; at++, trials++) {
		disk_hook = NULL;
		if (number_in(&all) != before)
			ck_assert_int_eq(change_to(before), MPIG_OK);
		disk_hook = fail_one;
		call_count = 0;
		fail_at = at;
		why[0] = '\0';
		int status = change_to(next);
		disk_hook = NULL;
		if (call_count < at)
			break;
		ck_assert_msg(status == (fail_with == ENOSPC ? MPIG_ENOSPC : MPIG_EIO), "call %d: %d, %s", at, status, why);
		ck_assert_msg(strstr(why, "(daemon.profiles): ") && strstr(why, strerror(fail_with)), "call %d: %s", at, why);
		ck_assert_msg(number_in(&all) == before, "call %d: %u in memory", at, number_in(&all));
		if (fail_for_good) // a disk that no call reaches cannot be put right
			continue;
		ck_assert_msg(!is_left(".*.new"), "call %d has left a file", at);
		ck_assert_msg(number_on_disk(dir) == before, "call %d: %u on disk", at, number_on_disk(dir));
	}
	ck_assert_uint_ge(trials, next ? 9 : 3);
}

START_TEST(each_call_that_fails_leaves_all_as_it_was)
{
	static const int errors[] = {EIO, ENOSPC};
	fail_with = errors[_i % 2];
	fail_for_good = _i >= 2;
	every_call_fails(0, 1);
	every_call_fails(1, 2);
	every_call_fails(1, 0);
}
END_TEST

START_TEST(without_a_thread_nothing_is_begun)
{
	ck_assert_int_eq(change_to(1), MPIG_OK);
	fail_threads = 1;
	ck_assert_int_eq(change_to(2), MPIG_ENOMEM);
	ck_assert_int_eq(answer, 1); // not called
	ck_assert(!profiles_changing(&all));
	ck_assert_uint_eq(number_in(&all), 1);
	ck_assert_int_eq(change_to(2), MPIG_OK);
	ck_assert_uint_eq(number_on_disk(dir), 2);
}
END_TEST

// ---- a disk that does not answer -------------------------------------------------------------------------------------
static sem_t stuck, go_on;
static int stick(const struct disk_call *call, int after)
{
	if (!after && strcmp(call->call, "rename") == 0) {
		sem_post(&stuck);
		sem_wait(&go_on);
	}
	return 0;
}

static int other_answer, third_answer;
static void note_answer(void *arg, int status, const char *text)
{
	(void)text;
	*(int *)arg = status;
}

START_TEST(a_disk_that_stands_still_holds_up_nobody_else)
{
	size_t bytes;
	sem_init(&stuck, 0, 0);
	sem_init(&go_on, 0, 0);
	ck_assert_int_eq(change_to(1), MPIG_OK);
	disk_hook = stick;
	ck_assert_int_eq(begin(2), MPIG_OK);
	sem_wait(&stuck);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	ck_assert_int_eq(answer, 1); // nobody was told anything
	ck_assert(profiles_changing(&all));
	ck_assert_uint_eq(number_in(&all), 1);
	ck_assert_int_eq(begin(3), MPIG_EAGAIN);
	ck_assert_int_eq(begin(0), MPIG_EAGAIN);
	ck_assert_ptr_nonnull(strstr(why, "another change of this profile"));
	// Other profiles wait for their turn.
	const char *text = text_of(4, &bytes);
	other_answer = third_answer = 1;
	ck_assert_int_eq(profiles_set(&all, UID + 1, model, text, bytes, note_answer, &other_answer, why), MPIG_OK);
	ck_assert_int_eq(profiles_set(&all, UID + 2, model, text, bytes, note_answer, &third_answer, why), MPIG_OK);
	fail_threads = 1; // of the first of them
	sem_post(&go_on);
	sem_post(&go_on);
	while (third_answer == 1)
		ck_assert_int_eq(loop_turn(loop, UINT64_C(1000000000)), 0);
	ck_assert_int_eq(answer, MPIG_OK);
	ck_assert_uint_eq(number_in(&all), 2);
	ck_assert_int_eq(other_answer, MPIG_ENOMEM);
	ck_assert_int_eq(third_answer, MPIG_OK);
	ck_assert_uint_eq(all.count, 2);
}
END_TEST

START_TEST(what_waits_counts_as_kept)
{
	size_t bytes;
	const char *text = text_of(1, &bytes);
	sem_init(&stuck, 0, 0);
	sem_init(&go_on, 0, 0);
	disk_hook = stick;
	uint8_t other[64] = {0};
	char mine[PROFILE_TEXT_BYTES + 1];
	for (uint32_t i = 0; i <= PROFILES_PER_UID; i++) {
		struct profile *p = malloc(sizeof *p);
		ck_assert_int_eq(profile_parse(text, bytes, p, why), 0);
		other[0] = (uint8_t)(i + 1);
		profile_hex(other, p->fingerprint);
		size_t n = profile_format(p, mine);
		free(p);
		ck_assert_int_eq(profiles_set(&all, UID, other, mine, n, note_answer, &other_answer, why),
		                 i < PROFILES_PER_UID ? MPIG_OK : MPIG_ELIMIT);
		sem_post(&go_on);
	}
	while (profiles_changing(&all))
		ck_assert_int_eq(loop_turn(loop, UINT64_C(1000000000)), 0);
	ck_assert_uint_eq(all.count, PROFILES_PER_UID);
}
END_TEST

START_TEST(what_was_begun_is_written_before_the_end)
{
	size_t bytes;
	int refused;
	ck_assert_int_eq(begin(1), MPIG_OK);
	const char *text = text_of(4, &bytes);
	other_answer = 1;
	ck_assert_int_eq(profiles_set(&all, UID + 1, model, text, bytes, note_answer, &other_answer, why), MPIG_OK);
	loop_destroy(loop);
	profiles_close(&all);
	ck_assert_int_eq(answer, MPIG_OK);
	ck_assert_int_eq(other_answer, MPIG_OK);
	ck_assert_int_eq(loop_create(LOOP_EPOLL, &loop, &refused), 0);
	ck_assert_int_eq(profiles_open(&all, dir, loop), MPIG_OK);
	ck_assert_uint_eq(all.count, 2);
	ck_assert_uint_eq(number_in(&all), 1);
}
END_TEST

// ---- power losses ----------------------------------------------------------------------------------------------------
enum { SAID_MOST = 40 };
static struct said {
	uint64_t event;
	uint32_t number;
	bool acknowledged;
} said[SAID_MOST];
static int said_count;
static uint32_t kept_old, kept_new;

static void say(uint32_t number, bool acknowledged)
{
	ck_assert_int_lt(said_count, SAID_MOST);
	said[said_count++] = (struct said){power_now(), number, acknowledged};
}

static void recorded_change(uint32_t number)
{
	say(number, false);
	ck_assert_int_eq(change_to(number), MPIG_OK);
	say(number, true);
}

// What was acknowledged last by then, or anything that was begun after that.
static void check_state(uint64_t event, enum power_mode mode, uint64_t seed)
{
	char kept[96];
	int (*hook)(const struct disk_call *, int) = disk_hook;
	uint64_t random = seed;
	uint32_t sure = 0;
	int first = 0;
	disk_hook = NULL;
	power_make(event, mode, &random, after_dir);
	snprintf(kept, sizeof kept, "%s/kept", after_dir);
	uint32_t found = number_on_disk(kept);
	for (int i = 0; i < said_count && said[i].event <= event; i++)
		if (said[i].acknowledged) {
			sure = said[i].number;
			first = i;
		}
	bool allowed = found == sure, begun = false;
	for (int i = first; i < said_count && said[i].event <= event; i++)
		if (!said[i].acknowledged) {
			begun = true;
			allowed = allowed || found == said[i].number;
		}
	ck_assert_msg(allowed, "event %lu, %s kept, seed %lu: number %u is there, which it never was, or no more",
	              (unsigned long)event, power_mode_name[mode], (unsigned long)seed, found);
	kept_old += begun && found == sure;
	kept_new += begun && found != sure;
	shell("rm -rf %s", after_dir);
	disk_hook = hook;
}

static void check_states(uint64_t from)
{
	uint64_t to = power_now();
	kept_old = kept_new = 0;
	for (uint64_t event = from; event <= to; event++)
		for (int mode = 0; mode < POWER_MODES; mode++)
			check_state(event, (enum power_mode)mode, event * 31 + 7);
}

START_TEST(power_is_lost_at_any_moment)
{
	static const uint32_t numbers[] = {1, 2, 0, 3, 0};
	power_begin(top);
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
		recorded_change(numbers[i]);
	check_states(0);
	figures_add("power.states", (double)(power_now() + 1) * POWER_MODES);
	printf("server/profiles: power lost at %lu moments in %d ways; the old one was there %u times, the new one %u times\n",
	       (unsigned long)power_now(), POWER_MODES, kept_old, kept_new);
	ck_assert_uint_gt(kept_old, 100);
	ck_assert_uint_gt(kept_new, 20);
	power_end();
}
END_TEST

static int (*record_call)(const struct disk_call *, int);
static int kill_after, seen_calls;
static int record_and_die(const struct disk_call *call, int after)
{
	int rc = record_call(call, after);
	if (after && ++seen_calls == kill_after)
		kill(getpid(), SIGKILL);
	return rc;
}

// Killed after each call of a change; the next daemon tells what it has found, and that is then there for good.
START_TEST(killed_first_and_then_without_power)
{
	uint32_t found_new = 0, killed = 0;
	bool died = true;
	for (kill_after = 1; died; kill_after++) {
		int status;
		power_begin(top);
		said_count = 0;
		recorded_change(100);
		record_call = disk_hook;
		pid_t pid = fork();
		ck_assert_int_ge(pid, 0);
		if (!pid) {
			disk_hook = record_and_die;
			struct profiles *mine = &all;
			struct profile_change change = {.file = {dir, UID, change.fingerprint},
			                                .old = profiles_find(mine, UID, model)};
			memcpy(change.fingerprint, model, sizeof model);
			struct profile *room = malloc(sizeof *room);
			size_t bytes;
			const char *text = text_of(200, &bytes);
			if (entry_make(UID, model, text, bytes, room, &change.fresh, why) == MPIG_OK)
				write_change(&change);
			_exit(0);
		}
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		died = WIFSIGNALED(status);
		power_died();
		killed += died;
		say(200, false);
		uint32_t found = number_on_disk(dir);
		ck_assert(found == 100 || found == 200);
		found_new += died && found == 200;
		say(found, true);
		check_states(power_now());
		power_end();
		shell("rm -rf %s/kept", top);
		loop_destroy(loop);
		profiles_close(&all);
		int refused;
		ck_assert_int_eq(loop_create(LOOP_EPOLL, &loop, &refused), 0);
		ck_assert_int_eq(profiles_open(&all, dir, loop), MPIG_OK);
	}
	ck_assert_uint_ge(killed, 9);
	ck_assert_uint_ge(found_new, 1); // after the rename, and before anything has synced it
}
END_TEST

// A daemon that finds more files than it keeps profiles says of each that it is not used.
START_TEST(more_files_than_profiles)
{
	size_t bytes;
	const char *text = text_of(1, &bytes);
	struct taking taking = {.all = &all, .profile = malloc(sizeof *taking.profile)};
	all.count = PROFILES_MOST;
	*why = '\0';
	ck_assert_int_eq(take(&taking, UID, model, text, bytes, why), MPIG_ELIMIT);
	ck_assert_ptr_nonnull(strstr(why, "1024 profiles"));
	ck_assert_uint_eq(number_in(&all), 0);
	all.count = 0;
	ck_assert_int_eq(take(&taking, UID, model, text, bytes, why), MPIG_OK);
	ck_assert_uint_eq(number_in(&all), 1);
	free(taking.profile);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("server/profiles");
	TCase *t = tcase_create("profiles");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, the_answer_comes_after_all_is_synced);
	tcase_add_loop_test(t, each_call_that_fails_leaves_all_as_it_was, 0, 4);
	tcase_add_test(t, without_a_thread_nothing_is_begun);
	tcase_add_test(t, a_disk_that_stands_still_holds_up_nobody_else);
	tcase_add_test(t, what_waits_counts_as_kept);
	tcase_add_test(t, more_files_than_profiles);
	tcase_add_test(t, what_was_begun_is_written_before_the_end);
	tcase_add_test(t, power_is_lost_at_any_moment);
	tcase_add_test(t, killed_first_and_then_without_power);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
