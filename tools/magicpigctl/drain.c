// magicpigctl drain: takes a daemon out of use without breaking what it does, and back again.
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "ctl.h"
#include "json.h"

#define LOOK_MS 100

static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// Until no queue is left, `seconds` have passed or somebody ended it. Returns a status.
static int wait_for_end(mpig_client *client, unsigned long seconds, struct mpig_drain_state *state)
{
	int status = MPIG_OK;
	for (uint64_t end = now_ms() + 1000 * seconds; !status && state->drained && state->queues && now_ms() < end;) {
		nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000L}, NULL);
		status = mpig_daemon_drain(client, MPIG_DRAIN_STATE, state);
	}
	return status;
}

static void print_state(const struct mpig_drain_state *state)
{
	uint64_t others = state->clients - 1;
	if (ctl_globals.json) {
		struct json json;
		json_begin(&json, stdout);
		json_object(&json, NULL);
		json_bool(&json, "drained", state->drained);
		json_uint(&json, "clients", others);
		json_uint(&json, "queues", state->queues);
		json_object_end(&json);
		json_finish(&json);
		return;
	}
	printf("%s: %" PRIu64 " client%s with %" PRIu64 " queue%s\n", state->drained ? "drained" : "not drained", others,
	       others == 1 ? "" : "s", state->queues, state->queues == 1 ? "" : "s");
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"wait", required_argument, NULL, 'w'},
	                                        {"undo", no_argument, NULL, 'u'},
	                                        {"state", no_argument, NULL, 's'},
	                                        {NULL, 0, NULL, 0}};
	unsigned long seconds = 0;
	int what = MPIG_DRAIN_ON;
	for (int option; (option = ctl_option(self, argc, argv, "hw:us", options)) != -1;)
		switch (option) {
		case 'w':
			seconds = ctl_number(self, "--wait", optarg, 1, 86400 * 7);
			break;
		case 'u':
			what = MPIG_DRAIN_OFF;
			break;
		case 's':
			what = MPIG_DRAIN_STATE;
			break;
		}
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);
	if (seconds && what != MPIG_DRAIN_ON)
		return ctl_usage(self, "--wait goes with neither --undo nor --state");

	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	struct mpig_drain_state state = MPIG_INIT(state);
	int status = mpig_daemon_drain(client, what, &state);
	if (!status && seconds)
		status = wait_for_end(client, seconds, &state);
	if (status)
		code = ctl_failed(self, client, NULL, status);
	else
		print_state(&state);
	if (!status && seconds && !state.drained) {
		fputs("magicpigctl drain: somebody ended it meanwhile\n", stderr);
		code = CTL_FAILED;
	} else if (!status && seconds && state.queues) {
		fprintf(stderr, "magicpigctl drain: there are still queues after %lu s; `magicpigctl clients` shows whose\n",
		        seconds);
		code = CTL_FAILED;
	}
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_drain = {
	.name = "drain",
	.arguments = "",
	.summary = "Has the daemon open nothing more while it serves what is open",
	.options = "  -w, --wait SECONDS  until the last queue is gone; fails if that takes longer\n"
		   "  -u, --undo          back in use\n"
		   "  -s, --state         only tell\n",
	.run = run,
};
