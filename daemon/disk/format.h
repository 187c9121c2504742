// Files on disk: FORMAT.md says what they mean. Little-endian, every reserved byte zero, every file and section with an XXH3.
#ifndef MPIG_DISK_FORMAT_H
#define MPIG_DISK_FORMAT_H

#include <assert.h>

#include "daemon/store/image.h"

#define DISK_VERSION 3u
#define DISK_VERSION_OLDEST 2u // that is read: its segment files have sums of other parts
#define DISK_VERSION_SUMS 3u   // from which on a segment file has sums as the pool makes them
#define DISK_PAGE 4096u
#define DISK_SEGMENT_MAGIC UINT64_C(0x4745534749504d)  // "MPIGSEG"
#define DISK_MANIFEST_MAGIC UINT64_C(0x4e414d4749504d) // "MPIGMAN"
#define DISK_MANIFEST_MAX (UINT64_C(64) << 20)
#define DISK_SECTIONS_MAX (UINT64_C(1) << 24)

enum disk_flags { DISK_SEALED = 1, DISK_INDEXED = 2, DISK_TABLES = 4, DISK_UPPER = 8, DISK_FLAGS = 15 };

struct disk_segment_header { // the first page of a segment file
	uint64_t magic;
	uint32_t version, header_bytes;
	uint8_t id[IMAGE_ID_BYTES];
	uint32_t flags, rows, block_count, reserved;
	uint64_t spec_hash; // XXH3 of the layers
	uint64_t table_content;
	uint64_t file_bytes;
	uint64_t section_count;
	uint64_t index_offset, index_bytes, index_checksum; // of blocks, then sections, at the end of the file
	uint8_t unused[3984];
	uint64_t checksum; // XXH3 of the page up to here
};
static_assert(sizeof(struct disk_segment_header) == DISK_PAGE, "format frozen: make another version");

struct disk_block {
	uint32_t first_row, rows, has_codes, reserved;
	uint64_t content, codes_content;
};
static_assert(sizeof(struct disk_block) == 32, "format frozen: make another version");

struct disk_section {
	uint16_t kind, block; // enum image_kind
	uint32_t strip;
	uint64_t at, bytes; // of the thing it is a part of
	uint64_t offset;    // in the file, a multiple of DISK_PAGE; zeros fill the last page
	uint64_t checksum;  // XXH3 of `bytes` bytes
};
static_assert(sizeof(struct disk_section) == 40, "format frozen: make another version");

struct disk_manifest { // followed by layers, segments, parameters, and the XXH3 of all before it
	uint64_t magic;
	uint32_t version, header_bytes;
	uint64_t file_bytes;
	char name[MPIG_NAME_BYTES];
	uint8_t fingerprint[64];
	uint8_t pool_id[16];
	uint64_t created_ns, saved_ns, seed, committed, params_bytes;
	uint32_t uid, gid, mode;
	uint32_t layer_count, signature_version, segment_count;
	struct mpig_wire_policy policy;
	uint64_t used_ns; // as of the save
	uint8_t reserved[32];
};
static_assert(sizeof(struct disk_manifest) == 360, "format frozen: make another version");

struct disk_segment_ref {
	uint8_t id[IMAGE_ID_BYTES];
	uint64_t first;
	uint32_t rows, flags;
	uint64_t file_bytes, header_checksum;
	uint64_t pool_offset, pool_checksum; // where it was in the pool pool_id
};
static_assert(sizeof(struct disk_segment_ref) == 64, "format frozen: make another version");

#endif
