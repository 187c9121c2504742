#include "batch.h"

#include <stdio.h>

#include "text.h"

int batch_begin(struct batch *batch, const struct ctl_command *self)
{
	*batch = (struct batch){.self = self};
	int code = ctl_connect(self, &batch->client);
	if (code)
		return code;
	json_begin(&batch->json, stdout);
	if (ctl_globals.json)
		json_array(&batch->json, NULL);
	return CTL_OK;
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
