// Every proposal on the same strips, one thread, without rings: what 1 % of the
// rows costs, or as many as the tables give.
#include <string.h>

#include "daemon/store/pool.h"
#include "shm/abi.h"
#include "tools/magicpig-bench/bench.h"
#include "tools/magicpig-bench/strips.h"

enum { LAYERS = 4, REPETITIONS = 15 };

static const struct {
	const char *name;
	uint8_t proposal;
	int context; // whose tables it needs
} entries[BENCH_PROPOSALS] = {
	{"dense", MPIG_PROPOSAL_DENSE, 0},
	{"signature", MPIG_PROPOSAL_SIGNATURE, 0},
	{"paper (10,150)", MPIG_PROPOSAL_PAPER, 0},
	{"crosspolytope (35)", MPIG_PROPOSAL_CROSSPOLYTOPE, 1},
	{"topk", MPIG_PROPOSAL_TOPK, 0},
	{"topk_estimated", MPIG_PROPOSAL_TOPK_ESTIMATED, 0},
	{"heavy_uniform", MPIG_PROPOSAL_HEAVY_UNIFORM, 0},
	{"heavy_uniform_estimated", MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED, 0},
	{"uniform", MPIG_PROPOSAL_UNIFORM, 0},
	{"window", MPIG_PROPOSAL_WINDOW, 0},
};

static struct context *make(struct fixture *f, const char *name, uint8_t hash, uint16_t k, uint16_t l, uint32_t rows,
                            const float *q)
{
	struct mpig_wire_layer layer = fixture_layer(STRIP_GROUP, 1, STRIP_DIM, MPIG_BF16);
	layer.signature_bits = 2;
	layer.table_hash = hash;
	layer.paper_k = k;
	layer.paper_l = l;
	struct context *c = fixture_context(f, name, &layer, LAYERS, 1);
	strips_append(f, c, LAYERS, rows, q);
	fixture_commit(f, c, 0, rows, true);
	return c;
}

void bench_proposals(uint32_t rows, uint32_t mask, struct proposal_result out[BENCH_PROPOSALS])
{
	struct fixture f;
	float q[STRIP_GROUP * STRIP_DIM];
	fixture_start(&f, ((UINT64_C(2) * LAYERS * 1000 * rows) + (UINT64_C(64) << 20)) & ~UINT64_C(0x1fffff), mask);
	fill_normal(q, STRIP_GROUP * STRIP_DIM, 3, 1);
	struct context *context[] = {make(&f, "simhash", MPIG_HASH_SIMHASH, 10, 150, rows, q),
	                             make(&f, "crosspolytope", MPIG_HASH_CROSSPOLYTOPE, 0, 35, rows, q)};
	while (pool_collapse(f.pool, 64)) // as an idle daemon has done by now
		;
	double ms[BENCH_PROPOSALS][REPETITIONS], kept[BENCH_PROPOSALS] = {0};
	for (uint32_t i = 0; i < REPETITIONS; i++) {
		fill_normal(q, STRIP_GROUP * STRIP_DIM, 100u + i, 1);
		for (uint32_t p = 0; p < BENCH_PROPOSALS; p++)
			ms[p][i] = strip_attend_ms(&f, context[entries[p].context], (i + p) % LAYERS, rows, entries[p].proposal,
			                           i, q, &kept[p], NULL);
	}
	for (uint32_t p = 0; p < BENCH_PROPOSALS; p++)
		out[p] = (struct proposal_result){entries[p].name, median(ms[p], REPETITIONS), kept[p] / REPETITIONS};
	fixture_stop(&f);
}
