// Profiles as text: what is printed is read back, and each fault is named with its line.
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/profile.h"
#include "tests/lib/suite.h"

#define HEAD "[profile]\nversion = 1\nfingerprint = ab01\n"
#define END(n) "[end]\nlayers = " #n "\n"
#define DENSE "[layer 3]\nproposal = dense\n"

static struct profile p;
static char why[PROFILE_WHY_BYTES], text[PROFILE_TEXT_BYTES];

static int parse(const char *what)
{
	why[0] = '\0';
	return profile_parse(what, strlen(what), &p, why);
}

START_TEST(what_is_printed_is_read_back)
{
	struct profile made = {.fingerprint = "00ff10",
	                       .seed = 7,
	                       .seeds = 5,
	                       .queries = 960,
	                       .goal_error = .05f,
	                       .error = .0489f,
	                       .ms = 2.5f,
	                       .ns_request = 20100,
	                       .ns_dense = 9.1f,
	                       .ns_scan = 3.2f,
	                       .ns_read = 55,
	                       .count = 4};
	made.layer[0] = (struct profile_layer){.number = 0, .proposal = PROFILE_DENSE, .rows = 1, .ms = .4f};
	made.layer[1] = (struct profile_layer){.number = 2, .budget = .02f, .signature_bits = 2, .rows = .0213f, .error = .3f};
	made.layer[2] = (struct profile_layer){
		.number = 17, .error_target = .0778f, .budget_floor = .00354f, .budget_cap = .0566f, .signature_bits = 4};
	made.layer[3] = (struct profile_layer){.number = 511, .proposal = PROFILE_PAPER, .paper_k = 10, .paper_l = 150};
	size_t n = profile_format(&made, text);
	ck_assert_uint_gt(n, 0);
	ck_assert_int_eq(profile_parse(text, n, &p, why), 0);
	ck_assert_mem_eq(&p, &made, sizeof p);
	static char again[PROFILE_TEXT_BYTES];
	ck_assert_uint_eq(profile_format(&p, again), n);
	ck_assert_mem_eq(again, text, n);
	ck_assert_ptr_eq(profile_find(&p, 17), &p.layer[2]);
	ck_assert_ptr_null(profile_find(&p, 3));
	// Cut off anywhere it is not taken for a whole one. Without its last newline it is whole.
	for (size_t cut = 0; cut + 1 < n; cut++)
		ck_assert_msg(profile_parse(text, cut, &p, why) != 0, "%zu of %zu bytes are taken for a profile", cut, n);
}
END_TEST

START_TEST(a_profile_that_does_not_fit_is_not_cut)
{
	static struct profile made;
	made = (struct profile){.fingerprint = "ab", .count = PROFILE_LAYERS};
	for (uint32_t i = 0; i < PROFILE_LAYERS; i++)
		made.layer[i] = (struct profile_layer){.number = i,
		                                       .error_target = .0123456f,
		                                       .budget_floor = .0123456f,
		                                       .budget_cap = .123456f,
		                                       .signature_bits = 2,
		                                       .rows = .0123456f,
		                                       .error = .0123456f,
		                                       .ms = .0123456f};
	ck_assert_uint_eq(profile_format(&made, text), 0);
}
END_TEST

static const struct {
	const char *text, *why;
} faults[] = {
	{"", "line 0: not a profile: it begins with [profile] and version"},
	{"hello\n", "line 1: neither [section] nor key = value"},
	{"[profile]\nfingerprint = ab\n", "line 2: not a profile: it begins with [profile] and version"},
	{"[profile]\nversion = 2\nnew = 1\n",
         "line 2: version 2: this is a profile of another magicpigd, only version 1 is known here"},
	{HEAD, "line 3: it is cut off: there is no [end]"},
	{HEAD DENSE, "line 5: it is cut off: there is no [end]"},
	{HEAD DENSE END(2), "line 7: it should have 2 layers and has 1"},
	{HEAD END(0), "line 5: it has no layers"},
	{HEAD DENSE END(1) "x = 1\n", "line 8: something follows [end]"},
	{HEAD "# \x1b]0;title\x07\n" DENSE END(1), "line 4: byte 0x1b: a profile is of printable ASCII, comments as well"},
	{HEAD "# caf\xc3\xa9\n" DENSE END(1), "line 4: byte 0xc3: a profile is of printable ASCII, comments as well"},
	{HEAD "# \x7f\n" DENSE END(1), "line 4: byte 0x7f: a profile is of printable ASCII, comments as well"},
	{HEAD "colour = red\n", "line 4: unknown key 'colour' in [profile]"},
	{HEAD "seed = -1\n", "line 4: seed = -1: allowed: whole number, 0 to 4294967295"},
	{HEAD "seed = 1\nseed = 1\n", "line 5: seed is given twice"},
	{HEAD "[disk]\ndir = /\n", "line 5: [disk] dir is not known here; allowed: [profile], [layer N], [end]"},
	{HEAD "[layer x]\nproposal = dense\n", "line 5: section [layer x]: a layer has a number below 512"},
	{HEAD "[layer 512]\nproposal = dense\n", "line 5: section [layer 512]: a layer has a number below 512"},
	{HEAD DENSE "[layer 2]\nproposal = dense\n",
         "line 7: section [layer 2] after layer 3: layers come in their order, once each"},
	{HEAD DENSE "[profile]\nseed = 1\n", "line 7: [profile] seed is not known here; allowed: [profile], [layer N], [end]"},
	{HEAD "[layer 3]\nbudget = .1\n" END(1), "line 7: layer 3 has no proposal"},
	{HEAD "[layer 3]\nproposal = guess\n", "line 5: proposal = guess: allowed: signature, dense, paper or crosspolytope"},
	{HEAD "[layer 3]\nproposal = signature\nbudget = 1.5\n", "line 6: budget = 1.5: allowed: share, 0 to 1"},
	{HEAD "[layer 3]\nproposal = signature\nbudget = nan\n", "line 6: budget = nan: allowed: share, 0 to 1"},
	{HEAD "[layer 3]\nproposal = signature\nbudget = .1\nerror_target = .1\n" END(1),
         "line 9: layer 3: budget and error_target exclude each other"},
	{HEAD "[layer 3]\nproposal = dense\nbudget = .1\n" END(1), "line 8: layer 3: dense has neither budget nor error_target"},
	{HEAD "[layer 3]\nproposal = signature\nbudget_cap = .1\n" END(1),
         "line 8: layer 3: budget_floor and budget_cap go with error_target"},
	{HEAD "[layer 3]\nproposal = signature\nerror_target = .1\nbudget_floor = .2\nbudget_cap = .1\n" END(1),
         "line 10: layer 3: budget_cap 0.1 is below budget_floor 0.2"},
	{HEAD "[layer 3]\nproposal = signature\nsignature_bits = 3\n" END(1), "line 8: layer 3: signature_bits 3: 0, 1, 2 or 4"},
	{HEAD "[layer 3]\nproposal = signature\npaper_l = 1\n" END(1), "line 8: layer 3: paper_l 1: 0, or 2 to 512"},
	{"[profile]\nversion = 1\n" DENSE END(1),
         "line 6: fingerprint '...': hexadecimal digits, at most 128, not all of them zero"},
	{"[profile]\nversion = 1\nfingerprint = 0000\n" DENSE END(1),
         "line 7: fingerprint '0000...': hexadecimal digits, at most 128, not all of them zero"},
	{"[profile]\nversion = 1\nfingerprint = abc\n" DENSE END(1),
         "line 7: fingerprint 'abc...': hexadecimal digits, at most 128, not all of them zero"},
};

START_TEST(faults_are_named)
{
	char want[PROFILE_WHY_BYTES];
	ck_assert_int_eq(parse(faults[_i].text), -1);
	snprintf(want, sizeof want, "profile, %s", faults[_i].why);
	ck_assert_str_eq(why, want);
}
END_TEST

START_TEST(blanks_comments_and_long_lines)
{
	ck_assert_int_eq(
		parse("# made by hand\n\n  [profile]\n\tversion=1\n  fingerprint = ab01 ; whose\n\n[layer 3]\n proposal = dense\n"
	              "[end]\nlayers=1"),
		0);
	ck_assert_str_eq(p.fingerprint, "ab01");
	ck_assert_uint_eq(p.count, 1);
	char line[4096];
	int n = snprintf(line, sizeof line, "%s", HEAD);
	memset(line + n, 'x', 1000);
	strcpy(line + n + 1000, " = 1\n");
	ck_assert_int_eq(parse(line), -1);
	ck_assert_ptr_nonnull(strstr(why, "line 4: a line that is longer than"));
	ck_assert_int_eq(profile_parse("[profile]\0\n", 11, &p, why), -1);
}
END_TEST

START_TEST(fingerprints_are_digits)
{
	uint8_t bytes[64] = {0xde, 0xad, [31] = 0xf0}, back[64];
	char hex[PROFILE_HEX_BYTES];
	profile_hex(bytes, hex);
	ck_assert_uint_eq(strlen(hex), 64);
	ck_assert(profile_unhex(hex, back));
	ck_assert_mem_eq(bytes, back, 64);
	memset(bytes, 0xff, sizeof bytes);
	profile_hex(bytes, hex);
	ck_assert_uint_eq(strlen(hex), 128);
	ck_assert(profile_unhex(hex, back));
	ck_assert_mem_eq(bytes, back, 64);
	ck_assert(!profile_unhex("", back) && !profile_unhex("00", back) && !profile_unhex("a", back) &&
	          !profile_unhex("AB", back) && !profile_unhex("0x", back));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("config/profile");
	TCase *t = tcase_create("profile");
	tcase_add_test(t, what_is_printed_is_read_back);
	tcase_add_test(t, a_profile_that_does_not_fit_is_not_cut);
	tcase_add_loop_test(t, faults_are_named, 0, sizeof faults / sizeof faults[0]);
	tcase_add_test(t, blanks_comments_and_long_lines);
	tcase_add_test(t, fingerprints_are_digits);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
