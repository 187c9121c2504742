#include "tools/magicpig-bench/model.h"

#include <string.h>

#include "tools/magicpig-bench/bench.h"

int model_context(mpig_client *client, const char *name, int layers, int row_dtype, mpig_context **context)
{
	struct mpig_layer layer[MODEL_MOST_LAYERS];
	for (int i = 0; i < layers; i++)
		layer[i] = (struct mpig_layer){.query_heads = MODEL_HEADS,
		                               .kv_heads = MODEL_KV_HEADS,
		                               .d_k = MODEL_D,
		                               .signature_bits = 2,
		                               .row_dtype = row_dtype};
	struct mpig_spec spec = MPIG_INIT(spec);
	spec.layer_count = layers;
	spec.layers = layer;
	spec.fingerprint = "bench";
	spec.fingerprint_bytes = 5;
	return mpig_context_create(client, name, &spec, context);
}

int model_queue(mpig_client *client, mpig_queue **queue)
{
	struct mpig_queue_options options = MPIG_INIT(options);
	options.spin_us = 1000000;
	return mpig_queue_create(client, &options, queue);
}

void fill_bf16(uint16_t *x, size_t n, uint64_t seed)
{
	for (size_t i = 0; i < n; i++) {
		float f = quick_normal(&seed);
		uint32_t bits;
		memcpy(&bits, &f, sizeof(bits));
		x[i] = (uint16_t)(bits >> 16);
	}
}
