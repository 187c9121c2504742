// magicpigctl quota: what users hold of the daemon, and may hold.
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "context.h"
#include "ctl.h"
#include "json.h"
#include "text.h"

#define MAX_UIDS 4096

struct uids {
	uint32_t uid[MAX_UIDS];
	size_t count;
};

static void add(struct uids *uids, uint32_t uid)
{
	for (size_t i = 0; i < uids->count; i++)
		if (uids->uid[i] == uid)
			return;
	if (uids->count < MAX_UIDS)
		uids->uid[uids->count++] = uid;
}

static int add_owner(void *argument, const struct mpig_context_info *info)
{
	add(argument, info->uid);
	return MPIG_OK;
}

static int add_client(void *argument, const struct mpig_client_info *info)
{
	add(argument, info->uid);
	return MPIG_OK;
}

static int by_number(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

// A user's name, or a number. Ends the process if it is neither.
static uint32_t user(const struct ctl_command *self, const char *text)
{
	const struct passwd *entry = getpwnam(text);
	if (entry)
		return entry->pw_uid;
	char *end;
	unsigned long uid = strtoul(text, &end, 10);
	if (end == text || *end || text[0] == '-' || uid >= UINT32_MAX)
		exit(ctl_usage(self, "'%s' is neither a user's name nor a uid", text));
	return (uint32_t)uid;
}

static void pair_json(struct json *json, const char *name, uint64_t held, uint64_t limit)
{
	char key[32];
	json_uint(json, name, held);
	snprintf(key, sizeof(key), "%s_limit", name);
	json_uint(json, key, limit);
}

static void quota_json(struct json *json, const struct mpig_quota *q)
{
	json_object(json, NULL);
	json_uint(json, "uid", q->uid);
	pair_json(json, "bytes", q->bytes, q->bytes_limit);
	pair_json(json, "contexts", q->contexts, q->contexts_limit);
	pair_json(json, "clients", q->clients, q->clients_limit);
	pair_json(json, "queues", q->queues, q->queues_limit);
	pair_json(json, "region_bytes", q->region_bytes, q->region_bytes_limit);
	json_object_end(json);
}

static void pair_cell(struct table *table, char *(*text)(char *, uint64_t), uint64_t held, uint64_t limit)
{
	char a[TEXT_SHORT], b[TEXT_SHORT], cell[2 * TEXT_SHORT + 8];
	if (limit)
		snprintf(cell, sizeof(cell), "%s of %s", text(a, held), text(b, limit));
	else
		snprintf(cell, sizeof(cell), "%s", text(a, held));
	table_cell(table, cell);
}

static void quota_row(struct table *table, const struct mpig_quota *q)
{
	char cell[TEXT_SHORT];
	table_cell(table, text_uid(cell, q->uid));
	pair_cell(table, text_bytes, q->bytes, q->bytes_limit);
	pair_cell(table, text_count, q->contexts, q->contexts_limit);
	pair_cell(table, text_count, q->clients, q->clients_limit);
	pair_cell(table, text_count, q->queues, q->queues_limit);
	pair_cell(table, text_bytes, q->region_bytes, q->region_bytes_limit);
}

static int show(const struct ctl_command *self, mpig_client *client, const struct uids *uids)
{
	static const char *const titles[] = {"USER", ">MEMORY", ">CONTEXTS", ">CLIENTS", ">QUEUES", ">QUEUE MEMORY"};
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	struct json json;
	int first_failure = CTL_OK;
	json_begin(&json, stdout);
	if (ctl_globals.json)
		json_array(&json, NULL);
	for (size_t i = 0; i < uids->count; i++) {
		struct mpig_quota quota = MPIG_INIT(quota);
		int status = mpig_quota_get(client, uids->uid[i], &quota);
		if (status) {
			int code = ctl_failed(self, client, NULL, status);
			first_failure = first_failure ? first_failure : code;
		} else if (ctl_globals.json) {
			quota_json(&json, &quota);
		} else {
			quota_row(table, &quota);
		}
	}
	if (ctl_globals.json) {
		json_array_end(&json);
		json_finish(&json);
	} else if (!first_failure || uids->count > 1) {
		table_print(table, stdout);
	}
	table_destroy(table);
	return first_failure;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"all", no_argument, NULL, 'a'}, {NULL, 0, NULL, 0}};
	static struct uids uids;
	bool all = false;
	while (ctl_option(self, argc, argv, "ha", options) != -1)
		all = true;
	if (all && optind < argc)
		return ctl_usage(self, "either --all or users, not both");
	for (int i = optind; i < argc; i++)
		add(&uids, user(self, argv[i]));

	mpig_client *client;
	int code = ctl_connect(self, &client), status = MPIG_OK;
	if (code)
		return code;
	if (!all && !uids.count)
		add(&uids, UINT32_MAX); // the caller
	if (all)
		status = client_each(client, add_client, &uids);
	if (all && !status)
		status = context_each(client, add_owner, &uids);
	if (all)
		qsort(uids.uid, uids.count, sizeof(uids.uid[0]), by_number);
	code = status ? ctl_failed(self, client, NULL, status) : show(self, client, &uids);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_quota = {
	.name = "quota",
	.arguments = "[USER...]",
	.summary = "Tells what users hold and may hold: oneself, or those named",
	.options = "  -a, --all           every user who is connected or owns a context, as far as the caller sees them\n",
	.run = run,
};
