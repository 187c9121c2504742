// Limits of one user or one group that differ from those for all: sections [limits user NAME] and [limits group NAME], where NAME is
// a name or a number. Private to config/, but for the struct.
#ifndef MPIG_CONFIG_OVERRIDES_H
#define MPIG_CONFIG_OVERRIDES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OVERRIDES 64u
#define OVERRIDE_NAME_BYTES 33u

enum override_key { OVERRIDE_BYTES, OVERRIDE_CONTEXTS, OVERRIDE_CLIENTS, OVERRIDE_QUEUES, OVERRIDE_REQUESTS, OVERRIDE_KEYS };
struct override {
	bool group;
	char name[OVERRIDE_NAME_BYTES];
	uint8_t set;                   // bit enum override_key: given; else what holds for all holds here
	uint64_t value[OVERRIDE_KEYS]; // 0: no limit
};
struct overrides {
	struct override of[OVERRIDES];
	uint32_t count;
};

// Whether a section's name is that of such a section.
bool override_section(const char *section);
// One key of one. False: see `what` (of `bytes`).
bool override_set(struct overrides *all, const char *section, const char *key, const char *value, char *what, size_t bytes);
// "limits user alice.bytes" and its value as text. False behind the last that is given.
bool override_view(const struct overrides *all, size_t index, char *name, size_t name_bytes, char *value, size_t value_bytes);

#endif
