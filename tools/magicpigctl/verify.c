// magicpigctl verify: compares contexts with their checksums.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "context.h"
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

static int verify(struct batch *batch, const char *name)
{
	struct mpig_verification v = MPIG_INIT(v);
	int status = mpig_context_verify(batch->client, name, &v);
	if (status == MPIG_OK || status == MPIG_ECORRUPT) {
		if (ctl_globals.json)
			report_json(&batch->json, name, status, &v);
		else
			report_text(name, status, &v);
	}
	return status;
}

// One that is dropped meanwhile is no failure.
static int verify_listed(void *batch, const struct mpig_context_info *info)
{
	int status = verify(batch, info->name);
	if (status != MPIG_ENOENT)
		batch_note(batch, info->name, status);
	return 0;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	if (optind == argc)
		batch_note(&batch, NULL, context_each(batch.client, verify_listed, &batch));
	for (int i = optind; i < argc; i++)
		batch_note(&batch, argv[i], verify(&batch, argv[i]));
	return batch_end(&batch);
}

const struct ctl_command ctl_verify = {
	.name = "verify",
	.arguments = "[NAME...]",
	.summary = "Compares contexts, all or those named, with their checksums",
	.options = NULL,
	.run = run,
};
