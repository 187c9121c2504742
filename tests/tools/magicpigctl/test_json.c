// The JSON writer of magicpigctl, read back byte for byte.
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "tests/lib/suite.h"
#include "tools/magicpigctl/json.c"

static char *written;
static size_t written_bytes;
static struct json json;

static void setup(void)
{
	json_begin(&json, open_memstream(&written, &written_bytes));
}

static void teardown(void)
{
	free(written);
}

static const char *finish(void)
{
	json_finish(&json);
	ck_assert_int_eq(fclose(json.file), 0);
	return written;
}

START_TEST(nesting)
{
	json_object(&json, NULL);
	json_uint(&json, "most", UINT64_MAX);
	json_int(&json, "least", INT64_MIN);
	json_array(&json, "list");
	json_bool(&json, NULL, true);
	json_string(&json, NULL, NULL);
	json_array(&json, NULL);
	json_array_end(&json);
	json_array_end(&json);
	json_object(&json, "empty");
	json_object_end(&json);
	json_object_end(&json);
	ck_assert_str_eq(finish(), "{\n  \"most\": 18446744073709551615,\n  \"least\": -9223372036854775808,\n"
	                           "  \"list\": [\n    true,\n    null,\n    []\n  ],\n  \"empty\": {}\n}\n");
}
END_TEST

static const struct {
	const char *text, *json;
} strings[] = {
	{"", "\"\""},
	{"plain / name", "\"plain / name\""},
	{"\" and \\", "\"\\\" and \\\\\""},
	{"\b\f\n\r\t", "\"\\b\\f\\n\\r\\t\""},
	{"\x01\x1f\x7f", "\"\\u0001\\u001f\\u007f\""},
	{"gr\xc3\xbc\xc3\x9f", "\"gr\xc3\xbc\xc3\x9f\""},
	{"\xf0\x9f\x90\x96", "\"\xf0\x9f\x90\x96\""},
	{"a\xff z", "\"a\xef\xbf\xbd z\""},
	{"\xc3", "\"\xef\xbf\xbd\""},                                                 // cut short
	{"\xe2\x82", "\"\xef\xbf\xbd\xef\xbf\xbd\""},                                 // cut short by two
	{"\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\""},                                 // overlong
	{"\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},                 // a surrogate
	{"\xf4\x90\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""}, // above U+10FFFF
};

START_TEST(string_escapes)
{
	json_string(&json, NULL, strings[_i].text);
	size_t length = strlen(strings[_i].json);
	const char *text = finish();
	ck_assert_uint_eq(strlen(text), length + 1);
	ck_assert_int_eq(memcmp(text, strings[_i].json, length), 0);
}
END_TEST

START_TEST(keys_are_escaped)
{
	json_object(&json, NULL);
	json_bool(&json, "a\"b", false);
	json_object_end(&json);
	ck_assert_str_eq(finish(), "{\n  \"a\\\"b\": false\n}\n");
}
END_TEST

START_TEST(hexadecimal)
{
	json_hex(&json, NULL, (const uint8_t[]){0x00, 0x9f, 0xff}, 3);
	ck_assert_str_eq(finish(), "\"009fff\"\n");
}
END_TEST

START_TEST(numbers_read_back)
{
	const double doubles[] = {0, .1, 1.0 / 3, 1e300, -2.5e-300, 4.9e-324, 123456789.123456789};
	for (size_t i = 0; i < sizeof(doubles) / sizeof(doubles[0]); i++) {
		rewind(json.file);
		json_double(&json, NULL, doubles[i]);
		fputc(0, json.file);
		fflush(json.file);
		ck_assert_msg(strtod(written, NULL) == doubles[i], "%s is not %a", written, doubles[i]);
	}
	rewind(json.file);
	json_float(&json, NULL, .01f);
	ck_assert_int_eq(memcmp(finish(), "0.01\n", 5), 0);
}
END_TEST

START_TEST(what_json_cannot_say_is_null)
{
	json_array(&json, NULL);
	json_double(&json, NULL, NAN);
	json_double(&json, NULL, -INFINITY);
	json_float(&json, NULL, INFINITY);
	json_array_end(&json);
	ck_assert_str_eq(finish(), "[\n  null,\n  null,\n  null\n]\n");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("magicpigctl json");
	TCase *tcase = tcase_create("writer");
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, nesting);
	tcase_add_loop_test(tcase, string_escapes, 0, sizeof(strings) / sizeof(strings[0]));
	tcase_add_test(tcase, keys_are_escaped);
	tcase_add_test(tcase, hexadecimal);
	tcase_add_test(tcase, numbers_read_back);
	tcase_add_test(tcase, what_json_cannot_say_is_null);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
