// A daemon is killed at any of its points (tests/lib/points.h: each publication to the pool, each system call of store and disk), while a
// client works with it through the public API: contexts are created, filled, sealed, cut, forked, dropped, saved, loaded, pinned, evicted,
// erased, exported and imported. Often its successor is killed while it starts. The one after that has what was answered, bit for bit, compared with a reference
// that the test keeps; of the call that was not answered all or nothing; and when everything is dropped, every byte is free again.
//
// $MPIG_POINT = SEED:POINT repeats one of them; `MPIG_LONG=1` visits more.
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/client.h"
#include "tests/lib/figures.h"
#include "tests/lib/model.h"
#include "tests/lib/points.h"
#include "tests/lib/suite.h"

enum { SLOTS = 3, MOST = 1600, STEPS = 60, LAYERS = 2, KV = 2, HEADS = 4, D = 64, ROW = KV * D };

#define must(condition)                                                                                                          \
	do {                                                                                                                     \
		if (!(condition))                                                                                                \
			ck_abort_msg("%s:%d: %s", __FILE__, __LINE__, #condition);                                               \
	} while (0)

// ---- the reference ---------------------------------------------------------------------------------------------------

struct version {
	bool exists;
	uint64_t committed, tag[MOST]; // what a token's id and rows are made of
};
struct slot {
	char name[16];
	struct version memory[2], disk[2]; // as answered, and as the call under way would make it
	mpig_context *x;
};
static struct slot slot[SLOTS];
static struct test_daemon *d;
static struct test_client s;
static uint64_t serial, random_state;
static bool dead;
static char doing[16];

static uint64_t draw(uint64_t n)
{
	return model_random(&random_state) % n;
}

// Rows that are the same in every row type of 16 bits.
static void make_rows(uint64_t tag, int layer, float k[ROW], float v[ROW])
{
	uint64_t state = tag * 2 + (uint64_t)layer * UINT64_C(0x9e3779b97f4a7c15);
	for (int i = 0; i < ROW; i++) {
		uint64_t bits = model_random(&state);
		k[i] = (float)((int)(bits & 127) - 64) / 32;
		v[i] = (float)((int)(bits >> 8 & 127) - 64) / 64;
	}
}

static void rows_of(const uint64_t *tag, uint64_t n, int layer, float *k, float *v)
{
	for (uint64_t i = 0; i < n; i++)
		make_rows(tag[i], layer, k + i * ROW, v + i * ROW);
}

// ---- calls -----------------------------------------------------------------------------------------------------------

// It has been killed, and nobody has waited for it.
static bool is_gone(void)
{
	siginfo_t info = {0};
	if (waitid(P_PID, (id_t)d->pid, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
		return false;
	must(info.si_code == CLD_KILLED && info.si_status == SIGKILL);
	return true;
}

// True: it was done. False: the daemon died meanwhile, which is the only excuse.
static bool done(int status, const char *what)
{
	if (status >= 0)
		return true;
	for (int waited = 0; waited < 5000 && d->pid; waited += 5) {
		if (is_gone()) {
			dead = true;
			return false;
		}
		if (status != MPIG_ERETRY && status != MPIG_ETIMEDOUT && waited >= 200)
			break;
		usleep(5000);
	}
	ck_abort_msg("%s: %s: %s", what, mpig_strerror(status), s.client ? mpig_last_error(s.client) : "");
	return false;
}

static void settle(struct version version[2])
{
	version[0] = version[1];
}

static void open_slot(struct slot *t)
{
	if (!done(test_client_find(&s, t->name, MPIG_READ | MPIG_WRITE, &t->x), "open"))
		t->x = NULL;
}

static void act_create(struct slot *t)
{
	struct mpig_layer layer = test_client_layer(HEADS, KV, D), layers[LAYERS] = {layer, layer};
	if (draw(2)) {
		layers[0].paper_k = 4;
		layers[0].paper_l = 8;
	}
	struct mpig_spec spec = test_client_spec(layers, LAYERS);
	if (!t->disk[0].exists)
		snprintf(t->name, sizeof t->name, "c%lu", (unsigned long)++serial);
	t->memory[1].exists = true;
	t->memory[1].committed = 0;
	if (done(mpig_context_create(s.client, t->name, &spec, &t->x), "create"))
		settle(t->memory);
}

static void act_append(struct slot *t)
{
	static float k[MOST * ROW], v[MOST * ROW];
	static uint32_t ids[MOST];
	uint64_t at = t->memory[0].committed, n = 1 + draw(draw(2) ? 4 : 400), commit = draw(5) ? n : draw(n + 1);
	if (at + n > MOST)
		return;
	for (uint64_t i = 0; i < n; i++) {
		t->memory[1].tag[at + i] = model_random(&random_state);
		ids[i] = (uint32_t)t->memory[1].tag[at + i];
	}
	t->memory[1].committed = at + commit;
	for (int layer = 0; layer < LAYERS; layer++) {
		rows_of(t->memory[1].tag + at, n, layer, k, v);
		if (!done(mpig_append(s.queue, t->x, layer, at, n, MPIG_F32, k, v, NULL, 0), "append"))
			return;
	}
	if (!done(mpig_commit(s.queue, t->x, at, commit, ids, draw(4) ? 0 : MPIG_COMMIT_SEAL), "commit"))
		return;
	settle(t->memory);
	if (commit < n)
		done(mpig_truncate(s.queue, t->x, at + commit), "truncate");
}

static void act_truncate(struct slot *t)
{
	t->memory[1].committed -= draw(t->memory[0].committed + 1) / (1 + draw(20));
	if (done(mpig_truncate(s.queue, t->x, t->memory[1].committed), "truncate"))
		settle(t->memory);
}

static void act_fork(struct slot *t)
{
	struct slot *child = &slot[draw(SLOTS)];
	if (child->memory[0].exists || child->x)
		return;
	if (!child->disk[0].exists)
		snprintf(child->name, sizeof child->name, "c%lu", (unsigned long)++serial);
	child->memory[1] = t->memory[0];
	child->memory[1].committed = draw(t->memory[0].committed + 1);
	if (done(mpig_context_fork(t->x, child->name, child->memory[1].committed, &child->x), "fork"))
		settle(child->memory);
}

static void act_drop(struct slot *t)
{
	t->memory[1].exists = false;
	if (!done(mpig_context_drop(s.client, t->name), "drop"))
		return;
	settle(t->memory);
	mpig_context_close(t->x);
	t->x = NULL;
}

static void act_save(struct slot *t)
{
	t->disk[1] = t->memory[0];
	if (done(mpig_context_save(s.client, t->name, NULL, NULL), "save"))
		settle(t->disk);
}

static void act_load(struct slot *t)
{
	if (!t->disk[0].exists)
		return;
	t->memory[1] = t->disk[0];
	if (!done(mpig_context_load(s.client, t->name, NULL, NULL), "load"))
		return;
	settle(t->memory);
	open_slot(t);
}

static void act_erase(struct slot *t)
{
	if (!t->disk[0].exists)
		return;
	t->disk[1].exists = false;
	if (done(mpig_saved_erase(s.client, t->name), "erase"))
		settle(t->disk);
}

// Not while it is pinned; else if it is on disk as it is.
static void act_evict(struct slot *t)
{
	mpig_context_close(t->x);
	t->x = NULL;
	if (!done(mpig_context_pin(s.client, t->name, 1), "pin"))
		return;
	int status = mpig_context_evict(s.client, t->name);
	if (status != MPIG_EBUSY && !done(status, "evict"))
		return;
	must(status == MPIG_EBUSY);
	if (!done(mpig_context_pin(s.client, t->name, 0), "unpin"))
		return;
	t->memory[1].exists = false;
	status = mpig_context_evict(s.client, t->name);
	if (status == MPIG_OK) {
		must(t->disk[0].exists && t->disk[0].committed == t->memory[0].committed);
		settle(t->memory);
	} else if (status == MPIG_EBUSY) {
		t->memory[1].exists = true;
		open_slot(t);
	} else {
		done(status, "evict");
	}
}

// A whole context through a file, and made again under another name.
static void act_copy(struct slot *t)
{
	struct slot *child = &slot[draw(SLOTS)];
	char path[TEST_DAEMON_PATH];
	if (child->memory[0].exists || child->x)
		return;
	snprintf(path, sizeof path, "%s/export", d->dir);
	if (!done(mpig_context_export_file(s.client, t->name, path, NULL, NULL), "export"))
		return;
	int fd = open(path, O_RDONLY);
	must(fd >= 0);
	if (!child->disk[0].exists)
		snprintf(child->name, sizeof child->name, "c%lu", (unsigned long)++serial);
	child->memory[1] = t->memory[0];
	if (done(mpig_context_import(s.client, fd, child->name, NULL, NULL), "import")) {
		settle(child->memory);
		open_slot(child);
	}
	close(fd);
}

static void act_attend(struct slot *t)
{
	float q[HEADS * D], out[HEADS * D], lse[HEADS];
	struct mpig_attend ask = {.size = sizeof ask, .q = q, .begin = 0, .budget = .1f, .seed = serial};
	struct mpig_result result = {.size = sizeof result, .out = out, .lse = lse};
	model_normal(q, HEADS * D, serial);
	done(mpig_attend(s.queue, t->x, &ask, &result), "attend");
}

// Until now there may be no index; forks may have two.
static void act_reindex(struct slot *t)
{
	int status = mpig_context_reindex(s.client, t->name, NULL);
	if (status != MPIG_ENOTSUP && status != MPIG_EBUSY)
		done(status, "index again");
}

static const struct action {
	const char *name;
	uint32_t weight;
	bool living;
	void (*act)(struct slot *t);
} actions[] = {
	{"create", 4, false, act_create},  {"load", 3, false, act_load},        {"erase", 1, false, act_erase},
	{"append", 10, true, act_append},  {"truncate", 2, true, act_truncate}, {"fork", 3, true, act_fork},
	{"drop", 1, true, act_drop},       {"save", 5, true, act_save},         {"erase", 1, true, act_erase},
	{"reindex", 2, true, act_reindex}, {"evict", 2, true, act_evict},       {"attend", 2, true, act_attend},
	{"copy", 2, true, act_copy},
};

static const struct action *draw_action(bool living)
{
	uint64_t all = 0;
	for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++)
		all += actions[i].living == living ? actions[i].weight : 0;
	uint64_t at = draw(all);
	for (const struct action *a = actions;; a++) {
		if (a->living != living)
			continue;
		if (at < a->weight)
			return a;
		at -= a->weight;
	}
}

static void work(int steps)
{
	for (int step = 0; step < steps && !dead; step++) {
		struct slot *t = &slot[draw(SLOTS)];
		const struct action *a = draw_action(t->memory[0].exists);
		snprintf(doing, sizeof doing, "%s", a->name);
		a->act(t);
	}
}

// ---- what is found ---------------------------------------------------------------------------------------------------

// The version it has, of two; its rows and ids are compared.
static int check_content(mpig_context *x, const struct version version[2])
{
	static float k[MOST * ROW], v[MOST * ROW], k_now[MOST * ROW], v_now[MOST * ROW];
	static uint32_t ids[MOST];
	uint64_t n = mpig_context_committed(x);
	for (int which = 0; which < 2; which++) {
		if (!version[which].exists || version[which].committed != n)
			continue;
		for (uint64_t i = 0; i < n; i++)
			ids[i] = (uint32_t)version[which].tag[i];
		if (n && mpig_commit(s.queue, x, 0, n, ids, 0) != MPIG_OK) // the same once more is nothing; others are refused
			continue;
		for (int layer = 0; layer < LAYERS && n; layer++) {
			rows_of(version[which].tag, n, layer, k, v);
			must(mpig_read(s.queue, x, layer, 0, n, k_now, v_now) == MPIG_OK);
			must(!memcmp(k, k_now, n * ROW * sizeof *k) && !memcmp(v, v_now, n * ROW * sizeof *v));
		}
		return which;
	}
	ck_abort_msg("%s has %lu tokens, or others than it ever had", mpig_context_name(x), (unsigned long)n);
	return -1;
}

static void check_memory(void)
{
	struct mpig_daemon_status now = MPIG_INIT(struct mpig_daemon_status);
	uint64_t found = 0;
	for (int i = 0; i < SLOTS; i++) {
		struct slot *t = &slot[i];
		struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
		struct mpig_verification verified = MPIG_INIT(struct mpig_verification);
		int status = t->name[0] ? mpig_context_info(s.client, t->name, &info) : MPIG_ENOENT;
		must(status == MPIG_OK || status == MPIG_ENOENT);
		if (status) {
			must(!t->memory[0].exists || !t->memory[1].exists);
			t->memory[0].exists = t->memory[1].exists = false;
			continue;
		}
		found++;
		open_slot(t);
		must(t->x != NULL);
		int which = check_content(t->x, t->memory);
		t->memory[1 - which] = t->memory[which];
		ck_assert_status(mpig_context_verify(s.client, t->name, &verified), MPIG_OK);
		act_attend(t);
	}
	ck_assert_status(mpig_daemon_status(s.client, &now), MPIG_OK);
	ck_assert_uint_eq(now.contexts, found);
}

static void drop_all(uint64_t empty)
{
	struct mpig_daemon_status now = MPIG_INIT(struct mpig_daemon_status);
	for (int i = 0; i < SLOTS; i++)
		if (slot[i].x)
			act_drop(&slot[i]);
	for (int waited = 0; waited < 3000 && now.pool_used != empty; waited += 2) { // what readers held goes when they have left
		ck_assert_status(mpig_daemon_status(s.client, &now), MPIG_OK);
		usleep(2000);
	}
	ck_assert_uint_eq(now.contexts, 0);
	ck_assert_uint_eq(now.pool_used, empty); // every byte is free again
}

static void check_disk(uint64_t empty)
{
	struct mpig_saved_info saved[SLOTS + 2];
	uint64_t found = 0;
	saved[0].size = sizeof saved[0];
	for (int i = 0; i < SLOTS; i++) {
		struct slot *t = &slot[i];
		int status = t->name[0] ? mpig_saved_check(s.client, t->name, NULL, NULL) : MPIG_ENOENT;
		ck_assert_msg(status == MPIG_OK || status == MPIG_ENOENT, "%s: %s", t->name, mpig_last_error(s.client));
		if (status) {
			must(!t->disk[0].exists || !t->disk[1].exists);
			t->disk[0].exists = t->disk[1].exists = false;
			continue;
		}
		found++;
		ck_assert_status(mpig_context_load(s.client, t->name, NULL, NULL), MPIG_OK);
		open_slot(t);
		must(t->x != NULL);
		int which = check_content(t->x, t->disk);
		t->disk[1 - which] = t->disk[which];
		t->memory[0] = t->memory[1] = t->disk[which];
	}
	ck_assert_int_eq(mpig_saved_list(s.client, NULL, saved, SLOTS + 2), (int)found);
	drop_all(empty);
	for (int i = 0; i < SLOTS; i++)
		act_erase(&slot[i]);
	ck_assert_int_eq(mpig_saved_list(s.client, NULL, saved, SLOTS + 2), 0);
	char line[300];
	snprintf(line, sizeof line, "! find %s/disk -mindepth 2 | grep -q .", d->dir);
	must(system(line) == 0); // and of the disk nothing is left
}

// ---- one point -------------------------------------------------------------------------------------------------------

static char points_file[TEST_DAEMON_PATH];

static bool start(uint64_t kill_at)
{
	char number[24];
	snprintf(number, sizeof number, "%lu", (unsigned long)kill_at);
	setenv("MPIG_KILL_AT", number, 1);
	dead = !test_daemon_survives_start(d);
	if (dead)
		return false;
	struct mpig_connect_options connect = MPIG_INIT(struct mpig_connect_options);
	struct mpig_queue_options queue = MPIG_INIT(struct mpig_queue_options);
	connect.socket_path = d->socket;
	connect.timeout_ms = queue.timeout_ms = 10000;
	connect.reconnect_ms = -1;
	if (done(mpig_connect(&connect, &s.client), "connect") && done(mpig_queue_create(s.client, &queue, &s.queue), "queue"))
		return true;
	test_client_close(&s);
	ck_assert_int_eq(test_daemon_wait(d), 128 + SIGKILL);
	return false;
}

static void disconnect(void)
{
	for (int i = 0; i < SLOTS; i++) {
		mpig_context_close(slot[i].x);
		slot[i].x = NULL;
	}
	test_client_close(&s);
}

static struct points passed(void)
{
	struct points p = {0};
	int fd = open(points_file, O_RDONLY);
	must(fd >= 0 && read(fd, &p, sizeof p) == (ssize_t)sizeof p);
	close(fd);
	return p;
}

static void begin(uint64_t seed)
{
	static char config[300];
	d = test_daemon_new(NULL);
	snprintf(config, sizeof config,
	         "\n[pool]\nsize = 48M\nkeep = yes\n[workers]\ncount = 1\n[disk]\ndir = %s/disk\nload_on_open = no\n", d->dir);
	FILE *f = fopen(d->config, "a");
	must(f && fputs(config, f) >= 0 && fclose(f) == 0);
	snprintf(points_file, sizeof points_file, "%s/points", d->dir);
	setenv("MPIG_POINTS", points_file, 1);
	memset(slot, 0, sizeof slot);
	serial = 0;
	random_state = seed;
}

static uint64_t empty_bytes(void)
{
	struct mpig_daemon_status now = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_status(mpig_daemon_status(s.client, &now), MPIG_OK);
	return now.pool_used;
}

// What a pool without contexts uses, and how many points the work has.
static uint64_t measure(uint64_t seed, uint64_t *empty)
{
	begin(seed);
	must(start(0));
	*empty = empty_bytes();
	work(STEPS);
	must(!dead);
	struct points p = passed();
	disconnect();
	test_daemon_free(d);
	ck_assert_uint_gt(p.publications, 100);
	ck_assert_uint_gt(p.calls, 200);
	return p.passed;
}

static bool one_point(uint64_t seed, uint64_t k, uint64_t empty, uint64_t *second)
{
	begin(seed);
	if (start(k)) {
		work(STEPS);
		if (!dead)
			test_daemon_kill(d); // it was not reached
		else
			ck_assert_int_eq(test_daemon_wait(d), 128 + SIGKILL);
		disconnect();
	}
	bool reached = dead;
	figures_doing("MPIG_POINT=%lu:%lu (in %s, at %s)", (unsigned long)seed, (unsigned long)k, doing, passed().last);
	for (uint64_t at = 1 + draw(250); draw(2); at = 1 + draw(250)) {
		if (start(at)) {
			disconnect();
			test_daemon_kill(d);
		} else {
			++*second;
		}
	}
	must(start(0));
	check_memory();
	drop_all(empty);
	check_disk(empty);
	work(6); // and it goes on
	must(!dead);
	disconnect();
	test_daemon_kill(d);
	must(start(0));
	check_memory();
	drop_all(empty);
	disconnect();
	test_daemon_free(d);
	figures_doing("%s", "");
	return reached;
}

// ---- tests -----------------------------------------------------------------------------------------------------------

START_TEST(killed_at_any_point)
{
	uint64_t seed = 40 + (uint64_t)_i, empty, all = measure(seed, &empty), runs = getenv("MPIG_LONG") ? 60 : 4;
	uint64_t random = seed, reached = 0, second = 0;
	for (uint64_t i = 0; i < runs; i++)
		reached += one_point(seed, 1 + i * all / runs + model_random(&random) % (all / runs), empty, &second);
	ck_assert_uint_ge(reached + 1, runs);
	figures_add("crash.daemon", (double)reached);
	figures_add("crash.starting again", (double)second);
}
END_TEST

START_TEST(one_named)
{
	unsigned long seed, k;
	uint64_t empty, second = 0;
	must(sscanf(getenv("MPIG_POINT"), "%lu:%lu", &seed, &k) == 2);
	(void)measure(seed, &empty);
	(void)one_point(seed, k, empty, &second);
}
END_TEST

int main(void)
{
	setenv("MAGICPIGD", getenv("MAGICPIGD_POINTS") ? getenv("MAGICPIGD_POINTS") : "build/tests/magicpigd", 1);
	Suite *suite = suite_create("integration/kill points");
	TCase *t = tcase_create("points");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 3600 : 240);
	if (getenv("MPIG_POINT"))
		tcase_add_test(t, one_named);
	else
		tcase_add_loop_test(t, killed_at_any_point, 0, getenv("MPIG_LONG") ? 8 : 4);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
