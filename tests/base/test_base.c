// The log's lines and limits, and lists of CPUs.
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/affinity.h"
#include "daemon/base/log.h"
#include "tests/lib/suite.h"

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

// As systemd does: the variable names the file that stderr is.
static void stderr_is_the_journal(void)
{
	struct stat st;
	char name[64];
	ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
	snprintf(name, sizeof name, "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", name, 1);
}

START_TEST(journal_lines_have_priorities)
{
	capture();
	stderr_is_the_journal();
	log_init(LOG_LEVEL_DEBUG);
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

START_TEST(an_inherited_name_of_another_file_is_not_the_journal)
{
	static const char *const others[] = {"8:1", "", "8", "words", "8:1x"};
	for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
		setenv("JOURNAL_STREAM", others[i], 1);
		capture();
		log_init(LOG_LEVEL_INFO);
		log_info("this");
		const char *line = captured();
		ck_assert_msg(strlen(line) > 24 && strcmp(line + 24, "info  this\n") == 0, "%s: %s", others[i], line);
	}
}
END_TEST

static char journal_text[256];
static bool journal_works;
static bool write_journal(enum log_level level, const char *message_id, const char *line)
{
	snprintf(journal_text, sizeof journal_text, "%d %s %s", (int)level, message_id, line);
	return journal_works;
}

START_TEST(events_reach_the_journal_with_their_id)
{
	char expected[256];
	log_set_journal(write_journal);
	for (int i = 0; i < LOG_EVENTS; i++) {
		ck_assert_uint_eq(strlen(log_event_ids[i]), 32);
		ck_assert_uint_eq(strspn(log_event_ids[i], "0123456789abcdef"), 32);
		for (int j = 0; j < i; j++)
			ck_assert_str_ne(log_event_ids[i], log_event_ids[j]);
	}
	capture();
	stderr_is_the_journal();
	log_init(LOG_LEVEL_WARN);
	journal_works = true;
	log_event(LOG_EVENT_READY, LOG_LEVEL_INFO, "too little");
	ck_assert_str_eq(journal_text, "");
	log_event(LOG_EVENT_STUCK, LOG_LEVEL_ERROR, "worker %d\n", 3);
	snprintf(expected, sizeof expected, "%d %s worker 3?", LOG_LEVEL_ERROR, log_event_ids[LOG_EVENT_STUCK]);
	ck_assert_str_eq(journal_text, expected);
	journal_works = false; // then it is an ordinary line
	log_event(LOG_EVENT_DAMAGED, LOG_LEVEL_ERROR, "bad");
	ck_assert_str_eq(captured(), "<3>bad\n");
	// Not the journal: nobody is asked.
	journal_text[0] = 0;
	unsetenv("JOURNAL_STREAM");
	capture();
	log_init(LOG_LEVEL_WARN);
	log_event(LOG_EVENT_DAMAGED, LOG_LEVEL_ERROR, "bad");
	ck_assert_str_eq(captured() + 24, "error bad\n");
	ck_assert_str_eq(journal_text, "");
	log_set_journal(NULL);
}
END_TEST

START_TEST(a_line_is_one_line)
{
	static char big[4000];
	memset(big, 'x', sizeof big - 1);
	capture();
	stderr_is_the_journal();
	log_init(LOG_LEVEL_INFO);
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
	tcase_add_test(t, an_inherited_name_of_another_file_is_not_the_journal);
	tcase_add_test(t, events_reach_the_journal_with_their_id);
	tcase_add_test(t, limits_count_what_they_leave_out);
	tcase_add_loop_test(t, cpu_lists_go_round, 0, sizeof lists / sizeof lists[0]);
	tcase_add_loop_test(t, bad_cpu_lists_are_refused, 0, sizeof bad_lists / sizeof bad_lists[0]);
	tcase_add_test(t, the_nth_cpu_goes_round);
	tcase_add_test(t, workers_leave_a_core_to_clients);
	suite_add_tcase(s, t);
	return suite_run(s);
}
