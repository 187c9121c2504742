// The control operation HEADS: what the engine has seen of each KV head, page by page.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/heads.h"
#include "daemon/index/index.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

struct heads_reply {
	struct mpig_ctl_heads page;
	struct mpig_wire_head head[MPIG_HEADS_PAGE];
};
static_assert(offsetof(struct heads_reply, head) == sizeof(struct mpig_ctl_heads), "heads follow at once");

static int check_heads(struct request *r, const struct mpig_ctl_heads *in)
{
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "HEADS: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->count || in->total || in->reserved0 || !mpig_all_zero(in->reserved, sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO, "HEADS: fields of the reply and reserved bytes must be zero in a request");
	return MPIG_OK;
}

static uint32_t best_bits(const struct layer *layer, uint32_t bits, const struct head_numbers *seen)
{
	if (!seen->samples || !bits)
		return 0;
	struct sig_use use = {.d_pad = layer->d_pad,
	                      .bits = bits,
	                      .heads = layer->shape.query_heads / layer->shape.kv_heads,
	                      .row_bytes = layer->rows.stride,
	                      .rows = (double)seen->rows,
	                      .drawn = seen->drawn,
	                      .noise = seen->noise};
	return sig_best_bits(&use);
}

static struct mpig_wire_head describe(struct context *c, uint32_t number, const struct layer *layer, uint32_t kv_head)
{
	struct head_numbers seen = heads_read(c, layer->first_strip + kv_head);
	uint32_t bits = context_strip_bits(c, layer->first_strip + kv_head);
	return (struct mpig_wire_head){
		.layer = number,
		.kv_head = kv_head,
		.signature_bits = bits ? bits : layer->wire.signature_bits,
		.signature_version = layer->wire.signature_bits ? context_signature_version(c) : 0,
		.samples = seen.samples,
		.rows = seen.rows,
		.noise = (float)seen.noise,
		.n_eff = (float)seen.n_eff,
		.mass_1 = (float)seen.mass[0],
		.mass_5 = (float)seen.mass[1],
		.drawn = (float)seen.drawn,
		.best_bits = best_bits(layer, bits, &seen),
	};
}

static void fill(struct context *c, struct heads_reply *reply)
{
	uint32_t first = reply->page.first;
	for (uint32_t i = 0; i < context_layer_count(c); i++) {
		const struct layer *layer = context_layer(c, i);
		for (uint32_t g = 0; layer && g < layer->shape.kv_heads; g++, reply->page.total++)
			if (reply->page.total >= first && reply->page.count < MPIG_HEADS_PAGE)
				reply->head[reply->page.count++] = describe(c, i, layer, g);
	}
}

int control_heads(struct peer *p, struct request *r)
{
	static const uint8_t any_fingerprint[64];
	const struct mpig_ctl_heads *in = (const void *)r->header;
	int status = check_heads(r, in);
	struct context *c;
	if (status == MPIG_OK)
		status = store_context_open(p->server->store, &p->who, in->name, any_fingerprint, &c, r->why);
	if (status != MPIG_OK)
		return status;
	struct heads_reply *reply = calloc(1, sizeof *reply);
	if (!reply) {
		context_unref(c);
		return control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	}
	memcpy(reply->page.name, in->name, sizeof reply->page.name);
	reply->page.first = in->first;
	fill(c, reply);
	context_unref(c);
	status = control_reply(p, r, reply, sizeof reply->page + reply->page.count * sizeof reply->head[0], NULL, 0);
	free(reply);
	return status;
}
