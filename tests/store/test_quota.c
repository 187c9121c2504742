// Quotas: who pays for what, and refusals that change nothing.
#include "tests/lib/suite.h"
#include "tests/store/fixture.h"

static struct fixture f;
static void teardown(void)
{
	fixture_close(&f);
}

static int make(const char *name, uint32_t uid, uint64_t expected, struct context **c)
{
	struct mpig_wire_layer layer = layer_of(2, 1, 64, 0, 2, 0, 0);
	struct mpig_ctl_create body = create_of(name, 1);
	body.mode = 0644;
	body.expected_tokens = expected;
	struct credentials who = user(uid);
	int status = store_context_create(f.store, &who, &body, &layer, c, f.why);
	if (!status)
		ck_assert_int_eq(context_lease(f.store, *c, &who, 1 + uid, f.why), 0);
	return status;
}

static int fill(struct context *c, uint64_t position, uint64_t n)
{
	uint64_t *tags = calloc(n, sizeof *tags);
	uint32_t *ids = calloc(n, sizeof *ids);
	int status = append_rows(&f, c, 0, position, n, tags);
	if (!status)
		status = context_commit(f.store, c, position, n, ids, f.why);
	free(tags);
	free(ids);
	return status;
}

START_TEST(bytes)
{
	fixture_open(&f, 64 << 20, 2 << 20, 0);
	struct context *a, *b;
	ck_assert_int_eq(make("a", 1, 0, &a), 0);
	ck_assert_int_eq(fill(a, 0, 4096), 0); // 1 MiB of rows
	uint64_t held = store_uid_bytes(f.store, 1), used = pool_used(f.pool);
	ck_assert(held > 1 << 20 && held < (1 << 20) + (64 << 10));
	ck_assert_int_eq(fill(a, 4096, 4096), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(f.why, "of 2048 KiB"));
	ck_assert_uint_eq(store_uid_bytes(f.store, 1), held);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_int_eq(fill(a, 4096, 1000), 0);
	ck_assert_int_eq(make("b", 1, 4096, &b), MPIG_EQUOTA); // before anything is built
	ck_assert_int_eq(make("b", 2, 4096, &b), 0);           // another uid's quota is its own
	ck_assert_int_eq(make("c", 2, MPIG_MAX_TOKENS, &b), MPIG_ENOSPC);
	ck_assert_int_eq(make("c", 2, UINT64_MAX, &b), MPIG_EINVAL);
	context_unref(a);
	context_unref(b);
}
END_TEST

START_TEST(contexts)
{
	fixture_open(&f, 32 << 20, 0, 2);
	struct context *a, *b, *c;
	ck_assert_int_eq(make("a", 1, 0, &a), 0);
	ck_assert_int_eq(make("b", 1, 0, &b), 0);
	ck_assert_int_eq(make("c", 1, 0, &c), MPIG_EQUOTA);
	struct credentials who = user(1), root = user(0);
	ck_assert_int_eq(store_context_fork(f.store, &who, a, 0, "c", &c, f.why), MPIG_EQUOTA);
	ck_assert_int_eq(make("c", 2, 0, &c), 0);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "c", 0600, 1, UINT32_MAX, f.why), MPIG_EQUOTA);
	ck_assert_int_eq(store_context_drop(f.store, &who, "b", f.why), 0);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "c", 0600, 1, UINT32_MAX, f.why), 0);
	context_unref(a);
	context_unref(b);
	context_unref(c);
}
END_TEST

START_TEST(shared_segments_are_charged_to_each_uid_once)
{
	fixture_open(&f, 64 << 20, 3 << 20, 0);
	struct context *a, *mine, *yours, *refused;
	struct credentials one = user(1), two = user(2);
	ck_assert_int_eq(make("a", 1, 0, &a), 0);
	ck_assert_int_eq(fill(a, 0, 4096), 0);
	uint64_t alone = store_uid_bytes(f.store, 1);
	ck_assert_int_eq(store_context_fork(f.store, &one, a, 4096, "mine", &mine, f.why), 0);
	uint64_t both = store_uid_bytes(f.store, 1);
	ck_assert_uint_lt(both - alone, 64 << 10); // its records, not the rows again
	ck_assert_int_eq(store_context_fork(f.store, &two, a, 4000, "yours", &yours, f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 1), both);
	ck_assert_uint_ge(store_uid_bytes(f.store, 2), 1 << 20); // whole segments, once
	struct mpig_wire_context info;
	store_context_info(f.store, yours, &info);
	ck_assert_uint_ge(info.shared_bytes, 1 << 20);
	ck_assert_uint_eq(info.committed, 4000);
	ck_assert_uint_eq(info.mode, 0600); // a stranger's copy starts private
	ck_assert_int_eq(fill(a, 4096, 4096), 0);
	ck_assert_int_eq(context_lease(f.store, yours, &two, 9, f.why), 0);
	ck_assert_int_eq(fill(yours, 4000, 4096), 0);
	// uid 2 holds 1 + 1 MiB; the parent's second segment would be the third, and a little over
	ck_assert_int_eq(store_context_fork(f.store, &two, a, 8192, "refused", &refused, f.why), MPIG_EQUOTA);
	ck_assert_int_eq(store_context_drop(f.store, &one, "a", f.why), 0);
	ck_assert_int_eq(store_context_drop(f.store, &one, "mine", f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 1), 0);
	ck_assert_uint_ge(store_uid_bytes(f.store, 2), 2 << 20);
	ck_assert_int_eq(store_context_drop(f.store, &two, "yours", f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 2), 0);
	context_unref(a);
	context_unref(mine);
	context_unref(yours);
	ck_assert_uint_eq(pool_used(f.pool), POOL_GRANULE + walk_round(8ull * POOL_MAX_CONTEXTS));
}
END_TEST

START_TEST(a_seal_over_quota_is_refused_and_gives_back)
{
	fixture_open(&f, 64 << 20, 1300 << 10, 0);
	struct mpig_wire_layer layer = layer_of(2, 1, 64, 0, 0, 8, 64);
	struct mpig_ctl_create body = create_of("a", 1);
	struct credentials who = user(1);
	struct context *c;
	ck_assert_int_eq(store_context_create(f.store, &who, &body, &layer, &c, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &who, 1, f.why), 0);
	ck_assert_int_eq(fill(c, 0, 4096), 0);
	uint64_t held = store_uid_bytes(f.store, 1), used = pool_used(f.pool);
	struct seal_plan plan;
	ck_assert_int_eq(seal_begin(f.store, c, test_table_bytes, &plan, f.why), MPIG_EQUOTA);
	ck_assert_uint_eq(plan.rows, 0);
	context_seal_finish(f.store, &plan, true);
	ck_assert_uint_eq(store_uid_bytes(f.store, 1), held);
	ck_assert_uint_eq(pool_used(f.pool), used);
	context_unref(c);
}
END_TEST

// ---- groups ----------------------------------------------------------------------------------------------------------
#define TEAM 700u

static int make_in_team(const char *name, uint32_t uid, uint64_t expected, struct context **c)
{
	struct mpig_wire_layer layer = layer_of(2, 1, 64, 0, 2, 0, 0);
	struct mpig_ctl_create body = create_of(name, 1);
	body.mode = 0640;
	body.expected_tokens = expected;
	struct credentials who = {.uid = uid, .gid = TEAM};
	int status = store_context_create(f.store, &who, &body, &layer, c, f.why);
	if (!status)
		ck_assert_int_eq(context_lease(f.store, *c, &who, 1 + uid, f.why), 0);
	return status;
}

START_TEST(a_group_has_limits_of_its_own)
{
	struct store_limits limits = {.gid_bytes = 3 << 20, .gid_contexts = 3};
	struct context *a, *b, *c, *d;
	fixture_open(&f, 64 << 20, 0, 0);
	store_set_limits(f.store, &limits);
	ck_assert_int_eq(make_in_team("a", 1, 0, &a), 0);
	ck_assert_int_eq(make_in_team("b", 2, 0, &b), 0);
	ck_assert_int_eq(fill(a, 0, 4096), 0); // 1 MiB of rows
	ck_assert_int_eq(fill(b, 0, 4096), 0);
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM), store_uid_bytes(f.store, 1) + store_uid_bytes(f.store, 2));
	uint64_t held = store_gid_bytes(f.store, TEAM), used = pool_used(f.pool);
	ck_assert_int_eq(fill(b, 4096, 4096), MPIG_EQUOTA); // though the user holds 1 MiB only
	ck_assert_ptr_nonnull(strstr(f.why, "limits.bytes_per_gid: gid 700 holds"));
	ck_assert_ptr_nonnull(strstr(f.why, "of 3072 KiB"));
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM), held);
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_int_eq(make_in_team("c", 3, 4096, &c), MPIG_EQUOTA);
	ck_assert_int_eq(make_in_team("c", 3, 0, &c), 0);
	ck_assert_int_eq(make_in_team("d", 4, 0, &d), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(f.why, "limits.contexts_per_gid: gid 700 has 3 contexts and may have 3"));
	ck_assert_int_eq(make("d", 5, 0, &d), 0); // another group
	limits.gid_bytes = 0;
	store_set_limits(f.store, &limits); // while it runs
	ck_assert_int_eq(fill(b, 4096, 4096), 0);
	context_unref(a);
	context_unref(b);
	context_unref(c);
	context_unref(d);
}
END_TEST

// A team's fork of its own prefix costs the group nothing for the rows, whoever of them makes it.
START_TEST(shared_segments_are_charged_to_each_gid_once)
{
	struct context *a, *mine;
	struct credentials two = {.uid = 2, .gid = TEAM}, root = {0};
	fixture_open(&f, 64 << 20, 0, 0);
	ck_assert_int_eq(make_in_team("a", 1, 0, &a), 0);
	ck_assert_int_eq(fill(a, 0, 4096), 0);
	uint64_t alone = store_gid_bytes(f.store, TEAM);
	ck_assert_int_eq(store_context_fork(f.store, &two, a, 4096, "mine", &mine, f.why), 0);
	ck_assert_uint_lt(store_gid_bytes(f.store, TEAM) - alone, 64 << 10);
	ck_assert_uint_ge(store_uid_bytes(f.store, 2), 1 << 20); // the user pays in full
	ck_assert_int_eq(store_context_drop(f.store, &root, "a", f.why), 0);
	ck_assert_uint_ge(store_gid_bytes(f.store, TEAM), 1 << 20);
	ck_assert_int_eq(store_context_drop(f.store, &root, "mine", f.why), 0);
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 1) + store_uid_bytes(f.store, 2), 0);
	context_unref(a);
	context_unref(mine);
}
END_TEST

START_TEST(a_change_of_group_moves_what_is_paid)
{
	struct store_limits limits = {.gid_contexts = 1, .gid_bytes = 3 << 20};
	struct context *a, *b;
	struct credentials root = {0};
	fixture_open(&f, 64 << 20, 0, 0);
	ck_assert_int_eq(make_in_team("a", 1, 0, &a), 0);
	ck_assert_int_eq(fill(a, 0, 4096), 0);
	uint64_t held = store_uid_bytes(f.store, 1);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "a", 0640, UINT32_MAX, TEAM + 1, f.why), 0);
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM), 0);
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM + 1), held);
	ck_assert_uint_eq(store_uid_bytes(f.store, 1), held);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "a", 0640, 9, UINT32_MAX, f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 1), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 9), held);
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM + 1), held);
	store_set_limits(f.store, &limits);
	ck_assert_int_eq(make_in_team("b", 2, 0, &b), 0);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "a", 0640, UINT32_MAX, TEAM, f.why), MPIG_EQUOTA);
	ck_assert_uint_eq(store_gid_bytes(f.store, TEAM + 1), held); // nothing has moved
	ck_assert_int_eq(store_context_chmod(f.store, &root, "a", 0600, UINT32_MAX, UINT32_MAX, f.why),
	                 0); // no new owner: no question
	context_unref(a);
	context_unref(b);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("quota");
	TCase *t = tcase_create("quota");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, NULL, teardown);
	tcase_add_test(t, bytes);
	tcase_add_test(t, contexts);
	tcase_add_test(t, shared_segments_are_charged_to_each_uid_once);
	tcase_add_test(t, a_seal_over_quota_is_refused_and_gives_back);
	tcase_add_test(t, a_group_has_limits_of_its_own);
	tcase_add_test(t, shared_segments_are_charged_to_each_gid_once);
	tcase_add_test(t, a_change_of_group_moves_what_is_paid);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
