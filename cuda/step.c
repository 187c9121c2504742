// Launches: what a plan and a step make of the arguments of kernels.
#include "cuda/private.h"

static bool is_float(int dtype)
{
	return dtype == MPIG_F32 || dtype == MPIG_BF16 || dtype == MPIG_F16;
}

// A step of the caller's age; `q` tells whether the kernel reads it.
static int step_take(const mpig_cuda_plan *p, const struct mpig_cuda_step *given, struct mpig_cuda_step *s, bool q)
{
	cuda_error_clear();
	if (!p || !given)
		return cuda_error_set(MPIG_EINVAL, "plan and step must not be NULL");
	int rc = gpu_options("mpig_cuda_step", given, s, sizeof(*s));
	if (rc)
		return rc;
	if (q && !s->q)
		return cuda_error_set(MPIG_EINVAL, "step.q is 0");
	return MPIG_OK;
}

static struct gpu_strides strides(int64_t item, int64_t token, int64_t head, const struct gpu_shape *s, uint32_t d)
{
	struct gpu_strides r = {.head = head ? head : (int64_t)d};
	r.token = token ? token : (int64_t)s->query_heads * r.head;
	r.item = item ? item : (int64_t)s->tokens * r.token;
	return r;
}

static uint32_t heads_of(const mpig_cuda_plan *p)
{
	return p->shape.items * p->shape.tokens * p->shape.query_heads;
}

// Whether one kernel waits and merges.
static bool is_fused(const mpig_cuda_plan *p)
{
	return heads_of(p) <= GPU_FUSED_HEADS;
}

// Blocks of one warp a head.
static unsigned warp_grid(uint32_t heads)
{
	return (heads * GPU_WARP + GPU_BLOCK - 1) / GPU_BLOCK;
}

// What a warp signs at once.
static unsigned warp_queries(const mpig_cuda_plan *p)
{
	return (GPU_WARP << GPU_PART_BITS) / p->shape.d_pad;
}

// Blocks of a submission: a warp for so many queries of one context.
static unsigned submit_grid(const mpig_cuda_plan *p)
{
	unsigned queries = warp_queries(p);
	unsigned warps = p->shape.items * ((p->shape.tokens * p->shape.query_heads + queries - 1) / queries);
	return (warps * GPU_WARP + GPU_SUBMIT_THREADS - 1) / GPU_SUBMIT_THREADS;
}

// Blocks that sign: a warp for so many queries of one KV head, or as many as the GPU runs, whose warps share them out.
static unsigned sign_grid(const mpig_cuda_plan *p)
{
	const struct gpu_shape *s = &p->shape;
	unsigned queries = warp_queries(p), most = GPU_SIGN_BLOCKS * (unsigned)p->gpu->multiprocessors;
	unsigned warps = s->items * s->kv_heads * ((s->tokens * (s->query_heads / s->kv_heads) + queries - 1) / queries);
	unsigned blocks = (warps * GPU_WARP + GPU_SIGN_THREADS - 1) / GPU_SIGN_THREADS;
	return blocks < most ? blocks : most;
}

// Whether queries can be read by loads of 16 bytes.
static bool is_wide(const mpig_cuda_plan *p, uint64_t q, const struct gpu_strides *s)
{
	uint64_t strides = (uint64_t)s->item | (uint64_t)s->token | (uint64_t)s->head;
	return q % 16 == 0 && strides * mpig_dtype_bytes((uint32_t)p->spec.dtype) % 16 == 0 && p->shape.d_k % 8 == 0;
}

// Its own part is this step's. That of a step which was given up before its merge is nobody's.
static bool window_ran(const mpig_cuda_plan *p)
{
	return p->window_step == p->gpu->step;
}

int mpig_cuda_submit(mpig_cuda_plan *p, mpig_cuda_stream stream, const struct mpig_cuda_step *step)
{
	struct mpig_cuda_step s;
	int rc = step_take(p, step, &s, true);
	if (rc)
		return rc;
	struct gpu_submit a = {.queue = p->gpu->args,
	                       .shape = p->shape,
	                       .items = p->device_items,
	                       .balance = p->balance,
	                       .inverse = p->inverse,
	                       .rotors = p->rotors,
	                       .q = s.q,
	                       .q_strides = strides(s.q_context, s.q_token, s.q_head, &p->shape, p->shape.d_k),
	                       .window_lse = p->own_lse,
	                       .window_out = 0,
	                       .split = s.split,
	                       .rows = s.rows,
	                       .dtype = (uint32_t)p->spec.dtype,
	                       .first_slot = p->spec.first_slot,
	                       .mark = p->shape.items == 1 && is_fused(p)};
	if (p->spec.own_first) {
		a.window_lse = window_ran(p) ? p->own_lse : 0;
		a.window_out = window_ran(p) ? p->own_out : 0;
	}
	a.wide = is_wide(p, s.q, &a.q_strides);
	rc = gpu_launch(p->gpu, p->gpu->kernel.submit, "mpig_submit", submit_grid(p), 1, GPU_SUBMIT_THREADS, stream, &a);
	if (rc == MPIG_OK && !p->spec.own_first)
		p->window_step = 0;
	return rc;
}

static int window_check(const mpig_cuda_plan *p, const struct mpig_cuda_step *s)
{
	if (!s->k || !s->v || !s->split || !s->rows)
		return cuda_error_set(MPIG_EINVAL, "own rows need step.k, step.v, step.split and step.rows");
	if (!is_float(s->kv_dtype))
		return cuda_error_set(MPIG_EINVAL, "step.kv_dtype = %d: must be MPIG_F32, MPIG_BF16 or MPIG_F16", s->kv_dtype);
	if (p->shape.d_k != p->shape.d_v)
		return cuda_error_set(MPIG_ENOTSUP, "own rows with d_k = %u and d_v = %u: they must be equal", p->shape.d_k,
		                      p->shape.d_v);
	if (s->page_table && !s->page_rows)
		return cuda_error_set(MPIG_EINVAL, "step.page_table without step.page_rows");
	if (s->page_table && !s->page_stride && p->shape.items > 1)
		return cuda_error_set(MPIG_EINVAL, "step.page_table of %u contexts without step.page_stride", p->shape.items);
	if (!s->page_table && !s->kv_context && p->shape.items > 1)
		return cuda_error_set(MPIG_EINVAL, "step.k of %u contexts without step.kv_context", p->shape.items);
	return MPIG_OK;
}

int mpig_cuda_window(mpig_cuda_plan *p, mpig_cuda_stream stream, const struct mpig_cuda_step *step)
{
	struct mpig_cuda_step s;
	int rc = step_take(p, step, &s, true);
	rc = rc ? rc : window_check(p, &s);
	if (rc)
		return rc;
	struct gpu_window a = {.state = p->gpu->state,
	                       .shape = p->shape,
	                       .q = s.q,
	                       .q_strides = strides(s.q_context, s.q_token, s.q_head, &p->shape, p->shape.d_k),
	                       .k = s.k,
	                       .v = s.v,
	                       .page_table = s.page_table,
	                       .kv_item = s.kv_context,
	                       .kv_head = s.kv_head ? s.kv_head : (int64_t)p->shape.d_k,
	                       .page_stride = s.page_stride,
	                       .split = s.split,
	                       .rows = s.rows,
	                       .sinks = (uint32_t)p->spec.sinks,
	                       .ring_rows = s.ring_rows,
	                       .part_out = p->part_out,
	                       .part_most = p->part_most,
	                       .part_sum = p->part_sum,
	                       .own_out = p->own_out,
	                       .own_lse = p->own_lse,
	                       .counters = p->counters,
	                       .pieces = p->pieces,
	                       .page_rows = s.page_rows,
	                       .q_dtype = (uint32_t)p->spec.dtype,
	                       .kv_dtype = (uint32_t)s.kv_dtype,
	                       .scale = p->layer.scale,
	                       .softcap = p->layer.softcap,
	                       .alibi_slope_base = p->layer.alibi_slope_base};
	a.kv_row = s.kv_row ? s.kv_row : (int64_t)p->shape.kv_heads * a.kv_head;
	a.kv_page = s.kv_page ? s.kv_page : (int64_t)s.page_rows * a.kv_row;
	const CUfunction kernel = p->shape.d_pad == 64    ? p->gpu->kernel.window_64
	                          : p->shape.d_pad == 128 ? p->gpu->kernel.window_128
	                                                  : p->gpu->kernel.window_256;
	rc = gpu_launch(p->gpu, kernel, "mpig_window", p->shape.items * p->shape.tokens * p->shape.kv_heads, p->pieces,
	                GPU_WINDOW_THREADS, stream, &a);
	if (rc == MPIG_OK)
		p->window_step = p->gpu->step;
	return rc;
}

int mpig_cuda_merge(mpig_cuda_plan *p, mpig_cuda_stream stream, const struct mpig_cuda_step *step)
{
	struct mpig_cuda_step s;
	int rc = step_take(p, step, &s, false);
	if (rc)
		return rc;
	if (!s.out || !is_float(s.out_dtype))
		return cuda_error_set(MPIG_EINVAL, "step.out is 0, or step.out_dtype = %d is not MPIG_F32, MPIG_BF16 or MPIG_F16",
		                      s.out_dtype);
	if (s.flags & ~(unsigned)(MPIG_CUDA_LSE2 | MPIG_CUDA_DAEMON_ONLY))
		return cuda_error_set(MPIG_EINVAL, "step.flags = 0x%x: not known", s.flags);
	bool own = window_ran(p) && !(s.flags & MPIG_CUDA_DAEMON_ONLY), fused = is_fused(p);
	struct gpu_merge a = {.queue = p->gpu->args,
	                      .shape = p->shape,
	                      .items = p->device_items,
	                      .own_out = own ? p->own_out : 0,
	                      .own_lse = own ? p->own_lse : 0,
	                      .own_space = p->own_out,
	                      .out = s.out,
	                      .lse = s.lse,
	                      .out_strides = strides(s.out_context, s.out_token, s.out_head, &p->shape, p->shape.d_v),
	                      .out_dtype = (uint32_t)s.out_dtype,
	                      .lse2 = s.flags & MPIG_CUDA_LSE2,
	                      .first_slot = p->spec.first_slot};
	struct gpu_wait w = {.queue = p->gpu->args, .first_slot = p->spec.first_slot, .slots = p->shape.items};
	if (fused) {
		rc = gpu_launch(p->gpu, p->gpu->kernel.merge_fused, "mpig_merge_fused", 1, 1, heads_of(p) * GPU_WARP, stream, &a);
	} else {
		rc = gpu_launch(p->gpu, p->gpu->kernel.wait, "mpig_wait", 1, 1, GPU_WARP, stream, &w);
		rc = rc ? rc
		        : gpu_launch(p->gpu, p->gpu->kernel.merge, "mpig_merge", warp_grid(heads_of(p)), 1, GPU_BLOCK, stream,
		                     &a);
	}
	if (rc == MPIG_OK)
		p->window_step = 0;
	return rc;
}

int mpig_cuda_sign(mpig_cuda_plan *p, mpig_cuda_stream stream, const struct mpig_cuda_step *step, uint64_t signature,
                   uint64_t scale)
{
	struct mpig_cuda_step s;
	int rc = step_take(p, step, &s, true);
	if (rc)
		return rc;
	if (!signature || signature % 8 || !scale || scale % 4)
		return cuda_error_set(MPIG_EINVAL, "signature and scale must be aligned device addresses");
	for (uint32_t i = 0; i < p->shape.items; i++)
		if (!p->items[i].signature)
			return cuda_error_set(MPIG_EAGAIN,
			                      "'%s' has no signature parameters yet: refresh the plan after a commit that seals",
			                      mpig_context_name(p->spec.context[i]));
	struct gpu_sign a = {.shape = p->shape,
	                     .balance = p->balance,
	                     .inverse = p->inverse,
	                     .rotors = p->rotors,
	                     .q = s.q,
	                     .q_strides = strides(s.q_context, s.q_token, s.q_head, &p->shape, p->shape.d_k),
	                     .signature = signature,
	                     .scale = scale,
	                     .dtype = (uint32_t)p->spec.dtype};
	a.wide = is_wide(p, s.q, &a.q_strides);
	return gpu_launch(p->gpu, p->gpu->kernel.sign, "mpig_sign", sign_grid(p), 1, GPU_SIGN_THREADS, stream, &a);
}

static int slot_check(const mpig_cuda *gpu, unsigned slot)
{
	cuda_error_clear();
	if (!gpu || slot >= gpu->region.slots)
		return cuda_error_set(MPIG_EINVAL, "gpu is NULL, or it has no slot %u", slot);
	return MPIG_OK;
}

int mpig_cuda_nop(mpig_cuda *gpu, mpig_cuda_stream stream, unsigned slot)
{
	int rc = slot_check(gpu, slot);
	if (rc)
		return rc;
	struct gpu_submit a = {.queue = gpu->args,
	                       .shape = {.items = 1},
	                       .items = gpu->nop + slot * sizeof(struct gpu_item),
	                       .first_slot = slot};
	return gpu_launch(gpu, gpu->kernel.submit, "mpig_submit", 1, 1, GPU_WARP, stream, &a);
}

int mpig_cuda_wait(mpig_cuda *gpu, mpig_cuda_stream stream, unsigned slot)
{
	int rc = slot_check(gpu, slot);
	if (rc)
		return rc;
	struct gpu_wait a = {.queue = gpu->args, .first_slot = slot, .slots = 1};
	return gpu_launch(gpu, gpu->kernel.wait, "mpig_wait", 1, 1, GPU_WARP, stream, &a);
}
