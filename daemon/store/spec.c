#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/internal.h"

static bool dim_supported(uint32_t d)
{
	return d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
}

static bool zeros(const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (bytes[i])
			return false;
	return true;
}

static int check_shape(const struct mpig_wire_layer *w, uint32_t i, char *why)
{
	if (w->query_heads < 1 || w->query_heads > MPIG_MAX_HEADS)
		return refuse(why, MPIG_EINVAL, "layer %u: query_heads is %u, must be 1 to %u", i, w->query_heads,
		              MPIG_MAX_HEADS);
	if (w->kv_heads < 1 || w->query_heads % w->kv_heads)
		return refuse(why, MPIG_EINVAL, "layer %u: kv_heads is %u, must be a divisor of query_heads (%u)", i, w->kv_heads,
		              w->query_heads);
	if (!dim_supported(w->d_k))
		return refuse(why, MPIG_EINVAL, "layer %u: d_k is %u, must be 64, 80, 96, 128 or 256", i, w->d_k);
	if (w->d_v && !dim_supported(w->d_v))
		return refuse(why, MPIG_EINVAL, "layer %u: d_v is %u, must be 0 (as d_k), 64, 80, 96, 128 or 256", i, w->d_v);
	if (w->row_dtype >= MPIG_DTYPE_COUNT)
		return refuse(why, MPIG_EINVAL, "layer %u: row_dtype is %u, must be 0 (BF16), BF16, F16 or I8 (at most %d)", i,
		              w->row_dtype, MPIG_DTYPE_COUNT - 1);
	return 0;
}

// Of a layer that stores nothing: clients believe no more of it either.
static int check_other(const struct mpig_wire_layer *w, uint32_t i, char *why)
{
	if (w->query_heads > MPIG_MAX_HEADS || w->kv_heads > MPIG_MAX_HEADS)
		return refuse(why, MPIG_EINVAL, "layer %u: query_heads is %u and kv_heads is %u, must be at most %u", i,
		              w->query_heads, w->kv_heads, MPIG_MAX_HEADS);
	if (w->d_k > MPIG_MAX_HEAD_DIM || w->d_v > MPIG_MAX_HEAD_DIM)
		return refuse(why, MPIG_EINVAL, "layer %u: d_k is %u and d_v is %u, must be at most %u", i, w->d_k, w->d_v,
		              MPIG_MAX_HEAD_DIM);
	return 0;
}

static int check_index(const struct mpig_wire_layer *w, uint32_t i, char *why)
{
	bool automatic = w->signature_bits == MPIG_BITS_AUTO;
	if (w->signature_bits != 0 && !mpig_bits_fixed(w->signature_bits) && !automatic)
		return refuse(why, MPIG_EINVAL, "layer %u: signature_bits is %u, must be 0, 1, 2, 4 or %d (AUTO)", i,
		              w->signature_bits, MPIG_BITS_AUTO);
	uint32_t least = mpig_code_bytes(w->d_k, 1);
	if (w->signature_bytes && (!automatic || w->signature_bytes < least))
		return refuse(why, MPIG_EINVAL,
		              "layer %u: signature_bytes is %u, must be 0, or with signature_bits AUTO at least %u", i,
		              w->signature_bytes, least);
	if (w->table_hash >= MPIG_HASH_COUNT)
		return refuse(why, MPIG_EINVAL, "layer %u: table_hash is %u, must be below %d", i, w->table_hash,
		              MPIG_HASH_COUNT);
	if (w->table_balance > 1)
		return refuse(why, MPIG_EINVAL, "layer %u: table_balance is %u, must be 0 or 1", i, w->table_balance);
	if ((w->table_hash || w->table_balance) && !w->paper_l)
		return refuse(why, MPIG_EINVAL, "layer %u: table_hash is %u and table_balance is %u, must be 0 without paper_l",
		              i, w->table_hash, w->table_balance);
	uint32_t fixed = w->table_hash == MPIG_HASH_CROSSPOLYTOPE ? mpig_crosspolytope_bits(w->d_k) : 0;
	if (fixed && w->paper_k && w->paper_k != fixed)
		return refuse(why, MPIG_EINVAL, "layer %u: paper_k is %u, must be 0 or %u for cross-polytope tables", i,
		              w->paper_k, fixed);
	if (!fixed && !w->paper_k != !w->paper_l)
		return refuse(why, MPIG_EINVAL, "layer %u: paper_k is %u and paper_l is %u, must be both 0 or both set", i,
		              w->paper_k, w->paper_l);
	if (w->paper_k > 16)
		return refuse(why, MPIG_EINVAL, "layer %u: paper_k is %u, must be 1 to 16", i, w->paper_k);
	if (w->paper_l && (w->paper_l < 2 || w->paper_l > 512))
		return refuse(why, MPIG_EINVAL, "layer %u: paper_l is %u, must be 2 to 512", i, w->paper_l);
	if (w->default_proposal >= MPIG_PROPOSAL_COUNT)
		return refuse(why, MPIG_EINVAL, "layer %u: default_proposal is %u, must be below %d", i, w->default_proposal,
		              MPIG_PROPOSAL_COUNT);
	if (w->default_proposal == MPIG_PROPOSAL_SIGNATURE && !w->signature_bits)
		return refuse(why, MPIG_EINVAL,
		              "layer %u: default_proposal is SIGNATURE (%d) but signature_bits is 0: set 1, 2 or 4", i,
		              MPIG_PROPOSAL_SIGNATURE);
	if ((w->default_proposal == MPIG_PROPOSAL_TOPK_ESTIMATED ||
	     w->default_proposal == MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED) &&
	    !w->signature_bits)
		return refuse(why, MPIG_EINVAL, "layer %u: default_proposal %u estimates but signature_bits is 0: set 1, 2 or 4",
		              i, w->default_proposal);
	if (w->default_proposal == MPIG_PROPOSAL_PAPER && (!w->paper_l || w->table_hash != MPIG_HASH_SIMHASH))
		return refuse(why, MPIG_EINVAL,
		              "layer %u: default_proposal is PAPER (%d) but there are no SimHash tables: set paper_k and paper_l",
		              i, MPIG_PROPOSAL_PAPER);
	if (w->default_proposal == MPIG_PROPOSAL_CROSSPOLYTOPE && w->table_hash != MPIG_HASH_CROSSPOLYTOPE)
		return refuse(why, MPIG_EINVAL,
		              "layer %u: default_proposal is CROSSPOLYTOPE (%d) but table_hash is %u: set %d, and paper_l", i,
		              MPIG_PROPOSAL_CROSSPOLYTOPE, w->table_hash, MPIG_HASH_CROSSPOLYTOPE);
	return 0;
}

// least < value <= most, or 0 for the default. NaN fails every comparison.
static int check_number(float value, float most, const char *field, uint32_t i, char *why)
{
	if (value == 0 || (value > 0 && value <= most))
		return 0;
	return refuse(why, MPIG_EINVAL, "layer %u: %s is %g, must be 0 or above 0 and at most %g", i, field, (double)value,
	              (double)most);
}

static int check_numbers(const struct mpig_wire_layer *w, uint32_t i, char *why)
{
	int status = check_number(w->scale, 1024, "scale", i, why);
	if (!status)
		status = check_number(w->softcap, 1e6f, "softcap", i, why);
	if (!status)
		status = check_number(w->default_budget, 1, "default_budget", i, why);
	if (!status)
		status = check_number(w->alibi_slope_base, 1, "alibi_slope_base", i, why);
	if (!status && !zeros(w->reserved, sizeof w->reserved))
		status = refuse(why, MPIG_EINVAL, "layer %u: reserved bytes must be 0", i);
	return status;
}

static int resolve(struct layer *l, const struct mpig_wire_layer *wire, uint32_t i, char *why)
{
	struct mpig_wire_layer *w = &l->wire;
	*w = *wire;
	if (!w->row_dtype)
		w->row_dtype = MPIG_BF16;
	if (!w->d_v)
		w->d_v = w->d_k;
	if (!(w->scale > 0))
		w->scale = 1 / sqrtf(w->d_k);
	if (!w->default_proposal)
		w->default_proposal = w->signature_bits ? MPIG_PROPOSAL_SIGNATURE
		                      : w->table_hash   ? MPIG_PROPOSAL_CROSSPOLYTOPE
		                      : w->paper_l      ? MPIG_PROPOSAL_PAPER
		                                        : MPIG_PROPOSAL_DENSE;
	if (w->table_hash == MPIG_HASH_CROSSPOLYTOPE)
		w->paper_k = (uint16_t)mpig_crosspolytope_bits(w->d_k);
	enum row_type type = w->row_dtype == MPIG_BF16 ? ROW_BF16 : w->row_dtype == MPIG_F16 ? ROW_F16 : ROW_I8;
	if (row_format_init(&l->rows, type, w->d_k, w->d_v))
		return refuse(why, MPIG_ENOTSUP, "layer %u: rows of dtype %u with d_k %u and d_v %u are not supported", i,
		              w->row_dtype, w->d_k, w->d_v);
	l->shape = (struct mpig_layer_shape){w->query_heads, w->kv_heads, w->d_k, w->d_v};
	l->scale = w->scale;
	l->d_pad = mpig_padded_dim(w->d_k);
	uint32_t least = w->signature_bits == MPIG_BITS_AUTO ? 1 : w->signature_bits;
	l->code_bytes_per_row = least ? mpig_code_bytes(w->d_k, least) : 0;
	l->may_have_upper = w->signature_bits && !(w->softcap > 0) && !(w->alibi_slope_base > 0);
	return 0;
}

static void count_strips(struct spec *spec, uint64_t strips)
{
	uint64_t at = (sizeof(struct params_record) + strips + 63) / 64 * 64;
	for (uint32_t i = 0; i < spec->layer_count; i++) {
		struct layer *l = &spec->layer[i];
		spec->params_first[i] = at;
		l->first_strip = UINT32_MAX;
		if (l->wire.kind != MPIG_LAYER_GLOBAL)
			continue;
		l->first_strip = spec->strips;
		for (uint32_t h = 0; h < l->wire.kv_heads; h++)
			spec->strip_layer[spec->strips++] = (uint16_t)i;
		at += (uint64_t)l->wire.kv_heads * 2 * l->wire.d_k * sizeof(float);
		spec->global_layers++;
		spec->has_codes |= l->wire.signature_bits != 0;
		spec->has_tables |= l->wire.paper_k != 0;
		spec->has_upper |= l->may_have_upper;
		spec->has_int8 |= l->wire.row_dtype == MPIG_I8;
		spec->max_d_k = l->wire.d_k > spec->max_d_k ? l->wire.d_k : spec->max_d_k;
		spec->token_bytes += (uint64_t)l->wire.kv_heads * (l->rows.stride + l->code_bytes_per_row);
	}
	spec->params_bytes = pool_round(at);
}

int spec_create(const struct mpig_wire_layer *layers, uint32_t count, struct spec **out, char *why)
{
	if (count < 1 || count > MPIG_MAX_LAYERS)
		return refuse(why, MPIG_EINVAL, "layer_count is %u, must be 1 to %u", count, MPIG_MAX_LAYERS);
	uint64_t strips = 0;
	for (uint32_t i = 0; i < count; i++) {
		const struct mpig_wire_layer *w = &layers[i];
		if (w->kind >= MPIG_LAYER_KIND_COUNT)
			return refuse(why, MPIG_EINVAL, "layer %u: kind is %u, must be below %d", i, w->kind,
			              MPIG_LAYER_KIND_COUNT);
		bool global = w->kind == MPIG_LAYER_GLOBAL;
		int status = global ? check_shape(w, i, why) : check_other(w, i, why);
		if (!global && !status)
			continue;
		if (!status)
			status = check_index(w, i, why);
		if (!status)
			status = check_numbers(w, i, why);
		if (status)
			return status;
		strips += w->kv_heads;
	}
	if (!strips)
		return refuse(why, MPIG_EINVAL, "none of the %u layers is GLOBAL (kind %d): there is nothing to store", count,
		              MPIG_LAYER_GLOBAL);

	struct spec *spec = calloc(1, sizeof *spec);
	if (!spec)
		return refuse(why, MPIG_ENOMEM, "no memory for a spec of %u layers", count);
	spec->refs = 1;
	spec->layer_count = count;
	spec->layer = calloc(count, sizeof *spec->layer);
	spec->params_first = calloc(count, sizeof *spec->params_first);
	spec->strip_layer = calloc(strips, sizeof *spec->strip_layer);
	int status = spec->layer && spec->params_first && spec->strip_layer
	                     ? 0
	                     : refuse(why, MPIG_ENOMEM, "no memory for a spec of %u layers", count);
	for (uint32_t i = 0; i < count && !status; i++) {
		if (layers[i].kind == MPIG_LAYER_GLOBAL)
			status = resolve(&spec->layer[i], &layers[i], i, why);
		else
			spec->layer[i].wire = layers[i];
	}
	if (status) {
		spec_unref(spec);
		return status;
	}
	count_strips(spec, strips);
	*out = spec;
	return 0;
}

void spec_unref(struct spec *spec)
{
	if (!spec || atomic_fetch_sub(&spec->refs, 1) != 1)
		return;
	free(spec->layer);
	free(spec->params_first);
	free(spec->strip_layer);
	free(spec);
}

bool spec_same(const struct spec *a, const struct spec *b)
{
	if (a->layer_count != b->layer_count)
		return false;
	for (uint32_t i = 0; i < a->layer_count; i++)
		if (memcmp(&a->layer[i].wire, &b->layer[i].wire, sizeof a->layer[i].wire))
			return false;
	return true;
}

float *spec_params(const struct spec *spec, void *record, uint32_t strip)
{
	uint32_t layer = spec->strip_layer[strip];
	const struct layer *l = &spec->layer[layer];
	uint64_t at = spec->params_first[layer] + (uint64_t)(strip - l->first_strip) * 2 * l->wire.d_k * sizeof(float);
	return (float *)(void *)((unsigned char *)record + at);
}

bool params_bits_good(const struct spec *spec, const uint8_t *bits)
{
	for (uint32_t strip = 0; strip < spec->strips; strip++) {
		uint8_t asked = spec_strip(spec, strip)->wire.signature_bits;
		if (asked == MPIG_BITS_AUTO ? !mpig_bits_fixed(bits[strip]) : bits[strip] != asked)
			return false;
	}
	return true;
}

int strip_node(const struct store *s, const struct layer *l, uint32_t kv_head)
{
	return (int)(kv_head * (uint32_t)pool_nodes(s->pool) / l->shape.kv_heads);
}
