// What an ingest asks the GPU for: rows of a layer, cut into what slots hold, and commits.
#include "cuda/ingest.h"

#include <string.h>

static struct mpig_layer_shape shape_of(const struct mpig_layer *l)
{
	return (struct mpig_layer_shape){(uint32_t)l->query_heads, (uint32_t)l->kv_heads, (uint32_t)l->d_k,
	                                 (uint32_t)(l->d_v ? l->d_v : l->d_k)};
}

// ---- checking ----------------------------------------------------------------------------------------------------------
static int tokens_check(const char *what, uint64_t first, uint64_t count)
{
	if (first > MPIG_MAX_TOKENS || count > MPIG_MAX_TOKENS - first)
		return cuda_error_set(MPIG_ERANGE, "%s of tokens %llu + %llu: a context has at most %llu", what,
		                      (unsigned long long)first, (unsigned long long)count, (unsigned long long)MPIG_MAX_TOKENS);
	return MPIG_OK;
}

// Strides as they were given, or those of a dense array.
static int strides_check(const char *name, uint64_t at, int64_t row, int64_t head, uint64_t element)
{
	if (!at || at % element)
		return cuda_error_set(MPIG_EINVAL, "rows.%s = 0x%llx: must be the device address of elements of %llu bytes", name,
		                      (unsigned long long)at, (unsigned long long)element);
	if ((row == 0) != (head == 0))
		return cuda_error_set(MPIG_EINVAL, "rows.%s_row and %s_head: give both strides, or neither for dense rows", name,
		                      name);
	if (row < -INT64_MAX / 8 || row > INT64_MAX / 8 || head < -INT64_MAX / 8 || head > INT64_MAX / 8)
		return cuda_error_set(MPIG_EINVAL, "rows.%s_row or %s_head is no stride", name, name);
	return MPIG_OK;
}

static int rows_check(mpig_context *context, const struct mpig_cuda_rows *r, struct mpig_layer *layer)
{
	uint64_t element = mpig_dtype_bytes((uint32_t)r->dtype);
	if (mpig_context_layer(context, r->layer, layer))
		return cuda_error_set(MPIG_EINVAL, "rows.layer = %d: '%s' has no such layer", r->layer,
		                      mpig_context_name(context));
	if (layer->kind != MPIG_LAYER_GLOBAL)
		return cuda_error_set(MPIG_ENOTSUP, "layer %d of '%s' is not global: it stores no rows", r->layer,
		                      mpig_context_name(context));
	if (r->dtype != MPIG_F32 && r->dtype != MPIG_BF16 && r->dtype != MPIG_F16)
		return cuda_error_set(MPIG_EINVAL, "rows.dtype = %d: must be MPIG_F32, MPIG_BF16 or MPIG_F16", r->dtype);
	if (!r->count)
		return cuda_error_set(MPIG_EINVAL, "rows.count is 0");
	if (!r->queries != !r->query_count || r->query_count > MPIG_MAX_QUERY_TOKENS)
		return cuda_error_set(MPIG_EINVAL, "rows.query_count = %u: 1 to %u with queries, 0 without", r->query_count,
		                      MPIG_MAX_QUERY_TOKENS);
	int rc = tokens_check("rows", r->first, r->count);
	rc = rc ? rc : strides_check("k", r->k, r->k_row, r->k_head, element);
	rc = rc ? rc : strides_check("v", r->v, r->v_row, r->v_head, element);
	return rc || !r->queries ? rc : strides_check("q", r->queries, r->q_row, r->q_head, element);
}

// Rows that fit a slot beside `queries` queries: as libmagicpig cuts an append, so that both leave the same in the daemon. 0: none.
static uint64_t rows_that_fit(const struct mpig_cuda_ingest *g, const struct mpig_layer_shape *s, uint32_t dtype,
                              unsigned queries)
{
	uint64_t element = mpig_dtype_bytes(dtype), row = (uint64_t)s->kv_heads * (s->d_k + s->d_v) * element,
		 fixed = MPIG_SLOT_HEADER_BYTES + (uint64_t)queries * s->query_heads * s->d_k * element +
	                 (queries ? 3ul : 2ul) * (MPIG_PAYLOAD_ALIGN - 1);
	return g->gpu->region.slot_bytes > fixed ? (g->gpu->region.slot_bytes - fixed) / row : 0;
}

// ---- one request -------------------------------------------------------------------------------------------------------
// Rows of `heads` heads of `bytes`, in the widest units that addresses and strides allow; what lies side by side is one run.
static struct gpu_part part_of(uint64_t from, uint64_t to, uint32_t rows, uint32_t heads, uint32_t bytes, int64_t row,
                               int64_t head, uint32_t element)
{
	struct gpu_part p = {.from = from, .to = to, .row = row, .head = head, .rows = rows, .heads = heads};
	if (!row && !head) {
		p.head = bytes;
		p.row = (int64_t)heads * bytes;
	}
	uint64_t all = from | (uint64_t)p.row | (uint64_t)p.head | bytes;
	p.unit = all % 16 ? element : 16;
	p.units = bytes / p.unit;
	if (p.head == bytes) {
		p.units *= heads;
		p.heads = 1;
	}
	if (p.heads == 1 && p.row == (int64_t)p.units * p.unit) {
		p.units *= rows;
		p.rows = 1;
	}
	return p;
}

static unsigned blocks_for(const struct mpig_cuda_ingest *g, const struct gpu_ingest *a)
{
	uint64_t units = 0;
	for (uint32_t i = 0; i < GPU_INGEST_PARTS; i++)
		units += (uint64_t)a->part[i].rows * a->part[i].heads * a->part[i].units;
	uint64_t blocks = (units + GPU_BLOCK - 1) / GPU_BLOCK;
	return blocks < 1 ? 1 : blocks < g->blocks ? (unsigned)blocks : g->blocks;
}

// Takes the next slot. Its kernel begins when the slot is free, and waits for the next one's behind the copy if there are to be more:
// who asks to overwrite the last rows of a layer then does not wait for the daemon.
static int request_send(struct mpig_cuda_ingest *g, struct gpu_ingest *a, const struct ingest_request *request, bool more)
{
	uint32_t slots = g->gpu->region.slots, next = (g->slot + 1) % slots;
	a->slot = a->entry.slot = g->slot;
	a->wait_first = next;
	a->wait_slots = more ? 1 : 0;
	g->request[g->sequence % INGEST_LOG] = *request;
	int rc = ingest_launch(g, a, blocks_for(g, a));
	if (rc)
		return rc;
	g->sequence++;
	g->slot = next;
	g->gated = more;
	return MPIG_OK;
}

// The next slot is free when what is launched next begins.
static int slot_gate(struct mpig_cuda_ingest *g)
{
	int rc = g->gated ? MPIG_OK : ingest_launch_wait(g, g->slot, 1);
	if (rc == MPIG_OK)
		g->gated = true;
	return rc;
}

// ---- rows --------------------------------------------------------------------------------------------------------------
static void rows_request(const struct mpig_cuda_rows *r, const struct mpig_layer_shape *s, uint64_t done, uint32_t count,
                         bool queries, struct gpu_ingest *a)
{
	uint32_t element = (uint32_t)mpig_dtype_bytes((uint32_t)r->dtype), query_count = queries ? r->query_count : 0;
	struct mpig_payload_layout l = mpig_append_layout(s, count, (uint32_t)r->dtype, query_count);
	int64_t bytes = (int64_t)element, k_row = r->k_row ? r->k_row : (int64_t)s->kv_heads * s->d_k,
		v_row = r->v_row ? r->v_row : (int64_t)s->kv_heads * s->d_v;
	a->part[0] = part_of(r->k + (uint64_t)((int64_t)done * k_row * bytes), l.k, count, s->kv_heads, s->d_k * element,
	                     r->k_row * bytes, r->k_head * bytes, element);
	a->part[1] = part_of(r->v + (uint64_t)((int64_t)done * v_row * bytes), l.v, count, s->kv_heads, s->d_v * element,
	                     r->v_row * bytes, r->v_head * bytes, element);
	if (query_count) {
		a->part[2] = part_of(r->queries, l.queries, query_count, s->query_heads, s->d_k * element, r->q_row * bytes,
		                     r->q_head * bytes, element);
		a->header.present = MPIG_HAS_QUERIES;
		a->header.query_count = query_count;
	}
}

static int rows_send(struct mpig_cuda_ingest *g, mpig_context *context, const struct mpig_cuda_rows *r,
                     const struct mpig_layer_shape *s, uint64_t piece, uint64_t tail)
{
	uint64_t element = mpig_dtype_bytes((uint32_t)r->dtype), row = (uint64_t)s->kv_heads * (s->d_k + s->d_v) * element;
	uint64_t body = r->count > tail ? r->count - tail : 0; // the last piece has at most `tail` rows
	for (uint64_t done = 0; done < r->count;) {
		uint64_t left = r->count - done, n = done >= body ? left : body - done < piece ? body - done : piece;
		bool last = n == left;
		struct gpu_ingest a = {.entry = {.op = MPIG_OP_APPEND,
		                                 .layer = (uint16_t)r->layer,
		                                 .handle = mpig_context_handle(context),
		                                 .count = (uint32_t)n,
		                                 .begin = r->first + done,
		                                 .dtype = (uint8_t)r->dtype}};
		const struct ingest_request request = {context, r->layer, r->first + done, n};
		rows_request(r, s, done, (uint32_t)n, last, &a);
		int rc = request_send(g, &a, &request, !last);
		if (rc)
			return rc;
		done += n;
		g->sums.appends++;
		g->sums.bytes += n * row + (last ? (uint64_t)r->query_count * s->query_heads * s->d_k * element : 0);
	}
	g->sums.rows += r->count;
	return MPIG_OK;
}

// The ingest's stream goes on when the caller's has come to here.
static int wait_for_caller(struct mpig_cuda_ingest *g, CUstream stream)
{
	const struct driver *d = g->gpu->driver;
	int rc = gpu_enter(g->gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(d, d->event_record(g->event, stream), "recording an event");
	rc = rc ? rc : cuda_error_of(d, d->stream_after(g->stream, g->event, 0), "making a stream wait");
	gpu_leave(g->gpu);
	return rc;
}

static int64_t ticket_make(struct mpig_cuda_ingest *g)
{
	uint64_t ticket = g->tickets + 1;
	int rc = gpu_enter(g->gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(g->gpu->driver, g->gpu->driver->event_record(g->read[ticket % INGEST_AHEAD], g->stream),
	                   "recording an event");
	gpu_leave(g->gpu);
	if (rc)
		return rc;
	g->read_kernel[ticket % INGEST_AHEAD] = g->launched;
	return (int64_t)(g->tickets = ticket);
}

int64_t mpig_cuda_ingest_layer(mpig_cuda_ingest *g, mpig_context *context, const struct mpig_cuda_rows *rows,
                               mpig_cuda_stream stream)
{
	struct mpig_cuda_rows r;
	struct mpig_layer layer;
	cuda_error_clear();
	if (!g || !context || !rows)
		return cuda_error_set(MPIG_EINVAL, "ingest, context and rows must not be NULL");
	int rc = gpu_options("mpig_cuda_rows", rows, &r, sizeof(r));
	rc = rc ? rc : rows_check(context, &r, &layer);
	if (rc)
		return rc;
	struct mpig_layer_shape s = shape_of(&layer);
	uint64_t piece = rows_that_fit(g, &s, (uint32_t)r.dtype, 0),
		 tail = r.queries ? rows_that_fit(g, &s, (uint32_t)r.dtype, r.query_count) : piece;
	if (!piece || !tail)
		return cuda_error_set(
			MPIG_ELIMIT,
			"a row of layer %d%s needs %llu bytes and a slot has %llu: make the ingest with larger slots", r.layer,
			r.queries ? " and its queries" : "",
			(unsigned long long)mpig_append_layout(&s, 1, (uint32_t)r.dtype, r.query_count).bytes,
			(unsigned long long)g->gpu->region.slot_bytes);
	rc = ingest_begin(g, context);
	rc = rc ? rc : slot_gate(g);
	rc = rc ? rc : wait_for_caller(g, stream);
	rc = rc ? rc : rows_send(g, context, &r, &s, piece, r.queries ? tail : 0);
	return rc ? rc : ticket_make(g);
}

static int ticket_check(const struct mpig_cuda_ingest *g, int64_t ticket)
{
	cuda_error_clear();
	if (!g || ticket < 1 || (uint64_t)ticket > g->tickets)
		return cuda_error_set(MPIG_EINVAL, "ingest is NULL, or ticket %lld is none of its", (long long)ticket);
	return MPIG_OK;
}

// A ticket stands for one kernel at least, and fewer than INGEST_AHEAD of them are on their way.
static bool has_copied(const struct mpig_cuda_ingest *g, uint64_t ticket)
{
	return ticket + INGEST_AHEAD <= g->tickets ||
	       __atomic_load_n(&g->host->report.copied, __ATOMIC_ACQUIRE) >= g->read_kernel[ticket % INGEST_AHEAD];
}

int mpig_cuda_ingest_release(mpig_cuda_ingest *g, int64_t ticket, mpig_cuda_stream stream)
{
	int rc = ticket_check(g, ticket);
	if (rc || has_copied(g, (uint64_t)ticket))
		return rc;
	rc = gpu_enter(g->gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(g->gpu->driver, g->gpu->driver->stream_after(stream, g->read[(uint64_t)ticket % INGEST_AHEAD], 0),
	                   "making a stream wait");
	gpu_leave(g->gpu);
	return rc;
}

int mpig_cuda_ingest_released(mpig_cuda_ingest *g, int64_t ticket)
{
	int rc = ticket_check(g, ticket);
	if (rc)
		return rc;
	return has_copied(g, (uint64_t)ticket) ? 1 : ingest_status(g);
}

// ---- commits -----------------------------------------------------------------------------------------------------------
// Token ids go by a place in pinned memory that the kernel reads. Pieces whose kernels have read theirs leave it.
static int tokens_place(struct mpig_cuda_ingest *g, const uint32_t *tokens, uint32_t n, uint64_t *from)
{
	uint32_t place = (uint32_t)(g->commits_made++ % INGEST_TOKEN_PLACES);
	int rc = ingest_await(g, &g->host->report.copied, g->token_kernel[place]);
	if (rc)
		return rc;
	memcpy(g->host->tokens[place], tokens, n * sizeof(*tokens));
	g->token_kernel[place] = g->launched + 1;
	*from = g->host_device + offsetof(struct ingest_host, tokens) + place * sizeof(g->host->tokens[0]);
	return MPIG_OK;
}

static int commit_piece(struct mpig_cuda_ingest *g, mpig_context *context, uint64_t position, uint32_t n, const uint32_t *tokens,
                        int flags)
{
	struct gpu_ingest a = {.entry = {.op = MPIG_OP_COMMIT,
	                                 .flags = (uint8_t)(flags & MPIG_COMMIT_SEAL ? MPIG_SQE_SEAL : 0),
	                                 .handle = mpig_context_handle(context),
	                                 .count = n,
	                                 .begin = position}};
	const struct ingest_request request = {context, -1, position, n};
	uint64_t from = 0;
	int rc = slot_gate(g);
	rc = rc || !n ? rc : tokens_place(g, tokens, n, &from);
	if (rc)
		return rc;
	if (n)
		a.part[0] = part_of(from, mpig_commit_layout(n).tokens, 1, 1, n * 4, 0, 0, 4);
	return request_send(g, &a, &request, false);
}

int mpig_cuda_ingest_commit(mpig_cuda_ingest *g, mpig_context *context, uint64_t position, uint64_t count, const uint32_t *tokens,
                            int flags)
{
	cuda_error_clear();
	if (!g || !context || (count && !tokens))
		return cuda_error_set(MPIG_EINVAL, "ingest, context and tokens must not be NULL");
	if (flags & ~MPIG_COMMIT_SEAL)
		return cuda_error_set(MPIG_EINVAL, "flags = 0x%x: only MPIG_COMMIT_SEAL is known", (unsigned)flags);
	int rc = tokens_check("commit", position, count);
	rc = rc ? rc : ingest_begin(g, context);
	uint64_t room = (g->gpu->region.slot_bytes - MPIG_SLOT_HEADER_BYTES - MPIG_PAYLOAD_ALIGN) / sizeof(*tokens),
		 piece = room < INGEST_TOKENS ? room : INGEST_TOKENS, done = 0;
	do {
		uint64_t left = count - done, n = left < piece ? left : piece;
		rc = rc ? rc
		        : commit_piece(g, context, position + done, (uint32_t)n, tokens ? tokens + done : NULL,
		                       n == left ? flags : flags & ~MPIG_COMMIT_SEAL);
		done += n;
		g->sums.bytes += n * sizeof(*tokens);
	} while (rc == MPIG_OK && done < count);
	g->sums.commits += rc == MPIG_OK;
	return rc;
}
