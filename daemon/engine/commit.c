// COMMIT, and the sealing of segments it may bring: the first one fits parameters, a round of its own, after which the size of codes is
// known; rows get their signatures and tables, and what came of it checksums, two rounds per segment; and the store publishes the lot. One group
// per strip, but for the checksums.
#include <stdlib.h>
#include <string.h>

#include "daemon/base/probe.h"
#include "daemon/engine/indexing.h"
#include "daemon/engine/recent.h"

// One unit per strip if parameters are to be fitted, else those of the index.
static int begin_round(struct job *j)
{
	struct commit *c = &j->commit;
	struct round *r = round_new(j, c->indexing.strips);
	if (!r)
		return job_fail(j, MPIG_ENOMEM, "the tokens are committed but not indexed: no memory for %u strips",
		                c->indexing.strips);
	for (uint32_t i = 0; i < c->indexing.strips; i++)
		r->group[i].main_n = c->phase == SEAL_FIT ? 1 : indexing_units(&c->plan);
	round_publish(j, r);
	return 0;
}

static int make_room(struct job *j)
{
	char why[MPIG_TEXT_BYTES] = "";
	int status = context_seal_room(j->engine->store, &j->commit.plan, engine_table_bytes, why);
	return status ? job_fail(j, status, "the tokens are committed but not indexed: %s", why) : 0;
}

static void give_up(struct job *j)
{
	if (j->commit.sealing)
		context_seal_finish(j->engine->store, &j->commit.plan, false);
	j->commit.sealing = false;
}

// Begins the next segment's round; MPIG_EAGAIN if there is one, 0 if nothing is left to seal.
static int next_segment(struct job *j)
{
	struct commit *c = &j->commit;
	char why[MPIG_TEXT_BYTES] = "";
	int status = context_seal_begin(j->engine->store, j->request.context, &c->plan, why);
	if (status)
		return job_fail(j, status, "the tokens are committed but not indexed: %s", why);
	if (!c->plan.rows)
		return 0;
	c->sealing = true;
	c->phase = c->plan.needs_params ? SEAL_FIT : SEAL_INDEX;
	if (c->phase == SEAL_INDEX)
		status = make_room(j);
	if (!status)
		status = begin_round(j);
	if (status)
		give_up(j);
	return status ? status : MPIG_EAGAIN;
}

static int seal_unit(struct job *j, uint32_t strip, uint32_t unit, struct engine_scratch *s)
{
	struct commit *c = &j->commit;
	if (c->phase == SEAL_SUM)
		context_seal_sum(&c->plan, unit);
	else if (c->phase == SEAL_INDEX)
		return indexing_unit(j, &c->indexing, &c->plan, strip, unit, s);
	else
		return indexing_fit(j, &c->indexing, &c->plan, strip, s);
	return 0;
}

static int fitted(struct job *j)
{
	struct commit *c = &j->commit;
	indexing_widths(j, &c->indexing, c->plan.bits(&c->plan));
	c->phase = SEAL_INDEX;
	int status = make_room(j);
	if (!status)
		status = begin_round(j);
	if (status)
		give_up(j);
	return status ? status : MPIG_EAGAIN;
}

// Without memory for a round the store makes them by itself.
static bool begin_sums(struct job *j)
{
	struct commit *c = &j->commit;
	struct round *r = round_new(j, 1);
	uint32_t parts = r ? context_seal_sums(&c->plan) : 0;
	if (!parts) {
		round_free(j, r);
		return false;
	}
	r->group[0].main_n = parts;
	c->phase = SEAL_SUM;
	round_publish(j, r);
	return true;
}

static int seal_finish(struct job *j, struct engine_scratch *s)
{
	(void)s;
	struct commit *c = &j->commit;
	bool good = !atomic_load(&j->failed);
	if (good && c->phase == SEAL_FIT)
		return fitted(j);
	if (good && c->phase == SEAL_INDEX && begin_sums(j))
		return MPIG_EAGAIN;
	c->sealing = false;
	PROBE4(seal, context_id(j->request.context), c->plan.first, c->plan.rows, good);
	context_seal_finish(j->engine->store, &c->plan, good);
	int status = good ? next_segment(j) : 0;
	if (!status && good)
		recent_forget(j->request.context);
	return status;
}

static int seal_close(struct job *j, uint32_t strip, struct engine_scratch *s)
{
	struct commit *c = &j->commit;
	return c->phase == SEAL_INDEX ? indexing_close(j, &c->indexing, &c->plan, strip, s) : 0;
}

static const struct job_ops seal_ops = {.main = seal_unit, .close = seal_close, .finish = seal_finish, .release = give_up};

int commit_plan(struct job *j)
{
	const struct mpig_sqe *e = &j->request.entry;
	if (e->begin > MPIG_MAX_TOKENS || e->count > MPIG_MAX_TOKENS - e->begin)
		return job_fail(j, MPIG_ERANGE, "tokens %llu + %u are not inside 0..%llu", (unsigned long long)e->begin, e->count,
		                (unsigned long long)MPIG_MAX_TOKENS);
	if (e->count) {
		struct mpig_payload_layout layout = mpig_commit_layout(e->count);
		if (!j->request.payload_in || layout.bytes > j->request.slot_bytes)
			return job_fail(j, MPIG_EINVAL, "the payload needs %llu bytes, the slot has %llu",
			                (unsigned long long)layout.bytes, (unsigned long long)j->request.slot_bytes);
		uint32_t *tokens = malloc(e->count * sizeof(uint32_t));
		if (!tokens)
			return job_fail(j, MPIG_ENOMEM, "no memory for %u token ids", e->count);
		memcpy(tokens, j->request.payload_in + layout.tokens, e->count * sizeof(uint32_t));
		char why[MPIG_TEXT_BYTES] = "";
		int status = context_commit(j->engine->store, j->request.context, e->begin, e->count, tokens, why);
		free(tokens);
		if (status)
			return job_fail(j, status, "%s", why);
	}
	j->result.units = 1;
	if (!(e->flags & MPIG_SQE_SEAL) && !context_wants_seal(j->request.context))
		return 0;
	int status = indexing_init(j, &j->commit.indexing);
	if (status || !(status = next_segment(j)))
		return status;
	if (status != MPIG_EAGAIN)
		return status;
	j->ops = &seal_ops;
	return 0;
}
