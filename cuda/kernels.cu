// The kernels. In the part of C that CUDA C++ shares, so that a twin of each runs on the CPU in the tests (tests/gpu/simt.h), with the
// same operations in the same order. Compiled without contraction: a product and a sum are fused only where fmaf says so.
//
// Who writes what, with which ordering, is in README.md; the named edges are those of shm/ring.h.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/device.h"
#include "shm/status.h"

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define ARGUMENT(type) const __grid_constant__ struct type
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define FULL 0xffffffffu

DEVICE uint32_t load_acquire(const uint32_t *p)
{
	uint32_t v;
	asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}
DEVICE void store_release(uint32_t *p, uint32_t v)
{
	asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
}
DEVICE uint64_t load_word(const uint64_t *p)
{
	uint64_t v;
	asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
	return v;
}
DEVICE void store_word(uint64_t *p, uint64_t v)
{
	asm volatile("st.relaxed.sys.global.u64 [%0], %1;" : : "l"(p), "l"(v) : "memory");
}
DEVICE uint64_t clock_ns(void)
{
	uint64_t t;
	asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
	return t;
}
DEVICE uint64_t clock_cycles(void)
{
	return (uint64_t)clock64();
}
DEVICE float bf16_value(uint16_t b)
{
	return __bfloat162float(__ushort_as_bfloat16(b));
}
DEVICE float f16_value(uint16_t b)
{
	return __half2float(__ushort_as_half(b));
}
DEVICE uint16_t to_bf16(float x)
{
	return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
DEVICE uint16_t to_f16(float x)
{
	return __half_as_ushort(__float2half_rn(x));
}
DEVICE float shuffle_xor_f(float x, int distance)
{
	return __shfl_xor_sync(FULL, x, distance);
}
DEVICE int shuffle_xor_i(int x, int distance)
{
	return __shfl_xor_sync(FULL, x, distance);
}
DEVICE void block_barrier(void)
{
	__syncthreads();
}
DEVICE uint32_t arrive(uint32_t *counter)
{
	__threadfence();
	uint32_t before = atomicAdd(counter, 1u);
	__threadfence();
	return before;
}
DEVICE float bits_float(int bits)
{
	return __int_as_float(bits);
}
DEVICE int float_bits(float x)
{
	return __float_as_int(x);
}
#endif

#define AT(type, address) ((struct type *)(address))
#define NOT_A_NUMBER bits_float(0x7fffffff)
#define LEAST (-3.0e38f) // below every logit, and finite
#define INFINITE_FLOAT bits_float(0x7f800000)

// ---- small things ----------------------------------------------------------------------------------------------------
DEVICE float element(uint64_t base, int64_t at, uint32_t dtype)
{
	if (dtype == MPIG_F32)
		return ((const float *)base)[at];
	uint16_t b = ((const uint16_t *)base)[at];
	return dtype == MPIG_BF16 ? bf16_value(b) : f16_value(b);
}

DEVICE void put_element(uint64_t base, int64_t at, uint32_t dtype, float x)
{
	if (dtype == MPIG_F32)
		((float *)base)[at] = x;
	else
		((uint16_t *)base)[at] = dtype == MPIG_BF16 ? to_bf16(x) : to_f16(x);
}

DEVICE float warp_sum(float x)
{
	UNROLL
	for (int d = 16; d; d /= 2)
		x += shuffle_xor_f(x, d);
	return x;
}

DEVICE uint32_t lane_of(void)
{
	return threadIdx.x % GPU_WARP;
}

DEVICE uint64_t slot_address(const struct gpu_queue *q, uint32_t slot)
{
	return q->region + q->slots_offset + slot * q->slot_bytes;
}

DEVICE struct gpu_slot *slot_state(const struct gpu_queue *q, uint32_t slot)
{
	return (struct gpu_slot *)(q->state + sizeof(struct gpu_state)) + slot;
}

// The first failure stays: kept where later kernels look, and where the host does. One thread.
DEVICE void fail(const struct gpu_queue *q, int status, uint32_t slot, uint64_t sequence)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	struct gpu_report *r = AT(gpu_report, q->report);
	if (s->failed)
		return;
	s->failed = status;
	r->slot = slot;
	r->sequence = sequence;
	store_release((uint32_t *)&r->status, (uint32_t)status); // partner: mpig_cuda_failure
}

// ---- signatures ------------------------------------------------------------------------------------------------------
// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
#define ROUND 12582912.0f
#define SMALLEST 1.50463276905252801e-36f // 128 * FLT_MIN
#define GREATEST 3.40282346638528860e+38f

// One query by one warp; lane l holds elements E l .. E l + E - 1, E = d_pad / 32. The butterflies at distances below E are inside a lane,
// the others are between lanes; both are a + b and a - b of the same pairs as in the daemon, so the bits are the same.
DEVICE void sign_one(const int E, float *x, const struct gpu_item *item, uint32_t d_pad, float by, uint64_t signature,
                     uint64_t scale)
{
	const uint32_t lane = lane_of();
	for (uint32_t round = 0; round < 3; round++) {
		uint32_t bit = round * d_pad + lane * (uint32_t)E, signs = (uint32_t)item->signs[bit / 8] >> bit % 8;
		UNROLL
		for (int e = 0; e < E; e++)
			if (signs >> e & 1)
				x[e] = -x[e];
		UNROLL
		for (int h = 1; h < E; h *= 2)
			UNROLL
		for (int e = 0; e < E; e++)
			if (!(e & h)) {
				float a = x[e], b = x[e + h];
				x[e] = a + b;
				x[e + h] = a - b;
			}
		UNROLL
		for (int h = 1; h < 32; h *= 2)
			UNROLL
		for (int e = 0; e < E; e++) {
			float other = shuffle_xor_f(x[e], h);
			x[e] = lane & (uint32_t)h ? other - x[e] : x[e] + other;
		}
	}
	int largest = 0; // of |x|: magnitudes order as their bits do
	UNROLL
	for (int e = 0; e < E; e++) {
		x[e] = x[e] * by;
		int size = float_bits(x[e]) & 0x7fffffff;
		largest = size > largest ? size : largest;
	}
	UNROLL
	for (int h = 16; h; h /= 2) {
		int other = shuffle_xor_i(largest, h);
		largest = other > largest ? other : largest;
	}
	float most = bits_float(largest);
	int usable = most >= SMALLEST && most <= GREATEST;
	float per_unit = usable ? 127.0f / most : 0.0f;
	uint64_t packed = 0;
	UNROLL
	for (int e = 0; e < E; e++) {
		float level = x[e] * per_unit + ROUND;
		level = level - ROUND;
		uint64_t byte = usable ? (uint8_t)(int8_t)(int)level : 0;
		packed |= byte << 8 * e;
	}
	if (E == 2)
		((uint16_t *)signature)[lane] = (uint16_t)packed;
	else if (E == 4)
		((uint32_t *)signature)[lane] = (uint32_t)packed;
	else
		((uint64_t *)signature)[lane] = packed;
	if (lane == 0)
		*(float *)scale = usable ? most / 127.0f : 0.0f;
}

DEVICE float half_value(uint16_t b, uint32_t dtype)
{
	return dtype == MPIG_BF16 ? bf16_value(b) : f16_value(b);
}

// A lane's E elements of two bytes, from an address that is a multiple of 2 E, by the widest loads there are; copied on to `to`.
DEVICE void load_halves(const int E, uint64_t from, uint32_t dtype, uint64_t to, float *x)
{
	uint64_t words[2] = {0, 0};
	if (E == 2)
		words[0] = *(const uint32_t *)from;
	UNROLL
	for (int w = 0; w < E / 4; w++)
		words[w] = ((const uint64_t *)from)[w];
	if (to && E == 2)
		*(uint32_t *)to = (uint32_t)words[0];
	UNROLL
	for (int w = 0; w < E / 4; w++)
		if (to)
			((uint64_t *)to)[w] = words[w];
	UNROLL
	for (int e = 0; e < E; e++)
		x[e] = half_value((uint16_t)(words[e / 4] >> 16 * (e % 4)), dtype);
}

// Loads the query, copies it as it is to `to` (0: not), and signs it if the item has parameters.
DEVICE void query_one(const int E, const struct gpu_shape *shape, const struct gpu_item *item, uint32_t head, uint64_t q,
                      int64_t at, uint32_t dtype, uint64_t to, uint64_t signature, uint64_t scale)
{
	const uint32_t lane = lane_of(), first = lane * (uint32_t)E, d = shape->d_k;
	float x[8];
	uint64_t address = q + (uint64_t)(at + first) * 2;
	if (dtype != MPIG_F32 && d == GPU_WARP * (uint32_t)E && address % (2 * E) == 0) { // slots are aligned
		load_halves(E, address, dtype, to ? to + first * 2 : 0, x);
	} else {
		UNROLL
		for (int e = 0; e < E; e++) {
			uint32_t j = first + e;
			x[e] = 0.0f;
			if (j >= d)
				continue;
			x[e] = element(q, at + j, dtype);
			if (to && dtype == MPIG_F32)
				((float *)to)[j] = x[e];
			else if (to)
				((uint16_t *)to)[j] = ((const uint16_t *)q)[at + j];
		}
	}
	if (!item->balance || !signature)
		return;
	const float *balance = (const float *)item->balance + head / (shape->query_heads / shape->kv_heads) * d;
	UNROLL
	for (int e = 0; e < E; e++)
		if (first + e < d)
			x[e] = x[e] / balance[first + e];
	sign_one(E, x, item, shape->d_pad, shape->rotate_by, signature, scale);
}

DEVICE void query_any(const struct gpu_shape *shape, const struct gpu_item *item, uint32_t head, uint64_t q, int64_t at,
                      uint32_t dtype, uint64_t to, uint64_t signature, uint64_t scale)
{
	if (shape->d_pad == 64)
		query_one(2, shape, item, head, q, at, dtype, to, signature, scale);
	else if (shape->d_pad == 128)
		query_one(4, shape, item, head, q, at, dtype, to, signature, scale);
	else
		query_one(8, shape, item, head, q, at, dtype, to, signature, scale);
}

struct place {                           // which query a warp has
	uint32_t item, token, head, row; // row: of [tokens][query_heads]
};

DEVICE struct place place_of(const struct gpu_shape *s, uint32_t number)
{
	uint32_t per_item = s->tokens * s->query_heads;
	struct place p = {number / per_item, number % per_item / s->query_heads, number % s->query_heads, number % per_item};
	return p;
}

DEVICE int64_t stride_at(const struct gpu_strides *s, const struct place *p)
{
	return p->item * s->item + p->token * s->token + p->head * s->head;
}

KERNEL(GPU_BLOCK) mpig_sign(ARGUMENT(gpu_sign) a)
{
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	const struct gpu_shape *s = &a.shape;
	if (number >= s->items * s->tokens * s->query_heads)
		return;
	struct place p = place_of(s, number);
	query_any(s, AT(gpu_item, a.items) + p.item, p.head, a.q, stride_at(&a.q_strides, &p), a.dtype, 0,
	          a.signature + (uint64_t)number * s->d_pad, a.scale + (uint64_t)number * 4);
}

// ---- submitting ------------------------------------------------------------------------------------------------------
// Waits for `count` free entries. One thread. A3.
DEVICE int wait_for_room(const struct gpu_queue *q, struct gpu_state *s, uint32_t count)
{
	const struct mpig_queue_header *h = (const struct mpig_queue_header *)q->region;
	if (s->sq_next - s->known_head + count <= q->entries)
		return 0;
	uint64_t begin = clock_ns();
	for (;;) {
		uint32_t peer_head = load_acquire(&h->sq_head);
		if (s->sq_next - peer_head > q->entries)
			return MPIG_EPROTO;
		s->known_head = peer_head;
		if (s->sq_next - peer_head + count <= q->entries)
			return 0;
		if (clock_ns() - begin > q->timeout_ns)
			return MPIG_ETIMEDOUT;
	}
}

// Whether the submission may be made, into *go, which is shared: asked by every block, so that none writes into a slot that the daemon
// still uses.
DEVICE void may_submit(const struct gpu_submit *a, int *go)
{
	if (threadIdx.x == 0)
		*go = !AT(gpu_state, a->queue.state)->failed;
	block_barrier();
	for (uint32_t i = threadIdx.x; i < a->shape.items; i += blockDim.x)
		if (slot_state(&a->queue, AT(gpu_item, a->items)[i].entry.slot)->state != GPU_SLOT_FREE)
			*go = 0;
	block_barrier();
}

// The 64-bit word `w` of item i's slot header, as this step wants it.
DEVICE uint64_t header_word(const struct gpu_submit *a, uint32_t i, uint32_t w)
{
	uint64_t word = ((const uint64_t *)&AT(gpu_item, a->items)[i].header)[w];
	if (w == offsetof(struct mpig_slot_header, query_position) / 8 && a->rows)
		word = (uint64_t)(((const int64_t *)a->rows)[i] - a->shape.tokens);
	return word;
}

DEVICE uint64_t entry_word(const struct gpu_submit *a, uint32_t i, uint32_t w, uint64_t sequence)
{
	uint64_t word = ((const uint64_t *)&AT(gpu_item, a->items)[i].entry)[w];
	if (w == 0 && a->split) // op, flags, layer, handle
		word &= ~((uint64_t)MPIG_SQE_END_RELATIVE << 8);
	if (w == offsetof(struct mpig_sqe, user_data) / 8)
		word = sequence + i;
	if (w == offsetof(struct mpig_sqe, end) / 8 && a->split)
		word = (uint64_t)((const int64_t *)a->split)[i];
	return word;
}

// The entries are written: notes what is in flight, and stores the tail. One thread.
DEVICE void publish(const struct gpu_queue *q, const struct gpu_item *items, uint32_t count)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	for (uint32_t i = 0; i < count; i++) {
		struct gpu_slot *slot = slot_state(q, items[i].entry.slot);
		slot->sequence = s->sequence + i;
		slot->state = GPU_SLOT_OUT;
	}
	s->sequence += count;
	s->sq_next += count;
	// R0, partner of the daemon's A1. It covers what other threads and blocks wrote: they reach this thread through the barriers and
	// the fences of arrive(), and a release is cumulative.
	store_release(&((struct mpig_queue_header *)q->region)->sq_tail, s->sq_next);
}

// Each warp writes one query into its slot; the block that is done last writes headers and entries, and publishes them.
KERNEL(GPU_FUSED_BLOCK) mpig_submit(ARGUMENT(gpu_submit) a)
{
	SHARED int go, last;
	struct gpu_state *s = AT(gpu_state, a.queue.state);
	const struct gpu_shape *shape = &a.shape;
	may_submit(&a, &go);
	uint32_t number = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP;
	if (go && number < shape->items * shape->tokens * shape->query_heads) {
		struct place p = place_of(shape, number);
		const struct gpu_item *item = AT(gpu_item, a.items) + p.item;
		uint64_t slot = slot_address(&a.queue, item->entry.slot);
		query_any(shape, item, p.head, a.q, stride_at(&a.q_strides, &p), a.dtype,
		          slot + item->q + (uint64_t)p.row * shape->d_k * (a.dtype == MPIG_F32 ? 4 : 2),
		          item->signature ? slot + item->signature + (uint64_t)p.row * shape->d_pad : 0,
		          slot + item->scale + (uint64_t)p.row * 4);
		if (item->window_lse && lane_of() == 0)
			((float *)(slot + item->window_lse))[p.row] = ((const float *)a.window_lse)[number];
	}
	block_barrier();
	if (threadIdx.x == 0)
		last = gridDim.x == 1 || arrive(&s->arrived) == gridDim.x - 1;
	block_barrier();
	if (!last)
		return;
	if (!go) {
		if (threadIdx.x == 0) {
			s->arrived = 0;
			fail(&a.queue, MPIG_EBUSY, AT(gpu_item, a.items)->entry.slot, s->sequence);
		}
		return;
	}
	if (threadIdx.x == 0) {
		s->arrived = 0;
		int status = wait_for_room(&a.queue, s, shape->items);
		if (status)
			fail(&a.queue, status, AT(gpu_item, a.items)->entry.slot, s->sequence);
		go = !status;
	}
	block_barrier();
	if (!go)
		return;
	const uint32_t words = sizeof(struct mpig_slot_header) / 8, all = words + sizeof(struct mpig_sqe) / 8;
	for (uint32_t n = threadIdx.x; n < shape->items * all; n += blockDim.x) {
		uint32_t i = n / all, w = n % all, slot = AT(gpu_item, a.items)[i].entry.slot;
		uint64_t entry =
			a.queue.region + a.queue.sq_offset + ((s->sq_next + i) & (a.queue.entries - 1)) * sizeof(struct mpig_sqe);
		if (w < words)
			store_word((uint64_t *)slot_address(&a.queue, slot) + w, header_word(&a, i, w));
		else
			store_word((uint64_t *)entry + (w - words), entry_word(&a, i, w - words, s->sequence));
	}
	block_barrier();
	if (threadIdx.x)
		return;
	publish(&a.queue, AT(gpu_item, a.items), shape->items);
}

// ---- waiting ---------------------------------------------------------------------------------------------------------
// Takes one completion over. Returns 0, or MPIG_EPROTO if it answers nothing that is out.
DEVICE int take_completion(const struct gpu_queue *q, struct gpu_state *s, uint64_t begin)
{
	const uint64_t *place =
		(const uint64_t *)(q->region + q->cq_offset + (s->cq_next & (q->entries - 1)) * sizeof(struct mpig_cqe));
	struct mpig_cqe e;
	UNROLL
	for (uint32_t w = 0; w < sizeof(e) / 8; w++)
		((uint64_t *)&e)[w] = load_word(place + w);
	s->cq_next++;
	if (e.slot >= q->slots || e.status > 0)
		return MPIG_EPROTO;
	struct gpu_slot *slot = slot_state(q, e.slot);
	if (slot->state != GPU_SLOT_OUT || slot->sequence != e.user_data)
		return MPIG_EPROTO;
	slot->status = e.status;
	slot->state = GPU_SLOT_DONE;
	struct gpu_report *r = AT(gpu_report, q->report);
	r->answered = e.user_data;
	r->committed = e.committed;
	r->rows_read = e.rows_read;
	r->bytes_read = e.bytes_read;
	r->service_ns = e.service_ns;
	r->waited_ns = clock_ns() - begin;
	return 0;
}

#define LOOKS_PER_FLAG 256u // a look costs a round trip over the bus

// Until the slot's request is answered. Completions of others are noted on the way. One thread.
DEVICE int wait_for_slot(const struct gpu_queue *q, uint32_t number, uint64_t begin)
{
	struct gpu_state *s = AT(gpu_state, q->state);
	struct mpig_queue_header *h = (struct mpig_queue_header *)q->region;
	struct gpu_slot *slot = slot_state(q, number);
	uint32_t looks = 0;
	if (slot->state == GPU_SLOT_FREE)
		return MPIG_EINVAL; // nothing was submitted
	while (slot->state == GPU_SLOT_OUT) {
		uint32_t peer_tail = load_acquire(&h->cq_tail), ready = peer_tail - s->cq_next; // A1
		if (ready > q->entries)
			return MPIG_EPROTO;
		if (!ready && clock_ns() - begin > q->timeout_ns)
			return MPIG_ETIMEDOUT;
		if (!ready && ++looks % LOOKS_PER_FLAG == 0 && load_acquire(&h->sq_flags) & MPIG_SQ_CLOSED)
			return MPIG_ESHUTDOWN;
		for (; ready; ready--) {
			int status = take_completion(q, s, begin);
			if (status)
				return status;
		}
		store_release(&h->cq_head, s->cq_next); // R2
	}
	slot->state = GPU_SLOT_FREE;
	return slot->status;
}

// Items' slots, or first, first + 1 ... where items is 0. Returns whether all were answered well. One thread.
DEVICE int wait_for_all(const struct gpu_queue *q, const struct gpu_item *items, uint32_t first, uint32_t count)
{
	uint64_t begin = clock_ns();
	for (uint32_t i = 0; i < count; i++) {
		if (AT(gpu_state, q->state)->failed)
			return 0;
		uint32_t slot = items ? items[i].entry.slot : first + i;
		int status = wait_for_slot(q, slot, begin);
		if (status)
			fail(q, status, slot, slot_state(q, slot)->sequence);
	}
	return !AT(gpu_state, q->state)->failed;
}

KERNEL(GPU_WARP) mpig_wait(ARGUMENT(gpu_wait) a)
{
	if (threadIdx.x == 0)
		wait_for_all(&a.queue, 0, a.first_slot, a.slots);
}

// The same for the slots of a plan, before a merge of many blocks.
KERNEL(GPU_WARP) mpig_wait_items(ARGUMENT(gpu_merge) a)
{
	if (threadIdx.x == 0)
		wait_for_all(&a.queue, AT(gpu_item, a.items), 0, a.shape.items);
}

// ---- measuring -------------------------------------------------------------------------------------------------------
// One thread submits a request that does nothing and waits for it, again and again.
KERNEL(GPU_WARP) mpig_rounds(ARGUMENT(gpu_rounds) a)
{
	struct gpu_state *s = AT(gpu_state, a.queue.state);
	const uint32_t slot = AT(gpu_item, a.item)->entry.slot;
	uint64_t *cycles = (uint64_t *)a.cycles, begin = clock_cycles(), begin_ns = clock_ns();
	if (threadIdx.x)
		return;
	for (uint32_t n = 0; n < a.count && !s->failed; n++) {
		uint64_t entry =
			a.queue.region + a.queue.sq_offset + (s->sq_next & (a.queue.entries - 1)) * sizeof(struct mpig_sqe);
		uint64_t before = clock_cycles();
		int status = slot_state(&a.queue, slot)->state != GPU_SLOT_FREE ? MPIG_EBUSY : wait_for_room(&a.queue, s, 1);
		if (status) {
			fail(&a.queue, status, slot, s->sequence);
			return;
		}
		for (uint32_t w = 0; w < sizeof(struct mpig_sqe) / 8; w++)
			store_word((uint64_t *)entry + w,
			           w == offsetof(struct mpig_sqe, user_data) / 8 ? s->sequence : ((const uint64_t *)a.item)[w]);
		publish(&a.queue, AT(gpu_item, a.item), 1);
		wait_for_all(&a.queue, 0, slot, 1);
		cycles[n] = clock_cycles() - before;
	}
	cycles[a.count] = clock_cycles() - begin;
	cycles[a.count + 1] = clock_ns() - begin_ns;
}

// ---- merging ---------------------------------------------------------------------------------------------------------
// One head by one warp: the pieces of the own rows and the daemon's partial, by their LSE.
DEVICE void merge_one(const struct gpu_merge *a, uint32_t number, int good)
{
	const struct gpu_shape *s = &a->shape;
	const uint32_t lane = lane_of(), d = s->d_v, pieces = a->part_out ? a->pieces : 0;
	struct place p = place_of(s, number);
	const struct gpu_item *item = AT(gpu_item, a->items) + p.item;
	uint64_t slot = slot_address(&a->queue, item->entry.slot);
	const float *part = (const float *)a->part_out + (uint64_t)number * pieces * d;
	const float *part_lse = (const float *)a->part_lse + (uint64_t)number * pieces;
	const float *theirs = (const float *)(slot + item->out) + (uint64_t)p.row * d;
	float their_lse = good ? ((const float *)(slot + item->lse))[p.row] : NOT_A_NUMBER;
	float most = LEAST, own = 0.0f, sum, acc[8];
	for (uint32_t i = 0; i < pieces; i++)
		most = fmaxf(most, part_lse[i]);
	float own_most = most;
	most = fmaxf(most, their_lse);
	float weight = expf(their_lse - most);
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		acc[e] = good && lane + GPU_WARP * e < d ? weight * theirs[lane + GPU_WARP * e] : 0.0f;
	sum = weight;
	for (uint32_t i = 0; i < pieces; i++) {
		own += expf(part_lse[i] - own_most);
		weight = expf(part_lse[i] - most);
		if (weight > 0.0f) {
			UNROLL
			for (uint32_t e = 0; e < 8; e++)
				if (lane + GPU_WARP * e < d)
					acc[e] = fmaf(weight, part[i * d + lane + GPU_WARP * e], acc[e]);
			sum += weight;
		}
	}
	int64_t at = stride_at(&a->out_strides, &p);
	float lse = sum > 0.0f ? most + logf(sum) : -INFINITE_FLOAT;
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		if (lane + GPU_WARP * e < d)
			put_element(a->out, at + lane + GPU_WARP * e, a->out_dtype,
			            !good        ? NOT_A_NUMBER
			            : sum > 0.0f ? acc[e] / sum
			                         : 0.0f);
	if (lane)
		return;
	if (a->lse)
		((float *)a->lse)[number] = !good ? NOT_A_NUMBER : a->lse2 ? lse * 1.44269504088896341f : lse;
	if (a->own_lse)
		((float *)a->own_lse)[number] = own > 0.0f ? own_most + logf(own) : -INFINITE_FLOAT;
}

KERNEL(GPU_FUSED_BLOCK) mpig_merge(ARGUMENT(gpu_merge) a)
{
	SHARED int good;
	if (threadIdx.x == 0)
		good = a.wait ? wait_for_all(&a.queue, AT(gpu_item, a.items), 0, a.shape.items)
		              : !AT(gpu_state, a.queue.state)->failed;
	block_barrier();
	uint32_t warps = gridDim.x * blockDim.x / GPU_WARP, count = a.shape.items * a.shape.tokens * a.shape.query_heads;
	for (uint32_t n = (blockIdx.x * blockDim.x + threadIdx.x) / GPU_WARP; n < count; n += warps)
		merge_one(&a, n, good);
}

// ---- own rows --------------------------------------------------------------------------------------------------------
struct rows { // the own rows of a query: [0, sinks) and [from, end)
	uint64_t sinks, from, end, count;
};

DEVICE struct rows rows_of(const struct gpu_window *a, uint32_t item, uint32_t token)
{
	int64_t split = ((const int64_t *)a->split)[item], rows = ((const int64_t *)a->rows)[item];
	struct rows r = {a->sinks, 0, 0, 0};
	int64_t end = rows - a->shape.tokens + token + 1;
	r.end = end > 0 ? (uint64_t)end : 0;
	r.sinks = r.sinks < r.end ? r.sinks : r.end;
	r.from = split > 0 ? (uint64_t)split : 0;
	r.from = r.from > r.sinks ? r.from : r.sinks;
	r.count = r.sinks + (r.end > r.from ? r.end - r.from : 0);
	return r;
}

// Offset of row `row` of the context, in elements.
DEVICE int64_t row_at(const struct gpu_window *a, uint32_t item, uint32_t head, uint64_t row)
{
	if (a->ring_rows && row >= a->sinks)
		row = a->sinks + (row - a->sinks) % a->ring_rows;
	int64_t at = head * a->kv_head;
	if (!a->page_table)
		return at + item * a->kv_item + (int64_t)row * a->kv_row;
	int64_t page = ((const int32_t *)a->page_table)[item * a->page_stride + (int64_t)(row / a->page_rows)];
	return at + page * a->kv_page + (int64_t)(row % a->page_rows) * a->kv_row;
}

struct online { // a running softmax of one head: lane l has elements l, l + 32 ..
	float most, sum, acc[8];
};

DEVICE void online_add(struct online *o, float s, const float *v)
{
	float most = fmaxf(o->most, s), keep = expf(o->most - most), weight = expf(s - most);
	o->most = most;
	o->sum = fmaf(o->sum, keep, weight);
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		o->acc[e] = fmaf(o->acc[e], keep, weight * v[e]);
}

DEVICE void load_row(uint64_t base, int64_t at, uint32_t dtype, uint32_t d, float *x)
{
	const uint32_t lane = lane_of();
	UNROLL
	for (uint32_t e = 0; e < 8; e++)
		x[e] = lane + GPU_WARP * e < d ? element(base, at + lane + GPU_WARP * e, dtype) : 0.0f;
}

// Heads h .. h + heads - 1 of one KV head over the rows of a piece, by the warps of a block, which take every fourth row.
DEVICE void piece_heads(const struct gpu_window *a, const struct place *p, uint32_t g, uint32_t heads, const struct rows *r,
                        uint32_t piece)
{
	SHARED float shared_acc[GPU_WINDOW_THREADS / GPU_WARP][GPU_HEADS_AT_ONCE][MPIG_MAX_HEAD_DIM];
	SHARED float shared_most[GPU_WINDOW_THREADS / GPU_WARP][GPU_HEADS_AT_ONCE],
		shared_sum[GPU_WINDOW_THREADS / GPU_WARP][GPU_HEADS_AT_ONCE];
	const uint32_t warps = GPU_WINDOW_THREADS / GPU_WARP, warp = threadIdx.x / GPU_WARP, lane = lane_of();
	const uint32_t d = a->shape.d_k;
	float q[GPU_HEADS_AT_ONCE][8], slope[GPU_HEADS_AT_ONCE];
	struct online o[GPU_HEADS_AT_ONCE];
	UNROLL
	for (uint32_t i = 0; i < GPU_HEADS_AT_ONCE; i++) {
		struct place at = *p;
		at.head = i < heads ? p->head + i : p->head;
		load_row(a->q, stride_at(&a->q_strides, &at), a->q_dtype, d, q[i]);
		slope[i] = a->alibi_slope_base > 0.0f ? powf(a->alibi_slope_base, (float)(at.head + 1)) : 0.0f;
		o[i].most = LEAST;
		o[i].sum = 0.0f;
		UNROLL
		for (uint32_t e = 0; e < 8; e++)
			o[i].acc[e] = 0.0f;
	}
	for (uint64_t first = (uint64_t)piece * GPU_PIECE_ROWS; first < r->count; first += (uint64_t)a->pieces * GPU_PIECE_ROWS)
		for (uint64_t n = first + warp; n < first + GPU_PIECE_ROWS && n < r->count; n += warps) {
			uint64_t row = n < r->sinks ? n : r->from + (n - r->sinks);
			int64_t at = row_at(a, p->item, g, row);
			float k[8], v[8];
			load_row(a->k, at, a->kv_dtype, d, k);
			load_row(a->v, at, a->kv_dtype, d, v);
			UNROLL
			for (uint32_t i = 0; i < GPU_HEADS_AT_ONCE; i++) {
				if (i >= heads)
					continue;
				float s = 0.0f;
				UNROLL
				for (uint32_t e = 0; e < 8; e++)
					s = fmaf(q[i][e], k[e], s);
				s = warp_sum(s) * a->scale;
				if (a->softcap > 0.0f)
					s = a->softcap * tanhf(s / a->softcap);
				s += slope[i] * (float)((int64_t)row - (int64_t)(r->end - 1));
				online_add(&o[i], s, v);
			}
		}
	UNROLL
	for (uint32_t i = 0; i < GPU_HEADS_AT_ONCE; i++) {
		if (lane == 0) {
			shared_most[warp][i] = o[i].most;
			shared_sum[warp][i] = o[i].sum;
		}
		UNROLL
		for (uint32_t e = 0; e < 8; e++)
			if (lane + GPU_WARP * e < d)
				shared_acc[warp][i][lane + GPU_WARP * e] = o[i].acc[e];
	}
	block_barrier();
	// Warp i joins what the warps have of head i.
	if (warp < heads) {
		float most = LEAST, sum = 0.0f, acc[8];
		UNROLL
		for (uint32_t e = 0; e < 8; e++)
			acc[e] = 0.0f;
		for (uint32_t w = 0; w < warps; w++)
			most = fmaxf(most, shared_most[w][warp]);
		for (uint32_t w = 0; w < warps; w++) {
			float keep = expf(shared_most[w][warp] - most);
			sum = fmaf(shared_sum[w][warp], keep, sum);
			UNROLL
			for (uint32_t e = 0; e < 8; e++)
				if (lane + GPU_WARP * e < d)
					acc[e] = fmaf(shared_acc[w][warp][lane + GPU_WARP * e], keep, acc[e]);
		}
		uint64_t number = ((uint64_t)p->item * a->shape.tokens + p->token) * a->shape.query_heads + p->head + warp;
		uint64_t at = number * a->pieces + piece;
		UNROLL
		for (uint32_t e = 0; e < 8; e++)
			if (lane + GPU_WARP * e < d)
				((float *)a->part_out)[at * d + lane + GPU_WARP * e] = sum > 0.0f ? acc[e] / sum : 0.0f;
		if (lane == 0)
			((float *)a->part_lse)[at] = sum > 0.0f ? most + logf(sum) : -INFINITE_FLOAT;
	}
	block_barrier();
}

// Block (x, y): x counts [item][token][KV head], y is the piece.
KERNEL(GPU_WINDOW_THREADS) mpig_window(ARGUMENT(gpu_window) a)
{
	if (AT(gpu_state, a.state)->failed)
		return;
	uint32_t g = blockIdx.x % a.shape.kv_heads, query = blockIdx.x / a.shape.kv_heads,
		 group = a.shape.query_heads / a.shape.kv_heads;
	struct place p = {query / a.shape.tokens, query % a.shape.tokens, 0, 0};
	struct rows r = rows_of(&a, p.item, p.token);
	for (uint32_t i = 0; i < group; i += GPU_HEADS_AT_ONCE) {
		p.head = g * group + i;
		piece_heads(&a, &p, g, group - i < GPU_HEADS_AT_ONCE ? group - i : GPU_HEADS_AT_ONCE, &r, blockIdx.y);
	}
}
