// Specs: the public struct to the wire's and back, with every limit named where it is broken; fingerprints.
#include "internal.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

#define FIELD_ERROR(c, i, field, value, limit)                                                                                   \
	error_set(c, MPIG_EINVAL, "spec.layers[%d].%s = %d: %s", (int)(i), field, (int)(value), limit)

static bool head_dim_known(int d)
{
	return d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
}

static int heads_check(const mpig_client *c, int i, const struct mpig_layer *l)
{
	if (l->query_heads < 1 || l->query_heads > (int)MPIG_MAX_HEADS)
		return FIELD_ERROR(c, i, "query_heads", l->query_heads, "must be 1..256");
	if (l->kv_heads < 1 || l->kv_heads > l->query_heads || l->query_heads % l->kv_heads)
		return FIELD_ERROR(c, i, "kv_heads", l->kv_heads, "must divide query_heads");
	if (!head_dim_known(l->d_k))
		return FIELD_ERROR(c, i, "d_k", l->d_k, "must be 64, 80, 96, 128 or 256");
	if (l->d_v && !head_dim_known(l->d_v))
		return FIELD_ERROR(c, i, "d_v", l->d_v, "must be 64, 80, 96, 128 or 256, or 0 for d_k");
	return MPIG_OK;
}

static int index_check(const mpig_client *c, int i, const struct mpig_layer *l)
{
	int b = l->signature_bits;
	if (b != 0 && b != 1 && b != 2 && b != 4 && b != MPIG_BITS_AUTO)
		return FIELD_ERROR(c, i, "signature_bits", b, "must be 0 (none), 1, 2, 4 or MPIG_BITS_AUTO");
	if (l->signature_bytes && (b != MPIG_BITS_AUTO || l->signature_bytes < (int)mpig_code_bytes((uint32_t)l->d_k, 1) ||
	                           l->signature_bytes > UINT16_MAX))
		return FIELD_ERROR(c, i, "signature_bytes", l->signature_bytes,
		                   "a limit for MPIG_BITS_AUTO: 0, or at least the bytes of one bit (d_k / 8 + 2, d_k padded)");
	if (l->table_hash < 0 || l->table_hash >= MPIG_HASH_COUNT)
		return FIELD_ERROR(c, i, "table_hash", l->table_hash, "must be an enum mpig_table_hash");
	if (l->table_balance != 0 && l->table_balance != 1)
		return FIELD_ERROR(c, i, "table_balance", l->table_balance, "must be 0 or 1");
	if ((l->table_hash || l->table_balance) && !l->paper_l)
		return FIELD_ERROR(c, i, "paper_l", l->paper_l, "table_hash and table_balance need tables");
	int fixed = l->table_hash == MPIG_HASH_CROSSPOLYTOPE ? (int)mpig_crosspolytope_bits((uint32_t)l->d_k) : 0;
	if (fixed && l->paper_k && l->paper_k != fixed)
		return FIELD_ERROR(c, i, "paper_k", l->paper_k, "cross-polytope tables choose it: must be 0");
	bool automatic = l->paper_l == MPIG_TABLES_AUTO && !l->paper_k;
	if (!fixed && !automatic && !l->paper_k != !l->paper_l)
		return FIELD_ERROR(c, i, "paper_l", l->paper_l, "paper_k and paper_l are both 0 or both set");
	if (l->paper_k && (l->paper_k < 1 || l->paper_k > 16))
		return FIELD_ERROR(c, i, "paper_k", l->paper_k, "must be 1..16, or 0 with paper_l 0");
	if (l->paper_l && !automatic && (l->paper_l < 2 || l->paper_l > 512))
		return FIELD_ERROR(c, i, "paper_l", l->paper_l, "must be 2..512, or 0 or MPIG_TABLES_AUTO with paper_k 0");
	if (l->default_proposal < 0 || l->default_proposal >= MPIG_PROPOSAL_COUNT)
		return FIELD_ERROR(c, i, "default_proposal", l->default_proposal, "must be an enum mpig_proposal");
	if (l->default_proposal == MPIG_PROPOSAL_SIGNATURE && !b)
		return FIELD_ERROR(c, i, "default_proposal", l->default_proposal, "SIGNATURE needs signature_bits");
	if ((l->default_proposal == MPIG_PROPOSAL_TOPK_ESTIMATED ||
	     l->default_proposal == MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED) &&
	    !b)
		return FIELD_ERROR(c, i, "default_proposal", l->default_proposal, "estimates need signature_bits");
	if (l->default_proposal == MPIG_PROPOSAL_PAPER && (!l->paper_l || l->table_hash != MPIG_HASH_SIMHASH))
		return FIELD_ERROR(c, i, "default_proposal", l->default_proposal, "PAPER needs paper_k and paper_l, of SimHash");
	if (l->default_proposal == MPIG_PROPOSAL_CROSSPOLYTOPE && l->table_hash != MPIG_HASH_CROSSPOLYTOPE)
		return FIELD_ERROR(c, i, "default_proposal", l->default_proposal,
		                   "CROSSPOLYTOPE needs table_hash MPIG_HASH_CROSSPOLYTOPE and paper_l");
	return MPIG_OK;
}

static int numbers_check(const mpig_client *c, int i, const struct mpig_layer *l)
{
	if (!isfinite(l->scale) || l->scale < 0)
		return error_set(c, MPIG_EINVAL, "spec.layers[%d].scale = %g: must be positive, or 0 for 1/sqrt(d_k)", i,
		                 (double)l->scale);
	if (!isfinite(l->softcap) || l->softcap < 0)
		return error_set(c, MPIG_EINVAL, "spec.layers[%d].softcap = %g: must be positive, or 0 for none", i,
		                 (double)l->softcap);
	if (!isfinite(l->alibi_slope_base) || l->alibi_slope_base < 0)
		return error_set(c, MPIG_EINVAL, "spec.layers[%d].alibi_slope_base = %g: must be positive, or 0 for none", i,
		                 (double)l->alibi_slope_base);
	if (!(l->default_budget >= 0 && l->default_budget <= 1))
		return error_set(c, MPIG_EINVAL,
		                 "spec.layers[%d].default_budget = %g: a share of rows, at most 1, or 0 for the daemon's way", i,
		                 (double)l->default_budget);
	return MPIG_OK;
}

static int layer_to_wire(const mpig_client *c, int i, const struct mpig_layer *l, struct mpig_wire_layer *wire)
{
	*wire = (struct mpig_wire_layer){0};
	if (l->kind < 0 || l->kind >= MPIG_LAYER_KIND_COUNT)
		return FIELD_ERROR(c, i, "kind", l->kind, "must be an enum mpig_layer_kind");
	if (l->window < 0)
		return FIELD_ERROR(c, i, "window", l->window, "must not be negative");
	wire->kind = (uint8_t)l->kind;
	wire->window = (uint32_t)l->window;
	if (l->kind != MPIG_LAYER_GLOBAL && !l->query_heads && !l->kv_heads && !l->d_k)
		return MPIG_OK; // stores no rows: its shape may be left out
	int rc = heads_check(c, i, l);
	rc = rc ? rc : index_check(c, i, l);
	rc = rc ? rc : numbers_check(c, i, l);
	if (rc)
		return rc;
	if (l->row_dtype != 0 && l->row_dtype != MPIG_BF16 && l->row_dtype != MPIG_F16 && l->row_dtype != MPIG_I8)
		return FIELD_ERROR(c, i, "row_dtype", l->row_dtype, "rows are MPIG_BF16, MPIG_F16 or MPIG_I8");
	wire->row_dtype = (uint8_t)(l->row_dtype ? l->row_dtype : MPIG_BF16);
	wire->default_proposal = (uint8_t)(l->default_proposal ? l->default_proposal
	                                   : l->signature_bits ? MPIG_PROPOSAL_SIGNATURE
	                                   : l->table_hash     ? MPIG_PROPOSAL_CROSSPOLYTOPE
	                                   : l->paper_l        ? MPIG_PROPOSAL_PAPER
	                                                       : MPIG_PROPOSAL_DENSE);
	wire->signature_bits = (uint8_t)l->signature_bits;
	wire->signature_bytes = (uint16_t)l->signature_bytes;
	wire->query_heads = (uint16_t)l->query_heads;
	wire->kv_heads = (uint16_t)l->kv_heads;
	wire->d_k = (uint16_t)l->d_k;
	wire->d_v = (uint16_t)(l->d_v ? l->d_v : l->d_k);
	wire->paper_k = (uint16_t)l->paper_k;
	wire->paper_l = (uint16_t)l->paper_l;
	wire->table_hash = (uint8_t)l->table_hash;
	wire->table_balance = (uint8_t)l->table_balance;
	wire->scale = l->scale;
	wire->softcap = l->softcap;
	wire->default_budget = l->default_budget;
	wire->alibi_slope_base = l->alibi_slope_base;
	return MPIG_OK;
}

int spec_to_wire(const mpig_client *c, const struct mpig_spec *spec, struct mpig_wire_layer *layers)
{
	for (int i = 0; i < spec->layer_count; i++) {
		int rc = layer_to_wire(c, i, &spec->layers[i], &layers[i]);
		if (rc)
			return rc;
	}
	return MPIG_OK;
}

void layer_from_wire(const struct mpig_wire_layer *wire, struct mpig_layer *layer)
{
	*layer = (struct mpig_layer){
		.kind = wire->kind,
		.row_dtype = wire->row_dtype,
		.query_heads = wire->query_heads,
		.kv_heads = wire->kv_heads,
		.d_k = wire->d_k,
		.d_v = wire->d_v,
		.scale = wire->scale,
		.softcap = wire->softcap,
		.alibi_slope_base = wire->alibi_slope_base,
		.default_proposal = wire->default_proposal,
		.default_budget = wire->default_budget,
		.signature_bits = wire->signature_bits,
		.signature_bytes = wire->signature_bytes,
		.paper_k = wire->paper_k,
		.paper_l = wire->paper_l,
		.table_hash = wire->table_hash,
		.table_balance = wire->table_balance,
		.window = wire->window > INT32_MAX ? INT32_MAX : (int)wire->window,
	};
}

void fingerprint_hash(const void *bytes, size_t count, char out[64])
{
	memset(out, 0, 64);
	if (!bytes || !count)
		return;
	// Two seeds of one 128-bit hash; canonical bytes, so that machines of either endianness agree.
	for (unsigned half = 0; half < 2; half++) {
		XXH128_canonical_t canonical;
		XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(bytes, count, half));
		memcpy(out + half * sizeof(canonical), &canonical, sizeof(canonical));
	}
}
