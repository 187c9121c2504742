// The control operation SIGNATURE: what a client needs to compute the signatures of a layer's queries itself, page by page.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/index/index.h"
#include "daemon/server/peer.h"
#include "shm/status.h"
#include "shm/zero.h"

struct signature_reply {
	struct mpig_ctl_signature page;
	float balance[MPIG_SIGNATURE_PAGE * SIG_MAX_DIM];
};
static_assert(offsetof(struct signature_reply, balance) == sizeof(struct mpig_ctl_signature), "balances follow at once");

static int check_signature(struct request *r, const struct mpig_ctl_signature *in)
{
	static_assert(offsetof(struct mpig_ctl_signature, reserved) ==
	                      offsetof(struct mpig_ctl_signature, signs) + sizeof(in->signs),
	              "compared as one");
	if (!memchr(in->name, 0, sizeof in->name))
		return control_fail(r, MPIG_EPROTO, "SIGNATURE: name must end with a zero within %u bytes", MPIG_NAME_BYTES);
	if (in->count || in->kv_heads || in->version || in->bits || in->d_k || in->d_pad ||
	    !mpig_all_zero(in->signs, sizeof in->signs + sizeof in->reserved))
		return control_fail(r, MPIG_EPROTO,
		                    "SIGNATURE: fields of the reply and reserved bytes must be zero in a request");
	return MPIG_OK;
}

static void fill_signs(const struct context *c, uint32_t d_pad, uint8_t *bits)
{
	float signs[3 * SIG_MAX_DIM];
	sig_signs(context_seed(c), 0, 0, d_pad, signs);
	for (uint32_t j = 0; j < 3 * d_pad; j++)
		if (signs[j] < 0)
			bits[j / 8] |= (uint8_t)(1u << j % 8);
}

// The version and the balances are read together, from one view.
static int fill_balances(struct peer *p, struct request *r, struct context *c, const struct layer *layer, uint32_t number,
                         struct signature_reply *reply)
{
	struct layer_view view;
	int status = layer_view_get(p->server->store, c, number, 0, 0, &view);
	if (status != MPIG_OK)
		return control_fail(r, status, "SIGNATURE: layer %u: %s", number, mpig_status_text(status));
	uint32_t first = reply->page.first, heads = layer->shape.kv_heads, d = layer->shape.d_k;
	reply->page.version = view.signature_version;
	for (uint32_t g = first; view.signature_version && g < heads && g - first < MPIG_SIGNATURE_PAGE; g++)
		memcpy(reply->balance + reply->page.count++ * d, view.strip[g].params.balance, d * sizeof(float));
	layer_view_free(p->server->store, &view);
	return MPIG_OK;
}

static int fill(struct peer *p, struct request *r, struct context *c, struct signature_reply *reply)
{
	uint32_t number = reply->page.layer;
	const struct layer *layer = context_layer(c, number);
	if (!layer)
		return control_fail(r, MPIG_EINVAL, "SIGNATURE: layer %u stores no rows, or the context has only %u layers",
		                    number, context_layer_count(c));
	if (!layer->wire.signature_bits)
		return control_fail(r, MPIG_ENOTSUP, "SIGNATURE: layer %u has no signature index (signature_bits is 0)", number);
	reply->page.kv_heads = layer->shape.kv_heads;
	reply->page.bits = layer->wire.signature_bits;
	reply->page.d_k = layer->shape.d_k;
	reply->page.d_pad = layer->d_pad;
	fill_signs(c, layer->d_pad, reply->page.signs);
	return fill_balances(p, r, c, layer, number, reply);
}

int control_signature(struct peer *p, struct request *r)
{
	static const uint8_t any_fingerprint[64];
	const struct mpig_ctl_signature *in = (const void *)r->header;
	int status = check_signature(r, in);
	struct context *c;
	if (status == MPIG_OK)
		status = store_context_open(p->server->store, &p->who, in->name, any_fingerprint, &c, r->why);
	if (status != MPIG_OK)
		return status;
	struct signature_reply *reply = calloc(1, sizeof *reply);
	if (reply) {
		memcpy(reply->page.name, in->name, sizeof reply->page.name);
		reply->page.layer = in->layer;
		reply->page.first = in->first;
		status = fill(p, r, c, reply);
	} else {
		status = control_fail(r, MPIG_ENOMEM, "the daemon is out of memory");
	}
	context_unref(c);
	if (status == MPIG_OK)
		status = control_reply(p, r, reply, sizeof reply->page + reply->page.count * reply->page.d_k * sizeof(float),
		                       NULL, 0);
	free(reply);
	return status;
}
