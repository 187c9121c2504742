// The log's lines and limits, and lists of CPUs.
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/log.h"

static char text[8192];
static int saved, out[2];

static void capture(void)
{
	ck_assert_int_eq(pipe2(out, O_NONBLOCK), 0);
	saved = dup(STDERR_FILENO);
	dup2(out[1], STDERR_FILENO);
}

static const char *captured(void)
{
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(out[1]);
	ssize_t n = read(out[0], text, sizeof text - 1);
	text[n > 0 ? n : 0] = '\0';
	close(out[0]);
	return text;
}

START_TEST(journal_lines_have_priorities)
{
	setenv("JOURNAL_STREAM", "8:1", 1);
	log_init(LOG_LEVEL_DEBUG);
	capture();
	log_error("e %d", 1);
	log_warn("w");
	log_info("i");
	log_debug("d");
	ck_assert_str_eq(captured(), "<3>e 1\n<4>w\n<6>i\n<7>d\n");
}
END_TEST

START_TEST(other_lines_have_a_time_and_a_level)
{
	unsetenv("JOURNAL_STREAM");
	log_init(LOG_LEVEL_INFO);
	capture();
	log_debug("not this");
	log_info("this");
	const char *line = captured();
	ck_assert_msg(strlen(line) == strlen("2000-01-01 00:00:00.000 info  this\n"), "%s", line);
	ck_assert_str_eq(line + 24, "info  this\n");
}
END_TEST

START_TEST(a_line_is_one_line)
{
	setenv("JOURNAL_STREAM", "8:1", 1);
	log_init(LOG_LEVEL_INFO);
	static char big[4000];
	memset(big, 'x', sizeof big - 1);
	capture();
	log_info("name\n<3>forged\x1b[31m");
	log_info("%s", big);
	const char *lines = captured();
	ck_assert_ptr_eq(strstr(lines, "<6>name?<3>forged?[31m\n"), lines);
	ck_assert_uint_lt(strlen(lines), 1100);
	ck_assert_int_eq(lines[strlen(lines) - 1], '\n');
}
END_TEST

START_TEST(limits_count_what_they_leave_out)
{
	struct log_limit limit = {.window_ns = 1000, .burst = 3};
	uint32_t left_out = 99;
	for (int i = 0; i < 3; i++) {
		ck_assert(log_limit_pass(&limit, 5000, &left_out));
		ck_assert_uint_eq(left_out, 0);
	}
	for (int i = 0; i < 7; i++)
		ck_assert(!log_limit_pass(&limit, 5999, &left_out));
	ck_assert(log_limit_pass(&limit, 6000, &left_out));
	ck_assert_uint_eq(left_out, 7);
	ck_assert(log_limit_pass(&limit, 6001, &left_out));
	ck_assert_uint_eq(left_out, 0);
}
END_TEST

static const struct {
	const char *in, *out;
} lists[] = {{"0", "0"}, {"0-3", "0-3"}, {"3,2,1", "1-3"}, {"5,0-1,7", "0-1,5,7"}, {"1023", "1023"}};

START_TEST(cpu_lists_go_round)
{
	cpu_set_t set;
	char list[64];
	ck_assert(cpu_list_parse(lists[_i].in, &set));
	cpu_list_format(&set, list, sizeof list);
	ck_assert_str_eq(list, lists[_i].out);
}
END_TEST

static const char *const bad_lists[] = {
	"", " 1", "1 ", "-1", "1-", "2-1", "1,", ",1", "1,,2", "a", "1024", "99999999999999999999", "0x1"};

START_TEST(bad_cpu_lists_are_refused)
{
	cpu_set_t set;
	ck_assert_msg(!cpu_list_parse(bad_lists[_i], &set), "'%s'", bad_lists[_i]);
}
END_TEST

START_TEST(the_nth_cpu_goes_round)
{
	cpu_set_t set;
	ck_assert(cpu_list_parse("2,5,9", &set));
	ck_assert_int_eq(cpu_nth(&set, 0), 2);
	ck_assert_int_eq(cpu_nth(&set, 2), 9);
	ck_assert_int_eq(cpu_nth(&set, 4), 5);
	CPU_ZERO(&set);
	ck_assert_int_eq(cpu_nth(&set, 0), -1);
}
END_TEST

START_TEST(workers_leave_a_core_to_clients)
{
	cpu_set_t allowed, chosen, inside;
	cpu_allowed(&allowed);
	ck_assert_int_ge(CPU_COUNT(&allowed), 1);
	cpu_choose_workers(&allowed, &chosen);
	ck_assert_int_ge(CPU_COUNT(&chosen), 1);
	CPU_AND(&inside, &chosen, &allowed);
	ck_assert(CPU_EQUAL(&inside, &chosen));
	if (CPU_COUNT(&chosen) > 1 || CPU_COUNT(&allowed) > CPU_COUNT(&chosen))
		ck_assert(!CPU_ISSET(cpu_nth(&allowed, 0), &chosen) || CPU_COUNT(&chosen) == 1);
	CPU_ZERO(&allowed);
	CPU_SET(cpu_nth(&chosen, 0), &allowed);
	cpu_choose_workers(&allowed, &chosen);
	ck_assert(CPU_EQUAL(&allowed, &chosen)); // the only one
}
END_TEST

int main(void)
{
	Suite *s = suite_create("base");
	TCase *t = tcase_create("base");
	tcase_add_test(t, journal_lines_have_priorities);
	tcase_add_test(t, other_lines_have_a_time_and_a_level);
	tcase_add_test(t, a_line_is_one_line);
	tcase_add_test(t, limits_count_what_they_leave_out);
	tcase_add_loop_test(t, cpu_lists_go_round, 0, sizeof lists / sizeof lists[0]);
	tcase_add_loop_test(t, bad_cpu_lists_are_refused, 0, sizeof bad_lists / sizeof bad_lists[0]);
	tcase_add_test(t, the_nth_cpu_goes_round);
	tcase_add_test(t, workers_leave_a_core_to_clients);
	suite_add_tcase(s, t);
	SRunner *r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	int failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
