// Parameters of signatures, for callers that compute them.
#include "internal.h"

#include <string.h>

// Takes over a page that begins at KV head `first`; *out is as in the first page. Returns how many KV heads it had. The daemon was asked by
// name, and `balance` has room for the layer as it was when x was opened.
static int take_page(const mpig_context *x, uint32_t layer, uint32_t first, struct mpig_signature *out, float *balance)
{
	mpig_client *c = x->client;
	const struct mpig_ctl_signature *page = (const void *)c->reply;
	if (page->first != first || page->kv_heads < 1 || page->kv_heads > MPIG_MAX_HEADS || page->count > MPIG_SIGNATURE_PAGE ||
	    page->count > page->kv_heads - first || (page->version && !page->count) || page->d_k < 1 ||
	    page->d_k > MPIG_MAX_HEAD_DIM || page->d_pad != mpig_padded_dim(page->d_k) ||
	    c->reply_bytes < sizeof(*page) + page->count * page->d_k * sizeof(float))
		return error_set(c, MPIG_EPROTO, "signature of layer %u: %u of %u KV heads in %u bytes", page->layer, page->count,
		                 page->kv_heads, c->reply_bytes);
	if (page->kv_heads != x->layers[layer].kv_heads || page->d_k != x->layers[layer].d_k)
		return error_set(c, MPIG_ELOST, "'%s' is another context now: open it again", x->name);
	if (first == 0) {
		*out = (struct mpig_signature){.version = page->version,
		                               .bits = page->bits,
		                               .d_k = page->d_k,
		                               .d_pad = page->d_pad,
		                               .kv_heads = page->kv_heads};
		memcpy(out->signs, page->signs, sizeof(out->signs));
	} else if (page->version != out->version || page->kv_heads != out->kv_heads || page->d_k != out->d_k) {
		return MPIG_EAGAIN; // another generation since the first page
	}
	if (balance)
		memcpy(balance + (uint64_t)first * page->d_k, page + 1, page->count * page->d_k * sizeof(float));
	return (int)page->count;
}

// All pages; MPIG_EAGAIN if the parameters changed between two of them.
static int ask(mpig_context *x, uint32_t layer, struct mpig_signature *out, float *balance)
{
	mpig_client *c = x->client;
	uint32_t first = 0;
	int rc;
	do {
		struct mpig_ctl_signature request = {.layer = layer, .first = first};
		memcpy(request.name, x->name, sizeof(request.name));
		pthread_mutex_lock(&c->lock);
		rc = client_call(c, MPIG_CTL_SIGNATURE, &request, sizeof(request), -1, sizeof(request), NULL);
		rc = rc ? rc : take_page(x, layer, first, out, balance);
		pthread_mutex_unlock(&c->lock);
		first += rc > 0 ? (uint32_t)rc : 0;
	} while (rc > 0 && first < out->kv_heads);
	return rc < 0 ? rc : MPIG_OK;
}

int mpig_context_signature(mpig_context *x, int layer, struct mpig_signature *signature, float *balance)
{
	if (!x)
		return MPIG_EINVAL;
	if (client_forked(x->client))
		return MPIG_EFORK;
	int rc = context_usable(x->client, x);
	if (rc)
		return rc;
	if (layer < 0 || (uint32_t)layer >= x->layer_count)
		return error_set(x->client, MPIG_EINVAL, "layer = %d: '%s' has layers 0..%d", layer, x->name,
		                 (int)x->layer_count - 1);
	struct mpig_signature known;
	do
		rc = ask(x, (uint32_t)layer, &known, balance);
	while (rc == MPIG_EAGAIN);
	if (rc)
		return rc;
	atomic_store_explicit(&x->signature_version, known.version, memory_order_relaxed);
	return options_return(x->client, "mpig_signature", signature, &known, sizeof(known));
}
