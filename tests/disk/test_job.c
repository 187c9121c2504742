// The thread of saves and loads: what nobody asked for holds nobody up.
#include "daemon/disk/job.h"

#include <check.h>
#include <stdatomic.h>

#include "tests/disk/fixture.h"
#include "tests/lib/suite.h"

#define TURNS 100000 // of .1 ms or more; nothing is asserted about time, but the test's own end

static struct disk_jobs *jobs;
static atomic_int begun; // operations on the disk: looking through it, and looking up tokens
static atomic_bool hold; // the thread stands still where the next begins

static int count_begun(const struct disk_call *call, int after)
{
	if (!after && !strcmp(call->call, "io_uring"))
		atomic_fetch_add(&begun, 1);
	while (!after && !strcmp(call->call, "io_uring") && atomic_load(&hold))
		usleep(100);
	return 0;
}

// The store and the pool were attached to, not made.
static void end_attached(void)
{
	disk_jobs_stop(jobs, false, NULL, NULL);
	disk_hook = NULL;
	store_destroy(f.store);
	pool_close(f.pool, true);
	ck_assert_int_eq(rmdir(f.dir), 0);
	open_small();
}

static void start(uint64_t rate)
{
	const struct disk_policy policy = {.rate = rate, .high = 1, .low = 1};
	ck_assert_int_eq(disk_jobs_start(disk, f.store, f.pool, &policy, &jobs), 0);
}

static struct disk_job_view until_done(uint64_t job)
{
	struct disk_job_view view = {0};
	for (int i = 0; i < TURNS && view.state != DISK_DONE; i++) {
		ck_assert_int_eq(disk_job_look(jobs, &root, job, &view), 0);
		usleep(100);
	}
	ck_assert_int_eq(view.state, DISK_DONE);
	return view;
}

// On disk only, known by its manifest, its tokens not looked up yet.
static void saved_before(const char *name)
{
	struct context *c = create(name, 0);
	grow(c, 5000, true);
	ck_assert_int_eq(save(name), 0);
	done_with(c, name);
	(void)attach_again();
}

static bool found_by_its_tokens(uint64_t tokens)
{
	uint32_t *ids = malloc(tokens * sizeof *ids);
	uint8_t fingerprint[64];
	struct disk_saved saved;
	must(disk_find(disk, "book", &saved));
	memcpy(fingerprint, saved.fingerprint, sizeof fingerprint);
	for (uint64_t i = 0; i < tokens; i++)
		ids[i] = (uint32_t)tags[i];
	const struct prefix_query query = {
		.fingerprint = fingerprint, .tokens = ids, .count = tokens, .min_tokens = 1, .saved = true};
	struct prefix_found found = {0};
	int status = store_find_prefix(f.store, &root, &query, &found, f.why);
	free(ids);
	return status == 0 && found.matched == tokens && !strcmp(found.saved, "book");
}

// At a byte a second the token ids take hours. A job, another rate and the daemon's end do not wait for them.
START_TEST(looking_tokens_up_holds_nobody_up)
{
	uint64_t job;
	saved_before("book");
	disk_hook = count_begun;
	start(1);
	for (int i = 0; i < TURNS && atomic_load(&begun) < 2; i++)
		usleep(1000);
	if (_i == 0) {
		ck_assert_int_eq(disk_job_begin(jobs, DISK_ERASE, &root, "none", &job, f.why), 0);
		ck_assert_int_eq(until_done(job).status, MPIG_ENOENT);
	}
	if (_i == 1) {
		const struct disk_policy fast = {.high = 1, .low = 1};
		disk_jobs_set_policy(jobs, &fast);
		for (int i = 0; i < TURNS && !found_by_its_tokens(5000); i++)
			usleep(1000);
		ck_assert(found_by_its_tokens(5000));
	}
	end_attached();
}
END_TEST

static void until_failed(uint64_t count)
{
	struct disk_counts counts = {0};
	for (int i = 0; i < TURNS && counts.errors < count; i++) {
		disk_jobs_counts(jobs, &counts);
		usleep(100);
	}
	ck_assert_uint_eq(counts.errors, count);
}

// How a job ended is kept for whoever has not asked yet, as long as others' that were told, or the newcomer's own, make room. Who comes too late
// is told so; what never was is not there.
START_TEST(results_are_kept_for_who_asks_late)
{
	struct credentials one = user(5), many = user(7);
	struct disk_job_view view;
	uint64_t first, job = 0, own = 0, errors = 1;
	char name[16];
	start(0);
	ck_assert_int_eq(disk_job_begin(jobs, DISK_LOAD, &one, "mine", &first, f.why), 0);
	until_failed(errors);
	for (uint32_t i = 0; i < 2 * DISK_JOBS; i++) { // none of them asked for
		snprintf(name, sizeof name, "none%u", i);
		ck_assert_int_eq(disk_job_begin(jobs, DISK_LOAD, &many, name, &job, f.why), 0);
		own = own ? own : job;
		until_failed(++errors);
	}
	ck_assert_int_eq(disk_job_look(jobs, &many, own, &view), MPIG_ERETRY);
	ck_assert_int_eq(disk_job_look(jobs, &many, first, &view), MPIG_ENOENT); // another's
	ck_assert_int_eq(disk_job_look(jobs, &many, job + 1, &view), MPIG_ENOENT);
	ck_assert_int_eq(disk_job_look(jobs, &many, 1, &view), MPIG_ENOENT); // of another daemon
	ck_assert_int_eq(disk_job_look(jobs, &one, first, &view), 0);
	ck_assert(view.state == DISK_DONE && view.status == MPIG_ENOENT && strstr(view.why, "'mine'"));
	// Now that it has been told it goes before what was not.
	ck_assert_int_eq(disk_job_begin(jobs, DISK_LOAD, &many, "another", &job, f.why), 0);
	until_failed(++errors);
	ck_assert_int_eq(disk_job_look(jobs, &one, first, &view), MPIG_ERETRY);
	disk_jobs_stop(jobs, false, NULL, NULL);
}
END_TEST

// Work that waits is joined: both are told.
START_TEST(two_ask_for_the_same)
{
	struct credentials one = user(5);
	struct disk_job_view view;
	uint64_t first, same, job;
	disk_hook = count_begun;
	start(0);
	for (int i = 0; i < TURNS && !disk_is_known(disk); i++)
		usleep(1000);
	int before = atomic_load(&begun);
	atomic_store(&hold, true);
	ck_assert_int_eq(disk_job_begin(jobs, DISK_CHECK, &root, "other", &job, f.why), 0);
	for (int i = 0; i < TURNS && atomic_load(&begun) == before; i++)
		usleep(1000);
	ck_assert_int_eq(disk_job_begin(jobs, DISK_CHECK, &one, "none", &first, f.why), 0);
	ck_assert_int_eq(disk_job_begin(jobs, DISK_CHECK, &one, "none", &same, f.why), 0);
	ck_assert_uint_eq(first, same);
	atomic_store(&hold, false);
	(void)until_done(job);
	for (int i = 0; i < TURNS && (disk_job_look(jobs, &root, first, &view) || view.state != DISK_DONE); i++)
		usleep(1000); // an administrator's look is not theirs
	for (int told = 0; told < 2; told++) {
		for (uint32_t i = 0; i < 2 * DISK_JOBS; i++) {
			ck_assert_int_eq(disk_job_begin(jobs, DISK_ERASE, &root, "none", &job, f.why), 0);
			(void)until_done(job);
		}
		ck_assert_int_eq(disk_job_look(jobs, &one, first, &view), 0);
		ck_assert_int_eq(view.status, MPIG_ENOENT);
	}
	for (uint32_t i = 0; i < 2 * DISK_JOBS; i++) {
		ck_assert_int_eq(disk_job_begin(jobs, DISK_ERASE, &root, "none", &job, f.why), 0);
		(void)until_done(job);
	}
	ck_assert_int_eq(disk_job_look(jobs, &one, first, &view), MPIG_ERETRY);
	disk_jobs_stop(jobs, false, NULL, NULL);
	disk_hook = NULL;
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("disk/job");
	TCase *t = tcase_create("job");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, looking_tokens_up_holds_nobody_up, 0, 3);
	tcase_add_test(t, results_are_kept_for_who_asks_late);
	tcase_add_test(t, two_ask_for_the_same);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
