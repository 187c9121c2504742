// The control operation STREAM: an export or import begins; its thread and the client do the rest.
#include <string.h>
#include <unistd.h>

#include "daemon/disk/stream.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

static int check_stream(struct request *r, const struct mpig_ctl_stream *in)
{
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "STREAM: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->reserved0 || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "STREAM: reserved fields must be zero");
	if (in->way != MPIG_STREAM_EXPORT && in->way != MPIG_STREAM_IMPORT)
		return control_fail(r, MPIG_EPROTO, "STREAM: way %u is not known", in->way);
	return MPIG_OK;
}

int control_stream(struct peer *p, struct request *r)
{
	const struct mpig_ctl_stream *in = (const void *)r->header;
	struct server *s = p->server;
	struct image *image = NULL;
	int fd = -1, status = check_stream(r, in);
	bool out = in->way == MPIG_STREAM_EXPORT;
	if (status == MPIG_OK && out)
		status = image_take(s->store, &p->who, in->name, ACCESS_READ, &image, r->why);
	if (status != MPIG_OK)
		return status;
	status = out ? streams_export(s->streams, &p->who, image, &fd, r->why)
	             : streams_import(s->streams, &p->who, in->name, &fd, r->why);
	if (status != MPIG_OK) {
		image_release(image);
		return status;
	}
	struct mpig_ctl_stream reply = {.way = in->way};
	memcpy(reply.name, in->name, sizeof reply.name);
	status = control_reply(p, r, &reply, sizeof reply, &fd, 1);
	close(fd); // the client has it now, or nobody
	return status;
}
