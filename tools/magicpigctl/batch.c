#include "batch.h"

#include <stdio.h>
#include <unistd.h>

#include "text.h"

int batch_begin(struct batch *batch, const struct ctl_command *self)
{
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code == CTL_OK)
		batch_over(batch, self, client);
	return code;
}

void batch_over(struct batch *batch, const struct ctl_command *self, mpig_client *client)
{
	*batch = (struct batch){.self = self, .client = client};
	json_begin(&batch->json, stdout);
	if (ctl_globals.json)
		json_array(&batch->json, NULL);
}

void batch_note(struct batch *batch, const char *subject, int status)
{
	if (status == MPIG_OK)
		return;
	int code = ctl_failed(batch->self, batch->client, subject, status);
	batch->first_failure = batch->first_failure ? batch->first_failure : code;
}

void batch_result(struct batch *batch, const char *name, const char *result)
{
	char shown[256];
	if (!ctl_globals.json) {
		printf("%s: %s\n", text_printable(shown, sizeof(shown), name), result);
		return;
	}
	json_object(&batch->json, NULL);
	json_string(&batch->json, "name", name);
	json_string(&batch->json, "result", result);
	json_object_end(&batch->json);
}

int batch_end(struct batch *batch)
{
	if (ctl_globals.json) {
		json_array_end(&batch->json);
		json_finish(&batch->json);
	}
	mpig_disconnect(batch->client);
	return batch->first_failure;
}

int batch_remove(const struct ctl_command *self, const struct batch_removal *removal, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"yes", no_argument, NULL, 'y'}, {NULL, 0, NULL, 0}};
	bool ask = isatty(STDIN_FILENO);
	while (ctl_option(self, argc, argv, "hy", options) != -1)
		ask = false;
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl %s` shows them)", removal->list);
	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	for (int i = optind; i < argc; i++) {
		if (ask && !removal->confirmed(batch.client, argv[i])) {
			batch_result(&batch, argv[i], "kept");
			continue;
		}
		int status = removal->remove(batch.client, argv[i]);
		batch_note(&batch, argv[i], status);
		if (status == MPIG_OK)
			batch_result(&batch, argv[i], removal->done);
		else if (ctl_globals.json)
			batch_result(&batch, argv[i], mpig_strerror(status));
	}
	return batch_end(&batch);
}
