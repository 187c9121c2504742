// A writer of JSON (RFC 8259): indented, always valid as long as begin and end are paired. Strings that are not UTF-8 get
// U+FFFD for each byte that does not belong; numbers JSON cannot say (NaN, infinities) become null.
#ifndef MAGICPIGCTL_JSON_H
#define MAGICPIGCTL_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_MAX_DEPTH 16

struct json {
	FILE *file;
	int depth;
	bool filled[JSON_MAX_DEPTH]; // whether this level has a value already
};

// key: NULL inside arrays and at the top.
void json_begin(struct json *json, FILE *file);
void json_finish(struct json *json); // the newline at the end
// The same into memory, for a list that is asked for page by page: one that fails half way is no list, and not an empty one. False: no memory.
struct json_held {
	struct json json;
	char *text;
	size_t bytes;
};
bool json_hold(struct json_held *held);
void json_let_go(struct json_held *held, bool write); // to stdout, with the newline, or nowhere
void json_object(struct json *json, const char *key);
void json_object_end(struct json *json);
void json_array(struct json *json, const char *key);
void json_array_end(struct json *json);
void json_string(struct json *json, const char *key, const char *value); // NULL: null
void json_hex(struct json *json, const char *key, const uint8_t *bytes, size_t count);
void json_uint(struct json *json, const char *key, uint64_t value);
void json_int(struct json *json, const char *key, int64_t value);
void json_double(struct json *json, const char *key, double value); // shortest of 15, 16 or 17 digits that reads back
void json_float(struct json *json, const char *key, float value);   // shortest of 6..9 digits that reads back
void json_bool(struct json *json, const char *key, bool value);

#endif
