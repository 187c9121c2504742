// Signatures of queries, to the GPU's memory.
struct place {                           // which query
	uint32_t item, token, head, row; // row: of [tokens][query_heads]
};

DEVICE struct place place_in(const struct gpu_shape *s, uint32_t item, uint32_t row)
{
	struct place p;
	p.item = item;
	p.row = row;
	p.token = s->tokens == 1 ? 0 : p.row / s->query_heads;
	p.head = p.row - p.token * s->query_heads;
	return p;
}

DEVICE struct place place_of(const struct gpu_shape *s, uint32_t number)
{
	uint32_t per_item = s->tokens * s->query_heads, item = s->items == 1 ? 0 : number / per_item;
	return place_in(s, item, number - item * per_item);
}

DEVICE int64_t stride_at(const struct gpu_strides *s, const struct place *p)
{
	return p->item * s->item + p->token * s->token + p->head * s->head;
}

// Where a warp stands in its share of the batches: QUERIES of one KV head of an item each, by token and head. A KV head of an item is a unit.
struct course {
	uint32_t unit, batch, item, kv_head;
	uint64_t q;                   // of the unit's first query
	uint32_t row;                 // likewise, of [items][tokens][query_heads]
	uint32_t number, token, head; // of the lane's query: in the unit; head: of the KV head's. Beyond the last: the last
	int mine;                     // it is not beyond the last
};

DEVICE void course_end(const struct gpu_shape *s, uint32_t group, struct course *c)
{
	c->mine = c->number < s->tokens * group;
	c->token = c->mine ? c->token : s->tokens - 1;
	c->head = c->mine ? c->head : group - 1;
}

// The batch of the unit that its numbers say.
DEVICE void course_begin(const uint32_t J, const struct gpu_sign *a, uint32_t group, struct course *c)
{
	const struct gpu_shape *s = &a->shape;
	c->item = s->items == 1 ? 0 : c->unit / s->kv_heads;
	c->kv_head = c->unit - c->item * s->kv_heads;
	c->q = a->q +
	       (uint64_t)(c->item * a->q_strides.item + c->kv_head * group * a->q_strides.head) * (a->dtype == MPIG_F32 ? 4 : 2);
	c->row = c->item * s->tokens * s->query_heads + c->kv_head * group;
	c->number = c->batch * QUERIES(J) + (lane_of() >> J);
	c->token = c->number / group;
	c->head = c->number - c->token * group;
	course_end(s, group, c);
}

// What a batch is on in its unit.
struct pace {
	uint32_t group, batches; // query heads of a KV head; batches of a unit
	uint32_t tokens, heads;  // how far a lane's query is from that of the batch before
};

DEVICE void course_next(const uint32_t J, const struct gpu_sign *a, const struct pace *pace, struct course *c)
{
	c->batch++;
	if (c->batch == pace->batches) {
		c->batch = 0;
		c->unit++;
		course_begin(J, a, pace->group, c);
		return;
	}
	c->number += QUERIES(J);
	c->token += pace->tokens;
	c->head += pace->heads;
	c->token += c->head >= pace->group ? 1 : 0;
	c->head -= c->head >= pace->group ? pace->group : 0;
	course_end(&a->shape, pace->group, c);
}

// Asks for the lane's part of its query.
DEVICE void course_ask(const uint32_t J, const uint32_t dtype, const struct gpu_sign *a, const struct course *c, uint32_t *words)
{
	const int64_t at = c->token * a->q_strides.token + c->head * a->q_strides.head;
	if (a->wide)
		part_ask(J, BYTES(dtype), a->shape.d_k, c->q + (uint64_t)at * BYTES(dtype), words);
}

// The lane's part of its query, one by one. Seldom.
DEVICE void course_gather(const uint32_t J, const struct gpu_sign *a, const struct course *c, float *x)
{
	const struct gpu_shape *s = &a->shape;
	const int64_t at = c->token * a->q_strides.token + c->head * a->q_strides.head;
	part_gather(J, s->d_k, c->q, at, a->dtype, a->balance + ((uint64_t)c->item * s->kv_heads + c->kv_head) * s->d_k * 4, 0,
	            x);
}

DEVICE void unit_divisor(const uint32_t J, const struct gpu_sign *a, const struct course *c, struct divisor *v)
{
	const uint64_t at = (uint64_t)c->item * a->shape.kv_heads * a->shape.d_k * 4;
	divisor_load(J, &a->shape, a->balance + at, a->inverse + at, c->kv_head, v);
}

// A warp's share. Loads of the next batch are on their way while one is signed.
DEVICE void sign_share(const uint32_t J, const uint32_t dtype, const struct gpu_sign *a, uint8_t *rotor)
{
	const struct gpu_shape *s = &a->shape;
	struct pace pace;
	pace.group = s->query_heads / s->kv_heads;
	pace.batches = (s->tokens * pace.group + QUERIES(J) - 1) / QUERIES(J);
	pace.tokens = QUERIES(J) / pace.group;
	pace.heads = QUERIES(J) - pace.tokens * pace.group;
	const uint32_t all = s->items * s->kv_heads * pace.batches, warps = gridDim.x * (GPU_SIGN_THREADS / GPU_WARP);
	const uint32_t warp = (blockIdx.x * GPU_SIGN_THREADS + threadIdx.x) / GPU_WARP, each = all / warps, more = all % warps;
	const uint32_t begin = warp * each + (warp < more ? warp : more);
	uint32_t left = each + (warp < more ? 1 : 0), words[PART];
	struct divisor divisor;
	struct course c;
	if (!left)
		return;
	c.unit = begin / pace.batches;
	c.batch = begin - c.unit * pace.batches;
	course_begin(J, a, pace.group, &c);
	unit_divisor(J, a, &c, &divisor);
	grid_wait();
	course_ask(J, dtype, a, &c, words);
	rotor_load(J, a->rotors, c.item, rotor);
	NO_UNROLL
	for (;;) {
		float x[PART];
		uint32_t signature[PART / 4];
		if (!a->wide || rotor_divides(J, rotor) || !part_holds(dtype, words))
			course_gather(J, a, &c, x);
		else
			part_divide(dtype, words, &divisor, x);
		const uint64_t row = c.row + c.token * s->query_heads + c.head;
		const uint32_t unit = c.unit, item = c.item;
		const int mine = c.mine;
		if (--left) {
			course_next(J, a, &pace, &c);
			course_ask(J, dtype, a, &c, words);
		}
		rotate(J, x, rotor);
		const float scale = part_quantise(J, x, rotor, signature);
		if (mine)
			part_store(J, signature, scale, a->signature + row * (PART << J), a->scale + row * 4);
		if (!left)
			return;
		if (c.unit != unit)
			unit_divisor(J, a, &c, &divisor);
		if (c.item != item)
			rotor_load(J, a->rotors, c.item, rotor);
	}
}

DEVICE void sign_typed(const uint32_t J, const struct gpu_sign *a, uint8_t *space)
{
	if (a->dtype == MPIG_BF16)
		sign_share(J, MPIG_BF16, a, space);
	else if (a->dtype == MPIG_F16)
		sign_share(J, MPIG_F16, a, space);
	else
		sign_share(J, MPIG_F32, a, space);
}

KERNEL_OF(GPU_SIGN_THREADS, GPU_SIGN_BLOCKS) mpig_sign(ARGUMENT(gpu_sign) a)
{
	SHARED ALIGNED_16 uint8_t space[GPU_SIGN_THREADS / GPU_WARP * ROTOR_SPACE];
	uint8_t *mine = space + threadIdx.x / GPU_WARP * ROTOR_SPACE;
	grid_go();
	if (a.shape.d_pad == 128)
		sign_typed(3, &a, mine);
	else if (a.shape.d_pad == 256)
		sign_typed(4, &a, mine);
	else
		sign_typed(2, &a, mine);
}
