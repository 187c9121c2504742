// Stores 8,192 tokens in the daemon, then answers one decode step: the daemon samples 2 % of the old rows, this process attends
// its sinks and recent window exactly, and the parts are merged. Prints how far that is from exact attention over everything.
#include <magicpig.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 8192, SINKS = 4, WINDOW = 64, D = 64, HEADS = 3 }; // three query heads share one KV head

static float k[TOKENS][D], v[TOKENS][D], q[HEADS][D];
static uint32_t ids[TOKENS];

static void fill(float *x, int n, float scale, float shift)
{
	for (int i = 0; i < n; i++)
		x[i] = scale * (float)(rand() % 2001 - 1000) / 1000 + shift;
}

// Exact attention over rows [begin, end): what a model computes for the part it keeps.
static void attend_rows(int begin, int end, float out[HEADS][D], float lse[HEADS])
{
	for (int h = 0; h < HEADS; h++) {
		double sum = 0, mean[D] = {0};
		for (int i = begin; i < end; i++) {
			double s = 0;
			for (int j = 0; j < D; j++)
				s += q[h][j] * k[i][j];
			double w = exp(s / sqrt(D));
			sum += w;
			for (int j = 0; j < D; j++)
				mean[j] += w * v[i][j];
		}
		lse[h] = (float)log(sum);
		for (int j = 0; j < D; j++)
			out[h][j] = (float)(mean[j] / sum);
	}
}

static void check(int status, const char *what, mpig_client *client)
{
	if (status < 0)
		fprintf(stderr, "%s: %s (%s)\n", what, mpig_strerror(status), mpig_last_error(client)), exit(1);
}

int main(void)
{
	fill(k[0], TOKENS * D, 2, 0), fill(v[0], TOKENS * D, 1, .5f), fill(q[0], HEADS * D, 2, 0);
	for (uint32_t i = 0; i < TOKENS; i++)
		ids[i] = i * 7919 % 50000;

	mpig_client *client = NULL;
	mpig_queue *queue;
	mpig_context *book;
	struct mpig_layer layer = {.query_heads = HEADS, .kv_heads = 1, .d_k = D, .signature_bits = 2};
	struct mpig_spec spec = {
		.size = sizeof(spec), .layer_count = 1, .layers = &layer, .fingerprint = "demo", .fingerprint_bytes = 4};
	check(mpig_connect(NULL, &client), "connect", NULL);
	check(mpig_queue_create(client, NULL, &queue), "queue", client);
	mpig_context_drop(client, "first-example"); // of an earlier run, if any
	check(mpig_context_create(client, "first-example", &spec, &book), "create", client);
	check(mpig_append(queue, book, 0, 0, TOKENS, MPIG_F32, k, v, q, 1), "append", client);
	check(mpig_commit(queue, book, 0, TOKENS, ids, MPIG_COMMIT_SEAL), "commit", client);

	float out[HEADS][D], lse[HEADS], own[HEADS][D], own_lse[HEADS], exact[HEADS][D], exact_lse[HEADS];
	struct mpig_attend ask = {.size = sizeof(ask), .q = q, .begin = SINKS, .end = -WINDOW, .budget = .02f, .seed = 1};
	struct mpig_result answer = {.size = sizeof(answer), .out = out[0], .lse = lse};
	check(mpig_attend(queue, book, &ask, &answer), "attend", client);
	attend_rows(0, SINKS, own, own_lse);
	mpig_merge(HEADS, D, out[0], lse, own[0], own_lse);
	attend_rows(TOKENS - WINDOW, TOKENS, own, own_lse);
	mpig_merge(HEADS, D, out[0], lse, own[0], own_lse);

	attend_rows(0, TOKENS, exact, exact_lse);
	for (int h = 0; h < HEADS; h++)
		printf("head %d: LSE %.4f (exact %.4f), out[0] %.4f (exact %.4f)\n", h, lse[h], exact_lse[h], out[h][0],
		       exact[h][0]);
	printf("%llu of %d rows were read\n", (unsigned long long)answer.rows_read, TOKENS);
	mpig_disconnect(client); // the context stays in the daemon: see share.c
	return 0;
}
