#include "text.h"

#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>
#include <wctype.h>

static bool colours;

void text_init(void)
{
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
	colours = isatty(STDOUT_FILENO) && !(no_color && *no_color) && !(term && strcmp(term, "dumb") == 0);
}

const char *text_on(enum text_style style)
{
	static const char *const codes[] = {
		[TEXT_PLAIN] = "",        [TEXT_BOLD] = "\x1b[1m",  [TEXT_DIM] = "\x1b[2m",
		[TEXT_GOOD] = "\x1b[32m", [TEXT_WARN] = "\x1b[33m", [TEXT_BAD] = "\x1b[31m",
	};
	return colours ? codes[style] : "";
}

const char *text_off(void)
{
	return colours ? "\x1b[0m" : "";
}

char *text_bytes(char out[TEXT_SHORT], uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	size_t unit = 0;
	while (value >= 1023.95 && unit + 1 < sizeof(units) / sizeof(units[0])) { // 1023.95 would print as 1024.0
		value /= 1024;
		unit++;
	}
	if (unit == 0)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " B", bytes);
	else
		snprintf(out, TEXT_SHORT, "%.1f %s", value, units[unit]);
	return out;
}

char *text_count(char out[TEXT_SHORT], uint64_t count)
{
	char digits[24];
	size_t length = (size_t)snprintf(digits, sizeof(digits), "%" PRIu64, count), at = 0;
	for (size_t i = 0; i < length; i++) {
		if (i && (length - i) % 3 == 0)
			out[at++] = ',';
		out[at++] = digits[i];
	}
	out[at] = 0;
	return out;
}

char *text_rate(char out[TEXT_SHORT], double per_second)
{
	static const char *const units[] = {"", " k", " M", " G", " T", " P"};
	size_t unit = 0;
	while (per_second >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		per_second /= 1000;
		unit++;
	}
	snprintf(out, TEXT_SHORT, "%.3g%s", per_second, units[unit]);
	return out;
}

char *text_duration(char out[TEXT_SHORT], uint64_t ns)
{
	uint64_t s = ns / 1000000000u;
	if (s < 60)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " s", s);
	else if (s < 3600)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else
		snprintf(out, TEXT_SHORT, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
	return out;
}

char *text_latency(char out[TEXT_SHORT], double ns)
{
	if (ns < 999.5)
		snprintf(out, TEXT_SHORT, "%.0f ns", ns);
	else if (ns < 999.5e3)
		snprintf(out, TEXT_SHORT, "%.3g us", ns / 1e3);
	else if (ns < 999.5e6)
		snprintf(out, TEXT_SHORT, "%.3g ms", ns / 1e6);
	else
		snprintf(out, TEXT_SHORT, "%.4g s", ns / 1e9);
	return out;
}

char *text_ago(char out[TEXT_SHORT], uint64_t then_ns, uint64_t now_ns)
{
	uint64_t s = now_ns > then_ns ? (now_ns - then_ns) / 1000000000u : 0;
	if (then_ns == 0)
		snprintf(out, TEXT_SHORT, "never");
	else if (s < 2)
		snprintf(out, TEXT_SHORT, "just now");
	else if (s < 60)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " s ago", s);
	else if (s < 3600)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " min ago", s / 60);
	else if (s < 172800)
		snprintf(out, TEXT_SHORT, "%" PRIu64 " h ago", s / 3600);
	else
		snprintf(out, TEXT_SHORT, "%" PRIu64 " d ago", s / 86400);
	return out;
}

char *text_share(char out[TEXT_SHORT], double share)
{
	snprintf(out, TEXT_SHORT, "%.3g %%", share * 100);
	return out;
}

// Names that were looked up last: a table of contexts asks for the same few again and again, and each look reads files.
struct known_name {
	bool known, group;
	uint32_t id;
	char name[TEXT_SHORT];
};

static char *name_of(char out[TEXT_SHORT], uint32_t id, bool group)
{
	static struct known_name known[16];
	struct known_name *k = &known[(id ^ (group ? 8u : 0u)) % 16];
	if (!k->known || k->id != id || k->group != group) {
		const struct passwd *user = group ? NULL : getpwuid(id);
		const struct group *entry = group ? getgrgid(id) : NULL;
		*k = (struct known_name){.known = true, .group = group, .id = id};
		if (user || entry)
			text_printable(k->name, sizeof(k->name), user ? user->pw_name : entry->gr_name);
		else
			snprintf(k->name, sizeof(k->name), "%" PRIu32, id);
	}
	return memcpy(out, k->name, sizeof(k->name));
}

char *text_uid(char out[TEXT_SHORT], uint32_t uid)
{
	return name_of(out, uid, false);
}

char *text_gid(char out[TEXT_SHORT], uint32_t gid)
{
	return name_of(out, gid, true);
}

char *text_utc(char out[TEXT_SHORT], uint64_t realtime_ns)
{
	time_t seconds = (time_t)(realtime_ns / 1000000000u);
	struct tm tm;
	if (!gmtime_r(&seconds, &tm) || !strftime(out, TEXT_SHORT, "%Y-%m-%d %H:%M:%S UTC", &tm))
		snprintf(out, TEXT_SHORT, "?");
	return out;
}

// Reads one character; returns its bytes (1 where it is not valid here) and whether a terminal prints it.
static size_t next_character(const char *text, wchar_t *wide, bool *prints)
{
	if (*text >= ' ' && *text < 0x7f) { // in every locale
		*wide = (wchar_t)*text;
		return *prints = true;
	}
	mbstate_t state = {0};
	size_t length = mbrtowc(wide, text, strlen(text), &state);
	bool valid = length != (size_t)-1 && length != (size_t)-2 && length != 0;
	*prints = valid && iswprint((wint_t)*wide);
	return valid ? length : 1;
}

char *text_printable(char *out, size_t bytes, const char *text)
{
	size_t at = 0;
	while (*text) {
		wchar_t wide;
		bool prints;
		size_t length = next_character(text, &wide, &prints), written = prints ? length : 1;
		if (at + written >= bytes)
			break;
		if (prints)
			memcpy(out + at, text, length);
		else
			out[at] = '?';
		at += written;
		text += length;
	}
	out[at] = 0;
	return out;
}

size_t text_width(const char *text)
{
	size_t columns = 0;
	while (*text) {
		if (*text >= ' ' && *text < 0x7f) { // one column, in every locale
			text++;
			columns++;
			continue;
		}
		wchar_t wide;
		bool prints;
		text += next_character(text, &wide, &prints);
		int width = prints ? wcwidth(wide) : 1;
		columns += width > 0 ? (size_t)width : 0;
	}
	return columns;
}

void text_bar(FILE *file, double share, int cells)
{
	int full = (int)(share * cells + .5);
	if (full == 0 && share > 0)
		full = 1;
	if (full > cells)
		full = cells;
	fprintf(file, "[%s", text_on(share < .75 ? TEXT_GOOD : share < .9 ? TEXT_WARN : TEXT_BAD));
	for (int i = 0; i < full; i++)
		putc('#', file);
	fputs(text_off(), file);
	for (int i = full; i < cells; i++)
		putc('.', file);
	putc(']', file);
}
