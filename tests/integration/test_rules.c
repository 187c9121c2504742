// The rules of access, all of them: each control operation asked for by a context's owner, a member of its group, another user, root, a
// member of daemon.admin_group. The table below is what is promised; an operation that is not in it fails the test.
#include <check.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tests/lib/wire.h" // first: shm/ has the enumerations that magicpig.h copies

#include "shm/status.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"

#define OWNER 61001u
#define TEAM 61002u
#define MODE 0640u // the owner reads and writes, the group reads

enum who { AS_OWNER, AS_GROUP, AS_OTHER, AS_ROOT, AS_ADMIN, WHO };
static const char *const who_names[WHO] = {"owner", "group", "other", "root", "admin"};
static const struct {
	uint32_t uid, gid, other_gid; // other_gid: a supplementary group
} people[WHO] = {{OWNER, TEAM, 0}, {61003, 61003, TEAM}, {61004, 61004, 61004}, {0, 0, 0}, {61005, 61005, 0}};

enum { YES = 1, NO = 0 };
struct promise {
	uint16_t op;
	const char *what;
	uint32_t flags, work;
	bool may[WHO]; // owner, group, other, root, admin
};
#define ALL                                                                                                                      \
	{                                                                                                                        \
		YES, YES, YES, YES, YES                                                                                          \
	}
#define READERS                                                                                                                  \
	{                                                                                                                        \
		YES, YES, NO, YES, YES                                                                                           \
	}
#define WRITERS                                                                                                                  \
	{                                                                                                                        \
		YES, NO, NO, YES, YES                                                                                            \
	}
#define ADMINS                                                                                                                   \
	{                                                                                                                        \
		NO, NO, NO, YES, YES                                                                                             \
	}
static const struct promise promises[] = {
	{MPIG_CTL_HELLO, "HELLO", 0, 0, ALL},
	{MPIG_CTL_PING, "PING", 0, 0, ALL},
	{MPIG_CTL_QUEUE_CREATE, "QUEUE_CREATE", 0, 0, ALL},
	{MPIG_CTL_QUEUE_DESTROY, "QUEUE_DESTROY", 0, 0, ALL},
	{MPIG_CTL_CREATE, "CREATE", 0, 0, ALL},
	{MPIG_CTL_OPEN, "OPEN to read", 0, 0, READERS},
	{MPIG_CTL_OPEN, "OPEN to write", MPIG_OPEN_WRITE, 0, WRITERS},
	{MPIG_CTL_OPEN_PREFIX, "OPEN_PREFIX", 0, 0, ALL},
	{MPIG_CTL_CLOSE, "CLOSE", 0, 0, ALL},
	{MPIG_CTL_DROP, "DROP", 0, 0, WRITERS},
	{MPIG_CTL_LIST, "LIST", 0, 0, ALL},
	{MPIG_CTL_SHOW, "SHOW", 0, 0, READERS},
	{MPIG_CTL_FORK, "FORK", 0, 0, READERS},
	{MPIG_CTL_CHMOD, "CHMOD", 0, 0, WRITERS},
	{MPIG_CTL_STATUS, "STATUS", 0, 0, ALL},
	{MPIG_CTL_CONFIG_GET, "CONFIG_GET", 0, 0, ALL},
	{MPIG_CTL_VERIFY, "VERIFY", 0, 0, READERS},
	{MPIG_CTL_HEADS, "HEADS", 0, 0, READERS},
	{MPIG_CTL_DISK, "DISK save", 0, MPIG_DISK_SAVE, WRITERS},
	{MPIG_CTL_DISK, "DISK load", 0, MPIG_DISK_LOAD, READERS},
	{MPIG_CTL_DISK, "DISK check", 0, MPIG_DISK_CHECK, READERS},
	{MPIG_CTL_DISK, "DISK erase", 0, MPIG_DISK_ERASE, WRITERS},
	{MPIG_CTL_DISK, "DISK gc", 0, MPIG_DISK_GC, ADMINS},
	{MPIG_CTL_SAVED, "SAVED", 0, 0, ALL},
	{MPIG_CTL_EVICT, "EVICT", 0, 0, WRITERS},
	{MPIG_CTL_POLICY, "POLICY", 0, 0, WRITERS},
	{MPIG_CTL_REINDEX, "REINDEX", 0, 0, WRITERS},
	{MPIG_CTL_SIGNATURE, "SIGNATURE", 0, 0, READERS},
	{MPIG_CTL_STREAM, "STREAM export", 0, MPIG_STREAM_EXPORT, READERS},
	{MPIG_CTL_STREAM, "STREAM import", 0, MPIG_STREAM_IMPORT, ALL},
	{MPIG_CTL_CLIENTS, "CLIENTS", 0, 0, ALL},
	{MPIG_CTL_KILL, "KILL a connection of the owner's", 0, 0, WRITERS},
	{MPIG_CTL_QUOTA, "QUOTA of the owner", 0, 0, WRITERS},
	{MPIG_CTL_QUOTA, "QUOTA of the owner's group", 0, 1, READERS},
	{MPIG_CTL_DRAIN, "DRAIN, to look", 0, MPIG_DRAIN_LOOK, ALL},
	{MPIG_CTL_DRAIN, "DRAIN", 0, MPIG_DRAIN_BEGIN, ADMINS},
	{MPIG_CTL_TRACE, "TRACE", 0, 0, WRITERS},
	{MPIG_CTL_PROFILE, "PROFILE of the owner, to look", MPIG_PROFILE_GET, OWNER, WRITERS},
	{MPIG_CTL_PROFILE, "PROFILE of the owner, to clear", MPIG_PROFILE_CLEAR, OWNER, WRITERS},
	{MPIG_CTL_PROFILE, "PROFILE of one's own, to clear", MPIG_PROFILE_CLEAR, UINT32_MAX, ALL},
	{MPIG_CTL_PROFILE, "PROFILE of all, to look", MPIG_PROFILE_GET, MPIG_PROFILE_ALL, ALL},
	{MPIG_CTL_PROFILE, "PROFILE, to list", MPIG_PROFILE_NEXT, 0, ALL},
	{MPIG_CTL_PROFILE, "PROFILE of all, to clear", MPIG_PROFILE_CLEAR, MPIG_PROFILE_ALL, ADMINS},
	{MPIG_CTL_QUERIES, "QUERIES", 0, 0, WRITERS},
	{MPIG_CTL_CONFIGURE, "CONFIGURE", 0, 0, ADMINS},
};
#define PROMISES (sizeof promises / sizeof promises[0])

static struct test_daemon *d;
static struct model_data data;
static char admin_group[64], disk_dir[32];

// ---- the requests ------------------------------------------------------------------------------------------------------
static union {
	struct mpig_control_header h;
	uint8_t bytes[MPIG_CONTROL_MAX_BYTES];
} reply;
static union request {
	struct mpig_control_header h;
	struct mpig_ctl_hello hello;
	struct mpig_ctl_queue_create queue;
	struct mpig_ctl_queue_destroy destroy;
	struct {
		struct mpig_ctl_create create;
		struct mpig_wire_layer layer;
	} create;
	struct mpig_ctl_open open;
	struct mpig_ctl_list list;
	struct mpig_ctl_verify verify;
	struct mpig_ctl_heads heads;
	struct mpig_ctl_reindex reindex;
	struct mpig_ctl_disk disk;
	struct mpig_ctl_policy policy;
	struct mpig_ctl_saved saved;
	struct mpig_ctl_configure configure;
	struct mpig_ctl_signature signature;
	struct mpig_ctl_stream stream;
	struct mpig_ctl_clients clients;
	struct mpig_ctl_kill kill;
	struct mpig_ctl_quota quota;
	struct mpig_ctl_drain drain;
	struct mpig_ctl_trace trace;
	struct mpig_ctl_profile profile;
	struct mpig_ctl_queries queries;
} request;

static const char *const name = "theirs";
static uint64_t victim_id; // of a connection of the owner's

// A memfd with the context's first tokens.
static int tokens_fd(void)
{
	int fd = memfd_create("tokens", MFD_CLOEXEC);
	ck_assert_int_eq(write(fd, data.ids, 100 * sizeof data.ids[0]), 100 * sizeof data.ids[0]);
	return fd;
}

// Fills in what the operation needs to be refused for nothing but its permissions. Returns its size; *fd is sent along.
static size_t compose(const struct promise *p, uint32_t queue_id, int *fd)
{
	memset(&request, 0, sizeof request);
	*fd = -1;
	switch (p->op) {
	case MPIG_CTL_HELLO:
		request.hello.abi_version = MPIG_ABI_VERSION;
		return sizeof request.hello;
	case MPIG_CTL_QUEUE_CREATE:
		request.queue.entries = 8;
		request.queue.slot_count = 1;
		request.queue.slot_bytes = 4096;
		return sizeof request.queue;
	case MPIG_CTL_QUEUE_DESTROY:
		request.destroy.queue_id = queue_id;
		return sizeof request.destroy;
	case MPIG_CTL_CREATE:
		snprintf(request.create.create.name, MPIG_NAME_BYTES, "own-%d", (int)getpid());
		request.create.create.layer_count = 1;
		request.create.layer = (struct mpig_wire_layer){.query_heads = 1, .kv_heads = 1, .d_k = 64, .d_v = 64};
		return sizeof request.create;
	case MPIG_CTL_LIST:
		return sizeof request.list;
	case MPIG_CTL_VERIFY:
		strcpy(request.verify.name, name);
		return sizeof request.verify;
	case MPIG_CTL_HEADS:
		strcpy(request.heads.name, name);
		return sizeof request.heads;
	case MPIG_CTL_REINDEX:
		strcpy(request.reindex.name, name);
		return sizeof request.reindex;
	case MPIG_CTL_DISK:
		strcpy(request.disk.name, name);
		request.disk.work = p->work;
		request.disk.dry = p->work == MPIG_DISK_GC;
		return sizeof request.disk;
	case MPIG_CTL_POLICY:
		strcpy(request.policy.name, name);
		request.policy.set = MPIG_SET_PIN;
		return sizeof request.policy;
	case MPIG_CTL_SAVED:
		return sizeof request.saved;
	case MPIG_CTL_SIGNATURE:
		strcpy(request.signature.name, name);
		return sizeof request.signature;
	case MPIG_CTL_STREAM:
		strcpy(request.stream.name, p->work == MPIG_STREAM_EXPORT ? name : "");
		request.stream.way = p->work;
		return sizeof request.stream;
	case MPIG_CTL_CLIENTS:
		return sizeof request.clients;
	case MPIG_CTL_KILL:
		request.kill.id = victim_id;
		return sizeof request.kill;
	case MPIG_CTL_QUOTA:
		request.quota.uid = p->work ? TEAM : OWNER;
		request.quota.group = p->work;
		return sizeof request.quota;
	case MPIG_CTL_DRAIN:
		request.drain.action = p->work;
		return sizeof request.drain;
	case MPIG_CTL_TRACE:
		strcpy(request.trace.name, name);
		request.trace.action = MPIG_TRACE_START;
		request.trace.ring_bytes = 1 << 20;
		return sizeof request.trace;
	case MPIG_CTL_PROFILE:
		request.profile.action = p->flags;
		request.profile.uid = p->work;
		request.profile.fingerprint[0] = 1;
		return sizeof request.profile;
	case MPIG_CTL_QUERIES:
		strcpy(request.queries.name, name);
		return sizeof request.queries;
	case MPIG_CTL_CONFIGURE:
		strcpy(request.configure.assignment, "limits.queues_per_uid=77");
		return sizeof request.configure;
	case MPIG_CTL_PING:
	case MPIG_CTL_STATUS:
	case MPIG_CTL_CONFIG_GET:
		return sizeof request.h;
	default:
		break;
	}
	request.open.flags = p->flags;
	request.open.handle = p->op == MPIG_CTL_CLOSE ? 7 : 1;
	strcpy(request.open.name, name);
	if (p->op == MPIG_CTL_FORK) {
		snprintf(request.open.new_name, MPIG_NAME_BYTES, "fork-%d", (int)getpid());
		request.open.tokens = 10;
	}
	if (p->op == MPIG_CTL_CHMOD) {
		request.open.mode = MODE;
		request.open.uid = request.open.gid = UINT32_MAX;
	}
	if (p->op == MPIG_CTL_OPEN_PREFIX) {
		*fd = tokens_fd();
		request.open.tokens = 100;
	}
	return sizeof request.open;
}

// ---- as somebody -------------------------------------------------------------------------------------------------------
static void become(enum who who, uint32_t admin_gid)
{
	gid_t groups[] = {people[who].other_gid ? people[who].other_gid : who == AS_ADMIN ? admin_gid : people[who].gid};
	if (setgroups(1, groups) || setresgid(people[who].gid, people[who].gid, people[who].gid) ||
	    setresuid(people[who].uid, people[who].uid, people[who].uid))
		_exit(99);
}

// A process of the owner's that has a connection and waits; *end closes it. The connection's id goes to victim_id.
static pid_t start_victim(int *end)
{
	int wait[2], ready[2];
	char byte;
	ck_assert_int_eq(pipe(wait), 0);
	ck_assert_int_eq(pipe(ready), 0);
	fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		close(wait[1]);
		become(AS_OWNER, 0);
		int socket = wire_connect(d);
		if (wire_hello(socket) != MPIG_OK || write(ready[1], "", 1) != 1)
			_exit(1);
		_exit(read(wait[0], &byte, 1) != 0);
	}
	close(wait[0]);
	close(ready[1]);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	*end = wait[1];
	struct test_client s;
	struct mpig_client_info infos[16];
	uint64_t cursor = 0;
	test_client_open(&s, d);
	for (int i = 0; i < 16; i++)
		infos[i] = (struct mpig_client_info)MPIG_INIT(struct mpig_client_info);
	int n = mpig_client_list(s.client, &cursor, infos, 16);
	victim_id = 0;
	for (int i = 0; i < n; i++)
		victim_id = infos[i].pid == (uint32_t)child ? infos[i].id : victim_id;
	ck_assert_uint_ne(victim_id, 0);
	test_client_close(&s);
	return child;
}

static int ask_as(enum who who, const struct promise *p, uint32_t admin_gid)
{
	int end = -1;
	pid_t victim = p->op == MPIG_CTL_KILL ? start_victim(&end) : 0;
	fflush(NULL);
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		become(who, admin_gid);
		int socket = wire_connect(d), fd;
		if (wire_hello(socket) != MPIG_OK)
			_exit(98);
		struct wire_queue q;
		if (p->op == MPIG_CTL_QUEUE_DESTROY)
			wire_queue_open(socket, 8, 1, 4096, &q);
		size_t bytes = compose(p, p->op == MPIG_CTL_QUEUE_DESTROY ? q.id : 0, &fd);
		int fds[2];
		wire_header(&request.h, p->op, bytes);
		if (wire_send(socket, &request, bytes, fd) != 0 || wire_receive(socket, &reply, sizeof reply, fds) < 24)
			_exit(97);
		int status = reply.h.status;
		if (status == MPIG_EACCES && !reply.bytes[sizeof reply.h])
			_exit(96); // without a word of explanation
		request.drain.action = MPIG_DRAIN_END;
		if (p->op == MPIG_CTL_DRAIN && p->work == MPIG_DRAIN_BEGIN && status == MPIG_OK &&
		    wire_call(socket, &request, bytes, &reply, sizeof reply) != MPIG_OK)
			_exit(95);
		_exit(-status);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) < 90, "%s as %s: child %#x", p->what, who_names[who], status);
	if (victim) {
		int ended;
		close(end);
		ck_assert_int_eq(waitpid(victim, &ended, 0), victim);
	}
	return -WEXITSTATUS(status);
}

// The context, its copy on disk, and nobody who has it open.
static void make_theirs(void)
{
	fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		become(AS_OWNER, 0);
		struct test_client s;
		struct mpig_spec spec = test_client_spec(&data.layer, 1);
		mpig_context *x;
		test_client_open(&s, d);
		spec.mode = MODE;
		int made; // a load that somebody was allowed to begin may put it there again
		do
			mpig_context_drop(s.client, name);
		while ((made = mpig_context_create(s.client, name, &spec, &x)) == MPIG_EEXIST);
		if (made || test_client_fill(&s, x, &data, 0, 100, 0))
			_exit(1);
		mpig_context_close(x);
		if (mpig_context_save(s.client, name, NULL, NULL))
			_exit(2);
		test_client_close(&s);
		_exit(0);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the owner could not make '%s': %#x", name, status);
}

// A group of the machine that is nobody's here, for the option wants a name.
static uint32_t some_group(void)
{
	struct group *g;
	uint32_t gid = 0;
	while (!gid && (g = getgrent()) != NULL)
		if (g->gr_gid && g->gr_gid != TEAM) {
			gid = g->gr_gid;
			snprintf(admin_group, sizeof admin_group, "%s", g->gr_name);
		}
	endgrent();
	ck_assert_uint_ne(gid, 0);
	return gid;
}

static void start(const char *group)
{
	char config[512];
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	strcpy(disk_dir, "/tmp/mpig-rules-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(disk_dir));
	snprintf(config, sizeof config, "[daemon]\nsocket_mode = 0666\nadmin_group = %s\n[disk]\ndir = %s\n", group, disk_dir);
	model_data_make(&data, &layer, 1, 200, 7);
	d = test_daemon_start(config);
	ck_assert_int_eq(chmod(d->dir, 0755), 0);
}

static void finish(void)
{
	char command[64];
	test_daemon_stop(d);
	model_data_free(&data);
	snprintf(command, sizeof command, "rm -r %s", disk_dir);
	ck_assert_int_eq(system(command), 0);
}

// EACCES is asked for and nothing else: what is allowed may still fail for another reason (a handle that is not open).
static void check_all(uint32_t admin_gid, bool with_admin)
{
	bool spoilt = true;
	for (size_t i = 0; i < PROMISES; i++)
		for (enum who who = with_admin ? AS_OWNER : AS_ADMIN; who < WHO; who++) {
			if (spoilt)
				make_theirs();
			int status = ask_as(who, &promises[i], admin_gid);
			spoilt = promises[i].op == MPIG_CTL_DROP || promises[i].op == MPIG_CTL_EVICT ||
			         (promises[i].op == MPIG_CTL_DISK && promises[i].work == MPIG_DISK_ERASE);
			bool may = who == AS_ADMIN && !with_admin ? promises[i].may[AS_OTHER] : promises[i].may[who];
			ck_assert_msg((status != MPIG_EACCES) == may, "%s as %s: status %d, should be %s", promises[i].what,
			              who_names[who], status, may ? "allowed" : "refused");
		}
}

START_TEST(every_operation_has_a_promise)
{
	for (uint16_t op = 1; op < MPIG_CTL_COUNT; op++) {
		bool promised = false;
		for (size_t i = 0; i < PROMISES; i++)
			promised |= promises[i].op == op;
		if (promised)
			continue;
		// Numbers in between are of no operation: the daemon must not know them.
		start("");
		int socket = wire_connect(d);
		struct mpig_control_header h;
		ck_assert_int_eq(wire_hello(socket), MPIG_OK);
		for (; op < MPIG_CTL_COUNT; op++) {
			bool known = false;
			for (size_t i = 0; i < PROMISES; i++)
				known |= promises[i].op == op;
			if (known)
				continue;
			wire_header(&h, op, sizeof h);
			ck_assert_msg(wire_call(socket, &h, sizeof h, &reply, sizeof reply) == MPIG_ENOTSUP,
			              "operation %u has no row in the table of promises", op);
		}
		close(socket);
		finish();
	}
}
END_TEST

START_TEST(each_does_what_it_may_and_no_more)
{
	if (geteuid() != 0) {
		printf("rules: skipped, needs root to become other users\n");
		return;
	}
	uint32_t gid = some_group();
	start(admin_group);
	check_all(gid, true);
	finish();
}
END_TEST

START_TEST(without_an_admin_group_its_members_are_others)
{
	if (geteuid() != 0) {
		printf("rules: skipped, needs root to become other users\n");
		return;
	}
	uint32_t gid = some_group();
	start("");
	check_all(gid, false);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/rules");
	TCase *t = tcase_create("rules");
	tcase_set_timeout(t, 120);
	tcase_add_test(t, every_operation_has_a_promise);
	tcase_add_test(t, each_does_what_it_may_and_no_more);
	tcase_add_test(t, without_an_admin_group_its_members_are_others);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
