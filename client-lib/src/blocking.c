// Calls that wait. Work too large for a slot is cut into pieces, several of which are in flight at once.
#include "internal.h"

#define PIPELINE 8u // pieces of one call in flight: enough to hide a copy behind the daemon's work

struct work {
	int64_t (*submit)(mpig_queue *queue, const struct work *work, uint64_t first,
	                  uint64_t count); // last piece: first + count == total
	mpig_context *context;
	const void *request;
	uint64_t total; // 0 is one piece of nothing
	uint64_t piece; // largest piece
	uint64_t tail;  // the last piece has at most this many
};

static uint64_t next_piece(const struct work *w, uint64_t done)
{
	uint64_t body = w->total > w->tail ? w->total - w->tail : 0;
	if (done >= body)
		return w->total - done;
	return body - done < w->piece ? body - done : w->piece;
}

// The oldest ticket's status. At the deadline it is detached.
static int await_ticket(mpig_queue *q, int64_t ticket, uint64_t deadline)
{
	struct flight *f = flight_find(q, ticket);
	int rc = flight_wait(q, f, deadline);
	if (rc == MPIG_OK)
		return flight_consume(q, f);
	flight_detach(q, f);
	return rc;
}

// Pieces take effect in order, so the first failure is the one to report; what is out behind it goes unawaited. The deadline
// counts from the last piece that came home.
static int run(mpig_queue *q, const struct work *w)
{
	int64_t tickets[PIPELINE];
	uint64_t sent = 0, home = 0, done = 0; // pieces, pieces, units
	bool all_sent = false;
	int rc = queue_ready(q);
	uint64_t deadline = queue_deadline(q);
	while (rc == MPIG_OK && !(all_sent && home == sent)) {
		int64_t ticket = MPIG_EAGAIN;
		if (!all_sent && sent - home < PIPELINE) {
			uint64_t n = next_piece(w, done);
			ticket = w->submit(q, w, done, n);
			if (ticket > 0) {
				tickets[sent++ % PIPELINE] = ticket;
				done += n;
				all_sent = done == w->total;
				continue;
			}
		}
		if (ticket != MPIG_EAGAIN)
			rc = (int)ticket;
		else if (home < sent)
			rc = await_ticket(q, tickets[home++ % PIPELINE], deadline);
		else if (q->out) // the queue is full of other requests
			rc = flight_wait(q, NULL, deadline);
		else // ... which have been answered and wait to be polled
			rc = MPIG_EAGAIN;
		deadline = queue_deadline(q);
	}
	for (; home < sent; home++)
		flight_detach(q, flight_find(q, tickets[home % PIPELINE]));
	return rc;
}

// Units of `unit_bytes` that fit a slot beside `fixed_bytes` and the padding of `parts` parts; at least 1: a unit too large is
// refused where it is submitted, by a text that says what it needs.
static uint64_t units_that_fit(const mpig_queue *q, uint64_t unit_bytes, uint64_t fixed_bytes, unsigned parts)
{
	uint64_t overhead = MPIG_SLOT_HEADER_BYTES + fixed_bytes + (uint64_t)parts * (MPIG_PAYLOAD_ALIGN - 1);
	uint64_t n = q->header.slot_bytes > overhead ? (q->header.slot_bytes - overhead) / unit_bytes : 0;
	return n ? n : 1;
}

// ---- ATTEND, TRUNCATE, NOP: one piece ----------------------------------------------------------------------------------

struct attend_request {
	const struct mpig_attend *attend;
	struct mpig_result *result;
};

static int64_t attend_piece(mpig_queue *q, const struct work *w, uint64_t first, uint64_t count)
{
	const struct attend_request *r = w->request;
	(void)first, (void)count;
	return submit_attend(q, w->context, r->attend, r->result, 0);
}

int mpig_attend(mpig_queue *q, mpig_context *x, const struct mpig_attend *attend, struct mpig_result *result)
{
	struct attend_request r = {.attend = attend, .result = result};
	return q ? run(q, &(struct work){.submit = attend_piece, .context = x, .request = &r}) : MPIG_EINVAL;
}

static int64_t truncate_piece(mpig_queue *q, const struct work *w, uint64_t first, uint64_t count)
{
	(void)first, (void)count;
	return submit_truncate(q, w->context, *(const uint64_t *)w->request);
}

int mpig_truncate(mpig_queue *q, mpig_context *x, uint64_t position)
{
	return q ? run(q, &(struct work){.submit = truncate_piece, .context = x, .request = &position}) : MPIG_EINVAL;
}

static int64_t nop_piece(mpig_queue *q, const struct work *w, uint64_t first, uint64_t count)
{
	(void)w, (void)first, (void)count;
	return submit_nop(q, 0);
}

int mpig_nop(mpig_queue *q)
{
	return q ? run(q, &(struct work){.submit = nop_piece}) : MPIG_EINVAL;
}

// ---- APPEND, COMMIT, READ: as many pieces as it takes ------------------------------------------------------------------

struct rows_request {
	int layer, dtype;
	uint64_t position;
	const uint8_t *k, *v;
	uint64_t k_bytes, v_bytes; // of one token
	const void *queries;
	unsigned query_count;
	float *k_out, *v_out;
};

static int64_t append_piece(mpig_queue *q, const struct work *w, uint64_t first, uint64_t count)
{
	const struct rows_request *r = w->request;
	bool last = first + count == w->total;
	return submit_append(q, w->context, r->layer, r->position + first, count, r->dtype, r->k + first * r->k_bytes,
	                     r->v + first * r->v_bytes, last ? r->queries : NULL, last ? r->query_count : 0, 0);
}

int mpig_append(mpig_queue *q, mpig_context *x, int layer, uint64_t position, uint64_t count, int dtype, const void *k,
                const void *v, const void *queries, unsigned query_count)
{
	const struct mpig_wire_layer *l;
	if (!q)
		return MPIG_EINVAL;
	if (client_forked(q->client))
		return MPIG_EFORK;
	int rc = layer_check(q, x, layer, &l);
	if (rc)
		return rc;
	if (!k || !v || !count || count > MPIG_MAX_TOKENS)
		return error_set(q->client, MPIG_EINVAL, "append: k and v must not be NULL, count 1..%llu",
		                 (unsigned long long)MPIG_MAX_TOKENS);
	uint64_t element = mpig_dtype_bytes((uint32_t)dtype);
	struct rows_request r = {.layer = layer,
	                         .dtype = dtype,
	                         .position = position,
	                         .k = k,
	                         .v = v,
	                         .k_bytes = l->kv_heads * l->d_k * element,
	                         .v_bytes = l->kv_heads * l->d_v * element,
	                         .queries = queries,
	                         .query_count = query_count};
	uint64_t query_bytes = (uint64_t)query_count * l->query_heads * l->d_k * element;
	struct work w = {.submit = append_piece,
	                 .context = x,
	                 .request = &r,
	                 .total = count,
	                 .piece = units_that_fit(q, r.k_bytes + r.v_bytes, 0, 2),
	                 .tail = query_count ? units_that_fit(q, r.k_bytes + r.v_bytes, query_bytes, 3) : 0};
	return run(q, &w);
}

struct commit_request {
	uint64_t position;
	const uint32_t *tokens;
	int flags;
};

static int64_t commit_piece(mpig_queue *q, const struct work *w, uint64_t first, uint64_t count)
{
	const struct commit_request *r = w->request;
	int flags = first + count == w->total ? r->flags : r->flags & ~MPIG_COMMIT_SEAL;
	return submit_commit(q, w->context, r->position + first, count, r->tokens ? r->tokens + first : NULL, flags, 0);
}

int mpig_commit(mpig_queue *q, mpig_context *x, uint64_t position, uint64_t count, const uint32_t *tokens, int flags)
{
	if (!q)
		return MPIG_EINVAL;
	struct commit_request r = {.position = position, .tokens = tokens, .flags = flags};
	struct work w = {.submit = commit_piece,
	                 .context = x,
	                 .request = &r,
	                 .total = count,
	                 .piece = units_that_fit(q, sizeof(*tokens), 0, 1)};
	return run(q, &w);
}

static int64_t read_piece(mpig_queue *q, const struct work *w, uint64_t first, uint64_t count)
{
	const struct rows_request *r = w->request;
	return submit_read(q, w->context, r->layer, r->position + first, count, r->k_out + first * (r->k_bytes / sizeof(float)),
	                   r->v_out + first * (r->v_bytes / sizeof(float)));
}

int mpig_read(mpig_queue *q, mpig_context *x, int layer, uint64_t position, uint64_t count, float *k, float *v)
{
	const struct mpig_wire_layer *l;
	if (!q)
		return MPIG_EINVAL;
	if (client_forked(q->client))
		return MPIG_EFORK;
	int rc = layer_check(q, x, layer, &l);
	if (rc)
		return rc;
	if (!k || !v || !count || count > MPIG_MAX_TOKENS)
		return error_set(q->client, MPIG_EINVAL, "read: k and v must not be NULL, count 1..%llu",
		                 (unsigned long long)MPIG_MAX_TOKENS);
	struct rows_request r = {.layer = layer,
	                         .position = position,
	                         .k_out = k,
	                         .v_out = v,
	                         .k_bytes = l->kv_heads * l->d_k * sizeof(float),
	                         .v_bytes = l->kv_heads * l->d_v * sizeof(float)};
	struct work w = {.submit = read_piece,
	                 .context = x,
	                 .request = &r,
	                 .total = count,
	                 .piece = units_that_fit(q, r.k_bytes + r.v_bytes, 0, 2)};
	return run(q, &w);
}
