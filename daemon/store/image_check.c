// What a context from elsewhere holds, before anybody reads it; see image.h. Its shape was checked when the making began.
#include <float.h>
#include <stdlib.h>

#include "daemon/store/image_making.h"

static bool finite_floats(const float *x, uint64_t n, float least)
{
	bool good = true;
	for (uint64_t i = 0; i < n; i++)
		good &= x[i] >= least && x[i] <= FLT_MAX;
	return good;
}

static bool finite_halves(const uint16_t *h, uint32_t n)
{
	bool good = true;
	for (uint32_t i = 0; i < n; i++)
		good &= (h[i] & 0x7c00u) != 0x7c00u;
	return good;
}

static int check_params(const struct making *m, const struct making_checks *checks, char *why)
{
	if (!m->own.count || !checks->rows_good)
		return 0;
	void *record = pool_at(m->store->pool, m->params->offset);
	for (uint32_t strip = 0; strip < m->spec->strips; strip++) {
		const struct layer *l = spec_strip(m->spec, strip);
		const float *mu = spec_params(m->spec, record, strip), *balance = mu + l->shape.d_k;
		if (!finite_floats(mu, l->shape.d_k, -FLT_MAX) || !finite_floats(balance, l->shape.d_k, FLT_MIN))
			return refuse(why, MPIG_ECORRUPT, "the parameters of strip %u are no numbers to work with", strip);
	}
	return 0;
}

static int check_block(const struct making *m, const struct making_checks *checks, uint32_t i, uint32_t b, char *why)
{
	const struct pool *pool = m->store->pool;
	const struct segment_record *r = m->segment[i]->record;
	const struct generation_record *g = segment_generation(pool, m->segment[i]);
	struct block_record *block = pool_at(pool, r->block[b].offset);
	uint32_t left = m->from.segment[i].rows - r->block[b].first_row, used = left < block->rows ? left : block->rows;
	for (uint32_t strip = 0; checks->rows_good && strip < m->spec->strips; strip++) {
		const struct layer *l = spec_strip(m->spec, strip);
		if (!checks->rows_good(l, pool_at(pool, block_rows(block)[strip]), used,
		                       l->rows.type == ROW_I8 ? segment_frame(pool, m->segment[i], strip) : NULL))
			return refuse(why, MPIG_ECORRUPT, "segment %u, block %u, strip %u: a row has a NaN or an infinity", i, b,
			              strip);
		uint64_t codes = g && g->code_block[b] ? code_offsets(pool_at(pool, g->code_block[b]))[strip] : 0;
		if (codes &&
		    !finite_halves(pool_at(pool, codes + block->rows * code_bytes(m->spec, generation_bits(g), strip)), used))
			return refuse(why, MPIG_ECORRUPT, "segment %u, block %u, strip %u: the index has a NaN or an infinity", i,
			              b, strip);
	}
	return 0;
}

static int check_tables(const struct making *m, const struct making_checks *checks, uint32_t i, char *why)
{
	const struct segment_record *r = m->segment[i]->record;
	struct generation_record *g = segment_generation(m->store->pool, m->segment[i]);
	for (uint32_t strip = 0; checks->table_good && g && g->table_rows && strip < m->spec->strips; strip++) {
		uint64_t offset = generation_tables(g)[strip].offset;
		if (offset && !checks->table_good(spec_strip(m->spec, strip), pool_at(m->store->pool, offset), r->sealed_rows))
			return refuse(why, MPIG_ECORRUPT, "segment %u, strip %u: its tables name rows that do not exist", i,
			              strip);
	}
	for (uint32_t strip = 0; checks->upper_good && g && g->upper_rows && strip < m->spec->strips; strip++) {
		uint64_t offset = generation_uppers(g)[strip].offset;
		if (offset && !checks->upper_good(spec_strip(m->spec, strip), generation_bits(g)[strip],
		                                  pool_at(m->store->pool, offset), r->sealed_rows))
			return refuse(why, MPIG_ECORRUPT, "segment %u, strip %u: its upper layer does not name every row once", i,
			              strip);
	}
	return 0;
}

static int check_sums(const struct making *m, uint32_t i, char *why)
{
	const struct image_segment *from = &m->from.segment[i];
	const struct segment_record *r = m->segment[i]->record;
	struct generation_record *g = segment_generation(m->store->pool, m->segment[i]);
	const struct table_extent *table = g && generation_has_tables(g) ? generation_tables(g) : NULL;
	struct content_sums *sums = content_sums_new(m->store, m->segment[i], g, table, r->sealed_rows);
	if (!sums)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to check '%s'", m->from.name);
	bool good = !from->table_content || from->table_content == sums->tables;
	for (uint32_t b = 0; b < from->block_count; b++) {
		const struct image_block *block = &from->block[b];
		good &= !block->content || block->content == sums->block[b];
		good &= !block->codes_content || block->codes_content == sums->code_block[b];
	}
	if (good)
		content_sums_publish(m->store->pool, r, g, sums);
	free(sums);
	return good ? 0 : refuse(why, MPIG_ECORRUPT, "segment %u is not what it was when it was sealed", i);
}

int making_check(struct making *m, const struct making_checks *checks, char *why)
{
	int status = check_params(m, checks, why);
	for (uint32_t i = 0; i < m->from.segment_count && !status; i++) {
		const struct segment_record *r = m->segment[i]->record;
		uint64_t floats = checks->rows_good ? frames_bytes(m->spec) / sizeof(float) : 0;
		if (floats && !finite_floats(pool_at(m->store->pool, r->frames_offset), floats, -FLT_MAX))
			return refuse(why, MPIG_ECORRUPT, "the frames of segment %u have a NaN or an infinity", i);
		for (uint32_t b = 0; b < r->block_count && !status; b++)
			status = check_block(m, checks, i, b, why);
		if (!status)
			status = check_tables(m, checks, i, why);
		if (!status && r->sealed_rows)
			status = check_sums(m, i, why);
	}
	return status;
}

int making_sum(struct making *m, uint32_t segment, char *why)
{
	return m->segment[segment]->record->sealed_rows ? check_sums(m, segment, why) : 0;
}
