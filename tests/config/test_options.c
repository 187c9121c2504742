// Every option type, every message, and the sample file held to the table.
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/options.h"
#include "tests/lib/suite.h"

static struct options o;
static char why[OPTIONS_WHY_BYTES];

static void setup(void)
{
	options_defaults(&o);
	memset(why, 0, sizeof why);
}

static int read_text(const char *text)
{
	FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
	ck_assert_ptr_nonnull(f);
	int status = options_read_stream(&o, f, "test.conf", why);
	fclose(f);
	return status;
}

START_TEST(defaults)
{
	ck_assert_str_eq(o.daemon.instance, "default");
	ck_assert_uint_eq(o.daemon.socket_mode, 0660);
	ck_assert_int_eq(o.daemon.log_level, 2);
	ck_assert_uint_eq(o.pool.size, 0);
	ck_assert(o.pool.huge_pages && !o.pool.lock_memory);
	ck_assert_uint_eq(o.workers.spin_ns, 200000);
	ck_assert(o.engine.default_budget > .0099f && o.engine.default_budget < .0101f);
	ck_assert(o.engine.error_target == .055f && o.engine.budget_floor == .005f && o.engine.budget_cap == .08f);
	ck_assert_uint_eq(o.limits.region_bytes_per_uid, UINT64_C(4) << 30);
	ck_assert_int_eq(CPU_COUNT(&o.workers.cpus), 0);
}
END_TEST

START_TEST(file_sets_every_type)
{
	ck_assert_int_eq(
		read_text("; comment\n# another\n[daemon]\ninstance = a.b-1\nsocket=/tmp/x.sock\nsocket_mode = 0600\n"
	                  "log_level = debug\nstats = none\n\n[pool]\n  size = 3G\n\tlock_memory = On\nhuge_pages=0\n[workers]\n"
	                  "count = 3\ncpus = 0-1,5\nspin_us = 2ms\n[engine]\ndefault_budget = .25\ncpu_mask=avx512+vnni\n"
	                  "[limits]\nbytes_per_uid = 12k\nattend_max_tokens = 7\n"),
		0);
	ck_assert_str_eq(o.daemon.instance, "a.b-1");
	ck_assert_str_eq(o.daemon.socket, "/tmp/x.sock");
	ck_assert_uint_eq(o.daemon.socket_mode, 0600);
	ck_assert_int_eq(o.daemon.log_level, 3);
	ck_assert_str_eq(o.daemon.stats, "none");
	ck_assert_uint_eq(o.pool.size, UINT64_C(3) << 30);
	ck_assert(o.pool.lock_memory && !o.pool.huge_pages);
	ck_assert_uint_eq(o.workers.count, 3);
	ck_assert_int_eq(CPU_COUNT(&o.workers.cpus), 3);
	ck_assert(CPU_ISSET(5, &o.workers.cpus));
	ck_assert_uint_eq(o.workers.spin_ns, 2000000);
	ck_assert(o.engine.default_budget == .25f);
	ck_assert_str_eq(o.engine.cpu_mask, "avx512+vnni");
	ck_assert_uint_eq(o.limits.bytes_per_uid, 12288);
	ck_assert_uint_eq(o.limits.attend_max_tokens, 7);
}
END_TEST

static const struct good {
	const char *assignment;
	const char *shown;
} good[] = {
	{"pool.size=1048576", "pool.size = 1M\n"},
	{"pool.size=1025", "pool.size = 1025\n"},
	{"pool.size=0", "pool.size = 0\n"},
	{"pool.size=1024T", "pool.size = 1024T\n"},
	{"pool.restart=fresh", "pool.restart = fresh\n"},
	{"pool.keep=off", "pool.keep = no\n"},
	{"pool.verify=full", "pool.verify = full\n"},
	{"disk.persist=idle", "disk.persist = idle\n"},
	{"workers.spin_us=50", "workers.spin_us = 50us\n"},
	{"workers.spin_us=0", "workers.spin_us = 0us\n"},
	{"workers.spin_us=1s", "workers.spin_us = 1s\n"},
	{"workers.prefetch=0", "workers.prefetch = 0\n"},
	{"workers.prefetch=1.5", "workers.prefetch = 1.5\n"},
	{"workers.cpus=3,1,2,9", "workers.cpus = 1-3,9\n"},
	{"workers.cpus=", "workers.cpus = \n"},
	{"engine.default_budget=1", "engine.default_budget = 1\n"},
	{"daemon.socket_mode=777", "daemon.socket_mode = 0777\n"},
	{"daemon.log_level=error", "daemon.log_level = error\n"},
	{"pool.huge_pages=FALSE", "pool.huge_pages = no\n"},
	{"limits.contexts_per_uid=1000000000", "limits.contexts_per_uid = 1000000000\n"},
};

START_TEST(value_is_shown_as_it_is_read)
{
	static char text[8192];
	ck_assert_msg(options_set_text(&o, good[_i].assignment, why) == 0, "%s", why);
	ck_assert_uint_lt(options_format(&o, text, sizeof text), sizeof text);
	ck_assert_msg(strstr(text, good[_i].shown), "%s not in\n%s", good[_i].shown, text);
}
END_TEST

static const struct bad {
	const char *assignment;
	const char *message;
} bad[] = {
	{"pool.size=1X", "command line: pool.size = 1X: allowed: size in bytes or with K, M, G, T, 0 to 1024T"},
	{"pool.size=-1", "pool.size = -1: allowed: size"},
	{"pool.restart=", "pool.restart = : allowed: attach or fresh"},
	{"pool.verify=Full", "pool.verify = Full: allowed: none, header or full"},
	{"disk.persist=always", "disk.persist = always: allowed: none, shutdown, idle or commit"},
	{"pool.size=", "pool.size = : allowed: size"},
	{"pool.size=1 G", "allowed: size"},
	{"pool.size=1025T", "allowed: size"},
	{"pool.size=99999999999999999999", "allowed: size"},
	{"pool.size=18446744073709551615T", "allowed: size"},
	{"workers.spin_us=11s", "allowed: duration with us, ms or s, 0us to 10s"},
	{"workers.spin_us=1m", "allowed: duration"},
	{"workers.prefetch=-0.1", "workers.prefetch = -0.1: allowed: share, 0 to 64"},
	{"workers.prefetch=65", "allowed: share, 0 to 64"},
	{"workers.prefetch=all", "allowed: share"},
	{"workers.count=257", "allowed: whole number, 0 to 256"},
	{"workers.count=1K", "allowed: whole number"},
	{"workers.count=4294967297", "allowed: whole number"},
	{"workers.cpus=1-", "allowed: CPU list such as 0-3,6"},
	{"workers.cpus=3-1", "allowed: CPU list"},
	{"workers.cpus=1,,2", "allowed: CPU list"},
	{"workers.cpus=1024", "allowed: CPU list"},
	{"engine.default_budget=0", "allowed: share, 1e-06 to 1"},
	{"engine.default_budget=1.5", "allowed: share"},
	{"engine.default_budget=nan", "allowed: share"},
	{"engine.default_budget=.1x", "allowed: share"},
	{"daemon.log_level=loud", "daemon.log_level = loud: allowed: error, warn, info or debug"},
	{"pool.huge_pages=maybe", "allowed: yes or no"},
	{"daemon.socket_mode=8", "allowed: octal permission bits, 0 to 0777"},
	{"daemon.socket_mode=1777", "allowed: octal"},
	{"daemon.socket=relative", "allowed: absolute path of at most 107 bytes"},
	{"daemon.socket=none", "allowed: absolute path of at most 107 bytes"},
	{"daemon.stats=x", "allowed: absolute path of at most 255 bytes, or none"},
	{"daemon.instance=a/b", "allowed: name of at most 63 letters"},
	{"daemon.instance=0123456789012345678901234567890123456789012345678901234567890123", "allowed: name of at most 63"},
	{"pool.colour=1", "command line: unknown key 'colour' in [pool]; allowed: dir, size, lock_memory, huge_pages, "
                          "ready, restart, keep, verify"},
	{"pond.size=1",
         "command line: unknown section [pond] (key 'size'); allowed: daemon, pool, workers, engine, limits, disk"},
	{"pool=1", "'pool=1' is not section.key=value"},
	{"pool.size", "'pool.size' is not section.key=value"},
	{".size=1", "is not section.key=value"},
	{"pool.=1", "is not section.key=value"},
	{"a=b.c", "is not section.key=value"},
};

START_TEST(bad_value_is_refused_with_what_is_allowed)
{
	struct options before = o;
	ck_assert_int_eq(options_set_text(&o, bad[_i].assignment, why), -1);
	ck_assert_msg(strstr(why, bad[_i].message), "'%s' not in '%s'", bad[_i].message, why);
	ck_assert_mem_eq(&before, &o, sizeof o);
}
END_TEST

static const struct bad bad_files[] = {
	{"[pool]\n\nsize = big\n", "test.conf:3: pool.size = big: allowed: size"},
	{"[pool]\nsize = 1G\nsise = 2G\n", "test.conf:3: unknown key 'sise' in [pool]"},
	{"[pools]\nsize = 1G\n", "test.conf:2: unknown section [pools]"},
	{"size = 1G\n", "test.conf:1: unknown section []"},
	{"[pool]\nsize\n", "test.conf:2: neither [section] nor key = value"},
	{"[pool\nsize = 1\n", "test.conf:1: neither [section] nor key = value"},
};

START_TEST(bad_file_names_the_line)
{
	ck_assert_int_eq(read_text(bad_files[_i].assignment), -1);
	ck_assert_msg(strstr(why, bad_files[_i].message), "'%s' not in '%s'", bad_files[_i].message, why);
}
END_TEST

START_TEST(long_line_is_refused)
{
	char text[2048] = "[daemon]\nsocket = /";
	size_t n = strlen(text);
	memset(text + n, 'x', sizeof text - n - 2);
	ck_assert_int_eq(read_text(text), -1);
	ck_assert_msg(strstr(why, "test.conf:2:"), "%s", why);
}
END_TEST

START_TEST(missing_file_is_named)
{
	ck_assert_int_eq(options_read_file(&o, "/nonexistent/magicpigd.conf", why), -1);
	ck_assert_msg(strstr(why, "/nonexistent/magicpigd.conf: cannot open the configuration: No such file"), "%s", why);
}
END_TEST

START_TEST(resolve_fills_in_places)
{
	ck_assert_int_eq(options_set_text(&o, "daemon.socket=/tmp/a/b.sock", why), 0);
	ck_assert_int_eq(options_set_text(&o, "daemon.instance=one", why), 0);
	setenv("MAGICPIG_CPU_MASK", "c", 1);
	unsetenv("STATE_DIRECTORY");
	ck_assert_int_eq(options_resolve(&o, why), 0);
	ck_assert_str_eq(o.daemon.stats, "/tmp/a/one.stats");
	ck_assert_str_eq(o.daemon.profiles, "/tmp/a/one.profiles");
	ck_assert_str_eq(o.pool.dir, "/dev/shm/magicpig-one");
	ck_assert_str_eq(o.engine.cpu_mask, "c");
	options_defaults(&o);
	unsetenv("MAGICPIG_CPU_MASK");
	setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
	setenv("STATE_DIRECTORY", "/var/lib/magicpig/default:/var/lib/other", 1);
	ck_assert_int_eq(options_resolve(&o, why), 0);
	ck_assert_str_eq(o.daemon.profiles, "/var/lib/magicpig/default/profiles");
	unsetenv("STATE_DIRECTORY");
	ck_assert_str_eq(o.daemon.socket,
	                 geteuid() == 0 ? "/run/magicpig/magicpigd.sock" : "/run/user/7/magicpig/magicpigd.sock");
	ck_assert_str_eq(o.engine.cpu_mask, "all");
	ck_assert_int_eq(options_set_text(&o, "daemon.instance=", why), 0);
	ck_assert_int_eq(options_resolve(&o, why), -1);
	ck_assert_msg(strstr(why, "daemon.instance is empty"), "%s", why);
	ck_assert_int_eq(options_set_text(&o, "daemon.instance=one", why), 0);
	ck_assert_int_eq(options_set_text(&o, "engine.budget_floor=0.1", why), 0);
	ck_assert_int_eq(options_resolve(&o, why), -1);
	ck_assert_msg(strstr(why, "engine.budget_floor = 0.1 is above engine.budget_cap = 0.08"), "%s", why);
}
END_TEST

START_TEST(differences_say_what_needs_a_restart)
{
	struct options b = o;
	char text[512];
	options_differences(&o, &b, text, sizeof text);
	ck_assert_str_eq(text, "");
	ck_assert_int_eq(options_set_text(&b, "daemon.log_level=debug", why), 0);
	ck_assert_int_eq(options_set_text(&b, "pool.size=1G", why), 0);
	ck_assert_int_eq(options_set_text(&b, "limits.bytes_per_gid=3M", why), 0);
	options_differences(&o, &b, text, sizeof text);
	ck_assert_str_eq(text, "daemon.log_level = debug (was info)\nneeds a restart: pool.size = 1G (was 0)\n"
	                       "limits.bytes_per_gid = 3M (was 0)\n");
	options_differences(&o, &b, text, 60); // whole lines only
	ck_assert_str_eq(text, "daemon.log_level = debug (was info)\n");
	options_take_live(&o, &b);
	options_differences(&o, &b, text, sizeof text);
	ck_assert_str_eq(text, "needs a restart: pool.size = 1G (was 0)\n");
	ck_assert_int_eq(o.daemon.log_level, 3);
	ck_assert_uint_eq(o.limits.bytes_per_gid, 3 << 20);
	ck_assert(options_text_is_live("limits.queues_per_uid=3"));
	ck_assert(!options_text_is_live("pool.size=3"));
	ck_assert(!options_text_is_live("pool.colour=3"));
	ck_assert(!options_text_is_live("words"));
}
END_TEST

START_TEST(users_and_groups_may_have_their_own_limits)
{
	char text[1024];
	FILE *file = fmemopen((void *)"[limits user alice]\nbytes = 64G\nqueues=3\n[limits]\nbytes_per_uid=1G\n"
	                              "[limits group 700]\nrequests = 20\n[limits user alice]\nclients = 0\n",
	                      138, "r");
	ck_assert_msg(options_read_stream(&o, file, "f", why) == 0, "%s", why);
	fclose(file);
	ck_assert_uint_eq(o.overrides.count, 2);
	ck_assert_str_eq(o.overrides.of[0].name, "alice");
	ck_assert_uint_eq(o.overrides.of[0].value[OVERRIDE_BYTES], UINT64_C(64) << 30);
	ck_assert_uint_eq(o.overrides.of[0].set, 1 << OVERRIDE_BYTES | 1 << OVERRIDE_QUEUES | 1 << OVERRIDE_CLIENTS);
	ck_assert(o.overrides.of[1].group);
	size_t need = options_format(&o, NULL, 0);
	char *all = malloc(need + 1);
	options_format(&o, all, need + 1);
	ck_assert_ptr_nonnull(strstr(all, "\nlimits user alice.bytes = 64G\nlimits user alice.clients = 0\n"
	                                  "limits user alice.queues = 3\nlimits group 700.requests = 20\n"));
	free(all);
	struct options b = o;
	ck_assert_int_eq(options_set_text(&b, "limits user alice.bytes=1G", why), 0);
	ck_assert_int_eq(options_set_text(&b, "limits user bob.contexts=7", why), 0);
	options_differences(&o, &b, text, sizeof text);
	ck_assert_str_eq(text, "limits user alice.bytes = 1G (was 64G)\nlimits user bob.contexts = 7 (was not set)\n");
	options_differences(&b, &o, text, sizeof text);
	ck_assert_str_eq(text, "limits user alice.bytes = 64G (was 1G)\nlimits user bob.contexts = not set (was 7)\n");
	ck_assert(options_text_is_live("limits user bob.contexts=7"));
	ck_assert_int_eq(options_set_text(&b, "limits user jo.doe.bytes=1.", why), -1);
	ck_assert_int_eq(options_set_text(&b, "limits user jo.doe.bytes=1", why), 0);
	ck_assert_str_eq(b.overrides.of[3].name, "jo.doe");
	b.overrides.count--;
	options_take_live(&o, &b);
	options_differences(&o, &b, text, sizeof text);
	ck_assert_str_eq(text, "");
	static const char *const wrong[][2] = {
		{"limits user alice.colour=1", "unknown key 'colour' in [limits user alice]; allowed: bytes, contexts, clients"},
		{"limits user alice.bytes=1Q", "limits user alice.bytes = 1Q: allowed: size in bytes or with K, M, G, T"},
		{"limits user alice.clients=2000", "allowed: whole number, 0 to 1024"},
		{"limits user .bytes=1", "'' is no name of a user or group"},
		{"limits group a b.bytes=1", "'a b' is no name"},
		{"limits user aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.bytes=1", "at most 32 letters"},
		{"limits users alice.bytes=1", "unknown section [limits users alice]"},
	};
	for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
		ck_assert_int_eq(options_set_text(&b, wrong[i][0], why), -1);
		ck_assert_msg(strstr(why, wrong[i][1]), "%s", why);
	}
	for (unsigned i = b.overrides.count; i < OVERRIDES; i++) {
		snprintf(text, sizeof text, "limits user u%u.bytes=1", i);
		ck_assert_int_eq(options_set_text(&b, text, why), 0);
	}
	ck_assert_int_eq(options_set_text(&b, "limits user last.bytes=1", why), -1);
	ck_assert_msg(strstr(why, "more than 64 sections"), "%s", why);
}
END_TEST

START_TEST(format_says_how_long)
{
	char text[16];
	size_t need = options_format(&o, NULL, 0);
	ck_assert_uint_gt(need, 200);
	ck_assert_uint_eq(options_format(&o, text, sizeof text), need);
	ck_assert_uint_lt(strlen(text), sizeof text);
}
END_TEST

static char *sample(size_t *bytes)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, bytes);
	options_print_sample(f);
	fclose(f);
	return text;
}

// Its lines, uncommented, are a valid configuration equal to the defaults.
START_TEST(sample_uncommented_is_the_default)
{
	size_t bytes;
	char *text = sample(&bytes);
	for (char *p = text; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
		if (p[0] == '#' && p[1] != ' ')
			p[0] = ' ';
	struct options fresh = o;
	ck_assert_msg(read_text(text) == 0, "%s", why);
	ck_assert_mem_eq(&fresh, &o, sizeof o);
	free(text);
}
END_TEST

START_TEST(sample_file_in_the_tree_is_current)
{
	const char *path = getenv("MAGICPIGD_SAMPLE");
	FILE *f = fopen(path ? path : "config/magicpigd.conf", "re");
	ck_assert_msg(f != NULL, "config/magicpigd.conf: run from the top of the tree, or set MAGICPIGD_SAMPLE");
	size_t bytes;
	char *text = sample(&bytes), *have = calloc(1, bytes + 2);
	ck_assert_ptr_nonnull(have);
	size_t got = fread(have, 1, bytes + 1, f);
	fclose(f);
	ck_assert_msg(got == bytes && memcmp(have, text, bytes) == 0,
	              "config/magicpigd.conf differs from the table: magicpigd --print-config > config/magicpigd.conf");
	free(text);
	free(have);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("options");
	TCase *t = tcase_create("table");
	tcase_add_checked_fixture(t, setup, NULL);
	tcase_add_test(t, defaults);
	tcase_add_test(t, file_sets_every_type);
	tcase_add_loop_test(t, value_is_shown_as_it_is_read, 0, sizeof good / sizeof good[0]);
	tcase_add_loop_test(t, bad_value_is_refused_with_what_is_allowed, 0, sizeof bad / sizeof bad[0]);
	tcase_add_loop_test(t, bad_file_names_the_line, 0, sizeof bad_files / sizeof bad_files[0]);
	tcase_add_test(t, long_line_is_refused);
	tcase_add_test(t, missing_file_is_named);
	tcase_add_test(t, resolve_fills_in_places);
	tcase_add_test(t, differences_say_what_needs_a_restart);
	tcase_add_test(t, users_and_groups_may_have_their_own_limits);
	tcase_add_test(t, format_says_how_long);
	tcase_add_test(t, sample_uncommented_is_the_default);
	tcase_add_test(t, sample_file_in_the_tree_is_current);
	suite_add_tcase(s, t);
	return suite_run(s);
}
