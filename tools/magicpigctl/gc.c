// magicpigctl gc: removes from the daemon's disk what nothing needs.
#include <stdio.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static void report(const struct mpig_gc_result *r, bool dry)
{
	char leftovers[TEXT_SHORT], orphans[TEXT_SHORT], damaged[TEXT_SHORT], bytes[TEXT_SHORT];
	struct json json;
	if (!ctl_globals.json) {
		printf("%s left by saves, %s segments no context has, %s damaged contexts: %s %s\n",
		       text_count(leftovers, r->leftovers), text_count(orphans, r->orphans), text_count(damaged, r->damaged),
		       text_bytes(bytes, r->bytes), dry ? "would be free" : "are free");
		return;
	}
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_uint(&json, "leftovers", r->leftovers);
	json_uint(&json, "orphans", r->orphans);
	json_uint(&json, "damaged", r->damaged);
	json_uint(&json, "bytes", r->bytes);
	json_bool(&json, "removed", !dry);
	json_object_end(&json);
	json_finish(&json);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"dry-run", no_argument, NULL, 'n'},
	                                        {"damaged", required_argument, NULL, 'd'},
	                                        {NULL, 0, NULL, 0}};
	bool dry = false;
	uint32_t days = MPIG_GC_NO_DAMAGED;
	for (int option; (option = ctl_option(self, argc, argv, "hnd:", options)) != -1;) {
		dry |= option == 'n';
		if (option == 'd')
			days = (uint32_t)ctl_number(self, "--damaged", optarg, 0, 100000);
	}
	if (optind < argc)
		return ctl_usage(self, "'%s': it takes no arguments", argv[optind]);
	mpig_client *client;
	int failure = ctl_connect(self, &client);
	if (failure)
		return failure;
	struct mpig_gc_result result = MPIG_INIT(result);
	int status = mpig_saved_gc(client, dry, days, &result);
	if (status == MPIG_OK)
		report(&result, dry);
	else
		failure = ctl_failed(self, client, NULL, status);
	mpig_disconnect(client);
	return failure;
}

const struct ctl_command ctl_gc = {
	.name = "gc",
	.arguments = "",
	.summary = "Removes from the daemon's disk what nothing needs",
	.options = "  -n, --dry-run       say how much that is, remove nothing\n  -d, --damaged DAYS  also damaged contexts put "
		   "aside so long ago "
		   "or longer\n",
	.run = run,
};
