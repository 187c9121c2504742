#include "json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Bytes of the UTF-8 sequence at `text` (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF), or 0.
static size_t utf8_length(const uint8_t *text)
{
	if (text[0] < 0x80)
		return 1;
	if (text[0] < 0xc2 || text[0] > 0xf4)
		return 0;
	uint8_t least = text[0] == 0xe0 ? 0xa0 : text[0] == 0xf0 ? 0x90 : 0x80;
	uint8_t most = text[0] == 0xed ? 0x9f : text[0] == 0xf4 ? 0x8f : 0xbf;
	if (text[1] < least || text[1] > most)
		return 0;
	size_t length = text[0] < 0xe0 ? 2 : text[0] < 0xf0 ? 3 : 4;
	for (size_t i = 2; i < length; i++)
		if ((text[i] & 0xc0) != 0x80)
			return 0;
	return length;
}

static void put_string(FILE *file, const char *value)
{
	static const char short_escapes[] = "\bb\ff\nn\rr\tt\"\"\\\\";
	putc('"', file);
	for (const uint8_t *text = (const uint8_t *)value; *text;) {
		size_t plain = 0; // most of all text: no look at each character by itself
		while (text[plain] >= 0x20 && text[plain] < 0x7f && text[plain] != '"' && text[plain] != '\\')
			plain++;
		if (plain) {
			fwrite(text, 1, plain, file);
			text += plain;
			continue;
		}
		const char *escape = NULL;
		for (const char *e = short_escapes; *e && !escape; e += 2)
			if ((uint8_t)*e == *text)
				escape = e + 1;
		size_t length = utf8_length(text);
		if (escape)
			fprintf(file, "\\%c", *escape);
		else if (*text < 0x20 || *text == 0x7f)
			fprintf(file, "\\u%04x", *text);
		else if (length)
			fwrite(text, 1, length, file);
		else
			fputs("\xef\xbf\xbd", file);
		text += length ? length : 1;
	}
	putc('"', file);
}

static void indent(const struct json *json)
{
	putc('\n', json->file);
	static const char spaces[2 * JSON_MAX_DEPTH + 1] = "                                ";
	fwrite(spaces, 1, 2 * (size_t)json->depth, json->file);
}

static void begin_value(struct json *json, const char *key)
{
	if (json->depth) {
		if (json->filled[json->depth])
			putc(',', json->file);
		json->filled[json->depth] = true;
		indent(json);
	}
	if (key) {
		put_string(json->file, key);
		fputs(": ", json->file);
	}
}

static void open_level(struct json *json, const char *key, char bracket)
{
	begin_value(json, key);
	putc(bracket, json->file);
	json->depth++;
	assert(json->depth < JSON_MAX_DEPTH);
	json->filled[json->depth] = false;
}

static void close_level(struct json *json, char bracket)
{
	assert(json->depth > 0);
	bool filled = json->filled[json->depth--];
	if (filled)
		indent(json);
	putc(bracket, json->file);
}

void json_begin(struct json *json, FILE *file)
{
	*json = (struct json){.file = file};
}

void json_finish(struct json *json)
{
	assert(json->depth == 0);
	putc('\n', json->file);
}

bool json_hold(struct json_held *held)
{
	*held = (struct json_held){0};
	FILE *file = open_memstream(&held->text, &held->bytes);
	if (file)
		json_begin(&held->json, file);
	return file;
}

void json_let_go(struct json_held *held, bool write)
{
	if (write)
		json_finish(&held->json);
	if (fclose(held->json.file) == 0 && write)
		fwrite(held->text, 1, held->bytes, stdout);
	free(held->text);
}

void json_object(struct json *json, const char *key)
{
	open_level(json, key, '{');
}

void json_object_end(struct json *json)
{
	close_level(json, '}');
}

void json_array(struct json *json, const char *key)
{
	open_level(json, key, '[');
}

void json_array_end(struct json *json)
{
	close_level(json, ']');
}

void json_string(struct json *json, const char *key, const char *value)
{
	begin_value(json, key);
	if (value)
		put_string(json->file, value);
	else
		fputs("null", json->file);
}

void json_hex(struct json *json, const char *key, const uint8_t *bytes, size_t count)
{
	begin_value(json, key);
	static const char digits[] = "0123456789abcdef";
	putc('"', json->file);
	for (size_t i = 0; i < count; i++) {
		putc(digits[bytes[i] >> 4], json->file);
		putc(digits[bytes[i] & 15], json->file);
	}
	putc('"', json->file);
}

void json_uint(struct json *json, const char *key, uint64_t value)
{
	char text[20];
	size_t at = sizeof(text);
	begin_value(json, key);
	do
		text[--at] = (char)('0' + value % 10);
	while ((value /= 10) != 0);
	fwrite(text + at, 1, sizeof(text) - at, json->file);
}

void json_int(struct json *json, const char *key, int64_t value)
{
	begin_value(json, key);
	fprintf(json->file, "%" PRId64, value);
}

static void put_shortest(FILE *file, double value, int digits, int most, bool single)
{
	char text[40];
	if (!isfinite(value)) {
		fputs("null", file);
		return;
	}
	for (;; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, value);
		bool same = single ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value;
		if (same || digits >= most)
			break;
	}
	fputs(text, file);
}

void json_double(struct json *json, const char *key, double value)
{
	begin_value(json, key);
	put_shortest(json->file, value, 15, 17, false);
}

void json_float(struct json *json, const char *key, float value)
{
	begin_value(json, key);
	put_shortest(json->file, (double)value, 6, 9, true);
}

void json_bool(struct json *json, const char *key, bool value)
{
	begin_value(json, key);
	fputs(value ? "true" : "false", json->file);
}
