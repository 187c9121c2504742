// magicpigctl quota: what users and groups hold of the daemon, and may hold; and setting that.
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "client.h"
#include "config.h"
#include "context.h"
#include "ctl.h"
#include "text.h"

#define MAX_HOLDERS 8192

struct holders {
	struct holder {
		uint32_t group, number; // users first, by number
	} of[MAX_HOLDERS];
	size_t count;
};

static void add(struct holders *holders, uint32_t group, uint32_t number)
{
	for (size_t i = 0; i < holders->count; i++)
		if (holders->of[i].group == group && holders->of[i].number == number)
			return;
	if (holders->count < MAX_HOLDERS)
		holders->of[holders->count++] = (struct holder){group, number};
}

static int add_owner(void *argument, const struct mpig_context_info *info)
{
	add(argument, 0, info->uid);
	add(argument, 1, info->gid);
	return MPIG_OK;
}

static int add_client(void *argument, const struct mpig_client_info *info)
{
	add(argument, 0, info->uid);
	add(argument, 1, info->gid);
	return MPIG_OK;
}

static int by_number(const void *a, const void *b)
{
	const struct holder *x = a, *y = b;
	if (x->group != y->group)
		return x->group > y->group ? 1 : -1;
	return (x->number > y->number) - (x->number < y->number);
}

// A name, or a number. Ends the process if it is neither.
static uint32_t number_of(const struct ctl_command *self, const char *text, bool group)
{
	const struct passwd *user = group ? NULL : getpwnam(text);
	const struct group *entry = group ? getgrnam(text) : NULL;
	if (user || entry)
		return user ? user->pw_uid : entry->gr_gid;
	char *end;
	unsigned long number = strtoul(text, &end, 10);
	if (end == text || *end || text[0] == '-' || number >= UINT32_MAX)
		exit(ctl_usage(self, "'%s' is neither a %s's name nor a %s", text, group ? "group" : "user",
		               group ? "gid" : "uid"));
	return (uint32_t)number;
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
	json_uint(json, q->group ? "gid" : "uid", q->uid);
	pair_json(json, "bytes", q->bytes, q->bytes_limit);
	pair_json(json, "contexts", q->contexts, q->contexts_limit);
	pair_json(json, "clients", q->clients, q->clients_limit);
	pair_json(json, "queues", q->queues, q->queues_limit);
	pair_json(json, "region_bytes", q->region_bytes, q->region_bytes_limit);
	json_uint(json, "requests_limit", q->requests_limit);
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
	char name[TEXT_SHORT], cell[TEXT_SHORT + 8];
	snprintf(cell, sizeof(cell), "%s %s", q->group ? "group" : "user",
	         q->group ? text_gid(name, q->uid) : text_uid(name, q->uid));
	table_cell(table, cell);
	pair_cell(table, text_bytes, q->bytes, q->bytes_limit);
	pair_cell(table, text_count, q->contexts, q->contexts_limit);
	pair_cell(table, text_count, q->clients, q->clients_limit);
	pair_cell(table, text_count, q->queues, q->queues_limit);
	pair_cell(table, text_bytes, q->region_bytes, q->region_bytes_limit);
	table_cell(table, q->requests_limit ? text_count(name, q->requests_limit) : "-");
}

static int show(struct batch *batch, const struct holders *holders)
{
	static const char *const titles[] = {"HOLDER",  ">MEMORY",       ">CONTEXTS",          ">CLIENTS",
	                                     ">QUEUES", ">QUEUE MEMORY", ">REQUESTS/S AT MOST"};
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	size_t shown = 0;
	for (size_t i = 0; i < holders->count; i++) {
		struct mpig_quota quota = MPIG_INIT(quota);
		const struct holder *h = &holders->of[i];
		int status = h->group ? mpig_quota_get_group(batch->client, h->number, &quota)
		                      : mpig_quota_get(batch->client, h->number, &quota);
		batch_note(batch, NULL, status);
		if (status)
			continue;
		shown++;
		if (ctl_globals.json)
			quota_json(&batch->json, &quota);
		else
			quota_row(table, &quota);
	}
	if (shown && !ctl_globals.json)
		table_print(table, stdout);
	table_destroy(table);
	return batch_end(batch);
}

// ---- set -------------------------------------------------------------------------------------------------------------
// The same as `config set "limits user NAME.KEY=VALUE"`, one after the other; stops at the first that is refused.
static int set(const struct ctl_command *self, char **argument, int count)
{
	char assignment[256], text[4096], changes[8192] = "";
	bool group = count > 0 && strcmp(argument[0], "group") == 0;
	if (count < 3 || (!group && strcmp(argument[0], "user") != 0))
		return ctl_usage(self, "set user|group NAME KEY=VALUE..., with bytes, contexts, clients, queues, requests");
	(void)number_of(self, argument[1], group);
	for (int i = 2; i < count; i++)
		if (!strchr(argument[i], '='))
			return ctl_usage(self, "set: '%s' is not KEY=VALUE", argument[i]);
	mpig_client *client;
	int code = ctl_connect(self, &client), status = MPIG_OK;
	if (code)
		return code;
	for (int i = 2; i < count && status >= 0; i++) {
		int n = snprintf(assignment, sizeof(assignment), "limits %s %s.%s", argument[0], argument[1], argument[i]);
		status = n < 0 || (size_t)n >= sizeof(assignment) ? MPIG_EINVAL
		                                                  : mpig_daemon_configure(client, assignment, text, sizeof(text));
		if (status >= 0)
			strncat(changes, text, sizeof(changes) - strlen(changes) - 1);
	}
	if (status < 0)
		code = ctl_failed(self, client, NULL, status);
	if (*changes || !code)
		(void)config_print_changes(changes);
	if (!code && !ctl_globals.json) {
		printf("until the next reload or restart; for good, in the daemon's configuration file:\n[limits %s %s]\n",
		       argument[0], argument[1]);
		for (int i = 2; i < count; i++)
			printf("%.*s = %s\n", (int)strcspn(argument[i], "="), argument[i], strchr(argument[i], '=') + 1);
	}
	mpig_disconnect(client);
	return code;
}

// ---- the command -----------------------------------------------------------------------------------------------------
static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {
		CTL_GLOBAL_OPTIONS, {"all", no_argument, NULL, 'a'}, {"group", required_argument, NULL, 'g'}, {NULL, 0, NULL, 0}};
	static struct holders holders;
	bool all = false;
	for (int option; (option = ctl_option(self, argc, argv, "hag:", options)) != -1;)
		if (option == 'a')
			all = true;
		else
			add(&holders, 1, number_of(self, optarg, true));
	if (optind < argc && strcmp(argv[optind], "set") == 0) {
		if (all || holders.count)
			return ctl_usage(self, "set takes no options: set user|group NAME KEY=VALUE...");
		return set(self, argv + optind + 1, argc - optind - 1);
	}
	if (all && (optind < argc || holders.count))
		return ctl_usage(self, "either --all or users and groups, not both");
	for (int i = optind; i < argc; i++)
		add(&holders, 0, number_of(self, argv[i], false));

	mpig_client *client;
	int code = ctl_connect(self, &client), status = MPIG_OK;
	if (code)
		return code;
	if (!all && !holders.count) { // the caller
		add(&holders, 0, UINT32_MAX);
		add(&holders, 1, UINT32_MAX);
	}
	if (all)
		status = client_each(client, add_client, &holders);
	if (all && !status)
		status = context_each(client, add_owner, &holders);
	qsort(holders.of, holders.count, sizeof(holders.of[0]), by_number);
	if (status) {
		code = ctl_failed(self, client, NULL, status);
		mpig_disconnect(client);
		return code;
	}
	struct batch batch;
	batch_over(&batch, self, client);
	return show(&batch, &holders);
}

const struct ctl_command ctl_quota = {
	.name = "quota",
	.arguments = "[USER...] | set user|group NAME KEY=VALUE...",
	.summary = "Tells what users and groups hold and may hold: oneself, or those named; sets what they may",
	.options =
		"  set user|group NAME KEY=VALUE...   limits of its own for a user or a group, until the next reload or restart\n"
		"                      (administrators): bytes, contexts, clients, queues, requests (a second); 0: no limit\n"
		"  -g, --group GROUP   a group: what its members hold together\n"
		"  -a, --all           every user and group that is connected or has a context, as far as the caller sees them\n",
	.run = run,
};
