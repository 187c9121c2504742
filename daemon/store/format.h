// What the pool file holds. Offsets, never pointers; no lock, lease, free list or reference count: whoever attaches derives
// those from what is reachable. Every record is reached from the superblock through offsets stored by pool_publish().
//
//   superblock -> context table: u64 [contexts_max], 0 = free
//     context record
//       immutable: id, name, fingerprint, spec offset, seed, creation                     (checksummed)
//       word:      state (LIVE, DROPPED,          one store drops a context
//                  QUARANTINED)                   found damaged when attached
//       word:      committed                      one release store commits
//       word:      used_ns                        of contexts with a TTL; stored now and then
//       slots A, B: owner, group, mode, policy, segment list, parameters    the newer one with a valid checksum counts
//       -> spec: layer_count x struct mpig_wire_layer                                     (checksummed)
//       -> segment list: {segment offset, first token, length} x count                    (checksummed)
//            segment record: blocks [n], sealed rows, generation, frames of int8 keys
//              -> block record: rows offset per strip (0 = not yet), token ids
//                   -> rows extent: capacity x row stride
//              -> generation record: parameters, tables and upper layers (offset, bytes) per strip, code blocks [n]
//                   -> code block: codes offset per strip; codes extent: codes, then fp16 factors
//       -> parameter record: per strip the width of its codes, mu and balance             (checksummed)
//
// A strip is numbered kv head by kv head over the GLOBAL layers: strip = first_strip[layer] + kv_head.
// Rows above `committed` mean nothing. Of a sealed segment only what lies below sealed_rows exists: later blocks do not, the last
// one's extents have lost their unused granules, and tables and upper layers count only then (README.md has the arithmetic).
#ifndef MPIG_STORE_FORMAT_H
#define MPIG_STORE_FORMAT_H

#include <assert.h>
#include <stdint.h>

#include "shm/control.h"

#define POOL_MAGIC 0x4c4f4f504749504dull // "MPIGPOOL"
#define POOL_LAYOUT_VERSION 4u
#define POOL_GRANULE 4096u
#define POOL_MAX_CONTEXTS 65536u
#define SEGMENT_MAX_ROWS 65536u
#define SEGMENT_MAX_BLOCKS 248u // their record fits a granule; write.c makes no more
#define BLOCK_MIN_ROWS 16u
#define BLOCK_MAX_ROWS 4096u

// Feature masks as ext4's: an unknown compat bit is ignored, an unknown ro_compat bit allows reading, an unknown incompat bit refuses.
#define POOL_FEATURES_COMPAT 0ull
#define POOL_FEATURES_RO_COMPAT 0ull
#define POOL_FEATURES_INCOMPAT 0ull

enum record_kind {
	RECORD_SUPERBLOCK = 1,
	RECORD_CONTEXT = 2,
	RECORD_SPEC = 3,
	RECORD_SEGMENT_LIST = 4,
	RECORD_SEGMENT = 5,
	RECORD_BLOCK = 6,
	RECORD_GENERATION = 7,
	RECORD_CODE_BLOCK = 8,
	RECORD_PARAMS = 9
};

struct record_header {
	uint32_t magic; // "MPGR"
	uint16_t kind;
	uint16_t format; // of this kind of record
	uint64_t bytes;  // of the extent that holds it
	uint64_t
		checksum; // XXH3 of the immutable part after the header, seeded with XXH3 of the header (this field as zero); 0: none
};
#define RECORD_MAGIC 0x5247504du

struct superblock {
	struct record_header header;
	uint64_t pool_magic;
	uint32_t layout_version, granule;
	uint64_t compat, ro_compat, incompat;
	uint64_t pool_bytes;
	uint64_t contexts_offset;
	uint32_t contexts_max, node, node_count, reserved0;
	uint8_t instance_id[16];
	char instance[64];
	uint64_t created_ns;
};

struct context_slot { // two of them; pool_publish() writes the older one whole
	uint64_t sequence;
	uint64_t segments_offset;
	uint64_t params_offset; // 0 = none yet
	uint32_t segment_count, signature_version;
	uint32_t uid, gid, mode, reserved;
	struct mpig_wire_policy policy;
	uint64_t checksum; // XXH3 of the above
};

enum context_state { CONTEXT_LIVE = 1, CONTEXT_DROPPED = 2, CONTEXT_QUARANTINED = 3 };

struct context_record {
	struct record_header header; // checksum: up to `state`
	uint64_t id, parent_id, fork_tokens, created_ns, seed;
	uint64_t spec_offset;
	char name[MPIG_NAME_BYTES];
	uint8_t fingerprint[64];
	uint32_t layer_count, reserved;
	uint64_t state;     // enum context_state
	uint64_t committed; // tokens
	uint64_t used_ns;   // CLOCK_REALTIME, of the last use as far as it was noted; 0: not noted
	struct context_slot slot[2];
};

#define SEGMENT_OPEN UINT32_MAX
struct segment_list_record {         // followed by struct segment_ref[count]; the slot's segment_count may be less
	struct record_header header; // checksum: everything
	uint32_t count, reserved;
};

struct segment_ref {
	uint64_t segment_offset;
	uint64_t first;  // token position in this context
	uint32_t length; // rows of the segment this context uses; SEGMENT_OPEN: all it has (never more than up to `committed`)
	uint32_t reserved;
};

struct segment_record {
	struct record_header
		header; // checksum, when sealed: of these but for the generations, its blocks' records, the frames (checksum.c)
	struct {
		uint64_t offset; // 0 = none; stored last
		uint64_t params; // offset of the parameters it was made with
	} generation[2];         // for contexts with other parameters there may be another; an open segment has the first at most
	uint64_t frames_offset;  // int8 keys: float [strips][2 max d_k], a row_frame each; 0 = none
	uint32_t sealed_rows;    // 0 = open
	uint32_t block_count;
	uint32_t strips, reserved;
	struct {
		uint64_t offset;
		uint32_t first_row, rows;
	} block[SEGMENT_MAX_BLOCKS];
};

struct block_record {                // followed by u64 rows_offset[strips], then u32 token[rows]
	struct record_header header; // checksum: of the sealed rows and their token ids; 0: none
	uint32_t rows, strips;
};

struct table_extent {
	uint64_t offset, bytes;
};
// Followed by struct table_extent[2][strips] (tables of paper, upper layers; offset 0 = none) and u8 bits[strips], as in the parameters it
// was made with.
struct generation_record {
	struct record_header header; // checksum: of tables and upper layers; 0: none
	uint64_t records;            // checksum, in a sealed segment: of this record and those it leads to (checksum.c)
	uint64_t params_offset;
	uint32_t version; // of the parameters
	uint32_t strips;
	uint32_t table_rows;                     // rows the tables cover; 0 = no tables
	uint32_t upper_rows;                     // and the upper layers
	uint64_t code_block[SEGMENT_MAX_BLOCKS]; // parallel to the segment's blocks; 0 = no codes
};

struct code_block_record {           // followed by u64 codes_offset[strips]
	struct record_header header; // checksum: of the sealed rows' codes; 0: none
	uint32_t rows, strips;
};

// Followed by u8 bits[strips] (1, 2 or 4; 0: no codes), and from the next multiple of 64 bytes on, per strip, by mu[d_k], balance[d_k]
// floats (d_k of the strip's layer).
struct params_record {
	struct record_header header; // checksum: everything
	uint32_t version, strips;
	uint64_t bytes;
};

#endif
