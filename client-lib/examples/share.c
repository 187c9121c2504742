// Two processes, one context. The first builds it and exits; the context outlives it. The second uses it by name, as a fork that
// shares its rows, and by the longest prefix of its own tokens. Nothing is copied.
#include <magicpig.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TOKENS = 2000, HEADS = 2, D = 64 };

static void check(int status, const char *what, mpig_client *client)
{
	if (status < 0) {
		fprintf(stderr, "%s: %s (%s)\n", what, mpig_strerror(status), mpig_last_error(client));
		exit(1);
	}
}

static void connect_queue(mpig_client **client, mpig_queue **queue)
{
	check(mpig_connect(NULL, client), "connect", NULL);
	check(mpig_queue_create(*client, NULL, queue), "queue", *client);
}

static void build(void)
{
	static float rows[TOKENS][D];
	static uint32_t ids[TOKENS];
	mpig_client *client;
	mpig_queue *queue;
	mpig_context *book;
	for (int i = 0; i < TOKENS * D; i++)
		rows[i / D][i % D] = (float)(rand() % 2001 - 1000) / 1000;
	for (uint32_t i = 0; i < TOKENS; i++)
		ids[i] = i * 7919 % 50000;
	connect_queue(&client, &queue);
	struct mpig_layer layer = {.query_heads = HEADS, .kv_heads = 1, .d_k = D};
	struct mpig_spec spec = {
		.size = sizeof(spec), .layer_count = 1, .layers = &layer, .fingerprint = "demo", .fingerprint_bytes = 4};
	mpig_context_drop(client, "share-example"); // of an earlier run, if any
	check(mpig_context_create(client, "share-example", &spec, &book), "create", client);
	check(mpig_append(queue, book, 0, 0, TOKENS, MPIG_F32, rows, rows, NULL, 0), "append", client);
	check(mpig_commit(queue, book, 0, TOKENS, ids, MPIG_COMMIT_SEAL), "commit", client);
	mpig_disconnect(client);
}

// One question: how much mass does this query see among the rows?
static void ask(mpig_client *client, mpig_queue *queue, mpig_context *context)
{
	float q[HEADS * D], lse[HEADS];
	for (int i = 0; i < HEADS * D; i++)
		q[i] = .1f;
	struct mpig_attend attend = {.size = sizeof(attend), .q = q, .proposal = MPIG_PROPOSAL_DENSE};
	struct mpig_result result = {.size = sizeof(result), .lse = lse};
	check(mpig_attend(queue, context, &attend, &result), "attend", client);
	printf("'%s': %llu tokens, LSE %.4f, %.3f ms in the daemon\n", mpig_context_name(context),
	       (unsigned long long)result.committed, lse[0], (double)result.service_ns / 1e6);
}

static void use(void)
{
	mpig_client *client;
	mpig_queue *queue;
	mpig_context *book, *branch, *found;
	connect_queue(&client, &queue);
	check(mpig_context_open(client, "share-example", NULL, &book), "open", client); // for reading: any number may
	ask(client, queue, book);

	check(mpig_context_fork(book, "share-branch", 1000, &branch), "fork", client); // this process's own, to continue
	ask(client, queue, branch);
	mpig_context_close(branch);
	check(mpig_context_drop(client, "share-branch"), "drop", client);

	// What a server does with an incoming prompt. This one begins as the context does, and differs after 1,500 tokens.
	uint32_t prompt[TOKENS];
	uint64_t matched;
	for (uint32_t i = 0; i < TOKENS; i++)
		prompt[i] = i < 1500 ? i * 7919 % 50000 : i;
	struct mpig_open_options options = {.size = sizeof(options), .fingerprint = "demo", .fingerprint_bytes = 4};
	check(mpig_context_open_prefix(client, prompt, TOKENS, &options, &found, &matched), "open by prefix", client);
	printf("'%s' shares %llu of the prompt's %d tokens: only the rest must be prefilled\n", mpig_context_name(found),
	       (unsigned long long)matched, TOKENS);
	mpig_disconnect(client);
}

int main(void)
{
	pid_t builder = fork();
	if (builder == 0) {
		build();
		return 0;
	}
	int status;
	if (builder < 0 || waitpid(builder, &status, 0) != builder || status != 0)
		return 1;
	use();
	return 0;
}
