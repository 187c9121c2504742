// magicpigctl saved: the contexts on the daemon's disk.
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static void show(struct table *table, struct json *json, const struct mpig_saved_info *info)
{
	char name[256], cell[TEXT_SHORT];
	if (!table) {
		json_object(json, NULL);
		json_string(json, "name", info->name);
		json_hex(json, "fingerprint", info->fingerprint, sizeof(info->fingerprint));
		json_uint(json, "committed", info->committed);
		json_uint(json, "bytes", info->bytes);
		json_uint(json, "saved_ns", info->saved_ns);
		json_uint(json, "uid", info->uid);
		json_uint(json, "gid", info->gid);
		snprintf(cell, sizeof(cell), "%04o", info->mode);
		json_string(json, "mode", cell);
		json_object_end(json);
		return;
	}
	table_cell(table, text_printable(name, sizeof(name), info->name));
	table_cell(table, text_count(cell, info->committed));
	table_cell(table, text_bytes(cell, info->bytes));
	table_cell(table, text_uid(cell, info->uid));
	table_cell(table, text_utc(cell, info->saved_ns));
}

static int list(mpig_client *client, struct table *table, struct json *json, size_t *shown)
{
	struct mpig_saved_info page[16];
	char after[sizeof(page[0].name)] = "";
	int count;
	do {
		for (size_t i = 0; i < sizeof(page) / sizeof(page[0]); i++)
			page[i] = (struct mpig_saved_info)MPIG_INIT(page[i]);
		count = mpig_saved_list(client, after, page, sizeof(page) / sizeof(page[0]));
		for (int i = 0; i < count; i++, ++*shown)
			show(table, json, &page[i]);
		if (count > 0)
			memcpy(after, page[count - 1].name, sizeof(after));
	} while (count > 0);
	return count;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	static const char *const titles[] = {"NAME", ">TOKENS", ">ON DISK", "OWNER", "SAVED"};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	if (optind < argc)
		return ctl_usage(self, "'%s': it takes no arguments", argv[optind]);
	mpig_client *client;
	struct json json;
	size_t shown = 0;
	int failure = ctl_connect(self, &client);
	if (failure)
		return failure;
	struct table *table = ctl_globals.json ? NULL : table_create(5, titles);
	json_begin(&json, stdout);
	if (!table)
		json_array(&json, NULL);
	int status = list(client, table, &json, &shown);
	if (status < 0)
		failure = ctl_failed(self, client, NULL, status);
	if (!table) {
		json_array_end(&json);
		json_finish(&json);
	} else if (!failure && !shown) {
		puts("nothing is saved");
	} else if (!failure) {
		table_print(table, stdout);
	}
	table_destroy(table);
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
