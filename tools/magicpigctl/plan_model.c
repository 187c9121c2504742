#include "plan_model.h"

#include <math.h>

#include "analyze_model.h"

// The pool's constants (daemon/store/format.h); a test holds the two together.
#define GRANULE 4096u
#define SEGMENT_ROWS 65536u
#define BLOCK_UNIT 16u
#define APPEND_BYTES (256u << 10) // of fp32 rows that the library sends at once: its default slot
#define BLOCK_MOST 4096u
#define SEGMENT_BLOCKS 248u
#define HEADER 24u        // of every record, about
#define UPPER_LEAST 4096u // rows of a segment that are worth an upper layer

static uint64_t granules(uint64_t bytes)
{
	return (bytes + GRANULE - 1) / GRANULE * GRANULE;
}

static uint64_t align64(uint64_t bytes)
{
	return (bytes + 63) / 64 * 64;
}

uint64_t plan_table_bytes(unsigned k, unsigned l, uint64_t rows)
{
	return align64((uint64_t)l * ((UINT64_C(1) << k) + 1) * 4) + align64(l * rows * 2) + align64(rows * 4);
}

// An upper layer over codes, as in sig_upper_bytes of daemon/kernels/kernels.h: groups of sixteen rows, in sixteens.
static uint64_t upper_bytes(const struct mpig_layer *l, uint64_t rows)
{
	uint64_t d = l->d_k <= 64 ? 64 : l->d_k <= 128 ? 128 : 256, groups = (rows + 255) / 256 * 16;
	return groups * (d * 4 / 8 + 4 + 16 * (d * (uint64_t)l->signature_bits / 8 + 4));
}

static bool stored(const struct mpig_layer *l)
{
	return l->kind == MPIG_LAYER_GLOBAL;
}

static int strips_of(const struct plan_shape *s)
{
	int strips = 0;
	for (int i = 0; i < s->layers; i++)
		strips += stored(&s->layer[i]) ? s->layer[i].kv_heads : 0;
	return strips;
}

static unsigned table_bits(const struct mpig_layer *l)
{
	if (l->table_hash != MPIG_HASH_CROSSPOLYTOPE)
		return (unsigned)l->paper_k;
	return l->d_k <= 64 ? 7 : l->d_k <= 128 ? 8 : 9;
}

// One block of all strips: `used` of its `rows` when its segment is sealed.
static void add_block(const struct plan_shape *s, int strips, uint64_t rows, uint64_t used, struct plan_memory *m)
{
	bool codes = false;
	for (int i = 0; i < s->layers; i++) {
		const struct mpig_layer *l = &s->layer[i];
		if (!stored(l))
			continue;
		m->rows += (uint64_t)l->kv_heads * granules(used * (uint64_t)layer_row_bytes(l));
		if (!l->signature_bits)
			continue;
		codes = true;
		uint64_t code = (uint64_t)layer_code_bytes(l, l->signature_bits) - 2, groups = (used + 15) / 16 * 16;
		uint64_t head = granules(groups * code), tail_from = rows * code / GRANULE * GRANULE,
			 tail_to = granules(rows * code + 2 * used);
		m->index += (uint64_t)l->kv_heads * (tail_from <= head ? tail_to : head + tail_to - tail_from);
	}
	m->metadata += granules(HEADER + 8 + 8 * (uint64_t)strips + 4 * rows);
	if (codes)
		m->metadata += granules(HEADER + 8 + 8 * (uint64_t)strips);
}

// Rows of one append; the layer with the fewest sets the blocks of all.
static uint64_t append_rows(const struct plan_shape *s)
{
	uint64_t least = BLOCK_MOST;
	for (int i = 0; i < s->layers; i++) {
		const struct mpig_layer *l = &s->layer[i];
		uint64_t bytes = 4 * (uint64_t)l->kv_heads * (uint64_t)(l->d_k + (l->d_v ? l->d_v : l->d_k));
		if (stored(l) && bytes && APPEND_BYTES / bytes < least)
			least = APPEND_BYTES / bytes;
	}
	return least ? least : 1;
}

static void add_segment(const struct plan_shape *s, int strips, uint64_t rows, bool upper, struct plan_memory *m)
{
	bool int8 = false;
	uint64_t most_d = 0, piece = append_rows(s);
	for (uint64_t at = 0; at < rows;) {
		uint64_t left = piece - at % piece, block = (left + BLOCK_UNIT - 1) / BLOCK_UNIT * BLOCK_UNIT, so_far = 1;
		while (2 * so_far <= at) // as large as the append or the segment so far, rounded down to a power of two
			so_far *= 2;
		block = block > so_far ? block : so_far;
		block = block < BLOCK_MOST ? block : BLOCK_MOST;
		add_block(s, strips, block, rows - at < block ? rows - at : block, m);
		at += block;
	}
	for (int i = 0; i < s->layers; i++) {
		const struct mpig_layer *l = &s->layer[i];
		if (!stored(l))
			continue;
		if (l->paper_l)
			m->index += (uint64_t)l->kv_heads * granules(plan_table_bytes(table_bits(l), (unsigned)l->paper_l, rows));
		if (upper && l->signature_bits && rows >= UPPER_LEAST)
			m->index += (uint64_t)l->kv_heads * granules(upper_bytes(l, rows));
		int8 |= l->row_dtype == MPIG_I8;
		most_d = (uint64_t)l->d_k > most_d ? (uint64_t)l->d_k : most_d;
	}
	m->metadata +=
		granules(HEADER + 40 + 16 * SEGMENT_BLOCKS) + granules(HEADER + 24 + 16 * (uint64_t)strips + 8 * SEGMENT_BLOCKS);
	if (int8)
		m->metadata += granules((uint64_t)strips * 2 * most_d * 4);
}

struct plan_memory plan_memory(const struct plan_shape *s, uint64_t first, uint64_t tokens, uint64_t upper_rows)
{
	struct plan_memory m = {0};
	int strips = strips_of(s);
	uint64_t parameters = 64;
	for (int i = 0; i < s->layers; i++)
		parameters += stored(&s->layer[i]) ? (uint64_t)s->layer[i].kv_heads * 2 * (uint64_t)s->layer[i].d_k * 4 : 0;
	for (uint64_t at = 0; at < tokens; at += SEGMENT_ROWS) {
		uint64_t rows = tokens - at < SEGMENT_ROWS ? tokens - at : SEGMENT_ROWS;
		add_segment(s, strips, rows, upper_rows && first + at + rows > upper_rows / 4, &m);
	}
	m.index += granules(parameters);
	m.metadata +=
		GRANULE + granules(HEADER + 64 * (uint64_t)s->layers) + GRANULE; // the context, its spec, its list of segments
	m.disk = m.rows + m.index + 4 * tokens;
	return m;
}

double plan_table_share(int k, int l, int d)
{
	// The mean of u over the cosine c = cos(a) of two directions that have nothing to do with each other: density sin(a)^(d - 2).
	enum { STEPS = 4000 };
	double sum = 0, weight = 0;
	for (int i = 0; i < STEPS; i++) {
		double angle = M_PI * (i + .5) / STEPS, density = pow(sin(angle), d - 2), p = pow(1 - angle / M_PI, k);
		sum += density * (1 - pow(1 - p, l) - l * p * pow(1 - p, l - 1));
		weight += density;
	}
	return sum / weight;
}

struct plan_traffic plan_traffic(const struct plan_shape *s, uint64_t tokens, double budget, bool tables)
{
	struct plan_traffic t = {0};
	for (int i = 0; i < s->layers; i++) {
		const struct mpig_layer *l = &s->layer[i];
		if (!stored(l))
			continue;
		double rows = l->window ? fmin((double)tokens, l->window) : (double)tokens,
		       heads = (double)l->query_heads / l->kv_heads;
		double all = l->kv_heads * rows * layer_row_bytes(l);
		t.attends++;
		t.dense += all;
		if (tables && l->paper_l && !l->window) { // lists of 16-bit ids, each query head's own; rows with their norms
			double ids = rows * l->paper_l * 2 / pow(2, l->paper_k),
			       share = budget > 0 ? budget : plan_table_share(l->paper_k, l->paper_l, l->d_k);
			t.rows += l->query_heads * ids;
			t.rows += l->kv_heads * rows * (layer_row_bytes(l) + 4) * (1 - pow(1 - share, heads));
		} else if (l->signature_bits && !l->window) {
			t.codes += l->kv_heads * rows * layer_code_bytes(l, l->signature_bits);
			t.rows += all * (1 - pow(1 - budget, heads));
		} else {
			t.codes += all; // no index: all rows are read, in a stream
		}
	}
	return t;
}

double plan_window_bytes(const struct plan_shape *s, uint64_t tokens)
{
	double bytes = 0;
	for (int i = 0; i < s->layers; i++) {
		const struct mpig_layer *l = &s->layer[i];
		double rows = l->window ? fmin((double)tokens, l->window) : (double)tokens;
		bytes += l->kv_heads * rows * 2.0 * (l->d_k + (l->d_v ? l->d_v : l->d_k));
	}
	return bytes;
}
