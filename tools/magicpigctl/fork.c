// magicpigctl fork: another context over the same tokens, up to one of them; nothing is copied.
#include <inttypes.h>
#include <stdio.h>

#include "context.h"
#include "ctl.h"
#include "json.h"
#include "text.h"

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"tokens", required_argument, NULL, 't'}, {NULL, 0, NULL, 0}};
	uint64_t tokens = UINT64_MAX;
	while (ctl_option(self, argc, argv, "ht:", options) != -1)
		tokens = ctl_number(self, "--tokens", optarg, 0, UINT64_C(1) << 31);
	if (argc - optind != 2)
		return ctl_usage(self, "give the context and the new name");
	const char *name = argv[optind], *new_name = argv[optind + 1];

	mpig_client *client;
	mpig_context *parent, *child;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	struct mpig_open_options open = MPIG_INIT(open);
	int status = mpig_context_open(client, name, &open, &parent);
	if (!status)
		status = mpig_context_fork(parent, new_name, tokens == UINT64_MAX ? mpig_context_committed(parent) : tokens,
		                           &child);
	struct mpig_context_info info = MPIG_INIT(info);
	if (!status)
		mpig_context_close(child); // its lease: somebody else is to write
	if (!status)
		status = mpig_context_info(client, new_name, &info);
	if (status) {
		code = ctl_failed(self, client, name, status);
	} else if (ctl_globals.json) {
		struct json json;
		json_begin(&json, stdout);
		json_object(&json, NULL);
		context_json(&json, &info);
		json_object_end(&json);
		json_finish(&json);
	} else {
		char count[TEXT_SHORT], shown[sizeof(info.name)];
		printf("%s: %s tokens\n", text_printable(shown, sizeof(shown), info.name), text_count(count, info.committed));
	}
	mpig_disconnect(client); // its handles too
	return code;
}

const struct ctl_command ctl_fork = {
	.name = "fork",
	.arguments = "NAME NEW-NAME",
	.summary = "Makes a context over another's tokens; nothing is copied",
	.options = "  -t, --tokens N      the first N only (default: all that are committed)\n",
	.run = run,
};
