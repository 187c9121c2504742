// The one access decision, exhaustively, and every operation of the store that has to ask it.
#include <string.h>

#include "tests/lib/suite.h"
#include "tests/store/fixture.h"

// What a file system would say, written out class by class.
static bool expected(uint32_t mode, int class, enum access want)
{
	static const uint32_t read_bit[] = {0400, 0040, 0004}, write_bit[] = {0200, 0020, 0002};
	if (class == 3)
		return true; // root
	if (want == ACCESS_OWN)
		return class == 0;
	return (mode & (want == ACCESS_READ ? read_bit[class] : write_bit[class])) != 0;
}

START_TEST(every_mode_class_and_operation)
{
	static const uint32_t other_groups[] = {7, 8}, right_groups[] = {7, 200, 9};
	const struct credentials who[] = {
		{.uid = 100, .gid = 999},                                         // owner
		{.uid = 100, .gid = 200},                                         // owner, in the group as well
		{.uid = 101, .gid = 200},                                         // by primary group
		{.uid = 101, .gid = 7, .groups = right_groups, .group_count = 3}, // by another group
		{.uid = 101, .gid = 7},                                           // other
		{.uid = 101, .gid = 7, .groups = other_groups, .group_count = 2},
		{.uid = 0, .gid = 0},
	};
	static const int class_of[] = {0, 0, 1, 1, 2, 2, 3};
	int allowed = 0;
	for (uint32_t mode = 0; mode <= 0777; mode++)
		for (size_t i = 0; i < sizeof who / sizeof *who; i++)
			for (int want = ACCESS_READ; want <= ACCESS_OWN; want++) {
				struct identity object = {100, 200, mode};
				bool may = access_check(&object, &who[i], (enum access)want);
				must(may == expected(mode, class_of[i], (enum access)want));
				allowed += may;
			}
	// half of all modes set a given bit: 6 classes x 2 operations x 256, owners' 2 x 512, root's 3 x 512
	ck_assert_int_eq(allowed, 6 * 2 * 256 + 2 * 512 + 3 * 512);
}
END_TEST

static struct fixture f;
static void setup(void)
{
	fixture_open(&f, 32 << 20, 0, 0);
}
static void teardown(void)
{
	fixture_close(&f);
}

static struct context *make(const char *name, uint32_t uid, uint32_t mode)
{
	struct mpig_wire_layer layer = layer_of(2, 1, 64, 0, 2, 0, 0);
	struct mpig_ctl_create body = create_of(name, 1);
	body.mode = mode;
	struct context *c;
	struct credentials who = user(uid);
	ck_assert_msg(store_context_create(f.store, &who, &body, &layer, &c, f.why) == 0, "%s", f.why);
	return c;
}

enum operation { OPEN, FORK, LEASE, PREFIX, LIST, CHMOD, DROP, OPERATIONS };

static int attempt(enum operation op, const struct credentials *who, struct context *c)
{
	struct context *out = NULL;
	struct mpig_wire_context info[4];
	uint64_t cursor = 0, matched = 0;
	uint32_t tokens[3] = {1, 2, 3};
	uint8_t fingerprint[64] = {1};
	int status = 0;
	switch (op) {
	case OPEN:
		status = store_context_open(f.store, who, "x", NULL, &out, f.why);
		break;
	case FORK:
		status = store_context_fork(f.store, who, c, 0, "forked", &out, f.why);
		if (!status) {
			struct credentials root = user(0);
			must(store_context_drop(f.store, &root, "forked", f.why) == 0);
		}
		break;
	case LEASE:
		status = context_lease(f.store, c, who, 5, f.why);
		context_release(f.store, c, 5);
		break;
	case PREFIX:
		status = store_context_open_prefix(f.store, who, fingerprint, tokens, 3, 3, &out, &matched, f.why);
		break;
	case LIST:
		return store_context_list(f.store, who, &cursor, info, 4) == 1 ? 0 : MPIG_ENOENT;
	case CHMOD:
		status = store_context_chmod(f.store, who, "x", 0, UINT32_MAX, UINT32_MAX, f.why);
		break;
	case DROP:
		status = store_context_drop(f.store, who, "x", f.why);
		break;
	case OPERATIONS:
		break;
	}
	context_unref(out);
	return status;
}

START_TEST(operations_ask)
{
	const struct credentials who[] = {user(100), {.uid = 101, .gid = 100}, user(102), user(0)}; // owner, group, other, root
	static const enum access need[OPERATIONS] = {ACCESS_READ, ACCESS_READ, ACCESS_WRITE, ACCESS_READ,
	                                             ACCESS_READ, ACCESS_OWN,  ACCESS_OWN};
	static const uint32_t modes[] = {0, 0400, 0600, 0640, 0660, 0644, 0666, 0007, 0070, 0777};
	for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
		for (int class = 0; class < 4; class ++)
			for (int op = 0; op < OPERATIONS; op++) {
				struct context *c = make("x", 100, 0600);
				struct credentials owner = user(100);
				uint64_t tags[3] = {1, 2, 3};
				uint32_t tokens[3] = {1, 2, 3};
				must(context_lease(f.store, c, &owner, 1, f.why) == 0);
				must(append_rows(&f, c, 0, 0, 3, tags) == 0);
				must(context_commit(f.store, c, 0, 3, tokens, f.why) == 0);
				context_release(f.store, c, 1);
				must(store_context_chmod(f.store, &owner, "x", modes[m], UINT32_MAX, UINT32_MAX, f.why) == 0);
				bool may = expected(modes[m], class, need[op]);
				must(context_may(f.store, c, &who[class], need[op]) == may);
				int status = attempt((enum operation)op, &who[class], c);
				int refusal = op == PREFIX || op == LIST ? MPIG_ENOENT
				                                         : MPIG_EACCES; // what one may not read is not there
				ck_assert_msg(status == (may ? 0 : refusal), "mode %o class %d operation %d: %d %s", modes[m],
				              class, op, status, f.why);
				if (op != DROP || !may)
					must(store_context_drop(f.store, &owner, "x", f.why) == 0);
				context_unref(c);
			}
}
END_TEST

START_TEST(owners_and_groups_change_as_for_files)
{
	struct context *c = make("x", 100, 0600);
	struct credentials owner = user(100), root = user(0), stranger = user(101);
	uint32_t groups[] = {55};
	struct mpig_wire_context info;
	ck_assert_int_eq(store_context_chmod(f.store, &owner, "x", 01000, UINT32_MAX, UINT32_MAX, f.why), MPIG_EINVAL);
	ck_assert_int_eq(store_context_chmod(f.store, &owner, "x", 0640, 101, UINT32_MAX, f.why), MPIG_EACCES);
	ck_assert_int_eq(store_context_chmod(f.store, &owner, "x", 0640, 100, 55, f.why), MPIG_EACCES);
	owner.groups = groups;
	owner.group_count = 1;
	ck_assert_int_eq(store_context_chmod(f.store, &owner, "x", 0640, 100, 55, f.why), 0);
	store_context_info(f.store, c, &info);
	ck_assert(info.uid == 100 && info.gid == 55 && info.mode == 0640);
	uint64_t bytes = store_uid_bytes(f.store, 100);
	ck_assert_uint_gt(bytes, 0);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "x", 0600, 101, UINT32_MAX, f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 100), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 101), bytes);
	ck_assert_int_eq(store_context_drop(f.store, &owner, "x", f.why), MPIG_EACCES);
	ck_assert_int_eq(store_context_drop(f.store, &stranger, "x", f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 101), 0);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "x", 0600, 101, UINT32_MAX, f.why), MPIG_ENOENT);
	context_unref(c);
}
END_TEST

START_TEST(one_writer)
{
	struct context *c = make("x", 100, 0660);
	struct credentials owner = user(100), mate = {.uid = 101, .gid = 100, .pid = 4};
	ck_assert(!context_leased_by(c, 1));
	ck_assert_int_eq(context_lease(f.store, c, &owner, 1, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &owner, 1, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &mate, 2, f.why), MPIG_EBUSY);
	ck_assert_ptr_nonnull(strstr(f.why, "process 1100"));
	context_release(f.store, c, 2);
	ck_assert(context_leased_by(c, 1) && !context_leased_by(c, 0));
	context_release(f.store, c, 1);
	ck_assert_int_eq(context_lease(f.store, c, &mate, 2, f.why), 0);
	struct mpig_wire_context info;
	store_context_info(f.store, c, &info);
	ck_assert_uint_eq(info.writer_pid, 4);
	ck_assert_int_eq(store_context_drop(f.store, &owner, "x", f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &mate, 2, f.why), MPIG_ENOENT);
	context_release(f.store, c, 2);
	context_unref(c);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("access");
	TCase *t = tcase_create("access");
	tcase_set_timeout(t, 60);
	tcase_add_test(t, every_mode_class_and_operation);
	suite_add_tcase(suite, t);
	t = tcase_create("store");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, operations_ask);
	tcase_add_test(t, owners_and_groups_change_as_for_files);
	tcase_add_test(t, one_writer);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
