// The control operations CONFIG_GET and CONFIGURE.
#include <stdlib.h>
#include <string.h>

#include "daemon/server/peer.h"
#include "daemon/server/reload.h"
#include "shm/status.h"
#include "shm/zero.h"

static int reply_text(struct peer *p, struct request *r, const char *text, size_t length)
{
	size_t most = MPIG_CONTROL_MAX_BYTES - sizeof(struct mpig_ctl_text_reply);
	length = length < most ? length : most;
	size_t bytes = sizeof(struct mpig_ctl_text_reply) + length;
	struct mpig_ctl_text_reply *reply = calloc(1, bytes);
	if (!reply)
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	memcpy(reply->text, text, length);
	reply->length = (uint32_t)length;
	int status = control_reply(p, r, reply, bytes, NULL, 0);
	free(reply);
	return status;
}

int control_config_get(struct peer *p, struct request *r)
{
	size_t length = options_format(&p->server->options, NULL, 0);
	char *text = malloc(length + 1);
	if (!text)
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	options_format(&p->server->options, text, length + 1);
	int status = reply_text(p, r, text, length);
	free(text);
	return status;
}

int control_configure(struct peer *p, struct request *r)
{
	const struct mpig_ctl_configure *in = (const void *)r->header;
	char changed[RELOAD_TEXT_BYTES], why[OPTIONS_WHY_BYTES];
	if (!memchr(in->assignment, 0, sizeof in->assignment) || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "CONFIGURE: assignment must end with a zero, reserved bytes must be zero");
	int status = in->assignment[0] ? server_configure(p->server, in->assignment, changed, why)
	                               : server_reload(p->server, "magicpigctl reload", changed, why);
	if (status != MPIG_OK)
		return control_fail(r, status, "%s", why);
	return reply_text(p, r, changed, strlen(changed));
}
