#include "config/value.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config/profile.h"
#include "daemon/base/affinity.h"
#include "daemon/base/log.h"

struct unit {
	const char *name;
	uint64_t factor;
};
static const struct unit size_units[] = {{"T", UINT64_C(1) << 40},
                                         {"G", UINT64_C(1) << 30},
                                         {"M", UINT64_C(1) << 20},
                                         {"K", UINT64_C(1) << 10},
                                         {"", 1},
                                         {NULL, 0}};
static const struct unit duration_units[] = {{"s", UINT64_C(1000000000)}, {"ms", 1000000}, {"us", 1000}, {"", 1000}, {NULL, 0}};
static const struct unit count_units[] = {{"", 1}, {NULL, 0}};

// Digits and a unit; false on anything else or where 64 bits do not hold it.
static bool parse_units(const char *text, const struct unit *units, uint64_t *value)
{
	if (!isdigit((unsigned char)*text))
		return false;
	char *end;
	errno = 0;
	unsigned long long number = strtoull(text, &end, 10);
	if (errno != 0)
		return false;
	for (; units->name; units++)
		if (strcasecmp(end, units->name) == 0)
			return !__builtin_mul_overflow((uint64_t)number, units->factor, value);
	return false;
}

static void format_units(uint64_t value, const struct unit *units, char *text, size_t bytes)
{
	while (units[1].name && (value == 0 || value % units->factor != 0))
		units++;
	snprintf(text, bytes, "%" PRIu64 "%s", value / units->factor, units->name);
}

static void format_duration(uint64_t ns, char *text, size_t bytes)
{
	if (ns % 1000000000 == 0 && ns)
		snprintf(text, bytes, "%" PRIu64 "s", ns / 1000000000);
	else if (ns % 1000000 == 0 && ns)
		snprintf(text, bytes, "%" PRIu64 "ms", ns / 1000000);
	else
		snprintf(text, bytes, "%" PRIu64 "us", ns / 1000);
}

static bool within(const struct option *option, double value)
{
	return value >= option->least && value <= option->greatest;
}

static bool parse_share(const char *text, float *value)
{
	char *end;
	errno = 0;
	float number = strtof(text, &end);
	if (end == text || *end != '\0' || errno == ERANGE || !isfinite(number))
		return false;
	*value = number;
	return true;
}

static bool parse_bool(const char *text, bool *value)
{
	static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false", "off", "0"};
	for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++)
		if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
			*value = strcasecmp(text, yes[i]) == 0;
			return true;
		}
	return false;
}

static bool parse_level(const char *text, int *value)
{
	for (int i = 0; i < 4; i++)
		if (strcmp(text, log_level_names[i]) == 0) {
			*value = i;
			return true;
		}
	return false;
}

// The words of an option that has some, in the order of its enum; NULL after the last.
static const char *const *words_of(const struct option *option)
{
	static const char *const restart[] = {"attach", "fresh", NULL}, *const verify[] = {"none", "header", "full", NULL};
	static const char *const persist[] = {"none", "shutdown", "idle", "commit", NULL};
	return option->type == OPTION_RESTART    ? restart
	       : option->type == OPTION_VERIFY   ? verify
	       : option->type == OPTION_PROPOSAL ? profile_proposal_words
	                                         : persist;
}

static bool parse_word(const struct option *option, const char *text, int *value)
{
	const char *const *words = words_of(option);
	for (int i = 0; words[i]; i++)
		if (strcmp(text, words[i]) == 0) {
			*value = i;
			return true;
		}
	return false;
}

static void list_words(const struct option *option, char *text, size_t bytes)
{
	const char *const *words = words_of(option);
	size_t used = 0;
	for (int i = 0; words[i] && used < bytes; i++)
		used += (size_t)snprintf(text + used, bytes - used, "%s%s", i == 0 ? "" : words[i + 1] ? ", " : " or ", words[i]);
}

static bool parse_mode(const char *text, uint32_t *value)
{
	if (!*text || strspn(text, "01234567") != strlen(text) || strlen(text) > 5)
		return false;
	*value = (uint32_t)strtoul(text, NULL, 8);
	return true;
}

static bool name_allowed(const char *text)
{
	for (; *text; text++)
		if (!isalnum((unsigned char)*text) && !strchr("._+-", *text))
			return false;
	return true;
}

static bool parse_string(const struct option *option, const char *text, char *value)
{
	if (strlen(text) >= option->bytes)
		return false;
	bool none = option->type == OPTION_PATH_OR_NONE && strcmp(text, "none") == 0;
	if (option->type == OPTION_NAME ? !name_allowed(text) : *text && *text != '/' && !none)
		return false;
	memset(value, 0, option->bytes);
	memcpy(value, text, strlen(text));
	return true;
}

static bool parse_value(const struct option *option, const char *text, void *value)
{
	uint64_t number;
	float share;
	uint32_t mode;
	cpu_set_t cpus;
	switch (option->type) {
	case OPTION_NAME:
	case OPTION_PATH:
	case OPTION_PATH_OR_NONE:
		return parse_string(option, text, value);
	case OPTION_SIZE:
	case OPTION_DURATION:
		if (!parse_units(text, option->type == OPTION_SIZE ? size_units : duration_units, &number) ||
		    !within(option, (double)number))
			return false;
		memcpy(value, &number, sizeof number);
		return true;
	case OPTION_COUNT:
		if (!parse_units(text, count_units, &number) || !within(option, (double)number))
			return false;
		memcpy(value, &(uint32_t){(uint32_t)number}, sizeof(uint32_t));
		return true;
	case OPTION_SHARE:
	case OPTION_NUMBER:
		if (!parse_share(text, &share) || !within(option, (double)share))
			return false;
		memcpy(value, &share, sizeof share);
		return true;
	case OPTION_CPUS:
		CPU_ZERO(&cpus);
		if (*text && !cpu_list_parse(text, &cpus))
			return false;
		memcpy(value, &cpus, sizeof cpus);
		return true;
	case OPTION_LEVEL:
		return parse_level(text, value);
	case OPTION_RESTART:
	case OPTION_VERIFY:
	case OPTION_PERSIST:
	case OPTION_PROPOSAL:
		return parse_word(option, text, value);
	case OPTION_BOOL:
		return parse_bool(text, value);
	case OPTION_MODE:
		if (!parse_mode(text, &mode) || !within(option, (double)mode))
			return false;
		memcpy(value, &mode, sizeof mode);
		return true;
	}
	return false;
}

bool option_parse(const struct option *option, const char *text, void *value, char *what)
{
	if (parse_value(option, text, value))
		return true;
	char allowed[OPTION_TEXT_BYTES - 16];
	option_describe(option, allowed, sizeof allowed);
	snprintf(what, OPTION_TEXT_BYTES, "allowed: %s", allowed);
	return false;
}

void option_format(const struct option *option, const void *value, char *text, size_t bytes)
{
	uint64_t number;
	uint32_t count;
	float share;
	cpu_set_t cpus;
	switch (option->type) {
	case OPTION_NAME:
	case OPTION_PATH:
	case OPTION_PATH_OR_NONE:
		snprintf(text, bytes, "%s", (const char *)value);
		break;
	case OPTION_SIZE:
		memcpy(&number, value, sizeof number);
		format_units(number, size_units, text, bytes);
		break;
	case OPTION_DURATION:
		memcpy(&number, value, sizeof number);
		format_duration(number, text, bytes);
		break;
	case OPTION_COUNT:
		memcpy(&count, value, sizeof count);
		snprintf(text, bytes, "%" PRIu32, count);
		break;
	case OPTION_SHARE:
	case OPTION_NUMBER:
		memcpy(&share, value, sizeof share);
		snprintf(text, bytes, "%g", (double)share);
		break;
	case OPTION_CPUS:
		memcpy(&cpus, value, sizeof cpus);
		cpu_list_format(&cpus, text, bytes);
		break;
	case OPTION_LEVEL:
		snprintf(text, bytes, "%s", log_level_names[*(const int *)value & 3]);
		break;
	case OPTION_RESTART:
	case OPTION_VERIFY:
	case OPTION_PERSIST:
	case OPTION_PROPOSAL:
		snprintf(text, bytes, "%s", words_of(option)[*(const int *)value]);
		break;
	case OPTION_BOOL:
		snprintf(text, bytes, "%s", *(const bool *)value ? "yes" : "no");
		break;
	case OPTION_MODE:
		memcpy(&count, value, sizeof count);
		snprintf(text, bytes, "%04" PRIo32, count);
		break;
	}
}

void option_describe(const struct option *option, char *text, size_t bytes)
{
	char least[32], greatest[32];
	switch (option->type) {
	case OPTION_NAME:
		snprintf(text, bytes, "name of at most %zu letters, digits, . _ + -", option->bytes - 1);
		break;
	case OPTION_PATH:
	case OPTION_PATH_OR_NONE:
		snprintf(text, bytes, "absolute path of at most %zu bytes%s", option->bytes - 1,
		         option->type == OPTION_PATH_OR_NONE ? ", or none" : "");
		break;
	case OPTION_SIZE:
		format_units((uint64_t)option->least, size_units, least, sizeof least);
		format_units((uint64_t)option->greatest, size_units, greatest, sizeof greatest);
		snprintf(text, bytes, "size in bytes or with K, M, G, T, %s to %s", least, greatest);
		break;
	case OPTION_DURATION:
		format_duration((uint64_t)option->least, least, sizeof least);
		format_duration((uint64_t)option->greatest, greatest, sizeof greatest);
		snprintf(text, bytes, "duration with us, ms or s, %s to %s", least, greatest);
		break;
	case OPTION_COUNT:
		snprintf(text, bytes, "whole number, %.0f to %.0f", option->least, option->greatest);
		break;
	case OPTION_SHARE:
		snprintf(text, bytes, "share, %g to %g", option->least, option->greatest);
		break;
	case OPTION_NUMBER:
		snprintf(text, bytes, "number, %g to %g", option->least, option->greatest);
		break;
	case OPTION_CPUS:
		snprintf(text, bytes, "CPU list such as 0-3,6 below %d", CPU_SETSIZE);
		break;
	case OPTION_LEVEL:
		snprintf(text, bytes, "error, warn, info or debug");
		break;
	case OPTION_RESTART:
	case OPTION_VERIFY:
	case OPTION_PERSIST:
	case OPTION_PROPOSAL:
		list_words(option, text, bytes);
		break;
	case OPTION_BOOL:
		snprintf(text, bytes, "yes or no");
		break;
	case OPTION_MODE:
		snprintf(text, bytes, "octal permission bits, 0 to %04o", (unsigned)option->greatest);
		break;
	}
}
