#include "daemon/engine/selection.h"

void attend_selection(struct job *j, uint32_t g, uint32_t r, const struct selection *sel, struct attn_partial *p, float *scratch)
{
	struct attend *a = &j->attend;
	struct row_query query;
	attend_logits(a, g, r, sel->first, sel->frame, &query);
	attn_selected(j->engine->kernels, &a->layer->rows, sel->base, sel->index, sel->neg_log_pi, sel->n, query.q, &query.head,
	              p, scratch);
}

void row_set_add(struct row_set *set, const uint32_t *row, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		set->word[row[i] / 64] |= UINT64_C(1) << (row[i] % 64);
}

uint64_t row_set_count(const struct row_set *set)
{
	uint64_t n = 0;
	for (size_t i = 0; i < sizeof(set->word) / sizeof(set->word[0]); i++)
		n += (uint64_t)__builtin_popcountll(set->word[i]);
	return n;
}
