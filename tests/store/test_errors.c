// Every system call and every allocation of the pool and the store fails once, or from some moment on for good. Each answers with a status
// and a reason, and leaves everything as it was: contents, charges, every byte of the pool; and the same call then succeeds.
#include <errno.h>
#include <fcntl.h>
#include <xxhash.h>

#include "daemon/store/pool_private.h"
#include "shm/status.h"
#include "tests/lib/figures.h"
#include "tests/lib/points.h"
#include "tests/lib/suite.h"
#include "tests/store/segments.h"

#define TAGS 12000u
#define MORE 3000u // tokens of a commit that needs memory for its ids

static const struct kind_of_error {
	unsigned kinds;
	int error;
	uint64_t count;
	bool harmless; // the call is made again, or does not say so
} errors[] = {
	{POINT_CALL, ENOSPC, 1, false}, {POINT_CALL, ENOSPC, UINT64_MAX, false}, {POINT_CALL, EIO, 1, false},
	{POINT_CALL, EINTR, 1, false},  {POINT_ALLOC, ENOMEM, 1, false},         {POINT_ALLOC, ENOMEM, UINT64_MAX, false},
};
#define ERRORS (sizeof errors / sizeof errors[0])

static uint64_t *tags, failures, tolerated;

// ---- what must not change --------------------------------------------------------------------------------------------

static struct context *book, *sealed;

static void check_all(void)
{
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		if (context_layer(book, layer)) {
			view_all(book, layer, tags);
			view_all(sealed, layer, tags);
		}
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
	audit(NULL, NULL);
}

static void make_contexts(void)
{
	open_small();
	tags = tags_from(1, TAGS);
	sealed = create("sealed", 1);
	append_all(sealed, 0, 5000, tags);
	must(commit(sealed, 0, 5000, tags) == 0 && seal(sealed, tags) == 5000);
	append_all(sealed, 5000, 300, tags + 5000);
	must(commit(sealed, 5000, 300, tags + 5000) == 0);
	book = create("book", 1);
	append_all(book, 0, 700, tags);
	must(commit(book, 0, 700, tags) == 0);
}

static void end_contexts(void)
{
	context_release(f.store, sealed, 1);
	context_unref(sealed);
	context_release(f.store, book, 1);
	context_unref(book);
	free(tags);
	close_all();
	figures_add("errors.refused", (double)failures);
	figures_add("errors.borne", (double)tolerated);
}

// ---- trials ----------------------------------------------------------------------------------------------------------

struct trial {
	const char *name;
	int (*attempt)(void);
	void (*undo)(void); // of one that succeeded
};

static void refused(const struct trial *t, const struct kind_of_error *e, uint64_t number, int status)
{
	const char *call;
	points_off(&call);
	ck_assert_msg(status == MPIG_ENOSPC || status == MPIG_ENOMEM || status == MPIG_EIO,
	              "%s, %s number %lu fails with %s: %d %s", t->name, call, (unsigned long)number, strerror(e->error), status,
	              f.why);
	ck_assert_msg(f.why[0], "%s, %s number %lu fails with %s, and no reason is given", t->name, call, (unsigned long)number,
	              strerror(e->error));
}

static void try_all(const struct trial *t)
{
	for (size_t i = 0; i < ERRORS; i++) {
		const struct kind_of_error *e = &errors[i];
		for (uint64_t k = 1, calls = k; calls >= k - 1; k++) { // until it is not reached
			uint64_t used = pool_used(f.pool), charged = store_uid_bytes(f.store, 0);
			figures_doing("%s, call %lu: %s", t->name, (unsigned long)k, strerror(e->error));
			f.why[0] = 0;
			points_fail(e->kinds, k, e->count, e->error);
			int status = t->attempt();
			calls = points_off(NULL);
			failures += status != 0;
			tolerated += !status && calls >= k;
			if (status)
				refused(t, e, k, status);
			else
				t->undo();
			ck_assert_msg(pool_used(f.pool) == used, "%s, call %lu: %s: %lu bytes of the pool, then %lu", t->name,
			              (unsigned long)k, strerror(e->error), (unsigned long)used,
			              (unsigned long)pool_used(f.pool));
			ck_assert_uint_eq(store_uid_bytes(f.store, 0), charged);
			if (k % 3 == 0 || (status && k % 2))
				check_all();
		}
		ck_assert_msg(t->attempt() == 0, "%s: %s", t->name, f.why);
		t->undo();
		check_all();
	}
	figures_doing("%s", "");
}

// ---- of contexts -----------------------------------------------------------------------------------------------------

static struct context *made;

static int try_create(void)
{
	struct mpig_wire_layer layer[LAYERS];
	make_spec(1, layer);
	struct mpig_ctl_create body = create_of("new", LAYERS);
	return store_context_create(f.store, &root, &body, layer, &made, f.why);
}

static void undo_create(void)
{
	context_unref(made);
	must(store_context_drop(f.store, &root, "new", f.why) == 0);
}

static int try_fork(void)
{
	return store_context_fork(f.store, &root, sealed, 5100, "new", &made, f.why);
}

static int try_block(void) // in the open segment
{
	return context_reserve(f.store, book, 0, 700, 3000, f.why);
}

static void undo_block(void)
{
	must(context_truncate(f.store, book, 700, f.why) == 0);
}

static int try_segment(void)
{
	return context_reserve(f.store, sealed, 0, 5300, 3000, f.why);
}

static void undo_segment(void)
{
	must(context_truncate(f.store, sealed, 5300, f.why) == 0);
}

static int try_seal(void)
{
	struct seal_plan plan;
	int status = seal_begin(f.store, book, test_table_bytes, &plan, f.why);
	if (!status)
		context_seal_finish(f.store, &plan, false); // only what can fail: publishing cannot
	return status;
}

static void undo_nothing(void)
{
}

static int try_commit(void)
{
	static uint32_t ids[MORE];
	for (uint32_t i = 0; i < MORE; i++)
		ids[i] = (uint32_t)tags[700 + i] + 1; // a branch of its own in the tree of tokens
	return context_commit(f.store, book, 700, MORE, ids, f.why);
}

static void undo_commit(void)
{
	must(context_truncate(f.store, book, 700, f.why) == 0);
	append_all(book, 700, MORE, tags + 700);
}

START_TEST(of_contexts)
{
	static const struct trial trials[] = {
		{"create", try_create, undo_create},    {"fork", try_fork, undo_create},  {"block", try_block, undo_block},
		{"segment", try_segment, undo_segment}, {"seal", try_seal, undo_nothing},
	};
	make_contexts();
	must(try_fork() == 0); // seals the parent: the same state before and after each of the others
	undo_create();
	try_all(&trials[_i]);
	ck_assert_uint_gt(failures, 5);
	end_contexts();
}
END_TEST

START_TEST(of_commits)
{
	static const struct trial commits = {"commit", try_commit, undo_commit};
	make_contexts();
	append_all(book, 700, MORE, tags + 700);
	try_all(&commits);
	ck_assert_uint_gt(failures, 0);
	end_contexts();
}
END_TEST

// Truncations and drops cannot be refused for long: what is missing is memory for lists only.
START_TEST(of_taking_back)
{
	make_contexts();
	for (uint64_t k = 1, calls = k; calls >= k - 1; k++) { // until it is not reached
		points_fail(POINT_ALLOC | POINT_CALL, k, UINT64_MAX, ENOMEM);
		int status = context_truncate(f.store, book, 650, f.why);
		calls = points_off(NULL);
		must(status == 0 || status == MPIG_ENOMEM);
		failures += status != 0;
		tolerated += !status && calls >= k;
		must(context_committed(book) == (status ? 700u : 650u));
		check_all();
		must(context_truncate(f.store, book, 650, f.why) == 0);
		append_all(book, 650, 50, tags + 650);
		must(commit(book, 650, 50, tags + 650) == 0);
	}
	for (uint64_t k = 1, calls = k; calls >= k - 1; k++) { // until it is not reached
		must(try_create() == 0);
		append_all(made, 0, 0, tags);
		must(context_lease(f.store, made, &root, 2, f.why) == 0);
		append_all(made, 0, 300, tags);
		must(commit(made, 0, 300, tags) == 0);
		context_release(f.store, made, 2);
		context_unref(made);
		points_fail(POINT_ALLOC | POINT_CALL, k, UINT64_MAX, ENOMEM);
		int status = store_context_drop(f.store, &root, "new", f.why);
		calls = points_off(NULL);
		must(status == 0 || status == MPIG_ENOMEM);
		failures += status != 0;
		tolerated += !status && calls >= k;
		check_all();
		must(!status || store_context_drop(f.store, &root, "new", f.why) == 0);
		check_all();
	}
	end_contexts();
}
END_TEST

// ---- of pools --------------------------------------------------------------------------------------------------------

START_TEST(of_making_a_pool)
{
	struct pool_options o = {.dir = f.dir, .instance = "test", .bytes = 12 << 20, .nodes = 2, .huge_pages = true};
	snprintf(f.dir, sizeof f.dir, "/dev/shm/mpig-test-%d", (int)getpid());
	for (size_t i = 0; i < ERRORS; i++) {
		const struct kind_of_error *e = &errors[i];
		for (uint64_t k = 1, calls = k; calls >= k - 1; k++) { // until it is not reached
			const char *call;
			struct pool *pool = NULL;
			f.why[0] = 0;
			points_fail(e->kinds, k, e->count, e->error);
			int status = pool_create(&o, &pool, f.why, sizeof f.why);
			calls = points_off(&call);
			failures += status != 0;
			ck_assert_msg((status == 0) == (pool != NULL) && (status == 0 || f.why[0]), "%s number %lu", call,
			              (unsigned long)k);
			ck_assert_msg(status == 0 || status == MPIG_ENOSPC || status == MPIG_ENOMEM || status == MPIG_EIO,
			              "%s number %lu fails with %s: %d %s", call, (unsigned long)k, strerror(e->error), status,
			              f.why);
			if (!status)
				must(pool_used(pool) == 2 * POOL_GRANULE + pool_round(8ull * POOL_MAX_CONTEXTS));
			pool_close(pool, true);
			if (e->count > 1 && status) { // it could not even clean up
				char path[96];
				snprintf(path, sizeof path, "rm -rf %s", f.dir);
				must(system(path) == 0);
			}
			ck_assert_msg(access(f.dir, F_OK) != 0, "after %s number %lu failed (%s) %s is there", call,
			              (unsigned long)k, f.why, f.dir);
		}
	}
	ck_assert_uint_gt(failures, 40);
	figures_add("errors.refused", (double)failures);
}
END_TEST

// Of what is not a hole.
static uint64_t pool_hash(void)
{
	static unsigned char data[1 << 16];
	char path[96];
	snprintf(path, sizeof path, "%s/node0.pool", f.dir);
	int fd = open(path, O_RDONLY);
	must(fd >= 0);
	uint64_t hash = 0;
	for (off_t at = 0, end; (at = lseek(fd, at, SEEK_DATA)) >= 0; at = end) {
		must((end = lseek(fd, at, SEEK_HOLE)) > at);
		for (ssize_t n; at < end; at += n) {
			must((n = pread(fd, data, end - at < (off_t)sizeof data ? (size_t)(end - at) : sizeof data, at)) > 0);
			hash = XXH3_64bits_withSeed(data, (size_t)n, hash ^ (uint64_t)at);
		}
	}
	close(fd);
	return hash;
}

static void warn(void *arg, const char *text)
{
	(void)arg;
	ck_abort_msg("%s", text);
}

static int attach_pool(struct store_attached *attached)
{
	struct pool_options p = {.dir = f.dir, .instance = "test", .huge_pages = true};
	int status = pool_open(&p, &f.pool, f.why, sizeof f.why);
	if (status)
		return status;
	struct store_options o = {.pool = f.pool};
	struct store_attach_options a = {.verify = VERIFY_FULL, .table_bytes = test_table_bytes, .warn = warn};
	status = store_attach(&o, &a, &f.store, attached);
	if (status) {
		snprintf(f.why, sizeof f.why, "attach");
		pool_close(f.pool, false);
	}
	return status;
}

// A pool that cannot be attached for want of memory or by an error of the system stays as it is, and nothing in it is called damaged.
START_TEST(of_attaching)
{
	make_contexts();
	must(try_fork() == 0);
	context_unref(made);
	append_all(sealed, 5300, 600, tags + 5300); // uncommitted: attaching gives it back
	context_unref(sealed);
	context_unref(book);
	store_destroy(f.store);
	pool_close(f.pool, false);
	for (size_t i = 0; i < ERRORS; i++) {
		const struct kind_of_error *e = &errors[i];
		for (uint64_t k = 1, calls = k; calls >= k - 1; k++) { // until it is not reached
			const char *call;
			struct store_attached attached = {0};
			uint64_t hash = pool_hash();
			f.why[0] = 0;
			points_fail(e->kinds, k, e->count, e->error);
			int status = attach_pool(&attached);
			calls = points_off(&call);
			failures += status != 0;
			figures_doing("%s number %lu: %s", call, (unsigned long)k, strerror(e->error));
			if (status) {
				ck_assert_msg(f.why[0], "%s number %lu: no reason", call, (unsigned long)k);
				ck_assert_msg(status == MPIG_ENOSPC || status == MPIG_ENOMEM || status == MPIG_EIO,
				              "%s number %lu fails with %s: %d %s", call, (unsigned long)k, strerror(e->error),
				              status, f.why);
				ck_assert_msg(pool_hash() == hash, "%s number %lu fails with %s: the pool has changed", call,
				              (unsigned long)k, strerror(e->error));
				continue;
			}
			must(attached.contexts == 3 && attached.quarantined == 0 && attached.lost == 0);
			must(store_context_open(f.store, &root, "book", NULL, &book, f.why) == 0);
			must(store_context_open(f.store, &root, "sealed", NULL, &sealed, f.why) == 0);
			must(context_committed(book) == 700 && context_committed(sealed) == 5300);
			check_all();
			context_unref(book);
			context_unref(sealed);
			store_destroy(f.store);
			pool_close(f.pool, false);
		}
	}
	figures_doing("%s", "");
	ck_assert_uint_gt(failures, 40);
	figures_add("errors.refused", (double)failures);
	struct store_attached attached;
	must(attach_pool(&attached) == 0);
	store_destroy(f.store);
	pool_close(f.pool, true);
	must(rmdir(f.dir) == 0);
	free(tags);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("store errors");
	TCase *t = tcase_create("errors");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	tcase_add_loop_test(t, of_contexts, 0, 5);
	tcase_add_test(t, of_commits);
	tcase_add_test(t, of_taking_back);
	tcase_add_test(t, of_making_a_pool);
	tcase_add_test(t, of_attaching);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
