// What the tests of segments share: a store with one pool, contexts of three layers, and the checks of a view and of every
// extent.
#ifndef MPIG_TESTS_STORE_SEGMENTS_H
#define MPIG_TESTS_STORE_SEGMENTS_H

#include "tests/store/fixture.h"

#define LAYERS 3

static struct fixture f;
static struct credentials root;

static inline void open_small(void)
{
	fixture_open(&f, 96 << 20, 0, 0);
	root = user(0);
}

static inline void close_all(void)
{
	fixture_close(&f);
}

static inline void make_spec(int kind, struct mpig_wire_layer layer[LAYERS])
{
	layer[0] = layer_of(4, 2, 64, kind == 1 ? MPIG_I8 : 0,
	                    kind == 0   ? MPIG_BITS_AUTO
	                    : kind == 1 ? 2
	                                : 0,
	                    kind == 1 || kind == 3 ? 4 : 0, kind == 1 || kind == 3 ? 8 : 0);
	layer[1] = (struct mpig_wire_layer){.kind = MPIG_LAYER_SLIDING, .window = 64};
	layer[2] = layer_of(3, 1, 80, MPIG_F16, kind < 2 ? 1 : 0, 0, 0);
}

static inline struct context *create(const char *name, int kind)
{
	struct mpig_wire_layer layer[LAYERS];
	make_spec(kind, layer);
	struct mpig_ctl_create body = create_of(name, LAYERS);
	struct context *c = NULL;
	ck_assert_msg(store_context_create(f.store, &root, &body, layer, &c, f.why) == 0, "%s", f.why);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	return c;
}

static inline uint64_t *tags_from(uint64_t base, uint64_t n)
{
	uint64_t *tags = malloc(n * sizeof *tags);
	for (uint64_t i = 0; i < n; i++)
		tags[i] = mix(base + i);
	return tags;
}

static inline void append_all(struct context *c, uint64_t position, uint64_t n, const uint64_t *tags)
{
	for (uint32_t l = 0; l < context_layer_count(c); l++)
		if (context_layer(c, l))
			ck_assert_msg(append_rows(&f, c, l, position, n, tags) == 0, "%s", f.why);
}

static inline int commit(struct context *c, uint64_t position, uint64_t n, const uint64_t *tags)
{
	uint32_t *ids = malloc((n ? n : 1) * sizeof *ids);
	for (uint64_t i = 0; i < n; i++)
		ids[i] = (uint32_t)tags[i];
	int status = context_commit(f.store, c, position, n, ids, f.why);
	free(ids);
	return status;
}

// Seals one segment whose rows have the tags of all[first..]; returns its rows.
static inline uint32_t seal(struct context *c, const uint64_t *all)
{
	struct seal_plan plan;
	ck_assert_msg(seal_begin(f.store, c, test_table_bytes, &plan, f.why) == 0, "%s", f.why);
	if (plan.rows)
		seal_fill(c, &plan, all + plan.first);
	context_seal_finish(f.store, &plan, true);
	return plan.rows;
}

// Each row of [begin, end) once, in order, with the bytes of its tag; returns how many rows have codes.
static inline uint64_t check_view(const struct layer_view *v, const uint64_t *tags)
{
	uint64_t coded = 0;
	const struct layer *l = v->layer;
	for (uint32_t h = 0; h < l->shape.kv_heads; h++) {
		const struct strip_view *s = &v->strip[h];
		uint32_t strip = l->first_strip + h;
		uint64_t at = v->begin;
		must((v->signature_version != 0) == (s->params.mu != NULL));
		if (s->params.mu)
			must(s->params.mu[0] == (float)strip && s->params.balance[l->shape.d_k - 1] == (float)(l->shape.d_k - 1));
		for (uint32_t i = 0; i < v->span_count; i++) {
			const struct span *span = &s->spans[i];
			must(span->first == at && span->n && span->n <= BLOCK_MAX_ROWS);
			for (uint32_t r = 0; r < span->n; r++) {
				must(row_is(span->rows + (uint64_t)r * l->rows.stride, l->rows.stride, tags[at + r], strip));
				must(!span->codes || codes_are(span->codes, span->factors, span->block_row + r,
				                               code_width(l, s->params.bits), tags[at + r], strip));
			}
			coded += span->codes && h == 0 ? span->n : 0;
			must((l->rows.type == ROW_I8) == (span->frame != NULL));
			if (span->table != UINT32_MAX) {
				must(span->table < v->table_count);
				const struct table_view *t = &s->tables[span->table];
				must(i >= t->span_begin && i < t->span_end && span->first >= t->first &&
				     span->first + span->n <= t->first + t->rows);
				must(*(const uint8_t *)t->table == (uint8_t)(strip + 1));
			}
			at += span->n;
		}
		must(at == v->end);
	}
	return coded;
}

static inline uint64_t view_all(struct context *c, uint32_t layer, const uint64_t *tags)
{
	struct layer_view v;
	ck_assert_int_eq(layer_view_get(f.store, c, layer, 0, context_committed(c), &v), 0);
	uint64_t coded = check_view(&v, tags);
	layer_view_free(f.store, &v);
	return coded;
}

static inline void audit(void (*each)(struct walk *, const struct walk_context *, void *), void *arg)
{
	struct walk w;
	walk_pool(&w, pool_at(f.pool, 0), pool_bytes(f.pool), each, arg);
	ck_assert_uint_eq(w.reached, pool_used(f.pool));
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), w.reached - POOL_GRANULE - walk_round(8ull * POOL_MAX_CONTEXTS));
	walk_free(&w);
}

#endif
