// Reading: no lock. See internal.h for the pins.
#include <stdlib.h>

#include "daemon/store/internal.h"

enum { FETCHED_BLOCKS = 16 }; // of a segment with large blocks

struct view_head {
	uint64_t epoch;
}; // at the start of a view's memory

struct builder {
	const struct pool *pool;
	uint8_t *base; // pool_at(pool, 0)
	const struct layer *layer;
	const struct spec *spec;
	const struct snapshot *snap;
	const struct params *params;
	struct layer_view *view;
	uint32_t capacity; // spans of a strip
};

static uint32_t relaxed32(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

// The rows of ref i inside [begin, end), counted in the segment.
static void clip(const struct snapshot *snap, uint32_t i, uint64_t begin, uint64_t end, uint32_t *lo, uint32_t *hi)
{
	uint64_t first = snap->ref[i].first,
		 stop = i + 1 < snap->count && snap->ref[i + 1].first < end ? snap->ref[i + 1].first : end;
	*lo = begin > first ? (uint32_t)(begin - first) : 0;
	*hi = (uint32_t)(stop - first);
}

// Blocks of a segment that hold rows of [lo, hi). Their order in the segment is that of their rows.
static uint32_t count_blocks(const struct segment_record *r, uint32_t lo, uint32_t hi)
{
	uint32_t blocks = load_word32(&r->block_count), n = 0;
	for (uint32_t b = 0; b < blocks && relaxed32(&r->block[b].first_row) < hi; b++)
		n += relaxed32(&r->block[b].first_row) + relaxed32(&r->block[b].rows) > lo;
	return n;
}

static void add_uppers(const struct builder *v, uint64_t first, const struct generation_record *g)
{
	struct layer_view *view = v->view;
	struct table_extent *upper = generation_uppers((struct generation_record *)g);
	for (uint32_t h = 0; h < v->layer->shape.kv_heads; h++)
		view->strip[h].uppers[view->upper_count] = (struct table_view){
			.table = v->base + upper[v->layer->first_strip + h].offset,
			.first = first,
			.rows = g->upper_rows,
			.span_begin = view->span_count,
		};
	view->upper_count++;
}

static void add_tables(const struct builder *v, uint64_t first, const struct generation_record *g)
{
	struct layer_view *view = v->view;
	struct table_extent *table = generation_tables((struct generation_record *)g);
	for (uint32_t h = 0; h < v->layer->shape.kv_heads; h++)
		view->strip[h].tables[view->table_count] = (struct table_view){
			.table = v->base + table[v->layer->first_strip + h].offset,
			.first = first,
			.rows = g->table_rows,
			.span_begin = view->span_count,
		};
	view->table_count++;
}

static void add_spans(const struct builder *v, const struct segment *seg, const struct span *common, uint32_t block,
                      uint32_t rows, const struct generation_record *g)
{
	const struct layer *l = v->layer;
	const struct segment_record *r = seg->record;
	struct block_record *record = (void *)(v->base + load_word(&r->block[block].offset));
	uint64_t code_block = g && l->code_bytes_per_row ? load_word(&g->code_block[block]) : 0;
	const uint64_t *codes = code_block ? code_offsets((void *)(v->base + code_block)) : NULL;
	const uint8_t *bits = code_block ? generation_bits(g) : NULL;
	uint64_t row_bytes = (uint64_t)common->block_row * l->rows.stride;
	for (uint32_t h = 0; h < l->shape.kv_heads; h++) {
		uint32_t strip = l->first_strip + h;
		const uint8_t *code = codes ? v->base + load_word(&codes[strip]) : NULL;
		// Field by field: a copy of what was just written in parts waits for all of them.
		v->view->strip[h].spans[v->view->span_count] = (struct span){
			.first = common->first,
			.n = common->n,
			.rows = v->base + load_word(&block_rows(record)[strip]) + row_bytes,
			.codes = code,
			.factors = code ? (const uint16_t *)(const void *)(code + rows * code_bytes(v->spec, bits, strip)) : NULL,
			.block_row = common->block_row,
			.table = common->table,
			.upper = common->upper,
			.frame = l->rows.type == ROW_I8 ? segment_frame(v->pool, seg, strip) : NULL,
		};
	}
	v->view->span_count++;
}

// A segment's records are at the end of a chain of pointers, and by the time of a request in no cache: the links are asked for in all segments
// before the first is followed.
static void fetch_segments(const struct builder *v, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++)
		__builtin_prefetch(v->snap->ref[i].segment);
	for (uint32_t i = from; i < to; i++) {
		const struct segment_record *r = v->snap->ref[i].segment->record;
		for (size_t at = 0; at < FETCHED_BLOCKS * sizeof(r->block[0]) + sizeof(*r) - sizeof(r->block); at += 64)
			__builtin_prefetch((const char *)r + at);
	}
	for (uint32_t i = from; i < to && v->params; i++) {
		const struct generation_record *g = generation_of(v->pool, v->snap->ref[i].segment->record, v->params->offset);
		if (!g)
			continue;
		for (size_t at = 0; at < FETCHED_BLOCKS * sizeof(g->code_block[0]) + sizeof(*g) - sizeof(g->code_block); at += 64)
			__builtin_prefetch((const char *)g + at);
		__builtin_prefetch(&generation_bits(g)[v->layer->first_strip]);
	}
}

// A block's offsets of rows and codes are read for one layer a request, and by then are in no cache: they are asked for together.
static void fetch_blocks(const struct builder *v, const struct segment_record *r, const struct generation_record *g, uint32_t lo,
                         uint32_t hi)
{
	const struct layer *l = v->layer;
	uint32_t blocks = load_word32(&r->block_count), last = l->first_strip + l->shape.kv_heads - 1;
	for (uint32_t b = 0; b < blocks && relaxed32(&r->block[b].first_row) < hi; b++) {
		if (relaxed32(&r->block[b].first_row) + relaxed32(&r->block[b].rows) <= lo)
			continue;
		struct block_record *record = (void *)(v->base + load_word(&r->block[b].offset));
		uint64_t code_block = g && l->code_bytes_per_row ? load_word(&g->code_block[b]) : 0;
		__builtin_prefetch(&block_rows(record)[l->first_strip]);
		__builtin_prefetch(&block_rows(record)[last]);
		if (!code_block)
			continue;
		const uint64_t *codes = code_offsets((void *)(v->base + code_block));
		__builtin_prefetch(&codes[l->first_strip]);
		__builtin_prefetch(&codes[last]);
	}
}

// False: the segment holds less than was committed a moment ago: a truncation went by.
static bool add_segment(const struct builder *v, uint32_t i, uint64_t begin, uint64_t end)
{
	const struct segment *seg = v->snap->ref[i].segment;
	const struct segment_record *r = seg->record;
	const struct layer *l = v->layer;
	uint32_t lo, hi, blocks = load_word32(&r->block_count);
	clip(v->snap, i, begin, end, &lo, &hi);
	bool sealed = load_word32(&r->sealed_rows) != 0;
	const struct generation_record *g = v->params ? generation_of(v->pool, r, v->params->offset) : NULL;
	bool tables = g && sealed && l->wire.paper_k && load_word32(&g->table_rows);
	bool upper = g && sealed && l->may_have_upper && load_word32(&g->upper_rows);
	if (tables)
		add_tables(v, v->snap->ref[i].first, g);
	if (upper)
		add_uppers(v, v->snap->ref[i].first, g);
	fetch_blocks(v, r, g, lo, hi);
	for (uint32_t b = 0; b < blocks && lo < hi; b++) {
		uint32_t first = relaxed32(&r->block[b].first_row), rows = relaxed32(&r->block[b].rows);
		if (first + rows <= lo)
			continue;
		if (first > lo || v->view->span_count == v->capacity)
			return false;
		uint32_t stop = first + rows < hi ? first + rows : hi;
		struct span common = {
			.first = v->snap->ref[i].first + lo,
			.n = stop - lo,
			.block_row = lo - first,
			.table = tables ? v->view->table_count - 1 : UINT32_MAX,
			.upper = upper ? v->view->upper_count - 1 : UINT32_MAX,
		};
		add_spans(v, seg, &common, b, rows, g);
		lo = stop;
	}
	for (uint32_t h = 0; tables && h < l->shape.kv_heads; h++)
		v->view->strip[h].tables[v->view->table_count - 1].span_end = v->view->span_count;
	for (uint32_t h = 0; upper && h < l->shape.kv_heads; h++)
		v->view->strip[h].uppers[v->view->upper_count - 1].span_end = v->view->span_count;
	return lo == hi;
}

static uint64_t round64(uint64_t bytes)
{
	return (bytes + 63) & ~UINT64_C(63);
}

// One allocation: head, strips, spans of each strip, tables and upper layers of each strip.
static int allocate(struct builder *v, uint32_t segments)
{
	const struct layer *l = v->layer;
	uint64_t heads = l->shape.kv_heads, tables = l->wire.paper_k ? segments : 0, spans = v->capacity;
	uint64_t uppers = l->may_have_upper ? segments : 0;
	uint64_t strips_at = round64(sizeof(struct view_head)), spans_at = round64(strips_at + heads * sizeof(struct strip_view));
	uint64_t tables_at = round64(spans_at + heads * spans * sizeof(struct span));
	uint8_t *memory = malloc(tables_at + heads * (tables + uppers) * sizeof(struct table_view));
	if (!memory)
		return MPIG_ENOMEM;
	v->view->memory = memory;
	v->view->strip = (struct strip_view *)(void *)(memory + strips_at);
	for (uint64_t h = 0; h < heads; h++) {
		struct strip_view *strip = &v->view->strip[h];
		*strip = (struct strip_view){
			.spans = (struct span *)(void *)(memory + spans_at) + h * spans,
			.tables = (struct table_view *)(void *)(memory + tables_at) + h * tables,
			.uppers = (struct table_view *)(void *)(memory + tables_at) + heads * tables + h * uppers,
		};
		if (v->params) {
			strip->params.mu = spec_params(v->spec, v->base + v->params->offset, l->first_strip + (uint32_t)h);
			strip->params.balance = strip->params.mu + l->shape.d_k;
			strip->params.bits = params_bits((void *)(v->base + v->params->offset))[l->first_strip + h];
		}
	}
	return 0;
}

// 0, MPIG_ENOMEM, or MPIG_EAGAIN: what was looked at has changed, look again.
static int build(struct builder *v, uint64_t begin, uint64_t end)
{
	uint32_t from = 0, to = 0; // refs that hold [begin, end)
	if (begin < end) {
		from = snapshot_find(v->snap, begin);
		to = snapshot_find(v->snap, end - 1) + 1;
		if (from == UINT32_MAX || !to)
			return MPIG_EAGAIN;
	}
	fetch_segments(v, from, to);
	for (uint32_t i = from; i < to; i++) {
		uint32_t lo, hi;
		clip(v->snap, i, begin, end, &lo, &hi);
		v->capacity += count_blocks(v->snap->ref[i].segment->record, lo, hi);
	}
	int status = allocate(v, to - from);
	for (uint32_t i = from; i < to && !status; i++)
		if (!add_segment(v, i, begin, end))
			status = MPIG_EAGAIN;
	if (status)
		free(v->view->memory);
	return status;
}

static int look(struct context *c, const struct layer *l, uint64_t begin, uint64_t end, struct layer_view *view)
{
	if (atomic_load(&c->dropped))
		return MPIG_ENOENT;
	const struct snapshot *snap;
	uint64_t committed;
	// A snapshot covers every `committed` that was stored while it was the current one; while we hold a pin its address is
	// not reused.
	do {
		snap = atomic_load(&c->snapshot);
		committed = atomic_load(&c->committed);
	} while (snap != atomic_load(&c->snapshot));
	if (end > committed)
		return MPIG_ERANGE;
	struct layer_view made = {.layer = l, .begin = begin, .end = end, .committed = committed, .context = c};
	struct builder v = {
		.pool = c->store->pool,
		.base = pool_at(c->store->pool, 0),
		.layer = l,
		.spec = c->spec,
		.snap = snap,
		.params = atomic_load(&c->params),
		.view = &made,
	};
	made.signature_version = v.params ? v.params->version : 0;
	int status = build(&v, begin, end);
	if (!status)
		*view = made;
	return status;
}

int layer_view_get(struct store *s, struct context *c, uint32_t layer, uint64_t begin, uint64_t end, struct layer_view *view)
{
	const struct layer *l = context_layer(c, layer);
	if (!l)
		return MPIG_EINVAL;
	if (begin > end)
		return MPIG_ERANGE;
	context_ref(c);
	uint64_t epoch = context_pin(c);
	int status;
	do
		status = look(c, l, begin, end, view);
	while (status == MPIG_EAGAIN);
	if (status) {
		context_unpin(c, epoch);
		context_unref(c);
		return status;
	}
	((struct view_head *)view->memory)->epoch = epoch;
	atomic_store_explicit(&c->used_ns, store_now(s), memory_order_relaxed);
	return 0;
}

void layer_view_free(struct store *s, struct layer_view *view)
{
	(void)s;
	if (!view->context)
		return;
	context_unpin(view->context, ((struct view_head *)view->memory)->epoch);
	context_unref(view->context);
	free(view->memory);
	*view = (struct layer_view){0};
}
