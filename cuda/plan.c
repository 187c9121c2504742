// Plans: entries, slot headers and signature parameters of one layer of some contexts, put together once and kept in the GPU's memory.
#include "cuda/private.h"
#include "cuda/rotate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_OWN_ROWS 1024u
#define BLOCKS_WANTED 264u // of the window's kernel: two on each of the largest GPUs' multiprocessors

static uint32_t padded(uint32_t d)
{
	return mpig_padded_dim(d);
}

static uint64_t align_up(uint64_t n)
{
	return (n + 255) & ~UINT64_C(255);
}

// ---- checking ----------------------------------------------------------------------------------------------------------
static int share_check(const char *field, float value)
{
	if (!(value >= 0 && value <= 1))
		return cuda_error_set(MPIG_EINVAL, "%s = %g: above 0 and at most 1, or 0 for the default", field, (double)value);
	return MPIG_OK;
}

static int spec_check(const mpig_cuda *gpu, struct mpig_cuda_spec *s)
{
	s->tokens = s->tokens ? s->tokens : 1;
	s->own_rows = s->own_rows ? s->own_rows : DEFAULT_OWN_ROWS;
	if (!s->contexts || !s->context)
		return cuda_error_set(MPIG_EINVAL, "contexts = %u: at least one is needed", s->contexts);
	if (s->contexts > gpu->region.entries)
		return cuda_error_set(MPIG_ELIMIT, "contexts = %u: the queue has %u entries; open it with more", s->contexts,
		                      gpu->region.entries);
	if (s->first_slot >= gpu->region.slots || s->contexts > gpu->region.slots - s->first_slot)
		return cuda_error_set(MPIG_ELIMIT, "first_slot = %u, contexts = %u: the queue has %u slots; open it with more",
		                      s->first_slot, s->contexts, gpu->region.slots);
	for (unsigned i = 0; i < s->contexts; i++)
		if (!s->context[i])
			return cuda_error_set(MPIG_EINVAL, "context[%u] is NULL", i);
	if (s->tokens > MPIG_MAX_QUERY_TOKENS)
		return cuda_error_set(MPIG_ELIMIT, "tokens = %u: at most %u", s->tokens, MPIG_MAX_QUERY_TOKENS);
	if (s->dtype != MPIG_F32 && s->dtype != MPIG_BF16 && s->dtype != MPIG_F16)
		return cuda_error_set(MPIG_EINVAL, "dtype = %d: must be MPIG_F32, MPIG_BF16 or MPIG_F16", s->dtype);
	if (s->proposal < 0 || s->proposal >= MPIG_PROPOSAL_COUNT)
		return cuda_error_set(MPIG_EINVAL, "proposal = %d: must be an enum mpig_proposal", s->proposal);
	if (s->window > MPIG_MAX_TOKENS || s->sinks > MPIG_MAX_TOKENS)
		return cuda_error_set(MPIG_ERANGE, "sinks or window: at most %llu tokens", (unsigned long long)MPIG_MAX_TOKENS);
	int rc = share_check("budget", s->budget);
	rc = rc ? rc : share_check("error_target", s->error_target);
	rc = rc ? rc : share_check("budget_floor", s->budget_floor);
	if (rc == MPIG_OK && (!(s->delta >= 0 && s->delta < 1) || (s->delta > 0 && !(s->error_target > 0))))
		rc = cuda_error_set(MPIG_EINVAL, "delta = %g: above 0 and below 1, with an error_target, or 0", (double)s->delta);
	return rc ? rc : share_check("budget_cap", s->budget_cap);
}

static int layer_take(const struct mpig_cuda_spec *s, unsigned i, struct mpig_layer *out)
{
	if (mpig_context_layer(s->context[i], s->layer, out))
		return cuda_error_set(MPIG_EINVAL, "layer = %d: '%s' has no such layer", s->layer,
		                      mpig_context_name(s->context[i]));
	if (out->kind != MPIG_LAYER_GLOBAL)
		return cuda_error_set(MPIG_ENOTSUP, "layer %d of '%s' is not global: it stores no rows", s->layer,
		                      mpig_context_name(s->context[i]));
	out->d_v = out->d_v ? out->d_v : out->d_k;
	out->scale = out->scale != 0 ? out->scale : (float)(1 / sqrt((double)out->d_k));
	return MPIG_OK;
}

static bool alike(const struct mpig_layer *a, const struct mpig_layer *b)
{
	return a->query_heads == b->query_heads && a->kv_heads == b->kv_heads && a->d_k == b->d_k && a->d_v == b->d_v &&
	       a->scale == b->scale && a->softcap == b->softcap && a->alibi_slope_base == b->alibi_slope_base;
}

static int layers_take(struct mpig_cuda_plan *p)
{
	const struct mpig_cuda_spec *s = &p->spec;
	int rc = layer_take(s, 0, &p->layer);
	for (unsigned i = 1; i < s->contexts && rc == MPIG_OK; i++) {
		struct mpig_layer other;
		rc = layer_take(s, i, &other);
		if (rc == MPIG_OK && !alike(&p->layer, &other))
			rc = cuda_error_set(MPIG_EINVAL,
			                    "layer %d of '%s' and of '%s' differ: a plan's contexts are of one shape", s->layer,
			                    mpig_context_name(s->context[0]), mpig_context_name(s->context[i]));
	}
	if (rc)
		return rc;
	const struct mpig_layer *l = &p->layer;
	uint32_t d_pad = padded((uint32_t)l->d_k);
	p->shape = (struct gpu_shape){.items = s->contexts,
	                              .tokens = s->tokens,
	                              .query_heads = (uint32_t)l->query_heads,
	                              .kv_heads = (uint32_t)l->kv_heads,
	                              .d_k = (uint32_t)l->d_k,
	                              .d_v = (uint32_t)l->d_v,
	                              .d_pad = d_pad};
	return MPIG_OK;
}

// What a request carries of the client's own part.
static uint32_t own_parts(const struct mpig_cuda_plan *p)
{
	return MPIG_HAS_WINDOW_LSE | (p->spec.own_first ? MPIG_HAS_WINDOW_OUT : 0u);
}

// ---- items -------------------------------------------------------------------------------------------------------------
// Everything of item i but its signature parameters.
static void item_begin(const struct mpig_cuda_plan *p, uint32_t i, uint32_t present)
{
	const struct mpig_cuda_spec *s = &p->spec;
	struct gpu_item *item = &p->items[i];
	struct mpig_layer_shape shape = {p->shape.query_heads, p->shape.kv_heads, p->shape.d_k, p->shape.d_v};
	struct mpig_payload_layout l = mpig_attend_layout(&shape, s->tokens, (uint32_t)s->dtype, present);
	*item = (struct gpu_item){
		.entry = {.op = MPIG_OP_ATTEND,
	                  .flags = MPIG_SQE_SEED_SEQUENCE | MPIG_SQE_END_RELATIVE, // not relative where a step has a split
	                  .layer = (uint16_t)s->layer,
	                  .handle = mpig_context_handle(s->context[i]),
	                  .slot = s->first_slot + i,
	                  .count = s->tokens,
	                  .begin = s->sinks,
	                  .end = -(int64_t)s->window,
	                  .seed = s->seed,
	                  .budget = s->budget,
	                  .proposal = (uint8_t)s->proposal,
	                  .dtype = (uint8_t)s->dtype},
		.header = {.present = present,
	                   .error_target = s->error_target,
	                   .budget_floor = s->budget_floor,
	                   .budget_cap = s->budget_cap,
	                   .delta = s->delta},
		.q = l.q,
		.signature = l.signature,
		.scale = l.signature_scale,
		.window_lse = l.window_lse,
		.window_out = l.window_out,
		.out = l.out,
		.lse = l.lse,
	};
}

// What the GPU's memory has of the signature parameters of all items, as the host puts it together: see gpu_submit.
struct params {
	float *balance, *inverse, *rotors; // one allocation: balance
	uint64_t floats, rotor_floats;     // of an item
};

static int params_alloc(const struct mpig_cuda_plan *p, struct params *a)
{
	const uint64_t n = p->shape.items;
	a->floats = (uint64_t)p->shape.kv_heads * p->shape.d_k;
	a->rotor_floats = GPU_ROTOR_BYTES(p->shape.d_pad) / 4;
	a->balance = calloc(n * (2 * a->floats + a->rotor_floats), sizeof(float));
	if (!a->balance)
		return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	a->inverse = a->balance + n * a->floats;
	a->rotors = a->inverse + n * a->floats;
	return MPIG_OK;
}

#define BALANCE_LEAST 0x1p-30f // of what kernels divide by by means of its inverse: see quotient()
#define BALANCE_MOST 0x1p30f

// An item's, of which the balance is there as the context says it.
static void item_rotation(const struct mpig_cuda_plan *p, uint32_t i, const uint8_t *signs, const struct params *a)
{
	const uint32_t d = p->shape.d_k, d_pad = p->shape.d_pad;
	const float by = (float)(1 / ((double)d_pad * sqrt((double)d_pad)));
	float *balance = a->balance + i * a->floats, *inverse = a->inverse + i * a->floats;
	uint32_t divide = 0;
	for (uint64_t j = 0; j < a->floats; j++) {
		uint32_t at = (uint32_t)(j % d);
		if (!(balance[j] >= BALANCE_LEAST && balance[j] <= BALANCE_MOST))
			divide = 1;
		balance[j] = signs[at / 8] >> at % 8 & 1 ? -balance[j] : balance[j];
		inverse[j] = 1 / balance[j];
	}
	float *rotor = a->rotors + i * a->rotor_floats;
	rotor_make(signs, d_pad, by, rotor);
	for (uint32_t lane = 0, lanes = d_pad >> GPU_PART_BITS; lane < lanes; lane++)
		memcpy(rotor + GPU_ROTOR_BY * lanes + lane * 4 + 2, &divide, sizeof(divide));
}

// With parameters, if the context has any.
static int item_make(const struct mpig_cuda_plan *p, uint32_t i, const struct params *a)
{
	struct mpig_signature g = MPIG_INIT(struct mpig_signature);
	int rc = p->spec.no_signature ? MPIG_ENOTSUP
	                              : mpig_context_signature(p->spec.context[i], p->spec.layer, &g, a->balance + i * a->floats);
	if (rc && rc != MPIG_ENOTSUP)
		return cuda_error_set(rc, "signature parameters of layer %d of '%s': %s", p->spec.layer,
		                      mpig_context_name(p->spec.context[i]), mpig_strerror(rc));
	bool has = rc == MPIG_OK && g.version && g.d_k == p->shape.d_k && g.kv_heads == p->shape.kv_heads;
	item_begin(p, i, own_parts(p) | (has ? MPIG_HAS_SIGNATURE : 0u));
	if (has) {
		p->items[i].header.signature_version = g.version;
		item_rotation(p, i, g.signs, a);
	}
	return MPIG_OK;
}

static int items_make(struct mpig_cuda_plan *p)
{
	const struct driver *d = p->gpu->driver;
	const uint64_t n = p->shape.items;
	struct params a = {0};
	int rc = params_alloc(p, &a);
	for (uint32_t i = 0; i < n && rc == MPIG_OK; i++)
		rc = item_make(p, i, &a);
	rc = rc ? rc : gpu_enter(p->gpu);
	if (rc == MPIG_OK) {
		const CUdeviceptr to[] = {p->balance, p->inverse, p->rotors};
		const float *const from[] = {a.balance, a.inverse, a.rotors};
		const uint64_t floats[] = {a.floats, a.floats, a.rotor_floats};
		for (size_t k = 0; k < sizeof(to) / sizeof(to[0]) && rc == MPIG_OK; k++)
			rc = cuda_error_of(d, d->to_device(to[k], from[k], n * floats[k] * sizeof(float)),
			                   "copying signature parameters to the GPU");
		rc = rc ? rc
		        : cuda_error_of(d, d->to_device(p->device_items, p->items, n * sizeof(*p->items)),
		                        "copying a plan to the GPU");
		rc = rc ? rc : gpu_settle(p->gpu);
		gpu_leave(p->gpu);
	}
	free(a.balance);
	return rc;
}

// ---- memory ------------------------------------------------------------------------------------------------------------
static int slot_check(const struct mpig_cuda_plan *p)
{
	struct mpig_layer_shape shape = {p->shape.query_heads, p->shape.kv_heads, p->shape.d_k, p->shape.d_v};
	uint64_t bytes =
		mpig_attend_layout(&shape, p->spec.tokens, (uint32_t)p->spec.dtype, own_parts(p) | MPIG_HAS_SIGNATURE).bytes;
	if (bytes > p->gpu->region.slot_bytes)
		return cuda_error_set(
			MPIG_ELIMIT,
			"a request of this plan needs %llu bytes and a slot has %llu: open the queue with slot_bytes >= %llu",
			(unsigned long long)bytes, (unsigned long long)p->gpu->region.slot_bytes,
			(unsigned long long)(bytes + 4095) / 4096 * 4096);
	return MPIG_OK;
}

// As many pieces as fill the GPU, and no more than there are rows for.
static uint32_t pieces_for(const struct mpig_cuda_plan *p)
{
	uint32_t piece = GPU_PIECE_ROWS(p->shape.d_pad);
	uint64_t rows = (p->spec.own_rows + (uint64_t)piece - 1) / piece;
	uint64_t blocks = (uint64_t)p->shape.items * p->shape.tokens * p->shape.kv_heads,
		 most = (BLOCKS_WANTED + blocks - 1) / blocks;
	return (uint32_t)(rows < most ? rows : most);
}

static int memory_make(struct mpig_cuda_plan *p)
{
	const struct driver *d = p->gpu->driver;
	uint64_t heads = (uint64_t)p->shape.items * p->shape.tokens * p->shape.query_heads, at = 0;
	uint64_t counters = (uint64_t)p->shape.items * p->shape.tokens * p->shape.kv_heads * 4;
	p->pieces = pieces_for(p);
	const uint64_t bytes[] = {p->shape.items * sizeof(struct gpu_item),
	                          (uint64_t)p->shape.items * p->shape.kv_heads * p->shape.d_k * 4,
	                          (uint64_t)p->shape.items * p->shape.kv_heads * p->shape.d_k * 4,
	                          (uint64_t)p->shape.items * GPU_ROTOR_BYTES(p->shape.d_pad),
	                          heads * 4,
	                          heads * p->shape.d_v * 4,
	                          counters,
	                          heads * p->pieces * 4,
	                          heads * p->pieces * 4,
	                          heads * p->pieces * p->shape.d_pad * 4};
	CUdeviceptr *const parts[] = {&p->device_items, &p->balance,  &p->inverse,   &p->rotors,   &p->own_lse,
	                              &p->own_out,      &p->counters, &p->part_most, &p->part_sum, &p->part_out};
	for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++)
		at += align_up(bytes[i]);
	float *none = malloc(heads * sizeof(*none));
	if (!none)
		return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	for (uint64_t i = 0; i < heads; i++)
		none[i] = -INFINITY;
	int rc = gpu_enter(p->gpu);
	if (rc == MPIG_OK) {
		rc = cuda_error_of(d, d->alloc(&p->memory, at), "allocating GPU memory for a plan");
		at = p->memory;
		for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
			*parts[i] = at;
			at += align_up(bytes[i]);
		}
		rc = rc ? rc : cuda_error_of(d, d->to_device(p->own_lse, none, heads * sizeof(*none)), "copying to the GPU");
		rc = rc ? rc : cuda_error_of(d, d->fill(p->counters, 0, counters), "clearing GPU memory");
		rc = rc ? rc : cuda_error_of(d, d->fill(p->own_out, 0, heads * p->shape.d_v * 4), "clearing GPU memory");
		gpu_leave(p->gpu);
	}
	free(none);
	return rc;
}

// ---- the public calls --------------------------------------------------------------------------------------------------
int mpig_cuda_plan_create(mpig_cuda *gpu, const struct mpig_cuda_spec *spec, mpig_cuda_plan **plan)
{
	cuda_error_clear();
	if (!gpu || !spec || !plan)
		return cuda_error_set(MPIG_EINVAL, "gpu, spec and plan must not be NULL");
	struct mpig_cuda_plan *p = calloc(1, sizeof(*p));
	if (!p)
		return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	p->gpu = gpu;
	gpu->plans++;
	int rc = gpu_options("mpig_cuda_spec", spec, &p->spec, sizeof(p->spec));
	rc = rc ? rc : spec_check(gpu, &p->spec);
	if (rc == MPIG_OK) {
		mpig_context **copy = malloc(p->spec.contexts * sizeof(mpig_context *));
		p->items = calloc(p->spec.contexts, sizeof(*p->items));
		if (copy)
			memcpy(copy, p->spec.context, p->spec.contexts * sizeof(mpig_context *));
		p->spec.context = copy;
		if (!copy || !p->items)
			rc = cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	} else {
		p->spec.context = NULL;
	}
	rc = rc ? rc : layers_take(p);
	rc = rc ? rc : slot_check(p);
	rc = rc ? rc : memory_make(p);
	rc = rc ? rc : items_make(p);
	if (rc) {
		mpig_cuda_plan_destroy(p);
		return rc;
	}
	*plan = p;
	return MPIG_OK;
}

void mpig_cuda_plan_destroy(mpig_cuda_plan *p)
{
	if (!p)
		return;
	if (p->memory && gpu_enter(p->gpu) == MPIG_OK) {
		p->gpu->driver->free(p->memory);
		gpu_leave(p->gpu);
	}
	p->gpu->plans--;
	free((void *)(uintptr_t)p->spec.context);
	free(p->items);
	free(p);
}

int mpig_cuda_plan_refresh(mpig_cuda_plan *p)
{
	cuda_error_clear();
	if (!p)
		return cuda_error_set(MPIG_EINVAL, "plan is NULL");
	for (uint32_t i = 0; i < p->shape.items; i++)
		if (p->items[i].header.signature_version != mpig_context_signature_version(p->spec.context[i]))
			return items_make(p);
	return MPIG_OK;
}
