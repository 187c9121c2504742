// magicpigctl kill-client: ends connections. Contexts stay, leases and queues are given back.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "batch.h"
#include "client.h"

#define MAX_VICTIMS 1024

struct victims {
	uint32_t pid;
	uint64_t id[MAX_VICTIMS];
	size_t count;
};

static int of_process(void *argument, const struct mpig_client_info *info)
{
	struct victims *victims = argument;
	if (info->pid == victims->pid && !(info->flags & MPIG_CLIENT_INFO_SELF) && victims->count < MAX_VICTIMS)
		victims->id[victims->count++] = info->id;
	return MPIG_OK;
}

static void kill_all(struct batch *batch, const struct victims *victims)
{
	for (size_t i = 0; i < victims->count; i++) {
		int status = mpig_client_kill(batch->client, victims->id[i]);
		batch_note(batch, NULL, status);
		if (status == MPIG_OK && ctl_globals.json)
			json_uint(&batch->json, NULL, victims->id[i]);
		else if (status == MPIG_OK)
			printf("client %" PRIu64 " ended\n", victims->id[i]);
	}
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"pid", required_argument, NULL, 'p'}, {NULL, 0, NULL, 0}};
	static struct victims victims;
	while (ctl_option(self, argc, argv, "hp:", options) != -1)
		victims.pid = (uint32_t)ctl_number(self, "--pid", optarg, 1, INT32_MAX);
	if (!victims.pid && optind == argc)
		return ctl_usage(self, "which client? Give an id or more (`magicpigctl clients` shows them), or --pid");
	if (victims.pid && optind < argc)
		return ctl_usage(self, "either --pid or ids, not both");
	if (argc - optind > MAX_VICTIMS)
		return ctl_usage(self, "at most %d ids", MAX_VICTIMS);
	for (int i = optind; i < argc; i++)
		victims.id[victims.count++] = ctl_number(self, "ID", argv[i], 1, UINT64_MAX);

	struct batch batch;
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = victims.pid ? client_each(client, of_process, &victims) : MPIG_OK;
	if (status) { // not "none": nobody knows
		code = ctl_failed(self, client, NULL, status);
		mpig_disconnect(client);
		return code;
	}
	batch_over(&batch, self, client);
	if (!victims.count) {
		fprintf(stderr, "magicpigctl kill-client: no client with pid %u\n", victims.pid);
		batch.first_failure = CTL_NOT_FOUND;
	}
	kill_all(&batch, &victims);
	return batch_end(&batch);
}

const struct ctl_command ctl_kill_client = {
	.name = "kill-client",
	.arguments = "ID...",
	.summary = "Ends connections: queues and leases are given back, contexts stay",
	.options = "  -p, --pid PID       all connections of that process, instead of ids\n",
	.run = run,
};
