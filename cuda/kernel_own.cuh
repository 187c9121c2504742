// What a submission says of the client's own part: its LSE and, where a request has room for it, its output.

struct own { // of a warp's queries: the LSE of one in each lane, and the floats of their outputs, as their bits
	float lse;
	uint32_t out[32];
};

// The queries of a warp: the first of them in all items and in its own, and how many there are.
struct own_place {
	uint32_t number, first, count;
};

// The floats of their outputs lie in one piece, there and in the slot: whether in fours.
DEVICE int own_wide(const struct gpu_submit *a, const struct own_place *p)
{
	const uint32_t d = a->shape.d_v;
	return p->number * d % 4 == 0 && p->first * d % 4 == 0 && p->count * d % 4 == 0;
}

// Asks for them. A lane has N words of outputs, where they are in fours.
DEVICE void own_ask(const uint32_t N, const struct gpu_submit *a, const struct own_place *p, struct own *own)
{
	const uint32_t count = p->count * a->shape.d_v, lane = lane_of();
	own->lse = a->window_lse && lane < p->count ? ((const float *)a->window_lse)[p->number + lane] : -INFINITE_FLOAT;
	if (!a->window_out || !own_wide(a, p))
		return;
	UNROLL
	for (uint32_t n = 0; n < N / 4; n++)
		if ((n * GPU_WARP + lane) * 4 < count)
			load_global(4, a->window_out + (uint64_t)p->number * a->shape.d_v * 4 + (n * GPU_WARP + lane) * 16,
			            own->out + 4 * n);
}

// Copies them to the item's slot, as far as the request has them. An LSE of the step before may be NaN, after one that failed: then it says nothing. This
// step's part goes as it is; the daemon refuses what is not a number, as it would of any client.
DEVICE void own_copy(const uint32_t N, const struct gpu_submit *a, const struct own_place *p, const struct own *own,
                     const struct gpu_item *item, uint64_t slot)
{
	const uint32_t count = p->count * a->shape.d_v, lane = lane_of();
	const float *from = (const float *)a->window_out + (uint64_t)p->number * a->shape.d_v;
	const uint64_t to = slot + item->window_out + (uint64_t)p->first * a->shape.d_v * 4;
	if (item->window_lse && lane < p->count)
		((float *)(slot + item->window_lse))[p->first + lane] =
			own->lse != own->lse && !item->window_out ? -INFINITE_FLOAT : own->lse;
	if (!item->window_out)
		return;
	UNROLL
	for (uint32_t n = 0; n < N / 4; n++)
		if (a->window_out && own_wide(a, p) && (n * GPU_WARP + lane) * 4 < count)
			store_global(4, to + (n * GPU_WARP + lane) * 16, own->out + 4 * n);
	NO_UNROLL
	for (uint32_t i = lane; i < count && !(a->window_out && own_wide(a, p)); i += GPU_WARP)
		((float *)to)[i] = a->window_out ? from[i] : 0.0f;
}
