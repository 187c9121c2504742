// magicpigctl clients: who is connected, and what they do.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client.h"
#include "ctl.h"
#include "json.h"
#include "text.h"

#define PAGE 64

int client_each(mpig_client *client, int (*each)(void *argument, const struct mpig_client_info *info), void *argument)
{
	struct mpig_client_info page[PAGE];
	uint64_t cursor = 0;
	for (;;) {
		page[0] = (struct mpig_client_info)MPIG_INIT(page[0]);
		int count = mpig_client_list(client, &cursor, page, PAGE), status = 0;
		for (int i = 0; i < count && !status; i++)
			status = each(argument, &page[i]);
		if (count <= 0 || status)
			return status ? status : count;
	}
}

struct clients {
	struct mpig_client_info *info;
	size_t count, room;
	bool all;
};

static int add(void *argument, const struct mpig_client_info *info)
{
	struct clients *clients = argument;
	if (info->flags & MPIG_CLIENT_INFO_SELF && !clients->all)
		return MPIG_OK;
	if (clients->count == clients->room) {
		size_t room = clients->room ? clients->room * 2 : 64;
		void *grown = reallocarray(clients->info, room, sizeof(*clients->info));
		if (!grown)
			return MPIG_ENOMEM;
		clients->info = grown;
		clients->room = room;
	}
	clients->info[clients->count++] = *info;
	return MPIG_OK;
}

static void print_json(const struct clients *clients)
{
	struct json json;
	json_begin(&json, stdout);
	json_array(&json, NULL);
	for (size_t i = clients->count; i--;) {
		const struct mpig_client_info *c = &clients->info[i];
		json_object(&json, NULL);
		json_uint(&json, "id", c->id);
		json_uint(&json, "pid", c->pid);
		json_string(&json, "command", c->command);
		json_uint(&json, "uid", c->uid);
		json_uint(&json, "gid", c->gid);
		json_uint(&json, "connected_ns", c->connected_ns);
		json_uint(&json, "queues", c->queues);
		json_uint(&json, "contexts", c->contexts);
		json_uint(&json, "leases", c->leases);
		json_uint(&json, "in_flight", c->in_flight);
		json_uint(&json, "region_bytes", c->region_bytes);
		json_bool(&json, "counted", c->flags & MPIG_CLIENT_INFO_COUNTED);
		json_uint(&json, "requests", c->requests);
		json_uint(&json, "attends", c->attends);
		json_uint(&json, "errors", c->errors);
		json_uint(&json, "rows_read", c->rows_read);
		json_uint(&json, "bytes_read", c->bytes_read);
		json_uint(&json, "appended_rows", c->appended_rows);
		json_uint(&json, "service_ns", c->service_ns);
		json_bool(&json, "self", c->flags & MPIG_CLIENT_INFO_SELF);
		json_object_end(&json);
	}
	json_array_end(&json);
	json_finish(&json);
}

static void print_table(const struct clients *clients)
{
	static const char *const titles[] = {">ID",     ">PID",      "COMMAND",    "USER",    ">QUEUES",  ">CONTEXTS",
	                                     ">LEASES", ">REQUESTS", ">ROWS READ", ">ERRORS", "CONNECTED"};
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	for (size_t i = clients->count; i--;) {
		const struct mpig_client_info *c = &clients->info[i];
		char cell[TEXT_SHORT], command[sizeof(c->command)];
		bool counted = c->flags & MPIG_CLIENT_INFO_COUNTED || !c->queues;
		snprintf(cell, sizeof(cell), "%" PRIu64, c->id);
		table_cell(table, cell);
		snprintf(cell, sizeof(cell), "%u", c->pid);
		table_cell(table, cell);
		table_cell(table, c->command[0] ? text_printable(command, sizeof(command), c->command) : "-");
		table_cell(table, text_uid(cell, c->uid));
		table_cell(table, text_count(cell, c->queues));
		table_cell(table, text_count(cell, c->contexts));
		table_cell(table, text_count(cell, c->leases));
		table_cell(table, counted ? text_count(cell, c->requests) : "-");
		table_cell(table, counted ? text_count(cell, c->rows_read) : "-");
		table_cell(table, counted ? text_count(cell, c->errors) : "-");
		table_cell(table, text_ago(cell, c->connected_ns, now_ns));
	}
	table_print(table, stdout);
	table_destroy(table);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"all", no_argument, NULL, 'a'}, {NULL, 0, NULL, 0}};
	struct clients clients = {0};
	while (ctl_option(self, argc, argv, "ha", options) != -1)
		clients.all = true;
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);

	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = client_each(client, add, &clients);
	if (status)
		code = ctl_failed(self, client, NULL, status);
	else if (ctl_globals.json)
		print_json(&clients);
	else if (clients.count)
		print_table(&clients);
	else
		puts("no clients");
	free(clients.info);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_clients = {
	.name = "clients",
	.arguments = "",
	.summary = "Lists connections: one's own; administrators see all",
	.options = "  -a, --all           this command's own connection, too\n",
	.run = run,
};
