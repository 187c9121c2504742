// Payloads of single requests: checked against the layer's shape before they touch a slot.
#include "internal.h"

#include <math.h>
#include <string.h>

int layer_check(const mpig_queue *q, mpig_context *x, int layer, const struct mpig_wire_layer **wire)
{
	int rc = context_usable(q->client, x);
	if (rc)
		return rc;
	if (layer < 0 || (uint32_t)layer >= x->layer_count)
		return error_set(q->client, MPIG_EINVAL, "layer = %d: '%s' has layers 0..%d", layer, x->name,
		                 (int)x->layer_count - 1);
	if (x->layers[layer].kind != MPIG_LAYER_GLOBAL)
		return error_set(q->client, MPIG_ENOTSUP, "layer %d of '%s' is not global: it stores no rows", layer, x->name);
	*wire = &x->layers[layer];
	return MPIG_OK;
}

static int dtype_check(const mpig_queue *q, int dtype)
{
	if (dtype != MPIG_F32 && dtype != MPIG_BF16 && dtype != MPIG_F16)
		return error_set(q->client, MPIG_EINVAL, "dtype = %d: must be MPIG_F32, MPIG_BF16 or MPIG_F16", dtype);
	return MPIG_OK;
}

static int slot_check(const mpig_queue *q, const char *what, uint64_t bytes)
{
	if (bytes > q->header.slot_bytes)
		return error_set(q->client, MPIG_ELIMIT,
		                 "%s needs %llu bytes and a slot has %llu: open the queue with slot_bytes >= %llu", what,
		                 (unsigned long long)bytes, (unsigned long long)q->header.slot_bytes,
		                 (unsigned long long)(bytes + 4095) / 4096 * 4096);
	return MPIG_OK;
}

static int position_check(const mpig_queue *q, uint64_t position, uint64_t count)
{
	if (position > MPIG_MAX_TOKENS || count > MPIG_MAX_TOKENS - position)
		return error_set(q->client, MPIG_ERANGE, "position = %llu, count = %llu: a context has at most %llu tokens",
		                 (unsigned long long)position, (unsigned long long)count, (unsigned long long)MPIG_MAX_TOKENS);
	return MPIG_OK;
}

static int lease_check(const mpig_queue *q, const mpig_context *x)
{
	if (!atomic_load_explicit(&x->writer, memory_order_relaxed))
		return error_set(q->client, MPIG_ELEASE, "'%s' is open for reading: open it with MPIG_WRITE to change it",
		                 x->name);
	return MPIG_OK;
}

// A flight for x with its slot's header zeroed.
static int flight_for(mpig_queue *q, mpig_context *x, bool slot, uint64_t user_data, struct flight **out)
{
	int rc = flight_begin(q, slot, out);
	if (rc)
		return rc;
	(*out)->context = x;
	(*out)->user_data = user_data;
	if (slot)
		memset(slot_payload(q, (*out)->slot), 0, MPIG_SLOT_HEADER_BYTES);
	return MPIG_OK;
}

// ---- ATTEND ------------------------------------------------------------------------------------------------------------

static int share_check(const mpig_queue *q, const char *field, float value)
{
	if (!(value >= 0 && value <= 1))
		return error_set(q->client, MPIG_EINVAL, "%s = %g: a share of rows, above 0 and at most 1, or 0 for the default",
		                 field, (double)value);
	return MPIG_OK;
}

static int attend_check(const mpig_queue *q, const struct mpig_attend *a, const struct mpig_result *r)
{
	const mpig_client *c = q->client;
	if (!a->q)
		return error_set(c, MPIG_EINVAL, "attend.q is NULL");
	if (!r || r->size < sizeof(*r))
		return error_set(c, MPIG_EINVAL, "result%s: begin the struct with MPIG_INIT(struct mpig_result)",
		                 r ? ".size is too small" : " is NULL");
	if (a->tokens > MPIG_MAX_QUERY_TOKENS)
		return error_set(c, MPIG_ELIMIT, "attend.tokens = %u: at most %u query tokens in a request", a->tokens,
		                 MPIG_MAX_QUERY_TOKENS);
	if (a->proposal < 0 || a->proposal >= MPIG_PROPOSAL_COUNT)
		return error_set(c, MPIG_EINVAL, "attend.proposal = %d: must be an enum mpig_proposal", a->proposal);
	if (!a->signature != !a->signature_scale)
		return error_set(c, MPIG_EINVAL, "attend.signature and attend.signature_scale are both given or both NULL");
	if (!(a->error_target >= 0) || isinf(a->error_target))
		return error_set(c, MPIG_EINVAL, "attend.error_target = %g: must be positive, or 0 for a fixed budget",
		                 (double)a->error_target);
	if (!(a->delta >= 0 && a->delta < 1) || (a->delta > 0 && !(a->error_target > 0)))
		return error_set(c, MPIG_EINVAL, "attend.delta = %g: above 0 and below 1, with an error_target, or 0",
		                 (double)a->delta);
	if (a->window_out && !a->window_lse)
		return error_set(c, MPIG_EINVAL, "attend.window_out needs attend.window_lse");
	if (a->begin > MPIG_MAX_TOKENS || (a->end > 0 && (uint64_t)a->end < a->begin))
		return error_set(c, MPIG_ERANGE,
		                 "attend.begin = %llu, attend.end = %lld: the range is empty or beyond %llu tokens",
		                 (unsigned long long)a->begin, (long long)a->end, (unsigned long long)MPIG_MAX_TOKENS);
	int rc = dtype_check(q, a->dtype);
	rc = rc ? rc : share_check(q, "attend.budget", a->budget);
	rc = rc ? rc : share_check(q, "attend.budget_floor", a->budget_floor);
	return rc ? rc : share_check(q, "attend.budget_cap", a->budget_cap);
}

static void attend_payload(uint8_t *slot, const struct mpig_attend *a, const struct mpig_layer_shape *s, const struct flight *f,
                           uint32_t present, uint64_t query_position)
{
	const struct mpig_payload_layout *l = &f->layout;
	uint64_t heads = f->heads;
	struct mpig_slot_header header = {
		.causal_base = a->causal ? a->causal_base : 0,
		.present = present,
		.signature_version = a->signature ? a->signature_version : 0,
		.error_target = a->error_target,
		.budget_floor = a->budget_floor,
		.budget_cap = a->budget_cap,
		.query_position = query_position,
		.delta = a->delta,
	};
	memcpy(slot, &header, sizeof(header));
	memcpy(slot + l->q, a->q, heads * s->d_k * mpig_dtype_bytes((uint32_t)a->dtype));
	if (a->signature) {
		memcpy(slot + l->signature, a->signature, heads * mpig_padded_dim(s->d_k));
		memcpy(slot + l->signature_scale, a->signature_scale, heads * 4);
	}
	if (a->window_lse)
		memcpy(slot + l->window_lse, a->window_lse, heads * 4);
	if (a->window_out)
		memcpy(slot + l->window_out, a->window_out, heads * s->d_v * 4);
}

int64_t submit_attend(mpig_queue *q, mpig_context *x, const struct mpig_attend *attend, struct mpig_result *result,
                      uint64_t user_data)
{
	struct mpig_attend a;
	const struct mpig_wire_layer *wire;
	struct flight *f;
	if (!attend)
		return error_set(q->client, MPIG_EINVAL, "attend is NULL");
	int rc = options_copy(q->client, "mpig_attend", attend, &a, sizeof(a));
	rc = rc ? rc : attend_check(q, &a, result);
	rc = rc ? rc : layer_check(q, x, a.layer, &wire);
	if (rc)
		return rc;
	uint32_t tokens = a.tokens ? a.tokens : 1;
	uint32_t present = (a.window_lse ? MPIG_HAS_WINDOW_LSE : 0u) | (a.signature ? MPIG_HAS_SIGNATURE : 0u) |
	                   (a.window_out ? MPIG_HAS_WINDOW_OUT : 0u);
	struct mpig_layer_shape shape = layer_shape(wire);
	struct mpig_payload_layout layout = mpig_attend_layout(&shape, tokens, (uint32_t)a.dtype, present);
	rc = slot_check(q, "this attend", layout.bytes);
	rc = rc ? rc : flight_for(q, x, true, user_data, &f);
	if (rc)
		return rc;
	f->layout = layout;
	f->heads = tokens * shape.query_heads;
	f->d_v = shape.d_v;
	f->result = result;
	uint64_t query_position = a.query_position || tokens > 1 ? a.query_position : mpig_context_committed(x);
	attend_payload(slot_payload(q, f->slot), &a, &shape, f, present, query_position);
	struct mpig_sqe entry = {
		.op = MPIG_OP_ATTEND,
		.flags = (uint8_t)((a.end <= 0 ? MPIG_SQE_END_RELATIVE : 0) | (a.causal ? MPIG_SQE_CAUSAL : 0)),
		.layer = (uint16_t)a.layer,
		.count = tokens,
		.begin = a.begin,
		.end = a.end,
		.seed = a.seed,
		.budget = a.budget,
		.proposal = (uint8_t)a.proposal,
		.dtype = (uint8_t)a.dtype,
	};
	return flight_submit(q, f, &entry);
}

// ---- APPEND, COMMIT, READ ----------------------------------------------------------------------------------------------

int64_t submit_append(mpig_queue *q, mpig_context *x, int layer, uint64_t position, uint64_t count, int dtype, const void *k,
                      const void *v, const void *queries, unsigned query_count, uint64_t user_data)
{
	const struct mpig_wire_layer *wire;
	struct flight *f;
	int rc = layer_check(q, x, layer, &wire);
	rc = rc ? rc : lease_check(q, x);
	rc = rc ? rc : dtype_check(q, dtype);
	rc = rc ? rc : position_check(q, position, count);
	if (rc)
		return rc;
	if (!k || !v || !count)
		return error_set(q->client, MPIG_EINVAL, "append: k and v must not be NULL, count must be at least 1");
	if (!queries != !query_count || query_count > MPIG_MAX_QUERY_TOKENS)
		return error_set(q->client, MPIG_EINVAL, "query_count = %u: 1..%u with queries, 0 without", query_count,
		                 MPIG_MAX_QUERY_TOKENS);
	struct mpig_layer_shape s = layer_shape(wire);
	struct mpig_payload_layout layout = mpig_append_layout(&s, (uint32_t)count, (uint32_t)dtype, query_count);
	rc = slot_check(q, query_count ? "this append with its queries" : "this append", layout.bytes);
	rc = rc ? rc : flight_for(q, x, true, user_data, &f);
	if (rc)
		return rc;
	uint8_t *slot = slot_payload(q, f->slot);
	uint64_t element = mpig_dtype_bytes((uint32_t)dtype), rows = count * s.kv_heads;
	memcpy(slot + layout.k, k, rows * s.d_k * element);
	memcpy(slot + layout.v, v, rows * s.d_v * element);
	if (query_count) {
		struct mpig_slot_header header = {.present = MPIG_HAS_QUERIES, .query_count = query_count};
		memcpy(slot, &header, sizeof(header));
		memcpy(slot + layout.queries, queries, (uint64_t)query_count * s.query_heads * s.d_k * element);
	}
	struct mpig_sqe entry = {.op = MPIG_OP_APPEND,
	                         .layer = (uint16_t)layer,
	                         .count = (uint32_t)count,
	                         .begin = position,
	                         .dtype = (uint8_t)dtype};
	return flight_submit(q, f, &entry);
}

int64_t submit_commit(mpig_queue *q, mpig_context *x, uint64_t position, uint64_t count, const uint32_t *tokens, int flags,
                      uint64_t user_data)
{
	struct flight *f;
	int rc = context_usable(q->client, x);
	rc = rc ? rc : lease_check(q, x);
	rc = rc ? rc : position_check(q, position, count);
	if (rc)
		return rc;
	if (flags & ~MPIG_COMMIT_SEAL)
		return error_set(q->client, MPIG_EINVAL, "flags = 0x%x: only MPIG_COMMIT_SEAL is known", (unsigned)flags);
	if (count && !tokens)
		return error_set(q->client, MPIG_EINVAL, "commit: tokens is NULL and count = %llu", (unsigned long long)count);
	if (atomic_load(&x->rows_lost)) {
		atomic_store(&x->rows_lost, false);
		return error_set(q->client, MPIG_ERETRY,
		                 "the daemon that held the uncommitted rows of '%s' is gone: append again from token %llu",
		                 x->name, (unsigned long long)mpig_context_committed(x));
	}
	rc = slot_check(q, "this commit", mpig_commit_layout((uint32_t)count).bytes);
	rc = rc ? rc : flight_for(q, x, true, user_data, &f);
	if (rc)
		return rc;
	if (count)
		memcpy(slot_payload(q, f->slot) + mpig_commit_layout((uint32_t)count).tokens, tokens, count * sizeof(*tokens));
	struct mpig_sqe entry = {.op = MPIG_OP_COMMIT,
	                         .flags = (uint8_t)(flags & MPIG_COMMIT_SEAL ? MPIG_SQE_SEAL : 0),
	                         .count = (uint32_t)count,
	                         .begin = position};
	return flight_submit(q, f, &entry);
}

int64_t submit_read(mpig_queue *q, mpig_context *x, int layer, uint64_t position, uint64_t count, float *k, float *v)
{
	const struct mpig_wire_layer *wire;
	struct flight *f;
	int rc = layer_check(q, x, layer, &wire);
	rc = rc ? rc : position_check(q, position, count);
	if (rc)
		return rc;
	struct mpig_layer_shape s = layer_shape(wire);
	struct mpig_payload_layout layout = mpig_read_layout(&s, (uint32_t)count);
	rc = slot_check(q, "this read", layout.bytes);
	rc = rc ? rc : flight_for(q, x, true, 0, &f);
	if (rc)
		return rc;
	f->layout = layout;
	f->heads = (uint32_t)count * s.kv_heads; // fits: a slot holds them
	f->d_k = s.d_k;
	f->d_v = s.d_v;
	f->k = k;
	f->v = v;
	struct mpig_sqe entry = {.op = MPIG_OP_READ, .layer = (uint16_t)layer, .count = (uint32_t)count, .begin = position};
	return flight_submit(q, f, &entry);
}

int64_t submit_truncate(mpig_queue *q, mpig_context *x, uint64_t position)
{
	struct flight *f;
	int rc = context_usable(q->client, x);
	rc = rc ? rc : lease_check(q, x);
	rc = rc ? rc : position_check(q, position, 0);
	rc = rc ? rc : flight_for(q, x, false, 0, &f);
	if (rc)
		return rc;
	struct mpig_sqe entry = {.op = MPIG_OP_TRUNCATE, .begin = position};
	return flight_submit(q, f, &entry);
}

int64_t submit_nop(mpig_queue *q, uint64_t user_data)
{
	struct flight *f;
	int rc = flight_for(q, NULL, false, user_data, &f);
	if (rc)
		return rc;
	struct mpig_sqe entry = {.op = MPIG_OP_NOP};
	return flight_submit(q, f, &entry);
}

// ---- the public calls --------------------------------------------------------------------------------------------------

int64_t mpig_submit_attend(mpig_queue *q, mpig_context *x, const struct mpig_attend *attend, struct mpig_result *result,
                           uint64_t user_data)
{
	int rc = q ? queue_ready(q) : MPIG_EINVAL;
	return rc ? rc : submit_attend(q, x, attend, result, user_data);
}

int64_t mpig_submit_append(mpig_queue *q, mpig_context *x, int layer, uint64_t position, uint64_t count, int dtype, const void *k,
                           const void *v, const void *queries, unsigned query_count, uint64_t user_data)
{
	int rc = q ? queue_ready(q) : MPIG_EINVAL;
	return rc ? rc : submit_append(q, x, layer, position, count, dtype, k, v, queries, query_count, user_data);
}

int64_t mpig_submit_commit(mpig_queue *q, mpig_context *x, uint64_t position, uint64_t count, const uint32_t *tokens, int flags,
                           uint64_t user_data)
{
	int rc = q ? queue_ready(q) : MPIG_EINVAL;
	return rc ? rc : submit_commit(q, x, position, count, tokens, flags, user_data);
}

int64_t mpig_submit_nop(mpig_queue *q, uint64_t user_data)
{
	int rc = q ? queue_ready(q) : MPIG_EINVAL;
	return rc ? rc : submit_nop(q, user_data);
}
