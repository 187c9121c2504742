// Tokens: committing them, reading them, taking them back.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

// ---- token ids -------------------------------------------------------------------------------------------------------

struct token_run {
	uint32_t *ids;
	uint64_t n;
};

// Where the ids from `position` on are kept, to the end of their block or segment.
static struct token_run token_run(const struct context *c, uint64_t position)
{
	const struct pool *pool = c->store->pool;
	const struct snapshot *snap = atomic_load(&c->snapshot);
	uint32_t i = snapshot_find(snap, position);
	assert(i != UINT32_MAX);
	const struct segment_record *r = snap->ref[i].segment->record;
	uint64_t row = position - snap->ref[i].first,
		 limit = i + 1 < snap->count ? snap->ref[i + 1].first - snap->ref[i].first : SEGMENT_MAX_ROWS;
	uint32_t b = 0;
	while (row >= (uint64_t)r->block[b].first_row + r->block[b].rows)
		b++;
	assert(b < r->block_count);
	uint64_t end = (uint64_t)r->block[b].first_row + r->block[b].rows;
	struct block_record *block = pool_at(pool, r->block[b].offset);
	return (struct token_run){block_tokens(block) + (row - r->block[b].first_row), (end < limit ? end : limit) - row};
}

void tokens_read(const struct context *c, uint64_t begin, uint64_t n, uint32_t *out)
{
	while (n) {
		struct token_run run = token_run(c, begin);
		uint64_t take = run.n < n ? run.n : n;
		memcpy(out, run.ids, take * sizeof *out);
		begin += take;
		out += take;
		n -= take;
	}
}

void context_tokens(struct store *s, const struct context *c, uint64_t begin, uint64_t n, uint32_t *out)
{
	store_lock(s);
	if (context_dropped(c))
		memset(out, 0, n * sizeof *out);
	else
		tokens_read(c, begin, n, out);
	store_unlock(s);
}

static void tokens_write(struct context *c, uint64_t begin, uint64_t n, const uint32_t *ids)
{
	while (n) {
		struct token_run run = token_run(c, begin);
		uint64_t take = run.n < n ? run.n : n;
		pool_publish(c->store->pool, run.ids, ids, take * sizeof *ids);
		begin += take;
		ids += take;
		n -= take;
	}
}

static int same_tokens(const struct context *c, uint64_t begin, uint64_t end, const uint32_t *ids, char *why)
{
	for (uint64_t at = begin; at < end;) {
		struct token_run run = token_run(c, at);
		uint64_t n = run.n < end - at ? run.n : end - at;
		for (uint64_t i = 0; i < n; i++)
			if (run.ids[i] != ids[at + i - begin])
				return refuse(why, MPIG_EINVAL,
				              "token %" PRIu64 " is committed as %u and cannot become %u: truncate first", at + i,
				              run.ids[i], ids[at + i - begin]);
		at += n;
	}
	return 0;
}

// ---- commit ----------------------------------------------------------------------------------------------------------

uint64_t rows_most(const struct context *c)
{
	uint64_t most = 0;
	for (uint32_t i = 0; i < c->spec->layer_count; i++) {
		uint64_t rows = context_layer(c, i) ? atomic_load(&c->rows[i]) : 0;
		most = rows > most ? rows : most;
	}
	return most;
}

bool context_busy_writing(const struct context *c)
{
	uint64_t committed = context_committed(c);
	return rows_most(c) > committed || c->reserved > committed;
}

static void set_committed(struct store *s, struct context *c, uint64_t tokens)
{
	pool_publish_word(s->pool, &c->record->committed, tokens);
	// Partner: the acquire in context_committed. All rows below are in place.
	atomic_store(&c->committed, tokens);
}

static int commit_locked(struct store *s, struct context *c, uint64_t position, uint64_t count, const uint32_t *tokens, char *why)
{
	uint64_t committed = context_committed(c), end;
	int status = context_alive(c, why);
	if (status)
		return status;
	writer_leave(s, c);
	if (position > committed)
		return refuse(why, MPIG_ERANGE,
		              "commit at token %" PRIu64 ": only %" PRIu64 " are committed, the tokens between are missing",
		              position, committed);
	if (__builtin_add_overflow(position, count, &end) || end > MPIG_MAX_TOKENS)
		return refuse(why, MPIG_ELIMIT, "commit of %" PRIu64 " tokens at %" PRIu64 ": a context holds at most %" PRIu64,
		              count, position, MPIG_MAX_TOKENS);
	status = same_tokens(c, position, end < committed ? end : committed, tokens, why);
	if (status || end <= committed)
		return status;
	for (uint32_t i = 0; i < c->spec->layer_count; i++)
		if (context_layer(c, i) && atomic_load(&c->rows[i]) < end)
			return refuse(why, MPIG_ERANGE,
			              "commit of tokens up to %" PRIu64 ": layer %u holds rows of %" PRIu64
			              " only; append them first",
			              end, i, (uint64_t)atomic_load(&c->rows[i]));
	if (prefix_complete(s, c) || prefix_extend(s, c, tokens + (committed - position), end - committed))
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to index %" PRIu64 " tokens", end);
	tokens_write(c, committed, end - committed, tokens + (committed - position));
	set_committed(s, c, end);
	atomic_store_explicit(&c->used_ns, store_now(s), memory_order_relaxed);
	return 0;
}

int context_commit(struct store *s, struct context *c, uint64_t position, uint64_t count, const uint32_t *tokens, char *why)
{
	store_lock(s);
	int status = commit_locked(s, c, position, count, tokens, why);
	store_unlock(s);
	return status;
}

// ---- truncate --------------------------------------------------------------------------------------------------------

static uint32_t refs_before(const struct snapshot *snap, uint64_t position)
{
	return position ? snapshot_find(snap, position - 1) + 1 : 0;
}

// Segments that begin at `position` or later leave the list; the list's extent stays, the slot only counts fewer.
static void cut_segments(struct store *s, struct context *c, struct snapshot *next)
{
	const struct snapshot *old = atomic_load(&c->snapshot);
	memcpy(next->ref, old->ref, next->count * sizeof next->ref[0]);
	next->list_offset = next->count ? old->list_offset : 0;
	next->list_bytes = next->count ? old->list_bytes : 0;
	struct context_slot slot;
	slot_fill(c, next, &slot);
	slot_publish(s->pool, c->record, &slot);
	snapshot_install(s, c, next, next->count);
}

// Blocks of the open segment that hold no row below `rows`. Without memory for the list they stay for later rows.
static void cut_blocks(struct store *s, struct context *c, struct segment *seg, uint32_t rows)
{
	uint32_t count = seg->record->block_count;
	while (count && seg->record->block[count - 1].first_row >= rows)
		count--;
	if (count == seg->record->block_count)
		return;
	struct trash *trash = segment_trash_new(s, seg, rows, false, 0);
	if (!trash)
		return;
	segment_trash_fill(s, seg, rows, false, trash);
	pool_publish_word32(s->pool, &seg->record->block_count, count);
	context_retire(s, c, &trash->garbage);
}

static void cut_open_blocks(struct store *s, struct context *c, uint64_t position)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	if (!snap->count)
		return;
	const struct ref *last = &snap->ref[snap->count - 1];
	if (!last->segment->record->sealed_rows && position > last->first && position - last->first < SEGMENT_MAX_ROWS)
		cut_blocks(s, c, last->segment, (uint32_t)(position - last->first));
}

static void drain_settle(struct store *s, struct garbage *g)
{
	(void)s;
	((struct drain *)g)->context->draining--;
	free(g);
}

static void lower_rows(struct context *c, uint64_t position)
{
	for (uint32_t i = 0; i < c->spec->layer_count; i++)
		if (atomic_load(&c->rows[i]) > position)
			atomic_store(&c->rows[i], position);
	if (c->reserved > position)
		c->reserved = position;
}

static int truncate_locked(struct store *s, struct context *c, uint64_t position, char *why)
{
	int status = context_alive(c, why);
	if (status)
		return status;
	if (c->sealing)
		return refuse(why, MPIG_EBUSY, "context '%s' is being indexed: try again", c->name);
	writer_leave(s, c);
	uint64_t committed = context_committed(c), most = rows_most(c);
	if (position > most && position > committed)
		return refuse(why, MPIG_ERANGE, "truncate to token %" PRIu64 ": the context holds %" PRIu64, position,
		              most > committed ? most : committed);
	const struct snapshot *snap = atomic_load(&c->snapshot);
	uint32_t keep = refs_before(snap, position);
	struct snapshot *next = keep < snap->count ? snapshot_new(keep) : NULL;
	bool in_place = position < committed && keep && !snap->ref[keep - 1].segment->record->sealed_rows;
	struct drain *drain = in_place ? malloc(sizeof *drain) : NULL;
	if ((keep < snap->count && !next) || (in_place && !drain)) {
		free(next);
		free(drain);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to truncate '%s'", c->name);
	}
	if (position < committed) {
		atomic_fetch_add(&c->cuts, 1);
		set_committed(s, c, position);
		prefix_cut(s, c, position);
	}
	lower_rows(c, position);
	if (next)
		cut_segments(s, c, next);
	cut_open_blocks(s, c, position);
	if (drain) {
		*drain = (struct drain){.garbage.settle = drain_settle, .context = c};
		c->draining++;
		context_retire(s, c, &drain->garbage);
	}
	context_collect(s, c);
	return c->draining ? refuse(why, MPIG_EAGAIN, "readers are inside the rows after token %" PRIu64 ": try again", position)
	                   : 0;
}

int context_truncate(struct store *s, struct context *c, uint64_t position, char *why)
{
	store_lock(s);
	int status = truncate_locked(s, c, position, why);
	store_unlock(s);
	return status;
}

// Rows from `position`, at or above the commit, on. Without memory for it they stay where they are, for later rows.
static void forget_from(struct store *s, struct context *c, uint64_t position)
{
	const struct snapshot *snap = atomic_load(&c->snapshot);
	uint32_t keep = refs_before(snap, position);
	struct snapshot *next = keep < snap->count ? snapshot_new(keep) : NULL;
	lower_rows(c, position);
	if (next)
		cut_segments(s, c, next);
	cut_open_blocks(s, c, position);
}

void context_forget(struct store *s, struct context *c)
{
	forget_from(s, c, context_committed(c));
}

void context_append_failed(struct store *s, struct context *c, uint32_t layer, uint64_t position)
{
	store_lock(s);
	writer_leave(s, c);
	if (atomic_load(&c->rows[layer]) > position)
		atomic_store(&c->rows[layer], position);
	uint64_t most = rows_most(c), committed = context_committed(c);
	if (!context_dropped(c))
		forget_from(s, c, most > committed ? most : committed);
	store_unlock(s);
}
