#include "config/overrides.h"

#include <stdio.h>
#include <string.h>

#include "config/value.h"

// Types and limits as in the table of options; 0 is no limit for all of them.
static const struct option keys[OVERRIDE_KEYS] = {
	[OVERRIDE_BYTES] = {.key = "bytes", .type = OPTION_SIZE, .greatest = (double)(UINT64_C(1) << 50)},
	[OVERRIDE_CONTEXTS] = {.key = "contexts", .type = OPTION_COUNT, .greatest = 1e9},
	[OVERRIDE_CLIENTS] = {.key = "clients", .type = OPTION_COUNT, .greatest = 1024},
	[OVERRIDE_QUEUES] = {.key = "queues", .type = OPTION_COUNT, .greatest = 1024},
	[OVERRIDE_REQUESTS] = {.key = "requests", .type = OPTION_COUNT, .greatest = 1e9},
};
static const char user[] = "limits user ", group[] = "limits group ";

static const char *name_in(const char *section, bool *is_group)
{
	*is_group = strncmp(section, group, sizeof group - 1) == 0;
	if (*is_group)
		return section + sizeof group - 1;
	return strncmp(section, user, sizeof user - 1) == 0 ? section + sizeof user - 1 : NULL;
}

bool override_section(const char *section)
{
	bool is_group;
	return name_in(section, &is_group) != NULL;
}

static bool name_allowed(const char *name)
{
	size_t n = strlen(name);
	return n > 0 && n < OVERRIDE_NAME_BYTES &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-$") == n;
}

static struct override *find(struct overrides *all, bool is_group, const char *name)
{
	for (uint32_t i = 0; i < all->count; i++)
		if (all->of[i].group == is_group && strcmp(all->of[i].name, name) == 0)
			return &all->of[i];
	return NULL;
}

bool override_set(struct overrides *all, const char *section, const char *key, const char *value, char *what, size_t bytes)
{
	bool is_group;
	const char *name = name_in(section, &is_group);
	int k = 0;
	if (!name_allowed(name)) {
		snprintf(what, bytes, "'%.40s' is no name of a user or group; allowed: at most %u letters, digits, . _ -", name,
		         OVERRIDE_NAME_BYTES - 1);
		return false;
	}
	while (k < OVERRIDE_KEYS && strcmp(keys[k].key, key) != 0)
		k++;
	if (k == OVERRIDE_KEYS) {
		snprintf(what, bytes, "unknown key '%.64s' in [%s]; allowed: bytes, contexts, clients, queues, requests", key,
		         section);
		return false;
	}
	uint64_t number = 0;
	uint32_t count = 0;
	bool size = keys[k].type == OPTION_SIZE;
	char allowed[OPTION_TEXT_BYTES];
	if (!option_parse(&keys[k], value, size ? (void *)&number : &count, allowed)) {
		snprintf(what, bytes, "%s.%s = %.64s: %s", section, key, value, allowed);
		return false;
	}
	struct override *o = find(all, is_group, name);
	if (!o && all->count == OVERRIDES) {
		snprintf(what, bytes, "more than %u sections of users and groups", OVERRIDES);
		return false;
	}
	if (!o) {
		o = &all->of[all->count++];
		*o = (struct override){.group = is_group};
		memcpy(o->name, name, strlen(name));
	}
	o->value[k] = size ? number : count;
	o->set |= (uint8_t)(1u << k);
	return true;
}

bool override_view(const struct overrides *all, size_t index, char *name, size_t name_bytes, char *value, size_t value_bytes)
{
	for (uint32_t i = 0; i < all->count; i++)
		for (int k = 0; k < OVERRIDE_KEYS; k++) {
			const struct override *o = &all->of[i];
			if (!(o->set & 1u << k) || index-- > 0)
				continue;
			uint32_t count = (uint32_t)o->value[k];
			snprintf(name, name_bytes, "%s%s.%s", o->group ? group : user, o->name, keys[k].key);
			option_format(&keys[k], keys[k].type == OPTION_SIZE ? (const void *)&o->value[k] : &count, value,
			              value_bytes);
			return true;
		}
	return false;
}
