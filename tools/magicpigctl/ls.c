// magicpigctl ls: the contexts the caller may read.
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "context.h"
#include "ctl.h"
#include "policy.h"
#include "text.h"

struct contexts {
	struct mpig_context_info *info;
	size_t count, room;
};

static bool wanted(const char *name, char **patterns, int count)
{
	for (int i = 0; i < count; i++)
		if (fnmatch(patterns[i], name, 0) == 0)
			return true;
	return count == 0;
}

static int add(struct contexts *contexts, const struct mpig_context_info *info)
{
	if (contexts->count == contexts->room) {
		size_t room = contexts->room ? contexts->room * 2 : 64;
		void *grown = reallocarray(contexts->info, room, sizeof(*contexts->info));
		if (!grown)
			return MPIG_ENOMEM;
		contexts->info = grown;
		contexts->room = room;
	}
	contexts->info[contexts->count++] = *info;
	return MPIG_OK;
}

struct search {
	char **patterns;
	int count;
	struct contexts *found;
};

static int consider(void *argument, const struct mpig_context_info *info)
{
	const struct search *search = argument;
	return wanted(info->name, search->patterns, search->count) ? add(search->found, info) : MPIG_OK;
}

static int by_name(const void *a, const void *b)
{
	const struct mpig_context_info *x = a, *y = b;
	return strcmp(x->name, y->name);
}

static void print_json(const struct contexts *contexts)
{
	struct json json;
	json_begin(&json, stdout);
	json_array(&json, NULL);
	for (size_t i = 0; i < contexts->count; i++) {
		json_object(&json, NULL);
		context_json(&json, &contexts->info[i]);
		json_object_end(&json);
	}
	json_array_end(&json);
	json_finish(&json);
}

static void print_table(const struct contexts *contexts)
{
	static const char *const titles[] = {"NAME",    "OWNER", "MODE",    ">TOKENS", ">ROWS", ">INDEX",
	                                     ">LAYERS", "OPEN",  "CREATED", "USED",    "KEPT"};
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	for (size_t i = 0; i < contexts->count; i++) {
		const struct mpig_context_info *info = &contexts->info[i];
		char text[sizeof(info->name)], cell[TEXT_SHORT];
		table_cell(table, text_printable(text, sizeof(text), info->name));
		table_cell(table, text_uid(cell, info->uid));
		snprintf(cell, sizeof(cell), "%04o", info->mode);
		table_cell(table, cell);
		table_cell(table, text_count(cell, info->committed));
		table_cell(table, text_bytes(cell, info->rows_bytes));
		table_cell(table, text_bytes(cell, info->index_bytes));
		snprintf(cell, sizeof(cell), "%u", info->layer_count);
		table_cell(table, cell);
		snprintf(cell, sizeof(cell), "%u%s", info->readers, info->writer_pid ? "+w" : "");
		table_cell(table, info->flags & MPIG_CONTEXT_QUARANTINED ? "damaged"
		                  : info->readers || info->writer_pid    ? cell
		                                                         : "-");
		table_cell(table, text_ago(cell, info->created_ns, now_ns));
		table_cell(table, text_ago(cell, info->used_ns, now_ns));
		struct policy policy = policy_of(info);
		table_cell(table, policy_text(text, sizeof(text), &policy));
	}
	table_print(table, stdout);
	table_destroy(table);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"names", no_argument, NULL, '1'}, {NULL, 0, NULL, 0}};
	bool names_only = false;
	while (ctl_option(self, argc, argv, "h1", options) != -1)
		names_only = true;

	mpig_client *client;
	struct contexts contexts = {0};
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	struct search search = {argv + optind, argc - optind, &contexts};
	int status = context_each(client, consider, &search);
	if (status) {
		code = ctl_failed(self, client, NULL, status);
		goto close;
	}
	if (contexts.count)
		qsort(contexts.info, contexts.count, sizeof(*contexts.info), by_name);
	if (ctl_globals.json)
		print_json(&contexts);
	else if (names_only)
		for (size_t i = 0; i < contexts.count; i++)
			puts(contexts.info[i].name);
	else if (contexts.count)
		print_table(&contexts);
	else
		puts("no contexts");
close:
	free(contexts.info);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_ls = {
	.name = "ls",
	.arguments = "[PATTERN...]",
	.summary = "Lists contexts, all or those whose names match",
	.options = "  -1, --names         names only, one a line\n",
	.run = run,
};
