// Plans an ATTEND from a checked request, and turns its units' partial results into the answer.
#include "daemon/engine/attend.h"
#include "daemon/base/probe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/ahead.h"
#include "daemon/engine/ratio.h"

enum { DENSE_ROWS = 4096 }; // under an error target shorter ranges are not worth a sample

// Least share of rows of a verified answer, and so of the sample that measures for it: with .5 % of some thousand rows that sample misses
// heavy rows of heads that have a dozen of them, and the promise is broken by a third of such heads (tools/quality).
static const float VERIFIED_FLOOR = .02f;
static const uint64_t MAX_JOB_BYTES = UINT64_C(4) << 30;

static const struct proposal *const proposals[MPIG_PROPOSAL_COUNT] = {
	[MPIG_PROPOSAL_DENSE] = &dense_proposal,
	[MPIG_PROPOSAL_SIGNATURE] = &signature_proposal,
	[MPIG_PROPOSAL_PAPER] = &paper_proposal,
	[MPIG_PROPOSAL_TOPK] = &topk_proposal,
	[MPIG_PROPOSAL_UNIFORM] = &uniform_proposal,
	[MPIG_PROPOSAL_TOPK_ESTIMATED] = &topk_estimated_proposal,
	[MPIG_PROPOSAL_HEAVY_UNIFORM] = &heavy_uniform_proposal,
	[MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED] = &heavy_uniform_estimated_proposal,
	[MPIG_PROPOSAL_WINDOW] = &window_proposal,
	[MPIG_PROPOSAL_CROSSPOLYTOPE] = &crosspolytope_proposal,
};

// What the context's profile says of a request that names neither share nor error target, nor another proposal.
static const struct engine_default *profile_default(const struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	const struct engine_default *of_layer = j->request.defaults ? &j->request.defaults[e->layer] : NULL;
	if (!of_layer || !of_layer->proposal || e->budget > 0 || j->request.slot.error_target > 0)
		return NULL;
	return !e->proposal || e->proposal == of_layer->proposal ? of_layer : NULL;
}

// How many rows: a share, or as many as an error target needs. A request's error target comes before its share, a share before
// what the profile, the layer and the daemon say.
static int choose_budget(struct job *j, const struct layer *layer, const struct engine_default *profile)
{
	const struct mpig_slot_header *h = &j->request.slot;
	const struct engine *engine = j->engine;
	struct attend *a = &j->attend;
	static const struct engine_default none;
	const struct engine_default *says = profile ? profile : &none;
	bool steered = says->budget > 0 || says->error_target > 0; // by the profile: the layer's share is out of the question
	float share = j->request.entry.budget > 0 ? j->request.entry.budget : steered ? says->budget : layer->wire.default_budget;
	a->budget = share > 0 ? share : engine->default_budget;
	if (h->delta > 0 && a->proposal != MPIG_PROPOSAL_SIGNATURE && a->proposal != MPIG_PROPOSAL_DENSE)
		return job_fail(j, MPIG_ENOTSUP, "delta: proposal %u cannot be verified", a->proposal);
	if (a->proposal != MPIG_PROPOSAL_SIGNATURE)
		return 0;
	a->delta = h->delta;
	a->error_target = h->error_target > 0      ? h->error_target
	                  : says->error_target > 0 ? says->error_target
	                  : share > 0              ? 0
	                                           : engine->error_target;
	a->budget_cap = h->budget_cap > 0      ? h->budget_cap
	                : h->delta > 0         ? 1
	                : says->budget_cap > 0 ? says->budget_cap
	                                       : engine->budget_cap;
	a->budget_floor = h->budget_floor > 0      ? h->budget_floor
	                  : says->budget_floor > 0 ? says->budget_floor
	                                           : engine->budget_floor;
	if (h->delta > 0 && !(h->budget_floor > 0))
		a->budget_floor = fminf(fmaxf(a->budget_floor, VERIFIED_FLOOR), a->budget_cap);
	if (a->budget_cap < a->budget_floor && h->budget_cap > 0 && h->budget_floor > 0)
		return job_fail(j, MPIG_EINVAL, "budget_cap %g is below budget_floor %g", (double)a->budget_cap,
		                (double)a->budget_floor);
	return 0;
}

static int check_request(struct job *j, const struct layer *layer)
{
	const struct mpig_sqe *e = &j->request.entry;
	const struct mpig_slot_header *h = &j->request.slot;
	struct attend *a = &j->attend;
	int status;
	if (!e->count || e->count > MPIG_MAX_QUERY_TOKENS)
		return job_fail(j, MPIG_EINVAL, "query tokens %u not in 1..%u", e->count, MPIG_MAX_QUERY_TOKENS);
	if (e->dtype != MPIG_F32 && e->dtype != MPIG_BF16 && e->dtype != MPIG_F16)
		return job_fail(j, MPIG_EINVAL, "dtype %u of q is not fp32, bf16 or fp16", e->dtype);
	if (e->proposal >= MPIG_PROPOSAL_COUNT)
		return job_fail(j, MPIG_EINVAL, "proposal %u not in 0..%u", e->proposal, MPIG_PROPOSAL_COUNT - 1);
	if (!isfinite(e->budget) || e->budget < 0 || e->budget > 1)
		return job_fail(j, MPIG_EINVAL, "budget %g is not a share of rows in (0, 1]", (double)e->budget);
	if (!isfinite(h->error_target) || h->error_target < 0 || h->error_target > 1)
		return job_fail(j, MPIG_EINVAL, "error_target %g not in [0, 1]", (double)h->error_target);
	if (!(h->budget_floor >= 0 && h->budget_floor <= 1 && h->budget_cap >= 0 && h->budget_cap <= 1))
		return job_fail(j, MPIG_EINVAL, "budget_floor %g or budget_cap %g not in [0, 1]", (double)h->budget_floor,
		                (double)h->budget_cap);
	if (!(h->delta >= 0 && h->delta < 1) || (h->delta > 0 && !(h->error_target > 0)))
		return job_fail(j, MPIG_EINVAL, "delta %g not in (0, 1), or without an error_target (%g)", (double)h->delta,
		                (double)h->error_target);
	if ((h->present & MPIG_HAS_WINDOW_OUT) && !(h->present & MPIG_HAS_WINDOW_LSE))
		return job_fail(j, MPIG_EINVAL, "a window output without its LSE");
	if (h->present & ~(uint32_t)(MPIG_HAS_WINDOW_LSE | MPIG_HAS_SIGNATURE | MPIG_HAS_WINDOW_OUT))
		return job_fail(j, MPIG_EPROTO, "present 0x%x has bits that ATTEND does not know", h->present);
	a->layout = mpig_attend_layout(&layer->shape, e->count, e->dtype, h->present);
	if (!j->request.payload_in || a->layout.bytes > j->request.slot_bytes)
		return job_fail(j, MPIG_EINVAL, "the payload needs %llu bytes, the slot has %llu",
		                (unsigned long long)a->layout.bytes, (unsigned long long)j->request.slot_bytes);
	const struct engine_default *profile = profile_default(j);
	a->proposal = e->proposal ? e->proposal : profile ? profile->proposal : layer->wire.default_proposal;
	a->how = proposals[a->proposal];
	if (a->how->check && (status = a->how->check(j, layer)))
		return status;
	return choose_budget(j, layer, profile);
}

// The token range: [begin, end), where a relative end that falls before begin is an empty range, not an error: a context that is
// shorter than the client's window.
static int resolve_range(struct job *j, uint64_t *begin, uint64_t *end)
{
	const struct mpig_sqe *e = &j->request.entry;
	uint64_t committed = context_committed(j->request.context);
	*begin = e->begin;
	if (e->flags & MPIG_SQE_END_RELATIVE) {
		if (e->end > 0)
			return job_fail(j, MPIG_ERANGE, "relative end %lld is after the committed tokens", (long long)e->end);
		uint64_t back = (uint64_t)0 - (uint64_t)e->end;
		*end = back > committed ? 0 : committed - back;
		if (*begin > *end)
			*begin = *end;
		return 0;
	}
	if (e->end < 0 || (uint64_t)e->end > committed || *begin > (uint64_t)e->end)
		return job_fail(j, MPIG_ERANGE, "range %llu..%lld is not inside the %llu committed tokens",
		                (unsigned long long)*begin, (long long)e->end, (unsigned long long)committed);
	*end = (uint64_t)e->end;
	return 0;
}

static void set_limits(struct job *j)
{
	struct attend *a = &j->attend;
	for (uint32_t t = 0; t < a->tokens; t++) {
		uint64_t limit = a->view.end;
		uint64_t seen;
		if ((j->request.entry.flags & MPIG_SQE_CAUSAL) &&
		    !__builtin_add_overflow(j->request.slot.causal_base, t, &seen) && seen < limit)
			limit = seen;
		a->limit[t] = limit;
	}
}

static bool copy_window_out(const struct attend *a, const uint8_t *given, size_t from, size_t to)
{
	size_t d_v = a->layer->shape.d_v;
	return payload_to_f32(given + from * d_v * sizeof(float), MPIG_F32, d_v, a->window_out + to * d_v);
}

// [T][query heads] of the payload to [t][j] of a KV head.
static int copy_queries(struct job *j, uint32_t g, const uint8_t *slot)
{
	struct attend *a = &j->attend;
	const struct mpig_layer_shape *s = &a->layer->shape;
	const size_t d = s->d_k, bytes = d * mpig_dtype_bytes(j->request.entry.dtype);
	for (uint32_t r = 0; r < a->queries; r++) {
		size_t from = (size_t)attend_token(a, r) * s->query_heads + attend_head(a, g, r), to = (size_t)g * a->queries + r;
		if (!payload_to_f32(slot + a->layout.q + from * bytes, j->request.entry.dtype, d, a->q + to * d))
			return job_fail(j, MPIG_ENAN, "q of layer %u holds NaN or infinity", j->request.entry.layer);
		if (a->window_lse) {
			memcpy(&a->window_lse[to], slot + a->layout.window_lse + from * 4, 4);
			if (isnan(a->window_lse[to]))
				return job_fail(j, MPIG_ENAN, "the window LSE of layer %u holds NaN", j->request.entry.layer);
		}
		if (a->window_out && !copy_window_out(a, slot + a->layout.window_out, from, to))
			return job_fail(j, MPIG_ENAN, "the window output of layer %u holds NaN or infinity",
			                j->request.entry.layer);
		if (a->client_signature) {
			size_t p = a->layer->d_pad;
			float scale;
			memcpy(a->signature + to * p, slot + a->layout.signature + from * p, p);
			memcpy(&scale, slot + a->layout.signature_scale + from * 4, 4);
			if (!isfinite(scale))
				return job_fail(j, MPIG_ENAN, "a signature scale of layer %u is not finite",
				                j->request.entry.layer);
			a->sig[to].factor = scale;
		}
	}
	return 0;
}

// A short job is planned in the time that one unit takes: its units copy for themselves, at the same time.
static int copy_all_queries(struct job *j)
{
	struct attend *a = &j->attend;
	if (a->how == &dense_proposal && a->main_units == 1) {
		a->later = j->request.payload_in;
		return 0;
	}
	int status = 0;
	for (uint32_t g = 0; g < a->layer->shape.kv_heads && !status; g++)
		status = copy_queries(j, g, j->request.payload_in);
	return status;
}

int attend_queries(struct job *j, uint32_t g)
{
	return j->attend.later ? copy_queries(j, g, j->attend.later) : 0;
}

static void carve_arrays(struct job *j, struct carve *c)
{
	struct attend *a = &j->attend;
	const struct mpig_layer_shape *s = &a->layer->shape;
	uint64_t all = (uint64_t)s->kv_heads * a->queries;
	a->q = carve(c, all * s->d_k, sizeof(float));
	a->limit = carve(c, a->tokens, sizeof(uint64_t));
	a->window_lse = j->request.slot.present & MPIG_HAS_WINDOW_LSE ? carve(c, all, sizeof(float)) : NULL;
	if (a->how->carve)
		a->how->carve(j, c);
	a->partial = carve(c, all * a->main_units, a->partial_bytes);
	a->reads = carve(c, s->kv_heads, sizeof(*a->reads));
	a->done = a->how->ops.merge && a->main_units > 1 ? carve(c, s->kv_heads, a->done_bytes) : NULL;
}

static int lay_out(struct job *j)
{
	struct attend *a = &j->attend;
	a->partial_bytes = (attn_partial_bytes(a->layer->shape.d_v) + 63) & ~(size_t)63;
	a->main_units = a->how->main_units ? a->how->main_units(a) : a->view.span_count;
	a->done_bytes = (a->main_units + 63) & ~UINT32_C(63);
	struct carve c = {0};
	carve_arrays(j, &c);
	if (c.overflow || c.used > MAX_JOB_BYTES)
		return job_fail(j, MPIG_ELIMIT,
		                "%u query tokens over %llu rows need more than 4 GiB of work space: send fewer at a time",
		                a->tokens, (unsigned long long)(a->view.end - a->view.begin));
	j->memory = memory_get(&j->engine->memory, c.used);
	if (!j->memory)
		return job_fail(
			j, MPIG_ENOMEM,
			"no memory for %zu bytes of work space beside that of other requests: send fewer query tokens at a "
			"time, or fewer requests",
			c.used);
	c = (struct carve){.base = j->memory};
	carve_arrays(j, &c);
	return 0;
}

static int make_round(struct job *j)
{
	struct attend *a = &j->attend;
	uint32_t groups = a->layer->shape.kv_heads;
	struct round *r = round_new(j, groups);
	if (!r)
		return job_fail(j, MPIG_ENOMEM, "no memory for %u KV heads", groups);
	memset(a->reads, 0, groups * sizeof(*a->reads));
	if (a->done)
		memset(a->done, 0, (size_t)groups * a->done_bytes);
	for (uint32_t g = 0; g < groups; g++) {
		r->group[g].done = a->done ? a->done + (size_t)g * a->done_bytes : NULL;
		r->group[g].pre_n = a->how->pre_units ? a->how->pre_units(a) : a->how->ops.pre ? 1 : 0;
		r->group[g].main_n = a->main_units;
		if (!r->group[g].pre_n && !a->main_units)
			r->group[g].pre_n = 1; // an empty range still has an answer to write
	}
	round_publish(j, r);
	return 0;
}

int attend_plan(struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	struct attend *a = &j->attend;
	uint64_t list;
	j->read_ahead = ahead_stop(j->engine->ahead, &list);
	atomic_init(&j->ahead_list, list);
	a->layer = context_layer(j->request.context, e->layer);
	if (!a->layer)
		return job_fail(j, MPIG_EINVAL, "layer %u stores no rows, or the context has only %u layers", e->layer,
		                context_layer_count(j->request.context));
	int status = check_request(j, a->layer);
	uint64_t begin = 0, end = 0;
	if (status || (status = resolve_range(j, &begin, &end)))
		return status;
	a->tokens = e->count;
	a->group_heads = a->layer->shape.query_heads / a->layer->shape.kv_heads;
	a->queries = a->tokens * a->group_heads;
	a->seed = e->flags & MPIG_SQE_SEED_SEQUENCE ? e->seed + j->request.sequence : e->seed;
	a->position = j->request.slot.query_position;
	status = layer_view_get(j->engine->store, j->request.context, e->layer, begin, end, &a->view);
	if (status)
		return job_fail(j, status, "rows %llu..%llu of layer %u: %s", (unsigned long long)begin, (unsigned long long)end,
		                e->layer, mpig_status_text(status));
	bool unindexed = a->how->estimates && !a->view.strip[0].params.mu;
	bool cheap = a->error_target > 0 && end - begin < DENSE_ROWS;
	if (unindexed || cheap) {
		a->how = &dense_proposal;
		a->delta = a->error_target = 0; // exact anyway
	}
	if (a->delta > 0) {
		a->how = &verified_proposal;
		a->measuring = true;
		a->deviations = verify_deviations((double)a->delta);
		a->seed = verify_seed(a->seed);
	}
	a->upper = a->how == &signature_proposal && a->view.upper_count && j->engine->upper_rows &&
	           end - begin >= j->engine->upper_rows;
	j->ops = &a->how->ops; // from here on attend_release undoes everything
	if ((status = lay_out(j)))
		return status;
	a->client_signature = a->sig && (j->request.slot.present & MPIG_HAS_SIGNATURE) &&
	                      j->request.slot.signature_version == a->view.signature_version;
	set_limits(j);
	if ((status = copy_all_queries(j)))
		return status;
	if (a->how->prepare && (status = a->how->prepare(j)))
		return status;
	return make_round(j);
}

void attend_release(struct job *j)
{
	hash_set_put(j->engine->hashes, j->attend.hashes);
	j->attend.hashes = NULL;
	layer_view_free(j->engine->store, &j->attend.view);
}

float attend_alibi_slope(const struct attend *a, uint32_t g, uint32_t r)
{
	float base = a->layer->wire.alibi_slope_base;
	return base > 0 ? powf(base, (float)(attend_head(a, g, r) + 1)) : 0;
}

void attend_logits(const struct attend *a, uint32_t g, uint32_t r, uint64_t first, const float *frame, struct row_query *out)
{
	struct attn_head h = {.scale = a->layer->scale, .softcap = a->layer->wire.softcap};
	out->q = attend_query(a, g, r);
	if (frame) {
		h.q_centre = row_frame_query(frame, out->q, a->layer->shape.d_k, out->framed);
		out->q = out->framed;
	}
	h.alibi_slope = attend_alibi_slope(a, g, r);
	if (h.alibi_slope != 0)
		h.alibi_base = (float)((double)first - (double)(a->position + attend_token(a, r)));
	out->head = h;
}

static double realised(const struct attend *a, uint32_t g, uint32_t r, float lse, float error_a)
{
	size_t at = (size_t)g * a->queries + r;
	double share = a->window_lse ? 1 / (1 + exp((double)a->window_lse[at] - (double)lse)) : 1;
	return (double)error_a * share * share / (double)a->predicted[at];
}

// Most partial results are in the caches of other cores: asked for before they are wanted.
static void fetch_partial(const struct attend *a, uint32_t g, uint32_t unit, uint32_t r)
{
	const char *partial = (const char *)attend_partial(a, g, unit, r);
	for (size_t at = 0; at < a->partial_bytes; at += 64)
		__builtin_prefetch(partial + at);
}

void attend_merge(const struct attend *a, uint32_t g, uint32_t r, struct attn_partial *total)
{
	attn_partial_clear(total, a->layer->shape.d_v);
	enum { AHEAD = 2 };
	for (uint32_t u = 0; u < a->main_units; u++) {
		fetch_partial(a, g, u + AHEAD < a->main_units ? u + AHEAD : u, r);
		attn_partial_merge(total, attend_partial(a, g, u, r), a->layer->shape.d_v);
	}
}

int attend_merge_unit(struct job *j, uint32_t g, uint32_t to, uint32_t unit)
{
	const struct attend *a = &j->attend;
	enum { AHEAD = 2 };
	for (uint32_t r = 0; r < a->queries && r < AHEAD; r++)
		fetch_partial(a, g, unit, r);
	for (uint32_t r = 0; r < a->queries; r++) {
		if (r + AHEAD < a->queries)
			fetch_partial(a, g, unit, r + AHEAD);
		attn_partial_merge(attend_partial(a, g, to, r), attend_partial(a, g, unit, r), a->layer->shape.d_v);
	}
	return 0;
}

// All units of a query together; made in `memory` where they are not merged yet.
static const struct attn_partial *total_of(const struct job *j, uint32_t g, uint32_t r, struct attn_partial *memory)
{
	const struct attend *a = &j->attend;
	if (a->main_units == 1 || (a->main_units && j->ops->merge))
		return attend_partial(a, g, 0, r);
	attend_merge(a, g, r, memory);
	return memory;
}

// Writes the answer of the group's heads into the slot.
int attend_close(struct job *j, uint32_t g, struct engine_scratch *scratch)
{
	struct attend *a = &j->attend;
	uint32_t d_v = a->layer->shape.d_v;
	uint8_t *slot = j->request.payload_out;
	uint8_t *memory = scratch_get(scratch, a->partial_bytes + d_v * sizeof(float));
	if (!memory)
		return job_fail(j, MPIG_ENOMEM, "no memory to merge");
	float *out = (float *)(memory + a->partial_bytes),
	      *answer = (float *)(void *)(slot + a->layout.out); // parts of a slot are aligned
	uint64_t rows = 0;
	for (uint32_t r = 0; r < a->queries && a->tokens == 1; r++) // the client's caches have them
		for (size_t at = 0; at < d_v * sizeof(float); at += 64)
			__builtin_prefetch(slot + a->layout.out + (size_t)attend_head(a, g, r) * d_v * sizeof(float) + at, 1);
	for (uint32_t r = 0; r < a->queries; r++) {
		const struct attn_partial *total = total_of(j, g, r, (struct attn_partial *)memory);
		float lse, v, aa;
		attn_partial_finish(total, d_v, out, &lse, &v, &aa);
		size_t at = (size_t)attend_token(a, r) * a->layer->shape.query_heads + attend_head(a, g, r);
		memcpy(answer + at * d_v, out, (d_v - 1) * sizeof(float));
		memcpy(slot + a->layout.lse + at * 4, &lse, 4);
		memcpy(slot + a->layout.error_v + at * 4, &v, 4);
		memcpy(slot + a->layout.error_a + at * 4, &aa, 4);
		memcpy(slot + a->layout.rows + at * 4, &total->rows, 4);
		__atomic_store(answer + at * d_v + d_v - 1, out + d_v - 1, __ATOMIC_RELEASE); // last: a client may look for it
		rows += total->rows;
		if (a->predicted && a->predicted[(size_t)g * a->queries + r] > 0 && a->tokens == 1)
			ratio_note(j->request.context, a->layer, g, a->position, realised(a, g, r, lse, aa));
	}
	PROBE4(sampled, context_id(j->request.context), j->request.entry.layer, g, rows);
	return 0;
}

void attend_count(struct attend *a, uint32_t g, uint64_t rows, uint64_t bytes)
{
	atomic_fetch_add_explicit(&a->reads[g].rows, rows, memory_order_relaxed);
	atomic_fetch_add_explicit(&a->reads[g].bytes, bytes, memory_order_relaxed);
}

int attend_finish(struct job *j, struct engine_scratch *scratch)
{
	(void)scratch;
	for (uint32_t g = 0; g < j->attend.layer->shape.kv_heads; g++) {
		j->result.rows_read += atomic_load_explicit(&j->attend.reads[g].rows, memory_order_relaxed);
		j->result.bytes_read += atomic_load_explicit(&j->attend.reads[g].bytes, memory_order_relaxed);
	}
	return 0;
}
