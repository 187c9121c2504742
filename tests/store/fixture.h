// A private pool and store, and rows whose bytes say which token, strip and writing they are.
#ifndef MPIG_TESTS_STORE_FIXTURE_H
#define MPIG_TESTS_STORE_FIXTURE_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/store/pool.h"
#include "daemon/store/store.h"
#include "tests/store/walk.h"

struct fixture {
	struct pool *pool;
	struct store *store;
	char dir[64], why[MPIG_TEXT_BYTES];
};

static inline void fixture_pool(struct fixture *f, uint64_t bytes, uint32_t nodes)
{
	char line[96];
	snprintf(f->dir, sizeof f->dir, "/dev/shm/mpig-test-%d", (int)getpid());
	snprintf(line, sizeof line, "rm -rf %s", f->dir); // of a test that was killed and had our number
	must(access(f->dir, F_OK) != 0 || system(line) == 0);
	struct pool_options o = {.dir = f->dir, .instance = "test", .bytes = bytes, .nodes = nodes};
	ck_assert_msg(pool_create(&o, &f->pool, f->why, sizeof f->why) == 0, "%s", f->why);
}

static inline void fixture_open(struct fixture *f, uint64_t bytes, uint64_t quota_bytes, uint32_t quota_contexts)
{
	fixture_pool(f, bytes, 1);
	struct store_options o = {.pool = f->pool,
	                          .limits = {.uid_bytes = quota_bytes, .uid_contexts = quota_contexts},
	                          .upper_reach = 1,
	                          .upper_least = 1};
	ck_assert_int_eq(store_create(&o, &f->store), 0);
}

static inline void fixture_close(struct fixture *f)
{
	store_destroy(f->store);
	pool_close(f->pool, true);
	ck_assert_int_ne(access(f->dir, F_OK), 0);
}

static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static inline uint32_t next_below(uint64_t *state, uint32_t n)
{
	return (uint32_t)(mix(*state += UINT64_C(0x9e3779b97f4a7c15)) % n);
}

static inline struct mpig_wire_layer layer_of(uint32_t heads, uint32_t kv_heads, uint32_t d, uint32_t dtype, uint32_t bits,
                                              uint32_t k, uint32_t l)
{
	return (struct mpig_wire_layer){.kind = MPIG_LAYER_GLOBAL,
	                                .row_dtype = (uint8_t)dtype,
	                                .signature_bits = (uint8_t)bits,
	                                .query_heads = (uint16_t)heads,
	                                .kv_heads = (uint16_t)kv_heads,
	                                .d_k = (uint16_t)d,
	                                .paper_k = (uint16_t)k,
	                                .paper_l = (uint16_t)l};
}

static inline struct mpig_ctl_create create_of(const char *name, uint32_t layers)
{
	struct mpig_ctl_create body = {.layer_count = layers, .seed = 7};
	snprintf(body.name, sizeof body.name, "%s", name);
	body.fingerprint[0] = 1;
	return body;
}

static inline struct credentials user(uint32_t uid)
{
	return (struct credentials){.uid = uid, .gid = uid, .pid = 1000 + uid};
}

static inline int pin(const struct fixture *f, const char *name, const struct credentials *who, uint64_t until_ns)
{
	struct mpig_wire_policy policy = {.pinned_until_ns = until_ns}, now;
	char why[MPIG_TEXT_BYTES];
	return store_context_policy(f->store, who, name, MPIG_SET_PIN, &policy, &now, why);
}

// ---- rows with a meaning: `tag` is one writing of one token in one layer ----------------------------------------------

static inline void row_fill(uint8_t *row, uint32_t stride, uint64_t tag, uint32_t strip)
{
	for (uint32_t i = 0; i + 8 <= stride; i += 8) {
		uint64_t w = mix(tag * 1315423911u + strip * 2654435761u + i);
		memcpy(row + i, &w, 8);
	}
}

static inline int row_is(const uint8_t *row, uint32_t stride, uint64_t tag, uint32_t strip)
{
	for (uint32_t i = 0; i + 8 <= stride; i += 8) {
		uint64_t w = mix(tag * 1315423911u + strip * 2654435761u + i);
		if (memcmp(row + i, &w, 8))
			return 0;
	}
	return 1;
}

// Every word of a row's codes, and its factor. Groups of 16 rows are interleaved by words of 4 bytes.
static inline void codes_fill(uint8_t *codes, uint16_t *factors, uint32_t row, uint64_t per_row, uint64_t tag, uint32_t strip)
{
	for (uint64_t w = 0; w < per_row / 4; w++) {
		uint32_t value = (uint32_t)mix(tag + strip * 77u + w * 13u);
		memcpy(codes + row / 16 * 16 * per_row + w * 64 + row % 16 * 4, &value, 4);
	}
	factors[row] = (uint16_t)mix(tag ^ strip);
}

static inline int codes_are(const uint8_t *codes, const uint16_t *factors, uint32_t row, uint64_t per_row, uint64_t tag,
                            uint32_t strip)
{
	for (uint64_t w = 0; w < per_row / 4; w++) {
		uint32_t value = (uint32_t)mix(tag + strip * 77u + w * 13u);
		if (memcmp(codes + row / 16 * 16 * per_row + w * 64 + row % 16 * 4, &value, 4))
			return 0;
	}
	return factors[row] == (uint16_t)mix(tag ^ strip);
}

static inline uint64_t code_width(const struct layer *l, uint32_t bits) // bytes of a row's codes
{
	return mpig_code_bytes(l->shape.d_k, bits) - 2;
}

// Appends rows [position, position + count) of one layer; tag of token t is tags[t - position].
static inline int append_rows(struct fixture *f, struct context *c, uint32_t layer, uint64_t position, uint64_t count,
                              const uint64_t *tags)
{
	int status = context_reserve(f->store, c, layer, position, count, f->why);
	if (status)
		return status;
	const struct layer *l = context_layer(c, layer);
	for (uint32_t h = 0; h < l->shape.kv_heads; h++)
		for (uint64_t at = 0; at < count;) {
			struct write_span span;
			context_write_span(f->store, c, layer, h, position + at, &span);
			must(span.n > 0);
			uint64_t n = span.n < count - at ? span.n : count - at;
			for (uint64_t i = 0; i < n; i++) {
				row_fill(span.rows + i * l->rows.stride, l->rows.stride, tags[at + i], l->first_strip + h);
				if (span.codes)
					codes_fill(span.codes, span.factors, span.block_row + (uint32_t)i,
					           code_width(l, span.params.bits), tags[at + i], l->first_strip + h);
			}
			at += n;
		}
	context_appended(c, layer, position + count);
	return 0;
}

static inline uint64_t test_table_bytes(const struct layer *l, uint32_t rows)
{
	return (uint64_t)l->wire.paper_l * rows * 2 + 64;
}

// Both steps of beginning: with the widths that the layers name, or one of each where they are automatic.
static inline int seal_begin(struct store *s, struct context *c, uint64_t (*table_bytes)(const struct layer *, uint32_t),
                             struct seal_plan *plan, char *why)
{
	int status = context_seal_begin(s, c, plan, why);
	if (status || !plan->rows)
		return status;
	uint8_t *bits = plan->needs_params ? plan->bits(plan) : NULL;
	for (uint32_t strip = 0; bits && strip < context_strips(c); strip++)
		if (bits[strip] == MPIG_BITS_AUTO)
			bits[strip] = (uint8_t)(1u << strip % 3);
	status = context_seal_room(s, plan, table_bytes, why);
	if (status) {
		context_seal_finish(s, plan, false);
		*plan = (struct seal_plan){.context = c};
	}
	return status;
}

// Builds what a plan asks for. known < UINT64_MAX: of the context's first `known` rows only, and where it uses fewer rows of the segment than
// there are, the others have tags of another context. tag of the plan's row i is tags[i] (the same for all layers).
static inline void seal_fill_known(struct context *c, struct seal_plan *plan, const uint64_t *tags, uint64_t known)
{
	for (uint32_t layer = 0; layer < context_layer_count(c); layer++) {
		const struct layer *l = context_layer(c, layer);
		for (uint32_t h = 0; l && h < l->shape.kv_heads; h++) {
			uint32_t strip = l->first_strip + h;
			for (uint32_t i = 0; plan->needs_params && i < l->shape.d_k; i++) {
				plan->mu(plan, strip)[i] = (float)strip;
				plan->balance(plan, strip)[i] = (float)i;
			}
			for (uint32_t row = 0; row < plan->rows;) {
				uint16_t *factors = NULL;
				uint32_t block_row, n, m;
				const uint8_t *rows = plan->rows_at(plan, strip, row, &m);
				uint8_t *codes = plan->needs_codes && l->code_bytes_per_row
				                         ? plan->codes(plan, strip, row, &factors, &block_row, &n)
				                         : NULL;
				for (uint32_t i = 0; i < m; i++) {
					uint64_t tag = row + i < known ? tags[row + i] : 0;
					bool mine = row_is(rows + (uint64_t)i * l->rows.stride, l->rows.stride, tag, strip);
					must(mine || known < UINT64_MAX);
					if (codes)
						codes_fill(codes, factors, block_row + i, code_width(l, plan->bits(plan)[strip]),
						           tag, strip);
				}
				must(!codes || n == m);
				row += m;
			}
			if (plan->needs_tables && l->wire.paper_k)
				memset(plan->table(plan, strip), (int)(strip + 1), test_table_bytes(l, plan->rows));
			if (plan->upper(plan, strip))
				memset(plan->upper(plan, strip), (int)(strip + 101),
				       sig_upper_bytes(l->d_pad, plan->bits(plan)[strip], plan->rows));
		}
	}
}

static inline void seal_fill(struct context *c, struct seal_plan *plan, const uint64_t *tags)
{
	seal_fill_known(c, plan, tags, UINT64_MAX);
}

// Indexes a context again, whose committed rows have these tags. The status of reindex_begin, _next or _switch, 0 if it went through.
static inline int reindex(struct fixture *f, struct context *c, const uint64_t *tags, uint64_t committed)
{
	struct reindex *x;
	struct seal_plan plan;
	int status = reindex_begin(f->store, c, &x, f->why);
	if (status)
		return status;
	for (uint32_t strip = 0; strip < context_strips(c); strip++) {
		const struct layer *l = NULL;
		for (uint32_t i = 0; i < context_layer_count(c); i++)
			if (context_layer(c, i) && context_layer(c, i)->first_strip <= strip)
				l = context_layer(c, i);
		for (uint32_t i = 0; i < l->shape.d_k; i++) {
			reindex_mu(x, strip)[i] = (float)strip;
			reindex_balance(x, strip)[i] = (float)i;
		}
		if (reindex_bits(x)[strip] == MPIG_BITS_AUTO)
			reindex_bits(x)[strip] = (uint8_t)(1u << (strip + context_signature_version(c)) % 3);
	}
	do {
		while ((status = reindex_next(x, test_table_bytes, &plan, f->why)) == 1) {
			seal_fill_known(c, &plan, tags + plan.first, committed - plan.first);
			reindex_done(x, &plan, true);
		}
		if (!status)
			status = reindex_switch(x, f->why);
	} while (status == 1);
	reindex_end(x);
	return status;
}

#endif
