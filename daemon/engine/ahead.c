#include "daemon/engine/ahead.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/engine/pilot.h"
#include "daemon/engine/upper.h"

enum { LINE = 64, MOST_LINES = 0xffff, UNREAD = 8 };

struct ahead *ahead_create(uint32_t workers, uint64_t bytes)
{
	struct ahead *a = aligned_alloc(64, sizeof(*a));
	struct ahead_lane *lane = aligned_alloc(64, workers * sizeof(*lane));
	if (!a || !lane) {
		free(a);
		free(lane);
		return NULL;
	}
	memset(a, 0, sizeof(*a));
	memset(lane, 0, workers * sizeof(*lane));
	a->lanes = workers;
	a->lane = lane;
	atomic_init(&a->bytes, bytes);
	return a;
}

void ahead_destroy(struct ahead *a)
{
	if (!a)
		return;
	free(a->lane);
	free(a);
}

void engine_set_ahead(struct engine *e, uint64_t bytes)
{
	atomic_store_explicit(&e->ahead->bytes, bytes, memory_order_relaxed);
}

bool ahead_stop(struct ahead *a, uint64_t *list)
{
	// Two that do so at once may store the same, which says as much. A list that is being made meanwhile does not come up.
	uint64_t before = atomic_load_explicit(&a->list, memory_order_relaxed);
	*list = (before | 1) + 1;
	atomic_store_explicit(&a->list, *list, memory_order_relaxed);
	return before & 1;
}

// ---- what follows what -----------------------------------------------------------------------------------------------
// Two tables in which the newest entry of a place stays. last: 48 bits of a context's hash << 16 | its last layer. next, of a layer: 47 bits
// of both's hash << 17 | seen twice in a row << 16 | the layer that followed.
enum { LAYER_BITS = 16, UNKNOWN = UINT32_MAX };
static const uint64_t LAYER_MASK = UINT64_C(0xffff), TWICE = UINT64_C(1) << LAYER_BITS;

static uint64_t tag_of(uint64_t hash, unsigned bits)
{
	return hash & ~((UINT64_C(1) << bits) - 1);
}

static bool same_tag(uint64_t word, uint64_t hash, unsigned bits)
{
	return tag_of(word, bits) == tag_of(hash, bits);
}

// The layer that is to follow, or UNKNOWN; foreseen: that this one did was known.
static uint32_t learn(struct ahead *a, uint64_t context, uint32_t layer, bool *foreseen)
{
	uint64_t id = rng_hash(context, 1);
	_Atomic uint64_t *last = &a->last[id % AHEAD_LAST];
	uint64_t before = atomic_exchange_explicit(last, tag_of(id, LAYER_BITS) | layer, memory_order_relaxed);
	*foreseen = false;
	if (same_tag(before, id, LAYER_BITS)) {
		uint64_t from = rng_hash(id, before & LAYER_MASK);
		_Atomic uint64_t *next = &a->next[from % AHEAD_NEXT];
		uint64_t known = atomic_load_explicit(next, memory_order_relaxed);
		bool again = same_tag(known, from, LAYER_BITS + 1) && (known & LAYER_MASK) == layer;
		*foreseen = again && known & TWICE;
		if (!*foreseen)
			atomic_store_explicit(next, tag_of(from, LAYER_BITS + 1) | (again ? TWICE : 0) | layer,
			                      memory_order_relaxed);
	}
	uint64_t here = rng_hash(id, layer), then = atomic_load_explicit(&a->next[here % AHEAD_NEXT], memory_order_relaxed);
	return same_tag(then, here, LAYER_BITS + 1) && then & TWICE ? (uint32_t)(then & LAYER_MASK) : UNKNOWN;
}

// ---- lanes -----------------------------------------------------------------------------------------------------------
struct maker {
	struct ahead *ahead;
	struct ahead_lane *lane;
	uint32_t most; // lines of a lane
	struct {
		const struct ahead_lane *lane; // NULL: there is none yet
		uint32_t group, from, to;      // its runs
	} pilot;                               // of the lane before: workers of one KV head read the same
};

static uint32_t runs(const struct ahead_lane *lane)
{
	return atomic_load_explicit(&lane->count, memory_order_relaxed);
}

static bool room(const struct maker *m)
{
	return m->lane->planned < m->most && runs(m->lane) < AHEAD_RUNS;
}

// Up to MOST_LINES; what there is no room for is left out.
static void add_run(struct maker *m, uint64_t line, uint64_t n)
{
	if (!room(m))
		return;
	struct ahead_lane *lane = m->lane;
	uint32_t count = runs(lane), left = m->most - lane->planned;
	n = n < left ? n : left;
	atomic_store_explicit(&lane->run[count], line << 16 | n, memory_order_relaxed);
	atomic_store_explicit(&lane->count, count + 1, memory_order_release); // partner: engine_read_ahead
	lane->planned += (uint32_t)n;
}

static void add(void *data, const void *from, size_t bytes)
{
	uint64_t line = (uintptr_t)from / LINE, end = ((uintptr_t)from + bytes + LINE - 1) / LINE;
	for (uint64_t n; bytes && line < end; line += n) {
		n = end - line < MOST_LINES ? end - line : MOST_LINES;
		add_run(data, line, n);
	}
}

static void add_pilot(struct maker *m, const struct attend *a, uint32_t g)
{
	const struct ahead_lane *before = m->pilot.group == g ? m->pilot.lane : NULL;
	uint32_t from = runs(m->lane);
	if (!before)
		pilot_reads(a, g, add, m);
	for (uint32_t i = m->pilot.from; before && i < m->pilot.to; i++) {
		uint64_t run = atomic_load_explicit(&before->run[i], memory_order_relaxed);
		add_run(m, run >> 16, run & MOST_LINES);
	}
	m->pilot.lane = m->lane;
	m->pilot.group = g;
	m->pilot.from = from;
	m->pilot.to = runs(m->lane);
}

static void add_span(struct maker *m, const struct attend *a, uint32_t g, const struct span *span)
{
	if (!span->codes)
		return;
	uint32_t d_pad = a->layer->d_pad, bits = a->view.strip[g].params.bits;
	uint32_t begin = span->block_row & ~(SIG_GROUP - 1), end = span->block_row + span->n;
	const uint8_t *codes = span->codes + sig_code_bytes(d_pad, bits, begin);
	add(m, codes, sig_code_bytes(d_pad, bits, end - begin));
	add(m, span->factors + begin, (end - begin) * sizeof(*span->factors));
}

// What is looked at of every group of an upper layer: which others are, is not known yet.
static void add_upper(struct maker *m, const struct attend *a, uint32_t g, const struct table_view *t)
{
	struct upper u = upper_at((void *)(uintptr_t)t->table, a->layer->d_pad, a->view.strip[g].params.bits, t->rows);
	add(m, u.summaries, (size_t)(u.codes - u.summaries));
	add(m, u.factors, (size_t)u.groups * sizeof(*u.factors));
	add(m, u.spreads, (size_t)u.groups * sizeof(*u.spreads));
}

static void add_unit(struct maker *m, const struct attend *a, uint32_t g, uint32_t first, uint32_t end)
{
	if (upper_through(a, first)) {
		add_upper(m, a, g, &a->view.strip[g].uppers[a->view.strip[g].spans[first].upper]);
		return;
	}
	for (uint32_t s = first; s < end; s++)
		add_span(m, a, g, &a->view.strip[g].spans[s]);
}

// The units that a worker begins with, up to those that the next one begins with; those that begin at the same place take turns. Before
// those of a KV head, its pilot, if this worker is one of those that run it.
static void make_lane(struct maker *m, const struct attend *a, uint32_t worker, const uint32_t *first)
{
	uint32_t units = a->main_units, groups = a->layer->shape.kv_heads, workers = m->ahead->lanes;
	struct place at = place_of(worker, workers, groups, units), end = at;
	uint32_t turn = 0, turns = 1;
	while (turn < worker && place_same(place_of(worker - turn - 1, workers, groups, units), at))
		turn++;
	while (place_same(end = place_of(worker - turn + turns, workers, groups, units), at))
		turns++;
	for (uint32_t g = at.group; g < groups && (g < end.group || (g == end.group && end.unit)); g++) {
		uint32_t from = g == at.group ? at.unit + turn : 0, to = g == end.group ? end.unit : units;
		if (g == at.group || to == units)
			add_pilot(m, a, g);
		for (uint32_t u = from; u < to && room(m); u += turns)
			add_unit(m, a, g, first[u], first[u + 1]);
	}
}

static void make_lanes(struct maker *m, const struct attend *a)
{
	uint32_t *first = malloc((a->view.span_count + (size_t)1) * sizeof(*first));
	if (!first)
		return;
	struct attend cut = *a;
	cut.main_units = signature_cut(&cut, first);
	for (uint32_t w = 0; cut.main_units && w < m->ahead->lanes; w++) {
		m->lane = &m->ahead->lane[w];
		make_lane(m, &cut, w, first);
	}
	free(first);
}

// Appends what the ATTEND would read to the lists, or begins them.
static void make(struct engine *e, struct maker *m, struct context *c, const struct engine_foresight *next)
{
	struct ahead *ahead = e->ahead;
	uint64_t list = next->list, end = next->end;
	if (atomic_load_explicit(&ahead->list, memory_order_relaxed) != list)
		return; // a request was planned since the answer: it may well be the one that this would be about
	// Where workers never wait, lists are made for nobody.
	uint32_t unread = list & 1 ? 0 : atomic_fetch_add_explicit(&ahead->unread, 1, memory_order_relaxed);
	if (unread > UNREAD && unread % UNREAD)
		return;
	for (uint32_t w = 0; !(list & 1) && w < ahead->lanes; w++) {
		atomic_store_explicit(&ahead->lane[w].count, 0, memory_order_relaxed);
		ahead->lane[w].planned = 0;
	}
	m->lane = &ahead->lane[0];
	struct attend a = {
		.layer = context_layer(c, next->layer), .tokens = 1, .group_heads = 1, .queries = 1, .delta = next->delta};
	if (!room(m) || !a.layer || !a.layer->wire.signature_bits ||
	    layer_view_get(e->store, c, next->layer, next->begin, end, &a.view))
		return;
	a.limit = &end;
	a.upper = next->upper && a.view.upper_count;
	if (a.view.strip[0].params.mu)
		make_lanes(m, &a);
	layer_view_free(e->store, &a.view);
	if (!(list & 1)) // unless one was meanwhile
		atomic_compare_exchange_strong_explicit(&ahead->list, &list, (list | 1) + 2, memory_order_release,
		                                        memory_order_relaxed);
}

void engine_list_ahead(struct engine *e, struct context *c, const struct engine_foresight *next)
{
	struct ahead *ahead = e->ahead;
	if (!next->some || atomic_exchange_explicit(&ahead->making, true, memory_order_acquire))
		return;
	uint64_t lines = atomic_load_explicit(&ahead->bytes, memory_order_relaxed) / LINE;
	struct maker m = {.ahead = ahead, .most = (uint32_t)(lines < UINT32_MAX ? lines : UINT32_MAX)};
	make(e, &m, c, next);
	atomic_store_explicit(&ahead->making, false, memory_order_release);
}

// Whether somebody has begun each of its units: whoever is idle now stays so until the answer.
static bool all_claimed(const struct job *j)
{
	const struct round *r = atomic_load_explicit(&j->round, memory_order_acquire);
	for (uint32_t g = 0; g < r->group_count; g++)
		if (atomic_load_explicit(&r->group[g].main_next, memory_order_relaxed) < r->group[g].main_n)
			return false;
	return true;
}

bool job_learn(struct job *j, struct engine_foresight *next)
{
	struct ahead *ahead = j->engine->ahead;
	const struct attend *a = &j->attend;
	next->some = false;
	if (!atomic_load_explicit(&ahead->bytes, memory_order_relaxed) || j->request.entry.op != MPIG_OP_ATTEND || !j->ops ||
	    (a->how != &signature_proposal && a->how != &verified_proposal) ||
	    atomic_load_explicit(&j->learned, memory_order_relaxed) || !all_claimed(j) ||
	    atomic_exchange_explicit(&j->learned, true, memory_order_relaxed))
		return false;
	bool foreseen;
	uint32_t layer = learn(ahead, context_id(j->request.context), j->request.entry.layer, &foreseen);
	if (layer != UNKNOWN)
		*next = (struct engine_foresight){.some = true,
		                                  .upper = a->upper,
		                                  .layer = layer,
		                                  .delta = a->delta,
		                                  .begin = a->view.begin,
		                                  .end = a->view.end,
		                                  .list = atomic_load_explicit(&j->ahead_list, memory_order_relaxed)};
	return foreseen;
}

// ---- fetching --------------------------------------------------------------------------------------------------------
uint32_t engine_read_ahead(struct engine *e, uint32_t worker)
{
	struct ahead *ahead = e->ahead;
	uint64_t list = atomic_load_explicit(&ahead->list, memory_order_acquire);
	if (!(list & 1) || worker >= ahead->lanes)
		return 0;
	struct ahead_lane *lane = &ahead->lane[worker];
	if (lane->seen != list) {
		lane->seen = list;
		lane->at = lane->line = 0;
		atomic_store_explicit(&ahead->unread, 0, memory_order_relaxed);
	}
	uint32_t lines = 0, count = atomic_load_explicit(&lane->count, memory_order_acquire);
	while (lane->at < count && lines < AHEAD_STEP) {
		uint64_t run = atomic_load_explicit(&lane->run[lane->at], memory_order_relaxed);
		uint32_t all = (uint32_t)(run & MOST_LINES), left = all > lane->line ? all - lane->line : 0;
		uint32_t n = left < AHEAD_STEP - lines ? left : AHEAD_STEP - lines;
		const char *from = (const char *)(uintptr_t)(((run >> 16) + lane->line) * LINE);
		for (uint32_t i = 0; i < n; i++)
			__builtin_prefetch(from + (size_t)i * LINE, 0, 2);
		lines += n;
		lane->line += n;
		if (n == left) {
			lane->at++;
			lane->line = 0;
		}
	}
	return lines * LINE;
}
