// Where queries come from: a file of recorded ones, or those that the daemon has noted.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "trace_file.h"
#include "tune.h"

static int value_width(const struct mpig_layer *l)
{
	return l->d_v ? l->d_v : l->d_k;
}

static struct tune_layer *find_layer(struct tune *t, int number)
{
	for (int i = 0; i < t->layers; i++)
		if (t->layer[i].number == number)
			return &t->layer[i];
	return NULL;
}

// One more step, without its own part. NULL: no memory.
static struct tune_step *add_step(struct tune_layer *l)
{
	size_t heads = (size_t)l->spec.query_heads, d_v = (size_t)value_width(&l->spec), d_k = (size_t)l->spec.d_k;
	struct tune_step *more = reallocarray(l->step, (size_t)l->steps + 1, sizeof(*more));
	if (!more)
		return NULL;
	l->step = more;
	struct tune_step *s = &l->step[l->steps];
	*s = (struct tune_step){.q = malloc(heads * (d_k + 1 + 2 * d_v) * sizeof(float))};
	if (!s->q)
		return NULL;
	s->own_lse = s->q + heads * d_k;
	s->own_out = s->own_lse + heads;
	s->exact = s->own_out + heads * d_v;
	l->steps++;
	return s;
}

static void free_steps(struct tune_layer *l)
{
	for (int i = 0; i < l->steps; i++)
		free(l->step[i].q);
	free(l->step);
	l->step = NULL;
	l->steps = 0;
}

void tune_layers_free(struct tune *t)
{
	for (int i = 0; i < t->layers; i++) {
		free_steps(&t->layer[i]);
		for (int w = 0; w < TUNE_WAYS; w++)
			free(t->layer[i].ns[w]);
	}
	free(t->layer);
	t->layer = NULL;
	t->layers = 0;
}

static int no_memory(char *why)
{
	snprintf(why, TUNE_WHY_BYTES, "no memory for the queries");
	return -1;
}

// At most t->queries of a layer, spread over all there are, in their order.
static void thin(struct tune_layer *l, int most)
{
	int kept = 0;
	for (int i = 0; i < l->steps; i++) {
		if (l->steps > most && (int)((int64_t)i * most / l->steps) == (int)((int64_t)(i + 1) * most / l->steps))
			free(l->step[i].q);
		else
			l->step[kept++] = l->step[i];
	}
	l->steps = kept;
}

// more: what helps, if there are too few.
static int check_counts(struct tune *t, const char *where, const char *more, char *why)
{
	for (int i = 0; i < t->layers; i++) {
		thin(&t->layer[i], t->queries);
		if (t->layer[i].steps >= 2)
			continue;
		snprintf(why, TUNE_WHY_BYTES,
		         "%.60s has %d quer%s of layer %d: at least 2 are needed, to choose by and to check with; %.90s", where,
		         t->layer[i].steps, t->layer[i].steps == 1 ? "y" : "ies", t->layer[i].number, more);
		return -1;
	}
	return 0;
}

// ---- recorded --------------------------------------------------------------------------------------------------------
static float from_bf16(uint16_t x)
{
	uint32_t bits = (uint32_t)x << 16;
	float f;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

// Token `token` of a recorded request as a request of its own.
static int add_token(struct tune *t, struct tune_layer *l, const struct trace_query *query, uint32_t token, char *why)
{
	const struct mpig_trace_record *r = query->record;
	size_t heads = query->shape.query_heads, d_k = query->shape.d_k, d_v = query->shape.d_v, at = token * heads;
	uint64_t end = r->end, seen;
	if (r->flags & MPIG_SQE_CAUSAL && !__builtin_add_overflow(r->causal_base, token, &seen) && seen < end)
		end = seen;
	if (end > t->info.committed || end <= r->begin)
		return 0; // rows that are not there any more, or none
	struct tune_step *s = add_step(l);
	if (!s)
		return no_memory(why);
	s->begin = r->begin;
	s->end = end;
	s->position = (r->query_position ? r->query_position : r->committed) + token;
	s->after = s->position + 1 < t->info.committed ? s->position + 1 : t->info.committed;
	s->after = s->after > end ? s->after : end;
	for (size_t i = 0; i < heads * d_k; i++)
		s->q[i] = r->dtype == MPIG_BF16 ? from_bf16(((const uint16_t *)query->q)[at * d_k + i])
		                                : ((const float *)query->q)[at * d_k + i];
	s->tells_lse = query->window_lse;
	s->tells_out = query->window_out;
	s->own_known = s->tells_lse && s->tells_out;
	if (s->own_known) {
		memcpy(s->own_lse, query->window_lse + at, heads * sizeof(float));
		memcpy(s->own_out, query->window_out + at * d_v, heads * d_v * sizeof(float));
	}
	return 0;
}

static int check_trace(const struct tune *t, const struct trace_reader *reader, char *why)
{
	const struct mpig_trace_header *h = trace_header(reader);
	const struct mpig_wire_layer *w = trace_layers(reader);
	bool same = memcmp(h->fingerprint, t->info.fingerprint, sizeof(h->fingerprint)) == 0 &&
	            h->layer_count == (uint32_t)t->layer_count && h->context_seed == t->info.seed;
	for (int i = 0; same && i < t->layers; i++) {
		const struct tune_layer *l = &t->layer[i];
		const struct mpig_wire_layer *of = &w[l->number];
		same = of->kind == MPIG_LAYER_GLOBAL && of->query_heads == l->spec.query_heads &&
		       of->kv_heads == l->spec.kv_heads && of->d_k == l->spec.d_k && of->d_v == value_width(&l->spec);
	}
	if (same)
		return 0;
	snprintf(why, TUNE_WHY_BYTES,
	         "the queries were recorded from another context ('%.60s'): of this one they say nothing; record its own",
	         h->name);
	return -1;
}

int tune_queries_trace(struct tune *t, const char *path, char *why)
{
	struct trace_reader *reader;
	struct trace_query query;
	if (trace_open(path, &reader, why) != 0)
		return -1;
	int status = check_trace(t, reader, why), more = 1;
	while (status == 0 && (more = trace_next(reader, &query, why)) == 1) {
		struct tune_layer *l = find_layer(t, query.record->layer);
		for (uint32_t token = 0; l && status == 0 && token < query.record->tokens; token++)
			status = add_token(t, l, &query, token, why);
	}
	trace_close(reader);
	if (status == 0 && more < 0)
		status = -1;
	return status ? status : check_counts(t, path, "about no rows, or rows that are not there, they do not count", why);
}

// ---- noted -----------------------------------------------------------------------------------------------------------
// The daemon notes queries of a KV head without saying of which query head, so that a step takes those of all heads as they come. Their number
// is made even, and a step and its queries are of the same parity: what is chosen by and what is checked with have none in common.
static int add_noted(struct tune *t, struct tune_layer *l, const float *noted, const int *count, char *why)
{
	enum { KEPT = 16 };
	int group = l->spec.query_heads / l->spec.kv_heads, steps = 0;
	size_t d_k = (size_t)l->spec.d_k;
	for (int g = 0; g < l->spec.kv_heads; g++) {
		int even = count[g] & ~1, needs = 2 * ((even + 2 * group - 1) / (2 * group));
		if (!even)
			return 0; // check_counts says so
		steps = needs > steps ? needs : steps;
	}
	for (int i = 0; i < steps; i++) {
		struct tune_step *s = add_step(l);
		if (!s)
			return no_memory(why);
		uint64_t rows = t->info.committed;
		s->begin = t->sinks < rows ? t->sinks : rows;
		s->end = rows > s->begin + t->window ? rows - t->window : s->begin;
		s->after = rows;
		s->position = rows + (uint64_t)i;
		s->tells_lse = s->tells_out = true;
		for (int h = 0; h < l->spec.query_heads; h++) {
			int g = h / group, which = (i + h % group * steps) % (count[g] & ~1);
			memcpy(s->q + (size_t)h * d_k, noted + ((size_t)g * KEPT + (size_t)which) * d_k, d_k * sizeof(float));
		}
	}
	return 0;
}

int tune_queries_noted(struct tune *t, mpig_client *client, char *why)
{
	enum { KEPT = 16, HEADS = 256, WIDEST = 256 };
	float *noted = malloc((size_t)HEADS * KEPT * WIDEST * sizeof(*noted));
	int count[HEADS], status = noted ? 0 : no_memory(why);
	for (int i = 0; status == 0 && i < t->layers; i++) {
		struct tune_layer *l = &t->layer[i];
		for (int g = 0; status == 0 && g < l->spec.kv_heads; g++) {
			count[g] = mpig_context_queries(client, t->name, l->number, g,
			                                noted + (size_t)g * KEPT * (size_t)l->spec.d_k, KEPT);
			if (count[g] < 0) {
				snprintf(why, TUNE_WHY_BYTES, "%s", mpig_last_error(client));
				status = -1;
			}
		}
		status = status ? status : add_noted(t, l, noted, count, why);
	}
	free(noted);
	return status ? status
	              : check_counts(t, "what the daemon has noted",
	                             "let a client ask more (every 64th query is noted), or record some (trace record, --trace)",
	                             why);
}
