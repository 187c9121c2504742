// What commands share that say how long contexts are kept: times as people write them, and policies as they are shown.
#ifndef MAGICPIGCTL_POLICY_H
#define MAGICPIGCTL_POLICY_H

#include "ctl.h"
#include "json.h"
#include "text.h"

struct policy {
	int persist; // enum mpig_persist
	uint32_t idle_s, ttl_s;
	int ttl_erase;
	uint64_t pinned_until_ns;
};
// "90", "90s", "15min", "2h", "7d", "4w": seconds, at least 1. False: it is none, or more than 32 bits hold.
bool policy_seconds(const char *text, uint32_t *seconds);
// One of none, shutdown, idle, commit, default. False: another word.
bool policy_persist(const char *word, int *persist);
// "pinned, commit, ttl 7 d", "-" for nothing.
char *policy_text(char *out, size_t bytes, const struct policy *p);
void policy_json(struct json *json, const struct policy *p); // members of an object that is open

static inline struct policy policy_of(const struct mpig_context_info *i)
{
	return (struct policy){i->persist, i->idle_s, i->ttl_s, i->ttl_erase, i->pinned_until_ns};
}
static inline struct policy policy_of_saved(const struct mpig_saved_info *i)
{
	return (struct policy){i->persist, i->idle_s, i->ttl_s, i->ttl_erase, i->pinned_until_ns};
}

// For each name: change(client, name, argument), then how it stands, as a line or an object. Returns the exit code.
int policy_change(const struct ctl_command *self, char **names, int count,
                  int (*change)(mpig_client *client, const char *name, const void *argument), const void *argument);

#endif
