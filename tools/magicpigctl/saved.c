// magicpigctl saved: the contexts on the daemon's disk.
#include <stdio.h>

#include "context.h"
#include "ctl.h"
#include "json.h"
#include "policy.h"
#include "text.h"

struct listing {
	struct table *table;   // NULL: JSON
	struct json_held held; // with --json
	size_t shown;
};

static int show(void *argument, const struct mpig_saved_info *info)
{
	struct listing *l = argument;
	char name[256], cell[TEXT_SHORT], mode[16];
	snprintf(mode, sizeof(mode), "%04o", info->mode);
	struct policy policy = policy_of_saved(info);
	l->shown++;
	if (!l->table) {
		json_object(&l->held.json, NULL);
		json_string(&l->held.json, "name", info->name);
		json_hex(&l->held.json, "fingerprint", info->fingerprint, sizeof(info->fingerprint));
		json_uint(&l->held.json, "committed", info->committed);
		json_uint(&l->held.json, "bytes", info->bytes);
		json_uint(&l->held.json, "saved_ns", info->saved_ns);
		json_uint(&l->held.json, "uid", info->uid);
		json_uint(&l->held.json, "gid", info->gid);
		json_string(&l->held.json, "mode", mode);
		policy_json(&l->held.json, &policy);
		json_object_end(&l->held.json);
		return 0;
	}
	table_cell(l->table, text_printable(name, sizeof(name), info->name));
	table_cell(l->table, text_count(cell, info->committed));
	table_cell(l->table, text_bytes(cell, info->bytes));
	table_cell(l->table, text_uid(cell, info->uid));
	table_cell(l->table, text_utc(cell, info->saved_ns));
	table_cell(l->table, policy_text(name, sizeof(name), &policy));
	return 0;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	static const char *const titles[] = {"NAME", ">TOKENS", ">ON DISK", "OWNER", "SAVED", "KEPT"};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	if (optind < argc)
		return ctl_usage(self, "'%s': it takes no arguments", argv[optind]);
	mpig_client *client;
	struct listing l = {0};
	int failure = ctl_connect(self, &client);
	if (failure)
		return failure;
	l.table = ctl_globals.json ? NULL : table_create(6, titles);
	int status = l.table || json_hold(&l.held) ? MPIG_OK : MPIG_ENOMEM;
	if (!l.table && !status)
		json_array(&l.held.json, NULL);
	bool held = !l.table && !status;
	status = status ? status : saved_each(client, show, &l);
	if (status)
		failure = ctl_failed(self, client, NULL, status);
	if (held) {
		json_array_end(&l.held.json);
		json_let_go(&l.held, !failure);
	} else if (!failure && !l.shown) {
		puts("nothing is saved");
	} else if (!failure) {
		table_print(l.table, stdout);
	}
	table_destroy(l.table);
	mpig_disconnect(client);
	return failure;
}

const struct ctl_command ctl_saved = {
	.name = "saved",
	.arguments = "",
	.summary = "Lists the contexts on the daemon's disk",
	.options = NULL,
	.run = run,
};
