// Random sequences of operations against a model in plain arrays, with views held across them, and an audit of every extent.
#include "tests/lib/suite.h"
#include "tests/store/segments.h"

#define MOST 12000u

struct model {
	struct context *c;
	char name[16];
	uint64_t tags[MOST], committed, rows[LAYERS], most;
};
struct held {
	struct layer_view view;
	struct model *of;
	uint64_t tags[MOST];
};

static struct model *models[6];
static struct held *held[8];
static uint64_t serial;

static void let_go(int i)
{
	if (!held[i])
		return;
	check_view(&held[i]->view, held[i]->tags);
	layer_view_free(f.store, &held[i]->view);
	free(held[i]);
	held[i] = NULL;
}

static int holds(const struct model *m)
{
	int n = 0;
	for (int i = 0; i < 8; i++)
		n += held[i] && held[i]->of == m;
	return n;
}

static void model_rows(struct model *m, uint64_t position)
{
	m->most = m->most < position ? m->most : position;
	for (int l = 0; l < LAYERS; l++)
		m->rows[l] = m->rows[l] < position ? m->rows[l] : position;
}

static void do_append(struct model *m, uint64_t *random)
{
	static const uint32_t sizes[] = {1, 1, 2, 5, 70, 300, 1500, 4500};
	uint32_t layer = next_below(random, 2) * 2;
	uint64_t back = m->rows[layer] - m->committed,
		 position = m->rows[layer] - next_below(random, (uint32_t)(back < 5 ? back + 1 : 5));
	uint64_t n = 1 + next_below(random, sizes[next_below(random, 8)]);
	if (position + n > MOST)
		n = MOST - position;
	for (uint64_t t = m->most; t < position + n; t++)
		m->tags[t] = mix(++serial);
	uint64_t used = pool_used(f.pool), charged = store_uid_bytes(f.store, 0);
	int status = append_rows(&f, m->c, layer, position, n, m->tags + position);
	must(status == 0 || status == MPIG_ENOSPC);
	if (status) {
		must(pool_used(f.pool) == used && store_uid_bytes(f.store, 0) == charged);
		return;
	}
	if (position + n > m->most)
		m->most = position + n;
	if (position + n > m->rows[layer])
		m->rows[layer] = position + n;
}

static void do_truncate(struct model *m, uint64_t *random)
{
	uint64_t most = m->most > m->committed ? m->most : m->committed;
	uint64_t position = next_below(random, 3) ? most - next_below(random, (uint32_t)(most < 50 ? most + 1 : 50))
	                                          : next_below(random, (uint32_t)most + 1);
	int status = context_truncate(f.store, m->c, position, f.why);
	must(status == 0 || (status == MPIG_EAGAIN && holds(m)));
	m->committed = m->committed < position ? m->committed : position;
	model_rows(m, position);
	if (status) {
		must(context_reserve(f.store, m->c, 0, m->rows[0], 1, f.why) == MPIG_EAGAIN);
		for (int i = 0; i < 8; i++)
			if (held[i] && held[i]->of == m)
				let_go(i);
		must(context_truncate(f.store, m->c, position, f.why) == 0);
	}
}

static void do_commit(struct model *m, uint64_t *random)
{
	uint64_t least = m->rows[0] < m->rows[2] ? m->rows[0] : m->rows[2];
	uint64_t end = m->committed + (least > m->committed ? next_below(random, (uint32_t)(least - m->committed) + 1) : 0);
	if (next_below(random, 2))
		end = least > m->committed ? least : m->committed;
	must(commit(m->c, m->committed, end - m->committed, m->tags + m->committed) == 0);
	m->committed = end;
	must(commit(m->c, least + 1, 1, m->tags) == MPIG_ERANGE);
}

static void do_seal(struct model *m, uint64_t *random)
{
	struct seal_plan plan;
	int status = seal_begin(f.store, m->c, test_table_bytes, &plan, f.why);
	must(status == 0 || status == MPIG_ENOSPC);
	if (status || !plan.rows)
		return;
	must(plan.first + plan.rows <= m->committed);
	seal_fill(m->c, &plan, m->tags + plan.first);
	context_seal_finish(f.store, &plan, next_below(random, 8) != 0);
}

static void do_fork(struct model *m, uint64_t *random)
{
	uint32_t slot = next_below(random, 6);
	if (models[slot])
		return;
	struct model *child = calloc(1, sizeof *child);
	uint64_t at = next_below(random, (uint32_t)m->committed + 1);
	if (next_below(random, 2))
		at = m->committed;
	snprintf(child->name, sizeof child->name, "m%lu", (unsigned long)++serial);
	int status = store_context_fork(f.store, &root, m->c, at, child->name, &child->c, f.why);
	must(status == 0 || (status == MPIG_EBUSY && m->most > m->committed) || status == MPIG_ENOSPC);
	if (status) {
		free(child);
		return;
	}
	must(context_lease(f.store, child->c, &root, slot + 1, f.why) == 0);
	memcpy(child->tags, m->tags, at * sizeof *child->tags);
	child->committed = at;
	child->most = child->rows[0] = child->rows[2] = at;
	models[slot] = child;
}

static void do_drop(uint32_t slot)
{
	struct model *m = models[slot];
	must(store_context_drop(f.store, &root, m->name, f.why) == 0);
	for (int i = 0; i < 8; i++)
		if (held[i] && held[i]->of == m)
			let_go(i);
	context_release(f.store, m->c, slot + 1);
	context_unref(m->c);
	free(m);
	models[slot] = NULL;
}

static void do_view(struct model *m, uint64_t *random)
{
	uint32_t i = next_below(random, 8);
	let_go((int)i);
	uint64_t begin = next_below(random, (uint32_t)m->committed + 1),
		 end = begin + next_below(random, (uint32_t)(m->committed - begin) + 1);
	struct held *h = malloc(sizeof *h);
	must(layer_view_get(f.store, m->c, next_below(random, 2) * 2, begin, end, &h->view) == 0);
	must(h->view.committed == m->committed);
	h->of = m;
	memcpy(h->tags, m->tags, m->committed * sizeof *h->tags);
	held[i] = h;
}

static void compare_with_model(struct walk *w, const struct walk_context *c, void *arg)
{
	(void)arg;
	struct model *m = NULL;
	for (int i = 0; i < 6; i++)
		if (models[i] && !strcmp(models[i]->name, c->record->name))
			m = models[i];
	must(m && c->record->committed == m->committed);
	for (uint64_t t = 0; t < m->committed; t += t % 97 + 1) {
		must(*(const uint32_t *)walk_find(w, c, t, UINT32_MAX) == (uint32_t)m->tags[t]);
		for (uint32_t s = 0; s < c->strips; s++)
			must(row_is(walk_find(w, c, t, s), (uint32_t)walk_stride(&c->layer[c->strip_layer[s]]), m->tags[t], s));
	}
}

static void check_everything(void)
{
	int any = 0;
	for (int i = 0; i < 8; i++)
		any |= held[i] != NULL;
	for (int i = 0; i < 6; i++)
		if (models[i])
			must(context_rows(models[i]->c, 0) == models[i]->rows[0] &&
			     context_rows(models[i]->c, 2) == models[i]->rows[2]);
	if (!any)
		audit(compare_with_model, NULL);
}

START_TEST(random_sequences_agree_with_a_model)
{
	uint64_t random = (uint64_t)_i * 7919;
	for (int step = 0; step < (getenv("MPIG_LONG") ? 20000 : 1200); step++) {
		uint32_t slot = next_below(&random, 6);
		struct model *m = models[slot];
		if (!m) {
			if (next_below(&random, 10))
				continue;
			m = models[slot] = calloc(1, sizeof *m);
			snprintf(m->name, sizeof m->name, "m%lu", (unsigned long)++serial);
			struct mpig_wire_layer layer[LAYERS];
			make_spec(_i % 4, layer);
			struct mpig_ctl_create body = create_of(m->name, LAYERS);
			must(store_context_create(f.store, &root, &body, layer, &m->c, f.why) == 0);
			must(context_lease(f.store, m->c, &root, slot + 1, f.why) == 0);
			continue;
		}
		switch (next_below(&random, 16)) {
		case 0:
		case 1:
		case 2:
		case 3:
		case 4:
			do_append(m, &random);
			break;
		case 5:
		case 6:
		case 7:
			do_commit(m, &random);
			break;
		case 8:
		case 9:
			do_view(m, &random);
			break;
		case 10:
			do_seal(m, &random);
			break;
		case 11:
			do_truncate(m, &random);
			break;
		case 12:
			do_fork(m, &random);
			break;
		case 13:
			if (next_below(&random, 3) == 0)
				do_drop(slot);
			break;
		case 14:
			let_go((int)next_below(&random, 8));
			break;
		case 15:
			context_release(f.store, m->c, slot + 1);
			model_rows(m, m->committed);
			must(context_lease(f.store, m->c, &root, slot + 1, f.why) == 0);
			break;
		}
		if (step % 25 == 24) {
			if (step % 100 == 99)
				for (int i = 0; i < 8; i++)
					let_go(i);
			check_everything();
		}
	}
	for (int i = 0; i < 8; i++)
		let_go(i);
	for (uint32_t i = 0; i < 6; i++)
		if (models[i])
			do_drop(i);
	ck_assert_uint_eq(pool_used(f.pool), POOL_GRANULE + walk_round(8ull * POOL_MAX_CONTEXTS));
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	struct store_totals totals;
	store_totals(f.store, &totals);
	ck_assert_uint_eq(totals.contexts, 0);
	ck_assert_uint_eq(totals.metadata_bytes, pool_used(f.pool));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model");
	TCase *t = tcase_create("model");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 600 : 120);
	tcase_add_checked_fixture(t, open_small, close_all);
	tcase_add_loop_test(t, random_sequences_agree_with_a_model, 0, 8);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
