// Contexts of an 8B-class model's shape, as benchmarks through a real daemon fill them.
#ifndef MPIG_BENCH_MODEL_H
#define MPIG_BENCH_MODEL_H

#include <magicpig.h>

enum { MODEL_D = 128, MODEL_KV_HEADS = 8, MODEL_HEADS = 32, MODEL_MOST_LAYERS = 32 };

// An empty context of so many layers with signatures of two bits; row_dtype as in struct mpig_layer. Returns a status.
int model_context(mpig_client *client, const char *name, int layers, int row_dtype, mpig_context **context);
// A queue whose client spins for an answer. Returns a status.
int model_queue(mpig_client *client, mpig_queue **queue);
// n normal numbers as bf16, cut off.
void fill_bf16(uint16_t *x, size_t n, uint64_t seed);

#endif
