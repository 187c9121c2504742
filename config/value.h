// One option's value: text to binary and back. Private to config/.
#ifndef MPIG_CONFIG_VALUE_H
#define MPIG_CONFIG_VALUE_H

#include <stdbool.h>
#include <stddef.h>

#define OPTION_TEXT_BYTES 256

enum option_type {
	OPTION_NAME,         // char[]: letters, digits and ._+-
	OPTION_PATH,         // char[]: absolute path or empty
	OPTION_PATH_OR_NONE, // the same, or "none"
	OPTION_SIZE,         // uint64_t bytes
	OPTION_COUNT,        // uint32_t
	OPTION_DURATION,     // uint64_t nanoseconds
	OPTION_SHARE,        // float
	OPTION_CPUS,         // cpu_set_t
	OPTION_LEVEL,        // int, enum log_level
	OPTION_BOOL,         // bool
	OPTION_MODE,         // uint32_t
	OPTION_RESTART,      // int, enum option_restart
	OPTION_VERIFY,       // int, enum option_verify
	OPTION_PERSIST,      // int, enum option_persist
	OPTION_NUMBER,       // float
	OPTION_PROPOSAL      // int, enum profile_proposal
};

struct option {
	const char *section, *key;
	enum option_type type;
	size_t offset, bytes;   // in struct options
	const char *fallback;   // default, as text
	double least, greatest; // of numbers, in the stored unit
	bool live;              // may change while the daemon runs
	const char *help;
};

// Parses into *value (untouched on failure). False: `what` (OPTION_TEXT_BYTES) says what is allowed.
bool option_parse(const struct option *option, const char *text, void *value, char *what);
void option_format(const struct option *option, const void *value, char *text, size_t bytes);
// What is allowed: "size, 0 to 1024T".
void option_describe(const struct option *option, char *text, size_t bytes);

#endif
