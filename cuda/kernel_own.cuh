// What a submission says of the client's own part: its LSE and, where a request has room for it, its output.

struct own { // of a warp's queries: the LSE of one in each lane, and the floats of their outputs, as their bits
	float lse;
	uint32_t out[GPU_SUBMIT_QUERIES * 8];
};

// The floats of a warp's outputs lie in one piece, there and in the slot: whether by 16 bytes.
DEVICE int own_wide(const struct gpu_submit *a, const struct batch *b)
{
	return b->number * a->shape.d_v % 4 == 0 && b->count * a->shape.d_v % 4 == 0;
}

// Asks for them. An output comes of a window's kernel, so that d_v = d_k <= 32 E.
DEVICE void own_ask(const int E, const struct gpu_submit *a, const struct batch *b, struct own *own)
{
	const uint32_t d = a->shape.d_v, count = b->count * d, lane = lane_of();
	own->lse = -INFINITE_FLOAT;
	if (a->window_lse && lane < b->count)
		own->lse = ((const float *)a->window_lse)[b->number + lane];
	if (!a->window_out || !own_wide(a, b))
		return;
	UNROLL
	for (uint32_t j = 0; j < GPU_SUBMIT_QUERIES * (uint32_t)E / 4; j++)
		if ((j * GPU_WARP + lane) * 4 < count)
			load_global(4, a->window_out + (uint64_t)b->number * d * 4 + (j * GPU_WARP + lane) * 16,
			            own->out + 4 * j);
}

// Copies them to the places of the first, where there are such. An LSE of the step before may be NaN, after one that failed: it says nothing then.
// This step's goes as it is; the daemon refuses what is not a number, as it would of any client.
DEVICE void own_copy(const int E, const struct gpu_submit *a, const struct batch *b, const struct own *own, uint64_t lse,
                     uint64_t out)
{
	const uint32_t d = a->shape.d_v, count = b->count * d, lane = lane_of();
	if (lse && lane < b->count)
		((float *)lse)[lane] = own->lse != own->lse && !out ? -INFINITE_FLOAT : own->lse;
	if (!out)
		return;
	if (!a->window_out || !own_wide(a, b)) {
		const float *from = (const float *)a->window_out + (uint64_t)b->number * d;
		for (uint32_t i = lane; i < count; i += GPU_WARP)
			((float *)out)[i] = a->window_out ? from[i] : 0.0f;
		return;
	}
	UNROLL
	for (uint32_t j = 0; j < GPU_SUBMIT_QUERIES * (uint32_t)E / 4; j++)
		if ((j * GPU_WARP + lane) * 4 < count)
			store_global(4, out + (j * GPU_WARP + lane) * 16, own->out + 4 * j);
}
