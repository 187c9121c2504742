// The second-level cache of a worker, from trees like the kernel's.
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/cache.h"
#include "tests/lib/suite.h"

static char root[] = "/tmp/test-cache-XXXXXX";

static void put(int cpu, int index, const char *name, const char *text)
{
	char path[256];
	snprintf(path, sizeof path, "%s/cpu%d", root, cpu);
	mkdir(path, 0700);
	snprintf(path, sizeof path, "%s/cpu%d/cache", root, cpu);
	mkdir(path, 0700);
	snprintf(path, sizeof path, "%s/cpu%d/cache/index%d", root, cpu, index);
	mkdir(path, 0700);
	snprintf(path, sizeof path, "%s/cpu%d/cache/index%d/%s", root, cpu, index, name);
	FILE *f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	fprintf(f, "%s\n", text);
	fclose(f);
}

static void put_cache(int cpu, int index, const char *level, const char *size, const char *shared)
{
	put(cpu, index, "level", level);
	put(cpu, index, "size", size);
	put(cpu, index, "shared_cpu_list", shared);
}

static void setup(void)
{
	ck_assert_ptr_nonnull(mkdtemp(root));
	for (int cpu = 0; cpu < 4; cpu++) {
		put_cache(cpu, 0, "1", "48K", "0");
		put_cache(cpu, 2, "2", "2048K", cpu < 2 ? "0-1" : "2-3");
		put_cache(cpu, 3, "3", "307200K", "0-3");
	}
	put_cache(4, 2, "2", "1M", "4");
	put_cache(5, 2, "2", "much", "5");
}

static void teardown(void)
{
	char command[256];
	snprintf(command, sizeof command, "rm -rf %s", root);
	ck_assert_int_eq(system(command), 0);
	snprintf(root, sizeof root, "/tmp/test-cache-XXXXXX");
}

static uint64_t share(const char *list, uint32_t threads)
{
	cpu_set_t set;
	ck_assert(cpu_list_parse(list, &set));
	return cpu_l2_share(root, &set, threads);
}

START_TEST(a_core_s_own)
{
	ck_assert_uint_eq(share("0", 1), 2 << 20);
	ck_assert_uint_eq(share("0,2", 2), 2 << 20);
	ck_assert_uint_eq(share("4", 1), 1 << 20);
}
END_TEST

START_TEST(shared_among_those_that_work)
{
	ck_assert_uint_eq(share("0-1", 2), 1 << 20);
	ck_assert_uint_eq(share("0-3", 4), 1 << 20);
	ck_assert_uint_eq(share("0-2", 3), 1 << 20); // the least of them
}
END_TEST

START_TEST(more_threads_than_cpus_share_too)
{
	ck_assert_uint_eq(share("0", 3), (2 << 20) / 3);
	ck_assert_uint_eq(share("0,2", 3), 1 << 20);
	ck_assert_uint_eq(share("0,2", 1), 2 << 20);
}
END_TEST

START_TEST(what_the_kernel_does_not_tell)
{
	long known = sysconf(_SC_LEVEL2_CACHE_SIZE);
	uint64_t expected = known > 0 ? (uint64_t)known : 256 << 10;
	ck_assert_uint_eq(share("5", 1), expected);
	ck_assert_uint_eq(share("7", 1), expected);
	cpu_set_t none;
	CPU_ZERO(&none);
	ck_assert_uint_eq(cpu_l2_share(root, &none, 1), expected);
}
END_TEST

START_TEST(of_this_machine)
{
	cpu_set_t set;
	cpu_allowed(&set);
	uint64_t bytes = cpu_l2_share(CPU_CACHE_ROOT, &set, (uint32_t)CPU_COUNT(&set));
	ck_assert_uint_ge(bytes, 16 << 10);
	ck_assert_uint_le(bytes, UINT64_C(1) << 30);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cache");
	TCase *t = tcase_create("cache");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_core_s_own);
	tcase_add_test(t, shared_among_those_that_work);
	tcase_add_test(t, more_threads_than_cpus_share_too);
	tcase_add_test(t, what_the_kernel_does_not_tell);
	tcase_add_test(t, of_this_machine);
	suite_add_tcase(s, t);
	return suite_run(s);
}
