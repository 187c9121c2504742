// magicpigctl verify: compares contexts with their checksums.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "ctl.h"
#include "json.h"
#include "text.h"

static void report_text(const char *name, int status, const struct mpig_verification *v)
{
	char shown[256], bytes[TEXT_SHORT];
	printf("%s: %s, %s read, %u part%s checked", text_printable(shown, sizeof(shown), name),
	       status == MPIG_OK ? "good" : "DAMAGED", text_bytes(bytes, v->bytes), v->checked, v->checked == 1 ? "" : "s");
	if (v->damaged)
		printf(", %u damaged", v->damaged);
	if (v->unchecked)
		printf(", %u without a checksum", v->unchecked);
	putchar('\n');
}

static void report_json(struct json *json, const char *name, int status, const struct mpig_verification *v)
{
	json_object(json, NULL);
	json_string(json, "name", name);
	json_bool(json, "good", status == MPIG_OK);
	json_uint(json, "bytes", v->bytes);
	json_uint(json, "checked", v->checked);
	json_uint(json, "unchecked", v->unchecked);
	json_uint(json, "damaged", v->damaged);
	json_object_end(json);
}

static int verify(const struct ctl_command *self, mpig_client *client, const char *name, struct json *json)
{
	struct mpig_verification v = MPIG_INIT(v);
	int status = mpig_context_verify(client, name, &v);
	if (status == MPIG_OK || status == MPIG_ECORRUPT) {
		if (ctl_globals.json)
			report_json(json, name, status, &v);
		else
			report_text(name, status, &v);
	}
	return status == MPIG_OK ? CTL_OK : ctl_failed(self, client, name, status);
}

struct all {
	const struct ctl_command *self;
	mpig_client *client;
	struct json *json;
	int first_failure;
};

static int verify_listed(void *argument, const struct mpig_context_info *info)
{
	struct all *all = argument;
	int code = verify(all->self, all->client, info->name, all->json);
	all->first_failure = all->first_failure || code == CTL_NOT_FOUND ? all->first_failure : code;
	return 0;
}

// Every context the caller may read; one that is dropped meanwhile is no failure.
static int verify_all(const struct ctl_command *self, mpig_client *client, struct json *json)
{
	struct all all = {.self = self, .client = client, .json = json};
	int status = context_each(client, verify_listed, &all);
	return status ? ctl_failed(self, client, NULL, status) : all.first_failure;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	mpig_client *client;
	struct json json;
	int first_failure = ctl_connect(self, &client);
	if (first_failure)
		return first_failure;
	json_begin(&json, stdout);
	if (ctl_globals.json)
		json_array(&json, NULL);
	if (optind == argc)
		first_failure = verify_all(self, client, &json);
	for (int i = optind; i < argc; i++) {
		int code = verify(self, client, argv[i], &json);
		first_failure = first_failure ? first_failure : code;
	}
	if (ctl_globals.json) {
		json_array_end(&json);
		json_finish(&json);
	}
	mpig_disconnect(client);
	return first_failure;
}

const struct ctl_command ctl_verify = {
	.name = "verify",
	.arguments = "[NAME...]",
	.summary = "Compares contexts, all or those named, with their checksums",
	.options = NULL,
	.run = run,
};
