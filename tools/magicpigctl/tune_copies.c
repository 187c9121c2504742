// Another index is measured where there is one: on a private context of one layer, made of the rows that the daemon reads back, and dropped again. Only
// one is there at a time. Its balance, as a prefill's, is made from queries: those that choose, never those that check.
#include <stdlib.h>
#include <string.h>

#include "tune_run.h"

enum { CHUNK = 512, MOST_QUERIES = 64 };

struct copy {
	float *k, *v, *queries;
	uint32_t *ids;
	unsigned query_count;
};

static void free_copy(struct copy *c)
{
	free(c->k);
	free(c->v);
	free(c->queries);
	free(c->ids);
}

static int make_room(struct copy *c, const struct tune_layer *l, uint64_t tokens)
{
	size_t kv = (size_t)l->spec.kv_heads, d_k = (size_t)l->spec.d_k, q = (size_t)l->spec.query_heads * d_k;
	c->k = malloc(CHUNK * kv * d_k * sizeof(float));
	c->v = malloc(CHUNK * kv * (size_t)tune_value_width(&l->spec) * sizeof(float));
	c->queries = malloc(MOST_QUERIES * q * sizeof(float));
	c->ids = malloc(tokens * sizeof(uint32_t));
	if (!c->k || !c->v || !c->queries || !c->ids)
		return MPIG_ENOMEM;
	for (uint64_t i = 0; i < tokens; i++)
		c->ids[i] = (uint32_t)i;
	for (int step = 0; step < l->steps && c->query_count < MOST_QUERIES; step += 2)
		memcpy(c->queries + c->query_count++ * q, l->step[step].q, q * sizeof(float));
	return MPIG_OK;
}

// Rows from r->base, the fork of the context, into `to`. The queries go with the last of them.
static int move_rows(struct run *r, const struct tune_layer *l, mpig_context *to, struct copy *c)
{
	uint64_t tokens = r->t->info.committed;
	int status = MPIG_OK;
	for (uint64_t at = 0; at < tokens && !status; at += CHUNK) {
		uint64_t n = tokens - at < CHUNK ? tokens - at : CHUNK;
		bool last = at + n == tokens;
		status = tune_interrupted ? MPIG_EAGAIN : mpig_read(r->queue, r->base, l->number, at, n, c->k, c->v);
		status = status ? status
		                : mpig_append(r->queue, to, 0, at, n, MPIG_F32, c->k, c->v, last ? c->queries : NULL,
		                              last ? c->query_count : 0);
	}
	return status ? status : mpig_commit(r->queue, to, 0, tokens, c->ids, MPIG_COMMIT_SEAL);
}

static int make_copy(struct run *r, const struct tune_layer *l, const struct tune_way *way, mpig_context **copy)
{
	struct mpig_layer layer = l->spec;
	struct copy c = {0};
	layer.default_proposal = MPIG_PROPOSAL_DEFAULT;
	layer.signature_bytes = 0;
	layer.signature_bits = way->bits;
	layer.paper_k = way->bits || layer.table_hash == MPIG_HASH_CROSSPOLYTOPE ? 0 : way->paper_k;
	layer.paper_l = way->bits ? 0 : way->paper_l;
	layer.table_hash = way->bits ? MPIG_HASH_SIMHASH : layer.table_hash;
	layer.table_balance = way->bits ? 0 : layer.table_balance;
	struct mpig_spec spec = {.size = sizeof(spec),
	                         .layer_count = 1,
	                         .layers = &layer,
	                         .seed = r->t->info.seed,
	                         .expected_tokens = r->t->info.committed,
	                         .persist = MPIG_PERSIST_NONE,
	                         .ttl_s = TUNE_TTL};
	int status = make_room(&c, l, r->t->info.committed);
	status = status ? status : mpig_context_create(r->client, r->copy_name, &spec, copy);
	status = status ? status : move_rows(r, l, *copy, &c);
	free_copy(&c);
	return status;
}

static bool same_index(const struct tune_way *a, const struct tune_way *b)
{
	return a->bits == b->bits && a->paper_k == b->paper_k && a->paper_l == b->paper_l;
}

// All ways from `first` on that ask for the same index.
static int ask_copy(struct run *r, struct tune_layer *l, int first)
{
	int status = MPIG_OK;
	for (int seed = 0; seed < r->t->seeds; seed++)
		for (int way = first; way < r->t->ways && same_index(&l->way[way], &l->way[first]); way++) {
			status = status ? status : tune_fresh_fork(r);
			for (int step = 0; step < l->steps && !status; step++) {
				status = tune_ask_way(r, l, way, seed, step);
				tune_tell(r, 1);
			}
		}
	return status;
}

static int ask_index(struct run *r, struct tune_layer *l, int first)
{
	mpig_context *copy = NULL, *of_context = r->base;
	int status = tune_drop_fork(r);
	status = status ? status : make_copy(r, l, &l->way[first], &copy);
	if (!status) {
		r->base = copy;
		r->copied = true;
		status = ask_copy(r, l, first);
		r->copied = false;
		r->base = of_context;
	}
	int dropped = tune_drop_fork(r);
	status = status ? status : dropped;
	if (copy) {
		mpig_context_close(copy);
		dropped = mpig_context_drop(r->client, r->copy_name);
		status = status ? status : dropped;
	}
	return status;
}

int tune_copies(struct run *r)
{
	int status = MPIG_OK;
	for (int i = 0; i < r->t->layers && !status; i++) {
		struct tune_layer *l = &r->t->layer[i];
		for (int way = 0; way < r->t->ways && !status; way++) {
			bool first = way == 0 || !same_index(&l->way[way - 1], &l->way[way]);
			if (l->can[way] && tune_way_copied(&l->way[way]) && first)
				status = ask_index(r, l, way);
		}
	}
	return status;
}
