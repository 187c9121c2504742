#include "tools/magicpig-bench/strips.h"

#include <stdlib.h>
#include <string.h>

#include "tools/magicpig-bench/bench.h"

enum { D = STRIP_DIM, GROUP = STRIP_GROUP, CHUNK = 4096 };

void strips_append(struct fixture *f, struct context *c, uint32_t layers, uint32_t rows, const float *q)
{
	float *k = malloc((size_t)CHUNK * D * sizeof(*k)), *v = malloc((size_t)CHUNK * D * sizeof(*v));
	if (!k || !v)
		abort();
	for (uint32_t at = 0; at < rows; at += CHUNK) {
		uint32_t n = rows - at < CHUNK ? rows - at : CHUNK;
		for (uint32_t layer = 0; layer < layers; layer++) {
			fill_normal(k, (size_t)n * D, at + layer * 7919u, 1);
			fill_normal(v, (size_t)n * D, at + layer * 7919u + 1, 1);
			fixture_append(f, c, layer, at, n, k, v, at + n == rows ? q : NULL, 1);
		}
	}
	free(k);
	free(v);
}

struct mpig_sqe strip_request(uint32_t layer, uint32_t rows, uint8_t proposal, float budget, uint64_t seed)
{
	return (struct mpig_sqe){.op = MPIG_OP_ATTEND,
	                         .layer = (uint16_t)layer,
	                         .count = 1,
	                         .end = rows,
	                         .proposal = proposal,
	                         .budget = budget,
	                         .seed = seed};
}

double strip_attend_ms(struct fixture *f, struct context *c, uint32_t layer, uint32_t rows, uint8_t proposal, uint64_t seed,
                       const float *q, double *kept, double *fetched)
{
	struct mpig_sqe e = strip_request(layer, rows, proposal, .01f, seed);
	struct mpig_layer_shape s = context_layer(c, layer)->shape;
	struct mpig_payload_layout l = mpig_attend_layout(&s, 1, MPIG_F32, 0);
	memcpy(f->slot + l.q, q, GROUP * D * sizeof(float));
	double start = seconds();
	struct engine_result result = fixture_run(f, c, &e, NULL);
	double taken = seconds() - start;
	if (fetched)
		*fetched += (double)result.rows_read;
	uint32_t n;
	for (uint32_t h = 0; h < GROUP; h++) {
		memcpy(&n, f->slot + l.rows + 4 * h, 4);
		*kept += n / (double)GROUP;
	}
	return taken * 1e3;
}
