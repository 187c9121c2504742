#include "policy.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "batch.h"

#define NS UINT64_C(1000000000)

static const char *const persists[] = {"default", "none", "shutdown", "idle", "commit"};

static const struct {
	const char *unit;
	uint32_t seconds;
} units[] = {{"w", 7 * 86400}, {"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}, {"", 1}};

bool policy_seconds(const char *text, uint32_t *seconds)
{
	char *end;
	errno = 0;
	unsigned long long n = isdigit((unsigned char)*text) ? strtoull(text, &end, 10) : 0;
	for (size_t i = 0; n && !errno && i < sizeof(units) / sizeof(units[0]); i++) {
		if (strcmp(end, units[i].unit) != 0)
			continue;
		*seconds = (uint32_t)(n <= UINT32_MAX / units[i].seconds ? n * units[i].seconds : 0);
		return *seconds != 0;
	}
	return false;
}

// In the largest unit that needs no fraction, as it was probably given.
static char *whole(char out[TEXT_SHORT], uint32_t seconds)
{
	size_t i = 1; // nobody asked for weeks
	while (seconds % units[i].seconds)
		i++;
	snprintf(out, TEXT_SHORT, "%u %s", seconds / units[i].seconds, units[i].unit);
	return out;
}

bool policy_persist(const char *word, int *persist)
{
	for (int i = 0; i <= MPIG_PERSIST_COMMIT; i++)
		if (strcmp(word, persists[i]) == 0) {
			*persist = i;
			return true;
		}
	return false;
}

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec;
}

char *policy_text(char *out, size_t bytes, const struct policy *p)
{
	char part[3][TEXT_SHORT + 32] = {"", "", ""}, time[TEXT_SHORT];
	uint64_t now = now_ns();
	if (p->pinned_until_ns == UINT64_MAX)
		snprintf(part[0], sizeof(part[0]), "pinned");
	else if (p->pinned_until_ns > now)
		snprintf(part[0], sizeof(part[0]), "pinned for %s", text_duration(time, p->pinned_until_ns - now));
	if (p->persist == MPIG_PERSIST_IDLE && p->idle_s)
		snprintf(part[1], sizeof(part[1]), "idle %s", whole(time, p->idle_s));
	else if (p->persist > 0 && p->persist <= MPIG_PERSIST_COMMIT)
		snprintf(part[1], sizeof(part[1]), "%s", p->persist == MPIG_PERSIST_NONE ? "not saved" : persists[p->persist]);
	if (p->ttl_s)
		snprintf(part[2], sizeof(part[2]), "ttl %s%s", whole(time, p->ttl_s), p->ttl_erase ? ", then erased" : "");
	size_t used = 0;
	snprintf(out, bytes, "-");
	for (size_t i = 0; i < 3; i++)
		if (*part[i] && used < bytes)
			used += (size_t)snprintf(out + used, bytes - used, "%s%s", used ? ", " : "", part[i]);
	return out;
}

void policy_json(struct json *json, const struct policy *p)
{
	bool known = p->persist >= 0 && p->persist <= MPIG_PERSIST_COMMIT;
	json_string(json, "persist", known ? persists[p->persist] : "unknown");
	json_uint(json, "idle_s", p->idle_s);
	json_uint(json, "ttl_s", p->ttl_s);
	json_bool(json, "ttl_erase", p->ttl_erase);
	json_uint(json, "pinned_until_ns", p->pinned_until_ns);
}

static int change_one(mpig_client *client, struct json *json, const char *name,
                      int (*change)(mpig_client *client, const char *name, const void *argument), const void *argument)
{
	struct mpig_context_info info = MPIG_INIT(info);
	char shown[256], text[256];
	int status = change(client, name, argument);
	if (status == MPIG_OK)
		status = mpig_context_info(client, name, &info);
	if (status != MPIG_OK)
		return status;
	struct policy p = policy_of(&info);
	if (!ctl_globals.json) {
		printf("%s: %s\n", text_printable(shown, sizeof(shown), name), policy_text(text, sizeof(text), &p));
		return MPIG_OK;
	}
	json_object(json, NULL);
	json_string(json, "name", name);
	policy_json(json, &p);
	json_object_end(json);
	return MPIG_OK;
}

int policy_change(const struct ctl_command *self, char **names, int count,
                  int (*change)(mpig_client *client, const char *name, const void *argument), const void *argument)
{
	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	for (int i = 0; i < count; i++)
		batch_note(&batch, names[i], change_one(batch.client, &batch.json, names[i], change, argument));
	return batch_end(&batch);
}
