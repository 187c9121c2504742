// Sizes, times, tables and cleaned text as magicpigctl prints them.
#include <check.h>
#include <locale.h>

#include "tests/lib/suite.h"
#include "tools/magicpigctl/table.c"
#include "tools/magicpigctl/text.c"

static char out[TEXT_SHORT];

START_TEST(sizes)
{
	ck_assert_str_eq(text_bytes(out, 0), "0 B");
	ck_assert_str_eq(text_bytes(out, 1023), "1023 B");
	ck_assert_str_eq(text_bytes(out, 1024), "1.0 KiB");
	ck_assert_str_eq(text_bytes(out, 1536), "1.5 KiB");
	ck_assert_str_eq(text_bytes(out, (UINT64_C(1) << 20) - 1), "1.0 MiB");
	ck_assert_str_eq(text_bytes(out, UINT64_C(13207024435)), "12.3 GiB");
	ck_assert_str_eq(text_bytes(out, UINT64_MAX), "16.0 EiB");
}
END_TEST

START_TEST(counts)
{
	ck_assert_str_eq(text_count(out, 0), "0");
	ck_assert_str_eq(text_count(out, 999), "999");
	ck_assert_str_eq(text_count(out, 1000), "1,000");
	ck_assert_str_eq(text_count(out, 123456), "123,456");
	ck_assert_str_eq(text_count(out, UINT64_MAX), "18,446,744,073,709,551,615");
}
END_TEST

START_TEST(rates_and_latencies)
{
	ck_assert_str_eq(text_rate(out, 0), "0");
	ck_assert_str_eq(text_rate(out, 999.6), "1 k");
	ck_assert_str_eq(text_rate(out, 3416), "3.42 k");
	ck_assert_str_eq(text_rate(out, 5.5e9), "5.5 G");
	ck_assert_str_eq(text_latency(out, 850), "850 ns");
	ck_assert_str_eq(text_latency(out, 4200), "4.2 us");
	ck_assert_str_eq(text_latency(out, 999600), "1 ms");
	ck_assert_str_eq(text_latency(out, 2.5e9), "2.5 s");
	ck_assert_str_eq(text_share(out, .0414), "4.14 %");
}
END_TEST

START_TEST(times)
{
	const uint64_t second = 1000000000, now = 1000000 * second;
	ck_assert_str_eq(text_duration(out, 59 * second), "59 s");
	ck_assert_str_eq(text_duration(out, 61 * second), "1 min 1 s");
	ck_assert_str_eq(text_duration(out, 7500 * second), "2 h 5 min");
	ck_assert_str_eq(text_duration(out, 180000 * second), "2 d 2 h");
	ck_assert_str_eq(text_ago(out, 0, now), "never");
	ck_assert_str_eq(text_ago(out, now + second, now), "just now"); // clocks step
	ck_assert_str_eq(text_ago(out, now - 59 * second, now), "59 s ago");
	ck_assert_str_eq(text_ago(out, now - 60 * second, now), "1 min ago");
	ck_assert_str_eq(text_ago(out, now - 7199 * second, now), "1 h ago");
	ck_assert_str_eq(text_ago(out, now - 200000 * second, now), "2 d ago");
	ck_assert_str_eq(text_utc(out, 0), "1970-01-01 00:00:00 UTC");
}
END_TEST

START_TEST(control_characters_do_not_reach_the_terminal)
{
	ck_assert_str_eq(text_printable(out, sizeof(out), "a\x1b[31mb\n"), "a?[31mb?");
	ck_assert_str_eq(text_printable(out, sizeof(out), "\xc2\x9b\xff"), "??"); // C1 control, stray byte
	ck_assert_str_eq(text_printable(out, sizeof(out), "gr\xc3\xbc\xc3\x9f"), "gr\xc3\xbc\xc3\x9f");
	ck_assert_str_eq(text_printable(out, 4, "ab\xc3\xbc"), "ab"); // a character is not cut in two
	ck_assert_str_eq(text_printable(out, 3, "abc"), "ab");
}
END_TEST

START_TEST(widths)
{
	ck_assert_uint_eq(text_width("gr\xc3\xbc\xc3\x9f"), 4);
	ck_assert_uint_eq(text_width("\xe6\x96\x87"), 2);
}
END_TEST

START_TEST(columns_are_aligned)
{
	static const char *const titles[] = {"NAME", ">SIZE", "USE"};
	static const char *const cells[] = {"m\xc3\xbcll", "5", "x", "a", "1,024", "yy"};
	char *text;
	size_t bytes;
	FILE *file = open_memstream(&text, &bytes);
	struct table *table = table_create(3, titles);
	for (size_t i = 0; i < sizeof(cells) / sizeof(cells[0]); i++)
		table_cell(table, cells[i]);
	table_print(table, file);
	table_destroy(table);
	fclose(file);
	ck_assert_str_eq(text, "NAME   SIZE  USE\n"
	                       "m\xc3\xbcll      5  x\n"
	                       "a     1,024  yy\n");
	free(text);
}
END_TEST

START_TEST(bar)
{
	static const struct {
		double share;
		const char *bar;
	} cases[] = {{0, "[........]"}, {.001, "[#.......]"}, {.5, "[####....]"}, {1, "[########]"}, {1.5, "[########]"}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[32] = "";
		FILE *file = fmemopen(text, sizeof(text), "w");
		text_bar(file, cases[i].share, 8);
		fclose(file);
		ck_assert_str_eq(text, cases[i].bar);
	}
}
END_TEST

int main(void)
{
	setlocale(LC_CTYPE, "C.UTF-8");
	Suite *suite = suite_create("magicpigctl text");
	TCase *tcase = tcase_create("text");
	tcase_add_test(tcase, sizes);
	tcase_add_test(tcase, counts);
	tcase_add_test(tcase, rates_and_latencies);
	tcase_add_test(tcase, times);
	tcase_add_test(tcase, control_characters_do_not_reach_the_terminal);
	tcase_add_test(tcase, widths);
	tcase_add_test(tcase, columns_are_aligned);
	tcase_add_test(tcase, bar);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
