// Requests in flight: all layers of a decode step are submitted without waiting, and their answers are taken as they come. A real
// model has the next layer's query only after this one's answer; but a batch has many sequences, and speculation many branches.
#include <magicpig.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 8, HEADS = 4, KV_HEADS = 2, D = 64, TOKENS = 4096, STEPS = 50 };

static float rows[TOKENS * KV_HEADS * D], query[LAYERS][HEADS * D], out[LAYERS][HEADS * D], lse[LAYERS][HEADS];
static uint32_t ids[TOKENS];

static void check(int64_t status, const char *what, mpig_client *client)
{
	if (status < 0) {
		fprintf(stderr, "%s: %s (%s)\n", what, mpig_strerror((int)status), mpig_last_error(client));
		exit(1);
	}
}

static void prefill(mpig_client *client, mpig_queue *queue, mpig_context *context)
{
	for (int i = 0; i < TOKENS * KV_HEADS * D; i++)
		rows[i] = (float)(rand() % 2001 - 1000) / 500;
	for (int layer = 0; layer < LAYERS; layer++)
		check(mpig_append(queue, context, layer, 0, TOKENS, MPIG_F32, rows, rows, NULL, 0), "append", client);
	check(mpig_commit(queue, context, 0, TOKENS, ids, MPIG_COMMIT_SEAL), "commit", client);
}

// user_data is the layer. Answers arrive in any order; a result struct stays valid until its completion has been taken.
static uint64_t step(mpig_client *client, mpig_queue *queue, mpig_context *context, uint64_t seed)
{
	struct mpig_result results[LAYERS];
	int64_t tickets[LAYERS];
	uint64_t read = 0;
	for (int layer = 0; layer < LAYERS; layer++) {
		struct mpig_attend attend = {.size = sizeof(attend), .layer = layer, .q = query[layer], .seed = seed};
		results[layer] = (struct mpig_result){.size = sizeof(results[0]), .out = out[layer], .lse = lse[layer]};
		tickets[layer] = mpig_submit_attend(queue, context, &attend, &results[layer], (uint64_t)layer);
		check(tickets[layer], "submit", client);
	}
	check(mpig_wait(queue, tickets[0], 0), "wait", client); // the first is needed first
	read += results[0].rows_read;
	for (int home = 1; home < LAYERS;) { // the others as they come; a server would serve other sequences meanwhile
		struct mpig_completion done[LAYERS];
		int n = mpig_poll(queue, done, LAYERS);
		check(n, "poll", client);
		for (int i = 0; i < n; i++) {
			check(done[i].status, "attend", client);
			read += results[done[i].user_data].rows_read;
		}
		home += n;
	}
	return read;
}

int main(void)
{
	struct mpig_layer layers[LAYERS];
	for (int i = 0; i < LAYERS; i++)
		layers[i] = (struct mpig_layer){.query_heads = HEADS, .kv_heads = KV_HEADS, .d_k = D, .signature_bits = 2};
	struct mpig_spec spec = {.size = sizeof(spec), .layer_count = LAYERS, .layers = layers};
	mpig_client *client = NULL;
	mpig_queue *queue;
	mpig_context *context;
	check(mpig_connect(NULL, &client), "connect", NULL);
	check(mpig_queue_create(client, NULL, &queue), "queue", client);
	check(mpig_context_create(client, "pipeline-example", &spec, &context), "create", client);
	prefill(client, queue, context);
	uint64_t read = 0;
	for (uint64_t s = 0; s < STEPS; s++) {
		for (int i = 0; i < LAYERS * HEADS * D; i++)
			query[i / (HEADS * D)][i % (HEADS * D)] = (float)(rand() % 2001 - 1000) / 1000;
		read += step(client, queue, context, s);
	}
	printf("%d steps of %d layers, %d tokens: %.1f rows of %d read per layer and KV head\n", STEPS, LAYERS, TOKENS,
	       (double)read / (STEPS * LAYERS * KV_HEADS), TOKENS);
	check(mpig_context_drop(client, "pipeline-example"), "drop", client);
	mpig_disconnect(client);
	return 0;
}
