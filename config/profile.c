#include "config/profile.h"

#include <ini.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/value.h"

#define OF(member) offsetof(struct profile, member), sizeof(((struct profile *)0)->member)
#define OF_LAYER(member) offsetof(struct profile_layer, member), sizeof(((struct profile_layer *)0)->member)

// What every text must have has no fallback.
static const struct option head_keys[] = {
	{"profile", "fingerprint", OPTION_NAME, OF(fingerprint), NULL, 0, 0, false, ""},
	{"profile", "seed", OPTION_COUNT, OF(seed), "0", 0, 4294967295.0, false, ""},
	{"profile", "seeds", OPTION_COUNT, OF(seeds), "0", 0, 1000, false, ""},
	{"profile", "queries", OPTION_COUNT, OF(queries), "0", 0, 1e9, false, ""},
	{"profile", "rates_tokens", OPTION_COUNT, OF(rates_tokens), "0", 0, 2147483648.0, false, ""},
	{"profile", "goal_error", OPTION_NUMBER, OF(goal_error), "0", 0, 1, false, ""},
	{"profile", "goal_ms", OPTION_NUMBER, OF(goal_ms), "0", 0, 1e6, false, ""},
	{"profile", "error", OPTION_NUMBER, OF(error), "0", 0, 1e6, false, ""},
	{"profile", "ms", OPTION_NUMBER, OF(ms), "0", 0, 1e9, false, ""},
	{"profile", "ns_request", OPTION_NUMBER, OF(ns_request), "0", 0, 1e12, false, ""},
	{"profile", "ns_dense", OPTION_NUMBER, OF(ns_dense), "0", 0, 1e9, false, ""},
	{"profile", "ns_scan", OPTION_NUMBER, OF(ns_scan), "0", 0, 1e9, false, ""},
	{"profile", "ns_read", OPTION_NUMBER, OF(ns_read), "0", 0, 1e9, false, ""},
	{"profile", "ns_lookup", OPTION_NUMBER, OF(ns_lookup), "0", 0, 1e9, false, ""},
	{"profile", "ns_scan_1", OPTION_NUMBER, OF(ns_scan_1), "0", 0, 1e9, false, ""},
	{"profile", "ns_scan_2", OPTION_NUMBER, OF(ns_scan_2), "0", 0, 1e9, false, ""},
	{"profile", "ns_scan_4", OPTION_NUMBER, OF(ns_scan_4), "0", 0, 1e9, false, ""},
};
static const struct option layer_keys[] = {
	{"layer", "proposal", OPTION_PROPOSAL, OF_LAYER(proposal), NULL, 0, 0, false, ""},
	{"layer", "budget", OPTION_SHARE, OF_LAYER(budget), "0", 0, 1, false, ""},
	{"layer", "error_target", OPTION_SHARE, OF_LAYER(error_target), "0", 0, 1, false, ""},
	{"layer", "budget_floor", OPTION_SHARE, OF_LAYER(budget_floor), "0", 0, 1, false, ""},
	{"layer", "budget_cap", OPTION_SHARE, OF_LAYER(budget_cap), "0", 0, 1, false, ""},
	{"layer", "signature_bits", OPTION_COUNT, OF_LAYER(signature_bits), "0", 0, 4, false, ""},
	{"layer", "paper_k", OPTION_COUNT, OF_LAYER(paper_k), "0", 0, 16, false, ""},
	{"layer", "paper_l", OPTION_COUNT, OF_LAYER(paper_l), "0", 0, 512, false, ""},
	{"layer", "rows", OPTION_SHARE, OF_LAYER(rows), "0", 0, 1, false, ""},
	{"layer", "error", OPTION_NUMBER, OF_LAYER(error), "0", 0, 1e6, false, ""},
	{"layer", "ms", OPTION_NUMBER, OF_LAYER(ms), "0", 0, 1e9, false, ""},
};
#define HEAD_KEYS (sizeof head_keys / sizeof head_keys[0])
#define LAYER_KEYS (sizeof layer_keys / sizeof layer_keys[0])

const char *const profile_proposal_words[PROFILE_PROPOSALS + 1] = {"signature", "dense", "paper", "crosspolytope", NULL};

struct reading {
	struct profile *profile;
	const char *text;
	size_t bytes, at;
	char *why;
	unsigned line;
	bool failed, version, ended;
	uint32_t head_seen, layer_seen; // bits of the keys given, of the layer that is being read
};

__attribute__((format(printf, 2, 3))) static int fail(struct reading *r, const char *format, ...)
{
	char what[PROFILE_WHY_BYTES - 32];
	va_list args;
	if (r->failed) // the first fault is the one to name
		return 0;
	r->failed = true;
	va_start(args, format);
	vsnprintf(what, sizeof what, format, args);
	va_end(args);
	snprintf(r->why, PROFILE_WHY_BYTES, "profile, line %u: %s", r->line, what);
	return 0;
}

static int check_layer(struct reading *r)
{
	const struct profile *p = r->profile;
	const struct profile_layer *l = p->count ? &p->layer[p->count - 1] : NULL;
	if (!l)
		return 1;
	if (!(r->layer_seen & 1))
		return fail(r, "layer %u has no proposal", l->number);
	if (l->budget > 0 && l->error_target > 0)
		return fail(r, "layer %u: budget and error_target exclude each other", l->number);
	if (l->proposal != PROFILE_SIGNATURE && (l->budget > 0 || l->error_target > 0))
		return fail(r, "layer %u: %s has neither budget nor error_target", l->number,
		            profile_proposal_words[l->proposal]);
	if (!(l->error_target > 0) && (l->budget_floor > 0 || l->budget_cap > 0))
		return fail(r, "layer %u: budget_floor and budget_cap go with error_target", l->number);
	if (l->budget_cap > 0 && l->budget_cap < l->budget_floor)
		return fail(r, "layer %u: budget_cap %g is below budget_floor %g", l->number, (double)l->budget_cap,
		            (double)l->budget_floor);
	if (l->signature_bits == 3)
		return fail(r, "layer %u: signature_bits 3: 0, 1, 2 or 4", l->number);
	if (l->paper_l == 1) // no context could be made with it
		return fail(r, "layer %u: paper_l 1: 0, or 2 to 512", l->number);
	return 1;
}

// "layer 12" begins another layer.
static int open_layer(struct reading *r, const char *section)
{
	struct profile *p = r->profile;
	char *end;
	unsigned long number = strtoul(section + 6, &end, 10);
	if (section[6] < '0' || section[6] > '9' || *end || number >= PROFILE_LAYERS)
		return fail(r, "section [%.40s]: a layer has a number below %u", section, PROFILE_LAYERS);
	if (p->count && p->layer[p->count - 1].number == number)
		return 1;
	if (p->count && p->layer[p->count - 1].number > number)
		return fail(r, "section [%.40s] after layer %u: layers come in their order, once each", section,
		            p->layer[p->count - 1].number);
	if (!check_layer(r))
		return 0;
	r->layer_seen = 0;
	p->layer[p->count++] = (struct profile_layer){.number = (uint32_t)number};
	return 1;
}

static int set_key(struct reading *r, const struct option *keys, size_t count, void *base, uint32_t *seen, const char *key,
                   const char *value)
{
	char what[OPTION_TEXT_BYTES];
	for (size_t i = 0; i < count; i++) {
		if (strcmp(keys[i].key, key) != 0)
			continue;
		if (*seen & 1u << i)
			return fail(r, "%s is given twice", key);
		*seen |= 1u << i;
		if (!option_parse(&keys[i], value, (char *)base + keys[i].offset, what))
			return fail(r, "%s = %.40s: %s", key, value, what);
		return 1;
	}
	return fail(r, "unknown key '%.40s' in [%s]", key, keys[0].section);
}

static int set_line(void *arg, const char *section, const char *key, const char *value)
{
	struct reading *r = arg;
	struct profile *p = r->profile;
	if (r->failed)
		return 0;
	if (!r->version) { // before anything else: another version may mean anything
		if (strcmp(section, "profile") != 0 || strcmp(key, "version") != 0)
			return fail(r, "not a profile: it begins with [profile] and version");
		if (strcmp(value, "1") != 0)
			return fail(r, "version %.20s: this is a profile of another magicpigd, only version %u is known here",
			            value, PROFILE_VERSION);
		r->version = true;
		return 1;
	}
	if (r->ended)
		return fail(r, "something follows [end]");
	if (strcmp(section, "profile") == 0 && !p->count)
		return set_key(r, head_keys, HEAD_KEYS, p, &r->head_seen, key, value);
	if (strncmp(section, "layer ", 6) == 0)
		return open_layer(r, section) &&
		       set_key(r, layer_keys, LAYER_KEYS, &p->layer[p->count - 1], &r->layer_seen, key, value);
	char *end;
	if (strcmp(section, "end") != 0 || strcmp(key, "layers") != 0)
		return fail(r, "[%.40s] %.40s is not known here; allowed: [profile], [layer N], [end]", section, key);
	if (!check_layer(r))
		return 0;
	if (!p->count)
		return fail(r, "it has no layers");
	if (strtoul(value, &end, 10) != p->count || *end)
		return fail(r, "it should have %.20s layers and has %u", value, p->count);
	r->ended = true;
	return 1;
}

// One line for inih, without leading blanks (an indented line would go on with the value before).
static char *read_line(char *line, int bytes, void *arg)
{
	struct reading *r = arg;
	size_t left = r->bytes - r->at;
	if (r->failed || !left || bytes < 2)
		return NULL;
	r->line++;
	const char *from = r->text + r->at, *newline = memchr(from, '\n', left);
	size_t n = newline ? (size_t)(newline - from) + 1 : left;
	r->at += n;
	if (n >= (size_t)bytes || memchr(from, 0, n)) {
		fail(r, "a line that is longer than %d bytes, or has a zero in it", bytes - 1);
		return NULL;
	}
	// Whoever looks at another's profile does so at a terminal.
	for (size_t i = 0; i < n; i++)
		if ((from[i] < ' ' || from[i] > '~') && !strchr("\t\r\n", from[i])) {
			fail(r, "byte 0x%02x: a profile is of printable ASCII, comments as well", (unsigned)(uint8_t)from[i]);
			return NULL;
		}
	size_t blank = 0;
	while (blank < n && (from[blank] == ' ' || from[blank] == '\t'))
		blank++;
	memcpy(line, from + blank, n - blank);
	line[n - blank] = '\0';
	return line;
}

static void set_defaults(const struct option *keys, size_t count, void *base)
{
	char what[OPTION_TEXT_BYTES];
	for (size_t i = 0; i < count; i++)
		if (keys[i].fallback && !option_parse(&keys[i], keys[i].fallback, (char *)base + keys[i].offset, what))
			abort(); // an error in the tables above
}

int profile_parse(const char *text, size_t bytes, struct profile *profile, char *why)
{
	struct reading r = {.profile = profile, .text = text, .bytes = bytes, .why = why};
	uint8_t fingerprint[64];
	memset(profile, 0, sizeof *profile);
	set_defaults(head_keys, HEAD_KEYS, profile);
	int line = ini_parse_stream(read_line, &r, set_line, &r);
	if (line > 0 && (!r.failed || (unsigned)line < r.line)) {
		snprintf(why, PROFILE_WHY_BYTES, "profile, line %d: neither [section] nor key = value", line);
		return -1;
	}
	if (!r.failed && !r.ended)
		fail(&r, "%s",
		     r.version ? "it is cut off: there is no [end]" : "not a profile: it begins with [profile] and version");
	if (!r.failed && !profile_unhex(profile->fingerprint, fingerprint))
		fail(&r, "fingerprint '%.20s...': hexadecimal digits, at most 128, not all of them zero", profile->fingerprint);
	return r.failed ? -1 : 0;
}

// ---- printing --------------------------------------------------------------------------------------------------------
struct printing {
	char *text;
	size_t used;
	bool full;
};

__attribute__((format(printf, 2, 3))) static void put(struct printing *p, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	int n = vsnprintf(p->text + p->used, PROFILE_TEXT_BYTES - p->used, format, args);
	va_end(args);
	p->full |= n < 0 || (size_t)n >= PROFILE_TEXT_BYTES - p->used;
	p->used += p->full ? 0 : (size_t)n;
}

// Keys whose value is their default are left out.
static void put_keys(struct printing *p, const struct option *keys, size_t count, const void *base)
{
	for (size_t i = 0; i < count; i++) {
		char value[OPTION_TEXT_BYTES];
		option_format(&keys[i], (const char *)base + keys[i].offset, value, sizeof value);
		if (!keys[i].fallback || strcmp(value, keys[i].fallback) != 0)
			put(p, "%s = %s\n", keys[i].key, value);
	}
}

size_t profile_format(const struct profile *profile, char *text)
{
	struct printing p = {.text = text};
	put(&p, "[profile]\nversion = %u\n", PROFILE_VERSION);
	put_keys(&p, head_keys, HEAD_KEYS, profile);
	for (uint32_t i = 0; i < profile->count; i++) {
		put(&p, "\n[layer %u]\n", profile->layer[i].number);
		put_keys(&p, layer_keys, LAYER_KEYS, &profile->layer[i]);
	}
	put(&p, "\n[end]\nlayers = %u\n", profile->count);
	return p.full ? 0 : p.used;
}

const struct profile_layer *profile_find(const struct profile *profile, uint32_t number)
{
	for (uint32_t i = 0; i < profile->count; i++)
		if (profile->layer[i].number == number)
			return &profile->layer[i];
	return NULL;
}

// ---- fingerprints ----------------------------------------------------------------------------------------------------
void profile_hex(const uint8_t fingerprint[64], char hex[PROFILE_HEX_BYTES])
{
	size_t n = 64;
	while (n && !fingerprint[n - 1])
		n--;
	hex[0] = '\0';
	for (size_t i = 0; i < n; i++)
		snprintf(hex + 2 * i, 3, "%02x", fingerprint[i]);
}

bool profile_unhex(const char *hex, uint8_t fingerprint[64])
{
	static const char digits[] = "0123456789abcdef";
	size_t n = strlen(hex);
	uint8_t any = 0;
	memset(fingerprint, 0, 64);
	if (n % 2 || n > 128 || strspn(hex, digits) != n)
		return false;
	for (size_t i = 0; i < n; i++) {
		uint8_t digit = (uint8_t)(strchr(digits, hex[i]) - digits);
		fingerprint[i / 2] |= (uint8_t)(i % 2 ? digit : digit << 4);
		any |= digit;
	}
	return any;
}
