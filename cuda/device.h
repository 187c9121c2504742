// What the host's part of libmagicpig-cuda and its kernels both know: arguments of kernels and what lies in the GPU's memory. Plain
// records, the same in C and CUDA C++; pointers are 64-bit device addresses on both sides.
#ifndef MPIG_CUDA_DEVICE_H
#define MPIG_CUDA_DEVICE_H

#include "shm/abi.h"

#define GPU_WARP 32u
#define GPU_BLOCK 256u        // threads of a block, but of the fused wait and merge
#define GPU_FUSED_BLOCK 1024u // ... there, one block
#define GPU_FUSED_HEADS 32u   // heads that it takes
#define GPU_WINDOW_THREADS 256u
#define GPU_PIECE_ROWS(d_pad) (GPU_WINDOW_THREADS / ((d_pad) == 256 ? 8 : 4)) // own rows that one block attends
#define GPU_HEADS_AT_ONCE 4u                                                  // query heads that share a load of K and V
#define GPU_SUBMIT_THREADS 256u
#define GPU_SIGN_THREADS 128u
#define GPU_SIGN_BLOCKS 4u // of a multiprocessor, which share out the queries

// A lane that signs has a part of a query, 2^4 elements. What it knows of the rotation of its part: rotate.h. Floats, in fours.
#define GPU_PART_BITS 4
#define GPU_ROTOR_ROUND ((1u << GPU_PART_BITS) + 4) // of a round, at most
#define GPU_ROTOR_FOURS (3 * GPU_ROTOR_ROUND / 4 + 1)
#define GPU_ROTOR_BY (3 * GPU_ROTOR_ROUND)
// Behind them a number that is not 0, as bits, where some of the item's balance is too small or large for its inverse.
#define GPU_ROTOR_BYTES(d_pad) (GPU_ROTOR_FOURS * ((d_pad) >> GPU_PART_BITS) * 16)

// What no answer has for an element of an output: a quiet NaN that arithmetic does not make. It stands where the last element of a head's output will be.
#define GPU_ANSWER_MARK 0xffe1a5a5u

enum gpu_slot_state { GPU_SLOT_FREE = 0, GPU_SLOT_OUT = 1, GPU_SLOT_DONE = 2 };

struct gpu_slot {
	uint64_t sequence; // of the request in the slot
	uint32_t state;    // enum gpu_slot_state
	int32_t status;    // DONE: of its completion; OUT: whether its heads' answers are marked
};

// In the GPU's memory, followed by slots x struct gpu_slot. Written by kernels of one stream, in their order.
struct gpu_state {
	uint64_t sequence;     // of the next submission: its user_data
	uint32_t sq_next;      // our copy of the ring's tail
	uint32_t known_head;   // last believed head of the daemon's
	uint32_t cq_published; // what the ring's head says: cq_next, or behind it
	uint32_t cq_next;      // our copy of the completion ring's head
	int32_t failed;        // status of the first failure; 0 = none
	uint32_t arrived;      // blocks of the running submission that are done with their part
	uint32_t heads;        // not 0: the daemon's answers can be taken head by head (MPIG_FEATURE_HEADS)
	uint32_t reserved;
};

#define GPU_TAKEN (UINT64_C(1) << 32)

// In pinned host memory. Written by the GPU, `status` last (release); cleared by the host while nothing runs.
struct gpu_report {
	int32_t status; // 0 = no failure
	uint32_t slot;
	uint64_t sequence;
	uint64_t taken; // GPU_TAKEN | place in the completion ring of the one that was taken last; 0: none was
};

// The queue, as kernels reach it.
struct gpu_queue {
	uint64_t region; // device address of the queue's memory
	uint64_t state;  // struct gpu_state
	uint64_t report; // struct gpu_report
	uint64_t sq_offset, cq_offset, slots_offset, slot_bytes;
	uint32_t entries, slots;
	uint64_t timeout_ns;
};

// One request of a plan, in the GPU's memory. Entry and header are written as they are but for the sequence number, and, where a step
// brings them, end and query position.
struct gpu_item {
	struct mpig_sqe entry;
	struct mpig_slot_header header;
	uint64_t q, signature, scale, window_lse, window_out, out, lse; // byte offsets in the slot; 0 = absent
};

struct gpu_shape {
	uint32_t items, tokens, query_heads, kv_heads, d_k, d_v, d_pad, reserved;
};

struct gpu_strides {
	int64_t item, token, head; // elements
};

struct gpu_submit {
	struct gpu_queue queue;
	struct gpu_shape shape; // query_heads 0: nothing but entries
	uint64_t items;         // struct gpu_item [items]
	uint64_t balance; // float [items][kv_heads][d_k], with the first round's signs; of items without parameters not used
	uint64_t inverse; // 1 / balance, as long
	uint64_t rotors;  // [items] of GPU_ROTOR_BYTES(d_pad)
	uint64_t q;
	struct gpu_strides q_strides;
	uint64_t window_lse;  // float [items][tokens][query_heads]; 0: the client has no own rows
	uint64_t window_out;  // float [items][tokens][query_heads][d_v], of this step as the LSE then is; 0: there is none
	uint64_t split, rows; // int64 [items] or 0
	uint32_t dtype;
	uint32_t first_slot; // item i has slot first_slot + i
	uint32_t wide;       // queries lie at multiples of 16 bytes, and d_k is one of 8
	uint32_t mark;       // there is one item, and a merge that takes its answers head by head
};

struct gpu_sign {
	struct gpu_shape shape;
	uint64_t balance, inverse, rotors, q; // as of gpu_submit
	struct gpu_strides q_strides;
	uint64_t signature, scale; // at multiples of 8 and 4 bytes
	uint32_t dtype, wide;
};

struct gpu_window {
	uint64_t state;
	struct gpu_shape shape;
	uint64_t q;
	struct gpu_strides q_strides;
	uint64_t k, v, page_table;
	int64_t kv_item, kv_page, kv_row, kv_head, page_stride;
	uint64_t split, rows;
	uint32_t sinks, ring_rows;
	uint64_t part_out, part_most, part_sum; // float [heads][pieces][d_pad], [heads][pieces] twice: scratch
	uint64_t own_out, own_lse;              // float [heads][d_v], [heads]
	uint64_t counters;                      // uint32_t [items][tokens][kv_heads], zero between kernels
	uint32_t pieces, page_rows, q_dtype, kv_dtype;
	float scale, softcap, alibi_slope_base;
	uint32_t reserved;
};

struct gpu_merge {
	struct gpu_queue queue;
	struct gpu_shape shape;
	uint64_t items;
	uint64_t own_out, own_lse; // float [heads][d_v], [heads]; 0: the daemon's part alone
	uint64_t own_space;        // that own_out, whether there is something in it or not
	uint64_t out, lse;
	struct gpu_strides out_strides;
	uint32_t out_dtype, lse2;
	uint32_t first_slot, reserved;
};

struct gpu_rounds {
	struct gpu_queue queue;
	uint64_t item;   // struct gpu_item of a request that does nothing, in `slot`
	uint64_t cycles; // uint64_t [count + 2]: of each round; of all of them; ns of all of them
	uint32_t count, slot;
};

// What kernels of an ingest add up, in the GPU's memory.
struct gpu_ingest_state {
	uint64_t begin; // of the running kernel, as its first block saw it
	uint64_t copy_ns, wait_ns, service_ns;
};

// In pinned host memory.
struct gpu_ingest_report {
	uint32_t stop; // the host's: a status that ends waits; 0 = none
	uint8_t reserved0[124];
	// the GPU's: numbers of kernels, and sums as of the last that is done
	uint64_t copied; // this one and all before have read what they copy
	uint64_t done;
	uint64_t copy_ns, wait_ns, service_ns;
};

// [rows][heads][units] of `unit` bytes from somewhere in the GPU's memory to one place of a slot. No rows: nothing.
struct gpu_part {
	uint64_t from, to; // a device address; a byte offset in the slot
	int64_t row, head; // bytes from one to the next
	uint32_t rows, heads, units, unit;
};

// A request whose payload comes from the GPU's memory, and the wait for older ones.
#define GPU_INGEST_PARTS 3u
struct gpu_ingest {
	struct gpu_queue queue;
	uint64_t state, report; // struct gpu_ingest_state, struct gpu_ingest_report
	uint64_t number;        // of this kernel
	struct mpig_sqe entry;
	struct mpig_slot_header header;
	struct gpu_part part[GPU_INGEST_PARTS];
	uint32_t slot;                   // MPIG_NO_SLOT: there is no request
	uint32_t wait_first, wait_slots; // slots that are waited for after it
	uint32_t reserved;
};

struct gpu_wait {
	struct gpu_queue queue;
	uint32_t first_slot, slots;
};

#endif
